//! Taking and giving back under the locks: what magazines are filled from.

use super::extent::{BLOCK, Locked, ROOM, SHUT};
use super::geometry::{
    BLOCK_ORDER, BLOCK_PAGES, Class, EXTENT_ORDER, UNIT_ORDER, WORD_ORDER, locate, run_mask,
};
use super::magazine::{EMPTY, FREED, held, slot};
use super::{Lifetime, OffsetAllocator, OffsetError, region};
use crate::sync::atomic::Ordering;
use crate::units::Order;

/// How a search goes about it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// One lock at a time; magazines are filled.
    Usual,
    /// All locks are held, and the magazines are closed.
    Decisive,
}

/// What is looked for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) order: Order,
    pub(super) class: Option<Class>,
    pub(super) is_long: bool,
}

impl Wanted {
    /// Returns the slot of a magazine that serves this.
    fn which(&self) -> usize {
        usize::from(self.is_long && self.class != Some(Class::BLOCK))
    }
}

impl OffsetAllocator {
    /// Takes a free run of 2^order pages, one of the lowest, and returns its offset.
    ///
    /// # Errors
    /// [`OffsetError::Exhausted`] when no such run is free, [`OffsetError::OrderTooSmall`].
    #[inline]
    pub fn alloc(&self, order: Order, lifetime: Lifetime) -> Result<u64, OffsetError> {
        if order < self.min_order {
            return Err(OffsetError::OrderTooSmall { order, min_order: self.min_order });
        }
        let wanted = Wanted { order, class: Class::of(order), is_long: lifetime == Lifetime::Long };
        if let Some(class) = wanted.class
            && let Some(offset) =
                self.magazines.take(class, wanted.which(), |offset| self.is_taken(class, offset))
        {
            return Ok(offset);
        }
        self.alloc_slow(wanted)
    }

    /// Takes up to `count` runs of 2^order pages, passes each offset to `out` (with no lock held) and returns
    /// how many there were.
    ///
    /// # Errors
    /// As for [`alloc`](OffsetAllocator::alloc), only when there was not even one (and `count` is not 0).
    pub fn alloc_bulk(
        &self,
        order: Order,
        lifetime: Lifetime,
        count: usize,
        out: &mut dyn FnMut(u64),
    ) -> Result<usize, OffsetError> {
        for taken in 0..count {
            match self.alloc(order, lifetime) {
                Ok(offset) => out(offset),
                Err(error) if taken == 0 => return Err(error),
                Err(_) => return Ok(taken),
            }
        }
        Ok(count)
    }

    #[cold]
    #[inline(never)]
    fn alloc_slow(&self, wanted: Wanted) -> Result<u64, OffsetError> {
        let order = wanted.order;
        // SeqCst: see `drain`.
        if order.get() >= self.exhausted.load(Ordering::SeqCst) {
            return Err(OffsetError::Exhausted { order, free_pages: self.free_pages() });
        }
        if let Some(class) = wanted.class {
            // What was freed may lie among what lives short.
            if wanted.which() == 0
                && let Some(offset) = self.magazines.take(class, FREED, |offset| self.is_taken(class, offset))
            {
                return Ok(offset);
            }
            self.retire(class, wanted.which());
        }
        match self.search(wanted, Way::Usual).or_else(|| self.search_drained(wanted)) {
            Some(offset) => Ok(offset),
            None => Err(OffsetError::Exhausted { order, free_pages: self.free_pages() }),
        }
    }

    /// Lets go of the unit that a slot of this processor has and holds nothing of.
    fn retire(&self, class: Class, which: usize) {
        let (cpu, old) = self.magazines.look(class, which);
        self.put_away(class, which, cpu, old, |mask| mask == 0);
    }

