//! Moving what backs a slot to another tier, while the program uses it.
//!
//! A slot's address never changes; [`relocate`] changes the folio behind it, from DRAM to a device ([`demote`]) or
//! back ([`promote`]), and the program's threads notice nothing but a pause. It takes a batch of [`Move`]s, for which it
//! prepares together what does not concern the program. [`Kit`] is what the kernel offers, [`Stage`] the huge pages that a
//! worker keeps between batches, [`Place`] addresses of our own. Uses `space` for the slots; the runtime decides what moves where
//! and runs the threads.
//!
//! # States of a slot in a move
//!
//! The slot's lock is held from before `block` to after `release`, so the slot's own state (folio and mapping) is seen before or
//! after a move and never in between, and commits, decommits and other moves of the slot wait. The process does not fork
//! meanwhile (the mover is in service). What a batch prepares before, it prepares without the locks: under each it looks whether
//! the slot is still what it prepared for.
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
//! Between two kinds of private memory, DRAM and a NUMA node's, the kernel moves pages itself ([`rebind`]), which takes no
//! [`Kit`] and so no privilege.
//!
//! The *alias* is a second mapping of the device's range, the *stage* private memory, the *blank* an empty private
//! mapping that is registered with the userfaultfd.
//!
//! # Batches
//! What costs most of a move beside the copy is to make pages and page tables: a huge page for a promotion, the
//! alias. Both are ready before the first slot of a batch is blocked, the first even before the batch where its worker had
//! time for it. Slots are
//! demoted one after the other. Of those that are promoted up to four neighbours are blocked by one mremap, since it waits for
//! another thread, and released one after the other. So a thread of the program waits for four copies at most. Between two
//! such steps nothing is blocked; there the mover takes the next locks, in ascending order, and stops if a fork wants to begin.
//!
//! Several movers may be at work, each with a batch, a stage and places of its own. They share the userfaultfds, whose calls
//! concern the ranges that they name, and the kernel's lock on mappings.
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
//!   the promotion from a device can't see them; whoever calls them has made sure that there are none. It can't for
//!   process_vm_writev, of this process or another: a call that has pinned its page when the slot is blocked, and writes after the
//!   copy, writes to the old page, and the write is lost. Nothing tells of such a call, which as a rule takes a microsecond
//!   (ptrace and /proc/PID/mem write under the kernel's lock on mappings, which mremap waits for). So it is documented that what
//!   is written so has to be pinned ([`crate::Pool::pin`]).
//!
//! # In the window
//!
//! Between `block` and `release`, threads of the program may wait with any lock of theirs, of the C library's and of the
//! heap engine's in their hands. So the mover there takes no lock, allocates nothing, and touches no memory but its
//! stack, the [`Kit`] (a static), its own mappings and `errno`: no thread-local of a library either, whose place may
//! be in memory that the program allocated. The reader of the userfaultfd ([`read_events`]), on which the promotion's
//! mremap waits, keeps to the same.

mod batch;
mod copy;
mod demote;
mod kit;
mod place;
mod promote;
mod rebind;
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) mod sabotage;
mod stage;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub(crate) use batch::{MOST_MOVES, Move, Told, relocate};
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) use batch::{Relocated, Times};
pub(crate) use kit::{DemoteWay, Kit, Means, read_events};
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) use kit::{PromoteWay, Ways};
pub(crate) use stage::Stage;

use crate::error::SysError;
use crate::folio::Folio;
use crate::space::SLOT_BYTES;
use crate::sys::bus_error::BusError;
use crate::sys::pagemap;
use crate::units::PAGE_SHIFT;
use std::ptr::NonNull;

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
