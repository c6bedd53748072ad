//! Threads against each other, and random steps against a naive oracle.

use super::*;
use crate::pgmap::testing::{TestDevice, bind_with, order, validate};
use crate::pgmap::{OffsetTracking, PgmapOptions, PgmapState};
use crate::sys::testing::soon;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

/// Counts the callbacks and checks that the folio's pages are marked free exactly once.
struct Owners {
    pages: Vec<AtomicU64>,
    frees: AtomicUsize,
}

impl Owners {
    fn new(nr_pages: u64) -> Arc<Owners> {
        Arc::new(Owners {
            pages: (0..nr_pages).map(|_| AtomicU64::new(0)).collect(),
            frees: AtomicUsize::new(0),
        })
    }

    /// Notes that `user` has the folio to itself.
    fn take(&self, folio: &Folio, user: u64) {
        folio.set_user(user);
        for page in folio.offset()..folio.offset() + folio.order().nr_pages() {
            assert_eq!(self.pages[page as usize].swap(user, Ordering::Relaxed), 0, "page {page}");
        }
    }

    /// Notes that the last reference is about to go.
    fn give(&self, folio: &Folio, user: u64) {
        for page in folio.offset()..folio.offset() + folio.order().nr_pages() {
            assert_eq!(self.pages[page as usize].swap(0, Ordering::Relaxed), user, "page {page}");
        }
    }
}

impl FolioFree for Owners {
    fn folio_free(&self, freed: FreedFolio) {
        self.frees.fetch_add(1, Ordering::Relaxed);
        assert_ne!(freed.user, 0);
    }
}

#[test]
fn threads_that_allocate_never_share_a_page() {
    let owners = Owners::new(256 * 256);
    let options = PgmapOptions { on_free: Some(owners.clone()), ..PgmapOptions::default() };
    let (pgmap, _) = bind_with(TestDevice::new(256 * MIB), options);
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 1..=4u64 {
            let (pgmap, owners, made) = (&pgmap, &owners, &made);
            scope.spawn(move || {
                let mut random = thread * 0x9e37_79b9;
                let mut held: Vec<(Folio, u64)> = Vec::new();
                for step in 0..6_000 {
                    let user = thread << 32 | step | 1 << 20;
                    let size = order([0, 0, 0, 1, 3, 8, 9, 9, 10, 14][next(&mut random) as usize % 10]);
                    let folio = match next(&mut random) % 8 {
                        0..3 => pgmap.alloc_folio(size, Lifetime::Short).ok(),
                        3 => {
                            let offset = next(&mut random) % 65_536 / size.nr_pages() * size.nr_pages();
                            pgmap.request_folio(offset, size).ok()
                        }
                        4 => {
                            // Somebody else's folio: held for a moment, so the owner's give may not be the last put.
                            drop(pgmap.try_get_folio(next(&mut random) % 4096));
                            None
                        }
                        _ if held.is_empty() => None,
                        _ => {
                            let (folio, user) = held.swap_remove(next(&mut random) as usize % held.len());
                            owners.give(&folio, user);
                            drop(folio.clone());
                            None
                        }
                    };
                    if let Some(folio) = folio {
                        made.fetch_add(1, Ordering::Relaxed);
                        owners.take(&folio, user);
                        held.push((folio, user));
                    }
                }
                held.iter().for_each(|(folio, user)| owners.give(folio, *user));
            });
        }
    });
    assert!(made.load(Ordering::Relaxed) > 5_000);
    assert_eq!(owners.frees.load(Ordering::Relaxed), made.load(Ordering::Relaxed), "one callback each");
    validate(&pgmap);
    assert_eq!(pgmap.stats().used_bytes, 0);
    pgmap.kill().unwrap();
    assert_eq!(pgmap.state(), PgmapState::Drained, "no reference is left behind");
}

