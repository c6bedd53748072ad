//! The lost-update checker: threads that use memory in every way while all of it moves between the tiers.
//!
//! [`migrate`] opens a pool of its own and takes a block of several slots. Writers store to it and remember what they
//! stored; others add to shared words, hand a mutex and a condition variable in the block to and fro, and let the
//! kernel read and write it (read, write, readv, process_vm_writev, recv). Meanwhile random runs of its slots
//! go to a random tier. Whatever was lost shows as a wrong word, at once or at the end. `daxtier selftest --migrate`
//! runs it, and so do the tests.

use super::config::Config;
use super::error::{MigrateError, PoolError};
use super::pool::{AllocOptions, Pool};
use super::{AllocError, MigrationCounts};
use crate::policy::TierName;
use crate::sys::peer;
use std::collections::VecDeque;
use std::io::{IoSliceMut, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What to check.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// How long.
    pub time: Duration,
    /// The configuration of the pool; both tiers hold at least `slots` and four more.
    pub config: String,
    /// How many slots of 2 MiB move.
    pub slots: usize,
    /// Whether threads hand locks to and fro in the memory that moves. With a protocol that loses stores they could
    /// wait for ever.
    pub with_locks: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            time: Duration::from_secs(10),
            config: "fast=64M slow=emulated:128M migrate=on,workers=2".to_owned(),
            slots: 20,
            with_locks: true,
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Findings {
    /// What came of the slots.
    pub moves: MigrationCounts,
    /// Stores of single threads.
    pub stores: u64,
    /// Of these, words that were wrong at the end.
    pub lost_stores: u64,
    /// Words that were wrong while the threads ran.
    pub mismatches: u64,
    /// Additions to words that threads share.
    pub additions: u64,
    /// Of these, how many were missing at the end (or too many).
    pub lost_additions: u64,
    /// Times that a lock changed hands.
    pub handovers: u64,
    /// System calls on the memory.
    pub calls: u64,
    /// Of these, how many failed or came up short.
    pub failed_calls: u64,
    /// The longest time that a writer needed for 64 stores, waits for a processor included.
    pub longest_stall: Duration,
}

impl Findings {
    /// Returns whether nothing was lost.
    pub fn is_clean(&self) -> bool {
        self.lost_stores == 0 && self.mismatches == 0 && self.lost_additions == 0 && self.failed_calls == 0
    }
}

/// A check that could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelftestError {
    /// The pool could not be opened.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// There was no memory to move.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// Nothing can be moved.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// No pipe or socket was to be had.
    #[error("no pipe or socket: {0}")]
    Io(#[from] std::io::Error),
}

const SLOT: usize = 2 << 20;
const PAGE: usize = 4096;
const PAGES: usize = SLOT / PAGE;
const WRITERS: usize = 2;
/// Where in a page each user has its place: writers from 0 on, 64 bytes each.
const SHARED: usize = 1024;
const CALLS: usize = 512;
const BULK: usize = 2048;
const BULK_PARTS: usize = 16;
const BULK_BYTES: usize = 1024;
const LOCKS: usize = 3072;

/// Runs the check.
///
/// # Errors
/// [`SelftestError`] when it could not be made; what it finds is in the [`Findings`].
pub fn migrate(options: &Options) -> Result<Findings, SelftestError> {
    run(options, |_| ())
}

/// Runs the check; `prepare` is told the addresses that are going to move, and what it returns is dropped before they
/// are given back.
pub(super) fn run<T>(
    options: &Options,
    prepare: impl FnOnce(Range<usize>) -> T,
) -> Result<Findings, SelftestError> {
    let config = Config::parse(&options.config).map_err(PoolError::from)?;
    let pool = Pool::open(&config)?;
    // Nobody does direct I/O into this block, and the test needs the room.
    pool.set_migration_quarantine(Duration::from_millis(10));
    let len_bytes = options.slots * SLOT;
    let zeroed = AllocOptions { zero: true, ..AllocOptions::default() };
    let block = pool.malloc(len_bytes, SLOT, zeroed)?;
    let prepared = prepare(block.as_ptr().addr()..block.as_ptr().addr() + len_bytes);
    let arena = Arena { start: block, slots: options.slots };
    let outcome = exercise(&pool, &arena, options);
    drop(prepared);
    // SAFETY: the block is live, and its users have ended.
    let freed = unsafe { pool.free(block) };
    freed.map_err(AllocError::from)?;
    outcome
}

/// The memory that moves.
struct Arena {
    start: NonNull<u8>,
    slots: usize,
}

// SAFETY: the block is shared; words are accessed as atomics, and each other place by one thread.
unsafe impl Sync for Arena {}

impl Arena {
    fn at(&self, slot: usize, page: usize, offset: usize) -> *mut u8 {
        // SAFETY: callers stay below the number of slots, of pages, and of bytes in a page.
        unsafe { self.start.as_ptr().add(slot * SLOT + page * PAGE + offset) }
    }

    fn word(&self, slot: usize, page: usize, offset: usize) -> &AtomicU64 {
        // SAFETY: the address is aligned, in the block, which outlives the arena, and only used as an atomic.
        unsafe { AtomicU64::from_ptr(self.at(slot, page, offset).cast()) }
    }

    /// Borrows the bytes that the thread of system calls has for itself.
    #[expect(clippy::mut_from_ref, reason = "one thread alone asks for these places")]
    fn bytes(&self, slot: usize, page: usize, offset: usize, len: usize) -> &mut [u8] {
        // SAFETY: in the block, and used by one thread, which drops each borrow before it makes the next.
        unsafe { std::slice::from_raw_parts_mut(self.at(slot, page, offset), len) }
    }
}

/// Counters that the threads share, and the word that ends them.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    stores: AtomicU64,
    mismatches: AtomicU64,
    additions: AtomicU64,
    handovers: AtomicU64,
    calls: AtomicU64,
    failed_calls: AtomicU64,
    longest_stall_ns: AtomicU64,
}

