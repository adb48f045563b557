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

use known::Known;
use run::{Peer, REPLICA, run, served};
use script::{OnReplicas, Script};
use support::Gateway;
use tidegate::demo::{LocalCluster, Options};

/// How many scripts run at one time, each worker's through a proxy of its own: what a script's
/// queries were routed to can then be told.
const WORKERS: usize = 4;

/// The least number of scripts, and of batches that replicas serve in all.
const SCRIPTS_MIN: usize = 400;
const ON_REPLICAS_MIN: f64 = 1000.0;

#[test]
fn every_message_is_as_from_one_postgresql() {
    compare("transaction");
}

#[test]
fn every_message_is_as_from_one_postgresql_in_session_mode() {
    compare("session");
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
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    let served = Mutex::new(Served::default());
    let open = || Gateway::start_with(&cluster, |config| configured(&config, mode));
    let work = || {
        let mut gateway = open();
        while let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let is_known = known.contains_key(&script.name);
            let outcome = try_out(script, is_known, &direct, &cluster, &gateway);
            if wanted.is_some() {
                println!("{}", report::alone(script, &outcome.direct));
            }
            // What it has left behind is not to be the next one's.
            let spoilt = outcome.direct != outcome.proxied;
            outcomes.lock().expect("outcomes").push((*script, outcome));
            if spoilt {
                served.lock().expect("counts").add(&gateway);
                gateway = open();
            }
        }
        served.lock().expect("counts").add(&gateway);
    };
    thread::scope(|scope| {
        for _ in 0..WORKERS.min(scripts.len()) {
            scope.spawn(work);
        }
    });

    let outcomes = outcomes.into_inner().expect("outcomes");
    let served = served.into_inner().expect("counts");
    let faults = faults(&outcomes, &known);
    println!(
        "{} scripts, {} known to differ; {served:?}",
        scripts.len(),
        known.len()
    );
    assert!(
        faults.is_empty(),
        "{} scripts:\n\n{}",
        faults.len(),
        faults.join("\n")
    );
    if wanted.is_none() {
        assert!(scripts.len() >= SCRIPTS_MIN, "only {}", scripts.len());
        assert!(served.on_replicas >= ON_REPLICAS_MIN, "{served:?}");
        assert!(served.repairs >= 1.0, "nothing was repaired");
        let gateway = open();
        garbage::is_one_clients_own_problem(&gateway);
        garbage::answers_that_are_held_back_come(&gateway);
        garbage::nothing_is_said_within_a_row(&gateway, &cluster);
        garbage::whoever_leaves_in_a_transaction_leaves_nothing_behind(&gateway, &cluster);
    }
}

/// What the gateways have done in all.
#[derive(Debug, Default)]
struct Served {
    on_replicas: f64,
    on_primary: f64,
    repairs: f64,
}

impl Served {
    fn add(&mut self, gateway: &Gateway) {
        self.on_replicas += served(gateway, REPLICA);
        self.on_primary += served(gateway, "route=\"primary\"");
        self.repairs += gateway.metric("tidegate_repairs_total", "");
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
    // On a busy machine replicas are late; the reads that are to run there wait for them.
    // Some functions are said to be safe that are not, so that reads have to be repaired.
    let more = "[consistency]\ngate_wait = \"1s\"\n\n\
        [routing]\nsafe_functions = [\"w_a_write_behind_a_view*\"]\n\n";
    let pool = match mode {
        // It is the default.
        "transaction" => String::new(),
        mode => format!("[pool]\nmode = \"{mode}\"\n\n"),
    };
    config.replacen("[auth]", &format!("{more}{pool}[auth]"), 1)
}

struct Outcome {
    direct: run::Stream,
    proxied: run::Stream,
    /// Batches that replicas have served, when the script is not content with that.
    misrouted: Option<f64>,
}

/// Runs a script on both sides; one that is known to differ, to its first difference.
fn try_out(
    script: &Script,
    is_known: bool,
    direct: &LocalCluster,
    cluster: &LocalCluster,
    gateway: &Gateway,
) -> Outcome {
    let peer = Peer {
        port: direct.primary().port(),
        nodes: &direct.nodes(),
        gateway: None,
    };
    let direct = run(script, &peer, None);
    let before = served(gateway, REPLICA);
    let peer = Peer {
        port: gateway.port,
        // Nothing here changes which node is the primary: it is the first.
        nodes: &cluster.nodes(),
        gateway: Some(gateway),
    };
    let proxied = run(script, &peer, is_known.then_some(&direct));
    let on_replicas = || served(gateway, REPLICA) - before;
    let is_content = || match script.on_replicas {
        OnReplicas::Any => true,
        // One more: each of these begins with a read that a replica serves.
        OnReplicas::AtLeast(n) => on_replicas() > f64::from(n),
        OnReplicas::None => on_replicas() == 0.0,
    };
    // A batch is counted just after it has been answered.
    let started = Instant::now();
    while !is_content() && started.elapsed() < Duration::from_secs(1) {
        thread::sleep(Duration::from_millis(5));
    }
    let misrouted = (!is_content()).then(on_replicas);
    Outcome {
        direct,
        proxied,
        misrouted,
    }
}

/// What is wrong: scripts that differ, and known ones that no longer do.
fn faults(outcomes: &[(&Script, Outcome)], known: &HashMap<String, Known>) -> Vec<String> {
    let mut faults = Vec::new();
    for (script, outcome) in outcomes {
        if outcome.direct.iter().flatten().any(|m| m == run::NO_ANSWER) {
            let stream = report::alone(script, &outcome.direct);
            faults.push(format!("PostgreSQL itself does not answer:\n{stream}"));
            continue;
        }
        let differs = outcome.direct != outcome.proxied || outcome.misrouted.is_some();
        match (differs, known.get(&script.name)) {
            (true, Some(_)) | (false, None) => {}
            (false, Some(Known { sometimes, .. })) if *sometimes => {}
            (false, Some(Known { cause, .. })) => faults.push(format!(
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
