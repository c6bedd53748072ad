//! Pools of zeroed folios, filled by the library's own thread.

use daxtier::device::{Dram, Emulated};
use daxtier::{AllocOptions, Config, Folio, Lifetime, Order, Pgmap, PgmapOptions, Pool, TierName};
use std::sync::Arc;
use std::time::{Duration, Instant};

const HUGE: u64 = Order::HUGE.len_bytes();

/// Waits until so many folios are ready.
fn wait_for(pgmap: &Pgmap, nr_folios: u64) {
    wait_until(pgmap, |nr_ready| nr_ready == nr_folios);
}

/// Waits until the number of ready folios is right; a pool that does not come to it in a minute never will.
fn wait_until(pgmap: &Pgmap, is_right: impl Fn(u64) -> bool) {
    let start = Instant::now();
    while !is_right(pgmap.stats().prezeroed_bytes / HUGE) {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", pgmap.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn emulated(nr_folios: u64) -> Pgmap {
    let device = Emulated::new(nr_folios * HUGE, Emulated::DEFAULT_ALIGN_BYTES).expect("a memfd");
    Pgmap::bind(Arc::new(device), PgmapOptions::default()).expect("binds")
}

fn zeroed(pgmap: &Pgmap) -> Folio {
    let mut folio = pgmap.alloc_folio_zeroed(Order::HUGE, Lifetime::Short).expect("room");
    assert!(folio.as_mut_slice().expect("mapped").iter().all(|&byte| byte == 0));
    folio
}

/// Runs `body` in a forked child; returns the status with which it ended.
fn in_child(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs `body` and leaves; the C library keeps malloc usable in it.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork");
    if child == 0 {
        let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
        // SAFETY: ends the child without the parent's exit handlers.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: the status is writable, and the child is ours.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    status
}

#[test]
fn the_thread_fills_pools_and_refills_them() {
    let dram = Pgmap::bind(Arc::new(Dram::new(16 * HUGE, None).unwrap()), PgmapOptions::default()).unwrap();
    for pgmap in [emulated(16), dram] {
        pgmap.keep_zeroed(6).unwrap();
        wait_for(&pgmap, 6);
        // The thread is woken when fewer than half are left, however many it has filled up between.
        let held: Vec<Folio> = (0..5).map(|_| zeroed(&pgmap)).collect();
        wait_until(&pgmap, |nr_ready| nr_ready >= 3);
        drop(held);
        pgmap.keep_zeroed(0).unwrap();
        assert_eq!(pgmap.stats().prezeroed_bytes, 0);
    }
}

#[test]
fn a_pool_that_found_nothing_free_is_filled_when_something_is() {
    let pgmap = emulated(8);
    let mut held: Vec<Folio> = (0..8).map(|_| zeroed(&pgmap)).collect();
    pgmap.keep_zeroed(3).unwrap();
    // Whether the thread has looked by now or not, it may not stay with what it saw.
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(pgmap.stats().prezeroed_bytes, 0);
    for nr_free in 1..=3 {
        held.pop();
        wait_for(&pgmap, nr_free);
    }
    held.pop();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(pgmap.stats().prezeroed_bytes, 3 * HUGE, "no more than was asked for");
    held.extend((0..4).map(|_| zeroed(&pgmap)));
    assert!(pgmap.alloc_folio(Order::PAGE, Lifetime::Short).is_err());
}

#[test]
fn a_pool_hands_out_what_its_tiers_keep_ready() {
    let pool = Pool::open(&Config::parse("fast=32M slow=emulated:64M").unwrap()).unwrap();
    let slow = &pool.tiers()[1].pgmaps()[0].clone();
    slow.keep_zeroed(2).unwrap();
    wait_for(slow, 2);
    let used = pool.stats().tiers[1].used_bytes;
    assert_eq!(used, 0, "what is ready is not in use");
    slow.keep_zeroed(1).unwrap();
    let options = AllocOptions { tier: Some(TierName::Slow), zero: true, ..AllocOptions::default() };
    let mut folio = pool.alloc_folio(Order::HUGE, options).unwrap();
    assert!(folio.as_mut_slice().unwrap().iter().all(|&byte| byte == 0));
    // The whole tier is to be had: what is ready is not held back.
    let rest: Vec<Folio> = (0..31)
        .map(|_| pool.alloc_folio(Order::HUGE, AllocOptions { zero: false, ..options }).unwrap())
        .collect();
    assert!(pool.alloc_folio(Order::HUGE, options).is_err());
    drop((folio, rest));
    wait_for(slow, 1);
    pool.close().unwrap();
}

#[test]
fn a_forked_child_gets_a_thread_of_its_own_when_it_asks() {
    let pgmap = emulated(8);
    pgmap.keep_zeroed(4).unwrap();
    wait_for(&pgmap, 4);
    let end = in_child(|| {
        assert_eq!(pgmap.stats().prezeroed_bytes, 0);
        drop(zeroed(&pgmap));
        pgmap.keep_zeroed(2).unwrap();
        wait_for(&pgmap, 2);
        drop(zeroed(&pgmap));
        0
    });
    assert_eq!(end, 0);
    wait_for(&pgmap, 4);
}
