//! Owns: cancel keys, and bringing a cancel request to the server that works for the session. Never:
//! lets a request meet a server after the session has given it back.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use subtle::ConstantTimeEq;
use tokio::sync::Notify;

use crate::cluster::connect;
use crate::cluster::pool::CancelKey;
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
    working: Mutex<Working>,
    delivered: Notify,
    /// Asks the session to end when it has nothing open.
    pub stop: Notify,
}

#[derive(Default)]
struct Working {
    server: Option<Arc<CancelKey>>,
    /// Requests that are on their way to `server`.
    deliveries: u32,
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
                working: Mutex::default(),
                delivered: Notify::new(),
                stop: Notify::new(),
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
            session.stop.notify_one();
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
        let Some(server) = handle.begin_delivery() else {
            return;
        };
        let node = &server.node;
        let sent = connect::cancel(node, server.pid, &server.secret, DELIVERY).await;
        handle.end_delivery();
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

    /// The session works with this server from now on.
    pub fn works_with(&self, server: &Arc<CancelKey>) {
        self.lock().server = Some(server.clone());
    }

    /// The session is about to give its server back. `false` while requests are on their way to it,
    /// which have to be [waited for](Self::outwaits_deliveries).
    pub fn leaves_server(&self) -> bool {
        let mut working = self.lock();
        working.server = None;
        working.deliveries == 0
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

    fn begin_delivery(&self) -> Option<Arc<CancelKey>> {
        let mut working = self.lock();
        let server = working.server.clone()?;
        working.deliveries += 1;
        Some(server)
    }

    fn end_delivery(&self) {
        self.lock().deliveries -= 1;
        self.delivered.notify_waiters();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Working> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
