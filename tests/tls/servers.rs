//! TLS with servers.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tidegate::auth::Credential;
use tidegate::cluster::connect::{ConnectError, Target, connect};
use tidegate::config::{Config, Secret};
use tidegate::demo::LocalCluster;
use tidegate::net::tls::Material;

use super::authority::{Authority, Pair, give};
use super::support::{Gateway, wait_for};
use super::{ask, assert_refused, cluster, psql};

/// Who may connect: what comes over TCP unencrypted is for the standbys alone.
const ONLY_ENCRYPTED: &str = "\
local    all          all                trust
local    replication  all                trust
host     replication  all  127.0.0.1/32  trust
hostssl  all          all  127.0.0.1/32  scram-sha-256
";

/// Switches TLS on, on every node; `false` where the server has none.
fn serve_tls(cluster: &LocalCluster, pair: &Pair, client_ca: Option<&Path>) -> bool {
    let directory = cluster.directory();
    let pair = pair.hand_to_owner_of(directory, "server");
    let ca_file = directory.join("clients.crt");
    if let Some(client_ca) = client_ca {
        fs::copy(client_ca, &ca_file).unwrap();
        give(&ca_file, directory);
    }
    let ca_file = client_ca.map_or(String::new(), |_| ca_file.display().to_string());
    for node in cluster.nodes() {
        let set = format!(
            "ALTER SYSTEM SET ssl_cert_file = '{}'; ALTER SYSTEM SET ssl_key_file = '{}'; \
             ALTER SYSTEM SET ssl_ca_file = '{ca_file}'; ALTER SYSTEM SET ssl = on",
            pair.cert.display(),
            pair.key.display(),
        );
        match node.sql("postgres", &set) {
            Ok(_) => {}
            Err(error) if error.to_string().contains("not supported by this build") => {
                eprintln!("SKIPPED: these PostgreSQL servers are built without TLS");
                return false;
            }
            Err(error) => panic!("{error}"),
        }
        node.reload().unwrap();
    }
    true
}

/// Replaces the rules for who may connect, on every node.
fn set_access(cluster: &LocalCluster, rules: &str) {
    for node in cluster.nodes() {
        fs::write(node.data_dir().join("pg_hba.conf"), rules).unwrap();
        node.reload().unwrap();
    }
}

/// How the proxy would log in to the primary with these keys of the cluster's: whether encrypted,
/// and by which certificate.
fn log_in(cluster: &LocalCluster, host: &str, keys: &str) -> Result<(bool, String), String> {
    let text = format!(
        "[[cluster]]\nname = 'm'\n{keys}\n[[cluster.node]]\naddress = '{host}:{}'\n",
        cluster.primary().port()
    );
    let config = Config::parse(&text, "test").map_err(|error| error.to_string())?;
    let material = Material::load(&config).map_err(|error| error.to_string())?;
    let node = &config.clusters[0].nodes[0];
    let target = Target {
        host: &node.host,
        port: node.port,
        tls: material.for_cluster("m"),
        database: "app",
        user: "app",
        credential: Some(Credential::Password(Secret::new("app"))),
        application_name: "tls",
    };
    let sql = "SELECT ssl, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let log_in = async {
        let mut connection = connect(&target, Duration::from_secs(20)).await?;
        connection.query(sql).await
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    let rows = runtime
        .block_on(log_in)
        .map_err(|error: ConnectError| error.to_string())?;
    let text = |at: usize| rows[0][at].clone().unwrap_or_default();
    Ok((text(0) == "t", text(1)))
}

