//! One extent under its lock: header and bitmaps together.

use super::bitmap::Bitmaps;
use super::{EXTENT_ORDER, EXTENT_PAGES, OffsetError};
use crate::sync::{LazySlice, Mutex, MutexGuard, Zeroed};
use crate::units::Order;

/// The counters of an extent. All zero: the extent is absent.
#[derive(Debug, Default)]
pub(super) struct Header {
    /// Pages in the extent, 0 when it is absent.
    pub(super) nr_pages: u32,
    /// Pages that are free.
    pub(super) free: u32,
    /// Every word of the bitmap below this one is full.
    pub(super) first_word: u32,
    /// The order of the run that this extent is a part of, when that is above the extent's own; otherwise 0.
    pub(super) span: u8,
}

impl Default for Mutex<Header> {
    fn default() -> Mutex<Header> {
        Mutex::new(Header::default())
    }
}

// SAFETY: a free lock is 0, and so is an absent extent's header.
unsafe impl Zeroed for Mutex<Header> {}

/// An extent whose lock is held.
pub(super) struct Locked<'a> {
    pub(super) index: usize,
    pub(super) header: MutexGuard<'a, Header>,
    bitmaps: &'a LazySlice<Bitmaps>,
}

impl<'a> Locked<'a> {
    pub(super) fn new(
        index: usize,
        header: MutexGuard<'a, Header>,
        bitmaps: &'a LazySlice<Bitmaps>,
    ) -> Locked<'a> {
        Locked { index, header, bitmaps }
    }

    /// Returns the bitmaps. The extent is present.
    pub(super) fn maps(&self) -> &Bitmaps {
        debug_assert!(self.header.nr_pages != 0);
        // SAFETY: a present extent's bitmaps are populated; the lock keeps writers out (I1).
        unsafe { self.bitmaps.get(self.index) }
    }

    fn maps_mut(&mut self) -> &mut Bitmaps {
        debug_assert!(self.header.nr_pages != 0);
        // SAFETY: a present extent's bitmaps are populated.
        let mut maps = unsafe { self.bitmaps.element_ptr(self.index) };
        // SAFETY: only the holder of this extent's lock looks at them (I1), and the borrow of `self` is exclusive.
        unsafe { maps.as_mut() }
    }

    /// Ends the access without giving the lock back.
    pub(super) fn keep_locked(self) {
        self.header.keep_locked();
    }

    /// Makes the extent present with `nr_pages` free pages. Its bitmaps were populated.
    pub(super) fn start(&mut self, nr_pages: u64) {
        debug_assert!(nr_pages > 0 && nr_pages <= EXTENT_PAGES);
        *self.header = Header { nr_pages: nr_pages as u32, free: nr_pages as u32, first_word: 0, span: 0 };
        self.maps_mut().reset(nr_pages as usize);
    }

    /// Makes the extent absent.
    pub(super) fn end(&mut self) {
        *self.header = Header::default();
    }

    /// Refuses a run that is not wholly in the present part of the extent.
    pub(super) fn check_present(&self, page: usize, order: Order) -> Result<(), OffsetError> {
        if page as u64 + order.nr_pages() > u64::from(self.header.nr_pages) {
            return Err(OffsetError::ExtentAbsent { extent: self.index });
        }
        Ok(())
    }

    /// Returns the first free run of `order`.
    pub(super) fn find(&self, order: Order) -> Option<usize> {
        if u64::from(self.header.free) < order.nr_pages() {
            return None;
        }
        self.maps().find(order, self.header.first_word as usize)
    }

    /// Marks the free run at `page` allocated.
    pub(super) fn take(&mut self, page: usize, order: Order) {
        self.maps_mut().take(page, order, true);
        self.header.free -= order.nr_pages() as u32;
        let nr_words = EXTENT_PAGES as usize / 64;
        while (self.header.first_word as usize) < nr_words
            && self.maps().is_full(self.header.first_word as usize)
        {
            self.header.first_word += 1;
        }
    }

    /// Marks the allocated run at `page` free.
    pub(super) fn give(&mut self, page: usize, order: Order) {
        self.maps_mut().give(page, order);
        self.header.free += order.nr_pages() as u32;
        self.header.first_word = self.header.first_word.min((page / 64) as u32);
    }

    /// Marks this wholly free extent as a part of a run of `order`, which spans extents.
    pub(super) fn take_span(&mut self, order: Order, is_head: bool) {
        let whole = whole_extent();
        self.maps_mut().take(0, whole, is_head);
        self.header.free = 0;
        self.header.span = order.get();
    }

    /// Marks this part of a spanning run free.
    pub(super) fn give_span(&mut self) {
        self.maps_mut().give(0, whole_extent());
        self.header.free = self.header.nr_pages;
        self.header.first_word = 0;
        self.header.span = 0;
    }

    /// Returns whether the extent is present in full length and wholly free.
    pub(super) fn is_whole(&self) -> bool {
        u64::from(self.header.free) == EXTENT_PAGES
    }

    /// Returns the order of the run that begins at `page`.
    pub(super) fn order_at(&self, page: usize) -> Option<u8> {
        if page >= self.header.nr_pages as usize || !self.maps().is_head(page) {
            return None;
        }
        if self.header.span != 0 {
            return Some(self.header.span);
        }
        Some(self.maps().run_len(page, self.header.nr_pages as usize).ilog2() as u8)
    }

    /// Returns one more than the largest order that the number of free pages allows (I4).
    pub(super) fn bound_by_free(&self) -> u8 {
        self.header.free.checked_ilog2().map_or(0, |order| order as u8 + 1)
    }
}

/// Returns the order of a whole extent.
pub(super) fn whole_extent() -> Order {
    const WHOLE: Order = match Order::new(EXTENT_ORDER) {
        Ok(order) => order,
        Err(_) => panic!("an extent is at most the largest order"),
    };
    WHOLE
}
