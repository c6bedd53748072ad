//! The parts of mimalloc v3 that the heap uses.
//!
//! The crate that brings the C library declares most of them; four more are in the library but not in the crate.
//! Memory of the *private heap* (mimalloc's main heap, on ordinary memory) serves the library itself.
//!
//! # Fast and slow
//! `engine.h` does what mimalloc does for most small blocks: it pops them from the thread's page and pushes them back,
//! inlined in one function each; when the first page of a size class has run out, `engine.c` takes the next that has room.
//! That part takes no lock and changes nothing that another thread could be waiting for; a
//! block of another thread's page goes onto that page's list with one compare-and-swap. Everything else that mimalloc does
//! is behind [`inside`]: a new page, the last block of a page, an arena, a heap, a collection. A process that is cloned
//! while a thread is in there would leave its child with whatever that thread held; so [`inside`] is the gate that a fork
//! closes. A thread that is inside may enter again: mimalloc calls `arena::commit`, which backs a slot.
//!
//! # The shortcut
//! [`malloc_or`] asks nobody which heap it allocates from: the thread's *shortcut* (`sync/shortcut.h`) names its pages of the
//! heap that leads. [`open_shortcut`] sets it after a slow allocation. It is closed in service and at the end of the thread,
//! before the engine takes the pages away ([`super::thread_exit`]); the heap itself is never destroyed. When
//! another heap begins to lead, a thread goes on with what it has of the former one until a size class has run out.
//!
//! # Marks
//! A second free of a block is told by a mark: from its free until it is handed out again, the second word of a block in
//! the heap zone holds its address xor a secret of the process. Every block has at least 16 bytes, and mimalloc itself uses
//! only the first word of a free one. A program that writes the very word that it never saw into a live block is out of
//! luck once in 2^64. Blocks of the private heap bear no marks: a program that uses mimalloc itself shares that heap.
//!
//! # Invariants
//! - E1: a live block in the heap zone bears no mark: [`malloc`] and `engine.h` remove it before they hand a block out.
//! - E2: nobody but these functions allocates from or frees to the heap zone.

use super::thread_exit;
use crate::sync::gate;
use crate::sys::random;
use libc::{c_int, c_void};
use libmimalloc_sys as mi;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

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
    /// The engine's own description of the area.
    page: *const c_void,
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

// census.c.
unsafe extern "C" {
    fn daxtier_engine_freed_by_others(page: *const c_void) -> usize;
}

// engine.c.
unsafe extern "C" {
    static mut daxtier_engine_secret: usize;
    fn daxtier_engine_is_plain() -> bool;
    safe static daxtier_engine_zone_start: AtomicUsize;
    safe static daxtier_engine_zone_len: AtomicUsize;
    safe fn daxtier_engine_malloc(size: usize, slow: SlowMalloc) -> *mut u8;
    safe fn daxtier_engine_zalloc(size: usize, slow: SlowMalloc) -> *mut u8;
    fn daxtier_engine_free(block: *mut u8, slow: SlowFree);
    fn daxtier_engine_pop(size: usize, heap: *mut mi_heap_t) -> *mut u8;
    fn daxtier_engine_push(block: *mut u8) -> bool;
    safe fn daxtier_engine_has_shortcut() -> bool;
    fn daxtier_engine_open_shortcut(heap: *const mi_heap_t);
    fn daxtier_engine_find(address: *const u8, start: *mut *mut u8) -> c_int;
    fn daxtier_engine_mark(block: *mut u8);
    fn daxtier_engine_unmark(block: *mut u8);
}

/// Serves what the fast path does not. Returns NULL when memory is exhausted.
pub(crate) type SlowMalloc = extern "C" fn(size: usize) -> *mut u8;
/// Frees what the fast path does not, NULL among it.
pub(crate) type SlowFree = unsafe extern "C" fn(block: *mut u8);

/// The smallest block: room for mimalloc's link and the mark.
const MIN_BLOCK_BYTES: usize = 16;

/// What lies at an address in the heap zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A live block begins there.
    Live,
    /// There is no block, live or free.
    Foreign,
    /// The address is inside a block that begins elsewhere.
    Inside {
        /// Where it begins.
        block_addr: usize,
    },
    /// A block begins there, and it is free.
    Freed,
}

