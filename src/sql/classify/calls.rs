//! A count of calls that does not trust the parser.
//!
//! Owns: which words before an opening parenthesis are no call. Never: decides what a call does.
//!
//! The parser is known to drop tokens (three after TABLE, whatever they are). A dropped call would
//! make a write look like a read, so every name before a parenthesis must turn up in the tree.

use super::super::lexer::{Kind, Lexer, Token};

/// Whether every name before an opening parenthesis in `query` is a keyword or has been `seen`.
pub(super) fn all_seen(query: &str, mut seen: Vec<Box<str>>) -> bool {
    seen.sort_unstable();
    let text = query.as_bytes();
    let mut lexer = Lexer::new(text, true);
    let (mut before, mut last): (Option<Token>, Option<Token>) = (None, None);
    while let Some(token) = lexer.solid() {
        if token.kind == Kind::Open
            && let Some(last) = last
            && let Some(name) = last.name(text)
        {
            // What XMLSERIALIZE and XMLPARSE say first, the parser takes for an operand.
            let is_of_xml = before.is_some_and(|b| b.is(text, "content") || b.is(text, "document"))
                && matches!(&*name, b"like" | b"ilike");
            let keyword = last.kind == Kind::Word && is_keyword(&name) && !is_of_xml;
            let in_tree = || {
                seen.binary_search_by(|seen| seen.as_bytes().cmp(&name))
                    .is_ok()
            };
            if !keyword && !in_tree() {
                return false;
            }
        }
        before = last.replace(token);
    }
    true
}

fn is_keyword(word: &[u8]) -> bool {
    KEYWORDS
        .binary_search_by(|keyword| keyword.as_bytes().cmp(word))
        .is_ok()
}

/// Words that the grammar puts before a parenthesis and that name no function there, sorted.
const KEYWORDS: [&str; 78] = [
    "all",
    "and",
    "any",
    "as",
    "bernoulli",
    "between",
    "bit",
    "both",
    "by",
    "case",
    "cast",
    "char",
    "character",
    "cube",
    "dec",
    "decimal",
    "distinct",
    "else",
    "escape",
    "except",
    "exists",
    "extract",
    "filter",
    "first",
    "float",
    "for",
    "from",
    "group",
    "having",
    "ilike",
    "in",
    "intersect",
    "interval",
    "join",
    "lateral",
    "leading",
    "like",
    "limit",
    "materialized",
    "next",
    "not",
    "numeric",
    "offset",
    "on",
    "only",
    "operator",
    "or",
    "over",
    "placing",
    "precision",
    "repeatable",
    "rollup",
    "row",
    "select",
    "sets",
    "some",
    "system",
    "then",
    "time",
    "timestamp",
    "timestamptz",
    "timetz",
    "to",
    "trailing",
    "trim",
    "union",
    "using",
    "values",
    "varbit",
    "varchar",
    "variadic",
    "varying",
    "when",
    "where",
    "with",
    "within",
    "without",
    "zone",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_for_the_search() {
        assert!(KEYWORDS.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn a_name_must_have_been_seen() {
        let seen: Vec<Box<str>> = vec!["f".into(), "Odd \"name".into()];
        for (query, expected) in [
            ("select 1 where a in (1) and (b)", true),
            ("select f(1), f (2)", true),
            ("select \"Odd \"\"name\"(1)", true),
            ("select g(1)", false),
            (
                "select content in (1), content like 'a', document ilike (b)",
                false,
            ),
            (
                "select content in (1), content like 'a', b ilike (document)",
                true,
            ),
            (
                "select xmlserialize(content ilike(1, 2)::text as text)",
                false,
            ),
            ("select \"select\"(1)", false),
            ("select 'g'(1)", true),
            ("select s.g(1)", false),
        ] {
            assert_eq!(all_seen(query, seen.clone()), expected, "{query}");
        }
    }
}
