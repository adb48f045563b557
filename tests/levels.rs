//! What each consistency level shows and where its reads go: by configuration, by settings of the
//! session, by hints of the statement.
//!
//! Owns: the levels one by one, with replicas that stand still. `tests/history.rs` has them in random
//! histories.

mod support;

use std::thread;

use support::client::Client;
use support::raw::{Raw, VERSION_3_0};
use support::{Gateway, wait_for};
use tidegate::demo::{LocalCluster, LocalNode, Options, StopMode};
use tidegate::wire::encode;
use tidegate::wire::frame::body;
use tidegate::wire::message;

/// `here` says which node has answered; a view, since a statement of the client's own that calls this
/// function would not be one that is proven to read the same everywhere.
const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL);
    INSERT INTO t VALUES (1, 0);
    CREATE VIEW here AS SELECT current_setting('port')::int AS port;
    CREATE VIEW shown AS SELECT current_setting('tidegate.consistency', true) AS level;
    GRANT SELECT, UPDATE ON t, here, shown TO app;
    CREATE ROLE other LOGIN PASSWORD 'other';
    GRANT SELECT, UPDATE ON t, here TO other;";

const READ: &str = "SELECT v, port FROM t, here WHERE id = 1";

fn start(replicas: usize) -> LocalCluster {
    let options = Options {
        replicas,
        ..Options::default()
    };
    let cluster = LocalCluster::start(options).expect("cluster");
    cluster.primary().sql("app", SCHEMA).expect("schema");
    cluster.wait_caught_up().expect("caught up");
    cluster
}

/// A proxy whose replicas take reads for as long as a slow machine may need, though they stand still.
fn gateway(cluster: &LocalCluster) -> Gateway {
    with_consistency(cluster, "")
}

fn with_consistency(cluster: &LocalCluster, lines: &str) -> Gateway {
    Gateway::start_with(cluster, |config| {
        format!("{config}\n[lag]\nmax = \"10m\"\n[consistency]\n{lines}\n")
    })
}

/// The value that a read shows, and the port of the node that shows it.
fn read(client: &Client, hint: &str) -> (i32, u16) {
    let rows = client.rows(&format!("{hint}{READ}"));
    let [v, port] = &rows[0][..] else {
        panic!("{rows:?}")
    };
    (v.parse().expect("a number"), port.parse().expect("a port"))
}

/// What a read shows that waits for a replica whose replay is paused, and goes on once the read has come.
fn read_at_gate(gateway: &Gateway, client: &Client, replica: &LocalNode) -> (i32, u16) {
    let heard = || gateway.metric("tidegate_client_bytes_total", "direction=\"received\"");
    let before = heard();
    thread::scope(|scope| {
        let read = scope.spawn(|| read(client, ""));
        wait_for("the read to come", || heard() > before);
        replica.resume_replay().unwrap();
        read.join().expect("no panic")
    })
}

fn write(client: &Client, v: i32) {
    client.rows(&format!("UPDATE t SET v = {v} WHERE id = 1"));
}

