//! A local cluster for programs that are not Rust: prints where it is as one line of JSON, and stays
//! until its standard input ends.
//!
//! Owns: the cluster's lifetime. Never: starts a proxy; what is measured is started by who measures.
//!
//! `cargo run --release --example local_cluster -- [REPLICAS]`

use std::io::{self, Read, Write};
use std::process::ExitCode;

use tidegate::demo::{DemoError, LocalCluster, Options};

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    let Ok(replicas) = argument.as_deref().unwrap_or("2").parse() else {
        eprintln!("usage: local_cluster [REPLICAS]");
        return ExitCode::from(2);
    };
    match stay(replicas) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("local_cluster: {error}");
            ExitCode::FAILURE
        }
    }
}

fn stay(replicas: usize) -> Result<(), DemoError> {
    let cluster = LocalCluster::start(Options {
        replicas,
        // Two proxies keep pools on it at the same time.
        max_connections: 1000,
        settings: vec![
            ("shared_buffers".to_owned(), "256MB".to_owned()),
            ("max_wal_size".to_owned(), "4GB".to_owned()),
        ],
    })?;
    let ports: Vec<_> = cluster
        .nodes()
        .iter()
        .map(|n| n.port().to_string())
        .collect();
    let line = format!(
        r#"{{"primary": {}, "ports": [{}], "bindir": {:?}}}"#,
        cluster.primary().port(),
        ports.join(", "),
        cluster.postgres().bindir()
    );
    // Whoever does not read the line has closed our input as well.
    let _ = writeln!(io::stdout(), "{line}");
    let _ = io::stdin().read_to_end(&mut Vec::new());
    Ok(())
}
