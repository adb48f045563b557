//! PostgreSQL's regression suite, statement by statement, on a primary and its standby.
//!
//! Each statement runs on the primary. What may be a read then runs on the standby as well, once that
//! has replayed all there is. In an explicit transaction the standby cannot follow: what is in one is
//! counted, and not tried.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tidegate::demo::{LocalCluster, Options};
use tidegate::sql::{Need, Verb};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};

use super::database::Database;
use super::script::{self, Item};

const SUITE: &str = ".tools/regress/current";
const DATABASE: &str = "regression";

/// Such statements say nothing of what a standby can do, and end other processes.
const NOT_TRIED: [&str; 4] = [
    "pg_promote",
    "pg_terminate_backend",
    "pg_cancel_backend",
    "pg_reload_conf",
];

/// What has come of the suite so far.
#[derive(Default)]
pub struct Report {
    pub statements: usize,
    pub reads: usize,
    pub in_transactions: usize,
    /// Temporary tables and the like that were made permanent, for the standby to have them.
    pub made_permanent: usize,
    /// Reads that the standby has refused for being one.
    pub refused: Vec<String>,
    /// Reads with another outcome than on the primary.
    pub differing: Vec<String>,
    /// Plain queries that a standby can run, and those of them that are reads.
    pub plain: usize,
    pub plain_reads: usize,
    /// The others, by the reason.
    pub kept: BTreeMap<&'static str, Vec<String>>,
    /// Plain queries that the standby has refused for being one, and so are no reads rightly.
    pub plain_refused: usize,
}

impl Report {
    pub fn show(&self) -> String {
        let mut text = format!(
            "{} statements, {} queries in explicit transactions and not tried on the standby, \
             {} temporary objects made permanent\n\
             {} reads tried on the standby: {} refused, {} with another outcome than on the primary\n\
             {} plain queries that the standby refused, none of them a read\n\
             {} plain queries that the standby can run, {} of them reads: {:.1} %\n",
            self.statements,
            self.in_transactions,
            self.made_permanent,
            self.reads,
            self.refused.len(),
            self.differing.len(),
            self.plain_refused,
            self.plain,
            self.plain_reads,
            100.0 * self.plain_reads as f64 / self.plain.max(1) as f64,
        );
        for (why, texts) in &self.kept {
            writeln!(text, "  kept on the primary, {why}: {}", texts.len()).expect("a string");
        }
        let trusted = ["not_parsed", "unknown_function", "too_complex"];
        let unproven: usize = trusted
            .iter()
            .filter_map(|w| self.kept.get(w))
            .map(Vec::len)
            .sum();
        let safe = self.plain_reads + unproven;
        writeln!(
            text,
            "of those that call nothing VOLATILE and read nothing of the server's own: {:.1} %",
            100.0 * self.plain_reads as f64 / safe.max(1) as f64
        )
        .expect("a string");
        text
    }

    /// The share of plain queries that nothing speaks against and that are reads.
    pub fn share(&self) -> f64 {
        let unproven = ["not_parsed", "unknown_function", "too_complex"];
        let unproven: usize = unproven
            .iter()
            .filter_map(|w| self.kept.get(w))
            .map(Vec::len)
            .sum();
        self.plain_reads as f64 / (self.plain_reads + unproven).max(1) as f64
    }
}