#[test]
fn the_proxys_settings_are_settings_of_the_session() {
    let cluster = start(1);
    let gateway = gateway(&cluster);
    let client = Client::open(&gateway, "app", "");
    let show = |client: &Client, name: &str| {
        let simple = client.one(&format!("SHOW tidegate.{name}"));
        assert_eq!(client.prepared(&format!("SHOW tidegate.{name}")), simple);
        simple
    };
    let all = |client: &Client| ["consistency", "max_lag", "causal_key"].map(|n| show(client, n));
    assert_eq!(all(&client), ["session", "1s", ""]);
    client.rows("SET tidegate.consistency = Bounded");
    client.rows("SET tidegate.max_lag TO '200ms'");
    client.rows("SET SESSION \"tidegate\".causal_key = 'it''s'");
    assert_eq!(all(&client), ["bounded", "200ms", "it's"]);
    assert_eq!(client.one("SELECT level FROM shown"), "bounded");
    client.rows("RESET tidegate.max_lag");
    client.rows("SET tidegate.causal_key TO DEFAULT");
    assert_eq!(all(&client), ["bounded", "1s", ""]);

    // With transactions, as any setting.
    client.rows("BEGIN");
    client.rows("SET tidegate.consistency = 'global'");
    assert_eq!(show(&client, "consistency"), "global");
    client.rows("SET LOCAL tidegate.consistency = 'eventual'");
    assert_eq!(client.one("SHOW tidegate.consistency"), "eventual");
    client.rows("ROLLBACK");
    assert_eq!(show(&client, "consistency"), "bounded");
    client.rows("BEGIN; SET tidegate.consistency = 'global'; COMMIT");
    assert_eq!(show(&client, "consistency"), "global");
    client.rows("BEGIN; SAVEPOINT a; SET tidegate.consistency = 'primary'; ROLLBACK TO a; COMMIT");
    assert_eq!(show(&client, "consistency"), "global");
    client.rows("SELECT set_config('tidegate.consistency', 'eventual', false)");
    assert_eq!(show(&client, "consistency"), "eventual");
    client.rows("RESET ALL");
    assert_eq!(show(&client, "consistency"), "session");
    client.rows("SET tidegate.consistency = 'primary'; SET tidegate.max_lag = '5s'");
    client.rows("DISCARD ALL");
    assert_eq!(all(&client), ["session", "1s", ""]);

    // What was given at the start is what RESET goes back to.
    let options = "options='-c tidegate.consistency=eventual -c tidegate.max_lag=3s'";
    let started = Client::open(&gateway, "app", options);
    assert_eq!(all(&started), ["eventual", "3s", ""]);
    started.rows("SET tidegate.consistency = 'global'");
    started.rows("RESET tidegate.consistency");
    assert_eq!(all(&started), ["eventual", "3s", ""]);

    // Nothing of it is left on a server for others.
    let next = Client::open(&gateway, "app", "");
    for client in [&client, &next] {
        assert_eq!(all(client), ["session", "1s", ""]);
        let level = client.one("SELECT level FROM shown");
        assert_eq!(level, "", "it has not set any itself");
    }
}

#[test]
fn bad_values_are_errors_as_of_the_server() {
    let cluster = start(1);
    let gateway = gateway(&cluster);
    let client = Client::open(&gateway, "app", "");
    for (sql, sqlstate, advice) in [
        (
            "SET tidegate.consistency = 'strong'",
            "22023",
            "Available values: eventual, bounded, session, global, primary.",
        ),
        (
            "SET tidegate.max_lag = 200",
            "22023",
            "a whole number with a unit",
        ),
        ("SET tidegate.max_lag = '0'", "22023", "more than 0"),
        (
            "SET tidegate.level = 'session'",
            "42704",
            "tidegate.consistency",
        ),
        ("RESET tidegate.level", "42704", "tidegate.consistency"),
        (
            "SET LOCAL tidegate.token = 'x'",
            "22023",
            "SHOW tidegate.token",
        ),
        ("SET tidegate.token = 'tg1:1:1:0/0'", "22023", "its cluster"),
        (
            "/* tidegate: primry */ SELECT 1",
            "22023",
            "Hints are eventual",
        ),
        (
            "/* tidegate: node=db9 */ SELECT 1",
            "42704",
            "The nodes are 127.0.0.1:",
        ),
    ] {
        for ask in [Client::error, Client::error_of_prepared] {
            let error = ask(&client, sql);
            assert_eq!(error.code().code(), sqlstate, "{sql}: {error}");
            let hint = error.hint().unwrap_or_default();
            assert!(hint.contains(advice), "{sql}: {hint}");
            // In a transaction it fails the transaction, and no more.
            client.rows("BEGIN");
            assert_eq!(ask(&client, sql).code().code(), sqlstate);
            assert_eq!(client.error("SELECT 1").code().code(), "25P02");
            client.rows("ROLLBACK");
            assert_eq!(client.one("SELECT 1"), "1");
        }
    }
    assert_eq!(client.one("SHOW tidegate.consistency"), "session");
    let unknown = client.error("SHOW tidegate.level");
    assert_eq!(unknown.code().code(), "42704");
    // A text is refused as a whole.
    client.error("UPDATE t SET v = 5; SET tidegate.consistency = 'strong'");
    assert_eq!(read(&client, "").0, 0);

    for options in [
        "-c tidegate.consistency=strong",
        "-c tidegate.level=session",
    ] {
        let error = Client::refused(&gateway, "app", &format!("options='{options}'"));
        assert!(["22023", "42704"].contains(&error.code().code()), "{error}");
    }
}

