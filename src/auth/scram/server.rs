//! The server's end of a SCRAM exchange: it checks that a client knows the password.
//! Never tells a user that does not exist from a wrong password.

use base64::Engine;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::binding::ServerBinding;
use super::{
    BASE64, Key, Keys, ScramError, Verifier, auth_message, decode_key, hmac, is_nonce,
    message_text, take_attribute, xor_into,
};

pub struct ServerExchange {
    verifier: Verifier,
    genuine: bool,
    nonce: String,
    binding: ServerBinding,
    state: State,
}

enum State {
    First,
    Final(Begun),
    Done(Keys),
    Failed,
}

/// What the first messages settled.
struct Begun {
    /// The channel binding flag, which the client has to repeat.
    gs2_header: String,
    client_first_bare: String,
    /// The client's and the server's.
    nonce: String,
    server_first: String,
}

impl ServerExchange {
    /// `genuine` is false for a mock verifier: the exchange then fails at its very end, whatever the
    /// proof. The nonce must be printable, and never used before.
    pub fn new(verifier: Verifier, genuine: bool, nonce: String) -> ServerExchange {
        ServerExchange {
            verifier,
            genuine,
            nonce,
            binding: ServerBinding::default(),
            state: State::First,
        }
    }

    /// The same, where clients are offered to bind the exchange to `end_point`.
    pub fn offering(mut self, end_point: Option<Vec<u8>>) -> ServerExchange {
        self.binding.end_point = end_point;
        self
    }

    pub fn offers_binding(&self) -> bool {
        self.binding.end_point.is_some()
    }

    /// The client has chosen the mechanism with or without channel binding.
    pub fn choose(&mut self, plus: bool) {
        self.binding.chosen = plus;
    }

    /// Takes client-first, gives server-first.
    pub fn client_first(&mut self, message: &[u8]) -> Result<Vec<u8>, ScramError> {
        let State::First = std::mem::replace(&mut self.state, State::Failed) else {
            return Err(ScramError::OutOfTurn);
        };
        let (gs2_header, client_first_bare) = self.binding.split_header(message_text(message)?)?;
        let client_nonce = client_nonce(client_first_bare)?;
        let nonce = format!("{client_nonce}{}", self.nonce);
        let salt = BASE64.encode(&self.verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", self.verifier.iterations);
        let reply = server_first.clone().into_bytes();
        let (gs2_header, client_first_bare) = (gs2_header.to_owned(), client_first_bare.to_owned());
        self.state = State::Final(Begun {
            gs2_header,
            client_first_bare,
            nonce,
            server_first,
        });
        Ok(reply)
    }

    /// Takes client-final, gives server-final.
    pub fn client_final(&mut self, message: &[u8]) -> Result<Vec<u8>, ScramError> {
        let State::Final(begun) = std::mem::replace(&mut self.state, State::Failed) else {
            return Err(ScramError::OutOfTurn);
        };
        let message = ClientFinal::parse(message_text(message)?)?;
        self.binding
            .check(&begun.gs2_header, message.channel_binding)?;
        if message.nonce != begun.nonce {
            return Err(ScramError::NonceMismatch);
        }
        let auth_message = auth_message(
            &begun.client_first_bare,
            &begun.server_first,
            message.without_proof,
        );
        let mut client_key = message.proof;
        xor_into(
            &mut client_key,
            &hmac(&self.verifier.stored_key, &[auth_message.as_bytes()]),
        );
        let stored_key: Key = Sha256::digest(client_key).into();
        let matches = bool::from(stored_key.ct_eq(&self.verifier.stored_key));
        if !(matches & self.genuine) {
            return Err(ScramError::WrongProof);
        }
        let Verifier {
            iterations,
            server_key,
            ..
        } = self.verifier;
        let signature = hmac(&server_key, &[auth_message.as_bytes()]);
        let salt = self.verifier.salt.clone();
        self.state = State::Done(Keys {
            client_key,
            server_key,
            salt,
            iterations,
        });
        Ok(format!("v={}", BASE64.encode(signature)).into_bytes())
    }

    /// After success: the keys that log in, as this user, to any server with the same verifier.
    pub fn keys(&self) -> Option<&Keys> {
        match &self.state {
            State::Done(keys) => Some(keys),
            _ => None,
        }
    }
}

/// client-final = `c=<binding>,r=<nonce>[,extensions],p=<proof>`
struct ClientFinal<'a> {
    channel_binding: &'a str,
    nonce: &'a str,
    proof: Key,
    without_proof: &'a str,
}

impl<'a> ClientFinal<'a> {
    fn parse(message: &'a str) -> Result<ClientFinal<'a>, ScramError> {
        // The proof is the last attribute, and a value has no comma in it.
        let (without_proof, proof) = message
            .rsplit_once(",p=")
            .ok_or(ScramError::Malformed("client-final has no proof"))?;
        let malformed = ScramError::Malformed("client-final has no channel binding or nonce");
        let (channel_binding, rest) = match take_attribute(without_proof, 'c') {
            Some((channel_binding, Some(rest))) => (channel_binding, rest),
            _ => return Err(malformed),
        };
        let (nonce, _extensions) = take_attribute(rest, 'r').ok_or(malformed)?;
        let proof = decode_key(proof)
            .ok_or(ScramError::Malformed("the proof is not 32 bytes in base64"))?;
        Ok(ClientFinal {
            channel_binding,
            nonce,
            proof,
            without_proof,
        })
    }
}

/// bare = `n=<user>,r=<nonce>[,extensions]`. The user is whoever the startup message named, so this
/// one may be anything: libpq leaves it empty.
fn client_nonce(bare: &str) -> Result<&str, ScramError> {
    if bare.starts_with("m=") {
        return Err(ScramError::MandatoryExtension);
    }
    let Some((_user, Some(rest))) = take_attribute(bare, 'n') else {
        return Err(ScramError::Malformed("client-first has no user name"));
    };
    let (nonce, _extensions) =
        take_attribute(rest, 'r').ok_or(ScramError::Malformed("client-first has no nonce"))?;
    match is_nonce(nonce) {
        true => Ok(nonce),
        false => Err(ScramError::Malformed("the nonce is empty or not printable")),
    }
}
