//! The demo's clients: plain connections to the proxy that write, read and check what they read.
//!
//! Owns: the demo's tables and statements. Never: knows where a statement should run; only where
//! the answering node says it ran.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::auth::Credential;
use crate::cluster::connect::{self, ConnectError, Connection, Target};
use crate::config::Secret;

/// The longest that logging in or a query may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Sessions of the light traffic.
pub const IDLERS: usize = 3;

/// `served_by` is the name of the node that runs it.
pub const SCHEMA: [&str; 4] = [
    "CREATE TABLE tides (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, \
     gauge text NOT NULL, height int NOT NULL, at timestamptz NOT NULL DEFAULT now())",
    "CREATE TABLE counters (id int PRIMARY KEY, n int NOT NULL)",
    "INSERT INTO counters SELECT id, 0 FROM generate_series(0, 99) AS id",
    "CREATE FUNCTION served_by() RETURNS text STABLE LANGUAGE sql \
     AS $$ SELECT current_setting('cluster_name') $$",
];

/// One client's connection.
pub struct Session {
    connection: Connection,
}

impl Session {
    /// Logs in through the proxy that listens on `port`.
    ///
    /// # Errors
    /// When that fails.
    pub async fn open(port: u16) -> Result<Session, ConnectError> {
        let target = Target {
            host: "127.0.0.1",
            port,
            tls: Arc::default(),
            database: "app",
            user: "app",
            credential: Some(Credential::Password(Secret::new("app"))),
            application_name: "tidegate demo",
        };
        let connection = connect::connect(&target, ANSWER_MAX).await?;
        Ok(Session { connection })
    }

    /// Runs a statement; its rows.
    ///
    /// # Errors
    /// The server's error, or none in time.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<String>>, ConnectError> {
        let rows = match timeout(ANSWER_MAX, self.connection.query(sql)).await {
            Ok(rows) => rows?,
            Err(_) => return Err(ConnectError::Timeout(ANSWER_MAX)),
        };
        let text = |row: Vec<Option<String>>| row.into_iter().map(Option::unwrap_or_default);
        Ok(rows.into_iter().map(|row| text(row).collect()).collect())
    }

    /// The node that has found a tide of this height; empty if none is there, as on a node that
    /// has not replayed it.
    pub async fn read_height(&mut self, height: u32) -> Result<String, ConnectError> {
        let sql = format!("SELECT served_by() FROM tides WHERE height = {height}");
        let rows = self.query(&sql).await?;
        Ok(rows.into_iter().flatten().next().unwrap_or_default())
    }

    /// The value of a counter, and the node that has told it.
    async fn read_counter(&mut self, id: usize) -> Result<(u64, String), ConnectError> {
        let sql = format!("SELECT n, served_by() FROM counters WHERE id = {id}");
        let mut fields = self.query(&sql).await?.into_iter().flatten();
        let value = fields.next().and_then(|n| n.parse().ok());
        Ok((value.unwrap_or(0), fields.next().unwrap_or_default()))
    }
}

/// Reads by the node that answered them.
#[derive(Default)]
pub struct Tally(BTreeMap<String, u64>);

impl Tally {
    fn count(&mut self, node: String) {
        *self.0.entry(node).or_default() += 1;
    }

    pub fn add(&mut self, other: &Tally) {
        for (node, reads) in &other.0 {
            *self.0.entry(node.clone()).or_default() += reads;
        }
    }

    pub fn of(&self, node: &str) -> u64 {
        self.0.get(node).copied().unwrap_or(0)
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// What sessions saw that read what they had just written.
#[derive(Default)]
pub struct Pairs {
    pub reads: Tally,
    /// Reads that did not show the session's last write.
    pub stale: u64,
}

impl Pairs {
    pub fn add(&mut self, other: &Pairs) {
        self.reads.add(&other.reads);
        self.stale += other.stale;
    }
}

/// Reads as a session of its own. Each read takes a while, so that sessions overlap.
pub async fn read(port: u16, reads: u64) -> Result<Tally, ConnectError> {
    let mut session = Session::open(port).await?;
    let mut tally = Tally::default();
    for _ in 0..reads {
        let rows = session.query("SELECT served_by(), pg_sleep(0.01)").await?;
        tally.count(rows.into_iter().flatten().next().unwrap_or_default());
    }
    Ok(tally)
}

/// Writes a new value and reads it, at once and a moment later, again and again.
pub async fn write_and_read(port: u16, id: usize, rounds: u64) -> Result<Pairs, ConnectError> {
    const MOMENT: Duration = Duration::from_millis(8);
    let mut session = Session::open(port).await?;
    let mut pairs = Pairs::default();
    for round in 1..=rounds {
        let sql = format!("UPDATE counters SET n = {round} WHERE id = {id}");
        session.query(&sql).await?;
        for pause in [Duration::ZERO, MOMENT] {
            sleep(pause).await;
            let (value, node) = session.read_counter(id).await?;
            pairs.stale += u64::from(value != round);
            pairs.reads.count(node);
        }
    }
    Ok(pairs)
}

/// Light traffic for ever, whatever happens to the cluster meanwhile.
pub async fn idle_about(port: u16, id: usize) {
    const PAUSE: Duration = Duration::from_millis(500);
    loop {
        // Somebody may be trying what happens when a node goes.
        let _ = one_life(port, id).await;
        sleep(PAUSE).await;
    }
}

async fn one_life(port: u16, id: usize) -> Result<(), ConnectError> {
    const THINKING: Duration = Duration::from_millis(50);
    const READS_PER_WRITE: usize = 9;
    let mut session = Session::open(port).await?;
    loop {
        let sql = format!("UPDATE counters SET n = n + 1 WHERE id = {}", 10 + id);
        session.query(&sql).await?;
        for _ in 0..READS_PER_WRITE {
            session.read_counter(10 + id).await?;
            sleep(THINKING).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up() {
        let mut all = Tally::default();
        for nodes in [["node1", "node2"], ["node1", "node1"]] {
            let mut one = Tally::default();
            nodes
                .into_iter()
                .for_each(|node| one.count(node.to_owned()));
            all.add(&one);
        }
        assert_eq!(
            (all.of("node1"), all.of("node2"), all.of("node0")),
            (3, 1, 0)
        );
        assert_eq!(all.total(), 4);
    }
}
