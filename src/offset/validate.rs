//! The full scan that every counter and mask must agree with.

use super::extent::Locked;
use super::geometry::{
    BLOCK_ORDER, BLOCK_PAGES, BLOCK_WORDS, Class, EXTENT_BLOCKS, EXTENT_UNITS, WORD_PAGES, bits, run_mask,
};
use super::split::OWNED;
use super::{Inconsistency, OffsetAllocator, region};
use std::time::Duration;

/// How long a free is waited for. Models have none under way.
const PATIENCE_MS: u32 = if cfg!(loom) { 0 } else { 500 };

type Outcome = Result<(), Inconsistency>;

impl OffsetAllocator {
    /// Compares every mask with a full scan, under all locks and with the magazines closed. A free that is under way
    /// has not told all of them yet; it is waited for.
    ///
    /// # Errors
    /// The first [`Inconsistency`]; there is never one unless the allocator is broken.
    pub fn validate(&self) -> Result<(), Inconsistency> {
        let mut outcome = self.validate_once();
        for _ in 0..PATIENCE_MS {
            if outcome.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
            outcome = self.validate_once();
        }
        outcome
    }

    fn validate_once(&self) -> Outcome {
        self.with_closed(|| {
            let extents = self.extents();
            extents.clone().for_each(|index| self.header(index).lock_raw());
            let outcome = extents
                .clone()
                .try_for_each(|index| self.validate_extent(&self.adopt(index)))
                .and_then(|()| self.validate_magazines());
            extents.for_each(|index| self.header(index).unlock_raw());
            outcome
        })
    }

    fn validate_extent(&self, extent: &Locked<'_>) -> Outcome {
        let index = extent.index;
        let header = extent.header();
        let whole = extent.whole_mask();
        if !extent.is_present() {
            return agree(index, "blocks of an absent extent", header.taken | whole, 0);
        }
        agree(index, "split blocks that are not taken", header.split & !header.taken, 0)?;
        agree(index, "whole blocks that are not taken", whole & !header.taken, 0)?;
        agree(index, "heads that are not taken", header.head & !header.taken, 0)?;
        let twice = header.head & header.split | header.head & whole | header.split & whole;
        agree(index, "blocks of two kinds", twice, 0)?;
        agree(index, "long blocks that are not split", header.long & !header.split, 0)?;
        if extent.is_full_length() {
            let idle = self.region_of(index).load() >> (index % 8) & 1;
            let is_spanned = region::is_spanned(self.region_of(index).load(), index % 8);
            agree(
                index,
                "idle or spanned, and open",
                idle | u64::from(is_spanned),
                u64::from(!header.is_open),
            )?;
            let used = u64::from(header.taken.count_ones() as usize > 64 - EXTENT_BLOCKS);
            agree(index, "open", u64::from(header.is_open), used)?;
        }
        let mut in_runs = 0;
        for block in bits((header.head | whole) & !past(extent)) {
            let order = extent.block_order_at(block).unwrap_or(0);
            agree(index, "alignment of a run of blocks", 0, block as u64 % (1 << (order - BLOCK_ORDER)))?;
            in_runs |= run_mask(block, order - BLOCK_ORDER);
        }
        agree(index, "blocks in runs", in_runs, header.taken & !header.split & !past(extent))?;
        for block in 0..EXTENT_BLOCKS {
            self.validate_block(extent, block)?;
        }
        Ok(())
    }

    fn validate_block(&self, extent: &Locked<'_>, block: usize) -> Outcome {
        let index = extent.index;
        let words = block * BLOCK_WORDS..(block + 1) * BLOCK_WORDS;
        let taken = |word: usize| extent.words().word(word);
        if extent.header().split >> block & 1 == 0 {
            let stray: u32 = words.map(|word| taken(word).count_ones()).sum();
            return agree(index, "pages of a block that is not split", 0, u64::from(stray));
        }
        let room = words.clone().any(|word| taken(word) != u64::MAX);
        // It may be told late, after the page was taken again: then a search looks in vain.
        let is_told = extent.room() >> block & 1 != 0;
        agree(index, "room of a block", u64::from(is_told), u64::from(room || is_told))?;
        let is_used = words.clone().any(|word| taken(word) != 0 || extent.is_owned(word));
        agree(index, "use of a split block", 1, u64::from(is_used))?;
        extent.check_split_block(block).map_err(|what| Inconsistency {
            extent: index,
            what,
            recorded: block as u64,
            counted: 0,
        })
    }

    /// Checks that slots and the marks of what is owned agree (I3).
    fn validate_magazines(&self) -> Outcome {
        let mut owned_by_slots = 0u64;
        for (_, class, _, unit, mask) in self.magazines.slots() {
            let index = class.extent_of(unit);
            let extent = self.adopt(index);
            let others =
                self.magazines.slots().filter(|&(_, c, _, u, _)| c == class && u == unit).count() as u64;
            agree(index, "slots of a unit", others, 1)?;
            if class == Class::BLOCK {
                let is_owned = extent.header().owned >> (unit as usize % EXTENT_UNITS) & 1;
                agree(index, "owned unit of blocks", u64::from(is_owned), 1)?;
                owned_by_slots += 1;
            } else {
                let first = ((unit << class.unit_order()) % super::EXTENT_PAGES) as usize;
                let words = first / WORD_PAGES..(first + (1 << class.unit_order())).div_ceil(WORD_PAGES);
                for word in words {
                    let tag = u64::from(extent.tags().tag(word));
                    agree(index, "tag of an owned word", tag, u64::from(OWNED + class.order()))?;
                    owned_by_slots += 1;
                }
            }
            for run in bits(u64::from(mask)) {
                let offset = ((unit << super::geometry::UNIT_ORDER) + run as u64) << class.order();
                agree(index, "held runs in the bitmap", u64::from(self.is_taken(class, offset)), 1)?;
            }
        }
        let owned: u64 = self
            .extents()
            .map(|index| {
                let extent = self.adopt(index);
                let words = bits(extent.header().split)
                    .flat_map(|block| block * BLOCK_WORDS..(block + 1) * BLOCK_WORDS)
                    .filter(|&word| extent.is_owned(word));
                words.count() as u64 + u64::from(extent.header().owned.count_ones())
            })
            .sum();
        agree(self.extents().end, "owned words and units of all extents", owned_by_slots, owned)
    }
}

/// Returns the blocks past the extent's end.
fn past(extent: &Locked<'_>) -> u64 {
    let blocks = (extent.header().nr_pages as usize).div_ceil(BLOCK_PAGES);
    if blocks == 64 { 0 } else { u64::MAX << blocks }
}

fn agree(extent: usize, what: &'static str, recorded: u64, counted: u64) -> Outcome {
    if recorded == counted { Ok(()) } else { Err(Inconsistency { extent, what, recorded, counted }) }
}
