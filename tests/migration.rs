//! Moving memory through the public interface: both ways, under pins, cancellation, budgets, direct I/O, forks and signals.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use common::is_own_process;
use daxtier::{AllocOptions, Config, MigrateError, Outcome, Pool, TierName};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const SLOT: usize = 2 << 20;

/// What a process does for one pool (budgets, direct I/O) concerns all, so one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a pool, or prints why nothing can be moved here.
fn open(config: &str) -> Option<(Pool, MutexGuard<'static, ()>)> {
    let guard = alone();
    let pool = Pool::open(&Config::parse(config).unwrap()).unwrap();
    let block = block(&pool, 1);
    let tried = pool.migrate(block.as_ptr(), SLOT, TierName::Fast);
    free(&pool, block);
    match tried {
        Err(MigrateError::Off(refusal)) => {
            eprintln!("skipped: {refusal}");
            None
        }
        _ => Some((pool, guard)),
    }
}

/// A block of whole slots, used as atomic words.
#[derive(Clone, Copy)]
struct Block(NonNull<u8>);

// SAFETY: the memory behind it is only used as atomics.
unsafe impl Send for Block {}
// SAFETY: as for Send.
unsafe impl Sync for Block {}

impl Block {
    fn as_ptr(self) -> *mut u8 {
        self.0.as_ptr()
    }
}

fn block(pool: &Pool, slots: usize) -> Block {
    let options = AllocOptions { tier: Some(TierName::Fast), zero: true, ..AllocOptions::default() };
    Block(pool.malloc(slots * SLOT, SLOT, options).unwrap())
}

fn free(pool: &Pool, block: Block) {
    // SAFETY: the tests free each block once, after its last use.
    unsafe { pool.free(block.0) }.unwrap();
}

fn word(block: Block, at: usize) -> &'static AtomicU64 {
    // SAFETY: the tests stay inside their blocks.
    let at = unsafe { block.0.add(at) };
    // SAFETY: aligned, and live as long as the test uses it.
    unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }
}

fn tier(pool: &Pool, block: Block, slot: usize) -> &'static str {
    pool.where_is(block.as_ptr().wrapping_add(slot * SLOT)).unwrap().tier_name
}

