//! Service sections: code of the library's own on a program's thread.
//!
//! While a thread is in service, allocations that reach a global allocator of ours are served from the private
//! heap, so that backing a slot never allocates from the space that it is about to extend; `errno` is kept; and
//! the process does not fork: [`exclude`] waits until no thread is in service, so every lock that is only taken
//! in service is free in a forked child.
//!
//! # Protocol
//! The gate is a readers-writer lock. The outermost section of a thread holds it for reading, inner ones see the
//! thread's flag and do not touch it, since a reader that asks again behind a waiting writer would deadlock. A fork
//! holds it for writing, from its prepare handler to the handler in the parent and in the child.

use crate::sys;
use std::cell::Cell;
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

thread_local! {
    static IN_SERVICE: Cell<bool> = const { Cell::new(false) };
}

static GATE: RwLock<()> = RwLock::new(());

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
    let gate = GATE.read().unwrap_or_else(PoisonError::into_inner);
    IN_SERVICE.set(true);
    // Dropped in reverse order: first the flag goes, then the gate opens.
    let _gate = gate;
    let _restore = Restore(errno);
    work()
}

/// Waits until no thread is in service and keeps all out until the guard is dropped. For fork.
///
/// The caller is not in service.
pub(crate) fn exclude() -> RwLockWriteGuard<'static, ()> {
    GATE.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_nest_and_keep_errno() {
        sys::errno::set(libc::EAGAIN);
        run(|| {
            assert!(is_set());
            sys::errno::set(libc::EIO);
            run(|| assert!(is_set()));
            assert!(is_set(), "an inner section must not end the outer one");
        });
        assert!(!is_set());
        assert_eq!(sys::errno::get(), libc::EAGAIN);
    }
}