#[test]
fn threads_that_track_their_own_offsets_never_share_a_page() {
    let owners = Owners::new(2048);
    let options = PgmapOptions {
        offsets: OffsetTracking::Own,
        on_free: Some(owners.clone()),
        ..PgmapOptions::default()
    };
    let (pgmap, _) = bind_with(TestDevice::new(8 * MIB), options);
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 1..=4u64 {
            let (pgmap, owners, made) = (&pgmap, &owners, &made);
            scope.spawn(move || {
                let mut random = thread * 0x9e37_79b9;
                for step in 0..20_000 {
                    let size = order([0, 1, 5, 9, 10, 11][next(&mut random) as usize % 6]);
                    let offset = next(&mut random) % 2048 / size.nr_pages() * size.nr_pages();
                    match pgmap.request_folio(offset, size) {
                        Ok(folio) => {
                            made.fetch_add(1, Ordering::Relaxed);
                            owners.take(&folio, thread << 32 | step | 1 << 20);
                            owners.give(&folio, thread << 32 | step | 1 << 20);
                        }
                        Err(error) => assert!(matches!(error, FolioError::Busy { .. }), "{error}"),
                    }
                    drop(pgmap.try_get_folio(next(&mut random) % 2048));
                }
            });
        }
    });
    assert_eq!(owners.frees.load(Ordering::Relaxed), made.load(Ordering::Relaxed), "one callback each");
    let whole = pgmap.request_folio(0, order(11)).expect("all is idle");
    whole.set_user(1);
    drop(whole);
    assert_eq!(pgmap.stats().used_bytes, 0);
}

#[test]
fn kill_and_resurrect_lose_no_reference_under_load() {
    let (pgmap, _) = bind_with(TestDevice::new(64 * MIB), PgmapOptions::default());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (pgmap, stop) = (&pgmap, &stop);
            scope.spawn(move || {
                let mut random = thread + 1;
                let mut kept = None;
                while !stop.load(Ordering::Relaxed) {
                    match pgmap.alloc_folio(order((next(&mut random) % 10) as u8), Lifetime::Short) {
                        Ok(folio) if next(&mut random) & 3 == 0 => kept = Some(folio),
                        Ok(folio) => drop(folio),
                        Err(error) => assert!(matches!(error, FolioError::Dying { .. }), "{error}"),
                    }
                    if next(&mut random) & 1 == 0 {
                        kept = None;
                    }
                }
                drop(kept);
            });
        }
        for round in 0..300 {
            pgmap.kill().unwrap();
            if round % 3 == 0 {
                pgmap.drain(Duration::from_secs(30)).expect("threads give their folios back");
                assert!(pgmap.live_folios().is_empty());
            }
            pgmap.resurrect().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    validate(&pgmap);
    pgmap.kill().unwrap();
    assert_eq!(pgmap.state(), PgmapState::Drained);
}

