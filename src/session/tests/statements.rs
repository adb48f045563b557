//! Prepared statements: whose they are, what they are called on servers, and when they are gone.

use super::*;
use crate::session::server::Fit;

#[test]
fn names_of_statements_are_told_apart_by_their_first_bytes() {
    let (mut session, mut server) = (session(), server());
    let name = |end: &str| "x".repeat(62) + end;
    // The first bytes of the characters that are cut are different, and then alike.
    for (end, answer) in [("é", "1Z"), ("€", "1Z"), ("ê", "EZ")] {
        let client = [parse(&name(end), "SELECT 1"), SYNC.to_vec()].concat();
        let said = told(&mut session, &mut server, &client);
        let answers = match &*tags(&said) {
            "PDS" => [prepared(&[]), vec![ready("I")]].concat(),
            "S" => vec![ready("I")],
            "PS" => vec![failed(), ready("I")],
            other => panic!("{other}"),
        };
        assert_eq!(heard(&mut session, &mut server, &answers), answer, "{end}");
    }
}

#[test]
fn a_statement_follows_its_session_from_server_to_server() {
    let (mut session, mut first) = (session(), server());
    let said = told(
        &mut session,
        &mut first,
        &[parse("s", "SELECT 1"), SYNC.to_vec()].concat(),
    );
    assert_eq!(tags(&said), "PDS", "what it returns is asked for");
    assert!(said[0].starts_with("P _tidegate_"), "{said:?}");
    let answers = [prepared(&[]), vec![ready("I")]].concat();
    assert_eq!(heard(&mut session, &mut first, &answers), "1Z");

    let mut second = server();
    let run = [bind("s"), execute(), SYNC.to_vec()].concat();
    let said = told(&mut session, &mut second, &run);
    assert_eq!(tags(&said), "PDSBES");
    let answers = [
        prepared(&[]).concat(),
        ready("I"),
        frame(b'2', b""),
        done("SELECT 1"),
        ready("I"),
    ];
    assert_eq!(
        heard(&mut session, &mut second, &answers),
        "2CZ",
        "its Parse is not seen"
    );
    let said = told(&mut session, &mut second, &run);
    assert_eq!(tags(&said), "BES");
}

#[test]
fn a_statement_that_returns_something_else_by_now_does_not_run() {
    let (mut session, mut first) = (session(), server());
    let client = [parse("s", "SELECT * FROM t"), SYNC.to_vec()].concat();
    told(&mut session, &mut first, &client);
    let answers = [prepared(b"a"), vec![ready("I")]].concat();
    assert_eq!(heard(&mut session, &mut first, &answers), "1Z");

    let run = [bind("s"), execute(), SYNC.to_vec()].concat();
    let mut second = server();
    let mut batch = Batch::new();
    session.plan(&run, &mut batch).unwrap();
    let mut out = BytesMut::new();
    assert!(session.say_missing(&batch, &mut second, &mut out));
    let answers = [prepared(b"ab"), vec![ready("I")]].concat();
    assert_eq!(heard(&mut session, &mut second, &answers), "");
    let said = told(&mut session, &mut second, &run);
    assert!(said[0].starts_with(r"B \x00_tidegate_none\x00"), "{said:?}");
    let answers = [failed(), ready("I")];
    assert_eq!(heard(&mut session, &mut second, &answers), "EZ");

    let again = [parse("again", "SELECT * FROM t"), SYNC.to_vec()].concat();
    let said = told(&mut session, &mut second, &again);
    assert_eq!(tags(&said), "PDS", "it is another statement");
}

#[test]
fn a_plan_that_no_longer_fits_is_nobody_s_any_more() {
    let bound = [bind("s"), SYNC.to_vec()].concat();
    let described = [frame(b'D', b"Ss\0"), SYNC.to_vec()].concat();
    for client in [bound, described] {
        let (mut session, mut server) = (session(), server());
        let prepare = |name: &str| [parse(name, "SELECT * FROM t"), SYNC.to_vec()].concat();
        told(&mut session, &mut server, &prepare("s"));
        let answers = [prepared(b"a"), vec![ready("I")]].concat();
        heard(&mut session, &mut server, &answers);
        told(&mut session, &mut server, &client);
        let stale = b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0RRevalidateCachedQuery\0\0";
        let answers = [frame(b'E', stale), ready("I")];
        assert_eq!(heard(&mut session, &mut server, &answers), "EZ");
        let said = told(&mut session, &mut server, &prepare("again"));
        assert_eq!(tags(&said), "PDS", "it is another statement");
    }
}

#[test]
fn the_least_recently_used_statement_makes_room() {
    let (mut session, mut server) = (session(), server());
    for (name, expected) in [("a", "PDS"), ("b", "PDS"), ("c", "CPDS")] {
        let client = [parse(name, &format!("SELECT '{name}'")), SYNC.to_vec()].concat();
        let said = told(&mut session, &mut server, &client);
        assert_eq!(tags(&said), expected);
        let mut answers = [prepared(&[]), vec![ready("I")]].concat();
        if expected.starts_with('C') {
            answers.insert(0, frame(b'3', b""));
        }
        assert_eq!(heard(&mut session, &mut server, &answers), "1Z");
    }
}

