//! Owns: the client's messages: what a batch of them needs, and how it is said to a given server.
//! Never: answers the client, except by leaving an answer in the server's queue of what is owed.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytes::BytesMut;

use super::server::{CopyIn, Expect, Forgotten, ServerState, Tracked};
use super::statements::{Prepared, SERVER_NAME_PREFIX, Unnamed, server_name};
use super::{Session, tracked};
use crate::sql::{Class, Need, Verb, Why, command};
use crate::wire::frame::{HEADER, Header, body, header};
use crate::wire::message::{self, Status, Target};
use crate::wire::{FRAME_BUFFERED_BYTES_MAX, PARSE_BYTES_MAX, WireError, encode};

/// A pipeline longer than this is sent before its Sync has been seen, in bytes.
pub const PIPELINE_BYTES_MAX: usize = 256 << 10;

/// The client's messages up to the next point where it waits for answers.
#[derive(Debug)]
pub struct Batch {
    /// The strictest need of all its statements, and why.
    pub need: Need,
    pub why: Why,
    /// Bytes of the client's buffer that it covers so far.
    pub len: usize,
    /// Bytes of its last message that are not in the buffer, to be passed on as they come.
    pub beyond: usize,
    /// It executes something.
    pub executes: bool,
    end: Option<End>,
    flushed: bool,
    steps: Vec<Step>,
}

/// How a batch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With Sync, Query or FunctionCall: the server will be ready after it.
    Ready,
    /// More of the same pipeline follows.
    Open,
}

/// What the session makes of the bytes it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planned {
    NeedMore,
    Batch(End),
    Terminate,
}

/// What a client has done wrong; its connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientFault {
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("invalid frontend message type {0}")]
    Tag(u8),
    #[error("a session may not hold more than {0} prepared statements")]
    TooManyStatements(usize),
}

impl ClientFault {
    pub fn sqlstate(self) -> &'static str {
        match self {
            ClientFault::Wire(WireError::TooLong { .. }) => "54000",
            ClientFault::TooManyStatements(_) => "54000",
            _ => "08P01",
        }
    }
}

/// One message of a batch, by its place in the client's buffer.
#[derive(Debug)]
enum Step {
    Query {
        at: Range<usize>,
        tracked: Option<Tracked>,
    },
    /// DEALLOCATE of a statement that the client prepared by message, under another name there.
    Deallocate {
        text: Range<usize>,
        /// The name's place in the text.
        name: Range<usize>,
        tracked: Option<Tracked>,
        prepared: Arc<Prepared>,
    },
    Parse {
        name: Box<[u8]>,
        prepared: Arc<Prepared>,
    },
    ParseAgain {
        name: Box<[u8]>,
        existing: Arc<Prepared>,
    },
    ParseUnnamed {
        at: Range<usize>,
        unnamed: Arc<Unnamed>,
        /// It deallocates a statement that has another name on servers: which, and the name's place.
        rewritten: Option<(Arc<Prepared>, Range<usize>)>,
    },
    Bind {
        at: Range<usize>,
        names: usize,
        beyond: usize,
        of: Of,
    },
    Describe {
        at: Range<usize>,
        of: Of,
    },
    DescribePortal {
        at: Range<usize>,
    },
    Execute {
        at: Range<usize>,
        tracked: Option<Tracked>,
    },
    /// Close of a statement: it only forgets the name.
    CloseStatement {
        forgotten: Option<Forgotten>,
    },
    ClosePortal {
        at: Range<usize>,
    },
    FunctionCall {
        at: Range<usize>,
    },
    Sync {
        at: Range<usize>,
    },
    Flush {
        at: Range<usize>,
    },
}

/// The statement that a message names.
#[derive(Clone, Debug)]
enum Of {
    Named(Arc<Prepared>),
    Unnamed(Arc<Unnamed>),
    /// None that the session knows: the server says so.
    Unknown,
}

