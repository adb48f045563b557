//! TLS and Unix sockets on both sides, with real servers and libpq as the client.

#[path = "tls/authority.rs"]
mod authority;
#[path = "tls/clients.rs"]
mod clients;
#[path = "tls/servers.rs"]
mod servers;
#[path = "tls/sockets.rs"]
mod sockets;
mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use support::Gateway;
use tidegate::demo::{LocalCluster, Options};

fn cluster() -> LocalCluster {
    let options = Options {
        replicas: 1,
        ..Options::default()
    };
    LocalCluster::start(options).expect("a cluster")
}

/// libpq's command line, with no file of the caller's own.
fn psql(cluster: &LocalCluster, home: &Path, conninfo: &str) -> Command {
    let mut psql = Command::new(cluster.postgres().bindir().join("psql"));
    psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", conninfo])
        .env("HOME", home)
        .env("LC_ALL", "C")
        .env("PGCONNECT_TIMEOUT", "20")
        .stdin(Stdio::null());
    psql
}

/// What psql prints, or the first line of its complaint.
fn ask(
    cluster: &LocalCluster,
    gateway: &Gateway,
    parameters: &str,
    sql: &str,
) -> Result<String, String> {
    let conninfo = format!("port={} dbname=app user=app {parameters}", gateway.port);
    let mut psql = psql(cluster, gateway.directory(), &conninfo);
    psql.env("PGPASSWORD", "app");
    let output = psql.args(["-c", sql]).output().expect("psql");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8").trim().to_owned();
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr)),
    }
}

/// Whether the connection that these parameters make is encrypted.
fn is_encrypted(
    cluster: &LocalCluster,
    gateway: &Gateway,
    parameters: &str,
) -> Result<bool, String> {
    let shown = ask(cluster, gateway, parameters, "\\conninfo")?;
    assert!(shown.contains("You are connected"), "{shown}");
    Ok(shown.contains("SSL connection (protocol: TLSv1.3"))
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, String>, expected: &str) {
    let error = result.expect_err(expected);
    assert!(error.contains(expected), "{error:?} lacks {expected:?}");
}
