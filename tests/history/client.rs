//! Owns: one client's random life: what it does next, and the record of what came of it. Never:
//! decides what its reads must show; the model does.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::Error;

use super::database::{Connection, Protocol, Shown, Span, read_text, set_text};
use super::model::{Kept, Kind, Ledger, Node, Owed, Row, Session, Version, Violation};
use super::shared::Shared;

/// What clients do.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Of a hundred operations, so many write.
    pub writes: u32,
    /// Of a hundred, so many are transactions, beside those that reads and writes come to.
    pub transactions: u32,
    /// Clients of other proxies than the first do no more than read, one read at a time.
    pub readers: bool,
    /// Between one operation and the next.
    pub think: Duration,
    /// Clients at the same time; each has a row of its own.
    pub clients: i32,
    /// Rows that every client writes.
    pub shared: i32,
    /// Of one client.
    pub operations: usize,
}

impl Mix {
    pub fn rows(&self) -> i32 {
        self.clients + self.shared
    }
}

/// What is promised to a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// What its session has written and read.
    Session,
    /// That, and all that anybody had been told of before.
    Everything,
    /// All that anybody had been told of so long before, and nothing of its session's.
    Within(Duration),
    /// What its session has written and read, and what proxies share of its causal key.
    Shared,
}

/// What the clients of a run have in common.
#[derive(Default)]
pub struct Progress {
    /// What they have been told.
    pub ledger: Ledger,
    /// The same, as their proxies know it of each other.
    pub shared: Option<Shared>,
    /// The port by which the primary's answers are known.
    pub primary: u16,
    /// Operations done, of all clients.
    pub done: AtomicUsize,
    /// Nothing more is to be found out.
    pub stop: AtomicBool,
    pub stop_at_violation: bool,
}

/// What a client has done and found.
#[derive(Debug, Default)]
pub struct Tally {
    pub operations: usize,
    pub reads: usize,
    /// Reads by the port of the node that has answered.
    pub by_port: HashMap<u16, usize>,
    /// Reads that another node has answered than the one before.
    pub moves: usize,
    /// Rows that the primary has shown as they were before a write that a replica has shown, and
    /// nobody had been told of.
    pub early: usize,
    /// Rows that replicas have shown as they had to only since another proxy had told of them.
    pub handed_over: usize,
    pub violations: usize,
    /// The first of them.
    pub findings: Vec<Finding>,
}

/// A violation, and what led to it.
#[derive(Debug)]
pub struct Finding {
    pub client: i32,
    pub operation: usize,
    pub violation: Violation,
    /// The last that the client did, the violating read included.
    pub history: Vec<Event>,
}

/// Something that was done and acknowledged.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Read(How, Shown),
    Wrote(How, Row, Version),
    Began,
    Committed,
    RolledBack,
}

/// In which form it was said; for the eyes of who reads a finding.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the protocol is only printed")]
pub enum How {
    Alone(Protocol),
    /// With the statement before it, not waiting for that one's answer.
    Pipelined,
    /// With others, in one simple query.
    Script,
}

pub struct TestClient {
    number: i32,
    mix: Mix,
    connection: Connection,
    /// The number of the proxy that it is connected to.
    proxy: usize,
    promise: Promise,
    model: Session,
    /// What anybody had been told when the last statement was said.
    told: HashMap<Row, Version>,
    /// What of that its reads must show, whatever the session itself has done.
    owed: Owed,
    rng: StdRng,
    /// The version that its own row gets next.
    next: Version,
    last_port: Option<u16>,
    history: VecDeque<Event>,
    tally: Tally,
    progress: Arc<Progress>,
}

/// How many events a finding shows.
const HISTORY_MAX: usize = 24;

/// How many findings a client keeps.
const FINDINGS_MAX: usize = 2;

impl TestClient {
    pub fn new(
        number: i32,
        connection: Connection,
        proxy: usize,
        mix: Mix,
        promise: Promise,
        progress: Arc<Progress>,
    ) -> Self {
        TestClient {
            number,
            mix,
            connection,
            proxy,
            promise,
            model: Session::default(),
            told: HashMap::new(),
            owed: Owed::default(),
            rng: StdRng::seed_from_u64(number as u64),
            next: 1,
            last_port: None,
            history: VecDeque::new(),
            tally: Tally::default(),
            progress,
        }
    }

    /// Does all its operations.
    pub async fn run(mut self) -> Result<Tally, Error> {
        for _ in 0..self.mix.operations {
            if self.progress.stop.load(Ordering::Relaxed) {
                break;
            }
            self.look_around().await;
            if self.mix.readers && self.proxy > 0 {
                let protocol = self.protocol();
                self.read(protocol).await?;
            } else if self.mix.transactions > 0 && self.rng.random_ratio(self.mix.transactions, 100)
            {
                self.transact_somehow().await?;
            } else if self.rng.random_ratio(self.mix.writes, 100) {
                self.write_somehow().await?;
            } else {
                self.read_somehow().await?;
            }
            self.tally.operations += 1;
            self.progress.done.fetch_add(1, Ordering::Relaxed);
            if self.progress.stop_at_violation && self.tally.violations > 0 {
                self.progress.stop.store(true, Ordering::Relaxed);
            }
            tokio::time::sleep(self.mix.think).await;
        }
        Ok(self.tally)
    }

