//! Owns: how a planned batch is said to a given server: under its names, after what it lacks. Never:
//! changes what the client said beyond a statement's name, but for EXPLAIN ROUTE, which no server knows.

mod preparing;
mod speech;

use std::ops::Range;
use std::sync::Arc;

use bytes::BytesMut;
use preparing::{Ensured, ask_shape, close, ensure_none, renamed, replace, say_prepare};
use speech::Speech;

use super::Session;
use super::batch::{Batch, Of, Renames, Step};
use super::own::{Complaint, Own};
use super::pipeline::ClientFault;
use super::server::{CopyIn, Expect, Fit, NOT_KNOWN, ServerState};
use super::statements::{NO_STATEMENT, Prepared};
use crate::wire::frame::{HEADER, Header, header, run};
use crate::wire::message::{self, Status};
use crate::wire::{FRAME_BUFFERED_BYTES_MAX, encode};

impl Session {
    /// Says `batch` to `server`: appends to `out` what must be sent, and to the server's queue
    /// what it will answer. `true` instead when the client's own bytes, `client[..batch.len]`,
    /// can be sent as they are.
    pub fn say(
        &mut self,
        batch: &Batch,
        client: &[u8],
        server: &mut ServerState,
        out: &mut BytesMut,
    ) -> bool {
        if let Some(complaint) = &batch.refused
            && !self.failed
        {
            self.say_refused(batch, complaint, client, server, out);
            return false;
        }
        self.note_suspicion(batch, server);
        self.note_drawing(batch, server);
        let mut speech = Speech {
            client,
            out,
            run: 0..0,
        };
        // What is left of a COPY that has failed is said to nobody.
        self.swallows = self.failed || batch.steps.is_empty();
        if self.failed {
            self.skip(batch);
        } else {
            // What is prepared behind it in the pipeline finds them changed.
            self.localised = self.localised.max(batch.sets);
        }
        for step in &batch.steps {
            if !self.failed || matches!(step, Step::Sync { .. }) {
                self.say_step(step, server, &mut speech);
            }
        }
        speech.finish(batch.len)
    }

    /// Says what fails in place of the batch: the server's transaction, and what it skips of a pipeline,
    /// are then as if the batch itself had failed.
    fn say_refused(
        &mut self,
        batch: &Batch,
        complaint: &Arc<Complaint>,
        client: &[u8],
        server: &mut ServerState,
        out: &mut BytesMut,
    ) {
        self.skip(batch);
        self.swallows = true;
        server.unnamed = None;
        if batch.is_simple() {
            encode::query(out, NO_SQL);
            return server.expect(Expect::RefusedQuery(complaint.clone()));
        }
        encode::parse(out, b"", NO_SQL, b"\0\0");
        server.expect(Expect::Refused(complaint.clone()));
        for step in &batch.steps {
            if let Step::Sync { at } = step {
                server.awaits_sync = false;
                out.extend_from_slice(client.get(at.clone()).unwrap_or(&[]));
                server.expect(Expect::Sync);
            }
        }
    }

    /// Whether what is still to come of the batch's last message must not reach the server, which
    /// would take it for messages: its beginning was not said.
    pub fn swallows_rest(&self) -> bool {
        self.swallows
    }

    /// The batch has not been run: what its planning did is undone.
    pub fn forget_batch(&mut self, batch: &Batch) {
        self.hide_own();
        self.skip(batch);
        self.portals.clear();
    }

    /// What has been planned is not to be said after all: a COPY takes the client's bytes as they are.
    pub fn unplan(&mut self, batch: &mut Batch) {
        self.skip(batch);
        batch.clear();
    }

