//! How many whole 2 MiB blocks an allocator keeps free while pages come and go.
//!
//! The measure is what requests of 2 MiB find in the end, as a share of what the free pages would make if all of them lay
//! together.

use crate::offsets::Offsets;
use crate::patterns::Random;
use daxtier::offset::Lifetime;
use daxtier::units::Order;

/// What goes on before the blocks are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// This share of all pages is in use. A sixteenth of them, at random, is given back and taken again, until four
    /// times the pages in use were replaced.
    Churn {
        /// Pages in use, of a hundred.
        used_percent: u64,
    },
    /// 90 % are taken, and random pages given back until 40 % are in use. Then each page is replaced, twice over, one at
    /// a time.
    Recovery,
    /// 80 % are in use, one page in ten for long; the other pages are replaced as in a churn, and every sixteenth time a
    /// few of those that live long are. In the end all that live short are given back.
    Mixed {
        /// Whether the allocator is told who lives long.
        is_hinted: bool,
    },
}

/// Goes through a scenario on an allocator whose `nr_pages` are all free; returns how many 2 MiB blocks are free in the
/// end, in per cent of the ideal.
///
/// # Panics
/// When the allocator fails while a page is free.
pub fn share_of_ideal(offsets: &impl Offsets, nr_pages: u64, scenario: Scenario) -> f64 {
    let mut run = Run { offsets, random: Random::new(1) };
    let used_pages = match scenario {
        Scenario::Churn { used_percent } => run.churn(nr_pages * used_percent / 100),
        Scenario::Recovery => run.recovery(nr_pages),
        Scenario::Mixed { is_hinted } => run.mixed(nr_pages * 8 / 10, is_hinted),
    };
    let ideal = (nr_pages - used_pages) / Order::HUGE.nr_pages();
    let found = std::iter::from_fn(|| offsets.get(0, Order::HUGE, Lifetime::Short)).count();
    found as f64 * 100.0 / ideal as f64
}

struct Run<'a, O> {
    offsets: &'a O,
    random: Random,
}

impl<O: Offsets> Run<'_, O> {
    fn get(&self, lifetime: Lifetime) -> u64 {
        self.offsets.get(0, Order::PAGE, lifetime).expect("a page is free")
    }

    fn put(&self, offset: u64) {
        self.offsets.put(0, Order::PAGE, offset);
    }

    fn take(&self, nr_pages: u64) -> Vec<u64> {
        (0..nr_pages).map(|_| self.get(Lifetime::Short)).collect()
    }

    /// Gives `count` of the pages back, at random, and then takes as many.
    fn replace(&mut self, held: &mut [u64], count: usize, lifetime: Lifetime) {
        // Chosen ones come to the front.
        for chosen in 0..count {
            let other = chosen + self.random.below(held.len() - chosen);
            held.swap(chosen, other);
            self.put(held[chosen]);
        }
        held[..count].iter_mut().for_each(|slot| *slot = self.get(lifetime));
    }

    fn churn(&mut self, nr_used: u64) -> u64 {
        let mut held = self.take(nr_used);
        (0..4 * 16).for_each(|_| self.replace(&mut held, nr_used as usize / 16, Lifetime::Short));
        nr_used
    }

    fn recovery(&mut self, nr_pages: u64) -> u64 {
        let mut held = self.take(nr_pages * 9 / 10);
        self.random.shuffle(&mut held);
        let nr_used = nr_pages * 4 / 10;
        held.drain(nr_used as usize..).for_each(|offset| self.put(offset));
        for _ in 0..2 {
            self.random.shuffle(&mut held);
            for slot in &mut held {
                self.put(*slot);
                *slot = self.get(Lifetime::Short);
            }
        }
        nr_used
    }

    fn mixed(&mut self, nr_used: u64, is_hinted: bool) -> u64 {
        let long = if is_hinted { Lifetime::Long } else { Lifetime::Short };
        let (mut short_lived, mut long_lived) = (Vec::new(), Vec::new());
        for _ in 0..nr_used {
            match self.random.below(10) {
                0 => long_lived.push(self.get(long)),
                _ => short_lived.push(self.get(Lifetime::Short)),
            }
        }
        let (nr_short, nr_long) = (short_lived.len(), long_lived.len());
        for _ in 0..4 {
            (0..16).for_each(|_| self.replace(&mut short_lived, nr_short / 16, Lifetime::Short));
            self.replace(&mut long_lived, nr_long / 16, long);
        }
        short_lived.iter().for_each(|offset| self.put(*offset));
        long_lived.len() as u64
    }
}
