//! Owns: the settings that a session has changed, and what brings a server to them. Never: reads a
//! setting's value; a SET is replayed in the client's own words.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use super::intern::Interner;
use crate::sql::command::TRANSACTION_CHARACTERISTICS;

/// Changed settings, by lower-case name: for each the statement that makes it so.
///
/// One shared copy of each distinct set, so that "this server is as this session wants it" is
/// usually the comparison of two pointers.
#[derive(Clone, Debug)]
pub struct Settings(Arc<Map>);

type Map = BTreeMap<Box<str>, Box<[u8]>>;

static INTERNED: Interner<Map> = Interner::new();
static NONE: LazyLock<Settings> = LazyLock::new(|| Settings::shared(Map::new()));

/// Settings that are changed by statements of their own, and survive RESET ALL.
const ROLE: &str = "role";
const SESSION_AUTHORIZATION: &str = "session_authorization";

/// Settings of the transaction at hand, however they are set: they end with it.
const ENDS_WITH_TRANSACTION: [&str; 3] = [
    "transaction_isolation",
    "transaction_read_only",
    "transaction_deferrable",
];

impl Settings {
    /// Settings given at start-up, each `name` to `value`.
    pub fn from_startup<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Settings {
        let statement = |(name, value): (&str, &str)| {
            let name = name.to_ascii_lowercase();
            let statement = set_config(&name, value).into_bytes().into_boxed_slice();
            (name.into_boxed_str(), statement)
        };
        Settings::shared(pairs.into_iter().map(statement).collect())
    }

    /// Settings as a server listed them, with the role and session user of `self`.
    pub fn replaced_by<'a>(&self, listed: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let lasts = |(name, _): &(&str, &str)| !ENDS_WITH_TRANSACTION.contains(name);
        let listed = listed.into_iter().filter(lasts);
        let mut map = (*Settings::from_startup(listed).0).clone();
        for name in [ROLE, SESSION_AUTHORIZATION] {
            if let Some(statement) = self.0.get(name) {
                map.insert(name.into(), statement.clone());
            }
        }
        Settings::shared(map)
    }

    fn shared(map: Map) -> Settings {
        Settings(INTERNED.share(map))
    }

    fn change(&mut self, change: impl FnOnce(&mut Map)) {
        let mut map = (*self.0).clone();
        change(&mut map);
        *self = Settings::shared(map);
    }

    /// Whether both set the reported parameter `name` alike, or neither does.
    pub fn agrees(&self, other: &Settings, name: &[u8]) -> bool {
        // Servers report names as PostgreSQL spells them, "TimeZone".
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        self.0.get(name.as_str()) == other.0.get(name.as_str())
    }

    /// Whether no standby can run anything under these settings: it refuses serializable
    /// transactions.
    pub fn need_primary(&self) -> bool {
        const ISOLATION: [&str; 2] = ["default_transaction_isolation", TRANSACTION_CHARACTERISTICS];
        let serializable = |statement: &[u8]| {
            statement
                .windows(12)
                .any(|word| word.eq_ignore_ascii_case(b"serializable"))
        };
        let set = ISOLATION.iter().filter_map(|&name| self.0.get(name));
        set.into_iter().any(|statement| serializable(statement))
    }

    /// Whether names in a text may mean something else than without these settings.
    pub fn change_names(&self) -> bool {
        [ROLE, SESSION_AUTHORIZATION, "search_path"]
            .iter()
            .any(|&name| self.0.contains_key(name))
    }

    /// The statement that sets `name` has succeeded.
    pub fn set(&mut self, name: &str, statement: &[u8]) {
        if ENDS_WITH_TRANSACTION.contains(&name) {
            return;
        }
        self.change(|map| drop(map.insert(name.into(), statement.into())));
    }

    /// RESET: back to what `defaults` has, which is what was given at start-up.
    pub fn reset(&mut self, name: &str, defaults: &Settings) {
        self.change(|map| {
            match defaults.0.get(name) {
                Some(statement) => map.insert(name.into(), statement.clone()),
                None => map.remove(name),
            };
        });
    }

    /// RESET ALL, which leaves role and session user alone.
    pub fn reset_all(&mut self, defaults: &Settings) {
        let mut fresh = (*defaults.0).clone();
        for name in [ROLE, SESSION_AUTHORIZATION] {
            if let Some(statement) = self.0.get(name) {
                fresh.insert(name.into(), statement.clone());
            }
        }
        *self = Settings::shared(fresh);
    }

    /// The statements that bring a server from `self` to `wanted`, to be sent as one Query so that
    /// either all of them hold or none. `None` when there is nothing to do.
    pub fn difference(&self, wanted: &Settings) -> Option<Vec<u8>> {
        if self == wanted {
            return None;
        }
        let mut sql = Vec::new();
        let mut add = |statement: &[u8]| {
            sql.extend_from_slice(statement);
            // A line of its own: the statement may end in a comment.
            sql.extend_from_slice(b"\n;");
        };
        let differs = |name: &str| self.0.get(name) != wanted.0.get(name);
        let identity = differs(ROLE) || differs(SESSION_AUTHORIZATION);
        if identity {
            // As the login user first: the others may need its rights.
            add(b"RESET SESSION AUTHORIZATION");
            add(b"RESET ROLE");
        }
        let is_identity = |name: &str| name == ROLE || name == SESSION_AUTHORIZATION;
        for name in self.0.keys().filter(|name| !is_identity(name)) {
            if !wanted.0.contains_key(name) {
                add(reset_statement(name).as_bytes());
            }
        }
        for (name, statement) in wanted.0.iter().filter(|(name, _)| !is_identity(name)) {
            if self.0.get(name) != Some(statement) {
                add(statement);
            }
        }
        if identity {
            for name in [SESSION_AUTHORIZATION, ROLE] {
                if let Some(statement) = wanted.0.get(name) {
                    add(statement);
                }
            }
        }
        Some(sql)
    }

    /// Whether a server at `self` runs with other rights than `wanted`: then nothing may be sent
    /// before the difference is known to be applied.
    pub fn differs_in_identity(&self, wanted: &Settings) -> bool {
        let differs = |name: &str| self.0.get(name) != wanted.0.get(name);
        self != wanted && (differs(ROLE) || differs(SESSION_AUTHORIZATION))
    }
}

