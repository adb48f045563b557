//! Owns: what everybody sees of a cluster at one time, which is read without a lock. Never: changes; another one takes
//! its place.

use std::sync::Arc;

use arc_swap::ArcSwap;
use dashmap::mapref::multiple::RefMulti;

use super::Cluster;
use super::node::Node;
use super::pool::{Pool, PoolKey};
use crate::config::Config;
use crate::session::consistency::{Incarnation, NodeId, Replica};

/// What everybody sees of a cluster at one time.
#[derive(Clone)]
pub struct Topology {
    pub nodes: Vec<Arc<Node>>,
    /// The identifier of the system that the cluster is of; 0 while that is open.
    pub(super) system: u64,
    pub primary: Option<Arc<Node>>,
    /// How often it had been met when this was decided: it may have lost what it told of before.
    pub(super) primary_meetings: u64,
    /// Who was the primary last, whether it still is or not.
    pub(super) last_primary: Option<NodeId>,
    /// The life that its server was in then. By a reload it may have become another node, which is to be asked yet.
    pub(super) last_life: Incarnation,
    /// The timeline that one was on; 0 if there was none. And the newest that has been given up: the configuration
    /// has nobody of it any more.
    pub(super) timeline: u32,
    pub(super) given_up: u32,
    pub config: Arc<Config>,
    /// Two nodes write on one timeline: neither is the primary.
    pub(super) split_brain: bool,
}

/// See [`Cluster::watched_topology`].
pub type WatchedTopology = arc_swap::Cache<Arc<ArcSwap<Topology>>, Arc<Topology>>;

impl Topology {
    /// Of a cluster that nothing is known of yet.
    pub(super) fn new(nodes: Vec<Arc<Node>>, config: Arc<Config>) -> Topology {
        Topology {
            nodes,
            system: 0,
            primary: None,
            primary_meetings: 0,
            last_primary: None,
            last_life: Incarnation(0),
            timeline: 0,
            given_up: 0,
            config,
            split_brain: false,
        }
    }

    /// The pools of all nodes.
    pub(super) fn pools(&self) -> impl Iterator<Item = RefMulti<'_, PoolKey, Arc<Pool>>> {
        self.nodes.iter().flat_map(|node| node.pools.iter())
    }

    /// Whether sessions may go on with the servers that they hold on this node, in this life of its server: it is the
    /// primary, or was the last one and nobody is known to have taken its place; or a reload has given its server
    /// another name or address.
    pub fn may_hold(&self, node: NodeId, life: Incarnation) -> bool {
        let is_same = |primary| primary == node || self.is_primary_in(life);
        !self.split_brain && self.last_or_present().is_none_or(is_same)
    }

    /// Whether the primary, or the last one if it is still listed, is a server in this life as far as is known.
    pub fn is_primary_in(&self, life: Incarnation) -> bool {
        let primary = self.last_or_present();
        let node = self.nodes.iter().find(|node| Some(node.id()) == primary);
        !self.split_brain && self.last_life == life && node.is_some_and(|node| node.may_be_in(life))
    }

    fn last_or_present(&self) -> Option<NodeId> {
        let primary = self.primary.as_ref().map(|primary| primary.id());
        primary.or(self.last_primary)
    }

    /// Whether what is of this timeline is of a newer history than the primary's.
    pub fn is_behind(&self, timeline: u32) -> bool {
        timeline > self.timeline.max(self.given_up)
    }
}

impl Cluster {
    pub fn topology(&self) -> arc_swap::Guard<Arc<Topology>> {
        self.topology.load()
    }

    /// The topology for somebody who looks at it all the time: a look costs nothing but the comparison
    /// with the one before.
    pub fn watched_topology(&self) -> WatchedTopology {
        arc_swap::Cache::new(self.topology.clone())
    }

    pub fn is_primary(&self, node: &Node) -> bool {
        self.topology()
            .primary
            .as_ref()
            .is_some_and(|primary| primary.id() == node.id())
    }
}
