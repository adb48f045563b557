//! Owns: what comes of a position that a node has told, and who is woken for one that somebody waits for. Never: asks a
//! node.

use std::sync::{LazyLock, PoisonError};
use std::time::{Duration, Instant};

use super::Cluster;
use super::demand::Rest;
use super::node::{Node, Role};
use crate::session::consistency::{Floors, Freshness, Lsn, Replica, Tick};
use crate::session::route::{Candidate, Moment, Serving};

impl Cluster {
    /// The primary was at `lsn` when sample `tick` was taken, which began at `asked`.
    pub(super) fn sampled(&self, tick: Tick, lsn: Lsn, asked: Instant) {
        let somebody_waits = self.is_sample_wanted();
        self.clock.complete(tick, lsn);
        // Noted while the clock still has the sample after the last write.
        self.last_write_mark();
        self.mark_schemas();
        self.history
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .note(asked, lsn);
        for node in &self.topology().nodes {
            if node.position().is_some_and(|(_, at)| at >= lsn) {
                node.has_all_of(moment(asked));
            }
        }
        if somebody_waits {
            self.raise_goal(lsn);
        }
        self.has_moved();
    }

    /// Whether a replica is known to replay the primary's history. Before the first primary there is none, and
    /// nothing to compare with.
    pub(super) fn is_followed_by(&self, node: &Node) -> bool {
        let timeline = self.clock.timeline();
        timeline == 0 || node.timeline() == timeline
    }

    /// A replica has told of this timeline. Returns the one that it [is on](Node::tell_timeline), by which another node may
    /// be the primary.
    pub(super) fn note_timeline(&self, node: &Node, timeline: u32) -> u32 {
        let (timeline, is_news) = node.tell_timeline(timeline);
        if is_news {
            self.reconsider();
        }
        timeline
    }

    /// A replica has got to this timeline. `true` if it has left the primary's for it just now: then nothing counts
    /// that it has said before.
    pub(super) fn note_departure(&self, node: &Node, timeline: u32) -> bool {
        let _update = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.clock.timeline();
        let leaves = known != 0 && self.is_followed_by(node) && timeline > known;
        if leaves {
            node.forget_history();
            node.set_timeline(timeline);
        }
        leaves
    }

    /// A replica has replayed to `lsn`. `false` if that is not known to be a position in the primary's history.
    pub(super) fn note_position(&self, node: &Node, lsn: Lsn) -> bool {
        // Another history begins before this or after it.
        let _update = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = self.is_followed_by(node);
        if is_known {
            node.set_position(lsn);
            self.note_lag(node, lsn);
        }
        is_known
    }

    /// A replica has replayed to `lsn` of the primary's history.
    fn note_lag(&self, node: &Node, lsn: Lsn) {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let lag = history.lag(Instant::now(), lsn);
        let as_of = history.as_of(lsn);
        // As it was, while the probe reconnects.
        let newest = history.newest().unwrap_or(lsn);
        drop(history);
        if let Some(as_of) = as_of {
            node.has_all_of(moment(as_of));
        }
        let bytes = newest.0.saturating_sub(lsn.0);
        node.metrics.replay_lag_bytes.set(bytes as f64);
        let limit = &self.topology().config.lag;
        // Back only well below the limit: a node at the limit must not come and go.
        let lagging = match node.is_lagging() {
            false => lag > limit.max || bytes > limit.max_bytes,
            true => lag > limit.max / 2 || bytes > limit.max_bytes / 2,
        };
        if lagging != node.is_lagging() {
            let (cluster, node) = (&self.name, &node.name);
            if lagging {
                tracing::warn!(%cluster, %node, ?lag, bytes, "replica is over the lag limit");
            } else {
                tracing::info!(%cluster, %node, ?lag, bytes, "replica is under the lag limit again");
            }
        }
        node.set_lag(lag, lagging);
    }

    /// Asks for a sample of the primary's position that is started after `moment`: before long, as nobody waits.
    pub fn want_sample(&self, moment: Tick) {
        if self.demand.want_sample(moment) {
            self.wake_primary();
        }
    }

    /// Somebody waits for the sample that has been asked for: the primary is asked at once, if it has not just been.
    pub fn hurry(&self) {
        if self.demand.hurry() {
            self.wake_primary();
        }
    }

    /// Asks for replicas to be where the primary was after `moment`; for a sample of that first, if there is none.
    pub fn want_replicas_after(&self, moment: Tick) {
        match self.clock.after(moment) {
            Some(sample) => self.raise_goal(sample.lsn),
            None => self.want_sample(moment),
        }
    }

    /// Somebody waits for a replica that has replayed to `lsn`.
    pub(super) fn raise_goal(&self, lsn: Lsn) {
        if !self.demand.raise_goal(lsn) {
            return;
        }
        for node in &self.topology().nodes {
            if node.role() == Role::Replica && node.rests() {
                node.wake.notify_one();
            }
        }
    }

    pub(super) fn is_sample_wanted(&self) -> bool {
        self.demand.is_sample_wanted(self.newest_tick())
    }

    /// Whether the primary is to be asked at once.
    pub(super) fn is_urgent(&self) -> bool {
        self.demand.is_urgent(self.newest_tick())
    }

    fn newest_tick(&self) -> Tick {
        self.clock.latest().map_or(Tick(0), |sample| sample.tick)
    }

    pub(super) fn set_rest(&self, node: &Node, rest: Rest) {
        node.set_resting(rest != Rest::None);
        if self.is_primary(node) {
            self.demand.set_rest(rest);
        }
    }

    pub(super) fn goal(&self) -> Lsn {
        self.demand.goal()
    }

    /// The next of the primary's positions beyond `replayed`, if somebody waits for one there.
    pub(super) fn next_goal(&self, replayed: Lsn) -> Option<Lsn> {
        let goal = self.goal();
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        (replayed < goal).then(|| history.next(replayed).map_or(goal, |next| next.min(goal)))
    }

    fn wake_primary(&self) {
        if let Some(primary) = &self.topology().primary {
            primary.wake.notify_one();
        }
    }

    /// Waits until a replica has what `floors` ask for, and at most until `until`.
    pub async fn wait_at_gate(&self, floors: &Floors, until: Instant) {
        let opened = self.gate.join(floors.clone());
        // What has moved before that, nobody else looks at again.
        self.look_at_gate();
        let _ = tokio::time::timeout_at(until.into(), opened).await;
    }

    /// A sample has been taken, or a node has moved or come.
    pub(super) fn has_moved(&self) {
        self.moved.notify_waiters();
        if !self.gate.is_empty() {
            self.look_at_gate();
        }
    }

    fn look_at_gate(&self) {
        let topology = self.topology();
        let nodes = &topology.nodes;
        self.gate.look(|floors| {
            let mut serving = nodes.iter().filter(|node| node.serving() == Serving::Yes);
            serving.any(|node| floors.judge(&self.clock, nodes, &**node) == Freshness::Fresh)
        });
    }
}

/// A time as routing counts it.
pub fn moment(at: Instant) -> Moment {
    /// Long before any time that is asked for, as lags are taken from it.
    const BEFORE: Duration = Duration::from_secs(1);
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    let since = at.saturating_duration_since(*EPOCH) + BEFORE;
    Moment(since.as_micros() as u64)
}
