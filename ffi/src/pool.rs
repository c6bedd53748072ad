//! Pools: open, close, figures, and where a byte is.
//!
//! The table [`POOLS`] holds what C has open. Number 0 stands for the default pool: that of the preload library when
//! the program runs under it ([`crate::runtime`]). Uses the core's `Pool`; used by `folio` and `heap`.

use crate::error::*;
use crate::folio::{DaxtierFolioInfo, FolioList, folio_code, folio_failure, tier_in};
use crate::handle::Table;
use crate::pgmap;
use crate::runtime;
use crate::sized::{self, SizedStruct};
use crate::text;
use daxtier_core::folio::FolioError;
use daxtier_core::runtime::config::Config;
use daxtier_core::runtime::link::{LinkPlacement, LinkTierStats, field_text};
use daxtier_core::runtime::{AllocError, CloseError, NotABlock, Placement, Pool, PoolError};
use std::ffi::{c_char, c_int, c_void};

/// A pool: tiers, a placement policy and a heap. The number of a closed pool is never given again. 0 stands for the
/// default pool, where a function says that it takes it.
pub type DaxtierPool = u64;

/// Stands for the default pool: the one of libdaxtier_preload.so when the program runs under it.
pub const DAXTIER_DEFAULT_POOL: u64 = 0;

/// Figures of a pool.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DaxtierStats {
    /// Set by the caller: sizeof(struct daxtier_stats).
    pub size: usize,
    /// Allocations that no tier could serve.
    pub failures: u64,
    /// Number of tiers; they are numbered from 0, the fastest.
    pub nr_tiers: u32,
    /// The process that the figures are of.
    pub pid: u32,
    /// The placement policy, as the configuration spells it.
    pub policy: [c_char; 64],
    /// Why the last allocation failed; empty if none did.
    pub last_failure: [c_char; 256],
}

// SAFETY: repr(C); 8 + 8 + 4 + 4 + 64 + 256 leaves no padding; integers only.
unsafe impl SizedStruct for DaxtierStats {
    const NAME: &'static str = "daxtier_stats";
    const FIRST_SIZE: usize = 344;
}

/// Figures of a tier.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DaxtierTierStats {
    /// Set by the caller: sizeof(struct daxtier_tier_stats).
    pub size: usize,
    /// "fast" or "slow".
    pub name: [c_char; 16],
    /// What it is made of: "dram", "emulated", "dax" or "node".
    pub kind: [c_char; 16],
    /// Bytes that the tier may hold, bookkeeping included.
    pub capacity_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Most bytes that were in use at once.
    pub peak_bytes: u64,
    /// Bytes of bookkeeping.
    pub metadata_bytes: u64,
    /// Allocations served.
    pub allocations: u64,
    /// Requests that this tier could not serve, whether or not another could.
    pub failures: u64,
    /// Live folios of each order, from order 0.
    pub folios_by_order: [u64; 19],
}

// SAFETY: repr(C); a word, two texts of 16 and 25 words leave no padding; integers only.
unsafe impl SizedStruct for DaxtierTierStats {
    const NAME: &'static str = "daxtier_tier_stats";
    const FIRST_SIZE: usize = 240;
}

/// Where a byte lies.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DaxtierPlacement {
    /// Set by the caller: sizeof(struct daxtier_placement).
    pub size: usize,
    /// The pgmap.
    pub pgmap: pgmap::DaxtierPgmap,
    /// Page of the pgmap that the byte is in.
    pub offset: u64,
    /// Number of the tier, 0 the fastest.
    pub tier: u32,
    /// Order of the folio that the page is in.
    pub order: u32,
    /// "fast" or "slow".
    pub tier_name: [c_char; 16],
    /// Name of the device, such as "/dev/dax0.0"; cut where it is longer.
    pub device: [c_char; 128],
}

// SAFETY: repr(C); three words, two halves, texts of 16 and 128 leave no padding; integers only.
unsafe impl SizedStruct for DaxtierPlacement {
    const NAME: &'static str = "daxtier_placement";
    const FIRST_SIZE: usize = 176;
}

const _: () = {
    assert!(size_of::<DaxtierStats>() == DaxtierStats::FIRST_SIZE);
    assert!(size_of::<DaxtierTierStats>() == DaxtierTierStats::FIRST_SIZE);
    assert!(size_of::<DaxtierPlacement>() == DaxtierPlacement::FIRST_SIZE);
};

/// The pools that C has open.
pub(crate) static POOLS: Table<Pool> = Table::new(0xD1, "pool");

