//! Devices that come and go while a pool is in use, on emulated ones: `real_device` has the same on a real one.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use daxtier::{AllocOptions, Config, DeviceChangeError, HeldBy, Order, Outcome, Pool, TierName};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const SLOT: usize = 2 << 20;
const LONG: Duration = Duration::from_secs(60);

fn open(config: &str) -> Pool {
    let pool = Pool::open(&Config::parse(config).unwrap()).unwrap();
    pool.set_migration_quarantine(Duration::from_millis(1));
    pool
}

fn slow() -> AllocOptions {
    AllocOptions { tier: Some(TierName::Slow), ..AllocOptions::default() }
}

/// A block of whole slots in the slow tier.
fn block(pool: &Pool, slots: usize) -> NonNull<u8> {
    pool.malloc(slots * SLOT, SLOT, slow()).unwrap()
}

fn free(pool: &Pool, block: NonNull<u8>) {
    // SAFETY: the tests free each block once, after its last use.
    unsafe { pool.free(block) }.unwrap();
}

/// The word at the start of a slot of a block.
fn word(block: NonNull<u8>, slot: usize) -> &'static AtomicU64 {
    // SAFETY: the tests stay inside their blocks.
    let at = unsafe { block.add(slot * SLOT) };
    // SAFETY: aligned, and live as long as the test uses it.
    unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }
}

/// On which devices the slots of a block are.
fn devices(pool: &Pool, block: NonNull<u8>, slots: usize) -> Vec<String> {
    (0..slots).map(|slot| pool.where_is(block.as_ptr().wrapping_add(slot * SLOT)).unwrap().device).collect()
}

/// Whether this process may move memory; says that the test skips where not.
fn can_migrate(pool: &Pool) -> bool {
    let probe = pool.malloc(SLOT, SLOT, AllocOptions::default()).unwrap();
    let tried = pool.migrate(probe.as_ptr(), SLOT, TierName::Fast);
    free(pool, probe);
    tried.inspect_err(|refusal| println!("skipped: {refusal}")).is_ok()
}

