//! Owns: the server's messages: which of them the client sees, and what they change. Never: holds
//! back or alters a row.

mod errors;

use std::ops::Range;

use errors::ERROR_HEAD_BYTES;

use super::Session;
use super::answer::Answer;
use super::repair::Repairable;
use super::server::{CopyIn, Expect, Expected, Fit, ServerState};
use super::statements::Prepared;
use super::tracked::{Tracked, next_statement};
use crate::sql::Pin;
use crate::wire::frame::{HEADER, Header, body, header, run};
use crate::wire::message::{self, Status};
use crate::wire::{SERVER_CONTROL_BYTES_MAX, WireError, encode};

/// A notice that is longer is none by which a server takes leave, in bytes.
const GOODBYE_BYTES_MAX: usize = 4096;

/// How long the number is that a NotificationResponse begins with, of the process that notifies, in bytes.
const PID_BYTES: usize = 4;

/// What is wrong with a server; its connection ends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerFault {
    #[error("server sent something that is no message: {0}")]
    Wire(#[from] WireError),
    #[error("server sent a message of type {0:?} that nothing asked for")]
    Unexpected(char),
    /// The body of a FATAL or PANIC ErrorResponse, or of a warning that says the same.
    #[error("server ended the connection: {}", message::ErrorLine(.0))]
    Ended(Vec<u8>),
    /// The body of an ErrorResponse to the proxy's own SETs.
    #[error("server refused the session's settings: {}", message::ErrorLine(.0))]
    Settings(Vec<u8>),
}

impl Session {
    /// Reads the server's bytes, appending to `answer` what the client must see. Returns how many
    /// of them have been dealt with; the rest is the beginning of a message that is not all there.
    ///
    /// # Errors
    /// Bytes that no PostgreSQL sends, or the end of the connection. What `answer` holds then was
    /// said before it.
    pub fn hear(
        &mut self,
        server: &mut ServerState,
        bytes: &[u8],
        answer: &mut Answer,
    ) -> Result<usize, ServerFault> {
        if self.hear_ordinary(server, bytes) {
            answer.forward(0..bytes.len());
            return Ok(bytes.len());
        }
        let mut at = 0;
        loop {
            let rest = bytes.get(at..).unwrap_or(&[]);
            if server.passing > 0 {
                let n = server.passing.min(rest.len());
                if !server.passing_hidden {
                    answer.forward(at..at + n);
                }
                server.passing -= n;
                at += n;
                if server.passing == 0 {
                    self.answer_in_turn(server, answer);
                }
                if n == rest.len() {
                    return Ok(at);
                }
                continue;
            }
            let Some(Header { tag, len }) = header(rest)? else {
                return Ok(at);
            };
            if tag == b'N' && len <= GOODBYE_BYTES_MAX {
                let Some(frame) = rest.get(..len) else {
                    return Ok(at);
                };
                if is_goodbye(body(frame)) {
                    return Err(ServerFault::Ended(body(frame).to_vec()));
                }
            }
            if tag == b'A' {
                let Some(pid) = rest.get(HEADER..HEADER + PID_BYTES) else {
                    return Ok(at);
                };
                // It tells of what has been committed.
                self.did.read = true;
                if pid == server.pid.to_be_bytes() && len > HEADER + PID_BYTES {
                    // The session's own, which its client knows by another number.
                    let pid = server.client_pid.to_be_bytes();
                    answer.say(|out| {
                        out.extend_from_slice(&rest[..HEADER]);
                        out.extend_from_slice(&pid);
                    });
                    at += HEADER + PID_BYTES;
                    server.passing = len - HEADER - PID_BYTES;
                    server.passing_hidden = false;
                    continue;
                }
            }
            let hidden = is_hidden(server);
            if self.passes(tag, server) {
                let rows = match matches!(tag, b'D' | b'd') && !hidden {
                    // They change nothing: all that are here go past at once.
                    true => run(tag, rest),
                    false => 0,
                };
                if rows > 0 {
                    answer.forward(at..at + rows);
                    at += rows;
                } else {
                    server.passing = len;
                    server.passing_hidden = tag != b'A' && hidden;
                }
                continue;
            }
            if tag == b'E' && len > SERVER_CONTROL_BYTES_MAX {
                let Some(frame) = rest.get(..ERROR_HEAD_BYTES) else {
                    return Ok(at);
                };
                self.hear_long_error(frame, len, at, server, answer)?;
                at += frame.len();
                continue;
            }
            let Some(frame) = rest.get(..len) else {
                if len > SERVER_CONTROL_BYTES_MAX {
                    let max = SERVER_CONTROL_BYTES_MAX;
                    return Err(WireError::TooLong {
                        tag: tag.into(),
                        len,
                        max,
                    }
                    .into());
                }
                return Ok(at);
            };
            self.hear_message(tag, body(frame), at..at + len, server, answer)?;
            at += len;
            self.answer_in_turn(server, answer);
        }
    }

