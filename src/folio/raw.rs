//! References as numbers.

use super::{FolioError, FolioInfo};
use crate::pgmap::core::Core;
use std::num::NonZeroU64;

const OFFSET_BITS: u32 = 36;
const GENERATION_BITS: u32 = 12;
const PGMAP_SHIFT: u32 = OFFSET_BITS + GENERATION_BITS;

/// A folio reference as a number that is never 0: pgmap id (16 bits), generation (12), offset (36).
///
/// Copies do not count: each successful [`get`](RawFolio::get) or [`try_get`](RawFolio::try_get) makes one
/// reference, each [`put`](RawFolio::put) consumes one. Once the folio is gone every operation is an error, until
/// 4096 requests later in the same 2 MiB the generation comes round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct RawFolio(NonZeroU64);

impl RawFolio {
    pub(super) fn new(pgmap: u16, generation: u16, offset: u64) -> RawFolio {
        let bits = u64::from(pgmap) << PGMAP_SHIFT
            | u64::from(generation) << OFFSET_BITS
            | offset & ((1 << OFFSET_BITS) - 1);
        RawFolio(NonZeroU64::new(bits).expect("pgmap ids are never 0"))
    }

    /// Returns the number.
    pub fn to_bits(self) -> u64 {
        self.0.get()
    }

    /// Makes a reference of a number, or `None` of 0.
    ///
    /// # Safety
    /// The number came from [`to_bits`](RawFolio::to_bits). A made-up one could name a live folio and put a
    /// reference that is somebody else's.
    pub unsafe fn from_bits(bits: u64) -> Option<RawFolio> {
        NonZeroU64::new(bits).map(RawFolio)
    }

    /// Returns the id of the pgmap.
    pub fn pgmap(self) -> u16 {
        (self.to_bits() >> PGMAP_SHIFT) as u16
    }

    /// Returns the first page's offset in the pgmap.
    pub fn offset(self) -> u64 {
        self.to_bits() & ((1 << OFFSET_BITS) - 1)
    }

    pub(super) fn generation(self) -> u16 {
        (self.to_bits() >> OFFSET_BITS) as u16 & ((1 << GENERATION_BITS) - 1)
    }

    /// Takes another reference; also while the pgmap is dying. The caller holds one.
    ///
    /// # Errors
    /// [`FolioError::Stale`] when the folio is gone, [`FolioError::Forked`], [`FolioError::Corrupt`].
    pub fn get(self) -> Result<(), FolioError> {
        self.with_pin(|core| core.get(self.offset(), self.generation()))
    }

    /// Takes a reference if the folio is live and its pgmap was not killed. The caller need not hold one.
    ///
    /// # Errors
    /// As for [`get`](RawFolio::get), and [`FolioError::Dying`].
    pub fn try_get(self) -> Result<(), FolioError> {
        let Some(core) = Core::pin_live(self.pgmap()) else {
            return self.with_pin(|_| Err(FolioError::Dying { pgmap: self.pgmap() }));
        };
        let outcome = core.get(self.offset(), self.generation());
        core.unpin();
        outcome
    }

    /// Drops a reference; after the last one the pages are idle and the free callback has run.
    ///
    /// # Errors
    /// [`FolioError::Stale`] when the folio is gone already: it was put once too often. Nothing is changed then.
    pub fn put(self) -> Result<(), FolioError> {
        self.with_pin(|core| core.put(self.offset(), self.generation()).map(drop))
    }

    /// Describes the folio.
    ///
    /// # Errors
    /// As for [`get`](RawFolio::get).
    pub fn info(self) -> Result<FolioInfo, FolioError> {
        self.with_pin(|core| core.look(self.offset(), self.generation()))
    }

    /// Stores the folio's user word. The caller holds a reference.
    ///
    /// # Errors
    /// As for [`get`](RawFolio::get).
    pub fn set_user(self, user: u64) -> Result<(), FolioError> {
        self.with_pin(|core| core.set_user(self.offset(), self.generation(), user))
    }

    /// Runs `f` while the pgmap cannot go away. One that is gone, or has drained, has no live folio.
    fn with_pin<R>(self, f: impl FnOnce(&'static Core) -> Result<R, FolioError>) -> Result<R, FolioError> {
        let Some(core) = Core::pin(self.pgmap()) else { return Err(self.why_unpinned()) };
        let outcome = f(core);
        core.unpin();
        outcome
    }

    /// Says why a drained pgmap has no such folio: it is gone, or it is the parent process's.
    fn why_unpinned(self) -> FolioError {
        let stale = FolioError::Stale { pgmap: self.pgmap(), offset: self.offset() };
        Core::with_body(self.pgmap(), |body| body.check_live(self.offset()).err()).flatten().unwrap_or(stale)
    }
}
