//! How a pool's devices come and go while it is in use.
//!
//! A device is *added* to the slow tier and serves from then on. To *drain* it is to kill its pgmap, so that nothing new is
//! placed there, and to move away what is there; what can't be moved is reported with its address and who holds it. A
//! drained device can be *removed*, which gives its claims back, or *resumed*. How much of a device is used at most can be changed, and
//! what is idle of it given back. Uses the engine of `runtime::migration`.
//!
//! # States of a device in a pool
//! | state | leaves to | by |
//! |---|---|---|
//! | serving | draining | `drain_device`; the loss of the device |
//! | draining | serving | `resume_device` |
//! | draining, nothing in use | not in the pool | `remove_device` |
//!
//! Each change is one of the pgmap's ([`life`](crate::pgmap)), so calls from several threads meet there: two that drain move
//! the same slots, and one of the two finds each moved.

use super::{Pool, open_slow, watermark};
use crate::folio::RawFolio;
use crate::heap;
use crate::pgmap::{Pgmap, PgmapError, PgmapState};
use crate::policy::TierName;
use crate::runtime::PoolError;
use crate::runtime::config::{Migrate, SlowSpec};
use crate::runtime::error::MigrateError;
use crate::runtime::migration::{self, Outcome, Request, Ticket};
use crate::space::SLOT_BYTES;
use crate::sync::service;
use crate::tier::Tier;
use crate::units::{Bytes, PAGE_SHIFT};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What came of draining a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Bytes that were moved to other devices or to DRAM.
    pub moved_bytes: u64,
    /// What is still on the device; nothing when it is drained.
    pub held: Vec<Held>,
    /// Why blocks could not be moved at all, if that was so.
    pub immovable: Option<MigrateError>,
}

impl Drained {
    /// Returns whether nothing is left on the device.
    pub fn is_complete(&self) -> bool {
        self.held.is_empty()
    }
}

/// A piece of a device that is still in use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// Where it is in the device's pgmap, in pages.
    pub offset: u64,
    /// Its length.
    pub len_bytes: u64,
    /// Where the program sees it, unless it never asked for the address.
    pub address: Option<usize>,
    /// Who holds it.
    pub holder: HeldBy,
}

/// Who holds a piece of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeldBy {
    /// Blocks that malloc handed out, with what stands in the way of moving them; nothing when the time was up before.
    Blocks(Option<Outcome>),
    /// A folio that was asked for by order or offset, which never moves.
    Folio {
        /// References to it.
        ref_count: u32,
        /// The word that its holder stored.
        user: u64,
    },
    /// Nobody: it was just left, and stays out of use for a moment because I/O may still be under way there.
    Settling,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at page {:#x}", Bytes(self.len_bytes), self.offset)?;
        if let Some(address) = self.address {
            write!(f, ", address {address:#x}")?;
        }
        match self.holder {
            HeldBy::Blocks(Some(outcome)) => write!(f, ": blocks of the program ({})", outcome.as_str()),
            HeldBy::Blocks(None) => f.write_str(": blocks of the program (not moved yet)"),
            HeldBy::Folio { ref_count, .. } => write!(f, ": a folio with {ref_count} references"),
            HeldBy::Settling => f.write_str(": just left, free in a moment"),
        }
    }
}

/// A device that could not be added, drained, resumed or removed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceChangeError {
    /// The pool was opened without a slow tier.
    #[error("the pool was opened without a slow device, so it has no tier to add one to: name one in slow=")]
    NoSlowTier,
    /// No slow device of the pool has this name.
    #[error("the pool has no slow device {device:?}; it has {}", known.join(", "))]
    NoSuchDevice {
        /// What was asked for.
        device: String,
        /// The names of its slow devices.
        known: Vec<String>,
    },
    /// The pool has the device.
    #[error("the pool has {device} already; to add another part of it, say which (range=OFFSET+LENGTH)")]
    AlreadyThere {
        /// The device.
        device: String,
    },
    /// The tier has as many devices as it can have.
    #[error("the tier has as many devices as it can have; remove one first")]
    TooMany,
    /// The device can't be used.
    #[error(transparent)]
    Open(#[from] PoolError),
    /// The device was not drained, or things are left on it.
    #[error("{device}: {} are in use; drain it first", Bytes(*used_bytes))]
    InUse {
        /// The device.
        device: String,
        /// Bytes in use.
        used_bytes: u64,
    },
    /// The device serves, so there is nothing to resume, and it can't be removed.
    #[error("{device}: it is not being drained")]
    Serving {
        /// The device.
        device: String,
    },
}

