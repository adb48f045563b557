//! The exact words of every refusal.

use std::net::SocketAddr;
use std::time::Duration;

use super::super::*;

/// What every case ends with, so that only its own fault is left.
const CLUSTER: &str = "[[cluster]]\nname = 'm'\n[[cluster.node]]\naddress = 'h:1'\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "t.toml")
}

/// One that is good in form.
const VERIFIER: &str = "SCRAM-SHA-256$1:c2FsdA==$\
    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// The first line of the error: place and message.
fn fault(text: &str) -> String {
    let error = parse(text).expect_err(text).to_string();
    error.lines().next().unwrap_or_default().to_owned()
}

#[track_caller]
fn check(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(fault(&format!("{text}\n{CLUSTER}")), *expected, "{text}");
    }
}

#[test]
fn the_least_config_has_every_default() {
    let config = parse(CLUSTER).unwrap();
    let node = Node {
        name: "h:1".to_owned(),
        host: "h".to_owned(),
        port: 1,
        zone: None,
        weight: 1,
    };
    let cluster = Cluster {
        name: "m".to_owned(),
        databases: vec!["*".to_owned()],
        monitor: None,
        consistency: Wish::NONE,
        tls: NodeTls::default(),
        nodes: vec![node],
    };
    assert_eq!(
        config,
        Config {
            clusters: vec![cluster],
            ..Config::default()
        }
    );
}

