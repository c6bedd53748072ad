//! malloc for unmodified programs: `LD_PRELOAD=libdaxtier_preload.so PROGRAM`.
//!
//! The C allocation functions, each a line or two over the process's pool; those that programs call most are in `malloc.c`. A pointer that is not the library's own
//! (from before it was loaded, from another copy of the C library) is left to its owner: `free` ignores it,
//! `realloc` copies it. Nothing is ever torn down: programs free until after their exit handlers. Besides, `memory` stands in
//! for calls that a program may make on its blocks, `descriptors` for those that could close the library's own, `fork` for the
//! function of that name and `exit` for those that end a program without its exit handlers; `next` has what they stand in
//! for.

mod descriptors;
mod exit;
mod foreign;
mod fork;
mod memory;
mod next;
mod private;

use daxtier::NotABlock;
use daxtier::preload as process;
use daxtier::runtime::link::RuntimeV1;
use daxtier::runtime::own::OwnRuntime;
use libc::{c_int, c_void, size_t};
use std::ptr::{self, NonNull};

/// What the library itself allocates comes from ordinary memory, never from what it serves.
#[global_allocator]
static PRIVATE: private::PrivateHeap = private::PrivateHeap;

/// Opens the pool before `main`, so that a wrong configuration stops even a program that never allocates. Earlier
/// allocations open it themselves.
#[used]
#[unsafe(link_section = ".init_array")]
static OPEN: extern "C" fn() = {
    extern "C" fn open() {
        next::look_up();
        process::pool();
    }
    open
};

/// Every block is a multiple of this, as C promises for any type.
const MIN_ALIGN: usize = 16;
const PAGE: usize = 4096;

/// The table by which other copies of the library in the process find this one.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the name is a symbol that other copies look up")]
pub static daxtier_runtime_v1: RuntimeV1 =
    RuntimeV1::of::<OwnRuntime>(c"preload", daxtier::runtime::own::VERSION);

// malloc.c.
unsafe extern "C" {
    safe fn malloc(size: size_t) -> *mut c_void;
}

/// Serves what malloc's shortest path does not.
#[unsafe(no_mangle)]
extern "C" fn daxtier_preload_malloc_slow(size: size_t) -> *mut c_void {
    process::alloc_slow(size, MIN_ALIGN, false).cast()
}

/// Serves what calloc's shortest path does not.
#[unsafe(no_mangle)]
extern "C" fn daxtier_preload_zalloc_slow(size: size_t) -> *mut c_void {
    process::alloc_slow(size, MIN_ALIGN, true).cast()
}

/// Frees what free's shortest path does not.
///
/// # Safety
/// `block` is NULL, or a live block of any allocator of the process that nobody uses any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn daxtier_preload_free_slow(block: *mut c_void) {
    let Some(block) = NonNull::new(block.cast::<u8>()) else { return };
    // SAFETY: the caller argued it.
    match unsafe { process::free(block) } {
        Ok(()) => {}
        // SAFETY: as above.
        Err(NotABlock::Foreign { .. }) => unsafe { foreign::free(block.as_ptr().cast()) },
        Err(error) => process::complain(error),
    }
}

/// Resizes a block. See realloc(3); a size of 0 gives a block of its own.
///
/// # Safety
/// `block` is NULL, or a live block of any allocator of the process that nobody uses meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, size: size_t) -> *mut c_void {
    let Some(old) = NonNull::new(block.cast::<u8>()) else { return malloc(size) };
    // SAFETY: the caller argued it.
    match unsafe { process::realloc(old, size, MIN_ALIGN) } {
        Ok(fresh) => fresh.cast(),
        Err(NotABlock::Foreign { .. }) => {
            let fresh = malloc(size);
            if let Some(fresh) = NonNull::new(fresh.cast::<u8>()) {
                let keep = foreign::usable_size(block).min(size);
                // SAFETY: the old block holds `keep` bytes, as its owner says, and a fresh one overlaps no live one.
                unsafe { old.copy_to_nonoverlapping(fresh, keep) };
                // SAFETY: the caller hands the block over.
                unsafe { foreign::free(block) };
            }
            fresh
        }
        Err(error) => {
            process::complain(error);
            set_errno(libc::EINVAL);
            ptr::null_mut()
        }
    }
}

/// Allocates `size` bytes at a multiple of `align`. See posix_memalign(3).
///
/// # Safety
/// `out` points to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: size_t, size: size_t) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<*mut c_void>()) {
        return libc::EINVAL;
    }
    let block = process::alloc(size, align.max(MIN_ALIGN), false);
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller argued it.
    unsafe { out.write(block.cast()) };
    0
}

/// Allocates `size` bytes at a multiple of `align`. See aligned_alloc(3).
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: size_t, size: size_t) -> *mut c_void {
    memalign(align, size)
}

/// Allocates `size` bytes at a multiple of `align`. See memalign(3).
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: size_t, size: size_t) -> *mut c_void {
    if !align.is_power_of_two() {
        set_errno(libc::EINVAL);
        return ptr::null_mut();
    }
    process::alloc(size, align.max(MIN_ALIGN), false).cast()
}

/// Allocates `size` bytes at a multiple of the page size. See valloc(3).
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: size_t) -> *mut c_void {
    memalign(PAGE, size)
}

/// Allocates whole pages. See pvalloc(3).
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: size_t) -> *mut c_void {
    match size.checked_next_multiple_of(PAGE) {
        Some(pages) => memalign(PAGE, pages.max(PAGE)),
        None => daxtier_preload_too_large(),
    }
}

/// Returns how many bytes a block holds; 0 for NULL. See malloc_usable_size(3).
///
/// # Safety
/// `block` is NULL or a live block of any allocator of the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> size_t {
    NonNull::new(block.cast())
        .map_or(0, |known| process::usable_size(known).unwrap_or_else(|_| foreign::usable_size(block)))
}

/// Refuses a size that no number holds.
#[cold]
#[unsafe(no_mangle)]
extern "C" fn daxtier_preload_too_large() -> *mut c_void {
    set_errno(libc::ENOMEM);
    ptr::null_mut()
}

#[cold]
fn set_errno(errno: c_int) {
    // SAFETY: the function takes nothing and cannot fail.
    let location = unsafe { libc::__errno_location() };
    // SAFETY: the pointer leads to the calling thread's errno, valid as long as the thread.
    unsafe { *location = errno };
}
