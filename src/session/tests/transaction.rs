//! Transactions that are not on the primary: what may run in them there, and what opens them elsewhere.

use super::super::transaction::Verdict;
use super::*;
use crate::config::TransactionReads;

const EAGER: TransactionReads = TransactionReads::Replica;

fn eager() -> Session {
    let mut params = params(&[]);
    params.set_isolation(Some(Isolation::ReadCommitted));
    session_with(params)
}

fn planned(session: &mut Session, sql: &str) -> (Batch, Vec<u8>) {
    let client = frame(b'Q', format!("{sql}\0").as_bytes());
    let mut batch = Batch::new();
    let planned = session.plan(&client, &mut batch);
    assert_eq!(planned, Ok(Planned::Batch(End::Ready)), "{sql}");
    (batch, client)
}

/// Runs a statement on a replica, which answers with this tag and status.
fn run(session: &mut Session, server: &mut ServerState, sql: &str, answer: [&str; 2]) {
    let (batch, client) = planned(session, sql);
    session.note(&batch);
    session.note_place(&batch, Some(EAGER));
    session.say(&batch, &client, server, &mut BytesMut::new());
    let [tag, status] = answer;
    heard(session, server, &[done(tag), ready(status)]);
}

fn verdict(session: &mut Session, sql: &str) -> Verdict {
    let (batch, _) = planned(session, sql);
    session.verdict(&batch)
}

/// What another server is told to open the transaction.
fn opening(session: &mut Session, server: &mut ServerState) -> Vec<String> {
    let mut out = BytesMut::new();
    session.say_opening(server, false, &mut out);
    let mut said = Vec::new();
    while let Some(head) = header(&out).unwrap() {
        let frame = out.split_to(head.len);
        let text = body(&frame).strip_suffix(b"\0").expect("a Query");
        said.push(String::from_utf8(text.to_vec()).expect("a text"));
    }
    said
}

#[test]
fn an_explanation_makes_the_snapshot_that_is_kept() {
    for (isolation, may_move) in [("READ COMMITTED", true), ("REPEATABLE READ", false)] {
        let (mut session, mut replica) = (eager(), server());
        let begin = format!("BEGIN ISOLATION LEVEL {isolation}, READ ONLY");
        run(&mut session, &mut replica, &begin, ["BEGIN", "T"]);
        assert!(session.may_move());
        let question = "EXPLAIN ROUTE SELECT 1";
        let (mut batch, client) = planned(&mut session, question);
        batch.questions().for_each(|question| question.answer(&[]));
        session.note(&batch);
        session.note_place(&batch, Some(EAGER));
        session.say(&batch, &client, &mut replica, &mut BytesMut::new());
        heard(&mut session, &mut replica, &[done("SELECT 0"), ready("T")]);
        assert_eq!(session.may_move(), may_move, "{isolation}");
    }
}

#[test]
fn what_was_set_and_saved_is_said_again_elsewhere() {
    let (mut session, mut replica, mut primary) = (eager(), server(), server());
    run(&mut session, &mut replica, "SET a.b = 1", ["SET", "I"]);
    let begin = "BEGIN ISOLATION LEVEL READ UNCOMMITTED, READ ONLY, NOT DEFERRABLE";
    run(&mut session, &mut replica, begin, ["BEGIN", "T"]);
    assert!(session.roams_on_replica());
    for (sql, tag) in [
        ("SELECT 1", "SELECT 1"),
        ("SAVEPOINT x -- here", "SAVEPOINT"),
        ("SET c.d = 2", "SET"),
        ("ROLLBACK TO x", "ROLLBACK"),
        ("SET LOCAL work_mem = 3", "SET"),
    ] {
        run(&mut session, &mut replica, sql, [tag, "T"]);
    }
    session.leave_replica(&mut replica);
    assert_eq!(replica.settings.names().collect::<Vec<_>>(), ["a.b"]);
    let said = opening(&mut session, &mut primary);
    assert_eq!(
        said,
        [
            "SET a.b = 1\n;",
            "BEGIN ISOLATION LEVEL read uncommitted READ ONLY NOT DEFERRABLE;\n\
             SAVEPOINT x\n;SET c.d = 2\n;ROLLBACK TO x\n;SET LOCAL work_mem = 3\n;SELECT;",
        ]
    );
    assert!(!session.roams());
    // ROLLBACK undoes what the transaction has set, on the server as in the session.
    let answers = [done("SET"), ready("I"), done("BEGIN"), ready("T")];
    assert_eq!(heard(&mut session, &mut primary, &answers), "");
    let rollback = frame(b'Q', b"ROLLBACK\0");
    told(&mut session, &mut primary, &rollback);
    heard(&mut session, &mut primary, &[done("ROLLBACK"), ready("I")]);
    for settings in [session.settings(), &primary.settings] {
        assert_eq!(settings.names().collect::<Vec<_>>(), ["a.b"]);
    }
}

