//! Error codes, their texts, and the last failure of each thread.
//!
//! Every function of the C interface runs inside [`guard`], which turns a [`Failure`] into its code and a panic into
//! [`DAXTIER_EPANIC`]. The text of a failure is written to a buffer of the thread when the failure is made; nothing
//! is allocated on the way, so running out of memory can be reported. Used by every module.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int};
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Success.
pub const DAXTIER_OK: i32 = 0;
/// The object belongs to a pool, which alone may do this with it.
pub const DAXTIER_EPERM: i32 = -1;
/// There is no live folio, tier or device there.
pub const DAXTIER_ENOENT: i32 = -2;
/// An options structure sets something that this version does not know.
pub const DAXTIER_E2BIG: i32 = -7;
/// The memory that the request may use is exhausted.
pub const DAXTIER_ENOMEM: i32 = -12;
/// In use: pages of the run, a folio or block of the pool, or a device that another process holds.
pub const DAXTIER_EBUSY: i32 = -16;
/// There is no such device, tier, or default pool.
pub const DAXTIER_ENODEV: i32 = -19;
/// An argument makes no sense, other than the ones that have a code of their own.
pub const DAXTIER_EINVAL: i32 = -22;
/// Not supported by this device or in this state.
pub const DAXTIER_ENOTSUP: i32 = -95;
/// The time is up and folios are still in use.
pub const DAXTIER_ETIMEDOUT: i32 = -110;
/// The folio or block is gone: its last reference was put (this may be the second put of it), or it was freed before.
pub const DAXTIER_ESTALE: i32 = -116;
/// A defect in the library: a panic was caught. What the call was about is in an unknown but safe state.
pub const DAXTIER_EPANIC: i32 = -1001;
/// A pointer that must not be NULL is NULL.
pub const DAXTIER_ENULL: i32 = -1002;
/// The number is not an open pool, an open pgmap or a folio, or it was closed.
pub const DAXTIER_EHANDLE: i32 = -1003;
/// The size in the first field of a structure is none that this library knows.
pub const DAXTIER_ESIZE: i32 = -1004;
/// A flag that does not exist, that does not fit the function, or two that exclude each other.
pub const DAXTIER_EFLAGS: i32 = -1005;
/// A number that stands for a choice (advice, hint, tier) is none of the choices.
pub const DAXTIER_ECHOICE: i32 = -1006;
/// The configuration string or the device name is wrong; daxtier_last_error() says where.
pub const DAXTIER_ECONFIG: i32 = -1007;
/// The order is above DAXTIER_MAX_ORDER, or outside what the pgmap or the flags allow.
pub const DAXTIER_EORDER: i32 = -1008;
/// The offset, or the end of the folio there, lies beyond the end of the pgmap.
pub const DAXTIER_EOFFSET: i32 = -1009;
/// The offset is not a multiple of the folio's number of pages, or the alignment is no power of two or too large.
pub const DAXTIER_EALIGN: i32 = -1010;
/// The address is not in memory of this library, or no block or folio begins there.
pub const DAXTIER_EFOREIGN: i32 = -1011;
/// The pgmap was killed: it hands out nothing any more.
pub const DAXTIER_EDYING: i32 = -1012;
/// The object belongs to the parent process, from which this one was forked.
pub const DAXTIER_EFORKED: i32 = -1013;
/// The bookkeeping of the folio was found overwritten; the folio is out of use for good.
pub const DAXTIER_ECORRUPT: i32 = -1014;
/// More pools or pgmaps are open than the library can number.
pub const DAXTIER_ELIMIT: i32 = -1015;

const TEXTS: &[(i32, &CStr)] = &[
    (DAXTIER_OK, c"success"),
    (DAXTIER_EPERM, c"the object belongs to a pool"),
    (DAXTIER_ENOENT, c"there is nothing there"),
    (DAXTIER_E2BIG, c"the structure sets something that this version does not know"),
    (DAXTIER_ENOMEM, c"out of memory"),
    (DAXTIER_EBUSY, c"in use"),
    (DAXTIER_ENODEV, c"no such device, tier or default pool"),
    (DAXTIER_EINVAL, c"invalid argument"),
    (DAXTIER_ENOTSUP, c"not supported"),
    (DAXTIER_ETIMEDOUT, c"timed out"),
    (DAXTIER_ESTALE, c"the folio or block is gone"),
    (DAXTIER_EPANIC, c"defect in the library"),
    (DAXTIER_ENULL, c"a pointer is NULL that must not be"),
    (DAXTIER_EHANDLE, c"not open"),
    (DAXTIER_ESIZE, c"unknown size of a structure"),
    (DAXTIER_EFLAGS, c"unknown or conflicting flags"),
    (DAXTIER_ECHOICE, c"unknown choice"),
    (DAXTIER_ECONFIG, c"wrong configuration"),
    (DAXTIER_EORDER, c"order out of range"),
    (DAXTIER_EOFFSET, c"offset beyond the end"),
    (DAXTIER_EALIGN, c"not aligned"),
    (DAXTIER_EFOREIGN, c"not memory of this library"),
    (DAXTIER_EDYING, c"the pgmap was killed"),
    (DAXTIER_EFORKED, c"belongs to the parent process"),
    (DAXTIER_ECORRUPT, c"corrupt bookkeeping"),
    (DAXTIER_ELIMIT, c"too many open pools or pgmaps"),
];

