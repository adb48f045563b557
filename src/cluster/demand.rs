//! Owns: which of its nodes' positions somebody in a cluster waits for, and how its primary's probe waits for that.
//! Never: asks a node, or wakes a probe.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};

use crate::session::consistency::{Lsn, Tick};

/// What is wanted of a cluster's nodes. It only grows, but for another primary's positions.
#[derive(Default)]
pub struct Demand {
    /// The sample of the primary that somebody waits for, by its number.
    sample: AtomicU64,
    /// The same, if it is to be taken at once.
    urgent: AtomicU64,
    /// The position that somebody waits for replicas to reach.
    goal: AtomicU64,
    /// How the primary's probe waits: a [`Rest`].
    rest: AtomicU8,
}

/// How a probe waits, and so for what it is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rest {
    None,
    /// Until the next step at which nodes are asked.
    Step,
    /// Until its heartbeat, or until there is something to ask for.
    Long,
}

impl Demand {
    /// Somebody wants a sample that is started after `moment`: before long, as nobody waits. Whether the primary's
    /// probe is to be woken for that.
    #[must_use]
    pub fn want_sample(&self, moment: Tick) -> bool {
        self.sample.fetch_max(moment.0 + 1, SeqCst) <= moment.0 && self.ends_rest(Rest::Long)
    }

    /// Somebody waits for the sample that is wanted. Whether the primary's probe is to be woken for that.
    #[must_use]
    pub fn hurry(&self) -> bool {
        let wanted = self.sample.load(SeqCst);
        self.urgent.fetch_max(wanted, SeqCst) < wanted && self.ends_rest(Rest::Step)
    }

    /// Whether a sample is wanted that is newer than the newest there is.
    pub fn is_sample_wanted(&self, newest: Tick) -> bool {
        self.sample.load(SeqCst) > newest.0
    }

    /// Whether it is wanted at once.
    pub fn is_urgent(&self, newest: Tick) -> bool {
        self.urgent.load(SeqCst) > newest.0
    }

    /// Somebody waits for a replica that has replayed to `lsn`. Whether nobody has waited for one as far.
    #[must_use]
    pub fn raise_goal(&self, lsn: Lsn) -> bool {
        // Most often it is not raised, and looking is cheaper than writing.
        lsn > self.goal() && self.goal.fetch_max(lsn.0, SeqCst) < lsn.0
    }

    pub fn goal(&self) -> Lsn {
        Lsn(self.goal.load(SeqCst))
    }

    /// Positions are of another history now.
    pub fn forget_goal(&self) {
        self.goal.store(0, SeqCst);
    }

    /// The primary's probe waits like this from now on. To be told before it looks for the last time at what is
    /// wanted.
    pub fn set_rest(&self, rest: Rest) {
        self.rest.store(rest as u8, SeqCst);
    }

    /// Ends the wait of the primary's probe if it is one like this, or longer: one of those who ask wakes it.
    fn ends_rest(&self, rest: Rest) -> bool {
        let rest = rest as u8;
        self.rest.load(SeqCst) >= rest && self.rest.swap(Rest::None as u8, SeqCst) >= rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_woken_once_for_a_sample() {
        let demand = Demand::default();
        demand.set_rest(Rest::Long);
        assert!(demand.want_sample(Tick(3)));
        demand.set_rest(Rest::Long);
        assert!(!demand.want_sample(Tick(3)));
        assert!(!demand.want_sample(Tick(2)));
        assert!(demand.want_sample(Tick(4)));
    }

    #[test]
    fn who_waits_for_a_step_is_woken_only_for_what_is_urgent() {
        let demand = Demand::default();
        demand.set_rest(Rest::Step);
        assert!(!demand.want_sample(Tick(3)));
        assert!(!demand.is_urgent(Tick(3)));
        assert!(demand.hurry());
        assert!(demand.is_urgent(Tick(3)));
        // It is awake, and there is nothing that it has not been told.
        assert!(!demand.hurry());
        assert!(!demand.want_sample(Tick(4)));
    }

    #[test]
    fn who_does_not_wait_is_not_woken() {
        let demand = Demand::default();
        assert!(!demand.want_sample(Tick(3)));
        assert!(!demand.hurry());
        assert!(demand.is_sample_wanted(Tick(3)));
    }

    #[test]
    fn a_sample_is_wanted_until_there_is_one_as_new() {
        let demand = Demand::default();
        assert!(!demand.is_sample_wanted(Tick(0)));
        let _ = demand.want_sample(Tick(3));
        let _ = demand.hurry();
        assert!(demand.is_sample_wanted(Tick(3)) && demand.is_urgent(Tick(3)));
        assert!(!demand.is_sample_wanted(Tick(4)) && !demand.is_urgent(Tick(4)));
    }

    #[test]
    fn a_goal_is_raised_once_and_another_history_has_its_own() {
        let demand = Demand::default();
        assert!(demand.raise_goal(Lsn(8)));
        assert!(!demand.raise_goal(Lsn(8)));
        assert!(!demand.raise_goal(Lsn(7)));
        assert_eq!(demand.goal(), Lsn(8));
        demand.forget_goal();
        assert!(demand.raise_goal(Lsn(7)));
    }
}
