//! Anonymous memory as a device: the fast tier.
//!
//! [`Dram`] has no bytes of its own: each mapping is fresh private memory, huge pages are asked for, and a forked
//! child gets the kernel's copy-on-write copy. On machines whose slow memory is a node of its own (CPU-less
//! nodes), the mappings are bound to the nodes that have CPUs, so that the fast tier is what it says.
//! Used by `pgmap` through [`Device`].

use super::range::{HUGE_BYTES, check_len, check_range, check_span};
use super::{AfterFork, Claim, Device, DeviceError, DeviceKind};
use crate::error::SysError;
use crate::sys::{mm, numa};
use crate::topology;
use std::ops::Range;
use std::path::Path;
use std::ptr::NonNull;

/// Private anonymous memory, on any node with CPUs or on one node.
#[derive(Debug)]
pub struct Dram {
    len_bytes: u64,
    node: Option<u32>,
    /// The nodes that mappings are bound to, where they are bound at all.
    nodes: Option<numa::NodeSet>,
}

const NAME: &str = "dram";

impl Dram {
    /// The mapping granule: 2 MiB.
    pub const ALIGN_BYTES: u64 = HUGE_BYTES;

    /// Makes a device of `len_bytes` of anonymous memory. With `node`, its pages come from this node only;
    /// without, from any node that has CPUs. No memory is used until it is mapped and touched.
    ///
    /// # Errors
    /// [`DeviceError`] when the length is zero or no multiple of 2 MiB, or when memory cannot be bound to `node`.
    pub fn new(len_bytes: u64, node: Option<u32>) -> Result<Dram, DeviceError> {
        check_len(NAME, len_bytes, HUGE_BYTES)?;
        let nodes = match node {
            Some(id) => Some(super::node::bindable(NAME, id)?),
            None => cpu_nodes(Path::new("/")),
        };
        Ok(Dram { len_bytes, node, nodes })
    }
}

/// Returns the nodes to keep DRAM on: those with CPUs that this process may use, when other nodes have memory
/// too; `None` when there is nothing to choose, or when this process may bind to none of them.
fn cpu_nodes(root: &Path) -> Option<numa::NodeSet> {
    let with_memory = topology::read_id_list(&root.join("sys/devices/system/node/has_memory"))?;
    let with_cpu = topology::read_id_list(&root.join("sys/devices/system/node/has_cpu"))?;
    if with_memory.iter().all(|node| with_cpu.contains(node)) {
        return None;
    }
    let mut nodes = numa::NodeSet::EMPTY;
    for &node in with_memory.iter().filter(|node| with_cpu.contains(node)) {
        nodes.insert(node);
    }
    (!nodes.is_empty() && super::node::probe(&nodes).is_ok()).then_some(nodes)
}

impl Device for Dram {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Dram
    }

    fn name(&self) -> &str {
        NAME
    }

    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn align_bytes(&self) -> u64 {
        HUGE_BYTES
    }

    fn node(&self) -> Option<u32> {
        self.node
    }

    fn claim(&self, range: Range<u64>) -> Result<Claim, DeviceError> {
        check_range(NAME, &range, self.len_bytes, HUGE_BYTES)?;
        Ok(Claim { is_zero: true })
    }

    fn release(&self, _range: Range<u64>) {}

    unsafe fn map_at(&self, addr: NonNull<u8>, offset: u64, len_bytes: usize) -> Result<(), DeviceError> {
        check_span(NAME, offset, len_bytes, self.len_bytes, HUGE_BYTES)?;
        let pages = if offset < SMALL_BYTES { Pages::Small } else { Pages::Huge };
        // SAFETY: the caller owns the address range, and nobody uses what is mapped there.
        unsafe { map_private(NAME, addr, len_bytes, pages, self.nodes.as_ref()) }
    }

    unsafe fn adopt(&self, addr: NonNull<u8>, len_bytes: usize) -> Result<(), SysError> {
        match &self.nodes {
            // SAFETY: the caller argued the range.
            Some(nodes) => unsafe { numa::bind_and_move(addr, len_bytes, nodes) },
            // Any node will do, that of the pages too.
            // SAFETY: as above.
            None => unsafe { numa::unbind(addr, len_bytes) },
        }
    }

    /// Returns `false`: the memory belongs to its mapping. Whoever mapped it drops it with MADV_DONTNEED, or by
    /// mapping the range again.
    fn discard(&self, _range: Range<u64>) -> bool {
        false
    }

    fn after_fork_in_child(&self) -> AfterFork {
        AfterFork::Private
    }
}

