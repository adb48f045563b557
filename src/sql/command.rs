//! The details of session commands.
//!
//! Owns: which setting a SET or RESET is about, and which statement a DEALLOCATE or an EXPLAIN ROUTE.
//! Never: keeps a value; a command is replayed as it was written.

use std::borrow::Cow;
use std::ops::Range;

use super::lexer::{Cursor, Kind};
use super::{Isolation, Modes};

/// What a SET or RESET is about. Names are in lower case, as the server compares them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting<'a> {
    Set {
        name: Cow<'a, str>,
    },
    /// RESET, or SET … TO DEFAULT.
    Reset {
        name: Cow<'a, str>,
    },
    ResetAll,
    /// SET SESSION CHARACTERISTICS: what transactions are unless they say otherwise.
    Transactions(Modes),
    /// Gone with the transaction: SET LOCAL, SET TRANSACTION, SET CONSTRAINTS.
    Local,
}

/// The longest name the server keeps, in bytes; it cuts off the rest.
pub const NAME_MAX: usize = 63;

/// What one SET or RESET is about, or `None` if the statement is neither or is not understood. The
/// session then must ask the server.
pub fn setting(statement: &[u8]) -> Option<Setting<'_>> {
    let mut cursor = Cursor::new(statement, true);
    if cursor.eat("reset") {
        return reset(&mut cursor);
    }
    if !cursor.eat("set") {
        return None;
    }
    let mut ahead = cursor.clone();
    if ahead.eat("local") && !assigns(&ahead) {
        return Some(Setting::Local);
    }
    if ahead.eat("session") && !assigns(&ahead) {
        if ahead.eat("characteristics") {
            return Some(Setting::Transactions(modes(&mut ahead)));
        }
        // SESSION twice is the same as once.
        ahead.eat("session");
        if ahead.at("authorization") {
            let mut value = ahead.clone();
            value.next();
            // The longer spelling of the plain form, which has no `=` and no TO.
            if !assigns(&value) {
                return Some(assigned("session_authorization".into(), &value));
            }
        }
        cursor = ahead;
    }
    let special = cursor.clone();
    if let Some(setting) = words(special) {
        return Some(setting);
    }
    let name = name(&mut cursor)?;
    if !cursor.eat("to") && !cursor.eat_kind(Kind::Operator) {
        // `SET name FROM CURRENT` belongs to functions only.
        return None;
    }
    Some(assigned(name, &cursor))
}

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

/// A SET or RESET of a setting whose name has a dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment<'a> {
    /// In lower case.
    pub name: Cow<'a, str>,
    /// SET LOCAL: for the transaction.
    pub local: bool,
    /// It goes back to the default.
    pub resets: bool,
    /// The value as the server reads it; `None` where it is not one plain word, number or string.
    pub value: Option<String>,
}

/// What one SET or RESET gives a setting whose name has a dot. `None` if the statement is no such one.
/// `conforming` as for [`Lexer::new`](super::lexer::Lexer::new).
pub fn assignment(statement: &[u8], conforming: bool) -> Option<Assignment<'_>> {
    let mut cursor = Cursor::new(statement, conforming);
    let mut local = false;
    let resets = cursor.eat("reset");
    if !resets {
        if !cursor.eat("set") {
            return None;
        }
        let mut ahead = cursor.clone();
        local = ahead.eat("local") && !assigns(&ahead);
        if local || ahead.eat("session") && !assigns(&ahead) {
            cursor = ahead;
        }
    }
    let name = name(&mut cursor).filter(|name| name.contains('.'))?;
    if resets {
        let value = None;
        return cursor.peek().is_none().then_some(Assignment {
            name,
            local,
            resets,
            value,
        });
    }
    if !cursor.eat("to") && !cursor.eat_kind(Kind::Operator) {
        return None;
    }
    Some(Assignment {
        name,
        local,
        resets: cursor.at("default"),
        value: plain_value(statement, cursor, conforming),
    })
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
    while begins && !is_over(&mut cursor) {
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
    ends && is_over(&mut cursor)
}

