//! Models of the gate: a closer and a reader, or two closers, never touch the guarded value at the same time.

use super::gate::Gate;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

struct Guarded {
    gate: Gate,
    value: UnsafeCell<u32>,
}

impl Guarded {
    fn new(is_helped: bool) -> Arc<Guarded> {
        Arc::new(Guarded { gate: Gate::new(is_helped), value: UnsafeCell::new(0) })
    }

    fn new_wide() -> Arc<Guarded> {
        let guarded = Guarded::new(true);
        guarded.gate.open_wide();
        guarded
    }

    /// What a thread of the program does, once: waiting for the gate to open is no part of what excludes.
    fn read(&self, stripe: usize) {
        if self.gate.try_enter(stripe) {
            // SAFETY: inside; loom checks that no closer writes meanwhile.
            self.value.with(|value| unsafe { std::ptr::read(value) });
            self.gate.leave(stripe);
        }
    }

    fn read_on_own(&self) {
        self.read(1);
    }

    fn open_wide(&self) {
        self.gate.open_wide();
    }

    fn fork(&self) {
        self.gate.close();
        // SAFETY: the gate is closed; loom checks that nobody reads meanwhile.
        self.value.with_mut(|value| unsafe { *value += 1 });
        self.gate.lend(1);
        self.gate.take_back();
        self.gate.open();
    }
}

#[test]
fn loom_gate_keeps_readers_out() {
    loom::model(|| {
        let guarded = Guarded::new_wide();
        // One on a stripe that is shared, one on a stripe of its own.
        let readers: Vec<_> = (0..2)
            .map(|stripe| {
                let guarded = guarded.clone();
                thread::spawn(move || guarded.read(stripe))
            })
            .collect();
        guarded.fork();
        readers.into_iter().for_each(|reader| reader.join().expect("the reader does not panic"));
    });
}

#[test]
fn loom_gate_keeps_readers_out_where_the_kernel_makes_no_barrier() {
    loom::model(|| {
        let guarded = Guarded::new(false);
        let reader = {
            let guarded = guarded.clone();
            thread::spawn(move || guarded.read(1))
        };
        guarded.fork();
        reader.join().expect("the reader does not panic");
    });
}

#[test]
fn loom_gate_is_opened_wide_beside_readers_and_a_closer() {
    loom::model(|| {
        let guarded = Guarded::new(true);
        let [reader, opener] = [Guarded::read_on_own, Guarded::open_wide].map(|what| {
            let guarded = guarded.clone();
            thread::spawn(move || what(&guarded))
        });
        guarded.fork();
        reader.join().expect("the reader does not panic");
        opener.join().expect("the opener does not panic");
    });
}

#[test]
fn loom_gate_has_one_closer_at_a_time() {
    loom::model(|| {
        let guarded = Guarded::new_wide();
        let other = {
            let guarded = guarded.clone();
            thread::spawn(move || guarded.fork())
        };
        guarded.fork();
        other.join().expect("the closer does not panic");
        // SAFETY: the other thread is gone.
        guarded.value.with(|value| unsafe { assert_eq!(*value, 2) });
    });
}
