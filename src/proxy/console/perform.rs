//! Owns: doing what a command of the console's says. Never: knows how it was said.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::Console;
use super::command::Command;
use super::show::known_databases;
use super::table::{Column, Table, Type, row};
use crate::cluster::Cluster;
use crate::cluster::node::Node;
use crate::cluster::pool::PoolKey;
use crate::config::ConsoleRight;
use crate::net::stream::Stream;
use crate::proxy::handshake::Login;
use crate::proxy::refusal::Refusal;
use crate::proxy::{Client, Order, Proxy};
use crate::session::settings::Settings;

impl Console {
    /// Does what a command says; `None` if it shows nothing. The log tells of what is to change something, before it
    /// is done, as that may take long, and again if it is refused.
    pub(super) async fn perform(&mut self, command: &Command) -> Result<Option<Table>, Refusal> {
        if command.right() != ConsoleRight::Change {
            return self.perform_unlogged(command).await;
        }
        let (user, object) = (self.key.user.clone(), command.object());
        let (tag, object) = (command.tag(), object.as_deref());
        tracing::info!(%user, command = tag, object, "told by the console");
        let performed = self.perform_unlogged(command).await;
        if let Err(refusal) = &performed {
            let sqlstate = refusal.sqlstate();
            tracing::info!(%user, command = tag, object, %sqlstate, "refused by the console");
        }
        performed
    }

    async fn perform_unlogged(&mut self, command: &Command) -> Result<Option<Table>, Refusal> {
        let user = &self.key.user;
        if self.right < command.right() {
            let message = format!("user \"{user}\" may look, and not {}", command.tag());
            let hint = "Who may is listed in console.admins.";
            return Err(Refusal::hinted("42501", message, hint));
        }
        let table = match command {
            Command::Show(show) => Some(show.table(&self.proxy)),
            Command::ExplainRoute {
                database,
                user,
                sql,
            } => {
                let (database, user) = (database.as_deref(), user.as_deref());
                Some(self.explain(database, user, sql).await?)
            }
            Command::Reload => {
                self.reload().await?;
                None
            }
            Command::Drain(name) => {
                let (cluster, node) = find_node(&self.proxy, name)?;
                cluster.drain(&node, true);
                None
            }
            Command::ResumeNode(name) => {
                self.resume_node(name)?;
                None
            }
            Command::Pause(database) => {
                self.pause(database.as_deref()).await?;
                None
            }
            Command::Resume(name) => {
                self.resume(name.as_deref())?;
                None
            }
            Command::Kill(id) => {
                self.kill(*id).await?;
                None
            }
            Command::Set => None,
        };
        Ok(table)
    }

    fn resume_node(&self, name: &str) -> Result<(), Refusal> {
        let (cluster, node) = find_node(&self.proxy, name)?;
        if !node.is_drained() {
            let message = format!("node \"{name}\" is not drained");
            return Err(Refusal::protocol("55000", message));
        }
        cluster.drain(&node, false);
        Ok(())
    }

