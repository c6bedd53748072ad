//! Descriptors of our own: close-on-exec, and numbered high so that programs that count or re-use low numbers
//! do not meet them. Those that stay open are kept in [`descriptors`](super::descriptors).

use crate::error::SysError;
use libc::c_uint;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The lowest number that a descriptor of ours takes, where the limit on open files allows.
pub(crate) const FIRST_OWN_DESCRIPTOR: i32 = 512;

/// Creates a memfd of `len_bytes` bytes (sparse), close-on-exec. Allocates nothing.
///
/// # Errors
/// The refusal of memfd_create or ftruncate.
pub(crate) fn memfd(name: &CStr, len_bytes: u64) -> Result<OwnedFd, SysError> {
    memfd_with(name, 0, len_bytes)
}

/// Creates a memfd as [`memfd`] does, with flags of memfd_create besides.
pub(super) fn memfd_with(name: &CStr, flags: c_uint, len_bytes: u64) -> Result<OwnedFd, SysError> {
    // SAFETY: `name` is NUL-terminated and lives through the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | flags) };
    if fd < 0 {
        return Err(SysError::last("memfd_create"));
    }
    // SAFETY: memfd_create just returned this descriptor; nobody else owns it.
    let fd = move_high(unsafe { OwnedFd::from_raw_fd(fd) });
    set_len(&fd, len_bytes)?;
    Ok(fd)
}

/// Sets a file's length. The kernel ends a process with a signal where its limit on the size of files is lower, so that is
/// looked at before.
fn set_len(fd: &OwnedFd, len_bytes: u64) -> Result<(), SysError> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` has room for the answer.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) } == 0;
    if known && limit.rlim_cur < len_bytes {
        return Err(SysError { call: "ftruncate under `ulimit -f`", errno: libc::EFBIG });
    }
    // SAFETY: ftruncate takes a descriptor that the caller owns, and no pointer.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), len_bytes as libc::off_t) } != 0 {
        return Err(SysError::last("ftruncate"));
    }
    Ok(())
}

/// Moves a descriptor to a high number, or to the upper half of the numbers where the limit on open files is low; keeps it
/// where it is when none is free there.
pub(crate) fn move_high(fd: OwnedFd) -> OwnedFd {
    // SAFETY: an all-zero limit is a valid value that the call overwrites.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is a local.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let lowest = (limit.rlim_cur / 2).min(FIRST_OWN_DESCRIPTOR as libc::rlim_t) as libc::c_int;
    // SAFETY: fcntl with F_DUPFD_CLOEXEC takes a descriptor that we own, and no pointer.
    let high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) };
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
pub(crate) fn punch_hole(fd: impl AsFd, offset_bytes: u64, len_bytes: u64) -> Result<(), SysError> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate takes a descriptor that we own, and no pointer.
    let rc = unsafe {
        libc::fallocate(fd.as_fd().as_raw_fd(), mode, offset_bytes as libc::off_t, len_bytes as libc::off_t)
    };
    if rc == 0 { Ok(()) } else { Err(SysError::last("fallocate")) }
}

/// Has the kernel find memory for `[offset, offset + len_bytes)` of a memfd now.
///
/// # Errors
/// The refusal of fallocate.
pub(crate) fn allocate(fd: impl AsFd, offset_bytes: u64, len_bytes: u64) -> Result<(), SysError> {
    let mode = libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate takes a descriptor that we own, and no pointer.
    let rc = unsafe {
        libc::fallocate(fd.as_fd().as_raw_fd(), mode, offset_bytes as libc::off_t, len_bytes as libc::off_t)
    };
    if rc == 0 { Ok(()) } else { Err(SysError::last("fallocate")) }
}

/// Which file a descriptor refers to. The program may close our descriptors and open its own under the same
/// numbers, so a descriptor is compared with this before anything is mapped through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    /// The file system's device number.
    pub(crate) dev: u64,
    /// The inode number.
    pub(crate) ino: u64,
}

/// What fstat says of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileStat {
    /// Which file it is.
    pub(crate) id: FileId,
    /// Type and permission bits (`st_mode`).
    pub(crate) mode: u32,
    /// Device numbers (major, minor) of a character or block device.
    pub(crate) rdev: (u32, u32),
    /// Length of a regular file.
    pub(crate) len_bytes: u64,
}

/// Looks at the file behind descriptor `fd`.
///
/// # Errors
/// The refusal of fstat: `EBADF` when no file is open under this number.
pub(crate) fn stat(fd: RawFd) -> Result<FileStat, SysError> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat writes one struct stat, which outlives the call; a wrong number only makes it fail.
    if unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0 {
        return Err(SysError::last("fstat"));
    }
    // SAFETY: fstat returned success and filled the struct.
    let stat = unsafe { stat.assume_init() };
    Ok(FileStat {
        id: FileId { dev: stat.st_dev, ino: stat.st_ino },
        mode: stat.st_mode,
        rdev: (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)),
        len_bytes: stat.st_size as u64,
    })
}

/// Reads the start of a file, as far as the buffer goes. Neither allocates nor uses stdio, so it works inside `malloc` and
/// around a fork.
pub(crate) fn read_start<'a>(path: &CStr, text: &'a mut [u8]) -> Option<&'a [u8]> {
    // SAFETY: the path is NUL-terminated.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the buffer is writable for its length.
    let read = unsafe { libc::read(fd, text.as_mut_ptr().cast(), text.len()) };
    // SAFETY: the descriptor was opened above.
    unsafe { libc::close(fd) };
    text.get(..usize::try_from(read).ok()?)
}

/// Opens a file for reading and writing, close-on-exec, under a high number.
///
/// # Errors
/// The refusal of open.
pub(crate) fn open_read_write(path: &CStr) -> Result<OwnedFd, SysError> {
    let flags = libc::O_RDWR | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: `path` is NUL-terminated and lives through the call.
    let fd = unsafe { libc::open(path.as_ptr(), flags) };
    if fd < 0 {
        return Err(SysError::last("open"));
    }
    // SAFETY: open just returned this descriptor; nobody else owns it.
    Ok(move_high(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Returns whether permissions let this process open the file at `path` for reading, or also for writing.
pub(crate) fn may_open(path: &Path, for_writing: bool) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let mode = if for_writing { libc::R_OK | libc::W_OK } else { libc::R_OK };
    // SAFETY: `path` is NUL-terminated and lives through the call.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) == 0 }
}

/// Returns the user that this process acts as.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}
