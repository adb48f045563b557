//! The proxy as a process of its own in front of a local cluster, and what its metrics say.
//!
//! Owns: that process, its configuration and its ports. Never: shares memory with the proxy: what
//! is known of it is what any other process could learn.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::DemoError;
use super::cluster::LocalCluster;
use super::process::{signal, wait_until};

/// Taken if they are free, so that the demo is where the configuration's defaults are.
const PORT: u16 = 6432;
const HTTP_PORT: u16 = 9632;

/// How long the proxy may take to stop before it is killed.
const STOP_MAX: Duration = Duration::from_secs(5);

/// How long an HTTP answer may take.
const HTTP_MAX: Duration = Duration::from_secs(5);

/// Ends the proxy when its standard input ends without a word: this process was killed. The pid
/// counts only while it runs our executable, so a recycled one is never hit.
const WATCH_SCRIPT: &str = r#"
trap '' HUP INT TERM
read -r _ && exit
[ "/proc/$0/exe" -ef "$1" ] && kill -TERM "$0"
"#;

/// A running proxy. Dropping it stops it.
pub struct Gateway {
    proxy: Child,
    watch: Child,
    port: u16,
    http_port: u16,
    log_path: PathBuf,
}

impl Gateway {
    /// Starts this very executable as a proxy in front of `cluster`, whose directory takes its
    /// configuration and log. It may not be ready yet; see [`is_ready`](Self::is_ready).
    ///
    /// # Errors
    /// When a file cannot be written or a process not be started.
    pub fn start(cluster: &LocalCluster) -> Result<Gateway, DemoError> {
        let (port, http_port) = (free_port(PORT)?, free_port(HTTP_PORT)?);
        let config_path = cluster.directory().join("tidegate.toml");
        fs::write(&config_path, config(cluster, port, http_port))
            .map_err(DemoError::io("cannot write the proxy's configuration"))?;
        let log_path = cluster.directory().join("tidegate.log");
        let log = File::create(&log_path).map_err(DemoError::io("cannot open the proxy's log"))?;
        let executable = env::current_exe().map_err(DemoError::io("cannot find this program"))?;
        let mut proxy = Command::new(&executable)
            .arg("run")
            .arg("--config")
            .arg(&config_path)
            .env_remove("RUST_LOG")
            // Ctrl-C at a terminal is for us; we then stop the proxy in good order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(DemoError::io(format!(
                "cannot start {}",
                executable.display()
            )))?;
        match watch(&proxy, &executable) {
            Ok(watch) => Ok(Gateway {
                proxy,
                watch,
                port,
                http_port,
                log_path,
            }),
            Err(error) => {
                stop(&mut proxy);
                Err(DemoError::io("cannot start sh")(error))
            }
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn http_port(&self) -> u16 {
        self.http_port
    }

    /// The status, if the proxy has ended on its own.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.proxy.try_wait().ok().flatten()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }

    /// Whether it has a primary and knows `nodes` nodes.
    pub fn is_ready(&self, nodes: usize) -> bool {
        // Without a primary it would be ready all the same, and say so.
        let has_primary = |answer: String| answer.ends_with("\r\n\r\nready\n");
        get(self.http_port, "/readyz").is_ok_and(has_primary)
            && self
                .metrics()
                .is_ok_and(|metrics| metrics.sum("tidegate_up", &[]) as usize == nodes)
    }

    /// What `/metrics` says now.
    ///
    /// # Errors
    /// When the endpoint does not answer.
    pub fn metrics(&self) -> io::Result<Metrics> {
        let answer = get(self.http_port, "/metrics")?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        if !head.starts_with("HTTP/1.1 200 ") {
            let status = head.lines().next().unwrap_or_default();
            return Err(io::Error::other(format!("/metrics answered {status:?}")));
        }
        Ok(Metrics::parse(body))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        stop(&mut self.proxy);
        if let Some(mut stdin) = self.watch.stdin.take() {
            // A shell that somebody killed has nothing to be told.
            let _ = stdin.write_all(b"dismissed\n");
        }
        let _ = self.watch.wait();
    }
}

