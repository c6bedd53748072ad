//! A reference count whose live path touches one cache line per processor.
//!
//! [`PercpuRef`] starts live with one initial reference. `get`, `put` and `tryget_live` change the shard of the
//! calling processor; `kill` folds the shards into one central count and drops the initial reference; from then
//! on every `put` goes to the central count, and exactly one of them finds that it was the last. `resurrect` goes
//! back. The idea and the words are those of Linux `lib/percpu-refcount.c`; where the kernel waits for a grace
//! period, each shard here carries its own DEAD bit, so every transition is decided by one word.
//!
//! Progress: get, put and tryget are lock-free (a failed CAS means that another thread's succeeded); kill and
//! resurrect take a lock that only they take.
//!
//! # Protocol
//! | shards | central count | mode | leaves to |
//! |---|---|---|---|
//! | live | BIAS + 1 | live | killing, by `kill` |
//! | some DEAD | BIAS + 1 + folded shards + central gets and puts | killing | dying, when `kill` subtracts BIAS + 1 |
//! | all DEAD, count 0 in each | the references | dying | drained, when it reaches 0; live, by `resurrect` |
//! | all DEAD | 0 | drained | live, by `resurrect` |
//!
//! # Invariants
//! I1: the references are the sum of all shards and of the central count less BIAS (where it is in).
//! I2: a shard with the DEAD bit has count 0 and is changed by `resurrect` only.
//! I3: while any shard is live the central count contains BIAS, so it cannot reach zero.
//! I4: a single shard may be below zero (a get here, its put there); only the sum means something.

use super::atomic::{AtomicU64, Ordering};
use super::{Mutex, abort_on_overflow};
use crate::sys::cpu;
use crossbeam::utils::CachePadded;

/// Keeps the central count away from zero while a shard is live. References never come near it.
const BIAS: u64 = 1 << 62;
/// The central count above which something has gone wrong (without BIAS).
const MAX_REFERENCES: u64 = 1 << 40;
/// Set in a shard's word when the shard was folded.
const DEAD: u64 = 1;
/// One reference in a shard's word.
const ONE: u64 = 2;

