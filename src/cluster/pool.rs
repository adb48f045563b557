//! Owns: the servers of one node, database and user: lending them to sessions, first come first
//! served. Never: lends a server that something is still owed on.

mod open;
mod refused;
mod room;
pub mod server;
mod waiters;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::Instant as Deadline;

use self::refused::Refused;
use self::server::Server;
use self::waiters::Waiters;
use super::connect::ConnectError;
use super::node::Node;
use crate::auth::Proven;
use crate::config;
use crate::net;
use crate::session::consistency::Incarnation;
use crate::session::settings::Settings;
use crate::telemetry;

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
    /// The last server that was to be opened could not be, and none has been since.
    refused: Option<Refused>,
    /// The last server that was to be opened got no answer, and none has been since.
    silence: Option<Silence>,
    credential: Proven,
    limits: config::Pool,
    closed: bool,
    /// It lends nothing for as long as its node takes nothing new.
    drained: bool,
    /// It lends nothing, and who wants something waits, for as long as its database is paused.
    paused: bool,
    /// When idle servers were last closed for who might only have wanted that.
    made_way: Option<Instant>,
    /// Servers of an older generation are closed and not lent again.
    generation: u64,
    /// So are those whose age is counted from before this: the last look found them too old.
    oldest: Option<Instant>,
}

/// A pool whose last new connection was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    /// The node's probe is to see whether its own are.
    Asked,
    /// They are.
    MayTry,
    /// A server is being opened since.
    Tried,
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

/// What is waited for by who wants a server, beside one that is lent now.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// One that the node does not give: it gives no more than there are.
    pub for_room: bool,
    /// The end of a pause.
    pub for_resume: bool,
}

impl Patience {
    /// Of who has nowhere else to go.
    pub const ALL: Patience = Patience {
        for_room: true,
        for_resume: true,
    };
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
    #[error("the database is paused")]
    Paused,
}

impl CheckoutError {
    /// All that there may be are lent.
    pub fn is_for_lack_of_room(&self) -> bool {
        match self {
            CheckoutError::Timeout { .. } => true,
            CheckoutError::Connect { error, .. } => error.is_full(),
            CheckoutError::Leaving { .. } | CheckoutError::Paused => false,
        }
    }

    /// See [`ConnectError::is_for_primary_to_say`].
    pub fn is_for_primary_to_say(&self) -> bool {
        matches!(self, CheckoutError::Connect { error, .. } if error.is_for_primary_to_say())
    }
}

/// A pool's permission for one server to exist; given up when dropped.
struct Place {
    pool: Arc<Pool>,
    /// The node does not give it: nobody else is to try in turn.
    is_refused: bool,
    /// By it is found out whether new connections are answered again.
    is_trial: bool,
}

