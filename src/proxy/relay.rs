//! Owns: one exchange between a client and a server: bytes in both directions until nothing is owed.
//! Never: holds more of an answer than one buffer.

mod from_client;

use std::io;
use std::ops::Range;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;

use super::refusal::Broken;
use super::sessions::Handle;
use super::slow::Texts;
use crate::cluster::Cluster;
use crate::cluster::node::Loss;
use crate::cluster::pool::server::Server;
use crate::config::TransactionReads;
use crate::net::buffers;
use crate::net::flow::Flow;
use crate::net::stream::Stream;
use crate::session::Session;
use crate::session::answer::{Answer, Run};
use crate::session::answers::ServerFault;
use crate::session::batch::{Batch, End};
use crate::session::repair::Repairable;
use crate::sql::Need;
use crate::wire::message::Status;

/// So often in a row the system has to send something again for the network to have lost a server or a client: by then it
/// has tried for half a minute or so, and would go on for a quarter of an hour.
const RETRANSMISSIONS_MAX: u8 = 7;

/// So often in a row, and for so long, a client that reads slowly has not answered whether it has room by now: each question
/// comes twice as long after the one before, up to two minutes.
const PROBES_MAX: u8 = 3;
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The client's side of an exchange.
pub struct ClientSide<'a> {
    pub handle: &'a Handle,
    pub stream: &'a mut Stream,
    /// What the client has sent and is not dealt with.
    pub inbox: &'a mut BytesMut,
    /// What the client is to be sent and its socket has not taken.
    pub outbox: &'a mut BytesMut,
    pub session: &'a mut Session,
    pub batch: &'a mut Batch,
    pub answer: &'a mut Answer,
}

/// How far an exchange has come whose batch has been said.
pub enum Begun {
    /// The server has not taken these of the proxy's words.
    Words(BytesMut),
    /// It has taken so many of the client's own bytes, and not the rest of the batch.
    Direct(usize),
    /// It has answered this, which is not dealt with.
    Received(BytesMut),
    /// All is heard, and the client has taken so many bytes of it; the rest is in the outbox.
    Answered(u64),
}

/// One exchange.
pub struct Relay<'a> {
    pub client: ClientSide<'a>,
    pub server: &'a mut Server,
    /// What the server has sent and is not dealt with.
    received: BytesMut,
    /// The part of `received` that the client is to be sent next, behind the outbox; and how much of
    /// it is dealt with when that has been sent.
    unsent: Range<usize>,
    heard: usize,
    from_server: Flow,
    from_client: Flow,
    /// What the server is to be sent and its socket has not taken.
    pub to_server: BytesMut,
    /// The client's own bytes that go to the server as they are: sent so far, and the end.
    direct: Range<usize>,
    /// They are taken out of the inbox as they are sent.
    direct_passes: bool,
    /// The batch's bytes have been taken out of the inbox: it can't be sent again.
    pub consumed: bool,
    /// What it was, where that is to be logged.
    pub(super) texts: Option<Texts>,
    /// The batch has been said, and not only what comes before it.
    is_said: bool,
    /// More of the pipeline is to come.
    open: bool,
    /// Bytes of a message to the server that are still to come from the client.
    beyond: usize,
    /// Bytes of the answer that the client has been sent.
    pub answered: u64,
    /// The server has been asked to send what it holds back, since something was last said to it.
    flushed: bool,
    /// It had said nothing when its node was last seen to be gone, nor since then.
    is_silent: bool,
    /// The next part of the pipeline belongs elsewhere: leave the server.
    pub leave: bool,
    /// Decides that for a part that has been planned. On a primary that is an explanation, which has to
    /// be asked for first.
    pub belongs_elsewhere: fn(&Batch) -> bool,
    place: Place<'a>,
}

/// Where an exchange takes place.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// On a primary, and where it is noted what is acknowledged, before the client is told. Whoever hears
    /// of it from the client, and reads, must find it.
    Primary(Ledger<'a>),
    /// On a replica, and which transactions may begin there.
    Replica(TransactionReads),
}

impl Place<'_> {
    fn is_replica(self) -> bool {
        matches!(self, Place::Replica(_))
    }

    /// Which transactions may begin there, if it is on a replica.
    fn transactions(self) -> Option<TransactionReads> {
        match self {
            Place::Primary(_) => None,
            Place::Replica(transactions) => Some(transactions),
        }
    }
}

/// Where it is noted what sessions are acknowledged.
#[derive(Clone, Copy)]
pub struct Ledger<'a>(pub &'a Cluster);

