//! Reads miss nothing that their sessions have written or seen when a node is lost, comes back, or has another
//! history than the primary.

mod support;

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::Client;
use support::{Gateway, cluster_of, wait_for};
use tidegate::demo::{LocalCluster, LocalNode, Options, StopMode};

const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL);
    INSERT INTO t VALUES (1, 0);
    CREATE VIEW here AS SELECT current_setting('port')::int AS port;
    GRANT SELECT, UPDATE ON t, here TO app;";

/// More of the log than the tests write by anything else.
const MUCH: &str = "
    SELECT count(pg_logical_emit_message(true, 'test', repeat('x', 1000)))
    FROM generate_series(1, 10000)";

/// A standby comes back from a crash where it last wrote a page out, or further on.
const NOTHING_WRITTEN_OUT: &[(&str, &str)] =
    &[("bgwriter_lru_maxpages", "0"), ("checkpoint_timeout", "1h")];

fn start(replicas: usize, settings: &[(&str, &str)]) -> LocalCluster {
    cluster_of(replicas, settings, SCHEMA)
}

/// A proxy that lets replicas be as late as they are.
fn with_wide_limits(cluster: &LocalCluster) -> Gateway {
    Gateway::start_with(cluster, wide_limits)
}

fn wide_limits(config: String) -> String {
    format!("{config}\n[lag]\nmax = \"10m\"\n")
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

/// Cuts a standby off from what it is sent.
fn stop_receiving(node: &LocalNode) {
    node.sql("postgres", "ALTER SYSTEM SET primary_conninfo = ''")
        .expect("set");
    node.reload().expect("reloaded");
    let receives = "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver)";
    wait_for("its receiver to end", || {
        node.sql("postgres", receives).expect("asked") == "f"
    });
}

/// Writes on the new primary, and reads what was written, while a replica stands further on in another history.
fn write_and_read(gateway: &Gateway, primary: &LocalNode) {
    let [own, all, any] = ["session", "global", "eventual"].map(|level| at_level(gateway, level));
    for v in 1..=20 {
        write(&own, v);
        assert_eq!(read(&all), (v, primary.port()));
        assert_eq!(read(&own), (v, primary.port()));
        assert_eq!(read(&any), (v, primary.port()));
    }
}

fn wait_for_reads_on(gateway: &Gateway, replica: &LocalNode) {
    let client = Client::open(gateway, "app", "");
    wait_for("reads on the replica", || read(&client).1 == replica.port());
}

#[test]
fn a_replica_that_is_ahead_of_the_promoted_one_gets_no_reads() {
    let cluster = start(2, &[]);
    let (old, new, ahead) = (cluster.node(0), cluster.node(1), cluster.node(2));
    stop_receiving(&new);
    let gateway = with_wide_limits(&cluster);
    let known = |node: &LocalNode| gateway.metric("tidegate_lsn", &node.address()) > 0.0;
    assert!(known(&new), "though nothing is sent to it");
    old.sql("app", MUCH).expect("written");
    ahead
        .wait_for_replay(old.insert_lsn().expect("a position"))
        .expect("replayed");
    wait_for_reads_on(&gateway, &ahead);
    old.kill();
    new.promote().expect("promoted");
    write_and_read(&gateway, &new);
    ahead.rejoin(&new).expect("a standby of it");
    wait_for_reads_on(&gateway, &ahead);
}

#[test]
fn a_replica_of_the_primary_that_is_fenced_gets_no_reads() {
    let cluster = start(2, &[]);
    let (old, new, left) = (cluster.node(0), cluster.node(1), cluster.node(2));
    let gateway = with_wide_limits(&cluster);
    new.promote().expect("promoted");
    let client = Client::open(&gateway, "app", "");
    wait_for("it to be the primary", || {
        let written = "UPDATE t SET v = 0 RETURNING (SELECT port FROM here)";
        client.one(written) == new.port().to_string()
    });
    old.sql("app", MUCH).expect("written");
    left.wait_for_replay(old.insert_lsn().expect("a position"))
        .expect("replayed");
    write_and_read(&gateway, &new);
    left.rejoin(&new).expect("a standby of it");
    wait_for_reads_on(&gateway, &left);
}

#[test]
fn a_replica_that_has_left_for_another_primary_gets_no_reads() {
    let cluster = start(1, &[]);
    let (old, left) = (cluster.node(0), cluster.node(1));
    let gateway = with_wide_limits(&cluster);
    wait_for_reads_on(&gateway, &left);
    // The proxy does not know of it.
    let new = cluster.add_replica().expect("another standby");
    cluster.wait_caught_up().expect("caught up");
    new.promote().expect("promoted");
    left.follow(&new).expect("followed");
    new.sql("app", MUCH).expect("written");
    left.wait_for_replay(new.insert_lsn().expect("a position"))
        .expect("replayed");
    let (own, all) = (at_level(&gateway, "session"), at_level(&gateway, "global"));
    for v in 1..=20 {
        write(&own, v);
        assert_eq!(read(&all), (v, old.port()));
        assert_eq!(read(&own), (v, old.port()));
    }
    let any = at_level(&gateway, "eventual");
    wait_for("it to be known", || read(&any).1 == old.port());
    write_and_read(&gateway, &old);
}

/// A role that may only log in is told less.
#[test]
fn a_primary_that_is_fenced_stays_so_without_the_new_one() {
    let cluster = start(2, &[]);
    let (old, new) = (cluster.node(0), cluster.node(1));
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n[failover]\nhold = \"200ms\"\n")
    });
    let client = Client::open(&gateway, "app", "");
    let holder = Client::open(&gateway, "app", "");
    holder.rows("LISTEN something");
    new.promote().expect("promoted");
    wait_for("the new primary", || {
        client.row_or_error("UPDATE t SET v = 1 WHERE id = 1 RETURNING current_setting('port')")
            == Ok(vec![new.port().to_string()])
    });
    new.stop(StopMode::Immediate).expect("stopped");
    wait_for("it to be missed", || {
        gateway.metric("tidegate_up", &format!(":{}\"", new.port())) == 0.0
    });
    for client in [client, holder] {
        let error = client.error("UPDATE t SET v = 2 WHERE id = 1");
        assert!(error.code().code().starts_with("57P"), "{error}");
    }
    assert_ne!(old.sql("app", "SELECT v FROM t").expect("read"), "2");
    assert!(
        gateway.log().contains("has been left for"),
        "{}",
        gateway.log()
    );
}

