//! The proof that a query only reads, from its words alone.
//!
//! Owns: which words stand before a parenthesis without naming a function. Never: needs to understand
//! a query; what it does not know for something else is a call, a relation or a write.
//!
//! The parser rejects much of PostgreSQL's syntax. But what makes a query more than a read is always a
//! word: a name before a parenthesis is called, unless the grammar has the word there for something
//! else; data is changed by one of four words; rows are locked after FOR, and INTO makes a table. What
//! is called without a parenthesis (operators, casts, fields) is the catalog's to find, here as in a
//! tree. A text that is no query at all is refused by any server alike.

use super::super::super::lexer::{Kind, Lexer, Token};
use super::super::super::relations::{of_sequences, server_local};
use super::super::Why;
use super::Walk;

impl Walk<'_> {
    /// Takes `text` for a query, word by word.
    pub fn words(&mut self, text: &str) {
        let sql = text.as_bytes();
        let mut lexer = Lexer::new(sql, true);
        let tokens: Vec<Token> = std::iter::from_fn(|| lexer.solid()).collect();
        let mut clauses = Clauses::default();
        for at in 0..tokens.len() {
            let place = Place {
                text,
                tokens: &tokens,
                at,
                groups: clauses.groups,
            };
            self.word(&place);
            clauses.pass(&place);
        }
    }

    fn word(&mut self, place: &Place<'_>) {
        let Some(token) = place.token(0) else { return };
        match token.kind {
            Kind::Word | Kind::QuotedWord => {}
            Kind::UnicodeWord | Kind::Broken | Kind::Other | Kind::Semicolon => {
                return self.unknown();
            }
            _ => return,
        }
        let Some(name) = place.name(0) else {
            return self.unknown();
        };
        let is_qualified = place.is_kind(-1, Kind::Dot);
        let bare = token.kind == Kind::Word && !is_qualified;
        if bare && ["insert", "update", "delete", "merge"].contains(&&*name) {
            return self.object(Why::DataChange);
        }
        if bare && name == "into" {
            return self.object(Why::SelectInto);
        }
        if bare && name == "for" && ["share", "no", "key"].iter().any(|word| place.is(1, word)) {
            return self.object(Why::LockingClause);
        }
        if place.is_kind(1, Kind::Open) {
            if !(bare && place.is_keyword(&name) || place.is_column_list()) {
                self.call(place, &name, bare);
            }
        } else if !(bare && is_reserved(&name)) {
            self.mention(place, &name);
        }
    }

    fn call(&mut self, place: &Place<'_>, name: &str, bare: bool) {
        // TREAT(a AS f) calls the built-in function f.
        if bare && name == "treat" {
            return self.object(Why::UnsafeFunction);
        }
        match place.qualifier() {
            Some(schema) => self.function_name(&[&schema, name]),
            None => self.function_name(&[name]),
        }
    }

    /// A name that is not called may be a relation's, a column's, or one that the query gives.
    fn mention(&mut self, place: &Place<'_>, name: &str) {
        if place.is_kind(1, Kind::Dot) && name == "pg_catalog" {
            return;
        }
        let schema = place.qualifier();
        // A collation's name may begin like those of the server's relations.
        let is_temporary = schema.as_ref().is_some_and(|s| s.starts_with("pg_temp"));
        if place.names_collation() && !is_temporary {
            return;
        }
        if server_local(schema.as_deref(), name) || of_sequences(name) {
            self.object(Why::ServerLocalRelation);
        }
        self.relations.push(super::written(&[name]));
    }
}

/// A token among those around it.
struct Place<'a> {
    text: &'a str,
    tokens: &'a [Token],
    at: usize,
    /// Whether the clause that this is in, at the same depth, is GROUP BY or its GROUPING SETS.
    groups: bool,
}

/// Whether what a place is in are the items of a GROUP BY: within the innermost parentheses or brackets, and those
/// around them.
#[derive(Default)]
struct Clauses {
    groups: bool,
    outer: Vec<bool>,
}

impl Clauses {
    fn pass(&mut self, place: &Place<'_>) {
        const BEGINNINGS: [&str; 14] = [
            "by",
            "select",
            "from",
            "where",
            "having",
            "window",
            "limit",
            "offset",
            "fetch",
            "on",
            "union",
            "intersect",
            "except",
            "filter",
        ];
        let is_kind = |kind| place.is_kind(0, kind);
        if is_kind(Kind::Open) || is_kind(Kind::OpenBracket) {
            let of_sets = place.is(-1, "sets") && place.is(-2, "grouping");
            self.outer.push(self.groups);
            self.groups &= of_sets;
        } else if is_kind(Kind::Close) || is_kind(Kind::CloseBracket) {
            self.groups = self.outer.pop().unwrap_or(false);
        } else if BEGINNINGS.iter().any(|word| place.is(0, word)) {
            self.groups =
                place.is(0, "by") && place.is(-1, "group") && !place.is_kind(-2, Kind::Dot);
        }
    }
}

