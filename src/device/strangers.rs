//! Who uses a device without a claim: what was there before us is not ours to clear.
//!
//! Claims are cooperative. A process that maps a device and takes no lock on it is a *stranger*: another program's, whose
//! data a claimant would overwrite. It is found in `/proc`, as far as that shows other processes. Data that nobody maps now
//! is recognised by the header that a known format begins with.

use crate::sys::file::FileId;
use crate::sys::maps::Line;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// A part of a device that a process maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) pid: u32,
    /// In bytes from the start of the device's node.
    pub(super) range: Range<u64>,
}

/// Returns what processes other than this one map of a device's node, of which `/proc` (at `proc`) shows the mappings.
pub(super) fn mapped(proc: &Path, node: FileId) -> Vec<Mapped> {
    let own = std::process::id();
    let pids = fs::read_dir(proc).into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid: &u32| pid != own)
        .filter_map(|pid| Some((pid, fs::read(proc.join(pid.to_string()).join("maps")).ok()?)))
        .flat_map(|(pid, maps)| {
            let lines = maps.split(|&byte| byte == b'\n').filter_map(Line::parse);
            let ours = lines.filter(|line| line.file == node);
            ours.map(|line| Mapped { pid, range: line.offset..line.offset + line.addresses.len() as u64 })
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Returns the name of the format whose header `first` is, the first bytes of a device, if it is a known one.
pub(super) fn known_header(first: &[u8]) -> Option<&'static str> {
    // The magic numbers at the beginning of a PMDK pool and of a famfs superblock.
    let words = [
        (b"PMEMOBJ\0", "a PMDK pool (PMEMOBJ)"),
        (b"PMEMBLK\0", "a PMDK pool (PMEMBLK)"),
        (b"PMEMLOG\0", "a PMDK pool (PMEMLOG)"),
        (b"PMEMPSET", "a PMDK pool set"),
        (&FAMFS_SUPER_MAGIC.to_le_bytes(), "a famfs file system"),
    ];
    words.into_iter().find(|(magic, _)| first.starts_with(*magic)).map(|(_, name)| name)
}

/// The first word of famfs's superblock.
const FAMFS_SUPER_MAGIC: u64 = 0x87b2_82ff;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tree::Tree;

    const NODE: FileId = FileId { dev: libc::makedev(0, 6), ino: 77 };

    #[test]
    fn mappings_of_the_node_are_told_from_others() {
        let tree = Tree::empty();
        let lines = [
            "7f00000000-7f00400000 rw-s 00200000 00:06 77                        /dev/dax0.0",
            "7f00000000-7f00400000 rw-s 00200000 00:06 78 /dev/dax1.0",
            "7f00000000-7f00400000 rw-s 00200000 00:07 77 /dev/dax0.0",
            "7f00000000-7f00400000 rw-p 00000000 00:00 0",
            "",
            "nonsense",
        ];
        tree.write("4000000001/maps", &lines.join("\n"));
        assert_eq!(mapped(tree.root(), NODE), [Mapped { pid: 4_000_000_001, range: 0x20_0000..0x60_0000 }]);
    }

    #[test]
    fn other_processes_are_looked_through_and_this_one_is_not() {
        let tree = Tree::empty();
        let line = "7f00000000-7f00200000 rw-s 00000000 00:06 77 /dev/dax0.0\n";
        let own = std::process::id().to_string();
        for (name, text) in
            [("4000000001", line), ("4000000002", "\n"), ("self", line), ("fs", line), (&own, line)]
        {
            tree.write(&format!("{name}/maps"), text);
        }
        // A process that hides its mappings, or has gone.
        tree.write("4000000003/comm", "");
        assert_eq!(mapped(tree.root(), NODE), [Mapped { pid: 4_000_000_001, range: 0..1 << 21 }]);
        assert_eq!(mapped(&tree.path("missing"), NODE), []);
    }

    #[test]
    fn known_headers_are_recognised() {
        assert_eq!(known_header(b"PMEMOBJ\0 and more"), Some("a PMDK pool (PMEMOBJ)"));
        assert!(known_header(&0x87b2_82ff_u64.to_le_bytes()).is_some());
        assert_eq!(known_header(&[0; 64]), None);
        assert_eq!(known_header(b"PMEM"), None);
    }
}