impl DeviceChangeError {
    /// Returns the `errno` value that stands for the error.
    pub fn errno(&self) -> i32 {
        match self {
            DeviceChangeError::NoSlowTier | DeviceChangeError::NoSuchDevice { .. } => libc::ENODEV,
            DeviceChangeError::AlreadyThere { .. } => libc::EEXIST,
            DeviceChangeError::TooMany => libc::ENOSPC,
            DeviceChangeError::Open(error) => error.errno(),
            DeviceChangeError::InUse { .. } => libc::EBUSY,
            DeviceChangeError::Serving { .. } => libc::EINVAL,
        }
    }
}

/// How many slots are under way at a time: enough for the worker, and few enough that a time limit is kept.
const BATCH: usize = 16;
/// How long to wait before what could not be moved is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

impl Pool {
    /// Adds a slow device. Memory is placed there from now on.
    ///
    /// # Errors
    /// [`DeviceChangeError`] when the device can't be had, is there already, or the pool has no slow tier. Nothing has
    /// changed then.
    pub fn add_device(&self, spec: &SlowSpec) -> Result<(), DeviceChangeError> {
        service::run(|| {
            let at = self.slow_tier()?;
            let pgmap = open_slow(spec)?;
            let name = pgmap.device().name();
            let is_known = self.tiers()[at].pgmaps().iter().any(|known| known.device().name() == name);
            if is_known && spec.range.is_none() && name.starts_with('/') {
                return Err(DeviceChangeError::AlreadyThere { device: name.to_owned() });
            }
            if !self.inner.tiers.add(at, pgmap) {
                return Err(DeviceChangeError::TooMany);
            }
            self.adjust_watermark();
            Ok(())
        })
    }

