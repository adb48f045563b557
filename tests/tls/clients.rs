//! TLS with clients.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tidegate::demo::LocalCluster;
use tidegate::wire::{encode, startup};

use super::authority::{Authority, Pair};
use super::support::raw::{Raw, VERSION_3_0};
use super::support::{Gateway, wait_for};
use super::{ask, assert_refused, cluster, is_encrypted, psql};

const SSL_REQUEST: [u8; 8] = startup::SSL_REQUEST_PACKET;

/// The configuration with this TLS for clients.
fn with_tls(config: String, mode: &str, pair: &Pair, client_ca: Option<&Path>) -> String {
    let client_ca = client_ca.map(|path| format!(", client_ca = {path:?}"));
    let tls = format!(
        "[listen]\ntls = {{ mode = \"{mode}\", cert = {:?}, key = {:?}{} }}\n",
        pair.cert,
        pair.key,
        client_ca.unwrap_or_default()
    );
    config.replacen("[listen]\n", &tls, 1)
}

fn gateway(cluster: &LocalCluster, mode: &str, pair: &Pair, client_ca: Option<&Path>) -> Gateway {
    Gateway::start_with(cluster, |config| with_tls(config, mode, pair, client_ca))
}

#[test]
fn clients_get_tls_as_their_sslmode_says() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, others) = authorities(directory.path());
    let server = ours.issue("tidegate", &["localhost"]);
    let cluster = cluster();
    let root = |authority: &Authority| format!("sslrootcert={}", authority.root().display());
    let (right, wrong) = (root(&ours), root(&others));

    let offering = gateway(&cluster, "prefer", &server, None);
    let local = "host=localhost hostaddr=127.0.0.1";
    let encrypted = |parameters: &str| is_encrypted(&cluster, &offering, parameters);
    assert_eq!(encrypted("host=127.0.0.1 sslmode=disable"), Ok(false));
    assert_eq!(encrypted("host=127.0.0.1 sslmode=allow"), Ok(false));
    for mode in ["prefer", "require"] {
        assert_eq!(
            encrypted(&format!("host=127.0.0.1 sslmode={mode}")),
            Ok(true)
        );
    }
    for mode in ["verify-ca", "verify-full"] {
        let parameters = format!("{local} sslmode={mode}");
        assert_eq!(encrypted(&format!("{parameters} {right}")), Ok(true));
        assert_refused(
            encrypted(&format!("{parameters} {wrong}")),
            "certificate verify failed",
        );
    }
    assert_refused(
        encrypted(&format!("host=127.0.0.1 sslmode=verify-full {right}")),
        "does not match host name",
    );
    assert_eq!(
        encrypted("host=127.0.0.1 sslmode=require channel_binding=require"),
        Ok(true)
    );
    // libpq's own TLS 1.2.
    let old = "host=127.0.0.1 sslmode=require ssl_max_protocol_version=TLSv1.2";
    let shown = ask(&cluster, &offering, old, "\\conninfo").unwrap();
    assert!(shown.contains("TLSv1.2"), "{shown}");
    assert!(offering.metric("tidegate_client_tls_handshakes_total", "ok") >= 7.0);
    assert!(offering.metric("tidegate_client_tls_handshakes_total", "failed") >= 2.0);
    drop(offering);

    let requiring = gateway(&cluster, "require", &server, None);
    let encrypted = |parameters: &str| is_encrypted(&cluster, &requiring, parameters);
    assert_refused(
        encrypted("host=127.0.0.1 sslmode=disable"),
        "FATAL:  connection of user \"app\" to database \"app\" is not encrypted",
    );
    // libpq tries again with TLS.
    assert_eq!(encrypted("host=127.0.0.1 sslmode=allow"), Ok(true));
    let mut socket = connect(requiring.port);
    let hello = startup::encode(&[("user", "app"), ("database", "app")]);
    socket.write_all(&hello).unwrap();
    assert!(rest(socket).contains("SFATAL\0VFATAL\0C28000\0"));
    drop(requiring);

    let plain = Gateway::start(&cluster);
    assert_refused(
        is_encrypted(&cluster, &plain, "host=127.0.0.1 sslmode=require"),
        "server does not support SSL, but SSL was required",
    );
    assert_refused(
        is_encrypted(&cluster, &plain, "host=127.0.0.1 channel_binding=require"),
        "channel binding required",
    );
}