#[test]
fn a_transaction_stays_where_it_reads() {
    let (stays, moves) = (Verdict::Stays, Verdict::Moves);
    for (begin, sql, expected) in [
        ("BEGIN", "SELECT a FROM t", stays),
        ("BEGIN", "COMMIT AND CHAIN", stays),
        ("BEGIN", "SET LOCAL statement_timeout = 1", stays),
        ("BEGIN", "DEALLOCATE p", stays),
        ("BEGIN", "UPDATE t SET a = 1", moves),
        ("BEGIN", "SELECT 1; SAVEPOINT a", moves),
        ("BEGIN", "SHOW work_mem", moves),
        ("BEGIN READ ONLY", "SHOW work_mem", stays),
        ("BEGIN READ ONLY", "SHOW tidegate.token", moves),
        ("BEGIN READ ONLY", "SET tidegate.max_lag = '1s'", moves),
        ("BEGIN READ ONLY", "SET transaction_read_only = off", moves),
        ("BEGIN READ ONLY", "PREPARE p AS SELECT 1", moves),
        (
            "BEGIN READ ONLY",
            "SELECT set_config('a.b', 'c', false)",
            moves,
        ),
        ("BEGIN READ ONLY", "DECLARE c CURSOR FOR SELECT 1", stays),
        (
            "BEGIN READ ONLY",
            "DECLARE c CURSOR FOR SELECT nextval('s')",
            moves,
        ),
        ("BEGIN", "DECLARE c CURSOR FOR SELECT 1", moves),
        ("BEGIN", "BEGIN", moves),
        ("BEGIN", "BEGIN ISOLATION LEVEL SERIALIZABLE", moves),
        (
            "BEGIN",
            "SELECT current_setting('Transaction_Read_Only')",
            moves,
        ),
        ("BEGIN READ ONLY", "SHOW transaction_read_only", stays),
    ] {
        let (mut session, _) = begun(begin);
        assert_eq!(verdict(&mut session, sql), expected, "{begin}; {sql}");
    }
}

#[test]
fn what_a_transaction_holds_ties_it() {
    let begun = |begin: &str, then: &str| {
        let (mut session, mut replica) = begun(begin);
        run(&mut session, &mut replica, then, ["SELECT 1", "T"]);
        (session, replica)
    };
    let snapshot = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let (mut session, mut replica) = begun(snapshot, "SELECT a FROM t");
    assert_eq!(verdict(&mut session, "LOCK t"), Verdict::Refused);
    assert_eq!(verdict(&mut session, "SELECT b FROM t"), Verdict::Stays);
    run(
        &mut session,
        &mut replica,
        "ROLLBACK AND CHAIN",
        ["ROLLBACK", "T"],
    );
    assert_eq!(verdict(&mut session, "LOCK t"), Verdict::Moves, "a new one");
    let (mut session, _) = begun("BEGIN READ ONLY", "DECLARE c CURSOR FOR SELECT 1");
    assert_eq!(verdict(&mut session, "LOCK t"), Verdict::Refused);
    let (mut session, _) = begun("BEGIN READ ONLY", "SELECT a FROM t");
    assert_eq!(verdict(&mut session, "LOCK t"), Verdict::Moves);
    // What would have to be said again is bounded.
    let (mut session, mut replica) = begun("BEGIN", "SELECT a FROM t");
    let long = format!("SET LOCAL a.b = '{}'", "x".repeat(9000));
    assert_eq!(verdict(&mut session, &long), Verdict::Stays);
    run(&mut session, &mut replica, &long, ["SET", "T"]);
    assert_eq!(verdict(&mut session, &long), Verdict::Moves);
    assert_eq!(verdict(&mut session, "SELECT a FROM t"), Verdict::Stays);
}