impl Tally {
    // Relaxed throughout: counters, each for itself, read when the threads have been joined.
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn call(&self, is_good: bool) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.failed_calls.fetch_add(u64::from(!is_good), Ordering::Relaxed);
    }

    fn compare(&self, is_same: bool) {
        self.mismatches.fetch_add(u64::from(!is_same), Ordering::Relaxed);
    }
}

fn exercise(pool: &Pool, arena: &Arena, options: &Options) -> Result<Findings, SelftestError> {
    let tally = Tally::default();
    let (mut pipe_out, mut pipe_in) = std::io::pipe()?;
    let (mut socket_out, mut socket_in) = UnixStream::pair()?;
    let lock_place = arena.at(0, 5, LOCKS).cast::<Locked>();
    // SAFETY: aligned and large enough, in the block, and nobody else uses the place.
    unsafe { lock_place.write(Locked::default()) };
    // SAFETY: written above; the block outlives the threads.
    let locked = unsafe { &*lock_place };
    let (moves, lost_stores) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn({
                    let tally = &tally;
                    move || write(arena, writer, tally)
                })
            })
            .collect();
        scope.spawn(|| {
            call(pool, arena, &tally, &mut pipe_out, &mut pipe_in, &mut socket_out, &mut socket_in)
        });
        if options.with_locks {
            scope.spawn(|| hand_over(locked, 0, &tally));
            scope.spawn(|| hand_over(locked, 1, &tally));
        }
        let moves = shuffle(pool, arena, options.time);
        tally.stop.store(true, Ordering::Relaxed);
        let lost: u64 = writers.into_iter().map(|writer| writer.join().unwrap_or(u64::MAX)).sum();
        (moves, lost)
    });
    let moves = moves?;
    let additions = tally.additions.load(Ordering::Relaxed);
    let found: u64 = (0..arena.slots).map(|slot| arena.word(slot, 3, SHARED).load(Ordering::Relaxed)).sum();
    let handovers = tally.handovers.load(Ordering::Relaxed);
    let wrong_turns = locked.turns.lock().unwrap_or_else(PoisonError::into_inner).abs_diff(handovers);
    Ok(Findings {
        moves,
        stores: tally.stores.load(Ordering::Relaxed),
        lost_stores,
        mismatches: tally.mismatches.load(Ordering::Relaxed),
        additions,
        lost_additions: found.abs_diff(additions) + wrong_turns,
        handovers,
        calls: tally.calls.load(Ordering::Relaxed),
        failed_calls: tally.failed_calls.load(Ordering::Relaxed),
        longest_stall: Duration::from_nanos(tally.longest_stall_ns.load(Ordering::Relaxed)),
    })
}

