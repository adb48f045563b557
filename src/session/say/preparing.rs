//! Owns: what a server is told to prepare before it is told to use it, and whether what it has prepared is what the session
//! means. Never: says what the client said.

use std::sync::Arc;

use bytes::BytesMut;

use super::speech::Speech;
use crate::session::Session;
use crate::session::batch::{Batch, Of, Rename, Renames, Step};
use crate::session::server::{Expect, Fit, ServerState};
use crate::session::statements::{Prepared, Unnamed, server_name};
use crate::wire::encode;
use crate::wire::message::Status;

impl Session {
    /// Prepares what `batch` uses and `server` lacks, and asks what it returns there. `true` when
    /// that was said: the answers must be heard before the batch is said, since a statement that
    /// returns something else by now must not run.
    pub fn say_missing(&self, batch: &Batch, server: &mut ServerState, out: &mut BytesMut) -> bool {
        if server.status == Status::Failed || self.failed {
            return false;
        }
        let mut said = false;
        for step in &batch.steps {
            let (Step::Bind { of, .. } | Step::Describe { of, .. }) = step else {
                continue;
            };
            if let Of::Named(prepared) = of
                && prepared.has_shape()
                && !prepared.is_stale()
                && !self.finds(prepared, server)
            {
                // What returned something else to this session may do so no more.
                self.ensure_named(server, prepared, out);
                self.prepare(server, prepared, out);
                ask_shape(server, prepared, out);
                said = true;
            }
        }
        if said {
            out.extend_from_slice(encode::SYNC);
            server.expect_hidden(Expect::Sync);
        }
        said
    }

    /// Prepares `prepared` on the server unless it has it.
    pub(super) fn ensure(
        &self,
        server: &mut ServerState,
        prepared: &Prepared,
        out: &mut BytesMut,
    ) -> Ensured {
        self.ensure_named(server, prepared, out);
        if self.finds(prepared, server) {
            return Ensured::Had;
        }
        if server.statements.peek(&prepared.id) == Some(&Fit::Misshaped(self.id)) {
            return Ensured::Misshaped;
        }
        self.prepare(server, prepared, out);
        Ensured::Said
    }

    /// Prepares `prepared` on the server, in place of one by its name that does not fit.
    fn prepare(&self, server: &mut ServerState, prepared: &Prepared, out: &mut BytesMut) {
        let fit = match self.reads_otherwise(prepared) {
            true => Fit::Misread(self.id),
            false => Fit::Fits,
        };
        replace(server, prepared, fit, out);
        server.expect_hidden(Expect::Prepare { id: prepared.id });
    }

    /// Whether the server has `prepared` as the session may use it; it is used.
    fn finds(&self, prepared: &Prepared, server: &mut ServerState) -> bool {
        let fit = server.statements.get(&prepared.id).copied();
        fit.is_some_and(|fit| self.takes(fit, prepared))
    }

    /// Whether a server's statement of this fit is what the session may use for `prepared`: that of everybody, or its own
    /// for as long as it reads it otherwise.
    pub(in crate::session) fn takes(&self, fit: Fit, prepared: &Prepared) -> bool {
        match fit {
            Fit::Fits => true,
            Fit::Misread(by) => by == self.id && self.reads_otherwise(prepared),
            Fit::Misshaped(_) => false,
        }
    }

    /// Prepares what the text of `prepared` names. That names nothing itself.
    pub(super) fn ensure_named(
        &self,
        server: &mut ServerState,
        prepared: &Prepared,
        out: &mut BytesMut,
    ) {
        for rename in &prepared.renames {
            self.ensure(server, &rename.prepared, out);
        }
    }

    /// Prepares `prepared` on the server unless it has it. `false` if it returns something else by now.
    pub(super) fn ensure_current(
        &self,
        server: &mut ServerState,
        prepared: &Prepared,
        speech: &mut Speech<'_>,
    ) -> bool {
        !prepared.is_stale() && self.ensure(server, prepared, speech.own()) != Ensured::Misshaped
    }

