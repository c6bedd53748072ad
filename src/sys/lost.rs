//! Addresses that answer every access with SIGBUS: what stands for memory that is lost, where there is no device any more.

use super::{file, mm};
use crate::error::SysError;
use std::os::fd::AsFd;
use std::ptr::NonNull;

/// Maps nothing over `[addr, addr + len_bytes)`, in a way that a child inherits: every access there is a SIGBUS. Allocates
/// nothing.
///
/// # Safety
/// As for [`mm::map_anonymous`].
///
/// # Errors
/// The refusal of memfd_create or mmap; the old mapping is then still in place.
pub(crate) unsafe fn map_lost(addr: NonNull<u8>, len_bytes: usize) -> Result<(), SysError> {
    // Beyond the end of a file there is no memory. The mapping keeps the file.
    let empty = file::memfd(c"daxtier-lost", 0)?;
    // SAFETY: the caller owns the range.
    unsafe { mm::map_shared(addr, len_bytes, empty.as_fd(), 0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bus_error;
    use crate::sys::mm::Reservation;
    use crate::units::PAGE_SIZE;

    #[test]
    fn an_access_to_what_is_lost_is_a_bus_error() {
        let room = Reservation::new_mapped(2 * PAGE_SIZE).unwrap();
        let second = room.at(PAGE_SIZE).unwrap();
        // SAFETY: the reservation is this test's own.
        unsafe { map_lost(second, PAGE_SIZE) }.unwrap();
        // SAFETY: as above, and nobody else uses it.
        assert_eq!(unsafe { bus_error::clear(room.base(), PAGE_SIZE) }, Ok(()));
        // SAFETY: as above.
        let lost = unsafe { bus_error::clear(second, PAGE_SIZE) }.unwrap_err();
        assert!(!lost.is_damaged && lost.addr == second.as_ptr().addr(), "{lost:?}");
    }
}
