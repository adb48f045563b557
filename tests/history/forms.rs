//! Owns: every form in which the primary can show a client data or take its write, one by one. Never:
//! leaves to chance whether the standbys are behind: they stand still.

use std::io::{Read, Write};
use std::net::TcpStream;

use tidegate::demo::{DemoError, LocalCluster};

use super::database;
use crate::support::Gateway;

/// What a client sends before it waits for the answer.
#[derive(Clone, Copy, Debug)]
enum Say {
    Query(&'static str),
    /// Statements of one pipeline, up to Sync.
    Sync(&'static [&'static str]),
    /// Statements of one pipeline, up to Flush: it goes on after them.
    Flush(&'static [&'static str]),
    /// Pipelines that each end with a Sync, sent together.
    Syncs(&'static [&'static str]),
}

use Say::{Flush, Query, Sync, Syncs};

const READ: &str = "SELECT version FROM history WHERE id = 0";

/// In the end the client has been shown the row as the primary has it.
const SHOWS: &[&[Say]] = &[
    &[Query("BEGIN"), Query(READ), Query("COMMIT")],
    &[Query("BEGIN"), Query(READ), Query("ROLLBACK")],
    &[Query(
        "BEGIN; SELECT version FROM history WHERE id = 0; COMMIT",
    )],
    &[
        Query("BEGIN; SELECT version FROM history WHERE id = 0"),
        Query("COMMIT"),
    ],
    &[Query(
        "SHOW work_mem; SELECT version FROM history WHERE id = 0",
    )],
    &[Query(
        "SELECT version FROM history WHERE id = 0; SHOW work_mem",
    )],
    &[Query("SELECT version FROM history WHERE id = 0 FOR UPDATE")],
    &[
        Query("PREPARE p AS SELECT version FROM history WHERE id = 0"),
        Query("EXECUTE p"),
    ],
    &[
        Query("BEGIN; DECLARE c CURSOR FOR SELECT version FROM history WHERE id = 0"),
        Query("FETCH c"),
        Query("COMMIT"),
    ],
    &[Sync(&["BEGIN", READ]), Sync(&["COMMIT"])],
    &[Sync(&["BEGIN", READ, "COMMIT"])],
    &[Sync(&["SHOW work_mem", READ])],
    &[Flush(&["SHOW work_mem", READ]), Sync(&[])],
    &[Flush(&["BEGIN", READ]), Sync(&["COMMIT"])],
    &[
        Flush(&["SHOW work_mem"]),
        Flush(&[READ]),
        Sync(&["SHOW work_mem"]),
    ],
    &[Syncs(&["BEGIN", READ, "COMMIT"])],
    &[
        Query("BEGIN"),
        Sync(&[READ]),
        Query("SELECT 1/0"),
        Query("ROLLBACK"),
    ],
];

const WRITE: &str = "UPDATE history SET version = version + 1 WHERE id = 0";

/// In the end a write of the client has been acknowledged to it.
const WRITES: &[&[Say]] = &[
    &[Query(WRITE)],
    &[Query("BEGIN"), Query(WRITE), Query("COMMIT")],
    &[Query(
        "BEGIN; UPDATE history SET version = version + 1 WHERE id = 0; COMMIT",
    )],
    &[Query(
        "UPDATE history SET version = version + 1 WHERE id = 0; SHOW work_mem",
    )],
    &[Query(
        "BEGIN; UPDATE history SET version = version + 1 WHERE id = 0; COMMIT; SELECT 1/0",
    )],
    &[
        Query("BEGIN"),
        Query(WRITE),
        Query("COMMIT; BEGIN"),
        Query("ROLLBACK"),
    ],
    &[
        Query("PREPARE p AS UPDATE history SET version = version + 1 WHERE id = 0"),
        Query("EXECUTE p"),
    ],
    &[Query(
        "WITH w AS (UPDATE history SET version = version + 1 WHERE id = 0) SELECT",
    )],
    &[Query(
        "DO 'BEGIN UPDATE history SET version = version + 1 WHERE id = 0; END'",
    )],
    &[Query(
        "EXPLAIN ANALYZE UPDATE history SET version = version + 1 WHERE id = 0",
    )],
    &[Sync(&[WRITE])],
    &[Sync(&[WRITE, "SHOW work_mem"])],
    &[Sync(&["BEGIN", WRITE]), Sync(&["COMMIT"])],
    &[Sync(&["BEGIN", WRITE, "COMMIT"])],
    &[Flush(&[WRITE]), Sync(&[])],
    &[Flush(&[WRITE]), Sync(&["SELECT 1"])],
    &[Flush(&[WRITE]), Sync(&["SHOW work_mem"])],
    &[Flush(&["BEGIN", WRITE, "COMMIT"]), Sync(&["SELECT 1/0"])],
    &[Syncs(&[WRITE, "SHOW work_mem"])],
    &[Syncs(&["BEGIN", WRITE, "COMMIT", "SELECT 1"])],
];

