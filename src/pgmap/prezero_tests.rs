//! Pools of zeroed folios, filled by the tests themselves: the library's thread is tried in `tests/prezero.rs`.

use super::prezero::{Filled, fill_one, nr_listed};
use super::testing::{TestDevice, bind_with, in_child, order, validate};
use super::*;
use crate::device::{AfterFork, DeviceKind};
use crate::folio::Folio;
use crate::offset::Lifetime;
use crate::sync::service;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const HUGE: u64 = Order::HUGE.len_bytes();
/// Blocks of the pgmaps here.
const NR_BLOCKS: u64 = 8;

/// Whoever fills, fills the pools of all tests.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> impl Drop {
    ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Binds a device whose every byte was written by former folios.
fn dirty(kind: DeviceKind, after_fork: AfterFork) -> (Pgmap, Arc<TestDevice>) {
    let mut device = TestDevice::new(NR_BLOCKS * HUGE);
    device.kind = kind;
    device.after_fork = after_fork;
    let (pgmap, device) = bind_with(device, PgmapOptions { retain_memory: true, ..PgmapOptions::default() });
    let folios: Vec<Folio> = (0..NR_BLOCKS).map(|_| huge(&pgmap)).collect();
    folios.into_iter().for_each(|mut folio| folio.as_mut_slice().expect("mapped").fill(0xa5));
    (pgmap, device)
}

fn dirty_emulated() -> (Pgmap, Arc<TestDevice>) {
    dirty(DeviceKind::Emulated, AfterFork::Fresh)
}

fn huge(pgmap: &Pgmap) -> Folio {
    pgmap.alloc_folio(Order::HUGE, Lifetime::Short).expect("room")
}

fn keep(pgmap: &Pgmap, count: usize) {
    service::run(|| pgmap.core().keep_zeroed(count)).expect("a pool");
}

fn fill() -> Filled {
    loop {
        match service::run(fill_one) {
            Filled::One => {}
            done => return done,
        }
    }
}

fn is_zero(folio: &mut Folio) -> bool {
    folio.as_mut_slice().expect("mapped and the only reference").iter().all(|&byte| byte == 0)
}

#[test]
fn what_is_ready_is_zero_and_counts_as_free() {
    let _alone = alone();
    let (pgmap, _) = dirty_emulated();
    assert!(!is_zero(&mut huge(&pgmap)), "the test's memory must be dirty to show anything");
    keep(&pgmap, 3);
    assert_eq!(fill(), Filled::Full);
    let stats = pgmap.stats();
    assert_eq!((stats.prezeroed_bytes, stats.used_bytes), (3 * HUGE, 0));
    assert!(pgmap.live_folios().is_empty());
    validate(&pgmap);
    let mut folios: Vec<Folio> =
        (0..5).map(|_| pgmap.alloc_folio_zeroed(Order::HUGE, Lifetime::Short).expect("room")).collect();
    assert_eq!(pgmap.stats().prezeroed_bytes, 0, "the first three were ready");
    assert!(folios.iter_mut().all(is_zero));
    validate(&pgmap);
    let mut small = pgmap.alloc_folio_zeroed(order(3), Lifetime::Long).expect("room");
    assert!(is_zero(&mut small));
}

#[test]
fn no_request_fails_for_what_is_kept_aside() {
    let _alone = alone();
    let (pgmap, _) = dirty_emulated();
    keep(&pgmap, NR_BLOCKS as usize);
    for size in [0, 4, 8, 9, 10, 12] {
        assert_eq!(fill(), Filled::Full);
        assert_eq!(pgmap.stats().prezeroed_bytes, NR_BLOCKS * HUGE, "everything is aside");
        let size = order(size);
        let nr_runs = NR_BLOCKS * 512 / size.nr_pages();
        let folios: Vec<Folio> =
            (0..nr_runs).map(|_| pgmap.alloc_folio(size, Lifetime::Short).expect("room")).collect();
        assert!(pgmap.alloc_folio(order(0), Lifetime::Short).is_err(), "there is no more");
        assert_eq!(fill(), Filled::Starved);
        validate(&pgmap);
        drop(folios);
        assert_eq!(fill(), Filled::Full);
        let wanted: Vec<Folio> =
            (0..nr_runs).map(|run| pgmap.request_folio(run * size.nr_pages(), size).expect("idle")).collect();
        let busy = FolioError::Busy { offset: 0, order: order(0) };
        assert_eq!(pgmap.request_folio(0, order(0)).unwrap_err(), busy);
        validate(&pgmap);
        drop(wanted);
    }
}

#[test]
fn a_pool_of_none_gives_everything_back() {
    let _alone = alone();
    let (pgmap, _) = dirty_emulated();
    keep(&pgmap, 1000);
    fill();
    assert_eq!(pgmap.stats().prezeroed_bytes, NR_BLOCKS * HUGE);
    for kept in [5, 0] {
        keep(&pgmap, kept);
        assert_eq!(pgmap.stats().prezeroed_bytes, kept as u64 * HUGE);
        validate(&pgmap);
    }
    assert_eq!(fill(), Filled::Full);
    assert_eq!(pgmap.stats().prezeroed_bytes, 0);
}

