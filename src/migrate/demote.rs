//! From DRAM to a device: one function a step, and beside it what undoes it.

use super::copy::copy_slot;
use super::kit::{DemoteWay, Kit};
use super::place::{Place, guarded};
use super::stage::Stage;
use super::{Refusal, cannot_restore};
use crate::error::SysError;
use crate::space::SLOT_BYTES;
use crate::sys::uffd::{Mode, MoveMode, MoveStopped};
use crate::units::PAGE_SIZE;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// Demotes a slot of private memory into the device range that part `part` of `alias` maps. The slot's lock is held. Returns
/// how long the slot was blocked.
///
/// # Errors
/// [`Refusal`]; the slot is as it was.
pub(super) fn demote(
    kit: &'static Kit,
    way: DemoteWay,
    slot: NonNull<u8>,
    alias: &mut Place,
    part: usize,
    stage: &mut Stage,
) -> Result<Duration, Refusal> {
    #[cfg(test)]
    #[cfg(not(loom))]
    if super::sabotage::skips_block(slot) {
        return demote_without_block(slot, alias, part);
    }
    match way {
        DemoteWay::MoveOut => demote_by_moving(kit, slot, alias, part, stage),
        DemoteWay::Protect => demote_by_protecting(kit, slot, alias, part),
    }
}

fn demote_by_moving(
    kit: &'static Kit,
    slot: NonNull<u8>,
    alias: &mut Place,
    part: usize,
    stage: &mut Stage,
) -> Result<Duration, Refusal> {
    let stage_part = stage.take_empty()?;
    let pages = stage.addr(stage_part);
    // SAFETY: the stage is ours and nobody waits there.
    unsafe { kit.still.register(pages, SLOT_BYTES, Mode::Missing) }.map_err(Refusal::of_mapping)?;
    // SAFETY: the slot's lock is held; `release` or `put_back` lets everybody go on that waits.
    if let Err(refusal) = unsafe { kit.still.register(slot, SLOT_BYTES, Mode::Missing) } {
        let _ = kit.still.unregister(pages, SLOT_BYTES);
        return Err(Refusal::of_mapping(refusal));
    }

    let start = Instant::now();
    if let Err(stopped) = block_by_moving(kit, slot, pages) {
        put_back(kit, slot, pages);
        stage.drop_pages(stage_part);
        // SAFETY: the page that refused lies in the slot.
        let page = unsafe { slot.add(stopped.moved_bytes.min(SLOT_BYTES - PAGE_SIZE)) };
        return Err(Refusal::of_page(stopped.refusal, page));
    }
    #[cfg(test)]
    #[cfg(not(loom))]
    super::sabotage::before_copy(slot);
    let to = alias.addr(part);
    // SAFETY: nobody but us knows the stage (M1: it holds all that the slot held) or the alias.
    let copy = || unsafe { copy_slot(pages, to) };
    // SAFETY: a copy drops nothing.
    let copied = unsafe { guarded(to, copy) };
    if let Err(refusal) = copied.and_then(|()| swap(slot, alias, part)) {
        put_back(kit, slot, pages);
        stage.drop_pages(stage_part);
        return Err(refusal);
    }
    release(kit, slot);
    let blocked = start.elapsed();
    stage.drop_pages(stage_part);
    Ok(blocked)
}

/// Takes the pages away from the slot. Their holes stay holes: what the program never touched is not copied from
/// anywhere but reads as zero in the stage.
fn block_by_moving(kit: &Kit, slot: NonNull<u8>, stage: NonNull<u8>) -> Result<(), MoveStopped> {
    // SAFETY: both ranges are registered; who uses the slot's address waits.
    unsafe { kit.still.move_pages(stage, slot, SLOT_BYTES, MoveMode::WithHoles) }?;
    // So that reading a hole does not wait for ourselves.
    kit.still
        .unregister(stage, SLOT_BYTES)
        .map_err(|refusal| MoveStopped { moved_bytes: SLOT_BYTES, refusal })
}

/// Undoes `block_by_moving`, whole or in part: the pages go back to where they were, and everybody goes on.
fn put_back(kit: &Kit, slot: NonNull<u8>, stage: NonNull<u8>) {
    // A refusal: it is not registered any more.
    let _ = kit.still.unregister(stage, SLOT_BYTES);
    // SAFETY: the slot is registered, and its pages are in the stage, of which nobody else knows.
    let back = unsafe { kit.still.move_pages(slot, stage, SLOT_BYTES, MoveMode::WithHolesQuietly) };
    if back.is_err() && !put_back_by_page(kit, slot, stage) {
        cannot_restore();
    }
    // In this order: a thread that is woken must not wait again at a hole.
    let _ = kit.still.unregister(slot, SLOT_BYTES);
    release(kit, slot);
}

