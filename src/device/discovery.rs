//! The machine's dax devices, each with its state and, where it cannot be used, the command that mends that.
//!
//! [`discover`] walks `/sys/bus/dax/devices` under a root path. [`DaxInfo`] is plain data; [`DaxState`] says what
//! was observed. `Dax::open` judges a device by the same rules, so a listing and an error agree. Uses
//! `topology`'s readers, `origin` and `claim`; used by the command-line program and the runtime.

use super::claim::{Holder, holders};
use super::origin::{self, Origin, link_name};
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
    /// Returns the command, or the step, that makes the device usable; `None` when it is usable already.
    pub fn mend(&self) -> Option<String> {
        let name = &self.name;
        let path = self.path.display();
        Some(match &self.state {
            DaxState::Free | DaxState::Claimed { .. } => return None,
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
mod tests {
    use super::*;
    use crate::topology::tree::Tree;

    /// The recorded device, with a node that this process can open in place of its own.
    fn with_node(tree: &Tree) {
        let dir = std::fs::canonicalize(tree.path("sys/bus/dax/devices/dax0.0")).unwrap();
        std::fs::write(dir.join("dev"), "1:5\n").unwrap();
        tree.link("dev/dax0.0", "/dev/zero");
    }

    fn only(tree: &Tree) -> DaxInfo {
        let mut found = discover(tree.root());
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    #[test]
    fn a_machine_without_dax_has_no_devices() {
        assert_eq!(discover(Tree::recorded("one-node").root()), []);
        assert_eq!(discover(Tree::empty().root()), []);
    }

    #[test]
    fn a_cxl_device_is_described_in_full() {
        let tree = Tree::recorded("cxl-devdax");
        with_node(&tree);
        let info = only(&tree);
        assert_eq!(info.name, "dax0.0");
        assert_eq!(info.path, Path::new("/dev/dax0.0"));
        assert_eq!((info.len_bytes, info.align_bytes), (512 << 20, 2 << 20));
        assert_eq!((info.target_node, info.numa_node), (Some(2), None), "numa_node was -1");
        assert_eq!(info.resource, Some(0x5_9000_0000));
        assert_eq!(info.mode(), Some("devdax"));
        assert_eq!((info.region.id, info.region.len_bytes), (Some(0), 512 << 20));
        assert_eq!(
            info.region.path, "platform/ACPI0017:00/root0/decoder0.0/region0/dax_region0",
            "as daxctl prints it"
        );
        let Origin::Cxl { region, memdevs } = &info.origin else { panic!("{:?}", info.origin) };
        assert_eq!(region, "region0");
        let memdev = &memdevs[0];
        assert_eq!((&memdev.name[..], memdev.serial, memdev.dpa_start), ("mem0", Some(1), Some(0)));
        assert_eq!(info.state, DaxState::Free);
        assert_eq!(info.mend(), None);
    }

    #[test]
    fn each_memory_device_is_told_apart() {
        let found = discover(Tree::recorded("cxl-two").root());
        let serials: Vec<_> = found
            .iter()
            .map(|info| match &info.origin {
                Origin::Cxl { memdevs, .. } => (info.name.as_str(), memdevs[0].serial),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(serials, [("dax0.0", Some(1)), ("dax1.0", Some(2))]);
    }

    #[test]
    fn the_pieces_of_a_discontiguous_device_are_listed_in_order() {
        let found = discover(Tree::recorded("cxl-discontiguous").root());
        let pieces: Vec<_> = found[0].mappings.iter().map(|piece| (piece.page_offset, piece.start)).collect();
        assert_eq!(pieces, [(0, Some(0x5_9000_0000)), (0x8000, Some(0x5_a000_0000))]);
        assert_eq!(found[1].mappings.len(), 1);
    }

    #[test]
    fn persistent_and_soft_reserved_memory_are_recognised() {
        for (tree, region) in [("pmem", "region0"), ("nvdimm", "region0")] {
            match only(&Tree::recorded(tree)).origin {
                Origin::Pmem { region: seen, uuid: Some(_) } => assert_eq!(seen, region),
                other => panic!("{tree}: {other:?}"),
            }
        }
        for tree in ["hmem", "hmem-node"] {
            assert_eq!(only(&Tree::recorded(tree)).origin, Origin::Hmem { device: "hmem.0".into() });
        }
    }

    #[test]
    fn system_ram_says_which_node_it_is_and_how_fast() {
        let info = only(&Tree::recorded("cxl-system-ram"));
        assert_eq!(info.state, DaxState::SystemRam { node: Some(2) });
        assert!(!info.state.is_usable());
        let mend = info.mend().unwrap();
        assert!(mend.contains("node:2") && mend.contains("daxctl reconfigure-device"), "{mend}");
        assert_eq!(info.performance.unwrap().read_latency_ns, Some(202));
    }

    #[test]
    fn a_device_without_driver_memory_or_node_says_so() {
        let info = only(&Tree::recorded("cxl-no-driver"));
        assert_eq!(info.state, DaxState::NoDriver);
        assert!(info.mend().unwrap().contains("echo dax0.0"), "{:?}", info.mend());

        let found = discover(Tree::recorded("cxl-size-zero").root());
        assert_eq!(found[1].state, DaxState::NoMemory);
        assert!(found[1].mend().unwrap().contains("create-device --region=0"), "{:?}", found[1].mend());

        let info = only(&Tree::recorded("cxl-devdax"));
        assert_eq!(info.state, DaxState::NodeMissing);
        assert!(info.mend().unwrap().contains("mknod -m 600 /dev/dax0.0 c 252 0"), "{:?}", info.mend());
    }

    #[test]
    fn a_node_that_is_something_else_is_not_taken_for_the_device() {
        let tree = Tree::recorded("cxl-devdax");
        tree.link("dev/dax0.0", "/dev/null");
        assert_eq!(only(&tree).state, DaxState::NotItsNode { found: "character device 1:3".into() });
        tree.remove("dev/dax0.0");
        tree.write("dev/dax0.0", "");
        assert_eq!(only(&tree).state, DaxState::NotItsNode { found: "a regular file".into() });
    }

    #[test]
    fn damaged_attributes_make_a_device_unusable_not_the_listing() {
        for (attribute, text, seen) in [
            ("size", "lots", "size"),
            ("align", "", "align"),
            ("align", "0", "align"),
            ("size", "-1", "size"),
        ] {
            let tree = Tree::recorded("cxl-devdax");
            with_node(&tree);
            let dir = std::fs::canonicalize(tree.path("sys/bus/dax/devices/dax0.0")).unwrap();
            std::fs::write(dir.join(attribute), text).unwrap();
            assert_eq!(only(&tree).state, DaxState::Unreadable { attribute: seen }, "{attribute} = {text}");
        }
    }

    #[test]
    fn only_names_of_dax_devices_are_taken() {
        assert_eq!(parse_name("dax12.3"), Some((12, 3)));
        for name in
            ["dax", "dax0", "dax0.", "dax.0", "dax0.0.0", "dax+0.0", "pmem0", "dax0.99999999999", "../dax0.0"]
        {
            assert_eq!(parse_name(name), None, "{name}");
        }
        let tree = Tree::recorded("cxl-devdax");
        tree.write("sys/bus/dax/devices/garbage", "");
        tree.link("sys/bus/dax/devices/dax10.0", "nowhere");
        assert_eq!(only(&tree).name, "dax0.0");
    }
}
