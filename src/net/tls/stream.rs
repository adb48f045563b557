//! Owns: one TLS connection over a TCP socket, as a byte stream that is polled. Never: keeps more
//! than one read's worth of what the peer sends, or one write's worth of what it has not taken.

use std::io::{self, BufRead, IoSlice, Write};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use rustls::Connection;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

use crate::net::buffers::{self, BUFFER_BYTES};

/// An encrypted stream.
#[derive(Debug)]
pub struct Tls {
    /// `None` if it was lost on its way to another runtime.
    socket: Option<TcpStream>,
    connection: Connection,
    /// What has come and is not decrypted. rustls alone would read a large record in many small
    /// steps, each with a system call.
    raw: BytesMut,
}

impl Tls {
    /// A connection whose handshake has still to be done. `raw` is what the peer has sent already.
    pub fn new(socket: TcpStream, connection: Connection, raw: BytesMut) -> Tls {
        Tls {
            socket: Some(socket),
            connection,
            raw,
        }
    }

    /// Goes through the handshake.
    ///
    /// # Errors
    /// What the operating system says, or why the peers do not agree. The peer has been told, then.
    pub async fn shake_hands(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_handshake(cx)).await
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_flush(cx))?;
            if !self.connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if !ready!(self.poll_take(cx))? {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    pub fn socket(&self) -> Option<&TcpStream> {
        self.socket.as_ref()
    }

    /// Whether both ends have said that they speak PostgreSQL's protocol (ALPN).
    pub fn has_agreed_on_protocol(&self) -> bool {
        self.connection.alpn_protocol() == Some(super::ALPN)
    }

    /// What the peer has shown of itself and has been found good; `None` if it has shown nothing.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.connection.peer_certificates()?.first()
    }

    /// The version and the cipher, for the log: `TLSv1_3 TLS13_AES_256_GCM_SHA384`.
    pub fn parameters(&self) -> String {
        let version = self.connection.protocol_version();
        let cipher = self.connection.negotiated_cipher_suite();
        let version = version.map_or_else(String::new, |version| format!("{version:?}"));
        let cipher = cipher.map_or_else(String::new, |cipher| format!("{:?}", cipher.suite()));
        format!("{version} {cipher}")
    }

    /// Ready when something can be read without waiting, the end included.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_decrypted(cx).map_ok(|_| ())
    }

    /// Reads what there is into `buf`'s free room. 0 is the end of the stream: a peer that just
    /// closes its socket says no more than one that says goodbye first, since messages tell their
    /// own lengths.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        if !ready!(self.poll_decrypted(cx))? {
            return Poll::Ready(Ok(0));
        }
        if buf.capacity() == buf.len() {
            buf.reserve(BUFFER_BYTES);
        }
        let before = buf.len();
        loop {
            let room = buf.capacity() - buf.len();
            let mut reader = self.connection.reader();
            let chunk = match reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(_) if self.raw.is_empty() => break,
                Err(_) => {
                    self.decrypt()?;
                    continue;
                }
            };
            let taken = chunk.len().min(room);
            if taken == 0 {
                break;
            }
            buf.extend_from_slice(chunk.get(..taken).unwrap_or(&[]));
            reader.consume(taken);
        }
        Poll::Ready(Ok(buf.len() - before))
    }

    /// Takes `bytes` to be sent, if what was taken before has been. Flush after the last of them.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        let n = self.connection.writer().write(bytes)?;
        match self.poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(n)),
        }
    }

    /// Ready when the socket has taken everything.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.connection.wants_write() {
            return Poll::Ready(Ok(()));
        }
        let socket = self.socket.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        while self.connection.wants_write() {
            let socket = Pin::new(&mut *socket);
            match self.connection.write_tls(&mut Sink { socket, cx }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether something was taken that the socket has not.
    pub fn has_unsent(&self) -> bool {
        self.connection.wants_write()
    }

    /// Moves the socket to the current thread's runtime.
    ///
    /// # Errors
    /// What the operating system says; the connection is of no use then.
    pub fn move_here(&mut self) -> io::Result<()> {
        let socket = self.socket.take().ok_or(io::ErrorKind::NotConnected)?;
        self.socket = Some(TcpStream::from_std(socket.into_std()?)?);
        Ok(())
    }

    /// Ready with whether something is decrypted and not read; `false` at the end.
    fn poll_decrypted(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            match self.connection.reader().fill_buf() {
                Ok(chunk) => return Poll::Ready(Ok(!chunk.is_empty())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Poll::Ready(Ok(false));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
            if !ready!(self.poll_take(cx))? {
                return Poll::Ready(Ok(false));
            }
        }
    }

    /// Takes in what the peer has sent; `false` at the end. An idle connection waits here, without
    /// a buffer.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.raw.is_empty() {
            let socket = self.socket.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            ready!(socket.poll_read_ready(cx))?;
            if self.raw.capacity() == 0 {
                self.raw = buffers::take();
            }
            let read = pin!(socket.read_buf(&mut self.raw)).poll(cx);
            if !matches!(read, Poll::Ready(Ok(n)) if n > 0) {
                buffers::give_back(&mut self.raw);
                return read.map_ok(|_| false);
            }
        }
        Poll::Ready(self.decrypt())
    }

    /// Decrypts some of what has been taken in; `false` at the end.
    fn decrypt(&mut self) -> io::Result<bool> {
        let n = self.connection.read_tls(&mut self.raw.as_ref())?;
        self.raw.advance(n);
        if let Err(error) = self.connection.process_new_packets() {
            // The peer learns why.
            let _ = self.poll_flush(&mut Context::from_waker(Waker::noop()));
            return Err(io::Error::new(io::ErrorKind::InvalidData, describe(&error)));
        }
        if self.raw.is_empty() || n == 0 {
            buffers::give_back(&mut self.raw);
        }
        Ok(n > 0)
    }
}

impl Drop for Tls {
    /// Says goodbye, as far as the socket takes it at once.
    fn drop(&mut self) {
        if !self.connection.is_handshaking() {
            self.connection.send_close_notify();
            let _ = self.poll_flush(&mut Context::from_waker(Waker::noop()));
        }
        buffers::give_back(&mut self.raw);
    }
}

/// What went wrong, in words for a person.
fn describe(error: &rustls::Error) -> String {
    use rustls::{CertificateError, Error, OtherError};
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(error))) => error.to_string(),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "certificate is of an authority that is not trusted here".to_owned()
        }
        error => error.to_string(),
    }
}

/// The socket, as rustls writes to it.
struct Sink<'a, 'b> {
    socket: Pin<&'a mut TcpStream>,
    cx: &'a mut Context<'b>,
}

impl Write for Sink<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        or_would_block(self.socket.as_mut().poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(self.socket.as_mut().poll_write_vectored(self.cx, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn or_would_block(written: Poll<io::Result<usize>>) -> io::Result<usize> {
    match written {
        Poll::Ready(written) => written,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}
