//! Owns: watching one node: its role, its life, its position. Never: touches a client's traffic;
//! what it finds is written where routing reads it.

mod met;
mod steps;
mod trouble;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use self::met::{Look, Met};
use self::steps::Steps;
use self::trouble::Trouble;
use super::Cluster;
use super::connect::{ConnectError, Connection};
use super::demand::Rest;
use super::node::{Node, Role};
use crate::config::{Config, Monitor};
use crate::session::consistency::{Lsn, Replica, Tick};
use crate::session::route::Candidate;

/// How long to wait before a node that has failed is asked again, at most.
const RETRY: Duration = Duration::from_millis(250);

/// How often nodes are asked while there is no primary, at most.
const SEARCH: Duration = Duration::from_millis(100);

/// Where the node is, in whichever role it has; how far a primary has flushed; which role that is; and the timeline that
/// a standby is sent, where that is told. The role comes after the position: a node that is still in recovery then was so
/// when it told that. So does the timeline: what it has replayed of another it had been sent before.
const POSITION: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
    ELSE pg_catalog.pg_current_wal_insert_lsn() END, \
    CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_wal_flush_lsn() END, \
    pg_catalog.pg_is_in_recovery(), \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN (pg_catalog.pg_stat_get_wal_receiver()).received_tli END";

/// Makes the primary flush what it has inserted: a commit does. One that waits for standbys would
/// take as long as they do. Gives a position beyond all that.
const FLUSH: &str = "SET LOCAL synchronous_commit = local; \
    SELECT pg_catalog.pg_logical_emit_message(true, 'tidegate', '')";

/// So many polls after the primary has told of WAL that somebody waits for it should be flushed, however slow its
/// disk.
const UNFLUSHED_MAX: u32 = 10;

/// By the time that so many flushes take it is, if anybody commits: one may have begun before.
const FLUSHES: u32 = 2;

/// The timeline a primary writes: `pg_control_checkpoint()` shows it only after a checkpoint.
const TIMELINE: &str = "SELECT pg_catalog.substr(\
    pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8)";

/// The timeline a standby has got to, at least: the one that it is sent, as it asks for that when it has replayed all
/// there was before, or the one up to which it would have to replay again after a crash. The first is told only to
/// members of `pg_read_all_stats`, and by a standby that streams; the other follows with the next page that is written
/// out, or the next restartpoint.
const REPLAYED_TIMELINE: &str = "SELECT greatest(\
    (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver), \
    (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()), \
    (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()))";

const FACTS: &str = "SELECT pg_catalog.current_setting('wal_block_size'), \
    (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_segment_size'), \
    (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
    pg_catalog.current_setting('server_version_num')::int >= 190000";

/// The longest pause between two questions to a replica that stands still or is late, in polls.
const SLOW_MAX: u32 = 16;

/// So often it is asked before that gets longer, and by so much longer each time: replay waits for a disk now
/// and then.
const STALLED_SHARE: u32 = 4;

/// A replica that is late is asked at intervals of this part of its lag.
const LATE_SHARE: u32 = 10;

/// Watches `node` until it leaves the cluster.
pub async fn watch(cluster: Arc<Cluster>, node: Arc<Node>) {
    let mut trouble = Trouble::default();
    let mut was_cut_off = false;
    let mut newer = None;
    while !node.is_leaving() {
        let error = match Probe::open(&cluster, &node, newer.take()).await {
            Ok(mut probe) => {
                if std::mem::take(&mut was_cut_off) {
                    // The network has lost one connection, so it may have lost them all.
                    node.pools.iter().for_each(|pool| pool.vacate());
                }
                trouble.end(&cluster, &node);
                // It was a new connection, and has been answered.
                node.end_silence();
                match probe.run(&cluster, &node).await {
                    Ok(other) => {
                        newer = other;
                        node.forget_position();
                        continue;
                    }
                    Err(error) => {
                        was_cut_off = probe.connection.stream.retransmissions() > 0;
                        error
                    }
                }
            }
            Err(error) => {
                if !error.is_silence() {
                    node.end_silence();
                }
                error
            }
        };
        node.forget_position();
        node.set_probed();
        let config = cluster.topology().config.clone();
        trouble.note(&cluster, &node, &config.health, &error);
        cluster.reconsider();
        if !node.is_up() {
            // Each time: somebody may have chosen it just before it was known to be down.
            cluster.send_away(&node);
        }
        trouble.rest(&cluster, &node, &config.health).await;
    }
}

