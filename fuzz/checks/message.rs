//! A stream of messages: its frames, the views of their bodies, and what the proxy says itself.

use bytes::{BufMut, BytesMut};
use tidegate::wire::encode::{self, Severity};
use tidegate::wire::frame::{HEADER, body, header};
use tidegate::wire::message::{self, Bind, Parse, Target};
use tidegate::wire::{FRAME_BYTES_MAX, WireError};

pub fn check(data: &[u8]) {
    let mut rest = data;
    loop {
        scans_alike_however_it_arrives(rest);
        let Ok(Some(head)) = header(rest) else { break };
        assert!((HEADER..=FRAME_BYTES_MAX + 1).contains(&head.len));
        assert_eq!(head.tag, rest[0]);
        let Some((frame, next)) = rest.split_at_checked(head.len) else {
            break;
        };
        client_messages(body(frame));
        server_messages(body(frame));
        rest = next;
    }
    client_messages(data);
    server_messages(data);
    own_words(data);
}

fn scans_alike_however_it_arrives(stream: &[u8]) {
    let whole = header(stream);
    for end in 0..stream.len().min(HEADER) {
        assert_eq!(header(&stream[..end]), Ok(None));
    }
    match whole {
        Ok(Some(_)) => assert_eq!(header(&stream[..HEADER]), whole),
        Ok(None) => assert!(stream.len() < HEADER),
        Err(error) => {
            assert!(matches!(error, WireError::Length(n) if !(4..=0x3fff_ffff).contains(&n)))
        }
    }
}

/// What can be read can be said again, byte for byte.
fn client_messages(body: &[u8]) {
    if let Ok(sql) = message::query(body) {
        says(b'Q', body, |out| encode::query(out, sql));
    }
    if let Ok(Parse { name, sql, types }) = Parse::read(body) {
        assert_eq!(types.len() % 4, 2);
        says(b'P', body, |out| encode::parse(out, name, sql, types));
    }
    if let Ok(bind) = Bind::read(body) {
        let values = &body[bind.head_len()..];
        says(b'B', body, |out| {
            encode::bind_head(out, bind.portal, bind.statement, values.len());
            out.put_slice(values);
        });
        let head = Bind::read(&body[..bind.head_len()]);
        assert_eq!(head, Ok(bind), "the values do not matter");
    }
    match message::target(body) {
        Ok(Target::Statement(name)) => {
            says(b'D', body, |out| encode::statement_target(out, b'D', name));
        }
        Ok(Target::Portal(name)) => assert_eq!(body, [b"P", name, b"\0"].concat()),
        Err(_) => {}
    }
    if let Ok((portal, _)) = message::execute(body) {
        assert_eq!(body.len(), portal.len() + 5);
        assert!(body.starts_with(portal));
    }
}

fn server_messages(body: &[u8]) {
    if let Ok(status) = message::ready(body) {
        says(b'Z', body, |out| encode::ready(out, status));
    }
    if let Ok((name, value)) = message::parameter_status(body) {
        says(b'S', body, |out| encode::parameter_status(out, name, value));
    }
    if let Ok((pid, secret)) = message::key_data(body) {
        assert_eq!(secret.len() + 4, body.len());
        says(b'K', body, |out| encode::key_data(out, pid, secret));
    }
    if let Ok(values) = message::data_row(body) {
        let mut again = (values.len() as i16).to_be_bytes().to_vec();
        for value in values {
            let length = value.map_or(-1, |value| value.len() as i32);
            again.extend(length.to_be_bytes());
            again.extend(value.unwrap_or(&[]));
        }
        assert_eq!(again, body);
    }
    errors(body);
}

fn errors(body: &[u8]) {
    let fields: Vec<_> = message::error_fields(body).collect();
    let mut again = Vec::new();
    for &(code, value) in &fields {
        assert!(code != 0 && !value.contains(&0));
        again.push(code);
        again.extend(value);
        again.push(0);
    }
    assert!(body.starts_with(&again));

    let mut out = BytesMut::new();
    encode::error_again(&mut out, Severity::Fatal, body);
    assert_eq!(whole(&out).0, b'E');
    let said: Vec<_> = message::error_fields(whole(&out).1).collect();
    assert_eq!(said.len(), fields.len());
    let mut has_severity = false;
    for (&(code, value), (said_code, said_value)) in fields.iter().zip(said) {
        let severity = matches!(code, b'S' | b'V');
        has_severity |= severity;
        assert_eq!(code, said_code);
        assert_eq!(said_value, if severity { b"FATAL" } else { value });
    }
    assert_eq!(message::is_fatal(whole(&out).1), has_severity);
}

/// Texts that come from a peer in what the proxy says: none of them may end a field or a message.
fn own_words(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (first, second) = text.split_at(text.floor_char_boundary(text.len() / 2));
    let mut out = BytesMut::new();
    encode::error(&mut out, Severity::Error, "XX000", first, Some(second));
    let (tag, body) = whole(&out);
    assert_eq!(tag, b'E');
    assert!(!message::is_fatal(body));
    let codes: Vec<_> = message::error_fields(body).map(|(code, _)| code).collect();
    assert_eq!(codes, b"SVCMH");
    let plain = first.replace('\0', "");
    assert_eq!(message::error_field(body, b'M'), Some(plain.as_bytes()));

    let unknown: Vec<_> = text.split('\0').take(100).map(str::as_bytes).collect();
    let count = unknown.len();
    out.clear();
    encode::negotiate_version(&mut out, 0, &unknown);
    let (tag, body) = whole(&out);
    assert_eq!(tag, b'v');
    assert_eq!(body[4..8], (count as i32).to_be_bytes());
    assert_eq!(body[8..].iter().filter(|&&byte| byte == 0).count(), count);

    out.clear();
    encode::password(&mut out, data);
    assert_eq!(whole(&out), (b'p', data));
}

fn says(tag: u8, body: &[u8], say: impl FnOnce(&mut BytesMut)) {
    let mut out = BytesMut::new();
    say(&mut out);
    assert_eq!(whole(&out), (tag, body));
}

/// The one message in `out`.
fn whole(out: &[u8]) -> (u8, &[u8]) {
    let head = header(out).expect("a length").expect("a header");
    assert_eq!(head.len, out.len(), "one message and no more");
    (head.tag, body(out))
}
