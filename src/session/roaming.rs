//! Owns: a transaction that *roams*, that is, is not on the primary: where it is, what it has done there, and the words
//! that open it again elsewhere. Never: decides where it runs.
//!
//! A transaction on a replica has done nothing but read. So another server, of the primary, can be brought
//! to where it is: by beginning again, and by what has been set and saved since, in the client's own
//! words. It can't be done any more when the transaction keeps a snapshot of its own, or a cursor: it is
//! *tied* then.

use bytes::BytesMut;

use super::Session;
use super::batch::Batch;
use super::bound::Bound;
use super::params::Params;
use super::say::NO_SQL;
use super::server::{Expect, ServerState};
use super::settings::add_literal;
use super::tracked::Text;
use super::unnamed_portal::UnnamedPortal;
use super::within::{Within, chains, is_logged, matters_elsewhere};
use crate::config::TransactionReads;
use crate::sql::{Modes, Statement, Verb, set_config};
use crate::wire::encode;
use crate::wire::message::Status;

/// The most that is repeated to open a transaction elsewhere, in bytes. One that would need more leaves
/// its replica before.
pub(super) const WORDS_BYTES_MAX: usize = 16 << 10;

/// A transaction that is on a replica, or on no server yet.
#[derive(Debug)]
pub(super) struct Roaming {
    /// As the client has stated them.
    modes: Modes,
    /// What has been set and saved in it since it began, in the client's words.
    pub words: Vec<u8>,
    /// It is READ ONLY by the client's will.
    pub read_only: bool,
    /// Its statements see what each finds, and not one snapshot.
    by_statement: bool,
    /// What it has left on its server; and what its last batch alone has.
    left: Left,
    left_by_batch: Left,
    pub place: Place,
    /// The parameters that the client had been told when it began.
    pub shown: Params,
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
pub(super) enum Place {
    Replica,
    /// It is to be opened where its next batch runs; and whether that is the primary, whatever it is.
    Nowhere {
        primary: bool,
    },
}

/// A transaction that may begin elsewhere than on the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    pub modes: Modes,
    pub read_only: bool,
    pub by_statement: bool,
}

impl Roaming {
    pub fn new(opening: Opening, place: Place, shown: &Params) -> Roaming {
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
    pub fn is_movable(&self) -> bool {
        !self.left.is_tied && (self.by_statement || !self.left.has_read)
    }

    /// Whether the unnamed portal is left open on its server.
    pub fn has_portal(&self) -> bool {
        self.left.has_portal
    }

    /// Whether it can be opened elsewhere to run the batch there.
    pub fn is_movable_for(&self, batch: &Batch) -> bool {
        let UnnamedPortal {
            is_taken_up,
            is_replaced,
            ..
        } = batch.portal;
        self.is_movable() && (!self.left.has_portal || is_replaced && !is_taken_up)
    }

    /// What a batch is to it.
    pub fn of(&self, batch: &Batch) -> Within {
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

    pub(super) fn has_words(&self) -> bool {
        let roaming = self.roaming.as_ref();
        roaming.is_some_and(|roaming| !roaming.words.is_empty())
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
