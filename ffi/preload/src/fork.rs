//! fork, which fails where the child could not be given its copy of slow memory.

use crate::foreign::next_symbol;
use libc::{c_void, pid_t};
use std::sync::OnceLock;

type Fork = unsafe extern "C" fn() -> pid_t;

/// Makes a child process. See fork(2).
///
/// # Safety
/// As fork(2) demands of programs with several threads.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn fork() -> pid_t {
    static NEXT: OnceLock<Option<Fork>> = OnceLock::new();
    let next = *NEXT.get_or_init(|| {
        let found = next_symbol(c"fork");
        // SAFETY: the C library's function has this signature; NULL becomes None.
        unsafe { std::mem::transmute::<*mut c_void, Option<Fork>>(found) }
    });
    match next {
        // SAFETY: the caller's argument carries over.
        Some(next) => unsafe { daxtier::preload::fork(next) },
        None => {
            crate::set_errno(libc::ENOSYS);
            -1
        }
    }
}
