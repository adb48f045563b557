//! What a statement needs of the server that runs it.
//!
//! Owns: the classes of statements and the cache of them. Never: touches a socket, a clock or the
//! session; the same text always gets the same class.
//!
//! Reading is *proven*; everything else is a write. A text that cannot be parsed, is too large or
//! too deep, or names a function that is not known to be safe, is a write, never an error.

pub mod altered;
pub mod cache;
pub mod catalog;
pub mod classify;
pub mod command;
pub mod explain;
pub mod fingerprint;
pub mod functions;
pub mod hint;
pub mod lexer;
pub mod prepared;
mod recent;
pub mod relations;
pub mod set_config;
pub mod setting;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What a statement needs, from the least to the most demanding. The class of several statements
/// together is the maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Proven to run on a hot standby with the same result as on the primary.
    Read,
    /// Reads or changes the session's state and no data: SET, RESET, SHOW, DEALLOCATE, DISCARD, ….
    Session,
    /// Opens, closes or steers a transaction: BEGIN, COMMIT, SAVEPOINT, ….
    Transaction,
    /// Everything else, and everything unproven.
    Write,
}

/// The class of one query text (which may hold several statements).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    pub need: Need,
    pub why: Why,
    /// One entry per statement of the text, in order. Empty statements have none, as the server
    /// answers nothing for them.
    pub statements: Box<[Statement]>,
    /// Functions that its queries name, as written but case-folded, schema-qualified where they
    /// were; sorted. A part that holds a dot keeps its quotes. Complete where `why` is
    /// [`Why::ProvenRead`] or [`Why::UnknownFunction`]; commands that are settled by their words
    /// list none.
    pub functions: Box<[Box<str>]>,
    /// Relations that its queries name, likewise. Names that WITH defines are not among them, unless the
    /// parser does not know the query: then these are all names that may be one.
    pub relations: Box<[Box<str>]>,
    /// A replica has refused it, where the primary has not.
    pub refused: Refused,
    /// Whether what the text needs is for the database's catalog to say, and what catalogs have said.
    pub asks_catalog: bool,
    pub memo: catalog::Memo,
    /// Whether it is, or has in it, an EXPLAIN ROUTE.
    pub explains: bool,
}

/// Whether a text is known to be no read after all. It is kept with the class, for as long as that
/// is kept by anybody.
#[derive(Debug, Default)]
pub struct Refused(AtomicBool);

impl Clone for Refused {
    fn clone(&self) -> Refused {
        Refused(AtomicBool::new(self.0.load(Relaxed)))
    }
}

/// It is no part of what the text itself says.
impl PartialEq for Refused {
    fn eq(&self, _: &Refused) -> bool {
        true
    }
}

impl Eq for Refused {}

impl Class {
    /// What it needs, and why, by all that is known.
    #[inline]
    pub fn needs(&self) -> (Need, Why) {
        match self.is_refused() {
            false => (self.need, self.why),
            true => (Need::Write, Why::Refused),
        }
    }

    /// Whether a replica has refused it, where the primary has not.
    #[inline]
    pub fn is_refused(&self) -> bool {
        self.refused.0.load(Relaxed)
    }

    /// A replica has refused it, and the primary has run it: it is no read. `true` if that is news.
    pub fn refuse(&self) -> bool {
        !self.refused.0.swap(true, Relaxed)
    }

    /// Whether any of its statements may show data: a text is as demanding as its most demanding
    /// statement, and `BEGIN; SELECT …` is more than that.
    pub fn may_show_data(&self) -> bool {
        let silent = |statement: &Statement| {
            !matches!(
                statement.verb,
                Verb::Plain | Verb::Execute | Verb::Fetch | Verb::Copy
            )
        };
        matches!(self.need, Need::Read | Need::Write) || !self.statements.iter().all(silent)
    }

    /// Whether it calls `set_config`.
    pub fn sets_config(&self) -> bool {
        self.statements
            .iter()
            .any(|statement| statement.sets_config)
    }

    /// Whether it asks for what the session has last drawn from a sequence.
    pub fn reads_sequences(&self) -> bool {
        self.statements.iter().any(|s| s.reads_sequence)
    }

    /// Whether its text may name prepared statements.
    pub fn may_name_prepared(&self) -> bool {
        let may_name = |s: &Statement| s.verb != Verb::Plain || self.why == Why::Utility;
        !self.explains && self.statements.iter().any(may_name)
    }

    /// Whether it creates, alters or drops a database.
    pub fn touches_databases(&self) -> bool {
        self.need == Need::Write && self.statements.iter().any(|s| s.verb == Verb::Database)
    }
}

