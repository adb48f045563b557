//! Owns: the metrics' names and handles, and how logs are written. Never: decides anything.
//!
//! Handles are made once and kept: recording is an atomic operation, with no look-up by name. What
//! every query records is cheaper still, see `local`.

mod local;
mod logs;
mod scrape;

use std::sync::{LazyLock, OnceLock};

use metrics::{Counter, Gauge, Histogram, Unit, counter, gauge, histogram};
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
    describe();
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
        let bytes = |direction| {
            let shown = counter!("tidegate_client_bytes_total", "direction" => direction);
            LocalCounter::new(shown)
        };
        let gate = |result| counter!("tidegate_gate_waits_total", "result" => result);
        let reloads = |result| counter!("tidegate_config_reloads_total", "result" => result);
        let lookups = |result| counter!("tidegate_role_lookups_total", "result" => result);
        let handshakes =
            |result| counter!("tidegate_client_tls_handshakes_total", "result" => result);
        Metrics {
            clients: gauge!("tidegate_clients"),
            client_connects: counter!("tidegate_client_connects_total"),
            client_moves: counter!("tidegate_client_moves_total"),
            active_workers: gauge!("tidegate_active_workers"),
            tls_handshakes: handshakes("ok"),
            tls_failures: handshakes("failed"),
            client_bytes_received: bytes("received"),
            client_bytes_sent: bytes("sent"),
            pinned_sessions: gauge!("tidegate_pinned_sessions"),
            pin_seconds: LocalHistogram::new(
                "tidegate_pin_seconds",
                "How long sessions' reads stayed on the primary.",
                None,
            ),
            gate_passed: gate("passed"),
            gate_missed: gate("missed"),
            gate_wait_seconds: LocalHistogram::new(
                "tidegate_gate_wait_seconds",
                "How long reads waited for a replica that was nearly there.",
                None,
            ),
            repairs_remembered: counter!("tidegate_repairs_remembered_total"),
            transaction_moves: counter!("tidegate_transaction_moves_total"),
            held: gauge!("tidegate_held"),
            holds: counter!("tidegate_holds_total"),
            failovers: counter!("tidegate_failovers_total"),
            reloads_applied: reloads("applied"),
            reloads_refused: reloads("refused"),
            cancels: counter!("tidegate_cancels_total"),
            server_connects: counter!("tidegate_server_connects_total", "result" => "ok"),
            server_connect_failures: counter!("tidegate_server_connects_total", "result" => "failed"),
            checkout_wait_seconds: histogram!("tidegate_checkout_wait_seconds"),
            checkout_timeouts: counter!("tidegate_checkout_timeouts_total"),
            role_lookups_found: lookups("found"),
            role_lookups_unknown: lookups("unknown"),
            role_lookups_failed: lookups("failed"),
            role_lookups_spared: counter!("tidegate_role_lookups_spared_total"),
            role_lookup_seconds: histogram!("tidegate_role_lookup_seconds"),
            causal_floors_written: counter!("tidegate_causal_floors_written_total"),
            log_lines_lost: counter!("tidegate_log_lines_lost_total"),
        }
    }
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

fn describe() {
    use metrics::{
        describe_counter as counter, describe_gauge as gauge, describe_histogram as histo,
    };
    counter!(
        "tidegate_queries_total",
        "Batches of queries, by where they went and why."
    );
    gauge!(
        "tidegate_clients",
        "Connections of clients, logged in or not."
    );
    counter!(
        "tidegate_client_connects_total",
        "Clients that have connected."
    );
    counter!(
        "tidegate_client_moves_total",
        "Clients that went on on another thread, for balance."
    );
    gauge!(
        "tidegate_active_workers",
        "Threads that clients are spread over."
    );
    counter!(
        "tidegate_client_tls_handshakes_total",
        "TLS handshakes with clients."
    );
    counter!(
        "tidegate_client_bytes_total",
        Unit::Bytes,
        "Bytes exchanged with clients."
    );
    gauge!(
        "tidegate_pinned_sessions",
        "Sessions whose reads stay on the primary until a replica has caught up."
    );
    counter!(
        "tidegate_gate_waits_total",
        "Reads that waited for a replica that was nearly there."
    );
    counter!(
        "tidegate_retries_total",
        "Reads sent again to another server, with nothing of the answer seen, by what befell the first."
    );
    counter!(
        "tidegate_repairs_total",
        "Reads that a replica could not run, run elsewhere instead, by the error."
    );
    counter!(
        "tidegate_repairs_remembered_total",
        "Texts that are taken for writes since a replica has refused them."
    );
    counter!(
        "tidegate_transaction_moves_total",
        "Transactions that went on on the primary after they had begun on a replica."
    );
    gauge!("tidegate_held", "Batches that wait for a primary.");
    counter!(
        "tidegate_holds_total",
        "Batches that had to wait for a primary."
    );
    counter!("tidegate_failovers_total", "Changes of the primary.");
    counter!(
        "tidegate_config_reloads_total",
        "Reloads of the configuration."
    );
    counter!(
        "tidegate_cancels_total",
        "Cancel requests passed on to a server."
    );
    counter!(
        "tidegate_server_connects_total",
        "Connections opened to servers."
    );
    histo!(
        "tidegate_checkout_wait_seconds",
        Unit::Seconds,
        "How long clients waited for a server, where none was free."
    );
    counter!(
        "tidegate_checkout_timeouts_total",
        "Clients that waited for a server in vain."
    );
    counter!(
        "tidegate_role_lookups_total",
        "Roles looked up in the database for a login, by outcome."
    );
    counter!(
        "tidegate_role_lookups_spared_total",
        "Logins that shared another's look-up, or were answered from memory."
    );
    histo!(
        "tidegate_role_lookup_seconds",
        Unit::Seconds,
        "How long look-ups of roles took, each of all that waited together."
    );
    counter!(
        "tidegate_causal_floors_written_total",
        "Floors of causal keys that were written to the store, for other proxies."
    );
    histo!(
        "tidegate_catalog_refresh_seconds",
        "How long it takes to ask a database for its catalog."
    );
    counter!(
        "tidegate_errors_total",
        "Errors sent to clients, servers' and the proxy's own, by class of SQLSTATE."
    );
    counter!(
        "tidegate_log_lines_lost_total",
        "Lines of the log that were lost, since nobody read those before."
    );
    counter!(
        "tidegate_logins_refused_total",
        "Logins refused, by SQLSTATE."
    );
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
