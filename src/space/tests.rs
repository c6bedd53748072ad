use super::*;
use crate::device::{Device, Dram, Emulated};
use crate::offset::Lifetime;
use crate::pgmap::{Pgmap, PgmapOptions};
use crate::sync::service;
use crate::units::Order;
use std::sync::Arc;

/// Slots from one device.
struct OneDevice(Pgmap);

impl OneDevice {
    fn new(device: impl Device + 'static) -> OneDevice {
        OneDevice(Pgmap::bind(Arc::new(device), PgmapOptions::default()).unwrap())
    }

    fn emulated(nr_slots: u64) -> OneDevice {
        OneDevice::new(Emulated::new(nr_slots * SLOT_BYTES as u64, Emulated::DEFAULT_ALIGN_BYTES).unwrap())
    }

    fn used_slots(&self) -> u64 {
        self.0.stats().used_bytes / SLOT_BYTES as u64
    }
}

impl SlotSource for OneDevice {
    fn take(&self, _before: Option<RawFolio>) -> Option<Folio> {
        self.0.alloc_folio(Order::HUGE, Lifetime::Movable).ok()
    }

    fn has_room(&self, len_bytes: u64) -> bool {
        let stats = self.0.stats();
        stats.capacity_bytes - stats.used_bytes >= len_bytes
    }

    fn settled(&self) {}
}

/// A chunk of the run zone for one test, given back at its end.
struct Chunk {
    space: &'static Space,
    first_slot: usize,
}

impl Chunk {
    fn take() -> Chunk {
        let space = space().unwrap();
        Chunk { space, first_slot: service::run(|| space.take_run_chunks(1)).unwrap() }
    }

    fn at(&self, slices: usize) -> usize {
        self.space.slot_address(self.first_slot).as_ptr().addr() + slices * SLICE_BYTES
    }

    fn commit(&self, slices: Range<usize>, source: &OneDevice) -> Option<bool> {
        service::run(|| self.space.commit(self.at(slices.start), slices.len() * SLICE_BYTES, source))
    }

    fn decommit(&self, slices: Range<usize>) {
        service::run(|| self.space.decommit(self.at(slices.start), slices.len() * SLICE_BYTES));
    }

    /// Fills committed slices with one byte.
    fn fill(&self, slices: Range<usize>, byte: u8) {
        // SAFETY: tests pass committed slices that no other thread of theirs uses.
        unsafe { self.start(&slices).write_bytes(byte, slices.len() * SLICE_BYTES) };
    }

    /// Whether committed slices hold nothing but one byte.
    fn holds(&self, slices: Range<usize>, byte: u8) -> bool {
        // SAFETY: as in `fill`.
        let bytes = unsafe { std::slice::from_raw_parts(self.start(&slices), slices.len() * SLICE_BYTES) };
        bytes.iter().all(|&found| found == byte)
    }

    fn start(&self, slices: &Range<usize>) -> *mut u8 {
        self.space.slot_address(self.first_slot).as_ptr().with_addr(self.at(slices.start))
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.decommit(0..SLOTS_PER_CHUNK * SLICES_PER_SLOT);
        service::run(|| self.space.give_run_chunks(self.first_slot, 1));
    }
}

#[test]
fn a_mask_covers_every_slice_that_a_range_touches() {
    let slot = 64 * SLOT_BYTES;
    assert_eq!(slice_mask(slot, slot, SLOT_BYTES), u32::MAX);
    assert_eq!(slice_mask(slot, slot - SLOT_BYTES, 3 * SLOT_BYTES), u32::MAX);
    assert_eq!(slice_mask(slot, slot, SLICE_BYTES), 1);
    assert_eq!(slice_mask(slot, slot + SLICE_BYTES, 1), 2);
    assert_eq!(slice_mask(slot, slot + 31 * SLICE_BYTES, SLOT_BYTES), 1 << 31);
    assert_eq!(slice_mask(slot, slot - SLICE_BYTES, 2 * SLICE_BYTES), 1);
}

#[test]
fn a_slot_is_backed_from_its_first_slice_to_its_last() {
    let (source, chunk) = (OneDevice::emulated(8), Chunk::take());
    assert_eq!(chunk.commit(3..5, &source), Some(true));
    assert_eq!(chunk.commit(4..9, &source), Some(false), "slice 4 was handed out before");
    assert_eq!(source.used_slots(), 1);
    chunk.fill(3..9, 1);
    chunk.decommit(3..8);
    assert_eq!(source.used_slots(), 1);
    chunk.decommit(0..9);
    assert_eq!(source.used_slots(), 0);
    chunk.decommit(0..32);
    assert_eq!(source.used_slots(), 0, "decommits of what is not committed change nothing");
}

