//! The offset allocator: which pages of a range are taken, in integers only.
//!
//! [`OffsetAllocator`] hands out naturally aligned runs of 2^order pages, addresses nothing and knows no folio.
//! The range is cut in extents of 128 MiB which come and go at run time; each has two bitmaps, *allocated* and
//! *head of an allocation*, so a free of a wrong order or of an idle offset is an error and never corruption.
//! Placement is address-ordered first fit, the policy that keeps large runs whole.
//! Uses `sync`; used by `pgmap`, and open to users who bring their own memory.
//!
//! Progress: blocking, each extent behind its own short lock; orders 16 to 18 take the locks of all their
//! extents in ascending order. No request fails while a fitting run is free all along: a search that finds
//! nothing is repeated when something was freed meanwhile, and decided under all locks after some repeats.
//!
//! # Invariants
//! I1: an extent's bitmaps and header change only under its lock; locks are taken in ascending order.
//! I2: a head bit implies an allocated bit; a run extends from its head to the page before the next head, the
//! next free page or the end of the extent.
//! I3: an extent that is part of an order 16..=18 run has `span` set and every page allocated; only the first of
//! the run has a head bit, at its page 0.
//! I4: `bound` of an extent is above the order of every run that is free in it.
//! I5: pages at and past an extent's `nr_pages` are marked allocated, without a head.
//! I6: `free_pages` is the sum of all extents' `free`.

mod bitmap;
mod error;
mod extent;
#[cfg(all(test, loom))]
mod loom_offset;
mod search;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use error::{Inconsistency, OffsetError};

use crate::error::SysError;
use crate::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{LazySlice, Mutex};
use crate::units::{MAX_ORDER, Order};
use bitmap::Bitmaps;
use extent::{Header, Locked};

/// Base-2 logarithm of the pages in an extent. Models use tiny extents.
pub const EXTENT_ORDER: u8 = if cfg!(loom) { 6 } else { 15 };
/// Pages in an extent: 32768, 128 MiB.
pub const EXTENT_PAGES: u64 = 1 << EXTENT_ORDER;

/// How long an allocation is expected to live. A hint: it never makes a request fail.
///
/// Placement does not look at it yet; it is part of the interface so that callers say what they know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Lifetime {
    /// Soon given back.
    #[default]
    Short,
    /// Kept for most of the program's life.
    Long,
    /// May be moved elsewhere when its place is wanted.
    Movable,
}

/// An allocator of page offsets.
///
/// ```
/// use daxtier::offset::{Lifetime, OffsetAllocator};
/// use daxtier::units::Order;
///
/// let offsets = OffsetAllocator::new(40_000, Order::PAGE)?;
/// offsets.add_extent(0)?;
/// let huge = offsets.alloc(Order::HUGE, Lifetime::Short)?;
/// assert_eq!(offsets.free_pages(), 32_768 - 512);
/// assert!(offsets.free(huge, Order::PAGE).is_err(), "the order must be the one that was asked for");
/// offsets.free(huge, Order::HUGE)?;
/// assert_eq!(offsets.free_pages(), 32_768);
/// # Ok::<(), daxtier::offset::OffsetError>(())
/// ```
#[derive(Debug)]
pub struct OffsetAllocator {
    nr_pages: u64,
    min_order: Order,
    nr_extents: usize,
    /// One past the highest extent that was ever added; bounds every search. Grows only.
    high: AtomicUsize,
    /// Per extent, one more than an upper bound on the largest order that is free in it, 0 for nothing (I4).
    /// Written under the extent's lock; read without it to skip extents.
    bounds: LazySlice<AtomicU8>,
    headers: LazySlice<Mutex<Header>>,
    bitmaps: LazySlice<Bitmaps>,
    /// Counts frees and new extents, so that a search knows whether it may have missed something.
    epoch: AtomicU64,
    /// Pages that are free in all extents (I6). Changed under an extent's lock.
    free_pages: AtomicU64,
}

impl OffsetAllocator {
    /// Makes an allocator for offsets below `nr_pages` that hands out orders from `min_order` up. It manages
    /// nothing until extents are added, and costs address space only.
    ///
    /// # Errors
    /// [`OffsetError::Sys`] when the kernel refuses the address space for the bitmaps.
    pub fn new(nr_pages: u64, min_order: Order) -> Result<OffsetAllocator, OffsetError> {
        let nr_extents = usize::try_from(nr_pages.div_ceil(EXTENT_PAGES))
            .map_err(|_| SysError { call: "mmap", errno: libc::ENOMEM })?;
        Ok(OffsetAllocator {
            nr_pages,
            min_order,
            nr_extents,
            high: AtomicUsize::new(0),
            bounds: LazySlice::populated(nr_extents)?,
            headers: LazySlice::populated(nr_extents)?,
            bitmaps: LazySlice::reserve(nr_extents)?,
            epoch: AtomicU64::new(0),
            free_pages: AtomicU64::new(0),
        })
    }

