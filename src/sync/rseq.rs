//! Restartable sequences: a few instructions on data of the processor that runs them, without atomics.
//!
//! The kernel restarts a section whose thread is pre-empted, moved or interrupted by a signal before the section's
//! last instruction, its *commit*; so a section is one step against every other section on its processor. The area
//! in which a thread tells the kernel of its section is the one that glibc 2.35 and newer registers. A section works on
//! the calling processor's element of an array, which it finds itself: nothing can go wrong between looking at
//! the processor's number and using it.
//!
//! [`exchange_unless_closed`] and [`add_unless_closed`] are the sections; [`fence`] waits for all that were under way. A section may fail at any time
//! for no visible reason, and its user has another way to do the same: there may be no area (older glibc, a tunable,
//! valgrind, other architectures), the thread may not be registered, the processor's number may be at or above the length
//! of the array, and a section that is always interrupted (single-stepped) never ends.
//!
//! The method is Paul Turner's and Mathieu Desnoyers's, Linux `kernel/rseq.c`; the word `closed` plays the part of
//! `percpu_ref`'s mode. Uses `sys`; used by `PercpuRef` and `offset`. `model`
//! stands for it in models.
//!
//! # Invariants
//! I1: what a section writes is written by sections of the same processor only, and by others only while the element is
//! closed and a fence was made since.
//! I2: a section that begins after a fence sees `closed` as it was set before the fence.
//!
//! # Threads without an area of their own
//! A thread that was made by a raw `clone` with TLS that glibc did not set up, and the child of `vfork` before it calls
//! `exec`, run on another thread's area and are not restarted. Neither may call this library, nor most of libc.

#[cfg_attr(all(target_arch = "x86_64", target_env = "gnu"), path = "rseq/x86_64.rs")]
#[cfg_attr(
    all(target_arch = "aarch64", target_env = "gnu", target_endian = "little"),
    path = "rseq/aarch64.rs"
)]
#[cfg_attr(
    not(any(
        all(target_arch = "x86_64", target_env = "gnu"),
        all(target_arch = "aarch64", target_env = "gnu", target_endian = "little")
    )),
    path = "rseq/absent.rs"
)]
mod arch;

use crate::error::SysError;
use crate::sys::{cpu, membarrier};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicIsize, AtomicU32, AtomicU64, Ordering};

/// Not looked for yet.
const UNKNOWN: isize = 0;
/// There is none. Areas are aligned to 32 bytes, so this is no offset.
const NONE: isize = 1;

/// Where the area of every thread lies, from its thread pointer; or one of the values above.
static AREA: AtomicIsize = AtomicIsize::new(UNKNOWN);

/// Stores `new` in this processor's word if that is `old` and `closed` is 0; returns whether it did. The store has Release
/// semantics, the loads Acquire.
///
/// # Safety
/// `first` is in the first of `len` elements of `1 << SHIFT` bytes that live, and has a word at the same place in each.
#[inline(always)]
#[must_use]
pub(crate) unsafe fn exchange_unless_closed<const SHIFT: u32>(
    first: NonNull<AtomicU64>,
    len: u32,
    closed: &AtomicU32,
    old: u64,
    new: u64,
) -> bool {
    // SAFETY: the caller's promise.
    area().is_some_and(|area| unsafe {
        arch::exchange_unless_closed::<SHIFT>(area, first.as_ptr(), len, closed, old, new)
    })
}

/// Adds `delta`, wrapping, to this processor's word if `closed` is 0; returns whether it did. The store has Release
/// semantics, looking at `closed` Acquire.
///
/// # Safety
/// As for [`exchange_unless_closed`].
#[inline(always)]
#[must_use]
pub(crate) unsafe fn add_unless_closed<const SHIFT: u32>(
    first: NonNull<AtomicU64>,
    len: u32,
    closed: &AtomicU32,
    delta: u64,
) -> bool {
    // SAFETY: the caller's promise.
    area().is_some_and(|area| unsafe {
        arch::add_unless_closed::<SHIFT>(area, first.as_ptr(), len, closed, delta)
    })
}

/// Waits until every section that was under way has ended or was restarted (I2), and orders memory between the caller and
/// all threads. Takes 0.4 us alone and some 15 us when other threads run; the first call up to 20 ms more.
///
/// # Errors
/// The kernel's refusal: then no closed element may be touched by anybody but its processor.
pub(crate) fn fence() -> Result<(), SysError> {
    if !is_available() {
        // No section ever succeeds in this process.
        return Ok(());
    }
    membarrier::restart_sections()
}

/// Returns whether sections can succeed in this process.
pub(crate) fn is_available() -> bool {
    area().is_some()
}

/// Returns the number of the processor that runs the calling thread; 0 when the kernel does not tell. It may be out of
/// date at once.
#[inline(always)]
pub(crate) fn current_cpu() -> usize {
    // Threads that are not registered have a negative number in their area.
    // SAFETY: `area` found that every thread has an area.
    let number = area().and_then(|area| usize::try_from(unsafe { arch::cpu_id(area) }).ok());
    number.unwrap_or_else(cpu::current)
}

/// Returns the number of the processor that runs the calling thread, for an array of `len` elements on which a section is
/// about to work, `len` a power of two. `None` when no section was ever tried or none succeeds; any element's number when
/// the section will fail. Calls nothing, so that a function that ends with the section need not either.
#[inline(always)]
pub(crate) fn element(len: usize) -> Option<usize> {
    debug_assert!(len.is_power_of_two());
    // Relaxed: every thread that looks finds the same.
    let area = AREA.load(Ordering::Relaxed);
    if area & !1 == 0 {
        return None;
    }
    // SAFETY: `find_area` found that every thread has an area.
    let cpu = unsafe { arch::cpu_id(area) };
    Some(cpu as usize & (len - 1))
}

/// Returns the offset of the areas from the thread pointer, if there are any.
#[inline(always)]
fn area() -> Option<isize> {
    // Relaxed: every thread that looks finds the same.
    let mut area = AREA.load(Ordering::Relaxed);
    if area & !1 == 0 {
        if area == UNKNOWN {
            area = find_area();
        }
        if area == NONE {
            return None;
        }
    }
    Some(area)
}

#[cold]
fn find_area() -> isize {
    // Without the kernel's help in `fence` nobody could ever look into another processor's element.
    let area = arch::registered_area().filter(|_| membarrier::can_restart_sections()).unwrap_or(NONE);
    AREA.store(area, Ordering::Relaxed);
    area
}

#[cfg(test)]
mod tests;
