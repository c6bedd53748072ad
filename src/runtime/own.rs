//! This copy of the library among the others in the process: what it does for them, on the process's own pool.
//!
//! The preload library exports the table; a Rust program that holds the crate attaches it to whoever exports one.

mod moving;

use super::link::{Errno, LinkPlacement, LinkTierStats, Runtime, RuntimeV1, text_field};
use super::pool::{AllocOptions, Placement};
use super::process;
use super::stats::TierStats;
use std::ptr::NonNull;

/// This copy's side of the link.
#[derive(Debug)]
pub struct OwnRuntime;

/// The table of this copy in a program that holds the crate.
static TABLE: RuntimeV1 = RuntimeV1::of::<OwnRuntime>(c"crate", VERSION);

/// The version as `0x00MMmmpp`.
pub const VERSION: u32 = version();

/// The version as `0x00MMmmpp`.
const fn version() -> u32 {
    const fn part(text: &str) -> u32 {
        let bytes = text.as_bytes();
        let (mut value, mut at) = (0, 0);
        while at < bytes.len() {
            value = value * 10 + (bytes[at] - b'0') as u32;
            at += 1;
        }
        value
    }
    part(env!("CARGO_PKG_VERSION_MAJOR")) << 16
        | part(env!("CARGO_PKG_VERSION_MINOR")) << 8
        | part(env!("CARGO_PKG_VERSION_PATCH"))
}

impl Runtime for OwnRuntime {
    fn table() -> &'static RuntimeV1 {
        &TABLE
    }

    fn owns(ptr: *const u8) -> bool {
        // A byte inside a block is in the space, and a block that is not was served before there was a pool.
        process::pool_if_open().is_some_and(|pool| pool.has_address(ptr))
            || NonNull::new(ptr.cast_mut()).is_some_and(|block| process::usable_size(block).is_ok())
    }

    fn usable_size(ptr: NonNull<u8>) -> Result<usize, Errno> {
        process::usable_size(ptr).map_err(|error| error.errno())
    }

    fn malloc(size: usize, align: usize, flags: u64) -> Result<NonNull<u8>, Errno> {
        let pool = process::pool().ok_or(libc::ENODEV)?;
        let options = AllocOptions::from_bits(flags).ok_or(libc::EINVAL)?;
        pool.malloc(size, align.max(1), options).map_err(|error| error.errno())
    }

    unsafe fn realloc(ptr: NonNull<u8>, size: usize, align: usize, flags: u64) -> Result<NonNull<u8>, Errno> {
        let pool = process::pool().ok_or(libc::ENODEV)?;
        let options = AllocOptions::from_bits(flags).ok_or(libc::EINVAL)?;
        // SAFETY: the caller has the same duties.
        unsafe { pool.realloc(ptr, size, align.max(1), options) }.map_err(|error| error.errno())
    }

    unsafe fn free(ptr: NonNull<u8>) -> Result<(), Errno> {
        // SAFETY: the caller has the same duties.
        unsafe { process::free(ptr) }.map_err(|error| error.errno())
    }

    fn where_is(ptr: *const u8) -> Option<LinkPlacement> {
        Some(LinkPlacement::from(&process::pool()?.where_is(ptr)?))
    }

    fn tier_stats(tier: u32) -> Option<LinkTierStats> {
        let stats = process::pool()?.stats();
        stats.tiers.get(tier as usize).map(LinkTierStats::from)
    }
}

impl From<&Placement> for LinkPlacement {
    fn from(found: &Placement) -> LinkPlacement {
        LinkPlacement {
            tier: found.tier as u32,
            order: found.order.get().into(),
            pgmap: found.pgmap.into(),
            offset: found.offset,
            tier_name: text_field(found.tier_name),
            device: text_field(&found.device),
        }
    }
}

impl From<&TierStats> for LinkTierStats {
    fn from(tier: &TierStats) -> LinkTierStats {
        LinkTierStats {
            name: text_field(&tier.name),
            kind: text_field(&tier.kind),
            capacity_bytes: tier.capacity_bytes,
            used_bytes: tier.used_bytes,
            peak_bytes: tier.peak_bytes,
            metadata_bytes: tier.metadata_bytes,
            allocations: tier.allocations,
            failures: tier.failures,
            folios_by_order: tier.folios_by_order,
        }
    }
}
