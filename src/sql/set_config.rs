//! The settings that a text changes by calling `set_config`.
//!
//! Owns: which names its calls give. Never: decides a class; a text that calls it is a write, and
//! this tells the session what to look at afterwards.

use super::lexer::{Cursor, Kind, NESTING_MAX, Token, string_content, string_value};

/// What the calls of one text change beyond their transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub names: Vec<Name>,
    /// Some call's name can't be told from the text.
    pub unknown: bool,
    /// The text is nothing but these calls, of the function that is built in.
    pub only: Option<Vec<Told>>,
    /// What it makes of the proxy's own settings, for however long: each by its name, and the value where that is
    /// one constant or parameter.
    pub own: Vec<(Name, Option<Value>)>,
    /// It may be one of them whose name can't be told, if only for its transaction.
    pub own_unknown: bool,
}

/// What the names of the proxy's own settings begin with.
pub const OWN_PREFIX: &str = "tidegate.";

/// A call in a text that is nothing but such calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    pub name: Argument<'a>,
    pub value: Argument<'a>,
    pub scope: Scope,
}

/// How long it lasts what a call sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Transaction,
    Session,
    /// By the statement's parameter of this number, from 1.
    Parameter(u16),
}

/// A call in such a text, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub name: Name,
    /// `None` if it is written in a way that is not read.
    pub value: Option<Value>,
    pub scope: Scope,
}

impl Told {
    /// Whether what it sets is gone with the transaction.
    pub fn is_local(&self) -> bool {
        self.scope == Scope::Transaction
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument<'a> {
    /// A string constant, as it is written.
    Constant(&'a [u8]),
    /// The digits of a whole number, which is cast to a text.
    Digits(&'a [u8]),
    /// The statement's parameter of this number, from 1.
    Parameter(u16),
}

/// The setting that a call names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// In lower case, as the server compares it.
    Literal(Box<str>),
    /// By the statement's parameter of this number, from 1.
    Parameter(u16),
}

/// The value that a call gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Literal(Box<str>),
    /// By the statement's parameter of this number, from 1.
    Parameter(u16),
}

/// The types to which a name or a value may be cast.
const TEXTS: [&str; 2] = ["text", "varchar"];

/// How much of the arguments of one text's calls is read, in bytes: calls within calls are read once
/// for each that they are in.
const READ_BYTES_MAX: usize = 1 << 20;

/// What `sql` changes. Calls whose last argument is plainly `true` end with their transaction, and
/// are left out.
pub fn changes(sql: &[u8], conforming: bool) -> Changes {
    let has = |word| Cursor::new(sql, conforming).any(|token| token.is(sql, word));
    let (is_block, is_call) = (has("do"), has("call"));
    let mut reader = Reader::new(conforming, is_block);
    reader.read(sql, (is_block || is_call).then_some(NESTING_MAX), true);
    let calls = calls(sql, conforming);
    let told = |call: &Call<'_>| told(call, conforming);
    reader.changes.only = calls.and_then(|calls| calls.iter().map(told).collect());
    reader.changes
}

/// `None` if its name is written in a way that is not read.
fn told(call: &Call<'_>, conforming: bool) -> Option<Told> {
    let constant = |text| string_value(text, conforming);
    Some(Told {
        name: match call.name {
            Argument::Constant(text) => Name::Literal(constant(text)?.to_ascii_lowercase().into()),
            Argument::Digits(digits) => Name::Literal(text_of(digits)),
            Argument::Parameter(number) => Name::Parameter(number),
        },
        value: match call.value {
            Argument::Constant(text) => constant(text).map(|value| Value::Literal(value.into())),
            Argument::Digits(digits) => Some(Value::Literal(text_of(digits))),
            Argument::Parameter(number) => Some(Value::Parameter(number)),
        },
        scope: call.scope,
    })
}

/// What a function with this body changes.
pub fn changes_of_body(body: &[u8]) -> Changes {
    let mut reader = Reader::new(true, true);
    reader.read(body, Some(NESTING_MAX - 1), true);
    reader.changes
}

/// What the strings in `sql` change if whatever they are handed to runs them.
pub fn changes_of_strings(sql: &[u8], conforming: bool) -> Changes {
    let mut reader = Reader::new(conforming, false);
    for token in Cursor::new(sql, conforming).filter(|token| token.kind == Kind::String) {
        reader.read(string_content(token.text(sql)), Some(NESTING_MAX - 1), true);
    }
    reader.changes
}

/// Whether a text, or its normal form, does nothing but call `set_config` with constants and parameters: whatever these
/// are, no data is read or written.
pub fn is_all(sql: &[u8], conforming: bool) -> bool {
    let mut cursor = Cursor::new(sql, conforming);
    if !cursor.eat("select") {
        return false;
    }
    loop {
        if !eat_name(&mut cursor) {
            return false;
        }
        let Some(arguments) = cursor.parenthesis() else {
            return false;
        };
        let is_plain = |token: Token| match token.kind {
            Kind::String | Kind::Number | Kind::Parameter | Kind::Comma => true,
            Kind::Word => PLAIN.iter().any(|word| token.is(arguments, word)),
            _ => token.text(arguments) == b"::",
        };
        if !Cursor::new(arguments, conforming).all(is_plain) {
            return false;
        }
        match eat_label(&mut cursor) {
            Some(true) => {}
            Some(false) => return true,
            None => return false,
        }
    }
}

/// The words that may be among the arguments of a call which does nothing else.
const PLAIN: [&str; 6] = ["true", "false", "text", "varchar", "bool", "boolean"];

/// The calls of `SELECT set_config(name, value, is_local), …`; `None` if the text is anything else or more.
pub fn calls(sql: &[u8], conforming: bool) -> Option<Vec<Call<'_>>> {
    let mut cursor = Cursor::new(sql, conforming);
    let mut calls = Vec::new();
    if !cursor.eat("select") {
        return None;
    }
    loop {
        if !eat_name(&mut cursor) || !cursor.eat_kind(Kind::Open) {
            return None;
        }
        let [name, value] = [(); 2].map(|()| {
            let argument = argument(&mut cursor, sql, &TEXTS);
            argument.filter(|_| cursor.eat_kind(Kind::Comma))
        });
        let (name, value) = (name?, value?);
        let scope = scope(&mut cursor, sql)?;
        if !cursor.eat_kind(Kind::Close) {
            return None;
        }
        calls.push(Call { name, value, scope });
        if !eat_label(&mut cursor)? {
            return Some(calls);
        }
    }
}

