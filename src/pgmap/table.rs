//! The folio table: who uses which pages of a pgmap.
//!
//! A [`FolioTable`] has a [`Block`] of one cache line per 2 MiB, and a word per page that exists only while its
//! block is *split*, that is, while folios below 2 MiB live in it. One block's page words fill exactly one page
//! of a reserved array: they appear on first touch and are given back when the block is wholly idle again, all but those of
//! the last few such blocks.
//! `word` has the transitions; the pgmap brings references, offsets and callbacks. Uses `sync`.
//!
//! Progress: get and every put but the last are lock-free on the head's word. Request, the last put and
//! try_get take the lock of each block of the run, in ascending order, for a time that grows with the run.
//!
//! # Invariants
//! I1: a word leaves or enters idle only under the lock of its block; a folio of several blocks is made and
//! unmade under all their locks.
//! I2: page words are looked at only while the block's word is split; in a split block `used_pages` counts pages
//! that are not idle, and it is above 0.
//! I3: every page word of a block that is not split is 0, and so is its user word.
//! I4: a head's count is the number of references; whoever moves it from 1 to idle returns the folio.
//! I5: generations of requests in a block count up, also while its page words are gone.

mod fork;
mod quarantine;

use super::word::{Fault, GENERATIONS, Kind, Word};
use crate::error::SysError;
use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use crate::sync::{LazySlice, Mutex, MutexGuard, Zeroed};
use crate::units::Order;
use std::ops::Range;

/// Base-2 logarithm of the pages in a block. Models use tiny blocks.
pub(crate) const BLOCK_ORDER: u8 = if cfg!(loom) { 1 } else { 9 };
/// Pages in a block: 512, 2 MiB.
pub(crate) const BLOCK_PAGES: u64 = 1 << BLOCK_ORDER;

/// The descriptor of 2 MiB.
#[repr(align(64))]
pub(super) struct Block {
    /// Idle, split, or the head or tail of a folio of at least a block. Published by the Release of whoever made
    /// it, under the lock.
    pub(super) word: AtomicU64,
    /// The user word of a folio that begins with this block. Written by reference holders.
    user: AtomicU64,
    /// 1 when a user word of a page may be other than 0. Written by reference holders; cleared under the lock.
    has_users: AtomicU8,
    state: Mutex<BlockState>,
}

/// What only the block's lock holder looks at.
#[derive(Debug, Default)]
pub(super) struct BlockState {
    /// Pages of a split block that are not idle.
    used_pages: u16,
    /// The generation of the last request that began in this block.
    generation: u16,
}

impl Default for Block {
    fn default() -> Block {
        Block {
            word: AtomicU64::new(0),
            user: AtomicU64::new(0),
            has_users: AtomicU8::new(0),
            state: Mutex::new(BlockState::default()),
        }
    }
}

// SAFETY: zero is an idle word, no user word, and a free lock around a default state.
unsafe impl Zeroed for Block {}

const _: () = assert!(cfg!(loom) || size_of::<Block>() == 64);

/// The folio metadata of one pgmap.
pub(crate) struct FolioTable {
    owner: u16,
    nr_pages: u64,
    blocks: LazySlice<Block>,
    words: LazySlice<AtomicU64>,
    users: LazySlice<AtomicU64>,
    /// Blocks that are split. A statistic.
    split_blocks: AtomicU64,
    /// Blocks whose pages have user words. A statistic.
    user_blocks: AtomicU64,
    /// Pages that were quarantined. Grows only.
    quarantined_pages: AtomicU64,
    /// Blocks that ceased to be split and whose page words were not given back yet, by number, plus 1.
    kept: [AtomicU64; NR_KEPT],
}

/// How many blocks keep their page words, so that a lone small folio that comes and goes has no page made and given back
/// each time.
const NR_KEPT: usize = if cfg!(loom) { 1 } else { 8 };

/// What a put left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PutOutcome {
    /// Others hold the folio still.
    Live,
    /// It was the last reference: the pages are idle.
    Freed { order: Order, user: u64 },
}

