//! Owns: what is undone of a pipeline that a server skips after an error, of messages that it has been told and of
//! those that it need not be told. Never: says or hears one.

use std::collections::HashSet;
use std::sync::Arc;

use super::Session;
use super::batch::{Batch, Step};
use super::server::{Expect, Expected, Fit, Forgotten, NOT_KNOWN, ServerState};
use super::statements::Prepared;
use crate::sql::Pin;

/// What a message that is skipped has done to the session when it was planned.
enum Undo<'a> {
    /// It has given a statement this name.
    Named(&'a [u8]),
    /// It has made another statement the unnamed one.
    Unnamed,
    /// It has bound or closed a portal.
    Portal(u64),
    /// It has closed this statement.
    Closed(&'a [u8], &'a Arc<Prepared>),
    /// It has closed one that PREPARE has made.
    ClosedPrepared(&'a [u8]),
}

impl<'a> Undo<'a> {
    fn of_step(step: &'a Step) -> Option<Undo<'a>> {
        match step {
            Step::Parse { name, .. } => Some(Undo::Named(name)),
            Step::ParseUnnamed { .. } => Some(Undo::Unnamed),
            Step::Bind { change, .. }
            | Step::BindExplained { change, .. }
            | Step::ClosePortal { change, .. } => Some(Undo::Portal(*change)),
            Step::CloseStatement { forgotten } => Undo::of_forgotten(forgotten.as_ref()),
            Step::ClosePrepared { name, .. } => Some(Undo::ClosedPrepared(name)),
            _ => None,
        }
    }

    fn of_expected(expected: &'a Expected) -> Option<Undo<'a>> {
        match &expected.what {
            Expect::Parse { name, .. } | Expect::Parsed { name } => Some(Undo::Named(name)),
            Expect::ParseUnnamed if !expected.hidden => Some(Undo::Unnamed),
            Expect::Bind { change, .. } | Expect::ClosePortal(change) => {
                Some(Undo::Portal(*change))
            }
            Expect::CloseStatement(forgotten) => Undo::of_forgotten(forgotten.as_ref()),
            Expect::ClosePrepared(name) => Some(Undo::ClosedPrepared(name)),
            _ => None,
        }
    }

    fn of_forgotten(forgotten: Option<&'a Forgotten>) -> Option<Undo<'a>> {
        forgotten.map(|(name, prepared)| Undo::Closed(name, prepared))
    }
}

impl Session {
    /// After an error the server would skip the batch; so what its planning did is undone, the last
    /// first.
    pub(super) fn skip(&mut self, batch: &Batch) {
        for undo in batch.steps.iter().rev().filter_map(Undo::of_step) {
            self.undo(undo);
        }
    }

    /// The server skips everything up to the next Sync: none of it has happened.
    pub(super) fn skip_to_sync(&mut self, server: &mut ServerState) {
        self.failed = true;
        let mut skipped = Skipped::default();
        let mut owed = Vec::new();
        while let Some(expected) = next_skipped(server) {
            skipped.undo(&expected, server);
            owed.push(expected);
        }
        skipped.end(server);
        // A Query that was skipped too is no end: only a Sync is, and the client has to send it.
        server.awaits_sync |= !owed.is_empty() && server.queue.is_empty();
        // The last first: what one message has named, a later one may have closed.
        for undo in owed.iter().rev().filter_map(Undo::of_expected) {
            self.undo(undo);
        }
    }

    fn undo(&mut self, undo: Undo<'_>) {
        match undo {
            Undo::Named(name) => drop(self.statements.remove(name)),
            Undo::Unnamed => self.statements.drop_unnamed(),
            Undo::Portal(change) => self.portals.undo(change),
            Undo::Closed(name, prepared) => self.statements.insert(name, prepared.clone()),
            Undo::ClosedPrepared(name) => self.pins.found(Pin::PreparedStatement, name),
        }
    }
}

/// The client sees nothing of what the server still owes. What an extended batch would have left on
/// the server is not there.
pub(super) fn hide_owed(server: &mut ServerState) {
    let is_query = |e: &Expected| matches!(e.what, Expect::Query { .. });
    if !server.queue.front().is_some_and(is_query) {
        let mut skipped = Skipped::default();
        while let Some(expected) = next_skipped(server) {
            skipped.undo(&expected, server);
        }
        skipped.end(server);
    }
    server
        .queue
        .iter_mut()
        .for_each(|expected| expected.hidden = true);
}

/// What a server has been told and has not done, since it skips to the next Sync after an error.
#[derive(Default)]
struct Skipped {
    /// Statements that it has not closed, and those that it has not prepared.
    kept: Vec<(u64, Fit)>,
    unmade: HashSet<u64, foldhash::fast::RandomState>,
}

impl Skipped {
    fn undo(&mut self, expected: &Expected, server: &mut ServerState) {
        match &expected.what {
            Expect::Parse { prepared, .. } => self.unmake(prepared.id, server),
            Expect::Prepare { id } => self.unmake(*id, server),
            // What would have replaced or dropped the unnamed statement.
            Expect::ParseUnnamed
            | Expect::Query { .. }
            | Expect::RefusedQuery(_)
            | Expect::Refused(_) => server.unnamed = Some(NOT_KNOWN),
            Expect::Close if expected.hidden => server.unnamed = Some(NOT_KNOWN),
            Expect::Evict { id, fit } if !self.unmade.contains(id) => self.kept.push((*id, *fit)),
            _ => {}
        }
    }

    fn unmake(&mut self, id: u64, server: &mut ServerState) {
        server.statements.pop(&id);
        self.unmade.insert(id);
    }

    /// There is room for what was kept: only what is unmade can have taken its place.
    fn end(self, server: &mut ServerState) {
        for (id, fit) in self.kept {
            server.statements.push(id, fit);
        }
    }
}

fn next_skipped(server: &mut ServerState) -> Option<Expected> {
    server
        .queue
        .pop_front_if(|expected| !matches!(expected.what, Expect::Sync))
}
