//! How much fast memory there is to take: the machine's and the control group's word on it.
//!
//! [`AvailableMemory`] reads `/proc/meminfo`, the kernel's limit on what all may ask for where it has one
//! (`vm.overcommit_memory` is 2), and the memory limits of every control group that this process is
//! in (both versions, each up to the root), and [`FastSize::resolve`] turns a share into bytes. Page cache that
//! a group can drop counts as available, as `MemAvailable` has it for the machine.

use super::error::ConfigError;
use super::value::{FastSize, MIN_TIER_BYTES, SLOT_BYTES};
use crate::sys::text::{Contents, read_regular};
use std::path::{Path, PathBuf};

/// The memory limit of a control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupLimit {
    /// The group's directory.
    pub group: PathBuf,
    /// The limit.
    pub limit_bytes: u64,
    /// What may still be used below it.
    pub headroom_bytes: u64,
}

/// What all processes together may ask for: the kernel refuses more, in use or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitLimit {
    /// The limit (`CommitLimit`).
    pub limit_bytes: u64,
    /// What may still be asked for.
    pub left_bytes: u64,
}

/// What memory there is. A figure that could not be read is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AvailableMemory {
    /// The machine's memory (`MemTotal`).
    pub total_bytes: Option<u64>,
    /// What can be used without swapping (`MemAvailable`).
    pub available_bytes: Option<u64>,
    /// The limit of the control group with the least headroom, where there is one.
    pub group: Option<CgroupLimit>,
    /// The kernel's limit on what is asked for, where it has one.
    pub commit: Option<CommitLimit>,
}

impl AvailableMemory {
    /// Reads the figures of this machine and process, below `root` (`/`, or a copy to test with).
    pub fn read(root: &Path) -> AvailableMemory {
        let meminfo = read_text(&root.join("proc/meminfo")).unwrap_or_default();
        let kib = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        let is_strict =
            || read_text(&root.join("proc/sys/vm/overcommit_memory")).is_some_and(|mode| mode.trim() == "2");
        let commit = kib("CommitLimit").zip(kib("Committed_AS")).filter(|_| is_strict());
        AvailableMemory {
            total_bytes: kib("MemTotal"),
            available_bytes: kib("MemAvailable"),
            group: groups(root).into_iter().min_by_key(|group| group.headroom_bytes),
            commit: commit.map(|(limit_bytes, asked_bytes)| CommitLimit {
                limit_bytes,
                left_bytes: limit_bytes.saturating_sub(asked_bytes),
            }),
        }
    }

    /// Returns what can be taken now: the smallest of what is available, the group's headroom and what the kernel lets
    /// processes ask for.
    pub fn usable_bytes(&self) -> Option<u64> {
        let headroom = self.group.as_ref().map(|group| group.headroom_bytes);
        let commit = self.commit.map(|commit| commit.left_bytes);
        self.available_bytes.into_iter().chain(headroom).chain(commit).min()
    }

    /// Returns what could be taken at best, and whose limit that is.
    fn ceiling(&self) -> Option<(u64, String)> {
        let machine = self.total_bytes.map(|bytes| (bytes, "the memory of this machine,".to_owned()));
        let group = self.group.as_ref().map(|group| {
            (group.limit_bytes, format!("the memory limit of the control group {},", group.group.display()))
        });
        let commit = self.commit.map(|commit| {
            (commit.limit_bytes, "the commit limit of this machine (vm.overcommit_memory is 2),".to_owned())
        });
        machine.into_iter().chain(group).chain(commit).min_by_key(|(bytes, _)| *bytes)
    }
}

