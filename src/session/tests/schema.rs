//! What counts as a change of the schema, and when.

use super::*;

/// How often the schema has been changed, after each of these batches; an answer begins with the tags
/// of what has succeeded, `!` for an error, and ends with the status.
fn versions(batches: &[(&str, &[&str])]) -> Vec<u32> {
    let (mut session, mut server) = (session(), server());
    let one = |(sql, answer): &(&str, &[&str])| {
        told(
            &mut session,
            &mut server,
            &frame(b'Q', format!("{sql}\0").as_bytes()),
        );
        let before = session.schema().version();
        for (index, word) in answer.iter().enumerate() {
            let said = match *word {
                "!" => failed(),
                word if index + 1 == answer.len() => ready(word),
                tag => done(tag),
            };
            heard(&mut session, &mut server, &[said]);
        }
        let changed = session.schema().version() > before;
        assert!(!changed || session.take_did().reshaped);
        session.schema().version()
    };
    batches.iter().map(one).collect()
}

#[test]
fn what_is_committed_by_itself_counts_at_once() {
    let create = ("CREATE TABLE t (a int)", &["CREATE TABLE", "I"][..]);
    let function = ("CREATE FUNCTION f() …", &["CREATE FUNCTION", "I"][..]);
    let alter = ("ALTER TABLE t ADD b int", &["ALTER TABLE", "I"][..]);
    let grant = ("GRANT SELECT ON t TO x", &["GRANT", "I"][..]);
    let all = [create, function, alter, grant];
    assert_eq!(versions(&all), [1, 2, 3, 4]);
    let insert = ("INSERT INTO t VALUES (1)", &["INSERT 0 1", "I"][..]);
    let temporary = ("CREATE TEMP TABLE t (a int)", &["CREATE TABLE", "I"][..]);
    let failed = ("CREATE TABLE t (a int)", &["!", "I"][..]);
    let call = ("CALL p()", &["CALL", "I"][..]);
    assert_eq!(versions(&[insert, temporary, failed, call]), [0; 4]);
}

#[test]
fn what_is_done_in_a_transaction_counts_when_it_is_committed() {
    let begin = ("BEGIN", &["BEGIN", "T"][..]);
    let create = ("CREATE TABLE t (a int)", &["CREATE TABLE", "T"][..]);
    let commit = ("COMMIT", &["COMMIT", "I"][..]);
    assert_eq!(versions(&[begin, create, commit]), [0, 0, 1]);
    let rollback = ("ROLLBACK", &["ROLLBACK", "I"][..]);
    assert_eq!(versions(&[begin, create, rollback, begin, commit]), [0; 5]);
    let fails = ("SELECT 1/0", &["!", "E"][..]);
    let in_vain = ("COMMIT", &["ROLLBACK", "I"][..]);
    assert_eq!(versions(&[begin, create, fails, in_vain]), [0; 4]);
    let prepare = ("PREPARE TRANSACTION 'x'", &["PREPARE TRANSACTION", "I"][..]);
    let prepared = ("COMMIT PREPARED 'x'", &["COMMIT PREPARED", "I"][..]);
    assert_eq!(versions(&[begin, create, prepare, prepared]), [0, 0, 0, 1]);
    let chain = ("COMMIT AND CHAIN", &["COMMIT", "T"][..]);
    assert_eq!(versions(&[begin, create, chain, rollback]), [0, 0, 1, 1]);
}

#[test]
fn what_a_text_does_before_it_fails_counts_if_it_is_committed() {
    let undone = (
        "CREATE TABLE t (a int); SELECT 1/0",
        &["CREATE TABLE", "!", "I"][..],
    );
    let done = (
        "BEGIN; CREATE TABLE t (a int); COMMIT; SELECT 1/0",
        &["BEGIN", "CREATE TABLE", "COMMIT", "!", "I"][..],
    );
    assert_eq!(versions(&[undone, done]), [0, 1]);
}

#[test]
fn a_commit_that_may_have_succeeded_counts() {
    let (mut session, mut server) = (session(), server());
    for (sql, tag, status) in [
        ("BEGIN", "BEGIN", "T"),
        ("CREATE TABLE t (a int)", "CREATE TABLE", "T"),
    ] {
        told(
            &mut session,
            &mut server,
            &frame(b'Q', format!("{sql}\0").as_bytes()),
        );
        heard(&mut session, &mut server, &[done(tag), ready(status)]);
    }
    told(&mut session, &mut server, &frame(b'Q', b"COMMIT\0"));
    assert_eq!(session.schema().version(), 0);
    session.lost_server();
    assert_eq!(session.schema().version(), 1);
}

#[test]
fn a_definition_that_fails_or_is_undone_outdates_nothing() {
    let outdated = |batches: &[(&str, &[Vec<u8>])]| {
        let (mut session, mut server) = (session(), server());
        session.set_catalog(Arc::default());
        for (sql, answer) in batches {
            let client = frame(b'Q', format!("{sql}\0").as_bytes());
            told(&mut session, &mut server, &client);
            heard(&mut session, &mut server, answer);
        }
        session.take_did().outdated
    };
    let create = "CREATE SCHEMA app";
    let (created, begun) = (done("CREATE SCHEMA"), done("BEGIN"));
    assert!(outdated(&[(create, &[created.clone(), ready("I")])]));
    assert!(!outdated(&[(create, &[failed(), ready("I")])]));
    let begin: (&str, &[Vec<u8>]) = ("BEGIN", &[begun, ready("T")]);
    let undone: (&str, &[Vec<u8>]) = ("ROLLBACK", &[done("ROLLBACK"), ready("I")]);
    assert!(!outdated(&[
        begin,
        (create, &[created, ready("T")]),
        undone
    ]));
    assert!(!outdated(&[
        begin,
        (create, &[failed(), ready("E")]),
        undone
    ]));
}
