//! The space: a reserved range of addresses, cut into slots whose backing may change while their address stays.
//!
//! One space serves the process. It is reserved once, as far as the address-space limit allows, and has two
//! zones of 1 GiB *chunks*: the heap zone, from which arenas are carved and never given back, and the run zone,
//! from which large blocks get runs of whole slots. A [`Slot`] is 2 MiB of addresses. It is *blank* (reserved, no
//! memory) or *backed* by one folio of a tier, which is mapped there and reads as zero at first. The heap commits and decommits 64 KiB
//! *slices*; a slot is backed from the first committed slice to the last decommitted one.
//!
//! Uses `pgmap` and `folio`; the [`SlotSource`] that chooses a folio is implemented above, by the pool.
//!
//! # Invariants
//! - I1: a slot's fields are read and written under its lock only.
//! - I2: `folio` is `Some` exactly while the folio's memory is mapped at the slot's address, but for orphans
//!   ([`Space::orphan`]), whose private memory is charged to nobody.
//! - I3: a slot with a committed slice or a pending commit is backed and stays so.
//! - I4: whoever changes a slot or a zone is in service ([`crate::sync::service`]), so that at a fork every slot is
//!   at rest and no lock of this module is held.

mod attributes;
mod chunk;
mod fork;
mod slot;

pub(crate) use attributes::{Attribute, Attributes, keep_all};
pub(crate) use fork::Snapshot;
pub(crate) use slot::{Mapping, Slot, SlotState, clear, release};

use crate::error::SysError;
use crate::folio::{Folio, RawFolio};
use crate::sync::LazySlice;
use crate::sys::mm::{self, Reservation};
use chunk::ChunkMap;
use slot::MapFault;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::OnceLock;

/// Bytes in a slot: the granule of mapping and migration.
pub(crate) const SLOT_BYTES: usize = 2 << 20;
/// Bytes in a slice: the unit in which the heap commits.
pub(crate) const SLICE_BYTES: usize = 64 << 10;
/// Slices in a slot.
pub(crate) const SLICES_PER_SLOT: usize = SLOT_BYTES / SLICE_BYTES;
/// Bytes in a chunk: the unit in which zones hand out address space.
pub(crate) const CHUNK_BYTES: usize = 1 << 30;
/// Slots in a chunk.
pub(crate) const SLOTS_PER_CHUNK: usize = CHUNK_BYTES / SLOT_BYTES;

const LARGEST_SPACE: usize = 1 << 44;
/// A chunk for each zone.
const SMALLEST_SPACE: usize = 2 * CHUNK_BYTES;
/// Addresses that are mapped for a moment when the smallest space is reserved: its start is a multiple of a chunk.
pub(crate) const LEAST_ADDRESSES: usize = SMALLEST_SPACE + CHUNK_BYTES;

/// Chooses the folio that backs a slot.
pub(crate) trait SlotSource: Sync {
    /// Takes a folio of 2 MiB for a slot, or says that there is none. `before` is the folio of the slot below,
    /// whose neighbour is preferred so that mappings merge.
    fn take(&self, before: Option<RawFolio>) -> Option<Folio>;

    /// Takes a folio for a slot from another tier than that of `refused`, which the kernel does not map: its limits concern
    /// one kind of memory and not another.
    fn take_elsewhere(&self, _refused: &Folio) -> Option<Folio> {
        None
    }

    /// Returns whether `len_bytes` more could be backed as things stand.
    fn has_room(&self, len_bytes: u64) -> bool;

    /// Is told that slots may have been given back.
    fn settled(&self);
}

/// The reserved range, its slots and its zones.
pub(crate) struct Space {
    range: Reservation,
    slots: LazySlice<Slot>,
    chunks: ChunkMap,
}

static SPACE: OnceLock<Space> = OnceLock::new();

/// Returns the process's space, reserving it at the first call.
///
/// # Errors
/// The refusal of mmap when not even [`SMALLEST_SPACE`] can be reserved.
pub(crate) fn space() -> Result<&'static Space, SysError> {
    if let Some(space) = SPACE.get() {
        return Ok(space);
    }
    let made = Space::reserve()?;
    Ok(SPACE.get_or_init(|| made))
}

/// Returns the process's space if it was reserved already.
pub(crate) fn existing() -> Option<&'static Space> {
    SPACE.get()
}

