//! TLS on both sides: what clients are offered, and how servers are spoken to.
//!
//! Owns: rustls's set-up from the configuration's files. Never: goes on without TLS where the
//! configuration asks for it.
//!
//! rustls's cryptography is ring's here: it builds in seconds with a C compiler alone, where
//! aws-lc takes minutes, and what it lacks (P-521, post-quantum key exchange) neither PostgreSQL
//! nor libpq asks for. It is named wherever it is used: no process-wide default is installed.

pub mod certificate;
mod files;
pub mod stream;
mod verify;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, IpAddr, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;

use self::certificate::Certificate;
use self::files::{Files, Problem};
use self::stream::Tls;
use self::verify::{ClientVerifier, ServerVerifier};
use crate::config::{Config, ListenTls, NodeTls, OfferMode, SslMode};

pub use self::files::FileError;

/// The protocol's name in ALPN.
const ALPN: &[u8] = b"postgresql";

/// How soon before its end a certificate is warned of, in days.
const WARN_DAYS: u64 = 14;

/// What the configuration's files hold, ready for use.
#[derive(Default)]
pub struct Material {
    /// What clients are offered, if they are.
    pub offer: Option<Arc<Offer>>,
    /// By the clusters' names.
    pub nodes: HashMap<String, Arc<NodeSide>>,
    /// What is allowed, and most likely not meant: one sentence each.
    pub warnings: Vec<String>,
    /// Changes when a file does.
    pub hash: [u8; 32],
}

/// TLS for clients.
pub struct Offer {
    pub mode: OfferMode,
    config: Arc<ServerConfig>,
    /// What clients can bind their logins to.
    pub end_point: Option<Vec<u8>>,
    /// What nobody can know who does not have the key: the same for all who have it, and after a restart.
    pub secret: [u8; 32],
}

/// TLS for the connections to a cluster's nodes.
#[derive(Debug)]
pub struct NodeSide {
    pub mode: SslMode,
    /// `None` if TLS is never used.
    config: Option<Arc<ClientConfig>>,
}

impl Material {
    /// Reads and checks every file that the configuration names.
    ///
    /// # Errors
    /// A file that can't be used.
    pub fn load(config: &Config) -> Result<Material, FileError> {
        let (mut files, mut material) = (Files::default(), Material::default());
        if let Some(tls) = &config.listen.tls {
            let (offer, warning) = Offer::load(tls, &mut files)?;
            material.offer = Some(Arc::new(offer));
            material.warnings.extend(warning);
        }
        for cluster in &config.clusters {
            let side = NodeSide::load(&cluster.tls, &mut files)?;
            material.nodes.insert(cluster.name.clone(), Arc::new(side));
        }
        material.hash = files.hash();
        Ok(material)
    }

    /// TLS for the nodes of the cluster of this name.
    pub fn for_cluster(&self, name: &str) -> Arc<NodeSide> {
        self.nodes.get(name).cloned().unwrap_or_default()
    }
}

impl Offer {
    fn load(tls: &ListenTls, files: &mut Files) -> Result<(Offer, Option<String>), FileError> {
        let provider = Arc::new(ring::default_provider());
        let chain = files.chain("listen.tls.cert", &tls.cert)?;
        let private = files.private_key("listen.tls.key", &tls.key)?;
        let secret = Sha256::new()
            .chain_update(b"tidegate: a secret of whoever has this key\0")
            .chain_update(private.secret_der());
        let at_key = |problem: Problem| FileError {
            key: "listen.tls.key",
            path: tls.key.clone(),
            problem,
        };
        let certified = certified_key(&provider, chain, private)
            .map_err(at_key)?
            .ok_or_else(|| at_key(Problem::OtherKey(tls.cert.clone())))?;
        let certificate = Certificate::parse(&certified.cert[0]);
        let certificate = certificate.map_err(|error| at_key(error.into()))?;
        let verifier: Arc<dyn ClientCertVerifier> = match &tls.client_ca {
            None => Arc::new(NoClientAuth),
            Some(path) => {
                let roots = files.roots("listen.tls.client_ca", path)?;
                let store = Arc::new(roots.store.clone());
                let chain = WebPkiClientVerifier::builder_with_provider(store, provider.clone())
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| FileError {
                        key: "listen.tls.client_ca",
                        path: path.clone(),
                        problem: rustls::Error::General(error.to_string()).into(),
                    })?;
                let algorithms = provider.signature_verification_algorithms;
                Arc::new(ClientVerifier::new(algorithms, roots, chain))
            }
        };
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| at_key(error.into()))?;
        let resolver = Arc::new(SingleCertAndKey::from(certified));
        let mut config = builder
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![ALPN.to_vec()];
        // As PostgreSQL: every connection proves itself anew, client certificates included.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let warning = ends_soon(&certificate, UnixTime::now()).map(|when| {
            let path = tls.cert.display();
            format!("the certificate in {path} {when}: clients that check it can't connect then")
        });
        let offer = Offer {
            mode: tls.mode,
            config: Arc::new(config),
            end_point: certificate.end_point(),
            secret: secret.finalize().into(),
        };
        Ok((offer, warning))
    }

    /// A client's connection, whose handshake has still to be done. `raw` is what it has sent of
    /// that already.
    ///
    /// # Errors
    /// When rustls can't begin.
    pub fn accept(&self, socket: TcpStream, raw: BytesMut) -> io::Result<Tls> {
        let connection = ServerConnection::new(self.config.clone()).map_err(io::Error::other)?;
        Ok(Tls::new(socket, connection.into(), raw))
    }
}

