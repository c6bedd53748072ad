//! Looking before clearing: memory that is zero already is only read.

use super::zero;
use std::ptr::NonNull;

/// How much is looked at, and cleared where it is not zero, at a time: what is cleared right after was read into the
/// second-level cache, and is long enough for stores past the caches.
const PIECE_BYTES: usize = 256 << 10;
/// Bytes that are compared at a time with as many zeroes, which stay in the first-level cache.
const BLOCK_BYTES: usize = 4096;
type Block = [u64; BLOCK_BYTES / 8];
static ZEROES: Block = [0; BLOCK_BYTES / 8];

/// Makes a range read as zero by writing only to the pieces of it that do not.
///
/// # Safety
/// The range is mapped and writable, begins and ends on a page, and nobody else uses it meanwhile.
pub(crate) unsafe fn zero_unless_zero(addr: NonNull<u8>, len_bytes: usize) {
    debug_assert!(addr.as_ptr().addr().is_multiple_of(BLOCK_BYTES) && len_bytes.is_multiple_of(BLOCK_BYTES));
    for start in (0..len_bytes).step_by(PIECE_BYTES) {
        let piece_bytes = PIECE_BYTES.min(len_bytes - start);
        // SAFETY: `start` is below the length.
        let piece = unsafe { addr.add(start) };
        // SAFETY: the caller's duty.
        if !unsafe { is_zero(piece, piece_bytes) } {
            // SAFETY: the caller's duty.
            unsafe { zero(piece, piece_bytes) };
        }
    }
}

/// # Safety
/// The range consists of whole blocks that are mapped, and nobody writes to it.
unsafe fn is_zero(addr: NonNull<u8>, len_bytes: usize) -> bool {
    (0..len_bytes).step_by(BLOCK_BYTES).all(|start| {
        // SAFETY: `start` is below the length.
        let block = unsafe { addr.add(start) }.cast::<Block>();
        // SAFETY: mapped for its length, aligned as pages are, and written to by nobody: the caller's duty.
        let block = unsafe { block.as_ref() };
        // One memcmp of the C library.
        *block == ZEROES
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mm::{self, Reservation};
    use std::time::Instant;

    const LEN: usize = 2 << 20;

    fn room(len_bytes: usize) -> Reservation {
        let room = Reservation::new(len_bytes, LEN).expect("room");
        // SAFETY: the reservation is this test's own.
        unsafe { mm::map_anonymous(room.base(), len_bytes) }.expect("memory");
        room
    }

    #[test]
    fn one_byte_anywhere_is_found_and_cleared() {
        let room = room(LEN);
        // SAFETY: just mapped, and used through this slice only; the pointer below is made from it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(room.base().as_ptr(), LEN) };
        for at in (0..LEN).step_by(4093).chain([LEN - 1, PIECE_BYTES - 1, PIECE_BYTES]) {
            bytes[at] = 1;
            // SAFETY: the range is the slice's, which is borrowed.
            unsafe { zero_unless_zero(NonNull::from(&mut *bytes).cast(), LEN) };
            assert_eq!(bytes[at], 0, "at {at:#x}");
        }
        bytes.fill(0xa5);
        // SAFETY: as above. The last piece is a short one.
        unsafe { zero_unless_zero(NonNull::from(&mut *bytes).cast(), LEN - 4096) };
        assert!(bytes[..LEN - 4096].iter().all(|&byte| byte == 0));
        assert!(bytes[LEN - 4096..].iter().all(|&byte| byte == 0xa5), "beyond the range");
    }

    /// What is zero is not written to: memory that was never touched stays without pages of its own.
    #[test]
    fn what_is_zero_is_only_read() {
        let room = room(LEN);
        // SAFETY: just mapped.
        unsafe { mm::advise(room.base(), LEN, libc::MADV_NOHUGEPAGE) }.expect("advice");
        let faults = || {
            let stat = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
            let own = format!("{:x}-", room.base().as_ptr().addr());
            let lines = stat.lines().skip_while(|line| !line.starts_with(&own));
            let dirty = lines.into_iter().find_map(|line| line.strip_prefix("Private_Dirty:"));
            dirty.map(|kib| kib.trim().to_owned())
        };
        // SAFETY: mapped, and nobody else's.
        unsafe { zero_unless_zero(room.base(), LEN) };
        assert_eq!(faults().as_deref(), Some("0 kB"));
        // SAFETY: as above.
        unsafe { zero(room.base(), LEN) };
        assert_eq!(faults().as_deref(), Some("2048 kB"));
    }

    /// Prints what looking costs beside clearing: `cargo test --release --lib looking_beside_clearing -- --nocapture`.
    #[test]
    fn looking_beside_clearing() {
        const ALL: usize = 128 << 20;
        let room = room(ALL);
        // SAFETY: just mapped.
        let _ = unsafe { mm::advise(room.base(), ALL, libc::MADV_HUGEPAGE) };
        // SAFETY: just mapped.
        unsafe { room.base().write_bytes(1, ALL) };
        let measure = |what: &str, prepare: u8, work: unsafe fn(NonNull<u8>, usize)| {
            let mut times: Vec<f64> = (0..5)
                .map(|_| {
                    // SAFETY: mapped, and nobody else's.
                    unsafe { room.base().write_bytes(prepare, ALL) };
                    let start = Instant::now();
                    // SAFETY: as above.
                    unsafe { work(room.base(), ALL) };
                    start.elapsed().as_secs_f64()
                })
                .collect();
            times.sort_by(f64::total_cmp);
            println!("{what}: {:.1} ms for 128 MiB", times[2] * 1e3);
        };
        measure("cleared, dirty before", 1, zero);
        measure("cleared, zero before", 0, zero);
        measure("looked at and cleared, dirty before", 1, zero_unless_zero);
        measure("looked at, zero before", 0, zero_unless_zero);
        // SAFETY: mapped, and written to by nobody now.
        assert!(unsafe { is_zero(room.base(), ALL) });
    }
}
