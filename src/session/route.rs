//! Owns: where a batch goes, and the reason. Never: waits, or looks at anything but what it is
//! given.

#[cfg(test)]
mod tests;

use std::ops::Deref;
use std::time::Duration;

use smallvec::SmallVec;

use super::consistency::{Clock, Floors, Freshness, Incarnation, Lsn, Mark, NodeId, Replica};
use super::token::Token;
use crate::config::Level;

/// Why a batch goes where it goes. The names are the same in logs, metrics and docs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A read, on a replica that has all the session needs.
    Fresh,
    /// A read that waited at the gate until a replica had all that the session needs.
    Gate,
    /// A read; the primary takes its share.
    Shared,
    /// Not proven to be a read.
    Write,
    /// It might be a read, but what the database's catalog says of its names is not known now.
    CatalogUnknown,
    /// It reads or changes the session's state.
    SessionState,
    /// It opens, closes or is part of a transaction.
    Transaction,
    /// It is part of a transaction that is on a replica, as nothing in it has needed the primary.
    TransactionRead,
    /// No replica is known to have the session's own last write.
    OwnWrite,
    /// No replica is known to have all that the primary or another replica has shown the session.
    SeenNewer,
    /// No replica is known to have the last change of the database's schema.
    NewerSchema,
    /// The server that the session cannot leave holds something the read may need.
    PinnedServer,
    /// More of the pipeline is to come, and it is not known what.
    OpenPipeline,
    /// The session's consistency level asks for the primary.
    Level,
    /// The session's transactions are serializable, which no standby offers.
    Isolation,
    /// No replica is known to be within the lag that is allowed.
    OverMaxLag,
    /// No replica is known to have every write that was acknowledged to anybody.
    OthersWrite,
    /// No replica is known to have reached the session's token.
    Token,
    /// No replica is known to have what the sessions of its causal key must see.
    CausalKey,
    /// What that is can't be known, as the store of it is away.
    KeyUnknown,
    /// A read, on the replica that it names.
    NamedReplica,
    /// A read that names the primary.
    NamedPrimary,
    /// Every replica is over the lag limit.
    Lagging,
    /// No replica is up and known.
    NoReplica,
    /// A replica was chosen but could not be reached.
    ReplicaFailed,
    /// A replica has refused it for being one.
    Repaired,
}

impl Reason {
    pub const ALL: [Reason; 26] = [
        Reason::Fresh,
        Reason::Gate,
        Reason::Shared,
        Reason::Write,
        Reason::CatalogUnknown,
        Reason::SessionState,
        Reason::Transaction,
        Reason::TransactionRead,
        Reason::OwnWrite,
        Reason::SeenNewer,
        Reason::NewerSchema,
        Reason::PinnedServer,
        Reason::OpenPipeline,
        Reason::Level,
        Reason::Isolation,
        Reason::OverMaxLag,
        Reason::OthersWrite,
        Reason::Token,
        Reason::CausalKey,
        Reason::KeyUnknown,
        Reason::NamedReplica,
        Reason::NamedPrimary,
        Reason::Lagging,
        Reason::NoReplica,
        Reason::ReplicaFailed,
        Reason::Repaired,
    ];

    /// Whether it is that replicas are behind what the session asks for.
    pub fn is_behind(self) -> bool {
        matches!(
            self,
            Reason::OwnWrite
                | Reason::SeenNewer
                | Reason::NewerSchema
                | Reason::Token
                | Reason::CausalKey
                | Reason::OthersWrite
                | Reason::OverMaxLag
        )
    }

    /// Whether it leads to a replica; every other one leads to the primary.
    pub fn is_for_replica(self) -> bool {
        matches!(
            self,
            Reason::Fresh | Reason::Gate | Reason::NamedReplica | Reason::TransactionRead
        )
    }