/// Catches a drain that loses stores, leaves blocks behind, or goes on to place memory on the device.
#[test]
fn a_device_is_drained_under_load_and_removed() {
    let pool = open("fast=32M slow=emulated:64M;emulated:128M");
    if !can_migrate(&pool) {
        return;
    }
    // Large enough to lie on both.
    let block = block(&pool, 70);
    let before = devices(&pool, block, 70);
    let on_first = before.iter().filter(|device| *device == "emulated:64M").count();
    assert!((8..70).contains(&on_first), "{on_first} slots on the smaller device");
    let words: Vec<&AtomicU64> = (0..70).map(|slot| word(block, slot)).collect();
    let end = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|thread| {
                let (end, words) = (&end, &words);
                scope.spawn(move || {
                    let mut rounds = 0;
                    while !end.load(Ordering::Relaxed) {
                        for word in words.iter().skip(thread).step_by(2) {
                            word.fetch_add(1, Ordering::Relaxed);
                        }
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        // There is room for 64 slots on the other device; the rest goes to DRAM.
        let report = pool.drain_device("emulated:64M", LONG).unwrap();
        end.store(true, Ordering::Relaxed);
        for (thread, writer) in writers.into_iter().enumerate() {
            let rounds: u64 = writer.join().unwrap();
            let mut words = words.iter().skip(thread).step_by(2);
            assert!(words.all(|word| word.load(Ordering::Relaxed) == rounds), "a store was lost");
        }
        report
    });
    assert!(report.is_complete(), "{report:?}");
    assert!(report.moved_bytes >= (on_first * SLOT) as u64, "{report:?}");
    let after = devices(&pool, block, 70);
    assert!(after.iter().all(|device| device != "emulated:64M"), "{after:?}");
    let on_second = after.iter().filter(|device| *device == "emulated:128M").count();
    assert!(on_second > 70 - on_first, "nothing went on to the other slow device: {on_second}");

    assert_eq!(pool.tiers()[1].capacity_bytes(), 128 << 20, "a drained device holds nothing");
    while let Ok(folio) = pool.alloc_folio(Order::HUGE, slow()) {
        let other = pool.tiers()[1].pgmaps()[1].id();
        assert_eq!(folio.info().pgmap, other, "placed on a drained device");
        std::mem::forget(folio);
    }
    pool.remove_device("emulated:64M").unwrap();
    assert_eq!(pool.tiers()[1].pgmaps().len(), 1);
    assert_eq!(pool.stats().tiers[1].devices, ["emulated:128M"]);
    free(&pool, block);
    std::mem::forget(pool);
}

/// Catches a report without what is held, its address or its holder.
#[test]
fn what_can_not_be_moved_is_reported_with_holder_and_address() {
    let pool = open("fast=32M slow=emulated:64M");
    if !can_migrate(&pool) {
        return;
    }
    let (pinned, moved) = (block(&pool, 1), block(&pool, 1));
    pool.pin(pinned.as_ptr(), SLOT).unwrap();
    let mut folio = pool.alloc_folio(Order::new(3).unwrap(), slow()).unwrap();
    folio.set_user(77);
    let folio_address = folio.as_mut_slice().unwrap().as_ptr().addr();
    let report = pool.drain_device("emulated:64M", Duration::from_millis(300)).unwrap();
    let held = report.held.iter().filter(|held| held.holder != HeldBy::Settling).count();
    assert_eq!((report.moved_bytes, held), (SLOT as u64, 2), "{report:?}");
    assert_eq!(devices(&pool, moved, 1), ["dram"]);
    let of_block = report.held.iter().find(|held| held.address == Some(pinned.as_ptr().addr())).unwrap();
    assert_eq!(of_block.holder, HeldBy::Blocks(Some(Outcome::Kept)));
    assert!(of_block.to_string().contains("pinned by the program"), "{of_block}");
    let of_folio = report.held.iter().find(|held| held.address == Some(folio_address)).unwrap();
    assert_eq!(of_folio.holder, HeldBy::Folio { ref_count: 1, user: 77 });
    assert_eq!((of_folio.offset, of_folio.len_bytes), (folio.offset(), 32 << 10));

    let refusal = pool.remove_device("emulated:64M").unwrap_err();
    assert!(matches!(refusal, DeviceChangeError::InUse { .. }), "{refusal}");
    drop(folio);
    pool.unpin(pinned.as_ptr(), SLOT).unwrap();
    assert!(pool.drain_device("emulated:64M", LONG).unwrap().is_complete());
    assert_eq!(devices(&pool, pinned, 1), ["dram"]);
    pool.remove_device("emulated:64M").unwrap();
    assert!(pool.alloc_folio(Order::HUGE, slow()).is_err(), "nothing slow is left");
    free(&pool, pinned);
    free(&pool, moved);
    pool.close().unwrap();
}

/// Catches a device that serves nothing after it was added, or after its drain was called off.
#[test]
fn a_device_is_added_and_a_drained_one_is_resumed() {
    let pool = open("fast=16M slow=emulated:16M policy=bind=slow");
    let first = std::iter::from_fn(|| pool.alloc_folio(Order::HUGE, slow()).ok()).collect::<Vec<_>>();
    assert_eq!(first.len(), 8, "the first device is full");
    pool.add_device(&"emulated:32M".parse().unwrap()).unwrap();
    assert_eq!(pool.tiers()[1].capacity_bytes(), 48 << 20);
    let block = block(&pool, 16);
    assert!(devices(&pool, block, 16).iter().all(|device| device == "emulated:32M"));
    assert_eq!(pool.stats().tiers[1].devices, ["emulated:16M", "emulated:32M"]);
    free(&pool, block);

    assert!(matches!(pool.resume_device("emulated:16M"), Err(DeviceChangeError::Serving { .. })));
    assert!(matches!(pool.remove_device("emulated:16M"), Err(DeviceChangeError::Serving { .. })));
    assert_eq!(pool.drain_device("emulated:16M", Duration::ZERO).unwrap().held.len(), 8);
    drop(first);
    assert!(pool.drain_device("emulated:16M", Duration::ZERO).unwrap().is_complete());
    pool.resume_device("emulated:16M").unwrap();
    let all = std::iter::from_fn(|| pool.alloc_folio(Order::HUGE, slow()).ok()).collect::<Vec<_>>();
    assert_eq!(all.len(), 24, "both serve");
    drop(all);
    pool.close().unwrap();
}

#[test]
fn devices_that_are_not_there_are_named_with_those_that_are() {
    let pool = open("fast=16M slow=emulated:16M");
    let refusal = pool.drain_device("/dev/dax9.9", LONG).unwrap_err();
    assert!(refusal.to_string().contains("emulated:16M"), "{refusal}");
    let refusal = pool.add_device(&"/dev/dax9.9".parse().unwrap()).unwrap_err();
    assert!(matches!(refusal, DeviceChangeError::Open(_)), "{refusal}");
    let fast_only = open("fast=16M");
    assert!(matches!(
        fast_only.add_device(&"emulated:16M".parse().unwrap()),
        Err(DeviceChangeError::NoSlowTier)
    ));
    assert!(matches!(fast_only.drain_device("dram", LONG), Err(DeviceChangeError::NoSlowTier)));
    pool.close().unwrap();
}

/// Catches a drain that moves although the configuration forbids it, or waits for ever.
#[test]
fn without_migration_everything_is_reported() {
    let pool = open("fast=16M slow=emulated:16M migrate=off");
    let block = block(&pool, 2);
    let report = pool.drain_device("emulated:16M", Duration::from_millis(50)).unwrap();
    assert_eq!((report.moved_bytes, report.held.len()), (0, 2));
    assert!(report.immovable.is_some_and(|reason| reason.to_string().contains("migrate=off")));
    assert!(report.held.iter().all(|held| held.holder == HeldBy::Blocks(None)));
    free(&pool, block);
    assert!(pool.drain_device("emulated:16M", Duration::ZERO).unwrap().is_complete());
    pool.close().unwrap();
}

/// Catches a budget that is not kept or takes what is in use, and memory that a pool keeps although nothing is in it.
#[test]
fn the_share_of_a_device_shrinks_and_grows() {
    let pool = open("fast=32M slow=emulated:512M,size=256M");
    let claimed = || pool.tiers()[1].pgmaps()[0].stats().claimed_bytes;
    let blocks = [block(&pool, 60), block(&pool, 60)];
    blocks.iter().for_each(|&block| word(block, 59).store(7, Ordering::Relaxed));
    assert_eq!(claimed(), 256 << 20);
    assert!(pool.malloc(20 * SLOT, SLOT, slow()).is_err(), "beyond the budget");
    assert_eq!(pool.release_idle(), 0, "all of it is in use");
    assert_eq!(pool.resize_device("emulated:512M", Some(128 << 20)).unwrap(), 128 << 20);
    assert_eq!(pool.tiers()[1].capacity_bytes(), 128 << 20);
    assert!(pool.malloc(SLOT, SLOT, slow()).is_err(), "more is in use than the budget has");
    assert!(blocks.iter().all(|&block| word(block, 59).load(Ordering::Relaxed) == 7), "bytes were taken");
    blocks.into_iter().for_each(|block| free(&pool, block));
    assert_eq!(pool.release_idle(), 256 << 20);
    assert_eq!(claimed(), 0);
    assert_eq!(pool.resize_device("emulated:512M", None).unwrap(), 0);
    let large = block(&pool, 200);
    assert_eq!((claimed(), word(large, 199).load(Ordering::Relaxed)), (512 << 20, 0));
    free(&pool, large);
    let unknown = pool.resize_device("emulated:1G", None).unwrap_err();
    assert!(matches!(unknown, DeviceChangeError::NoSuchDevice { .. }), "{unknown}");
    pool.close().unwrap();
}
