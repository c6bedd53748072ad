//! Tiers: pgmaps of like speed, and what of them is in use.
//!
//! A [`Tier`] hands out folios of whichever of its pgmaps has room. Its capacity is the sum of theirs and is kept
//! exactly: a folio that does not fit is refused. Pgmaps come and go at run time: one that was killed serves nothing more and
//! counts for what is still in use of it, until it is taken out. Uses `pgmap` and `folio`; used by the runtime.
//!
//! The list of pgmaps is replaced as a whole, under a lock that is taken in service only; readers take a reference to the
//! list that is in force. `stripe` chooses among several.

mod stripe;

use crate::counters::TierCounters;
use crate::device::DeviceKind;
use crate::folio::{Folio, FolioError};
use crate::offset::Lifetime;
use crate::pgmap::{Pgmap, PgmapStats};
use crate::sync::{Mutex, service};
use crate::sys::cpu;
use crate::topology::Topology;
use crate::units::Order;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use stripe::Candidate;

/// What a tier is made of.
pub type TierKind = DeviceKind;

/// The most pgmaps that a tier has at a time.
const MOST_PGMAPS: usize = 64;

/// Pgmaps of like speed.
pub struct Tier {
    name: &'static str,
    kind: TierKind,
    members: Mutex<Arc<[Member]>>,
    /// The id of the pgmap that served last. Relaxed: a hint for the next choice.
    current: AtomicU32,
    /// Relaxed: a setting for itself.
    watermark_bytes: AtomicU64,
}

/// A pgmap of a tier.
#[derive(Clone)]
struct Member {
    pgmap: Pgmap,
    /// The distance from each processor; empty where the kernel does not tell.
    distances: Arc<[u8]>,
}

impl Member {
    fn new(pgmap: Pgmap, topology: &Topology) -> Member {
        let distances = pgmap.device().near_node().map_or_else(Vec::new, |node| distances(topology, node));
        Member { pgmap, distances: distances.into() }
    }

    fn distance(&self, cpu: usize) -> u8 {
        self.distances.get(cpu).copied().unwrap_or(u8::MAX)
    }
}

/// Returns the distance of a node from each processor.
fn distances(topology: &Topology, node: u32) -> Vec<u8> {
    let mut distances = Vec::new();
    for from in &topology.nodes {
        let Some(distance) = topology.distance(from.id, node) else { continue };
        for &cpu in &from.cpus {
            let len = distances.len().max(cpu as usize + 1);
            distances.resize(len, u8::MAX);
            distances[cpu as usize] = distance.min(u32::from(u8::MAX)) as u8;
        }
    }
    distances
}

impl Tier {
    /// Makes a tier of at least one pgmap. `watermark_bytes` is what placement by filling leaves free.
    pub(crate) fn new(name: &'static str, pgmaps: Vec<Pgmap>, watermark_bytes: u64) -> Tier {
        let kind = pgmaps.first().map_or(DeviceKind::Dram, |pgmap| pgmap.device().kind());
        let topology = if pgmaps.len() > 1 { Topology::read(Path::new("/")) } else { Topology::default() };
        let members: Arc<[Member]> = pgmaps.into_iter().map(|pgmap| Member::new(pgmap, &topology)).collect();
        Tier {
            name,
            kind,
            members: Mutex::new(members),
            current: AtomicU32::new(0),
            watermark_bytes: AtomicU64::new(watermark_bytes),
        }
    }

    /// Returns the name: `fast` or `slow`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns what the tier is made of: the kind of its first device.
    pub fn kind(&self) -> TierKind {
        self.kind
    }

    /// Returns handles of the pgmaps that the tier has now.
    pub fn pgmaps(&self) -> Vec<Pgmap> {
        service::run(|| self.members().iter().map(|member| member.pgmap.clone()).collect())
    }

    /// The list in force.
    fn members(&self) -> Arc<[Member]> {
        service::run(|| Arc::clone(&self.members.lock()))
    }

    /// Adds a pgmap. Returns `false`, and lets it go, when the tier has as many as it can have.
    pub(crate) fn add(&self, pgmap: Pgmap) -> bool {
        service::run(|| {
            let topology = Topology::read(Path::new("/"));
            let mut members = self.members.lock();
            if members.len() == MOST_PGMAPS {
                return false;
            }
            // The first may have been alone, when distances did not matter.
            let all = members.iter().map(|member| member.pgmap.clone()).chain([pgmap]);
            *members = all.map(|pgmap| Member::new(pgmap, &topology)).collect();
            true
        })
    }

    /// Takes a pgmap out of the tier.
    pub(crate) fn remove(&self, id: u16) {
        service::run(|| {
            let mut members = self.members.lock();
            let rest = members.iter().filter(|member| member.pgmap.id() != id).cloned().collect();
            let former = std::mem::replace(&mut *members, rest);
            drop(members);
            // The last handle takes locks of its own.
            drop(former);
        });
    }

