//! Nobody waits for an answer of a node that is known to be gone: its host is lost, or its server stands still.

mod support;

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::thread;

use support::client::Client;
use support::{Gateway, cluster_of, wait_for};
use tidegate::demo::{LocalCluster, LocalNode};

const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL);
    INSERT INTO t VALUES (1, 0);
    CREATE VIEW here AS SELECT current_setting('port')::int AS port;
    GRANT SELECT, UPDATE ON t, here TO app;";

const WRITE: &str = "UPDATE t SET v = v + 1 WHERE id = 1 RETURNING current_setting('port')";

fn start(replicas: usize) -> LocalCluster {
    cluster_of(replicas, &[], SCHEMA)
}

/// A proxy that waits for `hold` where there is no primary.
fn with_hold(cluster: &LocalCluster, hold: &str) -> Gateway {
    Gateway::start_with(cluster, |config| {
        format!("{config}\n[failover]\nhold = \"{hold}\"\n[health]\ninterval = \"1s\"\n")
    })
}

fn at_level(gateway: &Gateway, level: &str) -> Client {
    let level = format!("options='-c tidegate.consistency={level}'");
    Client::open(gateway, "app", &level)
}

/// Waits until the node runs a statement that has this in it.
fn wait_to_run(node: &LocalNode, words: &str) {
    let runs = format!(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE state = 'active' \
         AND usename = 'app' AND query LIKE '%{words}%')"
    );
    wait_for("the statement to run", || {
        node.sql("postgres", &runs).expect("activity") == "t"
    });
}

/// A read that tells where it has run, and does not end on this node.
fn sleeping_read(node: &LocalNode) -> String {
    let port = node.port();
    format!("SELECT port, pg_sleep(CASE port WHEN {port} THEN 3600 ELSE 0 END) IS NULL FROM here")
}

#[test]
fn a_read_on_a_replica_that_stands_still_is_answered_by_another_node() {
    let cluster = start(1);
    let (primary, replica) = (cluster.node(0), cluster.node(1));
    let gateway = with_hold(&cluster, "10m");
    let client = at_level(&gateway, "eventual");
    wait_for("reads to go to the replica", || {
        client.one("SELECT port FROM here") == replica.port().to_string()
    });
    thread::scope(|scope| {
        let read = scope.spawn(|| client.one(&sleeping_read(&replica)));
        wait_to_run(&replica, "pg_sleep");
        replica.freeze();
        assert_eq!(read.join().expect("an answer"), primary.port().to_string());
    });
    assert_eq!(
        client.one("SELECT port FROM here"),
        primary.port().to_string()
    );
    let labels = "reason=\"connection_lost\"";
    assert_eq!(gateway.metric("tidegate_retries_total", labels), 1.0);
}

/// A row of the table is locked on the node itself, so that whatever writes it waits.
fn lock(node: &LocalNode) -> Client {
    let holder = Client::direct(node);
    holder.rows("BEGIN");
    holder.rows("SELECT FROM t FOR UPDATE");
    holder
}

#[test]
fn what_runs_on_a_primary_whose_place_is_taken_ends() {
    let cluster = start(1);
    let (old, new) = (cluster.node(0), cluster.node(1));
    // Unless another one is found nothing ends.
    let gateway = with_hold(&cluster, "10m");
    let [alone, within] = ["", ""].map(|more| Client::open(&gateway, "app", more));
    let reader = at_level(&gateway, "primary");
    within.rows("BEGIN");
    let _holder = lock(&old);
    thread::scope(|scope| {
        let written = scope.spawn(|| alone.error(WRITE));
        let within = scope.spawn(|| within.error("UPDATE t SET v = v + 7"));
        let read = scope.spawn(|| reader.one(&sleeping_read(&old)));
        wait_to_run(&old, "pg_sleep");
        for words in ["v + 7", "v + 1"] {
            let runs = format!(
                "SELECT EXISTS (SELECT FROM pg_stat_activity \
                 WHERE wait_event_type = 'Lock' AND query LIKE '%{words}%')"
            );
            wait_for("it to wait for the lock", || {
                old.sql("postgres", &runs).expect("activity") == "t"
            });
        }
        old.freeze();
        new.promote().expect("promoted");
        assert_eq!(written.join().expect("an error").code().code(), "08007");
        assert_eq!(within.join().expect("an error").code().code(), "08006");
        assert_eq!(read.join().expect("an answer"), new.port().to_string());
    });
    assert_eq!(alone.one(WRITE), new.port().to_string());
    assert_eq!(new.sql("app", "SELECT v FROM t").expect("read"), "1");
}

