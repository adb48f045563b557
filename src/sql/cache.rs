//! The classes of texts, kept.
//!
//! Owns: the cache, its bounds and its counters. Never: blocks for longer than one shard's update,
//! or allocates on a hit.
//!
//! Only texts under standard strings are kept. The key is the whole normal form, so a hit is exact.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use foldhash::{fast::FixedState, quality::RandomState};

use super::classify::{Reading, classify};
use super::functions::Rules;
use super::{Class, Why, fingerprint, recent};

/// Classifies texts, and remembers the classes of as many normal forms as it has room for.
pub struct Classifier {
    /// Tells it from others, in what threads remember.
    id: u64,
    rules: Rules,
    hasher: RandomState,
    shards: Box<[Shard]>,
}

/// A power of two, well above the number of threads that classify at one time.
const SHARDS: usize = 64;
/// What a shard may hold in keys for each entry it may hold, in bytes.
const KEY_BYTES_MEAN: usize = 1024;

impl Classifier {
    /// A classifier that remembers about `capacity` normal forms.
    pub fn new(rules: Rules, capacity: usize) -> Self {
        let entries_max = capacity.div_ceil(SHARDS);
        let shard = || Shard {
            entries: RwLock::new(Entries {
                map: HashMap::default(),
                key_bytes: 0,
                entries_max,
            }),
        };
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Classifier {
            id: NEXT.fetch_add(1, Relaxed),
            rules,
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            hasher: RandomState::default(),
        }
    }

    /// The rules by which it classifies.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The class of a query text. `standard_conforming_strings` is the setting of the session that
    /// sent it.
    pub fn classify(&self, sql: &[u8], standard_conforming_strings: bool) -> Arc<Class> {
        if !standard_conforming_strings {
            return self.by_words(sql, Why::NonConformingStrings, false);
        }
        if let Some(class) = recent::find(self.id, sql) {
            return class;
        }
        let class = self.by_form(sql);
        recent::note(self.id, sql, &class);
        class
    }

    /// The class that texts of one normal form share.
    fn by_form(&self, sql: &[u8]) -> Arc<Class> {
        fingerprint::with(sql, true, |normal| {
            let Some((text, shape)) = normal else {
                return self.by_words(sql, Why::TooComplex, true);
            };
            let hash = self.hasher.hash_one(text);
            let shard = &self.shards[hash as usize % SHARDS];
            if let Some(class) = shard.get(hash, text) {
                return class;
            }
            let class = self.miss(text, Reading::Normal(shape));
            shard.insert(hash, text, &class);
            class
        })
    }

    fn by_words(&self, sql: &[u8], why: Why, conforming: bool) -> Arc<Class> {
        self.miss(sql, Reading::Words { why, conforming })
    }

    fn miss(&self, text: &[u8], reading: Reading) -> Arc<Class> {
        Arc::new(classify(text, reading, &self.rules))
    }
}

/// A part of the cache under one lock, so that threads rarely share one.
struct Shard {
    entries: RwLock<Entries>,
}

struct Entries {
    /// By the hash of the normal form, which is computed once. Of two texts with one hash the later
    /// one is kept.
    map: HashMap<u64, Entry, FixedState>,
    key_bytes: usize,
    entries_max: usize,
}

struct Entry {
    /// The whole normal form: what decides a hit.
    key: Box<[u8]>,
    class: Arc<Class>,
    /// Set by a hit, cleared by a sweep.
    used: AtomicBool,
}

impl Shard {
    fn get(&self, hash: u64, text: &[u8]) -> Option<Arc<Class>> {
        // A shard is only ever changed by whole entries, so a panic leaves nothing half-done.
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.map.get(&hash).filter(|e| *e.key == *text)?;
        // Mostly set already: a load keeps the line shared between cores.
        if !entry.used.load(Relaxed) {
            entry.used.store(true, Relaxed);
        }
        Some(Arc::clone(&entry.class))
    }

    fn insert(&self, hash: u64, text: &[u8], class: &Arc<Class>) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.make_room(text.len());
        if entries.entries_max == 0 {
            return;
        }
        let entry = Entry {
            key: text.into(),
            class: Arc::clone(class),
            used: AtomicBool::new(false),
        };
        entries.key_bytes += text.len();
        if let Some(old) = entries.map.insert(hash, entry) {
            entries.key_bytes -= old.key.len();
        }
    }
}