/// Makes the engine ready to be used through these functions. Returns `false` when it was built with other features
/// than `engine.c` was written for, and must not be used.
pub(super) fn prepare() -> bool {
    static SECRET: Once = Once::new();
    SECRET.call_once(|| {
        let secret = random::word();
        // SAFETY: written once, here, before the first block of the heap zone is handed out.
        unsafe { daxtier_engine_secret = secret };
    });
    // SAFETY: reads a constant of the library.
    unsafe { daxtier_engine_is_plain() }
}

/// Runs a call of mimalloc that may take its locks or change what threads share. Every such call passes here, so that
/// a fork finds none of it half done.
#[inline(always)]
fn inside<T>(call: impl FnOnce() -> T) -> T {
    gate::run(call)
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
    let mut arena: mi_arena_id_t = ptr::null_mut();
    let id = &raw mut arena;
    // SAFETY: the caller hands the range over; the callback follows the engine's contract.
    let managed = inside(|| unsafe {
        mi_manage_memory(start.as_ptr().cast(), size, false, false, true, -1, true, commit, arg, id)
    });
    managed.then_some(arena)
}

/// Makes a heap in an arena that the engine manages already.
pub(super) fn new_heap(arena: mi_arena_id_t) -> Option<NonNull<mi_heap_t>> {
    // SAFETY: the arena came from `mi_manage_memory` and is never removed.
    NonNull::new(inside(|| unsafe { mi::mi_heap_new_in_arena(arena) }))
}

/// Frees every block of a heap, and the heap.
///
/// # Safety
/// Nobody uses the heap or its blocks.
pub(super) unsafe fn destroy_heap(heap: NonNull<mi_heap_t>) {
    // SAFETY: the caller argued it.
    inside(|| unsafe { mi::mi_heap_destroy(heap.as_ptr()) });
}

/// Makes this thread let go of the heap that it allocated from last. The engine keeps a slice of a destroyed heap's
/// arena until every thread whose last heap it was has turned to another one.
pub(super) fn let_go_of_last_heap() {
    // SAFETY: the private heap lives as long as the process.
    let block = unsafe { malloc_slow(private_heap(), 1, 1, false) };
    // SAFETY: the block was just made (or is NULL, which is allowed), and nobody else knows it.
    unsafe { free_private(block) };
}

/// Makes the engine give free memory back.
pub(super) fn collect() {
    // SAFETY: takes no pointer; callable from any thread.
    inside(|| unsafe { mi::mi_collect(true) });
}

/// The heap that leads; NULL before there is one.
static LEAD: AtomicPtr<mi_heap_t> = AtomicPtr::new(ptr::null_mut());

/// Lets [`malloc_or`] allocate from a heap and [`free_or`] free blocks of the heap zone.
///
/// # Safety
/// [`prepare`] returned `true`, the heap is never destroyed, and `zone` is the heap zone.
pub(super) unsafe fn lead(heap: *mut mi_heap_t, zone: &Range<usize>) {
    // Relaxed: the heap below publishes both.
    daxtier_engine_zone_start.store(zone.start, Ordering::Relaxed);
    daxtier_engine_zone_len.store(zone.len(), Ordering::Relaxed);
    // Release: pairs with the Acquire in `leading`; who allocates from the heap sees it as it was made.
    LEAD.store(heap, Ordering::Release);
}

/// Returns the heap that leads, if any.
#[inline(always)]
pub(super) fn leading() -> Option<NonNull<mi_heap_t>> {
    NonNull::new(LEAD.load(Ordering::Acquire))
}

/// Lets this thread's [`malloc_or`] go on from the heap that leads, if it has just allocated from it. Not in service.
#[inline]
pub(crate) fn open_shortcut() {
    if daxtier_engine_has_shortcut() || !thread_exit::adopt() {
        return;
    }
    // SAFETY: compared only; the thread closes the shortcut before its pages go.
    unsafe { daxtier_engine_open_shortcut(LEAD.load(Ordering::Relaxed)) };
}

/// Allocates from the leading heap on the shortest path, or leaves it to `slow`, always so while there is none.
#[inline(always)]
pub(crate) fn malloc_or(size: usize, zero: bool, slow: SlowMalloc) -> *mut u8 {
    if zero { daxtier_engine_zalloc(size, slow) } else { daxtier_engine_malloc(size, slow) }
}

/// Allocates from a heap at a multiple of `align`, a power of two up to 64 KiB. Returns NULL when the heap's arena is
/// exhausted.
///
/// # Safety
/// `heap` is a live heap in the heap zone.
#[inline]
pub(super) unsafe fn malloc(heap: *mut mi_heap_t, size: usize, align: usize, zero: bool) -> *mut u8 {
    if !zero && align <= MIN_BLOCK_BYTES {
        // SAFETY: the caller argued it.
        let block = unsafe { daxtier_engine_pop(size, heap) };
        if !block.is_null() {
            return block;
        }
    }
    // SAFETY: the caller argued it.
    unsafe { malloc_slow(heap, size, align, zero) }
}

