//! Owns: what a server is asked about the session's state on it, where that can't be told from the
//! client's words; and what the session makes of the answer. Never: decides when to ask.

use std::sync::Arc;

use bytes::BytesMut;

use super::Session;
use super::effects::{self, Effects};
use super::server::{Expect, ServerState};
use super::settings::{Settings, literal};
use crate::sql::{Pin, PinSet};
use crate::wire::encode;

/// A row of the answer: what kind it is, a name, and a value.
pub(super) type Fact = [Option<Box<[u8]>>; 3];

const SETTING: &str = "setting";

/// One that only a superuser may set.
const PRIVILEGED: &str = "privileged";

/// The settings that the server lists as the session's own.
const LISTED: &str = "SELECT CASE context WHEN 'superuser' THEN 'privileged' ELSE 'setting' END, name, setting \
     FROM pg_catalog.pg_settings WHERE source = 'session'";

/// The role, which it does not list. That there is none goes without saying where nobody begins with one.
const SHOWN_ROLE: &str = "SELECT 'setting', 'role', shown FROM pg_catalog.current_setting('role') AS shown \
     WHERE shown <> 'none' OR EXISTS (SELECT FROM pg_catalog.pg_db_role_setting, \
         pg_catalog.unnest(setconfig) AS given WHERE given LIKE 'role=%')";

/// Each pin as the answer names it, and where the server shows what there is. Whatever else is in the temporary schema
/// (a collation, say) needs no name: where it is used, that of its schema is told.
const SHOWN: [(Pin, &str, &str); 5] = [
    (
        Pin::TemporaryTable,
        "temporary",
        "SELECT relname FROM pg_catalog.pg_class \
            WHERE relnamespace = pg_catalog.pg_my_temp_schema() \
         UNION SELECT typname FROM pg_catalog.pg_type \
            WHERE typnamespace = pg_catalog.pg_my_temp_schema() \
         UNION SELECT proname FROM pg_catalog.pg_proc \
            WHERE pronamespace = pg_catalog.pg_my_temp_schema() \
         UNION SELECT '' FROM pg_catalog.pg_depend \
            WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass \
            AND refobjid = pg_catalog.pg_my_temp_schema()",
    ),
    (
        Pin::AdvisoryLock,
        "advisory",
        "SELECT '' FROM pg_catalog.pg_locks \
            WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()",
    ),
    (
        Pin::HeldCursor,
        "cursor",
        "SELECT name FROM pg_catalog.pg_cursors WHERE is_holdable",
    ),
    (
        Pin::Listen,
        "listen",
        "SELECT * FROM pg_catalog.pg_listening_channels()",
    ),
    (
        Pin::PreparedStatement,
        "prepared",
        "SELECT name FROM pg_catalog.pg_prepared_statements WHERE from_sql",
    ),
];

impl Session {
    /// Whether the server must be asked before it is left: the client's words do not tell what the
    /// session is now.
    pub fn must_inspect(&self) -> bool {
        self.uncertain || !self.pins.suspects().is_empty() || !self.unjudged.is_empty()
    }

    /// Asks `server`, on which the session has just been, for what is not known.
    pub fn say_inspection(&mut self, server: &mut ServerState, out: &mut BytesMut) {
        server.unnamed = None;
        server.facts.clear();
        server.expect_hidden(Expect::Inspection);
        if !self.unjudged.is_empty() {
            // What is to be asked depends on the answer.
            self.asked = self.shared.effects.version();
            let question = unlimited(&effects::question());
            return encode::query(out, question.as_bytes());
        }
        let names = self
            .settings
            .names()
            .chain(self.config_names.iter().map(|name| &**name));
        let names = self.uncertain.then_some(names).into_iter().flatten();
        let question = question(self.uncertain, names, self.pins.suspects());
        encode::query(out, question.as_bytes());
    }

