//! Arrays that cost address space, not memory.
//!
//! A [`LazySlice`] reserves room for every element it could ever have; a range of elements comes to life, all
//! zero, when it is populated, and its memory appears on first touch. Element types are valid when all their
//! bytes are zero ([`Zeroed`]). Metadata of huge devices lives in them: binding costs one reservation each.
//! Models use a plain boxed slice instead. Uses `sys::mm`; used by `offset` and `pgmap`.
//!
//! # Invariants
//! I1: once populated a range stays mapped until the slice is dropped; giving it back only zeroes it.

use crate::error::SysError;
use std::ops::Range;

/// Types whose value of all zero bytes is valid, and is their default.
///
/// # Safety
/// The implementor is valid when every byte of it is zero, needs no drop, and is at least as large as its
/// alignment.
pub(crate) unsafe trait Zeroed: Default + Send + Sync {}

#[cfg(not(loom))]
pub(crate) use real::LazySlice;

#[cfg(loom)]
pub(crate) use model::LazySlice;

#[cfg(not(loom))]
mod real {
    use super::{Range, SysError, Zeroed};
    use crate::sys::mm::{self, Reservation};
    use crate::units::{Order, PAGE_SIZE};
    use std::marker::PhantomData;
    use std::ptr::NonNull;

    // SAFETY: an atomic is a plain word; zero is its default.
    unsafe impl Zeroed for std::sync::atomic::AtomicU64 {}
    // SAFETY: an atomic is a plain half-word; zero is its default.
    unsafe impl Zeroed for std::sync::atomic::AtomicU16 {}

    /// A reserved array of `T`, populated by ranges.
    #[derive(Debug)]
    pub(crate) struct LazySlice<T> {
        room: Reservation,
        len: usize,
        elements: PhantomData<T>,
    }

    /// Keeps huge pages out of fresh memory: one touched element must not cost 2 MiB.
    fn keep_small(addr: NonNull<u8>, len_bytes: usize) {
        if len_bytes >= Order::HUGE.len_bytes() as usize {
            // SAFETY: the caller's memory; the advice drops nothing. A kernel without huge pages refuses it, which is as
            // good.
            let _ = unsafe { mm::advise(addr, len_bytes, libc::MADV_NOHUGEPAGE) };
        }
    }

    impl<T: Zeroed> LazySlice<T> {
        /// Reserves room for `len` elements. None exists yet.
        ///
        /// # Errors
        /// The refusal of mmap.
        pub(crate) fn reserve(len: usize) -> Result<LazySlice<T>, SysError> {
            let room = Reservation::new(Self::room_bytes(len)?, PAGE_SIZE)?;
            Ok(LazySlice { room, len, elements: PhantomData })
        }

        /// Reserves and populates `len` elements. Untouched ones cost nothing.
        ///
        /// # Errors
        /// The refusal of mmap.
        pub(crate) fn populated(len: usize) -> Result<LazySlice<T>, SysError> {
            let room = Reservation::new_mapped(Self::room_bytes(len)?)?;
            keep_small(room.base(), room.len_bytes());
            Ok(LazySlice { room, len, elements: PhantomData })
        }

        fn room_bytes(len: usize) -> Result<usize, SysError> {
            len.max(1)
                .checked_mul(size_of::<T>())
                .and_then(|bytes| bytes.checked_next_multiple_of(PAGE_SIZE))
                .ok_or(SysError { call: "mmap", errno: libc::ENOMEM })
        }

        /// Brings `range` to life, zeroed. The range starts on a page boundary, is new, and ends on one or at
        /// the end of the slice.
        ///
        /// # Errors
        /// The refusal of mmap.
        pub(crate) fn populate(&self, range: Range<usize>) -> Result<(), SysError> {
            let Some((addr, len_bytes)) = self.pages(&range) else { return Ok(()) };
            // SAFETY: the pages lie in our reservation (`pages` checked) and hold no element yet.
            unsafe { mm::map_anonymous(addr, len_bytes) }?;
            keep_small(addr, len_bytes);
            Ok(())
        }

        /// Gives the memory of a populated range back; its elements are zero again.
        ///
        /// # Safety
        /// Nobody writes to the elements of `range`, or expects to read anything but zero from them.
        pub(crate) unsafe fn give_back(&self, range: Range<usize>) {
            let Some((addr, len_bytes)) = self.pages(&range) else { return };
            // SAFETY: the pages lie in our reservation, and the caller argued that their content is void.
            if unsafe { mm::advise(addr, len_bytes, libc::MADV_DONTNEED) }.is_err() {
                // Locked memory (mlockall) refuses the advice: clear it by hand.
                // SAFETY: as above, and the pages are mapped writable (I1).
                unsafe { std::ptr::write_bytes(addr.as_ptr(), 0, len_bytes) };
            }
        }