/// Allocates as [`malloc`] does, by mimalloc's own functions: the one way into them to allocate.
///
/// # Safety
/// `heap` is a live heap.
#[inline(never)]
pub(super) unsafe fn malloc_slow(heap: *mut mi_heap_t, size: usize, align: usize, zero: bool) -> *mut u8 {
    // A multiple of 16 is aligned to 16 in any case.
    let size = size.max(MIN_BLOCK_BYTES);
    let block: *mut u8 = inside(|| match (align > MIN_BLOCK_BYTES, zero) {
        // SAFETY: the caller argued it, here and below.
        (false, false) => unsafe { mi::mi_heap_malloc(heap, size) },
        // SAFETY: as above.
        (false, true) => unsafe { mi::mi_heap_zalloc(heap, size) },
        // SAFETY: as above.
        (true, false) => unsafe { mi::mi_heap_malloc_aligned(heap, size, align) },
        // SAFETY: as above.
        (true, true) => unsafe { mi::mi_heap_zalloc_aligned(heap, size, align) },
    })
    .cast();
    if !block.is_null() {
        // SAFETY: mimalloc has just handed the block out, and it has room for a mark.
        unsafe { daxtier_engine_unmark(block) };
    }
    block
}

/// Frees a block of the heap zone on the shortest path, or leaves it to `slow`: whatever else there may be at `block`, and
/// everything while no heap leads.
///
/// # Safety
/// If `block` is in the heap zone, a block begins there, and if it is live, nobody uses it any more.
#[inline(always)]
pub(crate) unsafe fn free_or(block: *mut u8, slow: SlowFree) {
    // SAFETY: the caller argued it.
    unsafe { daxtier_engine_free(block, slow) };
}

/// Frees a block that [`find`] has just found to be live.
///
/// # Safety
/// Nobody uses the block any more.
#[inline]
pub(super) unsafe fn free(block: *mut u8) {
    // SAFETY: the caller argued it.
    if !unsafe { daxtier_engine_push(block) } {
        // SAFETY: as above.
        unsafe { free_slow(block) };
    }
}

/// Frees a live block of the heap zone by mimalloc's own function: the one way into it to free.
///
/// # Safety
/// As for [`free`].
#[inline(never)]
pub(super) unsafe fn free_slow(block: *mut u8) {
    // SAFETY: the caller argued it, and the block has room for a mark.
    unsafe { daxtier_engine_mark(block) };
    // SAFETY: the caller argued it.
    inside(|| unsafe { mi::mi_free(block.cast()) });
}

/// Frees a block of the private heap.
///
/// # Safety
/// `block` is NULL or a live block of the private heap that nobody uses any more.
pub(super) unsafe fn free_private(block: *mut u8) {
    // SAFETY: the caller argued it.
    inside(|| unsafe { mi::mi_free(block.cast()) });
}

/// Says what begins at an address in the heap zone. Exact as long as nobody else frees that block meanwhile.
#[inline]
pub(super) fn find(address: *const u8) -> Found {
    let mut start = ptr::null_mut();
    // SAFETY: takes any address; `start` has room for one.
    match unsafe { daxtier_engine_find(address, &raw mut start) } {
        0 => Found::Live,
        2 => Found::Inside { block_addr: start.addr() },
        3 => Found::Freed,
        _ => Found::Foreign,
    }
}

/// Returns how many bytes a block holds.
///
/// # Safety
/// `p` is a live block of the engine.
#[inline(always)]
pub(super) unsafe fn usable_size(p: *const u8) -> usize {
    // SAFETY: the caller argued it; only the page's description is read.
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
/// `heap` is a live heap that no other thread allocates from or frees to, and none is inside the gate.
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
        // SAFETY: the area's page is quiet, as its heap is.
        let freed = unsafe { daxtier_engine_freed_by_others(area.page) };
        *sum += (area.used - freed) * area.block_size;
        true
    }
    let mut sum = 0usize;
    // SAFETY: the caller argued that the heap is quiet; the visitor gets a pointer to `sum`, which outlives it.
    inside(|| unsafe { mi_heap_visit_blocks(heap.as_ptr(), false, add, (&raw mut sum).cast()) });
    sum
}
