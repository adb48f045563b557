//! Owns: the servers of one node, database and user: lending them to sessions, first come first
//! served. Never: lends a server that something is still owed on.

mod waiters;

use std::hash::BuildHasher;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::sync::oneshot;
use tokio::time::Instant as Deadline;

use self::waiters::Waiters;
use super::connect::{self, ConnectError, Connection, Rows, Target};
use super::keys::{CancelKey, Listed};
use super::node::Node;
use crate::auth::Proven;
use crate::config;
use crate::net;
use crate::net::stream::Stream;
use crate::session::answers::hear_idle;
use crate::session::consistency::{Incarnation, Replica, Tick};
use crate::session::server::ServerState;
use crate::session::settings::Settings;
use crate::sql::Isolation;
use crate::telemetry::{self, PoolGauges};
use crate::wire::encode;
use crate::wire::frame::{Header, body, header};
use crate::wire::message::{self, Status};

/// Statements kept prepared on one server; the least recently used go first.
const STATEMENTS_MAX: NonZeroUsize = NonZeroUsize::new(500).unwrap();

/// No server's number: none is preferred for what a session has done on it.
pub const NO_FAVOURITE: u64 = 0;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    pub database: Box<str>,
    pub user: Box<str>,
}

/// The servers of one node for one database and user.
pub struct Pool {
    node: Arc<Node>,
    key: PoolKey,
    inner: Mutex<Inner>,
}

/// Boxed, as servers move between sessions and here all the time.
#[allow(
    clippy::vec_box,
    reason = "a server is large, and is lent out by its box"
)]
type Idle = Vec<Box<Server>>;

struct Inner {
    /// The last given back is the first lent again: its caches are warm, and the others age out.
    idle: Idle,
    /// Servers that exist or are being opened.
    open: usize,
    waiters: Waiters<Grant>,
    credential: Proven,
    limits: config::Pool,
    closed: bool,
    /// It lends nothing for as long as its node takes nothing new.
    drained: bool,
    /// It lends nothing, and who wants something waits, for as long as its database is paused.
    paused: bool,
    /// Servers of an older generation are closed and not lent again.
    generation: u64,
    /// So are those that were opened before this: the last look found them too old.
    oldest: Instant,
}

/// What a waiter is given.
enum Grant {
    Server(Box<Server>),
    /// The right to open one.
    Place(Place),
    /// Another try: it is not for a server that is waited any more, but for the end of a pause; or the
    /// other way round.
    Turn,
}

/// What a pool holds at one time.
#[derive(Clone, Copy, Debug)]
pub struct Census {
    pub idle: usize,
    /// Servers that are lent, or being opened.
    pub active: usize,
    /// Clients that wait for one.
    pub waiting: usize,
    /// How long the one has waited that has waited longest.
    pub longest_wait: Duration,
    /// The most servers that there may be.
    pub size: usize,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    #[error("no server of node {node} was free within {waited:?}")]
    Timeout { node: String, waited: Duration },
    #[error("cannot connect to node {node}: {error}")]
    Connect { node: String, error: ConnectError },
    #[error("node {node} takes nothing new")]
    Leaving { node: String },
}

impl CheckoutError {
    /// See [`ConnectError::is_for_primary_to_say`].
    pub fn is_for_primary_to_say(&self) -> bool {
        matches!(self, CheckoutError::Connect { error, .. } if error.is_for_primary_to_say())
    }
}

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
    place: Place,
    worker: usize,
    generation: u64,
    opened: Instant,
    idle_since: Instant,
    lent: bool,
}

/// A pool's permission for one server to exist; given up when dropped.
struct Place(Arc<Pool>);

impl Pool {
    pub fn new(node: Arc<Node>, key: PoolKey, credential: Proven, limits: config::Pool) -> Pool {
        let (drained, paused) = (node.is_drained(), node.pauses.has(&key.database));
        let inner = Inner {
            idle: Vec::new(),
            open: 0,
            waiters: Waiters::default(),
            credential,
            limits,
            closed: false,
            drained,
            paused,
            generation: 0,
            oldest: Instant::now(),
        };
        Pool {
            node,
            key,
            inner: Mutex::new(inner),
        }
    }

    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    pub fn key(&self) -> &PoolKey {
        &self.key
    }

