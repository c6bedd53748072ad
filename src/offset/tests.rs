//! The allocator against a naive oracle, its rules, and threads.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Mutex as StdMutex;

fn order(order: u8) -> Order {
    Order::new(order).expect("a valid order")
}

fn with_extents(nr_pages: u64, extents: usize) -> OffsetAllocator {
    let offsets = OffsetAllocator::new(nr_pages, Order::PAGE).expect("room");
    (0..extents).for_each(|index| offsets.add_extent(index).expect("absent"));
    offsets
}

/// Which pages are present and free, page by page, and what is allocated.
struct Oracle {
    free: Vec<bool>,
    runs: BTreeMap<u64, Order>,
}

impl Oracle {
    fn new() -> Oracle {
        Oracle { free: vec![false; NR_PAGES as usize], runs: BTreeMap::new() }
    }

    fn is_free(&self, offset: u64, order: Order) -> bool {
        let run = offset as usize..(offset + order.nr_pages()) as usize;
        self.free.get(run).is_some_and(|run| run.iter().all(|&free| free))
    }

    fn first_fit(&self, order: Order) -> Option<u64> {
        (0..NR_PAGES).step_by(order.nr_pages() as usize).find(|&page| self.is_free(page, order))
    }

    fn take(&mut self, offset: u64, order: Order) {
        assert!(self.is_free(offset, order));
        self.set(offset, order.nr_pages(), false);
        self.runs.insert(offset, order);
    }

    fn give(&mut self, offset: u64, order: Order) {
        self.runs.remove(&offset);
        self.set(offset, order.nr_pages(), true);
    }

    fn set(&mut self, start: u64, nr_pages: u64, free: bool) {
        self.free[start as usize..(start + nr_pages) as usize].fill(free);
    }