#[test]
fn sslmode_means_what_libpq_means() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Authority::new(directory.path(), "ours");
    let others = Authority::new(directory.path(), "others");
    let cluster = cluster();
    let encrypted = |host: &str, keys: &str| Ok::<_, String>(log_in(&cluster, host, keys)?.0);
    let with_root = |mode: &str, root: &Path| format!("sslmode = '{mode}'\nsslrootcert = {root:?}");

    // A server without TLS.
    for mode in ["disable", "allow", "prefer"] {
        assert_eq!(
            encrypted("127.0.0.1", &format!("sslmode = '{mode}'")),
            Ok(false)
        );
    }
    assert_refused(
        encrypted("127.0.0.1", "sslmode = 'require'"),
        "server does not support TLS",
    );

    if !serve_tls(&cluster, &ours.issue("pg", &["localhost"]), None) {
        return;
    }
    assert_eq!(encrypted("127.0.0.1", ""), Ok(true));
    for (mode, expected) in [
        ("disable", false),
        ("allow", false),
        ("prefer", true),
        ("require", true),
    ] {
        assert_eq!(
            encrypted("127.0.0.1", &format!("sslmode = '{mode}'")),
            Ok(expected),
            "{mode}"
        );
    }
    // With an authority, "require" looks whose certificate it is.
    for mode in ["require", "verify-ca"] {
        assert_eq!(
            encrypted("127.0.0.1", &with_root(mode, &ours.root())),
            Ok(true)
        );
        assert_refused(
            encrypted("127.0.0.1", &with_root(mode, &others.root())),
            "an authority that is not trusted",
        );
    }
    // "prefer" does so too, and goes on without; as libpq does.
    assert_eq!(
        encrypted("127.0.0.1", &with_root("prefer", &others.root())),
        Ok(false)
    );
    let full = with_root("verify-full", &ours.root());
    assert_eq!(encrypted("localhost", &full), Ok(true));
    assert_refused(
        encrypted("127.0.0.1", &full),
        "server certificate is for pg, localhost, and does not match host \"127.0.0.1\"",
    );

    // By address, and by the common name alone.
    serve_tls(&cluster, &ours.issue("pg", &["127.0.0.1"]), None);
    assert_eq!(encrypted("127.0.0.1", &full), Ok(true));
    assert_refused(
        encrypted("localhost", &full),
        "does not match host \"localhost\"",
    );
    serve_tls(&cluster, &ours.issue("localhost", &[]), None);
    assert_eq!(encrypted("localhost", &full), Ok(true));
    assert_refused(encrypted("127.0.0.1", &full), "does not match");

    serve_tls(
        &cluster,
        &ours.issue_expired("localhost", &["127.0.0.1"]),
        None,
    );
    assert_refused(
        encrypted("127.0.0.1", &with_root("verify-ca", &ours.root())),
        "expired",
    );
    assert_eq!(encrypted("127.0.0.1", "sslmode = 'require'"), Ok(true));

    // Its own authority.
    let alone = ours.self_signed("localhost");
    serve_tls(&cluster, &alone, None);
    assert_eq!(
        encrypted("localhost", &with_root("verify-full", &alone.cert)),
        Ok(true)
    );
    assert_refused(
        encrypted("127.0.0.1", &with_root("verify-full", &alone.cert)),
        "does not match",
    );
    assert!(encrypted("localhost", &with_root("verify-full", &ours.root())).is_err());

    // As PostgreSQL's documentation makes it.
    match ours.issue_version_1("localhost") {
        None => eprintln!("SKIPPED: no openssl to make certificates of version 1"),
        Some(pair) => {
            serve_tls(&cluster, &pair, None);
            assert_eq!(encrypted("localhost", &full), Ok(true));
            assert_refused(encrypted("127.0.0.1", &full), "does not match");
            assert!(encrypted("localhost", &with_root("verify-ca", &others.root())).is_err());
        }
    }
}

#[test]
fn the_servers_own_rules_decide_where_sslmode_leaves_it_open() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Authority::new(directory.path(), "ours");
    let cluster = cluster();
    if !serve_tls(
        &cluster,
        &ours.issue("pg", &["localhost"]),
        Some(&ours.root()),
    ) {
        return;
    }
    let encrypted = |keys: &str| Ok::<_, String>(log_in(&cluster, "127.0.0.1", keys)?.0);
    set_access(&cluster, ONLY_ENCRYPTED);
    assert_refused(
        encrypted("sslmode = 'disable'"),
        "no encryption (SQLSTATE 28000)",
    );
    assert_eq!(encrypted("sslmode = 'allow'"), Ok(true));
    set_access(&cluster, &ONLY_ENCRYPTED.replace("hostssl", "hostnossl"));
    assert_eq!(encrypted("sslmode = 'prefer'"), Ok(false));
    assert_refused(
        encrypted("sslmode = 'require'"),
        "SSL encryption (SQLSTATE 28000)",
    );

    // The proxy's own certificate.
    let by_certificate = ONLY_ENCRYPTED.replace("scram-sha-256", "cert");
    set_access(&cluster, &by_certificate);
    let shown = |pair: &Pair| {
        let keys = format!(
            "sslmode = 'require'\nsslcert = {:?}\nsslkey = {:?}",
            pair.cert, pair.key
        );
        log_in(&cluster, "127.0.0.1", &keys)
    };
    assert_eq!(
        shown(&ours.issue("app", &[])),
        Ok((true, "/CN=app".to_owned()))
    );
    assert_refused(
        shown(&ours.issue("other", &[])),
        "certificate authentication failed",
    );
    assert_refused(
        encrypted("sslmode = 'require'"),
        "connection requires a valid client certificate",
    );
    let strangers = Authority::new(directory.path(), "strangers");
    assert_refused(shown(&strangers.issue("app", &[])), "UnknownCA");
}

