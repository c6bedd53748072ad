//! Which processor this is, and how many there can be.

use super::file;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most processors that per-CPU structures distinguish; beyond it processors share a line.
const MAX_SHARDS: usize = 256;
/// What is assumed when the kernel does not tell.
const FALLBACK: usize = 16;

/// Returns the number of the processor that runs the calling thread, 0 when the kernel does not tell. It may be
/// out of date at once.
pub(crate) fn current() -> usize {
    // SAFETY: sched_getcpu takes no argument.
    usize::try_from(unsafe { libc::sched_getcpu() }).unwrap_or(0)
}

/// Returns how many shards a per-CPU structure needs: a power of two that covers every possible processor.
/// Neither allocates nor uses stdio, so it works inside `malloc`.
pub(crate) fn nr_shards() -> usize {
    static KNOWN: AtomicUsize = AtomicUsize::new(0);
    // Relaxed, both: whoever finds nothing reads the same number.
    match KNOWN.load(Ordering::Relaxed) {
        0 => {
            let read = read_nr_shards();
            KNOWN.store(read, Ordering::Relaxed);
            read
        }
        known => known,
    }
}

fn read_nr_shards() -> usize {
    let mut text = [0u8; 128];
    let last = file::read_start(c"/sys/devices/system/cpu/possible", &mut text).and_then(last_number);
    last.map_or(FALLBACK, |cpu| cpu + 1).next_power_of_two().min(MAX_SHARDS)
}

/// Returns the last number of a list such as `0-3,8-11`.
fn last_number(text: &[u8]) -> Option<usize> {
    let digits = text.trim_ascii().rsplit(|b| !b.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_processor_is_read_from_a_list() {
        for (text, last) in [("0\n", Some(0)), ("0-3\n", Some(3)), ("0-3,8-11", Some(11)), ("\n", None)] {
            assert_eq!(last_number(text.as_bytes()), last, "{text:?}");
        }
    }

    #[test]
    fn shards_are_a_power_of_two() {
        let shards = nr_shards();
        assert!(shards.is_power_of_two() && shards <= MAX_SHARDS, "{shards}");
    }
}
