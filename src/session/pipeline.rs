//! Owns: from the client's messages to a batch: what they are, and what they need. Never: answers the client.

use std::ops::Range;
use std::sync::Arc;

use super::batch::{Batch, End, Of, Rename, Renames, Step};
use super::bound::Bound;
use super::statements::Prepared;
use super::tracked::{Text, Tracked};
use super::transaction::Control;
use super::within::{self, Within};
use super::{Localised, Session, own, statements};
use crate::sql::catalog::Catalog;
use crate::sql::{Class, Need, Pin, Verb, Why, altered, lexer, prepared};
use crate::wire::frame::{HEADER, Header, body, header};
use crate::wire::message::{self, Status, Target};
use crate::wire::{FRAME_BUFFERED_BYTES_MAX, PARSE_BYTES_MAX, WireError};

/// A pipeline longer than this is sent before its Sync has been seen, in bytes.
pub const PIPELINE_BYTES_MAX: usize = 256 << 10;

/// A pipeline of more messages than this is sent before its Sync has been seen.
pub const PIPELINE_MESSAGES_MAX: usize = 32 << 10;

/// What the session makes of the bytes it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planned {
    NeedMore,
    Batch(End),
    Terminate,
}

/// What a client has done wrong; its connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientFault {
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("invalid frontend message type {0}")]
    Tag(u8),
    #[error("a session may not hold more than {0} prepared statements")]
    TooManyStatements(usize),
    #[error(
        "a session may not hold prepared statements of more than {0} bytes together: close those that are not needed"
    )]
    TooLongStatements(usize),
    #[error(
        "a transaction may not hold more than {} open portals that change the session, nor {} bytes of their texts: close those that are done",
        super::Portals::MAX,
        super::Portals::BYTES_MAX
    )]
    TooManyPortals,
}

impl ClientFault {
    pub fn sqlstate(self) -> &'static str {
        match self {
            ClientFault::Wire(WireError::TooLong { .. }) => "54000",
            ClientFault::TooManyStatements(_)
            | ClientFault::TooLongStatements(_)
            | ClientFault::TooManyPortals => "54000",
            _ => "08P01",
        }
    }
}

/// Whether what a message of this type means may depend on the statements that there are.
pub fn may_name_statement(tag: u8) -> bool {
    matches!(tag, b'Q' | b'P' | b'B' | b'D' | b'C')
}

/// Whether a message of this type is a part of a COPY FROM STDIN, if there is one.
pub fn is_copy_data(tag: u8) -> bool {
    matches!(tag, b'd' | b'c' | b'f')
}

impl Session {
    /// Plans the messages at the start of `client`, going on where the last call left `batch`.
    ///
    /// # Errors
    /// Bytes that are no message of a client's: the session cannot go on.
    pub fn plan(&mut self, client: &[u8], batch: &mut Batch) -> Result<Planned, ClientFault> {
        if client.is_empty() {
            return Ok(Planned::NeedMore);
        }
        batch.make_room();
        loop {
            let rest = client.get(batch.len..).unwrap_or(&[]);
            let Some(Header { tag, len }) = header(rest)? else {
                break;
            };
            if is_copy_data(tag) && batch.executes {
                // Perhaps of a COPY that is to be executed: the answer to that tells.
                return Ok(self.open(batch));
            }
            if batch.forgets && may_name_statement(tag) {
                return Ok(self.open(batch));
            }
            if len > FRAME_BUFFERED_BYTES_MAX && tag != b'P' {
                return self.plan_giant(tag, len, rest, batch);
            }
            if len > PARSE_BYTES_MAX {
                let error = WireError::TooLong {
                    tag: 'P',
                    len,
                    max: PARSE_BYTES_MAX,
                };
                return Err(error.into());
            }
            let Some(frame) = rest.get(..len) else { break };
            if tag == b'X' {
                // What came before it is answered to nobody, but is still done.
                return Ok(if batch.steps.is_empty() {
                    Planned::Terminate
                } else {
                    self.open(batch)
                });
            }
            let at = batch.len..batch.len + len;
            batch.len += len;
            let ends = match self.plan_message(tag, body(frame), at.clone(), batch) {
                Err(ClientFault::Wire(_)) => self.plan_malformed(tag, at, batch),
                planned => planned?,
            };
            if ends {
                batch.end = Some(End::Ready);
                return Ok(Planned::Batch(End::Ready));
            }
            if batch.steps.len() >= PIPELINE_MESSAGES_MAX {
                return Ok(self.open(batch));
            }
        }
        if batch.flushed || batch.len > PIPELINE_BYTES_MAX {
            return Ok(self.open(batch));
        }
        Ok(Planned::NeedMore)
    }