#[test]
fn hints_say_where_a_statement_runs() {
    let cluster = start(2);
    let gateway = gateway(&cluster);
    let client = Client::open(&gateway, "app", "");
    let [primary, first, second] = [0, 1, 2].map(|index| cluster.node(index));
    assert_eq!(read(&client, "/* tidegate: primary */ ").1, primary.port());
    for node in [&primary, &first, &second, &first] {
        let hint = format!("/* tidegate: node={} */ ", node.address());
        assert_eq!(read(&client, &hint).1, node.port());
        let shown = client.prepared(&format!("{hint} SELECT port FROM here"));
        assert_eq!(shown, node.port().to_string());
    }
    let reason = |name: &str| {
        let labels = format!("reason=\"{name}\"");
        gateway.metric("tidegate_queries_total", &labels)
    };
    wait_for("all reads to be counted", || {
        reason("named_replica") >= 3.0 && reason("named_primary") >= 1.0 && reason("level") >= 1.0
    });
    assert_eq!(reason("level"), 1.0);

    // No hint takes a write to a replica, nor anything out of a transaction.
    let named = format!("/* tidegate: node={} */ ", first.address());
    let error = client.error(&format!("{named}UPDATE t SET v = 7 WHERE id = 1"));
    assert_eq!(error.code().code(), "25006");
    client.rows("BEGIN");
    let error = client.error(&format!("{named}{READ}"));
    assert_eq!(error.code().code(), "25001");
    client.rows("ROLLBACK");
    assert_eq!(read(&client, "").0, 0);
    client.rows("/* tidegate: eventual */ UPDATE t SET v = 1 WHERE id = 1");
    assert_eq!(read(&client, "").0, 1);

    // What it names must still have what the session has to see.
    first.pause_replay().unwrap();
    write(&client, 2);
    let error = client.error(&format!("{named}{READ}"));
    assert_eq!(error.code().code(), "57P03", "{error}");
    assert!(error.message().contains("own_write"), "{error}");
    let weakly = format!("/* tidegate: eventual, node={} */ ", first.address());
    assert_eq!(read(&client, &weakly), (1, first.port()));
    thread::scope(|scope| {
        let waits = scope.spawn(|| client.row_or_error(&format!("{named}{READ}")));
        first.resume_replay().unwrap();
        // In time, or not: never an old row.
        match waits.join().expect("no panic") {
            Ok(row) => assert_eq!(row[0], "2"),
            Err(error) => assert_eq!(error.code().code(), "57P03"),
        }
    });
    wait_for("the named node to have it", || {
        client.row_or_error(&format!("{named}{READ}")).is_ok()
    });
}

#[test]
fn each_level_shows_what_it_promises() {
    let cluster = start(2);
    let gateway = gateway(&cluster);
    let (writer, reader) = (
        Client::open(&gateway, "app", ""),
        Client::open(&gateway, "app", ""),
    );
    let primary = cluster.primary().port();
    for client in [&writer, &reader] {
        wait_for("reads on a replica", || read(client, "").1 != primary);
    }
    for replica in cluster.replicas() {
        replica.pause_replay().unwrap();
    }
    write(&writer, 1);
    assert_eq!(read(&writer, ""), (1, primary));
    assert_eq!(read(&writer, "/* tidegate: eventual */ ").0, 0);
    let (v, port) = read(&reader, "");
    assert_eq!((v, port != primary), (0, true), "it has not heard of it");
    assert_eq!(read(&reader, "/* tidegate: global */ "), (1, primary));
    assert_eq!(read(&writer, "/* tidegate: bounded, max_lag=1h */ ").0, 0);
    wait_for("the write to be too long ago to be missed", || {
        read(&reader, "/* tidegate: bounded, max_lag=300ms */ ") == (1, primary)
    });
    let level = |name: &str| format!("SET tidegate.consistency = '{name}'");
    let third = Client::open(
        &gateway,
        "app",
        "options='-c tidegate.consistency=eventual'",
    );
    assert_eq!(read(&third, "").0, 0);
    for (name, shown) in [("global", 1), ("eventual", 0), ("primary", 1)] {
        third.rows(&level(name));
        assert_eq!(read(&third, "").0, shown, "{name}");
    }
    for replica in cluster.replicas() {
        replica.resume_replay().unwrap();
    }
    for name in ["global", "bounded", "session"] {
        third.rows(&level(name));
        wait_for("reads on a replica again", || {
            let (v, port) = read(&third, "");
            assert_eq!(v, 1, "{name}");
            port != primary
        });
    }
    for reason in ["own_write", "others_write", "over_max_lag", "level"] {
        let labels = format!("route=\"primary\",reason=\"{reason}\"");
        wait_for(reason, || {
            gateway.metric("tidegate_queries_total", &labels) > 0.0
        });
    }
}