impl Batch {
    pub fn new() -> Batch {
        Batch {
            need: Need::Read,
            why: Why::Empty,
            len: 0,
            beyond: 0,
            executes: false,
            end: None,
            flushed: false,
            steps: Vec::new(),
        }
    }

    /// Makes it an empty batch; its memory is kept for the next.
    pub fn clear(&mut self) {
        self.steps.clear();
        *self = Batch {
            steps: std::mem::take(&mut self.steps),
            ..Batch::new()
        };
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// How it ends, as far as it has been planned.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Whether a replica that the pipeline began on may not go on with it.
    pub fn must_leave_replica(&self) -> bool {
        self.need > Need::Read || self.end == Some(End::Open) && self.executes
    }

    fn needs(&mut self, need: Need, why: Why) {
        if need > self.need || self.why == Why::Empty {
            (self.need, self.why) = (self.need.max(need), why);
        }
    }

    fn needs_class(&mut self, class: &Class) {
        self.needs(class.need, class.why);
    }
}

impl Default for Batch {
    fn default() -> Self {
        Batch::new()
    }
}

impl Session {
    /// Plans the messages at the start of `client`, going on where the last call left `batch`.
    ///
    /// # Errors
    /// Bytes that are no message of a client's: the session cannot go on.
    pub fn plan(&mut self, client: &[u8], batch: &mut Batch) -> Result<Planned, ClientFault> {
        loop {
            let rest = client.get(batch.len..).unwrap_or(&[]);
            let Some(Header { tag, len }) = header(rest)? else {
                break;
            };
            if len > FRAME_BUFFERED_BYTES_MAX && tag != b'P' {
                return self.plan_giant(tag, len, rest, batch);
            }
            if len > PARSE_BYTES_MAX {
                let error = WireError::TooLong {
                    tag: 'P',
                    len,
                    max: PARSE_BYTES_MAX,
                };
                return Err(error.into());
            }
            let Some(frame) = rest.get(..len) else { break };
            if tag == b'X' {
                // What came before it is answered to nobody, but is still done.
                return Ok(if batch.steps.is_empty() {
                    Planned::Terminate
                } else {
                    self.open(batch)
                });
            }
            let at = batch.len..batch.len + len;
            batch.len += len;
            if self.plan_message(tag, body(frame), at, batch)? {
                batch.end = Some(End::Ready);
                return Ok(Planned::Batch(End::Ready));
            }
        }
        if batch.flushed || batch.len > PIPELINE_BYTES_MAX {
            return Ok(self.open(batch));
        }
        Ok(Planned::NeedMore)
    }

    fn open(&self, batch: &mut Batch) -> Planned {
        batch.end = Some(End::Open);
        Planned::Batch(End::Open)
    }

    /// Plans one whole message; `true` when the batch ends with it.
    fn plan_message(
        &mut self,
        tag: u8,
        body: &[u8],
        at: Range<usize>,
        batch: &mut Batch,
    ) -> Result<bool, ClientFault> {
        match tag {
            b'Q' => {
                self.plan_query(message::query(body)?, at, batch);
                return Ok(true);
            }
            b'P' => self.plan_parse(message::Parse::read(body)?, at, batch)?,
            b'B' => self.plan_bind(message::Bind::read(body)?, at, 0, batch),
            b'D' => match message::target(body)? {
                Target::Portal(_) => batch.steps.push(Step::DescribePortal { at }),
                Target::Statement(name) => {
                    let of = self.statement(name, batch);
                    batch.steps.push(Step::Describe { at, of });
                }
            },
            b'E' => {
                let portal = message::execute(body)?;
                batch.executes = true;
                let tracked = self.portals.get(portal).cloned();
                batch.steps.push(Step::Execute { at, tracked });
            }
            b'C' => match message::target(body)? {
                Target::Portal(_) => batch.steps.push(Step::ClosePortal { at }),
                Target::Statement(name) => {
                    let forgotten = if name.is_empty() {
                        self.statements.drop_unnamed();
                        None
                    } else {
                        self.statements
                            .remove(name)
                            .map(|prepared| (name.into(), prepared))
                    };
                    batch.steps.push(Step::CloseStatement { forgotten });
                }
            },
            b'F' => {
                batch.needs(Need::Write, Why::UnknownFunction);
                batch.executes = true;
                batch.steps.push(Step::FunctionCall { at });
                return Ok(true);
            }
            b'S' => {
                batch.steps.push(Step::Sync { at });
                return Ok(true);
            }
            b'H' => {
                batch.flushed = true;
                batch.steps.push(Step::Flush { at });
            }
            // The rest of a COPY that the server has already ended with an error.
            b'd' | b'c' | b'f' => {}
            _ => return Err(ClientFault::Tag(tag)),
        }
        Ok(false)
    }

