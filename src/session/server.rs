//! Owns: what is known of one server connection: its settings, its prepared statements, the answers
//! it still owes. Never: reads or writes a socket.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use super::batch::Renames;
use super::inspection::Fact;
use super::own::Complaint;
use super::params::Params;
use super::repair::{Misplaced, Repairable};
use super::settings::Settings;
use super::statements::Prepared;
use super::tracked::Tracked;
use crate::wire::message::Status;

/// The most answers that a server may owe when more of the client's messages are taken. Some of them
/// are said by the proxy itself, so that the server alone would not hold the client back.
pub const OWED_MAX: usize = 8192;

/// The room for answers that a server keeps when it owes none.
const OWED_KEPT: usize = 256;

/// What is known of one server connection.
#[derive(Debug)]
pub struct ServerState {
    /// The number of its process, by which it is told apart in notifications; and the one that the client it works
    /// for knows itself by.
    pub pid: i32,
    pub client_pid: i32,
    pub params: Params,
    pub settings: Settings,
    pub status: Status,
    /// The transaction of that status has ended, in the middle of what was said: what it does since then stands by itself.
    pub(super) has_ended: bool,
    /// It has ended the connection, after all that it owed.
    pub is_gone: bool,
    /// The statements it has, by the ids that name them.
    pub(super) statements: LruCache<u64, Fit, foldhash::fast::RandomState>,
    /// Whose unnamed statement it has: the session's id and the statement's serial. `None` when it has
    /// none, [`NOT_KNOWN`] when it may have any.
    pub(super) unnamed: Option<(u64, u64)>,
    /// The answers it owes, in order.
    pub(super) queue: VecDeque<Expected>,
    /// Bytes of the current message that are still to come, and whether the client sees them.
    pub(super) passing: usize,
    pub(super) passing_hidden: bool,
    /// Its pipeline has no end that it has been told of: it skips everything up to a Sync after an
    /// error, or a COPY FROM STDIN has swallowed the Sync. The client has to send one.
    pub(super) awaits_sync: bool,
    /// Which errors of its can be repaired, by running the batch elsewhere.
    pub repairable: Repairable,
    /// Why it has failed a batch that is to be run elsewhere.
    pub misplaced: Option<Box<Misplaced>>,
    /// Whose last sequence values it remembers, if any: the session's id, and which of its writes was the last.
    pub(super) drawn_by: Option<(u64, u32)>,
    /// It waits for the client's COPY data.
    pub(super) copy_in: Option<CopyIn>,
    /// It has been sent a Sync that a COPY ignores, unless that had failed before: then it is answered.
    pub(super) sync_in_copy: bool,
    /// It has been told to let a COPY fail, within which the client has sent a message of this type.
    pub(super) copy_broken: Option<u8>,
    /// Rows of the answer to a question of the proxy's own.
    pub(super) facts: Vec<Fact>,
    /// It could not answer it.
    pub(super) unanswered: bool,
}

impl ServerState {
    pub fn new(params: Params, statements_max: NonZeroUsize) -> ServerState {
        ServerState {
            pid: 0,
            client_pid: 0,
            params,
            settings: Settings::default(),
            status: Status::Idle,
            has_ended: false,
            is_gone: false,
            statements: LruCache::with_hasher(
                statements_max,
                foldhash::fast::RandomState::default(),
            ),
            unnamed: None,
            queue: VecDeque::new(),
            passing: 0,
            passing_hidden: false,
            awaits_sync: false,
            repairable: Repairable::No,
            misplaced: None,
            drawn_by: None,
            copy_in: None,
            sync_in_copy: false,
            copy_broken: None,
            facts: Vec::new(),
            unanswered: false,
        }
    }

    /// Nothing is owed, and no transaction is open.
    pub fn is_idle(&self) -> bool {
        self.status == Status::Idle && self.is_quiet()
    }

    /// Nothing is owed.
    pub fn is_quiet(&self) -> bool {
        self.queue.is_empty() && self.is_between_messages()
    }

    /// What it says next is the beginning of a message, and no part of a COPY.
    pub(super) fn is_between_messages(&self) -> bool {
        self.passing == 0 && self.copy_in.is_none() && !self.awaits_sync
    }

