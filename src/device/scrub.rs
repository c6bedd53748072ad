//! Clearing what nobody uses: the bytes of former owners, before somebody else has the device.
//!
//! A claimant clears what it claims in any case ([`ScrubPolicy`](super::ScrubPolicy)). This is for who wants nothing of theirs to
//! be left on a device that they are done with. [`Pieces`] is a walk over the device that several threads share:
//! each takes the next piece, claims it, clears it and gives it back. `runtime` starts the threads.

use super::{Dax, Device, DeviceError};
use crate::sys::bus_error;
use crate::sys::mm::Reservation;
use std::ops::{AddAssign, Range};
use std::sync::atomic::{AtomicU64, Ordering};

/// What was done with a device's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Scrubbed {
    /// Bytes that read as zero now.
    pub cleared_bytes: u64,
    /// Bytes that processes use, which were left alone.
    pub used_bytes: u64,
    /// Bytes of pieces with damaged memory; their sound pages may not have been cleared.
    pub damaged_bytes: u64,
}

impl Scrubbed {
    /// Returns how many bytes were looked at.
    pub fn seen_bytes(&self) -> u64 {
        self.cleared_bytes + self.used_bytes + self.damaged_bytes
    }
}

impl AddAssign for Scrubbed {
    fn add_assign(&mut self, other: Scrubbed) {
        self.cleared_bytes += other.cleared_bytes;
        self.used_bytes += other.used_bytes;
        self.damaged_bytes += other.damaged_bytes;
    }
}

/// How much is claimed, and kept from others, at a time by a thread.
const PIECE_BYTES: u64 = 64 << 20;

/// A walk over the parts of a device that nobody uses.
#[derive(Debug)]
pub(crate) struct Pieces {
    /// An open of its own, so that what this very process has claimed is in the way like any other claim.
    dax: Dax,
    piece_bytes: u64,
    /// Where the next piece begins; the device's length or more when there is none. Relaxed: it hands out numbers, and
    /// what is done with a piece is ordered by its claim.
    next: AtomicU64,
}

impl Pieces {
    /// Begins a walk.
    ///
    /// # Errors
    /// The refusal to open the node again; [`DeviceError::Gone`].
    pub(crate) fn of(dax: &Dax) -> Result<Pieces, DeviceError> {
        let piece_bytes = PIECE_BYTES.next_multiple_of(dax.align_bytes());
        Ok(Pieces { dax: dax.open_anew()?, piece_bytes, next: AtomicU64::new(0) })
    }

    /// Returns how many pieces there are.
    pub(crate) fn count(&self) -> u64 {
        self.dax.len_bytes().div_ceil(self.piece_bytes)
    }

    /// Reserves the addresses at which a thread has its pieces.
    ///
    /// # Errors
    /// The refusal of the kernel.
    pub(crate) fn room(&self) -> Result<Reservation, DeviceError> {
        let refused = |source| DeviceError::Sys { device: self.dax.name().to_owned(), source };
        Reservation::new(self.piece_bytes as usize, self.dax.align_bytes() as usize).map_err(refused)
    }

    /// Hands out no more pieces.
    pub(crate) fn end(&self) {
        self.next.store(self.dax.len_bytes(), Ordering::Relaxed);
    }

    /// Clears the next piece, through a thread's own room; `None` when there is none.
    pub(crate) fn scrub_next(&self, room: &Reservation) -> Option<Result<Scrubbed, DeviceError>> {
        let start = self.next.fetch_add(self.piece_bytes, Ordering::Relaxed);
        if start >= self.dax.len_bytes() {
            return None;
        }
        let end = (start + self.piece_bytes).min(self.dax.len_bytes());
        let mut done = Scrubbed::default();
        Some(self.scrub(start..end, room, &mut done).map(|()| done))
    }

    /// Clears a piece, or its granules one by one where somebody uses a part of it.
    fn scrub(&self, piece: Range<u64>, room: &Reservation, done: &mut Scrubbed) -> Result<(), DeviceError> {
        let (dax, len_bytes) = (&self.dax, piece.end - piece.start);
        let granule_bytes = dax.align_bytes();
        match dax.claim(piece.clone()) {
            Ok(_) => {}
            Err(DeviceError::Claimed { .. } | DeviceError::Mapped { .. }) if len_bytes > granule_bytes => {
                return (piece.start..piece.end)
                    .step_by(granule_bytes as usize)
                    .try_for_each(|start| self.scrub(start..start + granule_bytes, room, done));
            }
            Err(DeviceError::Claimed { .. } | DeviceError::Mapped { .. }) => {
                done.used_bytes += len_bytes;
                return Ok(());
            }
            Err(other) => return Err(other),
        }
        // SAFETY: the room is the thread's, what was mapped there before is not used any more, and the piece is claimed.
        let mapped = unsafe { dax.map_at(room.base(), piece.start, len_bytes as usize) };
        let cleared = mapped.and_then(|()| {
            // SAFETY: mapped writable for its length; claimed, so nobody who keeps to claims uses it.
            unsafe { bus_error::clear_unless_zero(room.base(), len_bytes as usize) }
                .map_err(|error| DeviceError::unanswered(dax.name(), piece.start, error))
        });
        dax.release(piece);
        match cleared {
            Ok(()) => done.cleared_bytes += len_bytes,
            Err(DeviceError::Damaged { .. }) => done.damaged_bytes += len_bytes,
            Err(other) => return Err(other),
        }
        Ok(())
    }
}