    fn say_step(&mut self, step: &Step, server: &mut ServerState, speech: &mut Speech<'_>) {
        match step {
            Step::Query { at, tracked } => {
                server.unnamed = None;
                speech.forward(at);
                server.expect(Expect::query(tracked.clone(), Renames::new()));
            }
            Step::Renamed {
                text,
                names,
                tracked,
            } => {
                self.say_renamed(text, names, server, speech);
                server.unnamed = None;
                server.expect(Expect::query(tracked.clone(), names.clone()));
            }
            Step::ParseTaken { at } => {
                speech.forward(at);
                server.expect(Expect::ParseTaken);
            }
            Step::ClosePrepared { at, name } => {
                speech.forward(at);
                server.expect(Expect::ClosePrepared(name.clone()));
            }
            Step::Parse { name, prepared } => self.say_parse(name, prepared, server, speech),
            Step::ParseAgain { name, existing } => {
                self.ensure(server, existing, speech.own());
                say_prepare(existing, speech.own());
                let (existing, name) = (existing.clone(), name.clone());
                server.expect(Expect::ParseAgain { existing, name });
            }
            Step::ParseUnnamed { at, unnamed } => {
                if unnamed.renames.is_empty() && !unnamed.class.explains {
                    speech.forward(at);
                } else {
                    self.say_unnamed(unnamed, server, speech.own());
                }
                server.unnamed = Some((self.id, unnamed.serial));
                server.expect(Expect::ParseUnnamed);
            }
            Step::Bind {
                at,
                names,
                beyond,
                of,
                change,
            } => {
                if self.say_bind(at, *names, *beyond, of, server, speech) {
                    let (of, change) = (of.named().cloned(), *change);
                    server.expect(Expect::Bind { of, change });
                } else {
                    self.portals.undo(*change);
                    server.expect(Expect::Stale);
                }
            }
            Step::Explain { .. } => {
                self.swallows |= !say_answer(step, server, speech);
            }
            Step::BindExplained { change, .. } => {
                if !say_answer(step, server, speech) {
                    self.portals.undo(*change);
                    self.swallows = true;
                }
            }
            Step::Describe { at, of } => {
                let is_said = self.say_describe(at, of, server, speech);
                server.expect(match is_said {
                    true => Expect::Describe(of.named().cloned()),
                    false => Expect::Stale,
                });
            }
            Step::DescribePortal { at } => {
                speech.forward(at);
                server.expect(Expect::Describe(None));
            }
            Step::Execute { at, tracked } => {
                speech.forward(at);
                server.expect(Expect::Execute(tracked.clone()));
            }
            Step::CloseStatement { forgotten } => {
                if let Some((_, prepared)) = forgotten
                    && !prepared.is_shared()
                    && server.statements.contains(&prepared.id)
                {
                    // Nobody can use it any more; it would take the place of one that others do.
                    close(server, prepared, speech.own());
                }
                server.expect(Expect::CloseStatement(forgotten.clone()));
            }
            Step::ClosePortal { at, change } => {
                speech.forward(at);
                server.expect(Expect::ClosePortal(*change));
            }
            Step::Malformed { at } => {
                speech.forward(at);
                server.expect(Expect::Malformed);
            }
            Step::FunctionCall { at } => {
                self.remember_settings(server);
                self.note_call(speech.client.get(at.start + HEADER..at.end));
                speech.forward(at);
                server.expect(Expect::FunctionCall);
            }
            Step::Sync { at } => {
                server.awaits_sync = false;
                speech.forward(at);
                server.expect(Expect::Sync);
            }
            Step::Flush { at } => speech.forward(at),
        }
    }

    /// Says a Query that names statements, after what it names.
    fn say_renamed(
        &self,
        text: &Range<usize>,
        names: &Renames,
        server: &mut ServerState,
        speech: &mut Speech<'_>,
    ) {
        let apart = !server.owes_within_pipeline();
        let mut missing = false;
        // One that has failed says so whatever it has, in words that a Parse would not be answered in.
        let needed = match server.status {
            Status::Failed if apart => &[][..],
            _ => names,
        };
        for rename in needed {
            missing |= self.ensure(server, &rename.prepared, speech.own()) == Ensured::Said;
        }
        // If one can't be prepared, the server is not to skip the Query over that. What it has
        // been told before may make it skip all of them, as it would without the proxy.
        if missing && apart {
            speech.own().extend_from_slice(encode::SYNC);
            server.expect_hidden(Expect::Sync);
        }
        let sql = speech.client.get(text.clone()).unwrap_or(&[]);
        let sql = renamed(sql, names);
        encode::query(speech.own(), &sql);
    }

    /// Says a Parse of a named statement, unless the server has what it would prepare.
    fn say_parse(
        &self,
        name: &[u8],
        prepared: &Arc<Prepared>,
        server: &mut ServerState,
        speech: &mut Speech<'_>,
    ) {
        let name = name.into();
        // Whether it takes a Parse in a failed transaction is for the server to say.
        let has = server.statements.get(&prepared.id) == Some(&Fit::Fits);
        if has && server.status != Status::Failed {
            return server.expect(Expect::Parsed { name });
        }
        self.ensure_named(server, prepared, speech.own());
        replace(server, prepared, Fit::Fits, speech.own());
        server.expect(Expect::Parse {
            prepared: prepared.clone(),
            name,
        });
        if !prepared.has_shape() {
            ask_shape(server, prepared, speech.own());
        }
    }

