//! Folios of 2 MiB that are zero before anybody asks for them.
//!
//! A pgmap may keep a bounded number of free 2 MiB runs *aside*: cleared, and ready to be handed out as zeroed folios in the
//! time of any other. They are free memory. To the offset allocator they are taken; no folio and no reference is made of
//! them, so they count as used nowhere, and neither kill nor drain knows of them. A thread of the library fills the pool in
//! the background ([`fill_one`], which `runtime` calls); [`BELL`] wakes it. Uses `offset` and the pgmap's own mapping; used by `ops`
//! and `extents`.
//!
//! # Protocol
//! | state of a run | owner | leaves to |
//! |---|---|---|
//! | free | the offset allocator | in filling, by [`fill_one`] |
//! | in filling | the thread inside `fill_one`, under `POOLS` | aside; free, when it cannot be mapped |
//! | aside | the pool | handed out, by [`take`](Prezeroed::take) under the pool's lock; free, under `POOLS` |
//! | handed out | who asked: the run becomes a live folio | free, by the last put |
//!
//! # Invariants
//! I1: a run leaves the allocator for the pool, and comes back from there, under `POOLS`. So whoever holds `POOLS` and has
//! emptied a pool knows that none of the pgmap's free memory is outside the allocator.
//! I2: a request that finds nothing tries once more under `POOLS`, with the pool emptied ([`with_none_aside`](Body::with_none_aside)), as soon as
//! the pgmap ever had a pool. With I1: none fails while a fitting run is free or aside all along. It waits for one
//! clearing at most, which sees that somebody waits and stands back.
//! I3: a core is listed in `POOLS` while its pool may be filled, and is taken out under `POOLS` before its body goes. So the
//! body of a listed core lives while `POOLS` is held, and a device is given back by whoever ends the pgmap, not by the thread.
//! I4: runs aside are zero: only their former holders had a right to the bytes, and only `fill_one` has touched them since.
//!
//! Locks, in their order: `POOLS`, the pgmap's `grow`, the allocator's; the pool's own is held alone. `POOLS` is locked in
//! service only, so that whoever has it does not wait at the gate of a fork. A fork takes them all. The child has no
//! thread and one set of runs: it gives back what is aside and keeps no pool until it asks for one.

use super::FolioError;
use super::body::Body;
use super::core::Core;
use crate::offset::{Lifetime, OffsetAllocator};
#[cfg(not(loom))]
use crate::sync::bell::Bell;
use crate::sync::{Mutex, StaticMutex, service};
use crate::sys::{bus_error, futex};
use crate::units::Order;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

/// The pgmaps whose pools are filled (I3), and whose turn it is.
struct Pools {
    cores: Vec<&'static Core>,
    next: usize,
}

static POOLS: StaticMutex<Pools> = StaticMutex::new(Pools { cores: Vec::new(), next: 0 });
/// How many threads wait for `POOLS`. Relaxed: a hint for who fills.
static WAITING: AtomicU32 = AtomicU32::new(0);
/// Rung when a pool wants to be filled.
#[cfg(not(loom))]
pub(crate) static BELL: Bell = Bell::new();
/// Models have no filler.
#[cfg(loom)]
pub(crate) static BELL: Silent = Silent;

/// How long the filler stands back for others between two looks.
const STAND_BACK: Duration = Duration::from_micros(200);

/// A pgmap's pool.
pub(super) struct Prezeroed {
    aside: Mutex<Aside>,
    /// `aside.runs.len()`, for readers without the lock. Relaxed: a figure.
    nr_aside: AtomicUsize,
    /// Whether the pgmap ever had a pool; never taken back. Written under `POOLS` before the first run is taken, Release;
    /// read Acquire after a search that found nothing. A search that missed a run because it was aside found it taken, under
    /// a lock that the filler had held, and so sees this.
    is_opened: AtomicBool,
    /// Whether the pool is short because nothing was free. Relaxed: a free at the same instant may miss it, and then the
    /// pool stays short until the next one.
    is_starved: AtomicBool,
}

#[derive(Default)]
struct Aside {
    /// The most that is kept.
    most: usize,
    /// The first pages; room for `most` is reserved.
    runs: Vec<u64>,
}

/// What [`fill_one`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// It put a run aside; there may be more to do.
    One,
    /// Every pool is full.
    Full,
    /// What is not full finds no free run.
    Starved,
}

