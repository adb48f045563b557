//! How often nodes are asked where they are, for what sessions do.
//!
//! Owns: the number of questions. Never: looks at how long anything takes, but for polls that are long enough for all
//! that happens between two of them.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use support::client::Client;
use support::{Gateway, cluster_with, wait_for};
use tidegate::demo::LocalCluster;

/// Nobody else writes or flushes.
const QUIET: &[(&str, &str)] = &[
    ("autovacuum", "off"),
    ("checkpoint_timeout", "1d"),
    ("wal_writer_delay", "10s"),
];

const SCHEMA: &str = "CREATE TABLE t (v int); GRANT SELECT, INSERT ON t TO app";

fn start() -> LocalCluster {
    let cluster = cluster_with(1, QUIET);
    cluster.primary().sql("app", SCHEMA).expect("schema");
    cluster.wait_caught_up().expect("caught up");
    cluster
}

/// A proxy that asks nobody who is not waited for, and whose reads wait for a replica as long as it takes.
fn gateway(cluster: &LocalCluster, poll: Duration) -> Gateway {
    Gateway::start_with(cluster, |config| {
        let consistency = format!(
            "poll_interval = \"{}ms\"\ngate_wait = \"60s\"",
            poll.as_millis()
        );
        format!(
            "{config}\n[health]\ninterval = \"60s\"\n[consistency]\n{consistency}\n[lag]\nmax = \"10m\"\n"
        )
    })
}

/// How often the primary has been asked.
fn questions(cluster: &LocalCluster, gateway: &Gateway) -> f64 {
    let address = format!("127.0.0.1:{}\"", cluster.primary().port());
    let label = format!("node=\"{address}");
    let asked = gateway.metric("tidegate_samples_total", &label);
    assert!(asked > 0.0, "no samples with {label}");
    asked
}

fn reads_on_replicas(gateway: &Gateway) -> f64 {
    gateway.metric("tidegate_queries_total", "route=\"replica\"")
}

#[test]
fn all_that_a_session_does_before_it_waits_costs_one_question() {
    const SCRIPTS: u32 = 6;
    let cluster = start();
    let poll = Duration::from_millis(500);
    let gateway = gateway(&cluster, poll);
    let client = Client::open(&gateway, "app", "");
    let (asked, before) = (questions(&cluster, &gateway), reads_on_replicas(&gateway));
    for script in 1..=SCRIPTS {
        // Whoever is asked for something now has not just been asked.
        thread::sleep(2 * poll);
        client.rows("INSERT INTO t VALUES (1)");
        for _read in 0..4 {
            assert_eq!(client.one("SELECT count(*) FROM t"), script.to_string());
        }
        wait_for("two of them to be counted as a replica's", || {
            reads_on_replicas(&gateway) - before >= f64::from(2 * script)
        });
    }
    let asked = questions(&cluster, &gateway) - asked;
    let scripts = f64::from(SCRIPTS);
    // Now and then a step comes just before the read that waits.
    assert!(
        (scripts..=1.5 * scripts).contains(&asked),
        "{asked} questions"
    );
}

#[test]
fn what_nobody_flushes_is_flushed_before_long() {
    let cluster = start();
    let gateway = gateway(&cluster, Duration::from_millis(200));
    let client = Client::open(&gateway, "app", "");
    // No commit: it is in the log, but not on the disk, unless a page of the log has come to its end. That is
    // seen by one question; to have it flushed takes two.
    let asked_at_most = 5;
    let is_flushed_for_it = (0..20).any(|_| {
        let (asked, before) = (questions(&cluster, &gateway), reads_on_replicas(&gateway));
        client.rows("SELECT pg_logical_emit_message(false, 'test', 'no commit')");
        for _read in 0..3 {
            client.rows("SELECT count(*) FROM t");
        }
        wait_for("the last to be counted, as a replica's", || {
            reads_on_replicas(&gateway) - before == 1.0
        });
        let asked = questions(&cluster, &gateway) - asked;
        assert!(asked <= f64::from(asked_at_most), "{asked} questions");
        asked >= 2.0
    });
    assert!(is_flushed_for_it);
}

/// The answer of a server that is starting up, or of a standby with `hot_standby = off`.
fn refuse(mut client: TcpStream) -> std::io::Result<()> {
    let mut request = [0; 1024];
    // Without TLS it goes on.
    if client.read(&mut request)? == 8 {
        client.write_all(b"N")?;
        let _ = client.read(&mut request)?;
    }
    let fields = b"SFATAL\0VFATAL\0C57P03\0Mnot now\0\0";
    let len = u32::try_from(fields.len() + 4).expect("short");
    client.write_all(&[b"E", &len.to_be_bytes()[..], fields].concat())
}

#[test]
fn a_node_that_refuses_everybody_is_asked_ever_more_rarely() {
    let cluster = start();
    let listener = TcpListener::bind(("127.0.0.1", support::free_port())).expect("bound");
    let address = listener.local_addr().expect("an address");
    let gateway = Gateway::start(&cluster);
    let config = std::fs::read_to_string(&gateway.config_path).expect("config");
    let asked = Mutex::new(Vec::new());
    thread::scope(|scope| {
        scope.spawn(|| {
            for client in listener.incoming() {
                let mut asked = asked.lock().expect("no panic");
                asked.push(Instant::now());
                if is_rare(&asked) {
                    return;
                }
                drop(asked);
                let _ = refuse(client.expect("a client"));
            }
        });
        gateway.reload(&format!(
            "{config}\n[[cluster.node]]\naddress = \"{address}\"\n"
        ));
        wait_for("seconds between two questions", || {
            is_rare(&asked.lock().expect("no panic"))
        });
    });
}

fn is_rare(asked: &[Instant]) -> bool {
    let pause = |two: &[Instant]| two[1] - two[0];
    asked
        .windows(2)
        .any(|two| pause(two) > Duration::from_secs(2))
}
