//! The gate that a fork closes: what must be whole when the process is cloned is only changed by threads inside.
//!
//! A forked child has the forking thread alone. A lock that another thread held, or a structure that it was in the
//! middle of changing, stays so in the child for ever. So the heap engine's slow paths, the ends of threads and the
//! library's own code ([`service`](super::service)) run inside the gate, and a fork closes it: [`close`] waits until
//! nobody is inside and keeps all out. The engine's fast paths, which touch nothing but the thread's own pages or push a
//! block to another thread's list in one step, need none.
//!
//! # Protocol
//! A reader adds one to its stripe and then looks at `state`; the closer changes `state` and then looks at the
//! stripes. Between the two steps each makes a full barrier, so either the reader sees the closed gate, takes its one back
//! and waits, or the closer sees the reader and waits for it. On leaving likewise: either the closer sees that the reader has
//! gone, or the reader sees that somebody may wait, and wakes it.
//!
//! The reader's barrier would be what costs most of a section. So the closer makes it for the readers where the kernel can
//! (`membarrier`): in `OPEN` a reader on a stripe of its own only keeps the compiler from turning its two steps around. In
//! `CAREFUL`, before [`prepare`] and where the kernel can't, it makes a barrier. A reader on a shared stripe always does, by its
//! atomic addition. A reader that sees `OPEN` relies on the closer that closes the gate next, which sees `OPEN` too, or a
//! later state.
//!
//! | state | meaning | leaves to |
//! |---|---|---|
//! | `CAREFUL` | readers come and go, each with a barrier | `OPEN` by `prepare`; `CLOSED` |
//! | `OPEN` | readers come and go | `CLOSED` by a thread that is about to fork |
//! | `CLOSED` | the closer waits for readers, or has the memory in its hands | `LENT`; `OPEN` or `CAREFUL` by the closer |
//! | `LENT` | the closer went back into the C library, to fork | `CLOSED` by the closer; `OPEN` or `CAREFUL` by the child for itself |
//!
//! In `LENT` the C library takes locks of its own. A thread that holds one of them and waits at the gate would be
//! waited for by the closer in turn. A reader that waits in `LENT` therefore looks from time to time whether the
//! closer sleeps on a lock, and if so goes in all the same: the closer can't clone before the lock is free.
//!
//! # Invariants
//! - G1: a thread's depth is above zero from before it adds to its stripe until after it took its one back, but for
//!   while it waits. So a signal handler that interrupts a reader passes through without waiting for anybody, and a
//!   thread that is inside is never the one that waits in `close` ([`is_inside`] tells it to refuse).
//! - G2: the closer counts as inside, so that code which it calls passes through.

use super::atomic::{AtomicU32, Ordering, fence};
use super::here::{self, Here};
use super::stripes::{Stripe, Stripes};
use crate::sys::{errno, thread};
#[cfg(not(loom))]
use crate::sys::{futex, membarrier};
use std::sync::atomic::compiler_fence;
use std::time::Duration;

const OPEN: u32 = 0;
const CAREFUL: u32 = 1;
const CLOSED: u32 = 2;
const LENT: u32 = 3;

/// How often a reader at a lent gate looks what the closer waits for.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long a store may take to leave its processor, many times over: for a closer that the kernel refuses the barrier which
/// it had offered.
const SETTLING: Duration = Duration::from_millis(1);

/// The gate without the threads' own part: see the module's protocol.
pub(crate) struct Gate {
    /// One of the four states. Its Release, when the gate opens, publishes what the closer did.
    state: AtomicU32,
    /// `OPEN` or `CAREFUL`: what `state` becomes when the gate opens. Written by `open_wide`, once, and by the closer.
    openness: AtomicU32,
    /// The kernel's number of the closer, valid in `LENT`.
    closer: AtomicU32,
    stripes: Stripes,
    /// Whether a closer may make the readers' barrier.
    #[cfg(loom)]
    is_helped: bool,
}

impl Gate {
    /// Makes a careful gate.
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Gate {
        Gate {
            state: AtomicU32::new(CAREFUL),
            openness: AtomicU32::new(CAREFUL),
            closer: AtomicU32::new(0),
            stripes: Stripes::new(),
        }
    }

