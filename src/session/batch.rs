//! Owns: what is known of the client's messages up to where it waits for answers: what they need of a
//! server, and each by its place. Never: reads them; planning does.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use super::Localised;
use super::bound::Bound;
use super::effects::Suspicion;
use super::explain::Question;
use super::own::Complaint;
use super::server::Forgotten;
use super::statements::{Prepared, Unnamed};
use super::tracked::Tracked;
use super::transaction::Control;
use super::unnamed_portal::UnnamedPortal;
use super::within::Within;
use crate::sql::hint::{self, HintError, Hints};
use crate::sql::{Class, Modes, Need, Why};
use crate::wire::frame::body;
use crate::wire::message;

/// The room for messages that a batch keeps for the next one.
const MESSAGES_KEPT: usize = 256;

/// The most rooms for messages that a thread keeps in stock.
const ROOMS_MAX: usize = 64;

thread_local! {
    /// Room for messages that no batch uses at the moment: most sessions are idle most of the time.
    static ROOMS: RefCell<Vec<Vec<Step>>> = const { RefCell::new(Vec::new()) };
}

/// The client's messages up to the next point where it waits for answers.
#[derive(Debug)]
pub struct Batch {
    /// The strictest need of all its statements, and why.
    pub need: Need,
    pub why: Why,
    /// Bytes of the client's buffer that it covers so far.
    pub len: usize,
    /// Bytes of its last message that are not in the buffer, to be passed on as they come.
    pub beyond: usize,
    /// It opens a portal or executes something.
    pub executes: bool,
    /// Something in it may show the client data.
    pub shows_data: bool,
    /// A read that may need what only the session's own server has.
    pub needs_server: bool,
    /// It asks for what the session has last drawn from a sequence; or something that it uses may.
    pub reads_sequences: bool,
    pub(super) reads_unseen: bool,
    /// What it may do to the session by the names that it uses; and its texts, where that is not
    /// known.
    pub(super) suspicion: Option<Suspicion>,
    pub(super) unjudged: Vec<(Arc<Class>, Box<[u8]>)>,
    /// There are more of them than are kept, or what they use is too new: known effects lack it, and it may
    /// be gone again when they are asked for.
    pub(super) unjudged_more: bool,
    /// By something in it names may come to do something else to sessions.
    pub(super) redefines: bool,
    /// By something in it names may come to mean something else, or settings be changed: what is prepared
    /// behind that is nobody else's.
    pub(super) reshapes: bool,
    pub(super) sets: Localised,
    /// The first of its statements that steers a transaction; and what all others need than one that opens it.
    pub(super) control: Option<Control>,
    pub rest: Need,
    /// What it is to a transaction on a replica; and what it does to the unnamed portal there.
    pub(super) within: Within,
    pub(super) portal: UnnamedPortal,
    /// How long the texts are that may have to be said again elsewhere, in bytes.
    pub(super) words: u32,
    /// What its statements ask for by hints, together; and whether there is one that has none, and so
    /// is as its session wishes.
    pub hints: Option<Box<Hints>>,
    pub has_unhinted: bool,
    /// It may show settings of the proxy's own, the token among them.
    pub shows_own: bool,
    pub shows_token: bool,
    /// It asks for explanations, which have to be given before it is said.
    pub explains: bool,
    /// It must not be done, and why.
    pub(super) refused: Option<Arc<Complaint>>,
    /// Something in it creates, alters or drops a database.
    pub touches_databases: bool,
    pub(super) end: Option<End>,
    pub(super) flushed: bool,
    /// It executes what drops statements: which of them are left is known when that is answered.
    pub(super) forgets: bool,
    pub(super) steps: Vec<Step>,
}

/// How a batch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With Sync, Query or FunctionCall: the server will be ready after it.
    Ready,
    /// More of the same pipeline follows.
    Open,
}

