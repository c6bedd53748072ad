//! A futex lock for the malloc path.
//!
//! [`Mutex`] guards a value; it never allocates, never logs, and is unlocked by hand around fork. The
//! algorithm is the three-state futex lock of Ulrich Drepper's "Futexes Are Tricky".
//! Progress: blocking. A holder that is descheduled delays the others; critical sections are short.
//!
//! # Protocol
//! | state | meaning | leaves to |
//! |---|---|---|
//! | 0 | free | 1 by the CAS of `lock` |
//! | 1 | held, nobody sleeps | 0 by `unlock`; 2 by a thread about to sleep |
//! | 2 | held, somebody may sleep | 0 by `unlock`, which then wakes one |
//!
//! # Invariants
//! I1: the value is touched only between a transition 0 -> 1 or 0 -> 2 and the next transition to 0, by the
//! thread that made the first.

use super::atomic::{AtomicU32, Ordering};
use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;
/// How often a thread looks again before it sleeps.
#[cfg(not(loom))]
const SPINS: u32 = 64;

/// A value behind a futex lock.
pub(crate) struct Mutex<T> {
    /// See the module's protocol. Written by every locker and unlocker; publishes `value`.
    state: AtomicU32,
    value: UnsafeCell<T>,
    /// Stands for the value in models: loom reports accesses that the lock does not order.
    #[cfg(loom)]
    watch: loom::cell::UnsafeCell<()>,
}

// SAFETY: the lock hands the value to one thread at a time (I1), so sending the lock sends the value.
unsafe impl<T: Send> Send for Mutex<T> {}
// SAFETY: shared access to the lock gives exclusive access to the value, one thread at a time (I1).
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// Makes a free lock around `value`.
    #[cfg(not(loom))]
    pub(crate) const fn new(value: T) -> Mutex<T> {
        Mutex { state: AtomicU32::new(FREE), value: UnsafeCell::new(value) }
    }

    /// Makes a free lock around `value`.
    #[cfg(loom)]
    pub(crate) fn new(value: T) -> Mutex<T> {
        let watch = loom::cell::UnsafeCell::new(());
        Mutex { state: AtomicU32::new(FREE), value: UnsafeCell::new(value), watch }
    }

    /// Waits until the lock is free and takes it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.lock_raw();
        MutexGuard { mutex: self }
    }

    /// Takes the lock without a guard; [`unlock_raw`](Mutex::unlock_raw) ends it. For runs of locks and for fork.
    pub(crate) fn lock_raw(&self) {
        // Acquire: pairs with the Release of unlock_raw, so the former holder's writes are seen.
        let fast = self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
        if fast.is_err() {
            self.lock_contended();
        }
    }

    #[cold]
    fn lock_contended(&self) {
        #[cfg(not(loom))]
        for _ in 0..SPINS {
            // Relaxed: only a hint whether to try; the CAS orders.
            if self.state.load(Ordering::Relaxed) == FREE
                && self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return;
            }
            std::hint::spin_loop();
        }
        // Acquire: as in lock_raw. Taking the lock as CONTENDED may cost one needless wake-up, never a lost one.
        while self.state.swap(CONTENDED, Ordering::Acquire) != FREE {
            wait(&self.state, CONTENDED);
        }
    }

    /// Gives the lock back. The caller took it with [`lock_raw`](Mutex::lock_raw), or is the child of a thread
    /// that did.
    pub(crate) fn unlock_raw(&self) {
        // Release: pairs with the Acquire of lock_raw.
        if self.state.swap(FREE, Ordering::Release) == CONTENDED {
            wake_one(&self.state);
        }
    }

    /// Makes a guard for a lock that the calling thread took with [`lock_raw`](Mutex::lock_raw), and of which it
    /// has no other guard now.
    pub(crate) fn adopt(&self) -> MutexGuard<'_, T> {
        // Relaxed: our own lock_raw ordered.
        debug_assert_ne!(self.state.load(Ordering::Relaxed), FREE);
        MutexGuard { mutex: self }
    }
}

#[cfg(not(loom))]
fn wait(word: &AtomicU32, expected: u32) {
    crate::sys::futex::wait(word, expected, None);
}

#[cfg(not(loom))]
fn wake_one(word: &AtomicU32) {
    crate::sys::futex::wake(word, 1);
}

#[cfg(loom)]
fn wait(_word: &AtomicU32, _expected: u32) {
    loom::thread::yield_now();
}

#[cfg(loom)]
fn wake_one(_word: &AtomicU32) {}

/// A lock that is held; it is given back on drop.
pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
}

impl<T> MutexGuard<'_, T> {
    /// Drops the guard and keeps the lock, as if it had been taken with [`lock_raw`](Mutex::lock_raw).
    pub(crate) fn keep_locked(self) {
        std::mem::forget(self);
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        #[cfg(loom)]
        self.mutex.watch.with(|_| ());
        // SAFETY: the guard exists only while its thread holds the lock (I1).
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        #[cfg(loom)]
        self.mutex.watch.with_mut(|_| ());
        // SAFETY: the guard exists only while its thread holds the lock (I1), and is borrowed mutably.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.mutex.unlock_raw();
    }
}

/// A [`Mutex`] that can stand in a static: loom's atomics have no const constructor, so models get a lock that
/// loom does not see.
#[cfg(not(loom))]
pub(crate) type StaticMutex<T> = Mutex<T>;

#[cfg(loom)]
pub(crate) use for_loom::StaticMutex;

#[cfg(loom)]
mod for_loom {
    /// The lock of statics in models: the standard one, outside loom's sight.
    pub(crate) struct StaticMutex<T>(std::sync::Mutex<T>);

    impl<T> StaticMutex<T> {
        pub(crate) const fn new(value: T) -> StaticMutex<T> {
            StaticMutex(std::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        pub(crate) fn lock_raw(&self) {
            std::mem::forget(self.lock());
        }

        pub(crate) fn unlock_raw(&self) {}
    }
}

impl<T> std::fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mutex")
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn increments_under_the_lock_are_not_lost() {
        let mutex = Mutex::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        *mutex.lock() += 1;
                    }
                });
            }
        });
        assert_eq!(*mutex.lock(), 200_000);
    }

    #[test]
    fn a_sleeper_is_woken_when_the_lock_is_given_back() {
        let mutex = Mutex::new(false);
        std::thread::scope(|scope| {
            let mut guard = mutex.lock();
            let sleeper = scope.spawn(|| *mutex.lock());
            std::thread::sleep(std::time::Duration::from_millis(30));
            *guard = true;
            drop(guard);
            assert!(sleeper.join().expect("the sleeper does not panic"));
        });
    }

    #[test]
    fn locking_keeps_errno() {
        let mutex = Mutex::new(());
        std::thread::scope(|scope| {
            let guard = mutex.lock();
            let sleeper = scope.spawn(|| {
                crate::sys::errno::set(123);
                drop(mutex.lock());
                crate::sys::errno::get()
            });
            std::thread::sleep(std::time::Duration::from_millis(30));
            drop(guard);
            assert_eq!(sleeper.join().expect("the sleeper does not panic"), 123);
        });
    }
}
