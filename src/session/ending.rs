//! Owns: what is undone and forgotten when a transaction ends, by its client, by an error or with its server. Never:
//! hears how it ended.

use super::server::ServerState;
use super::settings::{self, Settings};
use super::{Localised, Session, catalog};
use crate::wire::message::Status;

impl Session {
    pub(super) fn remember_settings(&mut self, server: &ServerState) {
        if self.before.is_none() {
            self.before = Some((self.settings.clone(), server.settings.clone()));
        }
    }

    pub(super) fn roll_back_settings(&mut self, server: &mut ServerState) {
        if self.before.is_some() {
            self.keep_key_in_force();
        }
        if let Some(on_server) = self.undo_settings() {
            server.settings = on_server;
            self.uncertain = self.suspected;
        }
    }

    /// What the transaction has set is undone. Returns what its server had before.
    pub(super) fn undo_settings(&mut self) -> Option<Settings> {
        let (session, on_server) = self.before.take()?;
        self.settings = session;
        Some(on_server)
    }

    /// The server is ready for the next batch.
    pub(super) fn ready(&mut self, status: Status, server: &mut ServerState) {
        if status == Status::Idle {
            self.transaction_over(server);
        }
        self.portals.made_all();
        self.failed = false;
        self.suspected = false;
        self.foretold = None;
        self.status = status;
        server.ready(status);
        self.restate_style(server);
    }

    /// No transaction is open any more.
    fn transaction_over(&mut self, server: &mut ServerState) {
        if self.failed {
            // The error undid the batch's own transaction.
            self.roll_back_settings(server);
            self.forget_definitions();
        }
        if self.reshaped.is_some() {
            self.committed();
        }
        self.before = None;
        self.localised = Localised::No;
        self.roaming = None;
        if self.did.wrote {
            self.has_drawn();
        }
        if self.redefined {
            self.outdate(catalog::Doubt::Anything);
        }
        self.portals.clear();
    }

    /// The server has reported what DateStyle is as a whole, where a part of it was set.
    fn restate_style(&mut self, server: &mut ServerState) {
        if std::mem::take(&mut self.restyled)
            && let Some(style) = server.params.get("DateStyle")
            && server.settings.restate(settings::DATE_STYLE, style)
        {
            self.settings.restate(settings::DATE_STYLE, style);
        }
    }

    /// The open transaction is over, and floors have been raised for it.
    pub fn end_local(&mut self) {
        if self.status == Status::Idle
            && let Some(own) = &mut self.own
        {
            own.local.clear();
            own.keys.clear();
        }
    }

    /// The server was lost with whatever was open on it.
    pub fn lost_server(&mut self) {
        // The commit may have succeeded.
        self.committed();
        self.undo_settings();
        self.status = Status::Idle;
        (self.roaming, self.begun) = (None, None);
        self.end_local();
        self.failed = false;
        self.uncertain = false;
        self.config_names.clear();
        self.unjudged.clear();
        self.portals.clear();
    }
}
