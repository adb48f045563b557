//! Transactions that run on replicas: read-only ones, and with `transaction_reads = "replica"` all others
//! until they write.
//!
//! Owns: where each statement of a transaction runs, and what of it is seen. `tests/drivers.rs` has the
//! transactions of object mappers, `tests/history.rs` those of random histories.

mod support;

use support::client::Client;
use support::raw::{Raw, VERSION_3_0, error};
use support::{Gateway, wait_for};
use tidegate::demo::{LocalCluster, Options, StopMode};
use tidegate::wire::encode;
use tidegate::wire::frame::body;

/// `here` says which node has answered; a view, since a statement of the client's own that calls this
/// function would not be one that is proven to read the same everywhere.
const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL);
    INSERT INTO t VALUES (1, 0);
    CREATE TABLE many AS SELECT n FROM generate_series(1, 100) AS n;
    CREATE UNLOGGED TABLE scratch (v int);
    CREATE VIEW here AS SELECT current_setting('port')::int AS port;
    GRANT SELECT, INSERT, UPDATE ON t, many, scratch, here TO app;";

fn start(replicas: usize) -> LocalCluster {
    let options = Options {
        replicas,
        ..Options::default()
    };
    let cluster = LocalCluster::start(options).expect("cluster");
    cluster.primary().sql("app", SCHEMA).expect("schema");
    cluster.wait_caught_up().expect("caught up");
    cluster
}

fn with_routing(cluster: &LocalCluster, lines: &str) -> Gateway {
    Gateway::start_with(cluster, |config| {
        format!("{config}\n[lag]\nmax = \"10m\"\n[routing]\n{lines}\n")
    })
}

/// A proxy that has reads of all transactions run on replicas.
fn eager(cluster: &LocalCluster) -> Gateway {
    with_routing(cluster, "transaction_reads = \"replica\"")
}

/// The node that answers, by its port.
fn here(client: &Client) -> u16 {
    let port = client.one("SELECT port FROM here");
    port.parse().expect("a port")
}

/// A client whose reads go to replicas.
fn settled(gateway: &Gateway, cluster: &LocalCluster, more: &str) -> Client {
    let client = Client::open(gateway, "app", more);
    let primary = cluster.primary().port();
    wait_for("reads on a replica", || here(&client) != primary);
    client
}

/// Runs the statements in order; the nodes that the reads of `here` among them were answered by.
fn run(client: &Client, statements: &[&str]) -> Vec<u16> {
    let mut ports = Vec::new();
    for sql in statements {
        match *sql {
            "here" => ports.push(here(client)),
            sql => drop(client.rows(sql)),
        }
    }
    ports
}

fn are_on_replica(ports: &[u16], cluster: &LocalCluster) -> Vec<bool> {
    let primary = cluster.primary().port();
    ports.iter().map(|&port| port != primary).collect()
}

#[test]
fn read_only_transactions_run_on_replicas_however_they_are_said_to_be() {
    let cluster = start(2);
    let gateway = with_routing(&cluster, "");
    let of = |client: &Client, statements: &[&str]| {
        // What went before may have been on the primary, and shown more than the replicas have.
        wait_for("reads on a replica", || {
            here(client) != cluster.primary().port()
        });
        let ports = run(client, statements);
        assert!(
            ports.windows(2).all(|pair| pair[0] == pair[1]) || !statements.contains(&"COMMIT"),
            "a transaction has one server"
        );
        are_on_replica(&ports, &cluster)
    };
    let client = settled(&gateway, &cluster, "");
    for (begin, expected) in [
        (&["BEGIN READ ONLY"][..], true),
        (
            &["start transaction isolation level read committed, read only"],
            true,
        ),
        (
            &["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY DEFERRABLE"],
            true,
        ),
        (&["BEGIN", "SET TRANSACTION READ ONLY"], true),
        (&["BEGIN READ WRITE", "SET TRANSACTION READ ONLY"], true),
        (
            &[
                "BEGIN READ ONLY",
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
            ],
            false,
        ),
        // No standby has these.
        (&["BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY"], false),
        (&["BEGIN"], false),
        (&["BEGIN READ ONLY", "SET TRANSACTION READ WRITE"], false),
        (&["/* tidegate: primary */ BEGIN READ ONLY"], false),
        // What comes after a snapshot may need the primary, and can't go there.
        (
            &[
                "BEGIN",
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            ],
            false,
        ),
        (&["BEGIN", "here", "SET TRANSACTION READ ONLY"], false),
    ] {
        let statements = [
            begin,
            &["here", "SAVEPOINT a", "here", "RELEASE a", "COMMIT"],
        ]
        .concat();
        let places = of(&client, &statements);
        assert!(
            places.iter().all(|&place| place == expected),
            "{begin:?}: {places:?}"
        );
    }

    // By what is said once for all transactions.
    for sql in [
        "SET default_transaction_read_only = on",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    ] {
        client.rows(sql);
        assert_eq!(of(&client, &["BEGIN", "here", "COMMIT"]), [true], "{sql}");
        assert_eq!(
            of(&client, &["BEGIN READ WRITE", "here", "COMMIT"]),
            [false],
            "{sql}"
        );
        client.rows("RESET ALL");
        client.rows("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE");
        assert_eq!(of(&client, &["BEGIN", "here", "COMMIT"]), [false], "{sql}");
    }
    client.rows("SET default_transaction_isolation = 'serializable'");
    let ports = run(&client, &["BEGIN READ ONLY", "here", "COMMIT"]);
    assert_eq!(are_on_replica(&ports, &cluster), [false]);
    let options = "options='-c default_transaction_read_only=on'";
    let client = settled(&gateway, &cluster, options);
    assert_eq!(of(&client, &["BEGIN", "here", "COMMIT"]), [true]);
    wait_for("the transactions to be counted", || {
        gateway.metric("tidegate_queries_total", "reason=\"transaction_read\"") > 0.0
    });
}

