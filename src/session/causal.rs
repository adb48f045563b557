//! Owns: to the sessions of which causal keys what is acknowledged next matters, by all that sets that key. Never: tells
//! them of it.

use std::sync::Arc;

use super::Session;
use super::own::{self, Own};
use crate::sql::set_config::{Changes, Name, Value};
use crate::sql::setting::Assignment;

/// The most causal keys of one transaction or batch that are told apart. With more, what it has written counts for
/// all.
const CAUSAL_KEYS_MAX: usize = 32;

/// Causal keys to whose sessions something matters.
#[derive(Debug, Default)]
pub(super) struct CausalKeys {
    known: Vec<Arc<str>>,
    /// There may be others, which nobody knows.
    any: bool,
}

impl CausalKeys {
    /// `None` if they are not all known.
    fn known(&self) -> Option<&[Arc<str>]> {
        (!self.any).then_some(&*self.known)
    }

    fn keep(&mut self, key: Arc<str>) {
        if self.known.contains(&key) {
            return;
        }
        match self.known.len() < CAUSAL_KEYS_MAX {
            true => self.known.push(key),
            false => self.any = true,
        }
    }

    fn keep_any(&mut self) {
        self.any = true;
    }

    pub fn clear(&mut self) {
        self.known.clear();
        self.any = false;
    }
}

impl Session {
    /// The key whose sessions' writes its reads must have seen.
    pub fn causal_key(&self) -> Option<&Arc<str>> {
        self.settings.wanted()?.causal_key.as_ref()
    }

    /// Whether what is acknowledged now may matter to the sessions of a key.
    #[inline]
    pub fn may_have_keys(&self) -> bool {
        self.own.is_some() || self.settings.wanted().is_some()
    }

    /// The keys to whose sessions what is acknowledged now matters: any that has been in force while it was
    /// done, as one acknowledgement may be for what was done before and after a change. `None` if they are
    /// not all known.
    pub fn keys(&self) -> Option<impl Iterator<Item = &Arc<str>>> {
        let own = self.own.as_deref();
        let before = own.map_or(Some(&[][..]), |own| own.keys.known())?;
        Some(before.iter().chain(self.causal_key()))
    }

    /// What is acknowledged next matters to the sessions of this key as well.
    fn keep_key(&mut self, key: Arc<str>) {
        self.own.get_or_insert_default().keys.keep(key);
    }

    /// The causal key may be another from now on.
    pub(super) fn keep_key_in_force(&mut self) {
        if let Some(key) = self.causal_key() {
            self.keep_key(key.clone());
        }
    }

    /// The causal key may have been set to something that is not known.
    pub(super) fn keep_any_key(&mut self) {
        self.own.get_or_insert_default().keys.keep_any();
        // Of these two the server can be asked whatever it shows.
        let names = [Own::CausalKey, Own::Token].map(|own| own.name().into());
        self.note_names(names.iter());
    }

    /// The causal key is set to this.
    fn keep_value(&mut self, value: &str) {
        if (1..=own::CAUSAL_KEY_BYTES_MAX).contains(&value.len()) {
            self.keep_key(value.into());
        }
    }

    /// What a text makes of the causal key and of what a token asks for, for however long, counts at once: what is
    /// written next may be acknowledged before the server can be asked.
    pub(super) fn note_own(&mut self, changes: &Changes) {
        if changes.unknown || changes.own_unknown {
            self.keep_any_key();
        }
        for (name, value) in &changes.own {
            let own = match name {
                Name::Literal(name) => Own::named(name),
                Name::Parameter(_) => Some(Own::CausalKey),
            };
            self.set_locally(own);
            match (own, value) {
                (Some(Own::CausalKey), Some(Value::Literal(key))) => self.keep_value(key),
                (Some(Own::CausalKey), _) => self.keep_any_key(),
                (Some(Own::Token), Some(Value::Literal(token))) => self.receive_token(token),
                _ => {}
            }
        }
    }

    /// SET LOCAL of a setting of the proxy's own: the transaction is on the primary, whatever level it
    /// asks for.
    pub(super) fn set_own_local(&mut self, assignment: &Assignment<'_>) {
        let value = assignment.value.as_deref().unwrap_or_default();
        let own = Own::named(&assignment.name);
        self.set_locally(own);
        match own {
            Some(Own::CausalKey) if assignment.resets => {
                let wanted = self.defaults.wanted();
                if let Some(key) = wanted.and_then(|wanted| wanted.causal_key.clone()) {
                    self.keep_key(key);
                }
            }
            Some(Own::CausalKey) => self.keep_value(value),
            Some(Own::Token) => self.receive_token(value),
            _ => {}
        }
    }

    /// What the open transaction's server has of this setting is not what the session has.
    fn set_locally(&mut self, own: Option<Own>) {
        let local = &mut self.own.get_or_insert_default().local;
        local.extend(own.filter(|own| !local.contains(own)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_keys_than_are_told_apart_may_be_any() {
        let mut keys = CausalKeys::default();
        for n in 0..CAUSAL_KEYS_MAX {
            keys.keep(format!("key {n}").into());
            keys.keep("key 0".into());
        }
        assert_eq!(keys.known().map(<[_]>::len), Some(CAUSAL_KEYS_MAX));
        keys.keep("one more".into());
        assert_eq!(keys.known(), None);
        keys.clear();
        assert_eq!(keys.known(), Some(&[][..]));
        keys.keep_any();
        assert_eq!(keys.known(), None);
    }
}
