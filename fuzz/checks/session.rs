//! One session between a client and servers that say anything, in any order.
//!
//! A case is a script, one event per line. `> Q text\0` is a message of the client's and
//! `< Z I` one of the server's: the type, a space, the body. `>> …` and `<< …` are bytes that
//! need be no message. `<` alone ends the server's connection, `~` has the session's next server be
//! another one that it has used before, `*` repeats the event before it a thousand times.
//!
//! A script that begins with a line `=` has no lines of the server's: the servers answer as
//! PostgreSQL does, and the client has to see what one of them alone would have shown it.
//!
//! What passes on the bytes is the same in short as `proxy::relay`.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::BytesMut;
use tidegate::session::answer::{Answer, Run};
use tidegate::session::answers::hear_idle;
use tidegate::session::batch::{Batch, End};
use tidegate::session::params::Params;
use tidegate::session::pipeline::{
    PIPELINE_BYTES_MAX, PIPELINE_MESSAGES_MAX, Planned, may_name_statement,
};
use tidegate::session::repair::Repairable;
use tidegate::session::say::COPY_BROKEN;
use tidegate::session::server::{OWED_MAX, ServerState};
use tidegate::session::settings::Settings;
use tidegate::session::{Session, Shared};
use tidegate::sql::Need;
use tidegate::sql::cache::Classifier;
use tidegate::sql::functions::Rules;
use tidegate::wire::frame::{HEADER, header};
use tidegate::wire::message::Status;

use super::postgres::Postgres;
use super::text::lines;

/// Events of one script that are played, and how many of them are repeated how often.
const EVENTS_MAX: usize = 200;
const REPEATS_MAX: usize = 4;
const REPEATED: usize = 1000;
/// No message makes the server owe more than this: a Close of the statement that makes room, the
/// Parse that it lacks, a Sync between, and its own answer.
const OWED_PER_MESSAGE_MAX: usize = 4;

pub fn check(script: &[u8]) {
    match script.strip_prefix(b"=\n") {
        Some(script) => with_postgres(script),
        None => with_anything(script),
    }
}

fn with_anything(script: &[u8]) {
    let mut play = Play::new();
    let mut last: Vec<u8> = Vec::new();
    let mut repeats = REPEATS_MAX;
    for event in lines(script).take(EVENTS_MAX) {
        if event == b"*" && repeats > 0 {
            repeats -= 1;
            let goes_on = match &*last {
                [b'>', rest @ ..] => play.client(&bytes(rest).repeat(REPEATED)),
                [b'<', rest @ ..] => play.server(&bytes(rest).repeat(REPEATED)),
                _ => true,
            };
            if !goes_on {
                return;
            }
            continue;
        }
        let goes_on = match &*event {
            b"~" => play.change_server(),
            b"<" => play.lose_server(),
            [b'>', rest @ ..] => play.client(&bytes(rest)),
            [b'<', rest @ ..] => play.server(&bytes(rest)),
            _ => true,
        };
        if !goes_on {
            return;
        }
        last = event;
    }
}

/// What follows the first sign of a line: a message, or bytes that need be none.
fn bytes(rest: &[u8]) -> Vec<u8> {
    match rest {
        [b'>' | b'<', b' ', bytes @ ..] => bytes.to_vec(),
        [b' ', tag, b' ', body @ ..] => frame(*tag, body),
        [b' ', tag] => frame(*tag, b""),
        _ => Vec::new(),
    }
}

/// Plays a script with servers that are as PostgreSQL, and again with one of them alone.
fn with_postgres(script: &[u8]) {
    let mut play = Play::new();
    let mut alone = Postgres::default();
    let mut servers: [Postgres; 2] = Default::default();
    let mut expected = Vec::new();
    for event in lines(script).take(EVENTS_MAX) {
        let [b'>', rest @ ..] = &*event else {
            if event == b"~" {
                play.change_server();
            }
            continue;
        };
        let bytes = bytes(rest);
        if is_known_to_differ(&bytes) {
            return;
        }
        let Some(answer) = alone.hear(&bytes) else {
            return;
        };
        if alone.may_differ() {
            return;
        }
        expected.extend(answer);
        if !play.client(&bytes) {
            return;
        }
        loop {
            let told = std::mem::take(&mut play.told.bytes);
            if told.is_empty() {
                break;
            }
            let answer = servers[play.current].hear(&told);
            let answer = answer.expect("what the client says, and no more");
            assert!(play.server(&answer), "the session goes on");
            assert_eq!(play.lost, 0, "the server has done nothing wrong");
        }
        let quiet = play.is_quiet();
        let seen = &play.heard.bytes;
        assert!(
            expected.starts_with(seen),
            "seen {}\nexpected {}",
            seen.escape_ascii(),
            expected.escape_ascii()
        );
        if play.inbox.is_empty() && !play.open && quiet {
            assert_eq!(
                seen.escape_ascii().to_string(),
                expected.escape_ascii().to_string()
            );
        }
    }
}

