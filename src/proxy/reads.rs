//! Owns: finding a server for a read: the replica that it goes to, the wait at the gate, and what it does if there
//! is none. Never: judges itself whether a replica is fresh; `session::route` does.

mod wait;

use std::sync::Arc;

use tokio::time::{timeout, timeout_at};

use self::wait::ReadWait;
use super::Client;
use super::acquire::{Placed, Side, lend_known};
use super::again::Again;
use super::hold::HOLD_STEP;
use super::refusal::Refusal;
use super::wishes::{Base, Special};
use crate::cluster::Cluster;
use crate::cluster::node::Node;
use crate::cluster::pool::server::Server;
use crate::cluster::pool::{CheckoutError, NO_FAVOURITE, Patience};
use crate::cluster::topology::Topology;
use crate::config::{Config, OnNoReplica, ReadPrimary};
use crate::session::consistency::{Floors, Incarnation, NodeId, Replica};
use crate::session::repair::Repairable;
use crate::session::route::{Policy, ReadRoute, Reason, Tried, bounded_route, read_route};

impl Client {
    /// A free server that this session has used before, of a fresh replica, or of the primary where
    /// the read is that one's: nearly every read.
    pub(super) fn lend_for_read(&mut self) -> Result<Option<Placed>, Refusal> {
        let random = self.next_random();
        self.session.heed_schema(&self.cluster.clock);
        let topology = self.topology.load();
        if !self.base.is_of(&topology.config) {
            self.base = Base::of(&topology.config, &self.cluster.name, &self.key);
        }
        let wanted = self.session.settings().wanted();
        if self.base.is_special || self.batch.hints.is_some() || wanted.is_some() {
            return self.lend_for_special_read(random);
        }
        (self.reads_plainly, self.read_level) = (true, self.base.level);
        let floors = &self.session.floors;
        let policy = self.base.policy();
        let (index, life) = match look(floors, &policy, &self.cluster, topology, random) {
            ReadRoute::Replica { index, life } => (index, life),
            ReadRoute::Gate(_) => return Ok(None),
            ReadRoute::Primary(reason) => {
                if !may_use_primary(&topology.config, reason, None) || self.is_ahead(None) {
                    return Ok(None);
                }
                self.pin_by(reason);
                return self.lend_primary(reason);
            }
        };
        let node = topology.nodes[index].id();
        let repairable = repairable(topology);
        Ok(self.lend_replica(node, life, Reason::Fresh, repairable))
    }

    /// In session mode: the server that the session has on this replica. One on another is done
    /// with.
    fn kept_replica(&mut self, node: NodeId) -> Option<Box<Server>> {
        let server = self.held_replica.take()?;
        if server.node().id() != node {
            self.clean(server, Side::Replica);
            return None;
        }
        server.checked()
    }

    /// The like, of a read that asks for more than most.
    #[cold]
    fn lend_for_special_read(&mut self, random: u64) -> Result<Option<Placed>, Refusal> {
        let topology = self.topology.load().clone();
        let special = self.asked_for();
        if special.is_unsettled() {
            return Ok(None);
        }
        let (index, life) = match self.special_route(&topology, &special, Tried::default(), random)
        {
            ReadRoute::Replica { index, life } => (index, life),
            ReadRoute::Gate(_) => return Ok(None),
            ReadRoute::Primary(reason) => {
                let may = may_use_primary(&topology.config, reason, Some(&special));
                if !may || self.is_ahead(Some(&special)) {
                    return Ok(None);
                }
                self.pin_by(reason);
                return self.lend_primary(reason);
            }
        };
        let reason = match special.node {
            Some(_) => Reason::NamedReplica,
            None => Reason::Fresh,
        };
        let (node, repairable) = (topology.nodes[index].id(), repairable(&topology));
        Ok(self.lend_replica(node, life, reason, repairable))
    }