#[test]
fn a_range_goes_to_a_tier_and_back_and_the_books_follow() {
    let Some((pool, _alone)) = open("fast=32M slow=emulated:64M") else { return };
    pool.set_migration_quarantine(Duration::from_millis(1));
    let block = block(&pool, 4);
    (0..4).for_each(|slot| word(block, slot * SLOT).store(slot as u64 + 1, Ordering::Relaxed));
    let used = || (pool.tiers()[0].used_bytes(), pool.tiers()[1].used_bytes());
    let before = used();
    let counts = pool.migrate(block.as_ptr(), 3 * SLOT, TierName::Slow).unwrap();
    assert_eq!((counts.get(Outcome::Moved), counts.total()), (3, 3), "{counts:?}");
    assert_eq!([0, 1, 2, 3].map(|slot| tier(&pool, block, slot)), ["slow", "slow", "slow", "fast"]);
    assert_eq!(used(), (before.0 - 3 * SLOT as u64, before.1 + 3 * SLOT as u64));
    let counts = pool.migrate(block.as_ptr(), 4 * SLOT, TierName::Slow).unwrap();
    assert_eq!((counts.get(Outcome::Moved), counts.get(Outcome::Already)), (1, 3));
    let counts = pool.migrate(block.as_ptr(), 4 * SLOT, TierName::Fast).unwrap();
    assert_eq!(counts.get(Outcome::Moved), 4);
    assert!((0..4).all(|slot| word(block, slot * SLOT).load(Ordering::Relaxed) == slot as u64 + 1));
    let start = Instant::now();
    while used() != before {
        assert!(start.elapsed() < Duration::from_secs(20), "the quarantine does not end: {:?}", used());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(pool.migration_stats().blocked.count() >= 8);
    free(&pool, block);
    pool.close().unwrap();
}

#[test]
fn quarantined_memory_is_in_use_until_its_time_is_up_and_does_not_keep_a_pool_open() {
    let Some((pool, _alone)) = open("fast=32M slow=emulated:8M") else { return };
    pool.set_migration_quarantine(Duration::from_secs(3600));
    let block = block(&pool, 4);
    assert_eq!(pool.migrate(block.as_ptr(), 4 * SLOT, TierName::Slow).unwrap().get(Outcome::Moved), 4);
    assert_eq!(pool.migrate(block.as_ptr(), 4 * SLOT, TierName::Fast).unwrap().get(Outcome::Moved), 4);
    assert_eq!(pool.tiers()[1].free_bytes(), 0, "a device may still write to what was promoted");
    assert_eq!(pool.migrate(block.as_ptr(), SLOT, TierName::Slow).unwrap().get(Outcome::NoSpace), 1);
    free(&pool, block);
    pool.close().unwrap();
}

#[test]
fn pinned_slots_stay_until_the_last_pin_ends() {
    let Some((pool, _alone)) = open("fast=32M slow=emulated:64M") else { return };
    let block = block(&pool, 2);
    pool.pin(block.as_ptr(), 10).unwrap();
    pool.pin(block.as_ptr(), 10).unwrap();
    for _ in 0..2 {
        let counts = pool.migrate(block.as_ptr(), 2 * SLOT, TierName::Slow).unwrap();
        assert_eq!(counts.get(Outcome::Kept), 1, "{counts:?}");
        assert_eq!((tier(&pool, block, 0), tier(&pool, block, 1)), ("fast", "slow"));
        pool.unpin(block.as_ptr(), 10).unwrap();
    }
    let counts = pool.migrate(block.as_ptr(), 2 * SLOT, TierName::Slow).unwrap();
    assert_eq!(counts.get(Outcome::Moved), 1);
    free(&pool, block);
}

#[test]
fn requests_can_be_cancelled_limited_and_refused() {
    let Some((pool, _alone)) = open("fast=64M slow=emulated:64M") else { return };
    let block = block(&pool, 8);
    // Four slots a second.
    pool.set_migration_budget(4 * SLOT as u64);
    let ticket = pool.migrate_async(block.as_ptr(), 8 * SLOT, TierName::Slow).unwrap();
    let early = ticket.wait(Duration::from_millis(100));
    ticket.cancel();
    pool.set_migration_budget(0);
    let counts = ticket.wait(Duration::from_secs(60));
    assert!(ticket.is_done());
    assert_eq!(counts.total(), 8);
    assert!(early.total() < 8 && counts.get(Outcome::Cancelled) > 0, "{early:?} {counts:?}");
    let outside = &raw const counts;
    assert!(matches!(pool.migrate(outside.cast(), 1, TierName::Slow), Err(MigrateError::Foreign { .. })));
    assert!(matches!(pool.pin(outside.cast(), 1), Err(MigrateError::Foreign { .. })));
    free(&pool, block);
    let off = Pool::open(&Config::parse("fast=32M slow=emulated:32M migrate=off").unwrap()).unwrap();
    let held = off.malloc(SLOT, SLOT, AllocOptions::default()).unwrap();
    let refused = off.migrate(held.as_ptr(), SLOT, TierName::Slow);
    assert!(matches!(refused, Err(MigrateError::Disabled)), "{refused:?}");
    free(&off, Block(held));
    let lone = Pool::open(&Config::parse("fast=32M").unwrap()).unwrap();
    let held = lone.malloc(SLOT, SLOT, AllocOptions::default()).unwrap();
    let refused = lone.migrate(held.as_ptr(), SLOT, TierName::Slow);
    assert!(matches!(refused, Err(MigrateError::NoSuchTier { .. })), "{refused:?}");
    free(&lone, Block(held));
}

#[test]
fn a_full_queue_pushes_back() {
    let Some((pool, _alone)) = open("fast=64M slow=emulated:64M") else { return };
    let block = block(&pool, 1);
    pool.set_migration_budget(SLOT as u64);
    let turns = [TierName::Slow, TierName::Fast];
    let tickets: Vec<_> = turns
        .iter()
        .cycle()
        .map_while(|&tier| pool.migrate_async(block.as_ptr(), SLOT, tier).ok())
        .take(1000)
        .collect();
    assert!(tickets.len() < 1000, "the queue has no end");
    let refused = pool.migrate_async(block.as_ptr(), SLOT, TierName::Slow);
    assert!(matches!(refused, Err(MigrateError::Busy) | Ok(_)));
    tickets.iter().for_each(|ticket| ticket.cancel());
    pool.set_migration_budget(0);
    assert!(tickets.iter().all(|ticket| ticket.wait(Duration::from_secs(60)).total() == 1));
    free(&pool, block);
}

#[test]
fn of_two_requests_for_one_slot_the_later_decides_whoever_moves_it() {
    let config = "fast=128M slow=emulated:128M migrate=on,workers=4,cpus=0-1023";
    let Some((pool, _alone)) = open(config) else { return };
    pool.set_migration_quarantine(Duration::from_millis(1));
    let block = block(&pool, 20);
    let holds = |salt: u64| {
        (0..20).all(|slot| word(block, slot * SLOT).load(Ordering::Relaxed) == slot as u64 + salt)
    };
    for round in 0..30u64 {
        (0..20).for_each(|slot| word(block, slot * SLOT).store(slot as u64 + round, Ordering::Relaxed));
        let last = if round % 2 == 0 { TierName::Slow } else { TierName::Fast };
        let other = if round % 2 == 0 { TierName::Fast } else { TierName::Slow };
        // Slots 5 to 14 are wanted by all, and each worker could take one of the requests.
        let wanted = [(0, 15, last), (5, 15, other), (2, 13, last), (5, 10, other), (0, 20, last)];
        let tickets = wanted.map(|(first, slots, tier)| {
            pool.migrate_async(block.as_ptr().wrapping_add(first * SLOT), slots * SLOT, tier).unwrap()
        });
        let counts = tickets.map(|ticket| ticket.wait(Duration::from_secs(60)));
        for (counts, (_, slots, _)) in counts.iter().zip(wanted) {
            assert_eq!((counts.total(), counts.in_place()), (slots as u64, slots as u64), "{counts:?}");
        }
        assert!((0..20).all(|slot| tier(&pool, block, slot) == last.as_str()), "round {round}");
        assert!(holds(round), "round {round}");
    }
    free(&pool, block);
}

#[test]
fn workers_for_processors_that_are_not_there_are_refused_by_name() {
    if !is_own_process("workers_for_processors_that_are_not_there_are_refused_by_name") {
        return;
    }
    let Some((pool, _alone)) = open("fast=32M slow=emulated:32M migrate=on,cpus=1023") else { return };
    let block = block(&pool, 1);
    match pool.migrate(block.as_ptr(), SLOT, TierName::Slow) {
        Err(error @ MigrateError::NoThread(_)) => {
            assert!(error.to_string().contains("sched_setaffinity"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(tier(&pool, block, 0), "fast");
    free(&pool, block);
}

#[test]
fn a_fork_in_the_middle_of_moves_gives_each_side_its_own() {
    let Some((pool, _alone)) = open("fast=64M slow=emulated:64M migrate=on,workers=2") else { return };
    pool.set_migration_quarantine(Duration::from_millis(1));
    let block = block(&pool, 24);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut to = TierName::Slow;
            while !stop.load(Ordering::Relaxed) {
                pool.migrate(block.as_ptr(), 24 * SLOT, to).unwrap();
                to = if to == TierName::Slow { TierName::Fast } else { TierName::Slow };
            }
        });
        for round in 1..=20u64 {
            (0..24).for_each(|slot| word(block, slot * SLOT).store(round, Ordering::Relaxed));
            // SAFETY: the child uses plain memory and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let kept = (0..24).all(|slot| word(block, slot * SLOT).load(Ordering::Relaxed) == round);
                (0..24).for_each(|slot| word(block, slot * SLOT).store(0, Ordering::Relaxed));
                // SAFETY: ends the child without handlers.
                unsafe { libc::_exit(i32::from(!kept)) };
            }
            let mut status = -1;
            // SAFETY: waits for the child made above.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            let kept = (0..24).all(|slot| word(block, slot * SLOT).load(Ordering::Relaxed) == round);
            if status != 0 || !kept || round == 20 {
                stop.store(true, Ordering::Relaxed);
            }
            assert_eq!(status, 0, "the child of round {round} saw something else");
            assert!(kept, "the child of round {round} wrote into its parent");
        }
    });
    free(&pool, block);
}

