//! Owns: connecting and logging in to a server, and asking it a question of the proxy's own. Never:
//! decides what a failure means for the node.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};

use super::node::Node;
use crate::auth::{AuthError, Credential, Reply, ServerAuth};
use crate::config::SslMode;
use crate::net::stream::Stream;
use crate::net::tls::NodeSide;
use crate::net::tls::certificate::Certificate;
use crate::session::params::Params;
use crate::wire::frame::{Header, body, header};
use crate::wire::message::{self, Row, error_field};
use crate::wire::{SERVER_CONTROL_BYTES_MAX, WireError, encode, startup};

/// Whom to connect to, and as whom.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    pub host: &'a str,
    pub port: u16,
    pub tls: Arc<NodeSide>,
    pub database: &'a str,
    pub user: &'a str,
    pub credential: Option<Credential>,
    /// Shown in the server's `pg_stat_activity` until a session sets its own.
    pub application_name: &'a str,
}

impl<'a> Target<'a> {
    /// A node, by what is configured of it now. As whom is for the caller to say.
    pub fn at(node: &'a Node) -> Target<'a> {
        Target {
            host: &node.host,
            port: node.port,
            tls: node.tls.load_full(),
            database: "",
            user: "",
            credential: None,
            application_name: "",
        }
    }
}

/// A server connection that is logged in and waits for a query.
#[derive(Debug)]
pub struct Connection {
    pub stream: Stream,
    pub params: Params,
    /// For cancel requests.
    pub pid: i32,
    pub secret: Vec<u8>,
    buf: BytesMut,
    /// Room for the next question.
    out: BytesMut,
}

/// Why there is no connection, or no answer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("server closed the connection")]
    Closed,
    #[error("server sent something that is no message: {0}")]
    Wire(#[from] WireError),
    #[error("server sent a message of type {0:?} out of turn")]
    Unexpected(char),
    #[error("server does not support TLS, and sslmode asks for it")]
    NoTls,
    #[error("server sent unencrypted data after its answer to the request for TLS")]
    EarlyData,
    #[error("TLS with the server failed: {0}")]
    Tls(io::Error),
    #[error("{0}")]
    Auth(#[from] AuthError),
    #[error("answer has more than {0} bytes")]
    TooMuch(usize),
    /// The body of an ErrorResponse.
    #[error("{}", message::ErrorLine(.0))]
    Refused(Vec<u8>),
}

impl ConnectError {
    /// The server's own SQLSTATE, where it gave one.
    pub fn sqlstate(&self) -> Option<&[u8]> {
        match self {
            ConnectError::Refused(error) => error_field(error, b'C'),
            _ => None,
        }
    }

    /// The node can't serve anybody now: it is down, starting, stopping, or out of reach. Another
    /// attempt may succeed without anything being changed.
    pub fn is_node_away(&self) -> bool {
        match self {
            // Bad data is what TLS makes of a certificate that is refused.
            ConnectError::Io(error) => error.kind() != io::ErrorKind::InvalidData,
            ConnectError::Timeout(_) | ConnectError::Closed => true,
            // Starting up, shutting down, in recovery; killed; crash of another backend.
            ConnectError::Refused(_) => {
                matches!(self.sqlstate(), Some(b"57P03" | b"57P01" | b"57P02"))
            }
            _ => false,
        }
    }

    /// The server refuses this login, or this role's question, and serves others for all that is known: it has no
    /// connection left, or does not know or admit the role, or its database.
    pub fn is_for_who_asks(&self) -> bool {
        match self {
            ConnectError::Refused(_) => match self.sqlstate() {
                Some(b"53300" | b"3D000" | b"42501" | b"55000") => true,
                sqlstate => sqlstate.is_some_and(|sqlstate| sqlstate.starts_with(b"28")),
            },
            ConnectError::Auth(error) => {
                matches!(
                    error,
                    AuthError::MissingPassword(_)
                        | AuthError::Unsupported(_)
                        | AuthError::Mechanisms(_)
                )
            }
            _ => false,
        }
    }

    /// The node has as many connections as it may have: in all, or of this role or database.
    pub fn is_full(&self) -> bool {
        self.sqlstate() == Some(b"53300")
    }

    /// Which of the server's own functions has refused it, whatever language its message is in.
    pub fn routine(&self) -> Option<&[u8]> {
        match self {
            ConnectError::Refused(error) => error_field(error, b'R'),
            _ => None,
        }
    }

    /// The primary may answer otherwise than this replica, which may not have replayed yet that the
    /// database or the role was made, or changed.
    pub fn is_for_primary_to_say(&self) -> bool {
        matches!(self, ConnectError::Refused(_) | ConnectError::Auth(_))
    }

    /// Whether the same might succeed with TLS instead of without, or the other way round: TLS
    /// itself failed, or the server's rules for hosts refuse the login.
    fn may_be_for_encryption(&self) -> bool {
        match self {
            ConnectError::Tls(_) => true,
            ConnectError::Io(error) => error.kind() == io::ErrorKind::InvalidData,
            ConnectError::Refused(_) => self.sqlstate() == Some(b"28000"),
            _ => false,
        }
    }
}

/// Connects and logs in, within `limit`.
///
/// # Errors
/// Whatever keeps the login from succeeding; nothing is retried.
pub async fn connect(target: &Target<'_>, limit: Duration) -> Result<Connection, ConnectError> {
    let parameters = [
        ("application_name", target.application_name),
        ("database", target.database),
    ];
    // None at all leaves it to the role's own default, which an empty one would hide.
    let unnamed = usize::from(target.application_name.is_empty());
    connect_with(target, parameters.get(unnamed..).unwrap_or(&[]), limit).await
}

/// As [`connect`], with these start-up parameters beside the user's name, and no others.
///
/// # Errors
/// As [`connect`].
pub async fn connect_with(
    target: &Target<'_>,
    parameters: &[(&str, &str)],
    limit: Duration,
) -> Result<Connection, ConnectError> {
    match tokio::time::timeout(limit, log_in(target, parameters)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout(limit)),
    }
}

/// By libpq's rules for each `sslmode`. The error of the first attempt tells more than that of a
/// second one.
async fn log_in(
    target: &Target<'_>,
    parameters: &[(&str, &str)],
) -> Result<Connection, ConnectError> {
    let hello = [&[("user", target.user)], parameters].concat();
    let hello = startup::encode(&hello);
    let first = log_in_over(target, &hello, target.tls.mode > SslMode::Allow).await;
    let second = match target.tls.mode {
        SslMode::Allow => true,
        SslMode::Prefer => false,
        _ => return first,
    };
    match first {
        Err(error) if error.may_be_for_encryption() && !target.host.starts_with('/') => {
            let other = log_in_over(target, &hello, second).await;
            other.map_err(|_| error)
        }
        first => first,
    }
}

/// A stream to the server, encrypted if it is to be and is reached over TCP.
async fn open(
    host: &str,
    port: u16,
    tls: &NodeSide,
    encrypt: bool,
) -> Result<Stream, ConnectError> {
    let mut stream = Stream::connect(host, port).await?;
    if !encrypt || !matches!(stream, Stream::Tcp(_)) {
        return Ok(stream);
    }
    stream.write_all(&startup::SSL_REQUEST_PACKET).await?;
    let mut answer = BytesMut::with_capacity(16);
    if stream.read(&mut answer).await? == 0 {
        return Err(ConnectError::Closed);
    }
    match (&answer[..], stream) {
        (b"S", Stream::Tcp(socket)) => {
            let mut encrypted = tls.connect(socket, host).map_err(ConnectError::Tls)?;
            let shaken = encrypted.shake_hands().await;
            shaken.map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => ConnectError::Tls(error),
                // The connection was lost, whatever was said on it.
                _ => ConnectError::Io(error),
            })?;
            Ok(Stream::Tls(Box::new(encrypted)))
        }
        (b"N", stream) if tls.mode == SslMode::Prefer => Ok(stream),
        (b"N", _) => Err(ConnectError::NoTls),
        ([b'S' | b'N', ..], _) => Err(ConnectError::EarlyData),
        // Of an unencrypted error nobody knows who has written it.
        ([tag, ..], _) => Err(ConnectError::Unexpected((*tag).into())),
        ([], _) => Err(ConnectError::Closed),
    }
}

