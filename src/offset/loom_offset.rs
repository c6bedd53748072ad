//! Models of the offset allocator: two threads, one property each. Extents are 64 pages here.

use super::{Lifetime, OffsetAllocator, OffsetError};
use crate::units::Order;
use loom::sync::Arc;
use loom::thread;

fn order(order: u8) -> Order {
    Order::new(order).expect("valid")
}

/// An allocator of one extent in which all but the last `free` pages are taken.
fn nearly_full(free: u64) -> Arc<OffsetAllocator> {
    let offsets = OffsetAllocator::new(64, Order::PAGE).expect("room");
    offsets.add_extent_pages(0, free).expect("absent");
    Arc::new(offsets)
}

#[test]
fn loom_offset_no_run_is_handed_out_twice() {
    loom::model(|| {
        let offsets = nearly_full(2);
        let other = {
            let offsets = offsets.clone();
            thread::spawn(move || offsets.alloc(order(0), Lifetime::Short))
        };
        let mine = offsets.alloc(order(1), Lifetime::Short);
        let theirs = other.join().expect("no panic");
        // Two pages: either the pair or the single page, never both, never neither.
        assert!(mine.is_ok() != theirs.is_ok());
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_no_request_fails_while_a_page_is_free() {
    loom::model(|| {
        let offsets = nearly_full(2);
        let first = offsets.alloc(order(0), Lifetime::Short).expect("two are free");
        let other = {
            let offsets = offsets.clone();
            thread::spawn(move || {
                // Never fewer than one page is free for each of the two threads.
                offsets.free(first, order(0)).expect("allocated");
                offsets.alloc(order(0), Lifetime::Short).expect("a page is free")
            })
        };
        let mine = offsets.alloc(order(0), Lifetime::Short).expect("a page is free");
        let theirs = other.join().expect("no panic");
        assert_ne!(mine, theirs);
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_one_of_two_frees_wins() {
    loom::model(|| {
        let offsets = nearly_full(4);
        let run = offsets.alloc(order(1), Lifetime::Short).expect("free");
        let free = move |offsets: &OffsetAllocator| offsets.free(run, order(1));
        let other = {
            let offsets = offsets.clone();
            thread::spawn(move || free(&offsets))
        };
        let mine = free(&offsets);
        let theirs = other.join().expect("no panic");
        assert!(mine.is_ok() != theirs.is_ok());
        let loser = mine.and(theirs).expect_err("one lost");
        assert_eq!(loser, OffsetError::NotAllocated { offset: run });
        assert_eq!(offsets.free_pages(), 4);
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_a_free_page_that_moves_behind_the_search_is_found() {
    loom::model(|| {
        let offsets = OffsetAllocator::new(128, Order::PAGE).expect("room");
        (0..2).for_each(|extent| offsets.add_extent_pages(extent, 1).expect("absent"));
        offsets.reserve(0, order(0)).expect("free");
        let offsets = Arc::new(offsets);
        let other = {
            let offsets = offsets.clone();
            thread::spawn(move || {
                offsets.free(0, order(0)).expect("allocated");
                offsets.reserve(64, order(0)).is_ok()
            })
        };
        // One of the two pages is free all along.
        let mine = offsets.alloc(order(0), Lifetime::Short).expect("a page is free");
        let reserved = other.join().expect("no panic");
        assert!(!reserved || mine == 0);
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_one_of_two_frees_of_a_spanning_run_wins() {
    loom::model(|| {
        let offsets = OffsetAllocator::new(128, Order::PAGE).expect("room");
        (0..2).for_each(|extent| offsets.add_extent(extent).expect("absent"));
        let run = offsets.alloc(order(7), Lifetime::Short).expect("free");
        let offsets = Arc::new(offsets);
        let other = {
            let offsets = offsets.clone();
            thread::spawn(move || offsets.free(run, order(7)))
        };
        let mine = offsets.free(run, order(7));
        assert!(mine.is_ok() != other.join().expect("no panic").is_ok());
        assert_eq!(offsets.free_pages(), 128);
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_a_spanning_run_and_a_page_exclude_each_other() {
    loom::model(|| {
        let offsets = OffsetAllocator::new(128, Order::PAGE).expect("room");
        (0..2).for_each(|extent| offsets.add_extent(extent).expect("absent"));
        let offsets = Arc::new(offsets);
        let other = {
            let offsets = offsets.clone();
            thread::spawn(move || offsets.reserve(70, order(0)).is_ok())
        };
        let mine = offsets.alloc(order(7), Lifetime::Short).is_ok();
        assert!(mine != other.join().expect("no panic"), "one of them, never both");
        offsets.validate().expect("consistent");
    });
}
