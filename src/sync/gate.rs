//! The gate that a fork closes: what must be whole when the process is cloned is only changed by threads inside.
//!
//! A forked child has the forking thread alone. A lock that another thread held, or a structure that it was in the
//! middle of changing, stays so in the child for ever. So the heap engine's slow paths, the ends of threads and the
//! library's own code ([`service`](super::service)) run inside the gate, and a fork closes it: [`close`] waits until
//! nobody is inside and keeps all out. [`run`] costs two atomic additions to a line that few threads share; the
//! engine's fast paths, which touch nothing but the thread's own pages or push a block to another thread's list in one
//! step, need none.
//!
//! # Protocol
//! A reader adds one to its stripe and then looks at `state`; the closer changes `state` and then looks at the
//! stripes. All four are SeqCst, so either the reader sees the closed gate, takes its one back and waits, or
//! the closer sees the reader and waits for it.
//!
//! | state | meaning | leaves to |
//! |---|---|---|
//! | `OPEN` | readers come and go | `CLOSED` by a thread that is about to fork |
//! | `CLOSED` | the closer waits for readers, or has the memory in its hands | `LENT` or `OPEN` by the closer |
//! | `LENT` | the closer went back into the C library, to fork | `OPEN` by the closer; by the child for itself |
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

use super::atomic::{AtomicU32, Ordering};
use crate::sys::{errno, futex, thread};
use std::cell::Cell;
use std::sync::atomic::compiler_fence;
use std::time::Duration;

const OPEN: u32 = 0;
const CLOSED: u32 = 1;
const LENT: u32 = 2;

/// Lines that readers spread over. With more threads than that some share one.
#[cfg(not(loom))]
const NR_STRIPES: usize = 64;
#[cfg(loom)]
const NR_STRIPES: usize = 2;

/// How often a reader at a lent gate looks what the closer waits for.
const PATIENCE: Duration = Duration::from_millis(20);

/// A count of readers on a line of its own; two lines, since processors fetch them in pairs.
#[repr(align(128))]
struct Stripe(AtomicU32);

/// The gate without the threads' own part: see the module's protocol.
pub(crate) struct Gate {
    /// One of the three states. Written by the closer; publishes nothing but itself.
    state: AtomicU32,
    /// The kernel's number of the closer, valid in `LENT`.
    closer: AtomicU32,
    stripes: [Stripe; NR_STRIPES],
}

impl Gate {
    /// Makes an open gate.
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Gate {
        Gate {
            state: AtomicU32::new(OPEN),
            closer: AtomicU32::new(0),
            stripes: [const { Stripe(AtomicU32::new(0)) }; NR_STRIPES],
        }
    }

    /// Makes an open gate.
    #[cfg(loom)]
    pub(crate) fn new() -> Gate {
        Gate {
            state: AtomicU32::new(OPEN),
            closer: AtomicU32::new(0),
            stripes: std::array::from_fn(|_| Stripe(AtomicU32::new(0))),
        }
    }

    /// Goes in unless the gate is closed. [`leave`](Gate::leave) ends it.
    pub(crate) fn try_enter(&self, stripe: usize) -> bool {
        let count = &self.stripes[stripe % NR_STRIPES].0;
        // SeqCst, as the load below: see the protocol.
        count.fetch_add(1, Ordering::SeqCst);
        if load(&self.state) == OPEN {
            return true;
        }
        self.leave(stripe);
        false
    }

    /// Takes back what `try_enter` added.
    pub(crate) fn leave(&self, stripe: usize) {
        let count = &self.stripes[stripe % NR_STRIPES].0;
        // SeqCst: what was done inside comes before the closer's look at the stripe (it is a release at least), and
        // if the closer sleeps on the count, the state below is seen closed and it is woken.
        if count.fetch_sub(1, Ordering::SeqCst) == 1 && load(&self.state) != OPEN {
            wake_all(count);
        }
    }

    /// Waits until the gate opens, or until the closer is found asleep on a lock; then returns `false`.
    #[cold]
    pub(crate) fn wait_open(&self) -> bool {
        loop {
            // SeqCst: rare, and its order against the stripes is then plain.
            match load(&self.state) {
                OPEN => return true,
                state => wait(&self.state, state, Some(PATIENCE)),
            }
            if load(&self.state) == LENT && thread::waits_for_lock(self.closer.load(Ordering::Relaxed)) {
                return false;
            }
        }
    }

    /// Goes into a gate that is not open, for who was told so by `wait_open`.
    fn enter_lent(&self, stripe: usize) {
        self.stripes[stripe % NR_STRIPES].0.fetch_add(1, Ordering::SeqCst);
    }

    /// Closes the gate and waits until nobody is inside. One closer at a time: others wait until it opens.
    pub(crate) fn close(&self) {
        // SeqCst: see the protocol.
        while let Err(state) = self.state.compare_exchange(OPEN, CLOSED, Ordering::SeqCst, Ordering::SeqCst) {
            wait(&self.state, state, None);
        }
        for stripe in &self.stripes {
            loop {
                match load(&stripe.0) {
                    0 => break,
                    count => wait(&stripe.0, count, None),
                }
            }
        }
    }

    /// Whether the gate is not open. Relaxed: a hint.
    pub(crate) fn is_wanted(&self) -> bool {
        self.state.load(Ordering::Relaxed) != OPEN
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
        self.state.store(OPEN, Ordering::SeqCst);
        wake_all(&self.state);
    }

