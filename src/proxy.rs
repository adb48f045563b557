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
mod explain;
pub mod handshake;
mod ordinary;
pub mod refusal;
pub mod relay;
mod release;
pub mod replication;
pub mod sessions;
mod slow;
mod transaction;
mod wishes;

use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};

use self::acquire::{Placed, Side};
use self::again::{By, Loss};
use self::handshake::{Admitted, Welcome};
use self::ordinary::{Lead, Listening, Next, UnderWay};
use self::refusal::{Broken, Refusal};
use self::relay::{Begun, ClientSide, Ledger, Relay};
use self::sessions::{Handle, Sessions};
use self::wishes::{Base, needs_samples};
use crate::auth::{Proven, Users};
use crate::cluster::catalog::Watched;
use crate::cluster::pool::server::Server;
use crate::cluster::pool::{NO_FAVOURITE, Pool, PoolKey};
use crate::cluster::{Cluster, Clusters, WatchedTopology};
use crate::config::{Config, Level, PoolMode};
use crate::net::buffers;
use crate::net::stream::Stream;
use crate::net::tls::Material;
use crate::session::answers::{Answer, ServerFault};
use crate::session::batch::{Batch, End};
use crate::session::consistency::{NodeId, Replica};
use crate::session::repair::{Misplaced, Repairable};
use crate::session::route::Reason;
use crate::session::{Did, Session, Shared};
use crate::telemetry::{self, LocalCounter, LocalHistogram};
use crate::wire::encode::{self, Severity};
use crate::wire::message::{self, Status};
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
    if let Some(Admitted::Session(welcome)) = admitted {
        guest.handle.introduce(welcome.who());
        let client = Box::new(Client::new(*welcome, guest, seat));
        if proxy.draining.load(Ordering::SeqCst) {
            // Those that were asked to stop were the clients before it, perhaps.
            client.registered.handle.ask_to_stop();
        }
        let PoolKey { user, database } = &client.key;
        let tls = client.stream.tls().map(|tls| tls.parameters());
        let pid = client.registered.handle.pid;
        tracing::debug!(%peer, user, database, tls, pid, "client logged in");
        tokio::spawn(stay(client));
    } else if let Some(Admitted::Replication(stream, inbox, upstream)) = admitted {
        guest.handle.introduce(upstream.who(&stream));
        upstream.pass(stream, inbox, &guest.handle).await;
    } else if let Some(Admitted::Console(entrance)) = admitted {
        tracing::debug!(%peer, user = %entrance.key.user, pid = guest.handle.pid, "console opened");
        Box::pin(console::serve(*entrance, guest, seat)).await;
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

/// Handles that are used for every query.
struct Counters {
    /// By the reason, which tells the route.
    queries: [LocalCounter; Reason::ALL.len()],
    primary_seconds: LocalHistogram,
    replica_seconds: LocalHistogram,
}

impl Counters {
    fn shared() -> &'static Counters {
        static COUNTERS: std::sync::LazyLock<Counters> = std::sync::LazyLock::new(|| {
            again::announce();
            Counters {
                queries: Reason::ALL.map(|reason| {
                    let side = match reason.is_for_replica() {
                        true => Side::Replica,
                        false => Side::Primary,
                    };
                    telemetry::queries(side.name(), reason.name())
                }),
                primary_seconds: telemetry::query_seconds(Side::Primary.name()),
                replica_seconds: telemetry::query_seconds(Side::Replica.name()),
            }
        });
        &COUNTERS
    }
}

