//! Owns: the settings that a session has changed, and what brings a server to them. Never: reads a
//! setting's value; a SET is replayed in the client's own words.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, LazyLock};

use smallvec::SmallVec;

use super::intern::Interner;
use super::own::{self, Own, Wanted};
use crate::sql::{Isolation, Modes, setting};

/// Changed settings, by lower-case name: for each the statement that makes it so.
///
/// One shared copy of each distinct set, so that "this server is as this session wants it" is
/// usually the comparison of two pointers.
#[derive(Clone, Debug)]
pub struct Settings {
    map: Arc<Map>,
    /// Asked for every read, so it is looked up once. Most sessions have none of it.
    routing: Option<Arc<Routing>>,
}

/// What settings say of where the session's statements may run.
#[derive(Debug)]
struct Routing {
    need_primary: bool,
    /// What the proxy's own settings come to, if there are any.
    wanted: Option<Arc<Wanted>>,
}

type Map = BTreeMap<Box<str>, Box<[u8]>>;

static INTERNED: Interner<Map> = Interner::new();
static NONE: LazyLock<Settings> = LazyLock::new(|| Settings::shared(Map::new()));

/// Settings that are changed by statements of their own, and survive RESET ALL.
const ROLE: &str = "role";
const SESSION_AUTHORIZATION: &str = "session_authorization";

/// What the words of all settings are written in.
pub const ENCODING: &str = "client_encoding";

/// What transactions are unless they say otherwise.
const ISOLATION: &str = "default_transaction_isolation";
const READ_ONLY: &str = "default_transaction_read_only";
const DEFERRABLE: &str = "default_transaction_deferrable";

/// A SET of it changes a part of the value: it is restated whole from what the server reports.
pub const DATE_STYLE: &str = "datestyle";

/// It may name something in the search path of the moment, which is not what the name finds later.
pub const TEXT_SEARCH: &str = "default_text_search_config";

/// By it names in others are found, so it comes before them.
const SEARCH_PATH: &str = "search_path";

/// Settings that are often set and change how a statement runs, but not what it is.
const MEANINGLESS: [&str; 16] = [
    "application_name",
    "client_min_messages",
    DEFERRABLE,
    ISOLATION,
    READ_ONLY,
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "jit",
    "lock_timeout",
    "log_statement",
    "maintenance_work_mem",
    "statement_timeout",
    "synchronous_commit",
    "transaction_timeout",
    "work_mem",
];

/// Settings by which names are found and rights are judged. A server looks at these itself when it runs what it has
/// prepared, and reads the text anew if they are others.
const RESOLVING: [&str; 3] = [SEARCH_PATH, ROLE, SESSION_AUTHORIZATION];

/// Settings of whose rights count.
const IDENTITY: [&str; 2] = [SESSION_AUTHORIZATION, ROLE];

/// Whether the setting of this name is more than a value: whose rights count, or how everything else is written.
fn is_apart(name: &str) -> bool {
    IDENTITY.contains(&name) || name == ENCODING
}

/// Whether constants may be read otherwise by the setting of this name, when a text is prepared.
pub fn reads_constants(name: &str) -> bool {
    has_meaning(name) && !RESOLVING.contains(&name)
}

/// Whether a text may mean something else by the setting of this name when it is prepared. What applications and
/// extensions make up is looked at when a statement is run.
pub fn has_meaning(name: &str) -> bool {
    !MEANINGLESS.contains(&name) && !name.contains('.')
}

/// Whether a setting is one value and no more: setting it does nothing else, and lasts.
pub fn is_carried_by_value(name: &str) -> bool {
    !is_apart(name) && !ENDS_WITH_TRANSACTION.contains(&name)
}

/// Settings of the transaction at hand, however they are set: they end with it.
const ENDS_WITH_TRANSACTION: [&str; 3] = [
    "transaction_isolation",
    "transaction_read_only",
    "transaction_deferrable",
];

impl Settings {
    /// The most settings that a session carries to other servers, and the length of the statements
    /// that make them so. With more it keeps its server.
    pub const NUMBER_MAX: usize = 128;
    pub const BYTES_MAX: usize = 64 << 10;