    fn plan_query(&mut self, sql: &[u8], at: Range<usize>, batch: &mut Batch) {
        let class = self.classify(sql);
        batch.needs_class(&class);
        batch.executes = true;
        self.statements.drop_unnamed();
        let tracked = tracked(&class, sql);
        let step = match (tracked, self.deallocated(&class, sql)) {
            (tracked, Some((prepared, name))) => {
                let text = at.start + HEADER..at.end - 1;
                Step::Deallocate {
                    text,
                    name,
                    tracked,
                    prepared,
                }
            }
            (tracked, None) => Step::Query { at, tracked },
        };
        batch.steps.push(step);
    }

    /// The statement that `sql` deallocates, when the client has prepared it by message: it has
    /// another name on servers. And the name's place in `sql`.
    fn deallocated(&self, class: &Class, sql: &[u8]) -> Option<(Arc<Prepared>, Range<usize>)> {
        let [statement] = &*class.statements else {
            return None;
        };
        if statement.verb != Verb::Deallocate {
            return None;
        }
        let at = crate::sql::lexer::statements(sql, self.has_conforming_strings()).next()?;
        let (name, place) = command::deallocate(sql.get(at.clone())?)?;
        let prepared = self.statements.get(&name)?.clone();
        Some((prepared, at.start + place.start..at.start + place.end))
    }

    fn plan_parse(
        &mut self,
        parse: message::Parse<'_>,
        at: Range<usize>,
        batch: &mut Batch,
    ) -> Result<(), ClientFault> {
        let class = self.classify(parse.sql);
        batch.needs_class(&class);
        if parse.name.is_empty() {
            let rewritten = self.deallocated(&class, parse.sql);
            let unnamed = self.statements.set_unnamed(parse.sql, parse.types, class);
            batch.steps.push(Step::ParseUnnamed {
                at,
                unnamed,
                rewritten,
            });
            return Ok(());
        }
        let name = Box::from(parse.name);
        if let Some(existing) = self.statements.get(parse.name).cloned() {
            batch.steps.push(Step::ParseAgain { name, existing });
            return Ok(());
        }
        if self.statements.is_full() {
            return Err(ClientFault::TooManyStatements(super::Statements::NAMED_MAX));
        }
        let prepared = self
            .shared
            .registry
            .intern(&self.scope, parse.sql, parse.types, &class);
        self.statements.insert(parse.name, prepared.clone());
        batch.steps.push(Step::Parse { name, prepared });
        Ok(())
    }

    fn plan_bind(
        &mut self,
        bind: message::Bind<'_>,
        at: Range<usize>,
        beyond: usize,
        batch: &mut Batch,
    ) {
        let of = self.statement(bind.statement, batch);
        let effects = match &of {
            Of::Named(prepared) => tracked(&prepared.class, &prepared.sql),
            Of::Unnamed(unnamed) => tracked(&unnamed.class, &unnamed.sql),
            Of::Unknown => None,
        };
        match effects {
            Some(effects) => drop(self.portals.insert(bind.portal.into(), effects)),
            None if self.portals.is_empty() => {}
            None => drop(self.portals.remove(bind.portal)),
        }
        batch.steps.push(Step::Bind {
            at,
            names: bind.head_len(),
            beyond,
            of,
        });
    }

