//! Owns: the parameters that a server reports, and what is read off them. Never: shows a client what tells one node
//! from another.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::intern::Interner;
use crate::sql::Isolation;

/// Reported parameters: one shared copy of each distinct set.
#[derive(Clone, Debug)]
pub struct Params {
    map: Arc<Map>,
    /// Asked of every text, so it is looked up once.
    conforming: bool,
    /// What transactions see of others unless their session says otherwise: no server reports that, it was
    /// asked.
    isolation: Option<Isolation>,
}

type Map = BTreeMap<Box<[u8]>, Box<[u8]>>;

static INTERNED: Interner<Map> = Interner::new();

impl Params {
    /// Differs between a primary and its standbys; a client sees one PostgreSQL, a primary.
    const HIDDEN: &[u8] = b"in_hot_standby";

    pub fn new(pairs: impl IntoIterator<Item = (Box<[u8]>, Box<[u8]>)>) -> Params {
        let shown = |(name, _): &(Box<[u8]>, Box<[u8]>)| **name != *Self::HIDDEN;
        Params::of(pairs.into_iter().filter(shown).collect(), None)
    }

    fn of(map: Map, isolation: Option<Isolation>) -> Params {
        Params {
            conforming: are_strings_conforming(&map),
            map: INTERNED.share(map),
            isolation,
        }
    }

    /// What transactions see of others by default, where the server has been asked.
    pub fn isolation(&self) -> Option<Isolation> {
        self.isolation
    }

    /// The server has answered so.
    pub fn set_isolation(&mut self, isolation: Option<Isolation>) {
        self.isolation = isolation;
    }

    /// Whether a backslash in a text means itself.
    pub fn has_conforming_strings(&self) -> bool {
        self.conforming
    }

    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.map.get(name.as_bytes()).map(|value| &**value)
    }

    /// `true` when that is a change.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> bool {
        let same = self.map.get(name).is_some_and(|old| **old == *value);
        if same || name == Self::HIDDEN {
            return false;
        }
        let mut map = (*self.map).clone();
        map.insert(name.into(), value.into());
        *self = Params::of(map, self.isolation);
        true
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.map.iter().map(|(name, value)| (&**name, &**value))
    }

    /// What has to be told to somebody who knows `self` for it to know `other`.
    pub fn changes<'a>(&'a self, other: &'a Params) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let same = Arc::ptr_eq(&self.map, &other.map);
        let differs =
            |(name, value): &(&[u8], &[u8])| self.map.get(*name).map(|v| &**v) != Some(value);
        other.iter().take_while(move |_| !same).filter(differs)
    }

    pub fn is(&self, other: &Params) -> bool {
        Arc::ptr_eq(&self.map, &other.map)
    }
}

/// Whether a backslash in a text means itself. In some encodings it is also the second byte of a
/// character, so no byte that looks like one can be trusted.
fn are_strings_conforming(reported: &Map) -> bool {
    const UNTRUSTED: [&[u8]; 8] = [
        b"SJIS",
        b"SHIFT_JIS_2004",
        b"BIG5",
        b"GBK",
        b"UHC",
        b"GB18030",
        b"JOHAB",
        b"MULE_INTERNAL",
    ];
    let value = |name: &str| reported.get(name.as_bytes()).map(|value| &**value);
    let encoding = value("client_encoding").unwrap_or(b"UTF8");
    let names = |untrusted: &[u8]| untrusted.eq_ignore_ascii_case(encoding);
    value("standard_conforming_strings") != Some(b"off") && !UNTRUSTED.iter().any(|u| names(u))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sets_are_one() {
        let pair = |n: &[u8], v: &[u8]| (Box::from(n), Box::from(v));
        let a = Params::new([pair(b"TimeZone", b"UTC"), pair(b"in_hot_standby", b"on")]);
        let mut b = Params::new([pair(b"TimeZone", b"GMT")]);
        assert_eq!(
            a.changes(&b).collect::<Vec<_>>(),
            [(&b"TimeZone"[..], &b"GMT"[..])]
        );
        b.set(b"TimeZone", b"UTC");
        b.set(b"in_hot_standby", b"off");
        assert!(a.is(&b));
        assert_eq!(a.changes(&b).count(), 0);
    }
}
