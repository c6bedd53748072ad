//! What refers to memory that moves without being seen in the page tables: pipes, and futexes that processes share.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use common::is_own_process;
use daxtier::{AllocOptions, Config, MigrateError, Outcome, Pool, TierName};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

const SLOT: usize = 2 << 20;
const PAGE: usize = 4096;

/// Opens a pool and takes a block of it, or prints why nothing can be moved here.
fn open(config: &str, slots: usize) -> Option<(Pool, NonNull<u8>)> {
    let pool = Pool::open(&Config::parse(config).unwrap()).unwrap();
    let options = AllocOptions { tier: Some(TierName::Fast), zero: true, ..AllocOptions::default() };
    let block = pool.malloc(slots * SLOT, SLOT, options).unwrap();
    match pool.migrate(block.as_ptr(), SLOT, TierName::Fast) {
        Err(MigrateError::Off(refusal)) => {
            eprintln!("skipped: {refusal}");
            None
        }
        _ => Some((pool, block)),
    }
}

/// Moves a slot and says what came of it.
fn go(pool: &Pool, block: NonNull<u8>, slot: usize, to: TierName) -> Outcome {
    let counts = pool.migrate(block.as_ptr().wrapping_add(slot * SLOT), SLOT, to).unwrap();
    Outcome::ALL.into_iter().find(|&outcome| counts.get(outcome) == 1).unwrap()
}

/// Writes a byte to all of a slot.
fn fill(block: NonNull<u8>, slot: usize, byte: u8) {
    // SAFETY: the slot lies in the block.
    let start = unsafe { block.add(slot * SLOT) };
    // SAFETY: as above.
    unsafe { start.write_bytes(byte, SLOT) };
}

/// A pipe that holds pages of memory themselves.
struct Pipe([libc::c_int; 2]);

impl Pipe {
    const PAGES: usize = 8;

    /// Splices the first pages of a block into a pipe.
    fn of(block: NonNull<u8>) -> Pipe {
        let mut ends = [0; 2];
        // SAFETY: the array has room for two descriptors.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        let pages = libc::iovec { iov_base: block.as_ptr().cast(), iov_len: Pipe::PAGES * PAGE };
        // SAFETY: the pages are the block's, which stays as long as the pipe has them.
        let spliced = unsafe { libc::vmsplice(ends[1], &raw const pages, 1, 0) };
        assert_eq!(spliced, (Pipe::PAGES * PAGE) as isize);
        Pipe(ends)
    }

    /// Reads what is in it, and closes it.
    fn read(self) -> Vec<u8> {
        let mut seen = vec![0; Pipe::PAGES * PAGE];
        // SAFETY: the buffer is so long.
        let read = unsafe { libc::read(self.0[0], seen.as_mut_ptr().cast(), seen.len()) };
        assert_eq!(read, seen.len() as isize);
        // SAFETY: the descriptors are this pipe's.
        self.0.into_iter().for_each(|end| _ = unsafe { libc::close(end) });
        seen
    }
}

#[test]
fn what_a_pipe_has_of_slow_memory_stays_as_long_as_the_quarantine() {
    if !is_own_process("what_a_pipe_has_of_slow_memory_stays_as_long_as_the_quarantine") {
        return;
    }
    // A device of two slots, of which one stays in use: what is demoted next takes the place of what was promoted, once it may.
    let Some((pool, block)) = open("fast=32M slow=emulated:4M", 3) else { return };
    assert_eq!(go(&pool, block, 2, TierName::Slow), Outcome::Moved);
    for (quarantine, taken, expected) in
        [(Duration::from_secs(3600), Outcome::NoSpace, 1), (Duration::ZERO, Outcome::Moved, 2)]
    {
        pool.set_migration_quarantine(quarantine);
        fill(block, 0, 1);
        fill(block, 1, 2);
        assert_eq!(go(&pool, block, 0, TierName::Slow), Outcome::Moved);
        let pipe = Pipe::of(block);
        assert_eq!(go(&pool, block, 0, TierName::Fast), Outcome::Moved);
        assert_eq!(go(&pool, block, 1, TierName::Slow), taken);
        // Without a quarantine the pipe has the other slot's bytes: this test can fail.
        assert!(pipe.read().iter().all(|&byte| byte == expected), "{quarantine:?}");
        pool.set_migration_quarantine(Duration::ZERO);
    }
}

