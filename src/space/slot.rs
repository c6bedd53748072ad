//! One slot: its lock, its state, and how a folio is mapped at its address.

use crate::device::{DeviceError, DeviceKind};
use crate::folio::{Folio, RawFolio};
use crate::pgmap::Pgmap;
use crate::space::{SLICE_BYTES, SLICES_PER_SLOT, SLOT_BYTES};
use crate::sync::{Mutex, MutexGuard, Zeroed};
use crate::sys::bus_error::{self, BusError};
use crate::sys::mm::{self, Reservation};
use crate::units::PAGE_SHIFT;
use std::ptr::NonNull;

/// How a backed slot's folio is mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mapping {
    /// Private anonymous memory: the folio is a share of a tier's capacity.
    #[default]
    Private = 0,
    /// The device's own bytes.
    Shared = 1,
    /// A forked child's private copy of what its parent had in a device.
    Inherited = 2,
    /// Private memory without a folio: it is charged to nobody.
    Orphan = 3,
}

impl Mapping {
    /// Returns how a device of this kind maps its folios.
    pub(crate) const fn of(kind: DeviceKind) -> Mapping {
        match kind {
            DeviceKind::Dram | DeviceKind::Node => Mapping::Private,
            DeviceKind::Emulated | DeviceKind::Dax => Mapping::Shared,
        }
    }
}

/// What a slot's lock guards. An all-zero state is a blank slot.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct SlotState {
    /// The folio that backs the slot; `None` in a blank one.
    pub(crate) folio: Option<RawFolio>,
    /// The committed slices, a bit each.
    pub(crate) committed: u32,
    /// The slices that were committed since the folio was mapped, or whose bytes are unknown.
    pub(crate) dirty: u32,
    /// Commits that hold the slot and have not marked their slices yet.
    pub(crate) pending: u32,
    /// In the first slot of a run: the run's length in slots. 0 elsewhere.
    pub(crate) run_slots: u32,
    /// Callers that want the slot to stay where it is. Ends with the memory.
    pub(crate) pins: u16,
    /// How the folio is mapped; in a slot without one it tells an orphan from a blank slot.
    pub(crate) mapping: Mapping,
    /// Whether pages have attributes, which another mapping would lack: see `attributes`.
    pub(crate) is_held: bool,
}

/// A slot: 2 MiB of addresses. All-zero memory is a valid blank slot, so tables of them need no set-up.
pub(crate) struct Slot(Mutex<SlotState>);

impl Default for Slot {
    fn default() -> Slot {
        Slot(Mutex::new(SlotState::default()))
    }
}

/// Why a folio can't back a slot, which is as before.
pub(super) enum MapFault {
    /// The kernel refuses the mapping.
    Refused,
    /// The device does not answer.
    Lost(BusError),
}

/// Maps a folio at a slot's address, zeroed.
pub(super) fn map(folio: &Folio, addr: NonNull<u8>) -> Result<Mapping, MapFault> {
    let pgmap = folio.pgmap();
    let device = pgmap.device();
    // SAFETY: the slot is blank and its lock is held, so nobody uses its addresses; the folio's range is claimed
    // by its pgmap and referenced by us.
    unsafe { device.map_at(addr, folio.offset() << PAGE_SHIFT, SLOT_BYTES) }.map_err(
        |refusal| match refusal {
            DeviceError::Gone { .. } => {
                MapFault::Lost(BusError { addr: addr.as_ptr().addr(), is_damaged: false })
            }
            _ => MapFault::Refused,
        },
    )?;
    if device.kind() == DeviceKind::Dax {
        // An emulated device drops what a freed folio held (`blank`); this one can't.
        // SAFETY: the slot was just mapped and nobody has its addresses yet.
        if let Err(error) = unsafe { bus_error::clear(addr, SLOT_BYTES) } {
            // SAFETY: as above. A refusal leaves the mapping, which nobody uses.
            let _ = unsafe { mm::map_reserved(addr, SLOT_BYTES) };
            return Err(MapFault::Lost(error));
        }
    }
    Ok(Mapping::of(device.kind()))
}

/// Puts the reserved hole back at a slot's address and gives its folio back to its tier. Returns `false` when the
/// kernel refuses the mapping; then the slot is as before, though its bytes may be gone.
pub(super) fn blank(raw: RawFolio, mapping: Mapping, addr: NonNull<u8>) -> bool {
    if mapping == Mapping::Shared && !discard(raw) {
        // The next user of the folio expects zeroes. One that can't be cleared is not handed out: `map` meets the fault.
        // SAFETY: the slot is mapped, nothing is committed in it and its lock is held, so nobody uses its bytes.
        let _ = unsafe { bus_error::clear(addr, SLOT_BYTES) };
    }
    if !drop_memory(addr) {
        return false;
    }
    let slot = addr.as_ptr().addr()..addr.as_ptr().addr() + SLOT_BYTES;
    if bus_error::is_damaged(|| Some(slot.clone())) {
        bus_error::forget_damage(&slot);
        set_aside(raw);
    } else {
        put(raw);
    }
    true
}

