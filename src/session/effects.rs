//! Owns: which names of a database change the session of whoever uses them, or ask for what it has drawn
//! from sequences: functions that set, lock, listen or make something temporary, and whatever calls such
//! functions, however many steps away: tables, views, types, operators. Never: runs a query; sessions ask
//! their servers, and share what they learn here.
//!
//! It is read from the functions' texts and from what the server has noted of everything else, and errs
//! towards an effect: that costs a question after the statement, where a missed one would leave the
//! session's state on a server for the next one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;

use super::inspection::Fact;
use super::own;
use crate::sql::functions::{Effect, effect};
use crate::sql::lexer::{Kind, Lexer, NESTING_MAX, is_unclosed, mentions, string_content};
use crate::sql::set_config::{self, Changes, Name};
use crate::sql::{Class, Verb};

/// What sessions have learnt, by database.
#[derive(Debug, Default)]
pub struct Known {
    databases: DashMap<Arc<str>, Arc<Effects>, foldhash::fast::RandomState>,
    /// Counts what was forgotten: an answer that was asked for before is of no use.
    version: AtomicU64,
}

impl Known {
    pub fn get(&self, database: &str) -> Option<Arc<Effects>> {
        self.databases.get(database).map(|known| known.clone())
    }

    /// To be kept with a question, whose answer counts only while it is the same.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    pub fn learn(&self, database: &Arc<str>, effects: &Arc<Effects>, version: u64) {
        self.databases.insert(database.clone(), effects.clone());
        if self.version() != version {
            self.databases.remove(database);
        }
    }

    /// Functions, triggers or views of this database have changed.
    pub fn forget(&self, database: &str) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.databases.remove(database);
    }

    /// What others have changed behind the proxy's back is noticed this way.
    pub fn forget_all(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.databases.clear();
    }
}

/// The names of one database whose use may change a session, or depends on it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    names: HashMap<Box<[u8]>, Judgement, foldhash::fast::RandomState>,
    operators: Vec<(Box<[u8]>, Judgement)>,
    /// What any write may do, as a cast or an operator with an effect is used without a word.
    everywhere: Judgement,
    /// What event triggers do when something is created, altered or dropped.
    definitions: Judgement,
    /// The settings that they change and that servers do not list.
    settings: Vec<Box<str>>,
}

/// What a statement may have to do with its session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What it may do to it.
    pub suspicion: Option<Suspicion>,
    /// It asks for what the session has last drawn from a sequence.
    pub reads_sequences: bool,
}

impl Judgement {
    fn add(&mut self, other: Judgement) {
        self.suspicion = self.suspicion.max(other.suspicion);
        self.reads_sequences |= other.reads_sequences;
    }
}

impl From<Suspicion> for Judgement {
    fn from(suspicion: Suspicion) -> Judgement {
        Judgement {
            suspicion: Some(suspicion),
            reads_sequences: false,
        }
    }
}

/// What a statement may do to its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suspicion {
    /// It has used a name with an effect.
    Some,
    /// The effect may be on the causal key.
    CausalKey,
    /// The effect may be on settings whose names are not known.
    UnknownSettings,
}

/// Asks for all of it.
const QUESTION: &str = include_str!("effects/question.sql");

/// Said before the [`question`], in its transaction: how it is planned is not left to the settings of whoever asks.
/// Without hash joins, say, all words of all functions would be compared with all names. To compile it would take longer
/// than to answer it.
pub const PLANNING: &str = "SELECT NULL, name, pg_catalog.set_config(name, boot_val, true) \
     FROM pg_catalog.pg_settings WHERE context = 'user' AND setting <> boot_val AND \
         name ~ '^enable_|_cost$|_collapse_limit$|^(geqo|work_mem|hash_mem_multiplier|effective_cache_size)$'; \
     SET LOCAL jit = off; ";

/// Asks for all of it, over a connection with any settings.
pub fn question() -> String {
    format!("{PLANNING}{QUESTION}")
}

/// How the kinds of facts begin that tell who asks for what was drawn.
const READING: &[u8] = b"reading ";

/// The functions that the [`QUESTION`] is about, by their numbers, as more of its answer.
const SUSPECTS: &str = "
UNION ALL SELECT DISTINCT 'suspect', oid::pg_catalog.text, NULL
    FROM found WHERE class = 'pg_catalog.pg_proc'::pg_catalog.regclass";

/// Asks for all of it, and for the functions by their numbers.
pub fn full_question() -> String {
    format!("{QUESTION}{SUSPECTS}")
}

