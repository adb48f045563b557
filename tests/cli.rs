//! The command line: what it prints, and how it ends.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tidegate::demo::{LocalCluster, Options};

fn explain(config: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["explain", "--config"])
        .arg(config)
        .args(arguments)
        .output()
        .expect("tidegate runs")
}

/// What it says, by the name before it.
fn said(output: &Output, name: &str) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or("").trim().to_owned()
}

#[test]
fn explain_says_where_a_statement_goes_and_why() {
    let options = Options {
        replicas: 1,
        ..Options::default()
    };
    let cluster = LocalCluster::start(options).expect("a cluster");
    let objects = include_str!("oracle/objects.sql");
    cluster.primary().sql("app", objects).expect("objects");
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("config.toml");
    let text = cluster.config_for(support::free_port(), support::free_port());
    let routing = "[routing]\nunsafe_functions = [\"doubles\"]\n";
    fs::write(&config, format!("{routing}{text}")).expect("written");

    let by_words = explain(&config, &["SELECT counts(id) FROM items"]);
    assert_eq!(by_words.status.code(), Some(0));
    assert_eq!(said(&by_words, "class"), "write");
    assert_eq!(said(&by_words, "why"), "unknown_function");
    assert!(said(&by_words, "catalog").contains("--database"));

    for (sql, class, why, because) in [
        ("SELECT counts(id) FROM items", "read", "proven_read", ""),
        ("SELECT writes(1)", "write", "unsafe_function", "writes"),
        ("SELECT doubles(1)", "write", "unsafe_function", ""),
        (
            "SELECT * FROM of_view",
            "write",
            "unsafe_relation",
            "of_view",
        ),
        ("SELECT 1 <%> 2", "write", "hidden_function", "operator <%>"),
        ("SELECT missing()", "write", "unknown_function", "missing"),
        ("DELETE FROM items", "write", "data_change", ""),
        ("BEGIN", "transaction", "transaction_control", ""),
        ("SHOW work_mem", "session", "session_state", ""),
    ] {
        let output = explain(&config, &["--database", "app", sql]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let found = ["class", "why", "because of"].map(|name| said(&output, name));
        assert_eq!(found, [class, why, because], "{sql}");
        let goes_to = said(&output, "goes to");
        assert_eq!(
            goes_to.starts_with("a replica"),
            class == "read",
            "{goes_to}"
        );
    }

    // While there is no primary, a replica knows.
    cluster
        .primary()
        .stop(tidegate::demo::StopMode::Fast)
        .expect("stopped");
    let output = explain(&config, &["--database", "app", "SELECT counts(1)"]);
    assert_eq!(said(&output, "class"), "read", "{output:?}");

    let unknown = explain(&config, &["--database", "nothing", "SELECT 1"]);
    assert_eq!(unknown.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(
        complaint.contains("\"nothing\" does not exist"),
        "{complaint}"
    );
}

#[test]
fn a_bad_configuration_ends_with_2() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("config.toml");
    let missing = explain(&config, &["SELECT 1"]);
    assert_eq!(missing.status.code(), Some(2));
    fs::write(&config, "[routing]\ncatalog_intervall = \"1m\"\n").expect("written");
    let misspelt = explain(&config, &["SELECT 1"]);
    assert_eq!(misspelt.status.code(), Some(2));
    let complaint = String::from_utf8_lossy(&misspelt.stderr).into_owned();
    assert!(complaint.contains("catalog_interval"), "{complaint}");
    assert_eq!(explain(&config, &[]).status.code(), Some(2), "no statement");

    // What `check` refuses, too.
    let cluster = "[[cluster]]\nname = 'm'\nnode = [{ address = '127.0.0.1:1' }]\n";
    for (bad, words) in [
        (
            "listen.tls = { cert = 'none.crt', key = 'none.key' }",
            "none.crt",
        ),
        (
            "auth.user = [{ name = 'a', verifier = 'SCRAM-SHA-256$1' }]",
            "auth.user.verifier",
        ),
    ] {
        fs::write(&config, format!("{bad}\n{cluster}")).expect("written");
        for arguments in [&["SELECT 1"][..], &["--database", "app", "SELECT 1"]] {
            let refused = explain(&config, arguments);
            assert_eq!(refused.status.code(), Some(2), "{refused:?}");
            let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(complaint.contains(words), "{complaint}");
        }
    }
}
