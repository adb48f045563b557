//! A load generator that costs far less CPU than pgbench, for measuring on few cores: one thread, and
//! two system calls for each statement.
//!
//! Owns: what clients say, when, and how long the answers take. Never: looks at the proxy's process; who
//! starts this does, between the lines that it prints.
//!
//! `cargo run --release --example load -- run --port 6432 --clients 16 --seconds 3`
//!
//! Every mode connects first, prints `ready` and waits for a line on its standard input; then it does
//! its work, prints one line of JSON, and keeps its connections until its input ends.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, BytesMut};
use clap::{Parser, Subcommand, ValueEnum};
use tidegate::auth::Credential;
use tidegate::cluster::connect::{self, Connection, Target};
use tidegate::config::Secret;
use tidegate::net::stream::Stream;
use tidegate::wire::encode;
use tidegate::wire::frame::{Header, body, header};
use tidegate::wire::message::error_field;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How many log in at a time.
const LOGINS_MAX: usize = 32;
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Room for what a read brings: of a large result, much at a time.
const READ_BYTES: usize = 256 << 10;
const READ_BYTES_SMALL: usize = 4 << 10;

/// A CopyData's rows.
const COPY_BYTES: usize = 64 << 10;
const COPY_ROW_BYTES: usize = 1000;

/// Arrivals that are nearer together than this are released together.
const PULSE: Duration = Duration::from_micros(50);

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
struct Arguments {
    #[arg(long, global = true, default_value = "127.0.0.1")]
    host: String,
    #[arg(long, global = true, default_value_t = 6432)]
    port: u16,
    /// Of the user and of the database.
    #[arg(long, global = true, default_value = "app")]
    name: String,
    #[arg(long, global = true, default_value = "app")]
    password: String,
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// Runs a statement again and again.
    Run(Run),
    /// Runs a statement once on each of many connections, and leaves them idle.
    Idle {
        #[arg(long)]
        clients: usize,
        #[arg(long, default_value = "SELECT 1")]
        sql: String,
    },
    /// Reads the whole answer to one Query, and throws it away.
    Stream {
        #[arg(long)]
        sql: String,
    },
    /// Sends so many bytes to a COPY … FROM STDIN, in rows of 1,000.
    CopyIn {
        #[arg(long)]
        sql: String,
        #[arg(long)]
        bytes: u64,
    },
}

#[derive(clap::Args)]
struct Run {
    #[arg(long, default_value_t = 16)]
    clients: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// For how long to run, as fast as it goes, before being ready.
    #[arg(long, default_value_t = 0.0)]
    warm_up: f64,
    /// Statements of each client, in place of a time.
    #[arg(long)]
    transactions: Option<u64>,
    /// Statements per second of all clients, at random times; otherwise as fast as they are answered.
    #[arg(long, conflicts_with = "transactions")]
    rate: Option<f64>,
    #[arg(long, value_enum, default_value_t = Protocol::Simple)]
    protocol: Protocol,
    /// `{}` is a number that is drawn each time.
    #[arg(
        long,
        default_value = "SELECT abalance FROM pgbench_accounts WHERE aid = {}"
    )]
    sql: String,
    /// The largest number to draw.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Simple,
    Prepared,
}

