//! Reading a statement token by token.
//!
//! Owns: one token of look-ahead over the solid tokens. Never: backtracks.

use std::borrow::Cow;

use super::{Kind, Lexer, Token};

/// A position in a statement.
#[derive(Clone)]
pub struct Cursor<'a> {
    sql: &'a [u8],
    lexer: Lexer<'a>,
    next: Option<Token>,
    /// Where the last token ends that was taken.
    taken: usize,
}

impl<'a> Cursor<'a> {
    /// At the first token. `conforming` as for [`Lexer::new`].
    pub fn new(sql: &'a [u8], conforming: bool) -> Self {
        let mut lexer = Lexer::new(sql, conforming);
        let next = lexer.solid();
        Cursor {
            sql,
            lexer,
            next,
            taken: 0,
        }
    }

    pub fn peek(&self) -> Option<Token> {
        self.next
    }

    /// Whether the next token is the unquoted word `word`, which is given in lower case.
    pub fn at(&self, word: &str) -> bool {
        self.next.is_some_and(|t| t.is(self.sql, word))
    }

    /// Whether the next token is of this kind.
    pub fn at_kind(&self, kind: Kind) -> bool {
        self.next.is_some_and(|t| t.kind == kind)
    }

    /// Takes the next token if it is `word`.
    pub fn eat(&mut self, word: &str) -> bool {
        let found = self.at(word);
        if found {
            self.next();
        }
        found
    }

    /// Takes the next token if it is of this kind.
    pub fn eat_kind(&mut self, kind: Kind) -> bool {
        let found = self.at_kind(kind);
        if found {
            self.next();
        }
        found
    }

    /// Takes the next token if it is a name, folded or unquoted as the server does.
    pub fn eat_name(&mut self) -> Option<Cow<'a, [u8]>> {
        let name = self.next?.name(self.sql)?;
        self.next();
        Some(name)
    }

    /// Takes what is in the parenthesis that the next token opens, up to its end and without it.
    /// `None` if none opens here or it does not close.
    pub fn parenthesis(&mut self) -> Option<&'a [u8]> {
        if !self.eat_kind(Kind::Open) {
            return None;
        }
        let start = self.next.map_or(self.sql.len(), |t| t.start);
        let mut depth = 1;
        loop {
            let token = self.next()?;
            match token.kind {
                Kind::Open => depth += 1,
                Kind::Close => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(&self.sql[start.min(token.start)..token.start]);
            }
        }
    }

    /// Whether nothing follows but semicolons.
    pub fn is_over(&self) -> bool {
        let mut ahead = self.clone();
        while ahead.eat_kind(Kind::Semicolon) {}
        ahead.peek().is_none()
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        let start = self.next.map_or(self.sql.len(), |t| t.start);
        &self.sql[start..]
    }

    /// What is left, with the space and the comments that are before it.
    pub fn rest_with_comments(&self) -> &'a [u8] {
        &self.sql[self.taken..]
    }
}

impl Iterator for Cursor<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        let token = self.next?;
        self.taken = token.end;
        self.next = self.lexer.solid();
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parentheses_are_taken_whole() {
        let mut cursor = Cursor::new(b"copy ( select (1), ')' ) to stdout", true);
        assert!(cursor.eat("copy") && !cursor.eat("to"));
        assert_eq!(cursor.parenthesis(), Some(&b"select (1), ')' "[..]));
        assert!(cursor.eat("to"));
        assert_eq!(cursor.rest(), b"stdout");
        assert_eq!(cursor.rest_with_comments(), b" stdout");
        assert_eq!(Cursor::new(b"()", true).parenthesis(), Some(&b""[..]));
        assert_eq!(Cursor::new(b"((1)", true).parenthesis(), None);
    }
}
