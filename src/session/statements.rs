//! Owns: prepared statements: the texts shared by all sessions, and one session's names for them.
//! Never: sends or expects a message.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use super::batch::Renames;
use super::settings::Settings;
use crate::config::NAME_BYTES_MAX;
use crate::sql::Class;
use crate::sql::lexer;
use crate::wire::PARSE_BYTES_MAX;

/// A statement that servers can be asked to prepare, shared by every session that uses the same
/// text with the same parameter types.
#[derive(Debug)]
pub struct Prepared {
    /// Tells it from all others.
    pub id: u64,
    /// The name it has on every server.
    pub server_name: Box<[u8]>,
    /// Whose it is, as the registry tells them apart. Empty if it is one session's alone.
    scope: Arc<str>,
    pub sql: Box<[u8]>,
    /// The number of parameter types and their OIDs, as sent.
    pub types: Box<[u8]>,
    pub class: Arc<Class>,
    /// The settings by which its text is read, on every server: those of when its client prepared it. `None` if they
    /// are not known, or don't matter.
    pub(super) under: Option<Settings>,
    /// Its text may name others, as EXECUTE does; and the one that it names otherwise than servers do. That one names
    /// none itself.
    pub(super) may_name: bool,
    pub(super) renames: Renames,
    proven: AtomicBool,
    /// The registry's epoch when it was made.
    epoch: u64,
    retired: AtomicBool,
    /// A digest of what its first server said that it returns; 0 before.
    shape: AtomicU64,
    /// It returns something else by now. PostgreSQL refuses to run such a statement until it is
    /// prepared again, as its client may read the rows by what it was told.
    stale: AtomicBool,
}

impl Prepared {
    /// A server has accepted it.
    pub fn prove(&self) {
        if !self.is_proven() {
            self.proven.store(true, Ordering::Relaxed);
        }
    }

    /// Whether other sessions may have it, or get it.
    pub fn is_shared(&self) -> bool {
        !self.scope.is_empty()
    }

    /// Servers' plans of it no longer fit: whoever prepares the text again gets another statement.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Whether a server of its scope is known to accept it: the next session that prepares it need
    /// not wait for a server.
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// Whether it is known what it returns.
    pub fn has_shape(&self) -> bool {
        self.shape.load(Ordering::Relaxed) != 0
    }

    /// Whether a server that has just prepared it, and returns rows of this shape, does as the first one did.
    pub fn is_shaped(&self, shape: u64) -> bool {
        let shape = shape.max(1);
        let first = self
            .shape
            .compare_exchange(0, shape, Ordering::Relaxed, Ordering::Relaxed);
        first.is_ok() || first == Err(shape)
    }

    /// It returns something else by now, for everybody.
    pub fn outdate(&self) {
        self.stale.store(true, Ordering::Relaxed);
        self.retire();
    }

    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// How long what was sent of it is.
    fn bytes(&self) -> usize {
        self.sql.len() + self.types.len()
    }
}

/// Every name on a server starts so. A client's statement can't be reached by such a name.
pub const SERVER_NAME_PREFIX: &[u8] = b"_tidegate_";

/// A name that no server has a statement of: not a number.
pub const NO_STATEMENT: &[u8] = b"_tidegate_none";

pub fn server_name(id: u64) -> Vec<u8> {
    [SERVER_NAME_PREFIX, format!("{id:x}").as_bytes()].concat()
}

/// Which statement a server has by this name.
pub fn server_id(name: &[u8]) -> Option<u64> {
    let digits = name.strip_prefix(SERVER_NAME_PREFIX)?;
    let id = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    (server_name(id) == name).then_some(id)
}

/// What servers tell the names in messages apart by: their first bytes. Only names in texts are cut
/// where a character ends.
pub(super) fn key(name: &[u8]) -> &[u8] {
    name.get(..NAME_BYTES_MAX).unwrap_or(name)
}

/// Whether the text of a statement may name another one. More than one at a time are not prepared.
pub(super) fn may_name_one(class: &Class, sql: &[u8]) -> bool {
    let words = [&b"execute"[..], b"deallocate"];
    class.statements.len() == 1
        && class.may_name_prepared()
        && words.iter().any(|word| lexer::contains(sql, word))
}

/// All statements of a process. Two sessions that prepare the same text get the same statement, so
/// a server has it once.
#[derive(Debug)]
pub struct Registry {
    shards: [Mutex<Shard>; Self::SHARDS],
    numbers: Arc<Numbers>,
    hasher: foldhash::quality::RandomState,
}

/// A part of them.
#[derive(Debug)]
struct Shard {
    /// By a hash of scope, text and types. Of two statements with one hash the later is kept.
    statements: LruCache<u64, Arc<Prepared>, foldhash::fast::FixedState>,
    /// How long their texts are together.
    bytes: usize,
}

