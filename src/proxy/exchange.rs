//! Owns: one batch and what comes of it: its server, its exchange with that, and what it means for the session
//! if one or the other is lost. Never: moves a byte between the two; the relay does.

use std::ops::ControlFlow;
use std::time::Instant;

use super::acquire::{Placed, Side};
use super::again::{self, By, Loss};
use super::ordinary::{Lead, UnderWay};
use super::refusal::{Broken, Refusal};
use super::relay::{ClientSide, Ledger, Place, Relay};
use super::slow::Texts;
use super::{Client, Ended};
use crate::cluster::pool::server::Server;
use crate::session::Did;
use crate::session::answers::ServerFault;
use crate::session::batch::{Batch, End};
use crate::session::consistency::{NodeId, Replica};
use crate::session::repair::{Misplaced, Repairable};
use crate::telemetry;
use crate::wire::encode::{self, Severity};
use crate::wire::message::{self, Status};

/// An exchange has not come to its end.
pub(super) enum Failed {
    /// It was a read, and nothing of its answer has been seen: it may be tried again.
    Retry(Box<Loss>),
    /// This replica has failed it for its own sake.
    Misplaced(Box<Misplaced>, NodeId),
    /// The batch has failed; the session goes on.
    Refused(Refusal),
    Ended(Ended),
}

/// What is known of an exchange at its outset only: its batch may be gone when it ends.
struct Outset {
    /// The batch may be run again elsewhere while its client has seen nothing of the answer.
    is_retriable: bool,
    /// It is the first of a transaction that is to be opened on a replica.
    opens_on_replica: bool,
    /// What only asks is not counted among what it asks about.
    counts: bool,
}

/// How far an exchange has come.
struct Passed {
    went: Result<(), Broken>,
    /// The next part of the pipeline belongs elsewhere.
    leaves: bool,
    /// Bytes of the answer that the client has been sent.
    answered: u64,
    /// The batch can't be said again.
    consumed: bool,
    texts: Texts,
}

/// What the session was in when it lost its server.
struct Lost {
    /// Nothing of it was open there.
    was_idle: bool,
    /// It may have been committing.
    commits: bool,
    /// The client has a part of a message, and will not get the rest.
    is_within_message: bool,
}

impl Client {
    /// Serves a batch that has come as far as `lead`, until its client has the answer.
    pub(super) async fn serve_batch(&mut self, end: End, lead: Lead) -> Result<(), Ended> {
        let (started, placed) = match lead {
            Lead::Planned => {
                if let Some(served) = self.serve_without_server(end).await {
                    return served;
                }
                self.turn_to_replica();
                let started = Instant::now();
                match self.acquire(end, None).await {
                    Err(refusal) => (started, Err(refusal)),
                    Ok(placed) => match self.say_ordinary(UnderWay { placed, started }) {
                        Some(under_way) => (started, Ok(under_way.placed)),
                        // It had to wait for its server, and needs nothing else.
                        None => return Ok(()),
                    },
                }
            }
            Lead::Placed(UnderWay { placed, started }) => (started, Ok(placed)),
        };
        let outcome = match placed {
            Ok(placed) => {
                let since = (started, placed.found(started));
                self.exchange(placed, end, since).await
            }
            Err(refusal) => Err(self.not_found(refusal)),
        };
        match outcome {
            Ok(ControlFlow::Break(())) => {}
            outcome => Box::pin(self.serve_again(outcome, end, started)).await?,
        }
        match self.must_stop() {
            true => Err(Ended::Refused(Refusal::going_down())),
            false => Ok(()),
        }
    }

    /// Serves a batch that needs no server; `None` if it needs one.
    async fn serve_without_server(&mut self, end: End) -> Option<Result<(), Ended>> {
        if self.batch.is_empty() {
            // What is left of a COPY that has failed.
            // A message's length fits.
            self.discard = u32::try_from(self.batch.beyond).unwrap_or(u32::MAX);
            self.drop_batch();
            return Some(Ok(()));
        }
        let local = self.held.is_none() && !self.session.is_failed() && end == End::Ready;
        if !local || self.session.roams_on_replica() {
            return None;
        }
        if !self.serve_unopened() {
            if !self.session.is_local(&self.batch) {
                return None;
            }
            self.make_outbox();
            self.session.answer_locally(&self.batch, &mut self.outbox);
        }
        self.drop_batch();
        Some(self.flush().await)
    }

