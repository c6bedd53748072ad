//! How a device is named on a command line or in a configuration, and how the name becomes a device.
//!
//! [`DeviceSpec`] is `/dev/daxX.Y`, `emulated:SIZE` or `node:N[:SIZE]`; sizes and ranges that apply to any of them
//! (`DEV,size=...,range=...`) belong to the configuration. [`open`] makes the device.

use super::{Dax, DaxOptions, Device, DeviceError, Emulated, NodeMemory};
use crate::topology;
use crate::units::{ExactBytes, SizeError, parse_size};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// The name of a device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeviceSpec {
    /// A dax device, by the absolute path of its node.
    Dax(PathBuf),
    /// An emulated device of this many bytes.
    Emulated(u64),
    /// Memory of a NUMA node.
    Node {
        /// The node's number.
        id: u32,
        /// Bytes to use; what is free on the node without.
        size: Option<u64>,
    },
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The text has none of the three forms.
    #[error("{text:?} is no device: write /dev/daxX.Y, emulated:SIZE or node:N[:SIZE]{}", hint(.text))]
    Unknown {
        /// What was read.
        text: String,
    },
    /// The size is missing.
    #[error("{text:?} has no size: write emulated:SIZE, such as emulated:2G")]
    NoSize {
        /// What was read.
        text: String,
    },
    /// The size is zero.
    #[error("{text:?} has size 0: give one such as 512M or 4G")]
    ZeroSize {
        /// What was read.
        text: String,
    },
    /// The size cannot be understood.
    #[error("in {text:?}: {source}")]
    Size {
        /// What was read.
        text: String,
        /// What is wrong with the size.
        source: SizeError,
    },
    /// The path has a blank, a separator or a control character in it.
    #[error("{path:?} is not a device path: it contains {odd:?}")]
    OddPath {
        /// What was read.
        path: String,
        /// The first such character.
        odd: char,
    },
    /// The node is no number.
    #[error("in {text:?}: {number:?} is no node number: write node:N or node:N:SIZE, such as node:1:4G")]
    NodeNumber {
        /// What was read.
        text: String,
        /// What stands in the number's place.
        number: String,
    },
}

/// Characters that no device path has and that separate things in a configuration.
fn is_odd(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, ';' | ',' | '"' | '\\')
}

fn hint(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    if super::discovery::parse_name(text).is_some() {
        format!("; do you mean /dev/{text}?")
    } else if lower.starts_with("numa") || lower.starts_with("nod") {
        "; do you mean node:N?".to_owned()
    } else if lower.starts_with("emu") || lower.starts_with("memfd") {
        "; do you mean emulated:SIZE?".to_owned()
    } else {
        String::new()
    }
}

