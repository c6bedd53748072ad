//! Memory that the machine has found damaged, by its addresses.
//!
//! Written by the signal handler, looked up when memory is given back. An entry is the start of the damaged range with the
//! binary logarithm of its length in the low bits, which the start has no use for; 0 is none.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const SHIFT_MASK: usize = 63;
const PAGE_SHIFT: u32 = 12;

/// More damage than a machine lives to see. What does not fit is forgotten: the page may be handed out again, and faults.
static ENTRIES: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];
static IS_ANY: AtomicBool = AtomicBool::new(false);

/// Notes that 2^shift bytes around an address are damaged. For a signal handler.
pub(super) fn note(addr: usize, shift: u32) {
    let shift = shift.clamp(PAGE_SHIFT, 40);
    let entry = addr >> shift << shift | shift as usize;
    // Relaxed throughout: whoever gives the memory back learned of its state from this thread, or does not care.
    if ENTRIES.iter().any(|known| known.load(Ordering::Relaxed) == entry) {
        return;
    }
    let _ = ENTRIES
        .iter()
        .any(|free| free.compare_exchange(0, entry, Ordering::Relaxed, Ordering::Relaxed).is_ok());
    IS_ANY.store(true, Ordering::Relaxed);
}

/// Whether a byte of the range is damaged. One load while nothing is.
#[inline]
pub(crate) fn is_damaged(range: impl FnOnce() -> Option<Range<usize>>) -> bool {
    IS_ANY.load(Ordering::Relaxed) && range().is_some_and(|range| find(&range).next().is_some())
}

/// Forgets what is known of addresses, behind which other memory will be.
pub(crate) fn forget(range: &Range<usize>) {
    find(range).for_each(|entry| entry.store(0, Ordering::Relaxed));
}

fn find(range: &Range<usize>) -> impl Iterator<Item = &'static AtomicUsize> {
    ENTRIES.iter().filter(move |entry| {
        let entry = entry.load(Ordering::Relaxed);
        let (start, len_bytes) = (entry & !SHIFT_MASK, 1 << (entry & SHIFT_MASK));
        entry != 0 && start < range.end && range.start < start + len_bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_damage_is_damaged_until_it_is_forgotten() {
        // Addresses that nobody has.
        const BASE: usize = 1 << 60;
        let is_damaged = |start: usize, end: usize| is_damaged(|| Some(BASE + start..BASE + end));
        assert!(!is_damaged(0, 8192));
        note(BASE + 4100, 0);
        note(BASE + 4200, 12);
        assert!(is_damaged(0, 8192) && is_damaged(8191, 8192) && is_damaged(4000, 4097));
        assert!(!is_damaged(0, 4096) && !is_damaged(8192, 9000));
        note(BASE + (5 << 21) + 77, 21);
        assert!(!is_damaged(6 << 21, 7 << 21) && is_damaged(5 << 21, (5 << 21) + 1));
        forget(&(BASE..BASE + 8192));
        assert!(!is_damaged(0, 8192) && is_damaged(5 << 21, 6 << 21));
        forget(&(BASE..BASE + (1 << 30)));
        assert!(!is_damaged(0, 1 << 30));
    }
}
