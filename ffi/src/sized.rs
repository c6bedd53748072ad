//! Structures that begin with their size, across versions of the library.
//!
//! A program that was compiled with an older header passes a shorter structure, one with a newer header a longer one.
//! Options are read with [`read`]: what the program's structure lacks is zero, which means the default, and what this
//! library does not know must be zero. Results are written with [`write`]: what the program has no room for is left
//! out, and what this library does not know reads as zero. Used wherever a structure crosses.

use crate::error::{DAXTIER_E2BIG, DAXTIER_ENULL, DAXTIER_ESIZE, Failure, failure};
use std::mem::MaybeUninit;
use std::ptr;

/// Sizes above this are taken for garbage.
const LARGEST: usize = 4096;

/// A structure whose first field is its size in bytes, a `usize`.
///
/// # Safety
/// - The type is `repr(C)`, its first field is a `usize`, it has no padding, and all zeroes is a valid value.
pub(crate) unsafe trait SizedStruct: Copy {
    /// The structure's name in C.
    const NAME: &'static str;
    /// The size that the first version of the structure had.
    const FIRST_SIZE: usize;
}

/// Reads options; NULL stands for all defaults.
///
/// # Safety
/// `options` is NULL or points to as many readable bytes as its first field says.
pub(crate) unsafe fn read<T: SizedStruct>(options: *const T) -> Result<Option<T>, Failure> {
    if options.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller passes a structure of at least one field.
    let size = unsafe { checked_size(options) }?;
    let known = size.min(size_of::<T>());
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes are readable, as the caller promised, and fit into a T.
    unsafe { ptr::copy_nonoverlapping(options.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), known) };
    // SAFETY: the structure has `size` bytes, as the caller promised.
    let bytes = unsafe { std::slice::from_raw_parts(options.cast::<u8>(), size) };
    if let Some(at) = (known..size).find(|&at| bytes[at] != 0) {
        return Err(failure!(
            DAXTIER_E2BIG,
            "{} sets byte {at}, which this version (size {}) does not know",
            T::NAME,
            size_of::<T>()
        ));
    }
    // SAFETY: zeroes are valid for a T, and so is what the caller wrote as one.
    Ok(Some(unsafe { value.assume_init() }))
}

/// Checks, before any work is done, that a result can be written to `out`. Returns the caller's size.
///
/// # Safety
/// `out` is NULL or points to at least a `usize`.
pub(crate) unsafe fn check_out<T: SizedStruct>(out: *const T) -> Result<usize, Failure> {
    if out.is_null() {
        return Err(failure!(DAXTIER_ENULL, "the pointer to struct {} is NULL", T::NAME));
    }
    // SAFETY: the caller argued it.
    unsafe { checked_size(out) }
}

/// Writes a result; `size` is what [`check_out`] returned. The size field keeps the caller's value.
///
/// # Safety
/// `out` points to `size` writable bytes.
pub(crate) unsafe fn write<T: SizedStruct>(out: *mut T, size: usize, value: &T) {
    let first = size_of::<usize>();
    let known = size.min(size_of::<T>());
    // SAFETY: both are at least FIRST_SIZE long, so the range after the first field is in bounds.
    let from = unsafe { ptr::from_ref(value).cast::<u8>().add(first) };
    // SAFETY: as above, for the caller's structure.
    let to = unsafe { out.cast::<u8>().add(first) };
    // SAFETY: `known` bytes are in both structures, and the library's own value is no part of the caller's.
    unsafe { ptr::copy_nonoverlapping(from, to, known - first) };
    // SAFETY: the caller's structure has `size` bytes.
    let rest = unsafe { out.cast::<u8>().add(known) };
    // SAFETY: as above.
    unsafe { rest.write_bytes(0, size - known) };
}

/// Writes element `index` of an array of the caller's, whose elements are `size` bytes long.
///
/// # Safety
/// `array` points to more than `index` elements of `size` writable bytes.
pub(crate) unsafe fn write_element<T: SizedStruct>(array: *mut T, size: usize, index: usize, value: &T) {
    // SAFETY: the element lies inside the caller's array.
    let element = unsafe { array.cast::<u8>().add(index * size) };
    // SAFETY: every structure begins with its size.
    unsafe { element.cast::<usize>().write_unaligned(size) };
    // SAFETY: the element has `size` bytes.
    unsafe { write(element.cast::<T>(), size, value) };
}

/// # Safety
/// `structure` points to at least a `usize`.
unsafe fn checked_size<T: SizedStruct>(structure: *const T) -> Result<usize, Failure> {
    // SAFETY: the caller argued it; the alignment does not matter.
    let size = unsafe { structure.cast::<usize>().read_unaligned() };
    if (T::FIRST_SIZE..=LARGEST).contains(&size) && size % align_of::<usize>() == 0 {
        Ok(size)
    } else {
        Err(failure!(
            DAXTIER_ESIZE,
            "the size field of struct {} is {size}; set it to sizeof(struct {}), which is {} in this version",
            T::NAME,
            T::NAME,
            size_of::<T>()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Options {
        size: usize,
        first: u64,
        second: u64,
    }

    // SAFETY: repr(C), three words, zeroes are valid.
    unsafe impl SizedStruct for Options {
        const NAME: &'static str = "options";
        const FIRST_SIZE: usize = 16;
    }

    fn read_words(words: &[u64]) -> Result<Option<Options>, Failure> {
        // SAFETY: the tests' sizes are at most the length of their arrays, or refused before they are used.
        unsafe { read(words.as_ptr().cast::<Options>()) }
    }

    #[test]
    fn an_older_program_gets_the_defaults_of_newer_fields() {
        let options = read_words(&[16, 7]).expect("16 is the first size").expect("not NULL");
        assert_eq!((options.first, options.second), (7, 0));
        assert!(read_words(&[24, 7, 8]).is_ok_and(|o| o.is_some_and(|o| o.second == 8)));
    }

    #[test]
    fn a_newer_program_may_set_only_what_is_known() {
        assert!(read_words(&[32, 7, 8, 0]).is_ok());
        assert!(read_words(&[32, 7, 8, 1]).is_err());
    }

    #[test]
    fn a_size_that_cannot_be_is_refused() {
        for size in [0, 8, 15, 17, 4104, u64::MAX] {
            assert!(read_words(&[size, 0, 0, 0]).is_err(), "{size}");
        }
    }

    #[test]
    fn a_result_fills_what_the_program_has_and_no_more() {
        let value = Options { size: 24, first: 7, second: 8 };
        for (size, expected) in [(16, [16, 7, 99, 99]), (24, [24, 7, 8, 99]), (32, [32, 7, 8, 0])] {
            let mut words = [size as u64, 99, 99, 99];
            let out = words.as_mut_ptr().cast::<Options>();
            // SAFETY: the array holds four words, and no size is larger.
            let checked = unsafe { check_out(out) }.expect("the size is allowed");
            // SAFETY: as above.
            unsafe { write(out, checked, &value) };
            assert_eq!(words, expected);
        }
    }
}
