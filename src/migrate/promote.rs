//! From a device to DRAM: one function a step, and beside it what undoes it.

use super::copy::copy_slot;
use super::kit::{Kit, PromoteWay};
use super::place::Place;
use super::{Refusal, cannot_restore};
use crate::error::SysError;
use crate::space::SLOT_BYTES;
use crate::sys::uffd::{Mode, MoveMode};
use crate::units::PAGE_SIZE;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// Promotes a slot that is mapped from a device, of which `alias` is a second mapping. `stage` is populated private
/// memory, `blank` an empty mapping. Returns how long the slot was blocked.
///
/// # Errors
/// [`Refusal`]; the slot is as it was.
pub(super) fn promote(
    kit: &'static Kit,
    way: PromoteWay,
    slot: NonNull<u8>,
    alias: Place,
    stage: Place,
    blank: Place,
) -> Result<Duration, Refusal> {
    #[cfg(test)]
    #[cfg(not(loom))]
    if super::sabotage::skips_blank(slot) {
        return promote_without_blank(slot, alias, stage);
    }
    // Not earlier: a call such as mlockall that touches every page of the process would wait at a registered one.
    // SAFETY: the blank is ours; `release` lets everybody go on that waits once it is over the slot.
    unsafe { kit.following.register(blank.addr(), SLOT_BYTES, Mode::Missing) }
        .map_err(Refusal::of_mapping)?;

    let start = Instant::now();
    block(slot, blank).map_err(Refusal::of_mapping)?;
    #[cfg(test)]
    #[cfg(not(loom))]
    super::sabotage::before_copy(slot);
    // SAFETY: nobody writes to the device's range (M1), and nobody but us knows the stage.
    let copy = || unsafe { copy_slot(alias.addr(), stage.addr()) };
    // SAFETY: a copy drops nothing.
    let copied = unsafe { alias.guarded(copy) };
    let swapped = copied.and_then(|()| {
        let swapped = match way {
            PromoteWay::MoveIn => swap_by_moving(kit, slot, &stage),
            PromoteWay::RemapIn => swap_by_remapping(slot, stage),
        };
        swapped.map_err(Refusal::of_mapping)
    });
    if let Err(refusal) = swapped {
        map_slow_again(kit, slot, alias);
        return Err(refusal);
    }
    release(kit, slot);
    Ok(start.elapsed())
}

/// Maps the blank over the slot: whoever comes now waits. On a refusal nothing has changed.
fn block(slot: NonNull<u8>, blank: Place) -> Result<(), SysError> {
    // SAFETY: the device's bytes stay reachable through the alias.
    unsafe { blank.move_over(slot) }.map_err(|(_, refusal)| refusal)
}

/// Fills the blank with the stage's pages, at once where the stage is one huge page. With small pages the program goes
/// on with the first while others are still missing: from then on there is no way back, only forward.
fn swap_by_moving(kit: &Kit, slot: NonNull<u8>, stage: &Place) -> Result<(), SysError> {
    // SAFETY: the slot is the registered blank, and nobody else knows the stage.
    match unsafe { kit.following.move_pages(slot, stage.addr(), SLOT_BYTES, MoveMode::Whole) } {
        Ok(()) => Ok(()),
        Err(stopped) if stopped.moved_bytes == 0 => Err(stopped.refusal),
        Err(stopped) => {
            fill_by_page(kit, slot, stage, stopped.moved_bytes);
            Ok(())
        }
    }
}

/// Fills the rest of the blank, copying the pages that the kernel does not move.
#[cold]
fn fill_by_page(kit: &Kit, slot: NonNull<u8>, stage: &Place, done_bytes: usize) {
    for offset in (done_bytes..SLOT_BYTES).step_by(PAGE_SIZE) {
        // SAFETY: the offset lies inside both ranges.
        let to = unsafe { slot.add(offset) };
        // SAFETY: as above.
        let from = unsafe { stage.addr().add(offset) };
        // SAFETY: as in `swap_by_moving`.
        let moved = unsafe { kit.following.move_pages(to, from, PAGE_SIZE, MoveMode::Whole) };
        // SAFETY: as above; the stage is readable.
        if moved.is_err() && unsafe { kit.following.copy(to, from, PAGE_SIZE) }.is_err() {
            cannot_restore();
        }
    }
}

/// Maps the stage over the blank.
fn swap_by_remapping(slot: NonNull<u8>, stage: Place) -> Result<(), SysError> {
    // SAFETY: the slot is the blank, in which nothing is.
    unsafe { stage.move_over(slot) }.map_err(|(_, refusal)| refusal)
}

/// Undoes `block`: the device is mapped at the slot again, and everybody goes on.
fn map_slow_again(kit: &Kit, slot: NonNull<u8>, alias: Place) {
    // SAFETY: the alias maps what was at the slot, and no page came into the blank.
    if unsafe { alias.move_over(slot) }.is_err() {
        cannot_restore();
    }
    let _ = kit.following.wake(slot, SLOT_BYTES);
}

/// Ends the registration and lets everybody go on that waits in the slot.
fn release(kit: &Kit, slot: NonNull<u8>) {
    // Every page is there, so nobody waits anew even where the registration stays (at the limit of mappings, when the
    // range would have to be split off its neighbour's).
    let _ = kit.following.unregister(slot, SLOT_BYTES);
    let _ = kit.following.wake(slot, SLOT_BYTES);
}

/// The protocol without its first step, for the test of the checker that must notice.
#[cfg(test)]
#[cfg(not(loom))]
fn promote_without_blank(slot: NonNull<u8>, alias: Place, stage: Place) -> Result<Duration, Refusal> {
    let start = Instant::now();
    // SAFETY: both are mapped. The program writes to the device's range meanwhile: that is the defect.
    unsafe { copy_slot(alias.addr(), stage.addr()) };
    swap_by_remapping(slot, stage).map_err(Refusal::of_mapping)?;
    Ok(start.elapsed())
}
