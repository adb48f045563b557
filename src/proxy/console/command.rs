//! Owns: the console's language: which commands there are, and how they are read. Never: does what one
//! says.

use std::borrow::Cow;

use crate::config::ConsoleRight;
use crate::session::own::Complaint;
use crate::sql::lexer::{Cursor, Kind, leading_comments, statements, string_content};

/// One statement of the console's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Show(Show),
    /// Where a statement would go that a new session said: in this database, as this user.
    ExplainRoute {
        database: Option<String>,
        user: Option<String>,
        sql: Vec<u8>,
    },
    Reload,
    /// A node, by its name, or by its cluster's and its own.
    Drain(String),
    ResumeNode(String),
    /// A database, by its name, or all.
    Pause(Option<String>),
    /// A database, or a node that has the name, or all databases.
    Resume(Option<String>),
    /// A client, by the process id that it was told.
    Kill(i32),
    /// What a driver sets of its own accord when it has logged in: nothing comes of it.
    Set,
}

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    Help,
    Version,
    Nodes,
    Lag,
    Routes,
    Pools,
    Clients,
    Databases,
    Lists,
}

impl Show {
    pub const ALL: [(&str, Show, &str); 9] = [
        ("HELP", Show::Help, "what can be said here"),
        ("VERSION", Show::Version, "which Tidegate this is"),
        (
            "NODES",
            Show::Nodes,
            "every node: its role, its state, its work",
        ),
        (
            "LAG",
            Show::Lag,
            "how far every replica is behind its primary",
        ),
        (
            "ROUTES",
            Show::Routes,
            "how many batches of queries went where, and why",
        ),
        (
            "POOLS",
            Show::Pools,
            "every pool: its servers, and who waits for them",
        ),
        (
            "CLIENTS",
            Show::Clients,
            "every client: who it is, what it does, on which server",
        ),
        (
            "DATABASES",
            Show::Databases,
            "every database that is served: its primary, its connections",
        ),
        ("LISTS", Show::Lists, "how many there are of what"),
    ];
}

/// Every other command, and what comes of it.
pub const OTHERS: [(&str, &str); 7] = [
    (
        "EXPLAIN ROUTE [IN database] [AS user] statement",
        "where the statement would go now, and what decides that, for a session that begins now",
    ),
    (
        "RELOAD",
        "reads the configuration again; a bad one changes nothing",
    ),
    (
        "DRAIN [NODE] name",
        "gives the node nothing new; what is open there finishes, and then its servers are closed",
    ),
    (
        "RESUME NODE name",
        "lets a drained node take its part again",
    ),
    (
        "PAUSE [database]",
        "has clients wait with what is new; comes back when what is open is done and its servers are closed",
    ),
    (
        "RESUME [database]",
        "lets the clients of a paused database go on, or of all",
    ),
    ("KILL id", "ends a client at once, and what is done for it"),
];

/// Settings that drivers set of their own accord.
const SET_BY_DRIVERS: [&str; 10] = [
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "extra_float_digits",
    "intervalstyle",
    "statement_timeout",
    "timezone",
    "standard_conforming_strings",
];

impl Command {
    /// Reads all statements of a text, up to the first that is none.
    pub fn read_all(sql: &[u8]) -> impl Iterator<Item = Result<Command, Complaint>> {
        statements(sql, true).map(|at| Command::read(sql.get(at).unwrap_or_default(), sql))
    }

    /// Reads one statement of the `whole` text.
    fn read(sql: &[u8], whole: &[u8]) -> Result<Command, Complaint> {
        let mut words = Cursor::new(sql, true);
        let command = match () {
            () if words.eat("show") => Command::Show(shown(&mut words)?),
            () if words.eat("explain") => {
                if !words.eat("route") {
                    return Err(unknown(sql));
                }
                return explain(&mut words, whole);
            }
            () if words.eat("reload") => Command::Reload,
            () if words.eat("drain") => {
                eat_node(&mut words);
                return named(&mut words, "DRAIN", "node").map(Command::Drain);
            }
            () if words.eat("pause") => return pause(&mut words),
            () if words.eat("resume") => return resume(&mut words),
            () if words.eat("kill") => return kill(&words),
            () if words.eat("set") => return set(&mut words),
            () if ["begin", "start", "commit", "end", "rollback"]
                .iter()
                .any(|word| words.at(word)) =>
            {
                return Err(Complaint {
                    sqlstate: "0A000",
                    message: "the console has no transactions".to_owned(),
                    advice: "Have the driver leave them out: that is called autocommit.".to_owned(),
                });
            }
            () => return Err(unknown(sql)),
        };
        match words.peek() {
            None => Ok(command),
            Some(_) => Err(not_understood(words.rest())),
        }
    }

