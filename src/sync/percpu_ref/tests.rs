//! The life of a count, and storms on it, with sections and without.

use super::*;
use crate::sys::cpu;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize};

/// Runs `test` on live counts: with sections, without, and with fewer lines than there are processors.
fn each(test: impl Fn(&PercpuRef)) {
    let all = [
        PercpuRef::new_drained(cpu::nr_shards()),
        PercpuRef::new_drained_without_sections(cpu::nr_shards()),
        PercpuRef::new_drained(1),
    ];
    for count in all {
        count.recycle();
        test(&count);
    }
}

#[test]
fn kill_drops_the_initial_reference_once() {
    each(|count| {
        assert_eq!(count.kill(), Ok(Remaining::Zero));
        assert_eq!(count.kill(), Err(SwitchError::Dying));
        assert!(count.is_zero());
    });
}

#[test]
fn sections_count_on_their_own_lines() {
    let count = PercpuRef::new_drained(cpu::nr_shards());
    count.recycle();
    (0..1000).for_each(|_| count.get());
    let shared: u64 = count.lines.iter().map(|line| signed_count(line.shared.load(Ordering::Relaxed))).sum();
    if rseq::is_available() {
        assert!(shared < 100, "sections are for the common case, not for {shared} of 1000");
    } else {
        assert_eq!(shared, 1000);
    }
    assert_eq!(count.sum(), 1001);
}

#[test]
fn a_put_by_another_thread_than_its_get_counts() {
    each(|count| {
        count.get();
        count.get();
        std::thread::scope(|scope| scope.spawn(|| assert_eq!(count.put(), Remaining::Some)).join())
            .expect("no panic");
        assert_eq!(count.sum(), 2);
        assert_eq!(count.kill(), Ok(Remaining::Some));
        assert_eq!(count.put(), Remaining::Zero);
    });
}

#[test]
fn a_killed_count_refuses_tryget_live_and_allows_tryget_until_zero() {
    each(|count| {
        count.get();
        assert_eq!(count.kill(), Ok(Remaining::Some));
        assert!(!count.tryget_live());
        assert!(count.tryget());
        assert_eq!(count.put(), Remaining::Some);
        assert_eq!(count.put(), Remaining::Zero);
        assert!(!count.tryget());
    });
}

#[test]
fn resurrect_restores_the_live_path() {
    each(|count| {
        count.get();
        assert_eq!(count.resurrect(), Err(SwitchError::Live));
        let _ = count.kill().expect("live");
        assert_eq!(count.resurrect(), Ok(Remaining::Some));
        assert!(count.tryget_live());
        assert_eq!(count.put(), Remaining::Some);
        assert_eq!(count.put(), Remaining::Some);
        assert_eq!(count.kill(), Ok(Remaining::Zero));
        assert_eq!(count.resurrect(), Ok(Remaining::Zero));
        assert_eq!(count.kill(), Ok(Remaining::Zero));
    });
}

#[test]
fn exit_needs_a_drained_count_and_ends_it() {
    each(|count| {
        assert_eq!(count.exit(), Err(SwitchError::Live));
        count.get();
        let _ = count.kill().expect("live");
        assert_eq!(count.exit(), Err(SwitchError::Dying));
        assert_eq!(count.put(), Remaining::Zero);
        assert_eq!(count.exit(), Ok(()));
        assert_eq!(count.resurrect(), Err(SwitchError::Exited));
    });
}

#[test]
fn exactly_one_thread_sees_zero() {
    for _ in 0..60 {
        each(|count| {
            let zeroes = AtomicUsize::new(0);
            let note = |remaining| {
                if remaining == Remaining::Zero {
                    zeroes.fetch_add(1, Ordering::Relaxed);
                }
            };
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..500 {
                            if count.tryget_live() {
                                note(count.put());
                            }
                        }
                    });
                }
                scope.spawn(|| note(count.kill().expect("killed once")));
            });
            assert_eq!(zeroes.load(Ordering::Relaxed), 1);
            assert_eq!(count.sum(), 0);
        });
    }
}

#[test]
fn storms_of_kill_and_resurrect_keep_the_sum_exact() {
    each(|count| {
        let (stop, held) = (AtomicBool::new(false), AtomicI64::new(0));
        std::thread::scope(|scope| {
            // More threads than processors: they are pre-empted in the middle and move.
            for _ in 0..5 {
                scope.spawn(|| {
                    let mut mine = 0;
                    while !stop.load(Ordering::Relaxed) {
                        mine += i64::from(count.tryget_live());
                        if mine > 8 {
                            (0..7).for_each(|_| assert_eq!(count.put(), Remaining::Some));
                            mine -= 7;
                        }
                    }
                    held.fetch_add(mine, Ordering::Relaxed);
                });
            }
            // This reference keeps the puts above from being the last.
            count.get();
            for _ in 0..400 {
                assert_eq!(count.kill(), Ok(Remaining::Some));
                assert_eq!(count.resurrect(), Ok(Remaining::Some));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let held = held.load(Ordering::Relaxed);
        assert_eq!(count.sum(), held + 2);
        assert_eq!(count.kill(), Ok(Remaining::Some));
        assert_eq!(count.sum(), held + 1);
        (0..held).for_each(|_| assert_eq!(count.put(), Remaining::Some));
        assert_eq!(count.put(), Remaining::Zero);
    });
}

#[test]
fn a_forked_child_counts_and_kills_on_its_own() {
    use crate::sys::testing::{ChildEnd, in_child};
    each(|count| {
        count.get();
        count.lock_for_fork();
        let end = in_child(|| {
            count.unlock_after_fork();
            count.reset_in_child(3);
            let killed = count.kill() == Ok(Remaining::Some);
            let puts = [count.put(), count.put(), count.put()];
            i32::from(!(killed && puts == [Remaining::Some, Remaining::Some, Remaining::Zero]))
        });
        count.unlock_after_fork();
        assert_eq!(end, ChildEnd::Exited(0));
        assert_eq!(count.sum(), 2);
    });
}
