//! Owns: what the success of one statement does to the session. Never: reads an answer; the tag of a completion is all
//! that it is told.

use std::ops::Range;

use super::own::{self, Own};
use super::server::ServerState;
use super::settings::{self, Settings};
use super::tracked::{Tracked, by_call, by_set_local};
use super::{Session, statements};
use crate::sql::altered::{self, Altered};
use crate::sql::set_config::{Changes, Name, Scope, Told, Value};
use crate::sql::setting::{self, Setting};
use crate::sql::{Pin, Reach, Statement, Verb, prepared};

/// The most roles and databases that are told apart of which one transaction has changed new sessions.
const ALTERED_MAX: usize = 64;

impl Session {
    /// Statement number `index` of `tracked` has succeeded with `tag`; it is `at` this place of the
    /// text, if that is kept.
    pub(super) fn completed(
        &mut self,
        tracked: &Tracked,
        index: usize,
        at: Range<usize>,
        tag: &[u8],
        server: &mut ServerState,
    ) {
        let Some(statement) = tracked.class.statements.get(index) else {
            return;
        };
        for pin in statement.pins.iter() {
            self.pins.touched(pin);
        }
        self.called(statement, tracked.changes.as_deref(), tag, server);
        let text = || {
            tracked
                .text
                .as_deref()?
                .get(at.clone())
                .filter(|text| !text.is_empty())
        };
        match statement.verb {
            Verb::Commit | Verb::Rollback | Verb::PrepareTransaction => {
                self.ended_transaction(tag, server);
            }
            // What was set since the savepoint is undone, what was set before it is not.
            Verb::RollbackTo => self.uncertain |= self.before.is_some(),
            Verb::Setting => self.set(text(), server),
            Verb::SettingLocal => self.set_local(text()),
            Verb::DiscardAll => self.discarded_all(server),
            Verb::DiscardSequences => self.pins.lift(Pin::Sequence),
            // It drops no prepared statement.
            Verb::DiscardOther => self.pins.look_again(Pin::TemporaryTable),
            Verb::Prepare => self.prepared(text()),
            Verb::Deallocate => self.deallocated(text(), server),
            Verb::Ddl(reach) => self.defined(statement, reach, text()),
            Verb::Role | Verb::Database => self.note_altered(text()),
            Verb::Close => self.pins.look_again(Pin::HeldCursor),
            Verb::Unlisten => self.pins.look_again(Pin::Listen),
            Verb::Routine => self.defined_routine(text()),
            Verb::DeallocateAll => self.deallocated_all(server),
            _ => {}
        }
        if self.roaming.is_some() {
            self.log(statement, text());
        }
    }

    /// SET LOCAL has run, or SET of something else that ends with its transaction.
    fn set_local(&mut self, text: Option<&[u8]>) {
        let own = text.and_then(|text| setting::assignment(text, true));
        match own.filter(|own| own.name.starts_with(own::PREFIX)) {
            Some(assignment) => self.set_own_local(&assignment),
            None => self.localised = self.localised.max(by_set_local(text)),
        }
    }

    /// Calls in a statement that has succeeded may have changed settings: these, as far as that can be told.
    fn called(
        &mut self,
        statement: &Statement,
        changes: Option<&Changes>,
        tag: &[u8],
        server: &mut ServerState,
    ) {
        if let Some(changes) = changes {
            self.note_own(changes);
        }
        let only = changes.and_then(|changes| changes.only.as_deref());
        let is_told = |call: &Told| is_told(call) && (call.is_local() || self.has_set_config());
        match only.filter(|calls| calls.iter().all(is_told)) {
            // A portal that has run to its end is asked for more.
            Some(_) if tag == b"SELECT 0" => {}
            Some(calls) => calls.iter().for_each(|call| self.set_by_call(call, server)),
            None if statement.sets_config || statement.verb == Verb::Run => {
                self.configured(changes, server);
            }
            None => {}
        }
        if statement.sets_config && statement.verb == Verb::Prepare {
            // What it will set, and when, is told by no text.
            self.pins.touched(Pin::Settings);
        }
    }

