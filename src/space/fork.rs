//! What a forked child gets of the slots that are mapped from a device.
//!
//! A device mapping would be shared between parent and child, so it is left out of the child (MADV_DONTFORK) and
//! the child gets private copies instead. A [`Snapshot`] is taken in the parent before the fork, while nobody
//! writes (other threads are stopped, see `runtime::fork`): it copies the committed slices of every such slot
//! into private memory, sets the device's mapping aside, and puts the copy at the slot's address. So the child has
//! its copy from its first instruction on (the C library touches streams before any handler runs), and the kernel
//! shares it copy-on-write. The parent moves the device's mappings back before its threads go on.
//!
//! Between the two, what the forking thread writes to such a slot is the child's alone. The C library writes to
//! none; a thread whose own stack lies in a slow slot can't fork.

use super::{SLOT_BYTES, Space};
use crate::error::SysError;
use crate::space::slot::{Mapping, copy_slices};
use crate::sys::mm::{self, Reservation};
use crate::units::PAGE_SIZE;
use std::ptr::NonNull;

/// Copies of the slots that a child may not share.
pub(crate) struct Snapshot {
    places: Option<Places>,
    len: usize,
}

/// Address ranges with a place for each slot of a snapshot.
struct Places {
    /// Where the copies are made, a slot's length each.
    copies: Reservation,
    /// Where the device's mappings are while the copies are in their places.
    aside: Reservation,
    /// The index of each slot.
    slots: Reservation,
}

impl Snapshot {
    /// Returns how many slots a child would have to get copies of.
    pub(crate) fn count(space: &Space) -> usize {
        let mut count = 0;
        for_each_shared(space, |_, _| count += 1);
        count
    }

    /// Copies every slot that is mapped from a device and puts the copies at the slots' addresses. Allocates nothing
    /// but mappings.
    ///
    /// # Errors
    /// The refusal of a mapping; nothing changes then.
    pub(crate) fn take(space: &Space) -> Result<Snapshot, SysError> {
        let len = Snapshot::count(space);
        if len == 0 {
            return Ok(Snapshot { places: None, len: 0 });
        }
        let len_bytes = len * SLOT_BYTES;
        let table_len = (len * size_of::<usize>()).next_multiple_of(PAGE_SIZE);
        let places = Places {
            copies: Reservation::new(len_bytes, SLOT_BYTES)?,
            aside: Reservation::new(len_bytes, SLOT_BYTES)?,
            slots: Reservation::new(table_len, PAGE_SIZE)?,
        };
        // SAFETY: the reservation was just made and nothing is in it.
        unsafe { mm::map_anonymous(places.slots.base(), table_len) }?;
        // SAFETY: as above.
        unsafe { mm::map_anonymous(places.copies.base(), len_bytes) }?;
        // SAFETY: the advice drops no data; without huge pages the copies only take longer.
        let _ = unsafe { mm::advise(places.copies.base(), len_bytes, libc::MADV_HUGEPAGE) };
        let mut at = 0;
        for_each_shared(space, |index, committed| {
            // SAFETY: the entry lies in the table, which was mapped above for `len` entries.
            unsafe { places.slot(at).write(index) };
            copy_slices(space.slot_address(index), places.copy(at), committed);
            at += 1;
        });
        for at in 0..len {
            if let Err(refusal) = places.put_copy(space, at) {
                for done in (0..at).rev() {
                    places.put_device(space, done)?;
                }
                return Err(refusal);
            }
        }
        Ok(Snapshot { places: Some(places), len })
    }

    /// Moves the device's mappings back to their slots. Called once, in the parent.
    ///
    /// # Errors
    /// The refusal of mremap: the parent would go on with memory that is not the device's, and must not.
    pub(crate) fn undo(self, space: &Space) -> Result<(), SysError> {
        let Some(places) = &self.places else { return Ok(()) };
        (0..self.len).try_for_each(|at| places.put_device(space, at))
    }

    /// Keeps the copies as the slots' memory. Called once, in the child.
    pub(crate) fn keep(self, space: &Space) {
        let Some(places) = &self.places else { return };
        for at in 0..self.len {
            space.slot(places.index(at)).lock().mapping = Mapping::Inherited;
        }
    }
}

impl Places {
    /// Sets the device's mapping of a slot aside and puts the copy in its place; on failure the slot is as before.
    fn put_copy(&self, space: &Space, at: usize) -> Result<(), SysError> {
        let slot = space.slot_address(self.index(at));
        // SAFETY: the slot is backed, writers are stopped, and the place aside is ours.
        unsafe { mm::move_mapping(slot, SLOT_BYTES, self.aside(at)) }?;
        // SAFETY: the copy is ours, and the slot's addresses are a hole now.
        unsafe { mm::move_mapping(self.copy(at), SLOT_BYTES, slot) }.or_else(|refusal| {
            self.put_device(space, at)?;
            Err(refusal)
        })
    }

    /// Moves the device's mapping back over whatever is at the slot's addresses.
    fn put_device(&self, space: &Space, at: usize) -> Result<(), SysError> {
        // SAFETY: the mapping aside is the slot's, and nobody needs the copy in this process.
        unsafe { mm::move_mapping(self.aside(at), SLOT_BYTES, space.slot_address(self.index(at))) }
    }

    fn copy(&self, at: usize) -> NonNull<u8> {
        self.copies.at(at * SLOT_BYTES).expect("entries lie below the length")
    }

    fn aside(&self, at: usize) -> NonNull<u8> {
        self.aside.at(at * SLOT_BYTES).expect("entries lie below the length")
    }

    fn slot(&self, at: usize) -> NonNull<usize> {
        self.slots.at(at * size_of::<usize>()).expect("entries lie below the length").cast()
    }

    fn index(&self, at: usize) -> usize {
        // SAFETY: `take` wrote the entry.
        unsafe { self.slot(at).read() }
    }
}

/// Calls `visit` with the index and the committed slices of every slot that is mapped from a device.
fn for_each_shared(space: &Space, mut visit: impl FnMut(usize, u32)) {
    space.for_each_slot(|index| {
        let state = space.slot(index).lock();
        if state.folio.is_some() && state.mapping == Mapping::Shared {
            visit(index, state.committed);
        }
    });
}