    /// Who may say it.
    pub fn right(&self) -> ConsoleRight {
        match self {
            Command::Show(_) | Command::ExplainRoute { .. } | Command::Set => ConsoleRight::Look,
            Command::Reload
            | Command::Drain(_)
            | Command::ResumeNode(_)
            | Command::Pause(_)
            | Command::Resume(_)
            | Command::Kill(_) => ConsoleRight::Change,
        }
    }

    /// What it is called, also in CommandComplete.
    pub fn tag(&self) -> &'static str {
        match self {
            Command::Show(_) => "SHOW",
            Command::ExplainRoute { .. } => "EXPLAIN",
            Command::Reload => "RELOAD",
            Command::Drain(_) => "DRAIN",
            Command::ResumeNode(_) | Command::Resume(_) => "RESUME",
            Command::Pause(_) => "PAUSE",
            Command::Kill(_) => "KILL",
            Command::Set => "SET",
        }
    }

    /// What it is done to, as the log names it: a node, a database or a client.
    pub fn object(&self) -> Option<String> {
        match self {
            Command::Drain(name) | Command::ResumeNode(name) => Some(name.clone()),
            Command::Pause(name) | Command::Resume(name) => name.clone(),
            Command::Kill(id) => Some(id.to_string()),
            Command::Show(_) | Command::ExplainRoute { .. } | Command::Reload | Command::Set => {
                None
            }
        }
    }
}

fn shown(words: &mut Cursor<'_>) -> Result<Show, Complaint> {
    let named = Show::ALL
        .iter()
        .find(|(name, ..)| words.eat(&name.to_ascii_lowercase()));
    named.map(|(_, show, _)| *show).ok_or_else(|| {
        let names: Vec<_> = Show::ALL.iter().map(|(name, ..)| *name).collect();
        complaint(
            format!("SHOW does not know \"{}\"", excerpt(words.rest())),
            format!("It knows {}.", names.join(", ")),
        )
    })
}

/// What is asked about has the comments that come right before it, and those that the whole text begins with: hints
/// are read in these.
fn explain(words: &mut Cursor<'_>, whole: &[u8]) -> Result<Command, Complaint> {
    let mut named = |word| match words.eat(word) {
        true => words.eat_name().map(text).map(Some).ok_or(word),
        false => Ok(None),
    };
    let names = named("in").and_then(|database| Ok((database, named("as")?)));
    let (database, user) = names.map_err(|word| {
        complaint(
            format!("EXPLAIN ROUTE {} wants a name", word.to_ascii_uppercase()),
            "Say EXPLAIN ROUTE IN database AS user statement; names with capital letters or signs go in \
             double quotes."
                .to_owned(),
        )
    })?;
    if words.peek().is_none() {
        return Err(complaint(
            "EXPLAIN ROUTE wants a statement".to_owned(),
            "Say EXPLAIN ROUTE SELECT 1, for example.".to_owned(),
        ));
    }
    let mut sql = Vec::new();
    for comment in leading_comments(whole) {
        sql.extend_from_slice(comment);
        // Only that ends some.
        sql.push(b'\n');
    }
    sql.extend_from_slice(words.rest_with_comments().trim_ascii_start());
    Ok(Command::ExplainRoute {
        database,
        user,
        sql,
    })
}

fn pause(words: &mut Cursor<'_>) -> Result<Command, Complaint> {
    match words.peek() {
        None => Ok(Command::Pause(None)),
        Some(_) => named(words, "PAUSE", "database").map(|name| Command::Pause(Some(name))),
    }
}