    /// Says a Describe of a statement; `false` if what fails was said in its place.
    #[inline]
    fn say_describe(
        &self,
        at: &Range<usize>,
        of: &Of,
        server: &mut ServerState,
        speech: &mut Speech<'_>,
    ) -> bool {
        match of {
            Of::Named(prepared) => {
                if !self.ensure_current(server, prepared, speech) {
                    encode::statement_target(speech.own(), b'D', NO_STATEMENT);
                    return false;
                }
                encode::statement_target(speech.own(), b'D', &prepared.server_name);
            }
            Of::Unnamed(unnamed) => {
                self.ensure_unnamed(server, unnamed, speech);
                speech.forward(at);
            }
            Of::Unknown => {
                let name = speech.client.get(at.start + HEADER + 1..at.end);
                ensure_none(server, name.unwrap_or(b"\0"), speech);
                speech.forward_unknown(at, HEADER + 1);
            }
        }
        true
    }

    /// Says a Bind; `false` if what fails was said in its place.
    fn say_bind(
        &mut self,
        at: &Range<usize>,
        names: usize,
        beyond: usize,
        of: &Of,
        server: &mut ServerState,
        speech: &mut Speech<'_>,
    ) -> bool {
        match of {
            Of::Named(prepared) => {
                if !self.ensure_current(server, prepared, speech) {
                    // Names nothing, and has no values: whatever the client bound is not looked at.
                    encode::bind_head(speech.own(), b"", NO_STATEMENT, NO_VALUES.len());
                    speech.own().extend_from_slice(NO_VALUES);
                    self.swallows = true;
                    return false;
                }
                speech.forward_bind(at, names, beyond, &prepared.server_name);
            }
            Of::Unnamed(unnamed) => {
                self.ensure_unnamed(server, unnamed, speech);
                speech.forward(at);
            }
            Of::Unknown => {
                let head = speech.client.get(at.start + HEADER..at.end).unwrap_or(&[]);
                let portal = message::Bind::read(head).map_or(0, |bind| bind.portal.len() + 1);
                ensure_none(server, head.get(portal..).unwrap_or(b"\0"), speech);
                speech.forward_unknown(at, HEADER + portal);
            }
        }
        true
    }

    /// What of `client`'s bytes goes to a server that is in the middle of a COPY FROM STDIN.
    ///
    /// # Errors
    /// Bytes that are no message.
    pub fn copy_in(
        &self,
        client: &[u8],
        server: &mut ServerState,
    ) -> Result<CopyPart, ClientFault> {
        let mut part = CopyPart::default();
        while let Some(copy) = server.copy_in {
            let (CopyIn::Simple { done } | CopyIn::Extended { done }) = copy;
            if done || server.copy_broken.is_some() {
                break;
            }
            part.len += run(b'd', client.get(part.len..).unwrap_or(&[]));
            let rest = client.get(part.len..).unwrap_or(&[]);
            let Some(Header { tag, len }) = header(rest)? else {
                break;
            };
            if !matches!(tag, b'd' | b'c' | b'f' | b'S' | b'H') {
                // If the COPY has failed already, this is none of it, and may be anything. The answer will tell.
                server.copy_broken = Some(tag);
                part.breaks = true;
                break;
            }
            server.sync_in_copy |= tag == b'S';
            if matches!(tag, b'c' | b'f') {
                if rest.len() < len && len <= FRAME_BUFFERED_BYTES_MAX {
                    break;
                }
                server.copy_in = Some(match copy {
                    CopyIn::Simple { .. } => CopyIn::Simple { done: true },
                    CopyIn::Extended { .. } => CopyIn::Extended { done: true },
                });
            }
            if rest.len() < len {
                part.beyond = len - rest.len();
                part.len = client.len();
                break;
            }
            part.len += len;
        }
        Ok(part)
    }

    /// Whether the client may go on with its pipeline while `server` copies in.
    pub fn copy_goes_on(&self, server: &ServerState) -> bool {
        matches!(server.copy_in, None | Some(CopyIn::Extended { done: true }))
    }

