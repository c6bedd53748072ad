//! Memory policy of address ranges: mbind with a set of nodes.

use crate::error::SysError;
use std::ptr::NonNull;

/// The number of NUMA nodes that a [`NodeSet`] can name: the kernel's own limit (`CONFIG_NODES_SHIFT` of 10).
pub(crate) const MAX_NODES: u32 = 1024;

/// A set of NUMA nodes, as the bit mask that the kernel reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeSet {
    words: [libc::c_ulong; MAX_NODES as usize / 64],
}

impl NodeSet {
    /// The set without nodes.
    pub(crate) const EMPTY: NodeSet = NodeSet { words: [0; MAX_NODES as usize / 64] };

    /// Adds `node`; returns `false` for a number that no kernel gives, and leaves the set as it was.
    pub(crate) fn insert(&mut self, node: u32) -> bool {
        let Some(word) = self.words.get_mut(node as usize / 64) else { return false };
        *word |= 1 << (node % 64);
        true
    }

    /// Returns whether no node is in the set.
    pub(crate) fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }
}

/// Lets the pages of `[addr, addr + len_bytes)` come from `nodes` only. Pages that exist already stay where they
/// are.
///
/// # Safety
/// The range is mapped and belongs to the caller.
///
/// # Errors
/// The refusal of mbind: `EINVAL` when no node of the set is online with memory and allowed by the cpuset,
/// `EPERM` under a seccomp filter, `ENOSYS` without NUMA in the kernel.
pub(crate) unsafe fn bind(addr: NonNull<u8>, len_bytes: usize, nodes: &NodeSet) -> Result<(), SysError> {
    // SAFETY: the caller argued the range.
    unsafe { mbind(addr, len_bytes, libc::MPOL_BIND, nodes, 0) }
}

/// As [`bind`], and moves the pages that exist to `nodes`. Accesses to a page wait while it is moved.
///
/// # Safety
/// As for [`bind`].
///
/// # Errors
/// As for [`bind`], and `EIO` when some pages could not be moved: those that are pinned.
pub(crate) unsafe fn bind_and_move(
    addr: NonNull<u8>,
    len_bytes: usize,
    nodes: &NodeSet,
) -> Result<(), SysError> {
    // `include/uapi/linux/mempolicy.h`; libc lacks them.
    const MPOL_MF_STRICT: libc::c_uint = 1;
    const MPOL_MF_MOVE: libc::c_uint = 2;
    // SAFETY: the caller argued the range.
    unsafe { mbind(addr, len_bytes, libc::MPOL_BIND, nodes, MPOL_MF_MOVE | MPOL_MF_STRICT) }
}

/// Ends the policy of a range: pages come from where the process's policy says.
///
/// # Safety
/// As for [`bind`].
///
/// # Errors
/// The refusal of mbind.
pub(crate) unsafe fn unbind(addr: NonNull<u8>, len_bytes: usize) -> Result<(), SysError> {
    // SAFETY: the caller argued the range.
    unsafe { mbind(addr, len_bytes, libc::MPOL_DEFAULT, &NodeSet::EMPTY, 0) }
}

/// # Safety
/// As for [`bind`].
unsafe fn mbind(
    addr: NonNull<u8>,
    len_bytes: usize,
    mode: libc::c_int,
    nodes: &NodeSet,
    flags: libc::c_uint,
) -> Result<(), SysError> {
    // The kernel reads one bit less than it is told.
    let nr_bits = libc::c_ulong::from(MAX_NODES) + 1;
    // SAFETY: the range is the caller's, the mask holds MAX_NODES bits and lives through the call.
    let rc = unsafe {
        libc::syscall(libc::SYS_mbind, addr.as_ptr(), len_bytes, mode, nodes.words.as_ptr(), nr_bits, flags)
    };
    if rc == 0 { Ok(()) } else { Err(SysError::last("mbind")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_set_refuses_numbers_that_no_kernel_gives() {
        let mut set = NodeSet::EMPTY;
        assert!(!set.insert(MAX_NODES));
        assert!(!set.insert(u32::MAX));
        assert!(set.is_empty());
        assert!(set.insert(65));
        assert_eq!(set.words[1], 2);
        assert!(!set.is_empty());
    }
}
