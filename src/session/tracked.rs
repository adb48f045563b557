//! Owns: what is remembered of a text until it succeeds, as its success changes the session. Never: changes it;
//! [`completion`](super::completion) does.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::bound::Bound;
use super::statements::{Prepared, Unnamed};
use super::{Localised, within};
use crate::sql::lexer;
use crate::sql::set_config::{self, Changes, Name, Scope, Told, Value};
use crate::sql::setting::{self, Setting};
use crate::sql::{Class, Pin, Reach, Statement, Verb};

/// A text whose success changes the session.
#[derive(Clone, Debug)]
pub(super) struct Tracked {
    pub class: Arc<Class>,
    /// Kept only where the class does not say it all: values of SET, names in DEALLOCATE and of new tables.
    pub text: Option<Text>,
    /// The settings that its calls of `set_config` change, if it makes any.
    pub changes: Option<Arc<Changes>>,
}

impl Tracked {
    /// What has to be remembered of `sql`, which is of this class, to apply its effects; `None` when it has none.
    /// `text` shares it, and it is kept wherever it may have to be said again if the caller `keeps` it; `bound`
    /// are its parameters.
    pub fn of(
        class: &Arc<Class>,
        sql: &[u8],
        text: impl FnOnce() -> Text,
        keeps: bool,
        conforming: bool,
        bound: Bound<'_>,
    ) -> Option<Tracked> {
        let statements = &class.statements;
        if !statements.iter().any(has_effects) {
            return None;
        }
        let keeps_text = |s: &Statement| is_told_by_text(s) || keeps && is_said_again(s);
        let calls = |s: &Statement| s.sets_config || s.verb == Verb::Run;
        Some(Tracked {
            class: class.clone(),
            text: statements.iter().any(keeps_text).then(text),
            changes: (statements.iter().any(calls))
                .then(|| Arc::new(changes_with(sql, conforming, bound))),
        })
    }

    /// What its success may set by which a text means something else.
    pub fn sets(&self) -> Localised {
        let text = self.text.as_deref();
        let by_verb = |s: &Statement| match s.verb {
            Verb::DiscardAll => Localised::All,
            Verb::Setting => by_set(text),
            Verb::SettingLocal => by_set_local(text),
            _ if s.sets_config => self.changes.as_deref().map_or(Localised::All, by_calls),
            _ => Localised::No,
        };
        let statements = self.class.statements.iter();
        statements.map(by_verb).max().unwrap_or_default()
    }

    /// Whether by its success names may come to mean something else.
    pub fn reshapes(&self) -> bool {
        let reshapes = |s: &Statement| {
            matches!(s.verb, Verb::Ddl(_) | Verb::Routine) || s.pins.contains(Pin::TemporaryTable)
        };
        self.has(reshapes)
    }

    /// Whether it commits a transaction, or prepares that.
    pub fn commits(&self) -> bool {
        let commits = |s: &Statement| matches!(s.verb, Verb::Commit | Verb::PrepareTransaction);
        self.has(commits)
    }

    /// Whether it ends a transaction, one way or the other.
    pub fn ends(&self) -> bool {
        self.has(ends)
    }

    /// Whether anything comes behind that.
    pub fn goes_on_behind_end(&self) -> bool {
        let statements = self.class.statements.split_last();
        statements.is_some_and(|(_, before)| before.iter().any(ends))
    }

    /// Whether its success drops prepared statements.
    pub fn forgets(&self) -> bool {
        let forgets = |s: &Statement| {
            matches!(
                s.verb,
                Verb::Deallocate | Verb::DeallocateAll | Verb::DiscardAll
            )
        };
        self.has(forgets)
    }

    /// Whether it may take session-level advisory locks.
    pub fn locks(&self) -> bool {
        self.has(|s| s.pins.contains(Pin::AdvisoryLock))
    }

    fn has(&self, statement: impl Fn(&Statement) -> bool) -> bool {
        self.class.statements.iter().any(statement)
    }
}

/// A text that may be long, and is executed as often as its client likes: what has it already is
/// shared.
#[derive(Clone, Debug)]
pub(super) enum Text {
    Query(Arc<[u8]>),
    Named(Arc<Prepared>),
    Unnamed(Arc<Unnamed>),
}

