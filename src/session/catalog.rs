//! Owns: what is known of one database now: its catalog, and which of its names have effects on
//! sessions. Never: asks for it; `cluster::catalog` does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;

use super::effects::Effects;
use crate::sql::catalog::Catalog;
use crate::sql::functions::Rules;
use crate::sql::lexer::{Kind, Lexer, clipped};
use crate::sql::{Class, Need, Why};

/// What is known of one database; all of its sessions share it.
#[derive(Debug, Default)]
pub struct Known {
    /// That of the catalog; 0 while it is not known, or outdated.
    epoch: AtomicU64,
    /// The latest, outdated or not.
    catalog: ArcSwapOption<Catalog>,
    effects: ArcSwapOption<Effects>,
    /// Held while what is known changes.
    changes: Mutex<Changes>,
    /// It has been asked for, with or without success.
    settled: AtomicBool,
}

/// What has been changed in a database, as far as it is not known yet.
#[derive(Debug, Default)]
struct Changes {
    /// Counts them.
    version: u64,
    /// The last one after which anything may be otherwise: an answer that was asked for before it is of no
    /// use.
    last_of_all: u64,
    /// Names that were given to something new, each with the version: all that has other names is as it was.
    names: Vec<(u64, Box<[u8]>)>,
}

/// The most new names that are kept until the catalog has been asked. With more, anything may be otherwise.
const NEW_NAMES_MAX: usize = 64;

/// What a change of the database makes doubtful of what is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Doubt {
    #[default]
    Nothing,
    /// What these names stand for, which are new.
    Names(Vec<Box<[u8]>>),
    Anything,
}

impl Doubt {
    /// There is another one: something of this name is new, or anything may be otherwise.
    pub fn extend(&mut self, name: Option<&[u8]>) {
        match (&mut *self, name) {
            (Doubt::Nothing, Some(name)) => *self = Doubt::Names(vec![name.into()]),
            (Doubt::Names(names), Some(name)) if names.len() < NEW_NAMES_MAX => {
                names.push(name.into());
            }
            _ => *self = Doubt::Anything,
        }
    }
}

