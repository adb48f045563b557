//! Roles that no configuration names log in with the passwords that the database has for them, as if
//! they had connected to it.

mod support;

use std::fs;
use std::process::Output;
use std::sync::OnceLock;

use support::{Gateway, wait_for};
use tidegate::demo::{LocalCluster, LocalNode, Options, StopMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

/// What a user who may not read `pg_authid` asks instead.
const FUNCTION: &str = "
CREATE FUNCTION tidegate_lookup(name text) RETURNS TABLE (usename name, passwd text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS
    $$ SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END
       FROM pg_authid WHERE rolname = $1 AND NOT rolsuper $$;
REVOKE ALL ON FUNCTION tidegate_lookup FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tidegate_lookup TO tidegate;
";

/// Looks up as a superuser.
const AS_SUPERUSER: &str = "query_user = \"postgres\"\nquery_password = \"postgres\"\n";

/// Looks up by the function, as the user that also watches the nodes.
const BY_FUNCTION: &str = "query_user = \"tidegate\"\nquery_password = \"tidegate\"\n\
    query = \"SELECT usename, passwd FROM tidegate_lookup($1)\"\n";

/// A cluster that takes nobody's word over TCP: passwords are checked by SCRAM, that of `md5_role` by
/// md5.
fn start(replicas: usize) -> LocalCluster {
    let options = Options {
        replicas,
        ..Options::default()
    };
    let cluster = LocalCluster::start(options).expect("a cluster");
    for node in cluster.nodes() {
        let path = node.data_dir().join("pg_hba.conf");
        let rules = fs::read_to_string(&path).expect("pg_hba.conf");
        let rule = "host  all  md5_role  127.0.0.1/32  md5\n";
        fs::write(&path, format!("{rule}{rules}")).expect("pg_hba.conf");
        node.reload().expect("reload");
    }
    cluster
        .primary()
        .sql("postgres", FUNCTION)
        .expect("function");
    let scram = "SELECT count(*) FROM pg_hba_file_rules WHERE type = 'host' \
        AND database = '{all}' AND user_name = '{all}' AND auth_method = 'scram-sha-256'";
    assert_eq!(
        cluster.primary().sql("postgres", scram).expect("rules"),
        "1"
    );
    cluster.wait_caught_up().expect("caught up");
    cluster
}

/// One cluster for all tests that break nothing.
fn shared() -> &'static LocalCluster {
    static CLUSTER: OnceLock<LocalCluster> = OnceLock::new();
    CLUSTER.get_or_init(|| start(1))
}

/// A proxy whose `[auth]` is `auth`, with no user listed.
fn gateway(cluster: &LocalCluster, auth: &str) -> Gateway {
    Gateway::start_with(cluster, |config| with_auth(&config, auth))
}

fn with_auth(config: &str, auth: &str) -> String {
    let (before, rest) = config.split_once("[auth]").expect("[auth]");
    let (_, clusters) = rest.split_once("[[cluster]]").expect("[[cluster]]");
    format!("{before}[auth]\n{auth}\n[[cluster]]{clusters}")
}

fn sql(cluster: &LocalCluster, sql: &str) {
    cluster.primary().sql("app", sql).expect(sql);
}

/// Makes a role, and waits until every node knows it.
fn make(cluster: &LocalCluster, role: &str, options: &str) {
    sql(cluster, &format!("CREATE ROLE {role} {options}"));
    cluster.wait_caught_up().expect("caught up");
}

fn psql(cluster: &LocalCluster, port: u16, (user, password): (&str, &str), sql: &str) -> Output {
    let mut command = cluster.postgres().command("psql");
    let url = format!("host=127.0.0.1 port={port} dbname=app");
    command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &url, "-c", sql]);
    command.env("PGUSER", user).env("PGPASSWORD", password);
    command.output().expect("psql runs")
}

/// What a user who logs in is, or the words it is refused with; `port` is left out of them.
fn log_in(cluster: &LocalCluster, port: u16, who: (&str, &str)) -> String {
    let output = psql(cluster, port, who, "SELECT session_user");
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => text(&output.stdout),
        false => text(&output.stderr).replace(&port.to_string(), "PORT"),
    }
}

