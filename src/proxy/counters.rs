//! Owns: what every query is counted by, and for how long sessions' reads are held to the primary. Never: has a
//! query wait for its count.

use std::sync::LazyLock;
use std::time::Instant;

use super::acquire::{Placed, Side};
use super::slow::Texts;
use super::{Client, again};
use crate::session::route::Reason;
use crate::telemetry::{self, LocalCounter, LocalHistogram};

/// Handles that are used for every query.
pub(super) struct Counters {
    /// By the reason, which tells the route.
    pub(super) queries: [LocalCounter; Reason::ALL.len()],
    primary_seconds: LocalHistogram,
    replica_seconds: LocalHistogram,
}

impl Counters {
    pub(super) fn shared() -> &'static Counters {
        static COUNTERS: LazyLock<Counters> = LazyLock::new(|| {
            again::announce();
            Counters {
                queries: Reason::ALL
                    .map(|reason| telemetry::queries(Side::of(reason).name(), reason.name())),
                primary_seconds: telemetry::query_seconds(Side::Primary.name()),
                replica_seconds: telemetry::query_seconds(Side::Replica.name()),
            }
        });
        &COUNTERS
    }
}

impl Client {
    /// `started` is when the batch was planned, `lent` when its server was found; `gone` is what it was, if the client's
    /// buffer has it no more. Returns the present time.
    pub(super) fn count(
        &mut self,
        placed: &Placed,
        (started, lent): (Instant, Instant),
        gone: Option<&Texts>,
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
                placed.server.node().latency.note(served);
            }
        } else {
            counters.primary_seconds.record(took);
        }
        let limit = self.topology.load().config.log.slow_query;
        if limit.is_some_and(|limit| took >= limit) {
            self.log_slow(placed, took, lent - started, gone);
        }
        now
    }

    /// A read has had to go to the primary for the session's own sake.
    pub(super) fn pin(&mut self) {
        if self.pinned.is_none() {
            self.pinned = Some(Instant::now());
            telemetry::metrics().pinned_sessions.increment(1.0);
        }
    }

    /// The session's reads are free again; or it is over.
    pub(super) fn unpin(&mut self, measure: bool) {
        if let Some(since) = self.pinned.take() {
            telemetry::metrics().pinned_sessions.decrement(1.0);
            if measure {
                telemetry::metrics().pin_seconds.record(since.elapsed());
            }
        }
    }
}
