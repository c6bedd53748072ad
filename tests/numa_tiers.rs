//! Moving memory between DRAM and a NUMA node, which the kernel does. On a machine with one node both are the same memory;
//! `cargo xtask test --vm` runs this in a guest with two.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use daxtier::{AllocOptions, Config, MigrateError, Outcome, Pool, TierName};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const SLOT: usize = 2 << 20;
const SLOTS: usize = 20;

/// A block of whole slots, used as atomic words.
struct Block(NonNull<u8>);

// SAFETY: the memory behind it is only used as atomics.
unsafe impl Sync for Block {}

impl Block {
    fn word(&self, page: usize) -> &AtomicU64 {
        // SAFETY: the test stays inside the block.
        let at = unsafe { self.0.add(page * 4096) };
        // SAFETY: aligned, and live as long as the test uses it.
        unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }
    }

    fn at(&self, slot: usize) -> *mut u8 {
        self.0.as_ptr().wrapping_add(slot * SLOT)
    }
}

/// The last node with memory.
fn node() -> Option<u32> {
    let list = std::fs::read_to_string("/sys/devices/system/node/has_memory").ok()?;
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

/// Which node each slot's first page is on; `None` where the kernel does not tell.
fn nodes_of(block: &Block) -> Option<Vec<i32>> {
    let mut pages: Vec<*mut libc::c_void> = (0..SLOTS).map(|slot| block.at(slot).cast()).collect();
    let mut found = vec![-1; SLOTS];
    // SAFETY: both arrays are so long; without nodes to go to nothing is moved.
    let rc = unsafe {
        let none = std::ptr::null::<libc::c_int>();
        libc::syscall(libc::SYS_move_pages, 0, SLOTS, pages.as_mut_ptr(), none, found.as_mut_ptr(), 0)
    };
    (rc == 0).then_some(found)
}

#[test]
fn memory_goes_to_another_node_and_back_while_it_is_used() {
    let Some(node) = node() else {
        eprintln!("skipped: this kernel lists no NUMA nodes");
        return;
    };
    let config = format!("fast=64M slow=node:{node}:64M migrate=on,workers=2");
    let pool = match Pool::open(&Config::parse(&config).unwrap()) {
        Ok(pool) => pool,
        Err(refusal) => {
            eprintln!("skipped: {refusal}");
            return;
        }
    };
    let options = AllocOptions { tier: Some(TierName::Fast), ..AllocOptions::default() };
    let block = Block(pool.malloc(SLOTS * SLOT, SLOT, options).unwrap());
    (0..SLOTS * 512).for_each(|page| block.word(page).store(1, Ordering::Relaxed));
    let stop = AtomicBool::new(false);
    let added = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut added = 0u64;
            while !stop.load(Ordering::Relaxed) {
                block.word(added as usize * 7 % (SLOTS * 512)).fetch_add(1, Ordering::Relaxed);
                added += 1;
            }
            added
        });
        for _ in 0..5 {
            for to in [TierName::Slow, TierName::Fast] {
                let counts = match pool.migrate(block.at(0), SLOTS * SLOT, to) {
                    Err(MigrateError::Off(refusal)) => {
                        eprintln!("skipped: {refusal}");
                        break;
                    }
                    outcome => outcome.unwrap(),
                };
                assert_eq!(counts.get(Outcome::Moved), SLOTS as u64, "{counts:?}");
                let place = |slot: usize| pool.where_is(block.at(slot)).unwrap();
                assert!((0..SLOTS).all(|slot| place(slot).tier_name == to.as_str()));
                match nodes_of(&block) {
                    None => eprintln!("skipped: the kernel does not tell the nodes of pages"),
                    Some(found) if to == TierName::Slow => {
                        assert!(found.iter().all(|&found| found == node as i32), "{found:?}");
                    }
                    // Where the slow tier has a node of its own the fast one keeps off it.
                    Some(found) if node > 0 => {
                        assert!(found.iter().all(|&found| found != node as i32), "{found:?}");
                    }
                    Some(_) => {}
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    let found: u64 = (0..SLOTS * 512).map(|page| block.word(page).load(Ordering::Relaxed)).sum();
    assert_eq!(found, added + (SLOTS * 512) as u64);
    // SAFETY: the block is live and its users have ended.
    unsafe { pool.free(block.0) }.unwrap();
    pool.close().unwrap();
}
