//! Owns: log sequence numbers, the clock of their samples, and the floor below which a session may
//! not read. Never: compares positions as text, takes an unknown position for a fresh one, or lifts
//! a floor because time has passed.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use super::schema::Schema;
use super::token::Token;

/// A position in the write-ahead log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Reads PostgreSQL's text form, `16/B374D848`.
    pub fn parse(text: &str) -> Option<Lsn> {
        let (high, low) = text.trim().split_once('/')?;
        let half = |s: &str| match s.len() {
            1..=8 if s.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(s, 16).ok(),
            _ => None,
        };
        Some(Lsn(half(high)? << 32 | half(low)?))
    }

    /// The position a standby will report once it has replayed everything before this insert
    /// position.
    ///
    /// After a record that ends exactly on a page boundary, the insert position already counts the
    /// next page's header, which no standby replays until a record follows it: on an idle primary
    /// it would be waited for in vain. `block` and `segment` are the server's `wal_block_size` and
    /// `wal_segment_size` in bytes.
    pub fn without_page_header(self, block: u64, segment: u64) -> Lsn {
        const LONG_HEADER: u64 = 40;
        const SHORT_HEADER: u64 = 24;
        if block == 0 || segment == 0 {
            return self;
        }
        let offset = self.0 % block;
        let header = if self.0 % segment < block {
            LONG_HEADER
        } else {
            SHORT_HEADER
        };
        if (1..=header).contains(&offset) {
            Lsn(self.0 - offset)
        } else {
            self
        }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// A moment of a [`Clock`]: the number of the last sample that had been started by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);

/// One sampled position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub tick: Tick,
    pub lsn: Lsn,
}

/// The identifier of the system that a cluster is of, for all who have to know what it is by now; 0 while it is not
/// known.
#[derive(Clone, Debug, Default)]
pub struct System(Arc<AtomicU64>);

impl System {
    pub fn get(&self) -> u64 {
        self.0.load(SeqCst)
    }

    pub fn set(&self, identifier: u64) {
        self.0.store(identifier, SeqCst);
    }
}

/// Numbered samples of one node's position, taken one after the other by one task and read by
/// everybody without a lock.
///
/// A session notes the clock's [`now`](Clock::now) when something has been acknowledged to it; any
/// sample numbered later was *started* after that moment, so its position covers what was
/// acknowledged. One sample serves every session that waits for it.
#[derive(Debug)]
pub struct Clock {
    started: AtomicU64,
    completed: AtomicU64,
    /// The number with which the current history began: a sample of an earlier one says nothing about
    /// positions in this one.
    epoch: AtomicU64,
    /// Whose positions these are; 0 while that is not known.
    timeline: AtomicU32,
    /// Of which system that is one.
    system: System,
    ring: Box<[Slot]>,
}

/// A sample's place in the ring. The tick is written last and read first and last, so a reader
/// that meets a writer sees that the slot is not what it wants.
#[derive(Debug, Default)]
struct Slot {
    tick: AtomicU64,
    lsn: AtomicU64,
}

impl Clock {
    /// How many samples are remembered. A session that asks for an older one gets the oldest, which
    /// is later than it needs and so is safe.
    const SAMPLES: usize = 2048;

    pub fn new() -> Clock {
        Clock {
            started: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            timeline: AtomicU32::new(0),
            system: System::default(),
            ring: (0..Self::SAMPLES).map(|_| Slot::default()).collect(),
        }
    }

    /// The present moment.
    pub fn now(&self) -> Tick {
        Tick(self.started.load(SeqCst))
    }

    /// Numbers a new sample. To be called *before* the server is asked.
    pub fn begin(&self) -> Tick {
        Tick(self.started.fetch_add(1, SeqCst) + 1)
    }

    /// Records the answer to the sample `tick`.
    pub fn complete(&self, tick: Tick, lsn: Lsn) {
        let slot = &self.ring[tick.0 as usize % Self::SAMPLES];
        slot.tick.store(0, SeqCst);
        slot.lsn.store(lsn.0, SeqCst);
        slot.tick.store(tick.0, SeqCst);
        self.completed.store(tick.0, SeqCst);
    }