    /// Returns the number of pages that the allocator could manage.
    pub fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// Returns the number of extents that the allocator could manage.
    pub fn nr_extents(&self) -> usize {
        self.nr_extents
    }

    /// Returns the smallest order that is handed out.
    pub fn min_order(&self) -> Order {
        self.min_order
    }

    /// Returns how many pages are free now.
    pub fn free_pages(&self) -> u64 {
        // Relaxed: a snapshot.
        self.free_pages.load(Ordering::Relaxed)
    }

    /// Adds extent `index` with all its pages free: pages `index * 32768` and up, the last extent as far as the
    /// range goes.
    ///
    /// # Errors
    /// [`OffsetError::NoSuchExtent`], [`OffsetError::ExtentPresent`], or the kernel's refusal of memory.
    pub fn add_extent(&self, index: usize) -> Result<(), OffsetError> {
        self.add_extent_pages(index, EXTENT_PAGES)
    }

    /// Adds the first `nr_pages` pages of extent `index`, or as many as it has.
    ///
    /// # Errors
    /// As for [`add_extent`](OffsetAllocator::add_extent).
    pub fn add_extent_pages(&self, index: usize, nr_pages: u64) -> Result<(), OffsetError> {
        let nr_pages = nr_pages.min(self.extent_len(index)?);
        let mut extent = self.lock(index);
        if extent.header.nr_pages != 0 {
            return Err(OffsetError::ExtentPresent { extent: index });
        }
        self.bitmaps.populate(index..index + 1)?;
        extent.start(nr_pages);
        // Release: pairs with the Acquire of searches, which then see the extent's bound.
        self.high.fetch_max(index + 1, Ordering::Release);
        self.note_freed(&extent, nr_pages);
        Ok(())
    }

    /// Takes an extent that is wholly free out; its metadata goes with it.
    ///
    /// # Errors
    /// [`OffsetError::NoSuchExtent`], [`OffsetError::ExtentAbsent`], or [`OffsetError::ExtentInUse`] with the
    /// number of pages that are not free.
    pub fn remove_extent(&self, index: usize) -> Result<(), OffsetError> {
        self.extent_len(index)?;
        let mut extent = self.lock(index);
        let (nr_pages, free) = (extent.header.nr_pages, extent.header.free);
        if nr_pages == 0 {
            return Err(OffsetError::ExtentAbsent { extent: index });
        }
        if free != nr_pages {
            return Err(OffsetError::ExtentInUse { extent: index, used_pages: u64::from(nr_pages - free) });
        }
        extent.end();
        self.note_taken(&extent, u64::from(nr_pages), 0);
        // SAFETY: under the extent's lock (I1), and the header says that the extent is absent, so nobody looks
        // at its bitmaps until `start` fills them anew.
        unsafe { self.bitmaps.give_back(index..index + 1) };
        Ok(())
    }

    /// Returns whether extent `index` is present and wholly free.
    pub fn is_extent_idle(&self, index: usize) -> bool {
        index < self.nr_extents && {
            let extent = self.lock(index);
            extent.header.nr_pages != 0 && extent.header.free == extent.header.nr_pages
        }
    }

    /// Takes exactly the run `offset .. offset + 2^order`.
    ///
    /// # Errors
    /// [`OffsetError::Busy`] when a page of it is taken, [`OffsetError::ExtentAbsent`] when a page is in no
    /// present extent, and the errors of a bad offset or order.
    pub fn reserve(&self, offset: u64, order: Order) -> Result<(), OffsetError> {
        self.check(offset, order)?;
        if order.get() > EXTENT_ORDER {
            return self.reserve_span(offset, order);
        }
        let (index, page) = split(offset);
        let mut extent = self.lock(index);
        extent.check_present(page, order)?;
        if !extent.maps().is_free(page, order) {
            return Err(OffsetError::Busy { offset, order });
        }
        extent.take(page, order);
        let bound = extent.bound_by_free();
        self.note_taken(&extent, order.nr_pages(), bound);
        Ok(())
    }

    /// Gives a run back.
    ///
    /// # Errors
    /// [`OffsetError::NotAllocated`] when no run begins at `offset`, [`OffsetError::WrongOrder`] with the order
    /// that it has, and the errors of a bad offset or order. Nothing is changed then.
    pub fn free(&self, offset: u64, order: Order) -> Result<(), OffsetError> {
        self.check(offset, order)?;
        let (index, page) = split(offset);
        let mut extent = self.lock(index);
        let actual = extent.order_at(page).ok_or(OffsetError::NotAllocated { offset })?;
        if actual != order.get() {
            return Err(OffsetError::WrongOrder { offset, order, actual });
        }
        if actual > EXTENT_ORDER {
            drop(extent);
            return self.free_span(offset, order);
        }
        extent.give(page, order);
        self.note_freed(&extent, order.nr_pages());
        Ok(())
    }

