//! Owns: what SHOW shows of the proxy. Never: changes any of it. Where PgBouncer shows the like, columns have
//! its names, and come in its order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use x509_cert::der::DateTime;

use super::command::{OTHERS, Show};
use super::table::Type::{Bool, Float, Int, Text};
use super::table::{Table, Value, row};
use crate::cluster::Cluster;
use crate::cluster::node::{Node, Role};
use crate::cluster::pool::Pool;
use crate::config::PoolMode;
use crate::net::stream::Peer;
use crate::proxy::Proxy;
use crate::proxy::acquire::Side;
use crate::proxy::counters::Counters;
use crate::proxy::sessions::{Doing, Who};
use crate::session::consistency::Replica;
use crate::session::route::{Candidate, Reason};

impl Show {
    pub fn table(self, proxy: &Proxy) -> Table {
        match self {
            Show::Help => help(),
            Show::Version => Table {
                columns: &[("version", Text)],
                rows: vec![row![concat!("Tidegate ", env!("CARGO_PKG_VERSION"))]],
            },
            Show::Nodes => nodes(proxy),
            Show::Lag => lag(proxy),
            Show::Routes => routes(),
            Show::Pools => pools(proxy),
            Show::Clients => clients(proxy),
            Show::Databases => databases(proxy),
            Show::Lists => lists(proxy),
        }
    }
}

fn help() -> Table {
    let shows = Show::ALL
        .iter()
        .map(|(name, _, what)| row![format!("SHOW {name}"), *what]);
    let others = OTHERS.iter().map(|(form, what)| row![*form, *what]);
    Table {
        columns: &[("command", Text), ("description", Text)],
        rows: shows.chain(others).collect(),
    }
}

fn nodes(proxy: &Proxy) -> Table {
    let rows = all_nodes(proxy).map(|(cluster, node)| {
        let role = match node.role() {
            Role::Primary => "primary",
            Role::Replica => "replica",
            Role::Unknown => "unknown",
        };
        let is_primary = primary(&cluster).is_some_and(|primary| primary.id() == node.id());
        let pooled: usize = node.pools.iter().map(|pool| servers(&pool)).sum();
        let servers = pooled + node.passages() as usize;
        let state = match () {
            () if node.is_drained() && servers > 0 => "draining",
            () if node.is_drained() => "drained",
            () if !node.is_up() => "down",
            () if node.is_lagging() => "lagging",
            () => "up",
        };
        row![
            cluster.name.as_str(),
            node.name.as_str(),
            node.host.as_str(),
            u32::from(node.port),
            role,
            state,
            node.is_up(),
            is_primary,
            node.weight(),
            node.position().map(|(_, lsn)| lsn.to_string()),
            node.sample_age(),
            node.in_flight(),
            servers,
            node.latency.get(),
        ]
    });
    Table {
        columns: &[
            ("cluster", Text),
            ("node", Text),
            ("host", Text),
            ("port", Int),
            ("role", Text),
            ("state", Text),
            ("is_up", Bool),
            ("is_primary", Bool),
            ("weight", Int),
            ("lsn", Text),
            ("sample_age_seconds", Float),
            ("in_flight", Int),
            ("servers", Int),
            ("read_seconds", Float),
        ],
        rows: rows.collect(),
    }
}

fn lag(proxy: &Proxy) -> Table {
    let config = proxy.config.load();
    let replicas = all_nodes(proxy)
        .filter(|(cluster, node)| primary(cluster).is_none_or(|primary| primary.id() != node.id()));
    let rows = replicas.map(|(cluster, node)| {
        let newest = cluster.clock.latest().map(|sample| sample.lsn);
        let replayed = node.position().map(|(_, lsn)| lsn);
        let bytes = newest
            .zip(replayed)
            .map(|(newest, at)| newest.0.saturating_sub(at.0));
        row![
            cluster.name.as_str(),
            node.name.as_str(),
            newest.map(|lsn| lsn.to_string()),
            replayed.map(|lsn| lsn.to_string()),
            bytes,
            node.lag().filter(|_| node.is_up()),
            config.lag.max_bytes,
            config.lag.max,
            node.is_lagging(),
            node.sample_age(),
        ]
    });
    Table {
        columns: &[
            ("cluster", Text),
            ("node", Text),
            ("primary_lsn", Text),
            ("replay_lsn", Text),
            ("lag_bytes", Int),
            ("lag_seconds", Float),
            ("max_bytes", Int),
            ("max_seconds", Float),
            ("is_over_limit", Bool),
            ("sample_age_seconds", Float),
        ],
        rows: rows.collect(),
    }
}

