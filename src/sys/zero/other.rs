//! Architectures without a way past the caches that we know: ordinary stores.

use std::ptr::NonNull;

/// A way to clear whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Ordinary stores.
    Plain,
}

impl Way {
    /// All ways.
    pub(super) const ALL: &[Way] = &[Way::Plain];

    /// Returns whether the way is open here.
    pub(super) fn is_here(self) -> bool {
        true
    }

    /// Returns what `zero_blocks` clears at a time.
    pub(super) fn block_bytes(self) -> usize {
        64
    }

    /// Clears `[first, last)`.
    ///
    /// # Safety
    /// The range is mapped writable and the caller's alone.
    pub(super) unsafe fn zero_blocks(self, first: NonNull<u8>, last: NonNull<u8>) {
        let len_bytes = last.as_ptr().addr() - first.as_ptr().addr();
        // SAFETY: the caller's promise.
        unsafe { first.write_bytes(0, len_bytes) };
    }
}
