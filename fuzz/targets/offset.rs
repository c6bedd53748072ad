//! Any sequence of operations on the offset allocator, right ones and wrong ones: it agrees with a map of pages at every step,
//! and its own counters with a full scan at the end.
#![no_main]

use daxtier::Order;
use daxtier::offset::{EXTENT_PAGES, Lifetime, OffsetAllocator, OffsetError};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;

/// Eight extents, so that runs of every order fit, and a short ninth.
const NR_EXTENTS: usize = 9;
const NR_PAGES: u64 = 8 * EXTENT_PAGES + 5000;

/// Which pages are present and free, page by page, and what is allocated.
struct Oracle {
    free: Vec<bool>,
    runs: BTreeMap<u64, Order>,
    /// The pages of each extent; 0 in one that is absent.
    present: [u64; NR_EXTENTS],
}

impl Oracle {
    fn is_free(&self, offset: u64, order: Order) -> bool {
        let run = offset as usize..offset.saturating_add(order.nr_pages()) as usize;
        self.free.get(run).is_some_and(|run| run.iter().all(|&free| free))
    }

    fn has_room(&self, order: Order) -> bool {
        (0..NR_PAGES).step_by(order.nr_pages() as usize).any(|offset| self.is_free(offset, order))
    }

    fn set(&mut self, start: u64, nr_pages: u64, free: bool) {
        self.free[start as usize..(start + nr_pages) as usize].fill(free);
    }

    fn take(&mut self, offset: u64, order: Order) {
        assert!(self.is_free(offset, order), "{offset} {order} was handed out and is not free");
        self.set(offset, order.nr_pages(), false);
        assert_eq!(self.runs.insert(offset, order), None);
    }

    fn give(&mut self, offset: u64, order: Order) {
        assert_eq!(self.runs.remove(&offset), Some(order));
        self.set(offset, order.nr_pages(), true);
    }

    fn nth_run(&self, which: u64) -> Option<(u64, Order)> {
        let nth = which % (self.runs.len() as u64).max(1);
        self.runs.iter().nth(nth as usize).map(|(&offset, &order)| (offset, order))
    }
}

/// One operation: what, on which order, and a number that says where or how many.
struct Step {
    what: u8,
    order: Order,
    number: u64,
}

impl Step {
    fn read(bytes: &[u8]) -> Option<Step> {
        let &[what, order, a, b, c] = bytes else { return None };
        let order = Order::new(order % 19).ok()?;
        Some(Step { what, order, number: u64::from_le_bytes([a, b, c, 0, 0, 0, 0, 0]) })
    }

    fn lifetime(&self) -> Lifetime {
        [Lifetime::Short, Lifetime::Long, Lifetime::Movable][self.number as usize % 3]
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, steps)) = bytes.split_first() else { return };
    // Mostly pages, sometimes a larger smallest order.
    let min_order = Order::new([0, 0, 0, 2, 5, 9][usize::from(first) % 6]).expect("a valid order");
    let offsets = OffsetAllocator::new(NR_PAGES, min_order).expect("room");
    let mut oracle =
        Oracle { free: vec![false; NR_PAGES as usize], runs: BTreeMap::new(), present: [0; NR_EXTENTS] };
    // Half of the sequences begin with memory.
    for index in 0..if first < 128 { NR_EXTENTS } else { 0 } {
        step(&offsets, &mut oracle, min_order, &add(index));
    }
    for bytes in steps.chunks_exact(5).take(400) {
        if let Some(next) = Step::read(bytes) {
            step(&offsets, &mut oracle, min_order, &next);
        }
    }
    check(&offsets, &oracle);
    // Everything comes back, and then every extent can go.
    while let Some((offset, order)) = oracle.nth_run(0) {
        assert_eq!(offsets.free(offset, order), Ok(()));
        oracle.give(offset, order);
    }
    check(&offsets, &oracle);
    for index in (0..NR_EXTENTS).filter(|&index| oracle.present[index] > 0) {
        assert!(offsets.is_extent_idle(index), "extent {index}");
        assert_eq!(offsets.remove_extent(index), Ok(()));
    }
    assert_eq!(offsets.free_pages(), 0);
});

