//! Tests of the tokens.
//!
//! Owns: the corners of the lexical syntax. Never: needs a server.

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

/// The operator at the start of `run`, by the rule alone.
fn first_operator(run: &[u8]) -> &[u8] {
    let marked = |run: &[u8]| run.iter().any(|b| b"~!@#^&|`?%".contains(b));
    match run {
        [first @ .., b'+' | b'-'] if !first.is_empty() && !marked(first) => first_operator(first),
        _ => run,
    }
}

proptest! {
    #[test]
    fn any_run_of_operator_characters_is_divided_by_the_rule(
        runs in prop::collection::vec("[-+*/<>=@|]{1,12}", 1..4),
        between in prop::sample::select(vec![" ", "a", "(", "--x\n", "/**/"]),
    ) {
        let sql = runs.join(between);
        let mut at = 0;
        for token in Lexer::new(sql.as_bytes(), true) {
            prop_assert_eq!(token.start, at);
            at = token.end;
            if token.kind != Kind::Operator {
                continue;
            }
            let rest = &sql[token.start..];
            let is_part = |c: char| "-+*/<>=@|".contains(c);
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            let comments = ["--", "/*"].into_iter().filter_map(|comment| rest.find(comment));
            let run = &rest[..comments.chain([end]).min().unwrap_or(end)];
            prop_assert_eq!(token.text(sql.as_bytes()), first_operator(run.as_bytes()));
        }
        prop_assert_eq!(at, sql.len());
    }
}

/// Read again for each of its tokens, it would take hours.
#[test]
fn a_long_run_of_signs_is_read_once() {
    let sql = format!("select {}1", "+".repeat(4 << 20));
    assert_eq!(Lexer::new(sql.as_bytes(), true).count(), (4 << 20) + 3);
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
