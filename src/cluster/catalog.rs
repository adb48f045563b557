//! Owns: asking each database for its catalog: when it is first used, when something was changed in
//! it, and from time to time. Never: judges a text; sessions do, by what is put down here.
//!
//! The primary is asked, over a connection that is opened for it, as the role that has logged in to
//! the database last: that one may connect to it, and every role may read the catalog. A replica is
//! asked while there is no primary. One answer is of one snapshot.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use metrics::Histogram;
use tokio::runtime::Handle;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::Cluster;
use super::connect::{self, ConnectError, Connection, Rows, Target};
use super::node::Node;
use crate::auth::{Credential, Proven};
use crate::config::{self, Config};
use crate::net::tls::Material;
use crate::session::catalog::{Doubt, Known};
use crate::session::consistency::Replica;
use crate::session::effects;
use crate::sql::catalog::{self, Catalog};
use crate::sql::functions::Rules;
use crate::telemetry::{self, Count, Scrape};

/// How long an answer may take, in all and on the server. It is meant for databases of many thousand
/// functions; most answer in milliseconds.
const ANSWER: Duration = Duration::from_secs(30);

/// How long the question after functions' effects on sessions may take, the dearest of all. Without
/// an answer, functions of the database's own are not taken for reads.
const EFFECTS: Duration = Duration::from_secs(10);

/// The most that an answer may have, in bytes.
const ANSWER_BYTES_MAX: usize = 128 << 20;

/// The shortest pause between two questions. Meanwhile what depends on the answer is the primary's, so
/// it is short; after a question that took longer than this, the pause is longer by so much.
const PAUSE: Duration = Duration::from_millis(5);
const DEAR: Duration = Duration::from_millis(100);
const PAUSE_SHARE: u32 = 4;

/// The same while nothing is known to have changed.
const IDLE_SHARE: u32 = 20;

/// How long to wait after a question that had no answer.
const RETRY: Duration = Duration::from_secs(1);

/// How often a database is asked for the sake of reads that replicas have refused, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How many databases of a cluster are asked at a time: of those that nothing is known of yet, and of those that are
/// asked again. A question is dear, for the primary and in memory, and after a failover every database is asked.
const AT_ONCE: usize = 2;

/// How long a question keeps others from being asked. One that waits for a lock costs nobody anything, and may do so for
/// long; as many more as come by then make no crowd.
const TURN: Duration = Duration::from_secs(2);

/// How long a session that is the first of its database waits for the answer before its reads go to
/// the primary.
const FIRST: Duration = Duration::from_secs(1);

/// What is known of the databases that clients use.
pub struct Catalogs {
    /// Where databases are asked from, whichever thread a client is served by.
    runtime: Handle,
    databases: DashMap<String, Arc<Watched>, foldhash::fast::RandomState>,
    /// Who has a permit asks: those of which nothing is known are not to wait for the others.
    first: Semaphore,
    again: Semaphore,
    seconds: Histogram,
}

/// One database.
pub struct Watched {
    pub known: Arc<Known>,
    database: String,
    /// As whom to ask.
    login: Mutex<(String, Proven)>,
    /// It is to be asked now.
    wake: Notify,
    /// It has been asked.
    answered: Notify,
    /// When it has answered last.
    refreshed: Mutex<Option<Instant>>,
    /// How often it has answered, and how often not.
    refreshed_times: Count,
    failed_times: Count,
}

impl Catalogs {
    /// To be called within the runtime that is to ask.
    pub fn start(cluster: &str) -> Catalogs {
        Catalogs {
            runtime: Handle::current(),
            databases: DashMap::default(),
            first: Semaphore::new(AT_ONCE),
            again: Semaphore::new(AT_ONCE),
            seconds: telemetry::catalog_refresh_seconds(cluster),
        }
    }

    /// All of them are to be asked again before anything that depends on it is taken for a read.
    pub fn outdate(&self) {
        for watched in &self.databases {
            watched.known.outdate(Doubt::Anything, true);
            watched.wake.notify_one();
        }
    }

    /// All of them are to be asked again before long.
    pub fn look_again(&self) {
        self.databases
            .iter()
            .for_each(|watched| watched.look_again());
    }

    /// Has databases asked with what is `changed` of the users as whom they are asked.
    pub fn set_credentials(&self, changed: impl Fn(&str) -> Option<Proven>) {
        for watched in &self.databases {
            let mut login = watched.lock_login();
            if let Some(changed) = changed(&login.0) {
                login.1 = changed;
            }
        }
    }

    /// Lets go of a database that no client uses; `false` if one does.
    fn forget_unused(&self, watched: &Arc<Watched>) -> bool {
        // Held by whoever asks here and by the map.
        let unused = |_: &String, watched: &Arc<Watched>| Arc::strong_count(watched) <= 2;
        let removed = self.databases.remove_if(&watched.database, unused);
        removed.is_some()
    }

    /// Shows the metrics of all of them.
    pub fn show(&self, cluster: &str, scrape: &mut Scrape) {
        let databases = self.databases.iter();
        databases.for_each(|watched| watched.show(cluster, scrape));
    }
}

