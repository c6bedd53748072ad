//! What a pgmap and its folios can refuse, one variant per observation, each with its `errno` for C.

use super::FolioInfo;
use crate::device::DeviceError;
use crate::error::SysError;
use crate::units::{Bytes, Order, PAGE_SIZE};

/// A pgmap that could not be bound, or a change of its life that does not fit its state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PgmapError {
    /// The device is shorter than its own granule.
    #[error("{device}: {} is less than one granule of {}", Bytes(*len_bytes), Bytes(*align_bytes))]
    DeviceTooSmall {
        /// The device's name.
        device: String,
        /// Its length.
        len_bytes: u64,
        /// Its granule.
        align_bytes: u64,
    },
    /// The kernel's pages are not of 4 KiB.
    #[error("this kernel has pages of {}, and daxtier works with pages of 4 KiB: boot a kernel with such", Bytes(*page_bytes))]
    KernelPages {
        /// The length of the kernel's pages.
        page_bytes: u64,
    },
    /// The device is longer than offsets can name (256 TiB).
    #[error("{device}: {} is more than a pgmap can hold: use less of it, such as size=64T", Bytes(*len_bytes))]
    DeviceTooLarge {
        /// The device's name.
        device: String,
        /// Its length.
        len_bytes: u64,
    },
    /// The smallest order is larger than the device.
    #[error("the smallest order, {min_order}, is larger than the device's {}", Bytes(*len_bytes))]
    MinOrderTooLarge {
        /// The smallest order that was asked for.
        min_order: Order,
        /// The device's length.
        len_bytes: u64,
    },
    /// All 65535 ids are in use.
    #[error("65535 pgmaps are open: close some first")]
    TooMany,
    /// The pgmap was killed already.
    #[error("pgmap {pgmap} was killed already")]
    Dying {
        /// The pgmap's id.
        pgmap: u16,
    },
    /// The pgmap is live.
    #[error("pgmap {pgmap} is live: kill it first")]
    NotDying {
        /// The pgmap's id.
        pgmap: u16,
    },
    /// References are left.
    #[error("pgmap {pgmap} is not drained: {references} references are left")]
    NotDrained {
        /// The pgmap's id.
        pgmap: u16,
        /// Live folios and calls under way.
        references: u64,
    },
    /// The pgmap gave its memory back.
    #[error("pgmap {pgmap} is dead")]
    Dead {
        /// The pgmap's id.
        pgmap: u16,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The process may not have as many addresses as the device has bytes.
    #[error("{device}: no addresses for its {}: {source}{}", Bytes(*len_bytes), limited_to(*limit_bytes))]
    NoAddresses {
        /// The device's name.
        device: String,
        /// Its length.
        len_bytes: u64,
        /// The process's limit on addresses (`ulimit -v`), where it has one.
        limit_bytes: Option<u64>,
        /// What the kernel said.
        source: SysError,
    },
    /// The kernel refused.
    #[error(transparent)]
    Sys(#[from] SysError),
}

fn limited_to(limit_bytes: Option<u64>) -> String {
    let text = |bytes| {
        format!(
            "; this process may have {} in all: raise the limit with `ulimit -v unlimited`, or use less of the device",
            Bytes(bytes)
        )
    };
    limit_bytes.map(text).unwrap_or_default()
}

impl PgmapError {
    /// Returns the `errno` value that stands for the error.
    pub fn errno(&self) -> i32 {
        match self {
            PgmapError::DeviceTooSmall { .. } | PgmapError::MinOrderTooLarge { .. } => libc::EINVAL,
            PgmapError::DeviceTooLarge { .. } => libc::EFBIG,
            PgmapError::KernelPages { .. } => libc::ENOTSUP,
            PgmapError::TooMany => libc::ENFILE,
            PgmapError::Dying { .. } => libc::EALREADY,
            PgmapError::NotDying { .. } => libc::EINVAL,
            PgmapError::NotDrained { .. } => libc::EBUSY,
            PgmapError::Dead { .. } => libc::ENODEV,
            PgmapError::Device(error) => device_errno(error),
            PgmapError::Sys(source) | PgmapError::NoAddresses { source, .. } => source.errno,
        }
    }
}

/// A drain that did not end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DrainError {
    /// The pgmap is live, so it would never drain.
    #[error("pgmap {pgmap} is live: kill it first")]
    NotDying {
        /// The pgmap's id.
        pgmap: u16,
    },
    /// Folios were still held when the time was up.
    #[error("pgmap {pgmap} still has {} live folios", holders.len())]
    TimedOut {
        /// The pgmap's id.
        pgmap: u16,
        /// The folios that are held, in ascending order of offset.
        holders: Vec<FolioInfo>,
    },
}

impl DrainError {
    /// Returns the `errno` value that stands for the error.
    pub fn errno(&self) -> i32 {
        match self {
            DrainError::NotDying { .. } => libc::EINVAL,
            DrainError::TimedOut { .. } => libc::EBUSY,
        }
    }
}

