//! Models of the offset allocator: two threads, one property each. Blocks have 128 pages here, extents 512, and a unit has
//! two runs. Slots change by compare-and-swap: the section of the real one is the same step on fewer processors.

use super::magazine::set_cpu;
use super::search::Wanted;
use super::{Lifetime, OffsetAllocator, OffsetError};
use crate::units::Order;
use loom::sync::Arc;
use loom::thread;

fn order(order: u8) -> Order {
    Order::new(order).expect("valid")
}

/// Runs a model that may look at more words than loom expects of one.
fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    builder.check(f);
}

/// An allocator of one extent that has `pages` pages.
fn with_pages(pages: u64) -> Arc<OffsetAllocator> {
    let offsets = OffsetAllocator::new(512, Order::PAGE).expect("room");
    offsets.add_extent_pages(0, pages).expect("absent");
    Arc::new(offsets)
}

/// Runs `f` on another thread, on processor 1; the models' own is processor 0.
fn beside<R: 'static>(
    offsets: &Arc<OffsetAllocator>,
    f: impl FnOnce(&OffsetAllocator) -> R + 'static,
) -> thread::JoinHandle<R> {
    let offsets = offsets.clone();
    thread::spawn(move || {
        set_cpu(1);
        f(&offsets)
    })
}

fn alloc(offsets: &OffsetAllocator, size: u8) -> Result<u64, OffsetError> {
    offsets.alloc(order(size), Lifetime::Short)
}