    pub fn name(self) -> &'static str {
        match self {
            Reason::Fresh => "fresh",
            Reason::Gate => "gate",
            Reason::Shared => "shared",
            Reason::Write => "write",
            Reason::CatalogUnknown => "catalog_unknown",
            Reason::SessionState => "session_state",
            Reason::Transaction => "transaction",
            Reason::TransactionRead => "transaction_read",
            Reason::OwnWrite => "own_write",
            Reason::SeenNewer => "seen_newer",
            Reason::NewerSchema => "newer_schema",
            Reason::PinnedServer => "pinned_server",
            Reason::OpenPipeline => "open_pipeline",
            Reason::Level => "level",
            Reason::Isolation => "isolation",
            Reason::OverMaxLag => "over_max_lag",
            Reason::OthersWrite => "others_write",
            Reason::Token => "token",
            Reason::CausalKey => "causal_key",
            Reason::KeyUnknown => "key_unknown",
            Reason::NamedReplica => "named_replica",
            Reason::NamedPrimary => "named_primary",
            Reason::Lagging => "lagging",
            Reason::NoReplica => "no_replica",
            Reason::ReplicaFailed => "replica_failed",
            Reason::Repaired => "repaired",
        }
    }
}

/// Whether a node takes reads, freshness aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    Yes,
    /// Up, but over the lag limit.
    Lagging,
    /// Down, draining, of unknown role, or not a replica.
    No,
}

/// What routing has to know of a node besides its freshness.
pub trait Candidate: Replica {
    fn serving(&self) -> Serving;
    /// How busy it is for its weight, about in milliseconds of work under way; lower is better.
    fn load(&self) -> f32;
    /// It is in the proxy's own zone.
    fn is_near(&self) -> bool;
    /// How long ago the primary passed the position that this node has replayed to.
    fn lag(&self) -> Option<Duration>;
    /// It is known to have everything that had been committed by then, on the caller's clock.
    fn as_of(&self) -> Moment;
}

/// A moment on the proxy's clock, in microseconds; 0 is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

/// What is said of a session's reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub level: Level,
    /// The lag that is allowed: by [`Level::Bounded`], and whatever the level if a session or a
    /// statement asks for it.
    pub max_lag: Option<Duration>,
    /// Whether the primary takes a share of the reads.
    pub share: bool,
    /// The longest a read waits at the gate.
    pub gate_wait: Duration,
    /// Where the read has been tried in vain.
    pub tried: Tried,
}

/// Replicas that a read has been tried on in vain; with more than a few, all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    nodes: [Option<NodeId>; 3],
    all: bool,
}

impl Tried {
    pub fn extend(&mut self, node: Option<NodeId>) {
        match self.nodes.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = node,
            None => self.all |= node.is_some(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.nodes[0].is_none()
    }

    fn has(&self, node: NodeId) -> bool {
        self.all || self.nodes.contains(&Some(node))
    }
}

/// What one read asks beyond its session's floors.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    /// Everything that had been committed by then.
    pub not_before: Option<Moment>,
    /// What had been acknowledged to anybody by then, on the primary's clock.
    pub others: Option<Mark>,
    /// What the sessions of its causal key must see.
    pub key: Option<KeyFloor>,
    /// This node and no other, by its place among the nodes.
    pub node: Option<usize>,
}

/// Where a read goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ReadRoute {
    Replica {
        index: usize,
        life: Incarnation,
    },
    /// Wait: a replica is nearly there. What it lacks is the reason to go to the primary otherwise.
    Gate(Reason),
    Primary(Reason),
}

/// So many reads after a write go to the primary at once: often there are no more. Who goes on reading there moves its
/// floor to now with each read, so it waits at the gate once.
const READS_AT_ONCE: u8 = 2;

/// Chooses where a session's read goes that asks for nothing beyond the session's floors. `random`
/// decides between equals.
pub fn read_route<N: Candidate>(
    floors: &Floors,
    policy: &Policy,
    primary: &Clock,
    nodes: &[impl Deref<Target = N>],
    primary_node: Option<&N>,
    random: u64,
) -> ReadRoute {
    if let Some((index, life)) = stays(floors, policy, nodes) {
        return ReadRoute::Replica { index, life };
    }
    bounded_route(
        floors,
        policy,
        &Bounds::default(),
        primary,
        nodes,
        primary_node,
        random,
    )
}

