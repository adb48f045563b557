//! Owns: the transaction that *roams*, that is, is not on the primary: what may run in it where it is, and
//! what opens it again elsewhere. Never: chooses a server.
//!
//! A transaction on a replica has done nothing but read. So another server, of the primary, can be brought
//! to where it is: by beginning again, and by what has been set and saved since, in the client's own
//! words. That is done as soon as something is to run that is not proven to read. It can't be done any
//! more when the transaction keeps a snapshot of its own, or a cursor: it is *tied* then.

use bytes::BytesMut;

use super::batch::{Batch, End, Step};
use super::bound::Bound;
use super::own::{self, Complaint};
use super::params::Params;
use super::say::NO_SQL;
use super::server::{Expect, ServerState};
use super::settings::add_literal;
use super::tracked::Text;
use super::{Localised, Session};
use crate::config::TransactionReads;
use crate::sql::setting::{self, Setting};
use crate::sql::{Class, Isolation, Modes, Need, Statement, Verb, command, lexer, set_config};
use crate::wire::encode;
use crate::wire::message::Status;

/// The most that is repeated to open a transaction elsewhere, in bytes. One that would need more leaves
/// its replica before.
const WORDS_BYTES_MAX: usize = 16 << 10;

/// A transaction that is on a replica, or on no server yet.
#[derive(Debug)]
pub(super) struct Roaming {
    /// As the client has stated them.
    modes: Modes,
    /// What has been set and saved in it since it began, in the client's words.
    words: Vec<u8>,
    /// It is READ ONLY by the client's will.
    read_only: bool,
    /// Its statements see what each finds, and not one snapshot.
    by_statement: bool,
    /// What it has left on its server; and what its last batch alone has.
    left: Left,
    left_by_batch: Left,
    place: Place,
    /// The parameters that the client had been told when it began.
    shown: Params,
}

/// What keeps a transaction on its server.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    /// It has read: if it keeps a snapshot, that is made.
    has_read: bool,
    /// It has something open that cannot be opened elsewhere.
    is_tied: bool,
    /// So has it the unnamed portal, until something else is bound to that.
    has_portal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Replica,
    /// It is to be opened where its next batch runs; and whether that is the primary, whatever it is.
    Nowhere {
        primary: bool,
    },
}

/// What a batch is to the transaction that is on a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Within {
    /// It reads, or steers the transaction: it can run there.
    Stays,
    /// It can if the transaction is to be read-only on the primary as well.
    StaysReadOnly,
    /// Likewise, and leaves something open there.
    Ties,
    /// It is not proven to read.
    Leaves,
}

/// What a batch does to the unnamed portal, which drivers execute with a limit for a first row, and then forget.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UnnamedPortal {
    /// It uses the one that it has found there.
    is_taken_up: bool,
    /// That one is gone.
    is_replaced: bool,
    /// It leaves one that may have more rows.
    is_left: bool,
}

impl UnnamedPortal {
    pub(super) fn open(&mut self) {
        (self.is_replaced, self.is_left) = (true, true);
    }

    pub(super) fn close(&mut self) {
        (self.is_replaced, self.is_left) = (true, false);
    }

    /// A portal of this name is executed, or described.
    pub(super) fn look_at(&mut self, name: &[u8]) {
        self.is_taken_up |= name.is_empty() && !self.is_replaced;
    }

    /// A portal of this name is executed, to its end if there is no limit.
    pub(super) fn execute(&mut self, name: &[u8], rows_max: i32) {
        self.look_at(name);
        if name.is_empty() && rows_max <= 0 {
            self.is_left = false;
        }
    }
}

/// A statement that steers a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Opens(Modes),
    Sets(Modes),
    /// Not AND CHAIN.
    Commits,
    RollsBack,
}

/// Where the next batch of a transaction runs that is not on the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Where the transaction is, or on any replica that is fresh enough if it is nowhere.
    Stays,
    Moves,
    /// Nowhere: the transaction cannot leave its replica, and the batch cannot run there.
    Refused,
}

impl Roaming {
    fn new(opening: Opening, place: Place, shown: &Params) -> Roaming {
        Roaming {
            modes: opening.modes,
            words: Vec::new(),
            read_only: opening.read_only,
            by_statement: opening.by_statement,
            left: Left::default(),
            left_by_batch: Left::default(),
            place,
            shown: shown.clone(),
        }
    }