    /// Says the proxy's own answers that are next in turn.
    pub fn answer_in_turn(&mut self, server: &mut ServerState, answer: &mut Answer) {
        while let Some(Expected { what, .. }) = server.queue.front() {
            let words = match what {
                Expect::Parsed { .. } => encode::PARSE_COMPLETE,
                Expect::CloseStatement(_) => encode::CLOSE_COMPLETE,
                _ => return,
            };
            server.queue.pop_front();
            answer.say(|out| out.extend_from_slice(words));
        }
    }

    /// Whether a message of this type goes past without being looked into, however long it is.
    fn passes(&self, tag: u8, server: &mut ServerState) -> bool {
        let front = server.queue.front().map(|expected| &expected.what);
        match tag {
            b'D' => !matches!(front, Some(Expect::Inspection)),
            b'T' if matches!(front, Some(Expect::Shape(_))) => false,
            b'd' | b't' | b'N' | b'A' | b'V' => true,
            b'T' => {
                if matches!(front, Some(Expect::Describe(_))) {
                    server.queue.pop_front();
                }
                true
            }
            _ => false,
        }
    }

    /// What the server is next to say of a portal it has done.
    fn note_portal(&mut self, server: &ServerState) {
        let next = server.queue.front().map(|expected| &expected.what);
        if let Some(Expect::Bind { change, .. } | Expect::ClosePortal(change)) = next {
            self.portals.made(*change);
        }
    }

    fn hear_message(
        &mut self,
        tag: u8,
        body: &[u8],
        at: Range<usize>,
        server: &mut ServerState,
        answer: &mut Answer,
    ) -> Result<(), ServerFault> {
        let hidden = is_hidden(server);
        match tag {
            b'C' => {
                self.hear_complete(body, server)?;
                if server.copy_in.take().is_some() {
                    // It has read all that was within.
                    server.sync_in_copy = false;
                }
            }
            b'Z' => return self.hear_ready(body, at, server, answer),
            b'E' => return self.hear_error(body, at, server, answer),
            b'S' => return self.hear_param(body, hidden, server, answer),
            b'1' => self.hear_parsed(server)?,
            b'2' => {
                self.note_portal(server);
                pop(server, tag, |what| matches!(what, Expect::Bind { .. }))?
            }
            b'3' => {
                self.note_portal(server);
                pop(server, tag, |what| {
                    matches!(
                        what,
                        Expect::Close
                            | Expect::ClosePortal(_)
                            | Expect::ClosePrepared(_)
                            | Expect::Evict { .. }
                    )
                })?
            }
            b'T' | b'n' if owes_shape(server) => {
                if let Some(Expect::Shape(prepared)) = server.queue.pop_front().map(|e| e.what) {
                    self.hear_shape(&prepared, message::row_shape(body)?, server);
                }
                return Ok(());
            }
            b'n' => pop(server, tag, |what| matches!(what, Expect::Describe(_)))?,
            b's' => self.hear_suspended(server)?,
            b'I' => match server.queue.front_mut().map(|e| &mut e.what) {
                Some(Expect::Execute(_)) => drop(server.queue.pop_front()),
                Some(Expect::Fence { reached }) => *reached = true,
                _ => {}
            },
            b'G' => hear_copy_in(server)?,
            b'H' | b'c' => {}
            b'D' => return hear_fact(body, server),
            _ => return Err(ServerFault::Unexpected(tag.into())),
        }
        if !hidden {
            answer.forward(at);
        }
        Ok(())
    }

