//! Giving back.
//!
//! A run goes to the freeing processor's magazine if that has its unit. Else it goes to the bitmap: a run below a word,
//! in a word of its order, by one compare-and-swap and without the lock; all others under the lock of their extent.
//!
//! # Protocol of a free without the lock
//! 1. The word, then its tag: the pages must be taken and the tag be the order. A run that is allocated keeps both.
//! 2. The word without the run (SeqCst): from here on the run is free.
//! 3. If the word was full, the block has room, which is told by setting its bit in `room` (SeqCst).
//! 4. If no page of the block is taken any more, the block is settled under the lock.
//! 5. `exhausted` is raised if it was low (SeqCst). Last, for a decision looks where room was told.
//!
//! Bits are set under the lock only. So whoever holds it may see more become free, but not less. A mask that says "nothing here"
//! is written before the pages are looked at a last time (`settle_room`): either the free comes before and is seen, or it
//! comes after and sees the mask, because both change it by atomic read-modify-writes. It is the same with `exhausted`,
//! which the free only reads: there both sides are SeqCst. So are the two frees of a block's last two words, of which one sees
//! the other.

use super::extent::HAS_WHOLE_BLOCKS;
use super::geometry::{
    BLOCK_ORDER, BLOCK_PAGES, Class, EXTENT_ORDER, WORD_ORDER, WORD_PAGES, locate, run_mask,
};
use super::magazine::FREED;
use super::{Freed, OffsetAllocator, OffsetError, region};
use crate::sync::atomic::Ordering;
#[cfg(loom)]
use crate::sync::atomic::fence;
use crate::units::Order;

impl OffsetAllocator {
    /// Gives a run back.
    ///
    /// # Errors
    /// [`OffsetError::NotAllocated`] when no run begins at `offset`, [`OffsetError::WrongOrder`] with the order
    /// that it has, and the errors of a bad offset or order. Nothing is changed then.
    #[inline]
    pub fn free(&self, offset: u64, order: Order) -> Result<(), OffsetError> {
        self.check(offset, order)?;
        let class = Class::of(order);
        #[cfg(not(loom))]
        let given =
            class.map(|class| self.magazines.give_at_once(class, offset, || self.is_taken(class, offset)));
        #[cfg(loom)]
        let given = class.map(|_| None);
        match given {
            Some(Some(true)) => Ok(()),
            Some(None) => self.free_anyhow(offset, order, class),
            _ => self.free_missed(offset, order, class),
        }
    }

    /// Gives a run back when a section failed, or there are none.
    #[cold]
    #[inline(never)]
    fn free_anyhow(&self, offset: u64, order: Order, class: Option<Class>) -> Result<(), OffsetError> {
        match class {
            Some(class) if self.magazines.give(class, offset, || self.is_taken(class, offset)) => Ok(()),
            class => self.free_missed(offset, order, class),
        }
    }

    /// Gives a run back that this processor's magazine has no unit for.
    #[inline(never)]
    fn free_missed(&self, offset: u64, order: Order, class: Option<Class>) -> Result<(), OffsetError> {
        let adopts = class.filter(|&class| self.magazines.note_miss(class, offset >> class.unit_order()));
        if adopts.is_none() && self.free_in_word(offset, order) {
            return Ok(());
        }
        self.free_locked(offset, order, adopts)
    }

    /// Gives a run back without the lock. Returns `false`, and has done nothing, where that needs the lock or is wrong.
    fn free_in_word(&self, offset: u64, order: Order) -> bool {
        let (index, page) = locate(offset);
        // Acquire: pairs with the Release of `publish`: the words of an extent that is, or was, present can be read.
        if order.get() >= WORD_ORDER || self.flags(index).load(Ordering::Acquire) & HAS_WHOLE_BLOCKS == 0 {
            return false;
        }
        // SAFETY: the extent was present, so its words were populated; they stay mapped when it goes.
        let words = unsafe { self.words.get(index) };
        let (word, mask) = (page / WORD_PAGES, run_mask(page % WORD_PAGES, order.get()));
        let mut old = words.word(word);
        loop {
            if old & mask != mask || self.tags(index).tag(word) != order.get() {
                return false;
            }
            match words.give_of(word, old, mask) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
        order_in_models();
        if old == u64::MAX {
            // SeqCst: see the module.
            self.room(index).fetch_or(1 << (page / BLOCK_PAGES), Ordering::SeqCst);
        }
        if old == mask && words.is_block_free(page / BLOCK_PAGES) {
            self.lock(index).settle_late(page / BLOCK_PAGES);
        }
        self.note_tidy(if old == mask { Freed::Word } else { Freed::Run(order.get()) });
        order_in_models();
        self.note_freed();
        true
    }

    #[cold]
    #[inline(never)]
    fn free_locked(&self, offset: u64, order: Order, adopts: Option<Class>) -> Result<(), OffsetError> {
        let (index, page) = locate(offset);
        // Before the lock below: the unit that goes may be of another extent.
        let adopts = adopts.filter(|&class| self.put_away(class, FREED));
        let mut extent = self.lock(index);
        let actual = self.allocated_order(&extent, offset).ok_or(OffsetError::NotAllocated { offset })?;
        if actual != order.get() {
            return Err(OffsetError::WrongOrder { offset, order, actual });
        }
        if actual > EXTENT_ORDER {
            drop(extent);
            return self.free_span(offset, order);
        }
        if actual >= BLOCK_ORDER {
            extent.give_blocks(page / BLOCK_PAGES, actual);
        } else {
            extent.give_run(page, actual);
        }
        self.note_tidy(extent.freed_at(page, actual));
        self.note_freed();
        if let Some(class) = adopts
            && let Some(unit) = extent.adopt_unit(class, page)
            && !self.install(class, FREED, unit.number, unit.mask)
        {
            extent.give_unit(class, unit.number, unit.mask);
        }
        Ok(())
    }

    fn free_span(&self, offset: u64, order: Order) -> Result<(), OffsetError> {
        let (first, _) = locate(offset);
        let level = order.get() - EXTENT_ORDER;
        if !self.region_of(first).update(|word| region::give(word, first % 8, level)) {
            return Err(OffsetError::NotAllocated { offset });
        }
        self.note_tidy(Freed::Word);
        self.note_freed();
        Ok(())
    }
}

/// Orders what comes before and after in a model, whose SeqCst accesses are Acquire and Release only.
fn order_in_models() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}
