//! The calling thread's `errno`, which a program must not see us change.

/// Returns `errno` of the calling thread.
pub(crate) fn get() -> i32 {
    // SAFETY: the pointer leads to the calling thread's errno, valid as long as the thread.
    unsafe { *location() }
}

/// Sets `errno` of the calling thread.
pub(crate) fn set(errno: i32) {
    // SAFETY: as in `get`.
    unsafe { *location() = errno };
}

fn location() -> *mut i32 {
    // SAFETY: the function takes nothing and cannot fail.
    unsafe { libc::__errno_location() }
}
