//! What clients cost the proxy in memory: those that do nothing, and those that are sent much.

mod support;

use std::fs;
use std::io::{Read, Write as _};

use bytes::BytesMut;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::raw::{Raw, VERSION_3_0};
use support::{Gateway, wait_for};
use tidegate::demo::{LocalCluster, LocalNode, Options};
use tidegate::wire::encode;

/// Idle clients that are counted: so many that what they share is little beside what each has.
const CLIENTS: usize = 2000;

/// The most resident memory of an idle client, in bytes. In a release build it is less than 4 kB; a
/// test's build keeps a task's future in an allocation of its own, and memory comes in huge pages.
const CLIENT_BYTES_MAX: u64 = 6 << 10;

/// What is sent to a client and by one, in bytes, and the most memory that the proxy may take for
/// it: a few buffers, in huge pages. The kernel's own buffers hold far less than is sent.
const STREAM_BYTES: usize = 64 << 20;
const STREAM_KB_MAX: u64 = 12 << 10;

/// Rows of a stream.
const ROW_BYTES: usize = 1 << 10;
const ROWS: usize = STREAM_BYTES / ROW_BYTES;

/// A figure of a process's memory in kB, as `/proc` has it.
fn memory_kb(gateway: &Gateway, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let figure = line.and_then(|line| {
        line.trim_matches(|c: char| !c.is_ascii_digit())
            .parse()
            .ok()
    });
    figure.expect("a figure")
}

fn cluster() -> LocalCluster {
    LocalCluster::start(Options {
        replicas: 0,
        ..Options::default()
    })
    .expect("a cluster")
}

/// A client that has logged in, and has run a SELECT and a prepared statement.
fn client(gateway: &Gateway) -> Raw {
    let mut client = Raw::start(gateway.port, VERSION_3_0, &[]);
    client.log_in();
    client.send(|out| encode::query(out, b"SELECT 1"));
    client.until(b'Z');
    client.send(|out| {
        encode::parse(out, b"one", b"SELECT $1::int4", b"\0\0");
        // No formats, one value, no formats of results.
        let values = b"\0\0\0\x01\0\0\0\x017\0\0";
        encode::bind_head(out, b"", b"one", values.len());
        out.extend_from_slice(values);
        out.extend_from_slice(b"E\0\0\0\x09\0\0\0\0\0");
        out.extend_from_slice(encode::SYNC);
    });
    client.until(b'D');
    client.until(b'Z');
    client
}

#[test]
fn an_idle_client_takes_little_memory() {
    // This process has the other ends.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the limit is raised");
    let cluster = cluster();
    let gateway = Gateway::start(&cluster);
    // What is made for the first ones is there.
    let mut clients: Vec<_> = (0..20).map(|_| client(&gateway)).collect();
    let before = memory_kb(&gateway, "VmRSS:");
    clients.extend((0..CLIENTS).map(|_| client(&gateway)));
    let each = (memory_kb(&gateway, "VmRSS:") - before) * 1024 / CLIENTS as u64;
    println!("{each} bytes for each idle client");
    assert!(
        each <= CLIENT_BYTES_MAX,
        "{each} bytes for each idle client"
    );
    drop(clients);
}

#[test]
fn what_is_long_passes_without_being_held() {
    let cluster = cluster();
    let gateway = Gateway::start(&cluster);
    let mut client = client(&gateway);
    let take = |client: &mut Raw, sql: &str| {
        client.send(|out| encode::query(out, sql.as_bytes()));
        // Nothing is read while it comes: the server must be made to wait.
        wait_for("the server to wait for its client", || {
            is_waiting_to_write(&cluster.primary())
        });
        assert!(skip_to_ready(client) > STREAM_BYTES);
    };
    let rows = format!("SELECT repeat('x', {ROW_BYTES}) FROM generate_series(1, {ROWS})");
    let before = memory_kb(&gateway, "VmHWM:");
    take(&mut client, &rows);
    take(&mut client, &format!("COPY ({rows}) TO STDOUT"));
    take(&mut client, &format!("SELECT repeat('x', {STREAM_BYTES})"));

    let sink = "CREATE TABLE sink (line text);
        CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER skip BEFORE INSERT ON sink FOR EACH ROW EXECUTE FUNCTION skip();
        GRANT INSERT ON sink TO app";
    cluster.primary().sql("app", sink).expect("a table");
    client.send(|out| encode::query(out, b"COPY sink FROM STDIN"));
    client.until(b'G');
    let row = [&[b'x'; ROW_BYTES - 1][..], b"\n"].concat();
    let mut rows = BytesMut::new();
    (0..1024).for_each(|_| encode::body(&mut rows, b'd', &row));
    for _ in 0..ROWS / 1024 {
        client.socket.write_all(&rows).expect("write");
    }
    client.send(|out| encode::body(out, b'c', b""));
    client.until(b'C');
    client.until(b'Z');

    let grown = memory_kb(&gateway, "VmHWM:") - before;
    println!("{grown} kB for streams of {} MB", STREAM_BYTES >> 20);
    assert!(grown <= STREAM_KB_MAX, "{grown} kB for streams");
}

/// What streams is let gather, but its server's next words are heard, few as they are.
#[test]
fn a_server_is_heard_after_a_stream() {
    let cluster = cluster();
    let gateway = Gateway::start_with(&cluster, |config| format!("{config}\n[pool]\nsize = 1\n"));
    let mut client = client(&gateway);
    let stream = format!("SELECT repeat('x', {ROW_BYTES}) FROM generate_series(1, {ROWS} / 4)");
    for _ in 0..20 {
        client.send(|out| encode::query(out, stream.as_bytes()));
        assert!(skip_to_ready(&mut client) > STREAM_BYTES / 4);
        client.send(|out| encode::query(out, b"SELECT 1"));
        client.until(b'D');
        client.until(b'Z');
    }
}

/// Whether a server of the application is kept from sending more.
fn is_waiting_to_write(node: &LocalNode) -> bool {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND datname = 'app'";
    node.sql("postgres", sql).expect("activity").trim() == "1"
}

/// Discards an answer up to ReadyForQuery; how long it was, in bytes.
fn skip_to_ready(client: &mut Raw) -> usize {
    const READY: &[u8] = b"Z\0\0\0\x05I";
    let mut chunk = vec![0; 256 << 10];
    let (mut skipped, mut end) = (0, Vec::new());
    while !end.ends_with(READY) {
        let n = client.socket.read(&mut chunk).expect("an answer in time");
        assert!(n > 0, "the stream has ended");
        skipped += n;
        end.extend_from_slice(&chunk[..n]);
        end.drain(..end.len().saturating_sub(READY.len()));
    }
    skipped
}
