//! A client's login at the proxy, as a state machine: password messages in, steps out.
//! Never lets a client find out under SCRAM whether a user exists. Under trust it does, and under md5 it
//! sees SCRAM for a user with a verifier, as with PostgreSQL.

use super::channel::{CertificateCause, Channel};
use super::lookup::{Role, Stored};
use super::md5;
use super::scram::binding::MECHANISM_PLUS;
use super::scram::{
    self, Credential, MECHANISM, NONCE_BYTES, ScramError, ServerExchange, Verifier,
};
use super::{Entry, Users};
use crate::config::{AuthMethod, Secret};

pub struct ClientAuth {
    user: String,
    /// What logs in to servers for this client, if its configured password does.
    password: Option<Secret>,
    /// It was looked up, and its role may not log in.
    no_login: bool,
    /// Why the login will be refused, whatever the client answers.
    doomed: Option<Cause>,
    state: State,
}

enum State {
    Md5 {
        salt: [u8; 4],
        known: Option<Md5>,
    },
    /// An md5 answer did not fit what was known.
    Md5Failed {
        salt: [u8; 4],
        answer: Vec<u8>,
    },
    /// Waits for SASLInitialResponse.
    SaslInitial(ServerExchange),
    /// The mechanism is chosen, the first SCRAM message is not here yet.
    SaslFirst(ServerExchange),
    SaslFinal(ServerExchange),
    Over,
}

/// What an md5 answer is checked against.
enum Md5 {
    Password(Secret),
    Hash(Secret),
}

/// What the proxy does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the request, and wait for a password message (`p`).
    Send(AuthRequest),
    /// Send AuthenticationSASLFinal if there is one, then AuthenticationOk.
    Accept(Accepted),
    /// Send an error and close.
    Reject(Rejection),
}

/// The Authentication messages that ask for an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum AuthRequest {
    Md5Password { salt: [u8; 4] },
    Sasl { mechanisms: &'static [&'static str] },
    SaslContinue(Vec<u8>),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Accepted {
    pub sasl_final: Option<Vec<u8>>,
    /// What the proxy can log in to servers with, as this user; `None` fits only a server that asks
    /// for nothing.
    pub credential: Option<Credential>,
}

/// Why a client is turned away. Displays as the text for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error(r#"role "{0}" does not exist"#)]
    UnknownRole(String),
    #[error(r#"password authentication failed for user "{user}""#)]
    WrongPassword { user: String, cause: Cause },
    #[error("connection requires a valid client certificate")]
    NoCertificate,
    #[error(r#"certificate authentication failed for user "{user}""#)]
    WrongCertificate {
        user: String,
        cause: CertificateCause,
    },
    #[error("client selected a SASL mechanism that was not offered")]
    Mechanism,
    #[error("malformed password message: {0}")]
    Malformed(&'static str),
    #[error("password message came out of turn")]
    OutOfTurn,
    /// Said to nobody but who knows the password.
    #[error(r#"role "{0}" is not permitted to log in"#)]
    NoLogin(String),
    #[error(transparent)]
    Scram(ScramError),
}

/// What the log may say about a wrong password, and the client must not learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    #[error("the user is not configured")]
    UnknownUser,
    #[error("the user is neither configured nor a role of the database")]
    NoRole,
    #[error("the user has no password, or it has expired")]
    NoPassword,
    #[error("the user has an md5 password, and the method is scram-sha-256")]
    Md5Password,
    #[error("the user's password is neither a SCRAM verifier nor an md5 hash")]
    Unusable,
    #[error("the password does not match")]
    Mismatch,
}

const MECHANISMS: &[&str] = &[MECHANISM];
/// Over TLS, the better one first.
const MECHANISMS_TLS: &[&str] = &[MECHANISM_PLUS, MECHANISM];

impl ClientAuth {
    /// Begins the login of a user who is looked up, `role` being the outcome. As PostgreSQL does, this
    /// asks for md5 only if the method allows it and the role has such a password. The nonce and the
    /// salt must be random and new.
    pub fn of_role(
        users: &Users,
        user: &str,
        channel: &Channel,
        role: Option<&Role>,
        nonce: [u8; NONCE_BYTES],
        md5_salt: [u8; 4],
    ) -> (ClientAuth, Step) {
        let (doomed, state, step) = match role.map(|role| &role.stored) {
            Some(Stored::Md5(hash)) if users.method == AuthMethod::Md5 => {
                let (salt, known) = (md5_salt, Some(Md5::Hash(hash.clone())));
                let request = AuthRequest::Md5Password { salt };
                (None, State::Md5 { salt, known }, Step::Send(request))
            }
            stored => {
                let (verifier, doomed) = match stored {
                    Some(Stored::Scram(verifier)) => {
                        users.note_looked_up(verifier);
                        (Some(verifier.clone()), None)
                    }
                    Some(Stored::Nothing) => (None, Some(Cause::NoPassword)),
                    Some(Stored::Md5(_)) => (None, Some(Cause::Md5Password)),
                    Some(Stored::Unusable) => (None, Some(Cause::Unusable)),
                    None => (None, Some(Cause::NoRole)),
                };
                let (state, step) = scram_login(users, user, channel, verifier, doomed, nonce);
                (doomed, state, step)
            }
        };
        let auth = ClientAuth {
            user: user.to_owned(),
            password: None,
            no_login: role.is_some_and(|role| !role.can_login),
            doomed,
            state,
        };
        (auth, step)
    }

