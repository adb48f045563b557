//! One session between a client and servers that say anything, in any order.
//!
//! A case is a script, one event per line. `> Q text\0` is a message of the client's and
//! `< Z I` one of the server's: the type, a space, the body. `>> …` and `<< …` are bytes that
//! need be no message. `<` alone ends the server's connection, `~` has the session's next server be
//! another one that it has used before.
//!
//! What passes on the bytes is the same in short as `proxy::relay`.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::BytesMut;
use tidegate::session::answers::{Answer, Run};
use tidegate::session::pipeline::{Batch, End, PIPELINE_BYTES_MAX, Planned};
use tidegate::session::server::{Params, ServerState};
use tidegate::session::settings::Settings;
use tidegate::session::statements::Registry;
use tidegate::session::{Session, Shared};
use tidegate::sql::Need;
use tidegate::sql::cache::Classifier;
use tidegate::sql::functions::Rules;
use tidegate::wire::frame::header;
use tidegate::wire::message::Status;

use super::text::lines;

/// Events of one script that are played.
const EVENTS_MAX: usize = 200;
/// The shortest message is five bytes long, and none makes the server owe more than this: a Close of
/// the statement that makes room, the Parse that it lacks, a Sync between, and its own answer.
const OWED_PER_MESSAGE_MAX: usize = 4;

pub fn check(script: &[u8]) {
    let mut play = Play::new();
    for event in lines(script).take(EVENTS_MAX) {
        let goes_on = match &*event {
            b"~" => play.change_server(),
            b"<" => play.lose_server(),
            [b'>', b'>', b' ', bytes @ ..] => play.client(bytes),
            [b'<', b'<', b' ', bytes @ ..] => play.server(bytes),
            [b'>', b' ', tag, b' ', body @ ..] => play.client(&frame(*tag, body)),
            [b'<', b' ', tag, b' ', body @ ..] => play.server(&frame(*tag, body)),
            [b'>', b' ', tag] => play.client(&frame(*tag, b"")),
            [b'<', b' ', tag] => play.server(&frame(*tag, b"")),
            _ => true,
        };
        if !goes_on {
            return;
        }
    }
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
    /// More of the pipeline is to come.
    open: bool,
    /// Bytes of a message to the server that are still to come from the client.
    beyond: usize,
    /// The session's settings are being read from the server.
    captures: bool,
    /// What the client has said, in all.
    said: usize,
    /// The client has seen something of the answer.
    answered: bool,
    /// Messages that the client has been sent, and what is left of the last one.
    heard: Stream,
    told: Stream,
}

impl Play {
    fn new() -> Play {
        let shared = Shared {
            classifier: Classifier::new(Rules::default(), 64),
            registry: Registry::new(),
            effects: Default::default(),
            sequence_readers: Default::default(),
        };
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
            open: false,
            beyond: 0,
            captures: false,
            said: 0,
            answered: false,
            heard: Stream::default(),
            told: Stream::default(),
        }
    }

    fn state(&mut self) -> &mut ServerState {
        &mut self.servers[self.current]
    }

    /// `false` when the connection has ended.
    fn client(&mut self, bytes: &[u8]) -> bool {
        self.said += bytes.len();
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
            assert!(owed <= 8 + OWED_PER_MESSAGE_MAX * (self.said / 5), "{owed}");
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
        state.repairable = repairable && end == End::Ready && self.current == 1;
        self.told.takes(&out);
        self.open = end == End::Open;
        self.say();
        true
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
        self.told.owes(self.beyond);
        let mut answer = Answer::default();
        self.session.answer_in_turn(state, &mut answer);
        self.sees(&answer, &[]);
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
            self.pass(n);
            self.beyond -= n;
            if self.beyond > 0 {
                return true;
            }
        }
        if self.state().copies_in() {
            let state = &mut self.servers[self.current];
            let Ok((n, beyond)) = self.session.copy_in(&self.inbox, state) else {
                return false;
            };
            assert!(n <= self.inbox.len());
            self.pass(n);
            self.beyond = beyond;
            self.told.owes(beyond);
        }
        while (self.open || self.state().awaits_sync()) && self.beyond == 0 {
            if !self.session.copy_goes_on(&self.servers[self.current]) {
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
        self.received.extend(bytes);
        let received = std::mem::take(&mut self.received);
        let mut answer = Answer::default();
        let state = &mut self.servers[self.current];
        state.repairable &= !self.answered;
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
        let state = &mut self.servers[self.current];
        if self.captures {
            self.captures = false;
            self.session.inspected(state);
        }
        if self.session.take_misplaced() || !state.is_idle() {
            // It would be run again on the primary; or the session keeps the server.
            return true;
        }
        self.session.take_did();
        if self.session.must_inspect() {
            let mut out = BytesMut::new();
            self.session.say_inspection(state, &mut out);
            self.told.takes(&out);
            self.captures = true;
            return true;
        }
        self.held = self.session.is_pinned();
        true
    }

    /// `false` when that ends the client's connection too.
    fn lose_server(&mut self) -> bool {
        let was_idle = self.session.status() == Status::Idle && !self.session.is_pinned();
        self.session.lost_server();
        assert_eq!(self.session.status(), Status::Idle);
        self.servers[self.current] = server();
        self.received.clear();
        self.told = Stream::default();
        (self.captures, self.held) = (false, false);
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
    head: Vec<u8>,
    rest: usize,
}

impl Stream {
    fn takes(&mut self, mut bytes: &[u8]) {
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
