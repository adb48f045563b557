//! The settings of the proxy's own, `tidegate.…`, which servers hold for a session like any other that
//! an application makes up.
//!
//! Owns: their names, what values they take, and what those come to. Never: decides a route.

use std::fmt::Write;
use std::sync::Arc;

use super::token::{Token, TokenError};
use crate::config::{DURATION_FORM, Level, Wish};
use crate::sql::set_config::{Changes, Name};
use crate::sql::setting::{self, Assignment};
use crate::sql::{hint, lexer, set_config};

/// What all of their names begin with.
pub const PREFIX: &str = set_config::OWN_PREFIX;

/// The longest causal key, in bytes.
pub const CAUSAL_KEY_BYTES_MAX: usize = 256;

/// One of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// The level of the session's reads.
    Consistency,
    /// How far behind a replica may be that the session reads on.
    MaxLag,
    /// Whose writes, of other sessions too, the session's reads must have seen.
    CausalKey,
    /// What the session has written and seen.
    Token,
}

impl Own {
    pub const ALL: [(&str, Own); 4] = [
        ("tidegate.consistency", Own::Consistency),
        ("tidegate.max_lag", Own::MaxLag),
        ("tidegate.causal_key", Own::CausalKey),
        ("tidegate.token", Own::Token),
    ];

    pub fn name(self) -> &'static str {
        let named = Own::ALL.iter().find(|(_, own)| *own == self);
        named.map_or("", |(name, _)| name)
    }

    pub fn named(name: &str) -> Option<Own> {
        let named = Own::ALL.iter().find(|(known, _)| *known == name);
        named.map(|(_, own)| *own)
    }
}

/// Why the proxy refuses what a client says; the client is told in the form of a server's error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    pub sqlstate: &'static str,
    pub message: String,
    pub advice: String,
}

impl Complaint {
    fn value(own: Own, value: &str, advice: String) -> Complaint {
        let name = own.name();
        Complaint {
            sqlstate: "22023",
            message: format!("invalid value for parameter \"{name}\": \"{value}\""),
            advice,
        }
    }

    fn of_token(value: &str, error: &TokenError) -> Complaint {
        let mut complaint = Complaint::value(Own::Token, value, error.advice().to_owned());
        // Writing to a String can't fail.
        let _ = write!(complaint.message, ": {error}");
        complaint
    }

    pub fn hint(error: &hint::HintError) -> Complaint {
        Complaint {
            sqlstate: "22023",
            message: error.to_string(),
            advice: error.advice(),
        }
    }
}

/// What the settings of a session come to, where it has any of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub wish: Wish,
    pub causal_key: Option<Arc<str>>,
}

impl Wanted {
    /// By settings and the statements that make them so; `None` if none of them counts.
    pub fn of<'a>(settings: impl Iterator<Item = (&'a str, &'a [u8])>) -> Option<Arc<Wanted>> {
        let mut wanted = Wanted::default();
        let mut are_sound = true;
        for (name, statement) in settings {
            let Some(own) = Own::named(name) else {
                continue;
            };
            let value = value(statement).unwrap_or_default();
            are_sound &= match own {
                Own::Consistency => {
                    wanted.wish.level = Level::named(&value);
                    wanted.wish.level.is_some()
                }
                Own::MaxLag => {
                    wanted.wish.max_lag = hint::max_lag(&value);
                    wanted.wish.max_lag.is_some()
                }
                Own::CausalKey if value.len() > CAUSAL_KEY_BYTES_MAX => false,
                Own::CausalKey => {
                    wanted.causal_key = (!value.is_empty()).then(|| value.into());
                    true
                }
                Own::Token => true,
            };
        }
        // What was refused by no check, as a function has set it, is nothing weak.
        if !are_sound {
            wanted.wish.level = Some(Level::Primary);
        }
        (wanted != Wanted::default()).then(|| Arc::new(wanted))
    }
}

/// The value that a statement of one of these forms gives a setting: `SET a.b = 'value'`, or
/// `SELECT set_config('a.b', 'value', …)`.
pub fn value(statement: &[u8]) -> Option<String> {
    match setting::assignment(statement, true) {
        Some(assignment) => assignment.value,
        None => setting::value_of_set_config(statement),
    }
}

/// Whether it may be the causal key that these changes set, by name.
pub fn sets_key(changes: &Changes) -> bool {
    let is_key = |name: &Name| match name {
        Name::Literal(name) => Own::named(name) == Some(Own::CausalKey),
        Name::Parameter(_) => false,
    };
    changes.own.iter().any(|(name, _)| is_key(name))
}

/// Whether a text may be about one of the settings.
pub fn is_mentioned(sql: &[u8]) -> bool {
    lexer::contains(sql, PREFIX.trim_end_matches('.').as_bytes())
}

/// Looks at every SET and RESET of a text that is about one of the settings.
///
/// # Errors
/// The first one that must not be done. `system` is the identifier of the session's cluster.
pub fn check(sql: &[u8], conforming: bool, system: u64) -> Result<(), Complaint> {
    if !is_mentioned(sql) {
        return Ok(());
    }
    for at in lexer::statements(sql, conforming) {
        let statement = sql.get(at).unwrap_or(&[]);
        if let Some(assignment) = setting::assignment(statement, conforming)
            && assignment.name.starts_with(PREFIX)
        {
            check_assignment(&assignment, system)?;
        }
    }
    Ok(())
}