#[test]
fn signals_reach_threads_that_wait_for_a_moving_slot() {
    static HANDLED: AtomicU64 = AtomicU64::new(0);
    extern "C" fn handle(_: libc::c_int) {
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
    let Some((pool, _alone)) = open("fast=64M slow=emulated:64M") else { return };
    pool.set_migration_quarantine(Duration::from_millis(1));
    // SAFETY: an all-zero sigaction is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    // SAFETY: the handler only adds to an atomic.
    assert_eq!(unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) }, 0);
    let block = block(&pool, 1);
    let stop = AtomicBool::new(false);
    let (sent, added) = std::thread::scope(|scope| {
        let stop = &stop;
        let (tell, told) = std::sync::mpsc::channel();
        let writer = scope.spawn(move || {
            // SAFETY: takes no argument.
            tell.send(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap();
            let mut added = 0u64;
            while !stop.load(Ordering::Relaxed) {
                word(block, added as usize % 512 * 4096).fetch_add(1, Ordering::Relaxed);
                added += 1;
            }
            added
        });
        let tid = told.recv().unwrap();
        let mut sent = 0;
        let start = Instant::now();
        let mut to = TierName::Slow;
        while start.elapsed() < Duration::from_secs(1) {
            let ticket = pool.migrate_async(block.as_ptr(), SLOT, to).unwrap();
            while !ticket.is_done() {
                // SAFETY: takes numbers only; the writer has not ended.
                unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, libc::SIGUSR1) };
                sent += 1;
            }
            to = if to == TierName::Slow { TierName::Fast } else { TierName::Slow };
        }
        stop.store(true, Ordering::Relaxed);
        (sent, writer.join().unwrap())
    });
    let found: u64 = (0..512).map(|page| word(block, page * 4096).load(Ordering::Relaxed)).sum();
    assert_eq!(found, added);
    assert!(sent > 0 && HANDLED.load(Ordering::Relaxed) > 0);
    free(&pool, block);
}

