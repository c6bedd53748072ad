//! What becomes of an extent's bytes when it is claimed and given back, by policy: looked at on the device itself, and by
//! whoever gets the extent.

use super::testing::TestDevice;
use super::{Pgmap, PgmapOptions};
use crate::device::{AfterFork, Claim, Device, DeviceError, DeviceKind, ScrubPolicy};
use crate::offset::Lifetime;
use crate::units::Order;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

const EXTENT: u64 = 128 << 20;
const NR_EXTENTS: usize = 2;
const HUGE: usize = 2 << 20;
/// Bytes that a test looks at and writes: the ends of an extent, of pages and of pieces.
const PLACES: [usize; 7] = [0, 1, 4095, HUGE - 1, HUGE, (64 << 20) + 17, (128 << 20) - 1];

/// A dax device that processes share, with a policy; it looks at what is given back.
#[derive(Debug)]
struct Shared {
    memory: TestDevice,
    policy: ScrubPolicy,
    /// Whether each byte of `PLACES` was zero when the extent was given back.
    released_clean: Mutex<Vec<bool>>,
}

impl Shared {
    fn new(policy: ScrubPolicy) -> Arc<Shared> {
        let memory = TestDevice::shared(NR_EXTENTS as u64 * EXTENT);
        Arc::new(Shared { memory, policy, released_clean: Mutex::new(Vec::new()) })
    }

    fn bind(self: &Arc<Shared>) -> Pgmap {
        Pgmap::bind(self.clone(), PgmapOptions::default()).unwrap()
    }

    /// Shows an extent to `f`, as whoever may open the node can see it.
    fn see<R>(&self, extent: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
        let len = EXTENT as usize;
        let room = crate::sys::mm::Reservation::new(len, HUGE).unwrap();
        // SAFETY: the reservation is this call's own.
        unsafe { self.memory.map_at(room.base(), extent as u64 * EXTENT, len) }.unwrap();
        // SAFETY: mapped for its length; the tests have one thread, and hold no slice of a folio meanwhile.
        f(unsafe { std::slice::from_raw_parts_mut(room.base().as_ptr(), len) })
    }

    /// Leaves bytes in an extent as a process does that was killed, or that knows nothing of claims.
    fn soil(&self, extent: usize) {
        self.see(extent, |bytes| PLACES.into_iter().for_each(|at| bytes[at] = 0x5e));
    }

    fn is_clean(&self, extent: usize) -> bool {
        self.see(extent, |bytes| PLACES.into_iter().all(|at| bytes[at] == 0))
    }
}

impl Device for Shared {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Dax
    }
    fn name(&self) -> &str {
        "shared"
    }
    fn len_bytes(&self) -> u64 {
        self.memory.len_bytes
    }
    fn align_bytes(&self) -> u64 {
        self.memory.align_bytes
    }
    fn node(&self) -> Option<u32> {
        None
    }
    fn scrub_policy(&self) -> ScrubPolicy {
        self.policy
    }
    fn claim(&self, range: Range<u64>) -> Result<Claim, DeviceError> {
        self.memory.claim(range)
    }
    fn release(&self, range: Range<u64>) {
        self.released_clean.lock().unwrap().push(self.is_clean((range.start / EXTENT) as usize));
        self.memory.release(range);
    }
    unsafe fn map_at(&self, addr: NonNull<u8>, offset: u64, len_bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: handed on.
        unsafe { self.memory.map_at(addr, offset, len_bytes) }
    }
    fn discard(&self, _: Range<u64>) -> bool {
        false
    }
    fn after_fork_in_child(&self) -> AfterFork {
        AfterFork::Foreign
    }
}

/// Writes to all of the places in every extent, through folios.
fn fill(pgmap: &Pgmap) {
    let each = |at: usize| (at / HUGE, at % HUGE);
    for extent in 0..NR_EXTENTS {
        for (folio, byte) in PLACES.map(each) {
            let page = (extent as u64 * EXTENT + (folio * HUGE) as u64) >> 12;
            let mut folio = pgmap.request_folio(page, Order::HUGE).unwrap();
            folio.as_mut_slice().unwrap()[byte] = 0x5e;
        }
    }
}