    /// Settings given at start-up, each `name` to `value`.
    pub fn from_startup<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Settings {
        let pairs = pairs.into_iter();
        Settings::valued(pairs.map(|(name, value)| (name, value.as_bytes())))
    }

    fn valued<'a>(pairs: impl Iterator<Item = (&'a str, &'a [u8])>) -> Settings {
        let statement = |(name, value): (&str, &[u8])| {
            let name = name.to_ascii_lowercase();
            let name = setting::present_name(&name);
            let statement = set_config(name, value).into_boxed_slice();
            (name.into(), statement)
        };
        Settings::shared(pairs.map(statement).collect())
    }

    /// Settings as a server has listed them for a session that logged in as `login`. What is as it
    /// would be without a SET need not be remembered; a role is listed only where that may not be so.
    pub fn listed<'a>(listed: impl Iterator<Item = (&'a str, &'a [u8])>, login: &[u8]) -> Settings {
        let matters = |(name, value): &(&str, &[u8])| match *name {
            SESSION_AUTHORIZATION => *value != login,
            // What RESET leaves of a setting that only a SET has made known.
            name if name.contains('.') => !value.is_empty(),
            name => !ENDS_WITH_TRANSACTION.contains(&name),
        };
        Settings::valued(listed.filter(matters))
    }

    /// The role that is set, if one is, and if it can be told.
    pub fn role(&self) -> Option<Option<String>> {
        let role = setting::last_value(self.map.get(ROLE)?);
        (role.as_deref() != Some("none")).then_some(role)
    }

    /// Whether the session is another user's than who has logged in.
    pub fn set_session_authorization(&self) -> bool {
        self.map.contains_key(SESSION_AUTHORIZATION)
    }

    /// The names of what is set.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(|name| &**name)
    }

    fn shared(map: Map) -> Settings {
        Settings {
            routing: Routing::of(&map),
            map: INTERNED.share(map),
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Map)) {
        let mut map = (*self.map).clone();
        change(&mut map);
        *self = Settings::shared(map);
    }

    /// Whether both set the reported parameter `name` alike, or neither does.
    pub fn agrees(&self, other: &Settings, name: &[u8]) -> bool {
        // Servers report names as PostgreSQL spells them, "TimeZone".
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        self.map.get(name.as_str()) == other.map.get(name.as_str())
    }

    /// Whether no standby can run anything under these settings: it refuses serializable
    /// transactions.
    pub fn need_primary(&self) -> bool {
        (self.routing.as_ref()).is_some_and(|routing| routing.need_primary)
    }

    /// What transactions see of others unless they say otherwise, where servers have `usual` for it; `None`
    /// if that is not known.
    pub fn isolation(&self, usual: Option<Isolation>) -> Option<Isolation> {
        let Some(statement) = self.map.get(ISOLATION) else {
            return usual;
        };
        let statement = statement.to_ascii_lowercase();
        let has = |word: &str| statement.windows(word.len()).any(|w| w == word.as_bytes());
        let mut named = Isolation::ALL.iter().filter(|(name, _)| has(name));
        let one = named.next().filter(|_| named.next().is_none());
        one.map(|(_, isolation)| *isolation)
    }

    /// Whether the session has said itself that its transactions are read-only, or are not.
    pub fn state_transactions_read_only(&self) -> bool {
        self.map.contains_key(READ_ONLY)
    }

    /// What the session asks of the proxy.
    #[inline]
    pub fn wanted(&self) -> Option<&Arc<Wanted>> {
        self.routing.as_ref()?.wanted.as_ref()
    }

    /// With these values of the proxy's own settings, where they have none.
    pub fn with_own<'a>(&self, values: impl Iterator<Item = &'a (Own, String)>) -> Settings {
        let mut map = (*self.map).clone();
        for (own, value) in values {
            let statement = || set_config(own.name(), value.as_bytes()).into_boxed_slice();
            map.entry(own.name().into()).or_insert_with(statement);
        }
        Settings::shared(map)
    }

    /// The token among them, which is no more after that: it is received once.
    pub fn take_token(&mut self) -> Option<String> {
        let name = Own::Token.name();
        let token = own::value(self.map.get(name)?);
        self.change(|map| drop(map.remove(name)));
        token
    }

    /// Without the proxy's own: what a server reports does not depend on those.
    pub fn without_own(&self) -> Settings {
        let mut settings = self.clone();
        if proxys_own(&self.map).next().is_some() {
            settings.change(|map| map.retain(|name, _| !name.starts_with(own::PREFIX)));
        }
        settings
    }

    /// The proxy's own settings of `other` are there too, where these have none.
    pub fn keep_own(&mut self, other: &Settings) {
        if proxys_own(&other.map).next().is_some() {
            self.change(|map| {
                for (name, statement) in proxys_own(&other.map) {
                    map.entry(name.into()).or_insert_with(|| statement.into());
                }
            });
        }
    }

    /// Whether what is created without a schema may be temporary.
    pub fn make_temporary(&self) -> bool {
        let names_it = |statement: &[u8]| {
            let mut words = statement.windows(7);
            words.any(|word| word.eq_ignore_ascii_case(b"pg_temp"))
        };
        self.map.get(SEARCH_PATH).is_some_and(|path| names_it(path))
    }

    /// A digest of all that may change what a text means when it is prepared: how its bytes and its
    /// constants are read, and what its names stand for. `None` where nothing is set that does.
    pub fn meaning(&self) -> Option<u64> {
        use std::hash::{BuildHasher, Hash, Hasher};
        let mut digest = foldhash::quality::FixedState::with_seed(0).build_hasher();
        let mut settings = self.meant().peekable();
        settings.peek()?;
        settings.for_each(|setting| setting.hash(&mut digest));
        Some(digest.finish())
    }

    /// Those of them that may change what a text means when it is prepared.
    pub fn of_meaning(&self) -> Settings {
        Settings::shared(
            self.meant()
                .map(|(n, sql)| (n.into(), sql.into()))
                .collect(),
        )
    }

    /// Whether a text means the same under both.
    pub fn means_as(&self, other: &Settings) -> bool {
        self == other || self.meant().eq(other.meant())
    }

    /// Whether the constants of a text are read alike under both, in whatever words that is set.
    pub fn reads_as(&self, other: &Settings) -> bool {
        fn read(settings: &Settings) -> impl Iterator<Item = (&str, &[u8])> {
            settings.meant().filter(|(name, _)| reads_constants(name))
        }
        let is_alike = |a: (&str, &[u8]), b: (&str, &[u8])| {
            let value = setting::last_value;
            a == b || a.0 == b.0 && value(a.1).is_some_and(|one| value(b.1) == Some(one))
        };
        if self == other {
            return true;
        }
        let (mut own, mut others) = (read(self), read(other));
        loop {
            match (own.next(), others.next()) {
                (None, None) => return true,
                (Some(a), Some(b)) if is_alike(a, b) => {}
                _ => return false,
            }
        }
    }

    fn meant(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let settings = self.map.iter().map(|(name, sql)| (&**name, &**sql));
        settings.filter(|(name, _)| has_meaning(name))
    }

    /// Whether one more statement may be remembered: each change copies them all, and each is said
    /// to every server that the session comes to.
    pub fn have_room(&self, name: &str, statement: &[u8]) -> bool {
        let others = || self.map.iter().filter(|(other, _)| ***other != *name);
        let bytes: usize = others().map(|(_, statement)| statement.len()).sum();
        others().count() < Self::NUMBER_MAX && bytes + statement.len() <= Self::BYTES_MAX
    }

    /// Whether their words are the same bytes in every encoding.
    pub fn are_ascii(&self) -> bool {
        self.map.values().all(|statement| statement.is_ascii())
    }

    /// Whether they are no more than a session carries to other servers.
    pub fn are_portable(&self) -> bool {
        let bytes: usize = self.map.values().map(|statement| statement.len()).sum();
        self.map.len() <= Self::NUMBER_MAX && bytes <= Self::BYTES_MAX
    }

    /// The statement that sets `name` has succeeded.
    pub fn set(&mut self, name: &str, statement: &[u8]) {
        if ENDS_WITH_TRANSACTION.contains(&name) {
            return;
        }
        self.change(|map| {
            forget_role(name, map);
            map.insert(name.into(), statement.into());
        });
    }

    /// Transactions are like this now, unless they say otherwise.
    pub fn set_transactions(&mut self, modes: Modes) {
        let switch = |on: bool| if on { "on" } else { "off" };
        let values = [
            (ISOLATION, modes.isolation.map(Isolation::name)),
            (READ_ONLY, modes.read_only.map(switch)),
            (DEFERRABLE, modes.deferrable.map(switch)),
        ];
        for (name, value) in values {
            if let Some(value) = value {
                self.set(name, &set_config(name, value.as_bytes()));
            }
        }
    }

    /// `name` has this value now, by whatever statements. `false` when it is not set here.
    pub fn restate(&mut self, name: &str, value: &[u8]) -> bool {
        let set = self.map.contains_key(name);
        if set {
            self.set(name, &set_config(name, value));
        }
        set
    }

    /// RESET: back to what `defaults` has, which is what was given at start-up.
    pub fn reset(&mut self, name: &str, defaults: &Settings) {
        self.change(|map| {
            let mut reset = |name: &str| match defaults.map.get(name) {
                Some(statement) => drop(map.insert(name.into(), statement.clone())),
                None => drop(map.remove(name)),
            };
            reset(name);
            if name == SESSION_AUTHORIZATION {
                reset(ROLE);
            }
        });
    }

    /// RESET ALL, which leaves role and session user alone.
    pub fn reset_all(&mut self, defaults: &Settings) {
        let mut fresh = (*defaults.map).clone();
        for name in IDENTITY {
            if let Some(statement) = self.map.get(name) {
                fresh.insert(name.into(), statement.clone());
            }
        }
        *self = Settings::shared(fresh);
    }

    /// What is not set has been reset: to what was given at start-up. Of a role that is not known, nor of what an
    /// application makes up, which may have been set to nothing.
    pub fn fill_up(&mut self, defaults: &Settings) {
        let is_known = |name: &str| !IDENTITY.contains(&name) && !name.contains('.');
        let is_missing = |name: &str| is_known(name) && !self.map.contains_key(name);
        let given = defaults.map.iter();
        let missing: Vec<_> = given.filter(|(name, _)| is_missing(name)).collect();
        if !missing.is_empty() {
            let missing = missing
                .into_iter()
                .map(|(name, statement)| (name.clone(), statement.clone()));
            self.change(|map| map.extend(missing));
        }
    }

    /// The Queries that bring a server from `self` to `wanted`, in their order; none when there is
    /// nothing to do. Of all but the client's encoding, which the rest is written in, either
    /// everything holds or nothing.
    pub fn difference(&self, wanted: &Settings) -> SmallVec<[Vec<u8>; 2]> {
        let mut queries = SmallVec::new();
        if self == wanted {
            return queries;
        }
        let differs = |name: &str| self.map.get(name) != wanted.map.get(name);
        if differs(ENCODING) {
            let statement = wanted.map.get(ENCODING).map(|statement| statement.to_vec());
            queries.push(statement.unwrap_or_else(|| reset_statement(ENCODING).into_bytes()));
        }
        let mut sql = Vec::new();
        let mut add = |statement: &[u8]| {
            sql.extend_from_slice(statement);
            // A line of its own: the statement may end in a comment.
            sql.extend_from_slice(b"\n;");
        };
        let identity = IDENTITY.iter().any(|name| differs(name));
        if identity {
            // As the login user first: the others may need its rights.
            add(b"RESET SESSION AUTHORIZATION");
            add(b"RESET ROLE");
        }
        for name in self.map.keys().filter(|name| !is_apart(name)) {
            if !wanted.map.contains_key(name) {
                add(reset_statement(name).as_bytes());
            }
        }
        let others = wanted
            .map
            .iter()
            .filter(|(name, _)| ***name != *SEARCH_PATH);
        let path = wanted.map.get_key_value(SEARCH_PATH).into_iter();
        for (name, statement) in path.chain(others).filter(|(name, _)| !is_apart(name)) {
            if self.map.get(name) != Some(statement) {
                add(statement);
            }
        }
        if identity {
            for name in IDENTITY {
                if let Some(statement) = wanted.map.get(name) {
                    add(statement);
                }
            }
        }
        if !sql.is_empty() {
            queries.push(sql);
        }
        queries
    }

    /// Whether a server at `self` runs with other rights than `wanted`: then nothing may be sent
    /// before the difference is known to be applied.
    pub fn differs_in_identity(&self, wanted: &Settings) -> bool {
        let differs = |name: &str| self.map.get(name) != wanted.map.get(name);
        self != wanted && IDENTITY.iter().any(|name| differs(name))
    }
}

