//! The functions that would be in force without this library.
//!
//! They are looked up once, before `main`: the search takes a lock of the loader, and programs call these functions in
//! signal handlers and between fork and exec. Earlier calls, and those of functions that the C library lacks, go to the
//! kernel by number.

use crate::foreign::next_symbol;
use libc::{c_int, c_uint, c_ulong, c_void, iovec, pid_t, size_t, ssize_t};
use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A function by its name.
struct Next {
    name: &'static CStr,
    /// NULL until it is looked up. Relaxed: code of a library that stays loaded needs no ordering.
    found: AtomicPtr<c_void>,
}

impl Next {
    const fn new(name: &'static CStr) -> Next {
        Next { name, found: AtomicPtr::new(std::ptr::null_mut()) }
    }

    fn look_up(&self) {
        self.found.store(next_symbol(self.name), Ordering::Relaxed);
    }

    fn get(&self) -> *mut c_void {
        self.found.load(Ordering::Relaxed)
    }
}

macro_rules! functions {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $answer:ty = $number:ident;)*) => {
        $(
            /// Calls the function of this name.
            ///
            /// # Safety
            /// As the function demands.
            #[inline]
            pub(crate) unsafe fn $name($($arg: $kind),*) -> $answer {
                let found = next::$name.get();
                if found.is_null() {
                    // SAFETY: the call takes the function's arguments, and the caller argued them.
                    return unsafe { libc::syscall(libc::$number, $($arg),*) } as $answer;
                }
                // SAFETY: the C library's function of this name has this signature.
                let function = unsafe {
                    std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> $answer>(found)
                };
                // SAFETY: the caller argued it.
                unsafe { function($($arg),*) }
            }
        )*

        #[allow(non_upper_case_globals, reason = "each is named as its function")]
        mod next {
            use super::Next;
            $(
                pub(super) static $name: Next = {
                    const NAME: &str = concat!(stringify!($name), "\0");
                    match std::ffi::CStr::from_bytes_with_nul(NAME.as_bytes()) {
                        Ok(name) => Next::new(name),
                        Err(_) => panic!("names of functions have no NUL inside"),
                    }
                };
            )*
        }

        /// Looks all functions up. May allocate.
        pub(crate) fn look_up() {
            $(next::$name.look_up();)*
        }
    };
}

functions! {
    mprotect(addr: *mut c_void, len: size_t, prot: c_int) -> c_int = SYS_mprotect;
    pkey_mprotect(addr: *mut c_void, len: size_t, prot: c_int, key: c_int) -> c_int = SYS_pkey_mprotect;
    madvise(addr: *mut c_void, len: size_t, advice: c_int) -> c_int = SYS_madvise;
    posix_madvise(addr: *mut c_void, len: size_t, advice: c_int) -> c_int = SYS_madvise;
    mlock(addr: *const c_void, len: size_t) -> c_int = SYS_mlock;
    mlock2(addr: *const c_void, len: size_t, flags: c_uint) -> c_int = SYS_mlock2;
    munlock(addr: *const c_void, len: size_t) -> c_int = SYS_munlock;
    mlockall(flags: c_int) -> c_int = SYS_mlockall;
    munlockall() -> c_int = SYS_munlockall;
    mbind(addr: *mut c_void, len: c_ulong, mode: c_int, nodes: *const c_ulong, nr_bits: c_ulong, flags: c_uint)
        -> c_int = SYS_mbind;
    munmap(addr: *mut c_void, len: size_t) -> c_int = SYS_munmap;
    mremap(addr: *mut c_void, len: size_t, new_len: size_t, flags: c_int, new_addr: *mut c_void) -> *mut c_void
        = SYS_mremap;
    process_vm_writev(
        pid: pid_t, local: *const iovec, nr_local: c_ulong, remote: *const iovec, nr_remote: c_ulong, flags: c_ulong)
        -> ssize_t = SYS_process_vm_writev;
    vmsplice(fd: c_int, parts: *const iovec, nr_parts: size_t, flags: c_uint) -> ssize_t = SYS_vmsplice;
    close(fd: c_int) -> c_int = SYS_close;
    close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int = SYS_close_range;
    dup3(from: c_int, to: c_int, flags: c_int) -> c_int = SYS_dup3;
}
