//! SET, RESET, DEALLOCATE and EXPLAIN ROUTE: what they are about, and that they can be replayed.

use tidegate::session::settings::Settings;
use tidegate::sql::Verb;
use tidegate::sql::cache::Classifier;
use tidegate::sql::command::explained;
use tidegate::sql::functions::Rules;
use tidegate::sql::lexer::statements;
use tidegate::sql::prepared::deallocate;
use tidegate::sql::setting::{Setting, setting};

use super::text::{respelled, solid};

/// What a name may be long, as the server keeps it.
const NAME_BYTES_MAX: usize = 63;

pub fn check(sql: &[u8]) {
    let classifier = Classifier::new(Rules::default(), 64);
    let class = classifier.classify(sql, true);
    // Each word may begin a command, not only the first.
    let ranges: Vec<_> = statements(sql, true).collect();
    assert_eq!(ranges.len(), class.statements.len());
    for (range, statement) in ranges.into_iter().zip(&class.statements) {
        let text = &sql[range];
        settings(text, statement.verb);
        deallocated(text, statement.verb);
        asked(text, statement.verb);
    }
    // It is given whole statements, but must not rely on that.
    let _ = (setting(sql), deallocate(sql), explained(sql));
}

fn settings(text: &[u8], verb: Verb) {
    let found = setting(text);
    let other = respelled(text, true, text);
    assert_eq!(setting(&other), found, "{}", other.escape_ascii());
    match (&found, verb) {
        (None, _) => {}
        (Some(Setting::Local), _) => assert!(is_setting(verb), "{verb:?}"),
        (Some(_), verb) => assert_eq!(verb, Verb::Setting),
    }
    match found {
        Some(Setting::Set { name }) => {
            assert_eq!(name, name.to_ascii_lowercase());
            replays(&name, text);
        }
        Some(Setting::Reset { name }) => {
            assert_eq!(name, name.to_ascii_lowercase());
            let (mut server, session) = (Settings::default(), Settings::default());
            server.set(&name, b"SET a TO b");
            server.reset(&name, &session);
            assert!(server.difference(&session).is_empty());
        }
        Some(Setting::Transactions(modes)) => {
            let none = Settings::default();
            let mut set = none.clone();
            set.set_transactions(modes);
            undoes(&set);
        }
        Some(Setting::ResetAll | Setting::Local) | None => {}
    }
}

fn is_setting(verb: Verb) -> bool {
    matches!(
        verb,
        Verb::Setting | Verb::SettingLocal | Verb::SetTransaction(_)
    )
}

/// A statement that succeeded is replayed as one statement, and what undoes it is about the same
/// setting.
fn replays(name: &str, text: &[u8]) {
    // Otherwise something is open at its end, and no server has taken it.
    if statements(&[text, b"\n; a"].concat(), true).count() < 2 {
        return;
    }
    let none = Settings::default();
    let mut set = none.clone();
    set.set(name, text);
    let Some(sql) = none.difference(&set).pop() else {
        // It ends with its transaction.
        return assert!(name.starts_with("transaction_"));
    };
    let said: Vec<_> = statements(&sql, true).map(|at| &sql[at]).collect();
    assert_eq!(said.last(), Some(&text), "{}", sql.escape_ascii());
    undoes(&set);
}

/// What is said to undo settings is about each of them by its name.
fn undoes(set: &Settings) {
    let none = Settings::default();
    let mut undone = set.clone();
    for undo in set.difference(&none) {
        for at in statements(&undo, true) {
            match setting(&undo[at]) {
                Some(Setting::Reset { name }) => undone.reset(&name, &none),
                other => panic!("{}: {other:?}", undo.escape_ascii()),
            }
        }
    }
    assert!(undone == none);
}

fn deallocated(text: &[u8], verb: Verb) {
    let Some((name, at)) = deallocate(text) else {
        return;
    };
    assert_eq!(verb, Verb::Deallocate);
    assert!(name.len() <= NAME_BYTES_MAX);
    let token = &text[at.clone()];
    assert_eq!(solid(token, true).len(), 1);
    let renamed = [&text[..at.start], b"\"_tidegate_1f\"", &text[at.end..]].concat();
    let (new, place) = deallocate(&renamed).expect("another name");
    assert_eq!((&*new, place.start), (&b"_tidegate_1f"[..], at.start));
}

/// What is explained is what stands behind the two words.
fn asked(text: &[u8], verb: Verb) {
    if verb != Verb::ExplainRoute {
        return;
    }
    let words = |text: &[u8]| -> Vec<Vec<u8>> {
        let tokens = solid(text, true).into_iter();
        tokens.map(|token| token.text(text).to_vec()).collect()
    };
    let explained = explained(text).expect("what it is about");
    assert_eq!(words(&explained), words(text)[2..]);
    assert!(!words(&explained).is_empty());
}
