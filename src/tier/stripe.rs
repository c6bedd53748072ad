//! Which of a tier's pgmaps serves next: near memory first, and among equals the one with most room.
//!
//! Neighbouring slots share a mapping while their folios are neighbours of one device, so the choice stays with a pgmap
//! for a [stripe](stripe_bytes) before it goes on to another one that has more room. Pure: figures in, an index out.

/// Stripes are no longer: 64 slots of 2 MiB, at which the number of mappings does not matter.
const LONGEST_STRIPE: u64 = 128 << 20;
/// A slot.
const SHORTEST_STRIPE: u64 = 2 << 20;

/// What the choice knows of a pgmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The distance from the calling processor, by the kernel's table.
    pub(super) distance: u8,
    pub(super) free_bytes: u64,
    pub(super) capacity_bytes: u64,
    /// Whether it was chosen last.
    pub(super) is_current: bool,
}

/// How much more room another pgmap must have before the choice leaves `current` for it: an eighth of the smaller one.
fn stripe_bytes(current: &Candidate, other: &Candidate) -> u64 {
    (current.capacity_bytes.min(other.capacity_bytes) / 8).clamp(SHORTEST_STRIPE, LONGEST_STRIPE)
}

/// Returns the index of the best of the candidates that are left (`Some`), or `None` when none is.
pub(super) fn best(candidates: impl Iterator<Item = Option<Candidate>>) -> Option<usize> {
    let mut best: Option<(usize, Candidate)> = None;
    for (at, candidate) in candidates.enumerate() {
        let Some(candidate) = candidate else { continue };
        if best.as_ref().is_none_or(|(_, best)| is_better(&candidate, best)) {
            best = Some((at, candidate));
        }
    }
    best.map(|(at, _)| at)
}

fn is_better(candidate: &Candidate, than: &Candidate) -> bool {
    let has_room = |candidate: &Candidate| candidate.free_bytes > 0;
    if has_room(candidate) != has_room(than) {
        return has_room(candidate);
    }
    if candidate.distance != than.distance {
        return candidate.distance < than.distance;
    }
    if than.is_current {
        candidate.free_bytes > than.free_bytes + stripe_bytes(than, candidate)
    } else if candidate.is_current {
        candidate.free_bytes + stripe_bytes(candidate, than) >= than.free_bytes
    } else {
        candidate.free_bytes > than.free_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn candidate(distance: u8, free_mib: u64, capacity_mib: u64) -> Candidate {
        Candidate {
            distance,
            free_bytes: free_mib * MIB,
            capacity_bytes: capacity_mib * MIB,
            is_current: false,
        }
    }

    /// Takes 2 MiB after the other, and returns from which.
    fn fill(mut candidates: Vec<Candidate>, slots: usize) -> Vec<usize> {
        (0..slots)
            .map(|_| {
                let at = best(candidates.iter().copied().map(Some)).expect("there are some");
                candidates.iter_mut().for_each(|candidate| candidate.is_current = false);
                candidates[at].is_current = true;
                candidates[at].free_bytes -= 2 * MIB;
                at
            })
            .collect()
    }

    #[test]
    fn near_memory_comes_first_until_it_is_full() {
        let taken = fill(vec![candidate(20, 1024, 1024), candidate(10, 8, 8)], 6);
        assert_eq!(taken, [1, 1, 1, 1, 0, 0]);
    }

    #[test]
    fn equals_are_filled_in_stripes_to_the_same_room() {
        let taken = fill(vec![candidate(10, 4096, 4096), candidate(10, 4096, 4096)], 1024);
        let changes = taken.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!((4..=16).contains(&changes), "{changes} changes for 2 GiB");
        let first = taken.iter().filter(|&&at| at == 0).count();
        assert!((448..=576).contains(&first), "{first} of 1024 slots on the first");
    }

    #[test]
    fn the_one_with_more_room_catches_up() {
        let taken = fill(vec![candidate(10, 64, 64), candidate(10, 512, 512)], 224);
        assert!(taken.iter().all(|&at| at == 1), "the larger one has more room all the while");
    }

    #[test]
    fn who_was_tried_is_left_out() {
        assert_eq!(best([None, Some(candidate(90, 2, 2))].into_iter()), Some(1));
        assert_eq!(best([None, None].into_iter()), None);
        assert_eq!(best([Some(candidate(10, 0, 8)), Some(candidate(90, 2, 2))].into_iter()), Some(1));
    }
}