impl Deref for Text {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Text::Query(text) => text,
            Text::Named(prepared) => &prepared.sql,
            Text::Unnamed(unnamed) => &unnamed.sql,
        }
    }
}

fn ends(statement: &Statement) -> bool {
    matches!(
        statement.verb,
        Verb::Commit | Verb::Rollback | Verb::PrepareTransaction
    )
}

/// Whether the success of a statement may change the session.
fn has_effects(statement: &Statement) -> bool {
    statement.verb != Verb::Plain || !statement.pins.is_empty() || statement.sets_config
}

/// Whether what a statement does is told by its text, and not by its class alone.
fn is_told_by_text(statement: &Statement) -> bool {
    matches!(
        statement.verb,
        Verb::Setting
            | Verb::SettingLocal
            | Verb::Prepare
            | Verb::Deallocate
            | Verb::Routine
            | Verb::Role
            | Verb::Database
            | Verb::Ddl(Reach::Itself | Reach::Anything)
    )
}

/// What a SET or RESET of this text sets, if that is known.
fn by_set(text: Option<&[u8]>) -> Localised {
    match text.and_then(setting::setting) {
        Some(Setting::Set { name } | Setting::Reset { name }) => Localised::by(&name),
        Some(Setting::Transactions(_)) => Localised::No,
        _ => Localised::All,
    }
}

/// What a SET LOCAL of this text sets, or a statement that sets nothing beyond what a transaction is.
pub(super) fn by_set_local(text: Option<&[u8]>) -> Localised {
    match text {
        Some(text) if setting::is_of_transaction(text) => Localised::No,
        text => {
            let name = text.and_then(setting::local_name);
            name.map_or(Localised::All, |name| Localised::by(&name))
        }
    }
}

/// What calls of set_config set, which are told by name where there is nothing else.
fn by_calls(changes: &Changes) -> Localised {
    match &changes.only {
        Some(calls) => calls.iter().map(by_call).max().unwrap_or_default(),
        None => Localised::All,
    }
}

pub(super) fn by_call(call: &Told) -> Localised {
    match &call.name {
        Name::Literal(name) => Localised::by(name),
        Name::Parameter(_) => Localised::All,
    }
}

/// Whether a transaction that is opened elsewhere may need the words of a statement: they are said again, or tell
/// whether another one begins with its end.
fn is_said_again(statement: &Statement) -> bool {
    let ends = matches!(statement.verb, Verb::Commit | Verb::Rollback);
    statement.sets_config || ends || within::is_logged(statement.verb)
}

/// The settings that the calls in `sql` change, where it is bound to these values.
fn changes_with(sql: &[u8], conforming: bool, bound: Bound<'_>) -> Changes {
    let mut changes = set_config::changes(sql, conforming);
    let text = |number| str::from_utf8(bound.text(number)?).ok();
    let fill_name = |name: &mut Name| {
        if let Name::Parameter(number) = *name
            && let Some(value) = text(number)
        {
            *name = Name::Literal(value.to_ascii_lowercase().into());
        }
    };
    let fill_value = |value: &mut Value| {
        if let Value::Parameter(number) = *value
            && let Some(text) = text(number)
        {
            *value = Value::Literal(text.into());
        }
    };
    changes.names.iter_mut().for_each(fill_name);
    for (name, value) in &mut changes.own {
        fill_name(name);
        value.as_mut().map(fill_value);
    }
    for call in changes.only.iter_mut().flatten() {
        fill_name(&mut call.name);
        call.value.as_mut().map(fill_value);
        if let Scope::Parameter(number) = call.scope {
            call.scope = match bound.truth(number) {
                Some(true) => Scope::Transaction,
                Some(false) => Scope::Session,
                None => call.scope,
            };
        }
    }
    changes
}

/// The place of the next statement in a text that is kept, after the one that ended at `end`.
pub(super) fn next_statement(
    tracked: Option<&Tracked>,
    end: usize,
    conforming: bool,
) -> Range<usize> {
    let rest = tracked
        .and_then(|tracked| tracked.text.as_deref()?.get(end..))
        .unwrap_or(&[]);
    let next = lexer::statements(rest, conforming).next();
    next.map_or(end..end, |at| end + at.start..end + at.end)
}
