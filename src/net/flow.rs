//! Owns: how much is read from a peer at a time, and how often: what streams is let gather. Never: keeps
//! anybody waiting for what is little.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, Sleep, sleep};

use super::buffers::{self, BUFFER_BYTES};
use super::stream::Stream;

/// A flow that has brought so many bytes is let gather.
const GATHERS_AFTER_BYTES: u64 = 4 << 20;

/// How many bytes are let gather. PostgreSQL and its clients send 8 kB at a time, and to be woken for each
/// costs more than to pass it on; this much still is in the processor's caches when it is.
const GATHERED_BYTES: u32 = 256 << 10;

/// The longest that they are let gather. What is left at the end of a stream comes later by that, which
/// had taken several times as long to begin with.
const GATHERS_FOR: Duration = Duration::from_millis(1);

/// One direction of an exchange.
#[derive(Debug, Default)]
pub struct Flow {
    /// A read has filled its buffer: there is much to come.
    streams: bool,
    /// Bytes read, since it was last seen to be slow.
    brought: u64,
    gathering: Gathering,
    /// Made when it is first needed, which for most is never.
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Gathering {
    /// Whatever comes is told of.
    #[default]
    No,
    /// Nobody is told of less than a lot; nobody waits for it at the moment.
    Yes,
    /// The timer runs.
    Awaited,
    /// It has run out. Whatever comes is told of, and what has come shows whether there was a point.
    Over,
}

impl Flow {
    /// Reads into `buffer`, which is given room: more of it if this is a stream. 0 is the end.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        let read = self.read(cx, stream, buffer);
        if read.is_pending() {
            if self.streams {
                // It may be long until it goes on.
                buffers::give_back_large(buffer);
            }
            self.gather(cx, stream);
        }
        read
    }

    fn read(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        ready!(stream.poll_readable(cx))?;
        match self.streams {
            true => buffers::widen(buffer),
            false => buffer.reserve(BUFFER_BYTES / 2),
        }
        let room = buffer.capacity() - buffer.len();
        let n = ready!(stream.poll_read(cx, buffer))?;
        self.streams |= n == room;
        self.brought += n as u64;
        self.gathering = match self.gathering {
            Gathering::Over => {
                if n < BUFFER_BYTES {
                    self.brought = 0;
                }
                Gathering::No
            }
            Gathering::Awaited => Gathering::Yes,
            as_it_is => as_it_is,
        };
        Poll::Ready(Ok(n))
    }

