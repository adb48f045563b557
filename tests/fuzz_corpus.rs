//! The committed cases of the fuzz targets (`fuzz/cases/`), through the very checks that the fuzzers
//! run. What a fuzzer finds becomes a case here.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

#[path = "../fuzz/checks/mod.rs"]
mod checks;

macro_rules! targets {
    ($($target:ident),* $(,)?) => {
        const TARGETS: &[&str] = &[$(stringify!($target)),*];
        $(
            #[test]
            fn $target() {
                replay(stringify!($target), checks::$target::check);
            }
        )*
    };
}

targets!(
    startup, message, lexer, classify, command, scram, config, session
);

fn replay(target: &str, check: fn(&[u8])) {
    let mut files = files(&fuzz().join("cases").join(target));
    files.sort();
    assert!(!files.is_empty(), "{target} has no cases");
    let mut failed = Vec::new();
    for file in files {
        let data = fs::read(&file).unwrap();
        // All of them, and not only the first, so that one run says what is wrong.
        if catch_unwind(|| check(&data)).is_err() {
            failed.push(file);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
    check(b"");
}

/// A target that is not listed above would not be replayed.
#[test]
fn every_target_is_replayed() {
    let name = |file: PathBuf| file.file_stem().unwrap().to_str().unwrap().to_owned();
    let mut targets: Vec<_> = files(&fuzz().join("fuzz_targets"))
        .into_iter()
        .map(name)
        .collect();
    let mut listed = TARGETS.to_vec();
    targets.sort();
    listed.sort_unstable();
    assert_eq!(targets, listed);
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// One event of a conversation, from words that have something to do with each other.
fn event() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(vec!["", "a", "b", "c"]);
    let portal = || prop::sample::select(vec!["", "p"]);
    let sql = || {
        prop::sample::select(vec![
            "SELECT 1",
            "SELECT 2",
            "SET a.b = 1",
            "RESET a.b",
            "SELECT set_config('c.d', '1', false)",
            "BEGIN",
            "COMMIT",
            "ROLLBACK",
            "SAVEPOINT s",
            "ROLLBACK TO s",
            "INSERT INTO t VALUES (1)",
            "SELECT fail",
            "LISTEN x",
            "DISCARD ALL",
            "",
        ])
    };
    let both = (sql(), sql()).prop_map(|(a, b)| format!("> Q {a}; {b}\\0"));
    prop_oneof![
        2 => Just("~".to_owned()),
        6 => Just("> S".to_owned()),
        1 => Just("> H".to_owned()),
        2 => sql().prop_map(|sql| format!("> Q {sql}\\0")),
        1 => both,
        1 => prop::sample::select(vec!["a", "b", "all"])
            .prop_map(|name| format!("> Q DEALLOCATE {name}\\0")),
        2 => prop::sample::select(vec!["DEALLOCATE a", "DEALLOCATE all", "DISCARD all"])
            .prop_map(|sql| format!("> P \\0{sql}\\0\\0\\0\n> B \\0\\0\\0\\0\\0\\0\\0\\0\n> E \\0\\0\\0\\0\\0")),
        4 => (name(), sql()).prop_map(|(name, sql)| format!("> P {name}\\0{sql}\\0\\0\\0")),
        4 => (portal(), name())
            .prop_map(|(portal, name)| format!("> B {portal}\\0{name}\\0\\0\\0\\0\\0\\0\\0")),
        3 => portal().prop_map(|portal| format!("> E {portal}\\0\\0\\0\\0\\0")),
        2 => name().prop_map(|name| format!("> D S{name}\\0")),
        1 => portal().prop_map(|portal| format!("> D P{portal}\\0")),
        2 => name().prop_map(|name| format!("> C S{name}\\0")),
        1 => portal().prop_map(|portal| format!("> C P{portal}\\0")),
    ]
}

proptest! {
    #[test]
    fn any_conversation_is_as_with_one_postgresql(
        events in prop::collection::vec(event(), 0..40),
    ) {
        checks::session::check(format!("=\n{}\n", events.join("\n")).as_bytes());
    }
}
