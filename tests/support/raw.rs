//! A connection of the wire protocol, message by message.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use tidegate::auth::{Credential, Reply, ServerAuth};
use tidegate::config::Secret;
use tidegate::wire::encode;
use tidegate::wire::frame::{body, header};
use tidegate::wire::message;

pub const VERSION_3_0: i32 = 3 << 16;
pub const VERSION_3_2: i32 = 3 << 16 | 2;

/// A connection message by message.
pub struct Raw {
    pub socket: TcpStream,
    buf: BytesMut,
}

impl Raw {
    pub fn open(port: u16) -> Raw {
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        let limit = Some(Duration::from_secs(60));
        socket.set_read_timeout(limit).expect("timeout");
        let buf = BytesMut::new();
        Raw { socket, buf }
    }

    /// Sends a StartupMessage of `app`, to the database `app`.
    pub fn start(port: u16, version: i32, more: &[(&str, &str)]) -> Raw {
        let mut raw = Raw::open(port);
        let mut packet = version.to_be_bytes().to_vec();
        for (name, value) in [("user", "app"), ("database", "app")].iter().chain(more) {
            packet.extend(format!("{name}\0{value}\0").as_bytes());
        }
        packet.push(0);
        raw.send_packet(&packet);
        raw
    }

    /// Sends an untyped packet.
    pub fn send_packet(&mut self, body: &[u8]) {
        let length = (body.len() as i32 + 4).to_be_bytes();
        let sent = self.socket.write_all(&[&length[..], body].concat());
        sent.expect("write");
    }

    pub fn send(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let mut out = BytesMut::new();
        write(&mut out);
        self.socket.write_all(&out).expect("write");
    }

    /// The next message, or `None` at the end of the stream.
    pub fn next(&mut self) -> Option<BytesMut> {
        loop {
            if let Some(head) = header(&self.buf).expect("a message")
                && self.buf.len() >= head.len
            {
                return Some(self.buf.split_to(head.len));
            }
            let mut chunk = [0; 4096];
            match self.socket.read(&mut chunk).expect("an answer in time") {
                0 => return None,
                n => self.buf.extend_from_slice(&chunk[..n]),
            }
        }
    }

    pub fn until(&mut self, tag: u8) -> BytesMut {
        loop {
            let frame = self.next().expect("more messages");
            assert!(frame[0] == tag || frame[0] != b'E', "{}", error(&frame));
            if frame[0] == tag {
                return frame;
            }
        }
    }

    /// Answers the requests to prove who it is; gives process id and secret.
    pub fn log_in(&mut self) -> (i32, Vec<u8>) {
        let credential = Credential::Password(Secret::new("app"));
        let mut auth = ServerAuth::new("app", Some(credential), [7; 18]);
        loop {
            let frame = self.until(b'R');
            let (code, rest) = body(&frame).split_first_chunk::<4>().expect("a code");
            match auth
                .on_request(i32::from_be_bytes(*code), rest)
                .expect("a request")
            {
                Reply::Done => break,
                Reply::Nothing => {}
                Reply::Send(answer) => self.send(|out| encode::password(out, &answer)),
            }
        }
        let frame = self.until(b'K');
        let (pid, secret) = message::key_data(body(&frame)).expect("a key");
        let key = (pid, secret.to_vec());
        self.until(b'Z');
        key
    }

    /// Whether the other end has read all that it has been sent, as the operating system tells.
    pub fn is_read(&self) -> bool {
        let port = |address: std::io::Result<SocketAddr>| {
            format!(":{:04X}", address.expect("an address").port())
        };
        let (own, other) = (
            port(self.socket.local_addr()),
            port(self.socket.peer_addr()),
        );
        let sockets = fs::read_to_string("/proc/net/tcp").expect("sockets");
        // Of each socket what it has sent that has not come, and what has come that is not read.
        let queues = |local: &str, remote: &str| {
            let mut lines = sockets.lines().map(|line| line.split_whitespace().skip(1));
            let queues = lines.find_map(|mut fields| {
                let is_it = fields.next()?.ends_with(local) && fields.next()?.ends_with(remote);
                is_it.then(|| fields.nth(1)).flatten()
            });
            queues.expect("a socket").split_once(':').expect("queues")
        };
        let (unsent, unread) = (queues(&own, &other).0, queues(&other, &own).1);
        [unsent, unread].map(|queue| queue.trim_start_matches('0')) == [""; 2]
    }

    pub fn is_ended(&mut self) -> bool {
        self.next().is_none()
    }
}

/// An ErrorResponse's severity, SQLSTATE, message and hint.
pub fn error(frame: &[u8]) -> String {
    let fields = message::error_fields(body(frame));
    let told = fields.filter(|(code, _)| b"VCMH".contains(code));
    let told = told.map(|(code, text)| format!("{}={}", code as char, text.escape_ascii()));
    told.collect::<Vec<_>>().join(" ")
}
