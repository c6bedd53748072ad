//! The figures of a pool, and how they are shown: JSON for programs, text with a bar per tier for people.
//!
//! [`PoolStats`] and its [`TierStats`] are plain values, taken at one moment. The JSON keys are a promise
//! (`docs/STATS.md` lists them, [`FORMAT_VERSION`] counts the breaks of it); the text is not. [`write_to`]
//! takes either to where a configuration wants it. Uses `sys` to write; used by the pool and the programs.
//!
//! [`write_to`]: PoolStats::write_to

use crate::error::SysError;
use crate::runtime::config::StatsTarget;
use crate::runtime::json;
use crate::runtime::migration::{MigrationStats, Outcome};
use crate::sys::text::{Obstacle, ReplaceError, replace, write_stderr};
use crate::units::{Bytes, MAX_ORDER, Order};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The version of the JSON format. A key that goes away or changes its meaning raises it; a new key does not.
pub const FORMAT_VERSION: u64 = 1;
/// The number of orders, 0..=[`MAX_ORDER`].
pub const NR_ORDERS: usize = MAX_ORDER as usize + 1;

/// The figures of a pool at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// The process.
    pub pid: u32,
    /// The placement policy, as a configuration spells it.
    pub policy: String,
    /// The tiers, fastest first.
    pub tiers: Vec<TierStats>,
    /// Allocations that no tier could serve.
    pub failures: u64,
    /// Why the last of them failed.
    pub last_failure: Option<String>,
    /// What came of requests to move memory.
    pub migration: MigrationStats,
}

/// The figures of a tier at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    /// `fast` or `slow`.
    pub name: String,
    /// What it is made of: `dram`, `emulated`, `dax`, `node`.
    pub kind: String,
    /// Its devices, by the names that a configuration uses.
    pub devices: Vec<String>,
    /// What it can hold, metadata included.
    pub capacity_bytes: u64,
    /// What is in use.
    pub used_bytes: u64,
    /// The most that was in use at any moment.
    pub peak_bytes: u64,
    /// What the bookkeeping takes.
    pub metadata_bytes: u64,
    /// Live folios, by order.
    pub folios_by_order: [u64; NR_ORDERS],
    /// Allocations served since the start.
    pub allocations: u64,
    /// Requests that this tier could not serve, whether or not another could.
    pub failures: u64,
}

impl PoolStats {
    /// Returns the figures as JSON, with a newline at the end.
    pub fn to_json(&self) -> String {
        json::document(|value| {
            value.object(|pool| {
                pool.key("version").number(FORMAT_VERSION);
                pool.key("pid").number(u64::from(self.pid));
                pool.key("policy").string(&self.policy);
                pool.key("failures").number(self.failures);
                pool.key("last_failure").string_or_null(self.last_failure.as_deref());
                pool.key("tiers").array(|tiers| {
                    for tier in &self.tiers {
                        tiers.element().object(|object| tier.fill_json(object));
                    }
                });
                pool.key("migration").object(|object| self.fill_migration(object));
            })
        })
    }

    fn fill_migration(&self, object: &mut json::Object<'_>) {
        for outcome in Outcome::ALL {
            object.key(outcome.key()).number(self.migration.counts.get(outcome));
        }
        object.key("staged_bytes").number(self.migration.staged_bytes);
        object.key("blocked_us").numbers(self.migration.blocked.buckets());
        object.key("total_us").numbers(self.migration.total.buckets());
    }

    /// Returns the figures as text for a terminal, a few lines per tier. Whatever is not printable in a name is
    /// escaped.
    pub fn to_text(&self) -> String {
        let mut text = format!("daxtier: process {}, policy {}\n", self.pid, printable(&self.policy));
        let width = |field: fn(&TierStats) -> &str| {
            self.tiers.iter().map(|tier| printable(field(tier)).chars().count()).max().unwrap_or(0)
        };
        let (names, kinds) = (width(|tier| &tier.name), width(|tier| &tier.kind));
        for tier in &self.tiers {
            let (name, kind) = (printable(&tier.name), printable(&tier.kind));
            let _ = writeln!(
                text,
                "  {name:names$}  {kind:kinds$}  [{}]  {} in use, {} at peak, of {}",
                bar(tier),
                Bytes(tier.used_bytes),
                Bytes(tier.peak_bytes),
                Bytes(tier.capacity_bytes)
            );
            let indent = names + kinds + 4;
            let _ = writeln!(text, "  {:indent$}{}", "", tier.details());
        }
        if self.migration.counts.total() > 0 {
            let counts = self.migration.counts.iter();
            let counts: Vec<String> =
                counts.map(|(outcome, count)| format!("{count} {}", outcome.as_str())).collect();
            let (median, worst) =
                (self.migration.blocked.quantile_us(500), self.migration.blocked.quantile_us(1000));
            let _ = writeln!(
                text,
                "  moves of 2 MiB: {}; blocked for at most {median} us (half of them), {worst} us (all)",
                counts.join(", ")
            );
        }
        if self.failures > 0 {
            let reason = self.last_failure.as_deref().map(printable);
            let reason = reason.map(|reason| format!("; the last: {reason}")).unwrap_or_default();
            let _ = writeln!(text, "  {} allocations failed{reason}", self.failures);
        }
        text
    }