/// Why a node is not watched now.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("its answer to where it is cannot be understood")]
    Position,
    #[error("answer {0:?} to a probe is not understood")]
    Answer(Vec<Vec<Option<String>>>),
    #[error("it belongs to another cluster: its system identifier is {found}, not {expected}")]
    OtherSystem { found: u64, expected: u64 },
}

impl ProbeError {
    /// Whether there was no answer at all in time.
    fn is_silence(&self) -> bool {
        let is_timeout = matches!(self, ProbeError::Connect(ConnectError::Timeout(_)));
        is_timeout || matches!(self, ProbeError::Timeout(_))
    }

    /// Whether the server serves others, for all that is known.
    fn lives(&self) -> bool {
        matches!(self, ProbeError::Connect(error) if error.is_for_who_asks())
    }

    /// What is to be done about it, if the server lives.
    fn advice(&self) -> &'static str {
        let (sqlstate, routine) = match self {
            ProbeError::Connect(error) => (error.sqlstate(), error.routine()),
            _ => (None, None),
        };
        match sqlstate {
            Some(b"53300") if routine == Some(&b"InitializeSessionUserId"[..]) => {
                "raise the CONNECTION LIMIT of the monitor's role"
            }
            Some(b"53300") if routine == Some(&b"CheckMyDatabase"[..]) => {
                "raise the CONNECTION LIMIT of the monitor's database"
            }
            Some(b"53300") => {
                "raise max_connections or lower pool.size, or keep connections for the monitor \
                 (reserved_connections and pg_use_reserved_connections of PostgreSQL 16)"
            }
            Some(b"42501") => "grant the monitor's role what it was refused",
            _ => "see to the cluster's monitor in the configuration, its role, and pg_hba.conf",
        }
    }
}

/// An open connection that watches a node.
struct Probe {
    connection: Connection,
    /// As whom, and by which configuration that is.
    monitor: Monitor,
    config: Arc<Config>,
    block: u64,
    segment: u64,
    /// It has WAIT FOR LSN (PostgreSQL 19).
    can_wait: bool,
    look: Look,
    last_start: Instant,
    steps: Steps,
    /// Polls since the position last changed, while somebody waits for it.
    stalled: u32,
    /// Of a replica: what was waited for when it was last asked.
    asked_for: Lsn,
    /// Of a primary: a position that somebody waits for and that is not flushed, so that no replica
    /// can reach it; and since when. What is no commit (pruning, say) is flushed only with one,
    /// and on an idle primary that may be long.
    unflushed: Option<(Lsn, Instant)>,
    /// How long the primary took to flush when it was last asked to.
    flush_time: Duration,
    /// When a replica was last asked for its timeline, which it does not tell with its position.
    timeline_asked: Instant,
}

impl Probe {
    /// Begins to watch the node, over this connection or a new one.
    async fn open(cluster: &Cluster, node: &Node, met: Option<Met>) -> Result<Probe, ProbeError> {
        let met = match met {
            Some(met) => met,
            None => Met::by_connecting(cluster, node).await?,
        };
        let Met {
            connection,
            life,
            monitor,
            config,
        } = met;
        let limit = config.health.timeout;
        let mut probe = Probe {
            connection,
            monitor,
            config: config.clone(),
            block: 0,
            segment: 0,
            can_wait: false,
            look: Look::default(),
            last_start: Instant::now(),
            steps: Steps::new(),
            stalled: 0,
            asked_for: Lsn(0),
            unflushed: None,
            flush_time: Duration::ZERO,
            timeline_asked: Instant::now(),
        };
        let rows = probe.ask(FACTS, limit).await?;
        let [[Some(block), Some(segment), Some(system), Some(can_wait)]] =
            rows.iter().map(Vec::as_slice).collect::<Vec<_>>()[..]
        else {
            return Err(ProbeError::Answer(rows));
        };
        // PostgreSQL shows it as a signed number.
        let system = system.parse().map(i64::cast_unsigned);
        let (Ok(block), Ok(segment), Ok(system)) = (block.parse(), segment.parse(), system) else {
            return Err(ProbeError::Answer(rows));
        };
        (probe.block, probe.segment) = (block, segment);
        probe.can_wait = can_wait == "t";
        node.set_system(system);
        cluster.reconsider();
        refuse_stranger(cluster, node)?;
        if node.incarnation() != life {
            for pool in &node.pools {
                pool.close_stale(life);
            }
        }
        node.meet(life);
        probe.sample(cluster, node, &config).await?;
        node.set_watched();
        cluster.reconsider();
        Ok(probe)
    }