    /// But for the unnamed portal.
    fn is_movable(&self) -> bool {
        !self.left.is_tied && (self.by_statement || !self.left.has_read)
    }

    /// Whether it can be opened elsewhere to run the batch there.
    fn is_movable_for(&self, batch: &Batch) -> bool {
        let UnnamedPortal {
            is_taken_up,
            is_replaced,
            ..
        } = batch.portal;
        self.is_movable() && (!self.left.has_portal || is_replaced && !is_taken_up)
    }

    /// What a batch is to it.
    fn of(&self, batch: &Batch) -> Within {
        match batch.within() {
            Within::StaysReadOnly | Within::Ties if !self.read_only => Within::Leaves,
            within => within,
        }
    }

    /// What opens it on a server: the client's own modes, but that no standby can be told to write.
    fn opening(&self, on_replica: bool) -> Vec<u8> {
        let mut sql = b"BEGIN".to_vec();
        let Modes {
            isolation,
            read_only,
            deferrable,
        } = self.modes;
        if let Some(isolation) = isolation {
            sql.extend_from_slice(b" ISOLATION LEVEL ");
            sql.extend_from_slice(isolation.name().as_bytes());
        }
        match read_only {
            Some(true) => sql.extend_from_slice(b" READ ONLY"),
            Some(false) if !on_replica => sql.extend_from_slice(b" READ WRITE"),
            _ => {}
        }
        match deferrable {
            Some(true) => sql.extend_from_slice(b" DEFERRABLE"),
            Some(false) => sql.extend_from_slice(b" NOT DEFERRABLE"),
            None => {}
        }
        sql.extend_from_slice(b";\n");
        sql.extend_from_slice(&self.words);
        if self.left.has_read {
            // Modes can't be set any more.
            sql.extend_from_slice(b"SELECT;");
        }
        sql
    }
}

/// A transaction that may begin elsewhere than on the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    modes: Modes,
    read_only: bool,
    by_statement: bool,
}

impl Session {
    /// Whether a transaction is open and not on the primary.
    #[inline]
    pub fn roams(&self) -> bool {
        self.roaming.is_some()
    }

    /// Whether such a transaction is on a replica's server.
    pub fn roams_on_replica(&self) -> bool {
        let place = self.roaming.as_ref().map(|roaming| roaming.place);
        place == Some(Place::Replica)
    }

    /// Whether such a transaction has to be opened on whatever server comes next.
    #[inline]
    pub fn is_to_be_opened(&self) -> bool {
        let place = self.roaming.as_ref().map(|roaming| roaming.place);
        matches!(place, Some(Place::Nowhere { .. }))
    }

    /// What this transaction would be, if it may begin elsewhere than on the primary.
    fn opening(&self, modes: Modes, reads: TransactionReads) -> Option<Opening> {
        let settings = &self.settings;
        let isolation = match modes.isolation {
            Some(isolation) => isolation,
            None => settings.isolation(self.greeted.isolation())?,
        };
        let by_default = self.shown.get("default_transaction_read_only") == Some(b"on");
        let read_only = modes.read_only.unwrap_or(by_default);
        // What a role or the server has by default may be another thing on another node.
        let is_willed =
            modes.read_only.is_some() || by_default && settings.state_transactions_read_only();
        let opening = Opening {
            modes,
            read_only: read_only && is_willed,
            by_statement: isolation.is_by_statement(),
        };
        let may_roam = match isolation {
            Isolation::Serializable => false,
            Isolation::RepeatableRead => opening.read_only,
            _ => read_only || reads == TransactionReads::Replica,
        };
        (may_roam && self.pins.is_empty()).then_some(opening)
    }

    /// Whether the batch begins a transaction that may run on a replica as far as it goes.
    pub fn opens_elsewhere(&self, batch: &Batch, reads: TransactionReads) -> bool {
        let Some(modes) = batch.opens() else {
            return false;
        };
        let opening = self.opening(modes, reads);
        opening.is_some_and(|opening| {
            let stays = match opening.read_only {
                true => batch.within() <= Within::Ties,
                false => batch.within() == Within::Stays && modes.read_only != Some(false),
            };
            stays && batch.end() == Some(End::Ready)
        })
    }

