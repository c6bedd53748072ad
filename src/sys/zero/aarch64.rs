//! `dc zva`: clears a block of memory without reading it.
//!
//! The block's length is the processor's to say. The instruction is ordered like ordinary stores of the thread to the
//! same memory (Arm Architecture Reference Manual, "Data cache zero instruction"), so it needs no fence of its own.

use std::arch::asm;
use std::ptr::NonNull;

/// A way to clear whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// `dc zva`.
    Zva,
    /// Ordinary stores.
    Plain,
}

impl Way {
    /// All ways, the best first and one that works everywhere last.
    pub(super) const ALL: &[Way] = &[Way::Zva, Way::Plain];

    /// Returns whether the way is open here.
    pub(super) fn is_here(self) -> bool {
        // Bit 4: the instruction is not to be used.
        self == Way::Plain || dczid() >> 4 & 1 == 0
    }

    /// Returns what `zero_blocks` clears at a time.
    pub(super) fn block_bytes(self) -> usize {
        match self {
            // The low four bits: the base-2 logarithm of the block's length in words of 4 bytes.
            Way::Zva => 4 << (dczid() & 0xf),
            Way::Plain => 64,
        }
    }

    /// Clears `[first, last)`.
    ///
    /// # Safety
    /// Both are multiples of a block, the range is mapped writable and the caller's alone, and the way is open here.
    pub(super) unsafe fn zero_blocks(self, first: NonNull<u8>, last: NonNull<u8>) {
        if self == Way::Plain {
            let len_bytes = last.as_ptr().addr() - first.as_ptr().addr();
            // SAFETY: the caller's promise.
            return unsafe { first.write_bytes(0, len_bytes) };
        }
        let block_bytes = self.block_bytes();
        let mut block = first;
        while block < last {
            // SAFETY: clears a block of the range.
            unsafe {
                asm!("dc zva, {block}", block = in(reg) block.as_ptr(), options(nostack, preserves_flags));
            }
            // SAFETY: `block` was below `last`, so a whole block follows.
            block = unsafe { block.add(block_bytes) };
        }
    }
}

/// Reads what the processor says of `dc zva`.
fn dczid() -> u64 {
    let dczid: u64;
    // SAFETY: reads a register that user code may read.
    unsafe {
        asm!("mrs {dczid}, dczid_el0", dczid = out(reg) dczid, options(nostack, nomem, preserves_flags))
    };
    dczid
}
