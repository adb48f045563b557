//! The cluster that other tests stand on does what they rely on, and leaves nothing behind.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tidegate::demo::{DemoError, LocalCluster, LocalNode, Options, StopMode};

/// Set in a copy of this test program that is there to be killed.
const VICTIM: &str = "TIDEGATE_TEST_VICTIM";

#[test]
fn standbys_replicate_lag_and_take_over() -> Result<(), DemoError> {
    let begin = Instant::now();
    let cluster = LocalCluster::start(Options::default())?;
    println!("started in {:?}", begin.elapsed());
    let (primary, first, second) = (cluster.primary(), cluster.node(1), cluster.node(2));
    assert_eq!(cluster.replicas().len(), 2);
    assert!(!primary.is_standby() && first.is_standby() && second.is_standby());

    // Replication.
    primary.sql("app", "CREATE TABLE t (n int); INSERT INTO t VALUES (1)")?;
    cluster.wait_caught_up()?;
    assert_eq!(count(&first)?, "1");
    assert_eq!(count(&second)?, "1");

    // Roles and passwords, over TCP.
    assert_eq!(over_tcp(&cluster, &first, "app", "app")?, "app");
    assert_eq!(
        over_tcp(&cluster, &primary, "tidegate", "tidegate")?,
        "tidegate"
    );
    let refused = over_tcp(&cluster, &primary, "app", "wrong").expect_err("the password is wrong");
    assert!(refused.to_string().contains("password"), "{refused}");

    // A paused standby stays where it is and the other goes on.
    first.pause_replay()?;
    primary.sql("app", "INSERT INTO t VALUES (2)")?;
    let lsn = cluster.insert_lsn()?;
    second.wait_for_replay(lsn)?;
    assert!(first.replay_lsn()? < lsn);
    assert_eq!(count(&first)?, "1");
    first.resume_replay()?;
    first.wait_for_replay(lsn)?;
    assert_eq!(count(&first)?, "2");

    // A delayed standby is late by the delay, and its end lets the rest through at once.
    second.set_apply_delay(Duration::from_secs(3600))?;
    primary.sql("app", "INSERT INTO t VALUES (3)")?;
    let lsn = cluster.insert_lsn()?;
    first.wait_for_replay(lsn)?;
    assert_eq!(count(&second)?, "2");
    second.set_apply_delay(Duration::ZERO)?;
    second.wait_for_replay(lsn)?;
    assert_eq!(count(&second)?, "3");

    // A crash of the primary, a promotion, a standby that follows, a former primary that returns.
    primary.kill();
    assert!(!primary.is_running());
    first.promote()?;
    assert_eq!(cluster.primary().index(), 1);
    second.follow(&first)?;
    first.sql("app", "INSERT INTO t VALUES (4)")?;
    primary.rejoin(&first)?;
    cluster.wait_caught_up()?;
    assert_eq!(count(&primary)?, "4");
    assert_eq!(count(&second)?, "4");
    assert!(primary.is_standby());

    leaves_nothing(cluster);
    Ok(())
}

#[test]
fn servers_stop_freeze_crash_and_join() -> Result<(), DemoError> {
    let cluster = LocalCluster::start(Options {
        replicas: 0,
        max_connections: 20,
        bindir: None,
        settings: vec![("work_mem".to_owned(), "1MB".to_owned())],
    })?;
    let primary = cluster.primary();
    assert!(cluster.replicas().is_empty());
    assert_eq!(primary.sql("app", "SHOW work_mem")?, "1MB");
    assert_eq!(primary.sql("app", "SHOW max_connections")?, "20");

    primary.sql("app", "CREATE TABLE t (n int); INSERT INTO t VALUES (1)")?;
    let replica = cluster.add_replica()?;
    cluster.wait_caught_up()?;
    assert_eq!(count(&replica)?, "1");
    assert_eq!(cluster.replicas().len(), 1);

    // Ended in order or not, a node comes back on its port with what it had.
    let port = primary.port();
    primary.stop(StopMode::Immediate)?;
    assert!(primary.sql("app", "SELECT 1").is_err());
    primary.start()?;
    primary.restart()?;
    primary.kill();
    primary.start()?;
    assert_eq!(primary.port(), port);
    assert_eq!(count(&primary)?, "1");

    // A frozen node answers nobody until it is thawed.
    primary.freeze();
    thread::scope(|scope| {
        let answer = scope.spawn(|| count(&primary));
        thread::sleep(Duration::from_millis(300));
        assert!(!answer.is_finished());
        primary.thaw();
        assert_eq!(answer.join().expect("no panic").expect("an answer"), "1");
    });

    // An error says what the server said.
    let error = primary.sql("app", "SELECT 1; SELECT nothing; SELECT 2");
    let error = error.expect_err("there is no such column").to_string();
    assert!(
        error.contains("column \"nothing\" does not exist"),
        "{error}"
    );

    // Gone without a trace, in whatever state the nodes are.
    primary.freeze();
    replica.kill();
    leaves_nothing(cluster);
    Ok(())
}

