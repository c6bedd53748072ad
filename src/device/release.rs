//! The devices that the administrator released for programs which name none: `/etc/daxtier/devices`.
//!
//! One line a device, by what stays the same over reboots, since the names dax0.0, dax1.0 ... depend on the order in
//! which drivers find the devices:
//!
//! ```text
//! cxl serial=0x1 dpa=0x0 size=0x20000000 extents=all  # dax0.0
//! pmem uuid=82ba1457-ead0-4b24-9e2d-81541228eadf size=0x1f600000 extents=all
//! hmem region=platform/hmem.0 start=0x40000000 size=0x20000000 extents=all
//! ```
//!
//! A CXL region is known by the serial numbers of its memory devices and where it begins on each (`dpa`), persistent
//! memory by its namespace, anything else by its place in sysfs and its first physical address. `extents` says which
//! part of the region the device is: `all`, or a list of offset+length. Physical addresses are for root's eyes only,
//! so a process without rights recognises a device of a whole region, and not a part of one.
//!
//! [`release`] and [`revoke`] change the file, [`released`] answers which devices it names. Uses `discovery`.

use super::discovery::{DaxInfo, discover};
use super::origin::Origin;
use crate::sys::{file, lock};
use std::ffi::CString;
use std::fmt;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where the list of released devices is kept.
pub const RELEASED_PATH: &str = "/etc/daxtier/devices";

/// A released device, or the identity of one that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Release {
    /// The origin: `cxl`, `pmem`, `hmem` or `unknown`.
    pub origin: String,
    /// What identifies the device, as pairs of key and value in the order of the line.
    pub keys: Vec<(String, String)>,
    /// What the device was called when it was released.
    pub remark: String,
}

/// The list of released devices could not be read or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// A line cannot be understood; then nothing in the file counts.
    #[error(
        "{path}:{line}: {text:?} is no released device; take the line out, or write the file anew with daxtier allow"
    )]
    Malformed {
        /// The file.
        path: String,
        /// The line's number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// Others than its owner may write to the file; then nothing in it counts.
    #[error("{path}: others than its owner may write to it (mode {mode:04o}); sudo chmod 0644 {path}")]
    Writable {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not a regular file.
    #[error("{path} is no regular file")]
    NotAFile {
        /// The path.
        path: String,
    },
    /// This process may not write to the file or its directory.
    #[error("{path}: only root may change the list of released devices; run the command with sudo")]
    NotPermitted {
        /// The file.
        path: String,
    },
    /// What would identify the device cannot be read.
    #[error("{device}: its place in its region cannot be read; only root can, so run the command with sudo")]
    Unidentified {
        /// The device's name.
        device: String,
    },
    /// Another process is changing the list.
    #[error("{path}: another daxtier allow is changing the list; try again")]
    Busy {
        /// The file.
        path: String,
    },
    /// The file could not be read or written.
    #[error("{path}: {reason}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        reason: String,
    },
}