#[test]
fn loom_offset_no_run_is_handed_out_twice() {
    model(|| {
        let offsets = with_pages(2);
        let other = beside(&offsets, |offsets| alloc(offsets, 0).is_ok());
        let mine = alloc(&offsets, 1).is_ok();
        // Two pages: either the pair or the single page, never both, never neither.
        assert!(mine != other.join().expect("no panic"));
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_no_request_fails_while_a_page_is_free() {
    model(|| {
        let offsets = with_pages(2);
        let first = alloc(&offsets, 0).expect("two are free");
        let other = beside(&offsets, move |offsets| {
            // Never fewer than one page is free for each of the two threads; this processor's magazine may get it.
            offsets.free(first, order(0)).expect("allocated");
            alloc(offsets, 0).expect("a page is free")
        });
        let mine = alloc(&offsets, 0).expect("a page is free");
        assert_ne!(mine, other.join().expect("no panic"));
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_a_page_in_the_other_magazine_is_stolen() {
    model(|| {
        let offsets = with_pages(2);
        // Processor 0 has the second page in its magazine while it takes and gives back the first.
        let first = alloc(&offsets, 0).expect("free");
        let other = beside(&offsets, |offsets| alloc(offsets, 0).expect("one is free all along"));
        offsets.free(first, order(0)).expect("allocated");
        let theirs = other.join().expect("no panic");
        offsets.validate().expect("consistent");
        assert_eq!(offsets.free_pages(), 1);
        assert_eq!(offsets.free(theirs, order(0)), Ok(()));
        assert_eq!(offsets.free_pages(), 2);
    });
}

#[test]
fn loom_offset_a_magazine_serves_its_processors_threads_one_run_each() {
    model(|| {
        let offsets = with_pages(4);
        let first = alloc(&offsets, 0).expect("free");
        let other = {
            let offsets = offsets.clone();
            thread::spawn(move || alloc(&offsets, 0).expect("free"))
        };
        let mine = alloc(&offsets, 0).expect("free");
        let theirs = other.join().expect("no panic");
        assert!(mine != theirs && mine != first && theirs != first);
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_one_of_two_frees_wins() {
    model(|| {
        let offsets = with_pages(8);
        // Both threads are on processor 0, whose magazine has the unit.
        let run = alloc(&offsets, 0).expect("free");
        let other = {
            let offsets = offsets.clone();
            thread::spawn(move || offsets.free(run, order(0)))
        };
        let mine = offsets.free(run, order(0));
        let theirs = other.join().expect("no panic");
        assert!(mine.is_ok() != theirs.is_ok());
        assert_eq!(mine.and(theirs), Err(OffsetError::NotAllocated { offset: run }));
        assert_eq!(offsets.free_pages(), 8);
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_a_run_freed_twice_from_two_processors_is_free_once() {
    model(|| {
        let offsets = with_pages(2);
        let run = alloc(&offsets, 0).expect("free");
        let other = beside(&offsets, move |offsets| offsets.free(run, order(0)).is_ok());
        let mine = offsets.free(run, order(0)).is_ok();
        // Both may succeed (I5), one does.
        assert!(mine | other.join().expect("no panic"));
        let pages = [alloc(&offsets, 0), alloc(&offsets, 0), alloc(&offsets, 0)].map(Result::ok);
        assert!(pages[0].is_some() && pages[1].is_some() && pages[0] != pages[1]);
        assert_eq!(pages[2], None);
    });
}

#[test]
fn loom_offset_a_page_and_its_block_exclude_each_other() {
    model(|| {
        let offsets = with_pages(128);
        let other = beside(&offsets, |offsets| alloc(offsets, 0).is_ok());
        let mine = alloc(&offsets, 7).is_ok();
        assert!(mine != other.join().expect("no panic"), "one of them, never both");
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_two_runs_of_two_blocks_in_three_are_one() {
    model(|| {
        let offsets = with_pages(384);
        let other = beside(&offsets, |offsets| alloc(offsets, 8).is_ok());
        let mine = alloc(&offsets, 8).is_ok();
        assert!(mine != other.join().expect("no panic"), "one of them, never both");
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_a_block_that_is_freed_by_pages_serves_a_whole() {
    model(|| {
        let offsets = with_pages(128);
        let page = alloc(&offsets, 4).expect("free");
        let other = beside(&offsets, move |offsets| offsets.free(page, order(4)));
        let early = alloc(&offsets, 7).ok();
        other.join().expect("no panic").expect("allocated");
        let late = alloc(&offsets, 7).ok();
        assert!(early.is_some() != late.is_some());
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_one_of_two_frees_of_a_spanning_run_wins() {
    model(|| {
        let offsets = OffsetAllocator::new(1024, Order::PAGE).expect("room");
        (0..2).for_each(|extent| offsets.add_extent(extent).expect("absent"));
        let run = alloc(&offsets, 10).expect("free");
        let offsets = Arc::new(offsets);
        let other = beside(&offsets, move |offsets| offsets.free(run, order(10)).is_ok());
        let mine = offsets.free(run, order(10)).is_ok();
        assert!(mine != other.join().expect("no panic"));
        assert_eq!(offsets.free_pages(), 1024);
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_a_spanning_run_and_a_page_exclude_each_other() {
    model(|| {
        let offsets = OffsetAllocator::new(1024, Order::PAGE).expect("room");
        (0..2).for_each(|extent| offsets.add_extent(extent).expect("absent"));
        let offsets = Arc::new(offsets);
        let other = beside(&offsets, |offsets| offsets.reserve(600, order(0)).is_ok());
        let mine = alloc(&offsets, 10).is_ok();
        assert!(mine != other.join().expect("no panic"), "one of them, never both");
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_an_extent_that_comes_during_a_decision_is_left_alone() {
    model(|| {
        let offsets = Arc::new(OffsetAllocator::new(512, Order::PAGE).expect("room"));
        let other = beside(&offsets, |offsets| {
            offsets.add_extent_pages(0, 2).expect("absent");
            alloc(offsets, 1).is_ok()
        });
        let mine = alloc(&offsets, 1).is_ok();
        assert!(mine != other.join().expect("no panic"), "one of them, never both");
        offsets.validate().expect("consistent");
    });
}

/// Takes a run as a request does first, by masks and flags.
fn find(offsets: &OffsetAllocator, size: u8) -> Option<u64> {
    offsets.search_usual(Wanted::new(order(size), Lifetime::Short))
}

/// Takes runs of 32 pages, which no magazine holds, one in each word.
fn reserve_words(offsets: &OffsetAllocator, words: &[u64]) {
    words.iter().for_each(|word| offsets.reserve(word * 64, order(5)).expect("free"));
}

#[test]
fn loom_offset_room_that_comes_while_a_block_fills_up_is_told() {
    model(|| {
        // One word: a half is given back without the lock while the other half is taken.
        let offsets = with_pages(64);
        reserve_words(&offsets, &[0]);
        let other = beside(&offsets, |offsets| offsets.free(0, order(5)));
        offsets.reserve(32, order(5)).expect("free");
        assert_eq!(other.join().expect("no panic"), Ok(()));
        offsets.validate().expect("consistent");
        assert_eq!(find(&offsets, 5), Some(0), "found by a search that trusts the masks");
    });
}

#[test]
fn loom_offset_a_block_whose_last_two_words_are_freed_at_once_is_whole() {
    model(|| {
        let offsets = with_pages(128);
        reserve_words(&offsets, &[0, 1]);
        let other = beside(&offsets, |offsets| offsets.free(0, order(5)));
        assert_eq!(offsets.free(64, order(5)), Ok(()));
        assert_eq!(other.join().expect("no panic"), Ok(()));
        offsets.validate().expect("consistent");
        assert_eq!(find(&offsets, 7), Some(0), "found by a search that trusts the masks");
    });
}

#[test]
fn loom_offset_what_is_freed_during_a_decision_is_no_secret() {
    model(|| {
        let offsets = with_pages(32);
        reserve_words(&offsets, &[0]);
        let other = beside(&offsets, |offsets| offsets.free(0, order(5)));
        let early = alloc(&offsets, 5).is_ok();
        assert_eq!(other.join().expect("no panic"), Ok(()));
        let late = alloc(&offsets, 5);
        assert!(early != late.is_ok(), "free once, and seen: {early} {late:?}");
        offsets.validate().expect("consistent");
    });
}

#[test]
fn loom_offset_a_free_into_a_unit_that_comes_to_a_magazine_is_kept() {
    model(|| {
        let offsets = with_pages(64);
        offsets.reserve(0, order(0)).expect("free");
        let other = beside(&offsets, |offsets| offsets.free(0, order(0)));
        // This processor fetches the unit of pages 0 and 1.
        let mine = alloc(&offsets, 0).expect("free");
        assert_eq!(other.join().expect("no panic"), Ok(()));
        offsets.validate().expect("consistent");
        assert_eq!(offsets.free_pages(), 63);
        assert_eq!(offsets.order_at(mine), Some(order(0)));
    });
}

#[test]
fn loom_offset_one_of_two_frees_without_the_lock_wins() {
    model(|| {
        let offsets = with_pages(64);
        reserve_words(&offsets, &[0]);
        let other = beside(&offsets, |offsets| offsets.free(0, order(5)).is_ok());
        let mine = offsets.free(0, order(5)).is_ok();
        assert!(mine != other.join().expect("no panic"));
        offsets.validate().expect("consistent");
        assert_eq!(offsets.free_pages(), 64);
    });
}
