//! The benches' server that does nothing passes for a primary: what the proxy asks of its nodes changes now and
//! then, and with it what that server has to know.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use support::client::Client;
use support::{Gateway, example};

#[test]
fn a_proxy_serves_clients_from_it() {
    let mut server = Command::new(example::build("null_server", &[]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map(Server)
        .expect("it starts");
    let said = server.0.stdout.take().expect("its output");
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line).expect("a line");
    let port: String = line.chars().filter(char::is_ascii_digit).collect();
    let gateway = Gateway::start_on(1, |listen, http| {
        format!(
            "[listen]\naddress = \"127.0.0.1:{listen}\"\n[http]\naddress = \"127.0.0.1:{http}\"\n\
             [auth]\nuser = [{{ name = \"app\", password = \"app\" }}]\n[[cluster]]\nname = \"main\"\n\
             [[cluster.node]]\naddress = \"127.0.0.1:{port}\"\n"
        )
    });
    let client = Client::open(&gateway, "app", "");
    assert_eq!(client.one("SELECT anything FROM nothing"), "0");
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It ends when nobody holds its input any more.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
