//! Owns: the untyped first packet of a connection. Never: decides what to answer.

use super::WireError;
use super::cursor::Cursor;

/// The longest start-up packet PostgreSQL accepts, in bytes (`MAX_STARTUP_PACKET_LENGTH`).
pub const STARTUP_BYTES_MAX: usize = 10_000;

/// Protocol 3.0, the version spoken with servers.
pub const PROTOCOL_3_0: i32 = 3 << 16;

/// Protocol 3.2, the newest spoken with clients.
pub const PROTOCOL_3_2: i32 = 3 << 16 | 2;

/// The lengths that a cancel key may have, in bytes.
pub const CANCEL_KEY_BYTES: std::ops::RangeInclusive<usize> = 4..=256;

const CANCEL_REQUEST: i32 = (1234 << 16) | 5678;
const SSL_REQUEST: i32 = (1234 << 16) | 5679;
/// The whole packet: a length and the code of the request.
pub const SSL_REQUEST_PACKET: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

const GSSENC_REQUEST: i32 = (1234 << 16) | 5680;

/// The first packet of a client's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Startup {
    Ssl,
    GssEnc,
    Cancel { pid: i32, secret: Vec<u8> },
    Start(Parameters),
}

/// A StartupMessage: every parameter, in the order sent, repetitions kept. Of another major version
/// than 3 none is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// The requested protocol version: major in the upper 16 bits.
    pub version: i32,
    pub pairs: Pairs,
}

/// Names and values.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

impl Parameters {
    pub fn major(&self) -> u32 {
        self.version as u32 >> 16
    }

    pub fn minor(&self) -> u32 {
        self.version as u32 & 0xffff
    }

    /// The protocol options that the client wishes for, of which none is known.
    pub fn protocol_options(&self) -> impl Iterator<Item = &[u8]> {
        let names = self.pairs.iter().map(|(name, _)| name.as_slice());
        names.filter(|name| name.starts_with(b"_pq_."))
    }

    /// The last value given for `name`.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.pairs
            .iter()
            .rev()
            .find(|(n, _)| n == name.as_bytes())
            .map(|(_, v)| v.as_slice())
    }
}

/// Reads the packet at the start of `buf`: the packet and its length in bytes, or `None` when it
/// is not all there.
///
/// # Errors
/// A length outside 8 to [`STARTUP_BYTES_MAX`], or fields that do not fit the packet;
/// [`WireError::Value`] for those of a cancel request.
pub fn parse(buf: &[u8]) -> Result<Option<(Startup, usize)>, WireError> {
    let Some(head) = buf.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = i32::from_be_bytes(*head);
    if length < 8 || length as usize > STARTUP_BYTES_MAX {
        return Err(WireError::Length(length));
    }
    let length = length as usize;
    let Some(packet) = buf.get(4..length) else {
        return Ok(None);
    };
    let mut fields = Cursor::new(packet);
    let startup = match fields.i32()? {
        SSL_REQUEST => {
            fields.end()?;
            Startup::Ssl
        }
        GSSENC_REQUEST => {
            fields.end()?;
            Startup::GssEnc
        }
        CANCEL_REQUEST => {
            let pid = fields.i32().map_err(|_| WireError::Value)?;
            let secret = fields.rest().to_vec();
            if !CANCEL_KEY_BYTES.contains(&secret.len()) {
                return Err(WireError::Value);
            }
            Startup::Cancel { pid, secret }
        }
        version => {
            // What follows another major version is of its own form.
            let is_known = version >> 16 == PROTOCOL_3_0 >> 16;
            let pairs = is_known.then(|| pairs(fields)).transpose()?;
            Startup::Start(Parameters {
                version,
                pairs: pairs.unwrap_or_default(),
            })
        }
    };
    Ok(Some((startup, length)))
}

fn pairs(mut fields: Cursor<'_>) -> Result<Pairs, WireError> {
    let mut pairs = Vec::new();
    loop {
        let name = fields.cstr()?;
        if name.is_empty() {
            fields.end()?;
            return Ok(pairs);
        }
        pairs.push((name.to_vec(), fields.cstr()?.to_vec()));
    }
}

/// A StartupMessage for a server.
pub fn encode(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut packet = vec![0; 4];
    packet.extend(PROTOCOL_3_0.to_be_bytes());
    for (name, value) in pairs {
        packet.extend_from_slice(name.as_bytes());
        packet.push(0);
        packet.extend_from_slice(value.as_bytes());
        packet.push(0);
    }
    packet.push(0);
    let length = packet.len() as i32;
    packet[..4].copy_from_slice(&length.to_be_bytes());
    packet
}

/// A CancelRequest for a server.
pub fn encode_cancel(pid: i32, secret: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(12 + secret.len());
    packet.extend((12 + secret.len() as i32).to_be_bytes());
    packet.extend(CANCEL_REQUEST.to_be_bytes());
    packet.extend(pid.to_be_bytes());
    packet.extend(secret);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keeps_every_parameter() {
        let packet = encode(&[("user", "a"), ("database", "b"), ("user", "c")]);
        let (startup, len) = parse(&packet).unwrap().unwrap();
        assert_eq!(len, packet.len());
        let Startup::Start(parameters) = startup else {
            panic!("{startup:?}")
        };
        assert_eq!(parameters.version, PROTOCOL_3_0);
        assert_eq!(parameters.pairs.len(), 3);
        assert_eq!(parameters.get("user"), Some(&b"c"[..]));
        for n in 0..packet.len() {
            assert_eq!(parse(&packet[..n]), Ok(None));
        }
    }

    #[test]
    fn knows_requests() {
        let packet = |code: i32| [8i32.to_be_bytes(), code.to_be_bytes()].concat();
        assert_eq!(parse(&packet(SSL_REQUEST)), Ok(Some((Startup::Ssl, 8))));
        assert_eq!(packet(SSL_REQUEST), SSL_REQUEST_PACKET);
        assert_eq!(
            parse(&packet(GSSENC_REQUEST)),
            Ok(Some((Startup::GssEnc, 8)))
        );
        let cancel = encode_cancel(7, &[1, 2, 3, 4]);
        let wanted = Startup::Cancel {
            pid: 7,
            secret: vec![1, 2, 3, 4],
        };
        assert_eq!(parse(&cancel), Ok(Some((wanted, 16))));
    }

    #[test]
    fn refuses_bad_packets() {
        assert_eq!(parse(&7i32.to_be_bytes()), Err(WireError::Length(7)));
        assert_eq!(
            parse(b"GET / HTTP/1.1\r\n"),
            Err(WireError::Length(0x4745_5420))
        );
        let mut unterminated = encode(&[("user", "a")]);
        let last = unterminated.len() - 1;
        unterminated[last] = b'x';
        assert_eq!(parse(&unterminated), Err(WireError::Unterminated));
    }

    proptest! {
        #[test]
        fn never_panics(buf: Vec<u8>) {
            let _ = parse(&buf);
        }
    }
}