    /// Samples as often as somebody needs it, and at the heartbeat otherwise, until the node
    /// leaves, or somebody else is to ask: over the connection that is returned, if any.
    async fn run(
        &mut self,
        cluster: &Arc<Cluster>,
        node: &Arc<Node>,
    ) -> Result<Option<Met>, ProbeError> {
        while !node.is_leaving() {
            refuse_stranger(cluster, node)?;
            let config = cluster.topology().config.clone();
            if !Arc::ptr_eq(&config, &self.config) {
                if config.monitor(&cluster.name) != self.monitor {
                    break;
                }
                self.config = config.clone();
            }
            if let Some(other) = self.look.other(cluster, node).await {
                tracing::info!(cluster = %cluster.name, node = %node.name, "node's name leads to another server now");
                return Ok(Some(other));
            }
            let poll = config.consistency.poll_interval;
            let pause = self.pause(cluster, node, poll);
            if !self.needed(cluster, node) {
                self.rest(cluster, node, &config).await;
            }
            if self.needed(cluster, node) || self.last_start.elapsed() < pause {
                self.wait(cluster, node, pause, poll).await;
            }
            self.sample(cluster, node, &config).await?;
        }
        Ok(None)
    }

    /// How long to wait between two questions while somebody needs the answer.
    fn pause(&self, cluster: &Cluster, node: &Node, poll: Duration) -> Duration {
        if cluster.is_primary(node) || self.can_wait && node.position().is_some() {
            // Who waits by itself answers when there is something to say.
            return poll;
        }
        // The longer nothing moves, the rarer it is asked: replay may be paused for hours. And who is late is
        // not there sooner for being asked.
        let late = node.lag().unwrap_or_default() / LATE_SHARE;
        let still = poll * (self.stalled / STALLED_SHARE);
        still.max(late).clamp(poll, poll * SLOW_MAX)
    }

    /// Waits until the node is to be asked: so long after it was asked last, or when traffic has met an error.
    async fn wait(&mut self, cluster: &Cluster, node: &Node, pause: Duration, poll: Duration) {
        if pause > poll {
            let rest = pause.saturating_sub(self.last_start.elapsed());
            self.sleep_until_woken(node, rest).await;
            if self.last_start.elapsed() >= poll {
                return;
            }
        }
        // However often it is woken, never more often than this.
        if cluster.is_primary(node) {
            self.wait_for_urgency(cluster, node, poll).await;
        } else if self.can_wait {
            self.steps.next(poll).await;
        } else {
            self.wait_for_goal(cluster, node, poll).await;
        }
    }

    /// Waits until the primary is to be asked again: at once when a read waits for the answer, or else at a step, as
    /// what it says then serves all that have come by then.
    async fn wait_for_urgency(&mut self, cluster: &Cluster, node: &Node, poll: Duration) {
        cluster.set_rest(node, Rest::Step);
        loop {
            // The next step may come sooner than a poll after a question between two steps.
            let is_due = |probe: &Probe| probe.last_start.elapsed() > poll / 2;
            if cluster.is_urgent() && is_due(self) {
                break;
            }
            tokio::select! {
                () = node.wake.notified() => {}
                () = self.steps.next(poll) => if is_due(self) { break },
            }
        }
        cluster.set_rest(node, Rest::None);
    }

