//! Forks of a process whose device is gone. A test of its own, for it has one device, which it takes away.

use daxtier::{AllocOptions, Config, Pool, TierName};
use std::os::unix::fs::FileExt;

/// Cuts the emulated device short, as a device that goes.
fn take_the_device_away() {
    let own = std::fs::read_dir("/proc/self/fd").expect("there is a /proc").flatten();
    let is_the_device = |path: &std::path::Path| {
        std::fs::read_link(path).is_ok_and(|link| link.as_os_str() == "/memfd:daxtier (deleted)")
    };
    let devices: Vec<_> = own.map(|entry| entry.path()).filter(|path| is_the_device(path)).collect();
    assert_eq!(devices.len(), 1, "{devices:?}");
    let device = std::fs::OpenOptions::new().write(true).open(&devices[0]).expect("a memfd opens");
    device.write_at(b"x", 0).expect("it is the device");
    device.set_len(0).expect("nothing seals it");
}

/// Runs `child` in a forked process and returns its wait status.
fn status_of(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child only reads memory and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: ends the child without running handlers.
        unsafe { libc::_exit(child()) };
    }
    assert!(pid > 0, "the fork failed");
    let mut status = -1;
    // SAFETY: waits for the child that was just made.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    status
}

/// Catches copies for the child that are made without minding SIGBUS, which ends the parent, and copies that read as zeroes,
/// with which the child would go on as if nothing were lost.
#[test]
fn what_is_lost_is_lost_to_both_and_a_fork_ends_neither() {
    let pool =
        Pool::open(&Config::parse("fast=16M slow=emulated:64M").expect("valid")).expect("the pool opens");
    let in_tier = |tier| AllocOptions { tier: Some(tier), ..AllocOptions::default() };
    // In slots of its own: what the heap writes beside other blocks would be lost as well, and it ends with the thread.
    let lost = pool.malloc(4 << 20, 1 << 21, in_tier(TierName::Slow)).expect("there is room").cast::<u64>();
    let kept = pool.malloc(4096, 16, in_tier(TierName::Fast)).expect("there is room").cast::<u64>();
    // SAFETY: both blocks are live and hold the word.
    unsafe { lost.write_volatile(7) };
    // SAFETY: as above.
    unsafe { kept.write_volatile(8) };
    // SAFETY: a child's own copy.
    let read = |block: std::ptr::NonNull<u64>| unsafe { block.read_volatile() };
    assert_eq!(status_of(|| i32::from((read(lost), read(kept)) != (7, 8))), 0, "as long as it is there");
    take_the_device_away();
    for _ in 0..2 {
        assert_eq!(
            status_of(|| i32::from(read(kept) != 8)),
            0,
            "a child that does not touch what is lost lives"
        );
        let status = status_of(|| {
            // The C library's, so that no core is written.
            // SAFETY: sets a limit of this child alone.
            unsafe { libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 }) };
            i32::from(read(lost) != 0)
        });
        assert!(
            libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS,
            "a child that touches it ended with {status:#x}"
        );
    }
    assert_eq!(read(kept), 8, "the parent goes on");
    // To close it the heap would look at the pages that are gone.
    std::mem::forget(pool);
}