    fn hear_param(
        &mut self,
        body: &[u8],
        hidden: bool,
        server: &mut ServerState,
        answer: &mut Answer,
    ) -> Result<(), ServerFault> {
        let (name, value) = message::parameter_status(body)?;
        server.params.set(name, value);
        if !hidden {
            answer.say(|out| self.show_param(name, value, server, out));
        }
        Ok(())
    }

    fn hear_parsed(&mut self, server: &mut ServerState) -> Result<(), ServerFault> {
        match server.queue.front().map(|e| &e.what) {
            Some(Expect::Parse { prepared, .. }) => prepared.prove(),
            // The name was free after all. By the client's name it can be nobody else's, and who
            // has loaded a library leaves its server to nobody either.
            Some(Expect::ParseTaken) => self.pins.touched(Pin::Load),
            _ => {}
        }
        pop(server, b'1', |what| {
            matches!(
                what,
                Expect::Parse { .. }
                    | Expect::ParseAgain { .. }
                    | Expect::ParseUnnamed
                    | Expect::ParseTaken
                    | Expect::Prepare { .. }
            )
        })
    }

    fn hear_complete(&mut self, body: &[u8], server: &mut ServerState) -> Result<(), ServerFault> {
        let tag = body.strip_suffix(b"\0").ok_or(WireError::Unterminated)?;
        let Some(front) = server.queue.front_mut() else {
            return Err(ServerFault::Unexpected('C'));
        };
        let conforming = self.has_conforming_strings();
        let (tracked, index, at): (Option<Tracked>, usize, _) = match &mut front.what {
            Expect::Query {
                tracked,
                statement,
                end,
                ..
            } => {
                let index = *statement;
                *statement += 1;
                let at = next_statement(tracked.as_ref(), *end, conforming);
                *end = at.end;
                (tracked.clone(), index, at)
            }
            Expect::Execute(tracked) => {
                let tracked = tracked.take();
                server.queue.pop_front();
                let at = next_statement(tracked.as_ref(), 0, conforming);
                (tracked, 0, at)
            }
            Expect::Settings | Expect::Inspection => (None, 0, 0..0),
            _ => return Err(ServerFault::Unexpected('C')),
        };
        if let Some(tracked) = tracked {
            self.completed(&tracked, index, at, tag, server);
        }
        Ok(())
    }

    /// A server that has just prepared `prepared` returns rows of this shape.
    fn hear_shape(&self, prepared: &Prepared, shape: u64, server: &mut ServerState) {
        if prepared.is_shaped(shape) {
        } else if self.has_tables_of_its_own() || self.means_otherwise(prepared) {
            // To nobody else: by what is temporary, may be undone, or is set by it.
            if let Some(fit) = server.statements.peek_mut(&prepared.id) {
                *fit = Fit::Misshaped(self.id);
            }
        } else {
            prepared.outdate();
        }
    }

    /// A portal has returned as many rows as it was to; there may be more. What it does to the session it has
    /// begun to do.
    fn hear_suspended(&mut self, server: &mut ServerState) -> Result<(), ServerFault> {
        let Some(Expect::Execute(tracked)) = server.queue.front_mut().map(|e| &mut e.what) else {
            return Err(ServerFault::Unexpected('s'));
        };
        let tracked = tracked.take();
        server.queue.pop_front();
        if let Some(tracked) = tracked {
            self.completed(&tracked, 0, 0..0, b"", server);
        }
        Ok(())
    }

