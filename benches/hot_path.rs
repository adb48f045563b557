//! Runs one operation of the hot path so often, for its instructions to be counted; no sockets, no
//! clock. `tests/instructions.rs` runs it under valgrind; by hand:
//!
//!   cargo run --release --example hot_path              the operations' names
//!   cargo run --release --example hot_path NAME COUNT

use std::cell::Cell;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tidegate::config::Level;
use tidegate::session::answer::Answer;
use tidegate::session::batch::{Batch, End};
use tidegate::session::catalog;
use tidegate::session::consistency::{Clock, Floors, Incarnation, Lsn, NodeId, Replica};
use tidegate::session::effects::Effects;
use tidegate::session::params::Params;
use tidegate::session::pipeline::Planned;
use tidegate::session::route::{Candidate, Moment, Policy, Serving, read_route};
use tidegate::session::server::ServerState;
use tidegate::session::settings::Settings;
use tidegate::session::{Session, Shared};
use tidegate::sql::Need;
use tidegate::sql::cache::Classifier;
use tidegate::sql::catalog::Catalog;
use tidegate::sql::functions::Rules;
use tidegate::wire::encode;

// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An operation: does all that has to be done once, and then the rest so many times.
type Operation = fn(usize);

const OPERATIONS: &[(&str, Operation)] = &[
    ("select", select),
    ("select_literal", select_literal),
    ("prepared", prepared),
    ("unnamed", unnamed),
    ("update", update),
    ("transaction", transaction),
    ("rows", rows),
    ("class_short", |count| classify(&[short_text()], count)),
    ("class_long", |count| classify(&[long_text()], count)),
    ("class_lexed", |count| classify(&many_texts(), count)),
    ("route", |count| route(true, count)),
    ("route_choice", |count| route(false, count)),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let chosen = match &arguments[..] {
        [name, count] => OPERATIONS
            .iter()
            .find(|(known, _)| known == name)
            .zip(count.parse::<usize>().ok()),
        _ => None,
    };
    let Some(((_, operation), count)) = chosen else {
        let names: Vec<_> = OPERATIONS.iter().map(|(name, _)| *name).collect();
        eprintln!("hot_path: give the name of an operation and how often it is done; there are");
        eprintln!("{}", names.join("\n"));
        return ExitCode::FAILURE;
    };
    operation(count);
    ExitCode::SUCCESS
}

fn select(count: usize) {
    let mut talk = Talk::new();
    let said = query(&short_text());
    let answer = [row_description(), data_row(), done("SELECT 1"), ready(b'I')].concat();
    for _ in 0..count {
        talk.exchange(&said, &answer, Need::Read);
    }
}

/// With another literal each time, by two texts in turn.
fn select_literal(count: usize) {
    let mut talk = Talk::new();
    let said = [12345, 678].map(|key| query(&format!("SELECT v FROM accounts WHERE id = {key}")));
    let answer = [row_description(), data_row(), done("SELECT 1"), ready(b'I')].concat();
    for i in 0..count {
        talk.exchange(&said[i % 2], &answer, Need::Read);
    }
}

fn prepared(count: usize) {
    let mut talk = Talk::new();
    let parse = [parse("s", &short_text()), sync()].concat();
    let parsed = [frame(b'1', b""), frame(b't', b"\0\0")].concat();
    let parsed = [parsed, row_description(), ready(b'I')].concat();
    talk.exchange(&parse, &parsed, Need::Read);
    let said = [bind("s"), execute(), sync()].concat();
    let answer = [frame(b'2', b""), data_row(), done("SELECT 1"), ready(b'I')].concat();
    for _ in 0..count {
        talk.exchange(&said, &answer, Need::Read);
    }
}

fn unnamed(count: usize) {
    let mut talk = Talk::new();
    let said = [
        parse("", &short_text()),
        bind(""),
        frame(b'D', b"P\0"),
        execute(),
        sync(),
    ]
    .concat();
    let answer = [
        frame(b'1', b""),
        frame(b'2', b""),
        row_description(),
        data_row(),
        done("SELECT 1"),
        ready(b'I'),
    ]
    .concat();
    for _ in 0..count {
        talk.exchange(&said, &answer, Need::Read);
    }
}

