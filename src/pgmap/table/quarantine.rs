//! Metadata that is not what its pgmap wrote, taken out of use.
//!
//! Every word names its owner; a word that names another, or makes no sense, was overwritten by a stray pointer.
//! The folio is quarantined: counted, and never handed out again. Its memory is not touched.

use super::{BLOCK_ORDER, BLOCK_PAGES, FolioTable, block_range};
use crate::pgmap::word::{Fault, Kind, Word};
use crate::sync::atomic::Ordering;
use crate::units::Order;
use std::ops::Range;

impl FolioTable {
    /// Returns what keeps the run from being requested, if it is more than being in use. Lock-free, a hint.
    pub(crate) fn obstacle(&self, offset: u64, order: Order) -> Option<Fault> {
        let is_permanent = |word: Word| {
            matches!(word.kind(), Kind::Quarantined | Kind::Forked).then(|| word.kind().as_obstacle())
        };
        let (index, _) = self.block_of(offset);
        (index..index + order.nr_pages().div_ceil(BLOCK_PAGES)).find_map(|index| {
            let whole = Word(self.block(index).word.load(Ordering::Acquire));
            if whole.kind() != Kind::Split {
                return is_permanent(whole);
            }
            let first = (index * BLOCK_PAGES).max(offset);
            let end = ((index + 1) * BLOCK_PAGES).min(offset + order.nr_pages());
            (first..end).find_map(|page| is_permanent(Word(self.word(page).load(Ordering::Relaxed))))
        })
    }

    /// Counts a folio whose memory is damaged, and whose last reference is never put.
    pub(crate) fn note_quarantined(&self, order: Order) {
        // Relaxed: a figure.
        self.quarantined_pages.fetch_add(order.nr_pages(), Ordering::Relaxed);
    }

    /// Takes whatever unsound metadata there is in the run out of use. Calls `on_lost` with the order of each folio
    /// that was live there; locks are held.
    ///
    /// An unsound word counts as a live folio only when a holder found it, by the holder's `generation`: to drop a
    /// reference that nobody had would free the pgmap under its users, to keep one only keeps it from draining.
    pub(crate) fn quarantine(
        &self,
        offset: u64,
        order: Order,
        generation: Option<u16>,
        on_lost: &mut dyn FnMut(Order),
    ) {
        let pages = offset..offset + order.nr_pages();
        let was_live = |word: Word| {
            word.kind() == Kind::Head && word.count() > 0 && Some(word.generation()) == generation
        };
        for index in block_range(&pages) {
            self.quarantine_block(index as u64, &pages, &was_live, on_lost);
        }
    }

    fn quarantine_block(
        &self,
        index: u64,
        pages: &Range<u64>,
        was_live: &dyn Fn(Word) -> bool,
        on_lost: &mut dyn FnMut(Order),
    ) {
        let block = self.block(index);
        let mut state = block.state.lock();
        let whole = Word(block.word.load(Ordering::Relaxed));
        let first = index * BLOCK_PAGES;
        let inside = first..(first + BLOCK_PAGES).min(self.nr_pages);
        if !whole.is_sound(self.owner) {
            block.word.store(Word::quarantined(Order::PAGE, self.owner).0, Ordering::Release);
            let fits = whole.order().filter(|o| o.get() >= BLOCK_ORDER && o.is_aligned(first));
            let lost = fits.filter(|_| was_live(whole));
            lost.into_iter().for_each(&mut *on_lost);
            self.quarantined_pages.fetch_add(lost.map_or(BLOCK_PAGES, Order::nr_pages), Ordering::Relaxed);
            if state.used_pages > 0 {
                // The block was split, so its folios are lost with it.
                for page in inside {
                    let word = Word(self.word(page).load(Ordering::Relaxed));
                    let is_sound_head = word.is_sound(self.owner) && word.kind() == Kind::Head;
                    word.order().filter(|_| is_sound_head).into_iter().for_each(&mut *on_lost);
                }
            }
            return;
        }
        if whole.kind() != Kind::Split {
            return;
        }
        for page in inside.start.max(pages.start)..inside.end.min(pages.end) {
            let word = Word(self.word(page).load(Ordering::Relaxed));
            if word.is_sound(self.owner) {
                continue;
            }
            self.word(page).store(Word::quarantined(Order::PAGE, self.owner).0, Ordering::Release);
            let fits = word.order().filter(|o| o.get() < BLOCK_ORDER && o.is_aligned(page));
            let lost = fits.filter(|_| was_live(word));
            lost.into_iter().for_each(&mut *on_lost);
            self.quarantined_pages.fetch_add(lost.map_or(1, Order::nr_pages), Ordering::Relaxed);
            if !matches!(word.kind(), Kind::Head | Kind::Tail) {
                // The page may have been idle: count it, so that the block never looks idle again.
                state.used_pages += 1;
            }
        }
    }

    /// Overwrites the owner in the word of the head at `offset`, as a stray write could.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn overwrite_owner(&self, offset: u64, owner: u16) {
        let head = self.head_word(offset).expect("a live head");
        let word = head.load(Ordering::Relaxed);
        head.store(word & !(0xffff << 36) | u64::from(owner) << 36, Ordering::Relaxed);
    }

    /// Overwrites the word of a page, as a stray write could.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn overwrite(&self, page: u64, word: u64) {
        self.word(page).store(word, Ordering::Relaxed);
    }

    /// Sets the count of the live head at `offset`.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn set_count(&self, offset: u64, count: u32) {
        let head = self.head_word(offset).expect("a live head");
        let word = Word(head.load(Ordering::Relaxed));
        head.store(word.0 - u64::from(word.count()) + u64::from(count), Ordering::Relaxed);
    }
}
