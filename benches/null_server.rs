//! A PostgreSQL that does nothing: it lets everybody in and answers every statement at once with the
//! same row, so that what is in front of it is all that is measured.
//!
//! Owns: the few messages that clients and proxies send to a server, and their answers. Never: parses
//! SQL, checks who somebody is, or keeps anything but whether a transaction is open.
//!
//! `cargo run --release --example null_server` prints its port as one line of JSON, and stays until its
//! standard input ends. To Tidegate it is a primary without replicas: it knows the proxy's probes.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;

use bytes::{Buf, BytesMut};
use tidegate::wire::frame::{Header, body, header};
use tidegate::wire::startup::{self, Startup};
use tidegate::wire::{FRAME_BUFFERED_BYTES_MAX, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a session is told when it begins: what drivers and poolers look for.
const PARAMETERS: [(&str, &str); 11] = [
    ("server_version", "15.0"),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
    ("is_superuser", "off"),
    ("default_transaction_read_only", "off"),
    ("in_hot_standby", "off"),
];

const SYSTEM: &str = "7000000000000000001";

const LIFE: &[&str] = &["1700000000000000", SYSTEM];

/// What a question of Tidegate's own contains, the first that fits, and a row for each of its statements: a primary
/// whose position never changes.
const PROBES: [(&str, &[&[&str]]); 5] = [
    (
        "default_transaction_isolation",
        &[LIFE, &["read committed"]],
    ),
    ("pg_postmaster_start_time", &[LIFE]),
    ("wal_block_size", &[&["8192", "16777216", SYSTEM, "f"]]),
    (
        "pg_is_in_recovery",
        &[&["0/5000028", "0/5000028", "f", "1"]],
    ),
    ("pg_walfile_name", &[&["00000001"]]),
];

/// How they begin. Only such texts are searched.
const PROBE_STARTS: [&[u8]; 3] = [
    b"SELECT pg_catalog.",
    b"SELECT CASE WHEN pg_catalog.",
    b"SELECT (EXTRACT(",
];

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("null_server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        writeln!(io::stdout(), r#"{{"port": {port}}}"#)?;
        let (ended, end) = tokio::sync::oneshot::channel();
        thread::spawn(move || {
            // Until nobody needs us; an error is as good an end.
            let _ = io::stdin().read_to_end(&mut Vec::new());
            let _ = ended.send(());
        });
        let answers = std::rc::Rc::new(Answers::new());
        let local = tokio::task::LocalSet::new();
        let accept = local.run_until(async {
            loop {
                let (socket, _) = listener.accept().await?;
                socket.set_nodelay(true)?;
                let answers = answers.clone();
                // Whatever a peer does wrong ends its own session.
                tokio::task::spawn_local(async move { session(socket, &answers).await });
            }
        });
        tokio::select! {
            result = accept => result,
            _ = end => Ok(()),
        }
    })
}

/// Made once: answering is copying.
struct Answers {
    hello: BytesMut,
    description: BytesMut,
    row: BytesMut,
    done: BytesMut,
    no_parameters: BytesMut,
    probes: Vec<(&'static [u8], BytesMut)>,
}

impl Answers {
    fn new() -> Answers {
        let mut hello = BytesMut::new();
        encode::body(&mut hello, b'R', &0_i32.to_be_bytes());
        for (name, value) in PARAMETERS {
            encode::parameter_status(&mut hello, name.as_bytes(), value.as_bytes());
        }
        encode::key_data(&mut hello, 1, &[0; 4]);
        Answers {
            hello,
            description: description(&["abalance"]),
            row: row(&["0"]),
            done: complete(b"SELECT 1"),
            no_parameters: message(b't', &0_i16.to_be_bytes()),
            probes: PROBES
                .iter()
                .map(|(part, rows)| {
                    let mut answer = BytesMut::new();
                    for values in *rows {
                        answer.extend_from_slice(&description(&vec!["?"; values.len()]));
                        answer.extend_from_slice(&row(values));
                        answer.extend_from_slice(&complete(b"SELECT 1"));
                    }
                    (part.as_bytes(), answer)
                })
                .collect(),
        }
    }

