//! Service sections: code of the library's own on a program's thread.
//!
//! While a thread is in service, allocations that reach a global allocator of ours are served from the private
//! heap (malloc's [shortcut](super::shortcut) is closed), so that backing a slot never allocates from the space that it
//! is about to extend; `errno` is kept; and the thread is inside the [gate](super::gate), so every lock that is only taken
//! in service is free in a forked child.

use super::{gate, shortcut};
use crate::sys;
use std::cell::Cell;

thread_local! {
    static IN_SERVICE: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether the calling thread is in service.
#[inline(always)]
pub(crate) fn is_set() -> bool {
    IN_SERVICE.get()
}

/// Runs `work` in service. Sections nest.
pub(crate) fn run<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(i32);
    impl Drop for Restore {
        fn drop(&mut self) {
            IN_SERVICE.set(false);
            sys::errno::set(self.0);
        }
    }
    if IN_SERVICE.get() {
        return work();
    }
    let errno = sys::errno::get();
    gate::run(|| {
        IN_SERVICE.set(true);
        shortcut::close();
        let _restore = Restore(errno);
        work()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_nest_and_keep_errno() {
        sys::errno::set(libc::EAGAIN);
        run(|| {
            assert!(is_set() && gate::is_inside());
            sys::errno::set(libc::EIO);
            run(|| assert!(is_set()));
            assert!(is_set(), "an inner section must not end the outer one");
        });
        assert!(!is_set() && !gate::is_inside());
        assert_eq!(sys::errno::get(), libc::EAGAIN);
    }
}
