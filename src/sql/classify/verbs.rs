//! What a statement is, from its first words.
//!
//! Owns: PostgreSQL's commands by keyword, none of which depends on the parser. Never: looks into a
//! query; it hands that over as text.

use super::super::command;
use super::super::lexer::{Cursor, Kind};
use super::{Need, Pin, Reach, Verb, Why, temporary};

/// A statement, as far as its words say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    Settled {
        need: Need,
        why: Why,
        effects: Effects,
        only_names: bool,
    },
    /// A query, which must be proven to be a read.
    Query { text: &'a [u8], effects: Effects },
    /// Reads one relation whole.
    Relation { name: Vec<String>, effects: Effects },
    /// `analyze` if the word stands there, whatever its value; `unknown` if there is an option that a library may
    /// know, on a server that has loaded it.
    Explain {
        analyze: bool,
        unknown: bool,
        inner: Box<Command<'a>>,
    },
}

/// What a statement does to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Effects {
    pub verb: Verb,
    pub pin: Option<Pin>,
}

impl Command<'_> {
    pub fn effects(&self) -> Effects {
        match self {
            Command::Settled { effects, .. }
            | Command::Query { effects, .. }
            | Command::Relation { effects, .. } => *effects,
            Command::Explain { analyze, inner, .. } => Effects {
                verb: Verb::Plain,
                pin: inner.effects().pin.filter(|_| *analyze),
            },
        }
    }

    /// Whether the names in it are those of objects, and nothing of it is called. CREATE is not
    /// among these: it may run a query.
    pub fn only_names(&self) -> bool {
        matches!(
            self,
            Command::Settled {
                only_names: true,
                ..
            }
        )
    }

    fn settled(need: Need, why: Why, verb: Verb) -> Self {
        Command::Settled {
            need,
            why,
            effects: Effects { verb, pin: None },
            only_names: false,
        }
    }

    fn transaction(verb: Verb) -> Self {
        Self::settled(Need::Transaction, Why::TransactionControl, verb)
    }

    fn session(verb: Verb) -> Self {
        Self::settled(Need::Session, Why::SessionState, verb)
    }

    fn write(why: Why, verb: Verb) -> Self {
        Self::settled(Need::Write, why, verb)
    }

    fn pinning(mut self, pin: Option<Pin>) -> Self {
        if let Command::Settled { effects, .. } = &mut self {
            effects.pin = pin;
        }
        self
    }
}

