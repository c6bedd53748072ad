//! Runs: blocks of whole slots, for what an arena can't hold.
//!
//! A run is backed when it is made and given back whole when it is freed, so very large blocks return to their
//! tier at once. Each pool has one [`Runs`], which takes chunks of the space's run zone as it needs them; a run
//! longer than a chunk takes chunks of its own. The head slot's state knows the length.

use crate::space::{CHUNK_BYTES, SLOT_BYTES, SLOTS_PER_CHUNK, SlotSource, Space};
use crate::sync::service;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

/// The runs of one pool.
pub(crate) struct Runs {
    space: &'static Space,
    chunks: Mutex<Vec<RunChunk>>,
}

/// A chunk, or several neighbours for one long run, and which of its slots belong to runs.
struct RunChunk {
    first_slot: usize,
    nr_chunks: usize,
    taken: [bool; SLOTS_PER_CHUNK],
    nr_taken: usize,
}

/// A pointer that is not the start of a live run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotARun;

impl Runs {
    pub(crate) fn new(space: &'static Space) -> Runs {
        Runs { space, chunks: Mutex::new(Vec::new()) }
    }

    /// Makes a run of at least `len_bytes` whose address is a multiple of `align` (a power of two up to 1 GiB).
    /// Returns `None` when the source or the space is exhausted. The second value says whether every byte is
    /// known to be zero.
    pub(crate) fn alloc(
        &self,
        len_bytes: usize,
        align: usize,
        source: &dyn SlotSource,
    ) -> Option<(NonNull<u8>, bool)> {
        service::run(|| {
            if align > CHUNK_BYTES || !source.has_room(len_bytes as u64) {
                return None;
            }
            let nr_slots = len_bytes.max(1).div_ceil(SLOT_BYTES);
            let first = self.take(nr_slots, align.div_ceil(SLOT_BYTES))?;
            let start = self.space.slot_address(first);
            let Some(is_zero) = self.space.commit(start.as_ptr().addr(), nr_slots * SLOT_BYTES, source)
            else {
                self.give(first, nr_slots);
                return None;
            };
            self.space.slot(first).lock().run_slots =
                u32::try_from(nr_slots).expect("runs are below 2^43 bytes");
            Some((start, is_zero))
        })
    }

    /// Frees the run at `addr`.
    ///
    /// # Errors
    /// [`NotARun`] when no live run of this pool starts there; nothing changes then.
    pub(crate) fn free(&self, addr: usize) -> Result<(), NotARun> {
        service::run(|| {
            let first = self.space.slot_index(addr).ok_or(NotARun)?;
            // The length is taken under the slot's lock, so of two threads that free one run, one fails.
            let nr_slots = {
                let mut state = self.space.slot(first).lock();
                if !addr.is_multiple_of(SLOT_BYTES) || state.run_slots == 0 || !self.owns(first) {
                    return Err(NotARun);
                }
                std::mem::take(&mut state.run_slots) as usize
            };
            self.space.decommit(addr, nr_slots * SLOT_BYTES);
            self.give(first, nr_slots);
            Ok(())
        })
    }

    /// Returns the length in bytes of the run at `addr`.
    ///
    /// # Errors
    /// [`NotARun`] when no live run starts there.
    pub(crate) fn len_bytes(space: &Space, addr: usize) -> Result<usize, NotARun> {
        let first = space.slot_index(addr).filter(|_| addr.is_multiple_of(SLOT_BYTES)).ok_or(NotARun)?;
        match space.slot(first).lock().run_slots as usize {
            0 => Err(NotARun),
            nr_slots => Ok(nr_slots * SLOT_BYTES),
        }
    }

    /// Returns the bytes in live runs.
    pub(crate) fn live_bytes(&self) -> usize {
        self.lock().iter().map(|chunk| chunk.nr_taken * SLOT_BYTES).sum()
    }

    /// Gives every run back.
    ///
    /// # Safety
    /// Nobody uses a run of this pool any more.
    pub(crate) unsafe fn detach(&self) {
        let chunks = std::mem::take(&mut *self.lock());
        for chunk in chunks {
            for at in 0..chunk.nr_chunks * SLOTS_PER_CHUNK {
                self.space.slot(chunk.first_slot + at).lock().run_slots = 0;
            }
            let start = self.space.slot_address(chunk.first_slot);
            self.space.decommit(start.as_ptr().addr(), chunk.nr_chunks * CHUNK_BYTES);
            self.space.give_run_chunks(chunk.first_slot, chunk.nr_chunks);
        }
    }

    /// Takes addresses for `nr_slots` slots at a multiple of `align_slots`; returns the first slot.
    fn take(&self, nr_slots: usize, align_slots: usize) -> Option<usize> {
        let mut chunks = self.lock();
        if nr_slots > SLOTS_PER_CHUNK {
            let nr_chunks = nr_slots.div_ceil(SLOTS_PER_CHUNK);
            let mut chunk = RunChunk::new(self.space.take_run_chunks(nr_chunks)?, nr_chunks);
            chunk.nr_taken = nr_slots;
            let first = chunk.first_slot;
            chunks.push(chunk);
            return Some(first);
        }
        let shared = chunks.iter_mut().filter(|chunk| chunk.nr_chunks == 1);
        for chunk in shared {
            if let Some(first) = chunk.take(nr_slots, align_slots) {
                return Some(first);
            }
        }
        let mut chunk = RunChunk::new(self.space.take_run_chunks(1)?, 1);
        let first = chunk.take(nr_slots, align_slots);
        chunks.push(chunk);
        first
    }

    /// Gives the addresses of a run back; a chunk without runs returns to the space.
    fn give(&self, first: usize, nr_slots: usize) {
        let mut chunks = self.lock();
        let Some(at) = chunks.iter().position(|chunk| chunk.holds(first)) else { return };
        chunks[at].give(first, nr_slots);
        if chunks[at].nr_taken == 0 {
            let chunk = chunks.swap_remove(at);
            self.space.give_run_chunks(chunk.first_slot, chunk.nr_chunks);
        }
    }

    fn owns(&self, slot: usize) -> bool {
        self.lock().iter().any(|chunk| chunk.holds(slot))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<RunChunk>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RunChunk {
    fn new(first_slot: usize, nr_chunks: usize) -> RunChunk {
        RunChunk { first_slot, nr_chunks, taken: [false; SLOTS_PER_CHUNK], nr_taken: 0 }
    }

    fn holds(&self, slot: usize) -> bool {
        (self.first_slot..self.first_slot + self.nr_chunks * SLOTS_PER_CHUNK).contains(&slot)
    }

    fn take(&mut self, nr_slots: usize, align_slots: usize) -> Option<usize> {
        let step = align_slots.max(1);
        let at = (0..=SLOTS_PER_CHUNK - nr_slots)
            .step_by(step)
            .find(|&at| !self.taken[at..at + nr_slots].contains(&true))?;
        self.taken[at..at + nr_slots].fill(true);
        self.nr_taken += nr_slots;
        Some(self.first_slot + at)
    }

    fn give(&mut self, first: usize, nr_slots: usize) {
        if self.nr_chunks == 1 {
            let at = first - self.first_slot;
            self.taken[at..at + nr_slots].fill(false);
        }
        self.nr_taken -= nr_slots;
    }
}
