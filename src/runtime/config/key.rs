//! The names that a configuration may use, in one table, and the search for the name that was meant.
//!
//! [`Key`] is a setting, with the environment variable and the command-line flag that carry it. The environment
//! variables that are not settings ([`CONF`], and those that `daxtier run` passes on) are in the table
//! [`VARIABLES`] too: any other `DAXTIER_` variable is a mistake.

/// A setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Key {
    /// How much fast memory to use: a size or a percentage.
    Fast,
    /// Which slow devices to use.
    Slow,
    /// How memory is divided between the tiers.
    Policy,
    /// Where the figures go at exit.
    Stats,
    /// What a wrong configuration leads to.
    OnError,
    /// Whether memory may be moved between the tiers.
    Migrate,
    /// What a program gets that touches memory which is lost.
    OnLoss,
    /// Whether other processes may ask for changes.
    Control,
}

/// The variable that carries a whole configuration: a string, or `@FILE`.
pub const CONF: &str = "DAXTIER_CONF";
/// What every environment variable of ours begins with.
pub const PREFIX: &str = "DAXTIER_";
/// Every environment variable that may be set.
pub const VARIABLES: [&str; 9] = [
    CONF,
    "DAXTIER_FAST",
    "DAXTIER_SLOW",
    "DAXTIER_POLICY",
    "DAXTIER_STATS",
    "DAXTIER_ON_ERROR",
    "DAXTIER_MIGRATE",
    "DAXTIER_ON_LOSS",
    "DAXTIER_CONTROL",
];
/// What the variables begin with that `daxtier run` passes to the processes it starts. They are not settings,
/// nobody else sets them, and any of them is accepted.
pub const INTERNAL_PREFIX: &str = "DAXTIER_RUN_";
/// Set by `daxtier run` to the number of the process that it becomes.
pub const RUN_PID: &str = "DAXTIER_RUN_PID";

pub(super) const NAMES: [&str; Key::COUNT] =
    ["fast", "slow", "policy", "stats", "on_error", "migrate", "on_loss", "control"];

impl Key {
    pub(super) const COUNT: usize = 8;
    /// Every setting, in the order in which they are printed.
    pub const ALL: [Key; Key::COUNT] = [
        Key::Fast,
        Key::Slow,
        Key::Policy,
        Key::Stats,
        Key::OnError,
        Key::Migrate,
        Key::OnLoss,
        Key::Control,
    ];

    /// Returns the name in a configuration string or file.
    pub const fn name(self) -> &'static str {
        NAMES[self as usize]
    }

    /// Returns the environment variable that sets it.
    pub const fn variable(self) -> &'static str {
        VARIABLES[self as usize + 1]
    }

    /// Returns the flag of `daxtier run` that sets it; those behind `stats` have none.
    pub const fn flag(self) -> &'static str {
        match self {
            Key::Fast => "--fast",
            Key::Slow => "--slow",
            Key::Policy => "--policy",
            Key::Stats => "--stats",
            Key::OnError => "on_error",
            Key::Migrate => "migrate",
            Key::OnLoss => "on_loss",
            Key::Control => "control",
        }
    }

    /// Returns a value that would be accepted, to show in a message.
    pub const fn example(self) -> &'static str {
        match self {
            Key::Fast => "512M",
            Key::Slow => "/dev/dax0.0,size=64G",
            Key::Policy => "interleave=3:1",
            Key::Stats => "/tmp/stats.%p.json",
            Key::OnError => "stop",
            Key::Migrate => "on,workers=2",
            Key::OnLoss => "zero-fill",
            Key::Control => "off",
        }
    }

    /// Finds a setting by its name in a configuration string.
    pub(super) fn from_name(name: &str) -> Option<Key> {
        Key::ALL.into_iter().find(|key| key.name() == name)
    }

    /// Finds a setting by its environment variable.
    pub(super) fn from_variable(variable: &[u8]) -> Option<Key> {
        Key::ALL.into_iter().find(|key| key.variable().as_bytes() == variable)
    }

    /// Returns the name nearest to `seen`, when it is near enough to have been meant.
    pub(super) fn nearest_name(seen: &str) -> Option<&'static str> {
        nearest(seen, &NAMES)
    }
}

/// Returns the variable nearest to `seen`, when it is near enough to have been meant. The prefix, which every
/// name shares, does not count.
pub(super) fn nearest_variable(seen: &str) -> Option<&'static str> {
    let stem = seen.strip_prefix(PREFIX).unwrap_or(seen);
    let stems = VARIABLES.map(|variable| variable.strip_prefix(PREFIX).unwrap_or(variable));
    let found = nearest(stem, &stems)?;
    VARIABLES.into_iter().find(|variable| variable.ends_with(found))
}

/// Returns the name with the smallest edit distance to `seen`, when fewer than half of its letters differ.
fn nearest(seen: &str, names: &[&'static str]) -> Option<&'static str> {
    const LONGEST: usize = 32;
    if seen.len() > LONGEST {
        return None;
    }
    let seen = seen.to_ascii_lowercase();
    let distances = names
        .iter()
        .map(|name| (edit_distance(seen.as_bytes(), name.to_ascii_lowercase().as_bytes()), *name));
    let (distance, name) = distances.min_by_key(|(distance, _)| *distance)?;
    (2 * distance <= name.len()).then_some(name)
}

/// Counts the letters to insert, drop, replace or swap with their neighbour on the way from `a` to `b` (the
/// optimal string alignment distance).
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_found_by_each_of_its_names() {
        for key in Key::ALL {
            assert_eq!(Key::from_name(key.name()), Some(key));
            assert_eq!(Key::from_variable(key.variable().as_bytes()), Some(key));
            assert_eq!(key.variable(), format!("{PREFIX}{}", key.name().to_ascii_uppercase()));
        }
    }

    #[test]
    fn the_name_that_was_meant_is_found() {
        for (seen, meant) in [
            ("DAXTIER_FSAT", Some("DAXTIER_FAST")),
            ("DAXTIER_SLOWER", Some("DAXTIER_SLOW")),
            ("DAXTIER_STAT", Some("DAXTIER_STATS")),
            ("DAXTIER_ONERROR", Some("DAXTIER_ON_ERROR")),
            ("DAXTIER_CONFIG", Some("DAXTIER_CONF")),
            ("DAXTIER_policy", Some("DAXTIER_POLICY")),
            ("DAXTIER_XYZ", None),
            ("DAXTIER_", None),
        ] {
            assert_eq!(nearest_variable(seen), meant, "{seen}");
        }
        assert_eq!(Key::nearest_name("polcy"), Some("policy"));
        assert_eq!(Key::nearest_name("on-error"), Some("on_error"));
        assert_eq!(Key::nearest_name("capacity"), None);
        assert_eq!(Key::nearest_name(&"fast".repeat(1000)), None);
    }

    #[test]
    fn the_distance_counts_single_edits_and_swaps() {
        for (a, b, distance) in
            [("", "abc", 3), ("fast", "fast", 0), ("fsat", "fast", 1), ("fats", "slow", 4)]
        {
            assert_eq!(edit_distance(a.as_bytes(), b.as_bytes()), distance, "{a} {b}");
            assert_eq!(edit_distance(b.as_bytes(), a.as_bytes()), distance, "{b} {a}");
        }
    }
}
