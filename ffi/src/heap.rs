//! Blocks: malloc, realloc and free over a pool's tiers, and advice about memory.

use crate::alloc::{Purpose, options};
use crate::error::*;
use crate::pool::{DAXTIER_DEFAULT_POOL, DaxtierPool, POOLS, alloc_failure, non_null, not_a_block};
use crate::runtime;
use daxtier_core::runtime::Advice;
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

/// Advice: the range will be used soon; back every page of it now.
pub const DAXTIER_ADVICE_POPULATE: u32 = 1;
/// Advice: the contents of the range are of no more use. Whole pages inside read as zero afterwards.
pub const DAXTIER_ADVICE_DISCARD: u32 = 2;

/// Allocates a block of `size` bytes from the heap of a pool. Takes DAXTIER_DEFAULT_POOL.
///
/// `align` is 0 (as malloc(3)) or a power of two up to 1 GiB; alignments above 64 KiB cost whole slots of 2 MiB.
/// `flags`: DAXTIER_ZERO, one DAXTIER_TIER_ flag, one DAXTIER_HINT_ flag. A size of 0 gives a block of its own.
///
/// Threads: any number at once. Blocks: no, but for short locks when the heap grows. After fork: the child has its
/// own copy of every block. Signal handlers: not allowed. Lifetime: the block is the caller's until daxtier_free() or
/// daxtier_realloc(); the pool cannot be closed before.
/// Returns 0; DAXTIER_ENOMEM; DAXTIER_EALIGN; DAXTIER_EFLAGS; DAXTIER_ECHOICE; DAXTIER_EHANDLE; DAXTIER_ENODEV when
/// the pool has no such tier, or there is no default pool; DAXTIER_ENULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_malloc(
    pool: DaxtierPool,
    size: usize,
    align: usize,
    flags: u64,
    block: *mut *mut c_void,
) -> c_int {
    guard(|| {
        non_null(block, "block")?;
        let options = options(flags, Purpose::Block)?;
        let found = if pool == DAXTIER_DEFAULT_POOL {
            runtime::default_malloc(size, alignment(align), flags)?
        } else {
            let pool = POOLS.get(pool)?;
            pool.malloc(size, alignment(align), options).map_err(|error| alloc_failure(&error))?
        };
        // SAFETY: the C contract: room for one pointer; checked not to be NULL.
        unsafe { block.write(found.as_ptr().cast()) };
        Ok(())
    })
}

/// Resizes a block, in place or by copying it to a new one; the bytes up to the smaller size are kept. With NULL as
/// `old` it allocates. Takes DAXTIER_DEFAULT_POOL: the block may then be of any pool of the process and stays there.
///
/// `size` is not 0. `align` and `flags` are those of daxtier_malloc(). With DAXTIER_ZERO the bytes beyond the old
/// size are zero only if the block was allocated with DAXTIER_ZERO and never resized without.
///
/// Threads: any number at once, for different blocks. Blocks: as daxtier_malloc(). After fork: works on the child's
/// own copy. Signal handlers: not allowed. Lifetime: with success the old address ends, even where the new one
/// equals it; on failure the old block is untouched and still the caller's.
/// Returns 0; DAXTIER_EINVAL for size 0; DAXTIER_ESTALE when the block at `old` was freed before; DAXTIER_EFOREIGN when
/// no block begins there; the codes of daxtier_malloc().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_realloc(
    pool: DaxtierPool,
    old: *mut c_void,
    size: usize,
    align: usize,
    flags: u64,
    block: *mut *mut c_void,
) -> c_int {
    guard(|| {
        non_null(block, "block")?;
        if size == 0 {
            return Err(failure!(DAXTIER_EINVAL, "size is 0: free the block with daxtier_free"));
        }
        let options = options(flags, Purpose::Block)?;
        let found = match (NonNull::new(old.cast::<u8>()), pool) {
            (None, DAXTIER_DEFAULT_POOL) => runtime::default_malloc(size, alignment(align), flags)?,
            (None, pool) => {
                let pool = POOLS.get(pool)?;
                pool.malloc(size, alignment(align), options).map_err(|error| alloc_failure(&error))?
            }
            (Some(old), pool) => {
                let owner =
                    if pool == DAXTIER_DEFAULT_POOL { runtime::pool_of(old) } else { Some(POOLS.get(pool)?) };
                match owner {
                    // SAFETY: the C contract: a block of the caller's that nobody uses meanwhile.
                    Some(pool) => unsafe { pool.realloc(old, size, alignment(align), options) }
                        .map_err(|error| alloc_failure(&error))?,
                    // SAFETY: as above.
                    None => unsafe { runtime::foreign_realloc(old, size, alignment(align), flags) }?,
                }
            }
        };
        // SAFETY: the C contract: room for one pointer; checked not to be NULL.
        unsafe { block.write(found.as_ptr().cast()) };
        Ok(())
    })
}

