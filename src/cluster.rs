//! The clusters: their nodes, who is the primary, and where everybody stands.
//!
//! Owns: the topology that everybody reads without a lock. Never: speaks to a client.

pub mod catalog;
pub mod causal;
pub mod connect;
mod demand;
mod gate;
pub mod keys;
pub mod lag;
pub mod node;
pub mod pauses;
pub mod pool;
pub mod probe;
pub mod roles;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use dashmap::DashMap;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use self::catalog::Catalogs;
use self::causal::Keys;
use self::causal::store::{self, Store};
use self::demand::{Demand, Rest};
use self::gate::Gate;
use self::lag::History;
use self::node::{Node, Role};
use self::pauses::Pauses;
use self::pool::{Pool, PoolKey};
use self::roles::Roles;
use crate::auth::Proven;
use crate::config::{self, Config};
use crate::net::tls::{Material, NodeSide};
use crate::session::consistency::{
    Clock, Floors, Freshness, Incarnation, Lsn, Mark, NodeId, Replica, Tick,
};
use crate::session::route::{Candidate, Moment, Serving};
use crate::session::schema::Schema;
use crate::sql::functions::Rules;
use crate::telemetry;

/// Nodes that share a system identifier.
pub struct Cluster {
    pub name: String,
    /// The primary's positions.
    pub clock: Clock,
    topology: Arc<ArcSwap<Topology>>,
    /// Its nodes', too.
    pauses: Arc<Pauses>,
    /// Where its nodes are probed: among clients, as these are told what probes find and tell them what to find.
    probes: Handle,
    /// Held while the topology is replaced.
    update: Mutex<()>,
    history: Mutex<History>,
    /// When a write through this proxy was last acknowledged, on the clock.
    last_write: AtomicU64,
    /// The same, with the position by which it had been made: what new sessions begin with.
    last_write_mark: Mutex<Mark>,
    /// By the database's name, and whether one of them waits for a sample since it was changed.
    schemas: DashMap<Box<str>, Arc<Schema>>,
    schema_waits: AtomicBool,
    demand: Demand,
    gate: Gate,
    /// A sample has been taken, or a replica has moved.
    pub moved: Notify,
    /// There is another primary, or none, or one again.
    pub changed: Notify,
    system: Mutex<Option<String>>,
    roles: Roles,
    keys: Keys,
    /// Where they are shared with other proxies.
    store: ArcSwapOption<Store>,
    catalogs: Catalogs,
}

/// What everybody sees of a cluster at one time.
pub struct Topology {
    pub nodes: Vec<Arc<Node>>,
    pub primary: Option<Arc<Node>>,
    /// How often it had been met when this was decided: it may have lost what it told of before.
    primary_meetings: u64,
    /// Who was the primary last, whether it still is or not.
    last_primary: Option<NodeId>,
    /// The timeline that one was on; 0 if there was none. And the newest that has been given up: the configuration
    /// has nobody of it any more.
    timeline: u32,
    given_up: u32,
    pub config: Arc<Config>,
    /// Two nodes write on one timeline: neither is the primary.
    split_brain: bool,
}

impl Topology {
    /// Whether sessions may go on with the servers that they hold on this node: it is the primary, or was the last one
    /// and nobody is known to have taken its place.
    pub fn may_hold(&self, node: NodeId) -> bool {
        let primary = self.primary.as_ref().map(|primary| primary.id());
        let current = primary.or(self.last_primary);
        !self.split_brain && current.is_none_or(|current| current == node)
    }

    /// Whether what is of this timeline is of a newer history than the primary's.
    pub fn is_behind(&self, timeline: u32) -> bool {
        timeline > self.timeline.max(self.given_up)
    }
}

/// See [`Cluster::watched_topology`].
pub type WatchedTopology = arc_swap::Cache<Arc<ArcSwap<Topology>>, Arc<Topology>>;

