//! Owns: the keys of clusters and their nodes, and what must hold among them. Never: looks up the name of a node's host.

use super::super::section::{Keys, Section, Value};
use super::super::{Cluster, Monitor, Node, Wish};
use super::{Result, WISH, first_repeated, tls, wish};

const WEIGHT_MAX: i64 = 1000;

pub(super) const CLUSTER: Keys = &[
    "name",
    "databases",
    "monitor",
    "consistency",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "node",
];
pub(super) const MONITOR: Keys = &["user", "password", "database"];
pub(super) const NODE: Keys = &["name", "address", "zone", "weight"];

pub(super) fn clusters(root: &Section<'_>) -> Result<Vec<Cluster>> {
    let mut clusters: Vec<Cluster> = Vec::new();
    for section in root.sections("cluster", CLUSTER)? {
        let cluster = cluster(&section)?;
        for other in &clusters {
            if other.name == cluster.name {
                let message = format!(r#"cluster "{}" is listed twice"#, cluster.name);
                return Err(section.fault_at("name", message));
            }
            if let Some(both) = cluster
                .databases
                .iter()
                .find(|d| other.databases.contains(d))
            {
                let message = format!(
                    r#"database "{both}" is served by cluster "{}" and by cluster "{}""#,
                    other.name, cluster.name
                );
                return Err(section.fault_at("databases", message));
            }
        }
        clusters.push(cluster);
    }
    match clusters.is_empty() {
        true => Err(root.fault("no cluster: add a [[cluster]] with at least one [[cluster.node]]")),
        false => Ok(clusters),
    }
}

fn cluster(section: &Section<'_>) -> Result<Cluster> {
    let name = section.required("name", Value::string)?;
    let databases = section.get("databases", vec!["*".to_owned()], Value::names)?;
    if databases.is_empty() {
        let message = r#""cluster.databases" must name a database, or "*" for every one"#;
        return Err(section.fault_at("databases", message));
    }
    if let Some(twice) = first_repeated(&databases) {
        return Err(section.fault_at(
            "databases",
            format!(r#"database "{twice}" is listed twice"#),
        ));
    }
    let monitor = section.optional("monitor", |value| monitor(&value.section(MONITOR)?))?;
    let mut nodes: Vec<Node> = Vec::new();
    for section in section.sections("node", NODE)? {
        let node = node(&section)?;
        for other in &nodes {
            if (&other.host, other.port) == (&node.host, node.port) {
                let message = format!(r#"node "{}" is listed twice"#, node.address());
                return Err(section.fault_at("address", message));
            }
            if other.name == node.name {
                let message = format!(r#"two nodes are named "{}""#, node.name);
                return Err(section.fault_at("name", message));
            }
        }
        nodes.push(node);
    }
    if nodes.is_empty() {
        let message = format!(r#"cluster "{name}" has no node: add a [[cluster.node]]"#);
        return Err(section.fault(message));
    }
    Ok(Cluster {
        name,
        databases,
        monitor,
        consistency: section.get("consistency", Wish::NONE, |value| {
            wish(&value.section(WISH)?)
        })?,
        tls: tls::nodes(section)?,
        nodes,
    })
}

fn monitor(section: &Section<'_>) -> Result<Monitor> {
    Ok(Monitor {
        user: section.required("user", Value::string)?,
        password: section.optional("password", Value::secret)?,
        database: section.get("database", "postgres".to_owned(), Value::string)?,
    })
}

fn node(section: &Section<'_>) -> Result<Node> {
    let (host, port) = section.required("address", Value::host_and_port)?;
    let zone = section.optional("zone", Value::string)?;
    let weight = section.get("weight", 1, |value| value.integer(1..=WEIGHT_MAX))?;
    let mut node = Node {
        name: String::new(),
        host,
        port,
        zone,
        weight,
    };
    node.name = section.get("name", node.address(), Value::string)?;
    Ok(node)
}
