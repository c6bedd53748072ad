//! The end of a thread, inside the gate.
//!
//! The engine gives a thread's memory up in the destructor of a pthread key that it makes when it is loaded. That
//! work takes locks and changes what all threads share, so a fork must not find a thread in it, and the destructor
//! can't be told so. [`register`] therefore makes a key of our own, whose destructor does the same inside the gate, and
//! lets the engine set that one for threads that allocate from now on. A thread that used the engine before (in a
//! program that has its own use for it) ends as it did.

use crate::sync::gate;
use crate::sys::thread;
use libc::c_void;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

unsafe extern "C" {
    /// The key whose value the engine sets for each thread (`prim/unix/prim.c`); all ones before it made it. A plain
    /// word in C, written here and there.
    safe static _mi_heap_default_key: AtomicU32;
    /// What the engine's own destructor calls (`init.c`).
    fn _mi_thread_done(theap: *mut c_void);
    /// Makes the engine ready, once.
    safe fn mi_process_init();
}

/// Has threads end inside the gate from now on.
pub(crate) fn register() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // The engine makes its key when it is first used, and would put it over ours.
        mi_process_init();
        // Without a key the engine goes on as it was: a fork may then find a thread at its end.
        let Some(key) = thread::make_key(end) else { return };
        // Relaxed: the engine reads the word plainly when a thread starts; either key has a destructor that serves.
        _mi_heap_default_key.store(key, Ordering::Relaxed);
    });
}

unsafe extern "C" fn end(theap: *mut c_void) {
    // SAFETY: the engine set the value to the ending thread's own, which it expects here.
    gate::run(|| unsafe { _mi_thread_done(theap) });
}
