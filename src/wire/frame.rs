//! Owns: the five-byte header in front of every message after start-up. Never: looks at a body.

use super::{FRAME_BYTES_MAX, WireError};

/// Length of a frame's header: the type byte and four bytes of length.
pub const HEADER: usize = 5;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The message's type.
    pub tag: u8,
    /// Bytes of the whole frame, the type byte included.
    pub len: usize,
}

/// Reads the header at the start of `buf`; `None` when it is not all there yet.
///
/// # Errors
/// A length below four (it counts itself), or above what PostgreSQL accepts.
#[inline]
pub fn header(buf: &[u8]) -> Result<Option<Header>, WireError> {
    let Some(&[tag, a, b, c, d]) = buf.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = i32::from_be_bytes([a, b, c, d]);
    if length < 4 || length as usize > FRAME_BYTES_MAX {
        return Err(WireError::Length(length));
    }
    Ok(Some(Header {
        tag,
        len: 1 + length as usize,
    }))
}

/// How many bytes at the start of `buf` are whole frames of type `tag`. What is wrong with the next
/// one, if anything, is for [`header`] to say.
#[inline]
pub fn run(tag: u8, buf: &[u8]) -> usize {
    let mut rest = buf;
    while let Some(&[first, a, b, c, d]) = rest.first_chunk::<HEADER>()
        && first == tag
    {
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(4..=FRAME_BYTES_MAX).contains(&length) {
            break;
        }
        let Some(next) = rest.get(1 + length..) else {
            break;
        };
        rest = next;
    }
    buf.len() - rest.len()
}

/// The body of a frame that is wholly in `frame`.
#[inline]
pub fn body(frame: &[u8]) -> &[u8] {
    frame.get(HEADER..).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_a_whole_header() {
        for n in 0..HEADER {
            assert_eq!(header(&b"Q\0\0\0\x04"[..n]), Ok(None));
        }
        assert_eq!(
            header(b"Q\0\0\0\x04"),
            Ok(Some(Header { tag: b'Q', len: 5 }))
        );
    }

    #[test]
    fn runs_end_before_what_is_no_whole_frame_of_the_type() {
        let rows = b"D\0\0\0\x04D\0\0\0\x06ab";
        let with = |rest: &[u8]| [&rows[..], rest].concat();
        assert_eq!(run(b'D', rows), rows.len());
        assert_eq!(run(b'd', rows), 0);
        assert_eq!(run(b'D', b""), 0);
        for rest in [
            &b"C\0\0\0\x04"[..],
            b"D",
            b"D\0\0\0",
            b"D\0\0\0\x05",
            b"D\0\0\0\x03",
            b"D\xff\xff\xff\xff",
            b"D\0\0\0\x06a",
        ] {
            assert_eq!(run(b'D', &with(rest)), rows.len(), "{rest:?}");
        }
    }

    #[test]
    fn refuses_lengths_no_message_has() {
        for length in [i32::MIN, -1, 0, 3, i32::MAX] {
            let mut frame = vec![b'Q'];
            frame.extend(length.to_be_bytes());
            assert_eq!(header(&frame), Err(WireError::Length(length)));
        }
    }
}
