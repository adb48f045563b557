//! What each database's catalog decides: which functions are reads, which relations are not, what
//! calls a function unseen, and when that is known again after a change.

mod support;

use std::sync::Arc;

use support::{Gateway, wait_for};
use tidegate::demo::{LocalCluster, Options};
use tidegate::session::effects;
use tokio::runtime::Runtime;
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// Objects of all kinds, and a function that says which node it runs on.
const OBJECTS: &str = include_str!("oracle/objects.sql");

/// What is selected, or from what, and whether a replica may do it.
const CASES: &[(&str, bool)] = &[
    ("1", true),
    ("doubles(1)", true),
    ("public.doubles(1)", true),
    ("counts(1)", true),
    ("atomic_reads(1)", true),
    ("sums(id) FROM items", true),
    ("writes(1)", false),
    ("counts(writes(1))", false),
    ("enters('a')", false),
    ("locks(1)", false),
    ("drawn()", false),
    ("last_measured()", true),
    ("last_item()", true),
    ("own_setting()", false),
    ("atomic_writes(1)", false),
    ("atomic_draws()", false),
    ("defaults()", false),
    ("defaults(1)", false),
    ("public.doubles_elsewhere(1)", true),
    ("doubles_elsewhere(1)", false),
    ("overloaded(1)", false),
    ("upper('a')", false),
    ("pg_catalog.upper('a')", true),
    ("writing_sums(id) FROM items", false),
    ("items.item_key FROM items", true),
    ("items.item_number FROM items", false),
    ("(items).item_number FROM items", false),
    ("('numbers'::regclass).nextval", false),
    ("(1::bigint).pg_try_advisory_lock", false),
    (
        "n.pg_try_advisory_lock FROM generate_series(1, 2) AS n",
        false,
    ),
    ("(1).writes", false),
    ("('a'::text).length", true),
    ("name FROM plain", true),
    ("* FROM of_counts", true),
    ("* FROM of_random", true),
    ("* FROM of_writes", false),
    ("* FROM public.of_writes", false),
    ("* FROM of_view", false),
    ("* FROM of_numbers", false),
    ("* FROM of_locks", false),
    ("* FROM of_enters", false),
    ("* FROM of_activity", false),
    ("* FROM of_locked", false),
    ("* FROM of_sequence", false),
    ("* FROM stored", true),
    ("* FROM scratch", false),
    ("* FROM ONLY scratch", false),
    ("* FROM of_scratch", false),
    ("* FROM ONLY plain", true),
    ("* FROM parts", false),
    ("* FROM numbers", false),
    ("* FROM guarded", false),
    ("* FROM tenants", true),
    ("* FROM odds", false),
    ("a FROM odds", false),
    ("odd_of(1)", false),
    ("'(1)'::odd", false),
    ("1 <%> 2", false),
    ("1 OPERATOR(public.<%>) 2", false),
    ("1 <%%> 2", true),
    ("'a@b'::email", false),
    ("email 'a@b'", false),
    ("'a'::short", true),
    ("address FROM people", false),
    ("people FROM people", false),
    ("lag(address, 1, 'none') OVER () FROM people", false),
    ("json_populate_record(NULL::people, '{}')", false),
    ("'(a@b)'::people", false),
    ("ROW('a@b')::people", false),
    ("people '(a@b)'", false),
    ("'(\"(a@b)\")'::holder", false),
    ("'{a@b}'::email[]", false),
    ("'{(a@b)}'::held[]", false),
    ("is_work('a@b')", false),
    ("'a'::text::point3", false),
];

/// A client, one statement at a time.
struct Session {
    runtime: Arc<Runtime>,
    client: tokio_postgres::Client,
}

impl Session {
    fn open(url: &str) -> Session {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = Arc::new(runtime.expect("a runtime"));
        let (client, connection) = runtime
            .block_on(tokio_postgres::connect(url, NoTls))
            .expect("connect");
        runtime.spawn(connection);
        Session { runtime, client }
    }

    /// The first column of the first row, if there is one.
    fn ask(&self, sql: &str) -> Result<Option<String>, tokio_postgres::Error> {
        Ok(self.column(sql)?.into_iter().next())
    }

    /// The first column of all rows.
    fn column(&self, sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
        let answer = self.runtime.block_on(self.client.simple_query(sql))?;
        let row = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        Ok(answer.iter().filter_map(row).collect())
    }

