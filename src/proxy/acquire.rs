//! Owns: finding a server for a batch: the route, the wait at the gate, the hold while there is no
//! primary. Never: sends a write to a node that has not been seen to be the primary.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::futures::Notified;
use tokio::time::{sleep, timeout, timeout_at};

use super::Client;
use super::again::Again;
use super::refusal::Refusal;
use super::sessions::Handle;
use super::wishes::{Base, Special};
use crate::cluster::fate::{self, Fate};
use crate::cluster::node::Node;
use crate::cluster::pool::server::Server;
use crate::cluster::pool::{CheckoutError, NO_FAVOURITE, Pool};
use crate::cluster::{self, Cluster, Topology};
use crate::config::{Config, Level, OnNoReplica, ReadPrimary};
use crate::net::stream::Stream;
use crate::session::batch::End;
use crate::session::consistency::{Floors, Incarnation, NodeId, Replica};
use crate::session::repair::Repairable;
use crate::session::route::{Policy, ReadRoute, Reason, Tried, bounded_route, read_route};
use crate::session::settings::Settings;
use crate::sql::{Need, Why};
use crate::telemetry;
use crate::wire::message::Status;

/// While there is no primary, it is looked for at least this often.
pub const HOLD_STEP: Duration = Duration::from_millis(50);

/// While a server is waited for, it is looked at least this often whether the client is still there: nothing is
/// to be begun for one that is not.
const GONE_STEP: Duration = Duration::from_secs(1);

/// Which side of the split a server is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Of the primary: what is not proven to read is done there.
    Primary,
    /// Of a replica: only reads go there.
    Replica,
}

impl Side {
    /// The name used in metrics and the log.
    pub fn name(self) -> &'static str {
        match self {
            Side::Primary => "primary",
            Side::Replica => "replica",
        }
    }
}

/// A server, and why it is that one.
pub struct Placed {
    pub server: Box<Server>,
    pub side: Side,
    pub reason: Reason,
    /// How long it was waited for, in microseconds.
    pub waited_us: u32,
    pub repairable: Repairable,
}

impl Placed {
    /// The primary's, without a wait.
    fn on_primary(server: Box<Server>, reason: Reason) -> Placed {
        Placed {
            server,
            side: Side::Primary,
            reason,
            waited_us: 0,
            repairable: Repairable::No,
        }
    }

    /// When it was found for a batch that was planned at `started`.
    pub fn found(&self, started: Instant) -> Instant {
        match self.waited_us {
            0 => started,
            waited => started + Duration::from_micros(waited.into()),
        }
    }
}

impl Client {
    /// Finds a server for the planned batch, which has been run before with the outcome `again`.
    pub(super) async fn acquire(
        &mut self,
        end: End,
        again: Option<&Again>,
    ) -> Result<Placed, Refusal> {
        if self.batch.hints.is_some() {
            self.check_named_node();
        }
        if self.batch.explains {
            Box::pin(self.explain()).await;
        }
        let needs_primary = again.and_then(|again| again.primary);
        let needs_primary = needs_primary.or_else(|| self.needs_primary(end));
        if let Some(reason) = needs_primary
            && is_only_for_replicas(again)
        {
            return Err(self.no_replica(reason));
        }
        if let Some(placed) = self.at_once(needs_primary, again)? {
            return Ok(placed);
        }
        let began = Instant::now();
        let handle = self.registered.handle.clone();
        handle.waits(true);
        // Boxed: the task of an idle client has no room for what is seldom waited for.
        let placed = Box::pin(self.unless_cancelled(needs_primary, end, again)).await;
        handle.waits(false);
        Ok(Placed {
            waited_us: began.elapsed().as_micros().clamp(1, u32::MAX.into()) as u32,
            ..placed?
        })
    }

    fn at_once(
        &mut self,
        needs_primary: Option<Reason>,
        again: Option<&Again>,
    ) -> Result<Option<Placed>, Refusal> {
        match (needs_primary, again) {
            _ if self.batch.only_explains() => Ok(None),
            _ if self.session.roams_on_replica() => Ok(self.lend_within()),
            _ if self.batch.shows_own => Ok(None),
            (None, Some(again)) if !again.tried.is_empty() || again.only_on_replicas => Ok(None),
            (needs_primary, _) => self.lend(needs_primary),
        }
    }

