//! A SCRAM verifier: its parts, and the text form that PostgreSQL keeps it in. Never computes one from a
//! password, or checks a proof.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

/// The mechanism's name, which the text form begins with.
pub const MECHANISM: &str = "SCRAM-SHA-256";

/// What a server keeps in place of a password: enough to check a proof, not to make one.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub iterations: u32,
    pub salt: Vec<u8>,
    pub stored_key: [u8; 32],
    pub server_key: [u8; 32],
}

impl Verifier {
    /// Reads PostgreSQL's text form, `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`.
    pub fn parse(text: &str) -> Result<Verifier, VerifierError> {
        let (cost, keys) = text
            .strip_prefix(MECHANISM)
            .and_then(|rest| rest.strip_prefix('$'))
            .and_then(|rest| rest.split_once('$'))
            .ok_or(VerifierError::Form)?;
        let (iterations, salt) = cost.split_once(':').ok_or(VerifierError::Form)?;
        let (stored_key, server_key) = keys.split_once(':').ok_or(VerifierError::Form)?;
        Ok(Verifier {
            iterations: parse_iterations(iterations).ok_or(VerifierError::Iterations)?,
            salt: BASE64
                .decode(salt)
                .ok()
                .filter(|salt| !salt.is_empty())
                .ok_or(VerifierError::Salt)?,
            stored_key: decode_key(stored_key).ok_or(VerifierError::Key)?,
            server_key: decode_key(server_key).ok_or(VerifierError::Key)?,
        })
    }
}

/// The text form of `pg_authid.rolpassword`.
impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [salt, stored_key, server_key] =
            [&self.salt[..], &self.stored_key, &self.server_key].map(|bytes| BASE64.encode(bytes));
        write!(
            f,
            "{MECHANISM}${}:{salt}${stored_key}:{server_key}",
            self.iterations
        )
    }
}

/// Passwords can be guessed from a verifier, so it stays out of logs.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(***)")
    }
}

/// Why a text is not a verifier. The text is not repeated, since it may be a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifierError {
    #[error("not of the form SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>")]
    Form,
    #[error("the iterations are not a number of at least 1")]
    Iterations,
    #[error("the salt is not base64")]
    Salt,
    #[error("a key is not 32 bytes in base64")]
    Key,
}

/// A key, or a proof, in base64.
pub fn decode_key(text: &str) -> Option<[u8; 32]> {
    BASE64.decode(text).ok()?.try_into().ok()
}

fn parse_iterations(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|iterations| digits && *iterations > 0)
}
