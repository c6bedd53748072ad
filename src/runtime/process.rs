//! The process's own pool: what `malloc` is served from in the preload library and through [`GlobalAlloc`].
//!
//! It is opened from the environment at the first allocation, which may come before `main`, inside the dynamic
//! loader or a C library constructor. Until it is open, and when it could not be, blocks come from the private
//! heap on ordinary memory; every function here knows both kinds by their address.
//!
//! # Protocol
//! | state | meaning | leaves to |
//! |---|---|---|
//! | `UNSET` | nobody asked yet | `OPENING` by the first allocation |
//! | `OPENING` | one thread opens the pool; all allocations are private | `READY` or `PRIVATE` by that thread |
//! | `READY` | the pool serves | - |
//! | `PRIVATE` | the configuration was wrong and says to go on, or the program is privileged | - |
//!
//! # Paths
//! malloc and free begin in the heap's `engine.h`, which serves most calls. It leaves the rest to `alloc_slow` here and
//! to the function that [`free_or`] was given, and these go into the engine by the two functions that `heap::engine` names.
//!
//! [`GlobalAlloc`]: super::GlobalAlloc

use super::config::{Config, OnError};
use super::memory::{self, MemoryCall};
use super::pool::{AllocOptions, Pool};
use super::{NotABlock, PoolError, report, reserve};
use crate::heap::{self, LARGEST_ARENA_ALIGN};
use crate::sync::service;
use crate::sys::{self, environment, errno, stdio};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

const UNSET: u8 = 0;
const OPENING: u8 = 1;
const READY: u8 = 2;
const PRIVATE: u8 = 3;

static STATE: AtomicU8 = AtomicU8::new(UNSET);
static POOL: OnceLock<Pool> = OnceLock::new();

/// What every block is aligned to, as C promises for any type.
const ANY_ALIGN: usize = 16;

/// Allocates `size` bytes at a multiple of `align` (a power of two). Returns NULL when memory is exhausted, with `errno`
/// set.
///
/// Never blocks on anything but the kernel; the first call opens the pool.
#[inline(always)]
pub fn alloc(size: usize, align: usize, zero: bool) -> *mut u8 {
    extern "C" fn malloc_slow(size: usize) -> *mut u8 {
        alloc_slow(size, ANY_ALIGN, false)
    }
    extern "C" fn zalloc_slow(size: usize) -> *mut u8 {
        alloc_slow(size, ANY_ALIGN, true)
    }
    if align > ANY_ALIGN {
        return alloc_slow(size, align, zero);
    }
    heap::malloc_or(size, zero, if zero { zalloc_slow } else { malloc_slow })
}

/// Allocates as [`alloc`] does what takes more than to pop a block.
pub fn alloc_slow(size: usize, align: usize, zero: bool) -> *mut u8 {
    if align <= LARGEST_ARENA_ALIGN && !service::is_set() {
        let block = heap::malloc_slow(size, align, zero);
        if !block.is_null() {
            heap::open_shortcut();
            return block;
        }
    }
    alloc_otherwise(size, align, zero)
}

/// Serves what the shortcut does not: before the pool is open, and when its heap needs another arena, or runs.
#[cold]
#[inline(never)]
fn alloc_otherwise(size: usize, align: usize, zero: bool) -> *mut u8 {
    if STATE.load(Ordering::Acquire) == UNSET {
        open();
    }
    let options = AllocOptions { zero, ..AllocOptions::default() };
    let block = match POOL.get() {
        Some(pool) if !service::is_set() => pool.malloc(size, align, options).ok(),
        _ => heap::alloc_private(size, align, zero),
    };
    block.map_or_else(
        || {
            errno::set(libc::ENOMEM);
            ptr::null_mut()
        },
        NonNull::as_ptr,
    )
}

