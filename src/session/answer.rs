//! Owns: what the client is to be sent of an answer. Never: knows what an answer means.

use std::ops::Range;

use bytes::BytesMut;
use smallvec::SmallVec;

use crate::wire::frame::body;
use crate::wire::message;

/// The room for the proxy's own words that an idle session keeps, in bytes.
const OWN_BYTES_KEPT: usize = 256;

/// What the client is to be sent: stretches of the server's bytes, and words of the proxy's own.
#[derive(Debug, Default)]
pub struct Answer {
    pub runs: SmallVec<[Run; 2]>,
    /// The proxy's own words, which runs refer to.
    pub own: BytesMut,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// A stretch of the server's bytes.
    Server(Range<usize>),
    /// A stretch of [`Answer::own`].
    Own(Range<usize>),
}

impl Answer {
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub fn clear(&mut self) {
        self.runs.clear();
        self.own.clear();
    }

    /// The session has nothing to do: memory beyond what answers usually need is given up.
    pub fn rest(&mut self) {
        if self.is_empty() && (self.runs.spilled() || self.own.capacity() > OWN_BYTES_KEPT) {
            *self = Answer::default();
        }
    }

    /// How many bytes the client is to be sent.
    pub(super) fn len(&self) -> usize {
        let len = |run: &Run| match run {
            Run::Server(at) | Run::Own(at) => at.len(),
        };
        self.runs.iter().map(len).sum()
    }

    /// The SQLSTATE of the error that it ends with: the server's, whose body this is, or one in the proxy's
    /// own words.
    pub(super) fn last_error<'a>(&'a self, servers: &'a [u8]) -> &'a [u8] {
        let told = match self.runs.last() {
            Some(Run::Own(at)) => self.own.get(at.clone()).map_or(&[][..], body),
            _ => servers,
        };
        message::error_field(told, b'C').unwrap_or_default()
    }

    pub(super) fn forward(&mut self, at: Range<usize>) {
        if let Some(Run::Server(last)) = self.runs.last_mut()
            && last.end == at.start
        {
            last.end = at.end;
        } else if !at.is_empty() {
            self.runs.push(Run::Server(at));
        }
    }

    pub(super) fn say(&mut self, words: impl FnOnce(&mut BytesMut)) {
        let start = self.own.len();
        words(&mut self.own);
        if self.own.len() > start {
            self.runs.push(Run::Own(start..self.own.len()));
        }
    }
}
