//! Owns: the keys for TLS, and what must hold among them. Never: looks at the files that they name.

use super::super::section::{Keys, Section, Value};
use super::super::{ListenTls, NodeTls, OfferMode, SslMode};
use super::Result;

pub(super) const LISTEN_TLS: Keys = &["mode", "cert", "key", "client_ca"];

/// `None` under the mode "disable", whatever else is given.
pub(super) fn listen(section: &Section<'_>) -> Result<Option<ListenTls>> {
    const MODES: &[(&str, Option<OfferMode>)] = &[
        ("disable", None),
        ("prefer", Some(OfferMode::Prefer)),
        ("require", Some(OfferMode::Require)),
        ("verify-ca", Some(OfferMode::VerifyCa)),
        ("verify-full", Some(OfferMode::VerifyFull)),
    ];
    let default = Some(OfferMode::default());
    let mode = section.get("mode", default, |value| value.choice(MODES))?;
    let Some(mode) = mode else {
        return Ok(None);
    };
    let tls = ListenTls {
        mode,
        cert: section.required("cert", Value::path)?,
        key: section.required("key", Value::path)?,
        client_ca: section.optional("client_ca", Value::path)?,
    };
    if mode >= OfferMode::VerifyCa && tls.client_ca.is_none() {
        let message = r#""listen.tls.client_ca" must name the authority whose certificates clients are to show"#;
        return Err(section.fault_at("mode", message));
    }
    Ok(Some(tls))
}

/// From the cluster's own keys.
pub(super) fn nodes(section: &Section<'_>) -> Result<NodeTls> {
    const MODES: &[(&str, SslMode)] = &[
        ("disable", SslMode::Disable),
        ("allow", SslMode::Allow),
        ("prefer", SslMode::Prefer),
        ("require", SslMode::Require),
        ("verify-ca", SslMode::VerifyCa),
        ("verify-full", SslMode::VerifyFull),
    ];
    let default = NodeTls::default();
    let tls = NodeTls {
        mode: section.get("sslmode", default.mode, |value| value.choice(MODES))?,
        root_cert: section.optional("sslrootcert", Value::path)?,
        cert: section.optional("sslcert", Value::path)?,
        key: section.optional("sslkey", Value::path)?,
    };
    if tls.mode >= SslMode::VerifyCa && tls.root_cert.is_none() {
        let message = r#""cluster.sslrootcert" must name the authority that the nodes' certificates are from"#;
        return Err(section.fault_at("sslmode", message));
    }
    match (&tls.cert, &tls.key) {
        (Some(_), None) => {
            let message = r#""cluster.sslkey" must name the key of "cluster.sslcert""#;
            Err(section.fault_at("sslcert", message))
        }
        (None, Some(_)) => {
            let message = r#""cluster.sslcert" must name the certificate of "cluster.sslkey""#;
            Err(section.fault_at("sslkey", message))
        }
        _ => Ok(tls),
    }
}