/// Reads one statement. `conforming` as for [`super::super::lexer::Lexer::new`].
pub(super) fn read(text: &[u8], conforming: bool) -> Command<'_> {
    let mut cursor = Cursor::new(text, conforming);
    let query = Command::Query {
        text,
        effects: Effects {
            verb: Verb::Plain,
            pin: None,
        },
    };
    let first = match cursor.next() {
        Some(token) if token.kind == Kind::Open => return query,
        Some(token) if token.kind == Kind::Word => token.text(text),
        _ => return Command::write(Why::NotParsed, Verb::Plain),
    };
    // The longest keyword has ten letters.
    let mut word = [0u8; 10];
    let Some(word) = word.get_mut(..first.len()) else {
        return Command::write(Why::NotParsed, Verb::Plain);
    };
    word.copy_from_slice(first);
    word.make_ascii_lowercase();
    match &*word {
        b"select" | b"with" | b"values" => query,
        b"table" => whole_table(&mut cursor).unwrap_or(query),
        b"explain" => explain(&mut cursor, conforming),
        b"copy" => copy(&mut cursor),

        b"begin" | b"start" => Command::transaction(Verb::Begin(command::modes(&mut cursor))),
        b"commit" | b"end" if !cursor.at("prepared") => Command::transaction(Verb::Commit),
        // What was prepared may well be a change of the schema.
        b"commit" => Command::write(Why::Utility, Verb::Ddl(Reach::Anything)),
        b"rollback" | b"abort" if !cursor.at("prepared") => {
            let _ = cursor.eat("work") || cursor.eat("transaction");
            Command::transaction(if cursor.at("to") {
                Verb::RollbackTo
            } else {
                Verb::Rollback
            })
        }
        b"savepoint" => Command::transaction(Verb::Savepoint),
        b"release" => Command::transaction(Verb::Release),
        b"prepare" => {
            if cursor.eat("transaction") && cursor.at_kind(Kind::String) {
                Command::transaction(Verb::PrepareTransaction)
            } else {
                Command::write(Why::Utility, Verb::Prepare).pinning(Some(Pin::PreparedStatement))
            }
        }

        b"set" => Command::session(set(&mut cursor, text)),
        b"reset" => Command::session(Verb::Setting),
        b"show" => Command::session(Verb::Show),
        b"discard" if cursor.at("all") => Command::session(Verb::DiscardAll),
        b"discard" if cursor.at("sequences") => Command::session(Verb::DiscardSequences),
        b"discard" => Command::session(Verb::DiscardOther),
        b"deallocate" => Command::session(deallocate(&mut cursor)),

        b"insert" | b"update" | b"delete" | b"merge" | b"truncate" | b"refresh" => {
            Command::write(Why::DataChange, Verb::Plain)
        }
        b"create" if cursor.at("database") => Command::write(Why::Ddl, Verb::Database),
        b"create" => {
            let verb = if is_routine(cursor.clone(), text) {
                Verb::Routine
            } else {
                Verb::Ddl(reach_of_create(cursor.clone(), text))
            };
            Command::write(Why::Ddl, verb).pinning(created(cursor, text, conforming))
        }
        b"alter" | b"drop" | b"grant" | b"revoke" | b"comment" | b"security" | b"reassign"
        | b"import" => Command::Settled {
            need: Need::Write,
            why: Why::Ddl,
            effects: Effects {
                verb: altered(&cursor, word, text),
                pin: None,
            },
            only_names: true,
        },

        b"execute" => Command::write(Why::Utility, Verb::Execute),
        b"declare" => Command::write(Why::Utility, Verb::Declare).pinning(held(&mut cursor, text)),
        b"fetch" | b"move" => Command::write(Why::Utility, Verb::Fetch),
        b"close" => Command::write(Why::Utility, Verb::Close),
        b"listen" => Command::write(Why::Utility, Verb::Listen).pinning(Some(Pin::Listen)),
        b"unlisten" => Command::write(Why::Utility, Verb::Unlisten),
        b"load" => Command::write(Why::Utility, Verb::Plain).pinning(Some(Pin::Load)),
        b"do" | b"call" => Command::write(Why::Utility, Verb::Run),
        b"end" | b"rollback" | b"abort" | b"notify" | b"lock" | b"vacuum" | b"analyze"
        | b"analyse" | b"checkpoint" | b"cluster" | b"reindex" | b"wait" | b"repack" => {
            Command::write(Why::Utility, Verb::Plain)
        }
        _ => Command::write(Why::NotParsed, Verb::Plain),
    }
}

/// What an ALTER, a DROP or the like is about.
fn altered(cursor: &Cursor<'_>, word: &[u8], text: &[u8]) -> Verb {
    let at = |word| cursor.at(word);
    match word {
        b"alter" | b"drop" if at("database") => Verb::Database,
        b"alter" | b"drop" if at("role") || at("user") || at("group") => Verb::Role,
        b"alter" | b"drop" if is_routine(cursor.clone(), text) => Verb::Routine,
        b"drop" if at("table") || at("index") || at("sequence") => Verb::Ddl(Reach::Nothing),
        b"grant" | b"revoke" | b"comment" | b"security" => Verb::Ddl(Reach::Nothing),
        _ => Verb::Ddl(Reach::Anything),
    }
}

/// What a CREATE may change of what is known of the database.
fn reach_of_create(mut cursor: Cursor<'_>, text: &[u8]) -> Reach {
    let _ = cursor.eat("global") || cursor.eat("local");
    let _ = cursor.eat("temp") || cursor.eat("temporary");
    cursor.eat("unique");
    if cursor.at("index") {
        return Reach::Nothing;
    }
    // What a table is a part of may not be read on a standby any more, by what the part is.
    let adds_to_others = |cursor: Cursor<'_>| {
        let mut words = cursor;
        words.any(|token| token.is(text, "inherits") || token.is(text, "partition"))
    };
    match cursor.eat("table") && !adds_to_others(cursor) {
        true => Reach::Itself,
        false => Reach::Anything,
    }
}

/// Whether what comes next is the kind of object whose use runs code, perhaps after words that only
/// describe it.
fn is_routine(cursor: Cursor<'_>, text: &[u8]) -> bool {
    const KINDS: [&str; 9] = [
        "function",
        "procedure",
        "routine",
        "aggregate",
        "trigger",
        "rule",
        "view",
        "extension",
        "schema",
    ];
    /// CREATE OR REPLACE TEMPORARY RECURSIVE VIEW.
    const WORDS_BEFORE: usize = 4;
    let mut words = cursor.take(WORDS_BEFORE + 1);
    words.any(|token| KINDS.iter().any(|kind| token.is(text, kind)))
}