#[test]
fn every_key_is_read() {
    let text = r#"
        [listen]
        address = ["0.0.0.0:1", "[::]:2"]
        unix_socket_dir = "/run/x"
        reuse_port = false
        tls = { mode = "verify-ca", cert = "c", key = "/k", client_ca = "ca" }
        max_clients = 1_000
        workers = 0x4
        workers_min = 2
        login_timeout = "1s"
        shutdown_grace = "1h"
        shutdown_timeout = "0"
        [http]
        address = ""
        [auth]
        method = "md5"
        user = [{ name = "a", password = "x" }, { name = "b", verifier = "VERIFIER" }]
        query_user = "q"
        query_password = "x"
        query_database = "d"
        query = "SELECT f($1)"
        query_cache = "0"
        [console]
        database = "c"
        admins = ["a"]
        viewers = ["b"]
        [pool]
        mode = "transaction"
        size = 3
        checkout_timeout = "4s"
        idle_timeout = "5m"
        lifetime = "6h"
        connect_timeout = "7ms"
        [routing]
        zone = "z"
        read_primary = "share"
        transaction_reads = "replica"
        safe_functions = ["f"]
        unsafe_functions = ["g_*"]
        catalog_interval = "8s"
        replication = "primary"
        [consistency]
        level = "eventual"
        max_lag = "7s"
        poll_interval = "500us"
        gate_wait = "0"
        on_no_replica = "wait"
        wait_timeout = "8s"
        primary_reads_raise_floor = false
        [[consistency.override]]
        database = "x"
        user = "y"
        level = "global"
        max_lag = "2s"
        [consistency.redis]
        url = "redis://r"
        timeout = "3ms"
        prefix = "p"
        keep = "5h"
        [lag]
        max = "9s"
        max_bytes = "1GB"
        [health]
        interval = "3s"
        timeout = "3s"
        failures = 1
        [failover]
        hold = "0"
        [log]
        format = "json"
        level = "debug"
        slow_query = "0"
        [[cluster]]
        name = "one"
        databases = ["x", "y"]
        consistency = { level = "bounded" }
        sslmode = "verify-full"
        sslrootcert = "r"
        sslcert = "sc"
        sslkey = "sk"
        [cluster.monitor]
        user = "mon"
        [[cluster.node]]
        name = "n"
        address = "db:5432"
        zone = "z"
        weight = 5
        [[cluster]]
        name = "two"
        node = [{ address = "db:5432" }]
    "#;
    let seconds = Duration::from_secs;
    let owned = |text: &str| text.to_owned();
    let secret = |text: &str| Some(Secret::new(text));
    let node = |name: &str, zone: Option<&str>, weight| Node {
        name: owned(name),
        host: owned("db"),
        port: 5432,
        zone: zone.map(owned),
        weight,
    };
    let expected = Config {
        listen: Listen {
            address: ["0.0.0.0:1", "[::]:2"]
                .map(|a| a.parse::<SocketAddr>().unwrap())
                .to_vec(),
            unix_socket_dir: Some("/run/x".into()),
            reuse_port: false,
            tls: Some(ListenTls {
                mode: OfferMode::VerifyCa,
                cert: "c".into(),
                key: "/k".into(),
                client_ca: Some("ca".into()),
            }),
            max_clients: 1000,
            workers: 4,
            workers_min: 2,
            login_timeout: seconds(1),
            shutdown_grace: seconds(3600),
            shutdown_timeout: Duration::ZERO,
        },
        http: Http { address: None },
        auth: Auth {
            method: AuthMethod::Md5,
            users: vec![
                User {
                    name: owned("a"),
                    password: secret("x"),
                    verifier: None,
                },
                User {
                    name: owned("b"),
                    password: None,
                    verifier: Some(Verifier::parse(VERIFIER).unwrap()),
                },
            ],
            lookup: Some(Lookup {
                user: owned("q"),
                password: secret("x"),
                database: owned("d"),
                query: owned("SELECT f($1)"),
                cache: Duration::ZERO,
            }),
        },
        console: Console {
            database: owned("c"),
            admins: vec![owned("a")],
            viewers: vec![owned("b")],
        },
        pool: Pool {
            mode: PoolMode::Transaction,
            size: 3,
            checkout_timeout: seconds(4),
            idle_timeout: seconds(300),
            lifetime: seconds(6 * 3600),
            connect_timeout: Duration::from_millis(7),
        },
        routing: Routing {
            zone: Some(owned("z")),
            read_primary: ReadPrimary::Share,
            transaction_reads: TransactionReads::Replica,
            safe_functions: vec![owned("f")],
            unsafe_functions: vec![owned("g_*")],
            catalog_interval: seconds(8),
            replication: Replication::Primary,
        },
        consistency: Consistency {
            level: Level::Eventual,
            max_lag: seconds(7),
            poll_interval: Duration::from_micros(500),
            gate_wait: Duration::ZERO,
            on_no_replica: OnNoReplica::Wait,
            wait_timeout: seconds(8),
            primary_reads_raise_floor: false,
            overrides: vec![Override {
                database: Some(owned("x")),
                user: Some(owned("y")),
                wish: Wish {
                    level: Some(Level::Global),
                    max_lag: Some(seconds(2)),
                },
            }],
            redis: Some(Redis {
                url: Secret::new("redis://r"),
                timeout: Duration::from_millis(3),
                prefix: owned("p"),
                keep: seconds(5 * 3600),
            }),
        },
        lag: Lag {
            max: seconds(9),
            max_bytes: 1 << 30,
        },
        health: Health {
            interval: seconds(3),
            timeout: seconds(3),
            failures: 1,
        },
        failover: Failover {
            hold: Duration::ZERO,
        },
        log: Log {
            format: LogFormat::Json,
            level: owned("debug"),
            slow_query: Some(Duration::ZERO),
        },
        clusters: vec![
            Cluster {
                name: owned("one"),
                databases: vec![owned("x"), owned("y")],
                monitor: Some(Monitor {
                    user: owned("mon"),
                    password: None,
                    database: owned("postgres"),
                }),
                consistency: Wish {
                    level: Some(Level::Bounded),
                    max_lag: None,
                },
                tls: NodeTls {
                    mode: SslMode::VerifyFull,
                    root_cert: Some("r".into()),
                    cert: Some("sc".into()),
                    key: Some("sk".into()),
                },
                nodes: vec![node("n", Some("z"), 5)],
            },
            Cluster {
                name: owned("two"),
                databases: vec![owned("*")],
                monitor: None,
                consistency: Wish::NONE,
                tls: NodeTls::default(),
                nodes: vec![node("db:5432", None, 1)],
            },
        ],
    };
    let text = text.replace("VERIFIER", VERIFIER);
    assert_eq!(parse(&text).unwrap(), expected);
}

