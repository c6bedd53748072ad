//! Folios: references to naturally aligned runs of pages.
//!
//! A [`Folio`] is one reference: cloning it takes another, dropping it puts it, the last one to go calls the
//! pgmap's free callback. A [`RawFolio`] is the same as a number, for C and for other structures; its operations
//! check a generation, so one that is used after its folio is gone gets an error. The methods of `Pgmap` that make
//! folios are here, because folios are the layer above. Uses `pgmap`; used by `tier` and everything above.
//!
//! Progress: as `pgmap` says. get and every put but the last are lock-free.

mod raw;
#[cfg(test)]
#[cfg(not(loom))]
mod stress;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use crate::pgmap::{FolioError, FolioFree, FolioInfo, FreedFolio};
pub use raw::RawFolio;

use crate::device::DeviceError;
use crate::offset::Lifetime;
use crate::pgmap::Pgmap;
use crate::pgmap::core::Core;
use crate::pgmap::ops::Place;
use crate::sys::bus_error;
use crate::units::{Order, PAGE_SHIFT};
use std::fmt;
use std::ptr::NonNull;

/// One reference to a live folio. Keeps the folio's pages and its pgmap alive.
///
/// A folio may be held and dropped by any thread.
pub struct Folio {
    core: &'static Core,
    place: Place,
}

impl Folio {
    /// Returns where the folio is in the pgmap's own mapping. The first call in an extent maps it.
    ///
    /// The memory may be shared with other holders: reads and writes through the pointer need the same care as
    /// those of any shared memory. It stays mapped as long as a reference is held.
    ///
    /// # Errors
    /// [`FolioError::Forked`] for a folio of the parent process, or the refusal to map.
    pub fn address(&self) -> Result<NonNull<u8>, FolioError> {
        self.core.address(self.place)
    }

    /// Returns the size in bytes.
    pub fn len_bytes(&self) -> usize {
        self.place.order.len_bytes() as usize
    }

    /// Returns the order.
    pub fn order(&self) -> Order {
        self.place.order
    }

    /// Returns the first page's offset in the pgmap.
    pub fn offset(&self) -> u64 {
        self.place.offset
    }

    /// Returns a handle of the pgmap.
    pub fn pgmap(&self) -> Pgmap {
        Pgmap::from_referenced(self.core)
    }

    /// Returns the number of references at this moment; 0 for a folio of the parent process.
    pub fn ref_count(&self) -> u32 {
        self.info().ref_count
    }

    /// Returns the word that a holder stored, 0 until then.
    pub fn user(&self) -> u64 {
        self.info().user
    }

    /// Stores a word with the folio, for the holder's own use; the free callback gets it.
    pub fn set_user(&self, user: u64) {
        // A folio of the parent process has no word here.
        let _ = self.core.set_user(self.place.offset, self.place.generation, user);
    }

    /// Returns the folio's bytes when this is the only reference to it, and `None` otherwise (or when it cannot be
    /// mapped). The bytes are what the last user left, unless [`zero`](Folio::zero) cleared them.
    pub fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        let addr = self.address().ok()?;
        if self.ref_count() != 1 {
            return None;
        }
        // SAFETY: the folio is mapped at `addr` for its length while a reference is held, which the borrow of `self`
        // ensures. This is the only reference: others can only be made from raw pointers or by offset, and those have a
        // count above 1 and get no slice.
        Some(unsafe { std::slice::from_raw_parts_mut(addr.as_ptr(), self.len_bytes()) })
    }

    /// Overwrites the folio with zeroes when this is the only reference; returns whether it did.
    pub fn zero(&mut self) -> bool {
        self.ref_count() == 1 && self.clear().is_ok()
    }

    /// Overwrites a folio that was just made with zeroes. Who has found it by its offset meanwhile reads them or what was
    /// there before.
    ///
    /// # Errors
    /// The refusal to map it, [`DeviceError::Gone`], [`DeviceError::Damaged`].
    pub(crate) fn clear(&self) -> Result<(), FolioError> {
        let addr = self.address()?;
        // SAFETY: mapped for its length, which the reference keeps so. Nobody has a slice of it: that takes the only
        // reference, which is this one or none.
        unsafe { bus_error::clear(addr, self.len_bytes()) }.map_err(|error| {
            let offset = (self.offset() << PAGE_SHIFT) + (error.addr - addr.as_ptr().addr()) as u64;
            FolioError::Device(DeviceError::unanswered(self.pgmap().device().name(), offset, error))
        })
    }

    /// Describes the folio. The count of a folio of the parent process is 0.
    pub fn info(&self) -> FolioInfo {
        self.core.look(self.place.offset, self.place.generation).unwrap_or(FolioInfo {
            pgmap: self.core.id(),
            offset: self.place.offset,
            order: self.place.order,
            ref_count: 0,
            user: 0,
            address: None,
        })
    }

    /// Turns the reference into a number. The reference is put with [`RawFolio::put`], or by dropping what
    /// [`from_raw`](Folio::from_raw) makes of it.
    pub fn into_raw(self) -> RawFolio {
        let raw = RawFolio::new(self.core.id(), self.place.generation, self.place.offset);
        std::mem::forget(self);
        raw
    }

    /// Turns a number back into the reference that it stands for.
    ///
    /// # Safety
    /// - `raw` came from [`into_raw`](Folio::into_raw), or a [`RawFolio::get`] succeeded on it;
    /// - that reference was not put, and no copy of `raw` is used to put it from now on.
    pub unsafe fn from_raw(raw: RawFolio) -> Folio {
        let core = Core::find(raw.pgmap()).expect("the caller's reference keeps the pgmap");
        let looked = core.look(raw.offset(), raw.generation());
        // In a forked child the parent's folios have no metadata; the smallest order does no harm there.
        let order = looked.map_or(Order::PAGE, |info| info.order);
        Folio { core, place: Place { offset: raw.offset(), generation: raw.generation(), order } }
    }
}