impl Default for Settings {
    fn default() -> Settings {
        NONE.clone()
    }
}

impl PartialEq for Settings {
    fn eq(&self, other: &Settings) -> bool {
        Arc::ptr_eq(&self.map, &other.map) || self.map == other.map
    }
}

impl Eq for Settings {}

impl Routing {
    fn of(settings: &Map) -> Option<Arc<Routing>> {
        let need_primary = are_serializable(settings);
        let wanted = Wanted::of(proxys_own(settings));
        (need_primary || wanted.is_some()).then(|| {
            Arc::new(Routing {
                need_primary,
                wanted,
            })
        })
    }
}

fn reset_statement(name: &str) -> String {
    format!("RESET \"{}\"", name.replace('"', "\"\""))
}

/// A change of the session's user sets the role to none.
fn forget_role(changed: &str, map: &mut Map) {
    if changed == SESSION_AUTHORIZATION {
        map.remove(ROLE);
    }
}

/// The statement that gives a setting this value for the session.
pub(super) fn set_config(name: &str, value: &[u8]) -> Vec<u8> {
    let mut sql = b"SELECT pg_catalog.set_config(".to_vec();
    add_literal(&mut sql, name.as_bytes());
    sql.extend_from_slice(b", ");
    add_literal(&mut sql, value);
    sql.extend_from_slice(b", false)");
    sql
}

