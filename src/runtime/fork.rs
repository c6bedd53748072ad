//! What happens around a fork.
//!
//! Slots that are mapped from a device would be shared with the child. Before the fork this module waits until no
//! thread is in service, stops the other threads, and copies these slots ([`Snapshot`]); the child begins
//! with the copies in the slots' places, and every device is brought to the state that a child must see. A process without such
//! slots pays for none of this. `vfork` and `posix_spawn` run no handlers and need none: the child shares all
//! memory until it executes another program.
//!
//! # Protocol
//! prepare (parent, before): the C library's stream lock -> service gate -> pgmaps' locks -> stop -> snapshot, whose
//! copies are then in the slots' places. parent: device mappings back -> threads go on -> pgmaps -> gate -> stream
//! lock. child: copies kept -> pgmaps -> figures -> gate -> stream lock. The stream lock comes first because the fork
//! takes it after our handler, and a stopped thread may hold it.

use super::source;
use super::stop::{self, Stopped};
use crate::pgmap;
use crate::space::{self, ForkError, Snapshot};
use crate::sync::service;
use crate::sys::{memory, stdio};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, RwLockWriteGuard};

/// What the handlers hand on to each other.
struct Held {
    streams: Option<stdio::StreamLock>,
    gate: Option<RwLockWriteGuard<'static, ()>>,
    stopped: Option<Stopped>,
    snapshot: Option<Snapshot>,
}

struct HeldCell(UnsafeCell<Held>);

// SAFETY: only the handlers touch the cell, and only between taking the service gate for writing (prepare) and
// giving it back (parent, child), so by one thread at a time.
unsafe impl Sync for HeldCell {}

static HELD: HeldCell =
    HeldCell(UnsafeCell::new(Held { streams: None, gate: None, stopped: None, snapshot: None }));

/// Whether copies are being made or are in the slots' places: stopped threads wait on without a limit.
static COPYING: AtomicBool = AtomicBool::new(false);
static REGISTERED: Once = Once::new();

/// Returns whether a thread that went on now could write to a copy that is meant for a child.
pub(super) fn is_copying() -> bool {
    COPYING.load(Ordering::SeqCst)
}

/// Has the handlers run around every fork from now on. Called when a pool is opened; handlers that a program
/// registers later run outside of ours, so their locks are not in our way.
pub fn register() {
    REGISTERED.call_once(|| {
        // SAFETY: the handlers are functions of this library, which is never unloaded while a pool exists.
        unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    });
}

/// Tells beforehand whether a fork could give the child its copies, for callers that can refuse to fork.
///
/// # Errors
/// [`ForkError::NoRoom`] when the copies would not fit in the memory that is available.
pub(crate) fn check() -> Result<(), ForkError> {
    let Some(space) = space::existing() else { return Ok(()) };
    let needed_bytes = service::run(|| Snapshot::count(space) * space::SLOT_BYTES) as u64;
    if needed_bytes == 0 {
        return Ok(());
    }
    let available_bytes = memory::available_bytes();
    if needed_bytes > available_bytes {
        return Err(ForkError::NoRoom { needed_bytes, available_bytes });
    }
    Ok(())
}

extern "C" fn prepare() {
    let streams = stdio::StreamLock::take();
    let gate = service::exclude();
    // SAFETY: the gate was just taken for writing.
    let held = unsafe { &mut *HELD.0.get() };
    held.streams = streams;
    held.gate = Some(gate);
    pgmap::fork::before_fork();
    let Some(space) = space::existing() else { return };
    if Snapshot::count(space) == 0 {
        return;
    }
    COPYING.store(true, Ordering::SeqCst);
    let stopped = stop::stop();
    match Snapshot::take(space, memory::available_bytes()) {
        Ok(snapshot) => held.snapshot = Some(snapshot),
        // The child will find holes where the slots are and fault rather than share them.
        Err(_) => stdio::complain(
            "daxtier: fork: no memory for the child's copies of slow memory; it will fault when it touches them\n",
        ),
    }
    held.stopped = Some(stopped);
}

extern "C" fn parent() {
    // SAFETY: prepare took the gate for writing in this thread.
    let held = unsafe { &mut *HELD.0.get() };
    let (streams, gate) = (held.streams.take(), held.gate.take());
    if let (Some(space), Some(snapshot)) = (space::existing(), held.snapshot.take())
        && snapshot.undo(space).is_err()
    {
        stdio::complain(
            "daxtier: fork: the kernel refused to map slow memory again; the program ends here\n",
        );
        std::process::abort();
    }
    COPYING.store(false, Ordering::SeqCst);
    drop(held.stopped.take());
    pgmap::fork::after_fork_in_parent();
    drop(gate);
    drop(streams);
}

extern "C" fn child() {
    // SAFETY: prepare took the gate for writing in the thread that this one was cloned from; no other exists.
    let held = unsafe { &mut *HELD.0.get() };
    if let Some(stopped) = held.stopped.take() {
        stopped.forget_in_child();
    }
    COPYING.store(false, Ordering::SeqCst);
    if let (Some(space), Some(snapshot)) = (space::existing(), held.snapshot.take()) {
        snapshot.keep(space);
    }
    pgmap::fork::after_fork_in_child();
    if source::after_fork_in_child().is_err() {
        stdio::complain("daxtier: fork: the kernel refused the child a page for its figures; it ends here\n");
        std::process::abort();
    }
    drop(held.gate.take());
    drop(held.streams.take());
}
