//! Owns: the metrics of clusters, nodes and pools, as they are now. Never: decides anything.

use super::Cluster;
use super::node::{Node, Role};
use super::pool::Pool;
use crate::telemetry::{Count, Level, Scrape};

/// What of a node is noted for its metrics alone.
#[derive(Default)]
pub struct NodeMetrics {
    pub lsn: Level,
    pub replay_lag_bytes: Level,
    pub replay_lag_seconds: Level,
    pub samples: Count,
}

impl Cluster {
    /// Shows the metrics of all that it has.
    pub fn show(&self, scrape: &mut Scrape) {
        if let Some(store) = &*self.store.load() {
            let (name, up) = ("tidegate_causal_store_up", u8::from(store.is_up()));
            let help = "Whether the store of causal keys (consistency.redis) can be asked.";
            scrape.gauge(name, help, &[("cluster", &self.name)], up);
        }
        for node in &self.topology().nodes {
            node.show(scrape);
            for pool in &node.pools {
                pool.show(scrape);
            }
        }
        self.catalogs.show(&self.name, scrape);
    }
}

impl Node {
    /// A node that is down has no role.
    fn show(&self, scrape: &mut Scrape) {
        let labels = [("cluster", &*self.cluster), ("node", &*self.name)];
        let mut gauge = |name, help, value: f64| scrape.gauge(name, help, &labels, value);
        let up = self.is_up();
        let role = match self.role() {
            _ if !up => 0.0,
            Role::Unknown => 0.0,
            Role::Primary => 1.0,
            Role::Replica => 2.0,
        };
        let metrics = &self.metrics;
        let help = "Whether the node answers its probes.";
        gauge("tidegate_up", help, f64::from(u8::from(up)));
        let help = "The node's observed role: 0 unknown, 1 primary, 2 replica.";
        gauge("tidegate_role", help, role);
        let help = "Insert position of a primary, replay position of a replica.";
        gauge("tidegate_lsn", help, metrics.lsn.get());
        let (help, bytes) = (
            "Primary's insert minus node's replay position.",
            metrics.replay_lag_bytes.get(),
        );
        gauge("tidegate_replay_lag_bytes", help, bytes);
        let (help, seconds) = (
            "How long ago the primary passed the node's replay position.",
            metrics.replay_lag_seconds.get(),
        );
        gauge("tidegate_replay_lag_seconds", help, seconds);
        let help = "Age of the newest sample of the node's position.";
        let age = self.sample_age().map_or(f64::NAN, |age| age.as_secs_f64());
        gauge("tidegate_sample_age_seconds", help, age);
        let help = "Servers of the node that are serving a client.";
        gauge("tidegate_in_flight", help, f64::from(self.in_flight()));
        let help = "How often the node was asked for its position.";
        scrape.counter(
            "tidegate_samples_total",
            help,
            &labels,
            metrics.samples.get(),
        );
    }
}

impl Pool {
    fn show(&self, scrape: &mut Scrape) {
        let (node, key, census) = (self.node(), self.key(), self.census());
        let labels = [
            ("cluster", &*node.cluster),
            ("node", &*node.name),
            ("database", &*key.database),
            ("user", &*key.user),
        ];
        for (state, count) in [("idle", census.idle), ("active", census.active)] {
            let labels = [&labels[..], &[("state", state)]].concat();
            let (name, help) = ("tidegate_pool_servers", "Servers of a pool, by state.");
            scrape.gauge(name, help, &labels, count as f64);
        }
        let (name, help) = (
            "tidegate_pool_waiting",
            "Clients that wait for a server of a pool.",
        );
        scrape.gauge(name, help, &labels, census.waiting as f64);
    }
}
