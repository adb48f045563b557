//! Owns: what may have become of a session that its client's words do not tell: what is suspected, until its server
//! has been [asked](super::inspection). Never: asks.

use std::sync::Arc;

use super::Session;
use super::batch::Batch;
use super::effects::{Effects, Suspicion};
use super::server::ServerState;
use crate::sql::set_config::{Changes, Name};
use crate::sql::{Class, Need, Pin, Statement};

/// The most settings that functions have changed whose names are kept until the server is asked for
/// them.
const CONFIG_NAMES_MAX: usize = 128;

/// How many texts, and how long in bytes, are kept to be judged when it is known what they do to the
/// session. Of the others the most is assumed that the server can be asked about.
const UNJUDGED_MAX: usize = 64;
const UNJUDGED_BYTES_MAX: usize = 64 << 10;

/// The numbers of `set_config`, and of whatever is not built in from here on:
/// <https://www.postgresql.org/docs/current/system-catalog-initial-data.html>
const SET_CONFIG: u32 = 2078;
const BUILT_IN_END: u32 = 16384;

impl Session {
    /// Notes what running this text may do to the session.
    pub(super) fn judge(&self, class: &Arc<Class>, need: Need, sql: &[u8], batch: &mut Batch) {
        let is_new = || self.redefined || batch.redefines;
        if need == Need::Write || need == Need::Read && is_new() {
            self.judge_text(class, sql, batch);
        }
    }

    pub(super) fn judge_text(&self, class: &Arc<Class>, sql: &[u8], batch: &mut Batch) {
        batch.reads_sequences |= class.reads_sequences();
        let redefines = class.statements.iter().any(Statement::defines) && self.may_redefine(sql);
        // What is known of effects does not know what the open transaction has defined, or the batch will.
        let is_new = self.redefined || batch.redefines || redefines && class.statements.len() > 1;
        batch.redefines |= redefines;
        // By a rollback it is gone again, but not all that it has done.
        batch.unjudged_more |= is_new;
        match self.effects().filter(|_| !is_new) {
            Some(effects) => {
                let judgement = effects.judge(class, sql, self.has_conforming_strings());
                batch.suspicion = batch.suspicion.max(judgement.suspicion);
                batch.reads_unseen |= judgement.reads_sequences;
            }
            // One statement is often bound many times.
            None if batch.unjudged.iter().any(|(_, known)| **known == *sql) => {}
            None if batch.unjudged.len() < UNJUDGED_MAX && sql.len() <= UNJUDGED_BYTES_MAX => {
                batch.unjudged.push((class.clone(), sql.into()));
            }
            None => batch.unjudged_more = true,
        }
    }

    /// What the batch may do to the session is looked at when it has run.
    pub(super) fn note_suspicion(&mut self, batch: &Batch, server: &ServerState) {
        // What is said before the answer is heard counts on it, too.
        self.redefined |= batch.redefines;
        if batch.suspicion.is_none() && batch.unjudged.is_empty() && !batch.unjudged_more {
            return;
        }
        self.suspected = true;
        self.remember_settings(server);
        let mut more = batch.unjudged_more;
        for (class, sql) in &batch.unjudged {
            if self.unjudged.len() >= UNJUDGED_MAX {
                more = true;
            } else {
                self.unjudged.push((class.clone(), sql.clone()));
            }
        }
        if more {
            self.uncertain = true;
            self.pins.look_at_all();
        }
        if more || !batch.unjudged.is_empty() {
            self.keep_any_key();
        }
        self.suspect_by_known(batch.suspicion);
    }

    /// A function is called by its number, as this message has it.
    pub(super) fn note_call(&mut self, message: Option<&[u8]>) {
        let number = message.and_then(|body| body.first_chunk());
        match number.map(|number| u32::from_be_bytes(*number)) {
            Some(SET_CONFIG) => {
                self.suspect(Some(Suspicion::UnknownSettings), &Effects::default());
            }
            // What it does, the server can be asked about.
            Some(0..BUILT_IN_END) => self.suspect(Some(Suspicion::Some), &Effects::default()),
            _ => self.suspect_by_known(Some(Suspicion::Some)),
        }
    }

    /// What has this suspicion against it may change the settings that effects are known to change.
    fn suspect_by_known(&mut self, suspicion: Option<Suspicion>) {
        if let Some(effects) = self.effects() {
            self.suspect(suspicion, &effects);
        } else if suspicion.is_some() {
            self.suspect(Some(Suspicion::UnknownSettings), &Effects::default());
        }
    }

    /// Something has run that may have changed the session.
    pub(super) fn suspect(&mut self, suspicion: Option<Suspicion>, effects: &Effects) {
        let Some(suspicion) = suspicion else {
            return;
        };
        self.uncertain = true;
        self.note_names(effects.settings().iter());
        self.pins.look_at_all();
        // What was prepared by a text that nobody has any more.
        let is_untold = self.pins.contains(Pin::Settings);
        if suspicion >= Suspicion::CausalKey || is_untold {
            self.keep_any_key();
        }
        if suspicion == Suspicion::UnknownSettings {
            self.pins.touched(Pin::Settings);
        }
    }

    /// Settings may have been changed by a function: these, as far as that can be told.
    pub(super) fn configured(&mut self, changes: Option<&Changes>, server: &ServerState) {
        self.remember_settings(server);
        self.uncertain = true;
        let Some(Changes { names, unknown, .. }) = changes else {
            return;
        };
        self.note_names(names.iter().filter_map(|name| match name {
            Name::Literal(name) => Some(name),
            Name::Parameter(_) => None,
        }));
        if *unknown || names.iter().any(|name| matches!(name, Name::Parameter(_))) {
            self.pins.touched(Pin::Settings);
        }
    }

    /// Functions may have changed the settings of these names.
    pub(super) fn note_names<'a>(&mut self, names: impl Iterator<Item = &'a Box<str>>) {
        for name in names {
            if self.config_names.contains(name) {
                continue;
            }
            if self.config_names.len() >= CONFIG_NAMES_MAX {
                return self.pins.touched(Pin::Settings);
            }
            self.config_names.push(name.clone());
        }
    }
}
