//! PostgreSQL's lexical syntax over bytes.
//!
//! Owns: where each token starts and ends. Never: fails, or asks what a token means; lexing itself
//! never allocates.
//!
//! Follows `scan.l`. Where versions differ (numbers that run into a word), the token is the shorter
//! one, so that no keyword can hide at the end of another token.

mod cursor;
mod split;

use std::borrow::Cow;

pub use cursor::Cursor;
pub use split::{Statements, statements};

/// Reads tokens from the start of a text to its end. Tokens tile the text: trivia is a token too.
#[derive(Clone)]
pub struct Lexer<'a> {
    sql: &'a [u8],
    at: usize,
    conforming: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Space,
    /// `-- …` or `/* … */`.
    Comment,
    /// A keyword or an unquoted name.
    Word,
    /// `"…"`.
    QuotedWord,
    /// `U&"…"`, whose escapes are left alone.
    UnicodeWord,
    /// Any string form, continuation lines included.
    String,
    Number,
    /// `$1`.
    Parameter,
    Operator,
    Open,
    Close,
    OpenBracket,
    CloseBracket,
    Comma,
    Semicolon,
    Dot,
    /// An unclosed string, name or comment, up to the end of the text.
    Broken,
    /// A byte that begins no token.
    Other,
}

impl<'a> Lexer<'a> {
    /// `conforming` is the server's `standard_conforming_strings`: whether a backslash in `'…'` is
    /// an ordinary character.
    pub fn new(sql: &'a [u8], conforming: bool) -> Self {
        Lexer {
            sql,
            at: 0,
            conforming,
        }
    }

    /// The next token that is neither space nor comment.
    #[inline]
    pub fn solid(&mut self) -> Option<Token> {
        loop {
            let token = self.token()?;
            if !matches!(token.kind, Kind::Space | Kind::Comment) {
                return Some(token);
            }
        }
    }

    #[inline]
    fn token(&mut self) -> Option<Token> {
        let start = self.at;
        let first = *self.sql.get(start)?;
        self.at += 1;
        let kind = match CLASSES[first as usize] {
            Start::Space => {
                self.skip_while(|b| CLASSES[b as usize] == Start::Space);
                Kind::Space
            }
            Start::Word => self.word(first),
            Start::Digit => {
                self.number(first);
                Kind::Number
            }
            Start::Operator => self.operator(first, start),
            Start::Single(kind) => kind,
            Start::Quote => {
                let escapes = !self.conforming;
                self.string(escapes)
            }
            Start::DoubleQuote => self.quoted(Kind::QuotedWord),
            Start::Dollar => self.dollar(start),
            Start::Dot => match self.peek(0) {
                Some(b'0'..=b'9') => {
                    self.digits();
                    self.exponent();
                    Kind::Number
                }
                _ => Kind::Dot,
            },
            Start::Colon => {
                if matches!(self.peek(0), Some(b':' | b'=')) {
                    self.at += 1;
                }
                Kind::Operator
            }
            Start::Other => Kind::Other,
        };
        Some(Token {
            kind,
            start,
            end: self.at,
        })
    }

    fn word(&mut self, first: u8) -> Kind {
        // A prefix only counts when the quote follows at once.
        match (first | 0x20, self.peek(0), self.peek(1)) {
            (b'e', Some(b'\''), _) => {
                self.at += 1;
                return self.string(true);
            }
            (b'b' | b'x', Some(b'\''), _) => {
                self.at += 1;
                return self.string(false);
            }
            (b'n', Some(b'\''), _) => {
                self.at += 1;
                let escapes = !self.conforming;
                return self.string(escapes);
            }
            (b'u', Some(b'&'), Some(b'\'')) => {
                self.at += 2;
                return self.string(false);
            }
            (b'u', Some(b'&'), Some(b'"')) => {
                self.at += 2;
                return self.quoted(Kind::UnicodeWord);
            }
            _ => {}
        }
        self.skip_while(|b| {
            matches!(
                CLASSES[b as usize],
                Start::Word | Start::Digit | Start::Dollar
            )
        });
        Kind::Word
    }

    /// From after the opening quote to after the closing one of the last continuation line.
    fn string(&mut self, escapes: bool) -> Kind {
        loop {
            match self.sql.get(self.at) {
                None => return Kind::Broken,
                Some(b'\'') => {
                    self.at += 1;
                    if self.peek(0) == Some(b'\'') {
                        self.at += 1;
                    } else if let Some(next) = continuation(self.sql, self.at) {
                        self.at = next;
                    } else {
                        return Kind::String;
                    }
                }
                Some(b'\\') if escapes => self.at = (self.at + 2).min(self.sql.len()),
                Some(_) => self.at += 1,
            }
        }
    }