/// Opens a pool.
///
/// `config` is a configuration in the grammar that the environment, files and the daxtier program share: settings as
/// "KEY=VALUE", separated by blanks or new lines, such as "fast=64M slow=emulated:2G policy=fill". See
/// the README. "fast=80%" says no more than the defaults do. stats and on_error have no effect here. Environment
/// variables are not read.
///
/// Threads: any number at once. Blocks: on the kernel and the devices.
/// After fork: the child has a copy of its own, under the same number, as far as its devices allow.
/// Signal handlers: not allowed. Lifetime: `config` is not used after the call; close the pool with daxtier_close().
/// Returns 0; DAXTIER_ENULL; DAXTIER_ECONFIG when the text is wrong (daxtier_last_error() names the word);
/// DAXTIER_ENODEV, DAXTIER_EBUSY or another negative errno value when a device cannot be had; DAXTIER_ENOMEM.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_open(config: *const c_char, pool: *mut DaxtierPool) -> c_int {
    guard(|| {
        non_null(pool, "pool")?;
        // SAFETY: the C contract: NULL or a NUL-terminated text that nobody writes to.
        let config = unsafe { text::read(config, "config") }?;
        let config = Config::parse(config).map_err(|error| failure!(DAXTIER_ECONFIG, "{error}"))?;
        let opened = Pool::open(&config).map_err(|error| pool_failure(&error))?;
        runtime::join();
        let handle = POOLS.insert(opened)?;
        // SAFETY: the C contract: room for one handle; checked not to be NULL.
        unsafe { pool.write(handle) };
        Ok(())
    })
}

/// Closes a pool and gives its devices back, unless folios or blocks of it are in use.
///
/// With DAXTIER_EBUSY the pool stays open and as it was; `folios` then receives up to `capacity` of the live folios,
/// and `nr_folios` how many there are, which may be more, or 0 when only blocks are in use. Set folios[0].size: it
/// says how long each element is. Both may be NULL, `folios` only with capacity 0.
///
/// Threads: one, while no other call for this pool is under way. Blocks: on the kernel. After fork: works in the
/// child, for its copy. Signal handlers: not allowed. Lifetime: the pool's number and every address in the pool end
/// with success.
/// Returns 0; DAXTIER_EHANDLE; DAXTIER_EBUSY; DAXTIER_ENULL, DAXTIER_ESIZE for `folios`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_close(
    pool: DaxtierPool,
    folios: *mut DaxtierFolioInfo,
    capacity: usize,
    nr_folios: *mut usize,
) -> c_int {
    guard(|| {
        // SAFETY: the C contract: room for `capacity` elements, each as long as the first says, and for a count.
        let list = unsafe { FolioList::new(folios, capacity, nr_folios) }?;
        POOLS.close_with(pool, |pool| {
            let busy = match pool.close() {
                Ok(()) => return Ok(()),
                Err(busy) => busy,
            };
            match busy {
                CloseError::Busy { pool, folios, heap_bytes, .. } => {
                    // SAFETY: as above.
                    unsafe { list.fill(&folios, |id| tier_in(&pool, id)) };
                    let failure = failure!(
                        DAXTIER_EBUSY,
                        "{} folios and {heap_bytes} bytes of blocks are in use",
                        folios.len()
                    );
                    Err((Some(pool), failure))
                }
                other => Err((None, Failure::errno(libc::EBUSY, format_args!("{other}")))),
            }
        })
    })
}

/// Writes figures of a pool. Gives free memory of the heap back to its tiers first, so that they show what is in use.
///
/// Threads: any number at once. Blocks: briefly, on the pool's locks. After fork: the child's copy has its own.
/// Signal handlers: not allowed. Lifetime: `stats` is not used after the call.
/// Returns 0; DAXTIER_EHANDLE; DAXTIER_ENULL; DAXTIER_ESIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_stats(pool: DaxtierPool, stats: *mut DaxtierStats) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL or a structure that begins with its size.
        let size = unsafe { sized::check_out(stats) }?;
        let figures = POOLS.get(pool)?.stats();
        let value = DaxtierStats {
            size,
            failures: figures.failures,
            nr_tiers: figures.tiers.len() as u32,
            pid: figures.pid,
            policy: text::field(&figures.policy),
            last_failure: text::field(figures.last_failure.as_deref().unwrap_or("")),
        };
        // SAFETY: `size` bytes are there, as the structure says itself.
        unsafe { sized::write(stats, size, &value) };
        Ok(())
    })
}

/// Writes figures of one tier of a pool; 0 is the fastest. Takes DAXTIER_DEFAULT_POOL.
///
/// Threads: any number at once. Blocks: briefly, on the pool's locks. After fork: the child's copy has its own.
/// Signal handlers: not allowed. Lifetime: `stats` is not used after the call.
/// Returns 0; DAXTIER_ENOENT past the last tier; DAXTIER_EHANDLE; DAXTIER_ENODEV without a default pool;
/// DAXTIER_ENULL; DAXTIER_ESIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_tier_stats(
    pool: DaxtierPool,
    tier: u32,
    stats: *mut DaxtierTierStats,
) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL or a structure that begins with its size.
        let size = unsafe { sized::check_out(stats) }?;
        let past_the_last = || failure!(DAXTIER_ENOENT, "the pool has no tier {tier}");
        let value = if pool == DAXTIER_DEFAULT_POOL {
            DaxtierTierStats::from(&runtime::default_tier_stats(tier)?.ok_or_else(past_the_last)?)
        } else {
            let figures = POOLS.get(pool)?.stats();
            let tier = figures.tiers.get(tier as usize).ok_or_else(past_the_last)?;
            DaxtierTierStats::from(&LinkTierStats::from(tier))
        };
        // SAFETY: `size` bytes are there, as the structure says itself.
        unsafe { sized::write(stats, size, &value) };
        Ok(())
    })
}

