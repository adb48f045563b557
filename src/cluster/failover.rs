//! Owns: who is the primary: election, what a failover leaves behind, fencing. Never: takes a node for the primary
//! that another is known to have taken the place of.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Cluster;
use super::node::{Loss, Node, Role};
use super::topology::Topology;
use crate::session::consistency::{Incarnation, NodeId, Replica};
use crate::telemetry;

impl Cluster {
    /// Decides again who is the primary.
    pub(super) fn reconsider(&self) {
        let update = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.settle();
        let (primary, split_brain) = elect(&old, self.clock.timeline());
        self.tell_dispute(primary.is_none().then_some(&old));
        let id = |node: &Option<Arc<Node>>| node.as_ref().map(|n| n.id());
        let same = id(&primary) == id(&old.primary);
        let meetings = primary.as_ref().map_or(0, |node| node.meetings());
        if same && meetings == old.primary_meetings && split_brain == old.split_brain {
            return;
        }
        let cluster = &self.name;
        match (&primary, &old.primary) {
            (Some(new), _) => {
                self.begin_history(&old, new);
                let is_failover = old.last_primary.is_some_and(|last| last != new.id());
                telemetry::metrics()
                    .failovers
                    .increment(u64::from(is_failover));
                tracing::info!(%cluster, node = %new.name, timeline = new.timeline(), "primary found");
            }
            (None, _) if split_brain => {
                tracing::error!(%cluster, "two nodes write on one timeline: no primary until one stops");
            }
            (None, Some(lost)) => tracing::warn!(%cluster, node = %lost.name, "primary lost"),
            (None, None) => {}
        }
        let last_primary = id(&primary).or(old.last_primary);
        let last_life = primary
            .as_ref()
            .map_or(old.last_life, |new| new.last_life());
        let timeline = primary.as_ref().map_or(old.timeline, |new| new.timeline());
        let given_up = match timeline < old.timeline {
            true => old.given_up.max(old.timeline),
            false => old.given_up,
        };
        let topology = Topology {
            primary: primary.clone(),
            primary_meetings: meetings,
            last_primary,
            last_life,
            timeline,
            given_up,
            split_brain,
            ..Topology::clone(&old)
        };
        self.topology.store(Arc::new(topology));
        drop(update);
        if let Some(new) = primary {
            leave_last_primary(&old, &new);
            // Not before they can see who that is: the primary is to be asked for the sample that every session waits
            // for, the others whether they follow it.
            old.nodes.iter().for_each(|node| node.wake.notify_one());
        }
        self.changed.notify_waiters();
        self.has_moved();
    }

    /// Samples of another history say nothing about positions in that of `new`.
    fn begin_history(&self, old: &Topology, new: &Node) {
        let is_as_before =
            old.last_primary == Some(new.id()) && new.timeline() == self.clock.timeline();
        self.clock.set_timeline(new.timeline());
        self.clock.new_epoch();
        if !is_as_before {
            let history = self.history.lock();
            history.unwrap_or_else(PoisonError::into_inner).clear();
        }
        self.demand.forget_goal();
        for node in &old.nodes {
            if is_as_before {
                node.forget_as_of();
            } else {
                node.forget_history();
                self.note_fenced(node);
            }
        }
        let _ = self.demand.want_sample(self.clock.now());
    }

    /// Tells of a node that writes in a history that is no longer the cluster's.
    pub(super) fn note_fenced(&self, node: &Node) {
        let (cluster, name, present) = (&self.name, &node.name, self.clock.timeline());
        let timeline = node.timeline();
        if node.is_up() && node.role() == Role::Primary && timeline < present {
            tracing::error!(%cluster, node = %name, timeline, "node writes on a timeline that has been left for {present}: it gets nothing until it is a standby");
        }
    }
}

impl Cluster {
    /// Why nobody is to wait for what has been asked of this node, if so. The answer of the primary is waited for
    /// for as long as a primary is where there is none: it may be that one.
    pub(super) fn loss(&self, node: &Node) -> Option<Loss> {
        let patience = match node.role() {
            Role::Primary if node.timeline() < self.clock.timeline() => {
                return Some(Loss::Superseded);
            }
            Role::Primary => self.topology().config.failover.hold,
            Role::Replica | Role::Unknown => Duration::ZERO,
        };
        let is_given_up = node.down_for().is_some_and(|down| down >= patience);
        is_given_up.then_some(Loss::Down)
    }
}

