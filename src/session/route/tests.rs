//! Where reads go, with nodes that are where a test says.

use super::*;
use crate::session::schema::Schema;
use std::cell::Cell;
use std::rc::Rc;

struct Fake {
    id: u32,
    lsn: Cell<u64>,
    serving: Cell<Serving>,
    load: Cell<f32>,
    lag: Cell<Duration>,
    near: Cell<bool>,
    as_of: Cell<u64>,
    clock: Clock,
}

impl Replica for Fake {
    fn id(&self) -> NodeId {
        NodeId(self.id)
    }
    fn position(&self) -> Option<(Incarnation, Lsn)> {
        Some((Incarnation(1), Lsn(self.lsn.get())))
    }
    fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl Candidate for Fake {
    fn serving(&self) -> Serving {
        self.serving.get()
    }
    fn load(&self) -> f32 {
        self.load.get()
    }
    fn is_near(&self) -> bool {
        self.near.get()
    }
    fn lag(&self) -> Option<Duration> {
        Some(self.lag.get())
    }
    fn as_of(&self) -> Moment {
        Moment(self.as_of.get())
    }
}

fn cluster(n: u32) -> Vec<Rc<Fake>> {
    let fake = |id| Fake {
        id,
        lsn: Cell::new(100),
        serving: Cell::new(Serving::Yes),
        load: Cell::new(1.0),
        lag: Cell::new(Duration::ZERO),
        near: Cell::new(false),
        as_of: Cell::new(0),
        clock: Clock::new(),
    };
    (0..n).map(|id| Rc::new(fake(id))).collect()
}

const POLICY: Policy = Policy {
    level: Level::Session,
    max_lag: None,
    share: false,
    gate_wait: Duration::from_millis(10),
    tried: Tried {
        nodes: [None; 3],
        all: false,
    },
};

fn replica(route: ReadRoute) -> usize {
    match route {
        ReadRoute::Replica { index, .. } => index,
        other => panic!("{other:?}"),
    }
}

#[test]
fn reads_spread_and_stay() {
    let (primary, nodes) = (Clock::new(), cluster(3));
    let mut hits = [0; 3];
    for random in 0..300 {
        let route = read_route(&Floors::default(), &POLICY, &primary, &nodes, None, random);
        hits[replica(route)] += 1;
    }
    assert!(hits.iter().all(|&n| n > 50), "{hits:?}");

    let mut floors = Floors::default();
    floors.read_replica(&primary, &*nodes[1], Incarnation(1), nodes[1].clock().now());
    let at = |random| replica(read_route(&floors, &POLICY, &primary, &nodes, None, random));
    assert!((0..50).all(|random| at(random) == 1));
    nodes[1].load.set(4.0);
    assert!((0..50).all(|random| at(random) == 1), "for no little gain");
    nodes[1].load.set(20.0);
    let tick = primary.begin();
    primary.complete(tick, Lsn(100));
    assert!(
        (0..50).all(|random| at(random) != 1),
        "leaves a replica that is much busier"
    );
}

#[test]
fn replicas_of_the_own_zone_go_first() {
    let (primary, nodes) = (Clock::new(), cluster(3));
    let floors = Floors::default();
    let at = |random| read_route(&floors, &POLICY, &primary, &nodes, None, random);
    nodes[2].near.set(true);
    nodes[2].load.set(9.0);
    assert!((0..50).all(|random| replica(at(random)) == 2));
    nodes[2].serving.set(Serving::Lagging);
    assert!((0..50).all(|random| replica(at(random)) != 2));
}

#[test]
fn a_pinned_session_waits_only_for_what_is_near() {
    let (primary, nodes) = (Clock::new(), cluster(2));
    let route = |f: &Floors| read_route(f, &POLICY, &primary, &nodes, None, 0);
    let mut floors = Floors::default();
    floors.wrote(&primary);
    for _ in 0..READS_AT_ONCE {
        assert_eq!(route(&floors), ReadRoute::Primary(Reason::OwnWrite));
        floors.read_primary(&primary);
    }
    assert_eq!(route(&floors), ReadRoute::Gate(Reason::OwnWrite));
    floors.wrote(&primary);
    assert_eq!(route(&floors), ReadRoute::Primary(Reason::OwnWrite));
    let tick = primary.begin();
    primary.complete(tick, Lsn(100));
    floors.read_primary(&primary);
    assert_eq!(route(&floors), ReadRoute::Gate(Reason::SeenNewer));
    for node in &nodes {
        node.lag.set(Duration::from_millis(300));
    }
    assert_eq!(route(&floors), ReadRoute::Primary(Reason::SeenNewer));
    let tick = primary.begin();
    primary.complete(tick, Lsn(100));
    assert!(matches!(route(&floors), ReadRoute::Replica { .. }));
}

#[test]
fn a_changed_schema_keeps_every_session_from_replicas_that_lack_it() {
    let (primary, nodes, schema) = (Clock::new(), cluster(2), Schema::new("main/app"));
    let sample = |lsn| primary.complete(primary.begin(), Lsn(lsn));
    let mut floors = Floors::default();
    let writable = cluster(1).remove(0);
    let route = |floors: &mut Floors, level, node| {
        floors.heed(&schema, &primary);
        let policy = Policy { level, ..POLICY };
        read_route(floors, &policy, &primary, &nodes, node, 0)
    };
    let session = |floors: &mut Floors| route(floors, Level::Session, Some(&*writable));
    floors.read_replica(&primary, &*nodes[1], Incarnation(1), nodes[1].clock().now());
    assert_eq!(replica(session(&mut floors)), 1);

    schema.changed();
    let gate = ReadRoute::Gate(Reason::NewerSchema);
    assert_eq!(session(&mut floors), gate, "no sample says where it was");
    sample(101);
    assert_eq!(session(&mut floors), gate);
    nodes.iter().for_each(|n| n.lag.set(Duration::from_secs(1)));
    let behind = ReadRoute::Primary(Reason::NewerSchema);
    assert_eq!(session(&mut floors), behind);
    let mut eventual = Floors::default();
    let any = |floors: &mut Floors| route(floors, Level::Eventual, Some(&*writable));
    assert_eq!(any(&mut eventual), behind, "it matters at every level");
    assert!(
        matches!(
            route(&mut eventual, Level::Eventual, None),
            ReadRoute::Replica { .. }
        ),
        "an old schema is better than none"
    );

    nodes[0].lsn.set(101);
    assert_eq!(
        replica(session(&mut floors)),
        0,
        "which has what the other has shown"
    );
    assert_eq!(replica(any(&mut eventual)), 0);
    nodes[1].lsn.set(101);
    assert_eq!(replica(session(&mut floors)), 1);
    floors.read_replica(&primary, &*nodes[1], Incarnation(1), nodes[1].clock().now());
    assert!(!floors.awaits_schema(), "it is looked at once");
    assert_eq!(replica(session(&mut floors)), 1);
    let mut later = Floors::default();
    for lsn in 0..5000 {
        sample(200 + lsn);
    }
    assert!(matches!(session(&mut later), ReadRoute::Replica { .. }));
}

#[test]
fn a_read_goes_nowhere_twice() {
    let (primary, nodes) = (Clock::new(), cluster(2));
    let mut floors = Floors::default();
    floors.read_replica(&primary, &*nodes[0], Incarnation(1), nodes[0].clock().now());
    let tick = primary.begin();
    primary.complete(tick, Lsn(100));
    let mut policy = POLICY;
    let route = |policy: &Policy| read_route(&floors, policy, &primary, &nodes, None, 0);
    assert_eq!(replica(route(&policy)), 0);
    policy.tried.extend(Some(NodeId(0)));
    assert_eq!(
        replica(route(&policy)),
        1,
        "it has what the other has shown"
    );
    nodes[1].lsn.set(50);
    nodes[1].lag.set(Duration::from_millis(300));
    assert_eq!(route(&policy), ReadRoute::Primary(Reason::ReplicaFailed));
    nodes[1].lsn.set(100);
    policy.tried.extend(Some(NodeId(7)));
    policy.tried.extend(Some(NodeId(8)));
    assert_eq!(replica(route(&policy)), 1);
    policy.tried.extend(Some(NodeId(9)));
    assert_eq!(route(&policy), ReadRoute::Primary(Reason::ReplicaFailed));
}

#[test]
fn a_new_session_reads_what_others_were_told_before_it() {
    let (primary, nodes) = (Clock::new(), cluster(2));
    let mut floors = Floors::default();
    floors.begin(Mark::new(primary.begin()));
    let loaded = cluster(1).remove(0);
    let route = |node| read_route(&floors, &POLICY, &primary, &nodes, node, 0);
    let seen_newer = ReadRoute::Gate(Reason::SeenNewer);
    assert_eq!(route(Some(&*loaded)), seen_newer);
    assert!(
        matches!(route(None), ReadRoute::Replica { .. }),
        "there is no primary to say what that was"
    );
    let tick = primary.begin();
    primary.complete(tick, Lsn(100));
    assert!(matches!(route(Some(&*loaded)), ReadRoute::Replica { .. }));
}

#[test]
fn reasons_say_what_was_missing() {
    let (primary, nodes) = (Clock::new(), cluster(2));
    let route = |policy: &Policy, load: Option<f32>| {
        let node = load.map(|load| {
            let node = cluster(1).remove(0);
            node.load.set(load);
            node
        });
        let floors = Floors::default();
        read_route(&floors, policy, &primary, &nodes, node.as_deref(), 0)
    };
    let level = Policy {
        level: Level::Primary,
        ..POLICY
    };
    assert_eq!(route(&level, None), ReadRoute::Primary(Reason::Level));
    let share = Policy {
        share: true,
        ..POLICY
    };
    assert_eq!(route(&share, Some(0.5)), ReadRoute::Primary(Reason::Shared));
    assert!(matches!(
        route(&share, Some(1.5)),
        ReadRoute::Replica { .. }
    ));
    nodes[0].serving.set(Serving::Lagging);
    nodes[1].serving.set(Serving::No);
    assert_eq!(route(&POLICY, None), ReadRoute::Primary(Reason::Lagging));
    nodes[0].serving.set(Serving::No);
    assert_eq!(route(&POLICY, None), ReadRoute::Primary(Reason::NoReplica));
}

#[test]
fn bounds_are_kept_whatever_the_session_has_seen() {
    let (primary, nodes) = (Clock::new(), cluster(2));
    let bounded = Policy {
        level: Level::Bounded,
        ..POLICY
    };
    let route = |policy: &Policy, bounds: &Bounds| {
        let floors = Floors::default();
        let primary_node = Some(&*nodes[0]);
        bounded_route(&floors, policy, bounds, &primary, &nodes, primary_node, 0)
    };
    let recent = Bounds {
        not_before: Some(Moment(50)),
        ..Bounds::default()
    };
    let nearly = ReadRoute::Gate(Reason::OverMaxLag);
    assert_eq!(route(&bounded, &recent), nearly);
    nodes.iter().for_each(|n| n.lag.set(Duration::from_secs(1)));
    let late = ReadRoute::Primary(Reason::OverMaxLag);
    assert_eq!(route(&bounded, &recent), late);
    nodes[1].as_of.set(50);
    assert_eq!(replica(route(&bounded, &recent)), 1);
    assert_eq!(replica(route(&POLICY, &recent)), 1);

    let all = Bounds {
        others: Some(Mark::new(primary.now())),
        ..Bounds::default()
    };
    let missed = ReadRoute::Primary(Reason::OthersWrite);
    assert_eq!(route(&POLICY, &all), missed);
    let tick = primary.begin();
    primary.complete(tick, Lsn(101));
    assert_eq!(route(&POLICY, &all), missed);
    nodes[0].lsn.set(101);
    assert_eq!(replica(route(&POLICY, &all)), 0);
}

#[test]
fn a_key_is_of_the_newest_timeline_that_was_told() {
    let token = |timeline| {
        Some(Token {
            system: 1,
            timeline,
            lsn: Lsn(1),
        })
    };
    let timeline = |elsewhere| {
        let here = Mark::new(Clock::new().now());
        let key = Some(KeyFloor { here, elsewhere });
        let bounds = Bounds {
            key,
            ..Bounds::default()
        };
        bounds.timeline()
    };
    assert_eq!(Bounds::default().timeline(), 0);
    assert_eq!(timeline(None), 0);
    assert_eq!(timeline(Some([None, None])), 0);
    assert_eq!(timeline(Some([token(2), None])), 2);
    assert_eq!(timeline(Some([token(1), token(3)])), 3);
}

#[test]
fn a_named_node_is_the_only_one() {
    let (primary, nodes) = (Clock::new(), cluster(3));
    let named = Bounds {
        node: Some(1),
        ..Bounds::default()
    };
    let route = |floors: &Floors| {
        let primary_node = Some(&*nodes[0]);
        bounded_route(floors, &POLICY, &named, &primary, &nodes, primary_node, 0)
    };
    let mut floors = Floors::default();
    assert_eq!(replica(route(&floors)), 1);
    nodes[1].serving.set(Serving::Lagging);
    assert_eq!(replica(route(&floors)), 1, "it was asked for");
    floors.wrote(&primary);
    assert_eq!(route(&floors), ReadRoute::Primary(Reason::OwnWrite));
    nodes[1].serving.set(Serving::No);
    let none = ReadRoute::Primary(Reason::NoReplica);
    assert_eq!(route(&Floors::default()), none);
}
