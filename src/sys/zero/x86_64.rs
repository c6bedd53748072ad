//! Streaming stores and `clzero`.
//!
//! Side by side on an AMD EPYC of the fourth generation AVX stores win over `clzero`, which wins over SSE2 stores and those
//! over `memset` (the test `each_way_clears_whole_folios` prints it); AVX-512 stores are no faster than AVX ones. So `clzero`
//! is for processors whose system does not keep AVX registers.

use std::arch::asm;
use std::arch::x86_64::{
    __cpuid, __m128i, __m256i, _mm_setzero_si128, _mm_sfence, _mm_stream_si128, _mm256_setzero_si256,
    _mm256_stream_si256,
};
use std::ptr::NonNull;

/// A way to clear whole lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Streaming stores of 32 bytes.
    Avx,
    /// AMD's `clzero`, which clears a line without reading it.
    ClZero,
    /// Streaming stores of 16 bytes: every x86-64 processor has them.
    Sse2,
}

/// A line: what `clzero` clears, and what fills a write-combining buffer.
const LINE_BYTES: usize = 64;

impl Way {
    /// All ways, the best first and one that works everywhere last.
    pub(super) const ALL: &[Way] = &[Way::Avx, Way::ClZero, Way::Sse2];

    /// Returns whether this processor has the way. May take long (`cpuid` in a virtual machine).
    pub(super) fn is_here(self) -> bool {
        match self {
            Way::Avx => std::is_x86_feature_detected!("avx"),
            Way::ClZero => has_clzero(),
            Way::Sse2 => true,
        }
    }

    /// Returns what `zero_blocks` clears at a time.
    pub(super) fn block_bytes(self) -> usize {
        LINE_BYTES
    }

    /// Clears `[first, last)`.
    ///
    /// # Safety
    /// Both are multiples of a block, the range is mapped writable and the caller's alone, and this processor has the way.
    pub(super) unsafe fn zero_blocks(self, first: NonNull<u8>, last: NonNull<u8>) {
        match self {
            // SAFETY: the caller's promise.
            Way::Avx => unsafe { stream_32(first, last) },
            // SAFETY: the caller's promise.
            Way::ClZero => unsafe { clzero(first, last) },
            // SAFETY: the caller's promise.
            Way::Sse2 => unsafe { stream_16(first, last) },
        }
        // Nothing else orders these stores against later ones.
        // SAFETY: SSE is a part of x86-64.
        unsafe { _mm_sfence() };
    }
}

/// Whether the processor has `clzero`, for lines of the length that we take it to clear.
fn has_clzero() -> bool {
    const FEATURES: u32 = 0x8000_0008;
    const CLZERO: u32 = 1 << 0;
    // Byte 1 of EBX: the length of a line in units of 8 bytes.
    let line_bytes = (__cpuid(1).ebx >> 8 & 0xff) as usize * 8;
    line_bytes == LINE_BYTES && __cpuid(0x8000_0000).eax >= FEATURES && __cpuid(FEATURES).ebx & CLZERO != 0
}

/// # Safety
/// As for [`Way::zero_blocks`].
#[target_feature(enable = "avx")]
unsafe fn stream_32(first: NonNull<u8>, last: NonNull<u8>) {
    let zero = _mm256_setzero_si256();
    let mut line = first;
    while line < last {
        let half = line.cast::<__m256i>().as_ptr();
        // SAFETY: the first half of a line of the range, aligned as lines are.
        unsafe { _mm256_stream_si256(half, zero) };
        // SAFETY: the line has two halves.
        let half = unsafe { half.add(1) };
        // SAFETY: as for the first half.
        unsafe { _mm256_stream_si256(half, zero) };
        // SAFETY: `line` was below `last`, so a whole line follows.
        line = unsafe { line.add(LINE_BYTES) };
    }
}

/// # Safety
/// As for [`Way::zero_blocks`].
unsafe fn stream_16(first: NonNull<u8>, last: NonNull<u8>) {
    // SAFETY: SSE2 is a part of x86-64.
    let zero = unsafe { _mm_setzero_si128() };
    let mut part = first.cast::<__m128i>();
    while part < last.cast() {
        // SAFETY: a part of the range, which consists of whole lines.
        unsafe { _mm_stream_si128(part.as_ptr(), zero) };
        // SAFETY: `part` was below `last`, so a whole part follows.
        part = unsafe { part.add(1) };
    }
}

/// # Safety
/// As for [`Way::zero_blocks`].
unsafe fn clzero(first: NonNull<u8>, last: NonNull<u8>) {
    let mut line = first;
    while line < last {
        // SAFETY: clears the line at rax, which is one of the range.
        unsafe { asm!("clzero", in("rax") line.as_ptr(), options(nostack, preserves_flags)) };
        // SAFETY: `line` was below `last`, so a whole line follows.
        line = unsafe { line.add(LINE_BYTES) };
    }
}
