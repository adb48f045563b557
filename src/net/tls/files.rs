//! Owns: reading certificates and keys from files, by PostgreSQL's rules for who else may read
//! them. Never: keeps a file open, or repeats what a key file holds.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use super::certificate::{Certificate, Unreadable};

/// The most that is read of a file, in bytes: a whole system's authorities are under 1 MB.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// A file that can't be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {key} \"{}\": {problem}", path.display())]
pub struct FileError {
    /// The key of the configuration that names the file.
    pub key: &'static str,
    pub path: PathBuf,
    pub problem: Problem,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is longer than {FILE_BYTES_MAX} bytes")]
    TooLong,
    #[error("it is not a regular file")]
    NotRegular,
    #[error(
        "a private key must belong to the user that runs tidegate, or to root; change its owner with chown"
    )]
    Owner,
    #[error(
        "others may read this private key; chmod it to u=rw (0600) or less, or to u=rw,g=r (0640) or less if it belongs to root"
    )]
    Permissions,
    #[error(
        "the key is encrypted, and there is nobody to ask for its passphrase; decrypt it with \"openssl pkey -in FILE -out FILE\""
    )]
    Encrypted,
    #[error("it holds no private key in PEM form")]
    NoKey,
    #[error("it holds no certificate in PEM form")]
    NoCertificate,
    #[error("it is not PEM: {0}")]
    Pem(PemError),
    #[error("{0}")]
    Certificate(#[from] Unreadable),
    #[error("it does not belong to the certificate in \"{}\"", .0.display())]
    OtherKey(PathBuf),
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
}

/// Reads files, and remembers what it has read by a hash: so that a change is noticed.
#[derive(Default)]
pub struct Files {
    hash: Sha256,
}

/// The authorities of a file.
pub struct Roots {
    pub store: RootCertStore,
    pub certificates: Vec<Certificate>,
}

impl Files {
    /// A certificate, and those that lead from it to its authority.
    pub fn chain(
        &mut self,
        key: &'static str,
        path: &Path,
    ) -> Result<Vec<CertificateDer<'static>>, FileError> {
        let read = || {
            let chain = self.certificates(path)?;
            // Clients could make nothing of it either.
            Certificate::parse(&chain[0])?;
            Ok(chain)
        };
        at(key, path, read)
    }

    pub fn roots(&mut self, key: &'static str, path: &Path) -> Result<Roots, FileError> {
        let read = || {
            let mut store = RootCertStore::empty();
            let mut certificates = Vec::new();
            for der in self.certificates(path)? {
                certificates.push(Certificate::parse(&der)?);
                store.add(der)?;
            }
            Ok(Roots {
                store,
                certificates,
            })
        };
        at(key, path, read)
    }

    pub fn private_key(
        &mut self,
        key: &'static str,
        path: &Path,
    ) -> Result<PrivateKeyDer<'static>, FileError> {
        let read = || {
            let bytes = self.read(path, check_private)?;
            let is_encrypted = [&b"ENCRYPTED PRIVATE KEY"[..], b"Proc-Type: 4,ENCRYPTED"]
                .iter()
                .any(|mark| bytes.windows(mark.len()).any(|window| window == *mark));
            match PrivateKeyDer::from_pem_slice(&bytes) {
                _ if is_encrypted => Err(Problem::Encrypted),
                Ok(key) => Ok(key),
                Err(PemError::NoItemsFound) => Err(Problem::NoKey),
                Err(error) => Err(Problem::Pem(error)),
            }
        };
        at(key, path, read)
    }

    /// What has been read so far, as a hash.
    pub fn hash(self) -> [u8; 32] {
        self.hash.finalize().into()
    }

    fn certificates(&mut self, path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
        let bytes = self.read(path, |_| Ok(()))?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        let certificates = certificates.map_err(Problem::Pem)?;
        match certificates.is_empty() {
            true => Err(Problem::NoCertificate),
            false => Ok(certificates),
        }
    }

    /// `check` sees the file that is read, not one that has taken its place meanwhile.
    fn read(
        &mut self,
        path: &Path,
        check: impl FnOnce(&fs::Metadata) -> Result<(), Problem>,
    ) -> Result<Vec<u8>, Problem> {
        // Looked at first: opening a pipe would wait for its writer.
        if !fs::metadata(path)?.is_file() {
            return Err(Problem::NotRegular);
        }
        let file = File::open(path)?;
        check(&file.metadata()?)?;
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(Problem::TooLong);
        }
        self.hash.update(path.as_os_str().as_encoded_bytes());
        self.hash.update((bytes.len() as u64).to_be_bytes());
        self.hash.update(&bytes);
        Ok(bytes)
    }
}

/// As PostgreSQL's `check_ssl_key_file_permissions`.
fn check_private(metadata: &fs::Metadata) -> Result<(), Problem> {
    let own = nix::unistd::geteuid().as_raw();
    check_owner_and_mode(metadata.uid(), metadata.mode(), own)
}

fn check_owner_and_mode(owner: u32, mode: u32, own: u32) -> Result<(), Problem> {
    const ROOT: u32 = 0;
    let others = match owner {
        owner if owner == own => 0o077,
        ROOT => 0o037,
        _ => return Err(Problem::Owner),
    };
    match mode & others {
        0 => Ok(()),
        _ => Err(Problem::Permissions),
    }
}

fn at<T>(
    key: &'static str,
    path: &Path,
    read: impl FnOnce() -> Result<T, Problem>,
) -> Result<T, FileError> {
    read().map_err(|problem| FileError {
        key,
        path: path.to_owned(),
        problem,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_keys_are_private() {
        let check = |owner, mode| check_owner_and_mode(owner, mode, 1000);
        for (owner, mode) in [(1000, 0o600), (1000, 0o400), (0, 0o640), (0, 0o600)] {
            assert!(check(owner, mode).is_ok(), "{owner} {mode:o}");
        }
        for (owner, mode) in [(1000, 0o640), (1000, 0o604), (0, 0o644), (0, 0o660)] {
            assert!(
                matches!(check(owner, mode), Err(Problem::Permissions)),
                "{owner} {mode:o}"
            );
        }
        assert!(matches!(check(1001, 0o600), Err(Problem::Owner)));
        // Root's own keys are its own.
        assert!(check_owner_and_mode(0, 0o640, 0).is_err());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut files = Files::default();
        let shown = |error: FileError| error.to_string().replace(&*path.to_string_lossy(), "FILE");
        let error = files.chain("listen.tls.cert", &path).unwrap_err();
        assert!(shown(error).starts_with(r#"cannot use listen.tls.cert "FILE": No such file"#));
        fs::write(&path, "hello").unwrap();
        let error = files.chain("listen.tls.cert", &path).unwrap_err();
        assert!(matches!(error.problem, Problem::NoCertificate));
        let error = files.roots("k", directory.path()).err().unwrap();
        assert!(matches!(error.problem, Problem::NotRegular));
    }
}
