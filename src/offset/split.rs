//! Split blocks: runs below 2 MiB.
//!
//! One bit a page says whether it is taken. The order of the runs is told by a tag of four bits for each word of 64
//! pages, so that it costs 1/16 of the bitmap: a word holds runs of one small order, or is part of one larger run.
//! A word that must hold several orders (a request by offset, or nothing else is left) is *mixed*: a second bitmap, of
//! which only such words touch memory, marks where its runs begin. A word without a taken page has no order, whatever
//! its tag says.
//!
//! One bit and an eighth a page could not tell any mix of orders apart: a block of 2^k pages has A(k) = 1 + A(k-1)^2
//! states, A(0) = 2, which comes to 1.18 bits a page.

use super::Freed;
use super::extent::{Locked, Unit};
use super::geometry::{
    BLOCK_ORDER, BLOCK_PAGES, BLOCK_WORDS, Class, EXTENT_BLOCKS, EXTENT_WORDS, UNIT_ORDER, WORD_ORDER,
    WORD_PAGES, bits, compress, expand, free_runs, pages_of_runs, run_mask,
};
use crate::sync::Zeroed;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The bitmap of an extent: a set bit is a page that is taken, by a user or by a magazine. Bits are set under the
/// extent's lock only; they are cleared by whoever gives the run back. Magazines read bits of what they and their users
/// hold.
#[derive(Debug)]
pub(super) struct Words([AtomicU64; EXTENT_WORDS]);

