//! Owns: which roles and databases a statement is about that creates, alters or drops some. Never: asks whether there
//! are such.

use super::lexer::{Cursor, Kind, clipped};

/// Whose new sessions a statement may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Altered {
    Role(Box<[u8]>),
    Database(Box<[u8]>),
    /// CURRENT_USER, or CURRENT_ROLE.
    CurrentRole,
    /// SESSION_USER.
    SessionRole,
    /// Everybody's, or nobody knows whose.
    All,
}

/// Whose new sessions a CREATE, ALTER or DROP of a role or a database changes. `conforming` as for
/// [`Lexer::new`](super::lexer::Lexer::new).
pub fn altered(statement: &[u8], conforming: bool) -> Vec<Altered> {
    read(statement, conforming).unwrap_or_else(|| vec![Altered::All])
}

fn read(statement: &[u8], conforming: bool) -> Option<Vec<Altered>> {
    let mut cursor = Cursor::new(statement, conforming);
    let drops = cursor.eat("drop");
    if !(drops || cursor.eat("alter") || cursor.eat("create")) {
        return None;
    }
    if cursor.eat("database") {
        return Some(vec![Altered::Database(existing(&mut cursor)?)]);
    }
    if !(cursor.eat("role") || cursor.eat("user") || cursor.eat("group")) {
        return None;
    }
    let mut all = vec![role(&mut cursor)?];
    while drops && cursor.eat_kind(Kind::Comma) {
        all.push(role(&mut cursor)?);
    }
    if all == [Altered::All] && cursor.eat("in") && cursor.eat("database") {
        // For which its owner's rights do.
        all = vec![Altered::Database(existing(&mut cursor)?)];
    }
    Some(all)
}

fn role(cursor: &mut Cursor<'_>) -> Option<Altered> {
    let special = [
        ("all", Altered::All),
        ("current_user", Altered::CurrentRole),
        ("current_role", Altered::CurrentRole),
        ("session_user", Altered::SessionRole),
    ];
    let mut special = special.into_iter();
    let found = special.find_map(|(word, altered)| cursor.eat(word).then_some(altered));
    match found {
        Some(altered) => Some(altered),
        None => existing(cursor).map(Altered::Role),
    }
}

/// The name that comes next, perhaps behind IF EXISTS.
fn existing(cursor: &mut Cursor<'_>) -> Option<Box<[u8]>> {
    let mut ahead = cursor.clone();
    if ahead.eat("if") && ahead.eat("exists") {
        *cursor = ahead;
    }
    cursor.eat_name().map(|name| clipped(&name).into())
}

/// The database that nobody else may be connected to for a CREATE, ALTER or DROP of a database to succeed.
pub fn to_be_left(statement: &[u8], conforming: bool) -> Option<Box<[u8]>> {
    let mut cursor = Cursor::new(statement, conforming);
    let creates = cursor.eat("create");
    if !(creates || cursor.eat("alter") || cursor.eat("drop")) || !cursor.eat("database") {
        return None;
    }
    let name = existing(&mut cursor);
    if !creates {
        return name;
    }
    while cursor.peek().is_some() {
        if cursor.eat("template") {
            cursor.eat_kind(Kind::Operator);
            return match cursor.peek()?.text(statement) {
                [b'\'', name @ .., b'\''] => Some(clipped(name).into()),
                _ => existing(&mut cursor),
            };
        }
        cursor.next();
    }
    Some(Box::from(&b"template1"[..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_databases_are_told() {
        let role = |name: &str| Altered::Role(name.as_bytes().into());
        let database = |name: &str| Altered::Database(name.as_bytes().into());
        for (sql, expected) in [
            ("ALTER ROLE me SET work_mem = '4MB'", vec![role("me")]),
            ("alter user Me in database d set x = 1", vec![role("me")]),
            ("ALTER ROLE \"Me\" RENAME TO you", vec![role("Me")]),
            ("ALTER ROLE all SET x = 1", vec![Altered::All]),
            (
                "ALTER ROLE ALL IN DATABASE d SET x = 1",
                vec![database("d")],
            ),
            ("ALTER ROLE \"all\" SET x = 1", vec![role("all")]),
            (
                "ALTER USER current_user RESET ALL",
                vec![Altered::CurrentRole],
            ),
            (
                "ALTER ROLE CURRENT_ROLE RESET ALL",
                vec![Altered::CurrentRole],
            ),
            (
                "ALTER ROLE session_user RESET ALL",
                vec![Altered::SessionRole],
            ),
            ("ALTER GROUP g ADD USER u", vec![role("g")]),
            (
                "DROP ROLE IF EXISTS a, \"B\", CURRENT_USER",
                vec![role("a"), role("B"), Altered::CurrentRole],
            ),
            ("DROP ROLE if, exists", vec![role("if"), role("exists")]),
            (
                "DROP DATABASE IF EXISTS d WITH (FORCE)",
                vec![database("d")],
            ),
            ("ALTER DATABASE d SET x = 1", vec![database("d")]),
            ("CREATE DATABASE d TEMPLATE t", vec![database("d")]),
            ("ALTER ROLE U&\"me\" SET x = 1", vec![Altered::All]),
            ("ALTER ROLE", vec![Altered::All]),
            ("SELECT 1", vec![Altered::All]),
        ] {
            assert_eq!(altered(sql.as_bytes(), true), expected, "{sql}");
        }
    }

    #[test]
    fn a_database_has_to_be_left_that_is_copied_renamed_or_dropped() {
        for (sql, expected) in [
            ("CREATE DATABASE d", Some("template1")),
            ("CREATE DATABASE d OWNER app", Some("template1")),
            ("CREATE DATABASE d OWNER app TEMPLATE t", Some("t")),
            ("CREATE DATABASE d template = \"T\" ENCODING 'x'", Some("T")),
            ("CREATE DATABASE d TEMPLATE 't'", Some("t")),
            ("DROP DATABASE IF EXISTS d", Some("d")),
            ("ALTER DATABASE d RENAME TO e", Some("d")),
            ("DROP TABLE d", None),
            ("SELECT 'DROP DATABASE d'", None),
        ] {
            let left = to_be_left(sql.as_bytes(), true);
            assert_eq!(left.as_deref(), expected.map(str::as_bytes), "{sql}");
        }
    }
}