#[test]
fn a_primary_that_has_been_left_is_not_the_first_that_there_is() {
    let cluster = start(1, &[]);
    let (old, new) = (cluster.node(0), cluster.node(1));
    new.promote().expect("promoted");
    new.freeze();
    let is_asked = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE state = 'idle' AND query <> '' \
        AND query NOT LIKE '%pg_control_system%' AND application_name = 'tidegate monitor')";
    let gateway = thread::scope(|scope| {
        scope.spawn(|| {
            wait_for("the old primary to have told what it is", || {
                old.sql("postgres", is_asked).expect("activity") == "t"
            });
            new.thaw();
        });
        Gateway::start_with(&cluster, |config| {
            format!(
                "{config}\n[lag]\nmax = \"10m\"\n[health]\ninterval = \"1m\"\ntimeout = \"1m\"\n"
            )
        })
    });
    assert_eq!(gateway.metric("tidegate_failovers_total", ""), 0.0);
    let left = format!("node={} timeline=1", old.address());
    assert!(gateway.log().contains(&left), "{}", gateway.log());
    // It gets nothing, and so greets nobody.
    assert_eq!(read(&Client::open(&gateway, "app", "")), (0, new.port()));
    let pools = |node: &LocalNode| {
        gateway
            .samples("tidegate_pool_servers", &node.address())
            .len()
    };
    assert_eq!((pools(&old), pools(&new) > 0), (0, true));
}

#[test]
fn a_proxy_is_ready_while_it_has_a_node_to_run_anything_on() {
    let cluster = start(1, &[]);
    let (primary, replica) = (cluster.node(0), cluster.node(1));
    let gateway = Gateway::start_with(&cluster, |config| {
        wide_limits(config) + "[console]\nadmins = [\"app\"]\n"
    });
    let console = Client::open(&gateway, "app", "dbname=tidegate");
    let is = |status: &str, words: &str| {
        let answer = gateway.get("/readyz").expect("an answer");
        answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(words)
    };
    primary.kill();
    wait_for("it to tell of the primary", || {
        is("200", "cluster \"main\" has no primary")
    });
    let node = replica.address();
    console.rows(&format!("DRAIN NODE \"{node}\""));
    let is_unready = || is("503", "no node of cluster \"main\" can be used");
    assert!(
        is_unready(),
        "though the replica is there, it takes nothing"
    );
    console.rows(&format!("RESUME NODE \"{node}\""));
    assert!(is("200", "has no primary"));
    replica.kill();
    wait_for("it not to be ready", is_unready);
    replica.start().expect("started");
    wait_for("it to be ready", || is("200", "has no primary"));
    replica.promote().expect("promoted");
    wait_for("a primary", || is("200", "\r\n\r\nready\n"));
}