    fn count_free(&self) -> u64 {
        self.free.iter().filter(|&&free| free).count() as u64
    }
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(u8),
    Bulk(u8, usize),
    Reserve(u64, u8),
    FreeLive(usize),
    FreeAny(u64, u8),
    FreeWrongOrder(usize, u8),
    Add(usize, u64),
    Remove(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Small orders crowd a corner, so that runs meet; large ones span extents.
    let size = prop_oneof![4 => 0u8..=6, 3 => 7u8..=12, 2 => 13u8..=17];
    let step = prop_oneof![
        6 => size.clone().prop_map(Step::Alloc),
        1 => (0u8..=9, 0usize..200).prop_map(|(order, count)| Step::Bulk(order, count)),
        3 => (0u64..140_000, size.clone()).prop_map(|(offset, order)| Step::Reserve(offset, order)),
        6 => any::<usize>().prop_map(Step::FreeLive),
        1 => (0u64..140_000, size.clone()).prop_map(|(offset, order)| Step::FreeAny(offset, order)),
        1 => (any::<usize>(), size).prop_map(|(index, order)| Step::FreeWrongOrder(index, order)),
        2 => (0usize..5, prop_oneof![Just(EXTENT_PAGES), 1u64..=EXTENT_PAGES])
            .prop_map(|(index, pages)| Step::Add(index, pages)),
        1 => (0usize..5).prop_map(Step::Remove),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Four extents and a short fifth.
const NR_PAGES: u64 = 4 * EXTENT_PAGES + 5000;

fn run(steps: Vec<Step>) {
    let offsets = OffsetAllocator::new(NR_PAGES, Order::PAGE).expect("room");
    let mut oracle = Oracle::new();
    let mut present: BTreeMap<usize, u64> = BTreeMap::new();
    for index in [0, 1, 3] {
        offsets.add_extent(index).expect("absent");
        present.insert(index, EXTENT_PAGES);
        oracle.set(index as u64 * EXTENT_PAGES, EXTENT_PAGES, true);
    }
    for step in steps {
        match step {
            Step::Alloc(size) => {
                let found = offsets.alloc(order(size), Lifetime::Short).ok();
                assert_eq!(found, oracle.first_fit(order(size)), "order {size}");
                found.into_iter().for_each(|offset| oracle.take(offset, order(size)));
            }
            Step::Bulk(size, count) => {
                let mut found = Vec::new();
                let got = offsets.alloc_bulk(order(size), Lifetime::Long, count, &mut |o| found.push(o));
                assert_eq!(got.unwrap_or(0), found.len());
                found.iter().for_each(|&offset| oracle.take(offset, order(size)));
                assert!(found.len() == count || oracle.first_fit(order(size)).is_none());
            }
            Step::Reserve(offset, size) => {
                let size = order(size);
                let offset = offset / size.nr_pages() * size.nr_pages();
                let outcome = offsets.reserve(offset, size);
                if offset + size.nr_pages() > NR_PAGES {
                    assert!(matches!(outcome, Err(OffsetError::OutOfBounds { .. })));
                } else if oracle.is_free(offset, size) {
                    assert_eq!(outcome, Ok(()));
                    oracle.take(offset, size);
                } else {
                    assert!(matches!(
                        outcome,
                        Err(OffsetError::Busy { .. } | OffsetError::ExtentAbsent { .. })
                    ));
                }
            }
            Step::FreeLive(which) => {
                let Some((&offset, &size)) = oracle.runs.iter().nth(which % oracle.runs.len().max(1)) else {
                    continue;
                };
                assert_eq!(offsets.order_at(offset), Some(size));
                assert_eq!(offsets.free(offset, size), Ok(()));
                oracle.give(offset, size);
            }
            Step::FreeAny(offset, size) => {
                let outcome = offsets.free(offset, order(size));
                let is_run = oracle.runs.get(&offset) == Some(&order(size));
                assert_eq!(outcome.is_ok(), is_run);
                if is_run {
                    oracle.give(offset, order(size));
                }
            }
            Step::FreeWrongOrder(which, size) => {
                let Some((&offset, &actual)) = oracle.runs.iter().nth(which % oracle.runs.len().max(1))
                else {
                    continue;
                };
                if actual.get() != size {
                    assert!(offsets.free(offset, order(size)).is_err());
                }
            }
            Step::Add(index, pages) => {
                let outcome = offsets.add_extent_pages(index, pages);
                assert_eq!(outcome.is_ok(), !present.contains_key(&index));
                if outcome.is_ok() {
                    let start = index as u64 * EXTENT_PAGES;
                    let pages = pages.min(NR_PAGES - start);
                    present.insert(index, pages);
                    oracle.set(start, pages, true);
                }
            }
            Step::Remove(index) => {
                let start = index as u64 * EXTENT_PAGES;
                let pages = present.get(&index).copied().unwrap_or(0);
                let range = start as usize..(start + pages) as usize;
                let free = oracle.free[range].iter().filter(|&&free| free).count() as u64;
                let outcome = offsets.remove_extent(index);
                assert_eq!(outcome.is_ok(), pages > 0 && free == pages, "{outcome:?}");
                if outcome.is_ok() {
                    present.remove(&index);
                    oracle.set(start, pages, false);
                }
            }
        }
    }
    assert_eq!(offsets.free_pages(), oracle.count_free());
    offsets.validate().expect("consistent");
    for (&offset, &size) in &oracle.runs {
        assert_eq!(offsets.order_at(offset), Some(size));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn every_step_agrees_with_a_set_of_pages(steps in steps()) {
        run(steps);
    }
}

#[test]
fn a_free_of_a_wrong_order_changes_nothing() {
    let offsets = with_extents(8 * EXTENT_PAGES, 8);
    for size in [0u8, 1, 5, 6, 7, 9, 14, 15, 16, 17, 18] {
        offsets.reserve(0, order(size)).expect("free");
        for wrong in (0..=18).filter(|&wrong| wrong != size) {
            let expected = OffsetError::WrongOrder { offset: 0, order: order(wrong), actual: size };
            assert_eq!(offsets.free(0, order(wrong)), Err(expected), "{size} as {wrong}");
        }
        offsets.free(0, order(size)).expect("allocated");
        offsets.validate().expect("consistent");
        assert_eq!(offsets.free_pages(), 8 * EXTENT_PAGES);
    }
}

#[test]
fn a_wrong_order_is_seen_beside_neighbours() {
    let offsets = with_extents(EXTENT_PAGES, 1);
    for page in 0..128 {
        offsets.reserve(page * 2, order(1)).expect("free");
    }
    assert!(matches!(offsets.free(0, order(2)), Err(OffsetError::WrongOrder { actual: 1, .. })));
    assert!(matches!(offsets.free(2, order(0)), Err(OffsetError::WrongOrder { actual: 1, .. })));
    assert_eq!(offsets.free(1, order(0)), Err(OffsetError::NotAllocated { offset: 1 }));
    offsets.validate().expect("consistent");
}

#[test]
fn a_double_free_is_an_error() {
    let offsets = with_extents(8 * EXTENT_PAGES, 8);
    for size in [0, 9, 15, 16, 18] {
        let offset = offsets.alloc(order(size), Lifetime::Short).expect("free");
        offsets.free(offset, order(size)).expect("allocated");
        assert_eq!(offsets.free(offset, order(size)), Err(OffsetError::NotAllocated { offset }));
    }
}

#[test]
fn bad_requests_are_told_apart() {
    let offsets = OffsetAllocator::new(EXTENT_PAGES + 100, order(2)).expect("room");
    assert_eq!(offsets.add_extent(2), Err(OffsetError::NoSuchExtent { extent: 2, nr_extents: 2 }));
    assert_eq!(offsets.reserve(0, order(2)), Err(OffsetError::ExtentAbsent { extent: 0 }));
    assert_eq!(offsets.remove_extent(0), Err(OffsetError::ExtentAbsent { extent: 0 }));
    offsets.add_extent(0).expect("absent");
    offsets.add_extent(1).expect("absent");
    assert_eq!(offsets.add_extent(1), Err(OffsetError::ExtentPresent { extent: 1 }));
    assert_eq!(offsets.free_pages(), EXTENT_PAGES + 100);
    let small = OffsetError::OrderTooSmall { order: order(1), min_order: order(2) };
    assert_eq!(offsets.alloc(order(1), Lifetime::Short), Err(small.clone()));
    assert_eq!(offsets.reserve(0, order(1)), Err(small));
    assert_eq!(offsets.reserve(2, order(2)), Err(OffsetError::Misaligned { offset: 2, order: order(2) }));
    for offset in [EXTENT_PAGES + 100, u64::MAX - 3, 1 << 60] {
        assert!(matches!(offsets.reserve(offset, order(2)), Err(OffsetError::OutOfBounds { .. })));
        assert!(matches!(offsets.free(offset, order(2)), Err(OffsetError::OutOfBounds { .. })));
    }
    offsets.reserve(EXTENT_PAGES, order(2)).expect("free");
    assert_eq!(offsets.remove_extent(1), Err(OffsetError::ExtentInUse { extent: 1, used_pages: 4 }));
}

/// Threads take and give runs of all sizes and mark each page that they hold.
fn stress(nr_extents: usize, orders: std::ops::RangeInclusive<u8>, steps: usize) {
    use std::sync::atomic::AtomicU8;
    let nr_pages = nr_extents as u64 * EXTENT_PAGES;
    let offsets = with_extents(nr_pages, nr_extents);
    let marks: Vec<AtomicU8> = (0..nr_pages).map(|_| AtomicU8::new(0)).collect();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (offsets, marks, orders) = (&offsets, &marks, orders.clone());
            scope.spawn(move || {
                let mut random = thread * 7919 + 1;
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
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    if random % 5 < 3 {
                        let size =
                            order(orders.start() + (random >> 8) as u8 % (orders.end() - orders.start() + 1));
                        if let Ok(offset) = offsets.alloc(size, Lifetime::Short) {
                            mark(offset, size, 0, 1);
                            held.push((offset, size));
                        }
                    } else if !held.is_empty() {
                        let (offset, size) = held.swap_remove((random >> 8) as usize % held.len());
                        mark(offset, size, 1, 0);
                        offsets.free(offset, size).expect("ours");
                    }
                }
                for (offset, size) in held {
                    mark(offset, size, 1, 0);
                    offsets.free(offset, size).expect("ours");
                }
            });
        }
    });
    offsets.validate().expect("consistent");
    assert_eq!(offsets.free_pages(), nr_pages);
}

#[test]
fn threads_never_share_a_small_run() {
    stress(1, 0..=7, 20_000);
}

#[test]
fn threads_never_share_a_run_of_any_order() {
    stress(8, 0..=18, 5_000);
}

#[test]
fn no_request_fails_while_every_thread_leaves_it_room() {
    // As many runs as threads: each gives its own back before it asks again, so one is always free.
    for size in [0, 6, 9, 13, 16] {
        let nr_extents = if size > EXTENT_ORDER { 8 } else { 1 };
        let offsets = OffsetAllocator::new(nr_extents * EXTENT_PAGES, Order::PAGE).expect("room");
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

#[test]
fn freed_halves_serve_a_whole_again() {
    let offsets = with_extents(EXTENT_PAGES, 1);
    let pages: Vec<u64> =
        (0..EXTENT_PAGES).map(|_| offsets.alloc(order(0), Lifetime::Short).expect("free")).collect();
    assert!(matches!(
        offsets.alloc(order(0), Lifetime::Short),
        Err(OffsetError::Exhausted { free_pages: 0, .. })
    ));
    pages.iter().rev().for_each(|&page| offsets.free(page, order(0)).expect("ours"));
    assert_eq!(offsets.alloc(order(15), Lifetime::Short), Ok(0));
}
