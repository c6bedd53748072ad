//! The rules that the names pgmap and folio promise, one test each.

use super::*;
use crate::pgmap::testing::{TestDevice, bind, bind_with, order, validate};
use crate::pgmap::{DrainError, OffsetTracking, PgmapOptions, PgmapState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Notes what was freed, and by which thread.
#[derive(Default)]
struct Freed {
    folios: Mutex<Vec<FreedFolio>>,
    calls: AtomicUsize,
}

impl FolioFree for Freed {
    fn folio_free(&self, freed: FreedFolio) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.folios.lock().unwrap().push(freed);
    }
}

fn with_callback(len_bytes: u64, offsets: OffsetTracking) -> (Pgmap, Arc<Freed>) {
    let freed = Arc::new(Freed::default());
    let options = PgmapOptions { offsets, on_free: Some(freed.clone()), ..PgmapOptions::default() };
    (bind_with(TestDevice::new(len_bytes), options).0, freed)
}

#[test]
fn request_by_offset_needs_neither_pointer_nor_metadata() {
    let pgmap = bind(256 * MIB);
    let folio = pgmap.request_folio(40_000, Order::PAGE).unwrap();
    assert_eq!((folio.offset(), folio.order(), folio.ref_count()), (40_000, Order::PAGE, 1));
    assert_eq!(folio.len_bytes(), 4096);
    validate(&pgmap);
}

#[test]
fn a_second_request_is_busy_and_never_shared() {
    for (held, wanted) in [(9, 9), (9, 0), (0, 9), (3, 2), (2, 3), (10, 9), (9, 10), (10, 0), (15, 16)] {
        let pgmap = bind(512 * MIB);
        let folio = pgmap.request_folio(0, order(held)).unwrap();
        let error = pgmap.request_folio(0, order(wanted)).unwrap_err();
        assert_eq!(error, FolioError::Busy { offset: 0, order: order(wanted) }, "{held} then {wanted}");
        assert_eq!(folio.ref_count(), 1);
        drop(folio);
        pgmap.request_folio(0, order(wanted)).unwrap();
        validate(&pgmap);
    }
}

#[test]
fn a_tail_is_as_busy_as_its_head() {
    for offsets in [OffsetTracking::Provided, OffsetTracking::Own] {
        let (pgmap, _) = with_callback(256 * MIB, offsets);
        let _folio = pgmap.request_folio(1024, order(10)).unwrap();
        for (offset, wanted) in [(1536, 9), (2047, 0), (1028, 2), (1024, 0)] {
            assert!(matches!(pgmap.request_folio(offset, order(wanted)), Err(FolioError::Busy { .. })));
        }
    }
}

#[test]
fn each_check_has_its_own_error() {
    let options = PgmapOptions { min_order: order(1), ..PgmapOptions::default() };
    let (pgmap, _) = bind_with(TestDevice::new(64 * MIB), options);
    let nr_pages = 64 * 256;
    let refused = |offset, wanted| pgmap.request_folio(offset, order(wanted)).unwrap_err();
    assert_eq!(refused(nr_pages, 1), FolioError::OutOfBounds { offset: nr_pages, order: order(1), nr_pages });
    assert_eq!(
        refused(u64::MAX - 1, 1),
        FolioError::OutOfBounds { offset: u64::MAX - 1, order: order(1), nr_pages }
    );
    assert_eq!(refused(512, 9 + 5), FolioError::OutOfBounds { offset: 512, order: order(14), nr_pages });
    assert_eq!(refused(3, 1), FolioError::Misaligned { offset: 3, order: order(1) });
    assert_eq!(refused(0, 0), FolioError::OrderTooSmall { order: order(0), min_order: order(1) });
    assert_eq!(refused(0, 15), FolioError::OrderTooLarge { order: order(15), max_order: order(14) });
    assert_eq!(pgmap.stats().failures, 6);
    assert_eq!(pgmap.stats().claimed_bytes, 0, "a bad argument claims nothing");
}

