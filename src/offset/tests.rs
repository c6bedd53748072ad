//! The allocator against a naive oracle, and its rules. `stress` is about threads.

mod stress;

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn order(order: u8) -> Order {
    Order::new(order).expect("a valid order")
}

fn with_extents(nr_pages: u64, extents: usize) -> OffsetAllocator {
    with_step(nr_pages, extents, Magazines::best_step())
}

fn with_step(nr_pages: u64, extents: usize, step: Step) -> OffsetAllocator {
    let offsets = OffsetAllocator::with_step(nr_pages, Order::PAGE, step).expect("room");
    (0..extents).for_each(|index| offsets.add_extent(index).expect("absent"));
    offsets
}

/// Runs a test with both ways of changing a slot, where the machine has both.
fn with_both_steps(test: impl Fn(Step)) {
    test(Step::Swap);
    if Magazines::best_step() == Step::Section {
        test(Step::Section);
    } else {
        println!("no restartable sequences here: only compare-and-swap is tested");
    }
}

/// A small generator of random numbers: xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 8) % end
    }
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
enum Act {
    Alloc(u8, Lifetime),
    Bulk(u8, usize),
    Reserve(u64, u8),
    FreeLive(usize),
    FreeAny(u64, u8),
    FreeWrongOrder(usize, u8),
    Add(usize, u64),
    Remove(usize),
}

