//! What the kernel offers for moving, found out once.

use crate::error::SysError;
use crate::sys::descriptors::Own;
use crate::sys::uffd::{Features, Uffd};
use std::time::Duration;

/// The descriptors of a process that moves slots, and the ways that the kernel has. Lives in a static: the window may
/// not touch the heap.
#[derive(Debug)]
pub(crate) struct Kit {
    /// Demotions register slots with it.
    pub(super) still: Uffd,
    /// A blank that is registered with it stays so when it is moved over a slot; mremap then waits until
    /// [`read_events`] has read the event.
    pub(super) following: Uffd,
    /// The best way each way.
    best: Ways,
    /// Whether pages that do not exist yet can be write-protected.
    pub(super) protects_missing: bool,
}

/// How slots are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ways {
    pub(crate) demote: DemoteWay,
    pub(crate) promote: PromoteWay,
}

/// What slots are moved with, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means {
    pub(crate) kit: &'static Kit,
    pub(crate) ways: Ways,
}

/// How a slot is demoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DemoteWay {
    /// The pages are moved out first: pinned ones are noticed. Readers wait too.
    MoveOut,
    /// The slot is write-protected while it is copied: readers go on. Pinned pages are not noticed.
    Protect,
}

/// How a slot is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PromoteWay {
    /// The pages are moved into the blank: mappings of neighbours merge.
    MoveIn,
    /// The stage is mapped over the blank: every promoted slot is a mapping of its own.
    RemapIn,
}

impl Kit {
    /// Opens the descriptors.
    ///
    /// # Errors
    /// `EPERM` when the process may not; the refusal of userfaultfd otherwise.
    pub(crate) fn open() -> Result<Kit, SysError> {
        let supported = Uffd::supported()?;
        let needed = Features::PAGEFAULT_FLAG_WP;
        let wanted = needed.and(supported.common(Features::WP_UNPOPULATED.and(Features::MOVE)));
        let best = if supported.has(Features::MOVE) {
            Ways { demote: DemoteWay::MoveOut, promote: PromoteWay::MoveIn }
        } else {
            Ways { demote: DemoteWay::Protect, promote: PromoteWay::RemapIn }
        };
        Ok(Kit {
            still: Uffd::open(wanted)?,
            following: Uffd::open(wanted.and(Features::EVENT_REMAP))?,
            best,
            protects_missing: supported.has(Features::WP_UNPOPULATED),
        })
    }

    /// Returns the descriptors.
    pub(crate) fn descriptors(&self) -> [Own; 2] {
        [self.still.descriptor(), self.following.descriptor()]
    }

    /// Returns the best ways of this kernel.
    pub(crate) fn best(&self) -> Ways {
        self.best
    }
}

/// Reads events until the descriptor fails: the body of the reader's thread, without which a promotion would wait for
/// ever. A fault needs no answer: the mover wakes whoever waits. Keeps to the rules of the window.
pub(crate) fn read_events(kit: &'static Kit) -> SysError {
    const LONG: Duration = Duration::from_secs(3600);
    loop {
        match kit.following.read_event() {
            Ok(Some(_)) => {}
            Ok(None) => {
                if let Err(refusal) = kit.following.wait_event(LONG) {
                    return refusal;
                }
            }
            Err(refusal) => return refusal,
        }
    }
}
