//! The program's environment, read in place.

use std::ffi::CStr;

unsafe extern "C" {
    static environ: *const *const libc::c_char;
}

/// Whether the kernel runs the program with more rights than its caller has (setuid, setgid, capabilities).
pub(crate) fn is_privileged() -> bool {
    // SAFETY: takes no pointer.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Returns the names and values of the environment's variables. Works before `main`; nobody may change the
/// environment meanwhile, as for `getenv`.
pub(crate) fn variables() -> impl Iterator<Item = (&'static [u8], &'static [u8])> {
    // SAFETY: the C library sets `environ` before any other code runs; NULL after `clearenv`.
    let mut next = unsafe { environ };
    std::iter::from_fn(move || {
        loop {
            if next.is_null() {
                return None;
            }
            // SAFETY: the array ends with a NULL, at which we stopped.
            let entry = unsafe { *next };
            if entry.is_null() {
                return None;
            }
            // SAFETY: as above: at most one past the last entry, which is the NULL.
            next = unsafe { next.add(1) };
            // SAFETY: entries are NUL-terminated strings.
            let entry = unsafe { CStr::from_ptr(entry) }.to_bytes();
            if let Some(at) = entry.iter().position(|&byte| byte == b'=') {
                return Some((&entry[..at], &entry[at + 1..]));
            }
        }
    })
}