    /// A call has set something, and that [is told](is_told).
    fn set_by_call(&mut self, call: &Told, server: &mut ServerState) {
        match (&call.name, &call.value, call.scope) {
            (Name::Literal(name), Some(Value::Literal(value)), Scope::Session) => {
                self.remember_settings(server);
                let name = setting::present_name(name);
                let statement = settings::set_config(name, value.as_bytes());
                self.set_one(name, &statement, server);
            }
            // It is gone with the transaction, as by SET LOCAL.
            _ => self.localised = self.localised.max(by_call(call)),
        }
    }

    /// COMMIT, ROLLBACK or PREPARE TRANSACTION has answered with `tag`, which says what really happened.
    fn ended_transaction(&mut self, tag: &[u8], server: &mut ServerState) {
        server.has_ended = true;
        match tag == b"COMMIT" {
            true => self.committed(),
            // What is prepared is changed by COMMIT PREPARED.
            false => self.forget_definitions(),
        }
        if let Some(own) = &mut self.own {
            own.local.clear();
        }
        match tag.starts_with(b"ROLLBACK") {
            true => self.roll_back_settings(server),
            false => self.before = None,
        }
    }

    /// SET, RESET or SET SESSION CHARACTERISTICS has run.
    fn set(&mut self, statement: Option<&[u8]>, server: &mut ServerState) {
        self.keep_key_in_force();
        let read = |statement| Some((statement, setting::setting(statement)?));
        let Some((statement, setting)) = statement.and_then(read) else {
            self.uncertain = true;
            self.keep_any_key();
            return;
        };
        if matches!(setting, Setting::Local) {
            return;
        }
        self.remember_settings(server);
        if let Setting::Set { name } | Setting::Reset { name } = &setting
            && *name == settings::ENCODING
        {
            // The bytes of the others mean something else from now on: their values are asked for.
            self.uncertain |= !self.settings.are_ascii();
        }
        match setting {
            Setting::Set { name } => self.set_one(&name, statement, server),
            Setting::Transactions(modes) => {
                self.settings.set_transactions(modes);
                server.settings.set_transactions(modes);
            }
            Setting::Reset { name } => {
                self.went_back = true;
                self.settings.reset(&name, &self.defaults);
                server.settings.reset(&name, &Settings::default());
            }
            Setting::ResetAll => {
                self.went_back = true;
                self.settings.reset_all(&self.defaults);
                server.settings.reset_all(&Settings::default());
            }
            Setting::Local => {}
        }
    }

    /// SET of the setting `name` has run.
    fn set_one(&mut self, name: &str, statement: &[u8], server: &mut ServerState) {
        if name == "seed" {
            // Of random numbers: what comes next depends on all that came since.
            self.pins.touched(Pin::Settings);
        } else if name == Own::Token.name() {
            // What is shown of it is another one each time.
            if let Some(value) = own::value(statement) {
                self.receive_token(&value);
            }
            server.settings.set(name, statement);
        } else if !self.settings.have_room(name, statement) {
            // They are more than is worth carrying from server to server.
            self.pins.touched(Pin::Settings);
        } else {
            self.settings.set(name, statement);
            server.settings.set(name, statement);
            self.restyled |= name == settings::DATE_STYLE;
            // Servers read that by standard_conforming_strings, or by the search path: the value is asked for.
            self.uncertain |= statement.contains(&b'\\') || name == settings::TEXT_SEARCH;
            // The next server may refuse it: what is set is set there before the role.
            self.uncertain |= self.has_risen(server);
        }
    }

    /// Whether it has a superuser's rights on this server by its role, which its login has not.
    fn has_risen(&self, server: &ServerState) -> bool {
        server.params.get("is_superuser") == Some(b"on") && !self.is_superusers()
    }

