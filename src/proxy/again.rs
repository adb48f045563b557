//! Owns: what is done about a batch that a server has failed before its client has seen anything of
//! the answer. Never: has a write run twice.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use super::refusal::{Broken, Refusal};
use super::{Client, Ended, Failed};
use crate::session::answers::ServerFault;
use crate::session::batch::End;
use crate::session::consistency::NodeId;
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
    /// It was on this replica.
    pub replica: Option<NodeId>,
    /// What befell it, as metrics call it.
    pub why: &'static str,
}

/// What has come of running a batch before.
#[derive(Default)]
pub(super) struct Again {
    times: u32,
    /// It is the primary's now, and why.
    pub primary: Option<Reason>,
    pub tried: Tried,
    /// The replica that failed it last had nothing against it: its words, should nobody else serve it.
    words: Option<Vec<u8>>,
    /// What a replica has refused.
    refused: Option<Arc<Class>>,
}

impl Again {
    /// Whether it is not run once more, whatever comes of it.
    fn is_last(&self) -> bool {
        self.times >= RETRIES_MAX
    }

    /// It was a read, and its server was lost. Breaks if that was the last time.
    fn after_loss(&mut self, loss: &Loss) -> ControlFlow<()> {
        if self.is_last() {
            return ControlFlow::Break(());
        }
        self.times += 1;
        telemetry::retries(loss.why).increment(1);
        self.tried.extend(loss.replica);
        self.words = None;
        ControlFlow::Continue(())
    }

    /// What to tell the client if no server is found, for this reason.
    fn refusal(&mut self, reason: Refusal) -> Refusal {
        match self.words.take() {
            Some(words) => Refusal::Server(words),
            None => reason,
        }
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
                    if again.after_loss(&loss).is_break() {
                        return self.refuse(loss.refusal, end).await;
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
                    if again.is_last() {
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
                again.words = Some(misplaced.words);
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

/// Why a server was lost, as metrics call it.
pub(super) fn what_befell(broken: &Broken) -> &'static str {
    let Broken::Server(ServerFault::Ended(words)) = broken else {
        return match broken {
            Broken::Server(ServerFault::Settings(_)) => "settings_refused",
            Broken::Server(_) => "nonsense",
            _ => "connection_lost",
        };
    };
    match message::error_field(words, b'C') {
        Some(b"57P01") => "terminated",
        Some(b"57P02") => "crashed",
        Some(b"57P03") => "not_ready",
        Some(b"40001" | b"40P01" | b"57P04") => Cause::Conflict.name(),
        _ => "ended",
    }
}

/// Shows all that may be counted here, from the beginning.
pub(super) fn announce() {
    const LOSSES: [&str; 8] = [
        "connection_lost",
        "crashed",
        "ended",
        "nonsense",
        "not_ready",
        "recovery_conflict",
        "settings_refused",
        "terminated",
    ];
    for why in LOSSES {
        telemetry::retries(why).increment(0);
    }
    for (sqlstate, cause) in REPAIRABLE {
        if cause != Cause::Conflict {
            telemetry::repairs(cause.name(), sqlstate).increment(0);
        }
    }
}
