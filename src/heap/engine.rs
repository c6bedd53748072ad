//! The parts of mimalloc v3 that the heap uses.
//!
//! The crate that brings the C library declares most of them; four more are in the library but not in the crate.
//! Memory of the *private heap* (mimalloc's main heap, on ordinary memory) serves the library itself.

use libc::{c_int, c_void};
use libmimalloc_sys as mi;
use std::ptr::NonNull;

pub(super) use mi::{mi_arena_id_t, mi_heap_t};

/// Decides over commits (`commit` true) and decommits of a range; sets `*is_zero` where it is not NULL.
pub(super) type CommitFun = unsafe extern "C" fn(
    commit: bool,
    start: *mut c_void,
    size: usize,
    is_zero: *mut bool,
    arg: *mut c_void,
) -> bool;

/// Visits an area of a heap; a `false` answer stops the walk.
pub(super) type VisitFun = unsafe extern "C" fn(
    heap: *const mi_heap_t,
    area: *const HeapArea,
    block: *mut c_void,
    block_size: usize,
    arg: *mut c_void,
) -> bool;

/// An area of blocks of one size, as the engine describes it to a visitor.
#[repr(C)]
pub(super) struct HeapArea {
    blocks: *mut c_void,
    reserved: usize,
    committed: usize,
    /// Blocks in use.
    pub(super) used: usize,
    /// Bytes in a block.
    pub(super) block_size: usize,
    full_block_size: usize,
    reserved1: *mut c_void,
}

// The layout and signatures below are those of the C header that the crate ships (mimalloc.h, v3).
unsafe extern "C" {
    fn mi_manage_memory(
        start: *mut c_void,
        size: usize,
        is_committed: bool,
        is_pinned: bool,
        is_zero: bool,
        numa_node: c_int,
        exclusive: bool,
        commit_fun: CommitFun,
        commit_fun_arg: *mut c_void,
        arena_id: *mut mi_arena_id_t,
    ) -> bool;
    fn mi_heap_of(p: *const c_void) -> *mut mi_heap_t;
    fn mi_heap_visit_blocks(
        heap: *mut mi_heap_t,
        visit_blocks: bool,
        visitor: VisitFun,
        arg: *mut c_void,
    ) -> bool;
    fn mi_heap_main() -> *mut mi_heap_t;
}

/// Gives `[start, start + size)` to the engine as an arena for one heap. Memory reads as zero when it is committed
/// for the first time. Returns `None`, with nothing but commits left behind, when the engine refuses.
///
/// # Safety
/// The range is the caller's, aligned to a slot, and lives for ever; so does `arg`.
pub(super) unsafe fn manage(
    start: NonNull<u8>,
    size: usize,
    commit: CommitFun,
    arg: *mut c_void,
) -> Option<mi_arena_id_t> {
    let mut arena: mi_arena_id_t = std::ptr::null_mut();
    // SAFETY: the caller hands the range over; the callback follows the engine's contract.
    let managed = unsafe {
        mi_manage_memory(
            start.as_ptr().cast(),
            size,
            false,
            false,
            true,
            -1,
            true,
            commit,
            arg,
            &raw mut arena,
        )
    };
    managed.then_some(arena)
}

/// Makes a heap in an arena that the engine manages already.
pub(super) fn new_heap(arena: mi_arena_id_t) -> Option<NonNull<mi_heap_t>> {
    // SAFETY: the arena came from `mi_manage_memory` and is never removed.
    NonNull::new(unsafe { mi::mi_heap_new_in_arena(arena) })
}

/// Frees every block of a heap, and the heap.
///
/// # Safety
/// Nobody uses the heap or its blocks.
pub(super) unsafe fn destroy_heap(heap: NonNull<mi_heap_t>) {
    // SAFETY: the caller argued it.
    unsafe { mi::mi_heap_destroy(heap.as_ptr()) };
}