#[test]
fn the_configuration_says_for_whom() {
    let cluster = start(1);
    let replica = cluster.node(1).port();
    let primary = cluster.primary().port();
    let overrides = "level = \"eventual\"
        [[consistency.override]]
        user = \"other\"
        level = \"primary\"";
    let gateway = Gateway::start_with(&cluster, |config| {
        let user = "[[auth.user]]\nname = \"other\"\npassword = \"other\"\n\n[[auth.user]]";
        let config = config.replacen("[[auth.user]]", user, 1);
        format!("{config}\n[consistency]\n{overrides}\n")
    });
    let app = Client::open(&gateway, "app", "");
    let other = Client::open(&gateway, "other", "");
    assert_eq!((read(&app, "").1, read(&other, "").1), (replica, primary));
    assert_eq!(other.one("SHOW tidegate.consistency"), "primary");
    // A reload counts for sessions that are open.
    let config = std::fs::read_to_string(&gateway.config_path).unwrap();
    let whole = config.replace("level = \"eventual\"", "level = \"primary\"");
    gateway.reload(&whole.replace(
        "user = \"other\"\n        level = \"primary\"",
        "user = \"other\"\n        level = \"eventual\"",
    ));
    assert_eq!((read(&app, "").1, read(&other, "").1), (primary, replica));
}

#[test]
fn a_read_waits_for_a_replica_or_fails_if_told_so() {
    let cluster = start(1);
    let replica = cluster.node(1);
    let (primary, port) = (cluster.primary().port(), replica.port());
    let waits = with_consistency(&cluster, "on_no_replica = \"wait\"\nwait_timeout = \"60s\"");
    let client = Client::open(&waits, "app", "");
    replica.pause_replay().unwrap();
    write(&client, 1);
    let shown = thread::scope(|scope| {
        let read = scope.spawn(|| read(&client, ""));
        let pinned = || waits.metric("tidegate_pinned_sessions", "") > 0.0;
        wait_for("the read to wait", pinned);
        replica.resume_replay().unwrap();
        read.join().expect("no panic")
    });
    assert_eq!(shown, (1, port));
    drop(client);

    let briefly = with_consistency(
        &cluster,
        "on_no_replica = \"wait\"\nwait_timeout = \"20ms\"",
    );
    let client = Client::open(&briefly, "app", "");
    replica.pause_replay().unwrap();
    write(&client, 2);
    assert_eq!(read(&client, ""), (2, primary), "after waiting in vain");

    let errors = with_consistency(&cluster, "on_no_replica = \"error\"");
    let client = Client::open(&errors, "app", "");
    write(&client, 3);
    for ask in [Client::error, Client::error_of_prepared] {
        let error = ask(&client, READ);
        assert_eq!(error.code().code(), "57P03");
        assert!(error.message().contains("own_write"), "{error}");
    }
    assert_eq!(read(&client, "/* tidegate: eventual */ "), (1, port));
    assert_eq!(read(&client, "/* tidegate: primary */ "), (3, primary));
    replica.resume_replay().unwrap();
    wait_for("the replica to have it", || {
        client.row_or_error(READ).is_ok_and(|row| row[0] == "3")
    });
}

