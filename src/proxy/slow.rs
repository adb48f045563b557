//! Owns: what the log tells of a query that took long: where it ran, why there, and its text in normal form.
//! Never: shows a value that a client has given; literals and parameters are left out.

use std::time::Duration;

use super::Client;
use super::acquire::Placed;
use crate::session::batch::Batch;
use crate::sql::fingerprint;
use crate::sql::lexer::{Kind, Lexer};

/// The longest text that a line shows, in bytes.
const TEXT_MAX: usize = 2_000;

/// How much is kept of what has been said, in bytes: values take room too, and are not shown.
const KEPT_MAX: usize = 8 * TEXT_MAX;

/// The texts of a batch that is not at hand any more, as more of its pipeline or its data came; kept while slow queries
/// are logged.
#[derive(Default)]
pub(super) struct Texts {
    kept: Vec<Box<[u8]>>,
    bytes: usize,
}

impl Texts {
    /// Keeps those of what has been planned, which `client` has said.
    pub(super) fn keep(&mut self, batch: &Batch, client: &[u8]) {
        for text in batch.texts(client) {
            let is_again = self.kept.last().is_some_and(|last| **last == *text);
            let room = KEPT_MAX.saturating_sub(self.bytes);
            if room > 0 && !is_again {
                let text = text.get(..room).unwrap_or(text);
                self.bytes += text.len();
                self.kept.push(text.into());
            }
        }
    }
}

impl Client {
    /// Logs a batch that has been answered. `waited` is the part of `took` before it had a server;
    /// `gone` is what the batch no longer has, of one that the client's buffer has not any more.
    #[cold]
    pub(super) fn log_slow(
        &self,
        placed: &Placed,
        took: Duration,
        waited: Duration,
        gone: Option<&Texts>,
    ) {
        let ms = |time: Duration| time.as_micros() as f64 / 1_000.0;
        let (kept, said) = match gone {
            Some(texts) => (&texts.kept[..], &[][..]),
            None => (&[][..], &self.inbox[..]),
        };
        let kept = kept.iter().map(|text| &**text);
        let sql = normal_form(
            kept.chain(self.batch.texts(said)),
            self.session.has_conforming_strings(),
        );
        tracing::info!(
            took_ms = ms(took),
            waited_ms = ms(waited),
            route = placed.side.name(),
            reason = placed.reason.name(),
            node = %placed.server.node().name,
            cluster = %self.cluster.name,
            database = %self.key.database,
            user = %self.key.user,
            pid = self.registered.handle.pid,
            sql,
            "slow query"
        );
    }
}

/// What texts have in common with all that differ from them in values only; "; " between them, and one for
/// many that are alike.
fn normal_form<'a>(texts: impl Iterator<Item = &'a [u8]>, conforming: bool) -> String {
    let (mut all, mut form, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for text in texts {
        if is_broken(text, conforming) {
            form = b"(cannot be read)".to_vec();
        } else {
            // Of one that is too long this is the beginning.
            let _ = fingerprint::normalise(text, conforming, &mut form);
        }
        if form == last {
            continue;
        }
        if !all.is_empty() {
            all.extend_from_slice(b"; ");
        }
        all.extend_from_slice(&form);
        std::mem::swap(&mut form, &mut last);
        if all.len() > TEXT_MAX {
            all.truncate(TEXT_MAX);
            let text = String::from_utf8_lossy(&all);
            return format!("{} …", text.trim_end_matches(char::REPLACEMENT_CHARACTER));
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Whether something in it does not end, so that it is not known what is a value.
fn is_broken(text: &[u8], conforming: bool) -> bool {
    let mut lexer = Lexer::new(text, conforming);
    std::iter::from_fn(|| lexer.solid()).any(|token| token.kind == Kind::Broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(texts: &[&str]) -> String {
        normal_form(texts.iter().map(|text| text.as_bytes()), true)
    }

    #[test]
    fn no_value_is_shown() {
        assert_eq!(
            form(&["SELECT  'a', $tag$b$tag$, 7 FROM T /* c */ WHERE x = $3"]),
            "select '' from t where x = $1"
        );
        assert_eq!(form(&["BEGIN", "SELECT 1"]), "begin; select 0");
        assert_eq!(form(&["SELECT 1", "select 2", "END"]), "select 0; end");
        assert_eq!(
            form(&["SELECT 1", "SELECT 'secret"]),
            "select 0; (cannot be read)"
        );
        assert_eq!(form(&[]), "");
    }

    #[test]
    fn what_is_long_is_cut() {
        let text = format!("SELECT \"{}\"", "ä".repeat(20_000));
        let form = form(&[&text, "SELECT 1"]);
        assert!(form.ends_with("ää …"), "{}", &form[form.len() - 20..]);
        assert!(form.len() <= TEXT_MAX + " …".len());
    }
}
