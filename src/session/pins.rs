//! Owns: what ties a session to its server on the primary, as far as it is known. Never: asks the
//! server; it says what has to be looked at, and is told what was found.

use std::collections::HashSet;

use super::statements::key;
use crate::sql::lexer::{Kind, Lexer, clipped};
use crate::sql::{Pin, PinSet};

/// The longest string that is searched for names, in bytes: three names with their quotes, and more.
const SEARCHED_BYTES_MAX: usize = 512;

/// What ties a session to its server.
#[derive(Debug, Default)]
pub struct Pins {
    held: PinSet,
    /// Whether there has been anything of which DISCARD ALL leaves something behind.
    leaves_traces: bool,
    /// What may have come or gone since the server was last looked at.
    suspects: PinSet,
    /// The names of everything in the session's temporary schema.
    temporary: HashSet<Box<[u8]>, foldhash::fast::RandomState>,
    /// The names of statements prepared by PREPARE.
    prepared: HashSet<Box<[u8]>, foldhash::fast::RandomState>,
}

/// All that a server can be asked about.
pub const VISIBLE: PinSet = PinSet::of(&[
    Pin::TemporaryTable,
    Pin::AdvisoryLock,
    Pin::HeldCursor,
    Pin::Listen,
    Pin::PreparedStatement,
]);

impl Pins {
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether there is none, and none is suspected.
    pub fn are_settled_and_none(&self) -> bool {
        self.held.is_empty() && self.suspects.is_empty()
    }

    pub fn contains(&self, pin: Pin) -> bool {
        self.held.contains(pin)
    }

    /// A statement that may leave `pin` on the server has run. Until the server has been looked at,
    /// it is taken to be there.
    pub fn touched(&mut self, pin: Pin) {
        self.held.insert(pin);
        self.leaves_traces |= matches!(pin, Pin::Load | Pin::TemporaryTable);
        if VISIBLE.contains(pin) {
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
        self.suspects = VISIBLE;
    }

    /// What the server has to be asked about.
    pub fn suspects(&self) -> PinSet {
        self.suspects
    }

    /// What is suspected can't be known: all of it is taken to be there, and the settings not to be
    /// known.
    pub fn assume_all(&mut self) {
        self.held = self.held.and(std::mem::take(&mut self.suspects));
        self.held.insert(Pin::Settings);
    }

    /// The server is about to tell all about what is suspected: what it does not name is not there.
    pub fn begin_report(&mut self) {
        self.held = self.held.without(self.suspects);
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
            Pin::PreparedStatement => drop(self.prepared.insert(key(name).into())),
            _ => {}
        }
    }

    /// `pin` is known to be gone.
    pub fn lift(&mut self, pin: Pin) {
        self.held = self.held.without(PinSet::of(&[pin]));
    }

    /// Whether a server that the session has kept is unlike a new one even after DISCARD ALL, which
    /// unloads no library, and leaves the temporary schema as soon as there is one.
    pub fn leave_traces(&self) -> bool {
        self.leaves_traces
    }

    /// DISCARD ALL has run. It unloads no library.
    pub fn discard(&mut self) {
        let loaded = self.held.contains(Pin::Load);
        *self = Pins {
            leaves_traces: self.leaves_traces,
            ..Pins::default()
        };
        if loaded {
            self.held.insert(Pin::Load);
        }
    }

    /// Whether PREPARE has made a statement of this name, as a message has it.
    pub fn has_prepared(&self, name: &[u8]) -> bool {
        self.prepared.contains(key(name))
    }

    /// That statement is closed or deallocated. `false` if there was none.
    pub fn drop_prepared(&mut self, name: &[u8]) -> bool {
        self.prepared.remove(key(name))
    }

    /// DEALLOCATE ALL has run.
    pub fn drop_all_prepared(&mut self) {
        self.prepared.clear();
    }

