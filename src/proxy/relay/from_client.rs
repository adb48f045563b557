//! Owns: what of the client's bytes an exchange takes in, and passes to the server. Never: reads from a client whose
//! words the exchange does not wait for.

use std::task::{Context, Poll};

use super::{ClientSide, Relay};
use crate::net::buffers;
use crate::proxy::refusal::Broken;
use crate::session::batch::End;
use crate::session::pipeline::{Planned, is_copy_data, may_name_statement};
use crate::session::say::COPY_BROKEN;
use crate::wire::frame::{Header, header};
use crate::wire::{FRAME_BUFFERED_BYTES_MAX, PARSE_BYTES_MAX, encode};

/// How much of what the client sends ahead is taken in while its answer is under way, in bytes.
const AHEAD_BYTES_MAX: usize = 64 << 10;

/// How much may wait to be written to a server before the client is made to wait, in bytes.
const TO_SERVER_BYTES_MAX: usize = 64 << 10;

impl Relay<'_> {
    /// Takes in what the client sends, and passes on what belongs to this exchange. `true` when
    /// something happened.
    ///
    /// What the client sends ahead of its turn waits in its socket, as it would with PostgreSQL: so
    /// nearly every exchange leaves the client alone until it has its answer.
    pub(super) fn take_from_client(
        &mut self,
        cx: &mut Context<'_>,
        room: bool,
    ) -> Result<bool, Broken> {
        let mut took = false;
        if room || self.to_server.len() < TO_SERVER_BYTES_MAX {
            took = self.pass_to_server()?;
        }
        if self.awaits_client() && self.client.inbox.len() < self.inbox_max() {
            let ClientSide { stream, inbox, .. } = &mut self.client;
            match self.from_client.poll_read(cx, stream, inbox) {
                Poll::Ready(Ok(n)) if n > 0 => took = true,
                Poll::Ready(_) => return Err(Broken::Client),
                Poll::Pending => {}
            }
        }
        Ok(took)
    }

    /// Whether the exchange can't come to its end without more from the client.
    fn awaits_client(&self) -> bool {
        let state = &self.server.state;
        self.open || self.beyond > 0 || state.copies_in() || state.awaits_sync()
    }

    /// A message that must be whole to be understood may be longer than what is taken in ahead.
    fn inbox_max(&self) -> usize {
        let planned = self.client.batch.len;
        let next = self.client.inbox.get(planned..).unwrap_or(&[]);
        let whole = match header(next) {
            Ok(Some(Header { tag: b'P', len })) => len.min(PARSE_BYTES_MAX),
            Ok(Some(Header { len, .. })) => len.min(FRAME_BUFFERED_BYTES_MAX),
            _ => 0,
        };
        planned + AHEAD_BYTES_MAX + whole
    }

    /// Passes on the client's bytes that belong to this exchange. `true` when there were any.
    fn pass_to_server(&mut self) -> Result<bool, Broken> {
        if self.direct_passes && !self.direct.is_empty() {
            return Ok(false);
        }
        let mut took = false;
        if self.beyond > 0 && self.consumed && self.direct.is_empty() {
            let n = self.beyond.min(self.client.inbox.len());
            match self.client.session.swallows_rest() {
                true => buffers::consume(self.client.inbox, n),
                false => self.pass_directly(n),
            }
            self.beyond -= n;
            took = n > 0;
            if self.beyond > 0 || !self.direct.is_empty() {
                return Ok(took);
            }
        }
        let state = &mut self.server.state;
        if state.copies_in() {
            self.consume();
            self.client.session.unplan(self.client.batch);
            let state = &mut self.server.state;
            let part = self.client.session.copy_in(self.client.inbox, state)?;
            self.pass_directly(part.len);
            self.beyond = part.beyond;
            if part.breaks {
                self.to_server.extend_from_slice(COPY_BROKEN);
            }
            took |= part.len > 0 || part.breaks;
            if !self.direct.is_empty() {
                return Ok(took);
            }
        }
        while (self.open || self.server.state.awaits_sync())
            && !self.leave
            && self.beyond == 0
            && self.to_server.len() < TO_SERVER_BYTES_MAX
        {
            self.consume();
            if !self.client.session.copy_goes_on(&self.server.state) {
                break;
            }
            let state = &self.server.state;
            let depends_on_answer = |&tag: &u8| {
                is_copy_data(tag) && state.may_begin_copy()
                    || may_name_statement(tag) && state.may_forget()
            };
            let next = self.client.inbox.get(self.client.batch.len);
            if next.is_some_and(depends_on_answer) || !state.may_owe_more() {
                took |= self.ask_to_flush();
                break;
            }
            match self
                .client
                .session
                .plan(self.client.inbox, self.client.batch)?
            {
                Planned::NeedMore => break,
                Planned::Terminate => return Err(Broken::Client),
                Planned::Batch(end) => {
                    took = true;
                    if self.leaves_server() {
                        self.leave = true;
                        break;
                    }
                    self.say();
                    self.open = end == End::Open;
                }
            }
        }
        Ok(took)
    }

    /// Whether the part of the pipeline that has been planned belongs elsewhere. What came before it on a replica may
    /// be long ago, and others may have changed the schema since then.
    fn leaves_server(&self) -> bool {
        let session = &self.client.session;
        let is_outdated =
            self.place.is_replica() && !session.roams() && !session.has_heeded_schema();
        !session.is_failed() && (is_outdated || (self.belongs_elsewhere)(self.client.batch))
    }

    /// Passes on the first `n` bytes of the inbox: from where they are, if nothing waits before them.
    fn pass_directly(&mut self, n: usize) {
        if self.to_server.is_empty() && self.direct.is_empty() {
            (self.direct, self.direct_passes) = (0..n, true);
        } else {
            let bytes = self.client.inbox.get(..n).unwrap_or(&[]);
            self.to_server.extend_from_slice(bytes);
            buffers::consume(self.client.inbox, n);
        }
    }

    /// The client has to wait for answers that the server may hold back until a Sync, which the
    /// client has not sent. `true` when that was said.
    fn ask_to_flush(&mut self) -> bool {
        if self.flushed {
            return false;
        }
        self.flushed = true;
        self.to_server.extend_from_slice(encode::FLUSH);
        true
    }

    /// Says the planned batch to the server.
    pub(super) fn say(&mut self) {
        (self.is_said, self.flushed) = (true, false);
        if self.to_server.capacity() == 0 && !self.client.batch.is_one_query() {
            // Where a statement is named, its name there is another.
            self.to_server = buffers::take();
        }
        let client = &mut self.client;
        client.session.note(client.batch);
        let transactions = self.place.transactions();
        client.session.note_place(client.batch, transactions);
        if !self.place.is_replica() && client.batch.executes && !client.batch.only_explains() {
            // What has run on the primary is not to be committed before the pipeline ends.
            self.belongs_elsewhere = |_| false;
        }
        let state = &mut self.server.state;
        let waiting = !self.to_server.is_empty();
        let direct = client
            .session
            .say(client.batch, client.inbox, state, &mut self.to_server);
        self.beyond = client.batch.beyond;
        if direct && !waiting {
            (self.direct, self.direct_passes) = (0..client.batch.len, false);
        }
        client.session.answer_in_turn(state, client.answer);
        if self.open {
            self.queue_answer();
        }
        // Else the server is sure to say more, and until then the batch can still be run elsewhere.
        if self.beyond > 0 || self.open || self.consumed {
            self.consume_said();
        }
    }

    /// Takes the batch's bytes out of the inbox: from here on it can't be sent again.
    fn consume(&mut self) {
        if !self.consumed {
            self.consume_said();
        }
    }

    fn consume_said(&mut self) {
        // What is direct is written before `to_server`, and gets behind it here: right only as one of them is empty.
        debug_assert!(self.direct.is_empty() || self.to_server.is_empty());
        let rest = self.client.inbox.get(self.direct.clone()).unwrap_or(&[]);
        self.to_server.extend_from_slice(rest);
        self.direct = 0..0;
        if let Some(texts) = &mut self.texts {
            texts.keep(self.client.batch, self.client.inbox);
        }
        let n = self.client.batch.len.min(self.client.inbox.len());
        buffers::consume(self.client.inbox, n);
        self.client.batch.clear();
        self.consumed = true;
    }
}