    /// What servers are opened with from now on, unless something newer is known: a session that is
    /// older than a change of the password must not bring the old one back.
    pub fn set_credential(&self, credential: &Proven) {
        let mut inner = self.lock();
        if credential.is_newer_than(&inner.credential) {
            inner.credential.clone_from(credential);
        }
    }

    /// Applies changed limits; servers above a smaller size go when they are given back, and who waits for one
    /// below a larger size may open it.
    pub fn set_limits(self: &Arc<Self>, limits: &config::Pool) {
        let mut inner = self.lock();
        inner.limits = limits.clone();
        while inner.open < inner.limits.size
            && !inner.paused
            && let Some(waiter) = inner.waiters.first()
        {
            inner.open += 1;
            drop(inner);
            // If that one has given up, the place that is dropped goes to the next.
            let _ = waiter.send(Grant::Place(Place(self.clone())));
            inner = self.lock();
        }
    }

    /// Lends a server, preferably the `favourite`, by its id, or one whose settings are `wanted`. Waits its turn where all are
    /// lent.
    ///
    /// # Errors
    /// When none is free in time, or a new one cannot be opened.
    pub async fn checkout(
        self: &Arc<Self>,
        wanted: &Settings,
        favourite: u64,
    ) -> Result<Box<Server>, CheckoutError> {
        loop {
            let (waiter, timeout) = match self.try_checkout(wanted, favourite)? {
                Ready::Server(server) => match server.lend() {
                    Some(server) => return Ok(server),
                    None => continue,
                },
                Ready::Place(place) => return Box::pin(self.open(place)).await,
                Ready::Wait(waiter, timeout) => (waiter, timeout),
            };
            let started = Instant::now();
            let grant = match timeout {
                Some(timeout) => tokio::time::timeout_at(Deadline::now() + timeout, waiter).await,
                None => Ok(waiter.await),
            };
            telemetry::metrics()
                .checkout_wait_seconds
                .record(started.elapsed());
            match grant {
                Ok(Ok(Grant::Server(server))) => match server.lend() {
                    Some(server) => return Ok(server),
                    None => continue,
                },
                Ok(Ok(Grant::Place(place))) => return Box::pin(self.open(place)).await,
                Ok(Ok(Grant::Turn)) => continue,
                Ok(Err(_)) => return Err(self.leaving()),
                Err(_) => {
                    telemetry::metrics().checkout_timeouts.increment(1);
                    let node = self.node.name.clone();
                    return Err(CheckoutError::Timeout {
                        node,
                        waited: started.elapsed(),
                    });
                }
            }
        }
    }

    /// Lends a server if one is free: what [`checkout`](Self::checkout) does where nobody has to
    /// wait.
    pub fn lend_now(&self, wanted: &Settings, favourite: u64) -> Option<Box<Server>> {
        let mut inner = self.lock();
        let server = take_best(&mut inner.idle, wanted, favourite);
        drop(inner);
        server?.lend()
    }

    /// Whether the server is one of this pool's.
    pub fn owns(&self, server: &Server) -> bool {
        std::ptr::eq(&*server.place.0, self)
    }

    /// Takes back one of its own servers at this time. Nothing may be owed on it and no transaction
    /// open.
    pub fn take_back(&self, mut server: Box<Server>, now: Instant) {
        server.end_use();
        let is_sound = server.state.is_idle() && !server.state.is_gone && server.unread.is_empty();
        if !is_sound || self.node.is_leaving() {
            return;
        }
        server.idle_since = now;
        let mut inner = self.lock();
        let too_old = server.opened < inner.oldest;
        let outdated = server.generation != inner.generation;
        let lends = !(inner.closed || inner.drained || inner.paused);
        let unwanted = !lends || inner.open > inner.limits.size;
        if unwanted || too_old || outdated {
            drop(inner);
            return;
        }
        while let Some(waiter) = inner.waiters.next_for(server.worker) {
            match waiter.send(Grant::Server(server)) {
                Ok(()) => return,
                // It has given up waiting.
                Err(Grant::Server(back)) => server = back,
                Err(Grant::Place(_) | Grant::Turn) => unreachable!("a server was sent"),
            }
        }
        inner.idle.push(server);
    }