impl Pool {
    pub fn new(node: Arc<Node>, key: PoolKey, credential: Proven, limits: config::Pool) -> Pool {
        let (drained, paused) = (node.is_drained(), node.pauses.has(&key.database));
        let inner = Inner {
            idle: Vec::new(),
            open: 0,
            waiters: Waiters::default(),
            refused: None,
            silence: None,
            credential,
            limits,
            closed: false,
            drained,
            paused,
            made_way: None,
            generation: 0,
            oldest: None,
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
        self.take_credential(credential, true);
    }

    /// The same for what was proved in a login to another database: what the node has refused here for another reason
    /// than a password that has changed, it would refuse again.
    pub fn hear_of_credential(&self, credential: &Proven) {
        self.take_credential(credential, false);
    }

    fn take_credential(&self, credential: &Proven, was_taken_here: bool) {
        let mut inner = self.lock();
        if credential.is_newer_than(&inner.credential) {
            if was_taken_here || credential.credential != inner.credential.credential {
                inner.refused = None;
            }
            inner.credential.clone_from(credential);
        }
    }

    /// Applies changed limits; servers above a smaller size go when they are given back, and who waits for one
    /// below a larger size may open it.
    pub fn set_limits(self: &Arc<Self>, limits: &config::Pool) {
        let mut inner = self.lock();
        inner.limits = limits.clone();
        let is_refused = inner.refused.is_some();
        drop(inner);
        while !is_refused && self.grow() {}
    }

    /// Has the first of those who wait open one more server, if there may be one. `false` if not.
    fn grow(self: &Arc<Self>) -> bool {
        let mut inner = self.lock();
        if inner.paused || !inner.has_place() {
            return false;
        }
        let waiter = loop {
            match inner.waiters.first() {
                // It has given up.
                Some(waiter) if waiter.is_closed() => {}
                Some(waiter) => break waiter,
                None => return false,
            }
        };
        inner.open += 1;
        let is_trial = inner.begin_trial();
        drop(inner);
        // If that one has given up, the place that is dropped goes to the next.
        let _ = waiter.send(Grant::Place(Place::of(self, is_trial)));
        true
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
        self.checkout_with(Patience::ALL, wanted, favourite).await
    }

    /// The same for who has somewhere else to go.
    ///
    /// # Errors
    /// As those of [`checkout`](Self::checkout), and at once where that would wait for what is not waited for.
    pub async fn checkout_with(
        self: &Arc<Self>,
        patience: Patience,
        wanted: &Settings,
        favourite: u64,
    ) -> Result<Box<Server>, CheckoutError> {
        // When it began to wait for a server, if it has: its turn is by that.
        let mut since = None;
        loop {
            let (waiter, timeout) = match self.try_checkout(wanted, favourite, since)? {
                Ready::Server(server) => match server.lend() {
                    Some(server) => return Ok(server),
                    None => continue,
                },
                Ready::Place(place) => match Box::pin(self.open(place)).await? {
                    Some(server) => return Ok(server),
                    None => continue,
                },
                Ready::Wait(_, None) if !patience.for_resume => return Err(CheckoutError::Paused),
                Ready::Wait(..) if !patience.for_room && self.lock().has_all_it_gets() => {
                    return Err(self.waited_in_vain(Duration::ZERO));
                }
                Ready::Wait(waiter, timeout) => (waiter, timeout),
            };
            let started = Instant::now();
            let grant = match timeout {
                Some(timeout) => {
                    let until = *since.get_or_insert(started) + timeout;
                    tokio::time::timeout_at(Deadline::from_std(until), waiter).await
                }
                // A pause counts for nothing.
                None => {
                    since = None;
                    Ok(waiter.await)
                }
            };
            telemetry::metrics()
                .checkout_wait_seconds
                .record(started.elapsed());
            match grant {
                Ok(Ok(Grant::Server(server))) => match server.lend() {
                    Some(server) => return Ok(server),
                    None => continue,
                },
                Ok(Ok(Grant::Place(place))) => match Box::pin(self.open(place)).await? {
                    Some(server) => return Ok(server),
                    None => continue,
                },
                Ok(Ok(Grant::Turn)) => continue,
                Ok(Err(_)) => return Err(self.leaving()),
                Err(_) => {
                    telemetry::metrics().checkout_timeouts.increment(1);
                    return Err(self.waited_in_vain(since.unwrap_or(started).elapsed()));
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
        std::ptr::eq(&*server.place.pool, self)
    }

    /// Takes back one of its own servers at this time. Nothing may be owed on it and no transaction
    /// open.
    pub fn take_back(&self, mut server: Box<Server>, now: Instant) {
        server.end_use();
        let is_sound = server.state.is_idle() && !server.state.is_gone && server.unread.is_empty();
        if !is_sound || server.may_be_cancelled || self.node.is_leaving() {
            return;
        }
        server.idle_since = now;
        let mut inner = self.lock();
        let too_old = inner.oldest.is_some_and(|oldest| server.aged_from < oldest);
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
        inner.idle.is_empty() && (inner.open >= inner.limits.size || inner.has_all_it_gets())
    }

    /// Closes what has been idle or alive for too long, or its node has closed, and has one try who waits for lack of
    /// room at the node. `true` when the pool has nothing left.
    pub fn reap(self: &Arc<Self>) -> bool {
        let now = Instant::now();
        let mut old = Vec::new();
        let mut inner = self.lock();
        let limits = inner.limits.clone();
        inner.oldest = now.checked_sub(limits.lifetime);
        let over = |server: &Server| {
            now - server.idle_since > limits.idle_timeout
                || now - server.aged_from > limits.lifetime
        };
        let mut index = 0;
        while index < inner.idle.len() {
            let server = &mut inner.idle[index];
            if over(server) || !server.is_alive() {
                old.push(inner.idle.remove(index));
            } else {
                index += 1;
            }
        }
        let empty = inner.open == old.len() && inner.waiters.is_empty();
        let is_short = inner.refused.is_some() || inner.silence.is_some();
        drop(inner);
        if is_short {
            self.grow();
        }
        // Dropped outside the lock: each gives up its place, which takes it.
        drop(old);
        empty
    }

    /// What is open may be unlike a new connection: idle servers are closed, lent ones when they are
    /// given back.
    pub fn renew(&self) {
        let mut inner = self.lock();
        inner.generation += 1;
        inner.refused = None;
        drop(inner);
        self.vacate();
    }

    /// Closes every idle server, but seldom: what they stand in the way of is begun by anybody.
    pub fn make_way(&self) {
        const PAUSE: Duration = Duration::from_secs(1);
        let mut inner = self.lock();
        let now = Instant::now();
        if inner.made_way.is_none_or(|last| now - last >= PAUSE) && !inner.idle.is_empty() {
            inner.made_way = Some(now);
            drop(inner);
            self.vacate();
        }
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
        let waiters = std::mem::take(&mut inner.waiters);
        drop(inner);
        // Dropped outside the lock: each gives up its place, which takes it.
        drop(idle);
        give_turns(waiters);
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
            waiting: inner.waiters.count(),
            longest_wait: inner.waiters.longest(Instant::now()),
            size: inner.limits.size,
        }
    }

    /// What servers are opened with.
    pub fn credential(&self) -> Proven {
        self.lock().credential.clone()
    }

    fn try_checkout(
        self: &Arc<Self>,
        wanted: &Settings,
        favourite: u64,
        since: Option<Instant>,
    ) -> Result<Ready, CheckoutError> {
        let mut inner = self.lock();
        if inner.closed || inner.drained {
            return Err(self.leaving());
        }
        // Who waits goes first; but a free server means that nobody waits.
        if let Some(server) = take_best(&mut inner.idle, wanted, favourite) {
            return Ok(Ready::Server(server));
        }
        let worker = net::worker();
        if inner.paused {
            return Ok(Ready::Wait(
                inner.waiters.join(worker, Instant::now()),
                None,
            ));
        }
        let now = Instant::now();
        let may_open = inner.has_place();
        let (others, waits) = (inner.open > 0, !inner.waiters.is_empty());
        let may_open = match &mut inner.refused {
            Some(refused) if may_open => {
                let is_full = refused.is_full() && others;
                // Who waits goes first.
                let may_try = !(is_full && waits) && refused.may_try(now);
                if !may_try && !is_full {
                    return Err(self.cannot_connect(refused.error()));
                }
                may_try
            }
            _ => may_open,
        };
        if may_open {
            inner.open += 1;
            let is_trial = inner.begin_trial();
            drop(inner);
            return Ok(Ready::Place(Place::of(self, is_trial)));
        }
        if inner.silence.is_some() && !others {
            let limit = inner.limits.connect_timeout;
            return Err(self.cannot_connect(ConnectError::Timeout(limit)));
        }
        let receiver = inner.waiters.join(worker, since.unwrap_or(now));
        Ok(Ready::Wait(receiver, Some(inner.limits.checkout_timeout)))
    }

    /// Why there is none for who has waited for so long: too few may be open here, or on the node.
    fn waited_in_vain(&self, waited: Duration) -> CheckoutError {
        let inner = self.lock();
        match &inner.refused {
            Some(refused) if inner.open > 0 && refused.is_full() => {
                self.cannot_connect(refused.error())
            }
            _ => CheckoutError::Timeout {
                node: self.node.name.clone(),
                waited,
            },
        }
    }

    fn cannot_connect(&self, error: ConnectError) -> CheckoutError {
        CheckoutError::Connect {
            node: self.node.name.clone(),
            error,
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

impl Inner {
    /// Whether there may be one more server, and new connections are answered as far as that is known.
    fn has_place(&self) -> bool {
        let is_shut = matches!(self.silence, Some(Silence::Asked | Silence::Tried));
        self.open < self.limits.size && !is_shut
    }

    /// A server is being opened. Whether by that it is found out if new connections are answered again: each that is not
    /// costs somebody a wait, so others are opened only when that one has been.
    fn begin_trial(&mut self) -> bool {
        let is_trial = self.silence == Some(Silence::MayTry);
        if is_trial {
            self.silence = Some(Silence::Tried);
        }
        is_trial
    }

    /// Whether the node gives no more than there are.
    fn has_all_it_gets(&self) -> bool {
        let is_full = || self.refused.as_ref().is_some_and(Refused::is_full);
        self.open > 0 && (self.silence.is_some() || is_full())
    }
}

enum Ready {
    Server(Box<Server>),
    Place(Place),
    /// For so long at most.
    Wait(oneshot::Receiver<Grant>, Option<Duration>),
}

/// Has everybody try again who waits.
fn give_turns(mut waiters: Waiters<Grant>) {
    while let Some(waiter) = waiters.first() {
        // Whoever has given up needs no turn.
        let _ = waiter.send(Grant::Turn);
    }
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

impl Place {
    /// One that has been counted.
    fn of(pool: &Arc<Pool>, is_trial: bool) -> Place {
        Place {
            pool: pool.clone(),
            is_refused: false,
            is_trial,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.pool.lock();
        while inner.open <= inner.limits.size
            && !inner.paused
            && inner.silence.is_none()
            && !self.is_refused
            && let Some(waiter) = inner.waiters.first()
        {
            if waiter.is_closed() {
                continue;
            }
            drop(inner);
            // The place goes to who waits longest. If that one has just given up, dropping the new
            // place does all this again.
            let _ = waiter.send(Grant::Place(Place::of(&self.pool, false)));
            return;
        }
        inner.open -= 1;
        if self.is_trial && inner.silence == Some(Silence::Tried) {
            // It has been given up before there was an outcome: the next one is to find out.
            inner.silence = Some(Silence::MayTry);
            drop(inner);
            self.pool.grow();
            return;
        }
        let is_given_up = self.is_refused || inner.silence.is_some();
        if !is_given_up || inner.open > 0 || inner.paused {
            return;
        }
        // There is no server that anybody could wait for.
        let waiters = std::mem::take(&mut inner.waiters);
        drop(inner);
        give_turns(waiters);
    }
}