/// A transaction that has begun on a replica.
fn begun(begin: &str) -> (Session, ServerState) {
    let (mut session, mut replica) = (eager(), server());
    run(&mut session, &mut replica, begin, ["BEGIN", "T"]);
    (session, replica)
}

/// Plans these messages and a Sync.
fn pipeline(session: &mut Session, messages: &[Vec<u8>]) -> Batch {
    let mut batch = Batch::new();
    let client = [&messages.concat()[..], SYNC].concat();
    let planned = session.plan(&client, &mut batch);
    assert_eq!(planned, Ok(Planned::Batch(End::Ready)));
    batch
}

#[test]
fn what_comes_behind_a_chain_ties_the_next_transaction() {
    let snapshot = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let cursor = "DECLARE c CURSOR FOR SELECT 1";
    let limited = frame(b'E', b"\0\0\0\0\x01");
    for (begin, then, expected) in [
        (
            snapshot,
            vec![parse("", "SELECT a FROM t"), bind(""), execute()],
            Verdict::Refused,
        ),
        (
            "BEGIN READ ONLY",
            vec![parse("", cursor), bind(""), execute()],
            Verdict::Refused,
        ),
        (
            "BEGIN READ ONLY",
            vec![parse("", "SELECT a FROM t"), bind(""), limited],
            Verdict::Refused,
        ),
        (snapshot, vec![], Verdict::Moves),
    ] {
        let (mut session, mut replica) = begun(begin);
        let chain = [parse("", "COMMIT AND CHAIN"), bind(""), execute()].to_vec();
        let messages = [chain, then.clone()].concat();
        let client = [&messages.concat()[..], SYNC].concat();
        let batch = pipeline(&mut session, &messages);
        session.note(&batch);
        session.note_place(&batch, Some(EAGER));
        session.say(&batch, &client, &mut replica, &mut BytesMut::new());
        let (parsed, bound) = (frame(b'1', b""), frame(b'2', b""));
        let mut answer = vec![parsed.clone(), bound.clone(), done("COMMIT")];
        if !then.is_empty() {
            answer.extend([parsed, bound, done("SELECT 1")]);
        }
        answer.push(ready("T"));
        heard(&mut session, &mut replica, &answer);
        let goes_on = [
            frame(b'E', b"\0\0\0\0\x01"),
            parse("", "LOCK t"),
            bind(""),
            execute(),
        ];
        let batch = pipeline(&mut session, &goes_on);
        assert_eq!(
            session.verdict(&batch),
            expected,
            "{begin}: {} messages",
            then.len()
        );
    }
}

#[test]
fn words_are_bounded_though_a_portal_is_gone_on_with() {
    let (mut session, _) = begun("BEGIN READ ONLY");
    let batch = pipeline(
        &mut session,
        &[
            parse("", "SELECT a FROM t"),
            bind(""),
            frame(b'E', b"\0\0\0\0\x01"),
        ],
    );
    session.note_place(&batch, Some(EAGER));
    let long = format!("SET LOCAL a.b = '{}'", "x".repeat(9000));
    let statement = session.classify(long.as_bytes()).statements[0];
    for _ in 0..100 {
        session.log(&statement, Some(long.as_bytes()));
    }
    assert!(!session.may_move_for(&Batch::new()));
    assert_eq!(verdict(&mut session, "LOCK t"), Verdict::Refused);
}

