//! This library among the copies of daxtier in the process.
//!
//! [`daxtier_runtime_v1`] is the table through which other copies reach the pools that C has open; the functions
//! here reach theirs. Under the preload the default pool is the preload library's. See the core's `runtime::link`.

use crate::alloc::{Purpose, options};
use crate::error::*;
use crate::pool::{POOLS, foreign};
use crate::version::DAXTIER_VERSION_NUMBER;
use daxtier_core::runtime::Pool;
use daxtier_core::runtime::link::{
    self, Errno, LinkMigrationStats, LinkMoves, LinkPlacement, LinkTierStats, Moving, Runtime, RuntimeV1,
};
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

/// This library's side of the link between copies.
struct Library;

/// The table that this library gives to others. It is not the exported one, because that name means the first of the
/// process, which is the preload library's where there is one.
static TABLE: RuntimeV1 = RuntimeV1::of::<Library>(c"library", DAXTIER_VERSION_NUMBER);

/// Reserved: the table through which the preload library, the C library and Rust programs that hold their own copy of
/// daxtier find each other. Its layout is not a part of this interface.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the name is a symbol of the C interface")]
pub static daxtier_runtime_v1: RuntimeV1 = RuntimeV1::of::<Library>(c"library", DAXTIER_VERSION_NUMBER);

/// Pools of C are named by number; none of them is the default.
impl Moving for Library {}

impl Runtime for Library {
    fn table() -> &'static RuntimeV1 {
        &TABLE
    }

    fn owns(ptr: *const u8) -> bool {
        // Any open pool can tell blocks of this copy from others, whichever pool they are of.
        let block = NonNull::new(ptr.cast_mut());
        block.is_some_and(|block| POOLS.find_map(|_, pool| pool.usable_size(block).ok()).is_some())
    }

    fn usable_size(ptr: NonNull<u8>) -> Result<usize, Errno> {
        let pool = pool_of(ptr).ok_or(libc::EINVAL)?;
        pool.usable_size(ptr).map_err(|error| error.errno())
    }

    fn malloc(_size: usize, _align: usize, _flags: u64) -> Result<NonNull<u8>, Errno> {
        // Pools of C are named by number; none of them is the default.
        Err(libc::ENODEV)
    }

    unsafe fn realloc(ptr: NonNull<u8>, size: usize, align: usize, flags: u64) -> Result<NonNull<u8>, Errno> {
        let pool = pool_of(ptr).ok_or(libc::EINVAL)?;
        let options = options(flags, Purpose::Block).map_err(|_| libc::EINVAL)?;
        // SAFETY: the caller has the same duties.
        unsafe { pool.realloc(ptr, size, align.max(1), options) }.map_err(|error| error.errno())
    }

    unsafe fn free(ptr: NonNull<u8>) -> Result<(), Errno> {
        let pool = pool_of(ptr).ok_or(libc::EINVAL)?;
        // SAFETY: the caller has the same duties.
        unsafe { pool.free(ptr) }.map_err(|error| error.errno())
    }

    fn where_is(ptr: *const u8) -> Option<LinkPlacement> {
        POOLS.find_map(|_, pool| pool.where_is(ptr)).map(|found| LinkPlacement::from(&found))
    }

    fn tier_stats(_tier: u32) -> Option<LinkTierStats> {
        None
    }
}

/// Makes this library known to the others, once.
pub(crate) fn join() {
    link::join(&TABLE);
}

/// Returns the pool of this copy that the byte at `ptr` lies in.
pub(crate) fn pool_of(ptr: NonNull<u8>) -> Option<&'static Pool> {
    POOLS.find_map(|_, pool| pool.where_is(ptr.as_ptr()).map(|_| ptr::from_ref(pool))).map(|pool| {
        // SAFETY: the pool stays in the static table until it is closed, and by the C contract nobody closes it
        // while memory of it is used.
        unsafe { &*pool }
    })
}

/// Returns the table of the copy whose pool is the default.
fn default_runtime() -> Result<&'static RuntimeV1, Failure> {
    link::primary().filter(|primary| !primary.is_of_this_copy()).ok_or_else(|| {
        failure!(
            DAXTIER_ENODEV,
            "there is no default pool: the program does not run under libdaxtier_preload.so; open one"
        )
    })
}

fn other_owner(ptr: NonNull<u8>) -> Result<&'static RuntimeV1, Failure> {
    link::owner_of(ptr.as_ptr()).ok_or_else(|| foreign(ptr.as_ptr()))
}

/// Allocates from the default pool.
pub(crate) fn default_malloc(size: usize, align: usize, flags: u64) -> Result<NonNull<u8>, Failure> {
    let runtime = default_runtime()?;
    let mut out = ptr::null_mut();
    // SAFETY: `out` has room for a pointer.
    check(unsafe { (runtime.malloc)(size, align, flags, &raw mut out) })?;
    NonNull::new(out.cast()).ok_or_else(|| failure!(DAXTIER_ENOMEM, "the default pool returned NULL"))
}

/// Writes figures of a tier of the default pool, `None` past the last.
pub(crate) fn default_tier_stats(tier: u32) -> Result<Option<LinkTierStats>, Failure> {
    let runtime = default_runtime()?;
    let mut out = MaybeUninit::<LinkTierStats>::zeroed();
    // SAFETY: `out` has room for the figures.
    match unsafe { (runtime.tier_stats)(tier, out.as_mut_ptr()) } {
        // SAFETY: zeroes are valid for the structure of integers, which the other copy then filled.
        0 => Ok(Some(unsafe { out.assume_init() })),
        code if code == -libc::ENOENT => Ok(None),
        code => check(code).map(|()| None),
    }
}

