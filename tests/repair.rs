//! Reads that a replica fails for its own sake are run elsewhere, and their clients see nothing of it.

mod support;

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::Client;
use support::forms::{Form, Speaker};
use support::tap::Tap;
use support::{Gateway, wait_for};
use tidegate::demo::{LocalCluster, LocalNode, Options, StopMode};

const REPLICA: &str = "route=\"replica\"";

fn cluster(replicas: usize) -> LocalCluster {
    LocalCluster::start(Options {
        replicas,
        ..Options::default()
    })
    .expect("a cluster")
}

/// A proxy that takes functions called `w_…` for reads and replicas that are far behind for good, and
/// prefers node 1.
fn gateway(cluster: &LocalCluster, level: &str) -> Gateway {
    gateway_in_mode(cluster, level, "transaction")
}

fn gateway_in_mode(cluster: &LocalCluster, level: &str, mode: &str) -> Gateway {
    gateway_with(cluster, &format!("level = \"{level}\""), mode)
}

fn gateway_with(cluster: &LocalCluster, consistency: &str, mode: &str) -> Gateway {
    let first = format!("address = \"{}\"", cluster.node(1).address());
    Gateway::start_with(cluster, |config| {
        let config = config.replace(&first, &format!("{first}\nweight = 1000"));
        assert!(config.contains("weight = 1000"), "{config}");
        let rules = "[routing]\nsafe_functions = [\"w_*\"]\n";
        let lag = "[lag]\nmax = \"1h\"\nmax_bytes = \"1GB\"\n";
        let pool = format!("[pool]\nmode = \"{mode}\"\n");
        format!("{config}\n{rules}\n{lag}\n{pool}\n[consistency]\n{consistency}\n")
    })
}

/// A proxy that reaches its primary by a tap.
fn by_tap(cluster: &LocalCluster) -> (Tap, Gateway) {
    let tap = Tap::open(cluster.node(0).port());
    let address = cluster.node(0).address();
    let gateway = Gateway::start_with(cluster, |config| {
        config.replace(&address, &format!("127.0.0.1:{}", tap.port))
    });
    (tap, gateway)
}