    /// Runs the batch on a server: until all is answered, or until the pipeline has to go on
    /// elsewhere. `since` is when the batch was planned, and when its server was found.
    pub(super) async fn exchange(
        &mut self,
        mut placed: Placed,
        end: End,
        since: (Instant, Instant),
    ) -> Result<ControlFlow<(), End>, Failed> {
        let side = placed.side;
        self.registered.handle.works_with(&placed.server.listed);
        let outset = self.outset(side);
        // Servers that only wait here for clients must not keep a database from being dropped or copied.
        let database = match self.batch.touches_databases {
            true => self.session.to_be_left(&self.batch, &self.inbox),
            false => None,
        };
        let _vacating = database.map(|database| self.cluster.vacate(database));
        let passed = self.pass(&mut placed, end, outset.is_retriable).await;
        if !self.registered.handle.leaves_server() {
            let given_up = Box::pin(self.registered.handle.outwaits_deliveries()).await;
            placed.server.may_be_cancelled |= given_up;
        }
        match passed.went {
            Ok(()) if passed.leaves => {
                match self.session.roams() || !placed.server.state.is_idle() {
                    true => self.hold(placed.server, side),
                    false => self.put_back(placed.server, side, Instant::now()),
                }
                Ok(ControlFlow::Continue(self.batch.end().unwrap_or(end)))
            }
            Ok(()) => {
                if let Some(misplaced) = placed.server.state.misplaced.take() {
                    let node = placed.server.node().id();
                    match self.session.roams() {
                        true => self.leave_replica(placed.server),
                        false => self.put_back(placed.server, side, Instant::now()),
                    }
                    return Err(Failed::Misplaced(misplaced, node));
                }
                if outset.counts {
                    self.count(&placed, since, passed.consumed.then_some(&passed.texts));
                }
                if !passed.consumed {
                    self.drop_batch();
                }
                let settled = self.settle(placed.server, side).await;
                settled.map_err(Failed::Ended)?;
                Ok(ControlFlow::Break(()))
            }
            Err(broken) => {
                let may_repeat = !passed.consumed && passed.answered == 0;
                Err(self.broken_off(placed.server, broken, &outset, may_repeat))
            }
        }
    }

    /// What is known before the batch is said on this side.
    fn outset(&self, side: Side) -> Outset {
        Outset {
            is_retriable: self.may_run_again(side),
            opens_on_replica: side == Side::Replica && self.session.is_to_be_opened(),
            counts: !self.batch.only_explains(),
        }
    }

    /// Passes the batch to its server and the answer back, or goes on with that where it has begun.
    async fn pass(&mut self, placed: &mut Placed, end: End, is_retriable: bool) -> Passed {
        let begun = self.begun.take();
        let mut relay = self.relay(placed, end, is_retriable);
        let went = match begun.map(|begun| relay.take_up(begun)) {
            Some(Ok(())) => relay.run().await,
            Some(broken) => broken,
            None => relay.converse(end).await,
        };
        let passed = Passed {
            went,
            leaves: relay.leave,
            answered: relay.answered,
            consumed: relay.consumed,
            texts: relay.texts.take().unwrap_or_default(),
        };
        relay.end();
        telemetry::metrics()
            .client_bytes_sent
            .increment(passed.answered);
        passed
    }

