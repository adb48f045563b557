//! What changed between two configs, by identity: a cluster is its name, a node its name and address.
//! Never decides what to do about a change, except to say which ones wait for a restart.

use std::fmt;

use super::{Cluster, Config, Node, User};

/// What a reload has to apply. Empty if the configs are equal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// Names of clusters.
    pub clusters_added: Vec<String>,
    pub clusters_removed: Vec<String>,
    pub clusters_changed: Vec<ClusterDiff>,
    /// Names of users; a changed one has another password or verifier.
    pub users_added: Vec<String>,
    pub users_removed: Vec<String>,
    pub users_changed: Vec<String>,
    pub tunables: Tunables,
    /// What only applies after a restart, by the names in the file.
    pub needs_restart: Vec<&'static str>,
}

/// Changes within a cluster that is in both configs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterDiff {
    pub name: String,
    /// A node that changes its name or address is removed and added: the address may lead to another
    /// PostgreSQL, of which nothing is known. So apply removals first.
    pub nodes_removed: Vec<Node>,
    pub nodes_added: Vec<Node>,
    /// The new form of nodes with another weight or zone.
    pub nodes_changed: Vec<Node>,
    pub databases: bool,
    /// As whom its nodes are probed, whatever says so.
    pub monitor: bool,
    /// What its sessions get.
    pub consistency: bool,
    /// How TLS is used; new connections use it so.
    pub tls: bool,
}

/// Sections with a changed value that a reload can apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tunables {
    /// `listen` but for its addresses and workers.
    pub listen: bool,
    pub auth_method: bool,
    /// How users are looked up.
    pub auth_query: bool,
    pub console: bool,
    pub pool: bool,
    pub routing: bool,
    pub consistency: bool,
    pub lag: bool,
    pub health: bool,
    pub failover: bool,
    pub slow_query: bool,
}

pub fn diff(old: &Config, new: &Config) -> Diff {
    let name = |cluster: &Cluster| cluster.name.clone();
    let user_name = |user: &User| user.name.clone();
    let clusters = compare(&old.clusters, &new.clusters, |a, b| a.name == b.name);
    let users = compare(&old.auth.users, &new.auth.users, |a, b| a.name == b.name);
    let restarts = [
        ("listen.address", old.listen.address != new.listen.address),
        (
            "listen.unix_socket_dir",
            old.listen.unix_socket_dir != new.listen.unix_socket_dir,
        ),
        (
            "listen.reuse_port",
            old.listen.reuse_port != new.listen.reuse_port,
        ),
        ("listen.workers", old.listen.workers != new.listen.workers),
        (
            "listen.workers_min",
            old.listen.workers_min != new.listen.workers_min,
        ),
        ("http.address", old.http.address != new.http.address),
        ("log.format", old.log.format != new.log.format),
        ("log.level", old.log.level != new.log.level),
    ];
    Diff {
        clusters_added: clusters.added.into_iter().map(name).collect(),
        clusters_removed: clusters.removed.into_iter().map(name).collect(),
        clusters_changed: (new.clusters.iter())
            .filter_map(|cluster| {
                let known = old.clusters.iter().find(|old| old.name == cluster.name)?;
                let monitor = old.monitor(&cluster.name) != new.monitor(&cluster.name);
                Some(cluster_diff(known, cluster, monitor))
            })
            .filter(|diff| !diff.is_empty())
            .collect(),
        users_added: users.added.into_iter().map(user_name).collect(),
        users_removed: users.removed.into_iter().map(user_name).collect(),
        users_changed: users
            .changed
            .into_iter()
            .map(|(_, user)| user_name(user))
            .collect(),
        tunables: tunables(old, new),
        needs_restart: (restarts.into_iter())
            .filter_map(|(section, changed)| changed.then_some(section))
            .collect(),
    }
}