#[test]
fn pools_are_refused_where_there_can_be_none() {
    let _alone = alone();
    let refusal = |options| {
        let (pgmap, _) = bind_with(TestDevice::new(64 << 20), options);
        service::run(|| pgmap.core().keep_zeroed(1)).unwrap_err()
    };
    let own = PgmapOptions { offsets: OffsetTracking::Own, ..PgmapOptions::default() };
    assert!(matches!(refusal(own), FolioError::OwnOffsets { .. }));
    let large = PgmapOptions { min_order: order(10), ..PgmapOptions::default() };
    assert!(matches!(refusal(large), FolioError::OrderTooSmall { .. }));
    let (pgmap, _) = dirty_emulated();
    pgmap.kill().expect("live");
    assert!(matches!(service::run(|| pgmap.core().keep_zeroed(1)), Err(FolioError::Dying { .. })));
}

#[test]
fn a_pool_is_in_nobodys_way_at_the_end() {
    let _alone = alone();
    let (pgmap, device) = dirty_emulated();
    keep(&pgmap, 4);
    fill();
    pgmap.kill().expect("live");
    assert_eq!(pgmap.state(), PgmapState::Drained, "what is ready holds no reference");
    assert_eq!(fill(), Filled::Full, "a dying pgmap's pool is not filled");
    pgmap.resurrect().expect("drained");
    let mut folio = pgmap.alloc_folio_zeroed(Order::HUGE, Lifetime::Short).expect("room");
    assert!(is_zero(&mut folio));
    assert_eq!(pgmap.stats().prezeroed_bytes, 3 * HUGE);
    drop(folio);
    pgmap.kill().expect("live");
    pgmap.drain(Duration::ZERO).expect("no folio is live");
    pgmap.exit().expect("drained");
    assert!(device.claimed().is_empty());
    assert_eq!(pgmap.stats().prezeroed_bytes, 0);
    fill();
}

/// Fills pools in a thread of its own, as the library's does, while `body` runs.
fn while_filling(body: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if service::run(fill_one) != Filled::One {
                    std::thread::yield_now();
                }
            }
        });
        body();
    });
}

#[test]
fn the_last_handle_takes_the_claims_along_in_the_middle_of_filling() {
    let _alone = alone();
    while_filling(|| {
        for round in 0..40 {
            let (pgmap, device) = dirty_emulated();
            keep(&pgmap, NR_BLOCKS as usize);
            if round % 2 == 0 {
                std::thread::sleep(Duration::from_micros(50 * round));
            }
            drop(pgmap);
            assert!(device.claimed().is_empty(), "round {round}");
            assert_eq!(nr_listed(), 0, "who fills must not know what is gone");
        }
    });
}

#[test]
fn zeroed_folios_are_zero_and_none_is_missed_while_everybody_takes_and_fills() {
    let _alone = alone();
    let (pgmap, _) = dirty_emulated();
    keep(&pgmap, 5);
    while_filling(|| {
        std::thread::scope(|scope| {
            for thread in 0..2u64 {
                let pgmap = &pgmap;
                scope.spawn(move || {
                    let mut held: Vec<Folio> = Vec::new();
                    for step in 0..300 {
                        // Each thread may have half of the memory, so there is room for every request.
                        let choice = (step * 7 + thread * 3) % 11;
                        if held.len() as u64 == NR_BLOCKS / 2 || (choice > 7 && !held.is_empty()) {
                            let at = (step as usize * 5) % held.len();
                            held.swap_remove(at).as_mut_slice().expect("mapped").fill(0x5a);
                        } else if choice < 3 {
                            held.push(huge(pgmap));
                        } else {
                            let folio = pgmap.alloc_folio_zeroed(Order::HUGE, Lifetime::Short);
                            let mut folio = folio.expect("room");
                            assert!(is_zero(&mut folio), "thread {thread}, step {step}");
                            held.push(folio);
                        }
                    }
                    // Whoever is still there was dirtied by nobody else.
                    held.iter_mut().for_each(|folio| folio.as_mut_slice().expect("mapped").fill(1));
                });
            }
        });
    });
    fill();
    assert_eq!(pgmap.stats().prezeroed_bytes, 5 * HUGE);
    validate(&pgmap);
}

#[test]
fn a_child_has_nothing_aside_and_misses_nothing() {
    let _alone = alone();
    for (kind, after_fork) in [
        (DeviceKind::Dram, AfterFork::Private),
        (DeviceKind::Emulated, AfterFork::Fresh),
        (DeviceKind::Dax, AfterFork::Foreign),
    ] {
        let (pgmap, _) = dirty(kind, after_fork);
        keep(&pgmap, 3);
        assert_eq!(fill(), Filled::Full);
        in_child(true, || {
            assert_eq!(pgmap.stats().prezeroed_bytes, 0);
            validate(&pgmap);
            let all = pgmap.alloc_folio(order(12), Lifetime::Short);
            assert_eq!(all.is_ok(), after_fork != AfterFork::Foreign, "{kind:?}: {all:?}");
            drop(all);
            assert_eq!(fill(), Filled::Full, "the pool was the parent's wish");
            if after_fork != AfterFork::Foreign {
                keep(&pgmap, 2);
                assert_eq!(fill(), Filled::Full);
                assert_eq!(pgmap.stats().prezeroed_bytes, 2 * HUGE);
                let mut folio = pgmap.alloc_folio_zeroed(Order::HUGE, Lifetime::Short).expect("room");
                if kind == DeviceKind::Dram {
                    // The other test device has one file for both sides.
                    assert!(is_zero(&mut folio));
                }
            }
        });
        assert_eq!(pgmap.stats().prezeroed_bytes, 3 * HUGE, "the parent's pool is as it was");
        let mut folio = pgmap.alloc_folio_zeroed(Order::HUGE, Lifetime::Short).expect("room");
        assert!(is_zero(&mut folio));
        validate(&pgmap);
    }
}
