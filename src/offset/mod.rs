//! The offset allocator: which pages of a range are taken, in integers only.
//!
//! [`OffsetAllocator`] hands out naturally aligned runs of 2^order pages, addresses nothing and knows no folio.
//! The range is cut in extents of 128 MiB which come and go at run time. Uses `sync`; used by `pgmap`, and open to users
//! who bring their own memory.
//!
//! | level | what | where |
//! |---|---|---|
//! | region, 1 GiB | orders 16 to 18: one word, one compare-and-swap | `region` |
//! | extent, 128 MiB | orders 9 to 15: masks of its 64 blocks, under the extent's lock | `extent` |
//! | block, 2 MiB | orders 0 to 8: a bitmap with an order a word, under the extent's lock | `split` |
//! | magazine | orders 0 to 4 and 9: what each processor holds ready, no lock | `magazine` |
//!
//! An allocation takes from its processor's magazine. An empty one is refilled by a *unit*, 32 aligned runs of the order,
//! the first that has a free run in the extents that no other processor is busy with (`home`): so placement is
//! address-ordered, one lock serves up to 32 allocations, and 32 pages are taken by changing one word. A free goes to the
//! freeing processor's magazine if that has the unit (two frees in a row to another unit fetch that), else to the bitmap, by
//! one compare-and-swap (`free`). Long-lived small runs have blocks of their own. A free names offset and order, and both are
//! checked against the bitmap and the magazines before anything changes.
//!
//! Progress: blocking. The magazines need no lock, nor do most frees of orders 0 to 5 (lock-free, but for the one that leaves
//! a block empty); all else takes the short lock of one extent; orders 16 to 18 are lock-free. No request fails while a
//! fitting run is free all along: before it does, the magazines are closed and emptied, and it is decided under all locks
//! (`drain`).
//!
//! Metadata: 82 bytes an extent and some for its region while nothing is split; 4416 bytes more for an extent whose blocks
//! are all split (35 KiB a GiB), and up to 4096 more where words hold several orders.
//!
//! # Invariants
//! I1: header and heads of an extent are touched, and its tags and `wholes` changed, under its lock only; bits of its words
//! are set under it only, and cleared by whoever gives a run back. Locks are taken in ascending order.
//! I2: a page is free when no bit says that it is taken, or a magazine holds it. A magazine holds only runs that are
//! marked taken, but for I5.
//! I3: a word that is tagged owned belongs to one slot, and its unit holds runs of the slot's order only. A slot comes to
//! hold a unit, and ceases to, under the lock of the unit's extent.
//! I4: an extent is open while any block of it is taken; only extents that are not open are part of a spanning run.
//! I5: of two frees of one allocation that run at the same instant, one on the processor that holds the unit and one
//! elsewhere, both may succeed. The run is free once: taking it looks at its bit again. The same goes for a free of a run that
//! is free already, at the instant in which its unit comes to a magazine. In every other case a wrong free is refused, unless
//! all of its word is given back, taken for another order and brought to the same bits between two instructions of the free.
//! I6: while `exhausted` is not above an order, no run of that order is free, but for one whose free has not returned.
//! Whoever puts a unit in a magazine raises it first; whoever makes anything free otherwise raises it right after.

mod drain;
mod error;
mod extent;
mod free;
mod geometry;
mod home;
#[cfg(all(test, loom))]
mod loom_offset;
mod magazine;
mod region;
mod search;
mod split;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
mod validate;

pub use error::{Inconsistency, OffsetError};
pub use geometry::{EXTENT_ORDER, EXTENT_PAGES};

use crate::error::SysError;
use crate::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{LazySlice, Mutex};
use crate::units::{MAX_ORDER, Order};
use extent::{Header, Locked};
use geometry::{BLOCK_ORDER, BLOCK_PAGES, Class, locate};
use magazine::{Magazines, Step};
use split::{Heads, Tags, Words};

