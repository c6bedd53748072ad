//! Which processor this is, and how many there can be.

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
    let mut text = [0u8; 128];
    let last = read_possible(&mut text).and_then(last_number);
    last.map_or(FALLBACK, |cpu| cpu + 1).next_power_of_two().min(MAX_SHARDS)
}

fn read_possible(text: &mut [u8]) -> Option<&[u8]> {
    let path = c"/sys/devices/system/cpu/possible";
    // SAFETY: the path is NUL-terminated.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the buffer is valid for its length, and the descriptor was just opened.
    let len = unsafe { libc::read(fd, text.as_mut_ptr().cast(), text.len()) };
    // SAFETY: the descriptor is ours and closed once.
    unsafe { libc::close(fd) };
    text.get(..usize::try_from(len).ok()?)
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