    /// Whether who wants a server now has to wait for one.
    pub fn is_saturated(&self) -> bool {
        let inner = self.lock();
        inner.idle.is_empty() && inner.open >= inner.limits.size
    }

    /// Closes what has been idle or alive for too long. `true` when the pool has nothing left.
    pub fn reap(&self) -> bool {
        let now = Instant::now();
        let mut old = Vec::new();
        let mut inner = self.lock();
        let limits = inner.limits.clone();
        inner.oldest = now.checked_sub(limits.lifetime).unwrap_or(inner.oldest);
        let over = |server: &Server| {
            now - server.idle_since > limits.idle_timeout || now - server.opened > limits.lifetime
        };
        let mut index = 0;
        while index < inner.idle.len() {
            if over(&inner.idle[index]) {
                old.push(inner.idle.remove(index));
            } else {
                index += 1;
            }
        }
        let empty = inner.open == old.len() && inner.waiters.is_empty();
        drop(inner);
        // Dropped outside the lock: each gives up its place, which takes it.
        drop(old);
        empty
    }

    /// What is open may be unlike a new connection: idle servers are closed, lent ones when they are
    /// given back.
    pub fn renew(&self) {
        self.lock().generation += 1;
        self.vacate();
    }

    /// Closes every idle server.
    pub fn vacate(&self) {
        let idle = std::mem::take(&mut self.lock().idle);
        // Dropped outside the lock: each gives up its place, which takes it.
        drop(idle);
    }

