//! Clocks, floors and marks, with replicas that are where a test says.

use super::*;
use std::cell::Cell;

struct Fake {
    id: u32,
    at: Cell<Option<(Incarnation, Lsn)>>,
    clock: Clock,
}

impl Replica for Fake {
    fn id(&self) -> NodeId {
        NodeId(self.id)
    }
    fn position(&self) -> Option<(Incarnation, Lsn)> {
        self.at.get()
    }
    fn clock(&self) -> &Clock {
        &self.clock
    }
}

fn fake(id: u32, lsn: u64) -> Box<Fake> {
    let at = Cell::new(Some((Incarnation(1), Lsn(lsn))));
    Box::new(Fake {
        id,
        at,
        clock: Clock::new(),
    })
}

fn sample(clock: &Clock, lsn: u64) {
    let tick = clock.begin();
    clock.complete(tick, Lsn(lsn));
}

#[test]
fn lsn_text_is_a_number() {
    assert_eq!(Lsn::parse("16/B374D848"), Some(Lsn(0x16_B374_D848)));
    assert_eq!(Lsn::parse("0/00000001"), Some(Lsn(1)));
    assert!(Lsn::parse("9/0") < Lsn::parse("10/0"));
    for bad in ["", "/", "1", "1/", "/1", "1/123456789", "+1/0", "g/0"] {
        assert_eq!(Lsn::parse(bad), None, "{bad}");
    }
    assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
}

#[test]
fn page_headers_are_not_waited_for() {
    let norm = |lsn: u64| Lsn(lsn).without_page_header(8192, 16 << 20).0;
    assert_eq!(norm(0x0300_C018), 0x0300_C000);
    assert_eq!(norm(0x0300_C000), 0x0300_C000);
    assert_eq!(norm(0x0300_C019), 0x0300_C019);
    assert_eq!(
        norm(0x0300_0028),
        0x0300_0000,
        "a segment starts with a long header"
    );
    assert_eq!(norm(0x0300_0029), 0x0300_0029);
    assert_eq!(norm(0x0300_0018), 0x0300_0000);
}

#[test]
fn a_token_is_reached_in_its_own_history() {
    let (clock, one) = (Clock::new(), fake(1, 40));
    let nodes = [one];
    let judge = |floors: &Floors| floors.judge(&clock, &nodes, &*nodes[0]);
    let token = |timeline, lsn| Token {
        system: 1,
        timeline,
        lsn: Lsn(lsn),
    };
    clock.system().set(1);
    let mut floors = Floors::default();
    floors.receive(token(1, 50));
    assert_eq!(judge(&floors), Freshness::MissesToken, "no history yet");
    clock.set_timeline(1);
    assert_eq!(judge(&floors), Freshness::MissesToken);
    floors.receive(token(1, 30));
    assert_eq!(judge(&floors), Freshness::MissesToken, "never lowered");
    assert_eq!(floors.position(&clock, &nodes), Some(Lsn(50)));
    nodes[0].at.set(Some((Incarnation(1), Lsn(50))));
    assert_eq!(judge(&floors), Freshness::Fresh);

    clock.set_timeline(2);
    clock.new_epoch();
    assert_eq!(
        judge(&floors),
        Freshness::MissesToken,
        "not compared across"
    );
    assert_eq!(floors.position(&clock, &nodes), None);
    sample(&clock, 60);
    assert_eq!(judge(&floors), Freshness::MissesToken);
    nodes[0].at.set(Some((Incarnation(1), Lsn(60))));
    assert_eq!(judge(&floors), Freshness::Fresh);
    floors.receive(token(3, 1));
    assert_eq!(judge(&floors), Freshness::MissesToken, "of what is to come");
    assert_eq!(floors.timeline(&clock), 3);
    assert_eq!(Floors::default().timeline(&clock), 0);

    // The cluster is of another system now: what it had been told before is over.
    clock.set_timeline(1);
    clock.new_epoch();
    clock.system().set(2);
    assert_eq!(floors.timeline(&clock), 0);
    assert_eq!(judge(&floors), Freshness::MissesToken);
    sample(&clock, 60);
    assert_eq!(judge(&floors), Freshness::Fresh);
    floors.receive(Token {
        system: 2,
        ..token(1, 61)
    });
    assert_eq!(judge(&floors), Freshness::MissesToken);
    assert_eq!(floors.position(&clock, &nodes), Some(Lsn(61)));
}

