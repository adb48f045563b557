//! Words that tell of a write, or of something that the session must know, wherever they stand.
//!
//! Owns: what is certain from adjacent tokens alone. Never: parses; it errs towards the write.

use super::super::functions::{Effect, effect};
use super::super::lexer::{Kind, Lexer, Token};
use super::{Pin, PinSet, Why, misread};

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tells {
    pub sets_config: bool,
    pub reads_sequence: bool,
    pub pins: PinSet,
    /// Something that has a name may be executed.
    pub executes: bool,
    /// Why a query with these words is no read.
    pub objection: Option<Why>,
}

impl Tells {
    pub fn read(text: &[u8], conforming: bool) -> Tells {
        let mut tells = Tells::default();
        let mut lexer = Lexer::new(text, conforming);
        let mut before: Option<Token> = None;
        let mut last: Option<Token> = None;
        let mut updates = false;
        while let Some(token) = lexer.solid() {
            if misread(token.kind) {
                tells.object(Why::NotParsed);
            }
            // By a rule of that view an UPDATE sets for the session what it changes.
            tells.sets_config |= updates && may_name(token, text, b"pg_settings");
            updates |= token.is(text, "update");
            if let Some(last) = last {
                tells.pair(text, conforming, before, last, token);
            }
            (before, last) = (last, Some(token));
        }
        tells
    }

    /// Whether no statement with these words can be less than a write.
    pub fn must_write(&self) -> bool {
        self.sets_config || !self.pins.is_empty()
    }

    /// Reads two adjacent tokens, and the one before them.
    fn pair(
        &mut self,
        text: &[u8],
        conforming: bool,
        before: Option<Token>,
        last: Token,
        next: Token,
    ) {
        if next.kind == Kind::Open {
            self.call(text, last);
        }
        // `a.f` is `f(a)` where a has no column f.
        if last.kind == Kind::Dot {
            self.call(text, next);
        }
        if last.kind != Kind::Word {
            return;
        }
        let last_is = |word| last.is(text, word);
        let next_is = |word| next.is(text, word);
        let before_is = |word| before.is_some_and(|t| t.is(text, word));
        let word = last.text(text);
        // In order of the words' lengths, so that most words cost one comparison.
        match word.len() {
            3 if last_is("for") && ["update", "share", "no", "key"].iter().any(|w| next_is(w)) => {
                self.object(Why::LockingClause);
            }
            4 if last_is("into") => {
                if before_is("insert") || before_is("merge") {
                    self.object(Why::DataChange);
                    return;
                }
                self.object(Why::SelectInto);
                let words = ["temp", "temporary", "local", "global"];
                let rest = text.get(next.start..).unwrap_or(&[]);
                if words.iter().any(|w| next_is(w)) || is_temporary(rest, conforming) {
                    self.pins.insert(Pin::TemporaryTable);
                }
            }
            6 if ["insert", "update", "delete"].iter().any(|w| last_is(w)) => {
                // A statement inside another one follows a parenthesis; a column of this name is
                // not followed by a name.
                let starts = before.is_some_and(|t| matches!(t.kind, Kind::Open | Kind::Close));
                let named = matches!(next.kind, Kind::Word | Kind::QuotedWord);
                if starts && named {
                    self.object(Why::DataChange);
                }
            }
            7 if last_is("execute") => {
                self.executes |= !matches!(next.kind, Kind::Open | Kind::Operator);
            }
            _ => {}
        }
    }

    /// Reads a name that may be called.
    fn call(&mut self, text: &[u8], name: Token) {
        let Some(name) = name.name(text) else {
            // A name in escapes could be any.
            if name.kind == Kind::UnicodeWord {
                self.sets_config = true;
                self.pins.insert(Pin::AdvisoryLock);
                self.object(Why::UnsafeFunction);
            }
            return;
        };
        match effect(&name) {
            Some(Effect::SetsConfig) => self.sets_config = true,
            Some(Effect::ReadsSequence) => self.reads_sequence = true,
            Some(Effect::Seeds) => self.pins.insert(Pin::Settings),
            Some(Effect::AdvisoryLock) => self.pins.insert(Pin::AdvisoryLock),
            Some(Effect::Stays) => self.pins.insert(Pin::Load),
            None if name.starts_with(b"pg_advisory_") || name.starts_with(b"pg_try_advisory_") => {}
            None => return,
        }
        self.object(Why::UnsafeFunction);
    }

    fn object(&mut self, why: Why) {
        self.objection.get_or_insert(why);
    }
}