#[test]
fn who_goes_on_reading_after_a_write_waits_for_a_replica_once() {
    let cluster = start(1);
    let replica = cluster.node(1);
    let (primary, port) = (cluster.primary().port(), replica.port());
    let gateway = with_consistency(&cluster, "gate_wait = \"10m\"");
    let client = Client::open(&gateway, "app", "");
    replica.pause_replay().unwrap();
    for v in 1..=2 {
        write(&client, v);
        assert_eq!([read(&client, ""), read(&client, "")], [(v, primary); 2]);
    }
    let shown = read_at_gate(&gateway, &client, &replica);
    assert_eq!(shown, (2, port));
    assert_eq!(read(&client, ""), (2, port));
    let passed = gateway.metric("tidegate_gate_waits_total", "result=\"passed\"");
    assert_eq!(passed, 1.0);
}

#[test]
fn what_the_primary_has_shown_at_one_level_is_a_floor_at_the_next() {
    let cluster = start(1);
    let (primary, replica) = (cluster.primary().port(), cluster.node(1));
    let gateway = gateway(&cluster);
    let (writer, reader) = (
        Client::open(&gateway, "app", ""),
        Client::open(&gateway, "app", ""),
    );
    wait_for("reads on the replica", || read(&reader, "").1 != primary);
    replica.pause_replay().unwrap();
    write(&writer, 1);
    reader.rows("SET tidegate.consistency = 'primary'");
    assert_eq!(read(&reader, ""), (1, primary));
    reader.rows("SET tidegate.consistency = 'session'");
    assert_eq!(read(&reader, ""), (1, primary));
    replica.resume_replay().unwrap();
}

#[test]
fn who_has_a_server_on_the_replica_needs_no_other_after_waiting_for_it() {
    let cluster = start(1);
    let (primary, replica) = (cluster.primary().port(), cluster.node(1));
    let gateway = Gateway::start_with(&cluster, |config| {
        let pool = "[pool]\nmode = \"session\"\nsize = 1\n";
        format!("{config}\n{pool}[lag]\nmax = \"10m\"\n[consistency]\ngate_wait = \"10m\"\n")
    });
    let client = Client::open(&gateway, "app", "");
    wait_for("reads on the replica", || read(&client, "").1 != primary);
    replica.pause_replay().unwrap();
    write(&client, 1);
    assert_eq!([read(&client, ""), read(&client, "")], [(1, primary); 2]);
    let shown = read_at_gate(&gateway, &client, &replica);
    assert_eq!(shown, (1, replica.port()));
}

#[test]
fn nobody_waits_for_a_replica_that_does_not_answer() {
    let cluster = start(1);
    let primary = cluster.primary().port();
    // It is not taken for down so soon.
    let gateway = with_consistency(
        &cluster,
        "gate_wait = \"10ms\"\n[health]\ninterval = \"60s\"\ntimeout = \"60s\"",
    );
    let client = Client::open(&gateway, "app", "");
    write(&client, 0);
    wait_for("the replica to be known", || read(&client, "").1 != primary);
    let missed = || gateway.metric("tidegate_gate_waits_total", "result=\"missed\"");
    let before = missed();
    cluster.node(1).freeze();
    for v in 1..=20 {
        write(&client, v);
        for _ in 0..3 {
            assert_eq!(read(&client, ""), (v, primary));
        }
    }
    // Once, before it had been silent for that long.
    let waits = missed() - before;
    cluster.node(1).thaw();
    assert!(waits <= 2.0, "{waits}");
}

#[test]
fn who_only_writes_has_nobody_asked_and_reads_it_all_the_same() {
    const WRITES: i32 = 500;
    let cluster = start(1);
    let (primary, port) = (cluster.primary().port(), cluster.node(1).port());
    let rarely = "[health]\ninterval = \"60s\"";
    let gateway = with_consistency(&cluster, rarely);
    let client = Client::open(&gateway, "app", "");
    let samples = || -> f64 {
        let all = gateway.samples("tidegate_samples_total", "");
        all.iter().map(|(_, count)| count).sum()
    };
    wait_for("the replica to be read", || read(&client, "").1 == port);
    let before = samples();
    for v in 1..=WRITES {
        write(&client, v);
    }
    let asked = samples() - before;
    // For the first write, until the replica has it; else it would be at every step.
    assert!(asked < 50.0, "{asked}");
    assert_eq!(read(&client, ""), (WRITES, primary));
    wait_for("the replica to have it", || {
        read(&client, "") == (WRITES, port)
    });
}

