//! A server's last words: behind its complete answer they add nothing to it, and in the midst of a commit they
//! do not tell that it has failed.

mod support;

use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::Client;
use support::forms::{Form, Speaker};
use support::raw::{Raw, VERSION_3_0, error};
use support::tap::Tap;
use support::{Gateway, cluster_with, wait_for};
use tidegate::demo::{LocalCluster, LocalNode};
use tidegate::wire::encode;

/// What a server says that is told to end, or whose neighbour has crashed.
const TERMINATED: &[u8] = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to \
    administrator command\0RProcessInterrupts\0\0";
const CRASHED: &[u8] = b"SWARNING\0VWARNING\0C57P02\0Mterminating connection because of crash of \
    another server process\0Rquickdie\0\0";

/// A proxy whose primary is reached by a tap.
fn start() -> (LocalCluster, Tap, Gateway) {
    let cluster = cluster_with(0, &[]);
    let schema = "CREATE TABLE t (n int); GRANT ALL ON t TO app";
    cluster.primary().sql("app", schema).expect("schema");
    let tap = Tap::open(cluster.node(0).port());
    let address = cluster.node(0).address();
    let gateway = Gateway::start_with(&cluster, |config| {
        config.replace(&address, &format!("127.0.0.1:{}", tap.port))
    });
    (cluster, tap, gateway)
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = bytes::BytesMut::new();
    encode::body(&mut frame, tag, body);
    frame.to_vec()
}

#[test]
fn a_client_that_has_its_answer_gets_no_other() {
    let (cluster, tap, gateway) = start();
    let ends = [frame(b'E', TERMINATED), frame(b'N', CRASHED), Vec::new()];
    let mut speaker = Speaker::start(gateway.port);
    let mut written = 0;
    for words in &ends {
        for form in Form::ALL {
            let mut ask = |sql: &str| speaker.ask(form, sql);
            tap.cut_behind("INSERT", words);
            assert_eq!(ask("INSERT INTO t VALUES (1)"), Ok(String::new()));
            assert!(tap.has_cut());
            assert_eq!(ask("SELECT 'next'"), Ok("next".to_owned()), "{form:?}");
            assert_eq!(ask("BEGIN"), Ok(String::new()));
            assert_eq!(ask("INSERT INTO t VALUES (2)"), Ok(String::new()));
            tap.cut_behind("COMMIT", words);
            assert_eq!(ask("COMMIT"), Ok(String::new()));
            assert!(tap.has_cut());
            assert_eq!(ask("SELECT 'next'"), Ok("next".to_owned()), "{form:?}");
            written += 2;
        }
    }
    let rows = cluster.primary().sql("app", "SELECT count(*) FROM t");
    assert_eq!(rows.expect("rows"), written.to_string());
}

