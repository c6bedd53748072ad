//! What a pgmap is made of while it lives.

use super::direct::Direct;
use super::extents::{ExtentSlot, Grow};
use super::prezero::Prezeroed;
use super::stats::Counters;
use super::table::FolioTable;
use super::{FolioFree, OffsetTracking, PgmapError, PgmapOptions};
use crate::device::{Device, DeviceKind};
use crate::error::SysError;
use crate::offset::{EXTENT_PAGES, OffsetAllocator, OffsetError};
use crate::sync::{LazySlice, Mutex};
use crate::sys::mm;
use crate::units::{MAX_ORDER, Order, PAGE_SHIFT, PAGE_SIZE};
use crossbeam::utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

/// Bits of an offset in a raw reference: 256 TiB of pages.
pub(crate) const OFFSET_BITS: u32 = 36;

/// The mortal part of a pgmap.
pub(crate) struct Body {
    pub(crate) id: u16,
    pub(super) name: String,
    pub(super) device: Arc<dyn Device>,
    pub(super) on_free: Option<Arc<dyn FolioFree>>,
    pub(super) nr_pages: u64,
    pub(super) min_order: Order,
    pub(super) max_order: Order,
    /// The most pages that may be claimed: a multiple of the granule, at most `nr_pages`. Changed by `set_limit`.
    pub(super) limit_pages: AtomicU64,
    pub(super) granule_pages: u64,
    /// Pages in an extent: what the allocator calls one, or a granule if that is larger.
    pub(super) extent_pages: u64,
    pub(crate) table: FolioTable,
    /// `None` when the caller tracks offsets.
    pub(super) allocator: Option<OffsetAllocator>,
    pub(super) extents: LazySlice<ExtentSlot>,
    /// One past the highest extent that was ever claimed. Grows only, under `grow`.
    pub(super) high: AtomicUsize,
    pub(super) grow: Mutex<Grow>,
    pub(super) direct: Direct,
    pub(super) prezeroed: Prezeroed,
    pub(super) retains_memory: bool,
    pub(super) counters: CachePadded<Counters>,
    /// Set when the claims were given back for good.
    pub(super) is_dead: AtomicBool,
    /// Whether the user was told why the device can't be used.
    pub(super) is_told: AtomicBool,
    /// Set in a child whose parent keeps what was claimed.
    pub(super) is_forked: AtomicBool,
}

impl Body {
    pub(super) fn new(id: u16, device: Arc<dyn Device>, options: PgmapOptions) -> Result<Body, PgmapError> {
        check_pages(mm::kernel_page_bytes())?;
        let granule_bytes = device.align_bytes().max(PAGE_SIZE as u64);
        let len_bytes = device.len_bytes() / granule_bytes * granule_bytes;
        let name = || device.name().to_owned();
        if len_bytes == 0 {
            return Err(PgmapError::DeviceTooSmall {
                device: name(),
                len_bytes: device.len_bytes(),
                align_bytes: granule_bytes,
            });
        }
        let nr_pages = len_bytes >> PAGE_SHIFT;
        if nr_pages > 1 << OFFSET_BITS {
            return Err(PgmapError::DeviceTooLarge { device: name(), len_bytes });
        }
        let min_order = options.min_order;
        if min_order.nr_pages() > nr_pages {
            return Err(PgmapError::MinOrderTooLarge { min_order, len_bytes });
        }
        let granule_pages = granule_bytes >> PAGE_SHIFT;
        let extent_pages = EXTENT_PAGES.max(granule_pages);
        let nr_extents = nr_pages.div_ceil(extent_pages) as usize;
        let limit_pages = options.limit_pages.unwrap_or(nr_pages).min(nr_pages);
        let allocator = match options.offsets {
            OffsetTracking::Provided => {
                Some(OffsetAllocator::new(nr_pages, min_order).map_err(|error| match error {
                    OffsetError::Sys(error) => PgmapError::Sys(error),
                    // Only the kernel refuses a new allocator.
                    _ => PgmapError::Sys(SysError { call: "mmap", errno: libc::ENOMEM }),
                })?)
            }
            OffsetTracking::Own => None,
        };
        Ok(Body {
            id,
            name: if options.name.is_empty() { name() } else { options.name },
            on_free: options.on_free,
            nr_pages,
            min_order,
            max_order: Order::new((nr_pages.ilog2() as u8).min(MAX_ORDER)).unwrap_or(Order::GIANT),
            limit_pages: AtomicU64::new(limit_pages / granule_pages * granule_pages),
            granule_pages,
            extent_pages,
            table: FolioTable::new(id, nr_pages)?,
            allocator,
            extents: LazySlice::populated(nr_extents)?,
            high: AtomicUsize::new(0),
            grow: Mutex::new(Grow::default()),
            direct: Direct::new(len_bytes, granule_bytes).map_err(|source| PgmapError::NoAddresses {
                device: name(),
                len_bytes,
                limit_bytes: mm::address_limit(),
                source,
            })?,
            prezeroed: Prezeroed::new(),
            retains_memory: options.retain_memory,
            counters: CachePadded::new(Counters::new()?),
            is_dead: AtomicBool::new(false),
            is_told: AtomicBool::new(false),
            is_forked: AtomicBool::new(false),
            device,
        })
    }

    /// Returns whether each mapping of the device has memory of its own.
    pub(super) fn is_private(&self) -> bool {
        matches!(self.device.kind(), DeviceKind::Dram | DeviceKind::Node)
    }

    pub(super) fn nr_extents(&self) -> usize {
        self.nr_pages.div_ceil(self.extent_pages) as usize
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.release_claims();
    }
}

/// Checks that the kernel's pages are those of offsets and orders. AArch64 kernels may have longer ones.
fn check_pages(page_bytes: u64) -> Result<(), PgmapError> {
    if page_bytes == PAGE_SIZE as u64 { Ok(()) } else { Err(PgmapError::KernelPages { page_bytes }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_of_other_pages_is_refused() {
        assert_eq!(check_pages(4096), Ok(()));
        let error = check_pages(64 << 10).unwrap_err();
        assert!(error.to_string().contains("64 KiB"), "{error}");
        assert_eq!(error.errno(), libc::ENOTSUP);
    }
}
