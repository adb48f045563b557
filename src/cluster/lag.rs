//! Owns: when the primary was where: the history that turns a position into a lag in time. Never:
//! asks a standby's clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::session::consistency::Lsn;

/// Positions of the primary and when they were first seen: every one of late, and one in a while of
/// long ago.
#[derive(Debug)]
pub struct History {
    recent: VecDeque<(Instant, Lsn)>,
    old: VecDeque<(Instant, Lsn)>,
    /// The last of all, however long the primary has been there.
    last: Option<(Instant, Lsn)>,
}

impl Default for History {
    fn default() -> History {
        History {
            // All that there will be: who asks often takes no memory.
            recent: VecDeque::with_capacity(Self::RECENT_MAX + 1),
            old: VecDeque::with_capacity(Self::OLD_MAX + 1),
            last: None,
        }
    }
}

impl History {
    const RECENT_MAX: usize = 1024;
    const OLD_MAX: usize = 4096;
    const OLD_EVERY: Duration = Duration::from_millis(250);

    /// The primary was asked where it is at this time, and was at `lsn`. If it has been seen beyond that, it has lost
    /// what was there.
    pub fn note(&mut self, at: Instant, lsn: Lsn) {
        for history in [&mut self.recent, &mut self.old] {
            while history.back().is_some_and(|&(_, last)| last > lsn) {
                history.pop_back();
            }
        }
        self.last = Some((at, lsn));
        if self.recent.back().is_some_and(|&(_, last)| lsn <= last) {
            return;
        }
        self.recent.push_back((at, lsn));
        if self.recent.len() <= Self::RECENT_MAX {
            return;
        }
        let Some(passed) = self.recent.pop_front() else {
            return;
        };
        if self
            .old
            .back()
            .is_none_or(|&(last, _)| passed.0 - last >= Self::OLD_EVERY)
        {
            self.old.push_back(passed);
        }
        if self.old.len() > Self::OLD_MAX {
            self.old.pop_front();
        }
    }

    /// Where the primary was last.
    pub fn newest(&self) -> Option<Lsn> {
        self.last.map(|(_, lsn)| lsn)
    }

    /// How long ago the primary passed `replayed`; zero when it has not been seen beyond it.
    pub fn lag(&self, now: Instant, replayed: Lsn) -> Duration {
        let at = self.beyond(replayed).map(|(at, _)| at);
        at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    /// The first position beyond `replayed` where the primary was seen.
    pub fn next(&self, replayed: Lsn) -> Option<Lsn> {
        self.beyond(replayed).map(|(_, lsn)| lsn)
    }

    fn beyond(&self, replayed: Lsn) -> Option<(Instant, Lsn)> {
        let beyond = |history: &VecDeque<(Instant, Lsn)>| {
            let index = history.partition_point(|&(_, lsn)| lsn <= replayed);
            history.get(index).copied()
        };
        beyond(&self.old).or_else(|| beyond(&self.recent))
    }

    /// When the primary was last known to be no further than `replayed`: whoever has replayed that has
    /// everything that had been committed by then. `None` if it has never been seen there.
    pub fn as_of(&self, replayed: Lsn) -> Option<Instant> {
        if let Some((at, _)) = self.last.filter(|&(_, lsn)| lsn <= replayed) {
            return Some(at);
        }
        let not_beyond = |history: &VecDeque<(Instant, Lsn)>| {
            let index = history.partition_point(|&(_, lsn)| lsn <= replayed);
            history.get(index.checked_sub(1)?).map(|&(at, _)| at)
        };
        not_beyond(&self.recent).or_else(|| not_beyond(&self.old))
    }

    /// Another history begins.
    pub fn clear(&mut self) {
        self.last = None;
        self.recent.clear();
        self.old.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_the_age_of_what_is_missing() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut history = History::default();
        assert_eq!(history.lag(at(0), Lsn(0)), Duration::ZERO);
        history.note(at(0), Lsn(10));
        history.note(at(100), Lsn(20));
        history.note(at(5000), Lsn(20));
        assert_eq!(
            history.lag(at(9000), Lsn(20)),
            Duration::ZERO,
            "an idle primary has no lag"
        );
        assert_eq!(history.lag(at(300), Lsn(10)), Duration::from_millis(200));
        assert_eq!(history.lag(at(300), Lsn(19)), Duration::from_millis(200));
        assert_eq!(history.lag(at(300), Lsn(5)), Duration::from_millis(300));
    }

    #[test]
    fn a_position_is_as_of_when_the_primary_was_there() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut history = History::default();
        assert_eq!(history.as_of(Lsn(9)), None);
        history.note(at(0), Lsn(10));
        history.note(at(100), Lsn(20));
        history.note(at(5000), Lsn(20));
        assert_eq!(history.as_of(Lsn(9)), None);
        assert_eq!(history.as_of(Lsn(19)), Some(at(0)));
        assert_eq!(history.as_of(Lsn(20)), Some(at(5000)), "it is idle");
        history.note(at(6000), Lsn(30));
        assert_eq!(history.as_of(Lsn(20)), Some(at(100)), "never too late");
        history.clear();
        assert_eq!(history.as_of(Lsn(99)), None);
    }

    #[test]
    fn what_the_primary_has_lost_nobody_lacks() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut history = History::default();
        for ms in 0..2 * History::RECENT_MAX as u64 {
            history.note(at(ms), Lsn(100 + ms));
        }
        let lag = |history: &History, lsn| history.lag(at(9000), Lsn(lsn)).as_millis();
        assert_eq!((lag(&history, 1500), lag(&history, 100)), (7599, 8750));
        history.note(at(5000), Lsn(1500));
        assert_eq!((lag(&history, 1500), lag(&history, 1499)), (0, 7600));
        assert_eq!(history.newest(), Some(Lsn(1500)));
        history.note(at(6000), Lsn(101));
        assert_eq!((lag(&history, 101), lag(&history, 100)), (0, 3000));
        assert_eq!(history.as_of(Lsn(100)), Some(at(0)));
    }

    #[test]
    fn long_ago_is_remembered_roughly() {
        let start = Instant::now();
        let mut history = History::default();
        for ms in 0..60_000u64 {
            history.note(start + Duration::from_millis(ms), Lsn(ms));
        }
        let now = start + Duration::from_secs(60);
        for behind in [1u64, 900, 5_000, 50_000] {
            let lag = history.lag(now, Lsn(60_000 - behind)).as_millis() as u64;
            assert!(lag.abs_diff(behind) <= 251, "{lag} for {behind}");
        }
        assert!(history.recent.len() + history.old.len() < 2048);
    }
}
