//! How a connection begins: protocol versions, cancel keys, options and replication, as PostgreSQL has
//! them.

mod support;

use std::fs;
use std::io::Read;
use std::process::{Command, Output, Stdio};

use support::client::Client;
use support::raw::{Raw, VERSION_3_0, VERSION_3_2, error};
use support::{Gateway, cluster_with, wait_for};
use tidegate::demo::{LocalCluster, StopMode};
use tidegate::wire::encode;
use tidegate::wire::frame::body;

/// What a server says to a start-up message, up to the first request to prove who one is.
fn greeting(port: u16, version: i32, more: &[(&str, &str)]) -> String {
    let mut raw = Raw::start(port, version, more);
    let mut said = Vec::new();
    while let Some(frame) = raw.next() {
        match frame[0] {
            b'R' => {
                said.push("R".to_owned());
                break;
            }
            b'E' => said.push(error(&frame)),
            tag => said.push(format!("{} {}", tag as char, body(&frame).escape_ascii())),
        }
    }
    said.join("; ")
}

/// What a server says to a packet, in bytes, up to the end of the stream.
fn said_to(port: u16, packet: &[u8]) -> String {
    let mut raw = Raw::open(port);
    raw.send_packet(packet);
    let mut said = Vec::new();
    raw.socket.read_to_end(&mut said).expect("the end");
    said.escape_ascii().to_string()
}

#[test]
fn versions_and_protocol_options_are_negotiated() {
    let cluster = cluster_with(0, &[]);
    let gateway = Gateway::start(&cluster);
    let unsupported = |version: &str| {
        format!(
            "V=FATAL C=0A000 M=unsupported frontend protocol {version}: server supports 3.0 to 3.2"
        )
    };
    type Options<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(i32, Options<'_>, &str)] = &[
        (VERSION_3_0, &[], "R"),
        (VERSION_3_0 | 1, &[], "R"),
        (VERSION_3_2, &[], "R"),
        (
            VERSION_3_2 + 1,
            &[],
            r"v \x00\x03\x00\x02\x00\x00\x00\x00; R",
        ),
        (
            3 << 16 | 9999,
            &[("_pq_.b", "1"), ("_pq_.a", "")],
            r"v \x00\x03\x00\x02\x00\x00\x00\x02_pq_.b\x00_pq_.a\x00; R",
        ),
        (
            VERSION_3_0,
            &[("_pq_.x", "1")],
            r"v \x00\x03\x00\x00\x00\x00\x00\x01_pq_.x\x00; R",
        ),
        (4 << 16, &[], &unsupported("4.0")),
        (-1, &[], &unsupported("65535.65535")),
        (
            VERSION_3_0,
            &[("replication", "perhaps")],
            "V=FATAL C=22023 M=invalid value for parameter \"replication\": \"perhaps\" \
             H=Valid values are: \"false\", 0, \"true\", 1, \"database\".",
        ),
    ];
    // The first that knows protocol 3.2.
    let is_same = cluster.postgres().major_version() >= 18;
    for (version, more, expected) in cases {
        let expected = expected.replace('"', "\\\"");
        let said = greeting(gateway.port, *version, more);
        assert_eq!(said, expected, "{version:#x} {more:?}");
        if is_same {
            let direct = greeting(cluster.primary().port(), *version, more);
            assert_eq!(said, direct, "{version:#x} {more:?}");
        }
    }
    // Clients of old read nothing else.
    let packet = [&(2i32 << 16).to_be_bytes()[..], &[0; 288]].concat();
    let old = r"EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.2\n\x00";
    assert_eq!(said_to(gateway.port, &packet), old);
    if is_same {
        assert_eq!(said_to(cluster.primary().port(), &packet), old);
    }
}