/// Whether nothing follows but semicolons.
fn is_over(cursor: &mut Cursor<'_>) -> bool {
    let mut ahead = cursor.clone();
    while ahead.eat_kind(Kind::Semicolon) {}
    ahead.peek().is_none()
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

/// The value in a `SELECT set_config('name', 'value', …)` that is no longer than that.
pub fn value_of_set_config(statement: &[u8]) -> Option<String> {
    let mut cursor = Cursor::new(statement, true);
    while cursor.next()?.kind != Kind::Open {}
    let name = cursor.next()?;
    if name.kind != Kind::String || !cursor.eat_kind(Kind::Comma) {
        return None;
    }
    string_value(cursor.next()?.text(statement), true)
}

/// The value at the end of a SET, or in a `SELECT set_config('name', 'value', …)`.
pub fn last_value(statement: &[u8]) -> Option<String> {
    let mut cursor = Cursor::new(statement, true);
    if cursor.at("select") {
        return value_of_set_config(statement);
    }
    loop {
        let value = cursor.clone();
        cursor.next()?;
        if is_over(&mut cursor) {
            return plain_value(statement, value, true);
        }
    }
}

/// The one value that is left to be read.
fn plain_value(statement: &[u8], mut cursor: Cursor<'_>, conforming: bool) -> Option<String> {
    let token = cursor.next()?;
    cursor.eat_kind(Kind::Semicolon);
    if cursor.peek().is_some() {
        return None;
    }
    let text = token.text(statement);
    match token.kind {
        Kind::String => string_value(text, conforming),
        Kind::Word | Kind::QuotedWord => {
            String::from_utf8(token.name(statement)?.into_owned()).ok()
        }
        Kind::Number => Some(str::from_utf8(text).ok()?.to_owned()),
        _ => None,
    }
}

/// What a string constant stands for; `None` for escapes other than those of quotes and backslashes.
pub(super) fn string_value(text: &[u8], conforming: bool) -> Option<String> {
    let (escapes, inner) = match text {
        [b'\'', inner @ .., b'\''] => (!conforming, inner),
        [b'e' | b'E', b'\'', inner @ .., b'\''] => (true, inner),
        _ => return None,
    };
    let mut value = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&byte) = bytes.next() {
        // The first of two that stand for the second.
        let next = match byte {
            b'\'' => Some(*bytes.next().filter(|next| **next == b'\'')?),
            b'\\' if escapes => Some(*bytes.next().filter(|next| b"'\\".contains(next))?),
            _ => None,
        };
        value.push(next.unwrap_or(byte));
    }
    String::from_utf8(value).ok()
}

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