#[test]
fn raw_references_to_pgmaps_that_come_and_go_are_stale_and_harmless() {
    let stop = AtomicBool::new(false);
    let latest = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // SAFETY: the number came from to_bits; only operations that consume no reference are used.
                    let Some(raw) = (unsafe { RawFolio::from_bits(latest.load(Ordering::Relaxed)) }) else {
                        continue;
                    };
                    if raw.try_get().is_ok() {
                        assert_eq!(raw.info().unwrap().order, Order::HUGE);
                        raw.put().unwrap();
                    }
                }
            });
        }
        for _ in 0..2_000 {
            let (pgmap, _) = bind_with(TestDevice::new(4 * MIB), PgmapOptions::default());
            let raw = pgmap.alloc_folio(Order::HUGE, Lifetime::Short).unwrap().into_raw();
            latest.store(raw.to_bits(), Ordering::Relaxed);
            raw.put().unwrap();
            drop(pgmap);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn the_last_put_races_with_the_last_handle() {
    for _ in 0..500 {
        let (pgmap, device) = bind_with(TestDevice::new(4 * MIB), PgmapOptions::default());
        let folio = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).unwrap();
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                drop(folio);
            });
            scope.spawn(|| {
                barrier.wait();
                drop(pgmap);
            });
        });
        // A fork in another test holds a share of every pgmap for its length.
        let is_gone = || (device.claims(), Arc::strong_count(&device)) == (0, 1);
        assert!(soon(is_gone), "something of the pgmap was left");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Request(u64, u8),
    Get(usize),
    TryGet(u64),
    Put(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![3 => 0u8..=3, 2 => 8u8..=11, 1 => 12u8..=16];
    let step = prop_oneof![
        4 => (0u64..4096, size.clone()).prop_map(|(offset, order)| Step::Request(offset, order)),
        1 => (0u64..(3 << 15), size).prop_map(|(offset, order)| Step::Request(offset, order)),
        2 => any::<usize>().prop_map(Step::Get),
        2 => (0u64..4096).prop_map(Step::TryGet),
        4 => any::<usize>().prop_map(Step::Put),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn every_step_agrees_with_a_map_of_folios(steps in steps(), is_own: bool) {
        let offsets = if is_own { OffsetTracking::Own } else { OffsetTracking::Provided };
        let options = PgmapOptions { offsets, ..PgmapOptions::default() };
        let (pgmap, _) = bind_with(TestDevice::new(384 * MIB), options);
        let mut live: BTreeMap<u64, (Order, u32)> = BTreeMap::new();
        let mut held: Vec<Folio> = Vec::new();
        let covering = |live: &BTreeMap<u64, (Order, u32)>, page: u64| {
            let (&offset, &(order, _)) = live.range(..=page).next_back()?;
            (page < offset + order.nr_pages()).then_some(offset)
        };
        for step in steps {
            match step {
                Step::Request(offset, size) => {
                    let size = order(size);
                    let offset = offset / size.nr_pages() * size.nr_pages();
                    let end = offset + size.nr_pages();
                    let is_free = covering(&live, offset).is_none() && live.range(offset..end).next().is_none();
                    match pgmap.request_folio(offset, size) {
                        Ok(folio) => {
                            prop_assert!(is_free && end <= pgmap.nr_pages());
                            live.insert(offset, (size, 1));
                            held.push(folio);
                        }
                        Err(FolioError::Busy { .. }) => prop_assert!(!is_free),
                        Err(FolioError::OutOfBounds { .. }) => prop_assert!(end > pgmap.nr_pages()),
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Step::Get(which) if !held.is_empty() => {
                    let folio = held[which % held.len()].clone();
                    live.get_mut(&folio.offset()).expect("live").1 += 1;
                    held.push(folio);
                }
                Step::TryGet(page) => {
                    let found = pgmap.try_get_folio(page);
                    prop_assert_eq!(found.as_ref().map(Folio::offset), covering(&live, page));
                    if let Some(folio) = found {
                        live.get_mut(&folio.offset()).expect("live").1 += 1;
                        held.push(folio);
                    }
                }
                Step::Put(which) if !held.is_empty() => {
                    let folio = held.swap_remove(which % held.len());
                    let count = &mut live.get_mut(&folio.offset()).expect("live").1;
                    *count -= 1;
                    if *count == 0 {
                        live.remove(&folio.offset());
                    }
                }
                Step::Get(_) | Step::Put(_) => {}
            }
        }
        let seen: Vec<_> = pgmap.live_folios().iter().map(|i| (i.offset, (i.order, i.ref_count))).collect();
        prop_assert_eq!(seen, live.into_iter().collect::<Vec<_>>());
        validate(&pgmap);
        held.clear();
        prop_assert_eq!(pgmap.stats().used_bytes, 0);
    }
}

/// Blocks that cease to be split keep their page words until another takes their place; then they are given back, unless the block
/// is split again. Here two blocks that share a place come and go.
#[test]
fn page_words_of_a_block_in_use_are_never_given_back() {
    let options = PgmapOptions { offsets: OffsetTracking::Own, ..PgmapOptions::default() };
    let (pgmap, _) = bind_with(TestDevice::new(64 * MIB), options);
    std::thread::scope(|scope| {
        for block in [0, 8] {
            let pgmap = &pgmap;
            scope.spawn(move || {
                for round in 0..20_000u64 {
                    let folio = pgmap.request_folio(block * 512 + round % 512, Order::PAGE).expect("idle");
                    assert_eq!(folio.ref_count(), 1, "round {round}");
                    let raw = folio.into_raw();
                    assert_eq!(raw.put(), Ok(()), "round {round}");
                }
            });
        }
    });
    validate(&pgmap);
    let base = pgmap.stats().metadata_bytes;
    drop(pgmap.request_folio(0, Order::PAGE).expect("idle"));
    assert_eq!(pgmap.stats().metadata_bytes, base);
}