impl Shard {
    /// The longest that the texts of one may be together, in bytes.
    const BYTES_MAX: usize = 4 << 20;

    /// Keeps a statement for others that use it, unless its text is longer than all may be.
    fn keep(&mut self, hash: u64, prepared: Arc<Prepared>) {
        if prepared.bytes() > Self::BYTES_MAX {
            return;
        }
        self.bytes += prepared.bytes();
        if let Some((_, gone)) = self.statements.push(hash, prepared) {
            self.bytes -= gone.bytes();
        }
        while self.bytes > Self::BYTES_MAX
            && let Some((_, gone)) = self.statements.pop_lru()
        {
            self.bytes -= gone.bytes();
        }
    }
}

/// What all registries of a process share: servers outlive them.
#[derive(Debug)]
struct Numbers {
    /// Of the next statement. Servers know statements by their numbers.
    next: AtomicU64,
    /// Counts changes of schemas.
    epoch: AtomicU64,
}

impl Registry {
    const SHARDS: usize = 16;
    /// Statements remembered beyond the sessions that use them, over all shards.
    const STATEMENTS_MAX: usize = 16_384;

    pub fn new() -> Registry {
        Registry::numbered(Arc::new(Numbers {
            next: AtomicU64::new(1),
            epoch: AtomicU64::new(0),
        }))
    }

    /// An empty one that takes over from this one, which may still be used: no statement of either is taken for one of
    /// the other's.
    pub fn successor(&self) -> Registry {
        Registry::numbered(self.numbers.clone())
    }

    fn numbered(numbers: Arc<Numbers>) -> Registry {
        let per_shard = NonZeroUsize::new(Self::STATEMENTS_MAX / Self::SHARDS);
        let per_shard = per_shard.unwrap_or(NonZeroUsize::MIN);
        let shard = || Shard {
            statements: LruCache::with_hasher(per_shard, Default::default()),
            bytes: 0,
        };
        Registry {
            shards: std::array::from_fn(|_| Mutex::new(shard())),
            numbers,
            hasher: foldhash::quality::RandomState::default(),
        }
    }

