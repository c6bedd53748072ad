//! A reference count whose live path touches one cache line per processor.
//!
//! [`PercpuRef`] starts live with one initial reference. `get`, `put` and `tryget_live` change the calling processor's
//! line: in a restartable sequence its *own* count, without atomics; where that fails, its *shared* count, with a CAS.
//! `kill` folds all counts into one central count and drops the initial reference; from then on every `put` goes to the
//! central count, and exactly one of them finds that it was the last. `resurrect` goes back. The idea and the words are
//! those of Linux `lib/percpu-refcount.c`; for its grace period stands the fence of `rseq`, and a DEAD bit decides the
//! shared counts by one word each. The models are in `loom_percpu_ref`.
//!
//! Progress: get, put and tryget are lock-free (a section is tried a fixed number of times; a failed CAS means that
//! another thread's succeeded); kill and resurrect take a lock that only they take.
//!
//! # Protocol
//! | lines | central count | mode | leaves to |
//! |---|---|---|---|
//! | open | BIAS + 1 | live | closing, by `kill` |
//! | own closed, fence under way, shared open | BIAS + 1 | closing | killing, when the fence is over |
//! | own folded, some shared DEAD | BIAS + 1 + folded counts + central changes | killing | dying, by the end of `kill` |
//! | closed and DEAD, count 0 in each | the references | dying | drained, when it reaches 0; live, by `resurrect` |
//! | closed and DEAD | 0 | drained | live, by `resurrect` |
//! | closed and DEAD, own counts as they were | BIAS + central gets and puts | unfenced | live, by `resurrect` |
//!
//! *Unfenced* is what a kill ends in when the kernel refuses the fence, which it had offered: a filter was installed
//! since. Nothing is folded, the count is never zero again unless resurrected, and what it protects stays.
//!
//! # Invariants
//! I1: the references are the sum of all lines and of the central count less BIAS (where it is in).
//! I2: a shared count with the DEAD bit is 0 and is changed by `resurrect` only.
//! I3: while any line is open or not folded the central count contains BIAS, so it cannot reach zero.
//! I4: a single line may be below zero (a get here, its put there); only the sum means something.
//! I5: an own count is written by sections of its processor, and by `kill` only while it is closed and a fence was made
//! since.

use super::atomic::{AtomicU32, AtomicU64, Ordering};
use super::rseq;
use super::{Mutex, abort_on_overflow};
use crossbeam::utils::CachePadded;
use std::ptr::NonNull;

/// Keeps the central count away from zero while a shard is live. References never come near it.
const BIAS: u64 = 1 << 62;
/// The central count above which something has gone wrong (without BIAS).
const MAX_REFERENCES: u64 = 1 << 40;
/// Set in a shared count when it was folded.
const DEAD: u64 = 1;
/// One reference in a shared count.
const ONE: u64 = 2;
/// How often a section that failed is tried before the shared count is taken.
const ATTEMPTS: usize = 2;

/// What one processor counts.
#[derive(Debug)]
#[repr(align(128))]
struct Line {
    /// A signed count (I4, I5). A section's Release publishes the putter's writes to `kill`.
    own: AtomicU64,
    /// Bit 0 DEAD, bits 1..64 a signed count (I4), for threads whose section failed. Its Release publishes the putter's
    /// writes to `kill`.
    shared: AtomicU64,
}

/// A reference count, split by processor.
pub(crate) struct PercpuRef {
    /// One line a processor. Processors beyond the last one use a line's shared count.
    lines: Box<[Line]>,
    /// How many lines have an own count that is used: all, or none where there are no sections.
    nr_own: u32,
    /// Not 0: sections fail. Written by `kill` and `revive`.
    closed: AtomicU32,
    /// BIAS while a line is open, plus everything that was not counted in a line.
    central: CachePadded<AtomicU64>,
    /// Serialises kill, resurrect and exit.
    switch: Mutex<Switch>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Switch {
    Live,
    Dying,
    Unfenced,
    Exited,
}

/// What a put, or the end of a kill, left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Remaining {
    /// Other references exist, or the count is live.
    Some,
    /// This was the last one: the caller does, once, what is to be done at zero.
    Zero,
}

