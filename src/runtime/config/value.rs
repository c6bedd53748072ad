//! The values of the settings: how each is read, checked and printed.
//!
//! Every type reads back what it prints. Reading checks what a value can say about itself; what several values
//! must agree on is [`Config::validate`](super::Config::validate)'s affair. Pure: no file or device is touched.

use super::error::{ValueError, cut};
use crate::device::{DaxOptions, DeviceSpec, ScrubPolicy};
use crate::units::{ExactBytes, Order, SizeError, parse_size};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The unit in which memory is placed: every size is a multiple of it.
pub const SLOT_BYTES: u64 = Order::HUGE.len_bytes();
/// The least memory of a tier: one slot in use, and one to move it through.
pub const MIN_TIER_BYTES: u64 = 2 * SLOT_BYTES;

/// How much fast memory to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FastSize {
    /// [`FastSize::DEFAULT_PERCENT`] of what is available.
    #[default]
    Default,
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of what is available, 1..=100.
    Percent(u8),
}

impl FastSize {
    /// The share that is taken when nothing is said.
    pub const DEFAULT_PERCENT: u8 = 80;

    pub(super) fn check(self) -> Result<(), ValueError> {
        match self {
            FastSize::Default | FastSize::Percent(1..=100) => Ok(()),
            FastSize::Percent(percent) => Err(ValueError::NotAPercentage { text: format!("{percent}%") }),
            FastSize::Bytes(bytes) => check_tier_bytes(bytes),
        }
    }
}

impl FromStr for FastSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<FastSize, ValueError> {
        let text = text.trim();
        let size = match text.strip_suffix('%') {
            Some(digits) => {
                let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                let percent = digits.parse().ok().filter(|_| plain);
                FastSize::Percent(percent.ok_or_else(|| ValueError::NotAPercentage { text: cut(text) })?)
            }
            None => FastSize::Bytes(size(text)?),
        };
        size.check().map(|()| size)
    }
}

impl fmt::Display for FastSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FastSize::Default => write!(f, "{}%", FastSize::DEFAULT_PERCENT),
            FastSize::Bytes(bytes) => write!(f, "{}", ExactBytes(*bytes)),
            FastSize::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// A slow device, and how much of it to use: `DEV[,size=SIZE][,range=OFFSET+LENGTH][,scrub=WHEN][,exclusive][,force][,allow-persistent]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlowSpec {
    /// The device.
    pub device: DeviceSpec,
    /// How many bytes to use at most; all of it when absent.
    pub size: Option<u64>,
    /// Which bytes of the device to keep to; all of it when absent.
    pub range: Option<Range<u64>>,
    /// When the memory of a dax device is cleared.
    pub scrub: ScrubPolicy,
    /// Use a dax device although a process has it open through another node.
    pub exclusive: bool,
    /// Use a dax device that holds data, or that a process maps without a claim.
    pub force: bool,
    /// Use a dax device that is persistent memory.
    pub allow_persistent: bool,
}

impl SlowSpec {
    /// Makes a spec that uses all of `device`.
    pub const fn whole(device: DeviceSpec) -> SlowSpec {
        SlowSpec {
            device,
            size: None,
            range: None,
            scrub: ScrubPolicy::OnClaim,
            exclusive: false,
            force: false,
            allow_persistent: false,
        }
    }

    /// Returns how the device is opened, if it is a dax device.
    pub fn dax_options(&self) -> DaxOptions {
        let SlowSpec { range, scrub, exclusive, force, allow_persistent, .. } = self.clone();
        DaxOptions { range, scrub, exclusive, force, allow_persistent }
    }

