//! One client's life: from its first byte to its last, with servers lent to it on the way.
//!
//! Owns: the sockets around a session. Never: decides what a message means; the session does.

/// The client's half of a relay. A macro, since a method would borrow all of the client, with the
/// server that it holds.
macro_rules! client_side {
    ($client:expr) => {
        ClientSide {
            handle: &$client.registered.handle,
            stream: &mut $client.stream,
            inbox: &mut $client.inbox,
            outbox: &mut $client.outbox,
            session: &mut $client.session,
            batch: &mut $client.batch,
            answer: &mut $client.answer,
        }
    };
}

pub mod acquire;
mod again;
mod cancel;
mod console;
mod counters;
mod exchange;
mod explain;
pub mod handshake;
mod hold;
mod ordinary;
mod reads;
pub mod refusal;
pub mod relay;
mod release;
pub mod replication;
pub mod sessions;
mod slow;
mod transaction;
mod wishes;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};

use self::handshake::{Admitted, Entry, Login};
use self::ordinary::{Listening, Next, UnderWay};
use self::refusal::Refusal;
use self::relay::Begun;
use self::sessions::{Handle, Sessions};
use self::wishes::{Base, needs_samples};
use crate::auth::{Proven, Users};
use crate::cluster::catalog::Watched;
use crate::cluster::pool::server::Server;
use crate::cluster::pool::{NO_FAVOURITE, Pool, PoolKey};
use crate::cluster::topology::WatchedTopology;
use crate::cluster::{Cluster, Clusters};
use crate::config::{Config, Level, PoolMode};
use crate::net::buffers;
use crate::net::stream::Stream;
use crate::net::tls::Material;
use crate::session::answer::Answer;
use crate::session::batch::Batch;
use crate::session::consistency::NodeId;
use crate::session::{Session, Shared};
use crate::telemetry;
use crate::wire::encode::Severity;
use crate::workers::Seat;

/// What all clients share.
pub struct Proxy {
    pub config: ArcSwap<Config>,
    pub users: ArcSwap<Users>,
    pub tls: ArcSwap<Material>,
    pub clusters: Clusters,
    pub sessions: Sessions,
    /// What new sessions share; replaced when the rules for functions change.
    pub shared: ArcSwap<Shared>,
    pub welcomes: handshake::Welcomes,
    /// No new clients are taken, and nobody else does so in its place.
    pub closed: AtomicBool,
    /// Clients that are here are asked to leave.
    pub draining: AtomicBool,
    /// What the process is to do.
    pub orders: mpsc::Sender<Order>,
}

/// What the console may have the process do, and where to the answer goes.
pub enum Order {
    /// The configuration is to be read again.
    Reload(oneshot::Sender<Result<(), String>>),
}

/// Serves one client until it has gone, or leaves it to a task of its own once it is logged in: what
/// the handshake needs is given back then.
pub async fn serve(guest: Registered, stream: Stream, seat: Seat) {
    let (proxy, peer) = (guest.proxy.clone(), stream.peer());
    let admitted = handshake::shake_hands(&proxy, stream, &guest.handle).await;
    let Some(Admitted {
        stream,
        inbox,
        entry,
    }) = admitted
    else {
        return;
    };
    match entry {
        Entry::Session(login) => {
            guest.handle.introduce(login.who(&stream));
            let client = Box::new(Client::new(*login, stream, inbox, guest, seat));
            if proxy.draining.load(Ordering::SeqCst) {
                // Those that were asked to stop were the clients before it, perhaps.
                client.registered.handle.ask_to_stop();
            }
            let PoolKey { user, database } = &client.key;
            let tls = client.stream.tls().map(|tls| tls.parameters());
            let pid = client.registered.handle.pid;
            tracing::debug!(%peer, user, database, tls, pid, "client logged in");
            tokio::spawn(stay(client));
        }
        Entry::Replication(upstream) => {
            guest.handle.introduce(upstream.who(&stream));
            upstream.pass(stream, inbox, &guest.handle).await;
        }
        Entry::Console(login) => {
            tracing::debug!(%peer, user = %login.key.user, pid = guest.handle.pid, "console opened");
            Box::pin(console::serve(*login, stream, inbox, guest, seat)).await;
        }
    }
}

