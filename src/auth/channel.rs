//! Owns: what a login may know of the connection that it runs over. Never: looks at a certificate;
//! what was found in it comes in from outside.

use super::Rejection;

/// The connection that a client logs in over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Channel {
    /// What the client may bind its login to: present over TLS, where the certificate has a hash.
    pub end_point: Option<Vec<u8>>,
    /// What the client has shown of itself, and has been found good.
    pub certificate: Option<Shown>,
}

/// A client's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shown {
    /// `None` if it names nobody.
    pub common_name: Option<String>,
}

/// What the log may say about a certificate that is not the user's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateCause {
    #[error("client certificate contains no user name")]
    Nameless,
    #[error("client certificate is for \"{0}\"")]
    OtherName(String),
}

impl Channel {
    /// Whether the client has shown a certificate.
    ///
    /// # Errors
    /// PostgreSQL's, if it has not.
    pub fn require_certificate(&self) -> Result<&Shown, Rejection> {
        self.certificate.as_ref().ok_or(Rejection::NoCertificate)
    }

    /// Whether the client has shown a certificate of this user's.
    ///
    /// # Errors
    /// PostgreSQL's, if it has not.
    pub fn require_certificate_of(&self, user: &str) -> Result<(), Rejection> {
        let cause = match &self.require_certificate()?.common_name {
            Some(name) if name == user => return Ok(()),
            Some(name) => CertificateCause::OtherName(name.clone()),
            None => CertificateCause::Nameless,
        };
        let user = user.to_owned();
        Err(Rejection::WrongCertificate { user, cause })
    }
}
