//! Owns: the threads that serve clients, and over how many of them clients are spread. Never: knows
//! what a client is.
//!
//! Each worker is one thread with a runtime of its own: no socket is touched by two threads at a time.
//! One thread that is half busy serves the same queries for less than two that are a quarter busy: it
//! is woken less often, finds more to do each time, and its caches are warm. So clients are kept on as
//! few workers as have time for them, and the next one is put to work before they run out of it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::{self, Handle};

use crate::{net, telemetry};

/// How often the workers' load is looked at.
const BALANCE_INTERVAL: Duration = Duration::from_millis(100);

/// All workers. The first so many of them have work.
pub struct Workers {
    all: Box<[Worker]>,
    /// How many have work at least.
    least: usize,
    active: AtomicUsize,
}

/// One thread and its runtime.
struct Worker {
    runtime: Handle,
    /// Where Linux says how long the thread has run.
    statistics: Arc<OnceLock<PathBuf>>,
    clients: AtomicUsize,
    /// How many have come since its load was last looked at, which does not show in that yet.
    newcomers: AtomicUsize,
    /// Its busy share when last looked at, in thousandths.
    busy: AtomicUsize,
    /// The last call for clients to move away: its number, and in the lowest ten bits which share of
    /// them it is for, in thousandths.
    call: AtomicU64,
}

/// So much of a thread's time, in thousandths, makes no difference between two workers: there it is the clients that are
/// counted.
const SAME_LOAD: usize = 50;

const SHARE_BITS: u32 = 10;
const ALL: u64 = 1000;

/// A client's place on a worker, for as long as this lives.
pub struct Seat {
    workers: Arc<Workers>,
    index: usize,
    /// The last call that it has heard.
    heard: u64,
}

impl Workers {
    /// Starts `count` threads, or one for each core if that is 0. So many of them as `least`, or all, always
    /// have work.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(count: usize, least: usize) -> io::Result<Arc<Workers>> {
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            count => count,
        };
        let all: io::Result<Vec<_>> = (0..count).map(Worker::start).collect();
        let least = least.clamp(1, count);
        Ok(Arc::new(Workers {
            all: all?.into(),
            least,
            active: AtomicUsize::new(least),
        }))
    }

    /// The runtime of the worker that always has work.
    pub fn first(&self) -> &Handle {
        &self.all[0].runtime
    }

    /// Takes a place for a client on the worker that has the most time.
    pub fn seat(self: &Arc<Self>) -> Seat {
        let active = self.active.load(Relaxed).clamp(1, self.all.len());
        let workers = &self.all[..active];
        let sum = |of: fn(&Worker) -> &AtomicUsize| -> usize {
            workers.iter().map(|worker| of(worker).load(Relaxed)).sum()
        };
        // A client is taken to be as busy as those are that were there at the last look.
        let known = sum(|worker| &worker.clients).saturating_sub(sum(|worker| &worker.newcomers));
        let mean = sum(|worker| &worker.busy) / known.max(1);
        let load = |&index: &usize| {
            let worker = &workers[index];
            let busy = worker.busy.load(Relaxed) + worker.newcomers.load(Relaxed) * mean;
            (busy / SAME_LOAD, worker.clients.load(Relaxed))
        };
        let index = (0..active).min_by_key(load).unwrap_or(0);
        let worker = &workers[index];
        worker.clients.fetch_add(1, Relaxed);
        worker.newcomers.fetch_add(1, Relaxed);
        Seat {
            workers: self.clone(),
            index,
            heard: worker.call.load(Relaxed),
        }
    }

    /// Looks at the workers' load again and again, and spreads the clients accordingly.
    pub async fn balance(self: Arc<Self>) {
        if self.all.len() == 1 {
            telemetry::metrics().active_workers.set(1.0);
            return;
        }
        let mut every = tokio::time::interval(BALANCE_INTERVAL);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut before: Vec<_> = self.all.iter().map(Worker::spent).collect();
        let mut looked = Instant::now();
        let mut balance = Balance::new(self.least);
        loop {
            telemetry::metrics()
                .active_workers
                .set(self.active.load(Relaxed) as f64);
            every.tick().await;
            let elapsed = looked.elapsed();
            looked = Instant::now();
            let now: Vec<_> = self.all.iter().map(Worker::spent).collect();
            let shares: Vec<_> = (now.iter().zip(&before))
                .map(|(now, before)| now.share_since(before, elapsed))
                .collect();
            before = now;
            for (worker, share) in self.all.iter().zip(&shares) {
                worker.busy.store((share * 1000.0) as usize, Relaxed);
                worker.newcomers.store(0, Relaxed);
            }
            self.apply(balance.next(&shares, self.active.load(Relaxed)));
        }
    }

    fn apply(&self, step: Step) {
        match step {
            Step::Stay => {}
            Step::Activate => {
                let active = self.active.fetch_add(1, Relaxed) + 1;
                // The new one gets its part of everybody's.
                for worker in &self.all[..active - 1] {
                    worker.call_for(ALL / active as u64);
                }
            }
            Step::Deactivate => {
                let last = self.active.fetch_sub(1, Relaxed) - 1;
                self.all[last].call_for(ALL);
            }
            Step::Even { from, share } => self.all[from].call_for((share * ALL as f64) as u64),
        }
    }
}

