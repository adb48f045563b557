//! Signals, the process table, and a guard that cleans up when this process is killed.
//!
//! Owns: who runs and who is whose child. Never: finds a process by name; only by a pid that a
//! child of ours has, or by being a child of that child.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::DemoError;

/// How often a condition without a notification of its own is looked at.
pub const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Stops the servers and removes the directory if this process dies without running destructors:
/// SIGKILL, an abort, Ctrl-C in a test run.
///
/// It is a shell that waits for the end of a pipe whose other end only this process holds. A parent
/// death signal would be simpler, but it follows the *thread* that started the server, and tests
/// start servers on threads that end long before the servers do.
#[derive(Debug)]
pub struct Guard {
    shell: Child,
}

/// Reads one line to be dismissed; an end of file means that the parent is gone. A pid counts only
/// if that process works in the node's directory, so a recycled pid is never hit. SIGCONT lets a
/// frozen server see the signal.
const GUARD_SCRIPT: &str = r#"
trap '' HUP INT TERM
read -r _ && exit
for pass in 1 2 3 4 5 6 7 8 9 10; do
  left=0
  for data in "$0"/node*; do
    pid=$(head -n 1 "$data/postmaster.pid" 2>/dev/null) || continue
    if [ "/proc/$pid/cwd" -ef "$data" ]; then
      kill -QUIT "$pid"; kill -CONT "$pid"; left=1
    fi
  done
  [ "$left" = 0 ] && break
  sleep 1
done
rm -rf "$0"
"#;

impl Guard {
    /// Watches over the servers whose data directories are `node*` in `directory`.
    pub fn start(directory: &Path) -> Result<Guard, DemoError> {
        let shell = Command::new("sh")
            .arg("-c")
            .arg(GUARD_SCRIPT)
            .arg(directory)
            .current_dir("/")
            // Its own group: what a terminal sends to ours must not end it before us.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(DemoError::io("cannot start sh"))?;
        Ok(Guard { shell })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.shell.stdin.take() {
            // A shell that somebody killed has nothing to be told.
            let _ = stdin.write_all(b"dismissed\n");
        }
        let _ = self.shell.wait();
    }
}

/// Sends `signal` to one process. A process that is gone already is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// The live children of `parent`. Empty where there is no `/proc`.
pub fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| {
            matches!(status(pid), Some(status) if status.parent == parent && !status.is_gone())
        })
        .collect()
}

/// Whether `pid` still runs; a zombie that nobody reaped does not.
pub fn is_alive(pid: u32) -> bool {
    status(pid).is_some_and(|status| !status.is_gone())
}

/// Whether `pid` has been stopped by SIGSTOP.
pub fn is_stopped(pid: u32) -> bool {
    status(pid).is_some_and(|status| status.state == 'T')
}

/// Looks at `condition` until it holds or `limit` has passed; returns whether it held.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Status {
    state: char,
    parent: u32,
}

impl Status {
    fn is_gone(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

fn status(pid: u32) -> Option<Status> {
    parse_status(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `pid (name) state ppid …`, where the name may itself hold spaces and parentheses.
fn parse_status(stat: &str) -> Option<Status> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Status { state, parent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_cannot_confuse_the_status() {
        let expected = Some(Status {
            state: 'S',
            parent: 7,
        });
        assert_eq!(parse_status("12 (postgres) S 7 12 12 0"), expected);
        assert_eq!(parse_status("12 (a) R 1 (b)) S 7 12"), expected);
        assert_eq!(parse_status("12 postgres"), None);
        assert_eq!(parse_status("12 (postgres) S"), None);
    }

    #[test]
    fn a_child_is_seen_stopped_and_gone() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep runs");
        let pid = child.id();
        assert!(children(std::process::id()).contains(&pid));

        signal(pid, Signal::SIGSTOP);
        assert!(wait_until(Duration::from_secs(5), || is_stopped(pid)));

        signal(pid, Signal::SIGKILL);
        assert!(wait_until(Duration::from_secs(5), || !is_alive(pid)));
        child.wait().expect("the child can be waited for");
    }

    #[test]
    fn a_dismissed_guard_removes_nothing() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        drop(Guard::start(directory.path()).expect("sh runs"));
        assert!(directory.path().exists());
    }

    #[test]
    fn a_guard_that_lost_its_parent_removes_the_directory() {
        let directory = tempfile::tempdir().expect("a temporary directory").keep();
        let mut guard = Guard::start(&directory).expect("sh runs");
        drop(guard.shell.stdin.take());
        assert!(wait_until(Duration::from_secs(10), || !directory.exists()));
    }
}