/// A live folio as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) offset: u64,
    pub(crate) order: Order,
    pub(crate) generation: u16,
    pub(crate) ref_count: u32,
    pub(crate) user: u64,
}

impl FolioTable {
    /// Reserves room for the metadata of `nr_pages` pages; `owner` goes into every word.
    ///
    /// # Errors
    /// The refusal of mmap.
    pub(crate) fn new(owner: u16, nr_pages: u64) -> Result<FolioTable, SysError> {
        let room =
            |len: u64| usize::try_from(len).map_err(|_| SysError { call: "mmap", errno: libc::ENOMEM });
        Ok(FolioTable {
            owner,
            nr_pages,
            blocks: LazySlice::reserve(room(nr_pages.div_ceil(BLOCK_PAGES))?)?,
            words: LazySlice::reserve(room(nr_pages)?)?,
            users: LazySlice::reserve(room(nr_pages)?)?,
            split_blocks: AtomicU64::new(0),
            user_blocks: AtomicU64::new(0),
            quarantined_pages: AtomicU64::new(0),
            kept: std::array::from_fn(|_| AtomicU64::new(0)),
        })
    }

    /// Makes metadata for pages that had none. The range begins and ends with an extent. Every other function
    /// expects offsets for which this was done.
    ///
    /// # Errors
    /// The refusal of mmap.
    pub(crate) fn populate(&self, pages: Range<u64>) -> Result<(), SysError> {
        self.blocks.populate(block_range(&pages))?;
        self.words.populate(pages.start as usize..pages.end as usize)?;
        self.users.populate(pages.start as usize..pages.end as usize)
    }

    /// Makes the idle run at `offset` a folio with one reference and returns its generation.
    ///
    /// # Errors
    /// [`Fault::Busy`] when a page is in use, [`Fault::Corrupt`] when metadata was not this pgmap's (it is
    /// quarantined now), [`Fault::Quarantined`], [`Fault::Forked`].
    pub(crate) fn request(&self, offset: u64, order: Order) -> Result<u16, Fault> {
        if order.get() < BLOCK_ORDER {
            self.request_in_block(offset, order)
        } else {
            self.request_blocks(offset, order)
        }
    }

    fn request_in_block(&self, offset: u64, order: Order) -> Result<u16, Fault> {
        let (index, block) = self.block_of(offset);
        let mut state = block.state.lock();
        // Relaxed: under the lock (I1).
        let whole = Word(block.word.load(Ordering::Relaxed));
        if !whole.is_sound(self.owner) {
            return Err(Fault::Corrupt);
        }
        if !matches!(whole.kind(), Kind::Idle | Kind::Split) {
            return Err(whole.kind().as_obstacle());
        }
        let run = offset..offset + order.nr_pages();
        if whole.kind() == Kind::Split {
            for page in run.clone() {
                // Relaxed: under the lock (I1).
                let word = Word(self.word(page).load(Ordering::Relaxed));
                if !word.is_sound(self.owner) {
                    return Err(Fault::Corrupt);
                }
                if word != Word::IDLE {
                    return Err(word.kind().as_obstacle());
                }
            }
        }
        let generation = next_generation(&mut state);
        let head = Word::head(order, self.owner, generation);
        claim(self.word(offset), head)?;
        for page in run.skip(1) {
            // Relaxed: tails are read under the lock.
            self.word(page).store(Word::tail(order, self.owner, generation).0, Ordering::Relaxed);
        }
        state.used_pages += order.nr_pages() as u16;
        if whole.kind() == Kind::Idle {
            // Release: pairs with the Acquire of head_word.
            block.word.store(Word::split(self.owner).0, Ordering::Release);
            self.split_blocks.fetch_add(1, Ordering::Relaxed);
        }
        // Relaxed: under the lock; a stray late set_user of a former holder is that holder's error.
        if block.has_users.load(Ordering::Relaxed) != 0 {
            self.user(offset).store(0, Ordering::Relaxed);
        }
        debug_assert!(index < self.nr_pages);
        Ok(generation)
    }