    pub(super) fn check(&self) -> Result<(), ValueError> {
        let device = || self.device.to_string();
        if self.range.is_some() && !matches!(self.device, DeviceSpec::Dax(_)) {
            return Err(ValueError::NoRanges { device: device() });
        }
        if (self.force || self.allow_persistent || self.exclusive)
            && !matches!(self.device, DeviceSpec::Dax(_))
        {
            return Err(ValueError::NothingToForce { device: device() });
        }
        if self.scrub != ScrubPolicy::OnClaim && !matches!(self.device, DeviceSpec::Dax(_)) {
            return Err(ValueError::NothingToScrub { device: device() });
        }
        if let Some(size) = self.size {
            check_tier_bytes(size)?;
        }
        let range_bytes = match &self.range {
            Some(range) => {
                let len = range.end.saturating_sub(range.start);
                if !range.start.is_multiple_of(SLOT_BYTES) {
                    return Err(ValueError::RangeStart { bytes: range.start });
                }
                check_tier_bytes(len)?;
                Some(len)
            }
            None => None,
        };
        match (self.size, range_bytes) {
            (Some(size_bytes), Some(range_bytes)) if size_bytes > range_bytes => {
                return Err(ValueError::BeyondRange { size_bytes, range_bytes });
            }
            _ => {}
        }
        match (&self.device, self.size) {
            (DeviceSpec::Dax(_), _) => Ok(()),
            (DeviceSpec::Emulated(len), Some(size_bytes)) if size_bytes > *len => {
                Err(ValueError::BeyondDevice { device: device(), size_bytes })
            }
            (DeviceSpec::Emulated(len), _) => check_tier_bytes(*len),
            (DeviceSpec::Node { .. }, Some(_)) => Err(ValueError::SizeOfNode { device: device() }),
            (DeviceSpec::Node { size, .. }, None) => size.map_or(Ok(()), check_tier_bytes),
        }
    }
}

impl FromStr for SlowSpec {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<SlowSpec, ValueError> {
        SlowSpec::from_parts(text).map_err(|error| error.of_device(text.trim()))
    }
}

impl SlowSpec {
    fn from_parts(text: &str) -> Result<SlowSpec, ValueError> {
        let mut parts = text.split(',').map(str::trim);
        let device = parts.next().filter(|name| !name.is_empty()).ok_or(ValueError::NoDevice)?;
        // A message about a very long name quotes only its beginning, unless the beginning alone would pass.
        let parsed = device.parse().map_err(|error| cut(device).parse::<DeviceSpec>().err().unwrap_or(error));
        let mut spec = SlowSpec::whole(parsed?);
        let mut scrub = None;
        for part in parts {
            let twice = |option| Err(ValueError::OptionTwice { device: device.to_owned(), option });
            let switch = match part {
                "exclusive" => Some(("exclusive", &mut spec.exclusive)),
                "force" => Some(("force", &mut spec.force)),
                "allow-persistent" => Some(("allow-persistent", &mut spec.allow_persistent)),
                _ => None,
            };
            if let Some((name, switch)) = switch {
                if std::mem::replace(switch, true) {
                    return twice(name);
                }
                continue;
            }
            match part.split_once('=') {
                Some(("size", _)) if spec.size.is_some() => return twice("size"),
                Some(("range", _)) if spec.range.is_some() => return twice("range"),
                Some(("scrub", _)) if scrub.is_some() => return twice("scrub"),
                Some(("scrub", word)) => {
                    let unknown = || ValueError::UnknownScrub { text: cut(word) };
                    scrub = Some(ScrubPolicy::from_word(word).ok_or_else(unknown)?);
                }
                Some(("size", value)) => spec.size = Some(size(value)?),
                Some(("range", value)) => spec.range = Some(range(value)?),
                _ => return Err(ValueError::UnknownOption { text: cut(part) }),
            }
        }
        spec.scrub = scrub.unwrap_or_default();
        spec.check().map(|()| spec)
    }
}

impl fmt::Display for SlowSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.device)?;
        if let Some(size) = self.size {
            write!(f, ",size={}", ExactBytes(size))?;
        }
        if let Some(range) = &self.range {
            let len = range.end.saturating_sub(range.start);
            write!(f, ",range={}+{}", ExactBytes(range.start), ExactBytes(len))?;
        }
        if self.scrub != ScrubPolicy::OnClaim {
            write!(f, ",scrub={}", self.scrub)?;
        }
        if self.exclusive {
            f.write_str(",exclusive")?;
        }
        if self.force {
            f.write_str(",force")?;
        }
        if self.allow_persistent {
            f.write_str(",allow-persistent")?;
        }
        Ok(())
    }
}

/// Reads several devices joined by `;`.
pub(super) fn parse_slow(text: &str) -> Result<Vec<SlowSpec>, ValueError> {
    let specs = text.split(';').map(str::parse).collect::<Result<Vec<SlowSpec>, ValueError>>()?;
    check_slow(&specs).map(|()| specs)
}

