//! Owns: what is done about a batch that a server has failed before its client has seen anything of
//! the answer. Never: has a write run twice.

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use super::exchange::Failed;
use super::refusal::{Broken, Refusal};
use super::{Client, Ended};
use crate::cluster::fate::Fate;
use crate::cluster::pool::Pool;
use crate::session::answers::ServerFault;
use crate::session::batch::End;
use crate::session::consistency::{Incarnation, NodeId};
use crate::session::repair::{Cause, Misplaced, REPAIRABLE, Repairable};
use crate::session::route::{Reason, Tried};
use crate::sql::Class;
use crate::telemetry;
use crate::wire::frame::{Header, header};
use crate::wire::message;

/// How often a batch is run again.
const RETRIES_MAX: u32 = 3;

/// A server was lost with a read of which nothing has been seen.
pub(super) struct Loss {
    /// For a client whose read is not run again.
    pub refusal: Refusal,
    /// The pool and the life that its server was of.
    pub pool: Arc<Pool>,
    pub life: Incarnation,
    /// It was on this replica.
    pub replica: Option<NodeId>,
    pub by: By,
}

/// What a server was lost by that says nothing against running its read again, as far as it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// Another process of its node has crashed: whoever crashes says nothing.
    Crash,
    /// Nobody waited for it any longer, or the network has lost it.
    NodeLost,
    /// It ended without a word that explains it, or said what nobody understands. The read itself may have crashed it.
    Silence,
    Nonsense,
    NotReady,
    Conflict,
    /// It refused the session's settings.
    Settings,
    /// Its node is told to stop, or somebody wanted it to end.
    Termination,
}

impl By {
    const ALL: [By; 8] = [
        By::Crash,
        By::NodeLost,
        By::Silence,
        By::Nonsense,
        By::NotReady,
        By::Conflict,
        By::Settings,
        By::Termination,
    ];

    /// The name used in metrics and docs.
    fn name(self) -> &'static str {
        match self {
            By::Crash => "crashed",
            By::Silence | By::NodeLost => "connection_lost",
            By::Nonsense => "nonsense",
            By::NotReady => "not_ready",
            By::Conflict => Cause::Conflict.name(),
            By::Settings => "settings_refused",
            By::Termination => "terminated",
        }
    }

    /// The read itself may have done it.
    fn is_silent(self) -> bool {
        matches!(self, By::Silence | By::Nonsense)
    }

    /// `None` if it is the client's to know: a time limit, say.
    pub(super) fn of(broken: &Broken) -> Option<By> {
        Some(match broken {
            Broken::Server(ServerFault::Settings(_)) => By::Settings,
            Broken::Server(ServerFault::Ended(words)) => match message::error_field(words, b'C') {
                Some(b"57P01") => By::Termination,
                Some(b"57P02") => By::Crash,
                Some(b"57P03") => By::NotReady,
                Some(b"40001" | b"40P01" | b"57P04") => By::Conflict,
                _ => return None,
            },
            Broken::Server(_) => By::Nonsense,
            Broken::NodeLost(_) => By::NodeLost,
            // The system's word, or the proxy's: nothing came through for long.
            Broken::ServerIo(error) if error.kind() == ErrorKind::TimedOut => By::NodeLost,
            _ => By::Silence,
        })
    }
}

/// What has come of running a batch before.
#[derive(Default)]
pub(super) struct Again {
    times: u32,
    /// It is the primary's now, and why.
    pub primary: Option<Reason>,
    pub tried: Tried,
    /// It is not run on the primary: it may have crashed a replica, or has filled its disk.
    pub only_on_replicas: bool,
    /// It has ended a server without a word.
    has_silenced: bool,
    /// A replica's machine has failed it. What the next one fails at as well is the read's own.
    has_met_fault: bool,
    /// What befell it last, should nobody else serve it.
    last: Option<Refusal>,
    /// What a replica has refused.
    refused: Option<Arc<Class>>,
}

