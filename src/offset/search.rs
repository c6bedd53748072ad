//! Taking and giving back under the locks: what magazines are filled from.

use super::extent::{BLOCK, Locked, SHUT, Unit};
use super::geometry::{
    BLOCK_ORDER, BLOCK_PAGES, Class, EXTENT_ORDER, UNIT_ORDER, WORD_ORDER, bits, locate, run_mask,
};
use super::home::Owner;
use super::magazine::{EMPTY, FREED, current_cpu, held, slot};
use super::{Freed, Lifetime, OffsetAllocator, OffsetError, region};
use crate::sync::atomic::Ordering;
use crate::units::Order;

/// How a search goes about it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
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
    #[inline]
    pub(super) fn new(order: Order, lifetime: Lifetime) -> Wanted {
        Wanted { order, class: Class::of(order), is_long: lifetime == Lifetime::Long }
    }

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
        let wanted = Wanted::new(order, lifetime);
        #[cfg(not(loom))]
        if let Some(class) = wanted.class
            && let Some(offset) =
                self.magazines.take_at_once(class, wanted.which(), |offset| self.is_taken(class, offset))
        {
            return Ok(offset);
        }
        self.alloc_missed(wanted)
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
    fn alloc_missed(&self, wanted: Wanted) -> Result<u64, OffsetError> {
        let order = wanted.order;
        if let Some(class) = wanted.class
            && let Some(offset) =
                self.magazines.take(class, wanted.which(), |offset| self.is_taken(class, offset))
        {
            return Ok(offset);
        }
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
        }
        match self.search_usual(wanted).or_else(|| self.search_drained(wanted)) {
            Some(offset) => Ok(offset),
            None => Err(OffsetError::Exhausted { order, free_pages: self.free_pages() }),
        }
    }

    /// Lets go of the unit that a slot of this processor has and holds nothing of. Returns the lock that this took.
    fn retire(&self, class: Class, which: usize) -> Option<Locked<'_>> {
        let (cpu, old) = self.magazines.look(class, which);
        let (unit, mask) = held(old)?;
        if mask != 0 {
            return None;
        }
        let mut extent = self.lock(class.extent_of(unit));
        if self.magazines.exchange(cpu, class, which, old, EMPTY) {
            extent.give_unit(class, unit, mask);
            extent.publish();
        }
        Some(extent)
    }

    /// Empties a slot of this processor into the bitmap.
    pub(super) fn put_away(&self, class: Class, which: usize) -> bool {
        let (cpu, old) = self.magazines.look(class, which);
        let Some((unit, mask)) = held(old) else { return true };
        let mut extent = self.lock(class.extent_of(unit));
        let is_emptied = self.magazines.exchange(cpu, class, which, old, EMPTY);
        if is_emptied {
            extent.give_unit(class, unit, mask);
            if mask != 0 {
                let (_, first) = locate(unit << class.unit_order());
                let is_small = class.unit_order() <= WORD_ORDER;
                self.note_tidy(if is_small { extent.freed_at(first, class.order()) } else { Freed::Word });
                self.note_freed();
            }
        }
        is_emptied
    }

    /// Refills this processor's magazine, or takes what no magazine holds: what is its own or nobody's first, now and then
    /// what is lowest.
    pub(super) fn search_usual(&self, wanted: Wanted) -> Option<u64> {
        let cpu = current_cpu();
        let kept = wanted.class.and_then(|class| self.retire(class, wanted.which()));
        let mut search = Search { offsets: self, wanted, way: Way::Usual, cpu, me: None, kept };
        let order = wanted.order.get();
        if self.is_untidy(order)
            && let Some(offset) = search.run_untidily()
        {
            return Some(offset);
        }
        if order > EXTENT_ORDER || self.magazines.is_visit(cpu) {
            return search.run();
        }
        search.me = Some(Owner::of_cpu(cpu));
        search.run_tidily().or_else(|| {
            search.me = None;
            search.run()
        })
    }

    /// Looks at everything, under all locks.
    pub(super) fn search_decisively(&self, wanted: Wanted) -> Option<u64> {
        let cpu = current_cpu();
        Search { offsets: self, wanted, way: Way::Decisive, cpu, me: None, kept: None }.run()
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

/// Extents that are looked at together: a region's.
const CHUNK: usize = 8;

/// Where in an extent a search looks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In split blocks with room.
    Split,
    /// In free blocks.
    Free,
}

/// A search through the extents.
struct Search<'a> {
    offsets: &'a OffsetAllocator,
    wanted: Wanted,
    way: Way,
    cpu: usize,
    /// Whose extents are looked at, and nobody's; `None` for everybody's.
    me: Option<Owner>,
    /// A lock that is held already, to be used or given up before any other is taken.
    kept: Option<Locked<'a>>,
}

