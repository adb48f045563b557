//! The clusters: their nodes, who is the primary, and where everybody stands.
//!
//! Owns: the topology that everybody reads without a lock. Never: speaks to a client.

pub mod catalog;
pub mod causal;
mod clusters;
pub mod connect;
mod demand;
mod failover;
pub mod fate;
mod gate;
mod identity;
mod incarnation;
pub mod keys;
pub mod lag;
mod metrics;
pub mod node;
pub mod pauses;
pub mod pool;
pub mod probe;
pub mod roles;

#[cfg(test)]
mod tests;

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
pub use self::clusters::Clusters;
use self::demand::{Demand, Rest};
use self::gate::Gate;
use self::lag::History;
use self::node::{Node, Role};
use self::pauses::Pauses;
use self::pool::{Pool, PoolKey};
use self::roles::Roles;
use crate::auth::{Credential, Proven};
use crate::config::{self, Config};
use crate::net::tls::{Material, NodeSide};
use crate::session::consistency::{
    Clock, Floors, Freshness, Incarnation, Lsn, Mark, NodeId, Replica, Tick,
};
use crate::session::route::{Candidate, Moment, Serving};
use crate::session::schema::Schema;
use crate::sql::functions::Rules;

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
    /// The last change of all schemas that are not kept any more.
    forgotten_schemas: Mutex<Option<Mark>>,
    demand: Demand,
    gate: Gate,
    /// A sample has been taken, or a replica has moved.
    pub moved: Notify,
    /// There is another primary, or none, or one again.
    pub changed: Notify,
    /// What has last been told of nodes that are of different systems.
    dispute: Mutex<Option<String>>,
    roles: Roles,
    keys: Keys,
    /// Where they are shared with other proxies.
    store: ArcSwapOption<Store>,
    catalogs: Catalogs,
}