#[test]
fn a_transaction_looks_the_same_wherever_it_is() {
    let cluster = start(1);
    let gateway = with_routing(&cluster, "");
    let client = settled(&gateway, &cluster, "");
    // What a read-only transaction may not do is the server's to say.
    client.rows("BEGIN READ ONLY");
    assert!(here(&client) != cluster.primary().port());
    let refused = client.error("UPDATE t SET v = 9");
    assert_eq!(
        (refused.code().code(), refused.message()),
        ("25006", "cannot execute UPDATE in a read-only transaction")
    );
    assert_eq!(client.error("SELECT 1").code().code(), "25P02");
    client.rows("ROLLBACK");

    wait_for("reads on a replica", || {
        here(&client) != cluster.primary().port()
    });
    // What it may do on the primary it does there: what it has set and saved comes with it.
    client.rows("BEGIN READ ONLY");
    client.rows("SET LOCAL work_mem = '3MB'");
    client.rows("SAVEPOINT a");
    client.rows("SET search_path = 'nowhere'");
    client.rows("ROLLBACK TO a");
    client.rows("SET LOCAL statement_timeout = '77s' -- not long");
    let before = here(&client);
    assert_eq!(client.one("SELECT pg_advisory_xact_lock(1)"), "");
    let after = here(&client);
    assert!(before != after && after == cluster.primary().port());
    assert_eq!(client.one("SHOW work_mem"), "3MB");
    assert_eq!(client.one("SHOW statement_timeout"), "77s");
    assert_eq!(client.one("SHOW transaction_read_only"), "on");
    assert_eq!(client.one("SHOW search_path"), "\"$user\", public");
    client.rows("ROLLBACK TO a");
    assert_eq!(client.one("SHOW statement_timeout"), "0");
    client.rows("COMMIT");
    assert_eq!(client.one("SHOW work_mem"), "4MB");
    assert_eq!(gateway.metric("tidegate_transaction_moves_total", ""), 2.0);

    wait_for("reads on a replica", || {
        here(&client) != cluster.primary().port()
    });
    // What it sets for the session is the session's when it is committed, and only then.
    for (end, expected) in [("COMMIT", "5MB"), ("ROLLBACK", "5MB")] {
        client.rows("BEGIN READ ONLY");
        client.rows(match end {
            "COMMIT" => "SET work_mem = '5MB'",
            _ => "SET work_mem = '6MB'",
        });
        assert!(here(&client) != cluster.primary().port());
        client.rows(end);
        assert_eq!(client.one("SHOW work_mem"), expected);
        client.rows("BEGIN");
        assert_eq!(client.one("SHOW work_mem"), expected);
        client.rows("ROLLBACK");
        wait_for("reads on a replica", || {
            here(&client) != cluster.primary().port()
        });
    }

    // AND CHAIN begins another one like it.
    client.rows("BEGIN READ ONLY");
    client.rows("SAVEPOINT a");
    client.rows("COMMIT AND CHAIN");
    let chained = here(&client);
    assert!(chained != cluster.primary().port());
    assert_eq!(client.error("RELEASE a").code().code(), "3B001");
    client.rows("ROLLBACK AND CHAIN");
    client.rows("SELECT pg_advisory_xact_lock(1)");
    assert_eq!(client.one("SHOW transaction_read_only"), "on");
    client.rows("COMMIT");
    assert_eq!(client.error("COMMIT AND CHAIN").code().code(), "25P01");
}

