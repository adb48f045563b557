//! Makes certificates, and writes them where servers and clients find them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
};

/// A certificate authority with a directory of its own.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

/// Files with a certificate and its key.
#[derive(Clone)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(directory: &Path, name: &str) -> Authority {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = directory.join(name);
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        fs::write(directory.join("ca.crt"), issuer.pem()).unwrap();
        Authority { issuer, directory }
    }

    /// The authority's own certificate.
    pub fn root(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// A certificate for a common name and alternative names.
    pub fn issue(&self, common_name: &str, names: &[&str]) -> Pair {
        self.issue_with(common_name, names, |_| ())
    }

    /// One that has been of no use for years.
    pub fn issue_expired(&self, common_name: &str, names: &[&str]) -> Pair {
        self.issue_with(common_name, names, |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        })
    }

    fn issue_with(
        &self,
        common_name: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let mut params = params(common_name, names);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let pair = self.fresh_pair();
        write_pair(&pair, &certificate.pem(), &key.serialize_pem());
        pair
    }

    /// As `openssl req -x509` makes it: a server's certificate that is its own authority.
    pub fn self_signed(&self, common_name: &str) -> Pair {
        let mut params = params(common_name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let pair = self.fresh_pair();
        write_pair(&pair, &certificate.pem(), &key.serialize_pem());
        pair
    }

    /// As PostgreSQL's documentation makes it: of version 1, with a common name alone. `None`
    /// where there is no openssl.
    pub fn issue_version_1(&self, common_name: &str) -> Option<Pair> {
        let pair = self.fresh_pair();
        let (key, request) = (
            self.directory.join("ca.key"),
            pair.cert.with_extension("csr"),
        );
        fs::write(&key, self.issuer.key().serialize_pem()).unwrap();
        let openssl = |arguments: &[&std::ffi::OsStr]| {
            let run = std::process::Command::new("openssl")
                .args(arguments)
                .output();
            run.is_ok_and(|output| output.status.success())
        };
        let subject = format!("/CN={common_name}");
        let args = |list: &[&dyn AsRef<std::ffi::OsStr>]| -> bool {
            openssl(&list.iter().map(|a| (*a).as_ref()).collect::<Vec<_>>())
        };
        let made = args(&[
            &"req",
            &"-new",
            &"-nodes",
            &"-newkey",
            &"rsa:2048",
            &"-subj",
            &subject,
            &"-keyout",
            &pair.key,
            &"-out",
            &request,
        ]) && args(&[
            &"x509",
            &"-req",
            &"-in",
            &request,
            &"-days",
            &"30",
            &"-CA",
            &self.root(),
            &"-CAkey",
            &key,
            &"-CAcreateserial",
            &"-out",
            &pair.cert,
        ]);
        if made {
            fs::set_permissions(&pair.key, Permissions::from_mode(0o600)).unwrap();
        }
        made.then_some(pair)
    }

    fn fresh_pair(&self) -> Pair {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Pair {
            cert: self.directory.join(format!("{number}.crt")),
            key: self.directory.join(format!("{number}.key")),
        }
    }
}

impl Pair {
    /// Copies the files over those of `other`.
    pub fn replace(&self, other: &Pair) {
        fs::copy(&self.cert, &other.cert).unwrap();
        fs::copy(&self.key, &other.key).unwrap();
    }

    /// Copies the files to where the owner of `directory` can read them.
    pub fn hand_to_owner_of(&self, directory: &Path, name: &str) -> Pair {
        let pair = Pair {
            cert: directory.join(format!("{name}.crt")),
            key: directory.join(format!("{name}.key")),
        };
        self.replace(&pair);
        for path in [&pair.cert, &pair.key] {
            give(path, directory);
        }
        pair
    }
}

/// Makes `path` belong to the owner of `directory`, if this is root.
pub fn give(path: &Path, directory: &Path) {
    use std::os::unix::fs::MetadataExt;
    let owner = fs::metadata(directory).unwrap();
    chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
}

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

fn write_pair(pair: &Pair, cert: &str, key: &str) {
    fs::write(&pair.cert, cert).unwrap();
    fs::write(&pair.key, key).unwrap();
    fs::set_permissions(&pair.key, Permissions::from_mode(0o600)).unwrap();
}
