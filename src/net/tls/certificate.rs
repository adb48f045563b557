//! Owns: what is read from an X.509 certificate: names, dates, and the hash that channel binding
//! uses. Never: decides whom to trust.

use std::net::IpAddr;
use std::time::Duration;

use rustls::pki_types::{
    CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, UnixTime,
};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_cert::Certificate as X509;
use x509_cert::TbsCertificate;
use x509_cert::der::asn1::{Any, ContextSpecific, ObjectIdentifier};
use x509_cert::der::{Decode, Encode, Header, Reader, SliceReader, Tag, TagNumber, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::spki::AlgorithmIdentifierOwned;

type Algorithm = dyn SignatureVerificationAlgorithm + 'static;

/// A certificate that has been read.
pub struct Certificate {
    der: CertificateDer<'static>,
    x509: X509,
}

/// What is wrong with a certificate's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be read as an X.509 certificate: {0}")]
pub struct Unreadable(String);

impl Certificate {
    /// # Errors
    /// When it is not X.509 in DER.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Certificate, Unreadable> {
        let x509 = X509::from_der(der).map_err(|error| Unreadable(error.to_string()))?;
        let der = der.clone().into_owned();
        Ok(Certificate { der, x509 })
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    fn body(&self) -> &TbsCertificate {
        self.x509.tbs_certificate()
    }

    /// The subject's first common name, which is what PostgreSQL takes for a user's name; `None`
    /// too if it has a zero byte in it, which could hide another name.
    pub fn common_name(&self) -> Option<String> {
        const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
        let mut attributes = self.body().subject().iter();
        let name = attributes.find(|attribute| attribute.oid == COMMON_NAME)?;
        text(&name.value).filter(|name| !name.contains('\0'))
    }

    /// Whether the certificate is for `host`, by libpq's rule: among the alternative names of the
    /// host's own kind if there is one, else by the common name too.
    ///
    /// # Errors
    /// When its alternative names can't be read.
    pub fn is_for(&self, host: &str) -> Result<bool, Unreadable> {
        let address: Option<IpAddr> = host.parse().ok();
        let names = self.body().get_extension::<SubjectAltName>();
        let names = names.map_err(|error| Unreadable(error.to_string()))?;
        let mut same_kind = false;
        for name in names.iter().flat_map(|(_, names)| &names.0) {
            let matches = match name {
                GeneralName::DnsName(name) => {
                    same_kind |= address.is_none();
                    matches_host(name.as_str(), host)
                }
                GeneralName::IpAddress(octets) => {
                    same_kind |= address.is_some();
                    address.is_some_and(|address| octets_of(address) == octets.as_bytes())
                }
                _ => false,
            };
            if matches {
                return Ok(true);
            }
        }
        let common_name = || self.common_name();
        Ok(!same_kind && common_name().is_some_and(|name| matches_host(&name, host)))
    }

    /// The names that it is for, as an error shows them.
    pub fn names(&self) -> String {
        let names = self.body().get_extension::<SubjectAltName>().ok().flatten();
        let shown = |name: &GeneralName| match name {
            GeneralName::DnsName(name) => Some(name.as_str().escape_debug().to_string()),
            GeneralName::IpAddress(octets) => {
                address_of(octets.as_bytes()).map(|ip| ip.to_string())
            }
            _ => None,
        };
        let alternative = names
            .iter()
            .flat_map(|(_, names)| names.0.iter().filter_map(shown));
        let common_name = self
            .common_name()
            .map(|name| name.escape_debug().to_string());
        let names: Vec<_> = common_name.into_iter().chain(alternative).collect();
        match names.is_empty() {
            true => "nobody".to_owned(),
            false => names.join(", "),
        }
    }

    pub fn not_before(&self) -> Duration {
        self.body().validity().not_before.to_unix_duration()
    }

    pub fn not_after(&self) -> Duration {
        self.body().validity().not_after.to_unix_duration()
    }

    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        (self.not_before().as_secs()..=self.not_after().as_secs()).contains(&now.as_secs())
    }

    /// The day after which it is of no use, as `2031-12-31`.
    pub fn last_day(&self) -> String {
        let date = self.body().validity().not_after.to_date_time();
        format!("{:04}-{:02}-{:02}", date.year(), date.month(), date.day())
    }

    /// Whether it is of a version that can't have alternative names or a purpose: what `openssl
    /// x509 -req` makes without an `-extfile`.
    pub fn is_version_1(&self) -> bool {
        self.body().extensions().is_none()
    }

    /// Whether `other` says that it is the one that has signed this.
    pub fn names_issuer(&self, other: &Certificate) -> bool {
        self.body().issuer() == other.body().subject()
    }

    /// Whether `issuer`'s key has signed this, by one of `algorithms`.
    pub fn is_signed_by(&self, issuer: &Certificate, algorithms: &[&Algorithm]) -> bool {
        let signed = || {
            let algorithm = identifier(self.x509.signature_algorithm())?;
            let fits = |a: &&Algorithm| a.signature_alg_id().as_ref() == algorithm;
            let fitting: Vec<_> = algorithms.iter().copied().filter(fits).collect();
            let signature = self.x509.signature().as_bytes()?;
            Some(issuer.has_signed(self.signed_part()?, signature, &fitting))
        };
        signed().unwrap_or(false)
    }

    /// Whether the certificate's key has signed `message`, by one of `algorithms`.
    pub fn has_signed(&self, message: &[u8], signature: &[u8], algorithms: &[&Algorithm]) -> bool {
        let signed = || {
            let key = self.body().subject_public_key_info();
            let algorithm = identifier(&key.algorithm)?;
            let key = key.subject_public_key.as_bytes()?;
            let mut fitting =
                (algorithms.iter()).filter(|a| a.public_key_alg_id().as_ref() == algorithm);
            Some(fitting.any(|a| a.verify_signature(key, message, signature).is_ok()))
        };
        signed().unwrap_or(false)
    }

    /// The bytes that the signature is over, as they are.
    fn signed_part(&self) -> Option<&[u8]> {
        let content = content(&self.der)?;
        let rest = content.len() - content_and_rest(content)?.1.len();
        content.get(..rest)
    }

    /// The key, for checking what its owner has signed.
    pub fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'static>> {
        let der = self.body().subject_public_key_info().to_der().ok()?;
        Some(SubjectPublicKeyInfoDer::from(der))
    }

    /// What the channel binding `tls-server-end-point` is (RFC 5929): the certificate's hash by the
    /// hash function of its signature, and by SHA-256 where that is MD5 or SHA-1. `None` where a
    /// signature has no such function, as with Ed25519: then there is no such binding.
    pub fn end_point(&self) -> Option<Vec<u8>> {
        let hash = signature_hash(self.x509.signature_algorithm())?;
        Some(match hash {
            Hash::Sha224 => Sha224::digest(&self.der).to_vec(),
            Hash::Sha256 => Sha256::digest(&self.der).to_vec(),
            Hash::Sha384 => Sha384::digest(&self.der).to_vec(),
            Hash::Sha512 => Sha512::digest(&self.der).to_vec(),
        })
    }
}

