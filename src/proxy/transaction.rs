//! Owns: where transactions run that need not be on the primary: on a replica, until something is to run
//! that is not proven to read. Never: leaves the primary with anything done there.

use super::Client;
use super::acquire::{Placed, Side};
use super::refusal::Refusal;
use crate::cluster::pool::server::Server;
use crate::config::TransactionReads;
use crate::session::consistency::Replica;
use crate::session::repair::Repairable;
use crate::session::route::{ReadRoute, Reason, Tried};
use crate::session::transaction::{self, Verdict};
use crate::sql::Need;
use crate::telemetry;
use crate::wire::message::Status;

impl Client {
    /// Whether the batch may go to a replica though it is no read: it begins a transaction that may run
    /// there, or goes on with one that is to be opened.
    pub(super) fn may_go_to_replica(&self) -> bool {
        if self.session.roams() {
            return self.session.verdict(&self.batch) == Verdict::Stays;
        }
        self.batch.opens().is_some() && {
            let reads = self.base.transaction_reads();
            self.session.status() == Status::Idle
                && !self.session.is_failed()
                && self.session.opens_elsewhere(&self.batch, reads)
        }
    }

    /// With the reason of a batch that is part of a transaction on a replica.
    pub(super) fn of_transaction(&self, placed: Placed) -> Placed {
        match placed.side == Side::Replica
            && (self.batch.need != Need::Read || self.session.roams())
        {
            true => Placed {
                reason: Reason::TransactionRead,
                ..placed
            },
            false => placed,
        }
    }

    /// The server that the transaction is on, if the batch can run there as far as is known at once.
    pub(super) fn lend_within(&mut self) -> Option<Placed> {
        if self.session.verdict(&self.batch) != Verdict::Stays || !self.is_still_fresh() {
            return None;
        }
        self.stay()
    }

    /// A server for the next batch of a transaction that is on a replica: the one it is on, or one of the
    /// primary if it has to move there.
    pub(super) async fn acquire_within(&mut self) -> Result<Placed, Refusal> {
        let verdict = self.verdict().await;
        if verdict == Verdict::Refused {
            self.batch.refuse(transaction::refusal());
        }
        if verdict != Verdict::Moves
            && let Some(placed) = self.stay()
        {
            return Ok(placed);
        }
        if let Some(server) = self.held_replica.take() {
            self.leave_replica(server);
        }
        if self.batch.shows_own {
            self.show_own().await?;
        }
        self.on_primary(Reason::Transaction).await
    }

    /// Where the next batch of a transaction runs that is on a replica, by what the replica has as well.
    pub(super) async fn verdict(&mut self) -> Verdict {
        match self.session.verdict(&self.batch) {
            Verdict::Stays if !self.is_still_fresh() && !self.is_fresh_enough().await => {
                Verdict::Moves
            }
            verdict => verdict,
        }
    }

    /// The transaction goes on elsewhere; what it has left on this server is undone.
    pub(super) fn leave_replica(&mut self, mut server: Box<Server>) {
        telemetry::metrics().transaction_moves.increment(1);
        self.session.leave_replica(&mut server.state);
        self.clean(server, Side::Replica);
    }

    pub(super) fn stay(&mut self) -> Option<Placed> {
        let server = self.held_replica.take()?;
        // Where there is no primary there is nowhere else to run it.
        let repairable = match self.topology.load().primary {
            Some(_) => Repairable::All,
            None => Repairable::No,
        };
        Some(Placed {
            server,
            side: Side::Replica,
            reason: Reason::TransactionRead,
            waited_us: 0,
            repairable,
        })
    }

    /// Whether nothing asks for more than the transaction's replica had when it began. One that keeps its
    /// snapshot shows no more than that anyhow, and one that has failed shows nothing.
    fn is_still_fresh(&mut self) -> bool {
        if !self.session.may_move_for(&self.batch) || self.session.status() == Status::Failed {
            // What has changed meanwhile is not heeded here: it is for the next read to see.
            return true;
        }
        self.session.heed_schema(&self.cluster.clock);
        self.reads_plainly && !self.is_special() && !self.session.floors.awaits_schema()
    }