#[test]
fn an_unnamed_portal_ties_a_transaction_to_what_goes_on_with_it() {
    let after = |messages: &[Vec<u8>]| {
        let (mut session, _) = begun("BEGIN READ ONLY");
        let batch = pipeline(&mut session, messages);
        session.note_place(&batch, Some(EAGER));
        session
    };
    let verdict = |messages: &[Vec<u8>], then: &[Vec<u8>]| {
        let mut session = after(messages);
        let batch = pipeline(&mut session, then);
        session.verdict(&batch)
    };
    let named =
        |tag: u8, portal: &str, rest: &[u8]| frame(tag, &[portal.as_bytes(), b"\0", rest].concat());
    let rows = |portal: &str, most: u8| named(b'E', portal, &[0, 0, 0, most]);
    let read = || [parse("", "SELECT a FROM t"), bind("")];
    let first = [&read()[..], &[rows("", 1)]].concat();
    let lock = [parse("", "LOCK t"), bind(""), execute()].to_vec();
    let query = vec![frame(b'Q', b"LOCK t\0")];
    let goes_on = [vec![rows("", 1)], lock.clone()].concat();

    assert_eq!(verdict(&first, &lock), Verdict::Moves);
    assert_eq!(verdict(&first, &[rows("", 1)]), Verdict::Stays);
    assert_eq!(verdict(&first, &goes_on), Verdict::Refused);
    let described = [vec![named(b'D', "P", b"")], lock.clone()].concat();
    assert_eq!(verdict(&first, &described), Verdict::Refused);
    // It is closed, or has been run to its end, or another one has taken its place.
    let closed = [first.clone(), vec![named(b'C', "P", b"")]].concat();
    assert_eq!(verdict(&closed, &goes_on), Verdict::Moves);
    let ended = [first.clone(), vec![rows("", 0)]].concat();
    assert_eq!(verdict(&ended, &goes_on), Verdict::Moves);
    let again = [first.clone(), read().to_vec(), vec![execute()]].concat();
    assert_eq!(verdict(&again, &goes_on), Verdict::Moves);
    // What has nothing to do with it neither moves the transaction, nor is refused.
    let prepares = [parse("w", "LOCK t"), named(b'D', "Sw", b"")];
    assert_eq!(verdict(&first, &prepares), Verdict::Stays);
    for then in [&prepares[..], &[], &[frame(b'C', b"Sw\0")]] {
        let mut session = after(&first);
        let batch = pipeline(&mut session, then);
        assert!(!session.may_move_for(&batch));
    }
    let mut session = after(&first);
    let empty = pipeline(&mut session, &[frame(b'Q', b"\0")]);
    session.note_place(&empty, Some(EAGER));
    let batch = pipeline(&mut session, &goes_on);
    assert_eq!(session.verdict(&batch), Verdict::Refused);
    // One with a name is open until its transaction ends.
    let with_name = frame(b'B', b"p\0\0\0\0\0\0\0\0");
    let cursor = [parse("", "SELECT a FROM t"), with_name, rows("p", 1)];
    assert_eq!(verdict(&cursor, &lock), Verdict::Refused);
    assert_eq!(verdict(&cursor, &query), Verdict::Refused);
}

#[test]
fn only_what_can_be_undone_on_a_standby_begins_there() {
    let opens = |begin: &str, reads| {
        let mut session = eager();
        let (batch, _) = planned(&mut session, begin);
        session.opens_elsewhere(&batch, reads)
    };
    for (begin, usually, eagerly) in [
        ("BEGIN", false, true),
        ("BEGIN READ WRITE", false, false),
        ("BEGIN READ ONLY", true, true),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", false, false),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ", false, false),
        (
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            true,
            true,
        ),
        ("BEGIN READ ONLY; SELECT 1", false, false),
        ("SELECT 1", false, false),
    ] {
        assert_eq!(opens(begin, TransactionReads::Primary), usually, "{begin}");
        assert_eq!(opens(begin, EAGER), eagerly, "{begin}");
    }
    // A pipeline goes where all of it may.
    let step = |sql: &str| [parse("", sql), bind(""), execute()].concat();
    for (texts, expected) in [
        (&["BEGIN", "SELECT 1", "COMMIT"][..], true),
        (&["BEGIN", "SELECT 1", "INSERT INTO t VALUES (1)"], false),
        (&["SELECT 1", "BEGIN"], false),
        (&["BEGIN", "COMMIT", "BEGIN"], false),
    ] {
        let mut session = eager();
        let steps: Vec<Vec<u8>> = texts.iter().map(|sql| step(sql)).collect();
        let client = [&steps.concat()[..], SYNC].concat();
        let mut batch = Batch::new();
        let planned = session.plan(&client, &mut batch);
        assert_eq!(planned, Ok(Planned::Batch(End::Ready)));
        assert_eq!(
            session.opens_elsewhere(&batch, EAGER),
            expected,
            "{texts:?}"
        );
    }
    // What transactions are by default is not known of every server.
    let mut unknown = session();
    let (batch, _) = planned(&mut unknown, "BEGIN READ ONLY");
    assert!(!unknown.opens_elsewhere(&batch, EAGER));
    // Nor does one begin elsewhere while something ties its session to the primary.
    let mut pinned = eager();
    pinned.pins.touched(Pin::Listen);
    let (batch, _) = planned(&mut pinned, "BEGIN READ ONLY");
    assert!(!pinned.opens_elsewhere(&batch, EAGER));
}

