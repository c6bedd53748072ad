//! The version, for the preprocessor and at run time.

use std::ffi::{CStr, c_char};

/// Version that this header belongs to, first part. Another first part means another interface.
pub const DAXTIER_VERSION_MAJOR: u32 = 0;
/// Version that this header belongs to, second part.
pub const DAXTIER_VERSION_MINOR: u32 = 1;
/// Version that this header belongs to, third part.
pub const DAXTIER_VERSION_PATCH: u32 = 0;
/// Version that this header belongs to as one number, 0x00MMmmpp, which can be compared:
/// `#if DAXTIER_VERSION_NUMBER >= 0x000100`.
pub const DAXTIER_VERSION_NUMBER: u32 =
    DAXTIER_VERSION_MAJOR << 16 | DAXTIER_VERSION_MINOR << 8 | DAXTIER_VERSION_PATCH;

/// The same as the libraries' numbers: the package's version is the one source.
const _: () = {
    let text = env!("CARGO_PKG_VERSION").as_bytes();
    assert!(text.len() == 5 && text[1] == b'.' && text[3] == b'.', "teach this check longer versions");
    assert!((text[0] - b'0') as u32 == DAXTIER_VERSION_MAJOR);
    assert!((text[2] - b'0') as u32 == DAXTIER_VERSION_MINOR);
    assert!((text[4] - b'0') as u32 == DAXTIER_VERSION_PATCH);
};

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(text) => text,
    Err(_) => panic!("the version holds no NUL"),
};

/// Returns the version of the library that is running, such as "0.1.0".
///
/// Threads: any number at once. Blocks: no. After fork: works. Signal handlers: allowed.
/// Lifetime: the text is static.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_version() -> *const c_char {
    VERSION.as_ptr()
}

/// Returns the version of the library that is running as 0x00MMmmpp. It may be newer than DAXTIER_VERSION_NUMBER,
/// which is the version that the program was compiled with.
///
/// Threads: any number at once. Blocks: no. After fork: works. Signal handlers: allowed. Lifetime: a plain number.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_version_number() -> u32 {
    DAXTIER_VERSION_NUMBER
}
