//! What is no protocol at all, and those who leave without a word.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use tidegate::demo::LocalCluster;
use tidegate::session::server::OWED_MAX;
use tidegate::wire::encode;
use tidegate::wire::frame::body;

use super::client::Client;
use super::script::{Login, frame, query};
use crate::support::{self, Gateway};

fn log_in(gateway: &Gateway) -> Client {
    let pair = |name: &str| (name.to_owned(), "app".to_owned());
    let login = Login {
        password: None,
        parameters: vec![pair("user"), pair("database")],
    };
    let (client, _, instead) = Client::log_in(gateway.port, &login);
    assert_eq!(instead, None, "logged in");
    client
}

/// Asks, and reads up to ReadyForQuery.
fn ask(client: &mut Client, sql: &str) -> Vec<String> {
    client.send(&query(sql).expect("SQL"));
    let mut seen = Vec::new();
    loop {
        let message = client.next().expect("an answer");
        seen.push(format!(
            "{} {}",
            message[0] as char,
            body(&message).escape_ascii()
        ));
        if message[0] == b'Z' {
            return seen;
        }
    }
}

/// Garbage, truncated and oversized frames end the connection that sent them, with an error where
/// one can be said, and nobody else's.
pub fn is_one_clients_own_problem(gateway: &Gateway) {
    let mut bystander = log_in(gateway);
    let before_login: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 64],
        &[0xff; 64],
        b"\0\0\0\x08\x04\xd2\x16\x2f\0\0\0\x08",
        &[0, 0, 0, 9, 0, 3, 0, 0, b'x'],
        &[0, 0, 0x27, 0x11, 0, 3, 0, 0],
    ];
    for bytes in before_login {
        let mut socket = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        socket.write_all(bytes).unwrap();
        let _ = socket.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
    }
    let operators = "+1".repeat(100_000);
    let chains = [
        format!("SELECT 1{operators}"),
        format!("SELECT {}", "(".repeat(100_000)),
        format!("SELECT 1{}", "::int".repeat(50_000)),
    ];
    let after_login: Vec<Vec<u8>> = vec![
        frame(b'Q', b"SELECT 1"),
        frame(b'Q', b"SELECT 1\0S\0\0\0\x04"),
        frame(b'Q', b""),
        frame(b'P', b""),
        frame(b'P', b"x\0SELECT 1\0\xff\xff"),
        frame(b'B', b""),
        frame(b'B', b"no end"),
        frame(b'D', b""),
        frame(b'E', b"\0"),
        frame(b'C', b"Zx\0"),
        frame(b'p', b"secret\0"),
        b"Q\0\0\0\x03".to_vec(),
        b"Q\xff\xff\xff\xff".to_vec(),
        b"Q\x7f\xff\xff\xff".to_vec(),
        b"S\x10\0\0\0".to_vec(),
        vec![0xff; 1000],
        vec![0; 1000],
    ];
    for bytes in after_login {
        let mut raw = log_in(gateway);
        raw.send(&bytes);
        let _ = raw.socket.shutdown(Shutdown::Write);
        while let Ok(frame) = raw.next() {
            assert!(
                matches!(frame[0], b'E' | b'Z'),
                "{} for {}",
                frame.escape_ascii(),
                bytes.escape_ascii()
            );
        }
    }
    for sql in chains {
        // PostgreSQL may answer or refuse; the connection goes on either way.
        let mut raw = log_in(gateway);
        ask(&mut raw, &sql);
        assert_eq!(ask(&mut raw, "SELECT 1").last().unwrap(), "Z I");
    }
    assert_eq!(ask(&mut bystander, "SELECT 1").last().unwrap(), "Z I");
}