/// Logs in through the proxy, and directly, with the same outcome; which that is.
#[track_caller]
fn same(cluster: &LocalCluster, gateway: &Gateway, who: (&str, &str)) -> String {
    let through = log_in(cluster, gateway.port, who);
    let direct = log_in(cluster, cluster.primary().port(), who);
    assert_eq!(through, direct, "{who:?}");
    through
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

async fn connect(port: u16, user: &str, password: &str) -> Result<Client, tokio_postgres::Error> {
    let url = format!("host=127.0.0.1 port={port} user={user} password={password} dbname=app");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn lookups(gateway: &Gateway) -> f64 {
    gateway.metric("tidegate_role_lookups_total", "")
}

fn spared(gateway: &Gateway) -> f64 {
    gateway.metric("tidegate_role_lookups_spared_total", "")
}

#[test]
fn roles_log_in_as_to_the_database_itself() {
    let cluster = shared();
    let roles = [
        ("plain", "LOGIN PASSWORD 'secret'"),
        ("\"Odd ''name\"", "LOGIN PASSWORD 'it''s \\ \"é'"),
        ("future", "LOGIN PASSWORD 'secret' VALID UNTIL '2999-01-01'"),
        ("past", "LOGIN PASSWORD 'secret' VALID UNTIL '1999-01-01'"),
        ("no_password", "LOGIN"),
        ("no_login", "PASSWORD 'secret'"),
        (
            "stored_md5",
            "LOGIN PASSWORD 'md58f5eb9e5d2a1b1a8a3d8f3e2f3b6e1c0'",
        ),
    ];
    for (role, options) in roles {
        make(cluster, role, options);
    }
    for auth in [AS_SUPERUSER, BY_FUNCTION] {
        let gateway = gateway(cluster, auth);
        let check = |user, password| same(cluster, &gateway, (user, password));
        assert_eq!(check("plain", "secret"), "plain");
        assert_eq!(check("Odd ''name", "it's \\ \"é"), "Odd ''name");
        assert_eq!(check("future", "secret"), "future");
        let refused =
            |user: &str| format!("FATAL:  password authentication failed for user \"{user}\"");
        for (user, password) in [
            ("plain", "wrong"),
            ("plain", "'; DROP ROLE plain; --"),
            ("past", "secret"),
            ("no_password", "secret"),
            ("nobody", "secret"),
            ("stored_md5", "secret"),
            ("no_login", "wrong"),
        ] {
            assert!(check(user, password).contains(&refused(user)), "{user}");
        }
        assert!(
            log_in(cluster, gateway.port, ("x' OR 'a'='a", "secret"))
                .contains("authentication failed")
        );
        // Who knows the password is told the reason.
        let reason = "FATAL:  role \"no_login\" is not permitted to log in";
        assert!(check("no_login", "secret").contains(reason));
        // Superusers are for those who may see them.
        let is_superuser = auth == AS_SUPERUSER;
        let postgres = log_in(cluster, gateway.port, ("postgres", "postgres"));
        assert_eq!(postgres == "postgres", is_superuser, "{postgres}");
        let log = gateway.log();
        assert!(
            !log.contains("secret") && !log.contains("SCRAM-SHA-256$"),
            "{log}"
        );
    }
}

#[test]
fn roles_come_change_and_go_without_a_reload() {
    let cluster = shared();
    let gateway = gateway(cluster, AS_SUPERUSER);
    let try_in = |user, password| log_in(cluster, gateway.port, (user, password));
    let failed = |text: String| text.contains("password authentication failed");
    assert!(failed(try_in("comer", "one")));
    // Not waited for by the replica: what the primary knows counts.
    sql(cluster, "CREATE ROLE comer LOGIN PASSWORD 'one'");
    assert_eq!(try_in("comer", "one"), "comer");
    sql(cluster, "ALTER ROLE comer PASSWORD 'two'");
    assert_eq!(try_in("comer", "two"), "comer");
    assert!(failed(try_in("comer", "one")));
    sql(cluster, "ALTER ROLE comer VALID UNTIL '1999-01-01'");
    assert!(failed(try_in("comer", "two")));
    sql(
        cluster,
        "ALTER ROLE comer VALID UNTIL 'infinity'; ALTER ROLE comer NOLOGIN",
    );
    assert!(try_in("comer", "two").contains("not permitted to log in"));
    sql(
        cluster,
        "ALTER ROLE comer LOGIN; ALTER ROLE comer RENAME TO goer",
    );
    assert!(failed(try_in("comer", "two")));
    assert_eq!(try_in("goer", "two"), "goer");
    sql(cluster, "DROP ROLE goer");
    assert!(failed(try_in("goer", "two")));
}

#[test]
fn listed_users_come_first() {
    let cluster = shared();
    let auth = format!("{AS_SUPERUSER}[[auth.user]]\nname = \"app\"\npassword = \"listed\"\n");
    let gateway = gateway(cluster, &auth);
    // The database would take it.
    let refused = log_in(cluster, gateway.port, ("app", "app"));
    assert!(refused.contains("authentication failed"), "{refused}");
    assert_eq!(lookups(&gateway), 0.0);
    assert_eq!(
        log_in(cluster, gateway.port, ("tidegate", "tidegate")),
        "tidegate"
    );
    assert_eq!(lookups(&gateway), 1.0);
}

#[test]
fn a_storm_of_logins_is_few_lookups() {
    const LOGINS: usize = 200;
    // Its own, since the connections of all proxies are counted.
    let cluster = &start(1);
    make(cluster, "stormy", "LOGIN PASSWORD 'secret'");
    let auth = format!("{AS_SUPERUSER}query_cache = \"60s\"\n");
    let gateway = gateway(cluster, &auth);
    let log_in_all = |password: &'static str| {
        runtime().block_on(async {
            let port = gateway.port;
            let logins: Vec<_> = (0..LOGINS)
                .map(|_| tokio::spawn(connect(port, "stormy", password)))
                .collect();
            let mut clients = Vec::new();
            for login in logins {
                clients.extend(login.await.expect("no panic").ok());
            }
            let there = "SELECT count(*) FROM pg_stat_activity \
                WHERE application_name = 'tidegate roles'";
            let connections = cluster.primary().sql("postgres", there).expect("count");
            assert_eq!(connections, "1");
            clients.len()
        })
    };
    assert_eq!(log_in_all("secret"), LOGINS);
    let asked = lookups(&gateway);
    assert!((1.0..=20.0).contains(&asked), "{asked} look-ups");
    assert_eq!(asked + spared(&gateway), LOGINS as f64);
    // Wrong passwords are looked at once more, and no more than that.
    assert_eq!(log_in_all("wrong"), 0);
    let more = lookups(&gateway) - asked;
    assert!((1.0..=2.0).contains(&more), "{more} look-ups");
}

#[test]
fn a_remembered_password_that_was_changed_is_looked_up_again() {
    let cluster = shared();
    make(cluster, "frequent", "LOGIN PASSWORD 'one'");
    let auth = format!("{AS_SUPERUSER}query_cache = \"1h\"\n");
    let gateway = gateway(cluster, &auth);
    let try_in = |password| log_in(cluster, gateway.port, ("frequent", password));
    let mut before = -1.0;
    wait_for("logins to be answered from memory", || {
        assert_eq!(try_in("one"), "frequent");
        std::mem::replace(&mut before, lookups(&gateway)) == lookups(&gateway)
    });
    sql(cluster, "ALTER ROLE frequent PASSWORD 'two'");
    // The proof was made with the remembered salt and cannot be checked against another, ...
    assert!(try_in("two").contains("password authentication failed"));
    // ... but by that it is known.
    assert_eq!(lookups(&gateway), before + 1.0);
    assert_eq!(try_in("two"), "frequent");
    assert!(try_in("one").contains("password authentication failed"));
}

#[test]
fn md5_passwords() {
    let cluster = shared();
    let md5 = "SET password_encryption = 'md5'; CREATE ROLE md5_role LOGIN PASSWORD 'one'";
    sql(cluster, md5);
    make(cluster, "scram_role", "LOGIN PASSWORD 'secret'");
    let by_md5 = gateway(
        cluster,
        &format!("method = \"md5\"\n{AS_SUPERUSER}query_cache = \"1h\"\n"),
    );
    let try_in = |password| log_in(cluster, by_md5.port, ("md5_role", password));
    assert_eq!(same(cluster, &by_md5, ("md5_role", "one")), "md5_role");
    let refused = same(cluster, &by_md5, ("md5_role", "wrong"));
    assert!(refused.contains("password authentication failed"));
    // As with PostgreSQL's md5, the kind of the stored password decides.
    assert_eq!(
        same(cluster, &by_md5, ("scram_role", "secret")),
        "scram_role"
    );
    same(cluster, &by_md5, ("scram_role", "wrong"));
    same(cluster, &by_md5, ("nobody", "secret"));
    // An answer to md5 fits whatever is stored, so a remembered hash refuses nobody.
    let mut before = -1.0;
    wait_for("logins to be answered from memory", || {
        assert_eq!(try_in("one"), "md5_role");
        std::mem::replace(&mut before, lookups(&by_md5)) == lookups(&by_md5)
    });
    sql(
        cluster,
        "SET password_encryption = 'md5'; ALTER ROLE md5_role PASSWORD 'two'",
    );
    assert_eq!(try_in("two"), "md5_role");
    assert_eq!(lookups(&by_md5), before + 1.0);

    let by_scram = gateway(cluster, AS_SUPERUSER);
    let refused = log_in(cluster, by_scram.port, ("md5_role", "two"));
    assert!(
        refused.contains("password authentication failed"),
        "{refused}"
    );
    assert!(by_scram.log().contains("Md5Password"));
}

/// Runs `BEGIN`, on a new server where the old ones are gone.
async fn begin(client: &Client) -> Result<(), tokio_postgres::Error> {
    loop {
        match client.batch_execute("BEGIN").await {
            // The proxy has lent a server before it saw its last words.
            Err(error) if error.code() == Some(&SqlState::ADMIN_SHUTDOWN) => {}
            done => return done,
        }
    }
}

/// Ends every server that works for `role`, and waits until they are gone.
fn cut(node: &LocalNode, role: &str) {
    let cut = format!(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = '{role}'"
    );
    node.sql("postgres", &cut).expect("cut");
}

#[test]
fn old_keys_spoil_nothing_for_new_ones() {
    let cluster = start(0);
    let role = "rotated";
    make(&cluster, role, "LOGIN PASSWORD 'one'");
    let gateway = gateway(&cluster, AS_SUPERUSER);
    runtime().block_on(async {
        let old = connect(gateway.port, role, "one").await.expect("login");
        old.batch_execute("SELECT 1").await.expect("a query");
        sql(&cluster, "ALTER ROLE rotated PASSWORD 'two'");
        // Its server is there already.
        old.batch_execute("SELECT 1").await.expect("a query");
        cut(&cluster.primary(), role);
        let refused = begin(&old).await.expect_err("a new server");
        let error = refused.as_db_error().expect("an answer");
        assert_eq!(error.code().code(), "28P01");
        assert_eq!(
            error.message(),
            "password authentication failed for user \"rotated\""
        );
        let new = connect(gateway.port, role, "two").await.expect("login");
        new.batch_execute("SELECT 1").await.expect("a query");
        // The pool knows better now, whoever asks.
        cut(&cluster.primary(), role);
        begin(&old).await.expect("a new server");
        begin(&new).await.expect("a new server");
    });
}

#[test]
fn a_new_password_reaches_sessions_of_every_database_and_node() {
    let cluster = start(1);
    make(&cluster, "moved", "LOGIN PASSWORD 'one'");
    let gateway = gateway(&cluster, AS_SUPERUSER);
    runtime().block_on(async {
        let here = connect(gateway.port, "moved", "one").await.expect("login");
        let url = format!(
            "host=127.0.0.1 port={} user=moved password=one dbname=postgres",
            gateway.port
        );
        let (there, connection) = tokio_postgres::connect(&url, NoTls).await.expect("login");
        tokio::spawn(connection);
        // Has read only: it has no pool of the primary yet.
        let reader = connect(gateway.port, "moved", "one").await.expect("login");
        for old in [&here, &there] {
            begin(old).await.expect("a server of the primary");
            old.batch_execute("COMMIT").await.expect("a query");
        }
        reader.batch_execute("SELECT 1").await.expect("a query");
        sql(&cluster, "ALTER ROLE moved PASSWORD 'two'");
        cluster.wait_caught_up().expect("the password everywhere");
        for node in cluster.nodes() {
            cut(&node, "moved");
        }
        for old in [&here, &there] {
            let refused = begin(old).await.expect_err("a new server");
            assert_eq!(refused.code(), Some(&SqlState::INVALID_PASSWORD));
        }
        // It opens none that it could leave to the others.
        let _new = connect(gateway.port, "moved", "two").await.expect("login");
        for old in [&here, &there, &reader] {
            begin(old).await.expect("a new server");
            old.batch_execute("COMMIT").await.expect("a query");
            old.batch_execute("SELECT 1").await.expect("a read");
        }
    });
}

#[test]
fn a_replica_knows_roles_while_there_is_no_primary() {
    let cluster = start(1);
    make(&cluster, "reader", "LOGIN PASSWORD 'secret'");
    let gateway = gateway(&cluster, AS_SUPERUSER);
    // From then on a new session needs no more of the primary than the replica has.
    wait_for("the replica to serve a new session", || {
        assert_eq!(
            log_in(&cluster, gateway.port, ("reader", "secret")),
            "reader"
        );
        gateway.metric("tidegate_queries_total", "route=\"replica\"") > 0.0
    });
    cluster.primary().stop(StopMode::Immediate).expect("stop");
    assert_eq!(
        log_in(&cluster, gateway.port, ("reader", "secret")),
        "reader"
    );
    let wrong = log_in(&cluster, gateway.port, ("reader", "wrong"));
    assert!(wrong.contains("password authentication failed"), "{wrong}");
    cluster.node(1).stop(StopMode::Immediate).expect("stop");
    let nobody = log_in(&cluster, gateway.port, ("reader", "secret"));
    assert!(
        nobody.contains("FATAL:  cannot look up role \"reader\" in the database")
            && nobody.contains("HINT:  Connect again when"),
        "{nobody}"
    );
}

#[test]
fn what_keeps_roles_from_being_looked_up_is_said() {
    let cluster = shared();
    let wrong_password = "query_user = \"tidegate\"\nquery_password = \"guessed\"\n";
    let no_rights = "query_user = \"tidegate\"\nquery_password = \"tidegate\"\n";
    let no_columns = format!("{AS_SUPERUSER}query = \"SELECT $1::text\"\n");
    let no_query = format!("{AS_SUPERUSER}query = \"SELEC $1\"\n");
    let slow = format!("{AS_SUPERUSER}query = \"SELECT pg_sleep(100), $1::text\"\n");
    for (auth, words) in [
        (
            wrong_password,
            "password authentication failed for user \"tidegate\"",
        ),
        (no_rights, "permission denied for table pg_authid"),
        (&no_columns, "fewer than two columns"),
        (&no_query, "syntax error at or near \"SELEC\""),
        (&slow, "no answer within 1s"),
    ] {
        // Which of the two clocks is first to end a slow query is of no account.
        let there = "canceling statement due to statement timeout";
        let gateway = gateway(cluster, auth);
        let refused = log_in(cluster, gateway.port, ("plain", "secret"));
        assert!(
            refused.contains("FATAL:  cannot look up role \"plain\" in the database"),
            "{refused}"
        );
        let log = gateway.log();
        assert!(
            log.contains(words) || auth == slow && log.contains(there),
            "{log}"
        );
        assert!(
            !log.contains("guessed") && !refused.contains("guessed"),
            "{log}"
        );
        assert!(gateway.metric("tidegate_role_lookups_total", "result=\"failed\"") > 0.0);
        assert_eq!(gateway.metric("tidegate_logins_refused_total", ""), 1.0);
    }
}

#[test]
fn a_reload_changes_how_roles_are_looked_up() {
    let cluster = shared();
    let gateway = gateway(cluster, AS_SUPERUSER);
    let postgres = |gateway: &Gateway| log_in(cluster, gateway.port, ("postgres", "postgres"));
    assert_eq!(postgres(&gateway), "postgres");
    let config = cluster.config_for(gateway.port, gateway.http_port);
    gateway.reload(&with_auth(&config, BY_FUNCTION));
    assert!(postgres(&gateway).contains("authentication failed"));
    gateway.reload(&with_auth(&config, ""));
    assert!(
        log_in(cluster, gateway.port, ("tidegate", "tidegate")).contains("authentication failed")
    );
}
