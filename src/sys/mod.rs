//! The only system calls of the crate.
//!
//! Thin, checked wrappers: arguments keep their units, failures become [`SysError`](crate::error::SysError),
//! and nothing here allocates or keeps state. `mm` maps and advises memory, `file` opens descriptors that stay
//! out of the program's way, `futex` waits on a word, `cpu` names the processor.

pub(crate) mod cpu;
pub(crate) mod file;
pub(crate) mod futex;
pub(crate) mod mm;
