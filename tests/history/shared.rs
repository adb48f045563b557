//! Owns: what is owed to sessions of one causal key through several proxies: what was written through
//! their own, once that is acknowledged; and what was written through another one, once the key's floor
//! in Redis is not below it. Never: asks a proxy. Where a write is in the log is the primary's word, and
//! what the proxies know of each other is what Redis has. (That a write is told of at all is
//! `tests/causal_keys.rs`'s to see.)

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::RedisError;
use redis::aio::MultiplexedConnection;
use tidegate::demo::LocalNode;
use tokio_postgres::{Error, NoTls};

use super::model::{Kind, Ledger, Owed, Row, Version};

/// Where a proxy tells others of its key's writes.
#[derive(Clone, Debug)]
pub struct Place {
    pub url: String,
    pub prefix: &'static str,
    pub key: &'static str,
}

pub struct Shared {
    primary: tokio_postgres::Client,
    proxies: Vec<Proxy>,
}

struct Proxy {
    store: MultiplexedConnection,
    /// The name of the key's floor there.
    floor: String,
    /// The highest that it has been seen at: what was told once is not taken back.
    highest: AtomicU64,
    told: Ledger,
    written: Mutex<Vec<Written>>,
}

struct Written {
    /// How far the primary had flushed its log when the client had been told.
    flushed: u64,
    row: Row,
    version: Version,
}

/// A commit is flushed before it is acknowledged, so it is not beyond this. Nor is it beyond the insert
/// position, but that may count the header of a page with nothing in it, where no floor comes.
const FLUSHED: &str = "SELECT (pg_current_wal_flush_lsn() - '0/0')::text";

const SYSTEM: &str = "SELECT system_identifier::text FROM pg_control_system()";

impl Shared {
    /// Of proxies that each tell others in the place of that number.
    pub async fn open(primary: &LocalNode, places: &[Place]) -> Shared {
        let url = format!(
            "host=127.0.0.1 port={} user=postgres password=postgres dbname=app",
            primary.port()
        );
        let (primary, connection) = tokio_postgres::connect(&url, NoTls)
            .await
            .expect("the primary");
        tokio::spawn(connection);
        let system = one(&primary, SYSTEM).await.expect("its identifier");
        let mut proxies = Vec::new();
        for Place { url, prefix, key } in places {
            proxies.push(Proxy {
                store: connect(url).await.expect("Redis"),
                floor: format!("{prefix}{system}:app:{key}"),
                highest: AtomicU64::new(0),
                told: Ledger::default(),
                written: Mutex::default(),
            });
        }
        Shared { primary, proxies }
    }

    /// Somebody has been told by the proxy that this is written.
    pub async fn note(&self, proxy: usize, rows: &[(Row, Version)]) -> Result<(), Error> {
        let proxy = &self.proxies[proxy];
        for &(row, version) in rows {
            proxy.told.note(row, version);
        }
        let flushed = one(&self.primary, FLUSHED).await?;
        let flushed = flushed.parse().expect("a position");
        let written = rows.iter().map(|&(row, version)| Written {
            flushed,
            row,
            version,
        });
        let mut all = proxy.written.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(written);
        Ok(())
    }

    /// What a read must show that is said to the proxy from now on.
    pub async fn owed(&self, reader: usize) -> Owed {
        let mut owed = Owed::default();
        for (index, proxy) in self.proxies.iter().enumerate() {
            if index == reader {
                owed.add(proxy.told.as_of(Duration::ZERO), Kind::Missed);
            } else {
                owed.add(proxy.published().await, Kind::NotShared);
            }
        }
        owed
    }
}

impl Proxy {
    /// What of its writes others are told of by now.
    async fn published(&self) -> HashMap<Row, Version> {
        let mut get = redis::cmd("GET");
        get.arg(&self.floor);
        let floor: Option<String> = get
            .query_async(&mut self.store.clone())
            .await
            .expect("Redis answers");
        let floor = floor.map_or(0, |floor| position(&floor));
        let floor = self.highest.fetch_max(floor, SeqCst).max(floor);
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut newest = HashMap::new();
        for write in written.iter().filter(|write| write.flushed <= floor) {
            let version = newest.entry(write.row).or_insert(write.version);
            *version = write.version.max(*version);
        }
        newest
    }
}

/// Of a floor: its timeline, of which there is one here, and its position.
fn position(floor: &str) -> u64 {
    let position = floor.split_once('/').map(|(_, position)| position);
    let parsed = position.and_then(|position| u64::from_str_radix(position, 16).ok());
    parsed.unwrap_or_else(|| panic!("{floor} is no floor"))
}

async fn connect(url: &str) -> Result<MultiplexedConnection, RedisError> {
    let client = redis::Client::open(url)?;
    client.get_multiplexed_async_connection().await
}

async fn one(client: &tokio_postgres::Client, sql: &str) -> Result<String, Error> {
    client.query_one(sql, &[]).await?.try_get(0)
}
