//! The table of nodes and routes that the demo shows, drawn from the proxy's metrics.
//!
//! Owns: what stands in which column. Never: asks a node; what is shown is what a dashboard has.

use std::time::Instant;

use super::cluster::LocalCluster;
use super::gateway::Metrics;
use super::terminal::{Style, Terminal, bytes, seconds};
use crate::session::consistency::Lsn;

/// Draws one scrape after the other and remembers the last, for rates.
#[derive(Default)]
pub struct Overview {
    last: Option<(Instant, Vec<Route>)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub route: String,
    pub reason: String,
    pub count: u64,
}

impl Overview {
    /// The lines of the table.
    pub fn lines(
        &mut self,
        metrics: &Metrics,
        cluster: &LocalCluster,
        terminal: &Terminal,
    ) -> Vec<String> {
        let mut lines = nodes(metrics, cluster, terminal);
        lines.push(String::new());
        lines.extend(self.routes(metrics, terminal));
        lines
    }

    fn routes(&mut self, metrics: &Metrics, terminal: &Terminal) -> Vec<String> {
        let (now, routes) = (Instant::now(), routes(metrics));
        let head = format!(
            "   {:<8} {:<15} {:>9} {:>9}",
            "route", "reason", "batches", "per s"
        );
        let mut lines = vec![terminal.paint(Style::Dim, &head)];
        for route in &routes {
            let rate = self.last.as_ref().map(|(then, last)| {
                let before = last
                    .iter()
                    .find(|old| (&old.route, &old.reason) == (&route.route, &route.reason))
                    .map_or(0, |old| old.count);
                let span = now.duration_since(*then).as_secs_f64();
                route.count.saturating_sub(before) as f64 / span.max(0.001)
            });
            let rate = rate.map_or(String::new(), |rate| format!("{rate:.0}"));
            let name = terminal.paint(style(&route.route), &format!("{:<8}", route.route));
            lines.push(format!(
                "   {name} {:<15} {:>9} {rate:>9}",
                route.reason, route.count
            ));
        }
        self.last = Some((now, routes));
        lines
    }
}

/// What has gone where and why, the busiest first within a route.
pub fn routes(metrics: &Metrics) -> Vec<Route> {
    let mut routes: Vec<Route> = metrics
        .samples("tidegate_queries_total")
        .filter(|sample| sample.value > 0.0)
        .map(|sample| Route {
            route: sample.label("route").to_owned(),
            reason: sample.label("reason").to_owned(),
            count: sample.value as u64,
        })
        .collect();
    routes.sort_by(|a, b| (&a.route, b.count, &a.reason).cmp(&(&b.route, a.count, &b.reason)));
    routes
}

/// What was added between two looks.
pub fn delta(before: &[Route], after: &[Route]) -> Vec<Route> {
    let mut delta = after.to_vec();
    for route in &mut delta {
        let same = |old: &&Route| (&old.route, &old.reason) == (&route.route, &route.reason);
        let old = before.iter().find(same).map_or(0, |old| old.count);
        route.count = route.count.saturating_sub(old);
    }
    delta.retain(|route| route.count > 0);
    delta
}

/// The batches that went by one route.
pub fn routed(routes: &[Route], to: &str) -> u64 {
    let there = routes.iter().filter(|route| route.route == to);
    there.map(|route| route.count).sum()
}

/// In words, for an error.
pub fn list(routes: &[Route]) -> String {
    let one = |route: &Route| format!("{}/{} {}", route.route, route.reason, route.count);
    routes.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn nodes(metrics: &Metrics, cluster: &LocalCluster, terminal: &Terminal) -> Vec<String> {
    let head = format!(
        "   {:<7} {:<9} {:<16} {:<12} {:>10} {:>10}",
        "node", "role", "address", "LSN", "lag bytes", "lag time"
    );
    let mut lines = vec![terminal.paint(Style::Dim, &head)];
    for node in cluster.nodes() {
        let name = format!("node{}", node.index());
        let value = |metric| metrics.sum(metric, &[("node", &name)]);
        let role = match (value("tidegate_up") > 0.0, value("tidegate_role") as u8) {
            (false, _) => "down",
            (true, 1) => "primary",
            (true, 2) => "replica",
            (true, _) => "unknown",
        };
        // A primary has no lag; an unknown position is no number.
        let (lag_bytes, lag_time) = match role {
            "replica" => (
                bytes(value("tidegate_replay_lag_bytes")),
                seconds(value("tidegate_replay_lag_seconds")),
            ),
            _ => ("-".to_owned(), "-".to_owned()),
        };
        let lsn = match value("tidegate_lsn") {
            lsn if lsn.is_finite() => Lsn(lsn as u64).to_string(),
            _ => "?".to_owned(),
        };
        let role = terminal.paint(style(role), &format!("{role:<9}"));
        lines.push(format!(
            "   {name:<7} {role} {:<16} {lsn:<12} {lag_bytes:>10} {lag_time:>10}",
            node.address()
        ));
    }
    lines
}

fn style(role: &str) -> Style {
    match role {
        "primary" => Style::Primary,
        "replica" => Style::Replica,
        _ => Style::Dim,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(route: &str, reason: &str, count: u64) -> Route {
        Route {
            route: route.to_owned(),
            reason: reason.to_owned(),
            count,
        }
    }

    #[test]
    fn only_what_has_grown_is_new() {
        let before = [route("primary", "write", 3), route("replica", "fresh", 7)];
        let after = [
            route("primary", "own_write", 1),
            route("primary", "write", 3),
            route("replica", "fresh", 9),
        ];
        let new = delta(&before, &after);
        assert_eq!(
            new,
            [
                route("primary", "own_write", 1),
                route("replica", "fresh", 2)
            ]
        );
        assert_eq!(routed(&new, "replica"), 2);
        assert_eq!(list(&new), "primary/own_write 1, replica/fresh 2");
    }
}
