//! Reads that a replica fails for its own sake.

use super::super::repair::{Cause, Misplaced, Repairable};
use super::*;

fn error(code: &str) -> Vec<u8> {
    frame(b'E', format!("SERROR\0VERROR\0C{code}\0Mno\0\0").as_bytes())
}

/// What a replica has made of `client`, which it answers with `said`: why the batch is run elsewhere,
/// and the class of the statement that has failed.
fn failed_by(
    session: &mut Session,
    server: &mut ServerState,
    client: &[u8],
    said: &[Vec<u8>],
    repairable: Repairable,
) -> Option<(Misplaced, Option<Arc<Class>>)> {
    let mut batch = Batch::new();
    let planned = session.plan(client, &mut batch);
    assert_eq!(planned, Ok(Planned::Batch(End::Ready)));
    assert_eq!(batch.need, Need::Read);
    session.say(&batch, client, server, &mut BytesMut::new());
    server.repairable = repairable;
    let heard = heard(session, server, said);
    assert!(server.is_idle(), "the answer has been heard to its end");
    let misplaced = *server.misplaced.take()?;
    assert_eq!(heard, "", "the client sees nothing");
    let class = session.class_of(&misplaced, &batch, client);
    Some((misplaced, class))
}

fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

fn read(sql: &str) -> Vec<u8> {
    [parse("", sql), bind(""), execute()].concat()
}

fn answered() -> Vec<u8> {
    [frame(b'1', b""), frame(b'2', b""), done("SELECT 1")].concat()
}

#[test]
fn nothing_is_seen_of_what_a_replica_could_not_run() {
    for (code, cause) in [
        ("25006", Cause::Standby),
        ("42P01", Cause::Schema),
        ("40001", Cause::Conflict),
        ("58P01", Cause::Fault),
    ] {
        let (mut session, mut server) = (session(), server());
        let said = [frame(b'T', b"\0\0"), error(code), ready("I")];
        let client = query("SELECT a FROM t");
        let all = Repairable::All;
        let failed = failed_by(&mut session, &mut server, &client, &said, all);
        let (misplaced, class) = failed.expect("a replica's own error");
        assert_eq!((misplaced.cause, misplaced.sqlstate), (cause, code));
        assert_eq!(class, Some(session.classify(b"SELECT a FROM t")));

        let without_primary = Repairable::NotBySchema;
        let failed = failed_by(&mut session, &mut server, &client, &said, without_primary);
        assert_eq!(failed.is_none(), cause == Cause::Schema, "{code}");
        let no = Repairable::No;
        assert!(failed_by(&mut session, &mut server, &client, &said, no).is_none());
    }
}

/// Runs a pipeline of which this much is answered before an error; which of the texts has met it.
fn failed_text(client: &[u8], said: &[Vec<u8>]) -> Option<&'static str> {
    let (mut session, mut server) = (session(), server());
    let said = [said, &[error("25006"), ready("I")]].concat();
    let all = Repairable::All;
    let (_, class) = failed_by(&mut session, &mut server, client, &said, all)?;
    let class = class?;
    let texts = ["SELECT a", "SELECT b", "SELECT c"];
    let is_it = |sql: &&str| Arc::ptr_eq(&session.classify(sql.as_bytes()), &class);
    texts.into_iter().find(is_it)
}

