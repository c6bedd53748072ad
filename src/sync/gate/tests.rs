//! The gate with real threads; `loom_gate` has its models.

use super::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

#[test]
fn nobody_is_inside_a_closed_gate() {
    let (careful, wide) = (Gate::new(), Gate::new());
    wide.open_wide();
    [careful, wide].iter().for_each(close_beside_readers);
}

fn close_beside_readers(gate: &Gate) {
    let inside = [const { AtomicU64::new(0) }; 4];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (inside, stop) = (&inside, &stop);
            scope.spawn(move || {
                // Two on stripes of their own, two on one that they share.
                let stripe = if reader < 2 { gate.claim() } else { 0 };
                while !stop.load(Ordering::Relaxed) {
                    while !gate.try_enter(stripe) {
                        assert!(gate.wait_open(), "the closer never lends");
                    }
                    // Two steps, and no barrier: whatever is seen of a reader must be due to the gate.
                    inside[reader].store(1, Ordering::Relaxed);
                    inside[reader].store(0, Ordering::Relaxed);
                    gate.leave(stripe);
                }
            });
        }
        for _ in 0..2000 {
            gate.close();
            for _ in 0..20 {
                assert!(inside.iter().all(|inside| inside.load(Ordering::Relaxed) == 0));
            }
            gate.open();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn sections_nest_and_a_closer_counts_as_inside() {
    assert!(!is_inside());
    run(|| run(|| assert!(is_inside())));
    assert!(!is_inside());
    close();
    assert!(is_inside());
    run(|| assert!(is_inside()));
    open();
    assert!(!is_inside());
}

#[test]
fn alone_means_that_nobody_else_is_inside() {
    assert_eq!(run(|| alone(|| ())), None, "who is inside is not alone");
    let (inside, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    run(|| {
                        inside.fetch_add(1, Ordering::Relaxed);
                        std::hint::spin_loop();
                        inside.fetch_sub(1, Ordering::Relaxed);
                    });
                }
            });
        }
        for _ in 0..2000 {
            let seen = alone(|| (0..20).map(|_| inside.load(Ordering::Relaxed)).sum::<u64>());
            assert_eq!(seen, Some(0));
            assert!(!is_inside());
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_reader_goes_past_a_closer_that_sleeps_on_what_the_reader_holds() {
    let gate = Gate::new();
    let lock = Mutex::new(());
    std::thread::scope(|scope| {
        let held = lock.lock().unwrap();
        let closer = scope.spawn(|| {
            gate.close();
            gate.lend(thread::own_id());
            drop(lock.lock().unwrap());
            gate.take_back();
            gate.open();
        });
        // A reader that is let past does so because the closer sleeps; one that finds the gate open was too quick.
        while gate.state.load(Ordering::SeqCst) != LENT {
            std::thread::yield_now();
        }
        assert!(!gate.try_enter(0));
        assert!(!gate.wait_open(), "the gate can't open while its closer waits for us");
        gate.enter_lent(0);
        drop(held);
        gate.leave(0);
        closer.join().unwrap();
    });
    assert!(gate.try_enter(0));
}