/// Serves a client that is logged in, here or wherever it moves to.
///
/// The task of a client that does nothing is this future: what it holds inline takes memory for as
/// long as the client is there, whether it is used or not. So what is large and soon over, or rare,
/// is boxed, here and below.
fn stay(mut client: Box<Client>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    // Of a named type, as what it spawns is of the same.
    Box::pin(async move {
        match client.run().await {
            Left::Over => {
                Box::pin(client.end()).await;
                tracing::debug!(pid = client.registered.handle.pid, "client gone");
            }
            Left::To(seat) => {
                telemetry::metrics().client_moves.increment(1);
                client.seat = seat;
                let runtime = client.seat.runtime().clone();
                runtime.spawn(async move {
                    let stream = std::mem::replace(&mut client.stream, Stream::Closed);
                    match stream.moved_here() {
                        Ok(stream) => {
                            client.stream = stream;
                            stay(client).await;
                        }
                        Err(error) => {
                            tracing::info!(%error, "client lost on its way to another thread")
                        }
                    }
                });
            }
        }
    })
}

/// Why a client's task ends.
enum Left {
    /// The client has gone, or was dismissed.
    Over,
    /// It goes on, elsewhere.
    To(Seat),
}

/// A connected client, counted and reachable by its cancel key for as long as this lives, a panic
/// included.
pub struct Registered {
    proxy: Arc<Proxy>,
    handle: Arc<Handle>,
}

impl Registered {
    /// As many connections may be on their way to being logged in as there may be clients, those of the
    /// console included; `None` beyond that.
    pub fn new(proxy: &Arc<Proxy>) -> Option<Registered> {
        let guests_max = proxy.config.load().listen.max_clients + handshake::CONSOLE_CLIENTS;
        let handle = proxy.sessions.register(guests_max)?;
        telemetry::metrics().client_connects.increment(1);
        telemetry::metrics().clients.increment(1.0);
        Some(Registered {
            proxy: proxy.clone(),
            handle,
        })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.proxy.sessions.remove(&self.handle);
        telemetry::metrics().clients.decrement(1.0);
    }
}

/// A client that is logged in.
struct Client {
    registered: Registered,
    seat: Seat,
    cluster: Arc<Cluster>,
    topology: WatchedTopology,
    catalog: Arc<Watched>,
    key: PoolKey,
    credential: Proven,
    stream: Stream,
    inbox: BytesMut,
    outbox: BytesMut,
    session: Session,
    batch: Batch,
    answer: Answer,
    /// The server on the primary that the session cannot leave: a transaction is open on it, or it
    /// holds what cannot be moved.
    held: Option<Box<Server>>,
    /// The replica's server that its open transaction is on; in session mode, the one that it stays with.
    held_replica: Option<Box<Server>>,
    /// Session mode: servers are kept until the session ends.
    keeps_servers: bool,
    /// The server that it wrote on last: it may remember what the session has drawn from sequences.
    last_written: u64,
    /// It has read without writing since it last wrote, or has not written yet: it may do so again.
    has_read: bool,
    /// Of a primary and two replicas; with more nodes they are elsewhere.
    pools: SmallVec<[(NodeId, Arc<Pool>); 3]>,
    /// What its reads must have seen by the configuration; and of the last read that was looked at,
    /// whether that was all, and its level.
    base: Base,
    reads_plainly: bool,
    read_level: Level,
    /// Bytes of a message that is not wanted, still to come.
    discard: u32,
    /// The exchange that waits for its answer, if that is to be an ordinary one.
    under_way: Option<UnderWay>,
    /// How far that has come, when it turns out to be none.
    begun: Option<Begun>,
    /// Since when reads have had to stay on the primary.
    pinned: Option<Instant>,
    random: u64,
}

impl Client {
    fn new(
        login: Login,
        stream: Stream,
        inbox: BytesMut,
        registered: Registered,
        seat: Seat,
    ) -> Client {
        let PoolKey { database, user } = &login.key;
        let scope = format!("{}\0{database}\0{user}", login.cluster.name);
        let (mut settings, params) = (login.settings, login.params);
        let token = settings.take_token();
        let mut session = Session::new(
            registered.proxy.shared.load_full(),
            &scope,
            settings,
            params,
        );
        let config = login.cluster.topology().config.clone();
        let raises = config.consistency.primary_reads_raise_floor;
        session.floors.set_ignore_primary_reads(!raises);
        let last_write = login.cluster.last_write_mark();
        session.floors.begin(last_write);
        session.set_schema(login.cluster.schema(database));
        session.set_system(login.cluster.clock.system().clone());
        if let Some(token) = token {
            session.receive_token(&token);
        }
        let base = Base::of(&config, &login.cluster.name, &login.key);
        if needs_samples(base.level) {
            // Its first read may be soon, and who only writes does not ask.
            login.cluster.want_replicas_after(last_write.moment);
        }
        let catalog = login.cluster.catalog(database, user, &login.credential);
        session.set_catalog(catalog.known.clone());
        Client {
            registered,
            seat,
            topology: login.cluster.watched_topology(),
            cluster: login.cluster,
            catalog,
            key: login.key,
            credential: login.credential,
            stream,
            inbox,
            outbox: BytesMut::new(),
            session,
            batch: Batch::new(),
            answer: Answer::default(),
            held: None,
            held_replica: None,
            last_written: NO_FAVOURITE,
            has_read: true,
            keeps_servers: config.pool.mode == PoolMode::Session,
            pools: SmallVec::new(),
            read_level: base.level,
            reads_plainly: true,
            base,
            discard: 0,
            under_way: None,
            begun: None,
            pinned: None,
            random: rand::random::<u64>() | 1,
        }
    }

