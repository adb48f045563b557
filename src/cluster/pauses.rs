//! Owns: which databases of a cluster are paused. Never: has anybody wait; pools do.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The paused databases of a cluster.
#[derive(Default)]
pub struct Pauses(Mutex<Paused>);

#[derive(Default)]
struct Paused {
    /// Whatever their names are.
    all: bool,
    names: BTreeSet<Box<str>>,
}

impl Pauses {
    pub fn has(&self, database: &str) -> bool {
        let paused = self.lock();
        paused.all || paused.names.contains(database)
    }

    /// Pauses a database, or all.
    pub fn begin(&self, database: Option<&str>) {
        let mut paused = self.lock();
        match database {
            Some(database) => drop(paused.names.insert(database.into())),
            None => paused.all = true,
        }
    }

    /// Ends the pause of a database, or all pauses. `false` if there was none: a pause of all is not ended for
    /// one of them.
    pub fn end(&self, database: Option<&str>) -> bool {
        let mut paused = self.lock();
        match database {
            Some(database) => paused.names.remove(database),
            None => {
                let names = std::mem::take(&mut paused.names);
                std::mem::take(&mut paused.all) || !names.is_empty()
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Paused> {
        // No code that can panic runs between two changes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_paused_by_its_name_or_with_all() {
        let pauses = Pauses::default();
        assert!(!pauses.has("a") && !pauses.end(Some("a")) && !pauses.end(None));
        pauses.begin(Some("a"));
        assert!(pauses.has("a") && !pauses.has("b"));
        pauses.begin(None);
        assert!(pauses.has("b") && !pauses.end(Some("b")));
        assert!(pauses.end(Some("a")) && pauses.has("a"));
        assert!(pauses.end(None) && !pauses.has("a"));
    }
}