/// In a process of its own: a program that was seen with a descriptor for direct I/O stays marked.
#[test]
fn a_program_that_may_do_direct_io_keeps_what_is_slow() {
    if !is_own_process("a_program_that_may_do_direct_io_keeps_what_is_slow") {
        return;
    }
    let Some((pool, _alone)) = open("fast=64M slow=emulated:64M") else { return };
    let block = block(&pool, 2);
    assert_eq!(pool.migrate(block.as_ptr(), SLOT, TierName::Slow).unwrap().get(Outcome::Moved), 1);
    let path = std::env::temp_dir().join(format!("daxtier-direct-io-{}", std::process::id()));
    std::fs::write(&path, [7; 8192]).unwrap();
    let direct = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
    std::fs::remove_file(&path).unwrap();
    let Ok(direct) = direct else {
        eprintln!("skipped: no direct I/O here");
        return;
    };
    // A look at the descriptors may be a tenth of a second old.
    std::thread::sleep(Duration::from_millis(200));
    let counts = pool.migrate(block.as_ptr(), SLOT, TierName::Fast).unwrap();
    assert_eq!(counts.get(Outcome::DirectIo), 1, "{counts:?}");
    drop(direct);
    std::thread::sleep(Duration::from_millis(200));
    let counts = pool.migrate(block.as_ptr(), SLOT, TierName::Fast).unwrap();
    assert_eq!(counts.get(Outcome::DirectIo), 1, "what was pinned may be pinned still: {counts:?}");
    let down = pool.migrate(block.as_ptr().wrapping_add(SLOT), SLOT, TierName::Slow).unwrap();
    assert_eq!(down.get(Outcome::Moved), 1, "the pin-safe way down stays open: {down:?}");
    free(&pool, block);
}

/// Moves the block's first slot down and up and looks whether its bytes are still there.
fn goes_down_and_up(pool: &Pool, block: Block) {
    (0..512).for_each(|page| word(block, page * 4096).store(page as u64 + 1, Ordering::Relaxed));
    for to in [TierName::Slow, TierName::Fast] {
        let counts = pool.migrate(block.as_ptr(), SLOT, to).unwrap();
        assert_eq!(counts.get(Outcome::Moved), 1, "{to}: {counts:?}");
        assert!(
            (0..512).all(|page| word(block, page * 4096).load(Ordering::Relaxed) == page as u64 + 1),
            "{to}"
        );
    }
}

#[test]
fn buffers_that_io_uring_holds_stay_in_dram() {
    if !is_own_process("buffers_that_io_uring_holds_stay_in_dram") {
        return;
    }
    let Some((pool, _alone)) = open("fast=64M slow=emulated:64M") else { return };
    let block = block(&pool, 2);
    word(block, 0).store(7, Ordering::Relaxed);
    let mut parameters = [0u64; 15];
    // SAFETY: the structure of parameters is 120 bytes long.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2, parameters.as_mut_ptr()) };
    let buffer = libc::iovec { iov_base: block.as_ptr().cast(), iov_len: SLOT };
    const REGISTER_BUFFERS: libc::c_int = 0;
    // SAFETY: the buffer is the block's first slot, which stays mapped.
    let pinned =
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring, REGISTER_BUFFERS, &raw const buffer, 1) };
    if ring < 0 || pinned != 0 {
        eprintln!("skipped: no io_uring here: {}", std::io::Error::last_os_error());
        return;
    }
    let counts = pool.migrate(block.as_ptr(), 2 * SLOT, TierName::Slow).unwrap();
    assert_eq!((counts.get(Outcome::Pinned), counts.get(Outcome::Moved)), (1, 1), "{counts:?}");
    assert_eq!((tier(&pool, block, 0), tier(&pool, block, 1)), ("fast", "slow"));
    word(block, 8).store(8, Ordering::Relaxed);
    assert_eq!(word(block, 0).load(Ordering::Relaxed), 7);
    free(&pool, block);
}

