//! Owns: the messages that the proxy itself says. Never: re-encodes what a peer said; that is
//! forwarded as it came.

use bytes::{BufMut, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::data::{FieldDescription, RowDescription};
use pgwire::messages::response::ErrorResponse;
use pgwire::messages::startup::Authentication;

use super::message::{self, Status};

/// Answers that need no contents.
pub const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
pub const BIND_COMPLETE: &[u8] = b"2\0\0\0\x04";
pub const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
pub const NO_DATA: &[u8] = b"n\0\0\0\x04";
pub const NO_PARAMETERS: &[u8] = b"t\0\0\0\x06\0\0";
pub const EMPTY_QUERY: &[u8] = b"I\0\0\0\x04";
pub const PORTAL_SUSPENDED: &[u8] = b"s\0\0\0\x04";
pub const SYNC: &[u8] = b"S\0\0\0\x04";
pub const FLUSH: &[u8] = b"H\0\0\0\x04";
pub const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// How grave an error is: whether the connection goes on after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Fatal,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        }
    }
}

/// Appends an ErrorResponse.
pub fn error(
    out: &mut BytesMut,
    severity: Severity,
    sqlstate: &str,
    message: &str,
    hint: Option<&str>,
) {
    let mut fields = vec![
        (b'S', severity.name().to_owned()),
        (b'V', severity.name().to_owned()),
        (b'C', sqlstate.to_owned()),
        // A NUL would end the field early: what follows it would be read as another field.
        (b'M', message.replace('\0', "")),
    ];
    if let Some(hint) = hint {
        fields.push((b'H', hint.replace('\0', "")));
    }
    encode(out, &ErrorResponse::new(fields));
}

/// Appends a fatal error in the form that it had before protocol 3.0: text without a length.
pub fn error_of_protocol_2(out: &mut BytesMut, message: &str) {
    out.put_u8(b'E');
    let text = format!("FATAL:  {}\n", message.replace('\0', ""));
    cstr(out, text.as_bytes());
}

/// Appends an ErrorResponse with the fields of `body`, but of another severity.
pub fn error_again(out: &mut BytesMut, severity: Severity, body: &[u8]) {
    frame(out, b'E', |out| {
        for (code, value) in message::error_fields(body) {
            let own = matches!(code, b'S' | b'V');
            out.put_u8(code);
            cstr(
                out,
                if own {
                    severity.name().as_bytes()
                } else {
                    value
                },
            );
        }
        out.put_u8(0);
    });
}

/// Appends an authentication request.
pub fn authentication(out: &mut BytesMut, request: &Authentication) {
    encode(out, request);
}

/// Appends a BackendKeyData. In protocol 3.0 the secret has four bytes.
pub fn key_data(out: &mut BytesMut, pid: i32, secret: &[u8]) {
    frame(out, b'K', |out| {
        out.put_i32(pid);
        out.put_slice(secret);
    });
}

/// Appends a NegotiateProtocolVersion: the version that is spoken from now on, and the options that
/// are not known.
pub fn negotiate_version(out: &mut BytesMut, version: i32, unknown: &[&[u8]]) {
    frame(out, b'v', |out| {
        out.put_i32(version);
        out.put_i32(unknown.len() as i32);
        unknown.iter().for_each(|name| cstr(out, name));
    });
}

/// Appends a ParameterStatus. Bytes, not text: values come in the client's encoding.
pub fn parameter_status(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    frame(out, b'S', |out| {
        cstr(out, name);
        cstr(out, value);
    });
}

/// Appends a ReadyForQuery.
pub fn ready(out: &mut BytesMut, status: Status) {
    frame(out, b'Z', |out| out.put_u8(status.byte()));
}

/// Appends a CommandComplete.
pub fn command_complete(out: &mut BytesMut, tag: &str) {
    frame(out, b'C', |out| cstr(out, tag.as_bytes()));
}

/// Appends a RowDescription of columns that are of no table: names, types' OIDs and sizes, formats.
pub fn row_description<'a>(
    out: &mut BytesMut,
    columns: impl Iterator<Item = (&'a str, u32, i16, i16)>,
) {
    let field = |(name, oid, size, format): (&str, u32, i16, i16)| {
        FieldDescription::new(name.to_owned(), 0, 0, oid, size, -1, format)
    };
    encode(out, &RowDescription::new(columns.map(field).collect()));
}

