//! Owns: the table whose rows have versions, and the ways a session says its statements. Never:
//! judges what it is shown.

use tidegate::demo::{DemoError, LocalCluster};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage, Statement};

use super::model::{Row, Version};

/// `history_at` also says which node has answered. It is a view, since the function in it would
/// make a statement of the client's own one that is not proven to read the same everywhere.
const SCHEMA: &str = "
CREATE TABLE history (id int PRIMARY KEY, version bigint NOT NULL);
CREATE VIEW history_at AS SELECT id, version, current_setting('port')::int AS port FROM history;
GRANT SELECT, UPDATE ON history, history_at TO app;
";

/// Makes the table, with no rows, on a new cluster.
pub fn create(cluster: &LocalCluster) -> Result<(), DemoError> {
    cluster.primary().sql("app", SCHEMA)?;
    cluster.wait_caught_up()
}

/// Gives the table this many rows, each at version 0, on every node.
pub fn reset(cluster: &LocalCluster, rows: i32) -> Result<(), DemoError> {
    let fill = format!(
        "TRUNCATE history; INSERT INTO history SELECT id, 0 FROM generate_series(0, {rows} - 1) id"
    );
    cluster.primary().sql("app", &fill)?;
    cluster.wait_caught_up()
}

/// How a statement is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Simple,
    Prepared,
    Unnamed,
}

impl Protocol {
    pub const ALL: [Protocol; 3] = [Protocol::Simple, Protocol::Prepared, Protocol::Unnamed];
}

/// Rows `first` to `last`, both included, as one statement reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub first: i32,
    pub last: i32,
}

impl Span {
    pub fn one(row: Row) -> Span {
        Span {
            first: row.0,
            last: row.0,
        }
    }

    pub fn rows(self) -> impl Iterator<Item = Row> {
        (self.first..=self.last).map(Row)
    }
}

/// One row of an answer, and the port of the node that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    pub row: Row,
    pub version: Version,
    pub port: u16,
}

/// A client's connection with its statements prepared.
pub struct Connection {
    client: Client,
    read: Statement,
    set: Statement,
    bump: Statement,
    begin: Statement,
    begin_read_only: Statement,
    commit: Statement,
    roll_back: Statement,
}

const READ: &str = "SELECT id, version, port FROM history_at WHERE id BETWEEN $1 AND $2";
const SET: &str = "UPDATE history SET version = $1 WHERE id = $2";
const BUMP: &str = "UPDATE history SET version = version + 1 WHERE id = $1 RETURNING version";

impl Connection {
    pub async fn open(url: &str) -> Result<Connection, Error> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        // Its errors are those of the client's next statement.
        tokio::spawn(connection);
        Ok(Connection {
            read: client.prepare(READ).await?,
            set: client.prepare(SET).await?,
            bump: client.prepare(BUMP).await?,
            begin: client.prepare("BEGIN").await?,
            begin_read_only: client.prepare("BEGIN READ ONLY").await?,
            commit: client.prepare("COMMIT").await?,
            roll_back: client.prepare("ROLLBACK").await?,
            client,
        })
    }

    pub async fn read(&self, span: Span, protocol: Protocol) -> Result<Vec<Shown>, Error> {
        let Span { first, last } = span;
        let rows = match protocol {
            Protocol::Simple => return self.script(&read_text(span)).await,
            Protocol::Prepared => self.client.query(&self.read, &[&first, &last]).await?,
            Protocol::Unnamed => {
                let params = [(&first as _, Type::INT4), (&last as _, Type::INT4)];
                self.client.query_typed(READ, &params).await?
            }
        };
        let shown = |row: &tokio_postgres::Row| {
            let port: i32 = row.get(2);
            Shown {
                row: Row(row.get(0)),
                version: row.get(1),
                port: port.try_into().expect("a port"),
            }
        };
        Ok(rows.iter().map(shown).collect())
    }

    pub async fn set(&self, row: Row, version: Version, protocol: Protocol) -> Result<(), Error> {
        let changed = match protocol {
            Protocol::Simple => {
                return self.client.batch_execute(&set_text(row, version)).await;
            }
            Protocol::Prepared => self.client.execute(&self.set, &[&version, &row.0]).await?,
            Protocol::Unnamed => {
                let params = [(&version as _, Type::INT8), (&row.0 as _, Type::INT4)];
                self.client.execute_typed(SET, &params).await?
            }
        };
        assert_eq!(changed, 1, "row {} is there", row.0);
        Ok(())
    }

    /// Adds one to the version, which others may be doing too; returns what it has become.
    pub async fn bump(&self, row: Row, protocol: Protocol) -> Result<Version, Error> {
        let answer = match protocol {
            Protocol::Simple => {
                let text = BUMP.replace("$1", &row.0.to_string());
                let answer = self.client.simple_query(&text).await?;
                let version = answer.iter().find_map(|message| match message {
                    SimpleQueryMessage::Row(row) => row.get(0),
                    _ => None,
                });
                return Ok(version.and_then(|text| text.parse().ok()).expect("a row"));
            }
            Protocol::Prepared => self.client.query_one(&self.bump, &[&row.0]).await?,
            Protocol::Unnamed => {
                let params = [(&row.0 as _, Type::INT4)];
                self.client.query_typed_one(BUMP, &params).await?
            }
        };
        Ok(answer.get(0))
    }

    /// Runs several statements as one simple query; returns what its reads have shown.
    pub async fn script(&self, sql: &str) -> Result<Vec<Shown>, Error> {
        let messages = self.client.simple_query(sql).await?;
        let shown = |message: &SimpleQueryMessage| {
            let SimpleQueryMessage::Row(row) = message else {
                return None;
            };
            Some(Shown {
                row: Row(row.try_get("id").ok()??.parse().ok()?),
                version: row.try_get("version").ok()??.parse().ok()?,
                port: row.try_get("port").ok()??.parse().ok()?,
            })
        };
        Ok(messages.iter().filter_map(shown).collect())
    }

    pub async fn begin(&self, protocol: Protocol) -> Result<(), Error> {
        self.steer("BEGIN", &self.begin, protocol).await
    }

    pub async fn begin_read_only(&self, protocol: Protocol) -> Result<(), Error> {
        self.steer("BEGIN READ ONLY", &self.begin_read_only, protocol)
            .await
    }

    pub async fn commit(&self, protocol: Protocol) -> Result<(), Error> {
        self.steer("COMMIT", &self.commit, protocol).await
    }

    pub async fn roll_back(&self, protocol: Protocol) -> Result<(), Error> {
        self.steer("ROLLBACK", &self.roll_back, protocol).await
    }

    async fn steer(&self, sql: &str, prepared: &Statement, how: Protocol) -> Result<(), Error> {
        match how {
            Protocol::Simple => self.client.batch_execute(sql).await,
            Protocol::Prepared => self.client.execute(prepared, &[]).await.map(drop),
            Protocol::Unnamed => self.client.execute_typed(sql, &[]).await.map(drop),
        }
    }
}

/// The statement that reads `span`, with its values in the text.
pub fn read_text(span: Span) -> String {
    READ.replace("$1", &span.first.to_string())
        .replace("$2", &span.last.to_string())
}

/// The statement that sets a version, with its values in the text.
pub fn set_text(row: Row, version: Version) -> String {
    SET.replace("$1", &version.to_string())
        .replace("$2", &row.0.to_string())
}
