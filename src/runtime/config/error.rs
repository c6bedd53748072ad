//! What can be wrong with a configuration.
//!
//! [`ConfigError`] says where it was seen (an [`Origin`]) and what; [`ValueError`] is what can be wrong with one
//! value, apart from where it stands. Each prints as one message for a terminal: what was seen, what is allowed
//! and a value that would do. What was seen is quoted and cut to a sensible length.

use super::migrate::Workers;
use super::{Key, Origin};
use crate::device::DeviceSpecError;
use crate::error::SysError;
use crate::policy::{Policy, PolicyError};
use crate::runtime::config::value::{MIN_TIER_BYTES, SLOT_BYTES};
use crate::units::{Bytes, ExactBytes, SizeError};
use std::fmt;
use std::path::PathBuf;

/// The exit code of a program that stops because its configuration is wrong (`EX_CONFIG`).
pub const EXIT_CONFIG: i32 = 78;

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// An environment variable begins like ours and is not one.
    #[error("{name} is not a variable of daxtier{}", meant(.nearest, &super::key::VARIABLES))]
    UnknownVariable {
        /// The variable's name.
        name: String,
        /// The known name that is nearest, when one is near.
        nearest: Option<&'static str>,
    },
    /// A setting that does not exist.
    #[error("{at}: {key:?} is not a setting{}", meant(.nearest, &super::key::NAMES))]
    UnknownKey {
        /// Where it stands.
        at: Origin,
        /// The name that was read.
        key: String,
        /// The known name that is nearest, when one is near.
        nearest: Option<&'static str>,
    },
    /// A word without `=`.
    #[error("{at}: {word:?} has no value: write KEY=VALUE without blanks around the =, such as fast=512M")]
    NoValue {
        /// Where it stands.
        at: Origin,
        /// The word that was read.
        word: String,
    },
    /// A setting with nothing behind its `=`.
    #[error("{} is empty: leave it out for the default, or give it a value{}", Subject(.at, *.key), Example(.at, *.key))]
    Empty {
        /// Where it stands.
        at: Origin,
        /// The setting.
        key: Key,
    },
    /// A configuration string or `@FILE` with nothing in it.
    #[error("{at} is empty: unset it, or give it settings such as fast=512M slow=emulated:2G")]
    EmptyText {
        /// Where it stands.
        at: Origin,
    },
    /// `@` with no file behind it.
    #[error("{at}: there is no file behind the @: write @FILE, such as @/etc/daxtier.conf")]
    NoFile {
        /// Where it stands.
        at: Origin,
    },
    /// A setting that one source gives twice.
    #[error("{at}: {} is given twice{}", .key.name(), several(*.key))]
    Twice {
        /// Where the second one stands.
        at: Origin,
        /// The setting.
        key: Key,
    },
    /// An environment that holds a variable twice.
    #[error("{variable} stands in the environment twice")]
    VariableTwice {
        /// The variable.
        variable: &'static str,
    },
    /// Bytes that are not UTF-8.
    #[error("{at} is not UTF-8 text")]
    NotText {
        /// Where they stand.
        at: Origin,
    },
    /// A quoted value without its closing quote, or with something directly behind it.
    #[error("{at}: {} has a quote that does not close at the end of the value: write {}=\"...\" with \\\" for a quote inside", .key.name(), .key.name())]
    OpenQuote {
        /// Where it stands.
        at: Origin,
        /// The setting.
        key: Key,
    },
    /// A value that does not suit its setting.
    #[error("{}: {error}{}", Subject(.at, *.key), Example(.at, *.key))]
    Value {
        /// Where it stands.
        at: Origin,
        /// The setting.
        key: Key,
        /// What is wrong with it.
        error: ValueError,
    },
    /// A policy that needs a slow tier, where no slow device is named.
    #[error("{}: {policy} needs a slow tier, and no slow device is named: add one, such as slow=emulated:2G", Subject(.at, Key::Policy))]
    NoSlowDevice {
        /// Where the policy stands.
        at: Origin,
        /// The policy.
        policy: Policy,
    },
    /// A configuration file that could not be read.
    #[error("configuration file {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The refused call.
        source: SysError,
    },
    /// A configuration file that is a directory, a pipe or a device.
    #[error("configuration file {} is not a regular file", .path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// A configuration file of more than 64 KiB.
    #[error("configuration file {} is longer than 64 KiB", .path.display())]
    LongFile {
        /// The file.
        path: PathBuf,
    },
    /// More fast memory was asked for than there is.
    #[error(
        "fast={} is more than {limit} {}: ask for less, or for a share such as fast=80%",
        ExactBytes(*.asked_bytes), Bytes(*.limit_bytes)
    )]
    FastAboveMachine {
        /// What was asked for.
        asked_bytes: u64,
        /// What there is.
        limit_bytes: u64,
        /// Whose limit that is.
        limit: String,
    },
    /// The share that was asked for is too small to work with.
    #[error(
        "fast={percent}% of the {} that are available is less than {}: give a size or free some memory",
        Bytes(*.available_bytes), Bytes(MIN_TIER_BYTES)
    )]
    TooLittleMemory {
        /// The share.
        percent: u8,
        /// What is available.
        available_bytes: u64,
    },
    /// A share was asked for and what is available cannot be found out.
    #[error("/proc/meminfo cannot be read, so no share of it can be taken: give a size, such as fast=512M")]
    UnknownMemory,
}

