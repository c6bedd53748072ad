use super::*;
use crate::runtime::config::Config;
use crate::runtime::pool::AllocOptions;
use crate::runtime::{MigrateError, Outcome};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks of whole slots in a pool whose fast tier has room, and what moves them.
struct Bench {
    pool: Pool,
    block: NonNull<u8>,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    /// Makes a block of `nr_slots` on the device; `None` where nothing can be moved.
    fn new(nr_slots: usize) -> Option<Bench> {
        static ONE: Mutex<()> = Mutex::new(());
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = Pool::open(&Config::parse("fast=32M slow=emulated:64M").unwrap()).unwrap();
        let options = AllocOptions { tier: Some(TierName::Slow), zero: true, ..AllocOptions::default() };
        let block = pool.malloc(nr_slots * SLOT_BYTES, SLOT_BYTES, options).unwrap();
        let bench = Bench { pool, block, _alone: alone };
        match bench.pool.migrate(block.as_ptr(), 1, TierName::Slow) {
            Err(MigrateError::Off(refusal)) => {
                eprintln!("skipped: {refusal}");
                None
            }
            _ => Some(bench),
        }
    }

    /// Takes all that is left of a tier.
    fn fill(&self, tier: TierName) -> Vec<NonNull<u8>> {
        let options = AllocOptions { tier: Some(tier), ..AllocOptions::default() };
        std::iter::from_fn(|| self.pool.malloc(SLOT_BYTES, SLOT_BYTES, options).ok()).collect()
    }

    fn at(&self, offset: usize) -> *mut u8 {
        self.block.as_ptr().wrapping_add(offset)
    }

    fn call(&self, call: MemoryCall, offset: usize, len_bytes: usize) -> Result<(), Errno> {
        // SAFETY: the tests stay inside the block, which is theirs.
        unsafe { perform(Some(&self.pool), call, self.at(offset).addr(), len_bytes) }
    }

    fn advise(&self, advice: c_int, offset: usize, len_bytes: usize) -> Result<(), Errno> {
        self.call(MemoryCall::Advise { advice }, offset, len_bytes)
    }

    fn protect(&self, prot: c_int, offset: usize, len_bytes: usize) -> Result<(), Errno> {
        self.call(MemoryCall::Protect { prot, key: -1 }, offset, len_bytes)
    }

    fn tier(&self, slot: usize) -> &'static str {
        self.pool.where_is(self.at(slot * SLOT_BYTES)).unwrap().tier_name
    }

    /// Asks for a tier for a slot; returns what came of it. A fork of another test may be in the way for a moment.
    fn send(&self, slot: usize, tier: TierName) -> Outcome {
        let count = || self.pool.migrate(self.at(slot * SLOT_BYTES), 1, tier).unwrap();
        loop {
            let counts = count();
            let outcome = Outcome::ALL.into_iter().find(|&outcome| counts.get(outcome) == 1).unwrap();
            if !matches!(outcome, Outcome::Forked) {
                return outcome;
            }
        }
    }

    fn byte(&self, offset: usize) -> u8 {
        // SAFETY: the tests stay inside the block and look where they may.
        unsafe { self.at(offset).read_volatile() }
    }

    fn write(&self, offset: usize, byte: u8) {
        // SAFETY: as in `byte`.
        unsafe { self.at(offset).write_volatile(byte) }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: the block is live, and the test is over.
        unsafe { self.pool.free(self.block) }.unwrap();
    }
}

const RW: c_int = libc::PROT_READ | libc::PROT_WRITE;

