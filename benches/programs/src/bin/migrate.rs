//! What moving memory between the tiers costs, beside a copy of the same bytes in the same run.
//!
//! `bench-migrate demote|promote` prints the median microseconds that an idle slot of 2 MiB is blocked, `demote-total` and
//! `promote-total` the same with preparation, `memcpy` and `nt-copy` a copy of 2 MiB that is in no cache. `stall-demote` and
//! `stall-promote` print the longest gap that a storing thread sees during a move (median), with `-p99` and `-max` added the
//! others. `sigsegv` is the conventional way: mprotect, copy, map, and a handler that waits; `throughput` the GB/s of a
//! worker over 32 neighbouring slots, `copy-throughput` that of the copies alone.

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
const SLOTS: usize = 32;

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
    Ok(match what {
        "demote" => (1, median(moves(TierName::Slow)?.into_iter().map(|(blocked, _)| blocked)), "us"),
        "promote" => (1, median(moves(TierName::Fast)?.into_iter().map(|(blocked, _)| blocked)), "us"),
        "demote-total" => (1, median(moves(TierName::Slow)?.into_iter().map(|(_, total)| total)), "us"),
        "promote-total" => (1, median(moves(TierName::Fast)?.into_iter().map(|(_, total)| total)), "us"),
        "memcpy" => (1, median(copies(|from, to| to.copy_from_slice(from)).into_iter()), "us"),
        "nt-copy" => (1, median(copies(stream).into_iter()), "us"),
        "throughput" => (1, throughput()?, "GB/s"),
        "copy-throughput" => (1, SLOT as f64 / median(copies(stream).into_iter()) / 1e3, "GB/s"),
        "stall-demote" => (2, median(stalls(TierName::Slow)?.into_iter()), "us"),
        "stall-promote" => (2, median(stalls(TierName::Fast)?.into_iter()), "us"),
        "stall-demote-p99" => (2, quantile(stalls(TierName::Slow)?, 0.99), "us"),
        "stall-promote-p99" => (2, quantile(stalls(TierName::Fast)?, 0.99), "us"),
        "stall-demote-max" => (2, quantile(stalls(TierName::Slow)?, 1.0), "us"),
        "stall-promote-max" => (2, quantile(stalls(TierName::Fast)?, 1.0), "us"),
        "sigsegv" => (1, sigsegv()?, "us"),
        _ => return Err("what is to be measured? see the source".into()),
    })
}

struct Bench {
    pool: Pool,
    block: NonNull<u8>,
}

impl Bench {
    fn new() -> Result<Bench, Box<dyn Error>> {
        let pool = Pool::open(&Config::parse("fast=256M slow=emulated:512M")?)?;
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

/// Moves slots to and fro; returns the times of the moves to `tier`.
fn moves(tier: TierName) -> Result<Vec<(f64, f64)>, Box<dyn Error>> {
    let bench = Bench::new()?;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let at = round % SLOTS;
        for to in [TierName::Slow, TierName::Fast] {
            let took = bench.migrate(at, 1, to)?;
            if to == tier {
                times.push(took);
            }
        }
    }
    Ok(times)
}

/// Moves all slots down and up; returns GB/s.
fn throughput() -> Result<f64, Box<dyn Error>> {
    let bench = Bench::new()?;
    bench.migrate(0, SLOTS, TierName::Slow)?;
    bench.migrate(0, SLOTS, TierName::Fast)?;
    let start = Instant::now();
    const TIMES: usize = 5;
    for _ in 0..TIMES {
        bench.migrate(0, SLOTS, TierName::Slow)?;
        bench.migrate(0, SLOTS, TierName::Fast)?;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok((2 * TIMES * SLOTS * SLOT) as f64 / start.elapsed().as_secs_f64() / 1e9)
}

/// Returns the longest gap that a thread sees which stores to a slot all the time, for each move to `tier`.
fn stalls(tier: TierName) -> Result<Vec<f64>, Box<dyn Error>> {
    let bench = Bench::new()?;
    let (stop, gap) = (AtomicBool::new(false), AtomicU64::new(0));
    // SAFETY: aligned, in the block, and used as an atomic only from here on.
    let word = unsafe { AtomicU64::from_ptr(bench.block.as_ptr().cast()) };
    let mut found = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                word.fetch_add(1, Ordering::Relaxed);
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
                if to == tier {
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
    let from = vec![1u8; SLOTS * SLOT];
    let mut to = vec![2u8; SLOTS * SLOT];
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
