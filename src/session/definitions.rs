//! Owns: what the open transaction has defined or dropped, and who is told of that when it commits. Never: reads what a
//! name means now; [`catalog`](super::catalog) does.

use super::{Session, catalog};
use crate::sql::lexer::clipped;
use crate::sql::{Pin, Reach, command};

impl Session {
    /// A definition has succeeded, by this text if that is kept.
    pub(super) fn reshape(&mut self, reach: Reach, text: Option<&[u8]>) {
        let doubt = self.reshaped.get_or_insert_default();
        match reach {
            Reach::Nothing => {}
            Reach::Anything => doubt.extend(None),
            Reach::Itself => {
                let name = text.and_then(command::created);
                doubt.extend(name.as_deref().map(clipped));
            }
        }
    }

    /// A definition has been made; by this text, if that is kept.
    pub(super) fn redefine(&mut self, definition: Option<&[u8]>) {
        self.redefined |= definition.is_none_or(|definition| self.may_redefine(definition));
    }

    /// Whether by this definition names may come to do something else to sessions.
    pub(super) fn may_redefine(&self, definition: &[u8]) -> bool {
        let conforming = self.has_conforming_strings();
        let known = self.effects();
        known.is_none_or(|known| known.may_change_by(definition, conforming))
    }

    /// Whether names may mean what they mean to nobody else: they are of something temporary, or of what the
    /// open transaction has changed.
    pub(super) fn has_tables_of_its_own(&self) -> bool {
        let temporary = Pin::TemporaryTable;
        self.reshaped.is_some()
            || self.pins.contains(temporary)
            || self.pins.suspects().contains(temporary)
    }

    /// Something has been defined or dropped that may be temporary without saying so: by where names are
    /// looked for, which is not always known, or by what it is made of.
    pub(super) fn look_for_temporary(&mut self) {
        match self.is_set_unseen() || self.settings.make_temporary() {
            true => self.pins.touched(Pin::TemporaryTable),
            false => self.pins.look_again(Pin::TemporaryTable),
        }
    }

    /// What the transaction has done is done, for all to see.
    pub(super) fn committed(&mut self) {
        if let Some(doubt) = self.reshaped.take() {
            self.shared.registry.begin_epoch();
            self.schema.changed();
            self.did.reshaped = true;
            self.outdate(*doubt);
        }
    }

    /// What the transaction has defined is undone, or not done before COMMIT PREPARED.
    pub(super) fn forget_definitions(&mut self) {
        (self.reshaped, self.redefined) = (None, false);
    }

    /// What is known of the database may be so no more.
    #[cold]
    pub(super) fn outdate(&mut self, doubt: catalog::Doubt) {
        let redefined = std::mem::take(&mut self.redefined);
        if redefined {
            self.shared.effects.forget(self.schema.database());
        }
        if let Some(known) = &self.catalog {
            // An event trigger may have done more: in any case it is asked again.
            self.did.outdated = true;
            known.outdate(doubt, redefined);
        }
    }
}