/// Runs these tests of the suite, or all of its schedule.
pub fn run(only: &[String], out: &Path) -> Report {
    let cluster = LocalCluster::start(Options {
        replicas: 1,
        ..Options::default()
    })
    .expect("a cluster");
    let work = cluster.directory().join("suite");
    let copied = Command::new("cp").arg("-rL").arg(SUITE).arg(&work).status();
    assert!(copied.expect("cp").success());
    let opened = Command::new("chmod")
        .args(["-R", "a+rwX"])
        .arg(&work)
        .status();
    assert!(opened.expect("chmod").success());
    std::fs::create_dir_all(work.join("results")).expect("results");
    cluster
        .primary()
        .sql("postgres", "CREATE DATABASE regression TEMPLATE template0")
        .expect("database");
    cluster
        .primary()
        .sql(
            "postgres",
            "ALTER DATABASE regression SET lc_messages TO 'C'; ALTER DATABASE regression SET lc_monetary TO 'C';
             ALTER DATABASE regression SET bytea_output TO 'hex'",
        )
        .expect("settings");
    let path = |name: &str| work.join(name).to_string_lossy().into_owned();
    let environment = HashMap::from([
        ("PG_ABS_SRCDIR", path("input")),
        ("PG_ABS_BUILDDIR", path("")),
        ("PG_LIBDIR", path("lib")),
        ("PG_DLSUFFIX", ".so".to_owned()),
    ]);
    let mut suite = Suite::new(&cluster);
    for name in schedule(&work, only) {
        let file = work.join(format!("input/sql/{name}.sql"));
        let Ok(text) = std::fs::read(&file) else {
            continue;
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        let before = (suite.report.refused.len(), suite.report.plain);
        suite.file(&name, script::read(&text, &environment));
        eprintln!(
            "{name}: {} plain queries, {} reads refused",
            suite.report.plain - before.1,
            suite.report.refused.len() - before.0
        );
    }
    suite.write(out);
    suite.report
}

fn schedule(work: &Path, only: &[String]) -> Vec<String> {
    let schedule = std::fs::read_to_string(work.join("input/parallel_schedule")).expect("schedule");
    let tests = schedule
        .lines()
        .filter_map(|line| line.strip_prefix("test:"));
    let tests: Vec<String> = tests
        .flat_map(|line| line.split_whitespace().map(str::to_owned))
        .collect();
    if only.is_empty() {
        return tests;
    }
    // Others build on what the first one makes.
    let wanted = |name: &String| name == "test_setup" || only.contains(name);
    tests.into_iter().filter(wanted).collect()
}

struct Suite {
    runtime: Runtime,
    ports: [u16; 2],
    /// Of the primary and the standby: asked for positions.
    control: [Client; 2],
    session: Session,
    database: Option<Database>,
    /// The primary has done something that the standby may not have replayed.
    dirty: bool,
    report: Report,
}

/// The script's connections.
struct Session {
    clients: [Client; 2],
    in_transaction: bool,
    /// What would have gone with the session.
    left: Vec<String>,
}

impl Suite {
    fn new(cluster: &LocalCluster) -> Suite {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let ports = [cluster.node(0).port(), cluster.node(1).port()];
        let control = ports
            .map(|port| connect(&runtime, port, "postgres", "postgres").expect("a connection"));
        let clients = ports
            .map(|port| connect(&runtime, port, "postgres", "postgres").expect("a connection"));
        let session = Session {
            clients,
            in_transaction: false,
            left: Vec::new(),
        };
        Suite {
            runtime,
            ports,
            control,
            session,
            database: None,
            dirty: true,
            report: Report::default(),
        }
    }

    fn open(&mut self, database: &str, user: &str) {
        let left = std::mem::take(&mut self.session.left);
        if !left.is_empty() {
            let _ = self.on(0, "ROLLBACK");
            let _ = self.on(0, "RESET SESSION AUTHORIZATION");
            for dropped in left {
                let _ = self.on(0, &format!("DROP {dropped} CASCADE"));
            }
            self.dirty = true;
            self.database = None;
        }
        self.catch_up();
        let clients = self
            .ports
            .map(|port| connect(&self.runtime, port, database, user));
        // A script may try what cannot be.
        if let [Some(primary), Some(standby)] = clients {
            self.session = Session {
                clients: [primary, standby],
                in_transaction: false,
                left: Vec::new(),
            };
        }
    }

    fn file(&mut self, name: &str, items: Vec<Item>) {
        self.dirty = true;
        self.open(DATABASE, "postgres");
        for item in items {
            match item {
                Item::Connect(database, user) => {
                    let database = database.unwrap_or(DATABASE.to_owned());
                    self.open(&database, user.as_deref().unwrap_or("postgres"));
                }
                Item::Copy(sql, data) => {
                    self.report.statements += 1;
                    self.dirty = true;
                    self.copy(&sql, data);
                }
                Item::Statement(sql) => self.statement(name, &sql),
            }
            if self.session.clients[0].is_closed() {
                self.dirty = true;
                self.open(DATABASE, "postgres");
            }
        }
        let _ = self.on(0, "ROLLBACK");
    }

    fn statement(&mut self, file: &str, sql: &str) {
        self.report.statements += 1;
        let made_permanent = permanent(sql);
        let sql = match &made_permanent {
            Some((sql, name)) => {
                self.session.left.push(name.clone());
                self.report.made_permanent += 1;
                sql
            }
            None => sql,
        };
        let class = tidegate::sql::cache::Classifier::new(Default::default(), 0)
            .classify(sql.as_bytes(), true);
        let verbs: Vec<Verb> = class.statements.iter().map(|s| s.verb).collect();
        let is_plain = is_plain(sql) && verbs.len() == 1;
        let is_candidate = is_plain || class.asks_catalog;
        let tried = !NOT_TRIED.iter().any(|name| sql.contains(name));
        if self.session.in_transaction {
            self.report.in_transactions += usize::from(is_candidate);
        }
        let tried = tried && is_candidate && !self.session.in_transaction;
        let needs = tried.then(|| {
            let port = self.ports[0];
            let database = self
                .database
                .get_or_insert_with(|| Database::ask(port, DATABASE));
            database.needs(sql.as_bytes())
        });
        let primary = self.on(0, sql);
        let is_read = needs.is_some_and(|(need, _)| need == Need::Read);
        if verbs.contains(&Verb::Setting) {
            // The standby's session is to be like it.
            let _ = self.on(1, sql);
        }
        for verb in &verbs {
            match verb {
                Verb::Begin { .. } => self.session.in_transaction = true,
                Verb::Commit | Verb::Rollback | Verb::PrepareTransaction => {
                    // AND CHAIN goes on.
                    let chains = sql.to_ascii_lowercase().contains("chain");
                    self.session.in_transaction &=
                        chains && !sql.to_ascii_lowercase().contains("no chain");
                }
                _ => {}
            }
        }
        if let Some((need, why)) = needs {
            self.catch_up();
            let standby = self.on(1, sql);
            let refused = matches!(
                standby.as_deref(),
                Some("25006" | "0A000" | "55000" | "XX000")
            ) && standby != primary;
            let text = || format!("{file}: {} / {}: {sql}", shown(&primary), shown(&standby));
            if need == Need::Read {
                self.report.reads += 1;
                if refused {
                    self.report.refused.push(text());
                } else if standby != primary {
                    self.report.differing.push(text());
                }
            }
            if is_plain && refused {
                self.report.plain_refused += usize::from(need != Need::Read);
            } else if is_plain && standby.is_none() {
                self.report.plain += 1;
                if need == Need::Read {
                    self.report.plain_reads += 1;
                } else {
                    let decisive = self
                        .database
                        .as_ref()
                        .and_then(|database| database.decisive(sql.as_bytes()));
                    let text = format!("{} <- {}", text(), decisive.unwrap_or_default());
                    self.report.kept.entry(why.name()).or_default().push(text);
                }
            }
        }
        if !is_read {
            self.dirty = true;
            let is_harmless = |verb: &Verb| {
                matches!(
                    verb,
                    Verb::Setting | Verb::SettingLocal | Verb::SetTransaction(_) | Verb::Show
                )
            };
            let defines = !is_plain && !verbs.iter().all(is_harmless);
            if defines {
                self.database = None;
            }
        }
    }

    /// Waits until the standby has all that the primary has.
    fn catch_up(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        // Makes it flush what has been inserted.
        let flush = "SELECT pg_logical_emit_message(true, 'oracle', '')";
        let position = "SELECT pg_current_wal_insert_lsn()";
        self.runtime.block_on(async {
            self.control[0].simple_query(flush).await.expect("flush");
            let row = self.control[0]
                .query_one(position, &[])
                .await
                .expect("position");
            let lsn: tokio_postgres::types::PgLsn = row.get(0);
            let lsn = lsn.to_string();
            let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn - 64");
            loop {
                let row = self.control[1]
                    .query_one(&reached, &[])
                    .await
                    .expect("position");
                if row.get(0) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }

    /// The SQLSTATE that node `index` answers with, if it is an error.
    fn on(&mut self, index: usize, sql: &str) -> Option<String> {
        let client = &self.session.clients[index];
        // The extended protocol has COPY as well, whose data is of no interest here.
        let copies = sql.trim_start().to_ascii_lowercase().starts_with("copy");
        let answer = self.runtime.block_on(async {
            match copies {
                false => client.simple_query(sql).await.map(drop),
                true => match client.copy_out(sql).await {
                    Ok(stream) => {
                        let mut stream = std::pin::pin!(stream);
                        use futures_util::StreamExt;
                        while let Some(part) = stream.next().await {
                            part?;
                        }
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
            }
        });
        answer.err().map(|error| match error.code() {
            Some(code) => code.code().to_owned(),
            None => "lost".to_owned(),
        })
    }

    fn copy(&mut self, sql: &str, data: String) {
        let client = &self.session.clients[0];
        let _ = self.runtime.block_on(async {
            let sink = client.copy_in::<_, Bytes>(sql).await?;
            let mut sink = std::pin::pin!(sink);
            sink.send(Bytes::from(data)).await?;
            sink.finish().await
        });
    }

    fn write(&self, out: &Path) {
        std::fs::create_dir_all(out).expect("directory");
        let file = |name: &str| -> PathBuf { out.join(format!("{name}.txt")) };
        let lists = [
            ("refused", &self.report.refused),
            ("differing", &self.report.differing),
        ];
        let kept = self.report.kept.iter().map(|(why, texts)| (*why, texts));
        for (name, texts) in lists.into_iter().chain(kept) {
            std::fs::write(file(name), texts.join("\n----\n")).expect("written");
        }
    }
}

fn shown(sqlstate: &Option<String>) -> &str {
    sqlstate.as_deref().unwrap_or("ok")
}

/// A definition of something temporary as one of the like that is not, and what to drop then.
fn permanent(sql: &str) -> Option<(String, String)> {
    use tidegate::sql::lexer::{Kind, Lexer};
    let mut lexer = Lexer::new(sql.as_bytes(), true);
    let mut next = || lexer.solid();
    let is = |token: &tidegate::sql::lexer::Token, words: &[&str]| {
        words.iter().any(|word| token.is(sql.as_bytes(), word))
    };
    let mut token = next()
        .filter(|token| is(token, &["create"]))
        .and_then(|_| next())?;
    while is(&token, &["or", "replace", "global", "local"]) {
        token = next()?;
    }
    let temporary = Some(token).filter(|token| is(token, &["temp", "temporary"]))?;
    let mut token = next()?;
    if is(&token, &["recursive"]) {
        token = next()?;
    }
    let kind = Some(token).filter(|token| is(token, &["table", "view", "sequence"]))?;
    let mut name = next()?;
    while is(&name, &["if", "not", "exists"]) {
        name = next()?;
    }
    let names = matches!(name.kind, Kind::Word | Kind::QuotedWord);
    if !names || sql.to_ascii_lowercase().contains("on commit") {
        return None;
    }
    let text = |token: &tidegate::sql::lexer::Token| &sql[token.start..token.end];
    let dropped = format!("{} IF EXISTS {}", text(&kind), text(&name));
    let made = format!("{}{}", &sql[..temporary.start], &sql[temporary.end..]);
    Some((made, dropped))
}

/// Whether it is written like a query.
fn is_plain(sql: &str) -> bool {
    use tidegate::sql::lexer::{Kind, Lexer};
    let mut lexer = Lexer::new(sql.as_bytes(), true);
    let mut next = lexer.solid();
    while next.is_some_and(|token| token.kind == Kind::Open) {
        next = lexer.solid();
    }
    let words = ["select", "values", "table", "with"];
    next.is_some_and(|token| words.iter().any(|word| token.is(sql.as_bytes(), word)))
}

fn connect(runtime: &Runtime, port: u16, database: &str, user: &str) -> Option<Client> {
    let url = format!(
        "host=127.0.0.1 port={port} user={user} password=postgres dbname={database} \
         options='-c statement_timeout=20s -c client_min_messages=error -c datestyle=postgres,mdy \
         -c timezone=PST8PDT -c intervalstyle=postgres_verbose'"
    );
    let connected = runtime.block_on(async {
        match tokio_postgres::connect(&url, NoTls).await {
            Ok(connected) => Ok(connected),
            // A role of the suite's own, which has no password here.
            Err(_) => {
                let url = url.replacen(&format!("user={user}"), "user=postgres", 1);
                tokio_postgres::connect(&url, NoTls).await
            }
        }
    });
    let (client, connection) = connected.ok()?;
    runtime.spawn(connection);
    Some(client)
}