/// One message of a batch, by its place in the client's buffer.
#[derive(Debug)]
pub(super) enum Step {
    Query {
        at: Range<usize>,
        tracked: Option<Tracked>,
    },
    /// It names statements that the client prepared by message, which have other names there.
    Renamed {
        text: Range<usize>,
        names: Renames,
        tracked: Option<Tracked>,
    },
    /// A Query that asks for an explanation.
    Explain {
        question: Box<Question>,
    },
    Parse {
        name: Box<[u8]>,
        prepared: Arc<Prepared>,
    },
    ParseAgain {
        name: Box<[u8]>,
        existing: Arc<Prepared>,
    },
    /// Parse by a name that PREPARE has taken.
    ParseTaken {
        at: Range<usize>,
    },
    ParseUnnamed {
        at: Range<usize>,
        unnamed: Arc<Unnamed>,
    },
    /// What it does to portals has this number.
    Bind {
        at: Range<usize>,
        names: usize,
        beyond: usize,
        of: Of,
        change: u64,
    },
    /// Of a statement that asks for an explanation.
    BindExplained {
        at: Range<usize>,
        names: usize,
        beyond: usize,
        question: Box<Question>,
        change: u64,
    },
    Describe {
        at: Range<usize>,
        of: Of,
    },
    DescribePortal {
        at: Range<usize>,
    },
    Execute {
        at: Range<usize>,
        tracked: Option<Tracked>,
    },
    /// Close of a statement: the name is forgotten, and what nobody else uses is closed.
    CloseStatement {
        forgotten: Option<Forgotten>,
    },
    /// Close of a statement that PREPARE has made.
    ClosePrepared {
        at: Range<usize>,
        name: Box<[u8]>,
    },
    ClosePortal {
        at: Range<usize>,
        change: u64,
    },
    FunctionCall {
        at: Range<usize>,
    },
    /// One of the extended protocol whose contents are wrong.
    Malformed {
        at: Range<usize>,
    },
    Sync {
        at: Range<usize>,
    },
    Flush {
        at: Range<usize>,
    },
}

/// Names in a text, by their places, of statements that have other names on servers.
pub(super) type Renames = Vec<Rename>;

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Rename {
    pub place: Range<usize>,
    pub name: Box<[u8]>,
    pub prepared: Arc<Prepared>,
}

/// The statement that a message names.
#[derive(Clone, Debug)]
pub(super) enum Of {
    Named(Arc<Prepared>),
    Unnamed(Arc<Unnamed>),
    /// None that the session knows: the server says so.
    Unknown,
}

impl Of {
    /// The statement that it is by its name.
    pub fn named(&self) -> Option<&Arc<Prepared>> {
        match self {
            Of::Named(prepared) => Some(prepared),
            _ => None,
        }
    }

    /// Its class and text, if they are known.
    pub fn text(&self) -> Option<(&Class, &[u8])> {
        match self {
            Of::Named(prepared) => Some((&prepared.class, &prepared.sql)),
            Of::Unnamed(unnamed) => Some((&unnamed.class, &unnamed.sql)),
            Of::Unknown => None,
        }
    }

    /// Its parameters, where they are bound to `values`, as a Bind has them.
    pub(super) fn bound_to<'a>(&'a self, values: &'a [u8]) -> Bound<'a> {
        let types = match self {
            Of::Named(prepared) => &prepared.types[..],
            Of::Unnamed(unnamed) => &unnamed.types,
            Of::Unknown => &[],
        };
        Bound { types, values }
    }

    /// What it asks to be explained, if it does.
    #[cold]
    pub fn question(&self) -> Option<Box<Question>> {
        let question = |sql, types| Some(Box::new(Question::new(sql, types)));
        match self {
            Of::Named(prepared) if prepared.class.explains => {
                question(&prepared.sql, &prepared.types)
            }
            Of::Unnamed(unnamed) if unnamed.class.explains => {
                question(&unnamed.sql, &unnamed.types)
            }
            _ => None,
        }
    }
}

impl Batch {
    pub fn new() -> Batch {
        Batch {
            need: Need::Read,
            why: Why::Empty,
            len: 0,
            beyond: 0,
            executes: false,
            shows_data: false,
            needs_server: false,
            reads_sequences: false,
            reads_unseen: false,
            suspicion: None,
            unjudged: Vec::new(),
            unjudged_more: false,
            redefines: false,
            reshapes: false,
            sets: Localised::No,
            control: None,
            rest: Need::Read,
            within: Within::Stays,
            portal: UnnamedPortal::default(),
            words: 0,
            hints: None,
            has_unhinted: false,
            shows_own: false,
            shows_token: false,
            explains: false,
            refused: None,
            touches_databases: false,
            end: None,
            flushed: false,
            forgets: false,
            steps: Vec::new(),
        }
    }

