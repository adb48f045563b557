//! Owns: which errors of a replica say more of the replica than of the read, and which of a batch's
//! statements has met one. Never: runs it again; that is for whoever has the servers.

use std::sync::Arc;

use super::Session;
use super::batch::{Batch, Of, Step};
use super::server::{Expected, ServerState};
use crate::sql::Class;
use crate::wire::frame::body;
use crate::wire::message;

/// Why a read that a replica has failed is run elsewhere, unseen by its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The replica refuses it for being one: something in it writes after all (a view over a
    /// function, say), or needs what only a primary has.
    Standby,
    /// The replica does not know what it names, or not yet: the primary may.
    Schema,
    /// Replay has cancelled it, to go on.
    Conflict,
    /// The replica's machine fails: its disk, its memory, its files.
    Fault,
}

impl Cause {
    /// The name used in metrics and docs.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Standby => "standby",
            Cause::Schema => "schema",
            Cause::Conflict => "recovery_conflict",
            Cause::Fault => "fault",
        }
    }
}

/// The errors that are no last word. A read alone can't fail to be serialised, nor wait for another
/// session in a circle: on a standby these two are replay's.
pub const REPAIRABLE: [(&str, Cause); 18] = [
    ("25006", Cause::Standby),
    ("0A000", Cause::Standby),
    ("55000", Cause::Standby),
    ("42P01", Cause::Schema),
    ("42703", Cause::Schema),
    ("42704", Cause::Schema),
    ("42883", Cause::Schema),
    ("3F000", Cause::Schema),
    ("42501", Cause::Schema),
    ("22P02", Cause::Schema),
    ("40001", Cause::Conflict),
    ("40P01", Cause::Conflict),
    ("53100", Cause::Fault),
    ("53200", Cause::Fault),
    ("58030", Cause::Fault),
    ("58P01", Cause::Fault),
    ("XX001", Cause::Fault),
    ("XX002", Cause::Fault),
];

/// Which errors of a server may be repaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repairable {
    /// None: it is no replica, or something of the answer has been sent.
    #[default]
    No,
    /// Those that are not the primary's to settle: there is none, or it takes no reads.
    NotBySchema,
    All,
}

/// A batch that a replica has failed. Nothing of it has happened, and nothing of the answer is seen.
#[derive(Debug, PartialEq, Eq)]
pub struct Misplaced {
    pub cause: Cause,
    pub sqlstate: &'static str,
    /// The replica's own words, the body of an ErrorResponse.
    pub words: Vec<u8>,
    /// How many of the client's messages were not answered, the one that has failed among them.
    unanswered: usize,
}

impl Misplaced {
    /// What is to be said of an error of `server`, if it can be repaired.
    pub(super) fn of(error: &[u8], server: &ServerState) -> Option<Misplaced> {
        let allowed = server.repairable;
        if allowed == Repairable::No || !concerns_batch(server) {
            return None;
        }
        let (sqlstate, cause) = judge(error)?;
        if cause == Cause::Schema && allowed == Repairable::NotBySchema {
            return None;
        }
        Some(Misplaced {
            cause,
            sqlstate,
            words: error.to_vec(),
            unanswered: server.queue.iter().filter(|e| !e.hidden).count(),
        })
    }
}

/// The code of an error that can be repaired, and why.
fn judge(error: &[u8]) -> Option<(&'static str, Cause)> {
    let code = message::error_field(error, b'C')?;
    let (sqlstate, cause) = *REPAIRABLE.iter().find(|(c, _)| c.as_bytes() == code)?;
    match message::error_field(error, b'R') {
        // Its client has to learn of a plan that no longer fits.
        Some(b"RevalidateCachedQuery") => None,
        // A materialized view that the replica has not seen filled.
        Some(b"ExecOpenScanRelation") => Some((sqlstate, Cause::Schema)),
        // Of malformed values, only those of enums that may have got another one.
        routine if sqlstate == "22P02" && routine != Some(b"enum_in") => None,
        _ => Some((sqlstate, cause)),
    }
}

/// Whether an error now is the batch's own: the answer to one of the client's messages, or to what
/// was said for one of them within the same pipeline.
fn concerns_batch(server: &ServerState) -> bool {
    let Some(Expected { what, hidden }) = server.queue.front() else {
        return false;
    };
    !hidden || !what.ends() && !server.is_sync_hidden()
}

