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
//! [`GlobalAlloc`]: super::GlobalAlloc

use super::config::{Config, OnError};
use super::pool::{AllocOptions, Pool};
use super::{PoolError, report};
use crate::heap::{self, Heap, LARGEST_ARENA_ALIGN};
use crate::sync::service;
use crate::sys::{environment, stdio};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering};

const UNSET: u8 = 0;
const OPENING: u8 = 1;
const READY: u8 = 2;
const PRIVATE: u8 = 3;

static STATE: AtomicU8 = AtomicU8::new(UNSET);
static POOL: OnceLock<Pool> = OnceLock::new();

/// The pool's heap; NULL unless `READY`. The hot path's only look at the state.
static HEAP: AtomicPtr<Heap> = AtomicPtr::new(ptr::null_mut());
/// The heap zone's first address and length; 0 until the pool is open. Written once, before `HEAP`.
static ZONE_START: AtomicUsize = AtomicUsize::new(0);
static ZONE_LEN: AtomicUsize = AtomicUsize::new(0);

/// A pointer that this library did not allocate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign;

/// Allocates `size` bytes at a multiple of `align` (a power of two). Returns NULL when memory is exhausted.
///
/// Never blocks on anything but the kernel; the first call opens the pool.
#[inline(always)]
pub fn alloc(size: usize, align: usize, zero: bool) -> *mut u8 {
    // Acquire: pairs with the Release in `open`, which publishes the heap.
    let heap = HEAP.load(Ordering::Acquire);
    if !heap.is_null() && align <= LARGEST_ARENA_ALIGN {
        // SAFETY: the pool is never closed, so its heap lives as long as the process.
        if let Some(block) = unsafe { &*heap }.alloc(size, align, zero) {
            return block.as_ptr();
        }
        return alloc_slow(size, align, zero, true);
    }
    alloc_slow(size, align, zero, false)
}

/// Serves what the fast path did not; `heap_is_full` when the heap was asked and refused.
#[cold]
#[inline(never)]
fn alloc_slow(size: usize, align: usize, zero: bool, heap_is_full: bool) -> *mut u8 {
    if STATE.load(Ordering::Acquire) == UNSET {
        open();
    }
    let options = AllocOptions { zero, ..AllocOptions::default() };
    let block = match POOL.get() {
        Some(pool) if heap_is_full => pool.malloc_beyond_heap(size, align, options).ok(),
        Some(pool) if !service::is_set() => pool.malloc(size, align, options).ok(),
        _ => heap::alloc_private(size, align, zero),
    };
    block.map_or(ptr::null_mut(), NonNull::as_ptr)
}

/// Allocates from ordinary memory, for code of the library's own.
pub fn alloc_private(size: usize, align: usize, zero: bool) -> *mut u8 {
    heap::alloc_private(size, align, zero).map_or(ptr::null_mut(), NonNull::as_ptr)
}

/// Whether the calling thread runs code of the library's own.
#[inline(always)]
pub fn in_service() -> bool {
    service::is_set()
}

/// Frees a block.
///
/// # Errors
/// [`Foreign`] when this library did not allocate it; nothing changes then.
///
/// # Safety
/// If this library allocated it, `block` is live and nobody uses it any more.
#[inline(always)]
pub unsafe fn free(block: NonNull<u8>) -> Result<(), Foreign> {
    if in_zone(block) {
        // SAFETY: blocks in the zone are the engine's, and the caller argued that this one is live.
        unsafe { heap::free_block(block) };
        return Ok(());
    }
    // SAFETY: the caller's argument carries over.
    unsafe { free_slow(block) }
}

#[inline(always)]
fn in_zone(block: NonNull<u8>) -> bool {
    // Relaxed: whoever holds a block of the zone got it after the zone was published.
    let offset = block.as_ptr().addr().wrapping_sub(ZONE_START.load(Ordering::Relaxed));
    offset < ZONE_LEN.load(Ordering::Relaxed)
}

/// # Safety
/// As for [`free`].
#[cold]
#[inline(never)]
unsafe fn free_slow(block: NonNull<u8>) -> Result<(), Foreign> {
    if heap::is_block(block.as_ptr()) {
        // SAFETY: the engine knows the block's page; the caller argued that it is live.
        unsafe { heap::free_block(block) };
        return Ok(());
    }
    let pool = POOL.get().ok_or(Foreign)?;
    // SAFETY: the caller argued it.
    unsafe { pool.free(block) }.map_err(|_| Foreign)
}

/// Returns how many bytes a block holds.
///
/// # Errors
/// [`Foreign`] when this library did not allocate it.
#[inline]
pub fn usable_size(block: NonNull<u8>) -> Result<usize, Foreign> {
    if in_zone(block) || heap::is_block(block.as_ptr()) {
        // SAFETY: the engine knows the block's page.
        return Ok(unsafe { heap::block_len(block) });
    }
    POOL.get().and_then(|pool| pool.usable_size(block).ok()).ok_or(Foreign)
}

/// Resizes a block, keeping its bytes up to the smaller size. Returns NULL, with the block as before, when memory
/// is exhausted.
///
/// # Errors
/// [`Foreign`] when this library did not allocate it.
///
/// # Safety
/// If this library allocated it, `block` is live and nobody uses it meanwhile; after success the old address is no
/// longer used.
pub unsafe fn realloc(block: NonNull<u8>, size: usize, align: usize) -> Result<*mut u8, Foreign> {
    let old = usable_size(block)?;
    if size <= old && size >= old / 2 && block.as_ptr().addr() & (align - 1) == 0 {
        return Ok(block.as_ptr());
    }
    let Some(fresh) = NonNull::new(alloc(size, align, false)) else { return Ok(ptr::null_mut()) };
    // SAFETY: both blocks hold that many bytes, and a fresh one overlaps no live one.
    unsafe { block.copy_to_nonoverlapping(fresh, old.min(size)) };
    // SAFETY: the caller handed the block over.
    unsafe { free(block) }?;
    Ok(fresh.as_ptr())
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
    let zone = pool.heap_zone();
    // Relaxed: `HEAP` publishes both.
    ZONE_START.store(zone.start, Ordering::Relaxed);
    ZONE_LEN.store(zone.len(), Ordering::Relaxed);
    if let Some(target) = config.stats {
        report::at_exit(target);
    }
    // Release: pairs with the Acquire in `alloc`.
    HEAP.store(ptr::from_ref(pool.default_heap()).cast_mut(), Ordering::Release);
    Ok(())
}

/// Whether a fork could give the child its copy of slow memory.
pub fn can_fork() -> bool {
    super::fork::check().is_ok()
}