    fn open(&self, batch: &mut Batch) -> Planned {
        batch.end = Some(End::Open);
        Planned::Batch(End::Open)
    }

    /// The database that nobody else may be connected to for a batch to succeed. What copies, renames or drops one runs
    /// by itself: with anything else, PostgreSQL refuses it when its turn comes.
    #[cold]
    pub fn to_be_left(&self, batch: &Batch, client: &[u8]) -> Option<Box<[u8]>> {
        let sql = batch.only_text(client)?;
        let conforming = self.has_conforming_strings();
        let mut statements = lexer::statements(sql, conforming);
        match (statements.next(), statements.next()) {
            (Some(at), None) if self.status == Status::Idle => {
                altered::to_be_left(sql.get(at)?, conforming)
            }
            _ => None,
        }
    }

    /// Plans one whole message; `true` when the batch ends with it.
    fn plan_message(
        &mut self,
        tag: u8,
        body: &[u8],
        at: Range<usize>,
        batch: &mut Batch,
    ) -> Result<bool, ClientFault> {
        match tag {
            b'Q' => {
                self.plan_query(message::query(body)?, at, batch);
                return Ok(true);
            }
            b'P' => self.plan_parse(message::Parse::read(body)?, at, batch)?,
            b'B' => {
                let bind = message::Bind::read(body)?;
                let values = body.get(bind.head_len()..).unwrap_or(&[]);
                self.plan_bind(bind, values, at, 0, batch)?;
            }
            b'D' => match message::target(body)? {
                Target::Portal(name) => {
                    self.needs_portal(name, batch);
                    batch.portal.look_at(name);
                    batch.steps.push(Step::DescribePortal { at });
                }
                Target::Statement(name) => {
                    let (of, _) = self.statement(name, batch);
                    batch.steps.push(Step::Describe { at, of });
                }
            },
            b'E' => {
                let (portal, rows_max) = message::execute(body)?;
                self.needs_portal(portal, batch);
                batch.executes = true;
                batch.portal.execute(portal, rows_max);
                let tracked = self.portals.get(portal).cloned();
                batch.forgets |= tracked.as_ref().is_some_and(Tracked::forgets);
                batch.steps.push(Step::Execute { at, tracked });
            }
            b'C' => match message::target(body)? {
                Target::Portal(name) => {
                    self.needs_portal(name, batch);
                    if name.is_empty() {
                        batch.portal.close();
                    }
                    let change = self.portals.change(name, None);
                    batch.steps.push(Step::ClosePortal { at, change });
                }
                Target::Statement(name) => {
                    if self.pins.drop_prepared(name) {
                        self.pins.look_again(Pin::PreparedStatement);
                        batch.needs(Need::Write, Why::Utility);
                        batch.leaves_replica();
                        let name = name.into();
                        batch.steps.push(Step::ClosePrepared { at, name });
                        return Ok(false);
                    }
                    let forgotten = if name.is_empty() {
                        self.statements.drop_unnamed();
                        None
                    } else {
                        self.statements
                            .remove(name)
                            .map(|prepared| (name.into(), prepared))
                    };
                    batch.steps.push(Step::CloseStatement { forgotten });
                }
            },
            b'F' => {
                batch.needs(Need::Write, Why::UnknownFunction);
                batch.leaves_replica();
                batch.executes = true;
                batch.steps.push(Step::FunctionCall { at });
                return Ok(true);
            }
            b'S' => {
                batch.steps.push(Step::Sync { at });
                return Ok(true);
            }
            b'H' => {
                batch.flushed = true;
                batch.steps.push(Step::Flush { at });
            }
            // The rest of a COPY that the server has already ended with an error.
            tag if is_copy_data(tag) => {}
            _ => return Err(ClientFault::Tag(tag)),
        }
        Ok(false)
    }

