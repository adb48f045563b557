//! Who is notified of something finds it, and knows its own notifications.

mod support;

use support::client::Client;
use support::raw::{Raw, VERSION_3_0};
use support::{Gateway, cluster_of, wait_for};
use tidegate::demo::LocalCluster;
use tidegate::wire::encode;
use tidegate::wire::frame::body;
use tidegate::wire::message;

const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL);
    INSERT INTO t VALUES (1, 0);
    CREATE VIEW here AS SELECT current_setting('port')::int AS port;
    GRANT SELECT, UPDATE ON t, here TO app;";

fn start() -> (LocalCluster, Gateway) {
    let cluster = cluster_of(1, &[], SCHEMA);
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n[lag]\nmax = \"10m\"\n")
    });
    (cluster, gateway)
}

/// A session that listens.
struct Listener {
    raw: Raw,
    pid: i32,
}

impl Listener {
    fn start(gateway: &Gateway, more: &[(&str, &str)]) -> Listener {
        let mut raw = Raw::start(gateway.port, VERSION_3_0, more);
        let (pid, _) = raw.log_in();
        let mut listener = Listener { raw, pid };
        listener.ask("LISTEN jobs");
        listener
    }

    /// The last row that this shows, and who has notified up to then.
    fn ask(&mut self, sql: &str) -> (Vec<String>, Vec<i32>) {
        self.raw.send(|out| encode::query(out, sql.as_bytes()));
        let (mut row, mut notified) = (Vec::new(), Vec::new());
        loop {
            let frame = self.raw.next().expect("an answer");
            match frame[0] {
                b'D' => {
                    let values = message::data_row(body(&frame)).expect("a row");
                    let text =
                        |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or(b"")).into();
                    row = values.into_iter().map(text).collect();
                }
                b'A' => notified.push(notifier(&frame)),
                b'E' => panic!("{sql}: {}", support::raw::error(&frame)),
                b'Z' => return (row, notified),
                _ => {}
            }
        }
    }

    fn notified(&mut self) -> i32 {
        notifier(&self.raw.until(b'A'))
    }

    /// The value that is read, and whether a replica shows it.
    fn read(&mut self, cluster: &LocalCluster) -> (String, bool) {
        let (row, _) = self.ask("SELECT v, port FROM t, here WHERE id = 1");
        let [value, port] = &row[..] else {
            panic!("{row:?}");
        };
        (value.clone(), *port != cluster.primary().port().to_string())
    }
}

fn notifier(frame: &[u8]) -> i32 {
    let (pid, _) = body(frame).split_first_chunk().expect("a number");
    i32::from_be_bytes(*pid)
}

#[test]
fn who_is_notified_of_a_write_reads_it() {
    let (cluster, gateway) = start();
    let replica = cluster.node(1);
    let keyed = [("tidegate.causal_key", "jobs")];
    let mut listener = Listener::start(&gateway, &keyed);
    let mut sibling = Listener::start(&gateway, &keyed);
    sibling.ask("UNLISTEN jobs");
    let writer = Client::open(&gateway, "app", "");
    for (v, in_batch) in [("1", false), ("2", true)] {
        for session in [&mut listener, &mut sibling] {
            wait_for("a read on the replica", || session.read(&cluster).1);
        }
        replica.pause_replay().expect("paused");
        if in_batch {
            listener.ask("BEGIN");
        }
        writer.rows(&format!("BEGIN; UPDATE t SET v = {v}; NOTIFY jobs; COMMIT"));
        let (_, notified) = match in_batch {
            true => listener.ask("COMMIT"),
            false => Default::default(),
        };
        if notified.is_empty() {
            listener.notified();
        }
        assert_eq!(listener.read(&cluster), (v.to_owned(), false));
        assert_eq!(sibling.read(&cluster).0, v, "of the same key");
        replica.resume_replay().expect("resumed");
    }
}

#[test]
fn who_notifies_itself_knows_itself() {
    let (_cluster, gateway) = start();
    let mut listener = Listener::start(&gateway, &[]);
    let (_, notified) = listener.ask("NOTIFY jobs, 'one'; NOTIFY jobs, 'two'");
    assert_eq!(notified, [listener.pid; 2]);
    Client::open(&gateway, "app", "").rows("NOTIFY jobs");
    assert_ne!(listener.notified(), listener.pid);
}