impl Default for Settings {
    fn default() -> Settings {
        NONE.clone()
    }
}

impl PartialEq for Settings {
    fn eq(&self, other: &Settings) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Settings {}

fn reset_statement(name: &str) -> String {
    match name {
        TRANSACTION_CHARACTERISTICS => "RESET default_transaction_isolation; \
            RESET default_transaction_read_only; RESET default_transaction_deferrable"
            .to_owned(),
        _ => format!("RESET \"{}\"", name.replace('"', "\"\"")),
    }
}

fn set_config(name: &str, value: &str) -> String {
    format!(
        "SELECT pg_catalog.set_config({}, {}, false)",
        literal(name),
        literal(value)
    )
}

/// A string constant that means the same whatever `standard_conforming_strings` is.
pub fn literal(text: &str) -> String {
    let escaped = text.replace('\'', "''");
    if text.contains('\\') {
        format!("E'{}'", escaped.replace('\\', "\\\\"))
    } else {
        format!("'{escaped}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(from: &Settings, to: &Settings) -> String {
        String::from_utf8(from.difference(to).unwrap_or_default()).unwrap()
    }

    #[test]
    fn a_server_is_brought_to_the_session_and_back() {
        let none = Settings::default();
        let mut some = none.clone();
        some.set("work_mem", b"SET work_mem = '1MB' -- small");
        assert_eq!(text(&none, &some), "SET work_mem = '1MB' -- small\n;");
        assert_eq!(text(&some, &none), "RESET \"work_mem\"\n;");
        assert_eq!(some.difference(&some.clone()), None);
    }

    #[test]
    fn reset_goes_back_to_the_start_up_value() {
        let defaults = Settings::from_startup([("TimeZone", "it's")]);
        let mut session = defaults.clone();
        session.set("timezone", b"SET timezone = 'UTC'");
        session.set("work_mem", b"SET work_mem = '1MB'");
        session.set("role", b"SET ROLE bob");
        session.reset("timezone", &defaults);
        let restored = "SELECT pg_catalog.set_config('timezone', 'it''s', false)\n;";
        assert!(text(&Settings::default(), &session).contains(restored));
        session.reset_all(&defaults);
        assert!(text(&defaults, &session).contains("SET ROLE bob"));
        assert!(!text(&defaults, &session).contains("work_mem"));
    }

    #[test]
    fn rights_are_changed_last_and_taken_back_first() {
        let none = Settings::default();
        let mut bob = none.clone();
        bob.set("role", b"SET ROLE bob");
        bob.set("work_mem", b"SET work_mem = 1");
        let sql = text(&none, &bob);
        assert!(sql.find("SET work_mem").unwrap() < sql.find("SET ROLE bob").unwrap());
        assert!(text(&bob, &none).starts_with("RESET SESSION AUTHORIZATION"));
        assert!(none.differs_in_identity(&bob));
        assert!(!none.differs_in_identity(&none.clone()));
    }

    #[test]
    fn literals_survive_backslashes() {
        assert_eq!(literal(r"a\'b"), r"E'a\\''b'");
    }
}
