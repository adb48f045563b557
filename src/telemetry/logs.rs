//! How logs are written: to standard error, by a thread of its own, but for a file, which makes nobody wait.
//!
//! Owns: the lines that wait for that. Never: makes those wait who log: where nobody reads standard error, a pipe that
//! is full say, lines are lost and counted.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::EnvFilter;

/// How much may wait, in bytes.
const WAITING_MAX: usize = 1 << 20;

/// A buffer larger than this is not kept.
const KEPT_MAX: usize = 64 << 10;

/// How long the end of the process may wait for its last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(3);

static QUEUE: Queue = Queue::new();

/// While it lives there are logs; when it is dropped, all that has been logged is written.
#[must_use]
pub struct Logs(());

impl Logs {
    /// Sets up logging to standard error; `level` is a filter as of `RUST_LOG`, which wins over it.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn install(json: bool, level: &str) -> io::Result<Logs> {
        let is_file = is_file(&io::stderr())?;
        let writer = move || match is_file {
            true => Lines::AtOnce,
            false => Lines::Queued,
        };
        let (filter, warning) = filter(std::env::var(EnvFilter::DEFAULT_ENV).ok(), level);
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(writer);
        // A second call keeps the first set-up.
        let _ = if json {
            logs.json()
                .flatten_event(true)
                .with_target(false)
                .try_init()
        } else {
            let ansi = io::IsTerminal::is_terminal(&io::stderr());
            logs.with_target(false).with_ansi(ansi).try_init()
        };
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(|| QUEUE.write_to(io::stderr()))?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        Ok(Logs(()))
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        QUEUE.wait_until_written(LAST_LINES);
    }
}

/// How many lines have been lost.
pub fn lost() -> u64 {
    QUEUE.lock().lost
}

/// Where lines wait to be written.
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

struct Waiting {
    lines: Vec<u8>,
    lost: u64,
    /// Some are being written.
    writing: bool,
}

impl Queue {
    const fn new() -> Queue {
        Queue {
            waiting: Mutex::new(Waiting {
                lines: Vec::new(),
                lost: 0,
                writing: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Whoever panicked did not do so between two changes.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.lines.len() + line.len() > WAITING_MAX {
            waiting.lost += 1;
            return;
        }
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        self.changed.notify_all();
    }

    /// Writes what comes, for as long as the process lives.
    fn write_to(&self, mut out: impl Write) {
        let (mut lines, mut told) = (Vec::new(), 0);
        loop {
            let lost = self.take(&mut lines);
            // Nobody is left to be told of a failure.
            let _ = write_whole(&mut out, &lines).and_then(|()| out.flush());
            lines.clear();
            lines.shrink_to(KEPT_MAX);
            if lost > told {
                let lines = lost - told;
                tracing::warn!(
                    lines,
                    "lines of the log are lost: they were not read in time"
                );
                told = lost;
            }
        }
    }

    /// Waits for lines; how many have been lost so far. What was taken before is written by now.
    fn take(&self, lines: &mut Vec<u8>) -> u64 {
        let mut waiting = self.lock();
        waiting.writing = false;
        self.changed.notify_all();
        let mut waiting = self
            .changed
            .wait_while(waiting, |waiting| waiting.lines.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        waiting.writing = true;
        std::mem::swap(&mut waiting.lines, lines);
        waiting.lost
    }

    fn wait_until_written(&self, limit: Duration) {
        let is_owed = |waiting: &mut Waiting| waiting.writing || !waiting.lines.is_empty();
        let waiting = self.lock();
        // What is not written by then nobody reads.
        let _ = self.changed.wait_timeout_while(waiting, limit, is_owed);
    }
}

/// Writes all of it, also where the other end has been made not to block: whoever shares it may do that.
fn write_whole(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(10);
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or(&[]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Takes whole lines.
enum Lines {
    AtOnce,
    Queued,
}

impl Write for Lines {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        match self {
            Lines::AtOnce => io::stderr().write_all(lines)?,
            Lines::Queued => QUEUE.push(lines),
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_file(out: &impl AsFd) -> io::Result<bool> {
    let out = File::from(out.as_fd().try_clone_to_owned()?);
    Ok(out.metadata()?.is_file())
}

/// What is logged, and what to warn of. An environment that says nothing, or nothing that can be parsed, leaves
/// it to `level`.
fn filter(environment: Option<String>, level: &str) -> (EnvFilter, Option<String>) {
    let by_level = || EnvFilter::new(level);
    let Some(wanted) = environment.filter(|wanted| !wanted.trim().is_empty()) else {
        return (by_level(), None);
    };
    match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => {
            let name = EnvFilter::DEFAULT_ENV;
            let warning = format!(
                "{name}={wanted:?} cannot be parsed ({error}), so log.level is in force; write it such as tidegate=debug"
            );
            (by_level(), Some(warning))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes what is written, piece by piece, when somebody asks for it.
    struct Slow(mpsc::SyncSender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let sent = self.0.send(bytes.to_vec());
            sent.map_or(Err(io::ErrorKind::BrokenPipe.into()), |()| Ok(bytes.len()))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_does_not_block_gets_all_the_same() {
        /// Takes one byte at every other time.
        struct Reluctant(Vec<u8>, bool);

        impl Write for Reluctant {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 = !self.1;
                if self.1 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                self.0.extend_from_slice(&bytes[..1]);
                Ok(1)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let mut out = Reluctant(Vec::new(), false);
        write_whole(&mut out, b"line\n").expect("written");
        assert_eq!(out.0, b"line\n");
    }

    #[test]
    fn who_logs_does_not_wait_and_what_is_lost_is_counted() {
        static QUEUE: Queue = Queue::new();
        let (sender, written) = mpsc::sync_channel(0);
        std::thread::spawn(|| QUEUE.write_to(Slow(sender)));
        QUEUE.push(b"first\n");
        while !QUEUE.lock().writing {
            std::thread::yield_now();
        }
        let line = [b'x'; 1 << 10];
        for _ in 0..2 * WAITING_MAX / line.len() {
            QUEUE.push(&line);
        }
        let lost = QUEUE.lock().lost as usize;
        assert_eq!(
            lost,
            WAITING_MAX / line.len(),
            "it has room for half of them"
        );
        QUEUE.wait_until_written(Duration::from_millis(1));
        let read = std::thread::spawn(move || {
            let mut all = Vec::new();
            let mut pieces = written.iter();
            while !all.ends_with(b"last\n") {
                all.extend(pieces.next().expect("more"));
            }
            all.len()
        });
        // There is room again once it is read.
        while !QUEUE.lock().lines.is_empty() {
            std::thread::yield_now();
        }
        QUEUE.push(b"last\n");
        QUEUE.wait_until_written(Duration::from_secs(60));
        let lines = 2 * WAITING_MAX / line.len() - lost;
        assert_eq!(read.join().unwrap(), 11 + lines * line.len());
        assert_eq!(QUEUE.lock().lost as usize, lost);
    }

    #[test]
    fn the_environment_wins_if_it_says_anything() {
        for (environment, logged, is_warned_of) in [
            (None, "info", false),
            (Some(""), "info", false),
            (Some(" "), "info", false),
            (Some("tidegate=loud"), "info", true),
            (Some("debug"), "debug", false),
        ] {
            let (filter, warning) = filter(environment.map(str::to_owned), "info");
            assert_eq!(filter.to_string(), logged, "{environment:?}");
            assert_eq!(warning.is_some(), is_warned_of, "{warning:?}");
        }
    }
}
