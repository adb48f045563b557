//! `tidegate demo`: a cluster, the proxy in front of it, and a walk through what it does.
//!
//! Owns: the order of the steps, and that each of them has happened. Never: prints a claim that it
//! has not checked against the proxy's counters or the nodes' own answers.

use std::io;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

use super::DemoError;
use super::cluster::{self, LocalCluster};
use super::gateway::Gateway;
use super::overview::{Overview, Route, delta, list, routed, routes};
use super::sessions::{self, Pairs, Session, Tally};
use super::stop::{Interrupted, Stop};
use super::terminal::{Style, Terminal, seconds};
use crate::cluster::connect::ConnectError;

/// The longest that the proxy may take to know its nodes, or a replica to be read from.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Reads while the gate is shut.
const PINNED_READS: usize = 20;

/// What the walk is to be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Standbys beside the primary; at least one.
    pub replicas: usize,
    /// Ends after the walk instead of staying up.
    pub once: bool,
}

/// Why the walk did not come to its end.
#[derive(Debug, Error)]
pub enum WalkError {
    #[error(transparent)]
    Cluster(#[from] DemoError),
    #[error("cannot run the demo: {0}")]
    System(#[from] io::Error),
    #[error("the proxy ended ({status}); its log:\n{log}")]
    ProxyEnded { status: ExitStatus, log: String },
    #[error("a query through the proxy failed: {0}")]
    Query(#[from] ConnectError),
    #[error("{what} took longer than {} s", WAIT_MAX.as_secs())]
    Timeout { what: &'static str },
    /// Something that is always to hold did not.
    #[error("this should not have happened: {0}")]
    Claim(String),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Runs the demo until it is done, or until SIGINT or SIGTERM; nothing is left of it then.
///
/// # Errors
/// When something cannot be started, and when a step did not do what it is there to show. Being
/// interrupted is an error only if the walk was to come to its end.
pub fn run(options: Options) -> Result<(), WalkError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Dropping the runtime waits for a start that was interrupted, and so for its cleaning up.
    match runtime.block_on(demo(options)) {
        Err(WalkError::Interrupted(_)) if !options.once => Ok(()),
        result => result,
    }
}

async fn demo(options: Options) -> Result<(), WalkError> {
    let mut stop = Stop::install()?;
    let terminal = Terminal::stdout();
    let standbys = match options.replicas {
        1 => "one standby".to_owned(),
        n => format!("{n} standbys"),
    };
    terminal.line(&terminal.paint(Style::Bold, "Tidegate demo"))?;
    terminal.line(&format!(
        "Starting a primary, {standbys} and the proxy in front of them …"
    ))?;
    let began = Instant::now();
    let start = blocking(move || {
        LocalCluster::start(cluster::Options {
            replicas: options.replicas,
            ..cluster::Options::default()
        })
    });
    let cluster = stop.unless(start).await??;
    let mut gateway = Gateway::start(&cluster)?;
    stop.unless(ready(&mut gateway, &cluster)).await??;
    introduce(&terminal, &gateway, began)?;

    let mut walk = Walk {
        terminal,
        cluster: &cluster,
        gateway: &gateway,
        overview: Overview::default(),
        stays: !options.once,
    };
    let result = match stop.unless(walk.tour()).await {
        Ok(Ok(())) if !options.once => stop.unless(walk.stay()).await,
        result => result,
    };
    if result.is_err() {
        // The terminal has echoed ^C.
        walk.terminal.line("\nStopping everything …")?;
    }
    let result = result?;
    match (result, gateway.ended()) {
        // What broke when the proxy ended is not the cause.
        (Err(_), Some(status)) => Err(WalkError::ProxyEnded {
            status,
            log: gateway.log(),
        }),
        (result, _) => result,
    }
}

async fn ready(gateway: &mut Gateway, cluster: &LocalCluster) -> Result<(), WalkError> {
    let began = Instant::now();
    while !gateway.is_ready(cluster.nodes().len()) {
        if let Some(status) = gateway.ended() {
            let log = gateway.log();
            return Err(WalkError::ProxyEnded { status, log });
        }
        within_limit(began, "the proxy's look at its nodes")?;
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

fn introduce(terminal: &Terminal, gateway: &Gateway, began: Instant) -> io::Result<()> {
    let url = format!("postgresql://app:app@127.0.0.1:{}/app", gateway.port());
    let metrics = format!("http://127.0.0.1:{}/metrics", gateway.http_port());
    let took = seconds(began.elapsed().as_secs_f64());
    let dim = |text| terminal.paint(Style::Dim, text);
    let bold = |text: &str| terminal.paint(Style::Bold, text);
    terminal.line(&format!("All are up after {took}.\n"))?;
    terminal.line(&format!("{}   {}", dim("connection"), bold(&url)))?;
    terminal.line(&format!("{}   psql {url}", dim("try it    ")))?;
    terminal.line(&format!("{}   {metrics}", dim("metrics   ")))
}

struct Walk<'a> {
    terminal: Terminal,
    cluster: &'a LocalCluster,
    gateway: &'a Gateway,
    overview: Overview,
    stays: bool,
}

impl Walk<'_> {
    async fn tour(&mut self) -> Result<(), WalkError> {
        self.prepare().await?;
        self.terminal.pause().await;
        let mut session = Session::open(self.gateway.port()).await?;
        self.write_and_read(&mut session).await?;
        self.terminal.pause().await;
        self.open_gate(&mut session).await?;
        self.terminal.pause().await;
        self.spread().await?;
        self.terminal.pause().await;
        self.fall_behind().await?;
        self.terminal.pause().await;
        self.show().await
    }

    /// Tables through the proxy, there on every node before anybody reads them.
    async fn prepare(&self) -> Result<(), WalkError> {
        let mut session = Session::open(self.gateway.port()).await?;
        for statement in sessions::SCHEMA {
            session.query(statement).await?;
        }
        let (primary, replicas) = (self.cluster.primary(), self.cluster.replicas());
        blocking(move || {
            let lsn = primary.write_marker()?;
            replicas
                .iter()
                .try_for_each(|replica| replica.wait_for_replay(lsn))
        })
        .await?;
        self.wait_for_catalog(&mut session).await
    }

    /// Until the proxy knows what the new names mean, reads of them are the primary's; on a slow machine that
    /// takes a second.
    async fn wait_for_catalog(&self, session: &mut Session) -> Result<(), WalkError> {
        let began = Instant::now();
        loop {
            let before = self.routes()?;
            session.read_height(0).await?;
            let read = self.since(&before, 1).await?;
            if read[0].reason != "catalog_unknown" {
                return Ok(());
            }
            within_limit(began, "the proxy to know the database's catalog")?;
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn write_and_read(&self, session: &mut Session) -> Result<(), WalkError> {
        let terminal = &self.terminal;
        terminal.step(1, "A session writes, and reads its own write")?;
        self.on_replicas(|node| node.pause_replay()).await?;
        terminal.remark("Replay is held on every standby: none of them can have the write yet.")?;

        let before = self.routes()?;
        session
            .query("INSERT INTO tides (gauge, height) VALUES ('harbour', 42)")
            .await?;
        let wrote = self.since(&before, 1).await?;
        claim(
            routed(&wrote, "primary") == 1 && wrote[0].reason == "write",
            || format!("the write went to {}", list(&wrote)),
        )?;
        terminal.fact("INSERT INTO tides …", &self.describe(&wrote))?;

        let before = self.routes()?;
        let node = session.read_height(42).await?;
        let read = self.since(&before, 1).await?;
        let pinned = routed(&read, "primary") == 1 && node == self.primary_name();
        claim(pinned, || {
            format!("the read went to {node} ({})", list(&read))
        })?;
        terminal.fact("SELECT … finds the row", &self.describe(&read))?;

        let before = self.routes()?;
        for _ in 0..PINNED_READS {
            session.read_height(42).await?;
        }
        let reads = self.since(&before, PINNED_READS as u64).await?;
        claim(routed(&reads, "replica") == 0, || {
            format!("reads of a pinned session went to {}", list(&reads))
        })?;
        let pinned = self.gateway.metrics()?.sum("tidegate_pinned_sessions", &[]);
        claim(pinned == 1.0, || {
            format!("tidegate_pinned_sessions is {pinned}, not 1")
        })?;
        terminal.fact(
            &format!("{PINNED_READS} more, none of them stale"),
            &self.describe(&reads),
        )?;
        Ok(())
    }

    async fn open_gate(&self, session: &mut Session) -> Result<(), WalkError> {
        let terminal = &self.terminal;
        terminal.step(2, "The gate opens once a standby has replayed the write")?;
        self.on_replicas(|node| node.resume_replay()).await?;
        let began = Instant::now();
        let (node, read, on_primary) = self.read_until_on_replica(session).await?;
        claim(node != self.primary_name(), || {
            format!("{node} is no replica, but the counters say so")
        })?;
        let took = seconds(began.elapsed().as_secs_f64());
        terminal.remark(&format!(
            "Replay goes on; {on_primary} more reads on the primary, and after {took}:"
        ))?;
        terminal.fact(
            "the same SELECT finds the same row",
            &format!("{}, on {node}", self.describe(&read)),
        )?;
        let pinned = self.gateway.metrics()?.sum("tidegate_pinned_sessions", &[]);
        claim(pinned == 0.0, || {
            format!("tidegate_pinned_sessions is {pinned}, not 0")
        })
    }

    /// Reads the row again and again; where the first read on a replica ran, its route, and how
    /// many ran on the primary before it.
    async fn read_until_on_replica(
        &self,
        session: &mut Session,
    ) -> Result<(String, Vec<Route>, usize), WalkError> {
        let began = Instant::now();
        let mut on_primary = 0;
        loop {
            let before = self.routes()?;
            let node = session.read_height(42).await?;
            let read = self.since(&before, 1).await?;
            if routed(&read, "replica") == 1 {
                return Ok((node, read, on_primary));
            }
            on_primary += 1;
            within_limit(began, "the way back to a replica")?;
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn spread(&self) -> Result<(), WalkError> {
        const SESSIONS_PER_REPLICA: usize = 4;
        const READS: u64 = 25;
        const ARRIVAL: Duration = Duration::from_millis(20);
        let terminal = &self.terminal;
        let sessions = SESSIONS_PER_REPLICA * self.cluster.replicas().len();
        terminal.step(3, "Reads spread over the replicas")?;
        terminal.remark(&format!(
            "{sessions} sessions that overlap, {READS} reads each:"
        ))?;

        let before = self.routes()?;
        let mut running = JoinSet::new();
        for _ in 0..sessions {
            running.spawn(sessions::read(self.gateway.port(), READS));
            // As clients do that come and go; each finds the others at work.
            sleep(ARRIVAL).await;
        }
        let mut tally = Tally::default();
        while let Some(done) = running.join_next().await {
            tally.add(&joined(done)?);
        }
        let routes = self.since(&before, tally.total()).await?;
        self.agrees(&tally, &routes)?;
        self.bars(&tally)?;
        for replica in self.cluster.replicas() {
            let name = format!("node{}", replica.index());
            claim(tally.of(&name) > 0, || format!("{name} got no read at all"))?;
        }
        Ok(())
    }

    async fn fall_behind(&self) -> Result<(), WalkError> {
        const SESSIONS: usize = 4;
        const ROUNDS: u64 = 100;
        let terminal = &self.terminal;
        let replicas = self.cluster.replicas();
        let Some(late) = replicas.first().cloned() else {
            return Ok(());
        };
        let name = format!("node{}", late.index());
        terminal.step(4, "A standby falls behind, and nobody sees it")?;
        let node = late.clone();
        blocking(move || node.pause_replay()).await?;
        terminal.remark(&format!(
            "Replay is held on {name}. {SESSIONS} sessions write, read at once and read again, {ROUNDS} times:"
        ))?;

        let before = self.routes()?;
        let mut running = JoinSet::new();
        for id in 0..SESSIONS {
            running.spawn(sessions::write_and_read(self.gateway.port(), id, ROUNDS));
        }
        let mut pairs = Pairs::default();
        while let Some(done) = running.join_next().await {
            pairs.add(&joined(done)?);
        }
        let expected = SESSIONS as u64 * ROUNDS;
        let routes = self.since(&before, expected + pairs.reads.total()).await?;
        self.agrees(&pairs.reads, &routes)?;
        self.bars(&pairs.reads)?;
        claim(pairs.stale == 0, || {
            format!(
                "{} of {} reads were stale",
                pairs.stale,
                pairs.reads.total()
            )
        })?;
        claim(pairs.reads.of(&name) == 0, || {
            format!("{name} answered {} reads", pairs.reads.of(&name))
        })?;

        // Were it asked, it would have been wrong.
        let node = late.clone();
        let old = blocking(move || node.sql("app", "SELECT sum(n) FROM counters")).await?;
        claim(old != expected.to_string(), || {
            format!("{name} has all writes although its replay is held")
        })?;
        terminal.fact(
            &format!("{} reads after {expected} writes", pairs.reads.total()),
            &terminal.paint(Style::Good, "0 stale"),
        )?;
        terminal.fact(
            &format!("{name}, asked behind the proxy's back"),
            &format!("has {old} of {expected} writes"),
        )?;

        let began = Instant::now();
        blocking(move || late.resume_replay()).await?;
        while self
            .gateway
            .metrics()?
            .sum("tidegate_replay_lag_bytes", &[("node", &name)])
            != 0.0
        {
            within_limit(began, "the catching up of a standby")?;
            sleep(POLL_INTERVAL).await;
        }
        let took = seconds(began.elapsed().as_secs_f64());
        terminal.remark(&format!("Replay goes on; {name} has no lag after {took}."))?;
        Ok(())
    }

    async fn show(&mut self) -> Result<(), WalkError> {
        self.terminal.step(5, "What the proxy knows now")?;
        if self.stays && self.terminal.is_watched() {
            return Ok(()); // What stays up is drawn again and again.
        }
        self.draw()
    }

    /// Light traffic, and the table for as long as somebody watches.
    async fn stay(&mut self) -> Result<(), WalkError> {
        const REFRESH: Duration = Duration::from_secs(1);
        self.terminal
            .remark("Tidegate stays up, with a little traffic, until Ctrl-C.")?;
        for id in 0..sessions::IDLERS {
            tokio::spawn(sessions::idle_about(self.gateway.port(), id));
        }
        loop {
            if self.terminal.is_watched() {
                self.draw()?;
            }
            sleep(REFRESH).await;
            // An endpoint that is gone means a proxy that is gone.
            self.gateway.metrics()?;
        }
    }

    fn draw(&mut self) -> Result<(), WalkError> {
        let metrics = self.gateway.metrics()?;
        let lines = self.overview.lines(&metrics, self.cluster, &self.terminal);
        Ok(self.terminal.redraw(&lines)?)
    }

    fn bars(&self, tally: &Tally) -> io::Result<()> {
        for node in self.cluster.nodes() {
            let name = format!("node{}", node.index());
            let (style, role) = match node.is_standby() {
                true => (Style::Replica, "replica"),
                false => (Style::Primary, "primary"),
            };
            let bar = self.terminal.bar(tally.of(&name), tally.total());
            let bar = self.terminal.paint(style, &bar);
            let reads = tally.of(&name);
            self.terminal
                .line(&format!("   {name} {role}  {reads:>5}  {bar}"))?;
        }
        Ok(())
    }

    /// What the nodes say of themselves must be what the proxy has counted.
    fn agrees(&self, tally: &Tally, routes: &[Route]) -> Result<(), WalkError> {
        let seen = tally.total() - tally.of(&self.primary_name());
        let counted = routed(routes, "replica");
        claim(seen == counted, || {
            format!("replicas have answered {seen} reads, but the proxy counted {counted}")
        })
    }

    fn primary_name(&self) -> String {
        format!("node{}", self.cluster.primary().index())
    }

    fn routes(&self) -> io::Result<Vec<Route>> {
        Ok(routes(&self.gateway.metrics()?))
    }

    /// What was routed since `before`, once it is `count` batches: the last is counted a moment
    /// after its answer was sent.
    async fn since(&self, before: &[Route], count: u64) -> Result<Vec<Route>, WalkError> {
        let began = Instant::now();
        loop {
            let delta = delta(before, &self.routes()?);
            let total: u64 = delta.iter().map(|route| route.count).sum();
            if total == count {
                return Ok(delta);
            }
            claim(total < count, || {
                format!("{total} batches were counted for {count} that were sent")
            })?;
            within_limit(began, "the count of what was sent")?;
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Does the same on every replica, one after the other.
    async fn on_replicas(
        &self,
        act: fn(&super::LocalNode) -> Result<(), DemoError>,
    ) -> Result<(), WalkError> {
        let replicas = self.cluster.replicas();
        Ok(blocking(move || replicas.iter().try_for_each(|node| act(node))).await?)
    }

    fn describe(&self, routes: &[Route]) -> String {
        let one = |route: &Route| {
            let style = match route.route.as_str() {
                "replica" => Style::Replica,
                _ => Style::Primary,
            };
            let name = self.terminal.paint(style, &route.route);
            match route.count {
                1 => format!("→ {name}, {}", route.reason),
                n => format!("→ {name}, {} × {n}", route.reason),
            }
        };
        routes.iter().map(one).collect::<Vec<_>>().join("  ")
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(done) => done,
        // Nothing aborts it.
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn joined<T>(
    done: Result<Result<T, ConnectError>, tokio::task::JoinError>,
) -> Result<T, WalkError> {
    match done {
        Ok(result) => Ok(result?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn claim(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), WalkError> {
    match holds {
        true => Ok(()),
        false => Err(WalkError::Claim(otherwise())),
    }
}

fn within_limit(began: Instant, what: &'static str) -> Result<(), WalkError> {
    match began.elapsed() < WAIT_MAX {
        true => Ok(()),
        false => Err(WalkError::Timeout { what }),
    }
}
