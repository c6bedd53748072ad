//! Memory mappings.
//!
//! [`Reservation`] owns a range of address space; the functions map things into it. Callers own the argument
//! that the range they replace is theirs.
//!
//! The preload library stands in for the C library's functions that change mappings, and keeps programs from changing
//! ours. So those calls are made by number here.

use super::text::{Contents, read_regular};
use crate::error::SysError;
use crate::units::PAGE_SIZE;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::ptr::{self, NonNull};

/// Address space that is reserved (PROT_NONE, no memory) and given back on drop.
#[derive(Debug)]
pub(crate) struct Reservation {
    base: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: a Reservation is an address range; it holds no thread-bound state, and all access to the memory
// inside goes through raw pointers whose users argue their own synchronisation.
unsafe impl Send for Reservation {}
// SAFETY: as for Send: shared references only read the two plain fields.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Reserves `len_bytes` of address space whose start is a multiple of `align_bytes` (a power of two).
    ///
    /// # Errors
    /// The refusal of mmap, for instance under RLIMIT_AS.
    pub(crate) fn new(len_bytes: usize, align_bytes: usize) -> Result<Reservation, SysError> {
        Reservation::make(len_bytes, align_bytes, libc::PROT_NONE)
    }

    /// Takes `len_bytes` of address space at a multiple of a page, mapped as by [`map_anonymous`].
    ///
    /// # Errors
    /// The refusal of mmap.
    pub(crate) fn new_mapped(len_bytes: usize) -> Result<Reservation, SysError> {
        Reservation::make(len_bytes, PAGE_SIZE, READ_WRITE)
    }