/// The server holds back the answer to a Parse until it is asked for it; what the proxy answers
/// itself waits behind that, and the client sends more than may wait.
pub fn answers_that_are_held_back_come(gateway: &Gateway) {
    const CLOSES: usize = 3 * OWED_MAX;
    let mut raw = log_in(gateway);
    ask(&mut raw, "BEGIN");
    let close = frame(b'C', b"Snothing\0");
    let parse = frame(b'P', b"held\0SELECT 1\0\0\0");
    raw.send(&[parse, close.repeat(CLOSES), encode::SYNC.to_vec()].concat());
    let mut tags = Vec::new();
    while tags.last() != Some(&b'Z') {
        tags.push(raw.next().expect("an answer")[0]);
    }
    assert_eq!((tags.len(), tags[0]), (CLOSES + 2, b'1'));
    assert!(tags[1..=CLOSES].iter().all(|&tag| tag == b'3'));
}

/// An error in the middle of a row would be taken for a part of it: the client's connection ends.
pub fn nothing_is_said_within_a_row(gateway: &Gateway, cluster: &LocalCluster) {
    const ROW_BYTES: usize = 64 << 20;
    let mut raw = log_in(gateway);
    let sql = format!("SELECT repeat('x', {ROW_BYTES}) FROM of_app LIMIT 1 FOR UPDATE");
    raw.send(&query(&sql).expect("SQL"));
    // Its server has more to send than the client takes. It also waits for moments while the proxy
    // takes what the client has room for, so that one look finds it and the next does not: whoever
    // waits is ended by the look that finds it.
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE wait_event = 'ClientWrite'";
    support::wait_for("a server that waits for its client, and is ended", || {
        cluster.primary().sql("postgres", end).unwrap() == "1"
    });
    let mut seen = Vec::new();
    let _ = raw.socket.read_to_end(&mut seen);
    let row = seen.iter().position(|&byte| byte == b'D').expect("a row");
    assert!(seen.len() < ROW_BYTES);
    assert!(seen[row + 11..].iter().all(|&byte| byte == b'x'));
}

/// A client that vanishes in a transaction: what it did is undone, its locks are gone, and the next
/// one gets a clean server.
pub fn whoever_leaves_in_a_transaction_leaves_nothing_behind(
    gateway: &Gateway,
    cluster: &LocalCluster,
) {
    for _ in 0..25 {
        let mut raw = log_in(gateway);
        ask(&mut raw, "BEGIN");
        ask(&mut raw, "SET LOCAL work_mem = '9MB'");
        ask(&mut raw, "UPDATE of_app SET a = 2");
    }
    for _ in 0..25 {
        let mut raw = log_in(gateway);
        ask(&mut raw, "CREATE TEMP TABLE leftover (a int)");
        ask(&mut raw, "SET work_mem = '9MB'");
        ask(&mut raw, "SELECT pg_advisory_lock(1)");
        ask(&mut raw, "SELECT pg_advisory_unlock(1)");
    }
    for change in ["SET ROLE other", "RESET ROLE"] {
        let mut raw = log_in(gateway);
        if change == "RESET ROLE" {
            ask(&mut raw, "SET ROLE other");
        }
        ask(&mut raw, "BEGIN");
        ask(&mut raw, change);
        drop(raw);
        let mut raw = log_in(gateway);
        for (before, user) in [("SELECT 1", "app"), ("SET ROLE other", "other")] {
            ask(&mut raw, before);
            // No replica's answer.
            let shown = ask(&mut raw, "SELECT current_user, pg_advisory_xact_lock(77)");
            assert!(shown[1].contains(user), "{change}: {shown:?}");
        }
    }
    let mut raw = log_in(gateway);
    let shown = ask(
        &mut raw,
        "UPDATE of_app SET a = 1 RETURNING current_setting('work_mem')",
    );
    assert!(shown[1].contains("4MB"), "{shown:?}");
    let absent = ask(&mut raw, "INSERT INTO leftover VALUES (1)");
    assert!(absent[0].contains("42P01"), "{absent:?}");
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    support::wait_for("no open transaction", || {
        cluster.primary().sql("postgres", idle).unwrap() == "0"
    });
}
