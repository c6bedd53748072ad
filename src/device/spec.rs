//! How people name a device: `/dev/dax0.0`, `emulated:2G`, `node:1` or `node:1:4G`.
//!
//! [`DeviceSpec`] is the parsed name, [`DeviceSpecError`] what was wrong with it. Parsing touches nothing: a spec
//! says what is meant, opening it finds out whether it exists. Uses `units`; used by the configuration.

use crate::units::{ExactBytes, SizeError, parse_size};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A device that a user named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeviceSpec {
    /// A device-dax node, by path.
    Dax(PathBuf),
    /// An emulated device of so many bytes.
    Emulated(u64),
    /// Anonymous memory of a NUMA node.
    Node {
        /// The node's number.
        id: u32,
        /// How many bytes of it to use; what is free there when absent.
        size: Option<u64>,
    },
}

impl FromStr for DeviceSpec {
    type Err = DeviceSpecError;

    fn from_str(text: &str) -> Result<DeviceSpec, DeviceSpecError> {
        let text = text.trim();
        let sized = |size: &str| {
            parse_size(size).map_err(|source| DeviceSpecError::WrongSize { text: text.to_owned(), source })
        };
        if text.starts_with('/') {
            return match text.chars().find(|&c| is_odd(c)) {
                Some(odd) => Err(DeviceSpecError::OddPath { path: text.to_owned(), odd }),
                None => Ok(DeviceSpec::Dax(PathBuf::from(text))),
            };
        }
        if let Some(size) = text.strip_prefix("emulated:") {
            return sized(size).map(DeviceSpec::Emulated);
        }
        if let Some(rest) = text.strip_prefix("node:") {
            let (id, size) = match rest.split_once(':') {
                Some((id, size)) => (id, Some(sized(size)?)),
                None => (rest, None),
            };
            let digits = !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
            let id = id.parse().ok().filter(|_| digits);
            let id = id.ok_or_else(|| DeviceSpecError::NotANode { text: text.to_owned() })?;
            return Ok(DeviceSpec::Node { id, size });
        }
        Err(DeviceSpecError::NotADevice { text: text.to_owned() })
    }
}

/// Characters that no device path has and that separate things in a configuration.
fn is_odd(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, ';' | ',' | '"' | '\\')
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Dax(path) => write!(f, "{}", path.display()),
            DeviceSpec::Emulated(bytes) => write!(f, "emulated:{}", ExactBytes(*bytes)),
            DeviceSpec::Node { id, size: None } => write!(f, "node:{id}"),
            DeviceSpec::Node { id, size: Some(bytes) } => write!(f, "node:{id}:{}", ExactBytes(*bytes)),
        }
    }
}

/// A device name that could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceSpecError {
    /// The text has none of the three forms.
    #[error(
        "{text:?} is not a device: write /dev/daxX.Y, emulated:SIZE or node:N[:SIZE], such as emulated:2G"
    )]
    NotADevice {
        /// What was read.
        text: String,
    },
    /// The text after `node:` is not a node number.
    #[error("{text:?} does not name a NUMA node: write node:N or node:N:SIZE, such as node:1:4G")]
    NotANode {
        /// What was read.
        text: String,
    },
    /// The size inside the name is not one.
    #[error("device {text:?}: {source}")]
    WrongSize {
        /// The whole device name.
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_printed_alike() {
        let node = |id, size| DeviceSpec::Node { id, size };
        for (text, spec) in [
            ("/dev/dax0.0", DeviceSpec::Dax("/dev/dax0.0".into())),
            ("emulated:2G", DeviceSpec::Emulated(2 << 30)),
            ("emulated:1537M", DeviceSpec::Emulated(1537 << 20)),
            ("node:1", node(1, None)),
            ("node:0:4G", node(0, Some(4 << 30))),
        ] {
            assert_eq!(text.parse(), Ok(spec.clone()), "{text}");
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn what_is_not_a_device_is_named() {
        for text in ["", "dax0.0", "emulated", "Emulated:2G", "node", "memory:2G", "./dax0.0"] {
            let seen = DeviceSpecError::NotADevice { text: text.into() };
            assert_eq!(text.parse::<DeviceSpec>(), Err(seen), "{text}");
        }
        for text in ["node:", "node:x", "node:-1", "node:+1", "node:99999999999", "node::4G"] {
            let seen = DeviceSpecError::NotANode { text: text.into() };
            assert_eq!(text.parse::<DeviceSpec>(), Err(seen), "{text}");
        }
        for text in ["emulated:", "emulated:lots", "node:1:", "node:1:2G:3"] {
            assert!(
                matches!(text.parse::<DeviceSpec>(), Err(DeviceSpecError::WrongSize { .. })),
                "{text} was accepted"
            );
        }
        let odd = DeviceSpecError::OddPath { path: "/dev/dax 0".into(), odd: ' ' };
        assert_eq!("/dev/dax 0".parse::<DeviceSpec>(), Err(odd));
    }
}
