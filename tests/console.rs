//! The admin console: what it shows, who may use it, and what its commands do.
//!
//! Owns: the console as admins and their drivers meet it.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;

use bytes::BufMut;
use support::client::Client;
use support::raw::{Raw, VERSION_3_0, error};
use support::{Gateway, wait_for};
use tidegate::demo::{LocalCluster, Options, StopMode};
use tidegate::wire::encode;
use tidegate::wire::frame::body;

const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO t VALUES (1, 0), (2, 0);
    CREATE VIEW here AS SELECT current_setting('port')::int AS port;
    GRANT SELECT, UPDATE ON t, here TO app;
    GRANT SELECT ON t, here TO other;
    CREATE ROLE looker LOGIN PASSWORD 'looker';";

const READ: &str = "SELECT port FROM here, t WHERE id = 1";
const WRITE: &str = "UPDATE t SET n = n + 1 WHERE id = 1";

const CONSOLE: &str = r#"
[[auth.user]]
name = "looker"
password = "looker"

[[auth.user]]
name = "other"
password = "other"

[console]
admins = ["app"]
viewers = ["looker"]

[lag]
max = "10m"
"#;

fn start(replicas: usize) -> LocalCluster {
    let options = Options {
        replicas,
        ..Options::default()
    };
    let cluster = LocalCluster::start(options).expect("cluster");
    let other = "CREATE ROLE other LOGIN PASSWORD 'other'";
    cluster.primary().sql("app", other).expect("role");
    cluster.primary().sql("app", SCHEMA).expect("schema");
    cluster.wait_caught_up().expect("caught up");
    cluster
}

fn gateway(cluster: &LocalCluster) -> Gateway {
    Gateway::start_with(cluster, |config| format!("{config}\n{CONSOLE}"))
}

fn console(gateway: &Gateway, user: &str) -> Client {
    Client::open(gateway, user, "dbname=tidegate application_name=admin")
}

/// The rows of a table by the value in its column `key`, each by the names of its columns.
fn shown(gateway: &Gateway, console: &Client, what: &str) -> Vec<BTreeMap<String, String>> {
    let names = names(gateway, what);
    let row = |row: Vec<String>| {
        assert_eq!(row.len(), names.len(), "{what}");
        names.iter().cloned().zip(row).collect()
    };
    let rows = console.rows(&format!("SHOW {what}"));
    rows.into_iter().map(row).collect()
}

/// The names of the columns, from a RowDescription.
fn names(gateway: &Gateway, what: &str) -> Vec<String> {
    let mut raw = Raw::start(gateway.port, VERSION_3_0, &[("database", "tidegate")]);
    raw.log_in();
    raw.send(|out| encode::query(out, format!("SHOW {what}").as_bytes()));
    let frame = raw.until(b'T');
    let mut rest = &body(&frame)[2..];
    let mut names = Vec::new();
    while let Some(end) = rest.iter().position(|b| *b == 0) {
        names.push(String::from_utf8(rest[..end].to_vec()).expect("a name"));
        rest = &rest[end + 1 + 18..];
    }
    names
}

fn state(gateway: &Gateway, console: &Client, node: &str) -> String {
    let nodes = shown(gateway, console, "NODES");
    let found = nodes.iter().find(|shown| shown["node"] == node);
    found.expect("the node")["state"].clone()
}

/// Whether a client waits for a server.
fn is_waiting(gateway: &Gateway, console: &Client) -> bool {
    let clients = shown(gateway, console, "CLIENTS");
    clients.iter().any(|row| row["state"] == "waiting")
}

/// Whether so many clients wait, each for so many seconds or longer.
fn wait_so_long(gateway: &Gateway, console: &Client, count: usize, seconds: f64) -> bool {
    let clients = shown(gateway, console, "CLIENTS");
    let waits = clients.iter().filter(|row| row["state"] == "waiting");
    let long = waits.filter(|row| row["wait"].parse::<f64>().expect("seconds") > seconds);
    long.count() == count
}

fn is_paused(gateway: &Gateway, console: &Client, database: &str) -> bool {
    let databases = shown(gateway, console, "DATABASES");
    databases
        .iter()
        .any(|row| row["name"] == database && row["paused"] == "t")
}

/// Sends a cancel request with the key that a client was told.
fn cancel(gateway: &Gateway, (pid, secret): &(i32, Vec<u8>)) {
    let mut request = 80_877_102_i32.to_be_bytes().to_vec();
    request.extend(pid.to_be_bytes());
    request.extend(secret);
    Raw::open(gateway.port).send_packet(&request);
}

