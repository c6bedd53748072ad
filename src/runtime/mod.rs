//! The running library: pools, the process's own pool, their configuration and figures.
//!
//! The top layer of the crate wires the others together; it alone registers fork handlers, starts threads and reads
//! the environment. [`Pool`] is the front door, [`process`] serves `malloc`, [`config`] and [`stats`] are what goes in
//! and comes out.

#[cfg(feature = "allocator-api2")]
mod collections;
pub mod config;
pub mod control;
#[doc(hidden)]
pub mod descriptors;
mod error;
mod fork;
mod global_alloc;
pub mod json;
pub mod link;
pub mod loss;
#[doc(hidden)]
pub mod memory;
pub(crate) mod migration;
pub mod own;
mod pool;
mod prezero;
pub mod process;
pub(crate) mod publish;
mod report;
mod reserve;
mod scrub;
pub mod selftest;
mod source;
pub mod stats;
mod stop;

#[cfg(feature = "allocator-api2")]
pub use collections::PoolAllocator;
pub use error::{AllocError, CloseError, ForeignPointer, MigrateError, NotABlock, PoolError};
#[doc(hidden)]
pub use fork::register as register_fork_handlers;
pub use global_alloc::GlobalAlloc;
pub use migration::{Histogram, MigrationCounts, MigrationStats, Outcome, Ticket};
pub use pool::{Advice, AllocOptions, DeviceChangeError, Drained, Held, HeldBy, Placement, Pool};
pub use publish::{StatsReadError, stats_of_process};
pub use scrub::MAX_SCRUB_THREADS;
