//! A primary and its standbys, made from nothing and gone without a trace.
//!
//! Owns: the temporary directory and the order in which nodes come and go. Never: leaves a process
//! or a file behind, also when a start fails half way, a test panics or this process is killed.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;

use tempfile::TempDir;

use super::DemoError;
use super::node::{LocalNode, Site};
use super::postgres::{self, Postgres};
use super::process::Guard;

/// `sun_path` of a Unix socket holds 108 bytes with its NUL on Linux, 104 elsewhere.
const SOCKET_PATH_MAX: usize = 103;

/// A running cluster. Dropping it stops every server and removes the directory.
#[derive(Debug)]
pub struct LocalCluster {
    nodes: RwLock<Vec<Arc<LocalNode>>>,
    next_index: AtomicUsize,
    site: Arc<Site>,
    // The last fields: the guard is dismissed and the directory removed once no server runs.
    _guard: Guard,
    _directory: TempDir,
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Standbys beside the primary.
    pub replicas: usize,
    /// `max_connections` of every node.
    pub max_connections: u32,
    /// The directory of the server's programs; without it they are looked for.
    pub bindir: Option<PathBuf>,
    /// Further settings for the `postgresql.conf` of every node; they override ours.
    pub settings: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            replicas: 2,
            max_connections: 300,
            bindir: None,
            settings: Vec::new(),
        }
    }
}

