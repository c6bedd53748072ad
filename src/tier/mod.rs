//! Tiers: pgmaps of like speed, and what of them is in use.
//!
//! A [`Tier`] hands out folios of whichever of its pgmaps has room. Its capacity is the sum of theirs and is kept
//! exactly: a folio that does not fit is refused. Uses `pgmap` and `folio`; used by the runtime.

use crate::counters::TierCounters;
use crate::device::DeviceKind;
use crate::folio::{Folio, FolioError};
use crate::offset::Lifetime;
use crate::pgmap::{Pgmap, PgmapStats};
use crate::units::Order;
use std::sync::atomic::Ordering;

/// What a tier is made of.
pub type TierKind = DeviceKind;

/// Pgmaps of like speed.
#[derive(Debug)]
pub struct Tier {
    name: &'static str,
    pgmaps: Vec<Pgmap>,
    watermark_bytes: u64,
}

impl Tier {
    /// Makes a tier. `watermark_bytes` is what placement by filling leaves free.
    pub(crate) fn new(name: &'static str, pgmaps: Vec<Pgmap>, watermark_bytes: u64) -> Tier {
        Tier { name, pgmaps, watermark_bytes }
    }

    /// Returns the name: `fast` or `slow`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns what the tier is made of: the kind of its first device.
    pub fn kind(&self) -> TierKind {
        self.pgmaps.first().map_or(DeviceKind::Dram, |pgmap| pgmap.device().kind())
    }

    /// Returns the pgmaps.
    pub fn pgmaps(&self) -> &[Pgmap] {
        &self.pgmaps
    }

    /// Returns how many bytes the tier can hold.
    pub fn capacity_bytes(&self) -> u64 {
        self.pgmaps.iter().map(|pgmap| pgmap.stats().capacity_bytes).sum()
    }

    /// Returns how many bytes are in folios.
    pub fn used_bytes(&self) -> u64 {
        self.pgmaps.iter().map(|pgmap| pgmap.stats().used_bytes).sum()
    }

    /// Returns how many bytes are not in folios.
    pub fn free_bytes(&self) -> u64 {
        self.capacity_bytes().saturating_sub(self.used_bytes())
    }

    /// Writes the figures of all pgmaps, added up.
    pub(crate) fn write_figures(&self, counters: &TierCounters) {
        let mut sum = PgmapStats::default();
        for stats in self.pgmaps.iter().map(Pgmap::stats) {
            sum.used_bytes += stats.used_bytes;
            sum.peak_bytes += stats.peak_bytes;
            sum.allocations += stats.allocations;
            sum.failures += stats.failures;
            for (total, folios) in sum.folios_by_order.iter_mut().zip(stats.folios_by_order) {
                *total += folios;
            }
        }
        // Relaxed throughout: figures, each for itself.
        counters.capacity_bytes.store(self.capacity_bytes(), Ordering::Relaxed);
        counters.used_bytes.store(sum.used_bytes, Ordering::Relaxed);
        if self.pgmaps.len() == 1 {
            counters.peak_bytes.store(sum.peak_bytes, Ordering::Relaxed);
        } else {
            // The peaks of several pgmaps need not have been at one time.
            counters.peak_bytes.fetch_max(sum.used_bytes, Ordering::Relaxed);
        }
        counters.allocations.store(sum.allocations, Ordering::Relaxed);
        counters.failures.store(sum.failures, Ordering::Relaxed);
        for (counter, folios) in counters.folios_by_order.iter().zip(sum.folios_by_order) {
            counter.store(folios, Ordering::Relaxed);
        }
    }

    /// Whether a folio of `len_bytes` would leave the watermark free.
    pub(crate) fn is_above_watermark(&self, len_bytes: u64) -> bool {
        self.free_bytes() >= len_bytes + self.watermark_bytes
    }

    /// Hands out a folio.
    ///
    /// # Errors
    /// The last pgmap's refusal when none has room.
    pub(crate) fn alloc(&self, order: Order, lifetime: Lifetime) -> Result<Folio, FolioError> {
        self.first_to(|pgmap| pgmap.alloc_folio(order, lifetime))
    }

    /// Hands out a folio that is to be zero, and whether it is already.
    ///
    /// # Errors
    /// As for [`alloc`](Tier::alloc).
    pub(crate) fn alloc_prezeroed(
        &self,
        order: Order,
        lifetime: Lifetime,
    ) -> Result<(Folio, bool), FolioError> {
        self.first_to(|pgmap| pgmap.alloc_folio_prezeroed(order, lifetime))
    }

    fn first_to<F>(&self, alloc: impl Fn(&Pgmap) -> Result<F, FolioError>) -> Result<F, FolioError> {
        let mut refusal = None;
        for pgmap in &self.pgmaps {
            match alloc(pgmap) {
                Ok(folio) => return Ok(folio),
                Err(error) => refusal = Some(error),
            }
        }
        Err(refusal.expect("a tier has at least one pgmap"))
    }

    /// Returns the pgmap whose own mapping holds `addr`, and the page's offset there.
    pub(crate) fn direct_offset(&self, addr: *const u8) -> Option<(&Pgmap, u64)> {
        self.pgmaps.iter().find_map(|pgmap| pgmap.offset_of(addr).map(|offset| (pgmap, offset)))
    }

    /// Whether a pgmap is one of the tier's.
    pub(crate) fn has_pgmap(&self, id: u16) -> bool {
        self.pgmaps.iter().any(|pgmap| pgmap.id() == id)
    }
}
