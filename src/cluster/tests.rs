//! Clusters whose nodes nobody probes: what they were told decides who is the primary.

use std::pin::pin;
use std::task::{Context, Waker};

use super::failover::elect;
use super::node::Role;
use super::pool::NO_FAVOURITE;
use super::*;
use crate::session::consistency::{Lsn, NodeId};
use crate::session::settings::Settings;

/// Of nodes at these addresses.
fn config(addresses: &[&str]) -> Arc<Config> {
    let node = |address| format!("[[cluster.node]]\naddress = \"{address}\"\n");
    let nodes: String = addresses.iter().map(node).collect();
    let text = format!(
        "[[auth.user]]\nname = \"a\"\npassword = \"a\"\n[[cluster]]\nname = \"c\"\n\
        databases = [\"*\"]\n{nodes}"
    );
    Arc::new(Config::parse(&text, "test").expect("valid"))
}

/// What its probe does about a node that takes writes.
fn meet_writable(node: &Node, life: u64, timeline: u32) {
    node.meet(Incarnation(life));
    node.set_timeline(timeline);
    node.set_role(Role::Primary);
    node.set_up(true);
    node.set_probed();
}

/// Two nodes that write on one timeline, in these lives.
fn rivals(lives: [u64; 2]) -> Topology {
    let config = config(&["127.0.0.1:1", "127.0.0.1:2"]);
    let nodes = config.clusters[0].nodes.iter().zip(lives);
    let nodes = nodes.map(|(node, life)| {
        let (tls, pauses) = (Arc::default(), Arc::default());
        let node = Arc::new(Node::new("c", node, &config.routing, tls, pauses));
        meet_writable(&node, life, 1);
        node
    });
    Topology::new(nodes.collect(), config.clone())
}

/// A cluster whose nodes nobody probes.
struct Unwatched {
    cluster: Arc<Cluster>,
    /// It never runs.
    runtime: tokio::runtime::Runtime,
}

impl Unwatched {
    fn new(config: &Arc<Config>) -> Unwatched {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().expect("a runtime");
        let cluster = {
            let _entered = runtime.enter();
            let tls = Material::default();
            Cluster::new(config, &tls, &config.clusters[0], runtime.handle())
        };
        Unwatched { cluster, runtime }
    }

    fn node(&self, index: usize) -> Arc<Node> {
        self.cluster.topology().nodes[index].clone()
    }

    fn primary(&self) -> Option<NodeId> {
        let topology = self.cluster.topology();
        topology.primary.as_ref().map(|node| node.id())
    }

    fn reload(&self, config: &Arc<Config>) {
        let _entered = self.runtime.enter();
        self.cluster
            .apply(config, &Arc::default(), &config.clusters[0]);
    }
}

