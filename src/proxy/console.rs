//! The admin console: a client that speaks to the proxy itself, by the same protocol as to a database.
//!
//! Owns: the console's side of the protocol. Never: asks a server for anything that a client of its own would
//! not.

mod command;
mod perform;
mod show;
mod table;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::time::timeout;

use self::command::Command;
use self::perform::ROUTE;
use self::table::{Formats, Value};
use super::handshake::ConsoleLogin;
use super::refusal::Refusal;
use super::sessions::{Handle, Who};
use super::{LAST_WORDS, Proxy, Registered};
use crate::auth::Proven;
use crate::cluster::pool::PoolKey;
use crate::config::ConsoleRight;
use crate::net::buffers;
use crate::net::stream::Stream;
use crate::session::params::Params;
use crate::wire::cursor::Cursor;
use crate::wire::encode::{self, Severity};
use crate::wire::frame::{Header, body, header};
use crate::wire::message::{self, Status, Target};
use crate::workers::Seat;

/// The longest message that is taken, in bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The most prepared statements, and the most portals, that one client may have.
const NAMES_MAX: usize = 100;

/// How much of an answer is put together before it is sent, in bytes.
const ANSWER_BYTES: usize = 64 << 10;

/// What a client of the console is told of the server. Drivers want some of it, and none of them takes the
/// version for one of PostgreSQL's.
pub fn params() -> Params {
    let version = concat!(env!("CARGO_PKG_VERSION"), "/tidegate");
    let pairs = [
        ("server_version", version),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
    ];
    let boxed = |text: &str| text.as_bytes().into();
    Params::new(pairs.map(|(name, value)| (boxed(name), boxed(value))))
}

/// Serves the client until it has gone.
pub(super) async fn serve(
    login: ConsoleLogin,
    stream: Stream,
    inbox: BytesMut,
    registered: Registered,
    seat: Seat,
) {
    let handle = registered.handle.clone();
    let name = &login.application_name;
    handle.introduce(Who::new(None, &login.key, &stream, name));
    let mut console = Console {
        proxy: registered.proxy.clone(),
        handle: handle.clone(),
        place: Some((registered, seat)),
        stream,
        inbox,
        outbox: BytesMut::new(),
        key: login.key,
        credential: login.credential,
        right: login.right,
        statements: HashMap::new(),
        portals: HashMap::new(),
        skips: false,
    };
    let ended = tokio::select! {
        ended = console.run() => ended,
        () = handle.stop.notified() => Ended::Refused(Refusal::going_down()),
    };
    if let Ended::Refused(refusal) = ended {
        refusal.encode(Severity::Fatal, &mut console.outbox);
        let _ = timeout(LAST_WORDS, console.flush()).await;
    }
    buffers::give_back(&mut console.inbox);
}

struct Console {
    proxy: Arc<Proxy>,
    handle: Arc<Handle>,
    /// Lent to the session whose ways are asked after, for as long as that takes.
    place: Option<(Registered, Seat)>,
    stream: Stream,
    inbox: BytesMut,
    outbox: BytesMut,
    key: PoolKey,
    credential: Proven,
    right: ConsoleRight,
    /// `None` for an empty text.
    statements: HashMap<Vec<u8>, Option<Command>>,
    portals: HashMap<Vec<u8>, Portal>,
    /// What comes up to the next Sync is left out, after an error.
    skips: bool,
}

struct Portal {
    command: Option<Command>,
    formats: Formats,
    /// What it has returned and the client has not fetched.
    rows: Option<std::vec::IntoIter<Vec<Value>>>,
}

enum Ended {
    Gone,
    Refused(Refusal),
}

impl From<std::io::Error> for Ended {
    fn from(_: std::io::Error) -> Ended {
        Ended::Gone
    }
}

impl Console {
    async fn run(&mut self) -> Ended {
        loop {
            match self.serve_message().await {
                Ok(()) => {}
                Err(ended) => return ended,
            }
        }
    }

    async fn serve_message(&mut self) -> Result<(), Ended> {
        let garbled = |error: &dyn std::fmt::Display| {
            Ended::Refused(Refusal::protocol("08P01", error.to_string()))
        };
        let head = header(&self.inbox).map_err(|error| garbled(&error))?;
        if head.is_some_and(|head| head.len > MESSAGE_BYTES_MAX) {
            return Err(garbled(&"the message is too long for the console"));
        }
        let whole = head.filter(|head| self.inbox.len() >= head.len);
        let Some(Header { tag, len }) = whole else {
            // There may be a whole answer to wait for before more is said.
            self.flush().await?;
            self.inbox.reserve(1024);
            return match self.stream.read(&mut self.inbox).await? {
                0 => Err(Ended::Gone),
                _ => Ok(()),
            };
        };
        let frame = self.inbox.split_to(len);
        let said = body(&frame);
        match tag {
            b'X' => return Err(Ended::Gone),
            b'S' => {
                self.skips = false;
                // There are no transactions, so none keeps a portal.
                self.portals.clear();
                encode::ready(&mut self.outbox, Status::Idle);
            }
            _ if self.skips => {}
            b'Q' => {
                let sql = message::query(said).map_err(|error| garbled(&error))?;
                self.query(sql).await?;
                encode::ready(&mut self.outbox, Status::Idle);
            }
            b'H' => self.flush().await?,
            b'P' | b'B' | b'D' | b'E' | b'C' => {
                if let Err(refusal) = self.step(tag, said).await? {
                    refusal.encode(Severity::Error, &mut self.outbox);
                    self.skips = true;
                }
            }
            b'F' => {
                let refusal = Refusal::protocol("0A000", "the console has no functions to call");
                refusal.encode(Severity::Error, &mut self.outbox);
                encode::ready(&mut self.outbox, Status::Idle);
            }
            // Of a COPY that there never was.
            b'd' | b'c' | b'f' => {}
            tag => {
                let message = format!("invalid frontend message type {tag}");
                return Err(Ended::Refused(Refusal::protocol("08P01", message)));
            }
        }
        Ok(())
    }