    /// Whether the batch says no more than that such a transaction begins, so that it need not begin
    /// before it is known what runs in it.
    pub fn begins_later(&self, batch: &Batch, reads: TransactionReads, client: &[u8]) -> bool {
        let Some(modes) = batch.opens() else {
            return false;
        };
        let is_alone = batch.is_one_query() && batch.hints.is_none();
        is_alone
            && self.status == Status::Idle
            && reads == TransactionReads::Replica
            && batch.query(client).is_some_and(command::is_plain_begin)
            && (self.opening(modes, reads)).is_some_and(|opening| !opening.read_only)
    }

    /// The transaction is taken to have begun; no server knows of it. Says so to the client.
    pub fn begin_later(
        &mut self,
        batch: &Batch,
        reads: TransactionReads,
        client: &[u8],
        out: &mut BytesMut,
    ) {
        let opening = batch.opens().and_then(|modes| self.opening(modes, reads));
        let Some(opening) = opening else { return };
        let place = Place::Nowhere { primary: false };
        self.roaming = Some(Box::new(Roaming::new(opening, place, &self.shown)));
        self.statements.drop_unnamed();
        self.status = Status::InTransaction;
        let starts = batch.query(client).is_some_and(command::is_start);
        encode::command_complete(out, if starts { "START TRANSACTION" } else { "BEGIN" });
        encode::ready(out, self.status);
    }

    /// Whether the batch ends a transaction of which no server knows.
    pub fn ends_unopened(&self, batch: &Batch, client: &[u8]) -> bool {
        let ends = matches!(batch.control, Some(Control::Commits | Control::RollsBack));
        ends && self.is_to_be_opened()
            && batch.is_one_query()
            && batch.query(client).is_some_and(command::is_plain_end)
    }

    /// It is over. Says so to the client.
    pub fn end_unopened(&mut self, batch: &Batch, out: &mut BytesMut) {
        let undoes = batch.control == Some(Control::RollsBack) || self.status == Status::Failed;
        self.statements.drop_unnamed();
        self.status = Status::Idle;
        encode::command_complete(out, if undoes { "ROLLBACK" } else { "COMMIT" });
        // If it has set anything, that was on a server that it has left, and it has failed since.
        self.undo_settings();
        (self.localised, self.uncertain) = (Localised::No, false);
        if let Some(roaming) = self.roaming.take() {
            self.show(&roaming.shown, out);
        }
        encode::ready(out, self.status);
    }

    /// A batch has failed before any server was told. So has the transaction that it is of, as far as its client
    /// knows, where no server knows of that either.
    pub fn fail_unopened(&mut self) {
        if self.is_to_be_opened() {
            self.status = Status::Failed;
        }
    }

    /// Whether the batch makes a transaction read-only that has done nothing on the primary but begin, so
    /// that it may go to a replica.
    pub fn may_turn(&self, batch: &Batch, reads: TransactionReads) -> bool {
        let (Some(begun), Some(Control::Sets(modes))) = (self.begun, batch.control) else {
            return false;
        };
        if self.status != Status::InTransaction {
            return false;
        }
        let opening = self.opening(begun.changed_by(modes), reads);
        // One that keeps its snapshot can't come back. Who says so afterwards is mostly a program that makes
        // dumps, and those need what only a primary has.
        modes.read_only == Some(true)
            && opening.is_some_and(|opening| opening.by_statement)
            && batch.within() == Within::Stays
            && batch.end() == Some(End::Ready)
    }

    /// The transaction that has just begun on the primary's server `state` leaves it.
    pub fn turn(&mut self, state: &mut ServerState, reads: TransactionReads) {
        let opening = self.begun.take().and_then(|begun| {
            let read_only = Modes {
                read_only: Some(true),
                ..begun
            };
            let opening = self.opening(read_only, reads)?;
            Some(Opening {
                modes: begun,
                ..opening
            })
        });
        if let Some(opening) = opening {
            let place = Place::Nowhere { primary: false };
            self.roaming = Some(Box::new(Roaming::new(opening, place, &self.shown)));
            self.leave_settings(state);
        }
    }

