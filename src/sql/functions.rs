//! Which functions are safe on a hot standby.
//!
//! Owns: the curated list of built-in functions and the rules of the configuration. Never: asks a
//! server; what the catalog knows of other functions is added by the caller.
//!
//! An unqualified name counts as the built-in one. A user's function that hides it behind an
//! earlier schema of the `search_path` is found by whoever knows the catalog, from the names that a
//! class lists.

use std::collections::HashSet;
use std::sync::LazyLock;

use crate::config::Routing;

/// The functions that the configuration names: patterns of `name` or `schema.name`, with `*` for
/// any run of characters, compared with the name as the server folds it. `unsafe` wins over
/// `safe`, and both over what is built in.
///
/// A pattern without a schema holds in every schema. One with a schema holds for a call that
/// spells the schema; an unqualified call may still mean that function, so it is unsafe where the
/// pattern is, and not safe where only the pattern is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub safe: Vec<String>,
    pub r#unsafe: Vec<String>,
}

impl Rules {
    /// What the configuration says of functions.
    pub fn of(routing: &Routing) -> Rules {
        Rules {
            safe: routing.safe_functions.clone(),
            r#unsafe: routing.unsafe_functions.clone(),
        }
    }
}

/// Whether reads may call a function, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safety {
    Safe,
    Unsafe,
    Unknown,
}

impl Rules {
    /// That of `name`, called with `schema` if one was written.
    pub fn safety(&self, schema: Option<&str>, name: &str) -> Safety {
        match self.ruling(schema, name) {
            Safety::Unknown => builtin(schema, name),
            ruling => ruling,
        }
    }

    /// What the configuration alone says of it.
    pub fn ruling(&self, schema: Option<&str>, name: &str) -> Safety {
        if self.r#unsafe.iter().any(|p| names(p, schema, name, true)) {
            return Safety::Unsafe;
        }
        if self.safe.iter().any(|p| names(p, schema, name, false)) {
            return Safety::Safe;
        }
        Safety::Unknown
    }
}

/// The names of the built-in functions that are known to be safe, and of those that are known not to
/// be.
pub fn known() -> (impl Iterator<Item = &'static str>, &'static [&'static str]) {
    (SAFE.iter().copied(), &UNSAFE)
}

/// The safety of a function without any rules.
pub fn builtin(schema: Option<&str>, name: &str) -> Safety {
    let built_in = schema.is_none_or(|s| s == "pg_catalog");
    if built_in && SAFE.contains(name) {
        return Safety::Safe;
    }
    // The server keeps these prefixes for itself and its extensions: one that is not listed reads
    // or changes something that a standby does not share, in this version or the next.
    let server = schema == Some("pg_catalog")
        || schema.is_some_and(|s| s.starts_with("pg_temp"))
        || PREFIXES.iter().any(|p| name.starts_with(p))
        || UNSAFE.contains(&name);
    if server {
        Safety::Unsafe
    } else {
        Safety::Unknown
    }
}

/// What a call does to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    SetsConfig,
    /// The seed of `random` is set, which only this server has.
    Seeds,
    /// `currval` or `lastval`.
    ReadsSequence,
    /// A session-level advisory lock is taken or released.
    AdvisoryLock,
    /// Something is left that stays for as long as the server's process lives: a connection to another server, a
    /// replication origin, a backup that is under way.
    Stays,
}

/// The effect of calling the function `name`, built in or of a known extension, in whatever schema it was
/// written.
pub fn effect(name: &[u8]) -> Option<Effect> {
    // That of pg_trgm sets pg_trgm.similarity_threshold.
    if matches!(name, b"set_config" | b"set_limit") {
        return Some(Effect::SetsConfig);
    }
    let stays = [
        &b"dblink_connect"[..],
        b"dblink_connect_u",
        b"pg_backup_start",
        b"pg_replication_origin_session_setup",
        // Of PostgreSQL 14.
        b"pg_start_backup",
    ];
    if stays.contains(&name) {
        return Some(Effect::Stays);
    }
    if name == b"setseed" {
        return Some(Effect::Seeds);
    }
    if matches!(name, b"currval" | b"lastval") {
        return Some(Effect::ReadsSequence);
    }
    let lock = name
        .strip_prefix(b"pg_try_advisory_lock")
        .or_else(|| name.strip_prefix(b"pg_advisory_lock"))
        .or_else(|| name.strip_prefix(b"pg_advisory_unlock"))?;
    matches!(lock, b"" | b"_shared" | b"_all").then_some(Effect::AdvisoryLock)
}

static SAFE: LazyLock<HashSet<&'static str, foldhash::quality::RandomState>> =
    LazyLock::new(|| {
        include_str!("functions/builtin.txt")
            .lines()
            .filter_map(|line| line.split('#').next())
            .flat_map(str::split_whitespace)
            .collect()
    });

/// How the names of the server's own and of its extensions' functions begin that are unsafe unless they
/// are listed.
pub const PREFIXES: [&str; 7] = [
    "pg_",
    "txid_",
    "lo_",
    "inet_client_",
    "inet_server_",
    "binary_upgrade_",
    "dblink",
];

