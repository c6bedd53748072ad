//! A request: slots to move, how far it has come, and whoever waits for it.

use super::super::config::Demotion;
use super::super::source::Tiers;
use super::stats::{self, MigrationCounts, Outcome};
use crate::counters::NR_OUTCOMES;
use crate::migrate::MOST_MOVES;
use crate::pgmap::Pgmap;
use crate::space::Mapping;
use crate::sys::futex;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Slots to move to a tier.
pub(crate) struct Request {
    tiers: Arc<Tiers>,
    /// The tier's number.
    pub(super) to: usize,
    /// The pgmap that slots must lie on to be moved; any without.
    pub(super) only: Option<u16>,
    needs_kit: bool,
    /// How slots leave DRAM.
    pub(super) demotion: Demotion,
    slots: Range<usize>,
    /// The next slot that is handed out. Relaxed: the engine's lock is held.
    next: AtomicUsize,
    /// Slots that nothing has come of yet. The Release of the last decrement publishes the counts.
    left: AtomicUsize,
    /// Relaxed: a wish; a slot more or less may move.
    is_cancelled: AtomicBool,
    /// 1 when nothing is left; waiters sleep on it.
    is_done: AtomicU32,
    counts: [AtomicU64; NR_OUTCOMES],
}

impl Request {
    pub(in super::super) fn new(tiers: Arc<Tiers>, to: usize, slots: Range<usize>) -> Request {
        let is_shared = |pgmap: &Pgmap| Mapping::of(pgmap.device().kind()) == Mapping::Shared;
        let needs_kit = tiers.as_slice().iter().any(|tier| tier.pgmaps().iter().any(is_shared));
        Request {
            tiers,
            to,
            only: None,
            needs_kit,
            demotion: Demotion::PinSafe,
            next: AtomicUsize::new(slots.start),
            left: AtomicUsize::new(slots.len()),
            is_cancelled: AtomicBool::new(false),
            is_done: AtomicU32::new(u32::from(slots.is_empty())),
            counts: [const { AtomicU64::new(0) }; NR_OUTCOMES],
            slots,
        }
    }

    /// Makes a request for one slot, if it lies on a pgmap when its turn comes.
    pub(in super::super) fn of_pgmap(tiers: Arc<Tiers>, to: usize, slot: usize, pgmap: u16) -> Request {
        Request { only: Some(pgmap), ..Request::new(tiers, to, slot..slot + 1) }
    }

    /// Whether it takes a kit: memory of the pool is shared, so that slots may have to be blocked.
    pub(super) fn needs_kit(&self) -> bool {
        self.needs_kit
    }

    pub(super) fn tiers(&self) -> &Arc<Tiers> {
        &self.tiers
    }

    /// Returns whether there is one batch in it at most.
    pub(super) fn is_short(&self) -> bool {
        self.slots.len() <= MOST_MOVES
    }

    /// Hands out the next slots, at most `most`, each once. The engine's lock is held.
    pub(super) fn take(&self, most: usize) -> Option<Range<usize>> {
        let first = self.next.load(Ordering::Relaxed);
        let end = self.slots.end.min(first.saturating_add(most));
        self.next.store(end, Ordering::Relaxed);
        (first < end).then_some(first..end)
    }

    /// Whether both name a slot.
    pub(super) fn overlaps(&self, other: &Request) -> bool {
        self.slots.start < other.slots.end && other.slots.start < self.slots.end
    }

    /// Returns whether something has come of every slot.
    pub(super) fn is_done(&self) -> bool {
        // Acquire: pairs with the Release of `note`.
        self.is_done.load(Ordering::Acquire) == 1
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// Takes note of what came of a slot.
    pub(super) fn note(&self, outcome: Outcome) {
        stats::note(self.tiers.migration(), outcome);
        self.counts[outcome as usize].fetch_add(1, Ordering::Relaxed);
        // AcqRel: the last one publishes what all counted.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.is_done.store(1, Ordering::Release);
            futex::wake(&self.is_done, i32::MAX);
        }
    }
}

/// A request that is under way. Dropping it changes nothing: the request goes on.
#[derive(Clone)]
pub struct Ticket {
    request: Arc<Request>,
}

impl Ticket {
    pub(super) fn new(request: Arc<Request>) -> Ticket {
        Ticket { request }
    }

    /// Returns whether something has come of every slot.
    pub fn is_done(&self) -> bool {
        self.request.is_done()
    }

    /// Lets the slots that nothing has come of yet stay where they are. One that is just being moved is still moved.
    pub fn cancel(&self) {
        self.request.is_cancelled.store(true, Ordering::Relaxed);
    }

    /// Waits until something has come of every slot, or the time is up. Returns what came of those that are done.
    pub fn wait(&self, timeout: Duration) -> MigrationCounts {
        let start = Instant::now();
        while !self.is_done() {
            let Some(left) = timeout.checked_sub(start.elapsed()) else { break };
            futex::wait(&self.request.is_done, 0, Some(left.min(Duration::from_secs(3600))));
        }
        MigrationCounts::new(|outcome| self.request.counts[outcome as usize].load(Ordering::Relaxed))
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("slots", &self.request.slots)
            .field("is_done", &self.is_done())
            .finish()
    }
}