#[test]
fn a_slot_with_an_attribute_is_brought_to_dram_and_stays_until_it_ends() {
    let Some(bench) = Bench::new(2) else { return };
    let advise = |advice| MemoryCall::Advise { advice };
    let protect = |prot, key| MemoryCall::Protect { prot, key };
    let bind = |mode| MemoryCall::Bind { mode, nodes: &raw const NODES, nr_bits: 64, flags: 0 };
    static NODES: libc::c_ulong = 1;
    let no_nodes =
        MemoryCall::Bind { mode: libc::MPOL_DEFAULT, nodes: std::ptr::null(), nr_bits: 0, flags: 0 };
    let pairs = [
        (protect(libc::PROT_READ, -1), protect(RW, -1)),
        (protect(libc::PROT_NONE, -1), protect(RW, -1)),
        (advise(libc::MADV_DONTDUMP), advise(libc::MADV_DODUMP)),
        (advise(MADV_GUARD_INSTALL), advise(MADV_GUARD_REMOVE)),
        (MemoryCall::Lock { flags: 0 }, MemoryCall::Unlock),
        (bind(libc::MPOL_PREFERRED), no_nodes),
    ];
    for (begin, end) in pairs {
        assert_ne!(bench.send(0, TierName::Slow), Outcome::Locked, "before {begin:?}");
        assert_eq!(bench.tier(0), "slow", "before {begin:?}");
        bench.write(0, 7);
        // The last page of the first slot and the first of the second.
        match bench.call(begin, SLOT_BYTES - PAGE_SIZE, PAGE_SIZE) {
            Err(libc::EINVAL | libc::ENOSYS | libc::EPERM) => {
                eprintln!("skipped: this kernel refuses {begin:?}");
                let _ = bench.call(end, SLOT_BYTES - PAGE_SIZE, PAGE_SIZE);
                continue;
            }
            outcome => assert_eq!(outcome, Ok(()), "{begin:?}"),
        }
        assert_eq!((bench.tier(0), bench.tier(1)), ("fast", "slow"), "{begin:?}");
        assert_eq!(bench.byte(0), 7);
        assert_eq!(bench.send(0, TierName::Slow), Outcome::Locked, "{begin:?}");
        assert_eq!(bench.call(end, 0, SLOT_BYTES), Ok(()), "{end:?}");
        assert_eq!(bench.send(0, TierName::Slow), Outcome::Moved, "{end:?}");
        assert_eq!(bench.byte(0), 7);
    }
}

