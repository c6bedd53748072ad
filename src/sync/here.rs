//! What a thread knows of itself: whether it is inside the [gate](super::gate), and in [service](super::service).
//!
//! One variable for both, in C (`here.c`): in a shared library Rust finds a thread's variable by a call into the dynamic
//! loader, and these are asked for in every allocation that takes the long way.

use std::cell::Cell;
use std::ffi::c_void;

/// A thread's variable; zero in a new thread. Written by its thread and by signal handlers on it.
#[repr(C)]
pub(super) struct Here {
    /// How many sections of the thread enclose each other.
    pub(super) depth: Cell<u32>,
    /// Its stripe plus one; 0 before the first section.
    pub(super) stripe: Cell<u32>,
    /// Whether the thread runs code of the library's own.
    pub(super) in_service: Cell<bool>,
}

// here.c.
unsafe extern "C" {
    safe fn daxtier_here() -> *mut c_void;
}

/// Runs `look` with the calling thread's own.
#[inline(always)]
pub(super) fn with<T>(look: impl FnOnce(&Here) -> T) -> T {
    // SAFETY: the variable is laid out like `Here`, has no destructor, and outlives what its thread runs; the reference
    // can't leave this call, so no other thread gets it.
    look(unsafe { &*daxtier_here().cast::<Here>() })
}