fn update(count: usize) {
    let mut talk = Talk::new();
    let said = query("UPDATE accounts SET balance = balance + 17 WHERE id = 12345");
    let answer = [done("UPDATE 1"), ready(b'I')].concat();
    for _ in 0..count {
        talk.exchange(&said, &answer, Need::Write);
    }
}

/// BEGIN, an UPDATE, COMMIT.
fn transaction(count: usize) {
    let mut talk = Talk::new();
    let parts = [
        ("BEGIN", "BEGIN", b'T', Need::Transaction),
        (
            "UPDATE accounts SET balance = balance + 17 WHERE id = 12345",
            "UPDATE 1",
            b'T',
            Need::Write,
        ),
        ("COMMIT", "COMMIT", b'I', Need::Transaction),
    ]
    .map(|(sql, tag, status, need)| (query(sql), [done(tag), ready(status)].concat(), need));
    for _ in 0..count {
        for (said, answer, need) in &parts {
            talk.exchange(said, answer, *need);
        }
    }
}

/// An answer of 1000 rows is heard.
fn rows(count: usize) {
    let mut talk = Talk::new();
    let said = query(&short_text());
    let rows = data_row().repeat(1000);
    let answer = [row_description(), rows, done("SELECT 1000"), ready(b'I')].concat();
    for _ in 0..count {
        talk.exchange(&said, &answer, Need::Read);
    }
}

/// The texts in turn.
fn classify(texts: &[String], count: usize) {
    let classifier = Classifier::new(Rules::default(), 1000);
    for sql in texts.iter().cycle().take(count) {
        let class = classifier.classify(black_box(sql.as_bytes()), true);
        assert_eq!(class.need, Need::Read);
    }
}

/// The way of a read among three replicas, of a session that has read on one of them or on none.
fn route(has_read: bool, count: usize) {
    let primary = Clock::new();
    let nodes: Vec<_> = (0..3).map(|id| Rc::new(Node::new(id))).collect();
    let mut floors = Floors::default();
    floors.wrote(&primary);
    let tick = primary.begin();
    primary.complete(tick, Lsn(90));
    if has_read {
        floors.read_replica(&primary, &*nodes[1], Incarnation(1), nodes[1].clock().now());
    }
    let policy = Policy {
        level: Level::Session,
        max_lag: None,
        share: false,
        gate_wait: Duration::from_millis(10),
        tried: Default::default(),
    };
    for random in 0..count as u64 {
        let (floors, nodes) = (black_box(&floors), black_box(&nodes));
        black_box(read_route(floors, &policy, &primary, nodes, None, random));
    }
}

/// A client's session and a server, without what is between them.
struct Talk {
    session: Session,
    server: ServerState,
    batch: Batch,
    answer: Answer,
    to_server: BytesMut,
}

impl Talk {
    fn new() -> Talk {
        let shared = Shared::new(Classifier::new(Rules::default(), 1000));
        // The database has been asked for its catalog, as it is before its first statement.
        let (catalog, effects) = (Catalog::read([], None), Effects::default());
        let known: Arc<catalog::Known> = Arc::default();
        assert!(known.learn(Arc::new(catalog), Some(Arc::new(effects)), 0));
        let params = Params::new([]);
        let mut session = Session::new(
            Arc::new(shared),
            "main\0app\0app",
            Settings::default(),
            params.clone(),
        );
        session.set_catalog(known);
        Talk {
            session,
            server: ServerState::new(params, NonZeroUsize::new(500).expect("not 0")),
            batch: Batch::new(),
            answer: Answer::default(),
            to_server: BytesMut::with_capacity(4096),
        }
    }