    /// The relay between the client and the server that its batch is placed on.
    fn relay<'a>(&'a mut self, placed: &'a mut Placed, end: End, is_retriable: bool) -> Relay<'a> {
        let leaves_midway = self.session.roams().then(|| self.session.leaves_midway());
        let place = match placed.side {
            Side::Primary => Place::Primary(Ledger(&self.cluster)),
            Side::Replica => Place::Replica(self.base.transaction_reads()),
        };
        let mut relay = Relay::new(client_side!(self), &mut placed.server, place);
        relay.belongs_elsewhere = match (placed.side, leaves_midway) {
            (Side::Primary, _) => |batch| batch.explains,
            // What was fresh enough for one part of a pipeline need not be for the next.
            (Side::Replica, Some(leaves)) => leaves,
            (Side::Replica, None) if self.reads_plainly => Batch::must_leave_replica,
            (Side::Replica, None) => |_| true,
        };
        let logs = self.topology.load().config.log.slow_query.is_some();
        relay.texts = logs.then(Texts::default);
        let whole = end == End::Ready && relay.client.batch.ends_with_an_error();
        relay.server.state.repairable = match is_retriable && whole {
            true => placed.repairable,
            false => Repairable::No,
        };
        relay
    }

    /// The exchange with this server was broken off; `may_repeat` if the batch is at hand and its client has been sent
    /// nothing of the answer.
    fn broken_off(
        &mut self,
        server: Box<Server>,
        broken: Broken,
        outset: &Outset,
        may_repeat: bool,
    ) -> Failed {
        match broken {
            Broken::Killed => Failed::Ended(self.killed(server)),
            // It finishes what it was told, as if the client had been connected to it.
            Broken::Client => Failed::Ended(Ended::Gone),
            Broken::Fault(fault) => Failed::Ended(Ended::Refused(fault.into())),
            broken => {
                // What is said with settings that are refused has no effect beyond that server; and what has more
                // is not said before they are taken.
                let is_alone = match self.session.status() {
                    Status::Idle => !self.session.is_pinned(),
                    _ => outset.opens_on_replica,
                };
                let is_unsettled = matches!(broken, Broken::Server(ServerFault::Settings(_)));
                let may_retry = (outset.is_retriable || is_unsettled && is_alone)
                    && may_repeat
                    && again::may_be_unsaid(&self.outbox);
                let by = may_retry.then(|| By::of(&broken)).flatten();
                if by.is_some() {
                    self.outbox.clear();
                }
                self.server_lost(server, broken, by)
            }
        }
    }

    /// A server was lost, `by` what if the batch may be run again.
    fn server_lost(&mut self, server: Box<Server>, broken: Broken, by: Option<By>) -> Failed {
        let node = server.node().clone();
        node.wake.notify_one();
        let (pool, life) = (server.pool().clone(), server.incarnation);
        let may_retry = by.is_some();
        let lost = self.lose(server, may_retry);
        tracing::info!(node = %node.name, error = %broken, "server lost");
        if lost.is_within_message && !may_retry {
            // The client would take an error for the rest of it.
            return Failed::Ended(Ended::Gone);
        }
        let (refuses_settings, was_cancelled) = match &broken {
            Broken::Server(ServerFault::Settings(words)) => {
                (true, message::error_field(words, b'C') == Some(b"57014"))
            }
            _ => (false, false),
        };
        let refusal = match lost.commits && broken.may_have_succeeded() {
            true => Refusal::Unknown {
                node: node.name.clone(),
            },
            false => Refusal::lost(node.name.clone(), broken),
        };
        if let Some(by) = by.filter(|_| !was_cancelled) {
            let replica = (!self.cluster.is_primary(&node)).then(|| node.id());
            Failed::Retry(Box::new(Loss {
                refusal,
                pool,
                life,
                replica,
                by,
            }))
        } else if lost.was_idle
            && self.batch.end() == Some(End::Ready)
            && (!refuses_settings || was_cancelled)
        {
            Failed::Refused(refusal)
        } else {
            // What was open on the server is gone with it, and the client has to know.
            Failed::Ended(Ended::Refused(refusal))
        }
    }

