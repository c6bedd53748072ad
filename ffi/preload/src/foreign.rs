//! Blocks of other allocators: of other copies of daxtier in the process, which are known, and of the rest, which is left
//! alone.

use daxtier::runtime::link;
use libc::{c_void, size_t};
use std::ffi::CStr;
use std::sync::OnceLock;

type UsableSize = unsafe extern "C" fn(*mut c_void) -> size_t;

/// Frees a block of another copy of daxtier; a block of any other allocator stays, since its allocator is not known.
///
/// # Safety
/// `block` is a live block that nobody uses any more.
#[cold]
pub(crate) unsafe fn free(block: *mut c_void) {
    if let Some(owner) = link::attached_owner(block.cast()) {
        // SAFETY: the owner knows the block, and the caller argued it.
        unsafe { (owner.free)(block) };
    }
}

/// Returns how many bytes a block holds, as another copy of daxtier or the C library says; 0 where neither can be asked.
pub(crate) fn usable_size(block: *mut c_void) -> usize {
    if let Some(owner) = link::attached_owner(block.cast()) {
        let mut size = 0;
        // SAFETY: the owner knows the block, and `size` has room for the answer.
        let code = unsafe { (owner.usable_size)(block, &raw mut size) };
        return if code == 0 { size } else { 0 };
    }
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
