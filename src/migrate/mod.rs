//! Moving what backs a slot to another tier, while the program uses it.
//!
//! A slot's address never changes; [`relocate`] changes the folio behind it, from DRAM to a device ([`demote`]) or
//! back ([`promote`]), and the program's threads notice nothing but a pause. [`Kit`] is what the kernel offers for it,
//! [`Place`] a slot's length of addresses of our own. Uses `space` for the slots; the runtime decides what moves where
//! and runs the threads.
//!
//! # States of a slot in a move
//!
//! The slot's lock is held all along, so the slot's own state (folio and mapping) is seen before or after a move and
//! never in between, and commits, decommits and other moves of the slot wait. The process does not fork meanwhile
//! (the mover is in service).
//!
//! ```text
//!                 block                copy              swap              release
//!  demote   Resting ----> Blocked(fast) ----> Copied(fast) ----> Swapped(slow) ----> Resting(slow)
//!              ^            |                    |
//!              +--put_back--+------put_back------+
//!
//!  promote  Resting ----> Blocked(slow) ----> Copied(slow) ----> Swapped(fast) ----> Resting(fast)
//!              ^                                 |
//!              +---------map_slow_again----------+
//! ```
//!
//! | step | demote, pin-safe | demote, readers go on | promote | promote, older kernels |
//! |---|---|---|---|---|
//! | block | UFFDIO_MOVE the pages to a stage | UFFDIO_WRITEPROTECT the slot | mremap a registered blank over the slot | the same |
//! | copy | stage to alias | slot to alias | alias to stage | the same |
//! | swap | mremap the alias over the slot | the same | UFFDIO_MOVE the stage's pages in | mremap the stage over the slot |
//! | release | UFFDIO_WAKE | the same | UNREGISTER, UFFDIO_WAKE | UFFDIO_WAKE |
//!
//! The *alias* is a second mapping of the device's range, the *stage* private memory, the *blank* an empty private
//! mapping that is registered with the userfaultfd.
//!
//! # Why no store is lost
//!
//! - M1: when `block` returns, no processor can store to the slot's old bytes through the slot's address: the kernel
//!   has changed the page tables and flushed every TLB. (UFFDIO_MOVE and mremap leave nothing mapped, so reads wait too;
//!   write protection leaves reads.) Each of the three does so before it returns.
//! - M2: from then until `swap`, an access that M1 refuses waits: the address is registered, and the page missing or
//!   protected. It waits in the kernel, whether it comes from an instruction or from a system call, which so neither
//!   fails nor comes up short. The copy therefore sees every store that ever took effect, and none that is to come.
//! - M3: `swap` is one system call under the kernel's lock on mappings: an access finds the old state, and waits, or the
//!   new one, and takes effect there. The bytes are the same in both.
//! - M4: `release` is an explicit UFFDIO_WAKE *after* the swap, and after the registration ended where it does. A thread
//!   that is woken looks at the page tables again. (Ending a registration wakes too, but not those that are about to
//!   wait.)
//! - M5: an abort makes the old bytes reachable at the slot's address again, in the same page or mapping, then ends the
//!   registration, then wakes. What was copied is thrown away.
//! - M6: what the kernel does behind the page tables is the exception: a page that is *pinned* for direct I/O is
//!   written by its physical address. UFFDIO_MOVE refuses such pages (EBUSY), and the move aborts. Write protection and
//!   the promotion from a device can't see them; whoever calls them has made sure that there are none.
//!
//! # In the window
//!
//! Between `block` and `release`, threads of the program may wait with any lock of theirs, of the C library's and of the
//! heap engine's in their hands. So the mover there takes no lock, allocates nothing, and touches no memory but its
//! stack, the [`Kit`] (a static), its own mappings and `errno`: no thread-local of a library either, whose place may
//! be in memory that the program allocated. The reader of the userfaultfd ([`read_events`]), on which the promotion's
//! mremap waits, keeps to the same.

mod copy;
mod demote;
mod kit;
mod place;
mod promote;
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) mod sabotage;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

#[cfg(test)]
#[cfg(not(loom))]
pub(crate) use kit::PromoteWay;
pub(crate) use kit::{DemoteWay, Kit, Ways, read_events};

use crate::error::SysError;
use crate::folio::{Folio, RawFolio};
use crate::pgmap::Pgmap;
use crate::space::{self, Mapping, SLOT_BYTES, SlotState, Space};
use crate::sys::bus_error::BusError;
use crate::sys::pagemap;
use crate::units::PAGE_SHIFT;
use place::Place;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// A slot that was moved.
#[derive(Debug)]
pub(crate) struct Relocated {
    /// The folio that backed it, with how it was mapped. The caller gives it back with [`space::release`].
    pub(crate) old: (RawFolio, Mapping),
    /// How long it took.
    pub(crate) times: Times,
}

/// How long a move took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// From the block to the release: what a thread that stores to the slot can wait.
    pub(crate) blocked: Duration,
    /// All of it, preparation included.
    pub(crate) total: Duration,
}