fn check_assignment(assignment: &Assignment<'_>, system: u64) -> Result<(), Complaint> {
    let name = &*assignment.name;
    match (&assignment.value, assignment.resets) {
        (_, true) => known(name).map(drop),
        (Some(value), _) => check_value(name, value, system),
        (None, _) => known(name).and_then(|own| {
            let advice = "Write the value as a plain string, 'like this'.".to_owned();
            Err(Complaint::value(own, "?", advice))
        }),
    }
}

fn known(name: &str) -> Result<Own, Complaint> {
    Own::named(name).ok_or_else(|| Complaint {
        sqlstate: "42704",
        message: format!("unrecognized configuration parameter \"{name}\""),
        advice: format!(
            "Tidegate's own are {}.",
            Own::ALL.map(|(name, _)| name).join(", ")
        ),
    })
}

/// Whether setting `name` may have this value.
///
/// # Errors
/// What is wrong with either.
pub fn check_value(name: &str, value: &str, system: u64) -> Result<(), Complaint> {
    let own = known(name)?;
    let complain = |advice: String| Err(Complaint::value(own, value, advice));
    match own {
        Own::Consistency if Level::named(value).is_none() => {
            let levels = Level::ALL.map(|(name, _)| name).join(", ");
            complain(format!("Available values: {levels}."))
        }
        Own::MaxLag if hint::max_lag(value).is_none() => {
            complain(format!("Write {DURATION_FORM}, and more than 0."))
        }
        Own::CausalKey if value.len() > CAUSAL_KEY_BYTES_MAX => complain(format!(
            "A key may have up to {CAUSAL_KEY_BYTES_MAX} bytes."
        )),
        Own::Token if !value.is_empty() => match Token::parse(value) {
            Err(error) => Err(Complaint::of_token(value, &error)),
            Ok(token) if token.system != system => {
                Err(Complaint::of_token(value, &TokenError::OtherSystem(system)))
            }
            Ok(_) => Ok(()),
        },
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SYSTEM: u64 = 7;

    #[test]
    fn values_are_checked() {
        for sql in [
            "SET tidegate.consistency = bounded",
            "set session Tidegate.\"consistency\" to 'GLOBAL'",
            "SELECT 1; SET LOCAL tidegate.max_lag = '200ms'",
            "RESET tidegate.token; SET tidegate.causal_key TO DEFAULT",
            "SET tidegate.causal_key = 'user:42'",
            "SET tidegate.token = 'tg1:7:1:0/1000'",
            "SET tidegate.token = ''",
            "SET other.setting = 'tidegate.x'",
            "SHOW tidegate.nonsense",
        ] {
            assert_eq!(check(sql.as_bytes(), true, SYSTEM), Ok(()), "{sql}");
        }
        for (sql, sqlstate, message) in [
            (
                "SET tidegate.consistency = strong",
                "22023",
                "invalid value for parameter \"tidegate.consistency\": \"strong\"",
            ),
            (
                "BEGIN; SET LOCAL tidegate.max_lag = 5",
                "22023",
                "invalid value for parameter \"tidegate.max_lag\": \"5\"",
            ),
            (
                "SET tidegate.max_lag = a, b",
                "22023",
                "invalid value for parameter \"tidegate.max_lag\": \"?\"",
            ),
            (
                "RESET tidegate.level",
                "42704",
                "unrecognized configuration parameter \"tidegate.level\"",
            ),
            (
                "SET tidegate.token = 'tg1:8:1:0/1000'",
                "22023",
                "invalid value for parameter \"tidegate.token\": \"tg1:8:1:0/1000\": \
                 it is of another cluster, this one's system identifier is 7",
            ),
        ] {
            let complaint = check(sql.as_bytes(), true, SYSTEM).expect_err(sql);
            assert_eq!(
                (complaint.sqlstate, &*complaint.message),
                (sqlstate, message)
            );
        }
        let long = format!("SET tidegate.causal_key = '{}'", "x".repeat(257));
        assert!(check(long.as_bytes(), true, SYSTEM).is_err());
    }

    #[test]
    fn settings_come_to_wishes() {
        let of = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(name, sql)| (*name, sql.as_bytes()));
            Wanted::of(pairs).map(|wanted| (*wanted).clone())
        };
        assert_eq!(of(&[("tidegate.other", "SET tidegate.other = 1")]), None);
        let wanted = of(&[
            (
                "tidegate.causal_key",
                "SELECT pg_catalog.set_config('tidegate.causal_key', 'it''s', false)",
            ),
            (
                "tidegate.consistency",
                "SET tidegate.consistency TO Bounded",
            ),
            ("tidegate.max_lag", "set tidegate.max_lag = '3s' -- so"),
        ]);
        let expected = Wanted {
            wish: Wish {
                level: Some(Level::Bounded),
                max_lag: Some(Duration::from_secs(3)),
            },
            causal_key: Some("it's".into()),
        };
        assert_eq!(wanted, Some(expected));
        let odd = of(&[("tidegate.consistency", "SET tidegate.consistency TO odd")]);
        assert_eq!(odd.unwrap().wish.level, Some(Level::Primary));
        let long = format!("SET tidegate.causal_key = '{}'", "x".repeat(257));
        let long = of(&[("tidegate.causal_key", &long)]).expect("a level");
        let primary = Some(Level::Primary);
        assert_eq!((long.wish.level, long.causal_key), (primary, None));
    }
}
