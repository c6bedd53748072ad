//! Ending this process, waiting for the end of another, and what the kernel says of both.

use crate::error::SysError;
use libc::{c_int, pid_t};
use std::fs;
use std::os::fd::AsRawFd;

/// Ends the process at once: no handlers run and nothing is flushed. By number, since the preload library stands in for
/// `_exit`.
pub(crate) fn exit_now(status: c_int) -> ! {
    loop {
        // SAFETY: the call touches no memory of ours, and does not return.
        unsafe { libc::syscall(libc::SYS_exit_group, status) };
    }
}

/// Waits for the end of a child and takes it away, unless somebody else did so.
pub(crate) fn reap(child: pid_t) {
    // SAFETY: the status may be NULL.
    while unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } < 0 && super::errno::get() == libc::EINTR {
    }
}

/// Returns a number in `/proc/self/status`, unless it has none of that name.
pub(crate) fn status_field(name: &str) -> Option<u32> {
    field_of(&fs::read_to_string("/proc/self/status").ok()?, name)?.parse().ok()
}

/// Returns the number that process `pid` has in its own namespace.
pub(crate) fn own_number_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    field_of(&status, "NSpid")?.split_whitespace().next_back()?.parse().ok()
}

fn field_of<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Whether process `pid` has this one's network namespace, as far as can be seen.
pub(crate) fn shares_network_with(pid: u32) -> bool {
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    of(&pid.to_string()).is_none_or(|theirs| of("self") == Some(theirs))
}

/// Takes the calling thread into the network namespace of process `pid`.
///
/// # Errors
/// The refusal of open or setns.
pub(crate) fn join_network_of(pid: u32) -> Result<(), SysError> {
    let namespace = fs::File::open(format!("/proc/{pid}/ns/net"))
        .map_err(|error| SysError { call: "open", errno: error.raw_os_error().unwrap_or(libc::EIO) })?;
    // SAFETY: takes numbers only.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(SysError::last("setns"));
    }
    Ok(())
}
