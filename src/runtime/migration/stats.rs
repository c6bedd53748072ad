//! What came of requests: counts by outcome, and how long it took.
//!
//! The counters of a pool lie in the page that it publishes; [`MigrationStats`] is what they say at one moment. The words of
//! [`Outcome::key`] are keys of the statistics' JSON.

use crate::counters::{MigrationCounters, NR_BUCKETS, NR_OUTCOMES};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What came of a slot that was to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// It was moved.
    Moved = 0,
    /// It was in the tier already.
    Already = 1,
    /// Nothing of the pool is there, or not any more.
    Gone = 2,
    /// The program pinned it ([`Pool::pin`](crate::Pool::pin)).
    Kept = 3,
    /// What backs it is not moved: neither tier is DRAM, or it is a copy of a parent process's memory.
    Kind = 4,
    /// A page is pinned for direct I/O.
    Pinned = 5,
    /// The program may do direct I/O into it (it has or had a descriptor of that kind), and pages of a device that are
    /// pinned can't be told from others.
    DirectIo = 6,
    /// A page is shared with a forked process.
    Forked = 7,
    /// The program locked or protected a page.
    Locked = 8,
    /// The process is near the limit of mappings (`vm.max_map_count`).
    MapLimit = 9,
    /// The tier is full.
    NoSpace = 10,
    /// The machine has no memory for the copy.
    NoMemory = 11,
    /// The device's memory can't be had: it is gone, huge pages are switched off for the process, or the program closed a
    /// descriptor of the library behind its back.
    Device = 12,
    /// The kernel refused a call that it should not refuse.
    Refused = 13,
    /// The request was cancelled before.
    Cancelled = 14,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; NR_OUTCOMES] = [
        Outcome::Moved,
        Outcome::Already,
        Outcome::Gone,
        Outcome::Kept,
        Outcome::Kind,
        Outcome::Pinned,
        Outcome::DirectIo,
        Outcome::Forked,
        Outcome::Locked,
        Outcome::MapLimit,
        Outcome::NoSpace,
        Outcome::NoMemory,
        Outcome::Device,
        Outcome::Refused,
        Outcome::Cancelled,
    ];

    /// Returns the key of the outcome in the statistics' JSON.
    pub const fn key(self) -> &'static str {
        match self {
            Outcome::Moved => "moved",
            Outcome::Already => "already_there",
            Outcome::Gone => "gone",
            Outcome::Kept => "kept",
            Outcome::Kind => "not_movable",
            Outcome::Pinned => "pinned",
            Outcome::DirectIo => "direct_io",
            Outcome::Forked => "forked",
            Outcome::Locked => "locked",
            Outcome::MapLimit => "map_limit",
            Outcome::NoSpace => "no_space",
            Outcome::NoMemory => "no_memory",
            Outcome::Device => "device",
            Outcome::Refused => "refused",
            Outcome::Cancelled => "cancelled",
        }
    }

    /// Returns a word for the outcome.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Moved => "moved",
            Outcome::Already => "already there",
            Outcome::Gone => "nothing there",
            Outcome::Kept => "pinned by the program",
            Outcome::Kind => "not movable",
            Outcome::Pinned => "pinned for I/O",
            Outcome::DirectIo => "direct I/O possible",
            Outcome::Forked => "shared with a child",
            Outcome::Locked => "locked or protected",
            Outcome::MapLimit => "limit of mappings",
            Outcome::NoSpace => "tier full",
            Outcome::NoMemory => "no memory",
            Outcome::Device => "device not usable",
            Outcome::Refused => "refused by the kernel",
            Outcome::Cancelled => "cancelled",
        }
    }
}

/// How many slots of 2 MiB had which outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MigrationCounts {
    counts: [u64; NR_OUTCOMES],
}

impl MigrationCounts {
    pub(super) fn new(count: impl Fn(Outcome) -> u64) -> MigrationCounts {
        MigrationCounts { counts: Outcome::ALL.map(count) }
    }

    /// Returns how many slots had an outcome.
    pub fn get(&self, outcome: Outcome) -> u64 {
        self.counts[outcome as usize]
    }

    /// Adds other counts to these.
    pub fn add(&mut self, other: &MigrationCounts) {
        self.counts
            .iter_mut()
            .zip(other.counts)
            .for_each(|(count, other)| *count = count.saturating_add(other));
    }

    /// Returns how many slots are in the tier now that they were to move to.
    pub fn in_place(&self) -> u64 {
        self.get(Outcome::Moved).saturating_add(self.get(Outcome::Already))
    }

    /// Returns how many slots something has come of.
    pub fn total(&self) -> u64 {
        sum(&self.counts)
    }

    /// Returns the outcomes that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL.into_iter().map(|outcome| (outcome, self.get(outcome))).filter(|(_, count)| *count > 0)
    }
}