    /// Waits until a replica is to be asked again: when the primary has told a position that somebody waits for,
    /// or else at a step. At a step at which the primary is asked its answer is worth waiting for: what the
    /// replica says before that is of the position before.
    async fn wait_for_goal(&mut self, cluster: &Cluster, node: &Node, poll: Duration) {
        cluster.set_rest(node, Rest::Step);
        let mut has_deferred = false;
        while cluster.goal() <= self.asked_for {
            tokio::select! {
                () = node.wake.notified() => {}
                () = self.steps.next(poll) => {
                    // But not for a primary that does not answer.
                    if has_deferred || !cluster.is_sample_wanted() {
                        break;
                    }
                    has_deferred = true;
                }
            }
        }
        cluster.set_rest(node, Rest::None);
    }

    /// Waits until somebody needs to know where the node is, or it is time to see whether it is there.
    async fn rest(&mut self, cluster: &Cluster, node: &Node, config: &Config) {
        cluster.set_rest(node, Rest::Long);
        // Asked for between the look and the flag: seen here.
        if !self.needed(cluster, node) {
            let pause = match cluster.topology().primary {
                Some(_) => config.health.interval,
                // Whoever is promoted should be noticed soon.
                None => SEARCH.min(config.health.interval),
            };
            let rest = pause.saturating_sub(self.last_start.elapsed());
            self.sleep_until_woken(node, rest).await;
        }
        cluster.set_rest(node, Rest::None);
    }

    /// Its server may wake it as well: that it goes is to be noticed before others come back from it.
    async fn sleep_until_woken(&mut self, node: &Node, rest: Duration) {
        tokio::select! {
            () = sleep(rest) => {}
            () = node.wake.notified() => {}
            () = self.connection.unasked() => {}
        }
    }

    fn needed(&self, cluster: &Cluster, node: &Node) -> bool {
        if cluster.is_primary(node) {
            return cluster.is_sample_wanted() || self.unflushed.is_some();
        }
        node.role() == Role::Replica && node.position().is_none_or(|(_, at)| at < cluster.goal())
    }

    async fn sample(
        &mut self,
        cluster: &Cluster,
        node: &Node,
        config: &Config,
    ) -> Result<(), ProbeError> {
        let (limit, poll) = (config.health.timeout, config.consistency.poll_interval);
        self.last_start = Instant::now();
        self.asked_for = cluster.goal();
        let for_cluster = cluster.is_primary(node);
        let clock = if for_cluster {
            &cluster.clock
        } else {
            node.clock()
        };
        let tick = clock.begin();
        node.note_asked();
        let told = match self.awaited(cluster, node) {
            Some(lsn) => {
                let patience = poll * SLOW_MAX;
                self.ask_position(&position_from(lsn, patience), limit + patience)
                    .await?
            }
            None => self.ask_position(POSITION, limit).await?,
        };
        node.metrics.samples.increment(1);
        node.note_answered();
        let Told { lsn, flushed, .. } = told;
        if told.in_recovery {
            node.set_role(Role::Replica);
            if for_cluster {
                // It was the primary, whose clock the sample began on: it says nothing on its own.
                return Ok(());
            }
            if cluster.is_followed_by(node) {
                self.see_it_stay(cluster, node, told.received, config)
                    .await?;
            } else {
                self.see_timeline(cluster, node, limit).await?;
            }
            self.note_replica(cluster, node, tick, lsn);
        } else {
            let lsn = lsn.without_page_header(self.block, self.segment);
            if node.role() != Role::Primary {
                let timeline = self.ask_timeline(TIMELINE, 16, limit).await?;
                node.set_timeline(timeline);
                node.set_role(Role::Primary);
                cluster.reconsider();
                cluster.note_fenced(node);
            }
            node.set_position(lsn);
            // A sample that began on the cluster's clock belongs to the primary of that moment.
            if for_cluster && cluster.is_primary(node) {
                let waited_for = cluster.is_sample_wanted();
                cluster.sampled(tick, lsn, self.last_start);
                self.see_to_flush(cluster, flushed, waited_for.then_some(lsn), config)
                    .await?;
            }
        }
        Ok(())
    }

