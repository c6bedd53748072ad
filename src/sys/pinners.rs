//! Whether this program may have memory written behind its page tables.
//!
//! Direct I/O, io_uring, RDMA, GPUs and virtual machines pin pages and write them by their physical address, and a socket may
//! send pages themselves. Nothing tells which pages are pinned on a device, but the descriptors of the process tell that
//! some may be, and the rings that it shares with the kernel, which stay mapped without their descriptor.
//!
//! A pipe into which pages were spliced (vmsplice) can't be told from others. It only reads them.

use super::descriptors;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::RawFd;
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

/// What mappings are named through which the kernel is told of I/O.
const RINGS: [&str; 2] = ["anon_inode:[io_uring]", "/[aio]"];

/// Looks through the descriptors of the process; returns whether one of them is opened for direct I/O, is of a kind that
/// pins memory, or is a socket that may send pages themselves (SO_ZEROCOPY). Allocates. Says yes where it can't look.
pub(crate) fn may_pin() -> bool {
    // Of the process's first thread: the caller's may have a table of its own.
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return true };
    entries.flatten().any(|entry| {
        fs::read_link(entry.path()).is_ok_and(|target| {
            let target = target.as_os_str().as_bytes();
            PINNING.iter().any(|kind| target.starts_with(kind))
                || target.starts_with(b"/") && is_direct(&entry.file_name())
                || target.starts_with(b"socket:") && is_zerocopy(&entry.file_name())
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

/// Whether a socket may send pages of memory themselves. One that is closed by now may not.
fn is_zerocopy(number: &OsStr) -> bool {
    let number = number.to_str().and_then(|number| number.parse::<RawFd>().ok());
    number.and_then(|number| descriptors::with_common(number, asks_for_zerocopy)).unwrap_or(false)
}

fn asks_for_zerocopy(socket: RawFd) -> bool {
    let (mut is_set, mut len) = (0 as libc::c_int, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the value and its length are locals.
    let rc = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY, (&raw mut is_set).cast(), &raw mut len)
    };
    rc == 0 && is_set != 0
}

/// The mappings of the process.
pub(crate) struct Mappings {
    pub(crate) count: usize,
    /// How many there may be.
    pub(crate) limit: usize,
    /// Whether one is a ring through which the kernel is told of I/O (io_uring, aio).
    pub(crate) has_ring: bool,
}

/// Looks through the mappings of the process. Allocates; costs microseconds a thousand mappings.
pub(crate) fn mappings() -> Option<Mappings> {
    let limit = fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?;
    let maps = fs::read("/proc/self/maps").ok()?;
    let mut mappings = Mappings { count: 0, limit, has_ring: false };
    for line in maps.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        mappings.count += 1;
        // Behind range, rights, offset, device and inode.
        mappings.has_ring |= RINGS.iter().any(|ring| {
            line.get(50..).is_some_and(|end| end.windows(ring.len()).any(|name| name == ring.as_bytes()))
        });
    }
    Some(mappings)
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
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    fn is_direct(number: RawFd) -> bool {
        super::is_direct(OsStr::new(&number.to_string()))
    }

    /// What a child returns where the kernel has not what is tested.
    const NOT_HERE: i32 = 77;

    /// Has `child` return 0 in a process of its own: what it does must not stop other tests' migrations.
    fn check_in_child(missing: &str, child: impl FnMut() -> i32) {
        match in_child(child) {
            ChildEnd::Exited(NOT_HERE) => eprintln!("skipped: {missing}"),
            end => assert_eq!(end, ChildEnd::Exited(0)),
        }
    }

    #[test]
    fn a_descriptor_for_direct_io_is_found() {
        let path = std::env::temp_dir().join(format!("daxtier-direct-{}", std::process::id()));
        let file = fs::File::create(&path).unwrap();
        assert!(!is_direct(file.as_raw_fd()));
        check_in_child("no direct I/O here", || {
            match fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path) {
                Ok(direct) => i32::from(!is_direct(direct.as_raw_fd())) + 2 * i32::from(!may_pin()),
                Err(_) => NOT_HERE,
            }
        });
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_ring_is_found_that_has_no_descriptor() {
        check_in_child("no aio here", || {
            let mut context = 0u64;
            // SAFETY: the context is a local that the call writes to.
            if unsafe { libc::syscall(libc::SYS_io_setup, 4, &raw mut context) } != 0 {
                return NOT_HERE;
            }
            i32::from(!mappings().is_some_and(|mappings| mappings.has_ring)) + 2 * i32::from(may_pin())
        });
    }

    #[test]
    fn a_socket_that_may_send_pages_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(!asks_for_zerocopy(socket.as_raw_fd()));
        check_in_child("this kernel has no SO_ZEROCOPY", || {
            let is_set: libc::c_int = 1;
            // A copy of the child's would be the same socket.
            let Ok(socket) = std::net::UdpSocket::bind("127.0.0.1:0") else { return NOT_HERE };
            let len = size_of::<libc::c_int>() as libc::socklen_t;
            let (level, option) = (libc::SOL_SOCKET, libc::SO_ZEROCOPY);
            // SAFETY: the value is a local.
            let rc = unsafe {
                libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const is_set).cast(), len)
            };
            if rc != 0 { NOT_HERE } else { i32::from(!may_pin()) }
        });
    }

    #[test]
    fn mappings_are_counted_and_limited() {
        let Mappings { count, limit, has_ring } = mappings().unwrap();
        assert!(count > 10 && limit >= count && !has_ring, "{count} of {limit}");
    }
}
