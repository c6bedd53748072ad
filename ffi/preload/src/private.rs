//! The library's own allocations.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;

/// Serves the library's own Rust code from ordinary memory.
pub(crate) struct PrivateHeap;

// SAFETY: blocks are at least as large and as aligned as their layout asks and stay valid until they are freed; the
// functions underneath never unwind.
unsafe impl GlobalAlloc for PrivateHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        daxtier::preload::alloc_private(layout.size(), layout.align(), false)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        daxtier::preload::alloc_private(layout.size(), layout.align(), true)
    }

    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller hands a live private block over.
            let _ = unsafe { daxtier::preload::free(block) };
        }
    }
}
