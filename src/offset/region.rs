//! A region of 1 GiB as one word: which of its eight extents are idle, and which runs span extents.
//!
//! Orders 16 to 18 are taken and given back with one compare-and-swap. The functions are pure transitions
//! `old -> Option<new>`.
//!
//! | bits | meaning |
//! |---|---|
//! | 0..8 | the extent is present in full length, wholly free, and in no spanning run |
//! | 8..12, 12..14, 14 | a run of two, four, eight extents is allocated, by its place |

use super::geometry::REGION_EXTENTS_ORDER;

/// A region with all extents idle: what a free gigabyte looks like.
#[cfg(all(test, not(loom)))]
const ALL_IDLE: u64 = 0xff;

/// Returns the bits of the extents of the run of 2^level extents that begins at `extent` (0..8).
fn extents(extent: usize, level: u8) -> u64 {
    ((1 << (1 << level)) - 1) << extent
}

/// Returns the bit that says that the run is allocated.
fn span_bit(extent: usize, level: u8) -> u64 {
    let first = match level {
        1 => 8,
        2 => 12,
        _ => 14,
    };
    1 << (first + (extent >> level))
}

/// Takes the run of 2^level idle extents from `extent` on.
pub(super) fn take(word: u64, extent: usize, level: u8) -> Option<u64> {
    let run = extents(extent, level);
    (word & run == run).then(|| word & !run | span_bit(extent, level))
}

/// Gives it back.
pub(super) fn give(word: u64, extent: usize, level: u8) -> Option<u64> {
    let bit = span_bit(extent, level);
    (word & bit != 0).then(|| word & !bit | extents(extent, level))
}

/// Takes an idle extent out, to be used in smaller pieces.
pub(super) fn open(word: u64, extent: usize) -> Option<u64> {
    (word >> extent & 1 != 0).then(|| word & !(1 << extent))
}

/// Returns the level of the run that begins at `extent`.
pub(super) fn level_at(word: u64, extent: usize) -> Option<u8> {
    (1..=REGION_EXTENTS_ORDER)
        .find(|&level| extent.trailing_zeros() >= u32::from(level) && word & span_bit(extent, level) != 0)
}

/// Returns whether `extent` is part of a run.
pub(super) fn is_spanned(word: u64, extent: usize) -> bool {
    (1..=REGION_EXTENTS_ORDER).any(|level| word & span_bit(extent, level) != 0)
}

/// Returns the lowest place where a run of 2^level extents could be taken.
pub(super) fn find(word: u64, level: u8) -> Option<usize> {
    (0..8).step_by(1 << level).find(|&extent| take(word, extent, level).is_some())
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn every_span_excludes_every_other_that_overlaps() {
        let places = (1..=3u8).flat_map(|level| (0..8usize).step_by(1 << level).map(move |e| (e, level)));
        for (extent, level) in places.clone() {
            let word = take(ALL_IDLE, extent, level).expect("idle");
            assert_eq!(level_at(word, extent), Some(level));
            assert_eq!(give(word, extent, level), Some(ALL_IDLE));
            for (other, other_level) in places.clone() {
                let overlaps = extents(extent, level) & extents(other, other_level) != 0;
                assert_eq!(take(word, other, other_level).is_none(), overlaps);
                assert_eq!(give(word, other, other_level).is_some(), (other, other_level) == (extent, level));
            }
            for page in 0..8 {
                assert_eq!(is_spanned(word, page), extents(extent, level) >> page & 1 != 0);
                assert_eq!(open(word, page).is_none(), is_spanned(word, page));
            }
        }
    }
}
