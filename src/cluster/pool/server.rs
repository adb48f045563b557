//! Owns: one connection to a server of a pool: whether it can be lent, and what becomes of what its last session has left
//! on it. Never: chooses whom it is lent to.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};

use super::{Place, Pool};
use crate::cluster::connect::{ConnectError, Connection};
use crate::cluster::keys::{CancelKey, Listed};
use crate::cluster::node::Node;
use crate::net;
use crate::net::stream::Stream;
use crate::session::answers::hear_idle;
use crate::session::consistency::{Incarnation, Replica, Tick};
use crate::session::server::ServerState;
use crate::wire::encode;
use crate::wire::frame::{Header, body, header};
use crate::wire::message::{self, Status};

/// Statements kept prepared on one server; the least recently used go first.
const STATEMENTS_MAX: NonZeroUsize = NonZeroUsize::new(500).unwrap();

/// The most that a server says at a time while nobody has asked it anything, in bytes: settings that a reload has
/// changed.
const SAID_IDLE_MAX: usize = 16 << 10;

/// One connection to a server, lent to a session or idle in its pool.
pub struct Server {
    pub stream: Stream,
    pub state: ServerState,
    /// The life of the node's server that it is connected to.
    pub incarnation: Incarnation,
    /// When it was last lent, on the clock of its node's positions.
    pub lent_at: Tick,
    /// The beginning of a message that has not wholly come yet.
    pub unread: BytesMut,
    /// Where its cancel key is found.
    pub listed: Listed,
    /// A cancel request for its last session may still come, and would meet the next one's statement.
    pub may_be_cancelled: bool,
    pub(super) place: Place,
    /// Whose runtime it is on.
    pub(super) worker: usize,
    /// The one of its pool in which it was opened.
    pub(super) generation: u64,
    /// When its age is counted from: see [`aged_from`].
    pub(super) aged_from: Instant,
    pub(super) idle_since: Instant,
    lent: bool,
}

impl Server {
    pub(super) fn new(connection: Connection, incarnation: Incarnation, place: Place) -> Server {
        let now = Instant::now();
        let mut state = ServerState::new(connection.params, STATEMENTS_MAX);
        state.pid = connection.pid;
        Server {
            stream: connection.stream,
            state,
            incarnation,
            lent_at: place.pool.node.clock().now(),
            unread: BytesMut::new(),
            listed: Listed::new(CancelKey {
                node: place.pool.node.clone(),
                pid: connection.pid,
                secret: connection.secret,
            }),
            may_be_cancelled: false,
            place,
            worker: net::worker(),
            generation: 0,
            aged_from: now,
            idle_since: now,
            lent: true,
        }
    }

    pub fn node(&self) -> &Arc<Node> {
        &self.place.pool.node
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.place.pool
    }

    /// Lends it if it is [good](Self::checked).
    pub(super) fn lend(self: Box<Self>) -> Option<Box<Server>> {
        let mut server = self.checked()?;
        server.lent = true;
        server.node().begin_use();
        Some(server)
    }

    /// Whether it can be used: alive, quiet, and on this thread's runtime. It is dropped otherwise.
    pub fn checked(mut self: Box<Self>) -> Option<Box<Server>> {
        self.lent_at = self.node().clock().now();
        // Before it is moved: a runtime that it is new to has not heard yet what has come.
        if !self.is_alive() {
            return None;
        }
        match net::worker() == self.worker {
            true => Some(self),
            false => self.moved_here(),
        }
    }

    /// Whether it has not said goodbye, as far as is known without asking.
    pub(super) fn is_alive(&mut self) -> bool {
        let mut said = BytesMut::new();
        let mut ends = false;
        while !ends && let Some(read) = self.stream.read_now(&mut said) {
            ends = said.len() > SAID_IDLE_MAX || !read.is_ok_and(|n| n > 0);
        }
        let is_alive = !ends && hear_idle(&mut self.state, &said);
        if !is_alive {
            // So probably have its siblings.
            self.node().wake.notify_one();
        }
        is_alive
    }

    fn moved_here(self: Box<Self>) -> Option<Box<Server>> {
        // Taken apart and put together again: a socket can only be moved by value.
        let mut server = self;
        let stream = std::mem::replace(&mut server.stream, Stream::Closed);
        server.stream = stream.moved_here().ok()?;
        server.worker = net::worker();
        Some(server)
    }

    /// Gives the server back. Nothing may be owed on it and no transaction open.
    pub fn give_back(self: Box<Self>) {
        let pool = self.place.pool.clone();
        pool.take_back(self, Instant::now());
    }

    /// Runs `sql` with no client looking on.
    ///
    /// # Errors
    /// When the server is of no more use: it is lost, or could not do what it was asked.
    pub async fn run(&mut self, sql: &[u8]) -> Result<(), ConnectError> {
        let mut out = BytesMut::new();
        encode::query(&mut out, sql);
        self.state.drop_unnamed();
        self.stream.write_all(&out).await?;
        let mut buf = BytesMut::new();
        loop {
            while let Some(Header { tag, len }) = header(&buf)?
                && buf.len() >= len
            {
                let frame = buf.split_to(len);
                match (tag, body(&frame)) {
                    (b'Z', status) => {
                        self.state.status = message::ready(status)?;
                        return Ok(());
                    }
                    (b'S', status) => {
                        let (name, value) = message::parameter_status(status)?;
                        self.state.params.set(name, value);
                    }
                    (b'E', error) => return Err(ConnectError::Refused(error.to_vec())),
                    _ => {}
                }
            }
            if self.stream.read(&mut buf).await? == 0 {
                return Err(ConnectError::Closed);
            }
            debug_assert!(buf.has_remaining());
        }
    }