    /// The password was wrong by what was known of the role, and this is what is known of it now: an
    /// md5 answer is checked once more. A SCRAM proof was made with the old salt, and fits no other.
    pub fn recheck(&mut self, role: Option<&Role>) -> Option<Step> {
        let (State::Md5Failed { salt, answer }, Some(role)) = (&self.state, role) else {
            return None;
        };
        let Stored::Md5(hash) = &role.stored else {
            return None;
        };
        let (salt, answer) = (*salt, answer.clone());
        self.no_login = !role.can_login;
        Some(self.check_md5(Some(Md5::Hash(hash.clone())), salt, &answer))
    }

    /// Begins a login. The nonce and the salt must be random and new.
    pub fn new(
        users: &Users,
        user: &str,
        channel: &Channel,
        nonce: [u8; NONCE_BYTES],
        md5_salt: [u8; 4],
    ) -> (ClientAuth, Step) {
        let entry = users.by_name.get(user);
        let password = entry.and_then(|entry| entry.configured.password.clone());
        let (doomed, state, step) = match users.method {
            AuthMethod::Trust => {
                let step = match entry {
                    Some(_) => Step::Accept(Accepted {
                        sasl_final: None,
                        credential: password.clone().map(Credential::Password),
                    }),
                    None => Step::Reject(Rejection::UnknownRole(user.to_owned())),
                };
                (None, State::Over, step)
            }
            AuthMethod::Cert => {
                let step = match (entry, channel.require_certificate_of(user)) {
                    (_, Err(rejection)) => Step::Reject(rejection),
                    (None, _) => Step::Reject(Rejection::UnknownRole(user.to_owned())),
                    (Some(_), Ok(())) => Step::Accept(Accepted {
                        sasl_final: None,
                        credential: password.clone().map(Credential::Password),
                    }),
                };
                (None, State::Over, step)
            }
            // A verifier can only be asked for by SCRAM, so PostgreSQL's md5 method asks for that.
            AuthMethod::Md5 if entry.is_none_or(|entry| entry.verifier.is_none()) => {
                let known = password.clone().map(Md5::Password);
                let salt = md5_salt;
                let state = State::Md5 { salt, known };
                let request = AuthRequest::Md5Password { salt: md5_salt };
                (
                    missing(entry, password.is_some()),
                    state,
                    Step::Send(request),
                )
            }
            AuthMethod::Md5 | AuthMethod::ScramSha256 => {
                let verifier = entry.and_then(|entry| entry.verifier.clone());
                let doomed = missing(entry, verifier.is_some());
                let (state, step) = scram_login(users, user, channel, verifier, doomed, nonce);
                (doomed, state, step)
            }
        };
        (
            ClientAuth {
                user: user.to_owned(),
                password,
                no_login: false,
                doomed,
                state,
            },
            step,
        )
    }

