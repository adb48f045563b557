//! What an operator does, and what goes wrong: reload, promotion, shutdown, bad passwords, a bad
//! configuration. Clients notice as little as can be.

mod support;

use std::process::{Child, Command, Output, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::Client;
use support::raw::{Raw, VERSION_3_0};
use support::tap::Tap;
use support::{Gateway, free_port, wait_for};
use tidegate::demo::{LocalCluster, LocalNode, Options, StopMode};
use tidegate::wire::encode;

fn psql(cluster: &LocalCluster, url: &str, sql: &str) -> Output {
    let mut command = cluster.postgres().command("psql");
    command.args([
        "-XAtq",
        "-v",
        "ON_ERROR_STOP=1",
        "-v",
        "VERBOSITY=verbose",
        "-d",
        url,
        "-c",
        sql,
    ]);
    command.output().expect("psql runs")
}

fn error_of(cluster: &LocalCluster, url: &str, sql: &str) -> String {
    let output = psql(cluster, url, sql);
    assert!(!output.status.success(), "{url}: {sql} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn pgbench(cluster: &LocalCluster, gateway: &Gateway, arguments: &[&str]) -> Child {
    let port = gateway.port.to_string();
    let mut command = cluster.postgres().command("pgbench");
    command
        .args(["-h", "127.0.0.1", "-p", &port, "-U", "app"])
        .args(arguments)
        .arg("app");
    command
        .env("PGPASSWORD", "app")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("pgbench runs")
}

fn finish(pgbench: Child) -> (bool, String) {
    let output = pgbench.wait_with_output().expect("pgbench ends");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn with_items(replicas: usize) -> LocalCluster {
    let cluster = LocalCluster::start(Options {
        replicas,
        ..Options::default()
    })
    .unwrap();
    let init = cluster
        .postgres()
        .command("pgbench")
        .args(["-i", "-q", "-s", "1", "-h", "127.0.0.1"])
        .args([
            "-p",
            &cluster.primary().port().to_string(),
            "-U",
            "app",
            "app",
        ])
        .env("PGPASSWORD", "app")
        .output()
        .unwrap();
    assert!(init.status.success(), "{init:?}");
    cluster.wait_caught_up().unwrap();
    cluster
}

#[test]
fn statements_are_what_was_prepared_after_a_reload_of_the_rules() {
    let cluster = support::cluster_with(0, &[]);
    let gateway = Gateway::start(&cluster);
    let config = std::fs::read_to_string(&gateway.config_path).unwrap();
    let before = Client::open(&gateway, "app", "");
    assert_eq!(before.prepared("SELECT 'before'"), "before");
    gateway.reload(&format!("[routing]\nunsafe_functions = [\"f\"]\n{config}"));
    // On the server that the other one has used: who leaves one last is lent it next.
    let after = Client::open(&gateway, "app", "");
    assert_eq!(after.prepared("SELECT 'after'"), "after");
    assert_eq!(before.prepared("SELECT 'still here'"), "still here");
    assert_eq!(after.prepared("SELECT 'before'"), "before");
}

#[test]
fn who_waits_for_a_server_is_served_when_there_may_be_more() {
    let cluster = support::cluster_with(0, &[]);
    let sized = |config: &str, size: u32| {
        format!("{config}\n[pool]\nsize = {size}\ncheckout_timeout = \"10m\"\n")
    };
    let gateway = Gateway::start_with(&cluster, |config| sized(&config, 1));
    let config = std::fs::read_to_string(&gateway.config_path).unwrap();
    let holder = Client::open(&gateway, "app", "");
    holder.rows("BEGIN");
    holder.rows("SELECT pg_advisory_xact_lock(1)");
    let waiting = Client::open(&gateway, "app", "");
    thread::scope(|scope| {
        let served = scope.spawn(|| waiting.one("SELECT 'served'"));
        wait_for("the other to wait", || {
            gateway.metric("tidegate_pool_waiting", "") == 1.0
        });
        gateway.reload(&config.replace("size = 1\n", "size = 2\n"));
        assert_eq!(served.join().expect("no panic"), "served");
    });
    holder.rows("COMMIT");
}

#[test]
fn nodes_come_and_go_under_traffic() {
    let cluster = with_items(2);
    let gateway = Gateway::start(&cluster);
    let all = std::fs::read_to_string(&gateway.config_path).unwrap();
    let last = cluster.node(2).address();
    // The last node's table is the file's last.
    let without = all[..all.rfind("[[cluster.node]]").unwrap()].to_owned();
    assert!(!without.contains(&last) && all.contains(&last));

    let reads = pgbench(
        &cluster,
        &gateway,
        &["-n", "-S", "-M", "prepared", "-c", "8", "-T", "6"],
    );
    let writes = pgbench(&cluster, &gateway, &["-n", "-c", "8", "-T", "6"]);
    wait_for("traffic", || {
        gateway.metric("tidegate_queries_total", "route=\"replica\"") > 100.0
    });
    for round in 0..10 {
        gateway.reload(if round % 2 == 0 { &without } else { &all });
        let expected = if round % 2 == 0 { 2.0 } else { 3.0 };
        wait_for("the nodes to be known", || {
            gateway.metric("tidegate_up", "") == expected
        });
        let before = gateway.metric("tidegate_queries_total", "");
        wait_for("traffic to go on", || {
            gateway.metric("tidegate_queries_total", "") > before + 50.0
        });
    }
    for traffic in [reads, writes] {
        let (ended_well, text) = finish(traffic);
        assert!(ended_well, "{text}");
        assert!(text.contains("number of failed transactions: 0 "), "{text}");
        assert!(!text.contains("aborted"), "{text}");
    }
    assert_eq!(
        gateway.metric("tidegate_config_reloads_total", "applied"),
        10.0
    );
    assert_eq!(gateway.metric("tidegate_errors_total", ""), 0.0);

    // A bad file changes nothing, and says where it is wrong.
    gateway.reload(&all.replace("[[cluster.node]]", "[[cluster.nod]]"));
    assert_eq!(
        gateway.metric("tidegate_config_reloads_total", "refused"),
        1.0
    );
    assert!(gateway.log().contains("did you mean"), "{}", gateway.log());
    assert_eq!(gateway.metric("tidegate_up", ""), 3.0);
    assert!(
        psql(&cluster, &gateway.url("app"), "SELECT 1")
            .status
            .success()
    );
}

/// A proxy's configuration with another name for a node, and another name of its host.
fn renamed(config: &str, node: &LocalNode, name: &str, host: &str) -> String {
    let address = |host: &str| format!("address = \"{host}:{}\"\n", node.port());
    let (before, after) = (address("127.0.0.1"), address(host));
    assert!(config.contains(&before), "{config}");
    config.replace(&before, &format!("name = \"{name}\"\n{after}"))
}

fn wait_for_primary(gateway: &Gateway, name: &str) {
    let label = format!("node=\"{name}\"");
    wait_for("the primary to be known", || {
        gateway.metric("tidegate_role", &label) == 1.0
    });
}

#[test]
fn what_is_open_on_a_primary_goes_on_when_that_is_renamed() {
    const SCHEMA: &str =
        "CREATE TABLE t (n int); INSERT INTO t VALUES (0); GRANT SELECT, UPDATE ON t TO app;";
    const WRITE: &str = "UPDATE t SET n = n + 1";
    let cluster = support::cluster_of(1, &[], SCHEMA);
    let gateway = Gateway::start(&cluster);
    let primary = cluster.primary();
    let config = std::fs::read_to_string(&gateway.config_path).expect("config");
    let [open, pinned] = [(); 2].map(|()| Client::open(&gateway, "app", ""));
    open.rows("BEGIN");
    pinned.rows("CREATE TEMPORARY TABLE own AS SELECT 0 AS n");
    let mut writes = 0;
    let names = [("a", "127.0.0.1"), ("a", "localhost"), ("b", "localhost")];
    for (name, host) in names {
        gateway.reload(&renamed(&config, &primary, name, host));
        // Before it has been asked, mostly, and when that has been.
        for is_known in [false, true] {
            if is_known {
                wait_for_primary(&gateway, name);
            }
            writes += 1;
            open.rows(WRITE);
            pinned.rows("UPDATE own SET n = n + 1");
        }
    }
    open.rows("COMMIT");
    let n = "SELECT n FROM t";
    let seen = [open.one(n), pinned.one("SELECT n FROM own")];
    assert_eq!(seen, [writes.to_string(), writes.to_string()]);
    // When another one has taken its place, what is open on it is lost whatever it is called.
    open.rows("BEGIN");
    open.rows(WRITE);
    gateway.reload(&renamed(&config, &primary, "b", "127.0.0.1"));
    cluster.node(1).promote().expect("promoted");
    wait_for("the new primary", || {
        gateway.metric("tidegate_failovers_total", "") == 1.0
    });
    gateway.reload(&renamed(&config, &primary, "c", "127.0.0.1"));
    assert_eq!(open.error("COMMIT").code().code(), "57P01");
    assert_eq!(pinned.error("UPDATE own SET n = 0").code().code(), "57P01");
    assert_eq!(primary.sql("app", n).expect("read"), writes.to_string());
}

#[test]
fn reads_alone_never_touch_the_primary() {
    let cluster = with_items(2);
    let gateway = Gateway::start(&cluster);
    // Autovacuum is still at work on the new table, and the proxy asks that replicas have all that
    // the primary had when it came.
    wait_for("replicas that have it all", || {
        let at = gateway.samples("tidegate_lsn", "");
        at.len() == 3 && at.iter().all(|(_, lsn)| *lsn > 0.0 && *lsn == at[0].1)
    });
    let primary = "route=\"primary\"";
    let before = gateway.metric("tidegate_queries_total", primary);
    for mode in ["simple", "extended", "prepared"] {
        for clients in ["1", "16", "200"] {
            let options = ["-n", "-S", "-M", mode, "-c", clients, "-j", "2", "-t", "50"];
            let (ended_well, text) = finish(pgbench(&cluster, &gateway, &options));
            assert!(
                ended_well && !text.contains("aborted"),
                "{mode} {clients}: {text}"
            );
        }
    }
    let reads = 3.0 * 217.0 * 50.0;
    wait_for("all reads to be counted on replicas", || {
        gateway.metric("tidegate_queries_total", "route=\"replica\"") >= reads
    });
    let on_primary = gateway.samples("tidegate_queries_total", primary);
    let after: f64 = on_primary.iter().map(|(_, n)| n).sum();
    assert_eq!(after, before, "{on_primary:?}");
}

/// Under load clients move to other threads, and do not notice: their prepared statements, settings
/// and transactions go with them.
#[test]
fn clients_move_between_threads() {
    let cluster = with_items(1);
    let gateway = Gateway::start_with(&cluster, |config| {
        config.replace("[http]", "workers = 2\n\n[http]")
    });
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(120);
    let (mut moves, mut round) = (0.0, 0);
    while moves == 0.0 {
        assert!(std::time::Instant::now() < limit, "no client has moved");
        let (mode, script) = [("prepared", "-S"), ("extended", "-N"), ("simple", "-S")][round % 3];
        let options = ["-n", script, "-M", mode, "-c", "48", "-j", "4", "-T", "3"];
        let (ended_well, text) = finish(pgbench(&cluster, &gateway, &options));
        assert!(ended_well && !text.contains("aborted"), "{mode}: {text}");
        moves = gateway.metric("tidegate_client_moves_total", "");
        round += 1;
    }
    assert_eq!(gateway.metric("tidegate_clients", ""), 0.0);
}

#[test]
fn a_promoted_standby_is_followed() {
    let cluster = with_items(2);
    let gateway = Gateway::start(&cluster);
    let bench = pgbench(&cluster, &gateway, &["-n", "-N", "-c", "4", "-T", "8"]);
    wait_for("traffic", || {
        gateway.metric("tidegate_queries_total", "route=\"primary\"") > 100.0
    });
    cluster.primary().stop(StopMode::Fast).unwrap();
    // A write that comes while there is no primary waits for one.
    let url = gateway.url("app");
    let held = thread::scope(|scope| {
        let write =
            scope.spawn(|| psql(&cluster, &url, "UPDATE pgbench_branches SET bbalance = 0"));
        wait_for("the write to be held", || {
            gateway.metric("tidegate_held", "") >= 1.0
        });
        cluster.node(1).promote().unwrap();
        write.join().unwrap()
    });
    assert!(held.status.success(), "{held:?}");
    let (_, text) = finish(bench);
    let errors = text
        .lines()
        .filter(|line| line.contains("ERROR:") || line.contains("FATAL:"))
        .count();
    assert!(errors <= 4, "more than one error per client: {text}");
    assert_eq!(gateway.metric("tidegate_failovers_total", ""), 1.0);
    assert_eq!(
        gateway.metric("tidegate_role", &cluster.node(1).address()),
        1.0
    );

    // The session's own write is read, and nothing goes to the old primary when it comes back.
    let mark = "UPDATE pgbench_branches SET bbalance = 77 RETURNING bbalance";
    assert!(psql(&cluster, &gateway.url("app"), mark).status.success());
    cluster.node(0).start().unwrap();
    wait_for("the old primary to be seen", || {
        gateway.metric("tidegate_up", &cluster.node(0).address()) == 1.0
    });
    for _ in 0..20 {
        let read = psql(
            &cluster,
            &gateway.url("app"),
            "UPDATE pgbench_branches SET bbalance = bbalance RETURNING bbalance",
        );
        assert_eq!(String::from_utf8_lossy(&read.stdout).trim(), "77");
    }
    let old = cluster
        .node(0)
        .sql("app", "SELECT bbalance FROM pgbench_branches")
        .unwrap();
    assert_ne!(old.trim(), "77");
}

#[test]
fn a_lost_replica_costs_nobody_an_error() {
    let cluster = with_items(2);
    let gateway = Gateway::start(&cluster);
    let bench = pgbench(
        &cluster,
        &gateway,
        &["-n", "-S", "-M", "prepared", "-c", "8", "-T", "5"],
    );
    wait_for("traffic", || {
        gateway.metric("tidegate_queries_total", "route=\"replica\"") > 100.0
    });
    cluster.node(2).kill();
    wait_for("the loss to be seen", || {
        gateway.metric("tidegate_up", "") == 2.0
    });
    cluster.node(2).start().unwrap();
    wait_for("its return to be seen", || {
        gateway.metric("tidegate_up", "") == 3.0
    });
    let (ended_well, text) = finish(bench);
    assert!(
        ended_well && text.contains("number of failed transactions: 0 "),
        "{text}"
    );
    assert!(!text.contains("aborted"), "{text}");
}

#[test]
fn refusals_are_clear() {
    let cluster = with_items(1);
    let gateway = Gateway::start_with(&cluster, |config| {
        format!(
            "{config}\n[failover]\nhold = \"300ms\"\n[pool]\nsize = 2\ncheckout_timeout = \"200ms\"\n"
        )
    });
    let url = |user: &str, password: &str, database: &str| {
        let port = gateway.port;
        format!("host=127.0.0.1 port={port} user={user} password={password} dbname={database}")
    };
    let direct = |user: &str, password: &str, database: &str| {
        url(user, password, database).replace(
            &gateway.port.to_string(),
            &cluster.primary().port().to_string(),
        )
    };
    // As PostgreSQL says it, message for message.
    for (user, password, database) in [
        ("app", "wrong", "app"),
        ("nobody", "x", "app"),
        ("app", "app", "nowhere"),
    ] {
        let cut = |text: String| text.split_once("FATAL:").map(|(_, rest)| rest.to_owned());
        let seen = error_of(&cluster, &url(user, password, database), "SELECT 1");
        let expected = error_of(&cluster, &direct(user, password, database), "SELECT 1");
        assert_eq!(cut(seen), cut(expected), "{user} {database}");
    }
    let replication = error_of(
        &cluster,
        &format!("{} replication=database", gateway.url("app")),
        "SELECT 1",
    );
    assert!(
        replication.contains("replication connections are not passed through"),
        "{replication}"
    );

    // All servers are in transactions: the next one is told so in time.
    let sleepers: Vec<_> = (0..2)
        .map(|_| {
            let sleep = [
                "-XAtq",
                "-d",
                &gateway.url("app"),
                "-c",
                "BEGIN; SELECT pg_sleep(30)",
            ];
            cluster
                .postgres()
                .command("psql")
                .args(sleep)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    wait_for("the servers to be taken", || {
        let active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BEGIN; SELECT pg_sleep%' AND state = 'active'";
        cluster.primary().sql("postgres", active).unwrap().trim() == "2"
    });
    let full = error_of(
        &cluster,
        &gateway.url("app"),
        "UPDATE pgbench_branches SET bbalance = 0",
    );
    assert!(
        full.contains("53300") && full.contains("pool.size"),
        "{full}"
    );
    for mut sleeper in sleepers {
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    }

    cluster.primary().stop(StopMode::Immediate).unwrap();
    let none = error_of(
        &cluster,
        &gateway.url("app"),
        "UPDATE pgbench_branches SET bbalance = 0",
    );
    assert!(
        none.contains("57P03") && none.contains("no primary is available"),
        "{none}"
    );
    let read = psql(
        &cluster,
        &gateway.url("app"),
        "SELECT count(*) FROM pgbench_branches",
    );
    assert_eq!(
        String::from_utf8_lossy(&read.stdout).trim(),
        "1",
        "reads go on: {read:?}"
    );
}

#[test]
fn a_cancel_request_reaches_the_right_server() {
    let cluster = with_items(1);
    let gateway = Gateway::start(&cluster);
    let url = gateway.url("app");
    for sql in [
        "SELECT pg_sleep(300)",
        "SELECT pg_sleep(300) FROM pgbench_branches FOR UPDATE",
    ] {
        let mut psql = cluster.postgres().command("psql");
        let mut child = psql
            .args(["-XAt", "-v", "VERBOSITY=verbose", "-d", &url, "-c", sql])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(300)%' AND state = 'active'";
        wait_for("the query to run", || {
            cluster
                .nodes()
                .iter()
                .any(|node| node.sql("postgres", running).unwrap().trim() == "1")
        });
        // psql sends a cancel request on SIGINT.
        let pid = child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", "INT", &pid])
                .status()
                .unwrap()
                .success()
        );
        assert!(!child.wait().unwrap().success());
        let mut text = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
        assert!(text.contains("57014"), "{text}");
    }
    assert_eq!(gateway.metric("tidegate_cancels_total", ""), 2.0);
}

/// The proxy gives such a request up after a while; the network may not.
#[test]
fn a_cancel_request_that_comes_too_late_meets_nobody_else() {
    let cluster = with_items(0);
    let tap = Tap::open(cluster.node(0).port());
    let address = cluster.node(0).address();
    let gateway = Gateway::start_with(&cluster, |config| {
        let config = config.replace(&address, &format!("127.0.0.1:{}", tap.port));
        format!("{config}\n[pool]\nsize = 1\n")
    });
    let (first, second) = (
        Client::open(&gateway, "app", ""),
        Client::open(&gateway, "app", ""),
    );
    let who = "SELECT pg_backend_pid() FROM pg_sleep(1)";
    tap.hold_cancels(true);
    let server = thread::scope(|scope| {
        scope.spawn(|| {
            let runs = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE state = 'active' \
                AND query LIKE 'SELECT pg_backend_pid() FROM%')";
            wait_for("the statement", || {
                cluster.primary().sql("app", runs).unwrap().trim() == "t"
            });
            first.cancel();
        });
        first.one(who)
    });
    assert_ne!(second.one(who), server);
    wait_for("the request to be given up", || {
        gateway.log().contains("cancel request not delivered")
    });
    let asked_of = second.one("SELECT pg_backend_pid()");
    tap.hold_cancels(false);
    assert_eq!(second.one(who), asked_of);
}

#[test]
fn a_shutdown_lets_transactions_finish_and_a_second_signal_does_not() {
    let cluster = with_items(1);
    for twice in [false, true] {
        let mut gateway = Gateway::start(&cluster);
        let mut child = cluster
            .postgres()
            .command("psql")
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &gateway.url("app")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        use std::io::Write;
        writeln!(stdin, "BEGIN;\nUPDATE pgbench_branches SET bbalance = 5;").unwrap();
        stdin.flush().unwrap();
        wait_for("the transaction", || {
            let open = "SELECT count(*) FROM pg_stat_activity \
                 WHERE state = 'idle in transaction' AND query LIKE 'UPDATE%'";
            cluster.primary().sql("postgres", open).unwrap().trim() == "1"
        });
        gateway.signal("TERM");
        wait_for("the drain", || gateway.log().contains("shutting down"));
        wait_for("no new clients to be let in", || {
            std::net::TcpStream::connect(("127.0.0.1", gateway.port)).is_err()
        });
        if twice {
            gateway.signal("TERM");
            assert_eq!(gateway.wait(), Some(0));
            writeln!(stdin, "COMMIT;").unwrap();
        } else {
            writeln!(stdin, "COMMIT;").unwrap();
        }
        assert_eq!(gateway.wait(), Some(0));
        drop(stdin);
        let status = child.wait().unwrap();
        assert_eq!(status.success(), !twice);
    }
}

/// How many sockets listen on this port of IPv4, as the operating system tells.
fn listeners(port: u16) -> usize {
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("sockets");
    let listens = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[1].ends_with(&format!(":{port:04X}")) && fields[3] == "0A"
    };
    sockets.lines().skip(1).filter(listens).count()
}

#[test]
fn another_process_takes_over_and_no_client_notices() {
    let cluster = with_items(1);
    let sharing = |port, http_port, grace: &str| {
        let config = cluster.config_for(port, http_port);
        let lines = format!("[listen]\nreuse_port = true\nshutdown_grace = \"{grace}\"");
        assert!(config.contains("[listen]\n"));
        config.replacen("[listen]", &lines, 1)
    };
    let mut old = Gateway::start_on(2, |port, http_port| sharing(port, http_port, "1h"));
    let client = Client::open(&old, "app", "");
    client.rows("UPDATE pgbench_branches SET bbalance = 5");
    let port = old.port;
    let new = Gateway::start_on(2, |_, http_port| sharing(port, http_port, "1h"));
    old.signal("TERM");
    wait_for("the old one to serve no health", || {
        old.get("/readyz").is_none()
    });
    wait_for("the old one to listen no more", || listeners(port) == 1);
    for _ in 0..20 {
        assert_eq!(Client::open(&old, "app", "").one("SELECT 1"), "1");
    }
    assert_eq!(new.metric("tidegate_queries_total", ""), 20.0);
    // Whoever is there is served as ever, by a configuration that can be changed.
    assert_eq!(client.one("SELECT bbalance FROM pgbench_branches"), "5");
    client.rows("BEGIN");
    client.rows("UPDATE pgbench_branches SET bbalance = 6");
    let renewed = sharing(port, old.http_port, "2h");
    std::fs::write(&old.config_path, renewed).expect("config");
    old.signal("HUP");
    wait_for("the reload", || {
        old.log().contains("configuration reloaded")
    });
    client.rows("COMMIT");
    assert_eq!(client.one("SELECT bbalance FROM pgbench_branches"), "6");
    drop(client);
    assert_eq!(old.wait(), Some(0));

    // Who stays too long, or longer than somebody likes, is told.
    for grace in ["100ms", "1h"] {
        let mut gateway = Gateway::start_on(2, |port, http_port| sharing(port, http_port, grace));
        let client = Client::open(&gateway, "app", "");
        gateway.signal("TERM");
        wait_for("no new clients to be let in", || {
            std::net::TcpStream::connect(("127.0.0.1", gateway.port)).is_err()
        });
        if grace == "1h" {
            assert_eq!(client.one("SELECT 1"), "1");
            gateway.signal("TERM");
        }
        assert_eq!(gateway.wait(), Some(0));
        assert!(gateway.log().contains("client dismissed"));
    }
}

#[test]
fn who_is_cut_off_by_a_shutdown_is_told_and_nothing_goes_on_for_it() {
    let cluster = with_items(1);
    for how in ["too long", "signalled twice", "on nodes that stand still"] {
        let twice = how == "signalled twice";
        let limit = if twice { "60s" } else { "100ms" };
        let mut gateway = Gateway::start_with(&cluster, |config| {
            let line = format!("[listen]\nshutdown_timeout = \"{limit}\"");
            assert!(config.contains("[listen]\n"));
            config.replacen("[listen]", &line, 1)
        });
        let run = |statements: &[&str]| {
            let mut psql = cluster.postgres().command("psql");
            psql.args(["-XAtq", "-d", &gateway.url("app")]);
            psql.args(statements.iter().flat_map(|sql| ["-c", sql]));
            psql.stderr(Stdio::piped()).spawn().unwrap()
        };
        let (ended, unknown) = (
            "terminating connection",
            "whether it took effect is unknown",
        );
        let update = "UPDATE pgbench_branches SET bbalance = 5 FROM pg_sleep(600)";
        let clients = [
            (run(&["SELECT pg_sleep(600)"]), ended),
            (run(&["BEGIN", update]), ended),
            // It may be done by then.
            (
                run(&["UPDATE pgbench_tellers SET tbalance = 5 FROM pg_sleep(600)"]),
                unknown,
            ),
        ];
        let running = || -> usize {
            let busy = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%600%' \
                 AND pid <> pg_backend_pid()";
            let nodes = cluster.nodes();
            let busy = nodes.iter().map(|node| node.sql("postgres", busy).unwrap());
            busy.map(|n| n.trim().parse::<usize>().unwrap()).sum()
        };
        wait_for("all to run", || running() == clients.len());
        let still = how == "on nodes that stand still";
        if still {
            cluster.nodes().iter().for_each(|node| node.freeze());
        }
        gateway.signal("TERM");
        if twice {
            wait_for("the drain", || gateway.log().contains("shutting down"));
            gateway.signal("TERM");
        }
        assert_eq!(gateway.wait(), Some(0));
        for (client, expected) in clients {
            let output = client.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains(expected), "{how}: {said}");
        }
        if still {
            cluster.nodes().iter().for_each(|node| node.thaw());
            break;
        }
        wait_for("everything to be cancelled", || running() == 0);
    }
}

#[test]
fn a_bad_configuration_is_refused_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.toml");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(arguments)
            .arg("--config")
            .arg(&path)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let missing = run(&["check"]);
    assert_eq!(missing.0, Some(2));
    assert!(missing.1.contains("bad.toml"), "{}", missing.1);
    let good = include_str!("../config.toml");
    for (bad, said) in [
        (
            good.replace("[pool]", "[pool]\nsise = 3"),
            "did you mean \"size\"",
        ),
        (
            good.replace("[pool]", "[pool]\nsize = \"many\""),
            "pool.size",
        ),
        (good.replace("[pool]", "[pool"), "bad.toml:"),
        (String::new(), "cluster"),
    ] {
        std::fs::write(&path, bad).unwrap();
        for command in ["check", "run"] {
            let (code, text) = run(&[command]);
            assert_eq!(code, Some(2), "{text}");
            assert!(text.contains(said) && text.contains("bad.toml"), "{text}");
        }
    }
    std::fs::write(&path, good).unwrap();
    assert_eq!(run(&["check"]).0, Some(0));
    // A port that is taken is a failure of another kind.
    let taken = std::net::TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    std::fs::write(&path, good.replace("127.0.0.1:6432", &address)).unwrap();
    let (code, text) = run(&["run"]);
    assert_eq!(code, Some(1), "{text}");
    let expected = format!("cannot listen on {address} (\"listen.address\"): ");
    assert!(text.contains(&expected), "{text}");
}

