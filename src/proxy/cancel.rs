//! Owns: cancel keys, and bringing a cancel request to the server that works for the session. Never:
//! lets a request meet a server after the session has given it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use subtle::ConstantTimeEq;
use tokio::sync::Notify;

use crate::cluster::connect;
use crate::cluster::keys::{self, CancelKey, Listed};
use crate::telemetry;
use crate::wire::startup::{CANCEL_KEY_BYTES, PROTOCOL_3_2};

/// The length of a cancel key in protocol 3.2: what PostgreSQL 18 makes it.
const KEY_BYTES: usize = 32;

/// The longest a request may take to be delivered.
const DELIVERY: Duration = Duration::from_secs(5);

/// All sessions by the process id that their clients were told.
#[derive(Default)]
pub struct Sessions {
    by_pid: DashMap<i32, Arc<Handle>>,
}

/// What others may do to a session.
pub struct Handle {
    pub pid: i32,
    secret: [u8; KEY_BYTES],
    /// How much of the secret the client was told.
    told: AtomicUsize,
    /// The number of the server that works for it; 0 when there is none.
    server: AtomicU64,
    /// Requests that are on their way to that, or are about to be.
    deliveries: AtomicU32,
    delivered: Notify,
    /// Wakes the session when it is [asked to stop](Self::ask_to_stop).
    pub stop: Notify,
    stopping: AtomicBool,
}

impl Sessions {
    /// Registers a session under a new key.
    pub fn register(&self) -> Arc<Handle> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        loop {
            let pid = (NEXT.fetch_add(1, Ordering::Relaxed) & 0x7fff_ffff) as i32;
            let handle = Arc::new(Handle {
                pid,
                secret: rand::random(),
                told: AtomicUsize::new(0),
                server: AtomicU64::new(0),
                deliveries: AtomicU32::new(0),
                delivered: Notify::new(),
                stop: Notify::new(),
                stopping: AtomicBool::new(false),
            });
            if let dashmap::Entry::Vacant(place) = self.by_pid.entry(pid) {
                place.insert(handle.clone());
                return handle;
            }
        }
    }

    pub fn remove(&self, handle: &Handle) {
        self.by_pid.remove(&handle.pid);
    }

    pub fn len(&self) -> usize {
        self.by_pid.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_pid.is_empty()
    }

    /// Asks every session to end when it has nothing open.
    pub fn stop_all(&self) {
        for session in &self.by_pid {
            session.ask_to_stop();
        }
    }

    /// Cancels what the session with this key is doing. A wrong key does nothing, as with
    /// PostgreSQL.
    pub async fn cancel(&self, pid: i32, secret: &[u8]) {
        let Some(handle) = self.by_pid.get(&pid).map(|handle| handle.clone()) else {
            return;
        };
        // Keys of another length differ, and only that takes another time.
        if secret.is_empty() || !bool::from(handle.told().ct_eq(secret)) {
            tracing::info!(pid, "cancel request with a wrong key");
            return;
        }
        let delivery = handle.begin_delivery();
        let Some(server) = delivery.server() else {
            return;
        };
        let node = &server.node;
        let sent = connect::cancel(node, server.pid, &server.secret, DELIVERY).await;
        drop(delivery);
        match sent {
            Ok(()) => telemetry::metrics().cancels.increment(1),
            Err(error) => tracing::warn!(node = %node.name, %error, "cancel request not delivered"),
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
    fn told(&self) -> &[u8] {
        self.secret
            .get(..self.told.load(Ordering::Relaxed))
            .unwrap_or(&[])
    }

    /// Asks the session to end when it has nothing open.
    pub fn ask_to_stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.stop.notify_one();
    }

    #[inline]
    pub fn is_asked_to_stop(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The session works with this server from now on.
    #[inline]
    pub fn works_with(&self, server: &Listed) {
        self.server.store(server.number(), Ordering::Release);
    }

    /// The session is about to give its server back. `false` while requests may be on their way to it,
    /// which have to be [waited for](Self::outwaits_deliveries).
    #[inline]
    pub fn leaves_server(&self) -> bool {
        // A request counts itself before it looks for the server: either it finds none, or it is
        // counted here.
        self.server.store(0, Ordering::SeqCst);
        self.deliveries.load(Ordering::SeqCst) == 0
    }

    /// Waits for requests that are on their way.
    pub async fn outwaits_deliveries(&self) {
        loop {
            // Made before the look, so that no delivery after it is missed.
            let delivered = self.delivered.notified();
            if self.leaves_server() {
                return;
            }
            delivered.await;
        }
    }

    fn begin_delivery(&self) -> Delivery<'_> {
        self.deliveries.fetch_add(1, Ordering::SeqCst);
        Delivery(self)
    }
}

/// A request that is on its way to a session's server, which is not given back for as long as this
/// lives.
struct Delivery<'a>(&'a Handle);

impl Delivery<'_> {
    fn server(&self) -> Option<Arc<CancelKey>> {
        keys::find(self.0.server.load(Ordering::SeqCst))
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        self.0.deliveries.fetch_sub(1, Ordering::SeqCst);
        self.0.delivered.notify_waiters();
    }
}
