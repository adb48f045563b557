//! Owns: which values a statement's parameters are bound to, of those types whose values can be told. Never: takes one for
//! what it is not: a value is a text only if its type is one.

use crate::wire::message;

/// The numbers of types: <https://www.postgresql.org/docs/current/catalog-pg-type.html>
const UNKNOWN: u32 = 705;
const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;
const BOOL: u32 = 16;

/// A Parse's types and a Bind's values, as sent; both empty where there are none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bound<'a> {
    pub types: &'a [u8],
    pub values: &'a [u8],
}

impl<'a> Bound<'a> {
    /// The text that is bound to parameter `number`, from 1, which the server takes for a text unless it was told
    /// otherwise.
    pub fn text(&self, number: u16) -> Option<&'a [u8]> {
        // Its bytes are the same in either format.
        let is_text = [0, UNKNOWN, TEXT, VARCHAR].contains(&self.type_of(number));
        let (value, _) = message::bound_value(self.values, number).filter(|_| is_text)?;
        Some(value)
    }

    /// The truth value that is bound to it, which the server takes for one unless it was told otherwise.
    pub fn truth(&self, number: u16) -> Option<bool> {
        let is_bool = [0, BOOL].contains(&self.type_of(number));
        match message::bound_value(self.values, number).filter(|_| is_bool)? {
            ([byte], true) => Some(*byte != 0),
            (b"t" | b"true", false) => Some(true),
            (b"f" | b"false", false) => Some(false),
            _ => None,
        }
    }

    /// The number of a parameter's type; 0 if the client has left it to the server.
    fn type_of(&self, number: u16) -> u32 {
        let at = 2 + 4 * (usize::from(number) - usize::from(number > 0));
        let given = self.types.get(at..at + 4);
        given
            .and_then(|oid| oid.try_into().ok())
            .map_or(0, u32::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_by_their_types() {
        let types = [
            &b"\0\x03"[..],
            &23u32.to_be_bytes(),
            &[0; 4],
            &BOOL.to_be_bytes(),
        ]
        .concat();
        let formats = b"\0\x04\0\x01\0\0\0\x01\0\0";
        let texts: [&[u8]; 4] = [b"\0\0\0\x05", b"x", b"\x01", b"f"];
        let texts = texts.map(|value| [&(value.len() as u32).to_be_bytes()[..], value].concat());
        let values = [&formats[..], b"\0\x05", &texts.concat(), &[0xff; 4]].concat();
        let bound = Bound {
            types: &types,
            values: &values,
        };
        let told = [0, 1, 2, 3, 4, 5, 6].map(|number| (bound.text(number), bound.truth(number)));
        let expected = [
            (None, None),
            (None, None),
            (Some(&b"x"[..]), None),
            (None, Some(true)),
            (Some(&b"f"[..]), Some(false)),
            (None, None),
            (None, None),
        ];
        assert_eq!(told, expected);
        assert_eq!(Bound::default().text(1), None);
    }
}
