//! Where the readers of the [gate](super::gate) stand: counts on lines of their own.
//!
//! A stripe is a thread's own, which then counts on it without atomics, or shared. A thread claims one at its first
//! section and gives it up at its end ([`Stripes::release`]). One that has a section after that claims another, and so does
//! one that is ended without; once no other stripe is left, what dead threads have is given up for them. Beyond
//! [`NR_OWN`] threads at a time the others share.
//!
//! # Invariants
//! - S1: the owner of a stripe is 0, or the thread that alone writes its count. It changes from 0 by a claim, to 0 by its
//!   owner or, once that is dead, by the one thread that looks for such.

use super::atomic::{AtomicU32, Ordering};
use crate::sys::{errno, thread};
// Not part of what models observe.
use std::sync::atomic::{AtomicBool, AtomicU32 as Unmodelled, AtomicUsize};

/// Stripes that are shared: the first ones.
#[cfg(not(loom))]
const NR_SHARED: usize = 16;
#[cfg(loom)]
const NR_SHARED: usize = 1;

/// Stripes that are a thread's own.
#[cfg(not(loom))]
const NR_OWN: usize = 1024;
#[cfg(loom)]
const NR_OWN: usize = 1;

const NR_STRIPES: usize = NR_SHARED + NR_OWN;

/// Of how many threads that find no free stripe one looks for dead owners: that takes a call into the kernel for each.
const PATIENCE: u32 = 64;

/// A count of readers on a line of its own; two lines, since processors fetch them in pairs.
#[repr(align(128))]
pub(super) struct Stripe {
    /// Readers inside. 0 or 1 if the stripe has an owner.
    pub(super) count: AtomicU32,
    /// The kernel's number of the thread whose stripe it is (S1).
    owner: Unmodelled,
}

/// All stripes of a gate.
pub(super) struct Stripes {
    stripes: [Stripe; NR_STRIPES],
    /// Stripes from here on were never claimed.
    nr_seen: AtomicUsize,
    /// Where the next claim looks first.
    look_at: AtomicUsize,
    /// How many threads found no free stripe.
    nr_late: Unmodelled,
    /// Whether a thread looks for what dead ones have.
    is_taking: AtomicBool,
}

impl Stripes {
    #[cfg(not(loom))]
    pub(super) const fn new() -> Stripes {
        Stripes {
            stripes: [const { Stripe { count: AtomicU32::new(0), owner: Unmodelled::new(0) } }; NR_STRIPES],
            nr_seen: AtomicUsize::new(NR_SHARED),
            look_at: AtomicUsize::new(0),
            nr_late: Unmodelled::new(0),
            is_taking: AtomicBool::new(false),
        }
    }

    #[cfg(loom)]
    pub(super) fn new() -> Stripes {
        Stripes {
            stripes: std::array::from_fn(|_| Stripe { count: AtomicU32::new(0), owner: Unmodelled::new(0) }),
            nr_seen: AtomicUsize::new(NR_STRIPES),
            look_at: AtomicUsize::new(0),
            nr_late: Unmodelled::new(0),
            is_taking: AtomicBool::new(false),
        }
    }

    /// Whether a stripe is a thread's own.
    #[inline(always)]
    pub(super) fn is_own(at: usize) -> bool {
        at >= NR_SHARED
    }

    #[inline(always)]
    pub(super) fn get(&self, at: usize) -> &Stripe {
        &self.stripes[at]
    }

    /// Those on which a reader may stand.
    pub(super) fn seen(&self) -> &[Stripe] {
        // Relaxed: who claims one beyond looks at the gate after that, across the closer's barrier.
        &self.stripes[..self.nr_seen.load(Ordering::Relaxed)]
    }

    /// Finds a stripe for the calling thread. Keeps `errno`.
    #[cold]
    pub(super) fn claim(&self) -> usize {
        let own_id = thread::own_id();
        if let Some(at) = self.claim_free(own_id) {
            return at;
        }
        // Relaxed: any of them will do.
        if self.nr_late.fetch_add(1, Ordering::Relaxed).is_multiple_of(PATIENCE) {
            self.take_from_dead();
        }
        self.claim_free(own_id).unwrap_or(own_id as usize % NR_SHARED)
    }

