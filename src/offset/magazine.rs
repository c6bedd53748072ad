//! Magazines: what each processor holds ready, without locks and without atomic read-modify-writes.
//!
//! A magazine has, for each [`Class`], a few slots. A slot is one word: the number of a *unit* (32 aligned runs of the
//! class) and a mask of those of its runs that are free and held here. Taking a run clears a bit, giving one back to
//! the same unit sets it. So what a magazine holds is bounded, is ordered by address, and says itself where it belongs.
//!
//! A slot changes in one step, [`Magazines::exchange`]: a restartable sequence on the processor's own slots where there
//! are any, else a compare-and-swap. Either does nothing once the magazines are closed.
//!
//! # Protocol
//! | slot | leaves to |
//! |---|---|
//! | empty | a unit, by a refill or an adoption, under the lock of the unit's extent |
//! | a unit and a mask | another mask, by the slot's processor; empty, under the lock of the unit's extent, by the slot's processor or by whoever closed the magazines |

use super::geometry::{Class, UNIT_ORDER};
use super::home::Visits;
use crate::error::SysError;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(not(loom))]
use crate::sync::rseq;
use crate::sync::{LazySlice, Zeroed};
#[cfg(not(loom))]
use crate::sys::cpu;

/// A slot that holds nothing.
pub(super) const EMPTY: u64 = 0;
/// Slots of a class: for runs that live short, for those that live long, and for what was freed.
pub(super) const SLOTS: usize = 3;
/// The slot of what was freed.
pub(super) const FREED: usize = 2;
/// Words of a class: its slots, and the unit that was last freed to in vain.
const STRIDE: usize = 4;
const MISSED: usize = 3;
/// The word that says when the processor looks everywhere.
const VISITS: usize = Class::COUNT * STRIDE;
const NR_WORDS: usize = 32;
/// How often a step is tried before the lock is taken instead.
const TRIES: usize = if cfg!(loom) { 1 } else { 3 };

/// The magazine of one processor.
#[derive(Debug)]
#[repr(C, align(256))]
pub(super) struct Magazine {
    /// Per class: slots (unit + 1 in the upper half, mask in the lower), and a hint. Written by the processor in
    /// `exchange`, and by others while the magazines are closed.
    words: [AtomicU64; NR_WORDS],
}

impl Default for Magazine {
    fn default() -> Magazine {
        Magazine { words: std::array::from_fn(|_| AtomicU64::new(EMPTY)) }
    }
}

// SAFETY: atomics are plain words; zero is an empty slot and the default.
unsafe impl Zeroed for Magazine {}

/// How a slot is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// By a restartable sequence.
    #[cfg(not(loom))]
    Section,
    /// By a compare-and-swap, on any processor's slot.
    Swap,
}

/// All processors' magazines.
#[derive(Debug)]
pub(super) struct Magazines {
    array: LazySlice<Magazine>,
    nr_cpus: usize,
    #[cfg_attr(loom, expect(dead_code, reason = "models have one way only"))]
    step: Step,
    /// On how many magazines sections work: all, or none, where every one fails.
    #[cfg(not(loom))]
    nr_in_sections: u32,
    /// Not 0: no slot changes, but by who closed them.
    closed: AtomicU32,
    /// Not 0: closing them last time stopped everybody. Written by who closes them.
    is_still: AtomicU32,
}

/// Splits a slot's word.
pub(super) fn held(slot: u64) -> Option<(u64, u32)> {
    (slot >> 32 != 0).then(|| ((slot >> 32) - 1, slot as u32))
}

/// Makes a slot's word, if the number of the unit fits.
pub(super) fn slot(unit: u64, mask: u32) -> Option<u64> {
    (unit < u64::from(u32::MAX)).then(|| (unit + 1) << 32 | u64::from(mask))
}

/// Returns the unit of a run, and its bit in the mask.
#[inline]
fn unit_and_bit(class: Class, offset: u64) -> (u64, u64) {
    (offset >> class.unit_order(), 1 << (offset >> class.order() & ((1 << UNIT_ORDER) - 1)))
}

/// Returns the offset of the first run that a slot holds. It holds one.
#[inline]
fn first_run(class: Class, slot: u64) -> u64 {
    // The lowest bit is a mask bit, because the mask is not 0.
    let run = (((slot >> 32) - 1) << UNIT_ORDER) + u64::from(slot.trailing_zeros());
    run << class.order()
}

impl Magazines {
    /// Makes empty magazines for `nr_cpus` processors, a power of two.
    pub(super) fn new(nr_cpus: usize, step: Step) -> Result<Magazines, SysError> {
        debug_assert!(nr_cpus.is_power_of_two());
        Ok(Magazines {
            array: LazySlice::populated(nr_cpus)?,
            nr_cpus,
            step,
            #[cfg(not(loom))]
            nr_in_sections: if step == Step::Section { nr_cpus as u32 } else { 0 },
            closed: AtomicU32::new(0),
            is_still: AtomicU32::new(0),
        })
    }

    /// Returns how slots can be changed in this process.
    pub(super) fn best_step() -> Step {
        #[cfg(not(loom))]
        if rseq::is_available() {
            return Step::Section;
        }
        Step::Swap
    }

