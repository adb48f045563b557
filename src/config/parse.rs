//! From the file's tables to the typed config: which keys there are, and what must hold among them.
//! Never invents a default; those belong to the types.

mod auth;
mod cluster;
mod tls;

use std::collections::HashSet;
use std::net::{Ipv6Addr, SocketAddr};

use toml::de::DeTable;

use super::error::{ConfigError, Source};
use super::section::{Keys, Section, Value};
use super::{
    AuthMethod, Cluster, Config, Consistency, Console, Failover, Health, Http, Lag, Level, Listen,
    Log, LogFormat, OfferMode, OnNoReplica, Override, Pool, PoolMode, ReadPrimary, Redis,
    Replication, Routing, TransactionReads, Wish,
};

type Result<T> = std::result::Result<T, ConfigError>;

/// More than any machine has file descriptors for.
const CLIENTS_MAX: i64 = 1_000_000;
const WORKERS_MAX: i64 = 1024;
const POOL_SIZE_MAX: i64 = 10_000;
const PROBE_FAILURES_MAX: i64 = 1000;

const ROOT: Keys = &[
    "listen",
    "http",
    "auth",
    "console",
    "pool",
    "routing",
    "consistency",
    "lag",
    "health",
    "failover",
    "log",
    "cluster",
];
const LISTEN: Keys = &[
    "address",
    "unix_socket_dir",
    "reuse_port",
    "tls",
    "max_clients",
    "workers",
    "workers_min",
    "login_timeout",
    "shutdown_grace",
    "shutdown_timeout",
];
const HTTP: Keys = &["address"];
const CONSOLE: Keys = &["database", "admins", "viewers"];
const POOL: Keys = &[
    "mode",
    "size",
    "checkout_timeout",
    "idle_timeout",
    "lifetime",
    "connect_timeout",
];
const ROUTING: Keys = &[
    "zone",
    "read_primary",
    "transaction_reads",
    "safe_functions",
    "unsafe_functions",
    "catalog_interval",
    "replication",
];
const CONSISTENCY: Keys = &[
    "level",
    "max_lag",
    "poll_interval",
    "gate_wait",
    "on_no_replica",
    "wait_timeout",
    "primary_reads_raise_floor",
    "override",
    "redis",
];
const REDIS: Keys = &["url", "timeout", "prefix", "keep"];
const OVERRIDE: Keys = &["database", "user", "level", "max_lag"];
const WISH: Keys = &["level", "max_lag"];
const LAG: Keys = &["max", "max_bytes"];
const HEALTH: Keys = &["interval", "timeout", "failures"];
const FAILOVER: Keys = &["hold"];
const LOG: Keys = &["format", "level", "slow_query"];

