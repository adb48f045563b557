//! Owns: what becomes of a server when the session is done with it, for now or for good. Never:
//! gives back a server that something is still open on.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::acquire::{Placed, Side};
use super::refusal::{Broken, Refusal};
use super::relay::{ClientSide, Ledger, Place, Relay};
use super::wishes::needs_samples;
use super::{Client, Ended};
use crate::cluster::pool::PoolKey;
use crate::cluster::pool::server::Server;
use crate::config::Level;
use crate::net::buffers;
use crate::sql::altered::Altered;
use crate::wire::message::Status;

/// The longest that resetting a server may take after its session has gone.
const CLEANING: Duration = Duration::from_secs(10);

impl Client {
    /// After an exchange that all of was [ordinary](super::ordinary) but what is left to do.
    pub(super) async fn settle_after(&mut self, mut placed: Placed) -> Result<(), Ended> {
        if !self.registered.handle.leaves_server() {
            let given_up = self.registered.handle.outwaits_deliveries().await;
            placed.server.may_be_cancelled |= given_up;
        }
        self.settle(placed.server, placed.side).await
    }

    /// Updates what the session has seen, and gives the server back if it may be.
    pub(super) async fn settle(
        &mut self,
        mut server: Box<Server>,
        side: Side,
    ) -> Result<(), Ended> {
        self.session.hide_own();
        if !server.state.is_idle() {
            self.hold(server, side);
            return Ok(());
        }
        self.raise_floors(&server, side);
        // The first answer may call for a second question. On a replica it is a transaction that has set
        // something.
        while self.session.must_inspect() {
            Box::pin(self.inspect(&mut server)).await?;
        }
        if self.session.did().read {
            // It has been notified meanwhile.
            self.raise_floors(&server, side);
        }
        self.put_back(server, side, Instant::now());
        Ok(())
    }

    /// Keeps the server that a transaction is open on.
    pub(super) fn hold(&mut self, server: Box<Server>, side: Side) {
        self.registered.handle.keeps(Some(&server.listed));
        match side {
            Side::Primary => self.held = Some(server),
            Side::Replica => self.held_replica = Some(server),
        }
    }

    /// Keeps the server for the session's next batch if it must be that one; gives it back if not.
    pub(super) fn put_back(&mut self, server: Box<Server>, side: Side, now: Instant) {
        let pinned = side == Side::Primary && self.session.is_pinned();
        let keeps = pinned || self.keeps_servers && !server.node().is_drained();
        let keeps = keeps && !server.state.is_gone;
        if !keeps {
            self.registered.handle.keeps(None);
            match self.pools.iter().find(|(_, pool)| pool.owns(&server)) {
                Some((_, pool)) => pool.take_back(server, now),
                None => server.give_back(),
            }
        } else if self.registered.proxy.draining.load(Ordering::Relaxed) {
            self.clean(server, side);
        } else {
            self.hold(server, side);
        }
    }

    pub(super) fn raise_floors(&mut self, server: &Server, side: Side) {
        let did = self.session.take_did();
        if did.wrote && side == Side::Primary {
            self.last_written = server.listed.number();
        }
        if did.altered {
            // Who logs in from now on finds things as they are now.
            self.renew_servers();
        }
        if did.outdated {
            self.catalog.look_again();
        }
        if did.reshaped {
            self.cluster.mark_schema(self.session.schema());
        }
        self.session.end_local();
        let clock = &self.cluster.clock;
        if side == Side::Replica {
            // What a weaker level shows promises nothing, and what it was shown by may lack what the
            // floors ask for.
            if self.read_level >= Level::Session {
                let (node, life) = (&**server.node(), server.incarnation);
                let floors = &mut self.session.floors;
                floors.read_replica(clock, node, life, server.lent_at);
            }
            if did.read {
                self.has_read = true;
                self.unpin(true);
            }
            return;
        }
        let samples = needs_samples(self.level());
        let may_read_next = match did.wrote {
            true => {
                self.session.floors.wrote(clock);
                // Who does nothing but write needs no sample each time: if it reads after all, that asks for one.
                std::mem::replace(&mut self.has_read, false)
            }
            false => {
                if did.read {
                    // Whatever level it was read at: the next read may be at another.
                    self.session.floors.read_primary(clock);
                }
                self.has_read |= did.read;
                did.read
            }
        };
        if samples && may_read_next {
            self.cluster.want_sample(clock.now());
        }
    }

    #[cold]
    fn renew_servers(&mut self) {
        let altered = self.session.take_altered();
        let login = &self.key.user;
        let whose = |key: &PoolKey| {
            altered.iter().any(|altered| match altered {
                Altered::Role(name) => **name == *key.user.as_bytes(),
                Altered::Database(name) => **name == *key.database.as_bytes(),
                Altered::SessionRole => *login == key.user,
                Altered::CurrentRole | Altered::All => true,
            })
        };
        self.cluster.renew(whose);
        let welcomes = &self.registered.proxy.welcomes;
        welcomes.forget(&self.cluster.name, whose);
    }

    /// Asks the server what the session has become on it, where its client's words do not tell.
    async fn inspect(&mut self, server: &mut Box<Server>) -> Result<(), Ended> {
        // Wherever it is, it is noted what is heard.
        let place = Place::Primary(Ledger(&self.cluster));
        let mut relay = Relay::new(client_side!(self), server, place);
        relay.consumed = true;
        let state = &mut relay.server.state;
        let session = &mut relay.client.session;
        session.say_inspection(state, &mut relay.to_server);
        let went = relay.run().await;
        relay.end();
        match went {
            Ok(()) => {
                self.session.inspected(&mut server.state);
                Ok(())
            }
            Err(Broken::Client | Broken::Killed) => Err(Ended::Gone),
            Err(Broken::Fault(fault)) => Err(Ended::Refused(fault.into())),
            Err(broken) => Err(Ended::Refused(Refusal::lost(
                server.node().name.clone(),
                broken,
            ))),
        }
    }

    /// What is left of the session is cleared away.
    pub(super) async fn end(&mut self) {
        self.unpin(false);
        buffers::give_back(&mut self.inbox);
        if let Some(server) = self.held_replica.take() {
            self.clean(server, Side::Replica);
        }
        let Some(mut server) = self.held.take() else {
            return;
        };
        server.may_be_cancelled |= self.registered.handle.outwaits_deliveries().await;
        self.clean(server, Side::Primary);
    }

    /// Makes a kept server as good as new and gives it back. In the middle of something it is
    /// closed, which ends the transaction too.
    pub(super) fn clean(&self, mut server: Box<Server>, side: Side) {
        self.registered.handle.keeps(None);
        if server.state.status != Status::Idle {
            // What its transaction has set goes with it.
            self.session.leave_settings(&mut server.state);
        }
        let spoilt = side == Side::Primary && self.session.spoils_server();
        if server.state.is_quiet() && !spoilt {
            let is_unsure = self.session.is_pinned() || self.session.must_inspect();
            let discard = self.keeps_servers || is_unsure;
            tokio::spawn(server.clean(CLEANING, discard));
        }
    }
}