impl Cluster {
    /// What is known of `database`, in which `user` has just logged in; from now on it is kept up to
    /// date for as long as somebody has it.
    pub fn catalog(
        self: &Arc<Self>,
        database: &str,
        user: &str,
        credential: &Proven,
    ) -> Arc<Watched> {
        let watched = match self.catalogs.databases.get(database) {
            Some(watched) => watched.clone(),
            None => self.watch_catalog(database, user, credential),
        };
        let mut login = watched.lock_login();
        if credential.is_newer_than(&login.1) {
            *login = (user.to_owned(), credential.clone());
        }
        drop(login);
        watched
    }

    fn watch_catalog(
        self: &Arc<Self>,
        database: &str,
        user: &str,
        credential: &Proven,
    ) -> Arc<Watched> {
        let new = || {
            let watched = Arc::new(Watched {
                known: Arc::default(),
                database: database.to_owned(),
                login: Mutex::new((user.to_owned(), credential.clone())),
                wake: Notify::new(),
                answered: Notify::new(),
                refreshed: Mutex::default(),
                refreshed_times: Count::default(),
                failed_times: Count::default(),
            });
            let task = watch(self.clone(), watched.clone());
            self.catalogs.runtime.spawn(task);
            watched
        };
        let entry = self.catalogs.databases.entry(database.to_owned());
        entry.or_insert_with(new).clone()
    }
}

impl Watched {
    /// Waits for the first answer, within limits.
    pub async fn first_answer(&self) {
        let answered = self.answered.notified();
        if !self.known.is_settled() {
            let _ = timeout(FIRST, answered).await;
        }
    }

    /// What is known is outdated, and has been marked so; or it may be.
    pub fn look_again(&self) {
        self.wake.notify_one();
    }

    /// Waits until it has to be asked: at once if nothing is known, else not before a while after
    /// it was asked last.
    async fn woken(&self, last: Instant) {
        self.wake.notified().await;
        let rest = LOOK_AGAIN.saturating_sub(last.elapsed());
        let needed = async {
            while self.known.catalog().is_some() {
                self.wake.notified().await;
            }
        };
        let _ = timeout(rest, needed).await;
    }

    fn lock_login(&self) -> std::sync::MutexGuard<'_, (String, Proven)> {
        // Whatever panicked elsewhere did not do so between two of its changes.
        self.login.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, cluster: &str, scrape: &mut Scrape) {
        let labels = [("cluster", cluster), ("database", &*self.database)];
        let known = self.known.catalog();
        let epoch = known.as_ref().map_or(0, |catalog| catalog.epoch());
        let help = "The number of what is known of the database's catalog, another one for other contents; 0 \
                    while it is not known.";
        scrape.gauge("tidegate_catalog_epoch", help, &labels, epoch as f64);
        let names = known.map_or(0, |catalog| catalog.len());
        let help = "Names of the database's catalog that decide where statements go.";
        scrape.gauge("tidegate_catalog_names", help, &labels, names as f64);
        let refreshed = *self
            .refreshed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(refreshed) = refreshed {
            let age = refreshed.elapsed().as_secs_f64();
            let help = "How long ago the database was asked for its catalog with success.";
            scrape.gauge("tidegate_catalog_age_seconds", help, &labels, age);
        }
        for (result, times) in [
            ("ok", &self.refreshed_times),
            ("failed", &self.failed_times),
        ] {
            let labels = [&labels[..], &[("result", result)]].concat();
            let help =
                "How often databases were asked for their catalogs, by the result: ok, failed.";
            scrape.counter(
                "tidegate_catalog_refreshes_total",
                help,
                &labels,
                times.get(),
            );
        }
    }

    fn note_refresh(&self) {
        let mut refreshed = self
            .refreshed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *refreshed = Some(Instant::now());
        self.refreshed_times.increment(1);
    }
}

/// Asks for as long as somebody uses the database, or the cluster is there.
async fn watch(cluster: Arc<Cluster>, watched: Arc<Watched>) {
    let mut complaint = None;
    let mut warned: Vec<String> = Vec::new();
    loop {
        // One that has not answered may not do so soon.
        let is_first = watched.known.latest().is_none() && complaint.is_none();
        let turns = match is_first {
            true => &cluster.catalogs.first,
            false => &cluster.catalogs.again,
        };
        let question = async {
            let changed = cluster.changed.notified();
            let began = Instant::now();
            let version = watched.known.version();
            let asked = tokio::select! {
                biased;
                () = another_primary(&cluster) => None,
                answer = timeout(ANSWER, ask(&cluster, &watched)) => {
                    Some(answer.unwrap_or(Err(AskError::Timeout)))
                }
            };
            (changed, began, version, asked)
        };
        let (changed, began, version, asked) = in_turn(turns, TURN, question).await;
        // What the last primary would have said, if anything, is of no use.
        let Some(asked) = asked else { continue };
        let took = began.elapsed();
        cluster.catalogs.seconds.record(took);
        let interval = cluster.topology().config.routing.catalog_interval;
        let pause = match asked {
            Ok((catalog, effects)) => {
                complaint = None;
                watched.note_refresh();
                warn_of_unseen(&cluster, &watched, &catalog, &mut warned);
                match watched.known.learn(catalog, effects, version) {
                    true => interval.max(took * IDLE_SHARE),
                    false => Duration::ZERO,
                }
            }
            Err(error) => {
                watched.known.learn_nothing();
                watched.failed_times.increment(1);
                complain(&cluster, &watched, &error, &mut complaint);
                RETRY
            }
        };
        watched.answered.notify_waiters();
        // However often it is woken, it asks for a part of the time only.
        let share = if took > DEAR { PAUSE_SHARE } else { 0 };
        sleep((took * share).max(PAUSE)).await;
        let idle = tokio::select! {
            () = sleep(pause) => true,
            () = watched.woken(began) => false,
            // A new primary may not have all that the old one had.
            () = wait_for_primary(&cluster, changed) => false,
        };
        if idle && cluster.catalogs.forget_unused(&watched) {
            cluster.forget_schema(&watched.database);
            return;
        }
        if cluster.is_gone() {
            return;
        }
    }
}

