//! Choosing the tier of the next slot.
//!
//! A [`Placer`] turns a policy into an order in which tiers are tried. It sees tier numbers and room, never a
//! pointer or an offset. Tier 0 is the fast one.

use super::{Policy, TierName};
use std::sync::atomic::{AtomicU32, Ordering};

/// The most tiers that a pool has.
pub(crate) const MAX_TIERS: usize = 2;

/// The tiers to try, in order; unused places are `None`.
pub(crate) type Preference = [Option<Choice>; MAX_TIERS + 1];

/// A tier to try, and how much of it must stay free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The tier's number.
    pub(crate) tier: usize,
    /// Whether the tier's watermark counts: a slot is then only taken while more than that is free.
    pub(crate) above_watermark: bool,
}

/// A policy at work.
#[derive(Debug)]
pub(crate) struct Placer {
    policy: Policy,
    nr_tiers: usize,
    /// Slots placed by an interleave so far, modulo 2^32. Relaxed: a share that is off by a race evens out.
    turn: AtomicU32,
}

impl Placer {
    pub(crate) fn new(policy: Policy, nr_tiers: usize) -> Placer {
        debug_assert!((1..=MAX_TIERS).contains(&nr_tiers));
        Placer { policy, nr_tiers, turn: AtomicU32::new(0) }
    }

    /// Returns the tiers for the next slot, best first.
    pub(crate) fn next(&self) -> Preference {
        match self.policy {
            Policy::Fill => self.fill(),
            Policy::Interleave { fast, slow } => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) % (fast + slow);
                self.first(if turn < fast { TierName::Fast } else { TierName::Slow })
            }
            Policy::Bind(tier) => self.only(tier),
            Policy::Preferred(tier) => self.first(tier),
        }
    }

    /// Returns every tier that the policy may use, without taking a turn.
    pub(crate) fn allowed(&self) -> Preference {
        match self.policy {
            Policy::Bind(tier) => self.only(tier),
            _ => self.first(TierName::Fast),
        }
    }

    fn fill(&self) -> Preference {
        if self.nr_tiers == 1 {
            return self.only(TierName::Fast);
        }
        // The fast tier's reserve is used when all else is full, rather than to fail.
        [
            Some(Choice { tier: 0, above_watermark: true }),
            Some(Choice { tier: 1, above_watermark: false }),
            Some(Choice { tier: 0, above_watermark: false }),
        ]
    }

    fn only(&self, tier: TierName) -> Preference {
        [self.choice(tier), None, None]
    }

    fn first(&self, tier: TierName) -> Preference {
        let other = match tier {
            TierName::Fast => TierName::Slow,
            TierName::Slow => TierName::Fast,
        };
        [self.choice(tier), self.choice(other), None]
    }

    fn choice(&self, tier: TierName) -> Option<Choice> {
        let tier = tier_number(tier);
        (tier < self.nr_tiers).then_some(Choice { tier, above_watermark: false })
    }
}

/// Returns the number of a tier: the fast one is 0.
pub(crate) const fn tier_number(tier: TierName) -> usize {
    match tier {
        TierName::Fast => 0,
        TierName::Slow => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(preference: Preference) -> Vec<usize> {
        preference.into_iter().flatten().map(|choice| choice.tier).collect()
    }

    #[test]
    fn fill_tries_the_fast_reserve_last() {
        let placement = Placer::new(Policy::Fill, 2);
        let preference = placement.next();
        assert_eq!(order(preference), [0, 1, 0]);
        assert!(preference[0].is_some_and(|choice| choice.above_watermark));
        assert!(preference[2].is_some_and(|choice| !choice.above_watermark));
        assert_eq!(order(Placer::new(Policy::Fill, 1).next()), [0]);
    }

    #[test]
    fn an_interleave_keeps_its_weights_and_spills() {
        let placement = Placer::new(Policy::Interleave { fast: 1, slow: 3 }, 2);
        let first: Vec<usize> = (0..8).map(|_| order(placement.next())[0]).collect();
        assert_eq!(first, [0, 1, 1, 1, 0, 1, 1, 1]);
        assert_eq!(order(placement.next()), [0, 1]);
    }

    #[test]
    fn bind_never_spills_and_preferred_does() {
        assert_eq!(order(Placer::new(Policy::Bind(TierName::Slow), 2).next()), [1]);
        assert_eq!(order(Placer::new(Policy::Preferred(TierName::Slow), 2).next()), [1, 0]);
        assert_eq!(order(Placer::new(Policy::Bind(TierName::Slow), 1).next()), []);
    }
}
