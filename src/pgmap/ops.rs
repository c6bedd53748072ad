//! The steps of request, get and put, in their order.
//!
//! A request takes the pgmap's reference first, then the offset, then moves the run's words from 0 to 1; when a
//! step fails the former ones are undone in reverse. The last put goes the other way: the run becomes idle, its
//! offset is given back to the built-in allocator, the owner's callback runs, and the pgmap's reference goes
//! last. Everything here works on `(core, offset, generation)`; `folio` wraps it in types that own references.

use super::body::Body;
use super::core::Core;
use super::table::{PutOutcome, Sighting};
use super::word::Fault;
use super::{FolioError, FolioInfo, FreedFolio};
use crate::offset::{Lifetime, OffsetAllocator, OffsetError};
use crate::sys::bus_error;
use crate::units::Order;
use std::ptr::NonNull;

/// How many runs with broken metadata an allocation passes over before it gives up.
const MAX_BROKEN: usize = 16;

/// A folio reference in parts: what identifies a live folio inside its pgmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) generation: u16,
    pub(crate) order: Order,
}

impl Core {
    /// Makes the run at `offset` a folio with one reference.
    pub(crate) fn request(&self, offset: u64, order: Order) -> Result<Place, FolioError> {
        let id = self.id();
        if !self.refs.tryget_live() {
            return Err(FolioError::Dying { pgmap: id });
        }
        // SAFETY: the reference keeps the body.
        let body = unsafe { self.body() };
        let outcome = body.request(offset, order);
        self.settle_request(body, order, outcome)
    }

    /// Makes a free run a folio with one reference.
    pub(crate) fn alloc(&self, order: Order, lifetime: Lifetime) -> Result<Place, FolioError> {
        let id = self.id();
        if !self.refs.tryget_live() {
            return Err(FolioError::Dying { pgmap: id });
        }
        // SAFETY: the reference keeps the body.
        let body = unsafe { self.body() };
        let outcome = body.alloc(order, lifetime);
        self.settle_request(body, order, outcome)
    }

    /// As [`alloc`](Core::alloc), of what is zero already if there is any; also returns whether the folio is.
    pub(crate) fn alloc_prezeroed(
        &self,
        order: Order,
        lifetime: Lifetime,
    ) -> Result<(Place, bool), FolioError> {
        let id = self.id();
        if !self.refs.tryget_live() {
            return Err(FolioError::Dying { pgmap: id });
        }
        // SAFETY: the reference keeps the body.
        let body = unsafe { self.body() };
        let mut is_zero = false;
        let outcome = body.alloc_prezeroed(order, lifetime, &mut is_zero);
        self.settle_request(body, order, outcome).map(|place| (place, is_zero))
    }

    fn settle_request(
        &self,
        body: &Body,
        order: Order,
        outcome: Result<Requested, RequestFault>,
    ) -> Result<Place, FolioError> {
        match outcome {
            Ok((place, lost_folios)) => {
                body.counters.note_request(order);
                self.drop_lost(lost_folios);
                Ok(place)
            }
            Err(RequestFault { error, lost_folios }) => {
                body.counters.note_failure();
                self.drop_lost(lost_folios);
                self.unpin();
                Err(error)
            }
        }
    }

    /// Drops the pgmap references of folios that were quarantined while they lived.
    fn drop_lost(&self, folios: u64) {
        (0..folios).for_each(|_| self.unpin());
    }

    /// Takes one more reference to a folio. The caller holds one, of the folio or of the pgmap.
    pub(crate) fn get(&self, offset: u64, generation: u16) -> Result<(), FolioError> {
        // SAFETY: the caller's reference keeps the body.
        let body = unsafe { self.body() };
        body.check_live(offset)?;
        let outcome = body.table.get(offset, generation);
        outcome.map_err(|fault| self.fault(body, fault, offset, generation))
    }

