//! The only system calls of the crate.
//!
//! Thin, checked wrappers: arguments keep their units, failures become [`SysError`](crate::error::SysError), and
//! nothing here allocates or keeps state, but for `blocked`, `bus_error`, `descriptors`, `dl`, `pinners` and `text`.
//! `mm` maps and advises memory, `file` opens descriptors that stay out of the program's way, `descriptors` keeps them,
//! `lock` takes byte-range locks, `lost` stands for memory that is gone, `numa` binds memory to nodes, `memory_call` passes on what a program asks of its
//! memory, `futex` waits and wakes, `membarrier` reaches all threads, `bus_error` catches accesses that fail, `uffd`
//! holds up accesses to memory, `pagemap` tells what is behind them, `maps` reads what /proc says of mappings, `thread`
//! finds the process's threads, `reach` signals them, `blocked` knows what they wait for, `process` ends and reaps,
//! `dl` asks the dynamic loader, `socket` listens to other processes and to events of devices, `random` draws random numbers, `text` reads and replaces small files, `zero` clears
//! memory past the caches.

pub(crate) mod blocked;
pub(crate) mod bus_error;
pub(crate) mod cpu;
pub(crate) mod descriptors;
pub(crate) mod dl;
pub(crate) mod environment;
pub(crate) mod errno;
pub(crate) mod file;
pub(crate) mod futex;
pub(crate) mod lock;
pub(crate) mod lost;
pub(crate) mod maps;
#[cfg(not(loom))]
pub(crate) mod membarrier;
pub(crate) mod memory_call;
pub(crate) mod mm;
pub(crate) mod numa;
pub(crate) mod page;
pub(crate) mod pagemap;
pub(crate) mod peer;
pub(crate) mod pinners;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod reach;
pub(crate) mod socket;
pub(crate) mod stdio;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod text;
pub(crate) mod thread;
pub(crate) mod uffd;
pub(crate) mod zero;
