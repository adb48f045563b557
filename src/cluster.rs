//! The clusters: their nodes, who is the primary, and where everybody stands.
//!
//! Owns: a cluster, and what is done to all of its nodes and their pools. Never: speaks to a client.

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
mod latency;
mod metrics;
pub mod node;
pub mod pauses;
pub mod pool;
pub mod positions;
pub mod probe;
pub mod roles;
mod schemas;
pub mod topology;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use self::catalog::Catalogs;
use self::causal::Keys;
use self::causal::store::Store;
pub use self::clusters::Clusters;
use self::demand::Demand;
use self::gate::Gate;
use self::lag::History;
use self::node::Node;
use self::pauses::Pauses;
use self::pool::{Pool, PoolKey};
use self::roles::Roles;
use self::schemas::Schemas;
use self::topology::Topology;
use crate::auth::{Credential, Proven};
use crate::config::{self, Config};
use crate::net::tls::{Material, NodeSide};
use crate::session::consistency::{Clock, Incarnation, Mark, Replica, Tick};
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
    schemas: Schemas,
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
        let topology = Topology::new(nodes.collect(), config.clone());
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
            schemas: Schemas::default(),
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

    /// Has all nodes asked what they are: another one seems to be the primary.
    pub fn look_for_primary(&self) {
        let nodes = &self.topology().nodes;
        nodes.iter().for_each(|node| node.wake.notify_one());
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
            primary,
            last_primary,
            config: config.clone(),
            ..Topology::clone(&old)
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
        for pool in self.topology().pools() {
            pool.set_paused(self.pauses.has(&pool.key().database));
        }
    }

    /// Servers that are lent while their database is paused, or being opened.
    pub fn active_though_paused(&self) -> usize {
        let topology = self.topology();
        let paused = topology
            .pools()
            .filter(|pool| self.pauses.has(&pool.key().database));
        paused.map(|pool| pool.census().active).sum()
    }

    /// `user` has logged in to `database` by this: whatever is opened for it from now on is opened by it, or by what is
    /// configured for it, whichever session of it wants that.
    pub fn note_login(&self, user: &str, database: &str, credential: &Proven) {
        let topology = self.topology();
        let credential = as_configured(&topology.config, user, credential);
        for pool in topology.pools().filter(|pool| *pool.key().user == *user) {
            match *pool.key().database == *database {
                true => pool.set_credential(&credential),
                false => pool.hear_of_credential(&credential),
            }
        }
        let renewed = |name: &str| (name == user).then(|| Proven::clone(&credential));
        self.catalogs.set_credentials(renewed);
    }

    /// What `user` has logged in by last, as far as its pools tell; `own` if they know nothing newer.
    pub fn newest_login(&self, user: &str, own: &Proven) -> Proven {
        let topology = self.topology();
        let pools = topology.pools().filter(|pool| *pool.key().user == *user);
        pools.fold(own.clone(), |newest, pool| {
            let known = pool.credential();
            if known.is_newer_than(&newest) {
                known
            } else {
                newest
            }
        })
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
            node.latency.forget();
            node.set_loss(self.loss(node));
        }
    }

    /// New servers for these: what is open may be unlike what a new connection would be.
    pub fn renew(&self, whose: impl Fn(&PoolKey) -> bool) {
        let topology = self.topology();
        let pools = topology.pools().filter(|pool| whose(pool.key()));
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

/// See [`Cluster::vacate`].
pub struct Vacating(tokio::task::JoinHandle<()>);

impl Drop for Vacating {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn retire(node: &Arc<Node>) {
    node.leave();
    node.pools.iter().for_each(|pool| pool.close());
    // They have the node, and would keep each other.
    node.pools.clear();
}

/// What is configured for the user, or else this.
fn as_configured<'a>(config: &Config, user: &str, credential: &'a Proven) -> Cow<'a, Proven> {
    match config.auth.password(user) {
        Some(password) => Cow::Owned(credential.replaced_by(password)),
        None => Cow::Borrowed(credential),
    }
}

/// The pool of `node` for `key`; made if there is none. Its servers are opened with what is configured for the user, or
/// else with the `credential` of a session.
pub fn pool(node: &Arc<Node>, key: &PoolKey, credential: &Proven, config: &Config) -> Arc<Pool> {
    let credential = &*as_configured(config, &key.user, credential);
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