#[test]
fn nobody_is_the_primary_before_all_have_been_asked() {
    let unwatched = Unwatched::new(&config(&["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]));
    let cluster = &unwatched.cluster;
    let [old, new, away] = [0, 1, 2].map(|index| unwatched.node(index));
    meet_writable(&old, 7, 1);
    cluster.reconsider();
    assert_eq!(unwatched.primary(), None);
    away.set_probed();
    cluster.reconsider();
    assert_eq!(unwatched.primary(), None);
    meet_writable(&new, 8, 2);
    cluster.reconsider();
    assert_eq!(unwatched.primary(), Some(new.id()));
}

#[test]
fn a_primary_at_another_address_is_asked_before_one_that_has_been_left() {
    let unwatched = Unwatched::new(&config(&["127.0.0.1:1", "127.0.0.1:2"]));
    meet_writable(&unwatched.node(0), 7, 1);
    meet_writable(&unwatched.node(1), 8, 2);
    unwatched.cluster.reconsider();
    assert_eq!(unwatched.primary(), Some(unwatched.node(1).id()));
    unwatched.reload(&config(&["127.0.0.1:1", "127.0.0.2:2"]));
    let new = unwatched.node(1);
    assert!(!new.is_probed());
    assert_eq!(unwatched.primary(), None);
    meet_writable(&new, 8, 2);
    unwatched.cluster.reconsider();
    assert_eq!(unwatched.primary(), Some(new.id()));
}

#[test]
fn a_primary_that_is_renamed_is_not_given_up() {
    let named = |nodes: &[(&str, &str)]| {
        let mut config = (*config(&["127.0.0.1:1", "127.0.0.1:2"])).clone();
        for (node, (name, host)) in config.clusters[0].nodes.iter_mut().zip(nodes) {
            (node.name, node.host) = ((*name).to_owned(), (*host).to_owned());
        }
        Arc::new(config)
    };
    let before = named(&[("old", "a"), ("new", "b")]);
    for after in [
        [("old", "a"), ("newest", "b")],
        [("old", "a"), ("new", "c")],
    ] {
        let unwatched = Unwatched::new(&before);
        meet_writable(&unwatched.node(0), 7, 1);
        meet_writable(&unwatched.node(1), 8, 2);
        unwatched.cluster.reconsider();
        unwatched.reload(&named(&after));
        let new = unwatched.node(1);
        // Asked, and it did not answer.
        new.set_probed();
        unwatched.cluster.reconsider();
        assert_eq!(unwatched.primary(), None, "{after:?}");
        meet_writable(&new, 8, 2);
        unwatched.cluster.reconsider();
        assert_eq!(unwatched.primary(), Some(new.id()), "{after:?}");
    }
}

#[test]
fn what_a_primary_was_told_that_is_given_up_is_not_waited_for() {
    let unwatched = Unwatched::new(&config(&["127.0.0.1:1", "127.0.0.1:2"]));
    let is_behind = |timeline| unwatched.cluster.topology().is_behind(timeline);
    assert!(is_behind(1) && !is_behind(0), "none is known");
    meet_writable(&unwatched.node(0), 7, 1);
    meet_writable(&unwatched.node(1), 8, 2);
    unwatched.cluster.reconsider();
    assert!(is_behind(3) && !is_behind(2));
    unwatched.reload(&config(&["127.0.0.1:1"]));
    assert_eq!(unwatched.primary(), Some(unwatched.node(0).id()));
    assert!(is_behind(3) && !is_behind(2));
}

#[test]
fn nobody_takes_the_place_of_a_primary_of_a_newer_timeline() {
    let mut topology = rivals([7, 8]);
    let (old, new) = (topology.nodes[0].clone(), topology.nodes[1].clone());
    new.set_timeline(2);
    let elected = |topology: &Topology| elect(topology, 2).0.map(|node| node.id());
    assert_eq!(elected(&topology), Some(new.id()));
    topology.last_primary = Some(new.id());
    new.set_up(false);
    assert_eq!(elected(&topology), None);
    old.set_timeline(3);
    assert_eq!(elected(&topology), Some(old.id()), "it has been promoted");
    // An admin has given the other one up.
    old.set_timeline(1);
    topology.nodes.pop();
    assert_eq!(elected(&topology), Some(old.id()));
}

#[test]
fn nobody_is_the_primary_while_the_one_that_a_replica_follows_is_not_seen() {
    let unwatched = Unwatched::new(&config(ADDRESSES));
    hear(&unwatched, 0, (1, 1), Role::Primary);
    hear(&unwatched, 1, (1, 1), Role::Replica);
    hear(&unwatched, 2, (1, 0), Role::Replica);
    let (old, away, follower) = (0, unwatched.node(1), unwatched.node(2));
    let tells = |timeline| {
        unwatched.cluster.note_timeline(&follower, timeline);
    };
    let old_one = Some(unwatched.node(old).id());
    tells(1);
    lose(&unwatched, 1);
    assert_eq!(unwatched.primary(), old_one);
    tells(2);
    assert_eq!(unwatched.primary(), None);
    let dispute = unwatched.cluster.topology().dispute().expect("a reason");
    assert!(dispute.ends_with("is not seen"), "{dispute}");
    // Its control file may tell less, while nobody sends it anything.
    tells(1);
    assert_eq!(unwatched.primary(), None);
    // Nor is it by what is not known of a replica that goes too.
    lose(&unwatched, 2);
    assert_eq!(unwatched.primary(), None);
    // It follows none of the configured ones, or one that shows itself.
    hear(&unwatched, 1, (1, 1), Role::Replica);
    assert_eq!(unwatched.primary(), old_one);
    hear(&unwatched, 1, (1, 2), Role::Primary);
    assert_eq!(unwatched.primary(), Some(away.id()));
    assert_eq!(unwatched.cluster.topology().dispute(), None);
}

#[test]
fn a_replica_is_as_late_as_it_was_while_the_primary_is_met_again() {
    let unwatched = Unwatched::new(&config(&["127.0.0.1:1", "127.0.0.1:2"]));
    let cluster = &unwatched.cluster;
    let [primary, late] = [0, 1].map(|index| unwatched.node(index));
    late.set_probed();
    meet_writable(&primary, 7, 1);
    cluster.reconsider();
    late.set_role(Role::Replica);
    late.set_timeline(1);
    let now = Instant::now();
    let long_ago = now - cluster.topology().config.lag.max * 2;
    cluster.sampled(cluster.clock.begin(), Lsn(10), long_ago);
    cluster.sampled(cluster.clock.begin(), Lsn(20), long_ago);
    let is_late = || {
        assert!(cluster.note_position(&late, Lsn(10)));
        late.is_lagging()
    };
    assert!(is_late());
    primary.forget_position();
    primary.meet(Incarnation(7));
    cluster.reconsider();
    assert!(is_late(), "nobody has said where the primary is now");
    // What had not been flushed is lost.
    cluster.sampled(cluster.clock.begin(), Lsn(10), now);
    assert!(!is_late());
}

#[test]
fn only_who_waits_for_the_end_of_a_pause_waits_for_a_node_that_is_down() {
    let config = config(&["127.0.0.1:1"]);
    let unwatched = Unwatched::new(&config);
    let _entered = unwatched.runtime.enter();
    let node = unwatched.node(0);
    let key = PoolKey {
        database: "app".into(),
        user: "a".into(),
    };
    let pool = pool(&node, &key, &Proven::now(None), &config);
    pool.set_limits(&config::Pool {
        size: 0,
        ..config.pool.clone()
    });
    let wanted = Settings::default();
    let goes_on_waiting = || {
        let mut checkout = pin!(pool.checkout(&wanted, NO_FAVOURITE));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(checkout.as_mut().poll(&mut cx).is_pending());
        unwatched.cluster.send_away(&node);
        checkout.as_mut().poll(&mut cx).is_pending()
    };
    assert!(!goes_on_waiting());
    unwatched.cluster.pause(None);
    assert!(goes_on_waiting());
}

#[test]
fn what_is_held_on_a_primary_that_has_been_left_is_lost() {
    let mut topology = rivals([7, 8]);
    let [old, new] = [0, 1].map(|at| topology.nodes[at].clone());
    let may_hold =
        |topology: &Topology, node: &Node| topology.may_hold(node.id(), node.last_life());
    let held = |topology: &Topology| [&old, &new].map(|node| may_hold(topology, node));
    topology.primary = Some(old.clone());
    topology.last_primary = Some(old.id());
    assert_eq!(held(&topology), [true, false]);
    topology.primary = None;
    assert_eq!(held(&topology), [true, false], "it may be back");
    topology.primary = Some(new.clone());
    topology.last_primary = Some(new.id());
    assert_eq!(held(&topology), [false, true]);
    topology.primary = None;
    assert_eq!(held(&topology), [false, true], "the old one is fenced");
    topology.split_brain = true;
    assert_eq!(held(&topology), [false, false]);
}

#[test]
fn what_is_held_on_a_primary_goes_on_when_that_is_renamed() {
    let renamed = |name: &str, port: u16| {
        let mut config = (*config(&["127.0.0.1:1", "127.0.0.1:2"])).clone();
        let node = &mut config.clusters[0].nodes[0];
        (node.name, node.port) = (name.to_owned(), port);
        Arc::new(config)
    };
    let life = Incarnation(7);
    for after in [renamed("a", 3), renamed("b", 1)] {
        let unwatched = Unwatched::new(&renamed("a", 1));
        let may_hold = |node: &Node, life| unwatched.cluster.topology().may_hold(node.id(), life);
        let (old, other) = (unwatched.node(0), unwatched.node(1));
        meet_writable(&old, life.0, 1);
        other.set_probed();
        unwatched.cluster.reconsider();
        unwatched.reload(&after);
        let new = unwatched.node(0);
        assert!(old.is_leaving() && new.id() != old.id());
        assert!(may_hold(&old, life), "nobody is known to be another one");
        assert!(!may_hold(&old, Incarnation(6)) && !may_hold(&other, Incarnation(8)));
        meet_writable(&new, life.0, 1);
        unwatched.cluster.reconsider();
        assert_eq!(unwatched.primary(), Some(new.id()));
        assert!(may_hold(&old, life) && !may_hold(&old, Incarnation(6)));
        new.forget_position();
        assert!(may_hold(&old, life), "its probe reconnects");
        // Another server answers there, or has been promoted.
        new.meet(Incarnation(8));
        assert!(!may_hold(&old, life));
        new.meet(life);
        meet_writable(&other, 9, 2);
        unwatched.cluster.reconsider();
        assert_eq!(unwatched.primary(), Some(other.id()));
        assert!(!may_hold(&old, life) && !may_hold(&new, life));
    }
}

#[test]
fn rivals_are_told_apart_while_their_probes_reconnect() {
    let is_split = |topology: &Topology| {
        let (primary, split_brain) = elect(topology, 0);
        assert_eq!(primary.is_none(), split_brain);
        split_brain
    };
    let (two, one) = (rivals([7, 8]), rivals([7, 7]));
    assert!(is_split(&two));
    assert!(!is_split(&one), "two names of one server");
    for lost in 0..2 {
        two.nodes[lost].forget_position();
        one.nodes[lost].forget_position();
        assert!(is_split(&two));
        assert!(!is_split(&one));
    }
}

#[test]
fn a_schema_that_nobody_uses_is_forgotten_but_not_that_it_was_changed() {
    let unwatched = Unwatched::new(&config(&["127.0.0.1:1"]));
    let cluster = &unwatched.cluster;
    let used = cluster.schema("used");
    cluster.schema("never_changed");
    cluster.forget_schema("never_changed");
    assert_eq!(cluster.schema("new").version(), 0);
    cluster.schema("changed").changed();
    let (version, mark) = cluster.schema("changed").mark(&cluster.clock);
    assert_eq!(version, 1);
    for database in ["used", "new", "changed"] {
        cluster.forget_schema(database);
    }
    assert_eq!(cluster.schemas.len(), 1, "one is in use");
    assert_eq!(used.version(), 0);
    for database in ["changed", "another"] {
        let schema = cluster.schema(database);
        assert_ne!(schema.version(), 0, "its sessions are to heed the mark");
        assert_eq!(schema.mark(&cluster.clock).1, mark);
    }
}

/// What its probe does about a node that is of this system and takes writes, or does not. `false` if it is not
/// watched for that.
fn hear(unwatched: &Unwatched, index: usize, (system, timeline): (u64, u32), role: Role) -> bool {
    let (cluster, node) = (&unwatched.cluster, unwatched.node(index));
    node.set_system(system);
    cluster.reconsider();
    if cluster.topology().is_stranger(&node) {
        lose(unwatched, index);
        return false;
    }
    node.meet(Incarnation(system * 100 + index as u64));
    node.set_timeline(timeline);
    node.set_role(role);
    node.set_watched();
    cluster.reconsider();
    true
}

/// The same about one that does not answer any more.
fn lose(unwatched: &Unwatched, index: usize) {
    let node = unwatched.node(index);
    node.forget_position();
    node.set_probed();
    node.set_up(false);
    unwatched.cluster.reconsider();
}

const ADDRESSES: &[&str] = &["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"];

#[test]
fn a_stranger_is_not_the_primary_whoever_answers_first() {
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let unwatched = Unwatched::new(&config(ADDRESSES));
        for index in order {
            assert_eq!(unwatched.primary(), None, "{order:?}");
            let (told, role) = match index {
                0 => ((8, 9), Role::Primary),
                1 => ((7, 1), Role::Primary),
                _ => ((7, 1), Role::Replica),
            };
            hear(&unwatched, index, told, role);
        }
        let primary = unwatched.node(1);
        assert_eq!(unwatched.primary(), Some(primary.id()), "{order:?}");
        assert_eq!(unwatched.cluster.system(), 7);
        let up = [0, 1, 2].map(|index| unwatched.node(index).is_up());
        assert_eq!(up, [false, true, true], "{order:?}");
        let is_stranger = |node: &Node| unwatched.cluster.topology().is_stranger(node);
        assert!(is_stranger(&unwatched.node(0)) && !is_stranger(&primary));
    }
}

#[test]
fn who_can_be_of_either_system_is_not_the_primary() {
    let unwatched = Unwatched::new(&config(&ADDRESSES[..2]));
    for (index, told) in [(0, (8, 1)), (1, (7, 1))] {
        assert!(
            hear(&unwatched, index, told, Role::Primary),
            "it is watched"
        );
    }
    assert_eq!(unwatched.primary(), None);
    let dispute = unwatched.cluster.topology().dispute().expect("a reason");
    assert!(
        dispute.contains("127.0.0.1:1 of 8, 127.0.0.1:2 of 7"),
        "{dispute}"
    );
    unwatched.reload(&config(&ADDRESSES[1..2]));
    assert_eq!(unwatched.primary(), Some(unwatched.node(0).id()));
    assert_eq!(unwatched.cluster.topology().dispute(), None);
}

#[test]
fn a_stranger_is_not_the_primary_while_the_others_are_away() {
    let unwatched = Unwatched::new(&config(ADDRESSES));
    hear(&unwatched, 0, (7, 1), Role::Primary);
    hear(&unwatched, 1, (7, 1), Role::Replica);
    assert!(!hear(&unwatched, 2, (8, 9), Role::Primary));
    assert_eq!(unwatched.primary(), Some(unwatched.node(0).id()));
    lose(&unwatched, 0);
    lose(&unwatched, 1);
    assert!(!hear(&unwatched, 2, (8, 9), Role::Primary));
    assert_eq!(unwatched.primary(), None);
    assert!(unwatched.cluster.topology().dispute().is_some());
    // Nor if the address of one leads there.
    assert!(!hear(&unwatched, 0, (8, 9), Role::Primary));
    assert_eq!(unwatched.primary(), None);
    assert!(hear(&unwatched, 1, (7, 2), Role::Primary));
    assert_eq!(unwatched.primary(), Some(unwatched.node(1).id()));
}

#[test]
fn a_cluster_whose_nodes_are_all_of_another_system_has_another_history() {
    let unwatched = Unwatched::new(&config(&ADDRESSES[..2]));
    let cluster = &unwatched.cluster;
    hear(&unwatched, 0, (7, 5), Role::Primary);
    hear(&unwatched, 1, (7, 5), Role::Replica);
    let before = cluster.clock.now();
    cluster.sampled(cluster.clock.begin(), Lsn(1000), Instant::now());
    assert!(cluster.clock.after(before).is_some());
    lose(&unwatched, 0);
    lose(&unwatched, 1);
    assert!(!hear(&unwatched, 0, (8, 1), Role::Primary));
    assert_eq!((unwatched.primary(), cluster.system()), (None, 7));
    assert!(hear(&unwatched, 1, (8, 1), Role::Replica));
    assert_eq!((unwatched.primary(), cluster.system()), (None, 8));
    // All are asked again what they are.
    assert!(!unwatched.node(0).is_probed());
    assert!(hear(&unwatched, 0, (8, 1), Role::Primary));
    assert_eq!(unwatched.primary(), Some(unwatched.node(0).id()));
    assert_eq!(cluster.clock.timeline(), 1);
    assert_eq!(cluster.clock.after(before), None, "it is of the other one");
    let topology = cluster.topology();
    assert!(topology.is_behind(2) && topology.dispute().is_none());
}

#[test]
fn a_cluster_whose_nodes_are_all_replaced_may_be_of_another_system() {
    let unwatched = Unwatched::new(&config(&ADDRESSES[..1]));
    hear(&unwatched, 0, (7, 5), Role::Primary);
    unwatched.reload(&config(&ADDRESSES[1..]));
    assert!(hear(&unwatched, 0, (8, 1), Role::Primary));
    assert_eq!(unwatched.primary(), None, "the other may be of the old one");
    assert!(hear(&unwatched, 1, (8, 1), Role::Replica));
    assert_eq!(unwatched.primary(), Some(unwatched.node(0).id()));
    // And of the same as well.
    unwatched.reload(&config(&ADDRESSES[..1]));
    assert!(hear(&unwatched, 0, (8, 1), Role::Primary));
    assert_eq!(unwatched.primary(), Some(unwatched.node(0).id()));
}

#[test]
fn a_node_that_is_removed_is_freed() {
    let config = config(&["127.0.0.1:1"]);
    let (tls, pauses) = (Arc::default(), Arc::default());
    let wanted = &config.clusters[0].nodes[0];
    let node = Arc::new(Node::new("c", wanted, &config.routing, tls, pauses));
    let pool_of = |user: &str| {
        let (database, user) = ("d".into(), user.into());
        let key = PoolKey { database, user };
        pool(&node, &key, &Proven::now(None), &config)
    };
    drop(pool_of("a"));
    retire(&node);
    // Of a session that has not heard of that yet.
    let late = pool_of("b");
    let freed = Arc::downgrade(&node);
    drop((late, node));
    assert!(freed.upgrade().is_none());
}