    fn run(&self, sql: &str) {
        if let Err(error) = self.ask(sql) {
            panic!("{sql}: {error:?}");
        }
    }

    /// Where a query of this has run, by what it says itself, or by the error of a replica.
    fn node_of(&self, what: &str) -> String {
        // Whatever the relation has, there is one row.
        let sql = format!(
            "SELECT node() FROM (VALUES (1)) AS one LEFT JOIN (SELECT {what}) AS q ON true"
        );
        match self.ask(&sql) {
            Ok(node) => node.expect("a row"),
            Err(error) => panic!("{sql}: {error:?}"),
        }
    }

    /// A session whose reads are not held on the primary by what it has done or seen.
    fn waits_for_replica(&self, cluster: &LocalCluster) {
        let replica = cluster.node(1).port().to_string();
        wait_for("reads to go to the replica", || {
            self.node_of("1") == replica
        });
    }
}

fn cluster() -> LocalCluster {
    let options = Options {
        replicas: 1,
        ..Options::default()
    };
    LocalCluster::start(options).expect("a cluster")
}

fn gateway(cluster: &LocalCluster) -> Gateway {
    Gateway::start_with(cluster, |config| {
        let routing = "[routing]\nsafe_functions = [\"node\"]\ncatalog_interval = \"1h\"\n";
        format!("{routing}{config}")
    })
}

#[test]
fn what_a_name_means_decides_where_it_goes() {
    let cluster = cluster();
    cluster.primary().sql("app", OBJECTS).expect("objects");
    cluster.wait_caught_up().expect("caught up");
    let gateway = gateway(&cluster);
    let replica = cluster.node(1).port().to_string();
    for (what, expected) in CASES {
        // Of each its own session, as one that has written is pinned.
        let session = Session::open(&gateway.url("app"));
        match expected {
            // It may have to wait for what others have written.
            true => wait_for(&format!("a replica to do {what}"), || {
                session.node_of(what) == replica
            }),
            false => assert_ne!(session.node_of(what), replica, "{what}"),
        }
    }
    assert_eq!(gateway.metric("tidegate_repairs_total", ""), 0.0);
    assert!(gateway.metric("tidegate_catalog_names", "database=\"app\"") > 20.0);
    assert!(gateway.metric("tidegate_catalog_epoch", "database=\"app\"") > 0.0);
    assert!(gateway.metric("tidegate_catalog_refreshes_total", "result=\"ok\"") >= 1.0);
    assert_eq!(
        gateway.metric("tidegate_catalog_refreshes_total", "result=\"failed\""),
        0.0
    );
}

#[test]
fn what_runs_text_is_no_read_by_any_name() {
    let cluster = cluster();
    let objects = "CREATE EXTENSION tablefunc;
        CREATE FUNCTION of_five(text) RETURNS SETOF record LANGUAGE c STABLE
            AS '$libdir/tablefunc', 'crosstab';
        CREATE FUNCTION node() RETURNS text LANGUAGE sql AS $$ SELECT current_setting('port') $$;
        CREATE VIEW of_two AS SELECT * FROM crosstab2($$ SELECT 'a'::text, 'b'::text, 'c'::text $$);
        GRANT SELECT ON of_two TO app";
    cluster.primary().sql("app", objects).expect("objects");
    cluster.wait_caught_up().expect("caught up");
    let gateway = gateway(&cluster);
    let session = Session::open(&gateway.url("app"));
    session.waits_for_replica(&cluster);
    let primary = cluster.primary().port().to_string();
    let text = "$$ SELECT 'a'::text, 'b'::text, 'c'::text $$";
    for what in [
        format!("* FROM crosstab2({text})"),
        format!("* FROM public.crosstab4({text})"),
        format!("* FROM of_five({text}) AS t (a text, b text)"),
        "* FROM of_two".to_owned(),
    ] {
        assert_eq!(session.node_of(&what), primary, "{what}");
    }
    assert_eq!(gateway.metric("tidegate_repairs_total", ""), 0.0);
}

