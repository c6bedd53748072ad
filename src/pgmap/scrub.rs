//! What a pgmap does to the bytes of extents that it claims and gives back.
//!
//! `extents` calls this under the `grow` lock, between the claim and the moment the allocator hears of the extent, and between the
//! end of the last folio and the release. [`ScrubPolicy`] has the argument why no foreign byte is handed out. It runs on the
//! thread that asked for memory and starts no other: a claim may be made in a signal handler's shadow, in a fork's child, or with
//! the gate closed, where a new thread would not get on.

use super::body::Body;
use super::extents::byte_range;
use crate::device::{DeviceError, ScrubPolicy};
use crate::sys::bus_error::{self, BusError};
use crate::sys::mm::Reservation;
use crate::units::PAGE_SHIFT;
use std::ops::Range;
use std::ptr::NonNull;

impl Body {
    /// Makes pages that were just claimed fit to be handed out. `is_zero` is what the claim promised.
    pub(super) fn scrub_claimed(&self, pages: &Range<u64>, is_zero: bool) -> Result<(), DeviceError> {
        match self.device.scrub_policy() {
            _ if is_zero => Ok(()),
            ScrubPolicy::Never => Ok(()),
            ScrubPolicy::OnClaim => self.overwrite(pages, bus_error::clear),
            ScrubPolicy::OnRelease => self.overwrite(pages, bus_error::clear_unless_zero),
        }
    }

    /// Gives claimed pages back to the device, cleared where the policy wants that. No folio is on them, nothing maps them, and
    /// none can be requested.
    pub(super) fn release_pages(&self, pages: &Range<u64>) {
        if self.device.scrub_policy() == ScrubPolicy::OnRelease {
            // What could not be cleared is seen by the next claimant, who looks at every byte.
            let _ = self.overwrite(pages, bus_error::clear_unless_zero);
        }
        self.device.release(byte_range(pages));
    }

    /// Has `clear` make claimed pages read as zero, through a mapping of its own.
    fn overwrite(
        &self,
        pages: &Range<u64>,
        clear: unsafe fn(NonNull<u8>, usize) -> Result<(), BusError>,
    ) -> Result<(), DeviceError> {
        let bytes = byte_range(pages);
        let len_bytes = (bytes.end - bytes.start) as usize;
        let align_bytes = (self.granule_pages << PAGE_SHIFT) as usize;
        let refused = |source| DeviceError::Sys { device: self.device.name().to_owned(), source };
        let room = Reservation::new(len_bytes, align_bytes).map_err(refused)?;
        // SAFETY: the reservation is ours and fresh, and the range is claimed.
        unsafe { self.device.map_at(room.base(), bytes.start, len_bytes) }?;
        // SAFETY: the range is mapped writable for `len_bytes`, and nobody else uses claimed pages that are not handed out.
        unsafe { clear(room.base(), len_bytes) }.map_err(|error| {
            let offset = bytes.start + (error.addr - room.base().as_ptr().addr()) as u64;
            DeviceError::unanswered(self.device.name(), offset, error)
        })
    }
}
