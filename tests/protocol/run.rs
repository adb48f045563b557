//! Runs a script against one server, direct or through the proxy.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tidegate::demo::LocalNode;

use super::client::{Client, Instead, PATIENCE};
use super::script::{Action, OnReplicas, Script, frame, query};
use super::shown::{Names, sort_parameters};
use crate::support::Gateway;

/// In place of a message.
pub const NO_ANSWER: &str = "no answer";

/// Whom a script talks to.
pub struct Peer<'a> {
    pub port: u16,
    /// The primary first.
    pub nodes: &'a [Arc<LocalNode>],
    /// Absent where the script talks to PostgreSQL itself.
    pub gateway: Option<&'a Gateway>,
}

/// What was sent in each step, in readable form.
pub type Stream = Vec<Vec<String>>;

/// Runs a script to its end, or to the first step that differs from a stream that is given.
pub fn run(script: &Script, peer: &Peer<'_>, until_not: Option<&Stream>) -> Stream {
    let mut run = Run {
        script,
        peer,
        clients: HashMap::new(),
        current: String::new(),
        pending: Vec::new(),
        owed: 0,
        names: Names::default(),
    };
    let mut stream = Vec::new();
    for step in &script.steps {
        let mut seen = Vec::new();
        let end = run.step(&step.action, &mut seen);
        let over = match end {
            Some(Instead::Nothing) => {
                seen.push(NO_ANSWER.to_owned());
                true
            }
            Some(Instead::Garbage) => {
                seen.push("no message".to_owned());
                true
            }
            // Another client may go on.
            Some(Instead::End) => {
                seen.push("end of stream".to_owned());
                false
            }
            None => false,
        };
        let differs = until_not.is_some_and(|other| other.get(stream.len()) != Some(&seen));
        stream.push(seen);
        if differs {
            return stream;
        }
        if over {
            break;
        }
    }
    run.clients.clear();
    stream.push(left_behind(script, peer));
    stream
}

/// What the next clients find of this one's session: nothing. Each keeps its server while the next
/// one looks, so that no server is looked at twice.
fn left_behind(script: &Script, peer: &Peer<'_>) -> Vec<String> {
    const POOLED: usize = 3;
    let login = script.login.plain();
    let clients = if peer.gateway.is_some() { POOLED } else { 1 };
    let mut seen = Vec::new();
    let mut kept = Vec::new();
    for _ in 0..clients {
        let (mut client, _, instead) = Client::log_in(peer.port, &login);
        let found = match instead {
            None => look_around(&mut client),
            Some(instead) => vec![format!("no login: {instead:?}")],
        };
        // All are to find the same.
        if !seen.ends_with(&found) {
            seen.extend(found);
        }
        kept.push(client);
    }
    seen
}

fn look_around(client: &mut Client) -> Vec<String> {
    const LOOKS: [&str; 7] = [
        "BEGIN",
        "SELECT name, setting FROM pg_settings WHERE source = 'session' \
         AND name NOT LIKE 'transaction%' ORDER BY name",
        "SELECT current_user",
        "SELECT classid, objid, mode FROM pg_locks \
         WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
        "SELECT name FROM pg_prepared_statements WHERE from_sql \
         UNION ALL SELECT name FROM pg_cursors WHERE is_holdable",
        "SELECT pg_listening_channels()",
    ];
    let mut found = Vec::new();
    for look in LOOKS {
        client.send(&query(look).expect("SQL"));
        loop {
            match client.next() {
                Ok(message) if message[0] == b'Z' => break,
                Ok(message) if message[0] == b'T' => {}
                Ok(message) => found.push(Names::default().show(&message, false)),
                Err(instead) => {
                    found.push(format!("{instead:?}"));
                    return found;
                }
            }
        }
    }
    found
}

struct Run<'a> {
    script: &'a Script,
    peer: &'a Peer<'a>,
    clients: HashMap<String, Client>,
    current: String,
    pending: Vec<u8>,
    /// How many ReadyForQuery `pending` brings.
    owed: usize,
    names: Names,
}