#[test]
fn a_token_carries_what_a_session_has_written_and_seen() {
    let cluster = start(2);
    let primary = cluster.primary().port();
    // Two proxies that know nothing of each other.
    let (here, there) = (gateway(&cluster), gateway(&cluster));
    let writer = Client::open(&here, "app", "");
    let reader = Client::open(&there, "app", "");
    for replica in cluster.replicas() {
        replica.pause_replay().unwrap();
    }
    assert_eq!(read(&reader, "").0, 0);
    write(&writer, 1);
    let first = writer.one("SHOW tidegate.token");
    write(&writer, 2);
    let second = writer.prepared("SHOW tidegate.token");
    assert_ne!(first, second);
    let (v, port) = read(&reader, "");
    assert_eq!((v, port != primary), (0, true), "nobody has told it");
    let take = |client: &Client, token: &str| {
        client.rows(&format!("SET tidegate.token = '{token}'"));
    };
    take(&reader, &second);
    assert_eq!(read(&reader, ""), (2, primary));
    let started = Client::open(
        &there,
        "app",
        &format!("options='-c tidegate.token={second}'"),
    );
    assert_eq!(read(&started, ""), (2, primary));

    // It is never lowered, and is not undone.
    let other = Client::open(&there, "app", "");
    other.rows("BEGIN");
    take(&other, &second);
    other.rows("ROLLBACK");
    take(&other, &first);
    take(&other, "");
    other.rows("RESET tidegate.token");
    other.rows("DISCARD ALL");
    assert_eq!(read(&other, ""), (2, primary));
    wait_for("the reason to be counted", || {
        there.metric("tidegate_queries_total", "reason=\"token\"") > 0.0
    });

    // What it has seen by that, it can pass on.
    let third = reader.one("SHOW tidegate.token");
    let last = Client::open(&here, "app", "");
    take(&last, &third);
    assert_eq!(read(&last, "").0, 2);
    // Nothing of it is left on servers.
    let token = last.one("SELECT current_setting('tidegate.token', true)");
    assert_eq!(token, "");

    for replica in cluster.replicas() {
        replica.resume_replay().unwrap();
    }
    for client in [&reader, &started, &other] {
        wait_for("reads on a replica again", || {
            let (v, port) = read(client, "");
            assert_eq!(v, 2);
            port != primary
        });
    }
}

#[test]
fn a_token_covers_what_the_open_transaction_has_read() {
    let cluster = start(1);
    let gateway = gateway(&cluster);
    let [writer, reader, next] = ["", "", ""].map(|more| Client::open(&gateway, "app", more));
    wait_for("reads on a replica", || {
        read(&next, "").1 != cluster.primary().port()
    });
    cluster.node(1).pause_replay().unwrap();
    reader.rows("BEGIN");
    write(&writer, 1);
    assert_eq!(read(&reader, ""), (1, cluster.primary().port()));
    assert_eq!(read(&next, "").0, 0);
    let token = reader.one("SHOW tidegate.token");
    next.rows(&format!("SET tidegate.token = '{token}'"));
    assert_eq!(read(&next, "").0, 1);
    reader.rows("COMMIT");
}

