//! The counters of a tier and of migration, as plain words that a page can publish.
//!
//! [`TierCounters`] is written by whoever hands memory out and read by anybody, this process or another;
//! [`MigrationCounters`] by whoever moves it. Both are made of words alone, so that they can live in shared memory, and every
//! value of every word means something: a reader can be misled about a number, never harmed by it. Uses `units`; used by the
//! tiers, by migration and by the page that a process publishes.
//!
//! # Invariants
//! - I1: the layout is part of the published page. A change of it raises the page's version.

use crate::units::MAX_ORDER;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of orders, 0..=[`MAX_ORDER`].
pub(crate) const NR_ORDERS: usize = MAX_ORDER as usize + 1;

/// The counters of one tier. All are independent of each other and publish nothing, so every access is Relaxed;
/// what several of them say together may be a moment apart.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct TierCounters {
    /// What the tier can hold.
    pub(crate) capacity_bytes: AtomicU64,
    /// What is in use.
    pub(crate) used_bytes: AtomicU64,
    /// The most that was in use.
    pub(crate) peak_bytes: AtomicU64,
    /// What the bookkeeping takes.
    pub(crate) metadata_bytes: AtomicU64,
    /// Allocations served.
    pub(crate) allocations: AtomicU64,
    /// Requests that could not be served.
    pub(crate) failures: AtomicU64,
    /// Live folios, by order.
    pub(crate) folios_by_order: [AtomicU64; NR_ORDERS],
}

impl TierCounters {
    /// Makes counters that say nothing has happened.
    pub(crate) const fn new() -> TierCounters {
        TierCounters {
            capacity_bytes: AtomicU64::new(0),
            used_bytes: AtomicU64::new(0),
            peak_bytes: AtomicU64::new(0),
            metadata_bytes: AtomicU64::new(0),
            allocations: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            folios_by_order: [const { AtomicU64::new(0) }; NR_ORDERS],
        }
    }

    /// Copies every counter of `other`.
    pub(crate) fn copy_from(&self, other: &TierCounters) {
        for (to, from) in self.words().zip(other.words()) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn words(&self) -> impl Iterator<Item = &AtomicU64> {
        let single = [
            &self.capacity_bytes,
            &self.used_bytes,
            &self.peak_bytes,
            &self.metadata_bytes,
            &self.allocations,
            &self.failures,
        ];
        single.into_iter().chain(&self.folios_by_order)
    }
}

/// How many outcomes the move of a slot can have.
pub(crate) const NR_OUTCOMES: usize = 15;
/// How many buckets a histogram of times has: of at most 1, 2, 4, ... microseconds.
pub(crate) const NR_BUCKETS: usize = 32;

/// What came of moving a pool's memory. As for [`TierCounters`], every access is Relaxed.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct MigrationCounters {
    /// Slots by outcome.
    pub(crate) outcomes: [AtomicU64; NR_OUTCOMES],
    /// Huge pages that are kept for the next move.
    pub(crate) staged_bytes: AtomicU64,
    /// Moved slots by how long they were blocked.
    pub(crate) blocked: [AtomicU64; NR_BUCKETS],
    /// Moved slots by how long the move took.
    pub(crate) total: [AtomicU64; NR_BUCKETS],
}

impl MigrationCounters {
    /// Makes counters that say nothing has happened.
    pub(crate) const fn new() -> MigrationCounters {
        MigrationCounters {
            outcomes: [const { AtomicU64::new(0) }; NR_OUTCOMES],
            staged_bytes: AtomicU64::new(0),
            blocked: [const { AtomicU64::new(0) }; NR_BUCKETS],
            total: [const { AtomicU64::new(0) }; NR_BUCKETS],
        }
    }

    /// Copies every counter of `other`.
    pub(crate) fn copy_from(&self, other: &MigrationCounters) {
        for (to, from) in self.words().zip(other.words()) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Begins anew.
    pub(crate) fn reset(&self) {
        self.words().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    fn words(&self) -> impl Iterator<Item = &AtomicU64> {
        self.outcomes.iter().chain([&self.staged_bytes]).chain(&self.blocked).chain(&self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_leaves_no_counter_out() {
        let counters = TierCounters::new();
        for (ix, word) in counters.words().enumerate() {
            word.store(ix as u64 + 1, Ordering::Relaxed);
        }
        let copy = TierCounters::new();
        copy.copy_from(&counters);
        let bytes = 8 * counters.words().count();
        assert!(size_of::<TierCounters>() - bytes < 64, "words() lacks a field");
        assert_eq!(copy.folios_by_order[NR_ORDERS - 1].load(Ordering::Relaxed), 25);
        assert_eq!(copy.failures.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn a_copy_of_what_came_of_moves_is_whole_and_ends_with_a_reset() {
        let (counters, copy) = (MigrationCounters::new(), MigrationCounters::new());
        counters.words().zip(1..).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        assert_eq!(8 * counters.words().count(), size_of::<MigrationCounters>(), "words() lacks a field");
        copy.copy_from(&counters);
        let values = |counters: &MigrationCounters| -> Vec<u64> {
            counters.words().map(|word| word.load(Ordering::Relaxed)).collect()
        };
        assert_eq!(values(&copy), values(&counters));
        counters.reset();
        assert!(values(&counters).iter().all(|&value| value == 0));
    }
}