#[test]
fn everything_is_shown() {
    let cluster = start(1);
    let gateway = gateway(&cluster);
    let (primary, replica) = (cluster.primary().address(), cluster.replicas()[0].address());
    let client = Client::open(&gateway, "app", "application_name=shop");
    client.rows(WRITE);
    client.rows("BEGIN");
    client.rows(WRITE);
    let console = console(&gateway, "looker");

    let help = console.prepared_rows("SHOW HELP");
    assert!(help.iter().any(|row| row[0] == "RELOAD"), "{help:?}");
    for row in help.iter().filter(|row| row[0].starts_with("SHOW ")) {
        assert!(!console.rows(&row[0]).is_empty(), "{}", row[0]);
    }
    assert!(console.one("SHOW VERSION").starts_with("Tidegate "));

    let nodes = shown(&gateway, &console, "NODES");
    let told = |row: &BTreeMap<String, String>| {
        ["node", "role", "state", "is_primary"].map(|name| row[name].clone())
    };
    assert_eq!(told(&nodes[0]), [&primary, "primary", "up", "t"]);
    assert_eq!(told(&nodes[1]), [&replica, "replica", "up", "f"]);
    let lag = shown(&gateway, &console, "LAG");
    assert_eq!(lag.len(), 1);
    assert_eq!([&lag[0]["node"], &lag[0]["max_seconds"]], [&replica, "600"]);

    let clients = shown(&gateway, &console, "CLIENTS");
    let shop = clients.iter().find(|row| row["application_name"] == "shop");
    let shop = shop.expect("the client");
    let told = ["user", "database", "state", "link", "addr"].map(|name| shop[name].as_str());
    assert_eq!(told, ["app", "app", "keeps server", &primary, "127.0.0.1"]);
    client.rows("COMMIT");
    wait_for("the client to be idle", || {
        let clients = shown(&gateway, &console, "CLIENTS");
        clients
            .iter()
            .any(|row| row["application_name"] == "shop" && row["state"] == "idle")
    });

    let pools = shown(&gateway, &console, "POOLS");
    let of_primary = pools
        .iter()
        .find(|row| row["node"] == primary && row["user"] == "app");
    assert_eq!(of_primary.expect("the pool")["sv_active"], "0");
    let databases = shown(&gateway, &console, "DATABASES");
    let app = databases
        .iter()
        .find(|row| row["name"] == "app")
        .expect("the database");
    assert_eq!(app["current_client_connections"], "1");
    let routes = shown(&gateway, &console, "ROUTES");
    let writes = routes
        .iter()
        .find(|row| row["reason"] == "write")
        .expect("the reason");
    assert_eq!([&writes["route"], &writes["queries"]], ["primary", "1"]);
    let lists: BTreeMap<_, _> = console.prepared_counts("SHOW LISTS").into_iter().collect();
    assert_eq!(lists["nodes"], 2);
    assert_eq!(lists["used_clients"], 2);
}

#[test]
fn replication_connections_are_clients_and_keep_their_node_from_being_drained() {
    let cluster = start(0);
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n{CONSOLE}\n[routing]\nreplication = \"primary\"\n")
    });
    let console = console(&gateway, "app");
    let primary = cluster.primary().address();
    let directory = tempfile::tempdir().expect("a directory");
    let postgres = cluster.postgres();
    postgres.give(directory.path()).expect("its owner");
    let mut receive = postgres
        .command("pg_receivewal")
        .args(["-h", "127.0.0.1", "-p", &gateway.port.to_string()])
        .args(["-U", "postgres", "--no-password", "--no-loop", "-D"])
        .arg(directory.path())
        .env("PGPASSWORD", "postgres")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pg_receivewal");

    let mut stream = BTreeMap::new();
    wait_for("the stream to be shown", || {
        let clients = shown(&gateway, &console, "CLIENTS");
        let found = clients.into_iter().find(|row| row["state"] == "active");
        stream = found.unwrap_or_default();
        !stream.is_empty()
    });
    let told = ["user", "database", "application_name", "link", "cluster"];
    assert_eq!(
        told.map(|name| stream[name].as_str()),
        ["postgres", "", "pg_receivewal", &primary, "main"]
    );
    let lists: BTreeMap<_, _> = console.prepared_counts("SHOW LISTS").into_iter().collect();
    assert_eq!(lists["login_clients"], 0);
    // It uses none, whatever it has named.
    assert!(shown(&gateway, &console, "DATABASES").is_empty());

    console.rows(&format!("DRAIN {primary}"));
    assert_eq!(state(&gateway, &console, &primary), "draining");
    console.rows(&format!("KILL {}", stream["id"]));
    wait_for("the end of the stream", || {
        receive.try_wait().expect("wait").is_some()
    });
    wait_for("the node to be drained", || {
        state(&gateway, &console, &primary) == "drained"
    });
}

