//! Memory of one NUMA node as a device: CXL memory that the kernel has taken as system RAM.
//!
//! [`NodeMemory`] maps anonymous memory bound to its node (MPOL_BIND). The kernel tracks the pages, so pinning,
//! forking and migrating them work as for all other memory. Whether the node exists and may be used is found
//! out when the device is made, with a page of probe memory, not at the first use.

use super::dram::{Pages, map_private};
use super::range::{HUGE_BYTES, check_len, check_range, check_span};
use super::{AfterFork, Claim, Device, DeviceError, DeviceKind};
use crate::error::SysError;
use crate::sys::{mm, numa};
use crate::topology;
use crate::units::PAGE_SIZE;
use std::ops::Range;
use std::path::Path;
use std::ptr::NonNull;

/// Anonymous memory bound to one NUMA node.
#[derive(Debug)]
pub struct NodeMemory {
    name: String,
    len_bytes: u64,
    id: u32,
    nodes: numa::NodeSet,
}

impl NodeMemory {
    /// The mapping granule: 2 MiB.
    pub const ALIGN_BYTES: u64 = HUGE_BYTES;

    /// Makes a device of `len_bytes` of node `id`'s memory. Nothing is used until it is mapped and touched.
    ///
    /// # Errors
    /// [`DeviceError`] when the length is zero, no multiple of 2 MiB or more than the node has, when there is no
    /// such node, or when this process may not bind memory to it.
    pub fn new(id: u32, len_bytes: u64) -> Result<NodeMemory, DeviceError> {
        let name = format!("node:{id}");
        check_len(&name, len_bytes, HUGE_BYTES)?;
        let nodes = bindable(&name, id)?;
        let has_bytes = topology::node_memory_bytes(Path::new("/"), id);
        if let Some(has_bytes) = has_bytes.filter(|&has| has < len_bytes) {
            return Err(DeviceError::NodeTooSmall { device: name, node: id, len_bytes, has_bytes });
        }
        Ok(NodeMemory { name, len_bytes, id, nodes })
    }
}

/// Returns the set that binds memory to node `id`, after trying it.
pub(super) fn bindable(device: &str, id: u32) -> Result<numa::NodeSet, DeviceError> {
    let mut nodes = numa::NodeSet::EMPTY;
    let known = topology::read_id_list(Path::new("/sys/devices/system/node/has_memory"));
    let is_unknown = known.as_ref().is_some_and(|known| !known.contains(&id));
    if !nodes.insert(id) || is_unknown {
        let known = known.unwrap_or_default();
        return Err(DeviceError::NoSuchNode { device: device.to_owned(), node: id, known });
    }
    match probe(&nodes) {
        Ok(()) => Ok(nodes),
        Err(source) => Err(DeviceError::NodeRefused { device: device.to_owned(), node: id, source }),
    }
}

/// Tries to bind a page to `nodes`.
pub(super) fn probe(nodes: &numa::NodeSet) -> Result<(), SysError> {
    let page = mm::Reservation::new(PAGE_SIZE, PAGE_SIZE)?;
    // SAFETY: the reservation is mapped and belongs to this call.
    unsafe { numa::bind(page.base(), PAGE_SIZE, nodes) }
}

impl Device for NodeMemory {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Node
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn align_bytes(&self) -> u64 {
        HUGE_BYTES
    }

    fn node(&self) -> Option<u32> {
        Some(self.id)
    }

    fn claim(&self, range: Range<u64>) -> Result<Claim, DeviceError> {
        check_range(&self.name, &range, self.len_bytes, HUGE_BYTES)?;
        Ok(Claim { is_zero: true })
    }

    fn release(&self, _range: Range<u64>) {}

    unsafe fn map_at(&self, addr: NonNull<u8>, offset: u64, len_bytes: usize) -> Result<(), DeviceError> {
        check_span(&self.name, offset, len_bytes, self.len_bytes, HUGE_BYTES)?;
        // SAFETY: the caller owns the address range, and nobody uses what is mapped there.
        unsafe { map_private(&self.name, addr, len_bytes, Pages::Huge, Some(&self.nodes)) }
    }

    unsafe fn adopt(&self, addr: NonNull<u8>, len_bytes: usize) -> Result<(), SysError> {
        // SAFETY: the caller argued the range.
        unsafe { numa::bind_and_move(addr, len_bytes, &self.nodes) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mm::Reservation;

    /// Returns a node device, or prints why this machine cannot have one.
    fn first_node() -> Option<NodeMemory> {
        let known = topology::read_id_list(Path::new("/sys/devices/system/node/has_memory"));
        let Some(&id) = known.as_ref().and_then(|known| known.first()) else {
            eprintln!("skipped: this kernel lists no NUMA nodes");
            return None;
        };
        match NodeMemory::new(id, 2 * HUGE_BYTES) {
            Ok(device) => Some(device),
            Err(DeviceError::NodeRefused { source, .. }) => {
                eprintln!("skipped: {source}");
                None
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_node_that_does_not_exist_is_named_with_those_that_do() {
        match NodeMemory::new(999, HUGE_BYTES) {
            Err(error @ DeviceError::NoSuchNode { node: 999, .. }) => {
                assert!(error.to_string().contains("node 999"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(NodeMemory::new(u32::MAX, HUGE_BYTES), Err(DeviceError::NoSuchNode { .. })));
    }

    #[test]
    fn more_than_the_node_has_is_refused() {
        let Some(device) = first_node() else { return };
        let error = NodeMemory::new(device.id, 1 << 50).unwrap_err();
        assert!(
            matches!(error, DeviceError::NodeTooSmall { len_bytes, .. } if len_bytes == 1 << 50),
            "{error}"
        );
    }

    #[test]
    fn mapped_memory_lies_on_the_node() {
        let Some(device) = first_node() else { return };
        let space = Reservation::new(HUGE_BYTES as usize, HUGE_BYTES as usize).unwrap();
        // SAFETY: the reservation is this test's own.
        unsafe { device.map_at(space.base(), HUGE_BYTES, HUGE_BYTES as usize) }.unwrap();
        // SAFETY: the address was just mapped writable.
        unsafe { space.base().as_ptr().write_volatile(1) };
        let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
        let line =
            maps.lines().find(|line| line.starts_with(&format!("{:x} ", space.base().as_ptr().addr())));
        let line = line.expect("the mapping has a line of its own");
        assert!(line.contains(&format!("bind:{}", device.id)), "{line}");
        assert!(line.contains(&format!("N{}=", device.id)), "{line}");
    }
}
