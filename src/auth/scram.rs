//! SCRAM-SHA-256 (RFC 5802, RFC 7677) as PostgreSQL speaks it: verifiers, keys and both ends.
//! Never touches a socket, a clock or a random number generator: nonces come in from outside.

pub mod binding;
mod client;
mod server;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{LazyLock, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use lru::LruCache;
use sha2::{Digest, Sha256};

pub use client::{ClientExchange, Credential};
pub use server::ServerExchange;

use crate::config::verifier::decode_key;
pub use crate::config::verifier::{MECHANISM, Verifier, VerifierError};

/// PostgreSQL's default cost, for the verifiers that are made here.
pub const ITERATIONS_DEFAULT: u32 = 4096;
/// The most that a server may make us compute: well under a second of one core.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// The longest message that is parsed; real ones are under 300 bytes.
pub const MESSAGE_BYTES_MAX: usize = 4096;
/// How many bytes of salt PostgreSQL uses, and so do the verifiers that are made here.
pub const SALT_BYTES: usize = 16;
/// How many random bytes PostgreSQL and libpq put in a nonce.
pub const NONCE_BYTES: usize = 18;

pub type Key = [u8; 32];

impl Verifier {
    /// Derives a verifier, at the full cost of the iterations: do it once, not for each login.
    pub fn from_password(password: &str, salt: &[u8], iterations: u32) -> Verifier {
        let keys = Keys::from_password(password, salt, iterations);
        Verifier {
            iterations,
            salt: salt.to_vec(),
            stored_key: Sha256::digest(keys.client_key).into(),
            server_key: keys.server_key,
        }
    }

    /// A verifier that nobody can satisfy, for a user that does not exist: same user, same salt, so
    /// that asking twice tells nothing.
    pub fn mock(secret: &[u8], user: &str, iterations: u32) -> Verifier {
        Verifier {
            iterations,
            salt: salt_for(secret, user).to_vec(),
            stored_key: hmac(secret, &[b"stored key", user.as_bytes()]),
            server_key: hmac(secret, &[b"server key", user.as_bytes()]),
        }
    }
}

/// What a client needs to prove itself, in place of the password. Good for servers that keep the
/// password with this salt and these iterations, and for no others.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    pub client_key: Key,
    pub server_key: Key,
    pub salt: Vec<u8>,
    pub iterations: u32,
}

impl Keys {
    fn from_password(password: &str, salt: &[u8], iterations: u32) -> Keys {
        let salted = salted_password(&normalize(password), salt, iterations);
        Keys {
            client_key: hmac(&salted, &[b"Client Key"]),
            server_key: hmac(&salted, &[b"Server Key"]),
            salt: salt.to_vec(),
            iterations,
        }
    }
}

/// Derived keys that are remembered: those of the passwords that servers are logged in to with.
const DERIVED_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// By a digest of password, salt and iterations.
static DERIVED: LazyLock<Mutex<LruCache<Key, Keys>>> =
    LazyLock::new(|| Mutex::new(LruCache::new(DERIVED_MAX)));

impl Keys {
    /// The same as deriving them, which takes milliseconds, but once: a pool that fills logs in again
    /// and again with one password, to servers that keep it with one salt.
    fn remembered(password: &str, salt: &[u8], iterations: u32) -> Keys {
        let question: Key = Sha256::new()
            .chain_update((password.len() as u64).to_be_bytes())
            .chain_update(password)
            .chain_update(iterations.to_be_bytes())
            .chain_update(salt)
            .finalize()
            .into();
        // Only whole entries are put in.
        let lock = || DERIVED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = lock().get(&question) {
            return keys.clone();
        }
        let keys = Keys::from_password(password, salt, iterations);
        lock().put(question, keys.clone());
        keys
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(***)")
    }
}