#[test]
fn what_was_spliced_into_a_pipe_stays_what_it_was_however_often_memory_moves() {
    let Some((pool, _alone)) = open("fast=64M slow=emulated:64M") else { return };
    pool.set_migration_quarantine(Duration::from_millis(1));
    // The first 16 MiB have small pages.
    let first = block(&pool, 8);
    let block = block(&pool, 8);
    let (mut ends, pages) = ([0; 2], 8);
    // SAFETY: the array has room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    for at in 0..512 * 8 {
        word(block, at * 4096).store(at as u64 + 1, Ordering::Relaxed);
    }
    // The pipe holds the pages themselves.
    let spliced = libc::iovec { iov_base: block.as_ptr().cast(), iov_len: pages * 4096 };
    // SAFETY: the pages are the block's, which stays as long as the pipe has them.
    let sent = unsafe { libc::vmsplice(ends[1], &raw const spliced, 1, 0) };
    assert_eq!(sent, pages as isize * 4096);
    for _ in 0..3 {
        for to in [TierName::Slow, TierName::Fast] {
            let counts = pool.migrate(block.as_ptr(), 8 * SLOT, to).unwrap();
            let kept = counts.get(Outcome::Pinned) + counts.get(Outcome::Already);
            assert_eq!(counts.get(Outcome::Moved) + kept, 8, "{counts:?}");
        }
        for at in 0..512 * 8 {
            assert_eq!(word(block, at * 4096).load(Ordering::Relaxed), at as u64 + 1);
        }
    }
    let mut seen = vec![0u8; pages * 4096];
    // SAFETY: the buffer is so long.
    assert_eq!(unsafe { libc::read(ends[0], seen.as_mut_ptr().cast(), seen.len()) }, sent);
    for (page, bytes) in seen.chunks(4096).enumerate() {
        assert_eq!(bytes[..8], (page as u64 + 1).to_ne_bytes(), "page {page} of the pipe");
    }
    // SAFETY: the descriptors are this test's.
    ends.into_iter().for_each(|end| _ = unsafe { libc::close(end) });
    free(&pool, first);
    free(&pool, block);
}

#[test]
fn small_pages_move_where_huge_ones_are_off() {
    if !is_own_process("small_pages_move_where_huge_ones_are_off") {
        return;
    }
    let Some((pool, _alone)) = open("fast=64M slow=emulated:64M") else { return };
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) }, 0);
    let block = block(&pool, 1);
    goes_down_and_up(&pool, block);
    free(&pool, block);
}

#[test]
fn a_blank_is_empty_though_all_memory_is_to_be_locked() {
    if !is_own_process("a_blank_is_empty_though_all_memory_is_to_be_locked") {
        return;
    }
    let Some((pool, _alone)) = open("fast=64M slow=emulated:64M") else { return };
    let block = block(&pool, 1);
    // SAFETY: takes numbers only.
    if unsafe { libc::mlockall(libc::MCL_FUTURE) } != 0 {
        eprintln!("skipped: no right to lock memory");
        return;
    }
    goes_down_and_up(&pool, block);
    free(&pool, block);
}