fn set(cursor: &mut Cursor<'_>, text: &[u8]) -> Verb {
    let session = cursor.eat("session");
    let Some(next) = cursor.next() else {
        return Verb::Setting;
    };
    // Of a variable with such a name the next token would be `=` or TO.
    let named = cursor.at("to") || cursor.at_kind(Kind::Operator) || cursor.at_kind(Kind::Dot);
    let local = ["local", "transaction", "constraints"]
        .iter()
        .any(|word| next.is(text, word));
    if local && !named && !session {
        match next.is(text, "transaction") && !cursor.at("snapshot") {
            true => Verb::SetTransaction(command::modes(cursor)),
            false => Verb::SettingLocal,
        }
    } else {
        Verb::Setting
    }
}

fn deallocate(cursor: &mut Cursor<'_>) -> Verb {
    // PREPARE may be left out, and may be the name.
    if cursor.eat("prepare") && cursor.peek().is_none() {
        return Verb::Deallocate;
    }
    if cursor.at("all") {
        Verb::DeallocateAll
    } else {
        Verb::Deallocate
    }
}

/// What a CREATE leaves in the session.
fn created(mut cursor: Cursor<'_>, text: &[u8], conforming: bool) -> Option<Pin> {
    if cursor.eat("or") {
        cursor.eat("replace");
    }
    let _ = cursor.eat("global") || cursor.eat("local");
    if cursor.at("temp") || cursor.at("temporary") {
        return Some(Pin::TemporaryTable);
    }
    temporary(text, conforming)
}

/// Whether a DECLARE is WITH HOLD.
fn held(cursor: &mut Cursor<'_>, text: &[u8]) -> Option<Pin> {
    while let Some(token) = cursor.next() {
        if token.is(text, "for") {
            break;
        }
        if token.is(text, "with") && cursor.at("hold") {
            return Some(Pin::HeldCursor);
        }
    }
    None
}

/// `TABLE name` and nothing more.
fn whole_table<'a>(cursor: &mut Cursor<'a>) -> Option<Command<'a>> {
    cursor.eat("only");
    let name = relation(cursor)?;
    cursor.peek().is_none().then_some(Command::Relation {
        name,
        effects: Effects {
            verb: Verb::Plain,
            pin: None,
        },
    })
}

fn explain<'a>(cursor: &mut Cursor<'a>, conforming: bool) -> Command<'a> {
    let mut ahead = cursor.clone();
    // None of PostgreSQL's statements begins so. With nothing behind it, PostgreSQL says what is wrong.
    if ahead.eat("route") && ahead.peek().is_some() {
        return Command::Settled {
            need: Need::Session,
            why: Why::ExplainRoute,
            effects: Effects {
                verb: Verb::ExplainRoute,
                pin: None,
            },
            only_names: true,
        };
    }
    let (mut analyze, mut unknown) = (false, false);
    let mut options = cursor.clone();
    match options.parenthesis() {
        Some(inside) if !is_query(inside, conforming) => {
            analyze = Cursor::new(inside, conforming)
                .any(|t| t.is(inside, "analyze") || t.is(inside, "analyse"));
            // A value is never looked at: the word alone means that it may run.
            let is_name = |kind| matches!(kind, Kind::QuotedWord | Kind::UnicodeWord);
            analyze |= Cursor::new(inside, conforming).any(|t| is_name(t.kind));
            unknown = has_unknown_option(inside, conforming);
            *cursor = options;
        }
        Some(_) => {}
        None => {
            analyze = cursor.eat("analyze") || cursor.eat("analyse");
            cursor.eat("verbose");
        }
    }
    // Not explained itself, which also keeps this from recursing.
    if cursor.at("explain") {
        return Command::write(Why::NotParsed, Verb::Plain);
    }
    Command::Explain {
        analyze,
        unknown,
        inner: Box::new(read(cursor.rest(), conforming)),
    }
}

