//! A CXL memory-tiering allocator: device-dax folios, tiers and a heap over DRAM and CXL memory, in user
//! space, on an unmodified kernel.
#[cfg(not(target_os = "linux"))]
compile_error!("daxtier drives Linux device-dax memory and builds for Linux targets only");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("daxtier reserves terabytes of address space and needs a 64-bit target");

pub mod device;
pub mod error;
pub mod folio;
pub mod offset;
pub mod pgmap;
pub(crate) mod sync;
pub(crate) mod sys;
pub mod units;
