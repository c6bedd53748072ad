//! What a forked child gets of the slots that are mapped from a device.
//!
//! A device mapping would be shared between parent and child, so it is left out of the child (MADV_DONTFORK) and
//! the child gets private copies instead. A [`Snapshot`] is taken in the parent before the fork, while nobody
//! writes (other threads are stopped, see `runtime::fork`): it copies the committed slices of every such slot
//! into private memory, sets the device's mapping aside, and puts the copy at the slot's address. So the child has
//! its copy from its first instruction on (the C library touches streams before any handler runs), and the kernel
//! shares it copy-on-write. The parent moves the device's mappings back before its threads go on.
//!
//! What the device does not answer for is lost to the child as it is to the parent: it finds addresses there that answer with
//! SIGBUS, of the one page that is damaged or of all of a slot whose device is gone.
//!
//! Between the two, what the forking thread writes to such a slot is the child's alone. The C library writes to
//! none; a thread whose own stack lies in a slow slot can't fork.

use super::{SLOT_BYTES, Space};
use crate::error::SysError;
use crate::space::slot::{Mapping, copy_slices};
use crate::space::{SLICE_BYTES, SLICES_PER_SLOT};
use crate::sys::bus_error::{self, BusError};
use crate::sys::lost::map_lost;
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
    /// An [`Entry`] for each slot.
    slots: Reservation,
}

const PAGES_PER_SLOT: usize = SLOT_BYTES / PAGE_SIZE;

/// A slot of a snapshot. All zeroes until it is written.
struct Entry {
    /// The index in the space.
    index: usize,
    /// The pages that are damaged, a bit each.
    lost_pages: [u64; PAGES_PER_SLOT / 64],
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
        let table_len = (len * size_of::<Entry>()).next_multiple_of(PAGE_SIZE);
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
        let mut copied = Ok(());
        for_each_shared(space, |index, committed| {
            let mut entry = Entry { index, lost_pages: [0; PAGES_PER_SLOT / 64] };
            if copied.is_ok() {
                copied = copy_or_lose(
                    space.slot_address(index),
                    places.copy(at),
                    committed,
                    &mut entry.lost_pages,
                );
            }
            // SAFETY: the entry lies in the table, which was mapped above for `len` entries.
            unsafe { places.slot(at).write(entry) };
            at += 1;
        });
        copied?;
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
        let moved = unsafe { mm::move_mapping(self.copy(at), SLOT_BYTES, slot) };
        moved.and_then(|()| self.lose_pages(slot, at)).or_else(|refusal| {
            self.put_device(space, at)?;
            Err(refusal)
        })
    }

    /// Takes the pages of a copy away that could not be copied.
    fn lose_pages(&self, slot: NonNull<u8>, at: usize) -> Result<(), SysError> {
        // SAFETY: `take` wrote the entry.
        let lost = unsafe { self.slot(at).as_ref() }.lost_pages;
        let is_lost = |page: &usize| lost[page / 64] & 1 << (page % 64) != 0;
        (0..PAGES_PER_SLOT).filter(is_lost).try_for_each(|page| {
            // SAFETY: the page lies inside the slot.
            let page = unsafe { slot.add(page * PAGE_SIZE) };
            // SAFETY: the copy is at the slot's addresses, and nobody has read it.
            unsafe { map_lost(page, PAGE_SIZE) }
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

    fn slot(&self, at: usize) -> NonNull<Entry> {
        self.slots.at(at * size_of::<Entry>()).expect("entries lie below the length").cast()
    }

    fn index(&self, at: usize) -> usize {
        // SAFETY: `take` wrote the entry.
        unsafe { self.slot(at).as_ref() }.index
    }
}

/// Copies the committed slices of a slot. What can't be read is lost: pages that are damaged are noted in `lost`, and of a
/// device that is gone nothing is there.
fn copy_or_lose(
    from: NonNull<u8>,
    to: NonNull<u8>,
    committed: u32,
    lost: &mut [u64; PAGES_PER_SLOT / 64],
) -> Result<(), SysError> {
    let copied = guarded_at(from, || copy_slices(from, to, committed))
        .or_else(|error| if error.is_damaged { copy_pages(from, to, committed, lost) } else { Err(error) });
    match copied {
        Ok(()) => Ok(()),
        Err(_) => {
            *lost = [0; PAGES_PER_SLOT / 64];
            // SAFETY: the range is a copy's place, in which nothing of use is.
            unsafe { map_lost(to, SLOT_BYTES) }
        }
    }
}

/// Copies the committed slices page by page, and notes the damaged ones.
#[cold]
fn copy_pages(
    from: NonNull<u8>,
    to: NonNull<u8>,
    committed: u32,
    lost: &mut [u64; PAGES_PER_SLOT / 64],
) -> Result<(), BusError> {
    const PAGES_PER_SLICE: usize = SLICE_BYTES / PAGE_SIZE;
    let slices = (0..SLICES_PER_SLOT).filter(|slice| committed & (1 << slice) != 0);
    for page in slices.flat_map(|slice| slice * PAGES_PER_SLICE..(slice + 1) * PAGES_PER_SLICE) {
        // SAFETY: the offset lies inside the slot.
        let source = unsafe { from.add(page * PAGE_SIZE) };
        // SAFETY: as above.
        let target = unsafe { to.add(page * PAGE_SIZE) };
        // SAFETY: both pages are mapped and do not overlap; writers are stopped.
        match guarded_at(from, || unsafe { source.copy_to_nonoverlapping(target, PAGE_SIZE) }) {
            Ok(()) => {}
            Err(error) if error.is_damaged => lost[page / 64] |= 1 << (page % 64),
            Err(gone) => return Err(gone),
        }
    }
    Ok(())
}

/// Runs a copy out of a slot, which drops nothing.
fn guarded_at(slot: NonNull<u8>, copy: impl FnMut()) -> Result<(), BusError> {
    let start = slot.as_ptr().addr();
    // SAFETY: the callers' copies drop nothing, and hold nothing that anybody waits for.
    unsafe { bus_error::guarded(start..start + SLOT_BYTES, copy) }
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