/// Names that only servers may have. DEALLOCATE among other statements or in a named statement, where
/// servers' own names are not put in; DISCARD likewise, where it is planned for as if it came last.
fn is_known_to_differ(bytes: &[u8]) -> bool {
    let has = |word: &[u8]| {
        bytes
            .windows(word.len())
            .any(|part| part.eq_ignore_ascii_case(word))
    };
    let forgets = has(b"deallocate") || has(b"discard");
    let is_unnamed = bytes.starts_with(b"P") && bytes.get(HEADER) == Some(&0);
    has(b"_tidegate_") || forgets && (has(b";") || !bytes.starts_with(b"Q") && !is_unnamed)
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend((body.len() as i32 + 4).to_be_bytes());
    frame.extend(body);
    frame
}

/// One client's connection, and the servers that it is given.
struct Play {
    session: Session,
    batch: Batch,
    /// What the client has said and is not dealt with.
    inbox: Vec<u8>,
    servers: [ServerState; 2],
    /// The server that has been told something and has not answered it all, or is held.
    held: bool,
    current: usize,
    /// What the server has said and is not dealt with.
    received: Vec<u8>,
    /// A batch that is planned, and how it ends, while the server prepares what it uses.
    unsaid: Option<End>,
    /// More of the pipeline is to come.
    open: bool,
    /// Bytes of a message to the server that are still to come from the client.
    beyond: usize,
    /// The server is asked what the session is.
    inspects: bool,
    /// The client has seen something of the answer; and what it is to see when the server says more.
    answered: bool,
    unseen: Answer,
    /// Messages that the client has been sent, and what is left of the last one.
    heard: Stream,
    told: Stream,
    /// How many servers were lost.
    lost: usize,
}

impl Play {
    fn new() -> Play {
        let shared = Shared::new(Classifier::new(Rules::default(), 64));
        let settings = Settings::from_startup([("application_name", "play")]);
        let session = Session::new(Arc::new(shared), "main/app/app", settings, params());
        Play {
            session,
            batch: Batch::new(),
            inbox: Vec::new(),
            servers: std::array::from_fn(|_| server()),
            held: false,
            current: 0,
            received: Vec::new(),
            unsaid: None,
            open: false,
            beyond: 0,
            inspects: false,
            answered: false,
            unseen: Answer::default(),
            heard: Stream::default(),
            told: Stream::default(),
            lost: 0,
        }
    }

    fn state(&mut self) -> &mut ServerState {
        &mut self.servers[self.current]
    }

    /// `false` when the connection has ended.
    fn client(&mut self, bytes: &[u8]) -> bool {
        self.inbox.extend(bytes);
        self.go_on()
    }

    fn go_on(&mut self) -> bool {
        loop {
            let before = (self.inbox.len(), self.held, self.open);
            let went = match self.held && !self.is_quiet() || self.open {
                true => self.pass_to_server(),
                false => self.begin(),
            };
            let owed = self.servers[self.current].owed();
            assert!(owed <= OWED_MAX + OWED_PER_MESSAGE_MAX * PIPELINE_MESSAGES_MAX);
            if !went {
                return false;
            }
            if before == (self.inbox.len(), self.held, self.open) {
                return true;
            }
        }
    }

    fn is_quiet(&mut self) -> bool {
        self.beyond == 0 && self.state().is_quiet()
    }