    fn request_blocks(&self, offset: u64, order: Order) -> Result<u16, Fault> {
        let run = self.lock_run(offset, order);
        let (_, first) = self.block_of(offset);
        for index in run.blocks() {
            // Relaxed: under the lock (I1).
            let word = Word(self.block(index).word.load(Ordering::Relaxed));
            if !word.is_sound(self.owner) {
                return Err(Fault::Corrupt);
            }
            if word != Word::IDLE {
                return Err(word.kind().as_obstacle());
            }
        }
        let generation = run.next_generation();
        claim(&first.word, Word::head(order, self.owner, generation))?;
        for index in run.blocks().skip(1) {
            // Relaxed: tails are read under the lock.
            let tail = Word::tail(order, self.owner, generation);
            self.block(index).word.store(tail.0, Ordering::Relaxed);
        }
        // Relaxed: only reference holders read it, and there is none yet.
        first.user.store(0, Ordering::Relaxed);
        Ok(generation)
    }

    /// Takes one more reference to the live folio of `generation` at `offset`. Lock-free.
    ///
    /// # Errors
    /// What was found instead.
    pub(crate) fn get(&self, offset: u64, generation: u16) -> Result<(), Fault> {
        self.update_live(offset, generation, Word::with_get)
    }

    /// Notes that the folio's own address was given out. Lock-free.
    ///
    /// # Errors
    /// What was found instead.
    pub(crate) fn mark_addressed(&self, offset: u64, generation: u16) -> Result<(), Fault> {
        self.update_live(offset, generation, Word::addressed)
    }

    fn update_live(&self, offset: u64, generation: u16, new: impl Fn(Word) -> Word) -> Result<(), Fault> {
        let head = self.head_word(offset)?;
        // Relaxed: the CAS decides; a reference holder saw the request already.
        let mut word = Word(head.load(Ordering::Relaxed));
        loop {
            word.live(self.owner, generation)?;
            if new(word) == word {
                return Ok(());
            }
            // Relaxed: the caller's reference keeps the folio; nothing is published by taking another.
            match head.compare_exchange_weak(word.0, new(word).0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => word = Word(now),
            }
        }
    }

    /// Drops a reference. When it was the last, the run becomes idle after `on_idle`, which runs once, while the
    /// run can neither be requested nor found.
    ///
    /// # Errors
    /// What was found instead of a live folio of `generation`; nothing is changed then.
    pub(crate) fn put(
        &self,
        offset: u64,
        generation: u16,
        on_idle: impl FnOnce(Order),
    ) -> Result<PutOutcome, Fault> {
        let head = self.head_word(offset)?;
        // Relaxed: the CAS decides.
        let mut word = Word(head.load(Ordering::Relaxed));
        loop {
            let order = word.live(self.owner, generation)?;
            let Some(less) = word.with_put() else {
                if order.get() < BLOCK_ORDER {
                    let (_, block) = self.block_of(offset);
                    let state = block.state.lock();
                    if take_last(head, word) {
                        return Ok(self.free_in_block(offset, order, state, on_idle));
                    }
                } else {
                    let run = self.lock_run(offset, order);
                    if take_last(head, word) {
                        return Ok(self.free_blocks(offset, order, &run, on_idle));
                    }
                }
                // Somebody took a reference first, so ours is not the last any more.
                word = Word(head.load(Ordering::Relaxed));
                continue;
            };
            // Release: pairs with the Acquire of take_last, so that our use of the memory is over before it is idle.
            match head.compare_exchange_weak(word.0, less.0, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return Ok(PutOutcome::Live),
                Err(now) => word = Word(now),
            }
        }
    }

