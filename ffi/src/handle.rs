//! The numbers that stand for pools and pgmaps in C.
//!
//! A [`Table`] gives every open object a number that is never given again: a closed number is refused, whatever has
//! been opened since. Looking one up is a load and a compare, so that it costs nothing beside an allocation.
//! Used by `pool` and `pgmap`.
//!
//! | bits | field |
//! |---|---|
//! | 0..16 | index of the slot |
//! | 16..56 | generation: how often the slot was opened, from 1 |
//! | 56..64 | kind of object |
//!
//! # Invariants
//! - I1: a slot's value is written only under `changes`, and only while its `open` word is no handle.
//! - I2: `open` becomes a handle after the value is in place (Release), and `CLOSING` before the value is taken out.
//! - I3: the C contract: nobody uses a handle while it is being closed. So a value that was found stays until its
//!   user is done.

use crate::error::{DAXTIER_EHANDLE, DAXTIER_ELIMIT, Failure, failure};
use parking_lot::Mutex;
use std::cell::UnsafeCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const CHUNKS: usize = 256;
const SLOTS_PER_CHUNK: usize = 256;
const INDEX_BITS: u32 = 16;
const KIND_SHIFT: u32 = 56;

/// The slot is free.
const CLOSED: u64 = 0;
/// The slot's object is being closed.
const CLOSING: u64 = u64::MAX;

fn is_handle(word: u64) -> bool {
    word != CLOSED && word != CLOSING
}

/// Objects of one kind, by number.
pub(crate) struct Table<T> {
    /// What the numbers begin with.
    kind: u8,
    /// What the objects are called in messages.
    name: &'static str,
    chunks: [OnceLock<Box<[Slot<T>]>>; CHUNKS],
    /// Held while a slot is opened or closed.
    changes: Mutex<()>,
}

struct Slot<T> {
    /// The handle while the slot is open, else `CLOSED` or `CLOSING`. Acquire and Release: publishes `value` (I2).
    open: AtomicU64,
    /// How often the slot was opened. Relaxed: written under `changes`.
    generation: AtomicU64,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: values are shared by reference between threads and moved in and out by any thread, both of which T allows;
// writes are excluded from reads by I1 to I3.
unsafe impl<T: Send + Sync> Sync for Slot<T> {}

impl<T> Table<T> {
    /// Makes an empty table.
    pub(crate) const fn new(kind: u8, name: &'static str) -> Table<T> {
        Table { kind, name, chunks: [const { OnceLock::new() }; CHUNKS], changes: Mutex::new(()) }
    }

    /// Returns the object behind `handle`.
    ///
    /// # Errors
    /// `DAXTIER_EHANDLE` unless `handle` is open.
    #[inline]
    pub(crate) fn get(&self, handle: u64) -> Result<&T, Failure> {
        let slot = self.slot(handle);
        // Acquire: pairs with the Release in `open_at`, so the value is seen as it was put in place (I2).
        match slot.filter(|slot| is_handle(handle) && slot.open.load(Ordering::Acquire) == handle) {
            // SAFETY: the slot is open under this handle, so it holds a value (I2), and the value stays (I3).
            Some(slot) => match unsafe { &*slot.value.get() } {
                Some(value) => Ok(value),
                None => Err(self.not_open(handle)),
            },
            None => Err(self.not_open(handle)),
        }
    }

    /// Puts an object into the first free slot and returns its handle.
    ///
    /// # Errors
    /// `DAXTIER_ELIMIT`, with the object dropped, when every slot is open.
    pub(crate) fn insert(&self, value: T) -> Result<u64, Failure> {
        let _changes = self.changes.lock();
        for index in 0..CHUNKS * SLOTS_PER_CHUNK {
            let slot = self.slot_made(index);
            if slot.open.load(Ordering::Relaxed) == CLOSED {
                return Ok(self.open_at(slot, index, value));
            }
        }
        Err(failure!(DAXTIER_ELIMIT, "{} {}s are open", CHUNKS * SLOTS_PER_CHUNK, self.name))
    }

    /// Puts an object into the slot with this index and returns its handle.
    ///
    /// # Errors
    /// `DAXTIER_ELIMIT` when the slot is open.
    pub(crate) fn insert_at(&self, index: u16, value: T) -> Result<u64, Failure> {
        let _changes = self.changes.lock();
        let slot = self.slot_made(index.into());
        if slot.open.load(Ordering::Relaxed) != CLOSED {
            return Err(failure!(DAXTIER_ELIMIT, "{} {index} is open already", self.name));
        }
        Ok(self.open_at(slot, index.into(), value))
    }

    /// Returns the open handle with this index, or 0.
    pub(crate) fn handle_at(&self, index: u16) -> u64 {
        let handle = self.slot(index.into()).map_or(CLOSED, |slot| slot.open.load(Ordering::Acquire));
        if is_handle(handle) { handle } else { 0 }
    }

    /// Returns the number that an object with this index has while it is not in the table.
    pub(crate) fn outsider(&self, index: u16) -> u64 {
        (self.kind as u64) << KIND_SHIFT | index as u64
    }

    /// Returns the index of an object that is not in the table, if the number is such a one.
    pub(crate) fn outsider_index(&self, handle: u64) -> Option<u16> {
        let index = handle as u16;
        (handle == self.outsider(index)).then_some(index)
    }