    /// Takes what the server has answered.
    pub fn inspected(&mut self, server: &mut ServerState) {
        let facts = std::mem::take(&mut server.facts);
        if std::mem::take(&mut server.unanswered) {
            return self.not_inspected();
        }
        if !self.unjudged.is_empty() {
            let effects = Arc::new(Effects::read(&facts));
            let shared = self.shared.clone();
            shared
                .effects
                .learn(self.schema.database(), &effects, self.asked);
            for (class, sql) in std::mem::take(&mut self.unjudged) {
                let judgement = effects.judge(&class, &sql, self.has_conforming_strings());
                self.suspect(judgement.suspicion, &effects);
            }
            // What it may have been written for has been told of.
            self.end_local();
            return;
        }
        if std::mem::take(&mut self.uncertain) {
            self.config_names.clear();
            let login = self.greeted.get("session_authorization").unwrap_or(b"");
            let is = |kind: &[u8], name: &str| *kind == *name.as_bytes();
            let settings = facts.iter().filter_map(|fact| match fact {
                [Some(kind), Some(name), Some(value)]
                    if is(kind, SETTING) || is(kind, PRIVILEGED) =>
                {
                    Some((str::from_utf8(name).ok()?, &**value))
                }
                _ => None,
            });
            let listed = Settings::listed(settings, login);
            match listed.are_portable() {
                true => self.settings = listed,
                false => self.pins.touched(Pin::Settings),
            }
            let mut kinds = facts.iter().filter_map(|[kind, ..]| kind.as_deref());
            if kinds.any(|kind| is(kind, PRIVILEGED)) && !self.is_superusers() {
                // By the right of a role or a function, which whoever sets it on another server lacks.
                self.pins.touched(Pin::Settings);
            }
            // What the server was told to show, and the session has not set.
            let shown = std::mem::replace(&mut server.settings, self.settings.clone());
            server.settings.keep_own(&shown);
            // A server goes back to its own default, where the session goes back to what it began with.
            self.settings.fill_up(&self.defaults);
            if let Some(token) = self.settings.take_token() {
                self.receive_token(&token);
            }
        }
        self.pins.begin_report();
        for fact in &facts {
            let [Some(kind), name, _] = fact else {
                continue;
            };
            if let Some((pin, ..)) = SHOWN
                .iter()
                .find(|(_, shown, _)| shown.as_bytes() == &**kind)
            {
                self.pins.found(*pin, name.as_deref().unwrap_or(b""));
            }
        }
    }

    /// The server could not answer: something was dropped while it looked, say. What it was asked for
    /// is taken to be so.
    fn not_inspected(&mut self) {
        if self.unjudged.is_empty() {
            self.uncertain = false;
            self.config_names.clear();
            self.pins.assume_all();
        } else {
            self.unjudged.clear();
            self.uncertain = true;
            self.pins.look_at_all();
        }
    }
}

/// The question, as one Query: rows of three texts. A setting that the server does not list (its
/// name has a dot and no library has claimed it) has to be asked for by name.
fn question<'a>(settings: bool, names: impl Iterator<Item = &'a str>, pins: PinSet) -> String {
    let mut rows = Vec::new();
    if settings {
        rows.push(format!("{LISTED} AND name <> 'statement_timeout'"));
        let mut unlisted: Vec<&str> = names.filter(|name| name.contains('.')).collect();
        unlisted.push("session_authorization");
        unlisted.sort_unstable();
        unlisted.dedup();
        rows.extend(unlisted.into_iter().map(|name| {
            let name = literal(name);
            format!("SELECT '{SETTING}', {name}, pg_catalog.current_setting({name}, true)")
        }));
        rows.push(SHOWN_ROLE.to_owned());
    }
    for (pin, kind, shown) in SHOWN {
        if pins.contains(pin) {
            rows.push(format!(
                "SELECT '{kind}', shown.name::pg_catalog.text, NULL FROM ({shown}) AS shown (name)"
            ));
        }
    }
    let question = unlimited(&rows.join(" UNION ALL "));
    match settings {
        // Read before it is changed for the rest: it would be taken for what the session has set.
        true => format!("{LISTED} AND name = 'statement_timeout'; {question}"),
        false => question,
    }
}

/// The session's own time limits must not keep the proxy from knowing.
fn unlimited(question: &str) -> String {
    format!("SET LOCAL statement_timeout = 0; {question}")
}

#[cfg(test)]
mod tests {
    use super::super::pins::VISIBLE;
    use super::*;

    #[test]
    fn only_what_is_not_known_is_asked_for() {
        let all = question(true, ["a.b", "work_mem", "a.b"].into_iter(), VISIBLE);
        let timeout = all.find("name = 'statement_timeout'");
        let set = all.find("SET LOCAL").expect("no limit");
        assert!(timeout.is_some_and(|read| read < set), "before it is set");
        for part in ["'a.b'", "name <>", "'role'", "pg_locks", "pg_cursors"] {
            assert_eq!(
                all.matches(part).count().min(2),
                if part.starts_with('\'') { 2 } else { 1 },
                "{part}"
            );
        }
        assert!(!all.contains("work_mem"));
        let pins = question(false, ["a.b"].into_iter(), VISIBLE);
        assert!(!pins.contains("a.b") && !pins.contains("pg_settings"));
        assert!(!question(true, [].into_iter(), PinSet::default()).contains("pg_locks"));
    }
}
