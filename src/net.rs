//! Sockets and the buffers that are used with them.
//!
//! Owns: byte streams, over TCP, TLS and Unix sockets. Never: knows what the bytes mean.

pub mod buffers;
pub mod flow;
mod reach;
pub mod stream;
pub mod tls;
pub mod unix;

use std::cell::Cell;

thread_local! {
    static WORKER: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Names the current thread's runtime. Sockets belong to the runtime that opened them.
pub fn set_worker(worker: usize) {
    WORKER.set(worker);
}

/// The current thread's runtime.
pub fn worker() -> usize {
    WORKER.get()
}
