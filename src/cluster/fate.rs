//! Owns: what has become of a node one of whose servers was lost in the middle of something. Never: takes the word of a
//! connection that was there before: what ends them all may not have reached that one yet.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::sleep;

use super::connect::ConnectError;
use super::pool::Pool;
use crate::session::consistency::Incarnation;
use crate::wire::message::error_field;

/// The longest that a node is asked. Who waits for it has waited for a server to fail already, and may wait for somebody
/// else's question to end first.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between the first two questions to one that does not say what it does; twice as long each time.
const PAUSE: Duration = Duration::from_millis(10);

/// What there is of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It takes connections, in the same life: the server was lost alone.
    Lives,
    /// It is there and takes nobody in now, for all that is known as it recovers from the crash of a process.
    Unwell,
    /// Nobody is there, or only since; or it stops as it has been told to.
    Gone,
}

/// Asks a node what has become of it once for all who have lost a server there: a crash takes hundreds at a time, and
/// who recovers from one is not to be asked as often.
#[derive(Default)]
pub struct Inquiry {
    last: Mutex<Option<Finding>>,
}

struct Finding {
    began: Instant,
    life: Incarnation,
    fate: Fate,
}

impl Inquiry {
    /// What is found by `asking`, or by whoever has asked since this was called: who asked before may have been
    /// answered before the server was lost.
    async fn share(&self, life: Incarnation, asking: impl Future<Output = Fate>) -> Fate {
        let lost = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(found) = &*last
            && found.life == life
            && found.began >= lost
        {
            return found.fate;
        }
        let began = Instant::now();
        let fate = asking.await;
        *last = Some(Finding { began, life, fate });
        fate
    }
}

/// What has become of the node of a server that was lost in this life, by a new connection of its pool. A postmaster
/// that is told to stop, or sees a process crash, refuses these before it ends any process for that.
pub async fn of_node(pool: &Pool, life: Incarnation) -> Fate {
    pool.node().inquiry.share(life, ask(pool, life)).await
}

async fn ask(pool: &Pool, life: Incarnation) -> Fate {
    let until = Instant::now() + PATIENCE;
    let (mut pause, mut is_cut) = (PAUSE, false);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match pool.connect(left).await {
            // Who was cut off meanwhile may have met the end of a crash, which does not change the life.
            Ok((_, now)) if now == life && is_cut => return Fate::Unwell,
            Ok((_, now)) if now == life => return Fate::Lives,
            Ok(_) => return Fate::Gone,
            Err(error) => match told_by(&error) {
                Some(fate) => return fate,
                None => is_cut |= !matches!(error, ConnectError::Timeout(_)),
            },
        }
        if until <= Instant::now() + pause {
            // Nobody has answered, nor the probe.
            return match is_cut || pool.node().is_up() {
                true => Fate::Unwell,
                false => Fate::Gone,
            };
        }
        sleep(pause).await;
        pause *= 2;
    }
}

/// What a postmaster says that somebody has told to stop, or that has only been started since. One that recovers from the
/// crash of a process has other words: <https://github.com/postgres/postgres/blob/REL_18_STABLE/src/backend/tcop/backend_startup.c>
/// (`canAcceptConnections`). In other languages it may be either.
const IN_ORDER: [&[u8]; 4] = [
    b"the database system is shutting down",
    b"the database system is starting up",
    b"the database system is not yet accepting connections",
    b"the database system is not accepting connections",
];

/// What a failed attempt to connect tells, if it does.
fn told_by(error: &ConnectError) -> Option<Fate> {
    match error {
        ConnectError::Refused(words) if error.is_node_away() => {
            let message = error_field(words, b'M').unwrap_or_default();
            Some(match IN_ORDER.contains(&message) {
                true => Fate::Gone,
                false => Fate::Unwell,
            })
        }
        // Accepted and lost again: whoever did so ends, or starts anew.
        ConnectError::Closed | ConnectError::Timeout(_) => None,
        ConnectError::Io(error) => match error.kind() {
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof => None,
            ErrorKind::InvalidData => Some(Fate::Lives),
            _ => Some(Fate::Gone),
        },
        // It answers as ever, if not to this one.
        _ => Some(Fate::Lives),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Semaphore;
    use tokio::task::{JoinSet, yield_now};

    use super::*;

    #[tokio::test]
    async fn who_has_lost_a_server_at_the_same_time_asks_once() {
        let (inquiry, life) = (Arc::new(Inquiry::default()), Incarnation(1));
        let (times, answers) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let mut all = JoinSet::new();
        for _ in 0..100 {
            let (inquiry, times, answers) = (inquiry.clone(), times.clone(), answers.clone());
            let asking = async move {
                times.fetch_add(1, Ordering::Relaxed);
                answers.acquire().await.expect("open").forget();
                Fate::Unwell
            };
            all.spawn(async move { inquiry.share(life, asking).await });
        }
        // The first question is answered when all have lost theirs. It may have been asked too early for the others:
        // one more is for all of them.
        yield_now().await;
        answers.add_permits(2);
        assert_eq!(all.join_all().await, [Fate::Unwell; 100]);
        assert_eq!(times.load(Ordering::Relaxed), 2);
        // What was found before does not count for who loses one now.
        let lives = async { Fate::Lives };
        assert_eq!(inquiry.share(life, lives).await, Fate::Lives);
    }

    #[test]
    fn a_refusal_tells_what_a_node_does() {
        let said = |code: &str, message: &str| {
            let words = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0\0");
            ConnectError::Refused(words.into_bytes())
        };
        let refused = |code: &str| said(code, "no");
        let away = |how: &str| said("57P03", &format!("the database system is {how}"));
        let io = |kind| ConnectError::Io(io::Error::from(kind));
        for (error, fate) in [
            (refused("57P03"), Some(Fate::Unwell)),
            (refused("57P02"), Some(Fate::Unwell)),
            (away("in recovery mode"), Some(Fate::Unwell)),
            (away("shutting down"), Some(Fate::Gone)),
            (away("starting up"), Some(Fate::Gone)),
            (away("not yet accepting connections"), Some(Fate::Gone)),
            (refused("53300"), Some(Fate::Lives)),
            (refused("28P01"), Some(Fate::Lives)),
            (ConnectError::NoTls, Some(Fate::Lives)),
            (io(ErrorKind::ConnectionRefused), Some(Fate::Gone)),
            (io(ErrorKind::HostUnreachable), Some(Fate::Gone)),
            // A Unix socket that is not there.
            (io(ErrorKind::NotFound), Some(Fate::Gone)),
            (io(ErrorKind::ConnectionReset), None),
            (ConnectError::Closed, None),
            (ConnectError::Timeout(PATIENCE), None),
        ] {
            assert_eq!(told_by(&error), fate, "{error}");
        }
    }
}