/// The same, of a read that asks for more than that.
pub fn bounded_route<N: Candidate>(
    floors: &Floors,
    policy: &Policy,
    bounds: &Bounds,
    primary: &Clock,
    nodes: &[impl Deref<Target = N>],
    primary_node: Option<&N>,
    random: u64,
) -> ReadRoute {
    if policy.level == Level::Primary {
        return ReadRoute::Primary(Reason::Level);
    }
    let alone;
    let floors = match primary_node {
        Some(_) => floors,
        None => {
            alone = floors.without_primary();
            &alone
        }
    };
    let mut fresh: SmallVec<[(usize, Incarnation); 8]> = SmallVec::new();
    let mut missed = match policy.tried.is_empty() {
        true => Reason::NoReplica,
        false => Reason::ReplicaFailed,
    };
    let mut nearly = false;
    for (index, node) in nodes.iter().enumerate() {
        if policy.tried.has(node.id()) || bounds.node.is_some_and(|named| named != index) {
            continue;
        }
        match judge(floors, policy.level, bounds, primary, nodes, &**node) {
            Ok(life) => fresh.push((index, life)),
            Err(reason) => {
                missed = worse(missed, reason);
                nearly |= reason.is_behind()
                    && (reason != Reason::OwnWrite || floors.reads_on_primary() >= READS_AT_ONCE)
                    && node.lag().is_some_and(|lag| lag < policy.gate_wait);
            }
        }
    }
    let Some((index, life)) = choose(floors, nodes, &fresh, random) else {
        return if nearly {
            ReadRoute::Gate(missed)
        } else {
            ReadRoute::Primary(missed)
        };
    };
    if policy.share && primary_node.is_some_and(|node| node.load() < nodes[index].load()) {
        return ReadRoute::Primary(Reason::Shared);
    }
    ReadRoute::Replica { index, life }
}

/// Whether `node` may serve a read of this level: in which life, or why not.
#[inline]
pub fn judge<N: Candidate>(
    floors: &Floors,
    level: Level,
    bounds: &Bounds,
    primary: &Clock,
    nodes: &[impl Deref<Target = N>],
    node: &N,
) -> Result<Incarnation, Reason> {
    match node.serving() {
        Serving::No => return Err(Reason::NoReplica),
        Serving::Lagging if bounds.node.is_none() => return Err(Reason::Lagging),
        Serving::Lagging | Serving::Yes => {}
    }
    let (life, replayed) = node.position().ok_or(Reason::NoReplica)?;
    let freshness = match level {
        Level::Primary => return Err(Reason::Level),
        Level::Eventual | Level::Bounded => match floors.misses_schema(primary, replayed) {
            true => Freshness::MissesSchema,
            false => Freshness::Fresh,
        },
        Level::Session | Level::Global => floors.judge(primary, nodes, node),
    };
    let lacks = match freshness {
        Freshness::Fresh => bounds.lacks(primary, node, replayed),
        Freshness::Unknown => Some(Reason::NoReplica),
        Freshness::MissesReads => Some(Reason::SeenNewer),
        Freshness::MissesToken => Some(Reason::Token),
        Freshness::MissesWrite => Some(Reason::OwnWrite),
        Freshness::MissesSchema => Some(Reason::NewerSchema),
    };
    lacks.map_or(Ok(life), Err)
}

/// What the sessions of a causal key must see.
#[derive(Clone, Debug)]
pub struct KeyFloor {
    /// By what this proxy knows.
    pub here: Mark,
    /// By what other proxies have said; `None` while that is not known.
    pub elsewhere: Option<[Option<Token>; 2]>,
}

impl KeyFloor {
    fn lacks(&self, primary: &Clock, replayed: Lsn) -> Option<Reason> {
        let Some(tokens) = &self.elsewhere else {
            return Some(Reason::KeyUnknown);
        };
        let mut tokens = tokens.iter().flatten();
        let has_all = self.here.is_reached(primary, replayed)
            && tokens.all(|token| token.is_reached(primary, replayed));
        (!has_all).then_some(Reason::CausalKey)
    }
}

impl Bounds {
    /// The same, of one node alone.
    pub fn of_node(&self, index: usize) -> Bounds {
        Bounds {
            node: Some(index),
            ..self.clone()
        }
    }

    /// The newest timeline of what others have said of its causal key; 0 if they have said nothing.
    pub fn timeline(&self) -> u32 {
        let said = self.key.as_ref().and_then(|key| key.elsewhere.as_ref());
        let tokens = said.into_iter().flatten().flatten();
        tokens.map(|token| token.timeline).max().unwrap_or(0)
    }