/// Goes through all forms while the standbys stand still. Returns those after which a client went
/// back behind what it had been shown or had written.
pub fn check(cluster: &LocalCluster, gateway: &Gateway) -> Result<Vec<String>, DemoError> {
    database::reset(cluster, 1)?;
    for replica in cluster.replicas() {
        replica.pause_replay()?;
    }
    let mut broken = Vec::new();
    let mut version = 0;
    // All of them before the first write through the proxy: whoever connects later is to see it.
    let begin = |_| {
        let mut client = RawClient::connect(gateway.port);
        assert_eq!(client.say(Query(READ)), ["0"], "it begins on a standby");
        client
    };
    let clients: [Vec<_>; 2] = [SHOWS, WRITES].map(|forms| forms.iter().map(begin).collect());
    for ((forms, writes), clients) in [(SHOWS, false), (WRITES, true)].into_iter().zip(clients) {
        for (form, mut client) in forms.iter().zip(clients) {
            if !writes {
                cluster.primary().sql("app", WRITE)?;
            }
            version += 1;
            let shown: Vec<String> = form.iter().flat_map(|&say| client.say(say)).collect();
            let version = version.to_string();
            assert!(
                writes || shown.contains(&version),
                "{form:?} has shown {shown:?}"
            );
            let read = client.say(Query(READ));
            if read != [version.as_str()] {
                broken.push(format!(
                    "{form:?}, then a read: {read:?}, and not {version}"
                ));
            }
        }
    }
    let read = RawClient::connect(gateway.port).say(Query(READ));
    if read != [version.to_string()] {
        broken.push(format!(
            "connecting, then a read: {read:?}, and not {version}"
        ));
    }
    for replica in cluster.replicas() {
        replica.resume_replay()?;
    }
    Ok(broken)
}

/// A client that says each message itself.
struct RawClient {
    socket: TcpStream,
}

impl RawClient {
    /// Logs in where no password is asked for.
    fn connect(port: u16) -> RawClient {
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        let mut client = RawClient { socket };
        let startup = b"\0\x03\0\0user\0app\0database\0app\0\0";
        client.send(&[&(startup.len() as u32 + 4).to_be_bytes(), &startup[..]].concat());
        client.hear(1, 0);
        client
    }

    /// Says it and hears the answer: the first column of every row.
    fn say(&mut self, say: Say) -> Vec<String> {
        let mut bytes = Vec::new();
        let (readies, completions) = match say {
            Query(sql) => {
                message(&mut bytes, b'Q', &[sql.as_bytes(), b"\0"]);
                (1, 0)
            }
            Sync(statements) => {
                statements.iter().for_each(|sql| execute(&mut bytes, sql));
                message(&mut bytes, b'S', &[]);
                (1, 0)
            }
            Flush(statements) => {
                statements.iter().for_each(|sql| execute(&mut bytes, sql));
                message(&mut bytes, b'H', &[]);
                (0, statements.len())
            }
            Syncs(statements) => {
                for sql in statements {
                    execute(&mut bytes, sql);
                    message(&mut bytes, b'S', &[]);
                }
                (statements.len(), 0)
            }
        };
        self.send(&bytes);
        self.hear(readies, completions)
    }

    fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("sent");
    }

    /// Hears so many ReadyForQuery and CommandComplete.
    fn hear(&mut self, mut readies: usize, mut completions: usize) -> Vec<String> {
        let mut shown = Vec::new();
        while readies > 0 || completions > 0 {
            let mut header = [0; 5];
            self.socket.read_exact(&mut header).expect("a message");
            let [tag, len @ ..] = header;
            let mut body = vec![0; u32::from_be_bytes(len) as usize - 4];
            self.socket.read_exact(&mut body).expect("its body");
            match tag {
                b'Z' => readies = readies.saturating_sub(1),
                b'C' => completions = completions.saturating_sub(1),
                // DataRow: how many columns, then for each its length and text.
                b'D' if body.len() >= 6 => {
                    let len = u32::from_be_bytes(body[2..6].try_into().expect("four bytes"));
                    let text = &body[6..6 + len as usize];
                    shown.push(String::from_utf8_lossy(text).into_owned());
                }
                _ => {}
            }
        }
        shown
    }
}

/// Parse, Bind and Execute of one statement without parameters.
fn execute(bytes: &mut Vec<u8>, sql: &str) {
    message(bytes, b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"]);
    message(bytes, b'B', &[&[0; 8]]);
    message(bytes, b'E', &[&[0; 5]]);
}

fn message(bytes: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let body = parts.concat();
    bytes.push(tag);
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend(body);
}