    fn make(len_bytes: usize, align_bytes: usize, prot: libc::c_int) -> Result<Reservation, SysError> {
        debug_assert!(align_bytes.is_power_of_two());
        // The kernel's own choice is a multiple of a page.
        let slack = if align_bytes <= PAGE_SIZE { 0 } else { align_bytes };
        let padded = len_bytes
            .checked_next_multiple_of(PAGE_SIZE)
            .and_then(|len_bytes| len_bytes.checked_add(slack))
            .ok_or(SysError { call: "mmap", errno: libc::ENOMEM })?;
        // SAFETY: without MAP_FIXED the kernel picks unused addresses, so no mapping of anybody is replaced.
        let raw = unsafe { libc::mmap(ptr::null_mut(), padded, prot, RESERVE_FLAGS, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(SysError::last("mmap"));
        }
        let start = raw.addr();
        let aligned = start.next_multiple_of(align_bytes);
        let base = raw.cast::<u8>().with_addr(aligned);
        unmap_if_any(raw.cast(), aligned - start);
        unmap_if_any(base.with_addr(aligned + len_bytes), start + padded - (aligned + len_bytes));
        Ok(Reservation { base: NonNull::new(base).expect("mmap never returns NULL here"), len_bytes })
    }

    /// Returns the first address.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Returns the length in bytes.
    pub(crate) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Returns the address `offset_bytes` into the reservation, or `None` past its end.
    pub(crate) fn at(&self, offset_bytes: usize) -> Option<NonNull<u8>> {
        // SAFETY: the offset was just checked to lie inside the reservation, which is one allocated range.
        (offset_bytes < self.len_bytes).then(|| unsafe { self.base.add(offset_bytes) })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        unmap_if_any(self.base.as_ptr(), self.len_bytes);
    }
}

const RESERVE_FLAGS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

fn unmap_if_any(addr: *mut u8, len_bytes: usize) {
    if len_bytes > 0 {
        // SAFETY: callers pass ranges of a reservation that they own and no longer use.
        unsafe { libc::syscall(libc::SYS_munmap, addr, len_bytes) };
    }
}

/// Maps fresh private anonymous memory (read and write) over `[addr, addr + len_bytes)`.
///
/// # Safety
/// The range belongs to the caller's own reservation, and nobody uses what is mapped there now.
///
/// # Errors
/// The refusal of mmap; the old mapping is then still in place.
pub(crate) unsafe fn map_anonymous(addr: NonNull<u8>, len_bytes: usize) -> Result<(), SysError> {
    // SAFETY: the caller owns the range.
    unsafe { map_fixed(addr, len_bytes, READ_WRITE, RESERVE_FLAGS, -1, 0) }
}

/// Maps `fd` from `offset_bytes` on, shared, read and write, over `[addr, addr + len_bytes)`.
///
/// # Safety
/// As for [`map_anonymous`].
///
/// # Errors
/// The refusal of mmap; the old mapping is then still in place.
pub(crate) unsafe fn map_shared(
    addr: NonNull<u8>,
    len_bytes: usize,
    fd: BorrowedFd<'_>,
    offset_bytes: u64,
) -> Result<(), SysError> {
    // SAFETY: the caller owns the range.
    unsafe {
        map_fixed(addr, len_bytes, READ_WRITE, libc::MAP_SHARED, fd.as_raw_fd(), offset_bytes as libc::off_t)
    }
}

/// Puts a reserved hole (PROT_NONE, no memory) back over `[addr, addr + len_bytes)`.
///
/// # Safety
/// As for [`map_anonymous`].
///
/// # Errors
/// The refusal of mmap; the old mapping is then still in place.
pub(crate) unsafe fn map_reserved(addr: NonNull<u8>, len_bytes: usize) -> Result<(), SysError> {
    // SAFETY: the caller owns the range.
    unsafe { map_fixed(addr, len_bytes, libc::PROT_NONE, RESERVE_FLAGS, -1, 0) }
}

const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// # Safety
/// As for [`map_anonymous`].
unsafe fn map_fixed(
    addr: NonNull<u8>,
    len_bytes: usize,
    prot: libc::c_int,
    flags: libc::c_int,
    fd: libc::c_int,
    offset_bytes: libc::off_t,
) -> Result<(), SysError> {
    // SAFETY: the caller owns the range that MAP_FIXED replaces.
    let raw = unsafe {
        libc::mmap(addr.as_ptr().cast(), len_bytes, prot, flags | libc::MAP_FIXED, fd, offset_bytes)
    };
    if raw == libc::MAP_FAILED { Err(SysError::last("mmap")) } else { Ok(()) }
}

/// Gives `advice` (`libc::MADV_*`) for `[addr, addr + len_bytes)`.
///
/// # Safety
/// The range belongs to the caller, and the advice does not drop data that anybody still needs.
///
/// # Errors
/// The refusal of madvise.
pub(crate) unsafe fn advise(
    addr: NonNull<u8>,
    len_bytes: usize,
    advice: libc::c_int,
) -> Result<(), SysError> {
    // SAFETY: the caller owns the range and argued the advice.
    let rc = unsafe { libc::syscall(libc::SYS_madvise, addr.as_ptr(), len_bytes, advice) };
    if rc == 0 { Ok(()) } else { Err(SysError::last("madvise")) }
}

/// Makes every page of `[addr, addr + len_bytes)` exist, writable without a fault if `for_writing` (Linux 5.14).
///
/// # Safety
/// The range is mapped and the caller's.
///
/// # Errors
/// The refusal of madvise: `EINVAL` from a kernel that does not know the advice, `ENOMEM` without memory, `EFAULT` and
/// `EHWPOISON` for a device that is gone or damaged.
pub(crate) unsafe fn populate(
    addr: NonNull<u8>,
    len_bytes: usize,
    for_writing: bool,
) -> Result<(), SysError> {
    let advice = if for_writing { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
    // SAFETY: the caller owns the range; populating it drops no data.
    unsafe { advise(addr, len_bytes, advice) }
}

/// Lets the kernel take pages of `[addr, addr + len_bytes)` back that mlockall has locked.
///
/// # Safety
/// The range is mapped and the caller's.
///
/// # Errors
/// The refusal of munlock.
pub(crate) unsafe fn unlock(addr: NonNull<u8>, len_bytes: usize) -> Result<(), SysError> {
    // SAFETY: the caller owns the range.
    let rc = unsafe { libc::syscall(libc::SYS_munlock, addr.as_ptr(), len_bytes) };
    if rc == 0 { Ok(()) } else { Err(SysError::last("munlock")) }
}

/// Gives `[addr, addr + len_bytes)` back to the kernel.
///
/// # Safety
/// The range belongs to the caller, who does not use it again.
pub(crate) unsafe fn unmap(addr: NonNull<u8>, len_bytes: usize) {
    unmap_if_any(addr.as_ptr(), len_bytes);
}

/// Moves the mapping at `[from, from + len_bytes)` to `to`, replacing what is mapped there.
///
/// # Safety
/// Both ranges belong to the caller, and nobody uses what is mapped at `to`.
///
/// # Errors
/// The refusal of mremap; both mappings are then as before.
pub(crate) unsafe fn move_mapping(
    from: NonNull<u8>,
    len_bytes: usize,
    to: NonNull<u8>,
) -> Result<(), SysError> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the caller owns both ranges.
    let moved =
        unsafe { libc::syscall(libc::SYS_mremap, from.as_ptr(), len_bytes, len_bytes, flags, to.as_ptr()) };
    if moved == -1 { Err(SysError::last("mremap")) } else { Ok(()) }
}

/// Returns the process's limit on addresses (`ulimit -v`), or `None` where it has none.
pub(crate) fn address_limit() -> Option<u64> {
    // SAFETY: the place has room for the answer.
    limit(|place| unsafe { libc::getrlimit(libc::RLIMIT_AS, place) })
}

/// Returns the process's limit on private writable memory, used or not (`ulimit -d`), or `None` where it has none.
pub(crate) fn data_limit() -> Option<u64> {
    // SAFETY: the place has room for the answer.
    limit(|place| unsafe { libc::getrlimit(libc::RLIMIT_DATA, place) })
}

fn limit(read: impl FnOnce(&mut libc::rlimit) -> libc::c_int) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    (read(&mut limit) == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Returns whether the kernel counts private writable memory, used or not, and refuses what it could not keep
/// (`vm.overcommit_memory` is 2).
pub(crate) fn counts_what_is_unused() -> bool {
    let mode = read_regular(Path::new("/proc/sys/vm/overcommit_memory"), 16);
    matches!(mode, Ok(Contents::Bytes(mode)) if mode.trim_ascii() == b"2")
}

/// Returns the length of the kernel's pages.
pub(crate) fn kernel_page_bytes() -> u64 {
    // SAFETY: sysconf takes a number.
    let answer = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(answer).unwrap_or(PAGE_SIZE as u64)
}