impl Ledger<'_> {
    #[inline]
    pub fn note(self, session: &Session) {
        let did = session.did();
        if did.wrote {
            self.0.note_write();
        }
        if (did.wrote || did.read) && session.may_have_keys() {
            self.note_keys(session, did.wrote);
        }
    }

    #[cold]
    fn note_keys(self, session: &Session, wrote: bool) {
        let Some(keys) = session.keys() else {
            return self.0.note_all_keys(wrote);
        };
        for key in keys {
            self.0.note_key(session.database(), key, wrote);
        }
    }
}

impl<'a> Relay<'a> {
    pub fn new(client: ClientSide<'a>, server: &'a mut Server, place: Place<'a>) -> Relay<'a> {
        server.state.client_pid = client.handle.pid;
        let received = match server.unread.is_empty() {
            true => buffers::take(),
            false => std::mem::take(&mut server.unread),
        };
        Relay {
            client,
            server,
            received,
            unsent: 0..0,
            heard: 0,
            from_server: Flow::default(),
            from_client: Flow::default(),
            to_server: BytesMut::new(),
            direct: 0..0,
            direct_passes: false,
            consumed: false,
            texts: None,
            is_said: false,
            open: false,
            beyond: 0,
            answered: 0,
            flushed: false,
            is_silent: false,
            leave: false,
            belongs_elsewhere: |_| false,
            place,
        }
    }

    /// Brings the server to the session's settings, says the planned batch, and goes on until all
    /// is answered or the pipeline has to go on elsewhere.
    pub async fn converse(&mut self, end: End) -> Result<(), Broken> {
        let (session, state) = (&mut *self.client.session, &mut self.server.state);
        if session.is_to_be_opened() {
            // Were it not, what follows would be done outside of a transaction, and for good.
            session.say_opening(state, self.place.is_replica(), &mut self.to_server);
            self.run().await?;
            if self.server.state.status == Status::Idle {
                return Err(Broken::Server(ServerFault::Unexpected('Z')));
            }
        }
        let (session, state) = (&mut *self.client.session, &mut self.server.state);
        let is_other = state.settings.differs_in_identity(session.settings());
        if !session.say_settings(state, &mut self.to_server) {
            session.show_params(state, self.client.outbox);
        } else if is_other || self.client.batch.need == Need::Write {
            // Nothing of the client's may run with other rights than it has, and nothing may be changed unless all
            // is as the session wants it. What else runs and should not have is gone with the server.
            self.run().await?;
        }
        let (session, state) = (&*self.client.session, &mut self.server.state);
        session.say_sequences(self.client.batch, state, &mut self.to_server);
        if session.say_missing(self.client.batch, state, &mut self.to_server) {
            self.run().await?;
        }
        self.open = end == End::Open;
        self.say();
        self.run().await?;
        if self.leave {
            // The server's part of the pipeline ends here; the client does not see that.
            (self.open, self.leave) = (false, false);
            let state = &mut self.server.state;
            self.client.session.say_sync(state, &mut self.to_server);
            self.run().await?;
            self.leave = !self.client.session.is_failed();
            if !self.leave {
                // What was to go on elsewhere is skipped, up to a Sync that is this server's to answer.
                self.open = self.client.batch.end() == Some(End::Open);
                self.say();
                self.run().await?;
            }
        }
        Ok(())
    }

    /// Takes up an exchange that was begun elsewhere; [`run`](Self::run) goes on with it.
    pub fn take_up(&mut self, begun: Begun) -> Result<(), Broken> {
        self.is_said = true;
        match begun {
            Begun::Words(words) => self.to_server = words,
            Begun::Direct(sent) => self.direct = sent..self.client.batch.len,
            Begun::Answered(bytes) => self.answered = bytes,
            Begun::Received(received) => {
                buffers::give_back(&mut self.received);
                self.received = received;
                self.hear_received()?;
            }
        }
        Ok(())
    }

    /// To be called last: keeps the beginning of a message for the next exchange.
    pub fn end(&mut self) {
        self.from_server.end(&self.server.stream);
        self.from_client.end(self.client.stream);
        if self.to_server.capacity() > 0 {
            buffers::give_back(&mut self.to_server);
        }
        self.queue_unsent();
        if self.received.is_empty() {
            buffers::give_back(&mut self.received);
        } else {
            self.server.unread = std::mem::take(&mut self.received);
        }
    }

    /// Hears what the server says of its own accord, once.
    pub async fn hear_once(&mut self) -> Result<(), Broken> {
        std::future::poll_fn(|cx| {
            self.read_server(cx)?;
            Poll::Ready(Ok::<(), Broken>(()))
        })
        .await?;
        self.run().await
    }

    /// Goes on until nothing is owed, or the next part of the pipeline belongs elsewhere.
    pub async fn run(&mut self) -> Result<(), Broken> {
        std::future::poll_fn(|cx| self.poll(cx)).await?;
        if !self.leave && self.server.state.may_answer_more() {
            let state = &mut self.server.state;
            self.client.session.say_fence(state, &mut self.to_server);
            std::future::poll_fn(|cx| self.poll(cx)).await?;
        }
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.client.handle.must_end(false) {
            return Poll::Ready(Err(Broken::Killed));
        }
        loop {
            let wrote_client = self.write_client(cx)?;
            let wrote_server = self.write_server(cx)?;
            // Nothing is read that could not be passed on: who reads slowly is answered slowly. And where all is
            // answered, that the server has gone since then is no part of it.
            let heard = wrote_client && !self.is_done() && self.read_server(cx)?;
            if self.is_done() {
                return Poll::Ready(Ok(()));
            }
            let took = self.take_from_client(cx, wrote_server)?;
            if !heard && !took {
                if self.client.handle.takes_look() {
                    match wrote_client {
                        true => self.look_at_server(wrote_server)?,
                        false => self.look_at_client()?,
                    }
                }
                return Poll::Pending;
            }
        }
    }

    /// Gives the server up if its node is lost and it owes an answer, or if the network has lost it. Where the node
    /// only seems to be gone it may be still at work: it has until the next look to say something.
    fn look_at_server(&mut self, wrote_all: bool) -> Result<(), Broken> {
        let state = &self.server.state;
        let owes = !(state.is_quiet() || state.copies_in() || state.awaits_sync());
        let node = self.server.node();
        let loss = match owes || !wrote_all {
            true if !node.may_be_in(self.server.incarnation) => Some(Loss::Superseded),
            true => node.loss(),
            false => None,
        };
        let was_silent = std::mem::replace(&mut self.is_silent, loss.is_some());
        match loss {
            Some(loss) if was_silent || loss == Loss::Superseded => Err(Broken::NodeLost(loss)),
            None if self.server.stream.retransmissions() >= RETRANSMISSIONS_MAX => {
                Err(Broken::ServerIo(io::ErrorKind::TimedOut.into()))
            }
            _ => Ok(()),
        }
    }

    /// Gives the client up if the network has lost it: it would keep its server for as long as the system tries.
    fn look_at_client(&self) -> Result<(), Broken> {
        let stream = &self.client.stream;
        let is_lost = stream.retransmissions() >= RETRANSMISSIONS_MAX
            || stream.is_asked_in_vain(PROBES_MAX, SILENCE_MAX);
        match is_lost {
            true => Err(Broken::Client),
            false => Ok(()),
        }
    }

    fn is_done(&self) -> bool {
        let said =
            self.to_server.is_empty() && self.direct.is_empty() && !self.server.stream.has_unsent();
        let quiet = self.server.state.is_quiet() && said && self.beyond == 0;
        let sent = self.client.outbox.is_empty()
            && self.unsent.is_empty()
            && !self.client.stream.has_unsent();
        (quiet && !self.open || self.leave) && sent
    }

    /// `true` when the client has been sent everything.
    fn write_client(&mut self, cx: &mut Context<'_>) -> Result<bool, Broken> {
        let outbox = &mut *self.client.outbox;
        while !outbox.is_empty() {
            match self.client.stream.poll_write(cx, outbox) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.answered += n as u64;
                    buffers::consume(outbox, n);
                }
                Poll::Ready(_) => return Err(Broken::Client),
                Poll::Pending => return Ok(false),
            }
        }
        while !self.unsent.is_empty() {
            let bytes = self.received.get(self.unsent.clone()).unwrap_or(&[]);
            match self.client.stream.poll_write(cx, bytes) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.answered += n as u64;
                    self.unsent.start += n;
                }
                Poll::Ready(_) => return Err(Broken::Client),
                Poll::Pending => return Ok(false),
            }
        }
        buffers::consume(&mut self.received, std::mem::take(&mut self.heard));
        match self.client.stream.poll_flush(cx) {
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(_)) => Err(Broken::Client),
            Poll::Pending => Ok(false),
        }
    }

    /// `true` when the server has been sent everything.
    fn write_server(&mut self, cx: &mut Context<'_>) -> Result<bool, Broken> {
        while !self.direct.is_empty() {
            let bytes = self.client.inbox.get(self.direct.clone()).unwrap_or(&[]);
            match write(&mut self.server.stream, cx, bytes) {
                Poll::Ready(Ok(n)) if self.direct_passes => {
                    buffers::consume(self.client.inbox, n);
                    self.direct.end -= n;
                }
                Poll::Ready(Ok(n)) => self.direct.start += n,
                // What it has said before it went is heard first.
                Poll::Ready(Err(error)) => return self.server_gone(error),
                Poll::Pending => return Ok(false),
            }
        }
        while !self.to_server.is_empty() {
            match write(&mut self.server.stream, cx, &self.to_server) {
                Poll::Ready(Ok(n)) => buffers::consume(&mut self.to_server, n),
                Poll::Ready(Err(error)) => return self.server_gone(error),
                Poll::Pending => return Ok(false),
            }
        }
        match self.server.stream.poll_flush(cx) {
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(error)) => self.server_gone(error),
            Poll::Pending => Ok(false),
        }
    }

    /// A write has failed. The server may have said why, and that is worth more.
    fn server_gone(&mut self, error: io::Error) -> Result<bool, Broken> {
        self.queue_unsent();
        if let Some(Ok(n)) = self.server.stream.read_now(&mut self.received)
            && n > 0
        {
            let state = &mut self.server.state;
            self.client
                .session
                .hear(state, &self.received, self.client.answer)?;
        }
        Err(Broken::ServerIo(error))
    }

    /// Reads what the server says and passes it on. `true` when something was read.
    fn read_server(&mut self, cx: &mut Context<'_>) -> Result<bool, Broken> {
        let stream = &mut self.server.stream;
        match self.from_server.poll_read(cx, stream, &mut self.received) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(0)) => {
                return Err(Broken::ServerIo(io::ErrorKind::UnexpectedEof.into()));
            }
            Poll::Ready(Err(error)) => return Err(Broken::ServerIo(error)),
            Poll::Ready(Ok(_)) => self.is_silent = false,
        }
        self.hear_received()?;
        self.write_client(cx)?;
        Ok(true)
    }

    fn hear_received(&mut self) -> Result<(), Broken> {
        if self.answered > 0 || !self.client.outbox.is_empty() {
            self.server.state.repairable = Repairable::No;
        }
        let client = &mut self.client;
        let heard = client
            .session
            .hear(&mut self.server.state, &self.received, client.answer);
        if let Place::Primary(ledger) = self.place {
            ledger.note(client.session);
        }
        self.pass_on();
        self.heard = match heard {
            Ok(heard) => heard,
            // The client has its answer, and would take another one for that to what it asks next.
            Err(_) if self.lacks_nothing() => {
                self.server.state.is_gone = true;
                self.received.len()
            }
            Err(fault) => return Err(fault.into()),
        };
        Ok(())
    }

    /// Whether all that the batch asks for has been heard, and nothing that the session needs would go with the
    /// server.
    fn lacks_nothing(&self) -> bool {
        let (session, state) = (&self.client.session, &self.server.state);
        let is_said = self.is_said && self.to_server.is_empty() && self.direct.is_empty();
        let is_answered = state.is_idle() && !state.may_answer_more();
        let keeps_nothing = self.place.is_replica() || !session.is_pinned();
        is_said
            && is_answered
            && !self.open
            && self.beyond == 0
            && session.status() == Status::Idle
            && keeps_nothing
    }

    /// Has the client sent what has been heard: from where it is, if that is one stretch of the
    /// server's bytes.
    fn pass_on(&mut self) {
        if let ([Run::Server(at)], true) =
            (&self.client.answer.runs[..], self.client.outbox.is_empty())
        {
            self.unsent = at.clone();
            self.client.answer.clear();
        } else {
            self.queue_answer();
        }
    }

    /// Puts what is to be sent from where it is into the outbox, since something comes behind it.
    fn queue_unsent(&mut self) {
        let unsent = std::mem::take(&mut self.unsent);
        let bytes = self.received.get(unsent).unwrap_or(&[]);
        self.client.outbox.extend_from_slice(bytes);
        buffers::consume(&mut self.received, std::mem::take(&mut self.heard));
    }

    /// Puts what has been heard into the outbox.
    fn queue_answer(&mut self) {
        if !self.unsent.is_empty() {
            self.queue_unsent();
        }
        let ClientSide { answer, outbox, .. } = &mut self.client;
        for run in answer.runs.drain(..) {
            let bytes = match run {
                Run::Server(at) => self.received.get(at),
                Run::Own(at) => answer.own.get(at),
            };
            outbox.extend_from_slice(bytes.unwrap_or(&[]));
        }
        answer.clear();
    }
}

fn write(stream: &mut Stream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match ready!(stream.poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        other => Poll::Ready(other),
    }
}
