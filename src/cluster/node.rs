//! Owns: what is known of one node, in a form that everybody reads without a lock. Never: asks the
//! node anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use tokio::sync::Notify;

use super::fate::Inquiry;
use super::latency::Latency;
use super::metrics::NodeMetrics;
use super::pauses::Pauses;
use super::pool::{Pool, PoolKey};
use crate::config;
use crate::net::tls::NodeSide;
use crate::session::consistency::{Clock, Incarnation, Lsn, NodeId, Replica};
use crate::session::route::{Candidate, Moment, Serving};

/// One PostgreSQL instance.
pub struct Node {
    id: NodeId,
    pub name: String,
    pub host: String,
    pub port: u16,
    pub cluster: String,
    /// How new connections to it use TLS.
    pub tls: ArcSwap<NodeSide>,
    weight: AtomicU32,
    near: AtomicBool,
    role: AtomicU8,
    up: AtomicBool,
    /// Since when it is down; 0 while it is not.
    down_us: AtomicU64,
    /// A [`Loss`], or 0.
    loss: AtomicU8,
    /// It has been asked once what it is, whether it has answered or not.
    probed: AtomicBool,
    lagging: AtomicBool,
    /// It takes nothing new: it has been removed from the configuration.
    leaving: AtomicBool,
    /// It takes nothing new: an admin has said so.
    drained: AtomicBool,
    pub pauses: Arc<Pauses>,
    /// Its probe sleeps until somebody needs the position.
    resting: AtomicBool,
    /// The server's life in which the position was read; 0 while unknown.
    incarnation: AtomicU64,
    /// The life in which it was last met, also while its probe reconnects.
    last_life: AtomicU64,
    /// How often its probe has met it.
    meetings: AtomicU64,
    /// Its probe has been told what it is, and has not lost it since.
    watched: AtomicBool,
    /// The identifier of the system that it was of when it was last asked; 0 if it has told none.
    system: AtomicU64,
    /// 0 while it is not known, or not known to be of the primary's history.
    position: AtomicU64,
    /// The one it writes, or has been found to replay; 0 while that is not known.
    timeline: AtomicU32,
    /// The timeline that it has last told of as a replica, whether that is the primary's or not; 0 if none.
    told_timeline: AtomicU32,
    /// The life of its server in which it has told that.
    told_in: AtomicU64,
    lag_us: AtomicU64,
    /// See [`Candidate::as_of`].
    as_of: AtomicU64,
    in_flight: AtomicU32,
    /// Connections that are passed through to it: they are of no pool.
    passages: AtomicU32,
    /// How long reads have taken here lately.
    pub latency: Latency,
    clock: Clock,
    pub pools: DashMap<PoolKey, Arc<Pool>>,
    /// A new connection has led to another server than its probe's: that is to see where others lead.
    doubted: AtomicBool,
    /// Some pool's new connection has not been answered, and its probe's has not been since.
    silent: AtomicBool,
    pub(super) inquiry: Inquiry,
    /// Wakes the probe: traffic has met an error, or somebody waits for a position.
    pub wake: Notify,
    pub metrics: NodeMetrics,
    epoch: Instant,
    sampled_us: AtomicU64,
    /// When it was asked where it is, if it has not answered; else 0.
    asked_us: AtomicU64,
}

/// What a node has been seen to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Unknown,
    Primary,
    Replica,
}

/// Why nobody is to wait for an answer of a node's servers, as clients are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    #[error("another server has taken its place")]
    Superseded,
    #[error("the node does not answer any more")]
    Down,
}

/// The lag of a node whose lag is not known.
const LAG_UNKNOWN: u64 = u64::MAX;

impl Node {
    pub fn new(
        cluster: &str,
        node: &config::Node,
        routing: &config::Routing,
        tls: Arc<NodeSide>,
        pauses: Arc<Pauses>,
    ) -> Node {
        let new = Node::unknown(cluster, node, pauses);
        new.tls.store(tls);
        new.configure(node, routing);
        new
    }