/// Processes that stand still for as long as this lives.
struct Stopped(Vec<Pid>);

impl Stopped {
    fn new(pids: Vec<Pid>) -> Stopped {
        for &pid in &pids {
            kill(pid, Signal::SIGSTOP).expect("it is there");
        }
        Stopped(pids)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for &pid in &self.0 {
            let _ = kill(pid, Signal::SIGCONT);
        }
    }
}

#[test]
fn wal_that_nobody_flushes_keeps_no_session_from_the_replicas() {
    let cluster = with_items(1);
    let gateway = Gateway::start(&cluster);
    let primary = cluster.primary();
    // Whoever might flush it by and by.
    let writers = primary.sql(
        "app",
        "SELECT pid FROM pg_stat_activity WHERE backend_type IN ('walwriter', 'background writer')",
    );
    let writers = writers.expect("the server's own processes");
    let writers: Vec<Pid> = writers
        .lines()
        .map(|pid| Pid::from_raw(pid.parse().expect("a process id")))
        .collect();
    assert_eq!(writers.len(), 2);
    let _stopped = Stopped::new(writers);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let connected = tokio_postgres::connect(&gateway.url("app"), tokio_postgres::NoTls).await;
        let (client, connection) = connected.expect("a session");
        tokio::spawn(connection);
        let insert = "SELECT pg_logical_emit_message(false, 'test', 'no commit')";
        primary.sql("app", insert).expect("a message");
        // May have written, for all the proxy knows.
        let lock = "SELECT pg_advisory_xact_lock(1)";
        client.batch_execute(lock).await.expect("a lock");
        let on_replicas = || gateway.metric("tidegate_queries_total", "route=\"replica\"");
        let before = on_replicas();
        let limit = std::time::Duration::from_secs(60);
        let read = async {
            while on_replicas() == before {
                client.batch_execute("SELECT 1").await.expect("a read");
            }
        };
        let read = tokio::time::timeout(limit, read).await;
        read.expect("the session's reads move to the replica");
    });
}

