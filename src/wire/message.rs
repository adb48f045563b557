//! Owns: borrowed views of message bodies. Never: copies a body, or reads more of it than a proxy
//! needs.

use std::fmt;

use smallvec::SmallVec;

use super::WireError;
use super::cursor::Cursor;
use super::startup::CANCEL_KEY_BYTES;

/// `Q`: the text without its NUL.
pub fn query(body: &[u8]) -> Result<&[u8], WireError> {
    let mut fields = Cursor::new(body);
    let text = fields.cstr()?;
    fields.end()?;
    Ok(text)
}

/// `P`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    pub name: &'a [u8],
    pub sql: &'a [u8],
    /// The number of parameter types and their OIDs, as sent.
    pub types: &'a [u8],
}

impl<'a> Parse<'a> {
    pub fn read(body: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Cursor::new(body);
        let name = fields.cstr()?;
        let sql = fields.cstr()?;
        let types = fields.rest();
        let count = fields.u16()?;
        fields.bytes(4 * usize::from(count))?;
        fields.end()?;
        Ok(Parse { name, sql, types })
    }
}

/// The head of `B`. The formats and values that follow are the server's to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind<'a> {
    pub portal: &'a [u8],
    pub statement: &'a [u8],
}

impl<'a> Bind<'a> {
    /// Reads the names; `body` may be only the beginning of a long message.
    pub fn read(body: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Cursor::new(body);
        Ok(Bind {
            portal: fields.cstr()?,
            statement: fields.cstr()?,
        })
    }

    /// Bytes of the body that the two names and their NULs take.
    pub fn head_len(&self) -> usize {
        self.portal.len() + self.statement.len() + 2
    }
}

/// The value of parameter `number`, from 1, in what follows the names of a `B`, and whether it is in the binary format.
/// `None` for NULL, and where there is no such value.
pub fn bound_value(values: &[u8], number: u16) -> Option<(&[u8], bool)> {
    let mut fields = Cursor::new(values);
    let formats = usize::from(fields.u16().ok()?);
    let mut formats = Cursor::new(fields.bytes(2 * formats).ok()?);
    let count = fields.u16().ok()?;
    if number == 0 || number > count {
        return None;
    }
    let (mut value, mut is_binary) = (None, false);
    for _ in 0..number {
        // One format is that of all, and without any they are texts.
        if let Ok(format) = formats.u16() {
            is_binary = format == 1;
        }
        let length = fields.i32().ok()?;
        value = match usize::try_from(length) {
            Ok(length) => Some(fields.bytes(length).ok()?),
            Err(_) => None,
        };
    }
    value.map(|value| (value, is_binary))
}

/// What `D` and `C` name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    Statement(&'a [u8]),
    Portal(&'a [u8]),
}

/// `D` (Describe) or `C` (Close).
pub fn target(body: &[u8]) -> Result<Target<'_>, WireError> {
    let mut fields = Cursor::new(body);
    let kind = fields.u8()?;
    let name = fields.cstr()?;
    fields.end()?;
    match kind {
        b'S' => Ok(Target::Statement(name)),
        b'P' => Ok(Target::Portal(name)),
        _ => Err(WireError::Value),
    }
}

/// `E` (Execute): the portal's name, and the most rows that it is to return; with 0 all.
pub fn execute(body: &[u8]) -> Result<(&[u8], i32), WireError> {
    let mut fields = Cursor::new(body);
    let execute = (fields.cstr()?, fields.i32()?);
    fields.end()?;
    Ok(execute)
}

/// The transaction status a server reports in ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Idle,
    InTransaction,
    Failed,
}

impl Status {
    pub fn byte(self) -> u8 {
        match self {
            Status::Idle => b'I',
            Status::InTransaction => b'T',
            Status::Failed => b'E',
        }
    }
}

/// `Z`.
pub fn ready(body: &[u8]) -> Result<Status, WireError> {
    match body {
        b"I" => Ok(Status::Idle),
        b"T" => Ok(Status::InTransaction),
        b"E" => Ok(Status::Failed),
        _ => Err(WireError::Value),
    }
}

/// `S` of a server: name and value.
pub fn parameter_status(body: &[u8]) -> Result<(&[u8], &[u8]), WireError> {
    let mut fields = Cursor::new(body);
    let pair = (fields.cstr()?, fields.cstr()?);
    fields.end()?;
    Ok(pair)
}

/// `K`: process id and secret.
pub fn key_data(body: &[u8]) -> Result<(i32, &[u8]), WireError> {
    let mut fields = Cursor::new(body);
    let pid = fields.i32()?;
    match fields.rest() {
        secret if CANCEL_KEY_BYTES.contains(&secret.len()) => Ok((pid, secret)),
        _ => Err(WireError::Value),
    }
}

/// One field of an ErrorResponse or NoticeResponse, by its code: `S` severity (localised), `V`
/// severity, `C` SQLSTATE, `M` message, …
pub fn error_field(body: &[u8], code: u8) -> Option<&[u8]> {
    error_fields(body)
        .find(|&(c, _)| c == code)
        .map(|(_, value)| value)
}

/// All fields of an ErrorResponse or NoticeResponse, up to the first that is malformed.
pub fn error_fields(body: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut fields = Cursor::new(body);
    std::iter::from_fn(move || match fields.u8() {
        Ok(0) | Err(_) => None,
        Ok(code) => fields.cstr().ok().map(|value| (code, value)),
    })
}

/// An ErrorResponse in a line: its message and SQLSTATE.
pub struct ErrorLine<'a>(pub &'a [u8]);

