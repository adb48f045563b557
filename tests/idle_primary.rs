//! After a session's write its reads come to a replica though nobody ever writes again, wherever in the
//! log the write has ended.
//!
//! A primary whose last record fills a page says that it is behind the next page's header, where no
//! standby comes before the next record.
//!
//! Owns: where a record may end. Never: leaves that to chance, or writes anything after it.

mod support;

use support::client::Client;
use support::{Gateway, cluster_with};
use tidegate::demo::LocalCluster;

/// As initdb makes them.
const PAGE: u64 = 8192;
const SEGMENT: u64 = 16 << 20;

/// What every page begins with, and the first one of a segment.
const HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

/// Records begin and end at multiples of this.
const ALIGNMENT: usize = 8;

/// What a record of `pg_logical_emit_message` has beside a message of so many bytes: more than fit into
/// its short form.
const OVERHEAD: u64 = 54;
const MESSAGE_MIN: u64 = 256;

/// How often in a row something else may be written meanwhile: every 15 s a primary logs which
/// transactions run.
const TRIES_MAX: usize = 20;

/// Whatever can be told to leave the log alone, is. What is no commit is flushed at once: the proxy
/// would soon write something to have it flushed.
const QUIET: &[(&str, &str)] = &[
    ("autovacuum", "off"),
    ("checkpoint_timeout", "1d"),
    ("max_wal_size", "16GB"),
    ("wal_writer_delay", "1ms"),
];

/// `here` says which node has answered; a view, since a statement that calls this function itself would
/// not be one that is proven to read the same everywhere.
const SCHEMA: &str = "CREATE VIEW here AS SELECT current_setting('port')::int AS port";

#[test]
fn a_session_comes_to_a_replica_wherever_its_write_has_ended() {
    let cluster = cluster_with(1, QUIET);
    cluster.primary().sql("app", SCHEMA).expect("schema");
    cluster.wait_caught_up().expect("caught up");
    // A read waits for a replica, for longer than a slow machine takes.
    let gateway = |poll_interval: &str| {
        Gateway::start_with(&cluster, |config| {
            let waits = "on_no_replica = \"wait\"\nwait_timeout = \"60s\"";
            format!("{config}\n[consistency]\n{waits}\npoll_interval = \"{poll_interval}\"\n")
        })
    };
    // What is still not flushed a poll later the proxy has flushed.
    let frequent = gateway("20ms");
    let log = Log::of(&cluster, &frequent);
    let (mut ends, mut ahead) = (0, Vec::new());
    let mut check = |offset, written: Written| {
        ends += 1;
        if written.inserted != written.replayed {
            ahead.push((offset, written.inserted - written.replayed));
        }
    };

    // Wherever in a page the next record can begin.
    for offset in (HEADER..PAGE).step_by(ALIGNMENT) {
        let end = |from| page_end(from, offset);
        check(offset, log.write_up_to(end));
    }
    drop((log, frequent));
    // Only what has begun in the segment before ends so near to the beginning. To flush so much may take a slow
    // disk longer than the proxy is patient for, if it asks often.
    let patient = gateway("1s");
    let log = Log::of(&cluster, &patient);
    for offset in (LONG_HEADER..2 * LONG_HEADER + OVERHEAD).step_by(ALIGNMENT) {
        let end = |from| next_segment(from) + offset;
        check(offset, log.write_up_to(end));
    }
    check(LONG_HEADER, log.switch());

    println!(
        "{ends} ends of a record; the primary was ahead of its replica after these: {ahead:?}"
    );
    let headers = [HEADER, LONG_HEADER, LONG_HEADER].map(|header| (header, header));
    assert_eq!(ahead, headers, "where a page, or a segment, is full");
}

/// The log of a primary to which nobody writes but one session, through the proxy.
struct Log {
    session: Client,
    primary: Client,
    replica: Client,
    replica_port: String,
}

/// Where a write has ended, by what the primary says, and by what a replica says that has it.
struct Written {
    inserted: u64,
    replayed: u64,
}

impl Log {
    fn of(cluster: &LocalCluster, gateway: &Gateway) -> Log {
        let replica = cluster.node(1);
        Log {
            session: Client::open(gateway, "postgres", ""),
            primary: Client::direct(&cluster.primary()),
            replica: Client::direct(&replica),
            replica_port: replica.port().to_string(),
        }
    }

    /// One record, up to where `end` says, given the position that it begins at.
    fn write_up_to(&self, end: impl Fn(u64) -> u64) -> Written {
        let write = |from| {
            let len = record_bytes(end(from)) - record_bytes(from) - OVERHEAD;
            format!("SELECT pg_logical_emit_message(false, '', repeat('x', {len}))")
        };
        self.write(write, &end)
    }

    /// The rest of the segment is left empty.
    fn switch(&self) -> Written {
        let write = |_| "SELECT pg_switch_wal()".to_owned();
        self.write(write, |from| next_segment(from) + LONG_HEADER)
    }

    /// Writes, and has the session read: a replica answers, and the log still ends where the write has.
    fn write(&self, sql: impl Fn(u64) -> String, end: impl Fn(u64) -> u64) -> Written {
        let mut last = 0;
        for _ in 0..TRIES_MAX {
            let from = self.inserted();
            let end = end(from);
            self.session.rows(&sql(from));
            let is_where_meant = self.inserted() == end;
            let port = self.session.one("SELECT port FROM here");
            assert_eq!(port, self.replica_port, "after a write up to {end:#x}");
            let replayed = number(&self.replica.one(REPLAYED));
            if is_where_meant && self.inserted() == end {
                return Written {
                    inserted: end,
                    replayed,
                };
            }
            last = end;
        }
        panic!(
            "no read comes to the replica unless more is written, as after a write up to {last:#x}"
        );
    }

    fn inserted(&self) -> u64 {
        number(&self.primary.one(INSERTED))
    }
}

const INSERTED: &str = "SELECT pg_current_wal_insert_lsn() - '0/0'";
const REPLAYED: &str = "SELECT pg_last_wal_replay_lsn() - '0/0'";

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

/// The first position with this offset in its page that a record from there can end at; not in the first
/// page of a segment, which has another header.
fn page_end(from: u64, offset: u64) -> u64 {
    let mut end = from / PAGE * PAGE + offset;
    while end < from
        || end % SEGMENT < PAGE
        || record_bytes(end) - record_bytes(from) < OVERHEAD + MESSAGE_MIN
    {
        end += PAGE;
    }
    end
}

fn next_segment(from: u64) -> u64 {
    (from / SEGMENT + 1) * SEGMENT
}

/// How many bytes of records there are before an insert position: all but the headers.
fn record_bytes(position: u64) -> u64 {
    let (pages, segments) = (position / PAGE + 1, position / SEGMENT + 1);
    position - pages * HEADER - segments * (LONG_HEADER - HEADER)
}
