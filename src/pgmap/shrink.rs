//! Giving back what is idle while the pgmap lives, and the budget that bounds what is claimed.
//!
//! A pgmap claims extents as it needs them and keeps them for its next folio. Processes that share a device have the rest of it, so
//! who will not need as much again gives idle extents back ([`Pgmap::release_idle`]), and who shall have more or less from now on gets another
//! limit ([`Pgmap::set_limit`]). Uses `extents`; needs the built-in allocator, which alone knows that nothing of an extent is taken.
//!
//! # Protocol
//! An extent goes from *claimed* to *unclaimed* under `grow`, in this order, each step the end of somebody's view of it:
//! 1. It leaves the allocator, which refuses while a page of it is taken: by a folio, by a request on its way, by what is kept zeroed, or
//!    because it is damaged. From here on nothing of it is handed out, and all of it is idle.
//! 2. Its state becomes unclaimed: who looks a folio up by its offset finds none.
//! 3. Its place in the direct mapping becomes a hole, and its bytes are treated as `scrub` has it.
//! 4. The claim goes. Another process may have it by the next instruction.
//!
//! A request by offset that saw the extent as claimed before step 2 and finds it absent after step 1 takes `grow`, claims anew, and takes
//! its run before it lets go of `grow`, so that however often others give back, it is served.
//!
//! The metadata stays where it is. A look-up that began before step 2 may still read it, and finds every page idle; so a later claim does not
//! replace it either (`is_prepared`).

use super::body::Body;
use super::extents::{Grow, allocator_extents};
use super::{Pgmap, extents};
use crate::offset::OffsetAllocator;
use crate::sync::service;
use crate::units::PAGE_SHIFT;
use std::ops::Range;
use std::sync::atomic::Ordering;

impl Pgmap {
    /// Gives every extent back to the device of which no page is in use, and returns how many bytes that were. Other processes can
    /// claim them then; this one claims anew when it needs more. Blocks for as long as the scrub takes where the device's
    /// [`ScrubPolicy`](crate::device::ScrubPolicy) is on-release.
    ///
    /// Gives nothing back of a pgmap whose [offsets](crate::pgmap::OffsetTracking) the caller tracks, nor, in a forked child, of what is the parent's.
    ///
    /// # Example
    /// ```
    /// use daxtier::{Lifetime, Order, Pgmap, PgmapOptions, device::Emulated};
    /// use std::sync::Arc;
    ///
    /// let pgmap = Pgmap::bind(Arc::new(Emulated::new(256 << 20, 2 << 20)?), PgmapOptions::default())?;
    /// let folio = pgmap.alloc_folio(Order::HUGE, Lifetime::Short)?;
    /// assert_eq!(pgmap.release_idle(), 0);
    /// drop(folio);
    /// assert_eq!(pgmap.release_idle(), 128 << 20);
    /// assert_eq!(pgmap.stats().claimed_bytes, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn release_idle(&self) -> u64 {
        self.body().shrink(|_, _| true)
    }

    /// Changes the most that this process claims of the device, in pages; all of it with `None`. Idle extents are given back until no more is
    /// claimed than that. Returns the bytes that are claimed beyond it, in extents of which something is in use: what is there stays
    /// valid, nothing is claimed until they are less, and [`release_idle`](Pgmap::release_idle) gives back what becomes idle.
    ///
    /// Rounded down to the device's granule.
    pub fn set_limit(&self, limit_pages: Option<u64>) -> u64 {
        let body = self.body();
        let limit = body.round_limit(limit_pages);
        let former = body.limit_pages.swap(limit, Ordering::Relaxed);
        // What the former limit cut short can be claimed as a whole.
        let is_short = |pages: &Range<u64>| limit > former && !extents::is_whole(body, pages);
        body.shrink(|pages, grow| grow.claimed_pages > limit || is_short(pages));
        body.grow.lock().claimed_pages.saturating_sub(limit) << PAGE_SHIFT
    }
}

impl Body {
    /// Gives idle extents back, the last first, for which `is_wanted` says so. Returns how many bytes.
    fn shrink(&self, is_wanted: impl Fn(&Range<u64>, &Grow) -> bool) -> u64 {
        let Some(allocator) = &self.allocator else { return 0 };
        let release = || {
            let mut grow = self.grow.lock();
            let mut nr_pages = 0;
            for index in self.known_extents().rev() {
                let pages = self.claimed_range(index);
                if !pages.is_empty()
                    && is_wanted(&pages, &grow)
                    && self.release_extent(allocator, index, &mut grow)
                {
                    nr_pages += pages.end - pages.start;
                }
            }
            nr_pages << PAGE_SHIFT
        };
        // In service: it may clear, and what it allocates must not come from here.
        service::run(|| self.with_none_aside(allocator, release).unwrap_or_else(release))
    }

    /// Gives a claimed extent back if it is idle; returns whether it was.
    fn release_extent(&self, allocator: &OffsetAllocator, index: usize, grow: &mut Grow) -> bool {
        let pages = self.claimed_range(index);
        if !hide_from_allocator(allocator, &pages) {
            return false;
        }
        self.note_unclaimed(index, grow);
        self.unmap_direct(index);
        self.release_pages(&pages);
        true
    }
}

/// Takes idle pages out of the allocator, all of them or none.
fn hide_from_allocator(allocator: &OffsetAllocator, pages: &Range<u64>) -> bool {
    // A first look at all, so that what a device of large granules has in use is rarely taken apart.
    if !allocator_extents(pages).all(|extent| allocator.is_extent_idle(extent)) {
        return false;
    }
    for extent in allocator_extents(pages) {
        if allocator.remove_extent(extent).is_err() {
            for removed in allocator_extents(pages).take_while(|&removed| removed < extent) {
                // Refused only when the kernel has no memory for it; what is not put back is free and stays unused.
                let in_extent = pages.end - removed as u64 * crate::offset::EXTENT_PAGES;
                let _ = allocator.add_extent_pages(removed, in_extent);
            }
            return false;
        }
    }
    true
}
