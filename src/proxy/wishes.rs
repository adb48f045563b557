//! Owns: what the reads of a session and of a statement must have seen, by the configuration, the
//! session's settings and the statement's hints; and what the session is shown of that. Never: looks
//! for a server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::Client;
use super::hold::HOLD_STEP;
use super::refusal::Refusal;
use crate::cluster::causal::store::Store;
use crate::cluster::node::Node;
use crate::cluster::pool::PoolKey;
use crate::cluster::positions::moment;
use crate::config::{Config, Level, ReadPrimary, TransactionReads, show_duration};
use crate::session::consistency::{Lsn, Replica, Tick};
use crate::session::own::{Complaint, Own, Wanted};
use crate::session::route::{Bounds, KeyFloor, Moment, Policy, Tried};
use crate::session::token::Token;
use crate::sql::Need;
use crate::sql::hint::Hints;
use crate::wire::message::Status;

/// How long it may take until the position of the primary is known that a token stands for.
const TOKEN_WAIT: Duration = Duration::from_secs(5);

/// What the configuration says of a session's reads, for as long as it is this one.
pub struct Base {
    config: Arc<Config>,
    pub level: Level,
    /// Reads ask for more than their session's floors.
    pub is_special: bool,
}

/// What a read asks for that is no ordinary one.
pub struct Special {
    pub policy: Policy,
    pub bounds: Bounds,
    /// The node that it names.
    pub node: Option<Box<str>>,
    /// Who has to be asked for what others say of its causal key.
    store: Option<Arc<Store>>,
}

impl Special {
    /// Whether it is not known yet what the read must see.
    pub fn is_unsettled(&self) -> bool {
        self.store.is_some()
    }
}

impl Base {
    pub fn of(config: &Arc<Config>, cluster: &str, key: &PoolKey) -> Base {
        let (level, _) = config.consistency_of(cluster, &key.database, &key.user);
        Base {
            config: config.clone(),
            level,
            is_special: matches!(level, Level::Bounded | Level::Global),
        }
    }

    pub fn is_of(&self, config: &Arc<Config>) -> bool {
        Arc::ptr_eq(&self.config, config)
    }

    /// Where reads of transactions run that have not written yet.
    pub fn transaction_reads(&self) -> TransactionReads {
        self.config.routing.transaction_reads
    }

    /// For reads that ask for nothing special.
    #[inline]
    pub fn policy(&self) -> Policy {
        Policy {
            level: self.level,
            max_lag: None,
            share: self.config.routing.read_primary == ReadPrimary::Share,
            gate_wait: self.config.consistency.gate_wait,
            tried: Tried::default(),
        }
    }
}

/// Whether what a session of this level may read depends on where the primary was: not if it reads on the primary
/// only, or whatever there is.
pub fn needs_samples(level: Level) -> bool {
    matches!(level, Level::Session | Level::Global)
}