    /// The system of the present history.
    pub fn system(&self) -> &System {
        &self.system
    }

    /// The timeline of the present history.
    pub fn timeline(&self) -> u32 {
        self.timeline.load(SeqCst)
    }

    /// The history that begins is on this timeline. To be called before [`new_epoch`](Self::new_epoch).
    pub fn set_timeline(&self, timeline: u32) {
        self.timeline.store(timeline, SeqCst);
    }

    /// Starts a new history: the node may have been restarted, or another node is the primary now.
    /// Samples taken before count no more.
    pub fn new_epoch(&self) {
        // By a number of its own: no moment before it is one of this history.
        self.epoch.store(self.begin().0, SeqCst);
    }

    /// Whether the moment is of this history.
    fn contains(&self, moment: Tick) -> bool {
        moment.0 >= self.epoch.load(SeqCst)
    }

    /// The first completed sample of this history that was started after `moment`.
    pub fn after(&self, moment: Tick) -> Option<Sample> {
        let completed = self.completed.load(SeqCst);
        let oldest = (completed + 1).saturating_sub(Self::SAMPLES as u64);
        let first = moment.0.max(self.epoch.load(SeqCst)) + 1;
        (first.max(oldest)..=completed).find_map(|tick| self.sample(tick))
    }

    /// Whether the sample is of this history.
    fn counts(&self, sample: Sample) -> bool {
        sample.tick.0 > self.epoch.load(SeqCst)
    }

    /// The newest completed sample of this history.
    pub fn latest(&self) -> Option<Sample> {
        let completed = self.completed.load(SeqCst);
        if completed <= self.epoch.load(SeqCst) {
            None
        } else {
            self.sample(completed)
        }
    }

    fn sample(&self, tick: u64) -> Option<Sample> {
        let slot = &self.ring[tick as usize % Self::SAMPLES];
        if slot.tick.load(SeqCst) != tick {
            return None;
        }
        let lsn = Lsn(slot.lsn.load(SeqCst));
        (slot.tick.load(SeqCst) == tick).then_some(Sample {
            tick: Tick(tick),
            lsn,
        })
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

/// Names one node for as long as the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// Names one life of one node's server: from a start of its postmaster to the next. 0 is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation(pub u64);

/// What a session has to know of a replica.
pub trait Replica {
    fn id(&self) -> NodeId;
    /// How far the node has replayed, and in which incarnation that was read; `None` when unknown.
    fn position(&self) -> Option<(Incarnation, Lsn)>;
    /// The clock of the node's own positions.
    fn clock(&self) -> &Clock;
}

/// What a session has seen, and so must not go back behind.
#[derive(Clone, Debug, Default)]
pub struct Floors {
    /// When its last batch that may have written was acknowledged, on the primary's clock.
    write: Option<Tick>,
    /// When the primary last showed it data: everybody's commits up to that moment.
    read: Option<Tick>,
    /// How often it has done so since the last write, or since a replica did.
    reads: u8,
    /// What had been acknowledged to anybody before it began.
    began: Option<Mark>,
    /// When anybody last changed the schema, until a replica is known to have that; and how often it
    /// had been changed by then.
    schema: Option<Box<Mark>>,
    schema_version: u32,
    /// What has been brought from elsewhere.
    token: Option<Box<Token>>,
    /// The replica that last showed it data.
    replica: Option<Seen>,
    /// For the history checker, which must be seen to fail without it.
    ignore_primary_reads: bool,
}

/// A moment on the primary's clock, with the first sample after it once that is known. The clock
/// forgets samples, and what it then answers is later: too late for a moment that many sessions
/// will ask for, long after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub moment: Tick,
    pub sample: Option<Sample>,
}

impl Mark {
    pub fn new(moment: Tick) -> Mark {
        Mark {
            moment,
            sample: None,
        }
    }

