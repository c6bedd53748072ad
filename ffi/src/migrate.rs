//! Moving blocks between tiers: at once, in the background, and not at all.
//!
//! [`MOVES`] holds the requests that C waits for. Uses the core's `Pool` and its tickets.

use crate::alloc::{DAXTIER_TIER_FAST, DAXTIER_TIER_SLOW};
use crate::error::*;
use crate::handle::Table;
use crate::pool::{DaxtierPool, POOLS, non_null};
use crate::sized::{self, SizedStruct};
use daxtier_core::policy::TierName;
use daxtier_core::runtime::{MigrateError, MigrationCounts, Outcome, Ticket};
use std::ffi::{c_int, c_void};
use std::time::Duration;

/// A request to move memory that is under way.
pub type DaxtierMove = u64;

/// What came of the slots of 2 MiB that were to be moved: how many had which outcome.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DaxtierMigration {
    /// Set by the caller: sizeof(struct daxtier_migration).
    pub size: usize,
    /// Moved.
    pub moved: u64,
    /// In the tier already.
    pub already_there: u64,
    /// Nothing of the pool was there.
    pub gone: u64,
    /// Pinned with daxtier_pin().
    pub kept: u64,
    /// Of a kind that is not moved: neither tier is DRAM, or a copy of a parent process's memory.
    pub not_movable: u64,
    /// A page is pinned for direct I/O.
    pub pinned: u64,
    /// The program may do direct I/O, and pinned pages of a device can't be told from others.
    pub direct_io: u64,
    /// A page is shared with a forked process.
    pub forked: u64,
    /// The program locked or protected a page.
    pub locked: u64,
    /// The process is near the limit of mappings (vm.max_map_count).
    pub map_limit: u64,
    /// The tier is full.
    pub no_space: u64,
    /// The machine has no memory for the copy.
    pub no_memory: u64,
    /// The device's memory can't be had.
    pub device: u64,
    /// The kernel refused a call that it should not refuse.
    pub refused: u64,
    /// Cancelled before.
    pub cancelled: u64,
}

// SAFETY: repr(C); sixteen words leave no padding; integers only.
unsafe impl SizedStruct for DaxtierMigration {
    const NAME: &'static str = "daxtier_migration";
    const FIRST_SIZE: usize = 128;
}

const _: () = assert!(size_of::<DaxtierMigration>() == DaxtierMigration::FIRST_SIZE);

/// The requests that C has not freed.
static MOVES: Table<Ticket> = Table::new(0xD3, "move");

/// Moves the slots of 2 MiB that a range touches to a tier, and waits until something has come of each. `tier` is
/// DAXTIER_TIER_FAST or DAXTIER_TIER_SLOW.
///
/// Addresses stay, and other threads may use the memory all the while; who touches what is just being moved waits for
/// less than a millisecond as a rule. A slot that can't be moved stays where it is: `counts`, which may be NULL, says
/// how many had which outcome. Only blocks move, never folios. The first call of a process starts two threads.
///
/// Threads: any number at once. Blocks: until the slots are moved. After fork: moves the child's own memory.
/// Signal handlers: not allowed. Lifetime: `counts` is not used after the call.
/// Returns 0; DAXTIER_ENOTSUP when the configuration says migrate=off; DAXTIER_EPERM when the process may not (see
/// `daxtier doctor`), or another negative errno value when the kernel can't; DAXTIER_EFOREIGN when the range is not in blocks; DAXTIER_ECHOICE; DAXTIER_ENODEV when the pool has
/// no such tier; DAXTIER_EHANDLE; DAXTIER_ESIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_migrate(
    pool: DaxtierPool,
    address: *const c_void,
    size: usize,
    tier: u64,
    counts: *mut DaxtierMigration,
) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL or a structure that begins with its size.
        let out = unsafe { CountsOut::new(counts) }?;
        let pool = POOLS.get(pool)?;
        let done = pool.migrate(address.cast(), size, tier_name(tier)?);
        // SAFETY: as above.
        unsafe { out.write(&done.map_err(|error| migrate_failure(&error))?) };
        Ok(())
    })
}

/// As daxtier_migrate(), without waiting. The request is freed with daxtier_move_free(), which does not stop it.
///
/// Threads: any number at once. Blocks: briefly. After fork: as daxtier_migrate(); the parent's requests are not the
/// child's. Signal handlers: not allowed. Lifetime: the number is the caller's until daxtier_move_free().
/// Returns as daxtier_migrate(); DAXTIER_EBUSY when too many requests are waiting; DAXTIER_ENULL; DAXTIER_ELIMIT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_migrate_async(
    pool: DaxtierPool,
    address: *const c_void,
    size: usize,
    tier: u64,
    request: *mut DaxtierMove,
) -> c_int {
    guard(|| {
        non_null(request, "request")?;
        let pool = POOLS.get(pool)?;
        let ticket = pool.migrate_async(address.cast(), size, tier_name(tier)?);
        let handle = MOVES.insert(ticket.map_err(|error| migrate_failure(&error))?)?;
        // SAFETY: the C contract: room for one handle; checked not to be NULL.
        unsafe { request.write(handle) };
        Ok(())
    })
}

/// Waits until something has come of every slot of a request, at most `timeout_ms` milliseconds, and writes what has
/// come of how many so far. `counts` may be NULL.
///
/// Threads: any number at once. Blocks: up to `timeout_ms`. After fork: the parent's requests never end in the child.
/// Signal handlers: not allowed. Lifetime: `counts` is not used after the call.
/// Returns 0; DAXTIER_ETIMEDOUT, with `counts` written, when the time is up before; DAXTIER_EHANDLE; DAXTIER_ESIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_move_wait(
    request: DaxtierMove,
    timeout_ms: u32,
    counts: *mut DaxtierMigration,
) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL or a structure that begins with its size.
        let out = unsafe { CountsOut::new(counts) }?;
        let ticket = MOVES.get(request)?;
        let so_far = ticket.wait(Duration::from_millis(timeout_ms.into()));
        // SAFETY: as above.
        unsafe { out.write(&so_far) };
        if ticket.is_done() {
            Ok(())
        } else {
            Err(failure!(DAXTIER_ETIMEDOUT, "memory is still being moved"))
        }
    })
}

