//! Closes the [shortcut](self) of a thread: what malloc's shortest path takes blocks from.
//!
//! The thread's variable and its rules stand in `shortcut.h`; the heap's engine opens it.

// shortcut.c.
unsafe extern "C" {
    safe fn daxtier_shortcut_close();
}

/// Has the calling thread's next allocation take the long way, which may open the shortcut again.
#[inline]
pub(crate) fn close() {
    daxtier_shortcut_close();
}