impl Place<'_> {
    fn token(&self, ahead: isize) -> Option<&Token> {
        self.tokens.get(self.at.checked_add_signed(ahead)?)
    }

    fn is_kind(&self, ahead: isize, kind: Kind) -> bool {
        self.token(ahead).is_some_and(|token| token.kind == kind)
    }

    /// Whether there is this unquoted word, in lower case.
    fn is(&self, ahead: isize, word: &str) -> bool {
        self.token(ahead)
            .is_some_and(|token| token.is(self.text.as_bytes(), word))
    }

    fn name(&self, ahead: isize) -> Option<String> {
        let name = self.token(ahead)?.name(self.text.as_bytes())?;
        String::from_utf8(name.into_owned()).ok()
    }

    /// What the name is of: a schema, or a relation.
    fn qualifier(&self) -> Option<String> {
        match self.is_kind(-1, Kind::Dot) {
            // Something that is no name, before the dot, has no schema's name in it.
            true => Some(self.name(-2).unwrap_or_default()),
            false => None,
        }
    }

    /// Whether the word, which is neither quoted nor qualified and stands before a parenthesis, is the
    /// grammar's there. Words that may be functions' names elsewhere need a neighbour that tells.
    fn is_keyword(&self, name: &str) -> bool {
        let after = |words: &[&str]| words.iter().any(|word| self.is(-1, word));
        match name {
            "by" => after(&["group", "order", "partition"]),
            "cube" | "rollup" => self.groups && self.begins_item(),
            "columns" => self.is_kind(-1, Kind::String) || self.is_after_alias(),
            "sets" => after(&["grouping"]),
            "first" | "next" => after(&["fetch"]),
            "filter" | "over" | "repeatable" => self.is_after_call(),
            "bernoulli" | "system" => after(&["tablesample"]),
            "varying" => after(&["character", "char", "bit", "nchar"]),
            "materialized" => after(&["as"]) || after(&["not"]) && self.is(-2, "as"),
            // No function takes a query without a parenthesis of its own.
            "join" => self.is_query(2),
            "operator" => self.names_operator(),
            "second" => after(&["to"]) && !self.is(-2, "similar") || self.is_kind(-1, Kind::String),
            _ => NEVER_FUNCTIONS.binary_search(&name).is_ok(),
        }
    }

    /// Whether this is behind AS and a name. A field or a column may have that for its own name, and no keyword behind it
    /// is a name.
    fn is_after_alias(&self) -> bool {
        let is_name = self.name(-1).is_some_and(|name| !is_reserved(&name));
        is_name && self.is(-2, "as") && !self.is_kind(-3, Kind::Dot) && !self.is(-3, "as")
    }

    /// Whether an item of a GROUP BY begins here.
    fn begins_item(&self) -> bool {
        let quantified = ["all", "distinct"].iter().any(|word| self.is(-1, word));
        let by = if quantified { -2 } else { -1 };
        self.is(by, "by") || self.is_kind(-1, Kind::Comma) || self.is_kind(-1, Kind::Open)
    }

    /// Whether the name is a collation's, or its schema's.
    fn names_collation(&self) -> bool {
        let mut before = -1;
        while self.is_kind(before, Kind::Dot) && self.name(before - 1).is_some() {
            before -= 2;
        }
        self.is(before, "collate")
    }

    /// Whether a query begins there, rather than anything that is called or defined.
    fn is_query(&self, ahead: isize) -> bool {
        let values = self.is(ahead, "values") && self.is_kind(ahead + 1, Kind::Open);
        values
            || ["select", "with", "table"]
                .iter()
                .any(|word| self.is(ahead, word))
    }

    /// Where the parenthesis opens that closes just before, from here.
    fn opener(&self) -> Option<isize> {
        let mut depth = 0usize;
        for ahead in 1..=self.at {
            let ahead = -(ahead as isize);
            match self.token(ahead)?.kind {
                Kind::Close => depth += 1,
                Kind::Open if depth == 1 => return Some(ahead),
                Kind::Open if depth > 1 => depth -= 1,
                _ if depth == 0 => return None,
                _ => {}
            }
        }
        None
    }

    /// Whether what closes just before is a call's parenthesis, or one of what belongs to a call.
    fn is_after_call(&self) -> bool {
        let Some(opener) = self.opener() else {
            return false;
        };
        match self.token(opener - 1) {
            Some(token) if token.kind == Kind::QuotedWord => true,
            Some(token) if token.kind == Kind::Word => {
                let name = self.name(opener - 1).unwrap_or_default();
                let within_group = name == "group" && self.is(opener - 2, "within");
                let is_keyword =
                    is_reserved(&name) || NEVER_FUNCTIONS.binary_search(&&*name).is_ok();
                within_group || !is_keyword && name != "operator"
            }
            _ => false,
        }
    }

    /// OPERATOR(schema.+).
    fn names_operator(&self) -> bool {
        let mut ahead = 2;
        while self.name(ahead).is_some() && self.is_kind(ahead + 1, Kind::Dot) {
            ahead += 2;
        }
        self.is_kind(ahead, Kind::Operator) && self.is_kind(ahead + 1, Kind::Close)
    }

    /// Whether the parenthesis after the name holds the names of columns that the name is given: after
    /// AS, after what it is an alias of, or as one of WITH.
    fn is_column_list(&self) -> bool {
        if self.is(-1, "as") {
            return true;
        }
        let mut ahead = 2;
        while self.name(ahead).is_some() && self.is_kind(ahead + 1, Kind::Comma) {
            ahead += 2;
        }
        if self.name(ahead).is_none() || !self.is_kind(ahead + 1, Kind::Close) {
            return false;
        }
        // Of a query in FROM, or of a call; DISTINCT ON (a) f(b) has neither.
        let of_query = |opener| self.is_query(opener + 1);
        if self.opener().is_some_and(of_query) || self.is_after_call() {
            return true;
        }
        // A function's columns are defined after AS as well, but never by a query.
        let after_as = match self.is(ahead + 2, "as") {
            false => return false,
            true if self.is(ahead + 3, "materialized") => ahead + 4,
            true if self.is(ahead + 3, "not") && self.is(ahead + 4, "materialized") => ahead + 5,
            true => ahead + 3,
        };
        let is_nested = self.is_kind(after_as + 1, Kind::Open);
        self.is_kind(after_as, Kind::Open) && (is_nested || self.is_query(after_as + 1))
    }
}

