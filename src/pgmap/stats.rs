//! Counters of a pgmap, and the snapshot that users see.

use super::Pgmap;
use super::body::Body;
use crate::units::{MAX_ORDER, Order, PAGE_SIZE};
use std::sync::atomic::{AtomicU64, Ordering};

const NR_ORDERS: usize = MAX_ORDER as usize + 1;

/// What a pgmap holds and has done, as it was at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PgmapStats {
    /// The most that it can hand out: the device's length, or the limit.
    pub capacity_bytes: u64,
    /// Claimed from the device by this process.
    pub claimed_bytes: u64,
    /// In live folios.
    pub used_bytes: u64,
    /// The most that was ever in live folios.
    pub peak_bytes: u64,
    /// Free and zero already: see [`keep_zeroed`](Pgmap::keep_zeroed).
    pub prezeroed_bytes: u64,
    /// Metadata of claimed extents and split blocks.
    pub metadata_bytes: u64,
    /// Live folios of each order.
    pub folios_by_order: [u64; NR_ORDERS],
    /// Folios that were ever handed out.
    pub allocations: u64,
    /// Requests that were refused.
    pub failures: u64,
    /// Taken out of use because the metadata was corrupt.
    pub quarantined_bytes: u64,
}

/// The counters behind [`PgmapStats`]. All Relaxed: statistics that order nothing.
#[derive(Debug, Default)]
pub(super) struct Counters {
    claimed_pages: AtomicU64,
    used_pages: AtomicU64,
    peak_pages: AtomicU64,
    folios_by_order: [AtomicU64; NR_ORDERS],
    allocations: AtomicU64,
    failures: AtomicU64,
}

impl Counters {
    pub(super) fn note_claimed(&self, claimed_pages: u64) {
        self.claimed_pages.store(claimed_pages, Ordering::Relaxed);
    }

    pub(super) fn note_request(&self, order: Order) {
        let used = self.used_pages.fetch_add(order.nr_pages(), Ordering::Relaxed) + order.nr_pages();
        self.peak_pages.fetch_max(used, Ordering::Relaxed);
        self.folios_by_order[usize::from(order.get())].fetch_add(1, Ordering::Relaxed);
        self.allocations.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_free(&self, order: Order) {
        self.used_pages.fetch_sub(order.nr_pages(), Ordering::Relaxed);
        self.folios_by_order[usize::from(order.get())].fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn note_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets what is in use: it is the parent's. Called in a forked child, which has one thread.
    pub(super) fn reset_in_child(&self) {
        self.used_pages.store(0, Ordering::Relaxed);
        self.peak_pages.store(0, Ordering::Relaxed);
        self.folios_by_order.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    }
}

impl Body {
    fn stats(&self) -> PgmapStats {
        let counters = &self.counters;
        let bytes = |pages: &AtomicU64| pages.load(Ordering::Relaxed) * PAGE_SIZE as u64;
        PgmapStats {
            capacity_bytes: self.limit_pages * PAGE_SIZE as u64,
            claimed_bytes: bytes(&counters.claimed_pages),
            used_bytes: bytes(&counters.used_pages),
            peak_bytes: bytes(&counters.peak_pages),
            prezeroed_bytes: self.prezeroed.nr_aside() as u64 * Order::HUGE.len_bytes(),
            metadata_bytes: self.metadata_bytes(),
            folios_by_order: std::array::from_fn(|order| {
                counters.folios_by_order[order].load(Ordering::Relaxed)
            }),
            allocations: counters.allocations.load(Ordering::Relaxed),
            failures: counters.failures.load(Ordering::Relaxed),
            quarantined_bytes: self.table.quarantined_pages() * PAGE_SIZE as u64,
        }
    }
}

impl Pgmap {
    /// Returns what the pgmap holds and has done. Neither blocks nor allocates.
    pub fn stats(&self) -> PgmapStats {
        self.body().stats()
    }
}
