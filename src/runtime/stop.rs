//! Stopping the other threads of the process for the length of a fork.
//!
//! Other threads may write to memory that is being copied for a child. They are stopped with a signal whose handler
//! waits for the end of the stop; no privilege is needed. A thread that blocks all signals sits in a system call
//! such as sigwait and is passed over after a while.
//!
//! # Protocol
//! `EPOCH` is even while nobody is stopped and odd during a stop. [`stop`] makes it odd, signals every thread and
//! waits until as many have arrived as were signalled; [`Stopped`] makes it even again on drop and wakes all. While
//! copies are made or stand in the slots' places (`fork::is_copying`), no thread lets itself go: what it wrote would
//! be lost. So a thread that was stopped with a lock of the C library which the fork takes blocks the fork; the lock
//! on streams, the only one that is held for long, is taken before the stop.

use crate::sys::{futex, thread};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a thread stays stopped while nothing tells that the copying goes on.
const LONGEST_STOP: Duration = Duration::from_millis(1000);
/// How long [`stop`] waits for threads to arrive.
const LONGEST_ARRIVAL: Duration = Duration::from_millis(200);

/// Odd during a stop. SeqCst everywhere: rare, and its order against `ARRIVED` and `PROGRESS` is then plain.
static EPOCH: AtomicU32 = AtomicU32::new(0);
/// Threads that have arrived in the present stop.
static ARRIVED: AtomicU32 = AtomicU32::new(0);

/// The other threads of the process are stopped until this is dropped.
pub(super) struct Stopped {
    signal: Option<thread::BorrowedSignal>,
}

/// Stops every other thread. Allocates nothing. Returns without waiting where there is no other thread.
pub(super) fn stop() -> Stopped {
    if thread::count() <= 1 {
        return Stopped { signal: None };
    }
    let Some(signal) = thread::BorrowedSignal::take(on_signal) else { return Stopped { signal: None } };
    ARRIVED.store(0, Ordering::SeqCst);
    EPOCH.fetch_add(1, Ordering::SeqCst);
    let start = Instant::now();
    let mut signalled = thread::Seen::new();
    let mut sent = 0;
    // Threads that appear while others are signalled are found by looking again until a look finds no new one.
    loop {
        let fresh = thread::for_each_other(|tid| signalled.insert(tid) && signal.send(tid));
        sent += fresh;
        while ARRIVED.load(Ordering::SeqCst) < sent && start.elapsed() < LONGEST_ARRIVAL {
            let arrived = ARRIVED.load(Ordering::SeqCst);
            if arrived < sent {
                futex::wait(&ARRIVED, arrived, Some(Duration::from_millis(10)));
            }
        }
        if fresh == 0 || start.elapsed() >= LONGEST_ARRIVAL {
            break;
        }
    }
    Stopped { signal: Some(signal) }
}

impl Stopped {
    /// In a forked child nobody is stopped: forgets the stop.
    pub(super) fn forget_in_child(self) {
        EPOCH.store(0, Ordering::SeqCst);
        drop(self);
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.signal.is_none() {
            return;
        }
        if EPOCH.load(Ordering::SeqCst) % 2 == 1 {
            EPOCH.fetch_add(1, Ordering::SeqCst);
        }
        futex::wake(&EPOCH, i32::MAX);
    }
}

/// Waits for the end of the stop. Runs in a signal handler: touches atomics and the futex only.
extern "C" fn on_signal(_signal: libc::c_int) {
    let errno = crate::sys::errno::get();
    let epoch = EPOCH.load(Ordering::SeqCst);
    if epoch % 2 == 1 {
        ARRIVED.fetch_add(1, Ordering::SeqCst);
        futex::wake(&ARRIVED, 1);
        let mut waited = Duration::ZERO;
        const STEP: Duration = Duration::from_millis(50);
        while EPOCH.load(Ordering::SeqCst) == epoch {
            if super::fork::is_copying() {
                waited = Duration::ZERO;
            } else if waited >= LONGEST_STOP {
                break;
            }
            futex::wait(&EPOCH, epoch, Some(STEP));
            waited += STEP;
        }
    }
    crate::sys::errno::set(errno);
}
