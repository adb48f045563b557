//! Owns: what a statement is to a transaction on a replica, by its class and its text. Never: knows where that
//! transaction is.

use super::{Session, own};
use crate::sql::setting::{self, Setting};
use crate::sql::{Class, Modes, Need, Verb, command, lexer, set_config};

/// What a batch is to the transaction that is on a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Within {
    /// It reads, or steers the transaction: it can run there.
    Stays,
    /// It can if the transaction is to be read-only on the primary as well.
    StaysReadOnly,
    /// Likewise, and leaves something open there.
    Ties,
    /// It is not proven to read.
    Leaves,
}

impl Session {
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
}

/// Whether a text may be about a setting that matters to the proxy, to the transaction itself, or to how the
/// words are read that open it elsewhere.
pub(super) fn matters_elsewhere(sql: &[u8]) -> bool {
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