    pub(super) fn ensure_unnamed(
        &self,
        server: &mut ServerState,
        unnamed: &Unnamed,
        speech: &mut Speech<'_>,
    ) {
        if server.unnamed != Some((self.id, unnamed.serial)) {
            self.say_unnamed(unnamed, server, speech.own());
            server.unnamed = Some((self.id, unnamed.serial));
            server.expect_hidden(Expect::ParseUnnamed);
        }
    }

    /// Prepares the unnamed statement, and before it what it names.
    pub(super) fn say_unnamed(
        &self,
        unnamed: &Unnamed,
        server: &mut ServerState,
        out: &mut BytesMut,
    ) {
        if unnamed.renames.is_empty() {
            return encode::parse(out, b"", unnamed.said(), &unnamed.types);
        }
        for rename in &unnamed.renames {
            self.ensure(server, &rename.prepared, out);
        }
        let sql = renamed(unnamed.said(), &unnamed.renames);
        encode::parse(out, b"", &sql, &unnamed.types);
    }
}

pub(super) fn ask_shape(server: &mut ServerState, prepared: &Arc<Prepared>, out: &mut BytesMut) {
    encode::statement_target(out, b'D', &prepared.server_name);
    server.expect_hidden(Expect::Shape(prepared.clone()));
}

/// Whether a server has a statement that is to be used.
#[derive(PartialEq, Eq)]
pub(super) enum Ensured {
    Had,
    Said,
    /// It returned something else to the session than at first.
    Misshaped,
}

/// Says that a statement is to be prepared, in place of one by its name, and makes room for it.
pub(super) fn replace(server: &mut ServerState, prepared: &Prepared, fit: Fit, out: &mut BytesMut) {
    if server.statements.contains(&prepared.id) {
        close(server, prepared, out);
    }
    if let Some((evicted, was)) = server.statements.push(prepared.id, fit) {
        encode::statement_target(out, b'C', &server_name(evicted));
        server.expect_hidden(Expect::Evict {
            id: evicted,
            fit: was,
        });
    }
    say_prepare(prepared, out);
}

/// Closes a statement that the server has.
pub(super) fn close(server: &mut ServerState, prepared: &Prepared, out: &mut BytesMut) {
    let fit = server.statements.pop(&prepared.id);
    encode::statement_target(out, b'C', &prepared.server_name);
    server.expect_hidden(Expect::Evict {
        id: prepared.id,
        fit: fit.unwrap_or(Fit::Fits),
    });
}

pub(super) fn say_prepare(prepared: &Prepared, out: &mut BytesMut) {
    let (name, types) = (&prepared.server_name, &prepared.types);
    match prepared.renames.is_empty() {
        true => encode::parse(out, name, prepared.said(), types),
        false => encode::parse(
            out,
            name,
            &renamed(prepared.said(), &prepared.renames),
            types,
        ),
    }
}

/// Closes the server's unnamed statement if `name`, up to its NUL, is that one's: it is another
/// session's, or one that this session has no more.
pub(super) fn ensure_none(server: &mut ServerState, name: &[u8], speech: &mut Speech<'_>) {
    if name.starts_with(b"\0") && server.unnamed.take().is_some() {
        encode::statement_target(speech.own(), b'C', b"");
        server.expect_hidden(Expect::Close);
    }
}

/// `sql` with these names replaced by the servers'.
pub(super) fn renamed(sql: &[u8], names: &Renames) -> Vec<u8> {
    let mut text = Vec::with_capacity(sql.len() + 16 * names.len());
    let mut done = 0;
    for Rename {
        place, prepared, ..
    } in names
    {
        text.extend_from_slice(sql.get(done..place.start).unwrap_or(&[]));
        // In quotes, since `DEALLOCATE"a"` has no space.
        text.push(b'"');
        text.extend_from_slice(&prepared.server_name);
        text.push(b'"');
        done = place.end;
    }
    text.extend_from_slice(sql.get(done..).unwrap_or(&[]));
    text
}
