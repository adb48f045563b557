//! A replica of PostgreSQL 19 or newer is not asked again and again whether it has replayed what somebody
//! waits for: it is asked once, and answers when it has.

mod support;

use std::path::PathBuf;
use std::thread;

use support::client::Client;
use support::{Gateway, wait_for};
use tidegate::demo::{LocalCluster, LocalNode, Options, Postgres, StopMode};

const SCHEMA: &str = "
    CREATE TABLE t (v int NOT NULL);
    INSERT INTO t VALUES (0);
    CREATE VIEW here AS SELECT current_setting('port')::int AS port;
    GRANT SELECT, UPDATE ON t, here TO app;";

/// A cluster of servers that have WAIT FOR LSN, if there are any.
fn start(replicas: usize) -> Option<LocalCluster> {
    let unpacked = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".tools/newest/bin");
    let usual = Postgres::find().map(|postgres| postgres.bindir().to_owned());
    let bindirs = usual.into_iter().chain([unpacked]);
    let of_19 = |bindir: &PathBuf| Postgres::of(bindir).is_ok_and(|p| p.major_version() >= 19);
    let Some(bindir) = bindirs.into_iter().find(of_19) else {
        eprintln!("SKIPPED: there is no PostgreSQL 19; scripts/setup --newest gets one");
        return None;
    };
    let options = Options {
        replicas,
        bindir: Some(bindir),
        ..Options::default()
    };
    let cluster = LocalCluster::start(options).expect("cluster");
    cluster.primary().sql("app", SCHEMA).expect("schema");
    cluster.wait_caught_up().expect("caught up");
    Some(cluster)
}

/// Reads wait for a replica for as long as a slow machine may take.
fn gateway(cluster: &LocalCluster) -> Gateway {
    const WAITS: &str = "on_no_replica = \"wait\"\nwait_timeout = \"10m\"";
    Gateway::start_with(cluster, |config| {
        format!("{config}\n[consistency]\n{WAITS}\n[lag]\nmax = \"10m\"\n")
    })
}

fn read(client: &Client) -> (String, String) {
    let rows = client.rows("SELECT v, port FROM t, here");
    (rows[0][0].clone(), rows[0][1].clone())
}

fn is_waited_for(replica: &LocalNode) -> bool {
    const WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' \
         AND application_name = 'tidegate monitor' AND query LIKE 'WAIT FOR LSN %'";
    replica.sql("app", WAITS).expect("activity") == "1"
}

#[test]
fn a_replica_says_when_it_has_replayed() {
    let Some(cluster) = start(1) else { return };
    let gateway = gateway(&cluster);
    let replica = cluster.replicas().remove(0);
    let client = Client::open(&gateway, "app", "");
    wait_for("reads on the replica", || {
        read(&client).1 == replica.port().to_string()
    });
    for round in 1..=3 {
        replica.pause_replay().expect("paused");
        client.rows(&format!("UPDATE t SET v = {round}"));
        thread::scope(|scope| {
            let shown = scope.spawn(|| read(&client));
            wait_for("the replica to be waited for", || is_waited_for(&replica));
            assert!(!shown.is_finished());
            replica.resume_replay().expect("resumed");
            let expected = (round.to_string(), replica.port().to_string());
            assert_eq!(shown.join().expect("read"), expected);
        });
    }
}

#[test]
fn a_standby_is_promoted_while_it_is_waited_for() {
    let Some(cluster) = start(2) else { return };
    let gateway = gateway(&cluster);
    let (old, replicas) = (cluster.primary(), cluster.replicas());
    let [heir, other] = &replicas[..] else {
        panic!("{replicas:?}")
    };
    let client = Client::open(&gateway, "app", "");
    for replica in &replicas {
        replica.pause_replay().expect("paused");
    }
    client.rows("UPDATE t SET v = 1");
    thread::scope(|scope| {
        let shown = scope.spawn(|| read(&client));
        wait_for("the heir to be waited for", || is_waited_for(heir));
        old.stop(StopMode::Immediate).expect("stopped");
        for replica in &replicas {
            replica.resume_replay().expect("resumed");
        }
        heir.promote().expect("promoted");
        other.follow(heir).expect("follows");
        assert_eq!(shown.join().expect("read").0, "1");
    });
    client.rows("UPDATE t SET v = 2");
    assert_eq!(read(&client).0, "2");
}
