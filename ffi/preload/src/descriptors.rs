//! The calls that close or re-use descriptors: to the program, ours are not open.
//!
//! A daemon closes every number that it does not know, a shell puts files under numbers of its choice. Ours stay, and a number
//! that the program wants becomes free. A call that meets none of ours goes on untouched after one comparison, or two.

use crate::{next, set_errno};
use daxtier::runtime::descriptors::{self, Errno};
use libc::{c_int, c_uint};

/// Closes a descriptor of the program. See close(2).
///
/// # Safety
/// As close(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn close(fd: c_int) -> c_int {
    if descriptors::is_own(fd) {
        return answer(Err(libc::EBADF));
    }
    // SAFETY: the caller argued it.
    unsafe { next::close(fd) }
}

/// Closes a range of descriptors of the program. See close_range(2).
///
/// # Safety
/// As close_range(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    // With other flags nothing is closed: ours have the one already that CLOSE_RANGE_CLOEXEC sets.
    let closes = flags as c_uint & !libc::CLOSE_RANGE_UNSHARE == 0;
    let last_number = c_int::try_from(last).unwrap_or(c_int::MAX);
    match c_int::try_from(first) {
        Ok(first) if closes && descriptors::is_any_own(first, last_number) => {
            // SAFETY: takes a number only.
            if flags != 0 && unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
                return -1;
            }
            answer(close_gaps(first, last_number))
        }
        // SAFETY: the caller argued it.
        _ => unsafe { next::close_range(first, last, flags) },
    }
}

/// Closes the program's descriptors from a number on. See closefrom(3).
///
/// # Safety
/// As closefrom(3) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn closefrom(first: c_int) {
    // A kernel without the call, or a filter.
    if close_gaps(first.max(0), c_int::MAX).is_err() {
        close_one_by_one(first.max(0));
    }
}

/// Puts a descriptor under another number. See dup2(2).
///
/// # Safety
/// As dup2(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn dup2(from: c_int, to: c_int) -> c_int {
    if from != to {
        // SAFETY: the caller argued it.
        return unsafe { dup3(from, to, 0) };
    }
    // SAFETY: takes numbers only.
    let is_open = !descriptors::is_own(from) && unsafe { libc::fcntl(from, libc::F_GETFD) } >= 0;
    if is_open { to } else { answer(Err(libc::EBADF)) }
}

/// Puts a descriptor under another number. See dup3(2).
///
/// # Safety
/// As dup3(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    match make_room(from, to) {
        // SAFETY: the caller argued it.
        Ok(()) => unsafe { next::dup3(from, to, flags) },
        refusal => answer(refusal),
    }
}

/// Looks at both numbers before a descriptor is put under another.
fn make_room(from: c_int, to: c_int) -> Result<(), Errno> {
    if descriptors::is_own(from) {
        return Err(libc::EBADF);
    }
    if descriptors::is_own(to) { descriptors::vacate(to) } else { Ok(()) }
}

fn close_gaps(first: c_int, last: c_int) -> Result<(), Errno> {
    descriptors::for_each_gap(first, last, |first, last| {
        // SAFETY: takes numbers only; these are the program's to close.
        let outcome = unsafe { next::close_range(first as c_uint, last as c_uint, 0) };
        if outcome == 0 { Ok(()) } else { Err(errno()) }
    })
}

#[cold]
fn close_one_by_one(first: c_int) {
    // SAFETY: an all-zero limit is a valid value that the call overwrites.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is a local.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    for fd in first..c_int::try_from(limit.rlim_cur).unwrap_or(c_int::MAX) {
        // SAFETY: ours are passed over.
        unsafe { close(fd) };
    }
}

fn answer(outcome: Result<(), Errno>) -> c_int {
    match outcome {
        Ok(()) => 0,
        Err(errno) => {
            set_errno(errno);
            -1
        }
    }
}

fn errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
