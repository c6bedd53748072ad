//! Which slow memory a program gets that names none.
//!
//! Devices that the administrator released and that can be used, else an emulated device. A device that nobody
//! named or released is never touched; every choice comes with the reason that is shown to the user.

use daxtier::device::{DaxInfo, DeviceSpec, Origin, RELEASED_PATH, ReleaseError, released};
use daxtier::runtime::config::{AvailableMemory, MIN_TIER_BYTES, SLOT_BYTES, SlowSpec};
use daxtier::units::{Bytes, ExactBytes};
use std::fmt;
use std::path::Path;

/// An emulated device is this many times the fast tier ...
const TIMES_FAST: u64 = 4;
/// ... or this, if that is more, as far as there is memory for it.
const LEAST_EMULATED_BYTES: u64 = 4 << 30;

/// What was chosen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The devices.
    pub(crate) slow: Vec<SlowSpec>,
    /// What was chosen and why, a line each.
    pub(crate) reasons: Vec<String>,
}

/// There is nothing to choose.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NothingLeft {
    fast_bytes: u64,
    left_bytes: u64,
}

impl fmt::Display for NothingLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no slow device is named or released, and beside fast={} only {} are left to emulate one: name a device \
             with --slow, or ask for less with --fast",
            ExactBytes(self.fast_bytes),
            Bytes(self.left_bytes)
        )
    }
}

/// Chooses for a program with `fast_bytes` of fast memory.
///
/// # Errors
/// [`NothingLeft`] when no device is released and memory is too short to emulate one.
pub(crate) fn choose(fast_bytes: u64, memory: &AvailableMemory) -> Result<Choice, NothingLeft> {
    choose_from(released(Path::new("/"), Path::new(RELEASED_PATH)), fast_bytes, memory)
}

fn choose_from(
    released: Result<Vec<DaxInfo>, ReleaseError>,
    fast_bytes: u64,
    memory: &AvailableMemory,
) -> Result<Choice, NothingLeft> {
    let mut slow = Vec::new();
    let mut reasons = Vec::new();
    match released {
        Ok(devices) => {
            for device in devices {
                let path = device.path.display();
                if let Some(obstacle) = device.heap_obstacle() {
                    reasons.push(format!("{path} is released and cannot be used: {obstacle} (daxtier list)"));
                } else if device.state.is_usable() {
                    reasons.push(format!("using {path}, which the administrator released (daxtier allow)"));
                    // Persistent memory is released only by who says so (daxtier allow --allow-persistent).
                    let whole = SlowSpec::whole(DeviceSpec::Dax(device.path));
                    slow.push(SlowSpec {
                        allow_persistent: matches!(device.origin, Origin::Pmem { .. }),
                        ..whole
                    });
                } else {
                    reasons.push(format!("{path} is released and cannot be used: {}", device.state));
                }
            }
        }
        Err(error) => reasons.push(format!("no device counts as released: {error}")),
    }
    if slow.is_empty() {
        let bytes = emulated_bytes(fast_bytes, memory)?;
        let spec = DeviceSpec::Emulated(bytes);
        let why = if reasons.is_empty() {
            "no device was named with --slow or released with daxtier allow"
        } else {
            "no other is left"
        };
        reasons.push(format!("using {spec}, slow memory emulated in DRAM: {why}"));
        slow.push(SlowSpec::whole(spec));
    }
    Ok(Choice { slow, reasons })
}

/// Says how large an emulated device may be: it takes ordinary memory as it fills. A part of what the fast tier leaves is for
/// what lies in neither: the program's code and stacks, the kernel's tables for it, and the library's own data.
fn emulated_bytes(fast_bytes: u64, memory: &AvailableMemory) -> Result<u64, NothingLeft> {
    let wanted = fast_bytes.saturating_mul(TIMES_FAST).max(LEAST_EMULATED_BYTES);
    let left_bytes = memory.usable_bytes().map_or(u64::MAX, |bytes| bytes.saturating_sub(fast_bytes));
    let bytes = wanted.min((left_bytes - left_bytes / 4).max(MIN_TIER_BYTES.min(left_bytes)));
    let bytes = bytes - bytes % SLOT_BYTES;
    if bytes < MIN_TIER_BYTES { Err(NothingLeft { fast_bytes, left_bytes }) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: u64 = 1 << 30;

    fn with(available_bytes: u64) -> AvailableMemory {
        AvailableMemory { available_bytes: Some(available_bytes), ..AvailableMemory::default() }
    }

    #[test]
    fn an_emulated_device_takes_what_is_left_at_most() {
        assert_eq!(emulated_bytes(2 * G, &with(100 * G)), Ok(8 * G));
        assert_eq!(emulated_bytes(G / 16, &with(100 * G)), Ok(4 * G));
        assert_eq!(emulated_bytes(8 * G, &with(10 * G + 1)), Ok(3 * G / 2), "a quarter is not for tiers");
        assert_eq!(emulated_bytes(44 << 20, &with(56 << 20)), Ok(8 << 20));
        assert_eq!(emulated_bytes(18 << 20, &with(23 << 20)), Ok(4 << 20), "the least there is");
        assert_eq!(emulated_bytes(2 * G, &AvailableMemory::default()), Ok(8 * G));
        let nothing = NothingLeft { fast_bytes: 10 * G, left_bytes: 0 };
        assert_eq!(emulated_bytes(10 * G, &with(10 * G)), Err(nothing));
    }

    #[test]
    fn without_a_released_device_one_is_emulated_and_said_so() {
        let choice = choose_from(Ok(Vec::new()), G, &with(100 * G)).unwrap();
        assert_eq!(choice.slow, [SlowSpec::whole(DeviceSpec::Emulated(4 * G))]);
        let [reason] = &choice.reasons[..] else { panic!("one reason is enough: {:?}", choice.reasons) };
        assert!(reason.contains("emulated:4G") && reason.contains("daxtier allow"), "{reason}");
    }

    /// Catches a program that does not start for a released device that blocks can't lie on.
    #[test]
    fn a_released_device_of_too_large_granules_is_passed_over() {
        let tree = crate::tree::Tree::recorded("hmem-giant-pages");
        let dir = std::fs::canonicalize(tree.path("sys/bus/dax/devices/dax0.0")).unwrap();
        std::fs::write(dir.join("dev"), "1:5\n").unwrap();
        tree.link("dev/dax0.0", "/dev/zero");
        let devices = daxtier::device::discover(tree.root());
        assert!(devices.iter().all(|device| device.state.is_usable()), "its folios can be used");
        let choice = choose_from(Ok(devices), G, &with(100 * G)).unwrap();
        assert_eq!(choice.slow, [SlowSpec::whole(DeviceSpec::Emulated(4 * G))]);
        assert!(choice.reasons[0].contains("granules of 1 GiB"), "{:?}", choice.reasons);
    }

    #[test]
    fn a_damaged_list_releases_nothing() {
        let error = ReleaseError::NotAFile { path: "/etc/daxtier/devices".into() };
        let choice = choose_from(Err(error), G, &with(100 * G)).unwrap();
        assert_eq!(choice.slow, [SlowSpec::whole(DeviceSpec::Emulated(4 * G))]);
        assert!(choice.reasons[0].contains("/etc/daxtier/devices"), "{:?}", choice.reasons);
    }
}
