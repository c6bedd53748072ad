//! Strings that cross: read from C, and written into fixed fields of structures.

use crate::error::{DAXTIER_ECONFIG, DAXTIER_ENULL, Failure, failure};
use daxtier_core::runtime::link::text_field;
use std::ffi::{CStr, c_char};

/// Reads a string of the caller's.
///
/// # Safety
/// `text` is NULL or NUL-terminated, and nobody writes to it for as long as the result is used.
pub(crate) unsafe fn read<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(failure!(DAXTIER_ENULL, "{what} is NULL"));
    }
    // SAFETY: the caller argued it.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|error| {
        failure!(DAXTIER_ECONFIG, "{what} is not UTF-8 from byte {} on", error.valid_up_to())
    })
}

/// Makes a NUL-terminated field from a text, cut where it is longer.
pub(crate) fn field<const N: usize>(text: &str) -> [c_char; N] {
    text_field::<N>(text).map(|byte| byte as c_char)
}