    /// Answers a Query, up to ReadyForQuery.
    async fn query(&mut self, sql: &[u8]) -> Result<(), Ended> {
        let mut is_empty = true;
        for command in Command::read_all(sql) {
            is_empty = false;
            let done = match command {
                Ok(command) => self
                    .perform(&command)
                    .await
                    .map(|done| (command.tag(), done)),
                Err(complaint) => Err(Refusal::Complaint(complaint)),
            };
            match done {
                Ok((tag, table)) => {
                    let mut shown = String::from(tag);
                    if let Some(table) = table {
                        table::describe(table.columns, &Formats::default(), &mut self.outbox);
                        shown = shows(tag, table.rows.len());
                        for row in &table.rows {
                            self.say(row, &Formats::default()).await?;
                        }
                    }
                    encode::command_complete(&mut self.outbox, &shown);
                }
                Err(refusal) => {
                    refusal.encode(Severity::Error, &mut self.outbox);
                    return Ok(());
                }
            }
        }
        if is_empty {
            self.outbox.extend_from_slice(encode::EMPTY_QUERY);
        }
        Ok(())
    }

    /// Answers a message of the extended protocol. The inner error is what the client is told.
    async fn step(&mut self, tag: u8, said: &[u8]) -> Result<Result<(), Refusal>, Ended> {
        let garbled =
            |error| Ended::Refused(Refusal::protocol("08P01", format!("bad message: {error}")));
        let stepped = match tag {
            b'P' => self.prepare(&message::Parse::read(said).map_err(garbled)?),
            b'B' => {
                let bind = message::Bind::read(said).map_err(garbled)?;
                let rest = said.get(bind.head_len()..).unwrap_or_default();
                let formats = formats(rest);
                self.bind(&bind, formats)
            }
            b'D' => {
                let target = message::target(said).map_err(garbled)?;
                self.describe(&target)
            }
            b'E' => {
                let (portal, rows) = message::execute(said).map_err(garbled)?;
                return self.execute(portal, rows).await;
            }
            _ => {
                match message::target(said).map_err(garbled)? {
                    Target::Statement(name) => drop(self.statements.remove(name)),
                    Target::Portal(name) => drop(self.portals.remove(name)),
                }
                self.outbox.extend_from_slice(encode::CLOSE_COMPLETE);
                Ok(())
            }
        };
        Ok(stepped)
    }

    fn prepare(&mut self, parse: &message::Parse<'_>) -> Result<(), Refusal> {
        let mut commands = Command::read_all(parse.sql);
        let command = commands.next().transpose().map_err(Refusal::Complaint)?;
        if commands.next().is_some() {
            let message = "cannot insert multiple commands into a prepared statement";
            return Err(Refusal::protocol("42601", message));
        }
        let is_known = self.statements.contains_key(parse.name);
        if is_known && !parse.name.is_empty() {
            let name = String::from_utf8_lossy(parse.name);
            let message = format!("prepared statement \"{name}\" already exists");
            return Err(Refusal::protocol("42P05", message));
        }
        if !is_known && self.statements.len() >= NAMES_MAX {
            let message = "the console keeps no more prepared statements";
            return Err(Refusal::protocol("54000", message));
        }
        self.statements.insert(parse.name.to_vec(), command);
        self.outbox.extend_from_slice(encode::PARSE_COMPLETE);
        Ok(())
    }

    fn bind(
        &mut self,
        bind: &message::Bind<'_>,
        formats: Result<Formats, Refusal>,
    ) -> Result<(), Refusal> {
        let command = self.statement(bind.statement)?.clone();
        let formats = formats?;
        let is_known = self.portals.contains_key(bind.portal);
        if !is_known && self.portals.len() >= NAMES_MAX {
            return Err(Refusal::protocol(
                "54000",
                "the console keeps no more portals",
            ));
        }
        let portal = Portal {
            command,
            formats,
            rows: None,
        };
        self.portals.insert(bind.portal.to_vec(), portal);
        self.outbox.extend_from_slice(encode::BIND_COMPLETE);
        Ok(())
    }