#[test]
fn what_runs_on_a_primary_that_stands_still_ends_with_the_hold() {
    let cluster = start(0);
    let node = cluster.node(0);
    let gateway = with_hold(&cluster, "1s");
    let client = Client::open(&gateway, "app", "");
    let holder = lock(&node);
    thread::scope(|scope| {
        let written = scope.spawn(|| client.error(WRITE));
        wait_to_run(&node, "v + 1");
        node.freeze();
        assert_eq!(written.join().expect("an error").code().code(), "08007");
    });
    node.thaw();
    holder.rows("ROLLBACK");
    wait_for("the primary to be known again", || {
        gateway.metric("tidegate_up", "") == 1.0
    });
    assert_eq!(client.one(WRITE), node.port().to_string());
}

/// A name of a server, that can be made to lead to another one for who comes then.
struct Name {
    address: String,
    target: Arc<AtomicU16>,
    /// How many have come since.
    came: Arc<AtomicUsize>,
}

impl Name {
    fn of(node: &LocalNode) -> Name {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let name = Name {
            address: listener.local_addr().expect("an address").to_string(),
            target: Arc::new(AtomicU16::new(node.port())),
            came: Arc::default(),
        };
        let (target, came) = (name.target.clone(), name.came.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                came.fetch_add(1, Ordering::SeqCst);
                let _ = pass(client, target.load(Ordering::SeqCst));
            }
        });
        name
    }

    fn lead_to(&self, node: &LocalNode) {
        self.came.store(0, Ordering::SeqCst);
        self.target.store(node.port(), Ordering::SeqCst);
    }

    /// Who comes now is led nowhere; who is there stays.
    fn lead_nowhere(&self) {
        self.came.store(0, Ordering::SeqCst);
        self.target.store(0, Ordering::SeqCst);
    }
}

/// Passes one connection on, both ways, for as long as it is there.
fn pass(client: TcpStream, port: u16) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", port))?;
    let ways = [(client.try_clone()?, server.try_clone()?), (server, client)];
    for (mut from, mut to) in ways {
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

/// A proxy that knows the node of this name alone.
fn by_name(cluster: &LocalCluster, name: &Name, hold: &str) -> Gateway {
    Gateway::start_on(1, |port, http_port| {
        let config = cluster.config_for(port, http_port);
        let (config, _) = config.split_once("[[cluster.node]]").expect("nodes");
        let address = &name.address;
        format!(
            "{config}[[cluster.node]]\naddress = \"{address}\"\n[failover]\nhold = \"{hold}\"\n"
        )
    })
}

#[test]
fn a_node_that_answers_is_not_down_for_connections_that_fail() {
    let cluster = start(0);
    let node = cluster.node(0);
    let name = Name::of(&node);
    let gateway = by_name(&cluster, &name, "30s");
    let [within, other] = ["", ""].map(|more| Client::open(&gateway, "app", more));
    within.rows("BEGIN");
    within.rows("SELECT 1");
    name.lead_nowhere();
    thread::scope(|scope| {
        let written = scope.spawn(|| other.one(WRITE));
        wait_for("many connections to fail", || {
            name.came.load(Ordering::SeqCst) > 60
        });
        // It has the server of the other one as soon as that is free.
        within.rows("COMMIT");
        assert_eq!(written.join().expect("an answer"), node.port().to_string());
    });
    assert!(!gateway.log().contains("node is down"));
}

#[test]
fn a_name_that_leads_to_another_server_is_followed() {
    let cluster = start(1);
    let (old, new) = (cluster.node(0), cluster.node(1));
    let name = Name::of(&old);
    let gateway = by_name(&cluster, &name, "10m");
    let [client, within] = ["", ""].map(|more| Client::open(&gateway, "app", more));
    within.rows("BEGIN");
    within.rows("UPDATE t SET v = 7");
    within.rows("ROLLBACK AND CHAIN");
    client.rows("SELECT 1");
    new.promote().expect("promoted");
    name.lead_to(&new);
    let end = "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity \
        WHERE usename = 'app' AND state = 'idle'";
    old.sql("postgres", end).expect("ended");
    assert_eq!(client.one(WRITE), new.port().to_string());
    // Its server is still there, and would take it.
    let error = within.error("UPDATE t SET v = 8");
    assert_eq!(error.code().code(), "57P01");
}