    /// Pauses a database, or all; comes back when nothing is open there.
    async fn pause(&self, database: Option<&str>) -> Result<(), Refusal> {
        /// How often it is looked whether something is.
        const LOOK: Duration = Duration::from_millis(10);
        let clusters = match database {
            None => self.proxy.clusters.all().to_vec(),
            Some(database) if !known_databases(&self.proxy).contains(database) => {
                let message = format!("database \"{database}\" is neither listed nor used");
                return Err(Refusal::hinted(
                    "3D000",
                    message,
                    "SHOW DATABASES has them.",
                ));
            }
            Some(database) => vec![serving(&self.proxy, database)?],
        };
        for cluster in &clusters {
            cluster.pause(database);
        }
        let is_open = |cluster: &Arc<Cluster>| cluster.active_though_paused() > 0;
        let closed = async {
            while clusters.iter().any(is_open) {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = closed => Ok(()),
            () = self.handle.cancelled.notified() => Err(Refusal::hinted(
                "57014",
                "canceling wait due to user request: what is new is paused, and something is open yet",
                "SHOW CLIENTS tells who has a server; RESUME ends the pause.",
            )),
        }
    }

    fn resume(&self, name: Option<&str>) -> Result<(), Refusal> {
        let clusters = self.proxy.clusters.all();
        let ended = clusters
            .iter()
            .filter(|cluster| cluster.resume(name))
            .count();
        match name {
            _ if ended > 0 => Ok(()),
            Some(name) if find_node(&self.proxy, name).is_ok() => self.resume_node(name),
            Some(name) => Err(Refusal::protocol(
                "55000",
                format!(
                    "no database \"{name}\" is paused by its name, and no node of the name is drained"
                ),
            )),
            None => Err(Refusal::protocol("55000", "no database is paused")),
        }
    }

    async fn kill(&self, id: i32) -> Result<(), Refusal> {
        match self.proxy.sessions.kill(id).await {
            true => Ok(()),
            false => Err(Refusal::hinted(
                "42704",
                format!("there is no client {id}"),
                "SHOW CLIENTS has their ids.",
            )),
        }
    }

    async fn reload(&self) -> Result<(), Refusal> {
        let (answer, done) = oneshot::channel();
        let sent = self.proxy.orders.send(Order::Reload(answer)).await;
        let done = match sent {
            Ok(()) => done.await.ok(),
            Err(_) => None,
        };
        match done {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(Refusal::hinted(
                "F0000",
                error,
                "Nothing has changed; tidegate check tells the same of the file.",
            )),
            // Nobody hears orders any more.
            None => Err(Refusal::going_down()),
        }
    }

    /// Where a session that begins now would have `sql` go.
    async fn explain(
        &mut self,
        database: Option<&str>,
        user: Option<&str>,
        sql: &[u8],
    ) -> Result<Table, Refusal> {
        let database = match database {
            Some(database) => database.to_owned(),
            None => only_database(&self.proxy)?,
        };
        let cluster = serving(&self.proxy, &database)?;
        if cluster.is_paused(&database) {
            // A session that begins now waits for a server before it is told anything.
            let message = format!("database \"{database}\" is paused: what is said there waits");
            return Err(Refusal::hinted("55000", message, "RESUME ends the pause."));
        }
        let key = PoolKey {
            database: database.into(),
            user: user.map_or(self.key.user.clone(), Into::into),
        };
        let known = cluster.credential(&key);
        let own = (key.user == self.key.user).then(|| self.credential.clone());
        let Some(credential) = known.or(own) else {
            let PoolKey { user, database } = &key;
            let message = format!("nobody has logged in to database \"{database}\" as \"{user}\"");
            let hint = "SHOW POOLS tells who has.";
            return Err(Refusal::hinted("28000", message, hint));
        };
        let settings = Settings::default();
        let welcomes = &self.proxy.welcomes;
        let params = tokio::select! {
            params = welcomes.params(&cluster, &key, &credential, &settings) => params?,
            () = self.handle.cancelled.notified() => return Err(Refusal::cancelled()),
        };
        let Some((registered, seat)) = self.place.take() else {
            return Err(Refusal::going_down());
        };
        let login = Login {
            cluster,
            key,
            credential,
            settings,
            params,
            application_name: String::new(),
        };
        let (stream, inbox) = (Stream::Closed, BytesMut::new());
        let mut client = Box::new(Client::new(login, stream, inbox, registered, seat));
        let lines = match client.session.check_question(sql) {
            Ok(()) => {
                client.hear_of_catalog().await;
                Ok(Box::pin(client.route_of(sql)).await)
            }
            Err(complaint) => Err(Refusal::Complaint(complaint)),
        };
        let Client {
            registered, seat, ..
        } = *client;
        self.place = Some((registered, seat));
        let rows = lines?.into_iter().map(|(item, value)| row![item, value]);
        Ok(Table {
            columns: ROUTE,
            rows: rows.collect(),
        })
    }
}

/// The columns of EXPLAIN ROUTE's answer.
pub(super) const ROUTE: &[Column] = &[("item", Type::Text), ("value", Type::Text)];

/// The node of this name, which may have its cluster's before it, with a slash between.
fn find_node(proxy: &Proxy, name: &str) -> Result<(Arc<Cluster>, Arc<Node>), Refusal> {
    let mut found = Vec::new();
    for cluster in proxy.clusters.all().iter() {
        let own = name.strip_prefix(cluster.name.as_str());
        let own = own.and_then(|rest| rest.strip_prefix('/'));
        let is_named = |node: &&Arc<Node>| node.name == name || Some(node.name.as_str()) == own;
        let topology = cluster.topology();
        let nodes = topology.nodes.iter().filter(is_named);
        found.extend(nodes.map(|node| (cluster.clone(), node.clone())));
    }
    match (found.pop(), found.is_empty()) {
        (Some(found), true) => Ok(found),
        (Some(_), false) => Err(Refusal::hinted(
            "42725",
            format!("node \"{name}\" is in several clusters"),
            "Name the cluster too: cluster/node.",
        )),
        (None, _) => Err(Refusal::hinted(
            "42704",
            format!("there is no node \"{name}\""),
            "SHOW NODES has their names.",
        )),
    }
}

/// The cluster that serves this database.
fn serving(proxy: &Proxy, database: &str) -> Result<Arc<Cluster>, Refusal> {
    let serving = proxy.clusters.serving(database);
    serving.ok_or_else(|| Refusal::unserved(database))
}

/// The database that is meant where none is named.
fn only_database(proxy: &Proxy) -> Result<String, Refusal> {
    let mut names = known_databases(proxy);
    match (names.pop_first(), names.is_empty()) {
        (Some(only), true) => Ok(only),
        _ => Err(Refusal::hinted(
            "42601",
            "EXPLAIN ROUTE has to be told which database is meant",
            "Say EXPLAIN ROUTE IN database statement.",
        )),
    }
}
