//! Where a text splits into statements.
//!
//! Owns: the rules of a semicolon (parentheses, `BEGIN ATOMIC` bodies). Never: allocates, or asks
//! what a statement does.

use std::ops::Range;

use super::{Kind, Lexer, Token};

/// The statements of a text: each from its first token to its last, without the semicolon. Empty
/// ones are skipped. `conforming` as for [`Lexer::new`].
pub fn statements(sql: &[u8], conforming: bool) -> Statements<'_> {
    Statements {
        sql,
        lexer: Lexer::new(sql, conforming),
    }
}

/// See [`statements`].
pub struct Statements<'a> {
    sql: &'a [u8],
    lexer: Lexer<'a>,
}

impl Iterator for Statements<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let mut range: Option<Range<usize>> = None;
        let mut parens = 0usize;
        let mut body = Body::default();
        while let Some(token) = self.lexer.solid() {
            match token.kind {
                Kind::Semicolon if parens == 0 && body.depth == 0 => {
                    if range.is_some() {
                        return range;
                    }
                    continue;
                }
                Kind::Open => parens += 1,
                Kind::Close => parens = parens.saturating_sub(1),
                _ => {}
            }
            body.token(self.sql, token);
            range = Some(range.map_or(token.start, |r| r.start)..token.end);
        }
        range
    }
}

/// Follows `BEGIN ATOMIC … END` in CREATE FUNCTION, whose semicolons split nothing.
#[derive(Default)]
struct Body {
    head: Head,
    begin: bool,
    depth: usize,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Head {
    #[default]
    Start,
    Create,
    Routine,
    Other,
}

impl Body {
    #[inline]
    fn token(&mut self, sql: &[u8], token: Token) {
        let is = |word| token.is(sql, word);
        match self.head {
            Head::Other => {}
            Head::Start if is("create") => self.head = Head::Create,
            Head::Create if is("or") || is("replace") => {}
            Head::Create if is("function") || is("procedure") => self.head = Head::Routine,
            Head::Start | Head::Create => self.head = Head::Other,
            Head::Routine => {
                if self.depth > 0 && is("case") || self.begin && is("atomic") {
                    self.depth += 1;
                } else if is("end") {
                    self.depth = self.depth.saturating_sub(1);
                }
                self.begin = is("begin");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(sql: &str) -> Vec<&str> {
        statements(sql.as_bytes(), true).map(|r| &sql[r]).collect()
    }

    #[test]
    fn statements_split_at_the_top_level_only() {
        assert_eq!(split("select 1; select 2"), ["select 1", "select 2"]);
        assert_eq!(split(" ; /* none */ ;; -- x\n"), Vec::<&str>::new());
        assert_eq!(split("/* a */ select 1 /* b */ ;"), ["select 1"]);
        assert_eq!(
            split("select ';', \";\", $$;$$, E'\\';' ; b"),
            ["select ';', \";\", $$;$$, E'\\';'", "b"]
        );
        let rule = "create rule r as on insert to t do (select 1; select 2)";
        assert_eq!(split(&format!("{rule}; x")), [rule, "x"]);
        let body = "create or replace function f() returns int begin atomic select 1; \
                    select case when a then 1 end; end";
        assert_eq!(split(&format!("{body}; select 2")), [body, "select 2"]);
        assert_eq!(
            split("begin; select 1; end"),
            ["begin", "select 1", "end"],
            "a transaction is no body"
        );
        assert_eq!(
            split("create function begin() returns int language sql as ''; x").len(),
            2
        );
    }
}