    /// Where the next batch of a transaction runs that is not on the primary.
    pub fn verdict(&self, batch: &Batch) -> Verdict {
        let Some(roaming) = &self.roaming else {
            return Verdict::Moves;
        };
        if roaming.place == (Place::Nowhere { primary: true }) {
            return Verdict::Moves;
        }
        let within = roaming.of(batch);
        if self.status == Status::Failed {
            // It is for the server to say that nothing can be done; but what comes after a ROLLBACK can. What is open
            // may be used again after a ROLLBACK TO.
            let is_over = matches!(batch.control, Some(Control::Commits | Control::RollsBack));
            return match within {
                Within::Leaves if is_over || roaming.is_movable_for(batch) => Verdict::Moves,
                _ => Verdict::Stays,
            };
        }
        let words = roaming.words.len() + batch.words as usize;
        let fits = !batch.executes_midway() && words <= WORDS_BYTES_MAX;
        // What is only looked at is the same there, and the portal may be gone on with.
        let only_looks = !batch.executes && roaming.left.has_portal;
        let stays = (within < Within::Leaves || only_looks) && fits;
        match roaming.is_movable_for(batch) {
            _ if stays => Verdict::Stays,
            true => Verdict::Moves,
            false if within == Within::Leaves => Verdict::Refused,
            false => Verdict::Stays,
        }
    }

    /// Whether a part of a pipeline that began on the transaction's replica can't go on there, which is to be
    /// asked of each part: of one that may write, and of a read-only one.
    pub fn leaves_midway(&self) -> fn(&Batch) -> bool {
        fn leaves(batch: &Batch) -> bool {
            batch.within() == Within::Leaves
                || batch.executes_midway()
                || batch.hints.is_some()
                || batch.explains
        }
        match self
            .roaming
            .as_ref()
            .is_some_and(|roaming| roaming.read_only)
        {
            true => leaves,
            false => |batch| leaves(batch) || batch.within() > Within::Stays,
        }
    }

    /// Whether the transaction can be opened elsewhere, whatever is to run there.
    pub fn may_move(&self) -> bool {
        (self.roaming.as_ref())
            .is_some_and(|roaming| roaming.is_movable() && !roaming.left.has_portal)
    }

    /// Whether the transaction can be opened elsewhere to run the batch there.
    pub fn may_move_for(&self, batch: &Batch) -> bool {
        (self.roaming.as_ref()).is_some_and(|roaming| roaming.is_movable_for(batch))
    }

    /// The transaction has left its replica's server `state`, and is to be opened on the primary.
    pub fn leave_replica(&mut self, state: &mut ServerState) {
        self.lose_replica();
        self.leave_settings(state);
    }

    /// The like, of a server that is lost.
    pub fn lose_replica(&mut self) {
        self.failed = false;
        if self.status == Status::Idle {
            // It had just begun, and nobody has been told.
            self.roaming = None;
        } else if let Some(roaming) = &mut self.roaming {
            roaming.place = Place::Nowhere { primary: true };
        }
    }

    /// The transaction on this server is undone, and what it has set there with it.
    pub fn leave_settings(&self, state: &mut ServerState) {
        if let Some((_, on_server)) = &self.before {
            state.settings = on_server.clone();
        }
    }

    /// Opens the transaction on `server`, as it was left. What has been set before it is said before it:
    /// that is not undone with it.
    pub fn say_opening(&mut self, server: &mut ServerState, on_replica: bool, out: &mut BytesMut) {
        let Some(roaming) = &mut self.roaming else {
            return;
        };
        let before = match &self.before {
            Some((session, _)) => session.clone(),
            None => self.settings.clone(),
        };
        for sql in server.settings.difference(&before) {
            encode::query(out, &sql);
            server.expect_hidden(Expect::Settings);
        }
        encode::query(out, &roaming.opening(on_replica));
        server.expect_hidden(Expect::Settings);
        if self.status == Status::Failed {
            encode::query(out, NO_SQL);
            server.expect_hidden(Expect::Failing);
        }
        server.unnamed = None;
        server.settings = self.settings.clone();
        self.before = Some((before.clone(), before));
        roaming.place = Place::Replica;
        if !on_replica {
            self.roaming = None;
        }
    }

