//! Who may log in, and how both ends of a login speak: clients here, and this proxy at the servers.
//! Never reads or writes a socket: message bodies go in, and what to answer comes out.

mod channel;
mod client;
pub mod lookup;
pub mod md5;
pub mod scram;
mod server;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::config::{Auth, AuthMethod, Secret, User};
use scram::Verifier;

pub use channel::{CertificateCause, Channel, Shown};
pub use client::{Accepted, AuthRequest, Cause, ClientAuth, Rejection, Step};
pub use scram::Credential;
pub use server::{AuthError, Reply, ServerAuth};

/// The users of a config, ready to check logins against.
pub struct Users {
    method: AuthMethod,
    /// Salts and mock verifiers derive from it. Kept over reloads: if it changed, so would the salts of
    /// users that do not exist, while a configured verifier keeps its own. Nothing that a password gives may be
    /// in it: anybody is shown such salts, and could try passwords on them.
    secret: MockSecret,
    by_name: HashMap<String, Entry>,
    /// Of the first verifier that is configured.
    configured_iterations: Option<u32>,
    /// Of the last verifier that was looked up. Kept over reloads.
    looked_up_iterations: AtomicU32,
}

pub type MockSecret = [u8; 32];

struct Entry {
    configured: User,
    /// Present if the user has one, or has a password that the method needs one of.
    verifier: Option<Verifier>,
}

impl Users {
    /// Under SCRAM this derives a verifier from each password: about half a millisecond each.
    pub fn new(auth: &Auth) -> Users {
        Users::with_secret(auth, rand::random())
    }

    /// The same with a secret that others have too, for whom users that do not exist look alike.
    pub fn with_secret(auth: &Auth, secret: MockSecret) -> Users {
        Users::build(auth, secret, &HashMap::new(), scram::ITERATIONS_DEFAULT)
    }

    /// As [`Users::new`] for a changed config; verifiers of unchanged users are not derived again.
    pub fn reload(&self, auth: &Auth) -> Users {
        let looked_up = self.looked_up_iterations.load(Ordering::Relaxed);
        Users::build(auth, self.secret, &self.by_name, looked_up)
    }

    pub fn method(&self) -> AuthMethod {
        self.method
    }

    pub fn contains(&self, user: &str) -> bool {
        self.by_name.contains_key(user)
    }

    /// The user's password, if it is configured in plain text.
    pub fn password(&self, user: &str) -> Option<&Secret> {
        self.by_name.get(user)?.configured.password.as_ref()
    }

    /// A verifier that nobody can satisfy, for a user that does not exist. It has the iterations that those of
    /// users most likely have, which is what tells the two apart otherwise.
    fn mock_verifier(&self, user: &str) -> Verifier {
        let looked_up = || self.looked_up_iterations.load(Ordering::Relaxed);
        let iterations = self.configured_iterations.unwrap_or_else(looked_up);
        Verifier::mock(&self.secret, user, iterations)
    }

    /// A role's verifier has been looked up.
    fn note_looked_up(&self, verifier: &Verifier) {
        self.looked_up_iterations
            .store(verifier.iterations, Ordering::Relaxed);
    }

    fn build(
        auth: &Auth,
        secret: MockSecret,
        known: &HashMap<String, Entry>,
        looked_up_iterations: u32,
    ) -> Users {
        let mut by_name = HashMap::with_capacity(auth.users.len());
        for user in &auth.users {
            let known = known.get(&user.name);
            let unchanged = known.filter(|entry| entry.configured == *user);
            let derived = unchanged.and_then(|entry| entry.verifier.as_ref());
            let verifier = verifier(user, auth.method, &secret, derived);
            by_name.insert(
                user.name.clone(),
                Entry {
                    configured: user.clone(),
                    verifier,
                },
            );
        }
        let mut configured = auth.users.iter().filter_map(|user| user.verifier.as_ref());
        Users {
            method: auth.method,
            secret,
            by_name,
            configured_iterations: configured.next().map(|verifier| verifier.iterations),
            looked_up_iterations: AtomicU32::new(looked_up_iterations),
        }
    }
}

/// What logs in to servers for a client that has proved who it is; and the order of such proofs,
/// since a later one counts where the password has been changed.
#[derive(Clone, Debug)]
pub struct Proven {
    /// `None` fits only a server that asks for nothing.
    pub credential: Option<Credential>,
    order: u64,
}

impl Proven {
    /// Proved now, after all that were before.
    pub fn now(credential: Option<Credential>) -> Proven {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let order = NEXT.fetch_add(1, Ordering::Relaxed);
        Proven { credential, order }
    }

    /// The password to log in with instead, in the same order.
    pub fn replaced_by(&self, password: &Secret) -> Proven {
        Proven {
            credential: Some(Credential::Password(password.clone())),
            order: self.order,
        }
    }

    pub fn is_newer_than(&self, other: &Proven) -> bool {
        self.order > other.order
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users({:?}, {} users)", self.method, self.by_name.len())
    }
}

/// The user's verifier under this method, if it has one. `derived` is what its password has given before.
fn verifier(
    user: &User,
    method: AuthMethod,
    secret: &MockSecret,
    derived: Option<&Verifier>,
) -> Option<Verifier> {
    match (&user.verifier, &user.password) {
        (Some(verifier), _) => Some(verifier.clone()),
        (None, Some(password)) if method == AuthMethod::ScramSha256 => {
            let derive = || {
                let salt = scram::salt_for(secret, &user.name);
                Verifier::from_password(password.expose(), &salt, scram::ITERATIONS_DEFAULT)
            };
            Some(derived.cloned().unwrap_or_else(derive))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
