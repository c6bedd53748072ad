//! Devices that come and go while a pool is in use: add, drain, resume, remove.
//!
//! Uses the core's `Pool`.

use crate::error::*;
use crate::pool::{DaxtierPool, POOLS, pool_failure};
use crate::sized::{self, SizedStruct};
use crate::text;
use daxtier_core::runtime::config::SlowSpec;
use daxtier_core::runtime::{DeviceChangeError, Held, HeldBy};
use std::ffi::{c_char, c_int, c_void};
use std::time::Duration;

/// A piece of a device that is still in use: held by blocks that malloc handed out.
pub const DAXTIER_HELD_BLOCKS: u32 = 1;
/// A piece of a device that is still in use: held by a folio, which never moves.
pub const DAXTIER_HELD_FOLIO: u32 = 2;
/// A piece of a device that was just left, and is free in a moment.
pub const DAXTIER_HELD_SETTLING: u32 = 3;

/// A piece of a device that is still in use.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DaxtierHeld {
    /// Set by the caller: sizeof(struct daxtier_held).
    pub size: usize,
    /// Where it is in the device's pgmap, in pages.
    pub offset: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Where the program sees it; NULL if it never asked.
    pub address: *mut c_void,
    /// The folio's user word, see daxtier_folio_set_user(); 0 for blocks.
    pub user: u64,
    /// DAXTIER_HELD_BLOCKS, DAXTIER_HELD_FOLIO or DAXTIER_HELD_SETTLING.
    pub holder: u32,
    /// References to the folio; 0 for blocks.
    pub ref_count: u32,
    /// What stands in the way of moving it, for a person to read.
    pub reason: [c_char; 64],
}

// SAFETY: repr(C); five words, two halves and a text of 64 leave no padding; integers and a pointer.
unsafe impl SizedStruct for DaxtierHeld {
    const NAME: &'static str = "daxtier_held";
    const FIRST_SIZE: usize = 112;
}

const _: () = assert!(size_of::<DaxtierHeld>() == DaxtierHeld::FIRST_SIZE);

/// Adds a slow device to a pool. Memory is placed there from now on.
///
/// `device` is written as in the setting slow=, such as "/dev/dax1.0" or "/dev/dax1.0,size=4G".
///
/// Threads: any number at once. Blocks: on the kernel and the device. After fork: adds to the child's copy of the pool.
/// Signal handlers: not allowed. Lifetime: `device` is not used after the call.
/// Returns 0; DAXTIER_ECONFIG when the text is wrong; DAXTIER_ENODEV when there is no such device or the pool has no slow
/// tier; DAXTIER_EBUSY or another negative errno value when the device cannot be had or is there already;
/// DAXTIER_EHANDLE; DAXTIER_ENULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_device_add(pool: DaxtierPool, device: *const c_char) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL or a NUL-terminated text that nobody writes to.
        let device = unsafe { text::read(device, "device") }?;
        let spec: SlowSpec = device.parse().map_err(|error| failure!(DAXTIER_ECONFIG, "{error}"))?;
        POOLS.get(pool)?.add_device(&spec).map_err(|error| change_failure(&error))
    })
}

/// Places nothing more on a slow device, and moves what is there to other devices or to DRAM, until nothing is left or
/// the time is up. `device` is its name as daxtier_where() gives it.
///
/// With DAXTIER_ETIMEDOUT things are left: `held` receives up to `capacity` of them and `nr_held` how many there are,
/// which may be more. They stay valid; another call tries again. Set held[0].size: it says how long each element is. Both
/// may be NULL, `held` only with capacity 0. Folios never move: their holders put them.
///
/// Threads: any number at once, and others may use the memory meanwhile. Blocks: up to about `timeout_ms`. After fork:
/// drains the child's own device. Signal handlers: not allowed. Lifetime: nothing is kept.
/// Returns 0 when the device is drained; DAXTIER_ETIMEDOUT; DAXTIER_ENODEV when the pool has no such device;
/// DAXTIER_EHANDLE; DAXTIER_ENULL; DAXTIER_ESIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_device_drain(
    pool: DaxtierPool,
    device: *const c_char,
    timeout_ms: u32,
    held: *mut DaxtierHeld,
    capacity: usize,
    nr_held: *mut usize,
) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL or a structure that begins with its size.
        let size = if capacity == 0 { 0 } else { unsafe { sized::check_out(held) }? };
        // SAFETY: the C contract: NULL or a NUL-terminated text that nobody writes to.
        let device = unsafe { text::read(device, "device") }?;
        let report = POOLS.get(pool)?.drain_device(device, Duration::from_millis(timeout_ms.into()));
        let report = report.map_err(|error| change_failure(&error))?;
        for (at, piece) in report.held.iter().take(capacity).enumerate() {
            // SAFETY: `at` is below the capacity, and the elements are as long as the first says.
            unsafe { sized::write_element(held, size, at, &DaxtierHeld::from(piece)) };
        }
        if !nr_held.is_null() {
            // SAFETY: the C contract: NULL or room for a count.
            unsafe { nr_held.write(report.held.len()) };
        }
        match (report.held.first(), &report.immovable) {
            (None, _) => Ok(()),
            (Some(first), None) => Err(failure!(
                DAXTIER_ETIMEDOUT,
                "{device}: {} pieces are in use, the first: {first}",
                report.held.len()
            )),
            (Some(_), Some(reason)) => Err(failure!(
                DAXTIER_ETIMEDOUT,
                "{device}: {} pieces are in use ({reason})",
                report.held.len()
            )),
        }
    })
}