#[test]
fn cancel_keys_are_as_long_as_the_protocol_has_them() {
    let cluster = cluster_with(0, &[]);
    let gateway = Gateway::start(&cluster);
    let cancel = |pid: i32, secret: &[u8]| {
        let mut raw = Raw::open(gateway.port);
        let code: i32 = (1234 << 16) | 5678;
        raw.send_packet(&[&code.to_be_bytes(), &pid.to_be_bytes(), secret].concat());
        assert!(raw.is_ended(), "a word about a cancel request");
    };
    let cases = [
        (VERSION_3_0, 4),
        (VERSION_3_0 | 1, 4),
        (VERSION_3_2, 32),
        (3 << 16 | 9999, 32),
    ];
    for (n, (version, length)) in cases.into_iter().enumerate() {
        let mut raw = Raw::start(gateway.port, version, &[]);
        let (pid, secret) = raw.log_in();
        assert_eq!(secret.len(), length);
        let mark = format!("SELECT pg_sleep(600), {n}");
        raw.send(|out| encode::query(out, mark.as_bytes()));
        wait_for("the query to run", || {
            let running = format!("SELECT count(*) FROM pg_stat_activity WHERE query = '{mark}'");
            cluster.primary().sql("postgres", &running).expect("count") == "1"
        });
        let mut wrong = secret.clone();
        wrong[length - 1] ^= 1;
        let longer = [&secret[..], &[0]].concat();
        for secret in [
            &wrong[..],
            &secret[..length - 1],
            &longer,
            &[0; 256],
            &[0; 257],
            &[],
        ] {
            cancel(pid, secret);
        }
        assert_eq!(gateway.metric("tidegate_cancels_total", ""), n as f64);
        cancel(pid, &secret);
        let mut said = Vec::new();
        while said.last() != Some(&b'Z') {
            let frame = raw.next().expect("an answer");
            assert!(frame[0] != b'E' || error(&frame).contains("C=57014"));
            said.push(frame[0]);
        }
        assert_eq!(said, b"TEZ");
    }
    // Before a client has been told its key, there is none.
    let mut guest = Raw::start(gateway.port, VERSION_3_0, &[]);
    guest.until(b'R');
    for pid in 0..100 {
        cancel(pid, &[]);
        cancel(pid, &[0; 4]);
    }
    assert_eq!(
        gateway.metric("tidegate_cancels_total", ""),
        cases.len() as f64
    );
}

fn psql(cluster: &LocalCluster, url: &str, options: &str, sql: &str) -> Output {
    let mut command = cluster.postgres().command("psql");
    command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", sql]);
    command.env("PGPASSWORD", "app").env("PGOPTIONS", options);
    command.output().expect("psql runs")
}