    /// Writes the figures to where a configuration wants them: text to standard error, or JSON to a file, which
    /// is replaced in one step and readable for its owner only. Blocks on the file system; allocates.
    ///
    /// # Errors
    /// [`StatsError`] when the file cannot be written; nothing is left behind then. Standard error never fails.
    pub fn write_to(&self, target: &StatsTarget) -> Result<(), StatsError> {
        match target.path_for(self.pid) {
            None => {
                write_stderr(self.to_text().as_bytes());
                Ok(())
            }
            Some(path) => write_file(&path, self.to_json().as_bytes()),
        }
    }
}

impl TierStats {
    fn fill_json(&self, object: &mut json::Object<'_>) {
        object.key("name").string(&self.name);
        object.key("kind").string(&self.kind);
        object.key("devices").array(|devices| {
            for device in &self.devices {
                devices.element().string(device);
            }
        });
        object.key("capacity_bytes").number(self.capacity_bytes);
        object.key("used_bytes").number(self.used_bytes);
        object.key("peak_bytes").number(self.peak_bytes);
        object.key("metadata_bytes").number(self.metadata_bytes);
        object.key("folios_by_order").numbers(&self.folios_by_order);
        object.key("allocations").number(self.allocations);
        object.key("failures").number(self.failures);
    }

    /// Says what the bar does not: folios, allocations, metadata and devices.
    fn details(&self) -> String {
        let mut parts = Vec::new();
        let sizes = (0..=MAX_ORDER).filter_map(|order| Order::new(order).ok()).zip(self.folios_by_order);
        let folios: Vec<String> = sizes
            .filter(|(_, count)| *count > 0)
            .map(|(order, count)| format!("{count} x {}", Bytes(order.len_bytes())))
            .collect();
        if !folios.is_empty() {
            parts.push(format!("folios {}", folios.join(", ")));
        }
        parts.push(format!("{} allocations, {} failures", self.allocations, self.failures));
        parts.push(format!("metadata {}", Bytes(self.metadata_bytes)));
        if !self.devices.is_empty() {
            let devices: Vec<String> = self.devices.iter().map(|device| printable(device)).collect();
            parts.push(format!("on {}", devices.join(", ")));
        }
        parts.join("; ")
    }
}

/// Draws a tier: `#` in use, `+` up to the peak, `.` the rest. What is not zero shows.
fn bar(tier: &TierStats) -> String {
    const CELLS: u64 = 30;
    let cells = |bytes: u64| match tier.capacity_bytes {
        0 => 0,
        capacity => {
            (u128::from(bytes) * u128::from(CELLS)).div_ceil(u128::from(capacity)).min(CELLS.into()) as u64
        }
    };
    let (used, peak) = (cells(tier.used_bytes), cells(tier.peak_bytes));
    (0..CELLS)
        .map(|cell| {
            if cell < used {
                '#'
            } else if cell < peak {
                '+'
            } else {
                '.'
            }
        })
        .collect()
}

