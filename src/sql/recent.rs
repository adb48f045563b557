//! Each thread's short memory of texts and their classes.
//!
//! Owns: the comparison that spares most texts the lexer. Never: takes two texts for alike whose
//! normal forms differ; a text that it does not know is no more than not known.
//!
//! Applications send the same few texts again and again, with other numbers and strings in them. A
//! text that is a remembered one but for the content of such literals has the same tokens, hence the
//! same normal form, hence the same class. Comparing takes a tenth of what lexing does.

use std::cell::RefCell;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::FixedState;
use smallvec::SmallVec;

use super::Class;
use super::lexer::{Kind, Lexer};

/// The longest text that is remembered, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Texts that a thread remembers.
const TEXTS_MAX: usize = 256;

/// A text with more literals than this is not remembered.
const LITERALS_MAX: usize = 32;

thread_local! {
    static MEMORY: RefCell<Memory> = const { RefCell::new(Memory { owner: 0, places: Vec::new() }) };
}

/// The class of `sql` if this thread remembers it from the classifier `owner`. For texts under
/// standard strings only.
#[inline]
pub fn find(owner: u64, sql: &[u8]) -> Option<Arc<Class>> {
    if sql.len() > TEXT_BYTES_MAX {
        return None;
    }
    MEMORY.with_borrow_mut(|memory| {
        if memory.owner != owner {
            return None;
        }
        let known = memory.places.get_mut(place(sql))?.as_mut()?;
        if !known.is_like(sql) {
            return None;
        }
        known.disputed = false;
        Some(known.class.clone())
    })
}

/// Remembers the class that the classifier `owner` has found for `sql`, in place of a text that was
/// not met since another one wanted its place.
pub fn note(owner: u64, sql: &[u8], class: &Arc<Class>) {
    if sql.len() > TEXT_BYTES_MAX {
        return;
    }
    MEMORY.with_borrow_mut(|memory| {
        if memory.owner != owner {
            memory.owner = owner;
            memory.places.clear();
            memory.places.resize_with(TEXTS_MAX, || None);
        }
        let Some(known) = memory.places.get_mut(place(sql)) else {
            return;
        };
        match known {
            Some(other) if !other.disputed => other.disputed = true,
            _ => {
                let room = known.take().map(|known| known.text);
                *known = Known::new(room.unwrap_or_default(), sql, class);
            }
        }
    });
}

struct Memory {
    /// Whose classes these are; another classifier may have other rules.
    owner: u64,
    /// By [`place`].
    places: Vec<Option<Known>>,
}

struct Known {
    text: Vec<u8>,
    /// Where the text's plain literals are, in order.
    literals: SmallVec<[Literal; 4]>,
    class: Arc<Class>,
    /// Another text has asked for the place since this was last met.
    disputed: bool,
}

/// A literal whose content does not matter.
struct Literal {
    at: Range<usize>,
    /// `'…'` with no quote in it; else digits.
    is_string: bool,
}

impl Known {
    /// Keeps the text in `room`, whatever is in that.
    fn new(mut room: Vec<u8>, sql: &[u8], class: &Arc<Class>) -> Option<Known> {
        let mut literals = SmallVec::new();
        let mut lexer = Lexer::new(sql, true);
        while let Some(token) = lexer.solid() {
            let text = token.text(sql);
            let is_plain = match token.kind {
                Kind::String => is_plain_string(text),
                Kind::Number => is_plain_number(text, sql.get(token.end)),
                _ => false,
            };
            if !is_plain {
                continue;
            }
            if literals.len() == LITERALS_MAX {
                return None;
            }
            literals.push(Literal {
                at: token.start..token.end,
                is_string: token.kind == Kind::String,
            });
        }
        room.clear();
        room.extend_from_slice(sql);
        Some(Known {
            text: room,
            literals,
            class: class.clone(),
            disputed: false,
        })
    }

