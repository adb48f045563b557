//! Owns: when the schema of each database of a cluster was last changed, as replicas have to have that. Never: forgets a
//! change with the database that it was made in.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;

use super::Cluster;
use crate::session::consistency::Mark;
use crate::session::schema::Schema;

/// The schemas of a cluster's databases.
#[derive(Default)]
pub struct Schemas {
    /// By the database's name.
    kept: DashMap<Box<str>, Arc<Schema>>,
    /// Whether one of them waits for a sample since it was changed.
    one_waits: AtomicBool,
    /// The last change of all that are not kept any more.
    forgotten: Mutex<Option<Mark>>,
}

impl Schemas {
    /// How many are kept.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    fn lock_forgotten(&self) -> MutexGuard<'_, Option<Mark>> {
        let last = self.forgotten.lock();
        last.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    /// The schema of a database that somebody has logged in to.
    pub fn schema(&self, database: &str) -> Arc<Schema> {
        if let Some(known) = self.schemas.kept.get(database) {
            return known.clone();
        }
        let new = || {
            let name = format!("{}\0{database}", self.name);
            Arc::new(match *self.schemas.lock_forgotten() {
                Some(mark) => Schema::since(&name, mark),
                None => Schema::new(&name),
            })
        };
        self.schemas
            .kept
            .entry(database.into())
            .or_insert_with(new)
            .clone()
    }

    /// Lets go of the schema of a database that nobody uses. When it was changed still counts: for all databases
    /// that are not known.
    pub(super) fn forget_schema(&self, database: &str) {
        self.schemas.kept.remove_if(database, |_, schema| {
            let is_unused = Arc::strong_count(schema) == 1;
            if is_unused && schema.version() > 0 {
                let (_, mark) = schema.mark(&self.clock);
                let mut last = self.schemas.lock_forgotten();
                if last.is_none_or(|last| last.moment < mark.moment) {
                    *last = Some(mark);
                }
            }
            is_unused
        });
    }

    /// The schema has been changed: a sample is to say what a replica must have for it.
    pub fn mark_schema(&self, schema: &Schema) {
        schema.mark(&self.clock);
        self.schemas.one_waits.store(true, SeqCst);
        self.want_sample(self.clock.now());
    }

    /// Notes the first sample after each change of a schema while the clock still has it.
    pub(super) fn mark_schemas(&self) {
        if self.schemas.one_waits.load(SeqCst) && self.schemas.one_waits.swap(false, SeqCst) {
            for schema in &self.schemas.kept {
                if schema.mark(&self.clock).1.sample.is_none() {
                    self.schemas.one_waits.store(true, SeqCst);
                }
            }
        }
    }
}
