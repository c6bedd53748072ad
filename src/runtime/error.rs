//! What can go wrong with a pool.

use super::config::ConfigError;
use super::migration::{MOST_REQUESTS, Unavailable};
use super::pool::Pool;
use crate::device::DeviceError;
use crate::error::SysError;
use crate::folio::{FolioError, FolioInfo};
use crate::heap::Found;
use crate::pgmap::PgmapError;
use crate::space::LEAST_ADDRESSES;
use crate::units::Bytes;
use std::ptr::NonNull;

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
        "{device}: it is mapped in granules of {}, and blocks need 2 MiB or less: `daxtier list` has the command that changes that, \
         or bind it as a pgmap and use its folios",
        Bytes(*align_bytes)
    )]
    CoarseAlign {
        /// The device's name.
        device: String,
        /// Its mapping granule in bytes.
        align_bytes: u64,
    },
    /// No address space could be reserved.
    #[error("{}", no_addresses(source, *limit_bytes))]
    Space {
        /// What the kernel said.
        source: SysError,
        /// The process's limit on addresses (`ulimit -v`), where it has one.
        limit_bytes: Option<u64>,
    },
    /// There is no memory for the figures.
    #[error("no memory for the library's figures: {0}")]
    Figures(SysError),
    /// The fast tier is too small for the library's own metadata.
    #[error("the fast tier can't hold the library's own metadata: {0}; make it larger (fast=64M)")]
    Metadata(FolioError),
    /// The mimalloc in the program has other structures than the heap works with.
    #[error(
        "mimalloc was built with its features `secure` or `debug`, which the heap can't be used with: build without"
    )]
    Engine,
}

impl PoolError {
    /// Returns the `errno` value that stands for the error.
    pub fn errno(&self) -> i32 {
        match self {
            PoolError::Config(_) | PoolError::CoarseAlign { .. } => libc::EINVAL,
            PoolError::Device(error) => error.errno(),
            PoolError::Pgmap(error) => error.errno(),
            PoolError::Engine => libc::ENOTSUP,
            PoolError::Space { .. } | PoolError::Figures(_) | PoolError::Metadata(_) => libc::ENOMEM,
        }
    }
}

fn no_addresses(source: &SysError, limit_bytes: Option<u64>) -> String {
    let needed = Bytes(LEAST_ADDRESSES as u64);
    match limit_bytes {
        Some(limit_bytes) => format!(
            "the library takes {needed} of addresses beside the program's own, and this process may have {}: raise the \
             limit with `ulimit -v unlimited`",
            Bytes(limit_bytes)
        ),
        None => format!("no {needed} of addresses are to be had: {source}"),
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
    /// No live block begins at the pointer to resize.
    #[error(transparent)]
    NotABlock(#[from] NotABlock),
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
            AllocError::Alignment { .. } | AllocError::NoSuchTier { .. } => libc::EINVAL,
            AllocError::NotABlock(error) => error.errno(),
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

/// Memory that could not be set in motion. What came of single slots is told by
/// [`MigrationCounts`](super::MigrationCounts).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// The process may not hold up accesses to its memory, or the kernel can't.
    #[error(
        "migration is off: {0}; run as root or with CAP_SYS_PTRACE, or `sudo sysctl -w vm.unprivileged_userfaultfd=1`"
    )]
    Off(SysError),
    /// The configuration says `migrate=off`.
    #[error("the configuration says migrate=off")]
    Disabled,
    /// The kernel refused a thread.
    #[error("migration is off: {0}")]
    NoThread(SysError),
    /// Too many requests are waiting already.
    #[error("{MOST_REQUESTS} requests to move memory are waiting already; wait for one of them")]
    Busy,
    /// The pool has no such tier.
    #[error("the pool has no {tier} tier: name a device in slow=")]
    NoSuchTier {
        /// The tier asked for.
        tier: &'static str,
    },
    /// The range is not in the pool's blocks. Folios that were asked for by order never move.
    #[error("{len_bytes} bytes at {addr:#x} are not in blocks of this process's pools")]
    Foreign {
        /// The first address.
        addr: usize,
        /// The length.
        len_bytes: usize,
    },
}

impl MigrateError {
    /// Returns the `errno` value that stands for the error.
    pub fn errno(&self) -> i32 {
        match self {
            MigrateError::Off(refusal) | MigrateError::NoThread(refusal) => refusal.errno,
            MigrateError::Busy => libc::EBUSY,
            MigrateError::Disabled => libc::EOPNOTSUPP,
            MigrateError::NoSuchTier { .. } | MigrateError::Foreign { .. } => libc::EINVAL,
        }
    }
}

impl From<Unavailable> for MigrateError {
    fn from(reason: Unavailable) -> MigrateError {
        match reason {
            Unavailable::Userfaultfd(refusal) => MigrateError::Off(refusal),
            Unavailable::Thread(refusal) => MigrateError::NoThread(refusal),
            Unavailable::Busy => MigrateError::Busy,
        }
    }
}

/// What is at an address that was to be freed or resized, where no live block begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotABlock {
    /// No pool of this process has a block there.
    #[error("{addr:#x} is not a block of a pool of this process")]
    Foreign {
        /// The address.
        addr: usize,
    },
    /// The address is inside a block.
    #[error("{addr:#x} is not the start of a block, but {} bytes into one", addr - block_addr)]
    Inside {
        /// The address.
        addr: usize,
        /// Where the block begins.
        block_addr: usize,
    },
    /// The block was freed.
    #[error("the block at {addr:#x} was freed before")]
    Freed {
        /// The block's address.
        addr: usize,
    },
}

impl NotABlock {
    /// Turns what was found at an address into the error that it makes.
    pub(super) fn unless_live(addr: NonNull<u8>, found: Found) -> Result<(), NotABlock> {
        let addr = addr.as_ptr().addr();
        match found {
            Found::Live => Ok(()),
            Found::Foreign => Err(NotABlock::Foreign { addr }),
            Found::Inside { block_addr } => Err(NotABlock::Inside { addr, block_addr }),
            Found::Freed => Err(NotABlock::Freed { addr }),
        }
    }

    /// Returns the `errno` value that stands for the error: `ESTALE` for a block that was freed, else `EINVAL`.
    pub fn errno(&self) -> i32 {
        match self {
            NotABlock::Freed { .. } => libc::ESTALE,
            NotABlock::Foreign { .. } | NotABlock::Inside { .. } => libc::EINVAL,
        }
    }
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
        /// Bytes in blocks of the heap; 0 while there are other handles, since their holders may use it.
        heap_bytes: usize,
        /// Other handles to the pool.
        handles: usize,
    },
}
