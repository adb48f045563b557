//! Owns: all clusters of a configuration: which one serves a database, and how they come and go. Never: knows what goes
//! on within one.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;

use super::causal::store;
use super::pool::Pool;
use super::{Cluster, retire};
use crate::config::Config;
use crate::net::tls::Material;
use crate::telemetry::Scrape;

/// All clusters of the configuration.
pub struct Clusters {
    list: ArcSwap<Vec<Arc<Cluster>>>,
    probes: Handle,
}

impl Clusters {
    /// Starts watching every node, on the runtime `probes`. To be called within the runtime that is to ask
    /// for catalogs and roles, which may take it a while.
    pub fn start(config: &Arc<Config>, tls: &Material, probes: &Handle) -> Clusters {
        let list = config
            .clusters
            .iter()
            .map(|cluster| Cluster::new(config, tls, cluster, probes))
            .collect();
        Clusters {
            probes: probes.clone(),
            list: ArcSwap::from_pointee(list),
        }
    }

    pub fn all(&self) -> Arc<Vec<Arc<Cluster>>> {
        self.list.load_full()
    }

    /// The cluster that serves `database`: the one that names it, else the one that takes all.
    pub fn serving(&self, database: &str) -> Option<Arc<Cluster>> {
        let list = self.list.load();
        let names = |wanted: &str| {
            list.iter().find(|cluster| {
                let topology = cluster.topology();
                let config = topology
                    .config
                    .clusters
                    .iter()
                    .find(|c| c.name == cluster.name);
                config.is_some_and(|config| config.databases.iter().any(|name| name == wanted))
            })
        };
        names(database).or_else(|| names("*")).cloned()
    }

    /// The pools of all nodes.
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        let mut pools = Vec::new();
        for cluster in self.list.load().iter() {
            pools.extend(cluster.topology().pools().map(|pool| pool.clone()));
        }
        pools
    }

    /// Shows the metrics of all that the clusters have now.
    pub fn show(&self, scrape: &mut Scrape) {
        for cluster in self.list.load().iter() {
            cluster.show(scrape);
        }
    }

    /// The cluster, if there is but one.
    pub fn only(&self) -> Option<Arc<Cluster>> {
        let list = self.list.load();
        list.first().filter(|_| list.len() == 1).cloned()
    }

    /// Applies a changed configuration.
    pub fn apply(&self, config: &Arc<Config>, tls: &Material) {
        let old = self.list.load_full();
        let mut list = Vec::with_capacity(config.clusters.len());
        for wanted in &config.clusters {
            match old.iter().find(|cluster| cluster.name == wanted.name) {
                Some(known) => {
                    known.apply(config, &tls.for_cluster(&wanted.name), wanted);
                    list.push(known.clone());
                }
                None => list.push(Cluster::new(config, tls, wanted, &self.probes)),
            }
        }
        let gone = old
            .iter()
            .filter(|c| !config.clusters.iter().any(|w| w.name == c.name));
        for cluster in gone {
            tracing::info!(cluster = %cluster.name, "cluster removed");
            cluster.topology().nodes.iter().for_each(retire);
            if let Some(store) = cluster.store.swap(None) {
                store.close();
            }
            cluster.changed.notify_waiters();
        }
        self.list.store(Arc::new(list));
    }

    /// Waits until other proxies have been told what they are to be told, within one limit for all clusters.
    pub async fn tell_others(&self) {
        let until = tokio::time::Instant::now() + store::PATIENCE;
        for cluster in self.all().iter() {
            let store = cluster.store.load_full();
            if let Some(store) = store
                && !store.has_told_all(until).await
            {
                tracing::warn!(cluster = %cluster.name, "other proxies have not been told of the last writes under causal keys");
            }
        }
    }

    /// What is done every second.
    pub fn tend(&self) {
        for cluster in self.list.load().iter() {
            cluster.tend();
        }
    }
}
