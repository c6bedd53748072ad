//! The pgmap's own mapping: where the folio at an offset lies, without a walk.
//!
//! Address space for the whole device is reserved at bind; an extent is mapped into it the first time that
//! somebody asks for an address in it. Address and offset follow from each other by one subtraction. Extents of
//! shared devices are kept from forked children (MADV_DONTFORK). Uses `sys::mm` and the device.

use super::FolioError;
use super::body::Body;
use super::extents::byte_range;
use crate::device::DeviceKind;
use crate::error::SysError;
use crate::sys::bus_error;
use crate::sys::mm::{self, Reservation};
use crate::units::{Order, PAGE_SHIFT};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// The smallest alignment of the mapping: that of huge pages.
const MIN_ALIGN_BYTES: u64 = Order::HUGE.len_bytes();
/// Enough for the largest folio to be naturally aligned.
const MAX_ALIGN_BYTES: u64 = Order::GIANT.len_bytes();

/// The address range of a pgmap.
#[derive(Debug)]
pub(super) struct Direct {
    room: Reservation,
}

impl Direct {
    pub(super) fn new(len_bytes: u64, granule_bytes: u64) -> Result<Direct, SysError> {
        let natural = (1u64 << len_bytes.ilog2()).clamp(MIN_ALIGN_BYTES, MAX_ALIGN_BYTES);
        let align_bytes = granule_bytes.max(natural) as usize;
        Ok(Direct { room: Reservation::new(len_bytes as usize, align_bytes)? })
    }

    fn at(&self, offset: u64) -> Option<NonNull<u8>> {
        self.room.at(usize::try_from(offset.checked_shl(PAGE_SHIFT)?).ok()?)
    }
}

impl Body {
    /// Returns the address of `offset`, mapping its extent if need be.
    pub(super) fn address_of(&self, offset: u64) -> Result<NonNull<u8>, FolioError> {
        self.check_claimed(offset)?;
        self.ensure_mapped(self.extent_of(offset))?;
        self.direct.at(offset).ok_or(FolioError::NotClaimed { offset })
    }

    /// Returns the address of a folio, mapping all its extents if need be.
    pub(super) fn address_of_run(&self, offset: u64, order: Order) -> Result<NonNull<u8>, FolioError> {
        for index in self.extents_of(offset, order) {
            self.ensure_mapped(index)?;
        }
        self.address_of(offset)
    }

    /// Returns the page at `addr` of the pgmap's own mapping.
    pub(super) fn offset_of(&self, addr: *const u8) -> Option<u64> {
        let offset = addr.addr().checked_sub(self.direct.room.base().as_ptr().addr())? as u64 >> PAGE_SHIFT;
        (offset < self.nr_pages).then_some(offset)
    }

    /// Returns where the folio lies, if all of it is mapped.
    pub(super) fn mapped_address(&self, offset: u64, order: Order) -> Option<NonNull<u8>> {
        let is_mapped = self.extents_of(offset, order).all(|index| self.is_mapped(index));
        is_mapped.then(|| self.direct.at(offset)).flatten()
    }

    fn extents_of(&self, offset: u64, order: Order) -> std::ops::RangeInclusive<usize> {
        self.extent_of(offset)..=self.extent_of(offset + order.nr_pages() - 1)
    }

    pub(super) fn is_mapped(&self, index: usize) -> bool {
        // Acquire: pairs with the Release of `ensure_mapped`.
        self.slot(index).mapped.load(Ordering::Acquire) != 0
    }

    fn ensure_mapped(&self, index: usize) -> Result<(), FolioError> {
        if self.is_mapped(index) {
            return Ok(());
        }
        let _grow = self.grow.lock();
        let pages = self.claimed_range(index);
        if self.is_mapped(index) {
            return Ok(());
        }
        if pages.is_empty() {
            return Err(FolioError::NotClaimed { offset: pages.start });
        }
        let (addr, len_bytes) = self.place(&pages)?;
        // SAFETY: the place is our reservation's, nothing is mapped there (the slot says so, under the lock), and
        // the extent is claimed.
        unsafe { self.device.map_at(addr, byte_range(&pages).start, len_bytes) }?;
        if !self.is_private() {
            // SAFETY: our own mapping; the advice only keeps it from children.
            unsafe { mm::advise(addr, len_bytes, libc::MADV_DONTFORK) }?;
        }
        // Release: pairs with the Acquire of `is_mapped`.
        self.slot(index).mapped.store(1, Ordering::Release);
        Ok(())
    }

    /// Puts the reserved hole back over a mapped extent. Nobody uses it any more.
    pub(super) fn unmap_direct(&self, index: usize) {
        if !self.is_mapped(index) {
            return;
        }
        let pages = self.extent_range(index);
        if let Ok((addr, len_bytes)) = self.place(&pages) {
            // SAFETY: the place is our reservation's, and the caller says that it is unused. A refusal leaves the
            // mapping until the reservation goes.
            let _ = unsafe { mm::map_reserved(addr, len_bytes) };
            let start = addr.as_ptr().addr();
            bus_error::forget_damage(&(start..start + len_bytes));
        }
        self.slot(index).mapped.store(0, Ordering::Release);
    }

    /// Reserves the addresses of mapped extents again, which a forked child did not inherit.
    pub(super) fn reserve_again_in_child(&self) {
        for index in self.known_extents() {
            self.unmap_direct(index);
        }
    }

    /// Gives the memory of a folio back that is just becoming idle, if it was in use through this mapping and is
    /// large enough to be worth it.
    pub(super) fn discard_idle(&self, offset: u64, order: Order) {
        if self.retains_memory || order < Order::HUGE || order.nr_pages() < self.granule_pages {
            return;
        }
        let Some(addr) = self.mapped_address(offset, order) else { return };
        if self.is_private() {
            // SAFETY: the run has no reference left and cannot be requested yet, so its bytes are nobody's. A refusal
            // (locked memory) only keeps the memory.
            let _ = unsafe { mm::advise(addr, order.len_bytes() as usize, libc::MADV_DONTNEED) };
        } else if self.device.kind() == DeviceKind::Emulated {
            self.device.discard(byte_range(&(offset..offset + order.nr_pages())));
        }
    }

    fn place(&self, pages: &Range<u64>) -> Result<(NonNull<u8>, usize), FolioError> {
        let addr = self.direct.at(pages.start).ok_or(FolioError::NotClaimed { offset: pages.start })?;
        Ok((addr, ((pages.end - pages.start) << PAGE_SHIFT) as usize))
    }
}