/// A folio operation that was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FolioError {
    /// The run does not lie in the pgmap.
    #[error("offset {offset:#x}, {order}, does not lie below the end at page {nr_pages:#x}")]
    OutOfBounds {
        /// First page of the run.
        offset: u64,
        /// Its order.
        order: Order,
        /// Pages in the pgmap.
        nr_pages: u64,
    },
    /// The offset is not a multiple of the order's pages.
    #[error("offset {offset:#x} is not aligned to {order}: use a multiple of {:#x}", order.nr_pages())]
    Misaligned {
        /// First page of the run.
        offset: u64,
        /// Its order.
        order: Order,
    },
    /// The order is below the pgmap's smallest.
    #[error("{order} is below the smallest order of this pgmap, {min_order}")]
    OrderTooSmall {
        /// The order that was asked for.
        order: Order,
        /// The smallest one.
        min_order: Order,
    },
    /// The order is above what the pgmap can ever hold.
    #[error("{order} is above the largest order of this pgmap, {max_order}")]
    OrderTooLarge {
        /// The order that was asked for.
        order: Order,
        /// The largest one.
        max_order: Order,
    },
    /// A page of the run is in use.
    #[error("offset {offset:#x}: a page of the {order} run is in use")]
    Busy {
        /// First page of the run.
        offset: u64,
        /// Its order.
        order: Order,
    },
    /// The pgmap was killed and hands out nothing any more.
    #[error("pgmap {pgmap} is dying: it hands out no folios")]
    Dying {
        /// The pgmap's id.
        pgmap: u16,
    },
    /// No run of this order is free, and nothing more can be claimed.
    #[error(
        "no free run of {order}: {} free in smaller pieces, {held_extents} extents held by other processes",
        Bytes(free_pages * PAGE_SIZE as u64)
    )]
    Exhausted {
        /// The order that was asked for.
        order: Order,
        /// Pages that are free in smaller pieces.
        free_pages: u64,
        /// Extents that another process holds.
        held_extents: u64,
    },
    /// The run is in an extent that could be claimed, but the pgmap's limit is reached.
    #[error("offset {offset:#x} is not claimed, and the limit of {} is reached", Bytes(limit_pages * PAGE_SIZE as u64))]
    LimitReached {
        /// First page of the run.
        offset: u64,
        /// The limit.
        limit_pages: u64,
    },
    /// The page is in no extent that this process claimed.
    #[error("offset {offset:#x} is in no claimed extent")]
    NotClaimed {
        /// The page.
        offset: u64,
    },
    /// The pgmap leaves offsets to its user.
    #[error("pgmap {pgmap} has no allocator of its own: request folios by offset")]
    OwnOffsets {
        /// The pgmap's id.
        pgmap: u16,
    },
    /// The reference names a folio that is gone.
    #[error("offset {offset:#x} of pgmap {pgmap}: the folio is gone (put twice?)")]
    Stale {
        /// The id in the reference.
        pgmap: u16,
        /// The offset in the reference.
        offset: u64,
    },
    /// The folio's metadata does not name its pgmap. It was quarantined.
    #[error("offset {offset:#x} of pgmap {pgmap}: corrupt metadata, the folio is quarantined")]
    Corrupt {
        /// The pgmap's id.
        pgmap: u16,
        /// The folio's offset.
        offset: u64,
    },
    /// The folio was quarantined before.
    #[error("offset {offset:#x} of pgmap {pgmap} is quarantined")]
    Quarantined {
        /// The pgmap's id.
        pgmap: u16,
        /// The page.
        offset: u64,
    },
    /// The folio belongs to the process that this one was forked from.
    #[error("offset {offset:#x} of pgmap {pgmap} belongs to the parent process")]
    Forked {
        /// The pgmap's id.
        pgmap: u16,
        /// The page.
        offset: u64,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel refused.
    #[error(transparent)]
    Sys(#[from] SysError),
}

impl FolioError {
    /// Returns the `errno` value that stands for the error.
    pub fn errno(&self) -> i32 {
        match self {
            FolioError::OutOfBounds { .. } => libc::ERANGE,
            FolioError::Misaligned { .. }
            | FolioError::OrderTooSmall { .. }
            | FolioError::OrderTooLarge { .. } => libc::EINVAL,
            FolioError::Busy { .. } => libc::EBUSY,
            FolioError::Dying { .. } => libc::ESHUTDOWN,
            FolioError::Exhausted { .. } => libc::ENOMEM,
            FolioError::LimitReached { .. } => libc::EDQUOT,
            FolioError::NotClaimed { .. } => libc::EFAULT,
            FolioError::OwnOffsets { .. } => libc::EOPNOTSUPP,
            FolioError::Stale { .. } => libc::ESTALE,
            FolioError::Corrupt { .. } => libc::EUCLEAN,
            FolioError::Quarantined { .. } => libc::EHWPOISON,
            FolioError::Forked { .. } => libc::EOWNERDEAD,
            FolioError::Device(error) => device_errno(error),
            FolioError::Sys(error) => error.errno,
        }
    }
}

fn device_errno(error: &DeviceError) -> i32 {
    match error {
        DeviceError::Claimed { .. } => libc::EBUSY,
        DeviceError::Sys { source, .. } => source.errno,
        #[allow(unreachable_patterns, reason = "the device layer may gain variants")]
        _ => libc::EIO,
    }
}
