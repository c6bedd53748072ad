//! A descriptor in a program that may close it, and in children that must not share it.
//!
//! [`Descriptor`] keeps the number of an open file beside the inode that it must refer to, and looks before each
//! use: a program that closes all numbers and opens its own files must not find its files mapped as memory. A
//! forked child closes the inherited descriptor and gets one of its own at its first use.
//!
//! *Invariants*
//! - I1: `word` holds the number of a descriptor that this object opened and the low half of its inode number, or
//!   [`NONE`].
//! - I2: `word` changes from [`NONE`] in `get`, and to [`NONE`] in `close`, which runs while no other thread uses
//!   the object (in a forked child with one thread, or in drop).

use crate::error::SysError;
use crate::sys::file::{self, FileId};
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// A checked descriptor that can be opened again.
#[derive(Debug)]
pub(super) struct Descriptor {
    /// The file system that the file lives on; a file opened again is on the same one.
    dev: u64,
    /// Bits 0..32 the low half of the inode number, bits 32..64 the descriptor's number; or [`NONE`].
    word: AtomicU64,
}

/// No descriptor is open.
const NONE: u64 = u64::MAX;

impl Descriptor {
    /// Takes a descriptor over.
    pub(super) fn new(fd: OwnedFd) -> Result<Descriptor, SysError> {
        let (word, dev) = pack(fd)?;
        Ok(Descriptor { dev, word: AtomicU64::new(word) })
    }

    /// Returns whether a descriptor is open, that is, whether this is no forked child before its first use.
    pub(super) fn is_open(&self) -> bool {
        // Relaxed: the answer orders nothing; whoever then uses the descriptor goes through `get`.
        self.word.load(Ordering::Relaxed) != NONE
    }

    /// Returns the descriptor, that of `open` if none is open. Allocates nothing.
    ///
    /// # Errors
    /// What `open` answers; `EBADF` when the program has closed the descriptor or put another file in its place.
    pub(super) fn get(
        &self,
        open: impl FnOnce() -> Result<OwnedFd, SysError>,
    ) -> Result<BorrowedFd<'_>, SysError> {
        // Acquire: pairs with the Release of the exchange below, so that what `open` did to the file is done.
        let mut word = self.word.load(Ordering::Acquire);
        if word == NONE {
            let (fresh, _) = pack(open()?)?;
            // AcqRel: Release publishes the file that we opened, Acquire sees the winner's when we lose.
            match self.word.compare_exchange(NONE, fresh, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => word = fresh,
                Err(winner) => {
                    self.close_word(fresh);
                    word = winner;
                }
            }
        }
        // SAFETY: by I1 the descriptor is ours, and by I2 it stays open while it is borrowed.
        unsafe { file::borrow_if(number(word), |id| self.is_ours(word, id)) }
    }

    /// Closes the descriptor, unless the number is the program's by now. The next use opens one again.
    ///
    /// Called in a forked child, which has one thread (I2).
    pub(super) fn close(&self) {
        // Relaxed: no other thread uses the object (I2).
        let word = self.word.swap(NONE, Ordering::Relaxed);
        self.close_word(word);
    }

    fn close_word(&self, word: u64) {
        if word != NONE {
            file::close_if(number(word), |id| self.is_ours(word, id));
        }
    }

    fn is_ours(&self, word: u64, id: FileId) -> bool {
        id.dev == self.dev && id.ino as u32 == word as u32
    }

    /// Returns the number of the open descriptor.
    #[cfg(test)]
    pub(super) fn number(&self) -> Option<RawFd> {
        let word = self.word.load(Ordering::Relaxed);
        (word != NONE).then(|| number(word))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.close();
    }
}

fn pack(fd: OwnedFd) -> Result<(u64, u64), SysError> {
    use std::os::fd::AsRawFd;
    let id = file::stat(fd.as_raw_fd())?.id;
    Ok((u64::from(fd.into_raw_fd() as u32) << 32 | id.ino & u64::from(u32::MAX), id.dev))
}

fn number(word: u64) -> RawFd {
    (word >> 32) as RawFd
}