    fn probe(&self, sql: &[u8]) -> Option<&[u8]> {
        if !PROBE_STARTS.iter().any(|start| sql.starts_with(start)) {
            return None;
        }
        let contains = |part: &[u8]| sql.windows(part.len()).any(|window| window == part);
        let found = self.probes.iter().find(|(part, _)| contains(part));
        found.map(|(_, answer)| &answer[..])
    }
}

fn message(tag: u8, content: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    encode::body(&mut out, tag, content);
    out
}

fn complete(tag: &[u8]) -> BytesMut {
    message(b'C', &[tag, b"\0"].concat())
}

/// A RowDescription of integers, or what is shown as one.
fn description(names: &[&str]) -> BytesMut {
    let mut content = (names.len() as i16).to_be_bytes().to_vec();
    for name in names {
        content.extend(name.as_bytes());
        // The name's end; no table and no column of it; int4, four bytes, no modifier, text.
        content.extend(b"\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0");
    }
    message(b'T', &content)
}

fn row(values: &[&str]) -> BytesMut {
    let mut content = (values.len() as i16).to_be_bytes().to_vec();
    for value in values {
        content.extend((value.len() as i32).to_be_bytes());
        content.extend(value.as_bytes());
    }
    message(b'D', &content)
}

/// One client, until it leaves or says what is no message.
async fn session(mut socket: TcpStream, answers: &Answers) -> Option<()> {
    let mut buf = BytesMut::with_capacity(8192);
    let mut out = BytesMut::with_capacity(8192);
    greet(&mut socket, &mut buf, answers).await?;
    let mut status = b'I';
    loop {
        while let Some(Header { tag, len }) = header(&buf).ok()? {
            if len > FRAME_BUFFERED_BYTES_MAX {
                return None;
            }
            let Some(frame) = buf.get(..len) else { break };
            answer(&mut out, tag, body(frame), &mut status, answers)?;
            buf.advance(len);
        }
        if !out.is_empty() {
            socket.write_all(&out).await.ok()?;
            out.clear();
        }
        buf.reserve(4096);
        if socket.read_buf(&mut buf).await.ok()? == 0 {
            return None;
        }
    }
}

/// Everybody is let in, unencrypted.
async fn greet(socket: &mut TcpStream, buf: &mut BytesMut, answers: &Answers) -> Option<()> {
    loop {
        match startup::parse(buf).ok()? {
            Some((Startup::Ssl | Startup::GssEnc, len)) => {
                buf.advance(len);
                socket.write_all(b"N").await.ok()?;
            }
            Some((Startup::Cancel { .. }, _)) => return None,
            Some((Startup::Start(_), len)) => {
                buf.advance(len);
                socket.write_all(&answers.hello).await.ok()?;
                return socket.write_all(b"Z\0\0\0\x05I").await.ok();
            }
            None => {
                if socket.read_buf(buf).await.ok()? == 0 {
                    return None;
                }
            }
        }
    }
}

/// Appends the answer to one message; `None` for one that ends the session, or that is not known.
fn answer(
    out: &mut BytesMut,
    tag: u8,
    content: &[u8],
    status: &mut u8,
    answers: &Answers,
) -> Option<()> {
    match tag {
        b'Q' => {
            let sql = content.strip_suffix(b"\0")?;
            if let Some(probe) = answers.probe(sql) {
                out.extend_from_slice(probe);
            } else if is_select(sql) {
                out.extend_from_slice(&answers.description);
                out.extend_from_slice(&answers.row);
                out.extend_from_slice(&answers.done);
            } else {
                command(out, sql, status);
            }
            ready(out, *status);
        }
        b'P' => out.extend_from_slice(encode::PARSE_COMPLETE),
        b'B' => out.extend_from_slice(b"2\0\0\0\x04"),
        b'D' => {
            if content.first() == Some(&b'S') {
                out.extend_from_slice(&answers.no_parameters);
            }
            out.extend_from_slice(&answers.description);
        }
        b'E' => {
            out.extend_from_slice(&answers.row);
            out.extend_from_slice(&answers.done);
        }
        b'C' => out.extend_from_slice(encode::CLOSE_COMPLETE),
        b'S' => ready(out, *status),
        b'H' => {}
        _ => return None,
    }
    Some(())
}

fn is_select(sql: &[u8]) -> bool {
    sql.get(..6)
        .is_some_and(|word| word.eq_ignore_ascii_case(b"SELECT"))
}

/// Anything but a SELECT: its first word is its tag, and may open or end a transaction.
fn command(out: &mut BytesMut, sql: &[u8], status: &mut u8) {
    let word = sql.split(|byte| !byte.is_ascii_alphabetic()).next();
    let word = word.unwrap_or_default().to_ascii_uppercase();
    match &word[..] {
        b"BEGIN" | b"START" => *status = b'T',
        b"COMMIT" | b"END" | b"ROLLBACK" | b"ABORT" => *status = b'I',
        _ => {}
    }
    out.extend_from_slice(&complete(&word));
}

fn ready(out: &mut BytesMut, status: u8) {
    out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status]);
}
