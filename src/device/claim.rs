//! Who holds which part of a device node.
//!
//! A claim is a byte-range lock of an open file description on the node (`sys::lock`). The kernel says that a lock
//! is in the way but not whose it is, since a description may be shared; the owners are found in
//! `/proc/PID/fdinfo`, as far as this process may read it. Used by `discovery`.

use crate::sys::{file, lock};
use crate::units::Bytes;
use std::ffi::CString;
use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A claimed part of a device and the process that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Holder {
    /// The process, unless this one may not look at it.
    pub pid: Option<u32>,
    /// The first byte.
    pub start: u64,
    /// The byte after the last; `u64::MAX` for all there is.
    pub end: u64,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid}")?,
            None => f.write_str("a process of another user")?,
        }
        match self.end {
            u64::MAX => f.write_str(" (all of it)"),
            end => write!(f, " ({} at {:#x})", Bytes(end - self.start), self.start),
        }
    }
}

/// Returns who holds parts of the device node at `path`, of length `len_bytes`: nobody when the node cannot be
/// opened, or when no claim is in the way of claiming all of it.
pub(super) fn holders(root: &Path, path: &Path, len_bytes: u64) -> Vec<Holder> {
    let Ok(c_path) = CString::new(path.as_os_str().as_bytes()) else { return Vec::new() };
    let Ok(node) = file::open_read_write(&c_path) else { return Vec::new() };
    let whole = 0..len_bytes.clamp(1, i64::MAX as u64);
    let Ok(Some((range, _))) = lock::conflict(node.as_fd(), &whole) else { return Vec::new() };
    let Ok(stat) = file::stat(node.as_raw_fd()) else { return Vec::new() };
    let mut found = lock_owners(root, stat.id);
    if found.is_empty() {
        found.push(Holder { pid: None, start: range.start, end: range.end });
    }
    found
}

/// Looks through all descriptors for locks on file `id`.
fn lock_owners(root: &Path, id: file::FileId) -> Vec<Holder> {
    let file = format!("{:02x}:{:02x}:{}", libc::major(id.dev), libc::minor(id.dev), id.ino);
    let mut found = Vec::new();
    let processes = std::fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    for process in processes {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let infos = std::fs::read_dir(process.path().join("fdinfo")).into_iter().flatten().flatten();
        for info in infos {
            let text = std::fs::read_to_string(info.path()).unwrap_or_default();
            let ranges = text.lines().filter_map(|line| parse_lock(line, &file));
            found.extend(ranges.map(|range| Holder { pid: Some(pid), start: range.start, end: range.end }));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Reads `lock: 1: OFDLCK ADVISORY WRITE -1 00:05:1234 0 4095`, if it is a lock on `file`.
fn parse_lock(line: &str, file: &str) -> Option<Range<u64>> {
    let words: Vec<&str> = line.strip_prefix("lock:")?.split_whitespace().collect();
    let [_, "OFDLCK", _, "WRITE", _, seen, start, end] = words[..] else { return None };
    if seen != file {
        return None;
    }
    let end = if end == "EOF" { u64::MAX } else { end.parse::<u64>().ok()?.checked_add(1)? };
    Some(start.parse().ok()?..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::soon;
    use crate::topology::tree::Tree;

    #[test]
    fn lock_lines_of_other_files_and_kinds_are_passed_over() {
        let file = "00:05:1234";
        let read = |line| parse_lock(line, file);
        assert_eq!(read("lock:\t1: OFDLCK  ADVISORY  WRITE -1 00:05:1234 4096 8191"), Some(4096..8192));
        assert_eq!(read("lock:\t1: OFDLCK  ADVISORY  WRITE -1 00:05:1234 0 EOF"), Some(0..u64::MAX));
        for line in [
            "lock:\t1: OFDLCK  ADVISORY  WRITE -1 00:05:12345 0 EOF",
            "lock:\t1: OFDLCK  ADVISORY  READ -1 00:05:1234 0 EOF",
            "lock:\t1: FLOCK  ADVISORY  WRITE 77 00:05:1234 0 EOF",
            "lock:\t1: OFDLCK  ADVISORY  WRITE -1 00:05:1234 x EOF",
            "pos:\t0",
            "lock:",
        ] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn a_claim_names_the_process_that_holds_it() {
        let tree = Tree::empty();
        tree.write("dev/dax0.0", "");
        let path = tree.path("dev/dax0.0");
        assert_eq!(holders(Path::new("/"), &path, 1 << 30), []);
        let c_path = CString::new(path.as_os_str().as_bytes()).unwrap();
        let node = file::open_read_write(&c_path).unwrap();
        assert_eq!(lock::try_lock(node.as_fd(), &(4096..8192)), Ok(true));
        let held = Holder { pid: Some(std::process::id()), start: 4096, end: 8192 };
        let found = holders(Path::new("/"), &path, 1 << 30);
        assert!(found.contains(&held), "{found:?}");
        assert_eq!(held.to_string(), format!("pid {} (4 KiB at 0x1000)", std::process::id()));
        // Without a procfs to look at, the claim is still seen.
        assert_eq!(holders(tree.root(), &path, 1 << 30), [Holder { pid: None, start: 4096, end: 8192 }]);
        drop(node);
        // A child that another test is forking just now holds the description too, for a moment.
        let is_released = || holders(Path::new("/"), &path, 1 << 30).is_empty();
        assert!(soon(is_released));
    }
}