#[derive(Clone, Copy)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

fn signature_hash(algorithm: &AlgorithmIdentifierOwned) -> Option<Hash> {
    match algorithm.oid.to_string().as_str() {
        // RSA, ECDSA and DSA with MD5 or SHA-1.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10045.4.1"
        | "1.2.840.10040.4.3" => Some(Hash::Sha256),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" | "2.16.840.1.101.3.4.3.1" => {
            Some(Hash::Sha224)
        }
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" | "2.16.840.1.101.3.4.3.2" => {
            Some(Hash::Sha256)
        }
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.3.3" => {
            Some(Hash::Sha384)
        }
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.3.4" => {
            Some(Hash::Sha512)
        }
        // RSASSA-PSS names its hash among its parameters.
        "1.2.840.113549.1.1.10" => pss_hash(algorithm.parameters.as_ref()?),
        _ => None,
    }
}

/// RSASSA-PSS-params begins with `[0] EXPLICIT hashAlgorithm`, which is SHA-1 where it is left out.
fn pss_hash(parameters: &Any) -> Option<Hash> {
    let mut reader = SliceReader::new(parameters.value()).ok()?;
    let hash: Option<ContextSpecific<AlgorithmIdentifierOwned>> =
        ContextSpecific::decode_explicit(&mut reader, TagNumber(0)).ok()?;
    let Some(hash) = hash else {
        return Some(Hash::Sha256);
    };
    match hash.value.oid.to_string().as_str() {
        "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Some(Hash::Sha256),
        "2.16.840.1.101.3.4.2.4" => Some(Hash::Sha224),
        "2.16.840.1.101.3.4.2.2" => Some(Hash::Sha384),
        "2.16.840.1.101.3.4.2.3" => Some(Hash::Sha512),
        _ => None,
    }
}

/// An AlgorithmIdentifier's content, as rustls compares it.
fn identifier(algorithm: &AlgorithmIdentifierOwned) -> Option<Vec<u8>> {
    content(&algorithm.to_der().ok()?).map(<[u8]>::to_vec)
}

/// What the element at the beginning of `der` contains.
fn content(der: &[u8]) -> Option<&[u8]> {
    Some(content_and_rest(der)?.0)
}

/// The content of the element at the beginning of `der`, and what follows the element.
fn content_and_rest(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut reader = SliceReader::new(der).ok()?;
    let header = Header::decode(&mut reader).ok()?;
    let content = reader.read_slice(header.length()).ok()?;
    let end = usize::try_from(reader.position()).ok()?;
    Some((content, der.get(end..)?))
}