#[test]
fn a_handshake_that_takes_too_long_is_counted_and_logged() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, _) = authorities(directory.path());
    let server = ours.issue("tidegate", &["localhost"]);
    let cluster = cluster();
    let gateway = Gateway::start_with(&cluster, |config| {
        let config = config.replacen("[listen]\n", "[listen]\nlogin_timeout = \"500ms\"\n", 1);
        with_tls(config, "prefer", &server, None)
    });
    // It has asked, and says no more.
    let mut asked = connect(gateway.port);
    asked.write_all(&SSL_REQUEST).unwrap();
    // It has begun a message, without having asked.
    let mut begun = connect(gateway.port);
    begun.write_all(&[0x16, 3, 1, 2, 0]).unwrap();
    // It may be anybody.
    let silent = connect(gateway.port);
    assert_eq!(rest(asked), "S");
    assert_eq!(rest(begun) + &rest(silent), "");
    let failed = gateway.metric("tidegate_client_tls_handshakes_total", "failed");
    assert_eq!(failed, 2.0);
    let log = gateway.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("TLS handshake not finished"));
    assert_eq!(
        lines
            .filter(|line| line.contains("peer=127.0.0.1:"))
            .count(),
        2,
        "{log}"
    );
}

/// The salt that is shown to somebody who wants to log in as `user`.
fn salt(gateway: &Gateway, user: &str) -> String {
    let mut raw = Raw::start(gateway.port, VERSION_3_0, &[("user", user)]);
    let (client_first, mechanism) = (b"n,,n=,r=c", b"SCRAM-SHA-256\0\0\0\0\x09");
    raw.until(b'R');
    raw.send(|out| encode::password(out, &[&mechanism[..], client_first].concat()));
    let server_first = raw.until(b'R').escape_ascii().to_string();
    let (_, salt) = server_first.split_once(",s=").expect("a salt");
    salt.to_owned()
}

#[test]
fn users_that_do_not_exist_look_alike_wherever_the_key_is() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, _) = authorities(directory.path());
    let server = ours.issue("tidegate", &["localhost"]);
    let cluster = cluster();
    let proxies = [0, 1].map(|_| gateway(&cluster, "prefer", &server, None));
    for user in ["app", "nobody"] {
        let [one, other] = [0, 1].map(|index| salt(&proxies[index], user));
        assert_eq!(one, other, "{user}");
    }
    assert_ne!(salt(&proxies[0], "app"), salt(&proxies[0], "nobody"));
}

#[test]
fn certificates_that_postgresqls_documentation_makes_are_good_enough() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, _) = authorities(directory.path());
    let Some(server) = ours.issue_version_1("localhost") else {
        eprintln!("SKIPPED: no openssl to make certificates of version 1");
        return;
    };
    let client = ours.issue_version_1("app").unwrap();
    let cluster = cluster();
    let gateway = gateway(&cluster, "verify-full", &server, Some(&ours.root()));
    for version in ["TLSv1.2", "TLSv1.3"] {
        let parameters = format!(
            "host=localhost hostaddr=127.0.0.1 sslmode=verify-full sslrootcert={} {} \
             channel_binding=require ssl_max_protocol_version={version}",
            ours.root().display(),
            shown(&client)
        );
        assert_eq!(
            ask(&cluster, &gateway, &parameters, "SELECT 1"),
            Ok("1".into())
        );
    }
}

