//! Any text read as a device: no panic, and what is read prints to something that reads back to the same device.
#![no_main]

use daxtier::device::DeviceSpec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(device) = text.parse::<DeviceSpec>() {
        let printed = device.to_string();
        assert_eq!(printed.parse::<DeviceSpec>(), Ok(device), "{text:?} prints as {printed:?}");
    }
});