/// Whether a token is this name, or one in escapes, which could be any.
fn may_name(token: Token, text: &[u8], name: &[u8]) -> bool {
    token.kind == Kind::UnicodeWord || token.name(text).is_some_and(|found| *found == *name)
}

/// Whether the new table that `rest` names first is in the temporary schema.
fn is_temporary(rest: &[u8], conforming: bool) -> bool {
    const LONGEST: [&str; 6] = ["unlogged", "table", "database", ".", "pg_temp", "."];
    let mut lexer = Lexer::new(rest, conforming);
    let tokens = std::iter::from_fn(|| lexer.solid()).take(LONGEST.len());
    let mut named = false;
    for token in tokens {
        if named && token.kind == Kind::Dot {
            return true;
        }
        named = token.name(rest).is_some_and(|name| *name == *b"pg_temp");
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_tell_wherever_they_stand() {
        let cases: &[(&str, bool, &[Pin], Option<Why>)] = &[
            (
                "select into_ from t for_ where update = 1",
                false,
                &[],
                None,
            ),
            ("select max(update), insert from t", false, &[], None),
            (
                "select 1 FOR /* */ No Key Update",
                false,
                &[],
                Some(Why::LockingClause),
            ),
            ("select 1 into t", false, &[], Some(Why::SelectInto)),
            (
                "select 1 into temp t",
                false,
                &[Pin::TemporaryTable],
                Some(Why::SelectInto),
            ),
            (
                "select 1 into table pg_temp.t",
                false,
                &[Pin::TemporaryTable],
                Some(Why::SelectInto),
            ),
            (
                "select 1 into \"pg_temp\" . t",
                false,
                &[Pin::TemporaryTable],
                Some(Why::SelectInto),
            ),
            (
                "select 1 into unlogged table app.pg_temp.t",
                false,
                &[Pin::TemporaryTable],
                Some(Why::SelectInto),
            ),
            (
                "select pg_temp from public.pg_temp into table t",
                false,
                &[],
                Some(Why::SelectInto),
            ),
            (
                "with a as (delete from t) select 1",
                false,
                &[],
                Some(Why::DataChange),
            ),
            (
                "insert into temp values (1)",
                false,
                &[],
                Some(Why::DataChange),
            ),
            (
                "select \"set_config\" (1)",
                true,
                &[],
                Some(Why::UnsafeFunction),
            ),
            ("select set_config, 'set_config('", false, &[], None),
            (
                "select pg_catalog.PG_Advisory_Lock(1)",
                false,
                &[Pin::AdvisoryLock],
                Some(Why::UnsafeFunction),
            ),
            (
                "select pg_advisory_xact_lock(1)",
                false,
                &[],
                Some(Why::UnsafeFunction),
            ),
            (
                "select pg_advisory_unlock(1)",
                false,
                &[Pin::AdvisoryLock],
                Some(Why::UnsafeFunction),
            ),
            (
                "select U&\"\\0073et_config\"(1)",
                true,
                &[Pin::AdvisoryLock],
                Some(Why::NotParsed),
            ),
            (
                "select pg_catalog.currval ('s')",
                false,
                &[],
                Some(Why::UnsafeFunction),
            ),
            (
                "select pg_advisory_lock(1), setseed(1) into temp t",
                false,
                &[Pin::AdvisoryLock, Pin::Settings, Pin::TemporaryTable],
                Some(Why::UnsafeFunction),
            ),
            (
                "select (1::bigint).pg_advisory_lock",
                false,
                &[Pin::AdvisoryLock],
                Some(Why::UnsafeFunction),
            ),
            (
                "select (0.5::float8).\"setseed\", ('s'::regclass).currval",
                false,
                &[Pin::Settings],
                Some(Why::UnsafeFunction),
            ),
            ("select t.setseeds, a.b from t", false, &[], None),
            ("update t set a = pg_settings", true, &[], None),
            (
                "explain analyze UPDATE only pg_catalog . \"pg_settings\" set a = 1",
                true,
                &[],
                None,
            ),
            (
                "update U&\"\\0070g_settings\" set a = 1",
                true,
                &[],
                Some(Why::NotParsed),
            ),
            (
                "select setting as update_ from pg_settings",
                false,
                &[],
                None,
            ),
            ("explain analyze execute p", false, &[], None),
            ("select 'open", false, &[], Some(Why::NotParsed)),
        ];
        for &(sql, sets_config, pins, objection) in cases {
            let expected = Tells {
                sets_config,
                reads_sequence: sql.contains("currval"),
                pins: PinSet::of(pins),
                executes: sql.contains("execute "),
                objection,
            };
            assert_eq!(Tells::read(sql.as_bytes(), true), expected, "{sql}");
        }
    }
}