    #[inline]
    fn word(&self, cpu: usize, index: usize) -> &AtomicU64 {
        // SAFETY: all magazines are populated at construction; the number is below nr_cpus.
        let magazine = unsafe { self.array.get(cpu & (self.nr_cpus - 1)) };
        &magazine.words[index]
    }

    /// Changes a slot from `old`, which `cpu` had, to `new`. Does nothing and returns `false` if it is not `old`, the
    /// thread has moved, or the magazines are closed.
    #[inline]
    pub(super) fn exchange(&self, cpu: usize, class: Class, which: usize, old: u64, new: u64) -> bool {
        let index = class.index() * STRIDE + which;
        #[cfg(not(loom))]
        if self.step == Step::Section {
            return self.exchange_in_section(index, old, new);
        }
        // Acquire: pairs with the Release of `close`. Its user holds a lock of the unit's extent that we hold as well
        // when we make a slot hold a unit, so what we do after it closed is seen or refused.
        self.closed.load(Ordering::Acquire) == 0
            // AcqRel: whoever takes a run sees what was written by whoever gave it back.
            && self.word(cpu, index).compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    #[cfg(not(loom))]
    #[inline]
    fn exchange_in_section(&self, index: usize, old: u64, new: u64) -> bool {
        let first = std::ptr::NonNull::from(self.word(0, index));
        const SHIFT: u32 = size_of::<Magazine>().ilog2();
        // SAFETY: the elements are `nr_cpus` magazines, populated at construction, which live as long as we do.
        unsafe { rseq::exchange_unless_closed::<SHIFT>(first, self.nr_in_sections, &self.closed, old, new) }
    }

    /// As [`take`](Magazines::take), by one section, if that succeeds at once.
    #[cfg(not(loom))]
    #[inline]
    pub(super) fn take_at_once(
        &self,
        class: Class,
        which: usize,
        is_taken: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let index = class.index() * STRIDE + which;
        // Relaxed: the section orders.
        let old = self.word(rseq::element(self.nr_cpus)?, index).load(Ordering::Relaxed);
        if old as u32 == 0 {
            return None;
        }
        let offset = first_run(class, old);
        let is_good = is_taken(offset);
        (is_good && self.exchange_in_section(index, old, old & (old - 1))).then_some(offset)
    }

    /// As [`give`](Magazines::give), by one section. `None` when that did not succeed at once, and may yet.
    #[cfg(not(loom))]
    #[inline]
    pub(super) fn give_at_once(
        &self,
        class: Class,
        offset: u64,
        is_taken: impl FnOnce() -> bool,
    ) -> Option<bool> {
        let (unit, bit) = unit_and_bit(class, offset);
        let cpu = rseq::element(self.nr_cpus)?;
        for which in 0..SLOTS {
            let index = class.index() * STRIDE + which;
            // Relaxed: the section orders.
            let old = self.word(cpu, index).load(Ordering::Relaxed);
            if old >> 32 == unit + 1 {
                if old & bit != 0 || !is_taken() {
                    return Some(false);
                }
                return self.exchange_in_section(index, old, old | bit).then_some(true);
            }
        }
        Some(false)
    }

    /// Takes a run off the slot of a lifetime, and returns its offset. `is_taken` says whether a run is still marked
    /// taken in the bitmap: one that is not was freed twice at the same instant, and is not ours to hand out.
    #[inline]
    pub(super) fn take(&self, class: Class, which: usize, is_taken: impl Fn(u64) -> bool) -> Option<u64> {
        for _ in 0..TRIES {
            let cpu = current_cpu();
            // Relaxed: `exchange` orders.
            let old = self.word(cpu, class.index() * STRIDE + which).load(Ordering::Relaxed);
            if old as u32 == 0 {
                return None;
            }
            let offset = first_run(class, old);
            let is_good = is_taken(offset);
            if self.exchange(cpu, class, which, old, old & (old - 1)) && is_good {
                return Some(offset);
            }
        }
        None
    }

    /// Gives a run to the slot that has its unit. Returns `false` when there is none, or when the run is not marked
    /// taken or is held already: that is for the lock to decide.
    #[inline]
    pub(super) fn give(&self, class: Class, offset: u64, is_taken: impl FnOnce() -> bool) -> bool {
        let (unit, bit) = unit_and_bit(class, offset);
        let cpu = current_cpu();
        for which in 0..SLOTS {
            // Relaxed: `exchange` orders.
            let old = self.word(cpu, class.index() * STRIDE + which).load(Ordering::Relaxed);
            if old >> 32 == unit + 1 {
                return old & bit == 0 && is_taken() && self.exchange(cpu, class, which, old, old | bit);
            }
        }
        false
    }

    /// Returns whether the last free that missed was to the same unit, and notes this one: two in a row are worth
    /// adopting the unit.
    pub(super) fn note_miss(&self, class: Class, unit: u64) -> bool {
        let missed = self.word(current_cpu(), class.index() * STRIDE + MISSED);
        // Relaxed: a hint.
        if missed.load(Ordering::Relaxed) == unit + 1 {
            return true;
        }
        // Relaxed: a hint.
        missed.store(unit + 1, Ordering::Relaxed);
        false
    }

    /// Returns when a processor looks everywhere.
    pub(super) fn visits(&self, cpu: usize) -> Visits {
        // Relaxed: a hint.
        Visits::from_word(self.word(cpu, VISITS).load(Ordering::Relaxed))
    }

    pub(super) fn set_visits(&self, cpu: usize, visits: Visits) {
        // Relaxed: a hint. A thread that was moved in between may undo what another noted.
        self.word(cpu, VISITS).store(visits.to_word(), Ordering::Relaxed);
    }

    /// Returns the number of the calling processor and what its slot is.
    pub(super) fn look(&self, class: Class, which: usize) -> (usize, u64) {
        let cpu = current_cpu();
        // Relaxed: `exchange` orders.
        (cpu, self.word(cpu, class.index() * STRIDE + which).load(Ordering::Relaxed))
    }

    /// Returns all slots that hold units: processor, class, which, unit, mask.
    pub(super) fn slots(&self) -> impl Iterator<Item = (usize, Class, usize, u64, u32)> + '_ {
        let classes = || Class::all().flat_map(|class| (0..SLOTS).map(move |which| (class, which)));
        (0..self.nr_cpus).flat_map(move |cpu| {
            classes().filter_map(move |(class, which)| {
                // Acquire: pairs with the AcqRel of `exchange`.
                let slot = self.word(cpu, class.index() * STRIDE + which).load(Ordering::Acquire);
                held(slot).map(|(unit, mask)| (cpu, class, which, unit, mask))
            })
        })
    }