        /// Returns the element at `index`.
        ///
        /// # Safety
        /// The element was populated.
        pub(crate) unsafe fn get(&self, index: usize) -> &T {
            debug_assert!(index < self.len);
            // SAFETY: the caller says that the element was populated.
            let element = unsafe { self.element_ptr(index) };
            // SAFETY: populated memory is mapped until drop (I1), and zero or a value written through `&T`.
            unsafe { element.as_ref() }
        }

        /// Returns the address of the element at `index`, for users with a lock of their own around it.
        ///
        /// # Safety
        /// The element was populated.
        pub(crate) unsafe fn element_ptr(&self, index: usize) -> NonNull<T> {
            debug_assert!(index < self.len);
            // SAFETY: the index is inside the reservation because the element was populated.
            unsafe { self.room.base().cast::<T>().add(index) }
        }

        /// Returns the address and length of the pages that hold `range`, or `None` when it is empty.
        fn pages(&self, range: &Range<usize>) -> Option<(NonNull<u8>, usize)> {
            assert!(range.end <= self.len, "the range lies in the slice");
            let start = range.start * size_of::<T>();
            let end = (range.end * size_of::<T>()).next_multiple_of(PAGE_SIZE);
            debug_assert!(start.is_multiple_of(PAGE_SIZE));
            if range.is_empty() {
                return None;
            }
            self.room.at(start).map(|addr| (addr, end - start))
        }
    }
}

#[cfg(loom)]
mod model {
    use super::{Range, SysError, Zeroed};
    use std::cell::UnsafeCell;
    use std::ptr::NonNull;

    // SAFETY: never built from zero bytes in models.
    unsafe impl Zeroed for loom::sync::atomic::AtomicU64 {}
    // SAFETY: never built from zero bytes in models.
    unsafe impl Zeroed for loom::sync::atomic::AtomicU16 {}

    /// The array of models: every element exists from the start; giving back does nothing, so users zero first.
    pub(crate) struct LazySlice<T> {
        elements: Box<[UnsafeCell<T>]>,
    }

    // SAFETY: shared access only reads the box; writers through `element_ptr` bring their own lock.
    unsafe impl<T: Zeroed> Sync for LazySlice<T> {}

    impl<T> std::fmt::Debug for LazySlice<T> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("LazySlice")
        }
    }

    impl<T: Zeroed> LazySlice<T> {
        pub(crate) fn reserve(len: usize) -> Result<LazySlice<T>, SysError> {
            Ok(LazySlice { elements: (0..len).map(|_| UnsafeCell::new(T::default())).collect() })
        }

        pub(crate) fn populated(len: usize) -> Result<LazySlice<T>, SysError> {
            LazySlice::reserve(len)
        }

        pub(crate) fn populate(&self, _range: Range<usize>) -> Result<(), SysError> {
            Ok(())
        }

        /// # Safety
        /// As in the real slice.
        pub(crate) unsafe fn give_back(&self, _range: Range<usize>) {}

        /// # Safety
        /// As in the real slice.
        pub(crate) unsafe fn get(&self, index: usize) -> &T {
            // SAFETY: as in the real slice.
            let element = unsafe { self.element_ptr(index) };
            // SAFETY: as in the real slice.
            unsafe { element.as_ref() }
        }

        /// # Safety
        /// As in the real slice.
        pub(crate) unsafe fn element_ptr(&self, index: usize) -> NonNull<T> {
            NonNull::new(self.elements[index].get()).expect("a cell has an address")
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn populated_elements_are_zero_and_keep_what_is_stored() {
        let slice = LazySlice::<AtomicU64>::reserve(1 << 30).expect("8 GiB of address space");
        slice.populate(512..1024).expect("a page");
        // SAFETY: 700 was populated.
        let element = unsafe { slice.get(700) };
        assert_eq!(element.load(Ordering::Relaxed), 0);
        element.store(7, Ordering::Relaxed);
        assert_eq!(element.load(Ordering::Relaxed), 7);
        // SAFETY: this test is the only user.
        unsafe { slice.give_back(512..1024) };
        assert_eq!(element.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_impossible_length_is_refused() {
        assert!(LazySlice::<AtomicU64>::reserve(usize::MAX / 4).is_err());
    }
}
