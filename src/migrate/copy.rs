//! Copying a slot past the caches.
//!
//! What is demoted is cold, and what is promoted is 2 MiB: neither should push the program's data out of the caches.
//! Non-temporal stores also spare the reading of what they overwrite.

use crate::space::SLOT_BYTES;
use std::ptr::NonNull;

/// Copies a slot's length. The stores are visible to everybody when the call returns.
///
/// # Safety
/// Both ranges are mapped, aligned to 16 bytes and apart from each other. Nobody writes to `from`, and nobody else uses
/// `to`.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn copy_slot(from: NonNull<u8>, to: NonNull<u8>) {
    use std::arch::x86_64::{__m128i, _mm_sfence, _mm_stream_si128};
    const WORDS: usize = SLOT_BYTES / size_of::<__m128i>();
    // SAFETY: mapped, aligned and written by nobody, as the caller argued; any bytes are a valid vector.
    let from = unsafe { std::slice::from_raw_parts(from.as_ptr().cast::<__m128i>(), WORDS) };
    // SAFETY: mapped, aligned and used by nobody else, as the caller argued.
    let to = unsafe { std::slice::from_raw_parts_mut(to.as_ptr().cast::<__m128i>(), WORDS) };
    for (to, from) in to.iter_mut().zip(from) {
        // SAFETY: SSE2 is a part of x86-64; the reference is aligned and writable.
        unsafe { _mm_stream_si128(to, *from) };
    }
    // Streaming stores are ordered by nothing else.
    // SAFETY: SSE is a part of x86-64.
    unsafe { _mm_sfence() };
}

/// Copies a slot's length.
///
/// # Safety
/// As for x86-64.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn copy_slot(from: NonNull<u8>, to: NonNull<u8>) {
    // SAFETY: the caller's duty.
    unsafe { from.copy_to_nonoverlapping(to, SLOT_BYTES) };
}