    /// A free server of this replica in this life.
    pub(super) fn lend_replica(
        &mut self,
        node: NodeId,
        life: Incarnation,
        reason: Reason,
        repairable: Repairable,
    ) -> Option<Placed> {
        let server = match self.kept_replica(node) {
            Some(server) => Some(server),
            None => lend_known(&self.pools, node, self.session.settings(), NO_FAVOURITE),
        };
        let server = server.filter(|server| server.incarnation == life)?;
        Some(Placed {
            server,
            side: Side::Replica,
            reason,
            waited_us: 0,
            repairable,
        })
    }

    /// Where a read goes that asks for more than most.
    pub(super) fn special_route(
        &mut self,
        topology: &Topology,
        special: &Special,
        tried: Tried,
        random: u64,
    ) -> ReadRoute {
        let primary = topology.primary.as_deref();
        (self.reads_plainly, self.read_level) = (false, special.policy.level);
        let named;
        let bounds = match special.node.as_deref() {
            None => &special.bounds,
            Some(name) => {
                let Some(index) = topology.nodes.iter().position(|node| node.name == name) else {
                    // It has just been removed.
                    return ReadRoute::Primary(Reason::NoReplica);
                };
                if primary.is_some_and(|primary| primary.id() == topology.nodes[index].id()) {
                    return ReadRoute::Primary(Reason::NamedPrimary);
                }
                named = special.bounds.of_node(index);
                &named
            }
        };
        bounded_route(
            &self.session.floors,
            &Policy {
                tried,
                ..special.policy
            },
            bounds,
            &self.cluster.clock,
            &topology.nodes,
            primary,
            random,
        )
    }

    /// A server for a read that has to wait, or did not find one at once; it has come to `again` before.
    pub(super) async fn acquire_for_read(
        &mut self,
        again: Option<&Again>,
    ) -> Result<Placed, Refusal> {
        let cluster = self.cluster.clone();
        let config = cluster.topology().config.clone();
        // As of now, however long the read has to wait: what others do meanwhile is not waited for.
        let mut special = self.is_special().then(|| self.asked_for());
        if let Some(special) = &mut special {
            self.settle_key(special).await;
        }
        let special = special.as_ref();
        let mut wait = ReadWait::new(config, again, special);
        loop {
            // Made before the look, so that no move after it is missed.
            let mut moved = std::pin::pin!(cluster.moved.notified());
            let topology = cluster.topology();
            let reason = match self.route_now(&topology, special, wait.tried) {
                ReadRoute::Replica { index, life } => {
                    let node = topology.nodes[index].clone();
                    let repairable = repairable(&topology);
                    drop(topology);
                    wait.pass_gate();
                    let may_wait = !wait.has_waited;
                    let patience = Patience {
                        for_room: wait.is_patient,
                        for_resume: !self.goes_on_when_paused(&wait, special),
                    };
                    let server = self.on_replica(&node, life, &wait.config, may_wait, patience);
                    match server.await {
                        Ok(server) => {
                            return Ok(Placed {
                                server,
                                side: Side::Replica,
                                reason: wait.reason(special),
                                waited_us: 0,
                                repairable,
                            });
                        }
                        Err(Some(CheckoutError::Paused)) => {
                            return self
                                .read_on_primary(Reason::PinnedServer, special, None)
                                .await;
                        }
                        Err(error) => {
                            wait.miss(node.id(), error);
                            continue;
                        }
                    }
                }
                ReadRoute::Gate(reason) => {
                    drop(topology);
                    self.want_replicas(reason);
                    if let Some(until) = wait.at_gate() {
                        cluster.hurry();
                        match special.is_none() && wait.tried.is_empty() {
                            true => cluster.wait_at_gate(&self.session.floors, until).await,
                            // The gate knows of floors alone: nodes that are fresh by those, and have
                            // been tried or lack something else, would open it at once.
                            false => {
                                let _ = timeout_at(until.into(), moved.as_mut()).await;
                            }
                        }
                        continue;
                    }
                    reason
                }
                ReadRoute::Primary(reason) => {
                    drop(topology);
                    reason
                }
            };
            let Some(otherwise) = wait.otherwise(reason, special) else {
                return Err(self.no_replica(reason));
            };
            self.pin_by(reason);
            if otherwise == Otherwise::Primary {
                if wait.may_turn_patient() && !self.primary_has_room() {
                    // Nobody has a server for it now.
                    wait.turn_patient();
                    continue;
                }
                return self.read_on_primary(reason, special, wait.missed).await;
            }
            let left = wait.left(otherwise);
            if left.is_zero() {
                return self.end_wait(wait, otherwise, reason, special).await;
            }
            wait.tried = wait.begun;
            cluster.hurry();
            let _ = timeout(left.min(HOLD_STEP), moved).await;
        }
    }