fn routes() -> Table {
    let counted = Reason::ALL.iter().zip(Counters::shared().queries);
    let rows = counted.map(|(reason, queries)| {
        let route = Side::of(*reason).name();
        row![route, reason.name(), queries.total()]
    });
    Table {
        columns: &[("route", Text), ("reason", Text), ("queries", Int)],
        rows: rows.collect(),
    }
}

fn pools(proxy: &Proxy) -> Table {
    let mode = mode(proxy);
    let rows = all_pools(proxy).into_iter().map(|pool| {
        let (node, key, census) = (pool.node(), pool.key(), pool.census());
        let waited = census.longest_wait;
        row![
            &*key.database,
            &*key.user,
            census.active,
            census.waiting,
            census.active,
            census.idle,
            waited.as_secs(),
            u64::from(waited.subsec_micros()),
            mode,
            census.size,
            node.cluster.as_str(),
            node.name.as_str(),
        ]
    });
    Table {
        columns: &[
            ("database", Text),
            ("user", Text),
            ("cl_active", Int),
            ("cl_waiting", Int),
            ("sv_active", Int),
            ("sv_idle", Int),
            ("maxwait", Int),
            ("maxwait_us", Int),
            ("pool_mode", Text),
            ("pool_size", Int),
            ("cluster", Text),
            ("node", Text),
        ],
        rows: rows.collect(),
    }
}

fn clients(proxy: &Proxy) -> Table {
    let sessions = proxy.sessions.all();
    let rows = sessions.iter().filter_map(|session| {
        let who = session.who()?;
        let doing = session.doing();
        let (state, wait, server) = match &doing {
            Doing::Nothing => ("idle", None, None),
            Doing::Waiting(wait) => ("waiting", Some(*wait), None),
            Doing::Working(server) => ("active", None, Some(server)),
            Doing::Keeping(server) => ("keeps server", None, Some(server)),
        };
        let (address, port) = match who.peer {
            Peer::Address(address) => (address.ip().to_string(), Some(u32::from(address.port()))),
            Peer::Local => ("unix".to_owned(), None),
            Peer::Unknown => (String::new(), None),
        };
        Some(row![
            "C",
            &*who.key.user,
            &*who.key.database,
            state,
            address,
            port,
            utc(who.since),
            wait,
            server.map(|server| server.node.name.as_str()),
            server.map(|server| Value::Int(server.pid.into())),
            who.tls.as_deref(),
            &*who.application_name,
            who.cluster.as_ref().map(|cluster| cluster.name.as_str()),
            Value::Int(session.pid.into()),
        ])
    });
    Table {
        columns: &[
            ("type", Text),
            ("user", Text),
            ("database", Text),
            ("state", Text),
            ("addr", Text),
            ("port", Int),
            ("connect_time", Text),
            ("wait", Float),
            ("link", Text),
            ("remote_pid", Int),
            ("tls", Text),
            ("application_name", Text),
            ("cluster", Text),
            ("id", Int),
        ],
        rows: rows.collect(),
    }
}

