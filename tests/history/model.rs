//! Owns: what one session has been told and shown, and so what its next reads must show. Never:
//! reads or writes anything itself; it is told what happened.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A row whose version only ever grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row(pub i32);

/// How often a row has been changed.
pub type Version = i64;

/// The promises to one session.
#[derive(Debug, Default)]
pub struct Session {
    /// The last version of each row that it wrote, where the write was acknowledged.
    acknowledged: HashMap<Row, Version>,
    /// What it was shown of each row, whoever wrote it.
    seen: HashMap<Row, Seen>,
    /// What the open transaction has written: seen by this session, and undone by a rollback.
    open: Option<HashMap<Row, Version>>,
}

/// What a session was shown of one row.
#[derive(Debug, Default)]
struct Seen {
    /// The newest version that the primary has shown.
    by_primary: Option<Version>,
    /// Newer ones, which only replicas have shown.
    by_replicas: BTreeSet<Version>,
}

/// Which node has answered a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    Replica,
    Primary {
        /// The newest version of the row that anybody had been told of before the read was said.
        told: Option<Version>,
    },
}

/// How a read has kept what was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Wholly,
    /// The primary does not show yet what a replica has shown of a write that nobody has been told
    /// of. It flushes a commit, which standbys replay from then on, before its own sessions see it:
    /// whoever asks it, by a proxy or not, may find that.
    ButEarly,
}

/// A promise that was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    pub kind: Kind,
    pub row: Row,
    /// What the read showed; `None` when it did not find the row.
    pub shown: Option<Version>,
    /// The oldest version that it might have shown.
    pub owed: Version,
}

/// Which promise it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The session did not read its own write.
    OwnWrite,
    /// The session went back behind what it had read before.
    WentBack,
    /// It did not read what had been acknowledged to somebody.
    Missed,
    /// It did not read what another proxy had told its own of.
    NotShared,
}

/// What a read must show whatever its session has done: of each row a version, and by which promise.
#[derive(Debug, Default)]
pub struct Owed {
    rows: HashMap<Row, (Version, Kind)>,
}

/// What has been acknowledged to anybody: of each row the newest version, and since when it is.
#[derive(Debug, Default)]
pub struct Ledger {
    rows: Mutex<HashMap<Row, Vec<(Instant, Version)>>>,
}

impl Ledger {
    /// A session has just been told that it has written this.
    pub fn note(&self, row: Row, version: Version) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let known = rows.entry(row).or_default();
        let newest = known.last().map_or(version, |&(_, last)| last.max(version));
        known.push((Instant::now(), newest));
    }

    /// The newest versions that had been acknowledged so long ago.
    pub fn as_of(&self, ago: Duration) -> HashMap<Row, Version> {
        let Some(then) = Instant::now().checked_sub(ago) else {
            return HashMap::new();
        };
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let owed = |(&row, known): (&Row, &Vec<(Instant, Version)>)| {
            let index = known.partition_point(|&(at, _)| at <= then);
            let &(_, version) = known.get(index.checked_sub(1)?)?;
            Some((row, version))
        };
        rows.iter().filter_map(owed).collect()
    }
}

impl Owed {
    pub fn of(rows: HashMap<Row, Version>, kind: Kind) -> Owed {
        let mut owed = Owed::default();
        owed.add(rows, kind);
        owed
    }

    pub fn add(&mut self, rows: HashMap<Row, Version>, kind: Kind) {
        for (row, version) in rows {
            let known = self.rows.entry(row).or_insert((version, kind));
            if known.0 < version {
                *known = (version, kind);
            }
        }
    }

    pub fn get(&self, row: Row) -> Option<(Version, Kind)> {
        self.rows.get(&row).copied()
    }
}

impl Session {
    pub fn begin(&mut self) {
        self.open = Some(HashMap::new());
    }

    /// The commit of the open transaction was acknowledged: what it has written.
    pub fn commit(&mut self) -> HashMap<Row, Version> {
        let written = self.open.take().unwrap_or_default();
        self.acknowledged.extend(&written);
        written
    }

    pub fn is_in_transaction(&self) -> bool {
        self.open.is_some()
    }

    pub fn roll_back(&mut self) {
        self.open = None;
    }

    /// A write was acknowledged, or done within the open transaction.
    pub fn wrote(&mut self, row: Row, version: Version) {
        let written = self.open.as_mut().unwrap_or(&mut self.acknowledged);
        written.insert(row, version);
    }

    /// A read on `node` has shown `row` at `version`, or has not found it.
    pub fn read(
        &mut self,
        row: Row,
        version: Option<Version>,
        node: Node,
    ) -> Result<Kept, Violation> {
        let written = self.open.as_ref().and_then(|open| open.get(&row));
        let own = written.or_else(|| self.acknowledged.get(&row)).copied();
        let seen = self.seen.entry(row).or_default();
        let (owed, newest) = (seen.owed(node), seen.owed(Node::Replica));
        // What nobody else can see yet may be undone: it is no promise beyond this transaction.
        if written.is_none() {
            seen.note(version, node);
        }
        let violated = |kind, owed| Violation {
            kind,
            row,
            shown: version,
            owed,
        };
        match (own, owed) {
            (Some(own), _) if version < Some(own) => Err(violated(Kind::OwnWrite, own)),
            (_, Some(owed)) if version < Some(owed) => Err(violated(Kind::WentBack, owed)),
            _ if version < newest => Ok(Kept::ButEarly),
            _ => Ok(Kept::Wholly),
        }
    }
}

