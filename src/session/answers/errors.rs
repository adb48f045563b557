//! Owns: what a server's errors change, and in whose words the client hears them. Never: says where a failed batch runs next.

use std::ops::Range;

use bytes::BytesMut;

use super::{ServerFault, is_hidden};
use crate::session::Session;
use crate::session::answer::{Answer, Run};
use crate::session::batch::Rename;
use crate::session::own::Complaint;
use crate::session::repair::Misplaced;
use crate::session::say::COPY_BROKEN;
use crate::session::server::{Expect, Fit, ServerState};
use crate::session::skip::hide_owed;
use crate::session::statements::{Prepared, SERVER_NAME_PREFIX, server_id};
use crate::session::tracked::Tracked;
use crate::sql::Pin;
use crate::telemetry;
use crate::wire::encode;
use crate::wire::encode::Severity;
use crate::wire::frame::{HEADER, body};
use crate::wire::message;

/// How much is heard of an error that is too long to be held, in bytes. What kind of error it is comes
/// first.
pub(super) const ERROR_HEAD_BYTES: usize = 64 << 10;

impl Session {
    /// Hears an error of `len` bytes by the first of them, `frame`. The rest is for the client if these are;
    /// what it is told in other words ends where they do.
    pub(super) fn hear_long_error(
        &mut self,
        frame: &[u8],
        len: usize,
        at: usize,
        server: &mut ServerState,
        answer: &mut Answer,
    ) -> Result<(), ServerFault> {
        let end = at + frame.len();
        let head = [body(frame), b"\0\0"].concat();
        self.hear_error(&head, at..end, server, answer)?;
        let is_seen = matches!(answer.runs.last(), Some(Run::Server(last)) if last.end == end);
        server.passing = len - frame.len();
        server.passing_hidden = !is_seen;
        Ok(())
    }

    pub(super) fn hear_error(
        &mut self,
        body: &[u8],
        at: Range<usize>,
        server: &mut ServerState,
        answer: &mut Answer,
    ) -> Result<(), ServerFault> {
        let told = answer.len();
        let found = found_there(body, server);
        self.note_missed(body);
        self.answer_error(body, at, server, answer)?;
        if let Some(id) = found {
            server.statements.push(id, Fit::Fits);
        }
        if let Some(id) = missed_there(body) {
            server.statements.pop(&id);
        }
        if answer.len() > told {
            telemetry::count_error(answer.last_error(body));
        }
        Ok(())
    }

    fn answer_error(
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
        if let Some(tag) = server.copy_broken.take() {
            answer_broken_copy(tag, body, &at, server, answer)?;
        }
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
            Some(
                Expect::Bind {
                    of: Some(prepared), ..
                }
                | Expect::Describe(Some(prepared)),
            ) => {
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

/// What PostgreSQL says of a statement that returns something else by now.
fn stale(out: &mut BytesMut) {
    const WORDS: &[u8] = b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0\
        Fplancache.c\0RRevalidateCachedQuery\0\0";
    encode::body(out, b'E', WORDS);
}

/// An error ends a COPY within which the client has sent a message of type `tag`: by that, or before it.
///
/// # Errors
/// The connection's end, where PostgreSQL ends it, or nobody can tell what the server does next.
fn answer_broken_copy(
    tag: u8,
    error: &[u8],
    at: &Range<usize>,
    server: &ServerState,
    answer: &mut Answer,
) -> Result<(), ServerFault> {
    let is_by_that = is_broken_copy(error);
    match is_by_that {
        true => answer.say(|out| unexpected_in_copy(tag, error, out)),
        false if server.sync_in_copy => answer.forward(at.clone()),
        false => {}
    }
    // Where a Sync was sent too, there is no telling what the server does with what comes next.
    match is_by_that || server.sync_in_copy {
        true => Err(ServerFault::Ended(OUT_OF_STEP.to_vec())),
        false => Ok(()),
    }
}

/// What PostgreSQL ends a connection with that has sent a message out of place.
const OUT_OF_STEP: &[u8] = b"SFATAL\0VFATAL\0C08P01\0\
    Mterminating connection because protocol synchronization was lost\0\0";

/// Whether a COPY has failed by [`COPY_BROKEN`].
fn is_broken_copy(error: &[u8]) -> bool {
    let words = message::error_field(error, b'M').unwrap_or_default();
    let own = COPY_BROKEN.get(HEADER..COPY_BROKEN.len() - 1);
    own.is_some_and(|own| words.ends_with(own))
}

/// What PostgreSQL says of a message of this type during a COPY that has failed with `error`.
fn unexpected_in_copy(tag: u8, error: &[u8], out: &mut BytesMut) {
    let mut words = Vec::with_capacity(error.len());
    let message = format!("unexpected message type 0x{tag:02X} during COPY from stdin");
    for (code, value) in message::error_fields(error) {
        words.push(code);
        words.extend_from_slice(match code {
            b'C' => b"08P01",
            b'M' => message.as_bytes(),
            _ => value,
        });
        words.push(0);
    }
    words.push(0);
    encode::body(out, b'E', &words);
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
