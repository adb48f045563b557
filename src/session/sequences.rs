//! Owns: whose last sequence values (`currval`, `lastval`) a server remembers, and whose sessions ask
//! for them. Never: lets a session see what another one has drawn.
//!
//! Nothing in an INSERT tells that it draws from a sequence, so a session can't keep its server for
//! that alone. But who asks once will ask again: from then on the sessions of that user keep their
//! server after a write, and have it forget others' values before. Until then, a server that may remember
//! anything but what the session has drawn since it wrote there alone is made to forget when that is asked for, and
//! says by itself that there is no value yet. So it is before what may ask by a function, a
//! default or a trigger, as far as [effects](super::effects) are known: whether that does ask is seen by what
//! the server then says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use dashmap::DashSet;

use super::Session;
use super::batch::{Batch, End};
use super::server::{Expect, ServerState};
use crate::sql::{Need, Pin};
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

/// The last write on a server that may have drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Drawing {
    /// The session's id, and which of its writes it was.
    by: (u64, u32),
    /// There may be values that another session has drawn before, or that are not the session's last.
    is_mixed: bool,
}

impl Session {
    /// Before a batch that may ask for what the session has drawn: a server that remembers another
    /// session's values, or older ones, is told to forget them.
    pub fn say_sequences(&self, batch: &Batch, server: &mut ServerState, out: &mut BytesMut) {
        if !batch.may_read_sequences() && !self.has_to_forget(batch, server) {
            return;
        }
        if batch.reads_sequences {
            self.note_reader();
        }
        let is_out_of_date = match server.drawn_by {
            Some(_) => self.finds_others(server),
            // What draws without being known to is rare: it is not looked for at every turn.
            None => batch.reads_sequences || batch.reads_unseen,
        };
        if is_out_of_date && server.status != Status::Failed {
            encode::query(out, b"DISCARD SEQUENCES");
            server.unnamed = None;
            server.expect_hidden(Expect::Settings);
            server.drawn_by = Some(self.drawn_alone());
        }
    }

    /// Whether the server has to forget what others have drawn before a batch that does not ask for it: one whose
    /// session may ask it later for what this draws, or whose pipeline may, where nothing can be said between.
    pub(super) fn has_to_forget(&self, batch: &Batch, server: &ServerState) -> bool {
        self.finds_others(server)
            && (batch.end() == Some(End::Open) || may_draw(batch) && self.keeps_what_it_draws())
    }

    /// Whether the session will be on the same server when it asks for what it draws now.
    fn keeps_what_it_draws(&self) -> bool {
        !self.pins.is_empty() || self.shared.sequence_readers.contains(&self.scope)
    }

    /// Whether the server may remember anything but what the session has drawn last.
    fn finds_others(&self, server: &ServerState) -> bool {
        let is_other = |drawing| drawing != self.drawn_alone();
        server.drawn_by.is_some_and(is_other)
    }

    /// All that a server remembers, where it is what the session has drawn by its last write.
    fn drawn_alone(&self) -> Drawing {
        Drawing {
            by: (self.id, self.drawings),
            is_mixed: false,
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

    /// The batch may draw. What the server remembers of others, or of before the session wrote elsewhere, it
    /// remembers still.
    pub(super) fn note_drawing(&mut self, batch: &Batch, server: &mut ServerState) {
        if may_draw(batch) {
            let is_mixed = self.finds_others(server);
            self.drawings = self.drawings.wrapping_add(1);
            server.drawn_by = Some(Drawing {
                is_mixed,
                ..self.drawn_alone()
            });
        }
    }

    /// A write is done.
    pub(super) fn has_drawn(&mut self) {
        if self.shared.sequence_readers.contains(&self.scope) {
            self.pins.touched(Pin::Sequence);
        }
    }
}

/// Whether the batch writes, and so may draw.
fn may_draw(batch: &Batch) -> bool {
    batch.executes && batch.need == Need::Write
}
