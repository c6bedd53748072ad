//! What is left for the library's own data when the kernel refuses any more memory: enough to say so.
//!
//! 64 KiB of the library's image in blocks of 1 KiB, touched by nobody before they are needed. [`take`] hands out
//! neighbouring blocks, [`give`] takes them back. Used by `process`, for what the private heap could not serve.
//!
//! # Protocol
//! Bit n of [`Ledger::taken`] is set while block n is in use. Who sets the bits of a run, all in one step, owns its blocks
//! and their entry in [`LENGTHS`] until it clears the bits. Nobody waits for anybody, so a fork may find it in any state.
//!
//! # Invariants
//! - R1: a block is reached only by who owns it.

use crate::sync::atomic::{AtomicU64, Ordering};
use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

const BLOCK_BYTES: usize = 1024;
const NR_BLOCKS: usize = 64;
/// The most that one request gets.
const MOST_BLOCKS: usize = 16;

/// Which blocks are in use.
struct Ledger {
    taken: AtomicU64,
}

#[repr(align(1024))]
struct Room(UnsafeCell<[u8; NR_BLOCKS * BLOCK_BYTES]>);

// SAFETY: a byte of it is reached only by who owns its block (R1).
unsafe impl Sync for Room {}

static ROOM: Room = Room(UnsafeCell::new([0; NR_BLOCKS * BLOCK_BYTES]));
#[cfg(not(loom))]
static LEDGER: Ledger = Ledger { taken: AtomicU64::new(0) };
/// How many blocks the run has that begins with each block.
static LENGTHS: [AtomicU8; NR_BLOCKS] = [const { AtomicU8::new(0) }; NR_BLOCKS];

impl Ledger {
    /// Takes `count` neighbouring blocks and returns the first one's number.
    fn take(&self, count: usize) -> Option<usize> {
        let mut taken = self.taken.load(Ordering::Relaxed);
        loop {
            let first = first_gap(taken, count)?;
            // Acquire: pairs with the Release of `give`, so what the former owner did with the blocks is over.
            match self.taken.compare_exchange_weak(
                taken,
                taken | run(first, count),
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(first),
                Err(seen) => taken = seen,
            }
        }
    }

    /// Gives a run back that `take` returned.
    fn give(&self, first: usize, count: usize) {
        // Release: pairs with the Acquire of `take`.
        self.taken.fetch_and(!run(first, count), Ordering::Release);
    }
}

/// The bits of `count` blocks from `first` on.
const fn run(first: usize, count: usize) -> u64 {
    (u64::MAX >> (NR_BLOCKS - count)) << first
}

/// The first place where `count` neighbouring bits are clear.
fn first_gap(taken: u64, count: usize) -> Option<usize> {
    (1..=NR_BLOCKS).contains(&count).then_some(())?;
    (0..=NR_BLOCKS - count).find(|&first| taken & run(first, count) == 0)
}

fn base() -> NonNull<u8> {
    // SAFETY: the address of a static is not null.
    unsafe { NonNull::new_unchecked(ROOM.0.get().cast()) }
}

/// Takes a block of `len_bytes` at a multiple of `align`, cleared if it is to be `zero`.
#[cfg(not(loom))]
pub(super) fn take(len_bytes: usize, align: usize, zero: bool) -> Option<NonNull<u8>> {
    let count = len_bytes.div_ceil(BLOCK_BYTES).max(1);
    if count > MOST_BLOCKS || align > BLOCK_BYTES {
        return None;
    }
    let first = LEDGER.take(count)?;
    // Relaxed: read by who owns the blocks, to whom their address came from here.
    LENGTHS[first].store(count as u8, Ordering::Relaxed);
    // SAFETY: the run lies inside the room.
    let block = unsafe { base().add(first * BLOCK_BYTES) };
    if zero {
        // SAFETY: the blocks are ours (R1).
        unsafe { block.write_bytes(0, count * BLOCK_BYTES) };
    }
    Some(block)
}

#[cfg(loom)]
pub(super) fn take(_len_bytes: usize, _align: usize, _zero: bool) -> Option<NonNull<u8>> {
    None
}

/// Whether a block is of the reserve.
#[inline]
pub(super) fn owns(block: NonNull<u8>) -> bool {
    block.as_ptr().addr().wrapping_sub(base().as_ptr().addr()) < NR_BLOCKS * BLOCK_BYTES
}

