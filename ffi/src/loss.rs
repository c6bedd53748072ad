//! What the program gets that touches memory of a device that is gone.

use crate::error::*;
use daxtier_core::runtime::loss::{self, LossHandler};
use std::ffi::{c_int, c_void};

/// Answer of a daxtier_loss_handler: the access is a SIGBUS, as without a handler.
pub const DAXTIER_LOSS_SIGBUS: c_int = 0;
/// Answer of a daxtier_loss_handler: zeroed memory takes the place of what is lost, and the access is made again.
pub const DAXTIER_LOSS_ZERO_FILL: c_int = 1;
/// Answer of a daxtier_loss_handler: the access is made again, since the handler has put something there.
pub const DAXTIER_LOSS_RETRY: c_int = 2;

const _: () = assert!(DAXTIER_LOSS_SIGBUS == loss::SIGBUS);
const _: () = assert!(DAXTIER_LOSS_ZERO_FILL == loss::ZERO_FILL && DAXTIER_LOSS_RETRY == loss::RETRY);

/// Decides what becomes of an access to lost memory: `len_bytes` bytes from `address` on are lost, the page of the access
/// among them. `is_damaged` is not 0 when the machine found the memory damaged, and 0 when the device is gone.
///
/// Runs in a signal handler, on the thread that made the access, so it may do what a signal handler may do: it neither
/// allocates nor locks, and calls nothing of this library. Returns one of the DAXTIER_LOSS_ answers.
pub type DaxtierLossHandler = Option<
    unsafe extern "C" fn(
        address: *mut c_void,
        len_bytes: usize,
        is_damaged: c_int,
        user: *mut c_void,
    ) -> c_int,
>;

/// Has `handler` decide from now on what becomes of accesses to lost memory, for everything of this process that this copy
/// of the library handed out; NULL leaves it to the setting on_loss. Signals for other memory go where they went.
///
/// A damaged page is replaced where the device maps single pages, and is a SIGBUS elsewhere.
///
/// Threads: one at a time. Blocks: no. After fork: the child has the handler too. Signal handlers: not allowed.
/// Lifetime: `handler` and `user` stay valid until another handler was set and no call is under way.
/// Returns 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_on_loss(handler: DaxtierLossHandler, user: *mut c_void) -> c_int {
    guard(|| {
        let handler: Option<LossHandler> = handler;
        // SAFETY: the C contract says the same.
        unsafe { loss::set_handler(handler, user) };
        Ok(())
    })
}
