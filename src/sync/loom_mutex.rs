//! Model of the futex lock: two threads never touch the value at the same time, and both get it.

use super::Mutex;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

#[test]
fn loom_mutex_excludes() {
    loom::model(|| {
        let mutex = Arc::new(Mutex::new(UnsafeCell::new(0)));
        let add = |mutex: &Mutex<UnsafeCell<u32>>| {
            let guard = mutex.lock();
            // SAFETY: the lock is held; loom checks that it excludes.
            guard.with_mut(|value| unsafe { *value += 1 });
        };
        let other = {
            let mutex = mutex.clone();
            thread::spawn(move || add(&mutex))
        };
        add(&mutex);
        other.join().expect("the other does not panic");
        // SAFETY: the other thread is gone.
        mutex.lock().with(|value| unsafe { assert_eq!(*value, 2) });
    });
}