#[test]
fn the_order_of_the_last_use_does_not_leak() {
    for offsets in [OffsetTracking::Provided, OffsetTracking::Own] {
        let (pgmap, freed) = with_callback(256 * MIB, offsets);
        for _ in 0..3 {
            drop(pgmap.request_folio(512, Order::HUGE).unwrap());
            drop(pgmap.request_folio(512 + 7, Order::PAGE).unwrap());
            drop(pgmap.request_folio(512 + 8, order(3)).unwrap());
            drop(pgmap.request_folio(0, order(10)).unwrap());
            let orders: Vec<u8> =
                freed.folios.lock().unwrap().split_off(0).iter().map(|f| f.order.get()).collect();
            assert_eq!(orders, [9, 0, 3, 10]);
        }
        validate(&pgmap);
    }
}

#[test]
fn a_refused_request_leaves_no_reference_behind() {
    let pgmap = bind(256 * MIB);
    let folio = pgmap.request_folio(0, Order::HUGE).unwrap();
    for _ in 0..100 {
        pgmap.request_folio(0, Order::PAGE).unwrap_err();
        pgmap.request_folio(1, Order::HUGE).unwrap_err();
        pgmap.alloc_folio(Order::GIANT, Lifetime::Short).unwrap_err();
    }
    pgmap.kill().unwrap();
    assert_eq!(pgmap.state(), PgmapState::Dying);
    drop(folio);
    assert_eq!(pgmap.state(), PgmapState::Drained);
}

#[test]
fn a_dying_pgmap_refuses_requests_and_keeps_its_folios() {
    let pgmap = bind(256 * MIB);
    let folio = pgmap.request_folio(0, Order::HUGE).unwrap();
    pgmap.kill().unwrap();
    let dying = FolioError::Dying { pgmap: pgmap.id() };
    assert_eq!(pgmap.request_folio(512, Order::HUGE).unwrap_err(), dying);
    assert_eq!(pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap_err(), dying);
    assert!(pgmap.try_get_folio(0).is_none(), "losing to kill is normal");
    let second = folio.clone();
    drop(folio);
    let raw = second.into_raw();
    assert_eq!(raw.try_get().unwrap_err(), dying);
    raw.get().unwrap();
    raw.put().unwrap();
    raw.put().unwrap();
    assert_eq!(pgmap.state(), PgmapState::Drained);
}

#[test]
fn the_last_put_calls_back_exactly_once_with_order_and_user_word() {
    let (pgmap, freed) = with_callback(256 * MIB, OffsetTracking::Provided);
    let folio = pgmap.request_folio(1024, order(4)).unwrap();
    folio.set_user(77);
    let others: Vec<Folio> = (0..5).map(|_| folio.clone()).collect();
    drop(folio);
    assert_eq!(freed.calls.load(Ordering::Relaxed), 0);
    drop(others);
    let expected = FreedFolio { pgmap: pgmap.id(), offset: 1024, order: order(4), user: 77 };
    assert_eq!(*freed.folios.lock().unwrap(), [expected]);
}

#[test]
fn the_callback_runs_on_the_thread_that_put_last() {
    struct Where(Mutex<Option<std::thread::ThreadId>>);
    impl FolioFree for Where {
        fn folio_free(&self, _: FreedFolio) {
            *self.0.lock().unwrap() = Some(std::thread::current().id());
        }
    }
    let place = Arc::new(Where(Mutex::new(None)));
    let options = PgmapOptions { on_free: Some(place.clone()), ..PgmapOptions::default() };
    let (pgmap, _) = bind_with(TestDevice::new(64 * MIB), options);
    let folio = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap();
    let thread = std::thread::spawn(move || drop(folio));
    let id = thread.thread().id();
    thread.join().unwrap();
    assert_eq!(*place.0.lock().unwrap(), Some(id));
}

