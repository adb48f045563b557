//! From a text to its class.
//!
//! Owns: how the classes of statements become the class of a text, and what may reach the parser.
//! Never: returns an error; what it cannot prove is a write.
//!
//! Several readings have to agree before a statement is a read. `verbs` settles what it is from
//! its first words. `tells` looks for words that no read can hold, which is certain even where the
//! parser misreads. `walk` proves the parsed query, and takes what it does not know for a write.
//! `calls` checks that the parser has dropped no call. What the parser does not understand, or drops a
//! part of, is proven by its words alone (`walk::words`), or not at all.

mod calls;
mod tells;
mod verbs;
mod walk;

#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};

use sqlparser::ast::Query;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use self::tells::Tells;
use self::verbs::{Command, Effects};
use self::walk::Walk;
use super::catalog;
use super::fingerprint::Shape;
use super::functions::Rules;
use super::lexer::{self, Cursor, Kind, Lexer};
use super::{Class, Need, Pin, PinSet, Reach, Refused, Statement, Verb, Why, set_config};

/// The longest chain of tokens and the deepest nesting that may reach the parser. It builds a chain
/// as a tree that is as deep as the chain is long, and the tree's drop recurses: past some tens of
/// thousands of operators the process would die of its stack, which nothing can catch. At these
/// limits the worst text takes about 200 KiB for its chain and 1 MiB for its nesting in a debug
/// build, of a thread's 2 MiB.
pub const CHAIN_MAX: usize = 4000;
pub const DEPTH_MAX: usize = 24;
/// The parser's own limit on its recursion, which the lexer's measures do not see in full (signs,
/// NOT, joins).
const RECURSION_MAX: usize = 40;
/// The most calls of POSITION that may reach the parser. Where it finds no IN between the parentheses
/// it reads what is there a second time, and so all of it 2^n times within n such calls.
const POSITIONS_MAX: usize = 4;

/// What is known of a text before it is classified.
#[derive(Clone, Copy, Debug)]
pub enum Reading {
    /// It is a normal form with this shape.
    Normal(Shape),
    /// It is to be classified by its words alone: a query is a write for this reason. `conforming`
    /// as for [`Lexer::new`].
    Words { why: Why, conforming: bool },
}

/// The class of a text, which is a normal form or is read by words alone.
pub fn classify(text: &[u8], reading: Reading, rules: &Rules) -> Class {
    let (conforming, unparsed) = match reading {
        Reading::Words { why, conforming } => (conforming, Some(why)),
        Reading::Normal(shape) if shape.chain > CHAIN_MAX || shape.depth > DEPTH_MAX => {
            (true, Some(Why::TooComplex))
        }
        Reading::Normal(_) => (true, None),
    };
    let mut reader = Reader {
        conforming,
        unparsed,
        walk: Walk::new(rules),
    };
    let mut need = Need::Read;
    let mut why = Why::Empty;
    let mut statements = Vec::new();
    for range in lexer::statements(text, conforming) {
        let finding = reader.statement(&text[range]);
        let stronger =
            finding.need > need || finding.need == need && weight(why) < weight(finding.why);
        if stronger {
            (need, why) = (finding.need, finding.why);
        }
        statements.push(finding.statement);
    }
    let (functions, relations) = reader.walk.names();
    Class {
        asks_catalog: catalog::has_a_say(need, why, &statements),
        explains: statements.iter().any(|s| s.verb == Verb::ExplainRoute),
        need,
        why,
        statements: statements.into(),
        functions,
        relations,
        refused: Refused::default(),
        memo: Default::default(),
    }
}

/// What one statement adds to the class.
struct Finding {
    need: Need,
    why: Why,
    statement: Statement,
}

struct Reader<'r> {
    conforming: bool,
    /// Why no query is parsed, if none is.
    unparsed: Option<Why>,
    walk: Walk<'r>,
}

