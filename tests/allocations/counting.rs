//! An allocator that counts what the proxy's workers allocate.
#![allow(
    unsafe_code,
    reason = "an allocator is unsafe to implement; this one passes everything on"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

pub struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);
/// Backtraces are taken too.
static TRACES: AtomicBool = AtomicBool::new(false);
static SITES: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

thread_local! {
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

/// Nothing that the current thread allocates counts, from here on.
pub fn exempt_this_thread() {
    EXEMPT.set(true);
}

/// How often the other threads have allocated.
pub fn count() -> u64 {
    COUNT.load(Ordering::SeqCst)
}

/// Whether allocations are traced, which is slow.
pub fn trace(whether: bool) {
    TRACES.store(whether, Ordering::SeqCst);
}

/// Where the allocations were made that have been traced since the last call, with their number.
pub fn take_sites() -> Vec<(u64, String)> {
    let sites = std::mem::take(&mut *SITES.lock().unwrap_or_else(PoisonError::into_inner));
    let mut sites: Vec<_> = sites.into_iter().map(|(site, n)| (n, site)).collect();
    sites.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
    sites
}

fn note() {
    if EXEMPT.get() {
        return;
    }
    COUNT.fetch_add(1, Ordering::SeqCst);
    if TRACES.load(Ordering::SeqCst) {
        // What tracing allocates does not count.
        EXEMPT.set(true);
        let site = frames(&Backtrace::force_capture().to_string());
        *SITES
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(site)
            .or_default() += 1;
        EXEMPT.set(false);
    }
}

/// The part of a backtrace that tells something: up to where the runtime calls the task.
fn frames(trace: &str) -> String {
    let mut lines = Vec::new();
    for line in trace.lines().map(str::trim) {
        if line.contains("tokio::runtime::task::core") {
            break;
        }
        let own = [
            "counting::",
            "backtrace",
            "__rust",
            "/rustc/",
            "alloc::alloc::",
        ];
        if !own.iter().any(|part| line.contains(part)) {
            lines.push(line);
        }
    }
    lines.join("\n    ")
}

// SAFETY: every call is the system allocator's, with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }
}
