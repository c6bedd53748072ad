//! One slot: its lock, its state, and how a folio is mapped at its address.

use crate::device::DeviceKind;
use crate::folio::{Folio, RawFolio};
use crate::pgmap::Pgmap;
use crate::space::SLOT_BYTES;
use crate::sync::{Mutex, MutexGuard, Zeroed};
use crate::sys::mm;
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
            // An emulated device drops what a freed folio held (`give_back`); this one can't.
            // SAFETY: the slot was just mapped and nobody has its addresses yet.
            unsafe { addr.write_bytes(0, SLOT_BYTES) };
            Mapping::Shared
        }
    })
}

/// Puts the reserved hole back at a slot's address and gives its folio back to its tier. Returns `false` when the
/// kernel refuses the mapping; then the slot is as before.
pub(super) fn blank(raw: RawFolio, mapping: Mapping, addr: NonNull<u8>) -> bool {
    // SAFETY: nothing is committed in the slot and its lock is held, so nobody uses its addresses.
    if unsafe { mm::map_reserved(addr, SLOT_BYTES) }.is_err() {
        return false;
    }
    give_back(raw, mapping);
    true
}

/// Gives an unmapped folio back; the device drops its memory first where it can, so that the next user reads
/// zeroes.
fn give_back(raw: RawFolio, mapping: Mapping) {
    if mapping == Mapping::Shared
        && let Ok(info) = raw.info()
        && let Some(pgmap) = Pgmap::from_id(info.pgmap)
    {
        let start = info.offset << PAGE_SHIFT;
        pgmap.device().discard(start..start + SLOT_BYTES as u64);
    }
    // A folio of the parent is refused in a forked child; then there is nothing to give back here.
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
