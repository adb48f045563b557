//! Owns: a connection from its first byte to its first ReadyForQuery: encryption requests, the
//! start-up message, the login, the greeting. Never: lets anything a client sends before it is
//! logged in cost more than a little memory.

mod encryption;
mod lookup;
mod welcomes;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use pgwire::messages::startup::Authentication;
use tokio::time::timeout;

use self::encryption::Agreed;
use self::lookup::LookedUp;
pub use self::welcomes::Welcomes;
use super::Proxy;
use super::console;
use super::refusal::Refusal;
use super::replication::{self, Kind, Upstream};
use super::sessions::{Handle, Who};
use crate::auth::{AuthRequest, Channel, ClientAuth, Proven, Rejection, Step};
use crate::cluster::Cluster;
use crate::cluster::pool::PoolKey;
use crate::config::{Config, ConsoleRight, NAME_BYTES_MAX, Replication};
use crate::net::buffers;
use crate::net::stream::{Peer, Stream};
use crate::net::tls::Offer;
use crate::session::own;
use crate::session::params::Params;
use crate::session::settings::Settings;
use crate::sql::lexer::clipped;
use crate::telemetry;
use crate::wire::WireError;
use crate::wire::encode::{self, Severity};
use crate::wire::frame::{HEADER, body, header};
use crate::wire::message::Status;
use crate::wire::options::{self, OptionsError};
use crate::wire::startup::{self, PROTOCOL_3_2, Parameters, Startup};

/// The longest password message, in bytes (`PG_MAX_AUTH_TOKEN_LENGTH`).
const PASSWORD_BYTES_MAX: usize = 65_535;

/// How many encryption requests a client may make: one of each kind.
const REQUESTS_MAX: usize = 2;

/// How many clients of the console are taken beyond the limit of clients: when that is reached is when
/// somebody has to look.
pub(super) const CONSOLE_CLIENTS: usize = 8;

/// A connection that has been let in and greeted, with what its client has said since.
pub struct Admitted {
    pub stream: Stream,
    pub inbox: BytesMut,
    pub entry: Entry,
}

/// What a login has come to.
pub enum Entry {
    Session(Box<Login>),
    Console(Box<ConsoleLogin>),
    /// A replication connection's other end.
    Replication(Box<Upstream>),
}

/// A client that is logged in.
pub struct Login {
    pub cluster: Arc<Cluster>,
    pub key: PoolKey,
    pub credential: Proven,
    /// What the client has set at start-up.
    pub settings: Settings,
    /// What the client has been told.
    pub params: Params,
    /// What it calls itself.
    pub application_name: String,
}

impl Login {
    /// Who others see its client, which has come over `stream`, to be.
    pub fn who(&self, stream: &Stream) -> Who {
        let cluster = Some(self.cluster.clone());
        Who::new(cluster, &self.key, stream, &self.application_name)
    }
}

/// A client that is logged in to the console.
pub struct ConsoleLogin {
    pub key: PoolKey,
    pub credential: Proven,
    pub right: ConsoleRight,
    pub application_name: String,
}

