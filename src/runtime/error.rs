//! What can go wrong with a pool.

use super::config::ConfigError;
use super::pool::Pool;
use crate::device::DeviceError;
use crate::error::SysError;
use crate::folio::{FolioError, FolioInfo};
use crate::pgmap::PgmapError;
use crate::units::Bytes;

/// A pool that could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A device could not be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device could not be bound.
    #[error(transparent)]
    Pgmap(#[from] PgmapError),
    /// A device maps in larger granules than the heap's slots.
    #[error(
        "{device}: maps in granules of {}, the heap needs 2 MiB or less: reconfigure it with `daxctl reconfigure-device -m devdax --align 2M`, or bind it as a pgmap and use its folios",
        Bytes(*align_bytes)
    )]
    CoarseAlign {
        /// The device's name.
        device: String,
        /// Its mapping granule in bytes.
        align_bytes: u64,
    },
    /// No address space could be reserved.
    #[error("could not reserve address space: {0}; raise the limit with `ulimit -v unlimited`")]
    Space(SysError),
    /// The fast tier is too small for the library's own metadata.
    #[error("the fast tier can't hold the library's own metadata: {0}; make it larger (fast=64M)")]
    Metadata(FolioError),
}

impl PoolError {
    /// Returns the `errno` value that stands for the error.
    pub fn errno(&self) -> i32 {
        match self {
            PoolError::Config(_) | PoolError::CoarseAlign { .. } => libc::EINVAL,
            PoolError::Device(error) => error.errno(),
            PoolError::Pgmap(error) => error.errno(),
            PoolError::Space(_) | PoolError::Metadata(_) => libc::ENOMEM,
        }
    }
}

/// An allocation that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllocError {
    /// The tiers that the request may use have no room for it.
    #[error("no room for {} at a multiple of {} ({tiers})", Bytes(*requested_bytes), Bytes(*align_bytes))]
    Exhausted {
        /// Bytes asked for.
        requested_bytes: u64,
        /// The alignment asked for.
        align_bytes: u64,
        /// How full the tiers are.
        tiers: String,
        /// What the last pgmap said.
        #[source]
        refusal: Option<FolioError>,
    },
    /// The alignment is no power of two, or above 1 GiB.
    #[error("alignment {align} is not a power of two up to 1 GiB")]
    Alignment {
        /// The alignment asked for.
        align: usize,
    },
    /// The pool has no such tier.
    #[error("the pool has no {tier} tier: name a device in slow=")]
    NoSuchTier {
        /// The tier asked for.
        tier: &'static str,
    },
    /// A pointer to resize is not a block of a pool.
    #[error(transparent)]
    Foreign(#[from] ForeignPointer),
    /// A folio could not be cleared.
    #[error(transparent)]
    Folio(#[from] FolioError),
}

impl AllocError {
    /// Returns the `errno` value that stands for the error.
    pub fn errno(&self) -> i32 {
        match self {
            AllocError::Exhausted { refusal: Some(refusal), .. } => refusal.errno(),
            AllocError::Exhausted { .. } => libc::ENOMEM,
            AllocError::Alignment { .. } | AllocError::NoSuchTier { .. } | AllocError::Foreign(_) => {
                libc::EINVAL
            }
            AllocError::Folio(error) => error.errno(),
        }
    }
}

/// A pointer that no pool of this process handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{addr:#x} is not a block of a pool of this process")]
pub struct ForeignPointer {
    /// The address.
    pub addr: usize,
}

/// A pool that could not be closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// Something of the pool is in use.
    #[error("the pool is in use: {} folios, {} in blocks, {handles} other handles", folios.len(), Bytes(*heap_bytes as u64))]
    Busy {
        /// The pool, which works as before.
        pool: Pool,
        /// The folios in use.
        folios: Vec<FolioInfo>,
        /// Bytes in blocks of the heap.
        heap_bytes: usize,
        /// Other handles to the pool.
        handles: usize,
    },
}