/// Runs a script on the primary, past the proxy.
fn on_primary(cluster: &LocalCluster, sql: &str) -> String {
    cluster
        .primary()
        .sql("app", sql)
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// A new session whose reads go to a replica.
fn on_replica(gateway: &Gateway) -> Speaker {
    on_replica_in(gateway, "app")
}

fn on_replica_in(gateway: &Gateway, database: &str) -> Speaker {
    let mut speaker = Speaker::start_in(gateway.port, database);
    wait_for("a replica to serve the session", || {
        is_on_replica(gateway, || {
            assert_eq!(speaker.ask(Form::Simple, "SELECT 1"), Ok("1".to_owned()));
        })
    });
    speaker
}

/// Whether what this asks, once, is served by a replica. It is counted when it has been answered.
fn is_on_replica(gateway: &Gateway, ask: impl FnOnce()) -> bool {
    let queries = |labels| gateway.metric("tidegate_queries_total", labels);
    let (all, replica) = (queries(""), queries(REPLICA));
    ask();
    wait_for("the query to be counted", || queries("") > all);
    queries(REPLICA) > replica
}

#[test]
fn what_a_standby_refuses_is_run_on_the_primary_and_remembered() {
    let cluster = cluster(1);
    on_primary(
        &cluster,
        "CREATE TABLE log (n int); CREATE UNLOGGED TABLE fleeting AS SELECT 7 AS n;
         GRANT ALL ON log, fleeting TO app",
    );
    let codes = [
        ("25006", "INSERT INTO log VALUES (1); RETURN 7"),
        ("0A000", "RETURN (SELECT n FROM fleeting)"),
        ("55000", "EXECUTE 'SELECT pg_current_wal_lsn()'; RETURN 7"),
    ];
    let call = |code: &str, form: Form| format!("w_{code}_{}()", form.name()).to_lowercase();
    for (code, body) in codes {
        for form in Form::ALL {
            let head = format!("CREATE FUNCTION {} RETURNS int", call(code, form));
            let sql = format!("{head} LANGUAGE plpgsql AS $$ BEGIN {body}; END $$");
            on_primary(&cluster, &sql);
        }
    }
    cluster
        .wait_caught_up()
        .expect("replicas have the functions");
    let gateway = gateway(&cluster, "session");
    let repairs = |code: &str| {
        let labels = format!("reason=\"standby\",sqlstate=\"{code}\"");
        gateway.metric("tidegate_repairs_total", &labels)
    };
    let remembered = || gateway.metric("tidegate_repairs_remembered_total", "");
    let writes = || gateway.metric("tidegate_queries_total", "reason=\"write\"");
    for (code, _) in codes {
        for form in Form::ALL {
            let before = (repairs(code), remembered());
            let sql = format!("SELECT {}", call(code, form));
            let seven = Ok("7".to_owned());
            assert_eq!(
                on_replica(&gateway).ask(form, &sql),
                seven,
                "{code} {form:?}"
            );
            let once = (before.0 + 1.0, before.1 + 1.0);
            wait_for("what is remembered", || remembered() == once.1);
            assert_eq!(repairs(code), once.0, "{code} {form:?}");

            // Whoever comes next, and whatever else is in the text's literals.
            let mut second = on_replica(&gateway);
            let wrote = writes();
            assert_eq!(second.ask(form, &sql), seven, "{code} {form:?}");
            assert_eq!((repairs(code), remembered()), once, "{code} {form:?}");
            wait_for("a write", || writes() == wrote + 1.0);
        }
    }
    let inserted = on_primary(&cluster, "SELECT count(*) FROM log");
    assert_eq!(inserted, "8", "each has been run once");

    // An error that the primary shares says nothing against the text.
    let before = (repairs("0A000"), remembered());
    for times in [1.0, 2.0] {
        let sql = "SELECT count(DISTINCT n) OVER () FROM log";
        let asked = on_replica(&gateway).ask(Form::Simple, sql);
        assert_eq!(asked, Err("0A000".to_owned()));
        assert_eq!(repairs("0A000"), before.0 + times);
    }
    assert_eq!(remembered(), before.1);

    // With other rules for functions everything is new.
    let config = std::fs::read_to_string(&gateway.config_path).expect("config");
    gateway.reload(&config.replace("\"w_*\"", "\"w_*\", \"x_*\""));
    let before = repairs("25006");
    let sql = format!("SELECT {}", call("25006", Form::Simple));
    let asked = on_replica(&gateway).ask(Form::Simple, &sql);
    assert_eq!(asked, Ok("7".to_owned()));
    assert_eq!(repairs("25006"), before + 1.0);
}

#[test]
fn what_a_replica_has_not_heard_of_is_asked_of_the_primary() {
    let cluster = cluster(1);
    on_primary(
        &cluster,
        "CREATE TABLE old AS SELECT 7 AS n; CREATE TABLE secret AS SELECT 7 AS n;
         CREATE TYPE mood AS ENUM ('old'); CREATE TABLE moods (m mood);
         CREATE MATERIALIZED VIEW filled AS SELECT 7 AS n WITH NO DATA;
         GRANT SELECT ON old, moods, filled TO app",
    );
    cluster.wait_caught_up().expect("replicas have it");
    let gateway = gateway(&cluster, "session");
    // Sessions that read on the replica, each asked once: what the primary has shown is not there.
    let forms = Form::ALL.into_iter();
    let mut sessions: Vec<_> = forms
        .flat_map(|form| (0..8).map(move |_| form))
        .map(|form| (form, on_replica(&gateway)))
        .collect();
    cluster.node(1).pause_replay().expect("pause");
    on_primary(
        &cluster,
        "CREATE TABLE new AS SELECT 7 AS n; GRANT SELECT ON new, secret TO app;
         ALTER TABLE old ADD COLUMN added int DEFAULT 7;
         CREATE ROLE fresh;
         CREATE FUNCTION w_new() RETURNS int LANGUAGE sql AS 'SELECT 7';
         CREATE SCHEMA w_schema; GRANT USAGE ON SCHEMA w_schema TO app;
         CREATE FUNCTION w_schema.w_in() RETURNS int LANGUAGE sql AS 'SELECT 7';
         ALTER TYPE mood ADD VALUE 'new';
         REFRESH MATERIALIZED VIEW filled",
    );
    let reads = [
        ("42P01", "SELECT n FROM new"),
        ("42703", "SELECT added FROM old"),
        (
            "42704",
            "SELECT n FROM old WHERE NOT has_table_privilege('fresh', 'old', 'select')",
        ),
        ("42883", "SELECT w_new()"),
        ("3F000", "SELECT w_schema.w_in()"),
        ("42501", "SELECT n FROM secret"),
        ("22P02", "SELECT 7 + count(*) FROM moods WHERE m = 'new'"),
        ("55000", "SELECT n FROM filled"),
    ];
    let repairs = |code: &str| {
        let labels = format!("reason=\"schema\",sqlstate=\"{code}\"");
        gateway.metric("tidegate_repairs_total", &labels)
    };
    for (code, sql) in reads {
        for form in Form::ALL {
            let next = sessions.iter().position(|(of, _)| *of == form);
            let (_, mut session) = sessions.remove(next.expect("one is left"));
            let before = repairs(code);
            assert_eq!(session.ask(form, sql), Ok("7".to_owned()), "{sql} {form:?}");
            assert_eq!(repairs(code), before + 1.0, "{sql} {form:?}");
        }
    }
    assert_eq!(gateway.metric("tidegate_repairs_remembered_total", ""), 0.0);

    // What the primary does not know either is an error, once.
    let mut session = Speaker::start(gateway.port);
    for form in Form::ALL {
        let asked = session.ask(form, "SELECT n FROM nowhere");
        assert_eq!(asked, Err("42P01".to_owned()), "{form:?}");
    }

    cluster.node(1).resume_replay().expect("resume");
    cluster.wait_caught_up().expect("the replica has it all");
    for (code, sql) in reads {
        let mut session = on_replica(&gateway);
        let before = repairs(code);
        let is_read = is_on_replica(&gateway, || {
            assert_eq!(session.ask(Form::Simple, sql), Ok("7".to_owned()), "{sql}");
        });
        assert!(is_read, "{sql} is no write");
        assert_eq!(repairs(code), before);
    }
}

#[test]
fn a_read_that_a_full_replica_has_no_server_for_is_the_primarys_while_that_has_room() {
    let cluster = cluster(1);
    on_primary(
        &cluster,
        "CREATE FUNCTION w_where() RETURNS text LANGUAGE sql AS $$
             SELECT current_setting('cluster_name') $$",
    );
    cluster.wait_caught_up().expect("the replica has it");
    let gateway = Gateway::start_with(&cluster, |config| {
        let pool = "[pool]\nsize = 4\ncheckout_timeout = \"100ms\"\n";
        format!(
            "{config}\n[routing]\nsafe_functions = [\"w_*\"]\n{pool}\n[consistency]\nlevel = \"eventual\"\n"
        )
    });
    let client = || Client::open(&gateway, "app", "");
    let fill = |begin: &str, count: usize, node: &str| -> Vec<Client> {
        let holders: Vec<_> = (0..count).map(|_| client()).collect();
        for holder in &holders {
            holder.rows(begin);
            assert_eq!(holder.one("SELECT w_where()"), node);
        }
        holders
    };
    let reads = fill("BEGIN READ ONLY", 4, "node1");
    let reader = client();
    assert_eq!(reader.one("SELECT w_where()"), "node0");
    // A half of the primary is not for them.
    let writes = fill("BEGIN", 2, "node0");
    let error = reader.error("SELECT w_where()");
    assert_eq!(error.code().code(), "53300", "{error}");
    client().rows("SELECT pg_advisory_xact_lock(1)");
    drop(writes);
    wait_for("the primary to have room", || {
        reader
            .row_or_error("SELECT w_where()")
            .is_ok_and(|row| row == ["node0"])
    });
    drop(reads);
    wait_for("the replica to have room", || {
        reader.one("SELECT w_where()") == "node1"
    });
}

/// A function that fails, by the code that it is given, on the nodes that a table names.
fn with_faults(replicas: usize) -> LocalCluster {
    let cluster = cluster(replicas);
    on_primary(
        &cluster,
        "CREATE TABLE faulty (node text); GRANT SELECT ON faulty TO app;
         CREATE FUNCTION w_fault(code text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
             IF EXISTS (SELECT FROM faulty WHERE node = current_setting('cluster_name')) THEN
                 RAISE EXCEPTION 'a fault' USING ERRCODE = code;
             END IF;
             RETURN current_setting('cluster_name');
         END $$",
    );
    cluster.wait_caught_up().expect("replicas have it");
    cluster
}

#[test]
fn what_fills_a_replica_does_not_fill_the_primary() {
    let cluster = with_faults(1);
    let gateway = gateway(&cluster, "eventual");
    let ask = |code: &str| {
        let sql = format!("SELECT w_fault('{code}')");
        Speaker::start(gateway.port).ask(Form::Simple, &sql)
    };
    wait_for("reads on node 1", || ask("") == Ok("node1".to_owned()));
    on_primary(&cluster, "INSERT INTO faulty VALUES ('node1')");
    cluster.wait_caught_up().expect("the replica has it");
    for code in ["53100", "53200"] {
        assert_eq!(ask(code), Err(code.to_owned()));
    }
    assert_eq!(ask("58030"), Ok("node0".to_owned()));
}

#[test]
fn what_a_replicas_machine_fails_at_is_run_once_elsewhere() {
    let cluster = with_faults(2);
    let codes = ["53100", "53200", "58030", "58P01", "XX001", "XX002"];
    let gateway = gateway(&cluster, "eventual");
    let repairs = || gateway.metric("tidegate_repairs_total", "reason=\"fault\"");
    let ask = |code: &str, form: Form| {
        // Read on node 1 first, which is preferred.
        let sql = format!("SELECT w_fault('{code}')");
        Speaker::start(gateway.port).ask(form, &sql)
    };
    wait_for("reads on node 1", || {
        ask("", Form::Simple) == Ok("node1".to_owned())
    });
    for faulty in ["'node1'", "'node1', 'node2'"] {
        let sql = format!("INSERT INTO faulty SELECT unnest(ARRAY[{faulty}])");
        on_primary(&cluster, &format!("TRUNCATE faulty; {sql}"));
        cluster.wait_caught_up().expect("replicas have it");
        for (code, form) in codes.into_iter().zip(Form::ALL.into_iter().cycle()) {
            let before = repairs();
            let answer = ask(code, form);
            match faulty.contains("node2") {
                false => assert_eq!(answer, Ok("node2".to_owned()), "{code} {form:?}"),
                true => assert_eq!(answer, Err(code.to_owned()), "{code} {form:?}"),
            }
            assert_eq!(repairs(), before + 1.0, "{code} {form:?}");
        }
    }
}

/// A function that says on which node it runs, and stands still on one of them.
fn with_a_slow_node() -> LocalCluster {
    let cluster = cluster(2);
    on_primary(
        &cluster,
        "CREATE TABLE held (n int); CREATE TABLE slow (node text); INSERT INTO slow VALUES ('');
         GRANT SELECT ON held, slow TO app;
         CREATE FUNCTION w_where() RETURNS text LANGUAGE plpgsql AS $$ BEGIN
             PERFORM count(*) FROM held;
             IF current_setting('cluster_name') = (SELECT node FROM slow) THEN
                 PERFORM pg_sleep(600);
             END IF;
             RETURN current_setting('cluster_name');
         END $$;
         CREATE FUNCTION w_row(i int) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
             IF i = 5000 THEN RETURN w_where(); END IF;
             RETURN repeat('x', 100);
         END $$;
         CREATE FUNCTION w_leave() RETURNS boolean LANGUAGE sql AS
             'SELECT pg_terminate_backend(pg_backend_pid())'",
    );
    cluster.wait_caught_up().expect("replicas have it");
    let hasty = "ALTER SYSTEM SET max_standby_streaming_delay = 0;
        ALTER SYSTEM SET hot_standby_feedback = off";
    let node = cluster.node(1);
    node.sql("postgres", hasty).expect("settings");
    node.reload().expect("reload");
    cluster
}

/// A session whose reads go to node 1, where `w_where` stands still from now on.
fn on_slow_node(cluster: &LocalCluster, gateway: &Gateway) -> Speaker {
    // After a crash it takes a moment.
    wait_for("node 1", || cluster.node(1).sql("app", "SELECT 1").is_ok());
    on_primary(cluster, "UPDATE slow SET node = ''");
    cluster.wait_caught_up().expect("all nodes are quick");
    let mut session = None;
    wait_for("a session on node 1", || {
        let mut speaker = Speaker::start(gateway.port);
        let at = speaker.ask(Form::Simple, "SELECT w_where()");
        session = (at == Ok("node1".to_owned())).then_some(speaker);
        session.is_some()
    });
    on_primary(cluster, "UPDATE slow SET node = 'node1'");
    cluster.wait_caught_up().expect("node 1 is slow");
    session.expect("a session")
}

/// The process that stands still on a node, if one does and the node is there.
fn asleep(node: &LocalNode) -> Option<String> {
    let sleeping =
        "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = 'app'";
    let pid = node.sql("postgres", sleeping).ok()?;
    (!pid.is_empty()).then_some(pid)
}

/// Waits until node 1 stands still in `w_where`; the backend's process id.
fn standing_still(cluster: &LocalCluster) -> String {
    let mut pid = None;
    wait_for("the read to stand still", || {
        pid = asleep(&cluster.node(1));
        pid.is_some()
    });
    pid.expect("a process")
}

/// Ends a process as a crash does.
fn crash(pid: &str) {
    let pid = Pid::from_raw(pid.parse().expect("a pid"));
    kill(pid, Signal::SIGKILL).expect("kill");
}

/// What befalls a read.
fn befall(cluster: &LocalCluster, what: &str, pid: &str) {
    let node = cluster.node(1);
    match what {
        "recovery_conflict" => {
            let lock = "BEGIN; LOCK held IN ACCESS EXCLUSIVE MODE; COMMIT";
            on_primary(cluster, lock);
        }
        "terminated" => {
            let end = format!("SELECT pg_terminate_backend({pid})");
            assert_eq!(node.sql("postgres", &end).expect("termination"), "t");
        }
        "crashed" => {
            let other = format!(
                "SELECT pid FROM pg_stat_activity
                 WHERE backend_type = 'client backend' AND pid NOT IN ({pid}, pg_backend_pid())
                 LIMIT 1"
            );
            crash(&node.sql("postgres", &other).expect("another backend"));
        }
        "stopped" | "stopped at once" => {
            let mode = match what {
                "stopped" => StopMode::Fast,
                _ => StopMode::Immediate,
            };
            node.stop(mode).expect("stop");
            node.start().expect("start");
        }
        "connection_lost" => {
            node.kill();
            node.start().expect("start");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_read_that_is_cut_off_is_run_on_another_node() {
    let cluster = with_a_slow_node();
    let any = &["node0", "node2"][..];
    for (level, mode, elsewhere) in [
        ("session", "transaction", any),
        ("session", "session", any),
        ("eventual", "transaction", &["node2"]),
    ] {
        let gateway = gateway_in_mode(&cluster, level, mode);
        for (what, counted) in [
            ("recovery_conflict", "recovery_conflict"),
            ("stopped", "terminated"),
            ("stopped at once", "terminated"),
            ("crashed", "crashed"),
            ("connection_lost", "connection_lost"),
        ] {
            let retries = || {
                let labels = format!("reason=\"{counted}\"");
                gateway.metric("tidegate_retries_total", &labels)
            };
            for form in Form::ALL {
                let mut session = on_slow_node(&cluster, &gateway);
                let before = retries();
                let answer = thread::scope(|scope| {
                    let asked = scope.spawn(|| session.ask(form, "SELECT w_where()"));
                    befall(&cluster, what, &standing_still(&cluster));
                    asked.join().expect("an answer")
                });
                let node = answer.unwrap_or_else(|code| panic!("{what} {form:?}: {code}"));
                assert!(
                    elsewhere.contains(&&*node),
                    "{level} {what} {form:?}: {node}"
                );
                assert_eq!(retries(), before + 1.0, "{level} {what} {form:?}");
                assert_eq!(session.ask(form, "SELECT 1"), Ok("1".to_owned()));
            }
        }
        assert_eq!(gateway.metric("tidegate_errors_total", ""), 0.0);
    }
}

#[test]
fn a_read_that_somebody_ends_is_at_an_end() {
    let cluster = with_a_slow_node();
    let gateway = gateway(&cluster, "eventual");
    for form in Form::ALL {
        let mut session = on_slow_node(&cluster, &gateway);
        let answer = thread::scope(|scope| {
            session.say(form, "SELECT w_where()");
            let asked = scope.spawn(|| session.answers(form).pop());
            befall(&cluster, "terminated", &standing_still(&cluster));
            asked.join().expect("an answer")
        });
        assert_eq!(answer, Some(Err("57P01".to_owned())), "{form:?}");
        assert_eq!(session.ask(form, "SELECT 1"), Ok("1".to_owned()));
    }
    assert_eq!(gateway.metric("tidegate_retries_total", ""), 0.0);
}

#[test]
fn a_read_that_crashes_its_servers_is_not_brought_to_the_primary() {
    let cluster = with_a_slow_node();
    on_primary(
        &cluster,
        "CREATE FUNCTION w_crash() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)'",
    );
    cluster.wait_caught_up().expect("replicas have it");
    let gateway = gateway(&cluster, "eventual");
    let labels = "reason=\"connection_lost\"";
    let retries = || gateway.metric("tidegate_retries_total", labels);
    let is_back = |index| {
        wait_for("a node", || {
            cluster.node(index).sql("app", "SELECT 1").is_ok()
        })
    };
    for form in [Form::Simple, Form::Extended] {
        // It was not for the read: elsewhere it does no harm.
        let mut session = on_slow_node(&cluster, &gateway);
        let answer = thread::scope(|scope| {
            let asked = scope.spawn(|| session.ask(form, "SELECT w_where()"));
            crash(&standing_still(&cluster));
            asked.join().expect("an answer")
        });
        assert_eq!(answer, Ok("node2".to_owned()), "{form:?}");

        // It was: another replica is the last one that it meets.
        let mut session = on_slow_node(&cluster, &gateway);
        let before = retries();
        let (answer, crashes) = thread::scope(|scope| {
            let asked = scope.spawn(|| session.ask(form, "SELECT w_crash()"));
            let mut crashes = [0; 3];
            while !asked.is_finished() {
                for (node, crashes) in cluster.nodes().iter().zip(&mut crashes) {
                    if let Some(pid) = asleep(node) {
                        crash(&pid);
                        *crashes += 1;
                    }
                }
                thread::sleep(Duration::from_millis(10));
            }
            (asked.join().expect("an answer"), crashes)
        });
        assert_eq!(answer, Err("08006".to_owned()), "{form:?}");
        assert_eq!((crashes, retries()), ([0, 1, 1], before + 1.0), "{form:?}");
        is_back(1);
        is_back(2);
    }
}

#[test]
fn a_read_that_may_have_crashed_a_replica_waits_for_another_if_reads_do() {
    let cluster = with_a_slow_node();
    let consistency = "level = \"eventual\"\non_no_replica = \"wait\"\nwait_timeout = \"10m\"";
    let gateway = gateway_with(&cluster, consistency, "transaction");
    let mut session = on_slow_node(&cluster, &gateway);
    cluster.node(2).stop(StopMode::Fast).expect("stop");
    let answer = thread::scope(|scope| {
        let asked = scope.spawn(|| session.ask(Form::Simple, "SELECT w_where()"));
        crash(&standing_still(&cluster));
        wait_for("node 1", || cluster.node(1).sql("app", "SELECT 1").is_ok());
        cluster.node(2).start().expect("start");
        asked.join().expect("an answer")
    });
    assert_eq!(answer, Ok("node2".to_owned()));
}

#[test]
fn what_is_cut_off_for_good_is_told() {
    let cluster = with_a_slow_node();
    let gateway = gateway(&cluster, "session");
    let retries = || gateway.metric("tidegate_retries_total", "");

    // Rows have been seen: they would come twice.
    for form in [Form::Simple, Form::Extended, Form::Named] {
        let mut session = on_slow_node(&cluster, &gateway);
        let before = retries();
        let answer = thread::scope(|scope| {
            let sql = "SELECT w_row(i) FROM generate_series(1, 5000) AS i";
            let asked = scope.spawn(|| session.ask(form, sql));
            befall(&cluster, "terminated", &standing_still(&cluster));
            asked.join().expect("an answer")
        });
        assert_eq!((answer, retries()), (Err("57P01".to_owned()), before));
        assert_eq!(session.ask(form, "SELECT 1"), Ok("1".to_owned()));
    }

    // It ends itself wherever it runs.
    for form in Form::ALL {
        let mut session = on_replica(&gateway);
        let before = retries();
        session.say(form, "SELECT w_leave()");
        let answers = session.answers(form);
        assert_eq!(answers.last(), Some(&Err("57P01".to_owned())), "{form:?}");
        assert_eq!(retries(), before, "{form:?}");
        assert_eq!(session.ask(form, "SELECT 1"), Ok("1".to_owned()));
    }
}

#[test]
fn who_loses_a_server_of_the_primary_is_told() {
    let cluster = cluster(0);
    on_primary(
        &cluster,
        "CREATE TABLE slow (is_slow boolean); INSERT INTO slow VALUES (true);
         GRANT SELECT ON slow TO app;
         CREATE FUNCTION w_stand() RETURNS text LANGUAGE plpgsql AS $$ BEGIN
             IF (SELECT is_slow FROM slow) THEN PERFORM pg_sleep(600); END IF;
             RETURN 'done';
         END $$",
    );
    let gateway = Gateway::start_with(&cluster, |config| {
        format!("{config}\n[routing]\nsafe_functions = [\"w_*\"]\n")
    });
    for (keeps, is_killed, told) in [
        ("SELECT 1", false, "57P01"),
        ("LISTEN c", false, "57P01"),
        ("CREATE TEMP TABLE basket AS SELECT 1", false, "57P01"),
        // It may have been the read that crashed it: it is not run there again.
        ("SELECT 1", true, "08006"),
    ] {
        let client = Client::open(&gateway, "app", "");
        client.rows(keeps);
        on_primary(&cluster, "UPDATE slow SET is_slow = true");
        let error = thread::scope(|scope| {
            let asked = scope.spawn(|| client.row_or_error("SELECT w_stand()"));
            let mut pid = None;
            wait_for("the read to stand still", || {
                pid = asleep(&cluster.primary());
                pid.is_some()
            });
            let pid = pid.expect("a process");
            on_primary(&cluster, "UPDATE slow SET is_slow = false");
            match is_killed {
                true => crash(&pid),
                false => drop(on_primary(
                    &cluster,
                    &format!("SELECT pg_terminate_backend({pid})"),
                )),
            }
            asked.join().expect("an answer").expect_err("an error")
        });
        assert_eq!(error.code().code(), told, "{keeps}");
    }
    assert_eq!(gateway.metric("tidegate_retries_total", ""), 0.0);
}

#[test]
fn a_read_on_a_primary_whose_connections_are_forgotten_is_run_again() {
    let cluster = cluster(0);
    let (tap, gateway) = by_tap(&cluster);
    let retries = || gateway.metric("tidegate_retries_total", "reason=\"connection_lost\"");
    for (round, form) in (1..).zip(Form::ALL) {
        let mut sessions: Vec<_> = (0..3).map(|_| Speaker::start(gateway.port)).collect();
        for sql in ["BEGIN", "COMMIT"] {
            // Each has a server of its own.
            for session in &mut sessions {
                assert_eq!(session.ask(form, sql), Ok(String::new()));
            }
        }
        tap.forget();
        for session in &mut sessions {
            assert_eq!(
                session.ask(form, "SELECT 1"),
                Ok("1".to_owned()),
                "{form:?}"
            );
        }
        // The others that were idle are not tried.
        assert_eq!(retries(), f64::from(round), "{form:?}");
    }
}

#[test]
fn a_read_whose_server_is_lost_can_be_cancelled_while_its_node_is_asked() {
    let cluster = cluster(0);
    let (tap, gateway) = by_tap(&cluster);
    let client = Client::open(&gateway, "app", "");
    client.rows("SELECT 1");
    // New connections are accepted by the kernel alone.
    cluster.node(0).freeze();
    tap.forget();
    let error = thread::scope(|scope| {
        let asked = scope.spawn(|| client.error("SELECT 1"));
        while !asked.is_finished() {
            client.cancel();
        }
        asked.join().expect("an answer")
    });
    assert_eq!(error.code().code(), "57014", "{error}");
    cluster.node(0).thaw();
}

#[test]
fn a_read_on_a_primary_that_dies_is_run_on_the_next() {
    let cluster = with_a_slow_node();
    let gateway = gateway(&cluster, "primary");
    on_primary(&cluster, "UPDATE slow SET node = 'node0'");
    cluster.wait_caught_up().expect("replicas have it");
    let mut session = Speaker::start(gateway.port);
    let answer = thread::scope(|scope| {
        let asked = scope.spawn(|| session.ask(Form::Simple, "SELECT w_where()"));
        wait_for("the read to stand still", || {
            asleep(&cluster.node(0)).is_some()
        });
        cluster.node(0).kill();
        cluster.node(2).promote().expect("promoted");
        asked.join().expect("an answer")
    });
    assert_eq!(answer, Ok("node2".to_owned()));
}

#[test]
fn who_loses_a_replica_keeps_what_is_on_the_primary() {
    let cluster = with_a_slow_node();
    let gateway = gateway(&cluster, "eventual");
    let mut session = on_slow_node(&cluster, &gateway);
    assert_eq!(session.ask(Form::Simple, "LISTEN c"), Ok(String::new()));
    let answer = thread::scope(|scope| {
        let sql = "SELECT w_row(i) FROM generate_series(1, 5000) AS i";
        let asked = scope.spawn(|| session.ask(Form::Simple, sql));
        befall(&cluster, "terminated", &standing_still(&cluster));
        asked.join().expect("an answer")
    });
    assert_eq!(answer, Err("57P01".to_owned()));
    let channels = "SELECT * FROM pg_listening_channels()";
    assert_eq!(session.ask(Form::Simple, channels), Ok("c".to_owned()));
}

#[test]
fn what_a_server_says_to_settings_is_heard_before_it_matters() {
    let cluster = cluster(1);
    on_primary(
        &cluster,
        "CREATE TABLE log (n int); GRANT ALL ON log TO app; CREATE ROLE admin SUPERUSER ROLE app",
    );
    cluster.wait_caught_up().expect("caught up");
    let gateway = gateway(&cluster, "session");
    // A replica that has not heard of a role is no reason to fail.
    let client = Client::open(&gateway, "app", "");
    wait_for("a replica to serve the session", || {
        is_on_replica(&gateway, || drop(client.one("SELECT 1")))
    });
    cluster.node(1).pause_replay().expect("paused");
    on_primary(&cluster, "CREATE ROLE tenant ROLE app");
    client.rows("SET ROLE tenant");
    assert_eq!(client.one("SELECT current_user"), "tenant");
    let refused = gateway.metric("tidegate_retries_total", "reason=\"settings_refused\"");
    assert_eq!(refused, 1.0);
    cluster.node(1).resume_replay().expect("resumed");

    // What is set by another's right is refused by the next server; nothing is done there.
    let (client, other) = (
        Client::open(&gateway, "app", ""),
        Client::open(&gateway, "app", ""),
    );
    client.rows("SET ROLE admin; SET log_statement = 'none'; RESET ROLE");
    other.rows("BEGIN; LOCK log IN ROW EXCLUSIVE MODE");
    let error = client.error("INSERT INTO log VALUES (1)");
    assert_eq!(error.code().code(), "42501", "{error}");
    assert_eq!(on_primary(&cluster, "SELECT count(*) FROM log"), "0");
    // Nothing that it could say would get it out of this, so it has ended.
    assert_eq!(error.severity(), "FATAL", "{error}");
    wait_for("the session to end", || client.is_closed());
    other.rows("ROLLBACK");
}

#[test]
fn a_schema_that_one_session_changes_is_changed_for_all() {
    let cluster = cluster(1);
    on_primary(
        &cluster,
        "CREATE SCHEMA own AUTHORIZATION app; CREATE TABLE own.old (n int);
         ALTER TABLE own.old OWNER TO app; INSERT INTO own.old VALUES (7)",
    );
    cluster.wait_caught_up().expect("the replica has it");
    let node = cluster.node(1);
    for level in ["session", "eventual"] {
        let gateway = gateway(&cluster, level);
        // All that is asked is waited for to be counted, or it would be taken for what comes next.
        let changes_it = |changer: &mut Speaker, sql: &str| {
            let at_replica = is_on_replica(&gateway, || {
                changer.ask(Form::Simple, sql).expect(sql);
            });
            assert!(!at_replica, "{sql}");
        };
        let mut changer = Speaker::start(gateway.port);
        let mut readers: Vec<_> = (0..4).map(|_| on_replica(&gateway)).collect();
        let mut elsewhere = on_replica_in(&gateway, "postgres");
        let changes = [
            (
                "ALTER TABLE own.old ADD COLUMN added int DEFAULT 7",
                "SELECT added FROM own.old",
            ),
            (
                "CREATE TABLE own.new AS SELECT 7 AS n",
                "SELECT n FROM own.new",
            ),
        ];
        node.pause_replay().expect("pause");
        for (change, _) in changes {
            changes_it(&mut changer, change);
        }
        // Until the database has told its new catalog, anything may be a write.
        let unknown = || gateway.metric("tidegate_queries_total", "reason=\"catalog_unknown\"");
        wait_for("the catalog to be known", || {
            let before = unknown();
            is_on_replica(&gateway, || {
                changer
                    .ask(Form::Simple, "SELECT n FROM own.old")
                    .expect("a read");
            });
            unknown() == before
        });
        for ((form, reader), (_, read)) in Form::ALL
            .into_iter()
            .zip(&mut readers)
            .zip(changes.iter().cycle())
        {
            let is_old = is_on_replica(&gateway, || {
                let seven = Ok("7".to_owned());
                assert_eq!(reader.ask(form, read), seven, "{level} {form:?}: {read}");
            });
            // Whatever else it reads, there too.
            let is_old = is_old
                || is_on_replica(&gateway, || {
                    assert_eq!(reader.ask(form, "SELECT 1"), Ok("1".to_owned()));
                });
            assert!(!is_old, "{level} {form:?}: {read}");
        }
        let kept = || gateway.metric("tidegate_queries_total", "reason=\"newer_schema\"");
        wait_for("the reason to be told", || {
            is_on_replica(&gateway, || {
                let read = readers[0].ask(Form::Simple, "SELECT n FROM own.old");
                read.expect("a read");
            });
            kept() > 0.0
        });
        // Sessions of another database have nothing to do with it.
        let is_read = is_on_replica(&gateway, || {
            elsewhere.ask(Form::Simple, "SELECT 1").expect("a read");
        });
        assert!(is_read, "{level}");

        node.resume_replay().expect("resume");
        cluster.wait_caught_up().expect("the replica has it all");
        for (form, reader) in Form::ALL.into_iter().zip(&mut readers) {
            wait_for("reads to go back to the replica", || {
                changes.iter().all(|(_, read)| {
                    is_on_replica(&gateway, || {
                        assert_eq!(reader.ask(form, read), Ok("7".to_owned()));
                    })
                })
            });
        }
        assert_eq!(gateway.metric("tidegate_repairs_total", ""), 0.0);

        // Until it is committed, and if it is not, nobody is kept from the replica.
        node.pause_replay().expect("pause");
        changes_it(&mut changer, "BEGIN");
        let drop = "ALTER TABLE own.old DROP COLUMN added";
        changes_it(&mut changer, drop);
        let read = |reader: &mut Speaker| {
            is_on_replica(&gateway, || {
                let read = reader.ask(Form::Simple, "SELECT n FROM own.old");
                read.expect("a read");
            })
        };
        if level == "eventual" {
            assert!(read(&mut readers[0]), "nothing has changed yet");
        }
        changes_it(&mut changer, "COMMIT");
        assert!(!read(&mut readers[0]), "it has been committed");
        node.resume_replay().expect("resume");
        cluster.wait_caught_up().expect("the replica has it all");
        let drop = "DROP TABLE own.new";
        changes_it(&mut changer, drop);
        cluster.wait_caught_up().expect("the replica has it all");
    }
}