impl Client {
    fn new(welcome: Welcome, registered: Registered, seat: Seat) -> Client {
        let PoolKey { database, user } = &welcome.key;
        let scope = format!("{}\0{database}\0{user}", welcome.cluster.name);
        let (mut settings, params) = (welcome.settings, welcome.params);
        let token = settings.take_token();
        let mut session = Session::new(
            registered.proxy.shared.load_full(),
            &scope,
            settings,
            params,
        );
        let config = welcome.cluster.topology().config.clone();
        let raises = config.consistency.primary_reads_raise_floor;
        session.floors.set_ignore_primary_reads(!raises);
        let last_write = welcome.cluster.last_write_mark();
        session.floors.begin(last_write);
        session.set_schema(welcome.cluster.schema(database));
        session.set_system(welcome.cluster.clock.system().clone());
        if let Some(token) = token {
            session.receive_token(&token);
        }
        let base = Base::of(&config, &welcome.cluster.name, &welcome.key);
        if needs_samples(base.level) {
            // Its first read may be soon, and who only writes does not ask.
            welcome.cluster.want_replicas_after(last_write.moment);
        }
        let catalog = welcome.cluster.catalog(database, user, &welcome.credential);
        session.set_catalog(catalog.known.clone());
        Client {
            registered,
            seat,
            topology: welcome.cluster.watched_topology(),
            cluster: welcome.cluster,
            catalog,
            key: welcome.key,
            credential: welcome.credential,
            stream: welcome.stream,
            inbox: welcome.inbox,
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

    /// The held server has said something while nothing was asked of it.
    async fn hear_held(&mut self) -> Result<(), Ended> {
        let Some(server) = &mut self.held else {
            return Ok(());
        };
        let mut relay = Relay::new(client_side!(self), server);
        relay.consumed = true;
        relay.ledger = Some(Ledger(&self.cluster));
        let heard = relay.hear_once().await;
        relay.end();
        match heard {
            Ok(()) => {
                if let Some(server) = self.held.take_if(|server| server.state.is_idle()) {
                    // Who is notified of something is to find it.
                    self.raise_floors(&server, Side::Primary);
                    self.held = Some(server);
                }
                Ok(())
            }
            Err(Broken::Client | Broken::Killed | Broken::Fault(_)) => Err(Ended::Gone),
            Err(broken) => {
                self.session.floors.wrote(&self.cluster.clock);
                Err(match self.held.take() {
                    Some(server) if server.state.is_within_message() => Ended::Gone,
                    Some(server) => {
                        Ended::Refused(Refusal::lost(server.node().name.clone(), broken))
                    }
                    None => Ended::Refused(Refusal::lost(String::new(), broken)),
                })
            }
        }
    }

    async fn serve_batch(&mut self, end: End, lead: Lead) -> Result<(), Ended> {
        let (started, placed) = match lead {
            Lead::Planned => {
                if let Some(served) = self.serve_without_server(end).await {
                    return served;
                }
                self.turn_to_replica();
                let started = Instant::now();
                match self.acquire(end, None).await {
                    Err(refusal) => (started, Err(refusal)),
                    Ok(placed) => match self.say_ordinary(UnderWay { placed, started }) {
                        Some(under_way) => (started, Ok(under_way.placed)),
                        // It had to wait for its server, and needs nothing else.
                        None => return Ok(()),
                    },
                }
            }
            Lead::Placed(UnderWay { placed, started }) => (started, Ok(placed)),
        };
        let outcome = match placed {
            Ok(placed) => {
                let since = (started, placed.found(started));
                self.exchange(placed, end, since).await
            }
            Err(refusal) => Err(self.not_found(refusal)),
        };
        match outcome {
            Ok(ControlFlow::Break(())) => {}
            outcome => Box::pin(self.serve_again(outcome, end, started)).await?,
        }
        match self.must_stop() {
            true => Err(Ended::Refused(Refusal::going_down())),
            false => Ok(()),
        }
    }

    /// Serves a batch that needs no server; `None` if it needs one.
    async fn serve_without_server(&mut self, end: End) -> Option<Result<(), Ended>> {
        if self.batch.is_empty() {
            // What is left of a COPY that has failed.
            // A message's length fits.
            self.discard = u32::try_from(self.batch.beyond).unwrap_or(u32::MAX);
            self.drop_batch();
            return Some(Ok(()));
        }
        let local = self.held.is_none() && !self.session.is_failed() && end == End::Ready;
        if !local || self.session.roams_on_replica() {
            return None;
        }
        if !self.serve_unopened() {
            if !self.session.is_local(&self.batch) {
                return None;
            }
            self.make_outbox();
            self.session.answer_locally(&self.batch, &mut self.outbox);
        }
        self.drop_batch();
        Some(self.flush().await)
    }

    /// Runs the batch on a server: until all is answered, or until the pipeline has to go on
    /// elsewhere. `since` is when the batch was planned, and when its server was found.
    async fn exchange(
        &mut self,
        mut placed: Placed,
        end: End,
        since: (Instant, Instant),
    ) -> Result<ControlFlow<(), End>, Failed> {
        let side = placed.side;
        let server = &mut placed.server;
        self.registered.handle.works_with(&server.listed);
        let retriable = self.may_run_again(side);
        let opens_on_replica = side == Side::Replica && self.session.is_to_be_opened();
        let leaves_midway = self.session.roams().then(|| self.session.leaves_midway());
        // Servers that only wait here for clients must not keep a database from being dropped or copied.
        let database = match self.batch.touches_databases {
            true => self.session.to_be_left(&self.batch, &self.inbox),
            false => None,
        };
        let _vacating = database.map(|database| self.cluster.vacate(database));
        // What only asks is not counted among what it asks about.
        let counts = !self.batch.only_explains();
        let mut relay = Relay::new(client_side!(self), server);
        if side == Side::Replica {
            // What was fresh enough for one part of a pipeline need not be for the next.
            relay.belongs_elsewhere = match (leaves_midway, self.reads_plainly) {
                (Some(leaves), _) => leaves,
                (None, true) => Batch::must_leave_replica,
                (None, false) => |_| true,
            };
            relay.transactions = Some(self.base.transaction_reads());
        } else {
            relay.ledger = Some(Ledger(&self.cluster));
            relay.belongs_elsewhere = |batch| batch.explains;
        }
        let whole = end == End::Ready && relay.client.batch.ends_with_an_error();
        relay.server.state.repairable = match retriable && whole {
            true => placed.repairable,
            false => Repairable::No,
        };
        let went = match self.begun.take().map(|begun| relay.take_up(begun)) {
            Some(Ok(())) => relay.run().await,
            Some(broken) => broken,
            None => relay.converse(end).await,
        };
        let (leave, answered, consumed) = (relay.leave, relay.answered, relay.consumed);
        relay.end();
        telemetry::metrics().client_bytes_sent.increment(answered);
        if !self.registered.handle.leaves_server() {
            Box::pin(self.registered.handle.outwaits_deliveries()).await;
        }
        match went {
            Ok(()) if leave => {
                match self.session.roams() || !placed.server.state.is_idle() {
                    true => self.hold(placed.server, side),
                    false => self.put_back(placed.server, side, Instant::now()),
                }
                Ok(ControlFlow::Continue(self.batch.end().unwrap_or(end)))
            }
            Ok(()) => {
                if let Some(misplaced) = placed.server.state.misplaced.take() {
                    let node = placed.server.node().id();
                    match self.session.roams() {
                        true => self.leave_replica(placed.server),
                        false => self.put_back(placed.server, side, Instant::now()),
                    }
                    return Err(Failed::Misplaced(misplaced, node));
                }
                if counts {
                    self.count(&placed, since, !consumed);
                }
                if !consumed {
                    self.drop_batch();
                }
                let settled = self.settle(placed.server, side).await;
                settled.map_err(Failed::Ended)?;
                Ok(ControlFlow::Break(()))
            }
            Err(Broken::Killed) => Err(Failed::Ended(self.killed(&placed.server))),
            Err(Broken::Client) => {
                // It finishes what it was told, as if the client had been connected to it.
                Err(Failed::Ended(Ended::Gone))
            }
            Err(Broken::Fault(fault)) => Err(Failed::Ended(Ended::Refused(fault.into()))),
            Err(broken) => {
                // What is said with settings that are refused has no effect beyond that server; and what has more
                // is not said before they are taken.
                let is_alone = match self.session.status() {
                    Status::Idle => !self.session.is_pinned(),
                    _ => opens_on_replica,
                };
                let is_unsettled = matches!(broken, Broken::Server(ServerFault::Settings(_)));
                let may_retry = retriable || is_unsettled && is_alone;
                let may_retry = may_retry && !consumed && answered == 0;
                let may_retry = may_retry && again::may_be_unsaid(&self.outbox);
                let may_retry = may_retry.then(|| By::of(&broken)).flatten();
                if may_retry.is_some() {
                    self.outbox.clear();
                }
                Err(self.server_lost(placed.server, broken, may_retry))
            }
        }
    }

    /// A server was lost, `by` what if the batch may be run again.
    fn server_lost(&mut self, server: Box<Server>, broken: Broken, by: Option<By>) -> Failed {
        let may_retry = by.is_some();
        let node = server.node().clone();
        node.wake.notify_one();
        // What the session keeps on the primary's server is not lost with another one.
        let is_kept = self.held.is_some() || !self.session.is_pinned();
        let is_outside = self.session.status() == Status::Idle;
        let was_idle = is_outside && is_kept;
        Ledger(&self.cluster).note(&self.session);
        // A transaction that goes on elsewhere has shown what it has shown.
        let goes_on = may_retry && self.session.roams();
        let did = match goes_on {
            true => Did::default(),
            false => self.session.take_did(),
        };
        let wrote = did.wrote || !was_idle && !goes_on;
        let commits = match is_outside {
            true => did.wrote,
            false => !self.session.roams() && server.state.may_commit(),
        };
        if wrote {
            // It may have been a definition.
            self.catalog.look_again();
        }
        let within_message = server.state.is_within_message();
        let (pool, life) = (server.pool().clone(), server.incarnation);
        drop(server);
        self.answer.clear();
        match goes_on {
            true => {
                telemetry::metrics().transaction_moves.increment(1);
                self.session.lose_replica();
            }
            false => self.session.lost_server(),
        }
        if wrote || did.read && !may_retry {
            // What it has shown or done is not known; the primary's present state covers it.
            self.session.floors.wrote(&self.cluster.clock);
            self.cluster.want_sample(self.cluster.clock.now());
        }
        tracing::info!(node = %node.name, error = %broken, "server lost");
        if within_message && !may_retry {
            // The client would take an error for the rest of it.
            return Failed::Ended(Ended::Gone);
        }
        let (refuses_settings, was_cancelled) = match &broken {
            Broken::Server(ServerFault::Settings(words)) => {
                (true, message::error_field(words, b'C') == Some(b"57014"))
            }
            _ => (false, false),
        };
        let refusal = match commits && broken.may_have_succeeded() {
            true => Refusal::Unknown {
                node: node.name.clone(),
            },
            false => Refusal::lost(node.name.clone(), broken),
        };
        if let Some(by) = by.filter(|_| !was_cancelled) {
            let replica = (!self.cluster.is_primary(&node)).then(|| node.id());
            Failed::Retry(Box::new(Loss {
                refusal,
                pool,
                life,
                replica,
                by,
            }))
        } else if was_idle
            && self.batch.end() == Some(End::Ready)
            && (!refuses_settings || was_cancelled)
        {
            Failed::Refused(refusal)
        } else {
            // What was open on the server is gone with it, and the client has to know.
            Failed::Ended(Ended::Refused(refusal))
        }
    }

    /// The session is to end in the middle of an exchange with this server, which ends with it.
    fn killed(&self, server: &Server) -> Ended {
        // Its client would take the words for the rest of a message.
        match server.state.is_within_message() || !self.outbox.is_empty() {
            true => Ended::Gone,
            false => Ended::Refused(Refusal::going_down()),
        }
    }

    /// No server was found for the batch. A transaction that is open on one can't go on without it, nor a
    /// session whose server is gone with what it held.
    fn not_found(&self, refusal: Refusal) -> Failed {
        let lost_state = matches!(refusal, Refusal::PrimaryChanged { .. });
        match self.session.status() {
            Status::Idle if !lost_state => Failed::Refused(refusal),
            _ if self.session.is_to_be_opened() => Failed::Refused(refusal),
            _ => Failed::Ended(Ended::Refused(refusal)),
        }
    }

    /// Answers the batch with an error; the session goes on.
    async fn refuse(&mut self, refusal: Refusal, end: End) -> Result<(), Ended> {
        if end == End::Open || self.batch.beyond > 0 {
            return Err(Ended::Refused(refusal));
        }
        refusal.encode(Severity::Error, &mut self.outbox);
        self.session.fail_unopened();
        encode::ready(&mut self.outbox, self.session.status());
        self.session.forget_batch(&self.batch);
        self.drop_batch();
        self.flush().await
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

    /// `started` is when the batch was planned, `lent` when its server was found; `is_at_hand` if the
    /// client's buffer still has what it said. Returns the present time.
    fn count(
        &mut self,
        placed: &Placed,
        (started, lent): (Instant, Instant),
        is_at_hand: bool,
    ) -> Instant {
        let counters = Counters::shared();
        let now = Instant::now();
        let took = now - started;
        counters.queries[placed.reason as usize].increment(1);
        if placed.side == Side::Replica {
            counters.replica_seconds.record(took);
            // How quickly it fails says nothing of how quickly it answers.
            if !self.session.has_erred() {
                let served = if lent == started { took } else { now - lent };
                placed.server.node().note_latency(served);
            }
        } else {
            counters.primary_seconds.record(took);
        }
        let limit = self.topology.load().config.log.slow_query;
        if limit.is_some_and(|limit| took >= limit) {
            self.log_slow(placed, took, lent - started, is_at_hand);
        }
        now
    }

    /// A read has had to go to the primary for the session's own sake.
    fn pin(&mut self) {
        if self.pinned.is_none() {
            self.pinned = Some(Instant::now());
            telemetry::metrics().pinned_sessions.increment(1.0);
        }
    }

    /// The session's reads are free again; or it is over.
    fn unpin(&mut self, measure: bool) {
        if let Some(since) = self.pinned.take() {
            telemetry::metrics().pinned_sessions.decrement(1.0);
            if measure {
                telemetry::metrics().pin_seconds.record(since.elapsed());
            }
        }
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

/// Reads what a client has said, into a buffer that is taken only for as long as there is something
/// in it.
fn read_client(
    stream: &mut Stream,
    inbox: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if inbox.capacity() == 0 {
        *inbox = buffers::take();
    }
    // A long message gets room in steps, so that an announced length alone costs no memory.
    inbox.reserve(buffers::BUFFER_BYTES / 2);
    let read = stream.poll_read(cx, inbox);
    if inbox.is_empty() {
        buffers::give_back(inbox);
    }
    read
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

/// An exchange has not come to its end.
enum Failed {
    /// It was a read, and nothing of its answer has been seen: it may be tried again.
    Retry(Box<Loss>),
    /// This replica has failed it for its own sake.
    Misplaced(Box<Misplaced>, NodeId),
    /// The batch has failed; the session goes on.
    Refused(Refusal),
    Ended(Ended),
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