    /// Ends a folio inside a block whose head the caller just made idle, under the lock.
    fn free_in_block(
        &self,
        offset: u64,
        order: Order,
        mut state: MutexGuard<'_, BlockState>,
        on_idle: impl FnOnce(Order),
    ) -> PutOutcome {
        let (index, block) = self.block_of(offset);
        on_idle(order);
        let mut user = 0;
        // Relaxed: set by reference holders, whose puts we acquired.
        if block.has_users.load(Ordering::Relaxed) != 0 {
            user = self.user(offset).load(Ordering::Relaxed);
            self.user(offset).store(0, Ordering::Relaxed);
        }
        for page in offset + 1..offset + order.nr_pages() {
            // Relaxed: under the lock (I1).
            self.word(page).store(Word::IDLE.0, Ordering::Relaxed);
        }
        state.used_pages -= order.nr_pages() as u16;
        if state.used_pages == 0 {
            self.unsplit(index, block);
            drop(state);
            self.keep_words_of(index);
        }
        PutOutcome::Freed { order, user }
    }

    /// Ends a block's being split: it has no page in use. Its lock is held. The page words are all 0, and are not given
    /// back here.
    fn unsplit(&self, index: u64, block: &Block) {
        // Release: a lock-free reader that sees idle does not look at the page words.
        block.word.store(Word::IDLE.0, Ordering::Release);
        let pages = self.pages_of(index);
        self.split_blocks.fetch_sub(1, Ordering::Relaxed);
        // Relaxed: all holders are gone, and we acquired their puts.
        if block.has_users.swap(0, Ordering::Relaxed) != 0 {
            // SAFETY: as for the words: user words are written by holders only, and there is none.
            unsafe { self.users.give_back(pages) };
            self.user_blocks.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Keeps the page words of a block that is no longer split, and gives those back that were kept in its place. No lock
    /// is held.
    fn keep_words_of(&self, index: u64) {
        let kept = &self.kept[index as usize % NR_KEPT];
        // Relaxed: a number; what it stands for is looked at under the block's lock.
        if kept.load(Ordering::Relaxed) == index + 1 {
            return;
        }
        let Some(before) = kept.swap(index + 1, Ordering::Relaxed).checked_sub(1) else { return };
        let block = self.block(before);
        let _state = block.state.lock();
        // Relaxed: under the lock (I1). A block that is split again will be kept again.
        if Word(block.word.load(Ordering::Relaxed)).kind() != Kind::Split {
            // SAFETY: the block's lock is held and it is not split, so nobody writes to its page words, and they are 0
            // (I2, I3); a late reader with a stale reference reads idle words, before or after.
            unsafe { self.words.give_back(self.pages_of(before)) };
        }
    }

    /// Returns the places of a block's page words.
    fn pages_of(&self, index: u64) -> Range<usize> {
        let pages = index * BLOCK_PAGES..((index + 1) * BLOCK_PAGES).min(self.nr_pages);
        pages.start as usize..pages.end as usize
    }

    /// Ends a folio of whole blocks whose head the caller just made idle, under the locks.
    fn free_blocks(
        &self,
        offset: u64,
        order: Order,
        run: &LockedRun<'_>,
        on_idle: impl FnOnce(Order),
    ) -> PutOutcome {
        let (_, first) = self.block_of(offset);
        on_idle(order);
        // Relaxed: set by reference holders, whose puts we acquired.
        let user = first.user.swap(0, Ordering::Relaxed);
        for index in run.blocks().skip(1) {
            // Relaxed: under the lock (I1).
            self.block(index).word.store(Word::IDLE.0, Ordering::Relaxed);
        }
        PutOutcome::Freed { order, user }
    }

    /// Takes a reference to the live folio that covers `offset`, if there is one.
    pub(crate) fn try_get(&self, offset: u64) -> Option<Sighting> {
        let (index, block) = self.block_of(offset);
        // The lock keeps every folio that covers a page of this block from ending (I1).
        let _state = block.state.lock();
        // Relaxed: under the lock.
        let whole = Word(block.word.load(Ordering::Relaxed));
        let (start, mut word) = match whole.kind() {
            Kind::Split => {
                let word = Word(self.word(offset).load(Ordering::Relaxed));
                (offset & !(word.order()?.nr_pages() - 1), word)
            }
            _ => {
                let first = index * BLOCK_PAGES;
                (first & !(whole.order()?.nr_pages() - 1), whole)
            }
        };
        if word.kind() == Kind::Tail {
            word = Word(self.head_word(start).ok()?.load(Ordering::Relaxed));
        }
        let generation = word.generation();
        word.live(self.owner, generation).ok()?;
        self.get(start, generation).ok()?;
        self.look(start, generation).ok()
    }

    /// Describes the live folio of `generation` at `offset`. Lock-free.
    ///
    /// # Errors
    /// What was found instead.
    pub(crate) fn look(&self, offset: u64, generation: u16) -> Result<Sighting, Fault> {
        // Acquire: pairs with the Release of other holders' puts, for callers who act on a count of 1.
        let word = Word(self.head_word(offset)?.load(Ordering::Acquire));
        let order = word.live(self.owner, generation)?;
        let user = self.user_of(offset, order).map_or(0, |user| user.load(Ordering::Relaxed));
        Ok(Sighting { offset, order, generation, ref_count: word.count(), user })
    }

    /// Stores the user word of the live folio of `generation` at `offset`. The caller holds a reference.
    ///
    /// # Errors
    /// What was found instead.
    pub(crate) fn set_user(&self, offset: u64, generation: u16, user: u64) -> Result<(), Fault> {
        // Relaxed throughout: holders that share the word order their own accesses.
        let order = Word(self.head_word(offset)?.load(Ordering::Relaxed)).live(self.owner, generation)?;
        let (_, block) = self.block_of(offset);
        if order.get() >= BLOCK_ORDER {
            block.user.store(user, Ordering::Relaxed);
            return Ok(());
        }
        if block.has_users.swap(1, Ordering::Relaxed) == 0 {
            self.user_blocks.fetch_add(1, Ordering::Relaxed);
        }
        self.user(offset).store(user, Ordering::Relaxed);
        Ok(())
    }

    fn user_of(&self, offset: u64, order: Order) -> Option<&AtomicU64> {
        let (_, block) = self.block_of(offset);
        if order.get() >= BLOCK_ORDER {
            return Some(&block.user);
        }
        // Relaxed: a holder that set a user word ordered that for its readers.
        (block.has_users.load(Ordering::Relaxed) != 0).then(|| self.user(offset))
    }

    /// Calls `f` with every live folio that begins in `pages`, without locks: a snapshot of each, not of all.
    pub(crate) fn for_each_live(&self, pages: Range<u64>, f: &mut dyn FnMut(Sighting)) {
        for index in block_range(&pages) {
            let first = index as u64 * BLOCK_PAGES;
            // Acquire: as in head_word.
            let whole = Word(self.block(index as u64).word.load(Ordering::Acquire));
            match whole.kind() {
                Kind::Head => self.report(first, whole, f),
                Kind::Split => {
                    for page in first..(first + BLOCK_PAGES).min(self.nr_pages) {
                        self.report(page, Word(self.word(page).load(Ordering::Acquire)), f);
                    }
                }
                _ => {}
            }
        }
    }

    fn report(&self, offset: u64, word: Word, f: &mut dyn FnMut(Sighting)) {
        if word.kind() == Kind::Head
            && let Ok(seen) = self.look(offset, word.generation())
        {
            f(seen);
        }
    }

    /// Returns the bytes of page words and user words that exist now.
    pub(crate) fn split_bytes(&self) -> u64 {
        let tables = self.split_blocks.load(Ordering::Relaxed) + self.user_blocks.load(Ordering::Relaxed);
        tables * BLOCK_PAGES * size_of::<AtomicU64>() as u64
    }

    /// Returns the bytes of block descriptors for `nr_pages` pages.
    pub(crate) fn block_bytes(nr_pages: u64) -> u64 {
        nr_pages.div_ceil(BLOCK_PAGES) * size_of::<Block>() as u64
    }

    pub(crate) fn quarantined_pages(&self) -> u64 {
        self.quarantined_pages.load(Ordering::Relaxed)
    }

    /// Finds the word of a head at `offset`, if that is where one can be. Lock-free: the answer holds as long as
    /// the caller's reference, and without one it may be idle at any time.
    fn head_word(&self, offset: u64) -> Result<&AtomicU64, Fault> {
        let (index, block) = self.block_of(offset);
        // Acquire: pairs with the Release of request_in_block.
        let whole = Word(block.word.load(Ordering::Acquire));
        if !whole.is_sound(self.owner) {
            return Err(Fault::Corrupt);
        }
        match whole.kind() {
            Kind::Split => Ok(self.word(offset)),
            Kind::Head | Kind::Forked if offset == index * BLOCK_PAGES => Ok(&block.word),
            Kind::Quarantined => Err(Fault::Quarantined),
            _ => Err(Fault::Stale),
        }
    }

    fn lock_run(&self, offset: u64, order: Order) -> LockedRun<'_> {
        let first = offset / BLOCK_PAGES;
        let run = LockedRun { table: self, first, end: first + order.nr_pages().div_ceil(BLOCK_PAGES) };
        run.blocks().for_each(|index| self.block(index).state.lock_raw());
        run
    }

    fn block_of(&self, offset: u64) -> (u64, &Block) {
        (offset / BLOCK_PAGES, self.block(offset / BLOCK_PAGES))
    }

    pub(super) fn block(&self, index: u64) -> &Block {
        // SAFETY: callers pass offsets for which `populate` was done.
        unsafe { self.blocks.get(index as usize) }
    }

    pub(super) fn word(&self, page: u64) -> &AtomicU64 {
        // SAFETY: callers pass offsets for which `populate` was done.
        unsafe { self.words.get(page as usize) }
    }

    fn user(&self, page: u64) -> &AtomicU64 {
        // SAFETY: callers pass offsets for which `populate` was done.
        unsafe { self.users.get(page as usize) }
    }
}

/// The locks of a run of blocks, taken in ascending order; given back on drop.
struct LockedRun<'a> {
    table: &'a FolioTable,
    first: u64,
    end: u64,
}