    /// Makes the server as good as new, whatever its last session has left on it, and gives it
    /// back; closes it if that fails.
    pub async fn clean(mut self: Box<Self>, limit: Duration, discard: bool) {
        let clean = async {
            if self.state.status != Status::Idle {
                self.run(b"ROLLBACK").await?;
            }
            if discard {
                self.run(b"DISCARD ALL").await?;
                self.state.reset();
                // The one thing that it leaves, and that can be cleared.
                let seed = rand::random::<f64>();
                let seed = format!("SELECT pg_catalog.setseed({seed})");
                self.run(seed.as_bytes()).await?;
            }
            Ok::<(), ConnectError>(())
        };
        match tokio::time::timeout(limit, clean).await {
            Ok(Ok(())) => self.give_back(),
            Ok(Err(error)) => {
                tracing::debug!(node = %self.node().name, %error, "server not reused")
            }
            Err(_) => tracing::debug!(node = %self.node().name, "server not reused: no answer"),
        }
    }

    /// Closes it, and waits until its process has gone: only then has the node room for another one.
    pub(super) async fn close(self: Box<Self>, limit: Duration) {
        let Some(mut server) = self.moved_here() else {
            return;
        };
        let gone = async {
            server.stream.write_all(encode::TERMINATE).await?;
            let mut said = BytesMut::new();
            while server.stream.read(&mut said).await? > 0 {
                said.clear();
            }
            Ok::<(), io::Error>(())
        };
        // It may have gone already; and one that does not go makes no room.
        let _ = tokio::time::timeout(limit, gone).await;
    }

    pub(super) fn end_use(&mut self) {
        if std::mem::take(&mut self.lent) {
            self.node().end_use();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end_use();
        self.stream.write_now(encode::TERMINATE);
    }
}

/// When the age of a server that is opened at `now` is counted from, which may be somewhat before that: it lives for 80 to 100 % of the `lifetime`, by a number
/// from 0 to 1, so that those that were opened together, after a failover say, are not all replaced at once.
pub(super) fn aged_from(now: Instant, lifetime: Duration, random: f64) -> Instant {
    let earlier = lifetime.mul_f64(random.clamp(0.0, 1.0) / 5.0);
    now.checked_sub(earlier).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::thread;

    use tokio::net::UnixStream;
    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::auth::Proven;
    use crate::cluster::pool::PoolKey;
    use crate::config::Config;
    use crate::session::params::Params;

    /// Has this thread be a worker.
    fn work_as(worker: usize) -> Runtime {
        net::set_worker(worker);
        let mut runtime = Builder::new_current_thread();
        runtime.enable_all().build().expect("a runtime")
    }

    fn server(stream: Stream) -> Box<Server> {
        let text = "[[auth.user]]\nname = \"a\"\npassword = \"a\"\n[[cluster]]\nname = \"c\"\n\
            databases = [\"*\"]\n[[cluster.node]]\naddress = \"127.0.0.1:1\"\n";
        let config = Config::parse(text, "test").expect("valid");
        let (tls, pauses) = (Arc::default(), Arc::default());
        let node = &config.clusters[0].nodes[0];
        let node = Arc::new(Node::new("c", node, &config.routing, tls, pauses));
        let key = PoolKey {
            database: "d".into(),
            user: "a".into(),
        };
        let pool = Pool::new(node.clone(), key, Proven::now(None), config.pool);
        pool.lock().open = 1;
        let now = Instant::now();
        Box::new(Server {
            stream,
            state: ServerState::new(Params::new(Vec::new()), STATEMENTS_MAX),
            incarnation: Incarnation(1),
            lent_at: Tick(0),
            unread: BytesMut::new(),
            listed: Listed::new(CancelKey {
                node,
                pid: 1,
                secret: Vec::new(),
            }),
            may_be_cancelled: false,
            place: Place::of(&Arc::new(pool), false),
            worker: net::worker(),
            generation: 0,
            aged_from: now,
            idle_since: now,
            lent: false,
        })
    }

    #[test]
    fn servers_that_are_opened_together_are_not_replaced_together() {
        let (now, lifetime) = (Instant::now(), Duration::from_secs(3600));
        let lives = |random| lifetime - (now - aged_from(now, lifetime, random));
        assert_eq!(lives(0.0), lifetime);
        assert_eq!(lives(0.5), lifetime * 9 / 10);
        assert_eq!(lives(1.0), lifetime * 8 / 10);
        // The longest that can be configured, and more.
        aged_from(now, Duration::from_secs(u64::MAX / 2), 1.0);
    }

    #[test]
    fn a_server_that_has_gone_is_lent_on_no_thread() {
        let runtime = work_as(1);
        let (gone, there, _peer) = runtime.block_on(async {
            let [(peer, gone), (other, there)] =
                [(); 2].map(|()| UnixStream::pair().expect("pair"));
            let [mut gone, there] = [gone, there].map(|stream| server(Stream::Unix(stream)));
            drop(peer);
            let heard = poll_fn(|cx| gone.stream.poll_readable(cx));
            heard.await.expect("the end");
            (gone, there, other)
        });
        let elsewhere = thread::spawn(|| {
            let runtime = work_as(2);
            let _entered = runtime.enter();
            [gone, there].map(|server| server.checked().is_some())
        });
        assert_eq!(elsewhere.join().expect("no panic"), [false, true]);
    }
}
