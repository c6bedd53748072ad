//! Calls of the program on its memory, where that memory lies in slots: mprotect, madvise, mlock, mbind and the like.
//!
//! What such a call asks for, the kernel keeps with a mapping. A device's mapping can't be split below the device's
//! granule, and a slot that moves gets another mapping. So [`perform`] first brings the slots that a call is about to DRAM
//! where need be, makes the call, and keeps them there while an attribute lasts; the call that ends the last one lets them
//! move again. The preload library stands in for the C library's functions and asks [`touches`] first, so that a call
//! on other memory costs one comparison more. Uses `space` and the pool's migration.
//!
//! # What becomes of a call
//! | call | in DRAM | on a device |
//! |---|---|---|
//! | mprotect, pkey_mprotect, mbind, MADV_DONTDUMP, MADV_GUARD_INSTALL | made; held | brought to DRAM, another slot going for it where DRAM is full, else refused |
//! | mlock | made; held | brought to DRAM, else all of the slot is locked where it is; held |
//! | MADV_DONTFORK, MADV_WIPEONFORK | made; held | held, and made true in a forked child |
//! | MADV_DONTNEED | made | the bytes are cleared |
//! | MADV_FREE, MADV_COLD, MADV_PAGEOUT | made | nothing: the kernel may do nothing too |
//! | MADV_HUGEPAGE, MADV_RANDOM and others that only hint at how the kernel should treat a mapping | nothing | nothing |
//! | munmap, mremap | refused | refused |
//!
//! vmsplice has a pipe keep pages that it is given. Those of DRAM stay what they are when the block is moved or freed; a
//! device's are the next owner's. process_vm_writev holds the pages that it is about to write to, and what it writes to a device's
//! is lost if the block leaves meanwhile. So [`bring_to_dram`] goes before both.
//!
//! A program owns blocks of malloc, not their mappings: the rest of the slot is other blocks', and the kernel would give the
//! hole to the next mmap. Hence the last row.

use super::migration::Outcome;
use super::pool::Pool;
use crate::policy::TierName;
use crate::space::{self, Attribute, Attributes, Mapping, SLOT_BYTES, SlotState, Space};
use crate::sync::{gate, service};
use crate::sys::memory_call::issue;
use crate::units::PAGE_SIZE;
use libc::c_int;
use std::ops::Range;

pub use crate::sys::memory_call::MemoryCall;

/// A refusal: an `errno` value.
pub type Errno = c_int;

/// How often a slot is brought to DRAM that others send back meanwhile.
const MOST_TRIES: usize = 4;

// Of Linux 6.13; libc lacks them.
const MADV_GUARD_INSTALL: c_int = 102;
const MADV_GUARD_REMOVE: c_int = 103;

/// Returns whether a byte of `[addr, addr + len_bytes)` lies in slots of this process. Async-signal-safe.
#[inline]
pub fn touches(addr: usize, len_bytes: usize) -> bool {
    space::existing().is_some_and(|space| space.overlaps(addr, len_bytes))
}

/// Makes a call for `[addr, addr + len_bytes)`, which touches slots; what lies outside is the kernel's. `pool` can move what
/// it has.
///
/// # Safety
/// The call is the program's, on memory of its own.
///
/// # Errors
/// What the kernel says, which may have done a part as it may outside. `ENOMEM` (`EAGAIN` from madvise and mlock) also when
/// memory on a device can't be brought to DRAM, and in a signal handler that interrupted the library.
pub unsafe fn perform(
    pool: Option<&Pool>,
    call: MemoryCall,
    addr: usize,
    len_bytes: usize,
) -> Result<(), Errno> {
    // SAFETY: the caller argued it.
    let pass_on = |addr, len_bytes| match unsafe { issue(call, addr, len_bytes) } {
        Ok(()) => Ok(()),
        Err(refusal) => Err(refusal.errno),
    };
    let is_lock = matches!(call, MemoryCall::Lock { .. } | MemoryCall::Unlock);
    let start = if is_lock { addr / PAGE_SIZE * PAGE_SIZE } else { addr };
    let end = addr.checked_add(len_bytes).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
    let (Some(space), Some(end)) = (space::existing(), end.filter(|_| start.is_multiple_of(PAGE_SIZE)))
    else {
        // Something is wrong with the arguments, so the kernel refuses them and changes nothing.
        return pass_on(addr, len_bytes);
    };
    let zone = space.addresses();
    let parts =
        [start..end.min(zone.start), start.max(zone.start)..end.min(zone.end), start.max(zone.end)..end];
    for (part, is_ours) in parts.into_iter().zip([false, true, false]) {
        if part.is_empty() {
            continue;
        }
        if is_ours {
            Slots { space, pool, call }.perform(part)?;
        } else {
            pass_on(part.start, part.len())?;
        }
    }
    Ok(())
}

