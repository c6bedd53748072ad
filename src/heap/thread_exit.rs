//! The end of a thread, inside the gate.
//!
//! The engine gives a thread's memory up in the destructor of a pthread key that it makes when it is loaded. That
//! work takes locks and changes what all threads share, so a fork must not find a thread in it; and malloc's shortcut of
//! the thread has to be closed before. The destructor can't be told so. [`register`] therefore makes a key of our own,
//! whose destructor does both, and lets the engine set that one for threads that allocate from now on. [`adopt`] makes up
//! for what was earlier: a thread that set the engine's key, and an engine that made its key after ours because malloc was
//! called before the library's constructors. A thread that never allocates from a heap that leads (in a program that has its
//! own use for the engine) ends as it would without us. For some main threads the engine sets no key; it never takes
//! their pages.

use crate::sync::{gate, shortcut};
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

const NO_KEY: u32 = u32::MAX;

/// Our key.
static KEY: AtomicU32 = AtomicU32::new(NO_KEY);
/// The engine's own key, which threads have set that came before ours.
static ENGINES_KEY: AtomicU32 = AtomicU32::new(NO_KEY);

/// Has threads end inside the gate from now on.
pub(crate) fn register() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        mi_process_init();
        // Without a key the engine goes on as it was: a fork may then find a thread at its end.
        let Some(key) = thread::make_key(end) else { return };
        replace_engines_key(key);
        // Relaxed: a number, which publishes nothing else.
        KEY.store(key, Ordering::Relaxed);
    });
}

/// Has the calling thread, which has used the engine, end inside the gate, with its shortcut closed first. Returns whether it
/// will, or keeps its pages for ever.
pub(super) fn adopt() -> bool {
    let key = KEY.load(Ordering::Relaxed);
    if key == NO_KEY {
        return false;
    }
    replace_engines_key(key);
    let engines = ENGINES_KEY.load(Ordering::Relaxed);
    let theap = thread::key_value(engines);
    if !theap.is_null() {
        if !thread::set_key_value(key, theap) {
            return false;
        }
        // Cannot fail: the thread has a value for this key.
        thread::set_key_value(engines, std::ptr::null_mut());
    }
    true
}

/// Lets the engine set our key. Several threads may do so at once: each puts the same in the same place.
fn replace_engines_key(key: u32) {
    // Acquire: pairs with the Release below; who finds our key there finds the engine's in `ENGINES_KEY`.
    let engines = _mi_heap_default_key.load(Ordering::Acquire);
    if engines != key {
        ENGINES_KEY.store(engines, Ordering::Relaxed);
        // The engine reads the word plainly when a thread starts; either key has a destructor that serves.
        _mi_heap_default_key.store(key, Ordering::Release);
    }
}

unsafe extern "C" fn end(theap: *mut c_void) {
    // Of what the shortcut leads to nothing is left after this.
    shortcut::close();
    // SAFETY: the engine set the value to the ending thread's own, which it expects here.
    gate::run(|| unsafe { _mi_thread_done(theap) });
    gate::release();
}
