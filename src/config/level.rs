//! Owns: the types of what the configuration says of consistency, and what it comes to for one
//! session. Never: knows what a session or a statement asks for itself.

use std::time::Duration;

use super::{Cluster, Config, Secret};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consistency {
    pub level: Level,
    /// The lag that [`Level::Bounded`] allows.
    pub max_lag: Duration,
    /// How often LSNs are sampled while somebody waits for them.
    pub poll_interval: Duration,
    /// The longest that a read waits for a replica that is nearly there; 0 never waits.
    pub gate_wait: Duration,
    pub on_no_replica: OnNoReplica,
    /// How long [`OnNoReplica::Wait`] waits before it turns to the primary.
    pub wait_timeout: Duration,
    /// Whether what the primary has shown a session must be on a replica before the session reads
    /// there. Without it reads can go back in time; it is there to show that.
    pub primary_reads_raise_floor: bool,
    /// With distinct databases and users.
    pub overrides: Vec<Override>,
    /// Where causal keys are shared with other proxies; `None` shares them with none.
    pub redis: Option<Redis>,
}

impl Default for Consistency {
    fn default() -> Consistency {
        Consistency {
            level: Level::Session,
            max_lag: Duration::from_secs(1),
            poll_interval: Duration::from_millis(2),
            gate_wait: Duration::from_millis(10),
            on_no_replica: OnNoReplica::Primary,
            wait_timeout: Duration::from_secs(1),
            primary_reads_raise_floor: true,
            overrides: Vec::new(),
            redis: None,
        }
    }
}

/// A Redis or Valkey server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// May have a password in it.
    pub url: Secret,
    /// The longest that a read waits for it, before it goes to the primary.
    pub timeout: Duration,
    /// What the names of all keys begin with.
    pub prefix: String,
    /// How long what a key's sessions must see is kept. More than the lag that a replica may have.
    pub keep: Duration,
}

impl Redis {
    pub const TIMEOUT: Duration = Duration::from_millis(20);
    pub const PREFIX: &str = "tidegate:";
    pub const KEEP: Duration = Duration::from_secs(3600);
}

/// What a read must have seen, from the least to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Nothing in particular.
    Eventual,
    /// Everything up to so long ago.
    Bounded,
    /// The session's own writes, and whatever it has read before.
    #[default]
    Session,
    /// That, and every write that was acknowledged through this proxy to anybody.
    Global,
    /// Everything.
    Primary,
}

impl Level {
    pub const ALL: [(&str, Level); 5] = [
        ("eventual", Level::Eventual),
        ("bounded", Level::Bounded),
        ("session", Level::Session),
        ("global", Level::Global),
        ("primary", Level::Primary),
    ];

    pub fn name(self) -> &'static str {
        let named = Level::ALL.iter().find(|(_, level)| *level == self);
        named.map_or("", |(name, _)| name)
    }

    /// The level of this name, in whatever case.
    pub fn named(name: &str) -> Option<Level> {
        let named = |(known, _): &&(&str, Level)| known.eq_ignore_ascii_case(name);
        Level::ALL.iter().find(named).map(|(_, level)| *level)
    }
}

/// What is said of some sessions' or statements' reads; what is not said is as for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wish {
    pub level: Option<Level>,
    pub max_lag: Option<Duration>,
}

impl Wish {
    pub const NONE: Wish = Wish {
        level: None,
        max_lag: None,
    };

    /// This, and where it says nothing, `other`.
    pub fn or(self, other: Wish) -> Wish {
        Wish {
            level: self.level.or(other.level),
            max_lag: self.max_lag.or(other.max_lag),
        }
    }
}

/// What is said of the sessions of a database, a user, or a user in a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// At least one of the two is there.
    pub database: Option<String>,
    pub user: Option<String>,
    /// It says something.
    pub wish: Wish,
}

/// What a read does while no replica is fresh enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnNoReplica {
    #[default]
    Primary,
    Wait,
    Error,
}

impl Config {
    /// The level and the lag that `bounded` allows, of a session that does not ask for others. What is
    /// said of its user in its database comes first, then what of its user, of its database, of its
    /// cluster, and of all.
    pub fn consistency_of(&self, cluster: &str, database: &str, user: &str) -> (Level, Duration) {
        let closest = [
            (Some(database), Some(user)),
            (None, Some(user)),
            (Some(database), None),
        ];
        let mut wish = Wish::NONE;
        for whose in closest {
            let named = |o: &&Override| (o.database.as_deref(), o.user.as_deref()) == whose;
            let said = self.consistency.overrides.iter().find(named);
            wish = wish.or(said.map_or(Wish::NONE, |o| o.wish));
        }
        let named = |c: &&Cluster| c.name == cluster;
        let of_cluster = self.clusters.iter().find(named);
        wish = wish.or(of_cluster.map_or(Wish::NONE, |c| c.consistency));
        (
            wish.level.unwrap_or(self.consistency.level),
            wish.max_lag.unwrap_or(self.consistency.max_lag),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_names() {
        for (name, level) in Level::ALL {
            assert_eq!(level.name(), name);
            assert_eq!(Level::named(&name.to_uppercase()), Some(level));
        }
        assert_eq!(Level::named("strong"), None);
    }

    #[test]
    fn the_closest_word_counts() {
        let text = "
            [consistency]
            level = 'eventual'
            max_lag = '1s'
            [[consistency.override]]
            database = 'd'
            level = 'global'
            max_lag = '2s'
            [[consistency.override]]
            user = 'u'
            level = 'bounded'
            [[consistency.override]]
            database = 'd'
            user = 'u'
            max_lag = '3s'
            [[cluster]]
            name = 'm'
            consistency = { level = 'session' }
            node = [{ address = 'h:1' }]
            [[cluster]]
            name = 'n'
            databases = ['n']
            node = [{ address = 'h:2' }]";
        let config = Config::parse(text, "t").unwrap();
        for (cluster, database, user, level, seconds) in [
            ("n", "x", "x", Level::Eventual, 1),
            ("m", "x", "x", Level::Session, 1),
            ("m", "d", "x", Level::Global, 2),
            ("m", "x", "u", Level::Bounded, 1),
            ("m", "d", "u", Level::Bounded, 3),
        ] {
            let expected = (level, Duration::from_secs(seconds));
            let found = config.consistency_of(cluster, database, user);
            assert_eq!(found, expected, "{cluster} {database} {user}");
        }
    }
}
