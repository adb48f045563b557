//! Owns: the times at which nodes are asked, the same for all probes: one wake-up of the thread serves them all,
//! where each by itself costs as much as the question. Never: decides whether somebody has to be asked.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// One probe's way along the steps.
///
/// Whenever a timer is set that is to go off before all others, the runtime makes a system call to wake
/// itself, though it is awake. So there are two: while one is waited for, the one after it has been set.
pub struct Steps {
    next: Pin<Box<Sleep>>,
    after: Pin<Box<Sleep>>,
    step: Duration,
}

impl Steps {
    /// Not begun: the timers are set by the first wait.
    pub fn new() -> Steps {
        let past = Instant::now();
        Steps {
            next: Box::pin(sleep_until(past)),
            after: Box::pin(sleep_until(past)),
            step: Duration::ZERO,
        }
    }

    /// Waits for the next step; each is `step` long. Whoever stops waiting loses nothing but that step.
    pub async fn next(&mut self, step: Duration) {
        let now = Instant::now();
        if self.after.deadline() <= now || self.step != step {
            // It has rested, or is too late.
            self.step = step;
            let first = coming_boundary(step);
            self.next.as_mut().reset(first);
            self.after.as_mut().reset(first + step);
        } else if self.next.deadline() <= now {
            self.advance();
        }
        poll_fn(|cx| {
            // The later one is only to be set.
            let _ = self.after.as_mut().poll(cx);
            self.next.as_mut().poll(cx)
        })
        .await;
        self.advance();
    }

    fn advance(&mut self) {
        std::mem::swap(&mut self.next, &mut self.after);
        let coming = self.next.deadline() + self.step;
        self.after.as_mut().reset(coming);
    }
}

/// The next time at which a step begins.
fn coming_boundary(step: Duration) -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let start = *START;
    let since = start.elapsed().as_nanos();
    let step = step.as_nanos().max(1);
    let boundary = (since / step + 1) * step;
    start + Duration::from_nanos(u64::try_from(boundary).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(2);

    #[tokio::test]
    async fn probes_step_together_whenever_they_begin() {
        let (mut one, mut other) = (Steps::new(), Steps::new());
        one.next(STEP).await;
        let first = one.next.deadline();
        other.next(STEP).await;
        let apart = other.next.deadline().saturating_duration_since(first);
        assert_eq!(apart.as_nanos() % STEP.as_nanos(), 0, "{apart:?}");
        // Whoever is late by less than a step waits for the one after all the same.
        tokio::time::sleep_until(one.next.deadline()).await;
        let passed = one.next.deadline();
        one.next(STEP).await;
        assert!(one.next.deadline() >= passed + STEP * 2);
        // However long it rests, it goes on with a step that is to come.
        tokio::time::sleep(STEP * 5).await;
        let began = Instant::now();
        one.next(STEP).await;
        let next = one.next.deadline();
        assert!(next > began && next <= Instant::now() + STEP, "{next:?}");
        let apart = next.saturating_duration_since(first);
        assert_eq!(apart.as_nanos() % STEP.as_nanos(), 0, "{apart:?}");
        // Another step.
        one.next(STEP * 3).await;
        assert_eq!(one.after.deadline() - one.next.deadline(), STEP * 3);
    }
}
