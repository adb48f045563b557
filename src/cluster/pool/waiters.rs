//! Owns: the order in which those are served who wait for a server of one pool. Never: lets somebody
//! be overtaken more than a few times.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Who waits to be granted a server, in the order in which they came.
pub struct Waiters<G>(VecDeque<Waiter<G>>);

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
        Waiters(VecDeque::new())
    }
}

impl<G> Waiters<G> {
    /// How often somebody who waits is overtaken by others on the thread that a server is on: to bring
    /// a server to another thread costs as much as some queries.
    const OVERTAKEN_MAX: u32 = 8;

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Joins them, on this worker, behind those who have waited since before that.
    pub fn join(&mut self, worker: usize, since: Instant) -> oneshot::Receiver<G> {
        // Who came first gives up first.
        while self.0.front().is_some_and(|w| w.grant.is_closed()) {
            self.0.pop_front();
        }
        let (grant, receiver) = oneshot::channel();
        let later = self.0.iter().rev().take_while(|w| w.since > since);
        let place = self.0.len() - later.count();
        let waiter = Waiter {
            grant,
            worker,
            overtaken: 0,
            since,
        };
        self.0.insert(place, waiter);
        receiver
    }

    /// How long the one has waited that has waited longest.
    pub fn longest(&self, now: Instant) -> Duration {
        let mut waiting = self.0.iter().filter(|waiter| !waiter.grant.is_closed());
        waiting
            .next()
            .map_or(Duration::ZERO, |waiter| now - waiter.since)
    }

    /// The first of all.
    pub fn first(&mut self) -> Option<oneshot::Sender<G>> {
        self.0.pop_front().map(|waiter| waiter.grant)
    }

    /// The first on this worker, unless the first of all has been overtaken often enough.
    pub fn next_for(&mut self, worker: usize) -> Option<oneshot::Sender<G>> {
        let first = self.0.front()?;
        let index = match first.worker == worker || first.overtaken >= Self::OVERTAKEN_MAX {
            true => 0,
            false => {
                let same =
                    |waiter: &Waiter<G>| waiter.worker == worker && !waiter.grant.is_closed();
                self.0.iter().position(same).unwrap_or(0)
            }
        };
        if index > 0
            && let Some(first) = self.0.front_mut()
        {
            first.overtaken += 1;
        }
        self.0.remove(index).map(|waiter| waiter.grant)
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
