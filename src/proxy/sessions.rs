//! Owns: the sessions there are: who each is, what it is doing, how many there may be, and how each is
//! asked to end. Never: does anything for one.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use dashmap::DashMap;
use tokio::sync::Notify;

use crate::cluster::Cluster;
use crate::cluster::keys::{self, CancelKey, Listed};
use crate::cluster::pool::PoolKey;
use crate::net::stream::{Peer, Stream};
use crate::wire::startup::{CANCEL_KEY_BYTES, PROTOCOL_3_2};

/// The length of a cancel key in protocol 3.2: what PostgreSQL 18 makes it.
const KEY_BYTES: usize = 32;

/// See [`Handle::wanted`].
const END_WHEN_IDLE: u8 = 1;
const END_AT_ONCE: u8 = 2;
const LOOK_AT_SERVER: u8 = 4;

/// See [`Handle::deliveries`]: one has been given up that may come to the server nevertheless.
pub(super) const GIVEN_UP: u32 = 1 << 31;

/// All sessions by the process id that their clients were told.
#[derive(Default)]
pub struct Sessions {
    by_pid: DashMap<i32, Arc<Handle>>,
    /// Taken by those that are not admitted yet, and by those that are. Apart, so that connections of which
    /// nobody knows who they are keep no client out.
    guests: Places,
    clients: Places,
}

/// How many places are taken.
#[derive(Default)]
struct Places(AtomicUsize);