fn databases(proxy: &Proxy) -> Table {
    let config = proxy.config.load();
    let (mode, size) = (mode(proxy), config.pool.size);
    let pools = all_pools(proxy);
    let mut clients: BTreeMap<String, u64> = BTreeMap::new();
    for session in proxy.sessions.all() {
        if let Some(database) = session.who().and_then(Who::database) {
            *clients.entry(database.to_owned()).or_default() += 1;
        }
    }
    let names = known_databases(proxy);
    let rows = names.iter().filter_map(|name| {
        let cluster = proxy.clusters.serving(name)?;
        let primary = primary(&cluster);
        let servers: usize = (pools.iter())
            .filter(|pool| *pool.key().database == **name && pool.node().cluster == cluster.name)
            .map(|pool| servers(pool))
            .sum();
        Some(row![
            name.as_str(),
            primary.as_ref().map(|node| node.host.as_str()),
            primary.as_ref().map(|node| u32::from(node.port)),
            name.as_str(),
            size,
            mode,
            servers,
            clients.get(name).copied().unwrap_or(0),
            cluster.is_paused(name),
            cluster.name.as_str(),
        ])
    });
    Table {
        columns: &[
            ("name", Text),
            ("host", Text),
            ("port", Int),
            ("database", Text),
            ("pool_size", Int),
            ("pool_mode", Text),
            ("current_connections", Int),
            ("current_client_connections", Int),
            ("paused", Bool),
            ("cluster", Text),
        ],
        rows: rows.collect(),
    }
}

/// The databases that are listed in the configuration or used.
pub fn known_databases(proxy: &Proxy) -> BTreeSet<String> {
    let config = proxy.config.load();
    let listed = config
        .clusters
        .iter()
        .flat_map(|cluster| &cluster.databases);
    let listed = listed.filter(|name| *name != "*").cloned();
    // There is a pool for a while also where nobody could log in.
    let pools = all_pools(proxy)
        .into_iter()
        .filter(|pool| servers(pool) > 0);
    let pools = pools.map(|pool| pool.key().database.to_string());
    let sessions = proxy.sessions.all().into_iter();
    let sessions = sessions.filter_map(|session| Some(session.who()?.database()?.to_owned()));
    listed.chain(pools).chain(sessions).collect()
}

fn lists(proxy: &Proxy) -> Table {
    let pools = all_pools(proxy);
    let census = pools.iter().map(|pool| pool.census());
    let (free, used, waiting) = census.fold((0, 0, 0), |(free, used, waiting), census| {
        (
            free + census.idle,
            used + census.active,
            waiting + census.waiting,
        )
    });
    let databases: BTreeSet<_> = pools.iter().map(|pool| &*pool.key().database).collect();
    let users: BTreeSet<_> = pools.iter().map(|pool| &*pool.key().user).collect();
    let sessions = proxy.sessions.all();
    let logged_in = sessions
        .iter()
        .filter(|session| session.who().is_some())
        .count();
    let rows = [
        ("clusters", proxy.clusters.all().len()),
        ("nodes", all_nodes(proxy).count()),
        ("databases", databases.len()),
        ("users", users.len()),
        ("pools", pools.len()),
        ("used_clients", logged_in),
        ("login_clients", sessions.len() - logged_in),
        ("waiting_clients", waiting),
        ("free_servers", free),
        ("used_servers", used),
    ];
    Table {
        columns: &[("list", Text), ("items", Int)],
        rows: rows
            .into_iter()
            .map(|(list, items)| row![list, items])
            .collect(),
    }
}

fn mode(proxy: &Proxy) -> &'static str {
    match proxy.config.load().pool.mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
    }
}

/// How many servers a pool has, or is opening.
fn servers(pool: &Pool) -> usize {
    let census = pool.census();
    census.idle + census.active
}

fn primary(cluster: &Cluster) -> Option<Arc<Node>> {
    cluster.topology().primary.clone()
}

fn all_nodes(proxy: &Proxy) -> impl Iterator<Item = (Arc<Cluster>, Arc<Node>)> {
    let clusters: Vec<_> = proxy.clusters.all().iter().cloned().collect();
    clusters.into_iter().flat_map(|cluster| {
        let nodes = cluster.topology().nodes.clone();
        nodes.into_iter().map(move |node| (cluster.clone(), node))
    })
}

fn all_pools(proxy: &Proxy) -> Vec<Arc<Pool>> {
    let mut all = proxy.clusters.pools();
    all.sort_by(|a, b| {
        let key = |pool: &Pool| (pool.key().database.clone(), pool.key().user.clone());
        key(a).cmp(&key(b))
    });
    all
}

/// A time in UTC, to the second.
fn utc(time: SystemTime) -> Option<String> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    DateTime::from_unix_duration(since)
        .ok()
        .map(|time| time.to_string())
}
