//! How pages nest: words of 64, blocks of 2 MiB, extents of 128 MiB, regions of 1 GiB; and the units of magazines.
//!
//! Numbers only. Models use tiny blocks and extents, so that a few pages reach every level.

use crate::units::Order;

/// Base-2 logarithm of the pages in a word of the bitmap.
pub(super) const WORD_ORDER: u8 = 6;
/// Pages in a word.
pub(super) const WORD_PAGES: usize = 1 << WORD_ORDER;
/// Base-2 logarithm of the pages in a block: 2 MiB.
pub(super) const BLOCK_ORDER: u8 = if cfg!(loom) { 7 } else { 9 };
/// Pages in a block.
pub(super) const BLOCK_PAGES: usize = 1 << BLOCK_ORDER;
/// Words in a block.
pub(super) const BLOCK_WORDS: usize = BLOCK_PAGES / WORD_PAGES;
/// Base-2 logarithm of the pages in an extent.
pub const EXTENT_ORDER: u8 = if cfg!(loom) { 9 } else { 15 };
/// Pages in an extent: 32768, 128 MiB.
pub const EXTENT_PAGES: u64 = 1 << EXTENT_ORDER;
/// Blocks in an extent.
pub(super) const EXTENT_BLOCKS: usize = 1 << (EXTENT_ORDER - BLOCK_ORDER);
/// Words in an extent.
pub(super) const EXTENT_WORDS: usize = 1 << (EXTENT_ORDER - WORD_ORDER);
/// Base-2 logarithm of the extents in a region: 1 GiB.
pub(super) const REGION_EXTENTS_ORDER: u8 = 3;
/// Base-2 logarithm of the runs in a unit, which is what a magazine holds at a time.
pub(super) const UNIT_ORDER: u8 = if cfg!(loom) { 1 } else { 5 };
/// Runs in a unit.
pub(super) const UNIT_RUNS: usize = 1 << UNIT_ORDER;
/// Units of whole blocks in an extent.
pub(super) const EXTENT_UNITS: usize = EXTENT_BLOCKS / UNIT_RUNS;

/// Bits at multiples of 2^k, for k of 0..=6.
const ALIGNED: [u64; 7] = [
    u64::MAX,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x1_0000_0001,
    1,
];

/// A size that magazines hold: orders 0 to 4, and whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(u8);

impl Class {
    /// Whole blocks.
    pub(super) const BLOCK: Class = Class(5);
    /// How many there are.
    pub(super) const COUNT: usize = 6;

    /// Returns the class of an order, if magazines hold it.
    #[inline]
    pub(super) fn of(order: Order) -> Option<Class> {
        match order.get() {
            order @ 0..=4 => Some(Class(order)),
            BLOCK_ORDER => Some(Class::BLOCK),
            _ => None,
        }
    }

    pub(super) fn all() -> impl Iterator<Item = Class> {
        (0..Class::COUNT as u8).map(Class)
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Returns the order as a number.
    #[inline]
    pub(super) fn order(self) -> u8 {
        if self == Class::BLOCK { BLOCK_ORDER } else { self.0 }
    }

    /// Returns the base-2 logarithm of the pages in a unit.
    #[inline]
    pub(super) fn unit_order(self) -> u8 {
        self.order() + UNIT_ORDER
    }

    /// Returns the extent in which a unit lies.
    pub(super) fn extent_of(self, unit: u64) -> usize {
        (unit >> (EXTENT_ORDER - self.unit_order())) as usize
    }
}

/// Splits an offset in its extent and the page inside it.
#[inline]
pub(super) fn locate(offset: u64) -> (usize, usize) {
    ((offset >> EXTENT_ORDER) as usize, (offset & (EXTENT_PAGES - 1)) as usize)
}

/// Returns a bit for each aligned run of 2^order clear bits in `taken`, at its first bit. `order` is 0..=6.
#[inline]
pub(super) fn free_runs(taken: u64, order: u8) -> u64 {
    let mut free = !taken;
    for step in 0..order {
        free &= free >> (1 << step);
    }
    free & ALIGNED[usize::from(order)]
}

/// Returns the mask of 2^order bits from `bit` on. `order` is 0..=6.
#[inline]
pub(super) fn run_mask(bit: usize, order: u8) -> u64 {
    if order == WORD_ORDER { u64::MAX } else { ((1u64 << (1 << order)) - 1) << bit }
}

/// Returns the mask of all pages of the runs of 2^order that begin at `starts`. `order` is 0..=5.
#[inline]
pub(super) fn pages_of_runs(starts: u64, order: u8) -> u64 {
    // What is carried out at the top is the end of a run that ends there.
    (starts << (1 << order)).wrapping_sub(starts)
}

/// Moves bit n to bit n * 2^order: from the number of a run to its first page. `order` is 0..=4.
#[inline]
pub(super) fn expand(runs: u64, order: u8) -> u64 {
    bits_or_all(runs, order, |run| run << order)
}

/// The inverse of [`expand`].
#[inline]
pub(super) fn compress(starts: u64, order: u8) -> u64 {
    bits_or_all(starts, order, |start| start >> order)
}

#[inline]
fn bits_or_all(word: u64, order: u8, place: impl Fn(usize) -> usize) -> u64 {
    if order == 0 { word } else { bits(word).fold(0, |all, bit| all | 1 << place(bit)) }
}

/// Returns the bits of `word`, lowest first.
pub(super) fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        let found = word != 0;
        word &= word.wrapping_sub(1);
        found.then_some(bit)
    })
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive_free_runs(taken: u64, order: u8) -> u64 {
        let len = 1 << order;
        (0..WORD_PAGES)
            .step_by(len)
            .filter(|&start| (start..start + len).all(|bit| taken >> bit & 1 == 0))
            .fold(0, |runs, start| runs | 1 << start)
    }

    proptest! {
        #[test]
        fn runs_inside_a_word_agree_with_a_bit_by_bit_search(a: u64, b: u64, order in 0u8..=6) {
            for word in [a, a & b, a | b, 0] {
                prop_assert_eq!(free_runs(word, order), naive_free_runs(word, order));
            }
        }

        #[test]
        fn runs_are_the_pages_that_they_have(runs: u64, order in 0u8..=4) {
            let runs = runs & run_mask(0, 6 - order);
            let starts = expand(runs, order);
            prop_assert_eq!(compress(starts, order), runs);
            let pages = bits(starts).fold(0, |pages, bit| pages | run_mask(bit, order));
            prop_assert_eq!(pages_of_runs(starts, order), pages);
            prop_assert_eq!(starts.count_ones(), runs.count_ones());
        }
    }

    #[test]
    fn units_of_every_class_lie_in_one_extent() {
        for class in Class::all() {
            assert!(class.unit_order() <= EXTENT_ORDER);
            assert!(class == Class::BLOCK || class.unit_order() <= BLOCK_ORDER);
            assert_eq!(class.extent_of((3 * EXTENT_PAGES) >> class.unit_order()), 3);
        }
    }
}