/// Brings the slots that a range touches to DRAM as far as that can be done, for a call that has the kernel keep their pages. Not
/// in a signal handler that interrupted the library.
pub fn bring_to_dram(pool: Option<&Pool>, addr: usize, len_bytes: usize) {
    let (Some(space), Some(end)) = (space::existing(), addr.checked_add(len_bytes)) else { return };
    let zone = space.addresses();
    let range = addr.max(zone.start)..end.min(zone.end);
    if range.is_empty() || gate::is_inside() {
        return;
    }
    let slots = Slots { space, pool, call: MemoryCall::Unlock };
    let kept = slots.slots(&range);
    for part in slots.parts(&range) {
        // Of a slot without memory, or one that stays where it is: the call says what it thinks of the first.
        let _ = slots.bring(&part, Place::Rather, &kept);
    }
}

/// All slots stay where they are, since [`lock_all`].
#[must_use = "a refused mlockall is undone"]
#[derive(Debug)]
pub struct AllLocked {
    /// Whether they did before.
    did: bool,
}

impl AllLocked {
    /// Lets them move again, unless an earlier call keeps them too.
    pub fn undo(self) {
        if !self.did {
            service::run(|| space::keep_all(false));
        }
    }
}

/// Keeps all slots where they are, for a program that locks all of its memory. `None` in a signal handler that interrupted
/// the library: then nothing was done.
pub fn lock_all() -> Option<AllLocked> {
    if gate::is_inside() {
        return None;
    }
    Some(AllLocked { did: service::run(|| space::keep_all(true)) })
}

/// Ends [`lock_all`], and the locks of single pages.
pub fn unlock_all() {
    if gate::is_inside() {
        return;
    }
    service::run(|| match space::existing() {
        Some(space) => space.unlock_all(),
        None => {
            space::keep_all(false);
        }
    });
}

/// What is to be done about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// Nothing: a hint that slots do not heed.
    Nothing,
    /// It is refused.
    Refuse(Errno),
    /// It is passed on: it concerns pages, not mappings.
    PassOn,
    /// It is passed on for private memory, and without meaning for a device's.
    InDram,
    /// The bytes read as zero afterwards.
    Discard,
    /// Pages lose and gain attributes.
    Change { lost: Attributes, gained: Attributes, place: Place },
}

/// Where memory has to be that gains an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In DRAM.
    Dram,
    /// In DRAM if it can be had.
    Rather,
    /// Where it is.
    Any,
}

fn plan(call: MemoryCall) -> Plan {
    let change = |attribute, is_gained, place| {
        let (this, none) = (Attributes::of(attribute), Attributes::NONE);
        let (lost, gained) = if is_gained { (none, this) } else { (this, none) };
        Plan::Change { lost, gained, place }
    };
    match call {
        MemoryCall::Protect { prot, key } => {
            let mut sides = [Attributes::NONE; 2];
            let is_plain = prot == libc::PROT_READ | libc::PROT_WRITE;
            for (attribute, has, is_asked) in
                [(Attribute::Protected, !is_plain, true), (Attribute::Keyed, key > 0, key >= 0)]
            {
                if is_asked {
                    let side = &mut sides[usize::from(has)];
                    *side = side.and(Attributes::of(attribute));
                }
            }
            Plan::Change { lost: sides[0], gained: sides[1], place: Place::Dram }
        }
        MemoryCall::Lock { .. } => change(Attribute::Locked, true, Place::Rather),
        MemoryCall::Unlock => change(Attribute::Locked, false, Place::Any),
        MemoryCall::Bind { mode, .. } => change(Attribute::Bound, mode != libc::MPOL_DEFAULT, Place::Dram),
        MemoryCall::Advise { advice } => match advice {
            libc::MADV_NORMAL
            | libc::MADV_RANDOM
            | libc::MADV_SEQUENTIAL
            | libc::MADV_HUGEPAGE
            | libc::MADV_NOHUGEPAGE
            | libc::MADV_UNMERGEABLE => Plan::Nothing,
            libc::MADV_WILLNEED
            | libc::MADV_POPULATE_READ
            | libc::MADV_POPULATE_WRITE
            | libc::MADV_HWPOISON
            | libc::MADV_SOFT_OFFLINE => Plan::PassOn,
            libc::MADV_FREE | libc::MADV_COLD | libc::MADV_PAGEOUT | libc::MADV_COLLAPSE => Plan::InDram,
            libc::MADV_DONTNEED | libc::MADV_DONTNEED_LOCKED => Plan::Discard,
            libc::MADV_DONTFORK => change(Attribute::NotForked, true, Place::Any),
            libc::MADV_DOFORK => change(Attribute::NotForked, false, Place::Any),
            libc::MADV_WIPEONFORK => change(Attribute::Wiped, true, Place::Any),
            libc::MADV_KEEPONFORK => change(Attribute::Wiped, false, Place::Any),
            libc::MADV_DONTDUMP => change(Attribute::NotDumped, true, Place::Dram),
            libc::MADV_DODUMP => change(Attribute::NotDumped, false, Place::Dram),
            MADV_GUARD_INSTALL => change(Attribute::Guarded, true, Place::Dram),
            MADV_GUARD_REMOVE => change(Attribute::Guarded, false, Place::Dram),
            // Merging pages of several slots would keep them from moving; a kernel may lack it too.
            _ => Plan::Refuse(libc::EINVAL),
        },
    }
}