#[test]
fn an_error_shows_the_line() {
    assert_eq!(
        parse("[pool]\nmode = 'transaction'\n  sise = 20 # servers")
            .unwrap_err()
            .to_string(),
        "t.toml:3:3: unknown key \"pool.sise\"; did you mean \"size\"?\n  \
         3 |   sise = 20 # servers\n    |   ^^^^"
    );
}

#[test]
fn syntax() {
    check(&[
        (
            "[pool\nsize = 1",
            "t.toml:1:6: unclosed table, expected `]`",
        ),
        ("[pool]\nsize = 1\nsize = 2", "t.toml:3:1: duplicate key"),
        ("[pool]\n[pool]", "t.toml:2:2: duplicate key"),
    ]);
}

#[test]
fn unknown_keys() {
    check(&[
        (
            "[pol]",
            r#"t.toml:1:2: unknown key "pol"; did you mean "pool"?"#,
        ),
        (
            "[lag]\nmaxbytes = 1",
            r#"t.toml:2:1: unknown key "lag.maxbytes"; did you mean "max_bytes"?"#,
        ),
        (
            "[health]\nbanana = 1",
            r#"t.toml:2:1: unknown key "health.banana"; the keys known here are interval, timeout, failures"#,
        ),
        // The first in the file, not in the alphabet.
        (
            "[lag]\nmix = 1\nmax_byte = 1",
            r#"t.toml:2:1: unknown key "lag.mix"; did you mean "max"?"#,
        ),
        // A typing error in a required key is not a missing key.
        (
            "[[auth.user]]\nnane = 'x'",
            r#"t.toml:2:1: unknown key "auth.user.nane"; did you mean "name"?"#,
        ),
        (
            "[[cluster]]\nname = 'a'\n[[cluster.node]]\naddres = 'h:2'",
            r#"t.toml:4:1: unknown key "cluster.node.addres"; did you mean "address"?"#,
        ),
        (
            "[[cluster]]\nname = 'a'\nmonitor = { usr = 'x' }",
            r#"t.toml:3:13: unknown key "cluster.monitor.usr"; did you mean "user"?"#,
        ),
    ]);
}

#[test]
fn a_key_below_the_wrong_header() {
    check(&[
        (
            "[auth]\n[[auth.user]]\nname = 'a'\nquery_user = 'q'",
            r#"t.toml:4:1: unknown key "auth.user.query_user"; it belongs in [auth], above the first [[auth.user]]"#,
        ),
        (
            "[[cluster]]\nname = 'a'\n[[cluster.node]]\naddress = 'h:2'\ndatabases = ['x']",
            r#"t.toml:5:1: unknown key "cluster.node.databases"; it belongs in [[cluster]], above the first [[cluster.node]]"#,
        ),
        (
            "[[cluster]]\nname = 'a'\n[cluster.monitor]\nuser = 'x'\nsslmode = 'require'",
            r#"t.toml:5:1: unknown key "cluster.monitor.sslmode"; it belongs in [[cluster]], above [cluster.monitor]"#,
        ),
        (
            "[[cluster]]\nname = 'a'\nmonitor = { sslmode = 'require' }",
            r#"t.toml:3:13: unknown key "cluster.monitor.sslmode"; it belongs in [[cluster]]"#,
        ),
        // What is known to the root is another table, and a table's own name is most likely another key's.
        (
            "[http]\nlisten = 'x'",
            r#"t.toml:2:1: unknown key "http.listen"; the keys known here are address"#,
        ),
        (
            "[[auth.user]]\nuser = 'a'",
            r#"t.toml:2:1: unknown key "auth.user.user"; the keys known here are name, password, verifier"#,
        ),
    ]);
}

#[test]
fn what_a_later_version_will_know() {
    check(&[(
        "[[cluster]]\nname = 'a'\nnode = [{ address = 'h:2', tags = ['x'] }]",
        r#"t.toml:3:28: "cluster.node.tags" is not supported yet"#,
    )]);
}