#[test]
fn who_may_not_is_refused() {
    let cluster = start(0);
    let gateway = gateway(&cluster);
    let stranger = Client::refused(&gateway, "other", "dbname=tidegate");
    assert_eq!(stranger.code().code(), "42501");
    assert!(stranger.hint().expect("a hint").contains("console.admins"));
    let wrong = Client::refused(&gateway, "app", "dbname=tidegate password=wrong");
    assert_eq!(wrong.code().code(), "28P01");
    let looker = console(&gateway, "looker");
    for sql in ["RELOAD", "DRAIN nobody", "RESUME nobody"] {
        assert_eq!(looker.error(sql).code().code(), "42501", "{sql}");
        assert_eq!(
            looker.error_of_prepared(sql).code().code(),
            "42501",
            "{sql}"
        );
    }
    assert!(!looker.rows("SHOW NODES").is_empty());

    // Where nobody may use it, its name is that of any database.
    let without = Gateway::start(&cluster);
    let unknown = Client::refused(&without, "app", "dbname=tidegate");
    assert_eq!(unknown.code().code(), "3D000");
}

#[test]
fn one_who_has_to_look_is_let_in_when_there_are_too_many() {
    let cluster = start(0);
    let gateway = Gateway::start_with(&cluster, |config| {
        config.replace("[listen]\n", "[listen]\nmax_clients = 1\n") + CONSOLE
    });
    let _client = Client::open(&gateway, "app", "");
    let refused = Client::refused(&gateway, "app", "");
    assert_eq!(refused.code().code(), "53300");
    assert_eq!(console(&gateway, "looker").rows("SHOW CLIENTS").len(), 2);

    // Who wants the console and has not logged in takes none of its places.
    let mut strangers: Vec<_> = (0..8)
        .map(|_| Raw::start(gateway.port, VERSION_3_0, &[("database", "tidegate")]))
        .collect();
    for stranger in &mut strangers {
        assert_eq!(stranger.next().expect("a request to log in")[0], b'R');
    }
    assert_eq!(console(&gateway, "looker").rows("SHOW CLIENTS").len(), 2);
}

#[test]
fn explain_route_answers_as_it_does_in_a_session() {
    let cluster = start(1);
    let gateway = gateway(&cluster);
    let replica = cluster.replicas()[0].address();
    let client = Client::open(&gateway, "app", "");
    wait_for("reads on a replica", || {
        format!("127.0.0.1:{}", client.one(READ)) == replica
    });
    let console = console(&gateway, "app");
    let answer = |sql: &str| -> BTreeMap<String, String> {
        let rows = console.prepared_rows(sql);
        assert_eq!(console.rows(sql).len(), rows.len());
        let pair = |row: Vec<String>| (row[0].clone(), row[1].clone());
        rows.into_iter().map(pair).collect()
    };
    let alone = |answer: &BTreeMap<String, String>| {
        let names = [
            "statement",
            "class",
            "reason",
            "goes now to",
            "level",
            "transaction",
        ];
        names.map(|name| answer.get(name).cloned())
    };
    let told = client.rows(&format!("EXPLAIN ROUTE {READ}"));
    let told = told
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    let here = answer(&format!("EXPLAIN ROUTE {READ}"));
    assert_eq!(alone(&here), alone(&told));
    assert_eq!(here["goes now to"], replica);
    assert_eq!(
        answer(&format!("EXPLAIN ROUTE IN app AS app {WRITE}"))["reason"],
        "write"
    );
    // Hints count wherever they do in a session.
    for sql in [
        "EXPLAIN ROUTE IN app AS app /* tidegate: primary */ SELECT 1",
        "EXPLAIN ROUTE /* tidegate: primary */ SELECT 1",
        "/* tidegate: primary */ EXPLAIN ROUTE SELECT 1",
        "-- tidegate: primary\n EXPLAIN ROUTE SELECT 1",
    ] {
        let here = answer(sql);
        assert_eq!(
            (&*here["reason"], &*here["level"]),
            ("level", "primary"),
            "{sql}"
        );
    }
    assert_eq!(
        console
            .error("EXPLAIN ROUTE /* tidegate: primary */")
            .code()
            .code(),
        "42601"
    );
    // What was asked for is only answered.
    assert_eq!(client.one("SELECT n FROM t WHERE id = 1"), "0");

    let other = "EXPLAIN ROUTE IN app AS other SELECT 1";
    assert_eq!(console.error(other).code().code(), "28000");
    let _other = Client::open(&gateway, "other", "");
    assert_eq!(answer(other)["reason"], "fresh");
    for (sql, code) in [
        ("EXPLAIN ROUTE SELECT 1; SELECT 2", "42601"),
        ("EXPLAIN ROUTE EXPLAIN ROUTE SELECT 1", "42601"),
        ("EXPLAIN ROUTE IN nowhere SELECT 1", "3D000"),
        ("EXPLAIN SELECT 1", "42601"),
    ] {
        assert_eq!(console.error(sql).code().code(), code, "{sql}");
    }
    // Still there, and of use.
    assert_eq!(answer("EXPLAIN ROUTE SELECT 1")["reason"], "fresh");
}

