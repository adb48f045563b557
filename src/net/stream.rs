//! Owns: one byte stream, to a client or to a server. Never: waits: every call is a poll.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncReadExt, AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};

use super::reach;
use super::tls::stream::Tls;

sockopt_impl!(
    /// Of how many bytes, at least, a socket tells that they can be read.
    ReceiveMark, Both, libc::SOL_SOCKET, libc::SO_RCVLOWAT, u32
);

#[cfg(all(target_os = "linux", target_env = "gnu"))]
sockopt_impl!(
    /// What the system knows of a connection.
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    libc::tcp_info
);

/// A byte stream.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Boxed: it is large, and the others are not.
    Tls(Box<Tls>),
    /// What is left in the place of a stream that has been moved away.
    Closed,
}

/// The other end, as logs and errors show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Address(SocketAddr),
    /// On this machine, through a Unix socket.
    Local,
    Unknown,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Address(address) => address.fmt(f),
            // As PostgreSQL has it.
            Peer::Local => f.write_str("[local]"),
            Peer::Unknown => f.write_str("[unknown]"),
        }
    }
}

impl Stream {
    /// Takes a connected socket, set up for messages that are small and must not wait.
    ///
    /// # Errors
    /// What the operating system says of the socket.
    pub fn tcp(socket: TcpStream) -> io::Result<Stream> {
        socket.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL);
        socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
        Ok(Stream::Tcp(socket))
    }

    /// Connects to a server: on a host, or through the socket for `port` in a directory, which
    /// begins with a slash.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn connect(host: &str, port: u16) -> io::Result<Stream> {
        if host.starts_with('/') {
            let path = super::unix::path(Path::new(host), port);
            return Ok(Stream::Unix(UnixStream::connect(path).await?));
        }
        let addresses = tokio::net::lookup_host((host, port)).await?;
        Stream::tcp(reach::any(addresses.collect()).await?)
    }

    /// The other end.
    pub fn peer(&self) -> Peer {
        let socket = match self {
            Stream::Tcp(socket) => Some(socket),
            Stream::Tls(tls) => tls.socket(),
            Stream::Unix(_) => return Peer::Local,
            Stream::Closed => None,
        };
        let address = socket.and_then(|socket| socket.peer_addr().ok());
        address.map_or(Peer::Unknown, Peer::Address)
    }

    /// Whether the other end says no more, whatever it has said and is not read: it has gone, most likely. Costs a
    /// system call.
    pub fn is_ended(&self) -> bool {
        match self {
            Stream::Tcp(socket) => is_ended(socket),
            Stream::Unix(socket) => is_ended(socket),
            Stream::Tls(tls) => tls.socket().is_none_or(is_ended),
            Stream::Closed => true,
        }
    }

    /// How often in a row the system has had to send the same again, as the other end's has not acknowledged it: the
    /// network loses it, or that end is gone. One that is there acknowledges also what its program does not read.
    /// Costs a system call; 0 where it can't be told.
    pub fn retransmissions(&self) -> u8 {
        self.unacknowledged().retransmissions
    }

    /// Whether the other end, which has had no room for more, has not said whether it has any by now the last few times that
    /// the system has asked, nor acknowledged anything for so long. One that is there always says so. As above.
    pub fn is_asked_in_vain(&self, times: u8, since: Duration) -> bool {
        let found = self.unacknowledged();
        found.probes >= times && found.last >= since
    }

    fn unacknowledged(&self) -> Unacknowledged {
        match self {
            Stream::Tcp(socket) => unacknowledged(socket),
            Stream::Tls(tls) => tls.socket().map(unacknowledged).unwrap_or_default(),
            Stream::Unix(_) | Stream::Closed => Unacknowledged::default(),
        }
    }

    /// The encrypted stream, if it is one.
    pub fn tls(&self) -> Option<&Tls> {
        match self {
            Stream::Tls(tls) => Some(tls),
            _ => None,
        }
    }

    /// Ready when there is something to read, the end included. Needs no buffer, so an idle
    /// connection can wait without one.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(socket) => socket.poll_read_ready(cx),
            Stream::Tls(tls) => tls.poll_readable(cx),
            Stream::Unix(socket) => socket.poll_read_ready(cx),
            Stream::Closed => Poll::Ready(Ok(())),
        }
    }

    /// Reads into `buf`'s free room. 0 is the end of the stream.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        match self {
            // The future has no state of its own: one for each poll is the same as one kept.
            Stream::Tcp(socket) => pin!(socket.read_buf(buf)).poll(cx),
            Stream::Tls(tls) => tls.poll_read(cx, buf),
            Stream::Unix(socket) => pin!(socket.read_buf(buf)).poll(cx),
            Stream::Closed => Poll::Ready(Ok(0)),
        }
    }

    /// Has whoever waits for this stream woken only when `bytes` of it have come, or its end. When less
    /// is asked for than has come already, as with 1, that is told at once. Reads give what there is.
    ///
    /// # Errors
    /// What the operating system says; and of a Unix socket, and where the system is not Linux, that
    /// it can't be had.
    pub fn set_receive_mark(&self, bytes: u32) -> io::Result<()> {
        let socket = match self {
            Stream::Tcp(socket) => Some(socket),
            Stream::Tls(tls) => tls.socket(),
            Stream::Unix(_) | Stream::Closed => None,
        };
        match socket {
            // Others may not look at what has come when the mark is set.
            Some(socket) if cfg!(target_os = "linux") => {
                Ok(nix::sys::socket::setsockopt(socket, ReceiveMark, &bytes)?)
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    #[cfg(test)]
    pub fn receive_mark(&self) -> u32 {
        let Stream::Tcp(socket) = self else {
            panic!("not a TCP socket");
        };
        nix::sys::socket::getsockopt(socket, ReceiveMark).expect("a mark")
    }

    /// Takes some of `bytes` to be sent. What an encrypted stream has taken is not on its way until
    /// the stream has been flushed.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // A socket that has room takes it at once; only one that has none is waited for.
        match self {
            Stream::Tcp(socket) => match send(socket, bytes) {
                Some(written) => Poll::Ready(written),
                None => Pin::new(socket).poll_write(cx, bytes),
            },
            Stream::Unix(socket) => match send(socket, bytes) {
                Some(written) => Poll::Ready(written),
                None => Pin::new(socket).poll_write(cx, bytes),
            },
            Stream::Tls(tls) => tls.poll_write(cx, bytes),
            Stream::Closed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Whether [`receive_now`](Self::receive_now) and [`send_now`](Self::send_now) are all there is to
    /// it.
    pub fn is_plain(&self) -> bool {
        matches!(self, Stream::Tcp(_) | Stream::Unix(_))
    }

    /// Of a plain stream: reads what has come already, `None` when nothing has. 0 is the end of the
    /// stream. Whoever is to be woken when more comes has to ask [`poll_readable`](Self::poll_readable)
    /// then.
    #[inline]
    pub fn receive_now(&mut self, into: &mut [u8]) -> Option<io::Result<usize>> {
        match self {
            Stream::Tcp(socket) => receive(socket, into),
            Stream::Unix(socket) => receive(socket, into),
            Stream::Tls(_) | Stream::Closed => Some(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    /// Of a plain stream: sends what the socket takes at once; `None` when it takes nothing.
    #[inline]
    pub fn send_now(&mut self, bytes: &[u8]) -> Option<io::Result<usize>> {
        match self {
            Stream::Tcp(socket) => send(socket, bytes),
            Stream::Unix(socket) => send(socket, bytes),
            Stream::Tls(_) | Stream::Closed => Some(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    /// Ready when the socket has taken all that was written. Without encryption it always has.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tls(tls) => tls.poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Whether something was written that the socket has not taken.
    pub fn has_unsent(&self) -> bool {
        match self {
            Stream::Tls(tls) => tls.has_unsent(),
            _ => false,
        }
    }

    /// Writes all of `bytes`, and flushes.
    ///
    /// # Errors
    /// What the operating system says; how much was written is not known then.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = std::future::poll_fn(|cx| self.poll_write(cx, bytes)).await?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = bytes.get(n..).unwrap_or(&[]);
        }
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Reads some bytes into `buf`. 0 is the end of the stream.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn read(&mut self, buf: &mut BytesMut) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_read(cx, buf)).await
    }

    /// Reads what has come already, without waiting: `None` when nothing has. Costs no system call
    /// while the operating system has not said that something came.
    pub fn read_now(&mut self, buf: &mut BytesMut) -> Option<io::Result<usize>> {
        match self {
            Stream::Tcp(socket) => unless_blocked(socket.try_read_buf(buf)),
            Stream::Unix(socket) => unless_blocked(socket.try_read_buf(buf)),
            Stream::Tls(_) | Stream::Closed => self.read_now_by_poll(buf),
        }
    }

    fn read_now_by_poll(&mut self, buf: &mut BytesMut) -> Option<io::Result<usize>> {
        let mut cx = Context::from_waker(Waker::noop());
        match self.poll_readable(&mut cx) {
            Poll::Pending => None,
            Poll::Ready(Err(error)) => Some(Err(error)),
            Poll::Ready(Ok(())) => match self.poll_read(&mut cx, buf) {
                Poll::Pending => None,
                Poll::Ready(read) => Some(read),
            },
        }
    }

    /// Writes what the socket takes at once and forgets the rest: for a last word.
    pub fn write_now(&mut self, bytes: &[u8]) {
        let _ = self.poll_write(&mut Context::from_waker(Waker::noop()), bytes);
    }

    /// Moves the socket to the current thread's runtime.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn moved_here(self) -> io::Result<Stream> {
        match self {
            Stream::Tcp(socket) => Ok(Stream::Tcp(TcpStream::from_std(socket.into_std()?)?)),
            Stream::Tls(mut tls) => {
                tls.move_here()?;
                Ok(Stream::Tls(tls))
            }
            Stream::Unix(socket) => Ok(Stream::Unix(UnixStream::from_std(socket.into_std()?)?)),
            Stream::Closed => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// What the two kinds of plain sockets have in common.
trait Socket: AsFd {
    /// tokio's own: does something with the socket if that is believed to be ready, and believes it no
    /// more when told that it would have had to wait.
    fn attempt(
        &self,
        interest: Interest,
        attempt: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()>;
}

impl Socket for TcpStream {
    #[inline]
    fn attempt(&self, interest: Interest, f: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.try_io(interest, f)
    }
}

impl Socket for UnixStream {
    #[inline]
    fn attempt(&self, interest: Interest, f: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.try_io(interest, f)
    }
}

fn is_ended(socket: &impl AsFd) -> bool {
    let mut looked_at = [PollFd::new(socket, PollFlags::RDHUP)];
    let at_once = Timespec::default();
    rustix::event::poll(&mut looked_at, Some(&at_once)).is_ok_and(|ended| ended > 0)
}

/// What the system waits for from the other end.
#[derive(Default)]
struct Unacknowledged {
    retransmissions: u8,
    probes: u8,
    /// Since the last word.
    last: Duration,
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn unacknowledged(socket: &TcpStream) -> Unacknowledged {
    let info = nix::sys::socket::getsockopt(socket, TcpInfo);
    info.map_or_else(
        |_| Unacknowledged::default(),
        |info| Unacknowledged {
            retransmissions: info.tcpi_retransmits,
            probes: info.tcpi_probes,
            last: Duration::from_millis(info.tcpi_last_ack_recv.into()),
        },
    )
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn unacknowledged(_: &TcpStream) -> Unacknowledged {
    Unacknowledged::default()
}

/// Reads what has come already. By rustix, whose system calls are no points where glibc lets a thread
/// be cancelled, as libc's are at a noticeable cost.
#[inline]
fn receive(socket: &impl Socket, into: &mut [u8]) -> Option<io::Result<usize>> {
    let mut came = None;
    let _ = socket.attempt(Interest::READABLE, || {
        came = unless_blocked(loop {
            match rustix::net::recv(socket, &mut *into, RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => break Err(error.into()),
                Ok((n, _)) => break Ok(n),
            }
        });
        match came {
            // Less than there was room for is all there is: nobody need ask again to find that out.
            Some(Ok(n)) if n == 0 || n == into.len() => Ok(()),
            Some(Err(_)) => Ok(()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    });
    came
}

/// Sends what the socket takes at once.
#[inline]
fn send(socket: &impl Socket, bytes: &[u8]) -> Option<io::Result<usize>> {
    let mut sent = None;
    let _ = socket.attempt(Interest::WRITABLE, || {
        sent = unless_blocked(loop {
            match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
                sent => break sent.map_err(io::Error::from),
            }
        });
        match sent {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    });
    sent
}

/// What came of trying, or `None` if that has to wait.
fn unless_blocked(tried: io::Result<usize>) -> Option<io::Result<usize>> {
    match tried {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        tried => Some(tried),
    }
}

/// A peer that has vanished without a word is noticed after this and nine intervals, if it owes nothing.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn who_does_not_read_acknowledges_all_the_same() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let mut stream = Stream::connect("127.0.0.1", port).await.expect("connected");
        let _peer = listener.accept().await.expect("accepted");
        while let Some(sent) = stream.send_now(&[0; 1 << 16]) {
            sent.expect("sent");
        }
        // Longer than the system waits before it sends something again.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(stream.retransmissions(), 0);
    }
}
