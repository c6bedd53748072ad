//! The calls on memory that a program may make for blocks of malloc too: mprotect, madvise, mlock and their like.
//!
//! Each looks whether its range touches the library's memory. If it does not, the call goes on untouched; else
//! `runtime::memory` makes it, which knows what is there. So a call on other memory costs one comparison more, and works
//! before the library is set up, in signal handlers and in children as it does without it.

use crate::{next, set_errno};
use daxtier::runtime::memory::{self, MemoryCall};
use libc::{c_int, c_uint, c_ulong, c_void, iovec, pid_t, size_t, ssize_t};

/// Makes a call for a range that touches the library's memory.
///
/// # Safety
/// The program makes this call, on memory of its own.
unsafe fn perform(call: MemoryCall, addr: *const c_void, len: size_t) -> c_int {
    // SAFETY: the caller argued it.
    unsafe { daxtier::preload::perform(call, addr.addr(), len) }
}

/// Changes the protection of memory. See mprotect(2).
///
/// # Safety
/// As mprotect(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mprotect(addr: *mut c_void, len: size_t, prot: c_int) -> c_int {
    if memory::touches(addr.addr(), len) {
        // SAFETY: the caller argued it.
        return unsafe { perform(MemoryCall::Protect { prot, key: -1 }, addr, len) };
    }
    // SAFETY: as above.
    unsafe { next::mprotect(addr, len, prot) }
}

/// Changes the protection of memory, and its key. See pkey_mprotect(2).
///
/// # Safety
/// As pkey_mprotect(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pkey_mprotect(
    addr: *mut c_void,
    len: size_t,
    prot: c_int,
    key: c_int,
) -> c_int {
    if memory::touches(addr.addr(), len) {
        // SAFETY: the caller argued it.
        return unsafe { perform(MemoryCall::Protect { prot, key }, addr, len) };
    }
    // SAFETY: as above.
    unsafe { next::pkey_mprotect(addr, len, prot, key) }
}

/// Gives advice about memory. See madvise(2).
///
/// # Safety
/// As madvise(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn madvise(addr: *mut c_void, len: size_t, advice: c_int) -> c_int {
    if memory::touches(addr.addr(), len) {
        // SAFETY: the caller argued it.
        return unsafe { perform(MemoryCall::Advise { advice }, addr, len) };
    }
    // SAFETY: as above.
    unsafe { next::madvise(addr, len, advice) }
}

/// Gives advice about memory that never drops data. See posix_madvise(3).
///
/// # Safety
/// As posix_madvise(3) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn posix_madvise(addr: *mut c_void, len: size_t, advice: c_int) -> c_int {
    // As the C library, which drops nothing. What it passes on are hints that blocks do not heed.
    if advice == libc::POSIX_MADV_DONTNEED || memory::touches(addr.addr(), len) {
        return 0;
    }
    // SAFETY: the caller argued it.
    match unsafe { next::posix_madvise(addr, len, advice) } {
        // Of the kernel, before the C library's function was looked up.
        -1 => libc::EINVAL,
        outcome => outcome,
    }
}

/// Keeps memory from being paged out. See mlock(2).
///
/// # Safety
/// As mlock(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mlock(addr: *const c_void, len: size_t) -> c_int {
    if memory::touches(addr.addr(), len) {
        // SAFETY: the caller argued it.
        return unsafe { perform(MemoryCall::Lock { flags: 0 }, addr, len) };
    }
    // SAFETY: as above.
    unsafe { next::mlock(addr, len) }
}

/// Keeps memory from being paged out. See mlock2(2).
///
/// # Safety
/// As mlock2(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mlock2(addr: *const c_void, len: size_t, flags: c_uint) -> c_int {
    if memory::touches(addr.addr(), len) {
        // SAFETY: the caller argued it.
        return unsafe { perform(MemoryCall::Lock { flags }, addr, len) };
    }
    // SAFETY: as above.
    unsafe { next::mlock2(addr, len, flags) }
}

/// Ends mlock. See munlock(2).
///
/// # Safety
/// As munlock(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn munlock(addr: *const c_void, len: size_t) -> c_int {
    if memory::touches(addr.addr(), len) {
        // SAFETY: the caller argued it.
        return unsafe { perform(MemoryCall::Unlock, addr, len) };
    }
    // SAFETY: as above.
    unsafe { next::munlock(addr, len) }
}

/// Keeps all memory from being paged out; none of ours moves until munlockall. See mlockall(2).
///
/// # Safety
/// As mlockall(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mlockall(flags: c_int) -> c_int {
    // Before the call: what moves meanwhile would not be locked.
    let Some(lock) = memory::lock_all() else {
        set_errno(libc::EAGAIN);
        return -1;
    };
    // SAFETY: the caller argued it.
    let outcome = unsafe { next::mlockall(flags) };
    if outcome != 0 {
        lock.undo();
    }
    outcome
}

