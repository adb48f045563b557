//! Owns: what servers report to those who log in, remembered for a short while. Never: keeps a login
//! waiting where some node could serve it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Refusal;
use crate::auth::Proven;
use crate::cluster::connect::ConnectError;
use crate::cluster::node::{Node, Role};
use crate::cluster::pool::server::Server;
use crate::cluster::pool::{CheckoutError, Pool, PoolKey};
use crate::cluster::{self, Cluster};
use crate::session::params::Params;
use crate::session::settings::Settings;

/// What servers report to those who log in with certain settings: remembered for a short while, so
/// that a storm of connects does not become one on the servers.
#[derive(Default)]
pub struct Welcomes {
    known: Mutex<HashMap<(String, PoolKey), Vec<Known>>>,
}

struct Known {
    settings: Settings,
    params: Params,
    at: Instant,
    /// When somebody began to ask for a newer one.
    asked: Instant,
}

impl Welcomes {
    /// How long a report is taken for the present one. What changes later, the session is told at
    /// its first query.
    const LIFE: Duration = Duration::from_secs(10);
    /// How old one may be that is told while a newer one is asked for, or nobody can be asked at once.
    const AGE_MAX: Duration = Duration::from_secs(600);
    /// Distinct settings remembered for one database and user, and of these in all.
    const SETTINGS_MAX: usize = 64;
    const KEYS_MAX: usize = 1024;

    /// What a server reports with `settings`.
    pub async fn params(
        &self,
        cluster: &Arc<Cluster>,
        key: &PoolKey,
        credential: &Proven,
        settings: &Settings,
    ) -> Result<Params, Refusal> {
        let remembered = || self.remembered(&cluster.name, key, settings);
        let old = match remembered() {
            Ok(params) => return Ok(params),
            Err(old) => old,
        };
        let server = any_server(cluster, key, credential, settings, old.is_some()).await;
        let mut server = match (server, old) {
            (Ok(Some(server)), _) => server,
            (Ok(None), Some(old)) => return Ok(old),
            // Whoever was served meanwhile has told what there is to tell.
            (Err(refusal), old) if refusal.sqlstate() == "53300" => {
                return remembered().or_else(|later| later.or(old).ok_or(refusal));
            }
            (Err(refusal), _) => {
                // The next are to be refused as well, though not by nodes that are away.
                if refusal.sqlstate() != "57P03" {
                    self.forget_one(&cluster.name, key, settings);
                }
                return Err(refusal);
            }
            (Ok(None), None) => unreachable!("one is waited for"),
        };
        for sql in server.state.settings.difference(settings) {
            server.run(&sql).await.map_err(|error| match error {
                ConnectError::Refused(words) => Refusal::Server(words),
                error => {
                    let node = server.node().name.clone();
                    Refusal::Lost {
                        node,
                        error: error.to_string(),
                    }
                }
            })?;
        }
        server.state.settings = settings.clone();
        let params = server.state.params.clone();
        server.give_back();
        self.remember(&cluster.name, key, settings, &params);
        Ok(params)
    }

    /// What is known of these in this cluster may no longer be so.
    pub fn forget(&self, cluster: &str, whose: impl Fn(&PoolKey) -> bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(name, key), _| name != cluster || !whose(key));
    }

    fn forget_one(&self, cluster: &str, key: &PoolKey, settings: &Settings) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entries) = known.get_mut(&(cluster.to_owned(), key.clone())) {
            entries.retain(|known| known.settings != *settings);
        }
    }

    /// What a login may be told; else it is to ask, and has what is too old to be told if somebody can be asked.
    fn remembered(
        &self,
        cluster: &str,
        key: &PoolKey,
        settings: &Settings,
    ) -> Result<Params, Option<Params>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = known.get_mut(&(cluster.to_owned(), key.clone()));
        let mut entries = entries.into_iter().flatten();
        let same = |known: &&mut Known| known.settings == *settings;
        let Some(known) = entries
            .find(same)
            .filter(|known| known.at.elapsed() < Self::AGE_MAX)
        else {
            return Err(None);
        };
        let params = known.params.clone();
        if known.at.elapsed() < Self::LIFE || known.asked.elapsed() < Self::LIFE {
            return Ok(params);
        }
        known.asked = Instant::now();
        Err(Some(params))
    }

    fn remember(&self, cluster: &str, key: &PoolKey, settings: &Settings, params: &Params) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Self::KEYS_MAX {
            known.retain(|_, entries| entries.iter().any(|known| known.at.elapsed() < Self::LIFE));
        }
        let entries = known.entry((cluster.to_owned(), key.clone())).or_default();
        entries.retain(|known| known.at.elapsed() < Self::AGE_MAX && known.settings != *settings);
        if entries.len() >= Self::SETTINGS_MAX {
            entries.retain(|known| known.at.elapsed() < Self::LIFE);
        }
        if entries.len() < Self::SETTINGS_MAX {
            let (settings, params) = (settings.clone(), params.clone());
            let now = Instant::now();
            entries.push(Known {
                settings,
                params,
                at: now,
                asked: now,
            });
        }
    }
}

/// A server to greet a client with: of any node that is up, replicas first, so that clients can log
/// in while there is no primary. `None` where it would have to be waited for and need not be.
async fn any_server(
    cluster: &Arc<Cluster>,
    key: &PoolKey,
    credential: &Proven,
    settings: &Settings,
    only_at_once: bool,
) -> Result<Option<Box<Server>>, Refusal> {
    let started = Instant::now();
    loop {
        let (mut nodes, config) = {
            let topology = cluster.topology();
            (topology.nodes.clone(), topology.config.clone())
        };
        // Not any that takes writes: one that has been left gets nothing.
        let usable = |node: &Arc<Node>| {
            cluster.is_primary(node) || node.role() == Role::Replica && !settings.need_primary()
        };
        nodes.retain(|node| node.is_open() && usable(node));
        let nodes = nodes.into_iter().map(|node| {
            let pool = cluster::pool(&node, key, credential, &config);
            (node, pool)
        });
        // The primary knows best how things are, but a login should not wait for its clients.
        let rank = |(node, pool): &(Arc<Node>, Arc<Pool>)| match cluster.is_primary(node) {
            true if !pool.is_saturated() => (0, 0),
            true => (2, 0),
            false => (1, node.in_flight()),
        };
        let mut nodes: Vec<_> = nodes.collect();
        nodes.sort_by_key(rank);
        let all_are_lent = || nodes.iter().all(|(_, pool)| pool.is_saturated());
        if only_at_once && !nodes.is_empty() && all_are_lent() {
            return Ok(None);
        }
        let mut refused = None;
        for (node, pool) in &nodes {
            match pool.checkout(settings, 0).await {
                Ok(server) => return Ok(Some(server)),
                Err(CheckoutError::Connect { error, .. }) if error.is_node_away() => {}
                Err(CheckoutError::Leaving { .. }) => {}
                Err(error) if node.role() == Role::Replica && error.is_for_primary_to_say() => {
                    tracing::info!(user = %key.user, %error, "replica refuses the login");
                    refused = Some(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(error) = refused {
            return Err(error.into());
        }
        if started.elapsed() >= config.failover.hold {
            let message = format!("no node of cluster \"{}\" is available", cluster.name);
            let hint = "Tidegate's log says why its nodes are not up; \
                look at the cluster's monitor and at the nodes' addresses.";
            return Err(Refusal::hinted("57P03", message, hint));
        }
        sleep(Duration::from_millis(50)).await;
    }
}
