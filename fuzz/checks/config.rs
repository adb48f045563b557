//! The configuration's text.

use tidegate::config::{Config, diff};

pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    match Config::parse(text, "some.toml") {
        Ok(config) => {
            assert!(diff(&config, &config).is_empty());
            assert_eq!(Config::parse(text, "other.toml").ok(), Some(config.clone()));
            assert!(!config.listen.address.is_empty() && !config.clusters.is_empty());
            for cluster in &config.clusters {
                assert!(!cluster.nodes.is_empty());
            }
            let changed = diff(&Config::default(), &config);
            assert_eq!(changed.is_empty(), config == Config::default());
            for warning in config.warnings() {
                assert!(!warning.is_empty());
            }
            // What is logged of it must not give away passwords.
            let shown = format!("{config:?}");
            for user in &config.auth.users {
                if let Some(password) = &user.password {
                    let password = password.expose();
                    assert!(password.len() < 12 || !shown.contains(password));
                }
            }
        }
        Err(error) => {
            let shown = error.to_string();
            assert!(shown.contains("some.toml"), "{shown}");
        }
    }
}