    /// Whether the read runs on the server of the primary that the session keeps, rather than wait for the end of a
    /// pause, which would wait for the session.
    fn goes_on_when_paused(&self, wait: &ReadWait, special: Option<&Special>) -> bool {
        self.held.is_some() && !wait.only_on_replicas && may_read_primary(&wait.config, special)
    }

    /// Where the read goes by what is known now, with these replicas left out.
    fn route_now(
        &mut self,
        topology: &Topology,
        special: Option<&Special>,
        tried: Tried,
    ) -> ReadRoute {
        self.session.heed_schema(&self.cluster.clock);
        // The number that was drawn when the read came: it decides as it did then.
        let random = self.random;
        match special {
            None => {
                let policy = Policy {
                    tried,
                    ..self.base.policy()
                };
                look(
                    &self.session.floors,
                    &policy,
                    &self.cluster,
                    topology,
                    random,
                )
            }
            Some(special) => self.special_route(topology, special, tried, random),
        }
    }

    /// What comes of a read that has waited for a replica in vain, the last time for this reason.
    async fn end_wait(
        &mut self,
        wait: ReadWait,
        otherwise: Otherwise,
        reason: Reason,
        special: Option<&Special>,
    ) -> Result<Placed, Refusal> {
        // A transaction is never without a place.
        let is_of_transaction = self.session.roams() && !wait.only_on_replicas;
        if is_of_transaction || otherwise == THEN_PRIMARY {
            return self.read_on_primary(reason, special, wait.missed).await;
        }
        if let Some(error) = wait.missed {
            return Err(error.into());
        }
        match special.and_then(|special| special.node.as_deref()) {
            Some(node) => Err(Refusal::NamedNode {
                node: node.to_owned(),
                reason: reason.name(),
            }),
            None => Err(self.no_replica(reason)),
        }
    }

    /// A server of the replica in this life, which is waited for if all are lent and it may be. Only who is patient
    /// waits where the node gives fewer than there may be: it would seem the least busy of all, and have every read
    /// wait for one of these.
    ///
    /// # Errors
    /// There is none: what its client is told if nobody else has one either.
    pub(super) async fn on_replica(
        &mut self,
        node: &Arc<Node>,
        life: Incarnation,
        config: &Config,
        may_wait: bool,
        patience: Patience,
    ) -> Result<Box<Server>, Option<CheckoutError>> {
        if let Some(server) = self
            .kept_replica(node.id())
            .filter(|server| server.incarnation == life)
        {
            return Ok(server);
        }
        let pool = self.pool(node, config);
        if !may_wait && pool.is_saturated() {
            return Err(None);
        }
        let meetings = node.meetings();
        let settings = self.session.settings();
        let checkout = pool.checkout_with(patience, settings, NO_FAVOURITE).await;
        let is_as_judged = || node.incarnation() == life && node.meetings() == meetings;
        match checkout {
            Ok(server) if server.incarnation == life && is_as_judged() => Ok(server),
            Ok(_) => {
                // The node's server was restarted: what is known of its position is of no use.
                node.wake.notify_one();
                Err(None)
            }
            Err(error) if error.is_for_lack_of_room() => Err(Some(error)),
            Err(CheckoutError::Connect { error, .. })
                if error.is_node_away() || error.is_for_primary_to_say() =>
            {
                tracing::debug!(node = %node.name, %error, "replica can't be used");
                Err(None)
            }
            Err(CheckoutError::Leaving { .. }) => Err(None),
            Err(error) => Err(Some(error)),
        }
    }

    /// A read has to go to the primary, if it may, for this reason.
    fn pin_by(&mut self, reason: Reason) {
        if reason.is_behind() {
            self.pin();
            self.want_replicas(reason);
        }
    }

