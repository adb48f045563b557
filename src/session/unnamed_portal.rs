//! Owns: what a batch does to the unnamed portal. Never: knows what that does to the session; `portals` does.

/// What a batch does to the unnamed portal, which drivers execute with a limit for a first row, and then forget.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UnnamedPortal {
    /// It uses the one that it has found there.
    pub is_taken_up: bool,
    /// That one is gone.
    pub is_replaced: bool,
    /// It leaves one that may have more rows.
    pub is_left: bool,
}

impl UnnamedPortal {
    pub fn open(&mut self) {
        (self.is_replaced, self.is_left) = (true, true);
    }

    pub fn close(&mut self) {
        (self.is_replaced, self.is_left) = (true, false);
    }

    /// A portal of this name is executed, or described.
    pub fn look_at(&mut self, name: &[u8]) {
        self.is_taken_up |= name.is_empty() && !self.is_replaced;
    }

    /// A portal of this name is executed, to its end if there is no limit.
    pub fn execute(&mut self, name: &[u8], rows_max: i32) {
        self.look_at(name);
        if name.is_empty() && rows_max <= 0 {
            self.is_left = false;
        }
    }
}