/// Moves random runs of slots to random tiers until the time is up.
fn shuffle(pool: &Pool, arena: &Arena, time: Duration) -> Result<MigrationCounts, SelftestError> {
    let start = Instant::now();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut counts = MigrationCounts::default();
    let mut tickets = VecDeque::new();
    while start.elapsed() < time {
        let first = random.below(arena.slots);
        let slots = 1 + random.below(arena.slots - first);
        let tier = if random.below(2) == 0 { TierName::Fast } else { TierName::Slow };
        match pool.migrate_async(arena.at(first, 0, 0), slots * SLOT, tier) {
            Ok(ticket) => tickets.push_back(ticket),
            Err(MigrateError::Busy) => {}
            Err(other) => return Err(other.into()),
        }
        // Several requests are under way, so that the worker never waits for this thread.
        if tickets.len() >= 8
            && let Some(first) = tickets.pop_front()
        {
            counts.add(&first.wait(Duration::MAX));
        }
    }
    tickets.iter().for_each(|ticket| counts.add(&ticket.wait(Duration::MAX)));
    Ok(counts)
}

/// Stores to words of its own and checks what it finds there. Returns how many are wrong at the end.
fn write(arena: &Arena, writer: usize, tally: &Tally) -> u64 {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 + writer as u64);
    let mut expected = vec![0u64; arena.slots * PAGES];
    let mut last = Instant::now();
    while !tally.is_over() {
        let slot = random.below(arena.slots);
        for _ in 0..64 {
            let page = random.below(PAGES);
            let (word, expected) = (arena.word(slot, page, 64 * writer), &mut expected[slot * PAGES + page]);
            let found = word.load(Ordering::Relaxed);
            tally.compare(found == *expected);
            *expected = found + 1;
            word.store(*expected, Ordering::Relaxed);
        }
        tally.stores.fetch_add(64, Ordering::Relaxed);
        arena.word(slot, 3, SHARED).fetch_add(1, Ordering::Relaxed);
        tally.additions.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        tally.longest_stall_ns.fetch_max((now - last).as_nanos() as u64, Ordering::Relaxed);
        last = now;
    }
    let word = |at: usize| arena.word(at / PAGES, at % PAGES, 64 * writer).load(Ordering::Relaxed);
    expected.iter().enumerate().filter(|&(at, expected)| word(at) != *expected).count() as u64
}

