//! Owns: what is made of a node whose probe fails: whether it is down, what the log says of it, and when it is asked
//! again. Never: takes a server for down that has only refused its monitor.

use std::time::Duration;

use tokio::time::sleep;

use super::{ProbeError, RETRY};
use crate::cluster::Cluster;
use crate::cluster::node::Node;
use crate::config::Health;

/// The first pause before a node without a free connection is asked again: one that has been closed for it is mostly
/// gone by then.
const ROOM: Duration = Duration::from_millis(20);

/// The longest pause before a node is asked again that answers, and always the same.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How a node's probe has failed of late.
#[derive(Default)]
pub struct Trouble {
    /// So often in a row it has not been served by a server that serves anybody.
    failures: u32,
    /// So often in a row it has been refused by one that does.
    refusals: u32,
    /// What the node answers to anybody, if it answers.
    last: Answer,
    told: Told,
}

/// What the log has last said of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Nothing,
    Down,
    Refused,
    OtherSystem,
}

/// What a node has said to its probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answer {
    #[default]
    None,
    /// That it serves nobody now.
    Away,
    /// That it has no connection left.
    Full,
    /// That it does not serve the monitor, or nothing that the monitor understands.
    Refused,
}

impl Trouble {
    /// The node has told where it is.
    pub fn end(&mut self, cluster: &Cluster, node: &Node) {
        if self.told == Told::Refused {
            tracing::info!(cluster = %cluster.name, node = %node.name, "node serves its monitor again");
        }
        *self = Trouble::default();
    }

    /// It has not. One that lives, and only refuses its monitor, stays what it was: servers that are opened are
    /// asked in which life they are, so nobody takes one of another for it.
    pub fn note(&mut self, cluster: &Cluster, node: &Node, health: &Health, error: &ProbeError) {
        self.last = answer(error);
        match error.lives() {
            true => (self.failures, self.refusals) = (0, self.refusals.saturating_add(1)),
            false => (self.failures, self.refusals) = (self.failures.saturating_add(1), 0),
        }
        if let ProbeError::Connect(error) = error
            && error.is_full()
        {
            let monitor = cluster.topology().config.monitor(&cluster.name);
            node.make_room(error, &monitor);
        }
        let (cluster, name) = (&cluster.name, &node.name);
        if matches!(error, ProbeError::OtherSystem { .. }) {
            // At once: whoever goes there now goes to another database.
            node.set_up(false);
            if std::mem::replace(&mut self.told, Told::OtherSystem) != Told::OtherSystem {
                tracing::error!(%cluster, node = %name, %error, "node gets nothing");
            }
        } else if self.failures.max(self.refusals) < health.failures {
            tracing::info!(%cluster, node = %name, %error, "probe failed");
        } else if self.refusals > 0 {
            if std::mem::replace(&mut self.told, Told::Refused) != Told::Refused {
                let advice = error.advice();
                tracing::error!(%cluster, node = %name, %error, "node refuses its monitor, so where it is and what becomes of it is not known: {advice}");
            }
        } else {
            // Each time: another node's probe may have it up that has looked before this was lost.
            node.set_up(false);
            if std::mem::replace(&mut self.told, Told::Down) != Told::Down {
                tracing::warn!(%cluster, node = %name, %error, "node is down");
            }
        }
    }

    /// Waits until the node is to be asked again.
    pub async fn rest(&self, cluster: &Cluster, node: &Node, health: &Health) {
        // Made before the look, so that no change after it is missed.
        let changed = cluster.changed.notified();
        let is_sought = cluster.topology().primary.is_none();
        let pause = self.pause(health, is_sought);
        let shortest = pause.min(RETRY);
        sleep(shortest).await;
        tokio::select! {
            () = sleep(pause - shortest) => {}
            // Traffic has met something, or the configuration is another one.
            () = node.wake.notified() => {}
            // There may be no primary any more.
            () = changed => {}
        }
    }

    /// The longer a server answers the same, the rarer it is asked; but not while any node may become the primary.
    fn pause(&self, health: &Health, is_sought: bool) -> Duration {
        let shortest = RETRY.min(health.interval);
        let doubled = |first: Duration, times: u32| {
            let pause = first.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX));
            pause.min(PAUSE_MAX)
        };
        match self.last {
            Answer::Full => {
                let pause = doubled(ROOM, self.refusals.saturating_sub(1));
                if is_sought {
                    pause.min(shortest)
                } else {
                    pause
                }
            }
            Answer::None => shortest,
            _ if is_sought => shortest,
            Answer::Away => doubled(shortest, self.failures.saturating_sub(health.failures)),
            Answer::Refused => doubled(shortest, self.refusals.saturating_sub(1)),
        }
    }
}

fn answer(error: &ProbeError) -> Answer {
    match error {
        ProbeError::Connect(error) if error.is_full() => Answer::Full,
        ProbeError::Connect(error) if error.sqlstate().is_some() && error.is_node_away() => {
            Answer::Away
        }
        ProbeError::OtherSystem { .. } => Answer::Away,
        error if error.lives() => Answer::Refused,
        _ => Answer::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_the_same_is_asked_ever_more_rarely() {
        let health = Health {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            failures: 3,
        };
        let check = |last, (failures, refusals), is_sought, ms| {
            let trouble = Trouble {
                failures,
                refusals,
                last,
                told: Told::Nothing,
            };
            let pause = trouble.pause(&health, is_sought);
            assert_eq!(
                pause,
                Duration::from_millis(ms),
                "{last:?} {failures} {refusals}"
            );
        };
        check(Answer::None, (1000, 0), false, 250);
        check(Answer::Away, (3, 0), false, 250);
        check(Answer::Away, (5, 0), false, 1000);
        check(Answer::Away, (1000, 0), false, 5000);
        check(Answer::Away, (1000, 0), true, 250);
        check(Answer::Refused, (0, 1), false, 250);
        check(Answer::Refused, (0, 3), false, 1000);
        check(Answer::Refused, (0, 1000), false, 5000);
        check(Answer::Refused, (0, 1000), true, 250);
        check(Answer::Full, (0, 1), false, 20);
        check(Answer::Full, (0, 3), true, 80);
        check(Answer::Full, (0, 1000), true, 250);
        check(Answer::Full, (0, 1000), false, 5000);
    }
}
