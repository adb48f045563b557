//! One PostgreSQL server on this machine, and what a test can do to it.
//!
//! Owns: a data directory, the port it is served on and the order of starts and stops. Never: says
//! that something is done before the server itself says so.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::DemoError;
use super::postgres::{self, Postgres};
use super::process::{self, wait_until};
use super::server::{Server, remove_segment};

/// The longest that a start, a stop, a promotion or a catch-up may take.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// How often a clash of ports with another process is met with another port.
const PORT_ATTEMPTS: usize = 5;

/// Below Linux's ephemeral range: an outgoing connection cannot take the port of a node that is
/// stopped for a while.
const PORTS: std::ops::Range<u16> = 10_240..32_768;

const LOG_LINES_SHOWN: usize = 20;

/// One server of a [`LocalCluster`](super::LocalCluster). Every method may be called from any
/// thread.
#[derive(Debug)]
pub struct LocalNode {
    site: Arc<Site>,
    index: usize,
    port: u16,
    server: Mutex<Server>,
}

/// What the nodes of one cluster share.
#[derive(Debug)]
pub struct Site {
    pub postgres: Postgres,
    /// Holds the data directories, the logs and the Unix sockets.
    pub directory: PathBuf,
    /// The index of the node that is the primary by our own doing.
    pub primary: AtomicUsize,
}

/// How [`LocalNode::stop`] shuts the server down, in PostgreSQL's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Disconnects the clients, rolls back, writes a checkpoint.
    Fast,
    /// Ends at once; the next start recovers as after a crash.
    Immediate,
}

impl LocalNode {
    /// Starts the server on the data directory that is ready for the node `index`.
    pub(super) fn launch(site: &Arc<Site>, index: usize) -> Result<LocalNode, DemoError> {
        let mut attempts = PORT_ATTEMPTS;
        loop {
            let node = LocalNode {
                site: Arc::clone(site),
                index,
                port: free_port()?,
                server: Mutex::default(),
            };
            attempts -= 1;
            match node.start() {
                Ok(()) => return Ok(node),
                // Somebody took the port between our look and the server's.
                Err(DemoError::NotReady { log, .. })
                    if attempts > 0 && log.contains("could not bind") => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The number of the node in its cluster; 0 was the first primary.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The TCP port on 127.0.0.1. It stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.site.data_dir(self.index)
    }

    /// The postmaster's process id, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server().pid()
    }

    /// Whether the postmaster runs. A frozen one does.
    pub fn is_running(&self) -> bool {
        self.pid().is_some()
    }

    /// Whether the node is, or would start as, a standby.
    pub fn is_standby(&self) -> bool {
        self.data_dir().join("standby.signal").exists()
    }

    /// Runs a script as the superuser and returns its rows, one per line, columns apart by `|`.
    /// Each statement is a transaction of its own; the first error ends the script.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String, DemoError> {
        let mut psql = self.site.postgres.command("psql");
        psql.args([
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-f",
            "-",
        ])
        .arg("-h")
        .arg(&self.site.directory)
        .args(["-p", &self.port.to_string(), "-d", database])
        .env("PGCONNECT_TIMEOUT", "10");
        postgres::run(&mut psql, sql)
    }

