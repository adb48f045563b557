//! A proxy follows its cluster to another system, and no node of another one is taken for a part of it.

mod support;

use std::fs;

use support::client::Client;
use support::{Gateway, cluster_of, wait_for};
use tidegate::demo::{LocalCluster, LocalNode, StopMode};

const TABLE: &str =
    "CREATE TABLE t (v int); CREATE VIEW here AS SELECT current_setting('port') AS port;
    GRANT SELECT, INSERT ON t, here TO app;";

const WRITE: &str = "INSERT INTO t VALUES (1) RETURNING current_setting('port')";

fn start(replicas: usize) -> LocalCluster {
    cluster_of(replicas, &[], TABLE)
}

/// Nobody waits for long.
fn impatient(config: String) -> String {
    format!("{config}\n[failover]\nhold = \"200ms\"\n")
}

/// Makes a node anew, as pg_upgrade does: with the same settings and roles, of another system.
fn make_anew(cluster: &LocalCluster, node: &LocalNode) {
    node.stop(StopMode::Fast).expect("stopped");
    let files = ["postgresql.conf", "pg_hba.conf"].map(|name| node.data_dir().join(name));
    let kept = files.clone().map(|file| fs::read(file).expect("read"));
    fs::remove_dir_all(node.data_dir()).expect("removed");
    let mut initdb = cluster.postgres().command("initdb");
    initdb.arg("-D").arg(node.data_dir());
    initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8"]);
    initdb.args(["--locale=C", "--no-sync"]);
    let made = initdb.output().expect("initdb runs");
    assert!(made.status.success(), "{made:?}");
    for (file, text) in files.iter().zip(kept) {
        fs::write(file, text).expect("written");
    }
    node.start().expect("started");
    let roles = "ALTER ROLE postgres PASSWORD 'postgres';
        CREATE ROLE app LOGIN CREATEDB PASSWORD 'app';
        CREATE ROLE tidegate LOGIN PASSWORD 'tidegate' IN ROLE pg_monitor;
        CREATE DATABASE app OWNER app;";
    node.sql("postgres", roles).expect("roles");
    node.sql("app", TABLE).expect("a table");
}

fn wait_for_writes(client: &Client, node: &LocalNode) {
    wait_for("writes", || {
        client.row_or_error(WRITE) == Ok(vec![node.port().to_string()])
    });
}

#[test]
fn a_cluster_that_is_made_anew_in_its_place_is_written_to() {
    let cluster = start(1);
    let (primary, replica) = (cluster.node(0), cluster.node(1));
    let gateway = Gateway::start_with(&cluster, impatient);
    let client = Client::open(&gateway, "app", "");
    client.rows(WRITE);
    let token = client.one("SHOW tidegate.token");
    replica.stop(StopMode::Fast).expect("stopped");
    make_anew(&cluster, &primary);
    // The replica may be back as it was.
    wait_for("the other system to be told", || {
        let error = client.error(WRITE);
        assert_eq!(error.code().code(), "57P03", "{error}");
        error
            .message()
            .contains(&format!("{} of ", replica.address()))
    });
    assert_eq!(
        primary.sql("app", "SELECT count(*) FROM t").expect("read"),
        "0"
    );
    replica.rejoin(&primary).expect("a replica of the new one");
    wait_for_writes(&client, &primary);
    let refused = client.error(&format!("SET tidegate.token = '{token}'"));
    assert_eq!(refused.code().code(), "22023", "{refused}");
    assert_ne!(client.one("SHOW tidegate.token"), token);
    wait_for("reads on the replica", || {
        client.one("SELECT port FROM here") == replica.port().to_string()
    });
}

#[test]
fn a_node_of_another_system_gets_nothing_while_the_right_ones_are_away() {
    let (cluster, other) = (start(0), start(0));
    let (primary, stranger) = (cluster.primary(), other.primary());
    let gateway = Gateway::start_with(&cluster, impatient);
    let config = fs::read_to_string(&gateway.config_path).expect("config");
    let first = format!(
        "[[cluster.node]]\naddress = \"{}\"\n\n[[cluster.node]]",
        stranger.address()
    );
    gateway.reload(&config.replacen("[[cluster.node]]", &first, 1));
    wait_for("the stranger to be told", || {
        gateway.log().contains("node gets nothing")
    });
    let client = Client::open(&gateway, "app", "");
    wait_for_writes(&client, &primary);
    primary.stop(StopMode::Immediate).expect("stopped");
    wait_for("the systems to be told", || {
        let error = client.error(WRITE);
        error
            .message()
            .contains(&format!("{} of ", stranger.address()))
    });
    assert_eq!(
        stranger.sql("app", "SELECT count(*) FROM t").expect("read"),
        "0"
    );
    primary.start().expect("started");
    wait_for_writes(&client, &primary);
}

#[test]
fn a_cluster_whose_nodes_are_all_replaced_is_written_to() {
    let (blue, green) = (start(0), start(1));
    let gateway = Gateway::start(&blue);
    let client = Client::open(&gateway, "app", "");
    wait_for_writes(&client, &blue.primary());
    gateway.reload(&green.config_for(gateway.port, gateway.http_port));
    assert_eq!(client.one(WRITE), green.primary().port().to_string());
    wait_for("reads on a replica", || {
        client.one("SELECT port FROM here") == green.node(1).port().to_string()
    });
}