impl fmt::Display for ErrorLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = |code| String::from_utf8_lossy(error_field(self.0, code).unwrap_or(b"?"));
        write!(f, "{} (SQLSTATE {})", field(b'M'), field(b'C'))
    }
}

/// Whether an ErrorResponse ends the server's connection.
pub fn is_fatal(body: &[u8]) -> bool {
    let severity = error_field(body, b'V').or_else(|| error_field(body, b'S'));
    matches!(severity, Some(b"FATAL" | b"PANIC"))
}

/// A digest of the columns that a RowDescription names: their names, types and type modifiers, which
/// is what must not change under a prepared statement. An empty body is NoData's.
pub fn row_shape(body: &[u8]) -> Result<u64, WireError> {
    use std::hash::{BuildHasher, Hasher};
    let mut digest = foldhash::quality::FixedState::with_seed(0).build_hasher();
    let mut fields = Cursor::new(body);
    if body.is_empty() {
        return Ok(digest.finish());
    }
    let count = usize::from(fields.u16()?);
    digest.write_usize(count);
    for _ in 0..count {
        digest.write(fields.cstr()?);
        // Table and column number: the same columns may come from a table that was made anew.
        fields.bytes(6)?;
        digest.write(fields.bytes(4)?);
        fields.bytes(2)?;
        digest.write(fields.bytes(4)?);
        fields.bytes(2)?;
    }
    fields.end()?;
    Ok(digest.finish())
}

/// The values of a DataRow, `None` for NULL; few of them take no memory of their own.
pub type Row<'a> = SmallVec<[Option<&'a [u8]>; 4]>;

/// Reads a DataRow.
pub fn data_row(body: &[u8]) -> Result<Row<'_>, WireError> {
    let mut fields = Cursor::new(body);
    let count = usize::from(fields.u16()?);
    let mut values = Row::with_capacity(count);
    for _ in 0..count {
        values.push(match fields.i32()? {
            -1 => None,
            n => Some(fields.bytes(usize::try_from(n).map_err(|_| WireError::Value)?)?),
        });
    }
    fields.end()?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_is_there_and_nothing_more() {
        assert_eq!(query(b"SELECT 1\0"), Ok(&b"SELECT 1"[..]));
        assert_eq!(query(b"SELECT 1"), Err(WireError::Unterminated));
        assert_eq!(query(b"SELECT 1\0S\0\0\0\x04"), Err(WireError::Trailing));
        let parse = Parse::read(b"s\0SELECT $1\0\0\x01\0\0\0\x17").unwrap();
        assert_eq!((parse.name, parse.sql), (&b"s"[..], &b"SELECT $1"[..]));
        assert_eq!(parse.types, b"\0\x01\0\0\0\x17");
        assert_eq!(
            Parse::read(b"s\0SELECT\0\0\x02\0\0\0\x17"),
            Err(WireError::Truncated)
        );
        // PostgreSQL takes no count for negative.
        let many = [b"s\0SELECT\0\xff\xff", &[0; 4 * 0xffff][..]].concat();
        assert_eq!(Parse::read(&many).unwrap().types.len(), 2 + 4 * 0xffff);
        let bind = Bind::read(b"p\0s\0\0\0\0\0\0\0").unwrap();
        assert_eq!(
            (bind.portal, bind.statement, bind.head_len()),
            (&b"p"[..], &b"s"[..], 4)
        );
        assert_eq!(target(b"Sx\0"), Ok(Target::Statement(b"x")));
        assert_eq!(target(b"Xx\0"), Err(WireError::Value));
        assert_eq!(execute(b"\0\0\0\0\x05"), Ok((&b""[..], 5)));
        assert_eq!(execute(b"\0\0\0"), Err(WireError::Truncated));
        assert_eq!(ready(b""), Err(WireError::Value));
        let row = |name: &str, oid: u8, table: u8| {
            let mut body = b"\0\x01".to_vec();
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(&[0, 0, 0, 0, table, 0, 1, 0, 0, 0, oid, 0, 4]);
            body.extend_from_slice(b"\xff\xff\xff\xff\0\0");
            row_shape(&body).unwrap()
        };
        assert_eq!(row("a", 23, 1), row("a", 23, 2));
        assert_ne!(row("a", 23, 1), row("b", 23, 1));
        assert_ne!(row("a", 23, 1), row("a", 25, 1));
        assert_ne!(row("a", 23, 1), row_shape(b"").unwrap());
        let values = b"\0\x01\0\0\0\x02\xff\xff\xff\xff\0\0\0\x02ab";
        assert_eq!(bound_value(values, 2), Some((&b"ab"[..], false)));
        assert_eq!(
            [0, 1, 3].map(|number| bound_value(values, number)),
            [None; 3]
        );
    }

    #[test]
    fn reads_errors() {
        let body = b"SFEHLER\0VFATAL\0C57P01\0Mgoing down\0\0";
        assert!(is_fatal(body));
        assert_eq!(error_field(body, b'C'), Some(&b"57P01"[..]));
        assert_eq!(error_field(body, b'D'), None);
        assert_eq!(error_field(b"", b'C'), None);
        assert_eq!(error_field(b"C57", b'C'), None);
        assert_eq!(ErrorLine(body).to_string(), "going down (SQLSTATE 57P01)");
        assert_eq!(ErrorLine(b"").to_string(), "? (SQLSTATE ?)");
    }

    proptest! {
        #[test]
        fn never_panics(body: Vec<u8>) {
            let _ = (query(&body), Parse::read(&body), Bind::read(&body), target(&body));
            let _ = (execute(&body), ready(&body), parameter_status(&body), key_data(&body));
            let _ = (error_field(&body, b'C'), is_fatal(&body), data_row(&body), bound_value(&body, 2), row_shape(&body));
        }
    }
}
