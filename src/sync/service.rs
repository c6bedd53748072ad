//! Service sections: code of the library's own on a program's thread.
//!
//! While a thread is in service, allocations that reach a global allocator of ours are served from the private
//! heap (malloc's [shortcut](super::shortcut) is closed), so that backing a slot never allocates from the space that it
//! is about to extend; `errno` is kept; and the thread is inside the [gate](super::gate), so every lock that is only taken
//! in service is free in a forked child.

use super::{gate, here, shortcut};
use crate::sys;

/// Returns whether the calling thread is in service.
#[inline(always)]
pub(crate) fn is_set() -> bool {
    here::with(|here| here.in_service.get())
}

/// Runs `work` in service. Sections nest.
pub(crate) fn run<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(i32);
    impl Drop for Restore {
        fn drop(&mut self) {
            set(false);
            sys::errno::set(self.0);
        }
    }
    if is_set() {
        return work();
    }
    let errno = sys::errno::get();
    gate::run(|| {
        set(true);
        shortcut::close();
        let _restore = Restore(errno);
        work()
    })
}

fn set(is_in_service: bool) {
    here::with(|here| here.in_service.set(is_in_service));
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