/// Which of these nodes is the same server, as far as a configuration tells: its address counts for more than its name.
pub(super) fn heir(node: &Node, nodes: &[Arc<Node>]) -> Option<NodeId> {
    let likeness = |other: &Node| match () {
        () if other.id() == node.id() => 3,
        () if (&other.host, other.port) == (&node.host, node.port) => 2,
        () if other.name == node.name => 1,
        () => 0,
    };
    let heir = nodes.iter().max_by_key(|other| likeness(other))?;
    (likeness(heir) > 0).then(|| heir.id())
}

/// The node on the highest timeline of those that take writes; none when two on the same one do. One that is
/// drained is not elected, and neither is an older one in its place, nor in that of the last primary, which was on
/// `timeline`: what that was told would be lost, unless the configuration has it no more. A new one is not before all
/// nodes have been asked once, as any may be on a newer timeline; and none on an older one than a node [may be](unseen) on
/// that is not seen.
pub(super) fn elect(topology: &Topology, timeline: u32) -> (Option<Arc<Node>>, bool) {
    let is_unknown = |node: &Arc<Node>| !node.is_probed() && !node.is_leaving();
    if topology.primary.is_none() && topology.nodes.iter().any(is_unknown) {
        return (None, topology.split_brain);
    }
    let is_listed = |last: NodeId| topology.nodes.iter().any(|node| node.id() == last);
    let oldest = match topology.last_primary {
        Some(last) if is_listed(last) => timeline,
        _ => 0,
    };
    let oldest = unseen(topology).map_or(oldest, |unseen| oldest.max(unseen.timeline));
    let writes = |node: &&Arc<Node>| {
        let is_writable = node.is_up() && node.role() == Role::Primary;
        let is_ours = node.system() == topology.system;
        is_writable && is_ours && !node.is_leaving() && node.timeline() >= oldest
    };
    let writable = || topology.nodes.iter().filter(writes);
    let Some(newest) = writable().map(|node| node.timeline()).max() else {
        return (None, false);
    };
    let rivals = || writable().filter(|node| node.timeline() == newest);
    let mut lives: Vec<_> = rivals().map(|node| node.last_life().0).collect();
    lives.sort_unstable();
    // Two names of one server are no rivals, also while it is being reconnected to by one of them.
    lives.dedup();
    match lives.len() > 1 {
        true => (None, true),
        false => (rivals().find(|node| !node.is_drained()).cloned(), false),
    }
}

/// A timeline that a replica has told of, and a node that is not seen, which may be its primary.
pub(super) struct Unseen<'a> {
    pub timeline: u32,
    pub told_by: &'a Node,
    pub node: &'a Node,
}

/// The newest of these. While all nodes are seen, whoever a replica follows is none of them.
pub(super) fn unseen(topology: &Topology) -> Option<Unseen<'_>> {
    let may_be_ours = |node: &&Arc<Node>| [0, topology.system].contains(&node.system());
    let nodes = || topology.nodes.iter().filter(may_be_ours);
    let told_by = nodes()
        .filter(|node| node.role() != Role::Primary && node.told_timeline() != 0)
        .max_by_key(|node| node.told_timeline())?;
    let is_away = |node: &&Arc<Node>| !node.is_up() && !node.is_leaving();
    let node = nodes()
        .filter(is_away)
        .find(|node| node.id() != told_by.id())?;
    Some(Unseen {
        timeline: told_by.told_timeline(),
        told_by,
        node,
    })
}

/// Nobody is to use, or wait for, what is on the primary before `new`.
fn leave_last_primary(old: &Topology, new: &Node) {
    let last = old.last_primary.filter(|last| *last != new.id());
    let left = old.nodes.iter().find(|node| Some(node.id()) == last);
    for pool in left.iter().flat_map(|node| node.pools.iter()) {
        pool.close_stale(Incarnation(0));
        pool.send_away();
    }
}
