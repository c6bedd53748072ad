//! From a device to DRAM: one function a step, and beside it what undoes it.
//!
//! mremap of the blank waits for the reader of its event, which costs as much as a part of the copy. So neighbours are
//! blocked together, [`MOST_BLOCKED`] at most, then copied and released one after the other: the last of them is blocked
//! for so many copies.

use super::copy::copy_slot;
use super::kit::Kit;
use super::place::{Place, guarded};
use super::stage::Stage;
use super::{Refusal, cannot_restore};
use crate::error::SysError;
use crate::space::SLOT_BYTES;
use crate::sys::uffd::{Mode, MoveMode};
use crate::units::PAGE_SIZE;
use std::ops::Range;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// How many neighbouring slots are blocked at a time.
pub(super) const MOST_BLOCKED: usize = 4;

/// What promotions of a batch prepare. Part `n` of each place is for the batch's `n`th slot.
pub(super) struct Prepared<'a> {
    /// Second mappings of the device's memory.
    pub(super) alias: Place,
    /// Empty mappings, which are moved over the slots.
    pub(super) blank: Place,
    /// The pages that are going to be the slots'.
    pub(super) pages: Pages<'a>,
}

/// Where the pages are that are going to be the slots'.
pub(super) enum Pages<'a> {
    /// In these parts of the worker's stage, whose pages are moved (`PromoteWay::MoveIn`).
    Staged(&'a mut Stage, [usize; super::MOST_MOVES]),
    /// In mappings that are moved themselves (`PromoteWay::RemapIn`).
    Mapped(Place),
}

impl Pages<'_> {
    fn addr(&self, part: usize) -> NonNull<u8> {
        match self {
            Pages::Staged(stage, parts) => stage.addr(parts[part]),
            Pages::Mapped(place) => place.addr(part),
        }
    }
}

/// Promotes neighbouring slots, the first of which is at `slot`, from the device's memory that `parts` of the alias map. The
/// slots' locks are held. `done` hears of each slot what came of it, as soon as the slot is released: how long it was
/// blocked, or a [`Refusal`], after which it is as it was.
pub(super) fn promote(
    kit: &'static Kit,
    slot: NonNull<u8>,
    prepared: &mut Prepared<'_>,
    parts: Range<usize>,
    mut done: impl FnMut(usize, Result<Duration, Refusal>),
) {
    let slot_at = |part: usize| {
        // SAFETY: there is a slot for each part.
        unsafe { slot.add((part - parts.start) * SLOT_BYTES) }
    };
    #[cfg(test)]
    #[cfg(not(loom))]
    if super::sabotage::skips_blank(slot) {
        for part in parts.clone() {
            done(part, promote_without_blank(slot_at(part), prepared, part));
        }
        return;
    }
    let start = Instant::now();
    if let Err(refusal) = block(kit, slot, &mut prepared.blank, parts.clone()) {
        for part in parts.clone() {
            done(part, Err(Refusal::of_mapping(refusal.clone())));
        }
        return;
    }
    for part in parts.clone() {
        let slot = slot_at(part);
        #[cfg(test)]
        #[cfg(not(loom))]
        super::sabotage::before_copy(slot);
        let outcome = fill(kit, slot, prepared, part);
        match &outcome {
            Ok(()) => release(kit, slot),
            Err(_) => map_slow_again(kit, slot, &mut prepared.alias, part),
        }
        done(part, outcome.map(|()| start.elapsed()));
    }
}

/// Maps blanks over slots: whoever comes now waits. On a refusal nothing has changed.
fn block(kit: &Kit, slot: NonNull<u8>, blank: &mut Place, parts: Range<usize>) -> Result<(), SysError> {
    let (addr, len_bytes) = (blank.addr(parts.start), parts.len() * SLOT_BYTES);
    // Not earlier: a call such as mlockall that touches every page of the process would wait at a registered one.
    // SAFETY: the blank is ours; `release` or `map_slow_again` lets everybody go on that waits once it is over the slot.
    unsafe { kit.following.register(addr, len_bytes, Mode::Missing) }?;
    // SAFETY: the device's bytes stay reachable through the alias.
    unsafe { blank.move_over(parts, slot) }
}

