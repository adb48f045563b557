//! Owns: when each database is asked for its catalog: when it is first used, when something was changed in
//! it, and from time to time. Never: judges a text; sessions do, by what is put down here.

pub mod ask;

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use metrics::Histogram;
use tokio::runtime::Handle;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};

use self::ask::{ANSWER, AskError, ask};
use super::Cluster;
use crate::auth::Proven;
use crate::session::catalog::{Doubt, Known};
use crate::session::consistency::Replica;
use crate::sql::catalog::Catalog;
use crate::telemetry::{self, Count, Scrape};

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
            let changed = changed(&login.0);
            if let Some(changed) = changed.filter(|changed| changed.is_newer_than(&login.1)) {
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