fn text(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn options_are_read_as_postgresql_reads_them() {
    let cluster = cluster_with(0, &[]);
    let gateway = Gateway::start(&cluster);
    let shown = "SELECT current_setting('work_mem'), current_setting('search_path'), \
        current_setting('datestyle'), current_setting('my.own', true), \
        current_setting('enable_seqscan'), current_setting('application_name')";
    for options in [
        "",
        "-c work_mem=1MB",
        "-cwork_mem=1MB --search-path=a,b",
        "--work_mem=1MB -c work_mem=2MB",
        r"-c search_path=a,\ b -c my.own=\\x\ y\'",
        "\t-c\nwork_mem=1MB\x0b",
        "-c my.own=",
        "-c my.own=a=b",
        "-e -S 4096 -fs",
        "-efsS4096",
        "-eS4096",
        "-d 2x",
        "-fz",
        "-t pa",
        "-c",
        "-c work_mem",
        "--work-mem",
        "-c work_mem=nonsense",
        "-c nonsense=1",
        "-c shared_buffers=1MB",
        "-B 64",
        "-Z",
        "work_mem",
        "-- work_mem",
        "--",
        "-c application_name=x",
        "\\",
    ] {
        let of = |port: u16| {
            let url = format!("host=127.0.0.1 port={port} user=app dbname=app");
            text(&psql(&cluster, &url, options, shown)).replace(&port.to_string(), "PORT")
        };
        assert_eq!(
            of(gateway.port),
            of(cluster.primary().port()),
            "{options:?}"
        );
    }
}

/// A proxy that passes replication connections through.
fn passing(cluster: &LocalCluster) -> Gateway {
    Gateway::start_with(cluster, |config| {
        format!("{config}\n[routing]\nreplication = \"primary\"\n")
    })
}

fn replication_tool(cluster: &LocalCluster, gateway: &Gateway, name: &str) -> Command {
    let mut command = cluster.postgres().command(name);
    command
        .args(["-h", "127.0.0.1", "-p", &gateway.port.to_string()])
        .args(["-U", "postgres", "--no-password"])
        .env("PGPASSWORD", "postgres")
        .stdin(Stdio::null());
    command
}

fn wait_for_stream(cluster: &LocalCluster, name: &str) {
    let streams = format!(
        "SELECT count(*) FROM pg_stat_replication \
         WHERE application_name = '{name}' AND state = 'streaming'"
    );
    wait_for("WAL to be streamed", || {
        cluster.primary().sql("postgres", &streams).expect("count") == "1"
    });
}

#[track_caller]
fn succeed(mut command: Command) -> String {
    let output = command.output().expect("a program");
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

#[test]
fn replication_is_refused_unless_it_is_wanted() {
    let cluster = cluster_with(0, &[]);
    let gateway = Gateway::start(&cluster);
    for replication in ["database", "true", "on", "1"] {
        let refused = greeting(gateway.port, VERSION_3_0, &[("replication", replication)]);
        assert_eq!(
            refused,
            "V=FATAL C=0A000 M=replication connections are not passed through \
             H=Connect to a node directly, or set routing.replication = \\\"primary\\\" to have \
             them passed through to the primary."
        );
    }
    for none in ["false", "no", "of", "0"] {
        let mut raw = Raw::start(gateway.port, VERSION_3_0, &[("replication", none)]);
        raw.log_in();
    }
}

#[test]
fn replication_connections_reach_the_primary() {
    let cluster = cluster_with(1, &[("wal_level", "logical")]);
    let gateway = passing(&cluster);
    let primary = cluster.primary();
    // Queries among commands, as the server itself has them.
    let asked = |port: u16, sql: &str| {
        let url =
            format!("host=127.0.0.1 port={port} user=postgres dbname=app replication=database");
        let mut command = cluster.postgres().command("psql");
        command.args(["-XAt", "-d", &url, "-c", sql]);
        command
            .env("PGPASSWORD", "postgres")
            .env("PGOPTIONS", "-c my.own=x");
        text(&command.output().expect("psql runs"))
    };
    for sql in [
        "IDENTIFY_SYSTEM",
        "SHOW my.own",
        "SELECT current_database(), current_user",
        "CREATE_REPLICATION_SLOT",
    ] {
        // WAL may grow meanwhile: its position is no part of the comparison.
        let shown = |port| {
            let words = asked(port, sql);
            let words = words.split('|').filter(|word| !word.contains('/'));
            words.collect::<Vec<_>>().join("|")
        };
        assert_eq!(shown(gateway.port), shown(primary.port()), "{sql}");
    }
    // The password is checked here as well.
    let mut command = replication_tool(&cluster, &gateway, "pg_receivewal");
    command
        .env("PGPASSWORD", "wrong")
        .args(["--slot=s", "--create-slot"]);
    let refused = command.output().expect("a program");
    assert!(text(&refused).contains("password authentication failed"));

    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| {
        let path = directory.path().join(name);
        fs::create_dir(&path).expect("a directory");
        cluster.postgres().give(&path).expect("its owner");
        path
    };
    cluster
        .postgres()
        .give(directory.path())
        .expect("its owner");
    let mut receive = replication_tool(&cluster, &gateway, "pg_receivewal");
    receive.args(["--slot=s", "--create-slot"]);
    succeed(receive);
    let wal = path("wal");
    let end = "SELECT pg_current_wal_flush_lsn() + 1000000";
    let end = primary.sql("app", end).expect("a position");
    let mut receive = replication_tool(&cluster, &gateway, "pg_receivewal");
    receive
        .arg("--slot=s")
        .arg("-D")
        .arg(&wal)
        .args(["--no-loop", &format!("--endpos={end}")]);
    let receive = std::thread::spawn(|| succeed(receive));
    wait_for_stream(&cluster, "pg_receivewal");
    let table = "CREATE TABLE t AS SELECT generate_series(1, 100000) AS a";
    primary.sql("app", table).expect("a table");
    receive.join().expect("pg_receivewal ends");
    assert!(fs::read_dir(&wal).expect("files").count() > 0);

    // Logical changes, COPY BOTH in two directions.
    primary
        .sql("app", "CREATE PUBLICATION p FOR ALL TABLES")
        .expect("a publication");
    let logical = || {
        let mut command = replication_tool(&cluster, &gateway, "pg_recvlogical");
        command.args(["-d", "app", "--slot=l", "--no-loop"]);
        command
    };
    let mut create = logical();
    create.args(["--create-slot", "--plugin=pgoutput"]);
    succeed(create);
    primary
        .sql("app", "INSERT INTO t VALUES (424242)")
        .expect("a row");
    let end = primary
        .sql("app", "SELECT pg_current_wal_insert_lsn()")
        .expect("a position");
    let mut changes = logical();
    changes
        .args([
            "--start",
            "-f",
            "-",
            "-o",
            "proto_version=1",
            "-o",
            "publication_names=p",
        ])
        .arg(format!("--endpos={end}"));
    assert!(succeed(changes).contains("424242"));
    let mut dropping = logical();
    dropping.arg("--drop-slot");
    succeed(dropping);

    // A whole copy of the cluster, over two connections.
    let mut backup = replication_tool(&cluster, &gateway, "pg_basebackup");
    let copy = path("copy");
    backup
        .arg("-D")
        .arg(&copy)
        .args(["-X", "stream", "-c", "fast", "--no-sync"]);
    succeed(backup);
    assert!(copy.join("PG_VERSION").exists());
}

#[test]
fn a_replication_connection_ends_with_its_primary() {
    let cluster = cluster_with(1, &[]);
    let gateway = passing(&cluster);
    let directory = tempfile::tempdir().expect("a directory");
    cluster
        .postgres()
        .give(directory.path())
        .expect("its owner");
    let mut receive = replication_tool(&cluster, &gateway, "pg_receivewal");
    receive.arg("-D").arg(directory.path()).arg("--no-loop");
    receive.stderr(Stdio::piped());
    let mut receive = receive.spawn().expect("pg_receivewal");
    wait_for_stream(&cluster, "pg_receivewal");
    // Another name of it changes nothing.
    let primary = cluster.primary();
    let stream = "SELECT pid FROM pg_stat_replication WHERE application_name = 'pg_receivewal'";
    let pid = primary.sql("postgres", stream).expect("a stream");
    let config = fs::read_to_string(&gateway.config_path).expect("config");
    let address = format!("address = \"{}\"", primary.address());
    gateway.reload(&config.replace(&address, &format!("name = \"renamed\"\n{address}")));
    wait_for("it to be known by that", || {
        gateway.metric("tidegate_role", "node=\"renamed\"") == 1.0
    });
    let end = primary.write_marker().expect("a position");
    let sent = format!("{stream} AND sent_lsn - '0/0' >= {end} AND pid = {pid}");
    wait_for("WAL to be streamed on", || {
        primary.sql("postgres", &sent).expect("asked") == pid
    });
    // The former primary still runs; whoever follows it must not be left behind with it.
    cluster.node(1).promote().expect("a promotion");
    wait_for("the end of the stream", || {
        receive.try_wait().expect("wait").is_some()
    });
    wait_for("the log", || {
        gateway.log().contains("the node is the primary no more")
    });
}

#[test]
fn who_says_nothing_keeps_no_client_out_and_is_bounded() {
    let cluster = cluster_with(0, &[]);
    let gateway = Gateway::start_with(&cluster, |config| {
        config.replace("[listen]\n", "[listen]\nmax_clients = 2\n")
    });
    let refused = "V=FATAL C=53300 M=sorry, too many clients already";
    let mut silent: Vec<_> = (0..9).map(|_| Raw::open(gateway.port)).collect();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Raw::start(gateway.port, VERSION_3_0, &[]);
        client.log_in();
        clients.push(client);
    }
    // Of clients there are as many as there may be, and these know who they are.
    let mut third = Raw::start(gateway.port, VERSION_3_0, &[]);
    assert_eq!(error(&third.next().expect("an answer")), refused);
    assert!(third.is_ended());

    // As many as clients, and those of the console.
    wait_for("the third to have gone", || {
        gateway.metric("tidegate_clients", "") == 11.0
    });
    silent.push(Raw::open(gateway.port));
    let mut last = Raw::open(gateway.port);
    assert_eq!(error(&last.next().expect("an answer")), refused);
    assert!(last.is_ended());
    drop(silent);
    drop(clients);
    wait_for("their places to be free", || {
        gateway.metric("tidegate_clients", "") == 0.0
    });
    Raw::start(gateway.port, VERSION_3_0, &[]).log_in();
}

#[test]
fn a_login_that_takes_too_long_is_logged_and_a_connection_that_says_nothing_is_not() {
    let cluster = cluster_with(0, &[]);
    let gateway = Gateway::start_with(&cluster, |config| {
        config.replace("[listen]\n", "[listen]\nlogin_timeout = \"1s\"\n")
    });
    let mut silent = Raw::open(gateway.port);
    let mut late = Raw::start(gateway.port, VERSION_3_0, &[]);
    late.until(b'R');
    assert!(late.is_ended() && silent.is_ended());
    let log = gateway.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("listen.login_timeout"));
    let [line] = lines.collect::<Vec<_>>()[..] else {
        panic!("{log}")
    };
    assert!(line.contains("user=\"app\""), "{line}");
}