/// The calls of a text that is nothing but such as end with their transaction.
pub fn locals(sql: &[u8], conforming: bool) -> Option<Vec<Call<'_>>> {
    let is_local = |call: &Call<'_>| call.scope == Scope::Transaction;
    calls(sql, conforming).filter(|calls| calls.iter().all(is_local))
}

/// Reads the function's name.
fn eat_name(cursor: &mut Cursor<'_>) -> bool {
    (!cursor.eat("pg_catalog") || cursor.eat_kind(Kind::Dot)) && cursor.eat("set_config")
}

/// Reads what a call's column is called, and whether another call follows. `None` if it is anything but that and the
/// end.
fn eat_label(cursor: &mut Cursor<'_>) -> Option<bool> {
    if cursor.eat("as") {
        cursor.eat_name()?;
    }
    if cursor.eat_kind(Kind::Comma) {
        return Some(true);
    }
    cursor.eat_kind(Kind::Semicolon);
    cursor.peek().is_none().then_some(false)
}

/// Whether what a call sets ends with its transaction.
fn scope<'a>(cursor: &mut Cursor<'a>, sql: &'a [u8]) -> Option<Scope> {
    if cursor.eat("true") {
        return Some(Scope::Transaction);
    }
    if cursor.eat("false") {
        return Some(Scope::Session);
    }
    match argument(cursor, sql, &["bool", "boolean"])? {
        Argument::Parameter(number) => Some(Scope::Parameter(number)),
        Argument::Constant(_) | Argument::Digits(_) => None,
    }
}

