//! What a statement asks of the proxy in a comment before it: `/* tidegate: max_lag=200ms */`.
//!
//! Owns: the hints' grammar. Never: looks beyond the comments that a text begins with, or takes a
//! comment that it does not understand for none.

use std::time::Duration;

use super::lexer::leading_comments;
use crate::config::{DURATION_FORM, DURATION_MAX, Level, Wish, parse_duration};

/// What a comment that is meant for the proxy begins with, before a colon.
const NAME: &str = "tidegate";

/// What one text, or all texts of a batch, ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    pub wish: Wish,
    /// The name of the node to read on.
    pub node: Option<Box<str>>,
}

/// What is wrong with a hint, as its client is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HintError {
    #[error("a comment that begins with \"tidegate:\" must have a hint")]
    Empty,
    #[error("unrecognized hint \"{0}\"")]
    Unknown(String),
    #[error("invalid value for hint \"max_lag\": \"{0}\"")]
    MaxLag(String),
    #[error("hint \"{0}\" contradicts another one")]
    Contradiction(String),
    #[error("hints are not valid UTF-8")]
    Encoding,
}

impl HintError {
    /// What to do.
    pub fn advice(&self) -> String {
        match self {
            HintError::MaxLag(_) => format!("Write {DURATION_FORM}."),
            HintError::Contradiction(_) => "Give each hint once.".to_owned(),
            HintError::Empty | HintError::Unknown(_) | HintError::Encoding => {
                let levels = Level::ALL.map(|(name, _)| name).join(", ");
                format!("Hints are {levels}, max_lag=DURATION and node=NAME, with commas between.")
            }
        }
    }
}

/// The hints that `sql` begins with. `None` if there are none: for nearly every text that takes a look
/// at its first byte.
///
/// # Errors
/// A comment that is meant for the proxy and can't be understood.
#[inline]
pub fn hints(sql: &[u8]) -> Result<Option<Box<Hints>>, HintError> {
    match sql.first() {
        Some(b'/' | b'-' | b' ' | b'\t' | b'\n' | b'\r') => in_comments(sql),
        _ => Ok(None),
    }
}

fn in_comments(sql: &[u8]) -> Result<Option<Box<Hints>>, HintError> {
    let mut hints: Option<Box<Hints>> = None;
    for comment in leading_comments(sql) {
        let Some(list) = addressed(comment) else {
            continue;
        };
        let list = str::from_utf8(list).map_err(|_| HintError::Encoding)?;
        let hints = hints.get_or_insert_default();
        for hint in list.split(',').map(str::trim) {
            if !(hint.is_empty() && list.trim().is_empty()) {
                hints.add(hint)?;
            } else {
                return Err(HintError::Empty);
            }
        }
    }
    Ok(hints)
}

/// What is behind the colon of a comment that is meant for the proxy.
fn addressed(comment: &[u8]) -> Option<&[u8]> {
    let inner = match comment.strip_prefix(b"--") {
        Some(inner) => inner,
        None => comment.strip_prefix(b"/*")?.strip_suffix(b"*/")?,
    };
    let inner = inner.trim_ascii_start();
    let (name, rest) = inner.split_at_checked(NAME.len())?;
    let rest = rest.trim_ascii_start().strip_prefix(b":")?;
    name.eq_ignore_ascii_case(NAME.as_bytes()).then_some(rest)
}

impl Hints {
    fn add(&mut self, hint: &str) -> Result<(), HintError> {
        let contradiction = || HintError::Contradiction(hint.to_owned());
        let unknown = || HintError::Unknown(hint.to_owned());
        if let Some(level) = Level::named(hint) {
            return put(&mut self.wish.level, level).ok_or_else(contradiction);
        }
        let (name, value) = hint.split_once('=').ok_or_else(unknown)?;
        let value = value.trim();
        match name.trim_end().to_ascii_lowercase().as_str() {
            "max_lag" => {
                let lag = max_lag(value).ok_or_else(|| HintError::MaxLag(value.to_owned()))?;
                put(&mut self.wish.max_lag, lag).ok_or_else(contradiction)
            }
            "node" if !value.is_empty() => {
                put(&mut self.node, value.into()).ok_or_else(contradiction)
            }
            _ => Err(unknown()),
        }
    }

