//! What a query allocates once the proxy is warm: nothing. The proxy runs in this process,
//! whose allocator counts what its workers allocate.
//!
//! With `TIDEGATE_TRACE_ALLOCATIONS=1` it also shows where each one was made.

#[path = "allocations/counting.rs"]
mod counting;
#[path = "allocations/dialogue.rs"]
mod dialogue;
mod support;

use std::fs;
use std::io::{self, Write};
use std::net::TcpStream;
use std::thread::{self, JoinHandle};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tidegate::config::Config;
use tidegate::demo::{LocalCluster, Options};
use tidegate::listener::{self, RunError};
use tidegate::telemetry;

use dialogue::{Dialogue, bind, close, describe, execute, parse, query, sync};
use support::{free_port, wait_for};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// Rounds that may allocate: buffers grow to their size, servers are opened, classes are learnt.
const WARM_UP: usize = 300;
const ROUNDS: usize = 1000;
const ATTEMPTS_MAX: usize = 3;

/// What a client says in one round, in parts: each is said when the one before is answered.
struct Workload {
    name: &'static str,
    /// Said once, before the first round.
    first: Vec<u8>,
    round: fn(usize) -> Vec<Vec<u8>>,
    /// The most allocations in all the rounds that count, and why there may be any.
    allowed: u64,
}

fn workloads() -> Vec<Workload> {
    vec![
        Workload {
            name: "one SELECT again and again",
            first: Vec::new(),
            round: |_| vec![query("SELECT v FROM t WHERE k = 7")],
            allowed: 0,
        },
        Workload {
            name: "SELECTs with a literal each",
            first: Vec::new(),
            round: |i| {
                vec![query(&format!(
                    "SELECT v FROM t WHERE k = {}",
                    i % 90 + 1000 * i
                ))]
            },
            allowed: 0,
        },
        Workload {
            name: "SELECTs that no thread remembers",
            first: Vec::new(),
            round: |i| vec![query(&format!("SELECT v FROM t WHERE k > {i}.5 LIMIT 1"))],
            allowed: 0,
        },
        Workload {
            name: "a SELECT of many rows",
            first: Vec::new(),
            round: |_| vec![query("SELECT k, v, repeat('x', 100) FROM t")],
            allowed: 0,
        },
        Workload {
            name: "a prepared SELECT",
            first: [parse("s", "SELECT v FROM t WHERE k = $1"), sync()].concat(),
            round: |i| vec![[bind("s", &[&format!("{}", i % 90)]), execute(), sync()].concat()],
            allowed: 0,
        },
        Workload {
            name: "an unnamed statement's SELECT",
            first: Vec::new(),
            round: |i| {
                vec![
                    [
                        parse("", "SELECT v FROM t WHERE k = $1"),
                        bind("", &[&format!("{}", i % 90)]),
                        describe(),
                        execute(),
                        sync(),
                    ]
                    .concat(),
                ]
            },
            allowed: 0,
        },
        Workload {
            name: "a SELECT that is prepared, run and closed",
            first: Vec::new(),
            round: |i| {
                vec![
                    [parse("s", "SELECT v FROM t WHERE k = $1"), sync()].concat(),
                    [bind("s", &[&format!("{}", i % 90)]), execute(), sync()].concat(),
                    [close("s"), sync()].concat(),
                ]
            },
            // The name: as the session's key, within the Parse, and within the Close.
            allowed: 3 * ROUNDS as u64,
        },
        Workload {
            name: "an UPDATE",
            first: Vec::new(),
            round: |i| {
                vec![query(&format!(
                    "UPDATE t SET v = v + 1 WHERE k = {}",
                    i % 90
                ))]
            },
            allowed: 0,
        },
        Workload {
            name: "an INSERT",
            first: Vec::new(),
            round: |i| vec![query(&format!("INSERT INTO log VALUES ({i}, 'something')"))],
            allowed: 0,
        },
        Workload {
            name: "a prepared UPDATE",
            first: [parse("u", "UPDATE t SET v = v + 1 WHERE k = $1"), sync()].concat(),
            round: |i| vec![[bind("u", &[&format!("{}", i % 90)]), execute(), sync()].concat()],
            allowed: 0,
        },
        Workload {
            name: "a transaction",
            first: Vec::new(),
            round: |i| {
                vec![
                    query("BEGIN"),
                    query(&format!("SELECT v FROM t WHERE k = {}", i % 90)),
                    query(&format!("UPDATE t SET v = v + 1 WHERE k = {}", i % 90)),
                    query("COMMIT"),
                ]
            },
            allowed: 0,
        },
        Workload {
            name: "a read after each write",
            first: Vec::new(),
            round: |i| {
                vec![
                    query(&format!("UPDATE t SET v = v + 1 WHERE k = {}", i % 90)),
                    query(&format!("SELECT v FROM t WHERE k = {}", i % 90)),
                ]
            },
            allowed: 0,
        },
    ]
}