#[test]
fn slow_queries_are_logged_with_their_reason() {
    let cluster = with_items(1);
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n[log]\nslow_query = \"0\"\n")
    });
    let client = Client::open(&gateway, "app", "");
    let lines = |with: &[&str]| {
        let log = gateway.log();
        let is_one =
            |line: &&str| line.contains("slow query") && with.iter().all(|w| line.contains(w));
        log.lines().filter(is_one).count()
    };
    client.rows("SELECT count(*) AS first FROM pgbench_branches WHERE 'secret' <> ''");
    client.prepared_with("SELECT $1::text AS second", &[&"secret"]);
    client.rows("UPDATE pgbench_branches SET bid = bid WHERE bid = 4711");
    client.rows("BEGIN; SELECT 4711 AS third; COMMIT");
    // Answered before the pipeline ends; and followed by data.
    let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
    raw.log_in();
    raw.send(|out| {
        encode::parse(out, b"", b"SELECT $1 AS fourth", b"\0\0");
        encode::bind_and_execute(out, b"secret", 0);
        out.extend_from_slice(encode::FLUSH);
    });
    raw.until(b'C');
    raw.send(|out| out.extend_from_slice(encode::SYNC));
    raw.until(b'Z');
    raw.send(|out| encode::query(out, b"COPY pgbench_history FROM STDIN (DELIMITER '|')"));
    raw.until(b'G');
    raw.send(|out| encode::body(out, b'c', b""));
    raw.until(b'Z');
    for with in [
        &[
            "sql=\"select count(*) as first from pgbench_branches where '' <> ''\"",
            "user=app",
        ][..],
        &["sql=\"select $1 :: text as second\"", "took_ms="],
        &[
            "route=\"primary\"",
            "reason=\"write\"",
            "update pgbench_branches set bid = bid where bid = 0",
        ],
        &[
            "reason=\"transaction\"",
            "begin; select 0 as third; commit",
            "node=",
        ],
        &["reason=\"open_pipeline\"", "sql=\"select $1 as fourth\""],
        &["sql=\"copy pgbench_history from stdin(delimiter '')\""],
    ] {
        wait_for("a line", || lines(with) > 0);
    }
    let log = gateway.log();
    assert!(!log.contains("secret") && !log.contains("4711"), "{log}");

    // A limit that nothing reaches, without a restart.
    let config = std::fs::read_to_string(&gateway.config_path).expect("config");
    let longer = config.replace("slow_query = \"0\"", "slow_query = \"1h\"");
    std::fs::write(&gateway.config_path, longer).expect("config");
    gateway.signal("HUP");
    wait_for("the new configuration", || {
        gateway.log().contains("changed: log.slow_query")
    });
    let before = lines(&[]);
    client.rows("SELECT count(*) FROM pgbench_branches");
    assert_eq!(lines(&[]), before);
}