    /// Outside of a transaction a portal that the batch does not open itself can only be a cursor WITH
    /// HOLD: on the server that the session keeps.
    fn needs_portal(&self, name: &[u8], batch: &mut Batch) {
        if !name.is_empty() && self.pins.contains(Pin::HeldCursor) {
            batch.needs(Need::Session, Why::SessionState);
        }
    }

    /// A whole message whose contents are wrong: the server refuses it in its own words, and goes on.
    fn plan_malformed(&mut self, tag: u8, at: Range<usize>, batch: &mut Batch) -> bool {
        batch.needs(Need::Write, Why::NotParsed);
        batch.leaves_replica();
        batch.steps.push(match tag {
            b'Q' => Step::Query { at, tracked: None },
            _ => Step::Malformed { at },
        });
        tag == b'Q'
    }

    fn plan_query(&mut self, sql: &[u8], at: Range<usize>, batch: &mut Batch) {
        let class = self.classify(sql);
        let need = self.take_in(&class, sql, batch);
        batch.executes = true;
        if !class.statements.is_empty() {
            batch.portal.close();
        }
        self.statements.drop_unnamed();
        batch.touches_databases |= class.touches_databases();
        self.judge(&class, need, sql, batch);
        let tracked = self.tracked_query(&class, sql, self.keeps_words(batch));
        if tracked.is_some() {
            self.look_for_own(&class, sql, batch);
            if class.explains {
                return batch.explain(sql);
            }
        }
        batch.steps.push(self.query_step(&class, sql, at, tracked));
    }

    /// What is remembered of a Query until it succeeds; with its text if that may have to be said again.
    pub(super) fn tracked_query(
        &self,
        class: &Arc<Class>,
        sql: &[u8],
        keeps: bool,
    ) -> Option<Tracked> {
        let text = || Text::Query(sql.into());
        let conforming = self.has_conforming_strings();
        Tracked::of(class, sql, text, keeps, conforming, Bound::default())
    }

    /// A Query that is told to a server.
    pub(super) fn query_step(
        &self,
        class: &Class,
        sql: &[u8],
        at: Range<usize>,
        tracked: Option<Tracked>,
    ) -> Step {
        let names = self.renames(class, sql);
        if names.is_empty() {
            return Step::Query { at, tracked };
        }
        let text = at.start + HEADER..at.end - 1;
        Step::Renamed {
            text,
            names,
            tracked,
        }
    }

    /// The statements that `sql` names and that the client has prepared by message, with the names'
    /// places in it: they have other names on servers.
    fn renames(&self, class: &Class, sql: &[u8]) -> Renames {
        if !self.statements.has_named() || !class.may_name_prepared() {
            return Renames::new();
        }
        prepared::names(sql, self.has_conforming_strings())
            .into_iter()
            .filter_map(|(name, place)| {
                let prepared = self.statements.get(&name)?.clone();
                let name = name.into_boxed_slice();
                Some(Rename {
                    place,
                    name,
                    prepared,
                })
            })
            .collect()
    }

    /// The like, of the text of a statement with a name. What one names that names another itself is not looked
    /// for: it could lead in a circle.
    #[cold]
    fn renames_of_named(&self, class: &Class, sql: &[u8]) -> Renames {
        let mut renames = self.renames(class, sql);
        renames.retain(|rename| !rename.prepared.may_name);
        renames
    }

    /// A statement that may name another, as it is now: what the name stands for may have changed.
    #[cold]
    fn renamed_anew(&mut self, name: &[u8], prepared: Arc<Prepared>) -> Arc<Prepared> {
        let renames = self.renames_of_named(&prepared.class, &prepared.sql);
        let ids = |renames: &Renames| renames.first().map(|rename| rename.prepared.id);
        if ids(&renames) == ids(&prepared.renames) {
            return prepared;
        }
        let (sql, types) = (&prepared.sql, &prepared.types);
        let registry = &self.shared.registry;
        let anew = registry.naming(sql, types, &prepared.class, renames);
        self.statements.insert(name, anew.clone());
        anew
    }