    /// PREPARE has run.
    fn prepared(&mut self, text: Option<&[u8]>) {
        let conforming = self.has_conforming_strings();
        let names = text.map(|text| prepared::names(text, conforming));
        for (name, _) in names.unwrap_or_default() {
            self.pins.found(Pin::PreparedStatement, &name);
        }
    }

    /// DEALLOCATE has run.
    fn deallocated(&mut self, text: Option<&[u8]>, server: &mut ServerState) {
        if let Some((name, _)) = text.and_then(prepared::deallocate) {
            let known = self.statements.remove(&name).map(|prepared| prepared.id);
            // Else it is one that PREPARE has made, or a server's own by the server's name.
            self.pins.drop_prepared(&name);
            if let Some(id) = known.or_else(|| statements::server_id(&name)) {
                server.statements.pop(&id);
            }
            self.pins.look_again(Pin::PreparedStatement);
        }
    }

    /// DEALLOCATE ALL has run.
    fn deallocated_all(&mut self, server: &mut ServerState) {
        self.statements.clear_named();
        server.statements.clear();
        self.pins.drop_all_prepared();
        self.pins.look_again(Pin::PreparedStatement);
    }

    /// DISCARD ALL has run.
    fn discarded_all(&mut self, server: &mut ServerState) {
        self.keep_key_in_force();
        self.statements.clear_named();
        self.pins.discard();
        self.settings = self.defaults.clone();
        self.went_back = true;
        server.reset();
    }

    /// Something has been created, altered or dropped that is no function.
    fn defined(&mut self, statement: &Statement, reach: Reach, text: Option<&[u8]>) {
        // A temporary table is the session's own, and most often new.
        if !statement.pins.contains(Pin::TemporaryTable) {
            self.reshape(reach, text);
            if statement.defines() {
                self.redefine(text);
            }
        }
        self.look_for_temporary();
    }

    /// A function has.
    fn defined_routine(&mut self, text: Option<&[u8]>) {
        self.reshape(Reach::Anything, None);
        self.redefine(text);
        self.look_for_temporary();
    }

    /// A role or a database has been created, altered or dropped, by this statement if it is known.
    #[cold]
    fn note_altered(&mut self, statement: Option<&[u8]>) {
        let conforming = self.has_conforming_strings();
        let read = |statement| altered::altered(statement, conforming);
        let altered = statement.map_or_else(|| vec![Altered::All], read);
        let altered = altered.into_iter().map(|altered| match altered {
            Altered::CurrentRole => match self.settings.role() {
                None => Altered::SessionRole,
                Some(Some(role)) => Altered::Role(role.into_bytes().into()),
                Some(None) => Altered::All,
            },
            Altered::SessionRole if self.settings.set_session_authorization() => Altered::All,
            altered => altered,
        });
        let altered: Vec<_> = altered.collect();
        self.did.altered = true;
        let known = &mut self.own.get_or_insert_default().altered;
        for altered in altered {
            if known.len() >= ALTERED_MAX {
                *known = vec![Altered::All];
            }
            if !known.contains(&altered) {
                known.push(altered);
            }
        }
    }

    /// Whose new sessions have been changed by what has been [done](super::Did::altered): by roles and databases, where
    /// `SessionRole` is who has logged in.
    pub fn take_altered(&mut self) -> Vec<Altered> {
        let own = self.own.as_mut();
        own.map_or_else(Vec::new, |own| std::mem::take(&mut own.altered))
    }
}

/// Whether it is known what a call has set, and that is the session's to remember. Of the proxy's own settings, of whose
/// rights count, and of how its words are read, the server is asked.
fn is_told(call: &Told) -> bool {
    match (&call.name, &call.value, call.scope) {
        (_, _, Scope::Transaction) => true,
        (Name::Literal(name), Some(Value::Literal(_)), Scope::Session) => {
            !name.starts_with(own::PREFIX) && settings::is_carried_by_value(name)
        }
        _ => false,
    }
}
