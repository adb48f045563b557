//! The dashboard and the alerts name metrics that a proxy under traffic has, and none is missing from
//! the dashboard or the documents. Where Prometheus is installed, every panel shows something and every alert does what
//! its test says.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};

use support::{Gateway, free_port, wait_for};
use tidegate::demo::{LocalCluster, Options};
use tokio::sync::oneshot;
use tokio_postgres::NoTls;

const DASHBOARD: &str = include_str!("../grafana/tidegate.json");
const ALERTS: &str = include_str!("../grafana/alerts.yml");
const DOCS: &str = include_str!("../docs/operations.md");

#[test]
fn dashboard_and_alerts_fit_a_proxy_under_traffic() {
    let cluster = LocalCluster::start(Options::default()).expect("cluster");
    let panels = panels(&cluster);
    assert!(panels.len() > 30, "{} queries", panels.len());
    // Few servers, so that clients have to wait for one; and that a store of causal keys is away is to
    // be seen, too.
    let store = format!("url = \"redis://127.0.0.1:{}\"", free_port());
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n[pool]\nsize = 2\n[consistency.redis]\n{store}\n")
    });
    let traffic = Traffic::start(&gateway, &cluster);

    let wanted: BTreeSet<String> = names(DASHBOARD).chain(names(ALERTS)).collect();
    let mut missing = Vec::new();
    let mut patience = 3000;
    wait_for("every metric to have been seen", || {
        let metrics = gateway.get("/metrics").unwrap_or_default();
        let is_there = |name: &str| {
            let sample = |line: &str| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            };
            metrics.lines().any(sample)
        };
        missing = wanted
            .iter()
            .filter(|name| !is_there(name))
            .cloned()
            .collect();
        patience -= 1;
        assert!(patience > 0, "no such metrics under traffic: {missing:?}");
        missing.is_empty()
    });

    let shown: BTreeSet<String> = names(DASHBOARD).collect();
    let metrics = gateway.get("/metrics").expect("metrics");
    let unseen: Vec<_> = types(&metrics)
        .filter(|name| !shown.contains(*name) && !shown.contains(&format!("{name}_bucket")))
        .collect();
    assert!(unseen.is_empty(), "no panel shows {unseen:?}");
    let untold: Vec<_> = types(&metrics)
        .filter(|name| name.starts_with("tidegate_") && !DOCS.contains(&format!("| `{name}` |")))
        .collect();
    assert!(untold.is_empty(), "no document tells of {untold:?}");

    match find("prometheus") {
        Some(program) => {
            let prometheus = Prometheus::start(&program, &gateway);
            for (title, query) in &panels {
                wait_for(&format!("data in panel {title:?}: {query}"), || {
                    prometheus.has_data(query)
                });
            }
            prometheus.wait_for_healthy_rules();
            println!("{} queries return data", panels.len());
        }
        None => skipped("prometheus", "panels' queries"),
    }
    drop(traffic);
}

#[test]
fn promtool_accepts_the_alerts_and_their_tests() {
    let Some(promtool) = find("promtool") else {
        return skipped("promtool", "alert rules");
    };
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        let output = Command::new(&promtool)
            .args(arguments)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/grafana"))
            .output()
            .expect("promtool runs");
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}:\n{said}");
    }
}

#[test]
fn every_alert_has_a_test() {
    let tests = include_str!("../grafana/alerts_test.yml");
    let alerts = ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in alerts {
        let fires = format!("- labels: 'ALERTS{{alertname=\"{alert}\",");
        assert!(tests.contains(&fires), "{alert} is never seen to fire");
    }
}

/// Clients that write and read until it is dropped, after one error and one refused login.
struct Traffic {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    fn start(gateway: &Gateway, cluster: &LocalCluster) -> Traffic {
        let primary = cluster.primary();
        let table = "CREATE TABLE t (id int PRIMARY KEY, n int); \
             INSERT INTO t SELECT id, 0 FROM generate_series(0, 99) AS id; GRANT ALL ON t TO app";
        primary.sql("app", table).expect("table");
        cluster.wait_caught_up().expect("replication");