#[test]
fn memory_that_is_said_to_be_zero_is() {
    for source in [OneDevice::emulated(2), OneDevice::new(Dram::new(4 << 20, None).unwrap())] {
        let chunk = Chunk::take();
        for _ in 0..3 {
            assert_eq!(chunk.commit(0..64, &source), Some(true));
            assert!(chunk.holds(0..64, 0), "{:?}", source.0);
            chunk.fill(0..64, 0xff);
            chunk.decommit(0..64);
        }
        assert_eq!(chunk.commit(0..1, &source), Some(true));
        chunk.fill(0..1, 0xff);
        chunk.commit(1..2, &source).unwrap();
        chunk.decommit(0..1);
        assert_eq!(chunk.commit(0..1, &source), Some(false), "the slot kept its memory, and what was in it");
    }
}

#[test]
fn a_refused_commit_leaves_nothing_behind() {
    let (source, chunk) = (OneDevice::emulated(3), Chunk::take());
    assert_eq!(chunk.commit(0..32, &source), Some(true));
    chunk.fill(0..32, 5);
    assert_eq!(chunk.commit(0..32 * 4, &source), None, "four slots do not fit in three");
    assert_eq!(source.used_slots(), 1);
    assert!(chunk.holds(0..32, 5), "what was committed before stays");
    assert_eq!(chunk.commit(32..32 * 3, &source), Some(true));
    assert_eq!(source.used_slots(), 3);
}

#[test]
fn orphans_keep_their_memory_and_are_charged_again() {
    let first = OneDevice::new(Dram::new(4 << 20, None).unwrap());
    let small = OneDevice::new(Dram::new(2 << 20, None).unwrap());
    let chunk = Chunk::take();
    chunk.commit(0..64, &first).unwrap();
    chunk.fill(0..64, 3);
    let (addr, len) = (chunk.at(0), CHUNK_BYTES);
    service::run(|| chunk.space.orphan(addr, len));
    assert_eq!(first.used_slots(), 0);
    assert!(!service::run(|| chunk.space.charge_orphans(addr, len, &small)), "two slots do not fit in one");
    assert_eq!(small.used_slots(), 0);
    assert!(service::run(|| chunk.space.charge_orphans(addr, len, &first)));
    assert_eq!(first.used_slots(), 2);
    assert!(chunk.holds(0..64, 3));
}

#[test]
fn threads_commit_and_decommit_one_slot_without_losing_it() {
    let (source, chunk) = (OneDevice::emulated(1), Chunk::take());
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (source, chunk) = (&source, &chunk);
            scope.spawn(move || {
                for round in 0..300u32 {
                    let own = thread * 8..thread * 8 + 8;
                    chunk.commit(own.clone(), source).expect("one slot is enough for all");
                    chunk.fill(own.clone(), round as u8);
                    std::thread::yield_now();
                    assert!(chunk.holds(own.clone(), round as u8));
                    chunk.decommit(own);
                }
            });
        }
    });
    assert_eq!(source.used_slots(), 0);
}

#[test]
fn an_orphan_that_was_mapped_from_a_device_keeps_its_bytes_and_leaves_the_device_empty() {
    let (source, chunk) = (OneDevice::emulated(1), Chunk::take());
    chunk.commit(0..32, &source).unwrap();
    chunk.fill(0..32, 6);
    let (addr, len) = (chunk.at(0), CHUNK_BYTES);
    assert!(service::run(|| chunk.space.orphan(addr, len)));
    assert_eq!(source.used_slots(), 0);
    assert!(chunk.holds(0..32, 6));
    let other = Chunk::take();
    assert_eq!(other.commit(0..32, &source), Some(true));
    assert!(other.holds(0..32, 0), "the device still held what the orphan was copied from");
    other.fill(0..32, 1);
    assert!(chunk.holds(0..32, 6), "the orphan still shared the device's memory");
}

#[test]
fn a_limit_on_addresses_leaves_most_of_them_to_devices_and_the_program() {
    assert_eq!(longest(None, None), LARGEST_SPACE);
    assert_eq!(longest(Some(u64::MAX), Some(u64::MAX)), LARGEST_SPACE);
    assert_eq!(longest(Some(100 << 30), None), 16 << 30);
    for limit_bytes in [0, 1, 4 << 30, 15 << 30] {
        assert_eq!(longest(Some(limit_bytes), None), SMALLEST_SPACE, "{limit_bytes}");
    }
    let table_bytes = 32 << 20;
    let len_bytes = longest(None, Some(table_bytes));
    assert!(len_bytes / SLOT_BYTES * size_of::<Slot>() <= table_bytes as usize && len_bytes >= 1 << 40);
    assert_eq!(longest(None, Some(0)), SMALLEST_SPACE);
}
