//! Owns: finding a server for a batch: what it must be on, and the wait for that for as long as it is wanted.
//! Never: sends a write to a node that has not been seen to be the primary.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Client;
use super::again::Again;
use super::hold::Held;
use super::refusal::Refusal;
use super::sessions::Handle;
use crate::cluster;
use crate::cluster::fate::{self, Fate};
use crate::cluster::node::Node;
use crate::cluster::pool::Pool;
use crate::cluster::pool::server::Server;
use crate::config::Config;
use crate::net::stream::Stream;
use crate::session::batch::End;
use crate::session::consistency::{Incarnation, NodeId, Replica};
use crate::session::repair::Repairable;
use crate::session::route::Reason;
use crate::session::settings::Settings;
use crate::sql::{Need, Why};
use crate::wire::message::Status;

/// While a server is waited for, it is looked at least this often whether the client is still there: nothing is
/// to be begun for one that is not.
const GONE_STEP: Duration = Duration::from_secs(1);

/// Which side of the split a server is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Of the primary: what is not proven to read is done there.
    Primary,
    /// Of a replica: only reads go there.
    Replica,
}

impl Side {
    /// Where a batch is for this reason.
    pub fn of(reason: Reason) -> Side {
        match reason.is_for_replica() {
            true => Side::Replica,
            false => Side::Primary,
        }
    }

    /// The name used in metrics and the log.
    pub fn name(self) -> &'static str {
        match self {
            Side::Primary => "primary",
            Side::Replica => "replica",
        }
    }
}

/// A server, and why it is that one.
pub struct Placed {
    pub server: Box<Server>,
    pub side: Side,
    pub reason: Reason,
    /// How long it was waited for, in microseconds.
    pub waited_us: u32,
    pub repairable: Repairable,
}

impl Placed {
    /// The primary's, without a wait.
    pub(super) fn on_primary(server: Box<Server>, reason: Reason) -> Placed {
        Placed {
            server,
            side: Side::Primary,
            reason,
            waited_us: 0,
            repairable: Repairable::No,
        }
    }

    /// When it was found for a batch that was planned at `started`.
    pub fn found(&self, started: Instant) -> Instant {
        match self.waited_us {
            0 => started,
            waited => started + Duration::from_micros(waited.into()),
        }
    }
}

impl Client {
    /// Finds a server for the planned batch, which has been run before with the outcome `again`.
    pub(super) async fn acquire(
        &mut self,
        end: End,
        again: Option<&Again>,
    ) -> Result<Placed, Refusal> {
        if self.batch.hints.is_some() {
            self.check_named_node();
        }
        if self.batch.explains {
            Box::pin(self.explain()).await;
        }
        let needs_primary = again.and_then(|again| again.primary);
        let needs_primary = needs_primary.or_else(|| self.needs_primary(end));
        if let Some(reason) = needs_primary
            && is_only_for_replicas(again)
        {
            return Err(self.no_replica(reason));
        }
        if let Some(placed) = self.at_once(needs_primary, again)? {
            return Ok(placed);
        }
        let began = Instant::now();
        let handle = self.registered.handle.clone();
        handle.waits(true);
        // Boxed: the task of an idle client has no room for what is seldom waited for.
        let placed = Box::pin(self.unless_cancelled(needs_primary, end, again)).await;
        handle.waits(false);
        Ok(Placed {
            waited_us: began.elapsed().as_micros().clamp(1, u32::MAX.into()) as u32,
            ..placed?
        })
    }

    fn at_once(
        &mut self,
        needs_primary: Option<Reason>,
        again: Option<&Again>,
    ) -> Result<Option<Placed>, Refusal> {
        match (needs_primary, again) {
            _ if self.batch.only_explains() => Ok(None),
            _ if self.session.roams_on_replica() => Ok(self.lend_within()),
            _ if self.batch.shows_own => Ok(None),
            (None, Some(again)) if !again.tried.is_empty() || again.only_on_replicas => Ok(None),
            (needs_primary, _) => self.lend(needs_primary),
        }
    }

