//! Owns: one run: its clients, what happens to the standbys meanwhile, and the figures that come of it.
//! Never: says which figures are good ones.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidegate::demo::{DemoError, LocalCluster, LocalNode, StopMode};
use tokio::task::JoinSet;
use tokio_postgres::Error;

use super::client::{Finding, Mix, Progress, Promise, Tally, TestClient};
use super::database::{self, Connection};
use super::shared::{Place, Shared};
use crate::support::Gateway;

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub name: &'static str,
    pub mix: Mix,
    /// What the clients say when they log in, each with its number for a `%`; and what they are promised.
    pub options: &'static str,
    pub promise: Promise,
    /// How late each standby replays, for the first ones of them.
    pub late: &'static [Duration],
    /// On how many standbys replay is paused and resumed.
    pub paused: usize,
    /// How many standbys are restarted, one after the other.
    pub restarted: usize,
    /// Ends as soon as a violation is found.
    pub stop_at_violation: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub name: &'static str,
    pub operations: usize,
    pub reads: usize,
    /// Reads that replicas have answered, by the proxy's count.
    pub on_replicas: usize,
    /// Replicas may have been asked for more than the reads that they have answered: for what else is
    /// in a transaction, or for what they were stopped at.
    pub may_be_asked_more: bool,
    /// The same for each of them, by what the answers say of themselves.
    pub shown_by: Vec<usize>,
    /// Reads that another node has answered than the session's read before.
    pub moves: usize,
    pub pauses: usize,
    pub restarts: usize,
    /// Rows that the primary did not show yet as a replica had, before anybody was told.
    pub early: usize,
    /// Rows that replicas have shown as they had to only since another proxy had told of them.
    pub handed_over: usize,
    pub violations: usize,
    pub findings: Vec<Finding>,
    pub took: Duration,
}

/// Longer than any run should take.
const RUN_MAX: Duration = Duration::from_secs(120);

/// Replay is paused or resumed, or a standby restarted, each time the clients have done about so many
/// operations more.
const TIDE_OPERATIONS: std::ops::Range<usize> = 20..250;

