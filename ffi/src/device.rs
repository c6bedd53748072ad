//! Devices of the machine, for C.

use crate::error::*;
use crate::pool::non_null;
use crate::sized::{self, SizedStruct};
use crate::text;
use daxtier_core::device;
use std::ffi::{c_char, c_int};
use std::path::Path;

/// A dax device of the machine.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DaxtierDeviceInfo {
    /// Set by the caller: sizeof(struct daxtier_device_info).
    pub size: usize,
    /// Its length in bytes; 0 if it has no memory.
    pub len_bytes: u64,
    /// Its mapping granule in bytes.
    pub align_bytes: u64,
    /// The NUMA node that its memory is, or -1 where that is not known.
    pub node: i32,
    /// 1 if this process can open it now, else 0.
    pub is_usable: u32,
    /// What daxtier_pgmap_open() and a configuration call it, such as "/dev/dax0.0".
    pub path: [c_char; 128],
    /// Its state: "free", "claimed", "system-ram", "not-permitted" and others.
    pub state: [c_char; 32],
    /// What was seen, for a person to read, and the command that makes the device usable where there is one.
    pub reason: [c_char; 256],
}

// SAFETY: repr(C); three words, two halves, texts of 128, 32 and 256 leave no padding; integers only.
unsafe impl SizedStruct for DaxtierDeviceInfo {
    const NAME: &'static str = "daxtier_device_info";
    const FIRST_SIZE: usize = 448;
}

const _: () = assert!(size_of::<DaxtierDeviceInfo>() == DaxtierDeviceInfo::FIRST_SIZE);

/// Lists the dax devices of the machine: writes up to `capacity` of them, and to `nr_devices` how many there are, which
/// may be more. Set devices[0].size: it says how long each element is. `devices` may be NULL with capacity 0.
///
/// A device that is listed as usable is still not used by daxtier before somebody names it.
///
/// Threads: any number at once. Blocks: on reading sysfs. After fork: works. Signal handlers: not allowed.
/// Lifetime: `devices` is not used after the call.
/// Returns 0, without devices too; DAXTIER_ENULL; DAXTIER_ESIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_device_list(
    devices: *mut DaxtierDeviceInfo,
    capacity: usize,
    nr_devices: *mut usize,
) -> c_int {
    guard(|| {
        non_null(nr_devices, "nr_devices")?;
        let element_size = if capacity == 0 {
            0
        } else {
            // SAFETY: the C contract: NULL or elements that begin with their size.
            unsafe { sized::check_out(devices) }?
        };
        let found = device::discover(Path::new("/"));
        for (at, info) in found.iter().take(capacity).enumerate() {
            let reason = match info.mend() {
                Some(mend) => format!("{}; {mend}", info.state),
                None => info.state.to_string(),
            };
            let value = DaxtierDeviceInfo {
                size: element_size,
                len_bytes: info.len_bytes,
                align_bytes: info.align_bytes,
                node: info.target_node.map_or(-1, |node| node as i32),
                is_usable: info.state.is_usable().into(),
                path: text::field(&info.path.to_string_lossy()),
                state: text::field(info.state.as_str()),
                reason: text::field(&reason),
            };
            // SAFETY: `at` is below the capacity; the C contract gives elements of that size.
            unsafe { sized::write_element(devices, element_size, at, &value) };
        }
        // SAFETY: the C contract: room for a count; checked not to be NULL.
        unsafe { nr_devices.write(found.len()) };
        Ok(())
    })
}