#[test]
fn who_is_where_the_primary_was_after_the_last_moment_is_fresh() {
    let (clock, seen, other) = (Clock::new(), fake(1, 40), fake(2, 0));
    let nodes = [seen, other];
    let mut floors = Floors::default();
    assert_eq!(floors.last_moment(), None);
    let catches_up = |floors: &Floors, lsn| {
        let moment = floors.last_moment().expect("a moment");
        assert_eq!(clock.after(moment), None);
        assert_ne!(floors.judge(&clock, &nodes, &*nodes[1]), Freshness::Fresh);
        sample(&clock, lsn);
        sample(&clock, lsn + 1);
        assert_eq!(clock.after(moment).map(|s| s.lsn), Some(Lsn(lsn)));
        nodes[1].at.set(Some((Incarnation(1), Lsn(lsn))));
        assert_eq!(floors.judge(&clock, &nodes, &*nodes[1]), Freshness::Fresh);
    };
    floors.wrote(&clock);
    catches_up(&floors, 10);
    floors.read_primary(&clock);
    catches_up(&floors, 20);
    assert_eq!(floors.reads_on_primary(), 1);
    floors.read_replica(&clock, &*nodes[0], Incarnation(1), nodes[0].clock().now());
    assert_eq!(floors.reads_on_primary(), 0);
    catches_up(&floors, 50);
}

#[test]
fn a_position_covers_what_was_written_and_seen() {
    let (clock, one) = (Clock::new(), fake(1, 40));
    let nodes = [one];
    let mut floors = Floors::default();
    sample(&clock, 10);
    floors.wrote(&clock);
    assert_eq!(floors.position(&clock, &nodes), None, "sampled before it");
    sample(&clock, 20);
    assert_eq!(floors.position(&clock, &nodes), Some(Lsn(20)));
    floors.read_replica(&clock, &*nodes[0], Incarnation(1), nodes[0].clock().now());
    assert_eq!(floors.position(&clock, &nodes), None);
    sample(&clock, 45);
    assert_eq!(floors.position(&clock, &nodes), Some(Lsn(45)));
    sample(&nodes[0].clock, 41);
    assert_eq!(floors.position(&clock, &nodes), Some(Lsn(42)));
    // An idle primary does not get beyond where its replica is.
    sample(&nodes[0].clock, 45);
    floors.read_replica(&clock, &*nodes[0], Incarnation(1), nodes[0].clock().now());
    sample(&nodes[0].clock, 45);
    assert_eq!(floors.position(&clock, &nodes), Some(Lsn(46)));
    sample(&clock, 45);
    assert_eq!(floors.position(&clock, &nodes), Some(Lsn(45)));
}

#[test]
fn a_sample_counts_only_for_what_came_before_its_start() {
    let clock = Clock::new();
    let before = clock.begin();
    let moment = clock.now();
    clock.complete(before, Lsn(10));
    assert_eq!(clock.after(moment), None, "started before the moment");
    sample(&clock, 20);
    sample(&clock, 30);
    assert_eq!(
        clock.after(moment).map(|s| s.lsn),
        Some(Lsn(20)),
        "the first, not the last"
    );
    assert_eq!(clock.latest().map(|s| s.lsn), Some(Lsn(30)));
}

#[test]
fn lost_samples_are_skipped_and_old_ones_replaced_by_later() {
    let clock = Clock::new();
    let moment = clock.now();
    let _lost = clock.begin();
    sample(&clock, 7);
    assert_eq!(clock.after(moment).map(|s| s.lsn), Some(Lsn(7)));
    for lsn in 0..3 * Clock::SAMPLES as u64 {
        sample(&clock, 100 + lsn);
    }
    let oldest = clock.after(moment).unwrap();
    assert!(oldest.lsn > Lsn(7) && oldest.lsn < clock.latest().unwrap().lsn);
}

#[test]
fn a_new_history_forgets_the_old_one() {
    let clock = Clock::new();
    let moment = clock.now();
    sample(&clock, 10);
    clock.new_epoch();
    assert_eq!(clock.after(moment), None);
    assert_eq!(clock.latest(), None);
    sample(&clock, 5);
    assert_eq!(clock.after(moment).map(|s| s.lsn), Some(Lsn(5)));
}