/// Lets a device that is drained, or being drained, serve again.
///
/// Threads: any number at once. Blocks: briefly. After fork: as daxtier_device_add(). Signal handlers: not allowed.
/// Lifetime: nothing is kept.
/// Returns 0; DAXTIER_EINVAL when it serves already; DAXTIER_ENODEV when the pool has no such device; DAXTIER_EHANDLE;
/// DAXTIER_ENULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_device_resume(pool: DaxtierPool, device: *const c_char) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL or a NUL-terminated text that nobody writes to.
        let device = unsafe { text::read(device, "device") }?;
        POOLS.get(pool)?.resume_device(device).map_err(|error| change_failure(&error))
    })
}

/// Takes a drained device out of a pool, so that other processes can have it.
///
/// Threads: any number at once. Blocks: on the kernel. After fork: as daxtier_device_add(). Signal handlers: not allowed.
/// Lifetime: nothing is kept.
/// Returns 0; DAXTIER_EBUSY while something is left on it; DAXTIER_EINVAL before it was drained; DAXTIER_ENODEV when the
/// pool has no such device; DAXTIER_EHANDLE; DAXTIER_ENULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_device_remove(pool: DaxtierPool, device: *const c_char) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL or a NUL-terminated text that nobody writes to.
        let device = unsafe { text::read(device, "device") }?;
        POOLS.get(pool)?.remove_device(device).map_err(|error| change_failure(&error))
    })
}

/// Changes how many bytes of a slow device this process uses at most; all of it with UINT64_MAX. What is idle above that is
/// given back, so that other processes can claim it. `excess_bytes`, which may be NULL, receives how much is claimed beyond it,
/// in extents of 128 MiB of which something is in use: what is there stays valid, nothing more is claimed until it is less, and
/// daxtier_release_idle() gives back what becomes idle.
/// Rounded down to the device's granule.
///
/// Threads: any number at once. Blocks: on the kernel, and on clearing the memory with scrub=on-release. After fork: as
/// daxtier_device_add(). Signal handlers: not allowed. Lifetime: nothing is kept.
/// Returns 0; DAXTIER_ENODEV when the pool has no such device; DAXTIER_EHANDLE; DAXTIER_ENULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_device_resize(
    pool: DaxtierPool,
    device: *const c_char,
    size_bytes: u64,
    excess_bytes: *mut u64,
) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL or a NUL-terminated text that nobody writes to.
        let device = unsafe { text::read(device, "device") }?;
        let size_bytes = (size_bytes != u64::MAX).then_some(size_bytes);
        let excess = POOLS.get(pool)?.resize_device(device, size_bytes);
        let excess = excess.map_err(|error| change_failure(&error))?;
        if !excess_bytes.is_null() {
            // SAFETY: the C contract: NULL or room for a number.
            unsafe { excess_bytes.write(excess) };
        }
        Ok(())
    })
}

/// Gives parts of slow devices back of which nothing is in use, so that other processes can claim them. `released_bytes`, which
/// may be NULL, receives how much that was. The pool claims anew when it needs more.
///
/// Threads: any number at once. Blocks: on the kernel, and on clearing the memory with scrub=on-release. After fork: as
/// daxtier_device_add(). Signal handlers: not allowed. Lifetime: nothing is kept.
/// Returns 0; DAXTIER_EHANDLE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_release_idle(pool: DaxtierPool, released_bytes: *mut u64) -> c_int {
    guard(|| {
        let released = POOLS.get(pool)?.release_idle();
        if !released_bytes.is_null() {
            // SAFETY: the C contract: NULL or room for a number.
            unsafe { released_bytes.write(released) };
        }
        Ok(())
    })
}

impl From<&Held> for DaxtierHeld {
    fn from(held: &Held) -> DaxtierHeld {
        let (holder, ref_count, user, reason) = match held.holder {
            HeldBy::Blocks(outcome) => (
                DAXTIER_HELD_BLOCKS,
                0,
                0,
                outcome.map_or("not moved yet", daxtier_core::runtime::Outcome::as_str),
            ),
            HeldBy::Folio { ref_count, user } => (DAXTIER_HELD_FOLIO, ref_count, user, "folios never move"),
            // The core may know more holders than this version of the interface.
            _ => (DAXTIER_HELD_SETTLING, 0, 0, "just left"),
        };
        DaxtierHeld {
            size: size_of::<DaxtierHeld>(),
            offset: held.offset,
            len_bytes: held.len_bytes,
            address: held.address.map_or(std::ptr::null_mut(), std::ptr::with_exposed_provenance_mut),
            user,
            holder,
            ref_count,
            reason: text::field(reason),
        }
    }
}

fn change_failure(error: &DeviceChangeError) -> Failure {
    match error {
        DeviceChangeError::Open(error) => pool_failure(error),
        DeviceChangeError::NoSlowTier | DeviceChangeError::NoSuchDevice { .. } => {
            failure!(DAXTIER_ENODEV, "{error}")
        }
        DeviceChangeError::InUse { .. } | DeviceChangeError::AlreadyThere { .. } => {
            failure!(DAXTIER_EBUSY, "{error}")
        }
        DeviceChangeError::Serving { .. } => failure!(DAXTIER_EINVAL, "{error}"),
        _ => Failure::errno(error.errno(), format_args!("{error}")),
    }
}