    fn hear_ready(
        &mut self,
        body: &[u8],
        at: Range<usize>,
        server: &mut ServerState,
        answer: &mut Answer,
    ) -> Result<(), ServerFault> {
        let status = message::ready(body)?;
        server.copy_in = None;
        server.copy_broken = None;
        server.awaits_sync = false;
        let is_surplus = |e: &Expected| matches!(e.what, Expect::Fence { reached: false });
        if server.queue.front().is_some_and(is_surplus) {
            self.ready(status, server);
            answer.forward(at);
            return Ok(());
        }
        match server.queue.pop_front() {
            Some(expected) if !expected.what.ends() => return Err(ServerFault::Unexpected('Z')),
            Some(Expected {
                what: Expect::Settings,
                ..
            }) => {
                server.status = status;
                let more = |next: &Expected| matches!(next.what, Expect::Settings);
                if !server.queue.front().is_some_and(more) {
                    // The client learns now what the settings have made of its parameters.
                    answer.say(|out| self.show_params(server, out));
                    if !answer.is_empty() {
                        server.repairable = Repairable::No;
                    }
                }
            }
            Some(Expected { hidden: true, .. }) => server.status = status,
            // None: a Sync within a COPY that the server had in fact already ended.
            Some(_) | None => {
                self.ready(status, server);
                if std::mem::take(&mut self.went_back) {
                    answer.say(|out| self.show_defaults(server, out));
                }
                answer.forward(at);
            }
        }
        Ok(())
    }
}

/// Whether a server says by a warning that it goes: after a crash of another one, or stopped at once,
/// it sends no error. The words must be its own, as any function may warn of anything.
fn is_goodbye(notice: &[u8]) -> bool {
    message::error_field(notice, b'R') == Some(b"quickdie")
        && matches!(
            message::error_field(notice, b'C'),
            Some(b"57P01" | b"57P02")
        )
}

/// A server waits for COPY data.
fn hear_copy_in(server: &mut ServerState) -> Result<(), ServerFault> {
    server.copy_in = Some(match server.queue.front().map(|e| &e.what) {
        Some(Expect::Execute(_)) => CopyIn::Extended { done: false },
        Some(Expect::Query { .. }) => CopyIn::Simple { done: false },
        _ => return Err(ServerFault::Unexpected('G')),
    });
    server.awaits_sync = matches!(server.copy_in, Some(CopyIn::Extended { .. }));
    // A Sync that the client has sent already is ignored within the COPY.
    let owed = server.owed();
    server
        .queue
        .retain(|e| e.hidden || !matches!(e.what, Expect::Sync));
    server.sync_in_copy |= server.owed() < owed;
    Ok(())
}

/// A row of the answer to a question of the proxy's own.
fn hear_fact(body: &[u8], server: &mut ServerState) -> Result<(), ServerFault> {
    let row = message::data_row(body)?;
    if let [kind, name, value] = row[..] {
        server
            .facts
            .push([kind, name, value].map(|value| value.map(Box::from)));
    }
    Ok(())
}

/// Whether it tells next what rows a statement returns that it was made to prepare.
fn owes_shape(server: &ServerState) -> bool {
    let front = server.queue.front().map(|expected| &expected.what);
    matches!(front, Some(Expect::Shape(_)))
}

fn is_hidden(server: &ServerState) -> bool {
    server.queue.front().is_some_and(|expected| expected.hidden)
}

/// Takes the answer that `tag` is off the queue.
fn pop(
    server: &mut ServerState,
    tag: u8,
    fits: impl FnOnce(&Expect) -> bool,
) -> Result<(), ServerFault> {
    match server.queue.front() {
        Some(expected) if fits(&expected.what) => {
            server.queue.pop_front();
            Ok(())
        }
        _ => Err(ServerFault::Unexpected(tag.into())),
    }
}

/// Whether a server that nothing is asked of has said only what it may say at any time.
pub fn hear_idle(server: &mut ServerState, mut bytes: &[u8]) -> bool {
    while let Ok(Some(Header { tag, len })) = header(bytes) {
        let Some((frame, rest)) = bytes.split_at_checked(len) else {
            return false;
        };
        match (tag, message::parameter_status(body(frame))) {
            (b'S', Ok((name, value))) => {
                server.params.set(name, value);
            }
            (b'N' | b'A', _) => {}
            _ => return false,
        }
        bytes = rest;
    }
    bytes.is_empty() && server.status == Status::Idle
}
