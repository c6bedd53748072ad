//! The dynamic loader: symbols of the whole process, and libraries that must stay.

use std::ffi::{CStr, c_void};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// Returns the first definition of `name` in the loader's global order, if any. May allocate: not for malloc's path.
pub(crate) fn find_symbol(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: `name` is NUL-terminated and lives through the call.
    NonNull::new(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
}

/// Keeps the library that holds `addr` loaded for the rest of the process. The program itself always stays, and
/// for it this does nothing. May allocate.
pub(crate) fn keep_loaded(addr: *const c_void) {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr reads no memory behind `addr`, and writes one Dl_info, for which there is room.
    if unsafe { libc::dladdr(addr, info.as_mut_ptr()) } == 0 {
        return;
    }
    // SAFETY: the structure was zeroed, which is valid for it, and then filled by dladdr.
    let info = unsafe { info.assume_init() };
    if info.dli_fname.is_null() {
        return;
    }
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: dladdr left a NUL-terminated name that belongs to the loader. RTLD_NOLOAD runs nobody's code. The
    // handle is dropped on purpose: the library stays.
    unsafe { libc::dlopen(info.dli_fname, flags) };
}
