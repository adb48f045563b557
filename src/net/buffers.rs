//! Owns: each thread's stock of buffers. Never: lets an idle connection keep one.

use std::cell::RefCell;
use std::thread::LocalKey;

use bytes::{Buf, BytesMut};

/// The size of a fresh buffer, in bytes: most messages fit, and a read of a large result is worth
/// its system call.
pub const BUFFER_BYTES: usize = 16 << 10;

/// The size of a buffer for a stream that fills the others, in bytes: a quarter of the system calls,
/// and what it has is still in the processor's caches when it is passed on.
const LARGE_BYTES: usize = 64 << 10;

/// The most buffers a thread keeps in stock, and the most large ones.
const STOCK_MAX: usize = 256;
const LARGE_STOCK_MAX: usize = 8;

/// A buffer that has grown beyond this is not kept, in bytes.
const KEPT_BYTES_MAX: usize = 2 * LARGE_BYTES;

thread_local! {
    static STOCK: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static LARGE_STOCK: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static DESK: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into());
}

/// Works with a room of [`BUFFER_BYTES`] for what is dealt with at once.
#[inline]
pub fn with_desk<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    DESK.with_borrow_mut(|desk| work(desk))
}

/// An empty buffer.
pub fn take() -> BytesMut {
    STOCK
        .with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES))
}

/// Makes room in `buffer` for a read from a peer that has much to say: more than other buffers have.
pub fn widen(buffer: &mut BytesMut) {
    // A message that must be whole grows as any other does.
    if buffer.len() < LARGE_BYTES / 2 && !buffer.try_reclaim(LARGE_BYTES / 2) {
        let taken = LARGE_STOCK.with_borrow_mut(Vec::pop);
        let mut large = taken.unwrap_or_else(|| BytesMut::with_capacity(LARGE_BYTES));
        large.extend_from_slice(buffer);
        give_back(buffer);
        *buffer = large;
    }
    buffer.reserve(BUFFER_BYTES / 2);
}

/// Takes `buffer` back if it is a large one with nothing in it, leaving one without memory in its
/// place.
pub fn give_back_large(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.try_reclaim(LARGE_BYTES) {
        give_back(buffer);
    }
}

/// Drops the first `n` bytes of `buffer`, or all if there are fewer.
#[inline]
pub fn consume(buffer: &mut BytesMut, n: usize) {
    match n < buffer.len() {
        true => buffer.advance(n),
        // Its memory is whole again, which nobody has to find out.
        false => buffer.clear(),
    }
}

/// Takes `buffer` back, leaving one without memory in its place.
pub fn give_back(buffer: &mut BytesMut) {
    let mut buffer = std::mem::take(buffer);
    buffer.clear();
    if buffer.capacity() == BUFFER_BYTES {
        return put(&STOCK, STOCK_MAX, buffer);
    }
    // After `advance` only a part of the memory is left; `reserve` gets it back when nobody else
    // holds any of it.
    if !buffer.try_reclaim(BUFFER_BYTES) || buffer.capacity() > KEPT_BYTES_MAX {
        return;
    }
    match buffer.try_reclaim(LARGE_BYTES) {
        true => put(&LARGE_STOCK, LARGE_STOCK_MAX, buffer),
        false => put(&STOCK, STOCK_MAX, buffer),
    }
}

#[inline]
fn put(stock: &'static LocalKey<RefCell<Vec<BytesMut>>>, max: usize, buffer: BytesMut) {
    stock.with_borrow_mut(|stock| {
        if stock.len() < max {
            stock.push(buffer);
        }
    });
}