fn resume(words: &mut Cursor<'_>) -> Result<Command, Complaint> {
    if words.peek().is_none() {
        return Ok(Command::Resume(None));
    }
    match eat_node(words) {
        true => named(words, "RESUME", "node").map(Command::ResumeNode),
        false => named(words, "RESUME", "database").map(|name| Command::Resume(Some(name))),
    }
}

/// Skips the word NODE, which is not the beginning of a name such as `node-1`.
fn eat_node(words: &mut Cursor<'_>) -> bool {
    let after = words.rest().get("node".len());
    let ends_there = after.is_none_or(|next| next.is_ascii_whitespace() || b"'\"".contains(next));
    ends_there && words.eat("node")
}

fn kill(words: &Cursor<'_>) -> Result<Command, Complaint> {
    let id = std::str::from_utf8(words.rest()).ok();
    let id = id.and_then(|id| id.trim().parse().ok());
    id.map(Command::Kill).ok_or_else(|| {
        complaint(
            "KILL wants the id of a client".to_owned(),
            "SHOW CLIENTS has them.".to_owned(),
        )
    })
}

/// The name of a node or a database. A node's is mostly an address, which need not be quoted.
fn named(words: &mut Cursor<'_>, command: &str, what: &str) -> Result<String, Complaint> {
    let rest = words.rest().trim_ascii_end();
    let name = match words.peek() {
        Some(token) if token.end - token.start < rest.len() => Cow::Borrowed(rest),
        Some(token) if token.kind == Kind::String => Cow::Borrowed(string_content(rest)),
        Some(token) if token.kind == Kind::QuotedWord => words.eat_name().unwrap_or_default(),
        _ => Cow::Borrowed(rest),
    };
    if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) && name.len() == rest.len() {
        return Err(complaint(
            format!("{command} wants the name of a {what}"),
            format!(
                "SHOW {}S has them; one with spaces goes in quotes.",
                what.to_ascii_uppercase()
            ),
        ));
    }
    Ok(text(name))
}

fn set(words: &mut Cursor<'_>) -> Result<Command, Complaint> {
    let _ = words.eat("session");
    let name = words.eat_name().map(text).unwrap_or_default();
    // TIME ZONE and NAMES are words of their own for two of these.
    let is_words = matches!(name.as_str(), "time" | "names");
    match is_words || SET_BY_DRIVERS.contains(&name.as_str()) {
        true => Ok(Command::Set),
        false => Err(complaint(
            format!("the console has no setting \"{name}\""),
            "The configuration is changed in its file, and read again by RELOAD.".to_owned(),
        )),
    }
}

fn text(name: Cow<'_, [u8]>) -> String {
    String::from_utf8_lossy(&name).into_owned()
}

fn unknown(sql: &[u8]) -> Complaint {
    complaint(
        format!("the console does not understand \"{}\"", excerpt(sql)),
        "SHOW HELP tells what it understands; SQL is for the databases.".to_owned(),
    )
}

fn not_understood(rest: &[u8]) -> Complaint {
    complaint(
        format!("syntax error at \"{}\"", excerpt(rest)),
        "SHOW HELP tells what the console understands.".to_owned(),
    )
}

fn complaint(message: String, advice: String) -> Complaint {
    Complaint {
        sqlstate: "42601",
        message,
        advice,
    }
}