/// A proxy with one server for each node, for which clients wait for as long as it takes.
fn with_one_server(cluster: &LocalCluster) -> Gateway {
    Gateway::start_with(cluster, |config| {
        let pool = "[pool]\nsize = 1\ncheckout_timeout = \"10m\"";
        let lost = "[failover]\nhold = \"10m\"\n[health]\ninterval = \"1s\"";
        format!("{config}\n{pool}\n{lost}\n")
    })
}

/// The node stops to answer when a client waits for its only server.
fn freeze_when_waited_for(gateway: &Gateway, node: &LocalNode) {
    wait_for("a client to wait", || {
        gateway.metric("tidegate_pool_waiting", &node.address()) == 1.0
    });
    node.freeze();
}

#[test]
fn a_read_that_waits_for_a_replica_that_is_lost_runs_elsewhere() {
    let cluster = start(1, &[]);
    let (primary, replica) = (cluster.node(0), cluster.node(1));
    let gateway = with_one_server(&cluster);
    let [holder, waiting] = ["", ""].map(|_| at_level(&gateway, "eventual"));
    holder.rows("BEGIN READ ONLY");
    assert_eq!(read(&holder).1, replica.port());
    thread::scope(|scope| {
        let shown = scope.spawn(|| read(&waiting));
        freeze_when_waited_for(&gateway, &replica);
        assert_eq!(shown.join().expect("a read").1, primary.port());
    });
}

#[test]
fn a_write_that_waits_for_a_primary_that_is_lost_is_held() {
    let cluster = start(1, &[]);
    let (old, new) = (cluster.node(0), cluster.node(1));
    let gateway = with_one_server(&cluster);
    let [holder, waiting, other] =
        ["app", "app", "postgres"].map(|user| Client::open(&gateway, user, ""));
    holder.rows("BEGIN");
    write(&holder, 1);
    other.rows("SELECT FROM t FOR SHARE SKIP LOCKED");
    let is_idle = |node: &LocalNode| {
        let labels = format!(
            "node=\"{}\",database=\"app\",user=\"postgres\",state=\"idle\"",
            node.address()
        );
        gateway.metric("tidegate_pool_servers", &labels) == 1.0
    };
    // Its answer comes before it is given back.
    wait_for("a server to be idle", || is_idle(&old));
    thread::scope(|scope| {
        let write = "UPDATE t SET v = v + 2 WHERE id = 1 RETURNING v, (SELECT port FROM here)";
        let written = scope.spawn(|| waiting.rows(write).swap_remove(0));
        freeze_when_waited_for(&gateway, &old);
        wait_for("the write to be held", || {
            gateway.metric("tidegate_held", "") == 1.0
        });
        new.promote().expect("promoted");
        assert_eq!(
            written.join().expect("a write"),
            ["2".to_owned(), new.port().to_string()]
        );
    });
    assert!(!is_idle(&old), "nothing is kept for its return");
}

