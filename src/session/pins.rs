//! Owns: what ties a session to its server on the primary, as far as it is known. Never: asks the
//! server; it says what has to be looked at, and is told what was found.

use std::collections::HashSet;

use crate::sql::Pin;
use crate::sql::lexer::mentions;

/// What ties a session to its server.
#[derive(Debug, Default)]
pub struct Pins {
    held: PinSet,
    /// What may have come or gone since the server was last looked at.
    suspects: PinSet,
    /// The names of everything in the session's temporary schema.
    temporary: HashSet<Box<[u8]>, foldhash::fast::RandomState>,
    /// The names of statements prepared by PREPARE.
    prepared: HashSet<Box<[u8]>, foldhash::fast::RandomState>,
}

/// A set of pins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinSet(u8);

impl PinSet {
    /// All that a server can be asked about.
    pub const VISIBLE: PinSet = PinSet(
        1 << Pin::TemporaryTable as u8
            | 1 << Pin::AdvisoryLock as u8
            | 1 << Pin::HeldCursor as u8
            | 1 << Pin::Listen as u8
            | 1 << Pin::PreparedStatement as u8,
    );

    pub fn contains(self, pin: Pin) -> bool {
        self.0 & 1 << pin as u8 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn insert(&mut self, pin: Pin) {
        self.0 |= 1 << pin as u8;
    }
}

impl Pins {
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub fn contains(&self, pin: Pin) -> bool {
        self.held.contains(pin)
    }

    /// A statement that may leave `pin` on the server has run. Until the server has been looked at,
    /// it is taken to be there.
    pub fn touched(&mut self, pin: Pin) {
        self.held.insert(pin);
        if PinSet::VISIBLE.contains(pin) {
            self.suspects.insert(pin);
        }
    }

    /// A statement that may have taken `pin` away has run.
    pub fn look_again(&mut self, pin: Pin) {
        if self.held.contains(pin) {
            self.touched(pin);
        }
    }

    /// Something has run that may have left anything.
    pub fn look_at_all(&mut self) {
        self.suspects = PinSet::VISIBLE;
    }

    /// What the server has to be asked about.
    pub fn suspects(&self) -> PinSet {
        self.suspects
    }

    /// The server is about to tell all about what is suspected: what it does not name is not there.
    pub fn begin_report(&mut self) {
        self.held.0 &= !self.suspects.0;
        if self.suspects.contains(Pin::TemporaryTable) {
            self.temporary.clear();
        }
        if self.suspects.contains(Pin::PreparedStatement) {
            self.prepared.clear();
        }
        self.suspects = PinSet::default();
    }

    /// The server holds `pin`, for something of this name where it has one.
    pub fn found(&mut self, pin: Pin, name: &[u8]) {
        self.held.insert(pin);
        match pin {
            Pin::TemporaryTable => drop(self.temporary.insert(name.into())),
            Pin::PreparedStatement => drop(self.prepared.insert(name.into())),
            _ => {}
        }
    }

    /// `pin` is known to be gone.
    pub fn lift(&mut self, pin: Pin) {
        self.held.0 &= !(1 << pin as u8);
    }

    /// DISCARD ALL has run. It unloads no library.
    pub fn discard(&mut self) {
        let loaded = self.held.contains(Pin::Load);
        *self = Pins::default();
        if loaded {
            self.held.insert(Pin::Load);
        }
    }

    /// Whether a read of this text may need what only the session's server has. Any word that is
    /// the name of something temporary counts, whatever it means there.
    pub fn concern(&self, sql: &[u8], conforming: bool) -> bool {
        if self.held.contains(Pin::Settings) || self.suspects.contains(Pin::TemporaryTable) {
            return true;
        }
        if self.temporary.is_empty() {
            return false;
        }
        mentions(sql, conforming, false, &mut |name| {
            self.temporary.contains(name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_lasts_until_the_server_no_longer_shows_it() {
        let mut pins = Pins::default();
        pins.touched(Pin::Listen);
        pins.touched(Pin::Load);
        assert!(pins.contains(Pin::Listen) && pins.suspects().contains(Pin::Listen));
        assert!(!pins.suspects().contains(Pin::Load));
        pins.begin_report();
        pins.found(Pin::Listen, b"");
        assert!(pins.contains(Pin::Listen) && pins.suspects().is_empty());
        pins.look_again(Pin::HeldCursor);
        assert!(pins.suspects().is_empty(), "there was none");
        pins.look_again(Pin::Listen);
        pins.begin_report();
        assert!(!pins.contains(Pin::Listen));
        pins.discard();
        assert!(pins.contains(Pin::Load));
    }

    #[test]
    fn only_reads_that_name_something_temporary_need_the_server() {
        let mut pins = Pins::default();
        pins.touched(Pin::TemporaryTable);
        assert!(pins.concern(b"SELECT 1", true), "not known yet");
        pins.begin_report();
        pins.found(Pin::TemporaryTable, b"basket");
        pins.found(Pin::TemporaryTable, b"Odd");
        for (sql, expected) in [
            ("SELECT 1", false),
            ("SELECT 'basket', 1 AS odd -- basket", false),
            ("SELECT * FROM pg_temp.Basket", true),
            ("SELECT NULL::basket", true),
            ("SELECT \"Odd\" FROM t", true),
            ("SELECT U&\"b\\0061sket\"", true),
        ] {
            assert_eq!(pins.concern(sql.as_bytes(), true), expected, "{sql}");
        }
        pins.touched(Pin::Settings);
        assert!(pins.concern(b"SELECT 1", true));
    }
}