impl Space {
    fn reserve() -> Result<Space, SysError> {
        let mut len_bytes = longest(mm::address_limit(), table_limit());
        loop {
            let range = match Reservation::new(len_bytes, CHUNK_BYTES) {
                Ok(range) => range,
                Err(refusal) if len_bytes == SMALLEST_SPACE => return Err(refusal),
                Err(_) => {
                    len_bytes /= 2;
                    continue;
                }
            };
            // Counts against a limit on data, however little of it is touched, and must leave some to the program.
            match LazySlice::populated(len_bytes / SLOT_BYTES) {
                Ok(slots) => {
                    return Ok(Space { chunks: ChunkMap::new(len_bytes / CHUNK_BYTES), range, slots });
                }
                Err(refusal) if len_bytes == SMALLEST_SPACE => return Err(refusal),
                Err(_) => len_bytes = (len_bytes / 16).max(SMALLEST_SPACE),
            }
        }
    }

    /// Returns the address range of the heap zone.
    pub(crate) fn heap_zone(&self) -> Range<usize> {
        let base = self.range.base().as_ptr().addr();
        base..base + self.chunks.first_run_chunk() * CHUNK_BYTES
    }

    /// Returns whether `addr` lies in the space.
    pub(crate) fn contains(&self, addr: usize) -> bool {
        addr.wrapping_sub(self.range.base().as_ptr().addr()) < self.range.len_bytes()
    }

    /// Returns whether a byte of `[addr, addr + len_bytes)` lies in the space.
    #[inline]
    pub(crate) fn overlaps(&self, addr: usize, len_bytes: usize) -> bool {
        let base = self.range.base().as_ptr().addr();
        addr < base + self.range.len_bytes() && addr.saturating_add(len_bytes) > base
    }

    /// Returns the addresses of the space.
    pub(crate) fn addresses(&self) -> Range<usize> {
        let base = self.range.base().as_ptr().addr();
        base..base + self.range.len_bytes()
    }

    /// Returns the index of the slot at `addr`, or `None` outside the space.
    pub(crate) fn slot_index(&self, addr: usize) -> Option<usize> {
        self.contains(addr).then(|| (addr - self.range.base().as_ptr().addr()) / SLOT_BYTES)
    }

    /// Returns the address of a slot.
    pub(crate) fn slot_address(&self, index: usize) -> NonNull<u8> {
        self.range.at(index * SLOT_BYTES).expect("slot indices come from this space")
    }

    fn len_slots(&self) -> usize {
        self.range.len_bytes() / SLOT_BYTES
    }

    /// Returns a slot.
    pub(crate) fn slot(&self, index: usize) -> &Slot {
        assert!(index < self.len_slots(), "slot indices come from this space");
        // SAFETY: the index was just checked, and all slots were populated when the space was made.
        unsafe { self.slots.get(index) }
    }

    /// Returns the pgmap and the offset of every folio that backs a slot.
    pub(crate) fn folios(&self) -> Vec<(u16, u64)> {
        let mut folios = Vec::new();
        self.for_each_slot(|index| {
            let info = self.slot(index).lock().folio.and_then(|raw| raw.info().ok());
            folios.extend(info.map(|info| (info.pgmap, info.offset)));
        });
        folios
    }

    /// Returns the first slot above `after` whose state `is_wanted`, or else the first of all. Runs in service.
    pub(crate) fn find_slot(
        &self,
        after: usize,
        is_wanted: impl Fn(usize, &SlotState) -> bool,
    ) -> Option<usize> {
        let (mut first, mut next) = (None, None);
        self.for_each_slot(|index| {
            let is_open = next.is_none() && (index > after || first.is_none());
            if is_open && is_wanted(index, &self.slot(index).lock()) {
                let found = if index > after { &mut next } else { &mut first };
                *found = Some(index);
            }
        });
        next.or(first)
    }

    /// Returns the index and the folio of every slot that a pgmap of this process backs.
    pub(crate) fn slots_of_pgmap(&self, id: u16) -> Vec<(usize, RawFolio)> {
        let mut slots = Vec::new();
        self.for_each_slot(|index| {
            let state = self.slot(index).lock();
            let is_backed = state.mapping != Mapping::Inherited;
            slots.extend(state.folio.filter(|raw| is_backed && raw.pgmap() == id).map(|raw| (index, raw)));
        });
        slots
    }

    /// Calls `visit` with the index of every slot in use, and of some others.
    fn for_each_slot(&self, mut visit: impl FnMut(usize)) {
        self.chunks.for_each_taken(|chunk| {
            (chunk * SLOTS_PER_CHUNK..(chunk + 1) * SLOTS_PER_CHUNK).for_each(&mut visit);
        });
    }

