//! A server that goes behind its complete answer takes nothing of the answer with it, and adds nothing to it.

mod support;

use support::forms::{Form, Speaker};
use support::raw::{Raw, VERSION_3_0, error};
use support::tap::Tap;
use support::{Gateway, cluster_with};
use tidegate::demo::LocalCluster;
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
