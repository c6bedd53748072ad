//! The structures and numbers of the kernel's `include/uapi/linux/userfaultfd.h`.

use super::Event;
use std::ptr::NonNull;

pub(super) const UFFD_API: u64 = 0xaa;
pub(super) const USERFAULTFD_IOC_NEW: libc::c_ulong = request(NO_DATA, 0x00, 0);
pub(super) const UFFDIO_REGISTER: libc::c_ulong = request(READ_WRITE, 0x00, size_of::<UffdioRegister>());
pub(super) const UFFDIO_UNREGISTER: libc::c_ulong = request(READ, 0x01, size_of::<UffdioRange>());
pub(super) const UFFDIO_WAKE: libc::c_ulong = request(READ, 0x02, size_of::<UffdioRange>());
pub(super) const UFFDIO_COPY: libc::c_ulong = request(READ_WRITE, 0x03, size_of::<UffdioCopy>());
pub(super) const UFFDIO_MOVE: libc::c_ulong = request(READ_WRITE, 0x05, size_of::<UffdioMove>());
pub(super) const UFFDIO_WRITEPROTECT: libc::c_ulong =
    request(READ_WRITE, 0x06, size_of::<UffdioWriteprotect>());
pub(super) const UFFDIO_API: libc::c_ulong = request(READ_WRITE, 0x3f, size_of::<UffdioApi>());

const NO_DATA: libc::c_ulong = 0;
const READ: libc::c_ulong = 2;
const READ_WRITE: libc::c_ulong = 3;

/// Builds the number of a request as `_IOC` of the kernel's `asm-generic/ioctl.h` does.
const fn request(direction: libc::c_ulong, number: libc::c_ulong, len_bytes: usize) -> libc::c_ulong {
    const TYPE: libc::c_ulong = 0xaa;
    direction << 30 | (len_bytes as libc::c_ulong) << 16 | TYPE << 8 | number
}

const _: () = assert!(UFFDIO_MOVE == 0xc028_aa05 && UFFDIO_API == 0xc018_aa3f);

#[repr(C)]
pub(super) struct UffdioApi {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
pub(super) struct UffdioRange {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl UffdioRange {
    pub(super) fn new(addr: NonNull<u8>, len_bytes: usize) -> UffdioRange {
        UffdioRange { start: address(addr), len: len_bytes as u64 }
    }
}

#[repr(C)]
pub(super) struct UffdioRegister {
    pub(super) range: UffdioRange,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
pub(super) struct UffdioWriteprotect {
    pub(super) range: UffdioRange,
    pub(super) mode: u64,
}

#[repr(C)]
pub(super) struct UffdioCopy {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    /// What was copied, or a negative errno.
    pub(super) copied: i64,
}

#[repr(C)]
pub(super) struct UffdioMove {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    /// What was moved, or a negative errno.
    pub(super) moved: i64,
}

/// `struct uffd_msg`: an event's number and three words whose meaning depends on it.
#[repr(C)]
pub(super) struct UffdMsg {
    pub(super) event: u8,
    pub(super) reserved: [u8; 7],
    pub(super) words: [u64; 3],
}

const _: () = assert!(size_of::<UffdMsg>() == 32);

impl UffdMsg {
    pub(super) fn event(&self) -> Event {
        const PAGEFAULT: u8 = 0x12;
        const REMAP: u8 = 0x14;
        const FLAG_WRITE: u64 = 1 << 0;
        const FLAG_WP: u64 = 1 << 1;
        let [first, second, third] = self.words;
        match self.event {
            PAGEFAULT => Event::Fault {
                addr: second as usize,
                is_write: first & FLAG_WRITE != 0,
                is_protected: first & FLAG_WP != 0,
            },
            REMAP => Event::Remap { from: first as usize, to: second as usize, len_bytes: third as usize },
            other => Event::Other(other),
        }
    }
}

/// The kernel's form of an address.
pub(super) fn address(addr: NonNull<u8>) -> u64 {
    addr.as_ptr().expose_provenance() as u64
}