impl Prezeroed {
    pub(super) fn new() -> Prezeroed {
        Prezeroed {
            aside: Mutex::new(Aside::default()),
            nr_aside: AtomicUsize::new(0),
            is_opened: AtomicBool::new(false),
            is_starved: AtomicBool::new(false),
        }
    }

    /// Takes a zeroed run out of the pool.
    pub(super) fn take(&self) -> Option<u64> {
        if !self.is_opened.load(Ordering::Acquire) {
            return None;
        }
        let (run, is_low) = {
            let mut aside = self.aside.lock();
            let run = aside.runs.pop();
            self.note(&aside);
            // Half, so that the filler is not woken for every single one.
            (run, aside.runs.len() < aside.most.div_ceil(2))
        };
        if is_low {
            BELL.ring();
        }
        run
    }

    /// Returns how many runs are aside.
    pub(super) fn nr_aside(&self) -> usize {
        self.nr_aside.load(Ordering::Relaxed)
    }

    /// Takes note that something was freed.
    pub(super) fn note_freed(&self) {
        if self.is_starved.load(Ordering::Relaxed) {
            self.is_starved.store(false, Ordering::Relaxed);
            BELL.ring();
        }
    }

    /// Rings if the pool is not full.
    pub(super) fn note_resurrected(&self) {
        if self.wants_more() {
            BELL.ring();
        }
    }

    fn wants_more(&self) -> bool {
        let aside = self.aside.lock();
        aside.runs.len() < aside.most
    }

    fn note(&self, aside: &Aside) {
        self.nr_aside.store(aside.runs.len(), Ordering::Relaxed);
    }

    /// Gives the surplus over `most` back to the allocator. The caller holds `POOLS`, or is a forked child.
    fn give_back(&self, allocator: &OffsetAllocator, most: usize) {
        loop {
            let run = {
                let mut aside = self.aside.lock();
                if aside.runs.len() <= most {
                    return;
                }
                let run = aside.runs.pop();
                self.note(&aside);
                run
            };
            if let Some(offset) = run {
                let freed = allocator.free(offset, Order::HUGE);
                debug_assert_eq!(freed, Ok(()), "a run that is aside is taken in the allocator");
            }
        }
    }

    /// Takes the pool's lock, for fork.
    pub(super) fn lock_for_fork(&self) {
        self.aside.lock_raw();
    }

    /// Gives the lock back.
    pub(super) fn unlock_after_fork(&self) {
        self.aside.unlock_raw();
    }
}

impl Core {
    /// Keeps up to `count` zeroed runs aside from now on; `fill_one` does the work. Runs in service; the caller holds a
    /// handle.
    pub(crate) fn keep_zeroed(&'static self, count: usize) -> Result<(), FolioError> {
        // SAFETY: the caller's handle keeps the body.
        let body = unsafe { self.body() };
        let allocator = body.allocator.as_ref().ok_or(FolioError::OwnOffsets { pgmap: body.id })?;
        body.check_order(Order::HUGE)?;
        let count = count.min((body.nr_pages / Order::HUGE.nr_pages()) as usize);
        let mut pools = lock_pools();
        // Relaxed: set under `POOLS`.
        if self.refs.is_dying() || body.is_dead.load(Ordering::Relaxed) {
            return Err(FolioError::Dying { pgmap: body.id });
        }
        if !pools.cores.iter().any(|&core| std::ptr::eq(core, self)) {
            pools.cores.push(self);
        }
        body.prezeroed.give_back(allocator, count);
        {
            let mut aside = body.prezeroed.aside.lock();
            let more = count.saturating_sub(aside.runs.len());
            aside.runs.reserve_exact(more);
            aside.most = count;
        }
        body.prezeroed.is_opened.store(true, Ordering::Release);
        drop(pools);
        BELL.ring();
        Ok(())
    }

    /// Takes the pgmap out of the list. The last share of its life is gone, and its body goes next (I3).
    pub(super) fn leave_pools(&self) {
        service::run(|| {
            let mut pools = lock_pools();
            pools.cores.retain(|&core| !std::ptr::eq(core, self));
        });
    }
}

impl Body {
    /// Runs `retry` with nothing aside, if the pgmap ever had a pool (I2).
    pub(super) fn with_none_aside<R>(
        &self,
        allocator: &OffsetAllocator,
        retry: impl FnOnce() -> R,
    ) -> Option<R> {
        if !self.had_pool() {
            return None;
        }
        service::run(|| {
            let _pools = lock_pools();
            self.prezeroed.give_back(allocator, 0);
            // Memory is short: the pool is filled again when something is freed.
            self.prezeroed.is_starved.store(true, Ordering::Relaxed);
            Some(retry())
        })
    }

