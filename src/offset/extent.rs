//! One extent under its lock: which blocks are free, which are split, and runs of whole blocks.
//!
//! [`Header`] is 64 bytes with its lock. Everything in it, and the heads of `split`, is plain data under the lock. Atomics
//! are the words of the bitmap and the mask of blocks with room, which frees change without it (see `free`), and tags, at
//! which they look.

use super::geometry::{
    BLOCK_ORDER, BLOCK_PAGES, BLOCK_WORDS, Class, EXTENT_BLOCKS, EXTENT_PAGES, EXTENT_UNITS, UNIT_RUNS, bits,
    free_runs, run_mask,
};
use super::home::Owner;
use super::split::{Heads, Tags, Words};
use super::{OffsetAllocator, region};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, Zeroed};
use std::mem::ManuallyDrop;

/// The masks of an extent, one bit a block. All zero: the extent is absent.
#[derive(Debug, Default)]
pub(super) struct Header {
    /// Blocks that are no free block: allocated, held by a magazine, split, or past the end.
    pub(super) taken: u64,
    /// First blocks of runs of two blocks and more, and blocks past the end.
    pub(super) head: u64,
    /// Blocks that are handed out in smaller runs.
    pub(super) split: u64,
    /// Split blocks for what lives long.
    pub(super) long: u64,
    /// Pages in the extent, 0 when it is absent.
    pub(super) nr_pages: u32,
    /// Units of whole blocks of which a magazine holds some.
    pub(super) owned: u8,
    /// The region knows that blocks of this extent are in use, so no run spans it.
    pub(super) is_open: bool,
    /// The processor that takes here: see `home`.
    pub(super) owner: Owner,
    /// Another one has taken since the owner last did.
    pub(super) is_claimed: bool,
}

impl Default for Mutex<Header> {
    fn default() -> Mutex<Header> {
        Mutex::new(Header::default())
    }
}

// SAFETY: a free lock is 0, and so is an absent extent's header.
unsafe impl Zeroed for Mutex<Header> {}

/// A search finds a free block here.
pub(super) const BLOCK: u16 = 1;
/// The extent is not open: it is for searches only while its region says that it is idle.
pub(super) const SHUT: u16 = 2;
/// The extent is present, so that its words can be read; they can be ever after. And it has all pages of its blocks: in the bitmap
/// those past its end look like pages that are taken, so in such a block nothing is done without the lock.
pub(super) const HAS_WHOLE_BLOCKS: u16 = 4;

/// What was taken of a unit.
pub(super) struct Unit {
    pub(super) number: u64,
    /// The runs that were free, one or more.
    pub(super) mask: u32,
    /// The unit is for a magazine. It is not when there is one run only, which its user takes at once.
    pub(super) is_owned: bool,
}

/// Blocks that no extent has.
const NO_BLOCKS: u64 = if EXTENT_BLOCKS == 64 { 0 } else { u64::MAX << (EXTENT_BLOCKS % 64) };

/// An extent whose lock is held. Dropping it publishes what searches look at and gives the lock back.
pub(super) struct Locked<'a> {
    pub(super) index: usize,
    /// Taken out only by `drop`.
    guard: ManuallyDrop<MutexGuard<'a, Header>>,
    pub(super) offsets: &'a OffsetAllocator,
    /// The lock stays held when this is dropped.
    keep: bool,
}

