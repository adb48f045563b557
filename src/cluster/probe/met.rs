//! Owns: new connections of a probe to its node: where they lead, and whether they are answered. Never: keeps the probe
//! that there is from asking.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::ProbeError;
use crate::auth::Credential;
use crate::cluster::Cluster;
use crate::cluster::connect::{self, Connection, Target};
use crate::cluster::incarnation::incarnation;
use crate::cluster::node::Node;
use crate::config::{Config, Monitor};
use crate::session::consistency::Incarnation;

/// How often it is seen where new connections lead, at most, while others have been led elsewhere or not been answered.
const PAUSE: Duration = Duration::from_secs(1);

/// A new connection to a node, and the life of the server that it has led to.
pub struct Met {
    pub connection: Connection,
    pub life: Incarnation,
    /// As whom, and by which configuration that is.
    pub monitor: Monitor,
    pub config: Arc<Config>,
}

impl Met {
    /// # Errors
    /// When the node does not answer within `health.timeout`, or refuses the monitor.
    pub async fn by_connecting(cluster: &Cluster, node: &Node) -> Result<Met, ProbeError> {
        let config = cluster.topology().config.clone();
        let limit = config.health.timeout;
        Met::within(limit, config, cluster, node).await
    }

    async fn within(
        limit: Duration,
        config: Arc<Config>,
        cluster: &Cluster,
        node: &Node,
    ) -> Result<Met, ProbeError> {
        // What others find from now on may be news.
        node.settle_doubt();
        let monitor = config.monitor(&cluster.name);
        let target = Target {
            database: &monitor.database,
            user: &monitor.user,
            credential: monitor.password.clone().map(Credential::Password),
            application_name: "tidegate monitor",
            ..Target::at(node)
        };
        let mut connection = connect::connect(&target, limit).await?;
        let life = match timeout(limit, incarnation(&mut connection)).await {
            Ok(life) => life?,
            Err(_) => return Err(ProbeError::Timeout(limit)),
        };
        Ok(Met {
            connection,
            life,
            monitor,
            config,
        })
    }
}

/// Sees beside an open probe where new connections lead, and whether they are answered.
#[derive(Default)]
pub struct Look {
    under_way: Option<JoinHandle<Result<Met, ProbeError>>>,
    last: Option<Instant>,
    /// The log has said that they are not answered.
    has_told: bool,
}

impl Look {
    /// A connection to another server than the node's last, if new ones lead there. Where none can be made, or they
    /// lead to that one, the probe that there is is as good as it was. Has to be asked again and again: it waits for
    /// nothing.
    pub async fn other(&mut self, cluster: &Arc<Cluster>, node: &Arc<Node>) -> Option<Met> {
        if let Some(done) = self.under_way.take_if(|look| look.is_finished()) {
            self.last = Some(Instant::now());
            let met = done.await.ok()?;
            self.note(cluster, node, &met);
            return met.ok().filter(|met| met.life != node.incarnation());
        }
        let has_looked = |last: Instant| last.elapsed() < PAUSE;
        let is_sought = node.is_doubted() || node.is_silent();
        if is_sought && self.under_way.is_none() && !self.last.is_some_and(has_looked) {
            let (cluster, node) = (cluster.clone(), node.clone());
            self.under_way = Some(tokio::spawn(async move {
                let config = cluster.topology().config.clone();
                // Nobody waits for it, and pools are not to give a node more time than it gets here.
                let limit = config.health.timeout.max(config.pool.connect_timeout);
                let met = Met::within(limit, config, &cluster, &node).await;
                node.wake.notify_one();
                met
            }));
        }
        None
    }

    /// Whoever is answered in any way tells that others will be.
    fn note(&mut self, cluster: &Cluster, node: &Node, met: &Result<Met, ProbeError>) {
        let (cluster, name) = (&cluster.name, &node.name);
        match met {
            Err(error) if error.is_silence() => {
                if node.is_silent() && !std::mem::replace(&mut self.has_told, true) {
                    tracing::warn!(%cluster, node = %name, "node answers its open connections, but no new one: clients share the servers that are open");
                }
            }
            _ => {
                if std::mem::take(&mut self.has_told) {
                    tracing::info!(%cluster, node = %name, "node answers new connections again");
                }
                node.end_silence();
            }
        }
    }
}