#[test]
fn a_description_is_seen_whatever_comes_after_it() {
    let (mut session, mut first) = (session(), server());
    let client = [
        parse("s", "SELECT 1"),
        parse("t", "SELECT 2"),
        SYNC.to_vec(),
    ]
    .concat();
    told(&mut session, &mut first, &client);
    let answers = [prepared(&[]), prepared(&[]), vec![ready("I")]].concat();
    assert_eq!(heard(&mut session, &mut first, &answers), "11Z");

    // What the server lacks is prepared unseen.
    let mut second = server();
    let describe = frame(b'D', b"Ss\0");
    let client = [describe.clone(), bind("t"), SYNC.to_vec()].concat();
    let said = told(&mut session, &mut second, &client);
    assert_eq!(tags(&said), "PDPDSDBS");
    let row = frame(b'T', b"\0\0");
    let answers = [
        prepared(&[]),
        prepared(&[]),
        vec![ready("I"), frame(b't', b"\0\0"), row.clone()],
        vec![frame(b'2', b""), ready("I")],
    ]
    .concat();
    assert_eq!(heard(&mut session, &mut second, &answers), "tT2Z");

    // What the proxy answers itself is next in turn.
    let close = frame(b'C', b"St\0");
    told(
        &mut session,
        &mut second,
        &[describe, close, SYNC.to_vec()].concat(),
    );
    let answers = [frame(b't', b"\0\0"), row, ready("I")];
    assert_eq!(heard(&mut session, &mut second, &answers), "tT3Z");
}

#[test]
fn what_made_room_for_a_statement_that_an_error_skips_is_still_there() {
    let (mut session, mut server) = (session(), server());
    let names = ["a", "b"];
    let prepare = names.map(|name| parse(name, &format!("SELECT '{name}'")));
    told(
        &mut session,
        &mut server,
        &[prepare.concat(), SYNC.to_vec()].concat(),
    );
    heard(
        &mut session,
        &mut server,
        &[prepared(&[]), prepared(&[]), vec![ready("I")]].concat(),
    );

    let client = [bind("nowhere"), parse("c", "SELECT 'c'"), SYNC.to_vec()].concat();
    let said = told(&mut session, &mut server, &client);
    assert_eq!(tags(&said), "BCPDS");
    heard(&mut session, &mut server, &[failed(), ready("I")]);
    for name in names {
        let client = [bind(name), SYNC.to_vec()].concat();
        let said = told(&mut session, &mut server, &client);
        assert_eq!(said.iter().map(|s| &s[..1]).collect::<String>(), "BS");
        heard(&mut session, &mut server, &[frame(b'2', b""), ready("I")]);
    }
}

#[test]
fn nobody_else_s_unnamed_statement_is_used() {
    let mut server = server();
    let mut one = session();
    told(
        &mut one,
        &mut server,
        &[parse("", "SELECT 1"), SYNC.to_vec()].concat(),
    );
    heard(&mut one, &mut server, &[frame(b'1', b""), ready("I")]);
    for client in [bind(""), frame(b'D', b"S\0")] {
        let mut other = session();
        let said = told(
            &mut other,
            &mut server,
            &[client.clone(), SYNC.to_vec()].concat(),
        );
        assert_eq!(said[0], r"C S\x00", "{said:?}");
        let answers = [frame(b'3', b""), failed(), ready("I")];
        assert_eq!(heard(&mut other, &mut server, &answers), "EZ");
        let mut again = session();
        let said = told(&mut again, &mut server, &[client, SYNC.to_vec()].concat());
        assert_eq!(said.len(), 2, "it has none now: {said:?}");
        heard(&mut again, &mut server, &[failed(), ready("I")]);
        told(&mut one, &mut server, &[bind(""), SYNC.to_vec()].concat());
        heard(
            &mut one,
            &mut server,
            &[frame(b'1', b""), frame(b'2', b""), ready("I")],
        );
    }
}