/// Lets the kernel read and write the memory.
fn call(
    pool: &Pool,
    arena: &Arena,
    tally: &Tally,
    pipe_out: &mut std::io::PipeReader,
    pipe_in: &mut std::io::PipeWriter,
    socket_out: &mut UnixStream,
    socket_in: &mut UnixStream,
) {
    let mut random = Random(0xd1b5_4a32_d192_ed03);
    let mut sequence = 0u64;
    let mut source = vec![0u8; BULK_BYTES * BULK_PARTS];
    while !tally.is_over() {
        sequence += 1;
        let (slot, page) = (random.below(arena.slots), random.below(PAGES));
        let word = sequence.to_ne_bytes();
        // read(2) into the memory, write(2) from it.
        let _ = pipe_in.write_all(&word);
        tally.call(pipe_out.read_exact(arena.bytes(slot, page, CALLS, 8)).is_ok());
        tally.compare(arena.bytes(slot, page, CALLS, 8) == word);
        tally.call(matches!(pipe_in.write(arena.bytes(slot, page, CALLS, 8)), Ok(8)));
        let mut back = [0; 8];
        let _ = pipe_out.read_exact(&mut back);
        tally.compare(back == word);
        // recv(2).
        let _ = socket_in.write_all(&word);
        tally.call(socket_out.read_exact(arena.bytes(slot, page, CALLS + 8, 8)).is_ok());
        tally.compare(arena.bytes(slot, page, CALLS + 8, 8) == word);
        // process_vm_writev(2), on this process: what it writes to has to be pinned.
        let to = arena.at(slot, page, CALLS + 16);
        tally.call(pool.pin(to, word.len()).is_ok());
        tally.call(peer::write_memory(std::process::id(), to.addr(), &word) == Ok(8));
        tally.call(pool.unpin(to, word.len()).is_ok());
        tally.compare(arena.bytes(slot, page, CALLS + 16, 8) == word);
        // readv(2) into many pages.
        source.fill(sequence as u8);
        let _ = pipe_in.write_all(&source);
        let first = random.below(PAGES - BULK_PARTS);
        let mut parts: Vec<IoSliceMut<'_>> = (0..BULK_PARTS)
            .map(|part| IoSliceMut::new(arena.bytes(slot, first + part, BULK, BULK_BYTES)))
            .collect();
        let read = pipe_out.read_vectored(&mut parts);
        let is_whole = matches!(read, Ok(read) if read == source.len());
        tally.call(is_whole);
        if !is_whole {
            // What is left in the pipe would spoil every later call.
            return;
        }
        for part in 0..BULK_PARTS {
            let bytes = arena.bytes(slot, first + part, BULK, BULK_BYTES);
            tally.compare(bytes.iter().all(|&byte| byte == sequence as u8));
        }
    }
}

/// A lock in the memory that moves.
#[derive(Default)]
struct Locked {
    turns: Mutex<u64>,
    turned: Condvar,
}

/// Takes every other turn.
fn hand_over(locked: &Locked, me: u64, tally: &Tally) {
    const A_WHILE: Duration = Duration::from_millis(50);
    while !tally.is_over() {
        let turns = locked.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = locked.turned.wait_timeout_while(turns, A_WHILE, |turns| *turns % 2 != me);
        let (mut turns, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *turns % 2 == me {
            *turns += 1;
            tally.handovers.fetch_add(1, Ordering::Relaxed);
            locked.turned.notify_all();
        }
        drop(turns);
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::migrate::sabotage::{Defect, sabotage};

    /// Runs the check of a protocol with a defect; prints why where nothing can be moved.
    fn check(options: &Options, defect: Defect) -> Option<Findings> {
        match run(options, |range| sabotage(range, defect)) {
            Err(SelftestError::Migrate(error @ MigrateError::Off(_))) => {
                eprintln!("skipped: {error}");
                None
            }
            outcome => Some(outcome.unwrap()),
        }
    }

    #[test]
    fn a_protocol_without_its_first_step_is_caught() {
        for (defect, workers) in
            [Defect::NoBlock, Defect::NoBlank].into_iter().zip([1, 2]).chain([(Defect::NoBlock, 2)])
        {
            let options = Options {
                time: Duration::from_secs(2),
                with_locks: false,
                config: format!("fast=64M slow=emulated:128M migrate=on,workers={workers}"),
                ..Options::default()
            };
            // A loss is a matter of chance: several tries, of which one must see it.
            let caught = (0..5).any(|_| check(&options, defect).is_none_or(|found| !found.is_clean()));
            assert!(caught, "{defect:?} went unnoticed");
        }
    }
}