#[test]
fn a_replica_that_follows_gets_reads_again() {
    let cluster = start(2, NOTHING_WRITTEN_OUT);
    let (old, new, follower) = (cluster.node(0), cluster.node(1), cluster.node(2));
    old.sql("app", "CREATE ROLE plain LOGIN PASSWORD 'plain'")
        .expect("created");
    cluster.wait_caught_up().expect("caught up");
    for replica in cluster.replicas() {
        replica.pause_replay().expect("paused");
    }
    let by_member = with_wide_limits(&cluster);
    let by_plain = Gateway::start_with(&cluster, |config| {
        let member = r#"user = "tidegate", password = "tidegate""#;
        assert!(config.contains(member));
        wide_limits(config.replace(member, r#"user = "plain", password = "plain""#))
    });
    for gateway in [&by_member, &by_plain] {
        let (any, primary) = (at_level(gateway, "eventual"), old.port());
        wait_for("reads on a replica, though it stands still", || {
            read(&any).1 != primary
        });
    }
    for replica in cluster.replicas() {
        replica.resume_replay().expect("resumed");
    }
    old.stop(StopMode::Fast).expect("stopped");
    new.promote().expect("promoted");
    follower.follow(&new).expect("followed");
    cluster.wait_caught_up().expect("caught up");
    wait_for_reads_on(&by_member, &follower);
    let any = at_level(&by_plain, "eventual");
    wait_for("the other to know its primary", || {
        by_plain.metric("tidegate_failovers_total", "") == 1.0
    });
    assert_eq!(read(&any).1, new.port(), "it can't be known yet");
    new.sql("app", "CHECKPOINT").expect("a checkpoint");
    cluster.wait_caught_up().expect("caught up");
    follower.sql("app", "CHECKPOINT").expect("a restartpoint");
    wait_for_reads_on(&by_plain, &follower);
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

/// A primary with so few connections that the proxy has them all, and one of its clients.
fn crowded() -> (LocalCluster, Gateway, Client) {
    let cluster = LocalCluster::start(Options {
        replicas: 0,
        max_connections: 20,
        ..Options::default()
    })
    .expect("a cluster");
    cluster.primary().sql("app", SCHEMA).expect("schema");
    let gateway = Gateway::start(&cluster);
    let client = Client::open(&gateway, "app", "");
    (cluster, gateway, client)
}

const END_MONITOR: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
    WHERE usename = 'tidegate'";

fn refuses_monitor(gateway: &Gateway) -> bool {
    gateway.log().contains("node refuses its monitor")
}

#[test]
fn a_primary_that_refuses_its_monitor_is_written_to() {
    let (cluster, gateway, client) = crowded();
    let node = cluster.primary();
    let limit = |limit: i32| {
        let sql = format!("ALTER ROLE tidegate CONNECTION LIMIT {limit}");
        node.sql("postgres", &sql).expect("altered");
    };
    let pid = || client.one("SELECT pg_backend_pid()");
    let server = pid();
    limit(0);
    node.sql("postgres", END_MONITOR).expect("ended");
    wait_for("the monitor to be refused", || refuses_monitor(&gateway));
    assert_eq!(pid(), server, "another role's servers are not in its way");
    write(&client, 1);
    let new = Client::open(&gateway, "app", "");
    write(&new, 2);
    assert_eq!(read(&client).0, 2);
    assert_eq!(gateway.metric("tidegate_up", ""), 1.0);
    limit(-1);
    wait_for("the monitor to be back", || {
        gateway.log().contains("node serves its monitor again")
    });
    write(&client, 3);
}

#[test]
fn a_primary_whose_connections_are_all_idle_servers_is_watched_again() {
    let (cluster, gateway, client) = crowded();
    let node = cluster.primary();
    // All that there are, but for the monitor's and what is kept for the superuser.
    let holders: Vec<_> = (0..16).map(|_| Client::open(&gateway, "app", "")).collect();
    let idle = || {
        let labels = "user=\"app\",state=\"idle\"";
        gateway.metric("tidegate_pool_servers", labels)
    };
    wait_for("the proxy to have them all", || {
        for holder in &holders {
            let _ = holder.row_or_error("BEGIN; SELECT pg_advisory_xact_lock_shared(1)");
        }
        holders.iter().for_each(|holder| {
            holder.rows("ROLLBACK");
        });
        idle() == 16.0
    });
    // As whoever is quicker than the monitor.
    let mut others = Vec::new();
    wait_for("the monitor to find no connection", || {
        node.sql("postgres", END_MONITOR).expect("ended");
        others.extend(Client::try_direct(&node, "app"));
        gateway.log().contains("sorry, too many clients already")
            || gateway
                .log()
                .contains("remaining connection slots are reserved")
    });
    wait_for("the monitor to be back", || {
        let is_there = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'tidegate' AND state = 'idle')";
        node.sql("postgres", is_there).expect("asked") == "t"
    });
    // One at a time, until there is room.
    assert!((8.0..16.0).contains(&idle()), "{} are idle", idle());
    write(&client, 1);
    assert_eq!(gateway.metric("tidegate_up", ""), 1.0);
}