/// Takes from `running`, the configuration that is in force, what a reload cannot change. So the next reload
/// is compared with what is in force, and says again what still waits for a restart.
pub fn keep_until_restart(new: &mut Config, running: &Config) {
    let (listen, log) = (&running.listen, &running.log);
    new.listen.address.clone_from(&listen.address);
    new.listen
        .unix_socket_dir
        .clone_from(&listen.unix_socket_dir);
    new.listen.reuse_port = listen.reuse_port;
    new.listen.workers = listen.workers;
    new.listen.workers_min = listen.workers_min;
    new.http.address = running.http.address;
    new.log.format = log.format;
    new.log.level.clone_from(&log.level);
}

impl Diff {
    pub fn is_empty(&self) -> bool {
        *self == Diff::default()
    }
}

/// One line for the log: `no change`, or what changed, with a comma between.
impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut changes: Vec<String> = Vec::new();
        let mut note = |what: &str, names: &[String]| {
            changes.extend(names.iter().map(|name| format!("{what} {name}")));
        };
        note("cluster added:", &self.clusters_added);
        note("cluster removed:", &self.clusters_removed);
        for cluster in &self.clusters_changed {
            let names = |nodes: &[Node]| -> Vec<String> {
                nodes
                    .iter()
                    .map(|node| format!("{}/{}", cluster.name, node.name))
                    .collect()
            };
            note("node removed:", &names(&cluster.nodes_removed));
            note("node added:", &names(&cluster.nodes_added));
            note("node changed:", &names(&cluster.nodes_changed));
            for (what, changed) in [
                ("databases", cluster.databases),
                ("monitor", cluster.monitor),
                ("consistency", cluster.consistency),
                ("TLS", cluster.tls),
            ] {
                if changed {
                    note("cluster changed:", &[format!("{} ({what})", cluster.name)]);
                }
            }
        }
        note("user added:", &self.users_added);
        note("user removed:", &self.users_removed);
        note("user changed:", &self.users_changed);
        note(
            "changed:",
            &self.tunables.names().map(str::to_owned).collect::<Vec<_>>(),
        );
        for section in &self.needs_restart {
            note("needs a restart:", &[(*section).to_owned()]);
        }
        match changes.is_empty() {
            true => f.write_str("no change"),
            false => f.write_str(&changes.join(", ")),
        }
    }
}

impl Tunables {
    /// The changed sections, by their names in the file.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let sections = [
            ("listen", self.listen),
            ("auth.method", self.auth_method),
            ("auth.query", self.auth_query),
            ("console", self.console),
            ("pool", self.pool),
            ("routing", self.routing),
            ("consistency", self.consistency),
            ("lag", self.lag),
            ("health", self.health),
            ("failover", self.failover),
            ("log.slow_query", self.slow_query),
        ];
        sections
            .into_iter()
            .filter_map(|(name, changed)| changed.then_some(name))
    }
}

impl ClusterDiff {
    /// Whether the clusters have nothing but their name in common to tell.
    fn is_empty(&self) -> bool {
        *self
            == ClusterDiff {
                name: self.name.clone(),
                ..ClusterDiff::default()
            }
    }
}

fn cluster_diff(old: &Cluster, new: &Cluster, monitor: bool) -> ClusterDiff {
    let same = |a: &Node, b: &Node| (&a.name, &a.host, a.port) == (&b.name, &b.host, b.port);
    let nodes = compare(&old.nodes, &new.nodes, same);
    ClusterDiff {
        name: new.name.clone(),
        nodes_removed: nodes.removed.into_iter().cloned().collect(),
        nodes_added: nodes.added.into_iter().cloned().collect(),
        nodes_changed: nodes
            .changed
            .into_iter()
            .map(|(_, node)| node.clone())
            .collect(),
        databases: old.databases != new.databases,
        monitor,
        consistency: old.consistency != new.consistency,
        tls: old.tls != new.tls,
    }
}

fn tunables(old: &Config, new: &Config) -> Tunables {
    let listen = |config: &Config| {
        let listen = &config.listen;
        (
            listen.tls.clone(),
            listen.max_clients,
            listen.login_timeout,
            listen.shutdown_grace,
            listen.shutdown_timeout,
        )
    };
    Tunables {
        listen: listen(old) != listen(new),
        auth_method: old.auth.method != new.auth.method,
        auth_query: old.auth.lookup != new.auth.lookup,
        console: old.console != new.console,
        pool: old.pool != new.pool,
        routing: old.routing != new.routing,
        consistency: old.consistency != new.consistency,
        lag: old.lag != new.lag,
        health: old.health != new.health,
        failover: old.failover != new.failover,
        slow_query: old.log.slow_query != new.log.slow_query,
    }
}

