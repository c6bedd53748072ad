//! The calling thread's `errno`, which a program must not see us change.

/// Returns `errno` of the calling thread.
pub(crate) fn get() -> i32 {
    // SAFETY: the pointer to the calling thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

/// Sets `errno` of the calling thread.
pub(crate) fn set(errno: i32) {
    // SAFETY: as in `get`.
    unsafe { *libc::__errno_location() = errno };
}
