//! Sessions with scripted peers: what the client said goes in, what the server was told comes out.

use std::num::NonZeroUsize;

use bytes::BytesMut;

use super::answer::{Answer, Run};
use super::answers::{ServerFault, hear_idle};
use super::batch::{Batch, End};
use super::pipeline::{PIPELINE_MESSAGES_MAX, Planned};
use super::server::ServerState;
use super::*;
use crate::sql::functions::Rules;
use crate::sql::{Isolation, Need, Pin, Why};
use crate::wire::frame::{body, header};
use crate::wire::{encode, message};

mod explain;
mod repair;
mod schema;
mod settings;
mod statements;
mod transaction;

const STATEMENTS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

fn params(pairs: &[(&str, &str)]) -> Params {
    Params::new(
        pairs
            .iter()
            .map(|(n, v)| (n.as_bytes().into(), v.as_bytes().into())),
    )
}

fn session() -> Session {
    session_with(params(&[]))
}

fn session_with(params: Params) -> Session {
    let shared = Shared::new(Classifier::new(Rules::default(), 100));
    Session::new(
        Arc::new(shared),
        "main/app/app",
        Settings::default(),
        params,
    )
}

fn server() -> ServerState {
    ServerState::new(params(&[]), STATEMENTS)
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend((body.len() as i32 + 4).to_be_bytes());
    frame.extend(body);
    frame
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

fn bind(name: &str) -> Vec<u8> {
    frame(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes())
}

fn execute() -> Vec<u8> {
    frame(b'E', b"\0\0\0\0\0")
}

const SYNC: &[u8] = encode::SYNC;

/// What the session tells the server when the client says this: message types and bodies.
fn told(session: &mut Session, server: &mut ServerState, client: &[u8]) -> Vec<String> {
    told_after(session, server, client, |_| ())
}

/// The same, after something has been done with what was planned.
fn told_after(
    session: &mut Session,
    server: &mut ServerState,
    client: &[u8],
    done: impl FnOnce(&mut Batch),
) -> Vec<String> {
    let mut batch = Batch::new();
    assert!(matches!(
        session.plan(client, &mut batch),
        Ok(Planned::Batch(_))
    ));
    done(&mut batch);
    let mut out = BytesMut::new();
    session.say_settings(server, &mut out);
    session.say_sequences(&batch, server, &mut out);
    session.say_missing(&batch, server, &mut out);
    if session.say(&batch, client, server, &mut out) {
        out.extend_from_slice(client);
    }
    let mut told = Vec::new();
    while let Some(head) = header(&out).unwrap() {
        let frame = out.split_to(head.len);
        told.push(format!(
            "{} {}",
            frame[0] as char,
            body(&frame).escape_ascii()
        ));
    }
    told
}

/// What the client hears when the server says this: message types.
fn heard(session: &mut Session, server: &mut ServerState, said: &[Vec<u8>]) -> String {
    let said = said.concat();
    let mut answer = Answer::default();
    session.answer_in_turn(server, &mut answer);
    assert_eq!(session.hear(server, &said, &mut answer), Ok(said.len()));
    let mut bytes = BytesMut::new();
    for run in &answer.runs {
        bytes.extend_from_slice(match run {
            Run::Server(at) => &said[at.clone()],
            Run::Own(at) => &answer.own[at.clone()],
        });
    }
    let mut tags = String::new();
    while let Some(head) = header(&bytes).unwrap() {
        tags.push(bytes.split_to(head.len)[0] as char);
    }
    tags
}

fn tags(said: &[String]) -> String {
    said.iter().map(|message| &message[..1]).collect()
}

/// The answers to a Parse and a Describe of a statement that returns columns of these names; none
/// returns nothing.
fn prepared(columns: &[u8]) -> Vec<Vec<u8>> {
    let mut row = (columns.len() as i16).to_be_bytes().to_vec();
    for &name in columns {
        row.extend([name, 0]);
        row.extend([0; 18]);
    }
    let returned = match columns {
        [] => frame(b'n', b""),
        _ => frame(b'T', &row),
    };
    vec![frame(b'1', b""), frame(b't', b"\0\0"), returned]
}

fn done(tag: &str) -> Vec<u8> {
    frame(b'C', format!("{tag}\0").as_bytes())
}

fn ready(status: &str) -> Vec<u8> {
    frame(b'Z', status.as_bytes())
}

fn failed() -> Vec<u8> {
    frame(b'E', b"SERROR\0VERROR\0C22012\0Mdivision by zero\0\0")
}

#[test]
fn the_clients_own_bytes_are_passed_on_where_no_name_changes() {
    let (mut session, mut server) = (session(), server());
    let client = frame(b'Q', b"SELECT 1\0");
    let mut batch = Batch::new();
    assert_eq!(
        session.plan(&client, &mut batch),
        Ok(Planned::Batch(End::Ready))
    );
    assert_eq!((batch.need, batch.len), (Need::Read, client.len()));
    assert!(session.say(&batch, &client, &mut server, &mut BytesMut::new()));
}

#[test]
fn a_batch_is_planned_once_however_it_arrives() {
    let client = [parse("s", "SELECT 1"), bind("s"), execute(), SYNC.to_vec()].concat();
    let (mut session, mut batch) = (session(), Batch::new());
    for end in 0..client.len() {
        assert_eq!(
            session.plan(&client[..end], &mut batch),
            Ok(Planned::NeedMore)
        );
    }
    assert_eq!(
        session.plan(&client, &mut batch),
        Ok(Planned::Batch(End::Ready))
    );
    assert_eq!(batch.len, client.len());
}

/// Else the client of the next session would get a row that nobody asked for, and take the answers
/// behind it for the rest of that row.
#[test]
fn an_idle_server_says_only_what_it_may_say_at_any_time() {
    let status = frame(b'S', b"TimeZone\0UTC\0");
    let (notice, row) = (frame(b'N', b"SNOTICE\0\0"), frame(b'D', b"\0\0"));
    let harmless = [notice.clone(), status.clone(), frame(b'A', b"")].concat();
    let mut server = server();
    assert!(hear_idle(&mut server, &harmless));
    assert_eq!(server.params.get("TimeZone"), Some(&b"UTC"[..]));
    let bad = [
        row.clone(),
        row[..5].to_vec(),
        notice[..8].to_vec(),
        ready("I"),
        failed(),
    ];
    for said in bad {
        assert!(!hear_idle(&mut server, &[harmless.clone(), said].concat()));
    }
}

#[test]
fn what_fails_ahead_of_the_batch_is_told_in_its_turn() {
    let (mut session, mut first) = (session(), server());
    let client = [parse("s", "SELECT * FROM t"), SYNC.to_vec()].concat();
    told(&mut session, &mut first, &client);
    heard(
        &mut session,
        &mut first,
        &[prepared(b"a"), vec![ready("I")]].concat(),
    );
    let mut second = server();
    second.status = Status::InTransaction;
    let run = [bind("s"), execute(), SYNC.to_vec()].concat();
    let said = told(&mut session, &mut second, &run);
    assert_eq!(tags(&said), "PDSBES");
    let aborted = frame(b'E', b"SERROR\0VERROR\0C25P02\0Maborted\0\0");
    // It is not prepared, so the batch prepares it again; the server refuses everything by now.
    let answers = [failed(), ready("E"), aborted, ready("E")];
    let mut answer = Answer::default();
    let said = answers.concat();
    assert_eq!(
        session.hear(&mut second, &said, &mut answer),
        Ok(said.len())
    );
    assert!(answer.own.windows(5).any(|part| part == b"22012"));
}

/// Though the proxy ends the pipeline itself, where it goes on elsewhere.
#[test]
fn what_fails_for_a_message_in_a_pipeline_is_told() {
    let (mut session, mut first) = (session(), server());
    let client = [parse("s", "SELECT * FROM t"), SYNC.to_vec()].concat();
    told(&mut session, &mut first, &client);
    let answers = [prepared(b"a"), vec![ready("I")]].concat();
    heard(&mut session, &mut first, &answers);
    let (mut second, mut batch) = (server(), Batch::new());
    let client = [frame(b'D', b"Ss\0"), encode::FLUSH.to_vec()].concat();
    let planned = session.plan(&client, &mut batch);
    assert_eq!(planned, Ok(Planned::Batch(End::Open)));
    let mut out = BytesMut::new();
    session.say(&batch, &client, &mut second, &mut out);
    session.say_sync(&mut second, &mut out);
    let answers = [failed(), ready("I")];
    assert_eq!(heard(&mut session, &mut second, &answers), "E");
    assert!(session.is_failed() && second.is_idle());
}

#[test]
fn rows_are_passed_on_wherever_they_are_cut() {
    let row = |n: usize| {
        frame(
            b'D',
            &[&[0, 1, 0, 0, 0, n as u8][..], &vec![b'x'; n]].concat(),
        )
    };
    let rows = [row(3), row(0), row(200)].concat();
    let said = [frame(b'T', b"\0\0"), rows, done("SELECT 3"), ready("I")].concat();
    for cut in 0..said.len() {
        let (mut session, mut server) = (session(), server());
        told(
            &mut session,
            &mut server,
            &frame(b'Q', b"SELECT a FROM t\0"),
        );
        let (mut seen, mut from) = (Vec::new(), 0);
        for end in [cut, said.len()] {
            let mut answer = Answer::default();
            let heard = session.hear(&mut server, &said[from..end], &mut answer);
            for run in &answer.runs {
                let Run::Server(at) = run else {
                    panic!("{run:?}");
                };
                seen.extend_from_slice(&said[from..][at.clone()]);
            }
            from += heard.unwrap();
        }
        assert_eq!(
            seen.escape_ascii().to_string(),
            said.escape_ascii().to_string()
        );
        assert!(server.is_idle());
    }
}

#[test]
fn a_pipeline_is_planned_in_parts_of_bounded_length() {
    let close = frame(b'C', b"Sx\0");
    let client = close.repeat(2 * PIPELINE_MESSAGES_MAX);
    let (mut session, mut batch) = (session(), Batch::new());
    let planned = session.plan(&client, &mut batch);
    assert_eq!(planned, Ok(Planned::Batch(End::Open)));
    assert_eq!(batch.len, PIPELINE_MESSAGES_MAX * close.len());
}

/// A server would take the values for messages.
#[test]
fn what_is_left_of_a_long_message_that_is_skipped_is_swallowed() {
    let (mut session, mut server) = (session(), server());
    let mut giant = frame(b'B', &[b"\0\0".to_vec(), vec![b'S'; 2 << 20]].concat());
    giant.truncate(64 << 10);
    let plan = |session: &mut Session, server: &mut ServerState| {
        let (mut batch, mut out) = (Batch::new(), BytesMut::new());
        let planned = session.plan(&giant, &mut batch);
        assert_eq!(planned, Ok(Planned::Batch(End::Open)));
        assert!(batch.beyond > 0);
        session.say(&batch, &giant, server, &mut out);
        out
    };
    plan(&mut session, &mut server);
    assert!(!session.swallows_rest());
    heard(&mut session, &mut server, &[failed()]);
    assert!(plan(&mut session, &mut server).is_empty());
    assert!(session.swallows_rest());

    // Of a COPY that has failed already, while a pipeline is open.
    let (mut session, mut server) = (self::session(), self::server());
    let mut data = frame(b'd', &vec![b'S'; 2 << 20]);
    data.truncate(64 << 10);
    let mut batch = Batch::new();
    let planned = session.plan(&data, &mut batch);
    assert_eq!(planned, Ok(Planned::Batch(End::Open)));
    let mut out = BytesMut::new();
    assert!(!session.say(&batch, &data, &mut server, &mut out) && out.is_empty());
    assert!(batch.beyond > 0 && session.swallows_rest() && !batch.executes);
}

#[test]
fn what_an_error_skips_has_not_happened() {
    let (mut session, mut server) = (session(), server());
    let client = [bind("nowhere"), parse("s", "SELECT 1"), SYNC.to_vec()].concat();
    told(&mut session, &mut server, &client);
    assert_eq!(
        heard(&mut session, &mut server, &[failed(), ready("I")]),
        "EZ"
    );
    let said = told(
        &mut session,
        &mut server,
        &[bind("s"), SYNC.to_vec()].concat(),
    );
    assert_eq!(
        said[0], r"B \x00s\x00\x00\x00\x00\x00\x00\x00",
        "the server says that it is unknown"
    );
}

#[test]
fn a_server_that_is_left_in_a_failed_pipeline_awaits_nothing_of_the_client() {
    let (mut session, mut server) = (session(), server());
    let client = [parse("", "SELECT nosuch"), encode::FLUSH.to_vec()].concat();
    told(&mut session, &mut server, &client);
    assert_eq!(heard(&mut session, &mut server, &[failed()]), "E");
    assert!(server.awaits_sync());
    session.say_sync(&mut server, &mut BytesMut::new());
    assert!(!server.awaits_sync() && session.is_failed());
    assert_eq!(heard(&mut session, &mut server, &[ready("I")]), "");
    assert!(server.is_idle());
}

#[test]
fn a_server_that_says_what_nothing_asked_for_is_not_believed() {
    for said in [
        frame(b'2', b""),
        frame(b'Z', b"X"),
        frame(b'R', &[0; 4]),
        vec![b'Z', 0, 0, 0, 3],
    ] {
        let (mut session, mut server) = (session(), server());
        told(&mut session, &mut server, &frame(b'Q', b"SELECT 1\0"));
        let heard = session.hear(&mut server, &said, &mut Answer::default());
        assert!(heard.is_err(), "{said:?}");
    }
    let (mut session, mut server) = (session(), server());
    let fatal = frame(b'E', b"SFATAL\0VFATAL\0C57P01\0Mbye\0\0");
    let heard = session.hear(&mut server, &fatal, &mut Answer::default());
    assert!(matches!(heard, Err(ServerFault::Ended(_))));
}

#[test]
fn an_error_however_long_is_an_error() {
    let words = |name: &str| {
        let text = name.to_owned() + &"y".repeat(2 << 20);
        let words = format!("SERROR\0VERROR\0C22P02\0M{text}\0Rpg_strtoint32\0\0");
        frame(b'E', words.as_bytes())
    };
    let (mut session, mut server) = (session(), server());
    let prepare = [parse("s", "SELECT $1"), SYNC.to_vec()].concat();
    let said = told(&mut session, &mut server, &prepare);
    let name = said[0].split("\\x00").next().unwrap()[2..].to_owned();
    let answers = [prepared(&[]), vec![ready("I")]].concat();
    heard(&mut session, &mut server, &answers);

    let unnamed = [parse("", "SELECT 1"), bind(""), execute(), SYNC.to_vec()].concat();
    let (started, error) = ([frame(b'1', b""), frame(b'2', b"")].concat(), words("x"));
    let said = [&started[..], &error, &ready("I")].concat();
    for step in [said.len(), 100_000] {
        told(&mut session, &mut server, &unnamed);
        let seen = seen_in_pieces(&mut session, &mut server, &said, step);
        assert!(
            seen == said && server.is_idle(),
            "the client sees all of it"
        );
    }

    // Where the server's name for a statement is in it, the beginning has to do.
    told(
        &mut session,
        &mut server,
        &[bind("s"), SYNC.to_vec()].concat(),
    );
    let said = [words(&name), ready("I")].concat();
    let seen = seen_in_pieces(&mut session, &mut server, &said, 100_000);
    let head = header(&seen).unwrap().unwrap();
    let told = message::error_field(body(&seen[..head.len]), b'M').unwrap();
    assert!(told.starts_with(b"syy") && told.len() > 60_000);
    assert_eq!(seen[head.len..], ready("I"));

    // One that ends the connection does so at once.
    self::told(&mut session, &mut server, &frame(b'Q', b"SELECT 1\0"));
    let fatal = frame(
        b'E',
        format!("SFATAL\0VFATAL\0C57P01\0M{}\0\0", "y".repeat(2 << 20)).as_bytes(),
    );
    let heard = session.hear(&mut server, &fatal[..100_000], &mut Answer::default());
    assert!(matches!(heard, Err(ServerFault::Ended(_))));
}

/// What the client sees when the server says this in pieces of so many bytes.
fn seen_in_pieces(
    session: &mut Session,
    server: &mut ServerState,
    said: &[u8],
    step: usize,
) -> Vec<u8> {
    let (mut seen, mut from, mut end) = (Vec::new(), 0, 0);
    while end < said.len() {
        end = (end + step).min(said.len());
        let mut answer = Answer::default();
        let heard = session.hear(server, &said[from..end], &mut answer);
        for run in &answer.runs {
            seen.extend_from_slice(match run {
                Run::Server(at) => &said[from..][at.clone()],
                Run::Own(at) => &answer.own[at.clone()],
            });
        }
        from += heard.unwrap();
    }
    seen
}

#[test]
fn what_a_batch_may_have_shown_counts_until_it_is_asked_for() {
    let shows = |text: &str| {
        let (mut session, mut server) = (session(), server());
        told_and_noted(&mut session, &mut server, text)
    };
    assert_eq!(
        shows("BEGIN; SELECT 1; COMMIT"),
        Did {
            read: true,
            ..Did::default()
        }
    );
    assert_eq!(
        shows("SHOW work_mem"),
        Did {
            read: false,
            ..Did::default()
        }
    );
    assert_eq!(
        shows("SHOW work_mem; SELECT 1"),
        Did {
            read: true,
            ..Did::default()
        }
    );
    assert!(shows("DELETE FROM t").wrote);
}

fn told_and_noted(session: &mut Session, server: &mut ServerState, text: &str) -> Did {
    let client = frame(b'Q', format!("{text}\0").as_bytes());
    let mut batch = Batch::new();
    session.plan(&client, &mut batch).unwrap();
    session.note(&batch);
    session.say(&batch, &client, server, &mut BytesMut::new());
    session.take_did()
}

#[test]
fn the_portal_of_a_held_cursor_is_on_the_server_that_is_kept() {
    let (mut session, mut server) = (session(), server());
    let target = |tag| [frame(tag, b"Pheld\0"), SYNC.to_vec()].concat();
    let need = |session: &mut Session, client: &[u8]| {
        let mut batch = Batch::new();
        assert!(session.plan(client, &mut batch).is_ok());
        batch.need
    };
    assert_eq!(need(&mut session, &target(b'D')), Need::Read);

    let declare = frame(b'Q', b"DECLARE held CURSOR WITH HOLD FOR SELECT 1\0");
    told(&mut session, &mut server, &declare);
    heard(
        &mut session,
        &mut server,
        &[done("DECLARE CURSOR"), ready("I")],
    );
    assert!(session.pins.contains(Pin::HeldCursor));
    assert_eq!(need(&mut session, &target(b'D')), Need::Session);
    assert_eq!(need(&mut session, &target(b'C')), Need::Session);
    let fetch = [frame(b'E', b"held\0\0\0\0\x05"), SYNC.to_vec()].concat();
    assert_eq!(need(&mut session, &fetch), Need::Session);
    let read = [
        parse("", "SELECT 1"),
        bind(""),
        frame(b'D', b"P\0"),
        execute(),
        SYNC.to_vec(),
    ];
    assert_eq!(need(&mut session, &read.concat()), Need::Read);
}

#[test]
fn a_session_reads_what_it_drew_itself_or_nothing() {
    let (mut session, mut server) = (session(), server());
    let ask = frame(b'Q', b"SELECT lastval()\0");
    let said = told(&mut session, &mut server, &ask);
    assert!(said[0].starts_with("Q DISCARD SEQUENCES"), "{said:?}");
    let answers = [done("DISCARD SEQUENCES"), ready("I"), failed(), ready("I")];
    assert_eq!(heard(&mut session, &mut server, &answers), "EZ");
    assert_eq!(told(&mut session, &mut server, &ask).len(), 1);
    heard(&mut session, &mut server, &[failed(), ready("I")]);

    let write = frame(b'Q', b"INSERT INTO t DEFAULT VALUES\0");
    let mut batch = Batch::new();
    session.plan(&write, &mut batch).unwrap();
    session.note(&batch);
    told(&mut session, &mut server, &write);
    heard(&mut session, &mut server, &[done("INSERT 0 1"), ready("I")]);
    assert!(session.is_pinned(), "it has asked before");
}

#[test]
fn what_may_ask_for_what_was_drawn_is_told_nothing_of_others() {
    let (mut other, mut server) = (session(), server());
    let write = frame(b'Q', b"INSERT INTO t DEFAULT VALUES\0");
    let calls = frame(b'Q', b"SELECT last_id()\0");
    let told_to_forget = |said: &String| said.starts_with("Q DISCARD SEQUENCES");
    let forgets = |said: &[String]| said.iter().any(told_to_forget);
    let mut written = |server: &mut ServerState| {
        told(&mut other, server, &write);
        heard(&mut other, server, &[done("INSERT 0 1"), ready("I")]);
    };
    let answers = |said: &[String]| match forgets(said) {
        true => vec![done("DISCARD"), ready("I"), failed(), ready("I")],
        false => vec![done("SELECT 1"), ready("I")],
    };
    let effects = |names: &[&str]| {
        let text = |text: &str| Some(Box::from(text.as_bytes()));
        let fact = |name: &&str| [text("reading effect"), text(name), None];
        Arc::new(Effects::read(&names.iter().map(fact).collect::<Vec<_>>()))
    };
    for (known, expected) in [
        (None, true),
        (Some(effects(&[])), false),
        (Some(effects(&["last_id"])), true),
    ] {
        written(&mut server);
        let mut session = session();
        if let Some(known) = known {
            let effects = &session.shared.effects;
            effects.learn(session.schema.database(), &known, effects.version());
        }
        let said = told(&mut session, &mut server, &calls);
        assert_eq!(forgets(&said), expected, "{said:?}");
        heard(&mut session, &mut server, &answers(&said));
        assert!(!forgets(&told(&mut session, &mut server, &calls)));
        heard(&mut session, &mut server, &[done("SELECT 1"), ready("I")]);
    }
}

#[test]
fn who_is_told_of_no_value_by_something_unseen_keeps_servers_after_writes() {
    let fact = [Some("reading effect"), Some("t"), None];
    let fact = fact.map(|text: Option<&str>| text.map(|text| text.as_bytes().into()));
    let mut session = session_with_effects(Effects::read(&[fact]));
    let (mut one, mut other) = (server(), server());
    let write = frame(b'Q', b"INSERT INTO t DEFAULT VALUES\0");
    let mut written = |server: &mut ServerState, answer: Vec<u8>| {
        let mut batch = Batch::new();
        session.plan(&write, &mut batch).unwrap();
        session.note(&batch);
        let said = told(&mut session, server, &write);
        let forgets = said[0].starts_with("Q DISCARD SEQUENCES");
        if forgets {
            heard(&mut session, server, &[done("DISCARD"), ready("I")]);
        }
        heard(&mut session, server, &[answer, ready("I")]);
        (forgets, session.is_pinned())
    };
    let inserted = || done("INSERT 0 1");
    assert_eq!(written(&mut one, inserted()), (true, false));
    assert_eq!(written(&mut one, inserted()), (false, false));
    assert_eq!(written(&mut other, inserted()), (true, false));
    let is_older = "what it drew here is not the last";
    assert_eq!(written(&mut one, inserted()), (true, false), "{is_older}");
    let missed = frame(b'E', b"SERROR\0VERROR\0C55000\0Mno\0Rlastval\0\0");
    assert!(written(&mut other, missed).0);
    assert!(written(&mut other, inserted()).1);
}

#[test]
fn what_a_statement_may_have_changed_is_looked_at_twice() {
    let (mut session, mut server) = (session(), server());
    told(
        &mut session,
        &mut server,
        &frame(b'Q', b"SELECT enter(1)\0"),
    );
    assert_eq!(
        heard(&mut session, &mut server, &[done("SELECT 1"), ready("I")]),
        "CZ"
    );
    let row = |values: [&[u8]; 3]| {
        let mut body = b"\0\x03".to_vec();
        for value in values {
            body.extend((value.len() as i32).to_be_bytes());
            body.extend(value);
        }
        frame(b'D', &body)
    };
    let answer = |rows: Vec<Vec<u8>>| [vec![done("SET")], rows, vec![ready("I")]].concat();

    assert!(session.must_inspect(), "what `enter` does is not known");
    let mut out = BytesMut::new();
    session.say_inspection(&mut server, &mut out);
    let body: &[u8] = b"begin perform set_config('app.tenant', $1, false); end";
    let effects = answer(vec![row([b"effect", b"enter", body])]);
    assert_eq!(heard(&mut session, &mut server, &effects), "");
    session.inspected(&mut server);

    assert!(session.must_inspect(), "it sets something");
    out.clear();
    session.say_inspection(&mut server, &mut out);
    assert!(out.windows(10).any(|part| part == b"app.tenant"));
    let facts = answer(vec![row([b"setting", b"app.tenant", b"7"])]);
    assert_eq!(heard(&mut session, &mut server, &facts), "");
    session.inspected(&mut server);
    assert!(!session.must_inspect() && !session.is_pinned());
    assert_eq!(
        session.settings().names().collect::<Vec<_>>(),
        ["app.tenant"]
    );

    told(
        &mut session,
        &mut server,
        &frame(b'Q', b"SELECT leave(1)\0"),
    );
    heard(&mut session, &mut server, &[done("SELECT 1"), ready("I")]);
    assert!(!session.must_inspect(), "what `leave` does is known");
}

/// A session of a database whose names are known to have these effects.
fn session_with_effects(effects: Effects) -> Session {
    let session = session();
    let known = &session.shared.effects;
    let version = known.version();
    known.learn(session.schema.database(), &Arc::new(effects), version);
    session
}

/// Whether the server has to be asked after all this: each what the client says, the tags that the server
/// answers with, and its status.
fn must_inspect_after(said: &[(Vec<u8>, &[&str], &str)]) -> bool {
    let (mut session, mut server) = (session_with_effects(Effects::default()), server());
    for (client, tags, status) in said {
        told(&mut session, &mut server, client);
        let before = match client[0] {
            b'P' => vec![frame(b'1', b""), frame(b'2', b"")],
            _ => Vec::new(),
        };
        let answers = tags
            .iter()
            .flat_map(|tag| before.iter().cloned().chain([done(tag)]));
        let answers: Vec<_> = answers.chain([ready(status)]).collect();
        heard(&mut session, &mut server, &answers);
    }
    session.must_inspect()
}

#[test]
fn what_was_just_defined_may_do_what_is_not_known() {
    const DEFINE: &str =
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_lock(1)'";
    const TABLE: &str = "CREATE TABLE t (a int)";
    let query = |sql: &str| frame(b'Q', format!("{sql}\0").as_bytes());
    let within = |definition: &'static str, read: &str, end: &'static str| {
        let tag: &[&str] = match definition {
            DEFINE => &["CREATE FUNCTION"],
            _ => &["CREATE TABLE"],
        };
        must_inspect_after(&[
            (query("BEGIN"), &["BEGIN"], "T"),
            (query(definition), tag, "T"),
            (query(read), &["SELECT 1"], "T"),
            (query(end), &[end], "I"),
        ])
    };
    for end in ["COMMIT", "ROLLBACK"] {
        assert!(within(DEFINE, "SELECT f()", end));
        assert!(within(DEFINE, "SELECT 1 FROM v", end), "it was a read");
        assert!(!within(TABLE, "SELECT f()", end));
    }
    let used = &["CREATE FUNCTION", "SELECT 1"];
    for (texts, tags, expected) in [
        (&[DEFINE, "SELECT f()"][..], &used[..], true),
        (&[TABLE, "SELECT f()"], &["CREATE TABLE", "SELECT 1"], false),
        (&[DEFINE], &["CREATE FUNCTION"], false),
    ] {
        let inspects = must_inspect_after(&[(query(&texts.join("; ")), tags, "I")]);
        assert_eq!(inspects, expected, "{texts:?}");
    }
    let run = |sql: &str| [parse("", sql), bind(""), execute()].concat();
    let pipeline = [run(DEFINE), run("SELECT f()"), SYNC.to_vec()].concat();
    assert!(must_inspect_after(&[(pipeline, used, "I")]));
}

#[test]
fn what_is_defined_or_dropped_may_be_temporary_without_saying_so() {
    let view = "CREATE VIEW v AS SELECT 1";
    let drop = "DROP FUNCTION pg_temp.f()";
    for (before, statement, expected) in [
        ("SELECT 1", view, false),
        ("SET search_path = pg_temp, public", view, true),
        ("SET LOCAL search_path = pg_temp, public", view, true),
        ("SET LOCAL search_path = pg_temp", "CREATE TABLE t ()", true),
        ("SELECT set_config('search_path', $1, false)", view, true),
        ("CREATE TEMP TABLE t ()", view, true),
        ("CREATE TEMP TABLE t ()", drop, true),
    ] {
        let (mut session, mut server) = (session_with_effects(Effects::default()), server());
        for sql in ["BEGIN", before, statement] {
            // What has been left before that is known.
            let held = session.pins.contains(Pin::TemporaryTable);
            session.pins.begin_report();
            if held {
                session.pins.found(Pin::TemporaryTable, b"t");
            }
            let client = frame(b'Q', format!("{sql}\0").as_bytes());
            told(&mut session, &mut server, &client);
            heard(&mut session, &mut server, &[done(sql), ready("T")]);
        }
        let looks = session.pins.suspects().contains(Pin::TemporaryTable);
        assert_eq!(looks, expected, "{before}; {statement}");
    }
}

#[test]
fn a_call_by_number_may_have_done_anything() {
    let of_own = || {
        let fact = ["effect", "enter", "set_config('app.tenant', $1, false)"];
        Effects::read(&[fact.map(|text| Some(text.as_bytes().into()))])
    };
    for (number, names_it, pinned) in [
        (20_000_u32, true, false),
        (952, false, false),
        (2078, false, true),
    ] {
        let (mut session, mut server) = (session_with_effects(of_own()), server());
        let call = frame(b'F', &number.to_be_bytes());
        told(&mut session, &mut server, &call);
        assert_eq!(session.pins.suspects(), pins::VISIBLE, "{number}");
        assert_eq!(session.is_pinned(), pinned, "{number}");
        let mut out = BytesMut::new();
        session.say_inspection(&mut server, &mut out);
        let asked = out.windows(10).any(|part| part == b"app.tenant");
        assert_eq!(asked, names_it, "{number}");
    }
}

#[test]
fn what_must_not_be_done_fails_on_the_server_instead() {
    let (mut session, mut server) = (session(), server());
    let bad = "SET tidegate.consistency = 'strong'";
    let syntax = frame(b'E', b"SERROR\0VERROR\0C42601\0Msyntax error\0\0");
    let said = told(
        &mut session,
        &mut server,
        &frame(b'Q', format!("{bad}\0").as_bytes()),
    );
    assert_eq!(tags(&said), "Q");
    assert!(!said[0].contains("strong"), "{said:?}");
    assert_eq!(
        heard(&mut session, &mut server, &[syntax.clone(), ready("I")]),
        "EZ"
    );

    // A pipeline, with what came before in it and after: none of it is done.
    let client = [
        parse("s", "SELECT 1"),
        bind("s"),
        execute(),
        parse("t", "/* tidegate: primry */ SELECT 1"),
        bind("t"),
        execute(),
        SYNC.to_vec(),
    ];
    let said = told(&mut session, &mut server, &client.concat());
    assert_eq!(tags(&said), "PS");
    assert_eq!(
        heard(&mut session, &mut server, &[syntax.clone(), ready("I")]),
        "EZ"
    );
    for name in ["s", "t"] {
        assert!(
            session.statements.get(name.as_bytes()).is_none(),
            "{name} is not there"
        );
    }
    assert!(server.is_idle() && server.settings == Settings::default());
    // An ordinary one goes on as if nothing had been.
    let client = [parse("s", "SELECT 1"), SYNC.to_vec()].concat();
    assert_eq!(tags(&told(&mut session, &mut server, &client)), "PDS");
}

#[test]
fn what_is_in_force_is_shown_and_gone_again() {
    let (mut session, mut server) = (session(), server());
    let show = frame(b'Q', b"SHOW tidegate.consistency\0");
    let values = [
        (Own::Consistency, "session".to_owned()),
        (Own::Token, "t".to_owned()),
    ];
    session.show_own(&values, None);
    let said = told(&mut session, &mut server, &show);
    assert_eq!(tags(&said), "QQ");
    assert!(
        said[0].contains("set_config(\\'tidegate.consistency\\', \\'session\\'"),
        "{said:?}"
    );
    let shown = [
        done("SELECT 1"),
        done("SELECT 1"),
        ready("I"),
        done("SHOW"),
        ready("I"),
    ];
    assert_eq!(heard(&mut session, &mut server, &shown), "CZ");
    session.hide_own();
    let said = told(&mut session, &mut server, &frame(b'Q', b"SELECT 1\0"));
    assert_eq!(tags(&said), "QQ");
    let resets = ["consistency", "token"].map(|name| said[0].contains(&format!("tidegate.{name}")));
    assert!(
        said[0].starts_with("Q RESET") && resets == [true; 2],
        "{said:?}"
    );
}

#[test]
fn what_was_shown_outside_of_a_transaction_is_undone_by_no_error() {
    let (mut session, mut server) = (session(), server());
    let values = [(Own::Consistency, "session".to_owned())];
    session.show_own(&values, Some(&server));
    let show = frame(b'Q', b"SHOW tidegate.nonsense\0");
    assert_eq!(tags(&told(&mut session, &mut server, &show)), "QQ");
    let answers = [done("SELECT 1"), ready("I"), failed(), ready("I")];
    assert_eq!(heard(&mut session, &mut server, &answers), "EZ");
    session.hide_own();
    let said = told(&mut session, &mut server, &frame(b'Q', b"SELECT 1\0"));
    assert!(said[0].starts_with("Q RESET"), "{said:?}");
}
