//! Addresses of our own, of as many slots' length as a batch has, in which it prepares what it needs.

use super::{MOST_MOVES, Refusal, byte_offset};
use crate::device::{DeviceError, DeviceKind};
use crate::error::SysError;
use crate::folio::Folio;
use crate::space::SLOT_BYTES;
use crate::sys::bus_error::{self, BusError};
use crate::sys::mm::{self, Reservation};
use crate::units::PAGE_SIZE;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr::NonNull;

/// A row of parts, each of a slot's length and alignment. What was not moved over slots is unmapped on drop.
#[derive(Debug)]
pub(super) struct Place {
    /// Not to be unmapped as a whole: see `is_gone`.
    range: ManuallyDrop<Reservation>,
    /// The parts that were moved away: their addresses may be somebody else's by now.
    is_gone: [bool; MOST_MOVES],
    nr: usize,
}

impl Place {
    /// Reserves addresses for `nr` parts, [`MOST_MOVES`] at most. Nothing is mapped there.
    pub(super) fn reserve(nr: usize) -> Result<Place, Refusal> {
        debug_assert!(nr <= MOST_MOVES);
        let range = Reservation::new(nr * SLOT_BYTES, SLOT_BYTES).map_err(Refusal::of_mapping)?;
        Ok(Place { range: ManuallyDrop::new(range), is_gone: [false; MOST_MOVES], nr })
    }

    /// Maps a folio in a part: a device's own bytes, or fresh memory for the folio's share of DRAM. Its pages are there when
    /// the call returns, so that the window meets no fault; with `for_writing` they are writable without one.
    pub(super) fn map(&mut self, part: usize, folio: &Folio, for_writing: bool) -> Result<(), Refusal> {
        let addr = self.addr(part);
        map_folio(addr, folio)?;
        // SAFETY: the part was just mapped and is ours.
        match unsafe { mm::populate(addr, SLOT_BYTES, for_writing) } {
            // Older kernels do not know the advice: the copy meets the faults then.
            Ok(()) | Err(SysError { errno: libc::EINVAL, .. }) => Ok(()),
            Err(SysError { errno: libc::ENOMEM | libc::EAGAIN, .. }) => Err(Refusal::NoMemory),
            // EFAULT and EHWPOISON: the device is gone or damaged, or huge pages are off for the process. An access tells.
            Err(_) => {
                // SAFETY: the part is mapped and ours; the read has nothing to drop.
                unsafe { guarded(addr, || read_every_page(addr)) }?;
                Err(Refusal::Device)
            }
        }
    }

    /// Maps nothing in a part but in the way in which DRAM slots are mapped that `folio` backs.
    pub(super) fn map_blank(&mut self, part: usize, folio: &Folio) -> Result<(), Refusal> {
        map_folio(self.addr(part), folio)?;
        make_empty(self.addr(part))
    }

    pub(super) fn addr(&self, part: usize) -> NonNull<u8> {
        self.range.at(part * SLOT_BYTES).expect("parts are counted")
    }

    /// Moves the mappings of parts over as many neighbouring slots, with the pages that are in them. Parts that are one
    /// mapping are moved by one call.
    ///
    /// # Safety
    /// What is mapped at the slots is of no more use, or equal.
    ///
    /// # Errors
    /// The refusal of mremap; all mappings are as before.
    pub(super) unsafe fn move_over(
        &mut self,
        parts: Range<usize>,
        slot: NonNull<u8>,
    ) -> Result<(), SysError> {
        // SAFETY: the parts are ours, and the caller argued the slots.
        unsafe { mm::move_mapping(self.addr(parts.start), parts.len() * SLOT_BYTES, slot) }?;
        self.is_gone[parts].fill(true);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut part = 0;
        while part < self.nr {
            let start = part;
            while part < self.nr && !self.is_gone[part] {
                part += 1;
            }
            if part > start {
                // SAFETY: these parts were not moved away, so they are ours, and nobody uses them any more.
                unsafe { mm::unmap(self.addr(start), (part - start) * SLOT_BYTES) };
            }
            part += 1;
        }
    }
}

/// Maps a folio at a part of ours, empty but for what mlockall(MCL_FUTURE) brings. A whole slot comes, so DRAM gets a huge
/// page even where the device has small ones for programs that start.
pub(super) fn map_folio(addr: NonNull<u8>, folio: &Folio) -> Result<(), Refusal> {
    // SAFETY: the part is ours and nobody uses what is in it; the folio is claimed while it is referenced.
    let mapped = unsafe { folio.pgmap().device().map_at(addr, byte_offset(folio), SLOT_BYTES) };
    match mapped {
        Ok(()) => {}
        Err(DeviceError::Sys { source, .. }) => return Err(Refusal::of_mapping(source)),
        Err(DeviceError::DescriptorLost { .. }) => return Err(Refusal::Lost),
        Err(DeviceError::Gone { .. }) => {
            return Err(Refusal::Unanswered(BusError { addr: addr.as_ptr().addr(), is_damaged: false }));
        }
        Err(_) => return Err(Refusal::Device),
    }
    if folio.pgmap().device().kind() == DeviceKind::Dram {
        // SAFETY: the range was just mapped; the advice drops no data, and a kernel without huge pages refuses it.
        let _ = unsafe { mm::advise(addr, SLOT_BYTES, libc::MADV_HUGEPAGE) };
    }
    // What mlockall(MCL_FUTURE) locked: pages move only between places that are both locked or both not.
    // SAFETY: the part is ours.
    unsafe { mm::unlock(addr, SLOT_BYTES) }.map_err(Refusal::of_mapping)
}

/// Drops what is in a part. Under mlockall(MCL_FUTURE) the kernel has filled it, and an access to a blank would find a page
/// there and not wait.
pub(super) fn make_empty(addr: NonNull<u8>) -> Result<(), Refusal> {
    // SAFETY: the part is ours, and nothing of use is in it.
    unsafe { mm::advise(addr, SLOT_BYTES, libc::MADV_DONTNEED) }.map_err(Refusal::of_mapping)
}

/// Runs a copy into or out of a part at `addr`, whose device may not answer.
///
/// # Safety
/// As for [`bus_error::guarded`].
pub(super) unsafe fn guarded(addr: NonNull<u8>, copy: impl FnMut()) -> Result<(), Refusal> {
    let start = addr.as_ptr().addr();
    // SAFETY: the caller argued it.
    unsafe { bus_error::guarded(start..start + SLOT_BYTES, copy) }.map_err(Refusal::Unanswered)
}

fn read_every_page(addr: NonNull<u8>) {
    for offset in (0..SLOT_BYTES).step_by(PAGE_SIZE) {
        // SAFETY: the offset lies inside the part.
        let byte = unsafe { addr.add(offset) };
        // SAFETY: the part is mapped.
        unsafe { byte.read_volatile() };
    }
}
