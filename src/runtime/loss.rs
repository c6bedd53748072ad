//! What the program gets that touches memory of a device that is gone: by setting, or by a function of its own.

use crate::sys::bus_error;
use std::ffi::c_void;

pub use crate::sys::bus_error::{LossHandler, RETRY, SIGBUS, ZERO_FILL};

/// Has `handler` decide from now on what becomes of an access to lost memory, for all pools and pgmaps of the process;
/// `None` leaves it to the setting `on_loss`. The signals of other memory go to whoever handles SIGBUS, as ever.
///
/// With [`ZERO_FILL`] zeroed memory takes the place of 2 MiB around the access, or of as much as the device maps at a time.
/// A damaged page is replaced where the device maps single pages, and is a SIGBUS elsewhere: what lies beside it is
/// not lost. The pgmap is dead, so nothing new is placed on the device in any case.
///
/// # Safety
/// - `handler` keeps to what a signal handler may do: it neither allocates nor locks. It may not unwind.
/// - `user` stays valid for it until another handler was set and no call is under way.
///
/// # Example
/// ```
/// use daxtier::runtime::loss::{self, ZERO_FILL};
/// use std::ffi::{c_int, c_void};
///
/// unsafe extern "C" fn go_on(_: *mut c_void, _: usize, is_damaged: c_int, _: *mut c_void) -> c_int {
///     if is_damaged == 0 { ZERO_FILL } else { loss::SIGBUS }
/// }
/// // SAFETY: the handler only compares numbers.
/// unsafe { loss::set_handler(Some(go_on), std::ptr::null_mut()) };
/// # // SAFETY: none any more.
/// # unsafe { loss::set_handler(None, std::ptr::null_mut()) };
/// ```
pub unsafe fn set_handler(handler: Option<LossHandler>, user: *mut c_void) {
    bus_error::set_handler(handler, user);
    bus_error::watch();
}
