//! Tests of whole classes.
//!
//! Owns: the tables of what is a read and what is not, and the limits. Never: needs a server; the
//! reads were checked against a hot standby when they were listed.

mod limits;
mod reads;
mod writes;

use super::super::{Modes, fingerprint};
use super::*;

fn class_with(sql: &str, rules: &Rules) -> Class {
    fingerprint::with(sql.as_bytes(), true, |normal| {
        let (text, shape) = normal.expect("a short text");
        classify(text, Reading::Normal(shape), rules)
    })
}

fn class(sql: &str) -> Class {
    class_with(sql, &Rules::default())
}

/// Checks that all of `texts` have one class. A failure lists every text that has not.
fn check(need: Need, why: Why, texts: &[&str]) {
    let wrong: Vec<_> = texts
        .iter()
        .filter_map(|sql| {
            let class = class(sql);
            let wrong = (class.need, class.why) != (need, why);
            wrong.then(|| format!("{:?} {:?}: {sql}", class.need, class.why))
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "expected {need:?} {why:?}\n{}",
        wrong.join("\n")
    );
}

#[test]
fn several_statements_take_the_strictest_class() {
    for (sql, need, why, count) in [
        ("", Need::Read, Why::Empty, 0),
        (" ; /* x */ ; ", Need::Read, Why::Empty, 0),
        ("select 1; select 2;", Need::Read, Why::ProvenRead, 2),
        ("select 1; delete from t", Need::Write, Why::DataChange, 2),
        ("delete from t; select 1", Need::Write, Why::DataChange, 2),
        ("select f(); delete from t", Need::Write, Why::DataChange, 2),
        (
            "delete from t; select f(); drop table t",
            Need::Write,
            Why::DataChange,
            3,
        ),
        ("select f(); select 1", Need::Write, Why::UnknownFunction, 2),
        ("show a; select 1", Need::Session, Why::SessionState, 2),
        (
            "explain route select nextval('s')",
            Need::Session,
            Why::ExplainRoute,
            1,
        ),
        (
            "begin; set a = 1; select 1; commit",
            Need::Transaction,
            Why::TransactionControl,
            4,
        ),
        (
            "begin read only; select f(); commit",
            Need::Write,
            Why::UnknownFunction,
            3,
        ),
    ] {
        let class = class(sql);
        assert_eq!(
            (class.need, class.why, class.statements.len()),
            (need, why, count),
            "{sql}"
        );
    }
}

#[test]
fn each_statement_says_what_it_does_to_the_session() {
    let class = class(
        "select set_config('a', 'b', true); declare c cursor with hold for select 1;
         select 1 into temp t; begin read only; select pg_try_advisory_lock(1)",
    );
    let statement = |verb, pins, sets_config| Statement {
        verb,
        pins: PinSet::of(pins),
        sets_config,
        reads_sequence: false,
        executes: false,
    };
    assert_eq!(
        &*class.statements,
        [
            statement(Verb::Plain, &[], true),
            statement(Verb::Declare, &[Pin::HeldCursor], false),
            statement(Verb::Ddl(Reach::Anything), &[Pin::TemporaryTable], false),
            statement(
                Verb::Begin(Modes {
                    read_only: Some(true),
                    ..Modes::default()
                }),
                &[],
                false
            ),
            statement(Verb::Plain, &[Pin::AdvisoryLock], false),
        ]
    );
}

#[test]
fn calls_count_wherever_they_stand() {
    let cases: &[(&str, &[Pin], bool)] = &[
        (
            "insert into t select pg_advisory_lock(1)",
            &[Pin::AdvisoryLock],
            false,
        ),
        (
            "copy (select pg_advisory_lock(1)) to stdout",
            &[Pin::AdvisoryLock],
            false,
        ),
        (
            "create table t as select pg_advisory_lock(1)",
            &[Pin::AdvisoryLock],
            false,
        ),
        (
            "update t set a = \"set_config\"('a', 'b', false)",
            &[],
            true,
        ),
        (
            "explain analyze select set_config('a', 'b', false)",
            &[],
            true,
        ),
        (
            "do $$ begin perform set_config('a', 'b', false); end $$",
            &[],
            false,
        ),
        (
            "grant execute on function pg_advisory_lock(bigint) to a",
            &[],
            false,
        ),
        (
            "alter function set_config(text, text, boolean) owner to a",
            &[],
            false,
        ),
        ("select pg_advisory_xact_lock(1)", &[], false),
        ("select 1 + /* pg_advisory_lock(1) */ 2", &[], false),
        ("select 'pg_advisory_lock(1)'", &[], false),
        ("with a as (select 1) insert into temp select 1", &[], false),
    ];
    for &(sql, pins, sets_config) in cases {
        let statement = class(sql).statements[0];
        assert_eq!(
            (statement.pins, statement.sets_config),
            (PinSet::of(pins), sets_config),
            "{sql}"
        );
    }
}

#[test]
fn names_are_listed_as_written_and_folded() {
    let class = class(
        "WITH c AS (SELECT * FROM App.Orders), d AS (SELECT * FROM c JOIN \"Odd.Name\" USING (a))
         SELECT Lower(x), app.F(y), count(*) FROM d, c, LATERAL jsonb_each(z) WHERE a IN
         (SELECT b FROM orders) ORDER BY \"Quoted\"(1)",
    );
    assert_eq!(
        class.functions.iter().map(|f| &**f).collect::<Vec<_>>(),
        ["Quoted", "app.f", "count", "jsonb_each", "lower"]
    );
    assert_eq!(
        class.relations.iter().map(|r| &**r).collect::<Vec<_>>(),
        ["\"Odd.Name\"", "app.orders", "orders"]
    );
    assert_eq!(class.why, Why::UnknownFunction);
}

#[test]
fn names_of_with_hide_relations_only_where_they_are_in_scope() {
    let relations = |sql| class(sql).relations.join(",");
    assert_eq!(
        relations("with a as (select * from a) select * from a"),
        "a"
    );
    assert_eq!(
        relations("with recursive a as (select 1 union select * from a) select 1 from a"),
        ""
    );
    assert_eq!(
        relations("with recursive a as (select * from b), b as (select 1) select 1"),
        ""
    );
    assert_eq!(
        relations("with a as (select * from b), b as (select 1) select 1"),
        "b"
    );
    assert_eq!(
        relations("select (with a as (select 1) select 1 from a), x from a"),
        "a"
    );
    assert_eq!(relations("with a as (select 1) select * from s.a"), "s.a");
}

#[test]
fn a_word_of_the_grammar_is_no_relation() {
    for (sql, expected) in [
        ("select * from only t", "t"),
        ("select * from ONLY (t)", "t"),
        ("select 1 from u join only t on true", "join,t,u"),
        ("select * from \"only\" t", "only"),
        ("select * from s.only t", "s.only"),
    ] {
        assert_eq!(class(sql).relations.join(","), expected, "{sql}");
    }
}

#[test]
fn rules_of_the_configuration_win() {
    let rules = Rules {
        safe: vec!["my_*".into(), "app.report".into()],
        r#unsafe: vec!["legacy_*".into(), "lower".into(), "substring".into()],
    };
    for (sql, why) in [
        ("select my_report()", Why::ProvenRead),
        ("select * from app.report(1)", Why::ProvenRead),
        ("select report(1)", Why::UnknownFunction),
        ("select legacy_f()", Why::UnsafeFunction),
        ("select lower(a) from t", Why::UnsafeFunction),
        ("select substring(a from 1) from t", Why::UnsafeFunction),
        ("select upper(a) from t", Why::ProvenRead),
    ] {
        assert_eq!(class_with(sql, &rules).why, why, "{sql}");
    }
}

#[test]
fn without_standard_strings_only_words_count() {
    let class = |sql: &str| {
        let reading = Reading::Words {
            why: Why::NonConformingStrings,
            conforming: false,
        };
        classify(sql.as_bytes(), reading, &Rules::default())
    };
    for (sql, need, why, count) in [
        ("select 1", Need::Write, Why::NonConformingStrings, 1),
        ("table t", Need::Write, Why::NonConformingStrings, 1),
        (
            "copy t to stdout",
            Need::Write,
            Why::NonConformingStrings,
            1,
        ),
        (
            "explain select 1",
            Need::Write,
            Why::NonConformingStrings,
            1,
        ),
        (
            "insert into t values ('a\\'; b')",
            Need::Write,
            Why::NonConformingStrings,
            1,
        ),
        ("begin", Need::Transaction, Why::TransactionControl, 1),
        ("set a = 'x\\'; y'", Need::Session, Why::SessionState, 1),
        ("set a = 'x\\'; commit", Need::Session, Why::SessionState, 1),
        (
            "set a = 'x\\''; commit",
            Need::Transaction,
            Why::TransactionControl,
            2,
        ),
        (
            "begin; select 'a\\'; '; commit",
            Need::Write,
            Why::NonConformingStrings,
            3,
        ),
        ("discard all", Need::Session, Why::SessionState, 1),
        ("", Need::Read, Why::Empty, 0),
    ] {
        let class = class(sql);
        assert_eq!(
            (class.need, class.why, class.statements.len()),
            (need, why, count),
            "{sql}"
        );
    }
    assert!(class("select set_config('\\'', 'x', false)").statements[0].sets_config);
}