/// The prepared statements that a text names, as the server reads the names, and where they stand: in
/// EXECUTE, alone or within EXPLAIN and CREATE TABLE AS, in DEALLOCATE and in PREPARE.
pub fn prepared_names(sql: &[u8], conforming: bool) -> Vec<(Vec<u8>, Range<usize>)> {
    let mut names = Vec::new();
    for at in super::lexer::statements(sql, conforming) {
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

fn set(name: &'static str) -> Option<Setting<'static>> {
    Some(Setting::Set { name: name.into() })
}

fn reset<'a>(cursor: &mut Cursor<'a>) -> Option<Setting<'a>> {
    let reset = |name: &'static str| Some(Setting::Reset { name: name.into() });
    if cursor.at("all") {
        return Some(Setting::ResetAll);
    }
    let mut ahead = cursor.clone();
    if ahead.eat("time") && ahead.at("zone") {
        return reset("timezone");
    }
    let mut ahead = cursor.clone();
    if ahead.eat("transaction") && ahead.eat("isolation") && ahead.at("level") {
        return reset("transaction_isolation");
    }
    let mut ahead = cursor.clone();
    if ahead.eat("session") && ahead.at("authorization") {
        return reset("session_authorization");
    }
    let name = name(cursor)?;
    cursor.peek().is_none().then_some(Setting::Reset { name })
}

/// The forms of SET that spell their setting in words of their own.
fn words(mut cursor: Cursor<'_>) -> Option<Setting<'_>> {
    let words = [
        "time",
        "names",
        "role",
        "schema",
        "catalog",
        "xml",
        "transaction",
        "constraints",
    ];
    let word = words.into_iter().find(|word| cursor.at(word))?;
    cursor.next();
    // A setting with such a name goes on differently.
    if assigns(&cursor) {
        return None;
    }
    match word {
        "time" => cursor.eat("zone").then(|| match cursor.at("local") {
            true => Setting::Reset {
                name: "timezone".into(),
            },
            false => assigned("timezone".into(), &cursor),
        }),
        // Without a value it is the default.
        "names" if cursor.peek().is_none() => Some(Setting::Reset {
            name: "client_encoding".into(),
        }),
        "names" => Some(assigned("client_encoding".into(), &cursor)),
        // NONE is a value: RESET goes back to what the connection started with.
        "role" => set("role"),
        "schema" => set("search_path"),
        "xml" => cursor.eat("option").then(|| Setting::Set {
            name: "xmloption".into(),
        }),
        "transaction" | "constraints" => Some(Setting::Local),
        // The server has no SET CATALOG.
        _ => None,
    }
}

/// Whether what follows gives a value to a setting whose name has just been read.
fn assigns(cursor: &Cursor<'_>) -> bool {
    cursor.at("to") || cursor.at_kind(Kind::Operator) || cursor.at_kind(Kind::Dot)
}

/// A SET whose value comes next.
fn assigned<'a>(name: Cow<'a, str>, value: &Cursor<'_>) -> Setting<'a> {
    if value.at("default") {
        Setting::Reset { name }
    } else {
        Setting::Set { name }
    }
}

/// A setting's name, which may have parts.
fn name<'a>(cursor: &mut Cursor<'a>) -> Option<Cow<'a, str>> {
    let mut name = lower(cursor.eat_name()?)?;
    while cursor.eat_kind(Kind::Dot) {
        let part = lower(cursor.eat_name()?)?;
        let whole = name.to_mut();
        whole.push('.');
        whole.push_str(&part);
    }
    Some(name)
}

fn lower(name: Cow<'_, [u8]>) -> Option<Cow<'_, str>> {
    let mut name = match name {
        Cow::Borrowed(name) => Cow::Borrowed(str::from_utf8(name).ok()?),
        Cow::Owned(name) => Cow::Owned(String::from_utf8(name).ok()?),
    };
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        name.to_mut().make_ascii_lowercase();
    }
    Some(name)
}