/// Keeps a folio whose memory is damaged out of use.
fn set_aside(raw: RawFolio) {
    if let Some(pgmap) = Pgmap::from_id(raw.pgmap()) {
        // SAFETY: the slot's own reference, which ends with it.
        pgmap.set_aside(unsafe { Folio::from_raw(raw) });
    }
}

/// Puts the reserved hole back at a slot's address. Returns `false` when the kernel refuses.
///
/// Nothing is committed in the slot, and its lock is held.
pub(super) fn drop_memory(addr: NonNull<u8>) -> bool {
    // SAFETY: the range is a slot, and nobody uses what is not committed.
    unsafe { mm::map_reserved(addr, SLOT_BYTES) }.is_ok()
}

/// Turns a slot into an orphan: the committed slices of what is mapped from a device are copied. Gives the folio back.
/// Returns `false` when the kernel refuses; then the slot is as before.
pub(super) fn orphan(raw: RawFolio, state: &mut SlotState, addr: NonNull<u8>) -> bool {
    if state.mapping == Mapping::Shared && !copy_to_private(addr, state.committed) {
        return false;
    }
    release(raw, state.mapping);
    state.mapping = Mapping::Orphan;
    true
}

/// Puts a private copy of a slot's committed slices in the place of what is mapped there. Nobody writes meanwhile.
fn copy_to_private(addr: NonNull<u8>, committed: u32) -> bool {
    let Ok(copy) = Reservation::new(SLOT_BYTES, SLOT_BYTES) else { return false };
    // SAFETY: the reservation was just made and nothing is in it.
    if unsafe { mm::map_anonymous(copy.base(), SLOT_BYTES) }.is_err() {
        return false;
    }
    let start = addr.as_ptr().addr();
    let copied =
        // SAFETY: both ranges are mapped and do not overlap; the copy drops nothing.
        unsafe { bus_error::guarded(start..start + SLOT_BYTES, || copy_slices(addr, copy.base(), committed)) };
    // SAFETY: both ranges are ours, and what is committed at `addr` was just copied.
    if copied.is_err() || unsafe { mm::move_mapping(copy.base(), SLOT_BYTES, addr) }.is_err() {
        return false;
    }
    // Its addresses are free now, and may be somebody else's by the next instruction.
    std::mem::forget(copy);
    true
}

/// Copies the committed slices of a slot to a range of 2 MiB. Writers are stopped.
pub(super) fn copy_slices(from: NonNull<u8>, to: NonNull<u8>, committed: u32) {
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

/// Makes the device drop what a folio holds; returns whether it reads as zero now.
fn discard(raw: RawFolio) -> bool {
    let Ok(info) = raw.info() else { return true };
    let Some(pgmap) = Pgmap::from_id(info.pgmap) else { return true };
    let start = info.offset << PAGE_SHIFT;
    // A dax device drops nothing: its folios are cleared when they are mapped.
    pgmap.device().kind() == DeviceKind::Dax || pgmap.device().discard(start..start + SLOT_BYTES as u64)
}

/// Makes a part of a backed slot read as zero, or all of it. The slot's lock is held.
///
/// # Safety
/// `[addr, addr + len_bytes)` lies in the slot, is writable, and its bytes are of no more use.
pub(crate) unsafe fn clear(state: &SlotState, addr: NonNull<u8>, len_bytes: usize) {
    let is_cleared = state.mapping == Mapping::Shared
        && len_bytes == SLOT_BYTES
        && state.folio.is_some_and(|raw| drops(raw) && discard(raw));
    if !is_cleared {
        // SAFETY: the caller argued it.
        unsafe { addr.write_bytes(0, len_bytes) };
    }
}

/// Whether a folio's device drops what it is told to discard. A dax device drops nothing.
fn drops(raw: RawFolio) -> bool {
    let pgmap = raw.info().ok().and_then(|info| Pgmap::from_id(info.pgmap));
    pgmap.is_some_and(|pgmap| pgmap.device().kind() == DeviceKind::Emulated)
}

/// Gives a folio back that no slot maps any more, so that its next user finds zeroes. `mapping` is how it was mapped.
pub(crate) fn release(raw: RawFolio, mapping: Mapping) {
    if mapping != Mapping::Shared || discard(raw) {
        put(raw);
    }
    // Otherwise the device kept bytes that it should have dropped: the folio is never handed out again.
}

/// Gives a folio back. One of the parent is refused in a forked child; then there is nothing to give back here.
fn put(raw: RawFolio) {
    let _ = raw.put();
}

impl Slot {
    /// Locks the slot.
    pub(crate) fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.0.lock()
    }
}

// SAFETY: the lock is free at zero, and a state of zeroes is a blank slot: no folio (the niche of a number that is
// never 0), no slices, no run, no pins, the mapping's first variant, and not held.
unsafe impl Zeroed for Slot {}