/// The level, and the lag that is allowed, for a session with these settings and a batch with these
/// hints; by the configuration's `usual` ones. Where some statement of the batch has no hint, that one
/// must get what the session asks for.
fn resolve(
    (level, max_lag): (Level, Duration),
    wanted: Option<&Wanted>,
    hints: Option<&Hints>,
    has_unhinted: bool,
) -> (Level, Option<Duration>) {
    let session = wanted.map(|wanted| wanted.wish).unwrap_or_default();
    let hinted = hints.map(|hints| hints.wish).unwrap_or_default();
    let usual = session.level.unwrap_or(level);
    let level = match hinted.level {
        Some(level) if has_unhinted => level.max(usual),
        level => level.unwrap_or(usual),
    };
    let lag = match (hinted.max_lag, session.max_lag) {
        (Some(a), Some(b)) if has_unhinted => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    (level, lag.or((level == Level::Bounded).then_some(max_lag)))
}

impl Client {
    /// The level of the session's own.
    pub(super) fn level(&self) -> Level {
        let wanted = || self.session.settings().wanted()?.wish.level;
        wanted().unwrap_or(self.base.level)
    }

    /// Whether the planned read asks for more than most.
    #[inline]
    pub(super) fn is_special(&self) -> bool {
        self.base.is_special
            || self.batch.hints.is_some()
            || self.session.settings().wanted().is_some()
    }

    /// What it asks for.
    #[cold]
    pub(super) fn asked_for(&self) -> Special {
        let hints = self.batch.hints.as_deref();
        let wanted = self.session.settings().wanted().map(|wanted| &**wanted);
        let usual = self.usual();
        let (level, max_lag) = resolve(usual, wanted, hints, self.batch.has_unhinted);
        let since = |lag: Duration| {
            let now = moment(Instant::now());
            // Never 0: of a replica of which nothing is known everything is assumed.
            Moment(now.0.saturating_sub(lag.as_micros() as u64).max(1))
        };
        let others = (level == Level::Global).then(|| self.cluster.last_write_mark());
        let has_key = matches!(level, Level::Session | Level::Global);
        let key = wanted
            .filter(|_| has_key)
            .and_then(|w| w.causal_key.as_ref());
        let floor = key.map(|key| self.cluster.key_floor(&self.key.database, key));
        let (floor, store) = floor.map_or((None, None), |(here, store)| {
            let elsewhere = store.is_none().then_some([None, None]);
            (Some(KeyFloor { here, elsewhere }), store)
        });
        Special {
            policy: Policy {
                level,
                max_lag,
                ..self.base.policy()
            },
            bounds: Bounds {
                not_before: max_lag.map(since),
                others,
                key: floor,
                node: None,
            },
            store,
            node: hints.and_then(|hints| hints.node.clone()),
        }
    }

    /// Learns what other proxies say of the causal key of a read, if it can be known.
    pub(super) async fn settle_key(&self, special: &mut Special) {
        let (Some(store), Some(floor)) = (special.store.take(), &mut special.bounds.key) else {
            return;
        };
        let Some(key) = self.session.causal_key() else {
            return;
        };
        let asked = store.floor(self.session.system(), &self.key.database, key);
        floor.elsewhere = asked.await.ok();
    }

    /// What the configuration says of the session: its level, and the lag that `bounded` allows.
    fn usual(&self) -> (Level, Duration) {
        let PoolKey { database, user } = &self.key;
        let config = &self.base.config;
        config.consistency_of(&self.cluster.name, database, user)
    }

    /// Refuses a batch that names a node where it can't run.
    pub(super) fn check_named_node(&mut self) {
        let Some(name) = self.batch.hints.as_ref().and_then(|h| h.node.as_deref()) else {
            return;
        };
        let topology = self.cluster.topology();
        let is_primary = |node: &Arc<Node>| {
            let primary = topology.primary.as_ref();
            primary.is_some_and(|primary| primary.id() == node.id())
        };
        let complaint = match topology.nodes.iter().find(|node| node.name == name) {
            Some(node) if is_primary(node) => return,
            Some(_) if self.batch.need != Need::Read => Complaint {
                sqlstate: "25006",
                message: format!("cannot run this on node \"{name}\", which is not the primary"),
                advice: "Only what is proven to read is run on a replica; \
                    routing.safe_functions names functions that only read."
                    .to_owned(),
            },
            Some(_) if self.asked_for().policy.level == Level::Primary => Complaint {
                sqlstate: "22023",
                message: format!("cannot read on node \"{name}\" at level \"primary\""),
                advice: "Name a weaker level beside the node, such as session.".to_owned(),
            },
            Some(_) if self.session.status() != Status::Idle => Complaint {
                sqlstate: "25001",
                message: format!("cannot go to node \"{name}\" within a transaction"),
                advice: "Name it before BEGIN, or outside of a transaction.".to_owned(),
            },
            Some(_) => return,
            None => {
                let names: Vec<_> = topology.nodes.iter().map(|n| n.name.as_str()).collect();
                Complaint {
                    sqlstate: "42704",
                    message: format!("node \"{name}\" does not exist"),
                    advice: format!("The nodes are {}.", names.join(", ")),
                }
            }
        };
        drop(topology);
        self.batch.refuse(complaint);
        self.batch.hints = None;
    }

    /// Has the batch's server show the proxy's own settings as they are.
    pub(super) async fn show_own(&mut self) -> Result<(), Refusal> {
        if self.session.status() == Status::Failed {
            return Ok(());
        }
        let wanted = self
            .session
            .settings()
            .wanted()
            .cloned()
            .unwrap_or_default();
        let usual = self.usual();
        let (level, max_lag) = resolve(usual, Some(&wanted), None, true);
        let max_lag = max_lag.unwrap_or(usual.1);
        let key = wanted.causal_key.as_deref().unwrap_or_default();
        let token = match self.batch.shows_token {
            true => self.token().await?.to_string(),
            false => String::new(),
        };
        let values = [
            (Own::Consistency, level.name().to_owned()),
            (Own::MaxLag, show_duration(max_lag)),
            (Own::CausalKey, key.to_owned()),
            (Own::Token, token),
        ];
        let held = self.held.as_ref().map(|server| &server.state);
        self.session.show_own(&values, held);
        Ok(())
    }

    /// What the session has written and seen, if the samples that cover it are there: the one that was started
    /// after `shown`, too.
    pub(super) fn token_now(&self, shown: Option<Tick>) -> Option<Token> {
        let cluster = &self.cluster;
        let history = || (cluster.system(), cluster.clock.timeline());
        let (system, timeline) = history();
        let position = {
            let nodes = &cluster.topology().nodes;
            self.session.floors.position(&cluster.clock, nodes)
        };
        let is_of_it = timeline != 0 && (system, timeline) == history();
        let shown = match shown {
            Some(moment) => cluster.clock.after(moment)?.lsn,
            None => Lsn(0),
        };
        position.filter(|_| is_of_it).map(|lsn| Token {
            system,
            timeline,
            lsn: lsn.max(shown),
        })
    }

    /// The present moment, if the open transaction has been shown something: no floor has been raised for that yet,
    /// and all of it had been committed by now.
    pub(super) fn shown_by_now(&self) -> Option<Tick> {
        let did = self.session.did();
        (did.read || did.wrote).then(|| self.cluster.clock.now())
    }

    /// What the session has written and seen. Waits for the sample that covers it.
    async fn token(&self) -> Result<Token, Refusal> {
        let cluster = &self.cluster;
        let (began, shown) = (Instant::now(), self.shown_by_now());
        if self.is_ahead(None) {
            cluster.look_for_primary();
        }
        loop {
            let moved = cluster.moved.notified();
            if let Some(token) = self.token_now(shown) {
                return Ok(token);
            }
            cluster.want_sample(cluster.clock.now());
            cluster.hurry();
            let left = TOKEN_WAIT.saturating_sub(began.elapsed());
            if left.is_zero() {
                let cluster = cluster.name.clone();
                return Err(Refusal::NoToken { cluster });
            }
            let _ = timeout(left.min(HOLD_STEP), moved).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Wish;

    #[test]
    fn the_statement_counts_before_the_session() {
        let ms = Duration::from_millis;
        let usual = (Level::Session, ms(1000));
        let wish = |level, lag: Option<u64>| Wish {
            level,
            max_lag: lag.map(ms),
        };
        let resolve = |session: Wish, hinted: Wish, has_unhinted| {
            let wanted = Wanted {
                wish: session,
                causal_key: None,
            };
            let hints = Hints {
                wish: hinted,
                node: None,
            };
            super::resolve(usual, Some(&wanted), Some(&hints), has_unhinted)
        };
        let none = Wish::NONE;
        assert_eq!(resolve(none, none, true), (Level::Session, None));
        let bounded = wish(Some(Level::Bounded), None);
        let one = (Level::Bounded, Some(ms(1000)));
        assert_eq!(resolve(bounded, none, true), one);
        assert_eq!(resolve(none, bounded, false), one);
        let lag = wish(None, Some(5));
        assert_eq!(resolve(none, lag, false), (Level::Session, Some(ms(5))));
        assert_eq!(resolve(lag, bounded, false), (Level::Bounded, Some(ms(5))));
        let more = wish(None, Some(9));
        assert_eq!(resolve(lag, more, false), (Level::Session, Some(ms(9))));
        assert_eq!(resolve(lag, more, true), (Level::Session, Some(ms(5))));
        let weak = wish(Some(Level::Eventual), None);
        assert_eq!(resolve(none, weak, false), (Level::Eventual, None));
        assert_eq!(
            resolve(none, weak, true),
            (Level::Session, None),
            "some statement did not ask for that"
        );
    }
}