    /// Whether a read of this text may need what only the session's server has. Any word that is
    /// the name of something temporary counts, whatever it means there, and so does one in a
    /// string, which may be cast to `regclass`. What looks names up counts whatever it looks up:
    /// the name may be a parameter or come out of a catalog, whose rows all nodes have.
    pub fn concern(&self, sql: &[u8], conforming: bool) -> bool {
        // Any read may be told of by a library, be it in the log, or be written for one.
        let depends = self.held.contains(Pin::Settings) || self.held.contains(Pin::Load);
        if depends || self.suspects.contains(Pin::TemporaryTable) {
            return true;
        }
        if self.temporary.is_empty() {
            return false;
        }
        let mut lexer = Lexer::new(sql, conforming);
        while let Some(token) = lexer.solid() {
            let may_be = match token.kind {
                Kind::UnicodeWord | Kind::Broken => true,
                Kind::String => self.is_named_in(&sql[token.start..token.end]),
                _ => token.name(sql).is_some_and(|name| {
                    self.temporary.contains(clipped(&name)) || looks_names_up(&name)
                }),
            };
            if may_be {
                return true;
            }
        }
        false
    }

    /// Whether a string, with whatever is around it, has the name of something temporary in it.
    fn is_named_in(&self, string: &[u8]) -> bool {
        // Not worth a search, nor is one that has to undo escapes.
        string.len() > SEARCHED_BYTES_MAX
            || string.contains(&b'\\')
            || self
                .temporary
                .iter()
                .any(|name| contains_folded(string, name))
    }
}

/// Whether `text` has `name` in it, in whatever case.
fn contains_folded(text: &[u8], name: &[u8]) -> bool {
    text.windows(name.len().max(1))
        .any(|part| part.eq_ignore_ascii_case(name))
}

/// Whether a name in a text is of what depends on the session's temporary schema: the types that
/// names are cast to, the catalog and its functions.
fn looks_names_up(name: &[u8]) -> bool {
    const PREFIXES: [&[u8]; 3] = [b"pg_", b"to_reg", b"has_"];
    const TYPES: [&[u8]; 11] = [
        b"class",
        b"collation",
        b"config",
        b"dictionary",
        b"namespace",
        b"oper",
        b"operator",
        b"proc",
        b"procedure",
        b"role",
        b"type",
    ];
    const OTHERS: [&[u8]; 6] = [
        b"col_description",
        b"current_schema",
        b"current_schemas",
        b"format_type",
        b"information_schema",
        b"obj_description",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || name
            .strip_prefix(b"reg")
            .is_some_and(|rest| TYPES.contains(&rest))
        || OTHERS.contains(&name)
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
        assert!(pins.leave_traces());
        pins.discard();
        assert!(pins.contains(Pin::Load) && pins.leave_traces());
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
            ("SELECT 'apples', 1 AS odd, region -- basket", false),
            ("SELECT 'pg_temp.Basket'::text", true),
            ("SELECT f('\"Odd\"')", true),
            (r"SELECT f(E'b\x61sket')", true),
            (
                &format!("SELECT '{}'", "x".repeat(SEARCHED_BYTES_MAX)),
                true,
            ),
            ("SELECT 'apples'::regclass", true),
            ("SELECT $1::pg_catalog.RegType", true),
            ("SELECT relname FROM pg_class", true),
            ("SELECT * FROM information_schema.tables", true),
            ("SELECT has_table_privilege($1, 'SELECT')", true),
            ("SELECT * FROM pg_temp.Basket", true),
            ("SELECT NULL::basket", true),
            ("SELECT \"Odd\" FROM t", true),
            ("SELECT U&\"b\\0061sket\"", true),
        ] {
            assert_eq!(pins.concern(sql.as_bytes(), true), expected, "{sql}");
        }
        for pin in [Pin::Settings, Pin::Load] {
            let mut pins = Pins::default();
            pins.touched(Pin::Listen);
            assert!(!pins.concern(b"SELECT 1", true), "{pin:?}");
            pins.touched(pin);
            assert!(pins.concern(b"SELECT 1", true), "{pin:?}");
        }
    }
}