#[test]
fn write_protection_is_used_where_it_is_asked_for_and_nothing_can_be_pinned() {
    if !is_own_process("write_protection_is_used_where_it_is_asked_for_and_nothing_can_be_pinned") {
        return;
    }
    let Some((safe, refused)) = open("fast=32M slow=emulated:16M", 1) else { return };
    let Some((pool, block)) = open("fast=32M slow=emulated:16M migrate=on,demote=protect", 1) else { return };
    // A page that is locked behind the library's back can't be taken out, but is copied.
    let lock = |block: NonNull<u8>| {
        // SAFETY: the page is mapped and stays so.
        unsafe { libc::syscall(libc::SYS_mlock, block.as_ptr(), PAGE) }
    };
    if lock(refused) != 0 || go(&safe, refused, 0, TierName::Slow) == Outcome::Moved {
        eprintln!("skipped: no right to lock memory, or no other way than write protection");
        return;
    }
    fill(block, 0, 1);
    assert_eq!(lock(block), 0);
    let pipe = Pipe::of(block);
    assert_eq!(go(&pool, block, 0, TierName::Slow), Outcome::Moved);
    fill(block, 0, 2);
    assert!(pipe.read().iter().all(|&byte| byte == 1), "the pipe keeps what it has");
    assert_eq!(go(&pool, block, 0, TierName::Fast), Outcome::Moved);
    // A descriptor for direct I/O, and the pages are taken out again.
    let path = std::env::temp_dir().join(format!("daxtier-protect-{}", std::process::id()));
    std::fs::write(&path, [7; 8192]).unwrap();
    let direct = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
    std::fs::remove_file(&path).unwrap();
    let Ok(_direct) = direct else {
        eprintln!("skipped: no direct I/O here");
        return;
    };
    // A look at the descriptors may be a tenth of a second old.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(lock(block), 0);
    assert_eq!(go(&pool, block, 0, TierName::Slow), Outcome::Locked);
}

/// The first word of a block, as a futex that processes may share.
fn futex(block: NonNull<u8>, operation: libc::c_int, value: u32, limit: Option<Duration>) -> libc::c_long {
    let limit = limit.map(|limit| libc::timespec { tv_sec: limit.as_secs() as libc::time_t, tv_nsec: 0 });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word is the block's, the limit is read in the call.
    unsafe { libc::syscall(libc::SYS_futex, block.as_ptr(), operation, value, limit, 0, 0) }
}

/// Has a thread wait in the block's futex, calls `work`, and wakes; returns how many threads the call woke.
fn woken(block: NonNull<u8>, work: impl FnOnce()) -> libc::c_long {
    let addr = block.as_ptr().expose_provenance();
    let block_at = move || NonNull::new(std::ptr::with_exposed_provenance_mut::<u8>(addr)).unwrap();
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    static WAITER: AtomicU64 = AtomicU64::new(0);
    IS_OVER.store(false, Ordering::Relaxed);
    WAITER.store(0, Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // SAFETY: takes no argument.
            WAITER.store(unsafe { libc::syscall(libc::SYS_gettid) } as u64, Ordering::Relaxed);
            // It goes on by itself where the wake-up is lost.
            while !IS_OVER.load(Ordering::Relaxed) {
                futex(block_at(), libc::FUTEX_WAIT, 0, Some(Duration::from_secs(2)));
            }
        });
        let is_waiting = || {
            let path = format!("/proc/self/task/{}/syscall", WAITER.load(Ordering::Relaxed));
            std::fs::read_to_string(path).is_ok_and(|call| call.starts_with(&libc::SYS_futex.to_string()))
        };
        while !is_waiting() {
            std::thread::sleep(Duration::from_millis(1));
        }
        work();
        IS_OVER.store(true, Ordering::Relaxed);
        futex(block, libc::FUTEX_WAKE, i32::MAX as u32, None)
    })
}

#[test]
fn who_waits_in_a_futex_that_processes_share_is_woken_where_it_is_pinned() {
    if !is_own_process("who_waits_in_a_futex_that_processes_share_is_woken_where_it_is_pinned") {
        return;
    }
    if std::fs::read_to_string("/proc/self/syscall").is_err() {
        eprintln!("skipped: this kernel does not tell who waits");
        return;
    }
    let Some((pool, block)) = open("fast=32M slow=emulated:16M", 1) else { return };
    let word = block.cast::<AtomicU32>();
    // SAFETY: aligned and in the block, and used as an atomic only.
    unsafe { word.as_ref() }.store(0, Ordering::Relaxed);
    pool.pin(block.as_ptr(), 4).unwrap();
    let go_slow = |expected| move |pool: &Pool| assert_eq!(go(pool, block, 0, TierName::Slow), expected);
    assert_eq!(woken(block, || go_slow(Outcome::Kept)(&pool)), 1);
    pool.unpin(block.as_ptr(), 4).unwrap();
    // Without the pin the kernel looks for the waiter at the device's file: what is documented, and why it has to be pinned.
    assert_eq!(woken(block, || go_slow(Outcome::Moved)(&pool)), 0);
}

#[test]
fn a_program_whose_sockets_may_send_pages_keeps_what_is_slow() {
    if !is_own_process("a_program_whose_sockets_may_send_pages_keeps_what_is_slow") {
        return;
    }
    let Some((pool, block)) = open("fast=32M slow=emulated:16M", 1) else { return };
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(go(&pool, block, 0, TierName::Slow), Outcome::Moved);
    assert_eq!(go(&pool, block, 0, TierName::Fast), Outcome::Moved, "a plain socket is in nobody's way");
    assert_eq!(go(&pool, block, 0, TierName::Slow), Outcome::Moved);
    let (is_set, len) = (1 as libc::c_int, size_of::<libc::c_int>() as libc::socklen_t);
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ZEROCOPY);
    // SAFETY: the value is a local.
    let rc = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const is_set).cast(), len) };
    if rc != 0 {
        eprintln!("skipped: this kernel has no SO_ZEROCOPY");
        return;
    }
    // A look at the descriptors may be a tenth of a second old.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(go(&pool, block, 0, TierName::Fast), Outcome::DirectIo);
}

