//! The part of the table that moves memory of another copy's default pool: the preload library's, as a rule.
//!
//! A request crosses as a number of the copy that has it; outcomes cross as counts in the order of
//! [`Outcome::ALL`](super::super::Outcome::ALL), with room for later ones.

use super::{Errno, guarded, guarded_into};
use std::ffi::{c_int, c_void};

/// How many outcomes a structure has room for.
pub const MOST_OUTCOMES: usize = 24;
/// How many buckets a histogram has.
const NR_BUCKETS: usize = 32;

/// How far a request has come.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkMoves {
    /// 1 when something has come of every slot.
    pub is_done: u64,
    /// Slots by outcome.
    pub counts: [u64; MOST_OUTCOMES],
}

/// What came of all requests of a pool.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkMigrationStats {
    /// Slots by outcome.
    pub counts: [u64; MOST_OUTCOMES],
    /// Huge pages that are kept for the next move.
    pub staged_bytes: u64,
    /// Moved slots by how long they were blocked, in powers of two of microseconds.
    pub blocked: [u64; NR_BUCKETS],
    /// Moved slots by how long the move took.
    pub total: [u64; NR_BUCKETS],
}

/// What one copy does for the others with the memory of its default pool. The default implementation has none.
///
/// # Errors
/// Every function: `ENODEV` when there is no default pool. Where a range is named `EINVAL` when it is not in blocks.
pub trait Moving {
    /// Asks for a range to be moved to a tier: 1 the fast one, 2 the slow one. Returns the request's number, which is
    /// given back with [`forget`](Moving::forget).
    ///
    /// # Errors
    /// `ENODEV` when the pool has no such tier, `EOPNOTSUPP` when the configuration forbids it, `EBUSY` when too many are
    /// waiting, `EPERM` and others when the kernel refuses.
    fn migrate(_ptr: *const u8, _len_bytes: usize, _tier: u32) -> Result<u64, Errno> {
        Err(libc::ENODEV)
    }

    /// Waits for a request, at most so long.
    ///
    /// # Errors
    /// `EINVAL` when there is no such request.
    fn wait(_request: u64, _timeout_ms: u32) -> Result<LinkMoves, Errno> {
        Err(libc::ENODEV)
    }

    /// Lets the slots of a request that nothing has come of stay where they are.
    ///
    /// # Errors
    /// As for [`wait`](Moving::wait).
    fn cancel(_request: u64) -> Result<(), Errno> {
        Err(libc::ENODEV)
    }

    /// Gives the number of a request back; the request goes on.
    ///
    /// # Errors
    /// As for [`wait`](Moving::wait).
    fn forget(_request: u64) -> Result<(), Errno> {
        Err(libc::ENODEV)
    }

    /// Keeps a range where it is, or ends that.
    ///
    /// # Errors
    /// As for all.
    fn pin(_ptr: *const u8, _len_bytes: usize, _is_pinned: bool) -> Result<(), Errno> {
        Err(libc::ENODEV)
    }

    /// Returns what came of all requests.
    ///
    /// # Errors
    /// As for all.
    fn migration_stats() -> Result<LinkMigrationStats, Errno> {
        Err(libc::ENODEV)
    }
}

/// The functions of [`Moving`], as the table's others: 0 or a negative `errno` value.
#[repr(C)]
#[derive(Debug)]
pub struct MovingV1 {
    /// See [`Moving::migrate`].
    pub migrate:
        unsafe extern "C" fn(ptr: *const c_void, len_bytes: usize, tier: u32, request: *mut u64) -> c_int,
    /// See [`Moving::wait`].
    pub wait: unsafe extern "C" fn(request: u64, timeout_ms: u32, out: *mut LinkMoves) -> c_int,
    /// See [`Moving::cancel`].
    pub cancel: unsafe extern "C" fn(request: u64) -> c_int,
    /// See [`Moving::forget`].
    pub forget: unsafe extern "C" fn(request: u64) -> c_int,
    /// See [`Moving::pin`]; `is_pinned` is 1 or 0.
    pub pin: unsafe extern "C" fn(ptr: *const c_void, len_bytes: usize, is_pinned: c_int) -> c_int,
    /// See [`Moving::migration_stats`].
    pub migration_stats: unsafe extern "C" fn(out: *mut LinkMigrationStats) -> c_int,
}

impl MovingV1 {
    /// Builds the functions of the copy that `R` implements.
    pub const fn of<R: Moving>() -> MovingV1 {
        MovingV1 {
            migrate: migrate::<R>,
            wait: wait::<R>,
            cancel: cancel::<R>,
            forget: forget::<R>,
            pin: pin::<R>,
            migration_stats: migration_stats::<R>,
        }
    }
}

unsafe extern "C" fn migrate<R: Moving>(
    ptr: *const c_void,
    len_bytes: usize,
    tier: u32,
    request: *mut u64,
) -> c_int {
    guarded_into(request, || R::migrate(ptr.cast(), len_bytes, tier))
}

unsafe extern "C" fn wait<R: Moving>(request: u64, timeout_ms: u32, out: *mut LinkMoves) -> c_int {
    guarded_into(out, || R::wait(request, timeout_ms))
}

unsafe extern "C" fn cancel<R: Moving>(request: u64) -> c_int {
    guarded(|| R::cancel(request))
}

unsafe extern "C" fn forget<R: Moving>(request: u64) -> c_int {
    guarded(|| R::forget(request))
}

unsafe extern "C" fn pin<R: Moving>(ptr: *const c_void, len_bytes: usize, is_pinned: c_int) -> c_int {
    guarded(|| R::pin(ptr.cast(), len_bytes, is_pinned != 0))
}

unsafe extern "C" fn migration_stats<R: Moving>(out: *mut LinkMigrationStats) -> c_int {
    guarded_into(out, R::migration_stats)
}
