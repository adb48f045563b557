//! SET and RESET, and the one call that does the same.
//!
//! Owns: which setting one of them is about, and the value that it gives. Never: keeps a value; a command is replayed as
//! it was written.

use std::borrow::Cow;

use super::Modes;
use super::command::modes;
use super::lexer::{Cursor, Kind, string_value};

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

/// The name that a setting has now, by this one in lower case: PostgreSQL still knows some by what they were once called.
pub fn present_name(name: &str) -> &str {
    match name {
        "sort_mem" => "work_mem",
        "vacuum_mem" => "maintenance_work_mem",
        name => name,
    }
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

/// Whether it is SET CONSTRAINTS or SET TRANSACTION, which set nothing beyond what a transaction is.
pub fn is_of_transaction(statement: &[u8]) -> bool {
    let mut cursor = Cursor::new(statement, true);
    cursor.eat("set") && (cursor.at("constraints") || cursor.at("transaction"))
}

/// The setting, in lower case, that `SET LOCAL name = …` is about. `None` if the statement is no such one.
pub fn local_name(statement: &[u8]) -> Option<Cow<'_, str>> {
    let mut cursor = Cursor::new(statement, true);
    let is_local = cursor.eat("set") && cursor.eat("local");
    let name = is_local.then(|| name(&mut cursor)).flatten()?;
    (cursor.at("to") || cursor.at_kind(Kind::Operator)).then_some(name)
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
        if cursor.is_over() {
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
    let present = present_name(&name);
    match *present == *name {
        true => Some(name),
        false => Some(present.to_owned().into()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_setting_is_named() {
        for (sql, name) in [
            (
                "SET LOCAL Statement_Timeout = 100",
                Some("statement_timeout"),
            ),
            ("set local app.\"User\" to default", Some("app.user")),
            ("set local time zone 'UTC'", None),
            ("set local role app", None),
            ("set a = 1", None),
            ("set constraints all deferred", None),
        ] {
            assert_eq!(local_name(sql.as_bytes()).as_deref(), name, "{sql}");
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
            ("set Sort_Mem = 1", set("work_mem")),
            ("reset vacuum_mem", reset("maintenance_work_mem")),
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
}
