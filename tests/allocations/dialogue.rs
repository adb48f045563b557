//! A client that says prepared bytes and waits for the answer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::BytesMut;
use tidegate::auth::{Credential, Reply, ServerAuth};
use tidegate::config::Secret;
use tidegate::wire::frame::{body, header};

pub struct Dialogue {
    socket: TcpStream,
    received: BytesMut,
}

impl Dialogue {
    /// Logs in to the database `app` as a user whose password is its name.
    pub fn log_in(port: u16, user: &str) -> Dialogue {
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        socket.set_nodelay(true).expect("no delay");
        let patience = Some(Duration::from_secs(20));
        socket.set_read_timeout(patience).expect("timeout");
        let mut client = Dialogue {
            socket,
            received: BytesMut::new(),
        };
        let words = format!("\0\x03\0\0user\0{user}\0database\0app\0\0");
        let packet = [&(words.len() as u32 + 4).to_be_bytes(), words.as_bytes()].concat();
        client.socket.write_all(&packet).expect("write");
        let credential = Credential::Password(Secret::new(user));
        let mut auth = ServerAuth::new(user, Some(credential), rand::random());
        loop {
            let message = client.next();
            match message[0] {
                b'R' => {
                    let body = body(&message);
                    let code = i32::from_be_bytes(body[..4].try_into().expect("a code"));
                    let reply = auth.on_request(code, &body[4..]).expect("a known method");
                    if let Reply::Send(payload) = reply {
                        let answer = frame(b'p', &payload);
                        client.socket.write_all(&answer).expect("write");
                    }
                }
                b'Z' => return client,
                b'E' => panic!("{}", message.escape_ascii()),
                _ => {}
            }
        }
    }

    /// Says something that is answered with one ReadyForQuery, and waits for that.
    pub fn say(&mut self, words: &[u8]) {
        self.socket.write_all(words).expect("write");
        loop {
            let message = self.next();
            match message[0] {
                b'Z' => return,
                b'E' => panic!("{}", message.escape_ascii()),
                _ => {}
            }
        }
    }

    fn next(&mut self) -> BytesMut {
        loop {
            if let Some(head) = header(&self.received).expect("a message")
                && self.received.len() >= head.len
            {
                return self.received.split_to(head.len);
            }
            let mut chunk = [0; 65536];
            let n = self.socket.read(&mut chunk).expect("read");
            assert!(n > 0, "the proxy has closed the connection");
            self.received.extend_from_slice(&chunk[..n]);
        }
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        let _ = self.socket.write_all(&frame(b'X', b""));
    }
}

pub fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

/// Binds the unnamed portal to these values, as texts.
pub fn bind(statement: &str, values: &[&str]) -> Vec<u8> {
    let mut words = format!("\0{statement}\0\0\0").into_bytes();
    words.extend((values.len() as u16).to_be_bytes());
    for value in values {
        words.extend((value.len() as u32).to_be_bytes());
        words.extend(value.as_bytes());
    }
    words.extend([0, 0]);
    frame(b'B', &words)
}

/// Describes the unnamed portal.
pub fn describe() -> Vec<u8> {
    frame(b'D', b"P\0")
}

/// Executes the unnamed portal to its end.
pub fn execute() -> Vec<u8> {
    frame(b'E', b"\0\0\0\0\0")
}

/// Closes a statement.
pub fn close(statement: &str) -> Vec<u8> {
    frame(b'C', format!("S{statement}\0").as_bytes())
}

pub fn sync() -> Vec<u8> {
    frame(b'S', b"")
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend((body.len() as u32 + 4).to_be_bytes());
    frame.extend(body);
    frame
}
