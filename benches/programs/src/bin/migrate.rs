//! What moving memory between the tiers costs, beside a copy of the same bytes in the same run.
//!
//! `bench-migrate demote|promote` prints the median microseconds that an idle slot of 2 MiB is blocked, `demote-total` and
//! `promote-total` the same with preparation, `memcpy` and `nt-copy` a copy of 2 MiB that is in no cache. `stall-demote` and
//! `stall-promote` print the longest gap that a storing thread sees during a move (median), with `-p99` and `-max` added the
//! others, and `read-stall-*` that of a reading thread. With `protect-demote` for `demote` slots leave DRAM write-protected.
//! `[protect-]demote-whole` and `promote-whole` are the time from the request to the end of a first touch of all pages
//! afterwards, huge pages that are made for the move included. `sigsegv` is the conventional way: mprotect, copy, map, and a handler
//! that waits. `throughput-N` is the GB/s of N workers that send batches of 16 neighbours down and up again, each batch after
//! time enough to make huge pages for it; `demote-all-N` and `promote-all-N` that of 64 slots in one request, for most of which
//! the second needs huge pages that the kernel clears meanwhile; `copy-N` that of N threads which copy as much past the caches.
//!
//! The slow tier is an emulated device, or the one that `BENCH_SLOW` names.

use daxtier::{AllocOptions, Config, Outcome, Pool, TierName};
use std::error::Error;
use std::process::ExitCode;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SLOT: usize = 2 << 20;
/// Moves of each kind.
const ROUNDS: usize = 200;
/// Slots that are used in turn, so that none is in a cache when its turn comes.
const SLOTS: usize = 64;
/// Slots in a request that is one batch.
const BATCH: usize = 16;
/// Longer than a worker needs to make huge pages for a batch.
const READY: Duration = Duration::from_millis(30);
/// How often all slots go down and up.
const TURNS: usize = 8;

