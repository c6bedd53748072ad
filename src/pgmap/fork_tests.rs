//! What a forked child may do, one test for each kind of device.

use super::testing::{TestDevice, bind_with, in_child, order, validate};
use super::*;
use crate::device::{AfterFork, DeviceKind};
use crate::offset::Lifetime;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const EXTENT: u64 = 128 * MIB;

#[derive(Default)]
struct Calls(AtomicUsize);

impl FolioFree for Calls {
    fn folio_free(&self, _: FreedFolio) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn bound(kind: DeviceKind, after_fork: AfterFork) -> (Pgmap, Arc<TestDevice>, Arc<Calls>) {
    let mut device = TestDevice::new(4 * EXTENT);
    device.kind = kind;
    device.after_fork = after_fork;
    let calls = Arc::new(Calls::default());
    let options = PgmapOptions { on_free: Some(calls.clone()), ..PgmapOptions::default() };
    let (pgmap, device) = bind_with(device, options);
    (pgmap, device, calls)
}

#[test]
fn a_child_of_private_memory_goes_on_with_its_own_copy() {
    let (pgmap, _, calls) = bound(DeviceKind::Dram, AfterFork::Private);
    let mut folio = pgmap.alloc_folio(Order::HUGE, Lifetime::Short).unwrap();
    folio.as_mut_slice().unwrap()[0] = 7;
    let raw = folio.into_raw();
    in_child(true, || {
        // SAFETY: the child's copy of the reference.
        let mut folio = unsafe { crate::folio::Folio::from_raw(raw) };
        assert_eq!(folio.as_mut_slice().unwrap()[0], 7);
        folio.as_mut_slice().unwrap()[0] = 8;
        drop(folio);
        assert_eq!(calls.0.load(Ordering::Relaxed), 1);
        drop(pgmap.alloc_folio(Order::GIANT, Lifetime::Short).unwrap_err());
        drop(pgmap.alloc_folio(order(15), Lifetime::Short).unwrap());
        validate(&pgmap);
        pgmap.kill().unwrap();
        assert_eq!(pgmap.state(), PgmapState::Drained);
    });
    // SAFETY: the reference of into_raw above.
    let mut folio = unsafe { crate::folio::Folio::from_raw(raw) };
    assert_eq!(folio.as_mut_slice().unwrap()[0], 7);
    assert_eq!(pgmap.state(), PgmapState::Live);
}

#[test]
fn a_child_of_a_foreign_device_finds_its_parents_extents_forked() {
    let (pgmap, device, calls) = bound(DeviceKind::Dax, AfterFork::Foreign);
    let folio = pgmap.alloc_folio(Order::HUGE, Lifetime::Short).unwrap();
    let addr = folio.address().unwrap().as_ptr().addr();
    let small = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap();
    in_child(true, || {
        let id = pgmap.id();
        let forked = |offset| FolioError::Forked { pgmap: id, offset };
        assert_eq!(pgmap.stats().used_bytes, 0);
        assert!(pgmap.live_folios().is_empty());
        assert_eq!(folio.address().unwrap_err(), forked(folio.offset()));
        assert_eq!(folio.ref_count(), 0);
        let raw = small.clone().into_raw();
        for outcome in [raw.get(), raw.try_get(), raw.put(), raw.info().map(drop), raw.set_user(1)] {
            assert_eq!(outcome.unwrap_err(), forked(small.offset()));
        }
        assert_eq!(pgmap.request_folio(0, Order::PAGE).unwrap_err(), forked(0));
        assert_eq!(pgmap.address_of(0).unwrap_err(), forked(0));
        assert!(pgmap.try_get_folio(0).is_none());
        drop((folio.clone(), small.clone()));
        assert_eq!(calls.0.load(Ordering::Relaxed), 0, "no callback for the parent's folios");
        // Another extent may be claimed, and is the child's own.
        let mut own = pgmap.alloc_folio(order(15), Lifetime::Short).unwrap();
        assert_eq!((own.offset(), pgmap.state()), (1 << 15, PgmapState::Live));
        own.as_mut_slice().unwrap()[0] = 1;
        drop(own);
        assert_eq!(calls.0.load(Ordering::Relaxed), 1);
        validate(&pgmap);
        assert!(is_reserved(addr), "the parent's addresses are not for others");
        pgmap.kill().unwrap();
        pgmap.drain(Duration::ZERO).expect("the parent's folios are not ours to wait for");
        assert_eq!(raw.put().unwrap_err(), forked(small.offset()), "also when drained");
        pgmap.exit().unwrap();
        assert_eq!(device.claims(), 1, "only the child's own extent was given back");
    });
    assert_eq!((folio.ref_count(), small.ref_count()), (1, 1));
    drop((folio, small));
    assert_eq!(calls.0.load(Ordering::Relaxed), 2);
    validate(&pgmap);
}

#[test]
fn a_child_that_can_claim_nothing_says_forked() {
    let mut device = TestDevice::new(64 * MIB);
    device.kind = DeviceKind::Dax;
    device.after_fork = AfterFork::Foreign;
    let (pgmap, _) = bind_with(device, PgmapOptions::default());
    let folio = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap();
    in_child(true, || {
        assert_eq!(pgmap.state(), PgmapState::Forked);
        assert!(matches!(pgmap.alloc_folio(Order::PAGE, Lifetime::Short), Err(FolioError::Exhausted { .. })));
        // The last handle goes before the folio, whose drop must find nothing to do.
        // SAFETY: the child's copy of the handle; the original is never dropped here.
        drop(unsafe { std::ptr::read(&pgmap) });
        // SAFETY: as above.
        drop(unsafe { std::ptr::read(&folio) });
    });
    assert_eq!(pgmap.state(), PgmapState::Live);
}

#[test]
fn a_child_of_a_fresh_device_keeps_what_was_counted_and_loses_what_was_addressed() {
    let (pgmap, _, calls) = bound(DeviceKind::Emulated, AfterFork::Fresh);
    let addressed = pgmap.alloc_folio(Order::HUGE, Lifetime::Short).unwrap();
    let page = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap();
    let slot = pgmap.alloc_folio(Order::HUGE, Lifetime::Short).unwrap();
    let addr = addressed.address().unwrap().as_ptr().addr();
    page.address().unwrap();
    in_child(true, || {
        assert!(is_reserved(addr));
        for folio in [&addressed, &page] {
            let forked = FolioError::Forked { pgmap: pgmap.id(), offset: folio.offset() };
            assert_eq!(folio.address().unwrap_err(), forked);
            assert_eq!(folio.clone().into_raw().put().unwrap_err(), forked);
            assert_eq!(pgmap.request_folio(folio.offset(), folio.order()).unwrap_err(), forked);
        }
        assert_eq!(calls.0.load(Ordering::Relaxed), 0);
        assert_eq!(slot.ref_count(), 1, "used elsewhere, not through an address of its own");
        let raw = slot.clone().into_raw();
        raw.put().unwrap();
        let next = pgmap.alloc_folio(Order::HUGE, Lifetime::Short).unwrap();
        assert!(![addressed.offset(), slot.offset()].contains(&next.offset()), "still counted as used");
        next.address().unwrap();
        drop(next);
        raw.put().unwrap();
        assert_eq!(calls.0.load(Ordering::Relaxed), 2);
        pgmap.kill().unwrap();
        pgmap.drain(Duration::ZERO).expect("the parent's folios are not ours to wait for");
    });
    assert_eq!([addressed.ref_count(), page.ref_count(), slot.ref_count()], [1; 3]);
}

/// Returns whether the address is mapped without any access.
fn is_reserved(addr: usize) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
    maps.lines().any(|line| {
        let (range, rest) = line.split_once(' ').expect("a line of maps");
        let (start, end) = range.split_once('-').expect("a range");
        let parse = |text| usize::from_str_radix(text, 16).expect("an address");
        (parse(start)..parse(end)).contains(&addr) && rest.starts_with("---")
    })
}

/// Stops threads.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_child_finds_free_locks_and_sound_counters_under_load() {
    let (pgmap, _, _) = bound(DeviceKind::Dram, AfterFork::Private);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3u8 {
            let (pgmap, stop) = (&pgmap, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let size = order(if thread == 0 { 9 } else { thread });
                    let folio = pgmap.alloc_folio(size, Lifetime::Short).unwrap();
                    drop(folio.clone());
                    drop(folio);
                }
            });
        }
        // However this ends: the scope waits for the threads.
        let _stop = StopAtEnd(&stop);
        for _ in 0..50 {
            in_child(true, || {
                pgmap.body().allocator.as_ref().unwrap().validate().expect("consistent");
                for size in [0, 3, 9, 11] {
                    drop(pgmap.alloc_folio(order(size), Lifetime::Short).unwrap());
                }
                let live = pgmap.live_folios().len();
                assert!(live <= 3, "{live}");
                pgmap.kill().unwrap();
                assert_eq!(pgmap.state() == PgmapState::Drained, live == 0);
            });
        }
    });
    validate(&pgmap);
}