impl Again {
    /// Whether it is not run once more, whatever comes of it.
    fn is_last(&self) -> bool {
        self.times >= RETRIES_MAX
    }

    /// It was a read, and its server was lost with this fate of its node.
    ///
    /// # Errors
    /// It is not run again: what to tell its client.
    fn after_loss(&mut self, loss: Loss, fate: Fate) -> Result<(), Refusal> {
        if self.is_last() {
            return Err(loss.refusal);
        }
        let is_silent = loss.by.is_silent();
        if is_silent || loss.by == By::NodeLost {
            // Others of that age may be as bad.
            loss.pool.vacate();
        }
        // Nothing that a read does has a node vanish.
        let may_have_crashed = is_silent && fate != Fate::Gone;
        let is_over = match fate {
            // Somebody wanted it to end.
            Fate::Lives => !is_silent,
            // What may have crashed the primary is not run there again; nor anywhere else.
            Fate::Unwell => is_silent && loss.replica.is_none(),
            Fate::Gone => false,
        };
        // What may have crashed a server has one more.
        if is_over || may_have_crashed && std::mem::replace(&mut self.has_silenced, true) {
            return Err(loss.refusal);
        }
        // Where only the connection was lost, the node will do.
        self.tried
            .extend(loss.replica.filter(|_| fate != Fate::Lives));
        if is_silent {
            // Where the primary lives, nothing has crashed.
            self.only_on_replicas = may_have_crashed && loss.replica.is_some();
        }
        self.times += 1;
        telemetry::retries(loss.by.name()).increment(1);
        self.last = self.only_on_replicas.then_some(loss.refusal);
        Ok(())
    }

    /// What to tell the client if no server is found, for this reason.
    fn refusal(&mut self, reason: Refusal) -> Refusal {
        self.last.take().unwrap_or(reason)
    }
}

impl Client {
    /// Goes on with a batch that has come to `outcome`: until it is answered, or there is no hope.
    /// `started` is when it was planned.
    pub(super) async fn serve_again(
        &mut self,
        mut outcome: Result<ControlFlow<(), End>, Failed>,
        mut end: End,
        started: Instant,
    ) -> Result<(), Ended> {
        let mut again = Again::default();
        loop {
            match outcome {
                Ok(ControlFlow::Break(())) => {
                    self.learn(again);
                    return Ok(());
                }
                // The rest of the pipeline goes on elsewhere.
                Ok(ControlFlow::Continue(next)) => (end, again) = (next, Again::default()),
                Err(Failed::Retry(loss)) => {
                    // Whatever came next, a RESET too, would fail likewise: its client is to connect again.
                    let is_on_primary = loss.replica.is_none();
                    let is_stuck =
                        loss.by == By::Settings && is_on_primary && loss.refusal.is_for_good();
                    let fate = match loss.by.is_silent() || loss.by == By::Termination {
                        true => Box::pin(self.fate_of(&loss.pool, loss.life, end)).await,
                        false => Ok(Fate::Unwell),
                    };
                    match fate.map(|fate| again.after_loss(*loss, fate)) {
                        Ok(Ok(())) => {}
                        Ok(Err(refusal)) if is_stuck => return Err(Ended::Refused(refusal)),
                        Ok(Err(refusal)) => return self.refuse(refusal, end).await,
                        // Nobody wants it any more.
                        Err(refusal) => {
                            outcome = Err(self.not_found(refusal));
                            continue;
                        }
                    }
                }
                Err(Failed::Misplaced(misplaced, node)) => {
                    self.repair(*misplaced, node, &mut again);
                }
                Err(Failed::Ended(ended)) => return Err(ended),
                Err(Failed::Refused(refusal)) => return self.refuse(refusal, end).await,
            }
            outcome = match self.acquire(end, Some(&again)).await {
                Ok(mut placed) => {
                    if again.is_last() || again.only_on_replicas || again.has_met_fault {
                        placed.repairable = Repairable::No;
                    }
                    let since = (started, Instant::now());
                    self.exchange(placed, end, since).await
                }
                Err(refusal) => Err(self.not_found(again.refusal(refusal))),
            };
        }
    }