/// A page whose first reader waits until it is filled.
struct Unfilled {
    page: *mut libc::c_void,
    uffd: libc::c_int,
}

impl Unfilled {
    /// `ioctl` with the numbers of `linux/userfaultfd.h`, which libc lacks.
    fn control<const N: usize>(uffd: libc::c_int, request: libc::c_ulong, mut argument: [u64; N]) -> bool {
        // SAFETY: the argument is as long as the request says.
        unsafe { libc::ioctl(uffd, request, argument.as_mut_ptr()) == 0 }
    }

    fn new() -> Option<Unfilled> {
        const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
        const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
        let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: the kernel chooses the place.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, rights, flags, -1, 0) };
        // SAFETY: takes a number only.
        let uffd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) } as libc::c_int;
        let range = [page.addr() as u64, PAGE as u64, 1, 0];
        let is_made = Unfilled::control(uffd, UFFDIO_API, [0xaa, 0, 0])
            && Unfilled::control(uffd, UFFDIO_REGISTER, range);
        is_made.then_some(Unfilled { page, uffd })
    }

    fn fill(&self, byte: u8) {
        const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
        let bytes = vec![byte; PAGE];
        let copy = [self.page.addr() as u64, bytes.as_ptr().addr() as u64, PAGE as u64, 0, 0];
        assert!(Unfilled::control(self.uffd, UFFDIO_COPY, copy));
    }
}

/// Has process_vm_writev write a page to a block, and calls `work` when it has pinned the page and before it writes.
fn write_remotely(block: NonNull<u8>, byte: u8, work: impl FnOnce()) -> Option<()> {
    static WRITER: AtomicU64 = AtomicU64::new(0);
    WRITER.store(0, Ordering::Relaxed);
    let from = Unfilled::new()?;
    let (page, addr) = (from.page.expose_provenance(), block.as_ptr().expose_provenance());
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let part = |addr: usize| libc::iovec {
                iov_base: std::ptr::with_exposed_provenance_mut(addr),
                iov_len: PAGE,
            };
            let (local, remote) = (part(page), part(addr));
            // SAFETY: takes no argument.
            WRITER.store(unsafe { libc::syscall(libc::SYS_gettid) } as u64, Ordering::Relaxed);
            // SAFETY: both ranges are mapped; the block is nobody else's meanwhile.
            unsafe {
                libc::process_vm_writev(
                    std::process::id() as libc::pid_t,
                    &raw const local,
                    1,
                    &raw const remote,
                    1,
                    0,
                )
            }
        });
        let is_waiting = || {
            let path = format!("/proc/self/task/{}/syscall", WRITER.load(Ordering::Relaxed));
            let call = std::fs::read_to_string(path).unwrap_or_default();
            call.starts_with(&libc::SYS_process_vm_writev.to_string())
        };
        while !is_waiting() {
            std::thread::sleep(Duration::from_millis(1));
        }
        work();
        from.fill(byte);
        assert_eq!(writer.join().unwrap(), PAGE as isize);
    });
    Some(())
}

#[test]
fn what_process_vm_writev_is_about_to_write_is_not_moved_out_or_has_to_be_pinned() {
    if !is_own_process("what_process_vm_writev_is_about_to_write_is_not_moved_out_or_has_to_be_pinned") {
        return;
    }
    let Some((pool, block)) = open("fast=32M slow=emulated:16M", 1) else { return };
    // SAFETY: the first byte of the block, which nobody writes to just now.
    let first = || unsafe { block.as_ptr().read_volatile() };
    fill(block, 0, 1);
    let out = write_remotely(block, 2, || assert_eq!(go(&pool, block, 0, TierName::Slow), Outcome::Pinned));
    if out.is_none() {
        eprintln!("skipped: no userfaultfd for a page of ours");
        return;
    }
    assert_eq!(first(), 2);
    assert_eq!(go(&pool, block, 0, TierName::Slow), Outcome::Moved);
    pool.pin(block.as_ptr(), 1).unwrap();
    write_remotely(block, 3, || assert_eq!(go(&pool, block, 0, TierName::Fast), Outcome::Kept));
    pool.unpin(block.as_ptr(), 1).unwrap();
    assert_eq!(first(), 3);
    // Without the pin: nothing on a device tells the library of the page that is about to be written. What is documented, and
    // why it has to be pinned.
    write_remotely(block, 4, || assert_eq!(go(&pool, block, 0, TierName::Fast), Outcome::Moved));
    assert_eq!(first(), 3);
}