impl Changes {
    /// Whether the catalog, which was asked before them, still says what `sql` is.
    fn leave(&self, sql: &[u8]) -> bool {
        // A new table may have come with sequences for its columns.
        let is_new = |name: &[u8]| {
            self.names.iter().any(|(_, new)| **new == *name)
                || memchr::memmem::find(name, b"_seq").is_some()
        };
        let mut lexer = Lexer::new(sql, true);
        while let Some(token) = lexer.solid() {
            let is_doubtful = match token.kind {
                Kind::UnicodeWord | Kind::Broken => true,
                _ => token.name(sql).is_some_and(|name| is_new(clipped(&name))),
            };
            if is_doubtful {
                return false;
            }
        }
        true
    }
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
            return self.judge_by_latest(class, sql, rules);
        };
        let verdict = catalog.judge(class, sql, rules);
        class.memo.put(catalog.epoch(), verdict);
        verdict.needs()
    }

    /// Whatever has a new name is not known, all else is as it was. Nothing is guessed to be safe.
    fn judge_by_latest(&self, class: &Class, sql: &[u8], rules: &Rules) -> (Need, Why) {
        let changes = self.lock();
        let is_known = changes.last_of_all == 0 && changes.leave(sql);
        // Taken while nothing can change: it is what the names are new to.
        let latest = self.latest().filter(|_| is_known);
        drop(changes);
        latest.map_or((Need::Write, Why::CatalogUnknown), |catalog| {
            catalog.judge(class, sql, rules).needs()
        })
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
        self.lock().version
    }

    /// Takes an answer; `false` if there is more to be known already. Effects that could not be had are
    /// `None`.
    pub fn learn(
        &self,
        catalog: Arc<Catalog>,
        effects: Option<Arc<Effects>>,
        version: u64,
    ) -> bool {
        let mut changes = self.lock();
        self.settled.store(true, Ordering::Release);
        if changes.last_of_all > version {
            return false;
        }
        changes.last_of_all = 0;
        changes.names.retain(|(since, _)| *since > version);
        self.effects.store(effects);
        let epoch = catalog.epoch();
        self.catalog.store(Some(catalog));
        let is_all = changes.names.is_empty();
        if is_all {
            self.epoch.store(epoch, Ordering::Release);
        }
        is_all
    }

    /// There was no answer: what is known, if anything, stays.
    pub fn learn_nothing(&self) {
        self.settled.store(true, Ordering::Release);
    }

    /// Something has been created, altered or dropped; `redefined`, if names may have other effects
    /// on sessions by it.
    pub fn outdate(&self, doubt: Doubt, redefined: bool) {
        let mut changes = self.lock();
        changes.version += 1;
        let version = changes.version;
        match doubt {
            Doubt::Nothing => return,
            Doubt::Names(names) if changes.names.len() + names.len() <= NEW_NAMES_MAX => {
                changes
                    .names
                    .extend(names.into_iter().map(|name| (version, name)));
            }
            Doubt::Names(_) | Doubt::Anything => {
                changes.last_of_all = version;
                changes.names.clear();
            }
        }
        self.epoch.store(0, Ordering::Release);
        if redefined {
            self.effects.store(None);
        }
    }

    /// Whether it has been asked for, with or without success.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Changes> {
        // Whatever panicked elsewhere did not do so between two of its changes.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
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
        known.outdate(Doubt::Anything, false);
        assert_eq!(needs(), (Need::Write, Why::CatalogUnknown));
        assert!(known.learn(catalog("f", "unsafe"), None, known.version()));
        assert_eq!(needs(), (Need::Write, Why::UnsafeFunction));
        assert!(known.learn(catalog("g", "safe"), None, known.version()));
        assert_eq!(needs(), (Need::Write, Why::UnknownFunction));
    }

    #[test]
    fn what_is_new_puts_nothing_else_in_doubt() {
        let (known, rules) = (Known::default(), Rules::default());
        let classifier = Classifier::new(rules.clone(), 100);
        let needs = |sql: &str| {
            let class = classifier.classify(sql.as_bytes(), true);
            known.needs(&class, sql.as_bytes(), &rules)
        };
        let (read, unknown) = (
            (Need::Read, Why::ProvenRead),
            (Need::Write, Why::CatalogUnknown),
        );
        let new = |name: &str| {
            let mut doubt = Doubt::default();
            doubt.extend(Some(name.as_bytes()));
            known.outdate(doubt, false);
        };
        new("t");
        assert_eq!(
            needs("select a from u"),
            unknown,
            "nothing was known before"
        );
        known.learn(catalog("f", "safe"), None, known.version());
        new("t");
        let asked = known.version();
        new("v");
        assert_eq!(needs("select f(a) from u"), read);
        assert_eq!(needs("select a from s.T, u"), unknown);
        assert_eq!(needs("select t.a from \"T\" u"), unknown);
        assert_eq!(needs("select a from \"T\""), read);
        assert_eq!(needs("select last_value from t_id_seq"), unknown);
        assert_eq!(
            needs("select g(a) from u"),
            (Need::Write, Why::UnknownFunction)
        );
        // An answer tells of what had been made when it was asked for.
        assert!(!known.learn(catalog("f", "safe"), None, asked));
        assert_eq!(needs("select a from t"), read);
        assert_eq!(needs("select a from v"), unknown);
        known.outdate(Doubt::Anything, false);
        assert!(!known.learn(catalog("f", "safe"), None, asked + 1));
        assert_eq!(needs("select a from u"), unknown);
        assert!(known.learn(catalog("f", "safe"), None, known.version()));
        assert_eq!(needs("select a from v"), read);
        known.outdate(Doubt::Nothing, false);
        assert!(known.catalog().is_some());
        for number in 0..=NEW_NAMES_MAX {
            assert_eq!(needs("select a from u"), read, "{number}");
            new(&format!("t{number}"));
        }
        assert_eq!(needs("select a from u"), unknown, "too many to be kept");
    }

    #[test]
    fn an_answer_from_before_a_change_is_not_kept() {
        let known = Known::default();
        let version = known.version();
        known.outdate(Doubt::Anything, true);
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