impl Cluster {
    fn new(
        config: &Arc<Config>,
        tls: &Material,
        cluster: &config::Cluster,
        probes: &Handle,
    ) -> Arc<Cluster> {
        let tls = tls.for_cluster(&cluster.name);
        let pauses = Arc::<Pauses>::default();
        let new = |node| {
            let (tls, pauses) = (tls.clone(), pauses.clone());
            Node::new(&cluster.name, node, &config.routing, tls, pauses)
        };
        let nodes = cluster.nodes.iter().map(|node| Arc::new(new(node)));
        let topology = Topology {
            nodes: nodes.collect(),
            primary: None,
            primary_meetings: 0,
            last_primary: None,
            timeline: 0,
            given_up: 0,
            config: config.clone(),
            split_brain: false,
        };
        let cluster = Arc::new(Cluster {
            name: cluster.name.clone(),
            clock: Clock::new(),
            topology: Arc::new(ArcSwap::from_pointee(topology)),
            pauses,
            probes: probes.clone(),
            update: Mutex::new(()),
            history: Mutex::default(),
            last_write: AtomicU64::new(0),
            last_write_mark: Mutex::new(Mark::new(Tick(0))),
            schemas: DashMap::new(),
            schema_waits: AtomicBool::new(false),
            demand: Demand::default(),
            gate: Gate::default(),
            moved: Notify::new(),
            changed: Notify::new(),
            system: Mutex::new(None),
            roles: Roles::start(),
            keys: Keys::new(),
            store: ArcSwapOption::empty(),
            catalogs: Catalogs::start(),
        });
        cluster.share_keys(config);
        for node in &cluster.topology().nodes {
            probes.spawn(probe::watch(cluster.clone(), node.clone()));
        }
        cluster
    }

    pub fn topology(&self) -> arc_swap::Guard<Arc<Topology>> {
        self.topology.load()
    }

    /// The topology for somebody who looks at it all the time: a look costs nothing but the comparison
    /// with the one before.
    pub fn watched_topology(&self) -> WatchedTopology {
        arc_swap::Cache::new(self.topology.clone())
    }

    /// A write has been acknowledged to some session.
    pub fn note_write(&self) {
        self.last_write.fetch_max(self.clock.now().0, SeqCst);
    }

    /// When a write was last acknowledged to any session.
    pub fn last_write_mark(&self) -> Mark {
        let mark = self.last_write_mark.lock();
        let mut mark = mark.unwrap_or_else(PoisonError::into_inner);
        let moment = Tick(self.last_write.load(SeqCst));
        if mark.moment != moment {
            *mark = Mark::new(moment);
        }
        *mark = mark.resolved(&self.clock);
        *mark
    }

    /// The schema of a database that somebody has logged in to.
    pub fn schema(&self, database: &str) -> Arc<Schema> {
        if let Some(known) = self.schemas.get(database) {
            return known.clone();
        }
        let new = || Arc::new(Schema::new(&format!("{}\0{database}", self.name)));
        self.schemas
            .entry(database.into())
            .or_insert_with(new)
            .clone()
    }

    /// The schema has been changed: a sample is to say what a replica must have for it.
    pub fn mark_schema(&self, schema: &Schema) {
        schema.mark(&self.clock);
        self.schema_waits.store(true, SeqCst);
        self.want_sample(self.clock.now());
    }

    /// Notes the first sample after each change of a schema while the clock still has it.
    fn mark_schemas(&self) {
        if self.schema_waits.load(SeqCst) && self.schema_waits.swap(false, SeqCst) {
            for schema in &self.schemas {
                if schema.mark(&self.clock).1.sample.is_none() {
                    self.schema_waits.store(true, SeqCst);
                }
            }
        }
    }

    /// A session of this key has been acknowledged something: what it wrote, or only what it read on the
    /// primary. Other proxies are told of what is written.
    pub fn note_key(&self, database: &str, key: &str, wrote: bool) {
        let (id, now) = (self.keys.id(database, key), self.clock.now());
        self.keys.raise(id, now);
        if wrote && let Some(store) = &*self.store.load() {
            store.raise(id, database, key, now);
            self.want_sample(now);
        }
    }

    /// What sessions of this key must see by what this proxy knows; and where it has to be asked what
    /// others know.
    pub fn key_floor(&self, database: &str, key: &str) -> (Mark, Option<Arc<Store>>) {
        let id = self.keys.id(database, key);
        (self.keys.floor(id, &self.clock), self.store.load_full())
    }