    /// Takes an object out and hands it to `close`, which may give it back; then it stays open under its handle.
    ///
    /// # Errors
    /// `DAXTIER_EHANDLE` unless `handle` is open, or what `close` returns.
    pub(crate) fn close_with(
        &self,
        handle: u64,
        close: impl FnOnce(T) -> Result<(), (Option<T>, Failure)>,
    ) -> Result<(), Failure> {
        let (slot, value) = self.take(handle)?;
        // No lock is held here: `close` may run callbacks, and those may open and close.
        let outcome = close(value);
        let _changes = self.changes.lock();
        match outcome {
            Ok(()) => {
                slot.open.store(CLOSED, Ordering::Relaxed);
                Ok(())
            }
            Err((None, failure)) => {
                slot.open.store(CLOSED, Ordering::Relaxed);
                Err(failure)
            }
            Err((value, failure)) => {
                // SAFETY: `changes` is held and the slot is not open (I1).
                unsafe { *slot.value.get() = value };
                // Release: pairs with the Acquire in `get` (I2).
                slot.open.store(handle, Ordering::Release);
                Err(failure)
            }
        }
    }

    /// Takes the object out of an open slot, which nobody else gets meanwhile.
    fn take(&self, handle: u64) -> Result<(&Slot<T>, T), Failure> {
        let _changes = self.changes.lock();
        let slot =
            self.slot(handle).filter(|slot| is_handle(handle) && slot.open.load(Ordering::Relaxed) == handle);
        let slot = slot.ok_or_else(|| self.not_open(handle))?;
        slot.open.store(CLOSING, Ordering::Relaxed);
        // SAFETY: `changes` is held and the slot is not open (I1), and nobody still uses the value (I3).
        let value = unsafe { &mut *slot.value.get() }.take();
        Ok((slot, value.ok_or_else(|| self.not_open(handle))?))
    }

    /// Calls `body` for every open object until it returns something.
    pub(crate) fn find_map<R>(&self, mut body: impl FnMut(u64, &T) -> Option<R>) -> Option<R> {
        self.chunks.iter().filter_map(OnceLock::get).flat_map(|chunk| chunk.iter()).find_map(|slot| {
            let handle = slot.open.load(Ordering::Acquire);
            Self::value_if_open(slot, handle).and_then(|value| body(handle, value))
        })
    }

    fn value_if_open(slot: &Slot<T>, handle: u64) -> Option<&T> {
        // SAFETY: as in `get`.
        if is_handle(handle) { unsafe { &*slot.value.get() }.as_ref() } else { None }
    }

    /// Opens a closed slot. `changes` is held.
    fn open_at(&self, slot: &Slot<T>, index: usize, value: T) -> u64 {
        let generation = slot.generation.load(Ordering::Relaxed) + 1;
        slot.generation.store(generation, Ordering::Relaxed);
        // SAFETY: `changes` is held and the slot is closed (I1).
        unsafe { *slot.value.get() = Some(value) };
        let handle = (self.kind as u64) << KIND_SHIFT | generation << INDEX_BITS | index as u64;
        // Release: pairs with the Acquire in `get` (I2).
        slot.open.store(handle, Ordering::Release);
        handle
    }

    fn slot(&self, handle: u64) -> Option<&Slot<T>> {
        let index = handle as u16 as usize;
        self.chunks[index / SLOTS_PER_CHUNK].get().map(|chunk| &chunk[index % SLOTS_PER_CHUNK])
    }

    fn slot_made(&self, index: usize) -> &Slot<T> {
        let chunk = self.chunks[index / SLOTS_PER_CHUNK].get_or_init(|| {
            let slot = || Slot {
                open: AtomicU64::new(0),
                generation: AtomicU64::new(0),
                value: UnsafeCell::new(None),
            };
            std::iter::repeat_with(slot).take(SLOTS_PER_CHUNK).collect()
        });
        &chunk[index % SLOTS_PER_CHUNK]
    }

    #[cold]
    fn not_open(&self, handle: u64) -> Failure {
        failure!(DAXTIER_EHANDLE, "{handle:#x} is not an open {}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_number_is_refused_for_good() {
        let table = Table::new(1, "thing");
        let first = table.insert("a").expect("there is room");
        assert_eq!(*table.get(first).expect("it is open"), "a");
        table.close_with(first, |_| Ok(())).expect("it was open");
        assert!(table.get(first).is_err());
        let second = table.insert("b").expect("there is room");
        assert_ne!(first, second, "the slot is used again, the number is not");
        assert!(table.get(first).is_err());
        assert!(table.close_with(first, |_| Ok(())).is_err());
        assert_eq!(*table.get(second).expect("it is open"), "b");
    }

    #[test]
    fn a_refused_close_leaves_the_object_open() {
        let table = Table::new(1, "thing");
        let handle = table.insert(7).expect("there is room");
        let refused = table.close_with(handle, |value| Err((Some(value), failure!(-16, "busy"))));
        assert!(refused.is_err());
        assert_eq!(*table.get(handle).expect("it is open"), 7);
    }

    #[test]
    fn numbers_of_another_kind_and_no_numbers_are_refused() {
        let (pools, pgmaps) = (Table::new(1, "pool"), Table::new(2, "pgmap"));
        let pool = pools.insert(()).expect("there is room");
        pgmaps.insert(()).expect("there is room");
        assert!(pgmaps.get(pool).is_err());
        for number in [0, 1, u64::MAX, pool ^ 1, pool + (1 << INDEX_BITS)] {
            assert!(pools.get(number).is_err(), "{number:#x}");
        }
    }

    #[test]
    fn an_outsider_is_told_from_an_open_object() {
        let table = Table::new(2, "pgmap");
        let handle = table.insert_at(5, ()).expect("the slot is free");
        assert_eq!(table.outsider_index(handle), None);
        assert_eq!(table.outsider_index(table.outsider(5)), Some(5));
        assert_eq!(table.handle_at(5), handle);
        assert_eq!(table.handle_at(6), 0);
    }
}