#[test]
fn the_configuration_is_read_again() {
    let cluster = start(0);
    let gateway = gateway(&cluster);
    let console = console(&gateway, "app");
    let config = fs::read_to_string(&gateway.config_path).expect("config");
    fs::write(&gateway.config_path, config.replace("[lag]", "[leg]")).expect("config");
    let error = console.error("RELOAD");
    assert!(error.message().contains("unknown key \"leg\""), "{error:?}");
    fs::write(&gateway.config_path, config.replace("10m", "20m")).expect("config");
    console.rows("RELOAD");
    assert_eq!(
        gateway.metric("tidegate_config_reloads_total", "applied"),
        1.0
    );
    // Rights count for those who log in from then on.
    fs::write(
        &gateway.config_path,
        config.replace("[\"app\"]", "[\"other\"]"),
    )
    .expect("config");
    console.rows("RELOAD");
    let refused = Client::refused(&gateway, "app", "dbname=tidegate");
    assert_eq!(refused.code().code(), "42501");
}

#[test]
fn a_drained_replica_finishes_what_is_open_and_takes_nothing_new() {
    let cluster = start(2);
    let gateway = gateway(&cluster);
    let console = console(&gateway, "app");
    let client = Client::open(&gateway, "app", "");
    let replicas: Vec<String> = cluster
        .replicas()
        .iter()
        .map(|node| node.address())
        .collect();
    client.rows("BEGIN READ ONLY");
    wait_for("a transaction on a replica", || {
        let here = format!("127.0.0.1:{}", client.one(READ));
        let found = replicas.contains(&here);
        if !found {
            client.rows("COMMIT");
            client.rows("BEGIN READ ONLY");
        }
        found
    });
    let drained = format!("127.0.0.1:{}", client.one(READ));
    assert_eq!(console.error("DRAIN elsewhere").code().code(), "42704");
    assert_eq!(
        console.error(&format!("RESUME {drained}")).code().code(),
        "55000"
    );
    console.rows(&format!("DRAIN NODE {drained}"));
    assert_eq!(state(&gateway, &console, &drained), "draining");
    // It is where it was, and others go elsewhere.
    assert_eq!(format!("127.0.0.1:{}", client.one(READ)), drained);
    let other = Client::open(&gateway, "other", "");
    for _ in 0..50 {
        assert_ne!(format!("127.0.0.1:{}", other.one(READ)), drained);
    }
    let explained = other.rows(&format!("EXPLAIN ROUTE {READ}"));
    let about = explained
        .iter()
        .find(|row| row[0] == format!("node {drained}"));
    assert!(
        about.expect("the node")[1].contains("drained"),
        "{explained:?}"
    );
    client.rows("COMMIT");
    wait_for("the node to be drained", || {
        state(&gateway, &console, &drained) == "drained"
    });
    assert_ne!(format!("127.0.0.1:{}", client.one(READ)), drained);
    console.rows(&format!("RESUME NODE {drained}"));
    let second = replicas.iter().find(|replica| **replica != drained);
    console.rows(&format!("DRAIN NODE {}", second.expect("another")));
    for client in [&client, &other] {
        assert_eq!(format!("127.0.0.1:{}", client.one(READ)), drained);
    }
}

#[test]
fn writes_are_held_while_the_primary_is_drained() {
    let cluster = start(1);
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n{CONSOLE}\n[failover]\nhold = \"1m\"\n")
    });
    let console = console(&gateway, "app");
    let client = Client::open(&gateway, "app", "");
    let primary = cluster.primary().address();
    client.rows("BEGIN");
    client.rows(WRITE);
    console.rows(&format!("DRAIN {primary}"));
    // What is open is done.
    client.rows(WRITE);
    client.rows("COMMIT");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| client.rows(WRITE));
        wait_for("the write to be held", || {
            gateway.metric("tidegate_held", "") == 1.0
        });
        let clients = shown(&gateway, &console, "CLIENTS");
        assert!(
            clients.iter().any(|row| row["state"] == "waiting"),
            "{clients:?}"
        );
        assert_eq!(state(&gateway, &console, &primary), "drained");
        console.rows(&format!("RESUME {primary}"));
        writer.join().expect("the write");
    });
    assert_eq!(client.one("SELECT n FROM t WHERE id = 1"), "3");
    assert_eq!(gateway.metric("tidegate_failovers_total", ""), 0.0);
}