    /// Shares causal keys as this configuration says.
    fn share_keys(self: &Arc<Self>, config: &Config) {
        let wanted = config.consistency.redis.as_ref();
        let lag_max = config.lag.max;
        let known = self.store.load_full();
        match (&known, wanted) {
            (None, None) => return,
            (Some(known), Some(wanted)) if known.is_as(wanted, lag_max) => return,
            _ => {}
        }
        let opened = wanted
            .map(|wanted| Store::open(wanted, lag_max, known.as_deref()))
            .transpose();
        match opened {
            Ok(opened) => {
                if let Some(store) = &opened {
                    tokio::spawn(store::keep(self.clone(), store.clone()));
                }
                self.store.store(opened);
                if let Some(known) = known {
                    known.close();
                }
            }
            // The configuration has been checked; what is here stays.
            Err(error) => {
                tracing::error!(cluster = %self.name, %error, "causal keys can't be shared")
            }
        }
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

    /// Has all nodes asked what they are: another one seems to be the primary.
    pub fn look_for_primary(&self) {
        let nodes = &self.topology().nodes;
        nodes.iter().for_each(|node| node.wake.notify_one());
    }

    fn wake_primary(&self) {
        if let Some(primary) = &self.topology().primary {
            primary.wake.notify_one();
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
    fn raise_goal(&self, lsn: Lsn) {
        if !self.demand.raise_goal(lsn) {
            return;
        }
        for node in &self.topology().nodes {
            if node.role() == Role::Replica && node.rests() {
                node.wake.notify_one();
            }
        }
    }

    fn is_sample_wanted(&self) -> bool {
        self.demand.is_sample_wanted(self.newest_tick())
    }

    /// Whether the primary is to be asked at once.
    fn is_urgent(&self) -> bool {
        self.demand.is_urgent(self.newest_tick())
    }

    fn newest_tick(&self) -> Tick {
        self.clock.latest().map_or(Tick(0), |sample| sample.tick)
    }

    fn set_rest(&self, node: &Node, rest: Rest) {
        node.set_resting(rest != Rest::None);
        if self.is_primary(node) {
            self.demand.set_rest(rest);
        }
    }

    fn goal(&self) -> Lsn {
        self.demand.goal()
    }

    /// The next of the primary's positions beyond `replayed`, if somebody waits for one there.
    fn next_goal(&self, replayed: Lsn) -> Option<Lsn> {
        let goal = self.goal();
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        (replayed < goal).then(|| history.next(replayed).map_or(goal, |next| next.min(goal)))
    }

    pub fn is_primary(&self, node: &Node) -> bool {
        self.topology()
            .primary
            .as_ref()
            .is_some_and(|primary| primary.id() == node.id())
    }

    /// The primary was at `lsn` when sample `tick` was taken, which began at `asked`.
    fn sampled(&self, tick: Tick, lsn: Lsn, asked: Instant) {
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
    fn is_followed_by(&self, node: &Node) -> bool {
        let timeline = self.clock.timeline();
        timeline == 0 || node.timeline() == timeline
    }

    /// A replica has replayed to `lsn`. `false` if that is not known to be a position in the primary's history.
    fn note_position(&self, node: &Node, lsn: Lsn) -> bool {
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

    /// Waits until a replica has what `floors` ask for, and at most until `until`.
    pub async fn wait_at_gate(&self, floors: &Floors, until: Instant) {
        let opened = self.gate.join(floors.clone());
        // What has moved before that, nobody else looks at again.
        self.look_at_gate();
        let _ = tokio::time::timeout_at(until.into(), opened).await;
    }

    /// A sample has been taken, or a node has moved or come.
    fn has_moved(&self) {
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

    /// Accepts a node by its system identifier: the first one seen is the cluster's.
    fn admit(&self, system: &str) -> Result<(), String> {
        let mut known = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(expected) if expected != system => Err(expected.clone()),
            _ => {
                *known = Some(system.to_owned());
                Ok(())
            }
        }
    }

    /// The system identifier; 0 while no node has told it.
    pub fn system(&self) -> u64 {
        let known = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        // PostgreSQL shows it as a signed number.
        let number = known.as_ref().and_then(|text| text.parse::<i64>().ok());
        number.map_or(0, i64::cast_unsigned)
    }

    /// Decides again who is the primary.
    fn reconsider(&self) {
        let update = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.topology.load_full();
        let (primary, split_brain) = elect(&old, self.clock.timeline());
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
        let (nodes, config) = (old.nodes.clone(), old.config.clone());
        let last_primary = id(&primary).or(old.last_primary);
        let timeline = primary.as_ref().map_or(old.timeline, |new| new.timeline());
        let given_up = match timeline < old.timeline {
            true => old.given_up.max(old.timeline),
            false => old.given_up,
        };
        let topology = Topology {
            nodes,
            primary: primary.clone(),
            primary_meetings: meetings,
            last_primary,
            timeline,
            given_up,
            config,
            split_brain,
        };
        self.topology.store(Arc::new(topology));
        drop(update);
        if let Some(new) = primary {
            leave_last_primary(&old, &new);
            // Not before they can see who that is: the primary is to be asked for the sample that every session waits
            // for, the others whether they follow it.
            old.nodes.iter().for_each(|node| node.wake.notify_one());
        }
        old.nodes.iter().for_each(|node| node.report());
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

    /// Has nobody wait for a server of a node that is down: another one may do. Only the end of a pause is waited for
    /// all the same, whichever it will be.
    fn send_away(&self, node: &Node) {
        let pools = node.pools.iter();
        let pools = pools.filter(|pool| !self.is_paused(&pool.key().database));
        pools.for_each(|pool| pool.send_away());
    }

    /// Tells of a node that writes in a history that is no longer the cluster's.
    fn note_fenced(&self, node: &Node) {
        let (cluster, name, present) = (&self.name, &node.name, self.clock.timeline());
        let timeline = node.timeline();
        if node.is_up() && node.role() == Role::Primary && timeline < present {
            tracing::error!(%cluster, node = %name, timeline, "node writes on a timeline that has been left for {present}: it gets nothing until it is a standby");
        }
    }

    /// Applies a changed configuration: nodes come and go, the others stay as they are.
    fn apply(
        self: &Arc<Self>,
        config: &Arc<Config>,
        tls: &Arc<NodeSide>,
        cluster: &config::Cluster,
    ) {
        let update = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.topology.load_full();
        let same =
            |a: &Node, b: &config::Node| a.name == b.name && a.host == b.host && a.port == b.port;
        let mut nodes = Vec::with_capacity(cluster.nodes.len());
        for wanted in &cluster.nodes {
            if let Some(known) = old.nodes.iter().find(|node| same(node, wanted)) {
                known.configure(wanted, &config.routing);
                known.tls.store(tls.clone());
                nodes.push(known.clone());
            } else {
                let (tls, pauses) = (tls.clone(), self.pauses.clone());
                let node = Arc::new(Node::new(&self.name, wanted, &config.routing, tls, pauses));
                tracing::info!(cluster = %self.name, node = %node.name, "node added");
                nodes.push(node);
            }
        }
        let is_in = |node: &Node, nodes: &[Arc<Node>]| nodes.iter().any(|n| n.id() == node.id());
        let primary = old.primary.clone().filter(|node| is_in(node, &nodes));
        let last = |id| old.nodes.iter().find(|node| node.id() == id);
        let last_primary = old
            .last_primary
            .map(|id| last(id).and_then(|node| heir(node, &nodes)).unwrap_or(id));
        let topology = Topology {
            nodes: nodes.clone(),
            primary,
            primary_meetings: old.primary_meetings,
            last_primary,
            timeline: old.timeline,
            given_up: old.given_up,
            config: config.clone(),
            split_brain: old.split_brain,
        };
        self.topology.store(Arc::new(topology));
        drop(update);
        for node in nodes.iter().filter(|node| !is_in(node, &old.nodes)) {
            self.probes.spawn(probe::watch(self.clone(), node.clone()));
        }
        for node in old.nodes.iter().filter(|node| !is_in(node, &nodes)) {
            tracing::info!(cluster = %self.name, node = %node.name, "node removed");
            retire(node);
        }
        self.share_keys(config);
        for pool in nodes.iter().flat_map(|node| node.pools.iter()) {
            pool.set_limits(&config.pool);
        }
        if Rules::of(&config.routing) != Rules::of(&old.config.routing) {
            self.catalogs.outdate();
        } else if config.routing.catalog_interval != old.config.routing.catalog_interval {
            self.catalogs.look_again();
        }
        // How they are probed, and as whom, may be another thing now.
        nodes.iter().for_each(|node| node.wake.notify_one());
        let previous = old.config.clusters.iter().find(|c| c.name == self.name);
        if previous.is_some_and(|previous| previous.tls != cluster.tls) {
            // Idle servers were opened under other rules.
            let pools = nodes.iter().flat_map(|node| node.pools.iter());
            pools.for_each(|pool| pool.close_stale(Incarnation(0)));
        }
        self.reconsider();
    }

    /// Has a node take nothing new, once what is open on it is done; or take its part again. The primary,
    /// drained, is the primary no more: writes are held until there is one.
    pub fn drain(&self, node: &Node, drained: bool) {
        let cluster = &self.name;
        tracing::info!(%cluster, node = %node.name, "{}", if drained { "node drained" } else { "node resumed" });
        let update = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        node.set_drained(drained);
        drop(update);
        self.reconsider();
        self.has_moved();
    }

    /// Has everybody wait who wants a server for this database, or any; what is open finishes, and then its
    /// servers are closed.
    pub fn pause(&self, database: Option<&str>) {
        let _update = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        self.pauses.begin(database);
        // A pool that is made meanwhile asks whether it is paused, and is either seen here or has been told.
        self.follow_pauses();
    }

    /// Ends the pause of a database, or all pauses. `false` if there was none.
    pub fn resume(&self, database: Option<&str>) -> bool {
        let _update = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.pauses.end(database);
        self.follow_pauses();
        ended
    }

    pub fn is_paused(&self, database: &str) -> bool {
        self.pauses.has(database)
    }

    fn follow_pauses(&self) {
        for pool in self
            .topology()
            .nodes
            .iter()
            .flat_map(|node| node.pools.iter())
        {
            pool.set_paused(self.pauses.has(&pool.key().database));
        }
    }

    /// Servers that are lent while their database is paused, or being opened.
    pub fn active_though_paused(&self) -> usize {
        let topology = self.topology();
        let pools = topology.nodes.iter().flat_map(|node| node.pools.iter());
        let paused = pools.filter(|pool| self.pauses.has(&pool.key().database));
        paused.map(|pool| pool.census().active).sum()
    }

    /// What servers are opened with for `key`, if any are.
    pub fn credential(&self, key: &PoolKey) -> Option<Proven> {
        let nodes = &self.topology().nodes;
        nodes
            .iter()
            .find_map(|node| Some(node.pools.get(key)?.credential()))
    }

    /// Whether the configuration has it no more.
    fn is_gone(&self) -> bool {
        self.topology().nodes.iter().all(|node| node.is_leaving())
    }

    /// What is done every second: old servers are closed, gauges are set.
    fn tend(&self) {
        self.catalogs.report();
        for node in &self.topology().nodes {
            node.pools
                .retain(|_, pool| !(pool.reap() && Arc::strong_count(pool) == 1));
            node.forget_latency();
            node.report();
        }
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

/// Which of these nodes is the same server, as far as a configuration tells: its address counts for more than its name.
fn heir(node: &Node, nodes: &[Arc<Node>]) -> Option<NodeId> {
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
/// nodes have been asked once, as any may be on a newer timeline.
fn elect(topology: &Topology, timeline: u32) -> (Option<Arc<Node>>, bool) {
    let is_unknown = |node: &Arc<Node>| !node.is_probed() && !node.is_leaving();
    if topology.primary.is_none() && topology.nodes.iter().any(is_unknown) {
        return (None, topology.split_brain);
    }
    let is_listed = |last: NodeId| topology.nodes.iter().any(|node| node.id() == last);
    let oldest = match topology.last_primary {
        Some(last) if is_listed(last) => timeline,
        _ => 0,
    };
    let writes = |node: &&Arc<Node>| {
        let is_writable = node.is_up() && node.role() == Role::Primary;
        is_writable && !node.is_leaving() && node.timeline() >= oldest
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

impl Cluster {
    /// New servers for all: what is open may be unlike what a new connection would be.
    pub fn renew(&self) {
        for node in &self.topology().nodes {
            node.pools.iter().for_each(|pool| pool.renew());
        }
    }

    /// Closes what is idle on these databases.
    pub fn vacate(&self, databases: &[Box<[u8]>]) {
        let named = |key: &PoolKey| {
            databases
                .iter()
                .any(|name| **name == *key.database.as_bytes())
        };
        for node in &self.topology().nodes {
            let pools = node.pools.iter().filter(|pool| named(pool.key()));
            pools.for_each(|pool| pool.vacate());
        }
    }
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

fn retire(node: &Arc<Node>) {
    node.leave();
    for pool in &node.pools {
        pool.close();
    }
}

/// The pool of `node` for `key`; made if there is none.
pub fn pool(
    node: &Arc<Node>,
    key: &PoolKey,
    credential: &Proven,
    limits: &config::Pool,
) -> Arc<Pool> {
    if let Some(pool) = node.pools.get(key) {
        pool.set_credential(credential);
        return pool.clone();
    }
    let new = || {
        Arc::new(Pool::new(
            node.clone(),
            key.clone(),
            credential.clone(),
            limits.clone(),
        ))
    };
    node.pools.entry(key.clone()).or_insert_with(new).clone()
}

/// All clusters of the configuration.
pub struct Clusters {
    list: ArcSwap<Vec<Arc<Cluster>>>,
    probes: Handle,
}

impl Clusters {
    /// Starts watching every node, on the runtime `probes`. To be called within the runtime that is to ask
    /// for catalogs and roles, which may take it a while.
    pub fn start(config: &Arc<Config>, tls: &Material, probes: &Handle) -> Clusters {
        let list = config
            .clusters
            .iter()
            .map(|cluster| Cluster::new(config, tls, cluster, probes))
            .collect();
        Clusters {
            probes: probes.clone(),
            list: ArcSwap::from_pointee(list),
        }
    }

    pub fn all(&self) -> Arc<Vec<Arc<Cluster>>> {
        self.list.load_full()
    }

    /// The cluster that serves `database`: the one that names it, else the one that takes all.
    pub fn serving(&self, database: &str) -> Option<Arc<Cluster>> {
        let list = self.list.load();
        let names = |wanted: &str| {
            list.iter().find(|cluster| {
                let topology = cluster.topology();
                let config = topology
                    .config
                    .clusters
                    .iter()
                    .find(|c| c.name == cluster.name);
                config.is_some_and(|config| config.databases.iter().any(|name| name == wanted))
            })
        };
        names(database).or_else(|| names("*")).cloned()
    }

    /// The pools of all nodes.
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        let mut pools = Vec::new();
        for cluster in self.list.load().iter() {
            for node in &cluster.topology().nodes {
                pools.extend(node.pools.iter().map(|pool| pool.clone()));
            }
        }
        pools
    }

    /// The cluster, if there is but one.
    pub fn only(&self) -> Option<Arc<Cluster>> {
        let list = self.list.load();
        list.first().filter(|_| list.len() == 1).cloned()
    }

    /// Applies a changed configuration.
    pub fn apply(&self, config: &Arc<Config>, tls: &Material) {
        let old = self.list.load_full();
        let mut list = Vec::with_capacity(config.clusters.len());
        for wanted in &config.clusters {
            match old.iter().find(|cluster| cluster.name == wanted.name) {
                Some(known) => {
                    known.apply(config, &tls.for_cluster(&wanted.name), wanted);
                    list.push(known.clone());
                }
                None => list.push(Cluster::new(config, tls, wanted, &self.probes)),
            }
        }
        let gone = old
            .iter()
            .filter(|c| !config.clusters.iter().any(|w| w.name == c.name));
        for cluster in gone {
            tracing::info!(cluster = %cluster.name, "cluster removed");
            cluster.topology().nodes.iter().for_each(retire);
            if let Some(store) = cluster.store.swap(None) {
                store.close();
            }
            cluster.changed.notify_waiters();
        }
        self.list.store(Arc::new(list));
    }

    /// Waits until other proxies have been told what they are to be told, within one limit for all clusters.
    pub async fn tell_others(&self) {
        let until = tokio::time::Instant::now() + store::PATIENCE;
        for cluster in self.all().iter() {
            let store = cluster.store.load_full();
            if let Some(store) = store
                && !store.has_told_all(until).await
            {
                tracing::warn!(cluster = %cluster.name, "other proxies have not been told of the last writes under causal keys");
            }
        }
    }

    /// What is done every second.
    pub fn tend(&self) {
        for cluster in self.list.load().iter() {
            cluster.tend();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::pool::NO_FAVOURITE;
    use super::*;
    use crate::session::settings::Settings;

    /// Of nodes at these addresses.
    fn config(addresses: &[&str]) -> Arc<Config> {
        let node = |address| format!("[[cluster.node]]\naddress = \"{address}\"\n");
        let nodes: String = addresses.iter().map(node).collect();
        let text = format!(
            "[[auth.user]]\nname = \"a\"\npassword = \"a\"\n[[cluster]]\nname = \"c\"\n\
            databases = [\"*\"]\n{nodes}"
        );
        Arc::new(Config::parse(&text, "test").expect("valid"))
    }

    /// What its probe does about a node that takes writes.
    fn meet_writable(node: &Node, life: u64, timeline: u32) {
        node.meet(Incarnation(life));
        node.set_timeline(timeline);
        node.set_role(Role::Primary);
        node.set_up(true);
        node.set_probed();
    }

    /// Two nodes that write on one timeline, in these lives.
    fn rivals(lives: [u64; 2]) -> Topology {
        let config = config(&["127.0.0.1:1", "127.0.0.1:2"]);
        let nodes = config.clusters[0].nodes.iter().zip(lives);
        let nodes = nodes.map(|(node, life)| {
            let (tls, pauses) = (Arc::default(), Arc::default());
            let node = Arc::new(Node::new("c", node, &config.routing, tls, pauses));
            meet_writable(&node, life, 1);
            node
        });
        Topology {
            nodes: nodes.collect(),
            primary: None,
            primary_meetings: 0,
            last_primary: None,
            timeline: 0,
            given_up: 0,
            config: config.clone(),
            split_brain: false,
        }
    }

    /// A cluster whose nodes nobody probes.
    struct Unwatched {
        cluster: Arc<Cluster>,
        /// It never runs.
        runtime: tokio::runtime::Runtime,
    }

    impl Unwatched {
        fn new(config: &Arc<Config>) -> Unwatched {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().expect("a runtime");
            let cluster = {
                let _entered = runtime.enter();
                let tls = Material::default();
                Cluster::new(config, &tls, &config.clusters[0], runtime.handle())
            };
            Unwatched { cluster, runtime }
        }

        fn node(&self, index: usize) -> Arc<Node> {
            self.cluster.topology().nodes[index].clone()
        }

        fn primary(&self) -> Option<NodeId> {
            let topology = self.cluster.topology();
            topology.primary.as_ref().map(|node| node.id())
        }

        fn reload(&self, config: &Arc<Config>) {
            let _entered = self.runtime.enter();
            self.cluster
                .apply(config, &Arc::default(), &config.clusters[0]);
        }
    }

    #[test]
    fn nobody_is_the_primary_before_all_have_been_asked() {
        let unwatched = Unwatched::new(&config(&["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]));
        let cluster = &unwatched.cluster;
        let [old, new, away] = [0, 1, 2].map(|index| unwatched.node(index));
        meet_writable(&old, 7, 1);
        cluster.reconsider();
        assert_eq!(unwatched.primary(), None);
        away.set_probed();
        cluster.reconsider();
        assert_eq!(unwatched.primary(), None);
        meet_writable(&new, 8, 2);
        cluster.reconsider();
        assert_eq!(unwatched.primary(), Some(new.id()));
    }

    #[test]
    fn a_primary_at_another_address_is_asked_before_one_that_has_been_left() {
        let unwatched = Unwatched::new(&config(&["127.0.0.1:1", "127.0.0.1:2"]));
        meet_writable(&unwatched.node(0), 7, 1);
        meet_writable(&unwatched.node(1), 8, 2);
        unwatched.cluster.reconsider();
        assert_eq!(unwatched.primary(), Some(unwatched.node(1).id()));
        unwatched.reload(&config(&["127.0.0.1:1", "127.0.0.2:2"]));
        let new = unwatched.node(1);
        assert!(!new.is_probed());
        assert_eq!(unwatched.primary(), None);
        meet_writable(&new, 8, 2);
        unwatched.cluster.reconsider();
        assert_eq!(unwatched.primary(), Some(new.id()));
    }

    #[test]
    fn a_primary_that_is_renamed_is_not_given_up() {
        let named = |nodes: &[(&str, &str)]| {
            let mut config = (*config(&["127.0.0.1:1", "127.0.0.1:2"])).clone();
            for (node, (name, host)) in config.clusters[0].nodes.iter_mut().zip(nodes) {
                (node.name, node.host) = ((*name).to_owned(), (*host).to_owned());
            }
            Arc::new(config)
        };
        let before = named(&[("old", "a"), ("new", "b")]);
        for after in [
            [("old", "a"), ("newest", "b")],
            [("old", "a"), ("new", "c")],
        ] {
            let unwatched = Unwatched::new(&before);
            meet_writable(&unwatched.node(0), 7, 1);
            meet_writable(&unwatched.node(1), 8, 2);
            unwatched.cluster.reconsider();
            unwatched.reload(&named(&after));
            let new = unwatched.node(1);
            // Asked, and it did not answer.
            new.set_probed();
            unwatched.cluster.reconsider();
            assert_eq!(unwatched.primary(), None, "{after:?}");
            meet_writable(&new, 8, 2);
            unwatched.cluster.reconsider();
            assert_eq!(unwatched.primary(), Some(new.id()), "{after:?}");
        }
    }

    #[test]
    fn what_a_primary_was_told_that_is_given_up_is_not_waited_for() {
        let unwatched = Unwatched::new(&config(&["127.0.0.1:1", "127.0.0.1:2"]));
        let is_behind = |timeline| unwatched.cluster.topology().is_behind(timeline);
        assert!(is_behind(1) && !is_behind(0), "none is known");
        meet_writable(&unwatched.node(0), 7, 1);
        meet_writable(&unwatched.node(1), 8, 2);
        unwatched.cluster.reconsider();
        assert!(is_behind(3) && !is_behind(2));
        unwatched.reload(&config(&["127.0.0.1:1"]));
        assert_eq!(unwatched.primary(), Some(unwatched.node(0).id()));
        assert!(is_behind(3) && !is_behind(2));
    }

    #[test]
    fn nobody_takes_the_place_of_a_primary_of_a_newer_timeline() {
        let mut topology = rivals([7, 8]);
        let (old, new) = (topology.nodes[0].clone(), topology.nodes[1].clone());
        new.set_timeline(2);
        let elected = |topology: &Topology| elect(topology, 2).0.map(|node| node.id());
        assert_eq!(elected(&topology), Some(new.id()));
        topology.last_primary = Some(new.id());
        new.set_up(false);
        assert_eq!(elected(&topology), None);
        old.set_timeline(3);
        assert_eq!(elected(&topology), Some(old.id()), "it has been promoted");
        // An admin has given the other one up.
        old.set_timeline(1);
        topology.nodes.pop();
        assert_eq!(elected(&topology), Some(old.id()));
    }

    #[test]
    fn a_replica_is_as_late_as_it_was_while_the_primary_is_met_again() {
        let unwatched = Unwatched::new(&config(&["127.0.0.1:1", "127.0.0.1:2"]));
        let cluster = &unwatched.cluster;
        let [primary, late] = [0, 1].map(|index| unwatched.node(index));
        late.set_probed();
        meet_writable(&primary, 7, 1);
        cluster.reconsider();
        late.set_role(Role::Replica);
        late.set_timeline(1);
        let now = Instant::now();
        let long_ago = now - cluster.topology().config.lag.max * 2;
        cluster.sampled(cluster.clock.begin(), Lsn(10), long_ago);
        cluster.sampled(cluster.clock.begin(), Lsn(20), long_ago);
        let is_late = || {
            assert!(cluster.note_position(&late, Lsn(10)));
            late.is_lagging()
        };
        assert!(is_late());
        primary.forget_position();
        primary.meet(Incarnation(7));
        cluster.reconsider();
        assert!(is_late(), "nobody has said where the primary is now");
        // What had not been flushed is lost.
        cluster.sampled(cluster.clock.begin(), Lsn(10), now);
        assert!(!is_late());
    }

    #[test]
    fn only_who_waits_for_the_end_of_a_pause_waits_for_a_node_that_is_down() {
        let config = config(&["127.0.0.1:1"]);
        let unwatched = Unwatched::new(&config);
        let _entered = unwatched.runtime.enter();
        let node = unwatched.node(0);
        let key = PoolKey {
            database: "app".into(),
            user: "a".into(),
        };
        let limits = config::Pool {
            size: 0,
            ..config.pool.clone()
        };
        let pool = pool(&node, &key, &Proven::now(None), &limits);
        let wanted = Settings::default();
        let goes_on_waiting = || {
            let mut checkout = pin!(pool.checkout(&wanted, NO_FAVOURITE));
            let mut cx = Context::from_waker(Waker::noop());
            assert!(checkout.as_mut().poll(&mut cx).is_pending());
            unwatched.cluster.send_away(&node);
            checkout.as_mut().poll(&mut cx).is_pending()
        };
        assert!(!goes_on_waiting());
        unwatched.cluster.pause(None);
        assert!(goes_on_waiting());
    }

    #[test]
    fn what_is_held_on_a_primary_that_has_been_left_is_lost() {
        let mut topology = rivals([7, 8]);
        let [old, new] = [0, 1].map(|at| topology.nodes[at].clone());
        let held = |topology: &Topology| [&old, &new].map(|node| topology.may_hold(node.id()));
        topology.primary = Some(old.clone());
        topology.last_primary = Some(old.id());
        assert_eq!(held(&topology), [true, false]);
        topology.primary = None;
        assert_eq!(held(&topology), [true, false], "it may be back");
        topology.primary = Some(new.clone());
        topology.last_primary = Some(new.id());
        assert_eq!(held(&topology), [false, true]);
        topology.primary = None;
        assert_eq!(held(&topology), [false, true], "the old one is fenced");
        topology.split_brain = true;
        assert_eq!(held(&topology), [false, false]);
    }

    #[test]
    fn rivals_are_told_apart_while_their_probes_reconnect() {
        let is_split = |topology: &Topology| {
            let (primary, split_brain) = elect(topology, 0);
            assert_eq!(primary.is_none(), split_brain);
            split_brain
        };
        let (two, one) = (rivals([7, 8]), rivals([7, 7]));
        assert!(is_split(&two));
        assert!(!is_split(&one), "two names of one server");
        for lost in 0..2 {
            two.nodes[lost].forget_position();
            one.nodes[lost].forget_position();
            assert!(is_split(&two));
            assert!(!is_split(&one));
        }
    }
}