#[test]
fn a_new_session_needs_no_more_than_was_acknowledged() {
    let primary = Clock::new();
    let nodes = [fake(1, 10)];
    let mut mark = Mark::new(primary.now()).resolved(&primary);
    assert_eq!(mark.sample, None);
    sample(&primary, 10);
    mark = mark.resolved(&primary);
    // The log goes on, as it does on a server that nobody writes to, and the clock forgets.
    for lsn in 0..3 * Clock::SAMPLES as u64 {
        sample(&primary, 100 + lsn);
    }
    let judge = |mark: Mark| {
        let mut floors = Floors::default();
        floors.begin(mark.resolved(&primary));
        floors.judge(&primary, &nodes, &*nodes[0])
    };
    assert_eq!(judge(mark), Freshness::Fresh);
    assert_eq!(judge(Mark::new(mark.moment)), Freshness::MissesReads);
    primary.new_epoch();
    assert_eq!(judge(mark), Freshness::MissesReads, "of another history");
    sample(&primary, 9);
    assert_eq!(judge(mark), Freshness::Fresh);
}

#[test]
fn what_nobody_could_say_without_a_primary_counts_again_with_one() {
    let (primary, schema) = (Clock::new(), Schema::new("main/app"));
    let nodes = [fake(1, 10)];
    schema.changed();
    let mut floors = Floors::default();
    floors.begin(Mark::new(primary.now()));
    floors.heed(&schema, &primary);
    let judge = |floors: &Floors| floors.judge(&primary, &nodes, &*nodes[0]);
    let read = |floors: &mut Floors| {
        assert_eq!(judge(&floors.without_primary()), Freshness::Fresh);
        floors.read_replica(&primary, &*nodes[0], Incarnation(1), nodes[0].clock().now());
    };
    read(&mut floors);
    assert_eq!(judge(&floors), Freshness::MissesSchema);
    sample(&primary, 20);
    read(&mut floors);
    assert_eq!(judge(&floors), Freshness::MissesSchema);
    floors.schema = None;
    assert_eq!(judge(&floors), Freshness::MissesReads);
    assert_eq!(floors.life_on(&*nodes[0]), None);
    nodes[0].at.set(Some((Incarnation(1), Lsn(20))));
    read(&mut floors);
    assert_eq!(floors.life_on(&*nodes[0]), Some(Incarnation(1)));
}

#[test]
fn own_writes_pin_until_replayed() {
    let primary = Clock::new();
    let nodes = [fake(1, 10)];
    let mut floors = Floors::default();
    assert_eq!(floors.judge(&primary, &nodes, &*nodes[0]), Freshness::Fresh);
    floors.wrote(&primary);
    assert_eq!(
        floors.judge(&primary, &nodes, &*nodes[0]),
        Freshness::MissesWrite
    );
    sample(&primary, 11);
    assert_eq!(
        floors.judge(&primary, &nodes, &*nodes[0]),
        Freshness::MissesWrite
    );
    nodes[0].at.set(Some((Incarnation(1), Lsn(11))));
    assert_eq!(floors.judge(&primary, &nodes, &*nodes[0]), Freshness::Fresh);
    nodes[0].at.set(None);
    assert_eq!(
        floors.judge(&primary, &nodes, &*nodes[0]),
        Freshness::Unknown
    );
}

#[test]
fn reads_on_the_primary_raise_the_floor_too() {
    let primary = Clock::new();
    let nodes = [fake(1, 11)];
    let mut floors = Floors::default();
    floors.wrote(&primary);
    sample(&primary, 11);
    floors.read_primary(&primary);
    assert_eq!(
        floors.judge(&primary, &nodes, &*nodes[0]),
        Freshness::MissesReads
    );
    sample(&primary, 12);
    assert_eq!(
        floors.judge(&primary, &nodes, &*nodes[0]),
        Freshness::MissesReads
    );
    nodes[0].at.set(Some((Incarnation(1), Lsn(12))));
    assert_eq!(floors.judge(&primary, &nodes, &*nodes[0]), Freshness::Fresh);

    let mut blind = Floors::default();
    blind.set_ignore_primary_reads(true);
    blind.read_primary(&primary);
    assert_eq!(blind.judge(&primary, &nodes, &*nodes[0]), Freshness::Fresh);
}