    /// Plans a batch and says it to a server.
    fn begin(&mut self) -> bool {
        let end = match self.session.plan(&self.inbox, &mut self.batch) {
            Err(fault) => {
                assert_eq!(fault.sqlstate().len(), 5);
                return false;
            }
            Ok(Planned::Terminate) => return false,
            Ok(Planned::NeedMore) => {
                assert!(self.batch.len <= self.inbox.len());
                assert!(self.batch.len <= PIPELINE_BYTES_MAX + (1 << 20));
                return true;
            }
            Ok(Planned::Batch(end)) => end,
        };
        assert_eq!(self.batch.end(), Some(end));
        assert!(self.batch.len <= self.inbox.len());
        if self.batch.is_empty() {
            self.beyond = 0;
            self.drop_batch();
            return true;
        }
        let local = !self.held && !self.session.is_failed() && end == End::Ready;
        if local && self.session.is_local(&self.batch) {
            let mut out = BytesMut::new();
            self.session.answer_locally(&self.batch, &mut out);
            self.heard.takes(&out);
            self.drop_batch();
            return true;
        }
        (self.held, self.answered) = (true, false);
        let mut out = BytesMut::new();
        let state = &mut self.servers[self.current];
        if !self.session.say_settings(state, &mut out) {
            let mut shown = BytesMut::new();
            self.session.show_params(state, &mut shown);
            self.answered = !shown.is_empty();
            self.heard.takes(&shown);
        }
        let repairable = self.batch.need == Need::Read && self.session.status() == Status::Idle;
        state.repairable = match repairable && end == End::Ready && self.current == 1 {
            true => Repairable::All,
            false => Repairable::No,
        };
        self.session.say_sequences(&self.batch, state, &mut out);
        let missing = self.session.say_missing(&self.batch, state, &mut out);
        self.told.takes(&out);
        self.unsaid = Some(end);
        if !missing {
            self.say_planned();
        }
        true
    }

    fn say_planned(&mut self) {
        if let Some(end) = self.unsaid.take() {
            self.open = end == End::Open;
            self.say();
        }
    }

    fn say(&mut self) {
        self.session.note(&self.batch);
        let mut out = BytesMut::new();
        let state = &mut self.servers[self.current];
        let direct = self.session.say(&self.batch, &self.inbox, state, &mut out);
        if direct {
            assert!(out.is_empty());
            out.extend_from_slice(&self.inbox[..self.batch.len]);
        }
        self.told.takes(&out);
        self.beyond = self.batch.beyond;
        if !self.session.swallows_rest() {
            self.told.owes(self.beyond);
        }
        self.session.answer_in_turn(state, &mut self.unseen);
        if self.open {
            let answer = std::mem::take(&mut self.unseen);
            self.sees(&answer, &[]);
        }
        self.drop_batch();
    }

    fn drop_batch(&mut self) {
        self.inbox.drain(..self.batch.len);
        self.batch.clear();
    }

    /// Passes on what belongs to the exchange under way.
    fn pass_to_server(&mut self) -> bool {
        if self.beyond > 0 {
            let n = self.beyond.min(self.inbox.len());
            if self.session.swallows_rest() {
                assert!(self.told.is_between_messages());
                self.inbox.drain(..n);
            } else {
                self.pass(n);
            }
            self.beyond -= n;
            if self.beyond > 0 {
                return true;
            }
        }
        if self.state().copies_in() {
            self.session.unplan(&mut self.batch);
            let state = &mut self.servers[self.current];
            let Ok(part) = self.session.copy_in(&self.inbox, state) else {
                return false;
            };
            assert!(part.len <= self.inbox.len());
            self.pass(part.len);
            self.beyond = part.beyond;
            self.told.owes(part.beyond);
            if part.breaks {
                assert_eq!(part.beyond, 0);
                self.told.takes(COPY_BROKEN);
            }
        }
        while (self.open || self.state().awaits_sync()) && self.beyond == 0 {
            let state = &self.servers[self.current];
            if !self.session.copy_goes_on(state) || !state.may_owe_more() {
                break;
            }
            let next = self.inbox.get(self.batch.len);
            if next.is_some_and(|&tag| may_name_statement(tag)) && state.may_forget() {
                break;
            }
            match self.session.plan(&self.inbox, &mut self.batch) {
                Err(_) | Ok(Planned::Terminate) => return false,
                Ok(Planned::NeedMore) => break,
                Ok(Planned::Batch(end)) => {
                    self.say();
                    self.open = end == End::Open;
                }
            }
        }
        self.after_an_exchange()
    }

    fn pass(&mut self, n: usize) {
        let bytes: Vec<u8> = self.inbox.drain(..n).collect();
        self.told.takes(&bytes);
    }