#[test]
fn a_login_that_nobody_serves_is_told_where_to_look() {
    let cluster = cluster_with(0, &[]);
    let gateway = Gateway::start_with(&cluster, |config| {
        let config = config.replace("databases = [\"*\"]", "databases = [\"app\"]");
        format!("{config}\n[failover]\nhold = \"0\"\n")
    });
    let refused = |more: &str| {
        let error = Client::refused(&gateway, "app", more);
        let hint = error.hint().expect("a hint").to_owned();
        (error.code().code().to_owned(), hint)
    };
    let (code, hint) = refused("dbname=other");
    assert_eq!(code, "3D000");
    assert!(hint.contains("databases of a [[cluster]]"), "{hint}");

    cluster.primary().stop(StopMode::Immediate).expect("stop");
    wait_for("the node to be down", || {
        gateway.metric("tidegate_up", "") == 0.0
    });
    let (code, hint) = refused("");
    assert_eq!(code, "57P03");
    assert!(hint.contains("monitor") && hint.contains("log"), "{hint}");
}

#[test]
fn long_names_are_cut_to_what_a_name_has() {
    let cluster = cluster_with(0, &[]);
    let gateway = Gateway::start(&cluster);
    // The next character would be cut in two, so none of it is left.
    let kept = "n".repeat(62);
    let long = format!("{kept}\u{e9} and more");
    let create = format!("CREATE DATABASE {kept}");
    cluster.primary().sql("postgres", &create).expect("created");
    let client = Client::open(&gateway, "app", &format!("dbname='{long}'"));
    assert_eq!(client.one("SELECT current_database()"), kept);
    let refused = Client::refused(&gateway, "app", &format!("user='{long}'"));
    let told = format!("password authentication failed for user \"{kept}\"");
    assert_eq!(refused.message(), told);
}
