//! The error of a refused system call, which every subsystem's own error wraps.
//!
//! Each subsystem has one error enum beside its code, with variants named for what was observed. All of them
//! know the `errno` value that stands for them in the C ABI.

use std::fmt;

/// A system call that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SysError {
    /// The call, such as `mmap`.
    pub call: &'static str,
    /// The `errno` value that it left.
    pub errno: i32,
}

impl SysError {
    /// Takes `errno` of the calling thread as the outcome of `call`.
    pub(crate) fn last(call: &'static str) -> SysError {
        SysError { call, errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0) }
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, std::io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for SysError {}