#[test]
fn tls() {
    check(&[
        (
            "listen.tls = {}",
            r#"t.toml:1:14: missing key "listen.tls.cert""#,
        ),
        (
            "listen.tls = { mode = 'allow' }",
            r#"t.toml:1:23: "listen.tls.mode" must be "disable" or "prefer" or "require" or "verify-ca" or "verify-full", not "allow""#,
        ),
        (
            "listen.tls = { mode = 'verify-full', cert = 'c', key = 'k' }",
            r#"t.toml:1:23: "listen.tls.client_ca" must name the authority whose certificates clients are to show"#,
        ),
        (
            "auth.method = 'cert'",
            r#"t.toml:1:15: auth.method = "cert" needs "listen.tls" with a "client_ca" and the mode "require" or above"#,
        ),
        (
            "auth.method = 'cert'\nlisten.tls = { cert = 'c', key = 'k', client_ca = 'a' }",
            r#"t.toml:1:15: auth.method = "cert" needs "listen.tls" with a "client_ca" and the mode "require" or above"#,
        ),
        (
            "[[cluster]]\nname = 'a'\nnode = [{ address = 'h:1' }]\nsslmode = 'verify-ca'",
            r#"t.toml:4:11: "cluster.sslrootcert" must name the authority that the nodes' certificates are from"#,
        ),
        (
            "[[cluster]]\nname = 'a'\nnode = [{ address = 'h:1' }]\nsslcert = 'c'",
            r#"t.toml:4:11: "cluster.sslkey" must name the key of "cluster.sslcert""#,
        ),
        (
            "[[cluster]]\nname = 'a'\nnode = [{ address = 'h:1' }]\nsslkey = 'k'",
            r#"t.toml:4:10: "cluster.sslcert" must name the certificate of "cluster.sslkey""#,
        ),
    ]);
    let text = format!("listen.tls = {{ mode = 'disable' }}\n{CLUSTER}");
    assert_eq!(parse(&text).unwrap().listen.tls, None);
    let text = format!(
        "auth.method = 'cert'\nauth.user = [{{ name = 'a' }}]\n\
         listen.tls = {{ mode = 'require', cert = 'c', key = 'k', client_ca = 'a' }}\n{CLUSTER}"
    );
    assert_eq!(parse(&text).unwrap().auth.method, AuthMethod::Cert);
}

#[test]
fn paths_are_relative_to_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tidegate.toml");
    std::fs::write(
        &path,
        format!("listen.tls = {{ cert = 'c/d', key = '/k' }}\n{CLUSTER}"),
    )
    .unwrap();
    let tls = Config::load(&path).unwrap().listen.tls.unwrap();
    assert_eq!(tls.cert, directory.path().join("c/d"));
    assert_eq!(tls.key, Path::new("/k"));
}