#[test]
fn clients_show_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, others) = authorities(directory.path());
    let server = ours.issue("tidegate", &["localhost"]);
    let cluster = cluster();
    let app = ours.issue("app", &[]);
    let ask = |gateway: &Gateway, user: &str, client: Option<&Pair>| {
        let shown = client.map(shown).unwrap_or_default();
        let parameters = format!("host=127.0.0.1 sslmode=require user={user} {shown}");
        ask(&cluster, gateway, &parameters, "SELECT current_user")
    };
    let ok = |user: &str| Ok(user.to_owned());

    // Asked for, and not demanded; but what is shown must be good.
    let asking = gateway(&cluster, "prefer", &server, Some(&ours.root()));
    assert_eq!(ask(&asking, "app", None), ok("app"));
    assert_eq!(ask(&asking, "app", Some(&app)), ok("app"));
    assert_refused(
        ask(&asking, "app", Some(&others.issue("app", &[]))),
        "alert",
    );
    assert_refused(
        ask(&asking, "app", Some(&ours.issue_expired("app", &[]))),
        "expired",
    );
    drop(asking);

    let demanding = gateway(&cluster, "verify-ca", &server, Some(&ours.root()));
    assert_refused(
        ask(&demanding, "app", None),
        "FATAL:  connection requires a valid client certificate",
    );
    assert_eq!(
        ask(&demanding, "app", Some(&ours.issue("whoever", &[]))),
        ok("app")
    );
    drop(demanding);

    let full = gateway(&cluster, "verify-full", &server, Some(&ours.root()));
    assert_eq!(ask(&full, "app", Some(&app)), ok("app"));
    assert_refused(
        ask(&full, "app", Some(&ours.issue("whoever", &[]))),
        "FATAL:  certificate authentication failed for user \"app\"",
    );
    assert!(
        full.log().contains("OtherName(\"whoever\")"),
        "{}",
        full.log()
    );
    drop(full);

    // No password is asked for; who has one logs in to the servers with it.
    let by_certificate = Gateway::start_with(&cluster, |config| {
        let config = config.replace("method = \"scram-sha-256\"", "method = \"cert\"");
        with_tls(config, "require", &server, Some(&ours.root()))
    });
    let conninfo = format!(
        "host=127.0.0.1 port={} user=app dbname=app sslmode=require {}",
        by_certificate.port,
        shown(&app)
    );
    let mut without_password = psql(&cluster, by_certificate.directory(), &conninfo);
    let output = without_password
        .args(["-w", "-c", "SELECT current_user"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "app\n");
    assert_refused(
        ask(&by_certificate, "postgres", Some(&app)),
        "FATAL:  certificate authentication failed for user \"postgres\"",
    );
    assert_refused(
        ask(&by_certificate, "app", None),
        "FATAL:  connection requires a valid client certificate",
    );
    let stranger = ours.issue("stranger", &[]);
    assert_refused(
        ask(&by_certificate, "stranger", Some(&stranger)),
        "FATAL:  role \"stranger\" does not exist",
    );
}

