//! Byte-range locks that belong to an open file description (`F_OFD_SETLK`).
//!
//! Such a lock is seen by every other open of the same inode, in this process too, and goes away when the last
//! descriptor and the last mapping of the description are gone, those of forked children included.

use crate::error::SysError;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Takes an exclusive lock on a byte range without waiting. Returns `false` when another open holds a part of it.
///
/// # Errors
/// The refusal of fcntl for any other reason.
pub(crate) fn try_lock(fd: BorrowedFd<'_>, range: &Range<u64>) -> Result<bool, SysError> {
    match set(fd, range, libc::F_WRLCK) {
        Ok(()) => Ok(true),
        Err(SysError { errno: libc::EAGAIN | libc::EACCES, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives a byte range back.
///
/// # Errors
/// The refusal of fcntl.
pub(crate) fn unlock(fd: BorrowedFd<'_>, range: &Range<u64>) -> Result<(), SysError> {
    set(fd, range, libc::F_UNLCK)
}

fn set(fd: BorrowedFd<'_>, range: &Range<u64>, kind: libc::c_int) -> Result<(), SysError> {
    let mut lock = describe(range, kind);
    loop {
        // SAFETY: the descriptor is borrowed for the call, and fcntl reads one flock that outlives it.
        let rc = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) };
        if rc == 0 {
            return Ok(());
        }
        let error = SysError::last("fcntl(F_OFD_SETLK)");
        if error.errno != libc::EINTR {
            return Err(error);
        }
    }
}

/// Returns a range that conflicts with `range` and the lock owner that the kernel names (-1 for an open file
/// description's lock), or `None` when nobody holds a part of it.
///
/// # Errors
/// The refusal of fcntl.
pub(crate) fn conflict(
    fd: BorrowedFd<'_>,
    range: &Range<u64>,
) -> Result<Option<(Range<u64>, i32)>, SysError> {
    let mut lock = describe(range, libc::F_WRLCK);
    // SAFETY: the descriptor is borrowed for the call, and fcntl writes one flock that outlives it.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } != 0 {
        return Err(SysError::last("fcntl(F_OFD_GETLK)"));
    }
    if libc::c_int::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let start = lock.l_start as u64;
    // A length of zero means up to the largest offset.
    let end = if lock.l_len == 0 { u64::MAX } else { start + lock.l_len as u64 };
    Ok(Some((start..end, lock.l_pid)))
}

/// Describes a range for fcntl; callers keep ranges inside a device, so below 2^63, and not empty.
fn describe(range: &Range<u64>, kind: libc::c_int) -> libc::flock {
    debug_assert!(range.start < range.end && range.end <= i64::MAX as u64);
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start as libc::off_t,
        l_len: (range.end - range.start) as libc::off_t,
        l_pid: 0,
    }
}