impl Places {
    /// Takes one, unless `max` are taken.
    fn take(&self, max: usize) -> bool {
        let free = |taken: usize| (taken < max).then_some(taken + 1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        self.0.fetch_update(set, fetch, free).is_ok()
    }

    fn give_up(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What others see of a session, and may do to it.
pub struct Handle {
    pub pid: i32,
    secret: [u8; KEY_BYTES],
    /// How much of the secret the client was told.
    told: AtomicUsize,
    /// The number of the server that works for it; 0 when there is none.
    pub(super) server: AtomicU64,
    /// Cancel requests that are on their way to that, or are about to be; and [`GIVEN_UP`].
    pub(super) deliveries: AtomicU32,
    pub(super) delivered: Notify,
    /// The number of the server that it keeps between two batches; 0 when there is none.
    kept: AtomicU64,
    /// Since when it waits for a server, as [`now`] counts; 0 when it does not.
    waits_since: AtomicU64,
    /// Wakes the session when it is [asked to end](Self::ask_to_stop), if it has no task that
    /// listens.
    pub stop: Notify,
    /// The task to wake when something is wanted of it.
    task: Mutex<Option<Waker>>,
    /// What is wanted of it: [`END_WHEN_IDLE`], [`END_AT_ONCE`], [`LOOK_AT_SERVER`], or 0.
    wanted: AtomicU8,
    /// It has a client's place, and no longer a guest's.
    admitted: AtomicBool,
    /// A cancel request has come while no server worked for it.
    pub(super) cancelled: Notify,
    /// Boxed, and there only once it has logged in.
    who: OnceLock<Box<Who>>,
}

/// Who has logged in.
pub struct Who {
    /// `None` for one of the console.
    pub cluster: Option<Arc<Cluster>>,
    /// Of no database where all of a cluster is replicated.
    pub key: PoolKey,
    pub peer: Peer,
    /// What it is encrypted by, if it is.
    pub tls: Option<Box<str>>,
    /// What it called itself when it logged in.
    pub application_name: Box<str>,
    pub since: SystemTime,
}

impl Who {
    /// Who has just logged in over this stream.
    pub fn new(
        cluster: Option<Arc<Cluster>>,
        key: &PoolKey,
        stream: &Stream,
        application_name: &str,
    ) -> Who {
        Who {
            cluster,
            key: key.clone(),
            peer: stream.peer(),
            tls: stream.tls().map(|tls| tls.parameters().to_string().into()),
            application_name: application_name.into(),
            since: SystemTime::now(),
        }
    }

    /// The database of a cluster's that it uses.
    pub fn database(&self) -> Option<&str> {
        let name = &*self.key.database;
        (self.cluster.is_some() && !name.is_empty()).then_some(name)
    }
}

/// What a session is doing.
pub enum Doing {
    Nothing,
    /// It waits for a server, for so long by now.
    Waiting(Duration),
    /// A server works for it.
    Working(Arc<CancelKey>),
    /// It keeps a server, of which it asks nothing at the moment: a transaction is open there, or what
    /// it has left there cannot be moved.
    Keeping(Arc<CancelKey>),
}

impl Sessions {
    /// Registers a connection under a new key, as a guest; `None` if there are `guests_max`.
    pub fn register(&self, guests_max: usize) -> Option<Arc<Handle>> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        if !self.guests.take(guests_max) {
            return None;
        }
        loop {
            let pid = (NEXT.fetch_add(1, Ordering::Relaxed) & 0x7fff_ffff) as i32;
            let handle = Arc::new(Handle {
                pid,
                secret: rand::random(),
                told: AtomicUsize::new(0),
                server: AtomicU64::new(0),
                deliveries: AtomicU32::new(0),
                delivered: Notify::new(),
                kept: AtomicU64::new(0),
                waits_since: AtomicU64::new(0),
                stop: Notify::new(),
                task: Mutex::default(),
                wanted: AtomicU8::new(0),
                admitted: AtomicBool::new(false),
                cancelled: Notify::new(),
                who: OnceLock::new(),
            });
            if let dashmap::Entry::Vacant(place) = self.by_pid.entry(pid) {
                place.insert(handle.clone());
                return Some(handle);
            }
        }
    }

    /// Gives a guest the place of a client; `false` if there are `clients_max`.
    pub fn admit(&self, handle: &Handle, clients_max: usize) -> bool {
        let admitted = self.clients.take(clients_max);
        if admitted {
            handle.admitted.store(true, Ordering::Relaxed);
            self.guests.give_up();
        }
        admitted
    }

    pub fn remove(&self, handle: &Handle) {
        self.by_pid.remove(&handle.pid);
        match handle.admitted.load(Ordering::Relaxed) {
            true => self.clients.give_up(),
            false => self.guests.give_up(),
        }
    }

    pub fn find(&self, pid: i32) -> Option<Arc<Handle>> {
        self.by_pid.get(&pid).map(|handle| handle.clone())
    }

    pub fn len(&self) -> usize {
        self.by_pid.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_pid.is_empty()
    }

    /// All of them, in the order in which they came.
    pub fn all(&self) -> Vec<Arc<Handle>> {
        let mut all: Vec<_> = self.by_pid.iter().map(|handle| handle.clone()).collect();
        all.sort_by_key(|handle| handle.pid);
        all
    }

    /// Asks every session to end when it has nothing open.
    pub fn stop_all(&self) {
        for session in &self.by_pid {
            session.ask_to_stop();
        }
    }

    /// Has every session that a server works for look at that: it may wait for an answer that never comes. Or only
    /// those whose server is on a node that is lost.
    pub fn look_at_servers(&self, all: bool) {
        for session in &self.by_pid {
            let number = session.server.load(Ordering::Relaxed);
            let is_lost = || keys::find(number).is_some_and(|key| key.node.loss().is_some());
            if number != 0 && (all || is_lost()) {
                session.want(LOOK_AT_SERVER);
            }
        }
    }
}

impl Handle {
    /// The secret as a client of this protocol version is told it: all of it from 3.2 on, and four
    /// bytes before.
    pub fn tell(&self, version: i32) -> &[u8] {
        let bytes = match version >= PROTOCOL_3_2 {
            true => KEY_BYTES,
            false => *CANCEL_KEY_BYTES.start(),
        };
        self.told.store(bytes, Ordering::Relaxed);
        self.told()
    }

    /// Nothing, before the client is told.
    pub(super) fn told(&self) -> &[u8] {
        self.secret
            .get(..self.told.load(Ordering::Relaxed))
            .unwrap_or(&[])
    }

    /// It has logged in.
    pub fn introduce(&self, who: Who) {
        // A session logs in once.
        let _ = self.who.set(Box::new(who));
    }

    /// `None` before it has logged in.
    pub fn who(&self) -> Option<&Who> {
        self.who.get().map(|who| &**who)
    }

    /// Asks the session to end when it has nothing open.
    pub fn ask_to_stop(&self) {
        self.want(END_WHEN_IDLE);
        self.stop.notify_one();
    }

    /// Has the session end at once, whatever it has open.
    pub(super) fn end_at_once(&self) {
        self.want(END_AT_ONCE);
        self.stop.notify_one();
        self.cancelled.notify_waiters();
    }

    fn want(&self, what: u8) {
        self.wanted.fetch_or(what, Ordering::SeqCst);
        let task = self.task.lock();
        if let Some(task) = &*task.unwrap_or_else(PoisonError::into_inner) {
            task.wake_by_ref();
        }
    }

    /// This task is to be woken from now on. It need say so once, before it looks whether something is
    /// [wanted](Self::is_wanted).
    pub(super) fn listen(&self, task: &Waker) {
        let listening = self.task.lock();
        *listening.unwrap_or_else(PoisonError::into_inner) = Some(task.clone());
    }

    /// Whether there is something to be done for others: the one look that it takes in the usual case.
    #[inline]
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) != 0
    }