/// The beginning of a text, for a message.
fn excerpt(sql: &[u8]) -> String {
    const CHARACTERS_MAX: usize = 40;
    let text = String::from_utf8_lossy(sql);
    match text.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sql: &str) -> Result<Command, String> {
        let mut all = Command::read_all(sql.as_bytes());
        let first = all.next().expect("a statement");
        assert!(all.next().is_none(), "{sql}");
        first.map_err(|complaint| complaint.message)
    }

    fn explain(database: Option<&str>, user: Option<&str>, sql: &str) -> Result<Command, String> {
        Ok(Command::ExplainRoute {
            database: database.map(str::to_owned),
            user: user.map(str::to_owned),
            sql: sql.as_bytes().to_vec(),
        })
    }

    #[test]
    fn commands_are_read() {
        for (name, show, _) in Show::ALL {
            assert_eq!(read(&format!("show {name};")), Ok(Command::Show(show)));
        }
        assert_eq!(read("/* x */ Reload"), Ok(Command::Reload));
        assert_eq!(
            read("EXPLAIN ROUTE SELECT ';'"),
            explain(None, None, "SELECT ';'")
        );
        assert_eq!(
            read("explain route in \"My DB\" as Alice select 1"),
            explain(Some("My DB"), Some("alice"), "select 1")
        );
        for sql in [
            "DRAIN 127.0.0.1:5501",
            "drain node 127.0.0.1:5501 ;",
            "DRAIN NODE '127.0.0.1:5501'",
            "DRAIN \"127.0.0.1:5501\"",
        ] {
            assert_eq!(
                read(sql),
                Ok(Command::Drain("127.0.0.1:5501".to_owned())),
                "{sql}"
            );
        }
        for sql in [
            "DRAIN node-1.internal:5432",
            "DRAIN NODE node-1.internal:5432",
        ] {
            assert_eq!(
                read(sql),
                Ok(Command::Drain("node-1.internal:5432".to_owned()))
            );
        }
        let resumed = |name: &str| Ok(Command::Resume(Some(name.to_owned())));
        assert_eq!(read("RESUME node-db"), resumed("node-db"));
        assert_eq!(
            read("RESUME NODE 'a b'"),
            Ok(Command::ResumeNode("a b".to_owned()))
        );
        assert_eq!(read("RESUME main/a"), resumed("main/a"));
        assert_eq!(read("RESUME;"), Ok(Command::Resume(None)));
        assert_eq!(read("PAUSE"), Ok(Command::Pause(None)));
        assert_eq!(
            read("pause \"My DB\""),
            Ok(Command::Pause(Some("My DB".to_owned())))
        );
        assert_eq!(read("KILL 17"), Ok(Command::Kill(17)));
        assert_eq!(read("SET SESSION extra_float_digits = 3"), Ok(Command::Set));
        assert_eq!(read("SET TIME ZONE 'UTC'"), Ok(Command::Set));
        assert_eq!(Command::read_all(b" ; -- nothing\n;").count(), 0);
        assert_eq!(Command::read_all(b"SHOW NODES; SHOW LAG").count(), 2);
    }

    #[test]
    fn what_is_no_command_is_told_why() {
        for (sql, expected) in [
            ("SELECT 1", "the console does not understand \"SELECT 1\""),
            (
                "EXPLAIN SELECT 1",
                "the console does not understand \"EXPLAIN SELECT 1\"",
            ),
            ("Begin", "the console has no transactions"),
            ("SHOW ALL", "SHOW does not know \"ALL\""),
            ("SHOW", "SHOW does not know \"\""),
            ("SHOW NODES now", "syntax error at \"now\""),
            ("RELOAD 'x'", "syntax error at \"'x'\""),
            ("EXPLAIN ROUTE", "EXPLAIN ROUTE wants a statement"),
            ("EXPLAIN ROUTE IN app", "EXPLAIN ROUTE wants a statement"),
            (
                "EXPLAIN ROUTE IN 7 SELECT 1",
                "EXPLAIN ROUTE IN wants a name",
            ),
            ("DRAIN", "DRAIN wants the name of a node"),
            ("DRAIN NODE a b", "DRAIN wants the name of a node"),
            ("PAUSE a b", "PAUSE wants the name of a database"),
            ("RESUME NODE", "RESUME wants the name of a node"),
            ("KILL everyone", "KILL wants the id of a client"),
            ("DRAIN ''", "DRAIN wants the name of a node"),
            (
                "SET work_mem = 1",
                "the console has no setting \"work_mem\"",
            ),
            ("SET", "the console has no setting \"\""),
            (
                "DELETE FROM everything_that_there_is WHERE true",
                "the console does not understand \"DELETE FROM everything_that_there_is WHE…\"",
            ),
        ] {
            assert_eq!(read(sql), Err(expected.to_owned()), "{sql}");
        }
    }
}