    /// Waits for a server, unless the session is killed, or its client cancels what needs it and that can
    /// fail by itself: not what is part of a pipeline or a message that goes on, nor of a transaction on a
    /// server that would go with it.
    async fn unless_cancelled(
        &mut self,
        needs_primary: Option<Reason>,
        end: End,
        again: Option<&Again>,
    ) -> Result<Placed, Refusal> {
        let fails_alone = self.fails_alone(end);
        let handle = self.registered.handle.clone();
        // Nothing is said to the client meanwhile, but it is seen when it goes.
        let stream = std::mem::replace(&mut self.stream, Stream::Closed);
        let finding = self.find(needs_primary, again);
        let placed = while_wanted(&handle, &stream, fails_alone, finding).await;
        self.stream = stream;
        placed
    }

    /// Whether the batch can fail and nothing else with it.
    fn fails_alone(&self, end: End) -> bool {
        end == End::Ready && self.batch.beyond == 0 && self.held.is_none()
    }

    /// What has become of the node of a lost server, unless the client wants its batch no more.
    ///
    /// # Errors
    /// As with [`acquire`](Self::acquire).
    pub(super) async fn fate_of(
        &self,
        pool: &Pool,
        life: Incarnation,
        end: End,
    ) -> Result<Fate, Refusal> {
        let handle = &self.registered.handle;
        let asking = async { Ok(fate::of_node(pool, life).await) };
        handle.waits(true);
        let fate = while_wanted(handle, &self.stream, self.fails_alone(end), asking).await;
        handle.waits(false);
        fate
    }

    async fn find(
        &mut self,
        needs_primary: Option<Reason>,
        again: Option<&Again>,
    ) -> Result<Placed, Refusal> {
        if self.batch.only_explains() {
            return self.acquire_to_explain().await;
        }
        if self.session.roams_on_replica() {
            return self.acquire_within().await;
        }
        self.wait_for_server(needs_primary, again).await
    }

    /// A server for the planned batch, if there is one at once.
    pub(super) fn lend(
        &mut self,
        needs_primary: Option<Reason>,
    ) -> Result<Option<Placed>, Refusal> {
        let lent = match needs_primary {
            _ if self.session.roams_on_replica() => return Ok(self.lend_within()),
            Some(reason) => return self.lend_primary(reason),
            None => self.lend_for_read()?,
        };
        Ok(lent.map(|placed| self.of_transaction(placed)))
    }

    /// Why the batch is the primary's, if it is whatever the replicas have.
    pub(super) fn needs_primary(&self, end: End) -> Option<Reason> {
        Some(match self.batch.need {
            _ if self.may_go_to_replica() => return None,
            _ if self.session.status() != Status::Idle || self.session.is_failed() => {
                Reason::Transaction
            }
            Need::Write if self.batch.why == Why::CatalogUnknown => Reason::CatalogUnknown,
            Need::Write => Reason::Write,
            Need::Transaction => Reason::Transaction,
            Need::Session => Reason::SessionState,
            Need::Read if self.batch.executes && end == End::Open => Reason::OpenPipeline,
            Need::Read if self.session.settings().need_primary() => Reason::Isolation,
            Need::Read if self.batch.needs_server => Reason::PinnedServer,
            Need::Read => return None,
        })
    }

    async fn wait_for_server(
        &mut self,
        needs_primary: Option<Reason>,
        again: Option<&Again>,
    ) -> Result<Placed, Refusal> {
        if self.batch.shows_own {
            self.show_own().await?;
        }
        match needs_primary {
            Some(reason) => self.on_primary(reason).await,
            None => {
                let placed = self.acquire_for_read(again).await?;
                Ok(self.of_transaction(placed))
            }
        }
    }

    pub(super) fn no_replica(&self, reason: Reason) -> Refusal {
        Refusal::NoReplica {
            cluster: self.cluster.name.clone(),
            reason: reason.name(),
        }
    }

