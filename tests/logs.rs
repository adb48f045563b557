//! Logging: it makes nobody wait, and an ordinary end loses nothing of it.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use support::{cluster_with, free_port, wait_for};
use tidegate::demo::LocalCluster;
use tokio_postgres::NoTls;

/// A proxy whose log goes to a pipe.
struct Piped {
    child: Child,
    port: u16,
    http_port: u16,
    _directory: tempfile::TempDir,
}

impl Piped {
    fn start(cluster: &LocalCluster) -> Piped {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("config.toml");
        let (port, http_port) = (free_port(), free_port());
        let own = cluster.config_for(port, http_port);
        // A line for each query.
        let config = format!("{own}\n[log]\nslow_query = \"0\"\n");
        fs::write(&path, config).expect("config");
        let child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["--config".as_ref(), path.as_os_str()])
            .env_remove("RUST_LOG")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tidegate starts");
        let piped = Piped {
            child,
            port,
            http_port,
            _directory: directory,
        };
        wait_for("the proxy", || {
            piped.get("/readyz").ends_with("\r\n\r\nready\n")
        });
        piped
    }

    fn get(&self, path: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut socket) = TcpStream::connect(("127.0.0.1", self.http_port)) {
            let asked = write!(socket, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
            let _ = asked.and_then(|()| socket.read_to_string(&mut answer));
        }
        answer
    }

    fn lost(&self) -> u64 {
        let metrics = self.get("/metrics");
        let lost = |line: &str| Some(line.strip_prefix("tidegate_log_lines_lost_total ")?.parse());
        let lost = metrics.lines().find_map(lost);
        lost.expect("the metric").expect("a number")
    }

    /// Has somebody read the log.
    fn read(&mut self) -> JoinHandle<String> {
        let mut pipe = self.child.stderr.take().expect("a pipe");
        std::thread::spawn(move || {
            let mut log = String::new();
            pipe.read_to_string(&mut log).expect("text");
            log
        })
    }

    fn end(&mut self) {
        let pid = self.child.id().to_string();
        let told = Command::new("kill").args(["-s", "TERM", &pid]).status();
        assert!(told.expect("kill").success());
        assert!(self.child.wait().expect("its end").success());
    }

    /// Runs queries for as long as it is told to; none may hang. How many there were.
    fn ask(&self, mut goes_on: impl FnMut(usize) -> bool) -> usize {
        let port = self.port;
        let url = format!("host=127.0.0.1 port={port} user=app password=app dbname=app");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let connected = tokio_postgres::connect(&url, NoTls).await;
            let (client, connection) = connected.expect("login");
            tokio::spawn(connection);
            let mut asked = 0;
            while goes_on(asked) {
                let answer = client.simple_query("SELECT 4711");
                let answer = tokio::time::timeout(Duration::from_secs(60), answer).await;
                answer.expect("it hangs").expect("success");
                asked += 1;
            }
            asked
        })
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn queries_go_on_while_nobody_reads_the_log() {
    let cluster = cluster_with(0, &[]);
    let mut proxy = Piped::start(&cluster);
    proxy.ask(|asked| asked % 100 > 0 || proxy.lost() == 0);
    // Whoever reads it in the end is told.
    let log = proxy.read();
    proxy.end();
    let log = log.join().expect("the log");
    let end = &log[log.len().saturating_sub(2000)..];
    assert!(log.contains("lines of the log are lost"), "{end}");
    assert!(log.contains("all clients have gone"), "{end}");
}

#[test]
fn an_ordinary_end_loses_no_line() {
    let cluster = cluster_with(0, &[]);
    let mut proxy = Piped::start(&cluster);
    let log = proxy.read();
    let asked = proxy.ask(|asked| asked < 500);
    assert_eq!(proxy.lost(), 0);
    proxy.end();
    let log = log.join().expect("the log");
    let lines = log.lines().filter(|line| line.contains("select 0"));
    assert_eq!(lines.count(), asked, "{log}");
    assert!(log.contains("all clients have gone"), "{log}");
}
