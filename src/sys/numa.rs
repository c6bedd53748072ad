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
    // The kernel reads one bit less than it is told.
    let nr_bits = libc::c_ulong::from(MAX_NODES) + 1;
    // SAFETY: the range is the caller's, the mask holds MAX_NODES bits and lives through the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            addr.as_ptr(),
            len_bytes,
            libc::MPOL_BIND,
            nodes.words.as_ptr(),
            nr_bits,
            0 as libc::c_uint,
        )
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
