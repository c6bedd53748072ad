//! The ends of a program that run no exit handlers: the figures are written all the same.

use crate::foreign::next_symbol;
use libc::{c_int, c_void};

/// Ends the process without running exit handlers. See _exit(2).
#[unsafe(no_mangle)]
pub(crate) extern "C" fn _exit(status: c_int) -> ! {
    daxtier::preload::leave(status)
}

/// Ends the process, as `_exit` does.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "C's name")]
pub(crate) extern "C" fn _Exit(status: c_int) -> ! {
    daxtier::preload::leave(status)
}

/// Ends the process after the handlers for this occasion. See quick_exit(3).
#[unsafe(no_mangle)]
pub(crate) extern "C" fn quick_exit(status: c_int) -> ! {
    daxtier::preload::prepare_to_leave();
    let found = next_symbol(c"quick_exit");
    // SAFETY: the C library's function has this signature; NULL becomes None.
    let next = unsafe { std::mem::transmute::<*mut c_void, Option<extern "C" fn(c_int) -> !>>(found) };
    match next {
        Some(next) => next(status),
        None => daxtier::preload::leave(status),
    }
}
