//! Clearing memory at the speed of its bus.
//!
//! An ordinary store first reads the line that it changes, and pushes other data out of the caches for it. Large ranges
//! are cleared with stores that do neither. The best such [`Way`] of this processor is chosen once, when the first large
//! range is cleared; the processor's module (`x86_64`, `aarch64`, `other`) has them. Small ranges are cleared in the
//! caches, where their user will look for them.
//!
//! # Ordering
//! When [`zero`] returns the zeroes are ordered like the calling thread's ordinary stores: whoever hands the memory to
//! another thread with a Release store, or a lock, hands the zeroes over too. On x86-64 that is not so by itself: streaming
//! stores and `clzero` are weakly ordered, and a Release store there is a plain `mov`. So each way ends with the fence that
//! its stores need, inside `zero_blocks`, before anybody can learn that the range was cleared.
//!
//! Neither allocates nor keeps state but for the choice. Used by `pgmap`, `space` and `runtime`.

#[cfg_attr(target_arch = "x86_64", path = "zero/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "zero/aarch64.rs")]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), path = "zero/other.rs")]
mod arch;

mod look;

use arch::Way;
pub(crate) use look::zero_unless_zero;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

/// Ranges from this length on are cleared past the caches: a quarter of what second-level caches have today.
const LARGE_BYTES: usize = 256 << 10;

/// The chosen way's number in [`Way::ALL`] plus one; 0 before the first choice. Relaxed: it says all that there is, and
/// every thread would choose the same.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// Clears `[addr, addr + len_bytes)`, of any alignment and length.
///
/// # Safety
/// The range is mapped and writable, and nobody else uses it meanwhile.
pub(crate) unsafe fn zero(addr: NonNull<u8>, len_bytes: usize) {
    if len_bytes < LARGE_BYTES {
        // SAFETY: the caller's duty.
        unsafe { addr.write_bytes(0, len_bytes) };
    } else {
        // SAFETY: the caller's duty; the way was found to be this processor's.
        unsafe { zero_by(best_way(), addr, len_bytes) };
    }
}

fn best_way() -> Way {
    if let Some(&way) =
        usize::from(CHOSEN.load(Ordering::Relaxed)).checked_sub(1).and_then(|at| Way::ALL.get(at))
    {
        return way;
    }
    // The last one works everywhere.
    let at = Way::ALL.iter().position(|way| way.is_here()).unwrap_or(Way::ALL.len() - 1);
    CHOSEN.store(at as u8 + 1, Ordering::Relaxed);
    Way::ALL[at]
}

