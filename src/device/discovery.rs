//! The machine's dax devices, each with its state and, where it cannot be used, the command that mends that.
//!
//! [`discover`] walks `/sys/bus/dax/devices` under a root path. [`DaxInfo`] is plain data; [`DaxState`] says what
//! was observed. `Dax::open` judges a device by the same rules, so a listing and an error agree. Uses
//! `topology`'s readers, `origin` and `claim`; used by the command-line program and the runtime.

use super::claim::{Holder, holders};
use super::origin::{self, Origin, link_name};
use super::range::HUGE_BYTES;
use crate::sys::file;
use crate::topology::{Performance, numbered_entries, read_text, read_u64};
use crate::units::Bytes;
use std::fmt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A dax device as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DaxInfo {
    /// The kernel's name, such as `dax0.0`.
    pub name: String,
    /// The device node, such as `/dev/dax0.0`, whether or not it exists.
    pub path: PathBuf,
    /// Length, 0 for a device that has no memory yet.
    pub len_bytes: u64,
    /// The mapping granule: 4 KiB, 2 MiB or 1 GiB.
    pub align_bytes: u64,
    /// The NUMA node that the memory is, or would be as system RAM.
    pub target_node: Option<u32>,
    /// The node that the device hangs on, where the kernel knows it.
    pub numa_node: Option<u32>,
    /// The first physical address, which only root can read.
    pub resource: Option<u64>,
    /// The pieces of physical memory, in the order in which the device maps them.
    pub mappings: Vec<DaxMapping>,
    /// Major and minor number of the device node.
    pub dev: Option<(u32, u32)>,
    /// The driver that has the device: `device_dax`, `kmem`, or none.
    pub driver: Option<String>,
    /// The region that the device is a part of.
    pub region: DaxRegion,
    /// Where the memory comes from.
    pub origin: Origin,
    /// Latency and bandwidth, where the firmware or the CXL devices tell it.
    pub performance: Option<Performance>,
    /// Whether the device can be used, and if not, why.
    pub state: DaxState,
}

/// A piece of a dax device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DaxMapping {
    /// Where the piece begins in the device, in pages.
    pub page_offset: u64,
    /// The first physical address, which only root can read.
    pub start: Option<u64>,
    /// The last physical address, which only root can read.
    pub end: Option<u64>,
}

/// The region that dax devices are cut from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DaxRegion {
    /// The region's number, as `daxctl` calls it.
    pub id: Option<u32>,
    /// The directory below `/sys/devices`, such as `platform/hmem.0`.
    pub path: String,
    /// The first physical address of a CXL region.
    pub start: Option<u64>,
    /// Length.
    pub len_bytes: u64,
    /// Bytes that no device has, where devices can be cut from the region.
    pub available_bytes: Option<u64>,
}

