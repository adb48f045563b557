//! A local cluster for programs that are not Rust: prints where it is as one line of JSON, and stays
//! until its standard input ends.
//!
//! Owns: the cluster's lifetime. Never: starts a proxy; what is measured is started by who measures.
//!
//! `cargo run --release --example local_cluster -- [REPLICAS] [SETTING=VALUE]…`

use std::io::{self, Read, Write};
use std::process::ExitCode;

use tidegate::demo::{DemoError, LocalCluster, Options};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let replicas = arguments.next().map_or(Ok(2), |count| count.parse());
    let settings: Option<Vec<_>> = arguments
        .map(|argument| {
            let (name, value) = argument.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        })
        .collect();
    let (Ok(replicas), Some(settings)) = (replicas, settings) else {
        eprintln!("usage: local_cluster [REPLICAS] [SETTING=VALUE]...");
        return ExitCode::from(2);
    };
    match stay(replicas, settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("local_cluster: {error}");
            ExitCode::FAILURE
        }
    }
}

fn stay(replicas: usize, further: Vec<(String, String)>) -> Result<(), DemoError> {
    let mut settings = vec![
        ("shared_buffers".to_owned(), "256MB".to_owned()),
        ("max_wal_size".to_owned(), "4GB".to_owned()),
    ];
    settings.extend(further);
    let cluster = LocalCluster::start(Options {
        replicas,
        // Two proxies keep pools on it at the same time.
        max_connections: 1000,
        bindir: None,
        settings,
    })?;
    let ports: Vec<_> = cluster
        .nodes()
        .iter()
        .map(|n| n.port().to_string())
        .collect();
    let line = format!(
        r#"{{"primary": {}, "ports": [{}], "bindir": {:?}, "directory": {:?}}}"#,
        cluster.primary().port(),
        ports.join(", "),
        cluster.postgres().bindir(),
        cluster.directory()
    );
    // Whoever does not read the line has closed our input as well.
    let _ = writeln!(io::stdout(), "{line}");
    let _ = io::stdin().read_to_end(&mut Vec::new());
    Ok(())
}