fn main() -> ExitCode {
    let what = std::env::args().nth(1).unwrap_or_default();
    match measure(&what) {
        Ok((threads, value, unit)) => {
            println!("{what} {threads} {value:.3} {unit}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-migrate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(what: &str) -> Result<(u32, f64, &'static str), Box<dyn Error>> {
    if let Some((way, workers)) = what.rsplit_once('-').and_then(|(way, nr)| Some((way, nr.parse().ok()?))) {
        let value = match way {
            "throughput" => throughput(workers)?,
            "demote-all" => one_way(workers, TierName::Slow)?,
            "promote-all" => one_way(workers, TierName::Fast)?,
            "copy" => copy_throughput(workers),
            _ => return Err("what is to be measured? see the source".into()),
        };
        return Ok((workers, value, "GB/s"));
    }
    if let Some((way, part)) = Way::parse(what) {
        let times = moves(way)?;
        return Ok((1, median(times.iter().map(|times| times[part])), "us"));
    }
    Ok(match what {
        "memcpy" => (1, median(copies(|from, to| to.copy_from_slice(from)).into_iter()), "us"),
        "nt-copy" => (1, median(copies(stream).into_iter()), "us"),
        "sigsegv" => (1, sigsegv()?, "us"),
        _ => (2, stall(what).ok_or("what is to be measured? see the source")??, "us"),
    })
}

/// Which moves are measured.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Way {
    to: TierName,
    protects: bool,
}

impl Way {
    /// `[protect-]demote|promote`.
    fn named(name: &str) -> Option<Way> {
        match name {
            "demote" => Some(Way { to: TierName::Slow, protects: false }),
            "protect-demote" => Some(Way { to: TierName::Slow, protects: true }),
            "promote" => Some(Way { to: TierName::Fast, protects: false }),
            _ => None,
        }
    }

    /// A name with `-total`, `-whole` or nothing behind it; returns which of a move's times that is.
    fn parse(what: &str) -> Option<(Way, usize)> {
        if let Some(way) = Way::named(what) {
            return Some((way, 0));
        }
        let (way, part) = what.rsplit_once('-')?;
        let part = ["total", "whole"].into_iter().position(|known| known == part)?;
        Some((Way::named(way)?, part + 1))
    }
}

/// `[read-]stall-WAY[-p99|-max]`.
fn stall(what: &str) -> Option<Result<f64, Box<dyn Error>>> {
    let (user, rest) = match what.strip_prefix("read-") {
        Some(rest) => (User::Reads, rest),
        None => (User::Stores, what),
    };
    let way = rest.strip_prefix("stall-")?;
    let (way, share) = match way.rsplit_once('-') {
        Some((way, "p99")) => (way, 0.99),
        Some((way, "max")) => (way, 1.0),
        _ => (way, 0.5),
    };
    let way = Way::named(way)?;
    Some(stalls(way, user).map(|found| quantile(found, share)))
}

struct Bench {
    pool: Pool,
    block: NonNull<u8>,
}

impl Bench {
    fn new(workers: u32) -> Result<Bench, Box<dyn Error>> {
        Bench::open(&format!("workers={workers}"))
    }

    fn of(way: Way) -> Result<Bench, Box<dyn Error>> {
        Bench::open(if way.protects { "demote=protect" } else { "demote=pin-safe" })
    }

    fn open(options: &str) -> Result<Bench, Box<dyn Error>> {
        let slow = std::env::var("BENCH_SLOW").unwrap_or_else(|_| "emulated:512M".to_owned());
        let config = format!("fast=256M slow={slow} migrate=on,{options}");
        let pool = Pool::open(&Config::parse(&config)?)?;
        pool.set_migration_quarantine(Duration::from_millis(1));
        let options = AllocOptions { tier: Some(TierName::Fast), ..AllocOptions::default() };
        let block = pool.malloc(SLOTS * SLOT, SLOT, options)?;
        // SAFETY: the block is that long.
        unsafe { block.write_bytes(1, SLOTS * SLOT) };
        Ok(Bench { pool, block })
    }

    /// Moves `slots` slots from `first` on; returns the longest times of the move, blocked and in all, in microseconds.
    fn migrate(&self, first: usize, slots: usize, tier: TierName) -> Result<(f64, f64), Box<dyn Error>> {
        let addr = self.block.as_ptr().wrapping_add(first * SLOT);
        let counts = self.pool.migrate(addr, slots * SLOT, tier)?;
        if counts.get(Outcome::Moved) != slots as u64 {
            return Err(format!("{counts:?}").into());
        }
        let times = self.pool.last_move_times();
        Ok((times.0.as_secs_f64() * 1e6, times.1.as_secs_f64() * 1e6))
    }
}

/// Moves slots to and fro; returns the times of the moves that are measured, each blocked, in all, and with request and first touch.
fn moves(way: Way) -> Result<Vec<[f64; 3]>, Box<dyn Error>> {
    let bench = Bench::of(way)?;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let at = round % SLOTS;
        for to in [TierName::Slow, TierName::Fast] {
            let start = Instant::now();
            let (blocked, total) = bench.migrate(at, 1, to)?;
            for page in (at * SLOT..(at + 1) * SLOT).step_by(4096) {
                // SAFETY: inside the block.
                let byte = unsafe { bench.block.add(page) };
                // SAFETY: as above.
                unsafe { byte.read_volatile() };
            }
            let whole = start.elapsed().as_secs_f64() * 1e6;
            if to == way.to {
                times.push([blocked, total, whole]);
            }
        }
    }
    Ok(times)
}

/// Moves a batch of slots for each worker down and up, again and again; returns GB/s.
fn throughput(workers: u32) -> Result<f64, Box<dyn Error>> {
    let bench = Bench::new(workers)?;
    let mut spent = Duration::ZERO;
    for turn in 0..=4 * TURNS {
        for to in [TierName::Slow, TierName::Fast] {
            // So that pages are ready, and what was promoted is out of its quarantine, of a millisecond here.
            std::thread::sleep(READY);
            let start = Instant::now();
            bench.migrate(0, BATCH * workers as usize, to)?;
            // The first turn finds nothing prepared.
            if turn > 0 {
                spent += start.elapsed();
            }
        }
    }
    Ok((2 * 4 * TURNS * BATCH * workers as usize * SLOT) as f64 / spent.as_secs_f64() / 1e9)
}

/// Moves all slots down and up; returns the GB/s of the moves to `tier`.
fn one_way(workers: u32, tier: TierName) -> Result<f64, Box<dyn Error>> {
    let bench = Bench::new(workers)?;
    let mut spent = Duration::ZERO;
    for turn in 0..=TURNS {
        for to in [TierName::Slow, TierName::Fast] {
            std::thread::sleep(READY);
            let start = Instant::now();
            bench.migrate(0, SLOTS, to)?;
            if turn > 0 && to == tier {
                spent += start.elapsed();
            }
        }
    }
    Ok((TURNS * SLOTS * SLOT) as f64 / spent.as_secs_f64() / 1e9)
}

/// Copies as many bytes in as many threads; returns GB/s.
fn copy_throughput(threads: u32) -> f64 {
    let part = SLOTS / threads as usize * SLOT;
    let from = Huge::new(SLOTS * SLOT);
    let to = Huge::new(SLOTS * SLOT);
    let mut spent = Duration::ZERO;
    for turn in 0..=2 * TURNS {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in from.bytes().chunks_exact(part).zip(to.bytes().chunks_exact_mut(part)) {
                scope.spawn(|| stream(from, to));
            }
        });
        if turn > 0 {
            spent += start.elapsed();
        }
    }
    (2 * TURNS * threads as usize * part) as f64 / spent.as_secs_f64() / 1e9
}

