//! Owns: whose last sequence values (`currval`, `lastval`) a server remembers, and whose sessions ask
//! for them. Never: lets a session see what another one has drawn on a server that it has not written on since.
//!
//! Nothing in an INSERT tells that it draws from a sequence, so a session can't keep its server for
//! that alone. But who asks once will ask again: from then on the sessions of that user keep their
//! server after a write. Before that, a server that is not the one on which the session wrote last is made to
//! forget, and says by itself that there is no value yet. So it is before what may ask by a function, a
//! default or a trigger, as far as [effects](super::effects) are known: whether that does ask is seen by what
//! the server then says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use dashmap::DashSet;

use super::Session;
use super::batch::Batch;
use super::server::{Expect, ServerState};
use crate::sql::Pin;
use crate::wire::encode;
use crate::wire::message::{self, Status};

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
    /// session's values, or older ones, is told to forget them.
    pub fn say_sequences(&self, batch: &Batch, server: &mut ServerState, out: &mut BytesMut) {
        if !batch.may_read_sequences() {
            return;
        }
        if batch.reads_sequences {
            self.note_reader();
        }
        let is_out_of_date = match server.drawn_by {
            Some(drawing) => drawing != (self.id, self.drawings),
            // What draws without being known to is rare: it is not looked for at every turn.
            None => batch.reads_sequences || batch.reads_unseen,
        };
        if is_out_of_date && server.status != Status::Failed {
            encode::query(out, b"DISCARD SEQUENCES");
            server.unnamed = None;
            server.expect_hidden(Expect::Settings);
            server.drawn_by = Some((self.id, self.drawings));
        }
    }

    /// Hears whether a server says that it knows of no value: something has asked for one, and those like the
    /// session will.
    pub(super) fn note_missed(&self, error: &[u8]) {
        let asked = [b"currval_oid".as_slice(), b"lastval"];
        let is_asked = |routine| asked.contains(&routine);
        if message::error_field(error, b'C') == Some(b"55000")
            && message::error_field(error, b'R').is_some_and(is_asked)
        {
            self.note_reader();
        }
    }

    /// The session asks for what it has drawn, and those like it will.
    fn note_reader(&self) {
        self.shared.sequence_readers.add(&self.scope);
    }

    /// The batch writes, and so may draw.
    pub(super) fn note_drawing(&mut self, batch: &Batch, server: &mut ServerState) {
        if batch.executes && batch.need == crate::sql::Need::Write {
            self.drawings = self.drawings.wrapping_add(1);
            server.drawn_by = Some((self.id, self.drawings));
        }
    }

    /// A write is done.
    pub(super) fn has_drawn(&mut self) {
        if self.shared.sequence_readers.contains(&self.scope) {
            self.pins.touched(Pin::Sequence);
        }
    }
}