    /// The server on the primary that the session holds, or a free one that it has used before.
    pub(super) fn lend_primary(&mut self, reason: Reason) -> Result<Option<Placed>, Refusal> {
        let topology = self.topology.load();
        let server = if let Some(server) = self.held.take() {
            let node = server.node();
            let life = server.incarnation;
            if !topology.may_hold(node.id(), life) || !node.may_be_in(life) {
                // What it holds open on a server that is the primary no more must not be committed.
                return Err(Refusal::PrimaryChanged {
                    node: server.node().name.clone(),
                });
            }
            Some(server)
        } else if let Some(node) = &topology.primary {
            let settings = self.session.settings();
            lend_known(&self.pools, node.id(), settings, self.last_written)
                .and_then(|server| writing(server, node))
        } else {
            None
        };
        Ok(server.map(|server| Placed::on_primary(server, reason)))
    }

    /// A server of the primary, when there is one.
    pub(super) async fn on_primary(&mut self, reason: Reason) -> Result<Placed, Refusal> {
        self.on_primary_after(None, reason).await
    }

    /// The same, for what may have waited for a primary already.
    pub(super) async fn on_primary_after(
        &mut self,
        held: Option<Held>,
        reason: Reason,
    ) -> Result<Placed, Refusal> {
        match self.lend_primary(reason)? {
            Some(placed) => Ok(placed),
            None => self.wait_for_primary(held, reason).await,
        }
    }

    pub(super) fn pool(&mut self, node: &Arc<Node>, config: &Config) -> Arc<Pool> {
        if let Some((_, pool)) = self.pools.iter().find(|(id, _)| *id == node.id()) {
            return pool.clone();
        }
        // Nodes come and go; those that have gone need not be remembered.
        self.pools.retain(|(_, pool)| !pool.node().is_leaving());
        // Before there was this one, somebody may have logged in by a newer password; the others have been told.
        let newest = || self.cluster.newest_login(&self.key.user, &self.credential);
        let newest = (!node.pools.contains_key(&self.key)).then(newest);
        let credential = newest.as_ref().unwrap_or(&self.credential);
        let pool = cluster::pool(node, &self.key, credential, config);
        self.pools.push((node.id(), pool.clone()));
        pool
    }
}

/// Waits for what a batch needs, unless its session is killed, its client cancels it and it `fails_alone`, or its
/// client has gone.
async fn while_wanted<T>(
    handle: &Handle,
    stream: &Stream,
    fails_alone: bool,
    needed: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let mut needed = std::pin::pin!(needed);
    loop {
        // Made before the look, so that nothing that is told after it is missed.
        let mut told = std::pin::pin!(handle.cancelled.notified());
        told.as_mut().enable();
        if handle.must_end(false) {
            return Err(Refusal::going_down());
        }
        tokio::select! {
            got = &mut needed => return got,
            () = told => {
                if fails_alone && !handle.must_end(false) {
                    return Err(Refusal::cancelled());
                }
            }
            () = sleep(GONE_STEP) => {
                if stream.is_ended() {
                    return Err(Refusal::protocol("08006", "connection to client lost"));
                }
            }
        }
    }
}

/// The server, if its node has been seen to take writes in the life that it is in. Restarted, it has no role until it
/// has been asked, and no other server is opened until then.
pub(super) fn writing(server: Box<Server>, node: &Node) -> Option<Box<Server>> {
    if node.writes_in(server.incarnation) {
        return Some(server);
    }
    if node.may_be_in(server.incarnation) {
        server.give_back();
    }
    None
}

/// Whether a batch that has come to `again` may not go to the primary.
pub(super) fn is_only_for_replicas(again: Option<&Again>) -> bool {
    again.is_some_and(|again| again.only_on_replicas)
}

/// A free server of a node that the session has used before.
pub(super) fn lend_known(
    pools: &[(NodeId, Arc<Pool>)],
    node: NodeId,
    wanted: &Settings,
    favourite: u64,
) -> Option<Box<Server>> {
    let (_, pool) = pools.iter().find(|(id, _)| *id == node)?;
    pool.lend_now(wanted, favourite)
}