    /// Closes every idle server, and lent ones when they are given back.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        let idle = std::mem::take(&mut inner.idle);
        let waiters = std::mem::take(&mut inner.waiters);
        drop(inner);
        drop((idle, waiters));
    }

    /// Lends nothing more, and has nobody wait: idle servers are closed, and lent ones when they are given
    /// back. Or lends again.
    pub(super) fn set_drained(&self, drained: bool) {
        let mut inner = self.lock();
        inner.drained = drained;
        if !drained {
            return;
        }
        let idle = std::mem::take(&mut inner.idle);
        let waiters = std::mem::take(&mut inner.waiters);
        drop(inner);
        // Dropped outside the lock: each gives up its place, which takes it.
        drop((idle, waiters));
    }

    /// Lends nothing, and has everybody wait: idle servers are closed, and lent ones when they are given back.
    /// Or lends again.
    pub(super) fn set_paused(&self, paused: bool) {
        let mut inner = self.lock();
        if std::mem::replace(&mut inner.paused, paused) == paused {
            return;
        }
        let idle = std::mem::take(&mut inner.idle);
        // Who waits for a server may do so for a while only, and who waits for the end of a pause may not.
        let mut waiters = std::mem::take(&mut inner.waiters);
        drop(inner);
        // Dropped outside the lock: each gives up its place, which takes it.
        drop(idle);
        while let Some(waiter) = waiters.first() {
            // Whoever has given up needs no turn.
            let _ = waiter.send(Grant::Turn);
        }
    }

    /// Has nobody wait for a server here any more: its node is not the one that they need.
    pub fn send_away(&self) {
        let waiters = std::mem::take(&mut self.lock().waiters);
        drop(waiters);
    }

    /// Closes the idle servers of another life of the node's server than `life`.
    pub fn close_stale(&self, life: Incarnation) {
        let mut inner = self.lock();
        let (keep, stale) = inner
            .idle
            .drain(..)
            .partition(|server| server.incarnation == life);
        inner.idle = keep;
        drop(inner);
        let stale: Vec<_> = stale;
        drop(stale);
    }

    /// What it holds now.
    pub fn census(&self) -> Census {
        let inner = self.lock();
        let idle = inner.idle.len();
        Census {
            idle,
            active: inner.open.saturating_sub(idle),
            waiting: inner.waiters.len(),
            longest_wait: inner.waiters.longest(Instant::now()),
            size: inner.limits.size,
        }
    }

    /// What servers are opened with.
    pub fn credential(&self) -> Proven {
        self.lock().credential.clone()
    }

    /// The same for whoever watches.
    pub fn gauges(&self) -> PoolGauges<'_> {
        let census = self.census();
        let (node, key) = (&self.node, &self.key);
        PoolGauges {
            of: [&node.cluster, &node.name, &key.database, &key.user],
            idle: census.idle,
            active: census.active,
            waiting: census.waiting,
        }
    }

    fn try_checkout(
        self: &Arc<Self>,
        wanted: &Settings,
        favourite: u64,
    ) -> Result<Ready, CheckoutError> {
        let mut inner = self.lock();
        if inner.closed || inner.drained {
            return Err(self.leaving());
        }
        // Who waits goes first; but a free server means that nobody waits.
        if let Some(server) = take_best(&mut inner.idle, wanted, favourite) {
            return Ok(Ready::Server(server));
        }
        if inner.paused {
            return Ok(Ready::Wait(inner.waiters.join(net::worker()), None));
        }
        if inner.open < inner.limits.size {
            inner.open += 1;
            drop(inner);
            return Ok(Ready::Place(Place(self.clone())));
        }
        let receiver = inner.waiters.join(net::worker());
        Ok(Ready::Wait(receiver, Some(inner.limits.checkout_timeout)))
    }

    async fn open(&self, place: Place) -> Result<Box<Server>, CheckoutError> {
        let (credential, limit, generation) = {
            let inner = self.lock();
            let limit = inner.limits.connect_timeout;
            (inner.credential.credential.clone(), limit, inner.generation)
        };
        let tls = self.node.tls.load_full();
        let target = Target {
            host: &self.node.host,
            port: self.node.port,
            tls: &tls,
            database: &self.key.database,
            user: &self.key.user,
            credential,
            // As if the session had connected itself: its own name, if any, comes with its settings.
            application_name: "",
        };
        let opened = async {
            let mut connection = connect::connect(&target, limit).await?;
            let life = meet(&mut connection).await?;
            Ok((connection, life))
        };
        let opened = match tokio::time::timeout(limit, opened).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectError::Timeout(limit)),
        };
        match opened {
            Ok((connection, life)) => {
                telemetry::metrics().server_connects.increment(1);
                self.node.begin_use();
                let mut server = Server::new(connection, life, place);
                server.generation = generation;
                Ok(Box::new(server))
            }
            Err(error) => {
                telemetry::metrics().server_connect_failures.increment(1);
                if error.is_node_away() {
                    self.node.wake.notify_one();
                }
                Err(CheckoutError::Connect {
                    node: self.node.name.clone(),
                    error,
                })
            }
        }
    }

    fn leaving(&self) -> CheckoutError {
        CheckoutError::Leaving {
            node: self.node.name.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves the pool's few fields consistent: no code that can panic runs
        // between their changes.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Ready {
    Server(Box<Server>),
    Place(Place),
    /// For so long at most.
    Wait(oneshot::Receiver<Grant>, Option<Duration>),
}

/// Of the idle servers, the favourite; else one of this thread's with the wanted settings if there is
/// one; else the last given back.
fn take_best(idle: &mut Idle, wanted: &Settings, favourite: u64) -> Option<Box<Server>> {
    /// How many are looked at: the choice must not cost more than it saves.
    const LOOKED_AT_MAX: usize = 32;
    let worker = net::worker();
    let score = |server: &Server| {
        i32::from(server.worker == worker)
            + 2 * i32::from(server.state.settings == *wanted)
            + 4 * i32::from(server.listed.number() == favourite)
    };
    let perfect = 3 + 4 * i32::from(favourite != NO_FAVOURITE);
    let (mut best, mut best_score) = (0, -1);
    // Of equals the one that was given back last, which mostly is as good as can be.
    for (place, server) in idle.iter().enumerate().rev().take(LOOKED_AT_MAX) {
        let score = score(server);
        if score > best_score {
            (best, best_score) = (place, score);
        }
        if score == perfect {
            break;
        }
    }
    (best_score >= 0).then(|| idle.remove(best))
}

/// In which life of the node's server a connection is. Numbers, as a date's text would depend on the
/// settings that roles have of their own.
const LIFE: &str = "SELECT (EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) \
    * 1000000)::pg_catalog.int8, system_identifier FROM pg_catalog.pg_control_system()";

/// What a session may not have said: it is of its role, its database and the server.
const DEFAULTS: &str = "SELECT pg_catalog.current_setting('default_transaction_isolation')";

/// Asks in which life of the node's server the connection is.
pub async fn incarnation(connection: &mut Connection) -> Result<Incarnation, ConnectError> {
    let rows = connection.query(LIFE).await?;
    Ok(numbered(&rows))
}

/// Asks all that a pool's new connection has to be asked, in one go.
async fn meet(connection: &mut Connection) -> Result<Incarnation, ConnectError> {
    let mut rows = connection.query(&format!("{LIFE}; {DEFAULTS}")).await?;
    let isolation = rows.pop().and_then(|row| row.into_iter().next().flatten());
    let isolation = isolation.and_then(|name| Isolation::named(&name));
    connection.params.set_isolation(isolation);
    Ok(numbered(&rows))
}

/// The same life has the same number whoever asks, by fixed seeds.
fn numbered(rows: &Rows) -> Incarnation {
    let hash = foldhash::quality::FixedState::with_seed(0).hash_one(rows);
    Incarnation(hash.max(1))
}

impl Server {
    fn new(connection: Connection, incarnation: Incarnation, place: Place) -> Server {
        let now = Instant::now();
        Server {
            stream: connection.stream,
            state: ServerState::new(connection.params, STATEMENTS_MAX),
            incarnation,
            lent_at: place.pool.node.clock().now(),
            unread: BytesMut::new(),
            listed: Listed::new(CancelKey {
                node: place.0.node.clone(),
                pid: connection.pid,
                secret: connection.secret,
            }),
            place,
            worker: net::worker(),
            generation: 0,
            opened: now,
            idle_since: now,
            lent: true,
        }
    }

    pub fn node(&self) -> &Arc<Node> {
        &self.place.0.node
    }

    /// Lends it if it is [good](Self::checked).
    fn lend(self: Box<Self>) -> Option<Box<Server>> {
        let mut server = self.checked()?;
        server.lent = true;
        server.node().begin_use();
        Some(server)
    }

    /// Whether it can be used: alive, quiet, and on this thread's runtime. It is dropped otherwise.
    pub fn checked(mut self: Box<Self>) -> Option<Box<Server>> {
        self.lent_at = self.node().clock().now();
        let mut said = BytesMut::new();
        // Before it is moved: a runtime that it is new to has not heard yet what has come.
        match self.stream.read_now(&mut said) {
            None => {}
            Some(Ok(n)) if n > 0 && hear_idle(&mut self.state, &said) => {}
            Some(_) => {
                // It has said goodbye; so probably have its siblings.
                self.node().wake.notify_one();
                return None;
            }
        }
        match net::worker() == self.worker {
            true => Some(self),
            false => self.moved_here(),
        }
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
        let pool = self.place.0.clone();
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

    fn end_use(&mut self) {
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

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        while inner.open <= inner.limits.size
            && !inner.paused
            && let Some(waiter) = inner.waiters.first()
        {
            if waiter.is_closed() {
                continue;
            }
            drop(inner);
            // The place goes to who waits longest. If that one has just given up, dropping the new
            // place does all this again.
            let _ = waiter.send(Grant::Place(Place(self.0.clone())));
            return;
        }
        inner.open -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::thread;

    use tokio::net::UnixStream;
    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::config::Config;
    use crate::session::server::Params;

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
            place: Place(Arc::new(pool)),
            worker: net::worker(),
            generation: 0,
            opened: now,
            idle_since: now,
            lent: false,
        })
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