/// Copies a slot's bytes and gives it the pages that hold the copy.
fn fill(kit: &Kit, slot: NonNull<u8>, prepared: &mut Prepared<'_>, part: usize) -> Result<(), Refusal> {
    let (from, to) = (prepared.alias.addr(part), prepared.pages.addr(part));
    // SAFETY: nobody writes to the device's range (M1), and nobody but us knows the pages.
    let copy = || unsafe { copy_slot(from, to) };
    // SAFETY: a copy drops nothing.
    unsafe { guarded(from, copy) }?;
    match &mut prepared.pages {
        Pages::Staged(stage, parts) => match swap_by_moving(kit, slot, to).map_err(Refusal::of_mapping)? {
            Left::Nothing => {
                stage.note_moved_out(parts[part]);
                Ok(())
            }
            Left::Copies => {
                stage.drop_pages(parts[part]);
                Ok(())
            }
        },
        Pages::Mapped(place) => swap_by_remapping(slot, place, part).map_err(Refusal::of_mapping),
    }
}

/// What a move of pages has left in the stage.
enum Left {
    Nothing,
    Copies,
}

/// Fills the blank with the stage's pages, at once where the stage is one huge page. With small pages the program goes
/// on with the first while others are still missing: from then on there is no way back, only forward.
fn swap_by_moving(kit: &Kit, slot: NonNull<u8>, pages: NonNull<u8>) -> Result<Left, SysError> {
    // SAFETY: the slot is the registered blank, and nobody else knows the stage.
    match unsafe { kit.following.move_pages(slot, pages, SLOT_BYTES, MoveMode::Whole) } {
        Ok(()) => Ok(Left::Nothing),
        Err(stopped) if stopped.moved_bytes == 0 => Err(stopped.refusal),
        Err(stopped) => {
            fill_by_page(kit, slot, pages, stopped.moved_bytes);
            Ok(Left::Copies)
        }
    }
}

/// Fills the rest of the blank, copying the pages that the kernel does not move.
#[cold]
fn fill_by_page(kit: &Kit, slot: NonNull<u8>, pages: NonNull<u8>, done_bytes: usize) {
    for offset in (done_bytes..SLOT_BYTES).step_by(PAGE_SIZE) {
        // SAFETY: the offset lies inside both ranges.
        let to = unsafe { slot.add(offset) };
        // SAFETY: as above.
        let from = unsafe { pages.add(offset) };
        // SAFETY: as in `swap_by_moving`.
        let moved = unsafe { kit.following.move_pages(to, from, PAGE_SIZE, MoveMode::Whole) };
        // SAFETY: as above; the stage is readable.
        if moved.is_err() && unsafe { kit.following.copy(to, from, PAGE_SIZE) }.is_err() {
            cannot_restore();
        }
    }
}

/// Maps the pages over the blank.
fn swap_by_remapping(slot: NonNull<u8>, pages: &mut Place, part: usize) -> Result<(), SysError> {
    // SAFETY: the slot is the blank, in which nothing is.
    unsafe { pages.move_over(part..part + 1, slot) }
}

/// Undoes `block` for a slot: the device is mapped there again, and everybody goes on.
fn map_slow_again(kit: &Kit, slot: NonNull<u8>, alias: &mut Place, part: usize) {
    // SAFETY: the alias maps what was at the slot, and no page came into the blank.
    if unsafe { alias.move_over(part..part + 1, slot) }.is_err() {
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
fn promote_without_blank(
    slot: NonNull<u8>,
    prepared: &mut Prepared<'_>,
    part: usize,
) -> Result<Duration, Refusal> {
    let start = Instant::now();
    let mut pages = Place::reserve(1)?;
    // SAFETY: the reservation is ours, and nothing is in it.
    unsafe { crate::sys::mm::map_anonymous(pages.addr(0), SLOT_BYTES) }.map_err(Refusal::of_mapping)?;
    // SAFETY: both are mapped. The program writes to the device's range meanwhile: that is the defect.
    unsafe { copy_slot(prepared.alias.addr(part), pages.addr(0)) };
    swap_by_remapping(slot, &mut pages, 0).map_err(Refusal::of_mapping)?;
    Ok(start.elapsed())
}
