//! One client's session as a state machine: bytes in, bytes and decisions out.
//!
//! Owns: what the session is: its statements, settings, floors and transaction. Never: touches a
//! socket or a clock, so that all of it can be tested with scripted peers and virtual time.

pub mod answer;
pub mod answers;
pub mod batch;
mod bound;
pub mod catalog;
mod causal;
mod completion;
pub mod consistency;
mod definitions;
pub mod effects;
mod ending;
pub mod explain;
mod inspection;
pub mod intern;
mod local;
mod ordinary;
pub mod own;
pub mod params;
mod pins;
pub mod pipeline;
mod portals;
pub mod repair;
mod roaming;
pub mod route;
pub mod say;
pub mod schema;
pub mod sequences;
pub mod server;
pub mod settings;
mod shown;
mod skip;
pub mod statements;
mod suspicion;
pub mod token;
mod tracked;
pub mod transaction;
mod unnamed_portal;
mod within;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::causal::CausalKeys;
use self::consistency::{Clock, Floors, System};
use self::effects::Effects;
use self::own::Own;
use self::params::Params;
use self::pins::Pins;
use self::portals::Portals;
use self::roaming::Roaming;
use self::schema::Schema;
use self::settings::Settings;
use self::statements::{Prepared, Registry, Statements};
use self::token::Token;
use crate::sql::altered::Altered;
use crate::sql::cache::Classifier;
use crate::sql::{Class, Modes, Need, Why};
use crate::wire::message::Status;

/// What all sessions share.
pub struct Shared {
    pub classifier: Classifier,
    pub registry: Registry,
    pub effects: Arc<effects::Known>,
    pub sequence_readers: Arc<sequences::Readers>,
}

impl Shared {
    pub fn new(classifier: Classifier) -> Shared {
        Shared {
            classifier,
            registry: Registry::new(),
            effects: Arc::default(),
            sequence_readers: Arc::default(),
        }
    }

    /// The same for new sessions, whose texts are classified by other rules. What is known of databases and servers is
    /// everybody's.
    pub fn with_classifier(&self, classifier: Classifier) -> Shared {
        Shared {
            classifier,
            registry: self.registry.successor(),
            effects: self.effects.clone(),
            sequence_readers: self.sequence_readers.clone(),
        }
    }
}

/// One client's session.
pub struct Session {
    id: u64,
    /// Whose prepared statements it may share, where they mean the same.
    scope: Arc<str>,
    /// The part of its sessions to which texts mean what they mean to this one, under which settings.
    meaning: (Settings, Arc<str>),
    /// SET LOCAL has run in the open transaction, or a pipeline is under way that changes settings.
    localised: Localised,
    shared: Arc<Shared>,
    /// What is known of the database, where somebody asks it.
    catalog: Option<Arc<catalog::Known>>,
    statements: Statements,
    portals: Portals,
    /// Settings wanted now, and those given at start-up, which RESET goes back to.
    settings: Settings,
    defaults: Settings,
    /// The session's and the server's settings before the open transaction changed them.
    before: Option<(Settings, Settings)>,
    /// Settings were changed in a way that only the server knows; those that it does not list.
    uncertain: bool,
    /// The batch under way may do that, and commit it: then a rollback undoes only a part.
    suspected: bool,
    config_names: Vec<Box<str>>,
    /// What has run while it was not known which names have effects on sessions, and the version of
    /// that knowledge when it was asked for.
    unjudged: Vec<(Arc<Class>, Box<[u8]>)>,
    asked: u64,
    /// Functions, triggers or views were changed, so that using them may do something else.
    redefined: bool,
    /// How often it has written, and so may have drawn from sequences.
    drawings: u32,
    /// The database's schema, which all of its sessions share; and whether the open transaction has
    /// changed it.
    schema: Arc<Schema>,
    reshaped: Option<Box<catalog::Doubt>>,
    /// A part of DateStyle was set: its whole is what the server reports next.
    restyled: bool,
    /// Settings went back to what was given at start-up, which is not what the server reports.
    went_back: bool,
    /// The parameters that the client has been told, now and when it logged in.
    shown: Params,
    greeted: Params,
    pub floors: Floors,
    status: Status,
    /// What has been done that no floor has been raised for.
    did: Did,
    /// An error has occurred in the open pipeline: the server skips everything up to Sync.
    failed: bool,
    /// The beginning of the client's last message was not said.
    swallows: bool,
    pins: Pins,
    /// The cluster's system.
    system: System,
    /// Of the proxy's own settings, what most sessions never have.
    own: Option<Box<OwnState>>,
    /// The batch has met an error.
    erred: bool,
    /// The error that preparing something ahead of the batch has met.
    foretold: Option<Vec<u8>>,
    /// The open transaction, while it is not on the primary.
    roaming: Option<Box<Roaming>>,
    /// The modes of the open transaction while it has done nothing on the primary but begin.
    begun: Option<Modes>,
}