impl<'a> Locked<'a> {
    pub(super) fn new(
        index: usize,
        guard: MutexGuard<'a, Header>,
        offsets: &'a OffsetAllocator,
        keep: bool,
    ) -> Locked<'a> {
        Locked { index, guard: ManuallyDrop::new(guard), offsets, keep }
    }

    pub(super) fn header(&self) -> &Header {
        &self.guard
    }

    pub(super) fn header_mut(&mut self) -> &mut Header {
        &mut self.guard
    }

    pub(super) fn is_present(&self) -> bool {
        self.header().nr_pages != 0
    }

    pub(super) fn is_full_length(&self) -> bool {
        u64::from(self.header().nr_pages) == EXTENT_PAGES
    }

    /// Returns the words of the bitmap. The extent is present.
    pub(super) fn words(&self) -> &'a Words {
        debug_assert!(self.is_present());
        // SAFETY: a present extent's words are populated.
        unsafe { self.offsets.words.get(self.index) }
    }

    pub(super) fn tags(&self) -> &'a Tags {
        self.offsets.tags(self.index)
    }

    /// Returns the heads of mixed words. The extent is present.
    pub(super) fn heads(&self) -> &Heads {
        debug_assert!(self.is_present());
        // SAFETY: a present extent's heads are populated; the lock keeps writers out (I1).
        unsafe { self.offsets.heads.get(self.index) }
    }

    pub(super) fn heads_mut(&mut self) -> &mut Heads {
        debug_assert!(self.is_present());
        // SAFETY: a present extent's heads are populated.
        let mut heads = unsafe { self.offsets.heads.element_ptr(self.index) };
        // SAFETY: only the holder of this extent's lock looks at them (I1), and the borrow of `self` is exclusive.
        unsafe { heads.as_mut() }
    }

    /// Which blocks are runs of their own, or held as such by a magazine. Magazines look at it without the lock.
    pub(super) fn wholes(&self) -> &'a AtomicU64 {
        self.offsets.wholes(self.index)
    }

    pub(super) fn whole_mask(&self) -> u64 {
        // Relaxed: written under the lock that is held.
        self.wholes().load(Ordering::Relaxed)
    }

    fn set_whole_mask(&self, mask: u64) {
        // Relaxed: whoever asks about a block holds it, and so was told of it after this.
        self.wholes().store(mask, Ordering::Relaxed);
    }

    /// Returns the split blocks of which some page is free in the bitmap.
    pub(super) fn room(&self) -> u64 {
        // Acquire: whoever finds room here sees what was freed.
        let room = self.offsets.room(self.index).load(Ordering::Acquire);
        let split = self.header().split;
        if room & !split != 0 {
            // Told late, of a block that has become whole meanwhile.
            self.drop_room(!split);
        }
        room & split
    }

    pub(super) fn add_room(&self, blocks: u64) {
        // AcqRel: see `free`.
        self.offsets.room(self.index).fetch_or(blocks, Ordering::AcqRel);
    }

    pub(super) fn drop_room(&self, blocks: u64) {
        // AcqRel: see `free`.
        self.offsets.room(self.index).fetch_and(!blocks, Ordering::AcqRel);
    }

    /// Makes the extent present with `nr_pages` free pages. Its words were populated and are zero.
    pub(super) fn start(&mut self, nr_pages: u64) {
        debug_assert!(nr_pages > 0 && nr_pages <= EXTENT_PAGES);
        let (blocks, rest) = (nr_pages as usize / BLOCK_PAGES, nr_pages as usize % BLOCK_PAGES);
        let past = if blocks == 64 { 0 } else { u64::MAX << blocks };
        let partial = if rest == 0 { 0 } else { 1u64 << blocks };
        *self.header_mut() = Header {
            taken: past | NO_BLOCKS,
            head: (past | NO_BLOCKS) & !partial,
            split: partial,
            nr_pages: nr_pages as u32,
            is_open: nr_pages < EXTENT_PAGES,
            ..Header::default()
        };
        self.set_whole_mask(0);
        self.add_room(partial);
        if rest != 0 {
            for word in blocks * BLOCK_WORDS..(blocks + 1) * BLOCK_WORDS {
                self.words().set(word, self.base(word));
            }
        }
        if self.is_full_length() {
            self.offsets.set_idle(self.index);
        }
    }

    /// Makes the idle extent absent. Its idle bit was taken.
    pub(super) fn end(&mut self) {
        for word in self.header().nr_pages as usize / 64..super::geometry::EXTENT_WORDS {
            if self.base(word) != 0 {
                self.words().set(word, 0);
            }
        }
        *self.header_mut() = Header::default();
        self.set_whole_mask(0);
        self.tags().clear();
    }

    /// Makes sure that no run spans the extent while blocks of it are in use.
    pub(super) fn open(&mut self) -> bool {
        if !self.header().is_open {
            let region = self.offsets.region_of(self.index);
            let opened = region.update(|word| region::open(word, self.index % 8));
            self.header_mut().is_open = opened;
        }
        self.header().is_open
    }

    /// Tells the region when the extent has become idle.
    fn shut_if_idle(&mut self) {
        if self.is_full_length() && self.header().is_open && self.header().taken == NO_BLOCKS {
            self.header_mut().is_open = false;
            self.header_mut().owner = Owner::NOBODY;
            self.offsets.set_idle(self.index);
        }
    }

    /// Takes the lowest free aligned run of 2^order pages, for orders of blocks, from an open extent.
    pub(super) fn take_blocks(&mut self, order: u8) -> Option<u64> {
        let runs = free_runs(self.header().taken, order - BLOCK_ORDER);
        (runs != 0).then(|| {
            let block = runs.trailing_zeros() as usize;
            self.mark_blocks(block, order);
            self.offset_of(block * BLOCK_PAGES)
        })
    }

    pub(super) fn mark_blocks(&mut self, block: usize, order: u8) {
        debug_assert!(self.header().is_open);
        self.header_mut().taken |= run_mask(block, order - BLOCK_ORDER);
        if order == BLOCK_ORDER {
            self.set_whole_mask(self.whole_mask() | 1 << block);
        } else {
            self.header_mut().head |= 1 << block;
        }
    }

    /// Gives the run of 2^order pages at `block` back.
    pub(super) fn give_blocks(&mut self, block: usize, order: u8) {
        let run = run_mask(block, order - BLOCK_ORDER);
        debug_assert_eq!(self.header().taken & run, run);
        if order == BLOCK_ORDER {
            self.set_whole_mask(self.whole_mask() & !run);
        } else {
            self.header_mut().head &= !(1 << block);
        }
        self.free_blocks(run);
    }

    /// Makes blocks free.
    pub(super) fn free_blocks(&mut self, run: u64) {
        self.header_mut().taken &= !run;
        self.shut_if_idle();
    }

    /// Returns the order of the run of whole blocks that begins at `block`, allocated or held by a magazine.
    pub(super) fn block_order_at(&self, block: usize) -> Option<u8> {
        let header = self.header();
        if self.whole_mask() >> block & 1 != 0 {
            return Some(BLOCK_ORDER);
        }
        if header.head >> block & 1 == 0 || block * BLOCK_PAGES >= header.nr_pages as usize {
            return None;
        }
        // The run goes on over blocks that are taken and nothing else.
        let body = header.taken & !header.head & !header.split & !self.whole_mask();
        let rest = if block == 63 { 0 } else { body >> (block + 1) };
        Some(BLOCK_ORDER + (rest.trailing_ones() + 1).ilog2() as u8)
    }

    /// Takes the free blocks of a unit for a magazine: at most `MAX_HELD_BLOCKS`, of the first unit with any that no
    /// magazine has. The extent is open.
    pub(super) fn take_block_unit(&mut self) -> Option<Unit> {
        let unit = (0..EXTENT_UNITS)
            .find(|&unit| self.header().owned >> unit & 1 == 0 && self.free_of_unit(unit) != 0)?;
        // A few, the lowest: what a magazine holds is not there for smaller runs.
        let held =
            bits(self.free_of_unit(unit)).take(MAX_HELD_BLOCKS).fold(0, |mask, bit| mask | 1u64 << bit);
        let blocks = held << (unit * UNIT_RUNS);
        self.header_mut().taken |= blocks;
        self.set_whole_mask(self.whole_mask() | blocks);
        let is_owned = !held.is_power_of_two();
        if is_owned {
            self.header_mut().owned |= 1 << unit;
        }
        Some(Unit { number: (self.index * EXTENT_UNITS + unit) as u64, mask: held as u32, is_owned })
    }

    fn free_of_unit(&self, unit: usize) -> u64 {
        !self.header().taken >> (unit * UNIT_RUNS) & ((1u64 << UNIT_RUNS) - 1)
    }

    /// Takes back what a magazine held of a unit.
    pub(super) fn give_unit(&mut self, class: Class, unit: u64, held: u32) {
        debug_assert_eq!(class.extent_of(unit), self.index);
        if class != Class::BLOCK {
            return self.give_small_unit(class, unit, held);
        }
        let unit = unit as usize % EXTENT_UNITS;
        // A bit that is clear in `wholes` was freed twice at the same instant; the block is free already (I5).
        let blocks = u64::from(held) << (unit * UNIT_RUNS) & self.whole_mask();
        self.header_mut().owned &= !(1 << unit);
        self.set_whole_mask(self.whole_mask() & !blocks);
        self.free_blocks(blocks);
    }

    /// Returns the offset of a page of this extent.
    pub(super) fn offset_of(&self, page: usize) -> u64 {
        self.index as u64 * EXTENT_PAGES + page as u64
    }

    /// Counts the pages that are free in the bitmaps: not those in magazines.
    pub(super) fn count_free(&self) -> u64 {
        if !self.is_present() || self.is_spanned() {
            return 0;
        }
        let blocks = (!self.header().taken).count_ones() as u64 * BLOCK_PAGES as u64;
        let pages: u64 = bits(self.room())
            .flat_map(|block| block * BLOCK_WORDS..(block + 1) * BLOCK_WORDS)
            .map(|word| u64::from(self.words().word(word).count_zeros()))
            .sum();
        blocks + pages
    }

    /// Returns whether a run that spans extents covers this one.
    pub(super) fn is_spanned(&self) -> bool {
        !self.header().is_open
            && region::is_spanned(self.offsets.region_of(self.index).load(), self.index % 8)
    }

    /// Tells searches what they find here. Only what changed is written: searches everywhere read it.
    pub(super) fn publish(&self) {
        let header = self.header();
        let mut flags = header.owner.to_flags();
        if header.nr_pages != 0 {
            flags |=
                if (header.nr_pages as usize).is_multiple_of(BLOCK_PAGES) { HAS_WHOLE_BLOCKS } else { 0 };
            flags |= if header.taken != u64::MAX { BLOCK } else { 0 };
            flags |= if header.is_open { 0 } else { SHUT };
        }
        let published = self.offsets.flags(self.index);
        // Relaxed: written under the lock that is held.
        if published.load(Ordering::Relaxed) != flags {
            // Release: pairs with the Acquire of searches: whoever passes this extent over because of what was taken
            // here also sees what was freed elsewhere before.
            published.store(flags, Ordering::Release);
        }
    }
}

/// Blocks that a magazine takes at once.
const MAX_HELD_BLOCKS: usize = 8;

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.publish();
        // SAFETY: nothing looks at the guard after this, the only place that takes it out.
        let guard = unsafe { ManuallyDrop::take(&mut self.guard) };
        if self.keep {
            guard.keep_locked();
        }
    }
}