impl Default for NodeSide {
    /// Without TLS.
    fn default() -> NodeSide {
        NodeSide {
            mode: SslMode::Disable,
            config: None,
        }
    }
}

impl NodeSide {
    fn load(tls: &NodeTls, files: &mut Files) -> Result<NodeSide, FileError> {
        let mut side = NodeSide {
            mode: tls.mode,
            config: None,
        };
        if tls.mode == SslMode::Disable {
            return Ok(side);
        }
        let provider = Arc::new(ring::default_provider());
        let roots = match &tls.root_cert {
            Some(path) => Some(files.roots("cluster.sslrootcert", path)?),
            None => None,
        };
        let algorithms = provider.signature_verification_algorithms;
        let full = tls.mode == SslMode::VerifyFull;
        let verifier = Arc::new(ServerVerifier::new(algorithms, roots, full));
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for TLS 1.2 and 1.3");
        let builder = builder
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => {
                let chain = files.chain("cluster.sslcert", cert)?;
                let private = files.private_key("cluster.sslkey", key)?;
                let at_key = |problem: Problem| FileError {
                    key: "cluster.sslkey",
                    path: key.clone(),
                    problem,
                };
                let certified = certified_key(&provider, chain, private)
                    .map_err(at_key)?
                    .ok_or_else(|| at_key(Problem::OtherKey(cert.clone())))?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        side.config = Some(Arc::new(config));
        Ok(side)
    }

    /// A connection to the server on `host`, whose handshake has still to be done.
    ///
    /// # Errors
    /// When TLS is never used, or `host` can't be the name of a server that is checked by name.
    pub fn connect(&self, socket: TcpStream, host: &str) -> io::Result<Tls> {
        let config = self.config.clone().ok_or(io::ErrorKind::Unsupported)?;
        // The scope of an IPv6 address is this machine's business.
        let host = host.split_once('%').map_or(host, |(address, _)| address);
        let name = match ServerName::try_from(host.to_owned()) {
            Ok(name) => name,
            Err(_) if self.mode == SslMode::VerifyFull => {
                let message = format!("\"{host}\" can't be the name in a certificate");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            // An address: it is looked at by nobody, and not sent.
            Err(_) => ServerName::IpAddress(IpAddr::from(std::net::Ipv4Addr::UNSPECIFIED)),
        };
        let connection = ClientConnection::new(config, name)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Tls::new(socket, connection.into(), BytesMut::new()))
    }
}

/// `None` if the key is another certificate's.
fn certified_key(
    provider: &CryptoProvider,
    chain: Vec<CertificateDer<'static>>,
    private: PrivateKeyDer<'static>,
) -> Result<Option<CertifiedKey>, Problem> {
    let key = provider.key_provider.load_private_key(private)?;
    // rustls's own comparison does not read certificates of version 1.
    let public = Certificate::parse(&chain[0])?.public_key();
    let is_another = key.public_key().is_some_and(|key| Some(key) != public);
    Ok((!is_another).then(|| CertifiedKey::new(chain, key)))
}

/// Says when the certificate ends, if it has or is about to.
fn ends_soon(certificate: &Certificate, now: UnixTime) -> Option<String> {
    let last_day = certificate.last_day();
    let left = certificate.not_after().as_secs().checked_sub(now.as_secs());
    match left.map(|seconds| seconds / 86_400) {
        None => Some(format!("has expired on {last_day}")),
        Some(days) if days < WARN_DAYS => Some(format!("expires on {last_day}")),
        Some(_) if now.as_secs() < certificate.not_before().as_secs() => {
            Some("is not valid yet".to_owned())
        }
        Some(_) => None,
    }
}
