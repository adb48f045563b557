//! Owns: whose last sequence values (`currval`, `lastval`) a server remembers, and whose sessions ask
//! for them. Never: lets a session see what another one has drawn.
//!
//! Nothing in an INSERT tells that it draws from a sequence, so a session can't keep its server for
//! that alone. But who asks once will ask again: from then on the sessions of that user keep their
//! server after a write. Before that, a server that has meanwhile written for another session is made to
//! forget, and says by itself that there is no value yet. So it is before what may ask, as its
//! [effects](super::effects) are not known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use dashmap::DashSet;

use super::Session;
use super::batch::Batch;
use super::server::{Expect, ServerState};
use crate::sql::Pin;
use crate::wire::encode;
use crate::wire::message::Status;

/// The scopes (a cluster's, database's and user's) whose sessions ask for what they have drawn.
#[derive(Debug, Default)]
pub struct Readers {
    any: AtomicBool,
    scopes: DashSet<Arc<str>>,
}

impl Readers {
    fn contains(&self, scope: &str) -> bool {
        self.any.load(Ordering::Relaxed) && self.scopes.contains(scope)
    }

    fn add(&self, scope: &Arc<str>) {
        if !self.contains(scope) {
            self.scopes.insert(scope.clone());
            self.any.store(true, Ordering::Relaxed);
        }
    }
}

impl Session {
    /// Before a batch that may ask for what the session has drawn: a server that remembers another
    /// session's values is told to forget them.
    pub fn say_sequences(&self, batch: &Batch, server: &mut ServerState, out: &mut BytesMut) {
        if !batch.may_read_sequences() {
            return;
        }
        if batch.reads_sequences {
            self.note_reader();
        }
        let by_another = match server.drawn_by {
            Some(session) => session != self.id,
            // What draws without being known to is rare: it is not looked for at every turn.
            None => batch.reads_sequences,
        };
        if by_another && server.status != Status::Failed {
            encode::query(out, b"DISCARD SEQUENCES");
            server.unnamed = None;
            server.expect_hidden(Expect::Settings);
            server.drawn_by = Some(self.id);
        }
    }

    /// The session asks for what it has drawn, and those like it will.
    pub(super) fn note_reader(&self) {
        self.shared.sequence_readers.add(&self.scope);
    }

    /// The batch writes, and so may draw.
    pub(super) fn note_drawing(&self, batch: &Batch, server: &mut ServerState) {
        if batch.executes && batch.need == crate::sql::Need::Write {
            server.drawn_by = Some(self.id);
        }
    }

    /// A write is done.
    pub(super) fn has_drawn(&mut self) {
        if self.shared.sequence_readers.contains(&self.scope) {
            self.pins.touched(Pin::Sequence);
        }
    }
}