/// Escapes what could move a terminal's cursor: a name may come out of another process.
fn printable(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// Statistics that could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatsError {
    /// The path is a symbolic link, which is not followed.
    #[error("statistics: {} is a symbolic link and is not followed: name the file itself", .path.display())]
    Symlink {
        /// The path.
        path: PathBuf,
    },
    /// The path is a directory.
    #[error("statistics: {} is a directory: name a file in it", .path.display())]
    Directory {
        /// The path.
        path: PathBuf,
    },
    /// The path is a pipe, a device or a socket.
    #[error("statistics: {} is not a regular file and is not replaced by one", .path.display())]
    Special {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("statistics: {}: {source}", .path.display())]
    Sys {
        /// The path.
        path: PathBuf,
        /// The refused call.
        source: SysError,
    },
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), StatsError> {
    replace(path, bytes).map_err(|error| {
        let path = path.to_owned();
        match error {
            ReplaceError::InTheWay(Obstacle::Symlink) => StatsError::Symlink { path },
            ReplaceError::InTheWay(Obstacle::Directory) => StatsError::Directory { path },
            ReplaceError::InTheWay(Obstacle::Special) => StatsError::Special { path },
            ReplaceError::Sys(source) => StatsError::Sys { path, source },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> PoolStats {
        let mut folios_by_order = [0; NR_ORDERS];
        folios_by_order[0] = 12;
        folios_by_order[9] = 3;
        PoolStats {
            pid: 1234,
            policy: "fill".into(),
            tiers: vec![
                TierStats {
                    name: "fast".into(),
                    kind: "dram".into(),
                    devices: vec!["dram".into()],
                    capacity_bytes: 64 << 20,
                    used_bytes: 16 << 20,
                    peak_bytes: 64 << 20,
                    metadata_bytes: 4096,
                    folios_by_order,
                    allocations: 99,
                    failures: 1,
                },
                TierStats {
                    name: "slow".into(),
                    kind: "emulated".into(),
                    devices: vec!["emulated:1G".into(), "odd \"name\"\n\x1b[2J".into()],
                    capacity_bytes: 2 << 30,
                    used_bytes: 1,
                    ..TierStats::default()
                },
            ],
            failures: 2,
            last_failure: Some("no room for 4 MiB".into()),
            migration: MigrationStats::default(),
        }
    }

    #[test]
    fn the_json_keys_are_those_that_are_promised() {
        let json = sample().to_json();
        let expected = r#"{
  "version": 1,
  "pid": 1234,
  "policy": "fill",
  "failures": 2,
  "last_failure": "no room for 4 MiB",
  "tiers": [
    {
      "name": "fast",
      "kind": "dram",
      "devices": [
        "dram"
      ],
      "capacity_bytes": 67108864,
      "used_bytes": 16777216,
      "peak_bytes": 67108864,
      "metadata_bytes": 4096,
      "folios_by_order": [12, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      "allocations": 99,
      "failures": 1
    },
"#;
        assert!(json.starts_with(expected), "{json}");
        assert!(json.contains(r#""odd \"name\"\n\u001b[2J""#), "{json}");
        let expected = r#"  "migration": {
    "moved": 0,
    "already_there": 0,
    "gone": 0,
    "kept": 0,
    "not_movable": 0,
    "pinned": 0,
    "direct_io": 0,
    "forked": 0,
    "locked": 0,
    "map_limit": 0,
    "no_space": 0,
    "no_memory": 0,
    "device": 0,
    "refused": 0,
    "cancelled": 0,
    "staged_bytes": 0,
    "blocked_us": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "total_us": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
  }
}
"#;
        assert!(json.ends_with(expected), "{json}");
        let documented = include_str!("../../docs/STATS.md");
        for line in json.lines() {
            if let Some((key, _)) = line.trim().strip_prefix('"').and_then(|rest| rest.split_once("\": ")) {
                assert!(documented.contains(&format!("`{key}`")), "docs/STATS.md does not mention {key}");
            }
        }
    }

    #[test]
    fn the_text_has_a_bar_for_each_tier_and_no_escapes() {
        let text = sample().to_text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "daxtier: process 1234, policy fill");
        assert_eq!(
            lines[1],
            "  fast  dram      [########++++++++++++++++++++++]  16 MiB in use, 64 MiB at peak, of 64 MiB"
        );
        assert_eq!(
            lines[2].trim(),
            "folios 12 x 4 KiB, 3 x 2 MiB; 99 allocations, 1 failures; metadata 4 KiB; on dram"
        );
        assert!(lines[3].contains("slow  emulated  [#.............................]"), "{text}");
        assert_eq!(lines[5], "  2 allocations failed; the last: no room for 4 MiB");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }

    #[test]
    fn a_bar_never_overflows() {
        for (capacity_bytes, used_bytes, peak_bytes) in
            [(0, 0, 0), (0, 5, 5), (1, u64::MAX, u64::MAX), (u64::MAX, u64::MAX, 0), (10, 20, 5)]
        {
            let tier = TierStats { capacity_bytes, used_bytes, peak_bytes, ..TierStats::default() };
            assert_eq!(bar(&tier).len(), 30);
        }
    }

    #[test]
    fn the_file_is_the_process_s_own() {
        let directory = std::env::temp_dir().join(format!("daxtier-stats-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let target = StatsTarget::File(directory.join("s.%p.json"));
        sample().write_to(&target).unwrap();
        assert_eq!(std::fs::read_to_string(directory.join("s.1234.json")).unwrap(), sample().to_json());
        let target = StatsTarget::File(directory.clone());
        assert_eq!(sample().write_to(&target), Err(StatsError::Directory { path: directory.clone() }));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