/// Clears a range in one way: whole blocks past the caches, what sticks out on either side with ordinary stores.
///
/// # Safety
/// As for [`zero`], and this processor has the way.
unsafe fn zero_by(way: Way, addr: NonNull<u8>, len_bytes: usize) {
    let block_bytes = way.block_bytes();
    debug_assert!(block_bytes.is_power_of_two());
    let head = addr.as_ptr().addr().wrapping_neg() & (block_bytes - 1);
    if len_bytes < head {
        // SAFETY: the caller's duty.
        return unsafe { addr.write_bytes(0, len_bytes) };
    }
    let middle = (len_bytes - head) & !(block_bytes - 1);
    let tail = len_bytes - head - middle;
    // SAFETY: the caller's duty, for the first `head` of the bytes.
    unsafe { addr.write_bytes(0, head) };
    // SAFETY: `head` is at most the length.
    let first = unsafe { addr.add(head) };
    // SAFETY: `head + middle` is at most the length.
    let last = unsafe { first.add(middle) };
    // SAFETY: both ends are multiples of a block, by the sums above; the rest is the caller's duty.
    unsafe { way.zero_blocks(first, last) };
    // SAFETY: the caller's duty, for the last `tail` of the bytes.
    unsafe { last.write_bytes(0, tail) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mm::{self, Reservation};
    use std::time::Instant;

    fn ways() -> impl Iterator<Item = Way> {
        Way::ALL.iter().copied().filter(|way| {
            let is_here = way.is_here();
            if !is_here {
                println!("{way:?} is not tested: this processor lacks it");
            }
            is_here
        })
    }

    /// Clears a part of a buffer and looks at every byte of it.
    fn check(buffer: &mut [u8], start: usize, len: usize, clear: impl Fn(NonNull<u8>, usize)) {
        buffer.fill(0xa5);
        clear(NonNull::from(&mut buffer[start..]).cast(), len);
        let cleared = start..start + len;
        let wrong = buffer.iter().enumerate().find(|&(at, &byte)| (byte == 0) != cleared.contains(&at));
        assert_eq!(wrong, None, "{len} bytes from {start} on");
    }

    #[test]
    fn every_way_clears_the_range_and_nothing_beside_it() {
        for way in ways() {
            let block = way.block_bytes();
            // Aligned by hand: what is tested is every distance from a block's start.
            let mut room = vec![0u8; 8 * block];
            let start = room.as_ptr().align_offset(block);
            let buffer = &mut room[start..start + 6 * block];
            let interesting = |len: usize| {
                let rest = len % block;
                rest <= 9 || rest >= block - 9 || rest.abs_diff(block / 2) < 2
            };
            for start in 0..=block {
                for len in (0..=3 * block + 1).filter(|&len| interesting(len) || interesting(start + len)) {
                    // SAFETY: the range is the buffer's, and this processor has the way.
                    check(buffer, start, len, |addr, len| unsafe { zero_by(way, addr, len) });
                }
            }
        }
    }

    #[test]
    fn small_and_large_ranges_are_cleared_whatever_their_ends() {
        let mut buffer = vec![0u8; LARGE_BYTES + 512];
        for start in [0, 1, 63, 64, 100] {
            for len in [0, 1, 4096, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, LARGE_BYTES + 333] {
                // SAFETY: the range is the buffer's.
                check(&mut buffer, start, len, |addr, len| unsafe { zero(addr, len) });
            }
        }
    }

    #[test]
    fn a_range_that_ends_with_its_mapping_is_cleared_to_the_end() {
        const LEN: usize = LARGE_BYTES;
        let room = Reservation::new(LEN + 8192, 4096).expect("room");
        let start = room.at(4096).expect("inside");
        // SAFETY: the reservation is this test's own. Pages on both sides stay without access.
        unsafe { mm::map_anonymous(start, LEN) }.expect("memory");
        for way in ways() {
            // SAFETY: just mapped.
            unsafe { start.write_bytes(0xa5, LEN) };
            // SAFETY: just mapped, and this processor has the way.
            unsafe { zero_by(way, start, LEN) };
            // SAFETY: just mapped, and nobody writes.
            let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr(), LEN) };
            assert!(bytes.iter().all(|&byte| byte == 0), "{way:?}");
        }
    }

    #[test]
    fn another_thread_that_is_told_sees_the_zeroes() {
        use std::sync::atomic::AtomicUsize;
        const LEN: usize = LARGE_BYTES;
        let mut room = vec![0u64; LEN / 8];
        let start = NonNull::from(&mut room[..]).cast::<u8>();
        // Even: the reader's turn to look and to dirty; odd: the writer's turn to clear.
        let turn = AtomicUsize::new(0);
        let addr = start.as_ptr().expose_provenance();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut nr_late = 0;
                for round in 0..200 {
                    while turn.load(Ordering::Acquire) != 2 * round {
                        std::hint::spin_loop();
                    }
                    let words = std::ptr::with_exposed_provenance_mut::<u64>(addr);
                    // From the end: the last stores are the ones that could be late.
                    for word in (0..LEN / 8).rev() {
                        // SAFETY: it is this thread's turn, and the word is inside the room.
                        let word = unsafe { words.add(word) };
                        // SAFETY: as above.
                        nr_late += usize::from(unsafe { word.read() } != 0);
                        // SAFETY: as above.
                        unsafe { word.write(u64::MAX) };
                    }
                    turn.store(2 * round + 1, Ordering::Release);
                }
                nr_late
            });
            for round in 0..200 {
                while turn.load(Ordering::Acquire) != 2 * round + 1 {
                    std::hint::spin_loop();
                }
                let start =
                    NonNull::new(std::ptr::with_exposed_provenance_mut::<u8>(addr)).expect("not NULL");
                // SAFETY: it is this thread's turn.
                unsafe { zero(start, LEN) };
                turn.store(2 * round + 2, Ordering::Release);
            }
            assert_eq!(reader.join().expect("no panic"), 0, "words that were not zero yet");
        });
    }

    #[test]
    fn the_choice_is_a_way_that_is_here_and_stays() {
        let way = best_way();
        assert!(way.is_here());
        assert_eq!(best_way(), way);
        assert_eq!(Some(way), Way::ALL.iter().copied().find(|way| way.is_here()), "the first is the best");
    }

    /// Prints what each way comes to: `cargo test --release --lib each_way_clears -- --nocapture`.
    #[test]
    fn each_way_clears_whole_folios() {
        const LEN: usize = 2 << 20;
        const NR_FOLIOS: usize = 64;
        let room = Reservation::new(NR_FOLIOS * LEN, LEN).expect("room");
        // SAFETY: the reservation is this test's own.
        unsafe { mm::map_anonymous(room.base(), NR_FOLIOS * LEN) }.expect("memory");
        // SAFETY: just mapped.
        let _ = unsafe { mm::advise(room.base(), NR_FOLIOS * LEN, libc::MADV_HUGEPAGE) };
        for way in ways() {
            // SAFETY: just mapped.
            unsafe { room.base().write_bytes(1, NR_FOLIOS * LEN) };
            let mut times: Vec<f64> = (0..4 * NR_FOLIOS)
                .map(|count| {
                    let addr = room.at(count % NR_FOLIOS * LEN).expect("inside");
                    let start = Instant::now();
                    // SAFETY: mapped, and this processor has the way.
                    unsafe { zero_by(way, addr, LEN) };
                    start.elapsed().as_secs_f64()
                })
                .collect();
            // SAFETY: mapped, and written to by nobody now.
            let words = unsafe {
                std::slice::from_raw_parts(room.base().as_ptr().cast::<u64>(), NR_FOLIOS * LEN / 8)
            };
            assert!(words.iter().all(|&word| word == 0), "{way:?}");
            times.sort_by(f64::total_cmp);
            println!("{way:?}: {:.1} us for 2 MiB", times[times.len() / 2] * 1e6);
        }
    }
}