/// How often something took how long, in powers of two of microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; NR_BUCKETS],
}

impl Histogram {
    /// Returns how many values there are.
    pub fn count(&self) -> u64 {
        sum(&self.buckets)
    }

    /// Returns how many values were at most 1 microsecond, above that and at most 2, above that and at most 4, and so on.
    pub fn buckets(&self) -> &[u64; NR_BUCKETS] {
        &self.buckets
    }

    /// Returns an upper bound, in microseconds, of the smallest `per_mille` thousandths of the values; 0 without values.
    pub fn quantile_us(&self, per_mille: u64) -> u64 {
        let wanted = (u128::from(self.count()) * u128::from(per_mille.min(1000))).div_ceil(1000);
        let mut seen = 0u128;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += u128::from(*count);
            if *count > 0 && seen >= wanted {
                return 1 << bucket;
            }
        }
        0
    }
}

/// What came of all requests to move a pool's memory, in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MigrationStats {
    /// Slots by outcome.
    pub counts: MigrationCounts,
    /// How long moved slots were blocked: what a thread that stores to one waits at most.
    pub blocked: Histogram,
    /// How long moves took, preparation included: of several slots that were moved together, each one's share.
    pub total: Histogram,
    /// Huge pages of DRAM that were made for the next promotions, beyond the capacity of the fast tier; given back half a second
    /// after the last one.
    pub staged_bytes: u64,
}

/// Adds figures up. Those of another process may be anything.
fn sum(figures: &[u64]) -> u64 {
    figures.iter().fold(0, |sum: u64, figure| sum.saturating_add(*figure))
}

impl MigrationStats {
    pub(in super::super) fn of(counters: &MigrationCounters) -> MigrationStats {
        // Relaxed: figures, each for itself.
        let load = |words: &[AtomicU64; NR_BUCKETS]| Histogram {
            buckets: std::array::from_fn(|at| words[at].load(Ordering::Relaxed)),
        };
        MigrationStats {
            counts: MigrationCounts::new(|outcome| {
                counters.outcomes[outcome as usize].load(Ordering::Relaxed)
            }),
            blocked: load(&counters.blocked),
            total: load(&counters.total),
            staged_bytes: counters.staged_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Takes note of what came of a slot.
pub(super) fn note(counters: &MigrationCounters, outcome: Outcome) {
    counters.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
}

/// Takes note of how long a move took.
pub(super) fn note_times(counters: &MigrationCounters, blocked: Duration, total: Duration) {
    counters.blocked[bucket(blocked)].fetch_add(1, Ordering::Relaxed);
    counters.total[bucket(total)].fetch_add(1, Ordering::Relaxed);
}

/// Takes note of how much is kept where `before` was kept.
pub(super) fn note_staged(counters: &MigrationCounters, before: usize, now: usize) {
    // The difference wraps, as the sum does.
    counters.staged_bytes.fetch_add((now as u64).wrapping_sub(before as u64), Ordering::Relaxed);
}

/// The bucket of a time: bucket `n` holds what is above 2^(n-1) and at most 2^n microseconds.
fn bucket(time: Duration) -> usize {
    let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    (us.next_power_of_two().trailing_zeros() as usize).min(NR_BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_bounds() {
        let counters = MigrationCounters::new();
        for us in [1, 3, 3, 100, 5000] {
            note_times(&counters, Duration::from_micros(us), Duration::from_micros(2 * us));
        }
        let stats = MigrationStats::of(&counters);
        assert_eq!((stats.blocked.count(), stats.total.count()), (5, 5));
        assert_eq!(stats.blocked.buckets()[..4], [1, 0, 2, 0]);
        assert_eq!(stats.blocked.quantile_us(500), 4);
        assert_eq!(stats.blocked.quantile_us(1000), 8192);
        assert_eq!(stats.total.quantile_us(200), 2);
        assert_eq!(Histogram::default().quantile_us(500), 0);
    }

    #[test]
    fn outcomes_have_places_and_keys_of_their_own() {
        let counters = MigrationCounters::new();
        Outcome::ALL
            .iter()
            .enumerate()
            .for_each(|(at, &outcome)| (0..=at).for_each(|_| note(&counters, outcome)));
        let counts = MigrationStats::of(&counters).counts;
        assert_eq!(counts.total(), 120);
        assert!(Outcome::ALL.iter().enumerate().all(|(at, &outcome)| counts.get(outcome) == at as u64 + 1));
        assert_eq!(counts.in_place(), 3);
        let keys: std::collections::HashSet<&str> =
            Outcome::ALL.iter().map(|outcome| outcome.key()).collect();
        assert_eq!(keys.len(), NR_OUTCOMES);
    }
}
