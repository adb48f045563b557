//! Counters and histograms that every query touches.
//!
//! Owns: one copy of each per thread, which only that thread writes, so that no two cores write to one
//! cache line, and a scrape's sum over them. Never: loses what a thread has counted, ended or not.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::Counter;

use super::SECONDS;

/// Counters that there can be.
const COUNTERS_MAX: usize = 64;

/// Histograms that there can be.
const HISTOGRAMS_MAX: usize = 8;

thread_local! {
    static MINE: &'static Copies = register();
}

/// What one thread has counted. Padded to two cache lines, as processors fetch lines in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Copies {
    counters: Slots<COUNTERS_MAX>,
    histograms: [Buckets; HISTOGRAMS_MAX],
}

struct Slots<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Slots<N> {
    fn default() -> Self {
        Slots(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

#[derive(Default)]
struct Buckets {
    /// By the first bound that is not exceeded; the last is beyond all.
    counts: Slots<{ SECONDS.len() + 1 }>,
    sum_ns: AtomicU64,
}

/// Every thread's copies. Those of a thread that has ended stay, with what it had counted.
static ALL: Mutex<Vec<&'static Copies>> = Mutex::new(Vec::new());

/// What is shown of them.
static COUNTERS: Mutex<Vec<Counter>> = Mutex::new(Vec::new());
static HISTOGRAMS: Mutex<Vec<Shown>> = Mutex::new(Vec::new());

struct Shown {
    name: &'static str,
    help: &'static str,
    label: Option<(&'static str, &'static str)>,
}

fn register() -> &'static Copies {
    let copies: &'static Copies = Box::leak(Box::default());
    lock(&ALL).push(copies);
    copies
}

fn lock<T>(mutex: &'static Mutex<T>) -> std::sync::MutexGuard<'static, T> {
    // Only whole entries are ever pushed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Only the thread that owns `slot` writes to it, so nothing is lost between the two.
#[inline]
fn add(slot: &AtomicU64, n: u64) {
    slot.store(slot.load(Relaxed).wrapping_add(n), Relaxed);
}

/// A counter with a copy for each thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalCounter(usize);

impl LocalCounter {
    /// To be made once: the place is never given back.
    pub fn new(shown: Counter) -> LocalCounter {
        let mut counters = lock(&COUNTERS);
        counters.push(shown);
        assert!(counters.len() <= COUNTERS_MAX, "room for more counters");
        LocalCounter(counters.len() - 1)
    }

    /// What all threads have counted.
    pub fn total(self) -> u64 {
        let copies = lock(&ALL);
        let counts = copies
            .iter()
            .map(|copies| copies.counters.0[self.0].load(Relaxed));
        counts.fold(0, u64::wrapping_add)
    }

    #[inline]
    pub fn increment(self, n: u64) {
        MINE.with(|mine| add(&mine.counters.0[self.0], n));
    }
}

/// A histogram of durations with a copy for each thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalHistogram(usize);

impl LocalHistogram {
    /// To be made once: the place is never given back. Histograms of one name are made one after the
    /// other.
    pub fn new(
        name: &'static str,
        help: &'static str,
        label: Option<(&'static str, &'static str)>,
    ) -> LocalHistogram {
        let mut histograms = lock(&HISTOGRAMS);
        histograms.push(Shown { name, help, label });
        assert!(
            histograms.len() <= HISTOGRAMS_MAX,
            "room for more histograms"
        );
        LocalHistogram(histograms.len() - 1)
    }

    #[inline]
    pub fn record(self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NS.partition_point(|bound| *bound < ns);
        MINE.with(|mine| {
            let buckets = &mine.histograms[self.0];
            add(&buckets.counts.0[bucket], 1);
            add(&buckets.sum_ns, ns);
        });
    }
}

const BOUNDS_NS: [u64; SECONDS.len()] = {
    let mut bounds = [0; SECONDS.len()];
    let mut i = 0;
    while i < bounds.len() {
        bounds[i] = (SECONDS[i] * 1e9) as u64;
        i += 1;
    }
    bounds
};

/// Brings the counters that are shown up to date.
pub fn collect() {
    let all = lock(&ALL);
    for (place, counter) in lock(&COUNTERS).iter().enumerate() {
        let total = all
            .iter()
            .map(|copies| copies.counters.0[place].load(Relaxed));
        counter.absolute(total.fold(0, u64::wrapping_add));
    }
}

/// Writes the histograms as Prometheus reads them.
pub fn render(out: &mut String) {
    let all = lock(&ALL);
    let mut named = "";
    for (place, shown) in lock(&HISTOGRAMS).iter().enumerate() {
        let Shown { name, help, label } = *shown;
        if name != named {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} histogram\n");
            named = name;
        }
        let label = label.map(|(key, value)| format!("{key}=\"{value}\""));
        let (before, alone) = match &label {
            Some(label) => (format!("{label},"), format!("{{{label}}}")),
            None => Default::default(),
        };
        let mut count = 0;
        for bucket in 0..=SECONDS.len() {
            let of =
                |copies: &&'static Copies| copies.histograms[place].counts.0[bucket].load(Relaxed);
            count += all.iter().map(of).sum::<u64>();
            let bound = SECONDS.get(bucket).copied().unwrap_or(f64::INFINITY);
            let le = if bound.is_finite() {
                bound.to_string()
            } else {
                "+Inf".to_owned()
            };
            let _ = writeln!(out, "{name}_bucket{{{before}le=\"{le}\"}} {count}");
        }
        let ns = all
            .iter()
            .map(|copies| copies.histograms[place].sum_ns.load(Relaxed));
        let sum = ns.fold(0, u64::wrapping_add) as f64 / 1e9;
        let _ = writeln!(out, "{name}_sum{alone} {sum}");
        let _ = writeln!(out, "{name}_count{alone} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_thread_counts_is_shown_as_one() {
        let counter = LocalCounter::new(Counter::noop());
        let label = Some(("of", "test"));
        let histogram = LocalHistogram::new("durations_seconds", "How long.", label);
        let count = move || {
            counter.increment(2);
            histogram.record(Duration::from_micros(100));
            histogram.record(Duration::from_micros(101));
            histogram.record(Duration::from_secs(3600));
        };
        count();
        std::thread::spawn(count).join().unwrap();
        let total: u64 = lock(&ALL)
            .iter()
            .map(|c| c.counters.0[counter.0].load(Relaxed))
            .sum();
        assert_eq!(total, 4);
        let mut text = String::new();
        render(&mut text);
        for line in [
            "# TYPE durations_seconds histogram",
            "durations_seconds_bucket{of=\"test\",le=\"0.0001\"} 2",
            "durations_seconds_bucket{of=\"test\",le=\"0.00025\"} 4",
            "durations_seconds_bucket{of=\"test\",le=\"30\"} 4",
            "durations_seconds_bucket{of=\"test\",le=\"+Inf\"} 6",
            "durations_seconds_sum{of=\"test\"} 7200.000402",
            "durations_seconds_count{of=\"test\"} 6",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
