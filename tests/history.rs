//! The promises to a session, checked over random histories: many clients write and read their own
//! and others' rows while replay on the standbys is late, paused and resumed.
//!
//! Owns: which runs there are, and what each must show. Never: promises a session more than its level
//! does: usually, that it reads its own writes and never goes back in time; nor more than PostgreSQL
//! lets any proxy promise (`model::Kept::ButEarly`).

#[path = "history/client.rs"]
mod client;
#[path = "history/database.rs"]
mod database;
#[path = "history/forms.rs"]
mod forms;
#[path = "history/model.rs"]
mod model;
#[path = "history/run.rs"]
mod run;
#[path = "history/shared.rs"]
mod shared;
mod support;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidegate::demo::{DemoError, LocalCluster, Options};

use client::{Mix, Promise};
use model::Kind;
use run::{Outcome, Run};
use shared::Place;
use support::redis::Redis;
use support::{Gateway, wait_for};

const LATE: Duration = Duration::from_millis(300);

const MIX: Mix = Mix {
    writes: 15,
    transactions: 0,
    readers: false,
    think: Duration::from_millis(2),
    clients: 12,
    shared: 4,
    operations: 600,
};

const STEADY: Run = Run {
    name: "no delay",
    mix: MIX,
    options: "",
    promise: Promise::Session,
    late: &[],
    paused: 0,
    restarted: 0,
    stop_at_violation: false,
};

/// Clusters are used one after the other: what share replicas take is measured.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn sessions_read_their_writes_and_never_go_back() -> Result<(), DemoError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = new_cluster()?;
    let gateway = Gateway::start(&cluster);
    println!("{}", Outcome::heading());

    let one_late = Run {
        name: "one standby late",
        late: &[LATE],
        ..STEADY
    };
    let one_paused = Run {
        name: "replay paused on one",
        paused: 1,
        ..STEADY
    };
    let both_paused = Run {
        name: "replay paused on both",
        paused: 2,
        ..STEADY
    };
    for run in [STEADY, one_late, one_paused, both_paused] {
        let outcome = go(&run, &cluster, &gateway)?;
        assert_kept(&outcome);
        assert!(
            outcome.on_replicas > 0 && outcome.moves > 0,
            "it tests something"
        );
        assert_eq!(outcome.pauses > 0, run.paused > 0);
    }

    let share = Run {
        name: "no delay, 5 ms think time, 10 % writes",
        mix: Mix {
            writes: 10,
            think: Duration::from_millis(5),
            ..MIX
        },
        ..STEADY
    };
    let outcome = go(&share, &cluster, &gateway)?;
    assert_kept(&outcome);
    assert!(
        outcome.share_on_replicas() >= 0.4,
        "replicas serve only {:.3} of the reads",
        outcome.share_on_replicas()
    );
    Ok(())
}

/// Transactions that read on replicas, and go on on the primary where they write.
#[test]
fn transactions_on_replicas_keep_the_promise() -> Result<(), DemoError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = new_cluster()?;
    let eager = with_lines(&cluster, "[routing]\ntransaction_reads = \"replica\"");
    let moves = || eager.metric("tidegate_transaction_moves_total", "");
    println!("{}", Outcome::heading());
    let steady = Run {
        name: "transactions on replicas, no delay",
        mix: Mix {
            transactions: 60,
            ..MIX
        },
        ..STEADY
    };
    let one_late = Run {
        name: "… one standby late",
        late: &[LATE],
        ..steady
    };
    let both_paused = Run {
        name: "… replay paused on both",
        paused: 2,
        ..steady
    };
    let key = Run {
        name: "… one causal key",
        options: ONE_KEY,
        promise: Promise::Everything,
        ..one_late
    };
    for run in [steady, one_late, both_paused, key] {
        let before = moves();
        let outcome = go(&run, &cluster, &eager)?;
        assert_kept(&outcome);
        let shown = outcome.shown_by.iter().sum::<usize>();
        assert!(
            outcome.on_replicas > shown && shown > 0,
            "some of what replicas did is BEGIN and COMMIT"
        );
        assert!(moves() > before, "{}: some of them move", run.name);
    }
    Ok(())
}

/// Every form of a read or a write on the primary, while the standbys stand still.
#[test]
fn whatever_the_primary_shows_or_takes_is_not_gone_back_behind() -> Result<(), DemoError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = new_cluster()?;
    let trusting = |config: String| config.replace("scram-sha-256", "trust");
    let gateway = Gateway::start_with(&cluster, trusting);
    let broken = forms::check(&cluster, &gateway)?;
    assert!(broken.is_empty(), "{broken:#?}");
    Ok(())
}

