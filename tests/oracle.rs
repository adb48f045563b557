//! A real standby says whether a text is a read: what is taken for one must run there, and what the
//! standby refuses for being one must not have been.
//!
//! The texts are in `tests/oracle/cases.txt`. `scripts/oracle` does the like with all of PostgreSQL's
//! regression suite.

#[path = "oracle/database.rs"]
mod database;
#[path = "oracle/script.rs"]
mod script;
#[path = "oracle/suite.rs"]
mod suite;

use std::process::Stdio;

use database::Database;
use tidegate::demo::{LocalCluster, Options};
use tidegate::session::effects::Suspicion;
use tidegate::sql::Need;

const OBJECTS: &str = include_str!("oracle/objects.sql");
const CASES: &str = include_str!("oracle/cases.txt");

/// The least number of cases.
const CASES_MIN: usize = 300;

/// What must come of a text.
struct Case<'a> {
    mark: &'a str,
    sql: String,
}

fn cases() -> Vec<Case<'static>> {
    let lines = CASES.lines().filter(|line| !line.starts_with('#'));
    let cases = lines.filter_map(|line| {
        let (mark, sql) = line.split_once(' ')?;
        let sql = sql.trim_start().replace("\\n", "\n");
        Some(Case { mark, sql })
    });
    cases.collect()
}

