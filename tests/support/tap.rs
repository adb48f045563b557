//! Stands between the proxy and a node, and has the node's servers say what they would at a moment that no
//! test can have them say it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use tidegate::wire::frame::{body, header};

/// What asks whether the server speaks TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// How a cancel request begins.
const CANCEL_REQUEST: [u8; 8] = [0, 0, 0, 16, 4, 210, 22, 46];

/// A way to a node.
pub struct Tap {
    pub port: u16,
    orders: Arc<Orders>,
}

/// What it is to do.
#[derive(Default)]
struct Orders {
    cut: Mutex<Option<Cut>>,
    /// How often it has forgotten all connections.
    forgot: AtomicUsize,
    /// Cancel requests wait here for as long as this is set.
    holds_cancels: AtomicBool,
}

/// The server that completes a statement with this tag says these words behind its ReadyForQuery, in the same
/// write, and closes the connection. Without any, its answer is lost with the connection.
struct Cut {
    tag: Vec<u8>,
    words: Option<Vec<u8>>,
}

impl Tap {
    /// A way to the server on this port, for as long as the test runs.
    pub fn open(server: u16) -> Tap {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let orders = Arc::new(Orders::default());
        let given = orders.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let orders = given.clone();
                thread::spawn(move || pass(client, server, orders));
            }
        });
        Tap { port, orders }
    }

    /// The next server that completes a statement with this tag then says these words, and goes.
    pub fn cut_behind(&self, tag: &str, words: &[u8]) {
        self.cut(tag, Some(words.to_vec()));
    }

    /// The next server that completes a statement with this tag does all that it has been told, and its answer from there
    /// on is lost.
    pub fn lose_answer(&self, tag: &str) {
        self.cut(tag, None);
    }

    fn cut(&self, tag: &str, words: Option<Vec<u8>>) {
        let tag = tag.as_bytes().to_vec();
        *self.orders.cut.lock().expect("no panic") = Some(Cut { tag, words });
    }

    /// Whether that has happened.
    pub fn has_cut(&self) -> bool {
        self.orders.cut.lock().expect("no panic").is_none()
    }

    /// Forgets all connections that there are: each ends when something is next sent on it to the server, which does
    /// not get that.
    pub fn forget(&self) {
        self.orders.forgot.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether cancel requests are held back from now on; those that have been go on when they are not.
    pub fn hold_cancels(&self, holds: bool) {
        self.orders.holds_cancels.store(holds, Ordering::SeqCst);
    }
}

/// Passes one connection, whose ends may go at any time.
fn pass(mut client: TcpStream, server: u16, orders: Arc<Orders>) -> Option<()> {
    let began = orders.forgot.load(Ordering::SeqCst);
    let mut server = TcpStream::connect(("127.0.0.1", server)).ok()?;
    let mut first = [0; 8];
    client.read_exact(&mut first).ok()?;
    while first == SSL_REQUEST {
        client.write_all(b"N").ok()?;
        client.read_exact(&mut first).ok()?;
    }
    while first == CANCEL_REQUEST && orders.holds_cancels.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(10));
    }
    server.write_all(&first).ok()?;
    let given = orders.clone();
    let (mut from, mut to) = (client.try_clone().ok()?, server.try_clone().ok()?);
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(n) = from.read(&mut chunk)
            && n > 0
            && given.forgot.load(Ordering::SeqCst) == began
            && to.write_all(&chunk[..n]).is_ok()
        {}
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
    let went = answer(&mut server, &mut client, &orders.cut);
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
    went
}

fn answer(server: &mut TcpStream, client: &mut TcpStream, cut: &Mutex<Option<Cut>>) -> Option<()> {
    let (mut buf, mut said) = (BytesMut::new(), Vec::new());
    let mut words = None;
    loop {
        let mut chunk = [0; 4096];
        let n = server.read(&mut chunk).ok().filter(|n| *n > 0)?;
        buf.extend_from_slice(&chunk[..n]);
        while let Some(head) = header(&buf).ok()?
            && buf.len() >= head.len
        {
            let frame = buf.split_to(head.len);
            said.extend_from_slice(&frame);
            if head.tag == b'C' {
                let mut cut = cut.lock().expect("no panic");
                let is_it = |cut: &mut Cut| body(&frame).starts_with(&cut.tag);
                words = words.or(cut.take_if(is_it).map(|cut| cut.words));
            }
            if head.tag == b'Z'
                && let Some(words) = words.take()
            {
                said.extend_from_slice(&words?);
                return client.write_all(&said).ok();
            }
        }
        if words.is_none() {
            client.write_all(&said).ok()?;
            said.clear();
        }
    }
}
