//! Imports point down: a module uses only those that `src/lib.rs` lists below it.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn imports_only_point_down() {
    let layers = layers();
    assert!(layers.len() > 8, "{layers:?}");
    let mut wrong = Vec::new();
    for (rank, layer) in layers.iter().enumerate() {
        for file in files(layer) {
            let text = fs::read_to_string(&file).unwrap();
            for used in uses(&text) {
                let used_rank = layers.iter().position(|l| *l == used);
                let used_rank =
                    used_rank.unwrap_or_else(|| panic!("{used} is no module of lib.rs"));
                if used_rank < rank {
                    wrong.push(format!(
                        "{}: {layer} uses {used}, which is above it",
                        file.display()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `session` and `sql` can be tested with virtual time and scripted peers: they know no socket and
/// no clock.
#[test]
fn pure_layers_stay_pure() {
    for layer in ["session", "sql", "wire", "auth"] {
        for file in files(layer) {
            let text = fs::read_to_string(&file).unwrap();
            for banned in [
                "tokio::",
                "std::net",
                "Instant::now",
                "SystemTime",
                "std::thread::sleep",
            ] {
                assert!(!text.contains(banned), "{} uses {banned}", file.display());
            }
        }
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for layer in layers() {
        for file in files(&layer) {
            let text = fs::read_to_string(&file).unwrap();
            let is_test = file.file_name().is_some_and(|name| name == "tests.rs");
            assert!(
                is_test || text.starts_with("//!"),
                "{} has no opening words",
                file.display()
            );
        }
    }
}

/// The modules of `src/lib.rs`, from the top down.
fn layers() -> Vec<String> {
    let text = fs::read_to_string(source().join("lib.rs")).unwrap();
    let module = |line: &str| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned());
    text.lines().filter_map(module).collect()
}

/// What follows `crate::` in a text, braces included.
fn uses(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let word = |s: &str| {
            s.chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect::<String>()
        };
        match rest.strip_prefix('{') {
            None => used.push(word(rest)),
            Some(list) => {
                // Names at the top level of `use crate::{a::b, c::{d, e}};`.
                let (mut depth, mut at_name) = (0, true);
                for (i, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => at_name = true,
                        c if at_name && depth == 0 && c.is_alphabetic() => {
                            used.push(word(&list[i..]));
                            at_name = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    used.retain(|name| !name.is_empty());
    used
}

fn files(layer: &str) -> Vec<PathBuf> {
    let mut files = vec![source().join(format!("{layer}.rs"))];
    let mut folders = vec![source().join(layer)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}
