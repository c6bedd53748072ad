//! malloc straight into mimalloc: what the preload library is measured against.
//!
//! The same engine, the same features, the same compiler; no tiers. Loaded with `LD_PRELOAD` like the library that it
//! is compared with. For measurements only.

use libc::{c_int, c_void, size_t};
use libmimalloc_sys as mi;

/// As malloc(3).
///
/// # Safety
/// As malloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc(size: size_t) -> *mut c_void {
    // SAFETY: mi_malloc takes any size.
    unsafe { mi::mi_malloc(size) }
}

/// As calloc(3).
///
/// # Safety
/// As calloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calloc(count: size_t, size: size_t) -> *mut c_void {
    // SAFETY: mi_calloc takes any sizes and checks their product.
    unsafe { mi::mi_calloc(count, size) }
}

/// As realloc(3).
///
/// # Safety
/// As realloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, size: size_t) -> *mut c_void {
    // SAFETY: the caller passes NULL or a live block, all of which are mimalloc's.
    unsafe { mi::mi_realloc(block, size) }
}

/// As free(3).
///
/// # Safety
/// As free(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: the caller passes NULL or a live block, all of which are mimalloc's.
    unsafe { mi::mi_free(block) }
}

/// As posix_memalign(3).
///
/// # Safety
/// As posix_memalign(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: size_t, size: size_t) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<*mut c_void>()) {
        return libc::EINVAL;
    }
    // SAFETY: `align` is a power of two.
    let block = unsafe { mi::mi_malloc_aligned(size, align) };
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller passes a pointer that may be written.
    unsafe { out.write(block) };
    0
}

/// As aligned_alloc(3).
///
/// # Safety
/// As aligned_alloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aligned_alloc(align: size_t, size: size_t) -> *mut c_void {
    // SAFETY: mi_malloc_aligned checks the alignment itself.
    unsafe { mi::mi_malloc_aligned(size, align) }
}

/// As memalign(3).
///
/// # Safety
/// As memalign(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memalign(align: size_t, size: size_t) -> *mut c_void {
    // SAFETY: mi_malloc_aligned checks the alignment itself.
    unsafe { mi::mi_malloc_aligned(size, align) }
}

/// As malloc_usable_size(3).
///
/// # Safety
/// As malloc_usable_size(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(block: *const c_void) -> size_t {
    // SAFETY: the caller passes NULL or a live block, all of which are mimalloc's.
    unsafe { mi::mi_usable_size(block) }
}