    /// Places nothing more on a slow device, and moves what is there to other slow devices that have room, else to DRAM, of which
    /// what filling leaves free stays free.
    /// Blocks until nothing is left, or the time is up; threads may use the memory all the while. What is left is
    /// reported, stays valid, and can be moved by another call.
    ///
    /// Folios that were asked for by order or offset never move: their holders put them. What was just left counts as in use
    /// for [two seconds](Pool::set_migration_quarantine).
    ///
    /// # Errors
    /// [`DeviceChangeError::NoSuchDevice`].
    ///
    /// # Example
    /// ```
    /// use daxtier::{AllocOptions, Config, Pool, TierName};
    /// use std::time::Duration;
    ///
    /// let pool = Pool::open(&Config::parse("fast=64M slow=emulated:64M;emulated:32M")?)?;
    /// let slow = AllocOptions { tier: Some(TierName::Slow), ..AllocOptions::default() };
    /// let folio = pool.alloc_folio(daxtier::Order::HUGE, slow)?;
    /// // The folio is on the larger device, and stays there.
    /// let report = pool.drain_device("emulated:64M", Duration::ZERO)?;
    /// assert_eq!(report.held.len(), 1);
    /// assert_eq!(pool.tiers()[1].free_bytes(), 32 << 20);
    /// drop(folio);
    /// assert!(pool.drain_device("emulated:64M", Duration::from_secs(10))?.is_complete());
    /// pool.remove_device("emulated:64M")?;
    /// assert_eq!(pool.tiers()[1].capacity_bytes(), 32 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn drain_device(&self, device: &str, timeout: Duration) -> Result<Drained, DeviceChangeError> {
        let start = Instant::now();
        let left = || timeout.saturating_sub(start.elapsed());
        let pgmaps = service::run(|| {
            let (_, pgmaps) = self.slow_device(device)?;
            for pgmap in &pgmaps {
                // Another caller, or the loss of the device, may have done it.
                let _ = pgmap.kill();
            }
            self.inner.tiers.publish();
            Ok::<_, DeviceChangeError>(pgmaps)
        })?;
        let mut report = Drained::default();
        for pgmap in &pgmaps {
            self.evacuate(pgmap, &left, &mut report);
        }
        service::run(|| self.inner.tiers.publish());
        Ok(report)
    }

    /// Lets a device that is drained, or being drained, serve again.
    ///
    /// # Errors
    /// [`DeviceChangeError::NoSuchDevice`], [`DeviceChangeError::Serving`].
    pub fn resume_device(&self, device: &str) -> Result<(), DeviceChangeError> {
        let (_, pgmaps) = self.slow_device(device)?;
        let mut is_resumed = false;
        for pgmap in &pgmaps {
            is_resumed |= pgmap.resurrect().is_ok();
        }
        service::run(|| self.inner.tiers.publish());
        if is_resumed { Ok(()) } else { Err(DeviceChangeError::Serving { device: device.to_owned() }) }
    }

    /// Takes a drained device out of the pool. Its claims are given back, so other processes can have it.
    ///
    /// # Errors
    /// [`DeviceChangeError::NoSuchDevice`], [`DeviceChangeError::Serving`] before it was drained, and
    /// [`DeviceChangeError::InUse`] while something is left on it.
    pub fn remove_device(&self, device: &str) -> Result<(), DeviceChangeError> {
        let (at, pgmaps) = self.slow_device(device)?;
        service::run(|| {
            for pgmap in &pgmaps {
                let used_bytes = pgmap.stats().used_bytes;
                match pgmap.exit() {
                    // Dead: another caller was faster, and takes it out.
                    Ok(()) | Err(PgmapError::Dead { .. }) => self.inner.tiers.remove(at, pgmap.id()),
                    Err(PgmapError::NotDrained { .. }) => {
                        return Err(DeviceChangeError::InUse { device: device.to_owned(), used_bytes });
                    }
                    Err(_) => return Err(DeviceChangeError::Serving { device: device.to_owned() }),
                }
            }
            self.adjust_watermark();
            Ok(())
        })
    }

    /// Changes how many bytes of a slow device this process uses at most; all of it with `None`. What is idle above that is given
    /// back, so that other processes can claim it. Returns the bytes that are claimed beyond it, in extents of 128 MiB of which something
    /// is in use: what is there stays valid, nothing more is claimed until they are less, and [`release_idle`](Pool::release_idle)
    /// gives back what becomes idle.
    ///
    /// Rounded down to the device's granule. Of a device of which several parts were added each part gets this limit.
    ///
    /// # Errors
    /// [`DeviceChangeError::NoSuchDevice`].
    ///
    /// # Example
    /// ```
    /// use daxtier::{Config, Pool};
    ///
    /// let pool = Pool::open(&Config::parse("fast=64M slow=emulated:256M,size=64M")?)?;
    /// assert_eq!(pool.resize_device("emulated:256M", Some(128 << 20))?, 0);
    /// assert_eq!(pool.tiers()[1].capacity_bytes(), 128 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn resize_device(&self, device: &str, size_bytes: Option<u64>) -> Result<u64, DeviceChangeError> {
        let (_, pgmaps) = self.slow_device(device)?;
        service::run(|| {
            heap::collect();
            let limit_pages = size_bytes.map(|bytes| bytes >> PAGE_SHIFT);
            let excess_bytes = pgmaps.iter().map(|pgmap| pgmap.set_limit(limit_pages)).sum();
            self.adjust_watermark();
            self.inner.tiers.publish();
            Ok(excess_bytes)
        })
    }

    /// Gives extents of slow devices back of which nothing is in use, and returns how many bytes that were. Other processes can claim
    /// them then; this one claims anew when it needs more. What was just moved away counts as in use for
    /// [two seconds](Pool::set_migration_quarantine).
    pub fn release_idle(&self) -> u64 {
        service::run(|| {
            heap::collect();
            let slow = self.slow_tier().map(|at| self.tiers()[at].pgmaps()).unwrap_or_default();
            let released_bytes = slow.iter().map(Pgmap::release_idle).sum();
            self.inner.tiers.publish();
            released_bytes
        })
    }

    fn slow_tier(&self) -> Result<usize, DeviceChangeError> {
        let is_slow = |tier: &Tier| tier.name() == TierName::Slow.as_str();
        self.tiers().iter().position(is_slow).ok_or(DeviceChangeError::NoSlowTier)
    }

    /// Finds the pgmaps of a slow device, of which several parts may have been added.
    fn slow_device(&self, device: &str) -> Result<(usize, Vec<Pgmap>), DeviceChangeError> {
        let at = self.slow_tier()?;
        let pgmaps = self.tiers()[at].pgmaps();
        let known = || pgmaps.iter().map(|pgmap| pgmap.device().name().to_owned()).collect();
        let named: Vec<Pgmap> =
            pgmaps.iter().filter(|pgmap| pgmap.device().name() == device).cloned().collect();
        if named.is_empty() {
            return Err(DeviceChangeError::NoSuchDevice { device: device.to_owned(), known: known() });
        }
        Ok((at, named))
    }

    fn adjust_watermark(&self) {
        let tiers = self.tiers();
        let slow_bytes = tiers[1..].iter().map(Tier::capacity_bytes).sum();
        tiers[0].set_watermark(watermark(tiers[0].capacity_bytes(), slow_bytes));
    }

    /// Moves a killed pgmap's slots away until it is drained, or no time is left.
    ///
    /// What it allocates it allocates in service, and it waits outside: a thread of the library may run it, and a fork
    /// goes on meanwhile.
    fn evacuate(&self, pgmap: &Pgmap, left: &dyn Fn() -> Duration, report: &mut Drained) {
        let mut outcomes = BTreeMap::new();
        let mut pause = FIRST_PAUSE;
        loop {
            let slots = service::run(|| self.inner.space.slots_of_pgmap(pgmap.id()));
            let mut nr_moved = 0;
            for batch in slots.chunks(BATCH) {
                // The first batch is moved even without any time, so that repeated calls get on.
                if left().is_zero() && nr_moved > 0 {
                    break;
                }
                match self.move_away(pgmap.id(), batch, left, &mut outcomes) {
                    Ok(moved) => nr_moved += moved,
                    Err(immovable) => {
                        report.immovable = Some(immovable);
                        break;
                    }
                }
            }
            report.moved_bytes += (nr_moved * SLOT_BYTES) as u64;
            if wait_until_drained(pgmap, pause.min(left())) {
                return;
            }
            if left().is_zero() {
                service::run(|| report.held.extend(self.held_on(pgmap, &outcomes)));
                return;
            }
            pause = if nr_moved > 0 { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        }
    }

    /// Moves slots off a pgmap; returns how many it moved, and notes what came of each.
    fn move_away(
        &self,
        pgmap: u16,
        slots: &[(usize, RawFolio)],
        left: &dyn Fn() -> Duration,
        outcomes: &mut BTreeMap<usize, Outcome>,
    ) -> Result<usize, MigrateError> {
        let (fast, slow) = (0, 1);
        let tiers = &self.inner.tiers;
        let slots_in = |bytes: u64| (bytes / SLOT_BYTES as u64) as usize;
        let has_slow_room = slots_in(self.tiers()[slow].free_bytes_beside(pgmap)) > 0;
        // What goes on may pass through the last of DRAM; what stays leaves the program what placement leaves it.
        let fast_room =
            if has_slow_room { usize::MAX } else { slots_in(self.tiers()[fast].room_above_watermark()) };
        let to_fast = |slot| Request::of_pgmap(Arc::clone(tiers), fast, slot, pgmap);
        let (goes, stays) = slots.split_at(fast_room.min(slots.len()));
        service::run(|| outcomes.extend(stays.iter().map(|&(slot, _)| (slot, Outcome::NoSpace))));
        let done = self.move_each(goes.iter().map(|&(slot, _)| slot), to_fast, left)?;
        let is_moved = |&&(_, outcome): &&(usize, Outcome)| outcome == Outcome::Moved;
        let nr_moved = done.iter().filter(is_moved).count();
        service::run(|| outcomes.extend(done.iter().copied()));
        // What was slow goes on to another slow device: the protocol moves between DRAM and a device only.
        let room = slots_in(self.tiers()[slow].free_bytes_beside(pgmap));
        let to_slow = |slot: usize| Request::new(Arc::clone(tiers), slow, slot..slot + 1);
        let going_on = done.iter().filter(is_moved).map(|&(slot, _)| slot).take(room);
        self.move_each(going_on, to_slow, left)?;
        Ok(nr_moved)
    }

    /// Submits a request for each slot, waits for all of them, and returns what came of each.
    fn move_each(
        &self,
        slots: impl Iterator<Item = usize>,
        request: impl Fn(usize) -> Request,
        left: &dyn Fn() -> Duration,
    ) -> Result<Vec<(usize, Outcome)>, MigrateError> {
        let Migrate::On(workers) = &self.inner.migrate else { return Err(MigrateError::Disabled) };
        let mut tickets = Vec::new();
        for slot in slots {
            let ticket = loop {
                let submitted = service::run(|| migration::submit(request(slot), workers));
                match submitted.map_err(MigrateError::from) {
                    Ok(ticket) => break ticket,
                    // Others' requests are worked off meanwhile.
                    Err(MigrateError::Busy) => std::thread::sleep(Duration::from_millis(1)),
                    Err(error) => return Err(error),
                }
            };
            service::run(|| tickets.push((slot, ticket)));
        }
        for (_, ticket) in &tickets {
            // A move takes a millisecond; without a limit on the rate the batch is done before this matters.
            ticket.wait(left().max(Duration::from_secs(1)));
            if !ticket.is_done() {
                ticket.cancel();
            }
        }
        let outcome = |ticket: &Ticket| {
            let counts = ticket.wait(Duration::ZERO);
            Outcome::ALL.into_iter().find(|&outcome| counts.get(outcome) > 0)
        };
        let outcomes = tickets.iter().filter_map(|(slot, ticket)| Some((*slot, outcome(ticket)?)));
        Ok(service::run(|| outcomes.collect()))
    }

    /// Describes what is left on a pgmap.
    fn held_on(&self, pgmap: &Pgmap, outcomes: &BTreeMap<usize, Outcome>) -> Vec<Held> {
        service::run(|| {
            let slots = self.inner.space.slots_of_pgmap(pgmap.id());
            let slots: BTreeMap<u64, usize> =
                slots.into_iter().map(|(index, raw)| (raw.offset(), index)).collect();
            let settling = migration::quarantined_of(pgmap.id());
            let describe = |folio: crate::folio::FolioInfo| {
                let (address, holder) = match slots.get(&folio.offset) {
                    Some(&index) => {
                        let address = self.inner.space.slot_address(index).as_ptr().addr();
                        (Some(address), HeldBy::Blocks(outcomes.get(&index).copied()))
                    }
                    None if settling.contains(&folio.offset) => (None, HeldBy::Settling),
                    None => (folio.address, HeldBy::Folio { ref_count: folio.ref_count, user: folio.user }),
                };
                Held {
                    offset: folio.offset,
                    len_bytes: folio.order.nr_pages() << PAGE_SHIFT,
                    address,
                    holder,
                }
            };
            pgmap.live_folios().into_iter().map(describe).collect()
        })
    }
}

/// Waits without allocating, as [`Pgmap::drain`] does not. Returns whether the pgmap is drained.
fn wait_until_drained(pgmap: &Pgmap, limit: Duration) -> bool {
    const LOOK_AGAIN: Duration = Duration::from_millis(2);
    let start = Instant::now();
    loop {
        if matches!(pgmap.state(), PgmapState::Drained | PgmapState::Dead) {
            return true;
        }
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(left.min(LOOK_AGAIN));
    }
}