#[test]
fn what_is_no_message_of_the_console_is_told_so() {
    let cluster = start(0);
    let gateway = gateway(&cluster);
    let open = || {
        let mut raw = Raw::start(gateway.port, VERSION_3_0, &[("database", "tidegate")]);
        raw.log_in();
        raw
    };
    // An error in a pipeline: all is left out up to the Sync.
    let mut raw = open();
    raw.send(|out| {
        encode::parse(out, b"", b"SELECT 1", b"\0\0");
        encode::statement_target(out, b'D', b"");
        out.extend_from_slice(encode::SYNC);
        encode::query(out, b"");
        encode::query(out, b"SHOW VERSION; nonsense; SHOW NODES");
    });
    let mut tags = Vec::new();
    while tags.iter().filter(|tag| **tag == b'Z').count() < 3 {
        tags.push(raw.next().expect("an answer")[0]);
    }
    assert_eq!(tags.escape_ascii().to_string(), "EZIZTDCEZ");
    // A parameter that nothing asked for, and a function that there is not.
    raw.send(|out| {
        encode::parse(out, b"", b"SHOW NODES", b"\0\0");
        encode::bind_and_execute(out, b"x", 0);
        out.extend_from_slice(encode::SYNC);
        out.extend_from_slice(b"F\0\0\0\x04");
    });
    let tags: Vec<u8> = (0..5).map(|_| raw.next().expect("an answer")[0]).collect();
    assert_eq!(tags.escape_ascii().to_string(), "1EZEZ");
    // What is no message ends it, and only it.
    for garbage in [
        &b"\xff\xff\xff\xff\xff\xff"[..],
        b"Q\0\0\0\x06ab",
        b"z\0\0\0\x04",
        b"Q\x7f\0\0\0",
    ] {
        let mut raw = open();
        raw.send(|out| {
            out.put_slice(garbage);
            // A message that is only begun is waited for.
            out.put_slice(&[0; 64]);
        });
        let frame = raw.next().expect("an error");
        assert_eq!(frame[0], b'E', "{}", garbage.escape_ascii());
        assert!(raw.is_ended());
    }
    assert_eq!(console(&gateway, "app").rows("SHOW CLIENTS").len(), 2);
}

#[test]
fn what_is_new_waits_while_a_database_is_paused() {
    let cluster = start(1);
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n{CONSOLE}\n[pool]\ncheckout_timeout = \"200ms\"\n")
    });
    let (console, watcher) = (console(&gateway, "app"), console(&gateway, "app"));
    let (client, other) = (
        Client::open(&gateway, "app", ""),
        Client::open(&gateway, "app", ""),
    );
    client.rows("BEGIN");
    client.rows(WRITE);
    let is_paused = |name: &str| is_paused(&gateway, &watcher, name);
    assert_eq!(console.error("PAUSE nowhere").code().code(), "3D000");
    assert_eq!(console.error("RESUME").code().code(), "55000");
    assert_eq!(console.error("RESUME app").code().code(), "55000");
    std::thread::scope(|scope| {
        let pause = scope.spawn(|| console.rows("PAUSE app"));
        wait_for("the pause", || is_paused("app"));
        let waiting = scope.spawn(|| (other.one(READ), other.rows(WRITE)));
        wait_for("the other to wait longer than for a server", || {
            wait_so_long(&gateway, &watcher, 1, 0.5)
        });
        assert!(!pause.is_finished() && !waiting.is_finished());
        client.rows(WRITE);
        client.rows("COMMIT");
        pause.join().expect("paused");
        let pools = shown(&gateway, &watcher, "POOLS");
        let open = pools
            .iter()
            .filter(|row| row["sv_active"] != "0" || row["sv_idle"] != "0");
        assert_eq!(open.count(), 0, "{pools:?}");
        assert!(!waiting.is_finished());
        let asked = watcher.error("EXPLAIN ROUTE IN app SELECT 1");
        assert_eq!(asked.code().code(), "55000");
        watcher.rows("RESUME app");
        waiting.join().expect("served");
    });
    assert!(!is_paused("app"));
    // Who has written last sees it all.
    assert_eq!(other.one("SELECT n FROM t WHERE id = 1"), "3");
    // All of them, and the node that a database shares no name with.
    console.rows("PAUSE");
    assert!(is_paused("app"));
    assert_eq!(console.error("RESUME app").code().code(), "55000");
    console.rows("RESUME");
    assert_eq!(other.one("SELECT n FROM t WHERE id = 1"), "3");
    let log = gateway.log();
    for told in [
        r#"told by the console user=app command="PAUSE" object="app""#,
        r#"refused by the console user=app command="PAUSE" object="nowhere" sqlstate=3D000"#,
        r#"told by the console user=app command="RESUME""#,
    ] {
        assert!(log.contains(told), "{told}: {log}");
    }
}

