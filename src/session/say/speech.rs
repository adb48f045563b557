//! Owns: the words to a server: the client's own bytes as long as these will do. Never: knows what they mean.

use std::ops::Range;

use bytes::BytesMut;

use crate::session::statements::SERVER_NAME_PREFIX;
use crate::wire::encode;
use crate::wire::frame::HEADER;
use crate::wire::message;

/// What is being said: the client's bytes as long as they can be passed on as they are.
pub(super) struct Speech<'a> {
    pub(super) client: &'a [u8],
    pub(super) out: &'a mut BytesMut,
    /// The client's bytes that come next and are not yet in `out`.
    pub(super) run: Range<usize>,
}

impl Speech<'_> {
    pub(super) fn forward(&mut self, at: &Range<usize>) {
        if self.run.end == at.start && (!self.run.is_empty() || at.start == 0) {
            self.run.end = at.end;
        } else {
            self.flush();
            self.run = at.clone();
        }
    }

    /// Forwards a Bind as one of this `statement`.
    #[inline]
    pub(super) fn forward_bind(
        &mut self,
        at: &Range<usize>,
        names: usize,
        beyond: usize,
        statement: &[u8],
    ) {
        let values = at.start + HEADER + names..at.end;
        let head = self.client.get(at.start + HEADER..).unwrap_or(&[]);
        let portal = message::Bind::read(head).map_or(&b""[..], |bind| bind.portal);
        encode::bind_head(self.own(), portal, statement, values.len() + beyond);
        self.forward(&values);
    }

    /// Forwards a message whose statement, named at offset `name`, the session does not know. A
    /// name that a server's own statement could have is made one that none has.
    pub(super) fn forward_unknown(&mut self, at: &Range<usize>, name: usize) {
        let frame = self.client.get(at.clone()).unwrap_or(&[]);
        if !frame
            .get(name..)
            .is_some_and(|name| name.starts_with(SERVER_NAME_PREFIX))
        {
            return self.forward(at);
        }
        let mut changed = frame.to_vec();
        changed[name] = b'-';
        self.own().extend_from_slice(&changed);
    }

    /// For words that are not the client's.
    pub(super) fn own(&mut self) -> &mut BytesMut {
        self.flush();
        self.out
    }

    fn flush(&mut self) {
        self.out
            .extend_from_slice(self.client.get(self.run.clone()).unwrap_or(&[]));
        self.run = 0..0;
    }

    /// `true` when nothing but the client's own bytes is to be said.
    pub(super) fn finish(mut self, len: usize) -> bool {
        if self.out.is_empty() && self.run == (0..len) && len > 0 {
            return true;
        }
        self.flush();
        false
    }
}
