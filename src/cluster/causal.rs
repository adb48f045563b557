//! Owns: what the sessions of each causal key must see, on this proxy, and which others are told of it. Never: forgets a key's floor
//! without a floor in its place that is no lower.

pub mod store;

use std::hash::BuildHasher;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use lru::LruCache;

use self::store::Store;
use super::Cluster;
use crate::config::Config;
use crate::session::consistency::{Clock, Mark, Tick};

/// A key of one database, as it is remembered. Two that have one number share a floor, which is then
/// the higher of theirs: no harm is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(u64);

/// The floors of the keys that were written to of late.
#[derive(Debug)]
pub struct Keys {
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Debug)]
struct Shard {
    floors: LruCache<KeyId, Mark>,
    /// No lower than any floor that has been forgotten: it is that of all keys that are not known.
    forgotten: Mark,
    /// No key's floor is lower.
    all: Mark,
}

impl Keys {
    /// How many keys are remembered.
    pub const NUMBER_MAX: usize = 1 << 16;
    /// A power of two, well above the number of threads.
    const SHARDS: usize = 32;

    pub fn new() -> Keys {
        Keys::of(Keys::NUMBER_MAX)
    }

    fn of(number_max: usize) -> Keys {
        let each = NonZeroUsize::new(number_max / Keys::SHARDS).unwrap_or(NonZeroUsize::MIN);
        let shard = || {
            Mutex::new(Shard {
                floors: LruCache::new(each),
                // What was written before this proxy began, through it or another, is not known.
                forgotten: Mark::new(Tick(0)),
                all: Mark::new(Tick(0)),
            })
        };
        Keys {
            hasher: RandomState::default(),
            shards: std::iter::repeat_with(shard).take(Keys::SHARDS).collect(),
        }
    }

    pub fn id(&self, database: &str, key: &str) -> KeyId {
        KeyId(self.hasher.hash_one((database, key)))
    }

    /// A session of the key has been acknowledged something by `moment`.
    pub fn raise(&self, id: KeyId, moment: Tick) {
        let mut shard = self.shard(id);
        if let Some(mark) = shard.floors.get_mut(&id) {
            if mark.moment < moment {
                *mark = Mark::new(moment);
            }
            return;
        }
        if let Some((_, old)) = shard.floors.push(id, Mark::new(moment))
            && old.moment > shard.forgotten.moment
        {
            shard.forgotten = old;
        }
    }

    /// A session whose key is not known has been acknowledged something by `moment`.
    pub fn raise_all(&self, moment: Tick) {
        for shard in &self.shards {
            let all = &mut lock(shard).all;
            if all.moment < moment {
                *all = Mark::new(moment);
            }
        }
    }

    /// What the key's sessions must see, on the primary's clock.
    pub fn floor(&self, id: KeyId, primary: &Clock) -> Mark {
        let mut shard = self.shard(id);
        let Shard {
            floors,
            forgotten,
            all,
        } = &mut *shard;
        let own = floors.get_mut(&id).unwrap_or(forgotten);
        let mark = match own.moment < all.moment {
            true => all,
            false => own,
        };
        *mark = mark.resolved(primary);
        *mark
    }

    fn shard(&self, id: KeyId) -> MutexGuard<'_, Shard> {
        lock(&self.shards[id.0 as usize % Keys::SHARDS])
    }
}

/// Changed by whole floors only, so a panic leaves nothing half-done.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Keys {
    fn default() -> Keys {
        Keys::new()
    }
}

impl Cluster {
    /// A session of this key has been acknowledged something: what it wrote, or only what it read on the
    /// primary. Other proxies are told of what is written.
    pub fn note_key(&self, database: &str, key: &str, wrote: bool) {
        let (id, now) = (self.keys.id(database, key), self.clock.now());
        self.keys.raise(id, now);
        if wrote && let Some(store) = &*self.store.load() {
            store.raise(id, database, key, now);
            self.want_sample(now);
        }
    }

    /// The like, of a session whose key is not known.
    pub fn note_all_keys(&self, wrote: bool) {
        let now = self.clock.now();
        self.keys.raise_all(now);
        if wrote && let Some(store) = &*self.store.load() {
            store.raise_all(now);
            self.want_sample(now);
        }
    }

    /// What sessions of this key must see by what this proxy knows; and where it has to be asked what
    /// others know.
    pub fn key_floor(&self, database: &str, key: &str) -> (Mark, Option<Arc<Store>>) {
        let id = self.keys.id(database, key);
        (self.keys.floor(id, &self.clock), self.store.load_full())
    }

    /// Shares causal keys as this configuration says.
    pub(super) fn share_keys(self: &Arc<Self>, config: &Config) {
        let wanted = config.consistency.redis.as_ref();
        let staleness = config.staleness_max();
        let known = self.store.load_full();
        match (&known, wanted) {
            (None, None) => return,
            (Some(known), Some(wanted)) if known.is_as(wanted, staleness) => return,
            _ => {}
        }
        let opened = wanted
            .map(|wanted| Store::open(wanted, staleness, known.as_deref()))
            .transpose();
        match opened {
            Ok(opened) => {
                if let Some(store) = &opened {
                    tokio::spawn(store::keep(self.clone(), store.clone()));
                }
                self.store.store(opened);
                if let Some(known) = known {
                    known.close();
                }
            }
            // The configuration has been checked; what is here stays.
            Err(error) => {
                tracing::error!(cluster = %self.name, %error, "causal keys can't be shared")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::consistency::Lsn;

    #[test]
    fn sessions_of_a_key_share_its_floor() {
        let (keys, clock) = (Keys::new(), Clock::new());
        let [a, b] = ["a", "b"].map(|key| keys.id("d", key));
        assert_eq!(keys.id("d", "a"), a);
        assert_ne!(keys.id("e", "a"), a, "another database's is another");
        let tick = clock.begin();
        clock.complete(tick, Lsn(10));
        let before = keys.floor(a, &clock);
        assert_eq!(before.sample.map(|sample| sample.lsn), Some(Lsn(10)));
        keys.raise(a, clock.now());
        assert_eq!(keys.floor(a, &clock).sample, None, "not sampled since");
        assert!(keys.floor(b, &clock).sample.is_some());
        let tick = clock.begin();
        clock.complete(tick, Lsn(20));
        keys.raise(a, Tick(0));
        let lsn = |id| keys.floor(id, &clock).sample.map(|sample| sample.lsn);
        assert_eq!(lsn(a), Some(Lsn(20)));
        // What was written for a key that is not known may be for any.
        keys.raise_all(clock.now());
        assert_eq!([a, b].map(lsn), [None, None]);
        let tick = clock.begin();
        clock.complete(tick, Lsn(30));
        keys.raise_all(Tick(0));
        assert_eq!([a, b].map(lsn), [Some(Lsn(30)); 2]);
    }

    #[test]
    fn what_is_forgotten_is_no_lower_afterwards() {
        let (keys, clock) = (Keys::of(0), Clock::new());
        let ids: Vec<_> = (0..1000).map(|n| keys.id("d", &n.to_string())).collect();
        for &id in &ids {
            keys.raise(id, clock.begin());
        }
        let floor = |id| keys.floor(id, &clock).moment;
        for (n, &id) in ids.iter().enumerate() {
            assert!(floor(id) >= Tick(n as u64 + 1), "{n}");
        }
        let kept = keys
            .shards
            .iter()
            .map(|shard| shard.lock().unwrap().floors.len());
        assert_eq!(kept.sum::<usize>(), Keys::SHARDS);
    }
}
