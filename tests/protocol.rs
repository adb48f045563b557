//! What a client sees through the proxy is, message by message, what one PostgreSQL shows it.
//!
//! The scripts are in `tests/protocol/*.script`; the README beside them says how to write one.
//! `SCRIPT=name` runs only scripts whose names contain that, and prints what they were sent.

mod support;

#[path = "protocol/client.rs"]
mod client;
#[path = "protocol/garbage.rs"]
mod garbage;
#[path = "protocol/known.rs"]
mod known;
#[path = "protocol/report.rs"]
mod report;
#[path = "protocol/run.rs"]
mod run;
#[path = "protocol/script.rs"]
mod script;
#[path = "protocol/shown.rs"]
mod shown;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use run::{Peer, REPLICA, run, served};
use script::{OnReplicas, Script};
use support::Gateway;
use tidegate::demo::{LocalCluster, LocalNode, Options};

/// How many scripts run at one time, each worker's through a proxy of its own: what a script's
/// queries were routed to can then be told.
const WORKERS: usize = 4;

/// The least number of scripts, and of batches that replicas serve in all.
const SCRIPTS_MIN: usize = 76;
const ON_REPLICAS_MIN: f64 = 50.0;

#[test]
fn every_message_is_as_from_one_postgresql() {
    compare("transaction");
}

/// Runs all scripts with servers pooled in this `mode`.
fn compare(mode: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/protocol");
    let all = script::read_all(&directory);
    let wanted = std::env::var("SCRIPT").ok();
    let scripts: Vec<&Script> = all
        .iter()
        .filter(|s| wanted.as_ref().is_none_or(|w| s.name.contains(w.as_str())))
        .collect();
    let known = known::read(&directory.join("known.txt"), mode, &all);

    let (direct, cluster) = thread::scope(|scope| {
        let direct = scope.spawn(|| start(0, &scripts));
        let cluster = start(2, &scripts);
        (direct.join().expect("a server"), cluster)
    });
    let gateways: Vec<_> = (0..WORKERS.min(scripts.len()))
        .map(|_| Gateway::start_with(&cluster, |config| configured(&config, mode)))
        .collect();

    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for gateway in &gateways {
            scope.spawn(|| {
                while let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = try_out(script, &direct.primary(), &cluster.primary(), gateway);
                    if wanted.is_some() {
                        println!("{}", report::alone(script, &outcome.direct));
                    }
                    outcomes.lock().expect("outcomes").push((*script, outcome));
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("outcomes");
    let faults = faults(&outcomes, &known);
    let on_replicas: f64 = gateways.iter().map(|g| served(g, REPLICA)).sum();
    let repairs: f64 = gateways
        .iter()
        .map(|g| g.metric("tidegate_repairs_total", ""))
        .sum();
    println!(
        "{} scripts, {} known to differ; replicas served {on_replicas} batches, {repairs} repairs",
        scripts.len(),
        known.len()
    );
    for gateway in &gateways[..if faults.is_empty() { 0 } else { gateways.len() }] {
        let log = gateway.log();
        let odd = log.lines().filter(|l| l.contains("panic"));
        odd.for_each(|line| eprintln!("{line}"));
    }
    assert!(
        faults.is_empty(),
        "{} scripts:\n\n{}",
        faults.len(),
        faults.join("\n")
    );
    if wanted.is_none() {
        assert!(scripts.len() >= SCRIPTS_MIN, "only {}", scripts.len());
        assert!(on_replicas >= ON_REPLICAS_MIN, "only {on_replicas}");
        assert!(repairs >= 1.0, "nothing was repaired");
        garbage::is_one_clients_own_problem(&gateways[0]);
        garbage::whoever_leaves_in_a_transaction_leaves_nothing_behind(&gateways[0], &cluster);
    }
}

/// A primary and its replicas with what the scripts need.
fn start(replicas: usize, scripts: &[&Script]) -> LocalCluster {
    let cluster = LocalCluster::start(Options {
        replicas,
        ..Options::default()
    })
    .expect("a cluster");
    let primary = cluster.primary();
    let sql = |sql: &str| {
        if let Err(error) = primary.sql("app", sql) {
            panic!("{sql}: {error}");
        }
    };
    sql(include_str!("protocol/setup.sql"));
    for script in scripts {
        for setup in &script.setup {
            sql(&format!("SET ROLE app; {setup}"));
        }
    }
    cluster.wait_caught_up().expect("replicas");
    cluster
}

/// The users of `setup.sql`, and the mode.
fn configured(config: &str, mode: &str) -> String {
    let users = ["other", "defaults"]
        .map(|name| format!("[[auth.user]]\nname = \"{name}\"\npassword = \"{name}\"\n\n"))
        .concat();
    let config = config.replacen("[[cluster]]", &format!("{users}[[cluster]]"), 1);
    match mode {
        // It is the default.
        "transaction" => config,
        mode => config.replacen("[auth]", &format!("[pool]\nmode = \"{mode}\"\n\n[auth]"), 1),
    }
}

struct Outcome {
    direct: run::Stream,
    proxied: run::Stream,
    /// Batches that replicas have served, when the script is not content with that.
    misrouted: Option<f64>,
}

fn try_out(script: &Script, direct: &LocalNode, primary: &LocalNode, gateway: &Gateway) -> Outcome {
    let before = served(gateway, REPLICA);
    let proxied = run(
        script,
        &Peer {
            port: gateway.port,
            primary,
            gateway: Some(gateway),
        },
    );
    let on_replicas = || served(gateway, REPLICA) - before;
    let is_content = || match script.on_replicas {
        OnReplicas::Any => true,
        OnReplicas::AtLeast(n) => on_replicas() >= f64::from(n),
        OnReplicas::None => on_replicas() == 0.0,
    };
    // A batch is counted just after it has been answered.
    let started = Instant::now();
    while !is_content() && started.elapsed() < Duration::from_secs(1) {
        thread::sleep(Duration::from_millis(5));
    }
    let misrouted = (!is_content()).then(on_replicas);
    let direct = run(
        script,
        &Peer {
            port: direct.port(),
            primary: direct,
            gateway: None,
        },
    );
    Outcome {
        direct,
        proxied,
        misrouted,
    }
}

/// What is wrong: scripts that differ, and known ones that no longer do.
fn faults(outcomes: &[(&Script, Outcome)], known: &HashMap<String, String>) -> Vec<String> {
    let mut faults = Vec::new();
    for (script, outcome) in outcomes {
        let differs = outcome.direct != outcome.proxied || outcome.misrouted.is_some();
        match (differs, known.get(&script.name)) {
            (true, Some(_)) | (false, None) => {}
            (false, Some(cause)) => faults.push(format!(
                "{} no longer differs: take it off known.txt ({cause})\n",
                script.name
            )),
            (true, None) => {
                let mut fault = report::side_by_side(script, &outcome.direct, &outcome.proxied);
                if let Some(served) = outcome.misrouted {
                    fault += &format!(
                        "  ! replicas served {served} batches, wanted {:?}\n",
                        script.on_replicas
                    );
                }
                faults.push(fault);
            }
        }
    }
    faults
}