/// Checks each device and that no two entries share bytes of one device. Emulated devices never do: each entry
/// is a device of its own.
pub(super) fn check_slow(specs: &[SlowSpec]) -> Result<(), ValueError> {
    for (ix, spec) in specs.iter().enumerate() {
        spec.check().map_err(|error| error.of_device(&spec.to_string()))?;
        for other in &specs[..ix] {
            let same = match (&spec.device, &other.device) {
                (DeviceSpec::Dax(a), DeviceSpec::Dax(b)) => a == b,
                (DeviceSpec::Node { id: a, .. }, DeviceSpec::Node { id: b, .. }) => a == b,
                _ => false,
            };
            let apart = match (&spec.range, &other.range) {
                (Some(a), Some(b)) => a.end <= b.start || b.end <= a.start,
                _ => false,
            };
            if same && !apart {
                return Err(ValueError::DeviceTwice { device: spec.device.to_string() });
            }
        }
    }
    Ok(())
}

/// Where the figures of a process go when it exits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StatsTarget {
    /// Text on standard error.
    Stderr,
    /// JSON into a file; `%p` in its path stands for the process id.
    File(PathBuf),
}

impl StatsTarget {
    /// Returns the file for process `pid`, or `None` for standard error.
    pub fn path_for(&self, pid: u32) -> Option<PathBuf> {
        let StatsTarget::File(path) = self else { return None };
        Some(match path.to_str() {
            Some(text) => PathBuf::from(text.replace("%p", &pid.to_string())),
            None => path.clone(),
        })
    }

    /// Returns the target with a relative path made absolute from `directory`, so that it survives a chdir.
    pub fn anchored(&self, directory: &Path) -> StatsTarget {
        match self {
            StatsTarget::Stderr => StatsTarget::Stderr,
            StatsTarget::File(path) => StatsTarget::File(directory.join(path)),
        }
    }

    pub(super) fn check(&self) -> Result<(), ValueError> {
        let StatsTarget::File(path) = self else { return Ok(()) };
        let text = path.to_string_lossy();
        let directory =
            text.is_empty() || text.ends_with('/') || text.ends_with("/.") || text.ends_with("/..");
        if directory || text == "." || text == ".." || text.chars().any(char::is_control) {
            return Err(ValueError::NotAPath { path: cut(&text) });
        }
        Ok(())
    }
}

impl FromStr for StatsTarget {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<StatsTarget, ValueError> {
        let target = match text {
            "-" | "stderr" => StatsTarget::Stderr,
            path => StatsTarget::File(PathBuf::from(path)),
        };
        target.check().map(|()| target)
    }
}

impl fmt::Display for StatsTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StatsTarget::Stderr => f.write_str("stderr"),
            StatsTarget::File(path) => match path.to_str() {
                Some(name @ ("-" | "stderr")) => write!(f, "./{name}"),
                _ => write!(f, "{}", path.display()),
            },
        }
    }
}

fn check_tier_bytes(bytes: u64) -> Result<(), ValueError> {
    if bytes > i64::MAX as u64 {
        return Err(SizeError::TooLarge { text: bytes.to_string() }.into());
    }
    if !bytes.is_multiple_of(SLOT_BYTES) {
        return Err(ValueError::PartialSlot { bytes });
    }
    if bytes < MIN_TIER_BYTES {
        return Err(ValueError::TooSmall { bytes });
    }
    Ok(())
}

fn size(text: &str) -> Result<u64, ValueError> {
    Ok(parse_size(&cut(text))?)
}

fn range(text: &str) -> Result<Range<u64>, ValueError> {
    let (start, len) = text.split_once('+').ok_or_else(|| ValueError::NotARange { text: cut(text) })?;
    let (start, len) = (size(start)?, size(len)?);
    // Neither exceeds i64::MAX, so the sum fits; a range must end within i64 all the same.
    let end = start + len;
    if end > i64::MAX as u64 {
        return Err(SizeError::TooLarge { text: cut(text) }.into());
    }
    Ok(start..end)
}

#[cfg(test)]
#[path = "value_tests.rs"]
mod tests;
