//! Owns: the hold: what a batch that needs the primary does while there is none. Never: holds one for longer than
//! `failover.hold` at a stretch, but for a pause.

use std::time::{Duration, Instant};

use tokio::sync::futures::Notified;
use tokio::time::{sleep, timeout};

use super::Client;
use super::acquire::{Placed, Side, writing};
use super::refusal::Refusal;
use super::wishes::Special;
use crate::cluster::Cluster;
use crate::cluster::pool::{CheckoutError, Patience};
use crate::config::Level;
use crate::session::route::Reason;
use crate::telemetry;

/// While there is no primary, it is looked for at least this often.
pub(super) const HOLD_STEP: Duration = Duration::from_millis(50);

/// A batch that waits for a primary, for as long as this lives.
pub(super) struct Held {
    /// From when on that counts.
    since: Instant,
}

impl Held {
    fn begin() -> Held {
        telemetry::metrics().holds.increment(1);
        telemetry::metrics().held.increment(1.0);
        Held {
            since: Instant::now(),
        }
    }

    /// Waits for another primary, for a step at most; in a pause of the `database` for as long as that lasts.
    ///
    /// # Errors
    /// When it has been waited for as long as that may be.
    async fn wait(
        &mut self,
        cluster: &Cluster,
        database: &str,
        changed: Notified<'_>,
    ) -> Result<(), Refusal> {
        if !cluster.is_paused(database) {
            return wait_since(self.since, cluster, changed).await;
        }
        let _ = timeout(HOLD_STEP, changed).await;
        self.begin_anew();
        Ok(())
    }

    /// There has been a primary, or nobody was to have one.
    fn begin_anew(&mut self) {
        self.since = Instant::now();
    }

    /// What has passed since `then` does not count.
    fn leave_out(&mut self, then: Instant) {
        self.since += self.since.max(then).elapsed();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        telemetry::metrics().held.decrement(1.0);
    }
}

/// Waits for another primary, for a step at most, where that has been waited for since then.
///
/// # Errors
/// When it has been waited for as long as that may be.
pub(super) async fn wait_since(
    since: Instant,
    cluster: &Cluster,
    changed: Notified<'_>,
) -> Result<(), Refusal> {
    let waited = since.elapsed();
    let hold = cluster.topology().config.failover.hold;
    let left = hold.saturating_sub(waited);
    if left.is_zero() {
        return Err(Refusal::no_primary(cluster, waited));
    }
    tokio::select! {
        () = changed => {}
        () = sleep(left.min(HOLD_STEP)) => {}
    }
    Ok(())
}

impl Client {
    /// Whether the planned read must see what is of a newer history than the primary.
    pub(super) fn is_ahead(&self, special: Option<&Special>) -> bool {
        let by_key = special.map_or(0, |special| special.bounds.timeline());
        let timeline = by_key.max(self.session.floors.timeline(&self.cluster.clock));
        let level = special.map_or(self.base.level, |special| special.policy.level);
        timeline > 0 && level >= Level::Session && self.cluster.topology().is_behind(timeline)
    }

    /// Waits for a primary of that history: there has been a failover that is not known of here.
    pub(super) async fn wait_for_history(
        &self,
        special: Option<&Special>,
    ) -> Result<Held, Refusal> {
        let cluster = &self.cluster;
        let mut held = Held::begin();
        cluster.look_for_primary();
        loop {
            let changed = cluster.changed.notified();
            if !self.is_ahead(special) {
                return Ok(held);
            }
            held.wait(cluster, &self.key.database, changed).await?;
        }
    }

    /// A server of the next primary, or of the present one when it has one to lend.
    pub(super) async fn wait_for_primary(
        &mut self,
        mut held: Option<Held>,
        reason: Reason,
    ) -> Result<Placed, Refusal> {
        let cluster = self.cluster.clone();
        loop {
            let changed = cluster.changed.notified();
            self.keep_nothing_of_replicas();
            let (primary, config) = {
                let topology = cluster.topology();
                (topology.primary.clone(), topology.config.clone())
            };
            if let Some(node) = primary {
                let pool = self.pool(&node, &config);
                let asked = Instant::now();
                let patience = Patience {
                    for_resume: self.held_replica.is_none(),
                    ..Patience::ALL
                };
                let settings = self.session.settings();
                match pool
                    .checkout_with(patience, settings, self.last_written)
                    .await
                {
                    Err(CheckoutError::Paused) => {
                        held.iter_mut().for_each(Held::begin_anew);
                        continue;
                    }
                    // It may have been waited for as long as a pause is.
                    Ok(server) if !cluster.is_primary(&node) => {
                        server.give_back();
                        held.iter_mut().for_each(Held::begin_anew);
                        continue;
                    }
                    Ok(server) => match writing(server, &node) {
                        Some(server) => return Ok(Placed::on_primary(server, reason)),
                        None => node.wake.notify_one(),
                    },
                    Err(CheckoutError::Connect { error, .. }) if error.is_node_away() => {
                        node.wake.notify_one();
                    }
                    // It was the primary as long as it was waited for.
                    Err(CheckoutError::Leaving { .. }) => {
                        held.iter_mut().for_each(Held::begin_anew);
                    }
                    Err(error) => return Err(error.into()),
                }
                // What it takes to connect in vain counts. What is longer was a wait for a free server, or for the end of a
                // pause.
                let connected = asked + config.pool.connect_timeout;
                held.iter_mut().for_each(|held| held.leave_out(connected));
            }
            let held = held.get_or_insert_with(Held::begin);
            held.wait(&cluster, &self.key.database, changed).await?;
        }
    }

    /// In session mode: gives up the server of a replica that the session has beside what it waits for, if its database
    /// is paused. The end of that is not to wait for who waits for it.
    fn keep_nothing_of_replicas(&mut self) {
        if self.held_replica.is_some() && self.cluster.is_paused(&self.key.database) {
            let server = self.held_replica.take();
            server
                .into_iter()
                .for_each(|server| self.clean(server, Side::Replica));
        }
    }
}
