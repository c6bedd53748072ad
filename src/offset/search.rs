//! Searching extents for a free run, runs that span extents, and the full scan.

use super::extent::Locked;
use super::{EXTENT_ORDER, EXTENT_PAGES, Inconsistency, Lifetime, OffsetAllocator, OffsetError, split};
use crate::sync::atomic::Ordering;
use crate::units::Order;

/// How often a search is repeated because something was freed meanwhile, before it takes all locks.
const MAX_REPEATS: usize = if cfg!(loom) { 1 } else { 4 };
/// Offsets that are taken under one hold of a lock, on the stack.
const BULK: usize = 64;

impl OffsetAllocator {
    /// Takes the first free run of 2^order pages and returns its offset.
    ///
    /// # Errors
    /// [`OffsetError::Exhausted`] when no such run is free, [`OffsetError::OrderTooSmall`].
    pub fn alloc(&self, order: Order, lifetime: Lifetime) -> Result<u64, OffsetError> {
        let mut found = 0;
        self.alloc_bulk(order, lifetime, 1, &mut |offset| found = offset)?;
        Ok(found)
    }

    /// Takes up to `count` runs of 2^order pages, passes each offset to `out` (with no lock held) and returns
    /// how many there were.
    ///
    /// # Errors
    /// As for [`alloc`](OffsetAllocator::alloc), only when there was not even one (and `count` is not 0).
    pub fn alloc_bulk(
        &self,
        order: Order,
        _lifetime: Lifetime,
        count: usize,
        out: &mut dyn FnMut(u64),
    ) -> Result<usize, OffsetError> {
        if order < self.min_order {
            return Err(OffsetError::OrderTooSmall { order, min_order: self.min_order });
        }
        let mut taken = 0;
        while taken < count {
            let mut batch = [0; BULK];
            let room = (count - taken).min(BULK);
            let got = self.take_some(order, &mut batch[..room]);
            if got == 0 {
                break;
            }
            batch[..got].iter().for_each(|&offset| out(offset));
            taken += got;
        }
        if taken == 0 && count > 0 {
            return Err(OffsetError::Exhausted { order, free_pages: self.free_pages() });
        }
        Ok(taken)
    }

    /// Takes at least one run, or finds that none is free.
    fn take_some(&self, order: Order, batch: &mut [u64]) -> usize {
        for _ in 0..MAX_REPEATS {
            // Acquire: pairs with the Release of note_freed. What was freed before this load is seen below; what is
            // freed later changes the epoch.
            let epoch = self.epoch.load(Ordering::Acquire);
            let got = self.search(order, batch);
            // Acquire: as above.
            if got > 0 || self.epoch.load(Ordering::Acquire) == epoch {
                return got;
            }
        }
        self.search_under_all_locks(order, batch)
    }

    /// Looks through the extents once, one lock at a time.
    fn search(&self, order: Order, batch: &mut [u64]) -> usize {
        // Acquire: pairs with the Release of add_extent_pages.
        let high = self.high.load(Ordering::Acquire);
        if order.get() > EXTENT_ORDER {
            return usize::from(self.take_first_span(order, high, &mut batch[0]));
        }
        for index in 0..high {
            // Acquire: pairs with the Release of note_freed.
            if self.bound(index).load(Ordering::Acquire) <= order.get() {
                continue;
            }
            let got = self.take_from(&mut self.lock(index), order, batch);
            if got > 0 {
                return got;
            }
        }
        0
    }

    /// Takes what fits in `batch` from one extent.
    fn take_from(&self, extent: &mut Locked<'_>, order: Order, batch: &mut [u64]) -> usize {
        let mut got = 0;
        for slot in batch.iter_mut() {
            let Some(page) = extent.find(order) else {
                self.lower_bound(extent.index, order.get());
                break;
            };
            extent.take(page, order);
            self.note_taken(extent, order.nr_pages(), extent.bound_by_free());
            *slot = extent.index as u64 * EXTENT_PAGES + page as u64;
            got += 1;
        }
        got
    }

    /// Decides with nobody else moving: every lock is held, in ascending order (I1).
    #[cold]
    fn search_under_all_locks(&self, order: Order, batch: &mut [u64]) -> usize {
        // Acquire: as in search.
        let high = self.high.load(Ordering::Acquire);
        for index in 0..high {
            self.header(index).lock_raw();
        }
        let got = if order.get() > EXTENT_ORDER {
            usize::from(self.take_first_span_locked(order, high, &mut batch[0]))
        } else {
            (0..high)
                .map(|index| self.with_adopted(index, |extent| self.take_from(extent, order, batch)))
                .find(|&got| got > 0)
                .unwrap_or(0)
        };
        for index in 0..high {
            self.header(index).unlock_raw();
        }
        got
    }

    /// Takes the first free run that spans extents, one candidate at a time.
    fn take_first_span(&self, order: Order, high: usize, found: &mut u64) -> bool {
        let extents = span_len(order);
        (0..high).step_by(extents).filter(|first| first + extents <= high).any(|first| {
            self.lock_span(first, extents);
            let taken = self.take_span_locked(first, order);
            self.unlock_span(first, extents);
            *found = first as u64 * EXTENT_PAGES;
            taken
        })
    }

    fn take_first_span_locked(&self, order: Order, high: usize, found: &mut u64) -> bool {
        let extents = span_len(order);
        (0..high).step_by(extents).filter(|first| first + extents <= high).any(|first| {
            *found = first as u64 * EXTENT_PAGES;
            self.take_span_locked(first, order)
        })
    }