/// What everybody sees of a cluster at one time.
#[derive(Clone)]
pub struct Topology {
    pub nodes: Vec<Arc<Node>>,
    /// The identifier of the system that the cluster is of; 0 while that is open.
    system: u64,
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
            system: 0,
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
            forgotten_schemas: Mutex::default(),
            demand: Demand::default(),
            gate: Gate::default(),
            moved: Notify::new(),
            changed: Notify::new(),
            dispute: Mutex::default(),
            roles: Roles::start(),
            keys: Keys::new(),
            store: ArcSwapOption::empty(),
            catalogs: Catalogs::start(&cluster.name),
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
        let new = || {
            let name = format!("{}\0{database}", self.name);
            Arc::new(match *self.lock_forgotten_schemas() {
                Some(mark) => Schema::since(&name, mark),
                None => Schema::new(&name),
            })
        };
        self.schemas
            .entry(database.into())
            .or_insert_with(new)
            .clone()
    }

    /// Lets go of the schema of a database that nobody uses. When it was changed still counts: for all databases
    /// that are not known.
    fn forget_schema(&self, database: &str) {
        self.schemas.remove_if(database, |_, schema| {
            let is_unused = Arc::strong_count(schema) == 1;
            if is_unused && schema.version() > 0 {
                let (_, mark) = schema.mark(&self.clock);
                let mut last = self.lock_forgotten_schemas();
                if last.is_none_or(|last| last.moment < mark.moment) {
                    *last = Some(mark);
                }
            }
            is_unused
        });
    }

    fn lock_forgotten_schemas(&self) -> std::sync::MutexGuard<'_, Option<Mark>> {
        let last = self.forgotten_schemas.lock();
        last.unwrap_or_else(PoisonError::into_inner)
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

    /// The like, of a session whose key is not known.
    pub fn note_all_keys(&self, wrote: bool) {
        let now = self.clock.now();
        self.keys.raise_all(now);
        if wrote && let Some(store) = &*self.store.load() {
            store.raise_all(now);
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
        let staleness = config.staleness_max();
        let known = self.store.load_full();
        match (&known, wanted) {
            (None, None) => return,
            (Some(known), Some(wanted)) if known.is_as(wanted, staleness) => return,
            _ => {}
        }
        let opened = wanted
            .map(|wanted| Store::open(wanted, staleness, known.as_deref()))
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

    /// A replica has got to this timeline. `true` if it has left the primary's for it just now: then nothing counts
    /// that it has said before.
    fn note_departure(&self, node: &Node, timeline: u32) -> bool {
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

    /// The system identifier; 0 while it is not known.
    pub fn system(&self) -> u64 {
        self.clock.system().get()
    }

    /// Has nobody wait for a server of a node that is down: another one may do. Only the end of a pause is waited for
    /// all the same, whichever it will be.
    fn send_away(&self, node: &Node) {
        let pools = node.pools.iter();
        let pools = pools.filter(|pool| !self.is_paused(&pool.key().database));
        pools.for_each(|pool| pool.send_away());
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
        let last_primary = old.last_primary.map(|id| {
            last(id)
                .and_then(|node| failover::heir(node, &nodes))
                .unwrap_or(id)
        });
        let topology = Topology {
            nodes: nodes.clone(),
            system: old.system,
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
        // Sessions that are open know the old one.
        let changed = |user: &str| {
            let password = config.auth.password(user);
            let changed = password.filter(|new| old.config.auth.password(user) != Some(new));
            changed.map(|password| Proven::now(Some(Credential::Password(password.clone()))))
        };
        for pool in nodes.iter().flat_map(|node| node.pools.iter()) {
            pool.set_limits(&config.pool);
            if let Some(changed) = changed(&pool.key().user) {
                pool.set_credential(&changed);
            }
        }
        self.catalogs.set_credentials(changed);
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

    /// What is done every second: old servers are closed.
    fn tend(&self) {
        for node in &self.topology().nodes {
            node.pools
                .retain(|_, pool| !(pool.reap() && Arc::strong_count(pool) == 1));
            node.forget_latency();
            node.set_loss(self.loss(node));
        }
    }
}

/// See [`Cluster::vacate`].
pub struct Vacating(tokio::task::JoinHandle<()>);

impl Drop for Vacating {
    fn drop(&mut self) {
        self.0.abort();
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

impl Cluster {
    /// New servers for these: what is open may be unlike what a new connection would be.
    pub fn renew(&self, whose: impl Fn(&PoolKey) -> bool) {
        let topology = self.topology();
        let pools = topology.nodes.iter().flat_map(|node| node.pools.iter());
        let pools = pools.filter(|pool| whose(pool.key()));
        pools.for_each(|pool| pool.renew());
    }

    /// Has servers leave this database that only wait there for clients, for as long as this lives: the primary
    /// runs a statement that they would stand in the way of.
    ///
    /// PostgreSQL refuses at once who may not do that, and waits five seconds for others to leave. So only who may
    /// has them closed, and no longer than that is waited for.
    pub fn vacate(self: &Arc<Self>, database: Box<[u8]>) -> Vacating {
        const REFUSED_WITHIN: Duration = Duration::from_secs(1);
        const PAUSE: Duration = Duration::from_millis(200);
        const GIVEN_UP_WITHIN: Duration = Duration::from_secs(6);
        let cluster = self.clone();
        Vacating(tokio::spawn(async move {
            let began = Instant::now();
            tokio::time::sleep(REFUSED_WITHIN).await;
            while began.elapsed() < GIVEN_UP_WITHIN {
                if let Some(primary) = cluster.topology().primary.clone() {
                    let is_there = |key: &PoolKey| *database == *key.database.as_bytes();
                    let pools = primary.pools.iter().filter(|pool| is_there(pool.key()));
                    pools.for_each(|pool| pool.make_way());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }))
    }
}

fn retire(node: &Arc<Node>) {
    node.leave();
    node.pools.iter().for_each(|pool| pool.close());
    // They have the node, and would keep each other.
    node.pools.clear();
}

/// The pool of `node` for `key`; made if there is none. Its servers are opened with what is configured for the user, or
/// else with the `credential` of a session.
pub fn pool(node: &Arc<Node>, key: &PoolKey, credential: &Proven, config: &Config) -> Arc<Pool> {
    let configured = config.auth.password(&key.user);
    let configured = configured.map(|password| credential.replaced_by(password));
    let credential = configured.as_ref().unwrap_or(credential);
    if let Some(pool) = node.pools.get(key) {
        pool.set_credential(credential);
        return pool.clone();
    }
    let new = || {
        Arc::new(Pool::new(
            node.clone(),
            key.clone(),
            credential.clone(),
            config.pool.clone(),
        ))
    };
    let pool = node.pools.entry(key.clone()).or_insert_with(new).clone();
    if node.is_leaving() {
        // Who retires the node may not have seen it.
        pool.close();
        node.pools.remove(key);
    }
    pool
}
