//! What a forked child gets of the slots that are mapped from a device.
//!
//! A device mapping would be shared between parent and child, so it is left out of the child (MADV_DONTFORK) and
//! the child gets private copies instead. A [`Snapshot`] is taken in the parent before the fork, while nobody
//! writes (other threads are stopped, see `runtime::fork`): it copies the committed slices of every such slot
//! into private memory, which the kernel then shares copy-on-write. The child moves the copies to the slots'
//! addresses; the parent drops them.

use super::{SLICE_BYTES, SLICES_PER_SLOT, SLOT_BYTES, SLOTS_PER_CHUNK, Space};
use crate::error::SysError;
use crate::space::slot::Mapping;
use crate::sys::mm::{self, Reservation};
use crate::units::PAGE_SIZE;
use std::ptr::NonNull;

/// Copies of the slots that a child may not share.
pub(crate) struct Snapshot {
    /// The copies, a slot's length each; `None` when there are none.
    copies: Option<Reservation>,
    /// The index of each copy's slot.
    slots: Option<Reservation>,
    len: usize,
}

/// A fork that can't give the child its copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ForkError {
    /// There is not enough memory for the copies.
    NoRoom {
        /// What the copies need.
        needed_bytes: u64,
        /// What the machine has.
        available_bytes: u64,
    },
    /// The kernel refused a mapping.
    Sys(SysError),
}

impl From<SysError> for ForkError {
    fn from(refusal: SysError) -> ForkError {
        ForkError::Sys(refusal)
    }
}

impl Snapshot {
    /// Returns how many slots a child would have to get copies of.
    pub(crate) fn count(space: &Space) -> usize {
        let mut count = 0;
        for_each_shared(space, |_, _| count += 1);
        count
    }

    /// Copies every slot that is mapped from a device. Allocates nothing but mappings. `available_bytes` is what
    /// the machine could give.
    ///
    /// # Errors
    /// [`ForkError`] when the copies do not fit or a mapping is refused; nothing changes then.
    pub(crate) fn take(space: &Space, available_bytes: u64) -> Result<Snapshot, ForkError> {
        let len = Snapshot::count(space);
        if len == 0 {
            return Ok(Snapshot { copies: None, slots: None, len: 0 });
        }
        let needed_bytes = (len * SLOT_BYTES) as u64;
        if needed_bytes > available_bytes {
            return Err(ForkError::NoRoom { needed_bytes, available_bytes });
        }
        let table_len = (len * size_of::<usize>()).next_multiple_of(PAGE_SIZE);
        let slots = Reservation::new(table_len, PAGE_SIZE)?;
        // SAFETY: the reservation was just made and nothing is in it.
        unsafe { mm::map_anonymous(slots.base(), table_len) }?;
        let copies = Reservation::new(len * SLOT_BYTES, SLOT_BYTES)?;
        // SAFETY: as above.
        unsafe { mm::map_anonymous(copies.base(), len * SLOT_BYTES) }?;
        // SAFETY: the advice drops no data; without huge pages the copies only take longer.
        let _ = unsafe { mm::advise(copies.base(), len * SLOT_BYTES, libc::MADV_HUGEPAGE) };
        let snapshot = Snapshot { copies: Some(copies), slots: Some(slots), len };
        let mut at = 0;
        for_each_shared(space, |index, committed| {
            let (copy, entry) = snapshot.entry(at);
            // SAFETY: the entry lies in the table, which was mapped above for `len` entries.
            unsafe { entry.write(index) };
            copy_slices(space.slot_address(index), copy, committed);
            at += 1;
        });
        Ok(snapshot)
    }

    /// Puts the copies at their slots' addresses. Called once, in the child.
    ///
    /// # Errors
    /// The refusal of mremap: the child is then incomplete and must not go on.
    pub(crate) fn apply(self, space: &Space) -> Result<(), SysError> {
        for at in 0..self.len {
            let (copy, entry) = self.entry(at);
            // SAFETY: `take` wrote the entry.
            let index = unsafe { entry.read() };
            // SAFETY: the slot's addresses are a hole in the child (its mapping was not inherited), and the copy
            // is ours alone.
            unsafe { mm::move_mapping(copy, SLOT_BYTES, space.slot_address(index)) }?;
            space.slot(index).lock().mapping = Mapping::Inherited;
        }
        Ok(())
    }

    /// Returns where copy `at` and its slot's index are.
    fn entry(&self, at: usize) -> (NonNull<u8>, NonNull<usize>) {
        let copies = self.copies.as_ref().expect("a snapshot with entries has copies");
        let slots = self.slots.as_ref().expect("a snapshot with entries has a table");
        let copy = copies.at(at * SLOT_BYTES).expect("entries lie below the length");
        let entry = slots.at(at * size_of::<usize>()).expect("entries lie below the length");
        (copy, entry.cast())
    }
}

/// Calls `visit` with the index and the committed slices of every slot that is mapped from a device.
fn for_each_shared(space: &Space, mut visit: impl FnMut(usize, u32)) {
    space.chunks.for_each_taken(|chunk| {
        for index in chunk * SLOTS_PER_CHUNK..(chunk + 1) * SLOTS_PER_CHUNK {
            let state = space.slot(index).lock();
            if state.folio.is_some() && state.mapping == Mapping::Shared {
                visit(index, state.committed);
            }
        }
    });
}

/// Copies runs of committed slices.
fn copy_slices(from: NonNull<u8>, to: NonNull<u8>, committed: u32) {
    for slice in (0..SLICES_PER_SLOT).filter(|slice| committed & (1 << slice) != 0) {
        let offset = slice * SLICE_BYTES;
        // SAFETY: the offset lies inside the 2 MiB range.
        let from = unsafe { from.add(offset) };
        // SAFETY: as above.
        let to = unsafe { to.add(offset) };
        // SAFETY: both ranges are mapped and do not overlap; writers are stopped.
        unsafe { from.copy_to_nonoverlapping(to, SLICE_BYTES) };
    }
}