#[test]
fn a_replica_that_stands_still_is_asked_on_however_seldom() {
    let cluster = with_items(1);
    let gateway = Gateway::start_with(&cluster, |config| {
        let waits = "on_no_replica = \"wait\"\nwait_timeout = \"2m\"\npoll_interval = \"100ms\"";
        format!("{config}\n[consistency]\n{waits}\n[lag]\nmax = \"10m\"\n")
    });
    let (primary, replica) = (cluster.primary(), cluster.node(1));
    let client = Client::open(&gateway, "app", "");
    replica.pause_replay().expect("paused");
    client.rows("DELETE FROM pgbench_branches");
    thread::scope(|scope| {
        let shown = scope.spawn(|| client.one("SELECT count(*) FROM pgbench_branches"));
        for node in [&replica, &primary] {
            let mut asked = std::collections::BTreeSet::new();
            wait_for("a node to be asked again and again", || {
                const WHEN: &str = "SELECT query_start FROM pg_stat_activity \
                    WHERE application_name = 'tidegate monitor'";
                asked.insert(node.sql("app", WHEN).expect("activity"));
                asked.len() > 10
            });
        }
        assert!(!shown.is_finished());
        replica.resume_replay().expect("resumed");
        assert_eq!(shown.join().expect("read"), "0");
    });
}

