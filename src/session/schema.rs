//! Owns: when the schema of a database was last changed through the proxy, for every session that uses
//! the database. Never: knows what was changed; a replica has all of it or is not to be read.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use super::consistency::{Clock, Mark, Tick};

/// The schema of one database.
#[derive(Debug)]
pub struct Schema {
    /// Names the cluster and the database.
    database: Arc<str>,
    /// Counts its changes, each before its client is told of it.
    version: AtomicU32,
    /// Of which version this is the mark.
    mark: Mutex<(u32, Mark)>,
}

impl Schema {
    /// The schema of a database, by the name of the cluster and its own.
    pub fn new(database: &str) -> Schema {
        Schema {
            database: database.into(),
            version: AtomicU32::new(0),
            mark: Mutex::new((0, Mark::new(Tick(0)))),
        }
    }

    /// One of which no more is known than that all its changes had been made by `mark`.
    pub fn since(database: &str, mark: Mark) -> Schema {
        Schema {
            version: AtomicU32::new(1),
            mark: Mutex::new((1, mark)),
            ..Schema::new(database)
        }
    }

    pub fn database(&self) -> &Arc<str> {
        &self.database
    }

    /// How often it has been changed.
    #[inline]
    pub fn version(&self) -> u32 {
        self.version.load(SeqCst)
    }

    /// A change has been committed. Its client is told after this, and by then whoever looks sees it.
    pub fn changed(&self) {
        self.version.fetch_add(1, SeqCst);
    }

    /// The version, and what a replica must have for it.
    pub fn mark(&self, primary: &Clock) -> (u32, Mark) {
        let mut known = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.version();
        if known.0 != version {
            *known = (version, Mark::new(primary.now()));
        }
        known.1 = known.1.resolved(primary);
        *known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::consistency::Lsn;

    fn sample(clock: &Clock, lsn: u64) {
        let tick = clock.begin();
        clock.complete(tick, Lsn(lsn));
    }

    #[test]
    fn everybody_has_the_first_sample_after_a_change() {
        let (schema, clock) = (Schema::new("main/app"), Clock::new());
        let position = || schema.mark(&clock).1.sample.map(|sample| sample.lsn);
        sample(&clock, 10);
        let before = clock.begin();
        schema.changed();
        assert_eq!((schema.version(), position()), (1, None));
        clock.complete(before, Lsn(11));
        assert_eq!(position(), None, "it was asked for before the change");
        sample(&clock, 20);
        assert_eq!(position(), Some(Lsn(20)));
        for lsn in 0..5000 {
            sample(&clock, 30 + lsn);
        }
        assert_eq!(position(), Some(Lsn(20)), "however long ago it was");
        schema.changed();
        assert_eq!(position(), None);
        sample(&clock, 9000);
        assert_eq!(position(), Some(Lsn(9000)));
        clock.new_epoch();
        assert_eq!(position(), None, "of a history that is over");
    }
}
