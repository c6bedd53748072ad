//! The program's calls that close or re-use descriptors, where they would meet ours.
//!
//! For the preload library, whose close, close_range, closefrom, dup2 and dup3 pass ours over as if they were not open. All
//! of it works before the library is set up, and in a child of fork or vfork ours are like any others: the numbers that the
//! table has are those of its own process. Uses `sys::descriptors`.

use crate::sync::gate;
use crate::sys::descriptors;
use libc::c_int;

/// A refusal: an `errno` value.
pub type Errno = c_int;

/// Returns whether a number is a descriptor of ours. Async-signal-safe; costs one comparison for numbers below ours.
#[inline]
pub fn is_own(number: c_int) -> bool {
    descriptors::is_own(number)
}

/// Returns whether a descriptor of ours is in a range of numbers.
pub fn is_any_own(first: c_int, last: c_int) -> bool {
    descriptors::first_in(first, last).is_some()
}

/// Calls `close` with each range of numbers in `first..=last` that has none of ours, until one call fails.
///
/// # Errors
/// What `close` says.
pub fn for_each_gap(
    first: c_int,
    last: c_int,
    mut close: impl FnMut(c_int, c_int) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut next = first;
    loop {
        match descriptors::first_in(next, last) {
            None => return close(next, last),
            Some(own) => {
                if own > next {
                    close(next, own - 1)?;
                }
                if own == last {
                    return Ok(());
                }
                next = own + 1;
            }
        }
    }
}

/// Gives a descriptor of ours another number, so that the program can have this one.
///
/// # Errors
/// `EBUSY` in a signal handler that interrupted the library, as dup2 may say; `EMFILE` when there is no other number.
pub fn vacate(number: c_int) -> Result<(), Errno> {
    if gate::is_inside() {
        return Err(libc::EBUSY);
    }
    // Whoever uses a descriptor of ours is inside.
    gate::close();
    let moved = descriptors::move_away(number);
    gate::open();
    moved.map_err(|refusal| refusal.errno)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::sys::file;

    #[test]
    fn ranges_are_cut_around_what_is_ours() {
        let made: Vec<_> = (0..2)
            .map(|_| descriptors::enter(file::memfd(c"daxtier-gap-test", 4096).unwrap()).unwrap())
            .collect();
        let mut own: Vec<c_int> = made.iter().map(|own| own.number()).collect();
        own.sort_unstable();
        // Other tests have descriptors too.
        let mut closed = Vec::new();
        let note = |first, last| {
            closed.push((first, last));
            Ok(())
        };
        for_each_gap(3, c_int::MAX, note).unwrap();
        assert!(closed.iter().all(|(first, last)| first <= last));
        assert!(own.iter().all(|number| closed.iter().all(|(first, last)| number < first || last < number)));
        assert_eq!((closed[0].0, closed[closed.len() - 1].1), (3, c_int::MAX));
        assert_eq!(for_each_gap(own[0], own[0], |_, _| Err(1)), Ok(()));
        assert_eq!(for_each_gap(0, 2, |first, last| Err(first * 10 + last)), Err(2));
        let number = own[0];
        vacate(number).unwrap();
        assert!(!is_own(number) && is_any_own(number + 1, c_int::MAX));
        // SAFETY: takes a number; it is still open here.
        assert_eq!(unsafe { libc::close(number) }, 0);
        made.into_iter().for_each(descriptors::Own::close);
    }
}