    fn unknown(cluster: &str, node: &config::Node, pauses: Arc<Pauses>) -> Node {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Node {
            id: NodeId(NEXT.fetch_add(1, Ordering::Relaxed)),
            name: node.name.clone(),
            host: node.host.clone(),
            port: node.port,
            cluster: cluster.to_owned(),
            tls: ArcSwap::default(),
            weight: AtomicU32::new(node.weight),
            near: AtomicBool::new(false),
            role: AtomicU8::new(0),
            up: AtomicBool::new(false),
            down_us: AtomicU64::new(1),
            loss: AtomicU8::new(0),
            probed: AtomicBool::new(false),
            lagging: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            pauses,
            resting: AtomicBool::new(false),
            incarnation: AtomicU64::new(0),
            last_life: AtomicU64::new(0),
            meetings: AtomicU64::new(0),
            watched: AtomicBool::new(false),
            system: AtomicU64::new(0),
            position: AtomicU64::new(0),
            timeline: AtomicU32::new(0),
            told_timeline: AtomicU32::new(0),
            told_in: AtomicU64::new(0),
            lag_us: AtomicU64::new(LAG_UNKNOWN),
            as_of: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            passages: AtomicU32::new(0),
            latency: Latency::default(),
            clock: Clock::new(),
            pools: DashMap::new(),
            doubted: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            inquiry: Inquiry::default(),
            wake: Notify::new(),
            metrics: NodeMetrics::default(),
            epoch: Instant::now(),
            sampled_us: AtomicU64::new(0),
            asked_us: AtomicU64::new(0),
        }
    }

    pub fn role(&self) -> Role {
        match self.role.load(Ordering::SeqCst) {
            1 => Role::Primary,
            2 => Role::Replica,
            _ => Role::Unknown,
        }
    }