    /// Takes `nr_chunks` neighbouring chunks of the heap zone, for good. Returns their first address.
    pub(crate) fn take_heap_chunks(&self, nr_chunks: usize) -> Option<NonNull<u8>> {
        self.chunks.take_heap(nr_chunks).and_then(|chunk| self.range.at(chunk * CHUNK_BYTES))
    }

    /// Takes `nr_chunks` neighbouring chunks of the run zone. Returns the index of their first slot.
    pub(crate) fn take_run_chunks(&self, nr_chunks: usize) -> Option<usize> {
        self.chunks.take_run(nr_chunks).map(|chunk| chunk * SLOTS_PER_CHUNK)
    }

    /// Gives chunks of the run zone back; their slots are blank.
    pub(crate) fn give_run_chunks(&self, first_slot: usize, nr_chunks: usize) {
        self.chunks.give_run(first_slot / SLOTS_PER_CHUNK, nr_chunks);
    }

    /// Commits the slices of `[addr, addr + len_bytes)`, backing blank slots with folios of `source`. Returns
    /// whether every byte of the range is known to be zero, or `None` when `source` had no folio or the kernel
    /// refused the mapping; then nothing is committed that was not before.
    ///
    /// Slices that are committed already stay as they are: the heap asks for ranges that overlap.
    pub(crate) fn commit(&self, addr: usize, len_bytes: usize, source: &dyn SlotSource) -> Option<bool> {
        let slots = self.slots_of(addr, len_bytes);
        // First every slot is backed and held by a pending count, which can fail; then the slices are marked,
        // which can't. So a failure has nothing to undo but the pending counts.
        for index in slots.clone() {
            if !self.hold(index, source) {
                for held in slots.start..index {
                    self.unhold(held, |_| ());
                }
                return None;
            }
        }
        let mut is_zero = true;
        for index in slots {
            let mask = slice_mask(self.slot_address(index).as_ptr().addr(), addr, len_bytes);
            self.unhold(index, |state| {
                is_zero &= state.dirty & mask == 0;
                state.committed |= mask;
                state.dirty |= mask;
            });
        }
        Some(is_zero)
    }

    /// Decommits the slices of `[addr, addr + len_bytes)`; slots without a committed slice become blank and their
    /// folios return to their tier.
    pub(crate) fn decommit(&self, addr: usize, len_bytes: usize) {
        for index in self.slots_of(addr, len_bytes) {
            let mask = slice_mask(self.slot_address(index).as_ptr().addr(), addr, len_bytes);
            let mut state = self.slot(index).lock();
            state.committed &= !mask;
            self.blank_if_idle(index, &mut state);
        }
    }

    /// Returns whether no slot in a range is backed.
    pub(crate) fn is_blank(&self, addr: usize, len_bytes: usize) -> bool {
        self.slots_of(addr, len_bytes).all(|index| {
            let state = self.slot(index).lock();
            state.folio.is_none() && state.committed == 0
        })
    }

    /// Takes the folios of the committed slots in a range away and gives them back to their tier, but leaves what the
    /// slots hold in place, in private memory: they are *orphans*, committed and charged to nobody, until they are charged
    /// again or nothing in them is committed. Slots without a committed slice become blank. For an arena between two
    /// owners. Nobody writes to the range meanwhile.
    ///
    /// Returns `false` when the kernel had no private memory for a slot that was mapped from a device; that slot
    /// keeps its folio.
    pub(crate) fn orphan(&self, addr: usize, len_bytes: usize) -> bool {
        let mut all = true;
        for index in self.slots_of(addr, len_bytes) {
            let mut state = self.slot(index).lock();
            self.blank_if_idle(index, &mut state);
            let Some(raw) = state.folio else { continue };
            if slot::orphan(raw, &mut state, self.slot_address(index)) {
                state.folio = None;
            } else {
                all = false;
            }
        }
        all
    }

    /// Charges the orphans in a range to folios of `source`. Returns `false`, with all of them orphans still, when
    /// it has too few.
    pub(crate) fn charge_orphans(&self, addr: usize, len_bytes: usize, source: &dyn SlotSource) -> bool {
        for index in self.slots_of(addr, len_bytes) {
            let mut state = self.slot(index).lock();
            if state.committed == 0 || state.folio.is_some() {
                continue;
            }
            let Some(folio) = source.take(None) else {
                drop(state);
                self.orphan(addr, len_bytes);
                return false;
            };
            state.folio = Some(folio.into_raw());
            state.mapping = Mapping::Private;
        }
        true
    }

