//! Descriptors of our own: close-on-exec, and numbered high so that programs that count or re-use low numbers
//! do not meet them.

use crate::error::SysError;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The lowest number that a descriptor of ours takes, where the limit on open files allows.
const FIRST_OWN_DESCRIPTOR: i32 = 512;

/// Creates a memfd of `len_bytes` bytes (sparse), close-on-exec.
///
/// # Errors
/// The refusal of memfd_create or ftruncate.
pub(crate) fn memfd(name: &CStr, len_bytes: u64) -> Result<OwnedFd, SysError> {
    // SAFETY: `name` is NUL-terminated and lives through the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(SysError::last("memfd_create"));
    }
    // SAFETY: memfd_create just returned this descriptor; nobody else owns it.
    let fd = move_high(unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: ftruncate takes a descriptor that we own, and no pointer.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), len_bytes as libc::off_t) } != 0 {
        return Err(SysError::last("ftruncate"));
    }
    Ok(fd)
}

/// Moves a descriptor to a high number; keeps it where it is when the limit on open files is too low for that.
pub(crate) fn move_high(fd: OwnedFd) -> OwnedFd {
    // SAFETY: fcntl with F_DUPFD_CLOEXEC takes a descriptor that we own, and no pointer.
    let high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FIRST_OWN_DESCRIPTOR) };
    if high < 0 {
        return fd;
    }
    // SAFETY: fcntl just returned this descriptor; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(high) }
}

/// Gives the memory behind `[offset, offset + len_bytes)` of a memfd back to the kernel; it reads as zero after.
///
/// # Errors
/// The refusal of fallocate.
pub(crate) fn punch_hole(fd: &OwnedFd, offset_bytes: u64, len_bytes: u64) -> Result<(), SysError> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate takes a descriptor that we own, and no pointer.
    let rc = unsafe {
        libc::fallocate(fd.as_raw_fd(), mode, offset_bytes as libc::off_t, len_bytes as libc::off_t)
    };
    if rc == 0 { Ok(()) } else { Err(SysError::last("fallocate")) }
}