    /// Makes it an empty batch; its memory is kept for the next.
    pub fn clear(&mut self) {
        // Taken apart, so that a field that is added has to be thought of.
        let Batch {
            need,
            why,
            len,
            beyond,
            executes,
            shows_data,
            needs_server,
            reads_sequences,
            reads_unseen,
            suspicion,
            unjudged,
            unjudged_more,
            redefines,
            reshapes,
            sets,
            control,
            rest,
            within,
            portal,
            words,
            hints,
            has_unhinted,
            shows_own,
            shows_token,
            explains,
            refused,
            touches_databases,
            end,
            flushed,
            forgets,
            steps,
        } = self;
        (*need, *why) = (Need::Read, Why::Empty);
        (*len, *beyond) = (0, 0);
        (*executes, *shows_data, *flushed) = (false, false, false);
        (*forgets, *reshapes, *sets) = (false, false, Localised::No);
        (*needs_server, *reads_sequences, *unjudged_more) = (false, false, false);
        *reads_unseen = false;
        (*suspicion, *end) = (None, None);
        (*control, *rest) = (None, Need::Read);
        (*within, *words) = (Within::Stays, 0);
        *portal = UnnamedPortal::default();
        (*hints, *refused) = (None, None);
        (*has_unhinted, *shows_own, *shows_token) = (false, false, false);
        (*explains, *redefines, *touches_databases) = (false, false, false);
        unjudged.clear();
        steps.clear();
        if steps.capacity() > MESSAGES_KEPT {
            steps.shrink_to(MESSAGES_KEPT);
        }
    }

    /// The session has nothing to do: an empty batch gives up its memory to others.
    pub fn rest(&mut self) {
        if self.steps.is_empty() && self.steps.capacity() > 0 {
            let room = std::mem::take(&mut self.steps);
            ROOMS.with_borrow_mut(|rooms| {
                if rooms.len() < ROOMS_MAX {
                    rooms.push(room);
                }
            });
        }
    }

    /// Room for messages, if there is none.
    pub(super) fn make_room(&mut self) {
        if self.steps.capacity() == 0
            && let Some(room) = ROOMS.with_borrow_mut(Vec::pop)
        {
            self.steps = room;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// How it ends, as far as it has been planned.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Whether it may ask for what the session has last drawn: it does, or nobody knows what it does.
    pub(super) fn may_read_sequences(&self) -> bool {
        let is_unknown = self.unjudged_more || !self.unjudged.is_empty() || self.beyond > 0;
        let calls = matches!(self.steps.last(), Some(Step::FunctionCall { .. }));
        self.reads_sequences || self.reads_unseen || is_unknown || calls
    }

    /// It was taken for a read and is none.
    pub(super) fn distrust(&mut self) {
        self.need = Need::Write;
    }

    /// It must not be done: the server is made to fail instead, and the client told this.
    pub fn refuse(&mut self, complaint: Complaint) {
        if self.refused.is_none() {
            self.refused = Some(Arc::new(complaint));
        }
    }

    /// Whether the server takes the next batch after an error in this one: a pipeline that ends in a
    /// Query, say, is skipped with it.
    pub fn ends_with_an_error(&self) -> bool {
        matches!(
            &self.steps[..],
            [Step::Query { .. }] | [.., Step::Sync { .. }]
        )
    }

    /// Whether it is one Query, in whatever words it is told to a server.
    pub(super) fn is_simple(&self) -> bool {
        matches!(
            self.steps[..],
            [Step::Query { .. } | Step::Renamed { .. } | Step::Explain { .. }]
        )
    }

    /// Whether it is a Query, and nothing else, that a server is told as it is.
    pub fn is_one_query(&self) -> bool {
        matches!(self.steps[..], [Step::Query { .. }]) && self.refused.is_none()
    }

    /// The text of [one query](Self::is_one_query), which the client has said.
    pub(super) fn query<'a>(&self, client: &'a [u8]) -> Option<&'a [u8]> {
        match &self.steps[..] {
            [Step::Query { at, .. }] => message::query(body(client.get(at.clone())?)).ok(),
            _ => None,
        }
    }

