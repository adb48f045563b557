//! The normal form of a text: what texts of one class share.
//!
//! Owns: which differences between texts do not count (literals, parameters, space, comments, the
//! case of keywords), and the measures that say what may reach the parser. Never: hashes two texts
//! to one key; the normal form itself is the key, and it is also all that a class is made from. So
//! no literal can decide a class, and no collision can change one.
//!
//! The normal form is SQL again: numbers are `0`, strings `''`, parameters `$1`. A list of literals
//! is its first one, and a list of rows of literals its first row, so that `IN (…)` and `VALUES`
//! of any length are one text. An ordinary token never disappears: only literals, the commas
//! between them and the parentheses around them do.

use std::cell::Cell;

use super::lexer::{Kind, Lexer};

/// The longest normal form, in bytes, that is parsed and cached. A parser takes some 100 ns for
/// each byte.
pub const BYTES_MAX: usize = 16 * 1024;
/// The deepest nesting that is measured, and so far above what may be parsed.
const DEPTH_MAX: usize = 32;
/// Scratch buffers above this capacity are given back rather than kept by the thread.
const SCRATCH_MAX: usize = 4 * BYTES_MAX;

/// What a parser's stack depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Tokens in the longest run at one depth that no comma divides: operators chain in such a run,
    /// and a parser nests them. Set operations, which chain across commas, count on.
    pub chain: usize,
    /// The deepest nesting of parentheses, brackets and CASE.
    pub depth: usize,
}

/// Normalises `sql` into this thread's scratch buffer and hands it over, with its shape. `None` if
/// the normal form is longer than [`BYTES_MAX`]. `conforming` as for [`Lexer::new`].
pub fn with<R>(sql: &[u8], conforming: bool, then: impl FnOnce(Option<(&[u8], Shape)>) -> R) -> R {
    thread_local! {
        static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }
    let mut out = SCRATCH.take();
    let result = match normalise(sql, conforming, &mut out) {
        Some(shape) => then(Some((&out, shape))),
        None => then(None),
    };
    if out.capacity() <= SCRATCH_MAX {
        SCRATCH.set(out);
    }
    result
}

/// Writes the normal form of `sql` over `out`. `None` if it would be longer than [`BYTES_MAX`].
pub fn normalise(sql: &[u8], conforming: bool, out: &mut Vec<u8>) -> Option<Shape> {
    out.clear();
    out.reserve((2 * sql.len()).min(BYTES_MAX + 64));
    let mut lexer = Lexer::new(sql, conforming);
    let mut form = Form {
        out,
        last: Tail::Start,
        tails: Tails(0),
        starts: [0; 2],
        folded: 0,
    };
    let mut measure = Measure::default();
    while let Some(token) = lexer.solid() {
        let text = &sql[token.start..token.end];
        let mut folded = false;
        match token.kind {
            Kind::Number => {
                let next = || lexer.clone().solid();
                folded = form.number(|| next().is_some_and(|next| next.text(sql) == b"::"));
            }
            Kind::String => folded = form.literal(b"''"),
            Kind::Parameter => folded = form.literal(b"$1"),
            Kind::Word => {
                form.push(Tail::Word, text);
                measure.word(text);
            }
            Kind::Comma => {
                if form.constant_ends() {
                    measure.rejoin();
                }
                form.push(Tail::Comma, b",");
                measure.comma();
            }
            Kind::Open | Kind::OpenBracket => {
                form.push(Tail::Open, text);
                measure.open();
            }
            Kind::Close => {
                if form.constant_ends() {
                    measure.rejoin();
                }
                folded = form.close();
                measure.close();
            }
            Kind::CloseBracket => {
                form.push(Tail::Close, text);
                measure.close();
            }
            Kind::Operator if matches!(text, b"-" | b"+") => form.push(Tail::Sign, text),
            Kind::Dot => form.push(Tail::Dot, text),
            Kind::Semicolon => {
                form.push(Tail::Close, text);
                measure.semicolon();
            }
            Kind::QuotedWord | Kind::UnicodeWord => form.push_verbatim(Tail::Quoted, text),
            Kind::Operator => form.push(Tail::Other, text),
            Kind::Other | Kind::Broken => form.push_verbatim(Tail::Other, text),
            Kind::Space | Kind::Comment => {}
        }
        if folded {
            measure.rejoin();
        } else {
            measure.token();
        }
        if form.out.len() > BYTES_MAX {
            return None;
        }
    }
    form.fold();
    Some(measure.shape())
}

/// What a token of the normal form is, as far as the next one cares.
#[derive(Clone, Copy, PartialEq)]
#[repr(u8)]
enum Tail {
    Start,
    Word,
    Quoted,
    Literal,
    Open,
    Close,
    Comma,
    Dot,
    /// `+` or `-`.
    Sign,
    Other,
}