#[test]
fn a_replica_whose_certificate_has_expired_costs_nobody_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Authority::new(directory.path(), "ours");
    let cluster = cluster();
    let server = ours.issue("pg", &["127.0.0.1"]);
    if !serve_tls(&cluster, &server, None) {
        return;
    }
    let view = "CREATE VIEW here AS SELECT current_setting('port') AS port; \
                GRANT SELECT ON here TO app";
    cluster.primary().sql("app", view).unwrap();
    cluster.wait_caught_up().unwrap();
    let gateway = Gateway::start_with(&cluster, |config| {
        let root = ours.root();
        let name = format!("name = \"main\"\nsslmode = \"verify-full\"\nsslrootcert = {root:?}\n");
        config.replacen("name = \"main\"\n", &name, 1)
    });
    let at = || {
        ask(
            &cluster,
            &gateway,
            "host=127.0.0.1",
            "SELECT port FROM here",
        )
        .expect("an answer")
    };
    let [primary, replica] = [cluster.primary(), cluster.node(1)];
    wait_for("the replica to serve", || {
        at() == replica.port().to_string()
    });
    let expired = ours.issue_expired("pg", &["127.0.0.1"]);
    expired.hand_to_owner_of(cluster.directory(), "server");
    replica.reload().unwrap();
    // What is open goes on, and nothing else is opened.
    wait_for("reads to go elsewhere", || {
        let end = "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity \
                   WHERE usename = 'app'";
        replica.sql("postgres", end).unwrap();
        at() == primary.port().to_string()
    });
    assert_eq!(gateway.metric("tidegate_up", ""), 2.0);
    assert_eq!(gateway.metric("tidegate_errors_total", ""), 0.0);
}