    /// Drops a reference to a folio; `true` when it was the last. The caller holds a reference, of the folio or
    /// of the pgmap, that keeps the pgmap until this function drops the folio's.
    pub(crate) fn put(&self, offset: u64, generation: u16) -> Result<bool, FolioError> {
        // SAFETY: the caller's reference keeps the body.
        let body = unsafe { self.body() };
        body.check_live(offset)?;
        let outcome = body.table.put(offset, generation, |order| body.discard_idle(offset, order));
        match outcome.map_err(|fault| self.fault(body, fault, offset, generation))? {
            PutOutcome::Live => Ok(false),
            PutOutcome::Freed { order, user } => {
                body.finish_free(offset, order, user);
                self.unpin();
                Ok(true)
            }
        }
    }

    /// Takes a reference to the live folio that covers `offset`, if there is one and the pgmap is live.
    pub(crate) fn try_get(&self, offset: u64) -> Option<Place> {
        // The pgmap's own reference is only needed for this call: the folio has one for as long as it lives. Losing
        // the race to kill is no error.
        if !self.refs.tryget_live() {
            return None;
        }
        // SAFETY: the reference keeps the body.
        let body = unsafe { self.body() };
        let seen = body.check_claimed(offset).ok().and_then(|()| body.table.try_get(offset));
        self.unpin();
        seen.map(|seen| Place { offset: seen.offset, generation: seen.generation, order: seen.order })
    }

    /// Describes a live folio. The caller holds a reference, of the folio or of the pgmap.
    pub(crate) fn look(&self, offset: u64, generation: u16) -> Result<FolioInfo, FolioError> {
        // SAFETY: the caller's reference keeps the body.
        let body = unsafe { self.body() };
        body.check_live(offset)?;
        let outcome = body.table.look(offset, generation);
        outcome.map(|seen| body.info(&seen)).map_err(|fault| self.fault(body, fault, offset, generation))
    }

    /// Stores a live folio's user word. The caller holds a reference to the folio.
    pub(crate) fn set_user(&self, offset: u64, generation: u16, user: u64) -> Result<(), FolioError> {
        // SAFETY: the caller's reference keeps the body.
        let body = unsafe { self.body() };
        body.check_live(offset)?;
        let outcome = body.table.set_user(offset, generation, user);
        outcome.map_err(|fault| self.fault(body, fault, offset, generation))
    }

    /// Returns a live folio's address in the pgmap's own mapping. The caller holds a reference to the folio.
    pub(crate) fn address(&self, place: Place) -> Result<NonNull<u8>, FolioError> {
        // SAFETY: the caller's reference keeps the body.
        let body = unsafe { self.body() };
        body.check_live(place.offset)?;
        // Marked before the address exists, so that a fork in between knows.
        let marked = body.table.mark_addressed(place.offset, place.generation);
        marked.map_err(|fault| self.fault(body, fault, place.offset, place.generation))?;
        body.address_of_run(place.offset, place.order)
    }

    /// Says what a fault means to the caller, and quarantines what is corrupt.
    fn fault(&self, body: &Body, fault: Fault, offset: u64, generation: u16) -> FolioError {
        if fault == Fault::Corrupt {
            self.drop_lost(body.quarantine(offset, Order::PAGE, Some(generation)));
        }
        body.error_of(fault, offset, Order::PAGE)
    }
}

/// A new folio, and how many others turned out to be corrupt on the way.
type Requested = (Place, u64);

/// A request that failed after some folios turned out to be corrupt, or none.
struct RequestFault {
    error: FolioError,
    lost_folios: u64,
}

impl From<FolioError> for RequestFault {
    fn from(error: FolioError) -> RequestFault {
        RequestFault { error, lost_folios: 0 }
    }
}

