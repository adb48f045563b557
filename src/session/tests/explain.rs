//! EXPLAIN ROUTE: what a server is told in its place.

use super::*;
use crate::sql::explain::Line;

const ANSWER: &str = r"SELECT * FROM (VALUES ('goes to', 'it''s')) AS route(item, value)";
const SHAPE: &str = "SELECT * FROM (VALUES ('', '')) AS route(item, value)";

fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', format!("{sql}\0").as_bytes())
}

/// Answers what `batch` asks; gives what that is about.
fn answer(batch: &mut Batch) -> Vec<String> {
    let line: Line = ("goes to".to_owned(), "it's".to_owned());
    let questions = batch.questions().map(|question| {
        question.answer(std::slice::from_ref(&line));
        String::from_utf8(question.sql.clone()).expect("text")
    });
    questions.collect()
}

#[test]
fn the_answer_is_said_in_place_of_the_question() {
    let (mut session, mut server) = (session(), server());
    let client = query("EXPLAIN ROUTE DELETE FROM t");
    let said = told_after(&mut session, &mut server, &client, |batch| {
        assert!(batch.explains && batch.only_explains() && !batch.shows_data);
        assert_eq!(answer(batch), ["  DELETE FROM t"]);
    });
    assert_eq!(said, [format!("Q {}\\x00", ANSWER.replace('\'', r"\'"))]);
    let answers = [frame(b'T', b"\0\0"), done("SELECT 1"), ready("I")];
    assert_eq!(heard(&mut session, &mut server, &answers), "TCZ");
    assert_eq!(session.take_did(), Did::default());
}

#[test]
fn what_was_prepared_is_answered_anew_each_time() {
    let (mut session, mut server) = (session(), server());
    for name in ["", "s"] {
        let parse = [parse(name, "EXPLAIN ROUTE SELECT 1"), SYNC.to_vec()].concat();
        let said = told_after(&mut session, &mut server, &parse, |batch| {
            assert!(!batch.explains && batch.only_explains());
        });
        assert!(said[0].contains(&SHAPE.replace('\'', r"\'")), "{said:?}");
        let answers = match name {
            "" => vec![frame(b'1', b""), ready("I")],
            _ => [prepared(b"iv"), vec![ready("I")]].concat(),
        };
        assert_eq!(heard(&mut session, &mut server, &answers), "1Z");
        for _ in 0..2 {
            let run = [bind(name), execute(), SYNC.to_vec()].concat();
            let said = told_after(&mut session, &mut server, &run, |batch| {
                assert!(!session_is_ordinary(batch));
                assert_eq!(answer(batch), ["  SELECT 1"]);
            });
            assert_eq!(tags(&said), "PBES");
            let expected = format!(r"P \x00{}\x00\x00\x00", ANSWER.replace('\'', r"\'"));
            assert_eq!(said[0], expected);
            assert!(said[1].starts_with(r"B \x00\x00"), "{said:?}");
            let answers = [
                frame(b'1', b""),
                frame(b'2', b""),
                done("SELECT 1"),
                ready("I"),
            ];
            assert_eq!(heard(&mut session, &mut server, &answers), "2CZ");
        }
    }
    // The server's unnamed statement is the answer, and not what the client has prepared.
    let describe = [frame(b'D', b"S\0"), SYNC.to_vec()].concat();
    let said = told(&mut session, &mut server, &describe);
    assert_eq!(tags(&said), "PDS");
}

fn session_is_ordinary(batch: &Batch) -> bool {
    session().is_ordinary(batch)
}

#[test]
fn what_nobody_has_answered_fails() {
    for (client, answers) in [
        (query("EXPLAIN ROUTE SELECT 1"), vec![failed(), ready("I")]),
        (
            [
                parse("", "EXPLAIN ROUTE SELECT 1"),
                bind(""),
                execute(),
                SYNC.to_vec(),
            ]
            .concat(),
            vec![frame(b'1', b""), failed(), ready("I")],
        ),
    ] {
        let (mut session, mut server) = (session(), server());
        told(&mut session, &mut server, &client);
        let mut answer = Answer::default();
        let said = answers.concat();
        let heard = session.hear(&mut server, &said, &mut answer);
        assert_eq!(heard, Ok(said.len()));
        assert!(answer.own.windows(5).any(|part| part == b"0A000"));
        assert!(server.is_idle(), "and the session goes on");
    }
}

#[test]
fn one_statement_is_explained_at_a_time() {
    let refused = |sql: &str| {
        let (mut session, mut batch) = (session(), Batch::new());
        session.plan(&query(sql), &mut batch).expect("a batch");
        batch.refused().map(|complaint| complaint.sqlstate)
    };
    for sql in [
        "EXPLAIN ROUTE SELECT 1; SELECT 2",
        "EXPLAIN ROUTE SELECT 1; DELETE FROM t",
        "BEGIN; EXPLAIN ROUTE SELECT 1",
        "EXPLAIN ROUTE EXPLAIN ROUTE SELECT 1",
    ] {
        assert_eq!(refused(sql), Some("42601"), "{sql}");
    }
    assert_eq!(refused("EXPLAIN ROUTE SELECT ';';"), None);
    assert_eq!(refused("EXPLAIN ROUTE EXPLAIN SELECT 1"), None);
    assert_eq!(refused("EXPLAIN ROUTE"), None, "PostgreSQL says what it is");
}

#[test]
fn it_is_the_least_of_what_a_pipeline_asks() {
    let both = |first: &str, second: &str| {
        let extended = |sql: &str| [parse("", sql), bind(""), execute()].concat();
        let (mut session, mut batch) = (session(), Batch::new());
        let client = [extended(first), extended(second), SYNC.to_vec()].concat();
        session.plan(&client, &mut batch).expect("a batch");
        (batch.only_explains(), batch.why)
    };
    let explain = "EXPLAIN ROUTE SELECT 1";
    assert_eq!(both(explain, explain), (true, Why::ExplainRoute));
    assert!(!both(explain, "SELECT 1").0 && !both("SELECT 1", explain).0);
    for other in ["SHOW a", "BEGIN", "DELETE FROM t"] {
        let (one, two) = (both(explain, other), both(other, explain));
        assert_eq!(one, two, "{other}");
        assert!(!one.0, "{other}");
    }
}

#[test]
fn what_is_explained_is_looked_at_as_a_batch_of_its_own() {
    let session = session();
    let (batch, lines) = session.look_at(b"/* tidegate: eventual */ SELECT a FROM t", 0);
    assert_eq!((batch.need, batch.has_unhinted), (Need::Read, false));
    assert!(batch.hints.is_some_and(|hints| hints.wish.level.is_some()));
    let has = |item: &str, value: &str| lines.iter().any(|line| line.0 == item && line.1 == value);
    assert!(has("class", "read") && has("relations", "t"), "{lines:?}");
    let refused = |sql: &[u8]| session.look_at(sql, 0).0.refused().map(|c| c.sqlstate);
    assert_eq!(refused(b"/* tidegate: primry */ SELECT 1"), Some("22023"));
    assert_eq!(refused(b"SET tidegate.max_lag = 5"), Some("22023"));
}
