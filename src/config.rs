//! The configuration: its types, defaults and loading.
//! Never applies anything, and never holds a value that its own checks have not passed.

pub mod diff;
mod error;
mod level;
mod parse;
mod section;
mod tls;
mod units;
pub mod verifier;
mod warnings;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use diff::{Diff, diff, keep_until_restart};
pub use error::{ConfigError, Fault};
pub use level::{Consistency, Level, OnNoReplica, Override, Redis, Wish};
pub use tls::{ListenTls, NodeTls, OfferMode, SslMode};
pub use units::{DURATION_FORM, DURATION_MAX, parse_duration, show_duration};
pub use verifier::{Verifier, VerifierError};

/// The longest name that PostgreSQL keeps, in bytes: `NAMEDATALEN - 1`. It cuts off the rest.
pub const NAME_BYTES_MAX: usize = 63;

/// One file's worth of configuration. Equal configs behave alike.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    pub listen: Listen,
    pub http: Http,
    pub auth: Auth,
    pub console: Console,
    pub pool: Pool,
    pub routing: Routing,
    pub consistency: Consistency,
    pub lag: Lag,
    pub health: Health,
    pub failover: Failover,
    pub log: Log,
    /// At least one, once loaded from a file.
    pub clusters: Vec<Cluster>,
}

impl Config {
    /// How long ago at most something was written that a replica may lack which takes reads. The lag limit is kept
    /// as far as is known, which each of the two nodes tells once in so long.
    pub fn staleness_max(&self) -> Duration {
        self.lag.max + (self.health.interval + self.health.timeout) * 2
    }

    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            path: path.to_owned(),
            error,
        })?;
        let origin = path.display().to_string();
        let directory = path.parent().unwrap_or(Path::new(""));
        parse::config(error::Source {
            origin: &origin,
            text: &text,
            directory,
        })
    }

    /// Reads a config from its text; `origin` is the name it goes by in errors. Files that it names
    /// are relative to the current directory.
    pub fn parse(text: &str, origin: &str) -> Result<Config, ConfigError> {
        let directory = Path::new("");
        parse::config(error::Source {
            origin,
            text,
            directory,
        })
    }

    /// Whom the nodes of the cluster of this name are probed as.
    pub fn monitor(&self, cluster: &str) -> Monitor {
        let cluster = self.clusters.iter().find(|known| known.name == cluster);
        if let Some(monitor) = cluster.and_then(|cluster| cluster.monitor.as_ref()) {
            return monitor.clone();
        }
        if self.auth.users.is_empty()
            && let Some(lookup) = &self.auth.lookup
        {
            return Monitor {
                user: lookup.user.clone(),
                password: lookup.password.clone(),
                database: lookup.database.clone(),
            };
        }
        let user = self.auth.users.first();
        Monitor {
            user: user.map_or("tidegate", |user| &user.name).to_owned(),
            password: user.and_then(|user| user.password.clone()),
            database: "postgres".to_owned(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// At least one.
    pub address: Vec<SocketAddr>,
    /// Where there is a Unix socket for each of the addresses' ports.
    pub unix_socket_dir: Option<PathBuf>,
    /// Whether another process may listen on the same addresses meanwhile.
    pub reuse_port: bool,
    /// `None` offers no TLS.
    pub tls: Option<ListenTls>,
    pub max_clients: usize,
    /// How many threads serve clients, at most; 0 is one per core.
    pub workers: usize,
    /// Over how many of them clients are spread at least.
    pub workers_min: usize,
    /// How long a client may take from connecting to being logged in.
    pub login_timeout: Duration,
    /// How long, once told to end, the proxy serves the clients that it has, before it shuts down.
    pub shutdown_grace: Duration,
    /// How long a shutdown waits for open transactions.
    pub shutdown_timeout: Duration,
}

impl Default for Listen {
    fn default() -> Listen {
        Listen {
            address: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 6432))],
            unix_socket_dir: None,
            reuse_port: false,
            tls: None,
            max_clients: 10_000,
            workers: 0,
            workers_min: 1,
            login_timeout: Duration::from_secs(60),
            shutdown_grace: Duration::ZERO,
            shutdown_timeout: Duration::from_secs(30),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Where metrics and health are served; `None` serves them nowhere.
    pub address: Option<SocketAddr>,
}

impl Default for Http {
    fn default() -> Http {
        Http {
            address: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9632))),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Auth {
    pub method: AuthMethod,
    /// With distinct names.
    pub users: Vec<User>,
    /// Where users that are not listed are looked up; `None` refuses them.
    pub lookup: Option<Lookup>,
}

impl Auth {
    /// The user's password, if it is listed in plain text.
    pub fn password(&self, user: &str) -> Option<&Secret> {
        let listed = self.users.iter().find(|listed| listed.name == user);
        listed?.password.as_ref()
    }
}

/// How users are looked up in the database: the `query` keys of `[auth]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// Who asks.
    pub user: String,
    pub password: Option<Secret>,
    /// Where it is asked, on the primary or a replica of the cluster that the client wants.
    pub database: String,
    /// Has the user's name as `$1`, and gives its name, its `rolpassword` and, if it likes, whether
    /// it may log in.
    pub query: String,
    /// How old an answer may be for a user who logs in often.
    pub cache: Duration,
}