    /// Lets it gather, for as long as the timer runs.
    fn gather(&mut self, cx: &mut Context<'_>, stream: &Stream) {
        if self.gathering == Gathering::No
            && self.brought >= GATHERS_AFTER_BYTES
            && stream.set_receive_mark(GATHERED_BYTES).is_ok()
        {
            self.gathering = Gathering::Yes;
            // What gathers fills a buffer, even if what came by itself never has.
            self.streams = true;
        }
        if !self.is_marked() {
            return;
        }
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep(GATHERS_FOR)));
        if self.gathering == Gathering::Yes {
            timer.as_mut().reset(Instant::now() + GATHERS_FOR);
            self.gathering = Gathering::Awaited;
        }
        if timer.as_mut().poll(cx).is_ready() {
            self.stop(stream);
            self.gathering = Gathering::Over;
        }
    }

    /// To be called when the exchange is over: whatever comes next is told of.
    pub fn end(&mut self, stream: &Stream) {
        self.stop(stream);
        self.gathering = Gathering::No;
    }

    /// Whether the socket tells of a lot only.
    fn is_marked(&self) -> bool {
        matches!(self.gathering, Gathering::Yes | Gathering::Awaited)
    }

    /// The operating system tells at once of what has come meanwhile.
    fn stop(&self, stream: &Stream) {
        if self.is_marked()
            && let Err(error) = stream.set_receive_mark(1)
        {
            tracing::error!(%error, peer = %stream.peer(), "a socket's low-water mark stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::future::poll_fn;
    use std::io::Write as _;
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::task::Waker;

    use super::*;

    const LONG: usize = 2 * GATHERS_AFTER_BYTES as usize;

    fn pair() -> (std::net::TcpStream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::TcpStream::from_std(socket).unwrap();
        (peer, Stream::tcp(socket).unwrap())
    }

    fn poll(flow: &mut Flow, stream: &mut Stream) -> Poll<usize> {
        let cx = &mut Context::from_waker(Waker::noop());
        let polled = flow.poll_read(cx, stream, &mut BytesMut::new());
        polled.map(|read| read.unwrap())
    }

    async fn read(flow: &mut Flow, stream: &mut Stream) -> usize {
        let mut buffer = BytesMut::new();
        let read = poll_fn(|cx| flow.poll_read(cx, stream, &mut buffer)).await;
        assert_eq!(read.unwrap(), buffer.len());
        buffer.len()
    }

    /// Has `length` bytes flow, and more is waited for.
    async fn pass(flow: &mut Flow, length: usize, peer: impl AsFd, stream: &mut Stream) {
        let mut peer = File::from(peer.as_fd().try_clone_to_owned().unwrap());
        let writer = std::thread::spawn(move || peer.write_all(&vec![b'x'; length]).unwrap());
        let (mut left, mut buffer) = (length, BytesMut::new());
        while left > 0 {
            let read = poll_fn(|cx| flow.poll_read(cx, stream, &mut buffer)).await;
            left -= read.unwrap();
            buffer.clear();
        }
        writer.join().unwrap();
        assert!(poll(flow, stream).is_pending());
    }

    /// A flow that is let gather. On a slow machine its peer may seem slow at first.
    async fn gathering(peer: &std::net::TcpStream, stream: &mut Stream) -> Flow {
        let mut flow = Flow::default();
        for _ in 0..20 {
            pass(&mut flow, LONG, peer, stream).await;
            if stream.receive_mark() == GATHERED_BYTES {
                return flow;
            }
        }
        panic!("so much and not let gather: {flow:?}");
    }

    #[tokio::test]
    async fn what_is_long_is_let_gather_and_its_rest_comes() {
        let (mut peer, mut stream) = pair();
        let mut flow = gathering(&peer, &mut stream).await;
        peer.write_all(&[b'x'; 100]).unwrap();
        assert_eq!(read(&mut flow, &mut stream).await, 100);
        // It has become slow: there is no point in it until much has come again.
        assert!(poll(&mut flow, &mut stream).is_pending());
        assert_eq!((flow.gathering, flow.brought), (Gathering::No, 0));
        assert_eq!(stream.receive_mark(), 1);
    }

    #[tokio::test]
    async fn an_end_is_told_of() {
        let (peer, mut stream) = pair();
        let mut flow = gathering(&peer, &mut stream).await;
        drop(peer);
        assert_eq!(read(&mut flow, &mut stream).await, 0);
    }

    #[tokio::test]
    async fn after_an_exchange_everything_is_told_of() {
        let (mut peer, mut stream) = pair();
        let mut flow = gathering(&peer, &mut stream).await;
        flow.end(&stream);
        assert_eq!(stream.receive_mark(), 1);
        peer.write_all(b"x").unwrap();
        poll_fn(|cx| stream.poll_readable(cx)).await.unwrap();
    }

    #[tokio::test]
    async fn what_has_come_when_it_is_over_is_told_of() {
        let (mut peer, mut stream) = pair();
        let mut flow = gathering(&peer, &mut stream).await;
        peer.write_all(b"x").unwrap();
        flow.end(&stream);
        poll_fn(|cx| stream.poll_readable(cx)).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_short_is_not_let_gather() {
        let (peer, mut stream) = pair();
        let short = GATHERS_AFTER_BYTES as usize - 1;
        let mut flow = Flow::default();
        pass(&mut flow, short, &peer, &mut stream).await;
        assert_eq!(flow.gathering, Gathering::No);
        assert_eq!(stream.receive_mark(), 1);
    }

    /// As PostgreSQL sends a table that takes longer to be read than to be passed on.
    #[tokio::test]
    async fn what_comes_little_by_little_is_let_gather() {
        let (mut peer, mut stream) = pair();
        let mut flow = Flow::default();
        while stream.receive_mark() == 1 {
            peer.write_all(&[b'x'; BUFFER_BYTES / 4]).unwrap();
            assert!(read(&mut flow, &mut stream).await > 0);
            assert!(poll(&mut flow, &mut stream).is_pending());
            assert!(flow.brought < LONG as u64, "{flow:?}");
        }
        assert_eq!(flow.brought, GATHERS_AFTER_BYTES);
    }

    #[tokio::test]
    async fn what_cannot_be_let_gather_flows_on() {
        let (mut peer, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut stream = Stream::Unix(tokio::net::UnixStream::from_std(socket).unwrap());
        let mut flow = Flow::default();
        pass(&mut flow, LONG, &peer, &mut stream).await;
        assert!(flow.brought >= GATHERS_AFTER_BYTES);
        assert_eq!(flow.gathering, Gathering::No);
        peer.write_all(b"x").unwrap();
        assert_eq!(read(&mut flow, &mut stream).await, 1);
    }
}
