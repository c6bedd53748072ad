//! What moves a pool's blocks between its tiers, and what keeps them in place.

use super::Pool;
use crate::policy::TierName;
use crate::runtime::config::Migrate;
use crate::runtime::error::MigrateError;
use crate::runtime::migration::{self, MigrationCounts, MigrationStats, Outcome, Request, Ticket};
use crate::space::SlotState;
use crate::sync::service;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

impl Pool {
    /// Moves the slots of 2 MiB that `[addr, addr + len_bytes)` touches to a tier, and waits until something has come of
    /// each. Their addresses stay, and other threads may use them all the while. The first call in a process starts the threads
    /// that move memory, as many and on such processors as this pool's configuration says.
    ///
    /// A slot that can't be moved stays where it is; the counts say why. Only blocks move, never folios that were
    /// asked for by order.
    ///
    /// # Errors
    /// [`MigrateError`] when nothing can be moved at all.
    pub fn migrate(
        &self,
        addr: *const u8,
        len_bytes: usize,
        tier: TierName,
    ) -> Result<MigrationCounts, MigrateError> {
        loop {
            match self.migrate_async(addr, len_bytes, tier) {
                // Back-pressure: the queue is worked off meanwhile.
                Err(MigrateError::Busy) => std::thread::sleep(Duration::from_millis(1)),
                outcome => return outcome.map(|ticket| ticket.wait(Duration::MAX)),
            }
        }
    }

    /// As [`migrate`](Pool::migrate), without waiting: the [`Ticket`] tells how far it has come.
    ///
    /// # Errors
    /// As for [`migrate`](Pool::migrate), and [`MigrateError::Busy`] when too many requests are waiting.
    pub fn migrate_async(
        &self,
        addr: *const u8,
        len_bytes: usize,
        tier: TierName,
    ) -> Result<Ticket, MigrateError> {
        let Migrate::On(workers) = &self.inner.migrate else { return Err(MigrateError::Disabled) };
        service::run(|| {
            let slots = self.slots_of(addr, len_bytes)?;
            let to = self.tiers().iter().position(|known| known.name() == tier.as_str());
            let to = to.ok_or(MigrateError::NoSuchTier { tier: tier.as_str() })?;
            let request = Request::new(Arc::clone(&self.inner.tiers), to, slots);
            Ok(migration::submit(request, workers)?)
        })
    }

    /// Makes room for a slot in the fast tier, by sending one to the slow tier that is not `kept`. Returns whether it did.
    pub(in super::super) fn make_room(&self, kept: &Range<usize>) -> bool {
        /// The last slot that was sent away, so that the next is another one. Relaxed: a hint.
        static LAST: AtomicUsize = AtomicUsize::new(0);
        let tiers = &self.inner.tiers;
        let may_go = |index: usize, state: &SlotState| {
            let is_fast = state.folio.is_some_and(|raw| tiers.tier_of(raw.pgmap()) == Some(0));
            is_fast && state.pins == 0 && !state.has_attributes() && !kept.contains(&index)
        };
        let found = service::run(|| self.inner.space.find_slot(LAST.load(Ordering::Relaxed), may_go));
        let Some(index) = found else { return false };
        LAST.store(index, Ordering::Relaxed);
        let sent = self.migrate(self.inner.space.slot_address(index).as_ptr(), 1, TierName::Slow);
        sent.is_ok_and(|counts| counts.get(Outcome::Moved) == 1)
    }

    /// Says in which tier a range is wanted: it is moved there in the background as far as possible. Nothing moves by
    /// itself in this version, so it stays there until somebody asks for another tier.
    ///
    /// # Errors
    /// As for [`migrate_async`](Pool::migrate_async).
    pub fn prefer(&self, addr: *const u8, len_bytes: usize, tier: TierName) -> Result<(), MigrateError> {
        self.migrate_async(addr, len_bytes, tier).map(drop)
    }

    /// Keeps the slots of 2 MiB that a range touches where they are until [`unpin`](Pool::unpin). When the call returns none of
    /// them is being moved. Pins count; they end with the memory.
    ///
    /// It is for what refers to memory other than through its addresses: direct I/O, RDMA and the like; pages that
    /// were spliced into a pipe (vmsplice) or sent with MSG_ZEROCOPY and are not read for seconds; and futexes that processes
    /// share, whose waiters the kernel finds by the memory that lies there.
    ///
    /// # Errors
    /// [`MigrateError::Foreign`] when the range is not in blocks.
    pub fn pin(&self, addr: *const u8, len_bytes: usize) -> Result<(), MigrateError> {
        self.change_pins(addr, len_bytes, |pins| pins.saturating_add(1))
    }

    /// Ends a [`pin`](Pool::pin) of the same range.
    ///
    /// # Errors
    /// As for [`pin`](Pool::pin).
    pub fn unpin(&self, addr: *const u8, len_bytes: usize) -> Result<(), MigrateError> {
        // A count that has reached the largest value stays: nobody knows any more how often it was raised.
        self.change_pins(addr, len_bytes, |pins| if pins == u16::MAX { pins } else { pins.saturating_sub(1) })
    }

    fn change_pins(
        &self,
        addr: *const u8,
        len_bytes: usize,
        change: impl Fn(u16) -> u16,
    ) -> Result<(), MigrateError> {
        service::run(|| {
            for index in self.slots_of(addr, len_bytes)? {
                let mut state = self.inner.space.slot(index).lock();
                state.pins = change(state.pins);
            }
            Ok(())
        })
    }

    fn slots_of(&self, addr: *const u8, len_bytes: usize) -> Result<Range<usize>, MigrateError> {
        let foreign = MigrateError::Foreign { addr: addr.addr(), len_bytes };
        let last = addr.addr().checked_add(len_bytes.max(1) - 1);
        let slots = self
            .inner
            .space
            .slot_index(addr.addr())
            .zip(last.and_then(|last| self.inner.space.slot_index(last)));
        let (first, last) = slots.ok_or(foreign)?;
        Ok(first..last + 1)
    }

    /// Returns what came of all requests to move the pool's memory. A forked child's begin anew.
    pub fn migration_stats(&self) -> MigrationStats {
        MigrationStats::of(self.inner.tiers.migration())
    }

    /// Returns how long the last move of a slot took: blocked, and in all. For measurements.
    #[doc(hidden)]
    pub fn last_move_times(&self) -> (Duration, Duration) {
        migration::last_times()
    }

    /// Limits how many bytes this process moves a second, for all its pools; 0 for no limit, as at the start.
    pub fn set_migration_budget(&self, bytes_per_second: u64) {
        migration::set_budget(bytes_per_second);
    }

    /// Sets how long slow memory stays out of use after its bytes were moved away: two seconds unless set. A device
    /// that was given the memory for I/O may read it for a while.
    pub fn set_migration_quarantine(&self, time: Duration) {
        migration::set_quarantine(time);
    }
}
