//! Owns: each thread's stock of buffers. Never: lets an idle connection keep one.

use std::cell::RefCell;

use bytes::BytesMut;

/// The size of a fresh buffer, in bytes: most messages fit, and a read of a large result is worth
/// its system call.
pub const BUFFER_BYTES: usize = 16 << 10;

/// The most buffers a thread keeps in stock.
const STOCK_MAX: usize = 256;

/// A buffer that has grown beyond this is not kept, in bytes.
const KEPT_BYTES_MAX: usize = 64 << 10;

thread_local! {
    static STOCK: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer.
pub fn take() -> BytesMut {
    STOCK
        .with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES))
}

/// Takes `buffer` back, leaving one without memory in its place.
pub fn give_back(buffer: &mut BytesMut) {
    let mut buffer = std::mem::take(buffer);
    buffer.clear();
    // After `advance` only a part of the memory is left; `reserve` gets it back when nobody else
    // holds any of it.
    if !buffer.try_reclaim(BUFFER_BYTES) || buffer.capacity() > KEPT_BYTES_MAX {
        return;
    }
    STOCK.with_borrow_mut(|stock| {
        if stock.len() < STOCK_MAX {
            stock.push(buffer);
        }
    });
}