        let url = gateway.url("app");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                fail(&url).await;
                for id in 0..8 {
                    tokio::spawn(write_and_read(url.clone(), id));
                }
                let _ = stopped.await;
            });
        });
        Traffic {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Whatever a client met has been printed; the test fails by what it then does not see.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn fail(url: &str) {
    let wrong = url.replace("password=app", "password=wrong");
    let refused = tokio_postgres::connect(&wrong, NoTls).await;
    assert!(refused.is_err(), "the password is wrong");
    let failed = connect(url).await.simple_query("SELECT 1/0").await;
    assert!(failed.is_err(), "one cannot divide by zero");
}

async fn write_and_read(url: String, id: usize) {
    let client = connect(&url).await;
    let write = format!("UPDATE t SET n = n + 1 WHERE id = {id}");
    let read = format!("SELECT n, pg_sleep(0.001) FROM t WHERE id = {id}");
    loop {
        client.simple_query(&write).await.expect("a write");
        for _ in 0..5 {
            client.simple_query(&read).await.expect("a read");
        }
    }
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("login");
    tokio::spawn(connection);
    client
}

/// A Prometheus that scrapes one proxy; killed when dropped.
struct Prometheus {
    port: u16,
    child: Child,
    directory: tempfile::TempDir,
}

impl Prometheus {
    fn start(program: &Path, gateway: &Gateway) -> Prometheus {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (port, scraped) = (free_port(), gateway.http_port);
        let config = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 1s }}\n\
             rule_files: [\"{}/grafana/alerts.yml\"]\n\
             scrape_configs:\n\
             - job_name: tidegate\n  static_configs: [{{ targets: [\"127.0.0.1:{scraped}\"] }}]\n",
            env!("CARGO_MANIFEST_DIR"),
        );
        let config_path = directory.path().join("prometheus.yml");
        fs::write(&config_path, config).expect("configuration");
        let log = fs::File::create(directory.path().join("log")).expect("log");
        let child = Command::new(program)
            .arg(format!("--config.file={}", config_path.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus starts");
        let mut prometheus = Prometheus {
            port,
            child,
            directory,
        };
        wait_for("prometheus to be ready", || {
            if let Some(status) = prometheus.child.try_wait().expect("wait") {
                panic!("prometheus ended: {status}\n{}", prometheus.log());
            }
            prometheus
                .get("/-/ready")
                .is_some_and(|answer| answer.contains(" 200 "))
        });
        prometheus
    }

    fn has_data(&self, query: &str) -> bool {
        let answer = self.get(&format!("/api/v1/query?query={}", percent(query)));
        let answer = answer.expect("an answer");
        assert!(
            answer.contains(r#""status":"success""#),
            "{query}:\n{answer}"
        );
        !answer.contains(r#""result":[]"#)
    }

    /// Waits until every alert has been evaluated, none of them with an error.
    fn wait_for_healthy_rules(&self) {
        let alerts = ALERTS.matches("- alert: ").count();
        wait_for("every alert to be evaluated", || {
            let answer = self.get("/api/v1/rules").expect("an answer");
            assert!(!answer.contains(r#""health":"err""#), "{answer}");
            answer.matches(r#""health":"ok""#).count() == alerts
        });
    }

    /// As HTTP/1.0, to which the answer comes in one piece.
    fn get(&self, path: &str) -> Option<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        write!(socket, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The title and the query of every panel, with Grafana's variables filled in. PostgreSQL reads the
/// dashboard, and so says if it is no JSON.
fn panels(cluster: &LocalCluster) -> Vec<(String, String)> {
    let query = format!(
        "SELECT panel ->> 'title', target ->> 'expr' FROM \
         jsonb_path_query($dashboard${DASHBOARD}$dashboard$, '$.panels[*]') AS panel, \
         jsonb_path_query(panel, '$.targets[*]') AS target"
    );
    let rows = cluster
        .primary()
        .sql("postgres", &query)
        .expect("a dashboard in JSON");
    let panel = |row: &str| {
        let (title, query) = row.split_once('|').expect("two columns");
        let query = query
            .replace("$__rate_interval", "10s")
            .replace("$job", ".*")
            .replace("$cluster", ".*");
        assert!(!query.contains('$'), "unknown variable in {query}");
        (title.to_owned(), query)
    };
    rows.lines().map(panel).collect()
}

/// The names of our metrics in a text.
fn names(text: &str) -> impl Iterator<Item = String> {
    const PREFIX: &str = "tidegate_";
    text.match_indices(PREFIX).map(|(at, _)| {
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        let end = text[at..].find(|c| !is_name(c)).unwrap_or(text.len() - at);
        text[at..at + end].to_owned()
    })
}

/// The names of all metrics, as `/metrics` has them.
fn types(metrics: &str) -> impl Iterator<Item = &str> {
    let types = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split(' ').next())
}

fn percent(query: &str) -> String {
    query.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// A program on `PATH`, or where `scripts/setup --metrics` unpacks it.
fn find(program: &str) -> Option<PathBuf> {
    let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/.tools/prometheus/usr/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from(unpacked)])
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

fn skipped(program: &str, what: &str) {
    println!("SKIPPED: {what}: there is no {program}; scripts/setup --metrics gets it");
}
