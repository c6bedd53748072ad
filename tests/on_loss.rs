//! What a program gets that touches memory of a device that is gone. A test of its own, for the setting is the process's.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use daxtier::runtime::loss::{self, RETRY, SIGBUS, ZERO_FILL};
use daxtier::{AllocOptions, Config, Pool, TierName};
use std::ffi::{c_int, c_void};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

const SLOT: usize = 2 << 20;

/// Cuts the emulated device short, as a device that goes.
fn take_the_device_away() {
    let own = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let is_the_device = |path: &std::path::Path| {
        std::fs::read_link(path).is_ok_and(|link| link.as_os_str() == "/memfd:daxtier (deleted)")
    };
    let devices: Vec<_> = own.map(|entry| entry.path()).filter(|path| is_the_device(path)).collect();
    assert_eq!(devices.len(), 1, "{devices:?}");
    let device = std::fs::OpenOptions::new().write(true).open(&devices[0]).unwrap();
    device.write_at(b"x", 0).unwrap();
    device.set_len(0).unwrap();
}

fn read(block: NonNull<u8>, at: usize) -> u8 {
    // SAFETY: the test stays inside its blocks.
    let at = unsafe { block.add(at) };
    // SAFETY: as above.
    unsafe { at.read_volatile() }
}

fn write(block: NonNull<u8>, at: usize, value: u8) {
    // SAFETY: as in `read`.
    let at = unsafe { block.add(at) };
    // SAFETY: as above.
    unsafe { at.write_volatile(value) };
}

/// What the handler was told last, and what it answers.
static LOST_AT: AtomicUsize = AtomicUsize::new(0);
static LOST_LEN: AtomicUsize = AtomicUsize::new(0);
static ANSWER: AtomicI32 = AtomicI32::new(SIGBUS);

unsafe extern "C" fn handler(
    address: *mut c_void,
    len: usize,
    is_damaged: c_int,
    user: *mut c_void,
) -> c_int {
    LOST_AT.store(address.addr(), Ordering::Relaxed);
    LOST_LEN.store(len, Ordering::Relaxed);
    if is_damaged != 0 || user.addr() != 42 {
        return SIGBUS;
    }
    if ANSWER.load(Ordering::Relaxed) == RETRY {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
        // SAFETY: nothing answers there any more.
        unsafe { libc::mmap(address, len, prot, flags, -1, 0) };
        // SAFETY: mapped above.
        unsafe { address.cast::<u8>().write_volatile(99) };
    }
    ANSWER.load(Ordering::Relaxed)
}

/// Reads a byte in a child, and returns the signal that ended it, or 0.
fn signal_of_reading(block: NonNull<u8>, at: usize) -> c_int {
    // SAFETY: the child reads memory and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        read(block, at);
        // SAFETY: ends the child without running handlers.
        unsafe { libc::_exit(0) };
    }
    let mut status = -1;
    // SAFETY: waits for the child that was just made.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 }
}

/// Catches a setting without effect, a replacement that comes twice and takes stores away, and a handler that is not asked or
/// not heeded.
#[test]
fn lost_memory_reads_as_zeroes_or_as_the_handler_says() {
    let config = "fast=16M slow=emulated:64M on_loss=zero-fill";
    let pool = Pool::open(&Config::parse(config).unwrap()).unwrap();
    let slow = AllocOptions { tier: Some(TierName::Slow), ..AllocOptions::default() };
    let block = pool.malloc(8 * SLOT, SLOT, slow).unwrap();
    (0..8).for_each(|slot| write(block, slot * SLOT, 7));
    take_the_device_away();

    // Threads that meet the loss of one slot at once: each has its own byte, which must stay.
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let at = block.as_ptr().addr() + 100 + thread;
            scope.spawn(move || {
                let byte = std::ptr::with_exposed_provenance_mut::<u8>(at);
                // SAFETY: the byte is in the block, and this thread's.
                unsafe { byte.write_volatile(thread as u8 + 1) };
            });
        }
    });
    assert!((0..8).all(|thread| read(block, 100 + thread) == thread as u8 + 1), "a store was taken away");
    assert_eq!((read(block, 0), read(block, SLOT)), (0, 0), "what is lost reads as zeroes");
    write(block, SLOT, 5);
    assert_eq!(read(block, SLOT), 5);

    // SAFETY: the handler keeps to atomics and a system call.
    unsafe { loss::set_handler(Some(handler), std::ptr::without_provenance_mut(42)) };
    assert_eq!(signal_of_reading(block, 2 * SLOT), libc::SIGBUS, "the handler decides, not the setting");
    ANSWER.store(ZERO_FILL, Ordering::Relaxed);
    assert_eq!(read(block, 2 * SLOT + 5), 0);
    assert_eq!(LOST_AT.load(Ordering::Relaxed), block.as_ptr().addr() + 2 * SLOT);
    assert_eq!(LOST_LEN.load(Ordering::Relaxed), SLOT);
    ANSWER.store(RETRY, Ordering::Relaxed);
    assert_eq!(read(block, 3 * SLOT), 99, "what the handler put there");

    // SAFETY: as above; none any more.
    unsafe { loss::set_handler(None, std::ptr::null_mut()) };
    assert_eq!(read(block, 4 * SLOT), 0, "the setting again");
    // SAFETY: the block is live, and nobody uses it afterwards.
    unsafe { pool.free(block) }.unwrap();
    let fast = pool.malloc(SLOT, SLOT, AllocOptions::default()).unwrap();
    write(fast, 0, 1);
    // SAFETY: as above.
    unsafe { pool.free(fast) }.unwrap();
}
