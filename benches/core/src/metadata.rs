//! What the offset allocator's own bookkeeping costs, as resident memory of the process.

use crate::offsets;
use daxtier::offset::Lifetime;
use daxtier::units::Order;

/// How much of the range is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nothing: half of all 2 MiB blocks are taken whole.
    Whole,
    /// Everything: all pages are taken one by one, and every other one is given back.
    Split,
    /// Everything, and in each word of the bitmap lie runs of two orders.
    SplitInOrders,
}

const PAGES_A_GIB: u64 = 1 << 18;

/// Returns by how many KiB a gigabyte the process grows.
///
/// # Panics
/// When the allocator fails, or `/proc` is not there.
pub fn kib_a_gib(nr_gib: u64, how: Use) -> f64 {
    let nr_pages = nr_gib * PAGES_A_GIB;
    // What does not belong to it, such as the lists of processors, is there before.
    drop(offsets::daxtier(PAGES_A_GIB));
    let before = resident_kib();
    let offsets = offsets::daxtier(nr_pages);
    let take = |order| offsets.alloc(order, Lifetime::Short).expect("there is room");
    let put = |offset, order| offsets.free(offset, order).expect("it was handed out");
    match how {
        Use::Whole => (0..nr_gib * 256).for_each(|_| _ = take(Order::HUGE)),
        Use::Split => {
            (0..nr_pages).for_each(|_| _ = take(Order::PAGE));
            (0..nr_pages).step_by(2).for_each(|offset| put(offset, Order::PAGE));
        }
        Use::SplitInOrders => {
            let reserve = |offset, order| offsets.reserve(offset, order).expect("it is free");
            let sixteen = Order::new(4).expect("an order");
            for first in (0..nr_pages).step_by(64) {
                reserve(first + 48, sixteen);
                (first..first + 48).for_each(|page| reserve(page, Order::PAGE));
            }
        }
    }
    let grown = resident_kib() - before;
    grown.max(0.0) / nr_gib as f64
}

fn resident_kib() -> f64 {
    // Exact, where `statm` is not.
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("the kernel shows smaps_rollup");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("it begins with Rss");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number of kB")
}
