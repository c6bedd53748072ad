//! Extents, mappings, life and leaks, one rule a test.

use super::testing::{TestDevice, bind, bind_with, in_child, mappings, order, resident_kib, validate};
use super::*;
use crate::device::{DeviceError, DeviceKind};
use crate::folio::Folio;
use crate::offset::Lifetime;
use crate::sys::testing::soon;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const EXTENT: u64 = 128 * MIB;

#[test]
fn binding_a_terabyte_claims_nothing_and_costs_little() {
    in_child(false, || {
        let device = Arc::new(TestDevice::new(1 << 40));
        let ends = |pgmap: &Pgmap| {
            [0, pgmap.nr_pages() - 1].map(|offset| pgmap.request_folio(offset, Order::PAGE).unwrap())
        };
        // Once through all of it: code that runs first comes into memory too.
        drop(ends(&Pgmap::bind(device.clone(), PgmapOptions::default()).unwrap()));
        let before = resident_kib();
        let start = Instant::now();
        let pgmap = Pgmap::bind(device.clone(), PgmapOptions::default()).unwrap();
        let took = start.elapsed();
        assert_eq!(device.claims(), 0);
        assert!(resident_kib() - before < 1024, "{} KiB", resident_kib() - before);
        assert!(took < Duration::from_millis(10), "{took:?}");
        let folios = ends(&pgmap);
        assert_eq!(device.claims(), 2);
        assert!(resident_kib() - before < 1024, "{} KiB", resident_kib() - before);
        assert!(pgmap.stats().metadata_bytes < 64 << 10, "{}", pgmap.stats().metadata_bytes);
        drop(folios);
    });
}

#[test]
fn metadata_of_a_split_block_goes_when_the_block_is_idle() {
    let pgmap = bind(256 * MIB);
    let base = {
        let _huge = pgmap.request_folio(0, Order::HUGE).unwrap();
        pgmap.stats().metadata_bytes
    };
    let small = pgmap.request_folio(3, Order::PAGE).unwrap();
    assert_eq!(pgmap.stats().metadata_bytes, base + 4096);
    small.set_user(5);
    assert_eq!(pgmap.stats().metadata_bytes, base + 8192);
    let other = pgmap.request_folio(4, order(2)).unwrap();
    assert_eq!(other.user(), 0);
    drop(small);
    assert_eq!(pgmap.stats().metadata_bytes, base + 8192);
    drop(other);
    assert_eq!(pgmap.stats().metadata_bytes, base);
    assert_eq!(pgmap.request_folio(3, Order::PAGE).unwrap().user(), 0, "the user word went along");
}

#[test]
fn extents_are_claimed_one_by_one_as_needed() {
    let (pgmap, device) = bind_with(TestDevice::new(4 * EXTENT), PgmapOptions::default());
    let first = pgmap.alloc_folio(order(15), Lifetime::Short).unwrap();
    assert_eq!((device.claims(), first.offset()), (1, 0));
    let second = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap();
    assert_eq!((device.claims(), second.offset()), (2, 1 << 15));
    let third = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap();
    assert_eq!((device.claims(), third.offset()), (2, (1 << 15) + 1));
    let last = pgmap.request_folio(3 << 15, Order::PAGE).unwrap();
    assert_eq!(device.claims(), 3);
    validate(&pgmap);
    drop((first, second, third, last, pgmap));
    assert_eq!(device.claims(), 0);
}

