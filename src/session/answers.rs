//! Owns: the server's messages: which of them the client sees, and what they change. Never: holds
//! back or alters a row.

use std::ops::Range;

use bytes::BytesMut;
use smallvec::SmallVec;

use super::Session;
use super::batch::Rename;
use super::own::Complaint;
use super::repair::{Misplaced, Repairable};
use super::server::{CopyIn, Expect, Expected, Fit, ServerState};
use super::skip::hide_owed;
use super::statements::{Prepared, SERVER_NAME_PREFIX, server_id};
use super::tracked::{Tracked, next_statement};
use crate::sql::Pin;
use crate::telemetry;
use crate::wire::encode::Severity;
use crate::wire::frame::{HEADER, Header, body, header, run};
use crate::wire::message::{self, Status};
use crate::wire::{SERVER_CONTROL_BYTES_MAX, WireError, encode};

/// What the client is to be sent: stretches of the server's bytes, and words of the proxy's own.
#[derive(Debug, Default)]
pub struct Answer {
    pub runs: SmallVec<[Run; 2]>,
    /// The proxy's own words, which runs refer to.
    pub own: BytesMut,
}

/// How much is heard of an error that is too long to be held, in bytes. What kind of error it is comes
/// first.
const ERROR_HEAD_BYTES: usize = 64 << 10;

/// A notice that is longer is none by which a server takes leave, in bytes.
const GOODBYE_BYTES_MAX: usize = 4096;

/// How long the number is that a NotificationResponse begins with, of the process that notifies, in bytes.
const PID_BYTES: usize = 4;

/// The room for the proxy's own words that an idle session keeps, in bytes.
const OWN_BYTES_KEPT: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// A stretch of the server's bytes.
    Server(Range<usize>),
    /// A stretch of [`Answer::own`].
    Own(Range<usize>),
}

impl Answer {
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub fn clear(&mut self) {
        self.runs.clear();
        self.own.clear();
    }

    /// The session has nothing to do: memory beyond what answers usually need is given up.
    pub fn rest(&mut self) {
        if self.is_empty() && (self.runs.spilled() || self.own.capacity() > OWN_BYTES_KEPT) {
            *self = Answer::default();
        }
    }

    /// How many bytes the client is to be sent.
    fn len(&self) -> usize {
        let len = |run: &Run| match run {
            Run::Server(at) | Run::Own(at) => at.len(),
        };
        self.runs.iter().map(len).sum()
    }

    /// The SQLSTATE of the error that it ends with: the server's, whose body this is, or one in the proxy's
    /// own words.
    fn last_error<'a>(&'a self, servers: &'a [u8]) -> &'a [u8] {
        let told = match self.runs.last() {
            Some(Run::Own(at)) => self.own.get(at.clone()).map_or(&[][..], body),
            _ => servers,
        };
        message::error_field(told, b'C').unwrap_or_default()
    }

    fn forward(&mut self, at: Range<usize>) {
        if let Some(Run::Server(last)) = self.runs.last_mut()
            && last.end == at.start
        {
            last.end = at.end;
        } else if !at.is_empty() {
            self.runs.push(Run::Server(at));
        }
    }

