//! Stopping the other threads of the process for the length of a fork.
//!
//! Other threads may write to memory that is being copied for a child. They are stopped with a signal whose handler
//! waits for the end of the stop; no privilege is needed. A thread that blocks even that signal can't be stopped, and
//! then nobody is.
//!
//! # Protocol
//! `EPOCH` is even while nobody is stopped and odd during a stop. [`stop`] makes it odd and signals every thread that
//! /proc lists; a handler enters its thread in `ARRIVALS` and sleeps on `EPOCH`. When a whole listing has arrived
//! nobody else is left who could start a thread. [`Stopped`] makes `EPOCH` even again on drop and wakes all; so does a
//! `stop` that gives up. A stopped thread never lets itself go: what it wrote to a slot would be lost. A thread may have been
//! stopped with a lock of the C library that the fork takes (its malloc's, where malloc is not ours); the lock on streams,
//! the only one that is held for long, is taken before the stop. So stopped threads that have waited long ask
//! [`call_off`], which gives the fork up, and go on when that ends the stop.

use super::fork::call_off;
use crate::sys::reach::Reach;
use crate::sys::{blocked, futex, thread};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long [`stop`] waits for threads to arrive.
const LONGEST_ARRIVAL: Duration = Duration::from_secs(2);
/// How long a thread stays stopped before it asks whether the fork is stuck: far more than a fork of a large process takes.
const LONGEST_STOP: Duration = Duration::from_secs(2);
/// The most threads that can be stopped.
const MOST_THREADS: usize = 4096;

/// Odd during a stop. SeqCst everywhere: rare, and its order against `ARRIVED` is then plain.
static EPOCH: AtomicU32 = AtomicU32::new(0);
/// How many entries of `ARRIVALS` are taken in the present stop.
static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// The kernel's numbers of the threads that have arrived; 0 in an entry that is taken and not written yet.
static ARRIVALS: [AtomicU32; MOST_THREADS] = [const { AtomicU32::new(0) }; MOST_THREADS];

/// The other threads of the process are stopped until this is dropped.
pub(super) struct Stopped(());

/// Some thread did not arrive, or threads can't be listed; nobody is stopped.
#[derive(Debug)]
pub(super) struct Unstoppable;

/// Stops every other thread. Allocates nothing.
///
/// # Errors
/// [`Unstoppable`] when a thread does not arrive in two seconds, when there are too many, or without /proc.
pub(super) fn stop() -> Result<Stopped, Unstoppable> {
    if thread::count() == Some(1) {
        return Ok(Stopped(()));
    }
    let signal = Reach::take(on_signal).ok_or(Unstoppable)?;
    let nr_before = (ARRIVED.swap(0, Ordering::SeqCst) as usize).min(MOST_THREADS);
    ARRIVALS[..nr_before].iter().for_each(|entry| entry.store(0, Ordering::SeqCst));
    EPOCH.fetch_add(1, Ordering::SeqCst);
    // From here on dropping this lets threads go again.
    let stopped = Stopped(());
    let start = Instant::now();
    let mut signalled = thread::Seen::<MOST_THREADS>::new();
    let mut nr_sent: u16 = 0;
    loop {
        let arrived = ARRIVED.load(Ordering::SeqCst);
        // Threads that have appeared are signalled; those that have gone are not listed any more.
        let nr_missing = thread::for_each_other(|tid| {
            if has_arrived(tid) || thread::is_dead(tid) {
                return false;
            }
            if !signalled.contains(tid) {
                blocked::note(nr_sent.into(), tid);
                if signal.send(tid, nr_sent) {
                    signalled.insert(tid);
                    nr_sent = nr_sent.saturating_add(1);
                }
            }
            true
        });
        if nr_missing.ok_or(Unstoppable)? == 0 {
            return Ok(stopped);
        }
        if start.elapsed() > LONGEST_ARRIVAL {
            return Err(Unstoppable);
        }
        futex::wait(&ARRIVED, arrived, Some(Duration::from_millis(1)));
    }
}

fn has_arrived(tid: libc::pid_t) -> bool {
    let nr = (ARRIVED.load(Ordering::SeqCst) as usize).min(MOST_THREADS);
    ARRIVALS[..nr].iter().any(|entry| entry.load(Ordering::SeqCst) == tid as u32)
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
        if EPOCH.load(Ordering::SeqCst) % 2 == 1 {
            EPOCH.fetch_add(1, Ordering::SeqCst);
            futex::wake(&EPOCH, i32::MAX);
        }
    }
}

/// Waits for the end of the stop. Runs in a signal handler: touches atomics, the clock and the futex only, and what
/// [`call_off`] does.
extern "C" fn on_signal() {
    let errno = crate::sys::errno::get();
    // Again if the next stop has begun meanwhile: the entry that was taken may be of either.
    loop {
        let epoch = EPOCH.load(Ordering::SeqCst);
        if epoch.is_multiple_of(2) {
            break;
        }
        let at = ARRIVED.fetch_add(1, Ordering::SeqCst) as usize;
        if let Some(entry) = ARRIVALS.get(at) {
            entry.store(thread::own_id(), Ordering::SeqCst);
        }
        futex::wake(&ARRIVED, 1);
        let start = Instant::now();
        while EPOCH.load(Ordering::SeqCst) == epoch {
            futex::wait(&EPOCH, epoch, Some(LONGEST_STOP));
            if start.elapsed() >= LONGEST_STOP {
                call_off();
            }
        }
    }
    crate::sys::errno::set(errno);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    /// One stop at a time, as under the gate.
    static ALONE: Mutex<()> = Mutex::new(());

    fn block_all_signals() {
        // SAFETY: an all-zero set is a valid value.
        let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set is a local.
        unsafe { libc::sigfillset(&raw mut all) };
        // SAFETY: as above; the calling thread is one of this test's.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut()) };
    }

    #[test]
    fn stopped_threads_do_nothing_until_they_are_let_go() {
        let _alone = ALONE.lock().unwrap();
        let (count, end) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for blocks in [false, false, true] {
                let (count, end) = (&count, &end);
                scope.spawn(move || {
                    if blocks {
                        block_all_signals();
                    }
                    while !end.load(Ordering::Relaxed) {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..20 {
                let stopped = stop().expect("the tests block no signals behind the C library's back");
                let before = count.load(Ordering::Relaxed);
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(3) {
                    std::hint::spin_loop();
                }
                let after = count.load(Ordering::Relaxed);
                drop(stopped);
                assert_eq!(before, after);
            }
            end.store(true, Ordering::Relaxed);
        });
    }
}
