//! The only system calls of the crate.
//!
//! Thin, checked wrappers: arguments keep their units, failures become [`SysError`](crate::error::SysError),
//! and nothing here allocates or keeps state, but for `dl` and `text`. `mm` maps and advises memory, `file` opens
//! descriptors that stay out of the program's way, `lock` takes byte-range locks, `numa` binds memory to nodes,
//! `futex` waits and wakes, `thread` finds and signals the process's threads, `dl` asks the dynamic loader, `text`
//! reads and replaces small files.

pub(crate) mod cpu;
pub(crate) mod dl;
pub(crate) mod environment;
pub(crate) mod errno;
pub(crate) mod file;
pub(crate) mod futex;
pub(crate) mod lock;
pub(crate) mod memory;
pub(crate) mod mm;
pub(crate) mod numa;
pub(crate) mod page;
pub(crate) mod peer;
pub(crate) mod stdio;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod text;
pub(crate) mod thread;