/// Frees a block. NULL is allowed and does nothing. Takes DAXTIER_DEFAULT_POOL: the block may then be of any pool of
/// the process, the preload library's and other copies' included.
///
/// A pointer to anything that is no block is refused, with no harm done: memory of others, an address inside a block, a
/// block that was freed before. Three mistakes are not told: a second free after the memory went into other blocks,
/// two frees at the same time, and an address inside a block, at a multiple of 16, near blocks of a larger
/// alignment.
///
/// Threads: any number at once, for different blocks; any thread may free a block. Blocks: no, but for short locks.
/// After fork: frees the child's own copy. Signal handlers: not allowed. Lifetime: the block ends with success.
/// Returns 0; DAXTIER_ESTALE for a block that was freed before; DAXTIER_EFOREIGN when no block begins there;
/// DAXTIER_EHANDLE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_free(pool: DaxtierPool, block: *mut c_void) -> c_int {
    guard(|| {
        let owner = if pool == DAXTIER_DEFAULT_POOL { None } else { Some(POOLS.get(pool)?) };
        let Some(block) = NonNull::new(block.cast::<u8>()) else { return Ok(()) };
        match owner.or_else(|| runtime::pool_of(block)) {
            // SAFETY: the C contract: a block of the caller's that nobody uses any more.
            Some(pool) => unsafe { pool.free(block) }.map_err(|error| not_a_block(&error)),
            // SAFETY: as above.
            None => unsafe { runtime::foreign_free(block) },
        }
    })
}

/// Writes how many bytes the block may use, at least what was asked for. Takes DAXTIER_DEFAULT_POOL: any pool of the
/// process.
///
/// Threads: any number at once. Blocks: no. After fork: works. Signal handlers: not allowed. Lifetime: the answer
/// holds until the block is freed or resized.
/// Returns 0; DAXTIER_ESTALE for a block that was freed; DAXTIER_EFOREIGN when no block begins there; DAXTIER_EHANDLE;
/// DAXTIER_ENULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_usable_size(
    pool: DaxtierPool,
    block: *const c_void,
    size: *mut usize,
) -> c_int {
    guard(|| {
        non_null(size, "size")?;
        let owner = if pool == DAXTIER_DEFAULT_POOL { None } else { Some(POOLS.get(pool)?) };
        let address = block.cast_mut().cast::<u8>();
        let block = NonNull::new(address).ok_or_else(|| failure!(DAXTIER_ENULL, "block is NULL"))?;
        let len_bytes = match owner.or_else(|| runtime::pool_of(block)) {
            Some(pool) => pool.usable_size(block).map_err(|error| not_a_block(&error))?,
            None => runtime::foreign_usable_size(block)?,
        };
        // SAFETY: the C contract: room for a size; checked not to be NULL.
        unsafe { size.write(len_bytes) };
        Ok(())
    })
}

/// Gives advice about the whole pages in [address, address + size), which is memory of the pool. `advice` is a
/// DAXTIER_ADVICE_ number; others are kept for later versions.
///
/// Threads: any number at once; with DAXTIER_ADVICE_DISCARD nobody else uses the range. Blocks: while pages are
/// backed. After fork: concerns this process alone. Signal handlers: not allowed. Lifetime: nothing is kept.
/// Returns 0; DAXTIER_ECHOICE for unknown advice; DAXTIER_EFOREIGN when a page of the range is not of the pool, and
/// then nothing has changed; DAXTIER_EHANDLE; DAXTIER_ENULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_advise(
    pool: DaxtierPool,
    address: *mut c_void,
    size: usize,
    advice: u32,
) -> c_int {
    guard(|| {
        let advice = match advice {
            DAXTIER_ADVICE_POPULATE => Advice::Populate,
            DAXTIER_ADVICE_DISCARD => Advice::Discard,
            other => {
                return Err(failure!(DAXTIER_ECHOICE, "{other} is no advice: use a DAXTIER_ADVICE_ number"));
            }
        };
        let pool = POOLS.get(pool)?;
        let start = NonNull::new(address.cast::<u8>());
        let start = start.ok_or_else(|| failure!(DAXTIER_ENULL, "address is NULL"))?;
        if start.as_ptr().addr().checked_add(size).is_none() {
            return Err(failure!(DAXTIER_EINVAL, "the range of {size} bytes wraps around"));
        }
        // SAFETY: the C contract: memory of the caller's, whose contents nobody needs where they are discarded.
        unsafe { pool.advise(start, size, advice) }.map_err(|error| failure!(DAXTIER_EFOREIGN, "{error}"))
    })
}

/// Reads C's alignment: 0 is malloc's.
fn alignment(align: usize) -> usize {
    if align == 0 { 16 } else { align }
}
