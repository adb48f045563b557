//! Owns: what is known of one database now: its catalog, and which of its names have effects on
//! sessions. Never: asks for it; `cluster::catalog` does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;

use super::effects::Effects;
use crate::sql::catalog::Catalog;
use crate::sql::functions::Rules;
use crate::sql::{Class, Need, Why};

/// What is known of one database; all of its sessions share it.
#[derive(Debug, Default)]
pub struct Known {
    /// That of the catalog; 0 while it is not known, or outdated.
    epoch: AtomicU64,
    /// The latest, outdated or not.
    catalog: ArcSwapOption<Catalog>,
    effects: ArcSwapOption<Effects>,
    /// Counts how often it was outdated: an answer that was asked for before is of no use. Held while
    /// what is known changes.
    version: Mutex<u64>,
    /// It has been asked for, with or without success.
    settled: AtomicBool,
}

impl Known {
    /// What a text needs, of a class on which the catalog has a say.
    #[inline]
    pub fn needs(&self, class: &Class, sql: &[u8], rules: &Rules) -> (Need, Why) {
        let epoch = self.epoch.load(Ordering::Acquire);
        match class.memo.get(epoch) {
            Some(verdict) if epoch != 0 => verdict.needs(),
            _ => self.judge(class, sql, rules),
        }
    }

    #[cold]
    fn judge(&self, class: &Class, sql: &[u8], rules: &Rules) -> (Need, Why) {
        let Some(catalog) = self.catalog() else {
            // Nothing is guessed to be safe.
            return (Need::Write, Why::CatalogUnknown);
        };
        let verdict = catalog.judge(class, sql, rules);
        class.memo.put(catalog.epoch(), verdict);
        verdict.needs()
    }

    /// The catalog, unless it is not known now.
    pub fn catalog(&self) -> Option<Arc<Catalog>> {
        let epoch = self.epoch.load(Ordering::Acquire);
        let catalog = self.catalog.load_full()?;
        (catalog.epoch() == epoch).then_some(catalog)
    }

    /// The latest catalog, even if it is outdated.
    pub fn latest(&self) -> Option<Arc<Catalog>> {
        self.catalog.load_full()
    }

    pub fn effects(&self) -> Option<Arc<Effects>> {
        self.effects.load_full()
    }

    /// To be kept with a question, whose answer counts only while it is the same.
    pub fn version(&self) -> u64 {
        *self.lock()
    }

    /// Takes an answer; `false` if it is outdated already. Effects that could not be had are `None`.
    pub fn learn(
        &self,
        catalog: Arc<Catalog>,
        effects: Option<Arc<Effects>>,
        version: u64,
    ) -> bool {
        let now = self.lock();
        self.settled.store(true, Ordering::Release);
        if *now != version {
            return false;
        }
        self.effects.store(effects);
        let epoch = catalog.epoch();
        self.catalog.store(Some(catalog));
        self.epoch.store(epoch, Ordering::Release);
        true
    }

    /// There was no answer: what is known, if anything, stays.
    pub fn learn_nothing(&self) {
        self.settled.store(true, Ordering::Release);
    }

    /// Something has been created, altered or dropped; `redefined`, if names may have other effects
    /// on sessions by it.
    pub fn outdate(&self, redefined: bool) {
        let mut now = self.lock();
        *now += 1;
        self.epoch.store(0, Ordering::Release);
        if redefined {
            self.effects.store(None);
        }
    }

    /// Whether it has been asked for, with or without success.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u64> {
        // Whatever panicked elsewhere did not do so between two of its changes.
        self.version.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::cache::Classifier;

    fn catalog(name: &str, remark: &str) -> Arc<Catalog> {
        let row = ["function", "public", name, remark].map(|text| Some(text.to_owned()));
        Arc::new(Catalog::read([row], None))
    }

    #[test]
    fn a_class_is_judged_by_what_is_known_now() {
        let (known, rules) = (Known::default(), Rules::default());
        let classifier = Classifier::new(rules.clone(), 100);
        let class = classifier.classify(b"select f(a) from t", true);
        assert!(class.asks_catalog);
        let needs = || known.needs(&class, b"select f(a) from t", &rules);
        assert_eq!(needs(), (Need::Write, Why::CatalogUnknown));

        assert!(known.learn(catalog("f", "safe"), None, known.version()));
        assert_eq!(needs(), (Need::Read, Why::ProvenRead));
        assert_eq!(needs(), (Need::Read, Why::ProvenRead), "from memory");
        known.outdate(false);
        assert_eq!(needs(), (Need::Write, Why::CatalogUnknown));
        assert!(known.learn(catalog("f", "unsafe"), None, known.version()));
        assert_eq!(needs(), (Need::Write, Why::UnsafeFunction));
        assert!(known.learn(catalog("g", "safe"), None, known.version()));
        assert_eq!(needs(), (Need::Write, Why::UnknownFunction));
    }

    #[test]
    fn an_answer_from_before_a_change_is_not_kept() {
        let known = Known::default();
        let version = known.version();
        known.outdate(true);
        assert!(!known.learn(catalog("f", "safe"), None, version));
        assert!(known.catalog().is_none() && known.is_settled());
    }

    #[test]
    fn what_is_known_stays_while_there_is_no_answer() {
        let known = Known::default();
        assert!(!known.is_settled());
        known.learn_nothing();
        assert!(known.catalog().is_none() && known.is_settled());
        known.learn(catalog("f", "safe"), Some(Arc::default()), 0);
        known.learn_nothing();
        assert!(known.catalog().is_some() && known.effects().is_some());
    }
}
