//! Moving blocks between tiers: at once, in the background, and not at all.
//!
//! [`MOVES`] holds the requests that C waits for. Uses the core's `Pool` and its tickets, and for the default pool what the
//! copy of daxtier offers whose pool that is.

use crate::alloc::{DAXTIER_TIER_FAST, DAXTIER_TIER_SLOW};
use crate::error::*;
use crate::handle::Table;
use crate::pool::{DAXTIER_DEFAULT_POOL, DaxtierPool, POOLS, non_null};
use crate::runtime;
use crate::sized::{self, SizedStruct};
use daxtier_core::policy::TierName;
use daxtier_core::runtime::link::{LinkMigrationStats, RuntimeV1};
use daxtier_core::runtime::{MigrateError, Outcome, Ticket};
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

/// What came of all requests to move a pool's memory in this process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DaxtierMigrationStats {
    /// Set by the caller: sizeof(struct daxtier_migration_stats).
    pub size: usize,
    /// How many slots of 2 MiB had which outcome. Its size is set by the call.
    pub counts: DaxtierMigration,
    /// Huge pages of DRAM that were made for the next promotions, beyond the capacity of the fast tier: given back half a
    /// second after the last move.
    pub staged_bytes: u64,
    /// Moved slots that were blocked for at most 1, 2, 4, ... microseconds, each counted once: what a thread that
    /// stores to one waits at most.
    pub blocked_us: [u64; 32],
    /// The same of the whole move, preparation included.
    pub total_us: [u64; 32],
}

// SAFETY: repr(C); words alone leave no padding; integers only.
unsafe impl SizedStruct for DaxtierMigrationStats {
    const NAME: &'static str = "daxtier_migration_stats";
    const FIRST_SIZE: usize = 656;
}

const _: () = assert!(size_of::<DaxtierMigrationStats>() == DaxtierMigrationStats::FIRST_SIZE);

/// A request that C has not freed.
enum Move {
    /// Of a pool of this copy.
    Own(Ticket),
    /// Of the copy whose pool is the default, by its number there.
    Other(&'static RuntimeV1, u64),
}

/// Counts in the order of [`Outcome::ALL`].
type Counts = [u64; Outcome::ALL.len()];

impl Move {
    fn begin(pool: DaxtierPool, address: *const c_void, size: usize, tier: u64) -> Result<Move, Failure> {
        let name = tier_name(tier)?;
        if pool == DAXTIER_DEFAULT_POOL {
            let number = if name == TierName::Fast { 1 } else { 2 };
            let (owner, request) = runtime::default_migrate(address.cast(), size, number)?;
            return Ok(Move::Other(owner, request));
        }
        let ticket = POOLS.get(pool)?.migrate_async(address.cast(), size, name);
        ticket.map(Move::Own).map_err(|error| migrate_failure(&error))
    }

    /// As `begin`, waiting while too many requests wait.
    fn begin_patiently(
        pool: DaxtierPool,
        address: *const c_void,
        size: usize,
        tier: u64,
    ) -> Result<Move, Failure> {
        loop {
            match Move::begin(pool, address, size, tier) {
                Err(failure) if failure.code() == DAXTIER_EBUSY => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                outcome => return outcome,
            }
        }
    }

    /// Waits; returns whether it is done, and what has come of how many slots.
    fn wait(&self, timeout_ms: u32) -> Result<(bool, Counts), Failure> {
        match self {
            Move::Own(ticket) => {
                let so_far = ticket.wait(Duration::from_millis(timeout_ms.into()));
                Ok((ticket.is_done(), Outcome::ALL.map(|outcome| so_far.get(outcome))))
            }
            Move::Other(owner, request) => {
                let so_far = runtime::wait_for(owner, *request, timeout_ms)?;
                Ok((so_far.is_done == 1, std::array::from_fn(|at| so_far.counts[at])))
            }
        }
    }

    fn wait_to_the_end(&self) -> Result<Counts, Failure> {
        loop {
            let (is_done, counts) = self.wait(u32::MAX)?;
            if is_done {
                return Ok(counts);
            }
        }
    }

