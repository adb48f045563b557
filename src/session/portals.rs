//! Owns: what the portals of the open transaction would do to the session. Never: knows of one that would do nothing.

use std::collections::HashMap;

use super::statements::key;
use super::tracked::Tracked;

/// The most that are remembered.
const PORTALS_MAX: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct Portals {
    effects: HashMap<Box<[u8]>, Tracked, foldhash::fast::RandomState>,
    /// There are some that are not remembered.
    is_partial: bool,
}

/// What a name stood for before a portal was bound by it.
#[derive(Clone, Debug)]
pub(super) struct Replaced {
    name: Box<[u8]>,
    effects: Option<Tracked>,
}

impl Portals {
    /// What executing it would do, if that is anything.
    pub fn get(&self, name: &[u8]) -> Option<&Tracked> {
        self.effects.get(key(name))
    }

    /// Whether executing one that is not known to do anything may do so nevertheless.
    pub fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// A portal of this name does this from now on. Returns what [puts back](Self::put_back) what was there, if that
    /// makes a difference.
    pub fn bind(&mut self, name: &[u8], effects: Option<Tracked>) -> Option<Box<Replaced>> {
        if effects.is_none() && self.effects.is_empty() {
            return None;
        }
        let name = key(name);
        let is_new = effects.is_some();
        let before = match effects {
            Some(effects) => self.effects.insert(name.into(), effects),
            None => self.effects.remove(name),
        };
        if self.effects.len() > PORTALS_MAX {
            self.effects.remove(name);
            self.is_partial = true;
        }
        let replaced = || {
            Box::new(Replaced {
                name: name.into(),
                effects: before.clone(),
            })
        };
        (is_new || before.is_some()).then(replaced)
    }

    /// The portal has not been bound: its name stands for what it stood for before.
    pub fn put_back(&mut self, replaced: &Replaced) {
        let Replaced { name, effects } = replaced;
        match effects {
            Some(effects) => drop(self.effects.insert(name.clone(), effects.clone())),
            None => drop(self.effects.remove(name)),
        }
    }

    /// All are gone, with their transaction.
    pub fn clear(&mut self) {
        if !self.effects.is_empty() {
            self.effects.clear();
        }
        self.is_partial = false;
    }
}
