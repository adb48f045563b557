//! Owns: what needs no server, and how it is answered. Never: answers what only a server can know.

use bytes::BytesMut;

use super::Session;
use super::batch::{Batch, Step};
use super::statements::Prepared;
use crate::sql::Verb;
use crate::wire::encode;
use crate::wire::message::Status;

impl Session {
    /// Whether `batch` can be answered without any server, where none is held.
    ///
    /// That includes preparing what a server has accepted before: clients that hold all servers in
    /// open transactions must not wait for one that only wants to prepare the same statements.
    pub fn is_local(&self, batch: &Batch) -> bool {
        let local = |step: &Step| match step {
            Step::CloseStatement { .. } | Step::Sync { .. } | Step::Flush { .. } => true,
            Step::Parse { prepared, .. } => prepared.is_proven() && self.status != Status::Failed,
            _ => false,
        };
        let is_local = batch.beyond == 0 && batch.refused.is_none();
        is_local && batch.steps.iter().all(local) || self.only_forgets(batch)
    }

    /// Whether `batch` is a DEALLOCATE of what the client has prepared by message, and nothing else: a Close in other
    /// words, of names that only the session has.
    ///
    /// A server has to be told where it may have something that nobody else can use. So has that of an open transaction, to
    /// which it is more: a Query makes a snapshot, drops the unnamed portal, and shows that the client is not idle.
    pub fn only_forgets(&self, batch: &Batch) -> bool {
        let (renamed, tracked) = match &batch.steps[..] {
            [Step::Renamed { names, tracked, .. }] => (&names[..], tracked),
            [Step::Query { tracked, .. }] => (&[][..], tracked),
            _ => return false,
        };
        let Some([statement]) = tracked.as_ref().map(|tracked| &*tracked.class.statements) else {
            return false;
        };
        let is_known = match (statement.verb, renamed) {
            (Verb::Deallocate, [name]) => name.prepared.is_shared(),
            (Verb::DeallocateAll, []) => {
                self.pins.are_settled_and_none() && self.statements.all(Prepared::is_shared)
            }
            _ => false,
        };
        is_known && self.status == Status::Idle && batch.hints.is_none() && batch.refused.is_none()
    }

    /// Answers a batch that [is local](Self::is_local), where no server is held.
    pub fn answer_locally(&mut self, batch: &Batch, out: &mut BytesMut) {
        for step in &batch.steps {
            match step {
                Step::CloseStatement { .. } => out.extend_from_slice(encode::CLOSE_COMPLETE),
                Step::Parse { .. } => out.extend_from_slice(encode::PARSE_COMPLETE),
                Step::Sync { .. } => encode::ready(out, self.status),
                Step::Renamed { names, .. } => {
                    for rename in names {
                        self.statements.remove(&rename.name);
                    }
                    encode::command_complete(out, "DEALLOCATE");
                    encode::ready(out, self.status);
                }
                Step::Query { .. } => {
                    self.statements.clear_named();
                    encode::command_complete(out, "DEALLOCATE ALL");
                    encode::ready(out, self.status);
                }
                _ => {}
            }
        }
    }
}
