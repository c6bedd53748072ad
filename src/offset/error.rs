//! What the offset allocator can refuse.

use crate::error::SysError;
use crate::units::{Bytes, Order, PAGE_SIZE};

/// A request that the offset allocator refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OffsetError {
    /// No free run of this order exists.
    #[error("no free run of {order}: {} are free in smaller pieces", Bytes(free_pages * PAGE_SIZE as u64))]
    Exhausted {
        /// The order that was asked for.
        order: Order,
        /// Pages that were free at the time.
        free_pages: u64,
    },
    /// A page of the run is taken.
    #[error("offset {offset:#x}: a page of the {order} run is taken")]
    Busy {
        /// First page of the run.
        offset: u64,
        /// Its order.
        order: Order,
    },
    /// The run does not lie in the range.
    #[error("offset {offset:#x}, {order}, does not lie below the end at page {nr_pages:#x}")]
    OutOfBounds {
        /// First page of the run.
        offset: u64,
        /// Its order.
        order: Order,
        /// Pages in the range.
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
    /// The order is below the smallest that is handed out.
    #[error("{order} is below the smallest order here, {min_order}")]
    OrderTooSmall {
        /// The order that was asked for.
        order: Order,
        /// The smallest one.
        min_order: Order,
    },
    /// No run begins at the offset.
    #[error("offset {offset:#x}: no allocated run begins here (freed twice?)")]
    NotAllocated {
        /// The page.
        offset: u64,
    },
    /// The run that begins at the offset has another order.
    #[error("offset {offset:#x} was allocated with order {actual}, not {order}")]
    WrongOrder {
        /// First page of the run.
        offset: u64,
        /// The order that was given.
        order: Order,
        /// The order that the run has.
        actual: u8,
    },
    /// The range has no such extent.
    #[error("extent {extent} does not exist: the range has {nr_extents}")]
    NoSuchExtent {
        /// The extent's index.
        extent: usize,
        /// Extents in the range.
        nr_extents: usize,
    },
    /// The extent was added before.
    #[error("extent {extent} is present already")]
    ExtentPresent {
        /// The extent's index.
        extent: usize,
    },
    /// The extent, or the part of it that is asked for, was not added.
    #[error("extent {extent} is not present")]
    ExtentAbsent {
        /// The extent's index.
        extent: usize,
    },
    /// The extent is not wholly free.
    #[error("extent {extent} has {used_pages} pages in use")]
    ExtentInUse {
        /// The extent's index.
        extent: usize,
        /// Pages that are not free.
        used_pages: u64,
    },
    /// The kernel refused memory for metadata.
    #[error("metadata: {0}")]
    Sys(#[from] SysError),
}

/// A counter that does not agree with a full scan. Found by
/// [`OffsetAllocator::validate`](super::OffsetAllocator::validate); always a defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("extent {extent}: {what} is {recorded}, a scan finds {counted}")]
pub struct Inconsistency {
    /// The extent's index.
    pub extent: usize,
    /// The counter or rule.
    pub what: &'static str,
    /// What the allocator had recorded.
    pub recorded: u64,
    /// What the scan found.
    pub counted: u64,
}