    async fn run(&mut self) -> Left {
        let mut listening = Listening::default();
        self.hear_of_catalog().await;
        loop {
            let next = std::future::poll_fn(|cx| self.poll_ordinary(cx, &mut listening)).await;
            let went = match next {
                Next::Batch(end, lead) => self.serve_batch(end, lead).await,
                Next::Settle(placed) => Box::pin(self.settle_after(placed)).await,
                Next::HeldSpeaks => Box::pin(self.hear_held()).await,
                Next::Call => Ok(()),
                Next::Gone => Err(Ended::Gone),
                Next::Stop => Err(Ended::Refused(Refusal::going_down())),
                Next::Fault(fault) => Err(Ended::Refused(fault.into())),
                Next::Refused(refusal) => Err(Ended::Refused(refusal)),
            };
            match went {
                Ok(()) => {}
                Err(Ended::Gone) => return Left::Over,
                Err(Ended::Refused(refusal)) => {
                    Box::pin(self.dismiss(refusal)).await;
                    return Left::Over;
                }
            }
            if self.seat.has_call() && self.is_between_batches() {
                let random = self.next_random();
                if self.seat.hear_call(random)
                    && let Some(seat) = self.seat.moved()
                {
                    return Left::To(seat);
                }
            }
        }
    }

    /// Waits for what its database's names mean, if nothing is known of that yet, within limits.
    async fn hear_of_catalog(&self) {
        if !self.catalog.known.is_settled() {
            Box::pin(self.catalog.first_answer()).await;
        }
    }

    /// Nothing of the client's is under way, here or on a server.
    fn is_between_batches(&self) -> bool {
        self.held.is_none()
            && self.held_replica.is_none()
            && self.inbox.is_empty()
            && self.outbox.is_empty()
            && self.discard == 0
    }

    /// Keeps little memory while there is nothing to do.
    fn rest_if_idle(&mut self) {
        if !self.inbox.is_empty() {
            return;
        }
        buffers::give_back(&mut self.inbox);
        if self.outbox.is_empty() && self.outbox.try_reclaim(OUTBOX_BYTES_KEPT + 1) {
            buffers::give_back(&mut self.outbox);
        }
        self.batch.rest();
        self.answer.rest();
    }

    /// Tells the client why its connection ends.
    async fn dismiss(&mut self, refusal: Refusal) {
        refusal.encode(Severity::Fatal, &mut self.outbox);
        tracing::info!(user = %self.key.user, database = %self.key.database, error = %refusal, "client dismissed");
        let _ = tokio::time::timeout(LAST_WORDS, self.flush()).await;
    }

    fn drop_batch(&mut self) {
        let n = self.batch.len.min(self.inbox.len());
        buffers::consume(&mut self.inbox, n);
        self.batch.clear();
    }

    fn make_outbox(&mut self) {
        if self.outbox.capacity() == 0 {
            self.outbox = buffers::take();
        }
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        let sent = self.stream.write_all(&self.outbox).await;
        telemetry::metrics()
            .client_bytes_sent
            .increment(self.outbox.len() as u64);
        buffers::give_back(&mut self.outbox);
        sent.map_err(|_| Ended::Gone)
    }

    fn next_random(&mut self) -> u64 {
        self.random = self.coming_random();
        self.random
    }

    /// The number that is drawn next.
    fn coming_random(&self) -> u64 {
        // xorshift64: good enough to spread load, and free.
        let mut random = self.random;
        random ^= random << 13;
        random ^= random >> 7;
        random ^ random << 17
    }
}

/// The room for what is to be sent that an idle client keeps, in bytes.
const OUTBOX_BYTES_KEPT: usize = 256;

/// The longest a client that is dismissed may take to read why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The session is over.
enum Ended {
    Gone,
    Refused(Refusal),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever fails this has made every idle client larger. What is large and seldom waited for
    /// belongs in a box, and so does a large field that few clients use.
    #[test]
    fn an_idle_client_is_small() {
        fn awaited<'a, F: Future>(_: impl FnOnce(&'a mut Client) -> F) -> usize {
            size_of::<F>()
        }
        let (task, client) = (awaited(Client::run), size_of::<Client>());
        assert!(task <= 1024, "the task of a client holds {task} bytes");
        assert!(client <= 1384, "a client is {client} bytes");
    }
}
