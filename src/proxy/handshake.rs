//! Owns: a connection from its first byte to its first ReadyForQuery: encryption requests, the
//! start-up message, the login, the greeting. Never: lets anything a client sends before it is
//! logged in cost more than a little memory.

mod lookup;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use pgwire::messages::startup::Authentication;
use tokio::time::{sleep, timeout};

use self::lookup::LookedUp;
use super::Proxy;
use super::cancel::Handle;
use super::refusal::Refusal;
use crate::auth::{AuthRequest, ClientAuth, Proven, Rejection, Step};
use crate::cluster::node::{Node, Role};
use crate::cluster::pool::{CheckoutError, Pool, PoolKey, Server};
use crate::cluster::{self, Cluster};
use crate::net::buffers;
use crate::net::stream::Stream;
use crate::session::server::Params;
use crate::session::settings::Settings;
use crate::telemetry;
use crate::wire::WireError;
use crate::wire::encode::{self, Severity};
use crate::wire::frame::{HEADER, body, header};
use crate::wire::message::Status;
use crate::wire::startup::{self, Parameters, Startup};

/// The longest password message, in bytes (`PG_MAX_AUTH_TOKEN_LENGTH`).
const PASSWORD_BYTES_MAX: usize = 65_535;

/// How many encryption requests a client may make: one of each kind.
const REQUESTS_MAX: usize = 2;

/// A client that is logged in and has been greeted.
pub struct Welcome {
    pub stream: Stream,
    pub inbox: BytesMut,
    pub cluster: Arc<Cluster>,
    pub key: PoolKey,
    pub credential: Proven,
    /// What the client has set at start-up.
    pub settings: Settings,
    /// What the client has been told.
    pub params: Params,
}

/// Brings a connection to its first ReadyForQuery; `None` when it ends before that.
pub async fn shake_hands(proxy: &Proxy, stream: Stream, handle: &Handle) -> Option<Welcome> {
    let limit = proxy.config.load().listen.login_timeout;
    let mut guest = Guest {
        stream,
        inbox: buffers::take(),
    };
    let refusal = tokio::select! {
        outcome = timeout(limit, guest.log_in(proxy, handle)) => match outcome {
            Ok(Ok(Some(login))) => {
                let Guest { stream, inbox } = guest;
                let Login { cluster, key, credential, settings, params } = login;
                return Some(Welcome { stream, inbox, cluster, key, credential, settings, params });
            }
            Ok(Ok(None)) => None,
            Ok(Err(refusal)) => Some(refusal),
            Err(_) => None,
        },
        () = handle.stop.notified() => {
            Some(Refusal::protocol("57P01", "terminating connection due to administrator command"))
        }
    };
    if let Some(refusal) = refusal {
        guest.dismiss(&refusal).await;
    }
    buffers::give_back(&mut guest.inbox);
    None
}

/// A connection that is not logged in.
struct Guest {
    stream: Stream,
    inbox: BytesMut,
}

struct Login {
    cluster: Arc<Cluster>,
    key: PoolKey,
    credential: Proven,
    settings: Settings,
    params: Params,
}

impl Guest {
    /// `None` when the connection is over with nothing left to say.
    async fn log_in(&mut self, proxy: &Proxy, handle: &Handle) -> Result<Option<Login>, Refusal> {
        let Some(parameters) = self.start(proxy).await? else {
            return Ok(None);
        };
        let config = proxy.config.load_full();
        if proxy.sessions.len() > config.listen.max_clients {
            return Err(Refusal::protocol(
                "53300",
                "sorry, too many clients already",
            ));
        }
        let mut out = BytesMut::new();
        negotiate(&parameters, &mut out)?;
        let text = |name| parameters.get(name).map(utf8).transpose();
        let Some(user) = text("user")?.filter(|user| !user.is_empty()) else {
            let message = "no PostgreSQL user name specified in startup packet";
            return Err(Refusal::protocol("28000", message));
        };
        let database = text("database")?
            .filter(|name| !name.is_empty())
            .unwrap_or(user);
        if !matches!(
            text("replication")?,
            None | Some("false" | "off" | "no" | "0")
        ) {
            let message = "replication connections are not supported; connect to a node directly";
            return Err(Refusal::protocol("0A000", message));
        }
        let who = (user, database);
        let Some(credential) = self.authenticate(proxy, who, &mut out).await? else {
            return Ok(None);
        };
        let Some(cluster) = proxy.clusters.serving(database) else {
            let message = format!("database \"{database}\" is not configured in any cluster");
            return Err(Refusal::protocol("3D000", message));
        };
        let settings = wanted_settings(&parameters)?;
        let key = PoolKey {
            database: database.to_owned(),
            user: user.to_owned(),
        };
        let params = proxy
            .welcomes
            .params(&cluster, &key, &credential, &settings)
            .await?;
        encode::authentication(&mut out, &Authentication::Ok);
        for (name, value) in params.iter() {
            encode::parameter_status(&mut out, name, value);
        }
        // What every primary reports; servers' own reports of it are not passed on.
        encode::parameter_status(&mut out, b"in_hot_standby", b"off");
        encode::key_data(&mut out, handle.pid, handle.secret);
        encode::ready(&mut out, Status::Idle);
        self.stream.write_all(&out).await.map_err(|_| gone())?;
        Ok(Some(Login {
            cluster,
            key,
            credential,
            settings,
            params,
        }))
    }

