//! Counters of a pgmap, and the snapshot that users see.

use super::Pgmap;
use super::body::Body;
use crate::error::SysError;
use crate::sync::percpu_sums::{NR_SUMS, PercpuSums};
use crate::units::{MAX_ORDER, Order, PAGE_SIZE};
use std::sync::atomic::{AtomicU64, Ordering, fence};

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
    /// The most that was ever in live folios, as far as was seen: never above it, and at most 4 MiB for each processor
    /// below.
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

/// The counters behind [`PgmapStats`]. All Relaxed but where they say: statistics that order nothing. What every request
/// and every free counts stands in sums of each processor's own.
#[derive(Debug)]
pub(super) struct Counters {
    sums: PercpuSums,
    claimed_pages: AtomicU64,
    peak_pages: AtomicU64,
    failures: AtomicU64,
}

/// The sums: folios of each order that were made, and that were freed.
const MADE: usize = 0;
const FREED: usize = NR_ORDERS;
/// What a processor's folios made and freed come to in pages. Wraps: others may free what this one made.
const NET: usize = 2 * NR_ORDERS;
/// What that was when this processor last looked at the peak, or less since.
const MARK: usize = NET + 1;
const _: () = assert!(MARK < NR_SUMS);

/// Pages by which a processor's use grows before it looks whether there is a new peak.
const STEP_PAGES: i64 = 1024;

impl Counters {
    /// Makes counters of 0.
    ///
    /// # Errors
    /// The refusal of address space.
    pub(super) fn new() -> Result<Counters, SysError> {
        Ok(Counters {
            sums: PercpuSums::new()?,
            claimed_pages: AtomicU64::new(0),
            peak_pages: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    pub(super) fn note_claimed(&self, claimed_pages: u64) {
        self.claimed_pages.store(claimed_pages, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn note_request(&self, order: Order) {
        self.sums.add(MADE + usize::from(order.get()), 1);
        self.sums.add(NET, order.nr_pages());
        if self.growth() > STEP_PAGES {
            self.mark();
            self.look_at_peak();
        }
    }

    #[inline]
    pub(super) fn note_free(&self, order: Order) {
        self.sums.add(FREED + usize::from(order.get()), 1);
        self.sums.add(NET, order.nr_pages().wrapping_neg());
        if self.growth() < -STEP_PAGES {
            self.mark();
        }
    }

    /// Returns by how many pages this processor's use has grown since it was marked.
    #[inline]
    fn growth(&self) -> i64 {
        self.sums.own(NET).wrapping_sub(self.sums.own(MARK)) as i64
    }

    fn mark(&self) {
        self.sums.note(MARK, self.sums.own(NET));
    }

    #[cold]
    fn look_at_peak(&self) {
        self.peak_pages.fetch_max(used_pages(&self.folios_by_order()), Ordering::Relaxed);
    }

    /// Counts live folios. While folios come and go it finds no more than there were at some moment meanwhile.
    fn folios_by_order(&self) -> [u64; NR_ORDERS] {
        let made: [u64; NR_ORDERS] = std::array::from_fn(|order| self.sums.sum(MADE + order));
        // Acquire: frees are counted after what was made, so that each folio whose end is missed was alive, and
        // none is counted that was not.
        fence(Ordering::Acquire);
        std::array::from_fn(|order| made[order].saturating_sub(self.sums.sum(FREED + order)))
    }

    fn allocations(&self) -> u64 {
        (0..NR_ORDERS).map(|order| self.sums.sum(MADE + order)).fold(0, u64::wrapping_add)
    }

    pub(super) fn note_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets what is in use: it is the parent's. Called in a forked child, which has one thread.
    pub(super) fn reset_in_child(&self) {
        for (order, live) in self.folios_by_order().into_iter().enumerate() {
            self.sums.add(FREED + order, live);
        }
        self.peak_pages.store(0, Ordering::Relaxed);
    }
}

fn used_pages(folios_by_order: &[u64; NR_ORDERS]) -> u64 {
    folios_by_order.iter().enumerate().map(|(order, folios)| folios << order).sum()
}

impl Body {
    fn stats(&self) -> PgmapStats {
        let counters = &self.counters;
        let folios_by_order = counters.folios_by_order();
        let used_pages = used_pages(&folios_by_order);
        counters.peak_pages.fetch_max(used_pages, Ordering::Relaxed);
        let bytes = |pages: &AtomicU64| pages.load(Ordering::Relaxed) * PAGE_SIZE as u64;
        PgmapStats {
            capacity_bytes: self.limit_pages() * PAGE_SIZE as u64,
            claimed_bytes: bytes(&counters.claimed_pages),
            used_bytes: used_pages * PAGE_SIZE as u64,
            peak_bytes: bytes(&counters.peak_pages),
            prezeroed_bytes: self.prezeroed.nr_aside() as u64 * Order::HUGE.len_bytes(),
            metadata_bytes: self.metadata_bytes(),
            folios_by_order,
            allocations: counters.allocations(),
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

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_never_above_the_truth_and_little_below() {
        let counters = Counters::new().expect("address space");
        let page = Order::PAGE;
        // Each thread's folios are freed by the next one, so that no processor alone knows what is in use.
        let threads = 4u64;
        for _ in 0..3 {
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| (0..5000).for_each(|_| counters.note_request(page)));
                }
            });
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| (0..5000).for_each(|_| counters.note_free(page)));
                }
            });
        }
        let peak = counters.peak_pages.load(Ordering::Relaxed);
        let below = (STEP_PAGES as u64 + 1) * crate::sys::cpu::nr_shards() as u64;
        assert!(peak <= 20_000 && peak >= 20_000u64.saturating_sub(below), "{peak}");
        assert_eq!(counters.folios_by_order(), [0; NR_ORDERS]);
        assert_eq!(counters.allocations(), 60_000);
    }

    #[test]
    fn one_folio_over_and_over_is_no_growth() {
        let counters = Counters::new().expect("address space");
        for _ in 0..1000 {
            counters.note_request(Order::HUGE);
            counters.note_free(Order::HUGE);
        }
        assert!(counters.growth().abs() <= STEP_PAGES);
        assert!(counters.peak_pages.load(Ordering::Relaxed) <= Order::HUGE.nr_pages());
    }
}