impl Run<'_> {
    fn step(&mut self, action: &Action, seen: &mut Vec<String>) -> Option<Instead> {
        let starts = matches!(action, Action::As { .. } | Action::Open { .. });
        if self.current.is_empty() && !starts {
            let (client, greeting, instead) = Client::log_in(self.peer.port, &self.script.login);
            self.greeted("a", client, &greeting, seen);
            if instead.is_some() {
                return instead;
            }
            // A new session may have to see what others were acknowledged before.
            if matches!(self.script.on_replicas, OnReplicas::AtLeast(_))
                && let Some(gateway) = self.peer.gateway
                && let Some(instead) = self.settle(gateway, REPLICA_PATIENCE, seen)
            {
                return Some(instead);
            }
        }
        match action {
            Action::Say { bytes, owes } => {
                self.pending.extend(bytes);
                self.owed += owes;
                None
            }
            Action::Ask {
                bytes,
                until_replica,
            } => match self.peer.gateway {
                Some(gateway) if *until_replica => self.ask_replica(bytes, gateway, seen),
                _ => self.ask(bytes, seen),
            },
            Action::Go => {
                self.pending.extend(frame(b'S', b""));
                let owed = std::mem::take(&mut self.owed) + 1;
                self.send();
                (0..owed).find_map(|_| self.read_to(b'Z', seen))
            }
            Action::Send => {
                self.send();
                None
            }
            Action::Read(tags) => {
                self.send();
                tags.iter().find_map(|&tag| self.read_to(tag, seen))
            }
            Action::ReadEnd => {
                self.send();
                loop {
                    if let Some(instead) = self.read(seen) {
                        return Some(instead);
                    }
                }
            }
            Action::ReadByte => {
                self.send();
                match self.client().next_byte() {
                    Ok(byte) => {
                        seen.push((byte as char).escape_default().to_string());
                        None
                    }
                    Err(instead) => Some(instead),
                }
            }
            Action::As { name, login } => {
                if self.clients.contains_key(name) {
                    self.current.clone_from(name);
                    return None;
                }
                let (client, greeting, instead) = Client::log_in(self.peer.port, login);
                self.greeted(name, client, &greeting, seen);
                instead
            }
            Action::Open { name } => {
                let client = Client::connect(self.peer.port);
                self.clients.insert(name.clone(), client);
                self.current.clone_from(name);
                None
            }
            Action::LogIn { password } => {
                self.send();
                let (greeting, instead) = self.client().authenticate(password);
                self.show_greeting(&greeting, seen);
                instead
            }
            Action::Settle => {
                let gateway = self.peer.gateway?;
                self.settle(gateway, Duration::ZERO, seen)
            }
            Action::Cancel { name } => {
                self.cancel(name);
                None
            }
            Action::Leave => {
                self.clients.remove(&self.current);
                None
            }
            Action::Shut => {
                self.send();
                self.client().shut();
                None
            }
            Action::Await { sql, anywhere } => {
                let started = Instant::now();
                let nodes = match anywhere {
                    true => self.peer.nodes,
                    false => &self.peer.nodes[..1],
                };
                let is_true =
                    |node: &Arc<LocalNode>| node.sql("app", sql).expect("an answer") == "t";
                while !nodes.iter().any(is_true) {
                    if started.elapsed() > PATIENCE {
                        return Some(Instead::Nothing);
                    }
                    thread::sleep(Duration::from_millis(10));
                }
                None
            }
        }
    }

    fn client(&mut self) -> &mut Client {
        self.clients
            .get_mut(&self.current)
            .unwrap_or_else(|| panic!("{}: the client has left", self.script.name))
    }

    fn greeted(
        &mut self,
        name: &str,
        client: Client,
        greeting: &[bytes::BytesMut],
        seen: &mut Vec<String>,
    ) {
        self.clients.insert(name.to_owned(), client);
        self.current = name.to_owned();
        self.show_greeting(greeting, seen);
    }

    fn show_greeting(&mut self, greeting: &[bytes::BytesMut], seen: &mut Vec<String>) {
        let by_code = self.script.errors_by_code;
        let shown = greeting.iter().map(|m| self.names.show(m, by_code));
        let mut shown: Vec<_> = shown.collect();
        sort_parameters(&mut shown);
        seen.extend(shown);
    }

    fn send(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        self.owed = 0;
        if !pending.is_empty() {
            self.client().send(&pending);
        }
    }

    /// Reads one message.
    fn read(&mut self, seen: &mut Vec<String>) -> Option<Instead> {
        self.read_tag(seen).err()
    }

    fn read_tag(&mut self, seen: &mut Vec<String>) -> Result<u8, Instead> {
        let message = self.client().next()?;
        seen.push(self.names.show(&message, self.script.errors_by_code));
        Ok(message[0])
    }

    fn read_to(&mut self, tag: u8, seen: &mut Vec<String>) -> Option<Instead> {
        loop {
            match self.read_tag(seen) {
                Ok(read) if read == tag => return None,
                Ok(_) => {}
                Err(instead) => return Some(instead),
            }
        }
    }

    fn ask(&mut self, bytes: &[u8], seen: &mut Vec<String>) -> Option<Instead> {
        self.send();
        self.client().send(bytes);
        self.read_to(b'Z', seen)
    }

    /// Asks until a replica answers. Only answers that differ from the one before are noted: all of
    /// them are to be alike.
    fn ask_replica(
        &mut self,
        bytes: &[u8],
        gateway: &Gateway,
        seen: &mut Vec<String>,
    ) -> Option<Instead> {
        let started = Instant::now();
        let mut last = Vec::new();
        loop {
            let (all, replica) = (served(gateway, ""), served(gateway, REPLICA));
            let mut answer = Vec::new();
            let instead = self.ask(bytes, &mut answer);
            let failed = answer.iter().any(|message| message.starts_with('E'));
            if answer != last {
                seen.extend(answer.iter().cloned());
                last = answer;
            }
            if instead.is_some() || failed {
                return instead;
            }
            wait_counted(gateway, all);
            if served(gateway, REPLICA) > replica {
                return None;
            }
            if started.elapsed() > REPLICA_PATIENCE {
                seen.push("no replica serves it".to_owned());
                return Some(Instead::Nothing);
            }
        }
    }

    /// Reads until a replica serves it, and shows nothing but what nobody has asked for.
    fn settle(
        &mut self,
        gateway: &Gateway,
        at_least: Duration,
        seen: &mut Vec<String>,
    ) -> Option<Instead> {
        const TIMES: u32 = 50;
        let started = Instant::now();
        let mut times = 0;
        while times < TIMES || started.elapsed() < at_least {
            let (all, replica) = (served(gateway, ""), served(gateway, REPLICA));
            let unknown = served(gateway, CATALOG_UNKNOWN);
            let mut answer = Vec::new();
            let instead = self.ask(&query("SELECT 1").expect("SQL"), &mut answer);
            answer.retain(|message| !message.starts_with(['T', 'D', 'C', 'Z']));
            seen.extend(answer);
            if instead.is_some() {
                return instead;
            }
            wait_counted(gateway, all);
            if served(gateway, REPLICA) > replica {
                break;
            }
            // While it is being asked what a change has changed, no try counts.
            if served(gateway, CATALOG_UNKNOWN) == unknown || started.elapsed() > PATIENCE {
                times += 1;
            }
        }
        None
    }

    fn cancel(&mut self, name: &str) {
        let mut packet = 80_877_102_i32.to_be_bytes().to_vec();
        packet.extend(&self.clients[name].key);
        let mut whole = (packet.len() as i32 + 4).to_be_bytes().to_vec();
        whole.extend(packet);
        let mut canceller = Client::connect(self.peer.port);
        canceller.send(&whole);
        // Closed once it has been passed on.
        let _ = canceller.next_byte();
    }
}

/// How long a replica may take to have what a script's reads need: on an idle primary, WAL of no
/// commit is only sent when somebody commits.
const REPLICA_PATIENCE: Duration = Duration::from_secs(30);
const COUNTED: Duration = Duration::from_secs(1);

/// Waits for a batch to be counted, which it is just after it has been answered.
fn wait_counted(gateway: &Gateway, before: f64) {
    let answered = Instant::now();
    while served(gateway, "") == before && answered.elapsed() < COUNTED {
        thread::sleep(Duration::from_millis(1));
    }
}

pub const REPLICA: &str = "route=\"replica\"";

/// Of what waits for the database's catalog.
const CATALOG_UNKNOWN: &str = "reason=\"catalog_unknown\"";

/// How many batches the gateway has counted.
pub fn served(gateway: &Gateway, labels: &str) -> f64 {
    gateway.metric("tidegate_queries_total", labels)
}