    fn statement(&self, name: &[u8], batch: &mut Batch) -> Of {
        let of = if name.is_empty() {
            self.statements
                .unnamed()
                .cloned()
                .map_or(Of::Unknown, Of::Unnamed)
        } else {
            self.statements
                .get(name)
                .cloned()
                .map_or(Of::Unknown, Of::Named)
        };
        match &of {
            Of::Named(prepared) => batch.needs_class(&prepared.class),
            Of::Unnamed(unnamed) => batch.needs_class(&unnamed.class),
            Of::Unknown => batch.needs(Need::Write, Why::NotParsed),
        }
        of
    }

    /// Plans a message that is too long to be held: its beginning now, the rest passed on as it
    /// comes.
    fn plan_giant(
        &mut self,
        tag: u8,
        len: usize,
        rest: &[u8],
        batch: &mut Batch,
    ) -> Result<Planned, ClientFault> {
        // Names must lie within what is buffered; what comes before it goes first.
        const NAMES_BYTES_MAX: usize = 16 << 10;
        if !batch.steps.is_empty() {
            return Ok(self.open(batch));
        }
        if rest.len() < NAMES_BYTES_MAX {
            return Ok(Planned::NeedMore);
        }
        let at = batch.len..batch.len + rest.len().min(len);
        let beyond = len - at.len();
        batch.len = at.end;
        batch.beyond = beyond;
        batch.executes = true;
        match tag {
            b'Q' => {
                batch.needs(Need::Write, Why::TooComplex);
                self.statements.drop_unnamed();
                // What it does to the settings can't be read from it.
                self.uncertain = true;
                batch.steps.push(Step::Query { at, tracked: None });
                batch.end = Some(End::Ready);
                return Ok(Planned::Batch(End::Ready));
            }
            b'F' => {
                batch.needs(Need::Write, Why::UnknownFunction);
                batch.steps.push(Step::FunctionCall { at });
                batch.end = Some(End::Ready);
                return Ok(Planned::Batch(End::Ready));
            }
            b'B' => {
                let head = rest.get(HEADER..NAMES_BYTES_MAX).unwrap_or(&[]);
                self.plan_bind(message::Bind::read(head)?, at, beyond, batch);
            }
            // Left over from a COPY that has failed; it needs no server.
            b'd' => {}
            _ => {
                let max = FRAME_BUFFERED_BYTES_MAX;
                return Err(WireError::TooLong {
                    tag: tag.into(),
                    len,
                    max,
                }
                .into());
            }
        }
        Ok(self.open(batch))
    }

    /// Whether `batch` can be answered without any server.
    ///
    /// That includes preparing what a server has accepted before: clients that hold all servers in
    /// open transactions must not wait for one that only wants to prepare the same statements.
    pub fn is_local(&self, batch: &Batch) -> bool {
        let local = |step: &Step| match step {
            Step::CloseStatement { .. } | Step::Sync { .. } | Step::Flush { .. } => true,
            Step::Parse { prepared, .. } => prepared.is_proven() && !self.settings.change_names(),
            _ => false,
        };
        batch.beyond == 0 && batch.steps.iter().all(local)
    }

    /// Answers a batch that [is local](Self::is_local), where no server is held.
    pub fn answer_locally(&self, batch: &Batch, out: &mut BytesMut) {
        for step in &batch.steps {
            match step {
                Step::CloseStatement { .. } => out.extend_from_slice(encode::CLOSE_COMPLETE),
                Step::Parse { .. } => out.extend_from_slice(encode::PARSE_COMPLETE),
                Step::Sync { .. } => encode::ready(out, self.status),
                _ => {}
            }
        }
    }

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
        let mut speech = Speech {
            client,
            out,
            run: 0..0,
        };
        for step in &batch.steps {
            if self.failed && !matches!(step, Step::Sync { .. }) {
                self.skip_step(step);
            } else {
                self.say_step(step, server, &mut speech);
            }
        }
        speech.finish(batch.len)
    }