fn text_of(digits: &[u8]) -> Box<str> {
    String::from_utf8_lossy(digits).into()
}

/// Whether a number is what PostgreSQL writes for it.
fn is_written_so(number: &[u8]) -> bool {
    const DIGITS_MAX: usize = 9;
    let begins = number.first().is_some_and(|&digit| digit != b'0') || number == b"0";
    begins && number.len() <= DIGITS_MAX && number.iter().all(u8::is_ascii_digit)
}

/// A constant or a parameter, with or without a cast to one of these types.
fn argument<'a>(cursor: &mut Cursor<'a>, sql: &'a [u8], types: &[&str]) -> Option<Argument<'a>> {
    let token = cursor.next()?;
    let text = token.text(sql);
    let argument = match token.kind {
        Kind::String => Argument::Constant(text),
        Kind::Number if is_written_so(text) => Argument::Digits(text),
        Kind::Parameter => {
            let digits = str::from_utf8(text.get(1..)?).ok()?;
            Argument::Parameter(digits.parse().ok()?)
        }
        _ => return None,
    };
    if cursor.peek().is_some_and(|next| next.text(sql) == b"::") {
        cursor.next();
        types.iter().any(|name| cursor.eat(name)).then_some(())?;
    } else if matches!(argument, Argument::Digits(_)) {
        return None;
    }
    Some(argument)
}

/// The same calls with the values of their parameters in place of these; `None` if one has none that is a text.
pub fn spelled<'a>(
    locals: &[Call<'_>],
    mut value: impl FnMut(u16) -> Option<&'a [u8]>,
    literal: impl Fn(&mut Vec<u8>, &[u8]),
) -> Option<Vec<u8>> {
    let mut sql = b"SELECT ".to_vec();
    for (index, call) in locals.iter().enumerate() {
        sql.extend_from_slice(match index {
            0 => b"pg_catalog.set_config(".as_slice(),
            _ => b", pg_catalog.set_config(",
        });
        for argument in [call.name, call.value] {
            match argument {
                Argument::Constant(text) => sql.extend_from_slice(text),
                Argument::Digits(digits) => literal(&mut sql, digits),
                Argument::Parameter(number) => literal(&mut sql, value(number)?),
            }
            sql.extend_from_slice(b", ");
        }
        sql.extend_from_slice(b"true)");
    }
    Some(sql)
}

struct Reader {
    conforming: bool,
    /// Whether strings may be parts of what is run.
    in_parts: bool,
    /// How much may still be read of calls' arguments, in bytes.
    left: usize,
    changes: Changes,
}

impl Reader {
    fn new(conforming: bool, in_parts: bool) -> Reader {
        Reader {
            conforming,
            in_parts,
            left: READ_BYTES_MAX,
            changes: Changes::default(),
        }
    }

    /// `nesting`: how much deeper strings are read, if they are run. `begins` if it may begin a statement.
    fn read(&mut self, sql: &[u8], nesting: Option<usize>, mut begins: bool) {
        let is_run = nesting.is_some_and(|nesting| nesting < NESTING_MAX);
        let mut cursor = Cursor::new(sql, self.conforming);
        // What comes after `||` goes on with a text: in `'UPDATE ' || t || ' SET '`, nothing is set.
        let mut continued = false;
        while let Some(token) = cursor.next() {
            match token.kind {
                Kind::Word | Kind::QuotedWord
                    if cursor.at_kind(Kind::Open)
                        && token.name(sql).is_some_and(|name| *name == *b"set_config") =>
                {
                    if self.left == 0 {
                        self.changes.unknown = true;
                        return;
                    }
                    let arguments = cursor.clone().parenthesis();
                    let read = arguments.unwrap_or(cursor.rest()).len();
                    self.left = self.left.saturating_sub(read);
                    self.call(arguments.unwrap_or(&[]));
                }
                // A name in escapes could be any.
                Kind::UnicodeWord if cursor.at_kind(Kind::Open) => self.changes.unknown = true,
                Kind::Word if is_run && token.is(sql, "set") => {
                    let is_spaced = sql.get(token.end).is_some_and(u8::is_ascii_whitespace);
                    self.set(cursor.clone(), begins && is_spaced);
                }
                Kind::String => {
                    let inner = string_content(token.text(sql));
                    match nesting {
                        Some(0) => self.changes.unknown |= !inner.is_empty(),
                        Some(nesting) => self.read(inner, Some(nesting - 1), !continued),
                        None => {}
                    }
                }
                _ => {}
            }
            // Quotes that are doubled within a string are read as a string without anything.
            begins = match token.kind {
                Kind::String => !continued,
                kind => kind == Kind::Semicolon,
            };
            continued = self.in_parts && token.text(sql) == b"||";
        }
    }