async fn log_in_over(
    target: &Target<'_>,
    hello: &[u8],
    encrypt: bool,
) -> Result<Connection, ConnectError> {
    let mut stream = open(target.host, target.port, &target.tls, encrypt).await?;
    stream.write_all(hello).await?;
    let mut buf = BytesMut::new();
    let certificate = stream.tls().and_then(|tls| tls.peer_certificate());
    let end_point = certificate.and_then(|der| Certificate::parse(der).ok()?.end_point());
    let mut auth = ServerAuth::new(target.user, target.credential.clone(), rand::random())
        .with_end_point(end_point);
    let mut params = Vec::new();
    let mut key = (0, Vec::new());
    let mut is_logged_in = false;
    loop {
        let frame = next(&mut stream, &mut buf).await?;
        let body = body(&frame);
        match frame[0] {
            b'R' => {
                let (code, rest) = body.split_first_chunk::<4>().ok_or(WireError::Truncated)?;
                match auth.on_request(i32::from_be_bytes(*code), rest)? {
                    Reply::Send(payload) => {
                        let mut out = BytesMut::new();
                        encode::password(&mut out, &payload);
                        stream.write_all(&out).await?;
                    }
                    Reply::Nothing => {}
                    Reply::Done => is_logged_in = true,
                }
            }
            b'N' => {}
            b'E' => return Err(ConnectError::Refused(body.to_vec())),
            // A server that skips the login has not proved who it is.
            tag if !is_logged_in => return Err(ConnectError::Unexpected(tag.into())),
            b'S' => {
                let (name, value) = message::parameter_status(body)?;
                params.push((name.into(), value.into()));
            }
            b'K' => {
                let (pid, secret) = message::key_data(body)?;
                key = (pid, secret.to_vec());
            }
            b'Z' => break,
            tag => return Err(ConnectError::Unexpected(tag.into())),
        }
    }
    Ok(Connection {
        stream,
        params: Params::new(params),
        pid: key.0,
        secret: key.1,
        buf,
        out: BytesMut::new(),
    })
}