    /// Answers what comes before the StartupMessage, and takes that.
    async fn start(&mut self, proxy: &Proxy) -> Result<Option<Parameters>, Refusal> {
        let mut requests = 0;
        loop {
            let parsed = startup::parse(&self.inbox).map_err(|error| match error {
                WireError::Length(_) => {
                    Refusal::protocol("08P01", "invalid length of startup packet")
                }
                _ => Refusal::protocol("08P01", "invalid startup packet layout"),
            })?;
            let Some((packet, len)) = parsed else {
                if !self.read().await {
                    return Ok(None);
                }
                continue;
            };
            self.inbox.advance(len);
            match packet {
                Startup::Start(parameters) => return Ok(Some(parameters)),
                Startup::Cancel { pid, secret } => {
                    proxy.sessions.cancel(pid, &secret).await;
                    return Ok(None);
                }
                Startup::Ssl | Startup::GssEnc => {
                    requests += 1;
                    if requests > REQUESTS_MAX {
                        return Err(Refusal::protocol("08P01", "too many encryption requests"));
                    }
                    if !self.inbox.is_empty() {
                        let message = "received unencrypted data after encryption request";
                        return Err(Refusal::protocol("08P01", message));
                    }
                    // Neither is offered: the client goes on in plain text, or leaves.
                    if self.stream.write_all(b"N").await.is_err() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Proves who the client is; `None` when it has gone meanwhile.
    async fn authenticate(
        &mut self,
        proxy: &Proxy,
        (user, database): (&str, &str),
        out: &mut BytesMut,
    ) -> Result<Option<Proven>, Refusal> {
        let users = proxy.users.load_full();
        let mut looked_up = LookedUp::find(proxy, &users, user, database).await?;
        let (mut auth, mut step) = match &looked_up {
            Some(looked_up) => looked_up.begin(&users, user),
            None => ClientAuth::new(&users, user, rand::random(), rand::random()),
        };
        loop {
            match step {
                Step::Accept(accepted) => {
                    if let Some(data) = accepted.sasl_final {
                        encode::authentication(out, &Authentication::SASLFinal(data.into()));
                    }
                    return Ok(Some(Proven::now(accepted.credential)));
                }
                Step::Reject(rejection) => {
                    if let (Rejection::WrongPassword { .. }, Some(looked_up)) =
                        (&rejection, &mut looked_up)
                        && let Some(rechecked) = looked_up.recheck(&mut auth, user).await
                    {
                        step = rechecked;
                        continue;
                    }
                    let sqlstate = rejection.sqlstate();
                    telemetry::count_refused_login(sqlstate);
                    tracing::info!(user, peer = ?self.stream.peer(), ?rejection, "login refused");
                    return Err(Refusal::protocol(sqlstate, rejection.to_string()));
                }
                Step::Send(request) => encode::authentication(out, &message(request)),
            }
            if self.stream.write_all(out).await.is_err() {
                return Ok(None);
            }
            out.clear();
            let Some(password) = self.password_message().await? else {
                return Ok(None);
            };
            step = auth.on_password_message(body(&password));
        }
    }

    async fn password_message(&mut self) -> Result<Option<BytesMut>, Refusal> {
        loop {
            let head = header(&self.inbox);
            let head = head.map_err(|error| Refusal::protocol("08P01", error.to_string()))?;
            if let Some(head) = head {
                if head.tag != b'p' {
                    let tag = head.tag;
                    let message = format!("expected password response, got message type {tag}");
                    return Err(Refusal::protocol("08P01", message));
                }
                if head.len > HEADER + PASSWORD_BYTES_MAX {
                    return Err(Refusal::protocol("08P01", "password message is too long"));
                }
                if self.inbox.len() >= head.len {
                    return Ok(Some(self.inbox.split_to(head.len)));
                }
            }
            if !self.read().await {
                return Ok(None);
            }
        }
    }

    /// `false` at the end of the stream.
    async fn read(&mut self) -> bool {
        self.inbox.reserve(1024);
        matches!(self.stream.read(&mut self.inbox).await, Ok(n) if n > 0)
    }

    async fn dismiss(&mut self, refusal: &Refusal) {
        let mut out = BytesMut::new();
        refusal.encode(Severity::Fatal, &mut out);
        let _ = timeout(super::LAST_WORDS, self.stream.write_all(&out)).await;
    }
}

/// The client has gone; nobody reads this.
fn gone() -> Refusal {
    Refusal::protocol("08006", "client has gone")
}

fn message(request: AuthRequest) -> Authentication {
    match request {
        AuthRequest::Md5Password { salt } => Authentication::MD5Password(salt.to_vec()),
        AuthRequest::Sasl { mechanisms } => {
            Authentication::SASL(mechanisms.iter().map(|&name| name.to_owned()).collect())
        }
        AuthRequest::SaslContinue(data) => Authentication::SASLContinue(data.into()),
    }
}

/// Refuses another major version; tells the client what of its wishes we don't know.
fn negotiate(parameters: &Parameters, out: &mut BytesMut) -> Result<(), Refusal> {
    let (major, minor) = (parameters.version >> 16, parameters.version & 0xffff);
    if major != 3 {
        let message = format!("unsupported frontend protocol {major}.{minor}: server supports 3.0");
        return Err(Refusal::protocol("0A000", message));
    }
    let options = parameters
        .pairs
        .iter()
        .filter(|(name, _)| name.starts_with(b"_pq_."));
    let unknown: Vec<_> = options
        .map(|(name, _)| String::from_utf8_lossy(name).into_owned())
        .collect();
    if minor > 0 || !unknown.is_empty() {
        encode::negotiate_version(out, startup::PROTOCOL_3_0, unknown);
    }
    Ok(())
}

fn utf8(text: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(text)
        .map_err(|_| Refusal::protocol("22021", "startup parameters must be encoded in UTF-8"))
}

/// The settings that the start-up message asks for, `options` first, as PostgreSQL applies them.
fn wanted_settings(parameters: &Parameters) -> Result<Settings, Refusal> {
    let mut settings = Vec::new();
    if let Some(options) = parameters.get("options") {
        settings.extend(parse_options(utf8(options)?)?);
    }
    for (name, value) in &parameters.pairs {
        let name = utf8(name)?;
        let own = matches!(name, "user" | "database" | "options" | "replication");
        if !own && !name.starts_with("_pq_.") {
            settings.push((name.to_owned(), utf8(value)?.to_owned()));
        }
    }
    Ok(Settings::from_startup(
        settings.iter().map(|(n, v)| (n.as_str(), v.as_str())),
    ))
}

/// Reads command-line options as PostgreSQL does: `-c name=value` and `--name=value`, words apart by
/// spaces, a backslash before a space or backslash that is meant.
fn parse_options(options: &str) -> Result<Vec<(String, String)>, Refusal> {
    let mut words = split_options(options).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let assignment = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(long), _) => Some(long.to_owned()),
            (_, Some("")) => words.next(),
            (_, Some(joined)) => Some(joined.to_owned()),
            _ => None,
        };
        let pair = assignment.as_deref().and_then(|text| text.split_once('='));
        let Some((name, value)) = pair else {
            let message = format!("invalid command-line argument for server process: {word}");
            return Err(Refusal::protocol("42601", message));
        };
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

fn split_options(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// What servers report to those who log in with certain settings: remembered for a short while, so
/// that a storm of connects does not become one on the servers.
#[derive(Default)]
pub struct Welcomes {
    known: Mutex<HashMap<(String, PoolKey), Vec<Known>>>,
}

struct Known {
    settings: Settings,
    params: Params,
    at: Instant,
}

impl Welcomes {
    /// How long a report is taken for the present one. What changes later, the session is told at
    /// its first query.
    const LIFE: Duration = Duration::from_secs(10);
    /// Distinct settings remembered for one database and user, and of these in all.
    const SETTINGS_MAX: usize = 64;
    const KEYS_MAX: usize = 1024;

    /// What a server reports with `settings`.
    async fn params(
        &self,
        cluster: &Arc<Cluster>,
        key: &PoolKey,
        credential: &Proven,
        settings: &Settings,
    ) -> Result<Params, Refusal> {
        if let Some(params) = self.remembered(&cluster.name, key, settings) {
            return Ok(params);
        }
        let mut server = any_server(cluster, key, credential, settings).await?;
        for sql in server.state.settings.difference(settings) {
            server.run(&sql).await.map_err(|error| match error {
                cluster::connect::ConnectError::Refused(words) => Refusal::Server(words),
                error => {
                    let node = server.node().name.clone();
                    Refusal::Lost {
                        node,
                        error: error.to_string(),
                    }
                }
            })?;
        }
        server.state.settings = settings.clone();
        let params = server.state.params.clone();
        server.give_back();
        self.remember(&cluster.name, key, settings, &params);
        Ok(params)
    }

    /// What is known of this cluster may no longer be so.
    pub fn forget(&self, cluster: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(name, _), _| name != cluster);
    }

    fn remembered(&self, cluster: &str, key: &PoolKey, settings: &Settings) -> Option<Params> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = known.get(&(cluster.to_owned(), key.clone()))?;
        let fresh = |known: &&Known| known.at.elapsed() < Self::LIFE && known.settings == *settings;
        entries.iter().find(fresh).map(|known| known.params.clone())
    }

    fn remember(&self, cluster: &str, key: &PoolKey, settings: &Settings, params: &Params) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Self::KEYS_MAX {
            known.retain(|_, entries| entries.iter().any(|known| known.at.elapsed() < Self::LIFE));
        }
        let entries = known.entry((cluster.to_owned(), key.clone())).or_default();
        entries.retain(|known| known.at.elapsed() < Self::LIFE && known.settings != *settings);
        if entries.len() < Self::SETTINGS_MAX {
            let (settings, params) = (settings.clone(), params.clone());
            entries.push(Known {
                settings,
                params,
                at: Instant::now(),
            });
        }
    }
}

/// A server to greet a client with: of any node that is up, replicas first, so that clients can log
/// in while there is no primary.
async fn any_server(
    cluster: &Arc<Cluster>,
    key: &PoolKey,
    credential: &Proven,
    settings: &Settings,
) -> Result<Box<Server>, Refusal> {
    let started = Instant::now();
    loop {
        let (mut nodes, config) = {
            let topology = cluster.topology();
            (topology.nodes.clone(), topology.config.clone())
        };
        let usable = |node: &Arc<Node>| match node.role() {
            Role::Primary => true,
            Role::Replica => !settings.need_primary(),
            Role::Unknown => false,
        };
        nodes.retain(|node| node.is_up() && usable(node));
        let nodes = nodes.into_iter().map(|node| {
            let pool = cluster::pool(&node, key, credential, &config.pool);
            (node, pool)
        });
        // The primary knows best how things are, but a login should not wait for its clients.
        let rank = |(node, pool): &(Arc<Node>, Arc<Pool>)| match node.role() {
            Role::Primary if !pool.is_saturated() => (0, 0),
            Role::Primary => (2, 0),
            _ => (1, node.in_flight()),
        };
        let mut nodes: Vec<_> = nodes.collect();
        nodes.sort_by_key(rank);
        let mut refused = None;
        for (node, pool) in &nodes {
            match pool.checkout(settings, 0).await {
                Ok(server) => return Ok(server),
                Err(CheckoutError::Connect { error, .. }) if error.is_node_away() => {}
                Err(CheckoutError::Leaving { .. }) => {}
                Err(error) if node.role() == Role::Replica && error.is_for_primary_to_say() => {
                    tracing::info!(user = %key.user, %error, "replica refuses the login");
                    refused = Some(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(error) = refused {
            return Err(error.into());
        }
        if started.elapsed() >= config.failover.hold {
            return Err(Refusal::protocol(
                "57P03",
                format!("no node of cluster \"{}\" is available", cluster.name),
            ));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_postgresql_reads_them() {
        let parse = |text| parse_options(text).map_err(|refusal| refusal.to_string());
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        assert_eq!(
            parse("-c a=1  --work-mem=2MB -cb=x"),
            Ok(vec![
                pair("a", "1"),
                pair("work_mem", "2MB"),
                pair("b", "x")
            ])
        );
        assert_eq!(
            parse(r"-c search_path=a,\ b"),
            Ok(vec![pair("search_path", "a, b")])
        );
        assert_eq!(parse(""), Ok(vec![]));
        assert!(parse("-c a").is_err());
        assert!(parse("-x").is_err());
    }
}