    /// A schema has changed: what was prepared before may have another result now, and a new
    /// statement must not be given an old plan.
    pub fn begin_epoch(&self) {
        self.numbers.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// The statement of this text and these types. `scope` names whose statements may be the same:
    /// a cluster's, database's and user's to whom texts mean what they mean under these settings.
    pub fn intern(
        &self,
        scope: &Arc<str>,
        under: &Settings,
        sql: &[u8],
        types: &[u8],
        class: &Arc<Class>,
    ) -> Arc<Prepared> {
        let hash = self.hasher.hash_one((&**scope, sql, types));
        let epoch = self.numbers.epoch.load(Ordering::Relaxed);
        let mut shard = self.shards[hash as usize % Self::SHARDS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shard.statements.get(&hash)
            && known.scope == *scope
            && *known.sql == *sql
            && *known.types == *types
            && known.class == *class
            && known.epoch == epoch
            && !known.retired.load(Ordering::Relaxed)
        {
            return known.clone();
        }
        let under = Some(under.of_meaning());
        let prepared = self.make(scope.clone(), under, sql, types, class, Renames::new());
        shard.keep(hash, prepared.clone());
        prepared
    }

    /// A statement of this text and these types that nobody else gets.
    pub fn unshared(
        &self,
        under: Option<Settings>,
        sql: &[u8],
        types: &[u8],
        class: &Arc<Class>,
    ) -> Arc<Prepared> {
        self.make(Arc::default(), under, sql, types, class, Renames::new())
    }

    /// The like, of a text that names another by its client's name. Such a one is read when it is run.
    pub(super) fn naming(
        &self,
        sql: &[u8],
        types: &[u8],
        class: &Arc<Class>,
        renames: Renames,
    ) -> Arc<Prepared> {
        self.make(Arc::default(), None, sql, types, class, renames)
    }

    fn make(
        &self,
        scope: Arc<str>,
        under: Option<Settings>,
        sql: &[u8],
        types: &[u8],
        class: &Arc<Class>,
        renames: Renames,
    ) -> Arc<Prepared> {
        let id = self.numbers.next.fetch_add(1, Ordering::Relaxed);
        Arc::new(Prepared {
            id,
            server_name: server_name(id).into(),
            scope,
            sql: sql.into(),
            types: types.into(),
            class: class.clone(),
            under: under.filter(|_| !class.statements.iter().all(|s| s.verb.is_control())),
            may_name: may_name_one(class, sql),
            renames,
            proven: AtomicBool::new(false),
            epoch: self.numbers.epoch.load(Ordering::Relaxed),
            retired: AtomicBool::new(false),
            shape: AtomicU64::new(0),
            stale: AtomicBool::new(false),
        })
    }
}

impl Default for Registry {
    fn default() -> Self {
        Registry::new()
    }
}

/// The unnamed statement of a session: its text is kept until the next one.
#[derive(Debug)]
pub struct Unnamed {
    /// Tells it from the session's other unnamed statements.
    pub serial: u64,
    pub sql: Vec<u8>,
    pub types: Vec<u8>,
    pub class: Arc<Class>,
    /// The statements that it names and that have other names on servers.
    pub(super) renames: Renames,
}

/// One session's statements by the names that its client gave them, of which the beginning counts.
#[derive(Debug, Default)]
pub struct Statements {
    named: HashMap<Box<[u8]>, Arc<Prepared>, foldhash::fast::RandomState>,
    /// How long what was sent of these is together, a text with two names counted twice.
    named_bytes: usize,
    unnamed: Option<Arc<Unnamed>>,
    serial: u64,
}

impl Statements {
    /// The most statements one session may hold: without a limit, a client that never closes any
    /// would take all memory.
    pub const NAMED_MAX: usize = 100_000;

    /// The longest that their texts may be together, in bytes: no less than the longest one may be.
    pub const NAMED_BYTES_MAX: usize = PARSE_BYTES_MAX;

    pub fn get(&self, name: &[u8]) -> Option<&Arc<Prepared>> {
        self.named.get(key(name))
    }

    /// The statement of this number, and a name that the client has given it.
    pub(super) fn of_id(&self, id: u64) -> Option<(&Prepared, &[u8])> {
        let mut named = self.named.iter();
        let (name, prepared) = named.find(|(_, known)| known.id == id)?;
        Some((&**prepared, &**name))
    }

    /// A name that the client has given `prepared`.
    pub fn name_of(&self, prepared: &Prepared) -> Option<&[u8]> {
        self.of_id(prepared.id).map(|(_, name)| name)
    }

    /// Whether there is any with a name.
    pub fn has_named(&self) -> bool {
        !self.named.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.named.len() >= Self::NAMED_MAX
    }

    /// Whether there is room for a text, and the types of its parameters, of so many bytes.
    pub fn have_room(&self, bytes: usize) -> bool {
        self.named_bytes.saturating_add(bytes) <= Self::NAMED_BYTES_MAX
    }

    pub fn insert(&mut self, name: &[u8], prepared: Arc<Prepared>) {
        self.named_bytes += prepared.bytes();
        let before = self.named.insert(key(name).into(), prepared);
        self.named_bytes -= before.map_or(0, |before| before.bytes());
    }

    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Prepared>> {
        let removed = self.named.remove(key(name))?;
        self.named_bytes -= removed.bytes();
        Some(removed)
    }

    /// Whether all those with a name are so.
    pub(super) fn all(&self, are: impl Fn(&Prepared) -> bool) -> bool {
        self.named.values().all(|prepared| are(prepared))
    }

    /// DEALLOCATE ALL and DISCARD ALL, which spare the unnamed statement.
    pub fn clear_named(&mut self) {
        self.named.clear();
        self.named_bytes = 0;
    }

    pub fn unnamed(&self) -> Option<&Arc<Unnamed>> {
        self.unnamed.as_ref()
    }

    /// Replaces the unnamed statement; its buffers are used again.
    pub(super) fn set_unnamed(
        &mut self,
        sql: &[u8],
        types: &[u8],
        class: Arc<Class>,
        renames: Renames,
    ) -> Arc<Unnamed> {
        self.serial += 1;
        let serial = self.serial;
        /// A buffer larger than this is not worth keeping for the next, usually short, text.
        const KEPT_BYTES_MAX: usize = 8 << 10;
        match self.unnamed.as_mut().and_then(Arc::get_mut) {
            Some(old) if old.sql.capacity() <= KEPT_BYTES_MAX => {
                old.serial = serial;
                old.class = class;
                old.renames = renames;
                old.sql.clear();
                old.sql.extend_from_slice(sql);
                old.types.clear();
                old.types.extend_from_slice(types);
            }
            _ => {
                let (sql, types) = (sql.to_vec(), types.to_vec());
                self.unnamed = Some(Arc::new(Unnamed {
                    serial,
                    sql,
                    types,
                    class,
                    renames,
                }));
            }
        }
        // Just set in either arm.
        self.unnamed
            .clone()
            .unwrap_or_else(|| unreachable!("the unnamed statement was set"))
    }

    pub fn drop_unnamed(&mut self) {
        self.unnamed = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{Need, Why};

    fn class(need: Need) -> Arc<Class> {
        let why = Why::ProvenRead;
        Arc::new(Class {
            need,
            why,
            statements: Box::new([]),
            functions: Box::new([]),
            relations: Box::new([]),
            refused: Default::default(),
            asks_catalog: false,
            memo: Default::default(),
            explains: false,
        })
    }

    #[test]
    fn the_same_text_and_types_are_one_statement() {
        let registry = Registry::new();
        let (here, there) = (Arc::from("main/app/app"), Arc::from("main/app/bob"));
        let read = class(Need::Read);
        let none = Settings::default();
        let one = registry.intern(&here, &none, b"SELECT $1", b"\0\0", &read);
        let intern =
            |scope, types: &[u8], class| registry.intern(scope, &none, b"SELECT $1", types, class);
        let id = |scope, types: &[u8], class| intern(scope, types, class).id;
        assert_eq!(one.id, id(&here, b"\0\0", &read));
        assert_ne!(one.id, id(&here, b"\0\x01\0\0\0\x17", &read));
        assert_ne!(one.id, id(&there, b"\0\0", &read));
        let write = class(Need::Write);
        let as_write = id(&here, b"\0\0", &write);
        assert_ne!(one.id, as_write, "what it needs has changed");
        let again = intern(&here, b"\0\0", &read);
        again.retire();
        let third = id(&here, b"\0\0", &read);
        assert_ne!(again.id, third);
        assert!(again.is_shaped(7) && again.is_shaped(7) && !again.is_shaped(8));
        assert!(!again.is_stale());
        again.outdate();
        assert!(again.is_stale());
        registry.begin_epoch();
        assert_ne!(third, id(&here, b"\0\0", &read));
    }

    #[test]
    fn what_is_remembered_is_bounded_in_bytes() {
        let (registry, scope) = (Registry::new(), Arc::from("main/app/app"));
        let read = class(Need::Read);
        let none = Settings::default();
        let intern = |sql: &[u8]| registry.intern(&scope, &none, sql, b"\0\0", &read);
        let remembered = || {
            let shards = registry.shards.iter().map(|shard| shard.lock().unwrap());
            let sizes = shards.map(|shard| {
                let bytes: usize = shard.statements.iter().map(|(_, p)| p.bytes()).sum();
                assert_eq!(shard.bytes, bytes);
                bytes
            });
            sizes.max().unwrap()
        };
        let short = intern(b"SELECT 1").id;
        let giant = vec![b'x'; Shard::BYTES_MAX];
        assert_ne!(
            intern(&giant).id,
            intern(&giant).id,
            "it is nobody's but who asks"
        );
        assert_eq!(intern(b"SELECT 1").id, short, "nothing has to go for it");
        for number in 0..200 {
            let mut text = vec![b'x'; 1 << 20];
            text.extend_from_slice(&u32::to_be_bytes(number));
            let id = intern(&text).id;
            assert_eq!(intern(&text).id, id);
            assert!(remembered() <= Shard::BYTES_MAX);
        }
        intern(b"SELECT 2").retire();
        intern(b"SELECT 2");
        remembered();
    }

    #[test]
    fn a_successor_has_statements_of_its_own() {
        let (scope, read) = (Arc::from("main/app/app"), class(Need::Read));
        let old = Registry::new();
        let intern = |registry: &Registry, sql: &str| {
            let none = Settings::default();
            registry
                .intern(&scope, &none, sql.as_bytes(), b"\0\0", &read)
                .id
        };
        let first = intern(&old, "SELECT 1");
        let new = old.successor();
        let second = intern(&new, "SELECT 1");
        let third = intern(&old, "SELECT 2");
        assert!(first < second && second < third, "{first} {second} {third}");
        assert_eq!(intern(&old, "SELECT 1"), first);
        assert_eq!(intern(&new, "SELECT 1"), second);
        old.begin_epoch();
        assert!(
            intern(&new, "SELECT 1") > third,
            "a schema has changed for everybody"
        );
    }

    #[test]
    fn each_unnamed_statement_is_its_own() {
        let mut statements = Statements::default();
        let first = statements.set_unnamed(b"SELECT 1", b"\0\0", class(Need::Read), vec![]);
        let second = statements.set_unnamed(b"SELECT 1", b"\0\0", class(Need::Read), vec![]);
        assert_ne!(first.serial, second.serial);
        statements.drop_unnamed();
        assert!(statements.unnamed().is_none());
        let third = statements.set_unnamed(b"", b"\0\0", class(Need::Read), vec![]);
        assert_ne!(second.serial, third.serial);
    }
}
