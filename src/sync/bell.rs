//! A bell: how work wakes the one thread that does it, without a system call while that thread is awake.
//!
//! Work is put where the worker will find it, under a lock of its own, and then the bell is [rung](Bell::ring). The worker
//! [hears](Bell::hear) it, looks for work until there is none, and [waits](Bell::wait).
//!
//! # Protocol
//! | word | meaning | leaves to |
//! |---|---|---|
//! | `QUIET` | nobody rang since the worker last heard | `RUNG`, by ring, which wakes the worker |
//! | `RUNG` | somebody rang | `QUIET`, by hear |
//!
//! No work is missed. The worker looks after it heard, and takes the lock to look. If the work was put there before that, it
//! is found. If after, then its ringer has the lock after the worker, so its ring comes after the hearing: it finds the word
//! `QUIET` and rings, or `RUNG` by a later ring than the one that was heard; either way the word is `RUNG` when the worker
//! comes to wait, or changes while it sleeps.
//!
//! Progress: ringing is lock-free.

use super::atomic::{AtomicU32, Ordering};

const QUIET: u32 = 0;
const RUNG: u32 = 1;

/// A bell for one worker.
pub(crate) struct Bell {
    /// See the module. The work itself is published by its lock.
    word: AtomicU32,
}

impl Bell {
    /// Makes a bell that nobody has rung.
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Bell {
        Bell { word: AtomicU32::new(QUIET) }
    }

    /// Makes a bell that nobody has rung.
    #[cfg(loom)]
    pub(crate) fn new() -> Bell {
        Bell { word: AtomicU32::new(QUIET) }
    }

    /// Says that there is work. The caller put it there before, under the lock with which the worker looks.
    pub(crate) fn ring(&self) {
        // Relaxed: the lock orders this after the worker's hearing, if the worker looked before there was this work.
        if self.word.load(Ordering::Relaxed) == RUNG {
            return;
        }
        // Relaxed: as above; nothing is published by the word.
        if self.word.swap(RUNG, Ordering::Relaxed) == QUIET {
            wake(&self.word);
        }
    }

    /// Takes note of all rings so far. Work is looked for afterwards.
    pub(crate) fn hear(&self) {
        // Relaxed: the lock that is taken to look orders it before the rings for what is not found then.
        self.word.store(QUIET, Ordering::Relaxed);
    }

    /// Returns whether somebody rang since the worker last heard.
    #[cfg(loom)]
    pub(crate) fn is_rung(&self) -> bool {
        self.word.load(Ordering::Relaxed) == RUNG
    }

    /// Sleeps until somebody rings, or not at all if somebody has since the worker last heard. May return early.
    #[cfg(not(loom))]
    pub(crate) fn wait(&self) {
        crate::sys::futex::wait(&self.word, QUIET, None);
    }
}

#[cfg(not(loom))]
fn wake(word: &AtomicU32) {
    crate::sys::futex::wake(word, 1);
}

#[cfg(loom)]
fn wake(_word: &AtomicU32) {}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn a_sleeping_worker_finds_all_work() {
        const NR_ITEMS: u64 = 20_000;
        let bell = Bell::new();
        let work = Mutex::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for item in 0..NR_ITEMS {
                        *work.lock().expect("no panic") += 1;
                        bell.ring();
                        if item % 64 == 0 {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let mut done = 0;
            while done < 2 * NR_ITEMS {
                bell.hear();
                let found = std::mem::take(&mut *work.lock().expect("no panic"));
                done += found;
                if found == 0 {
                    bell.wait();
                }
            }
        });
    }
}