    /// Whether the replica that the transaction is on has what the batch asks for.
    async fn is_fresh_enough(&mut self) -> bool {
        let Some(node) = self.held_replica.as_ref().map(|server| server.node().id()) else {
            return false;
        };
        let mut special = self.asked_for();
        self.settle_key(&mut special).await;
        if special.node.is_some() || special.is_unsettled() {
            return false;
        }
        let topology = self.topology.load().clone();
        let Some(index) = topology.nodes.iter().position(|other| other.id() == node) else {
            return false;
        };
        special.bounds.node = Some(index);
        let level = self.read_level;
        let route = self.special_route(&topology, &special, Tried::default(), 0);
        // What any of its reads has promised counts for all of them.
        self.read_level = self.read_level.max(level);
        matches!(route, ReadRoute::Replica { .. })
    }

    /// Whether the batch may be run again elsewhere if its server fails it with nothing of the answer sent:
    /// it reads, and what it is part of has done nothing else.
    pub(super) fn may_run_again(&self, side: Side) -> bool {
        let is_read = self.batch.need == Need::Read;
        match self.session.status() {
            // What it keeps on the primary's server is gone with that, and nobody would be told.
            Status::Idle if side == Side::Primary => is_read && !self.session.is_pinned(),
            Status::Idle => is_read || self.batch.rest == Need::Read,
            Status::InTransaction => is_read && side == Side::Replica && self.session.may_move(),
            Status::Failed => false,
        }
    }

    /// Whether the batch may begin or end a transaction that no server has to know of.
    #[inline]
    pub(super) fn may_be_unopened(&self) -> bool {
        let reads = self.base.transaction_reads();
        self.session.is_to_be_opened()
            || reads == TransactionReads::Replica && self.batch.opens().is_some()
    }

    /// Whether the batch, said as `client`, begins or ends a transaction that no server has to know of.
    pub(super) fn is_of_no_server(&self, client: &[u8]) -> bool {
        let (session, reads) = (&self.session, self.base.transaction_reads());
        let is_kept = self.held.is_some() || session.roams_on_replica();
        !is_kept
            && (session.begins_later(&self.batch, reads, client)
                || session.ends_unopened(&self.batch, client))
    }

    /// Answers what begins or ends a transaction that no server has to know of. `false` if it is no such
    /// thing.
    pub(super) fn serve_unopened(&mut self) -> bool {
        let reads = self.base.transaction_reads();
        let begins = self.session.begins_later(&self.batch, reads, &self.inbox);
        if !begins && !self.session.ends_unopened(&self.batch, &self.inbox) {
            return false;
        }
        self.make_outbox();
        let (batch, out) = (&self.batch, &mut self.outbox);
        match begins {
            true => self.session.begin_later(batch, reads, &self.inbox, out),
            false => {
                self.session.end_unopened(batch, out);
                self.cover_what_was_shown();
            }
        }
        true
    }

    /// What the transaction has read on a replica that it has left counts when it is over. Which replica that
    /// was is not known any more; the primary's present state covers it.
    fn cover_what_was_shown(&mut self) {
        if self.session.take_did().read {
            self.session.floors.wrote(&self.cluster.clock);
            self.cluster.want_sample(self.cluster.clock.now());
        }
    }

    /// A transaction that has done nothing on the primary but begin, and is made read-only now, leaves it
    /// if a replica has all that it needs.
    pub(super) fn turn_to_replica(&mut self) {
        let reads = self.base.transaction_reads();
        let may_turn = self.session.may_turn(&self.batch, reads) && self.batch.hints.is_none();
        // In session mode what the session has left on its server is its own.
        if !may_turn || self.keeps_servers {
            return;
        }
        self.session.heed_schema(&self.cluster.clock);
        let topology = self.topology.load().clone();
        let special = self.asked_for();
        let route = self.special_route(&topology, &special, Tried::default(), 0);
        let is_ready = matches!(route, ReadRoute::Replica { .. }) && !special.is_unsettled();
        if is_ready && let Some(mut server) = self.held.take() {
            self.session.turn(&mut server.state, reads);
            self.clean(server, Side::Primary);
        }
    }
}