/// What the server keeps of a long name in a text: whole characters.
pub fn clipped(name: &[u8]) -> &[u8] {
    if name.len() <= NAME_MAX {
        return name;
    }
    let mut end = NAME_MAX;
    while end > NAME_MAX - 4 && name[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    &name[..end]
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
            let found = prepared_names(sql.as_bytes(), true);
            let found: Vec<_> = found
                .iter()
                .map(|(name, at)| (str::from_utf8(name).unwrap(), at.start))
                .collect();
            assert_eq!(found, expected, "{sql}");
        }
    }

    #[test]
    fn settings_are_named_as_the_server_names_them() {
        let set = |name: &'static str| Some(Setting::Set { name: name.into() });
        let reset = |name: &'static str| Some(Setting::Reset { name: name.into() });
        for (sql, expected) in [
            ("SET Search_Path TO a, b", set("search_path")),
            ("set session search_path = 'a'", set("search_path")),
            ("set \"DateStyle\" to iso", set("datestyle")),
            ("set myapp.User to 'x'", set("myapp.user")),
            ("set /* c */ a.b.c = 1", set("a.b.c")),
            ("set a := 1", set("a")),
            ("set a to default", reset("a")),
            ("set session a = DEFAULT", reset("a")),
            ("set a = 'default'", set("a")),
            ("set time zone 'UTC'", set("timezone")),
            ("set session time zone interval '1' hour", set("timezone")),
            ("set time zone local", reset("timezone")),
            ("set time zone default", reset("timezone")),
            ("SET TIMEZONE TO 'UTC'", set("timezone")),
            ("set names 'UTF8'", set("client_encoding")),
            ("set names", reset("client_encoding")),
            ("set names default", reset("client_encoding")),
            ("set role app", set("role")),
            ("set role none", set("role")),
            ("set session role 'app'", set("role")),
            ("set role to app", set("role")),
            ("reset role", reset("role")),
            ("set schema 'a'", set("search_path")),
            ("set xml option document", set("xmloption")),
            (
                "set session authorization app",
                set("session_authorization"),
            ),
            (
                "set session session authorization app",
                set("session_authorization"),
            ),
            (
                "set session authorization default",
                reset("session_authorization"),
            ),
            (
                "reset session authorization",
                reset("session_authorization"),
            ),
            (
                "set session characteristics as transaction read only",
                Some(Setting::Transactions(Modes {
                    read_only: Some(true),
                    ..Modes::default()
                })),
            ),
            ("set local a = 1", Some(Setting::Local)),
            ("set local time zone 'UTC'", Some(Setting::Local)),
            ("set local role app", Some(Setting::Local)),
            ("set local session authorization app", Some(Setting::Local)),
            (
                "set transaction isolation level serializable",
                Some(Setting::Local),
            ),
            ("set transaction snapshot '1'", Some(Setting::Local)),
            ("set constraints all deferred", Some(Setting::Local)),
            ("reset all", Some(Setting::ResetAll)),
            ("RESET a.B", reset("a.b")),
            ("reset time zone", reset("timezone")),
            (
                "reset transaction isolation level",
                reset("transaction_isolation"),
            ),
            ("reset", None),
            ("set", None),
            ("set a", None),
            ("set a from current", None),
            ("set catalog 'x'", None),
            ("show a", None),
            ("", None),
        ] {
            assert_eq!(setting(sql.as_bytes()), expected, "{sql}");
        }
    }

    #[test]
    fn values_are_read_as_the_server_reads_them() {
        let value = |sql: &str| assignment(sql.as_bytes(), true).and_then(|a| a.value);
        for (sql, expected) in [
            ("set a.b = 'it''s'", Some("it's")),
            (r"set a.b to E'a\\b\'c'", Some(r"a\b'c")),
            (r"set a.b = 'a\b'", Some(r"a\b")),
            ("set a.b = Word", Some("word")),
            ("set a.b = \"Word\"", Some("Word")),
            ("set a.b = 1.5", Some("1.5")),
            ("set a.b = 'x';", Some("x")),
            (r"set a.b = E'\n'", None),
            ("set a.b = 'a'\n'b'", None),
            ("set a.b = a, b", None),
            ("set a.b = -1", None),
            ("set a.b = $$x$$", None),
            ("set a.b =", None),
        ] {
            assert_eq!(value(sql).as_deref(), expected, "{sql}");
        }
        assert_eq!(assignment(b"set a = 1", true), None, "it has no dot");
        assert_eq!(assignment(b"show a.b", true), None);
        let local = assignment(b"set local a.b = default", true).expect("one");
        assert!(local.local && local.resets && local.name == "a.b");
        let tricky = assignment(br"set a.b = 'x\'", false);
        assert_eq!(tricky.and_then(|a| a.value), None, "it goes on");
        let call = br"SELECT pg_catalog.set_config('a.b', E'x\\y''', false)";
        assert_eq!(value_of_set_config(call).as_deref(), Some(r"x\y'"));
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