#[test]
fn an_attribute_of_one_page_outlives_that_of_another() {
    let Some(bench) = Bench::new(1) else { return };
    bench.protect(libc::PROT_READ, 0, PAGE_SIZE).unwrap();
    bench.protect(libc::PROT_NONE, 9 * PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
    bench.protect(RW, 0, 10 * PAGE_SIZE).unwrap();
    assert_eq!(bench.send(0, TierName::Slow), Outcome::Locked);
    bench.protect(RW, 10 * PAGE_SIZE, PAGE_SIZE).unwrap();
    assert_eq!(bench.send(0, TierName::Slow), Outcome::Moved);
}

#[test]
fn discarded_memory_reads_as_zero_on_a_device_too() {
    let Some(bench) = Bench::new(2) else { return };
    for offset in [0, PAGE_SIZE, 2 * PAGE_SIZE, 2 * SLOT_BYTES - 1] {
        bench.write(offset, 1);
    }
    bench.advise(libc::MADV_DONTNEED, PAGE_SIZE, PAGE_SIZE).unwrap();
    assert_eq!([0, 1, 2].map(|page| bench.byte(page * PAGE_SIZE)), [1, 0, 1]);
    bench.advise(libc::MADV_DONTNEED, 0, 2 * SLOT_BYTES).unwrap();
    assert_eq!((bench.byte(0), bench.byte(2 * SLOT_BYTES - 1)), (0, 0));
    assert_eq!(bench.tier(0), "slow");
    bench.write(0, 1);
    assert_eq!(bench.send(0, TierName::Fast), Outcome::Moved);
    bench.advise(libc::MADV_DONTNEED, 0, PAGE_SIZE).unwrap();
    assert_eq!(bench.byte(0), 0);
}

#[test]
fn without_room_in_dram_the_answer_is_true_and_nothing_changes() {
    let Some(bench) = Bench::new(1) else { return };
    // All of both, so that nothing can be brought there, and nothing goes.
    let mut held = bench.fill(TierName::Fast);
    held.extend(bench.fill(TierName::Slow));
    assert_eq!(bench.protect(libc::PROT_READ, 0, PAGE_SIZE), Err(libc::ENOMEM));
    assert_eq!(bench.advise(libc::MADV_DONTDUMP, 0, PAGE_SIZE), Err(libc::EAGAIN));
    bench.write(0, 3);
    assert_eq!(bench.protect(RW, 0, PAGE_SIZE), Ok(()), "it is so already");
    assert_eq!(bench.call(MemoryCall::Lock { flags: 0 }, 0, PAGE_SIZE), Ok(()), "it is locked where it is");
    assert_eq!(bench.tier(0), "slow");
    assert_eq!(bench.advise(libc::MADV_DONTNEED, 0, PAGE_SIZE), Err(libc::EINVAL), "as for locked memory");
    held.into_iter().for_each(|block| {
        // SAFETY: each was just made and is freed once.
        unsafe { bench.pool.free(block) }.unwrap();
    });
    assert_eq!(bench.send(0, TierName::Fast), Outcome::Locked);
    assert_eq!(bench.call(MemoryCall::Unlock, 0, PAGE_SIZE), Ok(()));
    assert_eq!(bench.send(0, TierName::Fast), Outcome::Moved);
    assert_eq!(bench.byte(0), 3);
}

#[test]
fn room_is_made_in_dram_for_what_has_to_be_there() {
    let Some(bench) = Bench::new(3) else { return };
    let held = bench.fill(TierName::Fast);
    let pinned = held[0];
    bench.pool.pin(pinned.as_ptr(), 1).unwrap();
    let is_fast = |block: &NonNull<u8>| bench.pool.where_is(block.as_ptr()).unwrap().tier_name == "fast";
    bench.write(SLOT_BYTES, 3);
    // A page of each of two slots, so two have to go.
    assert_eq!(bench.protect(libc::PROT_READ, SLOT_BYTES - PAGE_SIZE, 2 * PAGE_SIZE), Ok(()));
    assert_eq!([0, 1, 2].map(|slot| bench.tier(slot)), ["fast", "fast", "slow"]);
    assert_eq!(bench.byte(SLOT_BYTES), 3);
    assert_eq!(held.iter().filter(|block| !is_fast(block)).count(), 2, "as many as there was no room for");
    assert!(is_fast(&pinned), "what is pinned stays");
    bench.protect(RW, 0, 2 * SLOT_BYTES).unwrap();
    held.into_iter().for_each(|block| {
        // SAFETY: each was just made and is freed once.
        unsafe { bench.pool.free(block) }.unwrap();
    });
}

#[test]
fn memory_that_children_do_not_get_is_missing_there_wherever_it_is() {
    const NAME: &str =
        "runtime::memory::tests::memory_that_children_do_not_get_is_missing_there_wherever_it_is";
    if crate::sys::testing::runs_in_own_process(NAME) {
        return;
    }
    let Some(bench) = Bench::new(4) else { return };
    crate::runtime::register_fork_handlers();
    assert_eq!(bench.send(1, TierName::Fast), Outcome::Moved);
    assert_eq!(bench.send(3, TierName::Fast), Outcome::Moved);
    for slot in 0..4 {
        bench.write(slot * SLOT_BYTES, 5);
        bench.write(slot * SLOT_BYTES + PAGE_SIZE, 6);
        let advice = if slot < 2 { libc::MADV_DONTFORK } else { libc::MADV_WIPEONFORK };
        bench.advise(advice, slot * SLOT_BYTES, PAGE_SIZE).unwrap();
    }
    assert_eq!((bench.tier(0), bench.tier(2)), ("slow", "slow"));
    assert_eq!(bench.send(0, TierName::Fast), Outcome::Locked);
    let end = |look: usize| crate::sys::testing::in_child(|| i32::from(bench.byte(look)));
    use crate::sys::testing::ChildEnd;
    for slot in 0..4 {
        let first = if slot < 2 { ChildEnd::Killed(libc::SIGSEGV) } else { ChildEnd::Exited(0) };
        assert_eq!(end(slot * SLOT_BYTES), first, "{slot}");
        assert_eq!(end(slot * SLOT_BYTES + PAGE_SIZE), ChildEnd::Exited(6), "{slot}");
        assert_eq!(bench.byte(slot * SLOT_BYTES), 5);
    }
    bench.advise(libc::MADV_DOFORK, 0, 2 * SLOT_BYTES).unwrap();
    bench.advise(libc::MADV_KEEPONFORK, 2 * SLOT_BYTES, 2 * SLOT_BYTES).unwrap();
    assert_eq!(end(0), ChildEnd::Exited(5));
    assert_eq!(end(3 * SLOT_BYTES), ChildEnd::Exited(5));
    assert_eq!(bench.send(0, TierName::Fast), Outcome::Moved);
}

#[test]
fn nothing_moves_while_all_memory_is_locked() {
    let Some(bench) = Bench::new(1) else { return };
    bench.call(MemoryCall::Lock { flags: 0 }, 0, 1).unwrap();
    let first = lock_all().unwrap();
    lock_all().unwrap().undo();
    assert_eq!(bench.call(MemoryCall::Unlock, 0, 1), Ok(()));
    assert_eq!(bench.send(0, TierName::Slow), Outcome::Locked, "the first one still holds");
    first.undo();
    assert_eq!(bench.send(0, TierName::Slow), Outcome::Moved);
    bench.call(MemoryCall::Lock { flags: 0 }, 0, 1).unwrap();
    let _ = lock_all().unwrap();
    unlock_all();
    // SAFETY: the range is this test's own.
    unsafe { issue(MemoryCall::Unlock, bench.at(0).addr(), SLOT_BYTES) }.unwrap();
    assert_eq!(bench.send(0, TierName::Slow), Outcome::Moved);
}

#[test]
fn memory_that_is_freed_loses_its_attributes() {
    let Some(bench) = Bench::new(1) else { return };
    let options = AllocOptions { tier: Some(TierName::Fast), ..AllocOptions::default() };
    let block = bench.pool.malloc(SLOT_BYTES, SLOT_BYTES, options).unwrap();
    // SAFETY: the block is this test's own.
    unsafe { perform(None, MemoryCall::Protect { prot: 0, key: -1 }, block.as_ptr().addr(), PAGE_SIZE) }
        .unwrap();
    // SAFETY: as above.
    unsafe { bench.pool.free(block) }.unwrap();
    let again = bench.pool.malloc(SLOT_BYTES, SLOT_BYTES, options).unwrap();
    assert_eq!(again, block, "the test wants the same slot again");
    // SAFETY: as above.
    unsafe { again.write_bytes(1, SLOT_BYTES) };
    let counts = bench.pool.migrate(again.as_ptr(), 1, TierName::Slow).unwrap();
    assert_eq!(counts.get(Outcome::Locked), 0, "{counts:?}");
    // SAFETY: as above.
    unsafe { bench.pool.free(again) }.unwrap();
}

#[test]
fn a_range_may_begin_or_end_outside_and_wrong_ones_are_refused() {
    let Some(bench) = Bench::new(1) else { return };
    assert_eq!(bench.protect(RW, 1, PAGE_SIZE), Err(libc::EINVAL));
    assert_eq!(bench.protect(RW, 0, usize::MAX), Err(libc::ENOMEM));
    assert_eq!(bench.protect(RW, 0, 0), Ok(()));
    assert_eq!(bench.advise(12345, 0, PAGE_SIZE), Err(libc::EINVAL));
    assert_eq!(bench.advise(libc::MADV_RANDOM, 0, PAGE_SIZE), Ok(()));
    // Behind the last block of the space nothing is mapped.
    let zone = bench_space().addresses();
    // SAFETY: nothing of anybody's is there.
    let beyond = unsafe { perform(None, MemoryCall::Unlock, zone.end - PAGE_SIZE, PAGE_SIZE) };
    assert_eq!(beyond, Err(libc::ENOMEM));
    assert!(touches(zone.start - 1, 2) && touches(zone.end - 1, 10) && touches(bench.at(0).addr(), 1));
    assert!(!touches(zone.start - 1, 1) && !touches(zone.end, 100));
    assert!(touches(0, usize::MAX));
}

fn bench_space() -> &'static Space {
    space::existing().expect("a pool is open")
}
