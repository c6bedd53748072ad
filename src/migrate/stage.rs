//! Huge pages that a worker has ready for promotions.
//!
//! To make one costs the kernel as much as a copy (it clears the page), so a [`Stage`] makes some ahead while its worker has
//! nothing to do ([`prepare_one`](Stage::prepare_one)). Whoever owns it drops them when nothing has moved for a while
//! ([`empty`](Stage::empty)); until then they are memory beyond the capacity of the fast tier, and counted
//! ([`kept_bytes`](Stage::kept_bytes)).
//!
//! The pages that a demotion takes away from its slot are not kept for that. Somebody may still read them who is not
//! seen in the page tables: a pipe that they were spliced into (vmsplice), a socket that sends them (MSG_ZEROCOPY). Given
//! back to the kernel they stay what they are until the last such reader is done.
//!
//! One worker has a stage for itself. It is kept from forked children, since a page that a child shares can't be moved,
//! and registered with a userfaultfd only where a demotion is just moving pages in: a call that touches every page of the
//! process (mlockall) would wait there.
//!
//! # Invariants
//! - S1: of a part that is not `is_loaded` every page is absent, but inside a move.
//! - S2: a part that is `is_loaded` has private pages with bytes of no more use.

use super::place::{make_empty, map_folio};
use super::{MOST_MOVES, Refusal, cannot_restore};
use crate::error::SysError;
use crate::folio::Folio;
use crate::space::SLOT_BYTES;
use crate::sys::mm::{self, Reservation};
use std::ptr::NonNull;

/// Private memory in parts of a slot's length, mapped as DRAM slots are.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    range: Option<Reservation>,
    is_loaded: [bool; MOST_MOVES],
}

impl Stage {
    pub(crate) const fn new() -> Stage {
        Stage { range: None, is_loaded: [false; MOST_MOVES] }
    }

    pub(super) fn is_open(&self) -> bool {
        self.range.is_some()
    }

    /// Maps the stage as `folio`, one of DRAM, is mapped: on the same nodes. Later calls do nothing.
    pub(super) fn open(&mut self, folio: &Folio) -> Result<(), Refusal> {
        if self.is_open() {
            return Ok(());
        }
        let len_bytes = MOST_MOVES * SLOT_BYTES;
        let range = Reservation::new(len_bytes, SLOT_BYTES).map_err(Refusal::of_mapping)?;
        for part in 0..MOST_MOVES {
            let addr = range.at(part * SLOT_BYTES).expect("inside");
            map_folio(addr, folio)?;
            make_empty(addr)?;
        }
        // SAFETY: just mapped; the advice drops no data.
        unsafe { mm::advise(range.base(), len_bytes, libc::MADV_DONTFORK) }.map_err(Refusal::of_mapping)?;
        self.range = Some(range);
        Ok(())
    }

    /// Returns where a part is. The stage is open.
    pub(super) fn addr(&self, part: usize) -> NonNull<u8> {
        self.range.as_ref().and_then(|range| range.at(part * SLOT_BYTES)).expect("an open stage's parts")
    }

    /// Chooses a part without pages; drops those of one where all have some.
    pub(super) fn take_empty(&mut self) -> Result<usize, Refusal> {
        if let Some(part) = self.is_loaded.iter().position(|is_loaded| !is_loaded) {
            return Ok(part);
        }
        self.unload(0)?;
        Ok(0)
    }

    /// Chooses a part that is not yet `chosen` and whose pages are all there and writable. Makes them where there are none.
    pub(super) fn take_loaded(&mut self, chosen: &mut [bool; MOST_MOVES]) -> Result<usize, Refusal> {
        let first = |is_loaded: bool| {
            (0..MOST_MOVES).find(|&part| !chosen[part] && self.is_loaded[part] == is_loaded)
        };
        let part = first(true).or_else(|| first(false)).ok_or(Refusal::NoMemory)?;
        self.load(part)?;
        chosen[part] = true;
        Ok(part)
    }

    fn load(&mut self, part: usize) -> Result<(), Refusal> {
        // Set first: a refused call may have brought some of the pages.
        self.is_loaded[part] = true;
        // SAFETY: the part is ours.
        match unsafe { mm::populate(self.addr(part), SLOT_BYTES, true) } {
            // Older kernels do not know the advice: the copy meets the faults then.
            Ok(()) | Err(SysError { errno: libc::EINVAL, .. }) => Ok(()),
            Err(_) => Err(Refusal::NoMemory),
        }
    }

    /// Takes note that the part's pages were moved away.
    pub(super) fn note_moved_out(&mut self, part: usize) {
        self.is_loaded[part] = false;
    }

    /// Gives what is left in a part back to the kernel: pages that a demotion moved in, or copies of some that went back.
    pub(super) fn drop_pages(&mut self, part: usize) {
        if self.unload(part).is_err() {
            // They must not be used for a promotion, and a part that is not empty can't be used for a demotion.
            cannot_restore();
        }
    }

    fn unload(&mut self, part: usize) -> Result<(), Refusal> {
        let addr = self.addr(part);
        if make_empty(addr).is_err() {
            // The kernel keeps what the program has locked with all of its memory.
            // SAFETY: the part is ours.
            unsafe { mm::unlock(addr, SLOT_BYTES) }.map_err(Refusal::of_mapping)?;
            make_empty(addr)?;
        }
        self.is_loaded[part] = false;
        Ok(())
    }

    /// Makes the pages of one more part if fewer than `wanted` have theirs. Returns whether it did.
    pub(crate) fn prepare_one(&mut self, wanted: usize) -> bool {
        let is_enough = self.nr_loaded() >= wanted.min(MOST_MOVES);
        if self.range.is_none() || is_enough {
            return false;
        }
        let part = self.is_loaded.iter().position(|is_loaded| !is_loaded);
        part.is_some_and(|part| self.load(part).is_ok())
    }

    /// Gives all pages back.
    pub(crate) fn empty(&mut self) {
        for part in 0..MOST_MOVES {
            if self.is_loaded[part] {
                // A refusal keeps the memory, which is used or dropped later.
                let _ = self.unload(part);
            }
        }
    }

    /// Returns how much memory the stage holds.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.nr_loaded() * SLOT_BYTES
    }

    fn nr_loaded(&self) -> usize {
        self.is_loaded.iter().filter(|is_loaded| **is_loaded).count()
    }
}