#[test]
fn a_warm_proxy_allocates_nothing() {
    counting::exempt_this_thread();
    let traces = std::env::var_os("TIDEGATE_TRACE_ALLOCATIONS").is_some();
    let options = Options {
        replicas: 1,
        ..Options::default()
    };
    let cluster = LocalCluster::start(options).expect("cluster");
    let sql = "CREATE TABLE t (k int PRIMARY KEY, v int); GRANT ALL ON t TO app;
        CREATE TABLE log (k int, what text); GRANT ALL ON log TO app;
        INSERT INTO t SELECT n, n FROM generate_series(0, 99) n";
    cluster.primary().sql("app", sql).expect("tables");
    cluster.wait_caught_up().expect("replica");
    let proxy = InProcess::start(&cluster);

    let mut failures = Vec::new();
    for workload in workloads() {
        let mut client = Dialogue::log_in(proxy.port, "app");
        if !workload.first.is_empty() {
            client.say(&workload.first);
        }
        let mut run = |rounds: std::ops::Range<usize>| {
            for i in rounds {
                for part in (workload.round)(i) {
                    client.say(&part);
                }
            }
        };
        run(0..WARM_UP);
        let name = workload.name;
        let mut allocations = u64::MAX;
        // Now and then a server is opened, or functions' effects are asked for again. What a query
        // costs is there each time.
        for attempt in 0..ATTEMPTS_MAX {
            counting::trace(traces);
            let before = counting::count();
            let begin = WARM_UP + attempt * ROUNDS;
            run(begin..begin + ROUNDS);
            allocations = allocations.min(counting::count() - before);
            counting::trace(false);
            for (n, site) in counting::take_sites() {
                println!("{n} times\n    {site}");
            }
            if allocations <= workload.allowed {
                break;
            }
        }
        println!("{name}: {allocations} allocations in {ROUNDS} rounds");
        if allocations > workload.allowed {
            failures.push(format!(
                "{name}: {allocations} allocations in {ROUNDS} rounds, where {} are allowed",
                workload.allowed
            ));
        }
    }
    let on_replica = queries_on_replica();
    proxy.stop();
    // Else it is not the reads' usual way that was measured.
    assert!(on_replica > 3.0 * ROUNDS as f64, "{on_replica} of them");
    assert!(
        failures.is_empty(),
        "{}\nRun this test with TIDEGATE_TRACE_ALLOCATIONS=1 to see where they are made",
        failures.join("\n")
    );
}

/// The proxy on a thread of this process, with one worker.
struct InProcess {
    port: u16,
    control: JoinHandle<Result<(), RunError>>,
}

impl InProcess {
    fn start(cluster: &LocalCluster) -> InProcess {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("config.toml");
        let (port, http_port) = (free_port(), free_port());
        let config = cluster
            .config_for(port, http_port)
            .replace("[listen]", "[listen]\nworkers = 1");
        fs::write(&path, config).expect("config");
        telemetry::install_recorder().expect("recorder");
        let config = Config::load(&path).expect("config");
        let control = thread::spawn(move || {
            // Whatever is not done for a query, but for probes: these are on the worker.
            counting::exempt_this_thread();
            listener::run(config, &path)
        });
        let nodes = cluster.nodes().len();
        wait_for("the proxy to know its nodes", || {
            let metrics = scrape(http_port).unwrap_or_default();
            let up = |line: &&str| line.starts_with("tidegate_up{") && line.ends_with(" 1");
            let replica = |line: &str| line.starts_with("tidegate_role{") && line.ends_with(" 2");
            metrics.lines().filter(up).count() == nodes && metrics.lines().any(replica)
        });
        InProcess { port, control }
    }

    /// By the signal that ends it as a program.
    fn stop(self) {
        nix::sys::signal::kill(Pid::this(), Signal::SIGTERM).expect("signal");
        let stopped = self.control.join().expect("no panic");
        stopped.expect("the proxy has run");
    }
}

/// What `/metrics` shows: what there is of nodes is not kept elsewhere.
fn scrape(http_port: u16) -> io::Result<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", http_port))?;
    socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    io::read_to_string(socket)
}

fn queries_on_replica() -> f64 {
    let metrics = telemetry::render();
    let samples = metrics.lines().filter_map(|line| {
        let sample = line.strip_prefix("tidegate_queries_total{route=\"replica\"")?;
        sample.rsplit_once(' ')?.1.parse::<f64>().ok()
    });
    samples.sum()
}