/// How long an allocation is expected to live. A hint: it never makes a request fail.
///
/// Runs below 2 MiB that live long are kept together, so that they do not keep the blocks of others in pieces.
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
    /// The lowest order of which nothing is free, as far as is known (I6); above all orders when nothing is known.
    exhausted: AtomicU8,
    /// A bit for each order below a block's of which no free run was found but in words of other orders. A hint: what is
    /// freed clears it, and may come before it is set.
    untidy: AtomicU16,
    /// Per extent, what searches find there, and whose it is: see `extent` and `home`. Written under the extent's
    /// lock; read without it.
    flags: LazySlice<AtomicU16>,
    headers: LazySlice<Mutex<Header>>,
    /// Per extent, the blocks that are runs of their own or held as such by magazines. Written under the extent's lock;
    /// magazines look at bits of what they and their users hold.
    wholes: LazySlice<AtomicU64>,
    /// Per extent, the split blocks of which some page is free in the bitmap; what searches find there. Bits of other blocks
    /// mean nothing. Dropped under the extent's lock; added by whoever frees, who may be late with it.
    rooms: LazySlice<AtomicU64>,
    /// Per eight extents, a word of `region`: changed by compare-and-swap.
    regions: LazySlice<AtomicU64>,
    words: LazySlice<Words>,
    tags: LazySlice<Tags>,
    heads: LazySlice<Heads>,
    magazines: Magazines,
    /// Held while the magazines are closed, while an extent is added, and over a fork.
    closing: Mutex<()>,
}

/// `exhausted` when nothing is known.
const NOTHING_KNOWN: u8 = MAX_ORDER + 1;
/// `exhausted` while it is decided. It refuses nothing.
const DECIDING: u8 = MAX_ORDER + 2;

impl OffsetAllocator {
    /// Makes an allocator for offsets below `nr_pages` that hands out orders from `min_order` up. It manages
    /// nothing until extents are added, and costs address space only.
    ///
    /// # Errors
    /// [`OffsetError::Sys`] when the kernel refuses the address space for the bitmaps.
    pub fn new(nr_pages: u64, min_order: Order) -> Result<OffsetAllocator, OffsetError> {
        OffsetAllocator::with_step(nr_pages, min_order, Magazines::best_step())
    }

