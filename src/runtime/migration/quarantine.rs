//! Slow memory that promotions have left, and that is not handed out for a while.
//!
//! A device that was given the memory for I/O may still read it. When its time is up a folio is best used for the next
//! demotion, which overwrites all of it: it need not be cleared then, and its memory is there already where the device is
//! an emulated one. What nobody wants for another [`KEEP`] goes back to its tier.

use crate::folio::{Folio, RawFolio};
use crate::pgmap::{Pgmap, PgmapState};
use crate::space::{self, Mapping};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long what the next move may be able to use is kept for it.
pub(super) const KEEP: Duration = Duration::from_millis(500);
/// How long a slow folio stays out of use after a promotion, unless set.
const QUARANTINE: Duration = Duration::from_secs(2);

/// Milliseconds that a slow folio is quarantined. Relaxed: a setting for itself.
static QUARANTINE_MS: AtomicU64 = AtomicU64::new(QUARANTINE.as_millis() as u64);

/// Sets how long a slow folio stays out of use after a promotion.
pub(in super::super) fn set_quarantine(time: Duration) {
    QUARANTINE_MS.store(time.as_millis() as u64, Ordering::Relaxed);
}

fn age() -> Duration {
    Duration::from_millis(QUARANTINE_MS.load(Ordering::Relaxed))
}

/// Slow folios, each with the time at which its slot was promoted, the oldest first.
pub(super) struct Quarantine {
    folios: VecDeque<(Instant, RawFolio)>,
}

impl Quarantine {
    pub(super) const fn new() -> Quarantine {
        Quarantine { folios: VecDeque::new() }
    }

    /// Takes a folio that was mapped at a slot.
    pub(super) fn put(&mut self, raw: RawFolio) {
        self.folios.push_back((Instant::now(), raw));
    }

    /// Returns the oldest folio of the pgmaps that `is_wanted` whose time is up.
    pub(super) fn take(&mut self, is_wanted: impl Fn(u16) -> bool) -> Option<Folio> {
        let age = age();
        let is_free = |&(left, raw): &(Instant, RawFolio)| {
            left.elapsed() >= age && is_wanted(raw.pgmap()) && is_live(raw)
        };
        let at = self.folios.iter().position(is_free)?;
        // SAFETY: the reference was the slot's, and only this list has had it since.
        self.folios.remove(at).map(|(_, raw)| unsafe { Folio::from_raw(raw) })
    }

    /// Returns the oldest folio if nobody wanted it for long enough, or else when that is going to be.
    pub(super) fn take_unwanted(&mut self) -> Result<RawFolio, Option<Duration>> {
        let Some(&(left, _)) = self.folios.front() else { return Err(None) };
        match (age() + KEEP).checked_sub(left.elapsed()).filter(|wait| !wait.is_zero()) {
            Some(wait) => Err(Some(wait)),
            None => self.folios.pop_front().map(|(_, raw)| raw).ok_or(None),
        }
    }

    /// Returns the offsets of a pgmap's folios.
    pub(super) fn offsets_of(&self, pgmap: u16) -> Vec<u64> {
        self.folios
            .iter()
            .map(|(_, raw)| raw)
            .filter(|raw| raw.pgmap() == pgmap)
            .map(|raw| raw.offset())
            .collect()
    }

    /// Takes the folios of some pgmaps out, whatever their time.
    pub(super) fn take_all(&mut self, is_wanted: impl Fn(u16) -> bool) -> Vec<RawFolio> {
        let mut taken = Vec::new();
        self.folios.retain(|&(_, raw)| {
            let goes = is_wanted(raw.pgmap());
            if goes {
                taken.push(raw);
            }
            !goes
        });
        taken
    }
}

/// Gives a folio back that was quarantined.
pub(super) fn release(raw: RawFolio) {
    space::release(raw, Mapping::Shared);
}

/// Whether memory of the folio's pgmap is still handed out.
fn is_live(raw: RawFolio) -> bool {
    Pgmap::from_id(raw.pgmap()).is_some_and(|pgmap| pgmap.state() == PgmapState::Live)
}