#[test]
fn what_cannot_leave_its_replica_says_so() {
    let cluster = start(1);
    let gateway = with_routing(&cluster, "");
    let client = settled(&gateway, &cluster, "");
    let primary = cluster.primary().port();
    // A cursor is read to its end where it was opened.
    client.rows("BEGIN READ ONLY");
    client.rows("DECLARE c CURSOR FOR SELECT n FROM many ORDER BY n");
    assert_eq!(client.rows("FETCH 2 FROM c").len(), 2);
    assert!(here(&client) != primary);
    assert_eq!(client.one("FETCH NEXT FROM c"), "3");
    let refused = client.error("SELECT pg_advisory_xact_lock(1)");
    assert_eq!(refused.code().code(), "25006");
    assert!(
        refused
            .hint()
            .is_some_and(|hint| hint.contains("tidegate: primary"))
    );
    assert_eq!(client.error("FETCH NEXT FROM c").code().code(), "25P02");
    client.rows("ROLLBACK");
    assert!(here(&client) != primary);
    // One that reads what changes, and WITH HOLD, is the primary's.
    for query in ["WITH HOLD FOR SELECT 1", "FOR SELECT * FROM scratch"] {
        client.rows("BEGIN READ ONLY");
        client.rows(&format!("DECLARE c CURSOR {query}"));
        assert_eq!(here(&client), primary, "{query}");
        client.rows("ROLLBACK");
    }

    wait_for("reads on a replica", || here(&client) != primary);
    // One snapshot is kept as long as the transaction.
    client.rows("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
    client.rows("SAVEPOINT a");
    assert_eq!(client.one("SELECT v FROM t"), "0");
    cluster
        .primary()
        .sql("app", "UPDATE t SET v = 1")
        .expect("updated");
    cluster.wait_caught_up().expect("caught up");
    assert_eq!(client.one("SELECT v FROM t"), "0");
    assert_eq!(client.error("SELECT * FROM scratch").code().code(), "25006");
    client.rows("ROLLBACK TO a");
    assert_eq!(client.one("SELECT v FROM t"), "0");
    client.rows("COMMIT");
    assert_eq!(client.one("SELECT v FROM t"), "1");
    // Until it has read it can go.
    client.rows("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
    assert!(client.rows("SELECT * FROM scratch").is_empty());
    assert_eq!(client.one("SHOW transaction_isolation"), "repeatable read");
    assert_eq!(here(&client), primary);
    client.rows("COMMIT");
}

#[test]
fn transactions_read_on_a_replica_until_they_write() {
    let cluster = start(2);
    let gateway = eager(&cluster);
    let client = settled(&gateway, &cluster, "");
    let of = |statements: &[&str]| are_on_replica(&run(&client, statements), &cluster);
    let write = "UPDATE t SET v = v + 1 WHERE id = 1";
    assert_eq!(
        of(&["BEGIN", "here", "here", write, "here", "COMMIT"]),
        [true, true, false]
    );
    assert_eq!(client.one("SELECT v FROM t"), "1");
    assert_eq!(of(&["BEGIN", write, "here", "ROLLBACK"]), [false]);
    assert_eq!(client.one("SELECT v FROM t"), "1");
    wait_for("reads on a replica", || {
        here(&client) != cluster.primary().port()
    });
    // Savepoints, as object mappers nest transactions.
    let nested = [
        "BEGIN",
        "SAVEPOINT a",
        "here",
        "RELEASE a",
        "SAVEPOINT b",
        "here",
        write,
        "ROLLBACK TO b",
        "here",
        write,
        "COMMIT",
    ];
    assert_eq!(of(&nested), [true, true, false]);
    assert_eq!(client.one("SELECT v FROM t"), "2");
    wait_for("reads on a replica", || {
        here(&client) != cluster.primary().port()
    });
    // Whatever a transaction that is to write does otherwise than on a standby is the primary's.
    for sql in [
        "SELECT v FROM t FOR UPDATE",
        "SHOW transaction_read_only",
        "SELECT current_setting('transaction_read_only') = 'off' AND count(*) > 0 FROM t",
        "DECLARE c CURSOR FOR SELECT 1",
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SET LOCAL transaction_isolation = 'serializable'",
        "SELECT set_config('work_mem', '1MB', false)",
        "CREATE TEMPORARY TABLE own (v int) ON COMMIT DROP",
        "SET tidegate.consistency = 'eventual'",
    ] {
        client.rows("BEGIN");
        let shown = client.rows(sql);
        if sql.contains("read_only") {
            assert!(["off", "t"].contains(&&*shown[0][0]), "{sql}: {shown:?}");
        }
        assert_eq!(here(&client), cluster.primary().port(), "{sql}");
        client.rows("ROLLBACK");
        wait_for("reads on a replica", || {
            here(&client) != cluster.primary().port()
        });
    }
    for begin in [
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
    ] {
        assert_eq!(of(&[begin, "here", "COMMIT"]), [false], "{begin}");
        wait_for("reads on a replica", || {
            here(&client) != cluster.primary().port()
        });
    }
    assert_eq!(of(&["BEGIN READ WRITE", "here", write, "COMMIT"]), [true]);
    wait_for("reads on a replica", || {
        here(&client) != cluster.primary().port()
    });
    // By what the session, its role and its database have for all of them.
    client.rows("SET default_transaction_isolation = 'repeatable read'");
    assert_eq!(of(&["BEGIN", "here", "COMMIT"]), [false]);
    let role = "ALTER ROLE app SET default_transaction_isolation = 'repeatable read'";
    client.rows("RESET default_transaction_isolation");
    cluster.primary().sql("app", role).expect("altered");
    cluster.wait_caught_up().expect("caught up");
    let other = eager(&cluster);
    let client = settled(&other, &cluster, "");
    let ports = run(
        &client,
        &[
            "BEGIN",
            "here",
            "COMMIT",
            "BEGIN ISOLATION LEVEL READ COMMITTED",
        ],
    );
    assert_eq!(are_on_replica(&ports, &cluster), [false]);
    client.rows("COMMIT");
    wait_for("reads on a replica", || {
        here(&client) != cluster.primary().port()
    });
    let stated = ["BEGIN ISOLATION LEVEL READ COMMITTED", "here", "COMMIT"];
    assert_eq!(are_on_replica(&run(&client, &stated), &cluster), [true]);
}

#[test]
fn a_transaction_that_has_failed_stays_so() {
    let cluster = start(1);
    let gateway = eager(&cluster);
    let options = "options='-c search_path=nowhere,public'";
    let client = settled(&gateway, &cluster, options);
    let primary = cluster.primary().port();
    let code = |sql: &str| client.error(sql).code().code().to_owned();
    let settle = || wait_for("reads on a replica", || here(&client) != primary);
    let fail = || {
        client.rows("BEGIN");
        client.rows("SET work_mem = '9MB'");
        client.rows("SAVEPOINT a");
        assert!(here(&client) != primary);
        assert_eq!(code("SELECT 1 / (v - v) FROM t"), "22012");
    };
    fail();
    assert_eq!(code("/* tidegate: primary */ SELECT 1"), "25P02");
    assert_eq!(code("INSERT INTO t VALUES (2, 2)"), "25P02");
    client.rows("COMMIT");
    assert_eq!(client.one("SHOW work_mem"), "4MB");
    // What follows the end of it is done where such things are done.
    settle();
    fail();
    client.rows("ROLLBACK; INSERT INTO t VALUES (2, 2)");
    assert_eq!(client.one("SELECT count(*) FROM t"), "2");
    settle();
    fail();
    client.rows("COMMIT; INSERT INTO t VALUES (3, 3)");
    assert_eq!(client.one("SHOW work_mem"), "4MB", "it was rolled back");
    settle();
    fail();
    client.rows("ROLLBACK TO a; INSERT INTO t VALUES (4, 4)");
    assert_eq!(client.one("SHOW work_mem"), "9MB");
    client.rows("ROLLBACK");
    assert_eq!(client.one("SELECT count(*) FROM t"), "3");

    // Words that would be read otherwise by who is told them again are not kept to be.
    for (sql, shown, expected) in [
        ("RESET search_path", "search_path", "nowhere,public"),
        (
            "SET LOCAL standard_conforming_strings = off",
            "standard_conforming_strings",
            "off",
        ),
        (
            "SET client_encoding = 'LATIN1'",
            "client_encoding",
            "LATIN1",
        ),
    ] {
        // PostgreSQL 19 knows no other strings.
        if shown == "standard_conforming_strings" && cluster.postgres().major_version() >= 19 {
            continue;
        }
        settle();
        client.rows("BEGIN");
        client.rows(sql);
        assert_eq!(here(&client), primary, "{sql}");
        let show = client.one(&format!("SHOW {shown}"));
        assert_eq!(show.replace(' ', ""), expected, "{sql}");
        client.rows("ROLLBACK");
    }
    // Modes can't be set any more once something was read, wherever that was.
    settle();
    client.rows("BEGIN READ ONLY");
    assert!(here(&client) != primary);
    assert_eq!(code("SET TRANSACTION READ WRITE"), "25001");
    client.rows("ROLLBACK");
    settle();
    client.rows("BEGIN READ ONLY");
    client.rows("SELECT v FROM t");
    let token = client.one("SHOW tidegate.token");
    assert!(token.starts_with("tg1:"), "{token}");
    client.rows("COMMIT");
}

/// As servers of HTTP do that keep tenants apart by row security.
#[test]
fn what_is_set_for_a_transaction_stays_with_it() {
    let cluster = start(1);
    let gateway = with_routing(&cluster, "");
    cluster
        .primary()
        .sql("app", "CREATE ROLE tenant; GRANT tenant TO app; GRANT SELECT ON here, t TO tenant; \
            CREATE VIEW who AS SELECT current_user::text AS role, current_setting('app.tenant', true) AS tenant; \
            GRANT SELECT ON who TO app, tenant")
        .expect("a role");
    cluster.wait_caught_up().expect("caught up");
    let client = settled(&gateway, &cluster, "");
    let primary = cluster.primary().port();
    let who = || client.rows("SELECT role, tenant FROM who").swap_remove(0);
    for texts in [
        [
            "SELECT set_config('role', 'tenant', true), set_config('app.tenant', 'it''s', true)",
            "",
        ],
        [
            "SET LOCAL ROLE tenant",
            "SELECT set_config('app.tenant', $1, true)",
        ],
    ] {
        client.rows("BEGIN READ ONLY");
        client.rows(texts[0]);
        if !texts[1].is_empty() {
            assert_eq!(client.prepared_with(texts[1], &[&"it's"]), "it's");
        }
        assert!(here(&client) != primary);
        assert_eq!(who(), ["tenant", "it's"]);
        client.rows("SELECT pg_advisory_xact_lock(1)");
        assert_eq!(here(&client), primary);
        assert_eq!(who(), ["tenant", "it's"]);
        client.rows("COMMIT");
        assert_eq!(who(), ["app", ""]);
        wait_for("reads on a replica", || here(&client) != primary);
    }
    // What is not for the transaction alone is the primary's.
    client.rows("BEGIN READ ONLY");
    client.rows("SELECT set_config('app.tenant', 'kept', false)");
    assert_eq!(here(&client), primary);
    client.rows("COMMIT");
    assert_eq!(who(), ["app", "kept"]);
}

#[test]
fn a_transaction_sees_what_its_session_must_see() {
    let cluster = start(2);
    let gateway = eager(&cluster);
    let client = settled(&gateway, &cluster, "");
    let other = Client::open(&gateway, "app", "");
    for replica in cluster.replicas() {
        replica.pause_replay().expect("paused");
    }
    // Its own write is on no replica yet.
    client.rows("UPDATE t SET v = 1");
    client.rows("BEGIN");
    assert_eq!(client.one("SELECT v FROM t"), "1");
    assert_eq!(here(&client), cluster.primary().port());
    client.rows("COMMIT");
    // At a level that asks for what others write, a transaction that has begun on a replica leaves it.
    let strict = Client::open(&gateway, "app", "");
    strict.rows("SET tidegate.consistency = 'eventual'");
    strict.rows("BEGIN");
    assert_eq!(strict.one("SELECT v FROM t"), "0");
    let hinted = "/* tidegate: global */ SELECT v FROM t";
    other.rows("UPDATE t SET v = 2");
    assert_eq!(strict.one(hinted), "2");
    assert_eq!(
        strict.one("SELECT v FROM t"),
        "2",
        "and stays on the primary"
    );
    strict.rows("COMMIT");
    // So does one whose schema has been changed since.
    strict.rows("BEGIN");
    assert_eq!(strict.one("SELECT v FROM t"), "0");
    cluster
        .primary()
        .sql("app", "GRANT CREATE ON SCHEMA public TO app")
        .expect("granted");
    other.rows("CREATE TABLE fresh AS SELECT 7 AS v");
    assert_eq!(strict.one("SELECT v FROM fresh"), "7");
    strict.rows("COMMIT");
    for replica in cluster.replicas() {
        replica.resume_replay().expect("resumed");
    }
}

#[test]
fn a_schema_that_changes_during_a_transaction_is_a_floor_after_it() {
    let cluster = start(1);
    let grant = "GRANT CREATE ON SCHEMA public TO app";
    cluster.primary().sql("app", grant).expect("granted");
    let gateway = eager(&cluster);
    let other = Client::open(&gateway, "app", "");
    other.rows("CREATE VIEW shape AS SELECT 1 AS v");
    cluster.wait_caught_up().expect("caught up");
    let client = settled(&gateway, &cluster, "");
    client.rows("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
    assert_eq!(here(&client), cluster.node(1).port());
    cluster.node(1).pause_replay().expect("paused");
    other.rows("CREATE OR REPLACE VIEW shape AS SELECT 2 AS v");
    wait_for("it to be known what reads are again", || {
        let said = other.rows("EXPLAIN ROUTE SELECT port FROM here");
        said.contains(&["class", "read"].map(str::to_owned).to_vec())
    });
    assert_eq!(here(&client), cluster.node(1).port());
    client.rows("COMMIT");
    assert_eq!(client.one("SELECT v FROM shape"), "2");
    cluster.node(1).resume_replay().expect("resumed");
}

/// Sends this and gives the types of the answers up to ReadyForQuery, with its status.
fn tell(raw: &mut Raw, write: impl FnOnce(&mut bytes::BytesMut)) -> String {
    raw.send(write);
    let mut said = String::new();
    loop {
        let frame = raw.next().expect("an answer");
        said.push(frame[0] as char);
        match frame[0] {
            b'Z' => {
                said.push(body(&frame)[0] as char);
                return said;
            }
            b'E' => said.push_str(&error(&frame)),
            b'C' => said
                .push_str(str::from_utf8(&body(&frame)[..body(&frame).len() - 1]).expect("text")),
            _ => {}
        }
    }
}

#[test]
fn messages_are_those_of_one_server() {
    let cluster = start(1);
    let gateway = eager(&cluster);
    drop(settled(&gateway, &cluster, ""));
    let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
    raw.log_in();
    let query =
        |sql: &'static str| move |out: &mut bytes::BytesMut| encode::query(out, sql.as_bytes());
    assert_eq!(tell(&mut raw, query("BEGIN")), "CBEGINZT");
    assert_eq!(tell(&mut raw, query("COMMIT")), "CCOMMITZI");
    assert_eq!(
        tell(&mut raw, query("/* a */ START TRANSACTION")),
        "CSTART TRANSACTIONZT"
    );
    assert_eq!(tell(&mut raw, query("ROLLBACK WORK")), "CROLLBACKZI");
    assert_eq!(tell(&mut raw, query("BEGIN")), "CBEGINZT");
    assert_eq!(tell(&mut raw, query("SELECT v FROM t")), "TDCSELECT 1ZT");
    let wrong = tell(&mut raw, query("SELECT 1 / (v - v) FROM t"));
    assert!(wrong.contains("22012") && wrong.ends_with("ZE"), "{wrong}");
    assert_eq!(tell(&mut raw, query("COMMIT")), "CROLLBACKZI");

    // One pipeline: as drivers begin a transaction together with its first statement.
    let step = |out: &mut bytes::BytesMut, sql: &str| {
        encode::parse(out, b"", sql.as_bytes(), &[0, 0]);
        out.extend_from_slice(b"B\0\0\0\x0c\0\0\0\0\0\0\0\0");
        out.extend_from_slice(b"E\0\0\0\x09\0\0\0\0\0");
    };
    let pipeline = |texts: &'static [&'static str]| {
        move |out: &mut bytes::BytesMut| {
            texts.iter().for_each(|sql| step(out, sql));
            out.extend_from_slice(encode::SYNC);
        }
    };
    let reads = || gateway.metric("tidegate_queries_total", "reason=\"transaction_read\"");
    let begin = pipeline(&["BEGIN", "SELECT v FROM t"]);
    assert_eq!(tell(&mut raw, begin), "12CBEGIN12DCSELECT 1ZT");
    assert_eq!(
        tell(&mut raw, pipeline(&["SELECT v FROM t"])),
        "12DCSELECT 1ZT"
    );
    // Three statements of the transaction before, and two of this one.
    wait_for("reads to be counted", || reads() >= 5.0);
    assert_eq!(reads(), 5.0);
    assert_eq!(
        tell(
            &mut raw,
            pipeline(&["UPDATE t SET v = 5", "SELECT v FROM t"])
        ),
        "12CUPDATE 112DCSELECT 1ZT"
    );
    assert_eq!(tell(&mut raw, pipeline(&["COMMIT"])), "12CCOMMITZI");
    let written = pipeline(&["BEGIN", "UPDATE t SET v = 6", "COMMIT"]);
    assert_eq!(tell(&mut raw, written), "12CBEGIN12CUPDATE 112CCOMMITZI");
    // What a pipeline has set before it fails is undone with it.
    let fails = pipeline(&[
        "BEGIN READ ONLY",
        "SET work_mem = '9MB'",
        "SELECT 1 / (v - v) FROM t",
    ]);
    let failed = tell(&mut raw, fails);
    assert!(
        failed.contains("22012") && failed.ends_with("ZE"),
        "{failed}"
    );
    assert_eq!(tell(&mut raw, query("ROLLBACK")), "CROLLBACKZI");

    // What is no BEGIN and no COMMIT is told to be none.
    assert_eq!(
        tell(&mut raw, query("BEGIN; SELECT 1")),
        "CBEGINTDCSELECT 1ZT"
    );
    assert_eq!(tell(&mut raw, query("BEGIN")), "NCBEGINZT");
    assert_eq!(tell(&mut raw, query("END")), "CCOMMITZI");
    assert_eq!(tell(&mut raw, query("BEGIN")), "CBEGINZT");
    assert_eq!(tell(&mut raw, query("BEGIN")), "NCBEGINZT");
    let wrong = tell(&mut raw, query("COMMIT so"));
    assert!(wrong.contains("42601") && wrong.ends_with("ZE"), "{wrong}");
    assert_eq!(tell(&mut raw, query("COMMIT")), "CROLLBACKZI");
    for nonsense in ["BEGIN so", "START"] {
        let wrong = tell(&mut raw, query(nonsense));
        assert!(wrong.contains("42601") && wrong.ends_with("ZI"), "{wrong}");
    }

    // After a COMMIT in the middle of a pipeline what follows is no part of the transaction.
    let primary = cluster.primary().port();
    settle(&mut raw, primary);
    assert_eq!(tell(&mut raw, query("BEGIN")), "CBEGINZT");
    assert_eq!(tell(&mut raw, query("SELECT v FROM t")), "TDCSELECT 1ZT");
    raw.send(|out| {
        step(out, "COMMIT");
        out.extend_from_slice(encode::FLUSH);
    });
    raw.until(b'C');
    let insert = pipeline(&["INSERT INTO t VALUES (7, 7)"]);
    assert_eq!(tell(&mut raw, insert), "12CINSERT 0 1ZI");
    // What would be tied to the replica in a later part of one goes to the primary, as in the first.
    settle(&mut raw, primary);
    assert_eq!(tell(&mut raw, query("BEGIN")), "CBEGINZT");
    raw.send(|out| {
        encode::parse(out, b"s", b"SELECT n FROM many", &[0, 0]);
        encode::statement_target(out, b'D', b"s");
        out.extend_from_slice(encode::FLUSH);
    });
    raw.until(b'T');
    let cursor = |out: &mut bytes::BytesMut| {
        out.extend_from_slice(b"B\0\0\0\x0e\x63\0\x73\0\0\0\0\0\0\0");
        out.extend_from_slice(b"E\0\0\0\x0a\x63\0\0\0\0\x02");
        out.extend_from_slice(encode::SYNC);
    };
    assert_eq!(tell(&mut raw, cursor), "2DDsZT");
    assert_eq!(tell(&mut raw, query("UPDATE t SET v = 8")), "CUPDATE 2ZT");
    let rest = |out: &mut bytes::BytesMut| {
        out.extend_from_slice(b"E\0\0\0\x0a\x63\0\0\0\0\0");
        out.extend_from_slice(encode::SYNC);
    };
    assert!(tell(&mut raw, rest).ends_with("DCSELECT 98ZT"));
    assert_eq!(tell(&mut raw, query("COMMIT")), "CCOMMITZI");
}

/// A proxy like [`eager`], with one server of each node, that often asks them where they are.
fn eager_with_one_server(cluster: &LocalCluster) -> Gateway {
    let pool = "[pool]\nsize = 1\ncheckout_timeout = \"100ms\"";
    let health = "[health]\ninterval = \"1s\"";
    let reads = "transaction_reads = \"replica\"";
    with_routing(cluster, &format!("{reads}\n{pool}\n{health}"))
}

/// The server skips the rest of it, whatever the client has said before it heard of the error.
#[test]
fn a_pipeline_that_fails_on_a_replica_ends_there() {
    let cluster = start(1);
    let gateway = eager_with_one_server(&cluster);
    drop(settled(&gateway, &cluster, ""));
    let primary = cluster.primary().port();
    let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
    raw.log_in();
    let query =
        |sql: &'static str| move |out: &mut bytes::BytesMut| encode::query(out, sql.as_bytes());
    let locker = Client::direct(&cluster.primary());
    let locks = |what: &str| {
        let of = "relation = 'many'::regclass";
        let sql = format!("SELECT count(*) FROM pg_locks WHERE {of} AND {what}");
        let count = cluster.replicas()[0].sql("app", &sql).expect("locks");
        count.trim() == "1"
    };
    // The replica looks at the first part when this lock is gone; the next has come by then.
    let fail = |raw: &mut Raw| {
        locker.rows("BEGIN; LOCK TABLE many");
        wait_for("the lock on the replica", || locks("granted"));
        raw.send(|out| {
            encode::parse(out, b"", b"SELECT nosuch FROM many", &[0, 0]);
            encode::statement_target(out, b'D', b"");
            out.extend_from_slice(encode::FLUSH);
        });
        wait_for("the first part to wait", || locks("NOT granted"));
        raw.send(|out| {
            encode::parse(out, b"", b"INSERT INTO t VALUES (9, 9)", &[0, 0]);
            out.extend_from_slice(b"B\0\0\0\x0c\0\0\0\0\0\0\0\0");
            out.extend_from_slice(b"E\0\0\0\x09\0\0\0\0\0");
            out.extend_from_slice(encode::SYNC);
        });
        wait_for("the next part to be read", || raw.is_read());
        locker.rows("COMMIT");
        tell(raw, |_| ())
    };
    settle(&mut raw, primary);
    assert_eq!(tell(&mut raw, query("BEGIN")), "CBEGINZT");
    assert_eq!(tell(&mut raw, query("SELECT v FROM t")), "TDCSELECT 1ZT");
    let failed = fail(&mut raw);
    let has = |failed: &str, what| failed.matches(what).count();
    assert_eq!(has(&failed, "42703"), 1, "{failed}");
    assert_eq!(has(&failed, "INSERT"), 0, "{failed}");
    assert!(failed.ends_with("ZE"), "{failed}");
    assert_eq!(tell(&mut raw, query("COMMIT")), "CROLLBACKZI");

    // Outside of a transaction: there is nothing left to find a server for.
    settle(&mut raw, primary);
    let holder = Client::open(&gateway, "app", "");
    holder.rows("BEGIN; UPDATE t SET v = 1");
    let failed = fail(&mut raw);
    assert_eq!(has(&failed, "42703"), 1, "{failed}");
    assert_eq!(has(&failed, "53300"), 0, "{failed}");
    assert!(failed.ends_with("ZI"), "{failed}");
    assert_eq!(tell(&mut raw, query("SELECT v FROM t")), "TDCSELECT 1ZI");
    holder.rows("ROLLBACK");
}

/// The one value that a query shows.
fn shown(raw: &mut Raw, sql: &str) -> String {
    const BEFORE_VALUE: usize = 6;
    raw.send(|out| encode::query(out, sql.as_bytes()));
    let row = raw.until(b'D');
    raw.until(b'Z');
    String::from_utf8_lossy(&body(&row)[BEFORE_VALUE..]).into_owned()
}

/// Has the session's reads go to replicas again.
fn settle(raw: &mut Raw, primary: u16) {
    let primary = primary.to_string();
    wait_for("reads on a replica", || {
        raw.send(|out| encode::query(out, b"SELECT port FROM here"));
        let row = raw.until(b'D');
        raw.until(b'Z');
        !row.ends_with(primary.as_bytes())
    });
}

#[test]
fn a_transaction_outlives_its_replica() {
    let cluster = start(1);
    let gateway = eager(&cluster);
    let client = settled(&gateway, &cluster, "");
    let replica = &cluster.replicas()[0];
    // The read of an open transaction that replay cancels, or whose server is gone, is the primary's.
    let in_transaction = |client: &Client| {
        client.rows("BEGIN");
        client.rows("SET LOCAL application_name = 'roams'");
        assert!(here(client) != cluster.primary().port());
    };
    in_transaction(&client);
    replica.stop(StopMode::Fast).expect("stopped");
    assert_eq!(here(&client), cluster.primary().port());
    assert_eq!(client.one("SHOW application_name"), "roams");
    client.rows("UPDATE t SET v = 8");
    client.rows("COMMIT");
    assert_eq!(client.one("SELECT v FROM t"), "8");
    replica.start().expect("started");

    // Whom somebody ends, or a limit that was set, is told.
    for (how, code) in [
        ("SELECT count(pg_terminate_backend(pid))", "57P01"),
        ("SELECT count(*)", "25P03"),
    ] {
        let client = settled(&gateway, &cluster, "");
        in_transaction(&client);
        if code == "25P03" {
            client.rows("SET LOCAL idle_in_transaction_session_timeout = '1ms'");
        }
        let of_client = "FROM pg_stat_activity WHERE application_name = 'roams'";
        wait_for("the server to end", || {
            let left = replica.sql("app", &format!("{how} {of_client}"));
            left.expect("activity") == "0"
        });
        assert_eq!(client.error("SELECT v FROM t").code().code(), code);
    }

    // What a replica does not know yet.
    wait_for("reads on a replica", || {
        here(&client) != cluster.primary().port()
    });
    in_transaction(&client);
    replica.pause_replay().expect("paused");
    let table = "CREATE TABLE later AS SELECT 3 AS v; GRANT SELECT ON later TO app";
    cluster.primary().sql("app", table).expect("created");
    assert_eq!(client.one("SELECT v FROM later"), "3");
    assert_eq!(client.one("SHOW application_name"), "roams");
    client.rows("COMMIT");
    replica.resume_replay().expect("resumed");

    // Its primary is killed while it is on the replica: it goes on there, and waits with its first write.
    wait_for("reads on a replica", || {
        here(&client) != cluster.primary().port()
    });
    client.rows("BEGIN READ ONLY");
    assert!(here(&client) != cluster.primary().port());
    cluster.primary().stop(StopMode::Immediate).expect("killed");
    assert_eq!(client.one("SELECT v FROM t"), "8");
    client.rows("COMMIT");
}

#[test]
fn a_transaction_that_finds_no_server_has_failed_and_its_session_goes_on() {
    let cluster = start(0);
    let gateway = Gateway::start_with(&cluster, |config| {
        let config = format!("{config}\n[pool]\nsize = 1\ncheckout_timeout = \"100ms\"\n");
        format!("{config}\n[routing]\ntransaction_reads = \"replica\"\n[failover]\nhold = \"0\"\n")
    });
    let query = |sql: &'static str| move |out: &mut _| encode::query(out, sql.as_bytes());
    let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
    raw.log_in();
    // All servers are taken.
    let holder = Client::open(&gateway, "app", "");
    holder.rows("BEGIN");
    holder.rows("UPDATE t SET v = 1");
    assert_eq!(tell(&mut raw, query("BEGIN")), "CBEGINZT");
    let refused = tell(&mut raw, query("SELECT v FROM t"));
    assert!(
        refused.contains("53300") && refused.ends_with("ZE"),
        "{refused}"
    );
    holder.rows("COMMIT");
    let failed = tell(&mut raw, query("SELECT v FROM t"));
    assert!(
        failed.contains("25P02") && failed.ends_with("ZE"),
        "{failed}"
    );
    assert_eq!(tell(&mut raw, query("COMMIT")), "CROLLBACKZI");
    // There is no primary.
    assert_eq!(tell(&mut raw, query("BEGIN")), "CBEGINZT");
    let primary = cluster.primary();
    primary.stop(StopMode::Immediate).expect("stopped");
    wait_for("the primary to be missed", || {
        gateway.metric("tidegate_up", "") == 0.0
    });
    for _ in 0..2 {
        let refused = tell(&mut raw, query("UPDATE t SET v = 2"));
        assert!(
            refused.contains("57P03") && refused.ends_with("ZE"),
            "{refused}"
        );
    }
    assert_eq!(tell(&mut raw, query("COMMIT")), "CROLLBACKZI");
    primary.start().expect("started");
    wait_for("the primary", || gateway.metric("tidegate_up", "") == 1.0);
    wait_for("the session to be served", || {
        tell(&mut raw, query("UPDATE t SET v = 3 WHERE v = 1")) == "CUPDATE 1ZI"
    });
}

#[test]
fn a_deallocate_of_what_was_prepared_by_message_needs_no_server() {
    let cluster = start(1);
    let gateway = with_routing(&cluster, "");
    let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
    raw.log_in();
    let primary = cluster.primary();
    settle(&mut raw, primary.port());
    // As libpq prepares a statement, runs it, and has no other word for its end.
    let prepare = |out: &mut _| {
        encode::parse(out, b"one", b"SELECT v FROM t", b"\0\0");
        out.extend_from_slice(encode::SYNC);
    };
    let run = |out: &mut _| {
        encode::bind_head(out, b"", b"one", 6);
        out.extend_from_slice(b"\0\0\0\0\0\0");
        encode::body(out, b'E', b"\0\0\0\0\0");
        out.extend_from_slice(encode::SYNC);
    };
    let query = |sql: &'static str| move |out: &mut _| encode::query(out, sql.as_bytes());
    let read = |raw: &mut Raw, status: &str, end: &'static str| {
        assert_eq!(tell(raw, prepare), format!("1Z{status}"));
        assert_eq!(tell(raw, run), format!("2DCSELECT 1Z{status}"));
        assert_eq!(
            tell(raw, query(end)),
            format!("C{end}Z{status}").replace(" one", "")
        );
    };
    let on_primary = || gateway.metric("tidegate_queries_total", "route=\"primary\"");
    let before = on_primary();
    for _ in 0..3 {
        read(&mut raw, "I", "DEALLOCATE one");
        read(&mut raw, "I", "DEALLOCATE ALL");
        assert_eq!(tell(&mut raw, query("BEGIN READ ONLY")), "CBEGINZT");
        read(&mut raw, "T", "DEALLOCATE one");
        read(&mut raw, "T", "DEALLOCATE ALL");
        assert_eq!(tell(&mut raw, query("COMMIT")), "CCOMMITZI");
    }
    assert_eq!(on_primary(), before, "the primary is not told");

    assert_eq!(tell(&mut raw, prepare), "1ZI");
    raw.send(query("EXPLAIN ROUTE DEALLOCATE one"));
    let item = |row: &[u8]| row.windows(11).any(|part| part == b"goes now to");
    let row = std::iter::repeat_with(|| raw.until(b'D')).find(|row| item(row));
    let way = String::from_utf8_lossy(body(&row.expect("a row"))).into_owned();
    assert!(way.contains("no server"), "{way}");
    raw.until(b'Z');

    primary.stop(StopMode::Immediate).expect("stopped");
    wait_for("the primary to be missed", || {
        gateway.metric("tidegate_up", "") == 1.0
    });
    assert_eq!(tell(&mut raw, query("DEALLOCATE one")), "CDEALLOCATEZI");
    let began = std::time::Instant::now();
    for _ in 0..3 {
        read(&mut raw, "I", "DEALLOCATE one");
        read(&mut raw, "I", "DEALLOCATE ALL");
    }
    let took = began.elapsed();
    assert!(
        took < std::time::Duration::from_secs(5),
        "nobody waits for a primary: {took:?}"
    );
}

#[test]
fn what_a_transaction_has_set_is_undone_without_a_server_and_what_it_saw_was_seen() {
    let cluster = start(2);
    let gateway = eager_with_one_server(&cluster);
    drop(settled(&gateway, &cluster, ""));
    let query = |sql: &'static str| move |out: &mut _| encode::query(out, sql.as_bytes());
    let mut raw = Raw::start(gateway.port, VERSION_3_0, &[]);
    raw.log_in();
    settle(&mut raw, cluster.primary().port());
    // The replica that it reads on has this, the other one has not.
    let port = shown(&mut raw, "SELECT port FROM here");
    let replicas = cluster.replicas();
    let (ahead, behind) = match replicas[0].port().to_string() == port {
        true => (&replicas[0], &replicas[1]),
        false => (&replicas[1], &replicas[0]),
    };
    behind.pause_replay().expect("paused");
    // What it has read so far the other one is known to have, too.
    let primary = format!("node=\"127.0.0.1:{}\"", cluster.primary().port());
    let samples = || gateway.metric("tidegate_samples_total", &primary);
    let before = samples();
    wait_for("samples", || samples() >= before + 2.0);
    let update = "UPDATE t SET v = 1";
    cluster.primary().sql("app", update).expect("updated");
    wait_for("the update", || {
        ahead.sql("app", "SELECT v FROM t").expect("a row").trim() == "1"
    });

    let holder = Client::open(&gateway, "app", "");
    holder.rows("BEGIN; SELECT v FROM t FOR UPDATE");
    assert_eq!(tell(&mut raw, query("BEGIN")), "CBEGINZT");
    assert_eq!(shown(&mut raw, "SELECT v FROM t"), "1");
    let zone = "SET TimeZone = 'Asia/Tokyo'";
    assert_eq!(tell(&mut raw, query(zone)), "CSETSZT");
    assert_eq!(tell(&mut raw, query("SET work_mem = '9MB'")), "CSETZT");
    let refused = tell(&mut raw, query("UPDATE t SET v = 2"));
    assert!(refused.contains("53300"), "{refused}");
    assert_eq!(tell(&mut raw, query("ROLLBACK")), "CROLLBACKSZI");

    ahead.stop(StopMode::Immediate).expect("stopped");
    wait_for("the replica to be missed", || {
        gateway.metric("tidegate_up", "") == 2.0
    });
    holder.rows("ROLLBACK");
    assert_eq!(shown(&mut raw, "SELECT v FROM t"), "1");
    assert_eq!(shown(&mut raw, "SHOW work_mem"), "4MB");
    assert_eq!(shown(&mut raw, "SHOW TimeZone"), "UTC");
    behind.resume_replay().expect("resumed");
}

#[test]
fn a_transaction_is_opened_where_its_settings_are_taken() {
    let cluster = start(1);
    let gateway = eager(&cluster);
    let client = settled(&gateway, &cluster, "");
    cluster.node(1).pause_replay().expect("paused");
    let role = "CREATE ROLE later; GRANT later TO app; GRANT SELECT ON here TO later";
    cluster.primary().sql("app", role).expect("a role");
    // The replica has not heard of it, and the transaction has to be opened for what is no read.
    client.rows("SET ROLE later");
    client.rows("BEGIN");
    client.rows("SAVEPOINT a");
    assert_eq!(here(&client), cluster.primary().port());
    assert_eq!(client.one("SELECT current_user::text"), "later");
    client.rows("COMMIT");
    cluster.node(1).resume_replay().expect("resumed");
}