    /// Has the session forget a server that was lost, and cover what that may have shown or done.
    fn lose(&mut self, server: Box<Server>, may_retry: bool) -> Lost {
        // What the session keeps on the primary's server is not lost with another one.
        let is_kept = self.held.is_some() || !self.session.is_pinned();
        let is_outside = self.session.status() == Status::Idle;
        let was_idle = is_outside && is_kept;
        Ledger(&self.cluster).note(&self.session);
        // A transaction that goes on elsewhere has shown what it has shown.
        let goes_on = may_retry && self.session.roams();
        let did = match goes_on {
            true => Did::default(),
            false => self.session.take_did(),
        };
        let wrote = did.wrote || !was_idle && !goes_on;
        let commits = match is_outside {
            true => did.wrote,
            false => {
                let is_on_primary = !self.session.roams_on_replica();
                is_on_primary && server.state.may_outlive_transaction()
                    || !self.session.roams() && server.state.may_commit()
            }
        };
        if wrote {
            // It may have been a definition.
            self.catalog.look_again();
        }
        let is_within_message = server.state.is_within_message();
        drop(server);
        self.answer.clear();
        match goes_on {
            true => {
                telemetry::metrics().transaction_moves.increment(1);
                self.session.lose_replica();
            }
            false => self.session.lost_server(),
        }
        if wrote || did.read && !may_retry {
            // What it has shown or done is not known; the primary's present state covers it.
            self.session.floors.wrote(&self.cluster.clock);
            self.cluster.want_sample(self.cluster.clock.now());
        }
        Lost {
            was_idle,
            commits,
            is_within_message,
        }
    }

    /// The session is to end in the middle of an exchange with this server, which ends with it.
    fn killed(&mut self, server: Box<Server>) -> Ended {
        let is_unsent = !self.outbox.is_empty();
        let node = server.node().name.clone();
        let lost = self.lose(server, false);
        if lost.is_within_message || is_unsent {
            // Its client would take the words for the rest of a message.
            return Ended::Gone;
        }
        Ended::Refused(match lost.commits {
            true => Refusal::Unknown { node },
            false => Refusal::going_down(),
        })
    }

    /// No server was found for the batch. A transaction that is open on one can't go on without it, nor a
    /// session whose server is gone with what it held.
    pub(super) fn not_found(&self, refusal: Refusal) -> Failed {
        let lost_state = matches!(refusal, Refusal::PrimaryChanged { .. });
        match self.session.status() {
            Status::Idle if !lost_state => Failed::Refused(refusal),
            _ if self.session.is_to_be_opened() => Failed::Refused(refusal),
            _ => Failed::Ended(Ended::Refused(refusal)),
        }
    }

    /// Answers the batch with an error; the session goes on.
    pub(super) async fn refuse(&mut self, refusal: Refusal, end: End) -> Result<(), Ended> {
        if end == End::Open || self.batch.beyond > 0 {
            return Err(Ended::Refused(refusal));
        }
        refusal.encode(Severity::Error, &mut self.outbox);
        self.session.fail_unopened();
        encode::ready(&mut self.outbox, self.session.status());
        self.session.forget_batch(&self.batch);
        self.drop_batch();
        self.flush().await
    }

    /// The held server has said something while nothing was asked of it.
    pub(super) async fn hear_held(&mut self) -> Result<(), Ended> {
        let Some(server) = &mut self.held else {
            return Ok(());
        };
        let place = Place::Primary(Ledger(&self.cluster));
        let mut relay = Relay::new(client_side!(self), server, place);
        relay.consumed = true;
        let heard = relay.hear_once().await;
        relay.end();
        match heard {
            Ok(()) => {
                if let Some(server) = self.held.take_if(|server| server.state.is_idle()) {
                    // Who is notified of something is to find it.
                    self.raise_floors(&server, Side::Primary);
                    self.held = Some(server);
                }
                Ok(())
            }
            Err(Broken::Client | Broken::Killed | Broken::Fault(_)) => Err(Ended::Gone),
            Err(broken) => {
                self.session.floors.wrote(&self.cluster.clock);
                Err(match self.held.take() {
                    Some(server) if server.state.is_within_message() => Ended::Gone,
                    Some(server) => {
                        Ended::Refused(Refusal::lost(server.node().name.clone(), broken))
                    }
                    None => Ended::Refused(Refusal::lost(String::new(), broken)),
                })
            }
        }
    }
}