    fn plan_parse(
        &mut self,
        parse: message::Parse<'_>,
        at: Range<usize>,
        batch: &mut Batch,
    ) -> Result<(), ClientFault> {
        let class = self.classify(parse.sql);
        self.take_in(&class, parse.sql, batch);
        self.look_for_own(&class, parse.sql, batch);
        batch.touches_databases |= class.touches_databases();
        if parse.name.is_empty() {
            let renames = self.renames(&class, parse.sql);
            let unnamed = self
                .statements
                .set_unnamed(parse.sql, parse.types, class, renames);
            batch.steps.push(Step::ParseUnnamed { at, unnamed });
            return Ok(());
        }
        if self.pins.has_prepared(parse.name) {
            // The server says by its own words that PREPARE has taken the name.
            batch.needs(Need::Write, Why::Utility);
            batch.leaves_replica();
            batch.steps.push(Step::ParseTaken { at });
            return Ok(());
        }
        let name = Box::from(parse.name);
        if let Some(existing) = self.statements.get(parse.name).cloned() {
            batch.steps.push(Step::ParseAgain { name, existing });
            return Ok(());
        }
        if self.statements.is_full() {
            return Err(ClientFault::TooManyStatements(super::Statements::NAMED_MAX));
        }
        if !self
            .statements
            .have_room(parse.sql.len() + parse.types.len())
        {
            let most = super::Statements::NAMED_BYTES_MAX;
            return Err(ClientFault::TooLongStatements(most));
        }
        let scope = self
            .meaning()
            .filter(|_| !batch.reshapes && batch.sets == Localised::No);
        let registry = &self.shared.registry;
        let may_name = statements::may_name_one(&class, parse.sql);
        let renames = match may_name {
            true => self.renames_of_named(&class, parse.sql),
            false => Renames::new(),
        };
        let (settings, sql, types) = (&self.settings, parse.sql, parse.types);
        let prepared = match scope {
            _ if !renames.is_empty() => registry.naming(sql, types, &class, renames),
            Some(scope) => registry.intern(&scope, settings, sql, types, &class),
            None => {
                let is_known = !self.is_set_unseen() && batch.sets == Localised::No;
                let under = is_known.then(|| settings.of_meaning());
                registry.unshared(under, sql, types, &class)
            }
        };
        self.statements.insert(parse.name, prepared.clone());
        batch.steps.push(Step::Parse { name, prepared });
        Ok(())
    }

