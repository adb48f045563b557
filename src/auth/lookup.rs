//! Users of the database itself: what looking one up gave, and when that may be taken for the present.
//! Never asks a database, and never looks at a clock: moments come in.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;

use super::scram::Verifier;
use crate::config::Secret;

/// How often a user is looked up afresh within the life of an answer. A password that was changed, or
/// a role that was made, a moment ago counts for whoever logs in next; only a storm of logins is
/// answered from memory.
const FRESH_MAX: u32 = 10;

/// How many users are remembered; the least recently seen go first.
const USERS_MAX: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();

/// A role of the database.
#[derive(Debug, PartialEq, Eq)]
pub struct Role {
    pub(super) stored: Stored,
    /// Whether it has LOGIN. Told only to those who know the password.
    pub can_login: bool,
}

/// What `pg_authid.rolpassword` holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// None, or one that has expired.
    Nothing,
    Scram(Verifier),
    /// `md5` and the hexadecimal hash of the password with the user's name.
    Md5(Secret),
    /// What neither a SCRAM nor an md5 login can be checked against.
    Unusable,
}

/// What a look-up gave: the role, or that there is none.
pub type Found = Option<Arc<Role>>;

impl Role {
    /// Reads the columns of an answer behind the name: the password, and whether the role may log in
    /// (`t` or `f`; one that is not told may).
    pub fn read(password: Option<&str>, can_login: Option<&str>) -> Role {
        Role {
            stored: password.map_or(Stored::Nothing, Stored::read),
            can_login: can_login != Some("f"),
        }
    }
}

impl Stored {
    fn read(text: &str) -> Stored {
        let is_md5 = |hash: &str| hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        match Verifier::parse(text) {
            Ok(verifier) => Stored::Scram(verifier),
            Err(_) if text.strip_prefix("md5").is_some_and(is_md5) => {
                Stored::Md5(Secret::new(text))
            }
            Err(_) => Stored::Unusable,
        }
    }
}

/// A moment, as the time since one that the caller chose.
pub type Moment = Duration;

/// What has been looked up of late.
pub struct Known {
    users: LruCache<String, Entry>,
}

struct Entry {
    /// The last answer, and when it was asked for.
    last: Option<(Found, Moment)>,
    /// Logins since `since`.
    logins: u32,
    since: Moment,
    rechecked: Option<Moment>,
}

impl Known {
    /// A login of `user`: the answer to take for the present one, or `None` where it has to be
    /// looked up.
    pub fn login(&mut self, user: &str, now: Moment, life: Duration) -> Option<Found> {
        let entry = self.entry(user, now);
        if now.saturating_sub(entry.since) >= life {
            (entry.since, entry.logins) = (now, 0);
        }
        entry.logins += 1;
        let (found, asked) = entry.last.as_ref()?;
        let young = now.saturating_sub(*asked) < life;
        (young && entry.logins > FRESH_MAX).then(|| found.clone())
    }

    /// A login has failed against a remembered answer. `true` where it may be looked up once more:
    /// the password may have been changed, but wrong ones must not become a load on the database.
    pub fn recheck(&mut self, user: &str, now: Moment, life: Duration) -> bool {
        let entry = self.entry(user, now);
        let young = |at: Moment| now.saturating_sub(at) < life;
        let may = !entry.rechecked.is_some_and(young);
        if may {
            entry.rechecked = Some(now);
        }
        may
    }

    /// What was asked for at `asked` has been answered.
    pub fn learn(&mut self, user: &str, found: Found, asked: Moment) {
        let entry = self.entry(user, asked);
        if entry.last.as_ref().is_none_or(|(_, old)| *old <= asked) {
            entry.last = Some((found, asked));
        }
    }

    /// Forgets everything: another query may give other answers.
    pub fn clear(&mut self) {
        self.users.clear();
    }

    fn entry(&mut self, user: &str, now: Moment) -> &mut Entry {
        self.users.get_or_insert_mut_ref(user, || Entry {
            last: None,
            logins: 0,
            since: now,
            rechecked: None,
        })
    }
}

impl Default for Known {
    fn default() -> Known {
        Known {
            users: LruCache::new(USERS_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(1);
    const VERIFIER: &str = "SCRAM-SHA-256$4096:c2FsdA==$\
        AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn role(password: &str) -> Found {
        Some(Arc::new(Role::read(Some(password), None)))
    }

    #[test]
    fn reads_what_pg_authid_holds() {
        let stored = |text| Role::read(text, None).stored;
        assert!(matches!(stored(Some(VERIFIER)), Stored::Scram(_)));
        let md5 = "md50123456789abcdef0123456789abcdef";
        assert_eq!(stored(Some(md5)), Stored::Md5(Secret::new(md5)));
        assert_eq!(stored(None), Stored::Nothing);
        for text in ["", "md5", "secret", "md5secret", "SCRAM-SHA-256$1"] {
            assert_eq!(stored(Some(text)), Stored::Unusable, "{text}");
        }
        assert!(Role::read(None, None).can_login && Role::read(None, Some("t")).can_login);
        assert!(!Role::read(None, Some("f")).can_login);
    }

    #[test]
    fn only_a_storm_is_answered_from_memory() {
        let (mut known, start) = (Known::default(), LIFE * 5);
        let old = role(VERIFIER);
        for _ in 0..FRESH_MAX {
            assert_eq!(known.login("a", start, LIFE), None);
            known.learn("a", old.clone(), start);
        }
        assert_eq!(known.login("a", start, LIFE), Some(old.clone()));
        assert_eq!(known.login("b", start, LIFE), None);
        // That there is no such role is remembered too.
        known.learn("a", None, start);
        assert_eq!(known.login("a", start, LIFE), Some(None));
        // After its life the next logins are looked up again.
        let later = start + LIFE;
        for _ in 0..FRESH_MAX {
            assert_eq!(known.login("a", later, LIFE), None);
        }
        // Still not answered: what is known is too old.
        assert_eq!(known.login("a", later, LIFE), None);
        known.learn("a", old.clone(), later);
        assert_eq!(known.login("a", later, LIFE), Some(old));
        assert_eq!(known.login("a", later, Duration::ZERO), None);
    }

    #[test]
    fn a_late_answer_does_not_replace_a_later_one() {
        let (mut known, start) = (Known::default(), LIFE * 5);
        let new = role(VERIFIER);
        known.learn("a", new.clone(), start + LIFE / 2);
        known.learn("a", None, start);
        for _ in 0..FRESH_MAX {
            known.login("a", start + LIFE / 2, LIFE);
        }
        assert_eq!(known.login("a", start + LIFE / 2, LIFE), Some(new));
    }

    #[test]
    fn failures_are_rechecked_rarely() {
        let (mut known, start) = (Known::default(), LIFE * 5);
        assert!(known.recheck("a", start, LIFE));
        assert!(!known.recheck("a", start + LIFE / 2, LIFE));
        assert!(known.recheck("b", start + LIFE / 2, LIFE));
        assert!(known.recheck("a", start + LIFE, LIFE));
    }

    #[test]
    fn memory_is_bounded() {
        let (mut known, now) = (Known::default(), LIFE * 5);
        for n in 0..USERS_MAX.get() + 10 {
            known.login(&n.to_string(), now, LIFE);
        }
        assert_eq!(known.users.len(), USERS_MAX.get());
    }
}