/// What the other end of an exchange did wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("SCRAM message of {0} bytes is longer than {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    #[error("SCRAM message came out of turn")]
    OutOfTurn,
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    #[error("SCRAM message requires an extension, and none is supported")]
    MandatoryExtension,
    #[error("client asked for SCRAM channel binding, which was not offered")]
    ChannelBindingRequested,
    #[error(
        "SCRAM channel binding negotiation error: the client supports SCRAM channel binding but \
         thinks the server does not; however, this server does support channel binding"
    )]
    ChannelBindingDowngraded,
    #[error("unsupported SCRAM channel-binding type \"{0}\"")]
    ChannelBindingType(String),
    #[error("SCRAM channel binding check failed")]
    ChannelBindingFailed,
    #[error("client asked to act as another user, which is not supported")]
    AuthorizationIdentity,
    #[error("SCRAM channel binding does not match what the exchange began with")]
    ChannelBindingMismatch,
    #[error("SCRAM nonce does not match")]
    NonceMismatch,
    #[error("password does not match")]
    WrongProof,
    #[error("server asked for {0} iterations, outside of 1 to {ITERATIONS_MAX}")]
    Iterations(u64),
    #[error("server keeps another verifier for this user than the one that keys are known for")]
    OtherVerifier,
    #[error("server refused the SCRAM exchange: {0}")]
    Refused(String),
    #[error("server signature does not match: the server does not know the password")]
    WrongServerSignature,
}

/// The salt of a user's verifier. Derived, so that a user who exists and one who does not look alike,
/// on each login and after each reload.
pub fn salt_for(secret: &[u8], user: &str) -> [u8; SALT_BYTES] {
    let mut salt = [0; SALT_BYTES];
    salt.copy_from_slice(&hmac(secret, &[b"salt", user.as_bytes()])[..SALT_BYTES]);
    salt
}

/// The nonce's text: random bytes in base64, as PostgreSQL writes them.
pub fn nonce_text(random: [u8; NONCE_BYTES]) -> String {
    BASE64.encode(random)
}

/// SASLprep, or the text as it is where SASLprep refuses it: PostgreSQL does the same at both ends.
fn normalize(password: &str) -> std::borrow::Cow<'_, str> {
    match stringprep::saslprep(password) {
        Ok(prepared) if !prepared.is_empty() => prepared,
        _ => password.into(),
    }
}

/// RFC 5802's `Hi`: PBKDF2 of one block.
fn salted_password(password: &str, salt: &[u8], iterations: u32) -> Key {
    let keyed = keyed(password.as_bytes());
    let mut block: Key = keyed
        .clone()
        .chain_update(salt)
        .chain_update(1u32.to_be_bytes())
        .finalize()
        .into_bytes()
        .into();
    let mut result = block;
    for _ in 1..iterations {
        block = keyed
            .clone()
            .chain_update(block)
            .finalize()
            .into_bytes()
            .into();
        xor_into(&mut result, &block);
    }
    result
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = keyed(key);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

fn xor_into(target: &mut Key, other: &Key) {
    for (byte, other) in target.iter_mut().zip(other) {
        *byte ^= other;
    }
}

/// RFC 5802's AuthMessage.
fn auth_message(client_first_bare: &str, server_first: &str, client_final_bare: &str) -> String {
    [client_first_bare, server_first, client_final_bare].join(",")
}

/// The message as text, if its length and encoding allow.
fn message_text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(ScramError::TooLong(message.len()));
    }
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed("it is not UTF-8"))
}

/// The value of the attribute that `text` begins with, and what follows its comma.
fn take_attribute(text: &str, name: char) -> Option<(&str, Option<&str>)> {
    let value = text.strip_prefix(name)?.strip_prefix('=')?;
    match value.split_once(',') {
        Some((value, rest)) => Some((value, Some(rest))),
        None => Some((value, None)),
    }
}

/// RFC 5802's `printable`: any ASCII but controls, spaces and commas.
fn is_nonce(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b',')
}

#[cfg(test)]
mod tests;
