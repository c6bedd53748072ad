//! Models of `PercpuRef`: two or three threads, one property each.
//!
//! A section is one step of its processor that is aborted when another thread of the processor, or a fence, is in the way;
//! then the shared count is used. Each property is modelled with sections and without.

use super::PercpuRef;
use super::percpu_ref::Remaining;
use super::rseq::{CPUS, on_cpu};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

fn live(has_sections: bool) -> PercpuRef {
    let count = if has_sections {
        PercpuRef::new_drained(CPUS)
    } else {
        PercpuRef::new_drained_without_sections(CPUS)
    };
    count.recycle();
    count
}

/// Runs a model on a count with sections, and on one without.
fn model(run: fn(has_sections: bool)) {
    loom::model(move || run(true));
    loom::model(move || run(false));
}

/// The thing that the count protects: freed at zero, and loom reports an access that races with that.
struct Guarded {
    count: PercpuRef,
    zeroes: AtomicUsize,
    payload: UnsafeCell<u32>,
}

impl Guarded {
    fn new(has_sections: bool) -> Arc<Guarded> {
        Arc::new(Guarded {
            count: live(has_sections),
            zeroes: AtomicUsize::new(0),
            payload: UnsafeCell::new(0),
        })
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
    model(|has_sections| {
        let shared = Guarded::new(has_sections);
        let user = {
            let shared = shared.clone();
            thread::spawn(move || {
                if shared.count.tryget_live() {
                    shared.use_payload();
                    on_cpu(1);
                    shared.note(shared.count.put());
                }
            })
        };
        shared.note(shared.count.kill().expect("killed once"));
        user.join().expect("the user does not panic");
        assert_eq!(shared.zeroes.load(Ordering::Relaxed), 1);
        assert!(!shared.count.tryget_live());
    });
}

#[test]
fn loom_percpu_two_puts_after_kill_find_one_last() {
    model(|has_sections| {
        let shared = Guarded::new(has_sections);
        assert!(shared.count.tryget_live());
        assert!(shared.count.tryget_live());
        let other = {
            let shared = shared.clone();
            thread::spawn(move || {
                on_cpu(1);
                shared.use_payload();
                shared.note(shared.count.put());
            })
        };
        shared.note(shared.count.kill().expect("killed once"));
        shared.use_payload();
        shared.note(shared.count.put());
        other.join().expect("the other does not panic");
        assert_eq!(shared.zeroes.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn loom_percpu_resurrect_against_put_loses_no_reference() {
    model(|has_sections| {
        let shared = Arc::new(live(has_sections));
        assert!(shared.tryget_live());
        assert_eq!(shared.kill(), Ok(Remaining::Some));
        let putter = {
            let shared = shared.clone();
            thread::spawn(move || shared.put())
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
    model(|has_sections| {
        let shared = Guarded::new(has_sections);
        let user = {
            let shared = shared.clone();
            thread::spawn(move || {
                on_cpu(1);
                if shared.count.tryget() {
                    shared.use_payload();
                    on_cpu(0);
                    shared.note(shared.count.put());
                }
            })
        };
        shared.note(shared.count.kill().expect("killed once"));
        user.join().expect("the user does not panic");
        assert_eq!(shared.zeroes.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn loom_percpu_sections_on_one_processor_lose_no_reference_to_a_kill() {
    model(|has_sections| {
        let shared = Arc::new(live(has_sections));
        let other = {
            let shared = shared.clone();
            thread::spawn(move || shared.tryget_live())
        };
        let mine = shared.tryget_live();
        assert!(mine, "nobody killed it yet");
        assert_eq!(shared.kill(), Ok(Remaining::Some));
        let theirs = other.join().expect("the other does not panic");
        assert_eq!(shared.sum(), 1 + i64::from(theirs));
    });
}
