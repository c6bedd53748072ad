//! Ways to use an allocator of runs of one order.

use crate::offsets::Offsets;
use crate::threads::{self, Budget, Timing, Turn};
use daxtier::offset::Lifetime;
use daxtier::units::Order;
use std::hint::black_box;
use std::sync::Mutex;

/// How runs are taken and given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Take one and give it back, over and over.
    Pair,
    /// Take 90 % of what there is.
    Get,
    /// Give that back in the order in which it was taken.
    Put,
    /// Give it back in random order.
    Random,
    /// With 99 % taken: give a random one back and take one.
    Full,
    /// Take on one thread, give back on another.
    Handover,
}

impl Pattern {
    /// All of them.
    pub const ALL: [Pattern; 6] =
        [Pattern::Pair, Pattern::Get, Pattern::Put, Pattern::Random, Pattern::Full, Pattern::Handover];

    /// Returns the name in results.
    pub fn name(self) -> &'static str {
        match self {
            Pattern::Pair => "pair",
            Pattern::Get => "get",
            Pattern::Put => "put",
            Pattern::Random => "random",
            Pattern::Full => "full",
            Pattern::Handover => "handover",
        }
    }
}

/// How many pairs one step does, so that counting steps costs nothing.
pub(crate) const PAIRS_A_STEP: u64 = 64;

/// Runs a pattern on an allocator that has `nr_runs` runs of the order for each thread, none of them taken.
///
/// # Panics
/// When the allocator fails while a run is free.
pub fn run(
    offsets: &impl Offsets,
    pattern: Pattern,
    order: Order,
    nr_runs: u64,
    threads: usize,
    budget: Budget,
) -> Timing {
    let handed_over: Vec<Mutex<Vec<u64>>> = (0..threads).map(|_| Mutex::default()).collect();
    threads::run(threads, budget, |turn| {
        let part = Part { offsets, order, turn };
        match pattern {
            Pattern::Pair => part.pair(),
            Pattern::Get => part.get(nr_runs * 9 / 10),
            Pattern::Put => part.put(part.take(nr_runs * 9 / 10)),
            Pattern::Random => part.put(shuffled(part.take(nr_runs * 9 / 10), turn.thread as u64)),
            Pattern::Full => part.full(shuffled(part.take(nr_runs * 99 / 100), turn.thread as u64)),
            Pattern::Handover => part.handover(&handed_over, (nr_runs / 4).clamp(1, 256)),
        }
    })
}

/// What one thread does.
struct Part<'a, O> {
    offsets: &'a O,
    order: Order,
    turn: &'a Turn<'a>,
}

impl<O: Offsets> Part<'_, O> {
    #[inline]
    fn get_one(&self) -> u64 {
        self.offsets.get(self.turn.thread, self.order, Lifetime::Short).expect("a run is free")
    }

    #[inline]
    fn put_one(&self, offset: u64) {
        self.offsets.put(self.turn.thread, self.order, offset);
    }

    fn take(&self, nr_runs: u64) -> Vec<u64> {
        (0..nr_runs).map(|_| self.get_one()).collect()
    }

    fn pair(&self) -> Timing {
        self.turn.time(PAIRS_A_STEP, || {
            (0..PAIRS_A_STEP).for_each(|_| self.put_one(black_box(self.get_one())));
            true
        })
    }

    fn get(&self, nr_runs: u64) -> Timing {
        // Touched before the clock runs.
        let mut held = vec![0; nr_runs as usize];
        let mut slots = held.iter_mut();
        let timing = self.turn.time(1, || slots.next().map(|slot| *slot = self.get_one()).is_some());
        black_box(held);
        timing
    }

    fn put(&self, held: Vec<u64>) -> Timing {
        let mut held = held.iter();
        self.turn.time(1, || held.next().map(|offset| self.put_one(*offset)).is_some())
    }

    fn full(&self, mut held: Vec<u64>) -> Timing {
        let nr_held = held.len();
        let mut at = 0;
        self.turn.time(1, || {
            self.put_one(held[at]);
            held[at] = self.get_one();
            at = if at + 1 == nr_held { 0 } else { at + 1 };
            true
        })
    }

    /// Each thread takes a batch, then gives back the batch that the next one took.
    fn handover(&self, batches: &[Mutex<Vec<u64>>], batch: u64) -> Timing {
        let lock = |thread: usize| batches[thread % batches.len()].lock().expect("no measurement fails");
        self.turn.time_in_step(
            batch,
            || lock(self.turn.thread).extend((0..batch).map(|_| self.get_one())),
            || lock(self.turn.thread + 1).drain(..).for_each(|offset| self.put_one(offset)),
        )
    }
}

/// Numbers that are the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed * 7919 + 1)
    }

    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        // Marsaglia's xorshift.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) as usize % end
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        (1..items.len()).rev().for_each(|last| items.swap(last, self.below(last + 1)));
    }
}

fn shuffled(mut runs: Vec<u64>, seed: u64) -> Vec<u64> {
    Random::new(seed).shuffle(&mut runs);
    runs
}