impl Default for Words {
    fn default() -> Words {
        Words(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

// SAFETY: atomics are plain words, 0 by default.
unsafe impl Zeroed for Words {}

impl Words {
    #[inline]
    pub(super) fn word(&self, index: usize) -> u64 {
        // SeqCst: for who decides that nothing is free, and for who frees the last page of a block: see `free`. Acquire:
        // whoever sees a page free sees what was done with it before.
        self.0[index].load(Ordering::SeqCst)
    }

    /// Returns a bit of a word, of a page that the asker was handed after the bit was set.
    #[inline]
    pub(super) fn bit(&self, page: usize) -> bool {
        // Relaxed: the asker was handed the page.
        self.0[page / WORD_PAGES].load(Ordering::Relaxed) >> (page % WORD_PAGES) & 1 != 0
    }

    /// Marks pages taken. Under the lock.
    pub(super) fn take(&self, index: usize, mask: u64) {
        // AcqRel: the former users' accesses come before the next one's.
        self.0[index].fetch_or(mask, Ordering::AcqRel);
    }

    /// Marks pages free. Returns what the word was.
    pub(super) fn give(&self, index: usize, mask: u64) -> u64 {
        // SeqCst: see `free`.
        self.0[index].fetch_and(!mask, Ordering::SeqCst)
    }

    /// Marks the pages of `mask` free if the word is `old`.
    ///
    /// # Errors
    /// What the word is.
    #[inline]
    pub(super) fn give_of(&self, index: usize, old: u64, mask: u64) -> Result<u64, u64> {
        // SeqCst: see `free`.
        self.0[index].compare_exchange(old, old & !mask, Ordering::SeqCst, Ordering::Relaxed)
    }

    /// Sets a whole word, while nobody can hold a page of it.
    pub(super) fn set(&self, index: usize, word: u64) {
        // Relaxed: under the lock; whoever is handed a page learns of it through that.
        self.0[index].store(word, Ordering::Relaxed);
    }

    #[inline]
    fn of_block(&self, block: usize) -> &[AtomicU64] {
        &self.0[block * BLOCK_WORDS..(block + 1) * BLOCK_WORDS]
    }

    /// Returns whether no page of a block is taken.
    #[inline]
    pub(super) fn is_block_free(&self, block: usize) -> bool {
        // SeqCst: as in `word`.
        self.of_block(block).iter().fold(0, |any, word| any | word.load(Ordering::SeqCst)) == 0
    }

    /// Returns the words of a block in which some page is free, one bit each.
    #[inline]
    fn with_room(&self, block: usize) -> u64 {
        // SeqCst: as in `word`.
        let has_room = |word: &AtomicU64| u64::from(word.load(Ordering::SeqCst) != u64::MAX);
        self.of_block(block).iter().rev().fold(0, |all, word| all << 1 | has_room(word))
    }

    /// Returns whether every page of a block is taken.
    #[inline]
    fn is_block_full(&self, block: usize) -> bool {
        // SeqCst: as in `word`.
        self.of_block(block).iter().fold(u64::MAX, |all, word| all & word.load(Ordering::SeqCst)) == u64::MAX
    }
}

/// Tags 0 to 5 are runs of that order, 6 to 8 (a part of) one run of that order.
type Tag = u8;
/// Runs of several orders: see the heads.
pub(super) const MIXED: Tag = 9;
/// Runs of order `tag - OWNED`, of which one magazine holds some.
pub(super) const OWNED: Tag = 10;

/// The tags of an extent, one word a block. Written under the extent's lock. The tag of a word in which a run is
/// allocated is that run's order until it is given back, plain, owned or mixed; so who holds a run may look without the
/// lock.
#[derive(Debug)]
pub(super) struct Tags([AtomicU32; EXTENT_BLOCKS]);

impl Default for Tags {
    fn default() -> Tags {
        Tags(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

// SAFETY: atomics are plain words, 0 by default.
unsafe impl Zeroed for Tags {}

impl Tags {
    #[inline]
    pub(super) fn tag(&self, word: usize) -> Tag {
        // Relaxed: under the lock, or about a run that the asker was handed after it was written.
        (self.0[word / BLOCK_WORDS].load(Ordering::Relaxed) >> (word % BLOCK_WORDS * 4) & 15) as Tag
    }

    fn set(&self, word: usize, tag: Tag) {
        let (block, shift) = (&self.0[word / BLOCK_WORDS], word % BLOCK_WORDS * 4);
        // Relaxed: under the lock; whoever is handed a run learns of it through that.
        block.store(
            block.load(Ordering::Relaxed) & !(15 << shift) | u32::from(tag) << shift,
            Ordering::Relaxed,
        );
    }

    /// Forgets all tags.
    pub(super) fn clear(&self) {
        // Relaxed: as in `set`.
        self.0.iter().for_each(|block| block.store(0, Ordering::Relaxed));
    }
}

/// Where the runs of mixed words begin, one bit a page. Means something in mixed words only.
#[derive(Debug)]
pub(super) struct Heads([u64; EXTENT_WORDS]);

impl Default for Heads {
    fn default() -> Heads {
        Heads([0; EXTENT_WORDS])
    }
}

// SAFETY: plain words, 0 by default.
unsafe impl Zeroed for Heads {}

impl Locked<'_> {
    /// Returns the bits of a word whose pages the extent does not have.
    pub(super) fn base(&self, word: usize) -> u64 {
        let valid = (self.header().nr_pages as usize).saturating_sub(word * WORD_PAGES).min(WORD_PAGES);
        if valid == WORD_PAGES { 0 } else { u64::MAX << valid }
    }

    fn word(&self, word: usize) -> u64 {
        self.words().word(word)
    }

    /// Returns whether no page of the word is taken. Magazines may still own it.
    fn is_free(&self, word: usize) -> bool {
        self.word(word) == self.base(word)
    }

    pub(super) fn is_owned(&self, word: usize) -> bool {
        self.tags().tag(word) >= OWNED
    }

    fn words_of(block: usize) -> std::ops::Range<usize> {
        block * BLOCK_WORDS..(block + 1) * BLOCK_WORDS
    }

    /// Makes the lowest free block a split one. The extent is open.
    pub(super) fn split_block(&mut self, is_long: bool) -> Option<usize> {
        let block = (!self.header().taken).trailing_zeros() as usize;
        (block < 64).then(|| {
            self.mark_split(block, is_long);
            block
        })
    }

    pub(super) fn mark_split(&mut self, block: usize, is_long: bool) {
        debug_assert!(self.header().is_open && Self::words_of(block).all(|word| self.word(word) == 0));
        let bit = 1 << block;
        let header = self.header_mut();
        header.taken |= bit;
        header.split |= bit;
        header.long |= if is_long { bit } else { 0 };
        self.add_room(bit);
        for word in Self::words_of(block) {
            self.tags().set(word, 0);
        }
    }

    /// Brings `room` up to date, and makes the block free again when nothing of it is taken or owned.
    pub(super) fn settle(&mut self, block: usize) {
        self.settle_room(block);
        self.settle_whole(block);
    }

    fn settle_room(&mut self, block: usize) {
        let bit = 1 << block;
        match (!self.words().is_block_full(block), self.room() & bit != 0) {
            (true, false) => self.add_room(bit),
            (false, true) => {
                self.drop_room(bit);
                // A page may have been freed since, by who saw the bit before it was dropped.
                if !self.words().is_block_full(block) {
                    self.add_room(bit);
                }
            }
            _ => {}
        }
    }

    /// Whether the extent has all pages of a block: it may end in the middle of its last one.
    fn has_all_pages(&self, block: usize) -> bool {
        (block + 1) * BLOCK_PAGES <= self.header().nr_pages as usize
    }

    fn settle_whole(&mut self, block: usize) {
        let bit = 1 << block;
        if self.has_all_pages(block)
            && self.words().is_block_free(block)
            && !Self::words_of(block).any(|word| self.is_owned(word))
        {
            let header = self.header_mut();
            header.split &= !bit;
            header.long &= !bit;
            self.drop_room(bit);
            self.free_blocks(bit);
        }
    }

    /// Settles a block of which a page was freed without the lock.
    pub(super) fn settle_late(&mut self, block: usize) {
        // All may have become free, and something else, meanwhile.
        if self.is_present() && self.header().split >> block & 1 != 0 {
            self.settle(block);
        }
    }

    /// Takes a unit of `class` in one of `blocks` (a mask of split blocks) for a magazine.
    pub(super) fn take_small_unit(&mut self, class: Class, blocks: u64) -> Option<Unit> {
        bits(blocks & self.room()).find_map(|block| {
            // All words are looked at before any is tried: which of them it will be, no branch predictor knows.
            let with_room = self.words().with_room(block);
            let taken = bits(with_room).find_map(|word| {
                let word = block * BLOCK_WORDS + word;
                let Some(halves) = WORD_ORDER.checked_sub(class.unit_order()) else {
                    return self.take_unit(class, word >> (class.unit_order() - WORD_ORDER), true);
                };
                // The first half of the word may be full.
                let skipped = (self.word(word) | !run_mask(0, class.unit_order()) == u64::MAX) as usize
                    & halves as usize;
                ((word << halves) + skipped..(word + 1) << halves)
                    .find_map(|unit| self.take_unit(class, unit, true))
            });
            if taken.is_none() {
                // Room may have been told late.
                self.settle_room(block);
            }
            taken
        })
    }

    /// Takes what is free of a unit (counted from the extent's start), if all of its words hold this order or nothing. When
    /// that is one run the unit need not be owned. Nothing of a block that the extent ends in is for magazines: who gives back to
    /// one only looks whether the page is taken, as those past the end are.
    fn take_unit(&mut self, class: Class, unit: usize, may_be_alone: bool) -> Option<Unit> {
        let order = class.order();
        let first = unit << class.unit_order();
        if !self.has_all_pages(first / BLOCK_PAGES) {
            return None;
        }
        let (word, shift) = (first / WORD_PAGES, first % WORD_PAGES);
        let mut held = 0;
        if class.unit_order() <= WORD_ORDER {
            // The common case: a word, or a half of one.
            if self.can_hold(word, order) {
                let runs = free_runs(self.word(word), order) & run_mask(shift, class.unit_order());
                if runs != 0 {
                    self.words().take(word, pages_of_runs(runs, order));
                    held = compress(runs >> shift, order) as u32;
                }
            }
        } else {
            let nr_words = 1 << (class.unit_order() - WORD_ORDER);
            if (word..word + nr_words).all(|word| self.can_hold(word, order)) {
                for nth in 0..nr_words {
                    let runs = free_runs(self.word(word + nth), order);
                    if runs != 0 {
                        self.words().take(word + nth, pages_of_runs(runs, order));
                        held |= (compress(runs, order) as u32) << (nth << (WORD_ORDER - order));
                    }
                }
            }
        }
        if held == 0 {
            return None;
        }
        let is_owned = !(may_be_alone && held.is_power_of_two());
        let tag = if is_owned { OWNED + order } else { order };
        for word in word..=(first + (1 << class.unit_order()) - 1) / WORD_PAGES {
            self.tags().set(word, tag);
        }
        self.settle_room(first / BLOCK_PAGES);
        let number = self.index as u64 * (super::EXTENT_PAGES >> class.unit_order()) + unit as u64;
        Some(Unit { number, mask: held, is_owned })
    }

    /// Returns whether runs of an order may be taken in a word, and no others are there.
    #[inline]
    fn can_hold(&self, word: usize, order: u8) -> bool {
        let tag = self.tags().tag(word);
        tag == order || tag < OWNED && self.is_free(word)
    }

    /// Takes the unit of the freed run at `page`, of which nothing is held, so that further frees go to a magazine.
    /// Returns `None` if it is owned already, or holds other orders.
    pub(super) fn adopt_unit(&mut self, class: Class, page: usize) -> Option<Unit> {
        if self.header().split >> (page / BLOCK_PAGES) & 1 == 0 {
            return None;
        }
        self.take_unit(class, page >> class.unit_order(), false)
    }

    pub(super) fn give_small_unit(&mut self, class: Class, unit: u64, held: u32) {
        let per_extent = super::EXTENT_PAGES >> class.unit_order();
        let unit = (unit % per_extent) as usize;
        let first = unit << class.unit_order();
        let runs_a_word = WORD_PAGES >> class.order();
        for (nth, word) in
            (first / WORD_PAGES..((unit + 1) << class.unit_order()).div_ceil(WORD_PAGES)).enumerate()
        {
            debug_assert_eq!(self.tags().tag(word), OWNED + class.order());
            self.tags().set(word, class.order());
            // A unit may be a part of a word, or have several.
            let runs = u64::from(held) >> (nth * runs_a_word % 64) & run_mask(0, WORD_ORDER - class.order());
            if runs != 0 {
                let starts = expand(runs, class.order()) << (first % WORD_PAGES);
                // A bit that is clear was freed twice at the same instant; the run is free already (I5).
                self.words().give(word, pages_of_runs(starts, class.order()));
            }
        }
        if held != 0 {
            self.settle_room(first / BLOCK_PAGES);
        }
        self.settle_whole(first / BLOCK_PAGES);
    }

    /// Takes the first free run of `order` in one of `blocks` (a mask of split blocks). Words of other orders are only
    /// used when `may_mix`.
    pub(super) fn take_run(&mut self, order: u8, blocks: u64, may_mix: bool) -> Option<u64> {
        let page = bits(blocks & self.room()).find_map(|block| {
            Self::words_of(block).find_map(|word| {
                if order >= WORD_ORDER {
                    let len = 1 << (order - WORD_ORDER);
                    let fits = word.is_multiple_of(len)
                        && (word..word + len).all(|word| self.word(word) == 0 && !self.is_owned(word));
                    return fits.then_some(word * WORD_PAGES);
                }
                let tag = self.tags().tag(word);
                let allowed = tag < OWNED && (may_mix || tag == order || self.is_free(word));
                let runs = if allowed { free_runs(self.word(word), order) } else { 0 };
                (runs != 0).then(|| word * WORD_PAGES + runs.trailing_zeros() as usize)
            })
        })?;
        self.mark_run(page, order);
        Some(self.offset_of(page))
    }

    /// Marks the free run at `page`, in a split block and no owned word, allocated.
    pub(super) fn mark_run(&mut self, page: usize, order: u8) {
        let first = page / WORD_PAGES;
        if order >= WORD_ORDER {
            for word in first..first + (1 << (order - WORD_ORDER)) {
                self.tags().set(word, order);
                self.words().take(word, u64::MAX);
            }
        } else {
            let mask = run_mask(page % WORD_PAGES, order);
            debug_assert_eq!(self.word(first) & mask, 0);
            if self.is_free(first) {
                self.tags().set(first, order);
            } else if self.tags().tag(first) != order {
                self.mix(first);
                let head = 1 << (page % WORD_PAGES);
                let heads = &mut self.heads_mut().0[first];
                *heads = *heads & !mask | head;
            }
            self.words().take(first, mask);
        }
        self.settle_room(page / BLOCK_PAGES);
    }

    /// Makes a word mixed: writes down where its runs begin.
    fn mix(&mut self, word: usize) {
        let tag = self.tags().tag(word);
        if tag == MIXED {
            return;
        }
        debug_assert!(tag < WORD_ORDER);
        let taken = self.word(word) & !self.base(word);
        let starts = free_runs(0, tag);
        // Pages that do not exist stand alone, so that no run seems to go on over them.
        self.heads_mut().0[word] = taken & starts | self.base(word);
        self.tags().set(word, MIXED);
    }

    /// Returns whether every page of the aligned run at `page` is free in the bitmap. The block is split.
    pub(super) fn is_run_free(&self, page: usize, order: u8) -> bool {
        let first = page / WORD_PAGES;
        if order >= WORD_ORDER {
            return (first..first + (1 << (order - WORD_ORDER)))
                .all(|word| self.word(word) == 0 && !self.is_owned(word));
        }
        self.word(first) & run_mask(page % WORD_PAGES, order) == 0 && !self.is_owned(first)
    }

    /// Returns the order of the run that begins at `page` of a split block, taken by a user or held by a magazine.
    pub(super) fn run_order_at(&self, page: usize) -> Option<u8> {
        let (word, bit) = (page / WORD_PAGES, page % WORD_PAGES);
        if self.word(word) >> bit & 1 == 0 || page >= self.header().nr_pages as usize {
            return None;
        }
        let tag = self.tags().tag(word);
        match tag {
            MIXED => {
                let heads = self.heads().0[word];
                (heads >> bit & 1 != 0).then(|| {
                    let body = self.word(word) & !heads;
                    let rest = if bit == 63 { 0 } else { body >> (bit + 1) };
                    (rest.trailing_ones() + 1).ilog2() as u8
                })
            }
            _ => {
                let order = if tag >= OWNED { tag - OWNED } else { tag };
                page.is_multiple_of(1 << order).then_some(order)
            }
        }
    }

    /// Marks the allocated run at `page` free. Its order is right.
    pub(super) fn give_run(&mut self, page: usize, order: u8) {
        let first = page / WORD_PAGES;
        if order >= WORD_ORDER {
            (first..first + (1 << (order - WORD_ORDER)))
                .for_each(|word| _ = self.words().give(word, u64::MAX));
        } else {
            let mask = run_mask(page % WORD_PAGES, order);
            debug_assert_eq!(self.word(first) & mask, mask);
            self.words().give(first, mask);
        }
        self.settle(page / BLOCK_PAGES);
    }

    /// Says what a free of a run of `order` at `page` has left.
    pub(super) fn freed_at(&self, page: usize, order: u8) -> Freed {
        let is_word = order >= WORD_ORDER || self.is_free(page / WORD_PAGES);
        if is_word { Freed::Word } else { Freed::Run(order) }
    }

    /// Counts pages and checks tags and heads of a split block; returns an error's name.
    pub(super) fn check_split_block(&self, block: usize) -> Result<(), &'static str> {
        let mut word = block * BLOCK_WORDS;
        let end = word + BLOCK_WORDS;
        while word < end {
            let taken = self.word(word) & !self.base(word);
            let tag = self.tags().tag(word);
            match tag {
                _ if self.word(word) & self.base(word) != self.base(word) => {
                    return Err("pages past the end");
                }
                _ if taken == 0 => {}
                MIXED => {
                    let heads = bits(self.heads().0[word] & taken);
                    let mut in_runs = 0;
                    for bit in heads {
                        let order =
                            self.run_order_at(word * WORD_PAGES + bit).ok_or("a head without a run")?;
                        if bit % (1 << order) != 0 {
                            return Err("alignment of a run");
                        }
                        in_runs |= run_mask(bit, order);
                    }
                    if in_runs != taken {
                        return Err("pages in runs");
                    }
                }
                WORD_ORDER..MIXED => {
                    let len = 1 << (tag - WORD_ORDER);
                    let run = word..word + len;
                    if !word.is_multiple_of(len)
                        || !run
                            .clone()
                            .all(|word| self.word(word) == u64::MAX && self.tags().tag(word) == tag)
                    {
                        return Err("a run of several words");
                    }
                    word = run.end - 1;
                }
                _ => {
                    let order = if tag >= OWNED { tag - OWNED } else { tag };
                    let whole =
                        bits(taken & free_runs(0, order)).fold(0, |all, bit| all | run_mask(bit, order));
                    if whole != taken {
                        return Err("a run in a word of its order");
                    }
                }
            }
            word += 1;
        }
        Ok(())
    }
}

/// Units of the smaller classes lie inside a block, and inside a word or on whole words.
const _: () = assert!(4 + UNIT_ORDER <= BLOCK_ORDER);