#[test]
fn a_pipeline_that_is_open_while_the_schema_changes_goes_on_elsewhere() {
    let cluster = start(1);
    let gateway = gateway(&cluster);
    let changer = Client::open(&gateway, "app", "");
    let own = "CREATE SCHEMA own AUTHORIZATION app; GRANT CREATE ON DATABASE app TO app";
    cluster.primary().sql("app", own).unwrap();
    changer.rows("CREATE VIEW own.shown AS SELECT 1 AS v");
    cluster.wait_caught_up().unwrap();
    let primary = cluster.primary().port();
    let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
    raw.log_in();
    let port = |raw: &mut Raw| {
        raw.send(|out| encode::query(out, b"SELECT port FROM here"));
        let row = raw.until(b'D');
        raw.until(b'Z');
        let value = message::data_row(body(&row)).unwrap()[0].unwrap();
        String::from_utf8(value.to_vec()).unwrap()
    };
    wait_for("reads on a replica", || {
        port(&mut raw) != primary.to_string()
    });
    cluster.node(1).pause_replay().unwrap();
    raw.send(|out| {
        encode::parse(out, b"", b"SELECT v FROM own.shown", b"\0\0");
        encode::statement_target(out, b'D', b"");
        out.extend_from_slice(encode::FLUSH);
    });
    raw.until(b'T');
    changer.rows("CREATE OR REPLACE VIEW own.shown AS SELECT 2 AS v");
    // Until the database has told its new catalog, anything may be a write.
    let unknown = || gateway.metric("tidegate_queries_total", "reason=\"catalog_unknown\"");
    let all = || gateway.metric("tidegate_queries_total", "");
    wait_for("the catalog to be known", || {
        let before = (unknown(), all());
        changer.rows("SELECT port FROM here");
        wait_for("the query to be counted", || all() > before.1);
        unknown() == before.0
    });
    raw.send(|out| {
        encode::body(out, b'B', b"\0\0\0\0\0\0\0\0");
        encode::body(out, b'E', b"\0\0\0\0\0");
        out.extend_from_slice(encode::SYNC);
    });
    let row = raw.until(b'D');
    assert_eq!(message::data_row(body(&row)).unwrap()[0], Some(&b"2"[..]));
    raw.until(b'Z');
    cluster.node(1).resume_replay().unwrap();
}

#[test]
fn a_token_of_the_old_primary_holds_with_the_new_one() {
    let cluster = start(2);
    let gateway = gateway(&cluster);
    let client = Client::open(&gateway, "app", "");
    write(&client, 1);
    let old = client.one("SHOW tidegate.token");
    let position = cluster.insert_lsn().unwrap();
    let [first, second] = [1, 2].map(|index| cluster.node(index));
    for replica in [&first, &second] {
        replica.wait_for_replay(position).unwrap();
    }
    cluster.primary().stop(StopMode::Immediate).unwrap();
    first.promote().unwrap();
    second.follow(&first).unwrap();
    wait_for("the new primary", || {
        let update = client.row_or_error("UPDATE t SET v = v + 1 WHERE id = 1 RETURNING v");
        update.is_ok()
    });
    let reader = Client::open(&gateway, "app", "");
    reader.rows(&format!("SET tidegate.token = '{old}'"));
    assert!(read(&reader, "").0 >= 2);
    wait_for("reads on the other replica", || {
        reader.rows(&format!("SET tidegate.token = '{old}'"));
        read(&reader, "").1 == second.port()
    });
    let new = reader.one("SHOW tidegate.token");
    let timeline = |token: &str| token.split(':').nth(2).map(str::to_owned);
    let timelines = [timeline(&old), timeline(&new)].map(Option::unwrap_or_default);
    assert_eq!(timelines, ["1", "2"]);
}

#[test]
fn a_token_of_a_primary_that_is_not_known_yet_is_waited_for() {
    let cluster = start(1);
    let held_for = |hold: &str| {
        Gateway::start_with(&cluster, |config| {
            format!("{config}\n[failover]\nhold = \"{hold}\"\n")
        })
    };
    let (gateway, impatient) = (held_for("10m"), held_for("10ms"));
    let client = Client::open(&gateway, "app", "");
    let token = client.one("SHOW tidegate.token");
    let parts: Vec<_> = token.split(':').collect();
    let newer = format!("{}:{}:2:{}", parts[0], parts[1], parts[3]);
    let options = format!("options='-c tidegate.token={newer}'");
    let (reader, refused) = (
        Client::open(&gateway, "app", &options),
        Client::open(&impatient, "app", &options),
    );
    let explained = reader.rows(&format!("EXPLAIN ROUTE {READ}"));
    let next = "the next primary, if there is one within 10m";
    assert!(
        explained.iter().any(|row| row[1].ends_with(next)),
        "{explained:?}"
    );
    assert_eq!(refused.error(READ).code().code(), "57P03");
    let eventual = read(&refused, "/* tidegate: eventual */ ");
    assert_eq!(eventual.1, cluster.node(1).port());
    thread::scope(|scope| {
        let shown = scope.spawn(|| read(&reader, ""));
        wait_for("the read to be held", || {
            gateway.metric("tidegate_held", "") == 1.0
        });
        cluster.node(1).promote().unwrap();
        assert_eq!(shown.join().expect("a read"), (0, cluster.node(1).port()));
    });
}
