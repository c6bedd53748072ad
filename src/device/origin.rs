//! Where a dax device's memory comes from: a CXL region, persistent memory, or soft-reserved memory.
//!
//! The answer is read from the directories above the device in sysfs: each names its bus in the link `subsystem`.
//! [`Origin`] carries what identifies the memory across reboots. Uses `topology`'s readers; used by `discovery`.

use crate::topology::{numbered_entries, read_text, read_u64};
use std::path::{Path, PathBuf};

/// Where a dax device's memory comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// A region of CXL memory.
    Cxl {
        /// The region's name, such as `region0`.
        region: String,
        /// The memory devices that the region lies on, in interleave order.
        memdevs: Vec<CxlMemdev>,
    },
    /// A namespace of persistent memory in devdax mode: what is written there stays over a reboot.
    Pmem {
        /// The region's name, such as `region0`.
        region: String,
        /// The namespace's UUID.
        uuid: Option<String>,
    },
    /// Memory that the firmware set aside (soft reserved, "specific purpose").
    Hmem {
        /// The platform device, such as `hmem.0`.
        device: String,
    },
    /// None of these.
    Unknown,
}

/// A CXL memory device under a region.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CxlMemdev {
    /// The device's name, such as `mem0`.
    pub name: String,
    /// The serial number, unless the device has none (0).
    pub serial: Option<u64>,
    /// Where the region begins in the device's own addresses.
    pub dpa_start: Option<u64>,
    /// The NUMA node that the device hangs on.
    pub numa_node: Option<u32>,
}

impl Origin {
    /// Returns the word that stands for the origin in listings: `cxl`, `pmem`, `hmem` or `unknown`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Origin::Cxl { .. } => "cxl",
            Origin::Pmem { .. } => "pmem",
            Origin::Hmem { .. } => "hmem",
            Origin::Unknown => "unknown",
        }
    }

    /// Finds the origin of the dax device whose directory, with all links followed, is `device_dir`.
    pub(super) fn read(root: &Path, device_dir: &Path) -> Origin {
        for dir in device_dir.ancestors().skip(1) {
            let name = file_name(dir);
            match link_name(&dir.join("subsystem")).as_deref() {
                Some("cxl") if is_numbered(&name, "region") => {
                    return Origin::Cxl { memdevs: read_memdevs(root, dir), region: name };
                }
                Some("nd") if dir.join("uuid").exists() => {
                    let region = dir.parent().map(file_name).unwrap_or_default();
                    let uuid = read_text(&dir.join("uuid")).filter(|uuid| !uuid.is_empty());
                    return Origin::Pmem { region, uuid };
                }
                Some("platform") if is_numbered(&name, "hmem.") => return Origin::Hmem { device: name },
                _ => {}
            }
        }
        Origin::Unknown
    }
}

/// Returns the directory of the CXL region above a dax device.
pub(super) fn cxl_region_dir(device_dir: &Path) -> Option<PathBuf> {
    let is_region = |dir: &&Path| {
        is_numbered(&file_name(dir), "region") && link_name(&dir.join("subsystem")).as_deref() == Some("cxl")
    };
    device_dir.ancestors().skip(1).find(is_region).map(Path::to_owned)
}

/// Follows a region's targets (`target0` names a decoder) to the memory devices behind their endpoints.
fn read_memdevs(root: &Path, region_dir: &Path) -> Vec<CxlMemdev> {
    let bus = root.join("sys/bus/cxl/devices");
    let memdev = |target: u32| {
        let decoder =
            read_text(&region_dir.join(format!("target{target}"))).filter(|name| !name.is_empty())?;
        let decoder_dir = bus.join(decoder).canonicalize().ok()?;
        let memdev_dir = decoder_dir.parent()?.join("uport").canonicalize().ok()?;
        Some(CxlMemdev {
            name: file_name(&memdev_dir),
            serial: read_u64(&memdev_dir.join("serial")).filter(|&serial| serial != 0),
            dpa_start: read_u64(&decoder_dir.join("dpa_resource")).filter(|&start| start != u64::MAX),
            numa_node: read_text(&memdev_dir.join("numa_node")).and_then(|text| text.parse().ok()),
        })
    };
    numbered_entries(region_dir, "target").into_iter().filter_map(memdev).collect()
}

/// Returns the last part of what the link `path` points to.
pub(super) fn link_name(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn is_numbered(name: &str, prefix: &str) -> bool {
    let number = name.strip_prefix(prefix).unwrap_or("");
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}
