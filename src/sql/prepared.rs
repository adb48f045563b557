//! Statements that name prepared ones.
//!
//! Owns: which names they give, and where these stand in a text. Never: knows which statements there are.

use std::borrow::Cow;
use std::ops::Range;

use super::lexer::{Cursor, Kind, clipped, statements};

/// The name of the statement that a DEALLOCATE drops, as the server reads it, and where the name
/// stands in the statement. `None` if it drops all of them or is no such statement.
pub fn deallocate(statement: &[u8]) -> Option<(Cow<'_, [u8]>, Range<usize>)> {
    let mut cursor = Cursor::new(statement, true);
    if !cursor.eat("deallocate") {
        return None;
    }
    let mut ahead = cursor.clone();
    // PREPARE may be left out, and may be the name.
    if ahead.eat("prepare") && ahead.peek().is_some() {
        cursor = ahead;
    }
    let token = cursor.peek()?;
    if token.is(statement, "all") {
        return None;
    }
    let name = match cursor.eat_name()? {
        Cow::Borrowed(name) => Cow::Borrowed(clipped(name)),
        Cow::Owned(mut name) => {
            name.truncate(clipped(&name).len());
            Cow::Owned(name)
        }
    };
    cursor
        .peek()
        .is_none()
        .then_some((name, token.start..token.end))
}

/// The prepared statements that a text names, as the server reads the names, and where they stand: in
/// EXECUTE, alone or within EXPLAIN and CREATE TABLE AS, in DEALLOCATE and in PREPARE.
pub fn names(sql: &[u8], conforming: bool) -> Vec<(Vec<u8>, Range<usize>)> {
    let mut names = Vec::new();
    for at in statements(sql, conforming) {
        let statement = &sql[at.clone()];
        let mut cursor = Cursor::new(statement, conforming);
        let found = if cursor.at("deallocate") {
            deallocate(statement).map(|(name, place)| (name.into_owned(), place))
        } else if cursor.eat("execute") || cursor.eat("prepare") {
            named(&mut cursor)
        } else if cursor.at("explain") || cursor.at("create") {
            executed(&mut cursor, statement)
        } else {
            None
        };
        names.extend(
            found.map(|(name, place)| (name, at.start + place.start..at.start + place.end)),
        );
    }
    names
}

fn named(cursor: &mut Cursor<'_>) -> Option<(Vec<u8>, Range<usize>)> {
    let token = cursor.peek()?;
    let name = cursor.eat_name()?;
    Some((clipped(&name).to_vec(), token.start..token.end))
}

/// The statement that an EXECUTE within another statement names.
fn executed(cursor: &mut Cursor<'_>, statement: &[u8]) -> Option<(Vec<u8>, Range<usize>)> {
    let mut before = cursor.next()?;
    loop {
        let leads = before.kind == Kind::Close
            || ["explain", "analyze", "analyse", "verbose", "as"]
                .iter()
                .any(|word| before.is(statement, word));
        if leads && cursor.eat("execute") {
            return named(cursor);
        }
        before = cursor.next()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_statements_are_found_by_their_names() {
        for (sql, expected) in [
            ("select 1; EXECUTE A(1)", &[("a", 18)][..]),
            (
                "deallocate prepare \"B\"; prepare c as select 1",
                &[("B", 19), ("c", 32)],
            ),
            ("explain (analyze) execute d", &[("d", 26)]),
            ("explain analyze verbose execute d", &[("d", 32)]),
            (
                "create temp table t as execute e (1) with no data",
                &[("e", 31)],
            ),
            ("grant execute on function f() to g", &[]),
            ("explain select execute", &[]),
            ("deallocate all", &[]),
        ] {
            let found = names(sql.as_bytes(), true);
            let found: Vec<_> = found
                .iter()
                .map(|(name, at)| (str::from_utf8(name).unwrap(), at.start))
                .collect();
            assert_eq!(found, expected, "{sql}");
        }
    }

    #[test]
    fn deallocate_names_one_statement() {
        let found = |sql: &'static str| {
            deallocate(sql.as_bytes()).map(|(name, range)| {
                let name = String::from_utf8(name.into_owned()).expect("text");
                (name, &sql[range])
            })
        };
        let is = |name: &str, token| Some((name.to_owned(), token));
        assert_eq!(found("DEALLOCATE Foo"), is("foo", "Foo"));
        assert_eq!(
            found("deallocate prepare \"F\"\"o\""),
            is("F\"o", "\"F\"\"o\"")
        );
        assert_eq!(
            found("deallocate /* x */ prepare"),
            is("prepare", "prepare")
        );
        assert_eq!(found("deallocate all"), None);
        assert_eq!(found("deallocate prepare all"), None);
        assert_eq!(found("deallocate \"all\""), is("all", "\"all\""));
        assert_eq!(found("deallocate a b"), None);
        assert_eq!(found("deallocate"), None);
        let long = format!("deallocate {}é", "a".repeat(62));
        let (name, _) = deallocate(long.as_bytes()).expect("a name");
        assert_eq!(name.len(), 62, "no character is cut in two");
    }
}