impl Release {
    /// Returns what identifies `info`, as far as this process can read it.
    fn of(info: &DaxInfo) -> Release {
        let mut keys: Vec<(&str, String)> = Vec::new();
        let mut is_relative = true;
        match &info.origin {
            Origin::Cxl { memdevs, .. }
                if !memdevs.is_empty()
                    && memdevs.iter().all(|memdev| memdev.serial.is_some() && memdev.dpa_start.is_some()) =>
            {
                let list = |numbers: Vec<u64>| {
                    numbers.iter().map(|number| format!("{number:#x}")).collect::<Vec<_>>().join(",")
                };
                keys.push(("serial", list(memdevs.iter().filter_map(|memdev| memdev.serial).collect())));
                keys.push(("dpa", list(memdevs.iter().filter_map(|memdev| memdev.dpa_start).collect())));
            }
            Origin::Pmem { uuid: Some(uuid), .. } => keys.push(("uuid", uuid.clone())),
            _ => {
                is_relative = false;
                keys.push(("region", info.region.path.clone()));
                if let Some(start) = info.resource {
                    keys.push(("start", format!("{start:#x}")));
                }
            }
        }
        keys.push(("size", format!("{:#x}", info.len_bytes)));
        if let Some(extents) = extents(info, is_relative) {
            keys.push(("extents", extents));
        }
        Release {
            origin: info.origin.as_str().to_owned(),
            keys: keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            remark: info.name.clone(),
        }
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.keys.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Returns whether the device `seen` is the one that this entry released. Each key of the entry must agree; only
    /// a physical address that this process may not read is left out of account, and only for a whole region.
    fn matches(&self, seen: &Release) -> bool {
        self.origin == seen.origin
            && self.keys.iter().all(|(key, value)| match seen.get(key) {
                Some(seen_value) => seen_value == value,
                None => key == "start" && seen.get("extents") == Some("all"),
            })
    }

    /// Reads a line, already without its remark.
    fn parse(text: &str, remark: &str) -> Option<Release> {
        let mut words = text.split_whitespace();
        let origin = words.next().filter(|word| ["cxl", "pmem", "hmem", "unknown"].contains(word))?;
        let mut keys: Vec<(String, String)> = Vec::new();
        for word in words {
            let (key, value) = word.split_once('=')?;
            let is_known = ["serial", "dpa", "uuid", "region", "start", "size", "extents"].contains(&key);
            if !is_known || value.is_empty() || keys.iter().any(|(seen, _)| seen == key) {
                return None;
            }
            keys.push((key.to_owned(), value.to_owned()));
        }
        let entry = Release { origin: origin.to_owned(), keys, remark: remark.trim().to_owned() };
        // An entry that leaves out what tells devices apart would release more than one.
        let is_anchored = ["serial", "uuid", "region"].iter().any(|key| entry.get(key).is_some());
        (is_anchored && entry.get("size").is_some() && entry.get("extents").is_some()).then_some(entry)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        for (key, value) in &self.keys {
            write!(f, " {key}={value}")?;
        }
        if self.remark.is_empty() { Ok(()) } else { write!(f, "  # {}", self.remark) }
    }
}

/// Says which part of its region a device is: `all`, or its pieces, relative to the region's start or absolute.
/// `None` when this process may not read the addresses that it takes.
fn extents(info: &DaxInfo, is_relative: bool) -> Option<String> {
    if info.len_bytes > 0 && info.len_bytes == info.region.len_bytes {
        return Some("all".to_owned());
    }
    let origin = if is_relative { info.region.start? } else { 0 };
    let mut pieces = Vec::new();
    for piece in &info.mappings {
        let (start, end) = (piece.start?, piece.end?);
        let len_bytes = end.checked_sub(start)?.checked_add(1)?;
        pieces.push(format!("{:#x}+{len_bytes:#x}", start.checked_sub(origin)?));
    }
    (!pieces.is_empty()).then(|| pieces.join(","))
}

/// Returns the devices under `sys_root` that the list at `list_path` ([`RELEASED_PATH`]) names, usable or not.
/// Without a list there are none.
///
/// # Errors
/// [`ReleaseError`] when the list cannot be read, is damaged, or may be written by others than its owner.
pub fn released(sys_root: &Path, list_path: &Path) -> Result<Vec<DaxInfo>, ReleaseError> {
    let entries = list_releases(list_path)?;
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let is_released = |info: &DaxInfo| {
        let seen = Release::of(info);
        entries.iter().any(|entry| entry.matches(&seen))
    };
    Ok(discover(sys_root).into_iter().filter(is_released).collect())
}

/// Reads the list at `list_path`. A missing file is an empty list.
///
/// # Errors
/// As for [`released`].
pub fn list_releases(list_path: &Path) -> Result<Vec<Release>, ReleaseError> {
    let path = || list_path.display().to_string();
    let metadata = match std::fs::metadata(list_path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(list_path, &error)),
    };
    if !metadata.is_file() {
        return Err(ReleaseError::NotAFile { path: path() });
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(ReleaseError::Writable { path: path(), mode: metadata.mode() & 0o7777 });
    }
    let text = std::fs::read_to_string(list_path).map_err(|error| io(list_path, &error))?;
    let mut entries = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let (entry, remark) = line.split_once('#').unwrap_or((line, ""));
        if entry.trim().is_empty() {
            continue;
        }
        entries.push(Release::parse(entry, remark).ok_or_else(|| ReleaseError::Malformed {
            path: path(),
            line: index + 1,
            text: line.to_owned(),
        })?);
    }
    Ok(entries)
}