const GLOBAL: &str = "options='-c tidegate.consistency=global'";
const ONE_KEY: &str = "options='-c tidegate.causal_key=one'";
const KEYS: &str = "options='-c tidegate.causal_key=key%'";
const PRIMARY: &str = "options='-c tidegate.consistency=primary'";
const BOUNDED: &str = "options='-c tidegate.consistency=bounded -c tidegate.max_lag=150ms'";
const EVENTUAL: &str = "options='-c tidegate.consistency=eventual'";

/// Lag that `bounded` allows, and less than one of the standbys has.
const MAX_LAG: Duration = Duration::from_millis(150);

const OF_LEVELS: Mix = Mix {
    operations: 300,
    ..MIX
};

/// The other levels, with one standby late or standing still.
#[test]
fn every_level_keeps_its_promise() -> Result<(), DemoError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = new_cluster()?;
    let gateway = Gateway::start(&cluster);
    println!("{}", Outcome::heading());
    let within = Promise::Within(MAX_LAG);
    for (name, options, promise, reads_replicas) in [
        ("global", GLOBAL, Promise::Everything, true),
        ("one causal key", ONE_KEY, Promise::Everything, true),
        ("bounded", BOUNDED, within, true),
        ("primary", PRIMARY, Promise::Everything, false),
    ] {
        let late = Run {
            name,
            mix: OF_LEVELS,
            options,
            promise,
            late: &[LATE],
            ..STEADY
        };
        let paused = Run {
            late: &[],
            paused: 1,
            ..late
        };
        for run in [late, paused] {
            let outcome = go(&run, &cluster, &gateway)?;
            assert_kept(&outcome);
            assert_eq!(outcome.on_replicas > 0, reads_replicas, "{name}");
        }
    }
    Ok(())
}

/// How many runs a violation that there must be may take to show: in those that follow a restart of the standbys there may be
/// no reads on them for some seconds.
const RUNS_MAX: usize = 100;

/// The same checks find something where the level is weaker than what is checked.
#[test]
fn weaker_levels_are_seen_to_promise_less() -> Result<(), DemoError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = new_cluster()?;
    let gateway = Gateway::start(&cluster);
    println!("{}", Outcome::heading());
    let within = Promise::Within(MAX_LAG);
    for (name, options, promise) in [
        ("session, and not global", "", Promise::Everything),
        ("a key for each", KEYS, Promise::Everything),
        ("eventual, and not bounded", EVENTUAL, within),
    ] {
        let run = Run {
            name,
            mix: OF_LEVELS,
            options,
            promise,
            ..STEADY
        };
        assert_violated(&run, Kind::Missed, |run| go(run, &cluster, &gateway))?;
    }
    Ok(())
}

/// Clients of one key through two proxies: what each proxy has told the other of is seen through it.
#[test]
fn two_proxies_keep_what_they_share_of_a_key() -> Result<(), DemoError> {
    let Some(redis) = Redis::start() else {
        return Ok(());
    };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = new_cluster()?;
    println!("{}", Outcome::heading());

    let proxies = Proxies::start(&cluster, &redis, ["both:", "both:"]);
    let both_write = Run {
        name: "two proxies, one standby late",
        mix: OF_LEVELS,
        options: ONE_KEY,
        promise: Promise::Shared,
        late: &[LATE],
        ..STEADY
    };
    let transactions = Run {
        name: "… with transactions",
        mix: Mix {
            transactions: 60,
            ..OF_LEVELS
        },
        ..both_write
    };
    // The more a proxy does on the primary for a key, the less it depends on what others tell it.
    let one_writes = Run {
        name: "… written through one of them",
        mix: Mix {
            readers: true,
            ..OF_LEVELS
        },
        ..both_write
    };
    let one_paused = Run {
        name: "… and replay paused on one",
        late: &[],
        paused: 1,
        ..one_writes
    };
    let both_restarted = Run {
        name: "… and both standbys restarted",
        restarted: 2,
        ..one_writes
    };
    for run in [
        both_write,
        transactions,
        one_writes,
        one_paused,
        both_restarted,
    ] {
        let outcome = proxies.go(&run, &cluster)?;
        assert_kept(&outcome);
        assert!(outcome.handed_over > 0, "{}: it tests something", run.name);
        assert_eq!(outcome.pauses > 0, run.paused > 0);
        assert_eq!(outcome.restarts > 0, run.restarted > 0);
    }
    drop(proxies);

    // Where neither reads what the other writes.
    let strangers = Proxies::start(&cluster, &redis, ["here:", "there:"]);
    let run = Run {
        name: "two proxies that share nothing",
        ..one_writes
    };
    assert_violated(&run, Kind::NotShared, |run| strangers.go(run, &cluster))
}

/// Two proxies, and where each of them tells of its keys.
struct Proxies {
    gateways: [Gateway; 2],
    places: [Place; 2],
}

