//! Owns: a client that asks and waits for the answer. Never: knows what the answer should be.

use tidegate::demo::LocalNode;
use tokio::runtime::Runtime;
use tokio_postgres::error::DbError;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, NoTls, SimpleQueryMessage};

use super::Gateway;

pub struct Client {
    runtime: Runtime,
    client: tokio_postgres::Client,
}

type Row = Vec<String>;

impl Client {
    /// Logs in as `user`, with more parameters than that in a connection string.
    pub fn open(gateway: &Gateway, user: &str, more: &str) -> Client {
        Client::connect(&with(gateway, user, more)).expect("logged in")
    }

    /// The superuser on the node itself, past every proxy.
    pub fn direct(node: &LocalNode) -> Client {
        Client::try_direct(node, "postgres").expect("logged in")
    }

    /// `user` there, if there is room.
    pub fn try_direct(node: &LocalNode, user: &str) -> Option<Client> {
        let port = node.port();
        let url = format!("host=127.0.0.1 port={port} user={user} password={user} dbname=app");
        Client::connect(&url).ok()
    }

    /// The error that a login ends with.
    pub fn refused(gateway: &Gateway, user: &str, more: &str) -> DbError {
        match Client::connect(&with(gateway, user, more)) {
            Ok(_) => panic!("{more} is taken"),
            Err(error) => db_error(&error),
        }
    }

    fn connect(url: &str) -> Result<Client, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
            tokio::spawn(connection);
            Ok(client)
        })?;
        Ok(Client { runtime, client })
    }

    /// Asks for what it is doing to be cancelled, from another thread.
    pub fn cancel(&self) {
        let token = self.client.cancel_token();
        self.runtime
            .block_on(token.cancel_query(NoTls))
            .expect("a cancel request is taken");
    }

    /// The rows that a simple query shows, as text.
    pub fn rows(&self, sql: &str) -> Vec<Row> {
        self.ask(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// The first value of the first row.
    pub fn one(&self, sql: &str) -> String {
        self.rows(sql).swap_remove(0).swap_remove(0)
    }

    /// The same by the extended protocol, of a text or a number.
    pub fn prepared(&self, sql: &str) -> String {
        self.prepared_with(sql, &[])
    }

    /// The same with parameters.
    pub fn prepared_with(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> String {
        let row = self.runtime.block_on(self.client.query_one(sql, values));
        let row = row.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let text: Result<String, _> = row.try_get(0);
        text.unwrap_or_else(|_| row.get::<_, i32>(0).to_string())
    }

    /// The rows by the extended protocol, of texts.
    pub fn prepared_rows(&self, sql: &str) -> Vec<Row> {
        let rows = self.runtime.block_on(self.client.query(sql, &[]));
        let rows = rows.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let row = |row: &tokio_postgres::Row| (0..row.len()).map(|at| row.get(at)).collect();
        rows.iter().map(row).collect()
    }

    /// The same of a text and a number.
    pub fn prepared_counts(&self, sql: &str) -> Vec<(String, i64)> {
        let rows = self.runtime.block_on(self.client.query(sql, &[]));
        let rows = rows.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// The error that a simple query ends with.
    pub fn error(&self, sql: &str) -> DbError {
        let answer = self.ask(sql);
        db_error(&answer.expect_err(sql))
    }

    /// The same by the extended protocol.
    pub fn error_of_prepared(&self, sql: &str) -> DbError {
        let answer = self.runtime.block_on(self.client.query(sql, &[]));
        db_error(&answer.expect_err(sql))
    }

    /// Whether its session has ended.
    pub fn is_closed(&self) -> bool {
        self.ask("").is_err_and(|error| error.is_closed())
    }

    /// The first row of a simple query, or the error that it ends with.
    pub fn row_or_error(&self, sql: &str) -> Result<Row, Box<DbError>> {
        let rows = self.ask(sql).map_err(|error| Box::new(db_error(&error)))?;
        Ok(rows.into_iter().next().expect("a row"))
    }

    fn ask(&self, sql: &str) -> Result<Vec<Row>, Error> {
        let messages = self.runtime.block_on(self.client.simple_query(sql))?;
        let row = |message: SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => {
                let value = |at| row.get(at).unwrap_or_default().to_owned();
                Some((0..row.len()).map(value).collect())
            }
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }
}

fn with(gateway: &Gateway, user: &str, more: &str) -> String {
    format!("{} {more}", gateway.url(user))
}

fn db_error(error: &Error) -> DbError {
    let answered = error.as_db_error();
    answered.unwrap_or_else(|| panic!("{error:?}")).clone()
}