/// What a session has set for its open transaction alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Localised {
    /// Nothing by which a text means something else.
    #[default]
    No,
    /// How names are found, or rights are judged.
    Names,
    /// How constants are read, or it is not known what.
    All,
}

impl Localised {
    /// By a setting of this name.
    fn by(name: &str) -> Localised {
        match name {
            _ if settings::reads_constants(name) => Localised::All,
            _ if settings::has_meaning(name) => Localised::Names,
            _ => Localised::No,
        }
    }
}

/// What most sessions never have: of the proxy's own settings, but for one.
#[derive(Default)]
struct OwnState {
    /// Whose new sessions have been changed. See [`Session::take_altered`].
    altered: Vec<Altered>,
    /// The settings with the proxy's own as they are to be shown, while a batch shows them.
    shown: Option<Settings>,
    /// What is set for the open transaction alone.
    local: Vec<Own>,
    /// Causal keys that have been in force since floors were last raised, beside the one that is.
    keys: CausalKeys,
}

/// What has been done, as far as others' freshness is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Did {
    /// Something that was not proven to read only.
    pub wrote: bool,
    pub read: bool,
    /// Roles or databases were changed: servers that are open may be of before. See
    /// [`Session::take_altered`].
    pub altered: bool,
    /// The schema was changed, and has been marked so.
    pub reshaped: bool,
    /// What is known of the database is outdated, and has been marked so.
    pub outdated: bool,
}

impl Session {
    /// A session that starts with `defaults` set; its client has been told `shown`.
    pub fn new(shared: Arc<Shared>, scope: &str, defaults: Settings, shown: Params) -> Session {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Session {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            scope: scope.into(),
            // Of no settings, until they are looked at.
            meaning: (Settings::default(), scope.into()),
            localised: Localised::No,
            shared,
            catalog: None,
            statements: Statements::default(),
            portals: Portals::default(),
            settings: defaults.clone(),
            defaults,
            before: None,
            uncertain: false,
            suspected: false,
            config_names: Vec::new(),
            unjudged: Vec::new(),
            asked: 0,
            redefined: false,
            drawings: 0,
            schema: Arc::new(Schema::new(database_of(scope))),
            reshaped: None,
            restyled: false,
            went_back: false,
            greeted: shown.clone(),
            shown,
            floors: Floors::default(),
            status: Status::Idle,
            did: Did::default(),
            failed: false,
            swallows: false,
            pins: Pins::default(),
            system: System::default(),
            own: None,
            erred: false,
            foretold: None,
            roaming: None,
            begun: None,
        }
    }

    /// Has the session share what is known of its database's schema.
    pub fn set_schema(&mut self, schema: Arc<Schema>) {
        self.schema = schema;
    }

    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// To be asked before a read is routed: others may have changed the schema.
    #[inline]
    pub fn heed_schema(&mut self, primary: &Clock) {
        self.floors.heed(&self.schema, primary);
    }

    /// Whether nobody has changed the schema since then.
    pub fn has_heeded_schema(&self) -> bool {
        self.floors.has_heeded(&self.schema)
    }

    /// Whose tokens the session takes.
    pub fn set_system(&mut self, system: System) {
        self.system = system;
    }

    /// The identifier of the cluster's system; 0 while that is not known.
    pub fn system(&self) -> u64 {
        self.system.get()
    }

    /// What has been done that no floor has been raised for.
    pub fn did(&self) -> Did {
        self.did
    }

    /// The name of its database.
    pub fn database(&self) -> &str {
        let (_, name) = self.schema.database().split_once('\0').unwrap_or_default();
        name
    }