    /// The mark with its sample, if the clock has it by now.
    pub fn resolved(self, primary: &Clock) -> Mark {
        let known = self.sample.filter(|&sample| primary.counts(sample));
        Mark {
            sample: known.or_else(|| primary.after(self.moment)),
            ..self
        }
    }

    /// Whether a replica that has replayed to there has all that was acknowledged by then.
    pub fn is_reached(self, primary: &Clock, replayed: Lsn) -> bool {
        let sample = self.resolved(primary).sample;
        sample.is_some_and(|sample| replayed >= sample.lsn)
    }
}

/// What a replica has shown.
#[derive(Clone, Copy, Debug)]
struct Seen {
    node: NodeId,
    incarnation: Incarnation,
    /// On the replica's own clock.
    tick: Tick,
    /// The same moment on the primary's clock: a bound even when the replica is gone.
    primary: Tick,
}

impl Seen {
    /// Whether the replica is this one, and has been there ever since. One that was lost sight of may have
    /// gone back: it keeps its life over the crash of a backend, which it recovers from.
    fn lives_on<R: Replica>(&self, replica: &R) -> bool {
        let is_in_life = |(life, _)| life == self.incarnation;
        replica.id() == self.node
            && replica.clock().contains(self.tick)
            && replica.position().is_some_and(is_in_life)
    }

    /// The first sample of the replica's position after that, if it lives on.
    fn sample<R: Replica>(&self, nodes: &[impl std::ops::Deref<Target = R>]) -> Option<Sample> {
        let node = nodes.iter().find(|node| self.lives_on(&***node))?;
        node.clock().after(self.tick)
    }
}

impl Token {
    /// What must be replayed for it, in the present history. Of a history that has ended only what was
    /// carried over is left, and all of that is before the first sample of the present one. Of one that
    /// has not been met nothing is known. One of another system has ended too: the cluster was of that before.
    fn position(&self, primary: &Clock) -> Option<Lsn> {
        match self.timeline_at(primary).cmp(&primary.timeline()) {
            std::cmp::Ordering::Equal if self.is_at(primary) => Some(self.lsn),
            std::cmp::Ordering::Less | std::cmp::Ordering::Equal => {
                primary.after(Tick(0)).map(|sample| sample.lsn)
            }
            std::cmp::Ordering::Greater => None,
        }
    }

    /// Whether it is of the primary's system.
    fn is_at(&self, primary: &Clock) -> bool {
        self.system == primary.system.get()
    }

    /// Its timeline, if that is one of the primary's system, or else 0.
    fn timeline_at(&self, primary: &Clock) -> u32 {
        match self.is_at(primary) {
            true => self.timeline,
            false => 0,
        }
    }

    /// Whether a replica that has replayed to there has what it stands for.
    pub fn is_reached(&self, primary: &Clock, replayed: Lsn) -> bool {
        self.position(primary).is_some_and(|lsn| replayed >= lsn)
    }
}

/// Whether a replica may serve a session's next read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    Fresh,
    /// It has the session's own writes, but not yet all that the session has seen.
    MissesReads,
    /// It has not reached the position of a token, or that is not known.
    MissesToken,
    /// It lacks the session's own last write, or that is not known.
    MissesWrite,
    /// It lacks the last change of the schema, or that is not known.
    MissesSchema,
    /// Where the replica stands is unknown.
    Unknown,
}

impl Floors {
    /// A batch that was not proven to read only has ended on the primary.
    pub fn wrote(&mut self, primary: &Clock) {
        self.write = Some(primary.now());
        self.read = None;
        self.reads = 0;
        self.replica = None;
    }

    /// Whether a write of the session's may not be on a replica yet.
    pub fn has_written(&self) -> bool {
        self.write.is_some()
    }

    /// How often the primary has shown it data since it last wrote, or a replica did.
    pub fn reads_on_primary(&self) -> u8 {
        self.reads
    }