#[test]
fn who_keeps_a_server_does_not_wait_for_a_pause_that_waits_for_that() {
    let cluster = start(1);
    let [primary, replica] = [0, 1].map(|index| cluster.node(index).port().to_string());
    let begin = |raw: &mut Raw, sql: &str| raw.send(|out| encode::query(out, sql.as_bytes()));
    // The only value of the only row.
    let one = |raw: &mut Raw, sql: &str| {
        begin(raw, sql);
        let row = raw.until(b'D');
        raw.until(b'Z');
        String::from_utf8_lossy(&body(&row)[6..]).into_owned()
    };
    for mode in ["transaction", "session"] {
        let gateway = Gateway::start_with(&cluster, |config| {
            format!("{config}\n{CONSOLE}\n[pool]\nmode = \"{mode}\"\n")
        });
        let watcher = console(&gateway, "app");
        let open = |more: &[(&str, &str)]| {
            let mut raw = Raw::start(gateway.port, VERSION_3_0, more);
            raw.log_in();
            raw
        };
        let eventual = [("options", "-c tidegate.consistency=eventual")];
        let (mut keeper, mut reader) = (open(&eventual), open(&eventual));
        begin(&mut keeper, "CREATE TEMPORARY TABLE own AS SELECT 1 AS n");
        keeper.until(b'Z');
        assert_eq!(one(&mut reader, READ), replica);
        let mut admin = open(&[("database", "tidegate")]);
        begin(&mut admin, "PAUSE app");
        wait_for("the pause", || is_paused(&gateway, &watcher, "app"));
        // Where it keeps a server of a replica, it gives that up to wait.
        begin(&mut reader, WRITE);
        wait_for("the write to wait", || is_waiting(&gateway, &watcher));
        assert_eq!(one(&mut keeper, READ), primary, "{mode}");
        assert_eq!(one(&mut keeper, "UPDATE own SET n = 2 RETURNING n"), "2");
        drop(keeper);
        admin.until(b'Z');
        assert!(is_waiting(&gateway, &watcher));
        watcher.rows("RESUME app");
        reader.until(b'Z');
    }
}

#[test]
fn who_waits_can_be_cancelled() {
    let cluster = start(0);
    let gateway = gateway(&cluster);
    let console = console(&gateway, "app");
    let open = |database: &str| {
        let mut raw = Raw::start(gateway.port, VERSION_3_0, &[("database", database)]);
        let key = raw.log_in();
        (raw, key)
    };
    let cancelled = |raw: &mut Raw| {
        let frame = raw.next().expect("an error");
        assert!(error(&frame).contains("57014"), "{}", error(&frame));
        raw.until(b'Z');
    };
    let (mut holder, _) = open("app");
    holder.send(|out| encode::query(out, b"BEGIN; UPDATE t SET n = 5 WHERE id = 1"));
    holder.until(b'Z');
    let (mut admin, admin_key) = open("tidegate");
    admin.send(|out| encode::query(out, b"PAUSE"));
    let (mut client, key) = open("app");
    client.send(|out| encode::query(out, b"SELECT 1"));
    wait_for("the client to wait", || is_waiting(&gateway, &console));
    cancel(&gateway, &key);
    cancelled(&mut client);
    cancel(&gateway, &admin_key);
    cancelled(&mut admin);
    // The pause is still there, and so is everybody.
    client.send(|out| encode::query(out, b"SELECT 2"));
    wait_for("the client to wait", || is_waiting(&gateway, &console));
    console.rows("RESUME");
    client.until(b'D');
}

#[test]
fn nothing_is_begun_for_who_has_gone_while_waiting() {
    let cluster = start(0);
    let gateway = gateway(&cluster);
    let console = console(&gateway, "app");
    let mut client = Raw::start(gateway.port, VERSION_3_0, &[]);
    client.log_in();
    console.rows("PAUSE");
    client.send(|out| {
        encode::query(out, WRITE.as_bytes());
        out.extend_from_slice(encode::TERMINATE);
    });
    wait_for("the client to wait", || is_waiting(&gateway, &console));
    let clients = || gateway.metric("tidegate_clients", "");
    let before = clients();
    drop(client);
    wait_for("the client to be missed", || clients() < before);
    console.rows("RESUME");
    let other = Client::open(&gateway, "app", "");
    assert_eq!(other.one("SELECT n FROM t WHERE id = 1"), "0");
}