#[test]
fn the_callback_may_request_the_same_offset_again() {
    struct Again(Mutex<Option<Folio>>);
    impl FolioFree for Again {
        fn folio_free(&self, freed: FreedFolio) {
            let pgmap = Pgmap::from_id(freed.pgmap).expect("the pgmap's reference goes after the callback");
            let mut kept = self.0.lock().unwrap();
            if kept.is_none() {
                *kept =
                    Some(pgmap.request_folio(freed.offset, freed.order).expect("idle, and no lock is held"));
            }
        }
    }
    for offsets in [OffsetTracking::Provided, OffsetTracking::Own] {
        for wanted in [0, 9, 11] {
            let again = Arc::new(Again(Mutex::new(None)));
            let options = PgmapOptions { offsets, on_free: Some(again.clone()), ..PgmapOptions::default() };
            let (pgmap, _) = bind_with(TestDevice::new(64 * MIB), options);
            drop(pgmap.request_folio(2048, order(wanted)).unwrap());
            let kept = again.0.lock().unwrap().take().expect("requested again");
            assert_eq!((kept.offset(), kept.ref_count()), (2048, 1));
            *again.0.lock().unwrap() = Some(pgmap.request_folio(0, Order::PAGE).unwrap());
            drop(kept);
        }
    }
}

#[test]
fn get_and_put_count() {
    let pgmap = bind(64 * MIB);
    let folio = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap();
    let second = folio.clone();
    assert_eq!(folio.ref_count(), 2);
    let third = pgmap.try_get_folio(folio.offset()).unwrap();
    assert_eq!(third.ref_count(), 3);
    drop((folio, second));
    assert_eq!(third.ref_count(), 1);
    let offset = third.offset();
    drop(third);
    assert!(pgmap.try_get_folio(offset).is_none());
}

#[test]
fn try_get_finds_the_folio_that_covers_an_offset() {
    let pgmap = bind(512 * MIB);
    for wanted in [0, 1, 8, 9, 10, 16] {
        let folio = pgmap.request_folio(1 << 16, order(wanted)).unwrap();
        for page in [0, 1, folio.order().nr_pages() / 2, folio.order().nr_pages() - 1] {
            let page = page % folio.order().nr_pages();
            let found = pgmap.try_get_folio((1 << 16) + page).unwrap();
            assert_eq!((found.offset(), found.order()), (1 << 16, order(wanted)));
        }
        assert!(pgmap.try_get_folio((1 << 16) + folio.order().nr_pages()).is_none());
        assert!(pgmap.try_get_folio(u64::MAX).is_none());
    }
}