/// Allocates from ordinary memory, for code of the library's own. That can't go on without: when the kernel refuses, and
/// the reserve is used up too, the program ends with a message.
pub fn alloc_private(size: usize, align: usize, zero: bool) -> *mut u8 {
    match heap::alloc_private(size, align, zero).or_else(|| reserve::take(size, align, zero)) {
        Some(block) => block.as_ptr(),
        None => report::stop_for_want_of_memory(STATE.load(Ordering::Relaxed) == OPENING),
    }
}

/// Whether the calling thread runs code of the library's own.
#[inline(always)]
pub fn in_service() -> bool {
    service::is_set()
}

/// Frees a block, or leaves it to `slow`, for which [`free`] is made: NULL, blocks that take more than to be pushed to a
/// list, and whatever is no live block.
///
/// # Safety
/// If this library allocated it, nobody uses `block` any more.
#[inline(always)]
pub unsafe fn free_or(block: *mut u8, slow: unsafe extern "C" fn(*mut u8)) {
    // SAFETY: blocks in the zone are the engine's, and the caller argued the rest.
    unsafe { heap::free_or(block, slow) };
}

/// Frees a block.
///
/// # Errors
/// [`NotABlock`] says what is there instead; nothing changes then.
///
/// # Safety
/// If this library allocated it, nobody uses `block` any more.
pub unsafe fn free(block: NonNull<u8>) -> Result<(), NotABlock> {
    if reserve::owns(block) {
        reserve::give(block);
        return Ok(());
    }
    if is_private(block.as_ptr()) {
        // SAFETY: a page of the private heap is there; the caller argued the rest.
        unsafe { heap::free_private(block) };
        return Ok(());
    }
    // SAFETY: the caller argued it.
    unsafe { pool_of(block)?.free(block) }
}

/// Tells the user of a `free` or `realloc` that was refused, once.
#[cold]
pub fn complain(error: NotABlock) {
    static DID: AtomicBool = AtomicBool::new(false);
    // Relaxed: nothing hangs on it but that this is said once.
    if !DID.swap(true, Ordering::Relaxed) {
        service::run(|| stdio::complain(&format!("daxtier: {error}; the call has no effect\n")));
    }
}

/// Whether an address is in a page of the private heap: the engine knows those and the heap zone's.
fn is_private(block: *const u8) -> bool {
    let in_zone = POOL.get().is_some_and(|pool| heap::in_heap_zone(&pool.heap_zone(), block.addr()));
    !in_zone && heap::is_block(block)
}

/// Returns the pool that knows what is at an address; before there is one, nothing is.
fn pool_of(block: NonNull<u8>) -> Result<&'static Pool, NotABlock> {
    POOL.get().ok_or(NotABlock::Foreign { addr: block.as_ptr().addr() })
}

/// Returns how many bytes a block holds.
///
/// # Errors
/// [`NotABlock`] says what is there instead.
#[inline]
pub fn usable_size(block: NonNull<u8>) -> Result<usize, NotABlock> {
    if reserve::owns(block) {
        return Ok(reserve::len_bytes(block));
    }
    if is_private(block.as_ptr()) {
        // SAFETY: a page of the private heap is there.
        return Ok(unsafe { heap::block_len(block) });
    }
    pool_of(block)?.usable_size(block)
}

/// Resizes a block, keeping its bytes up to the smaller size. Returns NULL, with the block as before, when memory
/// is exhausted.
///
/// # Errors
/// [`NotABlock`] says what is there instead; nothing changes then.
///
/// # Safety
/// If this library allocated it, nobody uses `block` meanwhile; after success the old address is no longer used.
pub unsafe fn realloc(block: NonNull<u8>, size: usize, align: usize) -> Result<*mut u8, NotABlock> {
    let old = usable_size(block)?;
    if size <= old && size >= old / 2 && block.as_ptr().addr() & (align - 1) == 0 {
        return Ok(block.as_ptr());
    }
    let Some(fresh) = NonNull::new(alloc(size, align, false)) else { return Ok(ptr::null_mut()) };
    // SAFETY: both blocks hold that many bytes, and a fresh one overlaps no live one.
    unsafe { block.copy_to_nonoverlapping(fresh, old.min(size)) };
    // SAFETY: the caller handed the block over.
    unsafe { free_or(block.as_ptr(), free_or_complain) };
    Ok(fresh.as_ptr())
}

