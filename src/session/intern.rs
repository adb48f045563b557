//! Owns: one shared copy of each distinct value, so that comparing two is comparing two pointers.
//! Never: keeps a value that nobody uses, beyond a bound.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

pub struct Interner<T>(LazyLock<Mutex<HashSet<Arc<T>>>>);

impl<T: Eq + Hash> Interner<T> {
    /// Beyond this many values, those that nobody uses are dropped.
    const VALUES_MAX: usize = 1024;

    #[allow(
        clippy::new_without_default,
        reason = "made in statics, where only this can be called"
    )]
    pub const fn new() -> Interner<T> {
        Interner(LazyLock::new(Mutex::default))
    }

    /// The shared copy of `value`.
    pub fn share(&self, value: T) -> Arc<T> {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = values.get(&value) {
            return known.clone();
        }
        if values.len() >= Self::VALUES_MAX {
            values.retain(|value| Arc::strong_count(value) > 1);
        }
        let value = Arc::new(value);
        // While all are in use the new one is not remembered: it is just not shared.
        if values.len() < Self::VALUES_MAX {
            values.insert(value.clone());
        }
        value
    }
}
