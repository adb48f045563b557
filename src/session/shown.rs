//! Owns: what the client is told of its parameters, as servers come and settings go. Never: tells it what it knows.

use bytes::BytesMut;

use super::Session;
use super::params::Params;
use super::server::ServerState;
use crate::wire::encode;

impl Session {
    /// Tells the client which parameters differ on `server` from what it knows.
    pub fn show_params(&mut self, server: &ServerState, out: &mut BytesMut) {
        self.show(&server.params, out);
    }

    pub(super) fn show(&mut self, params: &Params, out: &mut BytesMut) {
        if self.shown.is(params) {
            return;
        }
        for (name, value) in self.shown.changes(params) {
            encode::parameter_status(out, name, value);
        }
        self.shown = params.clone();
    }

    /// Tells the client that `name` is `value` now.
    ///
    /// A RESET takes the server to its own default, where the session's default may be another,
    /// given at start-up. The server is brought to that before the next batch; the client is told
    /// the outcome.
    pub(super) fn show_param(
        &mut self,
        name: &[u8],
        value: &[u8],
        server: &ServerState,
        out: &mut BytesMut,
    ) {
        let at_default = self.differs_by_default(name, server);
        let own = str::from_utf8(name)
            .ok()
            .and_then(|name| self.greeted.get(name));
        let value = own.filter(|_| at_default).unwrap_or(value);
        if self.shown.set(name, value) {
            encode::parameter_status(out, name, value);
        }
    }

    /// Tells the client what went back to a value of its start-up that the server does not have.
    pub(super) fn show_defaults(&mut self, server: &ServerState, out: &mut BytesMut) {
        for (name, value) in self.greeted.clone().iter() {
            if self.differs_by_default(name, server) && self.shown.set(name, value) {
                encode::parameter_status(out, name, value);
            }
        }
    }

    /// Whether a setting is what was given at start-up, and the server does not have it so.
    fn differs_by_default(&self, name: &[u8], server: &ServerState) -> bool {
        self.settings.agrees(&self.defaults, name) && !self.settings.agrees(&server.settings, name)
    }
}