    /// Starts the server and waits until it takes connections. A running one is left alone.
    pub fn start(&self) -> Result<(), DemoError> {
        let mut server = self.server();
        if server.pid().is_some() {
            return Ok(());
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .map_err(DemoError::io("cannot open the server's log"))?;
        let log_start = log.metadata().map_or(0, |metadata| metadata.len());
        let copy = log
            .try_clone()
            .map_err(DemoError::io("cannot open the server's log"))?;

        let postmaster = self
            .postmaster_command()
            .stdout(copy)
            .stderr(log)
            .spawn()
            .map_err(DemoError::io("cannot start postgres"))?;
        let pid = postmaster.id();
        *server = Server::new(postmaster);

        let ready = wait_until(WAIT_MAX, || server.pid().is_none() || self.is_ready_as(pid));
        let why = match server.pid() {
            Some(_) if ready => return Ok(()),
            Some(_) => format!("no connections after {} s", WAIT_MAX.as_secs()),
            None => "it ended".to_owned(),
        };
        server.halt();
        Err(DemoError::NotReady {
            node: self.index,
            why,
            log: self.log_since(log_start),
        })
    }

    /// Stops the server and waits for its end. A stopped one is left alone.
    pub fn stop(&self, mode: StopMode) -> Result<(), DemoError> {
        let mut server = self.server();
        server.thaw();
        let Some(pid) = server.pid() else {
            return Ok(());
        };
        process::signal(
            pid,
            match mode {
                StopMode::Fast => Signal::SIGINT,
                StopMode::Immediate => Signal::SIGQUIT,
            },
        );
        if wait_until(WAIT_MAX, || server.pid().is_none()) {
            return Ok(());
        }
        Err(self.timeout("the shutdown"))
    }

    /// A fast stop and a start.
    pub fn restart(&self) -> Result<(), DemoError> {
        self.stop(StopMode::Fast)?;
        self.start()
    }

    /// Ends the server as a crash does, by SIGKILL to all of its processes, and waits until they
    /// are gone. A stopped one is left alone.
    pub fn kill(&self) {
        self.server().kill();
        remove_segment(&self.data_dir());
    }

    /// Stops every process of the server in its tracks: connections stay open and get no answer,
    /// new ones are accepted by the kernel alone.
    pub fn freeze(&self) {
        self.server().freeze();
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        self.server().thaw();
    }

    /// Makes a standby the primary and waits until it takes writes.
    pub fn promote(&self) -> Result<(), DemoError> {
        let promoted = self.sql(
            "postgres",
            &format!("SELECT pg_promote(true, {})", WAIT_MAX.as_secs()),
        )?;
        if promoted != "t" {
            return Err(self.timeout("the promotion"));
        }
        self.site.primary.store(self.index, Ordering::Release);
        Ok(())
    }

    /// Stops replay and waits until it has stopped; WAL is still received.
    pub fn pause_replay(&self) -> Result<(), DemoError> {
        self.sql("postgres", "SELECT pg_wal_replay_pause()")?;
        self.wait_for_answer(
            "the pause of replay",
            "SELECT pg_get_wal_replay_pause_state() = 'paused'",
        )
    }

    /// Lets a paused replay go on.
    pub fn resume_replay(&self) -> Result<(), DemoError> {
        self.sql("postgres", "SELECT pg_wal_replay_resume()")
            .map(drop)
    }

    /// Makes a standby replay each commit this long after it happened; zero ends that.
    pub fn set_apply_delay(&self, delay: Duration) -> Result<(), DemoError> {
        let set = format!(
            "ALTER SYSTEM SET recovery_min_apply_delay = '{}ms'",
            delay.as_millis()
        );
        self.sql("postgres", &set)?;
        self.reload()
    }

    /// Makes the server read its configuration files again, and waits until it has.
    pub fn reload(&self) -> Result<(), DemoError> {
        let before = self.sql(
            "postgres",
            "SELECT pg_conf_load_time(); SELECT pg_reload_conf()",
        )?;
        let loaded = before.lines().next().unwrap_or_default();
        self.wait_for_answer(
            "the reload",
            &format!("SELECT pg_conf_load_time() > '{loaded}'"),
        )
    }

    /// Points a standby at another node and waits until it streams from there. The standby must
    /// not have replayed more than the other node had when that was promoted; else
    /// [`rejoin`](Self::rejoin).
    pub fn follow(&self, upstream: &LocalNode) -> Result<(), DemoError> {
        let set = format!(
            "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port={} user=postgres'",
            upstream.port
        );
        self.sql("postgres", &set)?;
        self.reload()?;
        let streams = format!(
            "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver \
             WHERE status = 'streaming' AND sender_port = {})",
            upstream.port
        );
        self.wait_for_answer("streaming from the new primary", &streams)
    }

    /// Throws the data directory away and comes back as a new standby of `upstream`, on the same
    /// port: how a former primary returns to its cluster.
    pub fn rejoin(&self, upstream: &LocalNode) -> Result<(), DemoError> {
        self.stop(StopMode::Immediate)?;
        fs::remove_dir_all(self.data_dir())
            .map_err(DemoError::io("cannot remove the data directory"))?;
        self.site.copy_node(upstream, self.index)?;
        self.start()
    }

    /// The position of the next WAL record on a primary, as a standby can reach it.
    pub fn insert_lsn(&self) -> Result<u64, DemoError> {
        self.lsn("", "pg_current_wal_insert_lsn()")
            .map(without_page_header)
    }

    /// Writes and flushes a WAL record that does nothing, and returns its end.
    pub fn write_marker(&self) -> Result<u64, DemoError> {
        // Local: a cluster with synchronous standbys may well have a frozen one.
        self.lsn(
            "SET synchronous_commit = local",
            "pg_logical_emit_message(true, 'tidegate', '')",
        )
    }

    /// The position up to which a standby has replayed.
    pub fn replay_lsn(&self) -> Result<u64, DemoError> {
        self.lsn("", "pg_last_wal_replay_lsn()")
    }

    /// Waits until a standby has replayed up to `lsn`.
    pub fn wait_for_replay(&self, lsn: u64) -> Result<(), DemoError> {
        // The server waits by itself, so that the wait costs one process and ends within a
        // millisecond or two. Each COMMIT lets go of the snapshot, which could conflict with the
        // very replay that is waited for.
        let script = format!(
            "DO $$ BEGIN \
             WHILE coalesce(pg_last_wal_replay_lsn() < '{:X}/{:X}', true) LOOP \
               IF clock_timestamp() > now() + '{} s' THEN RAISE 'too late'; END IF; \
               PERFORM pg_sleep(0.001); \
               COMMIT; \
             END LOOP; END $$",
            lsn >> 32,
            lsn & 0xffff_ffff,
            WAIT_MAX.as_secs()
        );
        match self.sql("postgres", &script) {
            Err(DemoError::Program { stderr, .. }) if stderr.contains("too late") => {
                Err(self.timeout("replay"))
            }
            result => result.map(drop),
        }
    }

    /// Ends the server in whatever state it is, at once if need be.
    pub(super) fn halt(&self) {
        let mut server = self.server();
        server.halt();
        drop(server);
        remove_segment(&self.data_dir());
    }

    fn postmaster_command(&self) -> Command {
        let mut command = self.site.postgres.command("postgres");
        command
            .arg("-D")
            .arg(self.data_dir())
            .args(["-p", &self.port.to_string()])
            .arg("-k")
            .arg(&self.site.directory)
            .args(["-c", &format!("cluster_name=node{}", self.index)])
            // Ctrl-C at a terminal is for us; we then stop the server in good order.
            .process_group(0);
        command
    }

    /// Whether the server with this pid has written that it takes connections. The file of a
    /// killed predecessor carries another pid.
    fn is_ready_as(&self, pid: u32) -> bool {
        let lock = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        let mut lines = lock.lines();
        lines.next() == Some(&pid.to_string())
            && lines.nth(6).is_some_and(|status| status.trim() == "ready")
    }

    /// Asks once more every few milliseconds until the answer is `t`.
    fn wait_for_answer(&self, what: &str, sql: &str) -> Result<(), DemoError> {
        let mut failure = None;
        let held = wait_until(WAIT_MAX, || match self.sql("postgres", sql) {
            Ok(answer) => answer == "t",
            Err(error) => {
                failure = Some(error);
                true
            }
        });
        match failure {
            Some(error) => Err(error),
            None if held => Ok(()),
            None => Err(self.timeout(what)),
        }
    }

    fn lsn(&self, before: &str, expression: &str) -> Result<u64, DemoError> {
        let sql = format!("{before}; SELECT {expression} - '0/0'::pg_lsn");
        let answer = self.sql("postgres", &sql)?;
        answer.parse().map_err(|_| DemoError::Answer {
            node: self.index,
            expected: "a WAL position",
            got: answer,
        })
    }

    fn log_path(&self) -> PathBuf {
        self.site
            .directory
            .join(format!("server{}.log", self.index))
    }

    fn log_since(&self, start: u64) -> String {
        let read = || {
            let mut file = File::open(self.log_path())?;
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            std::io::Result::Ok(bytes)
        };
        let bytes = read().unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&bytes), LOG_LINES_SHOWN).to_owned()
    }

    fn timeout(&self, what: &str) -> DemoError {
        DemoError::Timeout {
            node: self.index,
            what: what.to_owned(),
            after: WAIT_MAX,
        }
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        // A panic elsewhere leaves nothing half done here, and the server still has to be stopped.
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LocalNode {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Site {
    pub fn data_dir(&self, index: usize) -> PathBuf {
        self.directory.join(format!("node{index}"))
    }

    /// Fills the data directory of the node `index` as a standby of `source`.
    pub fn copy_node(&self, source: &LocalNode, index: usize) -> Result<(), DemoError> {
        let mut copy = self.postgres.command("pg_basebackup");
        copy.arg("-D")
            .arg(self.data_dir(index))
            .args(["-h", "127.0.0.1", "-p", &source.port.to_string()])
            .args(["-U", "postgres", "-R", "-X", "stream", "-c", "fast"])
            .args(["--no-sync", "--no-manifest"]);
        postgres::run(&mut copy, "").map(drop)
    }
}

/// A port that nobody listens on right now.
fn free_port() -> Result<u16, DemoError> {
    (0..100)
        .map(|_| rand::random_range(PORTS))
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .ok_or(DemoError::NoPort)
}

/// When the last record ends on a page boundary, the insert position already counts the next page's
/// header, and no standby gets there before the next record. Sizes are initdb's defaults.
fn without_page_header(lsn: u64) -> u64 {
    const PAGE: u64 = 8192;
    const SEGMENT: u64 = 16 << 20;
    let header = if lsn % SEGMENT < PAGE { 40 } else { 24 };
    match lsn % PAGE {
        offset if offset <= header => lsn - offset,
        _ => lsn,
    }
}

fn last_lines(text: &str, count: usize) -> &str {
    let text = text.trim_end();
    match text.rmatch_indices('\n').nth(count - 1) {
        Some((at, _)) => &text[at + 1..],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insert_position_loses_only_a_page_header() {
        let check = |lsn, expected| assert_eq!(without_page_header(lsn), expected, "{lsn:X}");
        check(0x300_C018, 0x300_C000);
        check(0x300_C000, 0x300_C000);
        check(0x300_C020, 0x300_C020);
        check(0x300_0028, 0x300_0000);
        check(0x300_0030, 0x300_0030);
    }

    #[test]
    fn only_the_last_lines_are_shown() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a\nb", 2), "a\nb");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn a_free_port_is_below_the_ephemeral_range() {
        let port = free_port().expect("one of many ports is free");
        assert!(PORTS.contains(&port));
    }
}
