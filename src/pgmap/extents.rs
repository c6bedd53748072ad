//! Extents: which parts of the device this process has claimed, and how more is claimed.
//!
//! An [`ExtentSlot`] per extent says where it stands. An extent is claimed on demand, under the pgmap's `grow`
//! lock: from the device, then scrubbed (`scrub`) if the device cannot promise zeroes, then given metadata, and only then
//! shown to the allocator. Extents that other processes hold are passed over and tried again when nothing else is
//! left.
//!
//! # Protocol
//! | state | meaning | leaves to |
//! |---|---|---|
//! | unclaimed | nobody's, or another process's | claimed, under `grow` |
//! | claimed | ours: metadata exists | unclaimed, at the pgmap's end or when it is idle (`shrink`); foreign, in a forked child |
//! | foreign | the parent process's | nothing |

use super::body::Body;
use super::{FolioError, table::FolioTable};
use crate::device::DeviceError;
use crate::offset::{EXTENT_PAGES, Lifetime, OffsetAllocator, OffsetError};
use crate::sync::{Zeroed, service};
use crate::sys::stdio;
use crate::units::{Order, PAGE_SHIFT};
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

const UNCLAIMED: u8 = 0;
const CLAIMED: u8 = 1;
const FOREIGN: u8 = 2;

/// Where an extent stands. All zero: unclaimed and unmapped.
#[derive(Debug, Default)]
pub(super) struct ExtentSlot {
    /// See the module's protocol. Written under `grow`; its Release publishes the extent's metadata.
    state: AtomicU8,
    /// 1 when the extent is in the direct mapping. Written under `grow`.
    pub(super) mapped: AtomicU8,
    /// 1 when the extent's metadata exists: from its first claim on, for the life of the pgmap. Written under `grow`.
    is_prepared: AtomicU8,
    /// Pages that are claimed, from the extent's start: fewer than the extent has when the limit cuts it.
    nr_pages: AtomicU32,
}

// SAFETY: plain atomics, valid and default when zero.
unsafe impl Zeroed for ExtentSlot {}

/// What the growing of a pgmap needs to know.
#[derive(Debug, Default)]
pub(super) struct Grow {
    /// Pages claimed by this process.
    pub(super) claimed_pages: u64,
    /// Every extent below this one is claimed or foreign.
    first_unclaimed: usize,
}

/// Why an extent was not claimed.
enum ClaimFault {
    /// Another process holds it.
    Held(DeviceError),
    /// The limit is reached.
    Limit,
    /// Something else, which trying the next extent would not mend.
    Other(FolioError),
}

impl Body {
    pub(super) fn slot(&self, index: usize) -> &ExtentSlot {
        // SAFETY: all slots are populated at bind; callers' indices come from offsets below nr_pages.
        unsafe { self.extents.get(index) }
    }

    pub(super) fn extent_of(&self, offset: u64) -> usize {
        (offset / self.extent_pages) as usize
    }

    /// Returns the pages of an extent, claimed or not.
    pub(super) fn extent_range(&self, index: usize) -> Range<u64> {
        let start = index as u64 * self.extent_pages;
        start..(start + self.extent_pages).min(self.nr_pages)
    }

    /// Returns the claimed pages of an extent; none when it is not this process's.
    pub(super) fn claimed_range(&self, index: usize) -> Range<u64> {
        let start = index as u64 * self.extent_pages;
        let slot = self.slot(index);
        // Acquire: pairs with the Release of `claim_extent`, so that the metadata is there.
        match slot.state.load(Ordering::Acquire) {
            CLAIMED => start..start + u64::from(slot.nr_pages.load(Ordering::Relaxed)),
            _ => start..start,
        }
    }

    /// Returns the extents that may be claimed: those below the highest that ever was.
    pub(super) fn known_extents(&self) -> Range<usize> {
        // Acquire: pairs with the Release of `claim_extent`.
        0..self.high.load(Ordering::Acquire)
    }

    /// Checks that the metadata of `offset` exists.
    ///
    /// # Errors
    /// [`FolioError::OutOfBounds`], [`FolioError::NotClaimed`], [`FolioError::Forked`].
    pub(super) fn check_claimed(&self, offset: u64) -> Result<(), FolioError> {
        if offset >= self.nr_pages {
            let nr_pages = self.nr_pages;
            return Err(FolioError::OutOfBounds { offset, order: Order::PAGE, nr_pages });
        }
        let index = self.extent_of(offset);
        if self.claimed_range(index).contains(&offset) {
            Ok(())
        } else if self.is_foreign(index) {
            Err(FolioError::Forked { pgmap: self.id, offset })
        } else {
            Err(FolioError::NotClaimed { offset })
        }
    }

