//! Owns: what is said of a configuration that is valid, and most likely not what was meant. Never: refuses one.

use super::{AuthMethod, Config, NodeTls, Routing, SslMode};

impl Config {
    /// What is allowed, and most likely not meant: one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.auth.users.is_empty() && self.auth.lookup.is_none() {
            let message =
                "neither an [[auth.user]] nor auth.query_user is configured, so nobody can log in";
            warnings.push(message.to_owned());
        }
        let open = self
            .listen
            .address
            .iter()
            .find(|address| !address.ip().is_loopback());
        if let (AuthMethod::Trust, Some(address)) = (self.auth.method, open) {
            warnings.push(format!(
                r#"auth.method = "trust" lets anyone who can reach {address} log in without a password"#
            ));
        }
        if self.auth.method == AuthMethod::Trust && !self.console.admins.is_empty() {
            warnings.push(
                r#"auth.method = "trust" lets anyone who can connect be an admin of the console"#
                    .to_owned(),
            );
        }
        if self.auth.method == AuthMethod::Cert && self.listen.unix_socket_dir.is_some() {
            warnings.push(
                r#"auth.method = "cert" lets nobody in through listen.unix_socket_dir, where there is no TLS to show a certificate by"#
                    .to_owned(),
            );
        }
        warnings.extend(self.routing.warnings());
        for cluster in &self.clusters {
            let NodeTls {
                mode,
                root_cert,
                cert,
                ..
            } = &cluster.tls;
            if root_cert.is_some() && *mode < SslMode::Require {
                warnings.push(format!(
                    r#"cluster "{}": a node whose certificate is not from sslrootcert is spoken to without TLS; sslmode = "verify-ca" or "verify-full" would refuse it"#,
                    cluster.name
                ));
            }
            let monitor = self.monitor(&cluster.name);
            if cluster.monitor.is_none() && monitor.password.is_none() && cert.is_none() {
                warnings.push(format!(
                    r#"cluster "{}" has no monitor, so its nodes are probed as "{}", whose password is not known here; unless they ask for none, give it a monitor = {{ user = "…", password = "…" }}"#,
                    cluster.name, monitor.user
                ));
            }
        }
        warnings
    }
}

impl Routing {
    /// Of patterns that match less than they seem to.
    fn warnings(&self) -> impl Iterator<Item = String> {
        let lists = [
            ("safe_functions", &self.safe_functions),
            ("unsafe_functions", &self.unsafe_functions),
        ];
        let all = lists
            .into_iter()
            .flat_map(|(key, patterns)| patterns.iter().map(move |pattern| (key, pattern)));
        let has_capitals =
            |(_, pattern): &(&str, &String)| pattern.contains(|c: char| c.is_ascii_uppercase());
        all.filter(has_capitals).map(|(key, pattern)| {
            let folded = pattern.to_ascii_lowercase();
            format!(
                r#"routing.{key}: "{pattern}" matches names in double quotes only, as PostgreSQL folds others to lower case; for those write "{folded}""#
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::User;

    #[test]
    fn warns_of_what_is_most_likely_not_meant() {
        let mut config = Config::default();
        assert_eq!(
            config.warnings(),
            ["neither an [[auth.user]] nor auth.query_user is configured, so nobody can log in"]
        );
        let (name, password, verifier) = ("a".to_owned(), None, None);
        config.auth.users.push(User {
            name,
            password,
            verifier,
        });
        config.auth.method = AuthMethod::Trust;
        assert!(config.warnings().is_empty());
        config.listen.address = vec!["0.0.0.0:6432".parse().unwrap()];
        assert_eq!(
            config.warnings(),
            [
                r#"auth.method = "trust" lets anyone who can reach 0.0.0.0:6432 log in without a password"#
            ]
        );
    }

    #[test]
    fn warns_of_tls_that_is_not_what_it_seems() {
        let text = "auth.method = 'cert'\nauth.user = [{ name = 'a' }]\n\
                    [listen]\nunix_socket_dir = '/x'\n\
                    tls = { mode = 'require', cert = 'c', key = 'k', client_ca = 'a' }\n\
                    [[cluster]]\nname = 'm'\nsslrootcert = 'r'\nmonitor = { user = 'm' }\n\
                    node = [{ address = 'h:1' }]\n";
        let warnings = Config::parse(text, "t").unwrap().warnings();
        let [socket, cluster] = &warnings[..] else {
            panic!("{warnings:?}")
        };
        assert!(socket.contains("lets nobody in through listen.unix_socket_dir"));
        assert!(cluster.starts_with(r#"cluster "m": a node whose certificate is not from"#));
        let strict = text.replace("sslrootcert", "sslmode = 'require'\nsslrootcert");
        assert_eq!(Config::parse(&strict, "t").unwrap().warnings().len(), 1);
    }

    #[test]
    fn warns_of_patterns_with_capitals() {
        let routing = |text: &str| {
            let text = format!(
                "[routing]\n{text}\n[[auth.user]]\nname = 'a'\npassword = 'x'\n\
                 [[cluster]]\nname = 'm'\nnode = [{{ address = 'h:1' }}]\n"
            );
            Config::parse(&text, "t").unwrap().warnings()
        };
        assert!(routing("safe_functions = ['app.my_*']").is_empty());
        assert_eq!(
            routing("safe_functions = ['f']\nunsafe_functions = ['g', 'My_*']"),
            [
                r#"routing.unsafe_functions: "My_*" matches names in double quotes only, as PostgreSQL folds others to lower case; for those write "my_*""#
            ]
        );
    }

    #[test]
    fn warns_of_a_monitor_that_cannot_log_in() {
        let check = |auth: &str, cluster: &str, expected: Option<&str>| {
            let node = "node = [{ address = 'h:1' }]";
            let text = format!("{auth}\n[[cluster]]\nname = 'm'\n{cluster}\n{node}\n");
            let warnings = Config::parse(&text, "t").unwrap().warnings();
            let probed = warnings.iter().find(|text| text.contains("probed as"));
            let is_as_expected = match (probed, expected) {
                (Some(text), Some(user)) => text.contains(&format!("probed as \"{user}\"")),
                (text, user) => text.is_none() && user.is_none(),
            };
            assert!(is_as_expected, "{auth} {cluster}: {warnings:?}");
        };
        let key = "A".repeat(43) + "=";
        let text = format!("SCRAM-SHA-256$1:c2FsdA==${key}:{key}");
        let verifier = &format!("auth.user = [{{ name = 'a', verifier = '{text}' }}]");
        check("", "", Some("tidegate"));
        check(verifier, "", Some("a"));
        check("auth.query_user = 'q'", "", Some("q"));
        check(verifier, "monitor = { user = 'm' }", None);
        check(verifier, "sslcert = 'c'\nsslkey = 'k'", None);
        check("auth.user = [{ name = 'a', password = 'x' }]", "", None);
        check(
            "auth = { query_user = 'q', query_password = 'x' }",
            "",
            None,
        );
    }
}