/// What a worker has spent so far.
struct Spent {
    /// Time in which it had something to do.
    busy: Duration,
    /// Time of a processor's, as far as the operating system tells.
    processor: Option<Duration>,
}

impl Spent {
    /// The share of its time that it has spent. Time in which it had something to do and no processor
    /// does not count: another thread would wait for one too, and take it from the servers and clients
    /// that everybody waits for.
    fn share_since(&self, before: &Spent, elapsed: Duration) -> f64 {
        let (now, before) = match self.processor.zip(before.processor) {
            Some(processor) => processor,
            None => (self.busy, before.busy),
        };
        now.saturating_sub(before).as_secs_f64() / elapsed.as_secs_f64().max(0.001)
    }
}

impl Worker {
    fn start(index: usize) -> io::Result<Worker> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let statistics = Arc::new(OnceLock::new());
        let found = statistics.clone();
        std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                net::set_worker(index);
                // Its own name, as others may read it by: the link is to PID/task/TID.
                if let Ok(own) = std::fs::read_link("/proc/thread-self") {
                    let _ = found.set(Path::new("/proc").join(own).join("schedstat"));
                }
                runtime.block_on(std::future::pending::<()>());
            })?;
        Ok(Worker {
            runtime: handle,
            statistics,
            clients: AtomicUsize::new(0),
            newcomers: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            call: AtomicU64::new(0),
        })
    }

    fn spent(&self) -> Spent {
        let statistics = self.statistics.get();
        let text = statistics.and_then(|path| std::fs::read_to_string(path).ok());
        let first = |text: String| text.split(' ').next()?.parse().ok();
        Spent {
            busy: self.runtime.metrics().worker_total_busy_duration(0),
            processor: text.and_then(first).map(Duration::from_nanos),
        }
    }

    /// Calls for this share of its clients to move, in thousandths.
    fn call_for(&self, share: u64) {
        let number = (self.call.load(Relaxed) >> SHARE_BITS) + 1;
        self.call
            .store(number << SHARE_BITS | share.min(ALL), Relaxed);
    }
}

impl Seat {
    /// The runtime of the worker that it is on.
    pub fn runtime(&self) -> &Handle {
        &self.workers.all[self.index].runtime
    }

    /// Whether clients of its worker are called to move, and this one has not heard it yet. Asked
    /// between two queries, by those that have any: who is idle costs no time, and stays.
    #[inline]
    pub fn has_call(&self) -> bool {
        self.call() != self.heard
    }

    /// Hears the call: whether the client is one of those that are to go, which `random` decides.
    pub fn hear_call(&mut self, random: u64) -> bool {
        self.heard = self.call();
        random % ALL < self.heard & ((1 << SHARE_BITS) - 1)
    }

    fn call(&self) -> u64 {
        self.workers.all[self.index].call.load(Relaxed)
    }

    /// A place elsewhere, where there is one that is better.
    pub fn moved(&self) -> Option<Seat> {
        let seat = self.workers.seat();
        (seat.index != self.index).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.workers.all[self.index].clients.fetch_sub(1, Relaxed);
    }
}