/// What one statement of a text does to the session, once it has succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement {
    pub verb: Verb,
    /// What it may leave on the server, or take away, that would be lost if the session went on with
    /// another server.
    pub pins: PinSet,
    /// It calls `set_config`: which settings, by [`set_config::changes`], and afterwards they must
    /// be read from the server.
    pub sets_config: bool,
    /// It asks for what the session has last drawn from a sequence.
    pub reads_sequence: bool,
    /// It may execute what another text has prepared.
    pub executes: bool,
}

impl Statement {
    /// Whether it defines what other sessions use too. Something temporary is the session's own, and most often new.
    pub fn defines(&self) -> bool {
        match self.verb {
            Verb::Routine => true,
            Verb::Ddl(reach) => reach != Reach::Nothing && !self.pins.contains(Pin::TemporaryTable),
            _ => false,
        }
    }
}

/// The statements that a session has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Nothing below.
    Plain,
    /// BEGIN or START TRANSACTION, with the modes that it states.
    Begin(Modes),
    /// COMMIT or END.
    Commit,
    /// ROLLBACK or ABORT (not ROLLBACK TO).
    Rollback,
    Savepoint,
    RollbackTo,
    Release,
    PrepareTransaction,
    /// SET (SESSION), RESET, SET ROLE, SET SESSION AUTHORIZATION, SET TIME ZONE, SET NAMES,
    /// SET SESSION CHARACTERISTICS: details by [`setting::setting`], since values are not part of
    /// a class.
    Setting,
    /// SET LOCAL, SET CONSTRAINTS and SET TRANSACTION SNAPSHOT: gone with the transaction.
    SettingLocal,
    /// SET TRANSACTION, with the modes that it states.
    SetTransaction(Modes),
    Show,
    DiscardAll,
    /// DISCARD PLANS or TEMP.
    DiscardOther,
    DiscardSequences,
    /// PREPARE name AS ….
    Prepare,
    Execute,
    /// DEALLOCATE name: which one by [`prepared::deallocate`].
    Deallocate,
    DeallocateAll,
    Declare,
    Fetch,
    Close,
    Listen,
    Unlisten,
    Copy,
    /// CREATE, ALTER, DROP, SELECT INTO and the like: other sessions' plans and classes may change.
    Ddl(Reach),
    /// The like, of a function, procedure, trigger, rule, view or extension: what using its name does
    /// to a session may change.
    Routine,
    /// ALTER or DROP of a role: connections that are open may be unlike new ones.
    Role,
    /// CREATE, ALTER or DROP of a database, which must have no connections, or makes those that are
    /// open unlike new ones.
    Database,
    /// DO and CALL: what they leave in the session can't be told from their words.
    Run,
    /// EXPLAIN ROUTE, which PostgreSQL does not have: what it is about is
    /// [`command::explained`].
    ExplainRoute,
}

impl Verb {
    /// Whether it steers a transaction, and nothing else.
    pub fn is_control(self) -> bool {
        matches!(
            self,
            Verb::Begin(_)
                | Verb::Commit
                | Verb::Rollback
                | Verb::Savepoint
                | Verb::Release
                | Verb::RollbackTo
        )
    }
}

/// What a definition may change of what its database's [catalog] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nothing that matters: it takes something away, or is about rights, indexes or comments.
    Nothing,
    /// What it says of the one relation that is new, by [`command::created`].
    Itself,
    Anything,
}

/// The modes of a transaction, as far as they are stated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    pub isolation: Option<Isolation>,
    pub read_only: Option<bool>,
    pub deferrable: Option<bool>,
}

/// What a transaction sees of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// The same as [`ReadCommitted`](Isolation::ReadCommitted), but for its name.
    ReadUncommitted,
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

impl Isolation {
    /// By the names that the server has for them.
    pub const ALL: [(&str, Isolation); 4] = [
        ("read uncommitted", Isolation::ReadUncommitted),
        ("read committed", Isolation::ReadCommitted),
        ("repeatable read", Isolation::RepeatableRead),
        ("serializable", Isolation::Serializable),
    ];

    pub fn named(name: &str) -> Option<Isolation> {
        let named = Isolation::ALL.iter().find(|(known, _)| *known == name);
        named.map(|(_, isolation)| *isolation)
    }

    pub fn name(self) -> &'static str {
        let named = Isolation::ALL.iter().find(|(_, known)| *known == self);
        named.map_or("", |(name, _)| name)
    }

    /// Whether each statement sees what was committed before it, and not all of them the same.
    pub fn is_by_statement(self) -> bool {
        matches!(self, Isolation::ReadUncommitted | Isolation::ReadCommitted)
    }
}

impl Modes {
    /// With what `later` states in their place.
    pub fn changed_by(self, later: Modes) -> Modes {
        Modes {
            isolation: later.isolation.or(self.isolation),
            read_only: later.read_only.or(self.read_only),
            deferrable: later.deferrable.or(self.deferrable),
        }
    }
}

