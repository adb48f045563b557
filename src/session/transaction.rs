//! Owns: which transactions begin elsewhere than on the primary, and when one that does goes there. Never: chooses a
//! server.
//!
//! It goes there as soon as something is to run that is not proven to read, unless what the transaction
//! has left on its replica ties it there (`roaming`).

use bytes::BytesMut;

use super::batch::{Batch, End};
use super::own::Complaint;
use super::roaming::{Opening, Place, Roaming, WORDS_BYTES_MAX};
use super::server::ServerState;
use super::within::Within;
use super::{Localised, Session};
use crate::config::TransactionReads;
use crate::sql::{Isolation, Modes, command};
use crate::wire::encode;
use crate::wire::message::Status;

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

impl Session {
    /// What this transaction would be, if it may begin elsewhere than on the primary.
    pub(super) fn opening(&self, modes: Modes, reads: TransactionReads) -> Option<Opening> {
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
        let only_looks = !batch.executes && roaming.has_portal();
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
        (self.roaming.as_ref()).is_some_and(|roaming| roaming.is_movable() && !roaming.has_portal())
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
