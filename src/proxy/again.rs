//! Owns: what is done about a batch that a server has failed before its client has seen anything of
//! the answer. Never: has a write run twice.

use std::sync::Arc;

use super::Client;
use super::refusal::{Broken, Refusal};
use crate::session::answers::ServerFault;
use crate::session::consistency::NodeId;
use crate::session::repair::{Cause, Misplaced, REPAIRABLE};
use crate::session::route::{Reason, Tried};
use crate::sql::Class;
use crate::telemetry;
use crate::wire::frame::{Header, header};
use crate::wire::message;

/// How often a batch is run again.
pub(super) const RETRIES_MAX: u32 = 3;

/// What has come of running a batch before.
#[derive(Default)]
pub(super) struct Again {
    /// It is the primary's now, and why.
    pub primary: Option<Reason>,
    pub tried: Tried,
    /// The replica that failed it last had nothing against it: its words, should nobody else serve it.
    words: Option<Vec<u8>>,
    /// What a replica has refused.
    refused: Option<Arc<Class>>,
}

impl Again {
    /// It was a read, and its server was lost.
    pub fn after_loss(&mut self, node: Option<NodeId>, why: &'static str) {
        telemetry::retries(why).increment(1);
        self.tried.extend(node);
        self.words = None;
    }

    /// What to tell the client if it is served nowhere, for this reason.
    pub fn refusal(self, reason: Refusal) -> Refusal {
        self.words.map_or(reason, Refusal::Server)
    }
}

impl Client {
    /// The replica `node` has failed the batch for its own sake.
    pub(super) fn repair(&mut self, misplaced: Misplaced, node: NodeId, again: &mut Again) {
        let Misplaced {
            cause, sqlstate, ..
        } = misplaced;
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
                again.primary = Some(Reason::Repaired);
                again.refused = self.session.class_of(&misplaced, &self.batch, &self.inbox);
                self.session.distrust(&mut self.batch, &self.inbox);
            }
        }
    }

    /// The batch has been run. What a replica has refused and the primary has not is no read.
    pub(super) fn learn(&mut self, again: Again) {
        if let Some(class) = again.refused
            && !self.session.has_erred()
            && class.refuse()
        {
            telemetry::metrics().repairs_remembered.increment(1);
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
pub(super) fn loss(broken: &Broken) -> &'static str {
    let Broken::Server(ServerFault::Ended(words)) = broken else {
        return match broken {
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
    const LOSSES: [&str; 7] = [
        "connection_lost",
        "crashed",
        "ended",
        "nonsense",
        "not_ready",
        "recovery_conflict",
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