#[test]
fn nothing_is_read_that_came_before_the_handshake() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, _) = authorities(directory.path());
    let server = ours.issue("tidegate", &["localhost"]);
    let cluster = cluster();
    let gateway = gateway(&cluster, "prefer", &server, None);
    let hello = startup::encode(&[("user", "app"), ("database", "app")]);

    // In one packet with the request.
    let mut socket = connect(gateway.port);
    socket
        .write_all(&[&SSL_REQUEST[..], &hello].concat())
        .unwrap();
    let answer = rest(socket);
    assert!(
        answer.starts_with('E') && answer.contains("C08P01\0"),
        "{answer:?}"
    );
    assert!(
        answer.contains("Mreceived unencrypted data after SSL request"),
        "{answer:?}"
    );
    assert!(gateway.log().contains("somebody in the middle"));
    let gss = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
    let mut socket = connect(gateway.port);
    socket.write_all(&[&gss[..], &hello].concat()).unwrap();
    assert!(rest(socket).contains("after GSSAPI encryption request"));

    // After the answer, in place of a handshake: never taken for a start-up message.
    let mut socket = connect(gateway.port);
    socket.write_all(&SSL_REQUEST).unwrap();
    assert_eq!(byte(&mut socket), b'S');
    socket.write_all(&hello).unwrap();
    let answer = rest(socket);
    assert!(!answer.contains("SCRAM"), "{answer:?}");

    // No GSS; then TLS all the same.
    let mut socket = connect(gateway.port);
    socket.write_all(&gss).unwrap();
    assert_eq!(byte(&mut socket), b'N');
    socket.write_all(&SSL_REQUEST).unwrap();
    assert_eq!(byte(&mut socket), b'S');
    let mut client = handshake(socket, &ours, &[]).unwrap();
    client.write_all(&hello).unwrap();
    let offered = message(&mut client);
    assert!(
        offered.contains("SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0"),
        "{offered:?}"
    );
    // Encrypted once is enough.
    let mut socket = connect(gateway.port);
    socket.write_all(&SSL_REQUEST).unwrap();
    assert_eq!(byte(&mut socket), b'S');
    let mut client = handshake(socket, &ours, &[]).unwrap();
    client
        .write_all(&[&SSL_REQUEST[..], &SSL_REQUEST[..]].concat())
        .unwrap();
    assert!(message(&mut client).contains("C08P01"));
}

#[test]
fn a_direct_handshake_must_name_the_protocol() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, _) = authorities(directory.path());
    let server = ours.issue("tidegate", &["localhost"]);
    let cluster = cluster();
    let offering = gateway(&cluster, "require", &server, None);
    let hello = startup::encode(&[("user", "app"), ("database", "app")]);

    let mut client = handshake(connect(offering.port), &ours, &["postgresql"]).unwrap();
    client.write_all(&hello).unwrap();
    assert!(message(&mut client).contains("SCRAM-SHA-256-PLUS"));

    let without = handshake(connect(offering.port), &ours, &[]).and_then(|mut client| {
        client.write_all(&hello)?;
        let mut answer = Vec::new();
        client.read_to_end(&mut answer)?;
        Ok(answer)
    });
    // It ends without a word of PostgreSQL's protocol.
    assert!(without.as_ref().map_or(true, Vec::is_empty), "{without:?}");
    wait_for("the log", || {
        offering.log().contains("without ALPN protocol negotiation")
    });
    let http = handshake(connect(offering.port), &ours, &["http/1.1"]);
    let error = http.map(drop).expect_err("a refusal").to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    drop(offering);

    let plain = Gateway::start(&cluster);
    assert!(handshake(connect(plain.port), &ours, &["postgresql"]).is_err());
}

#[test]
fn certificates_are_renewed_by_a_reload() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, _) = authorities(directory.path());
    let (old, new) = (
        ours.issue("old", &["localhost"]),
        ours.issue("new", &["localhost"]),
    );
    let served = ours.issue("served", &["localhost"]);
    old.replace(&served);
    let cluster = cluster();
    let gateway = gateway(&cluster, "require", &served, None);
    let config = fs::read_to_string(&gateway.config_path).unwrap();
    let certificate = |pair: &Pair| CertificateDer::from_pem_file(&pair.cert).unwrap();
    let shown = || {
        let client = handshake(connect(gateway.port), &ours, &["postgresql"]).unwrap();
        client.conn.peer_certificates().unwrap()[0]
            .clone()
            .into_owned()
    };
    assert_eq!(shown(), certificate(&old));

    let conninfo = format!("{} sslmode=require", gateway.url("app"));
    let mut open = psql(&cluster, gateway.directory(), &conninfo);
    let mut open = open
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut say = |text: &str| {
        open.stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        let mut answer = [0; 2];
        open.stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut answer)
            .unwrap();
        answer
    };
    assert_eq!(&say("SELECT 1;\n"), b"1\n");

    let refused = |reason: &str| {
        let before = gateway.metric("tidegate_config_reloads_total", "refused");
        gateway.reload(&config);
        assert_eq!(
            gateway.metric("tidegate_config_reloads_total", "refused"),
            before + 1.0
        );
        assert!(gateway.log().contains(reason), "{}", gateway.log());
        assert_eq!(shown(), certificate(&old));
    };
    fs::copy(&new.cert, &served.cert).unwrap();
    refused("it does not belong to the certificate in");
    fs::write(&served.cert, "no certificate").unwrap();
    refused("it holds no certificate in PEM form");
    new.replace(&served);
    fs::set_permissions(&served.key, Permissions::from_mode(0o644)).unwrap();
    refused("chmod it to u=rw (0600) or less");
    fs::set_permissions(&served.key, Permissions::from_mode(0o600)).unwrap();

    // The configuration itself has not changed.
    gateway.reload(&config);
    assert_eq!(shown(), certificate(&new));
    assert_eq!(&say("SELECT 2;\n"), b"2\n");
    drop(open.stdin.take());
    assert!(open.wait().unwrap().success());
}