    /// Gives the request's number back where another copy has it.
    fn forget(self) {
        if let Move::Other(owner, request) = self {
            // Refused for a number that is not there any more, which is what is wanted.
            let _ = runtime::forget(owner, request);
        }
    }
}

/// The requests that C has not freed.
static MOVES: Table<Move> = Table::new(0xD3, "move");

/// Moves the slots of 2 MiB that a range touches to a tier, and waits until something has come of each. `tier` is
/// DAXTIER_TIER_FAST or DAXTIER_TIER_SLOW. Takes DAXTIER_DEFAULT_POOL, as all calls here that name a pool: the range is
/// then of malloc(3) under the preload library.
///
/// Addresses stay, and other threads may use the memory all the while; who touches what is just being moved waits for
/// less than a millisecond as a rule. A slot that can't be moved stays where it is: `counts`, which may be NULL, says
/// how many had which outcome. Only blocks move, never folios. The first call of a process starts the library's
/// workers and a thread beside them.
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
        let request = Move::begin_patiently(pool, address, size, tier)?;
        let counts = request.wait_to_the_end();
        request.forget();
        // SAFETY: as above.
        unsafe { out.write(&counts?) };
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
        let handle = MOVES.insert(Move::begin(pool, address, size, tier)?)?;
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
        let (is_done, so_far) = MOVES.get(request)?.wait(timeout_ms)?;
        // SAFETY: as above.
        unsafe { out.write(&so_far) };
        if is_done { Ok(()) } else { Err(failure!(DAXTIER_ETIMEDOUT, "memory is still being moved")) }
    })
}

/// Lets the slots of a request that nothing has come of yet stay where they are.
///
/// Threads: any number at once. Blocks: no. After fork: has no effect on the parent's requests. Signal handlers: not
/// allowed. Lifetime: the request is still to be freed.
/// Returns 0; DAXTIER_EHANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_move_cancel(request: DaxtierMove) -> c_int {
    guard(|| match MOVES.get(request)? {
        Move::Own(ticket) => {
            ticket.cancel();
            Ok(())
        }
        Move::Other(owner, request) => runtime::cancel(owner, *request),
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
        MOVES.close_with(request, |request| {
            request.forget();
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
        Move::begin(pool, address, size, tier)?.forget();
        Ok(())
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
    guard(|| match pool {
        DAXTIER_DEFAULT_POOL => runtime::default_pin(address.cast(), size, true),
        pool => POOLS.get(pool)?.pin(address.cast(), size).map_err(|error| migrate_failure(&error)),
    })
}

/// Ends a daxtier_pin() of the same range.
///
/// Threads: any number at once. Blocks: as daxtier_pin(). After fork: works on the child's own pins. Signal handlers:
/// not allowed. Lifetime: nothing is kept.
/// Returns as daxtier_pin().
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_unpin(pool: DaxtierPool, address: *const c_void, size: usize) -> c_int {
    guard(|| match pool {
        DAXTIER_DEFAULT_POOL => runtime::default_pin(address.cast(), size, false),
        pool => POOLS.get(pool)?.unpin(address.cast(), size).map_err(|error| migrate_failure(&error)),
    })
}

/// Writes what came of all requests to move the pool's memory. Takes DAXTIER_DEFAULT_POOL. A forked child's begin anew.
///
/// Threads: any number at once; the figures may be a moment apart. Blocks: no. After fork: works on the child's own.
/// Signal handlers: not allowed. Lifetime: `stats` is not used after the call.
/// Returns 0; DAXTIER_EHANDLE; DAXTIER_ENODEV when there is no default pool; DAXTIER_ENULL; DAXTIER_ESIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_migration_stats(
    pool: DaxtierPool,
    stats: *mut DaxtierMigrationStats,
) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL or a structure that begins with its size.
        let size = unsafe { sized::check_out(stats) }?;
        let found = match pool {
            DAXTIER_DEFAULT_POOL => runtime::default_migration_stats()?,
            pool => LinkMigrationStats::from(&POOLS.get(pool)?.migration_stats()),
        };
        let counts = std::array::from_fn(|at| found.counts[at]);
        let value = DaxtierMigrationStats {
            size,
            counts: DaxtierMigration::of(size_of::<DaxtierMigration>(), &counts),
            staged_bytes: found.staged_bytes,
            blocked_us: found.blocked,
            total_us: found.total,
        };
        // SAFETY: `size` bytes are there, as the structure says itself.
        unsafe { sized::write(stats, size, &value) };
        Ok(())
    })
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
    unsafe fn write(self, counts: &Counts) {
        if self.counts.is_null() {
            return;
        }
        let value = DaxtierMigration::of(self.size, counts);
        // SAFETY: `size` bytes are there, as the structure says itself.
        unsafe { sized::write(self.counts, self.size, &value) };
    }
}

impl DaxtierMigration {
    fn of(size: usize, counts: &Counts) -> DaxtierMigration {
        let get = |outcome: Outcome| counts[outcome as usize];
        DaxtierMigration {
            size,
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
        }
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
