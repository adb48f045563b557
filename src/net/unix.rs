//! Owns: the proxy's own Unix sockets: their files, and who may make and remove them. Never: takes
//! the place of a socket that somebody answers on.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;

/// Everybody may connect, as with PostgreSQL; who may reach the directory is its owner's business.
const MODE: u32 = 0o777;

/// How often a lock file that is just being removed is made anew.
const LOCK_ATTEMPTS: usize = 10;

/// The socket for `port` in `directory`, by PostgreSQL's rule.
pub fn path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// A socket that clients connect to. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    lock: PathBuf,
    /// Held for as long as the socket is ours.
    _lock: Flock<File>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(
        "another process{} listens there; stop it, or choose another port or directory",
        process(.pid)
    )]
    InUse { pid: String },
    #[error("there is a file of that name that is no socket; move it away")]
    NotASocket,
    #[error("the directory is not there; make it, for the user that runs tidegate")]
    NoDirectory,
}

fn process(pid: &str) -> String {
    match pid.is_empty() {
        true => String::new(),
        false => format!(" ({pid})"),
    }
}

/// Listens on the socket for `port` in `directory`. What a process that was killed has left there
/// is replaced. To be called within the runtime that is to accept.
///
/// # Errors
/// When the directory can't be used, or somebody listens there.
pub fn listen(directory: &Path, port: u16) -> Result<(UnixListener, SocketFile), SocketError> {
    let path = path(directory, port);
    let lock = directory.join(format!(".s.PGSQL.{port}.lock"));
    let (mut held, holder) = acquire(&lock)?;
    if let Err(error) = clear(&path) {
        // The lock file may be of whoever listens there.
        if holder.is_empty() {
            let _ = fs::remove_file(&lock);
        }
        return Err(error);
    }
    held.set_len(0)?;
    held.rewind()?;
    writeln!(held, "{}", std::process::id())?;
    let file = SocketFile {
        path,
        lock,
        _lock: held,
    };
    let listener = UnixListener::bind(&file.path)?;
    fs::set_permissions(&file.path, Permissions::from_mode(MODE))?;
    Ok((listener, file))
}

impl SocketFile {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The lock last: who gets it finds nothing of ours.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.lock);
    }
}

/// Locks the file, which names its holder's process as PostgreSQL's lock files do; that name.
fn acquire(path: &Path) -> Result<(Flock<File>, String), SocketError> {
    for _ in 0..LOCK_ATTEMPTS {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        let mut file = options.open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SocketError::NoDirectory,
            _ => SocketError::Io(error),
        })?;
        let mut text = String::new();
        let _ = Read::by_ref(&mut file).take(64).read_to_string(&mut text);
        let pid = text.lines().next().unwrap_or_default().to_owned();
        let held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => held,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(SocketError::InUse { pid });
            }
            Err((_, errno)) => return Err(io::Error::from(errno).into()),
        };
        // Its last holder may have removed it between our two steps: then nobody else sees this.
        let same = fs::metadata(path).is_ok_and(|named| {
            held.metadata()
                .is_ok_and(|ours| ours.ino() == named.ino() && ours.dev() == named.dev())
        });
        if same {
            return Ok((held, pid));
        }
    }
    let error = io::Error::other("the lock file is removed over and over");
    Err(error.into())
}

/// Removes a socket that nobody answers on.
fn clear(path: &Path) -> Result<(), SocketError> {
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(SocketError::NotASocket),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { pid: String::new() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Ok(fs::remove_file(path)?)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_runtime<T>(work: impl FnOnce() -> T) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_io().build().unwrap();
        let _entered = runtime.enter();
        work()
    }

    #[test]
    fn a_socket_is_for_everybody_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        on_runtime(|| {
            let (listener, file) = listen(directory.path(), 6432).unwrap();
            let path = directory.path().join(".s.PGSQL.6432");
            assert_eq!(file.path(), path);
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, MODE);
            let lock = fs::read_to_string(directory.path().join(".s.PGSQL.6432.lock")).unwrap();
            assert_eq!(lock.trim(), std::process::id().to_string());
            drop((listener, file));
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        });
    }

    #[test]
    fn a_live_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        on_runtime(|| {
            let held = listen(directory.path(), 1).unwrap();
            let error = listen(directory.path(), 1).unwrap_err();
            let pid = std::process::id();
            assert_eq!(
                error.to_string(),
                format!(
                    "another process ({pid}) listens there; stop it, or choose another port or directory"
                )
            );
            // Nobody's who takes part in the locking.
            let path = path(directory.path(), 2);
            let foreign = std::os::unix::net::UnixListener::bind(&path).unwrap();
            let error = listen(directory.path(), 2).unwrap_err();
            assert!(matches!(error, SocketError::InUse { pid } if pid.is_empty()));
            assert!(path.exists());
            drop((held, foreign));
        });
    }

    #[test]
    fn a_directory_that_is_not_there_is_to_be_made() {
        let directory = tempfile::tempdir().unwrap();
        let error = on_runtime(|| listen(&directory.path().join("none"), 1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the directory is not there; make it, for the user that runs tidegate"
        );
    }

    #[test]
    fn a_stale_socket_is_replaced_and_another_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        on_runtime(|| {
            let path = path(directory.path(), 1);
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            assert!(path.exists());
            let held = listen(directory.path(), 1).unwrap();
            assert!(UnixStream::connect(&path).is_ok());
            drop(held);
            fs::write(&path, "precious").unwrap();
            let error = listen(directory.path(), 1).unwrap_err();
            assert!(matches!(error, SocketError::NotASocket));
            assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        });
    }
}
