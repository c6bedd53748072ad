//! No sections: this architecture, or this libc, has no area that is known here.

use std::sync::atomic::{AtomicU32, AtomicU64};

/// Returns nothing: there are no areas.
pub(super) fn registered_area() -> Option<isize> {
    None
}

/// Never called: there are no areas.
///
/// # Safety
/// None.
pub(super) unsafe fn cpu_id(_area: isize) -> i32 {
    -1
}

/// Never called: there are no areas.
///
/// # Safety
/// None.
pub(super) unsafe fn exchange_unless_closed<const SHIFT: u32>(
    _area: isize,
    _first: *const AtomicU64,
    _len: u32,
    _closed: &AtomicU32,
    _old: u64,
    _new: u64,
) -> bool {
    false
}

/// Never called: there are no areas.
///
/// # Safety
/// None.
pub(super) unsafe fn add_unless_closed<const SHIFT: u32>(
    _area: isize,
    _first: *const AtomicU64,
    _len: u32,
    _closed: &AtomicU32,
    _delta: u64,
) -> bool {
    false
}