impl Proxies {
    fn start(cluster: &LocalCluster, redis: &Redis, prefixes: [&'static str; 2]) -> Proxies {
        let places = prefixes.map(|prefix| Place {
            url: redis.url(),
            prefix,
            key: "one",
        });
        let gateways = places.each_ref().map(|Place { url, prefix, .. }| {
            redis.grow_old(prefix);
            // It answers in time however slow the machine is.
            let lines = format!("url = \"{url}\"\nprefix = \"{prefix}\"\ntimeout = \"1s\"");
            with_lines(cluster, &format!("[consistency.redis]\n{lines}"))
        });
        for gateway in &gateways {
            wait_for("the store", || {
                gateway.metric("tidegate_causal_store_up", "") == 1.0
            });
        }
        Proxies { gateways, places }
    }

    fn go(&self, run: &Run, cluster: &LocalCluster) -> Result<Outcome, DemoError> {
        let outcome = run.go(cluster, &self.gateways.each_ref(), &self.places)?;
        println!("{outcome}");
        Ok(outcome)
    }
}

/// A checker that finds nothing may be blind. Without what keeps the promises, it finds something.
#[test]
fn without_floors_sessions_are_seen_to_go_back() -> Result<(), DemoError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = new_cluster()?;
    println!("{}", Outcome::heading());

    let eventual = with_consistency(&cluster, "level = \"eventual\"");
    // Now one is late and then the other: whichever takes the most reads, one run shows it.
    let mut violations = 0;
    for late in [&[LATE][..], &[Duration::ZERO, LATE]] {
        let run = Run {
            name: "eventual, one standby late",
            late,
            stop_at_violation: true,
            ..STEADY
        };
        violations += go(&run, &cluster, &eventual)?.violations;
    }
    assert!(violations > 0, "stale reads are not seen");

    // For as long as its own write is on no standby, a session reads on the primary and sees what
    // the others write; then it moves to a standby that has its write and lacks all that. Few
    // writes, so that a session lives to see its own arrive. The same happens after every
    // transaction that only reads.
    let blind = with_consistency(&cluster, "primary_reads_raise_floor = false");
    let run = Run {
        name: "reads on the primary raise no floor",
        mix: Mix {
            writes: 2,
            operations: 5000,
            ..MIX
        },
        late: &[LATE, LATE],
        stop_at_violation: true,
        ..STEADY
    };
    let outcome = go(&run, &cluster, &blind)?;
    assert!(
        outcome.violations > 0,
        "a session that goes back is not seen"
    );
    let went_back = |finding: &client::Finding| finding.violation.kind == model::Kind::WentBack;
    assert!(
        outcome.findings.iter().all(went_back),
        "its own writes are still kept: {:?}",
        outcome.findings
    );
    Ok(())
}

fn new_cluster() -> Result<LocalCluster, DemoError> {
    let cluster = LocalCluster::start(Options::default())?;
    database::create(&cluster)?;
    Ok(cluster)
}

fn with_consistency(cluster: &LocalCluster, line: &str) -> Gateway {
    with_lines(cluster, &format!("[consistency]\n{line}"))
}

fn with_lines(cluster: &LocalCluster, lines: &str) -> Gateway {
    Gateway::start_with(cluster, |config| format!("{config}\n{lines}\n"))
}

fn go(run: &Run, cluster: &LocalCluster, gateway: &Gateway) -> Result<Outcome, DemoError> {
    let outcome = run.go(cluster, &[gateway], &[])?;
    println!("{outcome}");
    Ok(outcome)
}

/// Goes on until a violation of this kind is seen, and no other is. Whichever standby takes the reads, a
/// run shows it; and none has to, as clients do what they like.
fn assert_violated(
    run: &Run,
    kind: Kind,
    go: impl Fn(&Run) -> Result<Outcome, DemoError>,
) -> Result<(), DemoError> {
    let late = [&[LATE][..], &[Duration::ZERO, LATE]];
    for late in late.into_iter().cycle().take(RUNS_MAX) {
        let outcome = go(&Run {
            late,
            stop_at_violation: true,
            ..*run
        })?;
        let is_such = |finding: &client::Finding| finding.violation.kind == kind;
        assert!(
            outcome.findings.iter().all(is_such),
            "{}: {:?}",
            run.name,
            outcome.findings
        );
        if outcome.violations > 0 {
            return Ok(());
        }
    }
    panic!("{}: nothing is seen", run.name);
}

fn assert_kept(outcome: &Outcome) {
    let findings: String = outcome.findings.iter().map(ToString::to_string).collect();
    assert_eq!(
        outcome.violations, 0,
        "in the run with {}:\n{findings}",
        outcome.name
    );
    assert!(
        outcome.on_replicas == outcome.shown_by.iter().sum::<usize>() || outcome.may_be_asked_more,
        "the proxy counts what replicas answer"
    );
}