#[test]
fn all_traffic_is_encrypted_on_both_sides() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Authority::new(directory.path(), "ours");
    let cluster = cluster();
    let server = ours.issue("pg", &["127.0.0.1"]);
    if !serve_tls(&cluster, &server, Some(&ours.root())) {
        return;
    }
    // Both: a certificate, and a password that is proved with channel binding.
    set_access(
        &cluster,
        &ONLY_ENCRYPTED.replace("256", "256 clientcert=verify-ca"),
    );
    let (front, back) = (
        ours.issue("tidegate", &["localhost"]),
        ours.issue("tidegate", &[]),
    );
    let gateway = Gateway::start_with(&cluster, |config| {
        let listen = format!(
            "[listen]\ntls = {{ mode = \"require\", cert = {:?}, key = {:?} }}\n",
            front.cert, front.key
        );
        let name = format!(
            "name = \"main\"\nsslmode = \"verify-full\"\nsslrootcert = {:?}\nsslcert = {:?}\nsslkey = {:?}\n",
            ours.root(),
            back.cert,
            back.key
        );
        config
            .replacen("[listen]\n", &listen, 1)
            .replacen("name = \"main\"\n", &name, 1)
            .replacen("[auth]\n", "[routing]\nreplication = \"primary\"\n\n[auth]\nquery_user = \"postgres\"\nquery_password = \"postgres\"\n", 1)
    });
    let parameters = format!(
        "host=localhost hostaddr=127.0.0.1 sslmode=verify-full channel_binding=require sslrootcert={}",
        ours.root().display()
    );
    let asked = |sql: &str| ask(&cluster, &gateway, &parameters, sql);
    let on_replica = || gateway.metric("tidegate_queries_total", "route=\"replica\"");
    wait_for("the replica to serve", || {
        asked("SELECT 1") == Ok("1".to_owned()) && on_replica() > 0.0
    });
    asked("CREATE TABLE big (i int, t text)").unwrap();
    // Sessions' servers and the probes.
    for node in cluster.nodes() {
        let servers = "SELECT usename, bool_and(ssl), min(client_dn) FROM pg_stat_ssl \
                       JOIN pg_stat_activity USING (pid) WHERE usename <> 'postgres' \
                       GROUP BY usename ORDER BY usename";
        let expected = "app|t|/CN=tidegate\ntidegate|t|/CN=tidegate";
        assert_eq!(node.sql("postgres", servers).unwrap(), expected);
    }

    // Who is looked up proves a password with channel binding, and is passed through with the same.
    let primary = cluster.primary();
    primary
        .sql("postgres", "CREATE ROLE found LOGIN PASSWORD 'found'")
        .unwrap();
    cluster.wait_caught_up().unwrap();
    let conninfo = format!(
        "port={} dbname=app user=found password=found {parameters}",
        gateway.port
    );
    let found = |sql: &str| {
        let mut psql = psql(&cluster, gateway.directory(), &conninfo);
        let output = psql.args(["-c", sql]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let mine = "SELECT ssl, current_user FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(found(mine), "t|found");

    // A replication connection is as encrypted.
    let conninfo = format!(
        "port={} dbname=app user=postgres password=postgres replication=database {parameters}",
        gateway.port
    );
    let mut backup = Command::new(cluster.postgres().bindir().join("pg_basebackup"));
    let backup = backup
        .args([
            "-D", "-", "-Ft", "-X", "none", "-c", "fast", "-d", &conninfo,
        ])
        .env("HOME", gateway.directory())
        .output()
        .unwrap();
    assert!(
        backup.status.success(),
        "{}",
        String::from_utf8_lossy(&backup.stderr)
    );
    assert!(backup.stdout.len() > 20_000_000, "{}", backup.stdout.len());

    // psql sends and fetches much, on one line.
    let lines: String = (0..60_000)
        .map(|i| format!("{i}\t{}\n", "x".repeat(1000)))
        .collect();
    let conninfo = format!(
        "port={} dbname=app user=app password=app {parameters}",
        gateway.port
    );
    let mut copy = psql(&cluster, gateway.directory(), &conninfo);
    let copy = copy
        .args(["-c", "COPY big FROM STDIN"])
        .stdin(Stdio::piped());
    let mut copy = copy.spawn().unwrap();
    std::io::Write::write_all(&mut copy.stdin.take().unwrap(), lines.as_bytes()).unwrap();
    assert!(copy.wait().unwrap().success());
    assert_eq!(
        asked("SELECT count(*), sum(length(t)) FROM big"),
        Ok("60000|60000000".to_owned())
    );
    let mut copy = psql(&cluster, gateway.directory(), &conninfo);
    let copied = copy
        .args(["-c", "COPY (SELECT * FROM big ORDER BY i) TO STDOUT"])
        .output();
    assert!(copied.unwrap().stdout == lines.as_bytes());

    hammer(
        &gateway,
        &format!("{conninfo} ssl_max_protocol_version=TLSv1.2"),
        "asked",
    );
    hammer(&gateway, &conninfo, "direct");

    // Of another authority from now on: what is open lives on, what is new is refused.
    let config = fs::read_to_string(&gateway.config_path).unwrap();
    let strangers = Authority::new(directory.path(), "strangers");
    let root = |authority: &Authority| format!("sslrootcert = {:?}", authority.root());
    gateway.reload(&config.replace(&root(&ours), &root(&strangers)));
    for node in cluster.nodes() {
        node.restart().unwrap();
    }
    wait_for("the probes to refuse the nodes", || {
        gateway
            .log()
            .contains("TLS with the server failed: certificate is of an authority")
    });
    gateway.reload(&config);
    wait_for("the nodes to be back", || asked("SELECT 1").is_ok());
}

/// Runs the script, where psycopg is installed.
fn hammer(gateway: &Gateway, conninfo: &str, how: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".tools/venv/bin/python");
    if !python.exists() {
        let due = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!due, "psycopg is missing: run scripts/setup --drivers");
        eprintln!("SKIPPED: psycopg is missing; scripts/setup --drivers installs it");
        return;
    }
    let mut script = Command::new(python);
    let script = script
        .arg(root.join("tests/tls/psycopg_check.py"))
        .args([conninfo, how])
        .env("HOME", gateway.directory())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let output = script.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    eprint!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}", text(&output.stderr));
}