/// Puts single pages back, copying those that the kernel does not move. Returns `false` when one can't be had back.
#[cold]
fn put_back_by_page(kit: &Kit, slot: NonNull<u8>, stage: NonNull<u8>) -> bool {
    (0..SLOT_BYTES).step_by(PAGE_SIZE).all(|offset| {
        // SAFETY: the offset lies inside both ranges.
        let to = unsafe { slot.add(offset) };
        // SAFETY: as above.
        let from = unsafe { stage.add(offset) };
        // SAFETY: as in `put_back`.
        let moved = unsafe { kit.still.move_pages(to, from, PAGE_SIZE, MoveMode::WithHolesQuietly) };
        let there = |refusal: &SysError| refusal.errno == libc::EEXIST;
        match moved {
            Ok(()) => true,
            // The page never left.
            Err(stopped) if there(&stopped.refusal) => true,
            // SAFETY: as in `put_back`; the stage is readable.
            Err(_) => match unsafe { kit.still.copy(to, from, PAGE_SIZE) } {
                Ok(()) => true,
                Err(refusal) => there(&refusal),
            },
        }
    })
}

fn demote_by_protecting(
    kit: &'static Kit,
    slot: NonNull<u8>,
    alias: &mut Place,
    part: usize,
) -> Result<Duration, Refusal> {
    // SAFETY: the slot's lock is held; `release` or `unprotect` lets everybody go on that waits.
    unsafe { kit.still.register(slot, SLOT_BYTES, Mode::WriteProtect) }.map_err(Refusal::of_mapping)?;
    if !kit.protects_missing {
        touch_every_page(slot);
    }

    let start = Instant::now();
    if let Err(refusal) = block_by_protecting(kit, slot) {
        unprotect(kit, slot);
        return Err(Refusal::of_mapping(refusal));
    }
    #[cfg(test)]
    #[cfg(not(loom))]
    super::sabotage::before_copy(slot);
    let to = alias.addr(part);
    // SAFETY: nobody writes to the slot (M1), and nobody but us knows the alias.
    let copy = || unsafe { copy_slot(slot, to) };
    // SAFETY: a copy drops nothing.
    let copied = unsafe { guarded(to, copy) };
    if let Err(refusal) = copied.and_then(|()| swap(slot, alias, part)) {
        unprotect(kit, slot);
        return Err(refusal);
    }
    release(kit, slot);
    Ok(start.elapsed())
}

/// Makes every page exist, because this kernel protects only those that do.
fn touch_every_page(slot: NonNull<u8>) {
    for offset in (0..SLOT_BYTES).step_by(PAGE_SIZE) {
        // SAFETY: the offset lies inside the slot.
        let page = unsafe { slot.add(offset) };
        // SAFETY: the slot is mapped; the program may write to the byte meanwhile, which an atomic read allows.
        let byte = unsafe { std::sync::atomic::AtomicU8::from_ptr(page.as_ptr()) };
        // Relaxed: only the fault matters.
        byte.load(std::sync::atomic::Ordering::Relaxed);
    }
}

fn block_by_protecting(kit: &Kit, slot: NonNull<u8>) -> Result<(), SysError> {
    kit.still.write_protect(slot, SLOT_BYTES)
}

/// Undoes `block_by_protecting`: the pages never left.
fn unprotect(kit: &Kit, slot: NonNull<u8>) {
    // Ending the registration clears the protection even if the first call is refused.
    let _ = kit.still.write_unprotect(slot, SLOT_BYTES);
    let _ = kit.still.unregister(slot, SLOT_BYTES);
    release(kit, slot);
}

/// Maps the device at the slot, with the page tables that the alias has already.
fn swap(slot: NonNull<u8>, alias: &mut Place, part: usize) -> Result<(), Refusal> {
    // SAFETY: the alias holds the same bytes as the slot did when it was blocked.
    unsafe { alias.move_over(part..part + 1, slot) }.map_err(Refusal::of_mapping)
}

/// Lets everybody go on that waits in the slot.
fn release(kit: &Kit, slot: NonNull<u8>) {
    // Refused only for a descriptor that is gone, and with it everybody's waiting.
    let _ = kit.still.wake(slot, SLOT_BYTES);
}

/// The protocol without its first step, for the test of the checker that must notice.
#[cfg(test)]
#[cfg(not(loom))]
fn demote_without_block(slot: NonNull<u8>, alias: &mut Place, part: usize) -> Result<Duration, Refusal> {
    let start = Instant::now();
    // SAFETY: both are mapped. The program writes to the slot meanwhile: that is the defect.
    unsafe { copy_slot(slot, alias.addr(part)) };
    swap(slot, alias, part)?;
    Ok(start.elapsed())
}
