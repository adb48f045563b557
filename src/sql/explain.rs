//! Why a statement goes where it goes, in words: for the command line, and for EXPLAIN ROUTE.
//!
//! Owns: the words for what decides where a statement goes. Never: decides it.

use std::fmt::Write;

use super::cache::Classifier;
use super::catalog::{Catalog, Verdict};
use super::functions::Rules;
use super::{Class, Need, Why};

/// The name of something that decides, and what it is.
pub type Line = (String, String);

/// What `tidegate explain` says of a text. `catalog` is that of its database, if it was asked.
pub fn explain(sql: &str, rules: Rules, catalog: Option<&Catalog>) -> String {
    let classifier = Classifier::new(rules, 0);
    let class = classifier.classify(sql.as_bytes(), true);
    let rules = classifier.rules();
    let verdict = catalog
        .filter(|_| class.asks_catalog)
        .map(|catalog| catalog.judge(&class, sql.as_bytes(), rules));
    let judged = Judged {
        sql: sql.as_bytes(),
        class: &class,
        needs: verdict.map_or((class.need, class.why), Verdict::needs),
        rules,
        catalog,
    };
    let mut text = String::new();
    for (name, value) in judged.lines(NOT_ASKED) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<11}{value}");
    }
    text
}

const NOT_ASKED: &str = "has not been asked, and may decide otherwise: --database NAME asks it";

/// A text, and what is known of it.
pub struct Judged<'a> {
    pub sql: &'a [u8],
    pub class: &'a Class,
    /// By all that is known.
    pub needs: (Need, Why),
    pub rules: &'a Rules,
    pub catalog: Option<&'a Catalog>,
}

impl Judged<'_> {
    /// What decides where it goes. `no_catalog` is what there is to say of a catalog that would have a
    /// say, where there is none.
    pub fn lines(&self, no_catalog: &'static str) -> Vec<Line> {
        let Judged {
            class,
            needs: (need, why),
            rules,
            catalog,
            ..
        } = *self;
        let mut lines = Vec::new();
        let mut line = |name: &str, value: &str| lines.push((name.to_owned(), value.to_owned()));
        line("goes to", goes_to(need, why));
        line("class", name_of(need));
        line("why", why.name());
        line("that is", rule(why));
        if let Some(decisive) = self.decisive() {
            line("because of", &decisive);
        }
        if !class.functions.is_empty() {
            let known: Vec<String> = class
                .functions
                .iter()
                .map(|name| format!("{name} ({})", Catalog::describe(catalog, name, rules)))
                .collect();
            line("functions", &known.join(", "));
        }
        if !class.relations.is_empty() {
            line("relations", &class.relations.join(", "));
        }
        line(
            "catalog",
            match (class.asks_catalog, catalog) {
                (false, _) => "has no say in it",
                (true, Some(_)) => "has been asked",
                (true, None) => no_catalog,
            },
        );
        lines
    }

    /// The name by which the catalog has decided.
    fn decisive(&self) -> Option<String> {
        let has_a_say = self.class.asks_catalog && self.needs.1 != Why::Refused;
        let catalog = self.catalog.filter(|_| has_a_say)?;
        catalog.explain(self.class, self.sql, self.rules).1
    }
}

fn goes_to(need: Need, why: Why) -> &'static str {
    match need {
        Need::Read => "a replica that is fresh enough, else the primary",
        _ if why == Why::ExplainRoute => "no node; the proxy answers it",
        _ => "the primary",
    }
}

fn name_of(need: Need) -> &'static str {
    match need {
        Need::Read => "read",
        Need::Session => "session",
        Need::Transaction => "transaction",
        Need::Write => "write",
    }
}

/// What stands behind a reason, and what may be done about it.
fn rule(why: Why) -> &'static str {
    match why {
        Why::ProvenRead => "every part of it is known to read only",
        Why::Empty => "there is no statement in it",
        Why::TransactionControl => "it opens, closes or steers a transaction",
        Why::SessionState => {
            "it reads or changes the session's state, which follows it from server to server"
        }
        Why::ExplainRoute => "it asks where a statement goes, and does not run it",
        Why::DataChange => "it changes data, at whatever depth",
        Why::Ddl => "it defines, alters or drops something",
        Why::LockingClause => "it locks rows, at whatever depth",
        Why::SelectInto => "it makes a table",
        Why::UnsafeFunction => {
            "it calls a function that writes, locks, depends on the server, or is VOLATILE; declare \
             what only reads STABLE, or list it in routing.safe_functions"
        }
        Why::UnknownFunction => {
            "it calls a function of which nothing is known; one that the database has declared STABLE \
             or IMMUTABLE is known by its catalog, others by routing.safe_functions"
        }
        Why::ServerLocalRelation => "it reads what is each server's own, such as its activity",
        Why::UnsafeRelation => {
            "it reads what a standby does not have (unlogged, foreign, a sequence), or a view or policy \
             that calls an unsafe function"
        }
        Why::HiddenFunction => {
            "an operator, a cast, a type or a field in it calls an unsafe function"
        }
        Why::CatalogUnknown => "the database's catalog is not known",
        Why::Refused => "a replica has refused it, where the primary has not",
        Why::Utility => "statements of its kind are the primary's",
        Why::NotParsed => "it is not understood, so nothing about it is proven",
        Why::TooComplex => "it is too large, too deep or too long a chain to be looked at",
        Why::NonConformingStrings => {
            "standard_conforming_strings is off, so where its strings end is not known"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_decides() {
        let rules = Rules {
            safe: vec!["listed".to_owned()],
            ..Rules::default()
        };
        let row = ["function", "public", "touch", "unsafe"].map(|text| Some(text.to_owned()));
        let catalog = Catalog::read([row], None);
        for (sql, parts) in [
            (
                "select lower(a), listed(b) from t",
                &[
                    "class      read",
                    "proven_read",
                    "lower (built in, safe)",
                    "listed (listed as safe)",
                    "relations  t",
                ][..],
            ),
            (
                "select touch(1)",
                &[
                    "write",
                    "unsafe_function",
                    "because of touch",
                    "touch (unsafe)",
                ],
            ),
            ("select other(1)", &["unknown_function", "other (unknown)"]),
            ("delete from t", &["data_change", "has no say"]),
            (
                "explain route delete from t",
                &["the proxy answers it", "session", "explain_route"],
            ),
        ] {
            let said = explain(sql, rules.clone(), Some(&catalog));
            for part in parts {
                assert!(said.contains(part), "{sql}: {part:?} in\n{said}");
            }
        }
        let said = explain("select 1", rules, None);
        assert!(said.contains("--database NAME"), "{said}");
    }
}