    /// One call, by what is between its parentheses.
    fn call(&mut self, arguments: &[u8]) {
        let mut parts = vec![Vec::new()];
        let mut depth = 0usize;
        for token in Cursor::new(arguments, self.conforming) {
            match token.kind {
                Kind::Open | Kind::OpenBracket => depth += 1,
                Kind::Close | Kind::CloseBracket => depth = depth.saturating_sub(1),
                Kind::Comma if depth == 0 => {
                    parts.push(Vec::new());
                    continue;
                }
                _ => {}
            }
            if let Some(part) = parts.last_mut() {
                part.push(token);
            }
        }
        let name = parts.first().and_then(|part| name(part, arguments));
        match &name {
            Some(Name::Literal(name)) if !name.starts_with(OWN_PREFIX) => {}
            Some(name) => {
                let value = parts.get(1).and_then(|part| self.value(part, arguments));
                self.changes.own.push((name.clone(), value));
            }
            None => self.changes.own_unknown = true,
        }
        let is_local = |part: &Vec<Token>| matches!(part[..], [word] if word.is(arguments, "true"));
        if parts.get(2).is_some_and(is_local) {
            return;
        }
        match name {
            Some(name) => self.changes.names.push(name),
            None => self.changes.unknown = true,
        }
    }

    /// A second argument that is a constant or a parameter.
    fn value(&self, argument: &[Token], sql: &[u8]) -> Option<Value> {
        let text = sql.get(argument.first()?.start..argument.last()?.end)?;
        let mut cursor = Cursor::new(text, self.conforming);
        let value = match self::argument(&mut cursor, text, &TEXTS)? {
            Argument::Constant(text) => Value::Literal(string_value(text, self.conforming)?.into()),
            Argument::Digits(digits) => Value::Literal(text_of(digits)),
            Argument::Parameter(number) => Value::Parameter(number),
        };
        cursor.peek().is_none().then_some(value)
    }

    /// A SET inside text that is run: only names with a dot matter, the others are listed by the server.
    /// `begins` if it may begin a statement.
    fn set(&mut self, mut cursor: Cursor<'_>, begins: bool) {
        // What is handed over may be any text.
        if !self.in_parts && !begins {
            return;
        }
        let is_local = cursor.eat("local");
        if !is_local {
            cursor.eat("session");
        }
        let mut parts = Vec::new();
        let mut goes_on = true;
        while goes_on && let Some(part) = cursor.eat_name() {
            parts.push(String::from_utf8_lossy(&part).to_ascii_lowercase());
            goes_on = cursor.eat_kind(Kind::Dot);
        }
        let assigns = cursor.at("to") || cursor.at_kind(Kind::Operator);
        // What is put together as it runs: `SET app.%I = …`, `SET app.` || name || ….
        let is_part = match cursor.peek().map(|token| token.kind) {
            Some(Kind::Operator) => cursor.rest().starts_with(b"%"),
            // A word without a dot is all of a name: `SET ROLE ` || name.
            None | Some(Kind::Broken | Kind::String) => goes_on || parts.len() > 1,
            _ => false,
        };
        if self.in_parts && begins && is_part {
            self.changes.own_unknown = true;
            self.changes.unknown |= !is_local;
        } else if assigns && parts.len() > 1 {
            let name = Name::Literal(parts.join(".").into_boxed_str());
            if parts[0] == OWN_PREFIX.trim_end_matches('.') {
                self.changes.own.push((name.clone(), None));
            }
            if !is_local {
                self.changes.names.push(name);
            }
        }
    }
}