    /// `false` when the connection has ended.
    fn server(&mut self, bytes: &[u8]) -> bool {
        if !self.held {
            // It is in a pool, and what it says there is looked at before it is lent again.
            if !hear_idle(self.state(), bytes) {
                *self.state() = server();
            }
            return true;
        }
        self.received.extend(bytes);
        let received = std::mem::take(&mut self.received);
        let mut answer = std::mem::take(&mut self.unseen);
        let state = &mut self.servers[self.current];
        if self.answered {
            state.repairable = Repairable::No;
        }
        let heard = self.session.hear(state, &received, &mut answer);
        self.sees(&answer, &received);
        match heard {
            Ok(n) => {
                self.received = received[n..].to_vec();
                self.after_an_exchange() && self.go_on()
            }
            Err(fault) => {
                assert!(!fault.to_string().is_empty());
                self.lose_server()
            }
        }
    }

    /// The client is sent an answer: stretches of what was received, in their order, none twice.
    fn sees(&mut self, answer: &Answer, received: &[u8]) {
        let (mut at, mut own_at) = (0, 0);
        let mut bytes = Vec::new();
        for run in &answer.runs {
            bytes.extend(match run {
                Run::Server(range) => {
                    assert!(at <= range.start && range.start < range.end);
                    at = range.end;
                    &received[range.clone()]
                }
                Run::Own(range) => {
                    assert!(own_at == range.start && range.start < range.end);
                    own_at = range.end;
                    &answer.own[range.clone()]
                }
            });
        }
        assert_eq!(answer.is_empty(), bytes.is_empty());
        self.answered |= !bytes.is_empty();
        self.heard.takes(&bytes);
    }

    fn after_an_exchange(&mut self) -> bool {
        if !self.held || self.open || !self.is_quiet() {
            return true;
        }
        if self.unsaid.is_some() {
            self.say_planned();
            return true;
        }
        let state = &mut self.servers[self.current];
        if self.inspects {
            self.inspects = false;
            self.session.inspected(state);
        }
        if state.misplaced.take().is_some() || !state.is_idle() {
            // It would be run again on the primary; or the session keeps the server.
            return true;
        }
        self.session.take_did();
        if self.session.must_inspect() {
            let mut out = BytesMut::new();
            self.session.say_inspection(state, &mut out);
            self.told.takes(&out);
            self.inspects = true;
            return true;
        }
        self.held = self.session.is_pinned();
        true
    }

    /// `false` when that ends the client's connection too.
    fn lose_server(&mut self) -> bool {
        let was_idle = self.session.status() == Status::Idle && !self.session.is_pinned();
        if self.unsaid.take().is_some() {
            self.session.forget_batch(&self.batch);
            self.drop_batch();
        }
        self.session.lost_server();
        assert_eq!(self.session.status(), Status::Idle);
        self.servers[self.current] = server();
        self.lost += 1;
        self.unseen.clear();
        self.received.clear();
        self.told = Stream::default();
        (self.inspects, self.held) = (false, false);
        was_idle && !self.open && self.beyond == 0 && self.heard.is_between_messages()
    }

    /// Other sessions' servers come and go between exchanges only.
    fn change_server(&mut self) -> bool {
        if !self.held && !self.open && self.received.is_empty() {
            self.current = 1 - self.current;
        }
        true
    }
}

/// What one end is sent: messages, whole, one after the other.
#[derive(Default)]
struct Stream {
    bytes: Vec<u8>,
    head: Vec<u8>,
    rest: usize,
}

impl Stream {
    fn takes(&mut self, mut bytes: &[u8]) {
        self.bytes.extend(bytes);
        while !bytes.is_empty() {
            let n = self.rest.min(bytes.len());
            self.rest -= n;
            bytes = &bytes[n..];
            if let Some((&first, rest)) = bytes.split_first() {
                self.head.push(first);
                bytes = rest;
                if let Some(head) = header(&self.head).expect("a message") {
                    self.rest = head.len - self.head.len();
                    self.head.clear();
                }
            }
        }
    }

    /// The rest of the last message has still to come from the client.
    fn owes(&self, beyond: usize) {
        assert!(beyond == 0 || self.rest == beyond);
    }

    fn is_between_messages(&self) -> bool {
        self.rest == 0 && self.head.is_empty()
    }
}

fn params() -> Params {
    let pair = |name: &str, value: &str| (name.as_bytes().into(), value.as_bytes().into());
    Params::new([
        pair("client_encoding", "UTF8"),
        pair("standard_conforming_strings", "on"),
    ])
}

fn server() -> ServerState {
    const STATEMENTS: NonZeroUsize = NonZeroUsize::new(2).unwrap();
    ServerState::new(params(), STATEMENTS)
}
