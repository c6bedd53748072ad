//! Extents that go and come back while the pgmap lives, alone and among others that want the same ones.

use super::prezero::fill_one;
use super::testing::{TestDevice, bind, bind_with, in_child, validate};
use super::{FolioError, OffsetTracking, Pgmap, PgmapOptions};
use crate::device::{AfterFork, DeviceError};
use crate::folio::Folio;
use crate::offset::Lifetime;
use crate::sync::service;
use crate::units::Order;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const MIB: u64 = 1 << 20;
const EXTENT: u64 = 128 * MIB;
const EXTENT_PAGES: u64 = EXTENT / 4096;

fn claimed(pgmap: &Pgmap) -> u64 {
    pgmap.stats().claimed_bytes
}

/// Takes a folio in each of the first `count` extents.
fn one_in_each(pgmap: &Pgmap, count: u64) -> Vec<Option<Folio>> {
    (0..count).map(|extent| Some(pgmap.request_folio(extent * EXTENT_PAGES, Order::HUGE).unwrap())).collect()
}

/// Catches extents that stay claimed, that go although something is in use, and metadata that is void when they come back.
#[test]
fn only_idle_extents_are_given_back_and_all_come_back() {
    let (pgmap, device) = bind_with(TestDevice::new(4 * EXTENT), PgmapOptions::default());
    let mut folios = one_in_each(&pgmap, 4);
    let page = pgmap.request_folio(EXTENT_PAGES + 600, Order::PAGE).unwrap();
    folios[1] = None;
    assert_eq!((pgmap.release_idle(), device.claims()), (0, 4), "a page of it is in use");
    drop((page, folios[3].take(), folios[0].take()));
    assert_eq!(pgmap.release_idle(), 3 * EXTENT);
    assert_eq!((device.claims(), claimed(&pgmap)), (1, EXTENT));
    let left = 2 * EXTENT..3 * EXTENT;
    assert_eq!(device.claimed(), std::slice::from_ref(&left));
    assert!(pgmap.try_get_folio(EXTENT_PAGES + 600).is_none());
    assert!(matches!(pgmap.address_of(0), Err(FolioError::NotClaimed { .. })));
    validate(&pgmap);
    let again: Vec<Folio> =
        std::iter::from_fn(|| pgmap.alloc_folio(Order::HUGE, Lifetime::Short).ok()).collect();
    assert_eq!(again.len() as u64 * 2 * MIB, 4 * EXTENT - 2 * MIB, "all but the one that is held");
    again.iter().for_each(|folio| assert_eq!(folio.ref_count(), 1));
    validate(&pgmap);
    drop((again, folios));
    assert_eq!((pgmap.release_idle(), device.claims(), claimed(&pgmap)), (4 * EXTENT, 0, 0));
    validate(&pgmap);
}

/// Catches a reference from before that is taken for one of the folio that came after.
#[test]
fn a_stale_reference_is_noticed_after_the_extent_was_away() {
    let pgmap = bind(EXTENT);
    let raw = pgmap.request_folio(7, Order::PAGE).unwrap().into_raw();
    assert_eq!(raw.put(), Ok(()));
    assert_eq!(pgmap.release_idle(), EXTENT);
    assert!(matches!(raw.put(), Err(FolioError::Stale { .. })));
    let fresh = pgmap.request_folio(7, Order::PAGE).unwrap();
    assert!(matches!(raw.put(), Err(FolioError::Stale { .. })));
    assert_eq!(fresh.ref_count(), 1);
}

/// Catches a budget that is not kept, that takes what is in use, or that can't grow again.
#[test]
fn a_budget_shrinks_and_grows() {
    let (pgmap, device) = bind_with(TestDevice::new(4 * EXTENT), PgmapOptions::default());
    let mut folios = one_in_each(&pgmap, 4);
    folios[1] = None;
    // The extent that is idle goes; of the others one is too many.
    assert_eq!(pgmap.set_limit(Some(2 * EXTENT_PAGES)), EXTENT);
    assert_eq!((claimed(&pgmap), pgmap.stats().capacity_bytes), (3 * EXTENT, 2 * EXTENT));
    let refused = pgmap.request_folio(EXTENT_PAGES, Order::HUGE).unwrap_err();
    assert_eq!(refused, FolioError::LimitReached { offset: EXTENT_PAGES, limit_pages: 2 * EXTENT_PAGES });
    folios[3] = None;
    assert_eq!(pgmap.release_idle(), EXTENT);
    assert_eq!(pgmap.set_limit(Some(0)), 2 * EXTENT);
    drop(folios);
    assert_eq!((pgmap.set_limit(Some(0)), device.claims()), (0, 0));
    assert!(matches!(pgmap.alloc_folio(Order::PAGE, Lifetime::Short), Err(FolioError::Exhausted { .. })));
    // Rounded to granules, and cut short at first.
    assert_eq!(pgmap.set_limit(Some(EXTENT_PAGES / 2 + 3)), 0);
    drop(pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap());
    assert_eq!(claimed(&pgmap), EXTENT / 2);
    assert_eq!(pgmap.set_limit(None), 0);
    let all: Vec<Folio> =
        std::iter::from_fn(|| pgmap.alloc_folio(Order::HUGE, Lifetime::Short).ok()).collect();
    assert_eq!(all.len() as u64 * 2 * MIB, 4 * EXTENT);
    validate(&pgmap);
}

