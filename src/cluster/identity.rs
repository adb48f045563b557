//! Owns: which system a cluster is of, by what its nodes have told. Never: takes a cluster for another one as long as
//! some node that it lists may still be of the one it is.

use std::sync::{Arc, PoisonError};

use super::Cluster;
use super::failover::unseen;
use super::node::{Node, Role};
use super::topology::Topology;

/// What one node has to say of the cluster's system.
#[derive(Clone, Copy, Debug)]
struct Vote {
    /// The identifier of the system that it was of when it was last asked; 0 if it has told none.
    system: u64,
    /// It has been asked, whether it has answered or not.
    is_asked: bool,
}

impl Vote {
    fn of(node: &Node) -> Vote {
        let system = node.system();
        Vote {
            system,
            is_asked: system != 0 || node.is_probed(),
        }
    }
}

impl Topology {
    /// Whether the node is of another system than the cluster. While nobody has told of the cluster's, it may become
    /// that one's.
    pub(super) fn is_stranger(&self, node: &Node) -> bool {
        let is_told = || self.nodes.iter().any(|node| node.system() == self.system);
        self.system != 0 && node.system() != self.system && is_told()
    }

    /// In words, why no node that takes writes can be the primary, if another one has taken its place that is not seen.
    fn succession(&self) -> Option<String> {
        let unseen = unseen(self)?;
        let is_older = |node: &&Arc<Node>| {
            node.is_up() && node.role() == Role::Primary && node.timeline() < unseen.timeline
        };
        let older = self.nodes.iter().find(is_older)?;
        Some(format!(
            "{} is on timeline {}, {} follows one on timeline {}, and {} is not seen",
            older.name,
            older.timeline(),
            unseen.told_by.name,
            unseen.timeline,
            unseen.node.name
        ))
    }

    /// In words, why no node can be the primary, if it is for the systems that they are of, or for one that is not seen.
    pub fn dispute(&self) -> Option<String> {
        let told = || self.nodes.iter().filter(|node| node.system() != 0);
        let is_at_one = told().all(|node| node.system() == self.system);
        let is_open = self.nodes.iter().any(|node| !Vote::of(node).is_asked);
        if is_open {
            return None;
        }
        if is_at_one {
            return self.succession();
        }
        let of = |node: &Arc<Node>| format!("{} of {}", node.name, node.system());
        let nodes = told().map(of).collect::<Vec<_>>().join(", ");
        Some(match self.system {
            0 => format!("its nodes are of different systems: {nodes}"),
            known => format!("it is of the system {known}, and its nodes, when last seen: {nodes}"),
        })
    }
}

impl Cluster {
    /// Decides again which system the cluster is of, and has those nodes up that are watched and of that one. To be
    /// called by who may replace the topology, which may be another one then.
    pub(super) fn settle(&self) -> Arc<Topology> {
        let mut topology = self.topology.load_full();
        let votes: Vec<_> = topology.nodes.iter().map(|node| Vote::of(node)).collect();
        let system = decide(topology.system, &votes);
        if system != topology.system {
            topology = Arc::new(match topology.system {
                0 => Topology {
                    system,
                    ..(*topology).clone()
                },
                _ => self.begin_anew(&topology, system),
            });
            self.clock.system().set(system);
            self.topology.store(topology.clone());
            self.changed.notify_waiters();
            // Who is of another one is to be let go of.
            topology
                .nodes
                .iter()
                .for_each(|node| node.wake.notify_one());
        }
        let is_ours = |node: &&Arc<Node>| node.is_watched() && node.system() == system;
        for node in topology.nodes.iter().filter(is_ours) {
            if system != 0 && !node.is_up() {
                node.set_up(true);
                tracing::info!(cluster = %self.name, node = %node.name, role = ?node.role(), "node is up");
            }
        }
        topology
    }

    /// The cluster is of another system from now on: nothing that has been known of the one before says anything of
    /// that.
    fn begin_anew(&self, old: &Topology, system: u64) -> Topology {
        let (cluster, before) = (&self.name, old.system);
        tracing::warn!(%cluster, before, system, "no node is left of the cluster's system: it is of another one from now on");
        // Before it is of the other one, so that no position of this is taken for one of that.
        self.clock.set_timeline(0);
        self.clock.new_epoch();
        for node in &old.nodes {
            if node.is_watched() {
                node.forget_history();
            } else {
                node.begin_anew();
            }
        }
        self.catalogs.outdate();
        Topology {
            system,
            ..Topology::new(old.nodes.clone(), old.config.clone())
        }
    }

    /// Tells once why there is no primary in this topology, if it is for a [dispute](Topology::dispute). `None` where
    /// there is one.
    pub(super) fn tell_dispute(&self, topology: Option<&Topology>) {
        let dispute = topology.and_then(Topology::dispute);
        let mut told = self.dispute.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == dispute {
            return;
        }
        if let Some(dispute) = &dispute {
            let cluster = &self.name;
            tracing::error!(%cluster, "no primary: {dispute}. Take out of the configuration whatever is not of this cluster, or is no more");
        }
        *told = dispute;
    }
}

/// The system of the majority, once all nodes have been asked. One that is `known` is left only when no node was last
/// seen to be of it, and all that have ever answered agree on another one: who is silent may be back.
fn decide(known: u64, votes: &[Vote]) -> u64 {
    let told = || {
        votes
            .iter()
            .map(|vote| vote.system)
            .filter(|told| *told != 0)
    };
    let count = |system: u64| told().filter(|told| *told == system).count();
    let is_open = votes.iter().any(|vote| !vote.is_asked);
    if is_open || known != 0 && count(known) > 0 {
        return known;
    }
    let agree = |system: &u64| match known {
        0 => count(*system) * 2 > told().count(),
        _ => count(*system) == told().count(),
    };
    told().find(agree).unwrap_or(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Votes by the identifiers that nodes have told; `-1` is one that has not been asked yet, `0` one that does not
    /// answer.
    fn decided(known: u64, votes: &[i64]) -> u64 {
        let vote = |vote: &i64| Vote {
            system: u64::try_from(*vote).unwrap_or(0),
            is_asked: *vote >= 0,
        };
        decide(known, &votes.iter().map(vote).collect::<Vec<_>>())
    }

    #[test]
    fn the_majority_of_those_that_answer_says_what_the_cluster_is() {
        assert_eq!(decided(0, &[7]), 7);
        assert_eq!(decided(0, &[7, -1]), 0, "the other one may be of another");
        assert_eq!(decided(0, &[7, 0]), 7);
        assert_eq!(decided(0, &[8, 7, 7]), 7);
        assert_eq!(decided(0, &[8, 7]), 0);
        assert_eq!(decided(0, &[8, 7, 7, 9]), 0);
        assert_eq!(decided(0, &[0, 0]), 0);
    }

    #[test]
    fn a_cluster_becomes_another_only_when_nobody_is_left_of_the_one_it_was() {
        assert_eq!(decided(7, &[8, 7]), 7, "it may be away");
        assert_eq!(decided(7, &[8, 8, 8, 7]), 7);
        assert_eq!(decided(7, &[8, 0]), 8, "that one has never answered");
        assert_eq!(decided(7, &[8, -1]), 7);
        assert_eq!(decided(7, &[8, 8, 9]), 7);
        assert_eq!(decided(7, &[8, 8]), 8);
        assert_eq!(decided(7, &[0, 0]), 7);
        assert_eq!(decided(7, &[-1, -1]), 7);
    }
}