impl Reader<'_> {
    fn statement(&mut self, text: &[u8]) -> Finding {
        let command = verbs::read(text, self.conforming);
        let Effects { verb, pin } = command.effects();
        let tells = if command.only_names() {
            Tells::default()
        } else {
            Tells::read(text, self.conforming)
        };
        let (mut need, mut why) = match self.need(&command, &tells) {
            Ok(settled) => settled,
            Err(why) => (Need::Write, why),
        };
        if tells.sets_config && set_config::is_all(text, self.conforming) {
            (need, why) = (Need::Session, Why::SessionState);
        } else if tells.must_write() && need < Need::Write {
            (need, why) = (Need::Write, Why::UnsafeFunction);
        }
        Finding {
            need,
            why,
            statement: Statement {
                verb: if why == Why::SelectInto && verb == Verb::Plain {
                    Verb::Ddl(Reach::Anything)
                } else {
                    verb
                },
                pins: pin.map_or(tells.pins, |pin| tells.pins.and(PinSet::of(&[pin]))),
                sets_config: tells.sets_config,
                reads_sequence: tells.reads_sequence,
                executes: tells.executes,
            },
        }
    }

    /// What a command needs. An error is why it is a write.
    fn need(&mut self, command: &Command<'_>, tells: &Tells) -> Result<(Need, Why), Why> {
        const READ: (Need, Why) = (Need::Read, Why::ProvenRead);
        match *command {
            Command::Settled { need, why, .. } => {
                if self.unparsed == Some(Why::NonConformingStrings) && need == Need::Write {
                    return Err(Why::NonConformingStrings);
                }
                Ok((need, why))
            }
            Command::Relation { ref name, .. } => {
                if self.unparsed == Some(Why::NonConformingStrings) {
                    return Err(Why::NonConformingStrings);
                }
                let parts: Vec<&str> = name.iter().map(String::as_str).collect();
                self.walk.relation(&parts);
                self.walk.take_objection().map_or(Ok(READ), Err)
            }
            Command::Query { text, .. } => self.query(text, tells).map(|()| READ),
            Command::Explain { unknown: true, .. } => Err(Why::Utility),
            Command::Explain {
                analyze, ref inner, ..
            } => match self.need(inner, tells) {
                Ok((Need::Read, why)) => Ok((Need::Read, why)),
                Err(why @ (Why::NonConformingStrings | Why::UnknownFunction)) => Err(why),
                Ok((_, why)) | Err(why) if analyze => Err(why),
                _ => Err(Why::Utility),
            },
        }
    }

    /// Whether a query is proven to read only.
    fn query(&mut self, text: &[u8], tells: &Tells) -> Result<(), Why> {
        if let Some(why) = self.unparsed {
            return Err(why);
        }
        if let Some(why) = tells.objection {
            return Err(why);
        }
        let text = str::from_utf8(text).map_err(|_| Why::NotParsed)?;
        // Such a character is part of a word for the server and may be space for the parser.
        let odd = |c: char| !c.is_ascii() && !c.is_alphanumeric();
        if text.contains(odd) {
            return Err(Why::NotParsed);
        }
        // A panic of the parser says nothing of the text; it must not end the session.
        let parsed = catch_unwind(AssertUnwindSafe(|| parse(text)))
            .ok()
            .flatten();
        let mark = self.walk.mark();
        let mut unknown = None;
        if let Some(query) = parsed {
            self.walk.query(&query);
            let all_seen = calls::all_seen(text, self.walk.take_seen());
            match self.walk.take_objection() {
                Some(Why::NotParsed) => {}
                // The parser takes some keywords for functions.
                Some(why @ Why::UnknownFunction) if all_seen => unknown = Some(why),
                Some(why) if all_seen => return Err(why),
                None if all_seen => return Ok(()),
                _ => {}
            }
        }
        // The words may be less certain of names than the tree, but never of too few.
        let tree = unknown.map(|why| (why, self.walk.names_since(mark)));
        self.walk.go_back(mark);
        self.walk.words(text);
        self.walk.take_seen();
        let objection = self.walk.take_objection();
        if let Some((why, names)) = tree
            && objection.is_some()
        {
            self.walk.go_back(mark);
            self.walk.add_names(names);
            return Err(why);
        }
        objection.map_or(Ok(()), Err)
    }
}

/// How much a reason says against a text. An unknown function is the least of them: it is the
/// reason only where nothing else is against reading, so that one who knows the function may.
fn weight(why: Why) -> u8 {
    match why {
        Why::Empty => 0,
        Why::UnknownFunction => 1,
        _ => 2,
    }
}

fn parse(text: &str) -> Option<Box<Query>> {
    if positions(text) > POSITIONS_MAX {
        return None;
    }
    let mut parser = Parser::new(&PostgreSqlDialect {})
        .with_recursion_limit(RECURSION_MAX)
        .try_with_sql(text)
        .ok()?;
    let query = parser.parse_query().ok()?;
    (parser.peek_token_ref().token == Token::EOF).then_some(query)
}

/// How often POSITION is called, or looks as if it were.
fn positions(text: &str) -> usize {
    let mut cursor = Cursor::new(text.as_bytes(), true);
    std::iter::from_fn(|| {
        cursor
            .next()
            .map(|token| (token, cursor.at_kind(Kind::Open)))
    })
    .filter(|(token, opens)| *opens && token.is(text.as_bytes(), "position"))
    .count()
}

/// Whether a token is one that the parser would read differently from the server.
fn misread(kind: Kind) -> bool {
    matches!(kind, Kind::UnicodeWord | Kind::Broken | Kind::Other)
}

/// A pin that a name in a temporary schema means.
fn temporary(text: &[u8], conforming: bool) -> Option<Pin> {
    let mut lexer = Lexer::new(text, conforming);
    let mut temporary = false;
    while let Some(token) = lexer.solid() {
        if temporary && token.kind == Kind::Dot {
            return Some(Pin::TemporaryTable);
        }
        temporary = token.name(text).is_some_and(|n| &*n == b"pg_temp");
    }
    None
}