/// Catches zeroed runs that nobody uses and that hold their extent all the same.
#[test]
fn what_is_kept_zeroed_holds_no_extent() {
    let pgmap = bind(2 * EXTENT);
    service::run(|| pgmap.core().keep_zeroed(3)).unwrap();
    while pgmap.stats().prezeroed_bytes == 0 {
        service::run(fill_one);
    }
    assert_eq!(pgmap.release_idle(), EXTENT);
    assert_eq!((claimed(&pgmap), pgmap.stats().prezeroed_bytes), (0, 0));
}

/// Catches a granule of several of the allocator's extents of which a part goes.
#[test]
fn a_large_granule_goes_as_a_whole() {
    let mut device = TestDevice::new(2 << 30);
    device.align_bytes = 1 << 30;
    let (pgmap, device) = bind_with(device, PgmapOptions::default());
    let page = pgmap.request_folio((1 << 18) - 1, Order::PAGE).unwrap();
    drop(pgmap.request_folio(1 << 18, Order::PAGE).unwrap());
    assert_eq!((pgmap.release_idle(), device.claims()), (1 << 30, 1));
    drop(page);
    assert_eq!((pgmap.release_idle(), device.claims()), (1 << 30, 0));
    assert_eq!(pgmap.alloc_folio(Order::GIANT, Lifetime::Short).unwrap().offset(), 0);
    validate(&pgmap);
}

/// Catches a guess about pages of which only the caller knows whether they are free.
#[test]
fn what_others_keep_track_of_stays() {
    let options = PgmapOptions { offsets: OffsetTracking::Own, ..PgmapOptions::default() };
    let (pgmap, device) = bind_with(TestDevice::new(EXTENT), options);
    drop(pgmap.request_folio(0, Order::PAGE).unwrap());
    assert_eq!((pgmap.release_idle(), device.claims()), (0, 1));
}

/// Catches a child that gives its parent's claims back.
#[test]
fn a_forked_child_gives_nothing_of_its_parents_back() {
    let mut device = TestDevice::new(2 * EXTENT);
    device.after_fork = AfterFork::Foreign;
    let (pgmap, device) = bind_with(device, PgmapOptions::default());
    drop(pgmap.request_folio(0, Order::PAGE).unwrap());
    in_child(true, || {
        assert_eq!((pgmap.release_idle(), device.claims()), (0, 1));
        drop(pgmap.request_folio(EXTENT_PAGES, Order::PAGE).unwrap());
        assert_eq!((pgmap.release_idle(), device.claims()), (EXTENT, 1));
    });
    assert_eq!(pgmap.release_idle(), EXTENT);
}

/// Catches an extent that is handed to another process while somebody still gets folios in it: two pgmaps share a device of three extents,
/// each with threads that take and put folios and one that gives back what is idle. Whatever a folio holds that is not its
/// own pgmap's was not cleared, or is written to by two.
#[test]
fn extents_go_back_and_forth_between_processes_under_load() {
    let shared = TestDevice::shared(3 * EXTENT);
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut takers = Vec::new();
        for owner in 1..=2usize {
            let device = shared.in_process(owner);
            let pgmap = Pgmap::bind(Arc::new(device), PgmapOptions::default()).unwrap();
            for thread in 0..2u64 {
                let pgmap = pgmap.clone();
                takers.push(scope.spawn(move || take_and_put(&pgmap, owner as u8, thread)));
            }
            let end = &end;
            scope.spawn(move || {
                let mut given = 0;
                while !end.load(Ordering::Relaxed) {
                    given += pgmap.release_idle();
                    std::thread::yield_now();
                }
                given += pgmap.release_idle();
                validate(&pgmap);
                assert!(given > 0);
                assert_eq!(claimed(&pgmap), 0, "everything is idle in the end");
            });
        }
        let nr_taken: Vec<_> = takers.into_iter().map(|taker| taker.join()).collect();
        // Before anything may fail: the scope waits for those who give back.
        end.store(true, Ordering::Relaxed);
        let nr_taken: Vec<u64> = nr_taken.into_iter().map(|nr| nr.unwrap()).collect();
        assert!(nr_taken.iter().all(|&nr| nr > 0), "{nr_taken:?}");
    });
    (0..=2).for_each(|owner| assert_eq!(shared.in_process(owner).claimed().len(), 0));
}

/// Takes folios by any offset and by one, writes to them, and sees that nobody else did. Returns how many it got.
fn take_and_put(pgmap: &Pgmap, tag: u8, thread: u64) -> u64 {
    let mut random = 0x9e37_79b9 * (u64::from(tag) * 7 + thread + 1);
    let mut nr_taken = 0;
    for _ in 0..60 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let order = if random >> 40 & 1 == 0 { Order::HUGE } else { Order::PAGE };
        let offset = ((random >> 33) % (3 * EXTENT_PAGES)) & !(order.nr_pages() - 1);
        let folio = match random >> 41 & 1 {
            0 => pgmap.alloc_folio(order, Lifetime::Short),
            _ => pgmap.request_folio(offset, order),
        };
        let mut folio = match folio {
            Ok(folio) => folio,
            Err(
                FolioError::Busy { .. }
                | FolioError::Exhausted { .. }
                | FolioError::Device(DeviceError::Claimed { .. }),
            ) => continue,
            Err(other) => panic!("{other}"),
        };
        nr_taken += 1;
        let bytes = folio.as_mut_slice().unwrap();
        let places = [0, bytes.len() / 2, bytes.len() - 1];
        places.iter().for_each(|&at| assert!([0, tag].contains(&bytes[at]), "a byte of another's"));
        places.iter().for_each(|&at| bytes[at] = tag);
        std::thread::yield_now();
        places.iter().for_each(|&at| assert_eq!(bytes[at], tag, "another wrote to it"));
    }
    nr_taken
}