impl LockedRun<'_> {
    fn blocks(&self) -> Range<u64> {
        self.first..self.end
    }

    fn next_generation(&self) -> u16 {
        let mut state = self.table.block(self.first).state.adopt();
        let generation = next_generation(&mut state);
        state.keep_locked();
        generation
    }
}

impl Drop for LockedRun<'_> {
    fn drop(&mut self) {
        self.blocks().for_each(|index| self.table.block(index).state.unlock_raw());
    }
}

/// Makes an idle word a head: the one step from 0 references to 1.
fn claim(word: &AtomicU64, head: Word) -> Result<(), Fault> {
    // Acquire: pairs with the Release half of take_last, so that the last user's accesses are over. Release: pairs with the
    // Acquire of whoever finds the folio.
    word.compare_exchange(Word::IDLE.0, head.0, Ordering::AcqRel, Ordering::Relaxed)
        .map(drop)
        .map_err(|_| Fault::Busy)
}

/// Makes a head with one reference idle, unless it changed since `seen`.
fn take_last(head: &AtomicU64, seen: Word) -> bool {
    // Acquire: pairs with the Release of the other puts, so that their use of the memory is over. Release: pairs with
    // the Acquire of `claim`.
    head.compare_exchange(seen.0, Word::IDLE.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

fn next_generation(state: &mut BlockState) -> u16 {
    state.generation = (state.generation + 1) % GENERATIONS;
    state.generation
}

fn block_range(pages: &Range<u64>) -> Range<usize> {
    (pages.start / BLOCK_PAGES) as usize..pages.end.div_ceil(BLOCK_PAGES) as usize
}
