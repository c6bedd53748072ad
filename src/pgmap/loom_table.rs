//! Models of the folio table: two threads, one property each. Blocks are two pages here.

use super::table::{FolioTable, PutOutcome};
use super::word::Fault;
use crate::units::Order;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

const OWNER: u16 = 7;

fn order(order: u8) -> Order {
    Order::new(order).expect("valid")
}

/// A table of four pages with memory behind them; loom reports two users of a page at the same time.
struct Memory {
    table: FolioTable,
    pages: [UnsafeCell<u32>; 4],
}

impl Memory {
    fn new() -> Arc<Memory> {
        let table = FolioTable::new(OWNER, 4).expect("room");
        Arc::new(Memory { table, pages: std::array::from_fn(|_| UnsafeCell::new(0)) })
    }

    /// Puts the folio at 0, and if that was the last reference writes to it as it becomes idle. Returns how often.
    fn put_and_wipe(&self, generation: u16) -> u32 {
        let mut wiped = 0;
        let outcome = self.table.put(0, generation, |_| {
            // SAFETY: no reference is left; loom checks exactly that.
            self.pages[0].with_mut(|p| unsafe { *p += 1 });
            wiped += 1;
        });
        assert_eq!(matches!(outcome, Ok(PutOutcome::Freed { .. })), wiped == 1);
        wiped
    }

    /// Requests a run, writes to all of it and puts it.
    fn use_run(&self, offset: u64, order: Order) -> Result<(), Fault> {
        let generation = self.table.request(offset, order)?;
        let write = || {
            for page in offset..offset + order.nr_pages() {
                // SAFETY: the folio is ours alone; loom checks exactly that.
                self.pages[page as usize].with_mut(|p| unsafe { *p += 1 });
            }
        };
        write();
        // What becomes idle is discarded before anybody can request it.
        let outcome = self.table.put(offset, generation, |_| write());
        assert_eq!(outcome, Ok(PutOutcome::Freed { order, user: 0 }));
        Ok(())
    }
}

fn overlap(mine: (u64, u8), theirs: (u64, u8)) {
    loom::model(move || {
        let memory = Memory::new();
        let other = {
            let memory = memory.clone();
            thread::spawn(move || memory.use_run(theirs.0, order(theirs.1)))
        };
        let outcome = memory.use_run(mine.0, order(mine.1));
        let others = other.join().expect("no panic");
        assert!(outcome.is_ok() || others.is_ok(), "one of two overlapping requests wins");
        assert!(outcome.is_ok() || outcome == Err(Fault::Busy));
        assert!(others.is_ok() || others == Err(Fault::Busy));
        assert_eq!(memory.use_run(0, order(2)), Ok(()), "all is idle again");
    });
}

#[test]
fn loom_table_a_page_is_discarded_before_it_is_requested_again() {
    overlap((0, 0), (0, 0));
}

#[test]
fn loom_table_a_block_is_discarded_before_it_is_requested_again() {
    overlap((0, 1), (0, 1));
}

#[test]
fn loom_table_a_page_and_its_block_exclude_each_other() {
    overlap((0, 1), (1, 0));
}

#[test]
fn loom_table_two_blocks_and_a_page_exclude_each_other() {
    overlap((0, 2), (3, 0));
}

#[test]
fn loom_table_two_blocks_and_one_exclude_each_other() {
    overlap((0, 2), (2, 1));
}

#[test]
fn loom_table_two_pages_share_a_split_block() {
    loom::model(|| {
        let memory = Memory::new();
        let other = {
            let memory = memory.clone();
            thread::spawn(move || memory.use_run(1, order(0)))
        };
        assert_eq!(memory.use_run(0, order(0)), Ok(()));
        assert_eq!(other.join().expect("no panic"), Ok(()));
        assert_eq!(memory.table.split_bytes(), 0, "the split ended with its last page");
        assert_eq!(memory.use_run(0, order(1)), Ok(()));
    });
}

fn try_get_against_put(size: u8, at: u64) {
    loom::model(move || {
        let memory = Memory::new();
        let generation = memory.table.request(0, order(size)).expect("idle");
        let other = {
            let memory = memory.clone();
            thread::spawn(move || {
                let Some(seen) = memory.table.try_get(at) else { return 0 };
                assert_eq!((seen.offset, seen.order, seen.generation), (0, order(size), generation));
                // SAFETY: a reference is held; loom checks that the free waits for it.
                memory.pages[0].with(|p| unsafe { assert_eq!(*p, 0) });
                memory.put_and_wipe(generation)
            })
        };
        let frees = memory.put_and_wipe(generation) + other.join().expect("no panic");
        assert_eq!(frees, 1, "exactly one put was the last");
        assert!(memory.table.try_get(at).is_none());
    });
}

#[test]
fn loom_table_try_get_of_a_page_against_the_last_put() {
    try_get_against_put(0, 0);
}

#[test]
fn loom_table_try_get_of_a_tail_block_against_the_last_put() {
    try_get_against_put(2, 3);
}

#[test]
fn loom_table_get_against_the_last_put() {
    loom::model(|| {
        let memory = Memory::new();
        let generation = memory.table.request(0, order(0)).expect("idle");
        let other = {
            let memory = memory.clone();
            thread::spawn(move || match memory.table.get(0, generation) {
                Ok(()) => memory.table.put(0, generation, |_| ()) != Ok(PutOutcome::Live),
                Err(fault) => {
                    assert_eq!(fault, Fault::Stale);
                    false
                }
            })
        };
        let freed_here = memory.table.put(0, generation, |_| ()).expect("held") != PutOutcome::Live;
        let freed_there = other.join().expect("no panic");
        assert!(freed_here != freed_there, "exactly one put was the last");
        assert_eq!(memory.table.get(0, generation), Err(Fault::Stale));
    });
}

#[test]
fn loom_table_a_stale_put_does_not_touch_the_next_folio() {
    loom::model(|| {
        let memory = Memory::new();
        let stale = memory.table.request(0, order(0)).expect("idle");
        let _ = memory.table.put(0, stale, |_| ()).expect("held");
        let other = {
            let memory = memory.clone();
            thread::spawn(move || memory.table.put(0, stale, |_| ()))
        };
        let fresh = memory.table.request(0, order(0)).expect("idle");
        assert_eq!(other.join().expect("no panic"), Err(Fault::Stale));
        assert_eq!(memory.table.look(0, fresh).map(|seen| seen.ref_count), Ok(1));
    });
}