#[test]
fn http_connections_are_bounded_and_none_stays() {
    const SILENT: usize = 100;
    const SERVED_MAX: usize = 64;
    let cluster = support::cluster_with(0, &[]);
    let gateway = Gateway::start(&cluster);
    let sockets = || {
        let files = format!("/proc/{}/fd", gateway.pid());
        let files = std::fs::read_dir(files).expect("open files");
        let target =
            |file: std::io::Result<std::fs::DirEntry>| std::fs::read_link(file.ok()?.path()).ok();
        let targets = files.filter_map(target);
        let is_socket =
            |target: &std::path::PathBuf| target.to_string_lossy().starts_with("socket:");
        targets.filter(is_socket).count()
    };
    let before = sockets();
    let silent: Vec<_> = (0..SILENT)
        .map(|_| std::net::TcpStream::connect(("127.0.0.1", gateway.http_port)).expect("a socket"))
        .collect();
    for socket in &silent {
        socket.set_nonblocking(true).expect("set");
    }
    let is_over = |mut socket: &std::net::TcpStream| {
        matches!(std::io::Read::read(&mut socket, &mut [0; 512]), Ok(0))
    };
    let mut most = 0;
    wait_for("the first ones to be cut off", || {
        most = most.max(sockets());
        is_over(&silent[0])
    });
    // The proxy's own connections to the node come and go.
    assert!(most <= before + SERVED_MAX + 8, "{before} {most}");
    let answer = gateway.get("/healthz").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn gauges_of_pools_go_with_their_pools() {
    let cluster = support::cluster_with(0, &[]);
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n[pool]\nidle_timeout = \"1s\"\n")
    });
    let shown = |labels: &str| {
        ["tidegate_pool_servers", "tidegate_pool_waiting"]
            .map(|name| gateway.samples(name, labels).len())
    };
    let client = Client::open(&gateway, "app", "");
    client.rows("SELECT 1");
    assert_eq!(shown("database=\"app\",user=\"app\""), [2, 1]);
    // A database that there is not is found out by trying.
    let refused = Client::refused(&gateway, "app", "dbname=nowhere");
    assert_eq!(refused.code().code(), "3D000");
    wait_for("its gauges to go", || shown("nowhere") == [0, 0]);
    drop(client);
    wait_for("no gauge without a pool", || shown("") == [0, 0]);
}