    /// What a replica that has replayed to there lacks.
    fn lacks<N: Candidate>(&self, primary: &Clock, node: &N, replayed: Lsn) -> Option<Reason> {
        if self.not_before.is_some_and(|moment| node.as_of() < moment) {
            return Some(Reason::OverMaxLag);
        }
        let by_key = self
            .key
            .as_ref()
            .and_then(|key| key.lacks(primary, replayed));
        let has = |mark: Mark| mark.is_reached(primary, replayed);
        let misses_others = self.others.is_some_and(|mark| !has(mark));
        by_key.or(misses_others.then_some(Reason::OthersWrite))
    }
}

/// In milliseconds of work that is waited for. Among fast queries one node has two or three more
/// under way than another at any moment, and the next moment it is the other way round.
const WORTH_A_MOVE_MS: f32 = 8.0;

/// A move makes the session's floor rise to what its replica has shown; without a gain worth that,
/// it stays.
fn is_worth_a_move<N: Candidate>(own: &N, other: &N) -> bool {
    const TIMES: f32 = 2.0;
    let (own, other) = (own.load(), other.load());
    own > other * TIMES && own - other > WORTH_A_MOVE_MS
}

/// The session's replica, where no other one could be chosen whatever they have: nearly every read.
#[inline]
fn stays<N: Candidate>(
    floors: &Floors,
    policy: &Policy,
    nodes: &[impl Deref<Target = N>],
) -> Option<(usize, Incarnation)> {
    let own = floors.replica()?;
    let may_stay = policy.level == Level::Session && !policy.share && policy.tried.is_empty();
    if !may_stay || floors.awaits_schema() {
        return None;
    }
    let index = nodes.iter().position(|node| node.id() == own)?;
    let own = &*nodes[index];
    let life = floors.life_on(own)?;
    let is_own = own.serving() == Serving::Yes;
    let (is_busy, is_near) = (own.load() > WORTH_A_MOVE_MS, own.is_near());
    let is_better = |(other, node): (usize, &N)| {
        other != index
            && (is_busy || node.is_near() && !is_near)
            && node.serving() == Serving::Yes
            && (node.is_near() && !is_near || is_worth_a_move(own, node))
    };
    let mut others = nodes.iter().map(|node| &**node).enumerate();
    (is_own && !others.any(is_better)).then_some((index, life))
}

/// The session's replica while that is not much busier than another; else the better of two.
fn choose<N: Candidate>(
    floors: &Floors,
    nodes: &[impl Deref<Target = N>],
    fresh: &[(usize, Incarnation)],
    random: u64,
) -> Option<(usize, Incarnation)> {
    let near: SmallVec<[_; 8]> = fresh
        .iter()
        .copied()
        .filter(|pick| nodes[pick.0].is_near())
        .collect();
    let fresh = if near.is_empty() { fresh } else { &near };
    let n = fresh.len() as u64;
    if n == 0 {
        return None;
    }
    let first = random % n;
    let second = (first + 1 + (random >> 32) % (n - 1).max(1)) % n;
    let load = |pick: (usize, Incarnation)| nodes[pick.0].load();
    let (a, b) = (fresh[first as usize], fresh[second as usize]);
    let better = if load(b) < load(a) { b } else { a };
    let own = fresh.iter().find(|(index, _)| {
        floors
            .replica()
            .is_some_and(|own| own == nodes[*index].id())
    });
    match own {
        Some(&own) if !is_worth_a_move(&*nodes[own.0], &*nodes[better.0]) => Some(own),
        _ => Some(better),
    }
}

/// Of two reasons why no replica would do, the one that says more.
fn worse(a: Reason, b: Reason) -> Reason {
    let rank = |reason| match reason {
        Reason::NoReplica => 0,
        Reason::Lagging => 1,
        Reason::OverMaxLag => 2,
        Reason::OwnWrite => 3,
        Reason::Token => 4,
        Reason::SeenNewer => 5,
        Reason::CausalKey => 6,
        _ => 7,
    };
    if rank(b) > rank(a) { b } else { a }
}
