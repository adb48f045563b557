//! Owns: the types of what the configuration says of TLS. Never: reads the files that it names.

use std::path::PathBuf;

/// TLS for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenTls {
    pub mode: OfferMode,
    /// The certificate, followed by those that lead to its authority.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Whose certificates clients may show. Present under [`OfferMode::VerifyCa`] and above.
    pub client_ca: Option<PathBuf>,
}

/// What is asked of clients that come over TCP. Each asks for what those before it do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum OfferMode {
    /// Nothing: who asks for TLS gets it.
    #[default]
    Prefer,
    /// TLS.
    Require,
    /// A certificate of `client_ca`'s.
    VerifyCa,
    /// That its common name is the user's name.
    VerifyFull,
}

/// TLS for the connections to a cluster's nodes, with libpq's names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeTls {
    pub mode: SslMode,
    /// Whom the nodes' certificates must be from, whatever the mode. Present under
    /// [`SslMode::VerifyCa`] and above.
    pub root_cert: Option<PathBuf>,
    /// The certificate that nodes are shown, and its key: both or neither.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum SslMode {
    Disable,
    /// Without TLS, unless the server refuses that.
    Allow,
    /// With TLS, unless the server has none or refuses it.
    #[default]
    Prefer,
    Require,
    /// The certificate must be from `root_cert`.
    VerifyCa,
    /// And for the host that the node's address names.
    VerifyFull,
}
