//! Owns: the metrics' names and handles, and how logs are written. Never: decides anything.
//!
//! Handles are made once and kept: recording is an atomic operation, with no look-up by name. What
//! every query records is cheaper still, see `local`.

mod local;
mod logs;
mod scrape;

use std::sync::{LazyLock, OnceLock};

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

pub use self::local::{LocalCounter, LocalHistogram};
pub use self::logs::Logs;
pub use self::scrape::{Count, Level, Scrape};

/// Upper bounds of duration histograms, in seconds.
const SECONDS: [f64; 17] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0,
];

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Installs the recorder. To be called once, before any handle is made.
///
/// # Errors
/// When a recorder has been installed before.
pub fn install_recorder() -> Result<(), BuildError> {
    let suffix = Matcher::Suffix("_seconds".to_owned());
    let builder = PrometheusBuilder::new().set_buckets_for_metric(suffix, &SECONDS)?;
    let handle = builder.install_recorder()?;
    describe_others();
    RECORDER.get_or_init(|| handle);
    Ok(())
}

/// The metrics as Prometheus reads them, but for those that their owners [show](Scrape).
pub fn render() -> String {
    local::collect();
    metrics().log_lines_lost.absolute(logs::lost());
    let mut text = RECORDER
        .get()
        .map(PrometheusHandle::render)
        .unwrap_or_default();
    local::render(&mut text);
    text
}

/// Keeps histograms from growing between scrapes; to be called every few seconds.
pub fn upkeep() {
    if let Some(recorder) = RECORDER.get() {
        recorder.run_upkeep();
    }
}

/// The handles that are there for as long as the process.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

pub struct Metrics {
    pub clients: Gauge,
    pub client_connects: Counter,
    pub client_moves: Counter,
    pub active_workers: Gauge,
    pub tls_handshakes: Counter,
    pub tls_failures: Counter,
    pub client_bytes_received: LocalCounter,
    pub client_bytes_sent: LocalCounter,
    pub pinned_sessions: Gauge,
    pub pin_seconds: LocalHistogram,
    pub gate_passed: Counter,
    pub gate_missed: Counter,
    pub gate_wait_seconds: LocalHistogram,
    pub repairs_remembered: Counter,
    pub transaction_moves: Counter,
    pub held: Gauge,
    pub holds: Counter,
    pub failovers: Counter,
    pub reloads_applied: Counter,
    pub reloads_refused: Counter,
    pub cancels: Counter,
    pub server_connects: Counter,
    pub server_connect_failures: Counter,
    pub checkout_wait_seconds: Histogram,
    pub checkout_timeouts: Counter,
    pub role_lookups_found: Counter,
    pub role_lookups_unknown: Counter,
    pub role_lookups_failed: Counter,
    pub role_lookups_spared: Counter,
    pub role_lookup_seconds: Histogram,
    pub causal_floors_written: Counter,
    log_lines_lost: Counter,
}

impl Metrics {
    fn new() -> Metrics {
        let [tls_handshakes, tls_failures] = counters(
            "tidegate_client_tls_handshakes_total",
            "TLS handshakes with clients.",
            "result",
            ["ok", "failed"],
        );
        let bytes = counters(
            "tidegate_client_bytes_total",
            "Bytes exchanged with clients.",
            "direction",
            ["received", "sent"],
        );
        let [client_bytes_received, client_bytes_sent] = bytes.map(LocalCounter::new);
        let [gate_passed, gate_missed] = counters(
            "tidegate_gate_waits_total",
            "Reads that waited for a replica that was nearly there.",
            "result",
            ["passed", "missed"],
        );
        let [reloads_applied, reloads_refused] = counters(
            "tidegate_config_reloads_total",
            "Reloads of the configuration.",
            "result",
            ["applied", "refused"],
        );
        let [server_connects, server_connect_failures] = counters(
            "tidegate_server_connects_total",
            "Connections opened to servers.",
            "result",
            ["ok", "failed"],
        );
        let [
            role_lookups_found,
            role_lookups_unknown,
            role_lookups_failed,
        ] = counters(
            "tidegate_role_lookups_total",
            "Roles looked up in the database for a login, by outcome.",
            "result",
            ["found", "unknown", "failed"],
        );
        Metrics {
            clients: gauge(
                "tidegate_clients",
                "Connections of clients, logged in or not.",
            ),
            client_connects: counter(
                "tidegate_client_connects_total",
                "Clients that have connected.",
            ),
            client_moves: counter(
                "tidegate_client_moves_total",
                "Clients that went on on another thread, for balance.",
            ),
            active_workers: gauge(
                "tidegate_active_workers",
                "Threads that clients are spread over.",
            ),
            tls_handshakes,
            tls_failures,
            client_bytes_received,
            client_bytes_sent,
            pinned_sessions: gauge(
                "tidegate_pinned_sessions",
                "Sessions whose reads stay on the primary until a replica has caught up.",
            ),
            pin_seconds: LocalHistogram::new(
                "tidegate_pin_seconds",
                "How long sessions' reads stayed on the primary.",
                None,
            ),
            gate_passed,
            gate_missed,
            gate_wait_seconds: LocalHistogram::new(
                "tidegate_gate_wait_seconds",
                "How long reads waited for a replica that was nearly there.",
                None,
            ),
            repairs_remembered: counter(
                "tidegate_repairs_remembered_total",
                "Texts that are taken for writes since a replica has refused them.",
            ),
            transaction_moves: counter(
                "tidegate_transaction_moves_total",
                "Transactions that went on on the primary after they had begun on a replica.",
            ),
            held: gauge("tidegate_held", "Batches that wait for a primary."),
            holds: counter(
                "tidegate_holds_total",
                "Batches that had to wait for a primary.",
            ),
            failovers: counter("tidegate_failovers_total", "Changes of the primary."),
            reloads_applied,
            reloads_refused,
            cancels: counter(
                "tidegate_cancels_total",
                "Cancel requests passed on to a server.",
            ),
            server_connects,
            server_connect_failures,
            checkout_wait_seconds: histogram(
                "tidegate_checkout_wait_seconds",
                "How long clients waited for a server, where none was free.",
            ),
            checkout_timeouts: counter(
                "tidegate_checkout_timeouts_total",
                "Clients that waited for a server in vain.",
            ),
            role_lookups_found,
            role_lookups_unknown,
            role_lookups_failed,
            role_lookups_spared: counter(
                "tidegate_role_lookups_spared_total",
                "Logins that shared another's look-up, or were answered from memory.",
            ),
            role_lookup_seconds: histogram(
                "tidegate_role_lookup_seconds",
                "How long look-ups of roles took, each of all that waited together.",
            ),
            causal_floors_written: counter(
                "tidegate_causal_floors_written_total",
                "Floors of causal keys that were written to the store, for other proxies.",
            ),
            log_lines_lost: counter(
                "tidegate_log_lines_lost_total",
                "Lines of the log that were lost, since nobody read those before.",
            ),
        }
    }
}