pub(super) fn config(source: Source<'_>) -> Result<Config> {
    let document = DeTable::parse(source.text)
        .map_err(|error| source.fault(&error.span().unwrap_or_default(), error.message()))?;
    let root = Section::root(source, document.get_ref(), ROOT)?;
    let (health_section, lag_section) =
        (root.section("health", HEALTH)?, root.section("lag", LAG)?);
    let http_section = root.section("http", HTTP)?;
    let config = Config {
        listen: listen(&root.section("listen", LISTEN)?)?,
        http: http(&http_section)?,
        auth: auth::auth(&root.section("auth", auth::AUTH)?)?,
        console: console(&root.section("console", CONSOLE)?)?,
        pool: pool(&root.section("pool", POOL)?)?,
        routing: routing(&root.section("routing", ROUTING)?)?,
        consistency: consistency(&root.section("consistency", CONSISTENCY)?)?,
        lag: lag(&lag_section)?,
        health: health(&health_section)?,
        failover: failover(&root.section("failover", FAILOVER)?)?,
        log: log(&root.section("log", LOG)?)?,
        clusters: cluster::clusters(&root)?,
    };
    if let Some(http) = config.http.address
        && let Some(taken) =
            (config.listen.address.iter()).find(|clients| is_taken_by(http, **clients))
    {
        let message = format!(r#""http.address" ({http}) is taken by "listen.address" ({taken})"#);
        return Err(http_section.fault_at("address", message));
    }
    // An idle cluster is sampled once per interval, so a replica's lag is only known to within one.
    if config.lag.max <= config.health.interval {
        let (max, interval) = (config.lag.max, config.health.interval);
        let message = format!(
            r#""lag.max" ({max:?}) must be more than "health.interval" ({interval:?}), or idle replicas are taken for late ones"#
        );
        return Err(match lag_section.has("max") {
            true => lag_section.fault_at("max", message),
            false => health_section.fault_at("interval", message),
        });
    }
    // What is not kept any more must be on every replica that is read.
    let keep = config.consistency.redis.as_ref().map(|redis| redis.keep);
    let staleness = config.staleness_max();
    if let Some(keep) = keep.filter(|keep| *keep <= staleness) {
        let message = format!(
            r#""consistency.redis.keep" ({keep:?}) must be more than {staleness:?}, which is "lag.max" and twice "health.interval" and "health.timeout", or replicas that lack what is no longer kept are read"#
        );
        let section = root.section("consistency", CONSISTENCY)?;
        return Err(section.section("redis", REDIS)?.fault_at("keep", message));
    }
    let names = config.console.admins.iter().chain(&config.console.viewers);
    let is_listed = |name: &&String| config.auth.users.iter().any(|user| user.name == **name);
    if let Some(name) = names.clone().find(|name| !is_listed(name)) {
        let message = format!(
            r#"user "{name}" of the console must be an [[auth.user]]: users found by auth.query_user cannot use the console, otherwise anyone who may create roles in the database could make themselves an admin here"#
        );
        let key = if config.console.admins.contains(name) {
            "admins"
        } else {
            "viewers"
        };
        return Err(root.section("console", CONSOLE)?.fault_at(key, message));
    }
    let hides =
        |cluster: &&Cluster| (cluster.databases.iter()).any(|name| config.console.is_wanted(name));
    if let Some(hidden) = config.clusters.iter().find(hides) {
        let (database, name) = (&config.console.database, &hidden.name);
        let message = format!(
            r#"database "{database}" is the console's, so that of cluster "{name}" could not be reached; give "console.database" another name"#
        );
        let section = root.section("console", CONSOLE)?;
        return Err(section.fault_at("database", message));
    }
    // Without these, nobody could ever show a certificate.
    let tls = config.listen.tls.as_ref();
    let shows = tls.is_some_and(|tls| tls.mode >= OfferMode::Require && tls.client_ca.is_some());
    if config.auth.method == AuthMethod::Cert && !shows {
        let message = r#"auth.method = "cert" needs "listen.tls" with a "client_ca" and the mode "require" or above"#;
        return Err(root
            .section("auth", auth::AUTH)?
            .fault_at("method", message));
    }
    Ok(config)
}

fn listen(section: &Section<'_>) -> Result<Listen> {
    let default = Listen::default();
    let listen = Listen {
        address: section.get("address", default.address, Value::socket_addresses)?,
        unix_socket_dir: section.optional("unix_socket_dir", Value::socket_directory)?,
        reuse_port: section.get("reuse_port", default.reuse_port, Value::boolean)?,
        tls: section.get("tls", default.tls, |value| {
            tls::listen(&value.section(tls::LISTEN_TLS)?)
        })?,
        max_clients: section.get("max_clients", default.max_clients, |value| {
            value.integer(1..=CLIENTS_MAX)
        })?,
        workers: section.get("workers", default.workers, |value| {
            value.integer(0..=WORKERS_MAX)
        })?,
        workers_min: section.get("workers_min", default.workers_min, |value| {
            value.integer(1..=WORKERS_MAX)
        })?,
        login_timeout: section.get("login_timeout", default.login_timeout, Value::duration)?,
        shutdown_grace: section.get(
            "shutdown_grace",
            default.shutdown_grace,
            Value::duration_or_zero,
        )?,
        shutdown_timeout: section.get(
            "shutdown_timeout",
            default.shutdown_timeout,
            Value::duration_or_zero,
        )?,
    };
    if listen.address.is_empty() {
        return Err(section.fault_at("address", r#""listen.address" must name an address"#));
    }
    if listen.workers != 0 && listen.workers_min > listen.workers {
        return Err(section.fault_at(
            "workers_min",
            format!(
                r#""listen.workers_min" must be at most "listen.workers", which is {}, not {}"#,
                listen.workers, listen.workers_min
            ),
        ));
    }
    if listen.reuse_port && listen.unix_socket_dir.is_some() {
        let message = r#""listen.reuse_port" cannot be used together with "listen.unix_socket_dir": no two processes can listen on one Unix socket; leave one of them out"#;
        return Err(section.fault_at("reuse_port", message));
    }
    if let Some(twice) = first_repeated(&listen.address) {
        return Err(section.fault_at("address", format!("address {twice} is listed twice")));
    }
    Ok(listen)
}

/// Whether clients that come in there keep HTTP from being served here.
fn is_taken_by(http: SocketAddr, clients: SocketAddr) -> bool {
    let is_of_all = http.ip().is_unspecified() || clients.ip().is_unspecified();
    // Of IPv6, that of all is of IPv4 as well for HTTP, and not for clients.
    let is_of_both = http.ip() == Ipv6Addr::UNSPECIFIED;
    let may_meet = is_of_both || is_of_all && http.is_ipv4() == clients.is_ipv4();
    http.port() == clients.port() && http.port() != 0 && (http.ip() == clients.ip() || may_meet)
}

fn http(section: &Section<'_>) -> Result<Http> {
    let default = Http::default();
    Ok(Http {
        address: section.get("address", default.address, Value::socket_address_or_none)?,
    })
}

fn console(section: &Section<'_>) -> Result<Console> {
    let default = Console::default();
    let console = Console {
        database: section.get("database", default.database, Value::name)?,
        admins: section.get("admins", default.admins, Value::names)?,
        viewers: section.get("viewers", default.viewers, Value::names)?,
    };
    let both = |user: &&String| console.admins.contains(user);
    match console.viewers.iter().find(both) {
        None => Ok(console),
        Some(both) => Err(section.fault_at(
            "viewers",
            format!(r#"user "{both}" is an admin, and so need not be listed as a viewer"#),
        )),
    }
}

fn pool(section: &Section<'_>) -> Result<Pool> {
    const MODES: &[(&str, PoolMode)] = &[
        ("transaction", PoolMode::Transaction),
        ("session", PoolMode::Session),
    ];
    let default = Pool::default();
    Ok(Pool {
        mode: section.get("mode", default.mode, |value| value.choice(MODES))?,
        size: section.get("size", default.size, |value| {
            value.integer(1..=POOL_SIZE_MAX)
        })?,
        checkout_timeout: section.get(
            "checkout_timeout",
            default.checkout_timeout,
            Value::duration,
        )?,
        idle_timeout: section.get("idle_timeout", default.idle_timeout, Value::duration)?,
        lifetime: section.get("lifetime", default.lifetime, Value::duration)?,
        connect_timeout: section.get(
            "connect_timeout",
            default.connect_timeout,
            Value::duration,
        )?,
    })
}

fn routing(section: &Section<'_>) -> Result<Routing> {
    const READ_PRIMARY: &[(&str, ReadPrimary)] = &[
        ("never", ReadPrimary::Never),
        ("when-needed", ReadPrimary::WhenNeeded),
        ("share", ReadPrimary::Share),
    ];
    const TRANSACTION_READS: &[(&str, TransactionReads)] = &[
        ("primary", TransactionReads::Primary),
        ("replica", TransactionReads::Replica),
    ];
    const REPLICATION: &[(&str, Replication)] = &[
        ("refuse", Replication::Refuse),
        ("primary", Replication::Primary),
    ];
    let default = Routing::default();
    let routing = Routing {
        zone: section.optional("zone", Value::string)?,
        read_primary: section.get("read_primary", default.read_primary, |value| {
            value.choice(READ_PRIMARY)
        })?,
        transaction_reads: section.get(
            "transaction_reads",
            default.transaction_reads,
            |value| value.choice(TRANSACTION_READS),
        )?,
        safe_functions: section.get("safe_functions", default.safe_functions, Value::strings)?,
        unsafe_functions: section.get(
            "unsafe_functions",
            default.unsafe_functions,
            Value::strings,
        )?,
        catalog_interval: section.get(
            "catalog_interval",
            default.catalog_interval,
            Value::duration,
        )?,
        replication: section.get("replication", default.replication, |value| {
            value.choice(REPLICATION)
        })?,
    };
    match routing
        .safe_functions
        .iter()
        .find(|name| routing.unsafe_functions.contains(name))
    {
        None => Ok(routing),
        Some(both) => Err(section.fault_at(
            "unsafe_functions",
            format!(r#"function "{both}" is listed as safe and as unsafe"#),
        )),
    }
}

fn consistency(section: &Section<'_>) -> Result<Consistency> {
    const ON_NO_REPLICA: &[(&str, OnNoReplica)] = &[
        ("primary", OnNoReplica::Primary),
        ("wait", OnNoReplica::Wait),
        ("error", OnNoReplica::Error),
    ];
    let default = Consistency::default();
    Ok(Consistency {
        level: section.get("level", default.level, level)?,
        max_lag: section.get("max_lag", default.max_lag, Value::duration)?,
        poll_interval: section.get("poll_interval", default.poll_interval, Value::duration)?,
        gate_wait: section.get("gate_wait", default.gate_wait, Value::duration_or_zero)?,
        on_no_replica: section.get("on_no_replica", default.on_no_replica, |value| {
            value.choice(ON_NO_REPLICA)
        })?,
        wait_timeout: section.get("wait_timeout", default.wait_timeout, Value::duration)?,
        primary_reads_raise_floor: section.get(
            "primary_reads_raise_floor",
            default.primary_reads_raise_floor,
            Value::boolean,
        )?,
        overrides: overrides(section)?,
        redis: section.optional("redis", |value| shared_keys(&value.section(REDIS)?))?,
    })
}

fn shared_keys(section: &Section<'_>) -> Result<Redis> {
    let redis = Redis {
        url: section.required("url", Value::secret)?,
        timeout: section.get("timeout", Redis::TIMEOUT, Value::duration)?,
        prefix: section.get("prefix", Redis::PREFIX.to_owned(), Value::string)?,
        keep: section.get("keep", Redis::KEEP, Value::duration)?,
    };
    // The URL is not repeated: there may be a password in it.
    if !redis.url.expose().starts_with("redis://") {
        let message =
            r#""consistency.redis.url" must begin with "redis://"; TLS is not supported yet"#;
        return Err(section.fault_at("url", message));
    }
    match redis::Client::open(redis.url.expose()) {
        Ok(_) => Ok(redis),
        Err(_) => {
            let message =
                r#""consistency.redis.url" must be such as "redis://user:password@host:6379/0""#;
            Err(section.fault_at("url", message))
        }
    }
}

fn level(value: &Value<'_>) -> Result<Level> {
    value.choice(&Level::ALL)
}

fn wish(section: &Section<'_>) -> Result<Wish> {
    Ok(Wish {
        level: section.optional("level", level)?,
        max_lag: section.optional("max_lag", Value::duration)?,
    })
}

fn overrides(section: &Section<'_>) -> Result<Vec<Override>> {
    let mut overrides: Vec<Override> = Vec::new();
    for section in section.sections("override", OVERRIDE)? {
        let new = Override {
            database: section.optional("database", Value::name)?,
            user: section.optional("user", Value::name)?,
            wish: wish(&section)?,
        };
        if new.database.is_none() && new.user.is_none() {
            let message = r#"a [[consistency.override]] needs a "database", a "user" or both"#;
            return Err(section.fault(message));
        }
        if new.wish == Wish::NONE {
            let message = r#"a [[consistency.override]] needs a "level", a "max_lag" or both"#;
            return Err(section.fault(message));
        }
        let same = |o: &&Override| (&o.database, &o.user) == (&new.database, &new.user);
        if overrides.iter().find(same).is_some() {
            let message =
                "this [[consistency.override]] is for the same database and user as another";
            return Err(section.fault(message));
        }
        overrides.push(new);
    }
    Ok(overrides)
}

fn lag(section: &Section<'_>) -> Result<Lag> {
    let default = Lag::default();
    Ok(Lag {
        max: section.get("max", default.max, Value::duration)?,
        max_bytes: section.get("max_bytes", default.max_bytes, Value::size)?,
    })
}

fn health(section: &Section<'_>) -> Result<Health> {
    let default = Health::default();
    let health = Health {
        interval: section.get("interval", default.interval, Value::duration)?,
        timeout: section.get("timeout", default.timeout, Value::duration)?,
        failures: section.get("failures", default.failures, |value| {
            value.integer(1..=PROBE_FAILURES_MAX)
        })?,
    };
    if health.timeout > health.interval {
        let (timeout, interval) = (health.timeout, health.interval);
        let key = if section.has("timeout") {
            "timeout"
        } else {
            "interval"
        };
        return Err(section.fault_at(
            key,
            format!(
                r#""health.timeout" ({timeout:?}) must not be more than "health.interval" ({interval:?}), or probes overlap"#
            ),
        ));
    }
    Ok(health)
}

fn failover(section: &Section<'_>) -> Result<Failover> {
    let default = Failover::default();
    Ok(Failover {
        hold: section.get("hold", default.hold, Value::duration_or_zero)?,
    })
}

fn log(section: &Section<'_>) -> Result<Log> {
    const FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
    const LEVELS: &[(&str, &str)] = &[
        ("off", "off"),
        ("error", "error"),
        ("warn", "warn"),
        ("info", "info"),
        ("debug", "debug"),
        ("trace", "trace"),
    ];
    let default = Log::default();
    Ok(Log {
        format: section.get("format", default.format, |value| value.choice(FORMATS))?,
        level: section.get("level", default.level, |value| {
            value.choice(LEVELS).map(str::to_owned)
        })?,
        slow_query: section.optional("slow_query", Value::duration_or_zero)?,
    })
}

fn first_repeated<T: Eq + std::hash::Hash>(items: &[T]) -> Option<&T> {
    let mut seen = HashSet::new();
    items.iter().find(|item| !seen.insert(*item))
}

#[cfg(test)]
pub(super) fn every_known_key() -> impl Iterator<Item = &'static str> {
    let tables = [
        ROOT,
        LISTEN,
        tls::LISTEN_TLS,
        HTTP,
        auth::AUTH,
        auth::USER,
        CONSOLE,
        POOL,
        ROUTING,
        CONSISTENCY,
        OVERRIDE,
        REDIS,
        WISH,
        LAG,
        HEALTH,
        FAILOVER,
        LOG,
        cluster::CLUSTER,
        cluster::MONITOR,
        cluster::NODE,
    ];
    tables.into_iter().flatten().copied()
}

#[cfg(test)]
mod tests;