/// Frees what the shortest path does not, for callers that hear of no error: tells the user of one.
///
/// # Safety
/// `block` is NULL or, if this library allocated it, nobody uses it any more.
#[inline(never)]
pub(super) unsafe extern "C" fn free_or_complain(block: *mut u8) {
    let Some(block) = NonNull::new(block) else { return };
    // SAFETY: the caller argued it.
    if let Err(error) = unsafe { free(block) } {
        complain(error);
    }
}

/// Returns the process's pool if it was opened. Neither blocks nor allocates.
pub(super) fn pool_if_open() -> Option<&'static Pool> {
    POOL.get()
}

/// Returns the process's pool, opening it from the environment at the first call. `None` when there is none: see
/// the states above.
pub fn pool() -> Option<&'static Pool> {
    if STATE.load(Ordering::Acquire) == UNSET {
        open();
    }
    POOL.get()
}

/// Opens the pool from the environment. A wrong configuration ends the process with exit code 78, or is reported in
/// one line when `DAXTIER_ON_ERROR=passthrough` says so.
#[cold]
fn open() {
    // Acquire on failure: another thread may have finished.
    if STATE.compare_exchange(UNSET, OPENING, Ordering::AcqRel, Ordering::Acquire).is_err() {
        return;
    }
    let state = service::run(|| {
        // A program with more rights than its caller must not be steered by its caller's environment.
        if environment::is_privileged() {
            return PRIVATE;
        }
        match Config::from_environment(environment::variables()).map_err(PoolError::from).and_then(install) {
            Ok(()) => READY,
            Err(error) => match OnError::in_force(environment::variables()) {
                OnError::Stop => report::stop(&error),
                OnError::Passthrough => {
                    stdio::complain(&format!("daxtier: {error}; going on without tiers\n"));
                    PRIVATE
                }
            },
        }
    });
    // Release: publishes what the state promises.
    STATE.store(state, Ordering::Release);
}

fn install(config: Config) -> Result<(), PoolError> {
    let opened = Pool::open(&config)?;
    let pool = POOL.get_or_init(|| opened);
    if let Some(target) = config.stats {
        report::at_exit(target);
    }
    // SAFETY: the process has one such pool, which is never closed.
    unsafe { pool.default_heap().lead() };
    Ok(())
}

/// Ends the process as `_exit(2)` does, after what the library does at the end of a program.
pub fn leave(status: i32) -> ! {
    report::on_leaving();
    sys::process::exit_now(status)
}

/// Does what the library does at the end of a program that runs no exit handlers.
pub fn prepare_to_leave() {
    report::on_leaving();
}

/// Makes a child process with the C library's function, `next`, which this one stands in for. Fails as fork(2) does, with
/// -1 and `errno`: see `runtime::fork`.
///
/// # Safety
/// As fork(2) demands of programs with several threads.
pub unsafe fn fork(next: unsafe extern "C" fn() -> libc::pid_t) -> libc::pid_t {
    // SAFETY: the caller's argument carries over.
    unsafe { super::fork::fork(next) }
}

/// Makes a call of the program on its memory, a part of which lies in slots. Sets `errno` and returns -1 where the kernel
/// would: see `runtime::memory`.
///
/// # Safety
/// The call is the program's, on memory of its own.
#[cold]
pub unsafe fn perform(call: MemoryCall, addr: usize, len_bytes: usize) -> libc::c_int {
    // SAFETY: the caller argued it.
    match unsafe { memory::perform(POOL.get(), call, addr, len_bytes) } {
        Ok(()) => 0,
        Err(errno) => {
            errno::set(errno);
            -1
        }
    }
}

/// Brings slots to DRAM that a range touches, as far as that can be done: see `runtime::memory`.
#[cold]
pub fn bring_to_dram(addr: usize, len_bytes: usize) {
    memory::bring_to_dram(POOL.get(), addr, len_bytes);
}
