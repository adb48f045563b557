//! Owns: bringing a cancel request to the server that works for the session. Never: lets a request meet
//! a server after the session has given it back: one that a request may still come to is lent to nobody else.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use subtle::ConstantTimeEq;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::sessions::{GIVEN_UP, Handle, Sessions};
use crate::cluster::connect;
use crate::cluster::keys::{self, CancelKey};
use crate::telemetry;

/// The longest a request may take to be delivered.
const DELIVERY: Duration = Duration::from_secs(5);

impl Sessions {
    /// Cancels what the session with this key is doing. A wrong key does nothing, as with
    /// PostgreSQL.
    pub async fn cancel(&self, pid: i32, secret: &[u8]) {
        let Some(handle) = self.find(pid) else {
            return;
        };
        // Keys of another length differ, and only that takes another time.
        if secret.is_empty() || !bool::from(handle.told().ct_eq(secret)) {
            tracing::info!(pid, "cancel request with a wrong key");
            return;
        }
        let delivery = handle.begin_delivery();
        let Some(server) = delivery.server() else {
            // It may wait for one.
            handle.cancelled.notify_waiters();
            return;
        };
        delivery.deliver(&server).await;
    }

    /// Ends the session with this process id, and what a server does for it. `false` if there is none.
    pub async fn kill(&self, pid: i32) -> bool {
        let Some(handle) = self.find(pid) else {
            return false;
        };
        handle.kill().await;
        true
    }

    /// Ends every session, and what servers do for them. Returns when all have gone, after twice the `limit` at the
    /// latest.
    pub async fn kill_all(&self, limit: Duration) {
        const LOOK: Duration = Duration::from_millis(5);
        let mut kills = JoinSet::new();
        for handle in self.all() {
            kills.spawn(async move { handle.kill().await });
        }
        let all_delivered = async { while kills.join_next().await.is_some() {} };
        let _ = timeout(limit, all_delivered).await;
        // A session waits for the request that is on its way to its server, which a node that stands still never
        // takes.
        kills.shutdown().await;
        let all_gone = async {
            while !self.is_empty() {
                sleep(LOOK).await;
            }
        };
        let _ = timeout(limit, all_gone).await;
    }
}

impl Handle {
    /// Ends the session, and what a server does for it.
    async fn kill(&self) {
        let delivery = self.begin_delivery();
        let server = delivery.server();
        self.end_at_once();
        if let Some(server) = server {
            delivery.deliver(&server).await;
        }
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

    /// Waits for requests that are on their way. `true` if one has been given up that may come to the server
    /// nevertheless, at any time.
    pub async fn outwaits_deliveries(&self) -> bool {
        loop {
            // Made before the look, so that no delivery after it is missed.
            let delivered = self.delivered.notified();
            self.server.store(0, Ordering::SeqCst);
            match self.deliveries.load(Ordering::SeqCst) {
                0 => return false,
                GIVEN_UP => {
                    self.deliveries.fetch_and(!GIVEN_UP, Ordering::SeqCst);
                    return true;
                }
                _ => delivered.await,
            }
        }
    }

    fn begin_delivery(&self) -> Delivery<'_> {
        self.deliveries.fetch_add(1, Ordering::SeqCst);
        Delivery {
            session: self,
            may_come: false,
        }
    }
}

/// A request that is on its way to a session's server, which is not given back for as long as this
/// lives.
struct Delivery<'a> {
    session: &'a Handle,
    /// It may have been sent, and has not been done.
    may_come: bool,
}

impl Delivery<'_> {
    fn server(&self) -> Option<Arc<CancelKey>> {
        keys::find(self.session.server.load(Ordering::SeqCst))
    }

    async fn deliver(mut self, server: &CancelKey) {
        let node = &server.node;
        // Noted before it is known what comes of it: whoever waits for that may wait no more.
        let may_come = &mut self.may_come;
        match connect::cancel(node, server.pid, &server.secret, DELIVERY, may_come).await {
            Ok(()) => {
                self.may_come = false;
                telemetry::metrics().cancels.increment(1);
            }
            Err(error) => tracing::warn!(node = %node.name, %error, "cancel request not delivered"),
        }
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        let Handle {
            deliveries,
            delivered,
            ..
        } = self.session;
        if self.may_come {
            deliveries.fetch_or(GIVEN_UP, Ordering::SeqCst);
        }
        deliveries.fetch_sub(1, Ordering::SeqCst);
        delivered.notify_waiters();
    }
}