impl Lookup {
    /// What a superuser, or who may read `pg_authid`, asks. As PostgreSQL does it, a password that has
    /// expired is none.
    pub const QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL \
        ELSE rolpassword END, rolcanlogin FROM pg_catalog.pg_authid WHERE rolname = $1";
    pub const DATABASE: &str = "postgres";
    pub const CACHE: Duration = Duration::from_secs(1);
}

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuthMethod {
    Trust,
    Md5,
    #[default]
    ScramSha256,
    /// By a certificate whose common name is the user's name.
    Cert,
}

/// Somebody who may log in, by a password or by a verifier but not both; by neither under
/// [`AuthMethod::Trust`] and [`AuthMethod::Cert`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub password: Option<Secret>,
    pub verifier: Option<Verifier>,
}

/// Where admins speak to the proxy itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Console {
    /// The name of the database that it is found by.
    pub database: String,
    /// Users who may do everything there is to do.
    pub admins: Vec<String>,
    /// Users who may look.
    pub viewers: Vec<String>,
}

impl Default for Console {
    fn default() -> Console {
        Console {
            database: "tidegate".to_owned(),
            admins: Vec::new(),
            viewers: Vec::new(),
        }
    }
}

impl Console {
    /// Whether a client that wants `database` wants the console. There is none while nobody may use it.
    pub fn is_wanted(&self, database: &str) -> bool {
        let is_used = !self.admins.is_empty() || !self.viewers.is_empty();
        is_used && self.database == database
    }

    /// What `user` may do there; `None` for nothing.
    pub fn right(&self, user: &str) -> Option<ConsoleRight> {
        let is_in = |users: &[String]| users.iter().any(|name| name == user);
        match () {
            () if is_in(&self.admins) => Some(ConsoleRight::Change),
            () if is_in(&self.viewers) => Some(ConsoleRight::Look),
            () => None,
        }
    }
}

/// What somebody may do in the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConsoleRight {
    Look,
    Change,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub mode: PoolMode,
    /// Servers per node, database and user.
    pub size: usize,
    /// How long a client waits for a free server.
    pub checkout_timeout: Duration,
    /// How long a server may be idle before it is closed.
    pub idle_timeout: Duration,
    /// How long a server is used at most before it is replaced.
    pub lifetime: Duration,
    /// How long connecting and logging in to a node may take.
    pub connect_timeout: Duration,
}