/// The last sixteen tokens, the newest in the lowest four bits.
#[derive(Clone, Copy)]
struct Tails(u64);

impl Tails {
    #[inline]
    fn push(&mut self, tail: Tail) {
        self.0 = self.0 << 4 | tail as u64;
    }

    #[inline]
    fn pop(&mut self, count: u32) {
        self.0 >>= 4 * count;
    }

    /// Whether the last two tokens are `before` and `last`.
    #[inline]
    fn end(self, before: Tail, last: Tail) -> bool {
        self.0 & 0xff == (before as u64) << 4 | last as u64
    }

    /// Whether the last token is `last` and begins an element of a list.
    #[inline]
    fn begin_with(self, last: Tail) -> bool {
        self.end(Tail::Open, last) || self.end(Tail::Comma, last)
    }
}

/// The normal form so far.
struct Form<'a> {
    out: &'a mut Vec<u8>,
    last: Tail,
    tails: Tails,
    /// Where the last two tokens start.
    starts: [usize; 2],
    /// Up to where letters have their final case.
    folded: usize,
}

impl Form<'_> {
    #[inline]
    fn push(&mut self, tail: Tail, text: &[u8]) {
        if !parted(self.last, tail) {
            self.out.push(b' ');
        }
        self.starts = [self.starts[1], self.out.len()];
        self.out.extend_from_slice(text);
        self.tails.push(tail);
        self.last = tail;
    }

    /// Pushes a token whose letters keep their case.
    fn push_verbatim(&mut self, tail: Tail, text: &[u8]) {
        self.fold();
        self.push(tail, text);
        self.folded = self.out.len();
    }

    /// Folds the letters of all tokens up to here. Once for many of them is faster than for each.
    fn fold(&mut self) {
        // What has been taken back since may have ended before.
        let start = self.folded.min(self.out.len());
        self.out[start..].make_ascii_lowercase();
        self.folded = self.out.len();
    }

    /// Takes the last token back, which follows a comma, an opening bracket or a literal.
    fn pop(&mut self, last: Tail) {
        self.out.truncate(self.starts[1]);
        self.starts[1] = self.starts[0];
        self.tails.pop(1);
        self.last = last;
    }

    /// `true` if it is gone, with the comma before it. `is_cast` tells whether a cast follows it.
    #[inline]
    fn number(&mut self, is_cast: impl FnOnce() -> bool) -> bool {
        // A sign at the start of an element is part of the number, but after a cast it is an operator
        // of the type.
        if self.tails.begin_with(Tail::Sign) && !is_cast() {
            self.pop(Tail::Comma);
        }
        self.literal(b"0")
    }

    /// `true` if it is gone, with the comma before it.
    #[inline]
    fn literal(&mut self, placeholder: &[u8]) -> bool {
        let folds = self.tails.end(Tail::Literal, Tail::Comma);
        if folds {
            self.pop(Tail::Literal);
        } else {
            self.push(Tail::Literal, placeholder);
        }
        folds
    }

    /// An element that is nothing but a constant keyword is a literal like any other. `true` if it
    /// is gone, with the comma before it.
    #[inline]
    fn constant_ends(&mut self) -> bool {
        let constant = self.tails.begin_with(Tail::Word)
            && CONSTANTS
                .iter()
                .any(|constant| self.out[self.starts[1]..].eq_ignore_ascii_case(constant));
        if !constant {
            return false;
        }
        self.pop(Tail::Comma);
        self.literal(b"0")
    }

    /// A closing parenthesis. A row of one folded literal is dropped after another one: `true` if
    /// it is, with the comma before it.
    #[inline]
    fn close(&mut self) -> bool {
        let row = self.tails.end(Tail::Open, Tail::Literal);
        self.push(Tail::Close, b")");
        if row && let Some(first) = second_row(self.out) {
            self.out.truncate(first);
            self.tails.pop(4);
            return true;
        }
        false
    }
}

/// Keywords that are a value where one stands alone in a list.
const CONSTANTS: [&[u8]; 4] = [b"null", b"true", b"false", b"default"];

/// If `out` ends in two rows of one literal each, where the first of them ends.
fn second_row(out: &[u8]) -> Option<usize> {
    let row = |out: &[u8]| {
        [&b"(0)"[..], b"('')", b"($1)"]
            .iter()
            .find(|row| out.ends_with(row))
            .map(|row| out.len() - row.len())
    };
    let before = out[..row(out)?].strip_suffix(b",")?;
    row(before).map(|_| before.len())
}

/// Whether two tokens read as two without a space between them.
#[inline]
fn parted(last: Tail, next: Tail) -> bool {
    matches!(
        (last, next),
        (Tail::Start | Tail::Open | Tail::Comma, _)
            | (_, Tail::Close | Tail::Comma)
            | (Tail::Dot, Tail::Word | Tail::Quoted)
            | (
                Tail::Word | Tail::Quoted | Tail::Close,
                Tail::Dot | Tail::Open
            )
    )
}