/// The SQLSTATE that `node` answers each text with, if it is an error.
fn run(cluster: &LocalCluster, node: usize, cases: &[&Case<'_>]) -> Vec<Option<String>> {
    let mut psql = cluster.postgres().command("psql");
    psql.args(["-Xq", "-h", "127.0.0.1", "-U", "postgres", "-d", "app"])
        .args(["-p", &cluster.node(node).port().to_string()])
        .env("PGPASSWORD", "postgres")
        .env(
            "PGOPTIONS",
            "-c client_min_messages=error -c statement_timeout=10s",
        )
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    psql.args(["-c", "\\set VERBOSITY sqlstate"]);
    for case in cases {
        psql.args(["-c", "\\warn NEXT", "-c", &case.sql, "-c", "ROLLBACK"]);
    }
    let output = psql.output().expect("psql runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let answers = said.split("NEXT\n").skip(1);
    let answers: Vec<_> = answers
        .map(|said| {
            let error = said.lines().find_map(|line| line.split_once("ERROR:"));
            error.map(|(_, state)| state.trim().to_owned())
        })
        .collect();
    assert_eq!(answers.len(), cases.len(), "{said}");
    answers
}

/// Whether a standby refuses what is answered so, for being one. Where the server relies on being
/// asked before, it is an internal error; and an unlogged table has no file there.
fn is_refusal(sqlstate: &Option<String>) -> bool {
    const REFUSALS: [&str; 5] = ["25006", "0A000", "55000", "XX000", "58P01"];
    sqlstate
        .as_deref()
        .is_some_and(|state| REFUSALS.contains(&state))
}

#[test]
fn a_standby_agrees_with_what_is_a_read() {
    let options = Options {
        replicas: 1,
        ..Options::default()
    };
    let cluster = LocalCluster::start(options).expect("a cluster");
    cluster.primary().sql("app", OBJECTS).expect("objects");
    cluster.wait_caught_up().expect("caught up");
    let database = Database::ask(cluster.primary().port(), "app");

    let cases = cases();
    assert!(cases.len() >= CASES_MIN, "only {}", cases.len());
    let tried: Vec<&Case<'_>> = cases.iter().filter(|case| case.mark != "unrun").collect();
    let mut answers = run(&cluster, 1, &tried).into_iter();
    let mut faults = Vec::new();
    for case in &cases {
        let (need, why) = database.needs(case.sql.as_bytes());
        let expected = match case.mark {
            "read" | "newer" | "invalid" => Need::Read,
            "session" => Need::Session,
            "control" => Need::Transaction,
            "refused" | "wrong" | "careful" | "unrun" => Need::Write,
            mark => panic!("there is no mark {mark}"),
        };
        if need != expected {
            let fault = format!("{} is {need:?}, {}: {}", case.mark, why.name(), case.sql);
            faults.push(fault);
        }
        if case.mark == "unrun" {
            continue;
        }
        let answer = answers.next().expect("one for each");
        let agrees = match case.mark {
            "read" | "wrong" => answer.is_none(),
            "refused" => is_refusal(&answer),
            "newer" => matches!(answer.as_deref(), None | Some("42601" | "42883")),
            "invalid" => answer.is_some() && !is_refusal(&answer),
            "control" => true,
            _ => !is_refusal(&answer),
        };
        if !agrees {
            faults.push(format!("{}, but {answer:?}: {}", case.mark, case.sql));
        }
    }
    assert!(faults.is_empty(), "{} faults: {faults:#?}", faults.len());
}

/// Bodies of functions, each in its language, and what calling one may do. Nothing of a body in a language
/// of no such name is understood.
const BODIES: &[(&str, &str, Option<Suspicion>)] = &[
    ("sql", "SELECT 1", None),
    (
        "plpgsql",
        "BEGIN EXECUTE 'SELECT 1'; executed_at := now(); END",
        None,
    ),
    (
        "plpgsql",
        "BEGIN EXECUTE 'SELECT ''$1''' INTO a USING b; END",
        None,
    ),
    (
        "plpgsql",
        "BEGIN FOR a IN EXECUTE 'SELECT 1' LOOP END LOOP; END",
        None,
    ),
    ("plpgsql", "BEGIN EXECUTE q; END", SOME),
    ("plpgsql", "BEGIN EXECUTE(q); END", SOME),
    ("plpgsql", "BEGIN EXECUTE (q); END", SOME),
    ("plpgsql", "BEGIN EXECUTE E'SELECT 1'; END", SOME),
    ("plpgsql", "BEGIN EXECUTE 'SELECT ' || q; END", SOME),
    ("plpgsql", "BEGIN EXECUTE 'it''s' || q; END", SOME),
    ("plpgsql", "BEGIN SET work_mem = 64; END", SOME),
    ("plpgsql", "BEGIN /* more */ SET work_mem = 64; END", SOME),
    ("plpgsql", "BEGIN EXECUTE 'SET app.x = ' || q; END", SOME),
    ("plpgsql", "BEGIN EXECUTE 'SET ROLE ' || q; END", SOME),
    (
        "plpgsql",
        "BEGIN EXECUTE 'SET LOCAL ' || q || ' = 1'; END",
        SOME,
    ),
    (
        "plpgsql",
        "BEGIN EXECUTE 'SET ' || q || ' = 1'; END",
        UNKNOWN,
    ),
    (
        "plpgsql",
        "BEGIN EXECUTE 'SET app.' || q || ' = 1'; END",
        UNKNOWN,
    ),
    (
        "plpgsql",
        "BEGIN EXECUTE 'SET SESSION app.x_' || q || ' = 1'; END",
        UNKNOWN,
    ),
    (
        "plpgsql",
        "BEGIN EXECUTE format('SET %I.x = 1', q); END",
        UNKNOWN,
    ),
    (
        "plpgsql",
        "BEGIN EXECUTE q || '; SET ' || k || ' = 1'; END",
        UNKNOWN,
    ),
    (
        "plpgsql",
        "BEGIN EXECUTE 'UPDATE ' || quote_ident(t) || ' SET ' || quote_ident(c) || ' = $1' USING v; END",
        SOME,
    ),
    (
        "plpgsql",
        "BEGIN q := 'UPDATE ' || t ||\n ' SET ' || array_to_string(cols, ','); EXECUTE q; END",
        SOME,
    ),
    (
        "plpgsql",
        "BEGIN EXECUTE 'UPDATE t' ||$q$ SET $q$|| c || '= 1'; END",
        SOME,
    ),
    ("other", "return set([1, 2])", None),
    (
        "other",
        "plpy.execute(\"UPDATE t SET (a, b) = (1, 2)\")",
        SOME,
    ),
    ("other", "plpy.execute('UPDATE t SET \"a\" = 1')", SOME),
    (
        "other",
        "# What is in the set\n  # is returned.\nreturn 1",
        SOME,
    ),
    ("other", "plpy.execute('SET \"a\".\"b\" = 1')", UNKNOWN),
    ("other", "return plpy.execute(q)", SOME),
    ("other", "return plpy.cursor(q)", SOME),
    ("other", "spi_exec_query($q)", SOME),
    ("other", "plpy.execute(\"SET work_mem = 64\")", SOME),
    ("other", "plpy.execute(\"SET LOCAL app.x = 64\")", SOME),
    ("other", "plpy.execute(\"SET app.x = 1\")", UNKNOWN),
    ("other", "plpy.execute(\"SET \" + name)", UNKNOWN),
    ("other", "plpy.execute(f\"SET {name} = 1\")", UNKNOWN),
    (
        "other",
        "plpy.execute(\"SELECT set_config('app.x', '1', false)\")",
        UNKNOWN,
    ),
];

const SOME: Option<Suspicion> = Some(Suspicion::Some);
const UNKNOWN: Option<Suspicion> = Some(Suspicion::UnknownSettings);

#[test]
fn what_functions_do_to_sessions_is_read_from_their_bodies() {
    let cluster = LocalCluster::start(Options::default()).expect("a cluster");
    let create = |(number, (language, body, _)): (usize, &(&str, &str, _))| {
        format!(
            "CREATE FUNCTION f{number}() RETURNS int LANGUAGE {language} AS $body${body}$body$;
            CREATE VIEW v{number} AS SELECT f{number}();"
        )
    };
    let objects: String = BODIES.iter().enumerate().map(create).collect();
    let objects = format!(
        "SET check_function_bodies = off;
        CREATE LANGUAGE other HANDLER plpgsql_call_handler; {objects}"
    );
    cluster.primary().sql("app", &objects).expect("objects");
    let database = Database::ask(cluster.primary().port(), "app");
    for (number, (_, body, expected)) in BODIES.iter().enumerate() {
        let call = format!("SELECT f{number}()");
        let through_a_view = format!("INSERT INTO t SELECT * FROM v{number}");
        for sql in [call, through_a_view] {
            let suspicion = database.judge(sql.as_bytes()).suspicion;
            assert_eq!(suspicion, *expected, "{body}: {sql}");
        }
    }
}

/// Takes some minutes, and what `scripts/setup --regress` gets; `scripts/oracle` runs it.
#[test]
#[ignore = "scripts/oracle runs it"]
fn the_suite_has_no_read_that_a_standby_refuses() {
    let only: Vec<String> = std::env::var("ORACLE_TESTS")
        .map(|names| names.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default();
    let out = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("../oracle");
    let report = suite::run(&only, &out);
    println!("{}", report.show());
    assert!(report.refused.is_empty(), "{:#?}", report.refused);
    assert!(report.share() >= 0.95, "{:.3}", report.share());
}
