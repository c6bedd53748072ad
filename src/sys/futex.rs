//! Waiting on a word, for the locks of `sync`.
//!
//! Thin wrappers over FUTEX_WAIT and FUTEX_WAKE, private to the process. Both keep `errno` as it was, because
//! they run inside `malloc` and `free`.

use super::errno;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while `*word` is `expected`, until a wake-up, a signal or `timeout`. Callers re-check the word.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let limit = timeout.map(|t| libc::timespec {
        tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(t.subsec_nanos() as i32),
    });
    let limit_ptr = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    preserving_errno(|| {
        // SAFETY: `word` is a live, aligned 32-bit word and `limit_ptr` is NULL or points at `limit` above.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                expected,
                limit_ptr,
            )
        };
    });
}

/// Wakes up to `count` threads that sleep on `word`.
pub(crate) fn wake(word: &AtomicU32, count: i32) {
    preserving_errno(|| {
        // SAFETY: `word` is a live, aligned 32-bit word.
        unsafe {
            libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, count)
        };
    });
}

fn preserving_errno(call: impl FnOnce()) {
    let saved = errno::get();
    call();
    errno::set(saved);
}