/// Whether a word, in lower case and without quotes, names nothing.
pub(super) fn is_reserved(word: &str) -> bool {
    RESERVED.binary_search(&word).is_ok()
}

/// Keywords that the grammar lets no function be called by, unless they are quoted or qualified; of
/// those that may stand before a parenthesis. Sorted.
const NEVER_FUNCTIONS: [&str; 59] = [
    "all",
    "and",
    "any",
    "as",
    "between",
    "bit",
    "both",
    "case",
    "cast",
    "char",
    "character",
    "dec",
    "decimal",
    "default",
    "distinct",
    "else",
    "except",
    "exists",
    "extract",
    "float",
    "for",
    "from",
    "group",
    "having",
    "in",
    "intersect",
    "interval",
    "lateral",
    "leading",
    "limit",
    "nchar",
    "not",
    "numeric",
    "offset",
    "on",
    "only",
    "or",
    "placing",
    "row",
    "select",
    "some",
    "symmetric",
    "then",
    "time",
    "timestamp",
    "to",
    "trailing",
    "trim",
    "union",
    "using",
    "values",
    "varchar",
    "variadic",
    "when",
    "where",
    "with",
    "xmlattributes",
    "xmlnamespaces",
    "xmltable",
];

/// PostgreSQL's reserved words, which name nothing unless they are quoted. Sorted.
const RESERVED: [&str; 77] = [
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "column",
    "constraint",
    "create",
    "current_catalog",
    "current_date",
    "current_role",
    "current_time",
    "current_timestamp",
    "current_user",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "from",
    "grant",
    "group",
    "having",
    "in",
    "initially",
    "intersect",
    "into",
    "lateral",
    "leading",
    "limit",
    "localtime",
    "localtimestamp",
    "not",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "placing",
    "primary",
    "references",
    "returning",
    "select",
    "session_user",
    "some",
    "symmetric",
    "system_user",
    "table",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "variadic",
    "when",
    "where",
    "window",
];

#[cfg(test)]
mod tests {
    use super::super::super::super::functions::Rules;
    use super::*;