    /// Has the session's texts judged by what is known of its database as well.
    pub fn set_catalog(&mut self, known: Arc<catalog::Known>) {
        self.catalog = Some(known);
    }

    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether the session cannot give back its server on the primary.
    pub fn is_pinned(&self) -> bool {
        !self.pins.is_empty()
    }

    /// Whether what the session leaves on its server can't be cleared away.
    pub fn spoils_server(&self) -> bool {
        self.pins.leave_traces()
    }

    /// What has been done since this was last asked.
    pub fn take_did(&mut self) -> Did {
        std::mem::take(&mut self.did)
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether the batch that was said last has met an error.
    pub fn has_erred(&self) -> bool {
        self.erred
    }

    /// A batch is being run. What it does counts until the floors have been raised for it, whatever
    /// else runs before that.
    pub fn note(&mut self, batch: &batch::Batch) {
        self.erred = false;
        if batch.executes {
            self.did.wrote |= batch.need == Need::Write;
            self.did.read |= batch.shows_data;
        }
    }

    /// Whose prepared statements mean the same as this session's; `None` if nobody's do.
    fn meaning(&mut self) -> Option<Arc<str>> {
        if self.is_set_unseen() || self.has_tables_of_its_own() {
            return None;
        }
        if self.meaning.0 != self.settings {
            let scope = match self.settings.meaning() {
                Some(digest) => format!("{}\0={digest:x}", self.scope).into(),
                None => self.scope.clone(),
            };
            self.meaning = (self.settings.clone(), scope);
        }
        Some(self.meaning.1.clone())
    }

    /// Whether it began with a superuser's rights.
    fn is_superusers(&self) -> bool {
        self.greeted.get("is_superuser") == Some(b"on")
    }

    /// Whether it is under settings that nobody else has, or that are not known.
    fn is_set_unseen(&self) -> bool {
        self.localised > Localised::No || self.uncertain
    }

    /// Whether the text of `prepared` may mean something else by the settings that there are now.
    fn means_otherwise(&self, prepared: &Prepared) -> bool {
        let under = prepared.under.as_ref();
        under.is_some_and(|under| self.is_set_unseen() || !under.means_as(&self.settings))
    }

    /// Whether that may be for how its constants are read, which a server does but once.
    fn reads_otherwise(&self, prepared: &Prepared) -> bool {
        let is_unseen = self.localised > Localised::Names || self.uncertain;
        let under = prepared.under.as_ref();
        under.is_some_and(|under| is_unseen || !under.reads_as(&self.settings))
    }

    /// The class of `sql` under the session's string syntax.
    fn classify(&self, sql: &[u8]) -> Arc<Class> {
        self.shared
            .classifier
            .classify(sql, self.has_conforming_strings())
    }

    /// What `sql`, which is of this class, needs by all that is known.
    #[inline]
    fn needs(&self, class: &Class, sql: &[u8]) -> (Need, Why) {
        match &self.catalog {
            Some(known) if class.asks_catalog && !class.is_refused() => {
                known.needs(class, sql, self.shared.classifier.rules())
            }
            _ if class.need == Need::Session && class.sets_config() && !self.has_set_config() => {
                (Need::Write, Why::UnsafeFunction)
            }
            _ => class.needs(),
        }
    }

    /// Whether `set_config` is known to be what is built in, and no function of the database's own.
    fn has_set_config(&self) -> bool {
        let catalog = self.catalog.as_ref().and_then(|known| known.catalog());
        catalog.is_some_and(|catalog| !catalog.has_function("set_config"))
    }

    /// Which names of the database have effects on sessions, if that is known.
    fn effects(&self) -> Option<Arc<Effects>> {
        let known = self.catalog.as_ref().and_then(|known| known.effects());
        known.or_else(|| self.shared.effects.get(self.schema.database()))
    }

    /// Whether a backslash in a text means itself.
    pub fn has_conforming_strings(&self) -> bool {
        self.shown.has_conforming_strings()
    }

    /// A token that has been found to be of this cluster.
    pub fn receive_token(&mut self, text: &str) {
        if let Ok(token) = Token::parse(text)
            && token.system == self.system.get()
        {
            self.floors.receive(token);
        }
    }
}

/// The part of a scope that names the cluster and the database.
fn database_of(scope: &str) -> &str {
    scope
        .rsplit_once('\0')
        .map_or(scope, |(database, _)| database)
}