    fn plan_bind(
        &mut self,
        bind: message::Bind<'_>,
        values: &[u8],
        at: Range<usize>,
        beyond: usize,
        batch: &mut Batch,
    ) -> Result<(), ClientFault> {
        let (of, need) = self.statement(bind.statement, batch);
        // A portal lives on its server: where one is opened, the pipeline has to stay.
        batch.executes = true;
        match bind.portal.is_empty() {
            true => batch.portal.open(),
            false => batch.within = batch.within.max(Within::Ties),
        }
        match &of {
            Of::Named(prepared) => self.judge(&prepared.class, need, &prepared.sql, batch),
            Of::Unnamed(unnamed) => self.judge(&unnamed.class, need, &unnamed.sql, batch),
            Of::Unknown => {}
        }
        let conforming = self.has_conforming_strings();
        let keeps = self.keeps_words(batch);
        let bound = of.bound_to(values);
        // Its words alone do not say what it sets.
        let sets_locally = |(class, sql): (&Class, &[u8])| {
            let sets = keeps && class.statements.iter().any(|s| s.sets_config);
            sets.then(|| self.spelled(sql, bound))
        };
        let spelled = of.text().and_then(sets_locally);
        if spelled.as_ref().is_some_and(Option::is_none) {
            batch.leaves_replica();
        }
        let spelled = spelled.flatten();
        let effects = match &of {
            Of::Named(prepared) => {
                let text = || spelled.unwrap_or_else(|| Text::Named(prepared.clone()));
                let (class, sql) = (&prepared.class, &prepared.sql);
                Tracked::of(class, sql, text, keeps, conforming, bound)
            }
            Of::Unnamed(unnamed) => {
                let text = || spelled.unwrap_or_else(|| Text::Unnamed(unnamed.clone()));
                Tracked::of(&unnamed.class, &unnamed.sql, text, keeps, conforming, bound)
            }
            Of::Unknown => None,
        };
        let mut question = None;
        if effects.is_some()
            && let Some((class, sql)) = of.text()
        {
            self.look_for_own(class, sql, batch);
            question = of.question();
        }
        let sets = effects.as_ref().map_or(Localised::No, Tracked::sets);
        batch.sets = batch.sets.max(sets);
        batch.reshapes |= effects.as_ref().is_some_and(Tracked::reshapes);
        let is_one_more = effects.is_some() && self.portals.get(bind.portal).is_none();
        if is_one_more && self.portals.is_full() {
            return Err(ClientFault::TooManyPortals);
        }
        let change = self.portals.change(bind.portal, effects);
        let names = bind.head_len();
        if let Some(question) = question {
            batch.explains = true;
            batch.steps.push(Step::BindExplained {
                at,
                names,
                beyond,
                question,
                change,
            });
            return Ok(());
        }
        batch.steps.push(Step::Bind {
            at,
            names,
            beyond,
            of,
            change,
        });
        Ok(())
    }

    /// The statement of this name, and what it needs.
    fn statement(&mut self, name: &[u8], batch: &mut Batch) -> (Of, Need) {
        let of = if name.is_empty() {
            self.statements
                .unnamed()
                .cloned()
                .map_or(Of::Unknown, Of::Unnamed)
        } else {
            match self.statements.get(name).cloned() {
                Some(prepared) if prepared.may_name => Of::Named(self.renamed_anew(name, prepared)),
                Some(prepared) => Of::Named(prepared),
                None => Of::Unknown,
            }
        };
        let (class, sql): (_, &[u8]) = match &of {
            Of::Named(prepared) => (&prepared.class, &prepared.sql),
            Of::Unnamed(unnamed) => (&unnamed.class, &unnamed.sql),
            Of::Unknown => {
                batch.needs(Need::Write, Why::NotParsed);
                batch.leaves_replica();
                return (of, Need::Write);
            }
        };
        let need = self.take_in(class, sql, batch);
        (of, need)
    }

    /// Notes what a text asks of the batch, and gives what it needs. Inlined, as every message that has
    /// or names a text comes here.
    #[inline(always)]
    pub(super) fn take_in(&self, class: &Class, sql: &[u8], batch: &mut Batch) -> Need {
        let needs = self.needs(class, sql);
        batch.needs_class(class, needs);
        self.consider(class, needs.0, sql, batch);
        batch.needs_server |= self.concerns_server(class, needs.0, sql);
        match class.explains {
            false => batch.heed(sql),
            // Its hints are those of what it is about.
            true => self.check_explained(class, sql, batch),
        }
        needs.0
    }

    /// Notes what a text is to a transaction: one that it begins, or one that is on a replica.
    #[inline]
    fn consider(&self, class: &Class, need: Need, sql: &[u8], batch: &mut Batch) {
        if need > Need::Read || self.roams() {
            self.consider_control(class, need, sql, batch);
        }
    }

    fn consider_control(&self, class: &Class, need: Need, sql: &[u8], batch: &mut Batch) {
        if let [statement] = &*class.statements
            && let Verb::Begin(modes) = statement.verb
            && self.status() == Status::Idle
            && !batch.executes
            && batch.opens().is_none_or(|known| known == modes)
        {
            batch.control = Some(Control::Opens(modes));
            return;
        }
        batch.rest = batch.rest.max(need);
        batch.within = batch.within.max(self.within(class, need, sql));
        if need > Need::Read {
            let len = u32::try_from(sql.len()).unwrap_or(u32::MAX);
            batch.words = batch.words.saturating_add(len);
        }
        if batch.control.is_none()
            && let [statement] = &*class.statements
        {
            batch.control = match statement.verb {
                Verb::SetTransaction(modes) => Some(Control::Sets(modes)),
                Verb::Commit | Verb::Rollback if within::chains(sql) => None,
                Verb::Commit => Some(Control::Commits),
                Verb::Rollback => Some(Control::RollsBack),
                _ => None,
            };
        }
    }