    fn slots_of(&self, addr: usize, len_bytes: usize) -> Range<usize> {
        let offset = addr - self.range.base().as_ptr().addr();
        offset / SLOT_BYTES..(offset + len_bytes).div_ceil(SLOT_BYTES)
    }

    /// Backs the slot where it is blank and raises its pending count.
    fn hold(&self, index: usize, source: &dyn SlotSource) -> bool {
        let before = index.checked_sub(1).and_then(|below| self.slot(below).lock().folio);
        let mut state = self.slot(index).lock();
        if state.folio.is_none() && !self.back(index, &mut state, source, before) {
            return false;
        }
        state.pending += 1;
        true
    }

    fn unhold(&self, index: usize, mark: impl FnOnce(&mut SlotState)) {
        let mut state = self.slot(index).lock();
        state.pending -= 1;
        mark(&mut state);
        self.blank_if_idle(index, &mut state);
    }

    fn back(
        &self,
        index: usize,
        state: &mut SlotState,
        source: &dyn SlotSource,
        before: Option<RawFolio>,
    ) -> bool {
        let mut was_refused = false;
        let mut next = source.take(before);
        while let Some(folio) = next {
            next = match slot::map(&folio, self.slot_address(index)) {
                Ok(mapping) => {
                    state.mapping = mapping;
                    state.dirty = 0;
                    state.folio = Some(folio.into_raw());
                    return true;
                }
                // A device that does not answer is out of the running after its first fault, and so is a damaged folio.
                Err(MapFault::Lost(error)) => {
                    folio.pgmap().clone().note_bus_error(folio, error);
                    source.take(before)
                }
                Err(MapFault::Refused) if was_refused => return false,
                Err(MapFault::Refused) => {
                    was_refused = true;
                    source.take_elsewhere(&folio)
                }
            };
        }
        false
    }

    /// Blanks a backed slot or an orphan that nothing is committed in. A slot whose blank mapping the kernel refuses (at the
    /// limit of mappings) keeps its folio and is tried again at the next decommit or re-used by the next commit.
    fn blank_if_idle(&self, index: usize, state: &mut SlotState) {
        if state.committed != 0 || state.pending != 0 {
            return;
        }
        let Some(raw) = state.folio.take() else {
            if state.mapping == Mapping::Orphan {
                self.end_attributes(index, state);
                if slot::drop_memory(self.slot_address(index)) {
                    state.mapping = Mapping::Private;
                    state.dirty = 0;
                }
            }
            return;
        };
        self.end_attributes(index, state);
        if slot::blank(raw, state.mapping, self.slot_address(index)) {
            state.dirty = 0;
            state.pins = 0;
        } else {
            state.folio = Some(raw);
        }
    }
}

/// How long the table of slots may be where private memory is counted though nobody touches it.
fn table_limit() -> Option<u64> {
    const WHERE_ALL_IS_COUNTED: u64 = 32 << 20;
    let strict = mm::counts_what_is_unused().then_some(WHERE_ALL_IS_COUNTED);
    mm::data_limit().map(|limit_bytes| limit_bytes / 16).into_iter().chain(strict).min()
}

/// The length to begin with. Under a limit on addresses a quarter of it or less, or the smallest: each device takes as many
/// addresses as it has bytes, and the program wants some too.
///
/// The table of slots takes no more than `table_bytes`.
fn longest(limit_bytes: Option<u64>, table_bytes: Option<u64>) -> usize {
    let quarter = limit_bytes.map_or(LARGEST_SPACE as u64, |limit_bytes| limit_bytes / 4);
    let described = table_bytes
        .map_or(u64::MAX, |bytes| (bytes / size_of::<Slot>() as u64).saturating_mul(SLOT_BYTES as u64));
    let within = 1u64 << quarter.min(described).max(1).ilog2();
    (within as usize).clamp(SMALLEST_SPACE, LARGEST_SPACE)
}

/// The slices of slot `index` (at `slot_addr`) that `[addr, addr + len_bytes)` covers, whole or in part.
fn slice_mask(slot_addr: usize, addr: usize, len_bytes: usize) -> u32 {
    let first = addr.saturating_sub(slot_addr) / SLICE_BYTES;
    let end = (addr + len_bytes - slot_addr).min(SLOT_BYTES).div_ceil(SLICE_BYTES);
    let below_end = if end >= SLICES_PER_SLOT { u32::MAX } else { (1 << end) - 1 };
    below_end & (u32::MAX << first)
}

#[cfg(test)]
mod tests;