/// The text of a name's value, of whichever kind of string it is.
fn text(value: &Any) -> Option<String> {
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::TeletexString => {
            String::from_utf8(value.value().to_vec()).ok()
        }
        Tag::BmpString => {
            let pairs = value.value().chunks_exact(2);
            let units: Vec<u16> = pairs.map(|p| u16::from_be_bytes([p[0], p[1]])).collect();
            String::from_utf16(&units).ok()
        }
        _ => None,
    }
}

/// libpq's comparison: case does not matter, and `*.` stands for one label at the beginning.
fn matches_host(pattern: &str, host: &str) -> bool {
    if pattern.contains('\0') {
        return false;
    }
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(rest) = pattern.strip_prefix("*.").filter(|rest| !rest.is_empty()) else {
        return false;
    };
    match host.split_once('.') {
        Some((label, parent)) => !label.is_empty() && parent.eq_ignore_ascii_case(rest),
        None => false,
    }
}

fn octets_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address_of(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType};

    fn made(change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        made_with(KeyPair::generate().unwrap(), change)
    }

    fn made_with(key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        Certificate::parse(params.self_signed(&key).unwrap().der()).unwrap()
    }

    fn named(common_name: &str, alternative: &[SanType]) -> Certificate {
        made(|params| {
            let name = &mut params.distinguished_name;
            name.push(rcgen::DnType::CommonName, common_name);
            params.subject_alt_names = alternative.to_vec();
        })
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    fn ip(address: &str) -> SanType {
        SanType::IpAddress(address.parse().unwrap())
    }

    #[track_caller]
    fn check(certificate: &Certificate, host: &str, expected: bool) {
        assert_eq!(certificate.is_for(host), Ok(expected), "{host}");
    }

    #[test]
    fn names_are_compared_as_libpq_does() {
        let only_common = named("db.example", &[]);
        check(&only_common, "DB.example", true);
        check(&only_common, "other.example", false);
        check(&named("10.0.0.1", &[]), "10.0.0.1", true);

        // The common name counts only where there is no alternative name of the same kind.
        let dns_names = named("db.example", &[dns("a.example"), dns("*.b.example")]);
        check(&dns_names, "a.example", true);
        check(&dns_names, "db.example", false);
        check(&dns_names, "x.b.example", true);
        check(&dns_names, "x.y.b.example", false);
        check(&dns_names, "b.example", false);
        check(&dns_names, ".b.example", false);
        let addresses = named("db.example", &[ip("10.0.0.1"), ip("::1")]);
        check(&addresses, "10.0.0.1", true);
        check(&addresses, "::1", true);
        check(&addresses, "10.0.0.2", false);
        check(&addresses, "db.example", true);
        assert_eq!(addresses.names(), "db.example, 10.0.0.1, ::1");
        check(&named("10.0.0.9", &[ip("10.0.0.1")]), "10.0.0.9", false);
        check(&made(|_| ()), "anything", false);
    }

    #[test]
    fn patterns() {
        for (pattern, host) in [
            ("*.", "a."),
            ("*", "a"),
            ("a*.example", "ab.example"),
            ("*.example", "example"),
            ("a\0.example", "a\0.example"),
        ] {
            assert!(!matches_host(pattern, host), "{pattern} {host}");
        }
    }

    #[test]
    fn a_common_name_is_read_or_refused() {
        assert_eq!(named("app", &[]).common_name().as_deref(), Some("app"));
        assert_eq!(named("app\0root", &[]).common_name(), None);
        assert_eq!(made(|_| ()).common_name(), None);
    }

    #[test]
    fn the_end_point_is_by_the_signatures_hash() {
        let p256 = made(|_| ());
        assert_eq!(p256.end_point(), Some(Sha256::digest(p256.der()).to_vec()));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let p384 = made_with(key, |_| ());
        assert_eq!(p384.end_point(), Some(Sha384::digest(p384.der()).to_vec()));
        let ed25519 = made_with(KeyPair::generate_for(&PKCS_ED25519).unwrap(), |_| ());
        assert_eq!(ed25519.end_point(), None);
    }

    #[test]
    fn a_signature_is_checked_by_the_signers_key() {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let (one, other) = (made(|_| ()), made(|_| ()));
        assert!(one.is_signed_by(&one, algorithms.all));
        assert!(!one.is_signed_by(&other, algorithms.all));
    }

    #[test]
    fn dates() {
        let certificate = made(|params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 12, 31);
        });
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        assert!(certificate.is_valid_at(at(1_600_000_000)));
        assert!(!certificate.is_valid_at(at(1_700_000_000)));
        assert!(!certificate.is_valid_at(at(1_500_000_000)));
        assert_eq!(certificate.last_day(), "2021-12-31");
    }

    #[test]
    fn what_is_no_certificate() {
        for der in [&b""[..], b"0", b"0\x82\xff\xff", b"hello"] {
            assert!(Certificate::parse(&CertificateDer::from(der)).is_err());
        }
    }
}