fn counter(name: &'static str, help: &'static str) -> Counter {
    describe_counter!(name, help);
    counter!(name)
}

/// Counters of one name, one for each of these values of a label.
fn counters<const N: usize>(
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: [&'static str; N],
) -> [Counter; N] {
    describe_counter!(name, help);
    values.map(|value| counter!(name, label => value))
}

fn gauge(name: &'static str, help: &'static str) -> Gauge {
    describe_gauge!(name, help);
    gauge!(name)
}

fn histogram(name: &'static str, help: &'static str) -> Histogram {
    describe_histogram!(name, help);
    histogram!(name)
}

/// Describes those whose handles are made as labels come up.
fn describe_others() {
    describe_counter!(
        "tidegate_queries_total",
        "Batches of queries, by where they went and why."
    );
    describe_counter!(
        "tidegate_retries_total",
        "Reads sent again to another server, with nothing of the answer seen, by what befell the first."
    );
    describe_counter!(
        "tidegate_repairs_total",
        "Reads that a replica could not run, run elsewhere instead, by the error."
    );
    describe_counter!(
        "tidegate_errors_total",
        "Errors sent to clients, servers' and the proxy's own, by class of SQLSTATE."
    );
    describe_counter!(
        "tidegate_logins_refused_total",
        "Logins refused, by SQLSTATE."
    );
    describe_histogram!(
        "tidegate_catalog_refresh_seconds",
        "How long it takes to ask a database for its catalog."
    );
}

/// Counts a query that went by `route` for `reason`.
pub fn queries(route: &'static str, reason: &'static str) -> LocalCounter {
    let shown = counter!("tidegate_queries_total", "route" => route, "reason" => reason);
    LocalCounter::new(shown)
}

/// How long queries by `route` take, from the client's message to the last byte of the answer.
pub fn query_seconds(route: &'static str) -> LocalHistogram {
    let help = "From a client's message to the last byte of its answer.";
    LocalHistogram::new("tidegate_query_seconds", help, Some(("route", route)))
}

/// Counts an error that a client was sent, a server's or the proxy's own.
pub fn count_error(sqlstate: &[u8]) {
    counter!("tidegate_errors_total", "class" => class(sqlstate).to_owned()).increment(1);
}

/// The first two characters of a SQLSTATE: few enough to be a label, whatever a server says.
fn class(sqlstate: &[u8]) -> &str {
    let is_one = |class: &&str| {
        let may_be = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_uppercase();
        class.bytes().all(may_be)
    };
    let class = sqlstate
        .get(..2)
        .and_then(|class| std::str::from_utf8(class).ok());
    class.filter(is_one).unwrap_or("other")
}

/// How long it takes to ask a database of a cluster for its catalog.
pub fn catalog_refresh_seconds(cluster: &str) -> Histogram {
    histogram!("tidegate_catalog_refresh_seconds", "cluster" => cluster.to_owned())
}

/// Counts a login that was refused with `sqlstate`.
pub fn count_refused_login(sqlstate: &str) {
    counter!("tidegate_logins_refused_total", "sqlstate" => sqlstate.to_owned()).increment(1);
}

/// Reads that were sent again to another server; `reason` is what befell the first.
pub fn retries(reason: &'static str) -> Counter {
    counter!("tidegate_retries_total", "reason" => reason)
}

/// Reads that were run on the primary, since a replica could not.
pub fn repairs(reason: &'static str, sqlstate: &'static str) -> Counter {
    counter!("tidegate_repairs_total", "reason" => reason, "sqlstate" => sqlstate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_few() {
        for (sqlstate, expected) in [
            (&b"22012"[..], "22"),
            (b"P0001", "P0"),
            (b"XX000", "XX"),
            (b"", "other"),
            (b"2", "other"),
            (b"a\"000", "other"),
            (b"\xc3\xa9000", "other"),
        ] {
            assert_eq!(class(sqlstate), expected, "{sqlstate:?}");
        }
    }
}