    /// How many answers it owes.
    pub fn owed(&self) -> usize {
        self.queue.len()
    }

    /// Whether it may owe more than it does.
    pub fn may_owe_more(&self) -> bool {
        self.queue.len() < OWED_MAX
    }

    /// Whether the last thing it has been told is in the middle of a pipeline.
    pub(super) fn owes_within_pipeline(&self) -> bool {
        self.queue.back().is_some_and(|last| !last.what.ends())
    }

    /// Whether what it does up to its next Sync is for the proxy alone.
    pub(super) fn is_sync_hidden(&self) -> bool {
        let mut queue = self.queue.iter();
        queue
            .find(|expected| !expected.hidden || matches!(expected.what, Expect::Sync))
            .is_some_and(|expected| expected.hidden)
    }

    /// It is ready for the next batch.
    pub(super) fn ready(&mut self, status: Status) {
        self.status = status;
        self.has_ended = false;
        if self.queue.is_empty() {
            self.queue.shrink_to(OWED_KEPT);
        }
    }

    /// The client has been sent the beginning of a message whose rest is not here: nothing else can
    /// be said to it.
    pub fn is_within_message(&self) -> bool {
        self.passing > 0 && !self.passing_hidden
    }

    /// Its pipeline goes on, whatever the client's last batch looked like.
    pub fn awaits_sync(&self) -> bool {
        self.awaits_sync
    }

    /// Whether it may answer more than is expected of it: see [`Session::say_fence`](super::Session::say_fence).
    pub fn may_answer_more(&self) -> bool {
        self.sync_in_copy && self.copy_in.is_none()
    }

    /// Whether what it answers next may be that it waits for COPY data.
    pub fn may_begin_copy(&self) -> bool {
        let is_execute = |e: &Expected| !e.hidden && matches!(e.what, Expect::Execute(_));
        self.queue.iter().any(is_execute)
    }

    /// Whether what it has been told and has not answered may drop prepared statements.
    pub fn may_forget(&self) -> bool {
        self.owes_tracked(Tracked::forgets)
    }

    /// Whether what it has been told and has not answered may end the open transaction for good.
    pub fn may_commit(&self) -> bool {
        self.owes_tracked(Tracked::commits)
    }

    /// Whether what it has been told may be done although the open transaction is not committed: as it comes behind its
    /// end, which need not be known yet.
    pub fn may_outlive_transaction(&self) -> bool {
        let mut ends = self.has_ended;
        ends || self.queue.iter().any(|expected| {
            let is_behind = ends;
            match &expected.what {
                Expect::Execute(tracked) | Expect::Query { tracked, .. } => {
                    let tracked = tracked.as_ref();
                    ends |= tracked.is_some_and(Tracked::ends);
                    is_behind || tracked.is_some_and(Tracked::goes_on_behind_end)
                }
                Expect::FunctionCall => is_behind,
                _ => false,
            }
        })
    }

    /// Whether it owes the answer to a text that is like this.
    fn owes_tracked(&self, is_it: impl Fn(&Tracked) -> bool + Copy) -> bool {
        self.queue.iter().any(|e| match &e.what {
            Expect::Execute(tracked) | Expect::Query { tracked, .. } => {
                tracked.as_ref().is_some_and(is_it)
            }
            _ => false,
        })
    }

    pub fn copies_in(&self) -> bool {
        self.copy_in.is_some()
    }

    /// DISCARD ALL has run, which spares the unnamed statement.
    pub fn reset(&mut self) {
        self.settings = Settings::default();
        self.statements.clear();
        self.drawn_by = None;
    }

    /// A Query has been sent, which drops the unnamed statement.
    pub fn drop_unnamed(&mut self) {
        self.unnamed = None;
    }

    pub(super) fn expect(&mut self, what: Expect) {
        self.queue.push_back(Expected {
            what,
            hidden: false,
        });
    }

    pub(super) fn expect_hidden(&mut self, what: Expect) {
        self.queue.push_back(Expected { what, hidden: true });
    }
}