#[test]
fn what_needs_a_restart_is_said_until_there_was_one() {
    let cluster = support::cluster_with(0, &[]);
    let gateway = Gateway::start(&cluster);
    let config = std::fs::read_to_string(&gateway.config_path).expect("config");
    let said = |what: &str| gateway.log().matches(what).count();
    let changed = config.replace("[http]", "workers_min = 2\n\n[http]");
    for times in 1..=2 {
        gateway.reload(&changed);
        assert_eq!(said("this change applies after a restart"), times);
    }
    // As it was all the time: there is nothing to do.
    gateway.reload(&config);
    assert_eq!(said("this change applies after a restart"), 2);
    assert_eq!(said("nothing has changed"), 1);

    // What is most likely not meant is said as at the start.
    let open = "lets anyone who can connect be an admin of the console";
    assert_eq!(said(open), 0);
    let trust = config.replace("[auth]", "[console]\nadmins = [\"app\"]\n\n[auth]");
    gateway.reload(&trust.replace("method = \"scram-sha-256\"", "method = \"trust\""));
    assert_eq!(said(open), 1, "{}", gateway.log());
}

#[test]
fn errors_are_counted_by_class_whoever_made_them() {
    let cluster = support::cluster_with(0, &[]);
    let gateway = Gateway::start(&cluster);
    let counted = |class: &str| {
        let labels = format!("class=\"{class}\"");
        gateway.metric("tidegate_errors_total", &labels)
    };
    let client = Client::open(&gateway, "app", "");
    client.error("SELECT 1/0");
    client.error_of_prepared("SELECT 1/0");
    assert_eq!(counted("22"), 2.0);
    // The proxy's own words, in the place of a server's error.
    let complaint = client.error("SET tidegate.consistency = 'none'");
    assert_eq!(complaint.code().code(), "22023");
    assert_eq!(counted("22"), 3.0);
    for sqlstate in ["U1234", "U1999"] {
        client.error(&format!(
            "DO $$ BEGIN RAISE EXCEPTION 'own' USING ERRCODE = '{sqlstate}'; END $$"
        ));
    }
    assert_eq!(counted("U1"), 2.0);
    assert_eq!(gateway.metric("tidegate_errors_total", ""), 5.0);
}