/// Whether the options of an EXPLAIN, without their parentheses, are more than PostgreSQL's own, up to 19:
/// <https://www.postgresql.org/docs/current/sql-explain.html>
fn has_unknown_option(options: &[u8], conforming: bool) -> bool {
    const KNOWN: [&[u8]; 14] = [
        b"analyse",
        b"analyze",
        b"buffers",
        b"costs",
        b"format",
        b"generic_plan",
        b"io",
        b"memory",
        b"serialize",
        b"settings",
        b"summary",
        b"timing",
        b"verbose",
        b"wal",
    ];
    let mut begins = true;
    Cursor::new(options, conforming).any(|token| {
        let is_name = std::mem::replace(&mut begins, token.kind == Kind::Comma);
        let is_known = |name: &[u8]| KNOWN.contains(&name);
        let is_in_order = match is_name {
            true => token.name(options).is_some_and(|name| is_known(&name)),
            false => token.kind != Kind::Dot,
        };
        !is_in_order
    })
}

fn is_query(text: &[u8], conforming: bool) -> bool {
    let cursor = Cursor::new(text, conforming);
    cursor.at_kind(Kind::Open)
        || ["select", "with", "values", "table"]
            .iter()
            .any(|word| cursor.at(word))
}

fn copy<'a>(cursor: &mut Cursor<'a>) -> Command<'a> {
    let effects = Effects {
        verb: Verb::Copy,
        pin: None,
    };
    let write = |why| Command::write(why, Verb::Copy);
    if cursor.at_kind(Kind::Open) {
        return match cursor.parenthesis() {
            Some(text) if cursor.eat("to") && cursor.at("stdout") => {
                Command::Query { text, effects }
            }
            Some(_) => write(Why::Utility),
            None => write(Why::NotParsed),
        };
    }
    let mut after_binary = cursor.clone();
    if after_binary.eat("binary") && !after_binary.at("to") && !after_binary.at("from") {
        *cursor = after_binary;
    }
    let name = relation(cursor);
    if cursor.at_kind(Kind::Open) && cursor.parenthesis().is_none() {
        return write(Why::NotParsed);
    }
    match name {
        _ if cursor.at("from") => write(Why::DataChange),
        Some(name) if cursor.eat("to") && cursor.at("stdout") => {
            Command::Relation { name, effects }
        }
        Some(_) => write(Why::Utility),
        None => write(Why::NotParsed),
    }
}

