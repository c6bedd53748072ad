//! What the program asked the kernel to keep true of pages in slots: protections, locks and the like.
//!
//! The kernel keeps such an attribute with the mapping, so a slot that has one does not move: another mapping would lack it.
//! [`Attribute`] is a kind, [`Attributes`] a set of kinds; a table remembers which pages of which slots have which. Slots
//! without any have no entry. Used by `runtime::memory`, which makes the calls, and by forks.
//!
//! # Invariants
//! - A1: a slot's `is_held` is true exactly while the table has an entry for it; both change under the slot's lock.
//! - A2: an entry has at least one page.
//! - A3: the table's lock is taken in service only, after a slot's, and is free at a fork.

use super::slot::{Mapping, SlotState};
use super::{SLOT_BYTES, Space};
use crate::sync::StaticMutex;
use crate::sys::memory_call::{self, MemoryCall};
use crate::sys::mm;
use crate::units::PAGE_SIZE;
use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pages in a slot.
pub(crate) const PAGES_PER_SLOT: usize = SLOT_BYTES / PAGE_SIZE;

/// A property of pages that ends with their mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Attribute {
    /// Not readable and writable, or more than that (mprotect).
    Protected = 0,
    /// Under a protection key (pkey_mprotect).
    Keyed = 1,
    /// An access faults (MADV_GUARD_INSTALL).
    Guarded = 2,
    /// Never paged out (mlock).
    Locked = 3,
    /// Missing in a forked child (MADV_DONTFORK).
    NotForked = 4,
    /// Zero in a forked child (MADV_WIPEONFORK).
    Wiped = 5,
    /// Left out of core dumps (MADV_DONTDUMP).
    NotDumped = 6,
    /// Under a policy for NUMA nodes (mbind).
    Bound = 7,
}

const NR_ATTRIBUTES: usize = 8;

/// A set of attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(u8);

impl Attributes {
    pub(crate) const NONE: Attributes = Attributes(0);

    pub(crate) const fn of(attribute: Attribute) -> Attributes {
        Attributes(1 << attribute as u8)
    }

    pub(crate) const fn and(self, other: Attributes) -> Attributes {
        Attributes(self.0 | other.0)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn has(self, attribute: usize) -> bool {
        self.0 & 1 << attribute != 0
    }
}

/// The pages of one slot that have each attribute, a bit a page.
#[derive(Debug, Default)]
struct Pages([[u64; PAGES_PER_SLOT / 64]; NR_ATTRIBUTES]);

static TABLE: StaticMutex<BTreeMap<usize, Pages>> = StaticMutex::new(BTreeMap::new());

/// Whether the program has all of its memory locked. SeqCst: rare, and see [`keep_all`].
static ALL_LOCKED: AtomicBool = AtomicBool::new(false);

impl Pages {
    fn change(&mut self, pages: Range<usize>, attribute: usize, has: bool) {
        for page in pages {
            let word = &mut self.0[attribute][page / 64];
            let bit = 1 << (page % 64);
            *word = if has { *word | bit } else { *word & !bit };
        }
    }

    fn has(&self, page: usize, attribute: Attribute) -> bool {
        self.0[attribute as usize][page / 64] & 1 << (page % 64) != 0
    }

    fn is_empty(&self) -> bool {
        self.0.iter().flatten().all(|&word| word == 0)
    }

    /// Calls `visit` with each run of pages that have an attribute.
    fn for_each_run(&self, attribute: Attribute, mut visit: impl FnMut(Range<usize>)) {
        let mut page = 0;
        while page < PAGES_PER_SLOT {
            let start = page;
            while page < PAGES_PER_SLOT && self.has(page, attribute) {
                page += 1;
            }
            if page > start {
                visit(start..page);
            }
            page += 1;
        }
    }
}

impl SlotState {
    /// Whether what is mapped here has to stay: the program gave it an attribute.
    pub(crate) fn has_attributes(&self) -> bool {
        self.is_held || ALL_LOCKED.load(Ordering::SeqCst)
    }
}

impl Space {
    /// Takes note that pages of a slot, whose state is locked, have lost and gained attributes. Runs in service.
    pub(crate) fn note_attributes(
        &self,
        index: usize,
        state: &mut SlotState,
        pages: Range<usize>,
        lost: Attributes,
        gained: Attributes,
    ) {
        if gained.is_empty() && !state.is_held {
            return;
        }
        let mut table = TABLE.lock();
        let entry = table.entry(index).or_default();
        for attribute in 0..NR_ATTRIBUTES {
            if lost.has(attribute) || gained.has(attribute) {
                entry.change(pages.clone(), attribute, gained.has(attribute));
            }
        }
        state.is_held = !entry.is_empty();
        if !state.is_held {
            table.remove(&index);
        }
    }