    /// The next position that somebody waits for this replica to reach, if it can wait for it.
    fn awaited(&self, cluster: &Cluster, node: &Node) -> Option<Lsn> {
        if !self.can_wait || node.role() != Role::Replica || cluster.is_primary(node) {
            return None;
        }
        let (_, at) = node.position()?;
        cluster.next_goal(at)
    }

    /// Has the primary flush what somebody waits for, if it does not do so by itself.
    async fn see_to_flush(
        &mut self,
        cluster: &Cluster,
        flushed: Lsn,
        waited_for: Option<Lsn>,
        config: &Config,
    ) -> Result<(), ProbeError> {
        let poll = config.consistency.poll_interval;
        // The next sample is a poll later, or nearly.
        let patience = (self.flush_time * FLUSHES).clamp(poll / 2, poll * UNFLUSHED_MAX);
        let is_unflushed = |(lsn, _): &(Lsn, Instant)| flushed < *lsn;
        self.unflushed = match self.unflushed.filter(is_unflushed) {
            Some((lsn, since)) if since.elapsed() < patience => Some((lsn, since)),
            Some(_) => {
                self.flush(cluster, config.health.timeout).await?;
                None
            }
            None => waited_for
                .map(|lsn| (lsn, Instant::now()))
                .filter(is_unflushed),
        };
        Ok(())
    }