/// What the answer to the [`full_question`] tells.
pub fn read_full(rows: impl IntoIterator<Item = [Option<String>; 3]>) -> (Effects, Vec<u32>) {
    let mut suspects = Vec::new();
    let mut facts: Vec<Fact> = Vec::new();
    for row in rows {
        match &row {
            [Some(kind), Some(oid), _] if kind == "suspect" => suspects.extend(oid.parse::<u32>()),
            _ => facts.push(row.map(|text| text.map(|text| text.into_bytes().into()))),
        }
    }
    (Effects::read(&facts), suspects)
}

/// Words that tell of an effect wherever they stand in a definition, sorted: those of the
/// [`QUESTION`], and what is not defined by its text.
const TELLING: [&str; 31] = [
    "_shared",
    "currval",
    "deallocate",
    "discard",
    "execute",
    "extension",
    "gd",
    "lastval",
    "listen",
    "load",
    "pg_advisory_lock",
    "pg_advisory_lock_shared",
    "pg_advisory_unlock",
    "pg_advisory_unlock_all",
    "pg_advisory_unlock_shared",
    "pg_advisory_xact_lock",
    "pg_advisory_xact_lock_shared",
    "pg_settings",
    "pg_temp",
    "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared",
    "prepare",
    "prepared",
    "rename",
    "schema",
    "sd",
    "set_config",
    "set_limit",
    "setseed",
    "temp",
    "temporary",
];

/// Whether a SET or RESET begins a statement somewhere in `sql`, in its strings too, or it is in
/// another language. What lies in strings deeper than `nesting` may be one.
fn sets(sql: &[u8], conforming: bool, nesting: usize) -> bool {
    let mut lexer = Lexer::new(sql, conforming);
    let mut begins = true;
    let mut names_language = false;
    while let Some(token) = lexer.solid() {
        let is = |word: &&str| token.is(sql, word);
        if begins && ["set", "reset"].iter().any(is) {
            return true;
        }
        if token.kind == Kind::String {
            let inner = string_content(token.text(sql));
            let deeper = nesting.checked_sub(1);
            let may_set = |nesting| sets(inner, conforming, nesting);
            if !inner.is_empty() && deeper.is_none_or(may_set) {
                return true;
            }
        }
        if names_language && !["sql", "plpgsql"].iter().any(is) {
            return true;
        }
        names_language = is(&"language");
        begins = token.kind == Kind::Semicolon || ["begin", "then", "else", "loop"].iter().any(is);
    }
    false
}

impl Effects {
    /// From the answer to the [`QUESTION`].
    pub(super) fn read(facts: &[Fact]) -> Effects {
        let mut effects = Effects::default();
        for fact in facts {
            let [Some(kind), Some(name), body] = fact else {
                continue;
            };
            match kind.strip_prefix(READING) {
                Some(kind) => {
                    let reads = Judgement {
                        suspicion: None,
                        reads_sequences: true,
                    };
                    effects.add(kind, name, reads);
                }
                None => {
                    let suspicion = effects.suspicion_of(body.as_deref());
                    effects.add(kind, name, suspicion.into());
                }
            }
        }
        effects.settings.sort_unstable();
        effects.settings.dedup();
        effects
    }

    /// What is to be suspected of a function with this body, if it has one; notes the settings that it
    /// changes.
    fn suspicion_of(&mut self, body: Option<&[u8]>) -> Suspicion {
        let changes = body.map(set_config::changes_of_body).unwrap_or_default();
        let sets_key = own::sets_key(&changes);
        let Changes { names, unknown, .. } = changes;
        let parameter = |name: &Name| matches!(name, Name::Parameter(_));
        let unknown = unknown || names.iter().any(parameter);
        self.settings
            .extend(names.into_iter().filter_map(|name| match name {
                Name::Literal(name) => Some(name),
                Name::Parameter(_) => None,
            }));
        match unknown {
            true => Suspicion::UnknownSettings,
            false if sets_key => Suspicion::CausalKey,
            false => Suspicion::Some,
        }
    }

    fn add(&mut self, kind: &[u8], name: &[u8], judgement: Judgement) {
        match kind {
            b"effect" => self.names.entry(name.into()).or_default().add(judgement),
            b"operator" => self.operators.push((name.into(), judgement)),
            b"everywhere" => self.everywhere.add(judgement),
            b"definition" => self.definitions.add(judgement),
            _ => {}
        }
    }

