//! Owns: what the portals of the open transaction would do to the session. Never: knows of one that would do nothing.

use std::collections::{HashMap, VecDeque};

use super::statements::key;
use super::tracked::Tracked;

/// Boxed: most sessions have none that would do anything.
#[derive(Debug, Default)]
pub(super) struct Portals(Option<Box<Effective>>);

#[derive(Debug, Default)]
struct Effective {
    effects: HashMap<Box<[u8]>, Tracked, foldhash::fast::RandomState>,
    /// The length of all texts in it.
    bytes: usize,
    /// The number of the last change.
    last: u64,
    /// What undoes the changes of which it is not known yet that the server has made them, the last one last.
    journal: VecDeque<Change>,
}

#[derive(Debug)]
struct Change {
    number: u64,
    name: Box<[u8]>,
    /// What the name stood for.
    before: Option<Tracked>,
}

impl Portals {
    /// The most that a session may have, and the most bytes of their texts together.
    pub const MAX: usize = 10_000;
    pub const BYTES_MAX: usize = 64 << 20;

    /// What executing it would do, if that is anything.
    pub fn get(&self, name: &[u8]) -> Option<&Tracked> {
        self.0.as_ref()?.effects.get(key(name))
    }

    pub fn is_full(&self) -> bool {
        self.0.as_ref().is_some_and(|portals| {
            portals.effects.len() >= Portals::MAX || portals.bytes >= Portals::BYTES_MAX
        })
    }

    /// A portal is bound by this name, or closed, which does nothing. Returns the number of the change, which is no
    /// less than that of any before.
    pub fn change(&mut self, name: &[u8], effects: Option<Tracked>) -> u64 {
        match &mut self.0 {
            None if effects.is_none() => 0,
            portals => portals.get_or_insert_default().change(key(name), effects),
        }
    }

    /// The server has made the change of this number, and all before it.
    pub fn made(&mut self, number: u64) {
        if let Some(portals) = &mut self.0 {
            let journal = &mut portals.journal;
            while journal.pop_front_if(|c| c.number <= number).is_some() {}
        }
    }

    /// The server has made all changes that are not undone.
    pub fn made_all(&mut self) {
        if let Some(portals) = &mut self.0 {
            portals.journal.clear();
        }
    }

    /// The server does not make the change of this number, nor any after it.
    pub fn undo(&mut self, number: u64) {
        if let Some(portals) = &mut self.0 {
            portals.undo(number);
        }
    }

    /// All are gone, with their transaction.
    pub fn clear(&mut self) {
        if let Some(portals) = &mut self.0 {
            portals.effects.clear();
            portals.bytes = 0;
            portals.journal.clear();
        }
    }
}

impl Effective {
    fn change(&mut self, name: &[u8], effects: Option<Tracked>) -> u64 {
        self.last += 1;
        if effects.is_none() && self.effects.is_empty() {
            return self.last;
        }
        let is_new = effects.is_some();
        let before = self.set(name, effects);
        if is_new || before.is_some() {
            self.journal.push_back(Change {
                number: self.last,
                name: name.into(),
                before,
            });
        }
        self.last
    }

    fn undo(&mut self, number: u64) {
        let is_undone = |change: &mut Change| change.number >= number;
        while let Some(Change { name, before, .. }) = self.journal.pop_back_if(is_undone) {
            self.set(&name, before);
        }
    }

    fn set(&mut self, name: &[u8], effects: Option<Tracked>) -> Option<Tracked> {
        let bytes = |of: &Option<Tracked>| {
            let text = of.as_ref().and_then(|tracked| tracked.text.as_deref());
            text.map_or(0, <[u8]>::len)
        };
        self.bytes += bytes(&effects);
        let before = match effects {
            Some(effects) => self.effects.insert(name.into(), effects),
            None => self.effects.remove(name),
        };
        self.bytes -= bytes(&before);
        before
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::session::bound::Bound;
    use crate::session::tracked::Text;
    use crate::sql::cache::Classifier;
    use crate::sql::functions::Rules;

    fn sets(value: &str) -> Option<Tracked> {
        let sql = format!("SET work_mem = '{value}'");
        let class = Classifier::new(Rules::default(), 10).classify(sql.as_bytes(), true);
        let text = || Text::Query(Arc::from(sql.as_bytes()));
        Tracked::of(&class, sql.as_bytes(), text, true, true, Bound::default())
    }

    /// What the portal of this name would do.
    fn does(portals: &Portals, name: &str) -> Option<String> {
        let text = portals.get(name.as_bytes())?.text.as_deref()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    #[test]
    fn what_is_not_done_is_undone_in_whatever_order_it_is_told() {
        for last_first in [false, true] {
            let mut portals = Portals::default();
            let first = portals.change(b"p", sets("1MB"));
            let kept = does(&portals, "p");
            portals.made(first);
            let second = portals.change(b"p", sets("2MB"));
            let third = portals.change(b"p", None);
            let mut undone = [second, third];
            if last_first {
                undone.reverse();
            }
            for number in undone {
                portals.undo(number);
            }
            assert_eq!(does(&portals, "p"), kept);
            portals.undo(first);
            assert_eq!(does(&portals, "p"), kept, "what was made stays");
        }
    }

    #[test]
    fn names_are_told_apart_as_servers_do() {
        let mut portals = Portals::default();
        let name = |end: &str| "p".repeat(63) + end;
        portals.change(name("1").as_bytes(), sets("1MB"));
        assert!(does(&portals, &name("2")).is_some());
        portals.change(name("3").as_bytes(), None);
        assert!(does(&portals, &name("1")).is_none());
    }

    #[test]
    fn there_is_an_end_to_them_and_to_their_texts() {
        let mut portals = Portals::default();
        let long = "x".repeat(Portals::BYTES_MAX / 4);
        for name in ["a", "b", "c"] {
            portals.change(name.as_bytes(), sets(&long));
            assert!(!portals.is_full());
        }
        let last = portals.change(b"d", sets(&long));
        assert!(portals.is_full());
        portals.undo(last);
        assert!(!portals.is_full());
        portals.change(b"d", sets(&long));
        portals.change(b"a", None);
        assert!(!portals.is_full());
        portals.clear();
        for n in 0..Portals::MAX {
            assert!(!portals.is_full());
            portals.change(n.to_string().as_bytes(), sets("1MB"));
        }
        assert!(portals.is_full());
    }
}