#[test]
fn check_looks_into_the_files() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, _) = authorities(directory.path());
    let check = |pair: &Pair| {
        let config = "[listen]\n[[auth.user]]\nname = 'a'\npassword = 'a'\n\
                      [[cluster]]\nname = 'm'\n[[cluster.node]]\naddress = 'h:1'\n";
        let path = directory.path().join("config.toml");
        fs::write(&path, with_tls(config.to_owned(), "prefer", pair, None)).unwrap();
        let mut check = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let output = check
            .arg("check")
            .arg("--config")
            .arg(&path)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let good = ours.issue("tidegate", &["localhost"]);
    assert_eq!(check(&good), (Some(0), String::new()));
    let (code, words) = check(&ours.issue_expired("tidegate", &[]));
    assert_eq!(code, Some(0));
    assert!(words.contains("has expired on 2021-01-01"), "{words}");
    let (code, words) = check(&Pair {
        cert: good.cert.clone(),
        key: PathBuf::from("/nonexistent"),
    });
    assert_eq!(code, Some(2));
    assert!(
        words.contains("cannot use listen.tls.key \"/nonexistent\": No such file"),
        "{words}"
    );
    let encrypted = directory.path().join("encrypted.key");
    fs::write(
        &encrypted,
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    fs::set_permissions(&encrypted, Permissions::from_mode(0o600)).unwrap();
    let (code, words) = check(&Pair {
        cert: good.cert.clone(),
        key: encrypted,
    });
    assert_eq!(code, Some(2));
    assert!(words.contains("the key is encrypted"), "{words}");
}

fn authorities(directory: &Path) -> (Authority, Authority) {
    (
        Authority::new(directory, "ours"),
        Authority::new(directory, "others"),
    )
}

/// libpq's parameters for a client certificate.
fn shown(pair: &Pair) -> String {
    format!(
        "sslcert={} sslkey={}",
        pair.cert.display(),
        pair.key.display()
    )
}

fn connect(port: u16) -> TcpStream {
    let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    socket
}

fn byte(socket: &mut TcpStream) -> u8 {
    let mut byte = [0];
    socket.read_exact(&mut byte).unwrap();
    byte[0]
}

/// All that comes until the other end closes, one way or another.
fn rest(mut socket: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The next message, as text.
fn message(client: &mut impl Read) -> String {
    let mut head = [0; 5];
    client.read_exact(&mut head).unwrap();
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let mut body = vec![0; length - 4];
    client.read_exact(&mut body).unwrap();
    String::from_utf8_lossy(&body).into_owned()
}

type TlsClient = StreamOwned<ClientConnection, TcpStream>;

/// Goes through a handshake, as somebody who is no libpq.
fn handshake(
    socket: TcpStream,
    authority: &Authority,
    alpn: &[&str],
) -> std::io::Result<TlsClient> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(authority.root()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut client = StreamOwned::new(connection, socket);
    while client.conn.is_handshaking() {
        client.conn.complete_io(&mut client.sock)?;
    }
    Ok(client)
}
