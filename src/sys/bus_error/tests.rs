use super::*;
use crate::sys::file;
use crate::sys::mm::Reservation;
use crate::sys::testing::{ChildEnd, in_child};
use std::os::fd::{AsRawFd, OwnedFd};

const LEN: usize = 2 << 20;

/// A file that is mapped, of which the second half can be cut off.
struct Mapped {
    file: OwnedFd,
    range: Reservation,
}

impl Mapped {
    fn new() -> Mapped {
        let file = file::memfd(c"daxtier-test", LEN as u64).unwrap();
        let range = Reservation::new(LEN, 4096).unwrap();
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: maps over a reservation of our own.
        let addr = unsafe { libc::mmap(range.base().as_ptr().cast(), LEN, prot, flags, file.as_raw_fd(), 0) };
        assert_eq!(addr, range.base().as_ptr().cast());
        Mapped { file, range }
    }

    fn cut(&self) {
        // SAFETY: the file is ours.
        assert_eq!(unsafe { libc::ftruncate(self.file.as_raw_fd(), LEN as i64 / 2) }, 0);
    }

    fn addresses(&self) -> Range<usize> {
        let base = self.range.base().as_ptr().addr();
        base..base + LEN
    }

    fn byte(&self, index: usize) -> *mut u8 {
        assert!(index < LEN);
        // SAFETY: inside the mapping.
        unsafe { self.range.base().add(index) }.as_ptr()
    }

    /// Writes a byte and reads it, where it may fail.
    fn touch(&self, index: usize) -> Result<(), BusError> {
        let byte = self.byte(index);
        let write = || {
            // SAFETY: the byte is mapped.
            unsafe { byte.write_volatile(7) };
            // SAFETY: as above.
            assert_eq!(unsafe { byte.read_volatile() }, 7);
        };
        // SAFETY: the work drops nothing.
        unsafe { guarded(self.addresses(), write) }
    }
}

#[test]
fn a_fault_is_an_error_that_says_where_and_the_thread_goes_on() {
    let mapped = Mapped::new();
    assert_eq!(mapped.touch(LEN - 1), Ok(()));
    mapped.cut();
    for _ in 0..100 {
        let error = BusError { addr: mapped.byte(LEN - 1).addr(), is_damaged: false };
        assert_eq!(mapped.touch(LEN - 1), Err(error));
        assert_eq!(mapped.touch(0), Ok(()));
    }
}

#[test]
fn threads_have_a_guard_each_and_more_than_there_are_wait() {
    let mapped = Mapped::new();
    mapped.cut();
    std::thread::scope(|scope| {
        for thread in 0..2 * GUARDS.len() {
            let mapped = &mapped;
            scope.spawn(move || {
                for round in 0..200 {
                    let index = if (thread + round) % 2 == 0 { thread } else { LEN / 2 + thread * 8 };
                    let is_whole = index < LEN / 2;
                    match mapped.touch(index) {
                        Ok(()) => assert!(is_whole),
                        Err(error) => assert!(!is_whole && error.addr == mapped.byte(index).addr()),
                    }
                }
            });
        }
    });
    assert!(GUARDS.iter().all(|guard| guard.frame.load(Ordering::Relaxed) == 0));
}

#[test]
fn values_in_registers_outlive_an_abandoned_call() {
    let mapped = Mapped::new();
    mapped.cut();
    let values: [u64; 12] = std::array::from_fn(|i| std::hint::black_box(i as u64 * 0x0101_0101));
    let floats: [f64; 8] = std::array::from_fn(|i| std::hint::black_box(i as f64 + 0.5));
    for _ in 0..10 {
        mapped.touch(LEN - 1).unwrap_err();
    }
    assert_eq!(values.iter().sum::<u64>(), 66 * 0x0101_0101);
    assert_eq!(floats.iter().sum::<f64>(), 32.0);
}