    /// Opens the gate in a forked child, where no reader is left.
    fn open_in_child(&self) {
        // Relaxed: one thread.
        self.stripes.iter().for_each(|stripe| stripe.0.store(0, Ordering::Relaxed));
        self.state.store(OPEN, Ordering::Relaxed);
    }
}

/// A SeqCst load.
#[cfg(not(loom))]
#[inline(always)]
fn load(word: &AtomicU32) -> u32 {
    word.load(Ordering::SeqCst)
}

/// Loom takes a SeqCst load for an Acquire load, which may miss a store that precedes it in the one order of all SeqCst
/// operations. A read-modify-write may not.
#[cfg(loom)]
fn load(word: &AtomicU32) -> u32 {
    word.fetch_add(0, Ordering::SeqCst)
}

#[cfg(not(loom))]
fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    futex::wait(word, expected, timeout);
}

#[cfg(not(loom))]
fn wake_all(word: &AtomicU32) {
    futex::wake(word, i32::MAX);
}

#[cfg(loom)]
fn wait(_word: &AtomicU32, _expected: u32, _timeout: Option<Duration>) {
    loom::thread::yield_now();
}

#[cfg(loom)]
fn wake_all(_word: &AtomicU32) {}

/// What a thread knows of itself.
struct Here {
    /// How many sections of the thread enclose each other (G1).
    depth: Cell<u32>,
    /// Its stripe plus one; 0 before the first section.
    stripe: Cell<usize>,
}

thread_local! {
    static HERE: Here = const { Here { depth: Cell::new(0), stripe: Cell::new(0) } };
}

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
        pub(super) fn open_in_child(&self) {}
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
    // Asked for once: to find a thread's variable is a call in a shared library.
    HERE.with(|here| {
        here.enter();
        let _inside = Inside(here);
        work()
    })
}

/// Whether the calling thread is inside: it must not close the gate. True in a signal handler that interrupted a
/// section.
#[inline]
pub(crate) fn is_inside() -> bool {
    HERE.with(|here| here.depth.get() > 0)
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
    HERE.with(|here| here.depth.set(1));
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
    HERE.with(|here| here.depth.set(0));
    GATE.open();
}

/// Opens the gate in a forked child of the closer.
pub(crate) fn open_in_child() {
    HERE.with(|here| here.depth.set(0));
    GATE.open_in_child();
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
        match self.stripe.get() {
            0 => self.choose_stripe(),
            chosen => chosen - 1,
        }
    }

    #[cold]
    fn choose_stripe(&self) -> usize {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        // Relaxed: any spread will do.
        let chosen = NEXT.fetch_add(1, Ordering::Relaxed) % NR_STRIPES;
        self.stripe.set(chosen + 1);
        chosen
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    #[test]
    fn nobody_is_inside_a_closed_gate() {
        let gate = Gate::new();
        let inside = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for stripe in 0..4 {
                let (gate, inside, stop) = (&gate, &inside, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        while !gate.try_enter(stripe) {
                            assert!(gate.wait_open(), "the closer never lends");
                        }
                        inside.fetch_add(1, Ordering::Relaxed);
                        inside.fetch_sub(1, Ordering::Relaxed);
                        gate.leave(stripe);
                    }
                });
            }
            for _ in 0..2000 {
                gate.close();
                for _ in 0..20 {
                    assert_eq!(inside.load(Ordering::Relaxed), 0);
                }
                gate.open();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn sections_nest_and_a_closer_counts_as_inside() {
        assert!(!is_inside());
        run(|| run(|| assert!(is_inside())));
        assert!(!is_inside());
        close();
        assert!(is_inside());
        run(|| assert!(is_inside()));
        open();
        assert!(!is_inside());
    }

    #[test]
    fn alone_means_that_nobody_else_is_inside() {
        assert_eq!(run(|| alone(|| ())), None, "who is inside is not alone");
        let (inside, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        run(|| {
                            inside.fetch_add(1, Ordering::Relaxed);
                            std::hint::spin_loop();
                            inside.fetch_sub(1, Ordering::Relaxed);
                        });
                    }
                });
            }
            for _ in 0..2000 {
                let seen = alone(|| (0..20).map(|_| inside.load(Ordering::Relaxed)).sum::<u64>());
                assert_eq!(seen, Some(0));
                assert!(!is_inside());
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_reader_goes_past_a_closer_that_sleeps_on_what_the_reader_holds() {
        let gate = Gate::new();
        let lock = Mutex::new(());
        std::thread::scope(|scope| {
            let held = lock.lock().unwrap();
            let closer = scope.spawn(|| {
                gate.close();
                gate.lend(thread::own_id());
                drop(lock.lock().unwrap());
                gate.take_back();
                gate.open();
            });
            // A reader that is let past does so because the closer sleeps; one that finds the gate open was too quick.
            while gate.state.load(Ordering::SeqCst) != LENT {
                std::thread::yield_now();
            }
            assert!(!gate.try_enter(0));
            assert!(!gate.wait_open(), "the gate can't open while its closer waits for us");
            gate.enter_lent(0);
            drop(held);
            gate.leave(0);
            closer.join().unwrap();
        });
        assert!(gate.try_enter(0));
    }
}