    /// The batch has not been run: what its planning did is undone.
    pub fn forget_batch(&mut self, batch: &Batch) {
        for step in &batch.steps {
            self.skip_step(step);
        }
        self.portals.clear();
    }

    /// After an error the server would skip the message; so what its planning did is undone.
    fn skip_step(&mut self, step: &Step) {
        match step {
            Step::Parse { name, .. } => drop(self.statements.remove(name)),
            Step::ParseUnnamed { .. } => self.statements.drop_unnamed(),
            Step::CloseStatement {
                forgotten: Some((name, prepared)),
            } => {
                self.statements.insert(name, prepared.clone());
            }
            _ => {}
        }
    }

    fn say_step(&mut self, step: &Step, server: &mut ServerState, speech: &mut Speech<'_>) {
        match step {
            Step::Query { at, tracked } => {
                server.unnamed = None;
                speech.forward(at);
                server.expect(Expect::Query {
                    tracked: tracked.clone(),
                    statement: 0,
                });
            }
            Step::Deallocate {
                text,
                name,
                tracked,
                prepared,
            } => {
                if ensure(server, prepared, speech.own()) {
                    speech.own().extend_from_slice(encode::SYNC);
                    server.expect_hidden(Expect::Sync);
                }
                let sql = speech.client.get(text.clone()).unwrap_or(&[]);
                let sql = renamed(sql, name, prepared.id);
                encode::query(speech.own(), &sql);
                server.unnamed = None;
                server.expect(Expect::Query {
                    tracked: tracked.clone(),
                    statement: 0,
                });
            }
            Step::Parse { name, prepared } => {
                if server.statements.get(&prepared.id).is_some() {
                    server.expect(Expect::Parsed { name: name.clone() });
                } else {
                    admit(server, prepared.id, speech.own());
                    let own = speech.own();
                    encode::parse(own, &prepared.server_name(), &prepared.sql, &prepared.types);
                    server.expect(Expect::Parse {
                        prepared: prepared.clone(),
                        name: name.clone(),
                    });
                }
            }
            Step::ParseAgain { name, existing } => {
                ensure(server, existing, speech.own());
                let own = speech.own();
                encode::parse(own, &existing.server_name(), &existing.sql, &existing.types);
                server.expect(Expect::ParseAgain { name: name.clone() });
            }
            Step::ParseUnnamed {
                at,
                unnamed,
                rewritten,
            } => {
                match rewritten {
                    None => speech.forward(at),
                    Some((prepared, name)) => {
                        ensure(server, prepared, speech.own());
                        let sql = renamed(&unnamed.sql, name, prepared.id);
                        encode::parse(speech.own(), b"", &sql, &unnamed.types);
                    }
                }
                server.unnamed = Some((self.id, unnamed.serial));
                server.expect(Expect::ParseUnnamed);
            }
            Step::Bind {
                at,
                names,
                beyond,
                of,
            } => {
                self.say_bind(at, *names, *beyond, of, server, speech);
            }
            Step::Describe { at, of } => {
                match of {
                    Of::Named(prepared) => {
                        ensure(server, prepared, speech.own());
                        encode::statement_target(speech.own(), b'D', &prepared.server_name());
                    }
                    Of::Unnamed(unnamed) => {
                        self.ensure_unnamed(server, unnamed, speech);
                        speech.forward(at);
                    }
                    Of::Unknown => speech.forward_unknown(at, HEADER + 1),
                }
                server.expect(Expect::Describe);
            }
            Step::DescribePortal { at } => {
                speech.forward(at);
                server.expect(Expect::Describe);
            }
            Step::Execute { at, tracked } => {
                speech.forward(at);
                server.expect(Expect::Execute(tracked.clone()));
            }
            Step::CloseStatement { forgotten } => {
                server.expect(Expect::CloseStatement(forgotten.clone()));
            }
            Step::ClosePortal { at } => {
                speech.forward(at);
                server.expect(Expect::Close);
            }
            Step::FunctionCall { at } => {
                speech.forward(at);
                server.expect(Expect::FunctionCall);
            }
            Step::Sync { at } => {
                speech.forward(at);
                server.expect(Expect::Sync);
            }
            Step::Flush { at } => speech.forward(at),
        }
    }

