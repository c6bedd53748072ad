//! Measures whatever malloc the process has: run it under one preload library, then under another.
//!
//! `bench-malloc PATTERN THREADS OPERATIONS` prints one line, `PATTERN THREADS VALUE ns`: the median over threads of the
//! time of one operation, a malloc and a free. Every block is written, so a wrong pointer shows.

use std::ffi::CStr;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};

/// A way to use malloc: runs that many operations on this thread.
type Pattern = fn(thread: usize, operations: u64);

const PATTERNS: &[(&str, Pattern)] =
    &[("pair-64", pair), ("churn", churn), ("batch", batch), ("large", large), ("handover", handover)];

/// Slots of the churn pattern: its live blocks.
const LIVE: usize = 4096;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(&(name, pattern)), Some(threads), Some(operations)) = (
        args.first().and_then(|arg| PATTERNS.iter().find(|(name, _)| name == arg)),
        args.get(1).and_then(|arg| arg.parse::<usize>().ok()).filter(|&threads| threads > 0),
        args.get(2).and_then(|arg| arg.parse::<u64>().ok()).filter(|&operations| operations > 0),
    ) else {
        eprintln!("usage: bench-malloc pair-64|churn|batch|large|handover THREADS OPERATIONS");
        return ExitCode::from(2);
    };
    if let Some(wrong) = wrong_malloc() {
        eprintln!("bench-malloc: {wrong}");
        return ExitCode::FAILURE;
    }
    let mut times = measure(pattern, threads, operations);
    times.sort();
    let ns = times[times.len() / 2].as_nanos() as f64 / operations as f64;
    println!("{name} {threads} {ns:.3} ns");
    ExitCode::SUCCESS
}

/// Returns what is wrong when LD_PRELOAD names a library, and malloc is still another one's.
fn wrong_malloc() -> Option<String> {
    let preloaded = std::env::var("LD_PRELOAD").ok()?;
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr takes any address and writes only into `info`.
    unsafe { libc::dladdr(libc::malloc as *const libc::c_void, info.as_mut_ptr()) };
    // SAFETY: all zeroes are a valid Dl_info, and dladdr leaves one.
    let info = unsafe { info.assume_init() };
    if info.dli_fname.is_null() {
        return Some("the library of malloc cannot be told".to_owned());
    }
    // SAFETY: dladdr leaves a NUL-terminated name that lives as long as the library is loaded.
    let library = unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy();
    let is_first = preloaded.split([':', ' ']).next() == Some(&*library);
    (!is_first).then(|| format!("malloc is that of {library}, not of {preloaded}"))
}

fn measure(pattern: Pattern, threads: usize, operations: u64) -> Vec<Duration> {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || {
                    pattern(thread, operations / 10 + 1);
                    barrier.wait();
                    let start = Instant::now();
                    pattern(thread, operations);
                    start.elapsed()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(Duration::MAX)).collect()
    })
}

/// One block of 64 bytes, again and again.
fn pair(_: usize, operations: u64) {
    for _ in 0..operations {
        release(block(64));
    }
}

/// Random sizes of 16 to 1039 bytes in a table of live blocks, replaced in random order.
fn churn(thread: usize, operations: u64) {
    let mut random = Random::new(thread);
    let mut live = [std::ptr::null_mut(); LIVE];
    for _ in 0..operations {
        let word = random.next();
        let slot = word as usize % LIVE;
        release(live[slot]);
        live[slot] = block(16 + (word >> 32) as usize % 1024);
    }
    live.into_iter().for_each(release);
}

/// A thousand blocks of 32 bytes, then all of them freed in the order they came.
fn batch(_: usize, operations: u64) {
    let mut blocks = [std::ptr::null_mut(); 1000];
    for _ in 0..operations.div_ceil(1000) {
        blocks.fill_with(|| block(32));
        blocks.into_iter().for_each(release);
    }
}

/// Blocks of 100 KiB to 1 MiB, one at a time with a few alive.
fn large(thread: usize, operations: u64) {
    let mut random = Random::new(thread);
    let mut live = [std::ptr::null_mut(); 8];
    for i in 0..operations as usize {
        release(live[i % 8]);
        live[i % 8] = block((100 << 10) + random.next() as usize % (924 << 10));
    }
    live.into_iter().for_each(release);
}

/// Blocks go through shared slots: mostly another thread frees what this one allocated.
fn handover(thread: usize, operations: u64) {
    static SLOTS: [AtomicPtr<u8>; 256] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 256];
    let mut random = Random::new(thread);
    for _ in 0..operations {
        let word = random.next();
        // AcqRel: the thread that takes a block out sees the bytes that its maker wrote before it put it in.
        release(SLOTS[word as usize % 256].swap(block(16 + (word >> 32) as usize % 256), Ordering::AcqRel));
    }
}

fn block(len_bytes: usize) -> *mut u8 {
    // SAFETY: malloc takes any size.
    let block: *mut u8 = unsafe { libc::malloc(len_bytes) }.cast();
    assert!(!block.is_null(), "malloc returned NULL");
    // SAFETY: the block has at least one byte.
    unsafe { block.write(1) };
    black_box(block)
}

fn release(block: *mut u8) {
    // SAFETY: every pointer here is NULL or came from `block` and is released once.
    unsafe { libc::free(black_box(block).cast()) };
}

/// xorshift64 by Marsaglia: the same sequence for every library.
struct Random(u64);

impl Random {
    fn new(thread: usize) -> Random {
        Random(0x9e37_79b9_7f4a_7c15 ^ (thread as u64 + 1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
