//! The two bitmaps of an extent: which pages are allocated, and which of them begin an allocation.
//!
//! Plain words under the extent's lock. A run of up to 32 pages lies in one word, because runs are naturally
//! aligned; larger ones are whole words. The functions here know no lock and no counter.

use super::EXTENT_PAGES;
use crate::sync::Zeroed;
use crate::units::Order;

const WORD_BITS: usize = 64;
const NR_WORDS: usize = EXTENT_PAGES as usize / WORD_BITS;

/// Bits at multiples of 2^k, for k of 0..=5.
const ALIGNED: [u64; 6] = [
    u64::MAX,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x1_0000_0001,
];

/// Which pages are allocated and which begin an allocation, one bit a page.
#[derive(Debug)]
pub(super) struct Bitmaps {
    allocated: [u64; NR_WORDS],
    head: [u64; NR_WORDS],
}

impl Default for Bitmaps {
    fn default() -> Bitmaps {
        Bitmaps { allocated: [0; NR_WORDS], head: [0; NR_WORDS] }
    }
}

// SAFETY: plain words, valid and default when zero.
unsafe impl Zeroed for Bitmaps {}

impl Bitmaps {
    /// Marks the first `nr_pages` free and the rest as never to be had.
    pub(super) fn reset(&mut self, nr_pages: usize) {
        self.head.fill(0);
        for (index, word) in self.allocated.iter_mut().enumerate() {
            let valid = nr_pages.saturating_sub(index * WORD_BITS).min(WORD_BITS);
            *word = if valid == WORD_BITS { 0 } else { u64::MAX << valid };
        }
    }

    /// Returns the first free aligned run of `order` at or after word `from`.
    pub(super) fn find(&self, order: Order, from: usize) -> Option<usize> {
        let order = usize::from(order.get());
        if order < 6 {
            return (from..NR_WORDS).find_map(|index| {
                let fits = free_runs(self.allocated[index], order);
                (fits != 0).then(|| index * WORD_BITS + fits.trailing_zeros() as usize)
            });
        }
        let run = 1 << (order - 6);
        let first = from.next_multiple_of(run);
        (first..NR_WORDS)
            .step_by(run)
            .find(|&index| self.allocated[index..index + run].iter().all(|&word| word == 0))
            .map(|index| index * WORD_BITS)
    }

    /// Returns whether the aligned run at `page` is wholly free.
    pub(super) fn is_free(&self, page: usize, order: Order) -> bool {
        self.words(page, order).all(|(index, mask)| self.allocated[index] & mask == 0)
    }

    /// Marks the free run at `page` allocated; `is_head` unless it goes on from another extent.
    pub(super) fn take(&mut self, page: usize, order: Order, is_head: bool) {
        for (index, mask) in self.words(page, order) {
            debug_assert_eq!(self.allocated[index] & mask, 0);
            self.allocated[index] |= mask;
        }
        if is_head {
            self.head[page / WORD_BITS] |= 1 << (page % WORD_BITS);
        }
    }

    /// Marks the allocated run at `page` free.
    pub(super) fn give(&mut self, page: usize, order: Order) {
        for (index, mask) in self.words(page, order) {
            debug_assert_eq!(self.allocated[index] & mask, mask);
            self.allocated[index] &= !mask;
        }
        self.head[page / WORD_BITS] &= !(1 << (page % WORD_BITS));
    }

    /// Returns whether every page of word `index` is allocated.
    pub(super) fn is_full(&self, index: usize) -> bool {
        self.allocated[index] == u64::MAX
    }

    /// Returns whether an allocation begins at `page`.
    pub(super) fn is_head(&self, page: usize) -> bool {
        self.head[page / WORD_BITS] >> (page % WORD_BITS) & 1 != 0
    }

    /// Returns the length of the run that begins at the head `page`: up to the next head, free page or
    /// `nr_pages`.
    pub(super) fn run_len(&self, page: usize, nr_pages: usize) -> usize {
        let mut next = page + 1;
        while next < nr_pages {
            let (index, bit) = (next / WORD_BITS, next % WORD_BITS);
            let stops = (!self.allocated[index] | self.head[index]) >> bit;
            if stops != 0 {
                next += stops.trailing_zeros() as usize;
                break;
            }
            next += WORD_BITS - bit;
        }
        next.min(nr_pages) - page
    }

    /// Returns how many pages are marked allocated.
    pub(super) fn count_allocated(&self) -> usize {
        self.allocated.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Returns how many pages are marked as heads without being marked allocated.
    pub(super) fn count_stray_heads(&self) -> usize {
        self.head.iter().zip(&self.allocated).map(|(head, all)| (head & !all).count_ones() as usize).sum()
    }

    /// Returns the heads in ascending order.
    pub(super) fn heads(&self) -> impl Iterator<Item = usize> + '_ {
        (0..NR_WORDS * WORD_BITS).filter(|&page| self.is_head(page))
    }

    /// Returns the words that the aligned run at `page` covers, each with the mask of its pages.
    fn words(&self, page: usize, order: Order) -> impl Iterator<Item = (usize, u64)> + use<> {
        let len = 1usize << order.get();
        let mask = if len >= WORD_BITS { u64::MAX } else { ((1u64 << len) - 1) << (page % WORD_BITS) };
        let first = page / WORD_BITS;
        (first..first + len.div_ceil(WORD_BITS)).map(move |index| (index, mask))
    }
}

/// Returns a bit for each aligned run of 2^order clear bits in `allocated`, at its first page.
fn free_runs(allocated: u64, order: usize) -> u64 {
    let mut free = !allocated;
    for step in 0..order {
        free &= free >> (1 << step);
    }
    free & ALIGNED[order]
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive_free_runs(allocated: u64, order: usize) -> u64 {
        let len = 1 << order;
        (0..WORD_BITS)
            .step_by(len)
            .filter(|&start| (start..start + len).all(|bit| allocated >> bit & 1 == 0))
            .fold(0, |runs, start| runs | 1 << start)
    }

    proptest! {
        #[test]
        fn runs_inside_a_word_agree_with_a_bit_by_bit_search(a: u64, b: u64, order in 0usize..6) {
            for word in [a, a & b, a | b] {
                prop_assert_eq!(free_runs(word, order), naive_free_runs(word, order));
            }
        }

        #[test]
        fn find_agrees_with_trying_every_run(
            taken in proptest::collection::vec((0usize..64, 0u8..10), 0..40),
            order in 0u8..=15,
        ) {
            let mut maps = Box::<Bitmaps>::default();
            maps.reset(20_000);
            for (place, taken_order) in taken {
                let taken_order = Order::new(taken_order).expect("small");
                let page = place << taken_order.get();
                if page + (1 << taken_order.get()) <= 20_000 && maps.is_free(page, taken_order) {
                    maps.take(page, taken_order, true);
                }
            }
            let order = Order::new(order).expect("small");
            let naive = (0..32_768usize).step_by(1 << order.get()).find(|&page| maps.is_free(page, order));
            prop_assert_eq!(maps.find(order, 0), naive);
        }
    }

    #[test]
    fn a_short_extent_ends_where_it_says() {
        let mut maps = Box::<Bitmaps>::default();
        maps.reset(100);
        assert_eq!(maps.count_allocated(), EXTENT_PAGES as usize - 100);
        assert!(maps.is_free(99, Order::PAGE));
        assert!(!maps.is_free(100, Order::PAGE));
        assert_eq!(maps.find(Order::new(6).expect("small"), 0), Some(0));
        assert_eq!(maps.find(Order::new(7).expect("small"), 0), None);
    }
}