#[test]
fn what_found_no_server_has_set_nothing() {
    let mut params = params(&[("TimeZone", "UTC")]);
    params.set_isolation(Some(Isolation::ReadCommitted));
    let (mut session, mut replica) = (session_with(params), server());
    run(&mut session, &mut replica, "BEGIN", ["BEGIN", "T"]);
    let zone = frame(b'Q', b"SET TimeZone = 'Asia/Tokyo'\0");
    told(&mut session, &mut replica, &zone);
    let status = frame(b'S', b"TimeZone\0Asia/Tokyo\0");
    let answers = [done("SET"), status, ready("T")];
    assert_eq!(heard(&mut session, &mut replica, &answers), "CSZ");
    for (sql, tag) in [
        ("SAVEPOINT a", "SAVEPOINT"),
        ("ROLLBACK TO a", "ROLLBACK"),
        ("SET LOCAL work_mem = 3", "SET"),
    ] {
        run(&mut session, &mut replica, sql, [tag, "T"]);
    }
    session.leave_replica(&mut replica);
    session.fail_unopened();
    let (rollback, client) = planned(&mut session, "ROLLBACK");
    assert!(session.ends_unopened(&rollback, &client));
    let mut out = BytesMut::new();
    session.end_unopened(&rollback, &mut out);
    let expected = [
        done("ROLLBACK"),
        frame(b'S', b"TimeZone\0UTC\0"),
        ready("I"),
    ];
    assert_eq!(out, expected.concat());
    assert!(*session.settings() == Settings::default());
    assert!(!session.is_set_unseen() && !session.must_inspect());
    // What the next transaction sets is its own.
    run(&mut session, &mut replica, "SET a.b = 1", ["SET", "I"]);
    assert_eq!(session.settings().names().collect::<Vec<_>>(), ["a.b"]);
    assert!(session.before.is_none());
}

#[test]
fn a_database_is_left_for_what_runs_by_itself() {
    let query = |sql: &str| frame(b'Q', format!("{sql}\0").as_bytes());
    let (drop, sleep) = ("DROP DATABASE d", "SELECT pg_sleep(3600)");
    let run = |parsed: &[u8], bound: &str| [parsed, &bind(bound), &execute(), SYNC].concat();
    let both = [parse("a", drop), parse("b", sleep)].concat();
    let twice = [&both[..], &bind("b"), &execute(), &bind("a"), &execute()].concat();
    for (client, is_left) in [
        (query(&format!("{drop};")), true),
        (query(&format!("{sleep}; {drop}")), false),
        (query(&format!("{drop}; {drop}")), false),
        (run(&parse("", drop), ""), true),
        (run(&both, "a"), true),
        (run(&both, "b"), false),
        ([&twice[..], SYNC].concat(), false),
    ] {
        let (session, mut batch) = (&mut session(), Batch::new());
        let planned = session.plan(&client, &mut batch);
        assert_eq!(planned, Ok(Planned::Batch(End::Ready)));
        assert!(batch.touches_databases);
        let left = session.to_be_left(&batch, &client);
        assert_eq!(left.is_some(), is_left, "{}", client.escape_ascii());
    }
}
