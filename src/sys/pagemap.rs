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

/// The kernel's `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// The kernel's `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `PAGEMAP_SCAN` of the kernel's `include/uapi/linux/fs.h`.
const PAGEMAP_SCAN: libc::c_ulong = 3 << 30 | (size_of::<Scan>() as libc::c_ulong) << 16 | 0x66 << 8 | 16;
const PAGE_IS_HUGE: u64 = 1 << 6;

const _: () = assert!(PAGEMAP_SCAN == 0xc060_6610);

/// Whether all of `[addr, addr + len_bytes)` is mapped by huge pages. `None` where the kernel does not tell (before Linux
/// 6.7). Allocates nothing.
pub(crate) fn is_huge(addr: NonNull<u8>, len_bytes: usize) -> Option<bool> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: the path is NUL-terminated.
    let fd = unsafe { libc::open(c"/proc/self/pagemap".as_ptr(), flags) };
    if fd < 0 {
        return None;
    }
    let start = addr.as_ptr().addr() as u64;
    let end = start + len_bytes as u64;
    let mut region = Region::default();
    let mut scan = Scan {
        size: size_of::<Scan>() as u64,
        start,
        end,
        vec: (&raw mut region).expose_provenance() as u64,
        vec_len: 1,
        category_mask: PAGE_IS_HUGE,
        return_mask: PAGE_IS_HUGE,
        ..Scan::default()
    };
    // SAFETY: the request takes the structure, which names a region; both outlive the call.
    let found = unsafe { libc::ioctl(fd, PAGEMAP_SCAN as libc::Ioctl, &raw mut scan) };
    // SAFETY: the descriptor was opened above.
    unsafe { libc::close(fd) };
    (found >= 0).then_some(found == 1 && region.start == start && region.end == end)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::sys::mm::{self, Reservation};

    const HUGE: usize = 2 << 20;

    #[test]
    fn a_huge_page_is_told_from_small_ones_and_from_none() {
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE] {
            let range = Reservation::new(HUGE, HUGE).unwrap();
            // SAFETY: the reservation is this test's own.
            unsafe { mm::map_anonymous(range.base(), HUGE) }.unwrap();
            // SAFETY: just mapped; the advice drops nothing.
            let _ = unsafe { mm::advise(range.base(), HUGE, advice) };
            let Some(is_empty_huge) = is_huge(range.base(), HUGE) else {
                eprintln!("skipped: this kernel does not tell");
                return;
            };
            assert!(!is_empty_huge, "nothing is there yet");
            // SAFETY: just mapped.
            unsafe { range.base().write(1) };
            // The write brought the whole huge page, or one small page.
            let brought = range.at(HUGE - PAGE_SIZE).unwrap();
            let mut resident = 0u8;
            // SAFETY: the page lies in the range, and the buffer has a byte for it.
            unsafe { libc::mincore(brought.as_ptr().cast(), PAGE_SIZE, &raw mut resident) };
            assert_eq!(is_huge(range.base(), HUGE), Some(resident & 1 == 1), "{advice}");
        }
    }
}