/// A slot that was not moved, and is as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Nothing backs the slot, or not what the caller saw there.
    Gone,
    /// The program pinned the slot through the interface.
    Kept,
    /// What backs the slot is not moved by this protocol: two devices, or a forked child's copy.
    Kind,
    /// A page is pinned for direct I/O.
    Pinned,
    /// A page is shared with a forked process.
    Forked,
    /// The program locked or protected a page.
    Locked,
    /// The kernel refused a mapping: the limit of mappings, or its memory for them.
    MapLimit,
    /// There is no memory for the copy.
    NoMemory,
    /// The device's memory can't be had.
    Device,
    /// The program closed the device's descriptor.
    Lost,
    /// The device did not answer.
    Unanswered(BusError),
    /// Another refusal of the kernel.
    Sys(SysError),
}

/// Moves what backs a slot into `target`, a folio of a slot's length that nothing uses. `expected` is the folio that the
/// caller saw there. Runs in service. `ways` is how.
///
/// # Errors
/// [`Refusal`]; the slot is as it was, and `target` was given back.
pub(crate) fn relocate(
    kit: &'static Kit,
    ways: Ways,
    space: &Space,
    index: usize,
    expected: RawFolio,
    target: Folio,
) -> Result<Relocated, Refusal> {
    debug_assert!(crate::sync::service::is_set());
    let start = Instant::now();
    let mut state = space.slot(index).lock();
    let outcome = movable(&state, expected).and_then(|()| {
        let slot = space.slot_address(index);
        match (state.mapping, Mapping::of(target.pgmap().device().kind())) {
            (Mapping::Private, Mapping::Shared) => {
                let alias = Place::of_folio(&target, true)?;
                let blocked = demote::demote(kit, ways.demote, slot, alias)?;
                Ok((blocked, Mapping::Shared))
            }
            (Mapping::Shared, Mapping::Private) => {
                // SAFETY: the slot's state holds a reference to the folio, which the clone takes another of.
                let old = unsafe { borrowed(expected) }.ok_or(Refusal::Gone)?;
                let alias = Place::of_folio(&old, false)?;
                let stage = Place::of_folio(&target, true)?;
                let blank = Place::blank_of(&target)?;
                let blocked = promote::promote(kit, ways.promote, slot, alias, stage, blank)?;
                Ok((blocked, Mapping::Private))
            }
            _ => Err(Refusal::Kind),
        }
    });
    match outcome {
        Ok((blocked, mapping)) => {
            let old = (expected, state.mapping);
            state.mapping = mapping;
            state.folio = Some(target.into_raw());
            drop(state);
            Ok(Relocated { old, times: Times { blocked, total: start.elapsed() } })
        }
        Err(refusal) => {
            drop(state);
            give_back(target, expected, &refusal);
            Err(refusal)
        }
    }
}

/// Gives the target of a refused move back, and takes note of the device that did not answer: the target's, or that of
/// `old`, which backs the slot.
fn give_back(target: Folio, old: RawFolio, refusal: &Refusal) {
    let mapping = Mapping::of(target.pgmap().device().kind());
    match refusal {
        Refusal::Unanswered(error) if mapping == Mapping::Shared => {
            return target.pgmap().clone().note_bus_error(target, *error);
        }
        Refusal::Unanswered(error) if !error.is_damaged => {
            if let Some(pgmap) = Pgmap::from_id(old.pgmap()) {
                pgmap.note_gone();
            }
        }
        _ => {}
    }
    space::release(target.into_raw(), mapping);
}

/// Whether the slot is still backed by what the caller saw, and may move.
fn movable(state: &SlotState, expected: RawFolio) -> Result<(), Refusal> {
    if state.folio != Some(expected) {
        return Err(Refusal::Gone);
    }
    if state.pins > 0 {
        return Err(Refusal::Kept);
    }
    if state.has_attributes() {
        return Err(Refusal::Locked);
    }
    Ok(())
}

/// Takes another reference to a folio that a slot holds.
///
/// # Safety
/// The slot's lock is held and its state names the folio.
unsafe fn borrowed(raw: RawFolio) -> Option<Folio> {
    raw.get().ok()?;
    // SAFETY: the reference was just taken.
    Some(unsafe { Folio::from_raw(raw) })
}

impl Refusal {
    /// What a refused mapping means.
    fn of_mapping(refusal: SysError) -> Refusal {
        match refusal.errno {
            libc::ENOMEM => Refusal::MapLimit,
            libc::EINVAL => Refusal::Locked,
            // Nobody can pin what is in a place of ours; a child that was made behind our back shares it.
            libc::EBUSY => Refusal::Forked,
            _ => Refusal::Sys(refusal),
        }
    }

    /// What a refused move of the page at `addr` means, after everything was put back.
    fn of_page(refusal: SysError, addr: NonNull<u8>) -> Refusal {
        match refusal.errno {
            libc::EBUSY => match pagemap::is_exclusive(addr) {
                Some(false) => Refusal::Forked,
                _ => Refusal::Pinned,
            },
            libc::EINVAL => Refusal::Locked,
            libc::ENOMEM => Refusal::NoMemory,
            _ => Refusal::Sys(refusal),
        }
    }
}

/// The bytes from the start of a pgmap to a folio.
fn byte_offset(folio: &Folio) -> u64 {
    folio.offset() << PAGE_SHIFT
}

/// Ends the process: a slot's bytes are safe in a place of ours and the kernel refuses every way to put them back, so
/// the program would read zeroes.
#[cold]
fn cannot_restore() -> ! {
    crate::sys::stdio::complain(
        "daxtier: migration: the kernel refuses to map memory back that was being moved; the program ends here\n",
    );
    std::process::abort()
}

const _: () = assert!(SLOT_BYTES == 2 << 20, "a slot is one huge page");