#[test]
fn what_the_unnamed_statement_names_comes_with_it_to_another_server() {
    let (mut session, mut first) = (session(), server());
    let prepare = [parse("s", "SELECT 1"), SYNC.to_vec()].concat();
    told(&mut session, &mut first, &prepare);
    let answers = [prepared(&[]), vec![ready("I")]].concat();
    heard(&mut session, &mut first, &answers);
    let client = [parse("", "EXECUTE s(1)"), SYNC.to_vec()].concat();
    let said = told(&mut session, &mut first, &client);
    assert_eq!(tags(&said), "PS");
    let text = said[0].clone();
    assert!(text.contains("_tidegate_"), "{text}");
    heard(&mut session, &mut first, &[frame(b'1', b""), ready("I")]);

    let mut second = server();
    let run = [bind(""), execute(), SYNC.to_vec()].concat();
    let said = told(&mut session, &mut second, &run);
    assert_eq!(tags(&said), "PPBES");
    assert_eq!(said[1], text);
    let name = text.split('"').nth(1).unwrap().trim_end_matches('\\');
    let words = format!("SERROR\0VERROR\0C42601\0Mwrong number for \"{name}\"\0\0");
    let said = [
        frame(b'1', b""),
        frame(b'1', b""),
        frame(b'2', b""),
        frame(b'E', words.as_bytes()),
        ready("I"),
    ]
    .concat();
    let seen = seen_in_pieces(&mut session, &mut second, &said, said.len());
    let seen = seen.escape_ascii().to_string();
    assert!(seen.contains(r#"wrong number for \"s\""#), "{seen}");
}

#[test]
fn what_a_named_statement_names_comes_with_it_to_another_server() {
    let (mut session, mut first) = (session(), server());
    let both = [parse("s", "SELECT 1"), parse("e", "EXECUTE s(1)")].concat();
    let said = told(&mut session, &mut first, &[both, SYNC.to_vec()].concat());
    assert_eq!(tags(&said), "PDPDS");
    let name_in = |said: &str| said[2..].split("\\x00").next().map(str::to_owned);
    let name = name_in(&said[0]).unwrap();
    let renamed = |name: &str| {
        format!("EXECUTE \"{name}\"(1)")
            .escape_default()
            .to_string()
    };
    assert!(said[2].contains(&renamed(&name)), "{said:?}");
    let answers = [prepared(&[]), prepared(&[]), vec![ready("I")]].concat();
    assert_eq!(heard(&mut session, &mut first, &answers), "11Z");

    let (mut second, mut third) = (server(), server());
    let run = [bind("e"), execute(), SYNC.to_vec()].concat();
    let said = told(&mut session, &mut second, &run);
    assert_eq!(tags(&said), "PPDSBES", "what is named goes first");
    assert_eq!(name_in(&said[0]).unwrap(), name);
    let answers = [vec![frame(b'1', b"")], prepared(&[]), vec![ready("I")]].concat();
    assert_eq!(heard(&mut session, &mut second, &answers), "");
    let words = format!("SERROR\0VERROR\0C42601\0Mwrong number for \"{name}\"\0\0");
    let answers = [frame(b'2', b""), frame(b'E', words.as_bytes()), ready("I")].concat();
    let seen = seen_in_pieces(&mut session, &mut second, &answers, answers.len());
    let seen = seen.escape_ascii().to_string();
    assert!(seen.contains(r#"wrong number for \"s\""#), "{seen}");

    // The name may come to stand for something else, or for nothing.
    let close = frame(b'C', b"Ss\0");
    let anew = [close.clone(), parse("s", "SELECT 2"), run.clone()].concat();
    let said = told(&mut session, &mut third, &anew);
    assert_eq!(tags(&said), "PDPBES", "{said:?}");
    let other = name_in(&said[0]).unwrap();
    assert_ne!(other, name);
    assert!(said[2].contains(&renamed(&other)), "{said:?}");
    let ran = [
        frame(b'1', b""),
        frame(b'2', b""),
        done("SELECT 1"),
        ready("I"),
    ];
    let answers = [prepared(&[]), ran.to_vec()].concat();
    assert_eq!(heard(&mut session, &mut third, &answers), "312CZ");
    let said = told(&mut session, &mut third, &[close, run].concat());
    assert!(
        said.iter().any(|said| said.contains("EXECUTE s(1)")),
        "{said:?}"
    );
}

#[test]
fn an_unnamed_statement_that_outlives_discard_all_is_still_nobody_else_s() {
    let (mut one, mut server) = (session(), server());
    let run = [bind(""), execute(), SYNC.to_vec()].concat();
    let discard = [parse("", "DISCARD ALL"), run.clone()].concat();
    told(&mut one, &mut server, &discard);
    let ran = [frame(b'2', b""), done("DISCARD ALL"), ready("I")];
    let answers = [vec![frame(b'1', b"")], ran.to_vec()].concat();
    assert_eq!(heard(&mut one, &mut server, &answers), "12CZ");
    assert_eq!(tags(&told(&mut one, &mut server, &run)), "BES");
    heard(&mut one, &mut server, &ran);

    let mut other = session();
    let said = told(&mut other, &mut server, &[bind(""), SYNC.to_vec()].concat());
    assert_eq!(said[0], r"C S\x00", "{said:?}");
}

#[test]
fn an_unnamed_statement_that_an_error_spares_is_nobody_else_s() {
    let close = [bind(""), SYNC.to_vec()].concat();
    let query = [frame(b'Q', b"SELECT 1\0"), SYNC.to_vec()].concat();
    for skipped in [close, query] {
        let mut server = server();
        let mut one = session();
        let client = [parse("", "SELECT 1"), SYNC.to_vec()].concat();
        told(&mut one, &mut server, &client);
        heard(&mut one, &mut server, &[frame(b'1', b""), ready("I")]);

        let mut other = session();
        let (mut batch, mut out) = (Batch::new(), BytesMut::new());
        let client = [bind("nowhere"), skipped].concat();
        let mut at = 0;
        while at < client.len() {
            other.plan(&client[at..], &mut batch).unwrap();
            other.say(&batch, &client[at..], &mut server, &mut out);
            at += batch.len;
            batch.clear();
        }
        heard(&mut other, &mut server, &[failed(), ready("I")]);
        let said = told(&mut other, &mut server, &[bind(""), SYNC.to_vec()].concat());
        assert_eq!(said[0], r"C S\x00", "{said:?}");
    }
}

/// The constants in it are read as the settings are when it is prepared.
#[test]
fn what_is_prepared_while_settings_change_is_nobody_elses() {
    let shared = Arc::new(Shared::new(Classifier::new(Rules::default(), 100)));
    let name_after = |before: &str, in_pipeline: bool| {
        let defaults = Settings::default();
        let mut session = Session::new(shared.clone(), "main/app/app", defaults, params(&[]));
        let mut server = server();
        let mut pipeline = Vec::new();
        if in_pipeline {
            pipeline.extend([parse("", before), bind(""), execute()]);
        } else if !before.is_empty() {
            let query = frame(b'Q', format!("BEGIN; {before}\0").as_bytes());
            told(&mut session, &mut server, &query);
            let answers = [done("BEGIN"), done("SELECT 1"), ready("T")];
            heard(&mut session, &mut server, &answers);
        }
        pipeline.extend([parse("s", "SELECT '1.2.2020'::date"), SYNC.to_vec()]);
        let said = told(&mut session, &mut server, &pipeline.concat());
        let named = said.iter().find(|said| said.starts_with("P _tidegate_"));
        named.expect("a statement with a name").clone()
    };
    let usual = name_after("", false);
    assert_eq!(name_after("SELECT 1", true), usual);
    for (before, in_pipeline) in [
        ("SELECT set_config('DateStyle', 'German', false)", false),
        ("SELECT set_config('DateStyle', 'German', false)", true),
        ("SET DateStyle = 'German'", true),
        ("SET LOCAL DateStyle = 'German'", true),
    ] {
        assert_ne!(name_after(before, in_pipeline), usual, "{before}");
    }
}

#[test]
fn what_is_prepared_with_tables_of_its_own_is_nobody_elses() {
    let shared = Arc::new(Shared::new(Classifier::new(Rules::default(), 100)));
    let session = || {
        let defaults = Settings::default();
        Session::new(shared.clone(), "main/app/app", defaults, params(&[]))
    };
    let name_behind = |session: &mut Session, messages: Vec<Vec<u8>>| {
        let again = [parse("s", "SELECT * FROM t"), SYNC.to_vec()].concat();
        let said = told(session, &mut server(), &[messages.concat(), again].concat());
        let named = said.iter().find(|said| said.starts_with("P _tidegate_"));
        named.expect("a statement with a name").clone()
    };
    let query = |session: &mut Session, sql: &str, status: &str| {
        let mut server = server();
        told(
            session,
            &mut server,
            &frame(b'Q', format!("{sql}\0").as_bytes()),
        );
        let tags = sql.split("; ").map(done);
        heard(
            session,
            &mut server,
            &tags.chain([ready(status)]).collect::<Vec<_>>(),
        );
    };
    let usual = name_behind(&mut session(), vec![]);
    assert_eq!(name_behind(&mut session(), vec![]), usual);
    let mut names = vec![usual.clone()];
    let temporary = "CREATE TEMP TABLE t (b int)";
    for (sql, status) in [
        ("BEGIN; ALTER TABLE t ADD b int", "T"),
        (temporary, "I"),
        (temporary, "I"),
    ] {
        let mut session = session();
        query(&mut session, sql, status);
        names.push(name_behind(&mut session, vec![]));
        names.push(name_behind(&mut session, vec![frame(b'C', b"Ss\0")]));
    }
    for sql in [temporary, "ALTER TABLE t ADD b int"] {
        let before = vec![parse("", sql), bind(""), execute()];
        names.push(name_behind(&mut session(), before));
    }
    assert_eq!(
        name_behind(&mut session(), vec![]),
        usual,
        "nothing has come of it"
    );
    query(&mut session(), "ALTER TABLE t ADD b int", "I");
    names.push(name_behind(&mut session(), vec![]));
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 10, "{names:?}");
}

#[test]
fn a_statement_that_is_nobody_elses_is_closed_with_its_name() {
    let in_transaction = |set: &str| {
        let (mut session, mut server) = (session(), server());
        let query = frame(b'Q', format!("BEGIN; {set}\0").as_bytes());
        told(&mut session, &mut server, &query);
        let answers = [done("BEGIN"), done("SET"), ready("T")];
        heard(&mut session, &mut server, &answers);
        let prepare = [parse("s", "SELECT '1.2.2020'::date"), SYNC.to_vec()].concat();
        told(&mut session, &mut server, &prepare);
        let answers = [prepared(b"d"), vec![ready("T")]].concat();
        assert_eq!(heard(&mut session, &mut server, &answers), "1Z");
        (session, server)
    };
    let close = [frame(b'C', b"Ss\0"), SYNC.to_vec()].concat();
    let closed = |session: &mut Session, server: &mut ServerState, expected: &str| {
        let said = told(session, server, &close);
        assert_eq!(tags(&said), expected, "{said:?}");
        let answers = match expected {
            "CS" => vec![frame(b'3', b""), ready("T")],
            _ => vec![ready("T")],
        };
        assert_eq!(heard(session, server, &answers), "3Z");
    };
    let local = "SET LOCAL DateStyle = 'German'";

    let (mut session, mut server) = in_transaction("SELECT 1");
    closed(&mut session, &mut server, "S");
    assert_eq!(server.statements.len(), 1, "for others");

    let (mut session, mut server) = in_transaction(local);
    let client = [bind("nowhere"), close.clone()].concat();
    assert_eq!(tags(&told(&mut session, &mut server, &client)), "BCS");
    let answers = [failed(), ready("E")];
    assert_eq!(heard(&mut session, &mut server, &answers), "EZ");
    assert_eq!(server.statements.len(), 1, "the Close was skipped");
    closed(&mut session, &mut server, "CS");
    assert!(server.statements.is_empty());

    // One that never had it.
    let (mut session, _) = in_transaction(local);
    closed(&mut session, &mut self::server(), "S");
}

#[test]
fn what_a_failed_transaction_prepares_is_for_a_server_to_refuse() {
    let (mut session, mut server) = (session(), server());
    let prepare = [parse("s", "SELECT 1"), SYNC.to_vec()].concat();
    told(&mut session, &mut server, &prepare);
    let answers = [prepared(&[]), vec![ready("I")]].concat();
    heard(&mut session, &mut server, &answers);
    let again = [parse("t", "SELECT 1"), SYNC.to_vec()].concat();
    for (status, expected) in [(Status::InTransaction, true), (Status::Failed, false)] {
        session.status = status;
        let mut batch = Batch::new();
        assert!(session.plan(&again, &mut batch).is_ok());
        assert_eq!(session.is_local(&batch), expected);
        session.forget_batch(&batch);
    }
}

#[test]
fn a_server_keeps_its_statements_when_others_are_discarded() {
    let (mut session, mut server) = (session(), server());
    let prepare = [parse("p", "SELECT 1"), SYNC.to_vec()].concat();
    let said = told(&mut session, &mut server, &prepare);
    let name = said[0].split("\\x00").next().unwrap()[2..].to_owned();
    let answers = [prepared(&[]), vec![ready("I")]].concat();
    heard(&mut session, &mut server, &answers);
    let bound = |session: &mut Session, server: &mut ServerState| {
        told(session, server, &[bind("p"), SYNC.to_vec()].concat()).len()
    };
    for discard in ["DISCARD PLANS", "DISCARD TEMP", "DEALLOCATE other"] {
        let client = frame(b'Q', format!("{discard}\0").as_bytes());
        told(&mut session, &mut server, &client);
        heard(&mut session, &mut server, &[done(discard), ready("I")]);
        assert_eq!(bound(&mut session, &mut server), 2, "Bind, Sync: {discard}");
        heard(&mut session, &mut server, &[frame(b'2', b""), ready("I")]);
    }
    let client = frame(b'Q', format!("DEALLOCATE {name}\0").as_bytes());
    told(&mut session, &mut server, &client);
    heard(&mut session, &mut server, &[done("DEALLOCATE"), ready("I")]);
    assert_eq!(bound(&mut session, &mut server), 5, "it is prepared first");
}

/// What the client is answered without a server, if that can be.
fn answered(session: &mut Session, sql: &str) -> Option<BytesMut> {
    let client = frame(b'Q', format!("{sql}\0").as_bytes());
    let mut batch = Batch::new();
    session.plan(&client, &mut batch).unwrap();
    let mut out = BytesMut::new();
    session.only_forgets(&batch).then(|| {
        assert!(session.is_local(&batch));
        session.answer_locally(&batch, &mut out);
        out
    })
}

fn prepare(session: &mut Session, server: &mut ServerState, name: &str) {
    let client = [parse(name, "SELECT 1"), SYNC.to_vec()].concat();
    let said = told(session, server, &client);
    let answers = match &*tags(&said) {
        "S" => vec![ready("I")],
        _ => [prepared(&[]), vec![ready("I")]].concat(),
    };
    assert_eq!(heard(session, server, &answers), "1Z");
}

#[test]
fn a_deallocate_of_what_a_message_has_prepared_needs_no_server() {
    let (mut session, mut server) = (session(), server());
    let says = |tag: &str| Some(BytesMut::from(&[done(tag), ready("I")].concat()[..]));
    for (name, sql) in [
        ("s", "DEALLOCATE S"),
        ("S s", "deallocate prepare \"S s\" -- gone"),
        ("s", "DEALLOCATE s;;"),
    ] {
        prepare(&mut session, &mut server, name);
        assert_eq!(answered(&mut session, sql), says("DEALLOCATE"), "{sql}");
        assert_eq!(answered(&mut session, sql), None, "it is gone");
        assert_eq!(server.statements.len(), 1, "others may use it");
    }
    prepare(&mut session, &mut server, "s");
    prepare(&mut session, &mut server, "t");
    let all = answered(&mut session, "DEALLOCATE ALL");
    assert_eq!(all, says("DEALLOCATE ALL"));
    assert!(!session.statements.has_named());

    prepare(&mut session, &mut server, "s");
    for sql in [
        "DEALLOCATE nowhere",
        "DEALLOCATE s; SELECT 1",
        "/* tidegate: primary */ DEALLOCATE s",
        "EXPLAIN ROUTE DEALLOCATE s",
        "EXECUTE s",
    ] {
        assert_eq!(answered(&mut session, sql), None, "{sql}");
    }
    let begun = frame(b'Q', b"BEGIN\0");
    told(&mut session, &mut server, &begun);
    heard(&mut session, &mut server, &[done("BEGIN"), ready("T")]);
    assert_eq!(
        answered(&mut session, "DEALLOCATE s"),
        None,
        "its transaction"
    );
    told(&mut session, &mut server, &frame(b'Q', b"COMMIT\0"));
    heard(&mut session, &mut server, &[done("COMMIT"), ready("I")]);
    session.pins.found(Pin::PreparedStatement, b"by_sql");
    assert_eq!(answered(&mut session, "DEALLOCATE ALL"), None);
    assert_eq!(answered(&mut session, "DEALLOCATE by_sql"), None);
    assert_eq!(answered(&mut session, "DEALLOCATE s"), says("DEALLOCATE"));
}

#[test]
fn what_a_deallocate_leaves_is_known_before_statements_are_named() {
    for forget in ["DEALLOCATE s", "DEALLOCATE ALL", "DISCARD ALL"] {
        let (mut session, mut server) = (session(), server());
        let prepare = [parse("s", "SELECT 1"), SYNC.to_vec()].concat();
        told(&mut session, &mut server, &prepare);
        let answers = [prepared(&[]), vec![ready("I")]].concat();
        heard(&mut session, &mut server, &answers);

        let other = [parse("", "SELECT 1"), frame(b'B', b"q\0\0\0\0\0\0\0\0")];
        let executed = [execute(), frame(b'E', b"q\0\0\0\0\0")];
        let drop = [
            parse("", forget),
            bind(""),
            other.concat(),
            executed.concat(),
        ]
        .concat();
        let again = [parse("s", "SELECT 2"), bind("s"), execute(), SYNC.to_vec()].concat();
        let client = [drop.clone(), again.clone()].concat();
        let mut batch = Batch::new();
        let planned = session.plan(&client, &mut batch);
        assert_eq!(planned, Ok(Planned::Batch(End::Open)), "{forget}");
        assert_eq!(batch.len, drop.len(), "{forget}");
        session.say(&batch, &client, &mut server, &mut BytesMut::new());
        assert!(server.may_forget(), "{forget}");
        let bound = [frame(b'1', b""), frame(b'2', b"")].concat();
        let answers = [bound.clone(), bound, done(forget)];
        assert_eq!(heard(&mut session, &mut server, &answers), "1212C");
        assert!(!server.may_forget(), "{forget}");
        heard(&mut session, &mut server, &[done("SELECT 1")]);

        let said = told(&mut session, &mut server, &again);
        assert_eq!(tags(&said), "PDBES", "{forget}");
        assert!(said[0].contains("SELECT 2"), "{forget}: {said:?}");
        let ran = [frame(b'2', b""), done("SELECT 1"), ready("I")];
        let answers = [prepared(&[]), ran.to_vec()].concat();
        assert_eq!(heard(&mut session, &mut server, &answers), "12CZ");
        let said = told(
            &mut session,
            &mut server,
            &again[again.len() - SYNC.len()..],
        );
        assert_eq!(tags(&said), "S", "{forget}");
    }
    // Nothing is named where the pipeline ends.
    let client = [
        parse("", "DEALLOCATE ALL"),
        bind(""),
        execute(),
        SYNC.to_vec(),
    ]
    .concat();
    let mut batch = Batch::new();
    let planned = session().plan(&client, &mut batch);
    assert_eq!(planned, Ok(Planned::Batch(End::Ready)));
}

#[test]
fn what_a_server_says_of_its_statements_is_believed() {
    let (mut session, mut server) = (session(), server());
    let prepare = [parse("s", "SELECT 1"), SYNC.to_vec()].concat();
    let said = told(&mut session, &mut server, &prepare);
    let name = said[0].split("\\x00").next().unwrap()[2..].to_owned();
    let answers = [prepared(&[]), vec![ready("I")]].concat();
    heard(&mut session, &mut server, &answers);
    let error = |code: &str, what: &str, routine: &str| {
        let words = format!(
            "SERROR\0VERROR\0C{code}\0Mprepared statement \"{name}\" {what}\0R{routine}\0\0"
        );
        frame(b'E', words.as_bytes())
    };
    let missing = error("26000", "does not exist", "FetchPreparedStatement");
    let there = error("42P05", "already exists", "StorePreparedStatement");
    let run = [bind("s"), SYNC.to_vec()].concat();
    let describe = [frame(b'D', b"Ss\0"), SYNC.to_vec()].concat();
    let execute = frame(b'Q', b"EXECUTE s\0");

    // A function has dropped it; then another session's server has it after all.
    for client in [&run, &describe, &execute] {
        told(&mut session, &mut server, client);
        let answers = [missing.clone(), ready("I")];
        assert_eq!(heard(&mut session, &mut server, &answers), "EZ");
        // By now the server would have been asked what EXECUTE has set.
        session.uncertain = false;
        let said = told(&mut session, &mut server, &run);
        assert_eq!(tags(&said), "PDSBS", "{said:?}");
        let seen = heard(&mut session, &mut server, &[there.clone(), ready("I")]);
        assert_eq!(seen, "");
        heard(&mut session, &mut server, &[frame(b'2', b""), ready("I")]);
        assert_eq!(tags(&told(&mut session, &mut server, &run)), "BS");
        heard(&mut session, &mut server, &[frame(b'2', b""), ready("I")]);
    }
}

#[test]
fn a_name_that_prepare_has_taken_is_free_once_it_is_closed() {
    let (mut session, mut server) = (session(), server());
    let query = |session: &mut Session, server: &mut ServerState, sql: &str, status: &str| {
        told(session, server, &frame(b'Q', format!("{sql}\0").as_bytes()));
        let tag = sql.split(' ').next().unwrap();
        heard(session, server, &[done(tag), ready(status)]);
    };
    query(&mut session, &mut server, "BEGIN", "T");
    query(&mut session, &mut server, "PREPARE x AS SELECT 1", "T");
    let again = [parse("x", "SELECT 2"), SYNC.to_vec()].concat();
    let close = frame(b'C', b"Sx\0");
    let replaced = [close, again.clone()].concat();

    // What is skipped has closed nothing.
    let client = [bind("nowhere"), replaced.clone()].concat();
    assert_eq!(tags(&told(&mut session, &mut server, &client)), "BCPDS");
    heard(&mut session, &mut server, &[failed(), ready("T")]);
    assert_eq!(
        told(&mut session, &mut server, &again)[0],
        r"P x\x00SELECT 2\x00\x00\x00"
    );
    heard(&mut session, &mut server, &[failed(), ready("T")]);

    let said = told(&mut session, &mut server, &replaced);
    assert_eq!(tags(&said), "CPDS");
    assert!(said[1].starts_with("P _tidegate_"), "{said:?}");
    let answers = [vec![frame(b'3', b"")], prepared(&[]), vec![ready("T")]].concat();
    assert_eq!(heard(&mut session, &mut server, &answers), "31Z");

    for drop in ["DEALLOCATE y", "DEALLOCATE ALL"] {
        query(&mut session, &mut server, "PREPARE y AS SELECT 1", "T");
        assert!(session.pins.has_prepared(b"y"));
        query(&mut session, &mut server, drop, "T");
        assert!(!session.pins.has_prepared(b"y"), "{drop}");
    }
}

#[test]
fn a_server_with_a_statement_by_the_client_s_name_is_nobody_else_s() {
    let (mut session, mut server) = (session(), server());
    session.pins.found(Pin::PreparedStatement, b"x");
    told(
        &mut session,
        &mut server,
        &[parse("x", "SELECT 2"), SYNC.to_vec()].concat(),
    );
    assert_eq!(
        heard(&mut session, &mut server, &[frame(b'1', b""), ready("I")]),
        "1Z"
    );
    assert!(session.is_pinned() && session.spoils_server());
}

#[test]
fn the_texts_that_a_session_holds_are_bounded_together() {
    let mut session = session();
    let text = format!("SELECT '{}'", "x".repeat(Statements::NAMED_BYTES_MAX / 4));
    let plan = |session: &mut Session, name: &str| {
        let client = [parse(name, &text), SYNC.to_vec()].concat();
        session.plan(&client, &mut Batch::new())
    };
    for name in ["a", "b", "c"] {
        assert_eq!(plan(&mut session, name), Ok(Planned::Batch(End::Ready)));
    }
    let fault = plan(&mut session, "d").expect_err("there is no more room");
    assert_eq!(fault.sqlstate(), "54000");
    session
        .statements
        .insert(b"b", session.statements.get(b"a").unwrap().clone());
    session.statements.remove(b"a");
    assert_eq!(plan(&mut session, "d"), Ok(Planned::Batch(End::Ready)));
    session.statements.clear_named();
    for name in ["a", "b", "c"] {
        assert_eq!(plan(&mut session, name), Ok(Planned::Batch(End::Ready)));
    }
}

/// Runs `sql` on a server that answers with this status.
fn queried(session: &mut Session, server: &mut ServerState, sql: &str, status: &str) {
    told(session, server, &frame(b'Q', format!("{sql}\0").as_bytes()));
    let tag = sql.split(' ').next().unwrap();
    let settings = server.queue.len() - 1;
    let ready = ready(status);
    let said = [vec![ready.clone(); settings], vec![done(tag), ready]].concat();
    heard(session, server, &said);
}

/// PostgreSQL reads its constants once, by what is set then. Whoever has set something else since is given what is read by
/// that on another server; nobody else is.
#[test]
fn a_statement_that_is_prepared_under_other_settings_is_nobody_elses() {
    let shared = Arc::new(Shared::new(Classifier::new(Rules::default(), 100)));
    let session = || {
        let (settings, params) = (Settings::default(), params(&[]));
        Session::new(shared.clone(), "main/app/app", settings, params)
    };
    let (mut one, mut other) = (session(), session());
    let (mut first, mut second, mut third) = (server(), server(), server());
    let text = "SELECT '2020-01-01'::timestamptz";
    let prepare = [parse("s", text), SYNC.to_vec()].concat();
    let run = [bind("s"), execute(), SYNC.to_vec()].concat();
    let is_ready = vec![ready("I")];
    let ran = [frame(b'2', b""), done("SELECT 1"), ready("I")];
    let again = [
        vec![frame(b'3', b"")],
        prepared(b"t"),
        is_ready.clone(),
        ran.to_vec(),
    ];
    queried(&mut one, &mut first, "SET TimeZone = 'Asia/Tokyo'", "I");
    told(&mut one, &mut first, &prepare);
    let answers = [prepared(b"t"), is_ready.clone()].concat();
    heard(&mut one, &mut first, &answers);

    queried(&mut one, &mut first, "SET TimeZone = 'UTC'", "I");
    second.settings = one.settings().clone();
    for expected in ["PDSBES", "BES"] {
        assert_eq!(tags(&told(&mut one, &mut second, &run)), expected);
        let before = match expected.len() {
            3 => vec![],
            _ => answers.clone(),
        };
        heard(&mut one, &mut second, &[before, ran.to_vec()].concat());
    }

    queried(&mut other, &mut third, "SET TimeZone = 'Asia/Tokyo'", "I");
    second.settings = other.settings().clone();
    first.settings = other.settings().clone();
    assert_eq!(tags(&told(&mut other, &mut first, &prepare)), "S");
    heard(&mut other, &mut first, &is_ready);
    assert_eq!(tags(&told(&mut other, &mut second, &run)), "CPDSBES");
    heard(&mut other, &mut second, &again.concat());
    // That is as good for the first, as it is what it has prepared.
    second.settings = one.settings().clone();
    assert_eq!(tags(&told(&mut one, &mut second, &run)), "BES");
}

/// What applications set for their own use, for row-level security say, is no reason to prepare anything again.
#[test]
fn a_statement_means_the_same_whatever_an_application_sets_for_itself() {
    for (sql, is_same) in [
        ("SET LOCAL app.user = '1'", true),
        ("SELECT set_config('app.user', '1', true)", true),
        ("SET LOCAL statement_timeout = 100", true),
        ("SET CONSTRAINTS ALL DEFERRED", true),
        // A server reads the text anew by itself where names are found elsewhere, but not its constants.
        ("SET LOCAL search_path = other", true),
        ("SELECT set_config('search_path', 'other', true)", true),
        ("SET LOCAL TimeZone = 'UTC'", false),
        ("SELECT set_config('DateStyle', 'German', true)", false),
    ] {
        let (mut session, mut first, mut second) = (session(), server(), server());
        let prepare = [parse("s", "SELECT 1"), SYNC.to_vec()].concat();
        told(&mut session, &mut first, &prepare);
        let answers = [prepared(b"t"), vec![ready("I")]].concat();
        heard(&mut session, &mut first, &answers);
        queried(&mut session, &mut second, "BEGIN", "T");
        queried(&mut session, &mut second, sql, "T");
        let run = [bind("s"), execute(), SYNC.to_vec()].concat();
        told(&mut session, &mut second, &run);
        let fit = second.statements.iter().next().map(|(_, fit)| *fit);
        assert_eq!(fit == Some(Fit::Fits), is_same, "{sql}: {fit:?}");
    }
}

#[test]
fn what_returns_something_else_by_definitions_of_one_session_is_stale_for_nobody() {
    let shared = Arc::new(Shared::new(Classifier::new(Rules::default(), 100)));
    let session = || {
        Session::new(
            shared.clone(),
            "main/app/app",
            Settings::default(),
            params(&[]),
        )
    };
    let (mut one, mut other) = (session(), session());
    let (mut first, mut second) = (server(), server());
    let prepare = [parse("s", "SELECT * FROM t"), SYNC.to_vec()].concat();
    let answers = [prepared(b"a"), vec![ready("I")]].concat();
    for session in [&mut one, &mut other] {
        let said = told(session, &mut first, &prepare);
        match said.len() {
            1 => heard(session, &mut first, &[ready("I")]),
            _ => heard(session, &mut first, &answers),
        };
    }
    queried(&mut one, &mut second, "BEGIN", "T");
    queried(&mut one, &mut second, "ALTER TABLE t ADD b int", "T");
    let run = [bind("s"), execute(), SYNC.to_vec()].concat();
    let (mut batch, mut out) = (Batch::new(), BytesMut::new());
    one.plan(&run, &mut batch).unwrap();
    assert!(one.say_missing(&batch, &mut second, &mut out));
    let changed = [prepared(b"ab"), vec![ready("T")]].concat();
    assert_eq!(heard(&mut one, &mut second, &changed), "");
    assert!(!one.finds_all_on(&second, &batch));
    out.clear();
    one.say(&batch, &run, &mut second, &mut out);
    assert!(out.windows(14).any(|part| part == b"_tidegate_none"));
    assert_eq!(heard(&mut one, &mut second, &[failed(), ready("E")]), "EZ");
    queried(&mut one, &mut second, "ROLLBACK", "I");

    // Whoever comes first prepares it again.
    let ran = [frame(b'2', b""), done("SELECT 1"), ready("I")];
    for (session, expected) in [(&mut other, "CPDSBES"), (&mut one, "BES")] {
        assert_eq!(tags(&told(session, &mut second, &run)), expected);
        let again = match expected.len() {
            3 => vec![],
            _ => [vec![frame(b'3', b"")], answers.clone()].concat(),
        };
        assert_eq!(
            heard(session, &mut second, &[again, ran.to_vec()].concat()),
            "2CZ"
        );
    }
    assert_eq!(tags(&told(&mut one, &mut first, &run)), "BES");
}
