//! Sums that every processor adds to on lines of its own.
//!
//! [`PercpuSums`] is for statistics: adding costs a restartable sequence on the processor's own word, reading goes through
//! all processors. A sequence that fails is made up for in words that all processors share, by atomic additions; where
//! there are no sequences the processor's own word is changed by those. Sums wrap, and order nothing. Uses `rseq`; used
//! by `pgmap`.
//!
//! Progress: wait-free.
//!
//! # Invariants
//! I1: an own word is changed either by sections of its processor only, or by atomic additions only, in a whole process.
//! I2: a sum is that of all own words and the shared one.

use super::rseq;
use super::{LazySlice, Zeroed};
use crate::error::SysError;
use crate::sys::cpu;
use crossbeam::utils::CachePadded;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many sums there are.
pub(crate) const NR_SUMS: usize = 64;

/// What one processor has added.
#[derive(Debug)]
#[repr(C, align(512))]
struct Shard([AtomicU64; NR_SUMS]);

impl Default for Shard {
    fn default() -> Shard {
        Shard(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

// SAFETY: atomics are plain words, 0 by default.
unsafe impl Zeroed for Shard {}

/// Sums, one part for each processor.
#[derive(Debug)]
pub(crate) struct PercpuSums {
    shards: LazySlice<Shard>,
    nr_shards: usize,
    /// Whether sections change the own words (I1).
    has_sections: bool,
    /// What sections failed to add.
    shared: CachePadded<Shard>,
}

impl PercpuSums {
    /// Makes sums of 0.
    ///
    /// # Errors
    /// The refusal of address space.
    pub(crate) fn new() -> Result<PercpuSums, SysError> {
        PercpuSums::with_sections(has_sections())
    }

    fn with_sections(has_sections: bool) -> Result<PercpuSums, SysError> {
        let nr_shards = cpu::nr_shards();
        let shards = LazySlice::populated(nr_shards)?;
        Ok(PercpuSums { shards, nr_shards, has_sections, shared: CachePadded::default() })
    }

    /// Adds to a sum.
    #[inline]
    pub(crate) fn add(&self, sum: usize, delta: u64) {
        if !self.has_sections {
            // Relaxed, here and below: sums order nothing.
            self.own_word(sum).fetch_add(delta, Ordering::Relaxed);
        } else if !self.add_in_section(sum, delta) {
            self.shared.0[sum].fetch_add(delta, Ordering::Relaxed);
        }
    }

    #[cfg(not(loom))]
    #[inline]
    fn add_in_section(&self, sum: usize, delta: u64) -> bool {
        /// Nobody closes sums.
        static CLOSED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        const SHIFT: u32 = size_of::<Shard>().ilog2();
        let first = std::ptr::NonNull::from(self.word(0, sum));
        // SAFETY: the elements are `nr_shards` shards, populated at construction, which live as long as we do.
        unsafe { rseq::add_unless_closed::<SHIFT>(first, self.nr_shards as u32, &CLOSED, delta) }
    }

    /// Models do not look at sums.
    #[cfg(loom)]
    fn add_in_section(&self, _sum: usize, _delta: u64) -> bool {
        false
    }

    /// Returns what this processor itself has added, or another one if the thread is moved just now.
    #[inline]
    pub(crate) fn own(&self, sum: usize) -> u64 {
        self.own_word(sum).load(Ordering::Relaxed)
    }

    /// Replaces what this processor has added to a sum that nothing is added to otherwise: a note to itself, which a thread
    /// that is moved just now may leave with another processor.
    #[inline]
    pub(crate) fn note(&self, sum: usize, value: u64) {
        self.own_word(sum).store(value, Ordering::Relaxed);
    }

    /// Returns a sum. What is added meanwhile may be in it or not.
    pub(crate) fn sum(&self, sum: usize) -> u64 {
        (0..self.nr_shards)
            .map(|shard| self.word(shard, sum).load(Ordering::Relaxed))
            .fold(self.shared.0[sum].load(Ordering::Relaxed), u64::wrapping_add)
    }

    #[inline]
    fn own_word(&self, sum: usize) -> &AtomicU64 {
        self.word(rseq::current_cpu() & (self.nr_shards - 1), sum)
    }

    #[inline]
    fn word(&self, shard: usize, sum: usize) -> &AtomicU64 {
        // SAFETY: all shards are populated at construction; the number is below nr_shards.
        let shard = unsafe { self.shards.get(shard) };
        &shard.0[sum]
    }
}

#[cfg(not(loom))]
fn has_sections() -> bool {
    rseq::is_available()
}

#[cfg(loom)]
fn has_sections() -> bool {
    true
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn additions_of_threads_that_move_are_exact() {
        for has_sections in [false, rseq::is_available()] {
            let sums = PercpuSums::with_sections(has_sections).expect("address space");
            std::thread::scope(|scope| {
                for thread in 0..6u64 {
                    let sums = &sums;
                    scope.spawn(move || {
                        for _ in 0..100_000 {
                            sums.add(3, 5);
                            sums.add(63, thread.wrapping_neg());
                        }
                    });
                }
            });
            assert_eq!(sums.sum(3), 3_000_000);
            assert_eq!(sums.sum(63), 1_500_000u64.wrapping_neg());
            assert_eq!(sums.sum(4), 0);
        }
    }

    #[test]
    fn sections_are_the_common_case() {
        let sums = PercpuSums::new().expect("address space");
        (0..1000).for_each(|_| sums.add(0, 1));
        if rseq::is_available() {
            let shared = sums.shared.0[0].load(Ordering::Relaxed);
            assert!(shared < 100, "{shared} of 1000 were added to the shared word");
        }
        assert_eq!(sums.sum(0), 1000);
    }
}
