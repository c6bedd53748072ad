//! The folio table around fork.

use super::{FolioTable, block_range};
use crate::pgmap::word::Word;
use crate::sync::atomic::Ordering;
use std::ops::Range;

impl FolioTable {
    /// Makes the folios of `pages` that are in use at their own address the parent's, and returns how many.
    /// Called in a forked child, which has one thread.
    pub(crate) fn mark_forked_in_child(&self, pages: Range<u64>) -> u64 {
        let mut forked = 0;
        self.for_each_live(pages, &mut |seen| {
            let Ok(head) = self.head_word(seen.offset) else { return };
            // Relaxed: one thread.
            let word = Word(head.load(Ordering::Relaxed));
            if word.is_addressed() {
                head.store(word.forked().0, Ordering::Relaxed);
                forked += 1;
            }
        });
        forked
    }

    /// Forgets all folios of `pages`: they are the parent's. Called in a forked child, which has one thread.
    pub(crate) fn forget_in_child(&self, pages: Range<u64>) {
        // SAFETY: the child has one thread, and its references to these folios are void.
        unsafe { self.blocks.give_back(block_range(&pages)) };
        let pages = pages.start as usize..pages.end as usize;
        // SAFETY: as above.
        unsafe { self.words.give_back(pages.clone()) };
        // SAFETY: as above.
        unsafe { self.users.give_back(pages) };
    }

    /// Takes the locks of all blocks of `pages`, for fork.
    pub(crate) fn lock_for_fork(&self, pages: Range<u64>) {
        block_range(&pages).for_each(|index| self.block(index as u64).state.lock_raw());
    }

    /// Gives the locks of [`lock_for_fork`](FolioTable::lock_for_fork) back.
    pub(crate) fn unlock_after_fork(&self, pages: Range<u64>) {
        block_range(&pages).for_each(|index| self.block(index as u64).state.unlock_raw());
    }
}