impl Clone for Folio {
    /// Takes another reference. Aborts when the count overflows.
    fn clone(&self) -> Folio {
        // A folio of the parent process has no count here, and the clone is as void as this one.
        let _ = self.core.get(self.place.offset, self.place.generation);
        Folio { core: self.core, place: self.place }
    }
}

impl Drop for Folio {
    fn drop(&mut self) {
        // Refused for folios of the parent process and quarantined ones: there is nothing to put then.
        let _ = self.core.put(self.place.offset, self.place.generation);
    }
}

impl fmt::Debug for Folio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info().fmt(f)
    }
}

impl Pgmap {
    /// Makes the run at `offset` a folio with one reference. Every page of it must be idle; with the built-in
    /// allocator the run is taken there as well. Extents that the run touches are claimed first.
    ///
    /// # Errors
    /// [`FolioError`]: each check, a busy page, a dying pgmap and a refused claim are distinguishable. Nothing is
    /// changed then.
    pub fn request_folio(&self, offset: u64, order: Order) -> Result<Folio, FolioError> {
        let place = self.core().request(offset, order)?;
        Ok(Folio { core: self.core(), place })
    }

    /// Makes a free run a folio with one reference; the built-in allocator chooses it, and more of the device is
    /// claimed when nothing fits.
    ///
    /// # Errors
    /// [`FolioError::Exhausted`] when nothing fits and nothing more can be claimed, [`FolioError::OwnOffsets`]
    /// without the built-in allocator, and the checks of [`request_folio`](Pgmap::request_folio).
    pub fn alloc_folio(&self, order: Order, lifetime: Lifetime) -> Result<Folio, FolioError> {
        let place = self.core().alloc(order, lifetime)?;
        Ok(Folio { core: self.core(), place })
    }

    /// As [`alloc_folio`](Pgmap::alloc_folio), with every byte zero. 2 MiB come from what is
    /// [kept zeroed](Pgmap::keep_zeroed) if there is any; the rest is cleared now, large folios past the caches.
    ///
    /// # Errors
    /// As for [`alloc_folio`](Pgmap::alloc_folio), and the refusal to map the folio.
    pub fn alloc_folio_zeroed(&self, order: Order, lifetime: Lifetime) -> Result<Folio, FolioError> {
        let (folio, is_zero) = self.alloc_folio_prezeroed(order, lifetime)?;
        if !is_zero {
            folio.clear()?;
        }
        Ok(folio)
    }

    /// Makes a folio that is to be zero and may be already, which it also returns. Who gets one that is not
    /// [clears](Folio::clear) it before anybody else sees it.
    pub(crate) fn alloc_folio_prezeroed(
        &self,
        order: Order,
        lifetime: Lifetime,
    ) -> Result<(Folio, bool), FolioError> {
        let (place, is_zero) = self.core().alloc_prezeroed(order, lifetime)?;
        Ok((Folio { core: self.core(), place }, is_zero))
    }

    /// Makes up to `count` folios of one order, passes each to `out` and returns how many there were.
    ///
    /// # Errors
    /// As for [`alloc_folio`](Pgmap::alloc_folio), only when there was not even one.
    pub fn alloc_folios(
        &self,
        order: Order,
        lifetime: Lifetime,
        count: usize,
        out: &mut dyn FnMut(Folio),
    ) -> Result<usize, FolioError> {
        many(count, out, || self.alloc_folio(order, lifetime))
    }

    /// As [`alloc_folios`](Pgmap::alloc_folios), with every byte zero.
    ///
    /// # Errors
    /// As for [`alloc_folio_zeroed`](Pgmap::alloc_folio_zeroed), only when there was not even one.
    pub fn alloc_folios_zeroed(
        &self,
        order: Order,
        lifetime: Lifetime,
        count: usize,
        out: &mut dyn FnMut(Folio),
    ) -> Result<usize, FolioError> {
        many(count, out, || self.alloc_folio_zeroed(order, lifetime))
    }

    /// Takes a reference to the live folio that covers `offset`. `None` when the page is idle or the pgmap dying:
    /// to lose the race against a put or a kill is nothing unusual.
    pub fn try_get_folio(&self, offset: u64) -> Option<Folio> {
        let place = self.core().try_get(offset)?;
        Some(Folio { core: self.core(), place })
    }
}

/// Passes up to `count` folios to `out` and returns how many there were; fails when there is not even one.
fn many(
    count: usize,
    out: &mut dyn FnMut(Folio),
    alloc: impl Fn() -> Result<Folio, FolioError>,
) -> Result<usize, FolioError> {
    for made in 0..count {
        match alloc() {
            Ok(folio) => out(folio),
            Err(error) if made == 0 => return Err(error),
            Err(_) => return Ok(made),
        }
    }
    Ok(count)
}