    /// What both ask for together: the most demanding of each.
    pub fn join(&mut self, other: &Hints) -> Result<(), HintError> {
        self.wish.level = self.wish.level.max(other.wish.level);
        self.wish.max_lag = match (self.wish.max_lag, other.wish.max_lag) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        match &other.node {
            Some(node) => put(&mut self.node, node.clone())
                .ok_or_else(|| HintError::Contradiction(format!("node={node}"))),
            None => Ok(()),
        }
    }
}

/// A lag that may be asked for.
pub fn max_lag(text: &str) -> Option<Duration> {
    parse_duration(text).filter(|lag| !lag.is_zero() && *lag <= DURATION_MAX)
}

/// `None` if there is another one.
fn put<T: PartialEq>(place: &mut Option<T>, value: T) -> Option<()> {
    match place {
        Some(known) if *known != value => None,
        _ => {
            *place = Some(value);
            Some(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sql: &str) -> Result<Option<Hints>, HintError> {
        hints(sql.as_bytes()).map(|hints| hints.map(|hints| *hints))
    }

    fn some(level: Option<Level>, lag_ms: u64, node: &str) -> Result<Option<Hints>, HintError> {
        let max_lag = (lag_ms > 0).then(|| Duration::from_millis(lag_ms));
        let node = (!node.is_empty()).then(|| node.into());
        let wish = Wish { level, max_lag };
        Ok(Some(Hints { wish, node }))
    }

    #[test]
    fn hints_are_read() {
        let primary = || some(Some(Level::Primary), 0, "");
        for (sql, expected) in [
            ("/* tidegate: primary */ select 1", primary()),
            ("/*TIDEGATE:Primary*/select 1", primary()),
            (
                " \n/* a */ -- b\n/* tidegate : primary */ select 1",
                primary(),
            ),
            ("-- tidegate: primary\nselect 1", primary()),
            (
                "/* tidegate: bounded, max_lag = 200ms, node=db 1:5432 */ select 1",
                some(Some(Level::Bounded), 200, "db 1:5432"),
            ),
            (
                "/* tidegate: max_lag=2s */ /* tidegate: node=a */ select 1",
                some(None, 2000, "a"),
            ),
            ("/* tidegate: primary, primary */ select 1", primary()),
            ("select 1 /* tidegate: primary */", Ok(None)),
            ("/* tidegate primary */ select 1", Ok(None)),
            ("/* tidegates: primary */ select 1", Ok(None)),
            ("/* tidegate: primary select 1", Ok(None)),
            ("-", Ok(None)),
            ("", Ok(None)),
        ] {
            assert_eq!(found(sql), expected, "{sql}");
        }
    }

    #[test]
    fn what_is_not_understood_is_no_hint_of_nothing() {
        let unknown = |hint: &str| Err(HintError::Unknown(hint.to_owned()));
        for (hint, expected) in [
            ("", Err(HintError::Empty)),
            ("primry", unknown("primry")),
            ("primary,", unknown("")),
            ("max_lag", unknown("max_lag")),
            ("node=", unknown("node=")),
            ("lag=1s", unknown("lag=1s")),
            ("max_lag=5", Err(HintError::MaxLag("5".to_owned()))),
            ("max_lag=0", Err(HintError::MaxLag("0".to_owned()))),
            (
                "primary, session",
                Err(HintError::Contradiction("session".to_owned())),
            ),
        ] {
            assert_eq!(
                found(&format!("/* tidegate: {hint} */ x")),
                expected,
                "{hint}"
            );
        }
        assert_eq!(hints(b"/* tidegate: \xff */"), Err(HintError::Encoding));
    }

    #[test]
    fn texts_together_ask_for_the_most() {
        let mut both = found("/* tidegate: eventual, max_lag=1s */")
            .unwrap()
            .unwrap();
        let other = found("/* tidegate: global, max_lag=2s, node=a */")
            .unwrap()
            .unwrap();
        assert_eq!(both.join(&other), Ok(()));
        assert_eq!(Ok(Some(both.clone())), some(Some(Level::Global), 1000, "a"));
        let third = found("/* tidegate: node=b */").unwrap().unwrap();
        assert!(both.join(&third).is_err());
    }
}