impl LocalCluster {
    /// Makes a primary with the database `app` and the roles `postgres`, `app` and `tidegate`
    /// (whose passwords are their names), and its standbys, which have caught up on return.
    pub fn start(options: Options) -> Result<LocalCluster, DemoError> {
        let postgres = match &options.bindir {
            Some(bindir) => Postgres::of(bindir)?,
            None => Postgres::find()?,
        };
        let directory = temporary_directory()?;
        postgres.give(directory.path())?;
        let cluster = LocalCluster {
            nodes: RwLock::default(),
            next_index: AtomicUsize::new(1),
            site: Arc::new(Site {
                postgres,
                directory: directory.path().to_owned(),
                primary: AtomicUsize::new(0),
            }),
            _guard: Guard::start(directory.path())?,
            _directory: directory,
        };

        create_primary(&cluster.site, &options)?;
        let primary = cluster.add(LocalNode::launch(&cluster.site, 0)?);
        primary.sql("postgres", ROLES_AND_DATABASE)?;

        thread::scope(|scope| {
            let starts: Vec<_> = (0..options.replicas)
                .map(|_| scope.spawn(|| cluster.add_replica()))
                .collect();
            starts.into_iter().try_for_each(|start| match start.join() {
                Ok(replica) => replica.map(drop),
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        cluster.wait_caught_up()?;
        Ok(cluster)
    }

    /// The node that was promoted last, or the first one.
    pub fn primary(&self) -> Arc<LocalNode> {
        self.node(self.site.primary.load(Ordering::Acquire))
    }

    /// The nodes that are standbys, running or not, in the order of their numbers.
    pub fn replicas(&self) -> Vec<Arc<LocalNode>> {
        let mut nodes = self.nodes();
        nodes.retain(|node| node.is_standby());
        nodes
    }

    /// Every node, in the order of their numbers.
    pub fn nodes(&self) -> Vec<Arc<LocalNode>> {
        self.nodes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The node with this number; 0 was the first primary.
    ///
    /// # Panics
    ///
    /// If there is no such node.
    pub fn node(&self, index: usize) -> Arc<LocalNode> {
        self.nodes()
            .into_iter()
            .find(|node| node.index() == index)
            .unwrap_or_else(|| panic!("the cluster has no node {index}"))
    }

    /// Adds a standby of the current primary. What it replays from then on is up to replication;
    /// see [`wait_caught_up`](Self::wait_caught_up).
    pub fn add_replica(&self) -> Result<Arc<LocalNode>, DemoError> {
        let index = self.next_index.fetch_add(1, Ordering::Relaxed);
        self.site.copy_node(&self.primary(), index)?;
        Ok(self.add(LocalNode::launch(&self.site, index)?))
    }

    /// The primary's insert position, as a standby can reach it.
    pub fn insert_lsn(&self) -> Result<u64, DemoError> {
        self.primary().insert_lsn()
    }

    /// Waits until every running standby has replayed all that the primary had written when this
    /// was called. Writes one WAL record: without it, WAL of no commit may stay unflushed, and so
    /// unsent, for as long as the primary is idle.
    pub fn wait_caught_up(&self) -> Result<(), DemoError> {
        let lsn = self.primary().write_marker()?;
        for replica in self.replicas() {
            if replica.is_running() {
                replica.wait_for_replay(lsn)?;
            }
        }
        Ok(())
    }

    /// The installation that the servers are of, for its other programs: pgbench, psql.
    pub fn postgres(&self) -> &Postgres {
        &self.site.postgres
    }

    /// The temporary directory, which also holds the Unix sockets.
    pub fn directory(&self) -> &Path {
        &self.site.directory
    }

    /// A configuration for a proxy in front of this cluster, with the users `app` and `postgres`.
    pub fn config_for(&self, listen_port: u16, http_port: u16) -> String {
        config(
            listen_port,
            http_port,
            self.nodes().iter().map(|node| node.address()),
        )
    }

    fn add(&self, node: LocalNode) -> Arc<LocalNode> {
        let node = Arc::new(node);
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.push(Arc::clone(&node));
        // Standbys that start at the same time are ready in any order.
        nodes.sort_by_key(|node| node.index());
        node
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        // Not left to the nodes' own destructors: a test may still hold one.
        for node in self.nodes() {
            node.halt();
        }
    }
}

/// Small and quick to start. `full_page_writes` stays on, because a killed server may leave half a
/// page; WAL is kept, so a standby that was away for a while can return without slots; shared
/// memory is kept in files of the data directory, so a killed server leaves none behind.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("password_encryption", "scram-sha-256"),
    ("shared_buffers", "32MB"),
    ("dynamic_shared_memory_type", "mmap"),
    ("fsync", "off"),
    ("wal_level", "replica"),
    ("wal_log_hints", "on"),
    ("wal_keep_size", "256MB"),
    ("max_wal_senders", "16"),
    ("max_replication_slots", "8"),
    ("max_prepared_transactions", "16"),
    ("hot_standby", "on"),
    ("hot_standby_feedback", "on"),
    ("wal_receiver_status_interval", "1s"),
    ("wal_retrieve_retry_interval", "100ms"),
    ("log_line_prefix", "%m [%p] %u@%d "),
];

const ACCESS: &str = "\
local  all          all                trust
local  replication  all                trust
host   replication  all  127.0.0.1/32  trust
host   all          all  127.0.0.1/32  scram-sha-256
";

const ROLES_AND_DATABASE: &str = "
ALTER ROLE postgres PASSWORD 'postgres';
CREATE ROLE app LOGIN CREATEDB PASSWORD 'app';
CREATE ROLE tidegate LOGIN PASSWORD 'tidegate' IN ROLE pg_monitor;
CREATE DATABASE app OWNER app;
";

fn create_primary(site: &Site, options: &Options) -> Result<(), DemoError> {
    let data_dir = site.data_dir(0);
    let mut initdb = site.postgres.command("initdb");
    initdb
        .arg("-D")
        .arg(&data_dir)
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8"])
        .args(["--locale=C", "--no-sync"]);
    postgres::run(&mut initdb, "")?;

    let failed = || DemoError::io("cannot write the server's configuration");
    fs::write(data_dir.join("pg_hba.conf"), ACCESS).map_err(failed())?;
    let settings = settings(options);
    OpenOptions::new()
        .append(true)
        .open(data_dir.join("postgresql.conf"))
        .and_then(|mut file| file.write_all(settings.as_bytes()))
        .map_err(failed())
}

/// Lines for `postgresql.conf`; of two lines for one name the later counts.
fn settings(options: &Options) -> String {
    let max_connections = options.max_connections.to_string();
    SETTINGS
        .iter()
        .copied()
        .chain([("max_connections", max_connections.as_str())])
        .chain(
            options
                .settings
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        )
        .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
        .collect()
}

fn config(listen_port: u16, http_port: u16, addresses: impl Iterator<Item = String>) -> String {
    let nodes: String = addresses
        .map(|address| format!("\n[[cluster.node]]\naddress = \"{address}\"\n"))
        .collect();
    format!(
        r#"[listen]
address = "127.0.0.1:{listen_port}"

[http]
address = "127.0.0.1:{http_port}"

[auth]
method = "scram-sha-256"

[[auth.user]]
name = "app"
password = "app"

[[auth.user]]
name = "postgres"
password = "postgres"

[[cluster]]
name = "main"
databases = ["*"]
monitor = {{ user = "tidegate", password = "tidegate", database = "postgres" }}
{nodes}"#
    )
}

/// In the usual place, unless that is too deep for a Unix socket.
fn temporary_directory() -> Result<TempDir, DemoError> {
    let mut path = PathBuf::new();
    for base in [std::env::temp_dir(), PathBuf::from("/tmp")] {
        let directory = tempfile::Builder::new()
            .prefix("tidegate-")
            .tempdir_in(&base)
            .map_err(DemoError::io(format!(
                "cannot make a directory in {}",
                base.display()
            )))?;
        path = directory.path().join(".s.PGSQL.65535");
        if path.as_os_str().len() <= SOCKET_PATH_MAX {
            return Ok(directory);
        }
    }
    Err(DemoError::PathTooLong { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_quoted_and_the_callers_come_last() {
        let options = Options {
            max_connections: 42,
            settings: vec![("fsync".into(), "on".into()), ("a.b".into(), "it's".into())],
            ..Options::default()
        };
        let text = settings(&options);
        assert!(text.contains("max_connections = '42'\n"));
        assert!(text.ends_with("fsync = 'on'\na.b = 'it''s'\n"));
    }

    #[test]
    fn the_configuration_is_valid_and_names_every_node() {
        let addresses = ["127.0.0.1:5500".to_owned(), "127.0.0.1:5501".to_owned()];
        let text = config(6432, 9632, addresses.into_iter());
        let config = crate::config::Config::parse(&text, "demo").expect("valid");
        let nodes: Vec<_> = config.clusters[0]
            .nodes
            .iter()
            .map(|node| node.address())
            .collect();
        assert_eq!(nodes, ["127.0.0.1:5500", "127.0.0.1:5501"]);
        assert_eq!(config.listen.address[0].to_string(), "127.0.0.1:6432");
    }
}
