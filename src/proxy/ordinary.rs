//! Owns: waiting for the client, and the exchange that nearly every batch is: said in one write,
//! answered in one read. Never: goes on with anything else; that is left to where it can take its time.
//!
//! All of it is one function to poll, with what it has to remember in the client: a task per client is
//! woken twice for a query, and what is not asked of it then costs nothing.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::BytesMut;

use super::Client;
use super::acquire::{Placed, Side};
use super::refusal::Refusal;
use super::relay::{Begun, Ledger};
use crate::net::buffers;
use crate::net::stream::Stream;
use crate::session::batch::End;
use crate::session::pipeline::{ClientFault, Planned};
use crate::telemetry;
use crate::wire::message::Status;

/// An exchange whose batch has been said, and whose answer has not come.
pub(super) struct UnderWay {
    pub placed: Placed,
    pub started: Instant,
}

/// How far a batch has come.
pub(super) enum Lead {
    Planned,
    /// It has a server. Whether it has been said, and what has come of that, the client has
    /// [noted](Client::begun).
    Placed(UnderWay),
}

/// What the client has come to that takes more than [`Client::poll_ordinary`].
pub(super) enum Next {
    /// A batch that takes more, and how far it has come.
    Batch(End, Lead),
    /// All is answered; what becomes of the server takes a while.
    Settle(Placed),
    /// The held server says something of its own accord.
    HeldSpeaks,
    /// It is between two batches, and there is a call for it to move to another worker.
    Call,
    /// The client has gone, or said goodbye.
    Gone,
    /// The session is to end.
    Stop,
    Fault(ClientFault),
    Refused(Refusal),
}

/// Whether a client's task is woken when something is wanted of it: it need say so once.
#[derive(Default)]
pub(super) struct Listening(bool);

impl Client {
    /// Serves the client for as long as its batches and their answers are ordinary.
    pub(super) fn poll_ordinary(
        &mut self,
        cx: &mut Context<'_>,
        listening: &mut Listening,
    ) -> Poll<Next> {
        if !std::mem::replace(&mut listening.0, true) {
            self.registered.handle.listen(cx.waker());
        }
        loop {
            if self.under_way.is_some() {
                if self.registered.handle.is_wanted()
                    && let Some(next) = self.leave_ordinary()
                {
                    return Poll::Ready(next);
                }
                if let Some(next) = ready!(self.poll_answer(cx)) {
                    return Poll::Ready(next);
                }
                if self.seat.has_call() && self.is_between_batches() {
                    return Poll::Ready(Next::Call);
                }
                if self.must_stop() {
                    return Poll::Ready(Next::Stop);
                }
            }
            match self.session.plan(&self.inbox, &mut self.batch) {
                Ok(Planned::Batch(end)) => {
                    if let Some(next) = self.begin(end) {
                        return Poll::Ready(next);
                    }
                    continue;
                }
                Ok(Planned::NeedMore) => {}
                Ok(Planned::Terminate) => return Poll::Ready(Next::Gone),
                Err(fault) => return Poll::Ready(Next::Fault(fault)),
            }
            match self.poll_client(cx) {
                Poll::Ready(Ok(n)) if n > 0 => continue,
                Poll::Ready(_) => return Poll::Ready(Next::Gone),
                Poll::Pending => {}
            }
            if let Some(server) = &mut self.held
                && server.stream.poll_readable(cx).is_ready()
            {
                return Poll::Ready(Next::HeldSpeaks);
            }
            return match self.must_stop() {
                true => Poll::Ready(Next::Stop),
                false => Poll::Pending,
            };
        }
    }