    pub fn set_role(&self, role: Role) {
        let role = match role {
            Role::Unknown => 0,
            Role::Primary => 1,
            Role::Replica => 2,
        };
        self.role.store(role, Ordering::SeqCst);
    }

    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::SeqCst)
    }

    pub fn set_up(&self, up: bool) {
        if up != self.up.swap(up, Ordering::SeqCst) {
            let since = if up { 0 } else { self.age_us().max(1) };
            self.down_us.store(since, Ordering::SeqCst);
        }
    }

    /// For how long it has been down; `None` while it is not.
    pub fn down_for(&self) -> Option<Duration> {
        let since = self.down_us.load(Ordering::SeqCst);
        (since != 0).then(|| Duration::from_micros(self.age_us().saturating_sub(since)))
    }

    /// Why nobody is to wait for an answer of its servers.
    pub fn loss(&self) -> Option<Loss> {
        match self.loss.load(Ordering::SeqCst) {
            1 => Some(Loss::Superseded),
            2 if !self.is_up() => Some(Loss::Down),
            // Nobody decides that any more.
            _ if self.is_leaving() && !self.is_up() => Some(Loss::Down),
            _ => None,
        }
    }

    pub(super) fn set_loss(&self, loss: Option<Loss>) {
        let loss = match loss {
            None => 0,
            Some(Loss::Superseded) => 1,
            Some(Loss::Down) => 2,
        };
        self.loss.store(loss, Ordering::SeqCst);
    }

    /// A connection to it has been made, to a server in this life.
    pub fn note_connect(&self, life: Incarnation) {
        if !self.may_be_in(life) {
            self.doubted.store(true, Ordering::SeqCst);
            self.wake.notify_one();
        }
    }

    /// Whether its probe is to see where new connections lead.
    pub fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::SeqCst)
    }

    /// Its probe sees to that.
    pub fn settle_doubt(&self) {
        self.doubted.store(false, Ordering::SeqCst);
    }

    /// A new connection of a pool's has not been answered. To be said when the pool knows: its probe sees to the end of it.
    pub(super) fn note_silence(&self) {
        if !self.silent.swap(true, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// Whether its probe is to see if new connections are answered.
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::SeqCst)
    }

    /// A new connection has been answered: pools may open servers again.
    pub(super) fn end_silence(&self) {
        if self.silent.swap(false, Ordering::SeqCst) {
            self.pools.iter().for_each(|pool| pool.end_silence());
        }
    }

    pub fn is_probed(&self) -> bool {
        self.probed.load(Ordering::SeqCst)
    }

    pub fn set_probed(&self) {
        self.probed.store(true, Ordering::SeqCst);
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    pub fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    pub fn set_resting(&self, resting: bool) {
        self.resting.store(resting, Ordering::SeqCst);
    }

    pub fn rests(&self) -> bool {
        self.resting.load(Ordering::SeqCst)
    }

    /// Whether an admin wants it to take nothing new.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::SeqCst)
    }

    /// What is open on it finishes, and then its servers are closed; or it takes what there is again.
    pub(super) fn set_drained(&self, drained: bool) {
        self.drained.store(drained, Ordering::SeqCst);
        // A pool that is made meanwhile looks at the node, and is either seen here or has seen that.
        self.pools.iter().for_each(|pool| pool.set_drained(drained));
    }

    /// Whether it is known to answer, and takes what it is given.
    pub fn is_open(&self) -> bool {
        self.is_up() && !self.is_leaving() && !self.is_drained()
    }

    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Applies what may change of a node that stays: its weight, and whether it is near the proxy.
    pub fn configure(&self, node: &config::Node, routing: &config::Routing) {
        self.weight.store(node.weight, Ordering::Relaxed);
        let near = routing.zone.is_some() && node.zone == routing.zone;
        self.near.store(near, Ordering::Relaxed);
    }

    pub fn timeline(&self) -> u32 {
        self.timeline.load(Ordering::SeqCst)
    }

    /// The timeline that it has last told of as a replica; 0 if none.
    pub fn told_timeline(&self) -> u32 {
        self.told_timeline.load(Ordering::SeqCst)
    }

    /// It has told of this one. Returns the one that it is on: in one life a standby goes to newer ones only, whatever its
    /// control file says while it is sent nothing. And whether that is another than before.
    pub fn tell_timeline(&self, timeline: u32) -> (u32, bool) {
        let life = self.incarnation().0;
        let before = self.told_timeline();
        let now = match self.told_in.swap(life, Ordering::SeqCst) == life {
            true => timeline.max(before),
            false => timeline,
        };
        self.told_timeline.store(now, Ordering::SeqCst);
        (now, now != before)
    }

    pub fn set_timeline(&self, timeline: u32) {
        self.timeline.store(timeline, Ordering::SeqCst);
    }

    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Ordering::SeqCst))
    }

    /// The life in which the server was last met, if it ever was.
    pub fn last_life(&self) -> Incarnation {
        Incarnation(self.last_life.load(Ordering::SeqCst))
    }

    /// Whether the server has been seen to take writes in this life. It need not have been asked on the present
    /// connection of its probe: what was opened before is as good as it was.
    pub fn writes_in(&self, life: Incarnation) -> bool {
        // In this order: the role is forgotten before there is another life.
        self.last_life() == life && self.role() == Role::Primary
    }

    /// Whether that may be the life that it is in, by what is known now.
    pub fn may_be_in(&self, life: Incarnation) -> bool {
        let known = self.incarnation();
        known == life || known == Incarnation(0)
    }

    /// How often the probe has met the server: what one connection has told says nothing on the next.
    pub fn meetings(&self) -> u64 {
        self.meetings.load(Ordering::SeqCst)
    }

    /// The identifier of the system that it was of when it was last asked; 0 if it has told none.
    pub fn system(&self) -> u64 {
        self.system.load(Ordering::SeqCst)
    }

    pub fn set_system(&self, system: u64) {
        self.system.store(system, Ordering::SeqCst);
    }

    /// Whether its probe has been told what it is, and has not lost it since.
    pub fn is_watched(&self) -> bool {
        self.watched.load(Ordering::SeqCst)
    }

    /// Its probe has been told what it is.
    pub fn set_watched(&self) {
        self.watched.store(true, Ordering::SeqCst);
        self.set_probed();
    }

    /// Nothing counts that has been known of it: it has to be asked what it is.
    pub fn begin_anew(&self) {
        self.set_up(false);
        self.set_role(Role::Unknown);
        self.set_timeline(0);
        self.told_timeline.store(0, Ordering::SeqCst);
        self.probed.store(false, Ordering::SeqCst);
    }

    /// The probe has met the server, in this life. Positions from before count no more, though the life be the
    /// same: a server that restarts after the crash of a backend keeps it, and may have gone back.
    pub fn meet(&self, life: Incarnation) {
        self.position.store(0, Ordering::SeqCst);
        self.forget_as_of();
        self.clock.new_epoch();
        if self.last_life() != life {
            // It may have another role now, or the same on another timeline. Nobody is to take the old one for that
            // of the new life.
            self.set_role(Role::Unknown);
            self.last_life.store(life.0, Ordering::SeqCst);
        }
        if self.role() != Role::Primary {
            self.set_timeline(0);
        }
        self.meetings.fetch_add(1, Ordering::SeqCst);
        self.incarnation.store(life.0, Ordering::SeqCst);
    }

    /// Where the node stands is not known from now on.
    pub fn forget_position(&self) {
        self.watched.store(false, Ordering::SeqCst);
        self.incarnation.store(0, Ordering::SeqCst);
        self.forget_as_of();
        self.forget_lag();
    }

    /// Another history has begun: where a replica stands is not known until it has been found to follow that.
    pub fn forget_history(&self) {
        self.forget_as_of();
        if self.role() == Role::Replica {
            self.set_timeline(0);
            self.forget_lag();
        }
    }

    fn forget_lag(&self) {
        self.position.store(0, Ordering::SeqCst);
        self.lag_us.store(LAG_UNKNOWN, Ordering::SeqCst);
        self.metrics.replay_lag_bytes.set(f64::NAN);
        self.metrics.replay_lag_seconds.set(f64::NAN);
    }

    /// It is being asked where it is.
    pub fn note_asked(&self) {
        self.asked_us.store(self.age_us(), Ordering::Relaxed);
    }

    /// It has answered.
    pub fn note_answered(&self) {
        self.asked_us.store(0, Ordering::Relaxed);
    }

    /// For how long it has not answered to that.
    fn silence(&self) -> Duration {
        match self.asked_us.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            asked => Duration::from_micros(self.age_us().saturating_sub(asked)),
        }
    }

    fn age_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    pub fn set_position(&self, lsn: Lsn) {
        self.position.store(lsn.0, Ordering::SeqCst);
        self.sampled_us.store(self.age_us(), Ordering::Relaxed);
        self.metrics.lsn.set(lsn.0 as f64);
    }

    /// How old the newest sample of the position is.
    pub fn sample_age(&self) -> Option<Duration> {
        let at = Duration::from_micros(self.sampled_us.load(Ordering::Relaxed));
        (!at.is_zero()).then(|| self.epoch.elapsed().saturating_sub(at))
    }

    pub fn is_lagging(&self) -> bool {
        self.lagging.load(Ordering::SeqCst)
    }

    pub fn set_lag(&self, lag: Duration, lagging: bool) {
        self.lag_us.store(lag.as_micros() as u64, Ordering::SeqCst);
        self.lagging.store(lagging, Ordering::SeqCst);
        self.metrics.replay_lag_seconds.set(lag.as_secs_f64());
    }

    /// It has everything that had been committed by then.
    pub fn has_all_of(&self, moment: Moment) {
        self.as_of.fetch_max(moment.0, Ordering::SeqCst);
    }

    /// Its history is another one from now on, or it is not known what it has.
    pub fn forget_as_of(&self) {
        self.as_of.store(0, Ordering::SeqCst);
    }

    pub fn begin_use(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end_use(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// How many connections are passed through to it, or are being opened for that.
    pub fn passages(&self) -> u32 {
        self.passages.load(Ordering::SeqCst)
    }
}

impl Replica for Node {
    fn id(&self) -> NodeId {
        self.id
    }

    fn position(&self) -> Option<(Incarnation, Lsn)> {
        let life = self.incarnation();
        let position = self.position.load(Ordering::SeqCst);
        // Read twice: a position must not be taken for one of another life.
        (life.0 != 0 && position != 0 && life == self.incarnation())
            .then_some((life, Lsn(position)))
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl Candidate for Node {
    fn serving(&self) -> Serving {
        if !self.is_open() || self.role() != Role::Replica {
            Serving::No
        } else if self.is_lagging() {
            Serving::Lagging
        } else {
            Serving::Yes
        }
    }

    fn load(&self) -> f32 {
        let waiting = self.in_flight() as f32 + 1.0;
        let latency_ms = self.latency.us() as f32 / 1000.0;
        waiting * (1.0 + latency_ms) / self.weight.load(Ordering::Relaxed).max(1) as f32
    }

    fn is_near(&self) -> bool {
        self.near.load(Ordering::Relaxed)
    }

    fn lag(&self) -> Option<Duration> {
        match self.lag_us.load(Ordering::SeqCst) {
            LAG_UNKNOWN => None,
            // Who does not answer is known to be nowhere nearer.
            us => Some(Duration::from_micros(us).max(self.silence())),
        }
    }

    fn as_of(&self) -> Moment {
        Moment(self.as_of.load(Ordering::SeqCst))
    }
}

/// The node that a connection is passed through to, which counts it for as long as this lives.
pub struct Passage(Arc<Node>);

impl Passage {
    pub fn to(node: Arc<Node>) -> Passage {
        node.passages.fetch_add(1, Ordering::SeqCst);
        Passage(node)
    }

    pub fn node(&self) -> &Arc<Node> {
        &self.0
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.0.passages.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn node() -> Node {
        let text = "[[auth.user]]\nname = \"a\"\npassword = \"a\"\n[[cluster]]\nname = \"c\"\n\
            databases = [\"*\"]\n[[cluster.node]]\naddress = \"127.0.0.1:1\"\n";
        let config = Config::parse(text, "test").expect("valid");
        let (tls, pauses) = (Arc::default(), Arc::default());
        Node::new(
            "c",
            &config.clusters[0].nodes[0],
            &config.routing,
            tls,
            pauses,
        )
    }

    #[test]
    fn another_life_may_have_another_role_and_timeline() {
        let node = node();
        node.meet(Incarnation(7));
        node.set_role(Role::Primary);
        node.set_timeline(1);
        node.forget_position();
        assert_eq!(node.incarnation(), Incarnation(0));
        assert_eq!(node.last_life(), Incarnation(7));
        node.meet(Incarnation(7));
        assert_eq!((node.role(), node.timeline()), (Role::Primary, 1));
        node.meet(Incarnation(8));
        assert_eq!((node.role(), node.timeline()), (Role::Unknown, 0));
    }

    #[test]
    fn what_is_down_when_it_leaves_is_lost() {
        let node = node();
        assert_eq!(node.loss(), None, "it may be up soon");
        node.leave();
        assert_eq!(node.loss(), Some(Loss::Down));
        node.set_up(true);
        assert_eq!(node.loss(), None, "it finishes what it has begun");
    }

    #[test]
    fn a_passage_counts_for_as_long_as_it_lives() {
        let node = Arc::new(node());
        let passages = [(); 2].map(|()| Passage::to(node.clone()));
        assert_eq!((passages[0].node().id(), node.passages()), (node.id(), 2));
        drop(passages);
        assert_eq!(node.passages(), 0);
    }

    #[test]
    fn a_position_is_forgotten_with_its_history() {
        let node = node();
        node.meet(Incarnation(7));
        node.set_role(Role::Replica);
        node.set_timeline(1);
        node.set_position(Lsn(5));
        assert_eq!(node.position(), Some((Incarnation(7), Lsn(5))));
        node.forget_history();
        assert_eq!((node.position(), node.timeline()), (None, 0));
        // What is known of one that writes is of its own history.
        node.set_role(Role::Primary);
        node.set_timeline(1);
        node.forget_history();
        assert_eq!(node.timeline(), 1);
    }

    #[test]
    fn what_a_node_is_in_a_new_life_it_has_to_tell() {
        let node = node();
        let writes = || [7, 8].map(|life| node.writes_in(Incarnation(life)));
        let may_be = || [7, 8].map(|life| node.may_be_in(Incarnation(life)));
        assert!(!node.writes_in(Incarnation(0)), "it has not been met");
        assert_eq!(may_be(), [true, true]);
        node.meet(Incarnation(7));
        assert_eq!(writes(), [false, false]);
        node.set_role(Role::Primary);
        assert_eq!(writes(), [true, false]);
        assert_eq!(may_be(), [true, false]);
        node.forget_position();
        assert_eq!(writes(), [true, false], "its probe reconnects");
        assert_eq!(may_be(), [true, true]);
        node.meet(Incarnation(7));
        assert_eq!(writes(), [true, false]);
        node.meet(Incarnation(8));
        assert_eq!(writes(), [false, false]);
        node.set_role(Role::Primary);
        assert_eq!(writes(), [false, true]);
    }
}
