//! A CXL memory-tiering allocator: device-dax folios, tiers and a heap over DRAM and CXL memory, in user
//! space, on an unmodified kernel.
#[cfg(not(target_os = "linux"))]
compile_error!("daxtier drives Linux device-dax memory and builds for Linux targets only");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("daxtier reserves terabytes of address space and needs a 64-bit target");

pub(crate) mod counters;
pub mod device;
pub mod error;
pub mod folio;
pub(crate) mod heap;
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
#[doc(hidden)]
pub use runtime::process as preload;
pub use runtime::{
    Advice, AllocError, AllocOptions, CloseError, ForeignPointer, GlobalAlloc, Placement, Pool, PoolError,
    config::{Config, ConfigError},
};
pub use tier::Tier;
pub use units::Order;
