//! The life of a pgmap: live, dying, drained, dead.
//!
//! Kill stops new folios, drain waits for the old ones, resurrect goes back, exit gives the memory back while
//! handles still exist. The last handle to go does kill and exit by itself, as soon as the last folio is gone.
//!
//! # Protocol
//! | state | leaves to | by |
//! |---|---|---|
//! | live | dying, or drained when no folio is live | `kill`, or the last handle |
//! | dying | drained | the last put |
//! | dying, drained | live | `resurrect` |
//! | drained | dead | `exit`, or the last handle |

use super::{DrainError, FolioError, FolioInfo, Pgmap, PgmapError};
use crate::folio::Folio;
use crate::sync::percpu_ref::{Remaining, SwitchError};
use crate::sync::service;
use crate::sys::bus_error::BusError;
use crate::sys::{futex, stdio};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Where a pgmap stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PgmapState {
    /// Hands out folios.
    Live,
    /// Killed; folios are still held.
    Dying,
    /// Killed; no folio is held. May be resurrected.
    Drained,
    /// Gave its memory back. Only the handle is left.
    Dead,
    /// In a forked child: every extent is the parent's, so nothing can be handed out.
    Forked,
}

impl Pgmap {
    /// Returns where the pgmap stands in its life.
    pub fn state(&self) -> PgmapState {
        let body = self.body();
        if body.is_dead.load(Ordering::Acquire) {
            PgmapState::Dead
        } else if self.core().refs.is_zero() {
            PgmapState::Drained
        } else if self.core().refs.is_dying() {
            PgmapState::Dying
        } else if body.is_forked.load(Ordering::Relaxed) && body.is_all_foreign() {
            PgmapState::Forked
        } else {
            PgmapState::Live
        }
    }

    /// Whether the pgmap was killed, and not brought back.
    pub(crate) fn is_dying(&self) -> bool {
        self.core().refs.is_dying()
    }

    /// Kills the pgmap: no request that begins after this returns succeeds. Live folios stay valid. Does not wait
    /// for them.
    ///
    /// # Errors
    /// [`PgmapError::Dying`] when it was killed before, [`PgmapError::Dead`].
    pub fn kill(&self) -> Result<(), PgmapError> {
        match self.core().refs.kill() {
            Ok(Remaining::Some) => Ok(()),
            Ok(Remaining::Zero) => {
                self.core().note_drained();
                Ok(())
            }
            Err(error) => Err(self.switch_error(error)),
        }
    }

    /// Kills the pgmap and waits until every processor knows. As every processor's count carries its own mark, that
    /// is so when [`kill`](Pgmap::kill) returns; this is the name for callers who rely on it.
    ///
    /// # Errors
    /// As for [`kill`](Pgmap::kill).
    pub fn kill_and_confirm(&self) -> Result<(), PgmapError> {
        self.kill()
    }

    /// Takes note of an access to a folio's memory that failed, and takes the folio. A page that is damaged is never handed
    /// out again; a device that is gone is killed with its pgmap, and the first who sees that tells the user.
    pub(crate) fn note_bus_error(&self, folio: Folio, error: BusError) {
        if error.is_damaged {
            self.set_aside(folio);
            return;
        }
        drop(folio);
        self.note_gone();
    }

    /// Kills the pgmap of a device that does not answer any more. The first who sees that tells the user.
    pub(crate) fn note_gone(&self) {
        if self.kill().is_ok() {
            let name = self.device().name();
            service::run(|| {
                stdio::complain(&format!(
                    "daxtier: {name} is not there any more: nothing is placed there from now on, and what is there is lost\n"
                ));
            });
        }
    }

    /// Keeps a folio out of use for good, and counts it as quarantined.
    pub(crate) fn set_aside(&self, folio: Folio) {
        let body = self.body();
        body.counters.note_free(folio.order());
        body.table.note_quarantined(folio.order());
        // The reference of the pgmap goes, so that it can be drained; the folio's own stays for ever.
        std::mem::forget(folio);
        self.core().unpin();
    }

    /// Brings a killed pgmap back to life, drained or not.
    ///
    /// # Errors
    /// [`PgmapError::NotDying`] when it is live, [`PgmapError::Dead`].
    pub fn resurrect(&self) -> Result<(), PgmapError> {
        match self.core().refs.resurrect() {
            Ok(Remaining::Some) => {
                self.body().prezeroed.note_resurrected();
                Ok(())
            }
            Ok(Remaining::Zero) => {
                // Whoever saw the zero gives, or gave, the references' share of the life back; they have one again.
                self.core().share();
                self.body().prezeroed.note_resurrected();
                Ok(())
            }
            Err(error) => Err(self.switch_error(error)),
        }
    }

    /// Waits until no folio of the killed pgmap is live. Blocks; wakes as soon as the last one is put.
    ///
    /// # Errors
    /// [`DrainError::TimedOut`] lists who is still held; [`DrainError::NotDying`] when the pgmap is live.
    pub fn drain(&self, timeout: Duration) -> Result<(), DrainError> {
        let core = self.core();
        let deadline = Instant::now().checked_add(timeout);
        loop {
            // Acquire: pairs with the Release of `note_drained`. Read before the count, so that a drain in between
            // changes the word that we sleep on.
            let events = core.drained_events().load(Ordering::Acquire);
            if core.refs.is_zero() {
                return Ok(());
            }
            if !core.refs.is_dying() {
                return Err(DrainError::NotDying { pgmap: self.id() });
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(DrainError::TimedOut { pgmap: self.id(), holders: self.live_folios() });
            }
            futex::wait(core.drained_events(), events, left);
        }
    }

    /// Ends a drained pgmap: takes down its mapping and gives its extents back to the device. Only then can another
    /// process claim them, although handles exist.
    ///
    /// # Errors
    /// [`PgmapError::NotDying`], [`PgmapError::NotDrained`] or [`PgmapError::Dead`].
    pub fn exit(&self) -> Result<(), PgmapError> {
        let core = self.core();
        match core.refs.exit() {
            Ok(()) => {
                self.body().release_claims();
                Ok(())
            }
            Err(SwitchError::Dying) => Err(PgmapError::NotDrained {
                pgmap: self.id(),
                references: u64::try_from(core.refs.sum()).unwrap_or(0),
            }),
            Err(error) => Err(self.switch_error(error)),
        }
    }

    /// Returns every live folio, in ascending order of offset, each as it was when it was looked at. Allocates.
    pub fn live_folios(&self) -> Vec<FolioInfo> {
        let mut live = Vec::new();
        self.body().for_each_live(&mut |seen| live.push(self.body().info(&seen)));
        live
    }

    /// Returns the address of a page in the pgmap's own mapping; the extent is mapped at the first call.
    /// What is there belongs to the holders of the folio that covers the page.
    ///
    /// # Errors
    /// [`FolioError::OutOfBounds`], [`FolioError::NotClaimed`], [`FolioError::Forked`], or the refusal to map.
    pub fn address_of(&self, offset: u64) -> Result<NonNull<u8>, FolioError> {
        self.body().address_of(offset)
    }

    /// Returns the page at an address of the pgmap's own mapping, or `None` for any other address.
    pub fn offset_of(&self, addr: *const u8) -> Option<u64> {
        self.body().offset_of(addr)
    }

    fn switch_error(&self, error: SwitchError) -> PgmapError {
        let pgmap = self.id();
        match error {
            SwitchError::Dying => PgmapError::Dying { pgmap },
            SwitchError::Live => PgmapError::NotDying { pgmap },
            SwitchError::Exited => PgmapError::Dead { pgmap },
        }
    }
}