    /// A batch is being run. `replica` is given on a replica, and says which transactions may begin there.
    pub fn note_place(&mut self, batch: &Batch, replica: Option<TransactionReads>) {
        let begins_here = replica.is_none() && batch.only_opens() && batch.hints.is_none();
        self.begun = batch.opens().filter(|_| begins_here);
        // Whatever it was not proven to be, a standby has taken no write.
        self.did.wrote &= replica.is_none();
        if let Some((modes, reads)) = batch.opens().zip(replica) {
            // If it does not come to that, the transaction is over as soon as the server is ready.
            let opening = self.opening(modes, reads);
            let roaming = |opening| Box::new(Roaming::new(opening, Place::Replica, &self.shown));
            self.roaming = opening.map(roaming);
        }
        if let Some(roaming) = &mut self.roaming {
            let by_batch = Left {
                // The answer to a question is a query: a snapshot that is kept is of then.
                has_read: batch.shows_data || batch.explains && !roaming.by_statement,
                is_tied: batch.within == Within::Ties,
                has_portal: batch.portal.is_left,
            };
            roaming.left_by_batch = by_batch;
            let left = &mut roaming.left;
            left.has_read |= by_batch.has_read;
            left.is_tied |= by_batch.is_tied;
            left.has_portal = by_batch.has_portal || left.has_portal && !batch.portal.is_replaced;
        }
    }

    /// What has succeeded in a transaction on a replica, and has to be said again to open it elsewhere.
    pub(super) fn log(&mut self, statement: &Statement, words: Option<&[u8]>) {
        let Some(roaming) = &mut self.roaming else {
            return;
        };
        match statement.verb {
            Verb::SetTransaction(modes) => {
                roaming.modes = roaming.modes.changed_by(modes);
                roaming.read_only |= modes.read_only == Some(true);
            }
            // With AND CHAIN another one like it begins.
            Verb::Commit | Verb::Rollback if words.is_some_and(chains) => {
                if statement.verb == Verb::Commit {
                    roaming.shown = self.shown.clone();
                }
                roaming.words.clear();
                // Something of that may have come behind it.
                roaming.left = roaming.left_by_batch;
            }
            Verb::Commit | Verb::Rollback => self.roaming = None,
            _ if !roaming.is_movable() => {}
            verb if is_logged(verb) || statement.sets_config => match words {
                // It goes on with its portal, and so could not move when it would still have fitted.
                Some(words) if roaming.words.len() + words.len() > 2 * WORDS_BYTES_MAX => {
                    roaming.words = Vec::new();
                    roaming.left.is_tied = true;
                }
                Some(words) => {
                    roaming.words.extend_from_slice(words);
                    // A line of its own: the statement may end in a comment.
                    roaming.words.extend_from_slice(b"\n;");
                }
                None => roaming.left.is_tied = true,
            },
            _ => {}
        }
    }

    /// What a text of this class, which needs this much, is to a transaction on a replica.
    pub(super) fn within(&self, class: &Class, need: Need, sql: &[u8]) -> Within {
        if need == Need::Read {
            return match self.is_read_only_shown(sql) {
                true => Within::StaysReadOnly,
                false => Within::Stays,
            };
        }
        let [statement] = &*class.statements else {
            return Within::Leaves;
        };
        match statement.verb {
            _ if !statement.pins.is_empty() => Within::Leaves,
            _ if statement.sets_config => {
                match set_config::locals(sql, self.has_conforming_strings()) {
                    Some(_) if !matters_elsewhere(sql) => Within::Stays,
                    _ => Within::Leaves,
                }
            }
            Verb::Commit
            | Verb::Rollback
            | Verb::Savepoint
            | Verb::RollbackTo
            | Verb::Release
            | Verb::Deallocate
            | Verb::DeallocateAll
            | Verb::ExplainRoute => Within::Stays,
            // What a savepoint undoes of it is not undone in the modes.
            Verb::SetTransaction(Modes {
                isolation: None,
                read_only: None | Some(true),
                ..
            }) if !self.has_words() => Within::Stays,
            Verb::Setting | Verb::SettingLocal => match setting::setting(sql) {
                _ if matters_elsewhere(sql) => Within::Leaves,
                // There is more to it than the session can carry from server to server.
                Some(Setting::Set { name }) if name == "seed" => Within::Leaves,
                Some(Setting::Set { name }) if !self.settings.have_room(&name, sql) => {
                    Within::Leaves
                }
                // It goes back to what was given at start-up, and a server to its own default.
                Some(Setting::Reset { name }) if self.defaults.names().any(|n| *n == *name) => {
                    Within::Leaves
                }
                Some(Setting::Set { .. } | Setting::Reset { .. } | Setting::Local) => Within::Stays,
                Some(Setting::ResetAll | Setting::Transactions(_)) | None => Within::Leaves,
            },
            Verb::Show if shows_node(sql) => Within::Leaves,
            Verb::Show | Verb::Fetch | Verb::Close => Within::StaysReadOnly,
            Verb::Declare => match command::declared(sql) {
                Some(query) if self.is_read(query) => Within::Ties,
                _ => Within::Leaves,
            },
            _ => Within::Leaves,
        }
    }