    /// Whether `sql` is this text but for the content of its plain literals. What is between them
    /// is the same to the byte, and no literal can run into it: numbers end at a byte that can't go
    /// on with one, and a quote that ends a string is followed by what followed it here.
    fn is_like(&self, sql: &[u8]) -> bool {
        let mut rest = sql;
        let mut from = 0;
        for literal in &self.literals {
            let Some(between) = self.text.get(from..literal.at.start) else {
                return false;
            };
            let Some(after) = rest.strip_prefix(between) else {
                return false;
            };
            let Some(n) = literal_length(after, literal.is_string) else {
                return false;
            };
            rest = after.get(n..).unwrap_or(&[]);
            from = literal.at.end;
        }
        self.text.get(from..) == Some(rest)
    }
}

/// How long the plain literal is that `text` begins with.
#[inline]
fn literal_length(text: &[u8], is_string: bool) -> Option<usize> {
    if !is_string {
        let digits = text.iter().position(|b| !b.is_ascii_digit());
        return Some(digits.unwrap_or(text.len())).filter(|n| *n > 0);
    }
    let inner = text.strip_prefix(b"'")?;
    let end = memchr::memchr(b'\'', inner)? + 2;
    // Two quotes in a row are one in the string.
    (text.get(end) != Some(&b'\'')).then_some(end)
}

fn is_plain_string(text: &[u8]) -> bool {
    literal_length(text, true) == Some(text.len())
}

fn is_plain_number(text: &[u8], next: Option<&u8>) -> bool {
    // Nothing that a number could go on with, whatever its digits are.
    let ends = matches!(
        next,
        None | Some(b' ' | b'\t' | b'\n' | b'\r' | b',' | b')' | b';')
    );
    ends && text.iter().all(u8::is_ascii_digit)
}

/// Where a text is remembered: the same for all that differ in the content of plain literals. Looks
/// at the bytes before the first byte that may belong to one.
#[inline]
fn place(sql: &[u8]) -> usize {
    let head = plain_bytes(sql);
    let bytes = |at: usize| -> u64 {
        let bytes = sql.get(at..).unwrap_or(&[]);
        bytes
            .first_chunk()
            .map_or(0, |chunk| u64::from_le_bytes(*chunk))
    };
    let before = match head {
        // Not enough for a whole word: the bytes one by one.
        0..8 => sql[..head]
            .iter()
            .fold(0, |word, b| word << 8 | u64::from(*b)),
        _ => bytes(head - 8) ^ bytes(head / 2 - 4).rotate_left(17) ^ bytes(0).rotate_left(31),
    };
    FixedState::with_seed(head as u64).hash_one(before) as usize % TEXTS_MAX
}

/// How many bytes there are before the first digit or quote.
#[inline]
fn plain_bytes(sql: &[u8]) -> usize {
    let (words, rest) = sql.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let found = literal_starts(u64::from_le_bytes(*word));
        if found != 0 {
            return 8 * index + found.trailing_zeros() as usize / 8;
        }
    }
    let may_begin_literal = |b: &u8| b.is_ascii_digit() || *b == b'\'';
    let at = rest.iter().position(may_begin_literal);
    8 * words.len() + at.unwrap_or(rest.len())
}

