//! Clearing what nobody uses: the bytes of former owners, before somebody else has the device.
//!
//! A claimant clears what it claims in any case. This is for who wants nothing of theirs to be left on a device that they
//! are done with.

use super::{Dax, Device, DeviceError};
use crate::sys::bus_error;
use crate::sys::mm::Reservation;

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

/// How much is claimed, and kept from others, at a time.
const PIECE_BYTES: u64 = 64 << 20;

impl Dax {
    /// Clears whatever nobody has claimed, and nobody else maps as far as can be seen. A piece at a time is claimed for
    /// that, so programs may claim the rest meanwhile. `progress` is called after each piece with what was done so far.
    /// Blocks for as long as it takes.
    ///
    /// # Errors
    /// [`DeviceError::Gone`] when the device goes, or the refusal of the kernel; what was done before stays done.
    pub fn scrub_free(&self, progress: &mut dyn FnMut(Scrubbed)) -> Result<Scrubbed, DeviceError> {
        let align_bytes = self.align_bytes();
        let piece_bytes = PIECE_BYTES.next_multiple_of(align_bytes);
        let refused = |source| DeviceError::Sys { device: self.name().to_owned(), source };
        let room = Reservation::new(piece_bytes as usize, align_bytes as usize).map_err(refused)?;
        let mut done = Scrubbed::default();
        for start in (0..self.len_bytes()).step_by(piece_bytes as usize) {
            let end = (start + piece_bytes).min(self.len_bytes());
            self.scrub_piece(start..end, piece_bytes.min(align_bytes), &room, &mut done)?;
            progress(done);
        }
        Ok(done)
    }

    /// Clears a piece, or its granules one by one where somebody uses a part of it.
    fn scrub_piece(
        &self,
        piece: std::ops::Range<u64>,
        granule_bytes: u64,
        room: &Reservation,
        done: &mut Scrubbed,
    ) -> Result<(), DeviceError> {
        let len_bytes = piece.end - piece.start;
        match self.claim(piece.clone()) {
            Ok(_) => {}
            Err(DeviceError::Claimed { .. } | DeviceError::Mapped { .. }) if len_bytes > granule_bytes => {
                return (piece.start..piece.end).step_by(granule_bytes as usize).try_for_each(|start| {
                    self.scrub_piece(start..start + granule_bytes, granule_bytes, room, done)
                });
            }
            Err(DeviceError::Claimed { .. } | DeviceError::Mapped { .. }) => {
                done.used_bytes += len_bytes;
                return Ok(());
            }
            Err(other) => return Err(other),
        }
        // SAFETY: the room is ours, what was mapped there before is not used any more, and the piece is claimed.
        let mapped = unsafe { self.map_at(room.base(), piece.start, len_bytes as usize) };
        let cleared = mapped.and_then(|()| {
            // SAFETY: mapped writable for its length; claimed, so nobody who keeps to claims uses it.
            unsafe { bus_error::clear(room.base(), len_bytes as usize) }
                .map_err(|error| DeviceError::unanswered(self.name(), piece.start, error))
        });
        self.release(piece);
        match cleared {
            Ok(()) => done.cleared_bytes += len_bytes,
            Err(DeviceError::Damaged { .. }) => done.damaged_bytes += len_bytes,
            Err(other) => return Err(other),
        }
        Ok(())
    }
}