/// What comes behind a ROLLBACK is done whatever becomes of the connection, and what is before it never is.
#[test]
fn what_runs_behind_a_transactions_end_may_have_been_done() {
    let (cluster, tap, gateway) = start();
    let extended = |out: &mut bytes::BytesMut, sql: &str| {
        encode::parse(out, b"", sql.as_bytes(), b"\0\0");
        encode::bind_head(out, b"", b"", 6);
        out.extend_from_slice(&[0; 6]);
        encode::body(out, b'E', b"\0\0\0\0\0");
    };
    let texts = [
        ("INSERT INTO t VALUES (1)", None, "08006"),
        ("ROLLBACK", None, "08006"),
        ("ROLLBACK; INSERT INTO t VALUES (2)", None, "08007"),
        ("ROLLBACK", Some("INSERT INTO t VALUES (3)"), "08007"),
        ("COMMIT", None, "08007"),
    ];
    for (text, then, code) in texts {
        let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
        raw.log_in();
        for sql in ["BEGIN", "INSERT INTO t VALUES (0)"] {
            raw.send(|out| encode::query(out, sql.as_bytes()));
            raw.until(b'Z');
        }
        let last = then.unwrap_or(text);
        tap.lose_answer(&last[last.rfind(';').map_or(0, |at| at + 2)..][..6]);
        raw.send(|out| match then {
            None => encode::query(out, text.as_bytes()),
            Some(then) => {
                [text, then].iter().for_each(|sql| extended(out, sql));
                out.extend_from_slice(encode::SYNC);
            }
        });
        let told = error(&raw.until(b'E'));
        assert!(told.contains(&format!("C={code}")), "{text}: {told}");
    }
    // The client has been told that it is committed; what it says then is lost.
    let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
    raw.log_in();
    raw.send(|out| encode::query(out, b"BEGIN"));
    raw.until(b'Z');
    raw.send(|out| {
        extended(out, "COMMIT");
        out.extend_from_slice(encode::FLUSH);
    });
    raw.until(b'C');
    tap.lose_answer("INSERT");
    raw.send(|out| {
        extended(out, "INSERT INTO t VALUES (4)");
        out.extend_from_slice(encode::SYNC);
    });
    let told = error(&raw.until(b'E'));
    assert!(told.contains("C=08007"), "{told}");
    let rows = cluster
        .primary()
        .sql("app", "SELECT array_agg(n ORDER BY n) FROM t");
    assert_eq!(rows.expect("rows"), "{0,2,3,4}");
}

#[test]
fn a_client_whose_session_goes_with_the_server_is_told() {
    let (_cluster, tap, gateway) = start();
    for before in ["LISTEN channel", "BEGIN"] {
        let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
        raw.log_in();
        let mut ask = |sql: &str| {
            raw.send(|out| encode::query(out, sql.as_bytes()));
            raw.until(b'Z');
        };
        ask(before);
        tap.cut_behind("INSERT", &frame(b'E', TERMINATED));
        ask("INSERT INTO t VALUES (1)");
        let told = error(&raw.next().expect("why it ends"));
        assert!(told.contains("V=FATAL C=57P01"), "{before}: {told}");
        assert!(raw.is_ended());
    }
}

/// Ends another server of the node, so that all that are there are told to go.
fn crash(node: &LocalNode) {
    let other = Client::direct(node);
    let pid = other.one("SELECT pg_backend_pid()");
    let pid = Pid::from_raw(pid.parse().expect("a number"));
    kill(pid, Signal::SIGKILL).expect("a process");
}

#[test]
fn a_commit_that_waits_for_standbys_when_the_node_crashes_may_have_been_made() {
    let cluster = cluster_with(0, &[]);
    let node = cluster.node(0);
    let schema = "CREATE TABLE t (n int); GRANT ALL ON t TO app;
        ALTER SYSTEM SET synchronous_standby_names = 'nobody'";
    for sql in schema.split(';') {
        node.sql("app", sql).expect(sql);
    }
    let gateway = Gateway::start(&cluster);
    let [alone, listens, within] = ["", "", ""].map(|more| Client::open(&gateway, "app", more));
    listens.rows("LISTEN channel");
    within.rows("BEGIN");
    within.rows("INSERT INTO t VALUES (3)");
    node.reload().expect("reload");
    let waiting = "SELECT count(*) = 3 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let codes = thread::scope(|scope| {
        let errors = [
            scope.spawn(|| alone.error("INSERT INTO t VALUES (1)")),
            scope.spawn(|| listens.error("INSERT INTO t VALUES (2)")),
            scope.spawn(|| within.error("COMMIT")),
        ];
        wait_for("the commits to wait", || {
            node.sql("app", waiting).expect("activity") == "t"
        });
        crash(&node);
        errors.map(|error| error.join().expect("an error").code().code().to_owned())
    });
    assert_eq!(codes, ["08007"; 3]);
    wait_for("the node to recover", || {
        let rows = node.sql("app", "SELECT count(*) FROM t");
        rows.is_ok_and(|rows| rows == "3")
    });
    assert_eq!(alone.one("SELECT 'next'"), "next");
}
