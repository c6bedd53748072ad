//! A page that other processes may look at: a sealed memfd, mapped shared.
//!
//! Nothing here allocates, so a forked child may call all of it. The memfd can neither shrink nor grow, so that
//! nobody who opens it can make an access of its owner fault.

use super::file;
use crate::error::SysError;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

/// Creates a memfd of exactly `len_bytes` bytes for good, close-on-exec and numbered high.
///
/// # Errors
/// The refusal of memfd_create, ftruncate or fcntl.
pub(crate) fn sealed_memfd(name: &CStr, len_bytes: usize) -> Result<OwnedFd, SysError> {
    let fd = file::memfd_with(name, libc::MFD_ALLOW_SEALING, len_bytes as u64)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: fcntl with F_ADD_SEALS takes a descriptor that we own, and no pointer.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(SysError::last("fcntl"));
    }
    Ok(fd)
}

/// Maps `len_bytes` of `fd` (or fresh zeroed memory of this process alone, without one), readable and writable,
/// where the kernel likes.
///
/// # Errors
/// The refusal of mmap.
pub(crate) fn map_somewhere(len_bytes: usize, fd: Option<BorrowedFd<'_>>) -> Result<NonNull<u8>, SysError> {
    // SAFETY: without MAP_FIXED the kernel picks unused addresses, so no mapping of anybody is replaced.
    unsafe { map(ptr::null_mut(), len_bytes, 0, fd) }
}

/// Maps as [`map_somewhere`] does, over what is mapped at `addr`.
///
/// # Safety
/// `[addr, addr + len_bytes)` was mapped by the caller, who alone uses it and expects its contents to change.
///
/// # Errors
/// The refusal of mmap; the old mapping is then still in place.
pub(crate) unsafe fn map_over(
    addr: NonNull<u8>,
    len_bytes: usize,
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), SysError> {
    // SAFETY: the caller owns the range that MAP_FIXED replaces.
    unsafe { map(addr.as_ptr(), len_bytes, libc::MAP_FIXED, fd) }.map(drop)
}

/// # Safety
/// With MAP_FIXED in `flags`, as for [`map_over`].
unsafe fn map(
    addr: *mut u8,
    len_bytes: usize,
    flags: libc::c_int,
    fd: Option<BorrowedFd<'_>>,
) -> Result<NonNull<u8>, SysError> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let (flags, fd) = match fd {
        Some(fd) => (flags | libc::MAP_SHARED, fd.as_raw_fd()),
        None => (flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
    };
    // SAFETY: the caller owns what MAP_FIXED replaces; without it nothing is replaced.
    let raw = unsafe { libc::mmap(addr.cast(), len_bytes, prot, flags, fd, 0) };
    if raw == libc::MAP_FAILED {
        return Err(SysError::last("mmap"));
    }
    Ok(NonNull::new(raw.cast()).expect("mmap never returns NULL here"))
}

/// Takes a mapping of [`map_somewhere`] away.
///
/// # Safety
/// Nobody uses it any more.
pub(crate) unsafe fn unmap(addr: NonNull<u8>, len_bytes: usize) {
    // SAFETY: the caller gives the range up.
    unsafe { libc::syscall(libc::SYS_munmap, addr.as_ptr(), len_bytes) };
}