/// A reference count, sharded by processor.
pub(crate) struct PercpuRef {
    /// One word a processor (more processors than shards share): bit 0 DEAD, bits 1..64 a signed count (I4).
    /// Written by every get and put that runs there; its release publishes the putter's writes to `kill`.
    shards: Box<[CachePadded<AtomicU64>]>,
    /// BIAS while a shard is live, plus everything that was not counted in a shard.
    central: CachePadded<AtomicU64>,
    /// Serialises kill, resurrect and exit.
    switch: Mutex<Switch>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Switch {
    Live,
    Dying,
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
    /// Makes a count that is drained and may be brought to life with [`resurrect`](PercpuRef::resurrect).
    pub(crate) fn new_drained(nr_shards: usize) -> PercpuRef {
        PercpuRef {
            shards: (0..nr_shards).map(|_| CachePadded::new(AtomicU64::new(DEAD))).collect(),
            central: CachePadded::new(AtomicU64::new(0)),
            switch: Mutex::new(Switch::Dying),
        }
    }

    /// Takes a reference. The caller holds one already.
    #[cfg_attr(not(test), expect(dead_code, reason = "the interface is complete; folios use tryget"))]
    pub(crate) fn get(&self) {
        self.get_at(cpu::current());
    }

    /// Takes a reference unless the count is zero. Works while dying.
    pub(crate) fn tryget(&self) -> bool {
        self.tryget_at(cpu::current())
    }

    /// Takes a reference unless the count was killed.
    pub(crate) fn tryget_live(&self) -> bool {
        self.tryget_live_at(cpu::current())
    }

    /// Drops a reference.
    pub(crate) fn put(&self) -> Remaining {
        self.put_at(cpu::current())
    }

    /// [`get`](PercpuRef::get) as if on processor `cpu`. Any shard is correct.
    pub(crate) fn get_at(&self, cpu: usize) {
        if !self.add_to_shard(cpu, ONE) {
            // Relaxed: the caller's own reference keeps everything alive; nothing is published.
            check(self.central.fetch_add(1, Ordering::Relaxed));
        }
    }

    /// [`tryget`](PercpuRef::tryget) as if on processor `cpu`.
    pub(crate) fn tryget_at(&self, cpu: usize) -> bool {
        if self.add_to_shard(cpu, ONE) {
            return true;
        }
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

    /// [`tryget_live`](PercpuRef::tryget_live) as if on processor `cpu`.
    pub(crate) fn tryget_live_at(&self, cpu: usize) -> bool {
        self.add_to_shard(cpu, ONE)
    }

    /// [`put`](PercpuRef::put) as if on processor `cpu`.
    pub(crate) fn put_at(&self, cpu: usize) -> Remaining {
        if self.add_to_shard(cpu, ONE.wrapping_neg()) {
            return Remaining::Some;
        }
        self.drop_central(1)
    }

    /// Adds to the shard of `cpu` unless it is DEAD.
    fn add_to_shard(&self, cpu: usize, delta: u64) -> bool {
        let shard = &self.shards[cpu & (self.shards.len() - 1)];
        // Relaxed: the CAS below orders.
        let mut word = shard.load(Ordering::Relaxed);
        while word & DEAD == 0 {
            let new = word.wrapping_add(delta);
            // AcqRel: Release publishes a putter's writes to the swap in `kill`; Acquire pairs with the Release in
            // `resurrect`, so that a tryget sees what was set up before the count came to life.
            match shard.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
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
    /// the initial reference is dropped.
    ///
    /// # Errors
    /// [`SwitchError`] when it was killed before.
    pub(crate) fn kill(&self) -> Result<Remaining, SwitchError> {
        let mut switch = self.switch.lock();
        match *switch {
            Switch::Live => *switch = Switch::Dying,
            Switch::Dying => return Err(SwitchError::Dying),
            Switch::Exited => return Err(SwitchError::Exited),
        }
        for shard in &self.shards {
            // AcqRel: Acquire takes over the writes that putters released into this shard, so that the last put
            // (which meets us through `central`) sees them. From here on the shard is frozen (I2).
            let folded = shard.swap(DEAD, Ordering::AcqRel);
            debug_assert_eq!(folded & DEAD, 0, "live counts have live shards");
            // Relaxed: drop_central below publishes, and BIAS keeps everybody else from acting on a sum before that.
            self.central.fetch_add(signed_count(folded), Ordering::Relaxed);
        }
        Ok(self.drop_central(BIAS + 1))
    }

    /// Brings a killed count back to life, with its initial reference. Returns what was left before: after
    /// [`Remaining::Zero`] somebody has seen, or is about to see, the zero.
    ///
    /// # Errors
    /// [`SwitchError`] when it is live, or was ended by [`exit`](PercpuRef::exit).
    pub(crate) fn resurrect(&self) -> Result<Remaining, SwitchError> {
        let mut switch = self.switch.lock();
        match *switch {
            Switch::Dying => *switch = Switch::Live,
            Switch::Live => return Err(SwitchError::Live),
            Switch::Exited => return Err(SwitchError::Exited),
        }
        Ok(self.revive())
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
        let _ = self.revive();
    }

    /// Adds BIAS and the initial reference, then opens the shards (in this order: I3).
    fn revive(&self) -> Remaining {
        // Release: pairs with the Acquire of `tryget`; AcqRel so that a reviver also sees what the last put saw.
        let before = self.central.fetch_add(BIAS + 1, Ordering::AcqRel);
        for shard in &self.shards {
            // Release: pairs with the Acquire in `add_to_shard`.
            shard.store(0, Ordering::Release);
        }
        if before == 0 { Remaining::Zero } else { Remaining::Some }
    }

    /// Returns whether the count was killed and not brought back.
    pub(crate) fn is_dying(&self) -> bool {
        // Relaxed: a snapshot; deciders use tryget_live.
        self.shards[0].load(Ordering::Relaxed) & DEAD != 0
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
        for shard in &self.shards {
            // Relaxed: one thread.
            shard.store(if is_live { 0 } else { DEAD }, Ordering::Relaxed);
        }
        let bias = if is_live { BIAS + 1 } else { 0 };
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
        let shards: u64 = self.shards.iter().fold(0, |sum, shard| {
            // Relaxed: a snapshot.
            sum.wrapping_add(signed_count(shard.load(Ordering::Relaxed)))
        });
        let central = if central >= BIAS / 2 { central.wrapping_sub(BIAS) } else { central };
        central.wrapping_add(shards) as i64
    }
}

/// Returns a shard's count as a two's complement number.
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
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn live(nr_shards: usize) -> PercpuRef {
        let count = PercpuRef::new_drained(nr_shards);
        count.recycle();
        count
    }

    #[test]
    fn kill_drops_the_initial_reference_once() {
        let count = live(4);
        assert_eq!(count.kill(), Ok(Remaining::Zero));
        assert_eq!(count.kill(), Err(SwitchError::Dying));
        assert!(count.is_zero());
    }

    #[test]
    fn a_put_on_another_processor_than_its_get_counts() {
        let count = live(4);
        assert!(count.tryget_live_at(0));
        count.get_at(1);
        assert_eq!(count.put_at(3), Remaining::Some);
        assert_eq!(count.sum(), 2);
        assert_eq!(count.kill(), Ok(Remaining::Some));
        assert_eq!(count.put_at(2), Remaining::Zero);
    }

    #[test]
    fn a_killed_count_refuses_tryget_live_and_allows_tryget_until_zero() {
        let count = live(2);
        count.get_at(0);
        assert_eq!(count.kill(), Ok(Remaining::Some));
        assert!(!count.tryget_live());
        assert!(count.tryget());
        assert_eq!(count.put(), Remaining::Some);
        assert_eq!(count.put(), Remaining::Zero);
        assert!(!count.tryget());
    }

    #[test]
    fn resurrect_restores_the_live_path() {
        let count = live(2);
        count.get();
        assert_eq!(count.resurrect(), Err(SwitchError::Live));
        let _ = count.kill().expect("live");
        assert_eq!(count.resurrect(), Ok(Remaining::Some));
        assert!(count.tryget_live());
        assert_eq!(count.put(), Remaining::Some);
        assert_eq!(count.put(), Remaining::Some);
        assert_eq!(count.kill(), Ok(Remaining::Zero));
        assert_eq!(count.resurrect(), Ok(Remaining::Zero));
        assert_eq!(count.kill(), Ok(Remaining::Zero));
    }

    #[test]
    fn exit_needs_a_drained_count_and_ends_it() {
        let count = live(2);
        assert_eq!(count.exit(), Err(SwitchError::Live));
        count.get();
        let _ = count.kill().expect("live");
        assert_eq!(count.exit(), Err(SwitchError::Dying));
        assert_eq!(count.put(), Remaining::Zero);
        assert_eq!(count.exit(), Ok(()));
        assert_eq!(count.resurrect(), Err(SwitchError::Exited));
    }

    #[test]
    fn exactly_one_thread_sees_zero() {
        for round in 0..200 {
            let count = live(4);
            let zeroes = AtomicUsize::new(0);
            let note = |remaining| {
                if remaining == Remaining::Zero {
                    zeroes.fetch_add(1, Ordering::Relaxed);
                }
            };
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (count, note) = (&count, &note);
                    scope.spawn(move || {
                        for step in 0..500 {
                            if count.tryget_live_at(thread + step) {
                                note(count.put_at(thread + step * 3 + round));
                            }
                        }
                    });
                }
                scope.spawn(|| note(count.kill().expect("killed once")));
            });
            assert_eq!(zeroes.load(Ordering::Relaxed), 1);
            assert_eq!(count.sum(), 0);
        }
    }
}