#[test]
fn a_client_is_ended_whatever_it_does() {
    let cluster = start(0);
    let gateway = gateway(&cluster);
    let console = console(&gateway, "app");
    let open = || {
        let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
        let (pid, _) = raw.log_in();
        (raw, pid)
    };
    let is_active = |pid: i32| {
        let clients = shown(&gateway, &console, "CLIENTS");
        clients
            .iter()
            .any(|row| row["id"] == pid.to_string() && row["state"] == "active")
    };
    assert_eq!(console.error("KILL 2147483647").code().code(), "42704");
    let ended = |raw: &mut Raw| {
        let frame = loop {
            match raw.next() {
                Some(frame) if frame[0] == b'E' => break frame,
                Some(_) => {}
                None => panic!("no last word"),
            }
        };
        assert!(error(&frame).contains("57P01"), "{}", error(&frame));
        assert!(raw.is_ended());
    };
    // Idle; in a transaction; within a statement, which is cancelled.
    let (mut idle, pid) = open();
    console.rows(&format!("KILL {pid}"));
    ended(&mut idle);
    let (mut open_one, pid) = open();
    open_one.send(|out| encode::query(out, b"BEGIN; UPDATE t SET n = 7 WHERE id = 1"));
    open_one.until(b'Z');
    console.rows(&format!("KILL {pid}"));
    ended(&mut open_one);
    let client = Client::open(&gateway, "app", "");
    client.rows(WRITE);
    assert_eq!(
        client.one("SELECT n FROM t WHERE id = 1"),
        "1",
        "rolled back"
    );
    for sql in [&b"SELECT pg_sleep(600)"[..], b"BEGIN; SELECT pg_sleep(600)"] {
        let (mut asleep, pid) = open();
        asleep.send(|out| encode::query(out, sql));
        wait_for("the statement to run", || is_active(pid));
        console.rows(&format!("KILL {pid}"));
        ended(&mut asleep);
    }
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' \
        AND state = 'active' AND pid <> pg_backend_pid()";
    wait_for("the statements to be cancelled", || {
        client.one(running) == "0"
    });
    // One that does not read its answer, for which its server waits.
    let (mut slow, pid) = open();
    slow.send(|out| {
        encode::query(
            out,
            b"SELECT repeat('x', 1000000) FROM generate_series(1, 100)",
        )
    });
    wait_for("the answer to begin", || is_active(pid));
    console.rows(&format!("KILL {pid}"));
    wait_for("the client to be gone", || {
        let clients = shown(&gateway, &console, "CLIENTS");
        clients.iter().all(|row| row["id"] != pid.to_string())
    });
}

#[test]
fn what_waits_through_a_switchover_goes_to_the_new_primary() {
    let cluster = start(1);
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n{CONSOLE}\n[failover]\nhold = \"1m\"\n")
    });
    let console = console(&gateway, "app");
    let client = Client::open(&gateway, "app", "");
    client.rows(WRITE);
    console.rows("PAUSE");
    let old_primary = cluster.primary();
    let old = old_primary.address();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| client.rows(WRITE));
        wait_for("the write to wait", || is_waiting(&gateway, &console));
        // The old one goes on taking writes, as if nobody had told it.
        cluster.wait_caught_up().expect("caught up");
        let next = cluster.replicas()[0].address();
        cluster.replicas()[0].promote().expect("promoted");
        wait_for("the new primary", || {
            let nodes = shown(&gateway, &console, "NODES");
            nodes
                .iter()
                .any(|row| row["node"] == next && row["is_primary"] == "t")
        });
        console.rows("RESUME");
        writer.join().expect("the write");
        let told =
            |row: &BTreeMap<String, String>| (row["node"].clone(), row["is_primary"].clone());
        let nodes: Vec<_> = shown(&gateway, &console, "NODES")
            .iter()
            .map(told)
            .collect();
        assert!(nodes.contains(&(old.clone(), "f".to_owned())), "{nodes:?}");
        // Drained, the newest is not replaced by the one before it.
        console.rows(&format!("DRAIN {next}"));
        let nodes = shown(&gateway, &console, "NODES");
        assert!(
            nodes.iter().all(|row| row["is_primary"] == "f"),
            "{nodes:?}"
        );
        console.rows(&format!("RESUME {next}"));
    });
    assert_eq!(client.one("SELECT n FROM t WHERE id = 1"), "2");
    let on_old = Client::direct(&old_primary).one("SELECT n FROM t WHERE id = 1");
    assert_eq!(on_old, "1", "nothing was written to the old primary");
}