    pub(super) fn had_pool(&self) -> bool {
        self.prezeroed.is_opened.load(Ordering::Acquire)
    }

    /// Runs `end`, which gives the claims back, with the pool closed for good.
    pub(super) fn with_pool_ended(&self, end: impl FnOnce()) {
        if !self.had_pool() {
            return end();
        }
        service::run(|| {
            let _pools = lock_pools();
            {
                let mut aside = self.prezeroed.aside.lock();
                *aside = Aside::default();
                self.prezeroed.note(&aside);
            }
            end();
        });
    }

    /// Gives what is aside back. Called in a forked child, which has one thread and no filler.
    pub(super) fn end_pool_in_child(&self) {
        if let Some(allocator) = &self.allocator {
            self.prezeroed.give_back(allocator, 0);
            self.prezeroed.aside.lock().most = 0;
        }
    }

    /// Clears a free run and puts it aside. The caller holds `POOLS`.
    fn put_one_aside(&self, allocator: &OffsetAllocator) -> bool {
        let Ok(offset) = self.alloc_offset_beside_pool(allocator, Order::HUGE, Lifetime::Short) else {
            return false;
        };
        let Ok(addr) = self.address_of_run(offset, Order::HUGE) else {
            let _ = allocator.free(offset, Order::HUGE);
            return false;
        };
        // SAFETY: mapped writable for its length, and not unmapped while `POOLS` is held; the run was free and is taken now,
        // and no folio is made of it, so its bytes are nobody's.
        match unsafe { bus_error::clear(addr, Order::HUGE.len_bytes() as usize) } {
            Ok(()) => {}
            Err(error) => {
                if error.is_damaged {
                    // It stays taken.
                    self.table.note_quarantined(Order::HUGE);
                } else {
                    let _ = allocator.free(offset, Order::HUGE);
                }
                return error.is_damaged;
            }
        }
        let mut aside = self.prezeroed.aside.lock();
        // There is room: `most` and what is reserved change under `POOLS`, and others only take.
        aside.runs.push(offset);
        self.prezeroed.note(&aside);
        true
    }
}

/// Clears one run for a pool that is not full, the pgmaps taking turns. Runs in service, on the library's own thread.
pub(crate) fn fill_one() -> Filled {
    // Relaxed: a hint.
    while let waiting @ 1.. = WAITING.load(Ordering::Relaxed) {
        futex::wait(&WAITING, waiting, Some(STAND_BACK));
    }
    let mut pools = POOLS.lock();
    let mut outcome = Filled::Full;
    for step in 0..pools.cores.len() {
        let at = (pools.next + step) % pools.cores.len();
        let core = pools.cores[at];
        // SAFETY: listed, and `POOLS` is held (I3).
        let body = unsafe { core.body() };
        let Some(allocator) = &body.allocator else { continue };
        // Relaxed: set under `POOLS`.
        if core.refs.is_dying() || body.is_dead.load(Ordering::Relaxed) || !body.prezeroed.wants_more() {
            continue;
        }
        // Set before the search, so that what is freed after it rings.
        body.prezeroed.is_starved.store(true, Ordering::Relaxed);
        if body.put_one_aside(allocator) {
            body.prezeroed.is_starved.store(false, Ordering::Relaxed);
            pools.next = at + 1;
            return Filled::One;
        }
        outcome = Filled::Starved;
    }
    outcome
}

/// Takes `POOLS` and has the filler stand back meanwhile. In service.
fn lock_pools() -> impl std::ops::DerefMut<Target = Pools> {
    debug_assert!(service::is_set());
    WAITING.fetch_add(1, Ordering::Relaxed);
    let pools = POOLS.lock();
    WAITING.fetch_sub(1, Ordering::Relaxed);
    pools
}

/// Returns how many pgmaps have their pools filled.
#[cfg(test)]
#[cfg(not(loom))]
pub(super) fn nr_listed() -> usize {
    POOLS.lock().cores.len()
}

/// Keeps runs from coming and going while the process forks.
pub(super) fn lock_for_fork() {
    POOLS.lock_raw();
}

/// Ends [`lock_for_fork`], on both sides.
pub(super) fn unlock_after_fork() {
    POOLS.unlock_raw();
}

/// A bell that nobody hears.
#[cfg(loom)]
pub(crate) struct Silent;

#[cfg(loom)]
impl Silent {
    fn ring(&self) {}
    pub(crate) fn hear(&self) {}
    pub(crate) fn wait(&self) {}
}
