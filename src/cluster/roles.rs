//! Owns: looking up roles of the database for logins, over one connection per cluster. Never: keeps a
//! client waiting without an end, or says a secret.
//!
//! Logins that wait at the same time share a round trip, and those of one role share an answer, which
//! is always asked for after the login began. So a storm of logins costs few queries and no
//! connections, and a password that was changed a moment ago counts at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::Cluster;
use super::connect::{self, ConnectError, Connection, Rows, Target};
use super::node::{Node, Role as NodeRole};
use crate::auth::Credential;
use crate::auth::lookup::{Found, Known, Role};
use crate::config::Lookup;
use crate::session::consistency::Replica;
use crate::telemetry;

/// Roles asked for in one go.
const TOGETHER_MAX: usize = 64;

/// Roles that may wait to be asked for; further logins are refused.
const WAITING_MAX: usize = 10_000;

/// The connection is closed when nobody has logged in for so long.
const IDLE: Duration = Duration::from_secs(60);

/// How long to rest after nobody could be asked: whoever comes meanwhile waits.
const RETRY: Duration = Duration::from_millis(50);

/// What is known of roles, and who waits to know more.
pub struct Roles {
    /// Where the connection lives, whichever thread a client is served by.
    runtime: Handle,
    epoch: Instant,
    state: Mutex<State>,
    wanted: Notify,
}

#[derive(Default)]
struct State {
    known: Known,
    /// By whom `known` was learnt.
    lookup: Option<Lookup>,
    waiting: HashMap<String, Vec<oneshot::Sender<Outcome>>>,
    /// Somebody is asking, or will look here before it ends.
    asking: bool,
}

type Outcome = Result<Found, Arc<LookupError>>;

/// What a login is told of its role.
pub struct Told {
    pub found: Found,
    /// It was asked for after the login began.
    pub fresh: bool,
}

/// Why it is not known whether there is such a role.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("no node of cluster \"{0}\" is up")]
    NoNode(String),
    #[error("cannot log in to node {node} as auth.query_user: {error}")]
    Connect { node: String, error: ConnectError },
    #[error("auth.query failed on node {node}: {error}")]
    Query { node: String, error: ConnectError },
    #[error("auth.query gave {0} on node {1}; it must give one row of name and password, or none")]
    Answer(&'static str, String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{WAITING_MAX} other roles wait to be looked up")]
    TooMany,
}

impl LookupError {
    /// It is not the configuration's fault: later it may go well.
    pub fn is_passing(&self) -> bool {
        match self {
            LookupError::NoNode(_) | LookupError::Timeout(_) | LookupError::TooMany => true,
            LookupError::Connect { error, .. } | LookupError::Query { error, .. } => {
                error.is_node_away()
            }
            LookupError::Answer(..) => false,
        }
    }
}

impl Roles {
    /// To be called within the runtime that is to ask.
    pub fn start() -> Roles {
        Roles {
            runtime: Handle::current(),
            epoch: Instant::now(),
            state: Mutex::default(),
            wanted: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whatever panicked elsewhere did not do so between two of its changes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    /// Looks up who wants to log in.
    ///
    /// # Errors
    /// When no server gives an answer that can be understood, in time.
    pub async fn look_up(
        self: &Arc<Self>,
        user: &str,
        lookup: &Lookup,
    ) -> Result<Told, Arc<LookupError>> {
        let now = self.roles.epoch.elapsed();
        let known = {
            let mut state = self.roles.lock();
            if state.lookup.as_ref() != Some(lookup) {
                state.lookup = Some(lookup.clone());
                state.known.clear();
            }
            state.known.login(user, now, lookup.cache)
        };
        match known {
            Some(found) => {
                telemetry::metrics().role_lookups_spared.increment(1);
                Ok(Told {
                    found,
                    fresh: false,
                })
            }
            None => self.ask(user).await,
        }
    }

    /// Looks up again who has failed to log in by what was [told](Told) and is not fresh; `None`
    /// where that has just been done.
    pub async fn look_up_again(self: &Arc<Self>, user: &str, lookup: &Lookup) -> Option<Told> {
        let now = self.roles.epoch.elapsed();
        let may = self.roles.lock().known.recheck(user, now, lookup.cache);
        match may {
            true => self.ask(user).await.ok(),
            false => None,
        }
    }

    async fn ask(self: &Arc<Self>, user: &str) -> Result<Told, Arc<LookupError>> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.roles.lock();
            if state.waiting.len() >= WAITING_MAX && !state.waiting.contains_key(user) {
                return Err(Arc::new(LookupError::TooMany));
            }
            let senders = state.waiting.entry(user.to_owned()).or_default();
            // Whoever has given up waiting leaves nothing behind.
            senders.retain(|sender| !sender.is_closed());
            senders.push(sender);
            if !std::mem::replace(&mut state.asking, true) {
                self.roles.runtime.spawn(ask_for_all(self.clone()));
            }
        }
        self.roles.wanted.notify_one();
        let limit = self.topology().config.pool.connect_timeout;
        match timeout(limit, receiver).await {
            Ok(Ok(outcome)) => outcome.map(|found| Told { found, fresh: true }),
            // Who was asking has come to an unplanned end.
            Ok(Err(_)) => Err(Arc::new(LookupError::NoNode(self.name.clone()))),
            Err(_) => Err(Arc::new(LookupError::Timeout(limit))),
        }
    }
}

