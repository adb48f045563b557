//! A postmaster as a process: frozen, killed, or ended in order.
//!
//! Owns: the child process and whether it is frozen. Never: signals a process that is not that
//! postmaster or one of its children.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::postgres;
use super::process::{self, wait_until};

/// How long an immediate shutdown may take before SIGKILL follows.
const QUIT_MAX: Duration = Duration::from_secs(5);

/// How long the processes of a killed server may take to disappear.
const GONE_MAX: Duration = Duration::from_secs(60);

/// The postmaster of one node, if it runs.
#[derive(Debug, Default)]
pub struct Server {
    postmaster: Option<Child>,
    frozen: bool,
}

impl Server {
    /// A postmaster that was just started.
    pub fn new(postmaster: Child) -> Server {
        Server {
            postmaster: Some(postmaster),
            frozen: false,
        }
    }

    /// The pid, unless the process has ended, on our word or on its own.
    pub fn pid(&mut self) -> Option<u32> {
        let child = self.postmaster.as_mut()?;
        if let Ok(Some(_)) = child.try_wait() {
            self.postmaster = None;
            self.frozen = false;
            return None;
        }
        Some(child.id())
    }

    /// Stops every process in its tracks.
    pub fn freeze(&mut self) {
        let Some(pid) = self.pid() else { return };
        for child in stop_postmaster(pid) {
            process::signal(child, Signal::SIGSTOP);
        }
        self.frozen = true;
    }

    /// Lets a frozen server go on.
    pub fn thaw(&mut self) {
        if !self.frozen {
            return;
        }
        if let Some(pid) = self.pid() {
            for child in process::children(pid) {
                process::signal(child, Signal::SIGCONT);
            }
            process::signal(pid, Signal::SIGCONT);
        }
        self.frozen = false;
    }

    /// SIGKILL to every process, and the wait for their end.
    pub fn kill(&mut self) {
        let Some(pid) = self.pid() else { return };
        let children = stop_postmaster(pid);
        for &child in &children {
            process::signal(child, Signal::SIGKILL);
        }
        process::signal(pid, Signal::SIGKILL);
        if let Some(mut postmaster) = self.postmaster.take() {
            let _ = postmaster.wait();
        }
        self.frozen = false;
        wait_until(GONE_MAX, || {
            children.iter().all(|&child| !process::is_alive(child))
        });
    }

    /// Ends the server in whatever state it is, in order if it can.
    pub fn halt(&mut self) {
        self.thaw();
        let Some(pid) = self.pid() else { return };
        process::signal(pid, Signal::SIGQUIT);
        if !wait_until(QUIT_MAX, || self.pid().is_none()) {
            self.kill();
        }
    }
}

/// Stops the postmaster itself, so that it can start no more processes, and returns those it has.
/// They are found by their parent: each is in a session of its own, so no group reaches them.
fn stop_postmaster(pid: u32) -> Vec<u32> {
    process::signal(pid, Signal::SIGSTOP);
    wait_until(Duration::from_secs(1), || process::is_stopped(pid));
    process::children(pid)
}

/// Removes the System V segment of a server that had no chance to do it: a few bytes, named in its
/// lock file, that would otherwise stay until the machine restarts. A server that ended in order
/// has left no lock file.
pub fn remove_segment(data_dir: &Path) {
    let lock_path = data_dir.join("postmaster.pid");
    let Ok(lock) = fs::read_to_string(&lock_path) else {
        return;
    };
    let segment = lock
        .lines()
        .nth(6)
        .and_then(|line| line.split(' ').next_back());
    if let Some(id) = segment.filter(|id| id.parse::<u32>().is_ok()) {
        // Best effort: the next start gets along with either outcome.
        let _ = postgres::run(Command::new("ipcrm").args(["-m", id]), "");
        let _ = fs::remove_file(lock_path);
    }
}