/// Appends a DataRow.
pub fn data_row(out: &mut BytesMut, values: &[Option<Vec<u8>>]) {
    frame(out, b'D', |out| {
        out.put_i16(values.len() as i16);
        for value in values {
            match value {
                None => out.put_i32(-1),
                Some(value) => {
                    out.put_i32(value.len() as i32);
                    out.put_slice(value);
                }
            }
        }
    });
}

/// Appends a Query.
pub fn query(out: &mut BytesMut, sql: &[u8]) {
    frame(out, b'Q', |out| cstr(out, sql));
}

/// Appends a message with this body.
pub fn body(out: &mut BytesMut, tag: u8, body: &[u8]) {
    frame(out, tag, |out| out.put_slice(body));
}

/// Appends a Parse; `types` is the count of types and their OIDs, as a client sent them.
pub fn parse(out: &mut BytesMut, name: &[u8], sql: &[u8], types: &[u8]) {
    frame(out, b'P', |out| {
        cstr(out, name);
        cstr(out, sql);
        out.put_slice(types);
    });
}

/// Appends the header and the names of a Bind whose remaining `rest` bytes follow.
pub fn bind_head(out: &mut BytesMut, portal: &[u8], statement: &[u8], rest: usize) {
    out.put_u8(b'B');
    out.put_i32((4 + portal.len() + statement.len() + 2 + rest) as i32);
    cstr(out, portal);
    cstr(out, statement);
}

/// Appends Bind of the unnamed statement with one text `value`, and Execute of up to `rows` rows.
pub fn bind_and_execute(out: &mut BytesMut, value: &[u8], rows: i32) {
    frame(out, b'B', |out| {
        // The unnamed portal and statement; no format codes: all text.
        out.put_slice(b"\0\0\0\0\0\x01");
        out.put_i32(value.len() as i32);
        out.put_slice(value);
        out.put_i16(0);
    });
    frame(out, b'E', |out| {
        cstr(out, b"");
        out.put_i32(rows);
    });
}

/// Appends a Describe (`D`) or Close (`C`) of a statement.
pub fn statement_target(out: &mut BytesMut, tag: u8, statement: &[u8]) {
    frame(out, tag, |out| {
        out.put_u8(b'S');
        cstr(out, statement);
    });
}

/// Appends a `p` message: a password or a step of SASL.
pub fn password(out: &mut BytesMut, payload: &[u8]) {
    frame(out, b'p', |out| out.put_slice(payload));
}

fn frame(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_i32(0);
    body(out);
    let length = (out.len() - at) as i32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

fn cstr(out: &mut BytesMut, text: &[u8]) {
    out.put_slice(text);
    out.put_u8(0);
}

fn encode(out: &mut BytesMut, message: &impl Message) {
    // Encoding into a growing buffer fails for no message that is built here.
    let encoded = message.encode(out);
    debug_assert!(encoded.is_ok(), "{encoded:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{body, header};
    use crate::wire::message;

    #[test]
    fn what_is_encoded_reads_back() {
        let mut out = BytesMut::new();
        parse(&mut out, b"s", b"SELECT 1", b"\0\0");
        assert_eq!(header(&out).unwrap().unwrap().len, out.len());
        assert_eq!(message::Parse::read(body(&out)).unwrap().sql, b"SELECT 1");

        out.clear();
        bind_head(&mut out, b"p", b"s", 6);
        out.put_slice(&[0; 6]);
        assert_eq!(header(&out).unwrap().unwrap().len, out.len());
        assert_eq!(message::Bind::read(body(&out)).unwrap().statement, b"s");

        out.clear();
        key_data(&mut out, 7, &[1; 32]);
        assert_eq!(message::key_data(body(&out)), Ok((7, &[1; 32][..])));

        out.clear();
        negotiate_version(&mut out, 3 << 16 | 2, &[b"_pq_.a", b"_pq_.b"]);
        let negotiated = b"v\0\0\0\x1a\0\x03\0\x02\0\0\0\x02_pq_.a\0_pq_.b\0";
        assert_eq!(&out[..], negotiated);

        out.clear();
        bind_and_execute(&mut out, b"v", 2);
        let bind = header(&out).unwrap().unwrap().len;
        assert_eq!(&out[..bind], b"B\0\0\0\x11\0\0\0\0\0\x01\0\0\0\x01v\0\0");
        assert_eq!(message::execute(body(&out[bind..])), Ok((&b""[..], 2)));

        out.clear();
        error(&mut out, Severity::Fatal, "57P03", "a\0Mb", Some("do it"));
        assert_eq!(message::error_field(body(&out), b'M'), Some(&b"aMb"[..]));
        assert!(message::is_fatal(body(&out)));
    }
}