/// Asks for whoever waits, until nobody has for a while.
async fn ask_for_all(cluster: Arc<Cluster>) {
    let mut asking = Asking {
        roles: &cluster.roles,
        is_over: false,
    };
    let mut line: Option<Line> = None;
    loop {
        let changed = cluster.changed.notified();
        let Some(waiting) = take_waiting(&cluster.roles) else {
            tokio::select! {
                waited = timeout(IDLE, cluster.roles.wanted.notified()) => {
                    if waited.is_err() && asking.end() {
                        return;
                    }
                }
                // A node that leaves, or is the primary no more, is let go of.
                () = changed => line = line.take().filter(|line| line.is_best(&cluster)),
            }
            continue;
        };
        let asked = cluster.roles.epoch.elapsed();
        let users: Vec<&str> = waiting.iter().map(|(user, _)| user.as_str()).collect();
        let began = Instant::now();
        let outcomes = ask_together(&cluster, &mut line, &users).await;
        telemetry::metrics()
            .role_lookup_seconds
            .record(began.elapsed());
        let nobody = outcomes.is_err();
        answer(&cluster.roles, waiting, outcomes, asked);
        if nobody {
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// However asking ends, a panic included, the next login begins it again.
struct Asking<'a> {
    roles: &'a Roles,
    is_over: bool,
}

impl Asking<'_> {
    /// Ends it, unless somebody waits.
    fn end(&mut self) -> bool {
        let mut state = self.roles.lock();
        state.asking = !state.waiting.is_empty();
        self.is_over = !state.asking;
        self.is_over
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let mut state = self.roles.lock();
            state.asking = false;
            state.waiting.clear();
        }
    }
}

type Waiting = Vec<(String, Vec<oneshot::Sender<Outcome>>)>;

fn take_waiting(roles: &Roles) -> Option<Waiting> {
    let mut state = roles.lock();
    let users = state.waiting.keys().take(TOGETHER_MAX).cloned();
    let users: Vec<_> = users.collect();
    let waiting: Waiting = users
        .into_iter()
        .filter_map(|user| state.waiting.remove_entry(&user))
        .collect();
    (!waiting.is_empty()).then_some(waiting)
}

/// Tells each of `waiting` its outcome, and remembers what was found when asked at `asked`.
fn answer(
    roles: &Roles,
    waiting: Waiting,
    outcomes: Result<Vec<Outcome>, Arc<LookupError>>,
    asked: Duration,
) {
    let metrics = telemetry::metrics();
    let outcomes =
        outcomes.unwrap_or_else(|error| waiting.iter().map(|_| Err(error.clone())).collect());
    let mut state = roles.lock();
    for ((user, senders), outcome) in waiting.into_iter().zip(outcomes) {
        match &outcome {
            Ok(found) => {
                match found {
                    Some(_) => metrics.role_lookups_found.increment(1),
                    None => metrics.role_lookups_unknown.increment(1),
                }
                state.known.learn(&user, found.clone(), asked);
            }
            Err(_) => metrics.role_lookups_failed.increment(1),
        }
        metrics
            .role_lookups_spared
            .increment(senders.len().saturating_sub(1) as u64);
        for sender in senders {
            // It may have gone.
            let _ = sender.send(outcome.clone());
        }
    }
}

/// The connection that is asked over, and what it was opened by.
struct Line {
    connection: Connection,
    node: Arc<Node>,
    lookup: Lookup,
}