    /// Makes a careful gate, which is opened wide if a closer may help.
    #[cfg(loom)]
    pub(crate) fn new(is_helped: bool) -> Gate {
        Gate {
            state: AtomicU32::new(CAREFUL),
            openness: AtomicU32::new(CAREFUL),
            closer: AtomicU32::new(0),
            stripes: Stripes::new(),
            is_helped,
        }
    }

    /// Spares the readers their barrier, if the closer can make one for them.
    pub(crate) fn open_wide(&self) {
        if barrier_of_all() {
            // Before the state, so that a closer that finds `OPEN` there finds it here. Who finds it only here makes a barrier
            // that nobody needs.
            self.openness.store(OPEN, Ordering::SeqCst);
            // Whoever has the gate closed opens it as it should be.
            _ = self.state.compare_exchange(CAREFUL, OPEN, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// Goes in unless the gate is closed. [`leave`](Gate::leave) ends it.
    #[inline(always)]
    pub(crate) fn try_enter(&self, stripe: usize) -> bool {
        let count = &self.stripes.get(stripe).count;
        if Stripes::is_own(stripe) {
            // Relaxed: the barrier orders.
            count.store(1, Ordering::Relaxed);
            self.cheap_barrier();
            // Acquire: pairs with the Release of `open`.
            if self.state.load(Ordering::Acquire) == OPEN {
                return true;
            }
        } else {
            // SeqCst: a barrier.
            count.fetch_add(1, Ordering::SeqCst);
        }
        self.look_again(stripe)
    }

    /// Makes a barrier of its own before it looks at the state.
    #[inline(never)]
    fn look_again(&self, stripe: usize) -> bool {
        fence(Ordering::SeqCst);
        // Acquire: pairs with the Release of `open`.
        if is_open(self.state.load(Ordering::Acquire)) {
            return true;
        }
        self.leave(stripe);
        false
    }

    /// Takes back what `try_enter` added.
    #[inline(always)]
    pub(crate) fn leave(&self, stripe: usize) {
        let count = &self.stripes.get(stripe).count;
        if Stripes::is_own(stripe) {
            // Release: what was done inside comes before the closer's look at the stripe.
            count.store(0, Ordering::Release);
            self.cheap_barrier();
            // Relaxed: if this is not the last word, the closer's barrier was before it.
            if self.state.load(Ordering::Relaxed) == OPEN {
                return;
            }
        } else {
            // SeqCst: a barrier, and a Release as above.
            count.fetch_sub(1, Ordering::SeqCst);
        }
        self.wake_closer(count);
    }

    #[inline(never)]
    fn wake_closer(&self, count: &AtomicU32) {
        fence(Ordering::SeqCst);
        // Relaxed: the barrier orders.
        if !is_open(self.state.load(Ordering::Relaxed)) {
            wake_all(count);
        }
    }

    /// Waits until the gate opens, or until the closer is found asleep on a lock; then returns `false`.
    #[cold]
    pub(crate) fn wait_open(&self) -> bool {
        loop {
            // Relaxed, here and below: who goes in looks again.
            match self.state.load(Ordering::Relaxed) {
                OPEN | CAREFUL => return true,
                state => wait(&self.state, state, Some(PATIENCE)),
            }
            if self.state.load(Ordering::Relaxed) == LENT
                && thread::waits_for_lock(self.closer.load(Ordering::Relaxed))
            {
                return false;
            }
        }
    }

    /// Goes into a gate that is not open, for who was told so by `wait_open`.
    fn enter_lent(&self, stripe: usize) {
        let count = &self.stripes.get(stripe).count;
        if Stripes::is_own(stripe) {
            count.store(1, Ordering::SeqCst);
        } else {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Closes the gate and waits until nobody is inside. One closer at a time: others wait until it opens.
    pub(crate) fn close(&self) {
        let mut expected = OPEN;
        // SeqCst: a barrier.
        while let Err(state) =
            self.state.compare_exchange(expected, CLOSED, Ordering::SeqCst, Ordering::SeqCst)
        {
            if is_open(state) {
                expected = state;
            } else {
                wait(&self.state, state, None);
            }
        }
        // Relaxed: see `open_wide`.
        if self.openness.load(Ordering::Relaxed) == OPEN && !barrier_of_all() {
            // A filter was installed since: this once it takes longer.
            self.openness.store(CAREFUL, Ordering::Relaxed);
            pause(SETTLING);
        }
        fence(Ordering::SeqCst);
        for Stripe { count, .. } in self.stripes.seen() {
            loop {
                // Acquire: what was done inside comes before what the closer does.
                match count.load(Ordering::Acquire) {
                    0 => break,
                    inside => wait(count, inside, None),
                }
            }
        }
    }

    /// Whether the gate is not open. Relaxed: a hint.
    pub(crate) fn is_wanted(&self) -> bool {
        !is_open(self.state.load(Ordering::Relaxed))
    }

    /// Says that the closer, of which `closer` is the kernel's number, goes on in code that is not ours.
    pub(crate) fn lend(&self, closer: u32) {
        // Relaxed: the store below publishes it.
        self.closer.store(closer, Ordering::Relaxed);
        self.state.store(LENT, Ordering::SeqCst);
        wake_all(&self.state);
    }

    /// Says that the closer is back in our code.
    pub(crate) fn take_back(&self) {
        self.state.store(CLOSED, Ordering::SeqCst);
    }

    /// Opens the gate.
    pub(crate) fn open(&self) {
        self.state.store(self.openness.load(Ordering::Relaxed), Ordering::SeqCst);
        wake_all(&self.state);
    }

    /// Finds the calling thread's stripe.
    fn claim(&self) -> usize {
        self.stripes.claim()
    }

    /// Gives it up.
    fn release(&self, stripe: usize) {
        self.stripes.release(stripe);
    }

    /// Opens the gate in a forked child, where no reader is left; `own` is the stripe of its one thread.
    fn open_in_child(&self, own: Option<usize>) {
        self.stripes.forget_others(own);
        // Relaxed: one thread.
        self.state.store(self.openness.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Gate {
    /// Keeps what a reader does before from moving behind what it does after, as far as the compiler is concerned. The
    /// processor's part is the closer's [`barrier_of_all`].
    #[cfg(not(loom))]
    #[inline(always)]
    fn cheap_barrier(&self) {
        compiler_fence(Ordering::SeqCst);
    }

    /// Loom has no barrier that one thread makes for another: here each makes the closer's for itself.
    #[cfg(loom)]
    fn cheap_barrier(&self) {
        if self.is_helped {
            fence(Ordering::SeqCst);
        }
    }
}

fn is_open(state: u32) -> bool {
    state == OPEN || state == CAREFUL
}

/// A barrier of every thread of the process, somewhere in what it does. Returns whether the kernel made it.
#[cfg(not(loom))]
fn barrier_of_all() -> bool {
    membarrier::restart_sections().is_ok()
}

#[cfg(loom)]
fn barrier_of_all() -> bool {
    true
}

#[cfg(not(loom))]
fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    futex::wait(word, expected, timeout);
}

#[cfg(not(loom))]
fn wake_all(word: &AtomicU32) {
    futex::wake(word, i32::MAX);
}

#[cfg(not(loom))]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(loom)]
fn pause(_time: Duration) {}

#[cfg(loom)]
fn wait(_word: &AtomicU32, _expected: u32, _timeout: Option<Duration>) {
    loom::thread::yield_now();
}

#[cfg(loom)]
fn wake_all(_word: &AtomicU32) {}

#[cfg(not(loom))]
static GATE: Gate = Gate::new();

/// Models build their own gate; what surrounds them is not watched and never forks.
#[cfg(loom)]
static GATE: open_always::Gate = open_always::Gate;

#[cfg(loom)]
mod open_always {
    pub(super) struct Gate;
    impl Gate {
        pub(super) fn try_enter(&self, _: usize) -> bool {
            true
        }
        pub(super) fn leave(&self, _: usize) {}
        pub(super) fn wait_open(&self) -> bool {
            true
        }
        pub(super) fn enter_lent(&self, _: usize) {}
        pub(super) fn is_wanted(&self) -> bool {
            false
        }
        pub(super) fn close(&self) {}
        pub(super) fn lend(&self, _: u32) {}
        pub(super) fn take_back(&self) {}
        pub(super) fn open(&self) {}
        pub(super) fn open_in_child(&self, _: Option<usize>) {}
        pub(super) fn open_wide(&self) {}
        pub(super) fn claim(&self) -> usize {
            0
        }
        pub(super) fn release(&self, _: usize) {}
    }
}

/// Runs `work` inside the gate. Sections nest. Keeps `errno`; blocks while a fork has the gate closed.
#[inline]
pub(crate) fn run<T>(work: impl FnOnce() -> T) -> T {
    struct Inside<'a>(&'a Here);
    impl Drop for Inside<'_> {
        fn drop(&mut self) {
            self.0.leave();
        }
    }
    here::with(|here| {
        here.enter();
        let _inside = Inside(here);
        work()
    })
}

/// Makes sections cost less where the kernel helps: see the protocol. Blocks up to 20 ms if the process has threads already.
pub(crate) fn prepare() {
    GATE.open_wide();
}

/// Gives up what the calling thread, which is ending, has of the gate. It may go in again.
pub(crate) fn release() {
    here::with(|here| {
        if let Some(stripe) = here.chosen_stripe().filter(|_| here.depth.get() == 0) {
            here.stripe.set(0);
            GATE.release(stripe);
        }
    });
}

/// Whether the calling thread is inside: it must not close the gate. True in a signal handler that interrupted a
/// section.
#[inline]
pub(crate) fn is_inside() -> bool {
    here::with(|here| here.depth.get() > 0)
}

/// Whether somebody waits for all others to leave. For work inside the gate that takes long and can be cut short.
#[inline]
pub(crate) fn is_wanted() -> bool {
    GATE.is_wanted()
}

/// Closes the gate for a fork and waits until no other thread is inside. The caller is not inside, and counts as
/// inside until [`open`].
pub(crate) fn close() {
    GATE.close();
    here::with(|here| here.depth.set(1));
}

/// Runs `work` while no other thread is inside, and keeps the others out meanwhile. Returns `None`, with nothing done, when
/// the calling thread is inside itself.
pub(crate) fn alone<T>(work: impl FnOnce() -> T) -> Option<T> {
    struct Reopen;
    impl Drop for Reopen {
        fn drop(&mut self) {
            open();
        }
    }
    if is_inside() {
        return None;
    }
    close();
    let _reopen = Reopen;
    Some(work())
}

/// Says that the closer goes back into the C library to fork.
pub(crate) fn lend() {
    GATE.lend(thread::own_id());
}

/// Says that the closer is back, with the gate still closed.
pub(crate) fn take_back() {
    GATE.take_back();
}

/// Opens the gate that the calling thread closed.
pub(crate) fn open() {
    here::with(|here| here.depth.set(0));
    GATE.open();
}

/// Opens the gate in a forked child of the closer.
pub(crate) fn open_in_child() {
    here::with(|here| {
        here.depth.set(0);
        GATE.open_in_child(here.chosen_stripe());
    });
}

impl Here {
    #[inline]
    fn enter(&self) {
        let depth = self.depth.get();
        self.depth.set(depth + 1);
        // The fences keep the compiler from moving the depth past the stripe: signal handlers read it (G1).
        compiler_fence(Ordering::SeqCst);
        if depth == 0 && !GATE.try_enter(self.stripe()) {
            self.enter_slow();
        }
    }

    #[cold]
    fn enter_slow(&self) {
        let errno = errno::get();
        self.wait_and_enter();
        errno::set(errno);
    }

    fn wait_and_enter(&self) {
        loop {
            self.depth.set(0);
            compiler_fence(Ordering::SeqCst);
            let is_open = GATE.wait_open();
            self.depth.set(1);
            compiler_fence(Ordering::SeqCst);
            if !is_open {
                return GATE.enter_lent(self.stripe());
            }
            if GATE.try_enter(self.stripe()) {
                return;
            }
        }
    }

    #[inline]
    fn leave(&self) {
        let depth = self.depth.get();
        if depth == 1 {
            GATE.leave(self.stripe());
        }
        compiler_fence(Ordering::SeqCst);
        self.depth.set(depth - 1);
    }

    #[inline]
    fn stripe(&self) -> usize {
        self.chosen_stripe().unwrap_or_else(|| self.choose_stripe())
    }

    #[inline]
    fn chosen_stripe(&self) -> Option<usize> {
        (self.stripe.get() as usize).checked_sub(1)
    }

    #[cold]
    fn choose_stripe(&self) -> usize {
        let chosen = GATE.claim();
        self.stripe.set(chosen as u32 + 1);
        chosen
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