/// A value that does not suit its setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// Not a size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Not a percentage between 1 and 100.
    #[error("{text:?} is not a percentage from 1% to 100%")]
    NotAPercentage {
        /// What was read.
        text: String,
    },
    /// A size that is not a whole number of slots.
    #[error("{} is not a whole number of 2 MiB slots: use {}", ExactBytes(*.bytes), Neighbours(*.bytes))]
    PartialSlot {
        /// The size.
        bytes: u64,
    },
    /// A range that begins inside a slot.
    #[error(
        "a range begins at a multiple of 2 MiB, and {} is none: use {} or {}",
        ExactBytes(*.bytes), ExactBytes(.bytes / SLOT_BYTES * SLOT_BYTES), ExactBytes((.bytes / SLOT_BYTES + 1) * SLOT_BYTES)
    )]
    RangeStart {
        /// Where it begins.
        bytes: u64,
    },
    /// A size below the smallest that works.
    #[error("{} is too small: the least is {} (two slots of 2 MiB)", ExactBytes(*.bytes), ExactBytes(MIN_TIER_BYTES))]
    TooSmall {
        /// The size.
        bytes: u64,
    },
    /// Something is wrong with what one device is to give.
    #[error("{spec:?}: {error}")]
    OfDevice {
        /// The device with its options.
        spec: String,
        /// What is wrong.
        error: Box<ValueError>,
    },
    /// Not a device.
    #[error(transparent)]
    Device(#[from] DeviceSpecError),
    /// Nothing between two semicolons, or at the end.
    #[error("there is no device before or after a \";\"")]
    NoDevice,
    /// The same device twice.
    #[error("{device} is named twice: give each a range of its own, such as {device},range=0+4G")]
    DeviceTwice {
        /// The device.
        device: String,
    },
    /// Something behind a comma that is not an option.
    #[error(
        "{text:?} is not an option of a device: write size=SIZE, range=OFFSET+LENGTH, force or allow-persistent"
    )]
    UnknownOption {
        /// What was read.
        text: String,
    },
    /// An option twice.
    #[error("{device} has two {option} options")]
    OptionTwice {
        /// The device.
        device: String,
        /// The option.
        option: &'static str,
    },
    /// Not an offset and a length.
    #[error("{text:?} is not a range: write OFFSET+LENGTH, such as range=1G+4G")]
    NotARange {
        /// What was read.
        text: String,
    },
    /// A size above that of an emulated device.
    #[error("{device} is smaller than size={}", ExactBytes(*.size_bytes))]
    BeyondDevice {
        /// The device.
        device: String,
        /// The size that was asked for.
        size_bytes: u64,
    },
    /// A size larger than the range that goes with it.
    #[error("size={} does not fit into the range of {}", ExactBytes(*.size_bytes), Bytes(*.range_bytes))]
    BeyondRange {
        /// The size.
        size_bytes: u64,
        /// The length of the range.
        range_bytes: u64,
    },
    /// A size option for a NUMA node.
    #[error("{device}: the size of a node is a part of its name: write node:N:SIZE, such as node:1:4G")]
    SizeOfNode {
        /// The device.
        device: String,
    },
    /// Force, or leave to overwrite persistent memory, for something that is no dax device.
    #[error(
        "{device}: only a dax device can hold data of others; leave exclusive, force and allow-persistent out"
    )]
    NothingToForce {
        /// The device.
        device: String,
    },
    /// A scrub policy for something that is no dax device.
    #[error("{device}: its memory is fresh, so there is nothing to clear; leave scrub= out")]
    NothingToScrub {
        /// The device.
        device: String,
    },
    /// None of `on-claim`, `on-release` and `never`.
    #[error("{text:?} is not a choice: write scrub=on-claim, scrub=on-release or scrub=never")]
    UnknownScrub {
        /// What was read.
        text: String,
    },
    /// A range of something that is no dax device.
    #[error("{device}: only a dax device has a range option")]
    NoRanges {
        /// The device.
        device: String,
    },
    /// Not a policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A path with control characters, or that can only be a directory.
    #[error(
        "{path:?} is not a file to write to: give a path (%p is the process id), or - for standard error"
    )]
    NotAPath {
        /// What was read.
        path: String,
    },
    /// Neither `on` nor `off`.
    #[error("{text:?} is not a choice: write on or off")]
    UnknownSwitch {
        /// What was read.
        text: String,
    },
    /// Neither `sigbus` nor `zero-fill`.
    #[error("{text:?} is not a choice: write sigbus or zero-fill")]
    UnknownLoss {
        /// What was read.
        text: String,
    },
    /// None of `auto`, `on` and `off`.
    #[error("{text:?} is not a choice: write auto, on or off")]
    UnknownControl {
        /// What was read.
        text: String,
    },
    /// Something behind a comma that is not an option of `migrate`.
    #[error(
        "{text:?} is not an option: write workers=N, cpus=LIST or demote=WAY, such as on,workers=2,cpus=0-3,8"
    )]
    UnknownWorkersOption {
        /// What was read.
        text: String,
    },
    /// An option of `migrate` twice.
    #[error("there are two {option} options")]
    WorkersTwice {
        /// The option.
        option: &'static str,
    },
    /// Not a number of threads that there can be.
    #[error("{text:?} is not a number of threads: write one from 1 to {}", Workers::MOST)]
    NotAWorkerCount {
        /// What was read.
        text: String,
    },
    /// Not processors.
    #[error("{text:?} are no processors: write numbers up to {}, such as 0-3,8", Workers::LAST_CPU)]
    NotCpus {
        /// What was read.
        text: String,
    },
    /// No way for memory to leave DRAM.
    #[error("{text:?} is not a way: write demote=pin-safe or demote=protect")]
    NotADemotion {
        /// What was read.
        text: String,
    },
    /// Neither `stop` nor `passthrough`.
    #[error("{text:?} is not a choice: write stop or passthrough")]
    UnknownChoice {
        /// What was read.
        text: String,
    },
}