impl Search<'_> {
    /// Takes a run from the best place.
    fn run(&mut self) -> Option<u64> {
        let order = self.wanted.order.get();
        if order > EXTENT_ORDER {
            return self.offsets.take_span(order);
        }
        let found = self.run_tidily();
        if order >= BLOCK_ORDER {
            return found;
        }
        found.or_else(|| {
            self.offsets.note_untidy(order);
            self.run_untidily()
        })
    }

    /// Takes a run wherever there is one in a split block.
    fn run_untidily(&mut self) -> Option<u64> {
        let order = self.wanted.order.get();
        self.in_extents(Place::Split, |_, extent| extent.take_run(order, u64::MAX, true))
    }

    /// As [`run`](Search::run), but mixes no orders in a word.
    fn run_tidily(&mut self) -> Option<u64> {
        if self.wanted.order.get() >= BLOCK_ORDER {
            return self.in_extents(Place::Free, Search::take_blocks);
        }
        let is_long = self.wanted.is_long;
        let in_split = |search: &Self, extent: &mut Locked<'_>| {
            let long = extent.header().long;
            search.take_small(extent, if is_long { long } else { !long })
        };
        let in_free = |search: &Self, extent: &mut Locked<'_>| {
            if !extent.open() {
                return None;
            }
            let block = extent.split_block(is_long)?;
            search.take_small(extent, 1 << block)
        };
        self.in_extents(Place::Split, in_split).or_else(|| self.in_extents(Place::Free, in_free))
    }

    fn take_small(&self, extent: &mut Locked<'_>, blocks: u64) -> Option<u64> {
        self.fill(extent, |extent, class| extent.take_small_unit(class, blocks))
            .or_else(|| extent.take_run(self.wanted.order.get(), blocks, false))
    }

    fn take_blocks(&self, extent: &mut Locked<'_>) -> Option<u64> {
        if !extent.open() {
            return None;
        }
        if let Some(offset) = self.fill(extent, |extent, _| extent.take_block_unit()) {
            return Some(offset);
        }
        // A unit that no slot took went back, and an extent that it left idle is shut again.
        if extent.open() { extent.take_blocks(self.wanted.order.get()) } else { None }
    }

    /// Tries one extent after the other that has such a place.
    fn in_extents(
        &mut self,
        place: Place,
        take: impl Fn(&Self, &mut Locked<'_>) -> Option<u64>,
    ) -> Option<u64> {
        let offsets = self.offsets;
        let extents = offsets.extents();
        if self.way == Way::Decisive {
            return extents.into_iter().find_map(|index| {
                let mut extent = offsets.adopt(index);
                if extent.is_present() { take(self, &mut extent) } else { None }
            });
        }
        extents.clone().step_by(CHUNK).find_map(|first| {
            // All of a chunk are looked at before any is tried: which of them it will be, no branch predictor knows.
            let chunk = first..extents.end.min(first + CHUNK);
            let candidates = chunk
                .fold(0, |all, index| all | u64::from(self.is_candidate(place, index)) << (index - first));
            bits(candidates).find_map(|nth| self.in_extent(place, first + nth, &take))
        })
    }

    /// Returns whether an extent is worth locking, as far as one word says.
    #[inline]
    fn is_candidate(&self, place: Place, index: usize) -> bool {
        match place {
            // Acquire: whoever finds room sees what was freed.
            Place::Split => self.offsets.room(index).load(Ordering::Acquire) != 0,
            // Acquire: pairs with the Release of `publish`.
            Place::Free => self.offsets.flags(index).load(Ordering::Acquire) & BLOCK != 0,
        }
    }

    /// Tries an extent that is a candidate.
    #[inline]
    fn in_extent(
        &mut self,
        place: Place,
        index: usize,
        take: impl Fn(&Self, &mut Locked<'_>) -> Option<u64>,
    ) -> Option<u64> {
        let offsets = self.offsets;
        // Acquire: as above.
        let flags = offsets.flags(index).load(Ordering::Acquire);
        let is_shut =
            || flags & SHUT != 0 && region::open(offsets.region_of(index).load(), index % 8).is_none();
        if self.me.is_some_and(|me| me.is_kept_out(flags)) || place == Place::Free && is_shut() {
            return None;
        }
        let kept = self.kept.take().filter(|kept| kept.index == index);
        let mut extent = kept.unwrap_or_else(|| offsets.lock(index));
        let found = if extent.is_present() { take(self, &mut extent) } else { None };
        if found.is_some() {
            extent.note_taker(self.cpu);
        }
        found
    }

    /// Fills this processor's empty slot with a unit and takes the first run of it.
    fn fill(
        &self,
        extent: &mut Locked<'_>,
        unit: impl FnOnce(&mut Locked<'_>, Class) -> Option<Unit>,
    ) -> Option<u64> {
        let class = self.wanted.class.filter(|_| self.way == Way::Usual)?;
        let Unit { number, mask, is_owned } = unit(extent, class)?;
        let rest = mask & (mask - 1);
        if is_owned && !self.offsets.install(class, self.wanted.which(), number, rest) {
            extent.give_unit(class, number, mask);
            return None;
        }
        Some(((number << UNIT_ORDER) + u64::from(mask.trailing_zeros())) << class.order())
    }
}
