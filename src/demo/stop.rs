//! Ctrl-C and its like, for what has to clean up behind itself.
//!
//! Owns: the signals that end the demo. Never: cuts off what is being dropped.

use std::io;

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM, from the first moment on: what was started has to be stopped.
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    pub fn install() -> io::Result<Stop> {
        Ok(Stop {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// What `work` comes to, unless a signal is first.
    pub async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Interrupted> {
        tokio::select! {
            done = work => Ok(done),
            _ = self.interrupt.recv() => Err(Interrupted),
            _ = self.terminate.recv() => Err(Interrupted),
        }
    }
}

/// A signal came first.
#[derive(Clone, Copy, Debug, Error)]
#[error("interrupted")]
pub struct Interrupted;