/// Functions without a telling prefix, built in or of PostgreSQL's extensions, that write, lock, run text as SQL, or
/// depend on the server or the session.
const UNSAFE: [&str; 41] = [
    "brin_desummarize_range",
    "brin_summarize_new_values",
    "brin_summarize_range",
    "currtid2",
    "currval",
    "current_setting",
    "cursor_to_xml",
    "cursor_to_xmlschema",
    "database_to_xml",
    "database_to_xml_and_xmlschema",
    "database_to_xmlschema",
    "gin_clean_pending_list",
    "lastval",
    "loread",
    "lowrite",
    "mxid_age",
    "nextval",
    "query_to_xml",
    "query_to_xml_and_xmlschema",
    "query_to_xmlschema",
    "row_security_active",
    "schema_to_xml",
    "schema_to_xml_and_xmlschema",
    "schema_to_xmlschema",
    "set_config",
    "setseed",
    "setval",
    "system_user",
    "table_to_xml",
    "table_to_xml_and_xmlschema",
    "table_to_xmlschema",
    "ts_rewrite",
    "ts_stat",
    "xmlvalidate",
    "crosstab",
    "crosstab2",
    "crosstab3",
    "crosstab4",
    "connectby",
    "normal_rand",
    "xpath_table",
];

/// Whether a pattern of the configuration names a function. `loose` lets a pattern with a schema
/// name an unqualified call too.
fn names(pattern: &str, schema: Option<&str>, name: &str, loose: bool) -> bool {
    match (pattern.split_once('.'), schema) {
        (None, _) => glob(pattern.as_bytes(), name.as_bytes()),
        (Some((p_schema, p_name)), Some(schema)) => {
            glob(p_schema.as_bytes(), schema.as_bytes()) && glob(p_name.as_bytes(), name.as_bytes())
        }
        (Some((_, p_name)), None) => loose && glob(p_name.as_bytes(), name.as_bytes()),
    }
}

/// Whether `text` matches `pattern`, in which `*` is any run of bytes. Linear in memory and at
/// worst quadratic in time, as only the last `*` is ever taken back.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star_p, star_t)) = star {
            star = Some((star_p, star_t + 1));
            p = star_p + 1;
            t = star_t + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(safe: &[&str], unsafe_: &[&str]) -> Rules {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Rules {
            safe: own(safe),
            r#unsafe: own(unsafe_),
        }
    }

    #[test]
    fn built_in_functions_are_known() {
        let none = Rules::default();
        for (schema, name, expected) in [
            (None, "lower", Safety::Safe),
            (Some("pg_catalog"), "lower", Safety::Safe),
            (Some("app"), "lower", Safety::Unknown),
            (None, "my_report", Safety::Unknown),
            (None, "nextval", Safety::Unsafe),
            (Some("app"), "nextval", Safety::Unsafe),
            (None, "pg_advisory_xact_lock", Safety::Unsafe),
            (None, "pg_function_of_the_future", Safety::Unsafe),
            (Some("pg_catalog"), "of_the_future", Safety::Unsafe),
            (Some("pg_temp_3"), "f", Safety::Unsafe),
            (None, "txid_current", Safety::Unsafe),
            (None, "lo_get", Safety::Unsafe),
            (None, "query_to_xml", Safety::Unsafe),
            (None, "crosstab", Safety::Unsafe),
            (Some("public"), "crosstab3", Safety::Unsafe),
            (None, "crosstab5", Safety::Unknown),
            (None, "generate_series", Safety::Safe),
            (None, "", Safety::Unknown),
        ] {
            assert_eq!(none.safety(schema, name), expected, "{schema:?}.{name}");
        }
    }

    #[test]
    fn no_name_is_listed_twice_or_both_ways() {
        let text = include_str!("functions/builtin.txt");
        let count = text
            .lines()
            .filter_map(|line| line.split('#').next())
            .flat_map(str::split_whitespace)
            .count();
        assert_eq!(SAFE.len(), count);
        assert!(UNSAFE.iter().all(|name| !SAFE.contains(name)));
        assert!(SAFE.iter().all(|name| effect(name.as_bytes()).is_none()));
    }

    #[test]
    fn rules_win_over_the_list_and_unsafe_over_safe() {
        let rules = rules(
            &["my_*", "app.report", "legacy_ok"],
            &["legacy_*", "ops.lower"],
        );
        for (schema, name, expected) in [
            (None, "my_report", Safety::Safe),
            (Some("x"), "my_report", Safety::Safe),
            (Some("app"), "report", Safety::Safe),
            (None, "report", Safety::Unknown),
            (None, "legacy_ok", Safety::Unsafe),
            (Some("ops"), "lower", Safety::Unsafe),
            (None, "lower", Safety::Unsafe),
            (Some("pg_catalog"), "lower", Safety::Safe),
        ] {
            assert_eq!(rules.safety(schema, name), expected, "{schema:?}.{name}");
        }
    }

    #[test]
    fn a_star_is_any_run() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("*a*b", "xxaxxab", true),
            ("a", "ab", false),
            ("", "", true),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern}"
            );
        }
    }

    #[test]
    fn only_what_outlasts_the_transaction_matters() {
        for (name, expected) in [
            ("pg_advisory_lock", Some(Effect::AdvisoryLock)),
            ("pg_try_advisory_lock_shared", Some(Effect::AdvisoryLock)),
            ("pg_advisory_xact_lock", None),
            ("pg_try_advisory_xact_lock_shared", None),
            ("pg_advisory_unlock", Some(Effect::AdvisoryLock)),
            ("pg_advisory_unlock_all", Some(Effect::AdvisoryLock)),
            ("set_config", Some(Effect::SetsConfig)),
            ("set_limit", Some(Effect::SetsConfig)),
            ("dblink_connect_u", Some(Effect::Stays)),
            ("pg_backup_start", Some(Effect::Stays)),
            ("pg_backup_stop", None),
            ("pg_replication_origin_session_setup", Some(Effect::Stays)),
            ("dblink", None),
            ("lastval", Some(Effect::ReadsSequence)),
            ("nextval", None),
            ("lower", None),
        ] {
            assert_eq!(effect(name.as_bytes()), expected, "{name}");
        }
    }
}