/// What was observed of a dax device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DaxState {
    /// It can be used, and nobody does as far as claims tell.
    Free,
    /// Others hold parts of it; the rest can be used.
    Claimed {
        /// Who holds what.
        holders: Vec<Holder>,
    },
    /// The kernel has made ordinary memory of it (driver `kmem`).
    SystemRam {
        /// The NUMA node that it is.
        node: Option<u32>,
    },
    /// No driver has taken it.
    NoDriver,
    /// A driver that cannot be mapped has taken it.
    OtherDriver {
        /// The driver's name.
        driver: String,
    },
    /// It has no memory.
    NoMemory,
    /// sysfs does not tell its size or alignment.
    Unreadable {
        /// The attribute that could not be read.
        attribute: &'static str,
    },
    /// The device node does not exist.
    NodeMissing,
    /// What has the device node's name is something else.
    NotItsNode {
        /// What it is.
        found: String,
    },
    /// This process may not open the device node.
    NotPermitted {
        /// The node's permission bits.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// This process may read the device node, but not write it.
    ReadOnly {
        /// The node's permission bits.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

impl DaxState {
    /// Returns whether a process can open the device and claim ranges of it.
    pub fn is_usable(&self) -> bool {
        matches!(self, DaxState::Free | DaxState::Claimed { .. })
    }

    /// Returns the word that stands for the state in listings, such as `free` or `system-ram`.
    pub fn as_str(&self) -> &'static str {
        match self {
            DaxState::Free => "free",
            DaxState::Claimed { .. } => "claimed",
            DaxState::SystemRam { .. } => "system-ram",
            DaxState::NoDriver => "no-driver",
            DaxState::OtherDriver { .. } => "other-driver",
            DaxState::NoMemory => "no-memory",
            DaxState::Unreadable { .. } => "unreadable",
            DaxState::NodeMissing => "node-missing",
            DaxState::NotItsNode { .. } => "not-its-node",
            DaxState::NotPermitted { .. } => "not-permitted",
            DaxState::ReadOnly { .. } => "read-only",
        }
    }

    /// Returns the `errno` value that stands for the state.
    pub(super) fn errno(&self) -> i32 {
        match self {
            DaxState::Free => 0,
            DaxState::Claimed { .. } | DaxState::SystemRam { .. } => libc::EBUSY,
            DaxState::NoMemory => libc::ENOSPC,
            DaxState::NodeMissing => libc::ENOENT,
            DaxState::NotPermitted { .. } => libc::EACCES,
            DaxState::ReadOnly { .. } => libc::EROFS,
            _ => libc::ENODEV,
        }
    }
}

impl fmt::Display for DaxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DaxState::Free => f.write_str("free"),
            DaxState::Claimed { holders } => {
                f.write_str("parts are claimed by ")?;
                for (index, holder) in holders.iter().enumerate() {
                    write!(f, "{}{holder}", if index > 0 { ", " } else { "" })?;
                }
                Ok(())
            }
            DaxState::SystemRam { node: Some(node) } => {
                write!(f, "it is in system-ram mode: the kernel uses it as ordinary memory, node {node}")
            }
            DaxState::SystemRam { node: None } => {
                f.write_str("it is in system-ram mode: the kernel uses it as ordinary memory")
            }
            DaxState::NoDriver => f.write_str("no driver has taken the device"),
            DaxState::OtherDriver { driver } => {
                write!(f, "driver {driver} has taken the device; only device_dax lets programs map it")
            }
            DaxState::NoMemory => f.write_str("its size is 0"),
            DaxState::Unreadable { attribute } => write!(f, "its {attribute} in sysfs cannot be read"),
            DaxState::NodeMissing => f.write_str("its device node does not exist"),
            DaxState::NotItsNode { found } => write!(f, "its device node is {found}"),
            DaxState::NotPermitted { mode, uid, gid } => {
                write!(f, "this process may not open it (mode {:04o}, owner {uid}:{gid})", mode & 0o7777)
            }
            DaxState::ReadOnly { mode, uid, gid } => {
                write!(f, "this process may not write to it (mode {:04o}, owner {uid}:{gid})", mode & 0o7777)
            }
        }
    }
}

impl DaxInfo {
    /// Returns why a pool cannot place blocks on a device whose folios can be used; `None` where it can, and where the
    /// [state](DaxInfo::state) says more.
    pub fn heap_obstacle(&self) -> Option<String> {
        let is_coarse = self.state.is_usable() && self.align_bytes > HUGE_BYTES;
        is_coarse.then(|| {
            let (align, slot) = (Bytes(self.align_bytes), Bytes(HUGE_BYTES));
            format!(
                "it is mapped in granules of {align}, and blocks need {slot}: only its folios can be used"
            )
        })
    }