impl FromStr for DeviceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<DeviceSpec, SpecError> {
        let size = |size: &str| match parse_size(size) {
            Ok(0) => Err(SpecError::ZeroSize { text: text.to_owned() }),
            Ok(bytes) => Ok(bytes),
            Err(source) => Err(SpecError::Size { text: text.to_owned(), source }),
        };
        let trimmed = text.trim();
        if trimmed.starts_with('/') && trimmed.len() > 1 {
            return match trimmed.chars().find(|&c| is_odd(c)) {
                Some(odd) => Err(SpecError::OddPath { path: trimmed.to_owned(), odd }),
                None => Ok(DeviceSpec::Dax(PathBuf::from(trimmed))),
            };
        }
        let (kind, rest) = trimmed.split_once(':').unwrap_or((trimmed, ""));
        match kind {
            "emulated" if rest.is_empty() => Err(SpecError::NoSize { text: text.to_owned() }),
            "emulated" => Ok(DeviceSpec::Emulated(size(rest)?)),
            "node" => {
                let (number, rest) = match rest.split_once(':') {
                    Some((number, rest)) => (number, Some(rest)),
                    None => (rest, None),
                };
                let id = Some(number)
                    .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
                    .and_then(|number| number.parse().ok())
                    .ok_or_else(|| SpecError::NodeNumber {
                        text: text.to_owned(),
                        number: number.to_owned(),
                    })?;
                Ok(DeviceSpec::Node { id, size: rest.map(size).transpose()? })
            }
            _ => Err(SpecError::Unknown { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Dax(path) => write!(f, "{}", path.display()),
            DeviceSpec::Emulated(len_bytes) => write!(f, "emulated:{}", ExactBytes(*len_bytes)),
            DeviceSpec::Node { id, size: None } => write!(f, "node:{id}"),
            DeviceSpec::Node { id, size: Some(size) } => write!(f, "node:{id}:{}", ExactBytes(*size)),
        }
    }
}

/// Makes the device that `spec` names.
///
/// `range` is the part of a dax device to use, all of it without. `size` is how much of the device is to be used,
/// wherever it lies. For a node it is the device's length (without it and without one in `spec`, what is free there
/// now). For the other kinds it is only checked here: the device keeps its length, and whoever hands its memory out
/// keeps to `size`.
///
/// # Errors
/// What [`Dax::open`], [`Emulated::new`] and [`NodeMemory::new`] answer, and [`DeviceError`] for a size beyond the
/// device or a range of a device that has none.
pub fn open(
    spec: &DeviceSpec,
    size: Option<u64>,
    range: Option<Range<u64>>,
) -> Result<Arc<dyn Device>, DeviceError> {
    if range.is_some() && !matches!(spec, DeviceSpec::Dax(_)) {
        return Err(DeviceError::NoRanges { device: spec.to_string() });
    }
    let device: Arc<dyn Device> = match spec {
        DeviceSpec::Dax(path) => Arc::new(Dax::open(path, DaxOptions { range })?),
        DeviceSpec::Emulated(len_bytes) => {
            Arc::new(Emulated::new(*len_bytes, Emulated::DEFAULT_ALIGN_BYTES)?)
        }
        DeviceSpec::Node { id, size: own_size } => {
            let len_bytes = size.or(*own_size).unwrap_or_else(|| free_on_node(*id));
            return Ok(Arc::new(NodeMemory::new(*id, len_bytes)?));
        }
    };
    if let Some(size_bytes) = size {
        super::range::check_len(device.name(), size_bytes, device.align_bytes())?;
        if size_bytes > device.len_bytes() {
            let (name, len_bytes) = (device.name().to_owned(), device.len_bytes());
            return Err(DeviceError::SizeBeyondEnd { device: name, size_bytes, len_bytes });
        }
    }
    Ok(device)
}

/// Returns the free memory of a node in whole granules, at least one, so that the node's own error speaks when it
/// has none.
fn free_on_node(id: u32) -> u64 {
    let free = topology::node_free_bytes(Path::new("/"), id).unwrap_or(0);
    (free / NodeMemory::ALIGN_BYTES).max(1) * NodeMemory::ALIGN_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_are_read_and_printed_back() {
        for (text, spec) in [
            ("/dev/dax0.0", DeviceSpec::Dax("/dev/dax0.0".into())),
            ("emulated:2G", DeviceSpec::Emulated(2 << 30)),
            ("emulated:1536M", DeviceSpec::Emulated(3 << 29)),
            ("node:1", DeviceSpec::Node { id: 1, size: None }),
            ("node:1:512M", DeviceSpec::Node { id: 1, size: Some(512 << 20) }),
        ] {
            assert_eq!(text.parse(), Ok(spec.clone()), "{text}");
            assert_eq!(spec.to_string(), text);
        }
        assert_eq!(" emulated:1.5 GiB ".parse(), Ok(DeviceSpec::Emulated(3 << 29)));
        assert_eq!(DeviceSpec::Emulated(4097).to_string(), "emulated:4097");
    }

    #[test]
    fn bad_texts_are_named() {
        let error = |text: &str| text.parse::<DeviceSpec>().unwrap_err();
        for text in ["", "/", "dax", "cxl:2G", "EMULATED:2G", ":2G", "dev/dax0.0"] {
            assert!(matches!(error(text), SpecError::Unknown { .. }), "{text}");
        }
        assert!(error("dax0.0").to_string().ends_with("do you mean /dev/dax0.0?"));
        assert!(error("numa:1").to_string().ends_with("do you mean node:N?"));
        for text in ["emulated", "emulated:"] {
            assert!(matches!(error(text), SpecError::NoSize { .. }), "{text}");
        }
        for text in ["emulated:0", "node:0:0"] {
            assert!(matches!(error(text), SpecError::ZeroSize { .. }), "{text}");
        }
        for text in ["emulated:big", "emulated:2G:1G", "node:1:", "node:1:x", "emulated:-1"] {
            assert!(matches!(error(text), SpecError::Size { .. }), "{text}");
        }
        for text in ["node", "node:", "node:x", "node:-1", "node:+1", "node::1G", "node:99999999999"] {
            assert!(matches!(error(text), SpecError::NodeNumber { .. }), "{text}");
        }
    }

    #[test]
    fn a_spec_opens_as_its_kind() {
        let device = open(&DeviceSpec::Emulated(1 << 30), Some(512 << 20), None).unwrap();
        assert_eq!((device.kind(), device.len_bytes()), (crate::device::DeviceKind::Emulated, 1 << 30));
        let beyond = open(&DeviceSpec::Emulated(1 << 30), Some(2 << 30), None).unwrap_err();
        assert!(matches!(beyond, DeviceError::SizeBeyondEnd { size_bytes, .. } if size_bytes == 2 << 30));
        let odd = open(&DeviceSpec::Emulated(1 << 30), Some(4096), None).unwrap_err();
        assert!(matches!(odd, DeviceError::NotAligned { .. }), "{odd}");
        let range = open(&DeviceSpec::Emulated(1 << 30), None, Some(0..1 << 21)).unwrap_err();
        assert!(matches!(range, DeviceError::NoRanges { .. }), "{range}");
        let missing = open(&DeviceSpec::Dax("/dev/dax99.9".into()), None, None).unwrap_err();
        assert!(matches!(missing, DeviceError::Missing { .. }), "{missing}");
        let node = open(&DeviceSpec::Node { id: 999, size: None }, None, None).unwrap_err();
        assert!(matches!(node, DeviceError::NoSuchNode { node: 999, .. }), "{node}");
    }
}