    /// Whether a definition may change what is known here. Most do not, and asking again costs.
    pub fn may_change_by(&self, definition: &[u8], conforming: bool) -> bool {
        sets(definition, conforming, NESTING_MAX)
            || mentions(definition, conforming, true, &mut |name| {
                let telling = TELLING
                    .binary_search_by(|word| word.as_bytes().cmp(name))
                    .is_ok();
                telling || self.names.contains_key(name)
            })
            || self.by_operators(definition, conforming) != Judgement::default()
    }

    /// The settings to ask for by name after anything suspicious.
    pub fn settings(&self) -> &[Box<str>] {
        &self.settings
    }

    /// What a text of this class, which is a write's, may have to do with its session beyond what the class
    /// says.
    pub fn judge(&self, class: &Class, sql: &[u8], conforming: bool) -> Judgement {
        let has = |is: fn(Verb) -> bool| class.statements.iter().any(|s| is(s.verb));
        let runs = has(|verb| verb == Verb::Run);
        // What it executes was prepared by another text.
        let executes = class.statements.iter().any(|s| s.executes);
        let mut judgement = self.everywhere;
        if runs || executes {
            judgement.add(Suspicion::Some.into());
        }
        if has(|verb| matches!(verb, Verb::Ddl(_) | Verb::Routine)) {
            judgement.add(self.definitions);
        }
        if self.names.is_empty() && self.operators.is_empty() && !runs {
            return judgement;
        }
        let hidden = mentions(sql, conforming, runs, &mut |name| {
            judgement.add(self.names.get(name).copied().unwrap_or_default());
            false
        });
        judgement.add(self.by_operators(sql, conforming));
        match hidden {
            // Nothing of it runs.
            true if is_unclosed(sql) => return Judgement::default(),
            // A name that is written in escapes could be any.
            true => judgement.add(Suspicion::UnknownSettings.into()),
            false => {}
        }
        if judgement.suspicion.is_some() {
            judgement.add(self.by_strings(sql, conforming, runs));
        }
        judgement
    }

    /// What the strings in `sql` may do if whatever they are handed to runs them. If the statement itself
    /// `runs` text, [`set_config::changes`] tells which settings it changes.
    fn by_strings(&self, sql: &[u8], conforming: bool, runs: bool) -> Judgement {
        let mut judgement = Judgement::default();
        mentions(sql, conforming, true, &mut |name| {
            judgement.reads_sequences |= effect(name) == Some(Effect::ReadsSequence);
            false
        });
        let changes = set_config::changes_of_strings(sql, conforming);
        if own::sets_key(&changes) {
            judgement.add(Suspicion::CausalKey.into());
        }
        let Changes { names, unknown, .. } = changes;
        let is_asked_for = |name: &Name| match name {
            Name::Literal(name) => self.settings.contains(name),
            Name::Parameter(_) => false,
        };
        if !runs && (unknown || !names.iter().all(is_asked_for)) {
            judgement.add(Suspicion::UnknownSettings.into());
        }
        judgement
    }