/// Decides over how many workers clients are spread. Shares are of a thread's time, from 0 to 1.
struct Balance {
    /// So many have work in any case, at least one.
    least: usize,
    /// For how many looks in a row there has been too little time, and too much.
    short: u32,
    ample: u32,
    /// Looks to come until what was done last can be seen.
    rest: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Stay,
    /// One more worker.
    Activate,
    /// One less.
    Deactivate,
    /// This share of a worker's clients goes to others.
    Even {
        from: usize,
        share: f64,
    },
}

impl Balance {
    /// A worker that is busier than this has too little time: who comes has to wait.
    const SHORT: f64 = 0.65;
    /// So busy the rest would be, at most, with one worker less. It is less than the sum of what all of them
    /// are now: the same work takes fewer of them less time.
    const AMPLE: f64 = 0.55;
    /// Looks in a row until a worker is put to work: a burst is over by then.
    const SHORT_LOOKS: u32 = 2;
    /// Looks in a row until one is spared.
    const AMPLE_LOOKS: u32 = 50;
    /// Looks until the clients that were called have moved.
    const REST_LOOKS: u32 = 5;
    /// A difference that is not worth a move.
    const EVEN: f64 = 0.2;

    fn new(least: usize) -> Balance {
        Balance {
            least,
            short: 0,
            ample: 0,
            rest: 0,
        }
    }