#[test]
fn extents_that_another_process_holds_are_passed_over() {
    let device = TestDevice::new(4 * EXTENT);
    device.hold_elsewhere(0..4096);
    device.hold_elsewhere(2 * EXTENT..3 * EXTENT);
    let (pgmap, device) = bind_with(device, PgmapOptions::default());
    let whole = order(15);
    let folios = [(); 2].map(|()| pgmap.alloc_folio(whole, Lifetime::Short).unwrap());
    assert_eq!(folios.each_ref().map(|folio| folio.offset() >> 15), [1, 3]);
    let refused = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap_err();
    assert_eq!(refused, FolioError::Exhausted { order: Order::PAGE, free_pages: 0, held_extents: 2 });
    let refused = pgmap.request_folio(0, Order::PAGE).unwrap_err();
    assert!(matches!(refused, FolioError::Device(DeviceError::Claimed { .. })), "{refused:?}");
    device.let_go_elsewhere();
    assert_eq!(pgmap.alloc_folio(whole, Lifetime::Short).unwrap().offset(), 0, "given up elsewhere");
}

#[test]
fn an_order_above_an_extent_claims_a_whole_aligned_group() {
    let device = TestDevice::new(16 * EXTENT);
    device.hold_elsewhere(EXTENT..2 * EXTENT);
    let (pgmap, device) = bind_with(device, PgmapOptions::default());
    let small = pgmap.request_folio(5 << 15, Order::PAGE).unwrap();
    let folio = pgmap.alloc_folio(order(17), Lifetime::Short).unwrap();
    assert_eq!(folio.offset() >> 15, 8, "0..4 is held in part, 4..8 used in part");
    let giant = pgmap.alloc_folio(Order::GIANT, Lifetime::Short).unwrap_err();
    assert!(matches!(giant, FolioError::Exhausted { held_extents: 0, .. }), "{giant:?}");
    drop((small, folio));
    assert_eq!(pgmap.alloc_folio(Order::GIANT, Lifetime::Short).unwrap().offset() >> 15, 8);
    assert!(device.claims() >= 8);
    validate(&pgmap);
}

#[test]
fn the_limit_is_kept_to_the_granule() {
    let limit = 150 * MIB + 3 * MIB;
    let options = PgmapOptions { limit_pages: Some(limit / 4096), ..PgmapOptions::default() };
    let (pgmap, _) = bind_with(TestDevice::new(8 * EXTENT), options);
    assert_eq!(pgmap.stats().capacity_bytes, 152 * MIB);
    let mut folios: Vec<Folio> = Vec::new();
    let made = pgmap.alloc_folios(Order::HUGE, Lifetime::Short, 1000, &mut |folio| folios.push(folio));
    assert_eq!(made, Ok(76));
    let stats = pgmap.stats();
    assert_eq!((stats.claimed_bytes, stats.used_bytes, stats.peak_bytes), (152 * MIB, 152 * MIB, 152 * MIB));
    assert_eq!((stats.folios_by_order[9], stats.allocations), (76, 76));
    let over = pgmap.request_folio(7 << 15, Order::PAGE).unwrap_err();
    assert_eq!(over, FolioError::LimitReached { offset: 7 << 15, limit_pages: 152 * 256 });
    validate(&pgmap);
}