/// A mode switch that did not fit the mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SwitchError {
    /// `kill` on a count that was killed already, or `exit` with references left.
    Dying,
    /// `resurrect` or `exit` on a live count.
    Live,
    /// Anything after `exit`.
    Exited,
}

impl PercpuRef {
    /// Makes a count that is drained and may be brought to life with [`resurrect`](PercpuRef::resurrect). The number of lines
    /// is a power of two.
    pub(crate) fn new_drained(nr_lines: usize) -> PercpuRef {
        debug_assert!(nr_lines.is_power_of_two());
        let line = || Line { own: AtomicU64::new(0), shared: AtomicU64::new(DEAD) };
        PercpuRef {
            lines: (0..nr_lines).map(|_| line()).collect(),
            nr_own: nr_lines as u32,
            closed: AtomicU32::new(1),
            central: CachePadded::new(AtomicU64::new(0)),
            switch: Mutex::new(Switch::Dying),
        }
    }

    /// Makes a drained count that works without sections, as where there are none.
    #[cfg(test)]
    pub(crate) fn new_drained_without_sections(nr_lines: usize) -> PercpuRef {
        PercpuRef { nr_own: 0, ..PercpuRef::new_drained(nr_lines) }
    }

    /// Takes a reference. The caller holds one already.
    #[cfg_attr(not(test), expect(dead_code, reason = "the interface is complete; folios use tryget"))]
    pub(crate) fn get(&self) {
        if !self.add(1) {
            // Relaxed: the caller's own reference keeps everything alive; nothing is published.
            check(self.central.fetch_add(1, Ordering::Relaxed));
        }
    }

    /// Takes a reference unless the count is zero. Works while dying.
    #[inline]
    pub(crate) fn tryget(&self) -> bool {
        self.add(1) || self.tryget_central()
    }

    #[cold]
    fn tryget_central(&self) -> bool {
        // Relaxed: the CAS below orders.
        let mut count = self.central.load(Ordering::Relaxed);
        while count != 0 {
            check(count);
            // Acquire: pairs with the Release of `resurrect`, so what was set up before it is seen.
            match self.central.compare_exchange_weak(count, count + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => count = now,
            }
        }
        false
    }

    /// Takes a reference unless the count was killed.
    #[inline]
    pub(crate) fn tryget_live(&self) -> bool {
        self.add(1)
    }

    /// Drops a reference.
    #[inline]
    pub(crate) fn put(&self) -> Remaining {
        if self.add(1u64.wrapping_neg()) { Remaining::Some } else { self.drop_central(1) }
    }

    /// Adds to this processor's line unless the count was killed.
    ///
    /// A section's Acquire look at `closed` pairs with the Release in `revive`, so that a tryget sees what was set up before
    /// the count came to life; its Release and the fence publish a putter's writes to `kill`.
    #[inline(always)]
    fn add(&self, delta: u64) -> bool {
        self.add_own(delta) || self.add_slowly(delta)
    }

    #[inline(always)]
    fn add_own(&self, delta: u64) -> bool {
        const SHIFT: u32 = size_of::<Line>().trailing_zeros();
        const { assert!(size_of::<Line>().is_power_of_two()) };
        let first = NonNull::from(&self.lines[0].own);
        // SAFETY: the lines are `1 << SHIFT` bytes long, have an own count each, and live as long as `self`; there are
        // `nr_own` of them, or more.
        unsafe { rseq::add_unless_closed::<SHIFT>(first, self.nr_own, &self.closed, delta) }
    }

    #[cold]
    fn add_slowly(&self, delta: u64) -> bool {
        (1..ATTEMPTS).any(|_| self.add_own(delta)) || self.add_shared(delta)
    }