    /// The texts of what it prepares and runs, in order, as far as they are known: what `client` has said, or
    /// has prepared before.
    pub fn texts<'a>(&'a self, client: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.steps.iter().filter_map(move |step| match step {
            Step::Query { at, .. } => message::query(body(client.get(at.clone())?)).ok(),
            Step::Renamed { text, .. } => client.get(text.clone()),
            Step::Explain { question } | Step::BindExplained { question, .. } => {
                Some(&*question.sql)
            }
            Step::Parse { prepared, .. }
            | Step::ParseAgain {
                existing: prepared, ..
            } => Some(&*prepared.sql),
            Step::ParseUnnamed { unnamed, .. } => Some(&*unnamed.sql),
            Step::Bind { of, .. } => of.text().map(|(_, sql)| sql),
            _ => None,
        })
    }

    /// The text of what it runs, if that is one and nothing else is to come.
    pub(super) fn only_text<'a>(&'a self, client: &'a [u8]) -> Option<&'a [u8]> {
        let runs = |step: &&Step| {
            matches!(
                step,
                Step::Query { .. }
                    | Step::Renamed { .. }
                    | Step::Explain { .. }
                    | Step::Bind { .. }
                    | Step::BindExplained { .. }
                    | Step::FunctionCall { .. }
            )
        };
        let executes = |step: &&Step| matches!(step, Step::Execute { .. });
        let mut run = self.steps.iter().filter(runs);
        let executed = self.steps.iter().filter(executes).count();
        match (run.next(), run.next(), executed) {
            _ if self.end != Some(End::Ready) => None,
            (Some(Step::Query { at, .. }), None, 0) => {
                message::query(body(client.get(at.clone())?)).ok()
            }
            (Some(Step::Bind { of, .. }), None, 1) => of.text().map(|(_, sql)| sql),
            _ => None,
        }
    }

    /// Whether it executes something, and more of its pipeline is to come that is not known.
    pub(super) fn executes_midway(&self) -> bool {
        self.executes && self.end == Some(End::Open)
    }

    /// Whether a replica that the pipeline began on may not go on with it.
    pub fn must_leave_replica(&self) -> bool {
        self.need > Need::Read || self.hints.is_some() || self.executes_midway()
    }

    /// The modes of the transaction that it begins with.
    pub fn opens(&self) -> Option<Modes> {
        match self.control {
            Some(Control::Opens(modes)) => Some(modes),
            _ => None,
        }
    }

    /// What it is to a transaction on a replica.
    pub(super) fn within(&self) -> Within {
        match self.portal.is_left {
            true => self.within.max(Within::Ties),
            false => self.within,
        }
    }

    /// Whether it says nothing but that a transaction begins.
    pub(super) fn only_opens(&self) -> bool {
        let runs = |step: &&Step| {
            matches!(
                step,
                Step::Query { .. } | Step::Renamed { .. } | Step::Bind { .. }
            )
        };
        self.opens().is_some() && self.steps.iter().filter(runs).count() == 1
    }

    /// Something of it is for the primary, whatever else is.
    pub(super) fn leaves_replica(&mut self) {
        (self.rest, self.within) = (Need::Write, Within::Leaves);
    }

    /// Whether it asks for explanations and nothing else.
    pub fn only_explains(&self) -> bool {
        self.why == Why::ExplainRoute && !self.shows_data
    }

    /// It is a Query that asks for an explanation.
    #[cold]
    pub(super) fn explain(&mut self, sql: &[u8]) {
        const NO_TYPES: &[u8] = b"\0\0";
        let question = Box::new(Question::new(sql, NO_TYPES));
        self.explains = true;
        self.steps.push(Step::Explain { question });
    }

    /// What it asks to be explained.
    pub fn questions(&mut self) -> impl Iterator<Item = &mut Question> {
        self.steps.iter_mut().filter_map(|step| match step {
            Step::Explain { question } | Step::BindExplained { question, .. } => {
                Some(&mut **question)
            }
            _ => None,
        })
    }

    /// Why it must not be done.
    pub fn refused(&self) -> Option<&Complaint> {
        self.refused.as_deref()
    }

    pub(super) fn needs(&mut self, need: Need, why: Why) {
        let says_more = matches!(self.why, Why::Empty | Why::ExplainRoute) && need == self.need;
        if need > self.need || says_more {
            (self.need, self.why) = (self.need.max(need), why);
        }
    }

    /// Notes what a statement asks for in a comment before it.
    #[inline]
    pub(super) fn heed(&mut self, sql: &[u8]) {
        match hint::hints(sql) {
            Ok(None) => self.has_unhinted = true,
            hints => self.heed_hints(hints),
        }
    }

    fn heed_hints(&mut self, hints: Result<Option<Box<Hints>>, HintError>) {
        let joined = match (hints, &mut self.hints) {
            (Err(error), _) => Err(error),
            (Ok(Some(new)), Some(known)) => known.join(&new),
            (Ok(new), known) => {
                *known = new;
                Ok(())
            }
        };
        if let Err(error) = joined {
            self.refuse(Complaint::hint(&error));
        }
    }

    /// It has a text of this class, which needs this much.
    pub(super) fn needs_class(&mut self, class: &Class, (need, why): (Need, Why)) {
        self.shows_data |= class.may_show_data();
        self.needs(need, why);
    }
}

impl Default for Batch {
    fn default() -> Self {
        Batch::new()
    }
}