    /// Empties a slot of this processor, which was `old`, into the bitmap.
    pub(super) fn put_away(
        &self,
        class: Class,
        which: usize,
        cpu: usize,
        old: u64,
        is_wanted: impl Fn(u32) -> bool,
    ) -> bool {
        let Some((unit, mask)) = held(old) else { return true };
        if !is_wanted(mask) {
            return false;
        }
        let mut extent = self.lock(class.extent_of(unit));
        let is_emptied = self.magazines.exchange(cpu, class, which, old, EMPTY);
        if is_emptied {
            extent.give_unit(class, unit, mask);
            if mask != 0 {
                self.note_freed();
            }
        }
        is_emptied
    }

    /// Looks as a request does first, and takes what it finds.
    #[cfg(all(test, loom))]
    pub(super) fn search_usual(&self, order: Order) -> Option<u64> {
        self.search(Wanted { order, class: Class::of(order), is_long: false }, Way::Usual)
    }

    /// Looks through the extents, the best places first.
    pub(super) fn search(&self, wanted: Wanted, way: Way) -> Option<u64> {
        let order = wanted.order.get();
        if order > EXTENT_ORDER {
            return self.take_span(order);
        }
        if order >= BLOCK_ORDER {
            return self.search_extents(BLOCK, way, |extent| {
                if !extent.open() {
                    return None;
                }
                if let Some(offset) = self.fill(extent, wanted, way, |extent, _| extent.take_block_unit()) {
                    return Some(offset);
                }
                // A unit that no slot took went back, and an extent that it left idle is shut again.
                if extent.open() { extent.take_blocks(order) } else { None }
            });
        }
        let take = |extent: &mut Locked<'_>, blocks: u64| {
            self.fill(extent, wanted, way, |extent, class| extent.take_small_unit(class, blocks))
                .or_else(|| extent.take_run(order, blocks, false))
        };
        let in_split = |extent: &mut Locked<'_>| {
            let long = extent.header().long;
            take(extent, if wanted.is_long { long } else { !long })
        };
        let in_free = |extent: &mut Locked<'_>| {
            if !extent.open() {
                return None;
            }
            let block = extent.split_block(wanted.is_long)?;
            take(extent, 1 << block)
        };
        self.search_extents(ROOM, way, in_split)
            .or_else(|| self.search_extents(BLOCK, way, in_free))
            .or_else(|| self.search_extents(ROOM, way, |extent| extent.take_run(order, u64::MAX, true)))
    }

    /// Tries one extent after the other that has `flag`.
    fn search_extents(
        &self,
        flag: u8,
        way: Way,
        take: impl Fn(&mut Locked<'_>) -> Option<u64>,
    ) -> Option<u64> {
        self.extents().find_map(|index| {
            if way == Way::Decisive {
                let mut extent = self.adopt(index);
                return if extent.is_present() { take(&mut extent) } else { None };
            }
            // Acquire: pairs with the Release of `publish`.
            let flags = self.flags(index).load(Ordering::Acquire);
            let is_shut =
                flags & SHUT != 0 && region::open(self.region_of(index).load(), index % 8).is_none();
            if flags & flag == 0 || is_shut {
                return None;
            }
            let mut extent = self.lock(index);
            if extent.is_present() { take(&mut extent) } else { None }
        })
    }

    /// Fills this processor's empty slot with a unit and takes the first run of it.
    fn fill(
        &self,
        extent: &mut Locked<'_>,
        wanted: Wanted,
        way: Way,
        unit: impl FnOnce(&mut Locked<'_>, Class) -> Option<(u64, u32)>,
    ) -> Option<u64> {
        let class = wanted.class.filter(|_| way == Way::Usual)?;
        let (unit, mask) = unit(extent, class)?;
        let rest = mask & (mask - 1);
        if !self.install(class, wanted.which(), unit, rest) {
            extent.give_unit(class, unit, mask);
            return None;
        }
        Some(((unit << UNIT_ORDER) + u64::from(mask.trailing_zeros())) << class.order())
    }

    /// Puts a unit, whose extent's lock is held, in a slot of this processor if that is empty.
    pub(super) fn install(&self, class: Class, which: usize, unit: u64, mask: u32) -> bool {
        self.note_freed();
        let (cpu, old) = self.magazines.look(class, which);
        old == EMPTY
            && slot(unit, mask).is_some_and(|new| self.magazines.exchange(cpu, class, which, EMPTY, new))
    }

    /// Takes the lowest run that spans extents.
    fn take_span(&self, order: u8) -> Option<u64> {
        let level = order - EXTENT_ORDER;
        self.extents().step_by(8).find_map(|first| {
            let region = self.region_of(first);
            while let Some(extent) = region::find(region.load(), level) {
                if region.update(|word| region::take(word, extent, level)) {
                    return Some((first + extent) as u64 * super::EXTENT_PAGES);
                }
            }
            None
        })
    }

    /// [`reserve`](OffsetAllocator::reserve) for orders above an extent's.
    pub(super) fn reserve_span(&self, offset: u64, order: Order) -> Result<(), OffsetError> {
        let (first, _) = locate(offset);
        let level = order.get() - EXTENT_ORDER;
        let take = || self.region_of(first).update(|word| region::take(word, first % 8, level));
        if take() {
            return Ok(());
        }
        let extents = first..first + (1 << level);
        self.with_closed(|| {
            for index in extents.clone() {
                let mut extent = self.lock(index);
                if !extent.is_full_length() {
                    return Err(OffsetError::ExtentAbsent { extent: index });
                }
                self.drain_extent(&mut extent);
            }
            if take() { Ok(()) } else { Err(OffsetError::Busy { offset, order }) }
        })
    }

    /// Takes the run from its extent, unless a page is taken or held by a magazine.
    pub(super) fn reserve_in(
        &self,
        extent: &mut Locked<'_>,
        offset: u64,
        order: Order,
    ) -> Result<(), OffsetError> {
        let (index, page) = locate(offset);
        let busy = Err(OffsetError::Busy { offset, order });
        if page as u64 + order.nr_pages() > u64::from(extent.header().nr_pages) {
            return Err(OffsetError::ExtentAbsent { extent: index });
        }
        let (block, order) = (page / BLOCK_PAGES, order.get());
        if order >= BLOCK_ORDER {
            if extent.header().taken & run_mask(block, order - BLOCK_ORDER) != 0 || !extent.open() {
                return busy;
            }
            extent.mark_blocks(block, order);
            return Ok(());
        }
        if extent.header().split >> block & 1 == 0 {
            if extent.header().taken >> block & 1 != 0 || !extent.open() {
                return busy;
            }
            extent.mark_split(block, false);
        } else if !extent.is_run_free(page, order) {
            return busy;
        }
        extent.mark_run(page, order);
        Ok(())
    }

    /// Returns the order of the run that begins at `offset`, taken by a user or held by a magazine.
    fn order_in_bitmap(&self, extent: &Locked<'_>, offset: u64) -> Option<u8> {
        let (index, page) = locate(offset);
        if !extent.is_present() {
            return None;
        }
        let block = page / BLOCK_PAGES;
        if extent.header().split >> block & 1 != 0 {
            extent.run_order_at(page)
        } else if !page.is_multiple_of(BLOCK_PAGES) {
            None
        } else if extent.is_spanned() {
            let level = region::level_at(self.region_of(index).load(), index % 8);
            level.filter(|_| page == 0).map(|level| EXTENT_ORDER + level)
        } else {
            extent.block_order_at(block)
        }
    }

    /// Returns the order of the run that is allocated at `offset`.
    pub(super) fn allocated_order(&self, extent: &Locked<'_>, offset: u64) -> Option<u8> {
        let order = self.order_in_bitmap(extent, offset)?;
        let class = Order::new(order).ok().and_then(Class::of);
        let (_, page) = locate(offset);
        let is_held = class.is_some_and(|class| {
            let may_be = match class {
                Class::BLOCK => extent.header().owned != 0,
                _ => extent.is_owned(page >> WORD_ORDER),
            };
            may_be && self.magazines.holds(class, offset)
        });
        (!is_held).then_some(order)
    }
}
