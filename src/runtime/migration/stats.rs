//! What came of requests: counts by outcome, and how long it took.

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

pub(super) const NR_OUTCOMES: usize = 15;

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
        self.counts.iter_mut().zip(other.counts).for_each(|(count, other)| *count += other);
    }

    /// Returns how many slots are in the tier now that they were to move to.
    pub fn in_place(&self) -> u64 {
        self.get(Outcome::Moved) + self.get(Outcome::Already)
    }

    /// Returns how many slots something has come of.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the outcomes that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL.into_iter().map(|outcome| (outcome, self.get(outcome))).filter(|(_, count)| *count > 0)
    }
}

/// The number of buckets of a [`Histogram`].
const NR_BUCKETS: usize = 32;

/// How often something took how long, in powers of two of microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; NR_BUCKETS],
}

impl Histogram {
    /// Returns how many values there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Returns an upper bound, in microseconds, of the smallest `per_mille` thousandths of the values; 0 without values.
    pub fn quantile_us(&self, per_mille: u64) -> u64 {
        let wanted = (self.count() * per_mille.min(1000)).div_ceil(1000);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= wanted {
                return 1 << bucket;
            }
        }
        0
    }
}

/// What came of all requests of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MigrationStats {
    /// Slots by outcome.
    pub counts: MigrationCounts,
    /// How long moved slots were blocked: what a thread that stores to one waits at most.
    pub blocked: Histogram,
    /// How long moves took, preparation included: of several slots that were moved together, each one's share.
    pub total: Histogram,
    /// Huge pages of DRAM that are kept for the next move, beyond the capacity of the fast tier; given back half a second
    /// after the last one.
    pub staged_bytes: u64,
}

/// The counters behind [`MigrationStats`]. All are independent and publish nothing, so every access is Relaxed.
pub(super) struct Figures {
    counts: [AtomicU64; NR_OUTCOMES],
    blocked: [AtomicU64; NR_BUCKETS],
    total: [AtomicU64; NR_BUCKETS],
    /// The last move's times in nanoseconds.
    last_ns: [AtomicU64; 2],
    staged_bytes: AtomicU64,
}

impl Figures {
    pub(super) const fn new() -> Figures {
        Figures {
            counts: [const { AtomicU64::new(0) }; NR_OUTCOMES],
            blocked: [const { AtomicU64::new(0) }; NR_BUCKETS],
            total: [const { AtomicU64::new(0) }; NR_BUCKETS],
            last_ns: [const { AtomicU64::new(0) }; 2],
            staged_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn note(&self, outcome: Outcome) {
        self.counts[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_times(&self, blocked: Duration, total: Duration) {
        self.blocked[bucket(blocked)].fetch_add(1, Ordering::Relaxed);
        self.total[bucket(total)].fetch_add(1, Ordering::Relaxed);
        for (last, time) in self.last_ns.iter().zip([blocked, total]) {
            last.store(time.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// Takes note of how much a worker keeps that has kept `before`.
    pub(super) fn note_staged(&self, before: usize, now: usize) {
        // The difference wraps, as the sum does.
        self.staged_bytes.fetch_add((now as u64).wrapping_sub(before as u64), Ordering::Relaxed);
    }

    /// Begins anew, in a forked child.
    pub(super) fn reset(&self) {
        let words = self.counts.iter().chain(&self.blocked).chain(&self.total).chain(&self.last_ns);
        words.chain([&self.staged_bytes]).for_each(|word| word.store(0, Ordering::Relaxed));
    }

    pub(super) fn last_times(&self) -> (Duration, Duration) {
        let [blocked, total] = &self.last_ns;
        let time = |ns: &AtomicU64| Duration::from_nanos(ns.load(Ordering::Relaxed));
        (time(blocked), time(total))
    }

    pub(super) fn snapshot(&self) -> MigrationStats {
        let load = |words: &[AtomicU64; NR_BUCKETS]| Histogram {
            buckets: std::array::from_fn(|at| words[at].load(Ordering::Relaxed)),
        };
        MigrationStats {
            counts: MigrationCounts::new(|outcome| self.counts[outcome as usize].load(Ordering::Relaxed)),
            blocked: load(&self.blocked),
            total: load(&self.total),
            staged_bytes: self.staged_bytes.load(Ordering::Relaxed),
        }
    }
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
        let figures = Figures::new();
        for us in [1, 3, 3, 100, 5000] {
            figures.note_times(Duration::from_micros(us), Duration::from_micros(2 * us));
        }
        let stats = figures.snapshot();
        assert_eq!((stats.blocked.count(), stats.total.count()), (5, 5));
        assert_eq!(stats.blocked.quantile_us(500), 4);
        assert_eq!(stats.blocked.quantile_us(1000), 8192);
        assert_eq!(stats.total.quantile_us(200), 2);
        assert_eq!(Histogram::default().quantile_us(500), 0);
    }

    #[test]
    fn outcomes_have_places_of_their_own() {
        let figures = Figures::new();
        Outcome::ALL
            .iter()
            .enumerate()
            .for_each(|(at, &outcome)| (0..=at).for_each(|_| figures.note(outcome)));
        let counts = figures.snapshot().counts;
        assert_eq!(counts.total(), 120);
        assert!(Outcome::ALL.iter().enumerate().all(|(at, &outcome)| counts.get(outcome) == at as u64 + 1));
        assert_eq!(counts.in_place(), 3);
    }
}