struct Compared<'a, T> {
    added: Vec<&'a T>,
    removed: Vec<&'a T>,
    /// Old and new form of what is the same thing and not equal.
    changed: Vec<(&'a T, &'a T)>,
}

/// Order does not matter; lists are short and reloads rare, so every pair may be compared.
fn compare<'a, T: PartialEq>(
    old: &'a [T],
    new: &'a [T],
    same: impl Fn(&T, &T) -> bool,
) -> Compared<'a, T> {
    let mut compared = Compared {
        added: Vec::new(),
        removed: Vec::new(),
        changed: Vec::new(),
    };
    for new in new {
        match old.iter().find(|old| same(old, new)) {
            None => compared.added.push(new),
            Some(old) if old != new => compared.changed.push((old, new)),
            Some(_) => {}
        }
    }
    compared.removed = old
        .iter()
        .filter(|old| !new.iter().any(|new| same(old, new)))
        .collect();
    compared
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"
        [listen]
        address = "127.0.0.1:1"
        [pool]
        size = 5
        [auth]
        user = [{ name = "kept", password = "x" }, { name = "gone", password = "x" }, { name = "new-password", password = "x" }]
        [[cluster]]
        name = "main"
        databases = ["a"]
        node = [
            { address = "h:1" },
            { address = "h:2", weight = 1 },
            { address = "h:3", zone = "a" },
            { address = "h:4", name = "moves" },
        ]
        [[cluster]]
        name = "other"
        node = [{ address = "h:1" }]
    "#;

    fn config(text: &str) -> Config {
        Config::parse(text, "t").unwrap_or_else(|error| panic!("{error}"))
    }

    /// The diff, shown, after each replacement of a piece of [`OLD`].
    #[track_caller]
    fn check(replacements: &[(&str, &str)], expected: &str) {
        let new = replacements
            .iter()
            .fold(OLD.to_owned(), |text, (from, to)| {
                assert!(text.contains(from), "{from}");
                text.replace(from, to)
            });
        let diff = diff(&config(OLD), &config(&new));
        assert_eq!(diff.to_string(), expected);
        assert_eq!(diff.is_empty(), expected == "no change");
    }

    #[test]
    fn nothing() {
        check(&[], "no change");
        // Spelling and order are not changes.
        check(
            &[("size = 5", "size = 0x5\ncheckout_timeout = \"5000ms\"")],
            "no change",
        );
        check(
            &[
                (r#"{ address = "h:1" },"#, ""),
                (
                    r#"name = "moves" },"#,
                    r#"name = "moves" }, { address = "h:1" }"#,
                ),
            ],
            "no change",
        );
    }

    #[test]
    fn nodes() {
        check(
            &[(r#"{ address = "h:1" },"#, r#"{ address = "h:9" },"#)],
            "node removed: main/h:1, node added: main/h:9",
        );
        check(
            &[
                ("weight = 1", "weight = 2"),
                (r#"zone = "a""#, r#"zone = "b""#),
            ],
            "node changed: main/h:2, node changed: main/h:3",
        );
        check(
            &[("h:4", "h:5")],
            "node removed: main/moves, node added: main/moves",
        );
        check(
            &[("moves", "stays")],
            "node removed: main/moves, node added: main/stays",
        );
    }

    #[test]
    fn a_changed_node_has_its_new_form() {
        let new = config(&OLD.replace("weight = 1", "weight = 7"));
        let diff = diff(&config(OLD), &new);
        assert_eq!(
            diff.clusters_changed[0].nodes_changed,
            [new.clusters[0].nodes[1].clone()]
        );
    }

    #[test]
    fn clusters() {
        check(
            &[(r#"name = "other""#, r#"name = "third""#)],
            "cluster added: third, cluster removed: other",
        );
        check(
            &[
                (r#"databases = ["a"]"#, r#"monitor = { user = "m" }"#),
                (r#"name = "other""#, "name = \"other\"\ndatabases = [\"b\"]"),
            ],
            "cluster changed: main (databases), cluster changed: main (monitor), cluster changed: other (databases)",
        );
        check(
            &[(
                r#"databases = ["a"]"#,
                "databases = [\"a\"]\nconsistency = { level = 'global' }",
            )],
            "cluster changed: main (consistency)",
        );
    }

    #[test]
    fn tls() {
        check(
            &[
                (
                    r#"databases = ["a"]"#,
                    "databases = [\"a\"]\nsslmode = \"require\"",
                ),
                (
                    "[listen]",
                    "[listen]\ntls = { cert = 'c', key = 'k' }\nunix_socket_dir = '/x'",
                ),
            ],
            "cluster changed: main (TLS), changed: listen, needs a restart: listen.unix_socket_dir",
        );
    }

    #[test]
    fn users() {
        check(
            &[
                ("gone", "come"),
                (
                    r#"new-password", password = "x""#,
                    r#"new-password", password = "y""#,
                ),
            ],
            "user added: come, user removed: gone, user changed: new-password",
        );
        // Nodes are probed as the first one where nothing else is said.
        check(
            &[(
                "{ name = \"kept\", password = \"x\" }, { name = \"gone\", password = \"x\" }",
                "{ name = \"gone\", password = \"x\" }, { name = \"kept\", password = \"x\" }",
            )],
            "cluster changed: main (monitor), cluster changed: other (monitor)",
        );
    }

    #[test]
    fn what_waits_for_a_restart_waits_on() {
        let running = config(OLD);
        let restarts = "127.0.0.1:2\"\nworkers = 3\nworkers_min = 3\nunix_socket_dir = '/x'\n\
                        [http]\naddress = ''\n[log]\nformat = 'json'\nlevel = 'debug'";
        let mut wanted = config(
            &OLD.replace("127.0.0.1:1\"", restarts)
                .replace("size = 5", "size = 6"),
        );
        wanted.listen.reuse_port = true;
        let mut in_force = wanted.clone();
        keep_until_restart(&mut in_force, &running);
        assert_eq!(diff(&running, &in_force).to_string(), "changed: pool");
        // Reading the same file again tells the same.
        let again = diff(&in_force, &wanted);
        assert_eq!(
            again.needs_restart,
            diff(&running, &wanted).needs_restart,
            "{again}"
        );
        assert_eq!(
            (again.needs_restart.len(), again.tunables),
            (8, Tunables::default())
        );
    }

    #[test]
    fn tunables_and_restarts() {
        check(
            &[(
                "[pool]\n        size = 5",
                "max_clients = 7\n[lag]\nmax_bytes = '1MB'\n[failover]\nhold = '0'",
            )],
            "changed: listen, changed: pool, changed: lag, changed: failover",
        );
        check(
            &[(
                "size = 5",
                "size = 5\n[routing]\nread_primary = 'never'\n[consistency]\nlevel = 'primary'\n[health]\nfailures = 9",
            )],
            "changed: routing, changed: consistency, changed: health",
        );
        check(
            &[(
                "size = 5",
                "size = 5\n[[consistency.override]]\nuser = 'u'\nlevel = 'eventual'",
            )],
            "changed: consistency",
        );
        check(
            &[("[auth]", "[auth]\nmethod = 'md5'")],
            "changed: auth.method",
        );
        check(
            &[("[auth]", "[auth]\nquery_user = 'q'")],
            "changed: auth.query",
        );
        check(
            &[("[auth]", "[console]\nadmins = ['kept']\n[auth]")],
            "changed: console",
        );
        check(
            &[(
                "127.0.0.1:1\"",
                "127.0.0.1:2\"\nworkers = 3\nworkers_min = 3\n[http]\naddress = ''\n[log]\nformat = 'json'\nslow_query = '1s'",
            )],
            "changed: log.slow_query, needs a restart: listen.address, needs a restart: listen.workers, \
             needs a restart: listen.workers_min, needs a restart: http.address, needs a restart: log.format",
        );
    }
}
