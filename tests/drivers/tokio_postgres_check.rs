//! tokio-postgres: what it sees of the server at a port.
//!
//! Owns: the steps. Never: decides whether they are right; the transcript of a direct connection
//! does.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt, pin_mut};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinError;
use tokio::time::{sleep, timeout};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{
    AsyncMessage, Client, Config, Error, IsolationLevel, NoTls, Row, SimpleQueryMessage,
};

/// A section that takes longer hangs.
const SECTION_LIMIT: Duration = Duration::from_secs(120);

/// A value longer than this is told by its length and hash, in characters.
const LONG: usize = 600;

const MEGABYTES_5: usize = 5 << 20;

type Done = Result<(), Box<dyn StdError>>;

/// The lines of a run: a step, a tab, and what was seen.
pub fn transcript(port: u16) -> Vec<String> {
    let mut log = Log {
        port,
        section: "",
        lines: Vec::new(),
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(run(&mut log));
    log.lines
}

async fn run(log: &mut Log) {
    macro_rules! sections {
        ($($section:ident)*) => {$(
            log.section = stringify!($section);
            match timeout(SECTION_LIMIT, Box::pin($section(log))).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log.step("FAILED", format!("{error:?}")),
                Err(_) => log.step("FAILED", "it hangs"),
            }
        )*};
    }
    sections! {
        begin connecting types prepare pipeline transactions copy portals cancel notices settings
        own_writes errors
    }
    log.lines.push("END\t".to_owned());
}

struct Log {
    port: u16,
    section: &'static str,
    lines: Vec<String>,
}

impl Log {
    fn step(&mut self, step: &str, seen: impl Debug) {
        let mut seen = format!("{seen:?}");
        if seen.len() > LONG {
            let mut hasher = DefaultHasher::new();
            seen.hash(&mut hasher);
            seen = format!("{} characters, hash {:x}", seen.len(), hasher.finish());
        }
        self.lines.push(format!("{}/{step}\t{seen}", self.section));
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).dbname("app");
        config.user("app").password("app");
        config.connect_timeout(Duration::from_secs(30));
        config
    }

    async fn connect(&self) -> Result<(Client, UnboundedReceiver<AsyncMessage>), Error> {
        connect(&self.config()).await
    }
}

/// A client, and what its server says unasked.
async fn connect(config: &Config) -> Result<(Client, UnboundedReceiver<AsyncMessage>), Error> {
    let (client, mut connection) = config.connect(NoTls).await?;
    let (said, heard) = unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            // Most steps do not listen.
            let _ = said.send(message);
        }
    });
    Ok((client, heard))
}

