//! Real threads, more of them than processors.

use super::*;
use std::ops::RangeInclusive;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::AtomicU8 as Mark;

/// Threads take and give runs of all sizes, mark each page that they hold, and free what they don't hold. They move
/// between processors as the scheduler likes: there are more of them than processors.
fn stress(step: Step, nr_extents: usize, orders: RangeInclusive<u8>, steps: usize) {
    let nr_pages = nr_extents as u64 * EXTENT_PAGES;
    let offsets = with_step(nr_pages, nr_extents, step);
    let marks: Vec<Mark> = (0..nr_pages).map(|_| Mark::new(0)).collect();
    // Runs that one thread takes and another gives back.
    let handed = StdMutex::new(Vec::<(u64, Order)>::new());
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (offsets, marks, orders, handed) = (&offsets, &marks, orders.clone(), &handed);
            scope.spawn(move || {
                let mut random = Random(thread * 7919 + 1);
                let mut held: Vec<(u64, Order)> = Vec::new();
                let mark = |offset: u64, size: Order, from: u8, to: u8| {
                    // Every 64th page of a large run is enough to see two owners.
                    for page in
                        (offset..offset + size.nr_pages()).step_by(size.nr_pages().div_ceil(64) as usize)
                    {
                        assert_eq!(marks[page as usize].swap(to, Ordering::Relaxed), from, "page {page}");
                    }
                };
                for _ in 0..steps {
                    let size = order(
                        orders.start() + random.below(u64::from(orders.end() - orders.start()) + 1) as u8,
                    );
                    match random.below(16) {
                        0..=7 => {
                            let lifetime =
                                if random.below(4) == 0 { Lifetime::Long } else { Lifetime::Short };
                            if let Ok(offset) = offsets.alloc(size, lifetime) {
                                mark(offset, size, 0, 1);
                                held.push((offset, size));
                            }
                        }
                        8 => {
                            let offset = random.below(nr_pages) / size.nr_pages() * size.nr_pages();
                            if offsets.reserve(offset, size).is_ok() {
                                mark(offset, size, 0, 1);
                                held.push((offset, size));
                            }
                        }
                        9 => {
                            let mut handed = handed.lock().unwrap();
                            handed.extend(held.pop());
                            if handed.len() > 100 {
                                let run = random.below(handed.len() as u64) as usize;
                                held.push(handed.swap_remove(run));
                            }
                        }
                        10 if !held.is_empty() => {
                            // A wrong order of a run that is ours is always refused.
                            let (offset, right) = held[random.below(held.len() as u64) as usize];
                            if right != size {
                                assert!(offsets.free(offset, size).is_err());
                            }
                        }
                        _ if held.is_empty() => {}
                        _ => {
                            let (offset, size) = held.swap_remove(random.below(held.len() as u64) as usize);
                            mark(offset, size, 1, 0);
                            offsets.free(offset, size).expect("ours");
                        }
                    }
                }
                for (offset, size) in held {
                    mark(offset, size, 1, 0);
                    offsets.free(offset, size).expect("ours");
                }
            });
        }
        // Meanwhile somebody looks at everything.
        scope.spawn(|| {
            for _ in 0..20 {
                offsets.validate().expect("consistent");
                std::thread::yield_now();
            }
        });
    });
    for (offset, size) in handed.into_inner().unwrap() {
        offsets.free(offset, size).expect("handed over");
    }
    offsets.validate().expect("consistent");
    assert_eq!(offsets.free_pages(), nr_pages);
    assert!((0..nr_extents).all(|index| offsets.is_extent_idle(index)));
    offsets.validate().expect("consistent");
}

#[test]
fn threads_never_share_a_page() {
    with_both_steps(|step| stress(step, 1, 0..=0, 200_000));
}

#[test]
fn threads_never_share_a_small_run() {
    with_both_steps(|step| stress(step, 1, 0..=7, 40_000));
}

#[test]
fn threads_never_share_a_run_of_any_order() {
    with_both_steps(|step| stress(step, 8, 0..=18, 10_000));
}

#[test]
fn no_request_fails_while_every_thread_leaves_it_room() {
    // As many runs as threads: each gives its own back before it asks again, so one is always free.
    with_both_steps(no_request_fails);
}

fn no_request_fails(step: Step) {
    for size in [0, 6, 9, 13, 16] {
        let nr_extents = if size > EXTENT_ORDER { 8 } else { 1 };
        let offsets = with_step(nr_extents * EXTENT_PAGES, 0, step);
        let pages = (4 << size).min(EXTENT_PAGES);
        (0..nr_extents as usize).for_each(|index| offsets.add_extent_pages(index, pages).expect("absent"));
        let failures = StdMutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        match offsets.alloc(order(size), Lifetime::Short) {
                            Ok(offset) => offsets.free(offset, order(size)).expect("ours"),
                            Err(_) => *failures.lock().unwrap() += 1,
                        }
                    }
                });
            }
        });
        assert_eq!(*failures.lock().unwrap(), 0, "order {size}");
        offsets.validate().expect("consistent");
    }
}