    /// From after the opening `"` to after the closing one.
    fn quoted(&mut self, kind: Kind) -> Kind {
        loop {
            self.skip_while(|b| b != b'"');
            match (self.peek(0), self.peek(1)) {
                (None, _) => return Kind::Broken,
                (_, Some(b'"')) => self.at += 2,
                _ => {
                    self.at += 1;
                    return kind;
                }
            }
        }
    }

    /// `$1`, `$tag$ … $tag$`, or a stray `$`.
    fn dollar(&mut self, start: usize) -> Kind {
        if matches!(self.peek(0), Some(b'0'..=b'9')) {
            self.skip_while(|b| b.is_ascii_digit());
            return Kind::Parameter;
        }
        if matches!(self.peek(0), Some(b) if CLASSES[b as usize] == Start::Word) {
            self.skip_while(|b| matches!(CLASSES[b as usize], Start::Word | Start::Digit));
        }
        if self.peek(0) != Some(b'$') {
            self.at = start + 1;
            return Kind::Other;
        }
        self.at += 1;
        let tag = &self.sql[start..self.at];
        loop {
            self.skip_while(|b| b != b'$');
            if self.at >= self.sql.len() {
                return Kind::Broken;
            }
            if self.sql[self.at..].starts_with(tag) {
                self.at += tag.len();
                return Kind::String;
            }
            self.at += 1;
        }
    }

    fn number(&mut self, first: u8) {
        let radix_digit: fn(&u8) -> bool = match (first, self.peek(0)) {
            (b'0', Some(b'x' | b'X')) => u8::is_ascii_hexdigit,
            (b'0', Some(b'o' | b'O')) => |b| matches!(b, b'0'..=b'7'),
            (b'0', Some(b'b' | b'B')) => |b| matches!(b, b'0' | b'1'),
            _ => {
                self.digits();
                // `1..2` is a slice bound and two dots, not `1.` and `.2`.
                if self.peek(0) == Some(b'.') && self.peek(1) != Some(b'.') {
                    self.at += 1;
                    if matches!(self.peek(0), Some(b'0'..=b'9')) {
                        self.digits();
                    }
                }
                self.exponent();
                return;
            }
        };
        let before = self.at;
        self.at += 1;
        let body = self.at;
        self.grouped(radix_digit);
        if self.at == body {
            self.at = before;
        }
    }

    fn digits(&mut self) {
        self.skip_while(|b| b.is_ascii_digit());
        self.grouped(u8::is_ascii_digit);
    }

    /// Digits, each of which may follow one underscore.
    fn grouped(&mut self, digit: fn(&u8) -> bool) {
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b), _) if digit(&b) => self.at += 1,
                (Some(b'_'), Some(b)) if digit(&b) => self.at += 2,
                _ => return,
            }
        }
    }

    fn exponent(&mut self) {
        let sign = match (self.peek(0), self.peek(1)) {
            (Some(b'e' | b'E'), Some(b'+' | b'-')) => 1,
            (Some(b'e' | b'E'), _) => 0,
            _ => return,
        };
        if matches!(self.peek(1 + sign), Some(b'0'..=b'9')) {
            self.at += 1 + sign;
            self.digits();
        }
    }

    /// An operator or a comment, both of which begin with operator characters.
    fn operator(&mut self, first: u8, start: usize) -> Kind {
        match (first, self.peek(0)) {
            (b'-', Some(b'-')) => {
                self.skip_while(|b| b != b'\n' && b != b'\r');
                return Kind::Comment;
            }
            (b'/', Some(b'*')) => {
                self.at += 1;
                return self.block_comment();
            }
            _ => {}
        }
        let mut end = self.at;
        while let Some(&b) = self.sql.get(end) {
            let comment = matches!(
                (b, self.sql.get(end + 1)),
                (b'-', Some(b'-')) | (b'/', Some(b'*'))
            );
            if CLASSES[b as usize] != Start::Operator || comment {
                break;
            }
            end += 1;
        }
        // A trailing sign belongs to what follows, unless a character marks the whole as no
        // operator of standard SQL.
        let marked = |run: &[u8]| run.iter().any(|b| b"~!@#^&|`?%".contains(b));
        if end - start > 1
            && matches!(self.sql[end - 1], b'+' | b'-')
            && !marked(&self.sql[start..end - 1])
        {
            while end - start > 1 && matches!(self.sql[end - 1], b'+' | b'-') {
                end -= 1;
            }
        }
        self.at = end;
        Kind::Operator
    }

    fn block_comment(&mut self) -> Kind {
        let mut depth = 1usize;
        while depth > 0 {
            match (self.peek(0), self.peek(1)) {
                (None, _) => return Kind::Broken,
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                }
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                _ => self.at += 1,
            }
        }
        Kind::Comment
    }

    #[inline]
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.sql.get(self.at + ahead).copied()
    }

    #[inline]
    fn skip_while(&mut self, mut keep: impl FnMut(u8) -> bool) {
        while let Some(&b) = self.sql.get(self.at)
            && keep(b)
        {
            self.at += 1;
        }
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    #[inline]
    fn next(&mut self) -> Option<Token> {
        self.token()
    }
}

