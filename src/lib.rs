//! A CXL memory-tiering allocator: device-dax folios, tiers and a heap over DRAM and CXL memory, in user
//! space, on an unmodified kernel.
//!
//! A [`Pool`] joins a fast tier of DRAM and a slow tier of CXL memory (`/dev/daxX.Y`), or of an emulated device where
//! there is none. It hands out *folios*, naturally aligned runs of pages with a reference count, and *blocks* of any
//! size, and says at any time which tier a byte is in:
//!
//! ```
//! use daxtier::{AllocOptions, Config, Order, Pool, TierName};
//!
//! let pool = Pool::open(&Config::parse("fast=16M slow=emulated:64M policy=fill")?)?;
//!
//! // 2 MiB of the slow tier, put when the last reference to it goes.
//! let slow = AllocOptions { tier: Some(TierName::Slow), ..AllocOptions::default() };
//! let mut folio = pool.alloc_folio(Order::HUGE, slow)?;
//! folio.as_mut_slice().ok_or("somebody else holds it")?.fill(7);
//!
//! // A block where the policy says: the fast tier has room.
//! let block = pool.malloc(1000, 16, AllocOptions::default())?;
//! assert_eq!(pool.where_is(block.as_ptr()).ok_or("not ours")?.tier_name, "fast");
//! // SAFETY: the block is live, and nobody uses it afterwards.
//! unsafe { pool.free(block) }?;
//!
//! drop(folio);
//! pool.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Below the pool, a [`Pgmap`] manages one device: folios are requested by offset or handed out by its allocator, and
//! it can be killed and drained while in use.
//!
//! ```
//! use daxtier::{Order, Pgmap, PgmapOptions, device::Emulated};
//! use std::{sync::Arc, time::Duration};
//!
//! let device = Emulated::new(64 << 20, Emulated::DEFAULT_ALIGN_BYTES)?;
//! let pgmap = Pgmap::bind(Arc::new(device), PgmapOptions::default())?;
//! let folio = pgmap.request_folio(512, Order::PAGE)?;
//! assert!(pgmap.request_folio(512, Order::PAGE).is_err(), "a second request is busy");
//! pgmap.kill()?;
//! assert!(pgmap.request_folio(513, Order::PAGE).is_err(), "a dying pgmap hands out nothing");
//! drop(folio);
//! pgmap.drain(Duration::from_secs(1))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`GlobalAlloc`] serves all of a Rust program's allocations from a pool that the environment configures, as the
//! preload library does for programs in other languages. The feature `allocator-api2` adds `PoolAllocator` for single
//! collections.
//!
//! Linux on 64-bit machines only. The oldest supported Rust is 1.88.
#[cfg(not(target_os = "linux"))]
compile_error!("daxtier drives Linux device-dax memory and builds for Linux targets only");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("daxtier reserves terabytes of address space and needs a 64-bit target");

pub(crate) mod counters;
pub mod device;
pub mod error;
pub mod folio;
pub(crate) mod heap;
pub(crate) mod migrate;
pub mod offset;
pub mod pgmap;
pub mod policy;
pub mod runtime;
pub(crate) mod space;
pub(crate) mod sync;
pub(crate) mod sys;
pub mod tier;
pub mod topology;
pub mod units;

pub use folio::{Folio, FolioError, FolioFree, FolioInfo, FreedFolio, RawFolio};
pub use offset::Lifetime;
pub use pgmap::{Pgmap, PgmapError, PgmapOptions};
pub use policy::{Policy, TierName};
#[cfg(feature = "allocator-api2")]
pub use runtime::PoolAllocator;
#[doc(hidden)]
pub use runtime::process as preload;
pub use runtime::{
    Advice, AllocError, AllocOptions, CloseError, DeviceChangeError, Drained, ForeignPointer, GlobalAlloc,
    Held, HeldBy, MigrateError, MigrationCounts, MigrationStats, NotABlock, Outcome, Placement, Pool,
    PoolError, Ticket,
    config::{Config, ConfigError},
};
pub use tier::Tier;
pub use units::Order;