    /// Whether the session is to end, if it has nothing open or if it has.
    #[inline]
    pub fn must_end(&self, is_idle: bool) -> bool {
        let wanted = self.wanted.load(Ordering::Relaxed);
        wanted != 0 && (wanted & END_AT_ONCE != 0 || is_idle && wanted & END_WHEN_IDLE != 0)
    }

    /// Whether it is to look at what its server's node is known to be.
    pub(super) fn is_to_look(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) & LOOK_AT_SERVER != 0
    }

    /// The same, once for each time that it was asked to.
    pub(super) fn takes_look(&self) -> bool {
        self.is_to_look()
            && self.wanted.fetch_and(!LOOK_AT_SERVER, Ordering::SeqCst) & LOOK_AT_SERVER != 0
    }

    /// The session works with this server from now on.
    #[inline]
    pub fn works_with(&self, server: &Listed) {
        self.server.store(server.number(), Ordering::Release);
    }

    /// The session keeps this server, or none, until its next batch.
    #[inline]
    pub fn keeps(&self, server: Option<&Listed>) {
        let number = server.map_or(0, Listed::number);
        self.kept.store(number, Ordering::Relaxed);
    }

    /// It waits for a server from now on; or no more.
    pub fn waits(&self, waits: bool) {
        let since = if waits { now() } else { 0 };
        self.waits_since.store(since, Ordering::Relaxed);
    }

    /// What it is doing now. By the time that this is read it may be something else.
    pub fn doing(&self) -> Doing {
        if let Some(server) = keys::find(self.server.load(Ordering::Relaxed)) {
            return Doing::Working(server);
        }
        let since = self.waits_since.load(Ordering::Relaxed);
        if since != 0 {
            let waited = now().saturating_sub(since);
            return Doing::Waiting(Duration::from_micros(waited));
        }
        match keys::find(self.kept.load(Ordering::Relaxed)) {
            Some(server) => Doing::Keeping(server),
            None => Doing::Nothing,
        }
    }
}

/// A moment, in microseconds since a while before the first time that this is asked.
fn now() -> u64 {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    // Never 0, which means none.
    EPOCH.elapsed().as_micros() as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_keep_no_client_out() {
        let sessions = Sessions::default();
        let guests: Vec<_> = (0..3).map_while(|_| sessions.register(2)).collect();
        assert_eq!(guests.len(), 2);
        assert!(sessions.admit(&guests[0], 1) && !sessions.admit(&guests[1], 1));
        // Who is admitted leaves its place to the next.
        let third = sessions.register(2).expect("a place");
        assert!(sessions.register(2).is_none());
        sessions.remove(&guests[0]);
        assert!(sessions.admit(&third, 1) && sessions.register(2).is_some());
    }

    #[test]
    fn no_storm_takes_more_places_than_there_are() {
        let sessions = Sessions::default();
        let admitted = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let guest = sessions.register(800).expect("a place");
                        admitted.fetch_add(sessions.admit(&guest, 50).into(), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(admitted.into_inner(), 50);
    }
}