    fn say(&mut self, words: impl FnOnce(&mut BytesMut)) {
        let start = self.own.len();
        words(&mut self.own);
        if self.own.len() > start {
            self.runs.push(Run::Own(start..self.own.len()));
        }
    }
}

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

    /// Hears an error of `len` bytes by the first of them, `frame`. The rest is for the client if these are;
    /// what it is told in other words ends where they do.
    fn hear_long_error(
        &mut self,
        frame: &[u8],
        len: usize,
        at: usize,
        server: &mut ServerState,
        answer: &mut Answer,
    ) -> Result<(), ServerFault> {
        let end = at + frame.len();
        let head = [body(frame), b"\0\0"].concat();
        self.hear_message(b'E', &head, at..end, server, answer)?;
        let is_seen = matches!(answer.runs.last(), Some(Run::Server(last)) if last.end == end);
        server.passing = len - frame.len();
        server.passing_hidden = !is_seen;
        Ok(())
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
            b'E' => {
                let told = answer.len();
                let found = found_there(body, server);
                self.note_missed(body);
                self.hear_error(body, at, server, answer)?;
                if let Some(id) = found {
                    server.statements.push(id, Fit::Fits);
                }
                if let Some(id) = missed_there(body) {
                    server.statements.pop(&id);
                }
                if answer.len() > told {
                    telemetry::count_error(answer.last_error(body));
                }
                return Ok(());
            }
            b'S' => {
                let (name, value) = message::parameter_status(body)?;
                server.params.set(name, value);
                if !hidden {
                    answer.say(|out| self.show_param(name, value, server, out));
                }
                return Ok(());
            }
            b'1' => {
                match server.queue.front().map(|e| &e.what) {
                    Some(Expect::Parse { prepared, .. }) => prepared.prove(),
                    // The name was free after all. By the client's name it can be nobody else's, and who
                    // has loaded a library leaves its server to nobody either.
                    Some(Expect::ParseTaken) => self.pins.touched(Pin::Load),
                    _ => {}
                }
                pop(server, tag, |what| {
                    matches!(
                        what,
                        Expect::Parse { .. }
                            | Expect::ParseAgain { .. }
                            | Expect::ParseUnnamed
                            | Expect::ParseTaken
                            | Expect::Prepare { .. }
                    )
                })?
            }
            b'2' => pop(server, tag, |what| matches!(what, Expect::Bind(_)))?,
            b'3' => pop(server, tag, |what| {
                matches!(
                    what,
                    Expect::Close | Expect::ClosePrepared(_) | Expect::Evict { .. }
                )
            })?,
            b'T' | b'n'
                if matches!(
                    server.queue.front().map(|e| &e.what),
                    Some(Expect::Shape(_))
                ) =>
            {
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
            b'G' => {
                server.copy_in = Some(match server.queue.front().map(|e| &e.what) {
                    Some(Expect::Execute(_)) => CopyIn::Extended { done: false },
                    Some(Expect::Query { .. }) => CopyIn::Simple { done: false },
                    _ => return Err(ServerFault::Unexpected(tag.into())),
                });
                server.awaits_sync = matches!(server.copy_in, Some(CopyIn::Extended { .. }));
                // A Sync that the client has sent already is ignored within the COPY.
                let owed = server.owed();
                server
                    .queue
                    .retain(|e| e.hidden || !matches!(e.what, Expect::Sync));
                server.sync_in_copy |= server.owed() < owed;
            }
            b'H' | b'c' => {}
            b'D' => {
                let row = message::data_row(body)?;
                if let [kind, name, value] = row[..] {
                    server
                        .facts
                        .push([kind, name, value].map(|value| value.map(Box::from)));
                }
                return Ok(());
            }
            _ => return Err(ServerFault::Unexpected(tag.into())),
        }
        if !hidden {
            answer.forward(at);
        }
        Ok(())
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

    fn hear_error(
        &mut self,
        body: &[u8],
        at: Range<usize>,
        server: &mut ServerState,
        answer: &mut Answer,
    ) -> Result<(), ServerFault> {
        if message::is_fatal(body) {
            return Err(ServerFault::Ended(body.to_vec()));
        }
        server.copy_in = None;
        if let Some(misplaced) = Misplaced::of(body, server) {
            answer.clear();
            server.misplaced = Some(Box::new(misplaced));
            hide_owed(server);
            return Ok(());
        }
        self.erred |= !is_hidden(server);
        if !is_hidden(server) || !server.is_sync_hidden() {
            let is_of_it = |_: &mut _| message::error_field(body, b'C') == Some(b"25P02");
            if let Some(foretold) = self.foretold.take_if(is_of_it) {
                answer.say(|out| encode::body(out, b'E', &foretold));
                self.skip_to_sync(server);
                return Ok(());
            }
        }
        match server.queue.front().map(|expected| &expected.what) {
            Some(Expect::Settings) => return Err(ServerFault::Settings(body.to_vec())),
            Some(Expect::Failing) => return Ok(()),
            Some(Expect::Inspection) => {
                server.unanswered = true;
                return Ok(());
            }
            Some(Expect::Query {
                tracked, renamed, ..
            }) => {
                self.outlived(tracked.as_ref());
                self.failed = true;
                pass_error(body, at, renamed, answer);
                return Ok(());
            }
            Some(Expect::FunctionCall) => {
                self.failed = true;
                answer.forward(at);
                return Ok(());
            }
            Some(Expect::RefusedQuery(complaint)) => {
                self.failed = true;
                answer.say(|out| complain(complaint, out));
                return Ok(());
            }
            Some(Expect::Refused(complaint)) => answer.say(|out| complain(complaint, out)),
            Some(Expect::Execute(tracked)) => {
                self.outlived(tracked.as_ref());
                match self.named_in(body) {
                    Some(name) => answer.say(|out| in_clients_words(body, &[name], out)),
                    None => pass_error(body, at, self.unnamed_renames(), answer),
                }
            }
            // What was prepared ahead of the batch has failed. The batch will meet the same, and
            // that is for the client; unless this has ended the transaction too.
            Some(Expect::Prepare { .. } | Expect::Shape(_)) if server.is_sync_hidden() => {
                self.foretold = Some(body.to_vec());
                let failed = self.failed;
                self.skip_to_sync(server);
                self.failed = failed;
                return Ok(());
            }
            Some(Expect::Stale) => answer.say(stale),
            Some(Expect::ParseAgain { existing, name }) => {
                answer.say(|out| in_clients_words(body, &[(existing, name)], out));
            }
            Some(Expect::Bind(Some(prepared)) | Expect::Describe(Some(prepared))) => {
                if message::error_field(body, b'R') == Some(b"RevalidateCachedQuery")
                    && !self.means_otherwise(prepared)
                    && !self.has_tables_of_its_own()
                {
                    prepared.retire();
                }
                let name = self.statements.name_of(prepared).unwrap_or(b"");
                answer.say(|out| in_clients_words(body, &[(prepared, name)], out));
            }
            _ => pass_error(body, at, self.unnamed_renames(), answer),
        }
        self.skip_to_sync(server);
        Ok(())
    }

    /// The statement with a name that an error is about by the server's name, and the client's name for it.
    fn named_in(&self, error: &[u8]) -> Option<(&Prepared, &[u8])> {
        self.statements
            .of_id(id_in(message::error_field(error, b'M')?)?)
    }

    /// What the client's unnamed statement names otherwise than the client.
    fn unnamed_renames(&self) -> &[Rename] {
        let unnamed = self.statements.unnamed();
        unnamed.map_or(&[], |unnamed| &unnamed.renames)
    }

    /// A statement has failed. What it has locked by session-level advisory locks stays locked.
    fn outlived(&mut self, failed: Option<&Tracked>) {
        if failed.is_some_and(Tracked::locks) {
            self.pins.touched(Pin::AdvisoryLock);
        }
        // It may have committed something before.
        if let Some(changes) = failed.and_then(|tracked| tracked.changes.clone()) {
            self.note_own(&changes);
        }
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

/// What PostgreSQL says of a statement that returns something else by now.
fn stale(out: &mut BytesMut) {
    const WORDS: &[u8] = b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0\
        Fplancache.c\0RRevalidateCachedQuery\0\0";
    encode::body(out, b'E', WORDS);
}

/// A complaint in the form of a server's error.
fn complain(complaint: &Complaint, out: &mut BytesMut) {
    let Complaint {
        sqlstate,
        message,
        advice,
    } = complaint;
    encode::error(out, Severity::Error, sqlstate, message, Some(advice));
}

/// The statement that a server has refused to prepare since it has it. Without this it would refuse it
/// again, and to everybody.
fn found_there(error: &[u8], server: &ServerState) -> Option<u64> {
    let is_there = message::error_field(error, b'C') == Some(b"42P05");
    let id = match &server.queue.front()?.what {
        Expect::Parse { prepared, .. } => prepared.id,
        Expect::Prepare { id } => *id,
        _ => return None,
    };
    is_there.then_some(id)
}

/// The statement that a server does not have any more: a function may have dropped it.
fn missed_there(error: &[u8]) -> Option<u64> {
    if message::error_field(error, b'R') != Some(b"FetchPreparedStatement") {
        return None;
    }
    id_in(message::error_field(error, b'M')?)
}

/// The statement that words name by a server's name.
fn id_in(words: &[u8]) -> Option<u64> {
    let at = words
        .windows(SERVER_NAME_PREFIX.len())
        .position(|part| part == SERVER_NAME_PREFIX)?;
    let name = words[at..].split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_');
    server_id(name.into_iter().next()?)
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

/// An error of a text that names these statements.
fn pass_error(body: &[u8], at: Range<usize>, renames: &[Rename], answer: &mut Answer) {
    if renames.is_empty() {
        return answer.forward(at);
    }
    let names: Vec<_> = renames.iter().map(|r| (&*r.prepared, &*r.name)).collect();
    answer.say(|out| in_clients_words(body, &names, out));
}

/// An error with the names that the client gave statements, where the server has its own.
fn in_clients_words(body: &[u8], names: &[(&Prepared, &[u8])], out: &mut BytesMut) {
    let mut words = Vec::with_capacity(body.len());
    for (code, value) in message::error_fields(body) {
        let mut value = value.to_vec();
        for (prepared, name) in names {
            let servers = &*prepared.server_name;
            let at = value
                .windows(servers.len())
                .position(|part| part == servers);
            if let Some(at) = at {
                value.splice(at..at + servers.len(), name.iter().copied());
            }
        }
        words.push(code);
        words.extend_from_slice(&value);
        words.push(0);
    }
    words.push(0);
    encode::body(out, b'E', &words);
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