/// Why a session must keep its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pin {
    TemporaryTable,
    /// A session-level advisory lock.
    AdvisoryLock,
    /// A cursor WITH HOLD.
    HeldCursor,
    Listen,
    /// An SQL-level PREPARE.
    PreparedStatement,
    /// A library that was loaded stays for as long as the server lives, and so does what
    /// [`functions::Effect::Stays`] is about.
    Load,
    /// Settings whose names are not known.
    Settings,
    /// What was last drawn from sequences, of a session that may ask for it.
    Sequence,
}

impl Pin {
    pub const ALL: [Pin; 8] = [
        Pin::TemporaryTable,
        Pin::AdvisoryLock,
        Pin::HeldCursor,
        Pin::Listen,
        Pin::PreparedStatement,
        Pin::Load,
        Pin::Settings,
        Pin::Sequence,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Pin::TemporaryTable => "temporary_table",
            Pin::AdvisoryLock => "advisory_lock",
            Pin::HeldCursor => "held_cursor",
            Pin::Listen => "listen",
            Pin::PreparedStatement => "prepared_statement",
            Pin::Load => "load",
            Pin::Settings => "settings",
            Pin::Sequence => "sequence",
        }
    }
}

/// A set of pins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinSet(u8);

impl PinSet {
    pub const fn of(pins: &[Pin]) -> PinSet {
        let mut set = PinSet(0);
        let mut i = 0;
        while i < pins.len() {
            set.insert(pins[i]);
            i += 1;
        }
        set
    }

    pub const fn contains(self, pin: Pin) -> bool {
        self.0 & 1 << pin as u8 != 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub const fn insert(&mut self, pin: Pin) {
        self.0 |= 1 << pin as u8;
    }

    pub fn and(self, others: PinSet) -> PinSet {
        PinSet(self.0 | others.0)
    }

    pub fn without(self, others: PinSet) -> PinSet {
        PinSet(self.0 & !others.0)
    }

    pub fn iter(self) -> impl Iterator<Item = Pin> {
        Pin::ALL.into_iter().filter(move |pin| self.contains(*pin))
    }
}

/// Why a text has the class it has. The names are those of logs, metrics and docs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Every part of it was proven to read only.
    ProvenRead,
    /// No statement at all.
    Empty,
    TransactionControl,
    SessionState,
    /// It asks where a statement goes, which the proxy answers.
    ExplainRoute,
    /// INSERT, UPDATE, DELETE, MERGE, COPY FROM, TRUNCATE, at any depth.
    DataChange,
    Ddl,
    /// FOR UPDATE, FOR SHARE and kin, at any depth.
    LockingClause,
    SelectInto,
    /// A function that is known to write, to lock or to depend on the server.
    UnsafeFunction,
    /// A function that nothing is known about. The weakest reason of a write: it stands only where
    /// all statements would be less without the functions that are unknown.
    UnknownFunction,
    /// A relation that differs on a standby (pg_stat_*, pg_locks, …).
    ServerLocalRelation,
    /// A relation that a standby does not have, or a view that reaches an unsafe function.
    UnsafeRelation,
    /// An operator, a cast, a type or a field that calls an unsafe function unseen.
    HiddenFunction,
    /// It might be a read, and what the database's catalog says of it is not known now.
    CatalogUnknown,
    /// Other statements that are never reads.
    Utility,
    /// The parser did not understand it.
    NotParsed,
    /// Larger, deeper or longer-chained than what may reach the parser.
    TooComplex,
    /// `standard_conforming_strings` is off: string limits are unknown.
    NonConformingStrings,
    /// It was taken for a read, and a replica has refused it.
    Refused,
}

impl Why {
    /// The name used in logs, metrics and docs.
    pub fn name(self) -> &'static str {
        match self {
            Why::ProvenRead => "proven_read",
            Why::Empty => "empty",
            Why::TransactionControl => "transaction_control",
            Why::SessionState => "session_state",
            Why::ExplainRoute => "explain_route",
            Why::DataChange => "data_change",
            Why::Ddl => "ddl",
            Why::LockingClause => "locking_clause",
            Why::SelectInto => "select_into",
            Why::UnsafeFunction => "unsafe_function",
            Why::UnknownFunction => "unknown_function",
            Why::ServerLocalRelation => "server_local_relation",
            Why::UnsafeRelation => "unsafe_relation",
            Why::HiddenFunction => "hidden_function",
            Why::CatalogUnknown => "catalog_unknown",
            Why::Utility => "utility",
            Why::NotParsed => "not_parsed",
            Why::TooComplex => "too_complex",
            Why::NonConformingStrings => "non_conforming_strings",
            Why::Refused => "refused",
        }
    }
}