impl Connection {
    /// What the server has said that nobody has read.
    pub fn take_unread(&mut self) -> BytesMut {
        std::mem::take(&mut self.buf)
    }

    /// Waits until the server has said something unasked, or is gone.
    pub async fn unasked(&mut self) {
        // What it was is told by whatever is read next.
        let _ = std::future::poll_fn(|cx| self.stream.poll_readable(cx)).await;
    }

    /// Runs one Query and returns its rows, as text.
    ///
    /// # Errors
    /// A lost connection, or the server's error; after either the connection is of no use.
    pub async fn query(&mut self, sql: &str) -> Result<Rows, ConnectError> {
        self.query_up_to(sql, usize::MAX).await
    }

    /// The same, of rows that have no more than so many bytes together.
    ///
    /// # Errors
    /// As [`query`](Self::query), and when there is more.
    pub async fn query_up_to(&mut self, sql: &str, bytes_max: usize) -> Result<Rows, ConnectError> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let asked = self.query_with(sql, |row| {
            // As sent: what is NULL or empty takes room as well.
            let len = |value: &Option<&[u8]>| 4 + value.map_or(0, <[u8]>::len);
            bytes += 2 + row.iter().map(len).sum::<usize>();
            if bytes > bytes_max {
                return Err(ConnectError::TooMuch(bytes_max));
            }
            rows.push(texts(row));
            Ok(())
        });
        asked.await?;
        Ok(rows)
    }

    /// The same, with each row handed over as it comes: what asks often can do so without taking memory.
    ///
    /// # Errors
    /// As [`query`](Self::query), and those of `each`.
    pub async fn query_with(
        &mut self,
        sql: &str,
        mut each: impl FnMut(Row<'_>) -> Result<(), ConnectError>,
    ) -> Result<(), ConnectError> {
        self.out.clear();
        encode::query(&mut self.out, sql.as_bytes());
        self.stream.write_all(&self.out).await?;
        let mut error = None;
        loop {
            let frame = next(&mut self.stream, &mut self.buf).await?;
            let body = body(&frame);
            match frame[0] {
                b'D' => each(message::data_row(body)?)?,
                b'S' => {
                    let (name, value) = message::parameter_status(body)?;
                    self.params.set(name, value);
                }
                b'E' => error = Some(ConnectError::Refused(body.to_vec())),
                b'Z' => return error.map_or(Ok(()), Err),
                b'T' | b'C' | b'N' | b'A' | b'I' => {}
                tag => return Err(ConnectError::Unexpected(tag.into())),
            }
            if let Some(ConnectError::Refused(body)) = &error
                && message::is_fatal(body)
            {
                return Err(ConnectError::Refused(body.clone()));
            }
        }
    }
}

/// Rows as text, `None` for NULL.
pub type Rows = Vec<Vec<Option<String>>>;

fn texts(row: Row<'_>) -> Vec<Option<String>> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    row.into_iter().map(|value| value.map(text)).collect()
}