#[test]
fn the_statement_that_has_failed_is_found_in_its_pipeline() {
    let reads = ["SELECT a", "SELECT b", "SELECT c"].map(read).concat();
    let reads = [&reads[..], encode::FLUSH, SYNC].concat();
    let (parsed, bound) = (frame(b'1', b""), frame(b'2', b""));
    let two = [parsed.clone(), bound.clone()];
    assert_eq!(failed_text(&reads, &[]), Some("SELECT a"));
    assert_eq!(failed_text(&reads, &two[..1]), Some("SELECT a"));
    assert_eq!(failed_text(&reads, &two), Some("SELECT a"));
    assert_eq!(failed_text(&reads, &[answered()]), Some("SELECT b"));
    let last = [answered(), answered(), parsed.clone(), bound.clone()];
    assert_eq!(failed_text(&reads, &last), Some("SELECT c"));

    let portal = |portal: &str, statement: &str| {
        let bind = format!("{portal}\0{statement}\0\0\0\0\0\0\0");
        (
            frame(b'B', bind.as_bytes()),
            frame(b'E', format!("{portal}\0\0\0\0\0").as_bytes()),
        )
    };
    let ((bind_p, run_p), (bind_q, run_q)) = (portal("p", "x"), portal("q", "y"));
    let prepared = [parse("x", "SELECT a"), parse("y", "SELECT b")].concat();
    let crossed = [&prepared[..], &bind_p, &bind_q, &run_q, &run_p, SYNC].concat();
    let shape = [frame(b't', b"\0\0"), frame(b'n', b"")].concat();
    let first = [
        parsed.clone(),
        shape.clone(),
        parsed,
        shape,
        bound.clone(),
        bound,
    ];
    assert_eq!(failed_text(&crossed, &first), Some("SELECT b"));
    let second = [&first[..], &[done("SELECT 1")]].concat();
    assert_eq!(failed_text(&crossed, &second), Some("SELECT a"));
}

#[test]
fn what_is_prepared_for_a_client_is_repaired_like_its_own() {
    let (mut session, mut first) = (session(), server());
    let prepare = [parse("s", "SELECT a FROM t"), SYNC.to_vec()].concat();
    told(&mut session, &mut first, &prepare);
    let answers = [prepared(b"a"), vec![ready("I")]].concat();
    assert_eq!(heard(&mut session, &mut first, &answers), "1Z");

    // A replica that has not heard of the table, where the statement is not prepared.
    let mut second = server();
    let run = [bind("s"), execute(), SYNC.to_vec()].concat();
    let said = [error("42P01"), ready("I")];
    let all = Repairable::All;
    let failed = failed_by(&mut session, &mut second, &run, &said, all);
    let (misplaced, class) = failed.expect("a replica's own error");
    assert_eq!(misplaced.cause, Cause::Schema);
    assert_eq!(class, Some(session.classify(b"SELECT a FROM t")));
    assert_eq!(tags(&told(&mut session, &mut first, &run)), "BES");
}

#[test]
fn a_text_that_a_replica_has_refused_is_a_write_for_everybody() {
    let (mut session, mut batch) = (session(), Batch::new());
    let client = query("SELECT a FROM v WHERE b = 1");
    session.plan(&client, &mut batch).expect("a batch");
    assert_eq!(batch.need, Need::Read);
    let class = session.classify(b"SELECT a FROM v WHERE b = 2");
    assert!(class.refuse());
    assert!(!class.refuse(), "it is no news");
    batch.clear();
    session.plan(&client, &mut batch).expect("a batch");
    assert_eq!((batch.need, batch.why), (Need::Write, Why::Refused));
}

#[test]
fn only_its_own_warning_is_a_servers_goodbye() {
    let warning = |code: &str, routine: &str| {
        let words = format!("SWARNING\0VWARNING\0C{code}\0Mcrash\0R{routine}\0\0");
        frame(b'N', words.as_bytes())
    };
    let ends = |said: &[u8]| {
        let (mut session, mut server) = (session(), server());
        told(&mut session, &mut server, &query("SELECT 1"));
        let mut answer = Answer::default();
        let heard = session.hear(&mut server, said, &mut answer);
        assert_eq!(answer.is_empty(), heard.is_err());
        matches!(heard, Err(ServerFault::Ended(_)))
    };
    assert!(ends(&warning("57P02", "quickdie")));
    assert!(ends(&warning("57P01", "quickdie")));
    assert!(!ends(&warning("57P02", "exec_stmt_raise")));
    assert!(!ends(&warning("01000", "quickdie")));
}