    async fn flush(&mut self, cluster: &Cluster, limit: Duration) -> Result<(), ProbeError> {
        let began = Instant::now();
        let rows = match self.ask(FLUSH, limit).await {
            Ok(rows) => rows,
            Err(ProbeError::Connect(ConnectError::Refused(error))) => {
                let error = ConnectError::Refused(error);
                tracing::debug!(%error, "primary can't be asked to flush its WAL");
                // Nor is it soon again.
                self.flush_time = limit;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.flush_time = began.elapsed();
        let lsn = rows.first().and_then(|row| row.first()?.as_deref());
        let lsn = lsn.and_then(Lsn::parse).ok_or(ProbeError::Answer(rows))?;
        // Replicas are asked once more at once: they will have it in a moment.
        cluster.raise_goal(lsn);
        Ok(())
    }

    /// Sees whether a replica that has followed the primary's timeline does so still: somebody may have promoted a
    /// node that the configuration does not have, and let it follow that. `received` is the timeline that it says it is
    /// sent; where it does not, it is asked for what else tells it now and then, as that comes late anyway.
    async fn see_it_stay(
        &mut self,
        cluster: &Cluster,
        node: &Node,
        received: Option<u32>,
        config: &Config,
    ) -> Result<(), ProbeError> {
        let timeline = match received {
            Some(timeline) => timeline,
            None if self.timeline_asked.elapsed() < config.health.interval => return Ok(()),
            None => {
                self.timeline_asked = Instant::now();
                self.ask_timeline(REPLAYED_TIMELINE, 10, config.health.timeout)
                    .await?
            }
        };
        let timeline = cluster.note_timeline(node, timeline);
        if cluster.note_departure(node, timeline) {
            let expected = cluster.clock.timeline();
            let (cluster, node) = (&cluster.name, &node.name);
            tracing::warn!(%cluster, %node, timeline, expected, "replica has left the primary's timeline for another: it gets no reads until it is back, or that is the primary's");
        }
        Ok(())
    }

    /// Sees whether a replica follows the primary's timeline by now. Its position may have been read before: what
    /// it has replayed and what it will are of one history, unless it leaves that for a newer one.
    async fn see_timeline(
        &mut self,
        cluster: &Cluster,
        node: &Node,
        limit: Duration,
    ) -> Result<(), ProbeError> {
        let timeline = self.ask_timeline(REPLAYED_TIMELINE, 10, limit).await?;
        let timeline = cluster.note_timeline(node, timeline);
        let before = node.timeline();
        if timeline == before {
            return Ok(());
        }
        node.set_timeline(timeline);
        let expected = cluster.clock.timeline();
        let (follows, cluster, node) = (cluster.is_followed_by(node), &cluster.name, &node.name);
        if !follows {
            tracing::warn!(%cluster, %node, timeline, expected, "replica is not known to follow the primary's timeline: it gets no reads until it is");
        } else if before != 0 {
            tracing::info!(%cluster, %node, timeline, "replica follows the primary's timeline");
        }
        Ok(())
    }

    fn note_replica(&mut self, cluster: &Cluster, node: &Node, tick: Tick, lsn: Lsn) {
        let moved = node.position().is_none_or(|(_, old)| old != lsn);
        let is_known = cluster.note_position(node, lsn);
        // While nobody waits for it to move, it need not.
        self.stalled = match is_known && (moved || lsn >= cluster.goal()) {
            true => 0,
            false => self.stalled.saturating_add(1),
        };
        node.clock().complete(tick, lsn);
        if is_known && moved {
            cluster.has_moved();
        }
    }

    /// Asks for what [`POSITION`] gives, in the last row: as often as somebody needs it, so without taking
    /// memory.
    async fn ask_position(&mut self, sql: &str, limit: Duration) -> Result<Told, ProbeError> {
        let mut found = None;
        let asked = self.connection.query_with(sql, |row| {
            found = position(&row);
            Ok(())
        });
        match timeout(limit, asked).await {
            Ok(asked) => asked?,
            Err(_) => return Err(ProbeError::Timeout(limit)),
        }
        found.ok_or(ProbeError::Position)
    }

    /// Asks for a timeline, told in digits of this radix.
    async fn ask_timeline(
        &mut self,
        sql: &str,
        radix: u32,
        limit: Duration,
    ) -> Result<u32, ProbeError> {
        let rows = self.ask(sql, limit).await?;
        let text = rows.first().and_then(|row| row.first()?.as_deref());
        let timeline = text.and_then(|text| u32::from_str_radix(text, radix).ok());
        timeline.ok_or(ProbeError::Answer(rows))
    }

    async fn ask(
        &mut self,
        sql: &str,
        limit: Duration,
    ) -> Result<Vec<Vec<Option<String>>>, ProbeError> {
        match timeout(limit, self.connection.query(sql)).await {
            Ok(rows) => Ok(rows?),
            Err(_) => Err(ProbeError::Timeout(limit)),
        }
    }
}

/// A node of another system than the cluster's is not watched: what it says of itself is of no use.
fn refuse_stranger(cluster: &Cluster, node: &Node) -> Result<(), ProbeError> {
    let topology = cluster.topology();
    match topology.is_stranger(node) {
        true => Err(ProbeError::OtherSystem {
            found: node.system(),
            expected: topology.system,
        }),
        false => Ok(()),
    }
}

/// The question for [`POSITION`], to be answered when a standby has replayed to `lsn`, and after `patience` in
/// any case, or when it is promoted. Whether it has got there is told by its position alone: that is of its
/// timeline.
fn position_from(lsn: Lsn, patience: Duration) -> String {
    let ms = patience.as_millis().max(1);
    format!(
        "WAIT FOR LSN '{lsn}' WITH (MODE 'standby_replay', TIMEOUT '{ms}ms', NO_THROW); {POSITION}"
    )
}

/// What a node has told of where it is, as [`POSITION`] asks for it.
struct Told {
    in_recovery: bool,
    lsn: Lsn,
    /// Of a primary.
    flushed: Lsn,
    /// The timeline that a standby is sent.
    received: Option<u32>,
}

/// A standby that has replayed nothing yet reports NULL: it is at the beginning.
fn position(row: &[Option<&[u8]>]) -> Option<Told> {
    let [lsn, flushed, Some(in_recovery), received] = *row else {
        return None;
    };
    fn text(text: &[u8]) -> Option<&str> {
        str::from_utf8(text).ok()
    }
    let parse = |lsn: Option<&[u8]>| match lsn {
        Some(lsn) => Lsn::parse(text(lsn)?),
        None => Some(Lsn(1)),
    };
    Some(Told {
        in_recovery: in_recovery == b"t",
        lsn: parse(lsn)?,
        flushed: parse(flushed)?,
        received: received.and_then(|timeline| text(timeline)?.parse().ok()),
    })
}