/// Returns how many bytes a block of the reserve holds, and which is its first.
fn extent(block: NonNull<u8>) -> (usize, usize) {
    let first = (block.as_ptr().addr() - base().as_ptr().addr()) / BLOCK_BYTES;
    (first, usize::from(LENGTHS[first].load(Ordering::Relaxed)))
}

/// Returns how many bytes a live block of the reserve holds.
pub(super) fn len_bytes(block: NonNull<u8>) -> usize {
    extent(block).1 * BLOCK_BYTES
}

/// Gives a live block of the reserve back, which nobody uses any more.
pub(super) fn give(block: NonNull<u8>) {
    let (first, count) = extent(block);
    if count == 0 {
        return;
    }
    LENGTHS[first].store(0, Ordering::Relaxed);
    #[cfg(not(loom))]
    LEDGER.give(first, count);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn gaps_are_found_as_by_trying_every_bit() {
        let mut taken = 0x9e37_79b9_7f4a_7c15_u64;
        for count in 1..=NR_BLOCKS + 1 {
            for _ in 0..200 {
                taken ^= taken << 13;
                taken ^= taken >> 7;
                taken ^= taken << 17;
                let sparse = taken & taken.rotate_left(23) & taken.rotate_left(41);
                let is_free = |at: usize| at < NR_BLOCKS && sparse >> at & 1 == 0;
                let naive = (0..NR_BLOCKS).find(|&first| (first..first + count).all(is_free));
                assert_eq!(first_gap(sparse, count), naive, "{sparse:#x} {count}");
            }
        }
    }

    #[test]
    fn blocks_are_whole_aligned_cleared_and_their_owners_alone() {
        assert_eq!(take(MOST_BLOCKS * BLOCK_BYTES + 1, 1, false), None);
        assert_eq!(take(1, 2 * BLOCK_BYTES, false), None);
        static TOOK: AtomicU32 = AtomicU32::new(0);
        let work = |me: u8| {
            for at in 0..5000_usize {
                let len = 1 + at * 37 % (3 * BLOCK_BYTES);
                let Some(block) = take(len, 64, at.is_multiple_of(2)) else { continue };
                TOOK.fetch_add(1, Ordering::Relaxed);
                assert!(owns(block) && len_bytes(block) >= len && block.as_ptr().addr().is_multiple_of(64));
                // SAFETY: the block holds as many bytes, and is ours.
                let bytes = unsafe { std::slice::from_raw_parts_mut(block.as_ptr(), len) };
                assert!(!at.is_multiple_of(2) || bytes.iter().all(|&byte| byte == 0));
                bytes.fill(me);
                std::thread::yield_now();
                assert!(bytes.iter().all(|&byte| byte == me), "somebody else wrote here");
                give(block);
            }
        };
        std::thread::scope(|scope| (1..=4).for_each(|me| drop(scope.spawn(move || work(me)))));
        assert!(TOOK.load(Ordering::Relaxed) > 1000);
        assert_eq!(LEDGER.taken.load(Ordering::Relaxed), 0, "all came back");
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::{Ledger, NR_BLOCKS};
    use crate::sync::atomic::AtomicU64;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    #[test]
    fn loom_reserve_a_run_has_one_owner_at_a_time() {
        loom::model(|| {
            // Runs of more than half of the blocks overlap, so only one is owned at a time.
            let shared =
                Arc::new((Ledger { taken: AtomicU64::new(0) }, UnsafeCell::new(0_u32), AtomicU64::new(0)));
            let turn = |shared: &(Ledger, UnsafeCell<u32>, AtomicU64)| {
                if let Some(first) = shared.0.take(NR_BLOCKS / 2 + 1) {
                    // SAFETY: who owns the run is alone; loom tells otherwise.
                    shared.1.with_mut(|word| unsafe { *word += 1 });
                    shared.0.give(first, NR_BLOCKS / 2 + 1);
                    shared.2.fetch_add(1, super::Ordering::Relaxed);
                }
            };
            let other = {
                let shared = Arc::clone(&shared);
                loom::thread::spawn(move || turn(&shared))
            };
            turn(&shared);
            other.join().expect("no panic");
            let turns = shared.2.load(super::Ordering::Relaxed);
            // SAFETY: the other thread has ended.
            shared.1.with(|word| assert_eq!(u64::from(unsafe { *word }), turns));
            assert!(turns >= 1, "one of them finds the blocks free");
        });
    }
}