    fn has_words(&self) -> bool {
        let roaming = self.roaming.as_ref();
        roaming.is_some_and(|roaming| !roaming.words.is_empty())
    }

    fn is_read(&self, sql: &[u8]) -> bool {
        let class = self.classify(sql);
        self.needs(&class, sql).0 == Need::Read
    }

    /// Whether a read may tell a transaction that is to write from one on a standby.
    fn is_read_only_shown(&self, sql: &[u8]) -> bool {
        let roaming = self.roaming.as_ref();
        roaming.is_some_and(|roaming| !roaming.read_only)
            && lexer::contains(sql, b"transaction_read_only")
    }

    /// What is to be said again of a text that sets something for its transaction by `set_config`, bound to
    /// these values.
    pub(super) fn spelled(&self, sql: &[u8], bound: Bound<'_>) -> Option<Text> {
        let calls = set_config::locals(sql, self.has_conforming_strings())?;
        let words = set_config::spelled(&calls, |number| bound.text(number), add_literal)?;
        // A value may be a name that matters.
        (!matters_elsewhere(&words)).then(|| Text::Query(words.into()))
    }

    /// Whether texts have to be kept that are said again to open the transaction elsewhere.
    pub(super) fn keeps_words(&self, batch: &Batch) -> bool {
        self.roams() || batch.opens().is_some()
    }
}

/// Whether a text may be about a setting that matters to the proxy, to the transaction itself, or to how the
/// words are read that open it elsewhere.
fn matters_elsewhere(sql: &[u8]) -> bool {
    const NAMES: [&[u8]; 5] = [
        b"transaction",
        b"standard_conforming",
        b"backslash_quote",
        b"client_encoding",
        b"names",
    ];
    own::is_mentioned(sql) || NAMES.iter().any(|name| lexer::contains(sql, name))
}

/// Whether a SHOW may show the proxy's own settings, or what differs on a standby.
fn shows_node(sql: &[u8]) -> bool {
    own::is_mentioned(sql) || lexer::contains(sql, b"all") || lexer::contains(sql, b"hot_standby")
}

/// Whether another transaction begins with the end of one.
pub(super) fn chains(sql: &[u8]) -> bool {
    lexer::contains(sql, b"chain")
}

/// Whether a statement of this kind has to be said again.
pub(super) fn is_logged(verb: Verb) -> bool {
    matches!(
        verb,
        Verb::Savepoint | Verb::RollbackTo | Verb::Release | Verb::Setting | Verb::SettingLocal
    )
}

/// Why a batch can't run in a transaction that cannot leave its replica.
pub fn refusal() -> Complaint {
    Complaint {
        sqlstate: "25006",
        message: "cannot run this in a read-only transaction on a replica".to_owned(),
        advice: "The transaction keeps a snapshot, a cursor or a portal and cannot move to the primary. Begin it \
            with /* tidegate: primary */ to have it there."
            .to_owned(),
    }
}

impl Batch {
    /// The modes of the transaction that it begins with.
    pub fn opens(&self) -> Option<Modes> {
        match self.control {
            Some(Control::Opens(modes)) => Some(modes),
            _ => None,
        }
    }

    /// What it is to a transaction on a replica.
    pub fn within(&self) -> Within {
        match self.portal.is_left {
            true => self.within.max(Within::Ties),
            false => self.within,
        }
    }

    /// Whether it says nothing but that a transaction begins.
    fn only_opens(&self) -> bool {
        let runs = |step: &&Step| {
            matches!(
                step,
                Step::Query { .. } | Step::Renamed { .. } | Step::Bind { .. }
            )
        };
        self.opens().is_some() && self.steps.iter().filter(runs).count() == 1
    }
}
