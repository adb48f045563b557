//! Starts the proxy in front of a local cluster, for tests: its own process, as users run it.
#![allow(dead_code, reason = "each test uses a part of it")]

pub mod client;
pub mod example;
pub mod forms;
pub mod raw;
pub mod redis;
pub mod tap;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate::demo::{LocalCluster, Options};

/// A primary and so many replicas, with these settings on all of them.
pub fn cluster_with(replicas: usize, settings: &[(&str, &str)]) -> LocalCluster {
    let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    LocalCluster::start(Options {
        replicas,
        settings: settings.iter().map(own).collect(),
        ..Options::default()
    })
    .expect("a cluster")
}

/// The same, with what the text makes in its database; the replicas have it on return.
pub fn cluster_of(replicas: usize, settings: &[(&str, &str)], schema: &str) -> LocalCluster {
    let cluster = cluster_with(replicas, settings);
    cluster.primary().sql("app", schema).expect("schema");
    cluster.wait_caught_up().expect("caught up");
    cluster
}

/// A proxy process in front of a cluster; killed when dropped.
pub struct Gateway {
    pub port: u16,
    pub http_port: u16,
    pub config_path: PathBuf,
    child: Child,
    directory: tempfile::TempDir,
}

impl Gateway {
    /// A proxy with the cluster's own configuration.
    pub fn start(cluster: &LocalCluster) -> Gateway {
        Gateway::start_with(cluster, |config| config)
    }

    /// A proxy with the cluster's configuration as `change` makes it.
    pub fn start_with(cluster: &LocalCluster, change: impl Fn(String) -> String) -> Gateway {
        let nodes = cluster.nodes().len();
        Gateway::start_on(nodes, |port, http_port| {
            change(cluster.config_for(port, http_port))
        })
    }

    /// A proxy in front of so many nodes, with the configuration for its ports, the clients' and that for HTTP.
    pub fn start_on(nodes: usize, config: impl Fn(u16, u16) -> String) -> Gateway {
        let directory = tempfile::tempdir().expect("temporary directory");
        let config_path = directory.path().join("config.toml");
        let (port, http_port) = (free_port(), free_port());
        fs::write(&config_path, config(port, http_port)).expect("config");
        let log = fs::File::create(directory.path().join("log")).expect("log");
        let child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["--config".as_ref(), config_path.as_os_str()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("tidegate starts");
        let mut gateway = Gateway {
            port,
            http_port,
            config_path,
            child,
            directory,
        };
        gateway.wait_ready(nodes);
        gateway
    }

    /// Waits until every node of the configuration is known, there is a primary, and replicas have told where
    /// they are in its history.
    fn wait_ready(&mut self, nodes: usize) {
        wait_for("the proxy to know its nodes", || {
            if let Some(status) = self.child.try_wait().expect("wait") {
                panic!("tidegate ended: {status}\n{}", self.log());
            }
            let known = |metrics: String| {
                let are = |name: &str, value: &str| {
                    let lines = metrics.lines().filter(|line| line.starts_with(name));
                    lines.filter(|line| line.ends_with(value)).count()
                };
                are("tidegate_up{", " 1") == nodes
                    && are("tidegate_replay_lag_seconds{", " NaN") == 0
            };
            self.get("/readyz")
                .is_some_and(|answer| answer.ends_with("\r\n\r\nready\n"))
                && self.get("/metrics").is_some_and(known)
        });
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A connection string for `user`, whose password is its name.
    pub fn url(&self, user: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user={user} password={user} dbname=app",
            self.port
        )
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The raw answer to an HTTP request, if there is one.
    pub fn get(&self, path: &str) -> Option<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.http_port)).ok()?;
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        .ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// The sum of a metric over the label sets that contain `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let samples = self.samples(name, labels).into_iter();
        samples.map(|(_, value)| value).sum()
    }

    /// The samples of a metric whose line contains `labels`: the name with its labels, and the value.
    pub fn samples(&self, name: &str, labels: &str) -> Vec<(String, f64)> {
        let metrics = self.get("/metrics").expect("metrics");
        let samples = metrics.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
                && line.contains(labels)
        });
        let parsed = samples.filter_map(|line| {
            let (sample, value) = line.rsplit_once(' ')?;
            Some((sample.to_owned(), value.parse::<f64>().ok()?))
        });
        parsed.filter(|(_, value)| !value.is_nan()).collect()
    }

    /// Sends a signal, by its name without SIG.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .expect("kill");
        assert!(status.success());
    }

    /// Replaces the configuration and has it read again; returns when it has been.
    pub fn reload(&self, config: &str) {
        let done = |result| self.metric("tidegate_config_reloads_total", result);
        let before = done("result=");
        fs::write(&self.config_path, config).expect("config");
        self.signal("HUP");
        wait_for("the reload", || done("result=") > before);
    }

    /// Waits for the process to end; its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let mut code = None;
        wait_for("tidegate to end", || {
            let status = self.child.try_wait().expect("wait");
            code = status.and_then(|status| status.code());
            status.is_some()
        });
        code
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("tidegate's log:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a condition, for as long as a slow machine may take.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    const LIMIT: Duration = Duration::from_secs(60);
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < LIMIT,
            "waited {LIMIT:?} in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port that is free now: below those that outgoing connections get, which come and go all the
/// time, and none that this process has had before.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let port = rand::random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && given.insert(port) {
            return port;
        }
    }
}