    /// Returns the command, or the step, that makes the device usable for everything; `None` when it is already.
    pub fn mend(&self) -> Option<String> {
        let name = &self.name;
        let path = self.path.display();
        Some(match &self.state {
            DaxState::Free | DaxState::Claimed { .. } if self.heap_obstacle().is_none() => return None,
            // The kernel lets nobody change the alignment of a namespace that is there.
            DaxState::Free | DaxState::Claimed { .. } if matches!(self.origin, Origin::Pmem { .. }) => {
                "sudo ndctl create-namespace --force --mode=devdax --align=2M --reconfig=NAMESPACE  \
                 # erases it; ndctl list -N has its name"
                    .to_owned()
            }
            DaxState::Free | DaxState::Claimed { .. } => format!(
                "sudo daxctl disable-device {name}; echo {HUGE_BYTES} | sudo tee /sys/bus/dax/devices/{name}/align; \
                 sudo daxctl enable-device {name}"
            ),
            DaxState::SystemRam { node: Some(node) } => format!(
                "--slow node:{node} uses it as it is; to take it from the kernel: \
                 sudo daxctl reconfigure-device --mode=devdax --force {name}"
            ),
            DaxState::SystemRam { node: None } | DaxState::OtherDriver { .. } => {
                format!("sudo daxctl reconfigure-device --mode=devdax --force {name}")
            }
            DaxState::NoDriver => format!(
                "sudo modprobe device_dax; echo {name} | sudo tee /sys/bus/dax/drivers/device_dax/new_id"
            ),
            DaxState::NoMemory => match (self.region.id, self.region.available_bytes) {
                (Some(id), Some(available)) if available > 0 => {
                    format!("sudo daxctl create-device --region={id}  # {} are free there", Bytes(available))
                }
                _ => "shrink or destroy another device of its region first: daxctl list --regions --devices"
                    .to_owned(),
            },
            DaxState::Unreadable { .. } => {
                format!("mount sysfs at /sys and look at /sys/bus/dax/devices/{name}")
            }
            DaxState::NodeMissing | DaxState::NotItsNode { .. } => {
                let (major, minor) = self.dev.unwrap_or((0, 0));
                format!(
                    "in a container, start it with --device={path}; \
                     elsewhere: sudo rm -f {path}; sudo mknod -m 600 {path} c {major} {minor}"
                )
            }
            DaxState::NotPermitted { .. } | DaxState::ReadOnly { .. } => {
                format!("sudo chown {} {path} && sudo chmod u+rw {path}", file::effective_uid())
            }
        })
    }

    /// Returns the mode in `daxctl`'s words: `devdax`, `system-ram`, or `None` without a driver.
    pub fn mode(&self) -> Option<&'static str> {
        match self.driver.as_deref() {
            Some("kmem") => Some("system-ram"),
            Some("device_dax") => Some("devdax"),
            _ => None,
        }
    }

    /// Reads device `name` (`dax0.0`); `None` when there is none of that name. Nobody's claims are looked for.
    pub(super) fn read(root: &Path, name: &str) -> Option<DaxInfo> {
        parse_name(name)?;
        let dir = root.join("sys/bus/dax/devices").join(name).canonicalize().ok()?;
        let node = |attribute| read_text(&dir.join(attribute)).and_then(|text| text.parse().ok());
        let len_bytes = read_u64(&dir.join("size"));
        let align_bytes = read_u64(&dir.join("align"));
        let driver = link_name(&dir.join("driver"));
        let path = PathBuf::from("/dev").join(name);
        let dev = read_dev(&dir);
        let target_node = node("target_node");
        let state = match (len_bytes, align_bytes, driver.as_deref()) {
            (None, ..) => DaxState::Unreadable { attribute: "size" },
            (_, None | Some(0), _) => DaxState::Unreadable { attribute: "align" },
            (_, _, Some("kmem")) => DaxState::SystemRam { node: target_node },
            (Some(0), ..) => DaxState::NoMemory,
            (_, _, None) => DaxState::NoDriver,
            (_, _, Some("device_dax")) => node_state(&root.join("dev").join(name), dev),
            (_, _, Some(other)) => DaxState::OtherDriver { driver: other.to_owned() },
        };
        Some(DaxInfo {
            name: name.to_owned(),
            path,
            len_bytes: len_bytes.unwrap_or(0),
            align_bytes: align_bytes.unwrap_or(0),
            target_node,
            numa_node: node("numa_node"),
            resource: read_u64(&dir.join("resource")),
            mappings: read_mappings(&dir),
            dev,
            driver,
            region: DaxRegion::read(root, &dir),
            origin: Origin::read(root, &dir),
            performance: read_performance(root, &dir, target_node),
            state,
        })
    }
}

/// Returns the machine's dax devices in the order of their numbers, read from the sysfs, procfs and device nodes
/// under `root` (`/` for this machine's own). A device node is opened to see the claims on it, never mapped.
pub fn discover(root: &Path) -> Vec<DaxInfo> {
    let read = |name: String| {
        let mut info = DaxInfo::read(root, &name)?;
        if info.state == DaxState::Free {
            let holders = holders(root, &root.join("dev").join(&name), info.len_bytes);
            if !holders.is_empty() {
                info.state = DaxState::Claimed { holders };
            }
        }
        Some(info)
    };
    device_names(root).into_iter().filter_map(read).collect()
}

/// Returns the names of the dax devices in the order of their numbers.
pub(super) fn device_names(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("sys/bus/dax/devices")).into_iter().flatten().flatten();
    let mut numbers: Vec<(u32, u32)> =
        entries.filter_map(|entry| parse_name(entry.file_name().to_str()?)).collect();
    numbers.sort_unstable();
    numbers.into_iter().map(|(region, instance)| format!("dax{region}.{instance}")).collect()
}

