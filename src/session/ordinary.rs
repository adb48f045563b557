//! Owns: the batch and the answer that nearly all are, dealt with in one go. Never: hears anything
//! that [`answers`](super::answers) would do more with than pass it on; that is left to it, untouched.

use super::Session;
use super::batch::{Batch, End, Of, Step};
use super::server::{Expect, Expected, ServerState};
use super::tracked::Tracked;
use crate::wire::frame::{HEADER, Header, body, header, run};
use crate::wire::message::{self, Status};

/// How long ReadyForQuery is, in bytes.
const READY_BYTES: usize = HEADER + 1;

impl Session {
    /// Whether the batch is all there, and its answer [can be heard](Self::hear_ordinary) in one go if
    /// it tells of success.
    pub fn is_ordinary(&self, batch: &Batch) -> bool {
        let usual = |step: &Step| match step {
            Step::ParseUnnamed { unnamed, .. } => unnamed.renames.is_empty(),
            Step::Bind { of, .. } | Step::Describe { of, .. } => match of {
                Of::Named(prepared) => !prepared.is_stale(),
                Of::Unnamed(_) => true,
                Of::Unknown => false,
            },
            Step::Execute { tracked, .. } => self.changes_nothing(tracked.as_ref()),
            Step::DescribePortal { .. } | Step::Sync { .. } => true,
            _ => false,
        };
        let usual = match &batch.steps[..] {
            [Step::Query { tracked, .. }] => self.changes_nothing(tracked.as_ref()),
            steps => batch.executes && steps.iter().all(usual),
        };
        usual
            && batch.end == Some(End::Ready)
            && batch.beyond == 0
            && !batch.touches_databases
            && batch.hints.is_none()
            && batch.refused.is_none()
            && !batch.may_read_sequences()
            && !self.failed
            && !self.went_back
    }

    /// Whether the success of a statement changes nothing of the session's beyond the transaction's status:
    /// it is no tracked one, or one that steers a transaction which has changed nothing either.
    #[inline]
    fn changes_nothing(&self, tracked: Option<&Tracked>) -> bool {
        tracked.is_none_or(|tracked| {
            let has_nothing =
                self.before.is_none() && self.reshaped.is_none() && self.roaming.is_none();
            has_nothing && is_control(tracked)
        })
    }

    /// Whether an [ordinary](Self::is_ordinary) batch is all that has to be said to `server`: it is as
    /// the session wants it, it has the statements, and the client knows its parameters.
    pub fn finds_all_on(&self, server: &ServerState, batch: &Batch) -> bool {
        let has = |step: &Step| match step {
            Step::Bind { of, .. } | Step::Describe { of, .. } => match of {
                Of::Named(prepared) => server
                    .statements
                    .peek(&prepared.id)
                    .is_some_and(|fit| self.takes(*fit, prepared)),
                _ => true,
            },
            _ => true,
        };
        server.settings == self.settings
            && self.shown.is(&server.params)
            && server.status != Status::Failed
            && server.is_between_messages()
            && batch.steps.iter().all(has)
    }

    /// Hears an answer that is all there, is the client's to its last byte, and tells of success:
    /// rows and completions of statements with no effects on the session. `false`, with nothing
    /// changed, if it is any other.
    #[inline]
    pub fn hear_ordinary(&mut self, server: &mut ServerState, bytes: &[u8]) -> bool {
        if !ends_with_ready(bytes) || self.went_back || !server.is_between_messages() {
            return false;
        }
        let has_no_effect = |tracked: &Option<Tracked>| self.changes_nothing(tracked.as_ref());
        let Some(status) = ordinary(server, bytes, has_no_effect) else {
            return false;
        };
        server.queue.clear();
        self.ready(status, server);
        true
    }
}

/// Spares the look at what can't be a whole answer. It may be a row's end that only looks like it.
fn ends_with_ready(bytes: &[u8]) -> bool {
    let end = bytes.len().checked_sub(READY_BYTES);
    end.and_then(|at| bytes.get(at..at + HEADER)) == Some(&[b'Z', 0, 0, 0, 5])
}

/// Whether it is one statement that steers a transaction.
fn is_control(tracked: &Tracked) -> bool {
    let [statement] = &*tracked.class.statements else {
        return false;
    };
    statement.verb.is_control()
}

/// The status that the answer ends with, if all that is owed is in it, and no more; all statements that
/// have succeeded being without an effect that the session has to know of.
#[inline]
fn ordinary(
    server: &ServerState,
    bytes: &[u8],
    has_no_effect: impl Fn(&Option<Tracked>) -> bool,
) -> Option<Status> {
    let mut turns = server.queue.iter();
    let mut turn = turns.next()?;
    let mut rest = bytes;
    loop {
        let Expected { what, hidden } = turn;
        let Header { tag, len } = header(rest).ok()??;
        let next = rest.get(len..)?;
        if *hidden {
            return None;
        }
        match (tag, what) {
            (b'D', Expect::Query { .. } | Expect::Execute(_)) => {
                // The one that was looked at is whole.
                rest = rest.get(run(b'D', rest).max(len)..)?;
                continue;
            }
            (b'T', Expect::Query { .. }) => {}
            (b'C', Expect::Query { tracked, .. }) if has_no_effect(tracked) => {}
            (b'1', Expect::ParseUnnamed)
            | (b'2', Expect::Bind { .. })
            | (b'T' | b'n', Expect::Describe(_)) => turn = turns.next()?,
            (b'C', Expect::Execute(tracked)) if has_no_effect(tracked) => turn = turns.next()?,
            (b'Z', Expect::Query { .. } | Expect::Sync) => {
                let is_all = next.is_empty() && turns.next().is_none();
                return message::ready(body(rest)).ok().filter(|_| is_all);
            }
            _ => return None,
        }
        rest = next;
    }
}