#[test]
fn a_panic_leaves_nothing() {
    let panicked = thread::spawn(|| -> Result<(), DemoError> {
        let cluster = LocalCluster::start(Options {
            replicas: 0,
            ..Options::default()
        })?;
        std::panic::panic_any((family(&cluster), cluster.directory().to_owned()))
    })
    .join();
    let payload = panicked.expect_err("the thread panics");
    let (pids, directory) = payload
        .downcast::<(Vec<u32>, PathBuf)>()
        .map(|payload| *payload)
        .expect("the cluster started");
    assert!(is_gone(&pids, &directory));
}

#[test]
fn a_killed_parent_leaves_nothing() -> Result<(), DemoError> {
    if env::var_os(VICTIM).is_some() {
        let cluster = LocalCluster::start(Options {
            replicas: 0,
            ..Options::default()
        })?;
        let pids: Vec<String> = family(&cluster).iter().map(u32::to_string).collect();
        println!(
            "victim: {} {}",
            cluster.directory().display(),
            pids.join(" ")
        );
        loop {
            thread::park();
        }
    }

    let mut victim = Command::new(env::current_exe().expect("this program has a path"))
        .args(["--exact", "--nocapture", "a_killed_parent_leaves_nothing"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program starts once more");
    let stdout = victim.stdout.take().expect("a pipe");
    let line = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once("victim: ")?.1.to_owned()));
    victim.kill().expect("the victim runs");
    victim.wait().expect("the victim can be waited for");

    let line = line.expect("the victim's cluster started");
    let mut words = line.split(' ');
    let directory = PathBuf::from(words.next().expect("a path"));
    let pids: Vec<u32> = words.map(|pid| pid.parse().expect("a pid")).collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_gone(&pids, &directory) {
        assert!(Instant::now() < deadline, "{pids:?} or {directory:?} stay");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn count(node: &LocalNode) -> Result<String, DemoError> {
    node.sql("app", "SELECT count(*) FROM t")
}

/// Logs in as any client would and returns the user's name; an error is what psql said.
fn over_tcp(
    cluster: &LocalCluster,
    node: &LocalNode,
    user: &str,
    password: &str,
) -> Result<String, DemoError> {
    let output = cluster
        .postgres()
        .command("psql")
        .args(["-XAtq", "-h", "127.0.0.1", "-p", &node.port().to_string()])
        .args(["-U", user, "-d", "app", "-c", "SELECT current_user"])
        .env("PGPASSWORD", password)
        .output()
        .expect("psql runs");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(DemoError::Program {
            program: "psql".to_owned(),
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

fn leaves_nothing(cluster: LocalCluster) {
    let pids = family(&cluster);
    assert!(!pids.is_empty());
    let directory = cluster.directory().to_owned();
    drop(cluster);
    assert!(is_gone(&pids, &directory), "{pids:?} or {directory:?} stay");
}

/// Every process that the cluster has started: the children of this one, and theirs.
fn family(cluster: &LocalCluster) -> Vec<u32> {
    let postmasters: Vec<u32> = cluster
        .nodes()
        .iter()
        .filter_map(|node| node.pid())
        .collect();
    processes()
        .into_iter()
        .filter(|&(pid, parent)| postmasters.contains(&pid) || postmasters.contains(&parent))
        .map(|(pid, _)| pid)
        .collect()
}

fn is_gone(pids: &[u32], directory: &Path) -> bool {
    let left = processes();
    !directory.exists() && !left.iter().any(|(pid, _)| pids.contains(pid))
}

/// The pid and the parent of each process that is not a zombie.
fn processes() -> Vec<(u32, u32)> {
    assert!(Path::new("/proc/self").exists(), "this test needs /proc");
    fs::read_dir("/proc")
        .expect("/proc can be read")
        .flatten()
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let pid = stat.split(' ').next()?.parse().ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
            let state = fields.next()?;
            let parent = fields.next()?.parse().ok()?;
            (pid != process::id() && state != "Z").then_some((pid, parent))
        })
        .collect()
}