impl Token {
    pub fn text<'a>(&self, sql: &'a [u8]) -> &'a [u8] {
        &sql[self.start..self.end]
    }

    /// Whether this is the unquoted word `word`, which is given in lower case.
    #[inline]
    pub fn is(&self, sql: &[u8], word: &str) -> bool {
        self.kind == Kind::Word && self.text(sql).eq_ignore_ascii_case(word.as_bytes())
    }

    /// The name that the token stands for, folded or unquoted as the server does. `None` for what
    /// is no name, and for `U&"…"`.
    pub fn name<'a>(&self, sql: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let text = self.text(sql);
        match self.kind {
            Kind::Word if text.iter().any(u8::is_ascii_uppercase) => {
                Some(Cow::Owned(text.to_ascii_lowercase()))
            }
            Kind::Word => Some(Cow::Borrowed(text)),
            Kind::QuotedWord => {
                let inner = &text[1..text.len() - 1];
                if !inner.contains(&b'"') {
                    return Some(Cow::Borrowed(inner));
                }
                let mut name = Vec::with_capacity(inner.len());
                let mut bytes = inner.iter();
                while let Some(&b) = bytes.next() {
                    name.push(b);
                    if b == b'"' {
                        bytes.next();
                    }
                }
                Some(Cow::Owned(name))
            }
            _ => None,
        }
    }
}

/// Where a string goes on after its closing quote: past the next opening quote, if only space with
/// at least one line end lies between.
fn continuation(sql: &[u8], mut at: usize) -> Option<usize> {
    let mut new_line = false;
    loop {
        match sql.get(at)? {
            b'\n' | b'\r' => new_line = true,
            b' ' | b'\t' | 0x0b | 0x0c => {}
            b'-' if sql.get(at + 1) == Some(&b'-') => {
                let rest = &sql[at..];
                at += rest.iter().position(|b| matches!(b, b'\n' | b'\r'))?;
                continue;
            }
            b'\'' if new_line => return Some(at + 1),
            _ => return None,
        }
        at += 1;
    }
}

/// What a token that begins with a byte can be.
#[derive(Clone, Copy, PartialEq)]
enum Start {
    Space,
    Word,
    Digit,
    Operator,
    Single(Kind),
    Quote,
    DoubleQuote,
    Dollar,
    Dot,
    Colon,
    Other,
}