/// Returns the name of the dax device with this major and minor number.
pub(super) fn name_of_dev(root: &Path, dev: (u32, u32)) -> Option<String> {
    let dir = root.join("sys/bus/dax/devices");
    device_names(root).into_iter().find(|name| read_dev(&dir.join(name)) == Some(dev))
}

/// Judges the device node at `path`, which must be the character device `dev`, by what this process may do.
pub(super) fn node_state(path: &Path, dev: Option<(u32, u32)>) -> DaxState {
    let Ok(metadata) = std::fs::metadata(path) else { return DaxState::NodeMissing };
    let found = describe_file(&metadata);
    let is_its_node = metadata.file_type().is_char_device() && dev == Some(rdev(&metadata));
    if !is_its_node {
        return DaxState::NotItsNode { found };
    }
    let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
    match (file::may_open(path, false), file::may_open(path, true)) {
        (_, true) => DaxState::Free,
        (true, false) => DaxState::ReadOnly { mode, uid, gid },
        (false, false) => DaxState::NotPermitted { mode, uid, gid },
    }
}

/// Says what kind of file it is, for messages.
pub(super) fn describe_file(metadata: &std::fs::Metadata) -> String {
    let kind = metadata.file_type();
    if kind.is_char_device() {
        let (major, minor) = rdev(metadata);
        format!("character device {major}:{minor}")
    } else if kind.is_block_device() {
        let (major, minor) = rdev(metadata);
        format!("block device {major}:{minor}")
    } else if kind.is_dir() {
        "a directory".to_owned()
    } else if kind.is_file() {
        "a regular file".to_owned()
    } else {
        "neither a device nor a file".to_owned()
    }
}

pub(super) fn rdev(metadata: &std::fs::Metadata) -> (u32, u32) {
    (libc::major(metadata.rdev()), libc::minor(metadata.rdev()))
}

impl DaxRegion {
    fn read(root: &Path, device_dir: &Path) -> DaxRegion {
        let Some(parent) = device_dir.parent() else { return DaxRegion::default() };
        let dir = parent.join("dax_region");
        let devices = root.join("sys/devices").canonicalize().unwrap_or_default();
        DaxRegion {
            id: read_u64(&dir.join("id")).and_then(|id| u32::try_from(id).ok()),
            path: parent.strip_prefix(devices).unwrap_or(parent).to_string_lossy().into_owned(),
            start: origin::cxl_region_dir(device_dir).and_then(|dir| read_u64(&dir.join("resource"))),
            len_bytes: read_u64(&dir.join("size")).unwrap_or(0),
            available_bytes: read_u64(&dir.join("available_size")),
        }
    }
}

fn read_dev(dir: &Path) -> Option<(u32, u32)> {
    let text = read_text(&dir.join("dev"))?;
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn read_mappings(dir: &Path) -> Vec<DaxMapping> {
    let mapping = |number: u32| {
        let dir = dir.join(format!("mapping{number}"));
        Some(DaxMapping {
            page_offset: read_u64(&dir.join("page_offset"))?,
            start: read_u64(&dir.join("start")),
            end: read_u64(&dir.join("end")),
        })
    };
    let mut mappings: Vec<DaxMapping> =
        numbered_entries(dir, "mapping").into_iter().filter_map(mapping).collect();
    mappings.sort_by_key(|mapping| mapping.page_offset);
    mappings
}

/// A CXL region has figures of its own on newer kernels; otherwise those of the target node count, once it is online.
fn read_performance(root: &Path, device_dir: &Path, target_node: Option<u32>) -> Option<Performance> {
    let of_region = || Performance::read(&origin::cxl_region_dir(device_dir)?.join("access0"));
    let of_node = || {
        let node = root.join(format!("sys/devices/system/node/node{}", target_node?));
        Performance::read(&node.join("access0/initiators"))
    };
    of_region().or_else(of_node)
}

/// Splits `dax0.1` into 0 and 1; `None` for any other name.
pub(super) fn parse_name(name: &str) -> Option<(u32, u32)> {
    let (region, instance) = name.strip_prefix("dax")?.split_once('.')?;
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    Some((number(region)?, number(instance)?))
}

#[cfg(test)]
mod tests;