#[test]
fn a_change_is_known_before_anything_is_read_by_it() {
    let cluster = cluster();
    cluster.primary().sql("app", OBJECTS).expect("objects");
    cluster.wait_caught_up().expect("caught up");
    let gateway = gateway(&cluster);
    let (one, other) = (
        Session::open(&gateway.url("app")),
        Session::open(&gateway.url("app")),
    );
    let replica = cluster.node(1).port().to_string();
    other.waits_for_replica(&cluster);
    assert_eq!(other.node_of("doubles(1)"), replica);
    one.run("CREATE FUNCTION mine(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1'");
    one.run("CREATE VIEW later AS SELECT mine(id) FROM items");
    other.run("SELECT * FROM later");
    wait_for("the function to be known", || {
        other.node_of("mine(1)") == replica && other.node_of("* FROM later") == replica
    });
    // From here on, what the old function was must not count.
    for _ in 0..5 {
        one.run("ALTER FUNCTION mine VOLATILE");
        assert_ne!(other.node_of("mine(1)"), replica);
        assert_ne!(other.node_of("* FROM later"), replica);
        one.run("BEGIN; ALTER FUNCTION mine STABLE; COMMIT");
        wait_for("the function to be safe again", || {
            other.node_of("mine(1)") == replica && other.node_of("* FROM later") == replica
        });
        one.run("ALTER TABLE items SET UNLOGGED");
        assert_ne!(other.node_of("name FROM items"), replica);
        one.run("ALTER TABLE items SET LOGGED");
        wait_for("the table to be on the replica", || {
            other.node_of("name FROM items") == replica
        });
    }
    assert_eq!(gateway.metric("tidegate_repairs_total", ""), 0.0);
}

#[test]
fn a_change_behind_the_proxy_is_known_by_the_next_repair() {
    let cluster = cluster();
    cluster.primary().sql("app", OBJECTS).expect("objects");
    cluster.wait_caught_up().expect("caught up");
    let gateway = gateway(&cluster);
    let session = Session::open(&gateway.url("app"));
    session.waits_for_replica(&cluster);
    let epoch = || gateway.metric("tidegate_catalog_epoch", "");
    let before = epoch();
    cluster
        .primary()
        .sql("app", "ALTER TABLE items SET UNLOGGED")
        .expect("altered");
    cluster.wait_caught_up().expect("caught up");
    session.run("SELECT name FROM items");
    assert_eq!(gateway.metric("tidegate_repairs_total", ""), 1.0);
    wait_for("the table to be known for what it is", || epoch() > before);
    for n in 0..20 {
        session.run(&format!("SELECT name FROM items WHERE id = {n}"));
        session.run("SELECT id FROM items");
    }
    assert_eq!(gateway.metric("tidegate_repairs_total", ""), 1.0);
}

#[test]
fn what_cannot_be_known_is_the_primarys() {
    let cluster = cluster();
    cluster.primary().sql("app", OBJECTS).expect("objects");
    let hidden = "REVOKE SELECT ON pg_catalog.pg_proc FROM PUBLIC";
    cluster.primary().sql("app", hidden).expect("revoked");
    cluster.wait_caught_up().expect("caught up");
    let gateway = gateway(&cluster);
    let session = Session::open(&gateway.url("app"));
    let primary = cluster.primary().port().to_string();
    assert_eq!(session.node_of("name FROM items"), primary);
    assert_eq!(session.node_of("doubles(1)"), primary);
    assert!(gateway.metric("tidegate_catalog_refreshes_total", "result=\"failed\"") >= 1.0);
    assert_eq!(gateway.metric("tidegate_catalog_epoch", ""), 0.0);
    let log = gateway.log();
    let complaints = log.matches("catalog can't be asked").count();
    assert!(
        complaints == 1 && log.contains("permission denied"),
        "{log}"
    );
    let granted = "GRANT SELECT ON pg_catalog.pg_proc TO PUBLIC";
    cluster.primary().sql("app", granted).expect("granted");
    Session::open(&gateway.url("app")).waits_for_replica(&cluster);
}

