//! The details of commands.
//!
//! Owns: how a transaction is begun and ended, and what is created, declared or explained. Never: decides a class.

use std::borrow::Cow;

use super::lexer::{Cursor, Kind};
use super::{Isolation, Modes};

/// The transaction modes that follow.
pub fn modes(cursor: &mut Cursor<'_>) -> Modes {
    let mut modes = Modes::default();
    let mut negated = false;
    loop {
        let not = std::mem::take(&mut negated);
        if cursor.eat("read") {
            if cursor.eat("only") {
                modes.read_only = Some(true);
            } else if cursor.eat("write") {
                modes.read_only = Some(false);
            } else if cursor.eat("committed") {
                modes.isolation = Some(Isolation::ReadCommitted);
            } else if cursor.eat("uncommitted") {
                modes.isolation = Some(Isolation::ReadUncommitted);
            }
        } else if cursor.eat("repeatable") {
            modes.isolation = Some(Isolation::RepeatableRead);
        } else if cursor.eat("serializable") {
            modes.isolation = Some(Isolation::Serializable);
        } else if cursor.eat("deferrable") {
            modes.deferrable = Some(!not);
        } else {
            negated = cursor.at("not");
            // ISOLATION LEVEL, commas, and what the server will refuse.
            if cursor.next().is_none() {
                return modes;
            }
        }
    }
}

/// Whether a text that begins a transaction says so by START, which its answer repeats.
pub fn is_start(sql: &[u8]) -> bool {
    Cursor::new(sql, true).at("start")
}

/// Whether a text is a BEGIN or START TRANSACTION as PostgreSQL has them, to the last word.
pub fn is_plain_begin(sql: &[u8]) -> bool {
    let mut cursor = Cursor::new(sql, true);
    let begins = match cursor.eat("start") {
        true => cursor.eat("transaction"),
        false => {
            cursor.eat("begin") && {
                let _ = cursor.eat("work") || cursor.eat("transaction");
                true
            }
        }
    };
    let mut first = true;
    while begins && !cursor.is_over() {
        if !first {
            cursor.eat_kind(Kind::Comma);
        }
        first = false;
        let is_mode = if cursor.eat("isolation") {
            cursor.eat("level")
                && (cursor.eat("serializable")
                    || cursor.eat("repeatable") && cursor.eat("read")
                    || cursor.eat("read") && (cursor.eat("committed") || cursor.eat("uncommitted")))
        } else if cursor.eat("read") {
            cursor.eat("only") || cursor.eat("write")
        } else {
            cursor.eat("not");
            cursor.eat("deferrable")
        };
        if !is_mode {
            return false;
        }
    }
    begins
}

/// Whether a text is a COMMIT, END, ROLLBACK or ABORT, to the last word, that nothing begins with.
pub fn is_plain_end(sql: &[u8]) -> bool {
    let mut cursor = Cursor::new(sql, true);
    let words = ["commit", "end", "rollback", "abort"];
    let ends = words.iter().any(|word| cursor.eat(word));
    let _ = cursor.eat("work") || cursor.eat("transaction");
    ends && cursor.is_over()
}

/// The name of the table that a statement creates, without its schema.
pub fn created(statement: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut cursor = Cursor::new(statement, true);
    while !cursor.eat("table") {
        cursor.next()?;
    }
    if cursor.eat("if") {
        cursor.eat("not");
        cursor.eat("exists");
    }
    let mut name = cursor.eat_name()?;
    while cursor.eat_kind(Kind::Dot) {
        name = cursor.eat_name()?;
    }
    Some(name)
}

/// The query of a DECLARE of a cursor that ends with its transaction.
pub fn declared(statement: &[u8]) -> Option<&[u8]> {
    let mut cursor = Cursor::new(statement, true);
    if !cursor.eat("declare") {
        return None;
    }
    cursor.eat_name()?;
    while !cursor.eat("cursor") {
        cursor.next()?;
    }
    if cursor.eat("without") {
        cursor.eat("hold");
    }
    cursor.eat("for").then(|| cursor.rest())
}

/// What an EXPLAIN ROUTE is about: the same text without these two words, so that the comments before
/// them count as well. `None` if it is none.
pub fn explained(sql: &[u8]) -> Option<Vec<u8>> {
    let mut cursor = Cursor::new(sql, true);
    let (explain, route) = (cursor.next()?, cursor.next()?);
    if !explain.is(sql, "explain") || !route.is(sql, "route") {
        return None;
    }
    let parts = [
        sql.get(..explain.start)?,
        sql.get(explain.end..route.start)?,
        sql.get(route.end..)?,
    ];
    Some(parts.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_created_and_declared_is_found() {
        for (sql, name) in [
            ("create table Items (a int)", Some("items")),
            (
                "CREATE TEMP TABLE IF NOT EXISTS a.\"B c\" AS SELECT 1",
                Some("B c"),
            ),
            ("create table", None),
        ] {
            let found = created(sql.as_bytes());
            assert_eq!(found.as_deref(), name.map(str::as_bytes), "{sql}");
        }
        for (sql, begins, ends) in [
            ("BEGIN;", true, false),
            (
                "begin work isolation level read committed, not deferrable",
                true,
                false,
            ),
            ("START TRANSACTION READ WRITE DEFERRABLE", true, false),
            ("start", false, false),
            ("begin foo", false, false),
            ("begin, read only", false, false),
            ("begin read", false, false),
            ("end transaction ;", false, true),
            ("commit and no chain", false, false),
            ("commit foo", false, false),
        ] {
            let found = (is_plain_begin(sql.as_bytes()), is_plain_end(sql.as_bytes()));
            assert_eq!(found, (begins, ends), "{sql}");
        }
        for (sql, query) in [
            ("declare c cursor for select 1", Some("select 1")),
            (
                "DECLARE \"for\" NO SCROLL CURSOR WITHOUT HOLD FOR select 2 for update",
                Some("select 2 for update"),
            ),
            ("declare c cursor with hold for select 1", None),
            ("select cursor for x", None),
        ] {
            let found = declared(sql.as_bytes());
            assert_eq!(found, query.map(str::as_bytes), "{sql}");
        }
    }

    #[test]
    fn what_is_explained_keeps_the_comments_before_it() {
        let found =
            |sql: &str| explained(sql.as_bytes()).map(|text| String::from_utf8(text).unwrap());
        for (sql, expected) in [
            ("EXPLAIN ROUTE SELECT 1;", Some("  SELECT 1;")),
            (
                "/* tidegate: global */ explain/* a */Route(select 'explain route')",
                Some("/* tidegate: global */ /* a */(select 'explain route')"),
            ),
            ("explain route -- so\nbegin", Some("  -- so\nbegin")),
            ("explain \"route\" select 1", None),
            ("explain select route", None),
            ("explain", None),
        ] {
            assert_eq!(found(sql).as_deref(), expected, "{sql}");
        }
    }
}
