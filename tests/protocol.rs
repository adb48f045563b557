//! What a client sees through the proxy is, message by message, what one PostgreSQL shows it.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use support::Gateway;
use tidegate::auth::Credential;
use tidegate::cluster::connect::{Target, connect};
use tidegate::config::Secret;
use tidegate::demo::{LocalCluster, Options};
use tidegate::net::stream::Stream;
use tidegate::wire::encode;
use tidegate::wire::frame::{body, header};

/// A client that says exactly what it is told to.
struct Raw {
    socket: TcpStream,
    buf: BytesMut,
}

/// What a script does.
enum Step {
    Send(Vec<u8>),
    /// Read up to the next message of this type.
    Until(u8),
}

impl Raw {
    fn log_in(port: u16, database: &str) -> Raw {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let target = Target {
            host: "127.0.0.1",
            port,
            database,
            user: "app",
            credential: Some(Credential::Password(Secret::new("app"))),
            application_name: "protocol",
        };
        let connection = runtime
            .block_on(connect(&target, Duration::from_secs(10)))
            .unwrap();
        let Stream::Tcp(socket) = connection.stream else {
            panic!("no TCP stream")
        };
        let socket = socket.into_std().unwrap();
        socket.set_nonblocking(false).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Raw {
            socket,
            buf: BytesMut::new(),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("write");
    }

    /// The next message, or `None` at the end of the stream.
    fn next(&mut self) -> Option<BytesMut> {
        loop {
            if let Some(head) = header(&self.buf).expect("a message")
                && self.buf.len() >= head.len
            {
                return Some(self.buf.split_to(head.len));
            }
            let mut chunk = [0; 65536];
            match self.socket.read(&mut chunk).expect("an answer in time") {
                0 => return None,
                n => self.buf.extend_from_slice(&chunk[..n]),
            }
        }
    }

    /// Runs a script and returns every message in readable form.
    fn run(&mut self, script: &[Step]) -> Vec<String> {
        let mut seen = Vec::new();
        for step in script {
            match step {
                Step::Send(bytes) => self.send(bytes),
                Step::Until(tag) => loop {
                    let Some(frame) = self.next() else {
                        seen.push("end of stream".to_owned());
                        return seen;
                    };
                    seen.push(show(&frame));
                    if frame[0] == *tag {
                        break;
                    }
                },
            }
        }
        seen
    }

    fn query(&mut self, sql: &str) -> Vec<String> {
        self.run(&[Step::Send(q(sql)), READY])
    }
}

/// A message in readable form. A row description's table OIDs differ between two databases.
fn show(frame: &[u8]) -> String {
    let mut body = body(frame).to_vec();
    if frame[0] == b'T' {
        let mut at = 2;
        while at < body.len() {
            at += body[at..].iter().position(|&b| b == 0).unwrap() + 1;
            let is_column = body[at..at + 4] != [0; 4];
            body[at..at + 4].copy_from_slice(&[0, 0, 0, u8::from(is_column)]);
            at += 18;
        }
    }
    format!("{} {}", frame[0] as char, body.escape_ascii())
}

const READY: Step = Step::Until(b'Z');

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend((body.len() as i32 + 4).to_be_bytes());
    frame.extend(body);
    frame
}

