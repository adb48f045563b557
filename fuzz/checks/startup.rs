//! The first packet of a connection.

use tidegate::wire::startup::{
    self, Parameters, STARTUP_BYTES_MAX, Startup, encode, encode_cancel, parse,
};

pub fn check(data: &[u8]) {
    match parse(data) {
        Ok(Some((packet, len))) => {
            assert!((8..=STARTUP_BYTES_MAX).contains(&len) && len <= data.len());
            let whole = &data[..len];
            for end in (0..len.min(32)).chain([len - 1]) {
                assert_eq!(parse(&whole[..end]), Ok(None), "a beginning is no packet");
            }
            let again = parse(whole);
            assert_eq!(again, Ok(Some((packet.clone(), len))), "what follows");
            keeps_everything(&packet, whole);
        }
        Ok(None) => {
            let length = data.first_chunk().map(|head| i32::from_be_bytes(*head));
            assert!(length.is_none_or(|length| data.len() < length as usize));
        }
        Err(_) => {
            let more = [data, b"\0\0\0\x08\x04\xd2\x16\x2f"].concat();
            assert!(parse(&more).is_err(), "an error stays one");
        }
    }
}

/// The packet can be put together again from what was read of it.
fn keeps_everything(packet: &Startup, whole: &[u8]) {
    match packet {
        Startup::Ssl => assert_eq!(whole, b"\0\0\0\x08\x04\xd2\x16\x2f"),
        Startup::GssEnc => assert_eq!(whole, b"\0\0\0\x08\x04\xd2\x16\x30"),
        Startup::Cancel { pid, secret } => {
            assert!((4..=256).contains(&secret.len()));
            assert_eq!(encode_cancel(*pid, secret), whole);
        }
        Startup::Start(parameters) => keeps_parameters(parameters, whole),
    }
}

fn keeps_parameters(Parameters { version, pairs }: &Parameters, whole: &[u8]) {
    let text = |bytes| str::from_utf8(bytes).ok();
    let readable: Option<Vec<_>> = pairs
        .iter()
        .map(|(name, value)| Some((text(name)?, text(value)?)))
        .collect();
    if let Some(readable) = readable {
        let mut encoded = encode(&readable);
        encoded[4..8].copy_from_slice(&version.to_be_bytes());
        assert_eq!(encoded, whole);
    }
    let parameters = Parameters {
        version: startup::PROTOCOL_3_0,
        pairs: pairs.clone(),
    };
    for (name, _) in pairs.iter().take(64) {
        let last = pairs.iter().rev().find(|(other, _)| other == name);
        if let Some(name) = text(name) {
            assert_eq!(parameters.get(name), last.map(|(_, value)| &value[..]));
        }
    }
    assert_eq!(parameters.get(""), None, "a name is never empty");
}
