//! The proxy's login at a server, as a state machine: Authentication messages in, password messages out.
//! Never takes a server's word that a SCRAM login is done before the server has proved itself.

use super::md5;
use super::scram::binding::{ClientBinding, MECHANISM_PLUS};
use super::scram::{self, ClientExchange, Credential, MECHANISM, NONCE_BYTES, ScramError};
use crate::config::Secret;

/// How much of a server's list of mechanisms an error repeats.
const MECHANISMS_SHOWN_MAX: usize = 200;

pub struct ServerAuth {
    user: String,
    credential: Option<Credential>,
    nonce: [u8; NONCE_BYTES],
    end_point: Option<Vec<u8>>,
    state: State,
}

enum State {
    Start,
    /// A cleartext or md5 password is sent.
    PasswordSent,
    ScramFirst(ClientExchange),
    ScramFinal(ClientExchange),
    ScramVerified,
    Over,
}

/// What to do about an Authentication message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Wait for the next.
    Nothing,
    /// Send a password message (`p`) with this body.
    Send(Vec<u8>),
    /// Logged in.
    Done,
}

/// Why a login at a server cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error(r#"server asks for a password, and none is known for user "{0}""#)]
    MissingPassword(String),
    #[error(
        r#"server asks for a {method} password, and only SCRAM keys are known for user "{user}""#
    )]
    OnlyKeys { user: String, method: &'static str },
    #[error(r#"server asks for a {method} password, and only the md5 hash of that of user "{user}" is known"#)]
    OnlyHash { user: String, method: &'static str },
    #[error(
        r#"server keeps another verifier for user "{0}" than the one that SCRAM keys are known for"#
    )]
    StaleKeys(String),
    #[error("server asks for {0} authentication, which is not supported")]
    Unsupported(&'static str),
    #[error("server asks for authentication of the unknown kind {0}")]
    Unknown(i32),
    #[error("server offers no SASL mechanism that is supported, but {0}")]
    Mechanisms(String),
    #[error("server ended the SCRAM exchange without proving that it knows the password")]
    Unproven,
    #[error("server sent the authentication request {0} out of turn")]
    OutOfTurn(i32),
    #[error("server sent a malformed authentication request: {0}")]
    Malformed(&'static str),
    #[error(transparent)]
    Scram(#[from] ScramError),
}

impl ServerAuth {
    /// The nonce must be random and new.
    pub fn new(user: &str, credential: Option<Credential>, nonce: [u8; NONCE_BYTES]) -> ServerAuth {
        ServerAuth {
            user: user.to_owned(),
            credential,
            nonce,
            end_point: None,
            state: State::Start,
        }
    }

    /// The same over TLS, to a server whose certificate has this hash.
    pub fn with_end_point(mut self, end_point: Option<Vec<u8>>) -> ServerAuth {
        self.end_point = end_point;
        self
    }

    /// Takes an Authentication message (`R`): its code, and its body behind the code. After an error
    /// the connection is of no use.
    pub fn on_request(&mut self, code: i32, body: &[u8]) -> Result<Reply, AuthError> {
        match (code, std::mem::replace(&mut self.state, State::Over)) {
            (0, State::Start | State::PasswordSent | State::ScramVerified) => Ok(Reply::Done),
            (0, State::ScramFirst(_) | State::ScramFinal(_)) => Err(AuthError::Unproven),
            (3, State::Start) => {
                let password = self.password("cleartext")?;
                let reply = password_message(password.expose());
                self.state = State::PasswordSent;
                Ok(reply)
            }
            (5, State::Start) => {
                let salt = (body.try_into())
                    .map_err(|_| AuthError::Malformed("the md5 salt is not of 4 bytes"))?;
                let reply = password_message(&md5::response(&self.md5_hash()?, salt));
                self.state = State::PasswordSent;
                Ok(reply)
            }
            (10, State::Start) => {
                let (mechanism, binding) = self.choose_mechanism(body)?;
                let credential = match &self.credential {
                    Some(Credential::Md5(_)) => return Err(self.only_hash("SCRAM")),
                    Some(credential) => credential.clone(),
                    None => return Err(self.missing_password()),
                };
                let exchange =
                    ClientExchange::new(credential, scram::nonce_text(self.nonce)).bound(binding);
                let reply = initial_response(mechanism, &exchange.client_first());
                self.state = State::ScramFirst(exchange);
                Ok(reply)
            }
            (11, State::ScramFirst(mut exchange)) => {
                let client_final = exchange.server_first(body).map_err(|error| match error {
                    ScramError::OtherVerifier => AuthError::StaleKeys(self.user.clone()),
                    error => AuthError::Scram(error),
                })?;
                self.state = State::ScramFinal(exchange);
                Ok(Reply::Send(client_final))
            }
            (12, State::ScramFinal(mut exchange)) => {
                exchange.server_final(body)?;
                self.state = State::ScramVerified;
                Ok(Reply::Nothing)
            }
            (0 | 3 | 5 | 10 | 11 | 12, _) => Err(AuthError::OutOfTurn(code)),
            (2, _) => Err(AuthError::Unsupported("Kerberos V5")),
            (6, _) => Err(AuthError::Unsupported("SCM credential")),
            (7 | 8, _) => Err(AuthError::Unsupported("GSSAPI")),
            (9, _) => Err(AuthError::Unsupported("SSPI")),
            _ => Err(AuthError::Unknown(code)),
        }
    }

    /// As libpq with `channel_binding=prefer`: bound if both ends can.
    fn choose_mechanism(&self, body: &[u8]) -> Result<(&'static str, ClientBinding), AuthError> {
        let offered = mechanisms(body)?;
        let offers = |mechanism: &str| offered.contains(&mechanism.as_bytes());
        match &self.end_point {
            Some(data) if offers(MECHANISM_PLUS) => {
                Ok((MECHANISM_PLUS, ClientBinding::EndPoint(data.clone())))
            }
            Some(_) if offers(MECHANISM) => Ok((MECHANISM, ClientBinding::NotOffered)),
            None if offers(MECHANISM) => Ok((MECHANISM, ClientBinding::Unable)),
            _ => {
                let names = String::from_utf8_lossy(&offered.join(&b", "[..])).into_owned();
                let shown = names.escape_debug().take(MECHANISMS_SHOWN_MAX).collect();
                Err(AuthError::Mechanisms(shown))
            }
        }
    }

    fn password(&self, method: &'static str) -> Result<&Secret, AuthError> {
        match &self.credential {
            Some(Credential::Password(password)) => Ok(password),
            Some(Credential::Keys(_)) => Err(AuthError::OnlyKeys {
                user: self.user.clone(),
                method,
            }),
            Some(Credential::Md5(_)) => Err(self.only_hash(method)),
            None => Err(self.missing_password()),
        }
    }

    fn md5_hash(&self) -> Result<String, AuthError> {
        match &self.credential {
            Some(Credential::Md5(hash)) => Ok(hash.expose().to_owned()),
            _ => Ok(md5::stored(&self.user, self.password("md5")?.expose())),
        }
    }

    fn only_hash(&self, method: &'static str) -> AuthError {
        AuthError::OnlyHash {
            user: self.user.clone(),
            method,
        }
    }

    fn missing_password(&self) -> AuthError {
        AuthError::MissingPassword(self.user.clone())
    }
}

fn password_message(password: &str) -> Reply {
    Reply::Send([password.as_bytes(), b"\0"].concat())
}

/// SASLInitialResponse: the mechanism, then the data's length and the data.
fn initial_response(mechanism: &str, data: &[u8]) -> Reply {
    let length = i32::try_from(data.len()).expect("client-first is under 100 bytes");
    Reply::Send([mechanism.as_bytes(), b"\0", &length.to_be_bytes(), data].concat())
}

/// AuthenticationSASL: zero-ended names, and an empty one at the end.
fn mechanisms(body: &[u8]) -> Result<Vec<&[u8]>, AuthError> {
    let names = (body.strip_suffix(b"\0\0")).ok_or(AuthError::Malformed(
        "the list of SASL mechanisms has no end",
    ))?;
    Ok(names.split(|byte| *byte == 0).collect())
}