#[test]
fn a_mutable_slice_needs_the_only_reference() {
    let pgmap = bind(64 * MIB);
    let mut folio = pgmap.alloc_folio(order(2), Lifetime::Short).unwrap();
    let slice = folio.as_mut_slice().unwrap();
    assert_eq!(slice.len(), 4 * 4096);
    slice.fill(7);
    let second = folio.clone();
    assert!(folio.as_mut_slice().is_none() && !folio.zero());
    drop(second);
    assert!(folio.zero());
    assert!(folio.as_mut_slice().unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn a_stale_or_double_put_is_an_error_and_harms_nobody() {
    for wanted in [0, 3, 9, 11] {
        let pgmap = bind(64 * MIB);
        let raw = pgmap.request_folio(0, order(wanted)).unwrap().into_raw();
        raw.put().unwrap();
        let stale = FolioError::Stale { pgmap: pgmap.id(), offset: 0 };
        assert_eq!(raw.put().unwrap_err(), stale);
        let next = pgmap.request_folio(0, order(wanted)).unwrap();
        for outcome in [raw.put(), raw.get(), raw.try_get(), raw.info().map(drop), raw.set_user(1)] {
            assert_eq!(outcome.unwrap_err(), stale);
        }
        assert_eq!((next.ref_count(), next.user()), (1, 0));
        drop(next);
        let keeper = pgmap.request_folio(512 * 20, Order::PAGE).unwrap();
        drop(pgmap);
        assert_eq!(raw.put().unwrap_err(), stale);
        drop(keeper);
        assert_eq!(raw.put().unwrap_err(), stale, "also when the pgmap is gone");
    }
}

#[test]
fn a_raw_folio_survives_the_way_through_a_number() {
    let pgmap = bind(64 * MIB);
    let folio = pgmap.request_folio(4096, order(5)).unwrap();
    folio.set_user(9);
    let bits = folio.into_raw().to_bits();
    assert_ne!(bits, 0);
    // SAFETY: the number is the one above.
    let raw = unsafe { RawFolio::from_bits(bits) }.unwrap();
    assert_eq!((raw.pgmap(), raw.offset()), (pgmap.id(), 4096));
    let info = raw.info().unwrap();
    assert_eq!((info.order, info.ref_count, info.user), (order(5), 1, 9));
    // SAFETY: the reference is the one that into_raw gave, and it is not put otherwise.
    let folio = unsafe { Folio::from_raw(raw) };
    assert_eq!(folio.order(), order(5));
    drop(folio);
    assert!(raw.info().is_err());
}

#[test]
fn with_own_offsets_the_allocator_stays_out() {
    let (pgmap, _) = with_callback(64 * MIB, OffsetTracking::Own);
    assert_eq!(
        pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap_err(),
        FolioError::OwnOffsets { pgmap: pgmap.id() }
    );
    let folio = pgmap.request_folio(5, Order::PAGE).unwrap();
    assert!(matches!(pgmap.request_folio(5, Order::PAGE), Err(FolioError::Busy { .. })));
    drop(folio);
    pgmap.request_folio(4, order(1)).unwrap();
}

#[test]
fn a_request_takes_the_run_from_the_allocator_too() {
    let pgmap = bind(64 * MIB);
    let first = pgmap.request_folio(0, Order::PAGE).unwrap();
    let next = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap();
    assert_ne!(next.offset(), first.offset());
    drop(first);
    assert_eq!(pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap().offset(), 0);
    validate(&pgmap);
}

#[test]
fn allocation_in_bulk_reports_partial_success() {
    let pgmap = bind(64 * MIB);
    let mut folios = Vec::new();
    let made = pgmap.alloc_folios(Order::HUGE, Lifetime::Long, 40, &mut |folio| folios.push(folio));
    assert_eq!((made, folios.len()), (Ok(32), 32));
    let refused = pgmap.alloc_folios(Order::HUGE, Lifetime::Long, 1, &mut |_| ());
    assert!(matches!(refused, Err(FolioError::Exhausted { free_pages: 0, .. })));
    assert_eq!(pgmap.alloc_folios(Order::HUGE, Lifetime::Long, 0, &mut |_| ()), Ok(0));
    folios.clear();
    validate(&pgmap);
}

#[test]
fn a_folio_keeps_its_pgmap_alive() {
    let (pgmap, device) = bind_with(TestDevice::new(64 * MIB), PgmapOptions::default());
    let id = pgmap.id();
    let mut folio = pgmap.alloc_folio(Order::HUGE, Lifetime::Short).unwrap();
    drop(pgmap);
    assert_eq!(device.claims(), 1);
    folio.as_mut_slice().unwrap().fill(3);
    let handle = folio.pgmap();
    assert_eq!((handle.id(), handle.state()), (id, PgmapState::Dying));
    drop(handle);
    drop(folio);
    assert_eq!(device.claims(), 0, "the last folio took the pgmap along");
    assert!(Pgmap::from_id(id).is_none());
    assert_eq!(Arc::strong_count(&device), 1);
}

#[test]
fn drain_reports_who_holds_what_and_ends_with_the_last_put() {
    let pgmap = bind(64 * MIB);
    assert_eq!(pgmap.drain(Duration::ZERO), Err(DrainError::NotDying { pgmap: pgmap.id() }));
    let folio = pgmap.request_folio(512, Order::HUGE).unwrap();
    let small = pgmap.request_folio(3, Order::PAGE).unwrap();
    small.set_user(42);
    pgmap.kill_and_confirm().unwrap();
    let Err(DrainError::TimedOut { holders, .. }) = pgmap.drain(Duration::from_millis(10)) else {
        panic!("two folios are held");
    };
    assert_eq!(holders, [small.info(), folio.info()]);
    assert_eq!(holders[0].user, 42);
    let putter = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop((small, folio));
    });
    pgmap.drain(Duration::from_secs(30)).unwrap();
    assert_eq!(pgmap.state(), PgmapState::Drained);
    putter.join().unwrap();
}
