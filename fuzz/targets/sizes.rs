//! Any text read as a size: no panic, and what is read prints to something that reads back to the same size.
#![no_main]

use daxtier::units::{Bytes, parse_size};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(size) = parse_size(text) {
        let printed = Bytes(size).to_string();
        if !printed.contains('.') {
            assert_eq!(parse_size(&printed), Ok(size), "{text:?} prints as {printed:?}");
        }
    }
});