    /// Whether a page of a slot, whose state is locked, has an attribute.
    pub(crate) fn has_attribute(
        &self,
        index: usize,
        state: &SlotState,
        mut pages: Range<usize>,
        attribute: Attribute,
    ) -> bool {
        state.is_held
            && TABLE.lock().get(&index).is_some_and(|entry| pages.any(|page| entry.has(page, attribute)))
    }

    /// Ends all attributes of a slot that is about to become blank.
    pub(super) fn end_attributes(&self, index: usize, state: &mut SlotState) {
        if !state.is_held {
            return;
        }
        state.is_held = false;
        TABLE.lock().remove(&index);
        let call = MemoryCall::Protect { prot: libc::PROT_READ | libc::PROT_WRITE, key: -1 };
        // Whoever clears the slot's bytes must be able to write them.
        // SAFETY: nothing is committed in the slot, so nobody uses its bytes. A refusal leaves them as they are.
        let _ = unsafe { memory_call::issue(call, self.slot_address(index).as_ptr().addr(), SLOT_BYTES) };
    }

    /// Ends [`keep_all`], and every lock of single pages with it. Runs in service.
    pub(crate) fn unlock_all(&self) {
        ALL_LOCKED.store(false, Ordering::SeqCst);
        let held: Vec<usize> = TABLE.lock().keys().copied().collect();
        for index in held {
            let mut state = self.slot(index).lock();
            let locked = Attributes::of(Attribute::Locked);
            self.note_attributes(index, &mut state, 0..PAGES_PER_SLOT, locked, Attributes::NONE);
        }
    }

    /// Makes attributes true in a forked child that the kernel does not hand on: not at all, as locks, or not with the
    /// copies that stand for what a device held. Called once, in the child, when the copies are known.
    pub(crate) fn keep_attributes_in_child(&self) {
        self.unlock_all();
        for (&index, pages) in TABLE.lock().iter() {
            let is_copy = self.slot(index).lock().mapping == Mapping::Inherited;
            let slot = self.slot_address(index);
            // Without a mapping the kernel would put one of the program's into the space.
            pages.for_each_run(Attribute::NotForked, |run| {
                let (addr, len_bytes) = place(slot, &run);
                // SAFETY: the pages lie in the slot, and the program gave them up for its children.
                let _ = unsafe { mm::map_reserved(addr, len_bytes) };
            });
            if !is_copy {
                continue;
            }
            let advices = [
                (Attribute::Wiped, libc::MADV_DONTNEED),
                (Attribute::Wiped, libc::MADV_WIPEONFORK),
                (Attribute::NotDumped, libc::MADV_DONTDUMP),
            ];
            for (attribute, advice) in advices {
                pages.for_each_run(attribute, |run| {
                    let (addr, len_bytes) = place(slot, &run);
                    // SAFETY: the pages are a private copy in the slot, and the program wants this of its children.
                    let _ = unsafe { mm::advise(addr, len_bytes, advice) };
                });
            }
        }
    }
}

/// Keeps all slots where they are from now on, or no more: the program locks its memory. Returns whether it did so before.
/// When it returns no slot is on the move: a mover looks for this under the slot's lock, through each of which this has
/// gone. Runs in service.
pub(crate) fn keep_all(keeps: bool) -> bool {
    let did = ALL_LOCKED.swap(keeps, Ordering::SeqCst);
    if let Some(space) = super::existing().filter(|_| keeps && !did) {
        space.for_each_slot(|index| drop(space.slot(index).lock()));
    }
    did
}

/// Where a run of pages of a slot is, and how long.
fn place(slot: NonNull<u8>, pages: &Range<usize>) -> (NonNull<u8>, usize) {
    // SAFETY: pages of a slot lie inside it.
    (unsafe { slot.add(pages.start * PAGE_SIZE) }, pages.len() * PAGE_SIZE)
}
