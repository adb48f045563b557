//! Owns: opening one more server, and what is made of a node that gives none. Never: opens one without a place for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::refused::Refused;
use super::server::{Server, aged_from};
use super::{CheckoutError, Place, Pool, PoolKey, Silence};
use crate::cluster::connect::{self, ConnectError, Connection, Target};
use crate::cluster::incarnation::meet;
use crate::session::consistency::Incarnation;
use crate::telemetry;

impl Pool {
    /// Opens a server; `None` where the node gives no other one, and the pool may have some.
    pub(super) async fn open(
        self: &Arc<Self>,
        mut place: Place,
    ) -> Result<Option<Box<Server>>, CheckoutError> {
        /// How often room is made for it: others may be quicker to take that.
        const ROOMS_MAX: u32 = 3;
        let mut rooms = 0;
        loop {
            let (limit, lifetime, generation) = {
                let inner = self.lock();
                let limits = &inner.limits;
                (limits.connect_timeout, limits.lifetime, inner.generation)
            };
            let error = match self.connect(limit).await {
                Ok((connection, life)) => {
                    telemetry::metrics().server_connects.increment(1);
                    self.node.note_connect(life);
                    self.node.begin_use();
                    self.has_grown();
                    place.is_trial = false;
                    let mut server = Server::new(connection, life, place);
                    server.generation = generation;
                    server.aged_from = aged_from(server.aged_from, lifetime, rand::random());
                    return Ok(Some(Box::new(server)));
                }
                Err(error) => error,
            };
            telemetry::metrics().server_connect_failures.increment(1);
            if error.is_full() && rooms < ROOMS_MAX && self.make_room(&error).await {
                rooms += 1;
                continue;
            }
            if error.is_node_away() {
                self.node.wake.notify_one();
            }
            let mut inner = self.lock();
            let is_first = inner.refused.is_none();
            place.is_refused = Refused::note(&mut inner.refused, &error, Instant::now());
            let is_silence = matches!(error, ConnectError::Timeout(_));
            inner.silence = is_silence.then_some(Silence::Asked);
            let others_may_do = error.is_full() || is_silence && inner.open > 1;
            drop(inner);
            drop(place);
            if is_silence {
                self.node.note_silence();
            }
            if is_first && error.is_full() {
                let (node, PoolKey { database, user }) = (&self.node.name, &self.key);
                tracing::warn!(%node, %database, %user, %error, "node takes fewer connections than pool.size");
            }
            return match others_may_do {
                true => Ok(None),
                false => Err(self.cannot_connect(error)),
            };
        }
    }

    /// A new connection, which is of no pool, and the life of the node's server that it is to; within `limit`.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    pub async fn connect(
        &self,
        limit: Duration,
    ) -> Result<(Connection, Incarnation), ConnectError> {
        let credential = self.credential().credential;
        let target = Target {
            database: &self.key.database,
            user: &self.key.user,
            credential,
            // As if the session had connected itself: its own name, if any, comes with its settings.
            application_name: "",
            ..Target::at(&self.node)
        };
        let opened = async {
            let mut connection = connect::connect(&target, limit).await?;
            let life = meet(&mut connection).await?;
            Ok((connection, life))
        };
        match tokio::time::timeout(limit, opened).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectError::Timeout(limit)),
        }
    }

    /// The node's probe has been answered on a new connection.
    pub fn end_silence(self: &Arc<Self>) {
        let mut inner = self.lock();
        if inner.silence == Some(Silence::Asked) {
            inner.silence = Some(Silence::MayTry);
        }
        drop(inner);
        self.grow();
    }

    /// One more server has been opened. If others wait for lack of room, there may be some for the next.
    fn has_grown(self: &Arc<Self>) {
        let mut inner = self.lock();
        let was_silent = inner.silence.take().is_some();
        let is_refused = inner.refused.is_some();
        drop(inner);
        if is_refused {
            if !self.grow() {
                self.lock().refused = None;
            }
        } else if was_silent {
            while self.grow() {}
        }
    }
}