    /// Returns how many bytes the tier can hold. What was killed counts as much as is in use of it.
    pub fn capacity_bytes(&self) -> u64 {
        self.members().iter().map(|member| capacity_bytes(&member.pgmap, &member.pgmap.stats())).sum()
    }

    /// Returns how many bytes are in folios.
    pub fn used_bytes(&self) -> u64 {
        self.members().iter().map(|member| member.pgmap.stats().used_bytes).sum()
    }

    /// Returns how many bytes are not in folios.
    pub fn free_bytes(&self) -> u64 {
        self.capacity_bytes().saturating_sub(self.used_bytes())
    }

    /// Returns how many bytes of metadata the pgmaps have.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        self.members().iter().map(|member| member.pgmap.stats().metadata_bytes).sum()
    }

    /// Returns how many bytes of others than the pgmap `id` are not in folios.
    pub(crate) fn free_bytes_beside(&self, id: u16) -> u64 {
        let others = self.members();
        let others = others.iter().map(|member| &member.pgmap).filter(|pgmap| pgmap.id() != id);
        others.map(free_bytes).sum()
    }

    /// Returns how many bytes placement by filling may still hand out.
    pub(crate) fn room_above_watermark(&self) -> u64 {
        self.free_bytes().saturating_sub(self.watermark_bytes.load(Ordering::Relaxed))
    }

    /// Sets what placement by filling leaves free.
    pub(crate) fn set_watermark(&self, watermark_bytes: u64) {
        self.watermark_bytes.store(watermark_bytes, Ordering::Relaxed);
    }

    /// Writes the figures of all pgmaps, added up.
    pub(crate) fn write_figures(&self, counters: &TierCounters) {
        let mut sum = PgmapStats::default();
        let members = self.members();
        let mut capacity = 0;
        for (pgmap, stats) in members.iter().map(|member| (&member.pgmap, member.pgmap.stats())) {
            capacity += capacity_bytes(pgmap, &stats);
            sum.used_bytes += stats.used_bytes;
            sum.peak_bytes += stats.peak_bytes;
            sum.allocations += stats.allocations;
            sum.failures += stats.failures;
            for (total, folios) in sum.folios_by_order.iter_mut().zip(stats.folios_by_order) {
                *total += folios;
            }
        }
        // Relaxed throughout: figures, each for itself.
        counters.capacity_bytes.store(capacity, Ordering::Relaxed);
        counters.used_bytes.store(sum.used_bytes, Ordering::Relaxed);
        if members.len() == 1 {
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
        self.free_bytes() >= len_bytes + self.watermark_bytes.load(Ordering::Relaxed)
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
        let members = self.members();
        if let [only] = &members[..] {
            return alloc(&only.pgmap);
        }
        let cpu = cpu::current();
        let current = self.current.load(Ordering::Relaxed);
        let mut refusal = None;
        let mut tried = 0u64;
        loop {
            let candidates = members.iter().enumerate().map(|(at, member)| {
                let pgmap = &member.pgmap;
                (tried & 1 << at == 0).then(|| Candidate {
                    distance: member.distance(cpu),
                    free_bytes: free_bytes(pgmap),
                    capacity_bytes: pgmap.stats().capacity_bytes,
                    is_current: u32::from(pgmap.id()) == current,
                })
            });
            let Some(at) = stripe::best(candidates) else { break };
            tried |= 1 << at;
            match alloc(&members[at].pgmap) {
                Ok(folio) => {
                    self.current.store(members[at].pgmap.id().into(), Ordering::Relaxed);
                    return Ok(folio);
                }
                // One that was killed has less to say than one that is full.
                Err(FolioError::Dying { .. }) if refusal.is_some() => {}
                Err(error) => refusal = Some(error),
            }
        }
        Err(refusal.unwrap_or(FolioError::Exhausted { order: Order::PAGE, free_pages: 0, held_extents: 0 }))
    }

    /// Returns the pgmap whose own mapping holds `addr`, and the page's offset there.
    pub(crate) fn direct_offset(&self, addr: *const u8) -> Option<(Pgmap, u64)> {
        let members = self.members();
        let mut pgmaps = members.iter().map(|member| &member.pgmap);
        pgmaps.find_map(|pgmap| pgmap.offset_of(addr).map(|offset| (pgmap.clone(), offset)))
    }

    /// Whether a pgmap is one of the tier's.
    pub(crate) fn has_pgmap(&self, id: u16) -> bool {
        self.members().iter().any(|member| member.pgmap.id() == id)
    }
}

/// What a pgmap adds to its tier's capacity.
fn capacity_bytes(pgmap: &Pgmap, stats: &PgmapStats) -> u64 {
    if pgmap.is_dying() { stats.used_bytes } else { stats.capacity_bytes }
}

fn free_bytes(pgmap: &Pgmap) -> u64 {
    let stats = pgmap.stats();
    capacity_bytes(pgmap, &stats).saturating_sub(stats.used_bytes)
}

impl fmt::Debug for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tier")
            .field("name", &self.name)
            .field("pgmaps", &self.pgmaps())
            .finish_non_exhaustive()
    }
}