impl Seen {
    /// The newest version of these that `node` must have.
    fn owed(&self, node: Node) -> Option<Version> {
        let by_replicas = match node {
            Node::Replica => self.by_replicas.last(),
            Node::Primary { told: None } => None,
            Node::Primary { told: Some(told) } => self.by_replicas.range(..=told).next_back(),
        };
        self.by_primary.max(by_replicas.copied())
    }

    fn note(&mut self, version: Option<Version>, node: Node) {
        match node {
            Node::Replica => self.by_replicas.extend(version),
            Node::Primary { .. } => self.by_primary = self.by_primary.max(version),
        }
        // Behind what the primary has shown, nothing may go back in any case.
        let certain = self.by_primary;
        self.by_replicas.retain(|&seen| Some(seen) > certain);
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { row, owed, .. } = self;
        match self.shown {
            Some(shown) => write!(f, "row {} was read at {shown}", row.0)?,
            None => write!(f, "row {} was not found", row.0)?,
        }
        match self.kind {
            Kind::OwnWrite => write!(f, " after the session itself had written {owed}"),
            Kind::WentBack => write!(f, " after the session had read it at {owed}"),
            Kind::Missed => write!(f, " after somebody was told of {owed}"),
            Kind::NotShared => write!(f, " after another proxy had told of {owed}"),
        }
    }
}

/// Made-up histories, and what the checker must make of them.
#[cfg(test)]
mod tests {
    use super::Node::{Primary, Replica};
    use super::*;

    const OWN: Row = Row(1);
    const OTHER: Row = Row(2);

    fn kind(read: Result<Kept, Violation>) -> Option<Kind> {
        read.err().map(|violation| violation.kind)
    }

    #[test]
    fn what_may_happen_is_no_violation() {
        let mut session = Session::default();
        assert_eq!(
            session.read(OWN, None, Replica),
            Ok(Kept::Wholly),
            "nothing is owed yet"
        );
        assert_eq!(session.read(OWN, Some(3), Replica), Ok(Kept::Wholly));
        assert_eq!(
            session.read(OWN, Some(3), Replica),
            Ok(Kept::Wholly),
            "the same again"
        );
        session.wrote(OWN, 4);
        assert_eq!(session.read(OWN, Some(4), Replica), Ok(Kept::Wholly));
        assert_eq!(
            session.read(OWN, Some(9), Replica),
            Ok(Kept::Wholly),
            "another wrote since"
        );
        assert_eq!(
            session.read(OTHER, Some(1), Replica),
            Ok(Kept::Wholly),
            "each row for itself"
        );
    }

    #[test]
    fn an_own_write_must_be_read() {
        let mut session = Session::default();
        session.wrote(OWN, 5);
        let violation = session
            .read(OWN, Some(4), Replica)
            .expect_err("it is stale");
        assert_eq!(violation.kind, Kind::OwnWrite);
        assert_eq!((violation.shown, violation.owed), (Some(4), 5));
        assert_eq!(
            violation.to_string(),
            "row 1 was read at 4 after the session itself had written 5"
        );
        assert_eq!(session.read(OWN, Some(5), Replica), Ok(Kept::Wholly));
    }

    #[test]
    fn a_read_must_not_go_back() {
        let mut session = Session::default();
        assert_eq!(session.read(OTHER, Some(7), Replica), Ok(Kept::Wholly));
        assert_eq!(
            kind(session.read(OTHER, Some(6), Replica)),
            Some(Kind::WentBack)
        );
        assert_eq!(
            kind(session.read(OTHER, Some(6), Replica)),
            Some(Kind::WentBack),
            "what was owed is still owed"
        );
        assert_eq!(session.read(OTHER, Some(7), Replica), Ok(Kept::Wholly));
    }

    #[test]
    fn others_newer_versions_of_an_own_row_are_owed_too() {
        let mut session = Session::default();
        session.wrote(OWN, 5);
        assert_eq!(session.read(OWN, Some(8), Replica), Ok(Kept::Wholly));
        assert_eq!(
            kind(session.read(OWN, Some(6), Replica)),
            Some(Kind::WentBack)
        );
        assert_eq!(
            kind(session.read(OWN, Some(4), Replica)),
            Some(Kind::OwnWrite)
        );
    }

    #[test]
    fn a_row_that_is_gone_is_older_than_any_version() {
        let mut session = Session::default();
        session.wrote(OWN, 1);
        let violation = session.read(OWN, None, Replica).expect_err("it is gone");
        assert_eq!(
            violation.to_string(),
            "row 1 was not found after the session itself had written 1"
        );
        assert_eq!(session.read(OTHER, Some(1), Replica), Ok(Kept::Wholly));
        assert_eq!(
            kind(session.read(OTHER, None, Replica)),
            Some(Kind::WentBack)
        );
    }