    pub(super) fn is_foreign(&self, index: usize) -> bool {
        // Relaxed: set in a forked child before it has a second thread.
        self.slot(index).state.load(Ordering::Relaxed) == FOREIGN
    }

    /// Claims whatever of the run is not claimed yet.
    pub(super) fn claim_run(&self, offset: u64, order: Order) -> Result<(), FolioError> {
        let is_claimed = |(index, wanted): (usize, Range<u64>)| covers(&self.claimed_range(index), &wanted);
        if self.extents_of_run(offset, order).all(is_claimed) {
            return Ok(());
        }
        self.claim_run_with(offset, order, &mut self.grow.lock())
    }

    /// As [`claim_run`](Body::claim_run), under the lock: nothing of it is given back before that is free.
    pub(super) fn claim_run_with(
        &self,
        offset: u64,
        order: Order,
        grow: &mut Grow,
    ) -> Result<(), FolioError> {
        for (index, wanted) in self.extents_of_run(offset, order) {
            if covers(&self.claimed_range(index), &wanted) {
                continue;
            }
            if self.is_foreign(index) {
                return Err(FolioError::Forked { pgmap: self.id, offset });
            }
            if self.claimed_range(index).is_empty() {
                self.claim_extent(index, grow).map_err(|fault| match fault {
                    ClaimFault::Held(error) => FolioError::Device(error),
                    ClaimFault::Limit => FolioError::LimitReached { offset, limit_pages: self.limit_pages() },
                    ClaimFault::Other(error) => error,
                })?;
            }
            if !covers(&self.claimed_range(index), &wanted) {
                return Err(FolioError::LimitReached { offset, limit_pages: self.limit_pages() });
            }
        }
        Ok(())
    }

    /// Returns the extents that a run touches, each with the part of the run that lies in it.
    fn extents_of_run(&self, offset: u64, order: Order) -> impl Iterator<Item = (usize, Range<u64>)> {
        let end = offset + order.nr_pages();
        (self.extent_of(offset)..=self.extent_of(end - 1)).map(move |index| {
            let whole = self.extent_range(index);
            (index, offset.max(whole.start)..end.min(whole.end))
        })
    }

    /// Takes a free run from the allocator, claiming more of the device while it has none, and in the end from what is
    /// kept zeroed.
    pub(super) fn alloc_offset(
        &self,
        allocator: &OffsetAllocator,
        order: Order,
        lifetime: Lifetime,
    ) -> Result<u64, FolioError> {
        let take = || self.alloc_offset_beside_pool(allocator, order, lifetime);
        take().or_else(|error| self.with_none_aside(allocator, take).unwrap_or(Err(error)))
    }

    /// Takes a free run from the allocator, claiming more of the device while it has none.
    pub(super) fn alloc_offset_beside_pool(
        &self,
        allocator: &OffsetAllocator,
        order: Order,
        lifetime: Lifetime,
    ) -> Result<u64, FolioError> {
        if let Ok(offset) = allocator.alloc(order, lifetime) {
            return Ok(offset);
        }
        // With it nobody else claims, or gives back what was just claimed.
        let mut grow = self.grow.lock();
        loop {
            // Looked at again: another thread may have claimed an extent meanwhile.
            if let Ok(offset) = allocator.alloc(order, lifetime) {
                return Ok(offset);
            }
            let mut held_extents = 0;
            if !self.claim_more(allocator, order, &mut grow, &mut held_extents)? {
                let free_pages = allocator.free_pages();
                return Err(FolioError::Exhausted { order, free_pages, held_extents });
            }
        }
    }