    /// Looks whether a text shows settings of the proxy's own, or gives them values that they can't
    /// have.
    pub(super) fn look_for_own(&self, class: &Class, sql: &[u8], batch: &mut Batch) {
        let is_about_settings = |s: &crate::sql::Statement| {
            matches!(s.verb, Verb::Setting | Verb::SettingLocal | Verb::Show)
        };
        if !class.statements.iter().any(is_about_settings) || !own::is_mentioned(sql) {
            return;
        }
        if class.statements.iter().any(|s| s.verb == Verb::Show) {
            batch.shows_own = true;
            batch.shows_token |= lexer::contains(sql, b"token");
        }
        if let Err(complaint) = own::check(sql, self.has_conforming_strings(), self.system()) {
            batch.refuse(complaint);
        }
    }

    /// Whether a read of this text may need what only the session's own server has.
    fn concerns_server(&self, class: &Class, need: Need, sql: &[u8]) -> bool {
        !self.pins.is_empty()
            && need == Need::Read
            && (self.pins.concern(sql, self.has_conforming_strings())
                || self.pins.contains(Pin::TemporaryTable) && self.binds_late(class, sql))
    }

    /// Whether a read may come to something temporary by a text that is not its own.
    fn binds_late(&self, class: &Class, sql: &[u8]) -> bool {
        let latest = self.catalog.as_ref().and_then(|known| known.latest());
        Catalog::binds_late(latest.as_deref(), class, sql)
    }

    /// Plans a message that is too long to be held: its beginning now, the rest passed on as it
    /// comes.
    fn plan_giant(
        &mut self,
        tag: u8,
        len: usize,
        rest: &[u8],
        batch: &mut Batch,
    ) -> Result<Planned, ClientFault> {
        // Names must lie within what is buffered; what comes before it goes first.
        const NAMES_BYTES_MAX: usize = 16 << 10;
        if !batch.steps.is_empty() {
            return Ok(self.open(batch));
        }
        if rest.len() < NAMES_BYTES_MAX {
            return Ok(Planned::NeedMore);
        }
        let at = batch.len..batch.len + rest.len().min(len);
        let beyond = len - at.len();
        batch.len = at.end;
        batch.beyond = beyond;
        match tag {
            b'Q' => {
                batch.executes = true;
                batch.needs(Need::Write, Why::TooComplex);
                batch.leaves_replica();
                self.statements.drop_unnamed();
                // What it does to the settings can't be read from it.
                self.uncertain = true;
                self.pins.look_at_all();
                self.keep_any_key();
                batch.steps.push(Step::Query { at, tracked: None });
                batch.end = Some(End::Ready);
                return Ok(Planned::Batch(End::Ready));
            }
            b'F' => {
                batch.executes = true;
                batch.needs(Need::Write, Why::UnknownFunction);
                batch.leaves_replica();
                batch.steps.push(Step::FunctionCall { at });
                batch.end = Some(End::Ready);
                return Ok(Planned::Batch(End::Ready));
            }
            b'B' => {
                let head = rest.get(HEADER..NAMES_BYTES_MAX).unwrap_or(&[]);
                self.plan_bind(message::Bind::read(head)?, b"", at, beyond, batch)?;
            }
            // Left over from a COPY that has failed; it needs no server.
            b'd' => {}
            _ => {
                let max = FRAME_BUFFERED_BYTES_MAX;
                return Err(WireError::TooLong {
                    tag: tag.into(),
                    len,
                    max,
                }
                .into());
            }
        }
        Ok(self.open(batch))
    }
}