impl Line {
    async fn open(node: &Arc<Node>, lookup: &Lookup, limit: Duration) -> Result<Line, LookupError> {
        let target = Target {
            database: &lookup.database,
            user: &lookup.user,
            credential: lookup.password.clone().map(Credential::Password),
            application_name: "tidegate roles",
            ..Target::at(node)
        };
        // What is given up here must not go on there.
        let limit_there = format!("SET statement_timeout = {}", limit.as_millis().max(1));
        let open = async {
            let mut connection = connect::connect(&target, limit).await?;
            connection.query(&limit_there).await?;
            Ok(connection)
        };
        let opened = match timeout(limit, open).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectError::Timeout(limit)),
        };
        let connection = opened.map_err(|error| LookupError::Connect {
            node: node.name.clone(),
            error,
        })?;
        Ok(Line {
            connection,
            node: node.clone(),
            lookup: lookup.clone(),
        })
    }

    /// Whether its node is the one to ask: the primary, or any that is up while there is none.
    fn is_best(&self, cluster: &Cluster) -> bool {
        if self.node.is_leaving() {
            return false;
        }
        match &cluster.topology().primary {
            Some(primary) => primary.id() == self.node.id(),
            None => self.node.is_up(),
        }
    }

    async fn ask(&mut self, users: &[&str], limit: Duration) -> Result<Vec<Outcome>, LookupError> {
        let values = users.iter().copied();
        // Two rows are one too many, and enough to see that.
        let asked = self
            .connection
            .query_each(&self.lookup.query, values, 2, limit);
        let failed = |error| LookupError::Query {
            node: self.node.name.clone(),
            error,
        };
        let answers = asked.await.map_err(failed)?;
        let outcome = |answer: Result<Rows, ConnectError>| {
            let found = answer.map_err(failed).and_then(|rows| {
                read(&rows).map_err(|what| LookupError::Answer(what, self.node.name.clone()))
            });
            found.map_err(Arc::new)
        };
        Ok(answers.into_iter().map(outcome).collect())
    }
}

fn read(rows: &[Vec<Option<String>>]) -> Result<Found, &'static str> {
    match rows {
        [] => Ok(None),
        [row] => match &row[..] {
            [] | [_] => Err("fewer than two columns"),
            // A function that returns one composite gives a row of NULLs for none.
            [None, None, ..] => Ok(None),
            [_, password, rest @ ..] => {
                let can_login = rest.first().and_then(Option::as_deref);
                Ok(Some(Arc::new(Role::read(password.as_deref(), can_login))))
            }
        },
        _ => Err("more than one row"),
    }
}

/// Asks for `users` over the line, or a new one where there is none that serves.
async fn ask_together(
    cluster: &Cluster,
    line: &mut Option<Line>,
    users: &[&str],
) -> Result<Vec<Outcome>, Arc<LookupError>> {
    let config = cluster.topology().config.clone();
    let Some(lookup) = &config.auth.lookup else {
        return Err(Arc::new(LookupError::NoNode(cluster.name.clone())));
    };
    let limit = config.health.timeout;
    *line = line
        .take()
        .filter(|line| line.lookup == *lookup && line.is_best(cluster));
    if let Some(open) = line {
        match open.ask(users, limit).await {
            Ok(outcomes) => return Ok(outcomes),
            // It may have been closed long ago, so this says nothing of its node.
            Err(error) => {
                tracing::debug!(cluster = %cluster.name, %error, "look-up connection lost");
                *line = None;
            }
        }
    }
    let mut first = None;
    for node in candidates(cluster) {
        let asked = match Line::open(&node, lookup, limit).await {
            Ok(open) => line.insert(open).ask(users, limit).await,
            Err(error) => Err(error),
        };
        match asked {
            Ok(outcomes) => return Ok(outcomes),
            Err(error) => {
                *line = None;
                tracing::debug!(cluster = %cluster.name, node = %node.name, %error, "no look-up here");
                if error.is_passing() {
                    node.wake.notify_one();
                }
                first.get_or_insert(error);
            }
        }
    }
    let none = || LookupError::NoNode(cluster.name.clone());
    Err(Arc::new(first.unwrap_or_else(none)))
}

/// Whom to ask, in this order: the primary knows most, replicas are fine where it can't be had.
fn candidates(cluster: &Cluster) -> Vec<Arc<Node>> {
    let topology = cluster.topology();
    let primary = topology.primary.iter().cloned();
    let is_replica = |node: &&Arc<Node>| node.is_open() && node.role() == NodeRole::Replica;
    let mut replicas: Vec<_> = topology.nodes.iter().filter(is_replica).cloned().collect();
    replicas.sort_by_key(|node| node.in_flight());
    primary.chain(replicas).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_one_row_of_name_and_password() {
        let row = |columns: &[Option<&str>]| -> Vec<Option<String>> {
            columns.iter().map(|c| c.map(str::to_owned)).collect()
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[row(&[None, None])]), Ok(None));
        assert_eq!(
            read(&[row(&[Some("a"), None])]),
            Ok(Some(Arc::new(Role::read(None, None))))
        );
        let found = read(&[row(&[Some("a"), Some("x"), Some("f")])]);
        assert!(!found.unwrap().unwrap().can_login);
        assert_eq!(read(&[row(&[Some("a")])]), Err("fewer than two columns"));
        let two = [row(&[Some("a"), None]), row(&[Some("b"), None])];
        assert_eq!(read(&two), Err("more than one row"));
    }
}
