//! The only system calls of the crate.
//!
//! Thin, checked wrappers: arguments keep their units, failures become [`SysError`](crate::error::SysError),
//! and nothing here allocates or keeps state. `mm` maps and advises memory, `file` opens descriptors that stay
//! out of the program's way.

pub(crate) mod file;
pub(crate) mod futex;
pub(crate) mod mm;
pub(crate) mod thread;

/// Returns `errno` of the calling thread.
pub(crate) fn errno() -> i32 {
    // SAFETY: the pointer to the calling thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

/// Sets `errno` of the calling thread.
pub(crate) fn set_errno(errno: i32) {
    // SAFETY: as in `errno`.
    unsafe { *libc::__errno_location() = errno };
}
