//! A global allocator for Rust programs.

use super::process;
use std::alloc::{self, Layout};
use std::ptr::{self, NonNull};

/// Serves all of a Rust program's allocations from the process's pool, which the environment configures.
///
/// The pool is opened by the first allocation, from the `DAXTIER_` variables; a wrong configuration ends the program
/// with exit code 78. Exhausted tiers make the allocation fail, which the standard library answers by aborting.
///
/// ```no_run
/// #[global_allocator]
/// static MEMORY: daxtier::GlobalAlloc = daxtier::GlobalAlloc::new();
/// # fn main() {}
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct GlobalAlloc;

impl GlobalAlloc {
    /// Makes the allocator. It costs nothing until the first allocation.
    pub const fn new() -> GlobalAlloc {
        GlobalAlloc
    }
}

// SAFETY: blocks are at least as large and as aligned as their layout asks, are handed out once, and stay valid until
// they are freed; `process` never unwinds. Code of the library's own, which runs in service, gets private blocks, so
// serving a request never waits for itself.
unsafe impl alloc::GlobalAlloc for GlobalAlloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        serve(layout, false)
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        serve(layout, true)
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        // SAFETY: the caller hands a live block of this allocator over.
        unsafe { process::free_or(block, process::free_or_complain) };
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Some(block) = NonNull::new(block) else { return ptr::null_mut() };
        if process::in_service() {
            // SAFETY: the size is not zero and does not overflow when rounded up, as the caller argued.
            let fresh = serve(unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) }, false);
            if let Some(fresh) = NonNull::new(fresh) {
                // SAFETY: both blocks hold that many bytes, and a fresh one overlaps no live one.
                unsafe { block.copy_to_nonoverlapping(fresh, layout.size().min(new_size)) };
                // SAFETY: the caller hands the block over.
                let _ = unsafe { process::free(block) };
            }
            return fresh;
        }
        // SAFETY: the caller hands a live block of this allocator over.
        unsafe { process::realloc(block, new_size, layout.align()) }.unwrap_or(ptr::null_mut())
    }
}

#[inline(always)]
fn serve(layout: Layout, zero: bool) -> *mut u8 {
    if process::in_service() {
        return process::alloc_private(layout.size(), layout.align(), zero);
    }
    process::alloc(layout.size(), layout.align(), zero)
}