#[test]
fn a_dirty_claim_is_scrubbed_before_any_byte_is_handed_out() {
    let mut device = TestDevice::new(EXTENT);
    device.is_zero = false;
    let (pgmap, device) = bind_with(device, PgmapOptions::default());
    {
        let mut folio = pgmap.alloc_folio(Order::HUGE, Lifetime::Short).unwrap();
        folio.as_mut_slice().unwrap().fill(0xa5);
        // The device keeps what the folio's pages hold until they are claimed again.
        folio.into_raw();
    }
    let second = Pgmap::bind(
        Arc::new(device.left_behind()),
        PgmapOptions { name: "second".into(), ..PgmapOptions::default() },
    )
    .unwrap();
    let mut folio = second.request_folio(0, Order::HUGE).unwrap();
    assert!(folio.as_mut_slice().unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn a_granule_above_an_extent_makes_larger_extents() {
    let mut device = TestDevice::new(2 << 30);
    device.align_bytes = 1 << 30;
    let (pgmap, device) = bind_with(device, PgmapOptions::default());
    let giants = [(); 2].map(|()| pgmap.alloc_folio(Order::GIANT, Lifetime::Short).unwrap());
    assert_eq!(device.claims(), 2);
    assert_eq!(giants[1].address().unwrap().as_ptr().addr() % (1 << 30), 0);
    validate(&pgmap);
}

#[test]
fn a_small_device_is_one_short_extent() {
    let mut device = TestDevice::new(8 * MIB + 4096 * 3);
    device.align_bytes = 4096;
    let (pgmap, _) = bind_with(device, PgmapOptions::default());
    let mut folios: Vec<Folio> = Vec::new();
    let made = pgmap.alloc_folios(Order::PAGE, Lifetime::Short, usize::MAX, &mut |folio| folios.push(folio));
    assert_eq!(made, Ok(2048 + 3));
    for folio in &mut folios {
        folio.as_mut_slice().unwrap().fill(1);
    }
    validate(&pgmap);
}

#[test]
fn bad_devices_are_told_apart() {
    let refuse = |len_bytes, options| {
        let device = Arc::new(TestDevice::new(len_bytes));
        Pgmap::bind(device, options).map(drop).unwrap_err()
    };
    let small = refuse(4096, PgmapOptions::default());
    assert!(matches!(small, PgmapError::DeviceTooSmall { len_bytes: 4096, .. }));
    let options = PgmapOptions { min_order: Order::GIANT, ..PgmapOptions::default() };
    assert!(matches!(refuse(64 * MIB, options), PgmapError::MinOrderTooLarge { .. }));
    let large = refuse(1 << 50, PgmapOptions::default());
    assert!(matches!(large, PgmapError::DeviceTooLarge { .. }), "{large:?}");
}

#[test]
fn addresses_and_offsets_lead_to_each_other() {
    let pgmap = bind(4 * EXTENT);
    let folio = pgmap.request_folio((1 << 15) + 512, order(5)).unwrap();
    let addr = folio.address().unwrap();
    for page in 0..32 {
        let page_addr = pgmap.address_of(folio.offset() + page).unwrap();
        assert_eq!(page_addr.as_ptr().addr(), addr.as_ptr().addr() + 4096 * page as usize);
        assert_eq!(pgmap.offset_of(page_addr.as_ptr().wrapping_add(4095)), Some(folio.offset() + page));
    }
    assert_eq!(folio.info().address, Some(addr.as_ptr().addr()));
    assert_eq!(pgmap.address_of(0).unwrap_err(), FolioError::NotClaimed { offset: 0 });
    assert!(matches!(pgmap.address_of(1 << 40), Err(FolioError::OutOfBounds { .. })));
    assert_eq!(pgmap.offset_of(std::ptr::null()), None);
    assert_eq!(pgmap.offset_of((&raw const pgmap).cast()), None);
}

#[test]
fn folios_are_aligned_to_their_size_in_memory() {
    let pgmap = bind(4 << 30);
    for size in [0, 5, 9, 12, 16, 18] {
        let folio = pgmap.alloc_folio(order(size), Lifetime::Short).unwrap();
        assert_eq!(folio.address().unwrap().as_ptr().addr() % folio.len_bytes(), 0, "order {size}");
    }
}

#[test]
fn an_extent_is_mapped_at_the_first_address_only() {
    let (pgmap, device) = bind_with(TestDevice::new(2 * EXTENT), PgmapOptions::default());
    let folios = [(); 3].map(|()| pgmap.alloc_folio(Order::HUGE, Lifetime::Short).unwrap());
    assert_eq!(device.maps.load(Ordering::Relaxed), 0);
    assert!(folios.iter().all(|folio| folio.info().address.is_none()));
    for folio in &folios {
        folio.address().unwrap();
    }
    assert_eq!(device.maps.load(Ordering::Relaxed), 1);
}

#[test]
fn memory_of_a_freed_folio_goes_back() {
    for kind in [DeviceKind::Dram, DeviceKind::Emulated] {
        let mut device = TestDevice::new(EXTENT);
        device.kind = kind;
        let (pgmap, _) = bind_with(device, PgmapOptions::default());
        let mut folio = pgmap.request_folio(512, Order::HUGE).unwrap();
        folio.as_mut_slice().unwrap().fill(9);
        drop(folio);
        let mut folio = pgmap.request_folio(512, Order::HUGE).unwrap();
        assert!(folio.as_mut_slice().unwrap().iter().all(|&byte| byte == 0), "{kind:?}");
    }
}

#[test]
fn kill_works_once_and_resurrect_undoes_it() {
    let pgmap = bind(EXTENT);
    let id = pgmap.id();
    assert_eq!(pgmap.resurrect(), Err(PgmapError::NotDying { pgmap: id }));
    assert_eq!(pgmap.state(), PgmapState::Live);
    let folio = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap();
    pgmap.kill().unwrap();
    assert_eq!(pgmap.kill(), Err(PgmapError::Dying { pgmap: id }));
    assert_eq!(pgmap.kill_and_confirm(), Err(PgmapError::Dying { pgmap: id }));
    pgmap.resurrect().unwrap();
    assert_eq!(pgmap.state(), PgmapState::Live);
    drop(pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap());
    pgmap.kill().unwrap();
    drop(folio);
    assert_eq!(pgmap.state(), PgmapState::Drained);
    for _ in 0..3 {
        pgmap.resurrect().unwrap();
        drop(pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap());
        pgmap.kill().unwrap();
        assert_eq!(pgmap.state(), PgmapState::Drained);
    }
    drop(pgmap);
    assert!(Pgmap::from_id(id).is_none());
}

#[test]
fn exit_gives_the_device_back_while_handles_exist() {
    let (pgmap, device) = bind_with(TestDevice::new(EXTENT), PgmapOptions::default());
    let id = pgmap.id();
    let folio = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap();
    let _ = folio.address().unwrap();
    assert_eq!(pgmap.exit(), Err(PgmapError::NotDying { pgmap: id }));
    pgmap.kill().unwrap();
    assert_eq!(pgmap.exit(), Err(PgmapError::NotDrained { pgmap: id, references: 1 }));
    drop(folio);
    pgmap.exit().unwrap();
    assert_eq!((pgmap.state(), device.claims()), (PgmapState::Dead, 0));
    let dead = PgmapError::Dead { pgmap: id };
    assert_eq!(
        [pgmap.exit(), pgmap.kill(), pgmap.resurrect()].map(Result::unwrap_err),
        [(); 3].map(|()| dead.clone())
    );
    assert!(pgmap.alloc_folio(Order::PAGE, Lifetime::Short).is_err());
    assert_eq!(pgmap.address_of(0).unwrap_err(), FolioError::NotClaimed { offset: 0 });
    assert!(pgmap.live_folios().is_empty());
}

#[test]
fn ids_find_their_pgmap_and_are_not_used_again_soon() {
    let first = bind(EXTENT);
    let id = first.id();
    let again = Pgmap::from_id(id).unwrap();
    assert!(Pgmap::all().iter().any(|pgmap| pgmap.id() == id));
    drop(first);
    assert_eq!(again.state(), PgmapState::Live, "a handle is left");
    drop(again);
    // Whoever lists all pgmaps meanwhile, in another test, holds a handle for a moment.
    assert!(soon(|| Pgmap::from_id(id).is_none()));
    assert_ne!(bind(EXTENT).id(), id);
    assert!(Pgmap::from_id(0).is_none());
}

#[test]
fn ten_thousand_binds_leak_nothing() {
    in_child(false, || {
        let cycle = |used: bool| {
            let (pgmap, device) = bind_with(TestDevice::new(EXTENT), PgmapOptions::default());
            if used {
                let mut folio = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap();
                folio.as_mut_slice().unwrap()[0] = 1;
                let _small = folio.clone();
                drop(pgmap);
                assert_eq!(device.claims(), 1);
            }
        };
        (0..100).for_each(|round| cycle(round % 2 == 0));
        let (resident, maps) = (resident_kib(), mappings());
        (0..10_000).for_each(|round| cycle(round % 10 == 0));
        assert!(resident_kib() - resident < 512, "{} KiB", resident_kib() - resident);
        assert!(mappings() <= maps, "{} mappings", mappings());
    });
}

#[test]
fn a_corrupt_folio_is_quarantined_and_never_handed_out_again() {
    for size in [0u8, 2, 9, 10] {
        let pgmap = bind(4 * MIB);
        let folio = pgmap.request_folio(0, order(size)).unwrap();
        pgmap.body().table.overwrite_owner(0, pgmap.id() ^ 1);
        let raw = folio.into_raw();
        let corrupt = FolioError::Corrupt { pgmap: pgmap.id(), offset: 0 };
        assert_eq!(raw.put().unwrap_err(), corrupt, "order {size}");
        let quarantined = FolioError::Quarantined { pgmap: pgmap.id(), offset: 0 };
        assert_eq!(raw.put().unwrap_err(), quarantined);
        assert_eq!(raw.get().unwrap_err(), quarantined);
        assert_eq!(pgmap.request_folio(0, order(size)).unwrap_err(), quarantined);
        assert_eq!(pgmap.stats().quarantined_bytes, order(size).len_bytes());
        assert_eq!(pgmap.stats().used_bytes, 0);
        let mut taken = Vec::new();
        while let Ok(folio) = pgmap.alloc_folio(Order::PAGE, Lifetime::Short) {
            assert!(folio.offset() >= order(size).nr_pages());
            taken.push(folio);
        }
        assert_eq!(taken.len() as u64, 1024 - order(size).nr_pages());
        drop(taken);
        pgmap.kill().unwrap();
        pgmap.drain(Duration::from_secs(1)).expect("the lost folio holds nothing");
    }
}

#[test]
fn a_stray_write_to_an_idle_page_is_quarantined_when_found() {
    let pgmap = bind(4 * MIB);
    let keeper = pgmap.request_folio(0, Order::PAGE).unwrap();
    pgmap.body().table.overwrite(1, 0xdead_beef_dead_beef);
    let mut taken = Vec::new();
    while let Ok(folio) = pgmap.alloc_folio(Order::PAGE, Lifetime::Short) {
        assert_ne!(folio.offset(), 1);
        taken.push(folio);
    }
    assert_eq!(taken.len(), 1022);
    assert_eq!(pgmap.stats().quarantined_bytes, 4096);
    drop((taken, keeper));
    assert!(matches!(pgmap.request_folio(0, Order::HUGE), Err(FolioError::Quarantined { .. })));
    pgmap.kill().unwrap();
    pgmap.drain(Duration::from_secs(1)).expect("nothing is held");
}

#[test]
fn an_offset_that_the_caller_tracks_is_quarantined_as_well() {
    let options = PgmapOptions { offsets: OffsetTracking::Own, ..PgmapOptions::default() };
    let (pgmap, _) = bind_with(TestDevice::new(4 * MIB), options);
    let folio = pgmap.request_folio(512, Order::HUGE).unwrap();
    pgmap.body().table.overwrite_owner(512, pgmap.id() ^ 1);
    drop(folio);
    let refused = pgmap.request_folio(512, Order::HUGE).unwrap_err();
    assert!(matches!(refused, FolioError::Quarantined { .. }), "{refused:?}");
    assert!(matches!(pgmap.request_folio(0, order(10)), Err(FolioError::Quarantined { .. })));
}

#[test]
fn the_count_aborts_on_overflow() {
    in_child(false, || {
        // SAFETY: takes no pointer that matters; keeps the abort from dumping core.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 }) };
        // SAFETY: fork in a process of one thread.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let pgmap = bind(4 * MIB);
            let raw = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap().into_raw();
            pgmap.body().table.set_count(raw.offset(), super::word::MAX_REFS);
            let _ = raw.get();
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: `status` is valid, the child is ours.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT);
    });
}