impl Run {
    /// Of clients that connect to the proxies in turn. Where those share a causal key, `places` are
    /// theirs.
    pub fn go(
        &self,
        cluster: &LocalCluster,
        gateways: &[&Gateway],
        places: &[Place],
    ) -> Result<Outcome, DemoError> {
        database::reset(cluster, self.mix.rows())?;
        let replicas = cluster.replicas();
        for (replica, &delay) in replicas.iter().zip(self.late) {
            replica.set_apply_delay(delay)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let primary = cluster.primary();
        let shared = match places {
            [] => None,
            places => Some(runtime.block_on(Shared::open(&primary, places))),
        };
        let progress = Arc::new(Progress {
            shared,
            primary: primary.port(),
            stop_at_violation: self.stop_at_violation,
            ..Progress::default()
        });

        let clients = runtime
            .block_on(self.connect(gateways, &progress))
            .expect("clients connect");
        let on_replicas = || {
            let of = |gateway: &&Gateway| {
                gateway.metric("tidegate_queries_total", "route=\"replica\"") as usize
            };
            gateways.iter().map(of).sum::<usize>()
        };
        let before = on_replicas();
        let begin = Instant::now();
        let (tallies, pauses, restarts) = thread::scope(|scope| {
            let tide = scope.spawn(|| move_tide(&replicas[..self.paused], &progress));
            let restarts = scope.spawn(|| restart(&replicas[..self.restarted], &progress));
            let tallies = runtime.block_on(live(clients));
            progress.stop.store(true, Ordering::Relaxed);
            let [pauses, restarts] = [tide, restarts].map(|happened| happened.join());
            (
                tallies,
                pauses.expect("no panic"),
                restarts.expect("no panic"),
            )
        });
        let took = begin.elapsed();
        let (pauses, restarts) = (pauses?, restarts?);
        let mut outcome = Outcome {
            on_replicas: on_replicas() - before,
            may_be_asked_more: self.mix.transactions > 0 || restarts > 0,
            pauses,
            restarts,
            took,
            ..Outcome::of(
                self.name,
                tallies.expect("every statement succeeds"),
                cluster,
            )
        };
        outcome.findings.sort_by_key(|finding| finding.operation);
        for replica in replicas.iter().take(self.late.len()) {
            replica.set_apply_delay(Duration::ZERO)?;
        }
        Ok(outcome)
    }

    async fn connect(
        &self,
        gateways: &[&Gateway],
        progress: &Arc<Progress>,
    ) -> Result<Vec<TestClient>, Error> {
        let mut clients = Vec::new();
        for number in 0..self.mix.clients {
            let options = self.options.replace('%', &number.to_string());
            let proxy = number as usize % gateways.len();
            let url = format!("{} {options}", gateways[proxy].url("app"));
            let connection = Connection::open(&url).await?;
            clients.push(TestClient::new(
                number,
                connection,
                proxy,
                self.mix,
                self.promise,
                progress.clone(),
            ));
        }
        Ok(clients)
    }
}

async fn live(clients: Vec<TestClient>) -> Result<Vec<Tally>, Error> {
    let lives: JoinSet<_> = clients.into_iter().map(TestClient::run).collect();
    let ends = tokio::time::timeout(RUN_MAX, lives.join_all()).await;
    ends.expect("the run comes to its end")
        .into_iter()
        .collect()
}

/// Pauses and resumes replay as the clients go on. Returns how often it was paused; it never is at
/// the end.
fn move_tide(replicas: &[Arc<LocalNode>], progress: &Progress) -> Result<usize, DemoError> {
    if replicas.is_empty() {
        return Ok(0);
    }
    let mut rng = StdRng::seed_from_u64(replicas.len() as u64);
    let mut paused = vec![false; replicas.len()];
    let (mut pauses, mut next) = (0, 0);
    while !progress.stop.load(Ordering::Relaxed) {
        if progress.done.load(Ordering::Relaxed) < next {
            thread::sleep(Duration::from_millis(1));
            continue;
        }
        let index = rng.random_range(0..replicas.len());
        if paused[index] {
            replicas[index].resume_replay()?;
        } else {
            replicas[index].pause_replay()?;
            pauses += 1;
        }
        paused[index] = !paused[index];
        next = progress.done.load(Ordering::Relaxed) + rng.random_range(TIDE_OPERATIONS);
    }
    for replica in replicas {
        replica.resume_replay()?;
    }
    Ok(pauses)
}

/// Restarts the replicas as the clients go on, in good order or as after a crash. Returns how often; all
/// of them run in the end.
fn restart(replicas: &[Arc<LocalNode>], progress: &Progress) -> Result<usize, DemoError> {
    let mut rng = StdRng::seed_from_u64(replicas.len() as u64);
    let (mut restarts, mut next) = (0, 0);
    for replica in replicas.iter().cycle() {
        while progress.done.load(Ordering::Relaxed) < next && !progress.stop.load(Ordering::Relaxed)
        {
            thread::sleep(Duration::from_millis(1));
        }
        if progress.stop.load(Ordering::Relaxed) {
            break;
        }
        let mode = match rng.random_ratio(1, 2) {
            true => StopMode::Fast,
            false => StopMode::Immediate,
        };
        replica.stop(mode)?;
        replica.start()?;
        restarts += 1;
        next = progress.done.load(Ordering::Relaxed) + rng.random_range(TIDE_OPERATIONS);
    }
    Ok(restarts)
}

impl Outcome {
    fn of(name: &'static str, tallies: Vec<Tally>, cluster: &LocalCluster) -> Outcome {
        let sum = |of: fn(&Tally) -> usize| tallies.iter().map(of).sum();
        let shown_by = |replica: &Arc<LocalNode>| {
            let shown = tallies
                .iter()
                .filter_map(|tally| tally.by_port.get(&replica.port()));
            shown.sum()
        };
        Outcome {
            name,
            operations: sum(|tally| tally.operations),
            reads: sum(|tally| tally.reads),
            on_replicas: 0,
            may_be_asked_more: false,
            shown_by: cluster.replicas().iter().map(shown_by).collect(),
            moves: sum(|tally| tally.moves),
            pauses: 0,
            restarts: 0,
            early: sum(|tally| tally.early),
            handed_over: sum(|tally| tally.handed_over),
            violations: sum(|tally| tally.violations),
            findings: tallies
                .into_iter()
                .flat_map(|tally| tally.findings)
                .collect(),
            took: Duration::ZERO,
        }
    }

    pub fn share_on_replicas(&self) -> f64 {
        self.shown_by.iter().sum::<usize>() as f64 / self.reads as f64
    }

    pub fn heading() -> String {
        format!(
            "{:<40}{:>11}{:>8}{:>13}{:>16}{:>7}{:>8}{:>10}{:>9}{:>7}{:>13}{:>12}",
            "run",
            "operations",
            "reads",
            "on replicas",
            "on each",
            "moves",
            "pauses",
            "restarts",
            "seconds",
            "early",
            "handed over",
            "violations"
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<40}{:>11}{:>8}{:>12.1}%{:>16}{:>7}{:>8}{:>10}{:>9.1}{:>7}{:>13}{:>12}",
            self.name,
            self.operations,
            self.reads,
            self.share_on_replicas() * 100.0,
            format!("{:?}", self.shown_by),
            self.moves,
            self.pauses,
            self.restarts,
            self.took.as_secs_f64(),
            self.early,
            self.handed_over,
            self.violations,
        )
    }
}