    async fn write_somehow(&mut self) -> Result<(), Error> {
        let protocol = self.protocol();
        match self.rng.random_range(0..10) {
            0..3 => self.set_own(protocol).await,
            3..6 => self.bump_shared(protocol).await,
            6 => self.set_and_read_pipelined().await,
            7 => self.set_and_read_in_a_script().await,
            _ => self.transact().await,
        }
    }

    async fn transact_somehow(&mut self) -> Result<(), Error> {
        match self.rng.random_range(0..4) {
            0 => self.transact().await,
            1 => self.read_twice_in_a_transaction(true).await,
            _ => self.read_twice_in_a_transaction(false).await,
        }
    }

    async fn read_somehow(&mut self) -> Result<(), Error> {
        match self.rng.random_range(0..20) {
            0 => self.read_twice_in_a_transaction(false).await,
            1 => self.read_in_a_script("BEGIN READ ONLY; ", "; COMMIT").await,
            2 => self.read_in_a_script("SHOW work_mem; ", "; SELECT 1").await,
            _ => {
                let protocol = self.protocol();
                self.read(protocol).await
            }
        }
    }

    async fn read(&mut self, protocol: Protocol) -> Result<(), Error> {
        let span = self.span();
        self.look_around().await;
        let shown = self.connection.read(span, protocol).await?;
        self.note_read(How::Alone(protocol), span, &shown);
        Ok(())
    }

    async fn set_own(&mut self, protocol: Protocol) -> Result<(), Error> {
        let (row, version) = self.next_own();
        self.connection.set(row, version, protocol).await?;
        self.note_write(How::Alone(protocol), row, version).await
    }

    async fn bump_shared(&mut self, protocol: Protocol) -> Result<(), Error> {
        let row = self.shared_row();
        let version = self.connection.bump(row, protocol).await?;
        self.note_write(How::Alone(protocol), row, version).await
    }

    /// A write and a read are sent together; the read runs after the write all the same.
    async fn set_and_read_pipelined(&mut self) -> Result<(), Error> {
        let ((row, version), span) = (self.next_own(), self.span());
        let set = self.connection.set(row, version, Protocol::Prepared);
        let read = self.connection.read(span, Protocol::Prepared);
        let ((), shown) = tokio::try_join!(set, read)?;
        self.note_write(How::Pipelined, row, version).await?;
        self.note_read(How::Pipelined, span, &shown);
        Ok(())
    }

    async fn set_and_read_in_a_script(&mut self) -> Result<(), Error> {
        let ((row, version), span) = (self.next_own(), self.span());
        let script = format!("{}; {}", set_text(row, version), read_text(span));
        let shown = self.connection.script(&script).await?;
        self.note_write(How::Script, row, version).await?;
        self.note_read(How::Script, span, &shown);
        Ok(())
    }

    /// A read among statements that are neither reads nor writes.
    async fn read_in_a_script(&mut self, before: &str, after: &str) -> Result<(), Error> {
        let span = self.span();
        let script = format!("{before}{}{after}", read_text(span));
        let shown = self.connection.script(&script).await?;
        self.note_read(How::Script, span, &shown);
        Ok(())
    }

    async fn read_twice_in_a_transaction(&mut self, read_only: bool) -> Result<(), Error> {
        self.begin(read_only).await?;
        for _ in 0..2 {
            let protocol = self.protocol();
            self.read(protocol).await?;
        }
        self.end(true).await
    }

    /// Reads and writes in one transaction, which may be undone. It writes no more than one shared
    /// row, so that no two clients wait for each other.
    async fn transact(&mut self) -> Result<(), Error> {
        let how = [(); 4].map(|()| self.protocol());
        self.begin(false).await?;
        self.read(how[0]).await?;
        self.set_own(how[1]).await?;
        self.read(how[2]).await?;
        if self.rng.random_ratio(1, 2) {
            self.bump_shared(how[3]).await?;
            self.read(how[3]).await?;
        }
        let commits = self.rng.random_ratio(3, 4);
        self.end(commits).await
    }

    async fn begin(&mut self, read_only: bool) -> Result<(), Error> {
        let protocol = self.protocol();
        match read_only {
            true => self.connection.begin_read_only(protocol).await?,
            false => self.connection.begin(protocol).await?,
        }
        self.model.begin();
        self.record(Event::Began);
        Ok(())
    }