    fn describe(&mut self, target: &Target<'_>) -> Result<(), Refusal> {
        let (command, formats) = match target {
            Target::Statement(name) => {
                let command = self.statement(name)?.clone();
                self.outbox.extend_from_slice(encode::NO_PARAMETERS);
                (command, Formats::default())
            }
            Target::Portal(name) => {
                let portal = self.portal(name)?;
                (portal.command.clone(), portal.formats.clone())
            }
        };
        let columns = match command {
            Some(Command::Show(show)) => show.table(&self.proxy).columns,
            Some(Command::ExplainRoute { .. }) => ROUTE,
            _ => {
                self.outbox.extend_from_slice(encode::NO_DATA);
                return Ok(());
            }
        };
        check(&formats, columns.len())?;
        table::describe(columns, &formats, &mut self.outbox);
        Ok(())
    }

    async fn execute(&mut self, name: &[u8], limit: i32) -> Result<Result<(), Refusal>, Ended> {
        // Taken out while its command is done, and put back with what is left.
        let Some(mut portal) = self.portals.remove(name) else {
            return Ok(Err(no_portal(name)));
        };
        let Some(command) = &portal.command else {
            self.outbox.extend_from_slice(encode::EMPTY_QUERY);
            return Ok(Ok(()));
        };
        if portal.rows.is_none() {
            match self.perform(command).await {
                Ok(Some(table)) => {
                    if let Err(refusal) = check(&portal.formats, table.columns.len()) {
                        return Ok(Err(refusal));
                    }
                    portal.rows = Some(table.rows.into_iter());
                }
                Ok(None) => {
                    encode::command_complete(&mut self.outbox, command.tag());
                    return Ok(Ok(()));
                }
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
        let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0);
        let mut said = 0;
        for row in (portal.rows.iter_mut().flatten()).take(limit.unwrap_or(usize::MAX)) {
            self.say(&row, &portal.formats).await?;
            said += 1;
        }
        if Some(said) == limit {
            self.outbox.extend_from_slice(encode::PORTAL_SUSPENDED);
        } else {
            encode::command_complete(&mut self.outbox, &shows(command.tag(), said));
        }
        self.portals.insert(name.to_vec(), portal);
        Ok(Ok(()))
    }

    fn statement(&self, name: &[u8]) -> Result<&Option<Command>, Refusal> {
        self.statements.get(name).ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            let message = format!("prepared statement \"{name}\" does not exist");
            Refusal::protocol("26000", message)
        })
    }

    fn portal(&self, name: &[u8]) -> Result<&Portal, Refusal> {
        self.portals.get(name).ok_or_else(|| no_portal(name))
    }

    /// Appends a row; what has been put together is sent when it is much.
    async fn say(&mut self, row: &[Value], formats: &Formats) -> Result<(), Ended> {
        table::say(row, formats, &mut self.outbox);
        match self.outbox.len() >= ANSWER_BYTES {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        // Taken out as it is sent: who is stopped in the middle of it goes on where it was.
        while !self.outbox.is_empty() {
            let (stream, outbox) = (&mut self.stream, &self.outbox);
            match std::future::poll_fn(|cx| stream.poll_write(cx, outbox)).await? {
                0 => return Err(Ended::Gone),
                n => self.outbox.advance(n),
            }
        }
        std::future::poll_fn(|cx| self.stream.poll_flush(cx)).await?;
        Ok(())
    }
}

/// What CommandComplete says after rows.
fn shows(tag: &str, rows: usize) -> String {
    format!("{tag} {rows}")
}

fn no_portal(name: &[u8]) -> Refusal {
    let name = String::from_utf8_lossy(name);
    Refusal::protocol("34000", format!("portal \"{name}\" does not exist"))
}

fn check(formats: &Formats, columns: usize) -> Result<(), Refusal> {
    match formats.fit(columns) {
        true => Ok(()),
        false => Err(Refusal::protocol(
            "08P01",
            format!("bind message has formats for other than the {columns} columns there are"),
        )),
    }
}

/// The formats of results, from what follows the names of a Bind: there must be no parameters.
fn formats(rest: &[u8]) -> Result<Formats, Refusal> {
    let bad = |what: &str| Refusal::protocol("08P01", format!("bind message {what}"));
    let mut fields = Cursor::new(rest);
    let mut read = || -> Option<(u16, Vec<u16>)> {
        let codes = usize::from(fields.u16().ok()?);
        fields.bytes(2 * codes).ok()?;
        let parameters = fields.u16().ok()?;
        if parameters != 0 {
            return Some((parameters, Vec::new()));
        }
        let results = fields.u16().ok()?;
        let results: Option<Vec<u16>> = (0..results).map(|_| fields.u16().ok()).collect();
        Some((0, results?))
    };
    match read() {
        None => Err(bad("is malformed")),
        Some((0, codes)) => Formats::of(codes).ok_or_else(|| bad("has an unknown format code")),
        Some((count, _)) => Err(bad(&format!(
            "supplies {count} parameters, but the console takes none"
        ))),
    }
}
