//! Models of `PercpuRef`: two or three threads, one property each.

use super::PercpuRef;
use super::percpu_ref::Remaining;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

fn live() -> PercpuRef {
    let count = PercpuRef::new_drained(2);
    count.recycle();
    count
}

/// The thing that the count protects: freed at zero, and loom reports an access that races with that.
struct Guarded {
    count: PercpuRef,
    zeroes: AtomicUsize,
    payload: UnsafeCell<u32>,
}

impl Guarded {
    fn new() -> Arc<Guarded> {
        Arc::new(Guarded { count: live(), zeroes: AtomicUsize::new(0), payload: UnsafeCell::new(0) })
    }

    fn note(&self, remaining: Remaining) {
        if remaining == Remaining::Zero {
            self.zeroes.fetch_add(1, Ordering::Relaxed);
            // SAFETY: at zero nobody else may touch the payload; loom checks exactly that.
            self.payload.with_mut(|p| unsafe { *p += 1 });
        }
    }

    fn use_payload(&self) {
        // SAFETY: a reference is held; loom checks that zero does not race with it.
        self.payload.with(|p| unsafe { assert_eq!(*p, 0) });
    }
}

#[test]
fn loom_percpu_kill_against_get_and_put_sees_zero_once_and_last() {
    loom::model(|| {
        let shared = Guarded::new();
        let user = {
            let shared = shared.clone();
            thread::spawn(move || {
                if shared.count.tryget_live_at(0) {
                    shared.use_payload();
                    // Another shard, as after a move to another processor.
                    shared.note(shared.count.put_at(1));
                }
            })
        };
        shared.note(shared.count.kill().expect("killed once"));
        user.join().expect("the user does not panic");
        assert_eq!(shared.zeroes.load(Ordering::Relaxed), 1);
        assert!(!shared.count.tryget_live_at(0));
    });
}

#[test]
fn loom_percpu_two_puts_after_kill_find_one_last() {
    loom::model(|| {
        let shared = Guarded::new();
        assert!(shared.count.tryget_live_at(0));
        assert!(shared.count.tryget_live_at(1));
        let other = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.use_payload();
                shared.note(shared.count.put_at(1));
            })
        };
        shared.note(shared.count.kill().expect("killed once"));
        shared.use_payload();
        shared.note(shared.count.put_at(1));
        other.join().expect("the other does not panic");
        assert_eq!(shared.zeroes.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn loom_percpu_resurrect_against_put_loses_no_reference() {
    loom::model(|| {
        let shared = Arc::new(live());
        assert!(shared.tryget_live_at(0));
        assert_eq!(shared.kill(), Ok(Remaining::Some));
        let putter = {
            let shared = shared.clone();
            thread::spawn(move || shared.put_at(0))
        };
        let before = shared.resurrect().expect("killed above");
        let put = putter.join().expect("the putter does not panic");
        // Either the put came first and both saw the zero, or neither did.
        assert_eq!(put, before);
        assert_eq!(shared.sum(), 1);
        assert_eq!(shared.kill(), Ok(Remaining::Zero));
    });
}

#[test]
fn loom_percpu_tryget_never_revives_zero() {
    loom::model(|| {
        let shared = Guarded::new();
        let user = {
            let shared = shared.clone();
            thread::spawn(move || {
                if shared.count.tryget_at(1) {
                    shared.use_payload();
                    shared.note(shared.count.put_at(0));
                }
            })
        };
        shared.note(shared.count.kill().expect("killed once"));
        user.join().expect("the user does not panic");
        assert_eq!(shared.zeroes.load(Ordering::Relaxed), 1);
    });
}