    fn say_bind(
        &self,
        at: &Range<usize>,
        names: usize,
        beyond: usize,
        of: &Of,
        server: &mut ServerState,
        speech: &mut Speech<'_>,
    ) {
        match of {
            Of::Named(prepared) => {
                ensure(server, prepared, speech.own());
                let values = at.start + HEADER + names..at.end;
                let client = speech.client;
                let head = client.get(at.start + HEADER..).unwrap_or(&[]);
                let portal = message::Bind::read(head).map_or(&b""[..], |bind| bind.portal);
                let rest = values.len() + beyond;
                encode::bind_head(speech.own(), portal, &prepared.server_name(), rest);
                speech.forward(&values);
            }
            Of::Unnamed(unnamed) => {
                self.ensure_unnamed(server, unnamed, speech);
                speech.forward(at);
            }
            Of::Unknown => {
                let head = speech.client.get(at.start + HEADER..at.end).unwrap_or(&[]);
                let portal = message::Bind::read(head).map_or(0, |bind| bind.portal.len() + 1);
                speech.forward_unknown(at, HEADER + portal);
            }
        }
        server.expect(Expect::Bind);
    }

    fn ensure_unnamed(&self, server: &mut ServerState, unnamed: &Unnamed, speech: &mut Speech<'_>) {
        if server.unnamed != Some((self.id, unnamed.serial)) {
            encode::parse(speech.own(), b"", &unnamed.sql, &unnamed.types);
            server.unnamed = Some((self.id, unnamed.serial));
            server.expect_hidden(Expect::ParseUnnamed);
        }
    }

    /// How many of `client`'s bytes go to a server that is in the middle of a COPY FROM STDIN, and
    /// how many after them belong to the same message and are still to come.
    ///
    /// # Errors
    /// Bytes that are no message.
    pub fn copy_in(
        &self,
        client: &[u8],
        server: &mut ServerState,
    ) -> Result<(usize, usize), ClientFault> {
        let mut at = 0;
        while let Some(copy) = server.copy_in {
            let (CopyIn::Simple { done } | CopyIn::Extended { done }) = copy;
            if done {
                break;
            }
            let rest = client.get(at..).unwrap_or(&[]);
            let Some(Header { tag, len }) = header(rest)? else {
                break;
            };
            if !matches!(tag, b'd' | b'c' | b'f' | b'S' | b'H') {
                // The server takes it and ends the COPY with an error over it.
                tracing::debug!(tag = tag as u32, "unexpected message in COPY FROM STDIN");
            }
            if !matches!(tag, b'd' | b'S' | b'H') {
                if rest.len() < len && len <= FRAME_BUFFERED_BYTES_MAX {
                    break;
                }
                server.copy_in = Some(match copy {
                    CopyIn::Simple { .. } => CopyIn::Simple { done: true },
                    CopyIn::Extended { .. } => CopyIn::Extended { done: true },
                });
            }
            if rest.len() < len {
                return Ok((client.len(), len - rest.len()));
            }
            at += len;
        }
        Ok((at, 0))
    }

    /// Whether the client may go on with its pipeline while `server` copies in.
    pub fn copy_goes_on(&self, server: &ServerState) -> bool {
        matches!(server.copy_in, None | Some(CopyIn::Extended { done: true }))
    }

    /// Asks `server` to become as the session wants it. `true` when something was asked.
    pub fn say_settings(&self, server: &mut ServerState, out: &mut BytesMut) -> bool {
        if server.status == Status::Failed {
            // It refuses everything but the end of the transaction, which undoes settings anyway.
            return false;
        }
        let Some(sql) = server.settings.difference(&self.settings) else {
            return false;
        };
        encode::query(out, &sql);
        server.unnamed = None;
        server.settings = self.settings.clone();
        server.expect_hidden(Expect::Settings);
        true
    }