    /// Claims as much as one run of `order` needs. Returns `false` when that is not to be had.
    fn claim_more(
        &self,
        allocator: &OffsetAllocator,
        order: Order,
        grow: &mut Grow,
        held: &mut u64,
    ) -> Result<bool, FolioError> {
        if self.limit_pages() <= grow.claimed_pages {
            return Ok(false);
        }
        let span = (order.nr_pages() / self.extent_pages).max(1) as usize;
        let mut first = grow.first_unclaimed / span * span;
        while first < self.nr_extents() {
            let group = first..(first + span).min(self.nr_extents());
            first += span;
            if !self.could_hold(allocator, order, &group, grow) {
                continue;
            }
            let mut outcome = Ok(());
            for index in group.filter(|&index| self.is_unclaimed(index)) {
                outcome = self.claim_extent(index, grow);
                if outcome.is_err() {
                    break;
                }
            }
            match outcome {
                Ok(()) => return Ok(true),
                Err(ClaimFault::Held(_)) => *held += 1,
                Err(ClaimFault::Limit) => return Ok(false),
                Err(ClaimFault::Other(error)) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Returns whether a run of `order` would be free in `group` once its unclaimed extents, of which there is
    /// at least one, are claimed.
    fn could_hold(
        &self,
        allocator: &OffsetAllocator,
        order: Order,
        group: &Range<usize>,
        grow: &Grow,
    ) -> bool {
        let start = self.extent_range(group.start).start;
        let end = self.extent_range(group.end - 1).end;
        let unclaimed = || group.clone().filter(|&index| self.is_unclaimed(index));
        let needed: u64 =
            unclaimed().map(|index| self.extent_range(index)).map(|range| range.end - range.start).sum();
        let room = self.limit_pages().saturating_sub(grow.claimed_pages);
        let is_one = group.len() == 1;
        let fits_limit = if is_one { order.nr_pages() <= room.min(needed) } else { needed <= room };
        unclaimed().next().is_some()
            && end - start >= order.nr_pages()
            && fits_limit
            && group.clone().filter(|&index| !self.is_unclaimed(index)).all(|index| {
                let range = self.claimed_range(index);
                range == self.extent_range(index)
                    && allocator_extents(&range).all(|extent| allocator.is_extent_idle(extent))
            })
    }

    fn is_unclaimed(&self, index: usize) -> bool {
        // Relaxed: changes under `grow`, which callers hold.
        self.slot(index).state.load(Ordering::Relaxed) == UNCLAIMED
    }

    /// Claims one extent, or as much of it as the limit allows.
    fn claim_extent(&self, index: usize, grow: &mut Grow) -> Result<(), ClaimFault> {
        // Relaxed: set under `grow`.
        if self.is_dead.load(Ordering::Relaxed) {
            return Err(ClaimFault::Other(FolioError::Dying { pgmap: self.id }));
        }
        let whole = self.extent_range(index);
        let room = self.limit_pages().saturating_sub(grow.claimed_pages);
        let nr_pages = (whole.end - whole.start).min(room / self.granule_pages * self.granule_pages);
        if nr_pages == 0 {
            return Err(ClaimFault::Limit);
        }
        let pages = whole.start..whole.start + nr_pages;
        let bytes = byte_range(&pages);
        let claim = self.device.claim(bytes.clone()).map_err(|error| match error {
            DeviceError::Claimed { .. } | DeviceError::Mapped { .. } => ClaimFault::Held(error),
            DeviceError::OtherNode { .. } => {
                self.tell_once(&error);
                ClaimFault::Other(FolioError::Device(error))
            }
            other => ClaimFault::Other(FolioError::Device(other)),
        })?;
        let prepared = self.scrub_claimed(&pages, claim.is_zero).map_err(|refusal| match refusal {
            damaged @ DeviceError::Damaged { .. } => ClaimFault::Held(damaged),
            other => ClaimFault::Other(other.into()),
        });
        let prepared = prepared.and_then(|()| self.prepare(index).map_err(ClaimFault::Other));
        if let Err(fault) = prepared {
            self.device.release(bytes);
            return Err(fault);
        }
        let slot = self.slot(index);
        slot.nr_pages.store(nr_pages as u32, Ordering::Relaxed);
        // Release: pairs with the Acquire of `claimed_range`.
        slot.state.store(CLAIMED, Ordering::Release);
        // Release: pairs with the Acquire of `known_extents`.
        self.high.fetch_max(index + 1, Ordering::Release);
        if let Err(error) = self.show_to_allocator(&pages) {
            slot.state.store(UNCLAIMED, Ordering::Relaxed);
            self.release_pages(&pages);
            return Err(ClaimFault::Other(error));
        }
        grow.claimed_pages += nr_pages;
        while grow.first_unclaimed < self.nr_extents() && !self.is_unclaimed(grow.first_unclaimed) {
            grow.first_unclaimed += 1;
        }
        self.counters.note_claimed(grow.claimed_pages);
        Ok(())
    }

    /// Tells the user why nothing of the device is used: malloc has no other way to say so.
    fn tell_once(&self, error: &DeviceError) {
        // Relaxed: it says all that there is.
        if !self.is_told.swap(true, Ordering::Relaxed) {
            service::run(|| stdio::complain(&format!("daxtier: {error}\n")));
        }
    }

    /// Makes the metadata of an extent at its first claim. Later ones find it as it is: every page idle, and somebody may be
    /// looking.
    fn prepare(&self, index: usize) -> Result<(), FolioError> {
        let slot = self.slot(index);
        // Relaxed: under `grow`.
        if slot.is_prepared.load(Ordering::Relaxed) == 0 {
            self.table.populate(self.extent_range(index))?;
            slot.is_prepared.store(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes note that an extent, of which nothing is in use, is not this process's any more.
    pub(super) fn note_unclaimed(&self, index: usize, grow: &mut Grow) {
        let pages = self.claimed_range(index);
        // Relaxed: who finds the extent claimed still finds its metadata too.
        self.slot(index).state.store(UNCLAIMED, Ordering::Relaxed);
        grow.claimed_pages -= pages.end - pages.start;
        grow.first_unclaimed = grow.first_unclaimed.min(index);
        self.counters.note_claimed(grow.claimed_pages);
    }

    /// Returns the most pages that may be claimed.
    pub(super) fn limit_pages(&self) -> u64 {
        // Relaxed: a number; who claims by the one before it claims as if that had come first.
        self.limit_pages.load(Ordering::Relaxed)
    }

    /// Returns a limit in whole granules of the device.
    pub(super) fn round_limit(&self, limit_pages: Option<u64>) -> u64 {
        limit_pages.unwrap_or(self.nr_pages).min(self.nr_pages) / self.granule_pages * self.granule_pages
    }

    /// Adds claimed pages to the allocator, all of them or none.
    fn show_to_allocator(&self, pages: &Range<u64>) -> Result<(), FolioError> {
        let Some(allocator) = &self.allocator else { return Ok(()) };
        for extent in allocator_extents(pages) {
            let in_extent = pages.end - extent as u64 * EXTENT_PAGES;
            if let Err(error) = allocator.add_extent_pages(extent, in_extent) {
                for added in allocator_extents(pages).take_while(|&added| added < extent) {
                    // Nothing of it can be in use: our caller holds `grow`, and the extent was never published.
                    let _ = allocator.remove_extent(added);
                }
                return Err(match error {
                    OffsetError::Sys(error) => FolioError::Sys(error),
                    _ => FolioError::Busy { offset: pages.start, order: Order::PAGE },
                });
            }
        }
        Ok(())
    }

    /// Gives every claim back and takes the extents out of the direct mapping. No folio is live and none can be
    /// requested.
    pub(super) fn release_claims(&self) {
        self.with_pool_ended(|| self.release_all_claims());
    }

    fn release_all_claims(&self) {
        let mut grow = self.grow.lock();
        self.is_dead.store(true, Ordering::Relaxed);
        for index in self.known_extents() {
            let pages = self.claimed_range(index);
            if pages.is_empty() {
                continue;
            }
            self.unmap_direct(index);
            self.slot(index).state.store(UNCLAIMED, Ordering::Relaxed);
            self.release_pages(&pages);
        }
        grow.claimed_pages = 0;
        grow.first_unclaimed = 0;
        self.counters.note_claimed(0);
    }

    /// Makes every claimed extent the parent's. Called in a forked child, which has one thread and holds `grow`.
    pub(super) fn make_claims_foreign_in_child(&self, grow: &mut Grow) {
        for index in self.known_extents() {
            if !self.claimed_range(index).is_empty() {
                self.table.forget_in_child(self.extent_range(index));
                self.slot(index).state.store(FOREIGN, Ordering::Relaxed);
            }
        }
        grow.claimed_pages = 0;
        self.counters.note_claimed(0);
    }

    /// Returns whether every extent is the parent process's.
    pub(super) fn is_all_foreign(&self) -> bool {
        (0..self.nr_extents()).all(|index| self.is_foreign(index))
    }

    /// Returns the bytes of metadata of the claimed extents.
    pub(super) fn metadata_bytes(&self) -> u64 {
        let with_allocator = self.allocator.is_some();
        let claimed: u64 = self
            .known_extents()
            .map(|index| self.claimed_range(index))
            .filter(|pages| !pages.is_empty())
            .map(|pages| {
                let bitmaps =
                    allocator_extents(&pages).count() as u64 * OffsetAllocator::extent_metadata_bytes();
                FolioTable::block_bytes(pages.end - pages.start) + if with_allocator { bitmaps } else { 0 }
            })
            .sum();
        claimed + self.table.split_bytes()
    }
}

/// Returns whether `pages`, which begin with an extent, are all of it.
pub(super) fn is_whole(body: &Body, pages: &Range<u64>) -> bool {
    *pages == body.extent_range(body.extent_of(pages.start))
}

/// Returns the allocator's extents that hold `pages`, which begin with one.
pub(super) fn allocator_extents(pages: &Range<u64>) -> Range<usize> {
    (pages.start / EXTENT_PAGES) as usize..pages.end.div_ceil(EXTENT_PAGES) as usize
}

pub(super) fn byte_range(pages: &Range<u64>) -> Range<u64> {
    pages.start << PAGE_SHIFT..pages.end << PAGE_SHIFT
}

fn covers(outer: &Range<u64>, inner: &Range<u64>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}
