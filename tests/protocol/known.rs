//! Scripts that are known to differ, and why.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::script::Script;

/// A difference that is known.
pub struct Known {
    pub cause: String,
    /// It depends on which servers are lent.
    pub sometimes: bool,
}

/// The names in the file with their causes, as the file itself explains them.
pub fn read(path: &Path, mode: &str, scripts: &[Script]) -> HashMap<String, Known> {
    let text = fs::read_to_string(path).expect("the list of known differences");
    let mut known = HashMap::new();
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, cause) = line.split_once(": ").expect("name: cause");
        let (when, name) = match name.split_once('/') {
            Some((when @ ("transaction" | "session" | "sometimes"), name)) => (when, name),
            _ => (mode, name),
        };
        assert!(
            scripts.iter().any(|script| script.name == name),
            "known.txt names no script: {name}"
        );
        let sometimes = when == "sometimes";
        if sometimes || when == mode {
            let cause = cause.to_owned();
            let twice = known.insert(name.to_owned(), Known { cause, sometimes });
            assert!(twice.is_none(), "known.txt names {name} twice");
        }
    }
    known
}