/// How much of the memory has small pages. Offsets are handed out from the lowest, and many programs are done before
/// they come further: to clear huge pages would cost them more than the rest of their start, and memory that they
/// never use.
const SMALL_BYTES: u64 = 16 << 20;

/// Which pages anonymous memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// Small ones only.
    Small,
    /// Huge ones where the kernel has them.
    Huge,
}

/// Maps fresh anonymous memory of `pages`, on `nodes` where given.
///
/// # Safety
/// As for [`Device::map_at`].
pub(super) unsafe fn map_private(
    device: &str,
    addr: NonNull<u8>,
    len_bytes: usize,
    pages: Pages,
    nodes: Option<&numa::NodeSet>,
) -> Result<(), DeviceError> {
    let refused = |source| DeviceError::Sys { device: device.to_owned(), source };
    // SAFETY: the caller owns the range.
    unsafe { mm::map_anonymous(addr, len_bytes) }.map_err(refused)?;
    let advice = match pages {
        Pages::Small => libc::MADV_NOHUGEPAGE,
        Pages::Huge => libc::MADV_HUGEPAGE,
    };
    // A kernel without huge pages refuses the advice; small pages do the same work.
    // SAFETY: the range was just mapped, for this caller, and the advice drops no data.
    let _ = unsafe { mm::advise(addr, len_bytes, advice) };
    if let Some(nodes) = nodes {
        // SAFETY: the range was just mapped for this caller.
        unsafe { numa::bind(addr, len_bytes, nodes) }.map_err(refused)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mm::Reservation;
    use crate::sys::testing::{ChildEnd, in_child};

    #[test]
    fn bad_lengths_are_refused() {
        assert!(matches!(Dram::new(0, None), Err(DeviceError::Empty { .. })));
        assert!(matches!(Dram::new(4096, None), Err(DeviceError::NotAligned { .. })));
        assert!(matches!(Dram::new(HUGE_BYTES, Some(4000)), Err(DeviceError::NoSuchNode { .. })));
    }

    #[test]
    fn mapped_memory_is_zero_and_private_to_each_side_of_a_fork() {
        let dram = Dram::new(2 * HUGE_BYTES, None).unwrap();
        let space = Reservation::new(HUGE_BYTES as usize, HUGE_BYTES as usize).unwrap();
        assert_eq!(dram.claim(HUGE_BYTES..2 * HUGE_BYTES), Ok(Claim { is_zero: true }));
        // SAFETY: the reservation is this test's own.
        unsafe { dram.map_at(space.base(), HUGE_BYTES, HUGE_BYTES as usize) }.unwrap();
        let byte = space.base().as_ptr();
        // SAFETY: the address was just mapped readable.
        assert_eq!(unsafe { byte.read_volatile() }, 0);
        let end = in_child(|| {
            // SAFETY: the address is mapped, privately, in the child too.
            unsafe { byte.write_volatile(7) };
            i32::from(dram.after_fork_in_child() != AfterFork::Private)
        });
        assert_eq!(end, ChildEnd::Exited(0));
        // SAFETY: the address is still mapped.
        assert_eq!(unsafe { byte.read_volatile() }, 0, "the child wrote into the parent's memory");
    }
}
