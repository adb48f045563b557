//! Owns: replication connections: which a client wants, and passing one through to the primary. Never:
//! looks into what is said on it.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, BytesMut};

use super::hold;
use super::refusal::Refusal;
use super::sessions::{Handle, Who};
use crate::auth::Proven;
use crate::cluster::Cluster;
use crate::cluster::connect::{self, Connection, Target};
use crate::cluster::keys::{CancelKey, Listed};
use crate::cluster::node::{Node, Passage};
use crate::cluster::pool::PoolKey;
use crate::net::buffers::{self, BUFFER_BYTES};
use crate::net::stream::Stream;
use crate::session::consistency::Replica;
use crate::telemetry;

/// Which replication a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of the whole cluster: the database that is named, if any, is of no account.
    Physical,
    /// From one database, where queries can be run as well.
    Logical,
}

/// Reads the `replication` of a start-up packet: a boolean as PostgreSQL writes them, or `database`.
///
/// # Errors
/// For anything else, in PostgreSQL's words.
pub fn wanted(value: Option<&str>) -> Result<Option<Kind>, Refusal> {
    let Some(value) = value else {
        return Ok(None);
    };
    if value == "database" {
        return Ok(Some(Kind::Logical));
    }
    // Any beginning of a word that is that of no other; "o" is that of two.
    let is = |words: &[(&str, usize)]| {
        let begins = |word: &str, shortest| {
            value.len() >= shortest
                && word
                    .get(..value.len())
                    .is_some_and(|begin| begin.eq_ignore_ascii_case(value))
        };
        words.iter().any(|&(word, shortest)| begins(word, shortest))
    };
    if is(&[("true", 1), ("yes", 1), ("on", 2), ("1", 1)]) {
        Ok(Some(Kind::Physical))
    } else if is(&[("false", 1), ("no", 1), ("off", 2), ("0", 1)]) {
        Ok(None)
    } else {
        let message = format!("invalid value for parameter \"replication\": \"{value}\"");
        let hint = "Valid values are: \"false\", 0, \"true\", 1, \"database\".";
        Err(Refusal::hinted("22023", message, hint))
    }
}

/// A replication connection at the primary, for a client that is logged in.
pub struct Upstream {
    pub connection: Connection,
    cluster: Arc<Cluster>,
    passage: Passage,
    key: PoolKey,
    application_name: String,
}

impl Upstream {
    /// Connects to the primary; where there is none, waits for one. `parameters` are the client's own.
    pub async fn open(
        cluster: &Arc<Cluster>,
        key: PoolKey,
        credential: &Proven,
        parameters: &[(&str, &str)],
        application_name: String,
    ) -> Result<Upstream, Refusal> {
        let started = Instant::now();
        loop {
            let changed = cluster.changed.notified();
            let (primary, config) = {
                let topology = cluster.topology();
                (topology.primary.clone(), topology.config.clone())
            };
            if let Some(node) = primary {
                let passage = Passage::to(node.clone());
                let target = Target {
                    user: &key.user,
                    credential: credential.credential.clone(),
                    ..Target::at(&node)
                };
                let limit = config.pool.connect_timeout;
                match connect::connect_with(&target, parameters, limit).await {
                    Ok(connection) => {
                        let cluster = cluster.clone();
                        return Ok(Upstream {
                            connection,
                            cluster,
                            passage,
                            key,
                            application_name,
                        });
                    }
                    Err(error) if error.is_node_away() => node.wake.notify_one(),
                    Err(error) => return Err(Refusal::connecting(node.name.clone(), error)),
                }
            }
            hold::wait_since(started, cluster, changed).await?;
        }
    }

    /// Who others see its client, which has come over `stream`, to be.
    pub fn who(&self, stream: &Stream) -> Who {
        let cluster = Some(self.cluster.clone());
        Who::new(cluster, &self.key, stream, &self.application_name)
    }

