//! Blocks of other allocators.

use libc::{c_void, size_t};
use std::ffi::CStr;
use std::sync::OnceLock;

type UsableSize = unsafe extern "C" fn(*mut c_void) -> size_t;

/// Returns how many bytes a block of the C library holds, as the C library says; 0 where it can't be asked.
pub(crate) fn usable_size(block: *mut c_void) -> usize {
    static NEXT: OnceLock<Option<UsableSize>> = OnceLock::new();
    let next = *NEXT.get_or_init(|| {
        let found = next_symbol(c"malloc_usable_size");
        // SAFETY: the C library's function has this signature; NULL becomes None.
        unsafe { std::mem::transmute::<*mut c_void, Option<UsableSize>>(found) }
    });
    // SAFETY: the block is not ours, so it is one of the allocator that stands behind us.
    next.map_or(0, |next| unsafe { next(block) })
}

/// Finds the definition of a symbol that would be in force without this library; NULL when there is none.
pub(crate) fn next_symbol(name: &CStr) -> *mut c_void {
    // SAFETY: the name is NUL-terminated; RTLD_NEXT needs no handle.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}
