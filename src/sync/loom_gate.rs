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
    fn new() -> Arc<Guarded> {
        Arc::new(Guarded { gate: Gate::new(), value: UnsafeCell::new(0) })
    }

    /// What a thread of the program does, once: waiting for the gate to open is no part of what excludes.
    fn read(&self, stripe: usize) {
        if self.gate.try_enter(stripe) {
            // SAFETY: inside; loom checks that no closer writes meanwhile.
            self.value.with(|value| unsafe { std::ptr::read(value) });
            self.gate.leave(stripe);
        }
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
        let guarded = Guarded::new();
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
fn loom_gate_has_one_closer_at_a_time() {
    loom::model(|| {
        let guarded = Guarded::new();
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
