//! Locks, counters and lazily backed arrays that work inside `malloc`.
//!
//! Nothing here allocates after construction, and nothing calls libc beyond the futex and madvise wrappers of
//! `sys`. [`Mutex`] is a futex lock, [`gate`] keeps threads out of what a fork must find whole, [`PercpuRef`] is a
//! reference count whose live path touches one line per processor, [`percpu_sums`] are statistics that touch as little,
//! [`LazySlice`] is an array whose memory appears where it is used, [`bell`] wakes a thread that does the others' work,
//! [`service`] marks the library's own work, which closes the [`shortcut`] of malloc.
//!
//! [`atomic`] is the one place that swaps the standard atomics for loom's: build with `--cfg loom` to
//! model-check. Uses `sys`; used by everything above it.

pub(crate) mod bell;
pub(crate) mod gate;
mod here;
pub(crate) mod lazy_slice;
pub(crate) mod mutex;
pub(crate) mod percpu_ref;
pub(crate) mod percpu_sums;
#[cfg_attr(loom, path = "rseq/model.rs")]
pub(crate) mod rseq;
pub(crate) mod service;
pub(crate) mod shortcut;
mod stripes;

#[cfg(all(test, loom))]
mod loom_bell;
#[cfg(all(test, loom))]
mod loom_gate;
#[cfg(all(test, loom))]
mod loom_mutex;
#[cfg(all(test, loom))]
mod loom_percpu_ref;

pub(crate) use lazy_slice::{LazySlice, Zeroed};
pub(crate) use mutex::{Mutex, MutexGuard, StaticMutex};
pub(crate) use percpu_ref::PercpuRef;

/// The atomics that models may observe.
pub(crate) mod atomic {
    #[cfg(loom)]
    pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, fence};
    #[cfg(not(loom))]
    pub(crate) use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, fence};

    pub(crate) use std::sync::atomic::Ordering;
}

/// Ends the process: a count left its range, and to go on would hand out memory that is in use.
#[cold]
pub(crate) fn abort_on_overflow() -> ! {
    std::process::abort()
}
