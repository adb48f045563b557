//! PostgreSQL's lexical syntax over bytes.
//!
//! Owns: where each token starts and ends. Never: fails, or asks what a token means; lexing itself
//! never allocates.
//!
//! Follows `scan.l`. Where versions differ (numbers that run into a word), the token is the shorter
//! one, so that no keyword can hide at the end of another token.

mod content;
mod cursor;
mod split;

#[cfg(test)]
mod tests;

pub use content::{NESTING_MAX, clipped, mentions, string_content, string_value};
pub use cursor::Cursor;
pub use split::{Statements, statements};

/// Reads tokens from the start of a text to its end. Tokens tile the text: trivia is a token too.
#[derive(Clone)]
pub struct Lexer<'a> {
    sql: &'a [u8],
    at: usize,
    conforming: bool,
    /// Where the signs end that were at the end of a run of operator characters and are a token each.
    signs_end: usize,
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

/// The comments that a text begins with.
pub fn leading_comments(sql: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut lexer = Lexer::new(sql, true);
    let trivia = std::iter::from_fn(move || {
        let token = lexer.token()?;
        matches!(token.kind, Kind::Space | Kind::Comment).then_some(token)
    });
    trivia
        .filter(|token| token.kind == Kind::Comment)
        .filter_map(|token| sql.get(token.start..token.end))
}

impl<'a> Lexer<'a> {
    /// `conforming` is the server's `standard_conforming_strings`: whether a backslash in `'…'` is
    /// an ordinary character.
    pub fn new(sql: &'a [u8], conforming: bool) -> Self {
        Lexer {
            sql,
            at: 0,
            conforming,
            signs_end: 0,
        }
    }

    /// The next token that is neither space nor comment.
    #[inline]
    pub fn solid(&mut self) -> Option<Token> {
        loop {
            // Most trivia is one space, which is not worth a token here.
            self.skip_while(|b| CLASSES[b as usize] == Start::Space);
            let token = self.token()?;
            if token.kind != Kind::Comment {
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

    #[inline]
    fn word(&mut self, first: u8) -> Kind {
        if let Some(b'\'' | b'&') = self.peek(0)
            && let Some(kind) = self.prefixed(first)
        {
            return kind;
        }
        self.skip_while(|b| WORD_PARTS[b as usize]);
        Kind::Word
    }

    /// A string or name whose form is told by the letter before its quote, which follows at once.
    fn prefixed(&mut self, first: u8) -> Option<Kind> {
        let kind = match (first | 0x20, self.peek(0), self.peek(1)) {
            (b'e', Some(b'\''), _) => {
                self.at += 1;
                self.string(true)
            }
            (b'b' | b'x', Some(b'\''), _) => {
                self.at += 1;
                self.string(false)
            }
            (b'n', Some(b'\''), _) => {
                self.at += 1;
                let escapes = !self.conforming;
                self.string(escapes)
            }
            (b'u', Some(b'&'), Some(b'\'')) => {
                self.at += 2;
                self.string(false)
            }
            (b'u', Some(b'&'), Some(b'"')) => {
                self.at += 2;
                self.quoted(Kind::UnicodeWord)
            }
            _ => return None,
        };
        Some(kind)
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
        if start < self.signs_end {
            return Kind::Operator;
        }
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
            self.signs_end = end;
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
}

/// Whether `word` is anywhere in a text, in whatever case and as a part of whatever.
pub fn contains(sql: &[u8], word: &[u8]) -> bool {
    sql.windows(word.len())
        .any(|part| part.eq_ignore_ascii_case(word))
}

/// Whether the server refuses `sql` as a whole, under whatever settings, for a string, name or comment
/// that does not end. What a backslash is in it depends on these.
pub fn is_unclosed(sql: &[u8]) -> bool {
    !sql.contains(&b'\\') && Lexer::new(sql, true).any(|token| token.kind == Kind::Broken)
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

/// The bytes that a word may go on with.
const WORD_PARTS: [bool; 256] = {
    let mut parts = [false; 256];
    let mut b = 0;
    while b < 256 {
        parts[b] = matches!(CLASSES[b], Start::Word | Start::Digit | Start::Dollar);
        b += 1;
    }
    parts
};