    fn with_step(nr_pages: u64, min_order: Order, step: Step) -> Result<OffsetAllocator, OffsetError> {
        let nr_extents = usize::try_from(nr_pages.div_ceil(EXTENT_PAGES))
            .map_err(|_| SysError { call: "mmap", errno: libc::ENOMEM })?;
        Ok(OffsetAllocator {
            nr_pages,
            min_order,
            nr_extents,
            high: AtomicUsize::new(0),
            exhausted: AtomicU8::new(NOTHING_KNOWN),
            untidy: AtomicU16::new(0),
            flags: LazySlice::populated(nr_extents)?,
            headers: LazySlice::populated(nr_extents)?,
            wholes: LazySlice::populated(nr_extents)?,
            rooms: LazySlice::populated(nr_extents)?,
            regions: LazySlice::populated(nr_extents.div_ceil(8))?,
            words: LazySlice::reserve(nr_extents)?,
            tags: LazySlice::populated(nr_extents)?,
            heads: LazySlice::reserve(nr_extents)?,
            magazines: Magazines::new(magazine::nr_cpus(), step)?,
            closing: Mutex::new(()),
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

    /// Counts the pages that are free now. Looks through all extents: exact while nothing changes, and not for hot paths.
    pub fn free_pages(&self) -> u64 {
        let in_bitmaps: u64 = self.extents().map(|index| self.lock(index).count_free()).sum();
        let in_magazines: u64 = self
            .magazines
            .slots()
            .map(|(_, class, _, _, mask)| u64::from(mask.count_ones()) << class.order())
            .sum();
        in_bitmaps + in_magazines
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
        // A decision knows all extents (see `drain`).
        let _closing = self.closing.lock();
        let mut extent = self.lock(index);
        if extent.is_present() {
            return Err(OffsetError::ExtentPresent { extent: index });
        }
        if nr_pages == 0 {
            return Ok(());
        }
        self.words.populate(index..index + 1)?;
        self.heads.populate(index..index + 1)?;
        // Release: pairs with the Acquire of searches.
        self.high.fetch_max(index + 1, Ordering::Release);
        extent.start(nr_pages);
        self.note_tidy(Freed::Word);
        self.note_freed();
        Ok(())
    }

    /// Takes an extent that is wholly free out; its metadata goes with it.
    ///
    /// # Errors
    /// [`OffsetError::NoSuchExtent`], [`OffsetError::ExtentAbsent`], or [`OffsetError::ExtentInUse`] with the
    /// number of pages that are not free.
    pub fn remove_extent(&self, index: usize) -> Result<(), OffsetError> {
        self.extent_len(index)?;
        self.with_idle_extent(index, |mut extent| {
            if !extent.is_present() {
                return Err(OffsetError::ExtentAbsent { extent: index });
            }
            let nr_pages = u64::from(extent.header().nr_pages);
            let free = extent.count_free();
            // An idle extent of full length is one that its region lets us open.
            if free != nr_pages || !extent.open() {
                let used_pages = if free == nr_pages { nr_pages } else { nr_pages - free };
                return Err(OffsetError::ExtentInUse { extent: index, used_pages });
            }
            extent.end();
            // SAFETY: under the extent's lock (I1), and the header says that the extent is absent, so nobody looks
            // at its words until `start`; magazines look at words of runs that are allocated only.
            unsafe { self.words.give_back(index..index + 1) };
            // SAFETY: as for the words.
            unsafe { self.heads.give_back(index..index + 1) };
            Ok(())
        })
    }

    /// Returns whether extent `index` is present and wholly free.
    pub fn is_extent_idle(&self, index: usize) -> bool {
        index < self.nr_extents
            && self.with_idle_extent(index, |extent| {
                extent.is_present() && extent.count_free() == u64::from(extent.header().nr_pages)
            })
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
        let mut extent = self.lock(locate(offset).0);
        let outcome = self.reserve_in(&mut extent, offset, order);
        if !matches!(outcome, Err(OffsetError::Busy { .. })) || !self.is_near_magazine(offset, order) {
            return outcome;
        }
        drop(extent);
        self.with_closed(|| {
            let mut extent = self.lock(locate(offset).0);
            self.drain_extent(&mut extent);
            self.reserve_in(&mut extent, offset, order)
        })
    }

    /// Returns the order of the run that begins at `offset`, or `None` when none does.
    pub fn order_at(&self, offset: u64) -> Option<Order> {
        if offset >= self.nr_pages {
            return None;
        }
        let extent = self.lock(locate(offset).0);
        Order::new(self.allocated_order(&extent, offset)?).ok()
    }

    /// Returns the bytes of metadata of one present extent, all of it split.
    pub(crate) const fn extent_metadata_bytes() -> u64 {
        (size_of::<Words>() + size_of::<Tags>() + size_of::<Mutex<Header>>()) as u64
    }

    /// Returns how many pages extent `index` can have.
    fn extent_len(&self, index: usize) -> Result<u64, OffsetError> {
        if index >= self.nr_extents {
            return Err(OffsetError::NoSuchExtent { extent: index, nr_extents: self.nr_extents });
        }
        Ok((self.nr_pages - index as u64 * EXTENT_PAGES).min(EXTENT_PAGES))
    }

    #[inline]
    fn check(&self, offset: u64, order: Order) -> Result<(), OffsetError> {
        debug_assert!(order.get() <= MAX_ORDER);
        let nr_pages = order.nr_pages();
        if order >= self.min_order
            && order.is_aligned(offset)
            && nr_pages <= self.nr_pages
            && offset <= self.nr_pages - nr_pages
        {
            return Ok(());
        }
        Err(self.refusal(offset, order))
    }

    #[cold]
    fn refusal(&self, offset: u64, order: Order) -> OffsetError {
        if order < self.min_order {
            OffsetError::OrderTooSmall { order, min_order: self.min_order }
        } else if !order.is_aligned(offset) {
            OffsetError::Misaligned { offset, order }
        } else {
            OffsetError::OutOfBounds { offset, order, nr_pages: self.nr_pages }
        }
    }

    /// Returns whether the bitmap has the run at `offset` as taken. Without the lock that is certain for runs that the
    /// asker, or the magazine of a slot that it looked at, holds.
    #[inline]
    fn is_taken(&self, class: Class, offset: u64) -> bool {
        let (index, page) = locate(offset);
        if class == Class::BLOCK {
            // Relaxed: about a block that was handed to the asker after the bit was set.
            return self.wholes(index).load(Ordering::Relaxed) >> (page / BLOCK_PAGES) & 1 != 0;
        }
        // SAFETY: a magazine has a unit of this extent, so the extent was present and its words are populated; they stay
        // mapped when it goes.
        let words = unsafe { self.words.get(index) };
        words.bit(page)
    }

    fn header(&self, index: usize) -> &Mutex<Header> {
        // SAFETY: all headers are populated at construction; callers checked the index against nr_extents.
        unsafe { self.headers.get(index) }
    }

    fn flags(&self, index: usize) -> &AtomicU16 {
        // SAFETY: all flags are populated at construction; callers checked the index against nr_extents.
        unsafe { self.flags.get(index) }
    }

    #[inline]
    fn wholes(&self, index: usize) -> &AtomicU64 {
        // SAFETY: all of these are populated at construction; callers checked the index against nr_extents.
        unsafe { self.wholes.get(index) }
    }

    #[inline]
    fn room(&self, index: usize) -> &AtomicU64 {
        // SAFETY: all of these are populated at construction; callers checked the index against nr_extents.
        unsafe { self.rooms.get(index) }
    }

    #[inline]
    fn tags(&self, index: usize) -> &Tags {
        // SAFETY: all tags are populated at construction; callers checked the index against nr_extents.
        unsafe { self.tags.get(index) }
    }

    fn region_of(&self, extent: usize) -> Region<'_> {
        // SAFETY: all regions are populated at construction; callers checked the extent against nr_extents.
        Region(unsafe { self.regions.get(extent / 8) })
    }

    /// Says that an extent is present in full length and free.
    fn set_idle(&self, extent: usize) {
        self.region_of(extent).update(|word| Some(word | 1 << (extent % 8)));
    }

    fn extents(&self) -> std::ops::Range<usize> {
        // Acquire: pairs with the Release of add_extent_pages.
        0..self.high.load(Ordering::Acquire)
    }

    fn lock(&self, index: usize) -> Locked<'_> {
        Locked::new(index, self.header(index).lock(), self, false)
    }

    /// Says that something became free (I6), after it did.
    #[inline]
    fn note_freed(&self) {
        // SeqCst here and below: see `drain`.
        if self.exhausted.load(Ordering::SeqCst) != NOTHING_KNOWN {
            self.exhausted.swap(NOTHING_KNOWN, Ordering::SeqCst);
        }
    }
}

/// What was freed, as far as it matters to searches that would mix orders in a word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Freed {
    /// A run, in a word that others still hold pages of.
    Run(u8),
    /// A word or more, or it was not looked at.
    Word,
}