/// No session's.
pub(super) const NOT_KNOWN: (u64, u64) = (0, 0);

/// One answer that a server owes.
#[derive(Debug)]
pub(super) struct Expected {
    pub what: Expect,
    /// The proxy asked, not the client.
    pub hidden: bool,
}

#[derive(Debug)]
pub(super) enum Expect {
    /// The client's Parse: a named statement, forgotten again when it fails.
    Parse {
        prepared: Arc<Prepared>,
        name: Box<[u8]>,
    },
    /// The client's Parse of a name that it already uses: it fails with the client's own name.
    ParseAgain {
        existing: Arc<Prepared>,
        name: Box<[u8]>,
    },
    /// The client's Parse of a name that PREPARE has taken: it fails.
    ParseTaken,
    ParseUnnamed,
    /// The proxy's Parse of a statement that the client prepared earlier.
    Prepare {
        id: u64,
    },
    /// The proxy's Describe of a statement that the server has just prepared.
    Shape(Arc<Prepared>),
    /// The client's message that makes no sense: it fails.
    Malformed,
    /// A message that fails in place of one about a statement that returns something else by now.
    Stale,
    /// A message that fails in place of a batch that must not be done: a Query, or one of the extended
    /// protocol.
    RefusedQuery(Arc<Complaint>),
    Refused(Arc<Complaint>),
    /// Of the named statement that it binds, if it does.
    Bind {
        of: Option<Arc<Prepared>>,
        /// The number of what it does to portals.
        change: u64,
    },
    /// Of the named statement that it describes, if it does.
    Describe(Option<Arc<Prepared>>),
    Close,
    /// The client's Close of a portal, by the number of what it does.
    ClosePortal(u64),
    /// The client's Close of a statement that PREPARE has made.
    ClosePrepared(Box<[u8]>),
    /// The proxy's Close of a statement, which makes room for others.
    Evict {
        id: u64,
        fit: Fit,
    },
    Execute(Option<Tracked>),
    Query {
        tracked: Option<Tracked>,
        /// How many statements have succeeded, and where their text ends if it is kept.
        statement: usize,
        end: usize,
        /// The statements that it names by the servers' names.
        renamed: Renames,
    },
    /// The proxy's SETs.
    Settings,
    /// The proxy's question about the session.
    Inspection,
    /// The proxy's own, which fails, as the transaction has that it is said in.
    Failing,
    /// The proxy's empty Query, behind all that the server may answer; and whether that has been answered.
    Fence {
        reached: bool,
    },
    FunctionCall,
    Sync,
    /// The client's Parse of a statement that the server has: answered by the proxy in its turn.
    Parsed {
        name: Box<[u8]>,
    },
    /// The client's Close of a statement, answered by the proxy in its turn. The server keeps one that
    /// others may use.
    CloseStatement(Option<Forgotten>),
}

impl Expect {
    /// The answer to a Query of which no statement has succeeded yet.
    #[inline]
    pub fn query(tracked: Option<Tracked>, renamed: Renames) -> Expect {
        Expect::Query {
            tracked,
            statement: 0,
            end: 0,
            renamed,
        }
    }

    /// Whether ReadyForQuery ends the answer.
    pub fn ends(&self) -> bool {
        matches!(
            self,
            Expect::Query { .. }
                | Expect::RefusedQuery(_)
                | Expect::Sync
                | Expect::FunctionCall
                | Expect::Settings
                | Expect::Inspection
                | Expect::Failing
                | Expect::Fence { .. }
        )
    }
}

/// Whether a statement of a server's is what its number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Fits,
    /// It was prepared for this session under other settings than its own.
    Misread(u64),
    /// It returned something else to this session, by definitions that nobody else has seen.
    Misshaped(u64),
}

/// A statement that a session has forgotten by the name its client had given it.
pub(super) type Forgotten = (Box<[u8]>, Arc<Prepared>);

/// A COPY FROM STDIN under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyIn {
    /// Within a Query: CopyDone is the client's last word.
    Simple { done: bool },
    /// Within an Execute: after CopyDone the pipeline goes on.
    Extended { done: bool },
}
