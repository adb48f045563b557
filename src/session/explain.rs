//! EXPLAIN ROUTE: a session asks where a statement of its own would go.
//!
//! Owns: what it is about, and the query that a server is told in its place, which shows the answer: so
//! an open or failed transaction, Describe, formats and cursors are the server's own. Never: knows the
//! answer, which is for whoever knows the nodes to give; or has anything run of what it is about.

use super::Session;
use super::batch::{Batch, End};
use super::own::Complaint;
use super::settings::literal;
use super::statements::{Prepared, Unnamed};
use crate::sql::explain::{Judged, Line};
use crate::sql::{Class, Pin, Why, command};

/// What a server is asked to prepare for it: it returns what the answer will, and is never run.
const SHAPE: &[u8] = b"SELECT * FROM (VALUES ('', '')) AS route(item, value)";

/// One that a batch has run.
#[derive(Debug)]
pub struct Question {
    /// The statement that it is about.
    pub sql: Vec<u8>,
    /// The number of parameter types that its client has given and their OIDs, as sent.
    pub(super) types: Box<[u8]>,
    /// The query that shows the answer.
    pub(super) answer: Option<Vec<u8>>,
}

impl Question {
    pub(super) fn new(sql: &[u8], types: &[u8]) -> Question {
        Question {
            sql: command::explained(sql).unwrap_or_default(),
            types: types.into(),
            answer: None,
        }
    }

    /// Has the client shown these lines.
    pub fn answer(&mut self, lines: &[Line]) {
        let rows: Vec<String> = lines
            .iter()
            .map(|(item, value)| format!("({}, {})", literal(item), literal(value)))
            .collect();
        let query = format!(
            "SELECT * FROM (VALUES {}) AS route(item, value)",
            rows.join(", ")
        );
        self.answer = Some(query.into_bytes());
    }
}

/// What a server is told when it is to prepare a text.
fn said<'a>(class: &Class, sql: &'a [u8]) -> &'a [u8] {
    match class.explains {
        true => SHAPE,
        false => sql,
    }
}

impl Prepared {
    /// What a server is told when it is to prepare it.
    pub(super) fn said(&self) -> &[u8] {
        said(&self.class, &self.sql)
    }
}

impl Unnamed {
    /// What a server is told when it is to prepare it.
    pub(super) fn said(&self) -> &[u8] {
        said(&self.class, &self.sql)
    }
}

impl Complaint {
    fn not_one() -> Complaint {
        Complaint {
            sqlstate: "42601",
            message: "EXPLAIN ROUTE takes one statement, and is one alone".to_owned(),
            advice: "Ask for each statement by an EXPLAIN ROUTE of its own.".to_owned(),
        }
    }

    /// Where it comes in a pipeline, nobody can be asked.
    pub(super) fn unanswered() -> Complaint {
        Complaint {
            sqlstate: "0A000",
            message: "EXPLAIN ROUTE cannot be answered behind other statements of a pipeline that \
                has been flushed"
                .to_owned(),
            advice: "End the pipeline with a Sync before it.".to_owned(),
        }
    }
}

impl Session {
    /// Refuses a text that asks for an explanation, unless it is of one statement, and that no such
    /// question itself.
    #[cold]
    pub(super) fn check_explained(&self, class: &Class, sql: &[u8], batch: &mut Batch) {
        let explained = command::explained(sql).unwrap_or_default();
        if class.statements.len() != 1 || self.classify(&explained).explains {
            batch.refuse(Complaint::not_one());
        }
    }

    /// Why nobody can say where `sql` goes.
    ///
    /// # Errors
    /// Unless it is one statement, and no question after another's way.
    pub fn check_question(&self, sql: &[u8]) -> Result<(), Complaint> {
        let class = self.classify(sql);
        match class.statements.len() == 1 && !class.explains {
            true => Ok(()),
            false => Err(Complaint::not_one()),
        }
    }

    /// The batch that `sql` would be if the client said it now as a Query, which is so many bytes long; and
    /// what decides where that goes.
    pub fn look_at(&self, sql: &[u8], len: usize) -> (Batch, Vec<Line>) {
        let mut batch = Batch::new();
        let class = self.classify(sql);
        self.take_in(&class, sql, &mut batch);
        self.look_for_own(&class, sql, &mut batch);
        (batch.executes, batch.end) = (true, Some(End::Ready));
        let tracked = self.tracked_query(&class, sql, false);
        let step = self.query_step(&class, sql, 0..len, tracked);
        batch.steps.push(step);
        let known = (self.catalog.as_ref()).filter(|_| batch.why != Why::CatalogUnknown);
        let catalog = known.and_then(|known| known.latest());
        let judged = Judged {
            sql,
            class: &class,
            needs: (batch.need, batch.why),
            rules: self.shared.classifier.rules(),
            catalog: catalog.as_deref(),
        };
        let lines = judged.lines("is not known now");
        (batch, lines)
    }

    /// What ties it to its server on the primary.
    pub fn pinned_by(&self) -> impl Iterator<Item = Pin> {
        Pin::ALL.into_iter().filter(|pin| self.pins.contains(*pin))
    }
}
