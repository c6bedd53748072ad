//! What a worker knows of the process: whether memory may be pinned, and how many more mappings there may be.

use super::{CREW, give_up};
use crate::sys::pinners::Mappings;
use crate::sys::{descriptors, pinners};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How old a look at the process's descriptors and mappings may be.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Mappings that are left to the program.
const MARGIN: usize = 4096;

/// Whether the program was ever seen with a descriptor or a ring that pins memory. Never taken back: what it pinned may stay
/// pinned after the descriptor is gone.
static MAY_PIN: AtomicBool = AtomicBool::new(false);

/// A look at the process, at most [`LOOK_AGAIN`] old.
pub(super) struct Look {
    seen: Option<Instant>,
    pub(super) may_pin: bool,
    /// How many more mappings there may be.
    room: usize,
}

impl Look {
    pub(super) fn new() -> Look {
        Look { seen: None, may_pin: false, room: 0 }
    }

    pub(super) fn refresh(&mut self) {
        if self.seen.is_some_and(|seen| seen.elapsed() < LOOK_AGAIN) {
            return;
        }
        if !descriptors::all_are_there() {
            give_up();
        }
        let mappings = pinners::mappings();
        let has_ring = mappings.as_ref().is_some_and(|mappings| mappings.has_ring);
        if !MAY_PIN.load(Ordering::Relaxed) && (has_ring || pinners::may_pin()) {
            MAY_PIN.store(true, Ordering::Relaxed);
        }
        self.may_pin = MAY_PIN.load(Ordering::Relaxed);
        // Where they can't be counted the kernel's own refusal has to do, which leaves everything in place.
        let room = mappings.map_or(usize::MAX, |Mappings { count, limit, .. }| {
            limit.saturating_sub(count + MARGIN.min(limit / 8))
        });
        // All workers share them.
        self.room = room / CREW.load(Ordering::Relaxed).max(1) as usize;
        self.seen = Some(Instant::now());
    }

    /// Whether a move could take a mapping that is left to the program. Each move may split one in three.
    pub(super) fn is_at_limit(&mut self) -> bool {
        const A_MOVE: usize = 4;
        if self.room < A_MOVE {
            return true;
        }
        self.room -= 2;
        false
    }
}
