//! A client that says exactly what it is told to.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use tidegate::auth::{Credential, Reply, ServerAuth};
use tidegate::config::Secret;
use tidegate::wire::frame::{body, header};

use super::script::{Login, frame, startup_packet};

/// How long a client waits for the next byte before it calls that no answer.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Client {
    pub socket: TcpStream,
    buf: BytesMut,
    user: String,
    /// The process and its secret, for cancel requests.
    pub key: Vec<u8>,
}

/// What comes instead of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    End,
    Nothing,
    /// Bytes that are no message.
    Garbage,
}

impl Client {
    /// Connects, and says nothing.
    pub fn connect(port: u16) -> Client {
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        socket.set_nodelay(true).expect("no delay");
        Client {
            socket,
            buf: BytesMut::new(),
            user: "app".to_owned(),
            key: Vec::new(),
        }
    }

    /// Connects and logs in; every message that it is sent.
    pub fn log_in(port: u16, login: &Login) -> (Client, Vec<BytesMut>, Option<Instead>) {
        let mut client = Client::connect(port);
        let pairs = login.parameters.iter();
        let pairs: Vec<_> = pairs
            .map(|(n, v)| (n.clone().into_bytes(), v.clone().into_bytes()))
            .collect();
        client.send(&startup_packet(3, 0, &pairs));
        let user = login.parameters.iter().find(|(name, _)| name == "user");
        client.user = user.map_or_else(String::new, |(_, user)| user.clone());
        let password = login.password.clone().unwrap_or(client.user.clone());
        let (greeting, instead) = client.authenticate(&password);
        (client, greeting, instead)
    }

    /// Answers what it is asked up to the first ReadyForQuery.
    pub fn authenticate(&mut self, password: &str) -> (Vec<BytesMut>, Option<Instead>) {
        let credential = Some(Credential::Password(Secret::new(password)));
        let mut auth = ServerAuth::new(&self.user, credential, rand::random());
        let mut seen = Vec::new();
        loop {
            let message = match self.next() {
                Ok(message) => message,
                Err(instead) => return (seen, Some(instead)),
            };
            let body = body(&message);
            match message[0] {
                b'R' => {
                    let code = i32::from_be_bytes(body[..4].try_into().expect("a code"));
                    if let Ok(Reply::Send(payload)) = auth.on_request(code, &body[4..]) {
                        self.send(&frame(b'p', &payload));
                    }
                }
                b'K' => self.key = body.to_vec(),
                _ => {}
            }
            let ready = message[0] == b'Z';
            seen.push(message);
            if ready {
                return (seen, None);
            }
        }
    }

    /// Says something, unless nobody listens any more.
    pub fn send(&mut self, bytes: &[u8]) {
        match self.socket.write_all(bytes) {
            Err(error) if !is_end(&error) => panic!("write: {error}"),
            _ => {}
        }
    }

    pub fn shut(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// The next message.
    pub fn next(&mut self) -> Result<BytesMut, Instead> {
        loop {
            match header(&self.buf) {
                Ok(Some(head)) if self.buf.len() >= head.len => {
                    return Ok(self.buf.split_to(head.len));
                }
                Ok(_) => self.read()?,
                Err(_) => return Err(Instead::Garbage),
            }
        }
    }

    pub fn next_byte(&mut self) -> Result<u8, Instead> {
        while self.buf.is_empty() {
            self.read()?;
        }
        Ok(self.buf.split_to(1)[0])
    }

    fn read(&mut self) -> Result<(), Instead> {
        let mut chunk = [0; 65536];
        match self.socket.read(&mut chunk) {
            Ok(0) => Err(Instead::End),
            Ok(n) => {
                self.buf.extend_from_slice(&chunk[..n]);
                Ok(())
            }
            Err(error) if is_end(&error) => Err(Instead::End),
            Err(_) => Err(Instead::Nothing),
        }
    }
}

/// Whoever closes a connection with bytes unread resets it.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