/// Adds `info` to the list at `list_path`; returns `false` when it is there already. The file is replaced at one
/// stroke, mode 0644; its directory is made where it is missing.
///
/// # Errors
/// [`ReleaseError`] for a device that cannot be identified, or a list that cannot be read or written.
pub fn release(info: &DaxInfo, list_path: &Path) -> Result<bool, ReleaseError> {
    let entry = Release::of(info);
    if entry.get("extents").is_none() || entry.get("region").is_some() && entry.get("start").is_none() {
        return Err(ReleaseError::Unidentified { device: info.name.clone() });
    }
    change(list_path, |entries| {
        if entries.iter().any(|known| known.matches(&entry)) {
            return false;
        }
        entries.push(entry.clone());
        true
    })
}

/// Takes every entry that `is_revoked` picks off the list at `list_path`; returns whether there was one.
///
/// # Errors
/// As for [`release`].
pub fn revoke(
    list_path: &Path,
    mut is_revoked: impl FnMut(usize, &Release) -> bool,
) -> Result<bool, ReleaseError> {
    change(list_path, |entries| {
        let before = entries.len();
        let mut index = 0;
        entries.retain(|entry| {
            index += 1;
            !is_revoked(index - 1, entry)
        });
        entries.len() < before
    })
}

impl DaxInfo {
    /// Returns whether `entry` names this device.
    pub fn is_released_by(&self, entry: &Release) -> bool {
        entry.matches(&Release::of(self))
    }
}

const HEADER: &str =
    "# Devices that daxtier may use when a program names none. Changed with: daxtier allow DEV\n";

/// Reads the list, lets `edit` change it, and writes it if `edit` says that it did.
fn change(list_path: &Path, edit: impl FnOnce(&mut Vec<Release>) -> bool) -> Result<bool, ReleaseError> {
    let dir = list_path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(|error| io(list_path, &error))?;
    let lock_path = dir.join(".devices.lock");
    let _lock = lock_list(list_path, &lock_path)?;
    let mut entries = list_releases(list_path)?;
    if !edit(&mut entries) {
        return Ok(false);
    }
    let mut text = HEADER.to_owned();
    for entry in &entries {
        text.push_str(&format!("{entry}\n"));
    }
    replace(list_path, text.as_bytes()).map_err(|error| io(list_path, &error))?;
    Ok(true)
}

/// Keeps other processes from changing the list while the returned file is open.
fn lock_list(list_path: &Path, lock_path: &Path) -> Result<std::os::fd::OwnedFd, ReleaseError> {
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(lock_path)
        .map_err(|error| io(list_path, &error))?;
    let path = || list_path.display().to_string();
    let sys = |source: crate::error::SysError| ReleaseError::Io { path: path(), reason: source.to_string() };
    let c_path = CString::new(lock_path.as_os_str().as_bytes())
        .map_err(|_| ReleaseError::NotAFile { path: path() })?;
    let lock_file = file::open_read_write(&c_path).map_err(sys)?;
    for _ in 0..LOCK_TRIES {
        if lock::try_lock(lock_file.as_fd(), &(0..1)).map_err(sys)? {
            return Ok(lock_file);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Err(ReleaseError::Busy { path: path() })
}

/// Two seconds: a change takes a few milliseconds.
const LOCK_TRIES: u32 = 200;

/// Writes a file beside `path` and renames it to `path`, so that readers see the old text or the new one.
fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let new_path = PathBuf::from(format!("{}.new-{}", path.display(), std::process::id()));
    let written = (|| {
        let mut new_file = std::fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o644)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&new_path)?;
        new_file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
        new_file.write_all(text)?;
        new_file.sync_all()?;
        std::fs::rename(&new_path, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&new_path);
    }
    written
}