/// A string constant that means the same whatever `standard_conforming_strings` is.
pub fn literal(text: &str) -> String {
    let mut sql = Vec::new();
    add_literal(&mut sql, text.as_bytes());
    String::from_utf8_lossy(&sql).into_owned()
}

/// Likewise, in whatever encoding the text is. (In some a backslash is the second byte of a
/// character; a client that uses one of them and sets such a value gets an error, not a leak.)
pub(super) fn add_literal(sql: &mut Vec<u8>, text: &[u8]) {
    let escapes = text.contains(&b'\\');
    sql.extend_from_slice(if escapes { b"E'" } else { b"'" });
    for &byte in text {
        match byte {
            b'\'' => sql.push(b'\''),
            b'\\' => sql.push(b'\\'),
            _ => {}
        }
        sql.push(byte);
    }
    sql.push(b'\'');
}

fn proxys_own(map: &Map) -> impl Iterator<Item = (&str, &[u8])> {
    let from = (Bound::Included(own::PREFIX), Bound::Unbounded);
    map.range::<str, _>(from)
        .take_while(|(name, _)| name.starts_with(own::PREFIX))
        .map(|(name, statement)| (&**name, &**statement))
}

/// Whether transactions are serializable unless they say otherwise.
fn are_serializable(settings: &Map) -> bool {
    let serializable = |statement: &[u8]| {
        let mut words = statement.windows(12);
        words.any(|word| word.eq_ignore_ascii_case(b"serializable"))
    };
    settings
        .get(ISOLATION)
        .is_some_and(|statement| serializable(statement))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(from: &Settings, to: &Settings) -> String {
        String::from_utf8(from.difference(to).concat()).unwrap()
    }

    #[test]
    fn a_server_is_brought_to_the_session_and_back() {
        let none = Settings::default();
        let mut some = none.clone();
        some.set("work_mem", b"SET work_mem = '1MB' -- small");
        assert_eq!(text(&none, &some), "SET work_mem = '1MB' -- small\n;");
        assert_eq!(text(&some, &none), "RESET \"work_mem\"\n;");
        assert!(some.difference(&some.clone()).is_empty());
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
    fn characteristics_are_settings_of_their_own() {
        let none = Settings::default();
        let mut session = none.clone();
        session.set_transactions(Modes {
            isolation: Some(Isolation::Serializable),
            ..Modes::default()
        });
        session.set_transactions(Modes {
            read_only: Some(true),
            ..Modes::default()
        });
        assert!(session.need_primary() && session.state_transactions_read_only());
        session.set(READ_ONLY, b"SET default_transaction_read_only = off");
        let said = text(&none, &session);
        assert!(said.contains("'default_transaction_isolation', 'serializable'"));
        assert!(
            said.ends_with("SET default_transaction_read_only = off\n;"),
            "{said}"
        );
        session.reset(ISOLATION, &none);
        assert!(!session.need_primary());
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
    fn another_session_user_has_no_role() {
        let mut session = Settings::default();
        session.set("session_authorization", b"SET SESSION AUTHORIZATION bob");
        session.set("role", b"SET ROLE carol");
        let mut other = session.clone();
        other.set("session_authorization", b"SET SESSION AUTHORIZATION dave");
        assert_eq!(other.names().collect::<Vec<_>>(), ["session_authorization"]);
        session.reset("session_authorization", &Settings::default());
        assert_eq!(session, Settings::default());
    }

    #[test]
    fn the_encoding_goes_first() {
        let mut latin = Settings::default();
        latin.set("application_name", b"SET application_name = '\xe9'");
        latin.set("client_encoding", b"SET NAMES 'LATIN1'");
        let queries = Settings::default().difference(&latin);
        assert_eq!(queries[0], b"SET NAMES 'LATIN1'");
        assert_eq!(queries[1], b"SET application_name = '\xe9'\n;");
        assert_eq!(latin.difference(&Settings::default()).len(), 2);
    }

    #[test]
    fn what_names_are_found_by_goes_before_them() {
        let started = [
            ("Default_Text_Search_Config", "mine"),
            ("search_path", "own"),
        ];
        let sql = text(&Settings::default(), &Settings::from_startup(started));
        assert!(sql.find("'own'").unwrap() < sql.find("'mine'").unwrap());
        assert_eq!(sql.matches("'search_path'").count(), 1, "{sql}");
    }

    #[test]
    fn what_is_as_it_would_be_is_not_listed() {
        let listed: [(&str, &[u8]); 5] = [
            ("session_authorization", b"bob"),
            ("a.b", b""),
            ("a.c", b"1"),
            ("work_mem", b"8192"),
            ("transaction_read_only", b"on"),
        ];
        let settings = Settings::listed(listed.into_iter(), b"bob");
        assert_eq!(settings.names().collect::<Vec<_>>(), ["a.c", "work_mem"]);
        let settings = Settings::listed([("role", &b"carol"[..])].into_iter(), b"bob");
        assert!(Settings::default().differs_in_identity(&settings));
    }

    #[test]
    fn only_what_texts_mean_by_counts_for_their_meaning() {
        let mut settings = Settings::default();
        settings.set("application_name", b"SET application_name = 'a'");
        settings.set("work_mem", b"SET work_mem = 1");
        assert_eq!(settings.meaning(), None);
        settings.set("datestyle", b"SET datestyle = dmy");
        let dmy = settings.meaning();
        settings.set("datestyle", b"SET datestyle = mdy");
        assert!(dmy.is_some() && dmy != settings.meaning());
        let meant = settings.of_meaning();
        assert_eq!(meant.names().collect::<Vec<_>>(), ["datestyle"]);
        assert!(meant.means_as(&settings) && meant != settings);
        assert!(!meant.means_as(&Settings::default()));
    }

    #[test]
    fn literals_survive_backslashes() {
        assert_eq!(literal(r"a\'b"), r"E'a\\''b'");
    }
}