/// A value as it is on the wire.
struct Raw(Option<Vec<u8>>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Raw, Box<dyn StdError + Sync + Send>> {
        Ok(Raw(Some(raw.to_vec())))
    }

    fn from_sql_null(_: &Type) -> Result<Raw, Box<dyn StdError + Sync + Send>> {
        Ok(Raw(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn told(rows: Vec<Row>) -> Vec<String> {
    let told = |row: Row| {
        let values = row.columns().iter().enumerate().map(|(i, column)| {
            let kind = column.type_().name();
            let value = row.get::<_, Raw>(i).0;
            let value = value.map(Bytes::from);
            format!("{} {kind} {value:?}", column.name())
        });
        values.collect::<Vec<_>>().join(", ")
    };
    rows.into_iter().map(told).collect()
}

/// The error in full, if it is the server's.
fn fields(error: Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{error:?}"),
        None => error.to_string(),
    }
}

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

async fn query(client: &Client, sql: &str, params: Params<'_>) -> Result<Vec<String>, String> {
    client.query(sql, params).await.map(told).map_err(fields)
}

async fn execute(client: &Client, sql: &str, params: Params<'_>) -> Result<u64, String> {
    client.execute(sql, params).await.map_err(fields)
}

/// A Query message, where the others prepare.
async fn simple(client: &Client, sql: &str) -> Result<Vec<String>, String> {
    let told = |message| match message {
        SimpleQueryMessage::Row(row) => {
            let values: Vec<_> = (0..row.len()).map(|i| row.get(i)).collect();
            format!("{values:?}")
        }
        SimpleQueryMessage::CommandComplete(rows) => format!("complete {rows}"),
        SimpleQueryMessage::RowDescription(columns) => {
            let names: Vec<_> = columns.iter().map(|c| c.name()).collect();
            format!("columns {names:?}")
        }
        _ => "other".to_owned(),
    };
    let messages = client.simple_query(sql).await.map_err(fields)?;
    Ok(messages.into_iter().map(told).collect())
}

async fn count(client: &Client, table: &str) -> Result<i64, Error> {
    let sql = format!("SELECT count(*) FROM {table}");
    Ok(client.query_one(&sql, &[]).await?.get(0))
}

async fn begin(log: &mut Log) -> Done {
    let (client, _) = log.connect().await?;
    client
        .batch_execute("DROP SCHEMA IF EXISTS public, tide CASCADE; CREATE SCHEMA public")
        .await?;
    Ok(())
}

async fn connecting(log: &mut Log) -> Done {
    let mut config = log.config();
    config.application_name("check");
    config.options("-c search_path=tide -c work_mem=5MB -c TimeZone=Asia/Tokyo");
    let (client, _) = connect(&config).await?;
    for name in ["application_name", "search_path", "work_mem", "TimeZone"] {
        log.step(name, simple(&client, &format!("SHOW {name}")).await);
    }
    log.step(
        "reset",
        simple(
            &client,
            "SET work_mem = '7MB'; RESET work_mem; SHOW work_mem",
        )
        .await,
    );
    type Change = fn(&mut Config) -> &mut Config;
    let refused: [(&str, Change); 4] = [
        ("wrong password", |config| config.password("wrong")),
        ("unknown user", |config| config.user("nobody")),
        ("unknown database", |config| config.dbname("nowhere")),
        ("unknown setting", |config| config.options("-c no_such=1")),
    ];
    for (name, change) in refused {
        let mut config = log.config();
        change(&mut config);
        let error = connect(&config).await.err().and_then(|error| {
            let error = error.as_db_error()?;
            Some([error.severity(), error.code().code(), error.message()].map(str::to_owned))
        });
        log.step(name, error);
    }
    Ok(())
}

async fn types(log: &mut Log) -> Done {
    let (client, _) = log.connect().await?;
    let long = "tide ".repeat(MEGABYTES_5 / 5);
    let bytes = vec![7u8; MEGABYTES_5];
    let values: [(&str, &(dyn ToSql + Sync)); 14] = [
        ("int2", &i16::MIN),
        ("int4", &i32::MAX),
        ("int8", &i64::MIN),
        ("float8", &0.1f64),
        ("bool", &true),
        ("text", &"snow ☃, quote ', back\\slash, new\nline"),
        ("text", &""),
        ("bytea", &&[0u8, 92, 255][..]),
        ("int4[]", &vec![Some(1), None, Some(3)]),
        ("text[]", &vec![Some("a\"b"), Some("c,d"), None, Some("")]),
        ("timestamptz", &std::time::SystemTime::UNIX_EPOCH),
        ("int4", &None::<i32>),
        ("text", &long),
        ("bytea", &bytes),
    ];
    for (kind, value) in values {
        log.step(
            kind,
            query(&client, &format!("SELECT $1::{kind} AS v"), &[value]).await,
        );
    }
    for sql in [
        "SELECT 12345678901234567890.0123456789, 'NaN'::numeric",
        "SELECT '{\"a\": [1]}'::json, '{\"b\": 1}'::jsonb, '10.0.0.1'::inet, int4range(1, 5)",
        "SELECT ROW(1, 'x'), ARRAY[[1, 2], [3, 4]], interval '1 day', date '2000-01-01'",
    ] {
        log.step(sql, query(&client, sql, &[]).await);
        log.step(sql, simple(&client, sql).await);
    }
    let own = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE spot AS (x int, m mood);
               CREATE DOMAIN small AS int CHECK (VALUE < 10);
               CREATE TABLE types (n serial, t text, b bytea, m mood, s spot)";
    client.batch_execute(own).await?;
    log.step(
        "own",
        query(
            &client,
            "SELECT 'ok'::mood, (ROW(1, 'sad')::spot).m, 5::small",
            &[],
        )
        .await,
    );
    let insert = "INSERT INTO types (t, b, m) VALUES ($1, $2, 'ok') RETURNING n, m";
    log.step("stored", query(&client, insert, &[&long, &bytes]).await);
    log.step(
        "read",
        query(&client, "SELECT n, t, b, m FROM types", &[]).await,
    );
    let rows = "SELECT i, md5(i::text) FROM generate_series(1, 50000) AS i";
    log.step("rows", query(&client, rows, &[]).await);
    log.step(
        "several",
        simple(&client, "SELECT 1 AS a; SELECT 2 AS b; VALUES (3)").await,
    );
    log.step("nothing", simple(&client, "").await);
    log.step("nothing prepared", query(&client, "", &[]).await);
    Ok(())
}

async fn prepare(log: &mut Log) -> Done {
    let (client, _) = log.connect().await?;
    client
        .batch_execute("CREATE TABLE prepare (n int PRIMARY KEY, v text)")
        .await?;
    let insert = client
        .prepare("INSERT INTO prepare VALUES ($1, $2) RETURNING n")
        .await?;
    let read = client.prepare("SELECT v FROM prepare WHERE n = $1").await?;
    log.step(
        "described",
        (read.params().to_vec(), insert.params().to_vec()),
    );
    let mut seen = Vec::new();
    for n in 0..30 {
        seen.push(told(client.query(&insert, &[&n, &format!("v{n}")]).await?));
        seen.push(told(client.query(&read, &[&n]).await?));
    }
    log.step("interleaved", seen);
    let mut seen = Vec::new();
    for n in 0..100 {
        seen.push(told(client.query(&read, &[&(n % 30)]).await?));
    }
    log.step("read", seen);
    let again = client.query(&insert, &[&5, &"again"]).await;
    log.step("unique", again.map(told).map_err(fields));
    let typed = client
        .prepare_typed("SELECT $1, $2", &[Type::INT8, Type::TEXT])
        .await?;
    log.step("typed", told(client.query(&typed, &[&5i64, &"x"]).await?));
    for n in 0..150 {
        // Dropped at the end of each turn, which closes it.
        let statement = client.prepare(&format!("SELECT {n} + $1::int")).await?;
        log.step("many", told(client.query(&statement, &[&n]).await?));
    }
    client
        .batch_execute("ALTER TABLE prepare ADD w int")
        .await?;
    log.step(
        "altered",
        client.query(&read, &[&1]).await.map(told).map_err(fields),
    );
    let all = client
        .prepare("SELECT * FROM prepare ORDER BY n LIMIT 1")
        .await?;
    log.step(
        "before",
        client.query(&all, &[]).await.map(told).map_err(fields),
    );
    client.batch_execute("ALTER TABLE prepare DROP w").await?;
    log.step(
        "after",
        client.query(&all, &[]).await.map(told).map_err(fields),
    );
    client.batch_execute("DEALLOCATE ALL").await?;
    // The message names the statement, by a number that the driver counts on from run to run.
    let gone = client.query(&read, &[&1]).await.err();
    let code = gone.and_then(|error| error.code().cloned());
    log.step("deallocated", code);
    log.step(
        "syntax",
        client.prepare("SELECT FROM WHERE").await.err().map(fields),
    );
    log.step("usable", count(&client, "prepare").await?);
    Ok(())
}

/// Requests that are made while others are under way share the connection.
async fn pipeline(log: &mut Log) -> Done {
    let (client, _) = log.connect().await?;
    client
        .batch_execute("CREATE TABLE pipeline (n int PRIMARY KEY)")
        .await?;
    let insert = client.prepare("INSERT INTO pipeline VALUES ($1)").await?;
    let read = client
        .prepare("SELECT count(*) FROM pipeline WHERE n <= $1")
        .await?;
    let client = Arc::new(client);
    let steps = (0..50).map(|n| {
        let (client, insert, read) = (client.clone(), insert.clone(), read.clone());
        async move {
            let n: [&(dyn ToSql + Sync); 1] = [&n];
            let (wrote, seen) = tokio::join!(client.execute(&insert, &n), client.query(&read, &n));
            (wrote.map_err(fields), seen.map(told).map_err(fields))
        }
    });
    log.step("own writes", all(steps).await?);
    let reads = (0..50).map(|n| {
        let client = client.clone();
        async move { query(&client, "SELECT $1::int * 2", &[&n]).await }
    });
    log.step("reads", all(reads).await?);
    let (good, bad, after) = tokio::join!(
        query(&client, "SELECT 1", &[]),
        query(&client, "SELECT 1 / $1::int", &[&0]),
        query(&client, "SELECT 2", &[]),
    );
    log.step("an error between", (good, bad, after));
    log.step("count", count(&client, "pipeline").await?);
    Ok(())
}

/// Begins all of them, in order, before any ends.
async fn all<F>(futures: impl Iterator<Item = F>) -> Result<Vec<F::Output>, JoinError>
where
    F: Future<Output: Send> + Send + 'static,
{
    let begun: Vec<_> = futures.map(tokio::spawn).collect();
    let mut ended = Vec::new();
    for future in begun {
        ended.push(future.await?);
    }
    Ok(ended)
}

async fn transactions(log: &mut Log) -> Done {
    const INSERT: &str = "INSERT INTO transactions VALUES ($1)";
    let (mut client, _) = log.connect().await?;
    client
        .batch_execute("CREATE TABLE transactions (n int PRIMARY KEY)")
        .await?;
    let transaction = client.transaction().await?;
    transaction.execute(INSERT, &[&1]).await?;
    log.step(
        "inside",
        told(transaction.query("SELECT * FROM transactions", &[]).await?),
    );
    transaction.commit().await?;
    log.step("committed", count(&client, "transactions").await?);
    let transaction = client.transaction().await?;
    transaction.execute(INSERT, &[&2]).await?;
    drop(transaction);
    log.step("dropped", count(&client, "transactions").await?);
    let mut transaction = client.transaction().await?;
    transaction.execute(INSERT, &[&3]).await?;
    let inner = transaction.transaction().await?;
    log.step("error", inner.execute(INSERT, &[&1]).await.map_err(fields));
    // A text of its own: of one that its server has prepared, another message is the first to fail.
    log.step(
        "failed",
        inner
            .query("SELECT 1 AS failed", &[])
            .await
            .map(told)
            .map_err(fields),
    );
    inner.rollback().await?;
    let inner = transaction.savepoint("named").await?;
    inner.execute(INSERT, &[&4]).await?;
    inner.commit().await?;
    transaction.commit().await?;
    log.step(
        "savepoints",
        query(&client, "SELECT n FROM transactions ORDER BY n", &[]).await,
    );
    let levels = [IsolationLevel::Serializable, IsolationLevel::RepeatableRead];
    for level in levels {
        let builder = client
            .build_transaction()
            .isolation_level(level)
            .read_only(true);
        let transaction = builder.start().await?;
        let show = "SELECT current_setting('transaction_isolation'), count(*) FROM transactions";
        log.step("level", told(transaction.query(show, &[]).await?));
        log.step(
            "write",
            transaction.execute(INSERT, &[&9]).await.map_err(fields),
        );
        transaction.rollback().await?;
    }
    let text =
        "BEGIN; INSERT INTO transactions VALUES (10); COMMIT; SELECT count(*) FROM transactions";
    log.step("in one text", simple(&client, text).await);
    let text = "INSERT INTO transactions VALUES (11); SELECT 1/0";
    log.step("implicit", simple(&client, text).await);
    log.step("afterwards", count(&client, "transactions").await?);
    Ok(())
}

async fn copy(log: &mut Log) -> Done {
    let (client, _) = log.connect().await?;
    client
        .batch_execute("CREATE TABLE copy (n int, v text)")
        .await?;
    let sink = client.copy_in("COPY copy FROM STDIN").await?;
    pin_mut!(sink);
    for n in 0..2000 {
        sink.send(Bytes::from(format!("{n}\trow {n}\n"))).await?;
    }
    log.step("in", sink.finish().await.map_err(fields));
    let sink = client
        .copy_in("COPY copy FROM STDIN (FORMAT binary)")
        .await?;
    let writer = BinaryCopyInWriter::new(sink, &[Type::INT4, Type::TEXT]);
    pin_mut!(writer);
    let long = "x".repeat(MEGABYTES_5 / 10);
    for n in 3000..3010 {
        writer.as_mut().write(&[&n, &long]).await?;
    }
    log.step("in, binary", writer.finish().await.map_err(fields));
    log.step("count", count(&client, "copy").await?);
    for sql in [
        "COPY (SELECT * FROM copy ORDER BY n) TO STDOUT",
        "COPY copy TO STDOUT (FORMAT binary)",
        "COPY (SELECT 1 / (3 - n) FROM copy WHERE n < 9 ORDER BY n) TO STDOUT",
        "COPY no_such_table TO STDOUT",
    ] {
        let out = async { client.copy_out(sql).await?.try_collect::<Vec<_>>().await };
        log.step(sql, out.await.map(|chunks| chunks.concat()).map_err(fields));
    }
    let sink = client.copy_in("COPY copy FROM STDIN").await?;
    pin_mut!(sink);
    sink.send(Bytes::from_static(b"1\ta\nx\tb\n")).await?;
    log.step("bad data", sink.finish().await.map_err(fields));
    {
        let sink = client.copy_in::<_, Bytes>("COPY copy FROM STDIN").await?;
        pin_mut!(sink);
        sink.send(Bytes::from_static(b"77\tgiven up\n")).await?;
    }
    log.step("given up", count(&client, "copy").await?);
    // The next request is on its way before the failed COPY's ReadyForQuery has come.
    for _ in 0..50 {
        let sink = client.copy_in("COPY copy FROM STDIN").await?;
        pin_mut!(sink);
        sink.send(Bytes::from_static(b"1\ta\nx\tb\n")).await?;
        let code = sink
            .finish()
            .await
            .err()
            .and_then(|error| error.code().cloned());
        log.step("bad data, and on", (code, count(&client, "copy").await?));
    }
    Ok(())
}

async fn portals(log: &mut Log) -> Done {
    let (mut client, _) = log.connect().await?;
    client
        .batch_execute("CREATE TABLE portals AS SELECT generate_series(1, 500) AS n")
        .await?;
    let transaction = client.transaction().await?;
    let sql = "SELECT n FROM portals WHERE n > $1 ORDER BY n";
    let one = transaction.bind(sql, &[&5]).await?;
    let two = transaction.bind(sql, &[&400]).await?;
    for portal in [&one, &two, &one, &one, &two] {
        log.step("page", told(transaction.query_portal(portal, 70).await?));
    }
    log.step("rest", told(transaction.query_portal(&one, 0).await?));
    let failing = transaction
        .bind("SELECT 1 / (5 - n) FROM portals ORDER BY n", &[])
        .await?;
    for _ in 0..3 {
        let page = transaction.query_portal(&failing, 3).await;
        log.step("error", page.map(told).map_err(fields));
    }
    transaction.rollback().await?;
    log.step("afterwards", count(&client, "portals").await?);
    Ok(())
}

async fn cancel(log: &mut Log) -> Done {
    let (client, _) = log.connect().await?;
    client.batch_execute("CREATE TABLE cancel (n int)").await?;
    for sql in [
        "SELECT pg_sleep(600)",
        "INSERT INTO cancel SELECT 1 FROM pg_sleep(600)",
    ] {
        log.step(
            "prepared",
            cancelled(&client, query(&client, sql, &[])).await?,
        );
        log.step("simple", cancelled(&client, simple(&client, sql)).await?);
        log.step("usable", count(&client, "cancel").await?);
    }
    client.batch_execute("BEGIN").await?;
    let sleep = query(&client, "SELECT pg_sleep(600)", &[]);
    log.step("in a transaction", cancelled(&client, sleep).await?);
    log.step("failed", simple(&client, "SELECT 1").await);
    log.step("rolled back", simple(&client, "ROLLBACK").await);
    Ok(())
}

/// Runs a query that nothing but a cancel request ends. It is sent again if it came too early, but
/// late enough not to reach the query after.
async fn cancelled<T>(client: &Client, query: impl Future<Output = T>) -> Result<T, Error> {
    let token = client.cancel_token();
    let mut patience = Duration::from_millis(300);
    pin_mut!(query);
    loop {
        tokio::select! {
            outcome = &mut query => return Ok(outcome),
            () = sleep(patience) => token.cancel_query(NoTls).await?,
        }
        patience = Duration::from_secs(5);
    }
}

async fn notices(log: &mut Log) -> Done {
    let (client, mut heard) = log.connect().await?;
    let (other, _) = log.connect().await?;
    let raise = "DO $$ BEGIN RAISE NOTICE 'one' USING DETAIL = 'd', HINT = 'h'; RAISE WARNING 'two'; END $$";
    client.batch_execute(raise).await?;
    client
        .batch_execute("DROP TABLE IF EXISTS never_was")
        .await?;
    client
        .batch_execute("LISTEN tide; NOTIFY tide, 'own'")
        .await?;
    query(&other, "SELECT pg_notify('tide', 'other')", &[]).await?;
    for _ in 0..5 {
        match heard.recv().await {
            Some(AsyncMessage::Notice(notice)) => log.step("notice", notice),
            Some(AsyncMessage::Notification(n)) => {
                log.step("notification", (n.channel(), n.payload()));
            }
            other => log.step("other", other.is_some()),
        }
    }
    log.step(
        "read while listening",
        query(&client, "SELECT 1", &[]).await,
    );
    Ok(())
}

async fn settings(log: &mut Log) -> Done {
    const PLACE: &str = "SELECT name FROM place";
    let (client, _) = log.connect().await?;
    let set_up = "CREATE SCHEMA tide; CREATE TABLE tide.place AS SELECT 'tide' AS name;
                  CREATE TABLE public.place AS SELECT 'public' AS name";
    client.batch_execute(set_up).await?;
    client
        .batch_execute("SET search_path TO tide, public")
        .await?;
    let read = client.prepare(PLACE).await?;
    for _ in 0..30 {
        log.step("search_path", told(client.query(&read, &[]).await?));
    }
    let changes = [
        "SET TimeZone = 'Asia/Tokyo'",
        "SET application_name = 'renamed'",
        "BEGIN; SET LOCAL search_path TO public; COMMIT",
        "BEGIN; SET search_path TO public; ROLLBACK",
        "SELECT set_config('work_mem', '3MB', false)",
        "SET search_path TO public",
        "RESET ALL",
        "SET DateStyle = 'German'",
        "DISCARD ALL",
    ];
    let seen = "SELECT name, current_setting('TimeZone'), current_setting('work_mem'),
                '2024-01-01 00:00+00'::timestamptz::text FROM place";
    for change in changes {
        client.batch_execute(change).await?;
        for _ in 0..5 {
            log.step(change, query(&client, seen, &[]).await);
        }
    }
    Ok(())
}

async fn own_writes(log: &mut Log) -> Done {
    let (client, _) = log.connect().await?;
    client
        .batch_execute("CREATE TABLE own_writes (n int)")
        .await?;
    for n in 0..100 {
        execute(&client, "INSERT INTO own_writes VALUES ($1)", &[&n]).await?;
        log.step("in order", count(&client, "own_writes").await?);
    }
    for _ in 0..100 {
        log.step("many reads", count(&client, "own_writes").await?);
    }
    client
        .batch_execute("CREATE TEMP TABLE scratch (n int)")
        .await?;
    for n in 0..10 {
        execute(&client, "INSERT INTO scratch VALUES ($1)", &[&n]).await?;
        log.step("temporary", count(&client, "scratch").await?);
    }
    Ok(())
}

async fn errors(log: &mut Log) -> Done {
    let (client, _) = log.connect().await?;
    let table = "CREATE TABLE errors (n int PRIMARY KEY, v varchar(3) NOT NULL)";
    client.batch_execute(table).await?;
    client
        .batch_execute("INSERT INTO errors VALUES (1, 'a')")
        .await?;
    for sql in [
        "SELECT 1/0",
        "INSERT INTO errors VALUES (1, 'b')",
        "INSERT INTO errors VALUES (2, NULL)",
        "INSERT INTO errors VALUES (3, 'abcd')",
        "SELEC 1",
        "SELECT ☃☃, FROM errors WHERE (",
        "SELECT * FROM no_such_table",
        "SELECT no_such_function(1)",
        "SELECT 'x'::int",
        "SELECT * FROM pg_authid",
    ] {
        // Simple and prepared.
        log.step(sql, simple(&client, sql).await);
        log.step(sql, query(&client, sql, &[]).await);
    }
    log.step("usable", count(&client, "errors").await?);
    Ok(())
}