    /// Returns whether a magazine holds the run at `offset`. Exact while the extent's lock is held, but for runs that
    /// are given back at this very instant.
    pub(super) fn holds(&self, class: Class, offset: u64) -> bool {
        let (unit, bit) = unit_and_bit(class, offset);
        (0..self.nr_cpus).any(|cpu| {
            (0..SLOTS).any(|which| {
                // Acquire: as in `slots`.
                let slot = self.word(cpu, class.index() * STRIDE + which).load(Ordering::Acquire);
                slot >> 32 == unit + 1 && slot & bit != 0
            })
        })
    }

    /// Stops every change of a slot, and waits for those under way. One thread at a time.
    ///
    /// # Errors
    /// The kernel's refusal to restart sections: then the magazines stay closed for good, and what they hold is lost to
    /// everybody but those who free it.
    pub(super) fn close(&self) -> Result<(), SysError> {
        // Release: pairs with the Acquire of `exchange`.
        self.closed.store(1, Ordering::Release);
        let outcome = self.wait_for_sections();
        // Relaxed: for the closing thread itself.
        self.is_still.store(outcome.is_ok().into(), Ordering::Relaxed);
        outcome
    }

    #[cfg(not(loom))]
    fn wait_for_sections(&self) -> Result<(), SysError> {
        if self.step == Step::Section { rseq::fence() } else { Ok(()) }
    }

    #[cfg(loom)]
    fn wait_for_sections(&self) -> Result<(), SysError> {
        Ok(())
    }

    /// Returns whether the one that closed them may empty slots.
    pub(super) fn can_empty(&self) -> bool {
        // Relaxed: written by the same thread.
        self.is_still.load(Ordering::Relaxed) != 0
    }

    /// Ends [`close`](Magazines::close).
    pub(super) fn open(&self) {
        // Release: whoever sees them open sees what was done meanwhile.
        self.closed.store(0, Ordering::Release);
    }

    /// Empties a slot. The magazines are closed, and the lock of the unit's extent is held; or the process has one
    /// thread.
    pub(super) fn empty(&self, cpu: usize, class: Class, which: usize) -> Option<(u64, u32)> {
        // AcqRel: as in `exchange`, which may still be under way on this slot where it is a compare-and-swap.
        held(self.word(cpu, class.index() * STRIDE + which).swap(EMPTY, Ordering::AcqRel))
    }
}

/// Returns how many processors have magazines, a power of two. Others share, or do without.
pub(super) fn nr_cpus() -> usize {
    #[cfg(loom)]
    return 2;
    #[cfg(not(loom))]
    cpu::nr_shards()
}

/// Returns the number of the processor that runs the calling thread.
#[cfg(not(loom))]
#[inline]
pub(super) fn current_cpu() -> usize {
    rseq::current_cpu()
}

#[cfg(loom)]
pub(super) use for_loom::current_cpu;
#[cfg(all(test, loom))]
pub(super) use for_loom::set_cpu;

#[cfg(loom)]
mod for_loom {
    use std::cell::Cell;

    loom::thread_local! {
        static CPU: Cell<usize> = Cell::new(0);
    }

    pub(in crate::offset) fn current_cpu() -> usize {
        CPU.with(Cell::get)
    }

    /// Says on which processor the calling thread of a model runs.
    #[cfg(test)]
    pub(in crate::offset) fn set_cpu(cpu: usize) {
        CPU.with(|cell| cell.set(cpu));
    }
}