    /// Asks `server` for the settings that it now has.
    pub fn say_capture(&self, server: &mut ServerState, out: &mut BytesMut) {
        const LISTED: &[u8] =
            b"SELECT name, setting FROM pg_catalog.pg_settings WHERE source = 'session'";
        encode::query(out, LISTED);
        server.unnamed = None;
        server.captured.clear();
        server.expect_hidden(Expect::Capture);
    }

    /// Ends the pipeline on a server that the session leaves in the middle of it.
    pub fn say_sync(&self, server: &mut ServerState, out: &mut BytesMut) {
        out.extend_from_slice(encode::SYNC);
        server.expect_hidden(Expect::Sync);
    }

    /// Ends an open transaction, or resets the server wholly, after its client is done with it.
    pub fn say_cleanup(server: &mut ServerState, sql: &[u8], out: &mut BytesMut) {
        encode::query(out, sql);
        server.unnamed = None;
        server.expect_hidden(Expect::Settings);
    }

    /// An error has occurred in the open pipeline: the server answers nothing before Sync.
    pub fn is_failed(&self) -> bool {
        self.failed
    }
}

/// Makes room for a statement and notes that the server has it.
fn admit(server: &mut ServerState, id: u64, out: &mut BytesMut) {
    if let Some((evicted, ())) = server.statements.push(id, ())
        && evicted != id
    {
        encode::statement_target(out, b'C', &server_name(evicted));
        server.expect_hidden(Expect::Close);
    }
}

/// Prepares `prepared` on the server unless it has it. `true` when that was said.
fn ensure(server: &mut ServerState, prepared: &Prepared, out: &mut BytesMut) -> bool {
    if server.statements.get(&prepared.id).is_some() {
        return false;
    }
    admit(server, prepared.id, out);
    encode::parse(out, &prepared.server_name(), &prepared.sql, &prepared.types);
    server.expect_hidden(Expect::Prepare { id: prepared.id });
    true
}

/// `sql` with the name at `name` replaced by the server's for `id`.
fn renamed<'a>(sql: &'a [u8], name: &Range<usize>, id: u64) -> Cow<'a, [u8]> {
    let (before, after) = (sql.get(..name.start), sql.get(name.end..));
    let (Some(before), Some(after)) = (before, after) else {
        return Cow::Borrowed(sql);
    };
    Cow::Owned([before, &server_name(id), after].concat())
}

/// What is being said: the client's bytes as long as they can be passed on as they are.
struct Speech<'a> {
    client: &'a [u8],
    out: &'a mut BytesMut,
    /// The client's bytes that come next and are not yet in `out`.
    run: Range<usize>,
}

impl Speech<'_> {
    fn forward(&mut self, at: &Range<usize>) {
        if self.run.end == at.start && (!self.run.is_empty() || at.start == 0) {
            self.run.end = at.end;
        } else {
            self.flush();
            self.run = at.clone();
        }
    }

    /// Forwards a message whose statement, named at offset `name`, the session does not know. A
    /// name that a server's own statement could have is made one that none has.
    fn forward_unknown(&mut self, at: &Range<usize>, name: usize) {
        let frame = self.client.get(at.clone()).unwrap_or(&[]);
        if !frame
            .get(name..)
            .is_some_and(|name| name.starts_with(SERVER_NAME_PREFIX))
        {
            return self.forward(at);
        }
        let mut changed = frame.to_vec();
        changed[name] = b'-';
        self.own().extend_from_slice(&changed);
    }

    /// For words that are not the client's.
    fn own(&mut self) -> &mut BytesMut {
        self.flush();
        self.out
    }

    fn flush(&mut self) {
        self.out
            .extend_from_slice(self.client.get(self.run.clone()).unwrap_or(&[]));
        self.run = 0..0;
    }

    /// `true` when nothing but the client's own bytes is to be said.
    fn finish(mut self, len: usize) -> bool {
        if self.out.is_empty() && self.run == (0..len) && len > 0 {
            return true;
        }
        self.flush();
        false
    }
}