/// Brings a connection to its first ReadyForQuery; `None` when it ends before that.
pub async fn shake_hands(proxy: &Proxy, stream: Stream, handle: &Handle) -> Option<Admitted> {
    let limit = proxy.config.load().listen.login_timeout;
    let mut guest = Guest {
        stream,
        inbox: BytesMut::new(),
        offer: None,
        user: None,
        shaking_hands: None,
    };
    let refusal = tokio::select! {
        outcome = timeout(limit, guest.log_in(proxy, handle)) => match outcome {
            Ok(Ok(Some(entry))) => {
                let Guest { stream, inbox, .. } = guest;
                return Some(Admitted { stream, inbox, entry });
            }
            Ok(Ok(None)) => None,
            Ok(Err(refusal)) => Some(refusal),
            Err(_) => {
                guest.log_timeout(limit);
                None
            }
        },
        () = handle.stop.notified() => Some(Refusal::going_down()),
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
    /// What the stream was encrypted by, if it is.
    offer: Option<Arc<Offer>>,
    /// Who it has said to be.
    user: Option<String>,
    /// Who has begun a TLS handshake that is not over: the stream is not here meanwhile.
    shaking_hands: Option<Peer>,
}

impl Guest {
    /// `None` when the connection is over with nothing left to say.
    async fn log_in(&mut self, proxy: &Proxy, handle: &Handle) -> Result<Option<Entry>, Refusal> {
        let Some(parameters) = self.start(proxy).await? else {
            return Ok(None);
        };
        let config = proxy.config.load_full();
        let name = |name| parameters.get(name).map(clipped);
        self.user = name("user").map(|user| String::from_utf8_lossy(user).into_owned());
        let named = name("database").filter(|name| !name.is_empty());
        let wanted = named.or(name("user"));
        let wanted = wanted.and_then(|name| std::str::from_utf8(name).ok());
        let is_console = wanted.is_some_and(|name| config.console.is_wanted(name));
        // Those of the console later: who cannot log in must not take the places that are kept for it.
        if !is_console && !proxy.sessions.admit(handle, config.listen.max_clients) {
            return Err(Refusal::too_many_clients());
        }
        let mut out = BytesMut::new();
        if parameters.major() < 3 {
            encode::error_of_protocol_2(&mut out, &unsupported(&parameters));
            let _ = timeout(super::LAST_WORDS, self.stream.write_all(&out)).await;
            return Ok(None);
        }
        negotiate(&parameters, &mut out)?;
        let Some(user) = name("user")
            .map(utf8)
            .transpose()?
            .filter(|user| !user.is_empty())
        else {
            let message = "no PostgreSQL user name specified in startup packet";
            return Err(Refusal::protocol("28000", message));
        };
        let database = named.map(utf8).transpose()?.unwrap_or(user);
        let replication = parameters.get("replication").map(utf8).transpose()?;
        let replication = replication::wanted(replication)?;
        if is_console && replication.is_some() {
            let message = "the console has nothing to replicate";
            return Err(Refusal::protocol("0A000", message));
        }
        if replication.is_some() && config.routing.replication == Replication::Refuse {
            let message = "replication connections are not passed through";
            let hint = "Connect to a node directly, or set routing.replication = \"primary\" \
                to have them passed through to the primary.";
            return Err(Refusal::hinted("0A000", message, hint));
        }
        let channel = self.channel(proxy, user, database)?;
        let mut cluster = proxy.clusters.serving(database);
        if replication == Some(Kind::Physical) {
            cluster = cluster.or_else(|| proxy.clusters.only());
        }
        let who = (user, cluster.as_ref());
        let login = self.authenticate(proxy, who, &channel, &mut out);
        let Some(credential) = login.await? else {
            return Ok(None);
        };
        if let Some(cluster) = &cluster {
            cluster.note_login(user, database, &credential);
        }
        encode::authentication(&mut out, &Authentication::Ok);
        let guest = Authenticated {
            user,
            database,
            credential,
            replication,
        };
        let entered = match is_console {
            true => guest.enter_console(&config, &parameters, |places| {
                proxy.sessions.admit(handle, places)
            }),
            false => guest.enter(proxy, cluster, &parameters).await,
        };
        if let Ok((_, params)) = &entered {
            greeting(params, handle, parameters.version, &mut out);
        }
        // Also before a refusal: PostgreSQL looks at a database and settings after it has said that
        // the login is right, and some clients go by that.
        self.stream.write_all(&out).await.map_err(|_| gone())?;
        entered.map(|(entry, _)| Some(entry))
    }

    /// Answers what comes before the StartupMessage, and takes that.
    async fn start(&mut self, proxy: &Proxy) -> Result<Option<Parameters>, Refusal> {
        let mut requests = 0;
        loop {
            if requests == 0 && self.begins_tls() {
                requests = REQUESTS_MAX;
                if let Agreed::Over = self.go_direct(proxy).await {
                    return Ok(None);
                }
            }
            let parsed = match startup::parse(&self.inbox) {
                Ok(parsed) => parsed,
                // Who sends a cancel request is told nothing, that it is malformed included.
                Err(WireError::Value) => return Ok(None),
                // Whoever this is, it is no client of PostgreSQL's, or one that leaves before it has begun.
                Err(WireError::Length(_)) => {
                    tracing::debug!(peer = %self.stream.peer(), "invalid length of startup packet");
                    return Ok(None);
                }
                Err(_) => {
                    let message = "invalid startup packet layout: expected terminator as last byte";
                    return Err(Refusal::protocol("08P01", message));
                }
            };
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
                request @ (Startup::Ssl | Startup::GssEnc) => {
                    requests += 1;
                    if requests > REQUESTS_MAX {
                        return Err(Refusal::protocol("08P01", "too many encryption requests"));
                    }
                    let agreed = match request {
                        Startup::Ssl => self.answer_ssl_request(proxy).await?,
                        _ => self.answer_gss_request().await?,
                    };
                    if let Agreed::Over = agreed {
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
        (user, cluster): (&str, Option<&Arc<Cluster>>),
        channel: &Channel,
        out: &mut BytesMut,
    ) -> Result<Option<Proven>, Refusal> {
        let users = proxy.users.load_full();
        let mut looked_up = LookedUp::find(proxy, &users, user, cluster).await?;
        let (mut auth, mut step) = match &looked_up {
            Some(looked_up) => looked_up.begin(&users, user, channel),
            None => ClientAuth::new(&users, user, channel, rand::random(), rand::random()),
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
                    return Err(self.rejected(user, &rejection));
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
        if self.inbox.capacity() == 0 {
            // Who says nothing needs no buffer.
            let readable = poll_fn(|cx| self.stream.poll_readable(cx)).await;
            if readable.is_err() {
                return false;
            }
            self.inbox = buffers::take();
        }
        self.inbox.reserve(1024);
        matches!(self.stream.read(&mut self.inbox).await, Ok(n) if n > 0)
    }

    /// Not of who has said nothing: that may be anybody who looks whether the port is open.
    fn log_timeout(&self, limit: Duration) {
        if let Some(peer) = &self.shaking_hands {
            telemetry::metrics().tls_failures.increment(1);
            tracing::info!(%peer, ?limit, "TLS handshake not finished within listen.login_timeout");
        }
        if let Some(user) = &self.user {
            let peer = self.stream.peer();
            tracing::info!(user, %peer, ?limit, "login not finished within listen.login_timeout");
        }
    }

    async fn dismiss(&mut self, refusal: &Refusal) {
        let mut out = BytesMut::new();
        refusal.encode(Severity::Fatal, &mut out);
        let _ = timeout(super::LAST_WORDS, self.stream.write_all(&out)).await;
    }
}

/// A client that has proved who it is.
struct Authenticated<'a> {
    user: &'a str,
    database: &'a str,
    credential: Proven,
    replication: Option<Kind>,
}

impl Authenticated<'_> {
    /// Lets it in, with the parameters that it is to be told.
    async fn enter(
        self,
        proxy: &Proxy,
        cluster: Option<Arc<Cluster>>,
        parameters: &Parameters,
    ) -> Result<(Entry, Params), Refusal> {
        let Authenticated { user, database, .. } = self;
        let Some(cluster) = cluster else {
            return Err(Refusal::unserved(database));
        };
        let used = match self.replication {
            Some(Kind::Physical) => "",
            Some(Kind::Logical) | None => database,
        };
        let key = PoolKey {
            database: used.into(),
            user: user.into(),
        };
        if self.replication.is_some() {
            let (own, name) = (own_parameters(parameters)?, application_name(parameters));
            let upstream = Upstream::open(&cluster, key, &self.credential, &own, name).await?;
            let params = upstream.connection.params.clone();
            return Ok((Entry::Replication(Box::new(upstream)), params));
        }
        let settings = wanted_settings(parameters, cluster.system())?;
        let params = proxy
            .welcomes
            .params(&cluster, &key, &self.credential, &settings.without_own())
            .await?;
        let login = Login {
            cluster,
            key,
            credential: self.credential,
            settings,
            params: params.clone(),
            application_name: application_name(parameters),
        };
        Ok((Entry::Session(Box::new(login)), params))
    }

    /// The same into the console, if it is admitted where so many places are.
    fn enter_console(
        self,
        config: &Config,
        parameters: &Parameters,
        admit: impl FnOnce(usize) -> bool,
    ) -> Result<(Entry, Params), Refusal> {
        let user = self.user;
        let Some(right) = config.console.right(user) else {
            let message = format!("user \"{user}\" may not use the console");
            let hint = "Who may is listed in console.admins and console.viewers.";
            return Err(Refusal::hinted("42501", message, hint));
        };
        if !admit(config.listen.max_clients + CONSOLE_CLIENTS) {
            return Err(Refusal::too_many_clients());
        }
        let login = ConsoleLogin {
            key: PoolKey {
                database: self.database.into(),
                user: user.into(),
            },
            credential: self.credential,
            right,
            application_name: application_name(parameters),
        };
        Ok((Entry::Console(Box::new(login)), console::params()))
    }
}

/// What a client calls itself; what is too long or not UTF-8 is left out.
fn application_name(parameters: &Parameters) -> String {
    let name = parameters.get("application_name");
    let name = name.and_then(|name| std::str::from_utf8(name).ok());
    let name = name.filter(|name| name.len() <= NAME_BYTES_MAX);
    name.unwrap_or_default().to_owned()
}

/// What a client is told that is let in, behind AuthenticationOk.
fn greeting(params: &Params, handle: &Handle, version: i32, out: &mut BytesMut) {
    for (name, value) in params.iter() {
        encode::parameter_status(out, name, value);
    }
    // What every primary reports; servers' own reports of it are not passed on.
    encode::parameter_status(out, b"in_hot_standby", b"off");
    encode::key_data(out, handle.pid, handle.tell(version));
    encode::ready(out, Status::Idle);
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

/// Refuses another major version. As PostgreSQL does, goes on with what is known where the client
/// wishes for a newer minor version or an option, and says so.
fn negotiate(parameters: &Parameters, out: &mut BytesMut) -> Result<(), Refusal> {
    let newest = PROTOCOL_3_2;
    if parameters.major() != 3 {
        return Err(Refusal::protocol("0A000", unsupported(parameters)));
    }
    let unknown: Vec<_> = parameters.protocol_options().collect();
    if parameters.version > newest || !unknown.is_empty() {
        encode::negotiate_version(out, parameters.version.min(newest), &unknown);
    }
    Ok(())
}

fn unsupported(parameters: &Parameters) -> String {
    let (major, minor, newest) = (
        parameters.major(),
        parameters.minor(),
        PROTOCOL_3_2 & 0xffff,
    );
    format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{newest}")
}

fn utf8(text: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(text)
        .map_err(|_| Refusal::protocol("22021", "startup parameters must be encoded in UTF-8"))
}

/// The parameters beside the user's name, but for wishes about the protocol.
fn own_parameters(parameters: &Parameters) -> Result<Vec<(&str, &str)>, Refusal> {
    let mut own = Vec::new();
    for (name, value) in &parameters.pairs {
        let name = utf8(name)?;
        if name != "user" && !name.starts_with("_pq_.") {
            own.push((name, utf8(value)?));
        }
    }
    Ok(own)
}

fn invalid_options(error: OptionsError) -> Refusal {
    let message = error.to_string();
    match error {
        OptionsError::Argument(_) => {
            let hint = "Try \"postgres --help\" for more information.";
            Refusal::hinted("42601", message, hint)
        }
        OptionsError::Value(_) => Refusal::protocol("42601", message),
    }
}

/// The settings that the start-up message asks for, `options` first, as PostgreSQL applies them.
fn wanted_settings(parameters: &Parameters, system: u64) -> Result<Settings, Refusal> {
    let mut settings = Vec::new();
    if let Some(options) = parameters.get("options") {
        settings.extend(options::parse(utf8(options)?).map_err(invalid_options)?);
    }
    for (name, value) in &parameters.pairs {
        let name = utf8(name)?;
        let own = matches!(name, "user" | "database" | "options" | "replication");
        if !own && !name.starts_with("_pq_.") {
            settings.push((name.to_owned(), utf8(value)?.to_owned()));
        }
    }
    for (name, value) in &settings {
        let name = name.to_ascii_lowercase();
        if name.starts_with(own::PREFIX) {
            own::check_value(&name, value, system).map_err(Refusal::Complaint)?;
        }
    }
    Ok(Settings::from_startup(
        settings.iter().map(|(n, v)| (n.as_str(), v.as_str())),
    ))
}
