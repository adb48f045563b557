//! Unix sockets, on both sides.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use tidegate::demo::LocalCluster;

use super::authority::Authority;
use super::support::{Gateway, wait_for};
use super::{ask, assert_refused, cluster, is_encrypted};

/// The configuration with a Unix socket for clients, and through those of the nodes.
fn through_sockets(cluster: &LocalCluster, config: &str, directory: &Path) -> String {
    let listen = format!("[listen]\nunix_socket_dir = {directory:?}\n");
    let config = config.replacen("[listen]\n", &listen, 1);
    let nodes = format!(
        "[[cluster.node]]\naddress = \"{}:",
        cluster.directory().display()
    );
    config.replace("[[cluster.node]]\naddress = \"127.0.0.1:", &nodes)
}

#[test]
fn clients_and_nodes_are_reached_through_unix_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Authority::new(directory.path(), "ours");
    let pair = ours.issue("tidegate", &[]);
    let cluster = cluster();
    // On TCP nobody is let in by the nodes: whatever works, works through their sockets.
    for node in cluster.nodes() {
        let rules = "local all all scram-sha-256\nlocal all postgres trust\n\
                     host replication all 127.0.0.1/32 trust\n";
        let rules = rules.replacen("local all all scram", "local all app,tidegate scram", 1);
        fs::write(node.data_dir().join("pg_hba.conf"), rules).unwrap();
        node.reload().unwrap();
    }
    let mut gateway = Gateway::start_with(&cluster, |config| {
        let tls = format!(
            "[listen]\ntls = {{ mode = \"require\", cert = {:?}, key = {:?} }}\n",
            pair.cert, pair.key
        );
        let config = config.replacen("[listen]\n", &tls, 1);
        // Where TLS has no meaning, it is not missed.
        let config = config.replacen(
            "name = \"main\"\n",
            "name = \"main\"\nsslmode = \"require\"\n",
            1,
        );
        through_sockets(&cluster, &config, directory.path())
    });
    let host = format!("host={}", directory.path().display());
    let asked = |sql: &str| ask(&cluster, &gateway, &host, sql);
    let on_replica = || gateway.metric("tidegate_queries_total", "route=\"replica\"");
    wait_for("the replica to serve", || {
        asked("SELECT 1") == Ok("1".to_owned()) && on_replica() > 0.0
    });
    assert_eq!(asked("CREATE TABLE t (i int)"), Ok(String::new()));
    assert_eq!(
        asked("INSERT INTO t VALUES (1) RETURNING i"),
        Ok("1".to_owned())
    );
    assert_eq!(
        asked("SELECT inet_client_addr() IS NULL"),
        Ok("t".to_owned())
    );
    assert_eq!(is_encrypted(&cluster, &gateway, &host), Ok(false));
    assert_eq!(is_encrypted(&cluster, &gateway, "host=127.0.0.1"), Ok(true));
    let wrong = ask(
        &cluster,
        &gateway,
        &format!("{host} password=wrong"),
        "SELECT 1",
    );
    assert_refused(wrong, "password authentication failed for user \"app\"");
    let much = asked("SELECT repeat('x', 1000) FROM generate_series(1, 20000)").unwrap();
    assert_eq!(much.len(), 20_000 * 1001 - 1);

    let socket = directory.path().join(format!(".s.PGSQL.{}", gateway.port));
    let metadata = fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o777);
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    let left: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["ours"]);
}

#[test]
fn a_socket_that_is_in_use_is_not_taken_and_a_stale_one_is() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster();
    let change = |config: String| through_sockets(&cluster, &config, directory.path());
    let first = Gateway::start_with(&cluster, change);
    // The same port on another address: only the socket is disputed.
    let config = fs::read_to_string(&first.config_path).unwrap();
    let config = config.replace(
        &format!("\"127.0.0.1:{}\"", first.port),
        &format!("\"127.0.0.2:{}\"", first.port),
    );
    let config = config.replace(&format!("127.0.0.1:{}", first.http_port), "");
    let path = directory.path().join("second.toml");
    fs::write(&path, &config).unwrap();
    let mut second = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let output = second.arg("--config").arg(&path).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    let expected = format!(
        "cannot listen on the Unix socket {}/.s.PGSQL.{}: another process ({}) listens there",
        directory.path().display(),
        first.port,
        first.pid()
    );
    assert!(words.contains(&expected), "{words}");
    let host = format!("host={}", directory.path().display());
    assert_eq!(ask(&cluster, &first, &host, "SELECT 1"), Ok("1".to_owned()));

    // Killed, it leaves its files.
    let socket = directory.path().join(format!(".s.PGSQL.{}", first.port));
    let port = first.port;
    drop(first);
    assert!(socket.exists());
    let next = Gateway::start_with(&cluster, |config| {
        let listen = config
            .lines()
            .find(|line| line.starts_with("address"))
            .unwrap()
            .to_owned();
        let same_port = format!("address = \"127.0.0.1:{port}\"");
        change(config.replacen(&listen, &same_port, 1))
    });
    wait_for("a login", || {
        ask(&cluster, &next, &format!("{host} port={port}"), "SELECT 1") == Ok("1".to_owned())
    });
}
