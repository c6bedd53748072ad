//! A descriptor in a program that may close it, and in children that must not share it.
//!
//! [`Descriptor`] is a place among the library's own descriptors ([`descriptors`]), which look before each use: a program that
//! closes all numbers and opens its own files must not find its files mapped as memory. A forked child closes the inherited
//! descriptor and gets one of its own at its first use.
//!
//! *Invariants*
//! - I1: `place` holds the index of a descriptor that this object entered, or [`NONE`].
//! - I2: `place` changes from [`NONE`] in `get`, and to [`NONE`] in `close`, which runs while no other thread uses
//!   the object (in a forked child with one thread, or in drop).

use crate::error::SysError;
use crate::sys::descriptors::{self, Lent, Own};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A checked descriptor that can be opened again.
#[derive(Debug)]
pub(super) struct Descriptor {
    place: AtomicUsize,
}

/// No descriptor is open.
const NONE: usize = usize::MAX;

impl Descriptor {
    /// Takes a descriptor over.
    pub(super) fn new(fd: OwnedFd) -> Result<Descriptor, SysError> {
        Ok(Descriptor { place: AtomicUsize::new(descriptors::enter(fd)?.index()) })
    }

    /// Returns whether a descriptor is open, that is, whether this is no forked child before its first use.
    pub(super) fn is_open(&self) -> bool {
        // Relaxed: the answer orders nothing; whoever then uses the descriptor goes through `get`.
        self.place.load(Ordering::Relaxed) != NONE
    }

    /// Returns the descriptor, that of `open` if none is open. Allocates nothing.
    ///
    /// # Errors
    /// What `open` answers; `EBADF` when the program has closed the descriptor or put another file in its place.
    pub(super) fn get(&self, open: impl FnOnce() -> Result<OwnedFd, SysError>) -> Result<Lent<'_>, SysError> {
        // Acquire: pairs with the Release of the exchange below, so that what `open` did to the file is done.
        let mut place = self.place.load(Ordering::Acquire);
        if place == NONE {
            let fresh = descriptors::enter(open()?)?;
            // AcqRel: Release publishes the file that we opened, Acquire sees the winner's when we lose.
            match self.place.compare_exchange(NONE, fresh.index(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => place = fresh.index(),
                Err(winner) => {
                    fresh.close();
                    place = winner;
                }
            }
        }
        Own::from_index(place).lend()
    }

    /// Closes the descriptor, unless the number is the program's by now. The next use opens one again.
    ///
    /// Called in a forked child, which has one thread (I2).
    pub(super) fn close(&self) {
        // Relaxed: no other thread uses the object (I2).
        let place = self.place.swap(NONE, Ordering::Relaxed);
        if place != NONE {
            Own::from_index(place).close();
        }
    }

    /// Returns the number of the open descriptor.
    #[cfg(test)]
    pub(super) fn number(&self) -> Option<std::os::fd::RawFd> {
        let place = self.place.load(Ordering::Relaxed);
        (place != NONE).then(|| Own::from_index(place).number())
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.close();
    }
}