/// A call on slots.
struct Slots<'a> {
    space: &'static Space,
    pool: Option<&'a Pool>,
    call: MemoryCall,
}

/// What the call is about in one slot.
struct Part {
    index: usize,
    /// Where it begins.
    addr: usize,
    len_bytes: usize,
    pages: Range<usize>,
}

impl Slots<'_> {
    fn perform(&self, range: Range<usize>) -> Result<(), Errno> {
        let plan = plan(self.call);
        match plan {
            Plan::Refuse(errno) => return Err(errno),
            Plan::PassOn => return self.issue(range.start, range.len()),
            _ => {}
        }
        // A lock of a slot may be in the hands of the code that the signal handler interrupted.
        if gate::is_inside() {
            return Err(self.no_resources());
        }
        let parts = || self.parts(&range);
        if let Plan::Change { gained, place: place @ (Place::Dram | Place::Rather), .. } = plan
            && !gained.is_empty()
        {
            // All of them before the first change, so that a refusal changes nothing.
            let kept = self.slots(&range);
            parts().try_for_each(|part| self.bring(&part, place, &kept))?;
        }
        parts().try_for_each(|part| self.perform_part(&part, plan))
    }

    fn parts(&self, range: &Range<usize>) -> impl Iterator<Item = Part> + use<> {
        let (space, range) = (self.space, range.clone());
        (range.start / SLOT_BYTES..range.end.div_ceil(SLOT_BYTES)).map(move |at| {
            let slot = at * SLOT_BYTES;
            let (addr, end) = (range.start.max(slot), range.end.min(slot + SLOT_BYTES));
            Part {
                index: space.slot_index(slot).expect("the range lies in the space, whose slots are aligned"),
                addr,
                len_bytes: end - addr,
                pages: (addr - slot) / PAGE_SIZE..(end - slot) / PAGE_SIZE,
            }
        })
    }

    /// The slots that a range touches.
    fn slots(&self, range: &Range<usize>) -> Range<usize> {
        let index = |addr| self.space.slot_index(addr).expect("the range lies in the space");
        index(range.start)..index(range.end - 1) + 1
    }

    /// Brings a slot to DRAM that is on a device; where there is no room, another one that is not `kept` goes. Not in
    /// service: it waits for another thread.
    fn bring(&self, part: &Part, place: Place, kept: &Range<usize>) -> Result<(), Errno> {
        for _ in 0..MOST_TRIES {
            let is_on_device = service::run(|| {
                let state = self.space.slot(part.index).lock();
                if is_blank(&state) { Err(libc::ENOMEM) } else { Ok(state.mapping == Mapping::Shared) }
            });
            if !is_on_device? {
                return Ok(());
            }
            let at = std::ptr::without_provenance(part.addr);
            let Some(pool) = self.pool else { break };
            let Ok(counts) = pool.migrate(at, 1, TierName::Fast) else { break };
            let is_full = counts.get(Outcome::NoSpace) == 1;
            if counts.in_place() == 0 && !(is_full && pool.make_room(kept)) {
                break;
            }
        }
        if place == Place::Rather { Ok(()) } else { Err(self.no_resources()) }
    }

    fn perform_part(&self, part: &Part, plan: Plan) -> Result<(), Errno> {
        service::run(|| {
            let mut state = self.space.slot(part.index).lock();
            if is_blank(&state) {
                return Err(libc::ENOMEM);
            }
            let is_on_device = state.mapping == Mapping::Shared;
            match plan {
                Plan::Nothing | Plan::Refuse(_) | Plan::PassOn => Ok(()),
                Plan::InDram if is_on_device => Ok(()),
                Plan::Discard if is_on_device => self.discard(part, &state),
                Plan::InDram | Plan::Discard => self.issue(part.addr, part.len_bytes),
                Plan::Change { lost, gained, place } if is_on_device => {
                    // Others may have sent it back since it was brought.
                    if place == Place::Dram && !gained.is_empty() {
                        return Err(self.no_resources());
                    }
                    self.change_on_device(part, &mut state, lost, gained)
                }
                Plan::Change { lost, gained, .. } => self.change_in_dram(part, &mut state, lost, gained),
            }
        })
    }

    fn change_in_dram(
        &self,
        part: &Part,
        state: &mut SlotState,
        lost: Attributes,
        gained: Attributes,
    ) -> Result<(), Errno> {
        let outcome = self.issue(part.addr, part.len_bytes);
        if outcome.is_ok() {
            self.space.note_attributes(part.index, state, part.pages.clone(), lost, gained);
        } else if matches!(self.call, MemoryCall::Lock { .. }) {
            // Without memory for its pages the range is locked all the same. The program takes it for not locked.
            // SAFETY: the range is the program's.
            let _ = unsafe { issue(MemoryCall::Unlock, part.addr, part.len_bytes) };
        } else if !gained.is_empty() {
            // A part may have been done.
            self.space.note_attributes(part.index, state, part.pages.clone(), Attributes::NONE, gained);
        }
        outcome
    }

    /// Changes attributes of a slot that stays on its device. A mapping of a device is locked whole or not at all: in two
    /// parts it could not be set aside at a fork.
    fn change_on_device(
        &self,
        part: &Part,
        state: &mut SlotState,
        lost: Attributes,
        gained: Attributes,
    ) -> Result<(), Errno> {
        let slot = self.space.slot_address(part.index).as_ptr().addr();
        if let MemoryCall::Lock { .. } = self.call {
            self.issue(slot, SLOT_BYTES)?;
        }
        self.space.note_attributes(part.index, state, part.pages.clone(), lost, gained);
        let all = 0..SLOT_BYTES / PAGE_SIZE;
        if self.call == MemoryCall::Unlock
            && !self.space.has_attribute(part.index, state, all, Attribute::Locked)
        {
            self.issue(slot, SLOT_BYTES)?;
        }
        Ok(())
    }

    fn discard(&self, part: &Part, state: &SlotState) -> Result<(), Errno> {
        let is_locked = self.space.has_attribute(part.index, state, part.pages.clone(), Attribute::Locked);
        if is_locked && self.call == (MemoryCall::Advise { advice: libc::MADV_DONTNEED }) {
            return Err(libc::EINVAL);
        }
        // SAFETY: pages of the slot lie inside it.
        let addr = unsafe { self.space.slot_address(part.index).add(part.pages.start * PAGE_SIZE) };
        // SAFETY: the slot's lock is held, so its device is mapped there, and nothing takes away the right to write to a
        // device's mapping; the program gave the bytes up.
        unsafe { space::clear(state, addr, part.len_bytes) };
        Ok(())
    }

    fn issue(&self, addr: usize, len_bytes: usize) -> Result<(), Errno> {
        // SAFETY: the program asked for it, and `perform` keeps the books.
        unsafe { issue(self.call, addr, len_bytes) }.map_err(|refusal| refusal.errno)
    }

    /// What the kernel says when it has no resources for such a call.
    fn no_resources(&self) -> Errno {
        match self.call {
            MemoryCall::Advise { .. } | MemoryCall::Lock { .. } => libc::EAGAIN,
            _ => libc::ENOMEM,
        }
    }
}

/// Whether there are but reserved addresses: nothing is mapped, as far as the program is concerned.
fn is_blank(state: &SlotState) -> bool {
    state.folio.is_none() && state.committed == 0
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