    /// Something is wanted of the session while it waits for an answer: it ends, or goes on where the server is
    /// looked at, if it may be lost.
    #[cold]
    fn leave_ordinary(&mut self) -> Option<Next> {
        let handle = &self.registered.handle;
        let must_end = handle.must_end(false);
        if !must_end && !handle.is_to_look() {
            return None;
        }
        let server = &self.under_way.as_ref()?.placed.server;
        let node = server.node();
        let seems_well = node.loss().is_none() && node.may_be_in(server.incarnation);
        if !must_end && seems_well && server.stream.retransmissions() == 0 {
            handle.takes_look();
            return None;
        }
        let under_way = self.under_way.take()?;
        self.begun = Some(Begun::Received(BytesMut::new()));
        Some(Next::Batch(End::Ready, Lead::Placed(under_way)))
    }

    /// Whether the session is to end, as far as what it has open lets it.
    pub(super) fn must_stop(&self) -> bool {
        let is_idle = self.session.status() == Status::Idle;
        self.registered.handle.must_end(is_idle)
    }

    /// Reads what the client says next, keeping no buffer while there is nothing.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = match self.stream.is_plain() {
            true => self.poll_plain_client(cx),
            false => {
                self.rest_if_idle();
                ready!(self.stream.poll_readable(cx))?;
                read_client(&mut self.stream, &mut self.inbox, cx)
            }
        };
        let n = ready!(read)?;
        telemetry::metrics()
            .client_bytes_received
            .increment(n as u64);
        if self.discard > 0 {
            let discarded = (self.discard as usize).min(self.inbox.len());
            buffers::consume(&mut self.inbox, discarded);
            self.discard -= discarded as u32;
        }
        Poll::Ready(Ok(n))
    }

    fn poll_plain_client(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            let (stream, inbox) = (&mut self.stream, &mut self.inbox);
            let read = buffers::with_desk(|desk| {
                let read = stream.receive_now(desk);
                if let Some(Ok(n)) = read {
                    if inbox.capacity() == 0 {
                        *inbox = buffers::take();
                    }
                    inbox.extend_from_slice(desk.get(..n).unwrap_or(&[]));
                }
                read
            });
            if let Some(read) = read {
                return Poll::Ready(read);
            }
            self.rest_if_idle();
            ready!(self.stream.poll_readable(cx))?;
        }
    }

    /// Finds a server for the batch and says it, if that can be done at once. Whatever else has to be
    /// done comes back.
    fn begin(&mut self, end: End) -> Option<Next> {
        if !self.session.is_ordinary(&self.batch) || self.may_be_unopened() {
            return Some(Next::Batch(end, Lead::Planned));
        }
        let started = Instant::now();
        let lead = match self.lend(self.needs_primary(end)) {
            Ok(Some(placed)) => Lead::Placed(self.say_ordinary(UnderWay { placed, started })?),
            Ok(None) => Lead::Planned,
            Err(refusal) => return Some(Next::Refused(refusal)),
        };
        Some(Next::Batch(end, lead))
    }

    /// Says the batch to the server that was found for it, if both are ordinary; gives it back if
    /// there is more to it.
    pub(super) fn say_ordinary(&mut self, mut under_way: UnderWay) -> Option<UnderWay> {
        let placed = &mut under_way.placed;
        let server = &mut *placed.server;
        let is_ready = self.stream.is_plain()
            && server.stream.is_plain()
            && server.unread.is_empty()
            && self.outbox.is_empty()
            && !self.session.is_to_be_opened()
            && self.session.is_ordinary(&self.batch)
            && self.session.finds_all_on(&server.state, &self.batch);
        if !is_ready {
            return Some(under_way);
        }
        self.registered.handle.works_with(&server.listed);
        server.state.repairable = placed.repairable;
        let mut words = match self.batch.is_one_query() {
            true => BytesMut::new(),
            false => buffers::take(),
        };
        self.session.note(&self.batch);
        let reads = self.base.transaction_reads();
        self.session
            .note_place(&self.batch, (placed.side == Side::Replica).then_some(reads));
        let state = &mut server.state;
        let own = self
            .session
            .say(&self.batch, &self.inbox, state, &mut words);
        let said = match own {
            true => self.inbox.get(..self.batch.len).unwrap_or(&[]),
            false => &words,
        };
        let sent = match server.stream.send_now(said) {
            Some(Ok(n)) => n,
            // It is tried again, and then it is seen what is wrong.
            Some(Err(_)) | None => 0,
        };
        let is_said = sent == said.len();
        if is_said {
            if words.capacity() > 0 {
                buffers::give_back(&mut words);
            }
            self.under_way = Some(under_way);
            return None;
        }
        buffers::consume(&mut words, sent);
        self.begun = Some(match own {
            true => Begun::Direct(sent),
            false => Begun::Words(words),
        });
        Some(under_way)
    }

    /// Hears the answer, once it is there.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Next>> {
        let Some(under_way) = &mut self.under_way else {
            return Poll::Ready(None);
        };
        let ledger = (under_way.placed.side == Side::Primary).then_some(Ledger(&self.cluster));
        let server = &mut *under_way.placed.server;
        let (client, session) = (&mut self.stream, &mut self.session);
        let heard = loop {
            let heard = buffers::with_desk(|desk| {
                // An error is met again, and dealt with then.
                let n = server.stream.receive_now(desk)?.unwrap_or(0);
                let answer = desk.get(..n).unwrap_or(&[]);
                if !session.hear_ordinary(&mut server.state, answer) {
                    let mut received = buffers::take();
                    received.extend_from_slice(answer);
                    return Some(Err(received));
                }
                if let Some(ledger) = ledger {
                    ledger.note(session);
                }
                let sent = match client.send_now(answer) {
                    Some(Ok(sent)) => sent,
                    Some(Err(_)) | None => 0,
                };
                if sent < n {
                    let unsent = answer.get(sent..).unwrap_or(&[]);
                    self.outbox.extend_from_slice(unsent);
                }
                Some(Ok(sent))
            });
            match heard {
                Some(heard) => break heard,
                None => {
                    if ready!(server.stream.poll_readable(cx)).is_err() {
                        break Err(BytesMut::new());
                    }
                }
            }
        };
        let Some(under_way) = self.under_way.take() else {
            return Poll::Ready(None);
        };
        match heard {
            Ok(sent) if self.outbox.is_empty() => {
                telemetry::metrics()
                    .client_bytes_sent
                    .increment(sent as u64);
                return Poll::Ready(self.end_ordinary(under_way));
            }
            Ok(sent) => self.begun = Some(Begun::Answered(sent as u64)),
            Err(received) => self.begun = Some(Begun::Received(received)),
        }
        Poll::Ready(Some(Next::Batch(End::Ready, Lead::Placed(under_way))))
    }

    /// All is answered: counts it and gives the server back, unless that takes a while.
    fn end_ordinary(&mut self, under_way: UnderWay) -> Option<Next> {
        let UnderWay { placed, started } = under_way;
        let now = self.count(&placed, (started, placed.found(started)), None);
        self.drop_batch();
        let takes_a_while = self.session.must_inspect();
        if takes_a_while || !self.registered.handle.leaves_server() {
            return Some(Next::Settle(placed));
        }
        let Placed { server, side, .. } = placed;
        if !server.state.is_idle() {
            self.hold(server, side);
            return None;
        }
        self.raise_floors(&server, side);
        self.put_back(server, side, now);
        None
    }
}

/// Reads what a client has said, into a buffer that is taken only for as long as there is something
/// in it.
fn read_client(
    stream: &mut Stream,
    inbox: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if inbox.capacity() == 0 {
        *inbox = buffers::take();
    }
    // A long message gets room in steps, so that an announced length alone costs no memory.
    inbox.reserve(buffers::BUFFER_BYTES / 2);
    let read = stream.poll_read(cx, inbox);
    if inbox.is_empty() {
        buffers::give_back(inbox);
    }
    read
}
