//! Scripts that are known to differ, and why.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::script::Script;

/// The names in the file with their causes: `name: cause`, or `mode/name: cause` for one mode alone.
pub fn read(path: &Path, mode: &str, scripts: &[Script]) -> HashMap<String, String> {
    let text = fs::read_to_string(path).expect("the list of known differences");
    let mut known = HashMap::new();
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, cause) = line.split_once(": ").expect("name: cause");
        let name = match name.split_once('/') {
            Some((only, name)) if only == mode => name,
            Some(("transaction" | "session", _)) => continue,
            _ => name,
        };
        assert!(
            scripts.iter().any(|script| script.name == name),
            "known.txt names no script: {name}"
        );
        known.insert(name.to_owned(), cause.to_owned());
    }
    known
}
