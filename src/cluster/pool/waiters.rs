//! Owns: the order in which those are served who wait for a server of one pool. Never: lets somebody
//! be overtaken more than a few times.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Who waits to be granted a server, in the order in which they came.
pub struct Waiters<G> {
    /// With some who have given up.
    queue: VecDeque<Waiter<G>>,
    /// How long the queue may get before those are taken out of it.
    swept_at: usize,
}

struct Waiter<G> {
    grant: oneshot::Sender<G>,
    /// Its runtime.
    worker: usize,
    /// How many who came later have been served before it.
    overtaken: u32,
    since: Instant,
}

impl<G> Default for Waiters<G> {
    fn default() -> Self {
        Waiters {
            queue: VecDeque::new(),
            swept_at: Self::SWEPT_AT_MIN,
        }
    }
}

impl<G> Waiter<G> {
    fn is_waiting(&self) -> bool {
        !self.grant.is_closed()
    }
}

impl<G> Waiters<G> {
    const SWEPT_AT_MIN: usize = 64;

    /// How often somebody who waits is overtaken by others on the thread that a server is on: to bring
    /// a server to another thread costs as much as some queries.
    const OVERTAKEN_MAX: u32 = 8;

    /// How many wait.
    pub fn count(&self) -> usize {
        self.queue.iter().filter(|w| w.is_waiting()).count()
    }

    /// Whether nobody waits.
    pub fn is_empty(&mut self) -> bool {
        self.drop_first_gone();
        self.queue.is_empty()
    }

    /// Who came first gives up first, mostly.
    fn drop_first_gone(&mut self) {
        while self.queue.front().is_some_and(|w| !w.is_waiting()) {
            self.queue.pop_front();
        }
    }

    /// Joins them, on this worker, behind those who have waited since before that.
    pub fn join(&mut self, worker: usize, since: Instant) -> oneshot::Receiver<G> {
        self.drop_first_gone();
        // Behind one who waits for long many may come and go.
        if self.queue.len() >= self.swept_at {
            self.queue.retain(Waiter::is_waiting);
            self.swept_at = Self::SWEPT_AT_MIN.max(2 * self.queue.len());
        }
        let (grant, receiver) = oneshot::channel();
        let later = self.queue.iter().rev().take_while(|w| w.since > since);
        let place = self.queue.len() - later.count();
        let waiter = Waiter {
            grant,
            worker,
            overtaken: 0,
            since,
        };
        self.queue.insert(place, waiter);
        receiver
    }

    /// How long the one has waited that has waited longest.
    pub fn longest(&self, now: Instant) -> Duration {
        let first = self.queue.iter().find(|w| w.is_waiting());
        first.map_or(Duration::ZERO, |waiter| now - waiter.since)
    }

    /// The first of all.
    pub fn first(&mut self) -> Option<oneshot::Sender<G>> {
        self.queue.pop_front().map(|waiter| waiter.grant)
    }

    /// The first on this worker, unless the first of all has been overtaken often enough.
    pub fn next_for(&mut self, worker: usize) -> Option<oneshot::Sender<G>> {
        let first = self.queue.front()?;
        let index = match first.worker == worker || first.overtaken >= Self::OVERTAKEN_MAX {
            true => 0,
            false => {
                let same = |waiter: &Waiter<G>| waiter.worker == worker && waiter.is_waiting();
                self.queue.iter().position(same).unwrap_or(0)
            }
        };
        if index > 0
            && let Some(first) = self.queue.front_mut()
        {
            first.overtaken += 1;
        }
        self.queue.remove(index).map(|waiter| waiter.grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether its turn has come: in vain here, as the grant is dropped.
    fn is_over(receiver: &mut oneshot::Receiver<()>) -> bool {
        matches!(
            receiver.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        )
    }

    #[test]
    fn who_waits_is_overtaken_for_a_while_at_most() {
        let mut waiters = Waiters::<()>::default();
        let now = Instant::now();
        let mut far = waiters.join(1, now);
        let mut near: Vec<_> = (0..20).map(|_| waiters.join(0, now)).collect();
        for overtaking in near.iter_mut().take(Waiters::<()>::OVERTAKEN_MAX as usize) {
            drop(waiters.next_for(0));
            assert!(is_over(overtaking) && !is_over(&mut far));
        }
        drop(waiters.next_for(0));
        assert!(is_over(&mut far));
        drop(waiters.next_for(2));
        let next = &mut near[Waiters::<()>::OVERTAKEN_MAX as usize];
        assert!(
            is_over(next),
            "on another worker, none but the first will do"
        );
    }

    #[test]
    fn who_has_given_up_is_neither_counted_nor_kept() {
        let (mut waiters, now) = (Waiters::<()>::default(), Instant::now());
        let first = waiters.join(0, now);
        for _ in 0..10_000 {
            drop(waiters.join(0, now));
        }
        assert_eq!(waiters.count(), 1);
        assert!(waiters.queue.len() <= Waiters::<()>::SWEPT_AT_MIN);
        // However many wait in earnest.
        let others: Vec<_> = (0..1000).map(|_| waiters.join(0, now)).collect();
        assert_eq!(waiters.count(), 1001);
        assert!(!waiters.is_empty());
        drop((first, others));
        assert_eq!(waiters.count(), 0);
        assert!(waiters.is_empty());
    }

    #[test]
    fn who_comes_back_keeps_its_turn() {
        let (mut waiters, now) = (Waiters::<()>::default(), Instant::now());
        let mut receivers = [2, 4, 1, 3].map(|n| {
            let since = now + Duration::from_secs(n);
            (n, waiters.join(0, since))
        });
        let mut order = Vec::new();
        while let Some(waiter) = waiters.first() {
            drop(waiter);
            let done = |(n, receiver): &mut (u64, _)| is_over(receiver).then_some(*n);
            order.extend(
                receivers
                    .iter_mut()
                    .filter_map(done)
                    .filter(|n| !order.contains(n))
                    .collect::<Vec<_>>(),
            );
        }
        assert_eq!(order, [1, 2, 3, 4]);
    }
}
