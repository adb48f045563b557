//! Metrics of what comes and goes: nodes, pools, databases, stores.
//!
//! Owns: how they are shown. Never: keeps one: they are read from their owners when somebody asks, so that there
//! are as many as there are owners, and none outlives its own.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What their owners have to show.
#[derive(Default)]
pub struct Scrape {
    families: Vec<Family>,
}

/// All samples of one name: Prometheus wants them together.
struct Family {
    name: &'static str,
    samples: String,
}

impl Scrape {
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        value: impl Into<f64>,
    ) {
        self.sample("gauge", name, help, labels, value.into());
    }

    pub fn counter(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: u64) {
        self.sample("counter", name, help, labels, value as f64);
    }

    fn sample(
        &mut self,
        kind: &str,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        value: f64,
    ) {
        let known = self.families.iter().position(|family| family.name == name);
        let place = known.unwrap_or_else(|| {
            let samples = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
            self.families.push(Family { name, samples });
            self.families.len() - 1
        });
        let labels = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)));
        let labels = labels.collect::<Vec<_>>().join(",");
        let samples = &mut self.families[place].samples;
        let _ = writeln!(samples, "{name}{{{labels}}} {value}");
    }

    /// Writes all of it as Prometheus reads it.
    pub fn render(&self, out: &mut String) {
        for family in &self.families {
            out.push_str(&family.samples);
        }
    }
}

/// A number that is shown as it was set last.
#[derive(Default)]
pub struct Level(AtomicU64);

impl Level {
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

/// How often something has happened.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn increment(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
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
        let mut scrape = Scrape::default();
        let mut text = String::new();
        scrape.render(&mut text);
        assert_eq!(text, "");
        for (database, asked, age) in [("a", 7, 0.5), ("\\b\"c\n", 0, f64::NAN)] {
            let labels = [("cluster", "main"), ("database", database)];
            scrape.gauge("age_seconds", "How old it is.", &labels, age);
            scrape.counter("asked_total", "How often it was asked.", &labels, asked);
        }
        scrape.render(&mut text);
        let expected = r##"# HELP age_seconds How old it is.
# TYPE age_seconds gauge
age_seconds{cluster="main",database="a"} 0.5
age_seconds{cluster="main",database="\\b\"c\n"} NaN
# HELP asked_total How often it was asked.
# TYPE asked_total counter
asked_total{cluster="main",database="a"} 7
asked_total{cluster="main",database="\\b\"c\n"} 0
"##;
        assert_eq!(text, expected);
    }
}