impl Body {
    fn request(&self, offset: u64, order: Order) -> Result<Requested, RequestFault> {
        self.check_run(offset, order)?;
        self.claim_run(offset, order)?;
        if let Some(allocator) = &self.allocator {
            self.reserve_claimed(allocator, offset, order)?;
        }
        let fault = match self.table.request(offset, order) {
            Ok(generation) => return Ok((Place { offset, generation, order }, 0)),
            Err(fault) => fault,
        };
        let error = self.error_of(fault, offset, order);
        if fault == Fault::Corrupt {
            // The run stays taken in the allocator, so that no page of it is handed out.
            return Err(RequestFault { error, lost_folios: self.quarantine(offset, order, None) });
        }
        if let Some(allocator) = &self.allocator {
            // Ours since the reserve above, so this cannot fail.
            let _ = allocator.free(offset, order);
        }
        Err(error.into())
    }

    /// Takes exactly this run, which is claimed, from the allocator.
    fn reserve_claimed(
        &self,
        allocator: &OffsetAllocator,
        offset: u64,
        order: Order,
    ) -> Result<(), FolioError> {
        let mut reserved = self.reserve(allocator, offset, order);
        while matches!(reserved, Err(OffsetError::ExtentAbsent { .. })) {
            // It is just being given back, or was since.
            let mut grow = self.grow.lock();
            self.claim_run_with(offset, order, &mut grow)?;
            reserved = allocator.reserve(offset, order);
            drop(grow);
            // Not by a folio, perhaps: what is kept zeroed is looked at without the lock.
            if matches!(reserved, Err(OffsetError::Busy { .. })) {
                reserved = self.reserve(allocator, offset, order);
            }
        }
        reserved.map_err(|error| self.reserve_error(error, offset, order))
    }

    /// Takes exactly this run from the allocator, and from what is kept zeroed.
    fn reserve(&self, allocator: &OffsetAllocator, offset: u64, order: Order) -> Result<(), OffsetError> {
        let reserve = || allocator.reserve(offset, order);
        match reserve() {
            // A live folio is in the way for good.
            Err(error @ OffsetError::Busy { .. }) if self.table.obstacle(offset, order).is_none() => {
                self.with_none_aside(allocator, reserve).unwrap_or(Err(error))
            }
            outcome => outcome,
        }
    }

    fn alloc_prezeroed(
        &self,
        order: Order,
        lifetime: Lifetime,
        is_zero: &mut bool,
    ) -> Result<Requested, RequestFault> {
        let aside = if order == Order::HUGE { self.prezeroed.take() } else { None };
        let Some(offset) = aside else { return self.alloc(order, lifetime) };
        match self.table.request(offset, order) {
            Ok(generation) => {
                *is_zero = true;
                Ok((Place { offset, generation, order }, 0))
            }
            Err(fault) => {
                // As in `alloc`: the run is left taken.
                let lost_here =
                    if fault == Fault::Corrupt { self.quarantine(offset, order, None) } else { 0 };
                match self.alloc(order, lifetime) {
                    Ok((place, lost)) => Ok((place, lost + lost_here)),
                    Err(fault) => Err(RequestFault { lost_folios: fault.lost_folios + lost_here, ..fault }),
                }
            }
        }
    }

    fn alloc(&self, order: Order, lifetime: Lifetime) -> Result<Requested, RequestFault> {
        self.check_order(order)?;
        let allocator = self.allocator.as_ref().ok_or(FolioError::OwnOffsets { pgmap: self.id })?;
        let mut lost_folios = 0;
        let mut broken = 0;
        loop {
            let offset = self
                .alloc_offset(allocator, order, lifetime)
                .map_err(|error| RequestFault { error, lost_folios })?;
            match self.table.request(offset, order) {
                Ok(generation) => return Ok((Place { offset, generation, order }, lost_folios)),
                Err(fault) => {
                    // The allocator says free and the metadata disagrees: leave the run taken and go on.
                    if fault == Fault::Corrupt {
                        lost_folios += self.quarantine(offset, order, None);
                    }
                    broken += 1;
                    if broken == MAX_BROKEN {
                        return Err(RequestFault { error: self.error_of(fault, offset, order), lost_folios });
                    }
                }
            }
        }
    }

