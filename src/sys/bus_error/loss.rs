//! What a program gets that touches lost memory: SIGBUS, zeroes, or what a function of its own decides.
//!
//! Settings of the process, read in the signal handler.

use crate::error::SysError;
use crate::sys::mm;
use libc::{c_int, c_void};
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// Decides what becomes of an access to lost memory: `len_bytes` bytes from `address` on are lost, the page with the access
/// among them. Returns [`SIGBUS`], [`ZERO_FILL`] or [`RETRY`]; any other value counts as the first.
///
/// Called in a signal handler, on the thread that made the access: it keeps to what such a handler may do.
pub type LossHandler = unsafe extern "C" fn(
    address: *mut c_void,
    len_bytes: usize,
    is_damaged: c_int,
    user: *mut c_void,
) -> c_int;

/// The access is a SIGBUS, as without a handler.
pub const SIGBUS: c_int = 0;
/// Fresh zeroed memory takes the place of what is lost, and the access is made again.
pub const ZERO_FILL: c_int = 1;
/// The access is made again: the handler has put something there.
pub const RETRY: c_int = 2;

/// Relaxed: a setting for itself.
static FILLS: AtomicBool = AtomicBool::new(false);
/// The address of a [`LossHandler`], or 0. Release when set, Acquire when called: goes with `USER`.
static HANDLER: AtomicUsize = AtomicUsize::new(0);
static USER: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Has lost memory replaced by zeroes where no handler decides otherwise, or not.
pub(crate) fn set_zero_fill(is_on: bool) {
    FILLS.store(is_on, Ordering::Relaxed);
}

/// Sets the handler of the process, or none.
pub(crate) fn set_handler(handler: Option<LossHandler>, user: *mut c_void) {
    USER.store(user, Ordering::Relaxed);
    HANDLER.store(handler.map_or(0, |handler| handler as usize), Ordering::Release);
}

/// Whether an access can end otherwise than in SIGBUS.
pub(super) fn may_go_on() -> bool {
    FILLS.load(Ordering::Relaxed) || HANDLER.load(Ordering::Relaxed) != 0
}

/// Asks the handler, or the setting, what becomes of an access.
pub(super) fn decide(lost: &Range<usize>, is_damaged: bool) -> c_int {
    match HANDLER.load(Ordering::Acquire) {
        0 if FILLS.load(Ordering::Relaxed) => ZERO_FILL,
        0 => SIGBUS,
        handler => {
            // SAFETY: a function of this type was stored.
            let handler = unsafe { std::mem::transmute::<usize, LossHandler>(handler) };
            let address = ptr::with_exposed_provenance_mut(lost.start);
            // SAFETY: who set it argued that it may be called in a signal handler.
            unsafe { handler(address, lost.len(), is_damaged.into(), USER.load(Ordering::Relaxed)) }
        }
    }
}

/// What is lost with the access at `addr`, in a mapping at `mapping`: a page that is damaged, or as much of a device that is
/// gone as can be replaced by itself.
pub(super) fn lost_with(addr: usize, mapping: &Range<usize>, damaged_bytes: Option<usize>) -> Range<usize> {
    around(addr, damaged_bytes.unwrap_or(HUGE), mapping)
}

const HUGE: usize = 2 << 20;
const GIANT: usize = 1 << 30;

fn around(addr: usize, len_bytes: usize, mapping: &Range<usize>) -> Range<usize> {
    let start = addr / len_bytes * len_bytes;
    start.max(mapping.start)..(start + len_bytes).min(mapping.end)
}

/// Puts zeroed memory in the place of what is lost. A device of larger granules can only be replaced by these.
pub(super) fn replace(lost: &Range<usize>, mapping: &Range<usize>, is_damaged: bool) -> Result<(), SysError> {
    let larger = around(lost.start, GIANT, mapping);
    map_zeroes(lost).or_else(|refusal| if is_damaged { Err(refusal) } else { map_zeroes(&larger) })
}

fn map_zeroes(range: &Range<usize>) -> Result<(), SysError> {
    let start = NonNull::new(ptr::with_exposed_provenance_mut(range.start));
    let start = start.ok_or(SysError { call: "mmap", errno: libc::EFAULT })?;
    // SAFETY: a device of ours is mapped there that answers no access, so nothing of use is there. Who holds the memory
    // gets other bytes, as the setting or the handler wants it.
    unsafe { mm::map_anonymous(start, range.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_stays_inside_the_mapping() {
        let mapping = HUGE + 0x1000..3 * HUGE + 0x3000;
        assert_eq!(lost_with(HUGE + 0x1800, &mapping, None), HUGE + 0x1000..2 * HUGE);
        assert_eq!(lost_with(2 * HUGE, &mapping, None), 2 * HUGE..3 * HUGE);
        assert_eq!(lost_with(3 * HUGE + 0x2fff, &mapping, None), 3 * HUGE..mapping.end);
        assert_eq!(lost_with(2 * HUGE + 0x1234, &mapping, Some(4096)), 2 * HUGE + 0x1000..2 * HUGE + 0x2000);
    }
}