fn q(sql: &str) -> Vec<u8> {
    frame(b'Q', format!("{sql}\0").as_bytes())
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

fn bind(portal: &str, statement: &str, values: &[&str]) -> Vec<u8> {
    let mut body = format!("{portal}\0{statement}\0\0\0").into_bytes();
    body.extend((values.len() as i16).to_be_bytes());
    for value in values {
        body.extend((value.len() as i32).to_be_bytes());
        body.extend(value.as_bytes());
    }
    body.extend([0, 0]);
    frame(b'B', &body)
}

fn describe(kind: char, name: &str) -> Vec<u8> {
    frame(b'D', format!("{kind}{name}\0").as_bytes())
}

fn close(kind: char, name: &str) -> Vec<u8> {
    frame(b'C', format!("{kind}{name}\0").as_bytes())
}

fn execute(portal: &str, rows: i32) -> Vec<u8> {
    let mut body = format!("{portal}\0").into_bytes();
    body.extend(rows.to_be_bytes());
    frame(b'E', &body)
}

fn sync() -> Vec<u8> {
    encode::SYNC.to_vec()
}

fn flush() -> Vec<u8> {
    encode::FLUSH.to_vec()
}

fn send(parts: &[Vec<u8>]) -> Step {
    Step::Send(parts.concat())
}

/// A query and its answer.
fn asked(sql: &str) -> [Step; 2] {
    [Step::Send(q(sql)), READY]
}

fn scripts() -> Vec<(&'static str, Vec<Step>)> {
    let queries = |texts: &[&str]| texts.iter().flat_map(|sql| asked(sql)).collect::<Vec<_>>();
    let batch = |parts: &[Vec<u8>]| vec![send(parts), READY];
    let read = "SELECT id, v FROM items WHERE id <= $1 ORDER BY id";
    vec![
        (
            "reads",
            queries(&[
                "SELECT 1",
                "SELECT * FROM items ORDER BY id",
                "",
                ";",
                "-- nothing",
                "TABLE items",
            ]),
        ),
        (
            "several statements",
            queries(&[
                "SELECT 1; SELECT 2",
                "SELECT 1; INSERT INTO items VALUES (100, 'x'); SELECT 2",
                "DELETE FROM items WHERE id = 100",
                "SELECT 1;;SELECT 2;",
            ]),
        ),
        (
            "errors",
            queries(&[
                "SELECT 1/0",
                "SELEC",
                "SELECT * FROM nowhere",
                "SELECT 1; SELECT 1/0; SELECT 2",
                "INSERT INTO items VALUES (1, 'again')",
                "SELECT 'x'::int",
            ]),
        ),
        (
            "error undoes the whole text",
            queries(&[
                "INSERT INTO items VALUES (101, 'x'); SELECT 1/0",
                "SELECT count(*) FROM items",
            ]),
        ),
        (
            "transactions",
            queries(&[
                "BEGIN",
                "INSERT INTO items VALUES (102, 'x')",
                "SELECT count(*) FROM items",
                "ROLLBACK",
                "SELECT count(*) FROM items",
                "COMMIT",
                "BEGIN; SELECT 1/0; COMMIT",
                "SELECT 1",
                "ROLLBACK",
            ]),
        ),
        (
            "savepoints",
            queries(&[
                "BEGIN",
                "SAVEPOINT a",
                "SELECT 1/0",
                "SELECT 1",
                "ROLLBACK TO a",
                "SELECT 1",
                "RELEASE a",
                "END",
            ]),
        ),
        (
            "settings",
            queries(&[
                "SET work_mem = '1MB'",
                "SHOW work_mem",
                "SELECT 1",
                "SHOW work_mem",
                "RESET work_mem",
                "SHOW work_mem",
                "SET TimeZone = 'Asia/Tokyo'",
                "SELECT '2020-01-01 00:00+00'::timestamptz",
                "RESET TimeZone",
                "SET nonsense = 1",
                "SET DateStyle TO 'German, DMY'",
                "SELECT '2020-01-02'::date",
                "RESET ALL",
                "SELECT '2020-01-02'::date",
            ]),
        ),
        (
            "settings are undone with their transaction",
            queries(&[
                "BEGIN",
                "SET TimeZone = 'Asia/Tokyo'",
                "ROLLBACK",
                "SHOW TimeZone",
                "BEGIN",
                "SET LOCAL TimeZone = 'Asia/Tokyo'",
                "SHOW TimeZone",
                "COMMIT",
                "SHOW TimeZone",
                "SET TimeZone = 'Asia/Tokyo'; SELECT 1/0",
                "SHOW TimeZone",
            ]),
        ),
        (
            "savepoints undo settings",
            queries(&[
                "BEGIN",
                "SET work_mem = '2MB'",
                "SAVEPOINT a",
                "SET work_mem = '3MB'",
                "ROLLBACK TO a",
                "COMMIT",
                "SHOW work_mem",
                "SELECT 1",
                "SHOW work_mem",
                "RESET ALL",
            ]),
        ),
        (
            "set_config",
            queries(&[
                "SELECT set_config('work_mem', '3MB', false)",
                "SELECT 1",
                "SHOW work_mem",
                "SELECT set_config('search_path', 'a, \"B c\", public', false)",
                "SELECT 1",
                "SHOW search_path",
                "DISCARD ALL",
                "SHOW search_path",
            ]),
        ),
        (
            "roles",
            queries(&[
                "SET ROLE other",
                "SELECT current_user",
                "SELECT * FROM items",
                "RESET ROLE",
                "SELECT current_user",
                "SET ROLE nobody_has_this",
                "SELECT current_user",
            ]),
        ),
        (
            "time zone forms",
            queries(&[
                "SET TIME ZONE 'UTC'",
                "SET TIME ZONE -3",
                "SELECT '2020-01-01 00:00+00'::timestamptz",
                "SET TIME ZONE DEFAULT",
                "SET NAMES 'LATIN1'",
                "SELECT 'é'",
                "RESET client_encoding",
                "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
                "SHOW default_transaction_isolation",
                "RESET ALL",
            ]),
        ),
        (
            "strings that do not conform",
            queries(&[
                "SET standard_conforming_strings = off",
                r"SELECT 'a\'b'",
                "RESET standard_conforming_strings",
                r"SELECT 'a\'",
            ]),
        ),
        (
            "unnamed statement",
            batch(&[
                parse("", read),
                bind("", "", &["2"]),
                describe('P', ""),
                execute("", 0),
                sync(),
            ]),
        ),
        (
            "unnamed statement in two batches",
            vec![
                send(&[parse("", read), describe('S', ""), sync()]),
                READY,
                send(&[bind("", "", &["1"]), execute("", 0), sync()]),
                READY,
                send(&[bind("", "", &["2"]), execute("", 0), sync()]),
                READY,
            ],
        ),
        (
            "a query drops the unnamed statement",
            vec![
                send(&[parse("", read), sync()]),
                READY,
                Step::Send(q("SELECT 1")),
                READY,
                send(&[bind("", "", &["1"]), execute("", 0), sync()]),
                READY,
            ],
        ),
        (
            "named statement",
            vec![
                send(&[parse("s", read), sync()]),
                READY,
                send(&[bind("", "s", &["1"]), execute("", 0), sync()]),
                READY,
                send(&[describe('S', "s"), sync()]),
                READY,
                Step::Send(q("INSERT INTO items VALUES (103, 'w')")),
                READY,
                send(&[bind("", "s", &["200"]), execute("", 0), sync()]),
                READY,
                Step::Send(q("DELETE FROM items WHERE id = 103")),
                READY,
                send(&[close('S', "s"), sync()]),
                READY,
                send(&[bind("", "s", &["1"]), sync()]),
                READY,
            ],
        ),
        (
            "named statement twice",
            vec![
                send(&[parse("s", "SELECT 1"), sync()]),
                READY,
                send(&[
                    parse("s", "SELECT 2"),
                    bind("", "s", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                send(&[bind("", "s", &[]), execute("", 0), sync()]),
                READY,
                send(&[
                    close('S', "s"),
                    parse("s", "SELECT 3"),
                    bind("", "s", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
            ],
        ),
        (
            "a statement that fails to parse does not exist",
            vec![
                send(&[
                    parse("s", "SELECT * FROM nowhere"),
                    bind("", "s", &[]),
                    sync(),
                ]),
                READY,
                send(&[bind("", "s", &[]), sync()]),
                READY,
                send(&[
                    parse("s", "SELECT 1"),
                    bind("", "s", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
            ],
        ),
        (
            "an error skips to sync",
            vec![
                send(&[
                    parse("", "SELECT 1/0"),
                    bind("", "", &[]),
                    execute("", 0),
                    parse("t", "SELECT 1"),
                    bind("", "t", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                send(&[bind("", "t", &[]), execute("", 0), sync()]),
                READY,
            ],
        ),
        (
            "an error undoes a close",
            vec![
                send(&[parse("s", "SELECT 7"), sync()]),
                READY,
                send(&[
                    parse("", "SELECT 1/0"),
                    bind("", "", &[]),
                    execute("", 0),
                    close('S', "s"),
                    sync(),
                ]),
                READY,
                send(&[bind("", "s", &[]), execute("", 0), sync()]),
                READY,
            ],
        ),
        (
            "pipeline of reads and writes",
            batch(&[
                parse("", "INSERT INTO items VALUES (104, 'p')"),
                bind("", "", &[]),
                execute("", 0),
                parse("", read),
                bind("", "", &["1000"]),
                execute("", 0),
                parse("", "DELETE FROM items WHERE id = 104"),
                bind("", "", &[]),
                execute("", 0),
                sync(),
            ]),
        ),
        (
            "a failed pipeline is undone",
            vec![
                send(&[
                    parse("", "INSERT INTO items VALUES (105, 'p')"),
                    bind("", "", &[]),
                    execute("", 0),
                    parse("", "SELECT 1/0"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                Step::Send(q("SELECT count(*) FROM items")),
                READY,
            ],
        ),
        (
            "two batches at once",
            vec![
                send(&[
                    parse("", read),
                    bind("", "", &["1"]),
                    execute("", 0),
                    sync(),
                    parse("", read),
                    bind("", "", &["2"]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                READY,
            ],
        ),
        (
            "queries at once",
            vec![
                send(&[
                    q("SELECT 1"),
                    q("INSERT INTO items VALUES (106, 'q')"),
                    q("SELECT count(*) FROM items"),
                    q("DELETE FROM items WHERE id = 106"),
                ]),
                READY,
                READY,
                READY,
                READY,
            ],
        ),
        (
            "rows in portions",
            vec![
                Step::Send(q("BEGIN")),
                READY,
                send(&[
                    parse("", read),
                    bind("p", "", &["3"]),
                    execute("p", 1),
                    sync(),
                ]),
                READY,
                send(&[execute("p", 1), sync()]),
                READY,
                send(&[execute("p", 0), close('P', "p"), sync()]),
                READY,
                send(&[execute("p", 0), sync()]),
                READY,
                Step::Send(q("ROLLBACK")),
                READY,
            ],
        ),
        (
            "rows in portions in one batch",
            batch(&[
                parse("", read),
                bind("", "", &["3"]),
                execute("", 1),
                execute("", 1),
                execute("", 0),
                sync(),
            ]),
        ),
        (
            "a portal ends with its transaction",
            vec![
                send(&[
                    parse("", read),
                    bind("p", "", &["3"]),
                    execute("p", 1),
                    sync(),
                ]),
                READY,
                send(&[execute("p", 0), sync()]),
                READY,
            ],
        ),
        (
            "flush",
            vec![
                send(&[parse("f", read), describe('S', "f"), flush()]),
                Step::Until(b'T'),
                send(&[bind("", "f", &["2"]), execute("", 0), sync()]),
                READY,
            ],
        ),
        (
            "flush before a write",
            vec![
                send(&[
                    parse("w", "INSERT INTO items VALUES ($1, 'f')"),
                    describe('S', "w"),
                    flush(),
                ]),
                Step::Until(b'n'),
                send(&[bind("", "w", &["107"]), execute("", 0), flush()]),
                Step::Until(b'C'),
                send(&[sync()]),
                READY,
                Step::Send(q("DELETE FROM items WHERE id = 107")),
                READY,
            ],
        ),
        (
            "a read is flushed, then a write follows",
            vec![
                send(&[parse("", read), describe('S', ""), flush()]),
                Step::Until(b'T'),
                send(&[
                    parse("", "INSERT INTO items VALUES (108, 'f')"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                Step::Send(q("DELETE FROM items WHERE id = 108")),
                READY,
            ],
        ),
        (
            "an error before a flush",
            vec![
                send(&[parse("", "SELEC"), flush()]),
                Step::Until(b'E'),
                send(&[
                    parse("", "SELECT 1"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
            ],
        ),
        (
            "deallocate",
            vec![
                send(&[parse("d", "SELECT 1"), sync()]),
                READY,
                Step::Send(q("DEALLOCATE d")),
                READY,
                send(&[bind("", "d", &[]), sync()]),
                READY,
                Step::Send(q("DEALLOCATE d")),
                READY,
                send(&[parse("D d", "SELECT 1"), sync()]),
                READY,
                Step::Send(q("DEALLOCATE PREPARE \"D d\"")),
                READY,
                Step::Send(q("DEALLOCATE ALL")),
                READY,
            ],
        ),
        (
            "deallocate by message",
            vec![
                send(&[parse("d", "SELECT 1"), sync()]),
                READY,
                send(&[
                    parse("", "DEALLOCATE d"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                send(&[bind("", "d", &[]), sync()]),
                READY,
            ],
        ),
        (
            "deallocate all",
            vec![
                send(&[parse("d", "SELECT 1"), sync()]),
                READY,
                Step::Send(q("DEALLOCATE ALL")),
                READY,
                send(&[bind("", "d", &[]), sync()]),
                READY,
                send(&[
                    parse("d", "SELECT 2"),
                    bind("", "d", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                Step::Send(q("DISCARD ALL")),
                READY,
                send(&[bind("", "d", &[]), sync()]),
                READY,
            ],
        ),
        (
            "prepare in SQL",
            queries(&[
                "PREPARE x AS SELECT id FROM items WHERE id = $1",
                "EXECUTE x(1)",
                "SELECT 1",
                "EXECUTE x(2)",
                "DEALLOCATE x",
                "EXECUTE x(1)",
            ]),
        ),
        (
            "settings by message",
            vec![
                send(&[
                    parse("", "SET TimeZone = 'Asia/Tokyo'"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                Step::Send(q("SELECT '2020-01-01 00:00+00'::timestamptz")),
                READY,
                send(&[
                    parse("", "RESET TimeZone"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                Step::Send(q("SELECT '2020-01-01 00:00+00'::timestamptz")),
                READY,
            ],
        ),
        (
            "transaction by message",
            vec![
                send(&[
                    parse("", "BEGIN"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                send(&[
                    parse("", "SET LOCAL work_mem = '4MB'"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                Step::Send(q("SHOW work_mem")),
                READY,
                send(&[
                    parse("", "COMMIT"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                Step::Send(q("SHOW work_mem")),
                READY,
            ],
        ),
        (
            "copy out",
            queries(&[
                "COPY items TO STDOUT",
                "COPY (SELECT 1/0) TO STDOUT",
                "COPY (SELECT id FROM items ORDER BY id) TO STDOUT WITH (FORMAT csv)",
            ]),
        ),
        (
            "copy in",
            vec![
                Step::Send(q("COPY items FROM STDIN")),
                Step::Until(b'G'),
                send(&[
                    frame(b'd', b"201\ta\n"),
                    frame(b'd', b"202\tb\n"),
                    frame(b'c', b""),
                ]),
                READY,
                Step::Send(q("SELECT count(*) FROM items")),
                READY,
                Step::Send(q("DELETE FROM items WHERE id > 200")),
                READY,
            ],
        ),
        (
            "copy in that the client gives up",
            vec![
                Step::Send(q("COPY items FROM STDIN")),
                Step::Until(b'G'),
                send(&[frame(b'd', b"201\ta\n"), frame(b'f', b"no more\0")]),
                READY,
                Step::Send(q("SELECT count(*) FROM items")),
                READY,
            ],
        ),
        (
            "copy in that fails",
            vec![
                Step::Send(q("COPY items FROM STDIN")),
                Step::Until(b'G'),
                send(&[
                    frame(b'd', b"1\tagain\n"),
                    frame(b'd', b"x\n"),
                    frame(b'd', b"204\tc\n"),
                    frame(b'c', b""),
                ]),
                READY,
                Step::Send(q("SELECT count(*) FROM items")),
                READY,
            ],
        ),
        (
            "copy in sent at once with what follows",
            vec![
                send(&[
                    q("COPY items FROM STDIN"),
                    frame(b'd', b"205\ta\n"),
                    frame(b'c', b""),
                    q("DELETE FROM items WHERE id > 200"),
                    q("SELECT 1"),
                ]),
                READY,
                READY,
                READY,
            ],
        ),
        (
            "copy in by message",
            vec![
                send(&[
                    parse("", "COPY items FROM STDIN"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                Step::Until(b'G'),
                send(&[frame(b'd', b"206\ta\n"), frame(b'c', b""), sync()]),
                READY,
                Step::Send(q("DELETE FROM items WHERE id > 200")),
                READY,
            ],
        ),
        (
            "copy in by message, sync once",
            vec![
                send(&[
                    parse("", "COPY items FROM STDIN"),
                    bind("", "", &[]),
                    execute("", 0),
                    flush(),
                ]),
                Step::Until(b'G'),
                send(&[frame(b'd', b"207\ta\n"), frame(b'c', b""), sync()]),
                READY,
                Step::Send(q("DELETE FROM items WHERE id > 200")),
                READY,
            ],
        ),
        (
            "copy in by message that fails",
            vec![
                send(&[
                    parse("", "COPY items FROM STDIN"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                Step::Until(b'G'),
                send(&[frame(b'd', b"oops\n")]),
                send(&[frame(b'c', b""), sync()]),
                READY,
                Step::Send(q("SELECT 1")),
                READY,
            ],
        ),
        (
            "copy in two tables in one text",
            vec![
                Step::Send(q("COPY items FROM STDIN; COPY items FROM STDIN; SELECT 5")),
                Step::Until(b'G'),
                send(&[frame(b'd', b"208\ta\n"), frame(b'c', b"")]),
                Step::Until(b'G'),
                send(&[frame(b'd', b"209\ta\n"), frame(b'c', b"")]),
                READY,
                Step::Send(q("DELETE FROM items WHERE id > 200")),
                READY,
            ],
        ),
        (
            "another message within copy in",
            vec![
                Step::Send(q("COPY items FROM STDIN")),
                Step::Until(b'G'),
                send(&[frame(b'd', b"210\ta\n"), q("SELECT 1")]),
                READY,
                Step::Send(q("SELECT 2")),
                READY,
            ],
        ),
        (
            "function call",
            batch(&[{
                let mut call = 1317i32.to_be_bytes().to_vec(); // length(text)
                call.extend([0, 0, 0, 1, 0, 0, 0, 3]);
                call.extend(b"abc");
                call.extend([0, 1]);
                frame(b'F', &call)
            }]),
        ),
        (
            "notices",
            queries(&[
                "DO $$ BEGIN RAISE NOTICE 'hello'; END $$",
                "DROP TABLE IF EXISTS nowhere",
            ]),
        ),
        (
            "temporary tables",
            queries(&[
                "CREATE TEMP TABLE tt (a int)",
                "INSERT INTO tt VALUES (1)",
                "SELECT * FROM tt",
                "SELECT count(*) FROM items",
                "DROP TABLE tt",
                "DISCARD ALL",
            ]),
        ),
        (
            "cursors",
            queries(&[
                "BEGIN",
                "DECLARE c CURSOR FOR SELECT id FROM items ORDER BY id",
                "FETCH 2 FROM c",
                "MOVE 1 IN c",
                "CLOSE c",
                "COMMIT",
                "DECLARE h CURSOR WITH HOLD FOR SELECT id FROM items ORDER BY id",
                "SELECT 1",
                "FETCH 1 FROM h",
                "CLOSE h",
            ]),
        ),
        (
            "advisory locks",
            queries(&[
                "SELECT pg_try_advisory_lock(7)",
                "SELECT 1",
                "SELECT pg_advisory_unlock(7)",
                "SELECT pg_advisory_unlock(7)",
            ]),
        ),
        (
            "two-phase commit",
            queries(&[
                "BEGIN",
                "INSERT INTO items VALUES (300, '2')",
                "PREPARE TRANSACTION 'x'",
                "ROLLBACK PREPARED 'x'",
                "SELECT count(*) FROM items",
            ]),
        ),
        (
            "notifications to oneself",
            queries(&["LISTEN a", "UNLISTEN *"]),
        ),
        (
            "writes hidden in reads",
            queries(&[
                "WITH w AS (INSERT INTO items VALUES (301, 'w') RETURNING id) SELECT * FROM w",
                "SELECT * FROM items WHERE id = 301 FOR UPDATE",
                "SELECT writer(302)",
                "DELETE FROM items WHERE id > 300",
                "SELECT nextval('counter')",
                "SELECT currval('counter')",
                "SELECT id INTO copied FROM items",
                "DROP TABLE copied",
                "EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) DELETE FROM items WHERE false",
            ]),
        ),
        (
            "a write behind a view",
            vec![
                Step::Send(q("SELECT w FROM hidden")),
                READY,
                Step::Send(q("DELETE FROM items WHERE id = 400")),
                READY,
            ],
        ),
        (
            "a write behind a view by message",
            vec![
                send(&[
                    parse("h", "SELECT w FROM hidden"),
                    describe('S', "h"),
                    bind("", "h", &[]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                Step::Send(q("SELECT count(*) FROM items")),
                READY,
                Step::Send(q("DELETE FROM items WHERE id = 400")),
                READY,
                send(&[bind("", "h", &[]), execute("", 0), close('S', "h"), sync()]),
                READY,
                Step::Send(q("DELETE FROM items WHERE id = 400")),
                READY,
            ],
        ),
        (
            "what only the primary knows",
            queries(&[
                "SELECT pg_is_in_recovery()",
                "SHOW transaction_read_only",
                "SHOW in_hot_standby",
            ]),
        ),
        (
            "bad statements by message",
            vec![
                send(&[bind("", "nowhere", &[]), sync()]),
                READY,
                send(&[execute("nowhere", 0), sync()]),
                READY,
                send(&[describe('S', "nowhere"), sync()]),
                READY,
                send(&[describe('P', "nowhere"), sync()]),
                READY,
                send(&[close('S', "nowhere"), close('P', "nowhere"), sync()]),
                READY,
                send(&[bind("", "_tidegate_1", &[]), sync()]),
                READY,
            ]
            .into_iter()
            .take(10)
            .collect(),
        ),
        (
            "too few parameters for a named statement",
            batch(&[
                parse("few", read),
                bind("", "few", &[]),
                execute("", 0),
                sync(),
            ]),
        ),
        (
            "a plan that no longer fits",
            vec![
                Step::Send(q("CREATE TABLE changing (a int)")),
                READY,
                send(&[parse("c", "SELECT * FROM changing"), sync()]),
                READY,
                send(&[bind("", "c", &[]), execute("", 0), sync()]),
                READY,
                Step::Send(q("ALTER TABLE changing ADD b int")),
                READY,
                send(&[bind("", "c", &[]), execute("", 0), sync()]),
                READY,
                send(&[
                    parse("c2", "SELECT * FROM changing"),
                    bind("", "c2", &[]),
                    sync(),
                ]),
                READY,
                send(&[
                    bind("", "c2", &[]),
                    describe('P', ""),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                Step::Send(q("DROP TABLE changing")),
                READY,
            ],
        ),
        (
            "a portal across flushes",
            vec![
                send(&[
                    parse("", read),
                    bind("C_1", "", &["3"]),
                    describe('P', "C_1"),
                    flush(),
                ]),
                Step::Until(b'T'),
                send(&[execute("C_1", 1), flush()]),
                Step::Until(b's'),
                send(&[execute("C_1", 0), flush()]),
                Step::Until(b'C'),
                send(&[close('P', "C_1"), sync()]),
                READY,
            ],
        ),
        (
            "what follows a failed copy in",
            vec![
                send(&[
                    parse("", "COPY items FROM STDIN"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                Step::Until(b'G'),
                send(&[
                    frame(b'd', b"oops\n"),
                    frame(b'c', b""),
                    sync(),
                    close('S', "x"),
                    sync(),
                ]),
                Step::Until(b'E'),
                send(&[
                    parse("", read),
                    bind("", "", &["1"]),
                    execute("", 0),
                    sync(),
                ]),
                READY,
                READY,
                READY,
            ],
        ),
        (
            "a failed copy in that is told late",
            vec![
                send(&[
                    parse("", "COPY items FROM STDIN"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                Step::Until(b'G'),
                send(&[frame(b'd', b"oops\n")]),
                Step::Until(b'E'),
                send(&[frame(b'd', b"more\n"), frame(b'c', b""), sync()]),
                READY,
                Step::Send(q("SELECT 1")),
                READY,
            ],
        ),
        (
            "settings that end with their transaction",
            queries(&[
                "SET transaction_read_only = off",
                "SELECT count(*) FROM items",
                "SET transaction_isolation = 'serializable'",
                "SELECT count(*) FROM items",
                "SHOW transaction_isolation",
            ]),
        ),
        (
            "serializable by default",
            queries(&[
                "SET default_transaction_isolation = 'serializable'",
                "SELECT count(*) FROM items",
                "RESET default_transaction_isolation",
                "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
                "SELECT count(*) FROM items",
                "SHOW transaction_isolation",
                "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
                "SELECT count(*) FROM items",
            ]),
        ),
        (
            "too few parameters",
            batch(&[parse("", read), bind("", "", &[]), execute("", 0), sync()]),
        ),
        (
            "empty statements by message",
            batch(&[
                parse("", ""),
                bind("", "", &[]),
                describe('P', ""),
                execute("", 0),
                sync(),
            ]),
        ),
        (
            "sync alone",
            vec![
                send(&[sync()]),
                READY,
                send(&[sync(), sync()]),
                READY,
                READY,
                send(&[flush(), sync()]),
                READY,
            ],
        ),
        (
            "large result",
            queries(&[
                "SELECT repeat('x', 3000000)",
                "SELECT g, repeat('y', 1000) FROM generate_series(1, 3000) g",
            ]),
        ),
        (
            "large query",
            queries(&[
                &format!("SELECT length('{}')", "z".repeat(3_000_000)),
                "SELECT 1",
            ]),
        ),
        (
            "large parameter",
            batch(&[
                parse("", "SELECT length($1)"),
                bind("", "", &[&"p".repeat(3_000_000)]),
                execute("", 0),
                sync(),
            ]),
        ),
        (
            "large parameter of a named statement",
            batch(&[
                parse("big", "SELECT length($1)"),
                bind("", "big", &[&"p".repeat(3_000_000)]),
                execute("", 0),
                sync(),
            ]),
        ),
        (
            "many operators, many comments",
            queries(&[
                &format!("SELECT 1{}", "+1".repeat(1000)),
                &format!("SELECT {}1", "-- x\n".repeat(1000)),
            ]),
        ),
        (
            "goodbye",
            vec![
                send(&[q("SELECT 1"), frame(b'X', b"")]),
                READY,
                Step::Until(b'!'),
            ],
        ),
    ]
}

const SETUP: &str = "
    CREATE TABLE items (id int PRIMARY KEY, v text);
    INSERT INTO items VALUES (1, 'one'), (2, 'two'), (3, 'three');
    CREATE SEQUENCE counter;
    CREATE FUNCTION writer(n int) RETURNS int LANGUAGE sql AS
        $$ INSERT INTO items VALUES (n, 'w') RETURNING id $$;
    CREATE VIEW hidden AS SELECT writer(400) AS w;
    GRANT ALL ON ALL TABLES IN SCHEMA public TO app;
    GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app;
    GRANT CREATE ON SCHEMA public TO app;
    GRANT SELECT ON items TO other;
    ALTER TABLE items OWNER TO app;";

#[test]
fn every_message_is_as_from_one_postgresql() {
    let settings = vec![("max_prepared_transactions".to_owned(), "5".to_owned())];
    let cluster = LocalCluster::start(Options {
        settings,
        ..Options::default()
    })
    .unwrap();
    let primary = cluster.primary();
    primary
        .sql("postgres", "CREATE ROLE other; GRANT other TO app;")
        .unwrap();
    for database in ["direct", "proxied"] {
        primary
            .sql("postgres", &format!("CREATE DATABASE {database}"))
            .unwrap();
        primary.sql(database, SETUP).unwrap();
    }
    cluster.wait_caught_up().unwrap();
    let gateway = Gateway::start(&cluster);
    let mut wrong = 0;
    for (name, script) in scripts() {
        let direct = Raw::log_in(primary.port(), "direct").run(&script);
        let proxied = Raw::log_in(gateway.port, "proxied").run(&script);
        if direct != proxied {
            wrong += 1;
            let at = direct
                .iter()
                .zip(&proxied)
                .take_while(|(a, b)| a == b)
                .count();
            let cut = |seen: Option<&String>| seen.map(|s| s.chars().take(300).collect::<String>());
            eprintln!("{name}: message {at} differs");
            eprintln!(
                "  direct:  {:?}\n  proxied: {:?}",
                cut(direct.get(at)),
                cut(proxied.get(at))
            );
        }
    }
    assert_eq!(wrong, 0, "scripts differ");
    let on_replicas = gateway.metric("tidegate_queries_total", "route=\"replica\"");
    assert!(
        on_replicas > 50.0,
        "only {on_replicas} batches ran on replicas"
    );
    assert!(
        gateway.metric("tidegate_repairs_total", "") >= 1.0,
        "nothing was repaired"
    );
    garbage_is_one_clients_own_problem(&gateway);
    whoever_leaves_in_a_transaction_leaves_nothing_behind(&gateway, &cluster);
}

/// Garbage, truncated and oversized frames end the connection that sent them, with an error where
/// one can be said, and nobody else's.
fn garbage_is_one_clients_own_problem(gateway: &Gateway) {
    let mut bystander = Raw::log_in(gateway.port, "proxied");
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
        let mut raw = Raw::log_in(gateway.port, "proxied");
        raw.send(&bytes);
        let _ = raw.socket.shutdown(Shutdown::Write);
        while let Some(frame) = raw.next() {
            assert!(
                matches!(frame[0], b'E' | b'Z'),
                "{} for {}",
                show(&frame),
                bytes.escape_ascii()
            );
        }
    }
    for sql in chains {
        // PostgreSQL may answer or refuse; the connection goes on either way.
        let mut raw = Raw::log_in(gateway.port, "proxied");
        raw.query(&sql);
        assert_eq!(raw.query("SELECT 1").last().unwrap(), "Z I");
    }
    assert_eq!(bystander.query("SELECT 1").last().unwrap(), "Z I");
}

/// A client that vanishes in a transaction: what it did is undone, its locks are gone, and the next
/// one gets a clean server.
fn whoever_leaves_in_a_transaction_leaves_nothing_behind(
    gateway: &Gateway,
    cluster: &LocalCluster,
) {
    for _ in 0..25 {
        let mut raw = Raw::log_in(gateway.port, "proxied");
        raw.query("BEGIN");
        raw.query("SET LOCAL work_mem = '9MB'");
        raw.query("UPDATE items SET v = 'gone' WHERE id = 1");
    }
    for _ in 0..25 {
        let mut raw = Raw::log_in(gateway.port, "proxied");
        raw.query("CREATE TEMP TABLE leftover (a int)");
        raw.query("SET work_mem = '9MB'");
        raw.query("SELECT pg_advisory_lock(1)");
        raw.query("SELECT pg_advisory_unlock(1)");
    }
    let mut raw = Raw::log_in(gateway.port, "proxied");
    let shown =
        raw.query("UPDATE items SET v = 'one' WHERE id = 1 RETURNING current_setting('work_mem')");
    assert!(shown[1].contains("4MB"), "{shown:?}");
    let absent = raw.query("INSERT INTO leftover VALUES (1)");
    assert!(absent[0].contains("42P01"), "{absent:?}");
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    support::wait_for("no open transaction", || {
        cluster.primary().sql("postgres", idle).unwrap() == "0"
    });
}