#[test]
fn a_session_reads_what_it_drew_itself_however_it_asks() {
    let cluster = cluster();
    let objects = "CREATE SEQUENCE drawn;
        CREATE FUNCTION last_id() RETURNS bigint LANGUAGE sql AS 'SELECT lastval()';
        CREATE FUNCTION of_last_id() RETURNS bigint LANGUAGE plpgsql
            AS $$ BEGIN RETURN last_id(); END $$;
        CREATE FUNCTION atomic() RETURNS bigint LANGUAGE sql
            BEGIN ATOMIC SELECT currval('drawn'); END;
        CREATE FUNCTION named_otherwise(regclass) RETURNS bigint LANGUAGE internal AS 'currval_oid';
        CREATE VIEW view_of_it AS SELECT lastval();
        CREATE DOMAIN last AS bigint DEFAULT lastval();
        CREATE TABLE by_default (id bigint DEFAULT currval('drawn'));
        CREATE TABLE by_domain (id last, a int);
        CREATE TABLE by_trigger (id bigint);
        CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN NEW.id := lastval(); RETURN NEW; END $$;
        CREATE TRIGGER fill BEFORE INSERT ON by_trigger FOR EACH ROW EXECUTE FUNCTION fill();
        GRANT ALL ON ALL TABLES IN SCHEMA public TO app;
        GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app";
    cluster.primary().sql("app", objects).expect("objects");
    let gateway = gateway(&cluster);
    let open = || Session::open(&gateway.url("app"));
    let (mine, others) = (open(), open());
    let drawn = |session: &Session| session.ask("SELECT nextval('drawn')").expect("drawn");
    for asks in [
        "SELECT last_id()",
        "SELECT of_last_id()",
        "SELECT atomic()",
        "SELECT named_otherwise('drawn')",
        "SELECT * FROM view_of_it",
        "INSERT INTO by_default DEFAULT VALUES RETURNING id",
        "INSERT INTO by_domain (a) VALUES (1) RETURNING id",
        "INSERT INTO by_trigger VALUES (1) RETURNING id",
        "DO $$ BEGIN PERFORM lastval(); END $$",
    ] {
        drawn(&others);
        // It is for nobody who has not drawn.
        let error = open().ask(asks).expect_err(asks);
        assert_eq!(error.code().map(|state| state.code()), Some("55000"));
        let own = drawn(&mine);
        drawn(&others);
        let answer = mine.ask(asks).expect("drawn before");
        assert!(answer.is_none() || answer == own, "{asks}: {answer:?}");
    }
}

#[test]
fn a_sessions_settings_do_not_decide_how_its_effects_are_found() {
    const SETTINGS: &str =
        "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_sort = off;
        SET join_collapse_limit = 1; SET cpu_operator_cost = 0; SET cpu_tuple_cost = 0";
    let cluster = cluster();
    let functions = "DO $$ BEGIN FOR n IN 1..200 LOOP
        EXECUTE format('CREATE FUNCTION f%s() RETURNS int LANGUAGE plpgsql AS %L', n,
            'BEGIN ' || (SELECT string_agg(format('PERFORM a%s + b%s;', n, m), E'\\n')
                FROM generate_series(1, 50) m) || ' END');
        END LOOP; END $$";
    cluster.primary().sql("app", functions).expect("functions");
    let directory = cluster.directory().display().to_string();
    let port = cluster.primary().port();
    let direct = Session::open(&format!(
        "host={directory} port={port} user=postgres dbname=app"
    ));
    direct.run(SETTINGS);
    let (before, question) = effects::question()
        .rsplit_once("WITH RECURSIVE")
        .map(|(before, question)| (before.to_owned(), format!("WITH RECURSIVE{question}")))
        .expect("a query");
    direct.run(&format!("BEGIN; {before}"));
    let plan = direct
        .column(&format!("EXPLAIN {question}"))
        .expect("a plan");
    direct.run("ROLLBACK");
    let joins: Vec<_> = plan
        .iter()
        .filter(|line| line.contains("string_to_table(") && line.contains("split_part("))
        .map(|line| line.trim())
        .collect();
    let is_by_value = |line: &&str| line.starts_with("Hash Cond") || line.starts_with("Merge Cond");
    assert!(
        !joins.is_empty() && joins.iter().all(is_by_value),
        "{joins:#?}"
    );
    // For the session they are as they were.
    let gateway = gateway(&cluster);
    let session = Session::open(&gateway.url("app"));
    session.run(SETTINGS);
    session.run("CREATE VIEW pg_temp.one AS SELECT 1");
    for setting in ["enable_hashjoin", "enable_mergejoin"] {
        let shown = session.ask(&format!("SHOW {setting}")).expect("shown");
        assert_eq!(shown.as_deref(), Some("off"), "{setting}");
    }
}