impl Default for Pool {
    fn default() -> Pool {
        Pool {
            mode: PoolMode::Transaction,
            size: 20,
            checkout_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(10 * 60),
            lifetime: Duration::from_secs(60 * 60),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// For how long a session holds a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PoolMode {
    #[default]
    Transaction,
    Session,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    /// Where this proxy is: replicas of the same zone go first.
    pub zone: Option<String>,
    pub read_primary: ReadPrimary,
    pub transaction_reads: TransactionReads,
    /// Functions to take for reads, and for writes, whatever the catalog says. A `*` stands
    /// for any part of the name.
    pub safe_functions: Vec<String>,
    pub unsafe_functions: Vec<String>,
    /// How often databases are asked for what was changed in them behind the proxy's back.
    pub catalog_interval: Duration,
    pub replication: Replication,
}

impl Default for Routing {
    fn default() -> Self {
        Routing {
            zone: None,
            read_primary: ReadPrimary::default(),
            transaction_reads: TransactionReads::default(),
            safe_functions: Vec::new(),
            unsafe_functions: Vec::new(),
            catalog_interval: Duration::from_secs(60),
            replication: Replication::default(),
        }
    }
}

/// What becomes of replication connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replication {
    #[default]
    Refuse,
    /// They are passed through to the primary.
    Primary,
}

/// Whether the primary takes reads that a replica could.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadPrimary {
    Never,
    #[default]
    WhenNeeded,
    Share,
}

/// Where reads of transactions run that may write and have not yet. Read-only transactions go to replicas
/// either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransactionReads {
    #[default]
    Primary,
    Replica,
}

/// A replica further behind than either takes no reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    pub max: Duration,
    pub max_bytes: u64,
}

