//! Owns: asking a database for its catalog. Never: decides when.
//!
//! The primary is asked, over a connection that is opened for it, as the role that has logged in to
//! the database last: that one may connect to it, and every role may read the catalog. A replica is
//! asked while there is no primary. One answer is of one snapshot.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Watched;
use crate::auth::Credential;
use crate::cluster::Cluster;
use crate::cluster::connect::{self, ConnectError, Connection, Rows, Target};
use crate::cluster::node::Node;
use crate::config::{self, Config};
use crate::net::tls::Material;
use crate::session::effects;
use crate::sql::catalog::{self, Catalog};
use crate::sql::functions::Rules;

/// How long an answer may take, in all and on the server. It is meant for databases of many thousand
/// functions; most answer in milliseconds.
pub(super) const ANSWER: Duration = Duration::from_secs(30);

/// How long the question after functions' effects on sessions may take, the dearest of all. Without
/// an answer, functions of the database's own are not taken for reads.
const EFFECTS: Duration = Duration::from_secs(10);

/// The most that an answer may have, in bytes.
const ANSWER_BYTES_MAX: usize = 128 << 20;

type Answer = (Arc<Catalog>, Option<Arc<effects::Effects>>);

pub(super) async fn ask(cluster: &Cluster, watched: &Watched) -> Result<Answer, AskError> {
    let (node, config) = {
        let topology = cluster.topology();
        let is_up = |node: &&Arc<Node>| node.is_open();
        let node = match &topology.primary {
            Some(primary) => primary,
            None if watched.known.catalog().is_some() => return Err(AskError::NoPrimary),
            None => topology.nodes.iter().find(is_up).ok_or(AskError::NoNode)?,
        };
        (node.clone(), topology.config.clone())
    };
    let rules = Rules::of(&config.routing);
    let (user, credential) = watched.lock_login().clone();
    let target = Target {
        database: &watched.database,
        user: &user,
        credential: credential.credential,
        application_name: "tidegate catalog",
        ..Target::at(&node)
    };
    let asked = async {
        let mut connection = connect::connect(&target, config.pool.connect_timeout).await?;
        question(&mut connection, &rules).await
    };
    let (effects, suspects, rows) = asked.await.map_err(|error| AskError::Query {
        node: node.name.clone(),
        user: user.clone(),
        error,
    })?;
    if rows.len() > catalog::ROWS_MAX {
        return Err(AskError::TooMany);
    }
    tracing::debug!(
        cluster = %cluster.name, database = %watched.database, names = rows.len(), suspects,
        "catalog asked"
    );
    let old = watched.known.latest();
    let read = move || {
        let rows = rows.into_iter().filter_map(|row| row.try_into().ok());
        Catalog::read(rows, old.as_deref())
    };
    Ok((Arc::new(aside(read).await), effects.map(Arc::new)))
}

/// Why a database's catalog is not known.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no node is up")]
    NoNode,
    #[error("there is no primary")]
    NoPrimary,
    #[error("no answer within {ANSWER:?}")]
    Timeout,
    #[error("node {node}, as user {user}: {error}")]
    Query {
        node: String,
        user: String,
        error: ConnectError,
    },
    #[error("it has more than {} names that matter", catalog::ROWS_MAX)]
    TooMany,
}

/// Asks `database` once, as the role that probes the cluster's nodes: the primary, or a replica if there
/// is none.
///
/// # Errors
/// What no node gave an answer for.
pub async fn ask_once(
    config: &Config,
    tls: &Material,
    database: &str,
) -> Result<Catalog, OnceError> {
    let serves =
        |cluster: &&config::Cluster, name: &str| cluster.databases.iter().any(|d| d == name);
    let mut clusters = config.clusters.iter();
    let cluster = clusters
        .clone()
        .find(|cluster| serves(cluster, database))
        .or_else(|| clusters.find(|cluster| serves(cluster, "*")))
        .ok_or_else(|| OnceError::NoCluster(database.to_owned()))?;
    let monitor = config.monitor(&cluster.name);
    let tls = tls.for_cluster(&cluster.name);
    let rules = Rules::of(&config.routing);
    let mut replica = None;
    let mut failed = None;
    for node in &cluster.nodes {
        let target = Target {
            host: &node.host,
            port: node.port,
            tls: tls.clone(),
            database,
            user: &monitor.user,
            credential: monitor.password.clone().map(Credential::Password),
            application_name: "tidegate explain",
        };
        let asked = async {
            let mut connection = connect::connect(&target, config.pool.connect_timeout).await?;
            let rows = connection
                .query("SELECT pg_catalog.pg_is_in_recovery()")
                .await?;
            let is_replica = rows == [[Some("t".to_owned())]];
            if is_replica && replica.is_some() {
                return Ok(None);
            }
            let (_, _, rows) = question(&mut connection, &rules).await?;
            let rows = rows.into_iter().filter_map(|row| row.try_into().ok());
            Ok(Some((is_replica, Catalog::read(rows, None))))
        };
        match timeout(ANSWER, asked).await {
            Ok(Ok(Some((false, catalog)))) => return Ok(catalog),
            Ok(Ok(Some((true, catalog)))) => replica = Some(catalog),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                let (node, user) = (node.name.clone(), monitor.user.clone());
                failed = Some(AskError::Query { node, user, error });
            }
            Err(_) => failed = Some(AskError::Timeout),
        }
    }
    replica.ok_or_else(|| OnceError::Unanswered(failed.unwrap_or(AskError::NoNode)))
}

/// Why a database's catalog can't be had.
#[derive(Debug, thiserror::Error)]
pub enum OnceError {
    #[error("no cluster of the configuration serves database \"{0}\"")]
    NoCluster(String),
    #[error("{0}")]
    Unanswered(AskError),
}

/// Asks all there is to ask, in one snapshot: the effects, if they can be had, how many functions
/// have some, and the catalog's rows.
async fn question(
    connection: &mut Connection,
    rules: &Rules,
) -> Result<(Option<effects::Effects>, usize, Rows), ConnectError> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path = pg_catalog; \
         {} SET LOCAL standard_conforming_strings = on; SET LOCAL work_mem = '64MB'; \
         SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = {}; SAVEPOINT effects",
        effects::PLANNING,
        EFFECTS.as_millis(),
    );
    connection.query(&begin).await?;
    let question = effects::full_question();
    let asked = connection.query_up_to(&question, ANSWER_BYTES_MAX).await;
    let (effects, suspects) = match asked {
        Ok(rows) => {
            let rows = rows.into_iter().filter_map(|row| row.try_into().ok());
            let (effects, suspects) = aside(move || effects::read_full(rows)).await;
            (Some(effects), Some(suspects))
        }
        // It has taken too long.
        Err(error) if error.sqlstate() == Some(b"57014") => {
            tracing::info!("functions' effects on sessions can't be told within {EFFECTS:?}");
            (None, None)
        }
        Err(error) => return Err(error),
    };
    let limit = format!(
        "ROLLBACK TO effects; SET LOCAL statement_timeout = {}",
        ANSWER.as_millis()
    );
    connection.query(&limit).await?;
    let question = catalog::question(rules, suspects.as_deref());
    let rows = connection.query_up_to(&question, ANSWER_BYTES_MAX).await?;
    connection.query("COMMIT").await?;
    Ok((effects, suspects.map_or(0, |s| s.len()), rows))
}

/// Does on a thread of its own what may take a while for a large database: clients are accepted on this one.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shut down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