/// Memory of huge pages, where there are any, each touched.
struct Huge(NonNull<u8>, usize);

impl Huge {
    fn new(len: usize) -> Huge {
        let layout = std::alloc::Layout::from_size_align(len, SLOT).expect("a multiple of huge pages");
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { std::alloc::alloc(layout) }).expect("memory");
        // SAFETY: just allocated; the advice drops nothing.
        unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        // SAFETY: just allocated, so long.
        unsafe { start.write_bytes(1, len) };
        Huge(start, len)
    }

    /// The bytes, for one user: leaked at the end of the process.
    #[expect(clippy::mut_from_ref, reason = "asked for once each")]
    fn bytes(&self) -> &mut [u8] {
        // SAFETY: allocated and written so long.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), self.1) }
    }
}

/// What the thread does with the slot on the move.
#[derive(Clone, Copy, PartialEq, Eq)]
enum User {
    Stores,
    Reads,
}

/// Returns the longest gap that a thread sees which uses a slot all the time, for each move that is measured.
fn stalls(way: Way, user: User) -> Result<Vec<f64>, Box<dyn Error>> {
    let bench = Bench::of(way)?;
    let (stop, gap) = (AtomicBool::new(false), AtomicU64::new(0));
    // SAFETY: aligned, in the block, and used as an atomic only from here on.
    let word = unsafe { AtomicU64::from_ptr(bench.block.as_ptr().cast()) };
    let mut found = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                match user {
                    User::Stores => _ = word.fetch_add(1, Ordering::Relaxed),
                    User::Reads => _ = word.load(Ordering::Relaxed),
                }
                let now = Instant::now();
                gap.fetch_max((now - last).as_nanos() as u64, Ordering::Relaxed);
                last = now;
            }
        });
        let outcome = (0..ROUNDS).try_for_each(|_| {
            for to in [TierName::Slow, TierName::Fast] {
                std::thread::sleep(Duration::from_millis(1));
                gap.store(0, Ordering::Relaxed);
                bench.migrate(0, 1, to)?;
                std::thread::sleep(Duration::from_micros(200));
                if to == way.to {
                    found.push(gap.load(Ordering::Relaxed) as f64 / 1e3);
                }
            }
            Ok::<(), Box<dyn Error>>(())
        });
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    Ok(found)
}