    /// Waits for a server, unless the session is killed, or its client cancels what needs it and that can
    /// fail by itself: not what is part of a pipeline or a message that goes on, nor of a transaction on a
    /// server that would go with it.
    async fn unless_cancelled(
        &mut self,
        needs_primary: Option<Reason>,
        end: End,
        again: Option<&Again>,
    ) -> Result<Placed, Refusal> {
        let fails_alone = self.fails_alone(end);
        let handle = self.registered.handle.clone();
        // Nothing is said to the client meanwhile, but it is seen when it goes.
        let stream = std::mem::replace(&mut self.stream, Stream::Closed);
        let finding = self.find(needs_primary, again);
        let placed = while_wanted(&handle, &stream, fails_alone, finding).await;
        self.stream = stream;
        placed
    }

    /// Whether the batch can fail and nothing else with it.
    fn fails_alone(&self, end: End) -> bool {
        end == End::Ready && self.batch.beyond == 0 && self.held.is_none()
    }

    /// What has become of the node of a lost server, unless the client wants its batch no more.
    ///
    /// # Errors
    /// As with [`acquire`](Self::acquire).
    pub(super) async fn fate_of(
        &self,
        pool: &Pool,
        life: Incarnation,
        end: End,
    ) -> Result<Fate, Refusal> {
        let handle = &self.registered.handle;
        let asking = async { Ok(fate::of_node(pool, life).await) };
        handle.waits(true);
        let fate = while_wanted(handle, &self.stream, self.fails_alone(end), asking).await;
        handle.waits(false);
        fate
    }

    async fn find(
        &mut self,
        needs_primary: Option<Reason>,
        again: Option<&Again>,
    ) -> Result<Placed, Refusal> {
        if self.batch.only_explains() {
            return self.acquire_to_explain().await;
        }
        if self.session.roams_on_replica() {
            return self.acquire_within().await;
        }
        self.wait_for_server(needs_primary, again).await
    }

    /// A server for the planned batch, if there is one at once.
    pub(super) fn lend(
        &mut self,
        needs_primary: Option<Reason>,
    ) -> Result<Option<Placed>, Refusal> {
        let lent = match needs_primary {
            _ if self.session.roams_on_replica() => return Ok(self.lend_within()),
            Some(reason) => return self.lend_primary(reason),
            None => self.lend_for_read()?,
        };
        Ok(lent.map(|placed| self.of_transaction(placed)))
    }

    /// Why the batch is the primary's, if it is whatever the replicas have.
    pub(super) fn needs_primary(&self, end: End) -> Option<Reason> {
        Some(match self.batch.need {
            _ if self.may_go_to_replica() => return None,
            _ if self.session.status() != Status::Idle || self.session.is_failed() => {
                Reason::Transaction
            }
            Need::Write if self.batch.why == Why::CatalogUnknown => Reason::CatalogUnknown,
            Need::Write => Reason::Write,
            Need::Transaction => Reason::Transaction,
            Need::Session => Reason::SessionState,
            Need::Read if self.batch.executes && end == End::Open => Reason::OpenPipeline,
            Need::Read if self.session.settings().need_primary() => Reason::Isolation,
            Need::Read if self.batch.needs_server => Reason::PinnedServer,
            Need::Read => return None,
        })
    }

    async fn wait_for_server(
        &mut self,
        needs_primary: Option<Reason>,
        again: Option<&Again>,
    ) -> Result<Placed, Refusal> {
        if self.batch.shows_own {
            self.show_own().await?;
        }
        match needs_primary {
            Some(reason) => self.on_primary(reason).await,
            None => {
                let placed = self.acquire_for_read(again).await?;
                Ok(self.of_transaction(placed))
            }
        }
    }

