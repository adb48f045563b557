//! The class of any text, on the stack that a worker has.

use std::thread;

use tidegate::session::effects;
use tidegate::sql::cache::Classifier;
use tidegate::sql::functions::{Rules, Safety};
use tidegate::sql::lexer::{Kind, Token, statements};
use tidegate::sql::{Class, Need, Verb, Why};

use super::text::{respelled, solid};

/// The stack of a worker's thread, in bytes.
const STACK_BYTES: usize = 2 << 20;

pub fn check(sql: &[u8]) {
    thread::scope(|scope| {
        let run = thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || on_a_workers_stack(sql));
        run.expect("a thread").join().expect("no panic");
    });
}

fn on_a_workers_stack(sql: &[u8]) {
    let classifier = Classifier::new(Rules::default(), 64);
    let class = classifier.classify(sql, true);
    says_what_it_holds(&class, sql, true);
    assert_eq!(classifier.classify(sql, true), class, "kept or not");
    let other = respelled(sql, true, sql);
    assert_eq!(
        classifier.classify(&other, true),
        class,
        "{}",
        other.escape_ascii()
    );
    together_they_need_the_most(&classifier, &class, sql);
    if class.need == Need::Read {
        calls_nothing_unsafe(sql);
    }

    what_it_does_to_a_session_is_read(&class, sql);

    let unsure = classifier.classify(sql, false);
    says_what_it_holds(&unsure, sql, false);
    assert!(unsure.need != Need::Read || unsure.why == Why::Empty);
}

fn says_what_it_holds(class: &Class, sql: &[u8], conforming: bool) {
    // The session finds the text of a statement by its number.
    assert_eq!(class.statements.len(), statements(sql, conforming).count());
    assert_eq!(class.why == Why::Empty, class.statements.is_empty());
    assert_eq!(
        class.need == Need::Read,
        matches!(class.why, Why::Empty | Why::ProvenRead)
    );
    for statement in &class.statements {
        let moves = statement.sets_config || !statement.pins.is_empty();
        assert!(!moves || class.need == Need::Write);
        let plain = matches!(statement.verb, Verb::Plain | Verb::Copy);
        assert!(plain || class.need > Need::Read, "{:?}", statement.verb);
    }
    for names in [&class.functions, &class.relations] {
        assert!(names.is_sorted_by(|a, b| a < b), "each once");
    }
}

/// What comes before or after a statement does not change what it needs.
fn together_they_need_the_most(classifier: &Classifier, class: &Class, sql: &[u8]) {
    for (other, need) in [
        (&b"delete from t"[..], Need::Write),
        (b"begin", Need::Transaction),
        (b"show a", Need::Session),
        (b"select 1", Need::Read),
    ] {
        let before = [other, b";", sql].concat();
        let before = classifier.classify(&before, true);
        let after = [sql, b"\n;", other].concat();
        let after = classifier.classify(&after, true);
        let count = class.statements.len() + 1;
        let too_long = |both: &Class| both.why == Why::TooComplex && class.why != Why::TooComplex;
        for both in [before, after] {
            // Otherwise something that is left open has swallowed the other one.
            if both.statements.len() == count && !too_long(&both) {
                assert_eq!(both.need, class.need.max(need));
            }
        }
    }
}

/// By a database of which one name has an effect.
fn what_it_does_to_a_session_is_read(class: &Class, sql: &[u8]) {
    let row = ["effect", "f", "set a.b = 1"].map(|text| Some(text.to_owned()));
    let (effects, _) = effects::read_full([row]);
    for conforming in [true, false] {
        effects.judge(class, sql, conforming);
        effects.may_change_by(sql, conforming);
    }
}

/// `SELECT f(` is a call whatever surrounds it.
fn calls_nothing_unsafe(sql: &[u8]) {
    let rules = Rules::default();
    let tokens = solid(sql, true);
    let name = |token: &Token| token.name(sql).map(|name| name.into_owned());
    for triple in tokens.windows(3) {
        let [select, function, open] = triple else {
            unreachable!("windows of three")
        };
        if select.is(sql, "select") && open.kind == Kind::Open {
            let name = name(function).and_then(|name| String::from_utf8(name).ok());
            if let Some(name) = name {
                assert_ne!(rules.safety(None, &name), Safety::Unsafe, "{name}");
            }
        }
    }
}