/// Makes this thread let go of the heap that it allocated from last. The engine keeps a slice of a destroyed heap's
/// arena until every thread whose last heap it was has turned to another one.
pub(super) fn let_go_of_last_heap() {
    // SAFETY: the private heap lives as long as the process.
    let block = unsafe { malloc(private_heap(), 1) };
    // SAFETY: the block was just made (or is NULL, which is allowed), and nobody else knows it.
    unsafe { free(block) };
}

/// Makes the engine give free memory back.
pub(super) fn collect() {
    // SAFETY: takes no pointer; callable from any thread.
    unsafe { mi::mi_collect(true) };
}

/// Allocates from a heap.
///
/// # Safety
/// `heap` is a live heap.
#[inline(always)]
pub(super) unsafe fn malloc(heap: *mut mi_heap_t, size: usize) -> *mut u8 {
    // SAFETY: the caller argued it.
    unsafe { mi::mi_heap_malloc(heap, size) }.cast()
}

/// Allocates zeroed memory from a heap.
///
/// # Safety
/// `heap` is a live heap.
#[inline(always)]
pub(super) unsafe fn zalloc(heap: *mut mi_heap_t, size: usize) -> *mut u8 {
    // SAFETY: the caller argued it.
    unsafe { mi::mi_heap_zalloc(heap, size) }.cast()
}

/// Allocates aligned memory from a heap; `align` is a power of two up to 64 KiB.
///
/// # Safety
/// `heap` is a live heap.
pub(super) unsafe fn malloc_aligned(heap: *mut mi_heap_t, size: usize, align: usize, zero: bool) -> *mut u8 {
    if zero {
        // SAFETY: the caller argued it.
        unsafe { mi::mi_heap_zalloc_aligned(heap, size, align) }.cast()
    } else {
        // SAFETY: the caller argued it.
        unsafe { mi::mi_heap_malloc_aligned(heap, size, align) }.cast()
    }
}

/// Frees a block of any heap.
///
/// # Safety
/// `p` is a live block of the engine.
#[inline(always)]
pub(super) unsafe fn free(p: *mut u8) {
    // SAFETY: the caller argued it.
    unsafe { mi::mi_free(p.cast()) };
}

/// Returns how many bytes a block holds.
///
/// # Safety
/// `p` is a live block of the engine.
#[inline(always)]
pub(super) unsafe fn usable_size(p: *const u8) -> usize {
    // SAFETY: the caller argued it.
    unsafe { mi::mi_usable_size(p.cast()) }
}

/// Returns the heap that holds a block at or around `p`, if the engine knows the address.
pub(super) fn heap_of(p: *const u8) -> Option<NonNull<mi_heap_t>> {
    // SAFETY: the engine looks the address up in its page map and never reads through it.
    NonNull::new(unsafe { mi_heap_of(p.cast()) })
}

/// The heap on ordinary memory that serves the library itself.
pub(super) fn private_heap() -> *mut mi_heap_t {
    // SAFETY: takes no pointer; the main heap lives as long as the process.
    unsafe { mi_heap_main() }
}

/// Counts the bytes in live blocks of a heap.
///
/// # Safety
/// `heap` is a live heap that no other thread allocates from or frees to.
pub(super) unsafe fn live_bytes(heap: NonNull<mi_heap_t>) -> usize {
    unsafe extern "C" fn add(
        _heap: *const mi_heap_t,
        area: *const HeapArea,
        _block: *mut c_void,
        _size: usize,
        arg: *mut c_void,
    ) -> bool {
        // SAFETY: the engine passes a valid area for the duration of the call.
        let area = unsafe { &*area };
        // SAFETY: `arg` is the sum below, which nobody else uses during the walk.
        let sum = unsafe { &mut *arg.cast::<usize>() };
        *sum += area.used * area.block_size;
        true
    }
    let mut sum = 0usize;
    // SAFETY: the caller argued that the heap is quiet; the visitor gets a pointer to `sum`, which outlives it.
    unsafe { mi_heap_visit_blocks(heap.as_ptr(), false, add, (&raw mut sum).cast()) };
    sum
}
