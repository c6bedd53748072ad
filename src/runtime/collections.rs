//! Collections in a pool, through the `Allocator` trait of the crate allocator-api2 (feature `allocator-api2`).

use super::pool::{AllocOptions, Pool};
use crate::policy::TierName;
use allocator_api2::alloc::{AllocError, Allocator, Layout};
use std::ptr::NonNull;

/// Places what a collection allocates in a pool, strictly in one tier or by the pool's policy. Holds a handle to the
/// pool.
///
/// ```
/// use allocator_api2::vec::Vec;
/// use daxtier::{Config, Pool, PoolAllocator, TierName};
///
/// let pool = Pool::open(&Config::parse("fast=16M slow=emulated:64M")?)?;
/// let mut cold = Vec::new_in(PoolAllocator::in_tier(&pool, TierName::Slow));
/// cold.extend(0..1_000_000u32);
/// let place = pool.where_is(cold.as_ptr().cast()).ok_or("not in the pool")?;
/// assert_eq!((place.tier_name, cold.iter().max()), ("slow", Some(&999_999)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PoolAllocator {
    pool: Pool,
    options: AllocOptions,
}

impl PoolAllocator {
    /// Allocates where the pool's policy says.
    pub fn new(pool: &Pool) -> PoolAllocator {
        PoolAllocator { pool: pool.clone(), options: AllocOptions::default() }
    }

    /// Allocates in one tier, and fails rather than to spill.
    pub fn in_tier(pool: &Pool, tier: TierName) -> PoolAllocator {
        PoolAllocator {
            pool: pool.clone(),
            options: AllocOptions { tier: Some(tier), ..AllocOptions::default() },
        }
    }

    fn serve(&self, layout: Layout, options: AllocOptions) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            // SAFETY: an alignment is never 0.
            let dangling =
                unsafe { NonNull::new_unchecked(std::ptr::without_provenance_mut(layout.align())) };
            return Ok(NonNull::slice_from_raw_parts(dangling, 0));
        }
        let block = self.pool.malloc(layout.size(), layout.align(), options).map_err(|_| AllocError)?;
        Ok(NonNull::slice_from_raw_parts(block, layout.size()))
    }
}

// SAFETY: blocks are as large and as aligned as their layout asks, stay valid until they are freed since every clone of
// the allocator holds a handle to the pool, and any clone can free them.
unsafe impl Allocator for PoolAllocator {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        self.serve(layout, self.options)
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        self.serve(layout, AllocOptions { zero: true, ..self.options })
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() > 0 {
            // SAFETY: the caller hands a live block of this allocator over, so it is the pool's.
            let freed = unsafe { self.pool.free(block) };
            debug_assert!(freed.is_ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use allocator_api2::{boxed::Box, vec::Vec};

    #[test]
    fn a_full_tier_is_an_error_not_a_spill() {
        let pool = Pool::open(&Config::parse("fast=64M slow=emulated:16M").unwrap()).unwrap();
        let slow = PoolAllocator::in_tier(&pool, TierName::Slow);
        let mut bytes: Vec<u8, _> = Vec::new_in(slow);
        assert!(bytes.try_reserve(32 << 20).is_err());
        assert!(bytes.try_reserve(8 << 20).is_ok());
        let boxed = Box::new_in([7u64; 100], PoolAllocator::new(&pool));
        assert!(pool.where_is((&raw const *boxed).cast()).is_some());
        let nothing = Box::new_in((), PoolAllocator::new(&pool));
        drop((bytes, boxed, nothing));
        pool.close().expect("all blocks were freed");
    }
}