fn add(index: usize) -> Step {
    Step { what: 6, order: Order::PAGE, number: index as u64 }
}

fn check(offsets: &OffsetAllocator, oracle: &Oracle) {
    offsets.validate().expect("counters that agree with a scan");
    assert_eq!(offsets.free_pages(), oracle.free.iter().filter(|&&free| free).count() as u64);
    for (&offset, &order) in &oracle.runs {
        assert_eq!(offsets.order_at(offset), Some(order));
    }
}

fn step(offsets: &OffsetAllocator, oracle: &mut Oracle, min_order: Order, step: &Step) {
    let &Step { what, order, number } = step;
    let is_too_small = order < min_order;
    let aligned = number % NR_PAGES / order.nr_pages() * order.nr_pages();
    match what % 8 {
        0 => match offsets.alloc(order, step.lifetime()) {
            Ok(offset) => oracle.take(offset, order),
            Err(OffsetError::OrderTooSmall { .. }) => assert!(is_too_small),
            Err(error) => assert!(!is_too_small && !oracle.has_room(order), "{error}"),
        },
        1 => {
            let mut found = Vec::new();
            let count = number as usize % 200;
            let got = offsets.alloc_bulk(order, step.lifetime(), count, &mut |offset| found.push(offset));
            assert_eq!(got.unwrap_or(0), found.len());
            found.iter().for_each(|&offset| oracle.take(offset, order));
            assert!(found.len() == count || is_too_small || !oracle.has_room(order));
        }
        2 => {
            let outcome = offsets.reserve(aligned, order);
            assert_eq!(outcome.is_ok(), !is_too_small && oracle.is_free(aligned, order), "{outcome:?}");
            if outcome.is_ok() {
                oracle.take(aligned, order);
            }
        }
        3 => {
            if let Some((offset, order)) = oracle.nth_run(number) {
                assert_eq!(offsets.free(offset, order), Ok(()));
                assert!(offsets.free(offset, order).is_err(), "freed twice");
                oracle.give(offset, order);
            }
        }
        // Wherever, and of whatever order: only a run that is there can be freed.
        4 => {
            let is_run = oracle.runs.get(&number) == Some(&order);
            assert_eq!(offsets.free(number, order).is_ok(), is_run);
            if is_run {
                oracle.give(number, order);
            }
        }
        5 => {
            if let Some((offset, actual)) = oracle.nth_run(number).filter(|&(_, actual)| actual != order) {
                assert!(offsets.free(offset, order).is_err(), "{actual} freed as {order}");
                assert_eq!(offsets.order_at(offset), Some(actual));
            }
        }
        6 => {
            let index = number as usize % (NR_EXTENTS + 1);
            // Order 0 stands for a whole extent, for there must be many of those.
            let wanted = if order == Order::PAGE { EXTENT_PAGES } else { number % EXTENT_PAGES + 1 };
            let outcome = offsets.add_extent_pages(index, wanted);
            let is_absent = oracle.present.get(index) == Some(&0);
            assert_eq!(outcome.is_ok(), is_absent, "{outcome:?}");
            if is_absent {
                let start = index as u64 * EXTENT_PAGES;
                oracle.present[index] = wanted.min(NR_PAGES - start);
                oracle.set(start, oracle.present[index], true);
            }
        }
        _ => {
            let index = number as usize % (NR_EXTENTS + 1);
            let nr_pages = oracle.present.get(index).copied().unwrap_or(0);
            let start = index as u64 * EXTENT_PAGES;
            let is_idle = nr_pages > 0
                && oracle.free[start as usize..(start + nr_pages) as usize].iter().all(|&free| free);
            let outcome = offsets.remove_extent(index);
            assert_eq!(outcome.is_ok(), is_idle, "{outcome:?}");
            if is_idle {
                oracle.present[index] = 0;
                oracle.set(start, nr_pages, false);
            }
        }
    }
}