/// Lets the slots of a request that nothing has come of yet stay where they are.
///
/// Threads: any number at once. Blocks: no. After fork: has no effect on the parent's requests. Signal handlers: not
/// allowed. Lifetime: the request is still to be freed.
/// Returns 0; DAXTIER_EHANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_move_cancel(request: DaxtierMove) -> c_int {
    guard(|| {
        MOVES.get(request)?.cancel();
        Ok(())
    })
}

/// Frees the number of a request. A request that is under way goes on.
///
/// Threads: one, while no other call for this request is under way. Blocks: no. After fork: works in the child.
/// Signal handlers: not allowed. Lifetime: ends the number.
/// Returns 0; DAXTIER_EHANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_move_free(request: DaxtierMove) -> c_int {
    guard(|| {
        MOVES.close_with(request, |ticket| {
            drop(ticket);
            Ok(())
        })
    })
}

/// Says in which tier a range is wanted: it is moved there in the background as far as possible. Nothing moves by
/// itself in this version, so it stays there until somebody asks for another tier.
///
/// Threads: any number at once. Blocks: briefly. After fork: as daxtier_migrate(). Signal handlers: not allowed.
/// Lifetime: nothing is kept.
/// Returns as daxtier_migrate_async().
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_prefer(pool: DaxtierPool, address: *const c_void, size: usize, tier: u64) -> c_int {
    guard(|| {
        let wanted = POOLS.get(pool)?.prefer(address.cast(), size, tier_name(tier)?);
        wanted.map_err(|error| migrate_failure(&error))
    })
}

/// Keeps the slots of 2 MiB that a range touches where they are until daxtier_unpin(): for direct I/O, RDMA, and
/// futexes that processes share. When the call returns none of them is being moved. Pins count; they end with the
/// memory.
///
/// Threads: any number at once. Blocks: while a slot of the range is being moved. After fork: the child has the pins
/// too. Signal handlers: not allowed. Lifetime: until daxtier_unpin() of the same range, or the end of the memory.
/// Returns 0; DAXTIER_EFOREIGN when the range is not in blocks; DAXTIER_EHANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_pin(pool: DaxtierPool, address: *const c_void, size: usize) -> c_int {
    guard(|| POOLS.get(pool)?.pin(address.cast(), size).map_err(|error| migrate_failure(&error)))
}

/// Ends a daxtier_pin() of the same range.
///
/// Threads: any number at once. Blocks: as daxtier_pin(). After fork: works on the child's own pins. Signal handlers:
/// not allowed. Lifetime: nothing is kept.
/// Returns as daxtier_pin().
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_unpin(pool: DaxtierPool, address: *const c_void, size: usize) -> c_int {
    guard(|| POOLS.get(pool)?.unpin(address.cast(), size).map_err(|error| migrate_failure(&error)))
}

/// Room for counts, or none.
struct CountsOut {
    counts: *mut DaxtierMigration,
    size: usize,
}

impl CountsOut {
    /// # Safety
    /// `counts` is NULL or a structure that begins with its size.
    unsafe fn new(counts: *mut DaxtierMigration) -> Result<CountsOut, Failure> {
        // SAFETY: the caller argued it.
        let size = if counts.is_null() { 0 } else { unsafe { sized::check_out(counts) }? };
        Ok(CountsOut { counts, size })
    }

    /// # Safety
    /// The structure is still there.
    unsafe fn write(self, counts: &MigrationCounts) {
        if self.counts.is_null() {
            return;
        }
        let get = |outcome| counts.get(outcome);
        let value = DaxtierMigration {
            size: self.size,
            moved: get(Outcome::Moved),
            already_there: get(Outcome::Already),
            gone: get(Outcome::Gone),
            kept: get(Outcome::Kept),
            not_movable: get(Outcome::Kind),
            pinned: get(Outcome::Pinned),
            direct_io: get(Outcome::DirectIo),
            forked: get(Outcome::Forked),
            locked: get(Outcome::Locked),
            map_limit: get(Outcome::MapLimit),
            no_space: get(Outcome::NoSpace),
            no_memory: get(Outcome::NoMemory),
            device: get(Outcome::Device),
            refused: get(Outcome::Refused),
            cancelled: get(Outcome::Cancelled),
        };
        // SAFETY: `size` bytes are there, as the structure says itself.
        unsafe { sized::write(self.counts, self.size, &value) };
    }
}

fn tier_name(tier: u64) -> Result<TierName, Failure> {
    match tier {
        DAXTIER_TIER_FAST => Ok(TierName::Fast),
        DAXTIER_TIER_SLOW => Ok(TierName::Slow),
        other => Err(failure!(DAXTIER_ECHOICE, "{other:#x} names no tier: use one DAXTIER_TIER_ flag")),
    }
}

fn migrate_failure(error: &MigrateError) -> Failure {
    match error {
        MigrateError::Foreign { .. } => failure!(DAXTIER_EFOREIGN, "{error}"),
        MigrateError::Disabled => failure!(DAXTIER_ENOTSUP, "{error}"),
        MigrateError::NoSuchTier { .. } => failure!(DAXTIER_ENODEV, "{error}"),
        _ => Failure::errno(error.errno(), format_args!("{error}")),
    }
}