    /// A free server that this session has used before, of a fresh replica, or of the primary where
    /// the read is that one's: nearly every read.
    fn lend_for_read(&mut self) -> Result<Option<Placed>, Refusal> {
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

    fn no_replica(&self, reason: Reason) -> Refusal {
        Refusal::NoReplica {
            cluster: self.cluster.name.clone(),
            reason: reason.name(),
        }
    }

    async fn acquire_for_read(&mut self, again: Option<&Again>) -> Result<Placed, Refusal> {
        let begun = again.map(|again| again.tried).unwrap_or_default();
        let is_only = is_only_for_replicas(again);
        let cluster = self.cluster.clone();
        let config = cluster.topology().config.clone();
        // As of now, however long the read has to wait: what others do meanwhile is not waited for.
        let mut special = self.is_special().then(|| self.asked_for());
        if let Some(special) = &mut special {
            self.settle_key(special).await;
        }
        let special = special.as_ref();
        let named = special.and_then(|special| special.node.as_deref());
        let mut gate: Option<Instant> = None;
        let mut waited: Option<Instant> = None;
        let mut tried = begun;
        let mut missed: Option<CheckoutError> = None;
        let mut has_waited = false;
        // Whether it waits where a node gives fewer servers than there may be.
        let mut is_patient = named.is_some();
        loop {
            // Made before the look, so that no move after it is missed.
            let mut moved = std::pin::pin!(cluster.moved.notified());
            let topology = cluster.topology();
            self.session.heed_schema(&cluster.clock);
            // The number that was drawn when the read came: it decides as it did then.
            let random = self.random;
            let route = match special {
                None => {
                    let policy = Policy {
                        tried,
                        ..self.base.policy()
                    };
                    look(&self.session.floors, &policy, &cluster, &topology, random)
                }
                Some(special) => self.special_route(&topology, special, tried, random),
            };
            let reason = match route {
                ReadRoute::Replica { index, life } => {
                    let node = topology.nodes[index].clone();
                    let repairable = repairable(&topology);
                    drop(topology);
                    if let Some(since) = gate.filter(|_| waited.is_none()) {
                        telemetry::metrics().gate_passed.increment(1);
                        telemetry::metrics()
                            .gate_wait_seconds
                            .record(since.elapsed());
                    }
                    match self
                        .on_replica(&node, life, &config, !has_waited, is_patient)
                        .await
                    {
                        Ok(server) => {
                            let reason = match named {
                                Some(_) => Reason::NamedReplica,
                                None if gate.is_some() || waited.is_some() => Reason::Gate,
                                None => Reason::Fresh,
                            };
                            return Ok(Placed {
                                server,
                                side: Side::Replica,
                                reason,
                                waited_us: 0,
                                repairable,
                            });
                        }
                        Err(error) => {
                            tried.extend(Some(node.id()));
                            has_waited |= match &error {
                                Some(CheckoutError::Timeout { .. }) => true,
                                Some(error) => is_patient && error.is_for_lack_of_room(),
                                None => false,
                            };
                            missed = error.or(missed);
                            continue;
                        }
                    }
                }
                ReadRoute::Gate(reason) => {
                    drop(topology);
                    self.want_replicas(reason);
                    let since = *gate.get_or_insert_with(Instant::now);
                    let until = since + config.consistency.gate_wait;
                    if Instant::now() < until {
                        cluster.hurry();
                        match special.is_none() && tried.is_empty() {
                            true => cluster.wait_at_gate(&self.session.floors, until).await,
                            // The gate knows of floors alone: nodes that are fresh by those, and have
                            // been tried or lack something else, would open it at once.
                            false => {
                                let _ = timeout_at(until.into(), moved.as_mut()).await;
                            }
                        }
                        continue;
                    }
                    if waited.is_none() {
                        telemetry::metrics().gate_missed.increment(1);
                        telemetry::metrics()
                            .gate_wait_seconds
                            .record(since.elapsed());
                    }
                    reason
                }
                ReadRoute::Primary(reason) => {
                    drop(topology);
                    reason
                }
            };
            let otherwise = match otherwise(&config, reason, special) {
                Otherwise::Primary if is_only => return Err(self.no_replica(reason)),
                THEN_PRIMARY if is_only => Otherwise::Wait {
                    then_primary: false,
                },
                otherwise => otherwise,
            };
            self.pin_by(reason);
            if otherwise == Otherwise::Primary {
                let is_crowded = missed
                    .as_ref()
                    .is_some_and(CheckoutError::is_for_lack_of_room);
                if is_crowded && !has_waited && !is_patient && !self.primary_has_room() {
                    // Nobody has a server for it now.
                    (tried, missed, is_patient) = (begun, None, true);
                    continue;
                }
                return self.read_on_primary(reason, special, missed).await;
            }
            let since = *waited.get_or_insert_with(Instant::now);
            let left = match otherwise {
                Otherwise::Fail => Duration::ZERO,
                _ => config
                    .consistency
                    .wait_timeout
                    .saturating_sub(since.elapsed()),
            };
            if left.is_zero() {
                if self.session.roams() && !is_only {
                    // A transaction is never without a place.
                    return self.read_on_primary(reason, special, missed).await;
                }
                if let Some(error) = missed.take_if(|_| otherwise != THEN_PRIMARY) {
                    return Err(error.into());
                }
                if let Some(node) = named {
                    return Err(Refusal::NamedNode {
                        node: node.to_owned(),
                        reason: reason.name(),
                    });
                }
                if otherwise == THEN_PRIMARY {
                    return self.read_on_primary(reason, special, missed).await;
                }
                return Err(self.no_replica(reason));
            }
            tried = begun;
            cluster.hurry();
            let _ = timeout(left.min(HOLD_STEP), moved).await;
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
        is_patient: bool,
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
        let checkout = match is_patient {
            true => pool.checkout(settings, NO_FAVOURITE).await,
            false => pool.checkout_unless_short(settings).await,
        };
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

    /// The server on the primary that the session holds, or a free one that it has used before.
    fn lend_primary(&mut self, reason: Reason) -> Result<Option<Placed>, Refusal> {
        let topology = self.topology.load();
        let server = if let Some(server) = self.held.take() {
            let node = server.node();
            if !topology.may_hold(node.id()) || !node.may_be_in(server.incarnation) {
                // What it holds open on a server that is the primary no more must not be committed.
                return Err(Refusal::PrimaryChanged {
                    node: server.node().name.clone(),
                });
            }
            Some(server)
        } else if let Some(node) = &topology.primary {
            let settings = self.session.settings();
            lend_known(&self.pools, node.id(), settings, self.last_written)
                .and_then(|server| writing(server, node))
        } else {
            None
        };
        Ok(server.map(|server| Placed::on_primary(server, reason)))
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

    /// Whether the planned read must see what is of a newer history than the primary.
    pub(super) fn is_ahead(&self, special: Option<&Special>) -> bool {
        let by_key = special.map_or(0, |special| special.bounds.timeline());
        let timeline = by_key.max(self.session.floors.timeline(&self.cluster.clock));
        let level = special.map_or(self.base.level, |special| special.policy.level);
        timeline > 0 && level >= Level::Session && self.cluster.topology().is_behind(timeline)
    }

    /// Waits for a primary of that history: there has been a failover that is not known of here.
    async fn wait_for_history(&self, special: Option<&Special>) -> Result<Held, Refusal> {
        let cluster = &self.cluster;
        let held = Held::begin();
        cluster.look_for_primary();
        loop {
            let changed = cluster.changed.notified();
            if !self.is_ahead(special) {
                return Ok(held);
            }
            held.wait(cluster, changed).await?;
        }
    }

    /// A server of the primary, when there is one.
    pub(super) async fn on_primary(&mut self, reason: Reason) -> Result<Placed, Refusal> {
        self.on_primary_after(None, reason).await
    }

    /// The same, for what may have waited for a primary already.
    async fn on_primary_after(
        &mut self,
        held: Option<Held>,
        reason: Reason,
    ) -> Result<Placed, Refusal> {
        match self.lend_primary(reason)? {
            Some(placed) => Ok(placed),
            None => self.wait_for_primary(held, reason).await,
        }
    }

    async fn wait_for_primary(
        &mut self,
        mut held: Option<Held>,
        reason: Reason,
    ) -> Result<Placed, Refusal> {
        let cluster = self.cluster.clone();
        loop {
            let changed = cluster.changed.notified();
            let (primary, config) = {
                let topology = cluster.topology();
                (topology.primary.clone(), topology.config.clone())
            };
            if let Some(node) = primary {
                let pool = self.pool(&node, &config);
                match pool
                    .checkout(self.session.settings(), self.last_written)
                    .await
                {
                    // It may have been waited for as long as a pause is.
                    Ok(server) if !cluster.is_primary(&node) => {
                        server.give_back();
                        continue;
                    }
                    Ok(server) => match writing(server, &node) {
                        Some(server) => return Ok(Placed::on_primary(server, reason)),
                        None => node.wake.notify_one(),
                    },
                    Err(CheckoutError::Connect { error, .. }) if error.is_node_away() => {
                        node.wake.notify_one();
                    }
                    Err(CheckoutError::Leaving { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let held = held.get_or_insert_with(Held::begin);
            held.wait(&cluster, changed).await?;
        }
    }

    fn pool(&mut self, node: &Arc<Node>, config: &Config) -> Arc<Pool> {
        if let Some((_, pool)) = self.pools.iter().find(|(id, _)| *id == node.id()) {
            return pool.clone();
        }
        // Nodes come and go; those that have gone need not be remembered.
        self.pools.retain(|(_, pool)| !pool.node().is_leaving());
        let pool = cluster::pool(node, &self.key, &self.credential, config);
        self.pools.push((node.id(), pool.clone()));
        pool
    }
}

/// Waits for what a batch needs, unless its session is killed, its client cancels it and it `fails_alone`, or its
/// client has gone.
async fn while_wanted<T>(
    handle: &Handle,
    stream: &Stream,
    fails_alone: bool,
    needed: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let mut needed = std::pin::pin!(needed);
    loop {
        // Made before the look, so that nothing that is told after it is missed.
        let mut told = std::pin::pin!(handle.cancelled.notified());
        told.as_mut().enable();
        if handle.must_end(false) {
            return Err(Refusal::going_down());
        }
        tokio::select! {
            got = &mut needed => return got,
            () = told => {
                if fails_alone && !handle.must_end(false) {
                    return Err(Refusal::cancelled());
                }
            }
            () = sleep(GONE_STEP) => {
                if stream.is_ended() {
                    return Err(Refusal::protocol("08006", "connection to client lost"));
                }
            }
        }
    }
}

/// A batch that waits for a primary, for as long as this lives.
struct Held {
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

    /// Waits for another primary, for a step at most.
    ///
    /// # Errors
    /// When it has been waited for as long as that may be.
    async fn wait(&self, cluster: &Cluster, changed: Notified<'_>) -> Result<(), Refusal> {
        let waited = self.since.elapsed();
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
}

impl Drop for Held {
    fn drop(&mut self) {
        telemetry::metrics().held.decrement(1.0);
    }
}

/// The server, if its node has been seen to take writes in the life that it is in. Restarted, it has no role until it
/// has been asked, and no other server is opened until then.
fn writing(server: Box<Server>, node: &Node) -> Option<Box<Server>> {
    if node.writes_in(server.incarnation) {
        return Some(server);
    }
    if node.may_be_in(server.incarnation) {
        server.give_back();
    }
    None
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
    let may_primary = !is_named && config.routing.read_primary != ReadPrimary::Never;
    match config.consistency.on_no_replica {
        _ if is_chosen => Otherwise::Primary,
        OnNoReplica::Primary if may_primary => Otherwise::Primary,
        OnNoReplica::Error if !is_named => Otherwise::Fail,
        on_no_replica => Otherwise::Wait {
            then_primary: may_primary && on_no_replica == OnNoReplica::Wait,
        },
    }
}

/// Whether a batch that has come to `again` may not go to the primary.
fn is_only_for_replicas(again: Option<&Again>) -> bool {
    again.is_some_and(|again| again.only_on_replicas)
}

/// It waits, and then goes to the primary.
const THEN_PRIMARY: Otherwise = Otherwise::Wait { then_primary: true };

fn may_use_primary(config: &Config, reason: Reason, special: Option<&Special>) -> bool {
    otherwise(config, reason, special) == Otherwise::Primary
}

/// A free server of a node that the session has used before.
fn lend_known(
    pools: &[(NodeId, Arc<Pool>)],
    node: NodeId,
    wanted: &Settings,
    favourite: u64,
) -> Option<Box<Server>> {
    let (_, pool) = pools.iter().find(|(id, _)| *id == node)?;
    pool.lend_now(wanted, favourite)
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
