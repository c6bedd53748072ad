//! Broken protocols, so that a test can show that the checker notices. Never part of the library.

use crate::space::SLOT_BYTES;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    /// A demotion does not block the slot.
    NoBlock,
    /// A promotion does not map a blank.
    NoBlank,
    /// The mover waits between block and copy until a user of the slot has gone on, or long enough.
    Waits(&'static Wait),
    /// The device, an emulated one with this descriptor, goes after the slot was blocked.
    DeviceGoes(RawFd),
}

/// A user of a slot, and what the mover saw it do.
#[derive(Debug, Default)]
pub(crate) struct Wait {
    /// How often the user used the slot.
    pub(crate) uses: AtomicU64,
    /// How often it did while the slot was blocked.
    pub(crate) uses_in_window: AtomicU64,
    /// How long the mover waits at most.
    pub(crate) limit_ms: AtomicU64,
}

impl Wait {
    fn wait(&self) {
        const ENOUGH: u64 = 1000;
        let (start, before) = (Instant::now(), self.uses.load(Ordering::Relaxed));
        let gone_on = || self.uses.load(Ordering::Relaxed) - before;
        let limit = Duration::from_millis(self.limit_ms.load(Ordering::Relaxed));
        while gone_on() < ENOUGH && start.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.uses_in_window.store(gone_on(), Ordering::Relaxed);
    }
}

impl PartialEq for Wait {
    fn eq(&self, other: &Wait) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Wait {}

static SABOTAGED: Mutex<Vec<(Range<usize>, Defect)>> = Mutex::new(Vec::new());

/// The protocol is broken for a range until this is dropped: its addresses may be another test's afterwards.
pub(crate) struct Sabotage(Range<usize>);

/// Breaks the protocol for the slots of a range of addresses.
pub(crate) fn sabotage(range: Range<usize>, defect: Defect) -> Sabotage {
    SABOTAGED.lock().unwrap().push((range.clone(), defect));
    Sabotage(range)
}

impl Drop for Sabotage {
    fn drop(&mut self) {
        SABOTAGED.lock().unwrap().retain(|(range, _)| *range != self.0);
    }
}

pub(super) fn skips_block(slot: NonNull<u8>) -> bool {
    is_sabotaged(slot, Defect::NoBlock)
}

pub(super) fn skips_blank(slot: NonNull<u8>) -> bool {
    is_sabotaged(slot, Defect::NoBlank)
}

/// Called when the slot is blocked and about to be copied.
pub(super) fn before_copy(slot: NonNull<u8>) {
    for defect in defects(slot) {
        match defect {
            Defect::DeviceGoes(device) => {
                // SAFETY: the device is open as long as the test's bench is.
                let device = unsafe { BorrowedFd::borrow_raw(device) };
                File::from(device.try_clone_to_owned().unwrap()).set_len(0).unwrap();
            }
            Defect::Waits(wait) => wait.wait(),
            Defect::NoBlock | Defect::NoBlank => {}
        }
    }
}

fn is_sabotaged(slot: NonNull<u8>, defect: Defect) -> bool {
    defects(slot).contains(&defect)
}

fn defects(slot: NonNull<u8>) -> Vec<Defect> {
    let addr = slot.as_ptr().addr();
    let covers = |range: &Range<usize>| range.start < addr + SLOT_BYTES && addr < range.end;
    let sabotaged = SABOTAGED.lock().unwrap();
    sabotaged.iter().filter(|(range, _)| covers(range)).map(|&(_, defect)| defect).collect()
}
