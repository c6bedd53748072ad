//! The pgmap: a device range as a reference-counted object that hands out folios.
//!
//! [`Pgmap`] is a handle; the last handle to go kills the pgmap, and every live folio keeps it alive. Binding
//! claims nothing: extents of 128 MiB are claimed from the device, scrubbed and given metadata when first
//! needed. `core` is what outlives a pgmap, `body` what it is made of, `extents` claims, `scrub` what becomes of their bytes, `direct` the pgmap's own
//! mapping, `table` and `word` the folio metadata, `ops` the steps of request and put, `prezero` what is cleared ahead,
//! `life` kill and drain, `shrink` what is given back meanwhile, `fork` the child's side. Uses `device`, `offset`, `sync`; the layer above, `folio`, wraps references.
//!
//! Progress: taking and dropping references that are not the last is lock-free. Request, the last put and
//! try_get hold short locks; claiming an extent holds one lock of the pgmap for as long as the scrub takes.

mod body;
pub(crate) mod core;
mod direct;
mod error;
mod extents;
pub(crate) mod fork;
#[cfg(test)]
#[cfg(not(loom))]
mod fork_tests;
mod life;
#[cfg(all(test, loom))]
mod loom_table;
pub(crate) mod ops;
pub(crate) mod prezero;
#[cfg(test)]
#[cfg(not(loom))]
mod prezero_tests;
mod scrub;
#[cfg(test)]
#[cfg(not(loom))]
mod scrub_tests;
mod shrink;
#[cfg(test)]
#[cfg(not(loom))]
mod shrink_tests;
mod stats;
pub(crate) mod table;
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) mod testing;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
pub(crate) mod word;

pub use error::{DrainError, FolioError, PgmapError};
pub use life::PgmapState;
pub use stats::PgmapStats;

use self::body::Body;
use self::core::Core;
use crate::device::Device;
use crate::units::Order;
use std::fmt;
use std::sync::Arc;

/// A device range that hands out folios. Clones are handles to the same pgmap.
///
/// Dropping the last handle kills the pgmap; its memory goes with the last folio.
pub struct Pgmap {
    core: &'static Core,
}

/// How a pgmap is set up.
#[derive(Clone)]
pub struct PgmapOptions {
    /// What the pgmap is called; the device's name when empty.
    pub name: String,
    /// The smallest order that it hands out.
    pub min_order: Order,
    /// The most pages that it claims from the device; all of them when `None`. Rounded down to the device's
    /// granule.
    pub limit_pages: Option<u64>,
    /// Who keeps track of free offsets.
    pub offsets: OffsetTracking,
    /// Whether what is freed keeps its memory, for the next folio in its place, rather than to give it back to the
    /// system. The memory of device-dax is always kept. Concerns folios of 2 MiB and more; smaller ones always keep it.
    pub retain_memory: bool,
    /// Called at each folio's last put.
    pub on_free: Option<Arc<dyn FolioFree>>,
}

impl Default for PgmapOptions {
    fn default() -> PgmapOptions {
        PgmapOptions {
            name: String::new(),
            min_order: Order::PAGE,
            limit_pages: None,
            offsets: OffsetTracking::default(),
            retain_memory: false,
            on_free: None,
        }
    }
}

/// Who keeps track of free offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffsetTracking {
    /// The built-in allocator. When the free callback runs another thread may have the same offset already.
    #[default]
    Provided,
    /// The caller, who requests folios by offset. An offset stays the caller's after its free callback, until the
    /// caller requests it again.
    Own,
}

/// What is called when a folio's last reference goes.
pub trait FolioFree: Send + Sync {
    /// Takes note that a folio is gone. Called exactly once for each, by the thread that put last, with the count
    /// at 0 and no lock held. May request the same offset again. Under the preload library it must not allocate.
    fn folio_free(&self, freed: FreedFolio);
}

/// A folio that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreedFolio {
    /// Id of the pgmap.
    pub pgmap: u16,
    /// First page.
    pub offset: u64,
    /// Size.
    pub order: Order,
    /// The word that its holder stored.
    pub user: u64,
}

/// A live folio, as it was at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolioInfo {
    /// Id of the pgmap.
    pub pgmap: u16,
    /// First page.
    pub offset: u64,
    /// Size.
    pub order: Order,
    /// References.
    pub ref_count: u32,
    /// The word that its holder stored, 0 until then.
    pub user: u64,
    /// Where it is in the pgmap's own mapping, once that is mapped.
    pub address: Option<usize>,
}

impl Pgmap {
    /// Makes a pgmap of the device. Claims nothing and maps nothing: that happens extent by extent, when needed.
    /// Costs microseconds and a few pages of memory, whatever the device's size.
    ///
    /// # Errors
    /// [`PgmapError`] when the device is too small or too large, or the kernel refuses the address space.
    pub fn bind(device: Arc<dyn Device>, options: PgmapOptions) -> Result<Pgmap, PgmapError> {
        let (core, id) = Core::reserve()?;
        match Body::new(id, device, options) {
            Ok(body) => {
                core.start(id, body);
                Ok(Pgmap { core })
            }
            Err(error) => {
                core.cancel(id);
                Err(error)
            }
        }
    }

    /// Returns the handle of the pgmap with this id, if there is one.
    pub fn from_id(id: u16) -> Option<Pgmap> {
        Core::try_handle(id).map(|core| Pgmap { core })
    }

    /// Returns a handle of every pgmap. Allocates.
    pub fn all() -> Vec<Pgmap> {
        Core::all().filter_map(|core| Pgmap::from_id(core.id())).collect()
    }

    /// Returns the pgmap's id, 1..=65535. Ids are not used again soon.
    pub fn id(&self) -> u16 {
        self.body().id
    }

    /// Returns what the pgmap is called.
    pub fn name(&self) -> &str {
        &self.body().name
    }

    /// Returns the device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.body().device
    }

    /// Returns the number of pages of the device (whole granules).
    pub fn nr_pages(&self) -> u64 {
        self.body().nr_pages
    }

    /// Returns the smallest order that is handed out.
    pub fn min_order(&self) -> Order {
        self.body().min_order
    }

    /// Takes a reference, as a request does first, and drops it at once; returns whether the pgmap was live. For benches:
    /// no reference is handed out, as one that is held over a fork would have to be void in the child.
    #[doc(hidden)]
    #[inline]
    pub fn get_and_put(&self) -> bool {
        let is_live = self.core.refs.tryget_live();
        if is_live {
            self.core.unpin();
        }
        is_live
    }

    pub(crate) fn core(&self) -> &'static Core {
        self.core
    }

    pub(crate) fn body(&self) -> &Body {
        // SAFETY: the handle holds a share of the life.
        unsafe { self.core.body() }
    }

    /// Makes a handle from a core of which the caller holds a reference.
    pub(crate) fn from_referenced(core: &'static Core) -> Pgmap {
        core.add_handle();
        Pgmap { core }
    }
}

impl Clone for Pgmap {
    fn clone(&self) -> Pgmap {
        Pgmap::from_referenced(self.core)
    }
}

impl Drop for Pgmap {
    fn drop(&mut self) {
        self.core.drop_handle();
    }
}

impl fmt::Debug for Pgmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pgmap").field("id", &self.id()).field("name", &self.name()).finish_non_exhaustive()
    }
}

impl fmt::Debug for PgmapOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgmapOptions")
            .field("name", &self.name)
            .field("min_order", &self.min_order)
            .field("limit_pages", &self.limit_pages)
            .field("offsets", &self.offsets)
            .field("retain_memory", &self.retain_memory)
            .finish_non_exhaustive()
    }
}
