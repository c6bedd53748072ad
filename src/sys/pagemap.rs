//! What the kernel tells of single pages of this process.

use crate::units::PAGE_SIZE;
use std::ptr::NonNull;

/// Returns whether the page at `addr` is this process's alone; `None` when no page is there or the kernel does not tell.
pub(crate) fn is_exclusive(addr: NonNull<u8>) -> Option<bool> {
    const PRESENT: u64 = 1 << 63;
    const EXCLUSIVE: u64 = 1 << 56;
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: the path is NUL-terminated.
    let fd = unsafe { libc::open(c"/proc/self/pagemap".as_ptr(), flags) };
    if fd < 0 {
        return None;
    }
    let mut entry = 0u64;
    let offset = (addr.as_ptr().addr() / PAGE_SIZE * size_of::<u64>()) as libc::off_t;
    // SAFETY: the buffer is one entry long.
    let read = unsafe { libc::pread(fd, (&raw mut entry).cast(), size_of::<u64>(), offset) };
    // SAFETY: the descriptor was opened above.
    unsafe { libc::close(fd) };
    (read == size_of::<u64>() as isize && entry & PRESENT != 0).then_some(entry & EXCLUSIVE != 0)
}
