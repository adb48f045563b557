//! Reads miss nothing that their sessions have written or seen when a node is lost, or comes back
//! without all that it had.

mod support;

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::Client;
use support::{Gateway, cluster_with, wait_for};
use tidegate::demo::{LocalCluster, LocalNode};

const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL);
    INSERT INTO t VALUES (1, 0);
    CREATE VIEW here AS SELECT current_setting('port')::int AS port;
    GRANT SELECT, UPDATE ON t, here TO app;";

/// A standby comes back from a crash where it last wrote a page out, or further on.
const NOTHING_WRITTEN_OUT: &[(&str, &str)] =
    &[("bgwriter_lru_maxpages", "0"), ("checkpoint_timeout", "1h")];

fn start(replicas: usize, settings: &[(&str, &str)]) -> LocalCluster {
    let cluster = cluster_with(replicas, settings);
    cluster.primary().sql("app", SCHEMA).expect("schema");
    cluster.wait_caught_up().expect("caught up");
    cluster
}

/// A proxy that lets replicas be as late as they are.
fn with_wide_limits(cluster: &LocalCluster) -> Gateway {
    Gateway::start_with(cluster, |config| {
        format!("{config}\n[lag]\nmax = \"10m\"\n")
    })
}

/// The value that a read shows, and the port of the node that has shown it.
fn read(client: &Client) -> (i32, u16) {
    let rows = client.rows("SELECT v, port FROM t, here WHERE id = 1");
    let value = |at: usize| rows[0][at].parse::<u16>().expect("a number");
    (value(0).into(), value(1))
}

fn write(client: &Client, v: i32) {
    client.rows(&format!("UPDATE t SET v = {v} WHERE id = 1"));
}

fn at_level(gateway: &Gateway, level: &str) -> Client {
    let level = format!("options='-c tidegate.consistency={level}'");
    Client::open(gateway, "app", &level)
}

fn wait_for_reads_on(gateway: &Gateway, replica: &LocalNode) {
    let client = Client::open(gateway, "app", "");
    wait_for("reads on the replica", || read(&client).1 == replica.port());
}

/// Kills a server process of the node's, after which all that are left are ended as well and the node recovers as
/// after a crash; and waits until it is back.
fn crash_a_backend(node: &LocalNode) {
    let victim = Client::direct(node);
    let pid = victim.one("SELECT pg_backend_pid()");
    let postmaster = node.pid();
    let pid = Pid::from_raw(pid.parse().expect("a process id"));
    let started =
        "SELECT max(backend_start) FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let before = node.sql("postgres", started).expect("asked");
    kill(pid, Signal::SIGKILL).expect("killed");
    wait_for("the node to be back", || {
        let answer = node.sql("postgres", started);
        answer.is_ok_and(|now| !now.is_empty() && now != before)
    });
    assert_eq!(node.pid(), postmaster, "it is the same life");
}

#[test]
fn what_a_replica_has_shown_is_not_gone_when_it_has_gone_back() {
    let cluster = start(1, NOTHING_WRITTEN_OUT);
    let (primary, replica) = (cluster.node(0), cluster.node(1));
    for node in [&primary, &replica] {
        node.sql("app", "CHECKPOINT").expect("a checkpoint");
        cluster.wait_caught_up().expect("caught up");
    }
    let gateway = with_wide_limits(&cluster);
    let client = Client::open(&gateway, "app", "");
    write(&client, 1);
    wait_for("reads on the replica", || {
        read(&client) == (1, replica.port())
    });
    // What it replays again it replays late.
    replica
        .set_apply_delay(Duration::from_secs(3600))
        .expect("set");
    crash_a_backend(&replica);
    let any = at_level(&gateway, "eventual");
    wait_for("the replica to be known again", || {
        assert_eq!(read(&client).0, 1);
        read(&any) == (0, replica.port())
    });
    for _ in 0..20 {
        assert_eq!(read(&client), (1, primary.port()));
    }
    replica.set_apply_delay(Duration::ZERO).expect("set");
    wait_for("reads on the replica again", || {
        let (v, port) = read(&client);
        assert_eq!(v, 1);
        port == replica.port()
    });
}

#[test]
fn no_replica_is_late_for_what_the_primary_has_lost() {
    // What no commit follows stays unflushed.
    let cluster = start(1, &[("wal_writer_delay", "10s"), ("autovacuum", "off")]);
    let (primary, replica) = (cluster.node(0), cluster.node(1));
    let gateway = Gateway::start(&cluster);
    let unflushed = "SELECT count(pg_logical_emit_message(false, 'test', repeat('x', 300000)))";
    primary.sql("app", unflushed).expect("written");
    let at = || gateway.metric("tidegate_lsn", &primary.address());
    let reached = primary.insert_lsn().expect("a position") as f64;
    wait_for("the proxy to have seen it", || at() >= reached);
    crash_a_backend(&primary);
    wait_for("the proxy to see it gone", || at() < reached);
    let behind = |name| gateway.samples(name, &replica.address());
    wait_for("the replica to have all there is", || {
        let none = |(_, value): &(String, f64)| *value == 0.0;
        behind("tidegate_replay_lag_bytes").iter().all(none)
            && behind("tidegate_replay_lag_seconds").iter().any(none)
    });
    wait_for_reads_on(&gateway, &replica);
}

#[test]
fn a_server_that_goes_is_noticed_before_it_is_asked_again() {
    let cluster = start(1, &[]);
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n[lag]\nmax = \"2h\"\n[health]\ninterval = \"1h\"\n")
    });
    cluster.node(1).kill();
    wait_for("the loss to be seen", || {
        gateway.metric("tidegate_up", "") == 1.0
    });
}
