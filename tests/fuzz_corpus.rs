//! The committed cases of the fuzz targets (`fuzz/cases/`), through the very checks that the fuzzers
//! run. What a fuzzer finds becomes a case here.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

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