/// The highest bit of each of eight bytes that is a digit or a quote.
#[inline]
fn literal_starts(bytes: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const LOW: u64 = 0x7f * EACH;
    // The highest bit of each byte that is more than `most`. No sum of the lower bits runs over into
    // the next byte.
    let exceeds = |bytes: u64, most: u64| ((bytes & LOW) + (0x7f - most) * EACH) | bytes;
    let no_digit = exceeds(bytes ^ (u64::from(b'0') * EACH), 9);
    let no_quote = exceeds(bytes ^ (u64::from(b'\'') * EACH), 0);
    !(no_digit & no_quote) & !LOW
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::classify::{Reading, classify};
    use super::super::fingerprint;
    use super::super::functions::Rules;
    use super::*;

    fn class() -> Arc<Class> {
        let reading = Reading::Normal(Default::default());
        Arc::new(classify(b"select 1", reading, &Rules::default()))
    }

    fn alike(a: &str, b: &str) -> bool {
        let known = Known::new(Vec::new(), a.as_bytes(), &class()).expect("few literals");
        known.is_like(b.as_bytes())
    }

    #[test]
    fn plain_literals_do_not_count() {
        let a = "select a1 from t where b = 5 and c = 'x' and d in (1, 2)";
        let b = "select a1 from t where b = 77 and c = '\\ y -- ' and d in (10, 200)";
        assert!(alike(a, b) && alike(b, a));
        assert!(alike("select 1", "select 23") && alike("select 'a'", "select ''"));
    }

    #[test]
    fn everything_else_does() {
        for (a, b) in [
            ("select 1", "select 1 "),
            ("select 1", "select a"),
            ("select 1", "select 0x1"),
            ("select 1", "select 1.5"),
            ("select 1", "select 1e5"),
            ("select 1", "select 1_0"),
            ("select 1", "select "),
            ("select 'a'", "select 'a''b'"),
            ("select 'a'", "select 'a' 'b'"),
            ("select 'a'", "select 'a"),
            ("select 'a', b", "select 'a', ', b"),
            ("select E'a'", "select E'b'"),
            ("select $1", "select $2"),
            ("select t1", "select t2"),
            ("select $$1$$", "select $$2$$"),
            ("select 1 -- 1", "select 1 -- 2"),
            ("select 1;delete from t", "select 1"),
        ] {
            assert!(!alike(a, b), "{a:?} {b:?}");
        }
    }

    #[test]
    fn what_is_met_keeps_its_place() {
        let (one, two) = (class(), class());
        // Of one place, as they begin alike.
        let (a, b) = (b"select 1 from a", b"select 1 from b");
        assert_eq!(place(a), place(b));
        note(u64::MAX, a, &one);
        assert!(Arc::ptr_eq(
            &find(u64::MAX, b"select 23 from a").unwrap(),
            &one
        ));
        note(u64::MAX, b, &two);
        assert!(find(u64::MAX, b).is_none());
        assert!(find(u64::MAX, a).is_some());
        note(u64::MAX, b, &two);
        note(u64::MAX, b, &two);
        assert!(Arc::ptr_eq(&find(u64::MAX, b).unwrap(), &two));
        assert!(find(u64::MAX - 1, b).is_none(), "of other rules");
    }

    #[test]
    fn every_byte_is_told_in_every_place() {
        for byte in 0..=u8::MAX {
            for place in 0..20 {
                let mut text = [b'x'; 20];
                text[place] = byte;
                let expected = match byte {
                    b'0'..=b'9' | b'\'' => place,
                    _ => text.len(),
                };
                assert_eq!(plain_bytes(&text), expected, "{byte} at {place}");
                // Whatever comes before it.
                if place > 0 {
                    text[place - 1] = 0xff;
                    assert_eq!(plain_bytes(&text), expected, "{byte} at {place}");
                }
            }
        }
    }

    fn piece() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "1", "23", "0", "0x1", "1_0", "1e5", ".5", "1.", "'a'", "'b'", "''", "'\\'", "'a''b'",
            "E'x'", "E'\\''", "U&'a'", "n'q'", "x'1'", "'", "\"", "\"q\"", "$1", "$$", "$a$", "--",
            "/*", "*/", "\n", " ", " ", " ", "(", ")", ",", "-", "+", ";", ".", "select", "null",
            "x", "e", "\\", "é",
        ])
    }

    proptest! {
        #[test]
        fn alike_texts_have_one_normal_form(
            pieces in prop::collection::vec((piece(), piece(), prop::bool::weighted(0.3)), 0..12),
        ) {
            let a: String = pieces.iter().map(|(a, _, _)| *a).collect();
            let b: String = pieces.iter().map(|(a, b, other)| if *other { *b } else { *a }).collect();
            if alike(&a, &b) {
                prop_assert_eq!(place(a.as_bytes()), place(b.as_bytes()));
                let form = |text: &str| {
                    let mut form = Vec::new();
                    let shape = fingerprint::normalise(text.as_bytes(), true, &mut form);
                    (shape, form)
                };
                prop_assert_eq!(form(&a), form(&b));
            }
        }
    }
}
