//! One slot: its lock, its state, and how a folio is mapped at its address.

use crate::device::DeviceKind;
use crate::folio::{Folio, RawFolio};
use crate::pgmap::Pgmap;
use crate::space::SLOT_BYTES;
use crate::sync::{Mutex, MutexGuard, Zeroed};
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
    /// How the folio is mapped; has no meaning in a blank slot.
    pub(crate) mapping: Mapping,
}

/// A slot: 2 MiB of addresses. All-zero memory is a valid blank slot, so tables of them need no set-up.
pub(crate) struct Slot(Mutex<SlotState>);

impl Default for Slot {
    fn default() -> Slot {
        Slot(Mutex::new(SlotState::default()))
    }
}

/// Maps a folio at a slot's address, zeroed; `None` when the kernel refuses, and then the slot is as before.
pub(super) fn map(folio: &Folio, addr: NonNull<u8>) -> Option<Mapping> {
    let pgmap = folio.pgmap();
    let device = pgmap.device();
    // SAFETY: the slot is blank and its lock is held, so nobody uses its addresses; the folio's range is claimed
    // by its pgmap and referenced by us.
    unsafe { device.map_at(addr, folio.offset() << PAGE_SHIFT, SLOT_BYTES) }.ok()?;
    Some(match device.kind() {
        DeviceKind::Dram | DeviceKind::Node => Mapping::Private,
        DeviceKind::Emulated => Mapping::Shared,
        DeviceKind::Dax => {
            // An emulated device drops what a freed folio held (`blank`); this one can't.
            // SAFETY: the slot was just mapped and nobody has its addresses yet.
            unsafe { addr.write_bytes(0, SLOT_BYTES) };
            Mapping::Shared
        }
    })
}

/// Puts the reserved hole back at a slot's address and gives its folio back to its tier. Returns `false` when the
/// kernel refuses the mapping; then the slot is as before, though its bytes may be gone.
pub(super) fn blank(raw: RawFolio, mapping: Mapping, addr: NonNull<u8>) -> bool {
    if mapping == Mapping::Shared && !discard(raw) {
        // The next user of the folio expects zeroes.
        // SAFETY: the slot is mapped, nothing is committed in it and its lock is held, so nobody uses its bytes.
        unsafe { addr.write_bytes(0, SLOT_BYTES) };
    }
    // SAFETY: as above.
    if unsafe { mm::map_reserved(addr, SLOT_BYTES) }.is_err() {
        return false;
    }
    put(raw);
    true
}

/// Turns a slot into one whose private memory is charged to nobody: what is mapped from a device is copied. Gives
/// the folio back. Returns the new mapping, or `None` when the kernel refuses; then the slot is as before.
pub(super) fn make_private(raw: RawFolio, mapping: Mapping, addr: NonNull<u8>) -> Option<Mapping> {
    if mapping != Mapping::Shared {
        put(raw);
        return Some(mapping);
    }
    let copy = Reservation::new(SLOT_BYTES, SLOT_BYTES).ok()?;
    // SAFETY: the reservation was just made and nothing is in it.
    unsafe { mm::map_anonymous(copy.base(), SLOT_BYTES) }.ok()?;
    // SAFETY: both ranges are mapped and do not overlap; the slot's lock is held and its owner at rest.
    unsafe { addr.copy_to_nonoverlapping(copy.base(), SLOT_BYTES) };
    // SAFETY: both ranges are ours, and the bytes at `addr` were just copied.
    unsafe { mm::move_mapping(copy.base(), SLOT_BYTES, addr) }.ok()?;
    // Its addresses are free now, and may be somebody else's by the next instruction.
    std::mem::forget(copy);
    if !discard(raw) {
        // The folio holds bytes that nobody can reach to clear them, so it is never handed out again.
        return Some(Mapping::Private);
    }
    put(raw);
    Some(Mapping::Private)
}

/// Makes the device drop what a folio holds; returns whether it reads as zero now.
fn discard(raw: RawFolio) -> bool {
    let Ok(info) = raw.info() else { return true };
    let Some(pgmap) = Pgmap::from_id(info.pgmap) else { return true };
    let start = info.offset << PAGE_SHIFT;
    // A dax device drops nothing: its folios are cleared when they are mapped.
    pgmap.device().kind() == DeviceKind::Dax || pgmap.device().discard(start..start + SLOT_BYTES as u64)
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
// never 0), no slices, no run, and the mapping's first variant.
unsafe impl Zeroed for Slot {}