    /// Takes the run of whole extents from `first` on if all are free. Their locks are held.
    fn take_span_locked(&self, first: usize, order: Order) -> bool {
        let extents = first..first + span_len(order);
        if !extents.clone().all(|index| self.with_adopted(index, |extent| extent.is_whole())) {
            return false;
        }
        for index in extents {
            self.with_adopted(index, |extent| {
                extent.take_span(order, index == first);
                self.note_taken(extent, EXTENT_PAGES, 0);
            });
        }
        true
    }

    /// [`reserve`](OffsetAllocator::reserve) for orders above an extent's.
    pub(super) fn reserve_span(&self, offset: u64, order: Order) -> Result<(), OffsetError> {
        let (first, _) = split(offset);
        let extents = span_len(order);
        self.lock_span(first, extents);
        let absent = (first..first + extents)
            .find(|&index| self.with_adopted(index, |e| u64::from(e.header.nr_pages) < EXTENT_PAGES));
        let taken = absent.is_none() && self.take_span_locked(first, order);
        self.unlock_span(first, extents);
        match absent {
            Some(extent) => Err(OffsetError::ExtentAbsent { extent }),
            None if taken => Ok(()),
            None => Err(OffsetError::Busy { offset, order }),
        }
    }

    /// [`free`](OffsetAllocator::free) for orders above an extent's.
    pub(super) fn free_span(&self, offset: u64, order: Order) -> Result<(), OffsetError> {
        let (first, _) = split(offset);
        let extents = span_len(order);
        self.lock_span(first, extents);
        // Looked at again: the lock was given back since the caller looked.
        let is_ours = self.with_adopted(first, |extent| extent.order_at(0) == Some(order.get()));
        if is_ours {
            for index in first..first + extents {
                self.with_adopted(index, |extent| {
                    extent.give_span();
                    self.note_freed(extent, EXTENT_PAGES);
                });
            }
        }
        self.unlock_span(first, extents);
        if is_ours { Ok(()) } else { Err(OffsetError::NotAllocated { offset }) }
    }

    /// Compares every counter with a full scan, under all locks.
    ///
    /// # Errors
    /// The first [`Inconsistency`]; there is never one unless the allocator is broken.
    pub fn validate(&self) -> Result<(), Inconsistency> {
        // Acquire: as in search.
        let high = self.high.load(Ordering::Acquire);
        self.lock_span(0, high);
        let mut free_pages = 0;
        let mut outcome = Ok(());
        for index in 0..high {
            let checked = self.with_adopted(index, |extent| {
                free_pages += u64::from(extent.header.free);
                self.validate_extent(extent)
            });
            outcome = outcome.and(checked);
        }
        let recorded = self.free_pages();
        self.unlock_span(0, high);
        outcome.and(agree(high, "free pages of all extents", recorded, free_pages))
    }

    fn validate_extent(&self, extent: &Locked<'_>) -> Result<(), Inconsistency> {
        let index = extent.index;
        // Relaxed: written under the lock that is held.
        let bound = self.bound(index).load(Ordering::Relaxed);
        let nr_pages = extent.header.nr_pages as usize;
        if nr_pages == 0 {
            return agree(index, "bound of an absent extent", u64::from(bound), 0);
        }
        let maps = extent.maps();
        let free = EXTENT_PAGES as usize - maps.count_allocated();
        agree(index, "free pages", u64::from(extent.header.free), free as u64)?;
        agree(index, "heads outside allocations", 0, maps.count_stray_heads() as u64)?;
        let first_word = (0..EXTENT_PAGES as usize / 64).find(|&word| !maps.is_full(word));
        let first_word = first_word.unwrap_or(EXTENT_PAGES as usize / 64) as u64;
        if u64::from(extent.header.first_word) > first_word {
            return agree(index, "first word", u64::from(extent.header.first_word), first_word);
        }
        let largest = (0..=EXTENT_ORDER)
            .rev()
            .find(|&order| Order::new(order).is_ok_and(|order| maps.find(order, 0).is_some()));
        let needed = largest.map_or(0, |order| order + 1);
        if bound < needed {
            return agree(index, "bound", u64::from(bound), u64::from(needed));
        }
        if extent.header.span != 0 {
            return agree(index, "free pages of a spanned extent", 0, free as u64);
        }
        let mut in_runs = 0;
        for head in maps.heads() {
            let len = maps.run_len(head, nr_pages);
            agree(index, "length of a run", len as u64, len.next_power_of_two() as u64)?;
            agree(index, "alignment of a run", 0, (head % len) as u64)?;
            in_runs += len;
        }
        agree(index, "pages in runs", (nr_pages - free) as u64, in_runs as u64)
    }

    fn lock_span(&self, first: usize, extents: usize) {
        for index in first..first + extents {
            self.header(index).lock_raw();
        }
    }

    fn unlock_span(&self, first: usize, extents: usize) {
        for index in first..first + extents {
            self.header(index).unlock_raw();
        }
    }

    /// Runs `f` on an extent whose lock the calling thread holds, and leaves it locked.
    fn with_adopted<R>(&self, index: usize, f: impl FnOnce(&mut Locked<'_>) -> R) -> R {
        let mut extent = self.adopt(index);
        let result = f(&mut extent);
        extent.keep_locked();
        result
    }

    fn adopt(&self, index: usize) -> Locked<'_> {
        Locked::new(index, self.header(index).adopt(), &self.bitmaps)
    }
}

/// Returns how many extents a run of `order`, which is above an extent's, covers.
fn span_len(order: Order) -> usize {
    1 << (order.get() - EXTENT_ORDER)
}

fn agree(extent: usize, what: &'static str, recorded: u64, counted: u64) -> Result<(), Inconsistency> {
    if recorded == counted { Ok(()) } else { Err(Inconsistency { extent, what, recorded, counted }) }
}