#[test]
fn a_thread_that_blocks_the_signal_is_guarded_and_goes_on_blocking_it() {
    let end = in_child(|| {
        let mapped = Mapped::new();
        mapped.cut();
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: writes to a set that outlives the call.
        unsafe { libc::sigfillset(set.as_mut_ptr()) };
        // SAFETY: reads the set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()) };
        let is_error = mapped.touch(LEN - 1).is_err();
        // SAFETY: writes to the set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, ptr::null(), set.as_mut_ptr()) };
        // SAFETY: reads the set.
        let is_blocked = unsafe { libc::sigismember(set.as_ptr(), libc::SIGBUS) } == 1;
        i32::from(!is_error) + 2 * i32::from(!is_blocked)
    });
    assert_eq!(end, ChildEnd::Exited(0));
}

#[test]
fn a_fault_outside_of_guarded_memory_ends_the_process_as_ever() {
    let end = in_child(|| {
        let (mapped, other) = (Mapped::new(), Mapped::new());
        other.cut();
        let byte = other.byte(LEN - 1);
        // SAFETY: the byte is mapped; it is not in the guarded range.
        let write = || unsafe { byte.write_volatile(1) };
        // SAFETY: the work drops nothing.
        let _ = unsafe { guarded(mapped.addresses(), write) };
        0
    });
    assert_eq!(end, ChildEnd::Killed(libc::SIGBUS));
}

/// Leaves with a number when it sees a fault.
extern "C" fn leave_with_5(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: called with SA_SIGINFO.
    let info = unsafe { &*info };
    // SAFETY: a fault has an address.
    let has_addr = !unsafe { info.si_addr() }.is_null();
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(if has_addr { 5 } else { 6 }) };
}

extern "C" fn leave_with_7(_: c_int) {
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(7) };
}

fn install(handler: usize, flags: c_int) {
    // SAFETY: all zeroes are a valid structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    (action.sa_sigaction, action.sa_flags) = (handler, flags);
    // SAFETY: the handlers of these tests keep to what a handler may do.
    assert_eq!(unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) }, 0);
}

#[test]
fn a_handler_of_the_program_is_handed_the_faults_that_are_not_ours() {
    for (handler, flags, code) in [
        (leave_with_5 as *const () as usize, libc::SA_SIGINFO, 5),
        (leave_with_7 as *const () as usize, 0, 7),
    ] {
        for is_first in [true, false] {
            let end = in_child(|| {
                let mapped = Mapped::new();
                mapped.cut();
                if is_first {
                    install(handler, flags);
                }
                watch();
                if !is_first {
                    install(handler, flags);
                }
                if mapped.touch(LEN - 1).is_ok() {
                    return 1;
                }
                // SAFETY: mapped; fails.
                unsafe { mapped.byte(LEN - 1).write_volatile(1) };
                2
            });
            assert_eq!(end, ChildEnd::Exited(code), "installed first: {is_first}");
        }
    }
}

/// The handler that the one below finds, and calls.
static FOUND: AtomicUsize = AtomicUsize::new(0);

extern "C" fn call_what_was_found(number: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: ours, which takes three arguments.
    let found: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
        unsafe { std::mem::transmute(FOUND.load(Ordering::Relaxed)) };
    found(number, info, context);
}

#[test]
fn handlers_that_hand_on_to_each_other_end() {
    let end = in_child(|| {
        let mapped = Mapped::new();
        mapped.cut();
        watch();
        FOUND.store(on_signal as *const () as usize, Ordering::Relaxed);
        install(call_what_was_found as *const () as usize, libc::SA_SIGINFO);
        if mapped.touch(LEN - 1).is_ok() {
            return 1;
        }
        // SAFETY: mapped; fails.
        unsafe { mapped.byte(LEN - 1).write_volatile(1) };
        2
    });
    assert_eq!(end, ChildEnd::Killed(libc::SIGBUS));
}

#[test]
fn a_signal_that_was_sent_is_handed_on() {
    let end = in_child(|| {
        install(leave_with_7 as *const () as usize, 0);
        watch();
        // SAFETY: sends a signal to this thread.
        unsafe { libc::raise(libc::SIGBUS) };
        0
    });
    assert_eq!(end, ChildEnd::Exited(7));
    let end = in_child(|| {
        // SAFETY: puts the default in force.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        FORMER.store(libc::SIG_DFL, Ordering::Relaxed);
        watch();
        // SAFETY: sends a signal to this thread.
        unsafe { libc::raise(libc::SIGBUS) };
        0
    });
    assert_eq!(end, ChildEnd::Killed(libc::SIGBUS));
}