/// The parts of a relation's name.
fn relation(cursor: &mut Cursor<'_>) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    loop {
        let name = cursor.eat_name()?;
        parts.push(String::from_utf8(name.into_owned()).ok()?);
        if !cursor.eat_kind(Kind::Dot) {
            return Some(parts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{Isolation, Modes};

    fn effects(sql: &str) -> (Verb, Option<Pin>) {
        let Effects { verb, pin } = read(sql.as_bytes(), true).effects();
        (verb, pin)
    }

    #[test]
    fn verbs_are_known_by_their_words() {
        let modes = |isolation, read_only, deferrable| Modes {
            isolation,
            read_only,
            deferrable,
        };
        let anything = Verb::Ddl(Reach::Anything);
        let begin = |isolation, read_only| Verb::Begin(modes(isolation, read_only, None));
        let [committed, repeatable, serializable] = [
            Isolation::ReadCommitted,
            Isolation::RepeatableRead,
            Isolation::Serializable,
        ]
        .map(Some);
        for (sql, verb) in [
            ("begin", begin(None, None)),
            ("BEGIN WORK READ ONLY", begin(None, Some(true))),
            (
                "start transaction isolation level read committed",
                begin(committed, None),
            ),
            (
                "start transaction isolation level repeatable read, read only",
                begin(repeatable, Some(true)),
            ),
            ("begin read only, read write", begin(None, Some(false))),
            (
                "begin isolation level serializable read only not deferrable",
                Verb::Begin(modes(serializable, Some(true), Some(false))),
            ),
            (
                "begin deferrable",
                Verb::Begin(modes(None, None, Some(true))),
            ),
            (
                "begin isolation level read uncommitted",
                begin(Some(Isolation::ReadUncommitted), None),
            ),
            ("commit and chain", Verb::Commit),
            ("end", Verb::Commit),
            ("rollback prepared 'x'", Verb::Plain),
            ("commit prepared 'x'", anything),
            ("abort work", Verb::Rollback),
            ("rollback to a", Verb::RollbackTo),
            ("rollback transaction to savepoint a", Verb::RollbackTo),
            ("savepoint a", Verb::Savepoint),
            ("release a", Verb::Release),
            ("prepare transaction 'x'", Verb::PrepareTransaction),
            ("set a = 1", Verb::Setting),
            ("set local a = 1", Verb::SettingLocal),
            (
                "set transaction read only",
                Verb::SetTransaction(modes(None, Some(true), None)),
            ),
            (
                "SET TRANSACTION ISOLATION LEVEL repeatable read, READ WRITE",
                Verb::SetTransaction(modes(repeatable, Some(false), None)),
            ),
            ("set transaction snapshot 'x'", Verb::SettingLocal),
            ("set transaction to 'x'", Verb::Setting),
            ("set constraints all deferred", Verb::SettingLocal),
            (
                "set session characteristics as transaction read only",
                Verb::Setting,
            ),
            ("set session transaction.x = 1", Verb::Setting),
            ("reset all", Verb::Setting),
            ("show all", Verb::Show),
            ("discard all", Verb::DiscardAll),
            ("discard plans", Verb::DiscardOther),
            ("deallocate all", Verb::DeallocateAll),
            ("deallocate prepare all", Verb::DeallocateAll),
            ("deallocate prepare", Verb::Deallocate),
            ("deallocate prepare a", Verb::Deallocate),
            ("execute a", Verb::Execute),
            ("fetch next from c", Verb::Fetch),
            ("move 1 in c", Verb::Fetch),
            ("close all", Verb::Close),
            ("unlisten *", Verb::Unlisten),
            ("copy t from stdin", Verb::Copy),
            ("copy (select 1) to stdout", Verb::Copy),
            ("alter table t add a int", anything),
            ("create table t (a int)", Verb::Ddl(Reach::Itself)),
            (
                "create table if not exists a.t as select 1",
                Verb::Ddl(Reach::Itself),
            ),
            ("create table t partition of u default", anything),
            ("create table t (a int) inherits (u)", anything),
            ("create unlogged table t (a int)", anything),
            ("create foreign table t (a int) server s", anything),
            ("create sequence s", anything),
            ("create unique index on t (a)", Verb::Ddl(Reach::Nothing)),
            ("drop table t cascade", Verb::Ddl(Reach::Nothing)),
            ("drop domain d", anything),
            ("grant select on t to app", Verb::Ddl(Reach::Nothing)),
            ("comment on table t is 'x'", Verb::Ddl(Reach::Nothing)),
            ("reassign owned by a to b", anything),
            ("explain route delete from t", Verb::ExplainRoute),
            ("explain /* so */ ROUTE(select 1)", Verb::ExplainRoute),
            ("explain route", Verb::Plain),
            ("explain \"route\" select 1", Verb::Plain),
            ("explain analyze route select 1", Verb::Plain),
            ("explain table route", Verb::Plain),
            ("explain (verbose) select route from t", Verb::Plain),
            ("select 1", Verb::Plain),
        ] {
            assert_eq!(effects(sql), (verb, None), "{sql}");
        }
    }

    #[test]
    fn what_stays_with_the_server_pins() {
        for (sql, pin) in [
            ("create temp table t (a int)", Pin::TemporaryTable),
            (
                "create local temporary table t as select 1",
                Pin::TemporaryTable,
            ),
            (
                "create or replace temp view v as select 1",
                Pin::TemporaryTable,
            ),
            ("create temporary sequence s", Pin::TemporaryTable),
            ("create table pg_temp.t (a int)", Pin::TemporaryTable),
            (
                "create function pg_temp.f() returns int language sql as ''",
                Pin::TemporaryTable,
            ),
            (
                "declare c binary cursor with hold for select 1",
                Pin::HeldCursor,
            ),
            ("listen a", Pin::Listen),
            ("prepare p as select 1", Pin::PreparedStatement),
            ("prepare transaction as select 1", Pin::PreparedStatement),
            ("load 'x'", Pin::Load),
            (
                "explain analyze create temp table t as select 1",
                Pin::TemporaryTable,
            ),
            (
                "explain (u&\"analyze\") create temp table t as select 1",
                Pin::TemporaryTable,
            ),
        ] {
            assert_eq!(effects(sql).1, Some(pin), "{sql}");
        }
        for sql in [
            "create table temp (a int)",
            "create unlogged table t (a int)",
            "declare c cursor without hold for select 1",
            "declare c cursor for select 1 as with, hold",
            "explain create temp table t as select 1",
            "explain route create temp table t (a int)",
        ] {
            assert_eq!(effects(sql).1, None, "{sql}");
        }
    }
}
