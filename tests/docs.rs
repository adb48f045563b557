//! What the documents point to is there, and what routing calls things and the code's files are in them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tidegate::session::route::Reason;
use tidegate::sql::Pin;

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["", "docs", "grafana", "benches", "fuzz", "tests/protocol"];
    let entries = folders
        .iter()
        .flat_map(|folder| fs::read_dir(root.join(folder)).expect("a folder"));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Its lines outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// What comes behind `](`, to where it ends.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let lines = prose(text);
    lines.flat_map(|line| {
        line.split("](")
            .skip(1)
            .filter_map(|rest| Some(rest.split_once(')')?.0))
    })
}

/// The names by which a document's headings are linked to.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    let name = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        words
            .chars()
            .filter(kept)
            .collect::<String>()
            .replace(' ', "-")
    };
    headings.map(name).collect()
}

#[test]
fn links_lead_somewhere() {
    let (mut seen, mut dead) = (0, Vec::new());
    for path in documents() {
        let text = read(&path);
        for link in links(&text).filter(|link| !link.contains("://")) {
            seen += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.with_file_name(file),
            };
            let leads =
                target.exists() && (anchor.is_empty() || anchors(&read(&target)).contains(anchor));
            if !leads {
                dead.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(seen > 30, "only {seen} links were found");
    assert!(dead.is_empty(), "{dead:#?}");
}

#[test]
fn names_are_explained() {
    let routing = include_str!("../docs/routing.md");
    let sessions = include_str!("../docs/sessions.md");
    let reasons = Reason::ALL.map(Reason::name).map(|name| (routing, name));
    let pins = Pin::ALL.map(Pin::name).map(|name| (sessions, name));
    let missing: Vec<_> = reasons
        .into_iter()
        .chain(pins)
        .filter(|(text, name)| !text.contains(&format!("`{name}`")))
        .collect();
    let missing: Vec<_> = missing.iter().map(|(_, name)| name).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_file_is_on_the_map() {
    let (mut files, mapped) = (BTreeSet::new(), mapped());
    add_files(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        "",
        &mut files,
    );
    let missing: Vec<_> = files.difference(&mapped).collect();
    assert!(missing.is_empty(), "not in ARCHITECTURE.md: {missing:?}");
    let gone: Vec<_> = mapped.difference(&files).collect();
    assert!(gone.is_empty(), "in ARCHITECTURE.md, and no more: {gone:?}");
}

/// The modules in the map's table, and the files that stand below them, each as `module/file/part`.
fn mapped() -> BTreeSet<String> {
    let mut mapped = BTreeSet::new();
    let mut path = Vec::new();
    for line in prose(include_str!("../ARCHITECTURE.md")) {
        let entry = line.trim_start();
        let depth = match entry {
            _ if line.starts_with("| `") || line.starts_with("### `") => 0,
            _ if entry.starts_with("- `") && !path.is_empty() => 1 + (line.len() - entry.len()) / 2,
            _ if line.starts_with("## ") => {
                path.clear();
                continue;
            }
            _ => continue,
        };
        path.truncate(depth);
        path.extend(line.split('`').nth(1));
        mapped.insert(path.join("/"));
    }
    mapped
}

/// Adds the files of a folder to those `found`, each by its place within `src`, but for tests and `lib.rs`.
fn add_files(folder: &Path, within: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name").to_string_lossy();
        match &*stem {
            "tests" | "lib" => {}
            "main" => drop(found.insert("main.rs".to_owned())),
            _ if path.is_dir() => add_files(&path, &format!("{within}{stem}/"), found),
            _ => drop(found.insert(format!("{within}{stem}"))),
        }
    }
}