/// Returns a short text for a code, in English, without a full stop.
///
/// A negative code from -1 to -999 that has no DAXTIER_ name is the negative errno value of a system call that the
/// kernel refused, and the text says only that; see strerror(3) with the positive value.
///
/// Threads: any number at once. Blocks: no. After fork: works. Signal handlers: allowed.
/// Lifetime: the text is static. Never returns NULL.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_strerror(code: c_int) -> *const c_char {
    let known = TEXTS.iter().find(|(known, _)| *known == code);
    let text = match known {
        Some((_, text)) => text,
        None if (-999..0).contains(&code) => c"the kernel refused a system call",
        None => c"unknown code",
    };
    text.as_ptr()
}

/// Returns what the last failed call of this thread saw, with values, for a person to read. Empty before the first
/// failure. Successful calls leave it alone.
///
/// Threads: each has its own. Blocks: no. After fork: the forking thread's text is kept in the child.
/// Signal handlers: not allowed.
/// Lifetime: valid until the next failure or the end of this thread; copy it to keep it. Never returns NULL.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_last_error() -> *const c_char {
    LAST.try_with(|last| last.as_ptr().cast_const().cast()).unwrap_or(c"".as_ptr())
}

/// Room for the text of a failure, NUL included.
const TEXT_BYTES: usize = 512;

thread_local! {
    /// The text of the last failure, NUL-terminated. Its address is handed out; writes go through the cell, and only
    /// while a failure is made.
    static LAST: RefCell<[u8; TEXT_BYTES]> = const { RefCell::new([0; TEXT_BYTES]) };
}

/// A failure whose text is already in the thread's buffer.
#[derive(Debug)]
pub(crate) struct Failure {
    code: i32,
}

impl Failure {
    /// Makes a failure with this text, cut where it is too long.
    pub(crate) fn new(code: i32, text: fmt::Arguments<'_>) -> Failure {
        // A thread that is ending, or a failure while a failure is written, keeps the old text.
        let _ = LAST.try_with(|last| {
            if let Ok(mut buffer) = last.try_borrow_mut() {
                let mut writer = Truncating { buffer: &mut buffer, len: 0 };
                // An error means that the text was cut.
                let _ = writer.write_fmt(text);
                let len = writer.len;
                buffer[len] = 0;
            }
        });
        Failure { code }
    }

    /// Returns the code that C gets.
    pub(crate) fn code(&self) -> i32 {
        self.code
    }

    /// Makes a failure for what the kernel or a lower layer refused with `errno`.
    pub(crate) fn errno(errno: i32, text: fmt::Arguments<'_>) -> Failure {
        // An errno value of 0 would be taken for success.
        Failure::new(if (1..1000).contains(&errno) { -errno } else { DAXTIER_EINVAL }, text)
    }
}

/// Makes a [`Failure`] with a formatted text.
macro_rules! failure {
    ($code:expr, $($text:tt)+) => { $crate::error::Failure::new($code, format_args!($($text)+)) };
}
pub(crate) use failure;

/// Writes into a fixed buffer and leaves room for the NUL.
struct Truncating<'a> {
    buffer: &'a mut [u8; TEXT_BYTES],
    len: usize,
}

impl Write for Truncating<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = TEXT_BYTES - 1 - self.len;
        let mut len = text.len().min(room);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        self.buffer[self.len..self.len + len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        if len == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Runs the body of a C function: a failure becomes its code, a panic [`DAXTIER_EPANIC`].
#[inline(always)]
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Failure>) -> c_int {
    // A panic can leave only values behind that the core's own locks and atomics protect.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => DAXTIER_OK,
        Ok(Err(failure)) => failure.code,
        Err(payload) => panicked(payload),
    }
}

#[cold]
fn panicked(payload: Box<dyn Any + Send>) -> c_int {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let failure = failure!(DAXTIER_EPANIC, "defect in the library: {text}");
    // The payload's own drop could panic.
    std::mem::forget(payload);
    failure.code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_error() -> String {
        // SAFETY: the text is NUL-terminated and this thread's.
        unsafe { CStr::from_ptr(daxtier_last_error()) }.to_str().expect("the text is UTF-8").to_owned()
    }

    #[test]
    fn a_failure_leaves_its_code_and_text() {
        assert_eq!(last_error(), "");
        assert_eq!(guard(|| Err(failure!(DAXTIER_EORDER, "order {} is above 18", 19))), DAXTIER_EORDER);
        assert_eq!(last_error(), "order 19 is above 18");
        assert_eq!(guard(|| Ok(())), DAXTIER_OK);
        assert_eq!(last_error(), "order 19 is above 18", "success leaves the text alone");
        std::thread::spawn(|| assert_eq!(last_error(), "")).join().expect("the thread has its own text");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let _ = failure!(DAXTIER_EINVAL, "{}é{}", "x".repeat(TEXT_BYTES - 2), "y");
        assert_eq!(last_error(), "x".repeat(TEXT_BYTES - 2));
    }

    #[test]
    fn a_panic_becomes_a_code() {
        assert_eq!(guard(|| panic!("seven is {}", 7)), DAXTIER_EPANIC);
        assert_eq!(last_error(), "defect in the library: seven is 7");
    }

    #[test]
    fn no_code_is_used_twice_and_each_has_a_text() {
        for (at, (code, text)) in TEXTS.iter().enumerate() {
            assert!(TEXTS[..at].iter().all(|(other, _)| other != code), "{code} is used twice");
            assert!(!text.is_empty());
        }
    }
}