/// Asks for memory of the default pool to be moved. Returns who has the request, and its number there.
pub(crate) fn default_migrate(
    address: *const u8,
    size: usize,
    tier: u32,
) -> Result<(&'static RuntimeV1, u64), Failure> {
    let runtime = default_runtime()?;
    let mut request = 0;
    // SAFETY: `request` has room for a number.
    let code = unsafe { (runtime.moving.migrate)(address.cast(), size, tier, &raw mut request) };
    check_moving(code, address)?;
    Ok((runtime, request))
}

/// Waits for a request of another copy.
pub(crate) fn wait_for(runtime: &RuntimeV1, request: u64, timeout_ms: u32) -> Result<LinkMoves, Failure> {
    let mut out = LinkMoves::default();
    // SAFETY: `out` has room for the answer.
    check(unsafe { (runtime.moving.wait)(request, timeout_ms, &raw mut out) })?;
    Ok(out)
}

/// Cancels a request of another copy.
pub(crate) fn cancel(runtime: &RuntimeV1, request: u64) -> Result<(), Failure> {
    // SAFETY: takes a number.
    check(unsafe { (runtime.moving.cancel)(request) })
}

/// Gives the number of a request of another copy back.
pub(crate) fn forget(runtime: &RuntimeV1, request: u64) -> Result<(), Failure> {
    // SAFETY: takes a number.
    check(unsafe { (runtime.moving.forget)(request) })
}

/// Keeps memory of the default pool where it is, or ends that.
pub(crate) fn default_pin(address: *const u8, size: usize, is_pinned: bool) -> Result<(), Failure> {
    let runtime = default_runtime()?;
    // SAFETY: takes any range.
    check_moving(unsafe { (runtime.moving.pin)(address.cast(), size, is_pinned.into()) }, address)
}

/// Returns what came of requests to move memory of the default pool.
pub(crate) fn default_migration_stats() -> Result<LinkMigrationStats, Failure> {
    let runtime = default_runtime()?;
    let mut out = LinkMigrationStats::default();
    // SAFETY: `out` has room for the figures.
    check(unsafe { (runtime.moving.migration_stats)(&raw mut out) })?;
    Ok(out)
}

/// As [`check`], for calls that name a range.
fn check_moving(code: c_int, address: *const u8) -> Result<(), Failure> {
    match -code {
        libc::EINVAL => Err(foreign(address)),
        libc::EOPNOTSUPP => {
            Err(failure!(DAXTIER_ENOTSUP, "the configuration of the default pool says migrate=off"))
        }
        libc::ENODEV => Err(failure!(DAXTIER_ENODEV, "the default pool has no such tier")),
        _ => check(code),
    }
}

/// Says where a byte lies that no pool of this copy holds.
pub(crate) fn where_is(address: *const u8) -> Option<LinkPlacement> {
    let runtime = link::owner_of(address)?;
    let mut out = MaybeUninit::<LinkPlacement>::zeroed();
    // SAFETY: `out` has room for the answer.
    let code = unsafe { (runtime.where_is)(address.cast(), out.as_mut_ptr()) };
    // SAFETY: zeroes are valid for the structure of integers, which the other copy then filled.
    (code == 0).then(|| unsafe { out.assume_init() })
}

/// Resizes a block of another copy.
///
/// # Safety
/// `ptr` is a live block if another copy owns it, and nobody uses it meanwhile.
pub(crate) unsafe fn foreign_realloc(
    ptr: NonNull<u8>,
    size: usize,
    align: usize,
    flags: u64,
) -> Result<NonNull<u8>, Failure> {
    let owner = other_owner(ptr)?;
    let mut out = ptr::null_mut();
    // SAFETY: the caller argued the block; `out` has room for a pointer.
    check(unsafe { (owner.realloc)(ptr.as_ptr().cast(), size, align, flags, &raw mut out) })?;
    NonNull::new(out.cast()).ok_or_else(|| failure!(DAXTIER_ENOMEM, "the block's owner returned NULL"))
}

/// Frees a block of another copy.
///
/// # Safety
/// `ptr` is a live block if another copy owns it, and nobody uses it any more.
pub(crate) unsafe fn foreign_free(ptr: NonNull<u8>) -> Result<(), Failure> {
    let owner = other_owner(ptr)?;
    // SAFETY: the caller argued the block.
    check(unsafe { (owner.free)(ptr.as_ptr().cast()) })
}

/// Returns the size of a block of another copy.
pub(crate) fn foreign_usable_size(ptr: NonNull<u8>) -> Result<usize, Failure> {
    let owner = other_owner(ptr)?;
    let mut size = 0;
    // SAFETY: `size` has room for the answer.
    check(unsafe { (owner.usable_size)(ptr.as_ptr().cast(), &raw mut size) })?;
    Ok(size)
}

/// Turns another copy's code into an outcome.
fn check(code: c_int) -> Result<(), Failure> {
    match code {
        0 => Ok(()),
        code => {
            Err(Failure::errno(-code, format_args!("another copy of daxtier in the process returned {code}")))
        }
    }
}