    /// Passes everything on, both ways, until either side ends it, the proxy does, or the node is the
    /// primary no more: what follows it is to follow the next.
    pub async fn pass(mut self, mut client: Stream, inbox: BytesMut, handle: &Handle) {
        let node = self.passage.node().clone();
        let listed = Listed::new(CancelKey {
            node: node.clone(),
            pid: self.connection.pid,
            secret: std::mem::take(&mut self.connection.secret),
        });
        handle.works_with(&listed);
        tracing::info!(node = %node.name, peer = %client.peer(), "replication connection passed through");
        let mut up = Direction::new(inbox);
        let mut down = Direction::new(self.connection.take_unread());
        let server = &mut self.connection.stream;
        let passed = std::future::poll_fn(|cx| {
            let metrics = telemetry::metrics();
            // Whichever ends first: what it has said before has been passed on.
            if let Poll::Ready(passed) = up.poll(cx, &mut client, server) {
                return Poll::Ready(passed);
            }
            let passed = down.poll(cx, server, &mut client);
            metrics
                .client_bytes_received
                .increment(std::mem::take(&mut up.passed));
            metrics
                .client_bytes_sent
                .increment(std::mem::take(&mut down.passed));
            passed
        });
        let why = tokio::select! {
            passed = passed => match passed {
                Ok(()) => "one side has closed it".to_owned(),
                Err(error) => error.to_string(),
            },
            () = superseded(&self.cluster, &node) => "the node is the primary no more".to_owned(),
            () = handle.stop.notified() => "the proxy is told to end it".to_owned(),
        };
        handle.outwaits_deliveries().await;
        tracing::info!(node = %node.name, %why, "replication connection ended");
        up.end();
        down.end();
    }
}

/// Waits until `node` has left, or is not to be taken for the primary any more.
async fn superseded(cluster: &Cluster, node: &Node) {
    loop {
        // Made before the look, so that no change after it is missed.
        let changed = cluster.changed.notified();
        let (topology, life) = (cluster.topology(), node.last_life());
        let may_stay = match node.is_leaving() {
            // Its server may have another name or address now.
            true => topology.is_primary_in(life),
            false => topology.may_hold(node.id(), life),
        };
        drop(topology);
        if !may_stay {
            return;
        }
        changed.await;
    }
}

/// One way of a connection.
struct Direction {
    /// Read, and not yet written.
    buffer: BytesMut,
    passed: u64,
}

impl Direction {
    fn new(read: BytesMut) -> Direction {
        Direction {
            buffer: read,
            passed: 0,
        }
    }

    /// Passes on what there is. Ready at the end of `from`, once all that it said is written.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
    ) -> Poll<io::Result<()>> {
        loop {
            while !self.buffer.is_empty() {
                let n = ready!(to.poll_write(cx, &self.buffer))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.buffer.advance(n);
                self.passed += n as u64;
            }
            ready!(to.poll_flush(cx))?;
            if self.buffer.capacity() == 0 {
                self.buffer = buffers::take();
            }
            self.buffer.reserve(BUFFER_BYTES / 2);
            if ready!(from.poll_read(cx, &mut self.buffer))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn end(&mut self) {
        buffers::give_back(&mut self.buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replication_is_a_boolean_or_database() {
        let wanted = |value| wanted(value).map_err(|refusal| refusal.to_string());
        for value in ["true", "t", "TRUE", "on", "oN", "yes", "y", "1"] {
            assert_eq!(wanted(Some(value)), Ok(Some(Kind::Physical)), "{value}");
        }
        for value in ["false", "fal", "off", "of", "no", "N", "0"] {
            assert_eq!(wanted(Some(value)), Ok(None), "{value}");
        }
        assert_eq!(wanted(None), Ok(None));
        assert_eq!(wanted(Some("database")), Ok(Some(Kind::Logical)));
        for value in ["", "o", "2", "truely", "Database", "é"] {
            let expected = format!("invalid value for parameter \"replication\": \"{value}\"");
            assert_eq!(wanted(Some(value)), Err(expected));
        }
    }
}