#[test]
fn how_nodes_are_probed_and_by_whom_is_changed_by_a_reload() {
    let cluster = support::cluster_with(1, &[]);
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n[health]\nfailures = 1000\n")
    });
    let (primary, replica) = (cluster.primary(), cluster.node(1));
    primary
        .sql("app", "CREATE ROLE watcher LOGIN PASSWORD 'watcher'")
        .expect("role");
    let config = std::fs::read_to_string(&gateway.config_path).expect("config");
    let is_monitor = |line: &&str| line.starts_with("monitor = ");
    let monitor = config.lines().find(is_monitor).expect("a monitor");
    let watcher = "monitor = { user = \"watcher\", password = \"watcher\" }";
    let watched = config.replace(monitor, watcher);
    gateway.reload(&watched);
    for node in [&primary, &replica] {
        wait_for("another to probe", || {
            const WHO: &str = "SELECT string_agg(usename, ',') FROM pg_stat_activity \
                WHERE application_name = 'tidegate monitor'";
            node.sql("app", WHO).expect("activity").trim() == "watcher"
        });
    }

    let is_up = || gateway.metric("tidegate_up", &format!("node=\"{}\"", replica.address())) == 1.0;
    assert!(is_up());
    replica.kill();
    wait_for("more failures than will be needed", || {
        gateway.log().matches("probe failed").count() > 4
    });
    assert!(is_up());
    gateway.reload(&watched.replace("failures = 1000", "failures = 3"));
    wait_for("the node to be down", || !is_up());
}
