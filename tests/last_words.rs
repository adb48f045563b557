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