#[test]
fn a_write_that_comes_without_a_primary_waits_for_the_end_of_a_pause() {
    let cluster = start(1);
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n{CONSOLE}\n[failover]\nhold = \"1s\"\n")
    });
    let (console, client) = (console(&gateway, "app"), Client::open(&gateway, "app", ""));
    let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
    let key = raw.log_in();
    let is_primary = |name: &str| {
        let nodes = shown(&gateway, &console, "NODES");
        nodes
            .iter()
            .any(|row| row["node"] == name && row["is_primary"] == "t")
    };
    let (old, new) = (cluster.primary(), cluster.replicas().swap_remove(0));
    console.rows("PAUSE app");
    old.stop(StopMode::Fast).expect("stopped");
    wait_for("the primary to be missed", || !is_primary(&old.address()));
    std::thread::scope(|scope| {
        raw.send(|out| encode::query(out, WRITE.as_bytes()));
        let writer = scope.spawn(|| client.rows(WRITE));
        wait_for("the writes to wait longer than they are held", || {
            wait_so_long(&gateway, &console, 2, 1.5)
        });
        cancel(&gateway, &key);
        let frame = raw.next().expect("an error");
        assert!(error(&frame).contains("57014"), "{}", error(&frame));
        new.promote().expect("promoted");
        wait_for("the new primary", || is_primary(&new.address()));
        assert!(!writer.is_finished());
        console.rows("RESUME app");
        writer.join().expect("the write");
    });
    assert_eq!(client.one("SELECT n FROM t WHERE id = 1"), "1");
    // Without a pause it is held for as long as it may be, and no longer.
    new.stop(StopMode::Fast).expect("stopped");
    assert_eq!(client.error(WRITE).code().code(), "57P03");
}

#[test]
fn a_hold_counts_only_what_there_was_no_primary_for() {
    let cluster = start(0);
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n{CONSOLE}\n[failover]\nhold = \"3s\"\n")
    });
    let (console, client) = (console(&gateway, "app"), Client::open(&gateway, "app", ""));
    let primary = cluster.primary().address();
    console.rows(&format!("DRAIN {primary}"));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| client.rows(WRITE));
        wait_for("the write to be held", || {
            gateway.metric("tidegate_held", "") == 1.0
        });
        console.rows("PAUSE app");
        console.rows(&format!("RESUME NODE {primary}"));
        wait_for("the write to wait longer than it is held", || {
            wait_so_long(&gateway, &console, 1, 3.5)
        });
        let waits_for_a_server = || gateway.metric("tidegate_pool_waiting", &primary) == 1.0;
        assert!(waits_for_a_server());
        console.rows(&format!("DRAIN {primary}"));
        wait_for("the write to be held again", || !waits_for_a_server());
        console.rows("RESUME app");
        console.rows(&format!("RESUME NODE {primary}"));
        writer.join().expect("the write");
    });
    assert_eq!(client.one("SELECT n FROM t WHERE id = 1"), "1");
}

#[test]
fn a_transaction_that_waits_to_leave_its_replica_can_be_cancelled_and_killed() {
    let cluster = start(1);
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n{CONSOLE}\n[routing]\ntransaction_reads = \"replica\"\n")
    });
    let console = console(&gateway, "app");
    let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
    let key = raw.log_in();
    let replica = cluster.replicas()[0].port().to_string();
    let begin = |raw: &mut Raw| {
        wait_for("a transaction on the replica", || {
            raw.send(|out| encode::query(out, b"ROLLBACK"));
            raw.until(b'Z');
            raw.send(|out| encode::query(out, b"BEGIN"));
            raw.until(b'Z');
            raw.send(|out| encode::query(out, READ.as_bytes()));
            let row = raw.until(b'D');
            raw.until(b'Z');
            row.ends_with(replica.as_bytes())
        });
        console.error("PAUSE nowhere");
        // It waits for the transaction.
        let mut pause = Raw::start(gateway.port, VERSION_3_0, &[("database", "tidegate")]);
        pause.log_in();
        pause.send(|out| encode::query(out, b"PAUSE"));
        wait_for("the pause", || {
            let databases = shown(&gateway, &console, "DATABASES");
            databases.iter().any(|row| row["paused"] == "t")
        });
        raw.send(|out| encode::query(out, WRITE.as_bytes()));
        wait_for("the write to wait", || is_waiting(&gateway, &console));
    };
    begin(&mut raw);
    cancel(&gateway, &key);
    let frame = raw.next().expect("an error");
    assert!(error(&frame).contains("57014"), "{}", error(&frame));
    assert_eq!(body(&raw.until(b'Z')), b"E", "the transaction has failed");
    console.rows("RESUME");
    begin(&mut raw);
    console.rows(&format!("KILL {}", key.0));
    let frame = raw.next().expect("an error");
    assert!(error(&frame).contains("57P01"), "{}", error(&frame));
    while raw.next().is_some() {}
}
