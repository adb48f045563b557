//! A PostgreSQL primary with streaming replicas on this machine, for `tidegate demo`, tests and
//! benches.
//!
//! Owns: the servers it starts and the temporary directory they live in. Never: touches a server,
//! a directory or a process that it did not start itself.
//!
//! Everything here blocks. Asynchronous callers go through `spawn_blocking` for calls that wait.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

mod cluster;
mod gateway;
mod node;
mod overview;
mod postgres;
mod process;
mod server;
mod sessions;
mod stop;
mod terminal;
pub mod walk;

pub use cluster::{LocalCluster, Options};
pub use node::{LocalNode, StopMode};
pub use postgres::Postgres;

/// What can go wrong with servers on this machine. Each text is meant for a person at a terminal.
#[derive(Debug, Error)]
pub enum DemoError {
    #[error(
        "no usable PostgreSQL server found; scripts/setup installs one, or set \
         TIDEGATE_PG_BINDIR to the directory that holds postgres and initdb{}",
        looked.iter().map(|line| format!("\n  {line}")).collect::<String>()
    )]
    NotFound { looked: Vec<String> },

    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },

    #[error("{program} failed ({status}): {stderr}")]
    Program {
        program: String,
        status: String,
        stderr: String,
    },

    #[error("node {node} did not become ready: {why}; the end of its log:\n{log}")]
    NotReady {
        node: usize,
        why: String,
        log: String,
    },

    #[error("node {node} is not running")]
    NotRunning { node: usize },

    #[error("node {node}: {what} took longer than {} s", after.as_secs())]
    Timeout {
        node: usize,
        what: String,
        after: Duration,
    },

    #[error("expected {expected} from node {node}, got {got:?}")]
    Answer {
        node: usize,
        expected: &'static str,
        got: String,
    },

    #[error("no port below the ephemeral range is free on 127.0.0.1")]
    NoPort,

    #[error("{path} is too long for a Unix socket; set TMPDIR to a shorter directory", path = path.display())]
    PathTooLong { path: PathBuf },
}

impl DemoError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> DemoError {
        let what = what.into();
        move |source| DemoError::Io { what, source }
    }
}