    /// What the operators in `sql` may do.
    fn by_operators(&self, sql: &[u8], conforming: bool) -> Judgement {
        let mut judgement = Judgement::default();
        if self.operators.is_empty() {
            return judgement;
        }
        let mut lexer = Lexer::new(sql, conforming);
        while let Some(token) = lexer.solid() {
            if token.kind != Kind::Operator {
                continue;
            }
            for (operator, known) in &self.operators {
                // It may run into a sign, so whatever holds it counts.
                if memchr::memmem::find(token.text(sql), operator).is_some() {
                    judgement.add(*known);
                }
            }
        }
        judgement
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::cache::Classifier;
    use crate::sql::functions::Rules;

    fn fact(name: &str, body: Option<&str>) -> Fact {
        let text = |text: &str| Some(Box::from(text.as_bytes()));
        [text("effect"), text(name), body.and_then(text)]
    }

    /// Something of another kind.
    fn kind(kind: &str, name: &str) -> Fact {
        let [_, name, _] = fact(name, None);
        [Some(Box::from(kind.as_bytes())), name, None]
    }

    #[test]
    fn a_name_with_an_effect_is_found_wherever_it_stands() {
        let effects = Effects::read(&[
            fact(
                "enter",
                Some("begin perform set_config('app.tenant', $1, false); end"),
            ),
            fact(
                "dynamic",
                Some("begin perform set_config(name, '1', false); end"),
            ),
            fact("audited", None),
            fact("of_dynamic", Some("set_config(x);")),
            kind("operator", "<%>"),
        ]);
        assert_eq!(effects.settings(), [Box::from("app.tenant")]);
        let classifier = Classifier::new(Rules::default(), 100);
        let judge = |sql: &str| {
            let class = classifier.classify(sql.as_bytes(), true);
            effects.judge(&class, sql.as_bytes(), true).suspicion
        };
        for (sql, expected) in [
            ("insert into t values ('enter')", None),
            ("select public.Enter(5)", Some(Suspicion::Some)),
            ("insert into audited values (1)", Some(Suspicion::Some)),
            (
                "insert into of_dynamic values (1)",
                Some(Suspicion::UnknownSettings),
            ),
            ("update t set a = b < c", None),
            ("update t set a = b <%>-c", Some(Suspicion::Some)),
            (
                "select dynamic(), enter(1)",
                Some(Suspicion::UnknownSettings),
            ),
            (
                "select U&\"\\0065nter\"(1)",
                Some(Suspicion::UnknownSettings),
            ),
            ("select enter('O'Brien')", None),
            ("do $$ begin perform enter(1); end $", None),
            ("select enter(1) /* unclosed", None),
            // Under other settings it is closed.
            ("select enter('a\\'b')", Some(Suspicion::UnknownSettings)),
            (
                "do $$ begin perform enter('O'Brien'); end $$",
                Some(Suspicion::UnknownSettings),
            ),
            ("do 'begin end'", Some(Suspicion::Some)),
            (
                "do $$ begin perform dynamic(); end $$",
                Some(Suspicion::UnknownSettings),
            ),
        ] {
            assert_eq!(judge(sql), expected, "{sql}");
        }
    }

    #[test]
    fn text_that_is_handed_over_may_be_run() {
        let effects = Effects::read(&[
            fact("run", Some("begin execute q; end")),
            fact("enter", Some("perform set_config('app.tenant', $1, false)")),
        ]);
        let classifier = Classifier::new(Rules::default(), 100);
        let (some, unknown) = (Some(Suspicion::Some), Some(Suspicion::UnknownSettings));
        for (sql, expected) in [
            ("select run('select 1')", (some, false)),
            ("select run('set app.tenant = 42')", (some, false)),
            ("select run('set app.role = 42')", (unknown, false)),
            ("select run($$ set app.role to 42 $$)", (unknown, false)),
            ("select run('select lastval()')", (some, true)),
            ("select ran('set app.role = 42')", (None, false)),
            ("call run('set app.role = 42')", (some, false)),
        ] {
            let class = classifier.classify(sql.as_bytes(), true);
            let Judgement {
                suspicion,
                reads_sequences,
            } = effects.judge(&class, sql.as_bytes(), true);
            assert_eq!((suspicion, reads_sequences), expected, "{sql}");
        }
    }

    #[test]
    fn what_another_text_has_prepared_may_do_anything() {
        let classifier = Classifier::new(Rules::default(), 100);
        for (sql, expected) in [
            ("execute p", Some(Suspicion::Some)),
            ("EXECUTE \"P\"(1)", Some(Suspicion::Some)),
            ("explain analyze execute p", Some(Suspicion::Some)),
            ("create table t as execute p(1)", Some(Suspicion::Some)),
            ("insert into t values ('execute p')", None),
            ("update t set execute = 1", None),
        ] {
            let class = classifier.classify(sql.as_bytes(), true);
            let judgement = Effects::default().judge(&class, sql.as_bytes(), true);
            assert_eq!(judgement.suspicion, expected, "{sql}");
        }
    }

    #[test]
    fn what_has_no_name_in_a_text_counts_wherever_it_may_be() {
        let classifier = Classifier::new(Rules::default(), 100);
        let judge = |known: &str, sql: &str| {
            let class = classifier.classify(sql.as_bytes(), true);
            let effects = Effects::read(&[kind(known, "x")]);
            effects.judge(&class, sql.as_bytes(), true).suspicion
        };
        let (write, ddl) = ("insert into t values (1)", "create table t (a int)");
        assert_eq!(judge("everywhere", write), Some(Suspicion::Some));
        assert_eq!(judge("everywhere", ddl), Some(Suspicion::Some));
        assert_eq!(judge("definition", write), None);
        assert_eq!(judge("definition", ddl), Some(Suspicion::Some));
        assert_eq!(
            judge("definition", "create view v as select 1"),
            Some(Suspicion::Some)
        );
    }

    #[test]
    fn who_asks_for_what_was_drawn_is_known_by_name_too() {
        let effects = Effects::read(&[
            kind("reading effect", "last_id"),
            kind("reading effect", "child"),
            fact("child", None),
            kind("reading operator", "<%>"),
            kind("reading definition", "x"),
        ]);
        let classifier = Classifier::new(Rules::default(), 100);
        let (suspected, reads) = (Some(Suspicion::Some), true);
        for (sql, expected) in [
            ("insert into t values (1)", (None, false)),
            ("select last_id()", (None, reads)),
            ("insert into child values (1)", (suspected, reads)),
            ("update t set a = a <%> b", (None, reads)),
            ("create table t (a int)", (None, reads)),
            ("do 'begin perform last_id(); end'", (suspected, reads)),
            (
                "do $$ begin perform pg_catalog.LastVal(); end $$",
                (suspected, reads),
            ),
            ("do $$ begin perform lastval; end $$", (suspected, reads)),
            (
                "do $$ begin perform nextval('s'); end $$",
                (suspected, false),
            ),
        ] {
            let class = classifier.classify(sql.as_bytes(), true);
            let Judgement {
                suspicion,
                reads_sequences,
            } = effects.judge(&class, sql.as_bytes(), true);
            assert_eq!((suspicion, reads_sequences), expected, "{sql}");
        }
    }

    #[test]
    fn most_definitions_change_nothing() {
        assert!(TELLING.is_sorted());
        let effects = Effects::read(&[fact("enter", Some("perform set_config('a.b', $1, false)"))]);
        for (sql, expected) in [
            (
                "create function f() returns int language sql as 'update t set a = 1'",
                false,
            ),
            ("create view v as select 1", false),
            ("create function f() returns int language c as 'f'", true),
            (
                "create function f() returns void language plpgsql as $$ begin
                 if a then set work_mem = '1MB'; end if; end $$",
                true,
            ),
            (
                "create function f() returns int language sql as 'select enter(1)'",
                true,
            ),
            (
                "create function f() returns void language plpgsql as $$ begin execute 'x'; end $$",
                true,
            ),
            (
                "create trigger t before insert on a execute function f()",
                true,
            ),
            ("alter table t alter a set default currval('s')", true),
            ("alter function enter rename to go", true),
            ("create extension e", true),
            (
                "create function f() returns void language sql as 'update pg_settings set a = 1'",
                true,
            ),
            // Whatever has been defined before.
            ("commit prepared 'x'", true),
        ] {
            assert_eq!(
                effects.may_change_by(sql.as_bytes(), true),
                expected,
                "{sql}"
            );
        }
    }

    #[test]
    fn strings_in_strings_are_read_to_some_depth() {
        let effects = Effects::read(&[fact("enter", None)]);
        let classifier = Classifier::new(Rules::default(), 100);
        let nested = |levels: usize, inner: &str| {
            let tag = |level: usize| format!("$t{level}$");
            let open: String = (0..levels).map(tag).collect();
            let close: String = (0..levels).rev().map(tag).collect();
            format!("{open} {inner} {close}")
        };
        for (levels, inner, found) in [
            (NESTING_MAX, "''", false),
            (NESTING_MAX, "perform enter()", true),
            (NESTING_MAX + 1, "''", true),
            (20_000, "''", true),
        ] {
            let sql = format!("do {}", nested(levels, inner));
            let class = classifier.classify(sql.as_bytes(), true);
            let suspicion = effects.judge(&class, sql.as_bytes(), true).suspicion;
            assert!(suspicion.is_some(), "{levels}");
            let unknown = suspicion == Some(Suspicion::UnknownSettings);
            assert_eq!(unknown, levels > NESTING_MAX, "{levels}");
            let sql = format!("create view v as select {} as x", nested(levels, inner));
            let changes = effects.may_change_by(sql.as_bytes(), true);
            assert_eq!(changes, found, "{levels} {inner}");
        }
    }

    #[test]
    fn an_answer_from_before_a_change_is_not_kept() {
        let known = Known::default();
        let (database, effects) = (Arc::from("main/app"), Arc::new(Effects::default()));
        let version = known.version();
        known.learn(&database, &effects, version);
        assert!(known.get("main/app").is_some());
        known.forget("main/app");
        known.learn(&database, &effects, version);
        assert!(known.get("main/app").is_none());
    }
}
