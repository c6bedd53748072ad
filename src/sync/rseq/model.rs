//! Sections for the model checker: what models use of the interface of `rseq`, with atomics that loom watches.
//!
//! A model's thread says which processor it is on ([`on_cpu`]). A section holds its processor's lock for as long as it
//! runs, and is aborted when it finds the lock taken, as if it had been interrupted: by a section of another thread on the
//! same processor, or by a fence. A fence takes the lock of each processor in turn, so every section has ended or not
//! begun.

use crate::error::SysError;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::cell::Cell;
use std::ptr::NonNull;

/// Processors in a model.
pub(crate) const CPUS: usize = 2;

loom::lazy_static! {
    static ref RUNNING: [Mutex<()>; CPUS] = std::array::from_fn(|_| Mutex::new(()));
}

loom::thread_local! {
    static CPU: Cell<usize> = Cell::new(0);
}

/// # Safety
/// As in the real one.
pub(crate) unsafe fn add_unless_closed<const SHIFT: u32>(
    first: NonNull<AtomicU64>,
    len: u32,
    closed: &AtomicU32,
    delta: u64,
) -> bool {
    let cpu = current_cpu();
    let Ok(_running) = RUNNING[cpu].try_lock() else { return false };
    if cpu >= len as usize || closed.load(Ordering::Acquire) != 0 {
        return false;
    }
    // SAFETY: the caller says that there is a word in each of `len` elements.
    let word = unsafe { first.byte_add(cpu << SHIFT) };
    // SAFETY: as above.
    let word = unsafe { word.as_ref() };
    let value = word.load(Ordering::Relaxed);
    word.store(value.wrapping_add(delta), Ordering::Release);
    true
}

pub(crate) fn fence() -> Result<(), SysError> {
    for running in RUNNING.iter() {
        drop(running.lock());
    }
    Ok(())
}

pub(crate) fn current_cpu() -> usize {
    CPU.with(Cell::get)
}

/// Moves the calling thread to another processor.
#[cfg_attr(not(test), expect(dead_code, reason = "for the models themselves"))]
pub(crate) fn on_cpu(cpu: usize) {
    CPU.with(|current| current.set(cpu));
}
