//! Emptying the magazines, deciding under all locks, and fork.
//!
//! With the magazines closed, what a magazine holds of an extent is returned to the bitmap under that extent's lock; then
//! nothing of the extent is anywhere else while the lock is held, because a unit goes into a slot only under it and only
//! while the magazines are open.
//!
//! A request that found nothing is decided with the magazines closed and emptied and all extents locked. All of them:
//! who adds an extent holds `closing`, as the decider does. Then nothing is taken by anybody else; runs can still be given back
//! (see `free`, and runs that span extents). So the decider first notes in `exhausted` that it decides, then
//! looks, and if it found nothing and the note still stands, replaces it by the order. Who gives a run back looks at the
//! note after. All of this is SeqCst: either the decider sees the run, or the note goes. A request that fails did so while there was
//! nothing, and what the note says when it stands is true.

use super::extent::Locked;
use super::geometry::{WORD_ORDER, bits};
use super::search::Wanted;
use super::{DECIDING, Freed, OffsetAllocator};
use crate::sync::atomic::{Ordering, fence};
use crate::units::Order;

impl OffsetAllocator {
    /// Runs `f` with the magazines closed. No lock of an extent is held.
    #[cold]
    pub(super) fn with_closed<R>(&self, f: impl FnOnce() -> R) -> R {
        let _closing = self.closing.lock();
        let is_closed = self.magazines.close().is_ok();
        let result = f();
        if is_closed {
            self.magazines.open();
        }
        result
    }

    /// Returns what magazines hold of an extent to its bitmap. The magazines are closed.
    pub(super) fn drain_extent(&self, extent: &mut Locked<'_>) {
        if !self.magazines.can_empty() {
            return;
        }
        self.note_tidy(Freed::Word);
        for (cpu, class, which, unit, _) in self.magazines.slots() {
            if class.extent_of(unit) == extent.index
                && let Some((unit, mask)) = self.magazines.empty(cpu, class, which)
            {
                extent.give_unit(class, unit, mask);
            }
        }
    }

    /// Returns whether a magazine has a unit that shares a word with the run. Exact under the lock of its extent (I3).
    pub(super) fn is_near_magazine(&self, offset: u64, order: Order) -> bool {
        self.magazines.slots().any(|(_, class, _, unit, _)| {
            let shift = class.unit_order().max(WORD_ORDER);
            let first = unit << class.unit_order() >> shift << shift;
            first < offset + order.nr_pages() && offset < first + (1 << shift)
        })
    }

    /// Runs `f` on a locked extent, of which no magazine holds anything if it might be idle.
    pub(super) fn with_idle_extent<R>(&self, index: usize, f: impl FnOnce(Locked<'_>) -> R) -> R {
        let is_held = {
            let extent = self.lock(index);
            if !extent.is_present() || !extent.header().is_open {
                return f(extent);
            }
            self.magazines.slots().any(|(_, class, _, unit, _)| class.extent_of(unit) == index)
        };
        if !is_held {
            return f(self.lock(index));
        }
        self.with_closed(|| {
            let mut extent = self.lock(index);
            self.drain_extent(&mut extent);
            f(extent)
        })
    }

    /// Decides with nobody else moving, and notes when there is nothing.
    pub(super) fn search_drained(&self, wanted: Wanted) -> Option<u64> {
        self.with_closed(|| {
            let extents = self.extents();
            extents.clone().for_each(|index| self.header(index).lock_raw());
            if self.magazines.can_empty() {
                self.note_tidy(Freed::Word);
                for (cpu, class, which, unit, _) in self.magazines.slots() {
                    if let Some((_, mask)) = self.magazines.empty(cpu, class, which) {
                        self.adopt(class.extent_of(unit)).give_unit(class, unit, mask);
                    }
                }
            }
            let found = loop {
                // SeqCst here and below: see the module.
                let before = self.exhausted.swap(DECIDING, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                let found = self.search_decisively(wanted);
                let after = if found.is_some() { before } else { wanted.order.get() };
                let note =
                    self.exhausted.compare_exchange(DECIDING, after, Ordering::SeqCst, Ordering::SeqCst);
                if found.is_some() || note.is_ok() {
                    break found;
                }
            };
            extents.for_each(|index| self.header(index).unlock_raw());
            found
        })
    }

    /// Makes a handle to an extent whose lock the calling thread holds and keeps.
    pub(super) fn adopt(&self, index: usize) -> Locked<'_> {
        Locked::new(index, self.header(index).adopt(), self, true)
    }

    /// Takes all locks, for fork: the caller forks, and both sides call
    /// [`unlock_after_fork`](OffsetAllocator::unlock_after_fork). No extent is added meanwhile.
    ///
    /// The magazines need nothing: each change of a slot is one store, and units come and go under the locks.
    pub(crate) fn lock_for_fork(&self) {
        self.closing.lock_raw();
        for index in self.extents() {
            self.header(index).lock_raw();
        }
    }

    /// Gives the locks of [`lock_for_fork`](OffsetAllocator::lock_for_fork) back.
    pub(crate) fn unlock_after_fork(&self) {
        for index in self.extents() {
            self.header(index).unlock_raw();
        }
        self.closing.unlock_raw();
    }

    /// Does what threads of the parent had left to do that were in the middle of a free without the lock (steps 3 to 5 in `free`).
    /// Called in a forked child, which has one thread.
    pub(crate) fn finish_frees_in_child(&self) {
        for index in self.extents() {
            let mut extent = self.lock(index);
            if extent.is_present() {
                let split = extent.header().split;
                // Where there is none it was told in vain, which is allowed.
                self.room(index).fetch_or(split, Ordering::SeqCst);
                bits(split).for_each(|block| extent.settle_late(block));
            }
        }
        self.note_tidy(Freed::Word);
        self.note_freed();
    }

    /// Forgets every extent: they belong to the parent. Called in a forked child, which has one thread.
    pub(crate) fn forget_extents_in_child(&self) {
        for (cpu, class, which, ..) in self.magazines.slots() {
            self.magazines.empty(cpu, class, which);
        }
        for index in self.extents() {
            let mut extent = self.lock(index);
            if extent.is_present() {
                extent.end();
                // SAFETY: one thread, and the extent is absent.
                unsafe { self.words.give_back(index..index + 1) };
                // SAFETY: as for the words.
                unsafe { self.heads.give_back(index..index + 1) };
            }
            self.region_of(index).update(|_| Some(0));
        }
    }
}