/// Counts what [`Shape`] reports.
#[derive(Default)]
struct Measure {
    chain: u32,
    deepest: usize,
    depth: usize,
    run: Run,
    /// The runs around this one. What is deeper than is measured goes on with the last.
    outer: [Run; DEPTH_MAX],
}

#[derive(Clone, Copy, Default)]
struct Run {
    tokens: u32,
    /// What remains when a comma ends the run.
    kept: u32,
    /// How many tokens there were at the last comma.
    before: u32,
}

impl Measure {
    #[inline]
    fn token(&mut self) {
        self.run.tokens += 1;
    }

    #[inline]
    fn word(&mut self, text: &[u8]) {
        let is = |word: &str| text.eq_ignore_ascii_case(word.as_bytes());
        match (text.len(), text[0] | 0x20) {
            (4, b'c') if is("case") => self.open(),
            (3, b'e') if is("end") => self.close(),
            (5, b'u') if is("union") => self.run.kept += 1,
            (6, b'e') if is("except") => self.run.kept += 1,
            (9, b'i') if is("intersect") => self.run.kept += 1,
            _ => {}
        }
    }

    #[inline]
    fn comma(&mut self) {
        self.ends();
        self.run.before = self.run.tokens;
        self.run.tokens = self.run.kept;
    }

    /// The last comma is gone, and what followed it: the run goes on as it was before.
    #[inline]
    fn rejoin(&mut self) {
        self.run.tokens = self.run.before;
    }

    fn semicolon(&mut self) {
        self.ends();
        self.run = Run::default();
    }

    #[inline]
    fn open(&mut self) {
        if let Some(outer) = self.outer.get_mut(self.depth) {
            *outer = std::mem::take(&mut self.run);
            self.chain = self.chain.max(outer.tokens);
        }
        self.depth += 1;
        self.deepest = self.deepest.max(self.depth);
    }

    #[inline]
    fn close(&mut self) {
        self.ends();
        // What closes nothing ends no run either: END may be a name for the parser.
        let Some(depth) = self.depth.checked_sub(1) else {
            return;
        };
        self.depth = depth;
        if let Some(outer) = self.outer.get_mut(self.depth) {
            self.run = std::mem::take(outer);
        }
    }

    #[inline]
    fn ends(&mut self) {
        self.chain = self.chain.max(self.run.tokens);
    }