#[test]
fn what_is_compared_by_a_volatile_function_is_never_a_read() {
    let cluster = cluster();
    cluster.primary().sql("app", OBJECTS).expect("objects");
    let operator =
        "CREATE FUNCTION odd_equal(int, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
        CREATE OPERATOR = (leftarg = int, rightarg = text, function = odd_equal)";
    cluster.primary().sql("app", operator).expect("operator");
    cluster.wait_caught_up().expect("caught up");
    let gateway = gateway(&cluster);
    let session = Session::open(&gateway.url("app"));
    let primary = cluster.primary().port().to_string();
    assert_eq!(session.node_of("1"), primary);
    assert!(gateway.log().contains("odd_equal"), "{}", gateway.log());
    // It is forgiven by the configuration, without a restart.
    let config = std::fs::read_to_string(&gateway.config_path).expect("config");
    let forgiven = config.replace("\"node\"", "\"node\", \"odd_equal\"");
    gateway.reload(&forgiven);
    Session::open(&gateway.url("app")).waits_for_replica(&cluster);
}

#[test]
fn databases_that_hang_keep_no_others_from_being_asked() {
    const AT_ONCE: usize = 2;
    let cluster = cluster();
    let names: Vec<_> = (0..6).map(|n| format!("tenant_{n}")).collect();
    let directory = cluster.directory().display().to_string();
    let port = cluster.primary().port();
    for name in &names {
        let create = format!("CREATE DATABASE {name}");
        cluster.primary().sql("postgres", &create).expect("created");
    }
    let (hanging, others) = names.split_at(AT_ONCE);
    // The question waits for this, and nothing else does.
    let locks = hanging.iter().map(|name| {
        let url = format!("host={directory} port={port} user=postgres dbname={name}");
        let session = Session::open(&url);
        session.run("BEGIN; LOCK TABLE pg_catalog.pg_policy IN ACCESS EXCLUSIVE MODE");
        session
    });
    let locks: Vec<_> = locks.collect();
    let gateway = gateway(&cluster);
    let url = |name: &str| {
        gateway
            .url("app")
            .replace("dbname=app", &format!("dbname={name}"))
    };
    let open = |name: &String| Session::open(&url(name));
    let asked = || {
        let count =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tidegate catalog'";
        let count = cluster.primary().sql("postgres", count).expect("counted");
        count.trim().parse::<usize>().expect("a number")
    };
    let are_known = |names: &[String]| {
        names.iter().all(|name| {
            let epochs = gateway.samples("tidegate_catalog_epoch", name);
            epochs.iter().any(|(_, epoch)| *epoch > 0.0)
        })
    };
    let mut sessions: Vec<_> = hanging.iter().map(open).collect();
    wait_for("them to be asked", || asked() == AT_ONCE);
    sessions.extend(others.iter().map(open));
    wait_for("the others to be known", || are_known(others));
    for session in &sessions {
        session.run("SELECT 1");
    }
    drop(locks);
    wait_for("all to be known", || are_known(&names));
}

#[test]
fn nothing_is_shown_of_databases_that_are_gone() {
    let cluster = cluster();
    let gateway = Gateway::start_with(&cluster, |config| {
        let routing = "[routing]\ncatalog_interval = \"1s\"\n[pool]\nidle_timeout = \"1s\"\n";
        format!("{routing}{config}")
    });
    let metrics = || gateway.get("/metrics").expect("metrics");
    let use_and_drop = |name: &str| {
        let primary = cluster.primary();
        let create = format!("CREATE DATABASE {name}");
        primary.sql("postgres", &create).expect("created");
        let url = gateway.url("app");
        let session = Session::open(&url.replace("dbname=app", &format!("dbname={name}")));
        session.run("SELECT 1");
        let database = format!("database=\"{name}\"");
        assert!(metrics().contains(&database));
        drop(session);
        let dropped = format!("DROP DATABASE {name} WITH (FORCE)");
        primary.sql("postgres", &dropped).expect("dropped");
        wait_for("it to be forgotten", || !metrics().contains(&database));
    };
    let lines = || metrics().lines().count();
    // Some are there once something has happened for the first time.
    use_and_drop("first");
    let before = lines();
    for n in 0..3 {
        use_and_drop(&format!("test_{n}"));
    }
    assert_eq!(lines(), before);
}
