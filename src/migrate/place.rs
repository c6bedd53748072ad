//! A slot's length of addresses of our own, in which a move prepares what it needs.

use super::{Refusal, byte_offset};
use crate::device::{DeviceError, DeviceKind};
use crate::error::SysError;
use crate::folio::Folio;
use crate::space::SLOT_BYTES;
use crate::sys::bus_error::{self, BusError};
use crate::sys::mm::{self, Reservation};
use crate::units::PAGE_SIZE;
use std::ptr::NonNull;

/// Addresses of a slot's length and alignment, with something mapped. They are unmapped on drop.
#[derive(Debug)]
pub(super) struct Place {
    range: Reservation,
}

impl Place {
    /// Maps a folio: a device's own bytes, or fresh memory for the folio's share of DRAM. Its pages are there when the
    /// call returns, so that the window meets no fault; with `for_writing` they are writable without one.
    pub(super) fn of_folio(folio: &Folio, for_writing: bool) -> Result<Place, Refusal> {
        let place = Place::map(folio)?;
        // SAFETY: the place was just made and is ours.
        match unsafe { mm::populate(place.addr(), SLOT_BYTES, for_writing) } {
            // Older kernels do not know the advice: the copy meets the faults then.
            Ok(()) | Err(SysError { errno: libc::EINVAL, .. }) => Ok(place),
            Err(SysError { errno: libc::ENOMEM | libc::EAGAIN, .. }) => Err(Refusal::NoMemory),
            // EFAULT and EHWPOISON: the device is gone or damaged, or huge pages are off for the process. An access tells.
            Err(_) => {
                // SAFETY: the place is mapped and ours; the read has nothing to drop.
                unsafe { place.guarded(|| place.read_every_page()) }?;
                Err(Refusal::Device)
            }
        }
    }

    /// Makes an empty mapping of the kind that DRAM slots have, which `folio` is going to back.
    pub(super) fn blank_of(folio: &Folio) -> Result<Place, Refusal> {
        let place = Place::map(folio)?;
        place.make_empty()?;
        Ok(place)
    }

    /// Makes an empty private mapping with huge pages.
    pub(super) fn empty() -> Result<Place, Refusal> {
        let place = Place::reserve()?;
        // SAFETY: the reservation was just made and nothing is in it.
        unsafe { mm::map_anonymous(place.addr(), SLOT_BYTES) }.map_err(Refusal::of_mapping)?;
        // SAFETY: the range was just mapped; the advice drops no data, and a kernel without huge pages refuses it.
        let _ = unsafe { mm::advise(place.addr(), SLOT_BYTES, libc::MADV_HUGEPAGE) };
        place.unlock()?;
        place.make_empty()?;
        Ok(place)
    }

    /// Ends the lock that mlockall(MCL_FUTURE) has put on the place: pages move only between places that are both locked
    /// or both not.
    fn unlock(&self) -> Result<(), Refusal> {
        // SAFETY: the place is ours.
        unsafe { mm::unlock(self.addr(), SLOT_BYTES) }.map_err(Refusal::of_mapping)
    }

    /// Drops what is in the place. Under mlockall(MCL_FUTURE) the kernel has filled it, and an access to a blank would find
    /// a page there and not wait.
    fn make_empty(&self) -> Result<(), Refusal> {
        // SAFETY: the place is ours, and nothing of use is in it.
        unsafe { mm::advise(self.addr(), SLOT_BYTES, libc::MADV_DONTNEED) }.map_err(Refusal::of_mapping)
    }

    fn reserve() -> Result<Place, Refusal> {
        Ok(Place { range: Reservation::new(SLOT_BYTES, SLOT_BYTES).map_err(Refusal::of_mapping)? })
    }

    fn map(folio: &Folio) -> Result<Place, Refusal> {
        let place = Place::reserve()?;
        // SAFETY: the reservation was just made and nothing is in it; the folio is claimed while it is referenced.
        let mapped = unsafe { folio.pgmap().device().map_at(place.addr(), byte_offset(folio), SLOT_BYTES) };
        if mapped.is_ok() && folio.pgmap().device().kind() == DeviceKind::Dram {
            // A whole slot comes, so it gets a huge page even where the device has small ones for programs that start.
            // SAFETY: the range was just mapped; the advice drops no data, and a kernel without huge pages refuses it.
            let _ = unsafe { mm::advise(place.addr(), SLOT_BYTES, libc::MADV_HUGEPAGE) };
        }
        match mapped {
            Ok(()) => place.unlock().map(|()| place),
            Err(DeviceError::Sys { source, .. }) => Err(Refusal::of_mapping(source)),
            Err(DeviceError::DescriptorLost { .. }) => Err(Refusal::Lost),
            Err(DeviceError::Gone { .. }) => {
                Err(Refusal::Unanswered(BusError { addr: place.addr().as_ptr().addr(), is_damaged: false }))
            }
            Err(_) => Err(Refusal::Device),
        }
    }

    fn read_every_page(&self) {
        for offset in (0..SLOT_BYTES).step_by(PAGE_SIZE) {
            // SAFETY: the offset lies inside the place.
            let byte = unsafe { self.addr().add(offset) };
            // SAFETY: the place is mapped.
            unsafe { byte.read_volatile() };
        }
    }

    pub(super) fn addr(&self) -> NonNull<u8> {
        self.range.base()
    }

    /// Runs a copy into or out of this place, whose device may not answer.
    ///
    /// # Safety
    /// As for [`bus_error::guarded`].
    pub(super) unsafe fn guarded(&self, copy: impl FnMut()) -> Result<(), Refusal> {
        let start = self.addr().as_ptr().addr();
        // SAFETY: the caller argued it.
        unsafe { bus_error::guarded(start..start + SLOT_BYTES, copy) }.map_err(Refusal::Unanswered)
    }

    /// Moves the mapping over a slot, with the pages that are in it.
    ///
    /// # Safety
    /// What is mapped at the slot is of no more use, or equal.
    ///
    /// # Errors
    /// The refusal of mremap, with the place; both mappings are as before.
    pub(super) unsafe fn move_over(self, slot: NonNull<u8>) -> Result<(), (Place, SysError)> {
        // SAFETY: the place is ours, and the caller argued the slot.
        if let Err(refusal) = unsafe { mm::move_mapping(self.addr(), SLOT_BYTES, slot) } {
            return Err((self, refusal));
        }
        // Its addresses are free now, and may be somebody else's by the next instruction.
        std::mem::forget(self);
        Ok(())
    }
}
