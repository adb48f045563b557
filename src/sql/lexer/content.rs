//! What names and strings stand for.
//!
//! Owns: how the server reads a name or a string: folded, unquoted, cut off. Never: says where one ends.

use std::borrow::Cow;

use super::{Kind, Lexer, Token};
use crate::config::NAME_BYTES_MAX;

impl Token {
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

/// What the server keeps of a long name in a text: whole characters.
pub fn clipped(name: &[u8]) -> &[u8] {
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    let mut end = NAME_BYTES_MAX;
    while end > NAME_BYTES_MAX - 4 && name[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    &name[..end]
}

/// What is inside a string's quotes, whatever their form; doubled quotes within are left as they
/// are.
pub fn string_content(text: &[u8]) -> &[u8] {
    let quote = |b: &u8| matches!(b, b'\'' | b'$');
    let Some(start) = text.iter().position(quote) else {
        return &[];
    };
    let opening = if text.get(start) == Some(&b'$') {
        let rest = text.get(start + 1..).unwrap_or(&[]);
        start + 2 + rest.iter().position(|b| *b == b'$').unwrap_or(0)
    } else {
        start + 1
    };
    let closing = opening - start;
    text.get(opening..text.len().saturating_sub(closing))
        .unwrap_or(&[])
}

/// What a string constant stands for; `None` for escapes other than those of quotes and backslashes.
pub fn string_value(text: &[u8], conforming: bool) -> Option<String> {
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

/// How deep strings that hold SQL (the body of a DO, and what it executes) are read.
pub const NESTING_MAX: usize = 4;

/// Whether one of the names in `sql` is `wanted`, as the server folds and clips them, or is written
/// in a form that this does not read, or deeper than [`NESTING_MAX`]. `nested`: names within strings
/// count too.
pub fn mentions(
    sql: &[u8],
    conforming: bool,
    nested: bool,
    wanted: &mut dyn FnMut(&[u8]) -> bool,
) -> bool {
    mentions_within(sql, conforming, nested.then_some(NESTING_MAX), wanted)
}

/// `nesting`: how much deeper strings are read, if names within them count.
fn mentions_within(
    sql: &[u8],
    conforming: bool,
    nesting: Option<usize>,
    wanted: &mut dyn FnMut(&[u8]) -> bool,
) -> bool {
    let mut lexer = Lexer::new(sql, conforming);
    while let Some(token) = lexer.solid() {
        let found = match (token.kind, nesting) {
            (Kind::UnicodeWord | Kind::Broken, _) => true,
            // Whatever its quotes are, they are no part of a name. What is nested deeper is found
            // too, as quotes within are taken for those of another string.
            (Kind::String, Some(nesting)) => {
                let inner = string_content(token.text(sql));
                let deeper = nesting.checked_sub(1);
                !inner.is_empty()
                    && (deeper.is_none() || mentions_within(inner, conforming, deeper, wanted))
            }
            _ => token.name(sql).is_some_and(|name| wanted(clipped(&name))),
        };
        if found {
            return true;
        }
    }
    false
}
