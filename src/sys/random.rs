//! Random numbers of the kernel.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns a word that others cannot guess; before the kernel has gathered randomness, one that they can hardly guess.
pub(crate) fn word() -> usize {
    let mut word = 0usize;
    let len_bytes = size_of::<usize>();
    // SAFETY: the kernel writes at most as many bytes as the word has.
    let got = unsafe { libc::getrandom((&raw mut word).cast(), len_bytes, libc::GRND_NONBLOCK) };
    if usize::try_from(got) == Ok(len_bytes) {
        return word;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as usize);
    (now ^ (&raw const word).addr()).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_differ() {
        assert_ne!(super::word(), super::word());
    }
}