impl FastSize {
    /// Returns the size in bytes, a multiple of [`SLOT_BYTES`].
    ///
    /// # Errors
    /// [`ConfigError::FastAboveMachine`] for more than machine or group have, [`ConfigError::TooLittleMemory`]
    /// when a share comes out below [`MIN_TIER_BYTES`], [`ConfigError::UnknownMemory`] when a share was asked
    /// for and what it is a share of cannot be read.
    pub fn resolve(self, memory: &AvailableMemory) -> Result<u64, ConfigError> {
        let percent = match self {
            FastSize::Bytes(asked_bytes) => {
                return match memory.ceiling() {
                    Some((limit_bytes, limit)) if asked_bytes > limit_bytes => {
                        Err(ConfigError::FastAboveMachine { asked_bytes, limit_bytes, limit })
                    }
                    _ => Ok(asked_bytes),
                };
            }
            FastSize::Percent(percent) => percent,
            FastSize::Default => FastSize::DEFAULT_PERCENT,
        };
        let available_bytes = memory.usable_bytes().ok_or(ConfigError::UnknownMemory)?;
        let share = (u128::from(available_bytes) * u128::from(percent) / 100) as u64;
        let bytes = share - share % SLOT_BYTES;
        if bytes < MIN_TIER_BYTES {
            return Err(ConfigError::TooLittleMemory { percent, available_bytes });
        }
        Ok(bytes)
    }
}

/// The files in which a version of control groups keeps its figures.
struct Version {
    limits: &'static [&'static str],
    usage: &'static str,
    cache: &'static str,
}

const V1: Version = Version {
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    cache: "total_inactive_file",
};
const V2: Version =
    Version { limits: &["memory.max", "memory.high"], usage: "memory.current", cache: "inactive_file" };

/// Returns the limits of all groups that this process is in.
fn groups(root: &Path) -> Vec<CgroupLimit> {
    let mut limits = Vec::new();
    let membership = read_text(&root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = read_text(&root.join("proc/self/mountinfo")).unwrap_or_default();
    for line in membership.lines() {
        // hierarchy:controllers:path, with no controllers for version 2.
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let version = match controllers {
            "" => &V2,
            list if list.split(',').any(|controller| controller == "memory") => &V1,
            _ => continue,
        };
        let Some((mount, mount_root)) = mount_of(&mounts, std::ptr::eq(version, &V1)) else { continue };
        // The mount may show only a part of the tree; a group outside that part is seen as its root.
        let inside = path.strip_prefix(mount_root.trim_end_matches('/')).unwrap_or("");
        let inside = if inside.split('/').any(|part| part == "..") { "" } else { inside };
        let top = root.join(mount.trim_start_matches('/'));
        let group = top.join(inside.trim_start_matches('/'));
        let ancestors = group.ancestors().take_while(|dir| dir.starts_with(&top));
        limits.extend(ancestors.filter_map(|dir| limit_of(dir, version)));
    }
    limits
}

/// Finds where the memory controller is mounted, and which part of its tree is.
fn mount_of(mounts: &str, is_v1: bool) -> Option<(&str, &str)> {
    mounts.lines().find_map(|line| {
        // id parent major:minor root mountpoint options [optional...] - type source super-options
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (mount_root, mount) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1)?);
        let found = match kind {
            "cgroup2" => !is_v1,
            "cgroup" => is_v1 && options.split(',').any(|option| option == "memory"),
            _ => false,
        };
        found.then_some((mount, mount_root))
    })
}

/// Reads the limit of one group; `None` when it has none.
fn limit_of(dir: &Path, version: &Version) -> Option<CgroupLimit> {
    /// Version 1 says "no limit" with the largest multiple of the page size.
    const UNLIMITED: u64 = i64::MAX as u64 / 4096 * 4096;
    let number = |name: &str| read_text(&dir.join(name))?.trim().parse::<u64>().ok();
    let limits = version.limits.iter().filter_map(|name| number(name));
    let limit_bytes = limits.min().filter(|&bytes| bytes < UNLIMITED)?;
    let stat = read_text(&dir.join("memory.stat")).unwrap_or_default();
    let cache = stat.lines().find_map(|line| line.strip_prefix(version.cache)?.trim().parse::<u64>().ok());
    let used = number(version.usage).unwrap_or(0).saturating_sub(cache.unwrap_or(0));
    Some(CgroupLimit { group: dir.to_owned(), limit_bytes, headroom_bytes: limit_bytes.saturating_sub(used) })
}

fn read_text(path: &Path) -> Option<String> {
    const LONGEST: usize = 1 << 20;
    match read_regular(path, LONGEST) {
        Ok(Contents::Bytes(bytes)) => String::from_utf8(bytes).ok(),
        _ => None,
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