    #[test]
    fn the_lists_are_sorted_for_the_search() {
        assert!(NEVER_FUNCTIONS.is_sorted_by(|a, b| a < b));
        assert!(RESERVED.is_sorted_by(|a, b| a < b));
    }

    fn objection(sql: &str) -> Option<Why> {
        let rules = Rules::default();
        let mut walk = Walk::new(&rules);
        walk.words(sql);
        walk.take_objection()
    }

    #[test]
    fn what_only_reads_is_proven_without_a_tree() {
        for sql in [
            "select",
            "select from t",
            "select a, lower(b) from t where c in (1, 2) and (d) not like (e)",
            "table t order by a",
            "select * from t for_ where update_ = 1",
            "with recursive w(a, b) as (select 1, 2 union all select a, b from w) select * from w",
            "with w(a) as not materialized (select 1), x (b) as materialized (select 2) select 3",
            "with recursive w as (select 1) search depth first by a set b select * from w",
            "select * from rows from (generate_series(1, 2), unnest(array[1])) as x(a, b)",
            "select (now()).* , (row(1, 2)).f1 from t as x(a)",
            "select a between symmetric (1) and (2) from t",
            "select sum(a) filter (where b) over (partition by (c) order by (d)) from t",
            "select a from t group by distinct rollup (a)",
            "select a, b from t group by cube (a, b)",
            "select a, b from t group by distinct (a), case when a then b end, rollup (b)",
            "select a from t fetch first (1) rows with ties",
            "select a from t tablesample system (10) repeatable (1)",
            "select a operator(pg_catalog.+) b from t",
            "select cast(a as varchar(3)), a::numeric(3, 2), a::character varying(3) from t",
            "select xmlelement(name x, a) from t",
            "select a.lower from t a",
            "select u.\"update\", u.delete from u",
            "select * from a left join (select 1) b(c) on true join (values (1)) d (e) on true",
            "select * from generate_series(1, 2) g(n), lateral (select n) h(m)",
            "select percentile_cont(0.5) within group (order by a) filter (where b) from t",
            "select count(*) filter (where a) over (order by b) from t",
            "select distinct on (a, b) c from t",
            "select a from t group by all cube (a)",
            "select a::interval day to second (3), interval '1' second(3) from t",
            "select * from pg_catalog.pg_class",
            "select a from t group by grouping sets (rollup (a), cube (a, b), ())",
            "select a from t group by a, grouping sets (grouping sets (rollup (a)), a)",
            "select a::text collate pg_c_utf8, b::text collate pg_catalog.\"pg_c_utf8\" from t",
            "select json_value(a, '$.b' default (1 + 1) on empty default (2) on error) from t",
            "select * from json_table(a, '$[*]' columns (b int path '$.b')) t",
            "select * from json_table(a, $1 as root passing 1 as x columns (id for ordinality,
                nested path '$[*]' columns (b numeric(3, 2) path '$.b' default (1) on empty),
                nested '$.c[*]' as c columns (d text format json path '$' omit quotes))) as t (a, b)",
        ] {
            assert_eq!(objection(sql), None, "{sql}");
        }
    }

    #[test]
    fn a_word_that_may_do_more_is_found_wherever_it_stands() {
        for (sql, why) in [
            ("select f(1)", Why::UnknownFunction),
            ("select s.f(1)", Why::UnknownFunction),
            ("select s.first(1)", Why::UnknownFunction),
            ("select first(1)", Why::UnknownFunction),
            ("select next (1)", Why::UnknownFunction),
            ("select a, filter(1)", Why::UnknownFunction),
            ("select over(1)", Why::UnknownFunction),
            ("select join(1)", Why::UnknownFunction),
            ("select not materialized(1)", Why::UnknownFunction),
            ("select system(1)", Why::UnknownFunction),
            ("select operator(1)", Why::UnknownFunction),
            ("select operator(a)", Why::UnknownFunction),
            ("select \"select\"(1)", Why::UnknownFunction),
            ("select \"treat\"(1)", Why::UnknownFunction),
            ("select treat(1 as nextval)", Why::UnsafeFunction),
            ("select a, nextval('s')", Why::UnsafeFunction),
            ("select pg_catalog . nextval('s')", Why::UnsafeFunction),
            ("select * from f(a) as (b int)", Why::UnknownFunction),
            (
                "select * from t, f(a, b) as (values int)",
                Why::UnknownFunction,
            ),
            (
                "select * from t, f(a) as materialized (b int)",
                Why::UnknownFunction,
            ),
            ("select lower(f(a)) from t", Why::UnknownFunction),
            ("select lower(nextval(a)) from t", Why::UnsafeFunction),
            ("select distinct on (a) f(b) from t", Why::UnknownFunction),
            (
                "select distinct on (a) filter(b) from t",
                Why::UnknownFunction,
            ),
            (
                "select a operator(pg_catalog.+) f(b) from t",
                Why::UnknownFunction,
            ),
            ("select distinct cube(a) from t", Why::UnknownFunction),
            ("select a from t order by cube(a)", Why::UnknownFunction),
            (
                "select a from t group by a order by b, cube(a)",
                Why::UnknownFunction,
            ),
            (
                "select a from t group by a, (cube(a))",
                Why::UnknownFunction,
            ),
            (
                "select sum(a) over (partition by b, cube(a)) from t",
                Why::UnknownFunction,
            ),
            ("select a similar to second(b) from t", Why::UnknownFunction),
            ("select join((select 1))", Why::UnknownFunction),
            ("select a between join(1) and 2", Why::UnknownFunction),
            (
                "select a from t where a in (1) or over(2)",
                Why::UnknownFunction,
            ),
            ("select a from t group by b + cube(a)", Why::UnknownFunction),
            (
                "select a from t group by array[a, rollup(b)]",
                Why::UnknownFunction,
            ),
            (
                "select a from t group by array[a], b + rollup(b)",
                Why::UnknownFunction,
            ),
            (
                "select a from t group by grouping sets (a, (rollup(a)))",
                Why::UnknownFunction,
            ),
            (
                "select a from t group by grouping sets (rollup(f(a)))",
                Why::UnknownFunction,
            ),
            (
                "select rollup(a), grouping from t sets, (values (cube(1))) v",
                Why::UnknownFunction,
            ),
            ("select a, columns(1) from t", Why::UnknownFunction),
            ("select 1 as as from columns(1)", Why::UnknownFunction),
            ("select 1 as as, columns(1) from t", Why::UnknownFunction),
            ("select t.as = columns(1) from t", Why::UnknownFunction),
            (
                "select (t).as between columns(1) and 2 from t",
                Why::UnknownFunction,
            ),
            (
                "select 1 as as where columns('a') <> ''",
                Why::UnknownFunction,
            ),
            ("select t.group by, cube(1) from t", Why::UnknownFunction),
            (
                "select a from t where b like columns('c')",
                Why::UnknownFunction,
            ),
            (
                "select * from json_table(f(a), '$' columns (b int path '$'))",
                Why::UnknownFunction,
            ),
            (
                "select * from json_table(a, '$' columns (b int path '$' default f(1) on empty))",
                Why::UnknownFunction,
            ),
            (
                "select * from s.json_table(a, '$' columns (b int path '$'))",
                Why::UnknownFunction,
            ),
            (
                "select json_value(a, '$' default (f(1)) on empty) from t",
                Why::UnknownFunction,
            ),
            ("select \"default\"(1)", Why::UnknownFunction),
            (
                "select a collate pg_temp.c from t",
                Why::ServerLocalRelation,
            ),
            (
                "select a collate \"C\", b from pg_locks",
                Why::ServerLocalRelation,
            ),
            ("select \"collate\" from pg_locks", Why::ServerLocalRelation),
            ("select pg_advisory_lock(1)", Why::UnsafeFunction),
            ("with w as (delete from t) select 1", Why::DataChange),
            (
                "with w as (select 1) cycle a set b using c delete from t",
                Why::DataChange,
            ),
            ("with w as (select 1) update t set a = 1", Why::DataChange),
            (
                "with w as (select 1) insert into t select 1",
                Why::DataChange,
            ),
            (
                "with w as (merge into t using s on true) select 1",
                Why::DataChange,
            ),
            ("select 1 into t", Why::SelectInto),
            ("select a from t for no key update", Why::LockingClause),
            ("select a from t for /* */ Key Share", Why::LockingClause),
            ("select a from t for update", Why::DataChange),
            ("select * from pg_stat_activity", Why::ServerLocalRelation),
            (
                "select * from pg_catalog.pg_locks",
                Why::ServerLocalRelation,
            ),
            ("select last_value from s", Why::ServerLocalRelation),
            ("select * from t_a_seq", Why::ServerLocalRelation),
            ("select * from pg_temp.t", Why::ServerLocalRelation),
            ("select 1; delete from t", Why::NotParsed),
            ("select U&\"f\"(1)", Why::NotParsed),
            ("select 'open", Why::NotParsed),
        ] {
            assert_eq!(objection(sql), Some(why), "{sql}");
        }
    }
}