impl ValueError {
    /// Adds which device the error is about, where its message does not say so.
    pub(super) fn of_device(self, spec: &str) -> ValueError {
        match self {
            ValueError::Size(_)
            | ValueError::PartialSlot { .. }
            | ValueError::RangeStart { .. }
            | ValueError::TooSmall { .. }
            | ValueError::UnknownOption { .. }
            | ValueError::NotARange { .. }
            | ValueError::BeyondRange { .. } => {
                ValueError::OfDevice { spec: cut(spec), error: Box::new(self) }
            }
            named => named,
        }
    }
}

/// Cuts what a user wrote to a length that suits a message.
pub(super) fn cut(text: &str) -> String {
    const LONGEST: usize = 100;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The setting that a message is about: a variable or flag names it by itself, a file or string does not.
struct Subject<'a>(&'a Origin, Key);

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Origin::Variable(_) | Origin::Flag(_) => write!(f, "{}", self.0),
            Origin::Default | Origin::Program => f.write_str(self.1.name()),
            Origin::Text { .. } => write!(f, "{}: {}", self.0, self.1.name()),
        }
    }
}

/// A value that would be accepted, spelled for the place where the wrong one stands.
struct Example<'a>(&'a Origin, Key);

impl fmt::Display for Example<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            Origin::Variable(variable) => variable,
            Origin::Flag(flag) => flag,
            _ => self.1.name(),
        };
        write!(f, " (for example {name}={})", self.1.example())
    }
}

/// The sizes next to one that is not a whole number of slots.
struct Neighbours(u64);

impl fmt::Display for Neighbours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let below = self.0 / SLOT_BYTES;
        let slots = |nr: u64| (ExactBytes(nr.saturating_mul(SLOT_BYTES)), nr);
        if below * SLOT_BYTES >= MIN_TIER_BYTES {
            let (bytes, nr) = slots(below);
            write!(f, "{bytes} ({nr} slots) or ")?;
        }
        let (bytes, nr) = slots((below + 1).max(MIN_TIER_BYTES / SLOT_BYTES));
        write!(f, "{bytes} ({nr} slots)")
    }
}

fn meant(nearest: &Option<&'static str>, known: &[&'static str]) -> String {
    match nearest {
        Some(name) => format!(": did you mean {name}?"),
        None => format!(": known are {}", known.join(", ")),
    }
}

fn several(key: Key) -> &'static str {
    match key {
        Key::Slow => ": join several devices with \";\" in one value",
        _ => "",
    }
}