    fn shape(mut self) -> Shape {
        self.ends();
        Shape {
            chain: self.chain as usize,
            depth: self.deepest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normal(sql: &str) -> String {
        let mut out = Vec::new();
        normalise(sql.as_bytes(), true, &mut out).expect("a short text");
        String::from_utf8(out).expect("text")
    }

    fn shape(sql: &str) -> Shape {
        normalise(sql.as_bytes(), true, &mut Vec::new()).expect("a short text")
    }

    #[test]
    fn what_does_not_count_is_gone() {
        for (sql, expected) in [
            (
                "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;",
                "select abalance from pgbench_accounts where aid = 0;",
            ),
            ("select/* c */1--x\n", "select 0"),
            ("SELECT  E'a\\'b' , $$x$$", "select ''"),
            (
                "select a.B, \"A\".\"b\" from T",
                "select a.b,\"A\".\"b\" from t",
            ),
            ("select t.* from t", "select t. * from t"),
            ("a = $7 and b = $12", "a = $1 and b = $1"),
            ("x in (1, 2, 3)", "x in(0)"),
            ("x in (-1, +2, -3)", "x in(0)"),
            ("x in ('a', 'b', $1)", "x in('')"),
            ("x in (1, y, 2, 3)", "x in(0,y,0)"),
            ("x in ('a', -'b', -1 :: t)", "x in('',- '',- 0 :: t)"),
            ("array[1,2,3]", "array[0]"),
            (
                "values (1,'a',null),(-2,'b',default), (null,null,true)",
                "values(0)",
            ),
            ("values ('a'),(1)", "values('')"),
            ("f(null, a) - 1", "f(0,a) - 0"),
            ("null", "null"),
            ("date '2020-01-01' + -1", "date '' + - 0"),
            ("a::numeric(10,2)", "a :: numeric(0)"),
            ("1.5.2 x.1", "0 0 x 0"),
            ("a - -1", "a - - 0"),
            ("a[1:2]", "a[0 : 0]"),
            ("\"x(0),(0\" (1)", "\"x(0),(0\"(0)"),
            ("U&\"x\" . U&\"y\"", "U&\"x\".U&\"y\""),
        ] {
            assert_eq!(normal(sql), expected, "{sql}");
        }
    }

    #[test]
    fn what_counts_stays_apart() {
        for (a, b) in [
            ("select a", "select \"A\""),
            ("select f (1)", "select f . g (1)"),
            ("explain analyze select 1", "explain select 1"),
            ("copy t to stdout", "copy t to 'stdout'"),
            ("select 1 for update", "select 1"),
            ("prepare transaction 'a'", "prepare transaction as select 1"),
            ("select - 1", "select 1"),
            ("f('a', -'b')", "f('a', 'b')"),
            ("f(-'b')", "f('b')"),
            ("f(-$1)", "f($1)"),
            ("f(-1::money)", "f(1::money)"),
            ("select 'a' 'b'", "select 'a'\n'b'"),
            ("select a, f(), 1", "select a, 1"),
        ] {
            assert_ne!(normal(a), normal(b), "{a} | {b}");
        }
    }

    #[test]
    fn shapes_measure_what_a_stack_depends_on() {
        assert_eq!(shape(&format!("select {}", "1+".repeat(500))).chain, 1001);
        assert_eq!(shape(&"1,".repeat(500)).chain, 1);
        assert!(shape(&"select 1,2 union ".repeat(500)).chain > 499);
        for folded in [
            "1, 2 + ",
            "1, null, 2 + ",
            "(1), (2) + ",
            "(1, null), (2) + ",
        ] {
            let chain = folded.repeat(500);
            assert!(shape(&chain).chain >= 1000, "{folded}");
            assert!(
                shape(&chain).chain >= shape(&normal(&chain)).chain,
                "{folded}"
            );
        }
        assert!(shape(&"(1, -2), ".repeat(500)).chain <= 3);
        assert_eq!(shape(&"(".repeat(90)).depth, 90);
        assert_eq!(shape(&"case when a then ".repeat(30)).depth, 30);
        assert_eq!(shape("f(a) + f(a) + f(a)").depth, 1);
        assert_eq!(shape(&"end + ".repeat(100)).chain, 200);
        assert!(shape(&"f(a, b) + ".repeat(100)).chain >= 300);
    }

    #[test]
    fn lists_of_any_length_are_one_text_and_others_are_bounded() {
        let list = |n| format!("select * from t where a in ({})", vec!["1"; n].join(", "));
        assert_eq!(normal(&list(10_000)), normal(&list(2)));
        let long = format!("select {}", "a, ".repeat(BYTES_MAX));
        assert_eq!(normalise(long.as_bytes(), true, &mut Vec::new()), None);
    }

    /// Tokens from which texts are put together.
    fn token() -> impl Strategy<Value = (String, String)> {
        let same = |s: &'static str| Just((s.to_owned(), s.to_owned()));
        prop_oneof![
            prop::sample::select(vec![
                "select", "from", "t", "null", "(", ")", "[", "]", ",", ".", "-", "+", "::", "->>",
                "in", "values", "$1", "\"Q\"", ";", "case", "end", "U&\"z\"", "*", ":", "@", "u"
            ])
            .prop_flat_map(same),
            (any::<u32>(), any::<u32>()).prop_map(|(a, b)| (a.to_string(), format!("{b}.5e1"))),
            ("[a-z;(-]{0,5}", "[a-z;(-]{0,5}")
                .prop_map(|(a, b)| (format!("'{a}'"), format!("$q${b}$q$"))),
        ]
    }

    proptest! {
        #[test]
        fn literals_space_and_comments_never_count(tokens in prop::collection::vec(token(), 0..40)) {
            let a: Vec<_> = tokens.iter().map(|(a, _)| a.as_str()).collect();
            let b: Vec<_> = tokens.iter().map(|(_, b)| b.as_str()).collect();
            let a = normal(&a.join(" "));
            let b = normal(&b.join(" /* x */\t--y\n/**/"));
            prop_assert_eq!(&a, &b);
            prop_assert_eq!(&normal(&a), &a, "a normal form is its own");
        }

        #[test]
        fn words_and_operators_never_disappear(tokens in prop::collection::vec(token(), 0..40)) {
            let words = |sql: &str| -> Vec<String> {
                Lexer::new(sql.as_bytes(), true)
                    .filter(|t| matches!(t.kind, Kind::Word | Kind::QuotedWord | Kind::Dot))
                    .map(|t| sql[t.start..t.end].to_owned())
                    .filter(|w| w != "null")
                    .collect()
            };
            let sql: Vec<_> = tokens.iter().map(|(a, _)| a.as_str()).collect();
            let sql = sql.join(" ");
            prop_assert_eq!(words(&sql), words(&normal(&sql)));
        }

        #[test]
        fn any_bytes_have_a_normal_form(
            sql in prop::collection::vec(any::<u8>(), 0..300), conforming: bool,
        ) {
            let mut out = Vec::new();
            prop_assert!(normalise(&sql, conforming, &mut out).is_some());
        }
    }
}