    /// Takes corrupt metadata of the run out of use and returns how many live folios went with it.
    fn quarantine(&self, offset: u64, order: Order, generation: Option<u16>) -> u64 {
        let mut lost = 0;
        self.table.quarantine(offset, order, generation, &mut |order| {
            self.counters.note_free(order);
            lost += 1;
        });
        lost
    }

    /// Gives the offset back and tells the owner. The run is idle, no lock is held.
    fn finish_free(&self, offset: u64, order: Order, user: u64) {
        self.counters.note_free(order);
        if self.is_damaged(offset, order) {
            // The offset stays taken.
            self.table.note_quarantined(order);
        } else if let Some(allocator) = &self.allocator {
            let freed = allocator.free(offset, order);
            debug_assert_eq!(freed, Ok(()), "a live folio's run is allocated");
            self.prezeroed.note_freed();
        }
        if let Some(on_free) = &self.on_free {
            on_free.folio_free(FreedFolio { pgmap: self.id, offset, order, user });
        }
    }

    /// Whether the machine has found the folio's memory damaged, as far as it was touched through the pgmap's own mapping.
    #[inline]
    fn is_damaged(&self, offset: u64, order: Order) -> bool {
        bus_error::is_damaged(|| {
            let start = self.mapped_address(offset, order)?.as_ptr().addr();
            Some(start..start + order.len_bytes() as usize)
        })
    }

    fn check_run(&self, offset: u64, order: Order) -> Result<(), FolioError> {
        self.check_order(order)?;
        let nr_pages = self.nr_pages;
        let end = offset.checked_add(order.nr_pages()).filter(|&end| end <= nr_pages);
        if end.is_none() {
            return Err(FolioError::OutOfBounds { offset, order, nr_pages });
        }
        if !order.is_aligned(offset) {
            return Err(FolioError::Misaligned { offset, order });
        }
        Ok(())
    }

    pub(super) fn check_order(&self, order: Order) -> Result<(), FolioError> {
        if order < self.min_order {
            return Err(FolioError::OrderTooSmall { order, min_order: self.min_order });
        }
        if order > self.max_order {
            return Err(FolioError::OrderTooLarge { order, max_order: self.max_order });
        }
        Ok(())
    }

    /// Checks that a folio can be live at `offset`.
    pub(crate) fn check_live(&self, offset: u64) -> Result<(), FolioError> {
        self.check_claimed(offset).map_err(|error| match error {
            FolioError::Forked { .. } => error,
            _ => FolioError::Stale { pgmap: self.id, offset },
        })
    }

    fn reserve_error(&self, error: OffsetError, offset: u64, order: Order) -> FolioError {
        match error {
            OffsetError::Busy { .. } => match self.table.obstacle(offset, order) {
                Some(fault) => self.error_of(fault, offset, order),
                None => FolioError::Busy { offset, order },
            },
            _ => FolioError::NotClaimed { offset },
        }
    }

    fn error_of(&self, fault: Fault, offset: u64, order: Order) -> FolioError {
        let pgmap = self.id;
        match fault {
            Fault::Busy => FolioError::Busy { offset, order },
            Fault::Stale => FolioError::Stale { pgmap, offset },
            Fault::Forked => FolioError::Forked { pgmap, offset },
            Fault::Corrupt => FolioError::Corrupt { pgmap, offset },
            Fault::Quarantined => FolioError::Quarantined { pgmap, offset },
        }
    }

    pub(super) fn info(&self, seen: &Sighting) -> FolioInfo {
        FolioInfo {
            pgmap: self.id,
            offset: seen.offset,
            order: seen.order,
            ref_count: seen.ref_count,
            user: seen.user,
            address: self.mapped_address(seen.offset, seen.order).map(|addr| addr.as_ptr().addr()),
        }
    }

    /// Calls `f` with every live folio, each as it was when it was looked at.
    pub(super) fn for_each_live(&self, f: &mut dyn FnMut(Sighting)) {
        for index in self.known_extents() {
            self.table.for_each_live(self.claimed_range(index), f);
        }
    }
}