fn main() -> ExitCode {
    let arguments = Arc::new(Arguments::parse());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime.map_err(Into::into).and_then(|runtime| {
        runtime.block_on(async {
            match &arguments.mode {
                Mode::Run(run) => self::run(&arguments, run).await,
                Mode::Idle { clients, sql } => idle(&arguments, *clients, sql).await,
                Mode::Stream { sql } => stream(&arguments, sql).await,
                Mode::CopyIn { sql, bytes } => copy_in(&arguments, sql, *bytes).await,
            }
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Nobody has to be served while this waits.
fn ready() -> io::Result<()> {
    writeln!(io::stdout(), "ready")?;
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// The connections are the caller's until this returns.
fn report(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// One logged-in client.
struct Client {
    stream: Stream,
    buf: BytesMut,
    out: BytesMut,
    room: usize,
}

impl Client {
    async fn open(arguments: &Arguments) -> Result<Client, Failure> {
        let Connection { stream, .. } = connect::connect(
            &Target {
                host: &arguments.host,
                port: arguments.port,
                tls: Arc::default(),
                database: &arguments.name,
                user: &arguments.name,
                credential: Some(Credential::Password(Secret::new(&*arguments.password))),
                application_name: "load",
            },
            LOGIN_TIMEOUT,
        )
        .await?;
        Ok(Client {
            stream,
            buf: BytesMut::new(),
            out: BytesMut::new(),
            room: READ_BYTES_SMALL,
        })
    }

    async fn send(&mut self) -> io::Result<()> {
        let sent = self.stream.write_all(&self.out).await;
        self.out.clear();
        sent
    }

    /// Reads up to a message of this type; how many bytes that was.
    async fn read_to(&mut self, last: u8) -> Result<u64, Failure> {
        let mut bytes = 0;
        loop {
            while let Some(Header { tag, len }) = header(&self.buf)? {
                let Some(frame) = self.buf.get(..len) else {
                    break;
                };
                if tag == b'E' {
                    let text = error_field(body(frame), b'M').unwrap_or_default();
                    return Err(String::from_utf8_lossy(text).into());
                }
                self.buf.advance(len);
                bytes += len as u64;
                if tag == last {
                    return Ok(bytes);
                }
            }
            self.buf.reserve(self.room);
            if self.stream.read(&mut self.buf).await? == 0 {
                return Err("connection closed by the other side".into());
            }
        }
    }

    async fn query(&mut self, sql: &str) -> Result<u64, Failure> {
        encode::query(&mut self.out, sql.as_bytes());
        self.send().await?;
        self.read_to(b'Z').await
    }
}

/// As many logged-in clients, each after `first`.
async fn open_all<F>(
    arguments: &Arc<Arguments>,
    clients: usize,
    first: impl Fn(Client) -> F,
) -> Result<Vec<Client>, Failure>
where
    F: Future<Output = Result<Client, Failure>> + Send + 'static,
{
    let mut opening = JoinSet::new();
    let mut opened = Vec::with_capacity(clients);
    let first = &first;
    for _ in 0..clients {
        if opening.len() == LOGINS_MAX
            && let Some(client) = opening.join_next().await
        {
            opened.push(first(client??).await?);
        }
        let arguments = arguments.clone();
        opening.spawn(async move { Client::open(&arguments).await });
    }
    while let Some(client) = opening.join_next().await {
        opened.push(first(client??).await?);
    }
    Ok(opened)
}

/// What is sent each time.
#[derive(Clone)]
struct Statement {
    /// Around the number that is drawn, if one is.
    parts: (String, Option<String>),
    protocol: Protocol,
    rows: u32,
}

impl Statement {
    const NAME: &[u8] = b"load";

    fn new(run: &Run) -> Statement {
        let parts = match run.sql.split_once("{}") {
            Some((before, after)) => (before.to_owned(), Some(after.to_owned())),
            None => (run.sql.clone(), None),
        };
        Statement {
            parts,
            protocol: run.protocol,
            rows: run.rows,
        }
    }

    async fn prepare(self, mut client: Client) -> Result<Client, Failure> {
        if self.protocol == Protocol::Prepared {
            let sql = match &self.parts {
                (before, Some(after)) => format!("{before}$1{after}"),
                (whole, None) => whole.clone(),
            };
            encode::parse(&mut client.out, Self::NAME, sql.as_bytes(), &[0, 0]);
            client.out.extend_from_slice(encode::SYNC);
            client.send().await?;
            client.read_to(b'Z').await?;
        }
        Ok(client)
    }

    /// As libpq would say it.
    fn append(&self, out: &mut BytesMut) {
        let (before, after) = &self.parts;
        let number = after
            .as_ref()
            .map(|_| rand::random_range(1..=self.rows).to_string());
        if self.protocol == Protocol::Simple {
            let number = number.unwrap_or_default();
            let after = after.as_deref().unwrap_or_default();
            out.put_u8(b'Q');
            out.put_i32((4 + before.len() + number.len() + after.len() + 1) as i32);
            for part in [before, &number, after] {
                out.put_slice(part.as_bytes());
            }
            out.put_u8(0);
            return;
        }
        // All values as text, all columns as text.
        let mut rest = BytesMut::from(&b"\0\0"[..]);
        rest.put_i16(i16::from(number.is_some()));
        if let Some(number) = number {
            rest.put_i32(number.len() as i32);
            rest.put_slice(number.as_bytes());
        }
        rest.put_i16(0);
        encode::bind_head(out, b"", Self::NAME, rest.len());
        out.put_slice(&rest);
        encode::body(out, b'D', b"P\0");
        encode::body(out, b'E', b"\0\0\0\0\0");
        out.put_slice(encode::SYNC);
    }
}

/// When a client runs its next statement, and from when on that counts.
#[derive(Clone)]
enum Pace {
    /// Once the last one is answered, until then.
    Closed(Instant),
    Times(u64),
    /// When one is due, whether anybody is free or not.
    Due(Arc<Due>),
}

/// Arrivals that no client has taken yet.
struct Due {
    at: Mutex<VecDeque<Instant>>,
    count: Semaphore,
}

impl Due {
    fn at(&self) -> std::sync::MutexGuard<'_, VecDeque<Instant>> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Arrivals with exponential gaps, as of many who know nothing of each other.
    fn arrive(&self, rate: f64, end: Instant) {
        let mut next = Instant::now();
        while next < end {
            let now = Instant::now();
            let mut released = 0;
            while next <= now {
                self.at().push_back(next);
                released += 1;
                let gap = -(1.0 - rand::random::<f64>()).ln() / rate;
                next += Duration::from_secs_f64(gap);
            }
            self.count.add_permits(released);
            thread::sleep((next - now).max(PULSE));
        }
        self.count.close();
    }

    async fn next(&self) -> Option<Instant> {
        self.count.acquire().await.ok()?.forget();
        self.at().pop_front()
    }
}

async fn run(arguments: &Arc<Arguments>, run: &Run) -> Result<(), Failure> {
    let statement = Statement::new(run);
    let first = |client| statement.clone().prepare(client);
    let mut clients = open_all(arguments, run.clients, first).await?;
    if run.warm_up > 0.0 {
        let end = Instant::now() + Duration::from_secs_f64(run.warm_up);
        (clients, _) = drive_all(clients, &statement, &Pace::Closed(end)).await?;
    }
    ready()?;
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(run.seconds);
    let pace = match (run.transactions, run.rate) {
        (Some(count), _) => Pace::Times(count),
        (None, Some(rate)) => {
            let due = Arc::new(Due {
                at: Mutex::default(),
                count: Semaphore::new(0),
            });
            let arriving = due.clone();
            thread::spawn(move || arriving.arrive(rate, end));
            Pace::Due(due)
        }
        (None, None) => Pace::Closed(end),
    };
    let (clients, mut latencies) = drive_all(clients, &statement, &pace).await?;
    let seconds = start.elapsed().as_secs_f64();
    // Due, and never begun.
    let left = match &pace {
        Pace::Due(due) => due.at().len(),
        _ => 0,
    };
    report(&summary(&mut latencies, seconds, left))?;
    drop(clients);
    Ok(())
}

/// All clients, at this pace; and the latencies of all.
async fn drive_all(
    clients: Vec<Client>,
    statement: &Statement,
    pace: &Pace,
) -> Result<(Vec<Client>, Vec<u32>), Failure> {
    let mut driving = JoinSet::new();
    for client in clients {
        driving.spawn(drive(client, statement.clone(), pace.clone()));
    }
    let (mut clients, mut latencies) = (Vec::new(), Vec::new());
    while let Some(driven) = driving.join_next().await {
        let (client, of_it) = driven??;
        latencies.extend(of_it);
        clients.push(client);
    }
    Ok((clients, latencies))
}

/// Latencies in tenths of a microsecond.
async fn drive(
    mut client: Client,
    statement: Statement,
    mut pace: Pace,
) -> Result<(Client, Vec<u32>), Failure> {
    let mut latencies = Vec::new();
    let mut now = Instant::now();
    loop {
        let begin = match &mut pace {
            Pace::Closed(end) if now < *end => now,
            Pace::Times(left) if *left > 0 => {
                *left -= 1;
                now
            }
            Pace::Due(due) => match due.next().await {
                Some(at) => at,
                None => return Ok((client, latencies)),
            },
            _ => return Ok((client, latencies)),
        };
        statement.append(&mut client.out);
        client.send().await?;
        client.read_to(b'Z').await?;
        now = Instant::now();
        latencies.push(((now - begin).as_nanos() / 100).min(u128::from(u32::MAX)) as u32);
    }
}

fn summary(latencies: &mut [u32], seconds: f64, left: usize) -> String {
    latencies.sort_unstable();
    let count = latencies.len();
    let at = |share: f64| {
        let index = (count as f64 * share) as usize;
        let found = latencies.get(index.min(count.saturating_sub(1)));
        f64::from(found.copied().unwrap_or(0)) / 10.0
    };
    let sum: f64 = latencies.iter().map(|latency| f64::from(*latency)).sum();
    format!(
        r#"{{"transactions": {count}, "seconds": {seconds:.4}, "tps": {:.1}, "mean_us": {:.1}, "p50_us": {:.1}, "p99_us": {:.1}, "p999_us": {:.1}, "max_us": {:.1}, "left": {left}}}"#,
        count as f64 / seconds,
        sum / 10.0 / count.max(1) as f64,
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
    )
}

async fn idle(arguments: &Arc<Arguments>, clients: usize, sql: &str) -> Result<(), Failure> {
    ready()?;
    let start = Instant::now();
    let sql: Arc<str> = sql.into();
    let first = |mut client: Client| {
        let sql = sql.clone();
        async move {
            client.query(&sql).await?;
            Ok(client)
        }
    };
    let clients = open_all(arguments, clients, first).await?;
    let seconds = start.elapsed().as_secs_f64();
    let open = clients.len();
    report(&format!(
        r#"{{"clients": {open}, "seconds": {seconds:.4}}}"#
    ))?;
    drop(clients);
    Ok(())
}

async fn stream(arguments: &Arguments, sql: &str) -> Result<(), Failure> {
    let mut client = Client::open(arguments).await?;
    client.room = READ_BYTES;
    ready()?;
    let start = Instant::now();
    let bytes = client.query(sql).await?;
    report_bytes(bytes, start)?;
    Ok(())
}

async fn copy_in(arguments: &Arguments, sql: &str, bytes: u64) -> Result<(), Failure> {
    let mut client = Client::open(arguments).await?;
    ready()?;
    let start = Instant::now();
    encode::query(&mut client.out, sql.as_bytes());
    client.send().await?;
    client.read_to(b'G').await?;
    let mut row = vec![b'x'; COPY_ROW_BYTES];
    row[COPY_ROW_BYTES - 1] = b'\n';
    let mut chunk = BytesMut::new();
    encode::body(&mut chunk, b'd', &row.repeat(COPY_BYTES / COPY_ROW_BYTES));
    let mut sent = 0;
    while sent < bytes {
        client.stream.write_all(&chunk).await?;
        sent += chunk.len() as u64;
    }
    encode::body(&mut client.out, b'c', b"");
    client.send().await?;
    client.read_to(b'Z').await?;
    report_bytes(sent, start)?;
    Ok(())
}

fn report_bytes(bytes: u64, start: Instant) -> io::Result<()> {
    let seconds = start.elapsed().as_secs_f64();
    report(&format!(r#"{{"bytes": {bytes}, "seconds": {seconds:.4}}}"#))
}
