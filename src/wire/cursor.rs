//! Owns: bounded reads from one message's body. Never: reads past the body or panics on any input.

use super::WireError;

/// A reader of one message's body.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(body: &'a [u8]) -> Self {
        Cursor { rest: body }
    }

    pub fn u8(&mut self) -> Result<u8, WireError> {
        let (&first, rest) = self.rest.split_first().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(first)
    }

    pub fn u16(&mut self) -> Result<u16, WireError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<2>()
            .ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(u16::from_be_bytes(*head))
    }

    pub fn i32(&mut self) -> Result<i32, WireError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<4>()
            .ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(i32::from_be_bytes(*head))
    }

    /// A string up to its NUL, which is consumed too.
    pub fn cstr(&mut self) -> Result<&'a [u8], WireError> {
        let end = match self.rest {
            // Most names are empty.
            [0, ..] => 0,
            rest => memchr::memchr(0, rest).ok_or(WireError::Unterminated)?,
        };
        let (head, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Ok(head)
    }

    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Succeeds only when every byte has been read.
    pub fn end(self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(WireError::Trailing)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_in_order_and_knows_the_end() {
        let mut c = Cursor::new(b"ab\0\x01\0\x02\0\0\0\x03");
        assert_eq!(c.cstr(), Ok(&b"ab"[..]));
        assert_eq!(c.u8(), Ok(1));
        assert_eq!(c.u16(), Ok(2));
        assert_eq!(c.end(), Err(WireError::Trailing));
        assert_eq!(c.i32(), Ok(3));
        assert_eq!(c.end(), Ok(()));
        assert_eq!(c.u8(), Err(WireError::Truncated));
        assert_eq!(c.cstr(), Err(WireError::Unterminated));
    }

    proptest! {
        #[test]
        fn never_panics(body: Vec<u8>, n: usize) {
            let mut c = Cursor::new(&body);
            let _ = (c.cstr(), c.u16(), c.i32(), c.u8(), c.bytes(n), c.end());
        }
    }
}
