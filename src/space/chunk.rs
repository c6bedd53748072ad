//! Which chunks of the space are taken.
//!
//! The lower half of the space is the heap zone, taken from the bottom up and never given back (the heap engine
//! can't let go of an arena). The upper half is the run zone, a first-fit bitmap under a lock.

use std::sync::{Mutex, PoisonError};

/// The chunks of both zones.
pub(super) struct ChunkMap {
    first_run_chunk: usize,
    state: Mutex<Taken>,
}

struct Taken {
    heap_chunks: usize,
    run_chunks: Vec<bool>,
}

impl ChunkMap {
    pub(super) fn new(nr_chunks: usize) -> ChunkMap {
        let first_run_chunk = nr_chunks / 2;
        let run_chunks = vec![false; nr_chunks - first_run_chunk];
        ChunkMap { first_run_chunk, state: Mutex::new(Taken { heap_chunks: 0, run_chunks }) }
    }

    pub(super) fn first_run_chunk(&self) -> usize {
        self.first_run_chunk
    }

    /// Takes chunks of the heap zone; returns the first one's index.
    pub(super) fn take_heap(&self, nr_chunks: usize) -> Option<usize> {
        let mut taken = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let first = taken.heap_chunks;
        let end = first.checked_add(nr_chunks).filter(|&end| end <= self.first_run_chunk)?;
        taken.heap_chunks = end;
        Some(first)
    }

    /// Takes neighbouring free chunks of the run zone; returns the first one's index.
    pub(super) fn take_run(&self, nr_chunks: usize) -> Option<usize> {
        let mut taken = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let first = taken.run_chunks.windows(nr_chunks.max(1)).position(|run| !run.contains(&true))?;
        taken.run_chunks[first..first + nr_chunks].fill(true);
        Some(self.first_run_chunk + first)
    }

    /// Gives chunks of the run zone back.
    pub(super) fn give_run(&self, first: usize, nr_chunks: usize) {
        let mut taken = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let start = first - self.first_run_chunk;
        taken.run_chunks[start..start + nr_chunks].fill(false);
    }

    /// Calls `visit` with the index of every taken chunk.
    pub(super) fn for_each_taken(&self, mut visit: impl FnMut(usize)) {
        let taken = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (0..taken.heap_chunks).for_each(&mut visit);
        let runs = taken.run_chunks.iter().enumerate().filter(|(_, taken)| **taken);
        runs.for_each(|(at, _)| visit(self.first_run_chunk + at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_do_not_overlap_and_runs_are_reused() {
        let chunks = ChunkMap::new(8);
        assert_eq!(chunks.take_heap(3), Some(0));
        assert_eq!(chunks.take_heap(2), None);
        assert_eq!(chunks.take_heap(1), Some(3));
        assert_eq!(chunks.take_run(2), Some(4));
        assert_eq!(chunks.take_run(3), None);
        assert_eq!(chunks.take_run(2), Some(6));
        chunks.give_run(4, 2);
        assert_eq!(chunks.take_run(1), Some(4));
        assert_eq!(chunks.take_run(1), Some(5));
        assert_eq!(chunks.take_run(1), None);
    }
}