    /// Takes the body of a `p` message. After anything but [`Step::Send`] the login is over.
    pub fn on_password_message(&mut self, body: &[u8]) -> Step {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Md5 { salt, known } => match body.split_last() {
                Some((0, answer)) => self.check_md5(known, salt, answer),
                _ => Step::Reject(Rejection::Malformed("it does not end in a zero byte")),
            },
            State::SaslInitial(mut exchange) => match parse_initial_response(body) {
                Ok((plus, _)) if plus && !exchange.offers_binding() => {
                    Step::Reject(Rejection::Mechanism)
                }
                Ok((plus, data)) => {
                    exchange.choose(plus);
                    match data {
                        Some(data) => self.on_client_first(exchange, data),
                        None => {
                            self.state = State::SaslFirst(exchange);
                            Step::Send(AuthRequest::SaslContinue(Vec::new()))
                        }
                    }
                }
                Err(rejection) => Step::Reject(rejection),
            },
            State::SaslFirst(exchange) => self.on_client_first(exchange, body),
            State::SaslFinal(exchange) => self.on_client_final(exchange, body),
            State::Md5Failed { .. } | State::Over => Step::Reject(Rejection::OutOfTurn),
        }
    }

    fn check_md5(&mut self, known: Option<Md5>, salt: [u8; 4], answer: &[u8]) -> Step {
        let (hash, credential) = match known {
            Some(Md5::Password(password)) => {
                let hash = Secret::new(md5::stored(&self.user, password.expose()));
                (hash, Credential::Password(password))
            }
            Some(Md5::Hash(hash)) => (hash.clone(), Credential::Md5(hash)),
            None => return self.wrong_password(),
        };
        if md5::verify(hash.expose(), salt, answer) {
            return self.accept(None, Some(credential));
        }
        let answer = answer.to_vec();
        self.state = State::Md5Failed { salt, answer };
        self.wrong_password()
    }

    fn on_client_first(&mut self, mut exchange: ServerExchange, data: &[u8]) -> Step {
        match exchange.client_first(data) {
            Ok(server_first) => {
                self.state = State::SaslFinal(exchange);
                Step::Send(AuthRequest::SaslContinue(server_first))
            }
            Err(error) => Step::Reject(Rejection::Scram(error)),
        }
    }

    fn on_client_final(&mut self, mut exchange: ServerExchange, data: &[u8]) -> Step {
        match exchange.client_final(data) {
            Ok(server_final) => {
                // Keys fit the verifier that the exchange was checked with. One that was derived
                // from a configured password is not the server's, so there the password goes on.
                let credential = match self.password.take() {
                    Some(password) => Some(Credential::Password(password)),
                    None => exchange.keys().cloned().map(Credential::Keys),
                };
                self.accept(Some(server_final), credential)
            }
            Err(ScramError::WrongProof) => self.wrong_password(),
            Err(error) => Step::Reject(Rejection::Scram(error)),
        }
    }

    fn accept(&self, sasl_final: Option<Vec<u8>>, credential: Option<Credential>) -> Step {
        if self.no_login {
            return Step::Reject(Rejection::NoLogin(self.user.clone()));
        }
        Step::Accept(Accepted {
            sasl_final,
            credential,
        })
    }

    fn wrong_password(&self) -> Step {
        let cause = self.doomed.unwrap_or(Cause::Mismatch);
        Step::Reject(Rejection::WrongPassword {
            user: self.user.clone(),
            cause,
        })
    }
}

impl Rejection {
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Rejection::UnknownRole(_)
            | Rejection::NoLogin(_)
            | Rejection::NoCertificate
            | Rejection::WrongCertificate { .. }
            | Rejection::Scram(
                ScramError::ChannelBindingDowngraded | ScramError::ChannelBindingFailed,
            ) => "28000",
            Rejection::WrongPassword { .. } => "28P01",
            Rejection::Mechanism
            | Rejection::Malformed(_)
            | Rejection::OutOfTurn
            | Rejection::Scram(_) => "08P01",
        }
    }
}

fn missing(entry: Option<&Entry>, has_secret: bool) -> Option<Cause> {
    match entry {
        None => Some(Cause::UnknownUser),
        Some(_) if !has_secret => Some(Cause::NoPassword),
        Some(_) => None,
    }
}

/// A SCRAM login: against a mock verifier where there is none.
fn scram_login(
    users: &Users,
    user: &str,
    channel: &Channel,
    verifier: Option<Verifier>,
    doomed: Option<Cause>,
    nonce: [u8; NONCE_BYTES],
) -> (State, Step) {
    let verifier = verifier.unwrap_or_else(|| users.mock_verifier(user));
    let exchange = ServerExchange::new(verifier, doomed.is_none(), scram::nonce_text(nonce))
        .offering(channel.end_point.clone());
    let mechanisms = match channel.end_point {
        Some(_) => MECHANISMS_TLS,
        None => MECHANISMS,
    };
    let request = AuthRequest::Sasl { mechanisms };
    (State::SaslInitial(exchange), Step::Send(request))
}

/// SASLInitialResponse: the mechanism, then the length of its data (−1 for none) and the data.
/// Whether the mechanism is the one with channel binding, and the data.
fn parse_initial_response(body: &[u8]) -> Result<(bool, Option<&[u8]>), Rejection> {
    let mechanism_end = (body.iter().position(|byte| *byte == 0))
        .ok_or(Rejection::Malformed("the SASL mechanism has no end"))?;
    let (mechanism, rest) = (&body[..mechanism_end], &body[mechanism_end + 1..]);
    let plus = mechanism == MECHANISM_PLUS.as_bytes();
    if !plus && mechanism != MECHANISM.as_bytes() {
        return Err(Rejection::Mechanism);
    }
    let (length, data) = (rest.split_first_chunk())
        .ok_or(Rejection::Malformed("the SASL response has no length"))?;
    match i32::from_be_bytes(*length) {
        -1 if data.is_empty() => Ok((plus, None)),
        length if usize::try_from(length) == Ok(data.len()) => Ok((plus, Some(data))),
        _ => Err(Rejection::Malformed(
            "the SASL response is not of the length that it tells",
        )),
    }
}