    fn claim_free(&self, own_id: u32) -> Option<usize> {
        // Relaxed: a hint, as are all but the claim itself.
        let start = self.look_at.load(Ordering::Relaxed);
        if start == NR_OWN {
            return None;
        }
        for at in (start..NR_OWN).chain(0..start) {
            let stripe = &self.stripes[NR_SHARED + at];
            // Acquire: pairs with the Release of `release`, so that the counts of one owner follow the other's.
            if stripe.owner.load(Ordering::Relaxed) == 0
                && stripe.owner.compare_exchange(0, own_id, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                self.nr_seen.fetch_max(NR_SHARED + at + 1, Ordering::SeqCst);
                self.look_at.store((at + 1) % NR_OWN, Ordering::Relaxed);
                return Some(NR_SHARED + at);
            }
        }
        // Full, until one is given up; if one was meanwhile, it stands there.
        _ = self.look_at.compare_exchange(start, NR_OWN, Ordering::Relaxed, Ordering::Relaxed);
        None
    }

    /// Gives up for them what threads had that have ended. One thread at a time, so that nobody else changes the owner of such a
    /// stripe meanwhile, to a thread that has got the dead one's number.
    fn take_from_dead(&self) {
        // Acquire, and Release below: one pass follows the other.
        if self.is_taking.swap(true, Ordering::Acquire) {
            return;
        }
        let saved = errno::get();
        for (at, stripe) in self.stripes.iter().enumerate().skip(NR_SHARED) {
            let owner = stripe.owner.load(Ordering::Relaxed);
            if owner != 0 && !thread::is_alive(owner) {
                self.release(at);
            }
        }
        errno::set(saved);
        self.is_taking.store(false, Ordering::Release);
    }

    /// Gives up a stripe that the calling thread, or a dead one, has claimed and is not on.
    pub(super) fn release(&self, at: usize) {
        if Self::is_own(at) {
            // Release: pairs with the Acquire of a claim.
            self.stripes[at].owner.store(0, Ordering::Release);
            self.look_at.store(at - NR_SHARED, Ordering::Relaxed);
        }
    }

    /// Forgets every thread but the calling one, which stands on none and has `own`, in a forked child.
    pub(super) fn forget_others(&self, own: Option<usize>) {
        // Relaxed: one thread.
        for stripe in self.seen() {
            stripe.count.store(0, Ordering::Relaxed);
            stripe.owner.store(0, Ordering::Relaxed);
        }
        self.look_at.store(0, Ordering::Relaxed);
        self.is_taking.store(false, Ordering::Relaxed);
        if let Some(at) = own.filter(|&at| Self::is_own(at)) {
            self.stripes[at].owner.store(thread::own_id(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    /// The stripe of a new thread that has ended since, without giving it up.
    fn claim_and_end(stripes: &Stripes) -> usize {
        std::thread::scope(|scope| scope.spawn(|| stripes.claim()).join()).unwrap()
    }

    #[test]
    fn a_stripe_that_is_given_up_is_the_next_threads() {
        let stripes = Stripes::new();
        let first = stripes.claim();
        let second = claim_and_end(&stripes);
        assert!(Stripes::is_own(first) && Stripes::is_own(second) && first != second);
        assert_eq!(stripes.seen().len(), first.max(second) + 1);
        stripes.release(first);
        assert_eq!(stripes.claim(), first);
    }

    #[test]
    fn what_dead_threads_have_is_taken_only_when_nothing_else_is_left() {
        let stripes = Stripes::new();
        let dead = [claim_and_end(&stripes), claim_and_end(&stripes)];
        let others: Vec<_> = (2..NR_OWN).map(|_| stripes.claim()).collect();
        assert!(!others.iter().any(|other| dead.contains(other)));
        errno::set(libc::EIO);
        let mut taken = [stripes.claim(), stripes.claim()];
        taken.sort_unstable();
        assert_eq!(taken, dead);
        assert_eq!(errno::get(), libc::EIO);
        assert!(!Stripes::is_own(stripes.claim()), "all have living owners");
        stripes.release(others[5]);
        assert_eq!(stripes.claim(), others[5]);
    }

    #[test]
    fn a_forked_childs_only_thread_keeps_its_stripe() {
        let stripes = Stripes::new();
        let (own, other) = (stripes.claim(), stripes.claim());
        stripes.get(other).count.store(1, Ordering::Relaxed);
        stripes.forget_others(Some(own));
        assert!(stripes.seen().iter().all(|stripe| stripe.count.load(Ordering::Relaxed) == 0));
        let claimed: Vec<_> = (0..3).map(|_| stripes.claim()).collect();
        assert!(claimed.contains(&other) && !claimed.contains(&own));
    }
}
