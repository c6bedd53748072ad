//! The only system calls of the crate.
//!
//! Thin, checked wrappers: arguments keep their units, failures become [`SysError`](crate::error::SysError),
//! and nothing here allocates (`dl` may) or keeps state. `mm` maps and advises memory, `file` opens descriptors
//! that stay out of the program's way, `lock` takes byte-range locks, `numa` binds memory to nodes, `futex` waits
//! and wakes, `thread` finds and signals the process's threads, `dl` asks the dynamic loader.

pub(crate) mod dl;
pub(crate) mod errno;
pub(crate) mod file;
pub(crate) mod futex;
pub(crate) mod lock;
pub(crate) mod mm;
pub(crate) mod numa;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod thread;
