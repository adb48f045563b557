//! Owns: whom the proxy trusts: servers by libpq's `sslmode`, clients by `client_ca`. Never: trusts
//! for a name alone.
//!
//! The chain is webpki's to check. It takes no certificate of version 1, which PostgreSQL's own
//! instructions make, and none that is both an authority and a server's, which a self-signed one
//! usually is. OpenSSL, and so libpq, takes both; so they are checked here if they are trusted
//! directly: listed among the authorities, or signed by one that is.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SignatureVerificationAlgorithm, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use super::certificate::Certificate;
use super::files::Roots;

/// Checks servers' certificates.
pub struct ServerVerifier {
    algorithms: WebPkiSupportedAlgorithms,
    /// `None` trusts whoever answers.
    roots: Option<Roots>,
    /// Whether the certificate must be for the host that was asked for.
    full: bool,
}

/// A certificate for somebody else.
#[derive(Debug, thiserror::Error)]
#[error("server certificate is for {names}, and does not match host \"{host}\"")]
struct OtherHost {
    names: String,
    host: String,
}

impl ServerVerifier {
    pub fn new(
        algorithms: WebPkiSupportedAlgorithms,
        roots: Option<Roots>,
        full: bool,
    ) -> ServerVerifier {
        ServerVerifier {
            algorithms,
            roots,
            full,
        }
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trusting, full) = (self.roots.is_none(), self.full);
        write!(f, "ServerVerifier(trusting: {trusting}, full: {full})")
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = parse(end_entity)?;
        let all = self.algorithms.all;
        if !is_trusted_directly(&certificate, roots, all, now)? {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &roots.store,
                intermediates,
                now,
                all,
            )?;
        }
        if self.full {
            let host = server_name.to_str();
            let matches = certificate.is_for(&host).map_err(other)?;
            if !matches {
                let names = certificate.names();
                let host = host.into_owned();
                return Err(other(OtherHost { names, host }));
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_12(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_13(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Checks clients' certificates, where clients show one.
pub struct ClientVerifier {
    algorithms: WebPkiSupportedAlgorithms,
    roots: Roots,
    chain: Arc<dyn ClientCertVerifier>,
}

impl ClientVerifier {
    /// `chain` checks what is not trusted directly; it must allow clients without a certificate.
    pub fn new(
        algorithms: WebPkiSupportedAlgorithms,
        roots: Roots,
        chain: Arc<dyn ClientCertVerifier>,
    ) -> ClientVerifier {
        ClientVerifier {
            algorithms,
            roots,
            chain,
        }
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientVerifier")
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    /// Who shows none is told so in PostgreSQL's words, after the handshake.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let certificate = parse(end_entity)?;
        match is_trusted_directly(&certificate, &self.roots, self.algorithms.all, now)? {
            true => Ok(ClientCertVerified::assertion()),
            false => self
                .chain
                .verify_client_cert(end_entity, intermediates, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_12(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_13(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether the certificate is one of the authorities itself, or of version 1 and signed by one.
/// Dates count all the same.
fn is_trusted_directly(
    certificate: &Certificate,
    roots: &Roots,
    algorithms: &[&'static dyn SignatureVerificationAlgorithm],
    now: UnixTime,
) -> Result<bool, Error> {
    let listed = |root: &Certificate| root.der() == certificate.der();
    let signed = |root: &Certificate| {
        certificate.is_version_1()
            && certificate.names_issuer(root)
            && root.is_valid_at(now)
            && certificate.is_signed_by(root, algorithms)
    };
    let mut roots = roots.certificates.iter();
    if !roots.any(|root| listed(root) || signed(root)) {
        return Ok(false);
    }
    let (from, to) = (certificate.not_before(), certificate.not_after());
    if now.as_secs() < from.as_secs() {
        let not_before = UnixTime::since_unix_epoch(from);
        let time = now;
        return Err(CertificateError::NotValidYetContext { time, not_before }.into());
    }
    if now.as_secs() > to.as_secs() {
        let not_after = UnixTime::since_unix_epoch(to);
        let time = now;
        return Err(CertificateError::ExpiredContext { time, not_after }.into());
    }
    Ok(true)
}

/// As rustls does it; for a certificate of version 1, which that does not read, by its key.
fn verify_12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let parsed = parse(certificate)?;
    if !parsed.is_version_1() {
        return verify_tls12_signature(message, certificate, signed, algorithms);
    }
    let fitting = algorithms
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == signed.scheme);
    let fitting = fitting.map_or(&[][..], |(_, fitting)| fitting);
    match parsed.has_signed(message, signed.signature(), fitting) {
        true => Ok(HandshakeSignatureValid::assertion()),
        false => Err(CertificateError::BadSignature.into()),
    }
}

fn verify_13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let key = parse(certificate)?.public_key();
    let key = key.ok_or(CertificateError::BadEncoding)?;
    verify_tls13_signature_with_raw_key(message, &key, signed, algorithms)
}

fn parse(der: &CertificateDer<'_>) -> Result<Certificate, Error> {
    Certificate::parse(der).map_err(other)
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}