#[test]
fn the_program_keeps_a_margin_of_mappings() {
    if !is_own_process("the_program_keeps_a_margin_of_mappings") {
        return;
    }
    let Some((pool, _alone)) = open("fast=64M slow=emulated:64M") else { return };
    let limit: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    if limit > 1 << 20 {
        eprintln!("skipped: a limit of {limit} mappings takes too long to reach");
        return;
    }
    let block = block(&pool, 1);
    let len = limit * 4096;
    let (none, flags) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: the kernel chooses the place.
    let many = unsafe { libc::mmap(std::ptr::null_mut(), len, none, flags, -1, 0) };
    assert_ne!(many, libc::MAP_FAILED);
    // Every other page with another protection is a mapping of its own.
    for page in (1..limit - 2000).step_by(2) {
        // SAFETY: the page lies in the mapping above.
        unsafe { libc::mprotect(many.wrapping_byte_add(page * 4096), 4096, libc::PROT_READ) };
    }
    std::thread::sleep(Duration::from_millis(200));
    let counts = pool.migrate(block.as_ptr(), SLOT, TierName::Slow).unwrap();
    assert_eq!(counts.get(Outcome::MapLimit), 1, "{counts:?}");
    // SAFETY: the mapping is this test's own.
    assert_eq!(unsafe { libc::munmap(many, len) }, 0);
    std::thread::sleep(Duration::from_millis(200));
    goes_down_and_up(&pool, block);
    free(&pool, block);
}

#[test]
fn without_the_right_to_it_nothing_moves_and_all_else_works() {
    if !is_own_process("without_the_right_to_it_nothing_moves_and_all_else_works") {
        return;
    }
    let sysctl = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or_default();
    if sysctl.trim() == "1" {
        eprintln!("skipped: everybody may, says vm.unprivileged_userfaultfd");
        return;
    }
    const NOBODY: libc::uid_t = 65534;
    // SAFETY: takes numbers only. Whoever is not root has no right to give up.
    unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) };
    if std::fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").is_ok() {
        eprintln!("skipped: everybody may, by /dev/userfaultfd");
        return;
    }
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let pool =
        Pool::open(&Config::parse("fast=32M slow=emulated:64M migrate=on,workers=2").unwrap()).unwrap();
    let block = block(&pool, 2);
    let before = (threads(), files());
    for _ in 0..3 {
        match pool.migrate(block.as_ptr(), SLOT, TierName::Slow) {
            Err(error @ MigrateError::Off(_)) => {
                assert_eq!(error.errno(), libc::EPERM);
                assert!(
                    error.to_string().contains("sudo sysctl -w vm.unprivileged_userfaultfd=1"),
                    "{error}"
                );
            }
            other => panic!("{other:?}"),
        }
        assert!(pool.prefer(block.as_ptr(), SLOT, TierName::Slow).is_err());
    }
    assert_eq!((threads(), files()), before, "nothing was left of the tries");
    pool.pin(block.as_ptr(), SLOT).unwrap();
    pool.unpin(block.as_ptr(), SLOT).unwrap();
    word(block, SLOT).store(7, Ordering::Relaxed);
    let slow = AllocOptions { tier: Some(TierName::Slow), ..AllocOptions::default() };
    let other = Block(pool.malloc(SLOT, SLOT, slow).unwrap());
    assert_eq!((tier(&pool, block, 0), tier(&pool, other, 0)), ("fast", "slow"));
    assert_eq!(word(block, SLOT).load(Ordering::Relaxed), 7);
    assert_eq!(pool.migration_stats().counts.total(), 0);
    free(&pool, other);
    free(&pool, block);
    pool.close().unwrap();
}

#[test]
fn a_thread_that_ends_while_its_memory_moves_takes_nothing_with_it() {
    let Some((pool, _alone)) = open("fast=64M slow=emulated:64M migrate=on,workers=2") else { return };
    pool.set_migration_quarantine(Duration::from_millis(1));
    let block = block(&pool, 4);
    let stop = AtomicBool::new(false);
    let (begun, moved) = std::thread::scope(|scope| {
        let users = scope.spawn(|| {
            let mut begun = 0u64;
            while !stop.load(Ordering::Relaxed) {
                // Each of them ends with an access, which waits where the slot is on the move.
                let ending = |at: u64| {
                    std::thread::spawn(move || {
                        _ = word(block, at as usize % 4 * SLOT).fetch_add(1, Ordering::Relaxed)
                    })
                };
                let threads: Vec<_> = (0..4).map(ending).collect();
                begun += threads.len() as u64;
                threads.into_iter().for_each(|thread| thread.join().unwrap());
            }
            begun
        });
        let mut moved = 0;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(1) {
            for to in [TierName::Slow, TierName::Fast] {
                moved += pool.migrate(block.as_ptr(), 4 * SLOT, to).unwrap().get(Outcome::Moved);
            }
        }
        stop.store(true, Ordering::Relaxed);
        (users.join().unwrap(), moved)
    });
    let found: u64 = (0..4).map(|slot| word(block, slot * SLOT).load(Ordering::Relaxed)).sum();
    assert_eq!(found, begun);
    assert!(moved > 0 && begun > 0);
    free(&pool, block);
}