impl Connection {
    /// Runs `sql` once for each of `values`, which is its `$1`, all in one go and each in a
    /// transaction of its own. Gives up to `rows_max` rows for each, or the server's error.
    ///
    /// # Errors
    /// A lost connection, or one that keeps silent for longer than `limit`; it is of no more use.
    pub async fn query_each<'a>(
        &mut self,
        sql: &str,
        values: impl Iterator<Item = &'a str> + Clone,
        rows_max: i32,
        limit: Duration,
    ) -> Result<Vec<Result<Rows, ConnectError>>, ConnectError> {
        let mut out = BytesMut::new();
        for value in values.clone() {
            encode::parse(&mut out, b"", sql.as_bytes(), &[0, 0]);
            encode::bind_and_execute(&mut out, value.as_bytes(), rows_max);
            out.extend_from_slice(encode::SYNC);
        }
        self.stream.write_all(&out).await?;
        let mut answers = Vec::new();
        for _ in values {
            match tokio::time::timeout(limit, self.answer()).await {
                Ok(answer) => answers.push(answer?),
                Err(_) => return Err(ConnectError::Timeout(limit)),
            }
        }
        Ok(answers)
    }

    /// One answer, up to ReadyForQuery: its rows, or its error.
    async fn answer(&mut self) -> Result<Result<Rows, ConnectError>, ConnectError> {
        let mut answer = Ok(Rows::new());
        loop {
            let frame = next(&mut self.stream, &mut self.buf).await?;
            let body = body(&frame);
            match (frame[0], &mut answer) {
                (b'D', Ok(rows)) => rows.push(texts(message::data_row(body)?)),
                (b'E', _) => {
                    let error = ConnectError::Refused(body.to_vec());
                    if message::is_fatal(body) {
                        return Err(error);
                    }
                    answer = Err(error);
                }
                (b'Z', _) => return Ok(answer),
                (b'1' | b'2' | b'C' | b's' | b'I' | b'N' | b'A' | b'S', _) => {}
                (tag, _) => return Err(ConnectError::Unexpected(tag.into())),
            }
        }
    }
}

/// The next whole message.
async fn next(stream: &mut Stream, buf: &mut BytesMut) -> Result<BytesMut, ConnectError> {
    loop {
        if let Some(Header { tag, len }) = header(buf)? {
            if len > SERVER_CONTROL_BYTES_MAX {
                let max = SERVER_CONTROL_BYTES_MAX;
                return Err(WireError::TooLong {
                    tag: tag.into(),
                    len,
                    max,
                }
                .into());
            }
            if buf.remaining() >= len {
                return Ok(buf.split_to(len));
            }
        }
        // With room to spare, so that one read tells that there is no more.
        buf.reserve(READ_BYTES);
        if stream.read(buf).await? == 0 {
            return Err(ConnectError::Closed);
        }
    }
}

/// The room that there is for a read, in bytes: answers to the proxy's own questions are short.
const READ_BYTES: usize = 1024;

/// Asks the node to cancel what the server process `pid` is doing, and waits until it has read the
/// request. It goes as encrypted as a login would.
///
/// # Errors
/// When the request could not be delivered within the `limit`. Whether it is on its way by then is `sent`.
pub async fn cancel(
    node: &Node,
    pid: i32,
    secret: &[u8],
    limit: Duration,
    sent: &mut bool,
) -> Result<(), ConnectError> {
    let deliver = async {
        let (tls, host, port) = (node.tls.load_full(), &node.host, node.port);
        let opened = open(host, port, &tls, tls.mode > SslMode::Allow).await;
        let mut stream = match opened {
            Err(ConnectError::Tls(_)) if tls.mode == SslMode::Prefer => {
                open(host, port, &tls, false).await?
            }
            opened => opened?,
        };
        *sent = true;
        stream
            .write_all(&startup::encode_cancel(pid, secret))
            .await?;
        // The server closes the connection once it has signalled the process.
        let mut rest = BytesMut::new();
        while stream.read(&mut rest).await? > 0 {
            rest.clear();
        }
        Ok(())
    };
    match tokio::time::timeout(limit, deliver).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout(limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a login at a server that says this, whatever it hears.
    async fn log_in_at(says: Vec<u8>) -> Result<(), ConnectError> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = async {
            let (socket, _) = listener.accept().await.unwrap();
            let mut stream = Stream::tcp(socket).unwrap();
            stream
                .read(&mut BytesMut::with_capacity(1024))
                .await
                .unwrap();
            stream.write_all(&says).await.unwrap();
            stream
        };
        let target = Target {
            host: "127.0.0.1",
            port,
            tls: Arc::default(),
            database: "app",
            user: "app",
            credential: None,
            application_name: "",
        };
        let (answer, _stream) = tokio::join!(connect(&target, Duration::from_secs(60)), server);
        answer.map(drop)
    }

    #[test]
    fn a_server_must_end_the_login_before_it_is_ready() {
        const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
        const STATUS: &[u8] = b"S\0\0\0\x08a\0b\0";
        const READY: &[u8] = b"Z\0\0\0\x05I";
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            assert!(log_in_at([OK, STATUS, READY].concat()).await.is_ok());
            for (says, tag) in [([STATUS, READY].concat(), 'S'), (READY.to_vec(), 'Z')] {
                match log_in_at(says).await {
                    Err(ConnectError::Unexpected(seen)) => assert_eq!(seen, tag),
                    other => panic!("{other:?}"),
                }
            }
        });
    }
}