    /// Returns the order of the run that begins at `offset`, or `None` when none does.
    pub fn order_at(&self, offset: u64) -> Option<Order> {
        if offset >= self.nr_pages {
            return None;
        }
        let (index, page) = split(offset);
        Order::new(self.lock(index).order_at(page)?).ok()
    }

    /// Takes all locks, for fork: the caller forks, and both sides call
    /// [`unlock_after_fork`](OffsetAllocator::unlock_after_fork). No extent is added meanwhile.
    pub(crate) fn lock_for_fork(&self) {
        // Relaxed: extents are added under a lock that the caller holds.
        for index in 0..self.high.load(Ordering::Relaxed) {
            self.header(index).lock_raw();
        }
    }

    /// Gives the locks of [`lock_for_fork`](OffsetAllocator::lock_for_fork) back.
    pub(crate) fn unlock_after_fork(&self) {
        // Relaxed: as in lock_for_fork.
        for index in 0..self.high.load(Ordering::Relaxed) {
            self.header(index).unlock_raw();
        }
    }

    /// Forgets every extent: they belong to the parent. Called in a forked child, which has one thread.
    pub(crate) fn forget_extents_in_child(&self) {
        // Relaxed here and below: one thread.
        for index in 0..self.high.load(Ordering::Relaxed) {
            self.lock(index).end();
            self.bound(index).store(0, Ordering::Relaxed);
        }
        self.free_pages.store(0, Ordering::Relaxed);
    }

    /// Returns the bytes of bitmaps of one present extent.
    pub(crate) const fn extent_metadata_bytes() -> u64 {
        (size_of::<Bitmaps>() + size_of::<Mutex<Header>>()) as u64
    }

    /// Returns how many pages extent `index` can have.
    fn extent_len(&self, index: usize) -> Result<u64, OffsetError> {
        if index >= self.nr_extents {
            return Err(OffsetError::NoSuchExtent { extent: index, nr_extents: self.nr_extents });
        }
        Ok((self.nr_pages - index as u64 * EXTENT_PAGES).min(EXTENT_PAGES))
    }

    fn check(&self, offset: u64, order: Order) -> Result<(), OffsetError> {
        debug_assert!(order.get() <= MAX_ORDER);
        if order < self.min_order {
            return Err(OffsetError::OrderTooSmall { order, min_order: self.min_order });
        }
        if !order.is_aligned(offset) {
            return Err(OffsetError::Misaligned { offset, order });
        }
        match offset.checked_add(order.nr_pages()) {
            Some(end) if end <= self.nr_pages => Ok(()),
            _ => Err(OffsetError::OutOfBounds { offset, order, nr_pages: self.nr_pages }),
        }
    }

    fn header(&self, index: usize) -> &Mutex<Header> {
        // SAFETY: all headers are populated at construction; callers checked the index against nr_extents.
        unsafe { self.headers.get(index) }
    }

    fn bound(&self, index: usize) -> &AtomicU8 {
        // SAFETY: all bounds are populated at construction; callers checked the index against nr_extents.
        unsafe { self.bounds.get(index) }
    }

    fn lock(&self, index: usize) -> Locked<'_> {
        Locked::new(index, self.header(index).lock(), &self.bitmaps)
    }

    /// Counts pages that became free in `extent`, whose lock is held.
    fn note_freed(&self, extent: &Locked<'_>, nr_pages: u64) {
        // Release: a search that sees the new bound or epoch then takes the lock and sees the bitmaps (I4).
        self.bound(extent.index).store(extent.bound_by_free(), Ordering::Release);
        // Relaxed: a statistic.
        self.free_pages.fetch_add(nr_pages, Ordering::Relaxed);
        // Release: pairs with the Acquire load that begins and ends a search.
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Counts pages that were taken from `extent`, whose lock is held, and lowers its bound to `bound` if that
    /// is below it.
    fn note_taken(&self, extent: &Locked<'_>, nr_pages: u64, bound: u8) {
        self.lower_bound(extent.index, bound);
        // Relaxed: a statistic.
        self.free_pages.fetch_sub(nr_pages, Ordering::Relaxed);
    }

    /// Lowers the bound of an extent whose lock is held.
    fn lower_bound(&self, index: usize, bound: u8) {
        // Relaxed: written under the lock only, which is held.
        if self.bound(index).load(Ordering::Relaxed) > bound {
            // Release: pairs with the Acquire in `search`. Whoever passes this extent over because of what we took also
            // sees what we freed elsewhere before, by the epoch if not by that extent's bound.
            self.bound(index).store(bound, Ordering::Release);
        }
    }
}

/// Splits an offset in its extent and the page inside it.
fn split(offset: u64) -> (usize, usize) {
    ((offset >> EXTENT_ORDER) as usize, (offset & (EXTENT_PAGES - 1)) as usize)
}
