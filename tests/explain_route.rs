//! EXPLAIN ROUTE: what a session is told of where its statements would go, and that they go there.
//!
//! Owns: the answers in every form of the protocol, and that asking changes nothing.

mod support;

use std::collections::BTreeMap;

use support::client::Client;
use support::raw::{Raw, VERSION_3_0};
use support::{Gateway, wait_for};
use tidegate::demo::{LocalCluster, Options, StopMode};
use tidegate::wire::frame::body;
use tidegate::wire::{encode, message};

/// `here` says which node has answered; a view, as such a function is no read in a client's own text.
const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, route int NOT NULL);
    INSERT INTO t VALUES (1, 0), (2, 0);
    CREATE TABLE route (a int);
    CREATE VIEW here AS SELECT current_setting('port')::int AS port;
    CREATE FUNCTION touch(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
    GRANT SELECT, UPDATE, DELETE ON t, route, here TO app;";

const READ: &str = "SELECT port FROM here, t WHERE id = 1";
const WRITE: &str = "UPDATE t SET route = route + 1 WHERE id = 1";

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
fn gateway(cluster: &LocalCluster, more: &str) -> Gateway {
    Gateway::start_with(cluster, |config| {
        format!("{config}\n[lag]\nmax = \"10m\"\n{more}\n")
    })
}

/// An answer, by item.
type Answer = BTreeMap<String, String>;

fn answer(rows: Vec<Vec<String>>) -> Answer {
    let pair = |row: Vec<String>| {
        let [item, value] = <[String; 2]>::try_from(row).expect("two columns");
        (item, value)
    };
    rows.into_iter().map(pair).collect()
}

fn explain(client: &Client, sql: &str) -> Answer {
    answer(client.rows(&format!("EXPLAIN ROUTE {sql}")))
}

/// Where a statement goes, and the reason.
fn way(answer: &Answer) -> [&str; 2] {
    ["goes now to", "reason"].map(|item| answer[item].as_str())
}

/// The node that has run `sql`, which shows its port.
fn ran_on(client: &Client, sql: &str) -> String {
    format!("127.0.0.1:{}", client.one(sql))
}

#[test]
fn statements_go_where_it_says() {
    let cluster = start(2);
    let gateway = gateway(&cluster, "");
    let primary = cluster.primary().address();
    let standbys = cluster.replicas();
    let replicas: Vec<String> = standbys.iter().map(|node| node.address()).collect();
    let client = Client::open(&gateway, "app", "");
    wait_for("reads on a replica", || ran_on(&client, READ) != primary);

    // A session that has read, and new ones.
    let others = [0; 5].map(|_| Client::open(&gateway, "app", ""));
    for client in others.iter().chain([&client]) {
        // Where a new one goes depends on what is under way, if only to be given back.
        wait_for("all servers to be idle", || {
            gateway.metric("tidegate_pool_servers", "state=\"active\"") == 0.0
        });
        let said = explain(client, READ);
        assert_eq!(said["reason"], "fresh", "{said:?}");
        assert!(replicas.contains(&said["goes now to"]), "{said:?}");
        assert_eq!(ran_on(client, READ), said["goes now to"]);
    }

    let said = explain(&client, READ);
    for (item, value) in [
        (
            "goes to",
            "a replica that is fresh enough, else the primary",
        ),
        ("class", "read"),
        ("why", "proven_read"),
        ("that is", "every part of it is known to read only"),
        ("relations", "here, t"),
        ("catalog", "has been asked"),
        ("level", "session"),
        ("max_lag", "none"),
        ("transaction", "none"),
        ("pinned by", "nothing"),
    ] {
        assert_eq!(said[item], value, "{item}");
    }
    let primary_told = &said[&format!("node {primary}")];
    assert!(primary_told.starts_with("primary, at 0/"), "{primary_told}");
    let told = &said[&format!("node {}", said["goes now to"])];
    assert!(told.starts_with("replica, eligible, "), "{told}");
    assert!(told.contains(" behind, at 0/"), "{told}");

    // After a write that no replica has.
    standbys
        .iter()
        .for_each(|node| node.pause_replay().unwrap());
    client.rows(WRITE);
    let said = explain(&client, READ);
    assert_eq!(way(&said), [primary.as_str(), "own_write"], "{said:?}");
    for replica in &replicas {
        let told = &said[&format!("node {replica}")];
        assert!(
            told.starts_with("replica, not eligible: own_write, "),
            "{told}"
        );
    }
    wait_for("the lag to show", || {
        let said = explain(&client, READ);
        !said[&format!("node {}", replicas[0])].contains(" 0 bytes ")
    });
    let pinned = || gateway.metric("tidegate_pinned_sessions", "");
    assert_eq!(pinned(), 0.0, "nothing was read");
    assert_eq!(ran_on(&client, READ), primary);
    assert_eq!(pinned(), 1.0);
    explain(&client, READ);
    assert_eq!(pinned(), 1.0, "it is still so");

    // Hints count, wherever they stand.
    let named = format!("/* tidegate: eventual, node={} */", replicas[1]);
    for (hint, level, reason) in [
        ("/* tidegate: eventual */", "eventual", "fresh"),
        (named.as_str(), "eventual", "named_replica"),
        ("/* tidegate: primary */", "primary", "level"),
    ] {
        let within = explain(&client, &format!("{hint} {READ}"));
        let before = answer(client.rows(&format!("{hint} EXPLAIN ROUTE {READ}")));
        assert_eq!(way(&within), way(&before));
        assert_eq!([&within["level"], &within["reason"]], [level, reason]);
        let ran_on = ran_on(&client, &format!("{hint} {READ}"));
        assert_eq!(ran_on, within["goes now to"]);
    }
    let lag = "/* tidegate: bounded, max_lag=200ms */";
    let said = explain(&client, &format!("{lag} {READ}"));
    assert_eq!([&said["level"], &said["max_lag"]], ["bounded", "200ms"]);
    client.rows("SET tidegate.consistency = 'global'");
    assert_eq!(explain(&client, READ)["level"], "global");
    client.rows("RESET tidegate.consistency");
    for (sql, complaint) in [
        (format!("/* tidegate: node=db9 */ {READ}"), "(42704)"),
        (format!("{named} {WRITE}"), "(25006)"),
        ("SET tidegate.max_lag = 5".to_owned(), "(22023)"),
    ] {
        let said = explain(&client, &sql);
        assert_eq!(said["reason"], "refused", "{sql}");
        let destination = &said["goes now to"];
        assert!(destination.starts_with("nowhere: "), "{destination}");
        assert!(destination.ends_with(complaint), "{destination}");
    }

    // The token is that of SHOW, once it is known.
    let token = client.one("SHOW tidegate.token");
    wait_for("the token", || explain(&client, READ)["token"] == token);

    standbys
        .iter()
        .for_each(|node| node.resume_replay().unwrap());
    wait_for("a replica to have it", || {
        explain(&client, READ)["reason"] == "fresh"
    });
    let said = explain(&client, READ);
    assert_eq!(ran_on(&client, READ), said["goes now to"]);
}

#[test]
fn nothing_is_run_and_nothing_counted() {
    let cluster = start(1);
    let gateway = gateway(&cluster, "");
    let primary = cluster.primary().address();
    let client = Client::open(&gateway, "app", "");
    let counted = || gateway.metric("tidegate_queries_total", "");
    for (sql, why, reason) in [
        ("DELETE FROM t", "data_change", "write"),
        ("SELECT touch(1)", "unsafe_function", "write"),
        ("BEGIN", "transaction_control", "transaction"),
        ("SET work_mem = '1MB'", "session_state", "session_state"),
        ("no statement at all", "not_parsed", "write"),
    ] {
        let said = explain(&client, sql);
        assert_eq!(way(&said), [primary.as_str(), reason], "{sql}");
        assert_eq!(said["why"], why, "{sql}");
        assert_eq!(said["goes to"], "the primary", "{sql}");
        assert_eq!(said["transaction"], "none", "{sql}");
    }
    assert_eq!(explain(&client, "SELECT touch(1)")["because of"], "touch");
    client.rows("SELECT 1");
    wait_for("the read to be counted", || counted() > 0.0);
    assert_eq!(counted(), 1.0, "and nothing else");
    assert_eq!(client.one("SELECT count(*) FROM t"), "2");
    assert_eq!(client.one("SHOW work_mem"), "4MB");

    // PostgreSQL's own statements stay its own.
    for sql in [
        "EXPLAIN TABLE route",
        "EXPLAIN SELECT route FROM t",
        "EXPLAIN (VERBOSE) SELECT route FROM t",
        "EXPLAIN ANALYZE SELECT * FROM route",
    ] {
        let plan = client.one(sql);
        assert!(plan.contains("Scan on"), "{sql}: {plan}");
    }
    for (sql, message) in [
        ("EXPLAIN ROUTE", "syntax error"),
        ("EXPLAIN ANALYZE ROUTE SELECT 1", "syntax error"),
        ("EXPLAIN \"route\" SELECT 1", "syntax error"),
        ("EXPLAIN ROUTE SELECT 1; SELECT 2", "takes one statement"),
        (
            "EXPLAIN ROUTE EXPLAIN ROUTE SELECT 1",
            "takes one statement",
        ),
    ] {
        for ask in [Client::error, Client::error_of_prepared] {
            let error = ask(&client, sql);
            assert_eq!(error.code().code(), "42601", "{sql}: {error}");
            assert!(error.message().contains(message), "{sql}: {error}");
        }
    }
}

#[test]
fn a_transaction_and_what_pins_are_told() {
    let cluster = start(1);
    let gateway = gateway(&cluster, "");
    let primary = cluster.primary().address();
    let client = Client::open(&gateway, "app", "");
    let question = format!("EXPLAIN ROUTE {READ}");
    client.rows("BEGIN");
    for said in [
        explain(&client, READ),
        answer(client.prepared_rows(&question)),
    ] {
        assert_eq!(way(&said), [primary.as_str(), "transaction"]);
        assert_eq!(said["transaction"], "open");
    }
    client.error("SELECT 1 / 0");
    for ask in [Client::error, Client::error_of_prepared] {
        assert_eq!(ask(&client, &question).code().code(), "25P02");
    }
    client.rows("ROLLBACK");
    assert_eq!(explain(&client, READ)["transaction"], "none");

    client.rows("LISTEN a; CREATE TEMP TABLE basket (a int)");
    let said = explain(&client, "SELECT * FROM basket");
    assert_eq!(way(&said), [primary.as_str(), "pinned_server"]);
    assert_eq!(said["pinned by"], "temporary_table, listen");
    client.rows("DISCARD ALL");
    assert_eq!(explain(&client, READ)["pinned by"], "nothing");

    let granted = cluster.primary().sql("app", "ALTER ROLE app SUPERUSER");
    granted.expect("it may load any library");
    client.rows("LOAD 'auto_explain'");
    let said = explain(&client, READ);
    assert_eq!(way(&said), [primary.as_str(), "pinned_server"]);
    assert_eq!(said["pinned by"], "load");
}

#[test]
fn a_transaction_on_a_replica_stays_there() {
    let cluster = start(1);
    let roaming = "[routing]\ntransaction_reads = \"replica\"";
    let gateway = gateway(&cluster, roaming);
    let [primary, replica] = [0, 1].map(|index| cluster.node(index).address());
    let client = Client::open(&gateway, "app", "");
    wait_for("reads on the replica", || ran_on(&client, READ) == replica);
    let moves = || gateway.metric("tidegate_transaction_moves_total", "");
    let question = format!("EXPLAIN ROUTE {READ}");

    let said = explain(&client, "BEGIN");
    assert!(said["goes now to"].starts_with("no server"), "{said:?}");
    let said = explain(&client, "BEGIN READ ONLY");
    assert_eq!(way(&said), [replica.as_str(), "transaction_read"]);

    // One that is on no server yet is opened where its next read goes.
    client.rows("BEGIN");
    let said = explain(&client, READ);
    assert_eq!(way(&said), [replica.as_str(), "transaction_read"]);
    assert_eq!(said["transaction"], "open, on no server yet");
    for said in [
        explain(&client, READ),
        answer(client.prepared_rows(&question)),
    ] {
        assert_eq!(way(&said), [replica.as_str(), "transaction_read"]);
        assert_eq!(said["transaction"], "open on a replica");
    }
    assert_eq!(ran_on(&client, READ), replica);
    // A hint of what is asked about is not one of the transaction's.
    let hinted = format!("/* tidegate: primary */ {READ}");
    let said = explain(&client, &hinted);
    assert_eq!(way(&said), [primary.as_str(), "transaction"]);
    let said = explain(&client, WRITE);
    assert_eq!(way(&said), [primary.as_str(), "transaction"]);
    assert_eq!((ran_on(&client, READ), moves()), (replica.clone(), 0.0));
    client.rows(WRITE);
    assert_eq!(moves(), 1.0);
    let said = explain(&client, READ);
    assert_eq!(way(&said), [primary.as_str(), "transaction"]);
    assert_eq!(ran_on(&client, READ), primary);
    client.rows("ROLLBACK");

    // One that keeps a snapshot can't leave.
    wait_for("reads on the replica", || ran_on(&client, READ) == replica);
    client.rows("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY");
    assert_eq!(ran_on(&client, READ), replica);
    let said = explain(&client, WRITE);
    assert_eq!(said["reason"], "refused");
    assert!(said["goes now to"].ends_with("(25006)"), "{said:?}");
    assert_eq!(explain(&client, READ)["reason"], "transaction_read");
    assert_eq!(client.error(WRITE).code().code(), "25006");
    client.rows("ROLLBACK");
    assert_eq!(explain(&client, READ)["transaction"], "none");
}

#[test]
fn the_extended_protocol_is_answered_anew_each_time() {
    let cluster = start(1);
    let (primary, replica) = (cluster.primary(), cluster.node(1));
    for (more, in_transaction) in [
        ("", "transaction"),
        ("[pool]\nmode = \"session\"", "transaction"),
        (
            "[routing]\ntransaction_reads = \"replica\"",
            "transaction_read",
        ),
    ] {
        let gateway = gateway(&cluster, more);
        let client = Client::open(&gateway, "app", "");
        wait_for("reads on the replica", || {
            ran_on(&client, READ) == replica.address()
        });
        let question = format!("EXPLAIN ROUTE {READ}");
        let said = answer(client.prepared_rows(&question));
        assert_eq!(way(&said), [replica.address().as_str(), "fresh"]);

        // As asyncpg does it: what it prepares is described before its pipeline ends.
        let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
        raw.log_in();
        for within in [false, true] {
            if within {
                raw.send(|out| encode::query(out, b"BEGIN"));
                raw.until(b'Z');
            }
            let name = format!("s{within}");
            let described = [parse(&name, &question), frame(b'D', &target(&name))].concat();
            raw.send(|out| out.extend_from_slice(&[&described, encode::FLUSH].concat()));
            let columns = message::row_shape(body(&raw.until(b'T'))).expect("columns");
            let reason = |said: &Answer| said["reason"].clone();
            let told = run(&mut raw, &name, encode::SYNC);
            let expected = if within { in_transaction } else { "fresh" };
            assert_eq!(reason(&told.expect("an answer")), expected);
            assert_ne!(columns, 0);
        }
        raw.send(|out| encode::query(out, b"COMMIT"));
        raw.until(b'Z');

        // Of now, not of when it was prepared.
        replica.pause_replay().unwrap();
        raw.send(|out| encode::query(out, WRITE.as_bytes()));
        raw.until(b'Z');
        let told = run(&mut raw, "sfalse", encode::SYNC).expect("an answer");
        assert_eq!(way(&told), [primary.address().as_str(), "own_write"]);

        // Where something else has run that may not be committed yet, nobody can be asked.
        let write = [parse("w", WRITE), bind("w")].concat();
        raw.send(|out| out.extend_from_slice(&[&write, encode::FLUSH].concat()));
        raw.until(b'C');
        let refused = run(&mut raw, "sfalse", encode::SYNC).expect_err("no answer");
        assert_eq!(refused, "0A000");
        let told = run(&mut raw, "sfalse", encode::SYNC).expect("an answer");
        assert_eq!(told["reason"], "own_write");
        // Several are answered in one pipeline, one by one.
        for end in [encode::FLUSH, encode::FLUSH, encode::SYNC] {
            let told = run(&mut raw, "sfalse", end).expect("an answer");
            assert_eq!(told["reason"], "own_write");
        }
        replica.resume_replay().unwrap();
    }
}

#[test]
fn it_is_told_what_becomes_of_a_read_without_a_replica() {
    let cluster = start(1);
    let (primary, replica) = (cluster.primary(), cluster.node(1));
    let consistency = |lines: &str| gateway(&cluster, &format!("[consistency]\n{lines}"));
    let [fails, waits] = [
        "on_no_replica = \"error\"",
        "on_no_replica = \"wait\"\nwait_timeout = \"20ms\"",
    ]
    .map(consistency);
    let [fails_client, client] = [&fails, &waits].map(|gateway| Client::open(gateway, "app", ""));
    replica.pause_replay().unwrap();
    for client in [&fails_client, &client] {
        client.rows(WRITE);
    }
    let said = explain(&fails_client, READ);
    assert_eq!(way(&said), ["nowhere: it fails (57P03)", "own_write"]);
    assert_eq!(fails_client.error(READ).code().code(), "57P03");
    let said = explain(&client, READ);
    let expected = format!("a replica within 20ms, else {}", primary.address());
    assert_eq!(way(&said), [expected.as_str(), "own_write"]);
    assert_eq!(ran_on(&client, READ), primary.address());
    replica.resume_replay().unwrap();

    // It is answered while there is no primary, too.
    let reader = Client::open(&waits, "app", "");
    wait_for("reads on the replica", || {
        ran_on(&reader, READ) == replica.address()
    });
    primary.stop(StopMode::Fast).unwrap();
    let down = format!("node {}", primary.address());
    wait_for("the primary to be missed", || {
        let answer = reader.row_or_error(&format!("EXPLAIN ROUTE {READ}"));
        answer.is_ok() && explain(&reader, READ)[&down].starts_with("down")
    });
    let said = explain(&reader, READ);
    assert_eq!(way(&said), [replica.address().as_str(), "fresh"]);
    let said = explain(&reader, WRITE);
    assert!(
        said["goes now to"].starts_with("the next primary"),
        "{said:?}"
    );
    assert_eq!(said["reason"], "write");
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend((body.len() as i32 + 4).to_be_bytes());
    frame.extend(body);
    frame
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

fn target(name: &str) -> Vec<u8> {
    format!("S{name}\0").into_bytes()
}

/// Binds and executes the statement of this name.
fn bind(name: &str) -> Vec<u8> {
    let bind = frame(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes());
    [bind, frame(b'E', b"\0\0\0\0\0")].concat()
}

/// Runs the prepared question of this name, with `end` behind it: the answer, or the error's code.
fn run(raw: &mut Raw, name: &str, end: &[u8]) -> Result<Answer, String> {
    raw.send(|out| out.extend_from_slice(&[&bind(name), end].concat()));
    let mut told = Ok(Answer::new());
    loop {
        let frame = raw.next().expect("an answer");
        match frame[0] {
            b'D' => {
                let row = message::data_row(body(&frame)).expect("a row");
                let text = |value: &Option<&[u8]>| {
                    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
                };
                let row: Vec<String> = row.iter().map(text).collect();
                told.as_mut().expect("no error").extend(answer(vec![row]));
            }
            b'E' => {
                let code = message::error_field(body(&frame), b'C').unwrap_or_default();
                told = Err(String::from_utf8_lossy(code).into_owned());
            }
            b'C' if end == encode::FLUSH => return told,
            b'Z' => return told,
            _ => {}
        }
    }
}