/// Copies slots one after the other; returns how long each took.
fn copies(copy: impl Fn(&[u8], &mut [u8])) -> Vec<f64> {
    let (from, to) = (Huge::new(SLOTS * SLOT), Huge::new(SLOTS * SLOT));
    let (from, to) = (from.bytes(), to.bytes());
    (0..ROUNDS)
        .map(|round| {
            let range = round % SLOTS * SLOT..(round % SLOTS + 1) * SLOT;
            let start = Instant::now();
            copy(&from[range.clone()], &mut to[range]);
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect()
}

/// Copies past the caches.
fn stream(from: &[u8], to: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
        for (from, to) in from.chunks_exact(16).zip(to.chunks_exact_mut(16)) {
            // SAFETY: sixteen bytes are there; SSE2 is a part of x86-64.
            let word = unsafe { _mm_loadu_si128(from.as_ptr().cast::<__m128i>()) };
            // SAFETY: as above; a vector of bytes this long begins at a page plus 16.
            unsafe { _mm_stream_si128(to.as_mut_ptr().cast::<__m128i>(), word) };
        }
        // SAFETY: SSE is a part of x86-64.
        unsafe { _mm_sfence() };
    }
    #[cfg(not(target_arch = "x86_64"))]
    to.copy_from_slice(from);
}

/// The conventional way to demote 2 MiB: forbid access, copy, map the device, allow access. Threads that come meanwhile
/// get SIGSEGV, whose handler waits; system calls fail with EFAULT. Returns the median microseconds, without a handler run.
fn sigsegv() -> Result<f64, Box<dyn Error>> {
    // SAFETY: the name is NUL-terminated.
    let fd = unsafe { libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC) };
    let len = 2 * SLOTS * SLOT;
    // SAFETY: takes numbers only.
    if fd < 0 || unsafe { libc::ftruncate(fd, len as libc::off_t) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let map = |at: *mut libc::c_void, len: usize, flags: i32, fd: i32, offset: usize| {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: without MAP_FIXED the kernel chooses; with it the range is this function's.
        let mapped = unsafe { libc::mmap(at, len, prot, flags, fd, offset as libc::off_t) };
        if mapped == libc::MAP_FAILED { Err(std::io::Error::last_os_error()) } else { Ok(mapped) }
    };
    let nowhere = std::ptr::null_mut();
    let alias = map(nowhere, len, libc::MAP_SHARED | libc::MAP_POPULATE, fd, 0)?;
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let room = map(nowhere, len, private, -1, 0)?;
    let start = room.map_addr(|addr| addr.next_multiple_of(SLOT));
    // SAFETY: the range is mapped; the advice drops nothing.
    unsafe { libc::madvise(start, SLOTS * SLOT, libc::MADV_HUGEPAGE) };
    // SAFETY: mapped and writable.
    unsafe { start.cast::<u8>().write_bytes(1, SLOTS * SLOT) };
    let mut times = Vec::new();
    for at in 0..SLOTS {
        let slot = start.wrapping_byte_add(at * SLOT);
        let clock = Instant::now();
        // SAFETY: the range is this function's.
        unsafe { libc::mprotect(slot, SLOT, libc::PROT_READ) };
        // SAFETY: both are mapped, the alias writable.
        unsafe { slot.cast::<u8>().copy_to_nonoverlapping(alias.wrapping_byte_add(at * SLOT).cast(), SLOT) };
        map(slot, SLOT, libc::MAP_SHARED | libc::MAP_FIXED, fd, at * SLOT)?;
        times.push(clock.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(times.into_iter()))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    quantile(values.collect(), 0.5)
}

fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
    values.get(at).copied().unwrap_or(f64::NAN)
}
