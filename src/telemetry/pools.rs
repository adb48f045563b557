//! The gauges of pools.
//!
//! Owns: how they are shown. Never: keeps one: they are read from the pools when somebody asks, so that there
//! are as many as there are pools, and none outlives its pool.

use std::fmt::Write;

/// What one pool holds.
pub struct PoolGauges<'a> {
    /// Its cluster, node, database and user.
    pub of: [&'a str; 4],
    pub idle: usize,
    pub active: usize,
    pub waiting: usize,
}

/// Writes the gauges of these pools, as Prometheus reads them.
pub fn render_pools(pools: &[PoolGauges<'_>], out: &mut String) {
    let (servers, waiting) = ("tidegate_pool_servers", "tidegate_pool_waiting");
    begin(servers, "Servers of a pool, by state.", pools, out);
    for pool in pools {
        for (state, count) in [("idle", pool.idle), ("active", pool.active)] {
            let labels = labels(pool);
            let _ = writeln!(out, "{servers}{{{labels},state=\"{state}\"}} {count}");
        }
    }
    let help = "Clients that wait for a server of a pool.";
    begin(waiting, help, pools, out);
    for pool in pools {
        let _ = writeln!(out, "{waiting}{{{}}} {}", labels(pool), pool.waiting);
    }
}

fn begin(name: &str, help: &str, pools: &[PoolGauges<'_>], out: &mut String) {
    if !pools.is_empty() {
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    }
}

fn labels(pool: &PoolGauges<'_>) -> String {
    let names = ["cluster", "node", "database", "user"];
    let labels = names.iter().zip(pool.of);
    let labels = labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    labels.collect::<Vec<_>>().join(",")
}

/// A label's value as Prometheus's text format has it.
fn escaped(value: &str) -> String {
    let value = value.replace('\\', r"\\").replace('"', r#"\""#);
    value.replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_metrics_stay_together() {
        let pool = |database, waiting| PoolGauges {
            of: ["main", "h:1", database, "app"],
            idle: 2,
            active: 1,
            waiting,
        };
        let mut text = String::new();
        render_pools(&[], &mut text);
        assert_eq!(text, "");
        render_pools(&[pool("a", 0), pool("\\b\"c\n", 3)], &mut text);
        let expected = r##"# HELP tidegate_pool_servers Servers of a pool, by state.
# TYPE tidegate_pool_servers gauge
tidegate_pool_servers{cluster="main",node="h:1",database="a",user="app",state="idle"} 2
tidegate_pool_servers{cluster="main",node="h:1",database="a",user="app",state="active"} 1
tidegate_pool_servers{cluster="main",node="h:1",database="\\b\"c\n",user="app",state="idle"} 2
tidegate_pool_servers{cluster="main",node="h:1",database="\\b\"c\n",user="app",state="active"} 1
# HELP tidegate_pool_waiting Clients that wait for a server of a pool.
# TYPE tidegate_pool_waiting gauge
tidegate_pool_waiting{cluster="main",node="h:1",database="a",user="app"} 0
tidegate_pool_waiting{cluster="main",node="h:1",database="\\b\"c\n",user="app"} 3
"##;
        assert_eq!(text, expected);
    }
}
