//! As much of PostgreSQL as a session can tell: statements, portals, transactions and errors, with
//! no data. What it answers to a client is what the client has to see through the proxy.

use std::collections::{HashMap, HashSet};

use tidegate::sql::lexer::{Kind, statements};
use tidegate::sql::prepared;
use tidegate::wire::frame::{body, header};
use tidegate::wire::message::{self, Bind, Parse, Target};

use super::text::solid;

#[derive(Default)]
pub struct Postgres {
    inbox: Vec<u8>,
    /// Texts by name; the unnamed one has the empty name.
    prepared: HashMap<Vec<u8>, Vec<u8>>,
    portals: HashMap<Vec<u8>, Vec<u8>>,
    /// Those that have run, and return no rows: they can't be run again.
    done: HashSet<Vec<u8>>,
    transaction: Transaction,
    /// After an error in a pipeline, up to its Sync.
    skips: bool,
    /// Known to differ: a session may forget the unnamed statement that a message which is skipped
    /// would have replaced or dropped.
    may_have_forgotten: bool,
    /// It has been asked for that one since.
    differs: bool,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Transaction {
    #[default]
    None,
    Open,
    Failed,
}

/// An SQLSTATE and a message.
type Error = (&'static str, Vec<u8>);

impl Postgres {
    /// Whether its answers may be others than those of a session.
    pub fn may_differ(&self) -> bool {
        self.differs
    }

    /// What it answers to these bytes, at once and in full. `None` after what it does not know.
    pub fn hear(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.inbox.extend(bytes);
        let mut out = Vec::new();
        while let Some(head) = header(&self.inbox).ok()? {
            if self.inbox.len() < head.len {
                break;
            }
            let frame: Vec<u8> = self.inbox.drain(..head.len).collect();
            if head.tag == b'X' {
                return None;
            }
            if self.skips && head.tag != b'S' {
                self.may_have_forgotten |= matches!(head.tag, b'Q' | b'P' | b'C');
                continue;
            }
            self.message(head.tag, body(&frame), &mut out)?;
        }
        Some(out)
    }

    fn message(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let done = match tag {
            b'Q' => {
                let done = self.query(message::query(body).ok()?, out);
                if let Err(error) = done {
                    say_error(error, out);
                }
                self.ready(out);
                return Some(());
            }
            b'S' => {
                self.skips = false;
                self.ready(out);
                return Some(());
            }
            b'H' => return Some(()),
            b'P' => self.parse(&Parse::read(body).ok()?, out),
            b'B' => self.bind(&Bind::read(body).ok()?, out),
            b'D' => self.describe(message::target(body).ok()?, out),
            b'E' => self.execute(message::execute(body).ok()?.0, out),
            b'C' => {
                match message::target(body).ok()? {
                    Target::Statement(name) => self.prepared.remove(key(name)),
                    Target::Portal(name) => self.portals.remove(key(name)),
                };
                say(b'3', b"", out);
                Ok(())
            }
            _ => return None,
        };
        if let Err(error) = done {
            self.fails();
            self.skips = true;
            say_error(error, out);
        }
        Some(())
    }

    fn ready(&mut self, out: &mut Vec<u8>) {
        let status = match self.transaction {
            Transaction::None => {
                self.portals.clear();
                b"I"
            }
            Transaction::Open => b"T",
            Transaction::Failed => b"E",
        };
        say(b'Z', status, out);
    }

    fn fails(&mut self) {
        if self.transaction == Transaction::Open {
            self.transaction = Transaction::Failed;
        }
    }

    fn query(&mut self, sql: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        self.may_have_forgotten = false;
        self.prepared.remove(&b""[..]);
        self.portals.remove(&b""[..]);
        let ranges: Vec<_> = statements(sql, true).collect();
        if ranges.is_empty() {
            say(b'I', b"", out);
        }
        for range in ranges {
            self.run(&sql[range], out).inspect_err(|_| self.fails())?;
        }
        Ok(())
    }

    fn parse(&mut self, parse: &Parse<'_>, out: &mut Vec<u8>) -> Result<(), Error> {
        if parse.name.is_empty() {
            self.may_have_forgotten = false;
            self.prepared.remove(parse.name);
        } else if self.prepared.contains_key(key(parse.name)) {
            return Err((
                "42P05",
                named("prepared statement", parse.name, "already exists"),
            ));
        }
        if statements(parse.sql, true).count() > 1 || says_fail(parse.sql) {
            return Err(("42601", b"syntax error".to_vec()));
        }
        self.prepared
            .insert(key(parse.name).to_vec(), parse.sql.to_vec());
        say(b'1', b"", out);
        Ok(())
    }

    fn bind(&mut self, bind: &Bind<'_>, out: &mut Vec<u8>) -> Result<(), Error> {
        self.differs |= bind.statement.is_empty() && self.may_have_forgotten;
        let sql = self.prepared.get(key(bind.statement)).cloned();
        let sql = sql.ok_or_else(|| unknown_statement(bind.statement))?;
        self.allows(&sql)?;
        if !bind.portal.is_empty() && self.portals.contains_key(key(bind.portal)) {
            return Err(("42P03", named("portal", bind.portal, "already exists")));
        }
        self.done.remove(key(bind.portal));
        self.portals.insert(key(bind.portal).to_vec(), sql);
        say(b'2', b"", out);
        Ok(())
    }

    fn describe(&mut self, target: Target<'_>, out: &mut Vec<u8>) -> Result<(), Error> {
        let sql = match target {
            Target::Statement(name) => {
                self.differs |= name.is_empty() && self.may_have_forgotten;
                let sql = self.prepared.get(key(name)).cloned();
                let sql = sql.ok_or_else(|| unknown_statement(name))?;
                say(b't', b"\0\0", out);
                sql
            }
            Target::Portal(name) => self.portal(name)?,
        };
        if first_word(&sql) == b"select" {
            let row = [b"\0\x01", &sql[..], b"\0", &[0; 18]].concat();
            say(b'T', &row, out);
        } else {
            say(b'n', b"", out);
        }
        Ok(())
    }

    fn execute(&mut self, portal: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let sql = self.portal(portal)?;
        if self.done.contains(key(portal)) {
            return Err(("55000", named("portal", portal, "cannot be run")));
        }
        if solid(&sql, true).is_empty() {
            say(b'I', b"", out);
            return Ok(());
        }
        self.run(&sql, out)?;
        if first_word(&sql) != b"select" {
            self.done.insert(key(portal).to_vec());
        }
        Ok(())
    }

    fn forget_named(&mut self) {
        self.prepared.retain(|name, _| name.is_empty());
    }

    fn portal(&self, name: &[u8]) -> Result<Vec<u8>, Error> {
        let sql = self.portals.get(key(name)).cloned();
        sql.ok_or_else(|| ("34000", named("portal", name, "does not exist")))
    }

    /// A failed transaction allows nothing but its end.
    fn allows(&self, sql: &[u8]) -> Result<(), Error> {
        let ends = matches!(
            &*first_word(sql),
            b"commit" | b"end" | b"rollback" | b"abort"
        );
        match self.transaction == Transaction::Failed && !ends {
            true => Err(("25P02", b"current transaction is aborted".to_vec())),
            false => Ok(()),
        }
    }

    fn run(&mut self, sql: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        self.allows(sql)?;
        let word = first_word(sql);
        let second = solid(sql, true).get(1).copied();
        let second_is = |word| second.is_some_and(|token| token.is(sql, word));
        let mut tag = word.to_ascii_uppercase();
        match &*word {
            _ if says_fail(sql) => return Err(("22012", b"division by zero".to_vec())),
            b"begin" | b"start" => self.transaction = Transaction::Open,
            b"commit" | b"end" => {
                let failed = self.transaction == Transaction::Failed;
                tag = if failed {
                    b"ROLLBACK".to_vec()
                } else {
                    b"COMMIT".to_vec()
                };
                self.transaction = Transaction::None;
            }
            b"rollback" | b"abort" if second_is("to") => {
                if self.transaction == Transaction::None {
                    return Err(("25P01", b"no transaction is open".to_vec()));
                }
                self.transaction = Transaction::Open;
            }
            b"rollback" | b"abort" => self.transaction = Transaction::None,
            b"discard" if is_words(sql, &["discard", "all"]) => {
                if self.transaction == Transaction::Open {
                    return Err(("25001", b"not in a transaction".to_vec()));
                }
                self.forget_named();
                self.portals.clear();
            }
            b"discard"
                if ["plans", "sequences"]
                    .iter()
                    .any(|what| is_words(sql, &["discard", what])) => {}
            b"discard" => return Err(("42601", b"syntax error".to_vec())),
            b"deallocate" => match prepared::deallocate(sql) {
                Some((name, _)) if self.prepared.remove(&*name).is_none() => {
                    return Err(unknown_statement(&name));
                }
                Some(_) => {}
                None if is_words(sql, &["deallocate", "all"])
                    || is_words(sql, &["deallocate", "prepare", "all"]) =>
                {
                    tag = b"DEALLOCATE ALL".to_vec();
                    self.forget_named();
                }
                None => return Err(("42601", b"syntax error".to_vec())),
            },
            b"select" => {
                let length = (sql.len() as i32).to_be_bytes();
                say(b'D', &[b"\0\x01", &length[..], sql].concat(), out);
            }
            b"prepare" | b"execute" | b"copy" => return Err(("0A000", b"no".to_vec())),
            _ => {}
        }
        say(b'C', &[&tag[..], b"\0"].concat(), out);
        Ok(())
    }
}

/// What it tells names of statements and portals apart by.
fn key(name: &[u8]) -> &[u8] {
    &name[..name.len().min(63)]
}

fn is_words(sql: &[u8], words: &[&str]) -> bool {
    let tokens = solid(sql, true);
    let mut pairs = tokens.iter().zip(words);
    tokens.len() == words.len() && pairs.all(|(token, word)| token.is(sql, word))
}

/// Whether a word of the text says that it fails.
fn says_fail(sql: &[u8]) -> bool {
    solid(sql, true)
        .iter()
        .any(|token| token.is(sql, "fail") || token.kind == Kind::Broken)
}

fn first_word(sql: &[u8]) -> Vec<u8> {
    let first = solid(sql, true).first().copied();
    first.map_or_else(Vec::new, |token| token.text(sql).to_ascii_lowercase())
}

fn unknown_statement(name: &[u8]) -> Error {
    ("26000", named("prepared statement", name, "does not exist"))
}

fn named(what: &str, name: &[u8], why: &str) -> Vec<u8> {
    [what.as_bytes(), b" \"", name, b"\" ", why.as_bytes()].concat()
}

fn say_error((state, text): Error, out: &mut Vec<u8>) {
    let head = format!("SERROR\0VERROR\0C{state}\0M");
    say(b'E', &[head.as_bytes(), &text, b"\0\0"].concat(), out);
}

fn say(tag: u8, body: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend((body.len() as i32 + 4).to_be_bytes());
    out.extend(body);
}
