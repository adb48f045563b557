//! Owns: how long reads take on a node. Never: takes one slow read for a slow node.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A moving average, in microseconds.
#[derive(Debug, Default)]
pub struct Latency(AtomicU32);

impl Latency {
    pub fn get(&self) -> Duration {
        Duration::from_micros(self.us().into())
    }

    pub fn us(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Every second, a part of what is known of the latency is forgotten: a node that was slow once
    /// is tried again.
    pub fn forget(&self) {
        let old = self.0.load(Ordering::Relaxed);
        self.0.store(old - old.div_ceil(8), Ordering::Relaxed);
    }

    /// A read has taken `took` here.
    pub fn note(&self, took: Duration) {
        /// The share of the newest value is one in so many.
        const SMOOTHING: u32 = 16;
        /// What takes so many times as long as others says more of itself, or of how fast its client reads, than of
        /// the node.
        const TIMES_MAX: u32 = 8;
        /// Below that much, in microseconds, it may be the node all the same.
        const UNUSUAL: u32 = 50_000;
        let old = self.0.load(Ordering::Relaxed);
        let most = old.saturating_mul(TIMES_MAX).max(UNUSUAL);
        let took = u32::try_from(took.as_micros())
            .unwrap_or(u32::MAX)
            .min(most);
        let new = old - old / SMOOTHING + took / SMOOTHING;
        self.0.store(new, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_read_says_little_of_a_node() {
        let latency = Latency::default();
        let ms = Duration::from_millis;
        (0..100).for_each(|_| latency.note(ms(1)));
        assert!(latency.get() < ms(2), "{:?}", latency.get());
        latency.note(Duration::from_secs(600));
        assert!(latency.get() < ms(5), "{:?}", latency.get());
        // Soon it is as good as it was.
        (0..8).for_each(|_| latency.forget());
        assert!(latency.get() < ms(2), "{:?}", latency.get());
        // But many are told from one.
        (0..100).for_each(|_| latency.note(ms(1000)));
        assert!(latency.get() > ms(900), "{:?}", latency.get());
    }
}
