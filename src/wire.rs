//! The PostgreSQL wire protocol as bytes: frames, bounded reads, views of messages, encoders.
//!
//! Owns: what the bytes of a message mean. Never: reads a socket, or trusts a length that a peer
//! sent before checking it against what is really there.
//!
//! Protocol facts are from <https://www.postgresql.org/docs/current/protocol-message-formats.html>.

pub mod cursor;
pub mod encode;
pub mod frame;
pub mod message;
pub mod options;
pub mod startup;

/// What is wrong with a peer's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("invalid message length {0}")]
    Length(i32),
    #[error("message of type {tag:?} is {len} bytes long, more than the limit of {max}")]
    TooLong { tag: char, len: usize, max: usize },
    #[error("message is shorter than its fields")]
    Truncated,
    #[error("string in message is not terminated")]
    Unterminated,
    #[error("message is longer than its fields")]
    Trailing,
    #[error("invalid message type {0:?}")]
    Tag(char),
    #[error("invalid value in message")]
    Value,
}

/// The longest frame PostgreSQL itself accepts from a client, in bytes (`PQ_LARGE_MESSAGE_LIMIT`).
pub const FRAME_BYTES_MAX: usize = 0x3fff_ffff;

/// The longest frame of a client that is held in memory as a whole. Longer ones are streamed.
pub const FRAME_BUFFERED_BYTES_MAX: usize = 1 << 20;

/// The longest Parse message: its text is kept to prepare the statement again on other servers.
pub const PARSE_BYTES_MAX: usize = 64 << 20;

/// The longest control message of a server that is held in memory as a whole.
pub const SERVER_CONTROL_BYTES_MAX: usize = 1 << 20;