impl Session {
    /// The class of the statement of `batch`, said as `client`, that the replica has failed.
    pub fn class_of(
        &self,
        misplaced: &Misplaced,
        batch: &Batch,
        client: &[u8],
    ) -> Option<Arc<Class>> {
        let answered = |step: &&Step| !matches!(step, Step::Flush { .. });
        let count = batch.steps.iter().filter(answered).count();
        let failed = count.checked_sub(misplaced.unanswered)?;
        let mut steps = batch.steps.iter().filter(answered);
        let step = steps.nth(failed)?;
        match step {
            Step::Execute { at, .. } => {
                let (portal, _) = message::execute(body(client.get(at.clone())?)).ok()?;
                let opens = |step: &&Step| match step {
                    Step::Bind { at, .. } => {
                        let frame = client.get(at.clone()).unwrap_or(&[]);
                        message::Bind::read(body(frame)).is_ok_and(|bind| bind.portal == portal)
                    }
                    _ => false,
                };
                let before = batch.steps.iter().filter(answered).take(failed);
                self.class_of_step(before.filter(opens).last()?, client)
            }
            step => self.class_of_step(step, client),
        }
    }

    fn class_of_step(&self, step: &Step, client: &[u8]) -> Option<Arc<Class>> {
        self.text_of_step(step, client).map(|(class, _)| class)
    }

    fn text_of_step(&self, step: &Step, client: &[u8]) -> Option<(Arc<Class>, Box<[u8]>)> {
        Some(match step {
            Step::Query { at, .. } => {
                let sql = message::query(body(client.get(at.clone())?)).ok()?;
                (self.classify(sql), sql.into())
            }
            Step::Parse { prepared, .. }
            | Step::Bind {
                of: Of::Named(prepared),
                ..
            }
            | Step::Describe {
                of: Of::Named(prepared),
                ..
            } => (prepared.class.clone(), prepared.sql.clone()),
            Step::ParseUnnamed { unnamed, .. }
            | Step::Bind {
                of: Of::Unnamed(unnamed),
                ..
            }
            | Step::Describe {
                of: Of::Unnamed(unnamed),
                ..
            } => (unnamed.class.clone(), unnamed.sql.as_slice().into()),
            _ => return None,
        })
    }

    /// `batch` was taken for a read and is none: what it may do to the session has to be looked at.
    pub fn distrust(&self, batch: &mut Batch, client: &[u8]) {
        batch.distrust();
        let steps = batch.steps.iter();
        let texts: Vec<_> = steps
            .filter_map(|step| self.text_of_step(step, client))
            .collect();
        for (class, sql) in texts {
            self.judge_text(&class, &sql, batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_repaired_by_its_code() {
        let error = |code: &str, routine: &str| {
            format!("SERROR\0VERROR\0C{code}\0Mno\0R{routine}\0\0").into_bytes()
        };
        for (code, routine, expected) in [
            ("25006", "PreventCommandIfReadOnly", Some(Cause::Standby)),
            ("0A000", "get_relation_info", Some(Cause::Standby)),
            ("55000", "pg_current_wal_lsn", Some(Cause::Standby)),
            ("55000", "ExecOpenScanRelation", Some(Cause::Schema)),
            ("42703", "errorMissingColumn", Some(Cause::Schema)),
            ("40001", "ProcessInterrupts", Some(Cause::Conflict)),
            ("0A000", "RevalidateCachedQuery", None),
            ("57014", "ProcessInterrupts", None),
            ("22P02", "enum_in", Some(Cause::Schema)),
            ("58P01", "internal_load_library", Some(Cause::Fault)),
            ("XX001", "PageIsVerified", Some(Cause::Fault)),
            ("XX000", "elog", None),
            ("22P02", "pg_strtoint32", None),
            ("22012", "int4div", None),
            ("42P02", "variable_paramref_hook", None),
        ] {
            let found = judge(&error(code, routine));
            assert_eq!(found.map(|(_, cause)| cause), expected, "{code} {routine}");
            assert!(found.is_none_or(|(sqlstate, _)| sqlstate == code));
        }
        assert_eq!(judge(b""), None);
    }
}