    fn add_shared(&self, delta: u64) -> bool {
        let shared = &self.lines[rseq::current_cpu() & (self.lines.len() - 1)].shared;
        // Relaxed: the CAS below orders.
        let mut word = shared.load(Ordering::Relaxed);
        while word & DEAD == 0 {
            let new = word.wrapping_add(delta.wrapping_mul(ONE));
            // AcqRel: Release publishes a putter's writes to the swap in `kill`; Acquire pairs with the Release in
            // `revive`, so that a tryget sees what was set up before the count came to life.
            match shared.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    fn drop_central(&self, count: u64) -> Remaining {
        // AcqRel: Release publishes our writes to whoever drops the last; Acquire lets the last one see all.
        let before = self.central.fetch_sub(count, Ordering::AcqRel);
        if before < count {
            abort_on_overflow();
        }
        if before == count { Remaining::Zero } else { Remaining::Some }
    }

    /// Kills the count: no `tryget_live` succeeds that begins after this returns (so the kill is confirmed), and
    /// the initial reference is dropped. Blocks as long as the fence of `rseq` takes.
    ///
    /// # Errors
    /// [`SwitchError`] when it was killed before.
    pub(crate) fn kill(&self) -> Result<Remaining, SwitchError> {
        let mut switch = self.switch.lock();
        match *switch {
            Switch::Live => {}
            Switch::Dying | Switch::Unfenced => return Err(SwitchError::Dying),
            Switch::Exited => return Err(SwitchError::Exited),
        }
        // Relaxed: the fence orders.
        self.closed.store(1, Ordering::Relaxed);
        let is_fenced = self.nr_own == 0 || rseq::fence().is_ok();
        for line in &self.lines {
            // AcqRel: Acquire takes over the writes that putters released into this count, so that the last put
            // (which meets us through `central`) sees them. From here on the count is frozen (I2).
            let shared = line.shared.swap(DEAD, Ordering::AcqRel);
            debug_assert_eq!(shared & DEAD, 0, "live counts have live lines");
            // Relaxed: drop_central below publishes, and BIAS keeps everybody else from acting on a sum before that.
            self.central.fetch_add(signed_count(shared), Ordering::Relaxed);
            if is_fenced {
                // Relaxed: the fence ordered every section before this (I5).
                let own = line.own.load(Ordering::Relaxed);
                line.own.store(0, Ordering::Relaxed);
                self.central.fetch_add(own, Ordering::Relaxed);
            }
        }
        if is_fenced {
            *switch = Switch::Dying;
            return Ok(self.drop_central(BIAS + 1));
        }
        *switch = Switch::Unfenced;
        // The bias stays (I3).
        Ok(self.drop_central(1))
    }

    /// Brings a killed count back to life, with its initial reference. Returns what was left before: after
    /// [`Remaining::Zero`] somebody has seen, or is about to see, the zero.
    ///
    /// # Errors
    /// [`SwitchError`] when it is live, or was ended by [`exit`](PercpuRef::exit).
    pub(crate) fn resurrect(&self) -> Result<Remaining, SwitchError> {
        let mut switch = self.switch.lock();
        let added = match *switch {
            Switch::Dying => BIAS + 1,
            // The bias is still in.
            Switch::Unfenced => 1,
            Switch::Live => return Err(SwitchError::Live),
            Switch::Exited => return Err(SwitchError::Exited),
        };
        *switch = Switch::Live;
        Ok(self.revive(added))
    }

    /// Ends a drained count: `resurrect` fails from now on, until [`recycle`](PercpuRef::recycle).
    ///
    /// # Errors
    /// [`SwitchError`] when it is live, has references left or was ended before.
    pub(crate) fn exit(&self) -> Result<(), SwitchError> {
        let mut switch = self.switch.lock();
        match *switch {
            Switch::Live => Err(SwitchError::Live),
            Switch::Exited => Err(SwitchError::Exited),
            Switch::Unfenced => Err(SwitchError::Dying),
            Switch::Dying if !self.is_zero() => Err(SwitchError::Dying),
            Switch::Dying => {
                *switch = Switch::Exited;
                Ok(())
            }
        }
    }

    /// Brings a count that is drained, and that nobody uses any more, to life for its next owner.
    pub(crate) fn recycle(&self) {
        *self.switch.lock() = Switch::Live;
        let _ = self.revive(BIAS + 1);
    }

    /// Adds what the central count lacks of a live one, then opens the lines (in this order: I3).
    fn revive(&self, added: u64) -> Remaining {
        // Release: pairs with the Acquire of `tryget`; AcqRel so that a reviver also sees what the last put saw.
        let before = self.central.fetch_add(added, Ordering::AcqRel);
        for line in &self.lines {
            // Release: pairs with the Acquire in `add_shared`.
            line.shared.store(0, Ordering::Release);
        }
        // Release: pairs with the Acquire of a section's look.
        self.closed.store(0, Ordering::Release);
        if before == 0 { Remaining::Zero } else { Remaining::Some }
    }

    /// Returns whether the count was killed and not brought back.
    pub(crate) fn is_dying(&self) -> bool {
        // Relaxed: a snapshot; deciders use tryget_live.
        self.lines[0].shared.load(Ordering::Relaxed) & DEAD != 0
    }

    /// Returns whether the count was killed and all references are gone.
    pub(crate) fn is_zero(&self) -> bool {
        // Acquire: whoever sees the zero sees what the putters did before.
        self.central.load(Ordering::Acquire) == 0
    }

    /// Sets the number of references (besides the initial one of a live count): the others were those of a parent's
    /// threads and folios.
    ///
    /// Called in a forked child, which has one thread, after [`lock_for_fork`](PercpuRef::lock_for_fork) in the
    /// parent.
    pub(crate) fn reset_in_child(&self, nr_references: u64) {
        let is_live = !self.is_dying();
        for line in &self.lines {
            // Relaxed: one thread, which is in no section. The other threads' sections ended with them.
            line.shared.store(if is_live { 0 } else { DEAD }, Ordering::Relaxed);
            line.own.store(0, Ordering::Relaxed);
        }
        let is_unfenced = *self.switch.lock() == Switch::Unfenced;
        let bias = if is_live {
            BIAS + 1
        } else if is_unfenced {
            BIAS
        } else {
            0
        };
        // Relaxed: one thread.
        self.central.store(bias + nr_references, Ordering::Relaxed);
    }

    /// Keeps kill and resurrect out while the process forks.
    pub(crate) fn lock_for_fork(&self) {
        self.switch.lock_raw();
    }

    /// Ends [`lock_for_fork`](PercpuRef::lock_for_fork), on both sides.
    pub(crate) fn unlock_after_fork(&self) {
        self.switch.unlock_raw();
    }

    /// Returns the number of references by adding everything up. Exact only while nothing changes.
    pub(crate) fn sum(&self) -> i64 {
        // Relaxed: a snapshot.
        let central = self.central.load(Ordering::Relaxed);
        let lines: u64 = self.lines.iter().fold(0, |sum, line| {
            // Relaxed: a snapshot.
            let own = line.own.load(Ordering::Relaxed);
            sum.wrapping_add(own).wrapping_add(signed_count(line.shared.load(Ordering::Relaxed)))
        });
        let central = if central >= BIAS / 2 { central.wrapping_sub(BIAS) } else { central };
        central.wrapping_add(lines) as i64
    }
}

/// Returns a shared count as a two's complement number.
fn signed_count(word: u64) -> u64 {
    ((word as i64) >> 1) as u64
}

/// Aborts when a central count is out of range.
fn check(central: u64) {
    // The bias is at most counted once; a partly folded count may lie somewhat below it.
    if central > MAX_REFERENCES && central < BIAS - MAX_REFERENCES || central > BIAS + MAX_REFERENCES {
        abort_on_overflow();
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