/// A first argument that is a constant or a parameter, with or without a cast.
fn name(argument: &[Token], sql: &[u8]) -> Option<Name> {
    let (first, cast) = argument.split_first()?;
    let cast_only = match cast {
        [] => true,
        [operator, types @ ..] => {
            operator.text(sql) == b"::"
                && types
                    .iter()
                    .all(|t| matches!(t.kind, Kind::Word | Kind::Dot))
        }
    };
    let text = first.text(sql);
    match first.kind {
        Kind::String if cast_only => Some(Name::Literal(constant(text)?)),
        Kind::Parameter if cast_only => {
            let digits = str::from_utf8(text.get(1..)?).ok()?;
            Some(Name::Parameter(digits.parse().ok()?))
        }
        _ => None,
    }
}

/// The value of a plain string constant, in lower case; `None` for any form with escapes.
fn constant(text: &[u8]) -> Option<Box<str>> {
    let inner = text.strip_prefix(b"'")?.strip_suffix(b"'")?;
    let plain = |b: &u8| !matches!(b, b'\'' | b'\\');
    let inner = inner.iter().all(plain).then_some(inner)?;
    Some(str::from_utf8(inner).ok()?.to_ascii_lowercase().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sql: &str) -> (Vec<String>, bool) {
        let Changes { names, unknown, .. } = changes(sql.as_bytes(), true);
        let text = |name| match name {
            Name::Literal(name) => String::from(name),
            Name::Parameter(number) => format!("${number}"),
        };
        (names.into_iter().map(text).collect(), unknown)
    }

    #[test]
    fn names_are_found_in_calls() {
        for (sql, names, unknown) in [
            ("select 1", &[][..], false),
            ("select set_config('App.X', '1', false)", &["app.x"], false),
            (
                "select pg_catalog.set_config('a.b'::text, f(1, 2), false), \"set_config\"('c', '', $2)",
                &["a.b", "c"],
                false,
            ),
            ("select set_config('a.b', '1', true)", &[], false),
            ("select set_config('a.b', '1', not true)", &["a.b"], false),
            ("select set_config($1, $2, false)", &["$1"], false),
            ("select set_config($3::text, $2, $1)", &["$3"], false),
            ("select set_config('a.' || 'b', '1', false)", &[], true),
            ("select set_config(name, '1', false) from t", &[], true),
            ("select set_config(E'a\\.b', '1', false)", &[], true),
            (
                "select set_config('a', set_config('b', '1', false), false)",
                &["a", "b"],
                false,
            ),
            ("select U&\"set_config\"('a', '1', false)", &[], true),
            ("select 'set_config(''a'', 1)'", &[], false),
        ] {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(found(sql), (names, unknown), "{sql}");
        }
    }

    #[test]
    fn the_proxys_own_settings_are_told_with_their_values() {
        let told = |sql: &str| {
            let Changes {
                own, own_unknown, ..
            } = changes(sql.as_bytes(), true);
            let told = own.iter().map(|(name, value)| match (name, value) {
                (Name::Literal(name), Some(Value::Literal(value))) => format!("{name}={value}"),
                (Name::Literal(name), Some(Value::Parameter(number))) => {
                    format!("{name}=${number}")
                }
                (Name::Literal(name), None) => format!("{name}=?"),
                (Name::Parameter(number), _) => format!("${number}"),
            });
            (told.collect::<Vec<_>>().join(" "), own_unknown)
        };
        for (sql, own, unknown) in [
            ("select set_config('app.x', f(), true)", "", false),
            (
                "select set_config('Tidegate.X', 'it''s A', true)",
                "tidegate.x=it's A",
                false,
            ),
            (
                "select set_config('tidegate.x', $2::text, false), set_config($1, '', $3)",
                "tidegate.x=$2 $1",
                false,
            ),
            (
                "select set_config('tidegate.x', 'a' || 'b', true)",
                "tidegate.x=?",
                false,
            ),
            (
                "select set_config('tidegate.x', lower('a'), true)",
                "tidegate.x=?",
                false,
            ),
            ("select set_config(n, 'a', true) from t", "", true),
            (
                "do $$ begin set local tidegate.x = 'a'; set b.c = 1; end $$",
                "tidegate.x=?",
                false,
            ),
            (
                "do $$ begin execute 'set local ' || n || ' = 1'; end $$",
                "",
                true,
            ),
        ] {
            assert_eq!(told(sql), (own.to_owned(), unknown), "{sql}");
        }
    }

    #[test]
    fn names_are_found_in_text_that_is_handed_over() {
        for (sql, names, unknown) in [
            ("select run('select 1')", &[][..], false),
            (
                "select run('SET App.X = 1; set session b.c to 2')",
                &["app.x", "b.c"],
                false,
            ),
            (
                "select run('select set_config($$a.b$$, ''1'', false)')",
                &[],
                true,
            ),
            (
                "select run('set work_mem = 1', 'set local a.b = 1')",
                &[],
                false,
            ),
            (
                "insert into t values ('set', 'Set A', 'we set a.b = 1')",
                &[],
                false,
            ),
            ("select set_config(x, '1', false)", &[], false),
        ] {
            let found = changes_of_strings(sql.as_bytes(), true);
            let literal = |name: &&str| Name::Literal((*name).into());
            let names: Vec<_> = names.iter().map(literal).collect();
            assert_eq!((found.names, found.unknown), (names, unknown), "{sql}");
        }
    }

    #[test]
    fn what_only_sets_for_the_transaction_can_be_said_again() {
        let again = |sql: &str| {
            let calls = locals(sql.as_bytes(), true)?;
            let quoted = |out: &mut Vec<u8>, text: &[u8]| {
                out.extend_from_slice(&[b"'", text, b"'"].concat());
            };
            let values = [&b"one"[..], b"two"];
            let value = |number: u16| values.get(usize::from(number) - 1).copied();
            let said = spelled(&calls, value, quoted)?;
            assert!(changes(sql.as_bytes(), true).only.is_some());
            String::from_utf8(said).ok()
        };
        for (sql, expected) in [
            (
                "select set_config('a.b', 'c', true)",
                Some("SELECT pg_catalog.set_config('a.b', 'c', true)"),
            ),
            (
                "SELECT pg_catalog.set_config($2, E'\\x', TRUE) AS x, set_config('role'::text, $1::text, true);",
                Some(
                    "SELECT pg_catalog.set_config('two', E'\\x', true), \
                     pg_catalog.set_config('role', 'one', true)",
                ),
            ),
            (
                "select set_config('a', 70::text, true)",
                Some("SELECT pg_catalog.set_config('a', '70', true)"),
            ),
            ("select set_config('a', 70, true)", None),
            ("select set_config('a', 007::text, true)", None),
            ("select set_config('a', 7.0::text, true)", None),
            ("select set_config('a', 0x10::text, true)", None),
            ("select set_config('a', $3, true)", None),
            ("select set_config('a', 'b', false)", None),
            ("select set_config('a', 'b', not true)", None),
            ("select set_config('a', 'b' 'c', true)", None),
            ("select set_config('a', f(), true)", None),
            ("select x.set_config('a', 'b', true)", None),
            ("select set_config('a', 'b', true) from t", None),
            ("select set_config('a', 'b', true), f()", None),
            ("select set_config('a', 'b', true) where f()", None),
            ("select set_config('a', 'b', true); select 1", None),
            ("select distinct set_config('a', 'b', true)", None),
            ("select", None),
        ] {
            assert_eq!(again(sql).as_deref(), expected, "{sql}");
        }
    }

    #[test]
    fn calls_are_told_where_their_names_can_be_read() {
        let told = |sql: &str| changes(sql.as_bytes(), true).only.map(|only| only.len());
        for (sql, expected) in [
            (
                "select set_config('a', E'\\x41', false), set_config($1, $2, $3)",
                Some(2),
            ),
            ("select set_config('a', $$b$$, false)", Some(1)),
            ("select set_config($$a$$, 'b', false)", None),
            ("select set_config(U&'a', 'b', true)", None),
            ("select set_config(N'a', 'b', true)", None),
            ("select set_config(E'\\x41', 'b', true)", None),
        ] {
            assert_eq!(told(sql), expected, "{sql}");
        }
    }

    /// Read once for each call that it is in, either would take minutes.
    #[test]
    fn hostile_texts_are_read_in_bounded_time() {
        let nested = "set_config(".repeat(50_000);
        let open = found(&format!("select {nested}"));
        assert_eq!(open, (vec![], true));
        let closed = found(&format!("select {nested}'a'{}", ")".repeat(50_000)));
        assert_eq!(closed, (vec![], true));
    }

    #[test]
    fn names_are_found_in_text_that_is_run() {
        for (sql, names, unknown) in [
            ("do $$ begin perform 1; end $$", &[][..], false),
            (
                "do $x$ begin perform set_config('a.b', '1', false); end $x$",
                &["a.b"],
                false,
            ),
            (
                "do $$ begin set local a.c = 1; set a.b to 1; execute 'set session c.d = 2'; end $$",
                &["a.b", "c.d"],
                false,
            ),
            (
                "do $$ begin update t set a = 1; execute format('update %I set x = 1', 't'); end $$",
                &[],
                false,
            ),
            (
                "do $$ begin execute format('set a.%I = %L', 'b', 'c'); end $$",
                &[],
                true,
            ),
            (
                "do 'begin perform set_config(x, ''1'', false); end'",
                &[],
                true,
            ),
            (
                "do $$ begin execute 'set a.' || k || ' = 1'; end $$",
                &[],
                true,
            ),
            (
                "do $$ begin execute 'set a.b_' || k || ' = 1'; end $$",
                &[],
                true,
            ),
            (
                "do $$ begin execute 'set session ' || k || ' = 1'; end $$",
                &[],
                true,
            ),
            (
                "do $$ begin execute 'set \"' || k || '\" = 1'; end $$",
                &[],
                true,
            ),
            (
                "do $$ begin execute 'set local ' || k || ' = 1'; end $$",
                &[],
                false,
            ),
            ("do $$ begin execute 'set role ' || k; end $$", &[], false),
            ("do $$ begin if k = 'set' then end if; end $$", &[], false),
            (
                "call run('set a.b = 1', 'set of c', 'set d')",
                &["a.b"],
                false,
            ),
            ("call run('select set_config(x, y, false)')", &[], true),
            (
                "do $$ begin execute 'select 1; set ' || k || ' = 1'; end $$",
                &[],
                true,
            ),
            (
                "do 'begin execute ''set a.'' || k || '' = 1''; end'",
                &[],
                true,
            ),
            (
                "do 'begin execute ''set a.b = '' || k; end'",
                &["a.b"],
                false,
            ),
            ("do 'begin execute ''set role '''' || k; end'", &[], false),
            (
                "do $$ begin execute 'update ' || quote_ident(t) || ' set ' || quote_ident(c)
                 || ' = $1' using v; end $$",
                &[],
                false,
            ),
            (
                "do $$ begin q := 'update ' || t || ' set ' || array_to_string(cols, ','); end $$",
                &[],
                false,
            ),
            (
                "do $$ begin execute 'update ' || t ||$q$ set $q$|| c || ' = 1'; end $$",
                &[],
                false,
            ),
            (
                "do 'begin execute ''update '' || t || '' set '' || c || '' = 1''; end'",
                &[],
                false,
            ),
            (
                "do $$ begin execute q || '; set ' || k || ' = 1'; end $$",
                &[],
                true,
            ),
            (
                "do $$ begin execute q || 'set a.b = ' || k; end $$",
                &["a.b"],
                false,
            ),
            (
                "do $$ begin execute 'set time zone ' || k; end $$",
                &[],
                false,
            ),
            (
                "do $a$ $b$ $c$ $d$ $e$ set a.b = 1 $e$ $d$ $c$ $b$ $a$",
                &[],
                true,
            ),
        ] {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(found(sql), (names, unknown), "{sql}");
        }
    }
}
