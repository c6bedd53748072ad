//! From one NUMA node's memory to another's: both are private memory, which the kernel moves itself.
//!
//! One call gives the slot's mapping the policy of the new tier and moves its pages. The kernel has accesses wait for a page
//! while it copies it, so nothing has to be blocked, and it leaves pages that are pinned. It needs no userfaultfd.

use super::Refusal;
use crate::device::DeviceKind;
use crate::folio::Folio;
use crate::space::SLOT_BYTES;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// Moves what is mapped at a slot from where `old` says to where `target` says. The slot's lock is held. Returns how long it
/// took.
///
/// # Errors
/// [`Refusal`]; the slot is where it was, but for pages that the kernel does not move back.
pub(super) fn rebind(slot: NonNull<u8>, old: &Folio, target: &Folio) -> Result<Duration, Refusal> {
    let is_node = |folio: &Folio| folio.pgmap().device().kind() == DeviceKind::Node;
    if !is_node(old) && !is_node(target) {
        return Err(Refusal::Kind);
    }
    let start = Instant::now();
    // SAFETY: the slot's private memory, whose policy is ours to change.
    let moved = unsafe { target.pgmap().device().adopt(slot, SLOT_BYTES) };
    let Err(refusal) = moved else { return Ok(start.elapsed()) };
    // SAFETY: as above. What is refused now stays where it is, under the old policy.
    let _ = unsafe { old.pgmap().device().adopt(slot, SLOT_BYTES) };
    Err(match refusal.errno {
        // Some pages could not be moved.
        libc::EIO => Refusal::Pinned,
        libc::ENOMEM => Refusal::NoMemory,
        libc::EOPNOTSUPP => Refusal::Kind,
        _ => Refusal::Sys(refusal),
    })
}