#[test]
fn moving_between_replicas_never_goes_back() {
    let primary = Clock::new();
    let nodes = [fake(1, 50), fake(2, 40)];
    let mut floors = Floors::default();
    floors.read_replica(&primary, &*nodes[0], Incarnation(1), nodes[0].clock().now());
    assert_eq!(floors.judge(&primary, &nodes, &*nodes[0]), Freshness::Fresh);
    assert_eq!(
        floors.judge(&primary, &nodes, &*nodes[1]),
        Freshness::MissesReads
    );
    sample(&nodes[0].clock, 45);
    nodes[1].at.set(Some((Incarnation(1), Lsn(45))));
    assert_eq!(
        floors.judge(&primary, &nodes, &*nodes[1]),
        Freshness::MissesReads
    );
    nodes[1].at.set(Some((Incarnation(1), Lsn(46))));
    assert_eq!(floors.judge(&primary, &nodes, &*nodes[1]), Freshness::Fresh);
    nodes[1].at.set(Some((Incarnation(1), Lsn(45))));
    sample(&primary, 45);
    assert_eq!(
        floors.judge(&primary, &nodes, &*nodes[1]),
        Freshness::Fresh,
        "where nothing is written, the primary's position is enough"
    );
}

#[test]
fn a_replica_that_was_lost_sight_of_is_judged_by_the_primary() {
    let primary = Clock::new();
    let nodes = [fake(1, 50), fake(2, 50)];
    let mut floors = Floors::default();
    floors.read_replica(&primary, &*nodes[0], Incarnation(1), nodes[0].clock().now());
    assert_eq!(floors.life_on(&*nodes[0]), Some(Incarnation(1)));
    assert_eq!(floors.life_on(&*nodes[1]), None);
    // It has gone back in the same life.
    nodes[0].clock.new_epoch();
    sample(&nodes[0].clock, 40);
    nodes[0].at.set(Some((Incarnation(1), Lsn(40))));
    let judge = |floors: &Floors, node: usize| floors.judge(&primary, &nodes, &*nodes[node]);
    assert_eq!(floors.life_on(&*nodes[0]), None);
    assert_eq!(judge(&floors, 0), Freshness::MissesReads);
    assert_eq!(
        judge(&floors, 1),
        Freshness::MissesReads,
        "where the other is now says nothing of what it has shown"
    );
    sample(&primary, 50);
    assert_eq!(judge(&floors, 0), Freshness::MissesReads);
    assert_eq!(judge(&floors, 1), Freshness::Fresh);
    floors.read_replica(&primary, &*nodes[0], Incarnation(1), nodes[0].clock().now());
    assert_eq!(judge(&floors, 0), Freshness::Fresh, "what it shows now");
}

#[test]
fn a_replica_that_goes_back_once_it_has_shown_something_is_judged_by_the_primary() {
    let primary = Clock::new();
    let nodes = [fake(1, 50)];
    sample(&nodes[0].clock, 50);
    let lent = nodes[0].clock.now();
    // It has answered, and is met again before anybody has noted when.
    nodes[0].clock.new_epoch();
    sample(&nodes[0].clock, 40);
    nodes[0].at.set(Some((Incarnation(1), Lsn(40))));
    let mut floors = Floors::default();
    floors.read_replica(&primary, &*nodes[0], Incarnation(1), lent);
    let judge = |floors: &Floors| floors.judge(&primary, &nodes, &*nodes[0]);
    assert_eq!(floors.life_on(&*nodes[0]), None);
    assert_ne!(judge(&floors), Freshness::Fresh);
    sample(&primary, 50);
    assert_ne!(judge(&floors), Freshness::Fresh);
    nodes[0].at.set(Some((Incarnation(1), Lsn(50))));
    assert_eq!(judge(&floors), Freshness::Fresh);
}

#[test]
fn a_restarted_replica_is_judged_by_the_primary() {
    let primary = Clock::new();
    let nodes = [fake(1, 50)];
    let mut floors = Floors::default();
    floors.read_replica(&primary, &*nodes[0], Incarnation(1), nodes[0].clock().now());
    nodes[0].at.set(Some((Incarnation(2), Lsn(49))));
    assert_eq!(
        floors.judge(&primary, &nodes, &*nodes[0]),
        Freshness::MissesReads
    );
    sample(&primary, 50);
    assert_eq!(
        floors.judge(&primary, &nodes, &*nodes[0]),
        Freshness::MissesReads
    );
    nodes[0].at.set(Some((Incarnation(2), Lsn(50))));
    assert_eq!(floors.judge(&primary, &nodes, &*nodes[0]), Freshness::Fresh);
}
