//! The client's end of a SCRAM exchange: it proves a password, and checks that the server knows it too.
//! Never sends the password or anything it could be read from.

use base64::Engine;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::binding::ClientBinding;
use super::{
    BASE64, ITERATIONS_MAX, Key, Keys, ScramError, auth_message, hmac, is_nonce, message_text,
    take_attribute, xor_into,
};
use crate::config::Secret;

/// What a login is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    Password(Secret),
    /// Recovered from a client's own login; they fit a server that holds the same verifier.
    Keys(Keys),
    /// What PostgreSQL stores of an md5 password; it fits a server that asks for that.
    Md5(Secret),
}

pub struct ClientExchange {
    credential: Credential,
    nonce: String,
    binding: ClientBinding,
    state: State,
}

enum State {
    First,
    Final { expected_signature: Key },
    Verified,
    Failed,
}

impl ClientExchange {
    /// The nonce must be printable, and never used before.
    pub fn new(credential: Credential, nonce: String) -> ClientExchange {
        ClientExchange {
            credential,
            nonce,
            binding: ClientBinding::Unable,
            state: State::First,
        }
    }

    /// The same, bound to its connection.
    pub fn bound(mut self, binding: ClientBinding) -> ClientExchange {
        self.binding = binding;
        self
    }

    /// client-first. The user is left empty, as libpq does: the server knows it from the startup message.
    pub fn client_first(&self) -> Vec<u8> {
        let header = self.binding.gs2_header();
        format!("{header}{}", self.client_first_bare()).into_bytes()
    }

    /// Takes server-first, gives client-final. With a password this costs the iterations that the
    /// server asks for, the first time.
    pub fn server_first(&mut self, message: &[u8]) -> Result<Vec<u8>, ScramError> {
        let State::First = std::mem::replace(&mut self.state, State::Failed) else {
            return Err(ScramError::OutOfTurn);
        };
        let server_first = message_text(message)?;
        let ServerFirst {
            nonce,
            salt,
            iterations,
        } = ServerFirst::parse(server_first)?;
        let extends = nonce
            .strip_prefix(self.nonce.as_str())
            .is_some_and(is_nonce);
        if !extends {
            return Err(ScramError::NonceMismatch);
        }
        let keys = match &self.credential {
            Credential::Password(password) => {
                Keys::remembered(password.expose(), &salt, iterations)
            }
            Credential::Keys(keys) if keys.salt == salt && keys.iterations == iterations => {
                keys.clone()
            }
            Credential::Keys(_) | Credential::Md5(_) => return Err(ScramError::OtherVerifier),
        };
        let channel_binding = self.binding.attribute();
        let without_proof = format!("c={channel_binding},r={nonce}");
        let auth_message = auth_message(&self.client_first_bare(), server_first, &without_proof);
        let stored_key: Key = Sha256::digest(keys.client_key).into();
        let mut proof = hmac(&stored_key, &[auth_message.as_bytes()]);
        xor_into(&mut proof, &keys.client_key);
        let expected_signature = hmac(&keys.server_key, &[auth_message.as_bytes()]);
        self.state = State::Final { expected_signature };
        Ok(format!("{without_proof},p={}", BASE64.encode(proof)).into_bytes())
    }

    /// Takes server-final. Only after this has the server proved itself.
    pub fn server_final(&mut self, message: &[u8]) -> Result<(), ScramError> {
        let State::Final { expected_signature } = std::mem::replace(&mut self.state, State::Failed)
        else {
            return Err(ScramError::OutOfTurn);
        };
        let message = message_text(message)?;
        if let Some((reason, _)) = take_attribute(message, 'e') {
            return Err(ScramError::Refused(reason.escape_debug().to_string()));
        }
        let (signature, _extensions) = take_attribute(message, 'v')
            .ok_or(ScramError::Malformed("server-final has no signature"))?;
        let signature = BASE64
            .decode(signature)
            .map_err(|_| ScramError::Malformed("the server signature is not base64"))?;
        match bool::from(signature.ct_eq(&expected_signature)) {
            true => {
                self.state = State::Verified;
                Ok(())
            }
            false => Err(ScramError::WrongServerSignature),
        }
    }

    /// Whether the server has proved that it knows the password.
    pub fn is_verified(&self) -> bool {
        matches!(self.state, State::Verified)
    }

    fn client_first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }
}

/// server-first = `r=<nonce>,s=<salt>,i=<iterations>[,extensions]`
struct ServerFirst<'a> {
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: u32,
}

impl<'a> ServerFirst<'a> {
    fn parse(message: &'a str) -> Result<ServerFirst<'a>, ScramError> {
        if message.starts_with("m=") {
            return Err(ScramError::MandatoryExtension);
        }
        let Some((nonce, Some(rest))) = take_attribute(message, 'r') else {
            return Err(ScramError::Malformed("server-first has no nonce"));
        };
        let Some((salt, Some(rest))) = take_attribute(rest, 's') else {
            return Err(ScramError::Malformed("server-first has no salt"));
        };
        let salt = (BASE64.decode(salt).ok().filter(|salt| !salt.is_empty()))
            .ok_or(ScramError::Malformed("the salt is empty or not base64"))?;
        let iterations: u64 = take_attribute(rest, 'i')
            .filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|(number, _extensions)| number.parse().ok())
            .ok_or(ScramError::Malformed(
                "server-first has no number of iterations",
            ))?;
        match u32::try_from(iterations) {
            Ok(iterations @ 1..=ITERATIONS_MAX) => Ok(ServerFirst {
                nonce,
                salt,
                iterations,
            }),
            _ => Err(ScramError::Iterations(iterations)),
        }
    }
}