impl Entries {
    /// Makes room for one more entry: what no hit has used since the last sweep goes first, and if
    /// that frees nothing, all of it. The classes of a busy shard come back in microseconds.
    fn make_room(&mut self, bytes: usize) {
        let bytes_max = self.entries_max * KEY_BYTES_MEAN + fingerprint::BYTES_MAX;
        let full = |entries: &Self| {
            entries.map.len() >= entries.entries_max || entries.key_bytes + bytes > bytes_max
        };
        if !full(self) {
            return;
        }
        self.map.retain(|_, entry| entry.used.swap(false, Relaxed));
        self.key_bytes = self.map.values().map(|entry| entry.key.len()).sum();
        if full(self) {
            self.map.clear();
            self.key_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Need;
    use super::*;

    fn classifier(capacity: usize) -> Classifier {
        Classifier::new(Rules::default(), capacity)
    }

    #[test]
    fn texts_that_differ_in_literals_share_an_entry() {
        let cache = classifier(100);
        let first = cache.by_form(b"SELECT a FROM t WHERE b = 0 -- 0");
        assert_eq!(first.need, Need::Read);
        for i in 1..10 {
            let sql = format!("SELECT a FROM t WHERE b = {i} -- {i}");
            assert!(Arc::ptr_eq(&cache.by_form(sql.as_bytes()), &first));
        }
    }

    #[test]
    fn the_cache_stays_within_its_bounds() {
        let cache = classifier(64);
        for i in 0..2000 {
            cache.classify(format!("select a{i} from t").as_bytes(), true);
        }
        for shard in &cache.shards {
            let entries = shard.entries.read().expect("no panic");
            assert!(entries.map.len() <= 1);
            let bytes: usize = entries.map.values().map(|e| e.key.len()).sum();
            assert_eq!(entries.key_bytes, bytes);
        }
        let none = classifier(0);
        let [first, second] = [(); 2].map(|()| none.by_form(b"select 1"));
        assert_eq!((first.need, second.need), (Need::Read, Need::Read));
        assert!(!Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn a_sweep_keeps_what_is_used() {
        let mut entries = Entries {
            map: HashMap::default(),
            key_bytes: 0,
            entries_max: 4,
        };
        let class = Arc::new(classify(
            b"",
            Reading::Normal(Default::default()),
            &Rules::default(),
        ));
        for i in 0..4 {
            entries.make_room(1);
            let entry = Entry {
                key: [0].into(),
                class: Arc::clone(&class),
                used: AtomicBool::new(i == 2),
            };
            entries.map.insert(i, entry);
            entries.key_bytes += 1;
        }
        entries.make_room(1);
        assert_eq!(entries.key_bytes, 1);
        assert!(entries.map.contains_key(&2));
    }

    #[test]
    fn a_hit_compares_the_whole_text() {
        let cache = classifier(100);
        let class = cache.classify(b"select 1", true);
        let shard = &cache.shards[0];
        shard.insert(7, b"select 0", &class);
        assert!(shard.get(7, b"select 0").is_some());
        assert!(shard.get(7, b"delete from t").is_none());
        shard.insert(7, b"delete from t", &class);
        assert!(shard.get(7, b"select 0").is_none());
    }

    #[test]
    fn the_string_setting_is_part_of_the_question() {
        let cache = classifier(100);
        let sql = b"select a from t";
        assert_eq!(cache.classify(sql, true).why, Why::ProvenRead);
        assert_eq!(cache.classify(sql, false).why, Why::NonConformingStrings);
        assert_eq!(cache.classify(sql, true).why, Why::ProvenRead);
    }

    #[test]
    fn texts_too_long_to_keep_are_still_classified() {
        let cache = classifier(100);
        let columns = "a, ".repeat(fingerprint::BYTES_MAX);
        let read = format!("select {columns} b from t");
        assert_eq!(cache.classify(read.as_bytes(), true).why, Why::TooComplex);
        let write = format!("insert into t select {columns} b from t");
        assert_eq!(cache.classify(write.as_bytes(), true).why, Why::DataChange);
        let list = format!("select 1 where a in ({})", vec!["1"; 10_000].join(","));
        assert_eq!(cache.classify(list.as_bytes(), true).why, Why::ProvenRead);
    }
}
