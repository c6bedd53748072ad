//! A request: slots to move, how far it has come, and whoever waits for it.

use super::super::source::Tiers;
use super::stats::{MigrationCounts, NR_OUTCOMES, Outcome};
use crate::sys::futex;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Slots to move to a tier.
pub(crate) struct Request {
    pub(super) tiers: Arc<Tiers>,
    /// The tier's number.
    pub(super) to: usize,
    slots: Range<usize>,
    /// The next slot that a worker takes. Relaxed: each value is taken once, and nothing goes with it.
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
        Request {
            tiers,
            to,
            next: AtomicUsize::new(slots.start),
            left: AtomicUsize::new(slots.len()),
            is_cancelled: AtomicBool::new(false),
            is_done: AtomicU32::new(u32::from(slots.is_empty())),
            counts: [const { AtomicU64::new(0) }; NR_OUTCOMES],
            slots,
        }
    }

    /// Hands out the next slot, each once.
    pub(super) fn next_slot(&self) -> Option<usize> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        (next < self.slots.end).then_some(next)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// Takes note of what came of a slot.
    pub(super) fn note(&self, outcome: Outcome) {
        self.counts[outcome as usize].fetch_add(1, Ordering::Relaxed);
        // AcqRel: the last one publishes what all counted.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.is_done.store(1, Ordering::Release);
            futex::wake(&self.is_done, i32::MAX);
        }
    }
}

/// A request that is under way. Dropping it changes nothing: the request goes on.
pub struct Ticket {
    request: Arc<Request>,
}

impl Ticket {
    pub(in super::super) fn new(request: Arc<Request>) -> Ticket {
        Ticket { request }
    }

    /// Returns whether something has come of every slot.
    pub fn is_done(&self) -> bool {
        // Acquire: pairs with the Release of `note`.
        self.request.is_done.load(Ordering::Acquire) == 1
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
