//! Looking into another process: its descriptors, the files behind them, and its memory.
//!
//! The kernel decides who may look (`ptrace` access, read mode; attach mode for memory). Everything that comes
//! back was written by somebody else. Not for the `malloc` path: directories are read through the C library.

use super::maps::Line;
use super::text::{Contents, read_regular};
use crate::error::SysError;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Returns the numbers of the descriptors of process `pid` whose link target begins with `prefix`.
///
/// # Errors
/// The refusal to list them: `ENOENT` without such a process, `EACCES` when it is not ours to look at.
pub(crate) fn descriptors(pid: u32, prefix: &[u8]) -> Result<Vec<u32>, SysError> {
    let refused = |call| move |error: io::Error| SysError { call, errno: error.raw_os_error().unwrap_or(0) };
    let mut found = Vec::new();
    for entry in fs::read_dir(descriptor_path(pid, None)).map_err(refused("opendir"))? {
        let entry = entry.map_err(refused("readdir"))?;
        // A descriptor that was closed since has no target any more.
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let number: Option<u32> = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if target.as_os_str().as_bytes().starts_with(prefix) {
            found.extend(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Fills `bytes` from the start of the file behind a descriptor of process `pid`, and returns how many there
/// were.
///
/// # Errors
/// The refusal of open or read.
pub(crate) fn read_descriptor(pid: u32, fd: u32, bytes: &mut [u8]) -> Result<usize, SysError> {
    let refused = |call| move |error: io::Error| SysError { call, errno: error.raw_os_error().unwrap_or(0) };
    let file = fs::File::open(descriptor_path(pid, Some(fd))).map_err(refused("open"))?;
    let mut nr = 0;
    while nr < bytes.len() {
        match file.read_at(&mut bytes[nr..], nr as u64).map_err(refused("pread"))? {
            0 => break,
            more => nr += more,
        }
    }
    Ok(nr)
}

/// Returns the address ranges of process `pid` whose mapping is named `prefix...`, from `/proc/PID/maps`.
///
/// # Errors
/// The refusal to read it.
pub(crate) fn mappings(pid: u32, prefix: &[u8]) -> Result<Vec<std::ops::Range<usize>>, SysError> {
    const LONGEST: usize = 64 << 20;
    let Contents::Bytes(maps) = read_regular(&PathBuf::from(format!("/proc/{pid}/maps")), LONGEST)? else {
        return Ok(Vec::new());
    };
    let lines = maps.split(|&byte| byte == b'\n').filter_map(Line::parse);
    Ok(lines.filter(|line| line.name.starts_with(prefix)).map(|line| line.addresses).collect())
}

/// Fills `bytes` from address `addr` of process `pid`, and returns how many could be read.
///
/// # Errors
/// The refusal of process_vm_readv: `EPERM` without the right to attach, `ESRCH` without such a process.
pub(crate) fn read_memory(pid: u32, addr: usize, bytes: &mut [u8]) -> Result<usize, SysError> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(addr), iov_len: bytes.len() };
    // SAFETY: the kernel writes at most `bytes.len()` bytes into `bytes`, which outlives the call; the remote
    // address is the other process's and only the kernel looks at it.
    let nr = unsafe { libc::process_vm_readv(pid as libc::pid_t, &local, 1, &remote, 1, 0) };
    usize::try_from(nr).map_err(|_| SysError::last("process_vm_readv"))
}

/// Writes `bytes` to address `addr` of process `pid`, and returns how many could be written.
///
/// # Errors
/// The refusal of process_vm_writev: `EPERM` without the right to attach, `EFAULT` for an address that is not there.
pub(crate) fn write_memory(pid: u32, addr: usize, bytes: &[u8]) -> Result<usize, SysError> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(addr), iov_len: bytes.len() };
    // SAFETY: the kernel only reads the bytes, which outlive the call; what is overwritten is the caller's affair.
    let nr = unsafe { libc::process_vm_writev(pid as libc::pid_t, &local, 1, &remote, 1, 0) };
    usize::try_from(nr).map_err(|_| SysError::last("process_vm_writev"))
}

fn descriptor_path(pid: u32, fd: Option<u32>) -> PathBuf {
    match fd {
        Some(fd) => format!("/proc/{pid}/fd/{fd}").into(),
        None => format!("/proc/{pid}/fd").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::page;

    #[test]
    fn a_page_of_this_process_is_found_and_read_both_ways() {
        let name = c"daxtier-peer-test";
        let fd = page::sealed_memfd(name, 4096).unwrap();
        let at = page::map_somewhere(4096, Some(std::os::fd::AsFd::as_fd(&fd))).unwrap();
        // SAFETY: the mapping is 4096 bytes long, writable, and this test's alone.
        unsafe { at.write(42) };
        let pid = std::process::id();
        let prefix = b"/memfd:daxtier-peer-test";
        let [found] = descriptors(pid, prefix).unwrap()[..] else { panic!("not one descriptor") };
        let mut bytes = [0; 5000];
        assert_eq!((read_descriptor(pid, found, &mut bytes), bytes[0]), (Ok(4096), 42));
        let [range] = &mappings(pid, prefix).unwrap()[..] else { panic!("not one mapping") };
        assert_eq!(*range, at.addr().get()..at.addr().get() + 4096);
        bytes[0] = 0;
        assert_eq!((read_memory(pid, range.start, &mut bytes[..4096]), bytes[0]), (Ok(4096), 42));
        // SAFETY: nothing refers to the mapping any more.
        unsafe { page::unmap(at, 4096) };
    }

    #[test]
    fn a_process_that_is_not_there_is_told_apart() {
        let gone = u32::MAX >> 1;
        assert_eq!(descriptors(gone, b"").map_err(|e| e.errno), Err(libc::ENOENT));
        assert_eq!(read_memory(gone, 4096, &mut [0; 8]).map_err(|e| e.errno), Err(libc::ESRCH));
    }

    #[test]
    fn a_page_can_neither_shrink_nor_grow() {
        let fd = page::sealed_memfd(c"daxtier-seal-test", 4096).unwrap();
        let file = fs::File::from(fd);
        for len in [0, 1, 8192] {
            assert_eq!(file.set_len(len).map_err(|e| e.raw_os_error()), Err(Some(libc::EPERM)));
        }
    }
}
