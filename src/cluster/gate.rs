//! Owns: the sessions whose reads wait for a replica that is nearly there. Never: wakes one for a
//! sample that brings it nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::session::consistency::Floors;

/// Who waits at the gate of a cluster.
#[derive(Default)]
pub struct Gate {
    waiting: Mutex<Vec<Waiting>>,
    /// How many there are: looked at without the lock.
    count: AtomicUsize,
}

struct Waiting {
    floors: Floors,
    open: oneshot::Sender<()>,
}

impl Gate {
    /// Joins those who wait until somebody who [looks](Self::look) finds that a replica has what
    /// `floors` ask for: what is returned hears of it then. Whoever drops it waits no more.
    pub fn join(&self, floors: Floors) -> oneshot::Receiver<()> {
        let (open, opened) = oneshot::channel();
        let mut waiting = self.lock();
        // Those that have given up.
        waiting.retain(|waiting| !waiting.open.is_closed());
        waiting.push(Waiting { floors, open });
        self.count.store(waiting.len(), Ordering::SeqCst);
        opened
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Something has moved: lets those through whose floors a replica has reached.
    pub fn look(&self, is_reached: impl Fn(&Floors) -> bool) {
        let mut waiting = self.lock();
        let through: Vec<_> = waiting
            .extract_if(.., |waiting| is_reached(&waiting.floors))
            .collect();
        self.count.store(waiting.len(), Ordering::SeqCst);
        drop(waiting);
        // To wake a thread takes a system call.
        for waiting in through {
            let _ = waiting.open.send(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        // Nothing that can panic leaves the list half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::consistency::Clock;
    use tokio::sync::oneshot::error::TryRecvError;

    #[test]
    fn only_who_is_let_through_is_woken() {
        let (gate, clock) = (Gate::default(), Clock::new());
        let mut wrote = Floors::default();
        wrote.wrote(&clock);
        let (mut reader, mut writer) = (gate.join(Floors::default()), gate.join(wrote));
        gate.look(|floors| !floors.has_written());
        assert_eq!(reader.try_recv(), Ok(()));
        assert_eq!(writer.try_recv(), Err(TryRecvError::Empty));
        assert!(!gate.is_empty());
        gate.look(|_| true);
        assert_eq!(writer.try_recv(), Ok(()));
        assert!(gate.is_empty());
    }

    #[test]
    fn who_has_given_up_is_forgotten() {
        let gate = Gate::default();
        drop(gate.join(Floors::default()));
        let _waits = gate.join(Floors::default());
        assert_eq!(gate.lock().len(), 1);
    }
}
