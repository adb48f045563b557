//! Owns: what a cancel request says for each open server, by the server's number. Never: sends one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use dashmap::DashMap;

use super::node::Node;

/// Names a server's process to its node.
pub struct CancelKey {
    pub node: Arc<Node>,
    pub pid: i32,
    pub secret: Vec<u8>,
}

static OPEN: LazyLock<DashMap<u64, Arc<CancelKey>, foldhash::fast::RandomState>> =
    LazyLock::new(DashMap::default);

/// An open server's place in the list, for as long as this lives.
#[derive(Debug)]
pub struct Listed {
    number: u64,
}

impl Listed {
    pub fn new(key: CancelKey) -> Listed {
        // 0 is no server's.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        OPEN.insert(number, Arc::new(key));
        Listed { number }
    }

    /// Tells the server from every other that there was.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        OPEN.remove(&self.number);
    }
}

/// The key of the server with this number, if it is open.
pub fn find(number: u64) -> Option<Arc<CancelKey>> {
    OPEN.get(&number).map(|key| key.clone())
}