fn steps() -> impl Strategy<Value = Vec<Act>> {
    // Small orders crowd a corner, so that runs meet; large ones span extents.
    let size = prop_oneof![4 => 0u8..=6, 3 => 7u8..=12, 2 => 13u8..=17];
    let step = prop_oneof![
        6 => (size.clone(), prop_oneof![Just(Lifetime::Short), Just(Lifetime::Long)])
            .prop_map(|(order, lifetime)| Act::Alloc(order, lifetime)),
        1 => (0u8..=9, 0usize..200).prop_map(|(order, count)| Act::Bulk(order, count)),
        3 => (0u64..140_000, size.clone()).prop_map(|(offset, order)| Act::Reserve(offset, order)),
        6 => any::<usize>().prop_map(Act::FreeLive),
        1 => (0u64..140_000, size.clone()).prop_map(|(offset, order)| Act::FreeAny(offset, order)),
        1 => (any::<usize>(), size).prop_map(|(index, order)| Act::FreeWrongOrder(index, order)),
        2 => (0usize..5, prop_oneof![Just(EXTENT_PAGES), 1u64..=EXTENT_PAGES])
            .prop_map(|(index, pages)| Act::Add(index, pages)),
        1 => (0usize..5).prop_map(Act::Remove),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Four extents and a short fifth.
const NR_PAGES: u64 = 4 * EXTENT_PAGES + 5000;

fn run(steps: Vec<Act>) {
    let offsets = with_step(NR_PAGES, 0, Step::Swap);
    act(&offsets, steps.clone());
    act(&with_extents(NR_PAGES, 0), steps);
}

fn act(offsets: &OffsetAllocator, steps: Vec<Act>) {
    let mut oracle = Oracle::new();
    let mut present: BTreeMap<usize, u64> = BTreeMap::new();
    for index in [0, 1, 3] {
        offsets.add_extent(index).expect("absent");
        present.insert(index, EXTENT_PAGES);
        oracle.set(index as u64 * EXTENT_PAGES, EXTENT_PAGES, true);
    }
    for step in steps {
        match step {
            Act::Alloc(size, lifetime) => {
                let found = offsets.alloc(order(size), lifetime).ok();
                // Where it lies is the allocator's choice; that the run was free, `take` asserts.
                assert_eq!(found.is_some(), oracle.first_fit(order(size)).is_some(), "order {size}");
                found.into_iter().for_each(|offset| oracle.take(offset, order(size)));
            }
            Act::Bulk(size, count) => {
                let mut found = Vec::new();
                let got = offsets.alloc_bulk(order(size), Lifetime::Long, count, &mut |o| found.push(o));
                assert_eq!(got.unwrap_or(0), found.len());
                found.iter().for_each(|&offset| oracle.take(offset, order(size)));
                assert!(found.len() == count || oracle.first_fit(order(size)).is_none());
            }
            Act::Reserve(offset, size) => {
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
            Act::FreeLive(which) => {
                let Some((&offset, &size)) = oracle.runs.iter().nth(which % oracle.runs.len().max(1)) else {
                    continue;
                };
                assert_eq!(offsets.order_at(offset), Some(size));
                assert_eq!(offsets.free(offset, size), Ok(()));
                oracle.give(offset, size);
            }
            Act::FreeAny(offset, size) => {
                let outcome = offsets.free(offset, order(size));
                let is_run = oracle.runs.get(&offset) == Some(&order(size));
                assert_eq!(outcome.is_ok(), is_run);
                if is_run {
                    oracle.give(offset, order(size));
                }
            }
            Act::FreeWrongOrder(which, size) => {
                let Some((&offset, &actual)) = oracle.runs.iter().nth(which % oracle.runs.len().max(1))
                else {
                    continue;
                };
                if actual.get() != size {
                    assert!(offsets.free(offset, order(size)).is_err());
                }
            }
            Act::Add(index, pages) => {
                let outcome = offsets.add_extent_pages(index, pages);
                assert_eq!(outcome.is_ok(), !present.contains_key(&index));
                if outcome.is_ok() {
                    let start = index as u64 * EXTENT_PAGES;
                    let pages = pages.min(NR_PAGES - start);
                    present.insert(index, pages);
                    oracle.set(start, pages, true);
                }
            }
            Act::Remove(index) => {
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
    assert!((0..NR_PAGES).step_by(97).all(|page| offsets.order_at(page) == oracle.runs.get(&page).copied()));
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

/// One thread does many steps of all kinds against a map of pages.
fn many_steps(step: Step, nr_steps: usize, orders: std::ops::RangeInclusive<u8>) {
    let nr_pages = 2 * EXTENT_PAGES + 3000;
    let offsets = with_step(nr_pages, 3, step);
    let mut oracle = Oracle { free: vec![true; nr_pages as usize], runs: BTreeMap::new() };
    let mut held: Vec<u64> = Vec::new();
    let mut free_pages = nr_pages;
    let mut random = Random(nr_steps as u64);
    for count in 0..nr_steps {
        let size = order(orders.start() + random.below(u64::from(orders.end() - orders.start()) + 1) as u8);
        // Long spells of filling and of emptying.
        let fills = if count / 20_000 % 2 == 0 { 6 } else { 3 };
        match random.below(10) {
            kind if kind < fills => {
                let lifetime = if random.below(4) == 0 { Lifetime::Long } else { Lifetime::Short };
                let found = offsets.alloc(size, lifetime);
                if let Ok(offset) = found {
                    oracle.take(offset, size);
                    held.push(offset);
                    free_pages -= size.nr_pages();
                } else if random.below(16) == 0 {
                    // Looking at every page takes long.
                    assert_eq!(oracle.first_fit(size), None, "{size}");
                }
            }
            6 => {
                let offset = random.below(nr_pages) / size.nr_pages() * size.nr_pages();
                if offset + size.nr_pages() <= nr_pages {
                    let outcome = offsets.reserve(offset, size);
                    assert_eq!(outcome.is_ok(), oracle.is_free(offset, size), "{outcome:?}");
                    if outcome.is_ok() {
                        oracle.take(offset, size);
                        held.push(offset);
                        free_pages -= size.nr_pages();
                    }
                }
            }
            7 => {
                let offset = random.below(nr_pages) / size.nr_pages() * size.nr_pages();
                if oracle.runs.get(&offset) != Some(&size) {
                    assert!(offsets.free(offset, size).is_err(), "{offset} {size}");
                }
            }
            _ if held.is_empty() => {}
            _ => {
                let offset = held.swap_remove(random.below(held.len() as u64) as usize);
                let size = oracle.runs[&offset];
                assert_eq!(offsets.free(offset, size), Ok(()));
                assert!(offsets.free(offset, size).is_err(), "freed twice");
                oracle.give(offset, size);
                free_pages += size.nr_pages();
            }
        }
        if count % 50_000 == 0 {
            offsets.validate().expect("consistent");
            assert_eq!(offsets.free_pages(), free_pages);
        }
    }
    offsets.validate().expect("consistent");
    for offset in held {
        assert_eq!(offsets.free(offset, oracle.runs[&offset]), Ok(()));
    }
    assert_eq!(offsets.free_pages(), nr_pages);
    assert!((0..3).all(|index| offsets.is_extent_idle(index)));
    offsets.validate().expect("consistent");
}

#[test]
fn a_million_steps_of_random_orders_agree_with_a_map_of_pages() {
    with_both_steps(|step| {
        many_steps(step, 300_000, 0..=4);
        many_steps(step, 150_000, 0..=10);
        many_steps(step, 50_000, 0..=15);
    });
}

#[test]
fn what_another_processors_magazine_holds_serves_every_request() {
    with_both_steps(|step| {
        // The magazine of whatever processor this thread is on now has the first 32 pages, unless the thread was moved or
        // pre-empted just then.
        let filled = (0..1000).find_map(|_| {
            let offsets = with_step(EXTENT_PAGES, 0, step);
            offsets.add_extent_pages(0, 512).expect("absent");
            assert_eq!(offsets.alloc(order(0), Lifetime::Short), Ok(0));
            let is_filled = offsets.magazines.slots().any(|(.., mask)| mask.count_ones() == 31);
            is_filled.then_some(offsets)
        });
        let offsets = filled.unwrap_or_else(|| panic!("{step:?} never fills a magazine"));
        assert_eq!(offsets.free_pages(), 511);
        offsets.reserve(17, order(0)).expect("only a magazine has it");
        assert_eq!(offsets.magazines.slots().count(), 0, "drained");
        assert_eq!(offsets.alloc(order(0), Lifetime::Short), Ok(1));
        offsets.free(17, order(0)).expect("ours");
        offsets.free(0, order(0)).expect("ours");
        offsets.free(1, order(0)).expect("ours");
        // The block is whole again only when the magazine gives up what it has.
        assert_eq!(offsets.alloc(order(9), Lifetime::Short), Ok(0));
        offsets.free(0, order(9)).expect("ours");
        offsets.validate().expect("consistent");
    });
}

/// A unit that no slot would take goes back, and leaves an idle extent shut: what was taken from it then was also a part of
/// runs that span extents.
#[test]
fn a_block_is_taken_while_no_magazine_takes_a_unit() {
    with_both_steps(|step| {
        for size in [0, 4, 8, 9, 12] {
            let offsets = with_step(8 * EXTENT_PAGES, 8, step);
            offsets.magazines.close().expect("nothing refuses");
            let run = offsets.alloc(order(size), Lifetime::Short);
            offsets.magazines.open();
            let run = run.unwrap_or_else(|error| panic!("order {size}: {error}"));
            offsets.validate().expect("consistent");
            assert!(
                offsets.alloc(Order::GIANT, Lifetime::Short).is_err(),
                "order {size}: its extent was given away"
            );
            offsets.free(run, order(size)).expect("allocated");
            offsets.alloc(Order::GIANT, Lifetime::Short).expect("all is free again");
        }
    });
}

#[test]
fn a_page_in_a_magazine_is_not_allocated() {
    with_both_steps(|step| {
        let offsets = with_step(EXTENT_PAGES, 1, step);
        for size in [0, 2, 4, 9] {
            let size = order(size);
            let runs = [(); 8].map(|()| offsets.alloc(size, Lifetime::Short).expect("free"));
            for run in runs {
                offsets.free(run, size).expect("ours");
                assert_eq!(offsets.order_at(run), None);
                assert_eq!(offsets.free(run, size), Err(OffsetError::NotAllocated { offset: run }));
                assert!(offsets.free(run, order(1)).is_err());
            }
        }
        assert_eq!(offsets.free_pages(), EXTENT_PAGES);
        assert!(offsets.is_extent_idle(0));
        offsets.validate().expect("consistent");
    });
}

#[test]
fn a_run_that_was_freed_twice_at_the_same_instant_is_handed_out_once() {
    // What two frees that race may leave (I5): a page that a magazine holds and that the bitmap has as free.
    let offsets = with_step(EXTENT_PAGES, 1, Step::Swap);
    let page = offsets.alloc(order(0), Lifetime::Short).expect("free");
    assert_eq!(page, 0);
    let mut extent = offsets.lock(0);
    extent.give_run(1, 0);
    drop(extent);
    let mut seen = std::collections::BTreeSet::new();
    while let Ok(page) = offsets.alloc(order(0), Lifetime::Short) {
        assert!(seen.insert(page), "page {page} twice");
    }
    assert_eq!(seen.len() as u64, EXTENT_PAGES - 1);
}

#[test]
fn long_lived_pages_have_blocks_of_their_own() {
    let offsets = with_extents(EXTENT_PAGES, 1);
    for _ in 0..100 {
        let short = offsets.alloc(order(0), Lifetime::Short).expect("free");
        let long = offsets.alloc(order(0), Lifetime::Long).expect("free");
        assert_ne!(short / 512, long / 512);
    }
    // The hint never makes a request fail.
    let rest = offsets.free_pages();
    for _ in 0..rest {
        offsets.alloc(order(0), Lifetime::Long).expect("free");
    }
    offsets.validate().expect("consistent");
}

#[test]
fn metadata_stays_within_its_bounds() {
    assert!(size_of::<Mutex<Header>>() <= 64);
    let beside = (2 * size_of::<AtomicU64>() + size_of::<AtomicU16>()) as u64;
    let per_gib = 8 * (OffsetAllocator::extent_metadata_bytes() + beside) + 8;
    assert!(per_gib <= 36 << 10, "{per_gib}");
    let unsplit = 8 * (size_of::<Mutex<Header>>() as u64 + beside) + 8;
    assert!(unsplit <= 1 << 10, "{unsplit}");
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

/// Searches that found nothing of an order but in words of other orders do not look through all words again, until a word
/// of their own comes free.
#[test]
fn what_is_free_in_words_of_other_orders_is_found_and_left_again() {
    let offsets = with_extents(EXTENT_PAGES, 1);
    // Every word is full of pairs, and one pair in each is given back.
    for pair in (0..EXTENT_PAGES).step_by(2) {
        offsets.reserve(pair, order(1)).expect("free");
    }
    for pair in (0..EXTENT_PAGES).step_by(64) {
        offsets.free(pair, order(1)).expect("ours");
    }
    let first = offsets.alloc(order(0), Lifetime::Short).expect("half a pair is free");
    assert_eq!(first, 0);
    assert!(offsets.is_untidy(0));
    assert_eq!(offsets.alloc(order(0), Lifetime::Short), Ok(1));
    assert_eq!(offsets.alloc(order(0), Lifetime::Short), Ok(64));
    // Pairs that come free change nothing, until all of a word has. Two in a row would go to a magazine.
    for pair in (EXTENT_PAGES - 62..EXTENT_PAGES).step_by(2) {
        assert!(offsets.is_untidy(0));
        offsets.free(pair - 64, order(1)).expect("ours");
        offsets.free(pair, order(1)).expect("ours");
    }
    assert!(!offsets.is_untidy(0));
    assert_eq!(offsets.alloc(order(0), Lifetime::Short), Ok(EXTENT_PAGES - 128));
    offsets.validate().expect("consistent");
}

/// Catches a child that has for ever what a thread of its parent was about to give back.
#[test]
fn a_forked_child_ends_the_frees_that_its_parents_threads_began() {
    let offsets = with_extents(EXTENT_PAGES, 1);
    // SAFETY: the extent is present.
    let words = unsafe { offsets.words.get(0) };
    offsets.reserve(0, Order::PAGE).unwrap();
    words.give_of(0, 1, 1).unwrap();
    assert!(offsets.validate().is_err(), "the block has no page in use, and is split");
    offsets.finish_frees_in_child();
    offsets.validate().unwrap();
    offsets.reserve(0, Order::HUGE).unwrap();
    offsets.free(0, Order::HUGE).unwrap();

    (0..512).for_each(|page| offsets.reserve(page, Order::PAGE).unwrap());
    (1..EXTENT_PAGES / 512).for_each(|block| offsets.reserve(block * 512, Order::HUGE).unwrap());
    assert!(offsets.alloc(Order::PAGE, Lifetime::Short).is_err());
    words.give_of(0, u64::MAX, 1 << 5).unwrap();
    assert!(offsets.alloc(Order::PAGE, Lifetime::Short).is_err(), "nobody was told");
    offsets.finish_frees_in_child();
    assert_eq!(offsets.alloc(Order::PAGE, Lifetime::Short), Ok(5));
    offsets.validate().unwrap();
}

/// Catches pages past an extent's end that can be freed, and so be handed out: to the bitmap or to a magazine.
#[test]
fn what_lies_past_the_end_of_an_extent_can_not_be_given_back() {
    for nr_pages in [1, 27_137, EXTENT_PAGES - 1, EXTENT_PAGES - 65] {
        let offsets = with_extents(2 * EXTENT_PAGES, 0);
        offsets.add_extent_pages(0, nr_pages).unwrap();
        for size in [0u8, 1, 3, 5, 8] {
            let size = order(size);
            // So that words and magazines know the order.
            let held: Vec<u64> = std::iter::from_fn(|| offsets.alloc(size, Lifetime::Short).ok()).collect();
            let past = nr_pages.next_multiple_of(size.nr_pages())..(nr_pages + 1024).min(EXTENT_PAGES);
            for offset in past.step_by(size.nr_pages() as usize) {
                assert_eq!(
                    offsets.free(offset, size),
                    Err(OffsetError::NotAllocated { offset }),
                    "{nr_pages}"
                );
            }
            held.iter().for_each(|&offset| offsets.free(offset, size).unwrap());
            offsets.validate().unwrap();
            assert_eq!(offsets.free_pages(), nr_pages);
        }
    }
}
