//! Whether somebody uses a device through another node than ours.
//!
//! A claim is a lock on the node's inode. Two nodes of one device that were made by mknod, as container engines make them, are two inodes
//! with locks of their own: behind each is a *domain*, and the domains' claims don't see each other. Processes of two domains would
//! claim the same extents and write over each other. So the first claim looks for a process that has the device open by another inode, in
//! `/proc`, as far as that shows other processes: from the host all of them, from a container with a process namespace of its
//! own only that container's. Each side looks after it has opened its own node, so of two that can see each other at least one is
//! refused. What nobody in `/proc` has open can't be told from a device that is free.
//!
//! Nothing is written to the device for this. A header on it that named the domains would have to be written before any claim, would
//! cost a granule (up to 1 GiB), and would outlive its writers: an engine makes a new inode for each start of a container, so a header that a killed
//! one left looks like a foreign domain until somebody says otherwise.

use crate::sys::file::FileId;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A process that has the device open through another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elsewhere {
    pub(super) pid: u32,
    /// The node as that process calls it.
    pub(super) node: PathBuf,
}

/// Longer than who lists devices has one open.
const GLANCE: Duration = Duration::from_millis(5);

/// Returns a process other than this one that has the character device `rdev` open by another inode than `node`, if `/proc` (at `proc`)
/// shows one, now and a moment later: whoever lists devices opens each of them.
pub(super) fn elsewhere(proc: &Path, rdev: (u32, u32), node: FileId) -> Option<Elsewhere> {
    look(proc, rdev, node)?;
    std::thread::sleep(GLANCE);
    look(proc, rdev, node)
}

fn look(proc: &Path, rdev: (u32, u32), node: FileId) -> Option<Elsewhere> {
    let own = std::process::id();
    let is_other_node = |seen: &Metadata| {
        let numbers = (libc::major(seen.rdev()), libc::minor(seen.rdev()));
        seen.file_type().is_char_device()
            && numbers == rdev
            && FileId { dev: seen.dev(), ino: seen.ino() } != node
    };
    let pids = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid: &u32| pid != own).find_map(|pid| {
        let descriptors = fs::read_dir(proc.join(pid.to_string()).join("fd")).into_iter().flatten().flatten();
        // Following the link opens nothing, and reaches a node that was unlinked, or is in another mount namespace.
        let mut paths = descriptors.map(|descriptor| descriptor.path());
        let found = paths.find(|path| fs::metadata(path).is_ok_and(|seen| is_other_node(&seen)))?;
        Some(Elsewhere { pid, node: fs::read_link(&found).unwrap_or(found) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tree::Tree;
    use std::os::unix::fs::symlink;

    /// The number of `/dev/null`, which stands for a device with a node that every machine has.
    const NULL: (u32, u32) = (1, 3);

    fn null_node() -> FileId {
        let seen = fs::metadata("/dev/null").unwrap();
        FileId { dev: seen.dev(), ino: seen.ino() }
    }

    fn with_descriptors(links: &[(&str, &str)]) -> Tree {
        let tree = Tree::empty();
        for (descriptor, target) in links {
            let path = tree.path(descriptor);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, path).unwrap();
        }
        tree
    }

    #[test]
    fn another_node_of_the_device_is_found_and_the_same_one_is_not() {
        let tree = with_descriptors(&[
            ("4000000001/fd/0", "/dev/zero"),
            ("4000000001/fd/1", "/nowhere"),
            ("4000000002/fd/3", "/proc/self/stat"),
            ("4000000002/fd/7", "/dev/null"),
        ]);
        let other = FileId { ino: null_node().ino + 1, ..null_node() };
        let found = elsewhere(tree.root(), NULL, other);
        assert_eq!(found, Some(Elsewhere { pid: 4_000_000_002, node: "/dev/null".into() }));
        assert_eq!(elsewhere(tree.root(), NULL, null_node()), None, "the same node");
        assert_eq!(elsewhere(tree.root(), (1, 4), other), None, "another device");
    }

    #[test]
    fn this_process_and_what_is_no_process_are_passed_over() {
        let own = std::process::id().to_string();
        let tree = with_descriptors(&[
            (&format!("{own}/fd/0"), "/dev/null"),
            ("self/fd/0", "/dev/null"),
            ("4000000001/comm", "/dev/null"),
        ]);
        let other = FileId { ino: null_node().ino + 1, ..null_node() };
        assert_eq!(elsewhere(tree.root(), NULL, other), None);
        assert_eq!(elsewhere(&tree.path("missing"), NULL, other), None);
    }

    #[test]
    fn who_has_it_open_for_a_moment_does_not_count() {
        let tree = with_descriptors(&[("4000000001/fd/0", "/dev/null")]);
        let other = FileId { ino: null_node().ino + 1, ..null_node() };
        let link = tree.path("4000000001/fd/0");
        let looked = look(tree.root(), NULL, other);
        fs::remove_file(link).unwrap();
        assert!(looked.is_some() && elsewhere(tree.root(), NULL, other).is_none());
    }
}