fn io(path: &Path, error: &std::io::Error) -> ReleaseError {
    let path = path.display().to_string();
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => ReleaseError::NotPermitted { path },
        _ => ReleaseError::Io { path, reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{ChildEnd, in_child};
    use crate::topology::tree::Tree;

    fn names(tree: &Tree, list: &Path) -> Vec<String> {
        released(tree.root(), list).unwrap().into_iter().map(|info| info.name).collect()
    }

    fn device_dir(tree: &Tree, name: &str) -> PathBuf {
        std::fs::canonicalize(tree.path("sys/bus/dax/devices").join(name)).unwrap()
    }

    /// Takes away what only root can read.
    fn as_seen_without_rights(tree: &Tree, name: &str) {
        let dir = device_dir(tree, name);
        std::fs::remove_file(dir.join("resource")).unwrap();
        for mapping in ["mapping0", "mapping1"] {
            for attribute in ["start", "end"] {
                let _ = std::fs::remove_file(dir.join(mapping).join(attribute));
            }
        }
    }

    #[test]
    fn nothing_is_released_until_the_administrator_does() {
        let tree = Tree::recorded("cxl-two");
        let list = tree.path("etc/daxtier/devices");
        assert_eq!(names(&tree, &list), [] as [&str; 0]);
        let devices = discover(tree.root());
        assert_eq!(release(&devices[1], &list), Ok(true));
        assert_eq!(names(&tree, &list), ["dax1.0"]);
        assert_eq!(release(&devices[1], &list), Ok(false), "released twice");
        assert_eq!(list_releases(&list).unwrap().len(), 1);
        assert_eq!(std::fs::metadata(&list).unwrap().mode() & 0o7777, 0o644);
        assert_eq!(revoke(&list, |_, entry| devices[0].is_released_by(entry)), Ok(false));
        assert_eq!(revoke(&list, |_, entry| devices[1].is_released_by(entry)), Ok(true));
        assert_eq!(names(&tree, &list), [] as [&str; 0]);
    }

    #[test]
    fn a_device_is_recognised_by_its_serial_number_not_by_its_name() {
        let tree = Tree::recorded("cxl-two");
        let list = tree.path("devices");
        release(&discover(tree.root())[0], &list).unwrap();
        // After a reboot the expanders come up the other way round.
        let (first, second) = (device_dir(&tree, "dax0.0"), device_dir(&tree, "dax1.0"));
        tree.link("sys/bus/dax/devices/dax0.0", second.to_str().unwrap());
        tree.link("sys/bus/dax/devices/dax1.0", first.to_str().unwrap());
        assert_eq!(names(&tree, &list), ["dax1.0"]);
    }

    #[test]
    fn each_origin_is_recognised_again_with_and_without_rights() {
        for recorded in ["cxl-devdax", "hmem", "hmem-node", "pmem", "nvdimm"] {
            let tree = Tree::recorded(recorded);
            let list = tree.path("devices");
            assert_eq!(release(&discover(tree.root())[0], &list), Ok(true), "{recorded}");
            assert_eq!(names(&tree, &list), ["dax0.0"], "{recorded}");
            as_seen_without_rights(&tree, "dax0.0");
            assert_eq!(names(&tree, &list), ["dax0.0"], "{recorded} without rights");
            std::fs::write(device_dir(&tree, "dax0.0").join("size"), "4194304").unwrap();
            assert_eq!(names(&tree, &list), [] as [&str; 0], "{recorded} with another size");
        }
    }

    #[test]
    fn a_part_of_a_region_is_told_from_the_other_parts() {
        let tree = Tree::recorded("cxl-discontiguous");
        let list = tree.path("devices");
        let devices = discover(tree.root());
        release(&devices[0], &list).unwrap();
        assert_eq!(names(&tree, &list), ["dax0.0"]);
        let text = std::fs::read_to_string(&list).unwrap();
        assert!(text.contains("extents=0x0+0x8000000,0x10000000+0x8000000"), "{text}");
        // The same length elsewhere in the region is another device.
        let dir = device_dir(&tree, "dax0.0");
        std::fs::write(dir.join("mapping1/start"), "0x5a8000000").unwrap();
        std::fs::write(dir.join("mapping1/end"), "0x5afffffff").unwrap();
        assert_eq!(names(&tree, &list), [] as [&str; 0]);
        as_seen_without_rights(&tree, "dax0.0");
        assert_eq!(names(&tree, &list), [] as [&str; 0], "what cannot be told apart is not taken");
        let unseen = discover(tree.root()).remove(0);
        assert!(matches!(release(&unseen, &list), Err(ReleaseError::Unidentified { .. })));
    }

    #[test]
    fn a_list_that_is_damaged_or_open_to_others_releases_nothing() {
        let tree = Tree::recorded("cxl-devdax");
        for line in [
            "dax0.0",
            "/dev/dax0.0",
            "cxl",
            "cxl serial=0x1",
            "cxl serial=0x1 size=0x20000000",
            "cxl size=0x20000000 extents=all",
            "cxl serial=0x1 serial=0x1 dpa=0x0 size=0x20000000 extents=all",
            "cxl serial= dpa=0x0 size=0x20000000 extents=all",
            "cxl serial=0x1 color=red size=0x20000000 extents=all",
            "disk serial=0x1 dpa=0x0 size=0x20000000 extents=all",
        ] {
            tree.write("devices", &format!("# fine\n\n{line}\n"));
            let seen = released(tree.root(), &tree.path("devices"));
            assert!(matches!(seen, Err(ReleaseError::Malformed { line: 3, .. })), "{line}: {seen:?}");
        }
        tree.write("devices", "cxl serial=0x1 dpa=0x0 size=0x20000000 extents=all # it\n");
        assert_eq!(names(&tree, &tree.path("devices")), ["dax0.0"]);
        for mode in [0o666, 0o664] {
            std::fs::set_permissions(tree.path("devices"), PermissionsExt::from_mode(mode)).unwrap();
            let seen = released(tree.root(), &tree.path("devices"));
            assert!(matches!(seen, Err(ReleaseError::Writable { .. })), "{mode:o}: {seen:?}");
        }
        assert!(matches!(released(tree.root(), &tree.path("sys")), Err(ReleaseError::NotAFile { .. })));
        tree.write("devices2", "\u{0}\u{1}binary");
        assert!(matches!(list_releases(&tree.path("devices2")), Err(ReleaseError::Malformed { .. })));
    }

    #[test]
    fn who_may_not_write_the_list_is_told_to_use_sudo() {
        let tree = Tree::recorded("cxl-devdax");
        let info = discover(tree.root()).remove(0);
        let dir = tree.path("etc");
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o555)).unwrap();
        let end = in_child(|| {
            // SAFETY: setuid takes a plain number; without root it fails, and the mode of the directory does the rest.
            unsafe { libc::setuid(65534) };
            match release(&info, &dir.join("daxtier/devices")) {
                Err(error @ ReleaseError::NotPermitted { .. }) => {
                    i32::from(!error.to_string().contains("sudo"))
                }
                _ => 2,
            }
        });
        assert_eq!(end, ChildEnd::Exited(0));
    }

    #[test]
    fn two_writers_at_once_lose_nothing() {
        let tree = Tree::recorded("cxl-two");
        let list = tree.path("devices");
        let devices = discover(tree.root());
        std::thread::scope(|scope| {
            for info in &devices {
                let list = &list;
                scope.spawn(move || {
                    for _ in 0..4 {
                        release(info, list).unwrap();
                        revoke(list, |_, entry| info.is_released_by(entry)).unwrap();
                    }
                    release(info, list).unwrap();
                });
            }
        });
        assert_eq!(names(&tree, &list), ["dax0.0", "dax1.0"]);
    }
}