    /// Has the next server show these values of the proxy's own settings, where the session has not set
    /// them. They are gone from it before anything else is said to it, unless that shows them too.
    pub fn show_own(&mut self, values: &[(Own, String)], held: Option<&ServerState>) {
        if let Some(server) = held.filter(|_| self.status != Status::Idle) {
            // If the transaction undoes them, that is known.
            self.remember_settings(server);
        }
        let state = self.own.get_or_insert_default();
        let is_unset = |(own, _): &&(Own, String)| !state.local.contains(own);
        let shown = self.settings.with_own(values.iter().filter(is_unset));
        state.shown = Some(shown);
    }

    /// What was to be shown has been.
    pub fn hide_own(&mut self) {
        if let Some(own) = &mut self.own {
            own.shown = None;
        }
    }

    /// Asks `server` to become as the session wants it. `true` when something was asked.
    pub fn say_settings(&self, server: &mut ServerState, out: &mut BytesMut) -> bool {
        if server.status == Status::Failed {
            // It refuses everything but the end of the transaction, which undoes settings anyway.
            return false;
        }
        let shown = self.own.as_ref().and_then(|own| own.shown.as_ref());
        let wanted = shown.unwrap_or(&self.settings);
        let queries = server.settings.difference(wanted);
        if queries.is_empty() {
            return false;
        }
        for sql in &queries {
            encode::query(out, sql);
            server.expect_hidden(Expect::Settings);
        }
        server.unnamed = None;
        server.settings = wanted.clone();
        true
    }

    /// Ends the pipeline on a server that the session leaves in the middle of it.
    pub fn say_sync(&self, server: &mut ServerState, out: &mut BytesMut) {
        server.awaits_sync = false;
        out.extend_from_slice(encode::SYNC);
        server.expect_hidden(Expect::Sync);
    }

    /// Asks `server` for an answer that can't be taken for any other. It has been sent a Sync that a COPY may have
    /// ignored or not; up to this answer all that it says belongs to that COPY.
    pub fn say_fence(&self, server: &mut ServerState, out: &mut BytesMut) {
        encode::query(out, b"");
        server.unnamed = None;
        server.sync_in_copy = false;
        server.expect_hidden(Expect::Fence { reached: false });
    }

    /// An error has occurred in the open pipeline: the server answers nothing before Sync.
    pub fn is_failed(&self) -> bool {
        self.failed
    }
}

/// A part of what a client says during a COPY FROM STDIN.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CopyPart {
    /// How many of its bytes go to the server.
    pub len: usize,
    /// How many after them belong to the same message and are still to come.
    pub beyond: usize,
    /// What follows is no part of a COPY: the server is to be told [`COPY_BROKEN`].
    pub breaks: bool,
}

/// A CopyFail, which a server ignores where its COPY has failed already.
pub const COPY_BROKEN: &[u8] = b"f\0\0\0\x28tidegate: no part of a COPY follows\0";

/// What every server refuses to parse; it may come to be read in the server's log.
pub(super) const NO_SQL: &[u8] = b"tidegate has refused what the client said here";

/// The formats, values and result formats of a Bind that has none.
const NO_VALUES: &[u8] = b"\0\0\0\0\0\0";

/// Says what shows the answer to a question: a Query, or, prepared as the unnamed statement, what a Bind
/// is to be of. `false` if there is no answer, and what fails was said instead.
#[cold]
fn say_answer(step: &Step, server: &mut ServerState, speech: &mut Speech<'_>) -> bool {
    let unanswered = || Arc::new(Complaint::unanswered());
    match step {
        Step::Explain { question } => {
            server.unnamed = None;
            let answer = question.answer.as_deref();
            encode::query(speech.own(), answer.unwrap_or(NO_SQL));
            server.expect(match answer {
                None => Expect::RefusedQuery(unanswered()),
                Some(_) => Expect::query(None, Renames::new()),
            });
        }
        Step::BindExplained {
            at,
            names,
            beyond,
            question,
            change,
        } => {
            server.unnamed = Some(NOT_KNOWN);
            let Some(answer) = &question.answer else {
                encode::parse(speech.own(), b"", NO_SQL, b"\0\0");
                server.expect(Expect::Refused(unanswered()));
                return false;
            };
            // Of now, whenever the question was prepared.
            encode::parse(speech.own(), b"", answer, &question.types);
            server.expect_hidden(Expect::ParseUnnamed);
            speech.forward_bind(at, *names, *beyond, b"");
            server.expect(Expect::Bind {
                of: None,
                change: *change,
            });
        }
        _ => {}
    }
    true
}