/// The samples of one scrape.
pub struct Metrics {
    samples: Vec<Sample>,
}

pub struct Sample {
    name: String,
    /// As they are written between the braces.
    labels: String,
    pub value: f64,
}

impl Metrics {
    fn parse(text: &str) -> Metrics {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        Metrics {
            samples: samples.filter_map(Sample::parse).collect(),
        }
    }

    /// The samples of a metric, those of nothing but zero included.
    pub fn samples(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.samples
            .iter()
            .filter(move |sample| sample.name == name)
    }

    /// The sum of a metric over the samples that have all of `labels`.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted = |sample: &&Sample| {
            labels
                .iter()
                .all(|(label, value)| sample.label(label) == *value)
        };
        let values = self.samples(name).filter(wanted).map(|sample| sample.value);
        values.sum()
    }
}

impl Sample {
    /// `name value` or `name{label="…",…} value`.
    fn parse(line: &str) -> Option<Sample> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}')?),
            None => (series, ""),
        };
        Some(Sample {
            name: name.to_owned(),
            labels: labels.to_owned(),
            value: value.parse().ok()?,
        })
    }

    /// The value of a label, empty if there is none. The labels of the demo hold no quotes.
    pub fn label(&self, label: &str) -> &str {
        let values = self.labels.split(',').filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name == label).then(|| value.trim_matches('"'))
        });
        values.into_iter().next().unwrap_or_default()
    }
}

/// The cluster's own configuration with names a person can tell apart, and probes often enough to
/// watch.
fn config(cluster: &LocalCluster, port: u16, http_port: u16) -> String {
    let mut config = cluster.config_for(port, http_port);
    for node in cluster.nodes() {
        let address = format!("address = \"{}\"\n", node.address());
        let named = format!("{address}name = \"node{}\"\n", node.index());
        config = config.replace(&address, &named);
    }
    config
        + "\n[health]\ninterval = \"500ms\"\ntimeout = \"500ms\"\n\
           \n# Tells which node answers; it reads nothing but a setting of the server.\n\
           [routing]\nsafe_functions = [\"served_by\"]\n"
}

fn watch(proxy: &Child, executable: &Path) -> io::Result<Child> {
    Command::new("sh")
        .args(["-c", WATCH_SCRIPT, &proxy.id().to_string()])
        .arg(executable)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

fn stop(proxy: &mut Child) {
    if matches!(proxy.try_wait(), Ok(None)) {
        signal(proxy.id(), Signal::SIGTERM);
        if !wait_until(STOP_MAX, || !matches!(proxy.try_wait(), Ok(None))) {
            let _ = proxy.kill();
        }
    }
    let _ = proxy.wait();
}

fn get(port: u16, path: &str) -> io::Result<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(HTTP_MAX))?;
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

/// `wanted`, or any other port if somebody has that.
fn free_port(wanted: u16) -> Result<u16, DemoError> {
    let listener =
        TcpListener::bind(("127.0.0.1", wanted)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)));
    let address = listener.and_then(|listener| listener.local_addr());
    address
        .map(|address| address.port())
        .map_err(|_| DemoError::NoPort)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let metrics = Metrics::parse(
            "# TYPE q counter\nq{route=\"primary\",reason=\"write\"} 3\n\
             q{route=\"replica\",reason=\"fresh\"} 40\nqq 5\nlag NaN\n\nbroken\n",
        );
        assert_eq!(metrics.sum("q", &[]), 43.0);
        assert_eq!(metrics.sum("q", &[("route", "replica")]), 40.0);
        assert_eq!(
            metrics.sum("q", &[("route", "replica"), ("reason", "write")]),
            0.0
        );
        assert_eq!(metrics.sum("qq", &[]), 5.0);
        assert!(metrics.sum("lag", &[]).is_nan());
        let reasons: Vec<_> = metrics.samples("q").map(|s| s.label("reason")).collect();
        assert_eq!(reasons, ["write", "fresh"]);
    }
}