    /// A new session: it reads what had been acknowledged to anybody by `mark`.
    pub fn begin(&mut self, mark: Mark) {
        self.began = Some(mark);
    }

    /// The session must see what `token` stands for, too. Never lowers what it must see.
    pub fn receive(&mut self, token: Token) {
        let rank = |token: &Token| (token.timeline, token.lsn);
        let known = self.token.as_deref();
        let is_newer = |known: &Token| token.system != known.system || rank(&token) > rank(known);
        if known.is_none_or(is_newer) {
            self.token = Some(Box::new(token));
        }
    }

    /// The timeline of what has been brought from elsewhere, of the primary's system; 0 if nothing has.
    #[inline]
    pub fn timeline(&self, primary: &Clock) -> u32 {
        let token = self.token.as_ref();
        token.map_or(0, |token| token.timeline_at(primary))
    }

    /// A position that covers all that the session has written and seen, in the present history.
    /// `None` while a sample is missing for that.
    pub fn position<R: Replica>(
        &self,
        primary: &Clock,
        nodes: &[impl std::ops::Deref<Target = R>],
    ) -> Option<Lsn> {
        let after = |tick| primary.after(tick).map(|sample| sample.lsn);
        let mut position = Lsn(0);
        let mut cover = |lsn: Option<Lsn>| {
            position = position.max(lsn?);
            Some(())
        };
        for tick in [self.write, self.read].into_iter().flatten() {
            cover(after(tick))?;
        }
        if let Some(mark) = self.began {
            cover(mark.resolved(primary).sample.map(|sample| sample.lsn))?;
        }
        if let Some(token) = &self.token {
            cover(token.position(primary))?;
        }
        if let Some(seen) = self.replica {
            // It may have shown one record more than its position says.
            let beyond = |sample: Sample| Lsn(sample.lsn.0 + 1);
            let own = seen.sample(nodes).map(beyond);
            // The lower of the two: an idle primary never gets beyond where its replica is.
            cover(own.into_iter().chain(after(seen.primary)).min())?;
        }
        Some(position)
    }

    /// The last moment of the primary's clock after which there has to be a sample for all of this to be judged.
    pub fn last_moment(&self) -> Option<Tick> {
        let began = self.began.map(|mark| mark.moment);
        let schema = self.schema.as_ref().map(|mark| mark.moment);
        let seen = self.replica.map(|seen| seen.primary);
        [self.write, self.read, began, schema, seen]
            .into_iter()
            .flatten()
            .max()
    }

    /// While there is no primary, nobody can say how far it had come. What others had been told
    /// before the session began is then no reason to serve it nothing at all.
    pub fn without_primary(&self) -> Floors {
        Floors {
            began: None,
            schema: None,
            ..self.clone()
        }
    }

    /// Whoever changes the schema changes it for all sessions: none may read it as it was before.
    #[inline]
    pub fn heed(&mut self, schema: &Schema, primary: &Clock) {
        if !self.has_heeded(schema) {
            self.rise_to(schema, primary);
        }
    }

    /// Whether the schema has not been changed since then.
    #[inline]
    pub fn has_heeded(&self, schema: &Schema) -> bool {
        schema.version() == self.schema_version
    }

    #[cold]
    fn rise_to(&mut self, schema: &Schema, primary: &Clock) {
        let (version, mark) = schema.mark(primary);
        (self.schema, self.schema_version) = (Some(Box::new(mark)), version);
    }

    /// Whether a replica that has replayed to there may lack the last change of the schema.
    pub fn misses_schema(&self, primary: &Clock, replayed: Lsn) -> bool {
        self.schema.as_ref().is_some_and(|mark| {
            let sample = mark.resolved(primary).sample;
            sample.is_none_or(|sample| replayed < sample.lsn)
        })
    }

    /// Whether no replica is known to have the last change of the schema.
    #[inline]
    pub fn awaits_schema(&self) -> bool {
        self.schema.is_some()
    }