    /// A batch from its first byte to the last of its answer, in the order in which
    /// `proxy::relay` does it.
    fn exchange(&mut self, said: &[u8], answer: &[u8], need: Need) {
        let (session, server) = (&mut self.session, &mut self.server);
        let planned = session.plan(black_box(said), &mut self.batch);
        assert_eq!(planned, Ok(Planned::Batch(End::Ready)));
        assert_eq!(self.batch.need, need);
        assert!(!server.settings.differs_in_identity(session.settings()));
        if !session.say_settings(server, &mut self.to_server) {
            session.show_params(server, &mut self.answer.own);
        }
        session.say_sequences(&self.batch, server, &mut self.to_server);
        assert!(!session.say_missing(&self.batch, server, &mut self.to_server));
        session.note(&self.batch);
        black_box(session.say(&self.batch, said, server, &mut self.to_server));
        session.answer_in_turn(server, &mut self.answer);
        self.to_server.clear();
        let heard = session.hear(server, black_box(answer), &mut self.answer);
        assert_eq!(heard, Ok(answer.len()));
        assert!(server.is_quiet());
        black_box(&self.answer.runs);
        self.answer.clear();
        self.batch.clear();
        black_box(session.take_did());
    }
}

struct Node {
    id: u32,
    lsn: Cell<u64>,
    clock: Clock,
}

impl Node {
    fn new(id: u32) -> Node {
        Node {
            id,
            lsn: Cell::new(100),
            clock: Clock::new(),
        }
    }
}

impl Replica for Node {
    fn id(&self) -> NodeId {
        NodeId(self.id)
    }
    fn position(&self) -> Option<(Incarnation, Lsn)> {
        Some((Incarnation(1), Lsn(self.lsn.get())))
    }
    fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl Candidate for Node {
    fn serving(&self) -> Serving {
        Serving::Yes
    }
    fn load(&self) -> f32 {
        1.0
    }
    fn is_near(&self) -> bool {
        false
    }
    fn lag(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
    fn as_of(&self) -> Moment {
        Moment(0)
    }
}

/// Of about 60 bytes.
fn short_text() -> String {
    "SELECT balance, name FROM accounts WHERE id = 12345 LIMIT 10".to_owned()
}

/// More texts of about 60 bytes than a thread remembers, of one normal form: each is lexed.
fn many_texts() -> Vec<String> {
    let text = |i| format!("SELECT balance, name FROM accounts WHERE share > {i}.5 LIMIT 10");
    (1000..2000).map(text).collect()
}

/// Of about 1 kB, as a report's may be.
fn long_text() -> String {
    let sums: Vec<_> = (1..=12)
        .map(|month| {
            format!("sum(CASE WHEN extract(month FROM o.at) = {month} THEN o.total ELSE 0 END) AS m{month}")
        })
        .collect();
    format!(
        "SELECT c.name, {} FROM orders o JOIN customers c ON c.id = o.customer WHERE o.at >= '2026-01-01' GROUP BY c.name",
        sums.join(", ")
    )
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend((body.len() as u32 + 4).to_be_bytes());
    frame.extend(body);
    frame
}

fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', format!("{sql}\0").as_bytes())
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

/// With one value, as a text.
fn bind(statement: &str) -> Vec<u8> {
    let body = format!("\0{statement}\0\0\0\0\x01\0\0\0\x0512345\0\0");
    frame(b'B', body.as_bytes())
}

fn execute() -> Vec<u8> {
    frame(b'E', b"\0\0\0\0\0")
}

fn sync() -> Vec<u8> {
    encode::SYNC.to_vec()
}

/// Of two columns.
fn row_description() -> Vec<u8> {
    let column = |name: &str| [name.as_bytes(), &[0; 19]].concat();
    let body = [b"\0\x02".to_vec(), column("balance"), column("name")].concat();
    frame(b'T', &body)
}

fn data_row() -> Vec<u8> {
    frame(b'D', b"\0\x02\0\0\0\x0242\0\0\0\x04Anna")
}

fn done(tag: &str) -> Vec<u8> {
    frame(b'C', format!("{tag}\0").as_bytes())
}

fn ready(status: u8) -> Vec<u8> {
    frame(b'Z', &[status])
}