    /// The replica `node` has failed the batch for its own sake.
    fn repair(&mut self, misplaced: Misplaced, node: NodeId, again: &mut Again) {
        let Misplaced {
            cause, sqlstate, ..
        } = misplaced;
        again.times += 1;
        tracing::debug!(
            sqlstate,
            cause = cause.name(),
            "read is run again elsewhere"
        );
        match cause {
            Cause::Conflict => {
                telemetry::retries(cause.name()).increment(1);
                again.tried.extend(Some(node));
                again.last = Some(Refusal::Server(misplaced.words));
            }
            Cause::Fault => {
                telemetry::repairs(cause.name(), sqlstate).increment(1);
                again.tried.extend(Some(node));
                again.last = Some(Refusal::Server(misplaced.words));
                again.has_met_fault = true;
                // What fills a disk or memory would fill those of the primary as well.
                again.only_on_replicas |= matches!(sqlstate, "53100" | "53200");
            }
            Cause::Schema => {
                telemetry::repairs(cause.name(), sqlstate).increment(1);
                again.primary = Some(Reason::Repaired);
            }
            Cause::Standby => {
                telemetry::repairs(cause.name(), sqlstate).increment(1);
                // Something may have been changed behind the proxy's back.
                self.catalog.look_again();
                again.primary = Some(Reason::Repaired);
                again.refused = self.session.class_of(&misplaced, &self.batch, &self.inbox);
                self.session.distrust(&mut self.batch, &self.inbox);
            }
        }
    }

    /// The batch has been run. What a replica has refused and the primary has not is no read.
    fn learn(&mut self, again: Again) {
        if let Some(class) = again.refused
            && !self.session.has_erred()
            && class.refuse()
        {
            telemetry::metrics().repairs_remembered.increment(1);
            let Class {
                functions,
                relations,
                ..
            } = &*class;
            tracing::info!(
                ?functions,
                ?relations,
                "what a replica has refused is a write from now on"
            );
        }
    }
}

/// Whether a client will not miss what it has not been sent yet, if it gets another answer instead.
/// What its parameters are now, and who has notified it, it is told but once.
pub(super) fn may_be_unsaid(mut unsent: &[u8]) -> bool {
    while let Ok(Some(Header { tag, len })) = header(unsent) {
        if matches!(tag, b'S' | b'A') {
            return false;
        }
        unsent = unsent.get(len..).unwrap_or(&[]);
    }
    true
}

/// Shows all that may be counted here, from the beginning.
pub(super) fn announce() {
    for by in By::ALL {
        telemetry::retries(by.name()).increment(0);
    }
    for (sqlstate, cause) in REPAIRABLE {
        if cause != Cause::Conflict {
            telemetry::repairs(cause.name(), sqlstate).increment(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_decides_who_hears_it() {
        for (code, by) in [
            ("57P01", Some(By::Termination)),
            ("57P02", Some(By::Crash)),
            ("57P03", Some(By::NotReady)),
            ("40001", Some(By::Conflict)),
            // Limits that the client has, which another node would start anew.
            ("25P03", None),
            ("25P04", None),
            ("57P05", None),
            ("XX000", None),
        ] {
            let words = format!("SFATAL\0VFATAL\0C{code}\0Mno\0\0").into_bytes();
            let broken = Broken::Server(ServerFault::Ended(words));
            assert_eq!(By::of(&broken), by, "{code}");
        }
        let closed = std::io::ErrorKind::UnexpectedEof.into();
        assert_eq!(By::of(&Broken::ServerIo(closed)), Some(By::Silence));
        let lost = std::io::ErrorKind::TimedOut.into();
        assert_eq!(By::of(&Broken::ServerIo(lost)), Some(By::NodeLost));
    }
}