/// Says where the byte at `address` lies now. Takes DAXTIER_DEFAULT_POOL, which here stands for every pool of the
/// process, the preload library's and other copies' included.
///
/// Threads: any number at once. Blocks: briefly, on the lock of the byte's slot. After fork: answers for this
/// process. Signal handlers: not allowed. Lifetime: the answer holds until the memory is freed or moved.
/// Returns 0; DAXTIER_EFOREIGN when the byte is in no folio of the pool; DAXTIER_EHANDLE; DAXTIER_ENULL;
/// DAXTIER_ESIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_where(
    pool: DaxtierPool,
    address: *const c_void,
    placement: *mut DaxtierPlacement,
) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL or a structure that begins with its size.
        let size = unsafe { sized::check_out(placement) }?;
        let address = address.cast::<u8>();
        let value = if pool == DAXTIER_DEFAULT_POOL {
            POOLS
                .find_map(|_, pool| pool.where_is(address))
                .map(|found| DaxtierPlacement::from(&found))
                .or_else(|| runtime::where_is(address).map(|found| DaxtierPlacement::from(&found)))
        } else {
            POOLS.get(pool)?.where_is(address).map(|found| DaxtierPlacement::from(&found))
        };
        let value = value.ok_or_else(|| foreign(address))?;
        // SAFETY: `size` bytes are there, as the structure says itself.
        unsafe { sized::write(placement, size, &value) };
        Ok(())
    })
}

impl From<&Placement> for DaxtierPlacement {
    fn from(found: &Placement) -> DaxtierPlacement {
        let pgmap = pgmap::number_of(found.pgmap);
        DaxtierPlacement { pgmap, ..DaxtierPlacement::from(&LinkPlacement::from(found)) }
    }
}

impl From<&LinkPlacement> for DaxtierPlacement {
    fn from(found: &LinkPlacement) -> DaxtierPlacement {
        DaxtierPlacement {
            size: size_of::<DaxtierPlacement>(),
            // Another copy numbers its pgmaps itself; they cannot be used through this one.
            pgmap: 0,
            offset: found.offset,
            tier: found.tier,
            order: found.order,
            tier_name: text::field(field_text(&found.tier_name)),
            device: text::field(field_text(&found.device)),
        }
    }
}

impl From<&LinkTierStats> for DaxtierTierStats {
    fn from(tier: &LinkTierStats) -> DaxtierTierStats {
        DaxtierTierStats {
            size: size_of::<DaxtierTierStats>(),
            name: text::field(field_text(&tier.name)),
            kind: text::field(field_text(&tier.kind)),
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

/// Refuses a NULL output.
pub(crate) fn non_null<T>(out: *mut T, name: &str) -> Result<(), Failure> {
    if out.is_null() { Err(failure!(DAXTIER_ENULL, "{name} is NULL")) } else { Ok(()) }
}

#[cold]
pub(crate) fn foreign(address: *const u8) -> Failure {
    failure!(DAXTIER_EFOREIGN, "{:#x} is not memory of this pool", address.addr())
}

pub(crate) fn not_a_block(error: &NotABlock) -> Failure {
    match error {
        NotABlock::Freed { .. } => failure!(DAXTIER_ESTALE, "{error}"),
        _ => failure!(DAXTIER_EFOREIGN, "{error}"),
    }
}

pub(crate) fn pool_failure(error: &PoolError) -> Failure {
    match error {
        PoolError::Config(_) => failure!(DAXTIER_ECONFIG, "{error}"),
        _ => Failure::errno(error.errno(), format_args!("{error}")),
    }
}

pub(crate) fn alloc_failure(error: &AllocError) -> Failure {
    match error {
        AllocError::Alignment { .. } => failure!(DAXTIER_EALIGN, "{error}"),
        AllocError::NotABlock(error) => not_a_block(error),
        AllocError::NoSuchTier { .. } => failure!(DAXTIER_ENODEV, "{error}"),
        AllocError::Exhausted { refusal, .. } => match refusal {
            None | Some(FolioError::Exhausted { .. } | FolioError::LimitReached { .. }) => {
                failure!(DAXTIER_ENOMEM, "{error}")
            }
            Some(refusal) => failure!(folio_code(refusal), "{error}"),
        },
        AllocError::Folio(error) => folio_failure(error),
        _ => Failure::errno(error.errno(), format_args!("{error}")),
    }
}