impl Default for Lag {
    fn default() -> Lag {
        Lag {
            max: Duration::from_secs(10),
            max_bytes: 64 << 20,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// How often an idle node is probed.
    pub interval: Duration,
    /// How long one probe may take.
    pub timeout: Duration,
    /// How many probes in a row must fail for a node to be down.
    pub failures: u32,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            failures: 3,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    /// How long unsent writes wait for a new primary; 0 never waits.
    pub hold: Duration,
}

impl Default for Failover {
    fn default() -> Failover {
        Failover {
            hold: Duration::from_secs(10),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// Queries that take as long get a line; none do without it.
    pub slow_query: Option<Duration>,
}

impl Default for Log {
    fn default() -> Log {
        Log {
            format: LogFormat::Text,
            level: "info".to_owned(),
            slow_query: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Nodes that share a system identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Distinct among clusters.
    pub name: String,
    /// The databases it serves; `*` is every one that no other cluster names.
    pub databases: Vec<String>,
    /// Who probes the nodes.
    pub monitor: Option<Monitor>,
    /// What its sessions get where nothing closer says otherwise.
    pub consistency: Wish,
    pub tls: NodeTls,
    /// At least one.
    pub nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    pub user: String,
    pub password: Option<Secret>,
    pub database: String,
}

/// One PostgreSQL instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Distinct in its cluster; the address unless given.
    pub name: String,
    /// A host name, an IP address without brackets, or the directory of a Unix socket, which
    /// begins with a slash.
    pub host: String,
    pub port: u16,
    pub zone: Option<String>,
    /// At least 1.
    pub weight: u32,
}

impl Node {
    /// Whether it is reached through a Unix socket.
    pub fn is_local(&self) -> bool {
        self.host.starts_with('/')
    }

    /// `host:port`, with an IPv6 address in brackets.
    pub fn address(&self) -> String {
        let Node { host, port, .. } = self;
        match host.contains(':') && !self.is_local() {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        }
    }
}

/// Text that must not reach a log: it has no `Display`, and its `Debug` is `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself. Every call is a place to check for leaks.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../config.toml");

    /// The sample with its commented keys switched on: a line `# key = …` is one, prose is not.
    fn sample_with_every_key() -> String {
        let is_key = |line: &str| {
            line.split_once(" = ").is_some_and(|(key, _)| {
                !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            })
        };
        let switch_on = |line| match str::strip_prefix(line, "# ") {
            Some(key) if is_key(key) => key,
            _ => line,
        };
        SAMPLE.lines().map(switch_on).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_sample_is_valid_and_documents_the_defaults() {
        for text in [SAMPLE, &sample_with_every_key()] {
            let mut sample = Config::parse(text, "config.toml").unwrap_or_else(|e| panic!("{e}"));
            // What has no default: who may log in, and where the nodes are.
            assert_eq!(sample.auth.users[0].name, "app");
            let clusters = std::mem::take(&mut sample.clusters);
            sample.auth.users.clear();
            if let Some(lookup) = sample.auth.lookup.take() {
                let (query, database) = (lookup.query.as_str(), lookup.database.as_str());
                assert_eq!((query, database), (Lookup::QUERY, Lookup::DATABASE));
                assert_eq!(lookup.cache, Lookup::CACHE);
            }
            if let Some(redis) = sample.consistency.redis.take() {
                assert_eq!(redis.url, Secret::new("redis://127.0.0.1:6379/0"));
                let defaults = (Redis::TIMEOUT, Redis::PREFIX, Redis::KEEP);
                assert_eq!((redis.timeout, &*redis.prefix, redis.keep), defaults);
            }
            sample.routing.zone = None;
            sample.listen.tls = None;
            sample.listen.unix_socket_dir = None;
            sample.log.slow_query = None;
            sample.routing.safe_functions.clear();
            sample.routing.unsafe_functions.clear();
            assert_eq!(sample, Config::default());

            let [main] = &clusters[..] else {
                panic!("{clusters:?}")
            };
            assert_eq!(
                (main.name.as_str(), &main.databases[..]),
                ("main", &["*".to_owned()][..])
            );
            let nodes: Vec<_> = main.nodes.iter().map(|n| (n.address(), n.weight)).collect();
            let address = |port| format!("127.0.0.1:{port}");
            assert_eq!(nodes, [5500, 5501, 5502].map(|port| (address(port), 1)));
        }
    }

    #[test]
    fn the_sample_shows_every_key() {
        let sample = sample_with_every_key();
        for key in parse::every_known_key() {
            let assigned = ["\n", "{ ", ", ", "#   "].map(|before| format!("{before}{key} = "));
            let headers = [format!("[{key}]"), format!(".{key}]")];
            let mut forms = assigned.iter().chain(&headers);
            assert!(
                forms.any(|form| sample.contains(form)),
                "config.toml does not show {key}"
            );
        }
    }

    #[test]
    fn a_missing_file_is_named_with_what_to_do() {
        let error = Config::load(Path::new("/nonexistent/tidegate.toml")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the config file /nonexistent/tidegate.toml: No such file or directory \
             (os error 2); name another one with --config FILE, or start from a copy of the \
             config.toml that comes with tidegate"
        );
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let text = "[[auth.user]]\nname = 'a'\npassword = 'hunter2'\n\
                    [[cluster]]\nname = 'm'\nmonitor = { user = 'a', password = 'hunter2' }\n\
                    node = [{ address = 'h:1' }]\n";
        let shown = format!("{:?}", Config::parse(text, "t").unwrap());
        assert!(
            shown.contains("***") && !shown.contains("hunter2"),
            "{shown}"
        );
    }

    #[test]
    fn ipv6_addresses_are_shown_in_brackets() {
        let text = "[[cluster]]\nname = 'm'\n[[cluster.node]]\naddress = '[::1]:5432'\n";
        let config = Config::parse(text, "t").unwrap();
        let node = &config.clusters[0].nodes[0];
        assert_eq!(
            (node.host.as_str(), node.address().as_str()),
            ("::1", "[::1]:5432")
        );
        assert_eq!(node.name, "[::1]:5432");
    }
}