    /// The primary has shown data.
    pub fn read_primary(&mut self, primary: &Clock) {
        if self.ignore_primary_reads {
            return;
        }
        self.read = Some(primary.now());
        self.reads = self.reads.saturating_add(1);
        self.replica = None;
    }

    /// A replica that was [`Freshness::Fresh`] at the moment `lent` of its own clock has shown data. It had all
    /// that the floors asked for, so what it showed is the floor now, beside what was not asked for
    /// [without a primary](Self::without_primary). If it has been lost sight of since then, it may have gone back
    /// behind that, and no moment of its new history tells where it was.
    pub fn read_replica<R: Replica>(
        &mut self,
        primary: &Clock,
        replica: &R,
        life: Incarnation,
        lent: Tick,
    ) {
        // In this order: a history that begins after the look does not contain the moment.
        let tick = replica.clock().now();
        if !replica.clock().contains(lent) {
            return self.wrote(primary);
        }
        let has = |mark: &Mark, at| mark.is_reached(primary, at);
        let is_missed = |mark: &Mark| replica.position().is_none_or(|(_, at)| !has(mark, at));
        self.began = self.began.filter(is_missed);
        self.schema = self.schema.take().filter(|mark| is_missed(mark));
        self.write = None;
        self.read = None;
        self.reads = 0;
        self.token = None;
        self.replica = Some(Seen {
            node: replica.id(),
            incarnation: life,
            tick,
            primary: primary.now(),
        });
    }

    /// The replica that served the last read, if nothing has been done or seen elsewhere since.
    pub fn replica(&self) -> Option<NodeId> {
        self.own_replica().map(|seen| seen.node)
    }

    /// The life in which reads can go on there without any check, if `replica` is that one and has been there
    /// ever since.
    pub fn life_on<R: Replica>(&self, replica: &R) -> Option<Incarnation> {
        let seen = self.own_replica().filter(|_| self.began.is_none())?;
        seen.lives_on(replica).then_some(seen.incarnation)
    }

    fn own_replica(&self) -> Option<&Seen> {
        self.replica.as_ref().filter(|_| self.token.is_none())
    }

    /// Judges `candidate`; `nodes` are all nodes of the cluster.
    pub fn judge<R: Replica>(
        &self,
        primary: &Clock,
        nodes: &[impl std::ops::Deref<Target = R>],
        candidate: &R,
    ) -> Freshness {
        let Some((_, replayed)) = candidate.position() else {
            return Freshness::Unknown;
        };
        let covers = |sample: Option<Sample>| sample.is_some_and(|s| replayed >= s.lsn);
        if self.write.is_some_and(|tick| !covers(primary.after(tick))) {
            return Freshness::MissesWrite;
        }
        if self.misses_schema(primary, replayed) {
            return Freshness::MissesSchema;
        }
        if self
            .token
            .as_ref()
            .is_some_and(|token| !token.is_reached(primary, replayed))
        {
            return Freshness::MissesToken;
        }
        let read = self.read.map(Mark::new);
        let shown = [read, self.began].into_iter().flatten();
        if shown
            .map(|mark| mark.resolved(primary).sample)
            .any(|sample| !covers(sample))
        {
            return Freshness::MissesReads;
        }
        let Some(seen) = self.replica else {
            return Freshness::Fresh;
        };
        if seen.lives_on(candidate) {
            return Freshness::Fresh;
        }
        // A standby shows a commit a moment before its position passes it, so what it has shown may
        // be one record ahead of its position: whoever is beyond that position has the record too.
        let shown = seen.sample(nodes);
        if shown.is_some_and(|s| replayed > s.lsn) || covers(primary.after(seen.primary)) {
            Freshness::Fresh
        } else {
            Freshness::MissesReads
        }
    }

    /// Switches off the floor that reads on the primary raise.
    pub fn set_ignore_primary_reads(&mut self, ignore: bool) {
        self.ignore_primary_reads = ignore;
    }
}
