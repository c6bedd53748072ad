//! Checks of sizes and ranges that all devices share.

use super::DeviceError;
use crate::units::PAGE_SIZE;
use std::ops::Range;

/// 2 MiB: the granule of huge pages, and of CXL memory unless its region says otherwise.
pub(super) const HUGE_BYTES: u64 = 2 << 20;

/// Checks that a device called `device` can have `len_bytes` bytes in granules of `align_bytes`.
pub(super) fn check_len(device: &str, len_bytes: u64, align_bytes: u64) -> Result<(), DeviceError> {
    if !align_bytes.is_power_of_two() || align_bytes < PAGE_SIZE as u64 || align_bytes > 1 << 30 {
        return Err(DeviceError::BadAlign { device: device.to_owned(), align_bytes });
    }
    if len_bytes == 0 {
        return Err(DeviceError::Empty { device: device.to_owned() });
    }
    if !len_bytes.is_multiple_of(align_bytes) {
        return Err(DeviceError::NotAligned {
            device: device.to_owned(),
            what: "size",
            value: len_bytes,
            align_bytes,
        });
    }
    Ok(())
}

/// Checks that `range` lies inside a device of `len_bytes`, is not empty and starts and ends on a granule.
/// Allocates only on failure.
pub(super) fn check_range(
    device: &str,
    range: &Range<u64>,
    len_bytes: u64,
    align_bytes: u64,
) -> Result<(), DeviceError> {
    if range.start >= range.end {
        return Err(DeviceError::EmptyRange {
            device: device.to_owned(),
            start: range.start,
            end: range.end,
        });
    }
    if range.end > len_bytes {
        return Err(DeviceError::BeyondEnd {
            device: device.to_owned(),
            start: range.start,
            end: range.end,
            len_bytes,
        });
    }
    for (what, value) in [("start of the range", range.start), ("end of the range", range.end)] {
        if !value.is_multiple_of(align_bytes) {
            return Err(DeviceError::NotAligned { device: device.to_owned(), what, value, align_bytes });
        }
    }
    Ok(())
}

/// Checks `[offset, offset + len_bytes)` in the same way, with checked arithmetic, and returns it.
pub(super) fn check_span(
    device: &str,
    offset: u64,
    len_bytes: usize,
    device_len_bytes: u64,
    align_bytes: u64,
) -> Result<Range<u64>, DeviceError> {
    let range = offset..offset.saturating_add(len_bytes as u64);
    check_range(device, &range, device_len_bytes, align_bytes)?;
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_device_can_have_are_named() {
        let check = |len, align| check_len("d", len, align);
        assert_eq!(check(0, HUGE_BYTES), Err(DeviceError::Empty { device: "d".into() }));
        assert!(matches!(check(HUGE_BYTES + 1, HUGE_BYTES), Err(DeviceError::NotAligned { .. })));
        for align in [0, 1, 2048, 4097, 3 << 20, 2 << 30] {
            assert!(matches!(check(1 << 31, align), Err(DeviceError::BadAlign { .. })), "{align}");
        }
        assert_eq!(check(1 << 30, 1 << 30), Ok(()));
        assert_eq!(check(4096, 4096), Ok(()));
    }

    #[test]
    fn spans_outside_the_device_or_off_the_granule_are_named() {
        let check = |offset, len| check_span("d", offset, len, 4 * HUGE_BYTES, HUGE_BYTES);
        let huge = HUGE_BYTES as usize;
        assert_eq!(check(HUGE_BYTES, huge), Ok(HUGE_BYTES..2 * HUGE_BYTES));
        assert!(matches!(check(0, 0), Err(DeviceError::EmptyRange { .. })));
        assert!(matches!(check(4 * HUGE_BYTES, huge), Err(DeviceError::BeyondEnd { .. })));
        assert!(matches!(check(3 * HUGE_BYTES, 2 * huge), Err(DeviceError::BeyondEnd { .. })));
        assert!(matches!(check(u64::MAX - 4095, huge), Err(DeviceError::BeyondEnd { .. })));
        assert!(matches!(check(4096, huge), Err(DeviceError::NotAligned { value: 4096, .. })));
        assert!(matches!(check(0, 4096), Err(DeviceError::NotAligned { value: 4096, .. })));
    }
}
