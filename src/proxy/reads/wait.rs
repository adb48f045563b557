//! Owns: what a read remembers while it waits for a replica. Never: waits itself, or looks at a replica.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Otherwise, THEN_PRIMARY, otherwise};
use crate::cluster::pool::CheckoutError;
use crate::config::Config;
use crate::proxy::acquire::is_only_for_replicas;
use crate::proxy::again::Again;
use crate::proxy::wishes::Special;
use crate::session::consistency::NodeId;
use crate::session::route::{Reason, Tried};
use crate::telemetry;

/// A read that waits for a replica.
pub(super) struct ReadWait {
    /// As it was when the read came.
    pub(super) config: Arc<Config>,
    /// Replicas that are left out from the beginning.
    pub(super) begun: Tried,
    /// Those, and what has been tried since the last wait.
    pub(super) tried: Tried,
    /// It is not to run on the primary, whatever the configuration says.
    pub(super) only_on_replicas: bool,
    /// Since when it waits at the gate.
    gate: Option<Instant>,
    /// Since when it waits for any replica to be fresh, if it does.
    waits: Option<Instant>,
    /// Why the last replica that was tried had no server, if that is worth telling.
    pub(super) missed: Option<CheckoutError>,
    /// It has waited for a server in vain: it does not wait for another replica's.
    pub(super) has_waited: bool,
    /// It waits where a node gives fewer servers than there may be.
    pub(super) is_patient: bool,
}

impl ReadWait {
    pub(super) fn new(
        config: Arc<Config>,
        again: Option<&Again>,
        special: Option<&Special>,
    ) -> ReadWait {
        let begun = again.map(|again| again.tried).unwrap_or_default();
        ReadWait {
            config,
            begun,
            tried: begun,
            only_on_replicas: is_only_for_replicas(again),
            gate: None,
            waits: None,
            missed: None,
            has_waited: false,
            is_patient: special.is_some_and(|special| special.node.is_some()),
        }
    }

    /// Until when it waits at the gate; `None` if it has waited there for as long as it may.
    pub(super) fn at_gate(&mut self) -> Option<Instant> {
        let since = *self.gate.get_or_insert_with(Instant::now);
        let until = since + self.config.consistency.gate_wait;
        if Instant::now() < until {
            return Some(until);
        }
        if self.waits.is_none() {
            telemetry::metrics().gate_missed.increment(1);
            telemetry::metrics()
                .gate_wait_seconds
                .record(since.elapsed());
        }
        None
    }

    /// A replica is fresh enough: counts the wait at the gate, if there was one.
    pub(super) fn pass_gate(&self) {
        if let Some(since) = self.gate.filter(|_| self.waits.is_none()) {
            telemetry::metrics().gate_passed.increment(1);
            telemetry::metrics()
                .gate_wait_seconds
                .record(since.elapsed());
        }
    }

    /// Why it is a replica's that has a server.
    pub(super) fn reason(&self, special: Option<&Special>) -> Reason {
        match special.and_then(|special| special.node.as_ref()) {
            Some(_) => Reason::NamedReplica,
            None if self.gate.is_some() || self.waits.is_some() => Reason::Gate,
            None => Reason::Fresh,
        }
    }

    /// This replica had no server for it.
    pub(super) fn miss(&mut self, node: NodeId, error: Option<CheckoutError>) {
        self.tried.extend(Some(node));
        self.has_waited |= match &error {
            Some(CheckoutError::Timeout { .. }) => true,
            Some(error) => self.is_patient && error.is_for_lack_of_room(),
            None => false,
        };
        self.missed = error.or(self.missed.take());
    }

    /// What it does that no replica will do for, for this reason; `None` if that would be to go to the primary, and
    /// it must not.
    pub(super) fn otherwise(&self, reason: Reason, special: Option<&Special>) -> Option<Otherwise> {
        match otherwise(&self.config, reason, special) {
            Otherwise::Primary if self.only_on_replicas => None,
            THEN_PRIMARY if self.only_on_replicas => Some(Otherwise::Wait {
                then_primary: false,
            }),
            otherwise => Some(otherwise),
        }
    }

    /// Whether all replicas are full and it has not waited for a server yet.
    pub(super) fn may_turn_patient(&self) -> bool {
        let missed = self.missed.as_ref();
        let is_crowded = missed.is_some_and(CheckoutError::is_for_lack_of_room);
        is_crowded && !self.has_waited && !self.is_patient
    }

    /// Begins anew, and waits for a server wherever it comes to.
    pub(super) fn turn_patient(&mut self) {
        (self.tried, self.missed, self.is_patient) = (self.begun, None, true);
    }

    /// For how long it may still wait for a replica to be fresh, from the first time that this is asked.
    pub(super) fn left(&mut self, otherwise: Otherwise) -> Duration {
        let since = *self.waits.get_or_insert_with(Instant::now);
        match otherwise {
            Otherwise::Fail => Duration::ZERO,
            _ => self
                .config
                .consistency
                .wait_timeout
                .saturating_sub(since.elapsed()),
        }
    }
}