/// Does this when it has a turn, and gives that back after `limit`.
async fn in_turn<T>(turns: &Semaphore, limit: Duration, work: impl Future<Output = T>) -> T {
    let turn = turns.acquire().await;
    let mut work = pin!(work);
    if let Ok(done) = timeout(limit, &mut work).await {
        return done;
    }
    drop(turn);
    work.await
}

/// Waits until there is another primary than now, or the same has been met anew.
async fn another_primary(cluster: &Cluster) {
    let present = || {
        let topology = cluster.topology();
        let primary = topology.primary.as_ref();
        primary.map(|primary| (primary.id(), topology.primary_meetings))
    };
    let old = present();
    loop {
        let changed = cluster.changed.notified();
        let new = present();
        if new.is_some() && new != old {
            return;
        }
        changed.await;
    }
}

/// Waits until there is another primary. What is known from the last one is more than what a replica
/// may know.
async fn wait_for_primary(cluster: &Cluster, changed: Notified<'_>) {
    changed.await;
    loop {
        let changed = cluster.changed.notified();
        if cluster.topology().primary.is_some() {
            return;
        }
        changed.await;
    }
}

/// Says why there is no answer, once for each reason.
fn complain(
    cluster: &Cluster,
    watched: &Watched,
    error: &AskError,
    complaint: &mut Option<String>,
) {
    let (cluster, database, error) = (&cluster.name, &watched.database, error.to_string());
    if complaint.as_ref() == Some(&error) {
        return;
    }
    match watched.known.catalog() {
        Some(_) => {
            tracing::warn!(%cluster, %database, %error, "catalog can't be asked again: what was known of it still counts")
        }
        None => {
            tracing::warn!(%cluster, %database, %error, "catalog can't be asked: all statements of this database go to the primary")
        }
    }
    *complaint = Some(error);
}

/// Says why no text can be taken for a read, once.
fn warn_of_unseen(
    cluster: &Cluster,
    watched: &Watched,
    catalog: &Catalog,
    warned: &mut Vec<String>,
) {
    let unseen = catalog.everywhere().iter();
    let unseen: Vec<String> = unseen.map(|(name, by)| format!("{name} ({by})")).collect();
    if unseen != *warned && !unseen.is_empty() {
        tracing::warn!(
            cluster = %cluster.name, database = %watched.database, functions = ?unseen,
            "functions that are VOLATILE are called wherever values are compared or converted, so all statements of this \
             database go to the primary: declare them STABLE or IMMUTABLE, or list them in routing.safe_functions"
        );
    }
    *warned = unseen;
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
            tls: &tls,
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

type Answer = (Arc<Catalog>, Option<Arc<effects::Effects>>);

async fn ask(cluster: &Cluster, watched: &Watched) -> Result<Answer, AskError> {
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
    let tls = node.tls.load_full();
    let target = Target {
        host: &node.host,
        port: node.port,
        tls: &tls,
        database: &watched.database,
        user: &user,
        credential: credential.credential,
        application_name: "tidegate catalog",
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

/// Asks all there is to ask, in one snapshot: the effects, if they can be had, how many functions
/// have some, and the catalog's rows.
async fn question(
    connection: &mut Connection,
    rules: &Rules,
) -> Result<(Option<effects::Effects>, usize, Rows), ConnectError> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path = pg_catalog; \
         SET LOCAL standard_conforming_strings = on; SET LOCAL jit = off; SET LOCAL work_mem = '64MB'; \
         SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = {}; SAVEPOINT effects",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_hangs_gives_its_turn_back() {
        const LONG: Duration = Duration::from_secs(3600);
        let turns = Semaphore::new(1);
        let hanging = |limit| in_turn(&turns, limit, std::future::pending::<()>());
        let other = || in_turn(&turns, LONG, async {});
        tokio::select! {
            biased;
            () = hanging(LONG) => unreachable!(),
            () = other() => panic!("it had no turn"),
            () = tokio::task::yield_now() => {}
        }
        tokio::select! {
            biased;
            () = hanging(Duration::ZERO) => unreachable!(),
            () = other() => {}
        }
    }
}
