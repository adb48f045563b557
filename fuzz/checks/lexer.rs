//! Tokens, statements and the normal form of any text.

use tidegate::sql::fingerprint::{BYTES_MAX, Shape, normalise};
use tidegate::sql::lexer::{Kind, Lexer, Token, statements};

use super::text::{respelled, solid};

pub fn check(sql: &[u8]) {
    for conforming in [true, false] {
        tokens_tile(sql, conforming);
        splitting_loses_nothing(sql, conforming);
        what_does_not_count_is_gone(sql, conforming);
    }
    let mut normal = Vec::new();
    if let Some(shape) = normalise(sql, true, &mut normal) {
        let mut again = Vec::new();
        let parsed = normalise(&normal, true, &mut again).expect("it is not longer");
        assert_eq!(again, normal, "a normal form is its own");
        // What reaches the parser is the normal form.
        assert!(parsed.chain <= shape.chain && parsed.depth <= shape.depth);
        what_counts_stays(sql, &normal);
    }
}

fn tokens_tile(sql: &[u8], conforming: bool) {
    let mut at = 0;
    for token in Lexer::new(sql, conforming) {
        assert!(token.start == at && token.end > at);
        at = token.end;
        reads_alone(token, sql, conforming);
        if token.kind == Kind::Broken {
            assert_eq!(at, sql.len(), "what is not closed goes on to the end");
        }
        let is_name = matches!(token.kind, Kind::Word | Kind::QuotedWord);
        assert_eq!(token.name(sql).is_some(), is_name);
    }
    assert_eq!(at, sql.len());
    let skips: Vec<_> = Lexer::new(sql, conforming)
        .filter(|token| !matches!(token.kind, Kind::Space | Kind::Comment))
        .collect();
    assert_eq!(solid(sql, conforming), skips);
}

/// A token is the same without what surrounds it.
fn reads_alone(token: Token, sql: &[u8], conforming: bool) {
    let text = token.text(sql);
    let mut alone = Lexer::new(text, conforming);
    let (kind, start, end) = (token.kind, 0, text.len());
    assert_eq!(alone.next(), Some(Token { kind, start, end }));
}

fn splitting_loses_nothing(sql: &[u8], conforming: bool) {
    let trivial = |between: &[u8]| {
        Lexer::new(between, conforming)
            .all(|token| matches!(token.kind, Kind::Space | Kind::Comment | Kind::Semicolon))
    };
    let (mut at, mut count) = (0, 0);
    for range in statements(sql, conforming) {
        assert!(at <= range.start && range.start < range.end);
        assert!(trivial(&sql[at..range.start]));
        let mut alone = statements(&sql[range.clone()], conforming);
        assert_eq!(alone.next(), Some(0..range.len()), "a statement is one");
        assert_eq!(alone.next(), None);
        at = range.end;
        count += 1;
    }
    assert!(trivial(&sql[at..]));
    let semicolons = solid(sql, conforming)
        .iter()
        .filter(|token| token.kind == Kind::Semicolon)
        .count();
    assert!(count <= semicolons + 1);
}

fn what_does_not_count_is_gone(sql: &[u8], conforming: bool) {
    let other = respelled(sql, conforming, sql);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let shape = normalise(sql, conforming, &mut a);
    assert_eq!(normalise(&other, conforming, &mut b), shape);
    if let Some(Shape { chain, depth }) = shape {
        assert_eq!(a, b, "{}", other.escape_ascii());
        assert!(a.len() <= BYTES_MAX);
        let tokens = solid(sql, conforming).len();
        assert!(chain <= tokens && depth <= tokens);
    }
    let count = statements(sql, conforming).count();
    assert_eq!(statements(&other, conforming).count(), count);
}

/// Literals, the commas between them and the parentheses around them may go; nothing else may, and
/// nothing may come.
fn what_counts_stays(sql: &[u8], normal: &[u8]) {
    let counts = |sql: &[u8]| -> Vec<Vec<u8>> {
        let fold = |token: &Token| match token.kind {
            Kind::Word => token.text(sql).to_ascii_lowercase(),
            _ => token.text(sql).to_vec(),
        };
        solid(sql, true)
            .iter()
            .filter(|token| match token.kind {
                Kind::Number | Kind::String | Kind::Parameter => false,
                Kind::Comma | Kind::Open | Kind::Close => false,
                // A sign may be part of a number, and these words may be values.
                Kind::Operator => !matches!(token.text(sql), b"+" | b"-"),
                _ => !["null", "true", "false", "default"]
                    .iter()
                    .any(|word| token.is(sql, word)),
            })
            .map(fold)
            .collect()
    };
    assert_eq!(counts(normal), counts(sql));
    assert_eq!(
        statements(normal, true).count(),
        statements(sql, true).count(),
        "statements are counted in either"
    );
}
