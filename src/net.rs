//! Sockets and the buffers that are used with them.
//!
//! Owns: byte streams, plain today, with the place where TLS goes. Never: knows what the bytes mean.

pub mod buffers;
pub mod stream;

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