/// Whether every byte that a new owner gets is zero.
fn gets_zeroes(pgmap: &Pgmap) -> bool {
    let folios = std::iter::from_fn(|| pgmap.alloc_folio(Order::HUGE, Lifetime::Short).ok());
    let mut all: Vec<_> = folios.collect();
    assert_eq!(all.len() * HUGE, NR_EXTENTS * EXTENT as usize, "every folio was looked at");
    let zeroes = vec![0; HUGE];
    all.iter_mut().all(|folio| *folio.as_mut_slice().unwrap() == *zeroes)
}

/// Catches a policy that believes what it did not see: whatever happened to the bytes before, a new owner gets zeroes.
#[test]
fn no_foreign_byte_is_handed_out_whoever_had_the_extent_before() {
    for policy in [ScrubPolicy::OnClaim, ScrubPolicy::OnRelease] {
        let device = Shared::new(policy);
        // By one that was killed.
        (0..NR_EXTENTS).for_each(|extent| device.soil(extent));
        let pgmap = device.bind();
        assert!(gets_zeroes(&pgmap), "{policy}: left by a process that was killed");
        fill(&pgmap);
        drop(pgmap);
        assert!(gets_zeroes(&device.bind()), "{policy}: given back in order");
        // Given back in order and clean, and then written to by one that makes no claims.
        device.soil(1);
        assert!(gets_zeroes(&device.bind()), "{policy}: written to without a claim");
    }
}

/// Catches a release without a scrub, and one that comes after the claim is gone.
#[test]
fn memory_is_clean_before_it_is_given_back_on_release() {
    for policy in ScrubPolicy::ALL {
        for ends_early in [false, true] {
            let device = Shared::new(policy);
            let pgmap = device.bind();
            fill(&pgmap);
            if ends_early {
                pgmap.kill().unwrap();
                pgmap.exit().unwrap();
                assert_eq!(device.memory.claims(), 0);
            }
            drop(pgmap);
            let clean = device.released_clean.lock().unwrap().clone();
            assert_eq!(clean, [policy == ScrubPolicy::OnRelease; NR_EXTENTS], "{policy}");
            assert_eq!(device.memory.claims(), 0);
        }
    }
}

/// Catches a policy that costs what it is there to save, and folios that were asked for as zero and are not.
#[test]
fn nothing_is_cleared_where_that_was_not_wanted() {
    let device = Shared::new(ScrubPolicy::Never);
    device.soil(0);
    let pgmap = device.bind();
    let maps = device.memory.maps.load(std::sync::atomic::Ordering::Relaxed);
    let mut folio = pgmap.request_folio(0, Order::HUGE).unwrap();
    assert_eq!(device.memory.maps.load(std::sync::atomic::Ordering::Relaxed), maps, "mapped to be cleared");
    assert_eq!(folio.as_mut_slice().unwrap()[0], 0x5e);
    drop(folio);
    let mut zeroed = pgmap.alloc_folio_zeroed(Order::HUGE, Lifetime::Short).unwrap();
    assert_eq!(zeroed.offset(), 0, "the one with the former owner's bytes");
    assert!(zeroed.as_mut_slice().unwrap().iter().all(|&byte| byte == 0));
}

/// Catches a forked child that clears what its parent has.
#[test]
fn a_forked_child_clears_nothing_of_its_parents() {
    let device = Shared::new(ScrubPolicy::OnRelease);
    let pgmap = device.bind();
    fill(&pgmap);
    let kept = pgmap.request_folio(0, Order::HUGE).unwrap();
    let mut held = Some((kept, pgmap));
    super::testing::in_child(true, || drop(held.take()));
    assert!(held.is_some(), "the parent has it still");
    device.see(0, |bytes| assert!(PLACES.into_iter().all(|at| bytes[at] == 0x5e)));
}
