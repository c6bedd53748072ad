//! Placement policies: which tier the next slot comes from.
//!
//! [`Policy`] is what a user chose, [`TierName`] the two names that a choice can mention. Both are plain values
//! that print themselves in the words of the configuration. Uses nothing below; used by the configuration and
//! by whoever picks slots.

mod placer;

pub(crate) use placer::{Choice, Placer};

use std::fmt;
use std::str::FromStr;

/// The largest weight of an interleave: one slot in 64 is the finest share.
pub const MAX_WEIGHT: u32 = 64;

/// A tier, by the name that a configuration uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TierName {
    /// DRAM of the CPU nodes.
    Fast,
    /// CXL or emulated memory.
    Slow,
}

impl TierName {
    /// Returns the name: `fast` or `slow`.
    pub const fn as_str(self) -> &'static str {
        match self {
            TierName::Fast => "fast",
            TierName::Slow => "slow",
        }
    }
}

impl fmt::Display for TierName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TierName {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<TierName, PolicyError> {
        match text {
            "fast" => Ok(TierName::Fast),
            "slow" => Ok(TierName::Slow),
            _ => Err(PolicyError::UnknownTier { text: text.to_owned() }),
        }
    }
}

/// How memory is divided between the tiers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// The fast tier up to its watermark, then the slow tier.
    #[default]
    Fill,
    /// Slots alternate by weight: `fast` slots of the fast tier, then `slow` of the slow tier. Each weight is
    /// 1..=[`MAX_WEIGHT`].
    Interleave {
        /// Weight of the fast tier.
        fast: u32,
        /// Weight of the slow tier.
        slow: u32,
    },
    /// One tier only: an allocation fails when it is full.
    Bind(TierName),
    /// One tier first, the other when it is full.
    Preferred(TierName),
}

impl Policy {
    /// Returns whether the policy makes sense only when a slow tier exists.
    pub const fn needs_slow(self) -> bool {
        matches!(
            self,
            Policy::Interleave { .. } | Policy::Bind(TierName::Slow) | Policy::Preferred(TierName::Slow)
        )
    }

    /// Checks that the weights of an interleave are in range, as parsing does.
    ///
    /// # Errors
    /// [`PolicyError::WeightOutOfRange`] with the first weight that is not.
    pub const fn check(self) -> Result<(), PolicyError> {
        if let Policy::Interleave { fast, slow } = self {
            if fast == 0 || fast > MAX_WEIGHT {
                return Err(PolicyError::WeightOutOfRange { weight: fast as u64 });
            }
            if slow == 0 || slow > MAX_WEIGHT {
                return Err(PolicyError::WeightOutOfRange { weight: slow as u64 });
            }
        }
        Ok(())
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Fill => f.write_str("fill"),
            Policy::Interleave { fast, slow } => write!(f, "interleave={fast}:{slow}"),
            Policy::Bind(tier) => write!(f, "bind={tier}"),
            Policy::Preferred(tier) => write!(f, "preferred={tier}"),
        }
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Policy, PolicyError> {
        let text = text.trim();
        let policy = match text.split_once('=') {
            None if text == "fill" => Policy::Fill,
            Some(("interleave", weights)) => {
                let malformed = || PolicyError::MalformedWeights { text: weights.to_owned() };
                let (fast, slow) = weights.split_once(':').ok_or_else(malformed)?;
                let weight = |digits: &str| {
                    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                    let weight: u64 =
                        plain.then(|| digits.parse().unwrap_or(u64::MAX)).ok_or_else(malformed)?;
                    u32::try_from(weight).map_err(|_| PolicyError::WeightOutOfRange { weight })
                };
                Policy::Interleave { fast: weight(fast)?, slow: weight(slow)? }
            }
            Some(("bind", tier)) => Policy::Bind(tier.parse()?),
            Some(("preferred", tier)) => Policy::Preferred(tier.parse()?),
            _ => return Err(PolicyError::UnknownPolicy { text: text.to_owned() }),
        };
        policy.check().map(|()| policy)
    }
}

/// A placement policy that could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The text is none of the policies.
    #[error(
        "{text:?} is not a policy: write fill, interleave=F:S, bind=TIER or preferred=TIER, where TIER is fast or slow"
    )]
    UnknownPolicy {
        /// What was read.
        text: String,
    },
    /// The text is none of the tiers.
    #[error("{text:?} is not a tier: write fast or slow")]
    UnknownTier {
        /// What was read.
        text: String,
    },
    /// The weights are not two numbers with a colon between.
    #[error("{text:?} is not a pair of weights: write interleave=F:S, such as interleave=3:1")]
    MalformedWeights {
        /// What was read.
        text: String,
    },
    /// A weight is zero or too large.
    #[error(
        "a weight of an interleave is 1 to {MAX_WEIGHT}, not {weight} (for one tier alone write bind=TIER or \
         preferred=TIER)"
    )]
    WeightOutOfRange {
        /// The weight that was asked for.
        weight: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_printed_alike() {
        for (text, policy) in [
            ("fill", Policy::Fill),
            ("interleave=3:1", Policy::Interleave { fast: 3, slow: 1 }),
            ("interleave=1:64", Policy::Interleave { fast: 1, slow: 64 }),
            ("bind=fast", Policy::Bind(TierName::Fast)),
            ("bind=slow", Policy::Bind(TierName::Slow)),
            ("preferred=slow", Policy::Preferred(TierName::Slow)),
        ] {
            assert_eq!(text.parse(), Ok(policy), "{text}");
            assert_eq!(policy.to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_with_a_policy_is_named() {
        for text in ["", "fil", "Fill", "fill=1", "bind", "interleave", "prefer=slow"] {
            assert_eq!(text.parse::<Policy>(), Err(PolicyError::UnknownPolicy { text: text.into() }));
        }
        for weights in ["", "1", "1:", ":1", "a:b", "1:2:3", "-1:2", "+1:2", "1.5:1"] {
            let seen = PolicyError::MalformedWeights { text: weights.into() };
            assert_eq!(format!("interleave={weights}").parse::<Policy>(), Err(seen), "{weights}");
        }
        for (text, weight) in
            [("interleave=0:0", 0), ("interleave=65:1", 65), ("interleave=1:99999999999", 99_999_999_999)]
        {
            assert_eq!(text.parse::<Policy>(), Err(PolicyError::WeightOutOfRange { weight }));
        }
        assert_eq!("bind=slo".parse::<Policy>(), Err(PolicyError::UnknownTier { text: "slo".into() }));
    }

    #[test]
    fn only_policies_that_name_the_slow_tier_need_one() {
        for (text, needs) in
            [("fill", false), ("bind=fast", false), ("preferred=fast", false), ("bind=slow", true)]
        {
            assert_eq!(text.parse::<Policy>().map(Policy::needs_slow), Ok(needs), "{text}");
        }
    }
}