impl OffsetAllocator {
    /// Says that there may be a tidy place again.
    #[inline]
    fn note_tidy(&self, freed: Freed) {
        // Relaxed: a hint.
        if self.untidy.load(Ordering::Relaxed) != 0 {
            match freed {
                Freed::Run(order) => self.untidy.fetch_and(!(1 << order), Ordering::Relaxed),
                Freed::Word => self.untidy.swap(0, Ordering::Relaxed),
            };
        }
    }

    /// Notes that nothing of `order` is free but in words of other orders.
    fn note_untidy(&self, order: u8) {
        // Relaxed: a hint.
        self.untidy.fetch_or(1 << order, Ordering::Relaxed);
    }

    fn is_untidy(&self, order: u8) -> bool {
        // Relaxed: a hint.
        order < BLOCK_ORDER && self.untidy.load(Ordering::Relaxed) >> order & 1 != 0
    }
}

/// The word of a region.
struct Region<'a>(&'a AtomicU64);

impl Region<'_> {
    fn load(&self) -> u64 {
        // Acquire: pairs with the AcqRel of `update`.
        self.0.load(Ordering::Acquire)
    }

    /// Makes a transition; returns whether it was possible.
    fn update(&self, transition: impl Fn(u64) -> Option<u64>) -> bool {
        let mut word = self.load();
        while let Some(new) = transition(word) {
            // AcqRel: whoever takes an extent or a run sees what was done under it before.
            match self.0.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }
}