#[test]
fn unix_sockets() {
    const FORM: &str = r#""cluster.node.address" must be the directory and the port of a Unix socket, such as "/run/postgresql:5432""#;
    for address in ["/tmp", "/tmp:", "/tmp:0", "/tmp:x", "/tmp:+1", "/tmp:65536"] {
        let text = format!("[[cluster]]\nname = 'a'\nnode = [{{ address = '{address}' }}]");
        let expected = format!(r#"t.toml:3:21: {FORM}, not "{address}""#);
        assert_eq!(fault(&text), expected);
    }
    let long = format!("/{}", "x".repeat(92));
    for text in [
        format!("listen.unix_socket_dir = '{long}'\n{CLUSTER}"),
        format!("[[cluster]]\nname = 'a'\nnode = [{{ address = '{long}:1' }}]"),
    ] {
        let fault = fault(&text);
        assert!(
            fault.ends_with("the directory of a Unix socket may have 92 bytes at most"),
            "{fault}"
        );
    }
    let shared = "listen = { reuse_port = true, unix_socket_dir = '/x' }\n";
    assert_eq!(
        fault(&format!("{shared}{CLUSTER}")),
        r#"t.toml:1:25: "listen.reuse_port" cannot be used together with "listen.unix_socket_dir": no two processes can listen on one Unix socket; leave one of them out"#
    );
    let text = "[[cluster]]\nname = 'm'\n[[cluster.node]]\naddress = '/run/my:pg:5432'\n";
    let node = &parse(text).unwrap().clusters[0].nodes[0];
    assert_eq!((node.host.as_str(), node.port), ("/run/my:pg", 5432));
    assert_eq!(node.address(), "/run/my:pg:5432");
    assert!(node.is_local());
}

#[test]
fn wrong_types() {
    check(&[
        (
            "pool.size = '20'",
            r#"t.toml:1:13: "pool.size" must be an integer, not a string"#,
        ),
        (
            "pool.size = 2.5",
            r#"t.toml:1:13: "pool.size" must be an integer, not a float"#,
        ),
        (
            "pool.mode = true",
            r#"t.toml:1:13: "pool.mode" must be a string, not a boolean"#,
        ),
        (
            "pool.lifetime = 3600",
            r#"t.toml:1:17: "pool.lifetime" must be a whole number with a unit (us, ms, s, m, h or d), such as "300ms", "5s" or "2m", not an integer"#,
        ),
        (
            "lag.max_bytes = 1979-05-27",
            r#"t.toml:1:17: "lag.max_bytes" must be a whole number with a unit (B, kB, MB, GB or TB, in powers of 1024), such as "64MB", not a date"#,
        ),
        (
            "routing.safe_functions = 'f'",
            r#"t.toml:1:26: "routing.safe_functions" must be a list, not a string"#,
        ),
        (
            "routing.safe_functions = ['f', 1]",
            r#"t.toml:1:32: "routing.safe_functions" must be a string, not an integer"#,
        ),
        (
            "pool = 3",
            r#"t.toml:1:8: "pool" must be a table, not an integer"#,
        ),
        (
            "[[pool]]",
            "t.toml:1:1: write [pool], not [[pool]]: there is only one",
        ),
        (
            "auth.user = 'x'",
            r#"t.toml:1:13: "auth.user" must be a list of tables, not a string"#,
        ),
        (
            "auth.user = ['x']",
            r#"t.toml:1:14: "auth.user" must be a table, not a string"#,
        ),
        (
            "[auth.user]\nname = 'x'",
            "t.toml:1:1: write [[auth.user]], not [auth.user]: it is a list",
        ),
        (
            "listen.address = []",
            r#"t.toml:1:18: "listen.address" must name an address"#,
        ),
        (
            "listen.address = 6432",
            r#"t.toml:1:18: "listen.address" must be a string, not an integer"#,
        ),
    ]);
}

#[test]
fn wrong_values() {
    check(&[
        (
            "pool.mode = 'x'",
            r#"t.toml:1:13: "pool.mode" must be "transaction" or "session", not "x""#,
        ),
        (
            "auth.method = 'scram'",
            r#"t.toml:1:15: "auth.method" must be "trust" or "md5" or "scram-sha-256" or "cert", not "scram""#,
        ),
        (
            "consistency.level = 'Session'",
            r#"t.toml:1:21: "consistency.level" must be "eventual" or "bounded" or "session" or "global" or "primary", not "Session""#,
        ),
        (
            "[[consistency.override]]\nlevel = 'global'",
            r#"t.toml:1:1: a [[consistency.override]] needs a "database", a "user" or both"#,
        ),
        (
            "[[consistency.override]]\nuser = 'u'",
            r#"t.toml:1:1: a [[consistency.override]] needs a "level", a "max_lag" or both"#,
        ),
        (
            "[[consistency.override]]\nuser = 'u'\nlevel = 'global'\n[[consistency.override]]\nuser = 'u'\nmax_lag = '1s'",
            r#"t.toml:4:1: this [[consistency.override]] is for the same database and user as another"#,
        ),
        (
            "consistency.redis = { url = 'rediss://secret@h' }",
            r#"t.toml:1:29: "consistency.redis.url" must begin with "redis://"; TLS is not supported yet"#,
        ),
        (
            "consistency.redis = { url = 'redis://secret@:x' }",
            r#"t.toml:1:29: "consistency.redis.url" must be such as "redis://user:password@host:6379/0""#,
        ),
        (
            "consistency.redis = { url = 'redis://h', keep = '16s' }",
            r#"t.toml:1:49: "consistency.redis.keep" (16s) must be more than 16s, which is "lag.max" and twice "health.interval" and "health.timeout", or replicas that lack what is no longer kept are read"#,
        ),
        (
            "consistency.max_lag = '0'",
            r#"t.toml:1:23: "consistency.max_lag" must be more than 0"#,
        ),
        (
            "pool.size = 0",
            r#"t.toml:1:13: "pool.size" must be from 1 to 10000, not 0"#,
        ),
        (
            "pool.size = -1",
            r#"t.toml:1:13: "pool.size" must be from 1 to 10000, not -1"#,
        ),
        (
            "listen.max_clients = 99999999999999999999",
            r#"t.toml:1:22: "listen.max_clients" must be from 1 to 1000000, not 99999999999999999999"#,
        ),
        (
            "console.database = 'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee'",
            r#"t.toml:1:20: "console.database" must have 63 bytes at most, as names in PostgreSQL have"#,
        ),
        (
            "health.failures = 0",
            r#"t.toml:1:19: "health.failures" must be from 1 to 1000, not 0"#,
        ),
        (
            "consistency.poll_interval = '0'",
            r#"t.toml:1:29: "consistency.poll_interval" must be more than 0"#,
        ),
        (
            "pool.checkout_timeout = '0s'",
            r#"t.toml:1:25: "pool.checkout_timeout" must be more than 0"#,
        ),
        (
            "lag.max_bytes = '0B'",
            r#"t.toml:1:17: "lag.max_bytes" must be more than 0"#,
        ),
        (
            "lag.max_bytes = '64mb'",
            r#"t.toml:1:17: "lag.max_bytes" must be a whole number with a unit (B, kB, MB, GB or TB, in powers of 1024), such as "64MB", not "64mb""#,
        ),
        (
            "failover.hold = '400d'",
            r#"t.toml:1:17: "failover.hold" must be at most 365d, not "400d""#,
        ),
        (
            "failover.hold = '10'",
            r#"t.toml:1:17: "failover.hold" must be a whole number with a unit (us, ms, s, m, h or d), such as "300ms", "5s" or "2m", not "10""#,
        ),
        (
            "listen.address = 'localhost:6432'",
            r#"t.toml:1:18: "listen.address" must be an IP address and a port, such as "127.0.0.1:6432", not "localhost:6432""#,
        ),
        (
            "listen.address = ['0.0.0.0:1', '0.0.0.0:1']",
            "t.toml:1:18: address 0.0.0.0:1 is listed twice",
        ),
        (
            "listen.address = '0.0.0.0:1'\nhttp.address = '127.0.0.1:1'",
            r#"t.toml:2:16: "http.address" (127.0.0.1:1) is taken by "listen.address" (0.0.0.0:1)"#,
        ),
        (
            "listen.address = '127.0.0.1:1'\nhttp.address = '[::]:1'",
            r#"t.toml:2:16: "http.address" ([::]:1) is taken by "listen.address" (127.0.0.1:1)"#,
        ),
        (
            "listen.workers = 2\nlisten.workers_min = 3",
            r#"t.toml:2:22: "listen.workers_min" must be at most "listen.workers", which is 2, not 3"#,
        ),
        (
            "log.level = ''",
            r#"t.toml:1:13: "log.level" must be "off" or "error" or "warn" or "info" or "debug" or "trace", not """#,
        ),
        (
            "[routing]\nsafe_functions = ['f']\nunsafe_functions = ['g', 'f']",
            r#"t.toml:3:20: function "f" is listed as safe and as unsafe"#,
        ),
        (
            "routing.safe_functions = ['']",
            r#"t.toml:1:27: "routing.safe_functions" must not be empty"#,
        ),
        (
            "health.timeout = '3s'",
            r#"t.toml:1:18: "health.timeout" (3s) must not be more than "health.interval" (2s), or probes overlap"#,
        ),
        (
            "health.interval = '500ms'",
            r#"t.toml:1:19: "health.timeout" (1s) must not be more than "health.interval" (500ms), or probes overlap"#,
        ),
        (
            "lag.max = '2s'",
            r#"t.toml:1:11: "lag.max" (2s) must be more than "health.interval" (2s), or idle replicas are taken for late ones"#,
        ),
        (
            "health.interval = '1m'",
            r#"t.toml:1:19: "lag.max" (10s) must be more than "health.interval" (60s), or idle replicas are taken for late ones"#,
        ),
    ]);
}

#[test]
fn users() {
    check(&[
        (
            "[[auth.user]]\npassword = 'x'",
            r#"t.toml:1:1: missing key "auth.user.name""#,
        ),
        (
            "[[auth.user]]\nname = ''",
            r#"t.toml:2:8: "auth.user.name" must not be empty"#,
        ),
        (
            "[[auth.user]]\nname = \"a\\u0000b\"",
            r#"t.toml:2:8: "auth.user.name" must not contain a zero byte"#,
        ),
        (
            "[[auth.user]]\nname = 'a'",
            r#"t.toml:1:1: user "a" needs a password or a verifier, unless auth.method is "trust" or "cert""#,
        ),
        (
            &format!("[[auth.user]]\nname = 'a'\npassword = 'x'\nverifier = '{VERIFIER}'"),
            r#"t.toml:4:12: user "a" has a password and a verifier; keep one of them"#,
        ),
        (
            "[[auth.user]]\nname = 'a'\nverifier = 'md5x'",
            r#"t.toml:3:12: "auth.user.verifier" is no SCRAM verifier as pg_authid.rolpassword has them: not of the form SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>"#,
        ),
        (
            &format!("[[auth.user]]\nname = 'a'\nverifier = '{VERIFIER}x'"),
            r#"t.toml:3:12: "auth.user.verifier" is no SCRAM verifier as pg_authid.rolpassword has them: a key is not 32 bytes in base64"#,
        ),
        (
            "auth.query_cache = '1s'",
            r#"t.toml:1:20: "auth.query_cache" is of no use without "auth.query_user""#,
        ),
        (
            "[auth]\nmethod = 'trust'\nquery_user = 'q'",
            r#"t.toml:3:14: "auth.query_user" needs auth.method "scram-sha-256" or "md5": it is by a client's login that its servers are logged in to"#,
        ),
        (
            "[auth]\nquery_user = 'q'\nquery = 'SELECT 1'",
            r#"t.toml:3:9: "auth.query" must have the user's name as $1, such as "SELECT usename, passwd FROM my_lookup($1)""#,
        ),
        (
            "[[auth.user]]\nname = 'a'\npassword = 'x'\n[[auth.user]]\nname = 'a'\npassword = 'y'",
            r#"t.toml:5:8: user "a" is listed twice"#,
        ),
        (
            "[console]\nadmins = ['a']",
            r#"t.toml:2:10: user "a" of the console must be an [[auth.user]]: users found by auth.query_user cannot use the console, otherwise anyone who may create roles in the database could make themselves an admin here"#,
        ),
        (
            "[console]\nadmins = ['a', 'b']\nviewers = ['b']",
            r#"t.toml:3:11: user "b" is an admin, and so need not be listed as a viewer"#,
        ),
    ]);
    assert!(
        parse(&format!(
            "auth.method = 'trust'\nauth.user = [{{ name = 'a' }}]\n{CLUSTER}"
        ))
        .is_ok()
    );
}

#[test]
fn an_error_repeats_no_secret() {
    for text in [
        "[[auth.user]]\nname = 'a'\nverifier = 'md5hunter2'",
        "[[auth.user]]\nname = 'a'\nverifier = 'SCRAM-SHA-256$4096:hunter2'",
        "[[auth.user]]\nname = 'a'\npassword = 'hunter2' x",
        "[[cluster]]\nname = 'a'\nmonitor = { password = 'hunter2', usr = 'x' }",
        "[[auth.user]]\nname = 'a'\npass = 'hunter2'",
        "consistency.redis = { url = 'rediss://:hunter2@h' }",
        "consistency.redis = { url = 'redis://:hunter2@h:x' }",
        "consistency.redis = { timout = '1s', url = 'redis://:hunter2@h' }",
        "consistency.redis = { uri = 'redis://:hunter2@h' }",
    ] {
        let shown = parse(text).unwrap_err().to_string();
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn clusters() {
    let cases = [
        (
            "",
            "t.toml:1:1: no cluster: add a [[cluster]] with at least one [[cluster.node]]",
        ),
        (
            "cluster = []",
            "t.toml:1:1: no cluster: add a [[cluster]] with at least one [[cluster.node]]",
        ),
        (
            "[cluster]\nname = 'm'",
            "t.toml:1:1: write [[cluster]], not [cluster]: it is a list",
        ),
        ("[[cluster]]\n", r#"t.toml:1:1: missing key "cluster.name""#),
        (
            "[[cluster]]\nname = ''",
            r#"t.toml:2:8: "cluster.name" must not be empty"#,
        ),
        (
            "[[cluster]]\nname = 'm'",
            r#"t.toml:1:1: cluster "m" has no node: add a [[cluster.node]]"#,
        ),
        (
            "[[cluster]]\nname = 'm'\ndatabases = []",
            r#"t.toml:3:13: "cluster.databases" must name a database, or "*" for every one"#,
        ),
        (
            "[[cluster]]\nname = 'm'\ndatabases = ['a', 'a']",
            r#"t.toml:3:13: database "a" is listed twice"#,
        ),
        (
            "auth.user = [{ name = 'a', password = 'x' }]\n[console]\nadmins = ['a']\ndatabase = 'c'\n[[cluster]]\nname = 'm'\ndatabases = ['c']\nnode = [{ address = 'h:1' }]",
            r#"t.toml:4:12: database "c" is the console's, so that of cluster "m" could not be reached; give "console.database" another name"#,
        ),
        (
            "[[cluster]]\nname = 'm'\nmonitor = { password = 'x' }",
            r#"t.toml:3:11: missing key "cluster.monitor.user""#,
        ),
        (
            "[[cluster]]\nname = 'm'\n[[cluster.node]]\nweight = 1",
            r#"t.toml:3:1: missing key "cluster.node.address""#,
        ),
        (
            "[[cluster]]\nname = 'm'\nnode = [{ address = 'h' }]",
            r#"t.toml:3:21: "cluster.node.address" must be "host:port", not "h""#,
        ),
        (
            "[[cluster]]\nname = 'm'\nnode = [{ address = 'h:1', weight = 0 }]",
            r#"t.toml:3:37: "cluster.node.weight" must be from 1 to 1000, not 0"#,
        ),
        (
            "[[cluster]]\nname = 'm'\nnode = [{ address = 'h:1', zone = '' }]",
            r#"t.toml:3:35: "cluster.node.zone" must not be empty"#,
        ),
        (
            "[[cluster]]\nname = 'm'\nnode = [{ address = 'h:1' }, { address = 'h:1' }]",
            r#"t.toml:3:42: node "h:1" is listed twice"#,
        ),
        (
            "[[cluster]]\nname = 'm'\nnode = [{ address = 'h:1', name = 'a' }, { address = 'h:2', name = 'a' }]",
            r#"t.toml:3:68: two nodes are named "a""#,
        ),
        (
            "[[cluster]]\nname = 'm'\nnode = [{ address = 'h:1' }]\n[[cluster]]\nname = 'm'\nnode = [{ address = 'h:1' }]",
            r#"t.toml:5:8: cluster "m" is listed twice"#,
        ),
        (
            "[[cluster]]\nname = 'm'\nnode = [{ address = 'h:1' }]\n[[cluster]]\nname = 'n'\nnode = [{ address = 'h:1' }]",
            r#"t.toml:4:1: database "*" is served by cluster "m" and by cluster "n""#,
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(fault(text), expected, "{text}");
    }
}