const CLASSES: [Start; 256] = {
    let mut classes = [Start::Other; 256];
    let mut b = 0;
    while b < 256 {
        classes[b] = match b as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => Start::Space,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => Start::Word,
            b'0'..=b'9' => Start::Digit,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'+' | b'-' | b'*'
            | b'/' | b'%' | b'<' | b'>' | b'=' => Start::Operator,
            b'(' => Start::Single(Kind::Open),
            b')' => Start::Single(Kind::Close),
            b'[' => Start::Single(Kind::OpenBracket),
            b']' => Start::Single(Kind::CloseBracket),
            b',' => Start::Single(Kind::Comma),
            b';' => Start::Single(Kind::Semicolon),
            b'\'' => Start::Quote,
            b'"' => Start::DoubleQuote,
            b'$' => Start::Dollar,
            b'.' => Start::Dot,
            b':' => Start::Colon,
            _ => Start::Other,
        };
        b += 1;
    }
    classes
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The solid tokens of a text, joined by `|`.
    fn tokens(sql: &str) -> String {
        let mut lexer = Lexer::new(sql.as_bytes(), true);
        std::iter::from_fn(|| lexer.solid())
            .map(|t| &sql[t.start..t.end])
            .collect::<Vec<_>>()
            .join("|")
    }

    fn kinds(sql: &str) -> Vec<Kind> {
        let mut lexer = Lexer::new(sql.as_bytes(), true);
        std::iter::from_fn(|| lexer.solid())
            .map(|t| t.kind)
            .collect()
    }

    #[test]
    fn strings_end_where_the_server_ends_them() {
        for whole in [
            "'it''s'",
            "'back\\'",
            "E'quote \\' inside'",
            "e'\\\\'",
            "B'101'",
            "x'1F'",
            "N'n'",
            "U&'d\\0061t'",
            "$$a ' b$$",
            "$tag$ $$ $tagg$ $tag$",
            "'a'\n  'b'",
            "'a' -- comment\n -- another\r\n 'b'",
        ] {
            assert_eq!(kinds(whole), [Kind::String], "{whole}");
        }
        assert_eq!(tokens("'a' 'b'"), "'a'|'b'");
        assert_eq!(tokens("'a' /* */ \n 'b'"), "'a'|'b'");
        assert_eq!(tokens("a$b$c$ d"), "a$b$c$|d");
        for broken in ["'a", "E'a\\'", "$x$ $y$", "\"a", "/* /* */", "U&\"a"] {
            assert_eq!(kinds(broken), [Kind::Broken], "{broken}");
        }
    }

    #[test]
    fn backslashes_escape_only_where_they_should() {
        let sql = b"'a\\' or 'c'";
        let count = |conforming| Lexer::new(sql, conforming).count();
        assert_eq!(
            (count(true), count(false)),
            (5, 3),
            "the second ends in an open string"
        );
    }

    #[test]
    fn operators_follow_the_rules() {
        for (sql, expected) in [
            ("a=-1", "a|=|-|1"),
            ("a@-1", "a|@-|1"),
            ("a->>'b'", "a|->>|'b'"),
            ("a::int", "a|::|int"),
            ("a:=1", "a|:=|1"),
            ("a=>1", "a|=>|1"),
            ("1*/**/2", "1|*|2"),
            ("1+--x\n2", "1|+|2"),
            ("a<--x\nb", "a|<|b"),
            ("a[1:2]", "a|[|1|:|2|]"),
            ("*-1", "*|-|1"),
            ("?|array", "?||array"),
        ] {
            assert_eq!(tokens(sql), expected, "{sql}");
        }
    }

    #[test]
    fn numbers_never_swallow_a_keyword() {
        for (sql, expected) in [
            ("1.5e3", "1.5e3"),
            ("1e", "1|e"),
            (".5", ".5"),
            ("1..2", "1|.|.2"),
            ("1_000", "1_000"),
            ("1__0", "1|__0"),
            ("0x1F", "0x1F"),
            ("0xfor", "0xf|or"),
            ("0b10", "0b10"),
            ("0o17", "0o17"),
            ("1into t", "1|into|t"),
            ("1for update", "1|for|update"),
            ("$1and", "$1|and"),
            ("t.1", "t|.1"),
            ("1.e5x", "1.e5|x"),
        ] {
            assert_eq!(tokens(sql), expected, "{sql}");
        }
    }

    #[test]
    fn names_fold_as_on_the_server() {
        let name = |sql: &'static str| {
            let token = Lexer::new(sql.as_bytes(), true).solid().expect("a token");
            token
                .name(sql.as_bytes())
                .map(|n| String::from_utf8_lossy(&n).into_owned())
        };
        assert_eq!(name("FooBar").as_deref(), Some("foobar"));
        assert_eq!(name("\"Foo\"\"Bar\"").as_deref(), Some("Foo\"Bar"));
        assert_eq!(name("U&\"x\""), None);
        assert_eq!(name("1"), None);
    }

    proptest! {
        #[test]
        fn tokens_tile_any_bytes(
            sql in prop::collection::vec(
                prop_oneof![
                    any::<u8>(),
                    prop::sample::select(b"'\"$\\/*-;()\n eEuU&xX01._:=".to_vec()),
                ],
                0..200,
            ),
            conforming: bool,
        ) {
            let mut at = 0;
            for token in Lexer::new(&sql, conforming) {
                prop_assert_eq!(token.start, at);
                prop_assert!(token.end > at);
                at = token.end;
            }
            prop_assert_eq!(at, sql.len());
            let mut last = 0;
            for range in statements(&sql, conforming) {
                prop_assert!(last <= range.start && range.start < range.end);
                last = range.end;
            }
            prop_assert!(last <= sql.len());
        }
    }
}
