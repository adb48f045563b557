//! Owns: whose idle server is closed where a node has no room for another one. Never: closes one that is lent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::server::Server;
use super::{Pool, PoolKey};
use crate::cluster::connect::ConnectError;
use crate::cluster::node::Node;
use crate::config;

impl Pool {
    /// Closes the server that has been idle longest in another pool of the node, among those that take the room
    /// which this error says there is none of. `false` if there is none to close.
    pub(super) async fn make_room(&self, error: &ConnectError) -> bool {
        /// A pool that has servers takes none from another one that has only just used them, and would take them
        /// back.
        const IDLE_ENOUGH: Duration = Duration::from_secs(1);
        let idle_min = match self.lock().open > 1 {
            true => IDLE_ENOUGH,
            false => Duration::ZERO,
        };
        let PoolKey { database, user } = &self.key;
        let pools = self.node.pools.iter().map(|pool| pool.clone());
        let others = pools
            .filter(|pool| !std::ptr::eq(&**pool, self) && pool.takes_room(error, database, user));
        let longest = longest_idle(others);
        let Some((_, pool)) = longest.filter(|(since, _)| since.elapsed() >= idle_min) else {
            return false;
        };
        let limit = pool.lock().limits.connect_timeout;
        // If it has just been lent, another one may be idle.
        if let Some(server) = pool.take_longest_idle() {
            let (key, to) = (&pool.key, &self.key);
            tracing::debug!(node = %self.node.name, ?key, ?to, "idle server closed to make room");
            server.close(limit).await;
        }
        true
    }

    /// Whether its servers take the room which this error says there is none of for whoever connects to that database as
    /// that user.
    fn takes_room(&self, error: &ConnectError, database: &str, user: &str) -> bool {
        match error.routine() {
            // The limits of a role and of a database.
            Some(b"InitializeSessionUserId") => *self.key.user == *user,
            Some(b"CheckMyDatabase") => *self.key.database == *database,
            _ => true,
        }
    }

    /// The server that has been idle longest, if there is one.
    fn take_longest_idle(&self) -> Option<Box<Server>> {
        let mut inner = self.lock();
        (!inner.idle.is_empty()).then(|| inner.idle.remove(0))
    }

    /// Since when the server has been idle that has been for longest.
    fn idle_since(&self) -> Option<Instant> {
        // The last given back is the last of them.
        self.lock().idle.first().map(|server| server.idle_since)
    }
}

impl Node {
    /// Closes the server that has been idle longest on it, among those that take the room which this error says there is
    /// none of for the monitor: that may not wait for one, and needs it more.
    pub fn make_room(&self, error: &ConnectError, monitor: &config::Monitor) {
        let pools = self.pools.iter().map(|pool| pool.clone());
        let in_the_way =
            pools.filter(|pool| pool.takes_room(error, &monitor.database, &monitor.user));
        if let Some((_, pool)) = longest_idle(in_the_way) {
            drop(pool.take_longest_idle());
        }
    }
}

/// Of these, the pool that has the server which has been idle longest, and since when that has.
fn longest_idle(pools: impl Iterator<Item = Arc<Pool>>) -> Option<(Instant, Arc<Pool>)> {
    let idle = pools.filter_map(|pool| Some((pool.idle_since()?, pool)));
    idle.min_by_key(|(since, _)| *since)
}
