//! Owns: for how long a pool does not ask again that has been refused a server. Never: looks at a clock.

use std::time::{Duration, Instant};

use crate::auth::AuthError;
use crate::cluster::connect::ConnectError;

/// A server that could not be opened, as the node has refused the login: the next one would be refused as well.
#[derive(Debug)]
pub struct Refused {
    words: Words,
    /// Nobody asks before that.
    until: Instant,
    /// How long that is each time. It grows while every try is refused.
    pause: Duration,
}

#[derive(Clone, Debug)]
enum Words {
    Server(Vec<u8>),
    Login(AuthError),
}

impl Refused {
    const PAUSE_MIN: Duration = Duration::from_millis(50);
    const PAUSE_MAX: Duration = Duration::from_secs(2);

    /// Remembers a login that has failed at this time, if it was refused: a node that is away is asked again at
    /// once when it is back.
    pub fn note(known: &mut Option<Refused>, error: &ConnectError, now: Instant) -> bool {
        let words = match error {
            _ if error.is_node_away() => return false,
            ConnectError::Refused(words) => Words::Server(words.clone()),
            ConnectError::Auth(error) => Words::Login(error.clone()),
            _ => return false,
        };
        let pause = known
            .as_ref()
            .map_or(Self::PAUSE_MIN, |refused| refused.pause);
        let until = now + pause;
        *known = Some(Refused {
            words,
            until,
            pause,
        });
        true
    }

    /// What the node has said.
    pub fn error(&self) -> ConnectError {
        match self.words.clone() {
            Words::Server(words) => ConnectError::Refused(words),
            Words::Login(error) => ConnectError::Auth(error),
        }
    }

    /// Whether that is for the number of connections that there are: who has some has what it can get.
    pub fn is_full(&self) -> bool {
        self.error().is_full()
    }

    /// Whether somebody may ask again at this time. Who comes next does not before the outcome is known.
    pub fn may_try(&mut self, now: Instant) -> bool {
        if now < self.until {
            return false;
        }
        self.pause = match now - self.until < Self::PAUSE_MAX {
            true => (self.pause * 2).min(Self::PAUSE_MAX),
            false => Self::PAUSE_MIN,
        };
        self.until = now + self.pause;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_every_try_is_refused() {
        let (mut known, mut now) = (None, Instant::now());
        let refusal = ConnectError::Refused(b"SFATAL\0C28P01\0Mno\0\0".to_vec());
        // Who asks at the same time makes no pause longer.
        for _ in 0..10 {
            assert!(Refused::note(&mut known, &refusal, now));
        }
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let refused = known.as_mut().expect("remembered");
            let pause = refused.until - now;
            assert!(!refused.may_try(now + pause / 2));
            now += pause;
            assert!(refused.may_try(now) && !refused.may_try(now));
            assert!(Refused::note(&mut known, &refusal, now));
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        let refused = known.as_mut().expect("remembered");
        now += Refused::PAUSE_MAX * 3;
        assert!(refused.may_try(now));
        assert_eq!(refused.until - now, Refused::PAUSE_MIN);
        assert_eq!(refused.error().sqlstate(), Some(&b"28P01"[..]));
    }

    #[test]
    fn only_what_the_node_says_is_remembered() {
        let mut known = None;
        let away = ConnectError::Refused(b"SFATAL\0C57P03\0Mstarting\0\0".to_vec());
        for error in [away, ConnectError::Closed] {
            assert!(!Refused::note(&mut known, &error, Instant::now()));
        }
        let stale = ConnectError::Auth(AuthError::StaleKeys("a".into()));
        assert!(Refused::note(&mut known, &stale, Instant::now()));
        assert!(known.is_some_and(|refused| !refused.is_full()));
    }
}