    #[test]
    fn a_transaction_reads_its_own_writes() {
        let mut session = Session::default();
        session.wrote(OWN, 1);
        session.begin();
        assert_eq!(
            session.read(OWN, Some(1), Replica),
            Ok(Kept::Wholly),
            "not yet written"
        );
        session.wrote(OWN, 2);
        assert_eq!(
            kind(session.read(OWN, Some(1), Replica)),
            Some(Kind::OwnWrite)
        );
        assert_eq!(session.read(OWN, Some(2), Replica), Ok(Kept::Wholly));
        session.commit();
        assert_eq!(
            kind(session.read(OWN, Some(1), Replica)),
            Some(Kind::OwnWrite)
        );
        assert_eq!(session.read(OWN, Some(2), Replica), Ok(Kept::Wholly));
    }

    #[test]
    fn what_anybody_was_told_is_owed_from_then_on() {
        let ledger = Ledger::default();
        assert!(ledger.as_of(Duration::ZERO).is_empty());
        ledger.note(OWN, 3);
        ledger.note(OWN, 2);
        assert_eq!(ledger.as_of(Duration::ZERO), [(OWN, 3)].into());
        assert!(ledger.as_of(Duration::from_secs(3600)).is_empty());
    }

    #[test]
    fn what_is_rolled_back_is_owed_to_nobody() {
        let mut session = Session::default();
        session.wrote(OWN, 1);
        session.begin();
        session.wrote(OWN, 2);
        assert_eq!(session.read(OWN, Some(2), Replica), Ok(Kept::Wholly));
        assert_eq!(session.read(OTHER, Some(7), Replica), Ok(Kept::Wholly));
        session.roll_back();
        assert_eq!(session.read(OWN, Some(1), Replica), Ok(Kept::Wholly));
        assert_eq!(
            kind(session.read(OWN, Some(0), Replica)),
            Some(Kind::OwnWrite)
        );
        assert_eq!(
            kind(session.read(OTHER, Some(6), Replica)),
            Some(Kind::WentBack),
            "what others had committed was seen all the same"
        );
    }

    const UNTOLD: Node = Primary { told: None };

    #[test]
    fn the_primary_may_lack_for_a_moment_what_nobody_was_told_of() {
        let mut session = Session::default();
        assert_eq!(session.read(OTHER, Some(45), Replica), Ok(Kept::Wholly));
        for told in [None, Some(44)] {
            let read = session.read(OTHER, Some(44), Primary { told });
            assert_eq!(read, Ok(Kept::ButEarly), "{told:?}");
        }
        assert_eq!(session.read(OTHER, Some(45), UNTOLD), Ok(Kept::Wholly));
    }

    #[test]
    fn a_replica_must_not_go_back_whoever_was_told() {
        let mut session = Session::default();
        assert_eq!(session.read(OTHER, Some(45), Replica), Ok(Kept::Wholly));
        assert_eq!(session.read(OTHER, Some(44), UNTOLD), Ok(Kept::ButEarly));
        let read = session.read(OTHER, Some(44), Replica);
        assert_eq!(kind(read), Some(Kind::WentBack), "it is still owed");
    }

    #[test]
    fn the_primary_has_what_somebody_was_told_of() {
        let mut session = Session::default();
        assert_eq!(session.read(OTHER, Some(45), Replica), Ok(Kept::Wholly));
        for told in [45, 46] {
            let read = session.read(OTHER, Some(44), Primary { told: Some(told) });
            let violation = read.expect_err("it went back");
            assert_eq!((violation.kind, violation.owed), (Kind::WentBack, 45));
        }
    }

    #[test]
    fn the_primary_does_not_go_back_further_than_what_is_early() {
        let mut session = Session::default();
        assert_eq!(session.read(OTHER, Some(44), Replica), Ok(Kept::Wholly));
        assert_eq!(session.read(OTHER, Some(45), Replica), Ok(Kept::Wholly));
        let primary = Primary { told: Some(44) };
        assert_eq!(session.read(OTHER, Some(44), primary), Ok(Kept::ButEarly));
        let violation = session.read(OTHER, Some(43), primary);
        assert_eq!(violation.map_err(|violation| violation.owed), Err(44));
    }

    #[test]
    fn what_the_primary_itself_has_shown_it_still_has() {
        let mut session = Session::default();
        assert_eq!(session.read(OTHER, Some(45), UNTOLD), Ok(Kept::Wholly));
        let read = session.read(OTHER, Some(44), UNTOLD);
        assert_eq!(kind(read), Some(Kind::WentBack));
    }

    #[test]
    fn the_primary_has_what_the_session_wrote() {
        let mut session = Session::default();
        session.wrote(OWN, 5);
        let read = session.read(OWN, Some(4), UNTOLD);
        assert_eq!(kind(read), Some(Kind::OwnWrite));
    }
}