    async fn end(&mut self, commits: bool) -> Result<(), Error> {
        let protocol = self.protocol();
        if commits {
            self.connection.commit(protocol).await?;
            let written: Vec<_> = self.model.commit().into_iter().collect();
            self.note_told(&written).await?;
            self.record(Event::Committed);
        } else {
            self.connection.roll_back(protocol).await?;
            self.model.roll_back();
            self.record(Event::RolledBack);
        }
        Ok(())
    }

    /// Whatever is said next is said after what others know now.
    async fn look_around(&mut self) {
        let Progress { ledger, shared, .. } = &*self.progress;
        self.owed = match (self.promise, shared) {
            (Promise::Everything, _) => Owed::of(ledger.as_of(Duration::ZERO), Kind::Missed),
            (Promise::Within(lag), _) => Owed::of(ledger.as_of(lag), Kind::Missed),
            (Promise::Shared, Some(shared)) => shared.owed(self.proxy).await,
            (Promise::Session | Promise::Shared, _) => Owed::default(),
        };
        self.told = ledger.as_of(Duration::ZERO);
    }

    async fn note_write(&mut self, how: How, row: Row, version: Version) -> Result<(), Error> {
        self.model.wrote(row, version);
        self.record(Event::Wrote(how, row, version));
        if self.model.is_in_transaction() {
            return Ok(());
        }
        self.note_told(&[(row, version)]).await
    }

    /// The client has been told that this is written.
    async fn note_told(&self, written: &[(Row, Version)]) -> Result<(), Error> {
        for &(row, version) in written {
            self.progress.ledger.note(row, version);
        }
        match &self.progress.shared {
            Some(shared) => shared.note(self.proxy, written).await,
            None => Ok(()),
        }
    }

    fn note_read(&mut self, how: How, span: Span, shown: &[Shown]) {
        self.tally.reads += 1;
        let port = shown.first().map(|shown| shown.port);
        if let Some(port) = port {
            *self.tally.by_port.entry(port).or_default() += 1;
            let moved = self
                .last_port
                .replace(port)
                .is_some_and(|last| last != port);
            self.tally.moves += usize::from(moved);
        }
        for row in span.rows() {
            let found = shown.iter().find(|shown| shown.row == row);
            if let Some(&found) = found {
                self.record(Event::Read(how, found));
            }
            let version = found.map(|found| found.version);
            let node = if port == Some(self.progress.primary) {
                let told = self.told.get(&row).copied();
                Node::Primary { told }
            } else {
                Node::Replica
            };
            let kept = self.model.read(row, version, node);
            let is_session_promised = !matches!(self.promise, Promise::Within(_));
            match kept {
                Err(violation) if is_session_promised => {
                    self.report(violation);
                    continue;
                }
                Ok(Kept::ButEarly) if is_session_promised => self.tally.early += 1,
                _ => {}
            }
            let Some((owed, kind)) = self.owed.get(row) else {
                continue;
            };
            if version < Some(owed) {
                self.report(Violation {
                    kind,
                    row,
                    shown: version,
                    owed,
                });
            } else if kind == Kind::NotShared && node == Node::Replica {
                self.tally.handed_over += 1;
            }
        }
    }

    fn record(&mut self, event: Event) {
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(event);
    }

    fn report(&mut self, violation: Violation) {
        self.tally.violations += 1;
        if self.tally.findings.len() < FINDINGS_MAX {
            self.tally.findings.push(Finding {
                client: self.number,
                operation: self.tally.operations,
                violation,
                history: self.history.iter().copied().collect(),
            });
        }
    }

    fn protocol(&mut self) -> Protocol {
        Protocol::ALL[self.rng.random_range(0..Protocol::ALL.len())]
    }

    /// The own row, another's, a shared one, or all that are shared.
    fn span(&mut self) -> Span {
        let Mix { clients, .. } = self.mix;
        match self.rng.random_range(0..4) {
            0 => Span::one(Row(self.number)),
            1 => Span::one(Row(self.rng.random_range(0..clients))),
            2 => Span::one(self.shared_row()),
            _ => Span {
                first: clients,
                last: self.mix.rows() - 1,
            },
        }
    }

    fn shared_row(&mut self) -> Row {
        Row(self.rng.random_range(self.mix.clients..self.mix.rows()))
    }

    fn next_own(&mut self) -> (Row, Version) {
        let version = self.next;
        self.next += 1;
        (Row(self.number), version)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding {
            client,
            operation,
            violation,
            history,
        } = self;
        writeln!(
            f,
            "client {client}, operation {operation}: {violation}; its history:"
        )?;
        history
            .iter()
            .try_for_each(|event| writeln!(f, "  {event}"))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Event::Read(how, Shown { row, version, port }) => {
                write!(
                    f,
                    "read row {} at {version} from port {port} ({how:?})",
                    row.0
                )
            }
            Event::Wrote(how, row, version) => {
                write!(f, "wrote row {} as {version} ({how:?})", row.0)
            }
            Event::Began => f.write_str("began a transaction"),
            Event::Committed => f.write_str("committed"),
            Event::RolledBack => f.write_str("rolled back"),
        }
    }
}