    /// Asks for what it takes until replicas no longer lack what a read was refused for. What the session itself has
    /// done and seen is over: where the primary has come since then is not waited for.
    fn want_replicas(&self, reason: Reason) {
        let cluster = &self.cluster;
        let own = match reason {
            Reason::OwnWrite | Reason::SeenNewer | Reason::NewerSchema => {
                self.session.floors.last_moment()
            }
            _ => None,
        };
        match own {
            Some(moment) => cluster.want_replicas_after(moment),
            None => cluster.want_sample(cluster.clock.now()),
        }
    }

    /// A server of the primary for a read; of the next primary, if the read must see what only that has. `missed` is
    /// why the last replica that was tried had none.
    async fn read_on_primary(
        &mut self,
        reason: Reason,
        special: Option<&Special>,
        missed: Option<CheckoutError>,
    ) -> Result<Placed, Refusal> {
        let missed = match missed {
            Some(error) if error.is_for_lack_of_room() && !self.primary_has_room() => {
                return Err(error.into());
            }
            missed => missed,
        };
        let held = match self.is_ahead(special) {
            true => Some(self.wait_for_history(special).await?),
            false => None,
        };
        match (self.on_primary_after(held, reason).await, missed) {
            (Err(Refusal::NoPrimary { .. }), Some(error)) => Err(error.into()),
            (placed, _) => placed,
        }
    }

    /// Whether the primary takes what is too much for a replica: what replicas can't keep up with must not take
    /// all of its servers, which writes need.
    fn primary_has_room(&mut self) -> bool {
        let (primary, config) = {
            let topology = self.cluster.topology();
            (topology.primary.clone(), topology.config.clone())
        };
        primary.is_some_and(|node| {
            let census = self.pool(&node, &config).census();
            census.active < census.size.div_ceil(2)
        })
    }
}

/// What a read does that no replica will do for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Otherwise {
    Primary,
    /// Waits for a replica; and goes to the primary if there is none in time, or fails.
    Wait {
        then_primary: bool,
    },
    Fail,
}

/// What a read does that no replica will do for, for this reason.
pub(super) fn otherwise(config: &Config, reason: Reason, special: Option<&Special>) -> Otherwise {
    let is_chosen = matches!(
        reason,
        Reason::Level | Reason::Shared | Reason::NamedPrimary
    );
    let is_named = special.is_some_and(|special| special.node.is_some());
    let may_primary = may_read_primary(config, special);
    match config.consistency.on_no_replica {
        _ if is_chosen => Otherwise::Primary,
        OnNoReplica::Primary if may_primary => Otherwise::Primary,
        OnNoReplica::Error if !is_named => Otherwise::Fail,
        on_no_replica => Otherwise::Wait {
            then_primary: may_primary && on_no_replica == OnNoReplica::Wait,
        },
    }
}

/// Whether the primary takes what a replica could.
fn may_read_primary(config: &Config, special: Option<&Special>) -> bool {
    let is_named = special.is_some_and(|special| special.node.is_some());
    !is_named && config.routing.read_primary != ReadPrimary::Never
}

/// It waits, and then goes to the primary.
const THEN_PRIMARY: Otherwise = Otherwise::Wait { then_primary: true };

fn may_use_primary(config: &Config, reason: Reason, special: Option<&Special>) -> bool {
    otherwise(config, reason, special) == Otherwise::Primary
}

/// Where a session's next read goes, if it asks for nothing special.
fn look(
    floors: &Floors,
    policy: &Policy,
    cluster: &Cluster,
    topology: &Topology,
    random: u64,
) -> ReadRoute {
    let primary = topology.primary.as_deref();
    let (clock, nodes) = (&cluster.clock, &topology.nodes);
    read_route(floors, policy, clock, nodes, primary, random)
}

/// What of a replica's errors can be repaired: with a primary that takes reads, all.
fn repairable(topology: &Topology) -> Repairable {
    match topology.primary.is_some() && topology.config.routing.read_primary != ReadPrimary::Never {
        true => Repairable::All,
        false => Repairable::NotBySchema,
    }
}