    fn next(&mut self, shares: &[f64], active: usize) -> Step {
        let shares_of_active = shares.get(..active).unwrap_or(shares);
        let sum: f64 = shares_of_active.iter().sum();
        let busiest = (0..shares_of_active.len())
            .max_by(|a, b| shares[*a].total_cmp(&shares[*b]))
            .unwrap_or(0);
        let most = shares.get(busiest).copied().unwrap_or(0.0);
        let least = shares_of_active
            .iter()
            .copied()
            .fold(f64::INFINITY, f64::min);
        let is_short = most > Self::SHORT;
        self.short = if is_short { self.short + 1 } else { 0 };
        let is_ample = active > self.least && sum / (active - 1) as f64 <= Self::AMPLE;
        self.ample = if is_ample { self.ample + 1 } else { 0 };
        if self.rest > 0 {
            self.rest -= 1;
            return Step::Stay;
        }
        let mean = sum / active.max(1) as f64;
        let step = if is_short && most - least > Self::EVEN {
            let share = (most - mean) / most;
            Step::Even {
                from: busiest,
                share,
            }
        } else if self.short >= Self::SHORT_LOOKS && active < shares.len() {
            Step::Activate
        } else if self.ample >= Self::AMPLE_LOOKS {
            Step::Deactivate
        } else {
            return Step::Stay;
        };
        self.rest = Self::REST_LOOKS;
        (self.short, self.ample) = (0, 0);
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(balance: &mut Balance, shares: &[f64], active: usize, looks: usize) -> Vec<Step> {
        let steps = (0..looks).map(|_| balance.next(shares, active));
        steps.filter(|step| *step != Step::Stay).collect()
    }

    #[test]
    fn a_worker_is_put_to_work_before_the_others_run_out_of_time() {
        let mut balance = Balance::new(1);
        assert_eq!(steps(&mut balance, &[0.6, 0.0], 1, 100), []);
        assert_eq!(balance.next(&[0.9, 0.0], 1), Step::Stay, "a burst");
        assert_eq!(steps(&mut balance, &[0.5, 0.0], 1, 10), []);
        assert_eq!(steps(&mut balance, &[0.9, 0.0], 1, 3), [Step::Activate]);
        assert_eq!(
            steps(&mut balance, &[1.0, 1.0], 2, 100),
            [],
            "there is no third"
        );
    }

    #[test]
    fn a_worker_is_spared_when_the_others_have_ample_time() {
        let mut balance = Balance::new(1);
        assert_eq!(steps(&mut balance, &[0.2, 0.1], 2, 49), []);
        assert_eq!(steps(&mut balance, &[0.2, 0.1], 2, 1), [Step::Deactivate]);
        assert_eq!(steps(&mut balance, &[0.3, 0.3], 2, 200), []);
        assert_eq!(steps(&mut balance, &[0.0, 0.0], 1, 200), [], "one is left");
        let mut balance = Balance::new(2);
        let idle = [0.0, 0.0, 0.0];
        assert_eq!(steps(&mut balance, &idle, 2, 200), []);
        assert_eq!(steps(&mut balance, &idle, 3, 50), [Step::Deactivate]);
    }

    #[test]
    fn clients_that_came_together_are_spread() {
        let mut balance = Balance::new(1);
        let step = balance.next(&[0.9, 0.3], 2);
        assert!(matches!(step, Step::Even { from: 0, share } if (0.3..0.4).contains(&share)));
        assert_eq!(steps(&mut balance, &[0.7, 0.6], 2, 50), []);
    }

    #[test]
    fn time_without_a_processor_does_not_count() {
        let spent = |busy, processor: Option<u64>| Spent {
            busy: Duration::from_millis(busy),
            processor: processor.map(Duration::from_millis),
        };
        let percent = |spent: Spent, before| {
            let share = spent.share_since(&before, Duration::from_millis(100));
            (share * 100.0).round() as u32
        };
        assert_eq!(percent(spent(170, Some(40)), spent(100, Some(10))), 30);
        assert_eq!(percent(spent(200, Some(40)), spent(100, Some(10))), 30);
        assert_eq!(percent(spent(180, None), spent(100, None)), 80);
    }

    #[test]
    fn clients_that_come_together_are_seated_apart() {
        let workers = Workers::start(2, 2).unwrap();
        let clients = |workers: &Workers| -> Vec<_> {
            let all = workers.all.iter();
            all.map(|worker| worker.clients.load(Relaxed)).collect()
        };
        // Nobody does anything yet, but for the probes on the first.
        workers.all[0].busy.store(9, Relaxed);
        let seats: Vec<_> = (0..64).map(|_| workers.seat()).collect();
        assert_eq!(clients(&workers), [32, 32]);
        // 64 clients need 800 of a thousand, and 64 more are to need as much: the first has time for 16 less of them.
        workers.all[0].busy.store(500, Relaxed);
        workers.all[1].busy.store(300, Relaxed);
        workers
            .all
            .iter()
            .for_each(|worker| worker.newcomers.store(0, Relaxed));
        let more: Vec<_> = (0..64).map(|_| workers.seat()).collect();
        let [first, second] = clients(&workers)[..] else {
            panic!("two workers");
        };
        assert!((52..=60).contains(&first), "{first} and {second}");
        drop((seats, more));
    }

    #[test]
    fn as_many_move_as_are_called() {
        let workers = Workers::start(2, 1).unwrap();
        if cfg!(target_os = "linux") {
            let told = || {
                workers
                    .all
                    .iter()
                    .all(|worker| worker.spent().processor.is_some())
            };
            while !told() {
                std::thread::yield_now();
            }
        }
        let mut seats: Vec<_> = (0..100).map(|_| workers.seat()).collect();
        assert!(seats.iter().all(|seat| seat.index == 0));
        workers.apply(Step::Activate);
        let called = |seats: &mut Vec<Seat>| {
            let draws = seats.iter_mut().zip((0..100).map(|i| i * ALL / 100));
            let goes = |(seat, i): (&mut Seat, u64)| seat.has_call() && seat.hear_call(i);
            draws.map(goes).filter(|goes| *goes).count()
        };
        assert_eq!(called(&mut seats), 50);
        assert_eq!(called(&mut seats), 0, "each call is heard once");
        workers.all[0].busy.store(500, Relaxed);
        let moved = seats[0].moved().unwrap();
        assert_eq!(moved.index, 1);
        drop(std::mem::replace(&mut seats[0], moved));
        let clients: Vec<_> = workers
            .all
            .iter()
            .map(|w| w.clients.load(Relaxed))
            .collect();
        assert_eq!(clients, [99, 1]);
        workers.apply(Step::Deactivate);
        assert!(seats[0].hear_call(ALL - 1), "all of its clients go");
        assert!(seats[0].moved().is_some_and(|seat| seat.index == 0));
    }
}
