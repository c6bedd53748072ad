//! Whether this program may have memory written behind its page tables.
//!
//! Direct I/O, io_uring, RDMA, GPUs and virtual machines pin pages and write them by their physical address. Nothing
//! tells which pages are pinned on a device, but the descriptors of the process tell that some may be.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What the target of a descriptor's link begins with when pages may be pinned through it.
const PINNING: [&[u8]; 6] = [
    b"anon_inode:[io_uring]",
    b"/dev/infiniband/",
    b"/dev/nvidia",
    b"/dev/vfio/",
    b"anon_inode:kvm",
    b"/dev/kfd",
];

/// Looks through the descriptors of the process; returns whether one of them is opened for direct I/O or is of a kind that
/// pins memory. Allocates. Says yes where it can't look.
pub(crate) fn may_pin() -> bool {
    // Of the process's first thread: the caller's may have a table of its own.
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return true };
    entries.flatten().any(|entry| {
        fs::read_link(entry.path()).is_ok_and(|target| {
            let target = target.as_os_str().as_bytes();
            PINNING.iter().any(|kind| target.starts_with(kind))
                || target.starts_with(b"/") && is_direct(&entry.file_name())
        })
    })
}

/// Whether a file is open for direct I/O. One that is closed by now is not.
fn is_direct(number: &OsStr) -> bool {
    let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(number)).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_DIRECT as u32 != 0)
}

/// Returns how many mappings the process has, and how many it may have. Allocates; costs microseconds a thousand mappings.
pub(crate) fn mappings() -> Option<(usize, usize)> {
    let limit = fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?;
    let maps = fs::read("/proc/self/maps").ok()?;
    Some((maps.iter().filter(|&&byte| byte == b'\n').count(), limit))
}

/// Whether huge pages are switched off for the process, which makes fresh accesses to a dax device fault.
pub(crate) fn huge_pages_are_off() -> bool {
    // SAFETY: the query takes numbers only.
    unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1 }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::sys::testing::{ChildEnd, in_child};
    use std::os::fd::{AsRawFd, RawFd};
    use std::os::unix::fs::OpenOptionsExt;

    fn is_direct(number: RawFd) -> bool {
        super::is_direct(OsStr::new(&number.to_string()))
    }

    #[test]
    fn a_descriptor_for_direct_io_is_found() {
        let path = std::env::temp_dir().join(format!("daxtier-direct-{}", std::process::id()));
        let file = fs::File::create(&path).unwrap();
        assert!(!is_direct(file.as_raw_fd()));
        // In a child: the descriptor must not stop other tests' migrations.
        const NO_DIRECT_IO: i32 = 77;
        let end =
            in_child(|| match fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path) {
                Ok(direct) => i32::from(!is_direct(direct.as_raw_fd())) + 2 * i32::from(!may_pin()),
                Err(_) => NO_DIRECT_IO,
            });
        fs::remove_file(&path).unwrap();
        if end == ChildEnd::Exited(NO_DIRECT_IO) {
            eprintln!("skipped: no direct I/O here");
            return;
        }
        assert_eq!(end, ChildEnd::Exited(0));
    }

    #[test]
    fn mappings_are_counted_and_limited() {
        let (count, limit) = mappings().unwrap();
        assert!(count > 10 && limit >= count, "{count} of {limit}");
    }
}