/// Ends mlock and mlockall. See munlockall(2).
///
/// # Safety
/// As munlockall(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn munlockall() -> c_int {
    // SAFETY: the caller argued it.
    let outcome = unsafe { next::munlockall() };
    if outcome == 0 {
        memory::unlock_all();
    }
    outcome
}

/// Binds memory to NUMA nodes. See mbind(2).
///
/// # Safety
/// As mbind(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mbind(
    addr: *mut c_void,
    len: c_ulong,
    mode: c_int,
    nodes: *const c_ulong,
    nr_bits: c_ulong,
    flags: c_uint,
) -> c_int {
    if memory::touches(addr.addr(), len as size_t) {
        let call = MemoryCall::Bind { mode, nodes, nr_bits, flags };
        // SAFETY: the caller argued it.
        return unsafe { perform(call, addr, len as size_t) };
    }
    // SAFETY: as above.
    unsafe { next::mbind(addr, len, mode, nodes, nr_bits, flags) }
}

/// Unmaps memory, but none of ours: a block's mapping is not the program's. See munmap(2).
///
/// # Safety
/// As munmap(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn munmap(addr: *mut c_void, len: size_t) -> c_int {
    if memory::touches(addr.addr(), len) {
        set_errno(libc::EINVAL);
        return -1;
    }
    // SAFETY: the caller argued it.
    unsafe { next::munmap(addr, len) }
}

/// Moves or resizes a mapping, but none of ours, and none over ours. See mremap(2), which has a variable number of
/// arguments: the last one is only looked at with `MREMAP_FIXED` and `MREMAP_DONTUNMAP`.
///
/// # Safety
/// As mremap(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mremap(
    addr: *mut c_void,
    len: size_t,
    new_len: size_t,
    flags: c_int,
    new_addr: *mut c_void,
) -> *mut c_void {
    let has_place = flags & libc::MREMAP_FIXED != 0;
    if memory::touches(addr.addr(), len.max(1)) || has_place && memory::touches(new_addr.addr(), new_len) {
        set_errno(libc::EINVAL);
        return libc::MAP_FAILED;
    }
    // SAFETY: the caller argued it.
    unsafe { next::mremap(addr, len, new_len, flags, new_addr) }
}

/// Splices memory into a pipe. See vmsplice(2). A pipe keeps pages for as long as nobody reads it, and of DRAM alone the kernel
/// gives the block's next owner others; so what lies on a device is brought there first.
///
/// # Safety
/// As vmsplice(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmsplice(
    fd: c_int,
    parts: *const iovec,
    nr_parts: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: the caller argued that there are so many.
    unsafe { bring_to_dram(parts, nr_parts) };
    // SAFETY: as above.
    unsafe { next::vmsplice(fd, parts, nr_parts, flags) }
}

/// Writes to a process's memory. See process_vm_writev(2). The call holds the pages that it writes to; so what lies on a device
/// is brought to DRAM first, where a move sees that.
///
/// # Safety
/// As process_vm_writev(2) demands.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn process_vm_writev(
    pid: pid_t,
    local: *const iovec,
    nr_local: c_ulong,
    remote: *const iovec,
    nr_remote: c_ulong,
    flags: c_ulong,
) -> ssize_t {
    // SAFETY: takes no argument.
    let own_pid = unsafe { libc::getpid() };
    if pid == own_pid {
        // SAFETY: the caller argued that there are so many.
        unsafe { bring_to_dram(remote, nr_remote as size_t) };
    }
    // SAFETY: as above.
    unsafe { next::process_vm_writev(pid, local, nr_local, remote, nr_remote, flags) }
}

/// Brings to DRAM what lies on a device, as far as that can be done.
///
/// # Safety
/// `parts` is NULL or has `nr_parts` elements, unless those are more than the kernel takes.
unsafe fn bring_to_dram(parts: *const iovec, nr_parts: size_t) {
    // More than the kernel takes, and it says so.
    const MOST_PARTS: size_t = libc::UIO_MAXIOV as size_t;
    if parts.is_null() || nr_parts > MOST_PARTS {
        return;
    }
    for at in 0..nr_parts {
        // SAFETY: the caller argued that there are so many.
        let part = unsafe { parts.add(at) };
        // SAFETY: as above; they need not be aligned.
        let part = unsafe { part.read_unaligned() };
        if memory::touches(part.iov_base.addr(), part.iov_len) {
            daxtier::preload::bring_to_dram(part.iov_base.addr(), part.iov_len);
        }
    }
}
